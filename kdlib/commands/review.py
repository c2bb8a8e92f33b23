"""`review`: evidence about homeworks, for a team before it hands in and for who grades it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HELP = "gather evidence about teams' repositories, one page each"
NOWHERE = "give --trust to run what your own team wrote, or --no-run to run nothing"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.epilog = (
        "Writes review.html and review.json here; for several repositories cohort.html, cohort.csv "
        "and a folder reviews/. Exit status 0: nothing is red; 1: something is; 2: a repository "
        "could not be reviewed."
    )
    parser.add_argument(
        "paths", nargs="+", type=Path, metavar="PATH", help="a team's Git repository"
    )
    parser.add_argument(
        "--against", type=Path, metavar="DIR",
        help="compare the code with that of the folders in DIR, too, for example of last year",
    )  # fmt: skip
    parser.add_argument(
        "--starter", type=Path, metavar="DIR",
        help="what teams were given besides the kit: it is subtracted",
    )  # fmt: skip
    parser.add_argument(
        "--no-run", action="store_true", help="read only: repeat no record, build no report"
    )
    parser.add_argument(
        "--budget", type=float, metavar="MINUTES",
        help="for running records and notebooks again, for each team; default: the course's",
    )  # fmt: skip
    parser.add_argument(
        "--trust", action="store_true",
        help="run what the team wrote without a sandbox: only for your own repository",
    )  # fmt: skip
    parser.add_argument(
        "--course", type=Path, metavar="FILE", help="other rules than those of the kit's course"
    )
    parser.add_argument(
        "--language", choices=("en", "ru"), help="of the headings; default: as the course says"
    )
    parser.add_argument(
        "--seed", type=int, metavar="N",
        help="of the sample of records; default: drawn anew, and shown on the page",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, default=Path("."), metavar="DIR", help="of the pages; default: this one"
    )


def main(arguments: argparse.Namespace) -> int:
    """Review repositories: 1 if something is red, 2 if one could not be reviewed."""
    from kdlib.homework import course, repository, sandbox
    from kdlib.homework.review import cohort, kit
    from kdlib.homework.review.findings import RED
    from kdlib.homework.review.reviewing import Failed, Options

    rules = course.load(arguments.course)
    budget = rules.review.budget if arguments.budget is None else arguments.budget
    if not 0 < budget < float("inf"):
        raise ValueError(f"--budget must be a number of minutes above 0, got {budget}")
    _folder("--against", arguments.against, "of folders with code, one for each team")
    _folder("--starter", arguments.starter, "of what teams were given")
    if arguments.out.exists() and not arguments.out.is_dir():
        raise ValueError(f"--out must be a folder, got the file {arguments.out}: give another name")
    run, trust = not arguments.no_run, arguments.trust
    if run and not trust and (why := sandbox.probe()):
        raise ValueError(f"no sandbox works here ({why}): {NOWHERE}")
    paths = _once(arguments.paths)
    options = Options(
        course=rules,
        kit=kit.read(arguments.starter),
        run=run,
        trust=trust,
        budget=budget,
        seed=arguments.seed,
    )
    found = cohort.review(
        paths, options, arguments.out, against=arguments.against,
        language=arguments.language or rules.review.language,
    )  # fmt: skip
    for path in paths if trust else ():
        if repository.look(path, ()).commit.endswith("+"):
            print(f"{path} has changes that are not committed: the review does not see them")
    for one in found:
        if isinstance(one, Failed):
            print(f"{one.name}: could not be reviewed: {one.problem}", file=sys.stderr)
            continue
        for finding in one.findings if len(found) == 1 else ():
            if finding.severity == RED:
                place = f"{finding.where}: " if finding.where else ""
                print(f"{finding.flag}: {place}{finding.evidence}")
        print(f"{one.name}: flags: {one.told()}")
    if len(found) > 1:
        print(arguments.out / cohort.COHORT_PAGE)
    elif not isinstance(found[0], Failed):
        print(arguments.out / cohort.PAGE)
    if any(isinstance(one, Failed) for one in found):
        return 2
    return 1 if any(not isinstance(one, Failed) and one.counts[RED] for one in found) else 0


def _folder(option: str, path: Path | None, what: str) -> None:
    """Raise a ValueError if the folder of an option is none."""
    if path is not None and not path.is_dir():
        found = f"the file {path}" if path.exists() else f"{path}, which is not there"
        raise ValueError(f"{option} must be a folder {what}, got {found}")


def _once(paths: list[Path]) -> list[Path]:
    """Each repository once, however often it is given."""
    found: dict[Path, Path] = {}
    for path in paths:
        first = found.setdefault(path.resolve(), path)
        if first is not path:
            print(f"{path} is given twice: it is reviewed once")
    return list(found.values())
