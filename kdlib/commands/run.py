"""Run notebooks in the terminal: progress, time left, and at the end the table of their claims."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from kdlib import notebooks
from kdlib.evidence import NEAR
from kdlib.notebooks import Verdict

SEED_OFFSET = "KDLIB_SEED_OFFSET"   # read by `evidence.seeds`, in the kernel and its workers
ANSI = re.compile(r"\x1b\[[0-9;]*m")


class Outcome(NamedTuple):
    """One executed notebook."""

    path: Path
    claims: list[Verdict]
    changed: list[str]    # lines of `notebooks.changes`, against the stored outputs
    error: str | None     # None if every cell ran
    seconds: float


class Progress:
    """One bar for all notebooks, in seconds of the reference machine; it moves inside cells too."""

    def __init__(self, total: float):
        from tqdm import tqdm

        self.bar = tqdm(total=total, disable=None, leave=False, smoothing=0, file=sys.stderr,
                        bar_format="{desc} |{bar}| {percentage:3.0f} %, {elapsed} gone, "
                                   "{remaining} left")
        self.at(0.0)
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._tick, daemon=True)
        self.thread.start()

    def at(self, done: float, ahead: float = 0.0) -> None:
        """`done` seconds of work lie behind; a cell of `ahead` seconds starts now."""
        self.place = (done, ahead, time.monotonic())

    def _tick(self) -> None:
        while not self.stop.wait(0.5):
            done, ahead, since = self.place
            self.bar.n = done + min(ahead, time.monotonic() - since)
            self.bar.refresh()

    def close(self) -> None:
        self.stop.set()
        self.thread.join()
        self.bar.close()


def execute(notebook, folder: Path, *, seed_offset: int | None = None,
            on_cell: Callable = lambda cell: None) -> dict[str, float]:
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
    from jupyter_client.kernelspec import KernelSpec
    from nbclient import NotebookClient

    class ThisInterpreter(AsyncKernelManager):
        """An installed kernel named "python3" may belong to another environment."""

        @property
        def kernel_spec(self):
            return KernelSpec(**get_kernel_dict())

    client = NotebookClient(notebook, kernel_manager_class=ThisInterpreter, timeout=None,
                            record_timing=False, coalesce_streams=True,
                            resources={"metadata": {"path": str(folder)}})
    environment = dict(os.environ)
    if seed_offset is not None:
        environment[SEED_OFFSET] = str(seed_offset)
    seconds = {}
    # What the kernel's process itself writes to stderr is about its sockets; cells are captured.
    with client.setup_kernel(env=environment, stderr=subprocess.DEVNULL):
        for index, cell in enumerate(notebook.cells):
            if cell.cell_type == "code":
                on_cell(cell)
                start = time.perf_counter()
                client.execute_cell(cell, index)
                seconds[cell.id] = time.perf_counter() - start
    return seconds


def run(paths: Sequence[Path], *, save: bool = False, seed_offset: int | None = None,
        ) -> list[Outcome]:
    """Execute notebooks one after another and print what they claim; a failure stops only its own.

    Args:
        paths: notebooks, as `notebooks.find` returns them.
        save: write the outputs back into the notebooks that ran to the end.
        seed_offset: shifts every block of seeds; verdicts that changed are printed.

    Raises:
        ValueError: `save` with shifted seeds, or a file that is no notebook.
        KeyboardInterrupt: after printing what the finished notebooks claim.
    """
    shifted = seed_offset if seed_offset is not None else int(os.environ.get(SEED_OFFSET) or 0)
    if save and shifted:
        raise ValueError("--save stores the outputs of the default seeds: drop --seed-offset "
                         f"and unset {SEED_OFFSET}")
    opened = {path: notebooks.read(path) for path in paths}
    speed = 1.0
    if save:    # stored times are in seconds of the reference machine
        from kdlib.doctor import machine_speed
        speed = machine_speed()

    outcomes: list[Outcome] = []
    total = sum(sum(notebooks.cell_weights(notebook).values()) for notebook in opened.values())
    progress, done = Progress(total), 0.0
    try:
        for path, notebook in opened.items():
            progress.bar.set_description_str(path.stem)
            outcome, cells = _run_one(path, notebook, seed_offset, progress, done)
            done += sum(notebooks.cell_weights(notebook).values())
            progress.at(done)
            if save and outcome.error is None:
                notebooks.store_seconds(notebook, {name: value * speed for name, value
                                                   in cells.items()}, outcome.seconds * speed)
                notebooks.save(notebook, path)
            outcomes.append(outcome)
            progress.bar.clear()
            print(f"{path.name}: {'FAILED' if outcome.error else 'ran'} in {outcome.seconds:.0f} s")
            if outcome.error:
                print(outcome.error)
            elif save:
                for claim in outcome.claims:
                    if claim.verdict.endswith(NEAR):
                        print(f"  another processor could turn it, pass close=True: {claim.text}")
            sys.stdout.flush()
    finally:
        progress.close()
        print(summary(outcomes))
        if shifted:
            print(change_report(outcomes, shifted))
    return outcomes


def _run_one(path: Path, notebook, seed_offset: int | None, progress: Progress, done: float,
             ) -> tuple[Outcome, dict[str, float]]:
    """Execute one notebook: its outcome, and the seconds of its cells (empty if it failed)."""
    from nbclient.exceptions import CellExecutionError, DeadKernelError

    weights, stored, latest = notebooks.cell_weights(notebook), notebooks.claims(notebook), []

    def on_cell(cell) -> None:
        behind = done + sum(weights[one.id] for one in latest)
        progress.at(behind, weights[cell.id])
        latest.append(cell)

    error, cells, start = None, {}, time.perf_counter()
    try:
        cells = execute(notebook, path.parent, seed_offset=seed_offset, on_cell=on_cell)
    except (CellExecutionError, DeadKernelError) as failure:
        error = _explain(failure, latest[-1])
    found = notebooks.claims(notebook)
    return Outcome(path, found, notebooks.changes(stored, found), error,
                   time.perf_counter() - start), cells


def _explain(error: Exception, cell) -> str:
    """The failing cell and the last lines of its error, short enough to read in a terminal."""
    traces = [output.traceback for output in cell.outputs if output.output_type == "error"]
    if traces:
        reason = ANSI.sub("", "\n".join(traces[-1])).splitlines()[-12:]
    else:
        reason = [f"{type(error).__name__}: {error} (out of memory? close other programs)"]
    return "\n".join(["this cell failed:", *("    " + line for line in cell.source.splitlines()),
                      "with:", *("    " + line for line in reason)])


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
    return "\n".join([*lines, f"notebooks: {len(outcomes)}, failed: {failed}, claims: {count}"])


def change_report(outcomes: Sequence[Outcome], offset: int) -> str:
    """Every verdict that differs from the stored outputs of its notebook."""
    changed = [f"  {outcome.path.stem}: {line}" for outcome in outcomes
               for line in outcome.changed]
    return "\n".join(["", f"Verdicts that changed with seeds shifted by {offset}:",
                      *(changed or ["  none"])])
