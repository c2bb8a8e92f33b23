"""Distillation of image classifiers: what a step costs, and where its time goes."""

from __future__ import annotations

import contextlib
import functools
import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from kdlib import data, distillers, training
from kdlib.benchmarks import loops, networks
from kdlib.benchmarks.clock import (
    RATE,
    WARMUP,
    Enough,
    Looped,
    Paced,
    Ratio,
    beyond,
    in_turns,
    occupied,
    waited,
)
from kdlib.benchmarks.networks import BATCH, Pair, fitted
from kdlib.benchmarks.plan import Plan, machine
from kdlib.benchmarks.rows import Row

LOGITS = ("kd", "reverse_kl", "jsd", "dkd", "dist")
GOALS = {**dict.fromkeys(LOGITS, "<= 1.05"), "vid": "<= 2", "nst": "<= 2", "crd": "<= 2"}
PRECISIONS = {"float32": None, "bf16": "bf16"}
RECIPE = {"optimizer": "sgd", "lr": 0.05, "weight_decay": 5e-4, "augment": data.standard}
WORKERS = 8  # of the published loop's DataLoader
STUDIED = 50_000  # images of the published training set, which size the memory of CRD


# Methods beside plain training


def methods(plan: Plan) -> Iterator[Row]:
    """A step of each method over a plain step of the same student."""
    yield from _published_methods(plan) if plan.device == "cuda" else _small_methods(plan)


def _small_methods(plan: Plan) -> Iterator[Row]:
    train, pair = networks.digits(plan), networks.small()
    steps = len(train.labels) // BATCH
    label = f"{pair.title}, teacher cached"
    with paced(plan, pair, train) as plain:
        for method in method_names():
            goal = GOALS.get(method, "")
            yield _beside(plan, plain, label, pair, train, method, steps, plan.rounds(9), goal)


def _published_methods(plan: Plan) -> Iterator[Row]:
    few = networks.noise(plan.sized(100, 4) * BATCH, plan.where)
    many = networks.noise(plan.sized(STUDIED, 4 * BATCH), plan.where)
    steps, rounds = plan.sized(15, 2), plan.rounds(5)
    for graphs in (True, False):
        for pair in networks.published(plan):
            for name, precision in PRECISIONS.items():
                own: dict[str, Any] = {**RECIPE, "precision": precision, "graphs": graphs}
                label = f"{pair.title}, {name}, {_way(graphs)}, teacher run in each step"
                with paced(plan, pair, few, **own) as plain:
                    for method in method_names():
                        train = many if method == "crd" else few
                        yield _beside(plan, plain, label, pair, train, method, steps, rounds, **own)


def _way(graphs: bool) -> str:
    return "CUDA graphs" if graphs else "eager"


def method_names() -> list[str]:
    """All but plain training."""
    return [method for method in distillers.METHODS if method != "ce"]


def paced(plan: Plan, pair: Pair, train: data.Split, **own: Any) -> Paced:
    """A training by `fit` with these options, warmed up."""
    warmup = plan.sized(WARMUP, 1)
    return Paced(functools.partial(_scheduled, pair, train, own), plan.where, warmup)


def _scheduled(pair: Pair, train: data.Split, own: dict, schedule: Callable) -> None:
    fitted(pair, train, schedule, **own)


def _beside(
    plan: Plan,
    plain: Paced,
    label: str,
    pair: Pair,
    train: data.Split,
    method: str,
    steps: int,
    rounds: int,
    goal: str = "",
    **own: Any,
) -> Row:
    """A step with the method over one of `plain`, which differs in nothing else."""
    what = f"{label}: step with {method} / step with cross-entropy alone"
    row = Row("methods", what, goal=goal, device=machine(plan.device))
    before = occupied(plan.where)
    try:
        options = {**pair.options(method), **own}
        with paced(plan, pair, train, method=method, **options) as timed:
            ratio = in_turns(timed, plain, steps=steps, rounds=rounds)
            row.values = {"ms": 1e3 * ratio.first, "plain ms": 1e3 * ratio.second}
            row.values["images/s"] = BATCH / ratio.first
            if plan.device == "cuda":
                row.values["peak MiB"] = beyond(timed, plan.where, before)
    except Exception as error:  # of one method: the others are measured
        row.unmeasured = _brief(error)
        return row
    row.take(ratio)
    return row


