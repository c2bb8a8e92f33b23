"""Flags about the report: its length, its numbers, its sources, its sections, its figures."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from kdlib.homework import checks, sources
from kdlib.homework.review.findings import GREEN, NOTE, RED, Answer, Finding, counted, some
from kdlib.homework.review.handed_in import HandedIn
from kdlib.homework.sources import Found
from kdlib.homework.team import FILE

NO_TEXT = f"there is no text that can be read: {sources.TYPST} or {sources.LATEX}"
CHECK = "python -m kdlib report --check"


def sources_(handed_in: HandedIn) -> Answer:
    """Citations without an entry, foreign files, and declarations without a link."""
    found, source = [], handed_in.source
    bibliography = handed_in.bibliography
    if handed_in.bibliography_problem:
        found.append(Finding("sources", RED, handed_in.bibliography_problem, sources.BIBLIOGRAPHY))
    elif source is not None:
        for line in checks.uncited(source, bibliography):
            place, told = line.split(": ", 1)
            found.append(Finding("sources", RED, told, place))
    found += _undeclared(handed_in)
    for one in handed_in.team.sources:
        what, origin = (part.of(handed_in.team.language) for part in (one.what, one.origin))
        if not _leads(f"{what} {origin}", bibliography):
            evidence = f"{what!r} comes from {origin!r}: no link, no paper"
            found.append(Finding("sources", RED, evidence, f"{FILE}:{one.line}"))
    declared = len(handed_in.team.sources)
    good = Finding(
        "sources", GREEN,
        f"{counted(declared, 'declared source')}, {counted(len(bibliography), 'paper')} in "
        f"{sources.BIBLIOGRAPHY}; no citation is without an entry",
    )  # fmt: skip
    return Answer.of(found, good, commands=(CHECK,))


_LINK = re.compile(
    r"https?://|www\.|\bdoi\b|\b10\.\d{4,}/|arxiv|github\.com|gitlab|\bkdlib\b", re.I
)


def _leads(text: str, bibliography: set[str]) -> bool:
    """Whether a declaration says where: a link, a DOI, the kit, or a paper that is cited."""
    if _LINK.search(text):
        return True
    said = text.casefold()
    parts = [re.findall(r"[^\W\d_]+|\d+", key.casefold()) for key in bibliography]
    return any(
        key.casefold() in said or (len(part) > 1 and all(word in said for word in part))
        for key, part in zip(bibliography, parts)
    )


_COPYRIGHT = re.compile(
    r"(?:copyright\s*(?:\(c\)|©|:)|copyright(?=\s+(?:by\s+)?\d{4})|©|SPDX-FileCopyrightText:)"
    r"\s*([^\n]{2,80})",
    re.I,
)
_LICENCE = ("LICENSE", "LICENCE", "COPYING", "NOTICE")
_SCANNED = (".py", ".ipynb", ".c", ".cpp", ".cu", ".h", ".js", ".rs", ".sh", ".m", ".lua", ".R")


def _undeclared(handed_in: HandedIn) -> Iterator[Finding]:
    """Files that carry the copyright of somebody else, and that team.toml does not name."""
    language = handed_in.team.language
    own = [part for m in handed_in.team.members for part in (m.name.en, m.name.ru)]
    own += [handed_in.team.name.en, handed_in.team.name.ru]
    said = " ".join(
        part.of(language) for one in handed_in.team.sources for part in (one.what, one.origin,
                                                                         one.changed)
    ).casefold()  # fmt: skip
    for name in handed_in.entries:
        path = PurePosixPath(name)
        licence = path.name.upper().startswith(_LICENCE) and len(path.parts) > 1
        if not (licence or path.suffix in _SCANNED) or handed_in.is_kit(name):
            continue
        text = handed_in.text(name)[:20_000]
        holders = {
            re.sub(r'\\n.*|[",]*$', "", one[1]).strip(" .*#/"): text.count("\n", 0, one.start()) + 1
            for one in reversed(list(_COPYRIGHT.finditer(text)))
        }
        foreign = [one for one in reversed(holders) if not any(who in one for who in own if who)]
        above = [f"{part}/".casefold() for part in map(str, path.parents) if part != "."]
        named = (name, path.name, *above, *_words(foreign))
        if foreign and not any(
            re.search(rf"(?<!\w){re.escape(one.casefold())}", said) for one in named
        ):
            yield Finding(
                "sources", RED,
                f"it carries the copyright of {foreign[0]!r}, and {FILE} does not declare it",
                f"{name}:{holders[foreign[0]]}",
            )  # fmt: skip


def _words(holders: list[str]) -> Iterator[str]:
    """Names in a line of copyright that may stand in a declaration."""
    for one in holders:
        yield from re.findall(r"[^\W\d_]{4,}", re.sub(r"(?i)all rights reserved|authors?", "", one))


def failed_attempts(handed_in: HandedIn) -> Answer:
    """What was tried and did not work is written down."""
    return _section(handed_in, "failed_attempts", "failures")


def conclusions(handed_in: HandedIn) -> Answer:
    """Conclusions are drawn; what else a report lacks is noted here."""
    answer = _section(handed_in, "conclusions", "conclusions")
    source = handed_in.source
    if source is None:
        return Answer((Finding("conclusions", RED, NO_TEXT),))
    own = {"conclusions", "failures"}
    told = [
        line
        for line in checks.structure(source)
        if not any(f"section {name!r} is missing" in line for name in own)
    ]
    rest = [name for name in checks.OWN_TEXT if name not in own]
    told += checks.empty(source, rest, handed_in.course.review.words)
    notes = [
        Finding("conclusions", NOTE, line.split(": ", 1)[1], line.split(": ", 1)[0])
        for line in told
    ]
    given = [
        one for one, body in zip(source.sections, source.bodies)
        if one.name in rest and _count(body) and not _count(_own(handed_in, body))
    ]  # fmt: skip
    if given:
        evidence = f"the starter's text, unchanged: {some((one.name for one in given), 12)}"
        notes.append(Finding("conclusions", NOTE, evidence, given[0].place))
    return answer._replace(findings=(*answer.findings, *notes), commands=(CHECK,))


def _count(text: str) -> int:
    return len(re.findall(r"\w{2,}", text))


def _own(handed_in: HandedIn, text: str) -> str:
    """A text without the lines that teams were given."""
    return "\n".join(line for line in text.splitlines() if not handed_in.is_given(line))


def _section(handed_in: HandedIn, flag: str, name: str) -> Answer:
    source = handed_in.source
    if source is None:
        return Answer.note(flag, NO_TEXT)
    found = dict(_below_headings(handed_in)) | {
        one.name: (body, one.place) for one, body in zip(source.sections, source.bodies)
    }
    if name not in found:
        return Answer((Finding(flag, RED, f"section {name!r} is missing", source.main),))
    body, place = found[name]
    least, own = handed_in.course.review.words, _own(handed_in, body)
    if _count(body) < least:
        told = f"has {counted(_count(body), 'word')} only" if _count(body) else "is empty"
        return Answer((Finding(flag, RED, f"section {name!r} {told}", place),))
    if _count(own) < least:
        evidence = f"section {name!r} is the starter's text, unchanged"
        return Answer((Finding(flag, RED, evidence, place),))
    numbers = len(re.findall(r"\bresult\b", body))
    evidence = f"section {name!r} has {counted(_count(body), 'word')}"
    if _count(own) < _count(body):
        evidence += f", {_count(own)} of them not the starter's"
    evidence += f"; numbers from the records in it: {numbers}"
    return Answer((Finding(flag, GREEN, evidence, place),))


_HEADING = re.compile(r"(?m)^=+[ \t]+(.+)$|\\(?:sub)*section\*?\{([^}\n]{0,300})\}")
_CALLED = {
    "conclusions": r"conclusion|вывод|заключени",
    "failures": r"did not work|fail|negative result|не получил|не сработал|неудач",
}


def _below_headings(handed_in: HandedIn) -> Iterator[tuple[str, tuple[str, str]]]:
    """(section, (text, place)) below ordinary headings, in reports of another layout."""
    text = handed_in.text(handed_in.relative(handed_in.main)) if handed_in.main else ""
    found = list(_HEADING.finditer(text))
    for one, following in itertools.zip_longest(found, found[1:]):
        line = text.count("\n", 0, one.start()) + 1
        below = text[one.end() : following.start() if following else len(text)]
        for name, called in _CALLED.items():
            if re.search(called, one[1] or one[2], re.IGNORECASE):
                yield name, (below, f"{handed_in.main.name if handed_in.main else ''}:{line}")


def figures(handed_in: HandedIn) -> Answer:
    """Figures are there, one or more of the team's own, and the text speaks of each."""
    source = handed_in.source
    if source is None:
        return Answer.note("figures", NO_TEXT)
    if not source.figures:
        return Answer.note("figures", "the report shows no figure")
    found = [
        Finding("figures", RED, f"the text never refers to {_called(one)}", one.place)
        for one in source.figures
        if not one.name or one.name not in source.referred
    ]
    results = handed_in.report.results if handed_in.report else None
    for line in checks.unlabelled(source, results, handed_in.bibliography):
        place, told = line.split(": ", 1)
        found.append(Finding("figures", NOTE, told, place))
    given = [one for one in source.figures if _is_given(handed_in, one)]
    if given:
        evidence = f"the starter's figure, with its caption: {some(one.name for one in given)}"
        found.append(Finding("figures", NOTE, evidence, given[0].place))
        if len(given) == len(source.figures):
            return Answer(tuple(found))
    evidence = f"{counted(len(source.figures), 'figure')}, all referred to in the text"
    return Answer.of(found, Finding("figures", GREEN, evidence))


def _is_given(handed_in: HandedIn, figure: Found) -> bool:
    """Whether a figure of results stands in the text as the starter has it, caption included."""
    file, line = figure.place.rsplit(":", 1)
    text = handed_in.text(handed_in.relative(handed_in.folder / file))
    lines = text.splitlines()[int(line) - 1 : int(line) + 2]
    named = figure.name.startswith("figure-") and figure.name.removeprefix("figure-") in lines[0]
    return named and all(map(handed_in.is_given, lines))


def _called(figure: Found) -> str:
    return f"figure {figure.name!r}" if figure.name else "a figure without a label"
