"""Our loop beside others: a student's, a published one, and what `--peer` names."""

from __future__ import annotations

import importlib
import statistics
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from kdlib import data, training
from kdlib.benchmarks import loops, networks
from kdlib.benchmarks.clock import RATE, Called, Looped, Timed, in_turns
from kdlib.benchmarks.networks import BATCH, Pair
from kdlib.benchmarks.plan import Plan, machine
from kdlib.benchmarks.rows import Row
from kdlib.benchmarks.vision import RECIPE, paced, unchanged

PUBLISHED = "recomputed, published loop"


def loops_beside(plan: Plan) -> Iterator[Row]:
    """Our kd step over that of a plain loop on the same networks; both in float32, one process."""
    yield from _beside_a_students(plan)
    yield from _beside_the_published(plan)


def _beside_a_students(plan: Plan) -> Iterator[Row]:
    """On digits, without augmentation: their loop runs the teacher in each step."""
    pair, train = networks.small(), networks.digits(plan)
    teacher, student = (training.build(one, 0) for one in (pair.teacher, pair.student))
    plain = Looped(loops.own(teacher, student, train, batch_size=BATCH), plan.where)
    steps = len(train.labels) // BATCH
    for title, augment, goal in (
        ("teacher run in each step", unchanged, ""),
        ("teacher cached", None, ">= 2"),
    ):
        with paced(plan, pair, train, method="kd", augment=augment) as ours:
            what = f"{pair.title}, kd: our loop, {title} / plain loop over a DataLoader"
            yield _speed(plan, what, ours, plain, steps, goal)


def _beside_the_published(plan: Plan) -> Iterator[Row]:
    """On colour images, with the recipe's augmentation, and without any."""
    pair = networks.colour("resnet20", "resnet8")
    count = plan.sized(16, 2) * BATCH
    train = networks.noise(count, plan.where)
    steps = count // BATCH
    for title, augment, goal in (
        ("crop and flip, teacher run in each step", data.standard, ">= 1.4"),
        ("no augmentation, teacher cached", None, ">= 2"),
        ("no augmentation, teacher run in each step", unchanged, ""),
    ):
        teacher, student = (training.build(one, 0) for one in (pair.teacher, pair.student))
        pictures = loops.Pictures(count, augment is data.standard)
        made = loops.published(teacher, student, pictures, plan.where, batch_size=BATCH, workers=0)
        plain = Looped(made, plan.where, plan.sized(3, 1))
        with paced(plan, pair, train, method="kd", **{**RECIPE, "augment": augment}) as ours:
            what = f"{pair.title}, kd, {title}: our loop / published loop"
            yield _speed(plan, what, ours, plain, steps, goal)


def _speed(
    plan: Plan,
    what: str,
    ours: Timed,
    theirs: Timed,
    steps: int,
    goal: str = "",
    name: str = "loops",
) -> Row:
    ratio = in_turns(theirs, ours, steps=plan.sized(steps, 1), rounds=plan.rounds(7))
    row = Row.measured(name, what, ratio, unit="speed", goal=goal, device=machine(plan.device))
    row.values = {"images/s": BATCH / ratio.second, "their images/s": BATCH / ratio.first}
    return row


# --peer


def peer(plan: Plan) -> Iterator[Row]:
    """Beside RepDistiller's own code, or beside another version of this kit."""
    if plan.peer is None:
        yield Row("peer", "our loop / the loop of --peer", unmeasured="no --peer was given")
    elif Path(plan.peer, "helper", "loops.py").is_file():
        yield from _beside_repdistiller(plan, plan.peer)
    elif Path(plan.peer, "kdlib", "training.py").is_file():
        yield from _beside_another_version(plan, plan.peer)
    else:
        reason = "--peer must hold helper/loops.py (RepDistiller) or kdlib/training.py (this kit)"
        yield Row("peer", "our loop / the loop of --peer", unmeasured=reason)


