"""Who wrote what: commits, and the lines that files did not have before."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from kdlib.homework.review import cells
from kdlib.homework.review.handed_in import MB, Git, HandedIn


@dataclass
class Work:
    """Of one person.

    Attributes:
        name: as the commits say.
        commits: as author or co-author, merges aside.
        lines: {file: new lines in it}; those of several authors are shared equally.
    """

    name: str
    commits: int = 0
    lines: dict[str, float] = field(default_factory=dict)

    @property
    def total(self) -> float:
        """New lines in all files."""
        return sum(self.lines.values())

    def add(self, lines: Mapping[str, float], share: float = 1.0) -> None:
        """Add this part of {file: new lines in it}."""
        for name, count in lines.items():
            self.lines[name] = self.lines.get(name, 0.0) + share * count


def canonical(git: Git, people: list[tuple[str, str]]) -> list[str]:
    """The addresses of (name, address), in lower case, as `.mailmap` maps them."""
    if not people:
        return []
    asked = [
        f"{re.sub(r'[<>]', '', ' '.join(name.split()))} <{re.sub(r'[<>]', '', address)}>"
        for name, address in people
    ]
    text = "\n".join(asked).encode("utf-8", "replace") + b"\n"
    answer = git("check-mailmap", "--stdin", text=text).decode("utf-8", "replace")
    return [re.sub(r".*<(.*)>$", r"\1", line).casefold() for line in answer.split("\n")[:-1]]


def read(handed_in: HandedIn) -> dict[str, Work]:
    """{address: work} of everybody in the history of the reviewed commit.

    A changed line counts once, as it reads afterwards, in equal parts for the authors of its
    commit. Links, blank lines, lines that moved within a commit, lines of the kit and files that
    programs write do not count; notebooks count by the sources of their cells.
    """
    found: dict[str, Work] = {}
    rules = handed_in.course.review
    for people, files in _commits(handed_in.git, rules.commits):
        lines = _new_lines(handed_in, files)
        for address, name in people.items():
            work = found.setdefault(address, Work(name))
            work.commits += 1
            work.add(lines, 1 / len(people))
    return found


def _commits(git: Git, most: int) -> Iterator[tuple[dict[str, str], list[tuple[str, str, str]]]]:
    """({address: name}, [(old object, new object, file)]) of each commit that is no merge."""
    form = "%H%x00%aN%x00%aE%x00%(trailers:key=Co-authored-by,valueonly,unfold)"
    raw = git("log", "--no-merges", "-z", f"-{most}", f"--format=tformat:{form}", "HEAD")
    fields = raw.decode("utf-8", "replace").split("\0")
    commits = [tuple(fields[place : place + 4]) for place in range(0, len(fields) - 3, 4)]
    asked, owners = [], []
    for label, name, address, others in commits:
        people = [(name, address), *re.findall(r"(?m)^\s*(.*?)\s*<([^<>\n]*)>\s*$", others)]
        asked += people
        owners += [label] * len(people)
    people_of: dict[str, dict[str, str]] = {label: {} for label, *_ in commits}
    for label, (name, _), address in zip(owners, asked, canonical(git, asked), strict=True):
        people_of[label].setdefault(address, name)
    words = ("diff-tree", "--stdin", "-r", "--root", "-z", "--raw", "--no-renames", "--no-abbrev")
    listed = "\n".join(people_of).encode() + b"\n"
    tokens = git(*words, text=listed).decode("utf-8", "surrogateescape").split("\0")
    files: dict[str, list[tuple[str, str, str]]] = {label: [] for label in people_of}
    label, place = "", 0
    while place < len(tokens):
        token = tokens[place].strip("\n")
        if token.startswith(":"):
            before, after, old, new, _ = token.split()
            old, new = (_of_file(*one) for one in ((before.lstrip(":"), old), (after, new)))
            files[label].append((old, new, tokens[place + 1]))
            place += 1
        elif token:
            label = token
        place += 1
    for label in people_of:
        yield people_of[label], files[label]


def _of_file(mode: str, label: str) -> str:
    """The object of a regular file; zeros for a link, whose content is the name of another file."""
    return label if mode.startswith("100") else "0" * len(label)


def _new_lines(handed_in: HandedIn, files: list[tuple[str, str, str]]) -> Counter[str]:
    """{file: lines that none of the changed files had before the commit}."""
    rules = handed_in.course.review
    counted = [
        one for one in files
        if PurePosixPath(one[2]).suffix in rules.source and not is_made(one[2], rules.made)
    ]  # fmt: skip
    objects = {label for old, new, _ in counted for label in (old, new) if label.strip("0")}
    contents = handed_in.git.contents(sorted(objects), rules.largest * MB)
    gone: Counter[str] = Counter()
    for old, _, name in counted:
        gone.update(source_lines(name, contents.get(old, b"")))
    found: Counter[str] = Counter()
    for _, new, name in counted:
        for line in source_lines(name, contents.get(new, b"")):
            if gone[line] > 0:
                gone[line] -= 1
            elif line not in handed_in.kit.lines:
                found[name] += 1
    return found


def is_made(name: str, made: tuple[str, ...]) -> bool:
    """Whether a program wrote a file: its name, or one of the folders above it, is listed."""
    path = PurePosixPath(name)
    above = {f"{part}/" for part in path.parts[:-1]}
    return bool(above & set(made)) or path.name in made


def source_lines(name: str, content: bytes) -> list[str]:
    """The lines of a source without the spaces at their ends; of a notebook, those of its cells."""
    if name.endswith(".ipynb"):
        texts = [cell.source for cell in cells.read(content)]
    else:
        texts = [content.decode("utf-8", "replace")]
    return [line.strip() for text in texts for line in text.splitlines() if line.strip()]
