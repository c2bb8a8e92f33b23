"""From runs to verdicts: paired differences, 95 % intervals, and `claim`.

A claim is decided by the interval of paired differences, never by the means. Its verdict is exact
text that strict notebook tests compare to the letter; the numbers beside it carry the sign "≈" and
are masked there, because they drift between processors. So is the verdict of a claim that its
author declares close.
"""

from __future__ import annotations

import math
import os
from typing import NamedTuple, Sequence

import numpy as np
from scipy.special import stdtrit

from kdlib.records import Run

# Another processor redraws most of the noise between seeds: between instruction sets the deciding
# end of an interval moved by about one half-width. Nearer to its threshold a "holds" is marked as
# close. A "not shown" keeps half of that, because an interval around no effect ends one half-width
# from the threshold.
MARGIN = {"holds": 1.0, "not shown": 0.5}

NEAR = " (≈ close)"  # masked in strict tests

METRIC = "accuracy"


class Interval(NamedTuple):
    """A mean with its 95 % confidence interval."""

    mean: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2


def seeds(count: int = 5) -> list[int]:
    """The seeds that experiments use: 0, 1, ..., shifted as a block by `$KDLIB_SEED_OFFSET`."""
    text = os.environ.get("KDLIB_SEED_OFFSET", "0")
    if not text.isdecimal():
        raise ValueError(f"KDLIB_SEED_OFFSET must be a whole number of 0 or more, got {text!r}")
    return list(range(int(text), int(text) + count))


def interval(values: Sequence[float]) -> Interval:
    """Mean and 95 % confidence interval of independent values (Student's t).

    Args:
        values: at least two finite numbers, one a seed.
    """
    array = np.asarray(values, dtype=float)
    if array.ndim != 1 or len(array) < 2:
        raise ValueError(f"values must be at least two numbers, one a seed; got shape "
                         f"{array.shape}")
    if not np.isfinite(array).all():
        raise ValueError("values must be finite: a run failed or its metric is NaN")
    mean = float(array.mean())
    half = float(stdtrit(len(array) - 1, 0.975) * array.std(ddof=1) / math.sqrt(len(array)))
    return Interval(mean, mean - half, mean + half)


def collect(runs: Sequence[Run], method: str, metric: str = METRIC) -> dict[int, float]:
    """{seed: metric} of one method, or a ValueError that lists what the runs hold."""
    found = {run.seed: run for run in runs if run.method == method}
    if not found:
        known = ", ".join(sorted({run.method for run in runs})) or "none"
        raise ValueError(f"no run of method {method!r}: the runs hold {known}")
    for run in found.values():
        if metric not in run.metrics:
            raise ValueError(f"metric {metric!r} was not recorded for {method!r}: use one of "
                             f"{', '.join(sorted(run.metrics))}")
    return {seed: found[seed].metrics[metric] for seed in sorted(found)}


def paired(runs: Sequence[Run], method: str, baseline: str, metric: str = METRIC) -> np.ndarray:
    """Differences `method - baseline` of a metric, one for each seed that both have."""
    ours, theirs = collect(runs, method, metric), collect(runs, baseline, metric)
    common = sorted(ours.keys() & theirs.keys())
    if len(common) < 2:
        raise ValueError(f"methods {method!r} and {baseline!r} share {len(common)} seeds: paired "
                         "differences need at least two")
    return np.array([ours[seed] - theirs[seed] for seed in common])


class Claim(NamedTuple):
    """A claim and its verdict: "holds" or "not shown", behind "close ≈" if its author says so."""

    text: str
    verdict: str
    shown: bool  # what the interval says here, close or not
    near: bool  # nobody declared it close, but another processor could turn it
    interval: Interval
    count: int
    unit: str
    demand: str = ""  # what the interval has to satisfy, unless that is to lie above 0

    def __str__(self) -> str:
        mean, low, high = (f"≈ {value:+.3g}" for value in self.interval)
        return f"claim: {self.text} | {self.verdict}{NEAR if self.near else ''} | {mean} " \
               f"{self.unit} [{low}, {high}]{self.demand}, {self.count} paired seeds"

    def _ipython_display_(self) -> None:
        """Show nothing: `claim` has printed the line already."""


def claim(text: str, differences: Sequence[float], *, above: float = 0.0,
          within: float | None = None, unit: str = "points", close: bool = False) -> Claim:
    """Print one line that says whether a claim holds, decided by a 95 % interval.

    The claim holds if the whole interval of the mean difference lies above `above`, or, with
    `within`, inside (-within, within): "no difference that matters" has to be shown as well.
    If the interval ends near its threshold, "(≈ close)" follows the verdict: pass `close=True`.

    Args:
        text: the claim in words, without "|".
        differences: one paired difference a seed, five or more.
        above: the threshold that the interval must exceed.
        within: for claims of equivalence, the largest difference that does not matter.
        unit: of the differences.
        close: the verdict may turn on another processor: print it as close, and masked.

    Raises:
        ValueError: fewer than five differences, a non-finite one, or "|" in the text.
    """
    if len(differences) < 5:
        raise ValueError(f"differences must hold at least five paired seeds, got "
                         f"{len(differences)}")
    if "|" in text:
        raise ValueError("text must not contain '|', which separates the parts of a claim's line")
    found = interval(differences)
    if within is None:
        room = found.low - above
        demand = f", needs > {above:g}" if above else ""
    else:
        room = min(found.low + within, within - found.high)
        demand = f", needs within ±{within:g}"
    word = "holds" if room > 0 else "not shown"
    near = not close and abs(room) < MARGIN[word] * found.half_width
    result = Claim(text, f"close ≈{word}" if close else word, room > 0, near, found,
                   len(differences), unit, demand)
    print(result)
    return result
