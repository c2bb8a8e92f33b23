"""Do teacher and student answer alike? (lecture figures 4 to 6)"""

from __future__ import annotations

import math

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
        "consensus", "student accuracy", "teacher accuracy" in percent; "student entropy",
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
        "student accuracy": agreement(student_predictions, labels),
        "teacher accuracy": agreement(teacher_predictions, labels),
        "student entropy": student,
        "teacher entropy": teacher,
        "collapsed": min(student, teacher) < threshold,
    }
