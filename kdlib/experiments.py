"""Experiments: a function of a seed, run for several seeds, recorded and resumed.

`over_seeds` runs any function of a seed that returns metrics. `compare` is one caller: it trains
several methods for the same seeds, so that their differences are paired.
"""

from __future__ import annotations

import functools
import math
import numbers
import secrets
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from kdlib import inputs, recipes, records
from kdlib.data import Split, device_of
from kdlib.distillers import METHODS, needs_teacher, parts_of
from kdlib.engine import files, ranks
from kdlib.engine.workers import each, usable
from kdlib.language import training as language
from kdlib.provenance import Identities, identity_of, joint, recipe_of_run
from kdlib.records import Run, Runs
from kdlib.training import as_split, build, drawn, evaluate, fit

Metrics = Mapping[str, float]
Teachers = nn.Module | Mapping[int, nn.Module] | functools.partial | None


class Outcome(NamedTuple):
    """What a function of a seed may return where metrics alone are not enough."""

    metrics: Mapping[str, Any]
    history: Sequence[dict[str, float]] = ()
    kept: Any = None  # anything to look at afterwards; it is never written


class _Task(NamedTuple):
    """One function to call with one seed, and what its record says of it."""

    label: str
    seed: int
    function: Callable[[int], Any]
    config: dict[str, Any]
    identity: str
    setting: str
    data: str
    methods: tuple[str, ...] = ()  # of the registry
    checkpoint: str = ""  # file from which an interrupted training goes on
    teacher: functools.partial | None = (
        None  # `fresh`: trained for the seed before the function runs
    )

    def __str__(self) -> str:
        return f"{self.label}, seed {self.seed}"


class _Place(NamedTuple):
    """A task by its number: what is sent to a worker, which has all tasks already."""

    number: int
    name: str

    def __str__(self) -> str:
        return self.name


class _Result(NamedTuple):
    """What a worker sends back."""

    place: int
    table: dict[str, dict[str, float]]
    outcome: Outcome
    seconds: float
    threads: int


def over_seeds(
    function: Callable[..., Any] | Sequence[Callable[..., Any]],
    seeds: Sequence[int],
    *,
    experiment: str,
    teacher: functools.partial | None = None,
    folder: str | Path | None = None,
    resume: bool | str = False,
    workers: int | None = None,
    executor: Executor | None = None,
    progress: bool = True,
) -> Runs:
    """Call `function(seed)` for every seed, in worker processes, and return the runs.

    A run that fails is reported in a warning and left out; the others are kept.

    Args:
        function: returns {metric: number}, or {method: {metric: number}} where it compares
            several methods by itself, or an `Outcome` around either. May be defined in a notebook.
            Or several functions, each with methods of its own, the longest first: no core then
            waits for the last seed of one.
        seeds: e.g. `evidence.seeds(5)`.
        experiment: name of the experiment; the method of a function without methods.
        teacher: `training.fresh(...)` or `language.fresh(...)`: a teacher trained anew for each
            seed. The function is then called as `function(seed, teacher)`, and its runs hold the
            `teacher_seconds`.
        folder: where finished runs are recorded, each as soon as it ends.
        resume: take the runs that `folder` already holds, if the same function and the same code
            of the kit made them; "stale" takes those of other code too.
        workers: processes; default one a core; 1 runs everything in this process.
        executor: instead of `workers`, a `concurrent.futures.Executor` of processes, here or on
            other machines: Dask's `client.get_executor()`, or a `ProcessPoolExecutor` that spawns
            them. They need the same kdlib and torch, and one thread each.
        progress: show a bar with the time left.

    Raises:
        ValueError: an argument is out of range; the function has no identity and `folder` is
            given (the message holds the path to what cannot be identified); two functions have a
            method in common; the executor's workers share a process or run other code.
        RuntimeError: all runs failed.
    """
    seeds, spread = _seeds(seeds), _spread(workers, executor, progress)
    functions = [function] if callable(function) else list(function)
    if not functions or not all(map(callable, functions)):
        raise TypeError(
            "function must be a function of a seed, or several in a list, got "
            f"{inputs.describe(function)}"
        )
    if teacher is not None:
        _fresh(teacher, drawn, language.drawn)
    keep = folder is not None
    tasks = [task for one in functions for task in _tasks(one, seeds, experiment, teacher, keep)]
    runs = _perform(tasks, experiment, folder, resume, spread)
    seen = set[tuple[str, int]]()
    for run in runs:
        if (run.method, run.seed) in seen:
            raise ValueError(
                f"function must hold functions with methods of their own, got {run.method!r} from "
                "two of them: name it differently in one"
            )
        seen.add((run.method, run.seed))
    return runs


