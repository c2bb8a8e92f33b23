"""The team homework: the course as data, and the report whose numbers come from run records.

`course` holds the rules, `team` what a team says about itself. `results` turns records into values
with keys, `generated` writes them for Typst and LaTeX, `sources` and `checks` read a report,
`building` makes its PDF. `report` joins them for the command line. `sandbox` runs what somebody
else wrote, `untrusted` their notebooks and reports. `review/` gathers evidence about a repository.
"""
