"""Is a network as sure as it is right?"""

from __future__ import annotations

import torch
from torch import Tensor

from kdlib import inputs


def expected_calibration_error(logits: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Expected calibration error in [0, 1]: |accuracy - confidence| over bins of equal width.

        ECE = sum_b n_b / n * |accuracy_b - mean confidence_b|

    with the highest softmax probability as confidence (Guo et al. 2017, equation 3).

    Args:
        logits: [n, C], n >= 1, finite.
        labels: int64 [n] from 0 to C - 1.
        bins: at least 1; bin b holds the confidences in (b / bins, (b + 1) / bins].

    Raises:
        ValueError: logits that are not finite, labels out of range, sets of unlike size, none.
        TypeError: arguments of another type.
    """
    bins = inputs.whole("bins", bins)
    inputs.tensor("logits", logits, "[n, C]")
    inputs.classes("labels", labels, logits.shape[1], ndim=1)
    inputs.lengths(logits=logits, labels=labels)
    confidence, predicted = inputs.float64(logits.detach()).softmax(1).max(1)
    which = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gap = inputs.float64(predicted == labels.to(predicted.device)) - confidence
    # n_b / n * |mean gap of bin b| = |sum of the gaps in bin b| / n
    return (torch.bincount(which, gap, minlength=bins).abs().sum() / len(labels)).item()
