"""Many repositories: one after the other, resumed after a kill, none stopped by another."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from kdlib.engine import files
from kdlib.homework.review import handed_in, page, reviewing, similarity
from kdlib.homework.review.findings import FLAGS, NOTE, RED
from kdlib.homework.review.reviewing import Failed, Options, Review
from kdlib.homework.review.similarity import Program
from kdlib.homework.sandbox import NoSandbox

PAGE, DATA = "review.html", "review.json"
COHORT_PAGE, COHORT_DATA = "cohort.html", "cohort.csv"
FOLDER = "reviews"  # of the pages of a cohort, beside its table


def names(paths: Sequence[Path]) -> list[str]:
    """A name for each repository: that of its folder, with a number where two are alike."""
    found: list[str] = []
    for path in paths:
        name = path.resolve().name or "repository"
        alike = sum(other == name or other.startswith(f"{name} (") for other in found)
        found.append(f"{name} ({alike + 1})" if alike else name)
    return found


def review(
    paths: Sequence[Path],
    options: Options,
    out: Path,
    *,
    against: Path | None = None,
    language: str = "en",
) -> list[Review | Failed]:
    """Review repositories, compare them with each other, and write all pages.

    One repository gives review.html and review.json in `out`; several give these in
    `out`/reviews/NAME, and cohort.html and cohort.csv in `out`. A repository of several that was
    reviewed before, at the same commit with the same options, is taken from its review.json.

    Raises:
        NoSandbox: something would have to run, and no sandbox works.
        OSError: `out` cannot be written.
    """
    many = len(paths) > 1
    files.probe(out / DATA)
    found: list[Review | Failed] = []
    programs: list[Program] = []
    spent: list[float] = []
    for number, (path, name) in enumerate(zip(paths, names(paths))):
        place = out / FOLDER / name if many else out
        if many:
            left = _left(spent, len(paths) - number)
            print(f"[{number + 1}/{len(paths)}] {name}{left}", flush=True)
        start = time.monotonic()
        done = _one(path, name, options, place / DATA if many else None)
        found.append(done.review)
        programs += [done.program] if done.program else []
        if done.fresh:
            spent.append(time.monotonic() - start)
        if many:
            print(f"  {_said(done)}", flush=True)
    found = _compared(found, programs, options, against)
    for one in found:
        if isinstance(one, Review):
            place = out / FOLDER / one.name if many else out
            files.write_atomically(place / DATA, reviewing.as_json(one))
            files.write_atomically(place / PAGE, page.of_review(one, options.course, language))
    if many:
        found = sorted(found, key=_attention)
        files.write_atomically(out / COHORT_DATA, table(found))
        files.write_atomically(out / COHORT_PAGE, page.of_cohort(found, options.course, language))
    return found


class _Done(NamedTuple):
    review: Review | Failed
    program: Program | None
    fresh: bool  # not taken from its file


def _said(done: _Done) -> str:
    if isinstance(done.review, Failed):
        return f"could not be reviewed: {done.review.problem}"
    kept = "" if done.fresh else ", reviewed before"
    return f"{done.review.count(RED)} red, {done.review.count(NOTE)} notes{kept}"


def _left(spent: Sequence[float], ahead: int) -> str:
    """The time left, from what the repositories so far took."""
    if not spent:
        return ""
    seconds = ahead * sum(spent) / len(spent)
    amount = f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"
    return f", about {amount} left"


def _one(path: Path, name: str, options: Options, stored: Path | None) -> _Done:
    """Review one repository, or take the review from its file, where it is written, too."""
    try:
        if stored is not None and stored.is_file():
            with handed_in.copied(path, options.course, options.kit) as copy:
                if (kept := _kept(stored, options.key(copy.commit))) is not None:
                    return _Done(kept, similarity.program(copy, name), False)
        found, program = reviewing.review(path, name, options)
        if stored is not None:
            files.write_atomically(stored, reviewing.as_json(found))
        return _Done(found, program, True)
    except NoSandbox:
        raise
    except Exception as error:  # whatever one repository does, the others are reviewed
        problem = " ".join(str(error).split()) or type(error).__name__
        if not isinstance(error, (OSError, ValueError)):
            problem = f"{type(error).__name__}: {problem}"
        return _Done(Failed(name, str(path), problem[:500]), None, True)


def _kept(stored: Path, key: str) -> Review | None:
    try:
        found = reviewing.from_json(stored.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return found if found.key == key else None


def _compared(
    found: Sequence[Review | Failed],
    programs: list[Program],
    options: Options,
    against: Path | None,
) -> list[Review | Failed]:
    """The reviews with what pairs of programs say."""
    own = {Path(one.path).resolve() for one in found}
    others = [
        similarity.of_folder(folder, f"{folder.parent.name}/{folder.name}", options.kit)
        for folder in (sorted(against.iterdir()) if against else [])
        if folder.is_dir() and not folder.is_symlink() and folder.resolve() not in own
    ]
    together = [*programs, *others]
    problem = similarity.missing() if len(together) > 1 else ""
    pairs = [] if problem or len(together) < 2 else similarity.compare(
        together, options.kit, options.course
    )  # fmt: skip
    return [
        one.with_answer("similarity", similarity.answer(one.name, pairs, options.course, problem))
        if isinstance(one, Review)
        else one
        for one in found
    ]


def _attention(one: Review | Failed) -> tuple[int, int, int, str]:
    """What needs a person's eye comes first: most red flags, then what could not be reviewed."""
    if isinstance(one, Failed):
        return (0, 0, 0, one.name)
    red = sum(one.count(RED, flag) > 0 for flag in FLAGS)
    return (1, -red, -one.count(NOTE), one.name)


def table(found: Sequence[Review | Failed]) -> str:
    """cohort.csv: a line for each repository, in the order of the page."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["name", "team", "members", "commit", "red", "notes", *FLAGS, "problem"])
    for one in found:
        row: list[object]
        if isinstance(one, Failed):
            row = [one.name, "", "", "", "", "", *[""] * len(FLAGS), one.problem]
        else:
            row = [one.name, one.team, "; ".join(one.members), one.commit, one.count(RED)]
            row += [one.count(NOTE), *(page.state(one, flag) for flag in FLAGS), ""]
        writer.writerow([_harmless(str(part)) for part in row])
    return stream.getvalue()


def _harmless(text: str) -> str:
    """Text that no spreadsheet takes for a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
