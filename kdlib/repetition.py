"""Repeating a recorded run from its file alone: recorded beside observed."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.special import stdtrit

from kdlib import inputs, recipes, records
from kdlib.distillers import METHODS
from kdlib.engine import workers
from kdlib.experiments import at_seed, by_method, train_and_measure
from kdlib.identity import identity
from kdlib.provenance import Identities, joint
from kdlib.records import Run


class Repetition(NamedTuple):
    """Recorded and observed values of one record, by name, and what follows."""

    run: Run
    rows: list[tuple[str, float, float, float | None]]  # name, recorded, observed, tolerance
    verdict: str  # "repeats", "differs" or "not decidable"
    basis: str  # how it was decided
    notes: list[str]


class Observed(NamedTuple):
    """What came out when a record was run again; `judge` compares it with what is recorded."""

    metrics: dict[str, float]
    history: list[dict[str, float]]
    same: bool  # what the recipe made is what the record identifies
    notes: list[str]


def repeat(path: str | Path, *, epochs: int | None = None, own_code: bool = False) -> Repetition:
    """Run a record again from the file alone (`observe`) and compare (`judge`).

    Raises:
        ValueError: the record cannot be repeated; says why.
    """
    return judge(path, observe(path, epochs=epochs, own_code=own_code), epochs=epochs)


def observe(path: str | Path, *, epochs: int | None = None, own_code: bool = False) -> Observed:
    """Run a record again from the file alone.

    Args:
        path: of the record.
        epochs: train only so many epochs, on the full schedule, and compare the history.
        own_code: the record may use modules below the working folder; they are imported and run.

    Raises:
        ValueError: the record cannot be repeated; says why.
    """
    run = records.read(path)
    if run.repeat is None:
        raise ValueError(f"{path} cannot be repeated: {run.obstacle or 'it holds no recipe'}")
    notes: list[str] = []
    with workers.threads(inputs.whole("threads", run.threads)):
        for method, name in run.repeat.get("methods", {}).items():
            if method not in METHODS:
                METHODS[method] = recipes.allowed(name, own_code=own_code)
        function = recipes.make(run.repeat.get("function"), notes, own_code=own_code)
        seed = inputs.seed("seed", run.repeat.get("seed"))
        same = _same(run, function, seed)
        if epochs is not None:
            if not run.history or getattr(function, "func", None) is not train_and_measure:
                raise ValueError(f"{path} is no training with a history: leave epochs out")
            inputs.whole("epochs", epochs, high=len(run.history))
            function = functools.partial(function, stop_after=epochs)
        outcome = at_seed(function, seed)
    found = by_method(outcome.metrics, run.method).get(run.method, {})
    return Observed(found, list(outcome.history), same, notes)


def judge(path: str | Path, observed: Observed, *, epochs: int | None = None) -> Repetition:
    """Compare what was observed with the record; nothing runs.

    On the same processor, versions, threads and code the values must be equal. Elsewhere, and on
    a GPU, a value may differ by t SD √2, with SD over at least four other runs of the same setting
    in the record's folder: two draws of one seed differ by more in 5 % of the cases. The record
    itself does not count: one that was edited would widen its own tolerance. Where the losses are
    equal to the last digit the arithmetic is the same, and so must all values be.

    Args:
        path: of the record.
        observed: of `observe`, with the same `epochs`.
        epochs: compare the history of so many epochs instead of the results.

    Raises:
        ValueError: the file, or one beside it, is no record.
    """
    run = records.read(path)
    siblings = _siblings(run, Path(path))
    notes = list(observed.notes)
    if run.stale:
        notes.append("the record was made by other code of the kit")
    on_gpu = bool(run.versions.get("accelerator"))
    exact = run.versions == records.versions() and not run.stale and not on_gpu
    if epochs is None:
        found = observed.metrics
        pairs = [
            (
                name,
                run.metrics.get(name, math.nan),
                found.get(name, math.nan),
                [other.metrics.get(name, math.nan) for other in siblings],
            )
            for name in {**run.metrics, **found}
        ]
    else:
        pairs = [
            (
                f"epoch {place + 1}, {name}",
                value,
                now.get(name, math.nan),
                [
                    other.history[place].get(name, math.nan)
                    for other in siblings
                    if len(other.history) > place
                ],
            )
            for place, (recorded, now) in enumerate(zip(run.history[:epochs], observed.history))
            for name, value in recorded.items()
        ]
    rows = [
        (name, recorded, value, 0.0 if exact else _tolerance(others))
        for name, recorded, value, others in pairs
    ]
    verdict, basis = _judge(rows, exact)
    if exact and not observed.same:
        verdict, basis = "differs", "the record's identity is not that of what its recipe makes"
    return Repetition(run, rows, verdict, basis, notes)


def _same(run: Run, function: Any, seed: int) -> bool:
    """Whether what a recipe made is what the record identifies."""
    if getattr(function, "func", None) is not train_and_measure:
        return run.identity == joint(identity(function, "function"), seed)
    identities = Identities(required=False)
    return run.identity in (
        identities.of(function, drawn_anew, seed)[1] for drawn_anew in (False, True)
    )


def _siblings(run: Run, path: Path) -> list[Run]:
    """The other runs of the same setting beside a record."""
    found = [records.read(one) for one in sorted(path.parent.glob("*.json")) if one != path]
    return [
        other
        for other in found
        if (other.method, other.setting, other.experiment)
        == (run.method, run.setting, run.experiment)
    ]


def _tolerance(values: list[float]) -> float | None:
    """t SD √2 of at least four values, None of fewer."""
    values = [value for value in values if math.isfinite(value)]
    if len(values) < 4:
        return None
    return float(stdtrit(len(values) - 1, 0.975) * np.std(values, ddof=1) * math.sqrt(2))


def _judge(rows: list[tuple[str, float, float, float | None]], exact: bool) -> tuple[str, str]:
    apart = [
        row
        for row in rows
        if row[3] is not None
        and not abs(row[1] - row[2]) <= row[3] + 1e-12 * abs(row[1]) * (not exact)
    ]
    if apart:
        return "differs", f"{', '.join(row[0] for row in apart)} beyond the tolerance"
    losses = [row for row in rows if row[0].endswith("loss")]
    moved = [row[0] for row in rows if row[1] != row[2]]
    if losses and moved and all(row[1] == row[2] for row in losses):
        return "differs", f"the losses are the same to the last digit, {', '.join(moved)} not"
    if exact:
        return "repeats", "equal processor, versions, threads and code: all values are the same"
    if rows and all(row[1] == row[2] for row in rows):
        return "repeats", "another machine or version, but all values are the same"
    if any(row[3] is None for row in rows):
        return "not decidable", "another machine or version, and fewer than four runs beside it"
    return "repeats", "another machine or version: within t SD √2 of the runs beside it"
