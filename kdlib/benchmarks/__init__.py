"""What the kit costs, measured side by side: the measurements behind `python -m kdlib bench`.

- `clock`: two things timed in turns
- `rows`: what was found, as JSON and as a table
- `plan`, `networks`: how thoroughly to measure, and on what
- `loops`: the loops to compare with
- `vision`, `text`, `peers`, `forms`, `laptop`, `ranks`: the measurements
- `catalogue`: their names; `runner` runs each in a process of its own
"""
