"""Do teacher and student answer alike? (lecture figures 4 to 6)"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from kdlib import inputs, stages


def predictions(model: nn.Module, images: Tensor) -> Tensor:
    """Predicted classes, int64 [n], of floating-point images [n, ...], n >= 1.

    Raises:
        ValueError: no images, images that are not finite, a network that answers NaN.
        TypeError: a network that returns something else than logits [n, classes].
    """
    logits = stages.predict(model, images)
    if bool(logits.isnan().any()):
        raise ValueError("model answers NaN: its training has diverged, or its weights are damaged")
    return logits.argmax(1)


def agreement(predictions_a: Tensor, predictions_b: Tensor) -> float:
    """Percent of equal predictions: classes [n], n >= 1, of two models, or of one model for two
    versions of the images."""
    for name, found in (("predictions_a", predictions_a), ("predictions_b", predictions_b)):
        if isinstance(found, Tensor) and found.ndim == 2 and found.is_floating_point():
            raise TypeError(f"{name} must be classes [n], got logits: take logits.argmax(1)")
        inputs.classes(name, found, ndim=1)
    inputs.lengths(predictions_a=predictions_a, predictions_b=predictions_b)
    return 100 * inputs.float64(predictions_a == predictions_b).mean().item()


def prediction_entropy(classes: Tensor, num_classes: int) -> float:
    """Entropy of the frequencies of predicted classes [n], divided by log(num_classes): 1 when all
    classes are used alike, 0 when every answer is the same class. num_classes: at least 2."""
    num_classes = inputs.whole("num_classes", num_classes, low=2)
    inputs.classes("classes", classes, num_classes, ndim=1)
    share = inputs.float64(torch.bincount(classes, minlength=num_classes)) / len(classes)
    return torch.special.entr(share).sum().item() / math.log(num_classes)


def chance_agreement(predictions_a: Tensor, predictions_b: Tensor, num_classes: int) -> float:
    """Percent of equal predictions that two networks would reach by chance: 100 sum_c p_c q_c.

    p and q are the frequencies with which the networks answer class c: what would be left of
    `agreement` if the images of one were shuffled. 100 / num_classes when one of them uses all
    classes alike, up to 100 when both answer one class.

    Args:
        predictions_a, predictions_b: classes [n], 0 to num_classes - 1, n >= 1.
        num_classes: at least 2.

    Raises:
        ValueError, TypeError: classes out of range or of another type, sets of unlike size, none.
    """
    num_classes = inputs.whole("num_classes", num_classes, low=2)
    named = {"predictions_a": predictions_a, "predictions_b": predictions_b}
    for name, found in named.items():
        inputs.classes(name, found, num_classes, ndim=1)
    inputs.lengths(**named)
    p, q = (
        inputs.float64(torch.bincount(found, minlength=num_classes)) / len(found)
        for found in named.values()
    )
    return 100 * (p @ q.to(p.device)).item()


class Permutations(NamedTuple):
    """What `permutation_test` found."""

    own_minus_other: float  # in the unit of the table
    p: float  # share of the permutations that do at least as well
    smallest: float  # 1 / n!: no p of n students can be smaller


def permutation_test(table: np.ndarray) -> Permutations:
    """Does a student agree more with its own teacher than with those of other students?

    The statistic is the mean of table[i, i] minus the mean of table[i, j], j != i. Had it made no
    difference which teacher taught whom, each of the n! ways of handing teachers to students would
    be as likely to have the highest value; p is the share of those that reach the true one's value.
    This exact test (Fisher) needs no distribution, and counts the students of one teacher once.

    Args:
        table: [n, n] or [..., n, n], 2 to 8 students (rows) by their teachers (columns), finite;
            the mean over leading axes is tested, so that several domains are one test.

    Raises:
        ValueError: a table of another shape, or not finite.
    """
    array = np.asarray(table, dtype=float)
    if array.ndim < 2 or array.shape[-1] != array.shape[-2] or not 2 <= array.shape[-1] <= 8:
        raise ValueError(
            f"table must be [..., n, n] with n from 2 to 8 students, got {list(array.shape)}"
        )
    if not array.size or not np.isfinite(array).all():
        raise ValueError("table must be finite and not empty: a run failed or a number is NaN")
    mean = array.reshape(-1, *array.shape[-2:]).mean(0)
    n = len(mean)
    own = float(mean.trace())
    other = (float(mean.sum()) - own) / (n * (n - 1))
    rows, ways = np.arange(n), [*itertools.permutations(range(n))]
    sums = np.array([mean[rows, list(way)].sum() for way in ways])
    p = float((sums >= own - 1e-9 * max(1.0, abs(own))).mean())
    return Permutations(own / n - other, p, 1 / len(ways))


def consensus(
    student_predictions: Tensor,
    teacher_predictions: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    threshold: float = 0.5,
) -> dict[str, float | bool]:
    """How often student and teacher predict the same class, and what has to be read beside it.

    Two networks that answer one class to everything agree perfectly and know nothing: at a
    threshold of 0.5 a network uses no more than the square root of num_classes, in effect.

    Args:
        student_predictions, teacher_predictions, labels: classes [n] from 0 to num_classes - 1.
        threshold: at least 0; entropies below it count as collapsed.

    Returns:
        "consensus", "chance" (`chance_agreement` of the two), "student accuracy", "teacher
        accuracy" in percent; "student entropy",
        "teacher entropy" of the predictions in [0, 1]; "collapsed": one of them is below threshold.

    Raises:
        ValueError, TypeError: classes out of range or of another type, sets of unlike size, none.
    """
    threshold = inputs.number("threshold", threshold, low=0)
    num_classes = inputs.whole("num_classes", num_classes, low=2)
    named = {
        "student_predictions": student_predictions,
        "teacher_predictions": teacher_predictions,
        "labels": labels,
    }
    for name, found in named.items():
        inputs.classes(name, found, num_classes, ndim=1)
    inputs.lengths(**named)
    student = prediction_entropy(student_predictions, num_classes)
    teacher = prediction_entropy(teacher_predictions, num_classes)
    return {
        "consensus": agreement(student_predictions, teacher_predictions),
        "chance": chance_agreement(student_predictions, teacher_predictions, num_classes),
        "student accuracy": agreement(student_predictions, labels),
        "teacher accuracy": agreement(teacher_predictions, labels),
        "student entropy": student,
        "teacher entropy": teacher,
        "collapsed": min(student, teacher) < threshold,
    }
