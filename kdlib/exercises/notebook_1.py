"""Checks of the exercises of notebook 1: motivation."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdlib import data, training
from kdlib.check import as_tensor, compare, exercise, normal


@exercise("1.1")
def _cost(answer: Callable) -> str | None:
    """The cost of a fully connected network"""
    sizes = [20, 8, 6, 5]
    weights, biases = 20 * 8 + 8 * 6 + 6 * 5, 8 + 6 + 5

    def pair(parameters: int, operations: int) -> Tensor:
        return torch.tensor([parameters, operations], dtype=torch.float64)

    message = compare(
        answer(sizes),
        pair(weights + biases, 2 * weights),
        {
            "every layer has biases, one for each output": pair(weights, 2 * weights),
            "a weight costs two operations: a multiplication and an addition": pair(
                weights + biases, weights
            ),
            "parameters include the biases, and a weight costs two operations": pair(
                weights, weights
            ),
            "PyTorch's counter leaves the biases out: count the products only": pair(
                weights + biases, 2 * weights + biases
            ),
            "a bias is one addition, and PyTorch's counter leaves it out": pair(
                weights + biases, 2 * (weights + biases)
            ),
            "parameters come first, FLOPs second": pair(2 * weights, weights + biases),
        },
        "parameters: inputs times outputs plus outputs, summed over the layers; "
        "FLOPs: two for each weight",
    )
    if message is not None:
        return message
    for longer, cost in {(4, 5, 6, 5, 3): (114, 190), (7, 3): (24, 42)}.items():
        if compare(answer(list(longer)), pair(*cost), {}, "wrong") is not None:
            return (
                f"right for three layers, not for {len(longer) - 1}: sizes may have any length, "
                "so loop over pairs of neighbours"
            )
    return None


@exercise("1.2")
def _frontier(answer: Callable) -> str | None:
    """The networks that no other network beats"""
    costs = torch.tensor([4.0, 1.0, 2.0, 3.0, 2.0, 4.0, 5.0])
    accuracies = torch.tensor([70.0, 50.0, 60.0, 58.0, 55.0, 70.0, 70.0])

    def mask(text: str) -> Tensor:
        return torch.tensor([mark == "1" for mark in text], dtype=torch.float64)

    return compare(
        answer(costs, accuracies),
        mask("1110010"),
        {
            "the mask is the wrong way round: True is for networks that nothing beats": mask(
                "0001101"
            ),
            "as cheap and more accurate, or as accurate and cheaper, is better too": mask(
                "1110111"
            ),
            "two equal networks do not beat each other: both stay": mask("0110000"),
            "of two equal networks both stay": mask("1110000"),
            "a network does not beat itself": mask("0000000"),
            "the networks are not sorted by cost": mask("1000000"),
            "the wrong axis: these networks beat no other; with costs[:, None] <= "
            "costs the winner is "
            "on axis 0, so reduce that axis": mask("0101101"),
            "the wrong axis, and the wrong way round: with costs[:, None] <= costs "
            "reduce axis 0, the "
            "winner's; True is for networks that nothing beats": mask("1010010"),
            "the best ratio is one point of the frontier, not all of it": mask("0100000"),
        },
        "compare each network with all others: is one at least as good in both, and better in one?",
    )


@exercise("1.3")
def _jensen(answer: Callable) -> str | None:
    """What averaging gains in cross-entropy"""
    logits, target = normal(3, 6, 5, seed=11, scale=2), torch.tensor([0, 1, 2, 3, 4, 0])
    own = F.one_hot(target, 5).bool()
    single = -F.log_softmax(logits, 2)[:, own]  # [members, samples]
    together = -F.softmax(logits, 2).mean(0)[own].log()
    right = single.mean(0) - together
    return compare(
        answer(logits, target),
        right,
        {
            "the sign is wrong: subtract the ensemble's loss from the members'": -right,
            "return one value for each sample, without the mean over the batch": right.mean(),
            "return one value for each sample, without the sum over the batch": right.sum(),
            "return one value for each sample: average over the members too": single - together,
            "this sums over the members: their loss is the mean": single.sum(0) - together,
            "this sums the members' probabilities: the ensemble's are their mean": (
                single.mean(0) - (together - math.log(3))
            ),
            "the mean of the logarithms is the members' loss "
            "itself: average the probabilities": torch.zeros_like(right),
            "this averages the logits: average the probabilities": (
                single.mean(0) + F.log_softmax(logits.mean(0), 1)[own]
            ),
            "the loss is a logarithm; this is a difference of probabilities": (
                F.softmax(logits, 2).mean(0)[own] - single.mean(0).neg().exp()
            ),
            "this is the ensemble's loss: what do its members lose on average?": together,
            "this is the members' loss: subtract the ensemble's": single.mean(0),
        },
        "the mean over members of -log p_m(y), minus -log of the mean over members of p_m(y)",
    )


@exercise("1.4")
def _order(answer: Any) -> str | None:
    """Four ways to listen, from the least to the most accurate"""
    return compare(
        answer() if callable(answer) else answer,
        torch.tensor([3.0, 1, 2, 4], dtype=torch.float64),
        {
            "the least accurate comes first": torch.tensor([4.0, 2, 1, 3], dtype=torch.float64),
            "at T = 4 the three real probabilities are drowned by the guess about the others: "
            "look at the first square of the figure": torch.tensor(
                [1.0, 3, 2, 4], dtype=torch.float64
            ),
            "three probabilities, listened to at T = 4, are not better than at T = 1: what does a "
            "temperature do to the evenly spread rest?": torch.tensor(
                [1.0, 2, 3, 4], dtype=torch.float64
            ),
        },
        "the figure above holds all four: read them off, and find the sentence that explains the "
        "one that you misplaced",
    )


@exercise("1.5")
def _temper(answer: Callable) -> str | None:
    """A temperature for a teacher that answers with probabilities"""
    probabilities, T = F.softmax(normal(6, 5, seed=12, scale=2), 1), 4.0
    power = probabilities ** (1 / T)
    right = power / power.sum(1, keepdim=True)
    steep = probabilities**T
    return compare(
        answer(probabilities, T),
        right,
        {
            "dividing probabilities by T and normalising again changes nothing": probabilities,
            "divided by T they no longer sum to one, and normalising would undo it": (
                probabilities / T
            ),
            "a softmax expects logits: take the logarithm of the probabilities first": F.softmax(
                probabilities / T, 1
            ),
            "this sharpens: the power is 1 / T, not T": steep / steep.sum(1, keepdim=True),
            "normalise: the probabilities of a sample must sum to one": power,
            "return probabilities, not their logarithms": right.log(),
            "the softmax runs over the classes, not over the batch": (
                power / power.sum(0, keepdim=True)
            ),
        },
        "logits are log-probabilities up to a constant: softmax(log p / T)",
    )


def _network(width: int, dropout: float = 0.0) -> nn.Module:
    """The big teacher, or the pocket student."""
    hidden = [
        layer
        for inputs in (784, width)
        for layer in (nn.Linear(inputs, width), nn.ReLU(), nn.Dropout(dropout))
    ]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(width, 10))


@functools.cache
def _two_digits_seen() -> tuple[Tensor, Tensor]:
    """Validation logits of a pocket student that saw 7s and 8s only, and the labels."""
    digits = data.load("mnist-5k")
    teacher = training.drawn(
        functools.partial(_network, 400, dropout=0.3), digits.train, seed=0,
        augment=functools.partial(data.shift, pixels=2), epochs=12, batch_size=128, lr=5e-3,
    )  # fmt: skip
    seen = digits.train.take(
        torch.where((digits.train.labels == 7) | (digits.train.labels == 8))[0]
    )
    student = training.trained(
        training.build(functools.partial(_network, 32), seed=0), seen, seed=0, epochs=40,
        batch_size=64, lr=2e-2, method="kd", teacher=teacher, temperature=10.0, alpha=1.0,
    )  # fmt: skip
    return training.predict(student, digits.validation.images), digits.validation.labels


@exercise("1.6")
def _lowered(answer: Any) -> str | None:
    """Two digits teach ten: by how much to lower the two logits"""
    b = as_tensor(answer() if callable(answer) else answer)
    if not isinstance(b, Tensor) or b.numel() != 1 or not b.isfinite().all():
        return "return one number: what you subtract from the logits of 7 and 8"
    logits, labels = _two_digits_seen()
    low = torch.tensor([0.0, 0, 0, 0, 0, 0, 0, 1, 1, 0])

    def accuracy(lowered: float) -> float:
        return 100 * ((logits - lowered * low).argmax(1) == labels).double().mean().item()

    own, best = accuracy(float(b)), max(accuracy(step / 4) for step in range(41))
    if own >= best - 3:
        return None
    if b < 0:
        return "this raises the two logits, and they are too high already: subtract"
    share = (logits - float(b) * low).argmax(1)
    often = ((share == 7) | (share == 8)).double().mean().item()
    told = f"it reads {own:.0f} %, with another number over {math.floor(best) - 3} %"
    if often > 0.2:
        return f"{told}: it still says 7 or 8 to {100 * often:.0f} % of the digits, lower them more"
    return f"{told}: now it says 7 or 8 too seldom, lower them less"
