"""What Git knows of a report's folder: its commit, and how many commits each member made.

The folder may be somebody else's, with a `.git/config` that makes Git start programs: a file-system
monitor, hooks, filters of files, transports that fetch what is missing. None of these may run.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from kdlib.homework.team import Member

GENERATED = "generated"
WRITTEN = ("report.pdf", "report.zip", "review.html", "review.json")  # by commands, beside it
_QUIET = ("-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", "-c", "core.pager=cat")
_NO_TRANSPORT = {"GIT_ALLOW_PROTOCOL": "none", "GIT_NO_LAZY_FETCH": "1", "GIT_OPTIONAL_LOCKS": "0"}


class Repository(NamedTuple):
    """The state of a folder in Git.

    Attributes:
        commit: 12 signs, "+" behind it for changes that are not committed; "" without Git.
        commits: of each member, those as co-author included; None where it cannot be told.
    """

    commit: str
    commits: tuple[int | None, ...]


def look(folder: str | Path, members: Sequence[Member]) -> Repository:
    """The state now. What `report` and `review` write does not count as a change."""
    folder = Path(folder)
    head = _git(folder, "rev-parse", "--short=12", "HEAD")
    if head is None or not re.fullmatch(r"[0-9a-f]{12,40}", head.strip()):
        return Repository("", (None,) * len(members))
    inside = (_git(folder, "rev-parse", "--show-prefix") or "").strip()
    own = [f":(top,exclude){inside}{name}" for name in (GENERATED, *WRITTEN)]
    words = ("status", "--porcelain", "--ignore-submodules=dirty", "--", ":(top)", *own)
    changed = _git(folder, *words, settings=_without_filters(folder))
    mark = "+" if changed is None or changed.strip() else ""
    return Repository(head.strip() + mark, commits(folder, members))


def _without_filters(folder: Path) -> dict[str, str]:
    """Settings that empty the filters of this repository; those of the user's own stay."""
    listed = _git(
        folder, "config", "--show-scope", "-z", "--name-only", "--get-regexp", "^filter[.]"
    )
    fields = (listed or "").split("\0")
    pairs = zip(fields[::2], fields[1::2])
    theirs = {name for scope, name in pairs if scope not in ("system", "global")}
    return {name: "false" if name.endswith(".required") else "" for name in theirs}


def has(folder: str | Path, commit: str) -> bool | None:
    """Whether the repository holds a commit; None outside of Git and in a clone without history."""
    shallow = _git(Path(folder), "rev-parse", "--is-shallow-repository")
    if shallow is None or shallow.strip() == "true":
        return None
    return _git(Path(folder), "cat-file", "-e", f"{commit}^{{commit}}") is not None


def ignored(folder: str | Path) -> frozenset[str]:
    """Files and folders (with "/" behind them) below `folder` that Git is told to ignore."""
    words = ("ls-files", "--others", "--ignored", "--exclude-standard", "--directory", "-z")
    return frozenset((_git(Path(folder), *words) or "").split("\0")) - {""}


def commits(folder: str | Path, members: Sequence[Member]) -> tuple[int | None, ...]:
    """How many commits each member made, those as co-author included.

    None for all, if no commit is any member's: the addresses do not fit then.
    """
    listed = _git(
        Path(folder), "shortlog", "-sne", "--group=author", "--group=trailer:co-authored-by", "HEAD"
    )
    found: dict[str, int] = {}
    for line in (listed or "").splitlines():
        match = re.fullmatch(r"\s*(\d+)\t.*<([^<>]*)>", line)
        if match:
            address = match[2].casefold()
            found[address] = found.get(address, 0) + int(match[1])
    counts = [sum(found.get(one, 0) for one in set(member.git)) for member in members]
    return tuple(counts) if any(counts) else (None,) * len(members)


def _git(folder: Path, *words: str, settings: Mapping[str, str] | None = None) -> str | None:
    """What a Git command prints, None if it fails or Git is missing."""
    given = {"GIT_CONFIG_COUNT": str(len(settings or {}))}
    for number, (name, value) in enumerate((settings or {}).items()):
        given |= {f"GIT_CONFIG_KEY_{number}": name, f"GIT_CONFIG_VALUE_{number}": value}
    try:
        done = subprocess.run(
            ["git", *_QUIET, *words],
            cwd=folder,
            env={**os.environ, **_NO_TRANSPORT, **given},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=30,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None
