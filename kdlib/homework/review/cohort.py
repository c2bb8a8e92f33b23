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
from kdlib.homework.review.findings import FLAGS, RED, SEVERITIES
from kdlib.homework.review.reviewing import Failed, Options, Review
from kdlib.homework.review.similarity import Pair, Program
from kdlib.homework.sandbox import NoSandbox

PAGE, DATA = "review.html", "review.json"
COHORT_PAGE, COHORT_DATA = "cohort.html", "cohort.csv"
MOST_PAIRS = 20
FOLDER = "reviews"  # of the pages of a cohort, beside its table
# Flags that may say that a work is not what it seems; a person looks at these first.
FIRST = ("tampering", "similarity", "reproducibility", "contributions")


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
    pairs, problem = _pairs(programs, options, against, [one.path for one in found])
    found = [
        one.with_answer("similarity", similarity.answer(one.name, pairs, options.course, problem))
        if isinstance(one, Review)
        else one
        for one in found
    ]
    for one in found:
        if isinstance(one, Review):
            place = out / FOLDER / one.name if many else out
            files.write_atomically(place / DATA, reviewing.as_json(one))
            files.write_atomically(place / PAGE, page.of_review(one, options.course, language))
    if many:
        print(_most_alike(pairs) if pairs else problem, flush=True)
        found = sorted(found, key=_attention)
        files.write_atomically(out / COHORT_DATA, table(found))
        ranked = similarity.ranking(pairs, MOST_PAIRS) if pairs else problem
        text = page.of_cohort(found, FIRST, ranked, options.course, language)
        files.write_atomically(out / COHORT_PAGE, text)
    return found


class _Done(NamedTuple):
    review: Review | Failed
    program: Program | None
    fresh: bool  # not taken from its file


def _said(done: _Done) -> str:
    if isinstance(done.review, Failed):
        return f"could not be reviewed: {done.review.problem}"
    return "reviewed" if done.fresh else "reviewed before"


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


def _pairs(
    programs: list[Program], options: Options, against: Path | None, paths: Sequence[str]
) -> tuple[list[Pair], str]:
    """All pairs of programs, the most alike first, and why there are none."""
    own = {Path(path).resolve() for path in paths}
    others = [
        similarity.of_folder(folder, f"{folder.parent.name}/{folder.name}", options.kit)
        for folder in (sorted(against.iterdir()) if against else [])
        if folder.is_dir() and not folder.is_symlink() and folder.resolve() not in own
    ]
    together = [*programs, *others]
    if len(together) < 2:
        return [], "there is no other code to compare with"
    if problem := similarity.missing():
        return [], problem

    def say(text: str) -> None:
        print(text, flush=True)

    pairs = similarity.compare(together, options.kit, options.course, say)
    return pairs, "" if pairs else "there is no other code to compare with"


def _most_alike(pairs: Sequence[Pair]) -> str:
    first = pairs[0]
    return f"most alike: {first.left.name} and {first.right.name}, {first.share:.0f} % in common"


def _attention(one: Review | Failed) -> tuple[int | str, ...]:
    """What needs a person's eye comes first: what could not be reviewed, then by red flags.

    Of these `FIRST` before all others, then their number, then that of their findings.
    """
    if isinstance(one, Failed):
        return (0, 0, 0, 0, one.name)
    red = [flag for flag in FLAGS if one.state(flag) == RED]
    findings = sum(finding.severity == RED for finding in one.findings)
    return (1, -len(set(red) & set(FIRST)), -len(red), -findings, one.name)


def table(found: Sequence[Review | Failed]) -> str:
    """cohort.csv: a line for each repository, in the order of the page."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["name", "team", "members", "commit", *SEVERITIES, *FLAGS, "problem"])
    for one in found:
        row: list[object]
        if isinstance(one, Failed):
            row = [one.name, "", "", "", *[""] * len((*SEVERITIES, *FLAGS)), one.problem]
        else:
            row = [one.name, one.team, "; ".join(one.members), one.commit, *one.counts.values()]
            row += [*map(one.state, FLAGS), ""]
        writer.writerow([_harmless(str(part)) for part in row])
    return stream.getvalue()


def _harmless(text: str) -> str:
    """Text that no spreadsheet takes for a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
