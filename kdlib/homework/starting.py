"""A team's own repository: the report's template, a place for own networks, a first commit."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from kdlib import inputs
from kdlib.engine import files
from kdlib.homework import report
from kdlib.homework.course import Course
from kdlib.homework.entries import LANGUAGES

STARTER = Path(__file__).with_name("starter")
PLACES = {
    "README.md": "README.md",
    "networks.py": "networks.py",
    "gitignore": ".gitignore",
    "gitattributes": ".gitattributes",
}

MEMBER = """\
[[members]]
name = "{name}"
git = ["{address}"]  # every address that their commits carry
items = []  # what they did
sections = []  # of the report
"""


class Started(NamedTuple):
    """What was made, and why there is no commit, if there is none."""

    files: tuple[Path, ...]
    problem: str


def create(
    folder: str | Path,
    course: Course,
    *,
    name: str,
    members: Sequence[str] = (),
    language: str = "en",
    by: str = "",
    when: datetime | None = None,
) -> Started:
    """Make a team's repository in a new folder.

    Args:
        folder: new, or empty.
        course: whose first homework it is.
        name: of the team.
        members: as "Name <address>", the address that their commits carry; none keeps the
            example's.
        language: of the report, "en" or "ru".
        by, when: of the first commit, as in `commit`.

    Raises:
        FileExistsError: the folder holds something already; nothing was written.
        ValueError: a name that does not fit; nothing was written.
    """
    inputs.choice("language", language, LANGUAGES)
    people = [_member(text) for text in members]
    if len(people) > course.rules.team_size:
        raise ValueError(
            f"members must be {course.rules.team_size} at most, got {len(people)}: larger teams "
            "split up"
        )
    name = _line("name", name)
    folder = Path(folder)
    written = report.start(folder, language)
    topic = course.homeworks[0].topic.of(language)
    for origin, place in PLACES.items():
        text = (STARTER / origin).read_text("utf-8")
        text = text.replace("{team}", name).replace("{topic}", topic)
        written.append(files.write_atomically(folder / place, text))
    entries = folder / "team.toml"
    files.write_atomically(entries, _entries(entries.read_text("utf-8"), name, people))
    return Started(tuple(written), commit(folder, "The kit starts us off", by, when))


def _line(what: str, text: str) -> str:
    text = " ".join(text.split())
    if not text or len(text) > 80 or not text.isprintable() or set(text) & set('"\\'):
        raise ValueError(f"{what} must be a line of 1 to 80 signs without quotes, got {text!r}")
    return text


def _member(text: str) -> tuple[str, str]:
    found = re.fullmatch(r"\s*([^<>]+?)\s*<([^<>@\s]+@[^<>@\s]+)>\s*", text)
    if not found:
        raise ValueError(f'members must be given as "Name <address>", got {text!r}')
    return _line("members", found[1]), _line("members", found[2])


def _entries(text: str, name: str, people: list[tuple[str, str]]) -> str:
    """team.toml with the team's own name and people, who have done nothing yet."""
    text = re.sub(r"(?m)^team = .*$", lambda _: f'team = "{name}"', text, count=1)
    if people:
        own = "\n".join(MEMBER.format(name=who, address=address) for who, address in people)
        head, _, rest = text.partition("[[members]]")
        tail = rest[rest.index("# Code that is not yours") :]
        text = f"{head}{own}\n{tail}"
    return text


def commit(folder: Path, message: str, by: str = "", when: datetime | None = None) -> str:
    """Commit all that lies in a folder; "" or what to do where that could not be done.

    Args:
        folder: becomes a repository if it is none.
        by: author and committer, as "Name <address>"; default: whom Git knows here.
        when: the date that the commit carries; default: now.
    """
    advice = f"then: git init && git add -A && git commit -m '{message}'"
    own: dict[str, str] = {}
    if by:
        name, address = _member(by)
        for role in ("AUTHOR", "COMMITTER"):
            own |= {f"GIT_{role}_NAME": name, f"GIT_{role}_EMAIL": address}
    if when:
        own |= {f"GIT_{role}_DATE": when.isoformat() for role in ("AUTHOR", "COMMITTER")}
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", message]):
        try:
            done = subprocess.run(
                ["git", *words], cwd=folder, env=os.environ | own, capture_output=True, text=True,
                timeout=60, check=False,
            )  # fmt: skip
        except (OSError, subprocess.SubprocessError) as error:
            return f"git does not run ({error}): install it, {advice}"
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines()
            return (
                f"git {words[0]}: {said[-1] if said else 'failed'}. Tell Git who you are, {advice}"
            )
    return ""