def _beside_repdistiller(plan: Plan, folder: str) -> Iterator[Row]:
    """Its `train_distill` on its own networks, which our loop trains too."""
    sys.path.insert(0, folder)
    theirs, made = importlib.import_module("helper.loops"), importlib.import_module("models")
    constructors = [made.model_dict[name] for name in ("resnet20", "resnet8")]
    pair = Pair("resnet20 teaches resnet8", *(_classes(one) for one in constructors))
    count = plan.sized(16, 2) * BATCH
    steps = count // BATCH
    train = networks.noise(count, plan.where)
    for title, augment, goal in (
        ("crop and flip, teacher run in each step", data.standard, ">= 1.4"),
        ("no augmentation, teacher cached", None, ">= 2"),
    ):
        loader = DataLoader(
            loops.Pictures(count, augment is not None), BATCH, shuffle=True, drop_last=True
        )
        epoch = Called(_their_epoch(theirs.train_distill, pair, loader), plan.where)
        with paced(plan, pair, train, method="kd", **{**RECIPE, "augment": augment}) as ours:
            what = f"RepDistiller's {pair.title}, kd, {title}: our loop / its train_distill"
            yield _speed(plan, what, ours, _Epochs(epoch, steps), steps, goal, "peer")


def _classes(constructor: Any) -> Any:
    return lambda: constructor(num_classes=100)


def _their_epoch(train_distill: Any, pair: Pair, loader: DataLoader) -> Any:
    student, teacher = (training.build(one, 0) for one in (pair.student, pair.teacher))
    criteria = nn.ModuleList([nn.CrossEntropyLoss(), _Divergence(), nn.Identity()])
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05 * RATE, momentum=0.9)
    options = Namespace(distill="kd", gamma=0.1, alpha=0.9, beta=0.0, print_freq=100)
    modules = nn.ModuleList([student, teacher])
    return lambda: train_distill(1, loader, modules, criteria, optimizer, options)


class _Divergence(nn.Module):
    def forward(self, logits: torch.Tensor, lesson: torch.Tensor) -> torch.Tensor:
        return loops.divergence(logits, lesson)


class _Epochs:
    """Whole epochs, asked for in steps."""

    def __init__(self, epoch: Called, steps: int) -> None:
        self._epoch, self._steps = epoch, steps

    def seconds(self, steps: int) -> float:
        whole = max(1, steps // self._steps)
        return self._epoch.seconds(whole) * steps / (whole * self._steps)


VERSION = """
import sys, time, torch
sys.path.insert(0, sys.argv[1])
torch.set_num_threads(1)
from kdlib import data, models, training
train = data.load().train
for method in sys.argv[2:]:
    student = training.build(lambda: models.ConvNet((16, 32, 64)), 0)
    teacher = training.build(lambda: models.ConvNet((32, 64, 128)), 1)
    own = {} if method == "ce" else {"teacher": teacher}
    start = time.perf_counter()
    training.fit(student, train, method=method, epochs=4, progress=False, **own)
    print(method, time.perf_counter() - start)
"""  # run in the folder of each version, by turns


def _beside_another_version(plan: Plan, folder: str) -> Iterator[Row]:
    methods = ("ce", "kd", "hint", "vid", "nst", "crd")
    places = (str(Path(training.__file__).parents[1]), folder)
    found: dict[str, dict[str, list[float]]] = {name: {} for name in methods}
    for _ in range(plan.rounds(5)):
        for place in places:
            done = subprocess.run(
                [sys.executable, "-P", "-c", VERSION, place, *methods],
                capture_output=True, text=True, check=True, cwd=place,
            )  # fmt: skip
            for line in done.stdout.splitlines():
                name, seconds = line.split()
                found[name].setdefault(place, []).append(float(seconds))
    for name, times in found.items():
        ours, theirs = (times[place] for place in places)
        row = Row("peer", f"whole `fit` with {name}: this kit / the other version", device="CPU")
        ratios = [a / b for a, b in zip(ours, theirs)]
        row.ratio, row.low, row.high = statistics.median(ratios), min(ratios), max(ratios)
        row.rounds = len(ratios)
        yield row
