"""From runs to verdicts: intervals, claims with their controls, families of claims.

A claim is decided by the 95 % interval of paired differences, never by the means, and where it
has a control, by the difference to the control as well. A notebook names its primary claims
beforehand; they form one family, whose verdicts are adjusted for their number. A verdict is exact
text that strict notebook tests compare to the letter; the numbers beside it are marked as measured
(see `tables`). So is the verdict of a claim that its author declares close: what stays exact there
is that its interval does not contradict it. Sentences of the text are tied to their numbers as well
(`states`).
"""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import stdtr, stdtrit

from kdlib import inputs
from kdlib.engine.console import say
from kdlib.records import METRIC, Runs
from kdlib.tables import NEARLY as NEAR
from kdlib.tables import (
    Interval,
    Mark,
    Numbers,
    Table,
    approx_interval,
    as_html,
    numbers_of,
    table,
)

# Another processor redraws most of the noise between seeds: between instruction sets the deciding
# end of an interval moved by about one half-width. Nearer to its threshold a "holds" is marked as
# close. A "not shown" keeps half of that, because an interval around no effect ends one half-width
# from the threshold.
MARGIN = {"holds": 1.0, "not shown": 0.5}

LEVEL = 0.05  # two-sided, as 95 % intervals are
MOST = 12  # primary claims of a notebook


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
    half = float(stdtrit(len(array) - 1, 1 - LEVEL / 2) * array.std(ddof=1) / math.sqrt(len(array)))
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
    if isinstance(columns, str):
        raise TypeError(f"columns must be several names, got the text {columns!r}")
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


class Test(NamedTuple):
    """One condition of a claim: an estimate above a threshold, by its standard error."""

    above: float  # the estimate minus its threshold
    error: float  # standard error of the estimate
    freedom: int  # degrees of freedom

    @property
    def p(self) -> float:
        """One-sided p value (Student's t)."""
        if self.error == 0:
            return 0.0 if self.above > 0 else 1.0
        return float(stdtr(self.freedom, -self.above / self.error))

    def room(self, level: float = LEVEL) -> float:
        """Distance of the interval's end from the threshold, in half-widths at 95 %."""
        half = float(stdtrit(self.freedom, 1 - LEVEL / 2)) * self.error
        end = self.above - float(stdtrit(self.freedom, 1 - level / 2)) * self.error
        return end / half if half else math.copysign(math.inf, self.above or -1)


class Claim(NamedTuple):
    """A claim and its verdict at 95 %; `Family` adjusts the verdicts of a notebook."""

    text: str
    verdict: str  # "holds" or "not shown"; "≈holds, but close" if its author says so
    shown: bool  # what the intervals say here, close or not
    near: bool  # nobody declared it close, but another processor could turn it
    interval: Interval  # of the differences
    net: Interval | None  # of the differences minus the control's
    tests: tuple[Test, ...]  # all must pass
    count: int  # type: ignore[assignment]  # of paired seeds
    unit: str
    demand: str  # what the interval has to satisfy, unless that is to lie above 0
    close: str  # why the verdict may turn elsewhere
    refuted: bool  # the interval lies on the wrong side, too far for another processor

    @property
    def p(self) -> float:
        """One-sided p value: the largest of its conditions."""
        return max(test.p for test in self.tests)

    @property
    def numbers(self) -> Numbers:
        """Its measured numbers with their rooms, as in `tables.Mark`."""
        found = [self.interval] if self.net is None else [self.interval, self.net]
        return tuple(pair for one in found for pair in one.numbers)

    def __str__(self) -> str:
        near = NEAR if self.near else ""
        floor = ", refuted" if self.close and self.refuted else ""
        control = ""
        if self.net is not None:
            beyond = "beyond" if self.tests[-1].room() > 0 else "not beyond"
            word = f"≈{beyond}" if self.close else beyond
            control = f"; {word} its control: {approx_interval(self.net, sign=True)}"
        return (
            f"claim: {self.text} | {self.verdict}{near}{floor} | "
            f"{approx_interval(self.interval, sign=True)} "
            f"{self.unit}{self.demand}{control}; {self.count} paired seeds"
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
            "beyond_control": None if self.net is None else self.tests[-1].room() > 0,
            "p": self.p,
            "count": self.count,
            "unit": self.unit,
            "close": self.close,
            "refuted": self.refuted,
            "line": str(self),
        }


