"""Settings of notebook 4, tried on validation images.

Each part trains the teachers of one section once a seed, and its students at several learning
rates (the independent one and KL alike) and, for Hint and CRD, with several weights. "accuracy" is
that of the section's own task, "property" what the section measures; the notebook says how.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from kdlib import analysis, data, domains
from kdlib.data import Split, generator
from kdlib.experiments import over_seeds
from kdlib.models import MLP, ConvNet
from kdlib.records import Runs
from kdlib.studies import SEEDS
from kdlib.training import build, evaluate, trained

RATES = (0.003, 0.006, 0.012, 0.024, 0.048)
WEIGHTS = {"Hint": (1.5, 5.0, 15.0, 50.0, 150.0), "CRD": (0.3, 1.0, 3.0)}
BIG, SMALL = partial(ConvNet, (16, 32, 64)), partial(ConvNet, (8, 16, 32))
POOLED, RGB = partial(SMALL, downsample="pool"), partial(BIG, in_channels=3)
POCKET = partial(MLP, (32, 32), in_features=196)
TEACHER = partial(MLP, (400, 400), in_features=196, dropout=0.3)

Metrics = dict[str, dict[str, float]]
Measure = Callable[[nn.Module, nn.Module], dict[str, float]]  # of a student and of Ind


def train(network: Callable[[], nn.Module], split: Split, seed: int, **options: Any) -> nn.Module:
    return trained(build(network, seed), split, seed=seed, **options)


def tried(
    seed: int, network: partial, split: Split, teacher: nn.Module, measure: Measure,
    recipe: dict[str, Any], *, lr: float, alpha: float = 1.0, stage: str = "blocks.2",
) -> Metrics:  # fmt: skip
    """Students at every rate, and Hint and CRD with every weight at the rate `lr`."""
    kl = dict(method="kd", temperature=4, alpha=alpha, teacher=teacher)
    hint = dict(method="hint", stage=stage, normalise=True, teacher=teacher)
    crd = dict(method="crd", bank=False, other_classes=True, teacher=teacher)
    start, found = 100 * seed + 50, {}
    alone = {rate: train(network, split, start, lr=rate, **recipe) for rate in sorted({*RATES, lr})}
    for rate, ind in alone.items():
        found[f"Ind: lr | {rate:g}"] = {"accuracy": measure(ind, ind)["accuracy"]}
        taught = train(network, split, start, lr=rate, **recipe, **kl)
        found[f"KL: lr | {rate:g}"] = measure(taught, ind)
    for name, way in (("Hint", hint), ("CRD", crd)):
        for weight in WEIGHTS[name]:
            taught = train(network, split, start, lr=lr, **recipe, **way, weight=weight)
            found[f"{name}: weight | {weight:g}"] = measure(taught, alone[lr])
    return found


# The opening


def turn(seed: int) -> Metrics:
    digits = data.load("mnist-5k", size=14)
    tilted = domains.rotate(digits.train.images, 45)
    turned = Split(domains.rotate(digits.validation.images, 45), digits.validation.labels)

    def mixed(share: float, seed: int) -> Split:
        chosen = torch.rand(len(tilted), generator=generator(seed)) < share
        images = torch.where(chosen[:, None, None, None], tilted, digits.train.images)
        return Split(images, digits.train.labels)

    recipe = dict(epochs=10, batch_size=64, augment=data.shift)
    unfair = train(TEACHER, mixed(0.05, 4), 100 * seed, lr=2e-3, **recipe)

    def measure(student: nn.Module, ind: nn.Module) -> dict[str, float]:
        upright, other = (evaluate(student, s)["accuracy"] for s in (digits.validation, turned))
        return {"accuracy": (upright + other) / 2, "property": upright - other}

    half = mixed(0.5, 3)
    return tried(seed, POCKET, half, unfair, measure, recipe, lr=0.024, alpha=0.9, stage="blocks.1")


def fairness(**keep: Any) -> Runs:
    """The pocket student: points between the accuracies of upright and of turned digits."""
    return over_seeds(turn, SEEDS, experiment="fairness", **keep)


# Section 2


def look_at(seed: int) -> Metrics:
    digits = data.load("mnist-5k")
    free = domains.scene(digits.train, marker="random", seed=1)
    half = Split(*(part[::2] for part in digits.train))
    coded = domains.scene(half, marker="class", seed=2)
    trial = domains.scene(digits.validation, marker="random", seed=3)
    own = domains.scene(digits.validation, marker="class", seed=4)
    teacher = train(BIG, free, 100 * seed, epochs=8, batch_size=128, lr=8e-3)
    cam = analysis.grad_cam(teacher, *trial, "blocks.2")

    def measure(student: nn.Module, ind: nn.Module) -> dict[str, float]:
        maps = (analysis.grad_cam(network, *trial, "blocks.2") for network in (student, ind))
        return evaluate(student, own) | {"property": analysis.closer_share(cam, *maps)}

    recipe = dict(epochs=8, batch_size=64)
    return tried(seed, SMALL, coded, teacher, measure, recipe, lr=0.012, alpha=0.9)


def localisation(**keep: Any) -> Runs:
    """Section 2: percent of images whose map is closer to the teacher's than Ind's is."""
    return over_seeds(look_at, SEEDS, experiment="localisation", **keep)


# Section 3


def attack(seed: int) -> Metrics:
    digits = data.load("mnist-5k", size=14)
    alone = dict(epochs=8, lr=4e-3, augment=data.shift)
    networks = [train(POOLED, digits.train, 100 * seed + i, **alone) for i in (0, 1)]
    own, foreign = (
        analysis.successful_attacks(network, *digits.validation, epsilon=0.1)
        for network in networks
    )

    def fooled(network: nn.Module) -> float:
        return analysis.fooling_rate(network, *own[:2]) - analysis.fooling_rate(
            network, *foreign[:2]
        )

    def measure(student: nn.Module, ind: nn.Module) -> dict[str, float]:
        return evaluate(student, digits.validation) | {"property": fooled(student) - fooled(ind)}

    recipe = dict(epochs=10, batch_size=128, augment=data.shift, mixup=True)
    return tried(
        seed, POOLED, digits.train, networks[0], measure, recipe, lr=0.02, stage="blocks.1"
    )


def attacks(**keep: Any) -> Runs:
    """Section 3: points that the own attack fools more than the foreign one, beyond Ind's."""
    return over_seeds(attack, SEEDS, experiment="attacks", **keep)


