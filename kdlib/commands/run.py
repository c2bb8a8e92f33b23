"""Run notebooks in the terminal: progress, time left, and what they say about claims and exercises.

A notebook is a program: what it displays is what it says, and the lists at the end repeat it.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kdlib.engine import environment, files, kernels, notebooks
from kdlib.engine.notebooks import NEAR, Adjusted, Checked, Verdict

HELP = "execute notebooks in the terminal, list their claims and exercises"
ADJUSTED = "adjusted:"  # before a verdict of the closing table
SEED_OFFSET = "KDLIB_SEED_OFFSET"  # read by `evidence.seeds`, in the kernel and its workers


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of `run`."""
    parser.add_argument(
        "notebooks",
        nargs="*",
        metavar="NOTEBOOK",
        help="number, name or path; default: all in notebooks/",
    )
    parser.add_argument(
        "--timeout",
        type=_seconds,
        metavar="SECONDS",
        help="interrupt every cell that takes longer; default: no limit",
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--save",
        action="store_true",
        help="store the outputs in the notebooks; those of a notebook that failed go beside it",
    )
    how.add_argument(
        "--seed-offset",
        type=_whole,
        metavar="N",
        help="use another block of seeds, list every verdict that changed",
    )


def main(arguments: argparse.Namespace) -> int:
    """Run the chosen notebooks: 0 if every cell ran, and was stored where it was to be."""
    os.environ.update(environment.quiet_environment())
    outcomes = run(
        notebooks.find(arguments.notebooks),
        save=arguments.save,
        seed_offset=arguments.seed_offset,
        timeout=arguments.timeout,
    )
    return 1 if any(outcome.failures or outcome.unsaved for outcome in outcomes) else 0


def _whole(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f"must be a whole number of 0 or more, got {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of seconds above 0, got {text!r}")
    return value


class Outcome(NamedTuple):
    """One executed notebook."""

    path: Path
    claims: list[Verdict]
    family: list[Adjusted]  # the primary claims, as the closing table says
    left: list[str]  # lines about sentences that their numbers left
    checks: list[Checked]
    changed: list[str]  # lines of `notebooks.changes`, against the stored outputs
    failures: list[str]  # each names a cell or the kernel, and what went wrong
    seconds: float
    unsaved: str = ""  # why the outputs are not in the notebook, and where they are


class Progress:
    """One bar for all notebooks, in seconds of the reference machine; it moves inside cells too."""

    def __init__(self, total: float) -> None:
        from tqdm import tqdm

        self.bar = tqdm(
            total=total,
            disable=None,
            leave=False,
            smoothing=0,
            file=sys.stderr,
            bar_format="{desc} |{bar}| {percentage:3.0f} %, {elapsed} gone, {remaining} left",
        )
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


def run(
    paths: Sequence[Path],
    *,
    save: bool = False,
    seed_offset: int | None = None,
    timeout: float | None = None,
) -> list[Outcome]:
    """Execute notebooks one after another and print what they say; a failure stops only its own.

    Args:
        paths: notebooks, as `notebooks.find` returns them.
        save: write the outputs back. A notebook that failed, or that was edited meanwhile, is left
            alone: its outputs go to `notebooks.beside`.
        seed_offset: shifts every block of seeds; verdicts that changed are printed.
        timeout: seconds that a cell gets; None sets no limit.

    Raises:
        ValueError: `save` with shifted seeds, or a file that is no notebook.
        OSError: a notebook cannot be read, or with `save` not be written; found before any runs.
        KeyboardInterrupt: after printing what the finished notebooks say.
    """
    shifted = seed_offset if seed_offset is not None else _shift()
    if save and shifted:
        raise ValueError(
            "--save stores the outputs of the default seeds: drop --seed-offset "
            f"and unset {SEED_OFFSET}"
        )
    paths = list(dict.fromkeys(paths))
    contents = {path: path.read_bytes() for path in paths}
    opened = {path: notebooks.parse(content, path) for path, content in contents.items()}
    speed = 1.0
    if save:
        for path in paths:
            _require_writable(path)
        from kdlib.commands.doctor import machine_speed

        speed = machine_speed()  # stored times are in seconds of the reference machine

    outcomes: list[Outcome] = []
    total = sum(sum(notebooks.cell_weights(notebook).values()) for notebook in opened.values())
    progress, done = Progress(total), 0.0
    try:
        for path, notebook in opened.items():
            progress.bar.set_description_str(path.stem)
            weight = sum(notebooks.cell_weights(notebook).values())
            outcome, cells = _run_one(path, notebook, seed_offset, timeout, progress, done)
            done += weight
            progress.at(done)
            if save:
                if not outcome.failures:
                    cells = {name: value * speed for name, value in cells.items()}
                    notebooks.store_seconds(notebook, cells, outcome.seconds * speed)
                outcome = outcome._replace(unsaved=_store(notebook, contents[path], outcome))
            outcomes.append(outcome)
            progress.bar.clear()
            word = "FAILED" if outcome.failures else "ran"
            print(f"{path.name}: {word} in {outcome.seconds:.0f} s")
            for line in filter(None, [*outcome.failures, outcome.unsaved]):
                print(line)
            if save:
                said: list[Verdict | Adjusted] = [*outcome.claims, *outcome.family]
                for text in dict.fromkeys(claim.text for claim in said if claim.near):
                    print(f"  another processor could turn it, say close=REASON: {text}")
            sys.stdout.flush()
    finally:
        progress.close()
        print(summary(outcomes))
        if shifted:
            print(change_report(outcomes, shifted))
    return outcomes


def _shift() -> int:
    """The offset that the environment asks for."""
    try:
        return _whole(os.environ.get(SEED_OFFSET) or "0")
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"{SEED_OFFSET} {error}") from None