def claim(
    text: str,
    differences: Sequence[float] | np.ndarray,
    *,
    control: Sequence[float] | np.ndarray | None = None,
    above: float | None = None,
    within: float | None = None,
    unit: str = "points",
    close: str = "",
) -> Claim:
    """Say in one line whether a claim holds, decided by 95 % intervals.

    The claim holds if the whole interval of the mean difference lies above `above`, or, with
    `within`, inside (-within, within): "no difference that matters" has to be shown as well.
    With a `control`, the differences minus the control's must lie above `above`, too: an effect
    that the control has as well is not shown. If an interval ends near its threshold, "(≈ close)"
    follows the verdict: give the reason with `close`.

    Args:
        text: the claim in words, without "|".
        differences: one paired difference a seed, five or more.
        control: the same differences of the matched control (the same method and loss, from a
            teacher without the property, made with the teacher's own recipe), by the same seeds.
        above: the threshold that the interval must exceed; default 0.
        within: for claims of equivalence, the largest difference that does not matter.
        unit: of the differences.
        close: why the verdict may turn on another machine. It is then shown as close and masked;
            an interval that refutes the claim by half its half-width is told in exact text.

    Raises:
        ValueError: fewer than five differences, a non-finite one, a control of other length or
            beside `within`, or "|" in the text.
    """
    if len(differences) < 5:
        raise ValueError(
            f"differences must hold at least five paired seeds, got {len(differences)}"
        )
    if "|" in text:
        raise ValueError("text must not contain '|', which separates the parts of a claim's line")
    if within is not None and (above is not None or control is not None):
        raise ValueError("within must stand alone, without above and control: it is another kind")
    if not isinstance(close, str):
        raise TypeError(f"close must be the reason in words, got {inputs.describe(close)}")
    threshold = 0.0 if above is None else inputs.number("above", above)
    array = np.asarray(differences, dtype=float)
    found, net = interval(array), None
    if within is not None:
        inputs.number("within", within, above=0)
        tests = [_test(array, -within), _test(-array, -within)]
        demand, wrong = f", needs within ±{within:g}", [_test(array, within), _test(-array, within)]
    else:
        tests = [_test(array, threshold)]
        demand = f", needs > {threshold:g}" if threshold else ""
        wrong = [_test(-array, -threshold)]
    if control is not None:
        if len(control) != len(array):
            raise ValueError(
                f"control must hold one difference for each of {len(array)} seeds, got "
                f"{len(control)}"
            )
        beyond = array - np.asarray(control, dtype=float)
        net = interval(beyond)
        tests.append(_test(beyond, threshold))
    room = min(test.room() for test in tests)
    word = "holds" if room > 0 else "not shown"
    result = Claim(
        text=text,
        verdict=f"≈{word}, but close" if close else word,
        shown=room > 0,
        near=not close and abs(room) < MARGIN[word],
        interval=found,
        net=net,
        tests=tuple(tests),
        count=len(array),
        unit=unit,
        demand=demand,
        close=close,
        refuted=any(test.room() > MARGIN["not shown"] for test in wrong),
    )
    _say(result)
    return result


def _test(values: np.ndarray, threshold: float) -> Test:
    error = float(values.std(ddof=1) / math.sqrt(len(values)))
    return Test(float(values.mean()) - threshold, error, len(values) - 1)


def _say(found: Claim) -> None:
    """Words first: the verdict is bold, the numbers are clean."""
    head, verdict, rest = map(as_html, str(found).split(" | "))
    page = f"<div>{head} | <b>{verdict}</b> | {rest}</div>"
    say(str(found), html=page, claim=found.as_data(), measured=numbers_of([found]))


def explore(
    text: str,
    differences: Sequence[float] | np.ndarray,
    *,
    control: Sequence[float] | np.ndarray | None = None,
    unit: str = "points",
) -> Interval:
    """Say a measured difference that no claim was made of beforehand: an interval, no verdict."""
    found = interval(differences)
    parts = [approx_interval(found, sign=True)]
    line = f"explored: {text} | {parts[0]} {unit}"
    if control is not None:
        parts.append(approx_interval(interval(control), sign=True))
        line += f"; its control {parts[1]}"
    line += f"; {len(differences)} paired seeds"
    say(line, html=f"<div>{as_html(line)}</div>", measured=numbers_of(parts))
    return found


