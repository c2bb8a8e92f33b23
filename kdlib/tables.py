"""Measured numbers and tables: text in a terminal, HTML in a notebook.

What a machine measured carries a mark: the sign "≈" in plain text, an element of class "measured"
in HTML, where a reader sees the number alone. Strict notebook tests mask both, and then compare
the numbers within the room that each carries in its display's metadata (`numbers`). What follows
from the code alone (parameter counts, FLOPs) has no mark.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from kdlib.engine.console import say as display

Numbers = tuple[tuple[float, float | None], ...]  # values, each with its room

CLOSE = re.compile("≈ ?(not shown|holds|not beyond|beyond)")
NEARLY = " (≈ close)"
MARKED = re.compile(r"≈ ?([-+−]?\d+(?:,\d{3})*(?:\.\d+)?(?:[eE][-+]?\d+)?)")


class Interval(NamedTuple):
    """A mean with its 95 % confidence interval."""

    mean: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2

    @property
    def numbers(self) -> Numbers:
        """Mean and ends, each with its room.

        Another processor redraws the noise between seeds. With five seeds a mean then stays within
        six half-widths and an end within eight, but for one in 100,000 (Student's t; `strict` takes
        the larger half-width of the two runs).
        """
        half = self.half_width
        return ((self.mean, 6 * half), (self.low, 8 * half), (self.high, 8 * half))


class Mark(str):
    """Text of measured numbers, with the numbers themselves and the room of each."""

    numbers: Numbers = ()

    @classmethod
    def of(cls, text: str, numbers: Iterable[tuple[float, float | None]]) -> Mark:
        mark = cls(text)
        mark.numbers = tuple(numbers)
        return mark


def approx(
    value: float, digits: int = 1, *, sign: bool = False, unit: str = "", room: float | None = None
) -> Mark:
    """A measured number as text, e.g. "≈ +2.7 points".

    Args:
        room: how far the number may lie from a stored one; None: it is not compared.
    """
    text = f"{value:+,.{digits}f}" if sign else f"{value:,.{digits}f}"
    return Mark.of(f"≈ {text}{' ' if unit else ''}{unit}", [(float(value), room)])


def decimals(value: Interval) -> int:
    """Decimals, 1 to 4, that show the width of an interval and on which side of 0 its ends lie."""
    least = min(abs(part) for part in (value.low, value.high))
    for digits in range(1, 4):
        step = 10.0**-digits
        if value.half_width >= 1.5 * step and (least >= step / 2 or least == 0):
            return digits
    return 4 if value.half_width else 1


def approx_interval(value: Interval, digits: int | None = None, *, sign: bool = False) -> Mark:
    """A mean with its interval as text, e.g. "≈ 92.7 [≈ 92.1, ≈ 93.3]".

    Each of the three numbers carries its room. `digits` after the point; default: `decimals`.
    """
    digits = decimals(value) if digits is None else digits
    mean, low, high = (approx(part, digits, sign=sign) for part in value)
    return Mark.of(f"{mean} [{low}, {high}]", value.numbers)


def as_html(text: str) -> str:
    """Text as HTML; a marked number becomes an element of class "measured", without its sign.

    A word that may turn on another machine becomes one of class "close".
    """
    page = MARKED.sub(r'<span class="measured">\1</span>', html.escape(text, quote=False))
    page = CLOSE.sub(r'<span class="close">\1</span>', page)
    return page.replace(NEARLY, '<span class="close"> (close)</span>')


def numbers_of(parts: Iterable[Any]) -> list[list[float | None]]:
    """The numbers of all marks among `parts`, as JSON values; None where one is not finite."""
    pairs = [pair for part in parts for pair in getattr(part, "numbers", ())]
    return [[one if one is None or math.isfinite(one) else None for one in pair] for pair in pairs]


def say(*parts: Any) -> None:
    """Like `print`, for lines with measured numbers: a reader of the notebook sees them clean."""
    text = " ".join(map(str, parts))
    display(text, html=f"<div>{as_html(text)}</div>", measured=numbers_of(parts))


class Table:
    """Rows of equal keys: HTML in a notebook, aligned text in a terminal.

    A `folded` one shows its caption, and opens at a click.
    """

    def __init__(
        self, rows: Sequence[Mapping[str, Any]], caption: str = "", *, folded: bool = False
    ) -> None:
        self.columns = list(dict.fromkeys(name for row in rows for name in row))
        self.cells = [[_cell(row.get(name, "")) for name in self.columns] for row in rows]
        self.caption, self.folded = caption, folded
        self.data: dict[str, Any] = {}  # further metadata of its display

    def __repr__(self) -> str:
        lines = [self.columns, *self.cells]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
        text = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip()
            for line in lines
        ]
        text.insert(1, "-" * (sum(widths) + 2 * (len(widths) - 1)))
        return "\n".join(([self.caption] if self.caption else []) + text)

    def _repr_html_(self) -> str:
        def row(cells: Sequence[str], tag: str) -> str:
            style = ' style="text-align: left"'
            return (
                "<tr>"
                + "".join(f"<{tag}{style}>{as_html(cell)}</{tag}>" for cell in cells)
                + "</tr>"
            )

        title = html.escape(self.caption)
        caption = f"<caption>{title}</caption>" if self.caption and not self.folded else ""
        head, body = row(self.columns, "th"), "\n".join(row(line, "td") for line in self.cells)
        page = f"<table>{caption}\n<thead>{head}</thead>\n<tbody>\n{body}\n</tbody></table>"
        return f"<details><summary>{title}</summary>{page}</details>" if self.folded else page

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict, dict]:
        """Both forms, and the numbers with their rooms as metadata."""
        measured = numbers_of(cell for line in self.cells for cell in line)
        forms = {"text/plain": repr(self), "text/html": self._repr_html_()}
        return forms, {"kdlib": {"measured": measured} | self.data}


def table(rows: Sequence[Mapping[str, Any]], caption: str = "") -> Table:
    """A table of `rows`; measured floats become "≈" numbers, integers stay exact."""
    if not rows:
        raise ValueError("rows must not be empty")
    return Table(rows, caption)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Interval):
        return approx_interval(value)
    if isinstance(value, (float, np.floating)):
        number = float(value)
        return approx(number, 1 if abs(number) >= 10 else 2)
    if isinstance(value, (int, np.integer)):
        return f"{value:,}"
    return value if isinstance(value, Mark) else str(value)
