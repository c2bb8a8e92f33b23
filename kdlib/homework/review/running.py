"""The flag about records: a sample of them runs again, in the sandbox or not at all.

What runs can say whatever it likes. So only values come out, and this process compares them with
the records.
"""

from __future__ import annotations

import json
import math
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kdlib import repetition
from kdlib.homework import sandbox
from kdlib.homework.review import executed, needs
from kdlib.homework.review.clock import LEAST, NOT_RUN, Clock
from kdlib.homework.review.findings import GREEN, NOTE, RED, Answer, Finding, Table, counted, some
from kdlib.homework.review.handed_in import HandedIn
from kdlib.homework.sandbox import PROJECT, Limits
from kdlib.records import Run
from kdlib.repetition import Observed, Repetition

# The team's folder comes last on the path: a record may name its modules, none may stand for ours.
REPEAT = "import sys; sys.path.append('.'); from kdlib.__main__ import main; sys.exit(main())"


def reproducibility(handed_in: HandedIn, clock: Clock) -> Answer:
    """A sample of records and the notebooks run again, recorded beside observed."""
    if handed_in.report_problem:
        return Answer((Finding("reproducibility", RED, handed_in.report_problem),))
    runs = list(handed_in.runs.values())
    able = [run for run in runs if run.repeat is not None]
    found = []
    if not able:
        found.append(
            Finding(
                "reproducibility", RED,
                f"none of {counted(len(runs), 'record')} can be repeated from its file: "
                f"{some(sorted({run.obstacle or 'no recipe' for run in runs}), 2)}", "runs/",
            )
        )  # fmt: skip
    elif len(able) < len(runs):
        evidence = f"{len(runs) - len(able)} of {len(runs)} records hold no recipe"
        found.append(Finding("reproducibility", NOTE, evidence, "runs/"))
    if not clock.run:
        found.append(Finding("reproducibility", NOTE, NOT_RUN))
        return Answer(tuple(found))
    if handed_in.packages_told:
        found.append(Finding("reproducibility", NOTE, handed_in.packages_told))
    compared = executed.compared(handed_in)
    kept = clock.share(handed_in.course.review.notebooks) if compared else 0.0
    sample = chosen(able, handed_in, clock.seconds - kept, clock.seed)
    told, rows, repeated = _sampled(handed_in, sample, clock, kept)
    found += [
        *told,
        *_too_long(able, sample, handed_in, clock.seconds - kept),
        *executed.again(handed_in, compared, clock),
    ]
    evidence = (
        f"{repeated} of {len(sample)} sampled records ({len(runs)} in all, sample seed "
        f"{clock.seed}) repeat"
    )
    head = ("record", "value", "recorded", "observed", "tolerance")
    tables = (Table("Recorded beside observed", head, tuple(rows)),) if rows else ()
    names = [handed_in.relative(path) for path in _paths(handed_in, sample)]
    commands = tuple(f"python -m kdlib repeat --own-code '{name}'" for name in names)
    wrong = any(one.severity == RED for one in found)
    enough = repeated and 2 * repeated >= len(sample)
    plan = Finding("reproducibility", GREEN if enough and not wrong else NOTE, evidence)
    return Answer((plan, *found), tables=tables, commands=commands)


Sample = list[tuple[Run, int | None]]  # None: the whole run; a number: its first epochs


def _paths(handed_in: HandedIn, sample: Sample) -> list[Path]:
    return [next(path for path, one in handed_in.runs.items() if one is run) for run, _ in sample]


