"""Decimals that somebody typed into a report, each with what its sentence says about it."""

from __future__ import annotations

import bisect
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple


class Decimal(NamedTuple):
    """A typed decimal.

    Attributes:
        name: as it is written, "92.7" or "92,7".
        place: "report.typ:12".
        measured: whether a percent sign, points or the word accuracy stands beside it.
        cites: what the same sentence cites; labels of figures and tables may be among them.
    """

    name: str
    place: str
    measured: bool
    cites: tuple[str, ...]

    @property
    def value(self) -> float:
        """The number."""
        return float(self.name.replace(",", "."))

    @property
    def decimals(self) -> int:
        """Digits behind the point."""
        return len(re.split("[.,]", self.name)[1])

    @property
    def significant(self) -> int:
        """Digits without the zeros before the first other one."""
        return len(re.sub(r"\D", "", self.name).lstrip("0"))


# No part of a version or a range of names, and no length of the layout.
_NUMBER = re.compile(
    r"(?<![\w.,])(?<!width:)(?<!width: )(?<!height:)(?<!height: )(\d+[.,]\d+)(?![\d]*[.,]\d|\d)"
    r"(?!\s*(?:em|ex|pt|cm|mm|in|fr)\b|\\(?:line|text|column)(?:width|height))"
)
_SPACE = r"(?:[\s~$]|\\[,;: ])*"
_SPREAD = rf"(?:{_SPACE}(?:±|\\pm|plus\.minus|\[[\d.,;\s−–-]*\]|\([\d.,;\s−–-]*\))[\d.,]*)?[\])]?"
_BEHIND = re.compile(
    _SPREAD + _SPACE + r"(?:\\?%|percent|points?\b|п\.[\s~]*п\.|процент|"
    r"(?:test |validation |top-?1 )?accurac|точност)",
    re.IGNORECASE,
)
_BEFORE = re.compile(
    rf"(?:accurac(?:y|ies)|точност\w*)(?:{_SPACE}(?:of|is|was|в|[=:—-]))?{_SPACE}$",
    re.IGNORECASE,
)
# The end of a sentence, with citations behind its full stop; of a paragraph, an item, a row.
_CITATIONS = r"(?:\s+@[\w:.-]*\w|\s*#cite\([^)\n]*\)|[\s~]*\\\w*cite\w*\{[^}\n]*\})*"
_END = re.compile(
    rf"[.!?…][)\]\"»”]*{_CITATIONS}\s+(?=[A-ZА-ЯЁ*#\\]|@[\w:.-]+\s+[a-zа-яё])"
    r"|\n\s*\n|\n\s*(?:[-+=]|\\item)|\\\\"
)


def find(
    text: str, cited: Sequence[tuple[str, int]], where: Callable[[int], str]
) -> tuple[Decimal, ...]:
    """All typed decimals of a text.

    Args:
        text: of the report, without comments.
        cited: (name, position) of its citations.
        where: the place of a position.
    """
    ends = [found.end() for found in _END.finditer(text)]
    sentences = [bisect.bisect_right(ends, position) for _, position in cited]
    return tuple(
        Decimal(
            name=found[1],
            place=where(found.start(1)),
            measured=bool(
                _BEHIND.match(text, found.end())
                or _BEFORE.search(text[max(0, found.start() - 40) : found.start()])
            ),
            cites=tuple(
                name
                for (name, _), sentence in zip(cited, sentences)
                if sentence == bisect.bisect_right(ends, found.start())
            ),
        )
        for found in _NUMBER.finditer(text)
    )