def states(
    sentence: str, value: float | bool, low: float | None = None, high: float | None = None
) -> None:
    """Tie a sentence of the text to its number: silent while the number is what the sentence says.

    A number outside the range, NaN or infinity is told in one line; nothing is raised, so that a
    notebook with other settings runs on. Strict tests fail where such a line appears.

    The range is what a reader takes the sentence to mean, and has room for another processor: the
    width of the interval, or nearly, on either side of the measured number. A sentence that
    allows no such range is to be rewritten, not the range widened until it says nothing.

    Args:
        sentence: words of the text, as they stand there.
        value: the measured number, or a condition (`small > large`, apart by as much room).
        low: the least number that fits; None for "at most" and for a condition.
        high: the largest number that fits; None for "at least" and for a condition.

    Raises:
        TypeError: a sentence that is no text, a value or bound that is no number.
        ValueError: an empty sentence, a number without bounds, a condition with bounds, a bound
            that is not finite, or `low` that is not below `high`.
    """
    if not inputs.instance("sentence", sentence, str).strip():
        raise ValueError("sentence must hold words of the text, got none")
    found: Any = value
    found = found.item() if getattr(found, "ndim", None) == 0 else found  # of numpy, of torch
    if not isinstance(found, numbers.Real):
        raise TypeError(f"value must be a number, True or False, got {inputs.describe(value)}")
    number, condition = float(found), isinstance(found, bool)
    if condition != (low is None and high is None):
        wanted = "be left out for a condition" if condition else "say which numbers fit"
        raise ValueError(f"low and high must {wanted}, got {low} and {high} for {found}")
    least = -math.inf if low is None else inputs.number("low", low)
    most = math.inf if high is None else inputs.number("high", high)
    if least >= most:
        raise ValueError(f"low must be below high, got {least:g} and {most:g}")
    if found if condition else math.isfinite(number) and least <= number <= most:
        return
    line = f'the text says: "{" ".join(sentence.split())}"'
    if condition:
        line += ", which is not so here"
    else:
        span = f"at most {most:g}" if low is None else f"{least:g} to {most:g}"
        span = f"at least {least:g}" if high is None else span
        line += f" ({span}), measured ≈ {number:.4g}"
    say(line, html=f"<div>{as_html(line)}</div>", stated={"line": line})


class Family:
    """The primary claims of a notebook, named beforehand and decided together (Holm 1979).

    Args:
        texts: the claims in words, 1 to 12 different ones.
    """

    def __init__(self, *texts: str):
        if not 1 <= len(texts) <= MOST or len(set(texts)) < len(texts):
            raise ValueError(f"texts must be 1 to {MOST} different claims, got {len(texts)}")
        self.claims: dict[str, Claim | None] = dict.fromkeys(texts)

    def claim(self, text: str, differences: Sequence[float] | np.ndarray, **options: Any) -> Claim:
        """`evidence.claim` for one of the named claims; a cell may be run again."""
        if text not in self.claims:
            raise ValueError(
                f"text must be one of the claims named beforehand ({'; '.join(self.claims)}), got "
                f"{text!r}: for others there is evidence.explore"
            )
        self.claims[text] = found = claim(text, differences, **options)
        return found

    def adjusted(self) -> list[tuple[Claim, float, bool, bool]]:
        """(claim, adjusted p, holds, near) in the order of naming.

        Raises:
            ValueError: a named claim was not made: none may be dropped.
        """
        missing = [text for text, found in self.claims.items() if found is None]
        if missing:
            raise ValueError(f"claims must all be made before the table, got none of: {missing}")
        made = [found for found in self.claims.values() if found is not None]
        order = sorted(range(len(made)), key=lambda place: made[place].p)
        verdicts: dict[int, tuple[float, bool, bool]] = {}
        largest = 0.0
        for rank, place in enumerate(order):
            found, left = made[place], len(made) - rank
            largest = max(largest, min(1.0, 2 * left * found.p))
            room = min(test.room(LEVEL / left) for test in found.tests)
            word = "holds" if largest <= LEVEL else "not shown"
            verdicts[place] = largest, largest <= LEVEL, abs(room) < MARGIN[word]
        return [(found, *verdicts[place]) for place, found in enumerate(made)]

    def table(self) -> Table:
        """The closing table: verdicts at a family-wise error of 5 %."""
        rows, data = [], []
        for made, p, holds, near in self.adjusted():
            word = "holds" if holds else "not shown"
            verdict = f"≈{word}, but close" if made.close else word + NEAR * near
            rows.append(
                {
                    "primary claim": made.text,
                    "verdict": verdict,
                    f"difference, {made.unit}": approx_interval(made.interval, sign=True),
                    "beyond its control": ""
                    if made.net is None
                    else approx_interval(made.net, sign=True),
                    "p, adjusted": Mark.of(f"≈ {p:.2g}", [(p, None)]),
                    "close because": made.close,
                }
            )
            data.append({"text": made.text, "verdict": verdict, "p": p})
        if not any(row["close because"] for row in rows):
            rows = [{k: v for k, v in row.items() if k != "close because"} for row in rows]
        if not any(row["beyond its control"] for row in rows):
            rows = [{k: v for k, v in row.items() if k != "beyond its control"} for row in rows]
        found = table(
            rows, f"{len(rows)} primary claims, verdicts adjusted for their number (Holm)"
        )
        found.data = {"family": data}
        return found