def _tasks(
    function: Callable[..., Any],
    seeds: list[int],
    experiment: str,
    teacher: functools.partial | None,
    keep: bool,
) -> list[_Task]:
    """A task for every seed of a function of `over_seeds`."""
    config = {"function": getattr(function, "__qualname__", type(function).__name__)}
    if teacher is not None:
        config["teacher"] = Identities(required=False).words(teacher, "teacher")
        function = functools.partial(with_teacher, function=function, teacher=teacher)
    exact = identity_of(function, "function", keep)
    setting = exact or f"unidentified, {secrets.token_hex(8)}"
    return [
        _Task(experiment, seed, function, config, joint(exact, seed), setting, "", teacher=teacher)
        for seed in seeds
    ]


def compare(
    methods: Mapping[str, Mapping[str, Any]],
    *,
    student: Callable[[], nn.Module],
    train: Split,
    evaluate_on: Split | Mapping[str, Split],
    seeds: Sequence[int],
    teacher: Teachers = None,
    metrics: Callable[[nn.Module, nn.Module | None], Metrics] | None = None,
    experiment: str = "comparison",
    folder: str | Path | None = None,
    resume: bool | str = False,
    keep: bool = False,
    checkpoints: str | Path | None = None,
    workers: int | None = None,
    executor: Executor | None = None,
    progress: bool = True,
    **common: Any,
) -> Runs:
    """Train every method for the same seeds and return the runs.

    Paired: for a seed, all methods start from the same weights and see the same batches and
    augmentation. Every network, teacher and method is built before the first run starts, so that
    a typo costs no time. A run that fails is reported in a warning and left out.

    Args:
        methods: label -> what is special about it, e.g. `{"CE": {}, "KD": {"method": "kd",
            "temperature": 4.0}}`. Any argument of `fit`, and `teacher`, `student` and `train`.
        student: builds a fresh network; a class or a partial of one can be repeated from a record.
        evaluate_on: the split behind the metrics "accuracy" and "loss": validation while you
            choose settings, test once at the end. Or several by name: then the metrics are
            "test accuracy" and so on.
        seeds: e.g. `evidence.seeds(5)`.
        teacher: one network, one for each seed, or `training.fresh(...)`: trained anew for each
            seed, once for all methods that name it, its cost in `run.teacher_seconds`. Methods
            without a teacher leave it out.
        metrics: further results of a trained student and its teacher.
        experiment, folder, resume, workers, executor, progress: as in `over_seeds`. On a GPU, an
            executor's workers take the first that they see (`CUDA_VISIBLE_DEVICES`).
        keep: attach the trained networks as `run.kept`.
        checkpoints: folder for a file of each run, written after every epoch and left there: with
            `resume`, an interrupted training goes on from it. Needs `folder`.
        common: arguments of `fit` for all methods.

    Returns:
        Runs in the order of `methods`, then `seeds`. Their metrics hold "extra_parameters" (that
        the method trains besides the student) and "extra_bytes" (its buffers and cached teacher
        outputs), too.
    """
    seeds, train = _seeds(seeds), as_split("train", train)
    if not isinstance(methods, Mapping) or not methods:
        raise ValueError(f"methods must hold at least one label, got {inputs.describe(methods)}")
    for label, own in methods.items():
        if not isinstance(label, str) or not isinstance(own, Mapping):
            raise TypeError(f"methods must map labels to arguments of fit, got {label!r}: {own!r}")
    if keep and resume:
        raise ValueError("resume must be False where networks are kept: records do not hold them")
    if checkpoints is not None and folder is None:
        raise ValueError("checkpoints need the folder of the records: give folder, too")
    for name in ("seed", "checkpoint", "stop_after"):
        if any(name in own for own in (common, *methods.values())):
            raise ValueError(f"{name} must be left out: use seeds, or folder and resume")
    for name in ("metrics", "keep", "evaluate_on", "progress"):
        if any(name in own for own in methods.values()):
            raise ValueError(f"{name} must be the same for all methods: give it to compare")
    if metrics is not None and not callable(metrics):
        raise TypeError(f"metrics must be a function, got {inputs.describe(metrics)}")
    if not callable(student):
        raise TypeError(f"student must be a constructor, got {inputs.describe(student)}")
    named = evaluate_on if isinstance(evaluate_on, Mapping) else {"": evaluate_on}
    if not named:
        raise ValueError("evaluate_on must hold at least one split, got none")
    evaluated = {
        name: as_split("evaluate_on" + (f"[{name!r}]" if name else ""), split)
        for name, split in named.items()
    }
    on_gpu = device_of(common.get("device") or train.images.device).type != "cpu"
    spread = _spread(workers, executor, progress, on_gpu)
    identities, token = Identities(required=folder is not None), secrets.token_hex(8)
    tasks = []
    for label, own in methods.items():
        every = {"student": student, "train": train, "teacher": teacher, **common, **own}
        if metrics is None and not needs_teacher(every.get("method", "ce")):
            every["teacher"] = None
        for seed in seeds:
            settings = every | {"teacher": _teacher(every["teacher"], seed)}
            function = functools.partial(
                train_and_measure, evaluate_on=evaluated, metrics=metrics, keep=keep, **settings
            )
            if seed == seeds[0]:
                _rehearse(label, settings, seed)
            setting, exact, data = identities.of(
                function, isinstance(every["teacher"], Mapping), seed
            )
            setting = setting or f"unidentified, {token}"
            words = {name: identities.words(value, name) for name, value in every.items()}
            parts = tuple(parts_of(settings.get("method", "ce")))
            fresh = every["teacher"] if isinstance(every["teacher"], functools.partial) else None
            task = _Task(label, seed, function, words, exact, setting, data, parts, teacher=fresh)
            if checkpoints is not None:
                name = Run(experiment, label, seed, identity=exact).filename
                file = Path(checkpoints).absolute() / name.replace(".json", ".pt")
                if not resume:
                    file.unlink(missing_ok=True)
                task = task._replace(checkpoint=str(file))
            tasks.append(task)
    return _perform(tasks, experiment, folder, resume, spread)


