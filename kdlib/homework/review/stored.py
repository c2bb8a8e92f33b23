"""The flag about stored notebooks: cleared, out of order, or hidden from the comparison."""

from __future__ import annotations

import re
from collections.abc import Iterator

from kdlib.homework.review import cells
from kdlib.homework.review.cells import Cell
from kdlib.homework.review.findings import GREEN, RED, Answer, Finding, some
from kdlib.homework.review.handed_in import HandedIn

# All spellings that make nbval (or nbclient) skip a cell, or not compare what it shows.
_MARKER = re.compile(r"^\s*#+\s*((?:PYTEST_VALIDATE|NBVAL)_\w+)", re.MULTILINE | re.IGNORECASE)
_TAG = re.compile(
    r"(?:nbval|pytest-validate)-[\w-]+|skip-execution|raises-exception", re.IGNORECASE
)


def notebooks(handed_in: HandedIn) -> Answer:
    """Outputs are there, in order, and nothing keeps strict comparison from them."""
    names = handed_in.notebooks()
    if not names:
        return Answer.note("notebooks", "no notebooks of the team's own are handed in")
    found = []
    for name in names:
        content = (handed_in.tree / name).read_bytes()
        if not cells.is_notebook(content):
            found.append(Finding("notebooks", RED, "it is no readable notebook", name))
            continue
        found += _of_one(name, [one for one in cells.read(content) if one.kind == "code"])
    evidence = f"{len(names)} notebooks, executed in order, no cell is hidden from comparison"
    commands = tuple(f"pytest --nbval '{name}'" for name in names)
    return Answer.of(found, Finding("notebooks", GREEN, evidence), commands=commands)


def _of_one(name: str, code: list[Cell]) -> Iterator[Finding]:
    written = [cell for cell in code if cell.source.strip()]
    counts = [cell.executed for cell in written]
    if written and not any(cell.outputs or cell.executed for cell in written):
        yield Finding(
            "notebooks", RED, "its outputs are cleared: strict comparison passes it", name
        )
    elif None in counts:
        missing = counts.count(None)
        yield Finding("notebooks", RED, f"{missing} of {len(counts)} cells did not run", name)
    elif counts != list(range(1, len(counts) + 1)):
        evidence = f"its cells did not run in order: {some(counts, 8)}"
        yield Finding("notebooks", RED, evidence, name)
    for place, cell in enumerate(code, start=1):
        marks = markers(cell)
        if marks:
            evidence = f"cell {place} is hidden from strict comparison by {some(marks)}"
            yield Finding("notebooks", RED, evidence, name)


def markers(cell: Cell) -> list[str]:
    """What keeps strict comparison from a cell, in comments and in tags."""
    found = _MARKER.findall(cell.source)
    return found + [tag for tag in cell.tags if _TAG.fullmatch(tag)]
