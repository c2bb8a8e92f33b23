"""The cells of a notebook that nobody trusts: plain JSON, whatever it holds."""

from __future__ import annotations

import json
from typing import Any, NamedTuple


class Cell(NamedTuple):
    """A cell; `executed` is its number, None for code that did not run."""

    kind: str
    source: str
    executed: int | None
    outputs: tuple[dict[str, Any], ...]
    tags: tuple[str, ...]
    metadata: dict[str, Any]


def read(content: bytes) -> list[Cell]:
    """The cells; none of what is no notebook."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return []
    listed = found.get("cells") if isinstance(found, dict) else None
    return (
        [_cell(one) for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    )


def is_notebook(content: bytes) -> bool:
    """Whether a file has the form of a notebook."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and isinstance(found.get("cells"), list)


def _cell(one: dict[str, Any]) -> Cell:
    source = one.get("source")
    if isinstance(source, list):
        source = "".join(part for part in source if isinstance(part, str))
    metadata = one.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    tags, outputs, count = metadata.get("tags"), one.get("outputs"), one.get("execution_count")
    return Cell(
        kind=str(one.get("cell_type")),
        source=source if isinstance(source, str) else "",
        executed=count if type(count) is int else None,
        outputs=tuple(part for part in outputs if isinstance(part, dict))
        if isinstance(outputs, list)
        else (),
        tags=tuple(str(tag) for tag in tags) if isinstance(tags, list) else (),
        metadata=metadata,
    )


def code(content: bytes) -> str:
    """A notebook as a program: its cells of code, without the lines that only IPython reads."""
    parts = []
    for cell in read(content):
        if cell.kind == "code":
            lines = [
                one for one in cell.source.splitlines() if not one.lstrip().startswith(("%", "!"))
            ]
            parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"
