"""Recorded experiments: what takes too long for a notebook, in a file that `record` makes again.

A study is a module of this folder. Its docstring opens with a title; `PARTS` names its functions,
one question each (the docstring). A part returns runs, and hands `**keep` on to `compare` or
`over_seeds`, so that an interrupted one goes on where it stopped. `python -m kdlib record NAME`
writes `notebooks/records/NAME.json`; notebooks read it with `read` and show it with `sweep`.
"""

from __future__ import annotations

import importlib
import json
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from kdlib import inputs, records
from kdlib.engine import files
from kdlib.evidence import interval
from kdlib.records import METRIC, Run, Runs
from kdlib.tables import Table

NAMES = ("tuning_1", "tuning_3", "tuning_4", "cross_architecture", "minillm")
SEEDS = (50, 51, 52)  # of sweeps; the notebooks' own seeds are others
FORMAT = 1
HERE = Path(__file__).resolve().parent
CHECKOUT, INSTALLED = HERE.parents[1] / "notebooks" / "records", HERE.parent / "recorded"

Part = Callable[..., Runs]
_KEPT = ("experiment", "method", "seed", "metrics", "seconds", "teacher_seconds")
_SHORT = ("identity", "setting", "data")  # their first signs tell runs apart


class Recorded(NamedTuple):
    """One recorded part of a study."""

    question: str
    runs: Runs
    seconds: float  # of one core
    code: str  # fingerprint of the kit's code and of the study
    versions: dict[str, str]
    commit: str
    stale: bool  # other code than the present one made it


def module(name: str) -> ModuleType:
    """The module of a study."""
    inputs.choice("name", name, NAMES)
    return importlib.import_module(f"{__name__}.{name}")


def title(name: str) -> str:
    """The first line of a study's docstring."""
    return (module(name).__doc__ or "").strip().partition("\n")[0]


def parts(name: str) -> dict[str, Part]:
    """{name: function} of a study's parts."""
    return {function.__name__.replace("_", " "): function for function in module(name).PARTS}


def question(part: Part) -> str:
    """What a part asks: its docstring in one line."""
    return " ".join((part.__doc__ or "").split())


def folder() -> Path:
    """Where the records lie: beside the notebooks of a clone, or in the installed package."""
    return CHECKOUT if CHECKOUT.parent.is_dir() else INSTALLED


def fingerprint(name: str) -> str:
    """Of all code that makes a study's numbers: the kit's, and its own."""
    return f"{records.code_fingerprint()}-{records.fingerprint([HERE / f'{name}.py'])}"


def read(name: str, place: str | Path | None = None) -> dict[str, Recorded]:
    """The recorded parts of a study by name; what other code made is `stale`, and still read.

    Args:
        name: one of `NAMES`.
        place: the folder of the files; default: `folder()`.

    Raises:
        FileNotFoundError: nothing was recorded; says how to.
        ValueError: the file is no record of this study.
    """
    inputs.choice("name", name, NAMES)
    path = (folder() if place is None else Path(place)) / f"{name}.json"
    if not path.is_file():
        raise FileNotFoundError(2, f"make it with `python -m kdlib record {name}`", str(path))
    present = fingerprint(name)
    try:
        content = json.loads(path.read_text("utf-8"))
        if (content["format"], content["study"]) != (FORMAT, name):
            raise ValueError("it is of another study or format")
        parts = {}
        for part, found in content["parts"].items():
            runs = Runs(Run(**run) for run in found["runs"])
            parts[part] = Recorded(
                question=found["question"],
                runs=runs,
                seconds=_seconds(runs),
                code=found["code"],
                versions=dict(found["versions"]),
                commit=found["commit"],
                stale=found["code"] != present,
            )
        return parts
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is no record of {name} ({error!r}): make it again with "
            f"`python -m kdlib record {name}`"
        ) from error


def record(name: str, part: str, place: str | Path | None = None, **keep: Any) -> Path:
    """Run a part of a study, and write its runs into the file; the other parts stay.

    Finished runs are kept beside the file until the part is complete: called again after an
    interruption, it goes on with the others.

    Args:
        name: one of `NAMES`.
        part: one of `parts(name)`.
        place: the folder of the file; default: `folder()`.
        keep: further arguments of `compare` and `over_seeds`, e.g. `workers=1`.

    Raises:
        RuntimeWarning: a run failed; nothing was written.
    """
    known = parts(name)
    function = known[inputs.choice("part", part, tuple(known))]
    path = (folder() if place is None else Path(place)) / f"{name}.json"
    files.probe(path)
    unfinished = path.parent / ".unfinished" / name / part.replace(" ", "_")
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        runs = function(folder=unfinished, resume=True, **keep)
    content: dict[str, Any] = {"format": FORMAT, "study": name, "title": title(name)}
    content |= {"command": f"python -m kdlib record {name}", "parts": {}}
    if path.is_file():
        read(name, path.parent)  # or an error: what is there is not replaced unread
        content["parts"] = json.loads(path.read_text("utf-8"))["parts"]
    content["parts"][part] = {
        "question": question(function),
        "code": fingerprint(name),
        "commit": records.commit(),
        "versions": records.versions(),
        "runs": [_stored(run) for run in runs],
    }
    content["parts"] = {key: content["parts"][key] for key in known if key in content["parts"]}
    text = json.dumps(content, ensure_ascii=False, allow_nan=False)
    for start in ('{"experiment"', '"parts"', *(f'"{key}": {{"question"' for key in known)):
        text = text.replace(start, f"\n{start}")  # one line a run, for reading and for git
    files.write_atomically(path, text + "\n")
    shutil.rmtree(unfinished, ignore_errors=True)
    return path


