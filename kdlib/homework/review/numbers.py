"""The flag about numbers that somebody typed instead of taking them from the records."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from kdlib.homework import checks
from kdlib.homework.results import Results
from kdlib.homework.review.findings import GREEN, NOTE, RED, Answer, Finding, counted, some
from kdlib.homework.review.handed_in import HandedIn
from kdlib.homework.review.text import CHECK, NO_TEXT
from kdlib.homework.typed import Decimal
from kdlib.records import Run

LEAST = 3  # significant digits: a number of fewer equals some key by chance


def unbound_numbers(handed_in: HandedIn) -> Answer:
    """Decimals that somebody typed, each judged by the first line that fits.

    1. It has the value of a setting in the team's records, and no unit of a result beside it: note.
    2. It has the value of a key, to its own digits, of which there are three or more: red.
    3. Its sentence cites an entry of the bibliography: note, a number of the literature.
    4. A percent sign, points or the word accuracy stands beside it: red.
    5. All others: note.

    Whole numbers and lengths of the layout do not count.
    """
    source = handed_in.source
    if source is None:
        return Answer.note("unbound_numbers", NO_TEXT)
    results = handed_in.report.results if handed_in.report else None
    found = []
    for line in checks.unknown(source, results) if results is not None else ():
        place, told = line.split(": ", 1)
        found.append(Finding("unbound_numbers", RED, f"no record gives it: {told}", place))
    used, entries = settings(handed_in.runs.values()), handed_in.bibliography
    told_at: dict[tuple[str, str], list[str]] = {}  # a number may be typed at several places
    for number in source.decimals:
        if handed_in.team.language == "en" and re.fullmatch(r"\d{1,3},\d{3}", number.name):
            continue  # the comma stands between thousands
        cited = [name for name in number.cites if name in entries]
        told_at.setdefault(_judged(number, used, results, cited), []).append(number.place)
    found += [
        Finding("unbound_numbers", severity, evidence, some(dict.fromkeys(places), 3))
        for (severity, evidence), places in told_at.items()
    ]
    good = Finding(
        "unbound_numbers", GREEN,
        f"{counted(len(source.keys), 'number')} from the records, no result is typed by hand",
    )  # fmt: skip
    found.sort(key=lambda one: one.severity != RED)
    return Answer.of(found, good, commands=(CHECK, "python -m kdlib report --keys"))


def _judged(
    number: Decimal, used: dict[float, str], results: Results | None, cited: list[str]
) -> tuple[str, str]:
    """(severity, evidence) of a typed decimal, by the rule of `unbound_numbers`."""
    keys = _equal(number, results)
    equal = f"; it equals {some(keys, 3)}" if keys else ""
    if number.value in used and not number.measured:
        return NOTE, f"{number.name} is a setting of the team's records: {used[number.value]}"
    if keys and number.significant >= LEAST:
        return RED, f"{number.name} is typed by hand{equal}"
    if cited:
        return NOTE, f"{number.name} stands in a sentence that cites {some(cited, 3)}{equal}"
    if number.measured:
        return RED, f"{number.name} is typed by hand{equal or '; no key has this value'}"
    return NOTE, f"{number.name} is typed by hand, with no sign that it was measured"


def _equal(number: Decimal, results: Results | None) -> list[str]:
    """Keys whose mean is this number, to its digits and whatever its sign."""
    return [
        key
        for key, one in (results.values.items() if results else ())
        if key.endswith(".mean")
        and abs(round(abs(one.mean), number.decimals) - number.value) < 1e-9
    ]


def settings(runs: Iterable[Run]) -> dict[float, str]:
    """{value: name} of all numbers in the settings and recipes of records."""
    found: dict[float, str] = {}
    for run in runs:
        for name, value in _within("method", [run.method, run.config, run.repeat]):
            found.setdefault(value, name)
    return found


def _within(name: str, content: Any) -> Iterator[tuple[str, float]]:
    """(name, value) of the numbers in JSON, however deep it nests; those in texts, too."""
    waiting = [(name, content)]
    while waiting:
        name, content = waiting.pop()
        if isinstance(content, dict):
            waiting += [(str(key), one) for key, one in content.items()]
        elif isinstance(content, list):
            waiting += [(name, one) for one in content]
        elif isinstance(content, str):
            waiting += [(name, float(one)) for one in re.findall(r"\d+(?:\.\d+)?", content[:1000])]
        elif type(content) in (int, float) and abs(content) < 1e9:
            yield name, float(content)