def _brief(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


# The whole loop beside others


def recipe(plan: Plan) -> Iterator[Row]:
    """Our step of the published recipe over the published loop's, on the same networks."""
    ways = ("CUDA graphs", "eager")
    yield from _recipes(plan, "recipe", [(name, way) for way in ways for name in PRECISIONS])


def compiled(plan: Plan) -> Iterator[Row]:
    """The same with networks that torch.compile has made faster, which takes its time."""
    ways = ("compiled, CUDA graphs", "compiled")
    variants = [(name, way) for name in ("bf16", "float32") for way in ways]
    yield from _recipes(plan, "compiled", variants)


def _recipes(plan: Plan, benchmark: str, variants: list[tuple[str, str]]) -> Iterator[Row]:
    count = plan.sized(100, 4) * BATCH
    train = networks.noise(count, plan.where)
    pictures = loops.Pictures(plan.sized(STUDIED, count))
    workers = min(WORKERS, os.cpu_count() or 1)
    peers = []
    for pair in networks.published(plan):
        teacher, student = (training.build(one, 0) for one in (pair.teacher, pair.student))
        steps = loops.published(
            teacher, student, pictures, plan.where, batch_size=BATCH, workers=workers
        )
        peers.append(Looped(steps, plan.where, plan.sized(20, 1)))
    for name, way in variants:
        for pair, peer in zip(networks.published(plan), peers):
            yield _against(plan, benchmark, pair, peer, train, name, way, workers)


def _against(
    plan: Plan,
    benchmark: str,
    pair: Pair,
    peer: Looped,
    train: data.Split,
    name: str,
    way: str,
    workers: int,
) -> Row:
    steps, rounds = plan.sized(25, 1), plan.rounds(4, 2)
    what = f"{pair.title}, kd, {name}, {way}: our loop / published loop"
    row = Row(benchmark, what, "speed", goal=">= 3", device=machine(plan.device))
    row.details["workers of the published loop's DataLoader"] = workers
    before = [peer.seconds(steps) / steps for _ in range(rounds)]
    try:
        found, first = _variant(plan, pair, train, PRECISIONS[name], way, steps, 2 * rounds)
    except Exception as error:
        row.unmeasured = _brief(error)
        return row
    after = [peer.seconds(steps) / steps for _ in range(rounds)]
    ratio = Ratio.of(before + after, found)
    row.take(ratio)
    row.values = {"images/s": BATCH / ratio.second, "published images/s": BATCH / ratio.first}
    row.details["seconds before the first counted step"] = first
    return row


def _variant(
    plan: Plan,
    pair: Pair,
    train: data.Split,
    precision: str | None,
    way: str,
    steps: int,
    rounds: int,
) -> tuple[list[float], float]:
    """Seconds of a step in each round, and those before the first.

    In this very thread: graphs belong to the one that recorded them.
    """
    stopwatch = Stopwatch(plan, steps, rounds)
    start = time.perf_counter()
    torch.compiler.reset()
    own: dict[str, Any] = {**RECIPE, "precision": precision, "method": "kd"}
    own |= {"graphs": way == "CUDA graphs", "compile": way.startswith("compiled")}
    mode = "reduce-overhead" if way == "compiled, CUDA graphs" else None
    with _compiling(mode), contextlib.suppress(Enough):
        fitted(pair, train, stopwatch, **own)
    return stopwatch.times, stopwatch.first - start


@contextlib.contextmanager
def _compiling(mode: str | None) -> Iterator[None]:
    """`torch.compile` in a mode of its own, which `fit` does not offer."""
    plain = torch.compile
    torch.compile = functools.partial(plain, mode=mode)
    try:
        yield
    finally:
        torch.compile = plain


class Stopwatch:
    """A schedule that measures some rounds of steps, and then ends the training.

    Args:
        profiler: watches the last round, which is not measured then.
    """

    def __init__(
        self, plan: Plan, steps: int, rounds: int, profiler: profile | None = None
    ) -> None:
        self._device, self._steps, self._rounds = plan.where, steps, rounds
        self._left, self._seen, self._last = plan.sized(12, 1) + 1, -1.0, 0.0
        self._profiler = profiler
        self.first, self.times = 0.0, list[float]()

    def __call__(self, progress: float) -> float:
        if progress != self._seen:
            self._seen = progress
            self._left -= 1
            if self._left == 0:
                self._mark()
        return RATE

    def _mark(self) -> None:
        now = waited(self._device)
        if not self._last:
            self.first = now
        elif len(self.times) < self._rounds:
            self.times.append((now - self._last) / self._steps)
        else:
            self._profiler.stop()  # type: ignore[union-attr]
            raise Enough
        if len(self.times) == self._rounds:
            if self._profiler is None:
                raise Enough
            self._profiler.start()
        self._last, self._left = waited(self._device), self._steps


# Where the time of a step goes


def input_pipeline(plan: Plan) -> Iterator[Row]:
    """Shuffled, augmented batches over the training step that reads them."""
    train = networks.noise(plan.sized(100, 4) * BATCH, plan.where)
    ways = {
        "shuffled": None,
        "with crop and flip": data.standard,
        "with crop, flip and jitter": data.chain(data.standard, data.jitter),
    }
    pair = networks.published(plan)[0] if plan.device == "cuda" else networks.colour(*CPU_PAIR)
    for name, precision in PRECISIONS.items() if plan.device == "cuda" else [("float32", None)]:
        own = {**RECIPE, "precision": precision, "method": "kd"}
        with paced(plan, pair, train, **own) as step:
            for title, augment in ways.items():
                batches = Looped(_endless(train, augment), plan.where)
                ratio = in_turns(batches, step, steps=plan.sized(30, 2), rounds=plan.rounds(5))
                what = f"{pair.title}, kd, {name}: batches {title} / step with crop and flip"
                goal = "<= 0.1" if augment is data.standard else ""
                values = {"batch ms": 1e3 * ratio.first, "step ms": 1e3 * ratio.second}
                row = Row.measured("input", what, ratio, goal=goal, values=values)
                row.device = machine(plan.device)
                yield row


def _endless(train: data.Split, augment: Any) -> Iterator[Any]:
    source = training.image_batches(train, BATCH, 100, augment)
    epoch = 0
    while True:
        epoch += 1
        yield from source(epoch, data.generator(epoch))


def operations(plan: Plan) -> Iterator[Row]:
    """How long the GPU computes in a step, and which operations take the time."""
    train = networks.noise(plan.sized(100, 4) * BATCH, plan.where)
    pair, other = networks.published(plan)
    wanted = [(pair, "kd", "float32"), (pair, "kd", "bf16"), (pair, "ofa", "bf16")]
    for pair, method, name in [*wanted, (other, "kd", "float32"), (other, "kd", "bf16")]:
        row = Row("operations", f"{pair.title}, {method}, {name}: kernels on the GPU / step")
        row.device = machine(plan.device)
        try:
            _profiled(plan, pair, train, method, PRECISIONS[name], row)
        except Exception as error:
            row.unmeasured = _brief(error)
        yield row


def _profiled(
    plan: Plan, pair: Pair, train: data.Split, method: str, precision: str | None, row: Row
) -> None:
    steps = plan.sized(6, 2)
    kinds = [ProfilerActivity.CPU]
    kinds += [ProfilerActivity.CUDA] if plan.device == "cuda" else []
    seen = profile(activities=kinds)
    stopwatch = Stopwatch(plan, steps, plan.rounds(5), seen)
    own: dict[str, Any] = {**RECIPE, "precision": precision, "method": method}
    with contextlib.suppress(Enough):
        fitted(pair, train, stopwatch, **own)
    plain = statistics.median(stopwatch.times)
    table = seen.key_averages()
    kernels = [
        one
        for one in table
        if str(one.device_type).endswith("CUDA") and not getattr(one, "is_user_annotation", False)
    ]
    busy = sum(one.self_device_time_total for one in kernels) / steps / 1e6
    row.ratio = busy / plain
    row.values = {
        "step ms": 1e3 * plain,
        "GPU ms": 1e3 * busy,
        "kernels a step": sum(one.count for one in kernels) / steps,
    }
    for title, key in {"GPU": "self_device_time_total", "CPU": "self_cpu_time_total"}.items():
        ordered = sorted(table, key=lambda one: -getattr(one, key))[:25]
        row.details[f"ms and calls of a step on the {title}"] = {
            one.key[:80]: [getattr(one, key) / steps / 1e3, one.count / steps] for one in ordered
        }


# Order of the pixels


def pixels(plan: Plan) -> Iterator[Row]:
    """Channels last, which the kit's convolutional networks prefer, over channels first."""
    pair, count = networks.colour(*CPU_PAIR), plan.sized(16, 2) * BATCH
    train = networks.noise(count, plan.where)
    for title, augment in {"teacher cached": None, "teacher run in each step": unchanged}.items():
        made = (
            paced(plan, pair, train, method="kd", augment=augment, memory_format=order)
            for order in (torch.channels_last, torch.contiguous_format)
        )
        last, first = made
        with last, first:
            ratio = in_turns(last, first, steps=count // BATCH, rounds=plan.rounds(7))
        values = {"ms": 1e3 * ratio.first, "other ms": 1e3 * ratio.second}
        what = f"{pair.title}, kd, {title}: channels last / channels first"
        yield Row.measured("pixels", what, ratio, values=values, device=machine(plan.device))


# The teacher


def teacher(plan: Plan) -> Iterator[Row]:
    """The teacher's outputs kept, or its network run in each step."""
    if plan.device == "cuda":
        pairs = networks.published(plan)[:1]
        train = networks.noise(plan.sized(100, 4) * BATCH, plan.where)
        ways: list[dict[str, Any]] = [{"graphs": True}, {}]
    else:
        pairs, train, ways = [networks.small()], networks.digits(plan), [{}]
    steps, rounds = plan.sized(len(train.labels) // BATCH, 2), plan.rounds(7)
    for pair in pairs:
        for own in ways:
            title = pair.title + (f", {_way('graphs' in own)}" if plan.device == "cuda" else "")
            with paced(plan, pair, train, **own) as plain:
                for method in ("kd", "hint"):
                    again = {"method": method, "augment": unchanged, **own}
                    with (
                        paced(plan, pair, train, method=method, **own) as kept,
                        paced(plan, pair, train, **again) as run,
                    ):
                        compared = {
                            f"{method}, teacher cached / cross-entropy alone": (kept, plain),
                            f"{method}, teacher run in each step / cached": (run, kept),
                        }
                        for what, (one, other) in compared.items():
                            ratio = in_turns(one, other, steps=steps, rounds=rounds)
                            goal = "<= 1.05" if method == "kd" and other is plain else ""
                            row = Row.measured("teacher", f"{title}: {what}", ratio, goal=goal)
                            row.values = {"ms": 1e3 * ratio.first, "other ms": 1e3 * ratio.second}
                            row.device = machine(plan.device)
                            yield row


def unchanged(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """An augmentation that does nothing, so that the teacher has to run."""
    return images


CPU_PAIR = ("resnet20", "resnet8")