def _require_writable(path: Path) -> None:
    files.probe(path)
    if not os.access(path, os.W_OK):
        raise PermissionError(13, "is read-only: nothing was run. Make it writable", str(path))


def _store(notebook: Any, content: bytes, outcome: Outcome) -> str:
    """Save the outputs; "" if they went into the notebook, else what to tell its author."""
    path = outcome.path
    try:
        if outcome.failures:
            where = notebooks.save(notebook, notebooks.beside(path))
            return f"{path.name} is as it was, its outputs are in {where.name}"
        where = notebooks.save(notebook, path, over=content)
    except OSError as error:
        return f"{path.name} is as it was, its outputs are lost: {error}"
    if where == path:
        return ""
    return f"{path.name} was edited while it ran and is left alone, its outputs are in {where.name}"


def _run_one(
    path: Path,
    notebook: Any,
    seed_offset: int | None,
    timeout: float | None,
    progress: Progress,
    done: float,
) -> tuple[Outcome, dict[str, float]]:
    """Execute one notebook: its outcome, and the seconds of its cells."""
    weights = notebooks.cell_weights(notebook)
    stored, stored_family = notebooks.claims(notebook), notebooks.family(notebook)
    behind = done

    def on_cell(cell: Any) -> None:
        nonlocal behind
        progress.at(behind, weights[cell.id])
        behind += weights[cell.id]

    start = time.perf_counter()
    extra = {} if seed_offset is None else {SEED_OFFSET: str(seed_offset)}
    execution = kernels.execute(
        notebook, path.parent, timeout=timeout, environment=extra, on_cell=on_cell
    )
    heard = execution.own_kit  # what another kit says is not repeated
    claims = notebooks.claims(notebook) if heard else []
    family = notebooks.family(notebook) if heard else []
    changed = notebooks.changes(stored, claims)
    changed += [f"{ADJUSTED} {line}" for line in notebooks.changes(stored_family, family)]
    outcome = Outcome(
        path=path,
        claims=claims,
        family=family,
        left=notebooks.left(notebook) if heard else [],
        checks=notebooks.checks(notebook) if heard else [],
        changed=changed,
        failures=[str(failure) for failure in execution.failures],
        seconds=time.perf_counter() - start,
    )
    return outcome, execution.seconds


def summary(outcomes: Sequence[Outcome]) -> str:
    """What the notebooks say, in lines for narrow terminals."""
    lines = ["", "Exercises"]
    for outcome in outcomes:
        lines.append(outcome.path.stem + (" (failed)" if outcome.failures else ""))
        lines.extend(f"  {one.line}" for one in outcome.checks)
        if not outcome.checks:
            lines.append("  none")
    lines += ["", "Claims"]
    for outcome in outcomes:
        lines.append(outcome.path.stem + (" (failed)" if outcome.failures else ""))
        lines += _claim_lines(outcome) + _family_lines(outcome)
    if any(outcome.left for outcome in outcomes):
        lines += ["", "Sentences that their numbers left"]
        for outcome in outcomes:
            if outcome.left:
                lines += [outcome.path.stem, *(f"  {line}" for line in outcome.left)]
    failed = sum(bool(outcome.failures) for outcome in outcomes)
    solved = sum(one.state == "correct" for outcome in outcomes for one in outcome.checks)
    asked = sum(len(outcome.checks) for outcome in outcomes)
    count = sum(len(outcome.claims) for outcome in outcomes)
    left = sum(len(outcome.left) for outcome in outcomes)
    return "\n".join(
        [
            *lines,
            f"notebooks: {len(outcomes)}, failed: {failed}, checks: {asked}, correct: {solved}, "
            f"claims: {count}" + (f", sentences left by their numbers: {left}" if left else ""),
        ]
    )


def _claim_lines(outcome: Outcome) -> list[str]:
    """Two lines a claim: its verdict, its numbers."""
    words = [claim.verdict + NEAR * claim.near for claim in outcome.claims]
    width = max(map(len, words), default=0)
    lines = []
    for word, claim in zip(words, outcome.claims):
        lines.append(f"  {word:{width}}  {claim.text}")
        lines.append(f"  {'':{width}}  {claim.numbers}")
    return lines or ["  none"]


def _family_lines(outcome: Outcome) -> list[str]:
    """The closing table. Each line says what it is, because its claim has a line above as well."""
    alone = {claim.text: claim.verdict for claim in outcome.claims}
    words, chances = [], []
    for claim in outcome.family:
        own = alone.get(claim.text, claim.verdict)
        other = f" (alone: {own})" if own != claim.verdict else ""
        words.append(claim.verdict + NEAR * claim.near + other)
        chances.append(_chance(claim.p))
    width, wide = (max(map(len, texts), default=0) for texts in (words, chances))
    lines = [
        f"    {ADJUSTED} {word:{width}}  {chance:{wide}}  {claim.text}"
        for word, chance, claim in zip(words, chances, outcome.family)
    ]
    return ["  Primary claims, adjusted for their number (Holm)", *lines] if lines else []


def _chance(p: float | None) -> str:
    """An adjusted p value; one that four digits would show as 0 is small, not 0."""
    if p is None:
        return "p unknown"
    return f"p ≈ {p:.4f}" if p >= 0.0001 else "p < 0.0001"


def change_report(outcomes: Sequence[Outcome], offset: int) -> str:
    """Every verdict that differs from the stored outputs of its notebook."""
    changed = [f"  {outcome.path.stem}: {line}" for outcome in outcomes for line in outcome.changed]
    return "\n".join(
        ["", f"Verdicts that changed with seeds shifted by {offset}:", *(changed or ["  none"])]
    )
