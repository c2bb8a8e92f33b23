"""Notebooks as files: find them, read them, list their claims, write them back."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kdlib.engine.files import write_atomically

PROJECT = Path(__file__).resolve().parents[2]
FOLDER = PROJECT / "notebooks"
BESIDE = ".executed.ipynb"  # the end of the name where outputs may not go into the notebook itself
STATES = ("correct", "not yet", "to do")  # of an exercise
NEAR = " (≈ close)"  # behind a verdict that another processor could turn

SLOW_SECONDS = 1.0  # only cells above this get a stored time
SAME_WITHIN = 2.0  # a stored time stays while the new one is within this factor of it


class Verdict(NamedTuple):
    """What a display of `evidence.claim` says."""

    text: str
    verdict: str  # "holds", "not shown", "≈holds, but close" or "≈not shown, but close"
    near: bool  # another processor could turn it
    numbers: str


class Adjusted(NamedTuple):
    """What the closing table of an `evidence.Family` says about one of its claims."""

    text: str
    verdict: str  # as in `Verdict`, adjusted for the number of claims
    near: bool  # another processor could turn it
    p: float | None  # adjusted, from 0 to 1; None for what is no such number


class Checked(NamedTuple):
    """What a display of `check` says about one exercise."""

    name: str
    state: str  # one of STATES
    line: str


def find(names: Sequence[str] = (), folder: Path = FOLDER) -> list[Path]:
    """Notebooks by number ("3"), name ("03_code_walkthrough") or path; without names, all.

    Raises:
        ValueError: a name that fits no notebook; the message lists the known ones.
    """
    known = sorted(path for path in folder.glob("*.ipynb") if not path.name.endswith(BESIDE))
    if not names and not known:
        raise ValueError(
            f"no notebooks in {folder}: get a copy of the whole kit and install it "
            "from its own folder with `pip install -r requirements.txt`"
        )
    return [_find_one(name, known) for name in names] if names else known


def _find_one(name: str, known: list[Path]) -> Path:
    path = Path(name)
    if path.suffix == ".ipynb" and path.is_file():
        return path.resolve()
    fitting = [candidate for candidate in known if name in (candidate.stem, candidate.name)]
    if not fitting and name.isdecimal():
        fitting = [
            candidate
            for candidate in known
            if candidate.stem.split("_")[0] in (name, name.zfill(2))
        ]
    if len(fitting) == 1:
        return fitting[0]
    problem = "fits several" if fitting else "not found"
    stems = ", ".join(candidate.stem for candidate in known) or "none"
    raise ValueError(f"notebook {name!r} {problem}: give a path, a number or one of {stems}")


def read(path: Path) -> Any:
    """A notebook as an nbformat node whose cells have ids, or a ValueError that names the file."""
    return parse(path.read_bytes(), path)


def parse(content: bytes, path: Path) -> Any:
    """As `read`, from what the file at `path` held."""
    import nbformat

    try:
        notebook = nbformat.reads(content.decode("utf-8"), as_version=4)
    except (ValueError, KeyError, TypeError, AttributeError, nbformat.ValidationError) as error:
        raise ValueError(f"{path} is not a readable notebook: {str(error).strip()}") from None
    if notebook.nbformat_minor < 5:  # ids came with 4.5
        notebook.nbformat_minor = 5
        for number, cell in enumerate(notebook.cells):
            cell.id = f"cell-{number}"
    return notebook


def save(notebook: Any, path: Path, *, over: bytes | None = None) -> Path:
    """Write a notebook atomically, without what depends on the machine that ran it.

    Args:
        notebook: an nbformat node.
        path: where it was read from.
        over: what the file held then. If it holds something else now, it is left alone, and the
            notebook is saved beside it (`beside`).

    Returns:
        Where it was saved.

    Raises:
        OSError: the folder cannot be written or the disk is full; nothing was changed.
    """
    import nbformat

    notebook.metadata["kernelspec"] = {
        "display_name": "Python 3",
        "language": "python",
        "name": "python3",
    }
    notebook.metadata["language_info"] = {"name": "python"}
    notebook.metadata.pop("widgets", None)  # of the outputs that were there
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of day
    if over is not None and (not path.exists() or path.read_bytes() != over):
        path = beside(path)
    return write_atomically(path, nbformat.writes(notebook) + "\n")


def beside(path: Path) -> Path:
    """Where the outputs of the notebook at `path` go if they may not go into it."""
    return path.with_name(path.stem + BESIDE)


# What the library displays in a notebook, with data in the metadata of the output


def claims(notebook: Any) -> list[Verdict]:
    """What the notebook says about its claims, in order of appearance; prints do not count."""
    found = []
    for data in _said(notebook, "claim"):
        numbers = _plain(data.get("line")).split(" | ")[2:3]
        found.append(
            Verdict(
                _plain(data.get("text")),
                _plain(data.get("verdict")),
                data.get("near") is True,
                "".join(numbers),
            )
        )
    return found


def family(notebook: Any) -> list[Adjusted]:
    """What the closing tables say about the primary claims, in order; a repeated row counts once.

    Rows of one text that differ all stay: a smaller second family does not hide the first.
    """
    rows = [row for rows in _said(notebook, "family", list) for row in rows]
    found = []
    for row in rows:
        if isinstance(row, dict):
            word, p = _plain(row.get("verdict")), _number(row.get("p"))
            chance = p if p is not None and 0 <= p <= 1 else None
            near = word.endswith(NEAR)
            found.append(Adjusted(_plain(row.get("text")), word.removesuffix(NEAR), near, chance))
    return list(dict.fromkeys(found))


def left(notebook: Any) -> list[str]:
    """A line for each sentence that its number left (`evidence.states`); prints do not count."""
    return [_plain(data.get("line")) for data in _said(notebook, "stated")]


def checks(notebook: Any) -> list[Checked]:
    """What the notebook says about its exercises, in order of appearance; prints do not count."""
    found = [
        Checked(*(_plain(data.get(key)) for key in ("name", "state", "line")))
        for data in _said(notebook, "check")
    ]
    return [one for one in found if one.state in STATES]


def _said(notebook: Any, kind: str, form: type = dict) -> Iterator[Any]:
    """The data of this kind and type in the displays; what somebody else put there is passed by."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            metadata = output.get("metadata")
            data = metadata.get("kdlib") if isinstance(metadata, dict) else None
            if isinstance(data, dict) and isinstance(data.get(kind), form):
                yield data[kind]


