"""Settings of notebook 3, tried on validation images."""

from __future__ import annotations

from functools import partial
from typing import Any

from kdlib import data, training
from kdlib.experiments import compare
from kdlib.models import MLP, ConvNet
from kdlib.records import Runs
from kdlib.studies import SEEDS, options

BIG = partial(ConvNet, (16, 32, 64), num_classes=100, dropout=0.1)
RATES = (0.0125, 0.025, 0.05, 0.1, 0.2)
SMALL_MEMORY = dict(dim=64, num_negatives=256)

POCKET = partial(MLP, (32, 32))
TEACHER = partial(MLP, (400, 400), dropout=0.3)
SHIFTS = partial(data.shift, pixels=2)
LESSON = dict(batch_size=128, lr=2e-3)  # of the teachers of single digits
LONG = 15  # their epochs
SHORT = 8  # epochs after which one with shifts is as accurate as one without after LONG


def big(epochs: int = LONG, augment: data.Augment | None = SHIFTS) -> partial:
    """The big teacher, trained anew for every seed."""
    digits = data.load("mnist-5k")
    return training.fresh(TEACHER, digits.train, epochs=epochs, augment=augment, **LESSON)


def single(**keep: Any) -> dict[str, Any]:
    """The pocket student on single digits, judged on validation images."""
    digits = data.load("mnist-5k")
    return keep | dict(
        student=POCKET, train=digits.train, evaluate_on=digits.validation, seeds=SEEDS
    )


def teachers(**keep: Any) -> Runs:
    """After how many epochs is a teacher with shifts as accurate as one that sees none?"""
    tried = options("without shifts", "epochs", (LONG, 25))
    tried |= options("with shifts", "epochs", (2, 3, 4, 5, 6, 8, LONG, 25), augment=SHIFTS)
    return compare(tried, experiment="teachers", **single(**keep) | LESSON | dict(student=TEACHER))


def temperature(**keep: Any) -> Runs:
    """Which temperature and alpha suit the pocket student in 16 quick epochs?"""
    tried: dict[str, dict[str, Any]] = {"alone": {}}
    for alpha in (0.1, 0.5, 0.9, 1.0):
        temperatures = (1.0, 2.0, 4.0, 8.0, 16.0)
        tried |= options(f"alpha {alpha:g}", "temperature", temperatures, method="kd", alpha=alpha)
    return compare(
        tried, experiment="temperature", teacher=big(), epochs=16, batch_size=128, lr=3e-2,
        **single(**keep),
    )  # fmt: skip


def digit_rate(**keep: Any) -> Runs:
    """Which learning rate suits the pocket student in 40 epochs, alone and with each teacher?"""
    kinds: dict[str, dict[str, Any]] = {
        "alone": {},
        "alone + shifts": dict(augment=SHIFTS),
        "KD": dict(method="kd", teacher=big()),
        "KD, teacher without shifts": dict(method="kd", teacher=big(augment=None)),
        "KD, teacher with shifts, short": dict(method="kd", teacher=big(epochs=SHORT)),
    }
    tried: dict[str, dict[str, Any]] = {}
    for name, own in kinds.items():
        tried |= options(name, "lr", (2e-3, 1e-2, 2e-2, 4e-2, 8e-2), **own)
    return compare(tried, experiment="digit rate", epochs=40, batch_size=64, **single(**keep))


def pairs(**keep: Any) -> dict[str, Any]:
    """The students' common settings; their teacher saw other digits."""
    digits = data.load("mnist-5k")
    foreign = data.two_digits(digits.train.take(slice(0, 2000)), 10_000, seed=1)
    teacher = training.build(BIG, 0)
    training.fit(
        teacher, foreign, epochs=10, batch_size=128, lr=6e-3, progress=keep.get("progress", True)
    )
    return keep | dict(
        student=partial(ConvNet, (8, 16, 32), num_classes=100),
        train=data.two_digits(digits.train.take(slice(2000, None)), 1280, seed=2),
        evaluate_on=data.two_digits(digits.validation, 2000, seed=3),
        teacher=teacher,
        seeds=SEEDS,
        epochs=10,
        batch_size=64,
    )


def learning_rate(**keep: Any) -> Runs:
    """At which learning rate do the student alone, with smoothed labels and with KD do best?"""
    methods = (
        options("alone", "lr", RATES)
        | options("label smoothing", "lr", RATES, label_smoothing=0.1)
        | options("KD", "lr", RATES, method="kd", temperature=4.0)
    )
    return compare(methods, experiment="learning rate", **pairs(**keep))


def weights(**keep: Any) -> Runs:
    """Which temperature, weight or stages suit each method at the learning rate 0.05?"""
    tried: dict[str, dict[str, Any]] = {}
    tried |= options("label smoothing", "label_smoothing", (0.05, 0.1, 0.2, 0.4))
    tried |= options("KD: T", "temperature", (1.0, 2.0, 4.0, 8.0, 16.0), method="kd")
    tried |= options("DKD: beta", "beta", (0.5, 1.0, 2.0, 4.0, 8.0), method="dkd", warmup=3)
    for temperature in (1.0, 2.0, 4.0, 8.0):
        tried |= {
            f"DIST, T = {temperature:g}: beta = gamma | {weight:g}": dict(
                method="dist", beta=weight, gamma=weight, temperature=temperature
            )
            for weight in (0.5, 1.0, 2.0, 4.0)
        }
    powers = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
    for stage in (-3, -2):
        tried |= options(f"Hint, stage {stage}", "weight", powers, method="hint", stage=stage)
    for stages in ((0, 1, 2), (1, 2)):
        tried |= options(
            f"AT, stages {', '.join(map(str, stages))}", "weight", (0.1, 0.3, 1.0, 3.0, 10.0, 30.0),
            method="at", stage=stages,
        )  # fmt: skip
    for stage in (-3, -2):
        tried |= options(
            f"VID, stage {stage}", "weight", (0.15, 0.5, 1.5, 5.0, 15.0, 50.0),
            method="vid", stage=stage,
        )  # fmt: skip
    for stage in (-3, -2):
        tried |= options(
            f"NST, stage {stage}", "weight", (0.1, 0.3, 1.0, 3.0, 10.0), method="nst", stage=stage
        )
    tried |= options("SP", "weight", (10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0), method="sp")
    tried |= options("CC", "weight", (0.002, 0.02, 0.2, 2.0, 20.0), method="cc")
    tried |= options("RKD", "weight", (0.03, 0.1, 0.3, 1.0, 3.0), method="rkd")
    tried |= options("PKT", "weight", (3e3, 1e4, 3e4, 1e5, 3e5), method="pkt")
    tried |= options(
        "CRD", "weight", (0.01, 0.03, 0.1, 0.3, 1.0), method="crd", **SMALL_MEMORY
    )  # fmt: skip
    tried |= {
        f"KD + CRD: CRD | {weight:g}": dict(
            method="kd+crd", ce_weight=0.1, crd=SMALL_MEMORY | dict(weight=weight)
        )
        for weight in (0.01, 0.03, 0.1, 0.3, 1.0)
    }
    return compare(tried, experiment="weights", lr=0.05, **pairs(**keep))


PARTS = (learning_rate, weights, teachers, temperature, digit_rate)
