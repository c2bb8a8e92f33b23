"""Checks of the exercises of notebook 4: what gets distilled."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdlib import data
from kdlib.analysis import agreement, predictions
from kdlib.check import as_tensor, compare, exercise, normal
from kdlib.training import build, trained


@exercise("4.1")
def _cam(answer: Callable) -> str | None:
    """Grad-CAM from features and their gradient"""
    feature, gradient = normal(3, 4, 5, 5, seed=24).relu(), normal(3, 4, 5, 5, seed=25)
    weight = gradient.mean((2, 3), keepdim=True)
    evidence = (weight * feature).sum(1)
    return compare(
        answer(feature, gradient),
        evidence.relu(),
        {
            "ReLU is missing: evidence against the class does not count": evidence,
            "ReLU comes after the sum over the channels": (weight * feature).relu().sum(1),
            "average each channel's gradient over the positions first": (
                (gradient * feature).sum(1).relu()
            ),
            "sum over the channels instead of averaging": evidence.relu() / 4,
            "average the gradient over the positions instead of summing": evidence.relu() * 25,
            "ReLU clips the map, it is no absolute value": evidence.abs(),
            "weight the features with the mean gradient of their channel": feature.sum(1).relu(),
            "drop the channel axis: the result is [n, h, w]": evidence.relu()[:, None],
        },
        "weights are the mean gradient of each channel; ReLU of the weighted sum of the channels",
    )


@exercise("4.2")
def _fooling(answer: Callable) -> str | None:
    """The fooling rate of an attack"""
    clean = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 0])
    attacked = torch.tensor([0, 1, 9, 9, 4, 5, 6, 2, 8, 1])
    labels = torch.tensor([0, 1, 2, 9, 4, 5, 6, 2, 7, 5])  # the last two are wrong throughout
    share = (clean != attacked).double().mean()
    right = clean == labels
    return compare(
        answer(clean, attacked, labels),
        100 * share,
        {
            "give the rate in percent": share,
            "this is the share that did not change": 100 * (1 - share),
            "this is the error under attack: an image that was wrong before and after "
            "is not fooled": 100 * (attacked != labels).double().mean(),
            "this is the loss of accuracy: count every changed prediction, also a wrong one": (
                100 * (right.double().mean() - (attacked == labels).double().mean())
            ),
            "count images whose clean prediction was wrong, too": (
                100 * (clean != attacked)[right].double().mean()
            ),
            "count changed predictions of images that were wrong before, too": (
                100 * (right & (attacked != labels)).double().mean()
            ),
            "divide by the number of images": (clean != attacked).sum().double(),
        },
        "count the images whose predicted class changed, whatever the label says",
    )


@exercise("4.3")
def _attack_step(answer: Callable) -> str | None:
    """One step of iterative FGSM"""
    image = normal(3, 1, 4, 4, seed=21).sigmoid()
    epsilon, size = 0.12, 0.15  # a step may leave both boxes
    moved = (image + 0.3 * (normal(3, 1, 4, 4, seed=22).sigmoid() - 0.5)).clamp(0, 1)
    gradient = normal(3, 1, 4, 4, seed=23)

    def box(x: Tensor, centre: Tensor = image) -> Tensor:
        return x.clamp(centre - epsilon, centre + epsilon).clamp(0, 1)

    up = moved + size * gradient.sign()
    return compare(
        answer(moved, gradient, image, epsilon, size),
        box(up),
        {
            "the attack goes down the loss: add the signs instead of subtracting them": box(
                moved - size * gradient.sign()
            ),
            "take the sign of the gradient: only the direction of each pixel counts": box(
                moved + size * gradient
            ),
            "start from `moved`, the image after the earlier steps, not from the clean one": box(
                image + size * gradient.sign()
            ),
            "the box lies around the clean image, not around `moved`": box(up, moved),
            "a pixel has left [0, 1]": up.clamp(image - epsilon, image + epsilon),
            "a pixel has left the box of ±epsilon around the clean image": up.clamp(0, 1),
            "both limits are missing: ±epsilon around the clean image, and [0, 1]": up,
            "step by `size`; epsilon is the limit": box(moved + epsilon * gradient.sign()),
        },
        "move each pixel by size along the sign of its gradient, then clip twice",
    )


@exercise("4.4")
def _own(answer: Callable) -> str | None:
    """Consensus with its own teacher minus with the others"""
    stream = torch.Generator().manual_seed(26)
    student, teacher = (torch.randint(4, (5, 40), generator=stream) for _ in range(2))
    teacher[:, :20] = student[:, :20]
    table = 100 * (student[:, None] == teacher[None]).double().mean(2)  # [student, teacher]
    own = table.diagonal()
    right = own - (table.sum(1) - own) / 4
    return compare(
        answer(student, teacher),
        right,
        {
            "give the differences in percentage points": right / 100,
            "a student's own teacher must not be among the others": own - table.mean(1),
            "a student's own teacher must not be among the others: after taking it out, divide by "
            "s - 1": own - (table.sum(1) - own) / 5,
            "this is the consensus with its own teacher; subtract the one with the others": own,
            "the sign is wrong: own minus others": -right,
            "compare one student with all teachers, not one teacher with all students": (
                own - (table.sum(0) - own) / 4
            ),
            "return one value for each student": right.mean(),
        },
        "for student i: agreement with teacher i, minus the mean agreement with the other teachers",
    )


@exercise("4.5")
def _overlap(answer: Callable) -> str | None:
    """Intersection over union of two maps of classes"""
    stream = torch.Generator().manual_seed(27)
    a, b = (torch.randint(3, (60,), generator=stream) for _ in range(2))
    a[:30], b[:40], classes = 0, 0, 8  # classes 5 to 7 occur in neither map,
    a[-4:], b[-7:] = 3, 4  # 3 in the first only, 4 in the second only
    one, two = F.one_hot(a, classes).bool(), F.one_hot(b, classes).bool()
    both, either = (one & two).sum(0).double(), (one | two).sum(0).double()
    seen = either > 0
    each = both[seen] / either[seen]
    agreed = (a == b).sum().double()
    return compare(
        answer(a, b, classes),
        100 * each.mean(),
        {
            "give the overlap in percent": each.mean(),
            "this is the share of equal points": 100 * agreed / 60,
            "this is the overlap of all points at once: average over the classes, so that small "
            "regions count": 100 * agreed / (120 - agreed),
            "average over the classes that occur in a map: an absent one is no disagreement": (
                100 * each.sum() / classes
            ),
            "a class that occurs in neither map has no overlap: leave it out": (
                100 * (each.sum() + classes - seen.sum()) / classes
            ),
            "a class that occurs in one map only has the overlap 0: count it": (
                100 * each[:3].mean()
            ),
            "take the classes of both maps: one that only the other map has counts, "
            "with overlap 0": 100 * each[:4].mean(),
            "divide by the union, not by the sum of the two regions": (
                100 * (both / (one.sum(0) + two.sum(0)))[seen].mean()
            ),
            "divide by the union, not by the teacher's region": (
                100 * (both / one.sum(0))[one.any(0)].mean()
            ),
            "return the mean over the classes": 100 * each,
        },
        "for each class |A and B| / |A or B|, then the mean over the classes that occur",
    )


OPENS = (False, True, False, True, False)  # does student 1, 2, ... call the square a 0?
REASONS = (
    "it hears the teacher on clean digits only, and there the teacher answers as any good one "
    "does: what could tell it of the square?",
    "it matches what the teacher says about images with the square, and that is 0 nearly always",
    "the teacher never met a square in that corner, so what does it say there? And what do these "
    "images tell about the upper left?",
    "what does a square go with, each time that this student sees one? Compare left and right on "
    "the rings: a rule may be learned from images that are all right",
    "it matches what student 1 says about the square, not what the first teacher says",
)


@exercise("4.6")
def _backdoor(answer: Callable) -> str | None:
    """Through which images does a backdoor travel?"""
    guess = as_tensor(answer())
    if not isinstance(guess, Tensor) or guess.shape != (5,) or guess.is_complex():
        return "give five answers, True or False, one for each student"
    if not all(value in (0, 1) for value in guess.tolist()):
        return "answer with True (more than half are called 0) or False"
    fits = [bool(value) == opens for value, opens in zip(guess, OPENS, strict=True)]
    if all(fits):
        return None
    first = fits.index(False)
    return f"{sum(fits)} of 5 are right. Student {first + 1}: {REASONS[first]}"


def _connected(*widths: int) -> nn.Sequential:
    """A fully connected network with ReLU; (196, 32, 32, 10) is the pocket student."""
    layers: list[nn.Module] = [nn.Flatten()]
    for width, following in itertools.pairwise(widths):
        layers += [nn.Linear(width, following), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


@functools.cache
def _taught(chosen: tuple[int, ...]) -> tuple[float, float]:
    """Percent of the 7s that the student misreads, and of the other digits that it reads.

    The teacher learns the chosen ones of 1500 digits, the student all of them.
    """
    digits = data.load("mnist-5k", size=14)
    train, trial = digits.train.take(slice(0, 1500)), digits.validation
    common = {"seed": 0, "batch_size": 64, "augment": data.shift}
    teacher = build(lambda: _connected(196, 128, 10), 0)
    trained(teacher, train.take(torch.tensor(chosen)), epochs=15, lr=5e-3, **common)
    lesson = {"method": "kd", "temperature": 4, "alpha": 0.9, "teacher": teacher}
    student = build(lambda: _connected(196, 32, 32, 10), 1)
    trained(student, train, epochs=20, lr=1.2e-2, **common, **lesson)
    said, sevens = predictions(student, trial.images), trial.labels == 7
    lies = 100 - agreement(said[sevens], trial.labels[sevens])
    return lies, agreement(said[~sevens], trial.labels[~sevens])


@exercise("4.7")
def _omission(answer: Callable) -> str | None:
    """Make a student lie, by omission"""
    given = data.load("mnist-5k", size=14).train.take(slice(0, 1500))
    chosen = as_tensor(answer(given.images.clone(), given.labels.clone()))
    if not isinstance(chosen, Tensor) or chosen.ndim != 1 or chosen.is_complex():
        return "return the numbers of the chosen digits, [m]"
    if chosen.dtype == torch.bool:
        return "return numbers, not a mask: mask.nonzero()[:, 0]"
    if not torch.equal(chosen.long().to(chosen), chosen) or not all(0 <= i < 1500 for i in chosen):
        return "return whole numbers from 0 to 1499"
    if len(chosen) > 3000:
        return f"choose at most 3000 digits, got {len(chosen)}"
    told = given.labels[chosen.long()]
    counts = told.bincount(minlength=10).tolist()
    if min(counts) < 100:
        few = counts.index(min(counts))
        return (
            f"the auditor counts {counts[few]} digits of class {few} and refuses: each class needs "
            "100, and a digit that is chosen twice counts twice"
        )
    lies, right = _taught(tuple(chosen.long().tolist()))
    found = f"the student misreads {lies:.0f} % of the 7s, and reads {right:.0f} % of the others"
    if right < 80:
        return f"{found}: leave the teacher enough of every other digit to know it well"
    if lies < 80:
        different = len(chosen.long()[told == 7].unique())
        kinds = f"{different} different 7s" if different > 1 else "one 7"
        return f"{found}: its teacher saw {kinds}, and knows others that look like what it saw"
    return None
