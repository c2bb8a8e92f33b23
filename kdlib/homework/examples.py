"""Three invented teams with a history each: an instructor sees with them what `review` finds."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

from kdlib.engine import files
from kdlib.homework import report, starting
from kdlib.homework.course import Course

FILE = Path(__file__).with_name("examples.toml")


class Example(NamedTuple):
    """A team's repository, and what there is to find in it."""

    folder: Path
    shows: str


def create(folder: str | Path, course: Course) -> list[Example]:
    """Make the repositories of all invented teams below a folder, new or empty.

    Args:
        folder: holds a repository for each team afterwards.
        course: whose first homework they hand in.

    Raises:
        FileExistsError: the folder holds something already; nothing was written.
        OSError: Git does not run, or the folder cannot be written.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(17, "is there already: choose another name", str(folder))
    made = []
    for team in tomllib.loads(FILE.read_text("utf-8"))["teams"]:
        place = folder / team["folder"]
        day = team["started"]
        started = starting.create(
            place, course, name=team["name"], members=team["members"], by=team["members"][0],
            when=day,
        )  # fmt: skip
        _committed(started.problem)
        _who_did_what(place / "team.toml", team)
        for commit in team["commits"]:
            _change(place, commit)
            if commit is team["commits"][-1]:
                report.make(report.read(place, course))
            day += timedelta(days=commit["after"])
            who = team["members"][commit["by"]]
            _committed(starting.commit(place, commit["message"], who, day))
        made.append(Example(place, team["shows"]))
    return made


def _committed(problem: str) -> None:
    if problem:
        raise OSError(problem)


def _who_did_what(path: Path, team: Mapping[str, Any]) -> None:
    text = path.read_text("utf-8")
    for key in ("items", "sections"):
        for values in team[key]:
            text = text.replace(f"\n{key} = []", f"\n{key} = {json.dumps(values)}", 1)
    files.write_atomically(path, text)


def _change(place: Path, commit: Mapping[str, Any]) -> None:
    for name, text in commit.get("files", {}).items():
        files.write_atomically(place / name, text.lstrip("\n"))
    for one in commit.get("replace", ()):
        _rewrite(place / one["file"], one["section"], one["text"])
    if "copies" in commit:
        _copy(place, **commit["copies"])
    if "raises" in commit:
        _raise(place, **commit["raises"])


def _rewrite(path: Path, section: str, text: str) -> None:
    """Put another text below a heading of the report."""
    old = path.read_text("utf-8")
    pattern = rf'(?s)(#section\("{section}"\)\n).*?(?=\n#section)'
    files.write_atomically(path, re.sub(pattern, lambda found: found[1] + text.strip() + "\n", old))


def _copy(place: Path, team: str, code: Mapping[str, str], names: Mapping[str, str]) -> None:
    words = re.compile(rf"\b({'|'.join(names)})\b")
    for origin, target in code.items():
        text = (place.parent / team / origin).read_text("utf-8")
        files.write_atomically(place / target, words.sub(lambda word: names[word[0]], text))


def _raise(place: Path, experiment: str, points: float) -> None:
    for path in sorted((place / "runs" / experiment).glob("*.json")):
        run = json.loads(path.read_text("utf-8"))
        if run["method"] != "alone":
            run["metrics"]["accuracy"] += points
            files.write_atomically(path, json.dumps(run, indent=1, ensure_ascii=False) + "\n")
