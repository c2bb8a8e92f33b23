"""The flag about code that two teams have in common, beside what both were given."""

from __future__ import annotations

import importlib.util
import io
import itertools
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdlib.homework.course import Course
from kdlib.homework.review import cells
from kdlib.homework.review.findings import GREEN, RED, Answer, Finding, Passage, Table, counted
from kdlib.homework.review.handed_in import MB, HandedIn, Kit, digest

K, WINDOW = 25, 1  # signs of filtered code: the shortest that counts, and no matches are left out
EVERY = 5.0  # seconds between two words about the progress
MOST_CODE = 2 * MB  # of one team
CODE = (".py", ".ipynb")
NEEDS = "similarity needs copydetect: `pip install 'kdlib[review]'`"


@dataclass(frozen=True)
class Program:
    """All code of a team as one text.

    Attributes:
        name: of the team, as the pages show it.
        text: of its files, one behind the other.
        starts: (first line, file) of each, from 0.
    """

    name: str
    text: str
    starts: tuple[tuple[int, str], ...]

    def place(self, first: int, last: int) -> str:
        """Team, file and lines, from 1, of a range of lines."""
        start, file = max(one for one in self.starts if one[0] <= first)
        return f"{self.name}: {file}:{first - start + 1}-{last - start + 1}"

    def cut(self, ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        """Ranges of signs, none of which goes over the end of a file."""
        lengths = itertools.accumulate(map(len, self.text.splitlines(keepends=True)), initial=0)
        offsets = list(lengths)
        edges = [offsets[line] for line, _ in self.starts] + [len(self.text)]
        return [
            (max(start, first), min(end, last))
            for start, end in ranges
            for first, last in itertools.pairwise(edges)
            if max(start, first) < min(end, last)
        ]


@dataclass(frozen=True)
class Pair:
    """Two teams, how much of each is in the other (in percent), and the common passages."""

    left: Program
    right: Program
    shares: tuple[float, float]
    passages: tuple[Passage, ...]

    @property
    def share(self) -> float:
        """The larger of the two."""
        return max(self.shares)

    def seen_by(self, name: str) -> Pair:
        """The same with this team on the left."""
        if self.left.name == name:
            return self
        turned = tuple(
            Passage(one.right, one.right_text, one.left, one.left_text) for one in self.passages
        )
        return Pair(self.right, self.left, self.shares[::-1], turned)


def missing() -> str:
    """Why pairs cannot be compared here; "" if they can."""
    return "" if importlib.util.find_spec("copydetect") else NEEDS


def program(handed_in: HandedIn, name: str) -> Program:
    """A team's code without the kit's own files, notebooks turned into code."""
    wanted = [
        file
        for file in sorted(handed_in.entries)
        if file.endswith(CODE) and file not in handed_in.left and not handed_in.is_kit(file)
    ]
    return _joined(name, {file: (handed_in.tree / file).read_bytes() for file in wanted})


def of_folder(folder: Path, name: str, kit: Kit) -> Program:
    """The code of a folder that is no repository to be reviewed, for example of an earlier year."""
    files = {}
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in inside.parts)
        if hidden or path.is_symlink() or path.suffix not in CODE or not path.is_file():
            continue
        content = path.read_bytes() if path.stat().st_size <= MOST_CODE else b""
        if digest(content) not in kit.files:
            files[inside.as_posix()] = content
    return _joined(name, files)


def _joined(name: str, files: Mapping[str, bytes]) -> Program:
    parts, starts, line, size = [], [], 0, 0
    for file, content in files.items():
        text = content.decode("utf-8", "replace").replace("\r\n", "\n")
        text = (cells.code(content) if file.endswith(".ipynb") else text).rstrip() + "\n"
        size += len(text)
        if size > MOST_CODE:
            break
        starts.append((line, file))
        parts.append(text)
        line += text.count("\n")
    return Program(name, "".join(parts), tuple(starts))