def _stored(run: Run) -> dict[str, Any]:
    found = {key: getattr(run, key) for key in _KEPT} | {k: getattr(run, k)[:16] for k in _SHORT}
    rounded = {key: round(found[key], 2) for key in ("seconds", "teacher_seconds")}
    metrics = {key: float(f"{value:.8g}") for key, value in run.metrics.items()}
    curve = [  # of runs that were validated after every epoch
        {key: float(f"{value:.6g}") for key, value in epoch.items() if key.startswith("validation")}
        for epoch in run.history
    ]
    return found | rounded | {"metrics": metrics} | ({"history": curve} if any(curve) else {})


def _seconds(runs: Runs) -> float:
    """Seconds of one core; a run of several methods counts once, and so does a shared teacher."""
    own = {run.identity: run.seconds for run in runs}
    teachers = {(run.experiment, run.seed, run.teacher_seconds) for run in runs}
    return sum(own.values()) + sum(seconds for *_, seconds in teachers)


# Sweeps: settings tried on validation, and the one that a notebook takes


def options(row: str, name: str, values: Any, **common: Any) -> dict[str, dict[str, Any]]:
    """Methods of `compare` that differ in one option: {"row | value": {name: value, ...}}."""
    return {f"{row} | {value:g}": common | {name: value} for value in values}


def sweep(
    name: str, part: str, taken: Mapping[str, float], *, metric: str = METRIC, caption: str = ""
) -> Table:
    """What was tried, one row a method, in a fold: [taken], and * where another was higher.

    The last column is the paired difference between the highest and the taken value with its
    95 % interval: where that reaches 0, they cannot be told apart. The highest was picked because
    it is highest, so this difference is flattered.

    Args:
        name, part: of the study.
        taken: {row: value} that the notebook uses; rows without an entry are shown without.
        metric: what is shown; rows without it are left out.

    Raises:
        ValueError: a taken row or value was not tried.
    """
    recorded = read(name)
    found = recorded[inputs.choice("part", part, tuple(recorded))]
    tried: dict[str, dict[str, str]] = {}
    for method in found.runs.methods:
        row, _, value = method.rpartition(" | ")
        if all(metric in run.metrics for run in found.runs.of(method).values()):
            tried.setdefault(row, {})[value] = method
    for row in taken:
        inputs.choice("taken", row, tuple(tried))
    rows = []
    for row, methods in tried.items():
        means = {value: found.runs.values(each, metric).mean() for value, each in methods.items()}
        best = max(means, key=lambda value: means[value])
        mine = f"{taken[row]:g}" if row in taken else None
        if mine is not None and mine not in means:
            raise ValueError(f"taken of {row!r} must be one of {', '.join(means)}, got {mine}")
        cells = []
        for value, mean in means.items():
            star = "*" if value == best else ""
            cell = f"{value}: {mean:.1f}{star}"
            cells.append(f"[{cell}]" if value == mine else cell)
        line: dict[str, Any] = {"": row, "setting: validation, %": " · ".join(cells)}
        if mine is not None:
            line["highest − taken"] = "" if mine == best else _behind(
                found.runs, methods[best], methods[mine], metric
            )  # fmt: skip
        rows.append(line)
    seeds = len({run.seed for run in found.runs})
    count = f"{seeds} seed{'s' if seeds > 1 else ''}"
    summary = caption or f"{found.question} {count}, in brackets what is taken, * the highest"
    return Table(rows, summary, folded=True)


def _behind(runs: Runs, best: str, mine: str, metric: str) -> str:
    """Read from a file, the numbers are the same on every machine: no mark."""
    if len(runs.of(mine)) == 1:
        difference = runs.values(best, metric)[0] - runs.values(mine, metric)[0]
        return f"{difference:.1f}, one seed"
    found = interval(runs.paired(best, mine, metric))
    return f"{found.mean:.1f} [{found.low:.1f}, {found.high:.1f}]"