# Section 4


def jitter(images: torch.Tensor, stream: torch.Generator) -> torch.Tensor:
    return data.shift(domains.colour_jitter(images, stream), stream)


def recolour(seed: int) -> Metrics:
    digits = data.load("mnist-5k", size=14)
    coloured = Split(domains.colour_digits(*digits.train, seed=1), digits.train.labels)
    labels = digits.validation.labels
    typical = Split(domains.colour_digits(*digits.validation, seed=11), labels)
    changed = domains.colour_jitter(typical.images, generator(40), strength=0.4)
    alone = dict(epochs=7, batch_size=128, lr=1.2e-2, mixup=True)
    teacher = train(RGB, coloured, 100 * seed, **alone, augment=jitter)

    def measure(student: nn.Module, ind: nn.Module) -> dict[str, float]:
        said = (analysis.predictions(student, images) for images in (typical.images, changed))
        return evaluate(student, typical) | {"property": analysis.agreement(*said)}

    recipe = dict(epochs=5, batch_size=128, augment=data.shift, mixup=True)
    return tried(seed, RGB, coloured, teacher, measure, recipe, lr=0.012)


def colour(**keep: Any) -> Runs:
    """Section 4: percent agreement with itself on recoloured images."""
    return over_seeds(recolour, SEEDS, experiment="colour", **keep)


# Section 6


def adapt(seed: int) -> Metrics:
    digits = data.load("mnist-5k", size=14)
    worlds = torch.cat(
        [
            domains.to_rgb(digits.train.images),
            domains.colour_background(digits.train.images, seed=1),
            domains.mnist_m(digits.train.images, seed=2, part="train"),
        ]
    )
    original = Split(worlds[: len(digits.train.labels)], digits.train.labels)
    everything = Split(worlds, digits.train.labels.repeat(3))
    labels = digits.validation.labels
    known = Split(domains.to_rgb(digits.validation.images), labels)
    unseen = Split(domains.colour_background(digits.validation.images, seed=11), labels)
    teacher = train(RGB, everything, 100 * seed, epochs=6, batch_size=128, lr=6e-3)

    def measure(student: nn.Module, ind: nn.Module) -> dict[str, float]:
        return evaluate(student, known) | {"property": evaluate(student, unseen)["accuracy"]}

    recipe = dict(epochs=8, batch_size=128, augment=data.shift, mixup=True)
    return tried(seed, RGB, original, teacher, measure, recipe, lr=0.012)


def adaptation(**keep: Any) -> Runs:
    """Section 6: percent accuracy on Color, which no student saw."""
    return over_seeds(adapt, SEEDS, experiment="adaptation", **keep)


PARTS = (fairness, localisation, attacks, colour, adaptation)
