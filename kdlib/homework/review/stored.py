"""The flag about stored notebooks: cleared, out of order, or hidden from the comparison."""

from __future__ import annotations

import re
from collections.abc import Iterator

from kdlib.homework.review import cells
from kdlib.homework.review.cells import Cell
from kdlib.homework.review.findings import GREEN, RED, Answer, Finding, counted, some
from kdlib.homework.review.handed_in import HandedIn
from kdlib.homework.review.history import source_lines

MOST_IMPORTS = 10  # lines that a notebook may have in common with the course's and be its own
# All spellings that make nbval (or nbclient) skip a cell, or not compare what it shows.
_MARKER = re.compile(r"^\s*#+\s*((?:PYTEST_VALIDATE|NBVAL)_\w+)", re.MULTILINE | re.IGNORECASE)
_TAG = re.compile(
    r"(?:nbval|pytest-validate)-[\w-]+|skip-execution|raises-exception", re.IGNORECASE
)


def notebooks(handed_in: HandedIn) -> Answer:
    """Outputs are there, in order, and nothing keeps strict comparison from them.

    A copy of a course's notebook that did not run is no work yet: `exercises` tells what is to do.
    """
    contents = {name: (handed_in.tree / name).read_bytes() for name in handed_in.notebooks()}
    names = [
        name
        for name, content in contents.items()
        if not (_is_cleared(content) and _is_given(handed_in, name, content))
    ]
    if not names:
        return Answer.note("notebooks", "no notebooks of the team's own are handed in")
    found = []
    for name in names:
        content = contents[name]
        if not cells.is_notebook(content):
            found.append(Finding("notebooks", RED, "it is no readable notebook", name))
            continue
        found += _of_one(name, content)
    evidence = (
        f"{counted(len(names), 'notebook')}, executed in order, no cell is hidden from comparison"
    )
    commands = tuple(f"pytest --nbval '{name}'" for name in names)
    return Answer.of(found, Finding("notebooks", GREEN, evidence), commands=commands)


def _code(content: bytes) -> list[Cell]:
    return [one for one in cells.read(content) if one.kind == "code"]


def _is_cleared(content: bytes) -> bool:
    """Whether there is code, and none of it ran."""
    written = [one for one in _code(content) if one.source.strip()]
    return bool(written) and not any(one.outputs or one.executed for one in written)


def _is_given(handed_in: HandedIn, name: str, content: bytes) -> bool:
    """Whether half of the lines or more, and no few imports, are those that teams were given."""
    lines = source_lines(name, content)
    given = sum(map(handed_in.is_given, lines))
    return given >= max(MOST_IMPORTS, len(lines) / 2)


def _of_one(name: str, content: bytes) -> Iterator[Finding]:
    code = _code(content)
    counts = [cell.executed for cell in code if cell.source.strip()]
    if _is_cleared(content):
        yield Finding(
            "notebooks", RED, "its outputs are cleared: strict comparison passes it", name
        )
    elif None in counts:
        evidence = f"{counts.count(None)} of {counted(len(counts), 'cell')} did not run"
        yield Finding("notebooks", RED, evidence, name)
    elif counts != list(range(1, len(counts) + 1)):
        evidence = f"its cells did not run in order: {some(counts, 8)}"
        yield Finding("notebooks", RED, evidence, name)
    for place, cell in enumerate(code, start=1):
        marks = markers(cell)
        if marks:
            evidence = f"hidden from strict comparison by {some(marks)}"
            yield Finding("notebooks", RED, evidence, f"{name}, code cell {place}")


def markers(cell: Cell) -> list[str]:
    """What keeps strict comparison from a cell, in comments and in tags."""
    found = _MARKER.findall(cell.source)
    return found + [tag for tag in cell.tags if _TAG.fullmatch(tag)]
