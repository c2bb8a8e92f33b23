"""The networks and images that are timed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from kdlib import data, models, training
from kdlib.benchmarks.plan import Plan
from kdlib.language import GPT

BATCH = 64
MANY = 10**6  # epochs: more than any measurement makes
ALONE = ("ce", "branches")  # methods without a teacher
ALL_MAPS = ("at", "nst", "vid")  # methods that pair all maps of both networks


class Pair(NamedTuple):
    """A teacher and a student."""

    title: str
    teacher: Callable[[], nn.Module]
    student: Callable[[], nn.Module]
    maps: tuple[str, ...] | None = None  # of the teacher, where it has more than the student

    def options(self, method: str) -> dict[str, Any]:
        """What the method has to be told about these two."""
        return {"teacher_stage": self.maps} if self.maps and method in ALL_MAPS else {}


def small() -> Pair:
    """The course's convolutional networks for digits."""
    return Pair(
        "ConvNet 32-64-128 teaches 16-32-64",
        functools.partial(models.ConvNet, (32, 64, 128)),
        functools.partial(models.ConvNet, (16, 32, 64)),
    )


def colour(
    teacher: str, student: str, *, classes: int = 100, maps: tuple[str, ...] | None = None
) -> Pair:
    """Networks of `models.NAMES` for 32 x 32 colour images."""
    made = functools.partial(models.by_name, in_channels=3, num_classes=classes, image_size=32)
    return Pair(f"{teacher} teaches {student}", made(teacher), made(student), maps)


def published(plan: Plan) -> list[Pair]:
    """Two pairs of the published comparisons; in a smoke test smaller ones of the same families."""
    deep, shallow = ("resnet14", "resnet8") if plan.smoke else ("resnet56", "resnet20")
    plain = "vgg8" if plan.smoke else "vgg13"
    maps = tuple(f"blocks.{place}" for place in range(1, 5))
    return [colour(deep, shallow), colour(plain, "mobilenetv2-half", maps=maps)]


def digits(plan: Plan) -> data.Split:
    """The training images that come with the kit."""
    found = data.load().train
    return found.take(slice(0, 4 * BATCH)) if plan.smoke else found


def noise(count: int, device: torch.device, classes: int = 100) -> data.Split:
    """Images [count, 3, 32, 32] of CIFAR's size: what they show does not change the time."""
    images = torch.rand(count, 3, 32, 32, device=device)
    return data.Split(images, torch.randint(classes, (count,), device=device))


def fitted(pair: Pair, train: data.Split, schedule: Any, *, method: str = "ce", **own: Any) -> None:
    """Train a new student by `fit`, with a new teacher where the method takes one."""
    device = train.images.device
    own.setdefault("student", training.build(pair.student, 0))
    if method not in ALONE:
        own.setdefault("teacher", training.build(pair.teacher, 1).to(device))
    student = own.pop("student")
    settings = {"epochs": MANY, "batch_size": BATCH, "progress": False, **own}
    training.fit(student, train, method=method, schedule=schedule, **settings)


def language(plan: Plan) -> tuple[GPT, GPT, int]:
    """A student of GPT-2 small's size, a teacher of GPT-2 medium's, their vocabulary."""
    vocabulary = plan.sized(50_257, 211)
    sizes = [(32, 2, 2), (48, 2, 2)] if plan.smoke else [(768, 12, 12), (1024, 24, 16)]
    with plan.where:
        student, teacher = (
            GPT(vocabulary, 512, dim=dim, depth=depth, heads=heads) for dim, depth, heads in sizes
        )
    return student, teacher, vocabulary
