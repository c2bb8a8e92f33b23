"""From runs to verdicts: paired differences, 95 % intervals, and `claim`.

A claim is decided by the interval of paired differences, never by the means. Its verdict is exact
text that strict notebook tests compare to the letter; the numbers beside it carry the sign "≈" and
are masked there, because they drift between processors. So is the verdict of a claim that its
author declares close.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import stdtrit

from kdlib import inputs
from kdlib.engine.console import say
from kdlib.records import METRIC, Runs
from kdlib.tables import Interval, Table, approx_interval, table

# Another processor redraws most of the noise between seeds: between instruction sets the deciding
# end of an interval moved by about one half-width. Nearer to its threshold a "holds" is marked as
# close. A "not shown" keeps half of that, because an interval around no effect ends one half-width
# from the threshold.
MARGIN = {"holds": 1.0, "not shown": 0.5}

NEAR = " (≈ close)"  # masked in strict tests


def seeds(count: int = 5) -> list[int]:
    """The seeds that experiments use: 0, 1, ..., shifted as a block by `$KDLIB_SEED_OFFSET`."""
    text = os.environ.get("KDLIB_SEED_OFFSET", "0")
    if not text.isdecimal():
        raise ValueError(f"KDLIB_SEED_OFFSET must be a whole number of 0 or more, got {text!r}")
    return list(range(int(text), int(text) + count))


def interval(values: Sequence[float] | np.ndarray) -> Interval:
    """Mean and 95 % confidence interval of independent values (Student's t).

    Args:
        values: at least two finite numbers, one a seed.
    """
    array = np.asarray(values, dtype=float)
    if array.ndim != 1 or len(array) < 2:
        raise ValueError(
            f"values must be at least two numbers, one a seed; got shape {array.shape}"
        )
    if not np.isfinite(array).all():
        raise ValueError("values must be finite: a run failed or its metric is NaN")
    mean = float(array.mean())
    half = float(stdtrit(len(array) - 1, 0.975) * array.std(ddof=1) / math.sqrt(len(array)))
    return Interval(mean, mean - half, mean + half)


def comparison(
    runs: Runs,
    baseline: str,
    *,
    metric: str = METRIC,
    columns: Sequence[str] = (),
    caption: str = "",
) -> Table:
    """One row a method: mean with interval, and the paired difference to `baseline`.

    Args:
        columns: further metrics whose mean is shown; whole numbers are printed exactly.
    """
    rows = []
    for method in runs.methods:
        row: dict[str, Any] = {"method": method, metric: interval(runs.values(method, metric))}
        row[f"difference to {baseline}"] = (
            ""
            if method == baseline
            else approx_interval(interval(runs.paired(method, baseline, metric)), sign=True)
        )
        for name in columns:
            found = [run.metrics[name] for run in runs.of(method).values()]
            exact = all(isinstance(value, int) for value in found) and len(set(found)) == 1
            row[name.replace("_", " ")] = found[0] if exact else float(np.mean(found))
        rows.append(row)
    return table(rows, caption)


class Claim(NamedTuple):
    """A claim and its verdict: "holds" or "not shown", behind "close ≈" if its author says so."""

    text: str
    verdict: str
    shown: bool  # what the interval says here, close or not
    near: bool  # nobody declared it close, but another processor could turn it
    interval: Interval
    count: int  # type: ignore[assignment]  # of paired seeds
    unit: str
    demand: str = ""  # what the interval has to satisfy, unless that is to lie above 0

    def __str__(self) -> str:
        mean, low, high = (f"≈ {value:+.3g}" for value in self.interval)
        return (
            f"claim: {self.text} | {self.verdict}{NEAR if self.near else ''} | {mean} "
            f"{self.unit} [{low}, {high}]{self.demand}, {self.count} paired seeds"
        )

    def _ipython_display_(self) -> None:
        """Show nothing: `claim` has said the line already."""

    def as_data(self) -> dict[str, Any]:
        """The claim as JSON values, for the metadata of its display."""
        return {
            "text": self.text,
            "verdict": self.verdict,
            "shown": self.shown,
            "near": self.near,
            **self.interval._asdict(),
            "count": self.count,
            "unit": self.unit,
            "line": str(self),
        }


def claim(
    text: str,
    differences: Sequence[float] | np.ndarray,
    *,
    above: float | None = None,
    within: float | None = None,
    unit: str = "points",
    close: bool = False,
) -> Claim:
    """Say in one line that says whether a claim holds, decided by a 95 % interval.

    The claim holds if the whole interval of the mean difference lies above `above`, or, with
    `within`, inside (-within, within): "no difference that matters" has to be shown as well.
    If the interval ends near its threshold, "(≈ close)" follows the verdict: pass `close=True`.

    Args:
        text: the claim in words, without "|".
        differences: one paired difference a seed, five or more.
        above: the threshold that the interval must exceed; default 0.
        within: for claims of equivalence, the largest difference that does not matter.
        unit: of the differences.
        close: the verdict may turn on another processor: print it as close, and masked.

    Raises:
        ValueError: fewer than five differences, a non-finite one, or "|" in the text.
    """
    if len(differences) < 5:
        raise ValueError(
            f"differences must hold at least five paired seeds, got {len(differences)}"
        )
    if "|" in text:
        raise ValueError("text must not contain '|', which separates the parts of a claim's line")
    if above is not None and within is not None:
        raise ValueError("above must be left out beside within: they are two kinds of claims")
    above = 0.0 if above is None else inputs.number("above", above)
    if within is not None:
        inputs.number("within", within, above=0)
    found = interval(differences)
    if within is None:
        room = found.low - above
        demand = f", needs > {above:g}" if above else ""
    else:
        room = min(found.low + within, within - found.high)
        demand = f", needs within ±{within:g}"
    word = "holds" if room > 0 else "not shown"
    near = not close and abs(room) < MARGIN[word] * found.half_width
    result = Claim(
        text,
        f"close ≈{word}" if close else word,
        room > 0,
        near,
        found,
        len(differences),
        unit,
        demand,
    )
    say(str(result), claim=result.as_data())
    return result
