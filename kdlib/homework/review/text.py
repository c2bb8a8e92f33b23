"""Flags about the report: its length, its numbers, its sources, its sections, its figures."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from kdlib.homework import checks, sources
from kdlib.homework.results import Results
from kdlib.homework.review.findings import GREEN, NOTE, RED, Answer, Finding, Table, some
from kdlib.homework.review.handed_in import HandedIn
from kdlib.homework.sources import Found
from kdlib.homework.team import FILE

NO_TEXT = f"there is no text that can be read: {sources.TYPST} or {sources.LATEX}"
CHECK = "python -m kdlib report --check"


def unbound_numbers(handed_in: HandedIn) -> Answer:
    """Numbers that somebody typed, with the keys whose values they are."""
    source, found = handed_in.source, []
    if source is None:
        return Answer.note("unbound_numbers", NO_TEXT)
    results = handed_in.report.results if handed_in.report else None
    if results is not None:
        for line in checks.unknown(source, results):
            place, told = line.split(": ", 1)
            found.append(Finding("unbound_numbers", RED, f"no record gives it: {told}", place))
    measured = {(one.name, one.place) for one in source.typed}
    rows, settings = [], 0
    for number in source.decimals:
        if handed_in.team.language == "en" and re.fullmatch(r"\d{1,3},\d{3}", number.name):
            continue  # the comma stands between thousands
        keys = _equal(number.name, results)
        result = _significant(number.name) >= 3 and bool(keys)
        if result or (number.name, number.place) in measured:
            found.append(_typed(number, keys))
        else:
            settings += 1
            rows.append((number.place, number.name))
    if settings:
        told_settings = "decimal that stands" if settings == 1 else "decimals that stand"
        found.append(
            Finding(
                "unbound_numbers", NOTE,
                f"{settings} typed {told_settings} for no percentage and no result of three "
                "digits: settings, most likely",
            )
        )  # fmt: skip
    good = Finding(
        "unbound_numbers", GREEN,
        f"{len(source.keys)} numbers come from the records, no result is typed by hand",
    )  # fmt: skip
    tables = (Table("Other typed decimals", ("place", "number"), tuple(rows)),) if rows else ()
    return Answer.of(
        found, good, tables=tables, commands=(f"{CHECK}", "python -m kdlib report --keys")
    )


def _typed(number: Found, keys: list[str]) -> Finding:
    equal = f"it equals {some(keys, 3)}" if keys else "no key has this value"
    return Finding("unbound_numbers", RED, f"{number.name} is typed by hand; {equal}", number.place)


def _significant(number: str) -> int:
    return len(re.sub(r"\D", "", number).lstrip("0"))


def _equal(number: str, results: Results | None) -> list[str]:
    """Keys whose mean is this number, to its digits and whatever its sign."""
    value, digits = float(number.replace(",", ".")), len(re.split("[.,]", number)[1])
    return [
        key
        for key, one in (results.values.items() if results else ())
        if key.endswith(".mean") and abs(round(abs(one.mean), digits) - value) < 1e-9
    ]


def sources_(handed_in: HandedIn) -> Answer:
    """Citations without an entry, foreign files, and declarations without a link."""
    found, source = [], handed_in.source
    bibliography: set[str] = set()
    try:
        bibliography = sources.bibliography(handed_in.folder / sources.BIBLIOGRAPHY)
    except ValueError as error:
        found.append(Finding("sources", RED, str(error), sources.BIBLIOGRAPHY))
    if source is not None:
        results = handed_in.report.results if handed_in.report else None
        for line in checks.uncited(source, results, bibliography):
            place, told = line.split(": ", 1)
            if results is not None or not re.match("'(table|figure)-", told):
                found.append(Finding("sources", RED, told, place))
    found += _undeclared(handed_in)
    for one in handed_in.team.sources:
        what, origin = (part.of(handed_in.team.language) for part in (one.what, one.origin))
        if not _leads(f"{what} {origin}", bibliography):
            found.append(
                Finding("sources", RED, f"{what!r} comes from {origin!r}: no link, no paper", FILE)
            )
    declared = len(handed_in.team.sources)
    good = Finding(
        "sources", GREEN,
        f"{declared} declared source{'s' * (declared != 1)}, {len(bibliography)} entries in "
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
        holders = [
            re.sub(r'\\n.*|[",]*$', "", one).strip(" .*#/")
            for one in _COPYRIGHT.findall(handed_in.text(name)[:20_000])
        ]
        foreign = [one for one in holders if not any(who in one for who in own if who)]
        above = [f"{part}/".casefold() for part in map(str, path.parents) if part != "."]
        named = (name, path.name, *above, *_words(foreign))
        if foreign and not any(
            re.search(rf"(?<!\w){re.escape(one.casefold())}", said) for one in named
        ):
            yield Finding(
                "sources", RED,
                f"it carries the copyright of {foreign[0]!r}, and {FILE} does not declare it", name,
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
    return answer._replace(findings=(*answer.findings, *notes), commands=(CHECK,))


def _section(handed_in: HandedIn, flag: str, name: str) -> Answer:
    source = handed_in.source
    if source is None:
        return Answer.note(flag, NO_TEXT)
    bodies = {one.name: body for one, body in zip(source.sections, source.bodies)}
    places = {one.name: one.place for one in source.sections}
    if name not in bodies:
        bodies |= dict(_below_heading(handed_in, name))
        places[name] = source.main
    if name not in bodies:
        return Answer((Finding(flag, RED, f"section {name!r} is missing", source.main),))
    count = len(re.findall(r"\w{2,}", bodies[name]))
    if count < handed_in.course.review.words:
        return Answer((Finding(flag, RED, f"section {name!r} is empty", places[name]),))
    numbers = len(re.findall(r"\bresult\b", bodies[name]))
    evidence = f"section {name!r} has {count} words; numbers from the records in it: {numbers}"
    return Answer((Finding(flag, GREEN, evidence, places[name]),))


_HEADING = re.compile(r"(?m)^=+[ \t]+(.+)$|\\(?:sub)*section\*?\{([^}]*)\}")
_CALLED = {
    "conclusions": r"conclusion|вывод|заключени",
    "failures": r"did not work|fail|negative result|не получил|не сработал|неудач",
}


def _below_heading(handed_in: HandedIn, name: str) -> Iterator[tuple[str, str]]:
    """(name, text) below an ordinary heading of this meaning, in reports of another layout."""
    text = handed_in.text(handed_in.relative(handed_in.main)) if handed_in.main else ""
    found = list(_HEADING.finditer(text))
    for one, following in itertools.zip_longest(found, found[1:]):
        if re.search(_CALLED[name], one[1] or one[2], re.IGNORECASE):
            yield name, text[one.end() : following.start() if following else len(text)]


def figures(handed_in: HandedIn) -> Answer:
    """Figures are there, and the text speaks of each."""
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
    count = len(source.figures)
    good = Finding(
        "figures", GREEN,
        f"{count} figure{'s' * (count != 1)}, all referred to in the text",
    )  # fmt: skip
    return Answer.of(found, good)


def _called(figure: Found) -> str:
    return f"figure {figure.name!r}" if figure.name else "a figure without a label"
