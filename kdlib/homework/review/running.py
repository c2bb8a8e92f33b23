"""Flags that need something of the team's to run: in the sandbox, or not at all.

What runs can say whatever it likes. So only values come out, and this process compares them with
the records; and what a notebook says about its exercises counts only where it contains the checks.
"""

from __future__ import annotations

import importlib.util
import json
import math
import random
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdlib import repetition
from kdlib.engine import notebooks
from kdlib.homework import (
    building,
    checks,
    generated,
    report,
    sandbox,
    untrusted,
)
from kdlib.homework.building import Built
from kdlib.homework.review import cells
from kdlib.homework.review.findings import GREEN, NOTE, RED, Answer, Finding, Table, counted, some
from kdlib.homework.review.handed_in import HandedIn
from kdlib.homework.review.history import Work
from kdlib.homework.sandbox import PROJECT, RESULTS, Limits
from kdlib.records import Run
from kdlib.repetition import Observed, Repetition

NOT_RUN = "nothing was run (--no-run)"
# The team's folder comes last on the path: a record may name its modules, none may stand for ours.
REPEAT = "import sys; sys.path.append('.'); from kdlib.__main__ import main; sys.exit(main())"
LEAST = 10.0  # seconds that are worth a start


@dataclass
class Clock:
    """How things are run, and how long that may still take.

    Attributes:
        run: whether anything is.
        trust: without a sandbox.
        seconds: for all of it.
        seed: of the sample.
    """

    run: bool
    trust: bool
    seconds: float
    seed: int

    def __post_init__(self) -> None:
        self.end = time.monotonic() + self.seconds

    @property
    def left(self) -> float:
        """Seconds."""
        return max(0.0, self.end - time.monotonic())

    def share(self, percent: int) -> float:
        """Seconds that are kept for what comes later."""
        return self.seconds * percent / 100