def _sampled(
    handed_in: HandedIn, sample: Sample, clock: Clock, kept: float
) -> tuple[list[Finding], list[tuple[str, ...]], int]:
    """What is wrong with the records of a sample, the rows of their table, how many repeat.

    Args:
        kept: seconds that must be left for the notebooks.
    """
    found: list[Finding] = []
    rows: list[tuple[str, ...]] = []
    repeated = 0
    for (_, epochs), path in zip(sample, _paths(handed_in, sample)):
        name = handed_in.relative(path)
        seconds = clock.left - kept
        if seconds < LEAST:
            found.append(Finding("reproducibility", NOTE, "no time was left: not repeated", name))
            continue
        told, answer = _repeat(handed_in, path, epochs, seconds, clock)
        found += [told] if told else []
        if answer is not None:
            rows += _rows(answer, name)
            repeated += answer.verdict == "repeats"
    return found, rows, repeated


def chosen(runs: list[Run], handed_in: HandedIn, seconds: float, seed: int) -> Sample:
    """A sample with an equal number of each experiment, as far as the time goes.

    Args:
        runs: to draw from.
        handed_in: whose course says how many, and what a run costs.
        seconds: for all of them.
        seed: of the draw.

    Returns:
        (run, epochs): None for the whole run; a number for its first epochs, where the whole
        does not fit, which serves those experiments of which no run fits.
    """
    draw = random.Random(seed)
    by_experiment: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: (run.experiment, run.filename)):
        by_experiment.setdefault(run.experiment, []).append(run)
    for own in by_experiment.values():
        draw.shuffle(own)
    order = [
        own[place]
        for place in range(max(map(len, by_experiment.values()), default=0))
        for own in by_experiment.values()
        if place < len(own)
    ]
    rules, left = handed_in.course.review, seconds
    found: Sample = []
    for run in order:
        costs = cost(run, handed_in)
        if len(found) < rules.repeats and costs <= left:
            found.append((run, None))
            left -= costs
    served = {run.experiment for run, _ in found}
    for run in order:
        epochs = _epochs_within(run, left, handed_in)
        if run.experiment not in served and epochs and len(found) < rules.repeats:
            found.append((run, epochs))
            served.add(run.experiment)
            left -= rules.start + epochs * _training(run, handed_in) / len(run.history)
    return found


def cost(run: Run, handed_in: HandedIn) -> float:
    """Seconds that repeating a run takes here, about."""
    return _training(run, handed_in) + handed_in.course.review.start


def _training(run: Run, handed_in: HandedIn) -> float:
    rules = handed_in.course.review
    slower = rules.accelerator if run.versions.get("accelerator") else 1
    return slower * max(0.0, run.seconds + run.teacher_seconds)


def _epochs_within(run: Run, left: float, handed_in: HandedIn) -> int:
    """How many first epochs fit; 0 if none does, or the run has no epochs."""
    if not run.history:
        return 0
    each = _training(run, handed_in) / len(run.history)
    room = left - handed_in.course.review.start
    return max(0, min(len(run.history), int(room / max(each, 1e-9))))


def _too_long(
    runs: list[Run], sample: Sample, handed_in: HandedIn, seconds: float
) -> Iterator[Finding]:
    """A note for each experiment of which nothing was repeated, or only the first epochs."""
    epochs_of = {run.experiment: epochs for run, epochs in sample}
    for name in dict.fromkeys(run.experiment for run in runs):
        shortest = min(cost(run, handed_in) for run in runs if run.experiment == name)
        if epochs_of.get(name, 0) is None or shortest <= seconds:
            continue
        epochs = epochs_of.get(name)
        told = f"experiment {name!r}: its shortest run takes about {shortest / 60:.0f} minutes, "
        told += f"so only {epochs} of its epochs ran" if epochs else "too long: not repeated"
        yield Finding("reproducibility", NOTE, told, f"runs/{name}/")


