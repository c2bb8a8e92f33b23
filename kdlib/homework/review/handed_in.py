"""A copy of what a team handed in: the files of its last commit, with nothing of it run.

The folder that somebody hands in holds a `.git/config` of theirs, which makes Git start programs
(filters, hooks, a file-system monitor). So Git reads it once, as the far side of a clone, where it
obeys none of these. All else happens in the clone, whose configuration is ours, and files are
written from their objects: no checkout, no attributes, no links.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from kdlib.homework import results, sources, team
from kdlib.homework.course import Course
from kdlib.homework.entries import Text
from kdlib.homework.report import Report
from kdlib.homework.sources import Source
from kdlib.homework.team import Member, Team
from kdlib.records import Run

MB = 10**6
MOST_FILES = 20_000
_CONFIGURATION = """\
[safe]
directory = *
[core]
hooksPath = /dev/null
fsmonitor = false
symlinks = false
attributesFile = /dev/null
bigFileThreshold = 20m
[protocol]
allow = never
[protocol "file"]
allow = always
[gc]
auto = 0
[maintenance]
auto = false
"""


class CannotReview(ValueError):
    """Why, on one line."""


class Entry(NamedTuple):
    """A file of a commit."""

    mode: str  # "100644", "100755", "120000" for a link, "160000" for another repository
    object: str
    size: int


@dataclass(frozen=True)
class Kit:
    """What teams were given: digests of its files, its lines, and its code."""

    files: frozenset[str]
    lines: frozenset[str]
    codes: tuple[str, ...]


class Git:
    """Git in one clone, with a configuration of ours and none of the machine's or the team's."""

    def __init__(self, place: Path) -> None:
        self.tree, self.folder = place / "tree", place / "git"
        home = place / "home"
        home.mkdir()
        (home / ".gitconfig").write_text(_CONFIGURATION, encoding="utf-8")
        kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        self.environment = kept | {
            "HOME": str(home), "XDG_CONFIG_HOME": str(home), "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": str(home / ".gitconfig"), "GIT_TERMINAL_PROMPT": "0",
            "GIT_NO_LAZY_FETCH": "1", "GIT_ALLOW_PROTOCOL": "file",
            "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C",
        }  # fmt: skip

    def __call__(self, *words: str, text: bytes = b"", seconds: float = 120) -> bytes:
        """What a Git command prints.

        Raises:
            CannotReview: it fails, or is not there.
        """
        try:
            done = subprocess.run(
                ["git", *words],
                cwd=self.tree if self.tree.is_dir() else self.tree.parent,
                env=self.environment,
                input=text,
                capture_output=True,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise CannotReview(f"git {words[0]} took more than {seconds:.0f} s") from None
        except OSError as error:
            raise CannotReview(f"git does not run ({error}): install it") from None
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            raise CannotReview(f"git {words[0]}: {said[-1][:200] if said else 'failed'}")
        return done.stdout

    def contents(self, objects: list[str], most: int, together: int = 50 * MB) -> dict[str, bytes]:
        """{object: content} of the blobs of at most so many bytes, as long as all of them fit."""
        if not objects:
            return {}
        listed = "\n".join(objects).encode() + b"\n"
        sizes = self("cat-file", "--batch-check", text=listed).decode().splitlines()
        parts = [line.split() for line in sizes]
        small = []
        for one in parts:
            length = int(one[2]) if len(one) == 3 else most + 1
            if length <= min(most, together):
                small.append(one[0])
                together -= length
        raw = self("cat-file", "--batch", text="\n".join(small).encode() + b"\n") if small else b""
        found, place = {}, 0
        for _ in small:
            end = raw.index(b"\n", place)
            name, _, size = raw[place:end].decode().split()
            found[name] = raw[end + 1 : end + 1 + int(size)]
            place = end + 2 + int(size)
        return found


@dataclass
class HandedIn:
    """A team's repository, copied.

    Attributes:
        path: that was given.
        git: of the copy.
        commit: that is reviewed, 12 signs.
        entries: {path: file} of the commit, links and large files included.
        left: {path: why} of files that were not copied.
        course: whose rules hold.
        kit: what teams were given.
        packages: a folder with what the team declares and this environment lacks; None without.
        packages_told: what is in it, or why it is not there; "" if nothing was asked for.
    """

    path: Path
    git: Git
    commit: str
    entries: dict[str, Entry]
    left: dict[str, str]
    course: Course
    kit: Kit
    packages: Path | None = None
    packages_told: str = ""

    @property
    def tree(self) -> Path:
        """The folder of the copied files."""
        return self.git.tree

    @cached_property
    def shallow(self) -> bool:
        """Whether the history was cut off before it came here."""
        return self.git("rev-parse", "--is-shallow-repository").strip() == b"true"

    @cached_property
    def folder(self) -> Path:
        """Of the report: where the only team.toml is, or else the top."""
        found = [name for name in self.entries if PurePosixPath(name).name == team.FILE]
        only = found[0] if len(found) == 1 else team.FILE
        return (self.tree / only).parent

    @cached_property
    def _read(self) -> tuple[Team, str]:
        path = self.folder / team.FILE
        try:
            return team.load(path), ""
        except OSError:
            return self._unnamed(), f"{team.FILE} is missing: nobody says who did what"
        except ValueError as error:
            return self._unnamed(), str(error).replace(f"{self.tree}/", "")

    @property
    def team(self) -> Team:
        """What team.toml says; without one, the people who committed."""
        return self._read[0]

    @property
    def team_problem(self) -> str:
        """Why team.toml says nothing; "" if it does."""
        return self._read[1]

    def _unnamed(self) -> Team:
        listed = self.git("shortlog", "-sne", "HEAD").decode(errors="replace")
        people = re.findall(r"\t(.*) <([^<>]*)>$", listed, re.MULTILINE)
        members = tuple(
            Member(Text(name, name), (address.casefold(),), (), (), 1) for name, address in people
        )
        name = self.path.name
        return Team(Text(name, name), 1, "", self.course.review.language, "", members, (), {})

    @cached_property
    def _runs(self) -> tuple[dict[Path, Run], str]:
        try:
            return results.files(self.folder), ""
        except (OSError, ValueError) as error:
            return {}, str(error).replace(f"{self.tree}/", "")

    @property
    def runs(self) -> dict[Path, Run]:
        """{file: record}; empty if one cannot be read."""
        return self._runs[0]

    @cached_property
    def _report(self) -> tuple[Report | None, str]:
        if self._runs[1] or self.team_problem:
            return None, self._runs[1]
        try:
            runs = results.ordered(self.runs.values())
            found = results.compute(runs, self.team.experiments, self.team.language)
            return Report(self.folder, self.team, self.course, found), ""
        except ValueError as error:
            return None, str(error)

    @property
    def report(self) -> Report | None:
        """The report with what its records give; None without records or team.toml."""
        return self._report[0]

    @property
    def report_problem(self) -> str:
        """Why the records give nothing; "" if team.toml is the reason."""
        return self._report[1]

    @cached_property
    def main(self) -> Path | None:
        """The file that the engine starts with."""
        for latex in (False, True):
            found = sources.main_file(self.folder, self.team.language, latex=latex)
            if found is not None:
                return found
        return None

    @cached_property
    def source(self) -> Source | None:
        """The text of the report; None if there is none that can be read."""
        try:
            return sources.read(self.main) if self.main else None
        except (OSError, ValueError):
            return None

    @cached_property
    def _entries(self) -> tuple[set[str], str]:
        try:
            return sources.bibliography(self.folder / sources.BIBLIOGRAPHY), ""
        except (OSError, ValueError) as error:
            return set(), str(error).replace(f"{self.tree}/", "")

    @property
    def bibliography(self) -> set[str]:
        """Keys of the papers; none if they cannot be read."""
        return self._entries[0]

    @property
    def bibliography_problem(self) -> str:
        """Why they cannot be read; "" if they can."""
        return self._entries[1]

    def text(self, name: str) -> str:
        """A file as text, "" if it was not copied."""
        path = self.tree / name
        if name in self.left or not path.is_file():
            return ""
        return path.read_bytes().decode("utf-8", "replace").replace("\r\n", "\n")

    def relative(self, path: Path) -> str:
        """The name of a copied file, as the team knows it."""
        return path.relative_to(self.tree).as_posix()

    def is_kit(self, name: str) -> bool:
        """Whether a file is one of the kit, to the letter."""
        path = self.tree / name
        return path.is_file() and digest(path.read_bytes()) in self.kit.files

    def is_given(self, line: str) -> bool:
        """Whether a line of a text or a program is one that teams were given."""
        return line.strip() in self.kit.lines

    def notebooks(self) -> list[str]:
        """Names of the notebooks that are not the kit's own."""
        return [
            name
            for name in self.entries
            if name.endswith(".ipynb")
            and name not in self.left
            and not self.is_kit(name)
            and ".ipynb_checkpoints/" not in f"/{name}"
        ]


