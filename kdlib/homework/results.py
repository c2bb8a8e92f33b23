"""From run records to the numbers of a report: each has a key, a text, and its seeds.

A key is EXPERIMENT.METHOD.METRIC, each part in lower case with "-" for all but letters and digits.
It gives the mean with its 95 % interval. Behind it may stand

    .mean        the mean alone
    .gain        the mean paired difference to the baseline of team.toml, with its interval
    .gain.mean   that difference alone

and EXPERIMENT.METHOD.seeds is the number of seeds. The metrics are those of the records, and
"seconds". Two names that would give the same part get signs of their hash behind it.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from kdlib import evidence, records
from kdlib.homework import words
from kdlib.homework.team import Experiment
from kdlib.records import METRIC, Run, Runs
from kdlib.tables import Interval

FOLDER = "runs"
MOST_FILES, MOST_BYTES = 5000, 2_000_000  # of records; anybody may hand them in
MOST_METRICS = 100
SECONDS = "seconds"


class Value(NamedTuple):
    """One number of the report.

    Attributes:
        text: as it is printed.
        mean: of the seeds, or the count of seeds.
        low, high: ends of its 95 % interval; None for one seed and for a number alone.
        seeds: behind it.
    """

    text: str
    mean: float
    low: float | None
    high: float | None
    seeds: int


class Row(NamedTuple):
    """A method in the table of its experiment; the difference is None for the baseline."""

    method: str
    value: Value
    difference: Value | None


@dataclass(frozen=True)
class Summary:
    """An experiment: its rows, the baseline first, and what the figure shows."""

    name: str
    part: str
    metric: str
    baseline: str | None
    rows: tuple[Row, ...]
    differences: dict[str, Interval]


@dataclass(frozen=True)
class Results:
    """All that the records give for a report in one language."""

    language: str
    digest: str
    values: dict[str, Value]
    experiments: tuple[Summary, ...]
    runs: Runs

    @property
    def stale(self) -> int:
        """How many runs were made by other code of the kit."""
        return sum(run.stale for run in self.runs)


# Reading


def read(folder: str | Path) -> Runs:
    """The records below `folder`/runs, by experiment, method and seed; raises as `files`."""
    return ordered(files(folder).values())


def ordered(found: Iterable[Run]) -> Runs:
    """Runs by experiment, method and seed."""
    return Runs(sorted(found, key=lambda run: (run.experiment, _natural(run.method), run.seed)))


def files(folder: str | Path) -> dict[Path, Run]:
    """{file: record} below `folder`/runs.

    Raises:
        ValueError: none is there, one is no record, or there are too many.
    """
    place = Path(folder) / FOLDER
    paths = sorted(path for path in place.rglob("*.json") if not path.is_symlink())
    if not paths:
        raise ValueError(
            f"{place} holds no run records: give folder={str(place)!r} to experiments.compare or "
            "over_seeds, run them, then call `python -m kdlib report` again"
        )
    if len(paths) > MOST_FILES:
        raise ValueError(f"{place} holds {len(paths)} files, at most {MOST_FILES} are read")
    return {path: _checked(path) for path in paths}


def _checked(path: Path) -> Run:
    """A record whose fields are what a report needs; files are not trusted."""
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path} is no run record: it has more than {MOST_BYTES} bytes")
    try:
        run = records.read(path)
    except RecursionError:
        raise ValueError(f"{path} is no run record: it nests too deeply") from None
    numbers = [run.seconds, run.teacher_seconds, *run.metrics.values()]
    plain = [run.identity, run.setting, run.data, run.code, run.commit]
    plain += [run.method, *map(str, run.versions.values())]
    try:
        records.check_experiment(run.experiment)
    except ValueError as error:
        raise ValueError(f"{path} is no run record: {error}") from None
    if (
        not all(type(one) in (int, float) and math.isfinite(one) for one in numbers)
        or not all(isinstance(one, str) and len(one) <= 200 for one in (*plain, *run.metrics))
        or len(run.metrics) > MOST_METRICS
        or not run.method.isprintable()
        or not run.method.strip()
    ):
        raise ValueError(
            f"{path} is no run record: its numbers must be finite and its texts short: move it out "
            "of the folder or run the experiment again"
        )
    return run


def _natural(text: str) -> list[Any]:
    """Sorts T=2 before T=16."""
    parts = re.split(r"(\d+)", text.casefold())
    return [(int(part), "") if place % 2 else (0, part) for place, part in enumerate(parts)]


def digest(runs: Iterable[Run]) -> str:
    """16 signs of the content of records; names and line ends of their files do not count."""
    found = hashlib.sha256()
    stored = (json.dumps(_content(run), sort_keys=True, ensure_ascii=False) for run in runs)
    for text in sorted(stored):
        found.update(text.encode() + b"\n")
    return found.hexdigest()[:16]


def _content(run: Run) -> dict[str, Any]:
    return {name: value for name, value in vars(run).items() if name != "kept"}


# Keys


def parts(names: Iterable[str], reserved: Sequence[str] = ()) -> dict[str, str]:
    """{name: its part of a key}; names that would share one get signs of their hash."""
    names = list(dict.fromkeys(names))
    plain = {name: re.sub(r"[\W_]+", "-", name.casefold()).strip("-") or "x" for name in names}
    taken = [*plain.values(), *reserved]
    return {
        name: part
        if taken.count(part) == 1
        else f"{part}-{hashlib.sha256(name.encode()).hexdigest()[:4]}"
        for name, part in plain.items()
    }


# Values


def compute(runs: Runs, experiments: Mapping[str, Experiment], language: str) -> Results:
    """Every number that a report may show.

    Args:
        experiments: of team.toml; one without an entry, or whose baseline has no runs, gets no
            differences.
        language: "en" or "ru".

    Raises:
        ValueError: a method mixes settings, or is compared on other data than its baseline.
    """
    values: dict[str, Value] = {}
    summaries = []
    for name, part in parts(run.experiment for run in runs).items():
        own = Runs(run for run in runs if run.experiment == name)
        try:
            summaries.append(_experiment(own, part, experiments.get(name), language, values))
        except ValueError as error:
            raise ValueError(f"experiment {name!r}: {error}") from error
    return Results(language, digest(runs), values, tuple(summaries), runs)


def _experiment(
    runs: Runs, part: str, entry: Experiment | None, language: str, values: dict[str, Value]
) -> Summary:
    """Put the values of one experiment into `values`, and return its table."""
    methods = runs.methods
    baseline = entry.baseline if entry is not None and entry.baseline in methods else None
    if baseline is not None:
        methods = [baseline, *(one for one in methods if one != baseline)]
    measured = {method: _measured(runs, method) for method in methods}
    names = list(dict.fromkeys(name for found in measured.values() for name in found))
    chosen = METRIC if METRIC in names else next(n for n in (*names, SECONDS) if n != SECONDS)
    if entry is not None and entry.metric is not None:
        if entry.metric not in names:
            raise ValueError(f"metric must be one of {', '.join(names)}; got {entry.metric!r}")
        chosen = entry.metric
    metric_parts = parts(names, reserved=("seeds",))
    method_parts = parts(methods)
    means: dict[tuple[str, str], Value] = {}
    gains: dict[tuple[str, str], Value] = {}
    for name in names:
        found = {method: measured[method][name] for method in methods if name in measured[method]}
        spread = {method: _interval(list(by_seed.values())) for method, by_seed in found.items()}
        numbers = [value for by_seed in found.values() for value in by_seed.values()]
        digits = words.decimals((one.half_width for one in spread.values()), numbers)
        for method, one in spread.items():
            means[method, name] = _value(one, len(found[method]), digits, language)
            differences = _paired(found, method, baseline)
            if differences is not None and name != SECONDS:
                runs.paired(method, str(baseline), name)  # refuses other data
                gain = _value(_interval(differences), len(differences), digits, language, sign=True)
                gains[method, name] = gain
    for method in methods:
        start = f"{part}.{method_parts[method]}"
        count = len(runs.of(method))
        for name in names:
            if (method, name) in means:
                key = f"{start}.{metric_parts[name]}"
                values[key] = means[method, name]
                values[f"{key}.mean"] = _alone(means[method, name])
                if (method, name) in gains:
                    values[f"{key}.gain"] = gains[method, name]
                    values[f"{key}.gain.mean"] = _alone(gains[method, name])
        values[f"{start}.seeds"] = Value(str(count), count, None, None, count)
    rows = [
        Row(method, means[method, chosen], gains.get((method, chosen)))
        for method in methods
        if (method, chosen) in means
    ]
    shown = {
        row.method: Interval(found.mean, found.low, found.high)
        for row in rows
        for found in [row.difference]
        if found is not None and found.low is not None and found.high is not None
    }
    return Summary(runs[0].experiment, part, chosen, baseline, tuple(rows), shown)


def _measured(runs: Runs, method: str) -> dict[str, dict[int, float]]:
    """{metric: {seed: value}} of what all runs of a method have, the seconds included."""
    found = runs.of(method)
    names = [
        name for name in next(iter(found.values())).metrics
        if all(name in run.metrics for run in found.values())
    ]  # fmt: skip
    table = {name: {seed: run.metrics[name] for seed, run in found.items()} for name in names}
    return table | ({} if SECONDS in table else {SECONDS: {s: r.seconds for s, r in found.items()}})


def _paired(
    found: Mapping[str, Mapping[int, float]], method: str, baseline: str | None
) -> list[float] | None:
    """Differences to the baseline by common seeds, two or more; None without."""
    if baseline is None or method == baseline or baseline not in found:
        return None
    ours, theirs = found[method], found[baseline]
    common = sorted(ours.keys() & theirs.keys())
    return [ours[seed] - theirs[seed] for seed in common] if len(common) > 1 else None


def _interval(values: Sequence[float]) -> Interval:
    """With a single value there is no spread: its ends are NaN."""
    if len(values) == 1:
        return Interval(float(values[0]), math.nan, math.nan)
    return evidence.interval(values)


def _value(found: Interval, seeds: int, digits: int, language: str, *, sign: bool = False) -> Value:
    mean, low, high = (float(f"{part:.8g}") for part in found)
    if math.isnan(low):
        note = words.WORDS["one seed"].of(language)
        return Value(f"{words.number(mean, digits, language)} ({note})", mean, None, None, 1)
    if low == high:  # the same for every seed
        return Value(words.number(mean, digits, language, sign=sign), mean, low, high, seeds)
    return Value(
        words.interval(mean, low, high, digits, language, sign=sign), mean, low, high, seeds
    )


def _alone(value: Value) -> Value:
    """The mean of a value, without its interval."""
    first = re.split(r" [\[(]", value.text)[0]
    return Value(first, value.mean, None, None, value.seeds)