def _repeat(
    handed_in: HandedIn, path: Path, epochs: int | None, most: float, clock: Clock
) -> tuple[Finding | None, Repetition | None]:
    """Run a record again; what is wrong with it, and the comparison if there is one."""
    name, run = handed_in.relative(path), handed_in.runs[path]

    def told(severity: str, evidence: str) -> tuple[Finding, None]:
        return Finding("reproducibility", severity, evidence, name), None

    inside = path.relative_to(handed_in.folder).as_posix()
    line = [sys.executable, "-c", REPEAT, "repeat", "--observed", "--own-code", inside]
    line += ["--epochs", str(epochs)] if epochs else []
    seconds = min(most, handed_in.course.review.slower * cost(run, handed_in))
    done = sandbox.run(
        line, handed_in.folder, folder=PROJECT, trust=clock.trust,
        environment={"KDLIB_PROGRESS": "0"}, limits=Limits(seconds=seconds),
        packages=handed_in.packages,
    )  # fmt: skip
    if done.stopped == "time":
        evidence = f"too long: it did not end in {seconds:.0f} s; {run.seconds:.1f} s are recorded"
        return told(NOTE, evidence)
    if done.stopped:
        return told(RED, f"it was stopped at the limit of {done.stopped}")
    answer = _last_object(done.stdout)
    if answer is None:
        said = (done.stderr.strip().splitlines() or ["it says nothing"])[-1][:200]
        return told(RED, f"it does not run again: {said}")
    if "error" in answer:
        return told(*_failure(answer, run, handed_in))
    observed = _observed(answer)
    if observed is None:
        return told(RED, "what came out are no values of a run")
    found = repetition.judge(path, observed, epochs=epochs)
    if found.verdict == "differs":
        return Finding("reproducibility", RED, f"{found.run} differs: {found.basis}", name), found
    if found.verdict != "repeats":
        evidence = f"{found.run}: {found.verdict} ({found.basis})"
        return Finding("reproducibility", NOTE, evidence, name), found
    return None, found


def _failure(answer: dict[str, Any], run: Run, handed_in: HandedIn) -> tuple[str, str]:
    """Severity and evidence of an error. What ran may say anything, so notes are for what fits."""
    kind, text = str(answer.get("kind")), str(answer["error"])[:300]
    if module := needs.missing(text):
        return NOTE, needs.told(handed_in, module)
    data = re.match(r"data set ('[\w-]+') is not complete", text)
    if data and data[1].strip("'") in json.dumps(run.repeat):
        return NOTE, f"it needs the data set {data[1]}, which is not here: `data.load({data[1]})`"
    if text.endswith("leave epochs out"):
        return NOTE, "too long, and it is no training whose first epochs could be repeated"
    return RED, f"it does not run again: {kind}: {text}"


def _last_object(text: str) -> dict[str, Any] | None:
    """The last line that is a JSON object."""
    for line in reversed(text.splitlines()):
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            return found
    return None


def _observed(answer: dict[str, Any]) -> Observed | None:
    """The values that came out of the sandbox, if they have the form of values."""
    metrics, history, notes = (answer.get(name) for name in ("metrics", "history", "notes"))
    tables = [metrics, *history] if isinstance(history, list) else [None]
    good = all(
        isinstance(table, dict) and all(isinstance(one, (int, float)) for one in table.values())
        for table in tables
    )
    if not good or not isinstance(notes, list) or len(tables) > 100_000:
        return None
    texts = [str(note)[:200] for note in notes[:10]]
    return Observed(metrics or {}, history or [], answer.get("same") is True, texts)


def _rows(found: Repetition, name: str, most: int = 8) -> list[tuple[str, ...]]:
    """A record's values; those that differ before the others."""

    def apart(row: tuple[str, float, float, float | None]) -> float:
        return abs(row[1] - row[2]) if math.isfinite(row[1] - row[2]) else math.inf

    listed = sorted(found.rows, key=apart, reverse=True)[:most]
    return [
        (
            name.removeprefix("runs/"), metric, f"{recorded:.6g}", f"{observed:.6g}",
            "unknown" if room is None else "equal" if room == 0 else f"{room:.3g}",
        )
        for metric, recorded, observed, room in listed
    ]  # fmt: skip