@recipes.safe
def train_and_measure(
    seed: int,
    *,
    student: Callable[[], nn.Module],
    train: Split,
    evaluate_on: Mapping[str, Split],
    teacher: nn.Module | functools.partial | None = None,
    metrics: Callable[[nn.Module, nn.Module | None], Metrics] | None = None,
    keep: bool = False,
    **options: Any,
) -> Outcome:
    """Build a student, train it with `fit`, measure it: one run of `compare`."""
    network = build(student, seed)
    own: nn.Module | None = teacher(seed) if isinstance(teacher, functools.partial) else teacher
    lesson = own if needs_teacher(options.get("method", "ce")) else None
    fitted = fit(network, train, progress=False, seed=seed, teacher=lesson, **options)
    device = next(network.parameters()).device
    measured: dict[str, Any] = {}
    for name, split in evaluate_on.items():
        scores = evaluate(network, Split(*split).to(device))
        measured |= {f"{name} {metric}".strip(): value for metric, value in scores.items()}
    measured |= {
        "extra_bytes": fitted.extra_bytes,
        "extra_parameters": sum(p.numel() for p in fitted.distiller.parameters()),
    }
    if metrics is not None:
        further = metrics(network, own)
        if measured.keys() & further.keys():
            taken = ", ".join(sorted(measured.keys() & further.keys()))
            raise ValueError(f"metrics must have names of their own, got {taken}")
        measured |= further
    return Outcome(measured, fitted.history, network if keep else None)


@recipes.safe
def with_teacher(
    seed: int, *, function: Callable[..., Any], teacher: nn.Module | functools.partial
) -> Any:
    """`function(seed, teacher)`, with the seed's own teacher: one run of `over_seeds`."""
    return function(seed, teacher(seed) if isinstance(teacher, functools.partial) else teacher)