def compare(
    programs: Sequence[Program], kit: Kit, course: Course, say: Callable[[str], None]
) -> list[Pair]:
    """All pairs of teams, the most alike first.

    Args:
        programs: of the teams.
        kit: what is subtracted.
        course: whose thresholds hold.
        say: is told at times how far it is.

    Raises:
        ModuleNotFoundError: copydetect is missing.
    """
    from copydetect import compare_files

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an empty program
        given = np.unique(
            np.concatenate(
                [np.array([], dtype=np.int64)]
                + [np.fromiter(_print(text, None).hashes, np.int64) for text in kit.codes]
            )
        )
        prints = [_print(one.text, given) for one in programs if one.text.strip()]
    known = [one for one in programs if one.text.strip()]
    found: list[Pair] = []
    count, told = len(known) * (len(known) - 1) // 2, time.monotonic()
    if count:
        say(f"comparing the code of {len(known)} teams: {counted(count, 'pair')}")
    for (left, one), (right, other) in itertools.combinations(zip(known, prints), 2):
        if time.monotonic() - told > EVERY:
            say(f"  {len(found)} of {count}")
            told = time.monotonic()
        _, shares, slices = compare_files(one, other)
        first, second = (100 * min(1.0, float(share)) for share in shares)
        passages: tuple[Passage, ...] = ()
        if max(first, second) >= course.review.similar:
            passages = _passages(left, right, slices, course.review.passages)
        found.append(Pair(left, right, (first, second), passages))
    return sorted(found, key=lambda pair: -pair.share)


def _print(text: str, given: Any) -> Any:
    from copydetect import CodeFingerprint

    return CodeFingerprint("code.py", K, WINDOW, boilerplate=given, fp=io.StringIO(text))


def _passages(left: Program, right: Program, slices: Any, most: int) -> tuple[Passage, ...]:
    """The longest passages of the left that the right has, each beside what it fits best."""
    from copydetect import compare_files

    other = _print(right.text, None)
    found = []
    for start, end in sorted(left.cut(_ranges(slices[0])), key=lambda one: one[0] - one[1])[:most]:
        _, _, (_, theirs) = compare_files(_print(left.text[start:end], None), other)
        best = max(right.cut(_ranges(theirs)), key=lambda one: one[1] - one[0], default=None)
        if best is not None:
            found.append(Passage(*_lines(left, start, end), *_lines(right, *best)))
    return tuple(found)


def _ranges(slices: Any) -> list[tuple[int, int]]:
    """(start, end) in signs, of what copydetect returns."""
    parts = np.asarray(slices, dtype=int).reshape(2, -1)
    return list(zip(parts[0].tolist(), parts[1].tolist()))


def _lines(of: Program, start: int, end: int) -> tuple[str, str]:
    """(place, text) of a range of signs, widened to whole lines."""
    first = of.text.count("\n", 0, start)
    last = max(first, of.text.count("\n", 0, max(start, end - 1)))
    return of.place(first, last), "\n".join(of.text.splitlines()[first : last + 1]).strip("\n")


def answer(name: str, pairs: Sequence[Pair], course: Course, problem: str = "") -> Answer:
    """What the pairs say about one team."""
    if problem:
        return Answer.note("similarity", problem)
    own = [pair.seen_by(name) for pair in pairs if name in (pair.left.name, pair.right.name)]
    if not own:
        return Answer.note("similarity", "there is no other code to compare with")
    found = []
    passages: list[Passage] = []
    for pair in own:
        if pair.share >= course.review.similar:
            evidence = (
                f"{pair.shares[0]:.0f} % of the code of {name} is in that of {pair.right.name}, "
                f"{pair.shares[1]:.0f} % the other way round"
            )
            found.append(Finding("similarity", RED, evidence, _first(pair)))
            passages += pair.passages
    good = Finding(
        "similarity", GREEN,
        f"at most {own[0].share:.0f} % of the code is in another team's ({len(own)} compared)",
    )  # fmt: skip
    return Answer.of(
        found, good, tables=(ranking(own),), passages=tuple(passages[: course.review.passages])
    )


def _first(pair: Pair) -> str:
    """Where the longest common passage stands on the left, without the name of the team."""
    return pair.passages[0].left.removeprefix(f"{pair.left.name}: ") if pair.passages else ""


def ranking(pairs: Sequence[Pair], most: int = 10) -> Table:
    """The pairs that are most alike, as a table."""
    rows = tuple(
        (one.left.name, one.right.name, *(f"{share:.0f} %" for share in one.shares))
        for one in pairs[:most]
    )
    head = ("team", "other team", "of the team", "of the other")
    return Table("Common code without that of the kit; names of variables do not count", head, rows)
