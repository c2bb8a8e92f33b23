"""Run notebooks in the terminal: progress, time left, and at the end the table of their claims."""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, NamedTuple, Sequence

PROJECT = Path(__file__).resolve().parents[1]
NOTEBOOKS = PROJECT / "notebooks"
SEED_OFFSET = "KDLIB_SEED_OFFSET"   # read by `evidence.seeds` in every kernel and worker

SLOW_SECONDS = 1.0    # only cells above this get a stored time
SAME_WITHIN = 2.0     # a stored time stays while the new one is within this factor of it
ANSI = re.compile(r"\x1b\[[0-9;]*m")


class Verdict(NamedTuple):
    """One line printed by `evidence.claim`."""

    text: str
    verdict: str      # "holds", "not shown" or "close ≈holds", "close ≈not shown"
    numbers: str


class Outcome(NamedTuple):
    """One executed notebook."""

    path: Path
    claims: list[Verdict]
    error: str | None     # None if every cell ran
    seconds: float


# Which notebooks

def find(names: Sequence[str] = (), folder: Path = NOTEBOOKS) -> list[Path]:
    """Notebooks by number ("3"), stem ("03_code_walkthrough") or path; all of `folder` without names.

    Raises:
        ValueError: a name that fits no notebook; the message lists the known ones.
    """
    known = sorted(folder.glob("*.ipynb"))
    if not names and not known:
        raise ValueError(f"no notebooks in {folder}: run this from a copy of the whole kit, "
                         "installed with `pip install -r requirements.txt`")
    return [_find_one(name, known) for name in names] if names else known


def _find_one(name: str, known: list[Path]) -> Path:
    path = Path(name)
    if path.suffix == ".ipynb" and path.is_file():
        return path.resolve()
    for candidate in known:
        number = candidate.stem.split("_")[0]
        by_number = name.isdecimal() and number.isdecimal() and int(number) == int(name)
        if by_number or name in (candidate.stem, candidate.name):
            return candidate
    stems = ", ".join(candidate.stem for candidate in known) or "none"
    raise ValueError(f"notebook {name!r} not found: give a path, a number or one of {stems}")


# What notebooks say

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
    """{(text, occurrence): verdict}: a notebook may state one claim twice."""
    seen: dict[str, int] = defaultdict(int)
    table = {}
    for claim in verdicts:
        seen[claim.text] += 1
        table[claim.text, seen[claim.text]] = claim.verdict
    return table


# Running one

def execute(notebook, folder: Path, *, seed_offset: int | None = None,
            on_cell=lambda cell: None) -> dict[str, float]:
    """Run a notebook's code cells in order, in place, in a kernel of this very interpreter.

    Args:
        notebook: an nbformat node; its outputs are replaced as the cells run.
        folder: working directory of the kernel.
        seed_offset: given to the kernel as `$KDLIB_SEED_OFFSET`.
        on_cell: called with each code cell before it runs.

    Returns:
        Seconds that each code cell took, by cell id.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed; the later ones did not run.
        nbclient.exceptions.DeadKernelError: the kernel died, for example for lack of memory.
    """
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
    from nbclient import NotebookClient

    class ThisInterpreter(KernelSpecManager):
        """An installed kernel named "python3" may belong to another environment."""

        def get_kernel_spec(self, kernel_name):
            return KernelSpec(resource_dir="", **get_kernel_dict())

    manager = AsyncKernelManager(kernel_spec_manager=ThisInterpreter())
    client = NotebookClient(notebook, km=manager, timeout=None, record_timing=False,
                            coalesce_streams=True,
                            resources={"metadata": {"path": str(folder)}})
    environment = dict(os.environ)
    if seed_offset is not None:
        environment[SEED_OFFSET] = str(seed_offset)
    seconds = {}
    with client.setup_kernel(env=environment):
        for index, cell in enumerate(notebook.cells):
            if cell.cell_type == "code":
                on_cell(cell)
                start = time.perf_counter()
                client.execute_cell(cell, index)
                seconds[cell.id] = time.perf_counter() - start
    return seconds


def _explain(error: Exception, notebook) -> str:
    """The failing cell and the last lines of its error, short enough to read in a terminal."""
    for index, cell in enumerate(notebook.cells, 1):
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                source = "\n".join("    " + line for line in cell.source.splitlines()[:25])
                trace = ANSI.sub("", "\n".join(output.traceback)).splitlines()
                last = "\n".join("    " + line for line in trace[-12:])
                return f"cell {index} failed:\n{source}\nit ended with:\n{last}"
    return f"the run stopped: {type(error).__name__}: {error}"


# Times: stored by `--save` in the notebook, for the progress bar and for `doctor`

def stored_seconds(notebook) -> dict[str, float]:
    """Seconds on the reference machine of each slow code cell, by cell id; may be empty."""
    return notebook.metadata.get("kdlib", {}).get("slow_cells", {})


def _weights(notebook) -> dict[str, float]:
    slow = stored_seconds(notebook)
    return {cell.id: slow.get(cell.id, 0.2 if slow else 1.0)
            for cell in notebook.cells if cell.cell_type == "code"}


def _store_seconds(notebook, cells: dict[str, float], total: float, speed: float) -> None:
    """Write times in seconds of the reference machine; near-equal ones stay, to the byte."""
    old = notebook.metadata.get("kdlib", {})
    old_slow = old.get("slow_cells", {})
    slow = {name: _keep(old_slow.get(name), value * speed) for name, value in cells.items()
            if value * speed > (SLOW_SECONDS / SAME_WITHIN if name in old_slow else SLOW_SECONDS)}
    notebook.metadata["kdlib"] = {
        **old, "reference_seconds": _keep(old.get("reference_seconds"), total * speed),
        "slow_cells": slow}


