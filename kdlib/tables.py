"""Measured numbers and tables: text in a terminal, HTML in a notebook.

The convention for numbers: what a machine measured carries the sign "≈" (`approx`), and strict
notebook tests mask it. What follows from the code alone (parameter counts, FLOPs) does not.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np


class Interval(NamedTuple):
    """A mean with its 95 % confidence interval."""

    mean: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2


def approx(value: float, digits: int = 1, *, sign: bool = False, unit: str = "") -> str:
    """A measured number as text, e.g. "≈ +2.7 points"."""
    text = f"{value:+,.{digits}f}" if sign else f"{value:,.{digits}f}"
    return f"≈ {text}{' ' if unit else ''}{unit}"


def approx_interval(value: Interval, digits: int = 1, *, sign: bool = False) -> str:
    """A mean with its interval as text, e.g. "≈ 92.7 [≈ 92.1, ≈ 93.3]"."""
    mean, low, high = (approx(part, digits, sign=sign) for part in value)
    return f"{mean} [{low}, {high}]"


class Table:
    """Rows of equal keys: HTML in a notebook, aligned text in a terminal."""

    def __init__(self, rows: Sequence[Mapping[str, Any]], caption: str = "") -> None:
        self.columns = list(dict.fromkeys(name for row in rows for name in row))
        self.cells = [[_cell(row.get(name, "")) for name in self.columns] for row in rows]
        self.caption = caption

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
                + "".join(f"<{tag}{style}>{html.escape(cell)}</{tag}>" for cell in cells)
                + "</tr>"
            )

        caption = f"<caption>{html.escape(self.caption)}</caption>" if self.caption else ""
        head, body = row(self.columns, "th"), "\n".join(row(line, "td") for line in self.cells)
        return f"<table>{caption}\n<thead>{head}</thead>\n<tbody>\n{body}\n</tbody></table>"


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
    return str(value)