# Records


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
    compared = _compared(handed_in)
    kept = clock.share(handed_in.course.review.notebooks) if compared else 0.0
    sample = chosen(able, handed_in, clock.seconds - kept, clock.seed)
    told, rows, repeated = _sampled(handed_in, sample, clock, kept)
    found += [
        *told,
        *_too_long(able, sample, handed_in, clock.seconds - kept),
        *_notebooks_again(handed_in, compared, clock),
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
        return told(*_failure(answer, run))
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


def _failure(answer: dict[str, Any], run: Run) -> tuple[str, str]:
    """Severity and evidence of an error. What ran may say anything, so notes are for what fits."""
    kind, text = str(answer.get("kind")), str(answer["error"])[:300]
    missing = re.search(r"No module named '(\w+)", text)
    if missing and missing[1] != "kdlib" and not importlib.util.find_spec(missing[1]):
        return NOTE, (
            f"it needs the package that holds {missing[1]!r}: "
            "`pip install --only-binary=:all: PACKAGE` into this environment, then review again"
        )
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


# Notebooks


def _compared(handed_in: HandedIn) -> list[str]:
    """Notebooks with stored outputs, those that say that they take long at the end."""
    contents = {name: (handed_in.tree / name).read_bytes() for name in handed_in.notebooks()}
    names = [
        name for name, content in contents.items()
        if any(cell.outputs for cell in cells.read(content))  # else: flag `notebooks`
    ]  # fmt: skip
    return sorted(names, key=lambda name: _reference_seconds(contents[name]))


def _notebooks_again(handed_in: HandedIn, names: list[str], clock: Clock) -> Iterator[Finding]:
    """A finding for each notebook: whether its stored outputs are those that it gives.

    Each may take an equal part of the time that is left, or twice what it says that it needs.
    """
    for place, name in enumerate(names):
        needed = _reference_seconds((handed_in.tree / name).read_bytes())
        if clock.left < max(LEAST, needed):
            yield Finding(
                "reproducibility", NOTE, "no time was left: the notebook was not run again", name
            )
            continue
        seconds = min(clock.left, max(LEAST, 2 * needed, clock.left / (len(names) - place)))
        done = untrusted.run_notebook(
            name, handed_in.tree, limits=Limits(seconds=seconds), trust=clock.trust
        )
        if done.stopped == "time":
            evidence = f"too long: the notebook did not end in {seconds:.0f} s"
            yield Finding("reproducibility", NOTE, evidence, name)
        elif done.returncode == 0:
            yield Finding("reproducibility", GREEN, "the notebook gives its stored outputs", name)
        elif done.returncode != 5:
            said = re.findall(r"^(?:FAILED|ERROR) (.*)$", done.stdout, re.MULTILINE)
            told = f"{counted(len(said), 'cell')}: {some(said, 2)}" if said else ""
            told = told or done.stopped or "it fails"
            told = f"the notebook does not give its stored outputs ({told[:300]})"
            yield Finding("reproducibility", RED, told, name)


def _reference_seconds(content: bytes) -> float:
    """What a notebook says that it takes; 0 where it says nothing."""
    try:
        found = notebooks.stored_seconds(notebooks.parse(content, Path("notebook")))
    except (ValueError, RecursionError):
        return 0.0
    return found or 0.0


def exercises(handed_in: HandedIn, clock: Clock, works: dict[str, Work]) -> Answer:
    """Copies of the course's notebooks, checked again with the pristine kit."""
    copies = {}
    for name in handed_in.notebooks():
        content = (handed_in.tree / name).read_bytes()
        asked = _asked(content)
        if asked:
            copies[name] = (content, asked)
    if not copies:
        return Answer.note("exercises", "no copies of the course's notebooks are handed in")
    found, totals = [], {"correct": 0, "not yet": 0, "to do": 0}
    rows: list[tuple[str, ...]] = []
    done = 0  # exercises that were checked
    for name, (content, asked) in copies.items():
        states, problem = _checked(handed_in, name, clock, asked)
        if problem:
            evidence = f"{counted(len(asked), 'exercise')} not checked: {problem}"
            found.append(Finding("exercises", NOTE, evidence, name))
            rows.append((name, _writer(name, works), "?", "?", "?"))
            continue
        done += len(asked)
        numbers = {state: sum(one == state for one in states.values()) for state in totals}
        totals = {state: totals[state] + numbers[state] for state in totals}
        rows.append((name, _writer(name, works), *map(str, numbers.values())))
        stored = _stored(content)
        wrong = [key for key in stored if stored[key] == "correct" != states.get(key, "correct")]
        if wrong:
            evidence = f"stored as correct, but not with the pristine kit: {some(wrong)}"
            found.append(Finding("exercises", RED, evidence, name))
    all_asked = sum(len(asked) for _, asked in copies.values())
    table = Table(
        "Exercises, checked again", ("notebook", "mostly by", "solved", "wrong", "to do"),
        tuple(rows),
    )  # fmt: skip
    commands = tuple(f"python -m kdlib run '{name}'" for name in copies)
    if not done:
        return Answer(tuple(found), tables=(table,), commands=commands)
    evidence = (
        f"{totals['correct']} of {counted(done, 'exercise')} solved, {totals['not yet']} wrong, "
        f"{totals['to do']} to do"
    )
    evidence += f"; {all_asked - done} not checked" if done < all_asked else ""
    severity = GREEN if totals["correct"] == all_asked else NOTE
    return Answer.of(
        found, Finding("exercises", severity, evidence), tables=(table,), commands=commands
    )


def _asked(content: bytes) -> list[str]:
    """Numbers of the exercises that a notebook checks, in their order."""
    text = "\n".join(cell.source for cell in cells.read(content) if cell.kind == "code")
    return list(dict.fromkeys(re.findall(r"""\bcheck\(\s*["'](\d+\.\d+)["']\s*,""", text)))


def _stored(content: bytes) -> dict[str, str]:
    """{exercise: state} as the outputs of a notebook say."""
    try:
        found = notebooks.checks(notebooks.parse(content, Path("notebook")))
    except (ValueError, RecursionError):
        return {}
    return {one.name: one.state for one in found}


_STATE = re.compile(r"^  (correct: |not yet: |\[to do\] )(\d+\.\d+)\b", re.MULTILINE)


def _checked(
    handed_in: HandedIn, name: str, clock: Clock, asked: list[str]
) -> tuple[dict[str, str], str]:
    """{exercise: state} with the pristine kit, and why there is none."""
    if not clock.run:
        return {}, NOT_RUN
    needed = _reference_seconds((handed_in.tree / name).read_bytes())
    later = 2 * clock.share(handed_in.course.review.notebooks)  # for the records and for comparison
    seconds = clock.left - later
    if seconds < max(LEAST, needed):
        return {}, (
            f"it may take {max(LEAST, needed):.0f} s, {max(0.0, seconds):.0f} s are left for it: "
            "give a larger --budget"
        )
    done = sandbox.run(
        [sys.executable, "-m", "kdlib", "run", f"{RESULTS}/{name}"], handed_in.tree,
        seed=handed_in.tree, folder=RESULTS, trust=clock.trust,
        limits=Limits(seconds=seconds),
    )  # fmt: skip
    if done.stopped:
        return {}, f"too long: it was stopped at the limit of {done.stopped}"
    words = {"correct: ": "correct", "not yet: ": "not yet", "[to do] ": "to do"}
    found = {number: words[state] for state, number in _STATE.findall(done.stdout)}
    states = {number: state for number, state in found.items() if number in asked}
    return states, "" if states else "it does not run: " + done.stderr.strip()[-200:]


def _writer(name: str, works: dict[str, Work]) -> str:
    """Who wrote most of a notebook's lines."""
    best = max(works.values(), key=lambda work: work.lines.get(name, 0), default=None)
    return best.name if best is not None and name in best.lines else "nobody"


# The report


def page_limit(handed_in: HandedIn, clock: Clock) -> Answer:
    """The length of the body, as the engine counts it; without a run, that of the stored PDF."""
    if handed_in.main is None:
        return Answer.note("page_limit", "there is no text of a report that could be built")
    if not clock.run:
        return _stored_pages(handed_in)
    where = handed_in.relative(handed_in.main)
    try:
        if handed_in.report and not (handed_in.folder / generated.JSON).is_file():
            report.make(handed_in.report)  # the team did not commit it; the engine needs it
        built = untrusted.build_report(handed_in.folder, handed_in.main.name, trust=clock.trust)
    except (OSError, ValueError, ModuleNotFoundError) as error:
        return Answer((Finding("page_limit", NOTE, f"the pages are not counted: {error}", where),))
    if built.pdf is None:
        return Answer((_unbuilt(handed_in, built, where),))
    most = handed_in.course.rules.pages
    if built.body is None:  # not the kit's layout
        evidence = f"{built.pages} pages in all; where the text ends is not marked; at most {most}"
        severity = GREEN if built.pages <= most else NOTE
        return Answer((Finding("page_limit", severity, evidence, where),))
    wrong = tuple(checks.of_pages(built.body, handed_in.course))
    if wrong:
        return Answer((Finding("page_limit", RED, wrong[0], where),))
    evidence = f"the text ends on page {built.body} of at most {most}; {built.pages} pages in all"
    return Answer((Finding("page_limit", GREEN, evidence, where),))


def _unbuilt(handed_in: HandedIn, built: Built, where: str) -> Finding:
    """Red, unless another flag names the place: an unknown key or citation stops the engine."""
    told: list[str] = []
    if handed_in.source is not None and handed_in.report is not None:
        found = handed_in.report.results
        told += checks.unknown(handed_in.source, found)
        told += checks.uncited(handed_in.source, handed_in.bibliography)
        told += checks.structure(handed_in.source)
    place = re.match(r"[^\s:]+:\d+:", built.problem)
    known = place is not None and any(line.startswith(place[0]) for line in told)
    severity = NOTE if known or handed_in.report is None else RED
    return Finding("page_limit", severity, f"the report does not build: {built.problem}", where)


def _stored_pages(handed_in: HandedIn) -> Answer:
    path, most = handed_in.folder / building.PDF, handed_in.course.rules.pages
    if not path.is_file():
        return Answer.note("page_limit", f"{NOT_RUN}, and no {building.PDF} is stored")
    try:
        count = building.pages(path.read_bytes())
    except Exception as error:  # of a file that claims to be a PDF
        return Answer.note("page_limit", f"{building.PDF} cannot be read: {type(error).__name__}")
    where = handed_in.relative(path)
    if count <= most:
        evidence = f"{building.PDF} has {count} pages, references included; at most {most} of text"
        return Answer((Finding("page_limit", GREEN, evidence, where),))
    evidence = f"{building.PDF} has {count} pages; how many are text is counted when it is built"
    return Answer((Finding("page_limit", NOTE, evidence, where),))