def _keep(old: float | None, new: float) -> float:
    if old and old / SAME_WITHIN <= new <= old * SAME_WITHIN:
        return old
    return float(f"{new:.2g}")


def save(notebook, path: Path) -> None:
    """Write a notebook atomically, without what depends on the machine that ran it."""
    import nbformat

    notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python",
                                       "name": "python3"}
    notebook.metadata["language_info"] = {"name": "python"}
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8", newline="\n")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


# The progress bar: one for all notebooks, in seconds of the reference machine

@contextmanager
def _ticking(bar, weight: dict[str, float]) -> Iterator:
    """Move the bar during a long cell too; yields the function to call before each cell."""
    state = {"done": bar.n, "cell": 0.0, "since": time.monotonic()}
    stop = threading.Event()

    def on_cell(cell) -> None:
        state["done"] += state["cell"]
        state["cell"], state["since"] = weight[cell.id], time.monotonic()

    def tick() -> None:
        while not stop.wait(0.5):
            inside = min(state["cell"], time.monotonic() - state["since"])
            bar.n = state["done"] + inside
            bar.refresh()

    goal = bar.n + sum(weight.values())
    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield on_cell
    finally:
        stop.set()
        thread.join()
        bar.n = goal
        bar.refresh()


def run(paths: Sequence[Path], *, save_outputs: bool = False, seed_offset: int | None = None,
        out=None) -> list[Outcome]:
    """Execute notebooks one after another; a failing one does not stop the rest.

    Args:
        paths: notebooks, as `find` returns them.
        save_outputs: write the outputs back into notebooks that ran to the end.
        seed_offset: shifts every block of seeds; verdicts that changed are printed.
        out: where to print; default standard output.

    Raises:
        ValueError: `save_outputs` with shifted seeds, or a file that is no notebook.
        KeyboardInterrupt: after printing what the finished notebooks claim.
    """
    from nbclient.exceptions import CellExecutionError, DeadKernelError
    from tqdm import tqdm

    shifted = seed_offset if seed_offset is not None else int(os.environ.get(SEED_OFFSET) or 0)
    if save_outputs and shifted:
        raise ValueError("--save stores the outputs of the default seeds: drop --seed-offset "
                         f"(and unset {SEED_OFFSET})")
    notebooks = {path: read(path) for path in paths}
    stored = {path: claims(notebook) for path, notebook in notebooks.items()}
    speed = 1.0
    if save_outputs:
        from kdlib.doctor import machine_speed
        speed = machine_speed()

    outcomes: list[Outcome] = []
    total = sum(sum(_weights(notebook).values()) for notebook in notebooks.values())
    bar = tqdm(total=total, disable=None, leave=False, smoothing=0, file=sys.stderr,
               bar_format="{desc} |{bar}| {percentage:3.0f} %, {elapsed} gone, {remaining} left")
    try:
        for path, notebook in notebooks.items():
            bar.set_description_str(path.stem)
            error, start = None, time.perf_counter()
            with _ticking(bar, _weights(notebook)) as on_cell:
                try:
                    cells = execute(notebook, path.parent, seed_offset=seed_offset,
                                    on_cell=on_cell)
                except (CellExecutionError, DeadKernelError) as failure:
                    error = _explain(failure, notebook)
            seconds = time.perf_counter() - start
            if save_outputs and error is None:
                _store_seconds(notebook, cells, seconds, speed)
                save(notebook, path)
            outcomes.append(Outcome(path, claims(notebook), error, seconds))
            bar.clear()
            print(f"{path.name}: {'FAILED' if error else 'ran'} in {seconds:.0f} s",
                  file=out, flush=True)
            if error:
                print(error, file=out, flush=True)
    finally:
        bar.close()
        print(summary(outcomes), file=out)
        if shifted:
            print(change_report(outcomes, stored, shifted), file=out)
    return outcomes


def read(path: Path):
    """A notebook as an nbformat node, or a ValueError that names the file."""
    import nbformat

    try:
        return nbformat.read(path, as_version=4)
    except Exception as error:   # nbformat raises several kinds, for text that is not JSON too
        raise ValueError(f"{path} is not a readable notebook: {error}") from None


def summary(outcomes: Sequence[Outcome]) -> str:
    """The table of claims: two lines each, so that it fits a narrow terminal."""
    lines = ["", "Claims"]
    for outcome in outcomes:
        lines.append(outcome.path.stem + (" (failed)" if outcome.error else ""))
        width = max((len(claim.verdict) for claim in outcome.claims), default=0)
        for claim in outcome.claims:
            lines.append(f"  {claim.verdict:{width}}  {claim.text}")
            lines.append(f"  {'':{width}}  {claim.numbers}")
        if not outcome.claims:
            lines.append("  no claims")
    failed = sum(outcome.error is not None for outcome in outcomes)
    count = sum(len(outcome.claims) for outcome in outcomes)
    lines.append(f"{len(outcomes)} notebooks, {failed} failed, {count} claims")
    return "\n".join(lines)


def change_report(outcomes: Sequence[Outcome], stored: dict[Path, list[Verdict]],
                  offset: int) -> str:
    """Every verdict that differs from the stored outputs of its notebook."""
    lines = ["", f"Verdicts that changed with seeds shifted by {offset}"]
    for outcome in outcomes:
        changed = changes(stored[outcome.path], outcome.claims)
        lines += [f"  {outcome.path.stem}: {line}" for line in changed]
    return "\n".join(lines if len(lines) > 2 else [*lines, "  none"])