def _plain(value: Any) -> str:
    """Text for one line of a terminal, whatever a notebook put there."""
    text = value if isinstance(value, str) else ""
    return "".join(sign if sign.isprintable() else " " for sign in text)


def _number(value: Any) -> float | None:
    """A finite number, None for anything else that a notebook put there."""
    try:
        good = isinstance(value, (int, float)) and not isinstance(value, bool)
        return float(value) if good and math.isfinite(value) else None
    except OverflowError:  # a whole number of hundreds of digits
        return None


def changes(before: Sequence[Verdict | Adjusted], after: Sequence[Verdict | Adjusted]) -> list[str]:
    """One line for each claim whose verdict differs, is new, or is gone."""
    old, new = _by_text(before), _by_text(after)
    lines = []
    for key in dict.fromkeys([*old, *new]):
        was, now = old.get(key, "absent"), new.get(key, "absent")
        if was != now:
            lines.append(f"{key[0]}: {was} -> {now}")
    return lines


def _by_text(verdicts: Sequence[Verdict | Adjusted]) -> dict[tuple[str, int], str]:
    """{(text, occurrence): verdict}, because a notebook may state one claim twice."""
    seen: dict[str, int] = defaultdict(int)
    table = {}
    for claim in verdicts:
        seen[claim.text] += 1
        table[claim.text, seen[claim.text]] = claim.verdict
    return table


# Times in the notebook's metadata, in seconds of the reference machine (kdlib.commands.doctor)


def stored_seconds(notebook: Any) -> float | None:
    """Seconds that the whole notebook takes, None before the first `run --save`."""
    return _seconds(_times(notebook).get("reference_seconds"))


def cell_weights(notebook: Any) -> dict[str, float]:
    """{id: seconds} of every code cell; without stored times every cell counts as one."""
    slow = _slow_cells(notebook)
    return {
        cell.id: slow.get(cell.id, 0.2 if slow else 1.0)
        for cell in notebook.cells
        if cell.cell_type == "code"
    }


def _times(notebook: Any) -> dict[str, Any]:
    found = notebook.metadata.get("kdlib")
    return dict(found) if isinstance(found, dict) else {}


def _slow_cells(notebook: Any) -> dict[str, float]:
    found = _times(notebook).get("slow_cells")
    pairs = found.items() if isinstance(found, dict) else ()
    return {name: known for name, value in pairs if (known := _seconds(value))}


def _seconds(value: Any) -> float | None:
    """A time as `store_seconds` writes it; None for what somebody else put there."""
    known = _number(value)
    return known if known is not None and known > 0 else None


def store_seconds(notebook: Any, cells: dict[str, float], total: float) -> None:
    """Keep the times of the slow cells and of the whole; a near-equal old one stays, to the byte.

    Args:
        cells: {id: seconds of the reference machine} of the code cells.
        total: seconds of the reference machine, the start of the kernel included.
    """
    old, old_cells = _times(notebook), _slow_cells(notebook)
    slow = {}
    for name, seconds in cells.items():
        # A cell near the limit neither enters nor leaves at every run.
        if seconds > (SLOW_SECONDS / SAME_WITHIN if name in old_cells else SLOW_SECONDS):
            slow[name] = _keep(old_cells.get(name), seconds)
    notebook.metadata["kdlib"] = {
        **old,
        "reference_seconds": _keep(stored_seconds(notebook), total),
        "slow_cells": slow,
    }


def _keep(old: float | None, new: float) -> float:
    if old and old / SAME_WITHIN <= new <= old * SAME_WITHIN:
        return old
    return float(f"{new:.2g}")
