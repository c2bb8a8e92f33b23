"""`team`: a repository for the homework of a team."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

HELP = "make a team's repository for the homework: experiments, records, report, first commit"
ALONE = "--examples makes whole teams: leave out {}, which describe one"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a new one")
    parser.add_argument("--name", metavar="NAME", help="of the team; default: the folder's")
    parser.add_argument(
        "--member", action="append", default=[], metavar='"NAME <ADDRESS>"', dest="members",
        help="with the address that the commits carry; may be given several times",
    )  # fmt: skip
    parser.add_argument("--language", choices=("en", "ru"), help="of the report; default: en")
    parser.add_argument(
        "--examples", action="store_true",
        help="for instructors: three invented teams below FOLDER, to try `review` on",
    )  # fmt: skip
    parser.add_argument(
        "--course", type=Path, metavar="FILE", help="other rules than those of the kit's course"
    )


def main(arguments: argparse.Namespace) -> int:
    """Make the repository: 1 if it has no first commit."""
    from kdlib.homework import course, starting

    if arguments.examples:
        return _examples(arguments)
    folder: Path = arguments.folder
    made = starting.create(
        folder,
        course.load(arguments.course),
        name=arguments.name or folder.resolve().name,
        members=arguments.members,
        language=arguments.language or "en",
    )
    print(f"{folder}: {len(made.files)} files, a finished small paper to make your own")
    python = shlex.quote(sys.executable)
    print(f"  cd {shlex.quote(str(folder))}")
    print(f"  {python} -m kdlib report   # builds report.pdf from the records in runs/")
    print(f"  {python} experiments.py    # runs what is not on record")
    print("README.md says how to begin")
    if made.problem:
        print(f"no first commit: {made.problem}")
    return 1 if made.problem else 0


def _examples(arguments: argparse.Namespace) -> int:
    from kdlib.homework import course, examples

    given = [name for name in ("name", "members", "language") if getattr(arguments, name)]
    if given:
        names = " and ".join(f"--{name.removesuffix('s')}" for name in given)
        raise ValueError(ALONE.format(names))
    made = examples.create(arguments.folder, course.load(arguments.course))
    for one in made:
        print(f"{one.folder}: {one.shows}")
    paths = " ".join(shlex.quote(str(one.folder)) for one in made)
    print("what a review finds in them:")
    print(f"  {shlex.quote(sys.executable)} -m kdlib review {paths} --out reviews")
    return 0
