"""`report`: the team's paper, with every number taken from run records."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kdlib.homework.building import Built
    from kdlib.homework.report import Report

HELP = "make the homework report from run records, or check it"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "folder", nargs="?", type=Path, default=Path("."), metavar="FOLDER",
        help="of the report; default: this one",
    )  # fmt: skip
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--keys", action="store_true", help="list the keys of all numbers")
    what.add_argument("--check", action="store_true", help="say what is wrong, and write nothing")
    what.add_argument("--zip", action="store_true", help="pack it for an online editor")
    parser.add_argument("--latex", action="store_true", help="report.tex instead of report.typ")
    parser.add_argument(
        "--language", choices=("en", "ru"), help="of the report; default: as team.toml says"
    )
    parser.add_argument(
        "--course", type=Path, metavar="FILE", help="other rules than those of the kit's course"
    )


def main(arguments: argparse.Namespace) -> int:
    """Make, check, list or pack a report: 1 if something is wrong with it, 2 for bad usage."""
    from kdlib.homework import course, report

    rules = course.load(arguments.course)
    try:
        found = report.read(arguments.folder, rules, arguments.language)
    except ValueError as error:
        if not arguments.check:
            raise
        print(error)
        return 1
    if arguments.keys:
        width = max(map(len, found.results.values))
        for key, value in found.results.values.items():
            print(f"{key:{width}}  {value.text}")
        return 0
    if arguments.check:
        return _check(found, arguments.latex)
    return _pack(found) if arguments.zip else _make(found, arguments.latex)


def _check(found: Report, latex: bool) -> int:
    """Findings, then the length of the text, if the PDF can be built here."""
    from kdlib.homework import building, report

    wrong = report.findings(found, latex=latex)
    latex = latex or not any(found.folder.glob("report*.typ"))
    if latex and building.missing_tex():
        print("the pages are not counted: LaTeX is not installed")
    else:
        try:
            built = report.build(found, latex=latex)
        except (OSError, ValueError) as error:
            wrong.append(str(error))
        else:
            wrong += _told(built, found, wrong)
    return _say(found, list(dict.fromkeys(wrong)), latex)


def _told(built: Built, found: Report, wrong: list[str]) -> list[str]:
    """What the engine found, unless the same place is among the findings already."""
    from kdlib.homework import checks

    if built.pdf is not None:
        return list(checks.of_pages(built.body, found.course))
    place = re.match(r"[^\s:]+:\d+:", built.problem)
    known = place is not None and any(line.startswith(place[0]) for line in wrong)
    return [] if known else [built.problem]


def _say(found: Report, wrong: list[str], latex: bool) -> int:
    from kdlib.homework import report

    for line in wrong:
        print(line)
    for line in report.hints(found, latex=latex):
        print(f"hint: {line}")
    print(f"{len(wrong)} to mend" if wrong else "nothing to mend")
    return 1 if wrong else 0


def _make(found: Report, latex: bool) -> int:
    """Write the generated files and the PDF."""
    from kdlib.engine import files
    from kdlib.homework import building, report

    main_file = found.main(latex=latex)
    report.make(found)
    wrong = report.findings(found, latex=latex, written=False)
    built = report.build(found, latex=latex)
    wrong += _told(built, found, wrong)
    if built.pdf is not None:
        path = files.write_atomically(found.folder / building.PDF, built.pdf)
        print(
            f"{path}: {main_file.name}, {built.pages} pages, the text ends on page {built.body} of "
            f"at most {found.course.rules.pages}"
        )
    else:
        print(
            f"{building.PDF} was not written"
            + ("; the one that is there is older" if (found.folder / building.PDF).exists() else "")
        )
    return _say(found, wrong, latex)


def _pack(found: Report) -> int:
    """Write the generated files and a ZIP file of all that an engine needs."""
    from kdlib.engine import files
    from kdlib.homework import building, report

    report.make(found)
    packed = building.archive(building.package(found.folder))
    path = files.write_atomically(found.folder / building.ZIP, packed)
    print(f"{path}: upload it as a new project; report.tex is for LaTeX, report*.typ for Typst")
    return 0