def _perform(
    tasks: list[_Task],
    experiment: str,
    folder: str | Path | None,
    resume: bool | str,
    spread: dict[str, Any],
) -> Runs:
    """Run the tasks that no record stands for; the runs in the order of the tasks.

    `spread` holds the arguments of `each` that say where.
    """
    records.check_experiment(experiment)
    inputs.choice("resume", resume, (False, True, "stale"))
    if resume and folder is None:
        raise ValueError("resume needs the folder that holds the records: give one")
    finished: dict[int, list[Run]] = {}
    if folder is not None:
        files.probe(Path(folder) / experiment / "record.json")
        finished = _stored(tasks, Path(folder) / experiment, resume) if resume else {}
    methods = dict(METHODS)  # a worker lacks those that a notebook added

    places = [_Place(i, str(task)) for i, task in enumerate(tasks) if i not in finished]
    taught = _teachers(tasks, places, experiment, spread)
    abroad = spread["executor"] is not None

    def one(item: _Place) -> tuple[_Result, dict[str, str] | None]:
        task = tasks[item.number]
        call: Callable[..., Any] = task.function
        if item.number in taught:
            call = functools.partial(call, teacher=taught[item.number][0])
        if task.checkpoint:
            call = functools.partial(call, checkpoint=task.checkpoint)
        task = task._replace(function=call)
        return _call(task, item.number, methods), records.versions() if abroad else None

    def collect(result: tuple[_Result, dict[str, str] | None]) -> None:
        (place, table, outcome, seconds, threads), versions = result
        task = tasks[place]
        recipe, obstacle = recipe_of_run(task.function, task.seed, task.methods)
        config = task.config | ({"methods": list(table)} if list(table) != [task.label] else {})
        common = dict(
            config=config, identity=task.identity, setting=task.setting, data=task.data,
            code=records.code_fingerprint(), versions=versions or records.versions(),
            commit=records.commit(), repeat=recipe, obstacle=obstacle, seconds=seconds,
            teacher_seconds=taught[place][1] if place in taught else 0.0, threads=threads,
            history=list(outcome.history), kept=outcome.kept,
        )  # fmt: skip
        finished[place] = [
            Run(experiment, method, task.seed, metrics=found, **common)
            for method, found in table.items()
        ]
        if isinstance(outcome.kept, nn.Module):
            made = {
                "call": recipes.name_of(at_seed),
                "args": [(recipe or {}).get("function"), task.seed],
            }
            reason = recipes.Unrepeatable(obstacle)
            recipes.remember(outcome.kept, {"get": "kept", "of": made} if recipe else reason)
        if folder is not None and ranks.join()[0] == 0:
            for run in finished[place]:
                _record(run, folder)

    each(one, places, label=f"runs of {experiment}", on_result=collect, **spread)
    return Runs(run for place in sorted(finished) for run in finished[place])


def _teachers(
    tasks: list[_Task], places: list[_Place], experiment: str, spread: dict[str, Any]
) -> dict[int, tuple[nn.Module, float]]:
    """{place: (its teacher, seconds of training it)}; tasks that share a recipe share the teacher.

    One that fails is left out: its runs fail with the same error, which is then reported.
    """
    shared: dict[tuple[int, int], list[int]] = {}
    for place in places:
        task = tasks[place.number]
        if task.teacher is not None:
            shared.setdefault((id(task.teacher), task.seed), []).append(place.number)
    methods = dict(METHODS)

    def train(item: _Place) -> tuple[int, nn.Module, float]:
        METHODS.update(methods)
        task, start = tasks[item.number], time.perf_counter()
        assert task.teacher is not None
        return item.number, task.teacher(task.seed), time.perf_counter() - start

    found: dict[int, tuple[nn.Module, float]] = {}

    def collect(result: tuple[int, nn.Module, float]) -> None:
        first, network, seconds = result
        for place in shared[id(tasks[first].teacher), tasks[first].seed]:
            found[place] = network, seconds

    items = [_Place(group[0], f"teacher of seed {seed}") for (_, seed), group in shared.items()]
    if items:
        each(train, items, label=f"teachers of {experiment}", on_result=collect, **spread)
    return found


def _call(task: _Task, place: int, methods: Mapping[str, Any]) -> _Result:
    """Carry one task out, in this process or in a worker."""
    METHODS.update(methods)
    start = time.perf_counter()
    outcome = at_seed(task.function, task.seed)
    seconds = time.perf_counter() - start
    return _Result(
        place, by_method(outcome.metrics, task.label), outcome, seconds, torch.get_num_threads()
    )


@recipes.safe
def at_seed(function: Callable[[int], Any], seed: int) -> Outcome:
    """`function(seed)` as an `Outcome`."""
    found = function(seed)
    outcome = found if isinstance(found, Outcome) else Outcome(found)
    if not isinstance(outcome.metrics, Mapping) or not outcome.metrics:
        raise TypeError(
            "function must return metrics {name: number}, or an Outcome around them, got "
            f"{inputs.describe(found)}"
        )
    return outcome


def by_method(metrics: Mapping[str, Any], label: str) -> dict[str, dict[str, float]]:
    """{method: {metric: plain number}}; metrics without methods are the label's."""
    nested = all(isinstance(value, Mapping) for value in metrics.values())
    table = metrics if nested else {label: metrics}
    for method in table:
        if not isinstance(method, str):
            raise TypeError(f"methods must have names in text, got {inputs.describe(method)}")
    return {
        method: {name: _plain(name, value) for name, value in found.items()}
        for method, found in table.items()
    }


def _plain(name: str, value: Any) -> float:
    """A metric as Python's own int or float."""
    if isinstance(value, (Tensor, np.ndarray)) and math.prod(value.shape) == 1:
        value = value.item()
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    raise TypeError(f"metric {name!r} must be a number, got {inputs.describe(value)}")