def digest(content: bytes) -> str:
    """SHA-256 of a file, whatever its ends of lines."""
    return hashlib.sha256(content.replace(b"\r\n", b"\n")).hexdigest()


@contextmanager
def copied(path: Path, course: Course, kit: Kit) -> Iterator[HandedIn]:
    """A team's repository in a temporary folder.

    Raises:
        CannotReview: it is no repository, is empty, too large, or Git cannot read it.
    """
    with tempfile.TemporaryDirectory(prefix="kdlib-review-", ignore_cleanup_errors=True) as made:
        place = Path(made).resolve()
        git = Git(place)
        _clone(path, git, course)
        commit = git("rev-parse", "--short=12", "HEAD").decode().strip()
        entries = _entries(git)
        left = _write(git, entries, course)
        git("read-tree", "HEAD")
        yield HandedIn(path, git, commit, entries, left, course, kit)


def _clone(path: Path, git: Git, course: Course) -> None:
    if not path.is_dir():
        raise CannotReview(f"{path} is no folder: give that of a team's repository")
    own = path / ".git"
    bare = all((path / name).exists() for name in ("HEAD", "objects", "refs"))
    if own.is_symlink() or own.is_file():
        raise CannotReview(f"{path}: its .git points elsewhere: clone it, and review the clone")
    if not own.is_dir() and not bare:
        raise CannotReview(f"{path} is no Git repository: give the folder that `git clone` made")
    place = own if own.is_dir() else path
    inside = [*place.iterdir(), *(place / "objects").glob("*")]
    borrows = (place / "objects" / "info" / "alternates").exists() or (place / "commondir").exists()
    if borrows or any(one.is_symlink() for one in inside):
        raise CannotReview(f"{path} borrows objects of another repository: give a full clone")
    size = sum(
        (Path(folder) / name).lstat().st_size
        for folder, _, names in os.walk(place)
        for name in names
    )
    if size > course.review.whole * MB:
        raise CannotReview(
            f"{path} has {size // MB} MB of history, at most {course.review.whole} are read"
        )
    words = ["clone", "-q", "--no-local", "--no-checkout", "--single-branch", "--no-tags"]
    words += ["--template=", f"--separate-git-dir={git.folder}"]
    try:
        git(*words, "--", str(path.resolve()), str(git.tree), seconds=300)
        git("rev-parse", "--verify", "-q", "HEAD^{commit}")
    except CannotReview as error:
        if not git.tree.is_dir():
            raise CannotReview(f"{path}: {error}") from None
        raise CannotReview(f"{path} has no commit on its branch: nothing is handed in") from None


