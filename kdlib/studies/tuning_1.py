"""Settings of notebook 1, tried on validation images."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kdlib import data, training
from kdlib.experiments import compare, over_seeds
from kdlib.models import MLP, Answers, ConvNet, Ensemble, TwoDigits
from kdlib.records import Runs
from kdlib.studies import SEEDS, options

WIDTHS = (16, 32, 64, 128, 256)
RATES = (0.006, 0.012, 0.024, 0.048, 0.096)
MEMBERS = tuple(1000 * seed + number for seed in SEEDS for number in range(5))

digits = data.load("mnist-5k")
for_teachers = data.two_digits(digits.train.take(slice(None, 1750)), 3000, seed=1)
for_students = data.two_digits(digits.train.take(slice(1750, None)), 3000, seed=2)
private = data.two_digits(digits.train.take(slice(None, 2000)), 10_000, seed=1)
own = data.two_digits(digits.train.take(slice(2000, None)), 1500, seed=2)
validation = data.two_digits(digits.validation, 3000, seed=3)

PLAIN: dict[str, Any] = dict(train=for_students, evaluate_on=validation, epochs=15, batch_size=64)
STUDENT = partial(ConvNet, (8, 16, 32), num_classes=100)
CLOSED: dict[str, Any] = dict(student=STUDENT, evaluate_on=validation, epochs=15, batch_size=64)

BIG = partial(MLP, (400, 400), dropout=0.3)
BIG_RECIPE: dict[str, Any] = dict(
    epochs=12, batch_size=128, lr=5e-3, augment=partial(data.shift, pixels=2)
)
TEACHER = partial(ConvNet, (16, 32, 64), num_classes=100, dropout=0.1)
TEACHER_RECIPE: dict[str, Any] = dict(epochs=6, batch_size=128, lr=0.024)


def never_saw_a_three(**keep: Any) -> Runs:
    """At which temperature and rate does the pocket student that never saw a 3 learn most?"""
    seen = digits.train.take(torch.where(digits.train.labels != 3)[0])
    images, labels = digits.validation

    def right(logits: Tensor, raised: float) -> dict[str, float]:
        answers = (logits + raised * (torch.arange(10) == 3)).argmax(1) == labels
        return {
            "accuracy": 100 * answers.double().mean().item(),
            "3s": 100 * answers[labels == 3].double().mean().item(),
        }

    def one(seed: int, teacher: nn.Module) -> dict[str, dict[str, float]]:
        found = {}
        for lr in (5e-3, 1e-2, 2e-2, 4e-2):
            for temperature in (4.0, 10.0, 20.0):
                student = training.trained(
                    training.build(partial(MLP, (32, 32)), seed), seen, seed=seed, epochs=20,
                    batch_size=64, lr=lr, method="kd", teacher=teacher, alpha=1.0,
                    temperature=temperature,
                )  # fmt: skip
                logits = training.predict(student, images)
                found[f"rate at T = {temperature:g} | {lr:g}"] = right(logits, 0)
                if (lr, temperature) == (2e-2, 10):
                    for raised in (0, 1, 2, 3, 4):
                        found[f"logit of 3 raised by | {raised}"] = right(logits, raised)
        return found

    teacher = training.fresh(BIG, digits.train, **BIG_RECIPE)
    return over_seeds(one, SEEDS, teacher=teacher, experiment="never saw a 3", **keep)


def mlp(width: int) -> partial[MLP]:
    """The networks of sections 1 and 2."""
    return partial(MLP, (width, width), in_features=14 * 28, num_classes=100)


def ensembles(**keep: Any) -> dict[int, torch.nn.Module]:
    """{seed: an ensemble of five of width 64}."""
    where = {name: keep[name] for name in ("workers", "executor") if name in keep}
    runs = compare(
        {"member": {}}, student=mlp(64), seeds=MEMBERS, lr=0.024, keep=True, experiment="members",
        **PLAIN | {"train": for_teachers}, **where,
    )  # fmt: skip
    members = runs.kept("member")
    return {
        seed: training.build(
            partial(Ensemble, [members[1000 * seed + number] for number in range(5)]), 0
        )
        for seed in SEEDS
    }


def learning_rate(**keep: Any) -> Runs:
    """At which learning rate does each network do best, alone and taught by an ensemble?"""
    taught = dict(method="kd", temperature=4.0, alpha=0.9, teacher=ensembles(**keep))
    methods: dict[str, Any] = {}
    for width in WIDTHS:
        methods |= options(f"alone, {width}", "lr", RATES, student=mlp(width))
    for width in WIDTHS[:3]:
        methods |= options(f"distilled, {width}", "lr", RATES, student=mlp(width), **taught)
    methods |= options("knows the structure", "lr", RATES, student=TwoDigits)
    return compare(
        methods, student=mlp(16), seeds=SEEDS, experiment="learning rate", **PLAIN, **keep
    )


def temperature(**keep: Any) -> Runs:
    """Which temperature and which weight suit the pocket student, taught by an ensemble?"""
    teachers = ensembles(**keep)
    methods: dict[str, Any] = {}
    for alpha in (0.5, 0.9, 1.0):
        methods |= options(
            f"alpha {alpha:g}", "temperature", (1.0, 2.0, 4.0, 8.0),
            method="kd", alpha=alpha, teacher=teachers,
        )  # fmt: skip
    return compare(
        methods, student=mlp(32), seeds=SEEDS, lr=0.024, experiment="temperature", **PLAIN, **keep
    )


def closed_teacher(**keep: Any) -> Runs:
    """At which learning rate does the closed teacher do best?"""
    methods = options("teacher", "lr", (0.006, 0.012, 0.024, 0.048))
    return compare(
        methods, student=TEACHER, train=private, evaluate_on=validation, seeds=SEEDS,
        experiment="closed teacher", **TEACHER_RECIPE | keep,
    )  # fmt: skip


class Label(nn.Module):
    """A service that answers with a label: the divergence from it is the cross-entropy."""

    def __init__(self, teacher: nn.Module) -> None:
        super().__init__()
        self.teacher = teacher

    def forward(self, images: Tensor) -> Tensor:
        logits = self.teacher(images)
        return 100 * nn.functional.one_hot(logits.argmax(1), logits.shape[1]).to(logits)


def offers(**keep: Any) -> Runs:
    """At which learning rate does the student of each offer of the closed teacher do best?"""
    teachers = {seed: training.drawn(TEACHER, private, seed, **TEACHER_RECIPE) for seed in SEEDS}
    labels = {
        seed: training.build(partial(Label, teacher), 0) for seed, teacher in teachers.items()
    }

    def soft(temperature: float, **reveals: int) -> dict[str, Any]:
        told = {
            seed: training.build(partial(Answers, teacher, **reveals), 0) if reveals else teacher
            for seed, teacher in teachers.items()
        }
        return dict(method="kd", temperature=temperature, alpha=1.0, teacher=told)

    def hinted(weight: float) -> dict[str, Any]:
        parts = dict(kd=dict(temperature=4.0, alpha=1.0), hint=dict(weight=weight))
        return dict(method="kd+hint", ce_weight=0, teacher=teachers, **parts)

    levels: dict[str, dict[str, Any]] = {
        "label": dict(method="kd", temperature=1.0, alpha=1.0, teacher=labels),
        "+ its probability": soft(1.0, top=1), "top three": soft(1.0, top=3),
        "all, T = 1": soft(1.0), "all, T = 4": soft(4.0), "+ hint": hinted(10.0),
        "top three, T = 4": soft(4.0, top=3), "rounded, T = 4": soft(4.0, decimals=2),
        "true labels": {},
    }  # fmt: skip
    methods: dict[str, dict[str, Any]] = {}
    for level, way in levels.items():
        methods |= options(level, "lr", (0.05, 0.1, 0.2, 0.4), **way)
    methods |= {
        f"+ hint, its weight | {weight:g}": hinted(weight) | {"lr": 0.1}
        for weight in (1.0, 3.0, 10.0, 30.0)
    }
    return compare(methods, train=own, seeds=SEEDS, experiment="offers", **CLOSED, **keep)


PARTS = (never_saw_a_three, learning_rate, temperature, closed_teacher, offers)