def _record(run: Run, folder: str | Path) -> None:
    """Write a record; a run that cannot be written stays in memory, with a warning."""
    try:
        records.save(run, folder)
    except (OSError, ValueError) as error:
        warnings.warn(f"not recorded: {error}", RuntimeWarning, stacklevel=2)


def _stored(tasks: list[_Task], folder: Path, resume: bool | str) -> dict[int, list[Run]]:
    """{place: runs} of the tasks that records stand for; other code's only where asked for."""
    if not folder.is_dir():
        return {}
    by_identity: dict[str, list[Run]] = {}
    for path in sorted(folder.glob("*.json")):
        run = records.read(path)
        by_identity.setdefault(run.identity, []).append(run)
    found, stale = {}, 0
    for place, task in enumerate(tasks):
        runs = by_identity.get(task.identity, [])
        wanted = runs[0].config.get("methods", [task.label]) if runs else [task.label]
        by_method = {run.method: run for run in runs}
        if not all(method in by_method for method in wanted):
            continue
        if resume != "stale" and any(by_method[method].stale for method in wanted):
            stale += 1
            continue
        found[place] = [by_method[method] for method in wanted]
    if stale:
        warnings.warn(
            f"{stale} recorded runs were made by other code of the kit and are run again; "
            "resume='stale' takes them as they are",
            stacklevel=4,
        )
    return found


# Checks before the first run


def _seeds(seeds: Sequence[int]) -> list[int]:
    if not isinstance(seeds, Iterable):
        raise TypeError(f"seeds must be several numbers, got {inputs.describe(seeds)}")
    found = [inputs.seed("seeds", seed) for seed in seeds]
    if not found or len(set(found)) < len(found):
        raise ValueError(f"seeds must be different and at least one, got {found}")
    return found


def _spread(
    workers: int | None, executor: Executor | None, progress: bool, on_gpu: bool = False
) -> dict[str, Any]:
    """Arguments of `each`: one process where a GPU or the ranks of `torchrun` share the work."""
    usable(executor, workers)
    check, ranked = None, ranks.join()[1] > 1
    if executor is not None:
        if ranked:
            raise ValueError("executor must be left out under torchrun: each process would use it")
        own = records.code_fingerprint(), str(torch.__version__)
        check = functools.partial(same_code, *own)
    elif on_gpu or ranked:
        if workers not in (None, 1):
            raise ValueError(f"workers must be 1 on a GPU and under torchrun, got {workers}")
        workers = 1
    return {
        "workers": workers,
        "executor": executor,
        "check": check,
        "progress": progress and ranks.join()[0] == 0,
    }


def same_code(code: str, version: str) -> None:
    """Raise a ValueError where the kit's code or torch is another than at the caller's."""
    own = records.code_fingerprint(), str(torch.__version__)
    if own != (code, version):
        raise ValueError(
            f"executor must run the caller's code, kdlib {code} with torch {version}, got workers "
            f"with kdlib {own[0]} and torch {own[1]}: install the same there and start them anew"
        )


def _fresh(teacher: Any, *made_by: Callable[..., nn.Module]) -> functools.partial:
    if isinstance(teacher, functools.partial) and teacher.func in made_by:
        return teacher
    raise TypeError(
        f"teacher must be a network, one for each seed, or training.fresh(constructor, train, ...),"
        f" got {inputs.describe(teacher)}"
    )


def _teacher(teacher: Teachers, seed: int) -> nn.Module | functools.partial | None:
    if isinstance(teacher, functools.partial):
        return _fresh(teacher, drawn)
    if isinstance(teacher, Mapping):
        if seed not in teacher:
            raise ValueError(f"teacher must hold a network for seed {seed}, got {sorted(teacher)}")
        return teacher[seed]
    return teacher


def _rehearse(label: str, settings: Mapping[str, Any], seed: int) -> None:
    """Build everything of one run without training it; the constructor must build anew."""
    settings = dict(settings)
    constructor = settings.pop("student")
    network, again = build(constructor, seed), build(constructor, seed)
    shared = set(map(id, network.parameters())) & set(map(id, again.parameters()))
    if network is again or shared:
        raise ValueError(
            f"student of {label!r} must build a new network at every call, but two calls share "
            "weights: give the class or functools.partial of it"
        )
    if not needs_teacher(settings.get("method", "ce")):
        settings["teacher"] = None
    try:
        if isinstance(settings["teacher"], functools.partial):
            settings["teacher"] = settings["teacher"](seed, stop_after=0)
        fit(network, settings.pop("train"), stop_after=0, progress=False, **settings)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{label!r}: {error}") from error