def _entries(git: Git) -> dict[str, Entry]:
    found = {}
    for line in git("ls-tree", "-r", "-l", "-z", "--full-tree", "HEAD").split(b"\0"):
        if line:
            about, name = line.split(b"\t", 1)
            mode, _, label, size = about.split()
            length = int(size) if size.isdigit() else 0
            found[name.decode("utf-8", "surrogateescape")] = Entry(
                mode.decode(), label.decode(), length
            )
    if len(found) > MOST_FILES:
        raise CannotReview(f"it has {len(found)} files, at most {MOST_FILES} are read")
    return found


def _write(git: Git, entries: dict[str, Entry], course: Course) -> dict[str, str]:
    """Write the regular files; {name: why} of those that were left out."""
    left, wanted, total = {}, {}, 0
    for name, entry in entries.items():
        parts = PurePosixPath(name).parts
        if entry.mode == "120000":
            left[name] = "is a symbolic link"
        elif entry.mode == "160000":
            left[name] = "is another repository (a submodule)"
        elif entry.size > course.review.largest * MB:
            left[name] = f"has {entry.size // MB} MB"
        elif not _plain(name, parts):
            left[name] = "has a name that is no plain path"
        else:
            wanted[name] = entry
            total += entry.size
    if total > course.review.whole * MB:
        raise CannotReview(f"its files have {total // MB} MB, at most {course.review.whole}")
    for names in _portions(wanted):
        labels = list({wanted[name].object for name in names})
        contents = git.contents(labels, course.review.largest * MB, sys.maxsize)
        for name in names:
            path = git.tree / name
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(contents[wanted[name].object])
            except (OSError, KeyError) as error:
                left[name] = f"cannot be written ({type(error).__name__})"
    return left


def _portions(wanted: dict[str, Entry], most: int = 50 * MB) -> Iterator[list[str]]:
    """Names, in lists of files that fit into memory together."""
    names: list[str] = []
    size = 0
    for name, entry in wanted.items():
        if names and size + entry.size > most:
            yield names
            names, size = [], 0
        names.append(name)
        size += entry.size
    if names:
        yield names


def _plain(name: str, parts: tuple[str, ...]) -> bool:
    inside = not name.startswith("/") and ".." not in parts
    own = any(part.casefold().rstrip(" .") == ".git" for part in parts)
    return inside and not own and name.isprintable() and len(name) <= 250 and "\\" not in name
