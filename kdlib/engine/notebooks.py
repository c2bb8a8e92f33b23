"""Notebooks as files: find them, read them, list their claims, write them back."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from kdlib.evidence import NEAR
from kdlib.records import write_atomically

PROJECT = Path(__file__).resolve().parents[1]
FOLDER = PROJECT / "notebooks"

SLOW_SECONDS = 1.0    # only cells above this get a stored time
SAME_WITHIN = 2.0     # a stored time stays while the new one is within this factor of it


class Verdict(NamedTuple):
    """One line printed by `evidence.claim`."""

    text: str
    verdict: str      # "holds", "not shown", "close ≈holds", "holds (≈ close)", ...
    numbers: str


def find(names: Sequence[str] = (), folder: Path = FOLDER) -> list[Path]:
    """Notebooks by number ("3"), name ("03_code_walkthrough") or path; without names, all.

    Raises:
        ValueError: a name that fits no notebook; the message lists the known ones.
    """
    known = sorted(folder.glob("*.ipynb"))
    if not names and not known:
        raise ValueError(f"no notebooks in {folder}: get a copy of the whole kit and install it "
                         "from its own folder with `pip install -r requirements.txt`")
    return [_find_one(name, known) for name in names] if names else known


def _find_one(name: str, known: list[Path]) -> Path:
    path = Path(name)
    if path.suffix == ".ipynb" and path.is_file():
        return path.resolve()
    fitting = [candidate for candidate in known if name in (candidate.stem, candidate.name)]
    if not fitting and name.isdecimal():
        fitting = [candidate for candidate in known
                   if candidate.stem.split("_")[0] in (name, name.zfill(2))]
    if len(fitting) == 1:
        return fitting[0]
    problem = "fits several" if fitting else "not found"
    stems = ", ".join(candidate.stem for candidate in known) or "none"
    raise ValueError(f"notebook {name!r} {problem}: give a path, a number or one of {stems}")


def read(path: Path):
    """A notebook as an nbformat node whose cells have ids, or a ValueError that names the file."""
    import nbformat

    try:
        notebook = nbformat.read(path, as_version=4)
    except (ValueError, KeyError, TypeError, AttributeError, nbformat.ValidationError) as error:
        raise ValueError(f"{path} is not a readable notebook: {str(error).strip()}") from None
    if notebook.nbformat_minor < 5:     # ids came with 4.5
        notebook.nbformat_minor = 5
        for number, cell in enumerate(notebook.cells):
            cell.id = f"cell-{number}"
    return notebook


def save(notebook, path: Path) -> None:
    """Write a notebook atomically, without what depends on the machine that ran it."""
    import nbformat

    notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python",
                                       "name": "python3"}
    notebook.metadata["language_info"] = {"name": "python"}
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)    # times of day
    write_atomically(path, nbformat.writes(notebook) + "\n")


# Claims

def claims(notebook) -> list[Verdict]:
    """The verdicts in a notebook's outputs, in order of appearance."""
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            for line in output.get("text", "").splitlines():
                if line.startswith("claim: "):
                    parts = [part.strip() for part in line.removeprefix("claim: ").split(" | ")]
                    found.append(Verdict(*(parts + ["", ""])[:3]))
    return found


def changes(before: Sequence[Verdict], after: Sequence[Verdict]) -> list[str]:
    """One line for each claim whose verdict differs, is new, or is gone."""
    old, new = _by_text(before), _by_text(after)
    lines = []
    for key in dict.fromkeys([*old, *new]):
        was, now = old.get(key, "absent"), new.get(key, "absent")
        if was != now:
            lines.append(f"{key[0]}: {was} -> {now}")
    return lines


def _by_text(verdicts: Sequence[Verdict]) -> dict[tuple[str, int], str]:
    """{(text, occurrence): verdict}, because a notebook may state one claim twice."""
    seen: dict[str, int] = defaultdict(int)
    table = {}
    for claim in verdicts:
        seen[claim.text] += 1
        table[claim.text, seen[claim.text]] = claim.verdict.removesuffix(NEAR)
    return table


# Times, stored in the notebook's metadata in seconds of the reference machine (kdlib.doctor)

def stored_seconds(notebook) -> float | None:
    """Seconds that the whole notebook takes, None before the first `run --save`."""
    return notebook.metadata.get("kdlib", {}).get("reference_seconds")


def cell_weights(notebook) -> dict[str, float]:
    """{id: seconds} of every code cell; without stored times every cell counts as one."""
    slow = notebook.metadata.get("kdlib", {}).get("slow_cells", {})
    return {cell.id: slow.get(cell.id, 0.2 if slow else 1.0)
            for cell in notebook.cells if cell.cell_type == "code"}


def store_seconds(notebook, cells: dict[str, float], total: float) -> None:
    """Keep the times of the slow cells and of the whole; a near-equal old one stays, to the byte.

    Args:
        cells: {id: seconds of the reference machine} of the code cells.
        total: seconds of the reference machine, the start of the kernel included.
    """
    old = notebook.metadata.get("kdlib", {})
    old_cells = old.get("slow_cells", {})
    slow = {}
    for name, seconds in cells.items():
        # A cell near the limit neither enters nor leaves at every run.
        if seconds > (SLOW_SECONDS / SAME_WITHIN if name in old_cells else SLOW_SECONDS):
            slow[name] = _keep(old_cells.get(name), seconds)
    notebook.metadata["kdlib"] = {
        **old, "reference_seconds": _keep(old.get("reference_seconds"), total),
        "slow_cells": slow}


def _keep(old: float | None, new: float) -> float:
    if old and old / SAME_WITHIN <= new <= old * SAME_WITHIN:
        return old
    return float(f"{new:.2g}")
