"""Notebooks executed again: their stored outputs, and the exercises of the course's.

What a notebook says about its exercises counts only where it contains the checks.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from kdlib.engine import notebooks
from kdlib.homework import sandbox, untrusted
from kdlib.homework.review import cells, needs
from kdlib.homework.review.clock import LEAST, NOT_RUN, Clock
from kdlib.homework.review.findings import GREEN, NOTE, RED, Answer, Finding, Table, counted, some
from kdlib.homework.review.handed_in import HandedIn
from kdlib.homework.review.history import Work
from kdlib.homework.sandbox import RESULTS, Limits


def compared(handed_in: HandedIn) -> list[str]:
    """Notebooks with stored outputs, those that say that they take long at the end."""
    contents = {name: (handed_in.tree / name).read_bytes() for name in handed_in.notebooks()}
    names = [
        name for name, content in contents.items()
        if any(cell.outputs for cell in cells.read(content))  # else: flag `notebooks`
    ]  # fmt: skip
    return sorted(names, key=lambda name: _reference_seconds(contents[name]))


def again(handed_in: HandedIn, names: list[str], clock: Clock) -> Iterator[Finding]:
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
            name, handed_in.tree, limits=Limits(seconds=seconds), trust=clock.trust,
            packages=handed_in.packages,
        )  # fmt: skip
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
            if module := needs.missing(done.stdout):
                told = f"{told}: {needs.told(handed_in, module)}"
            # What ran may say anything, so an excuse must be declared, too.
            excused = module and needs.lacking(handed_in)
            yield Finding("reproducibility", NOTE if excused else RED, told, name)


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
        limits=Limits(seconds=seconds), packages=handed_in.packages,
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
