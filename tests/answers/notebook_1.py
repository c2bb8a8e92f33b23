"""Answers to the exercises of notebook 1, right and wrong."""

from itertools import pairwise

import torch
from torch.nn import functional as F

from .formulas import tempered


def rivals(costs, accuracies, strictly=True):
    """Which network (row) beats which (column)."""
    cheaper, better = costs[:, None] <= costs, accuracies[:, None] >= accuracies
    unequal = (costs[:, None] < costs) | (accuracies[:, None] > accuracies)
    return cheaper & better & (unequal if strictly else ~torch.eye(len(costs)).bool())


def beaten(costs, accuracies, strictly):
    return rivals(costs, accuracies, strictly).any(0)


def members(logits, target):
    """Minus log-probabilities of the targets, [members, samples]."""
    return -tempered(logits.flatten(0, 1)).view_as(logits)[:, torch.arange(len(target)), target]


def mixed(logits, target):
    return -F.softmax(logits, 2).mean(0)[torch.arange(len(target)), target].log()


def best_ratio(costs, accuracies):
    ratios = accuracies / costs
    return ratios == ratios.max()


def layers(sizes):
    """Weights and biases of a fully connected network."""
    return sum(a * b for a, b in pairwise(sizes)), sum(sizes[1:])


def cost(sizes):
    weights, biases = layers(sizes)
    return weights + biases, 2 * weights


RIGHT = {
    "1.1": cost,
    "1.2": lambda c, a: ~beaten(c, a, strictly=True),
    "1.3": lambda z, y: members(z, y).mean(0) - mixed(z, y),
    "1.4": lambda: torch.tensor([3, 1, 2, 4]),
    "1.6": lambda: torch.tensor(3.5),
    "1.5": lambda p, T: F.softmax(p.log() / T, 1),
}

# (exercise, a common wrong answer, a part of the message that it must meet)
WRONG = [
    ("1.1", lambda sizes: (layers(sizes)[0], 2 * layers(sizes)[0]), "every layer has biases"),
    ("1.1", lambda sizes: (sum(layers(sizes)), layers(sizes)[0]), "weight costs two operations: a"),
    ("1.1", lambda sizes: 2 * (layers(sizes)[0],), "parameters include the biases"),
    ("1.1", lambda sizes: (sum(layers(sizes)), cost(sizes)[1] + layers(sizes)[1]), "leaves the"),
    ("1.1", lambda sizes: (sum(layers(sizes)), 2 * sum(layers(sizes))), "a bias is one addition"),
    ("1.1", lambda sizes: cost(sizes)[::-1], "parameters come first"),
    ("1.1", lambda sizes: cost(sizes)[0], "shape must be [2], got []"),
    ("1.1", lambda sizes: (1, 2), "inputs times outputs"),
    ("1.1", lambda sizes: cost(sizes[:4]), "right for three layers, not for 4"),
    (
        "1.1",
        lambda sizes: (
            sizes[0] * sizes[1] + sizes[1] * sizes[2] + sizes[2] * sizes[-1] + sum(sizes[1:]),
            2 * layers(sizes)[0],
        ),
        "not for 4",
    ),
    ("1.2", lambda c, a: beaten(c, a, strictly=True), "wrong way round"),
    ("1.2", lambda c, a: ~((c[:, None] < c) & (a[:, None] > a)).any(0), "is better too"),
    ("1.2", lambda c, a: ~beaten(c, a, strictly=False), "two equal networks do not"),
    (
        "1.2",
        lambda c, a: [
            i == min(j for j in range(7) if (c[j], a[j]) == (c[i], a[i]))
            and not beaten(c, a, strictly=True)[i]
            for i in range(7)
        ],
        "of two equal networks",
    ),
    ("1.2", lambda c, a: ~((c[:, None] <= c) & (a[:, None] >= a)).any(0), "beat itself"),
    ("1.2", lambda c, a: [all(a[i] > v for v in a[:i]) for i in range(7)], "not sorted by cost"),
    ("1.2", best_ratio, "one point of the frontier"),
    ("1.2", lambda c, a: ~rivals(c, a).any(1), "the winner is on axis 0"),
    ("1.2", lambda c, a: rivals(c, a).any(1), "and the wrong way round"),
    ("1.2", lambda c, a: a > 50, "at least as good in both"),
    ("1.3", lambda z, y: mixed(z, y) - members(z, y).mean(0), "sign"),
    ("1.3", lambda z, y: RIGHT["1.3"](z, y).mean(), "without the mean"),
    ("1.3", lambda z, y: RIGHT["1.3"](z, y).sum(), "without the sum"),
    ("1.3", lambda z, y: members(z, y) - mixed(z, y), "over the members too"),
    ("1.3", lambda z, y: members(z, y).sum(0) - mixed(z, y), "this sums over the members"),
    ("1.3", lambda z, y: RIGHT["1.3"](z, y) + torch.tensor(3.0).log(), "probabilities: the"),
    ("1.3", lambda z, y: members(z, y).mean(0) - members(z, y).mean(0), "mean of the logarithms"),
    (
        "1.3",
        lambda z, y: members(z, y).mean(0) - F.cross_entropy(z.mean(0), y, reduction="none"),
        "averages the logits",
    ),
    (
        "1.3",
        lambda z, y: mixed(z, y).neg().exp() - members(z, y).mean(0).neg().exp(),
        "difference of probabilities",
    ),
    ("1.3", mixed, "the ensemble's loss: what"),
    ("1.3", lambda z, y: members(z, y).mean(0), "the members' loss: subtract"),
    ("1.3", lambda z, y: y.double(), "mean over members"),
    ("1.4", [4, 2, 1, 3], "least accurate comes first"),
    ("1.4", [1, 3, 2, 4], "drowned by the guess"),
    ("1.4", (1, 2, 3, 4), "not better than at T = 1"),
    ("1.4", [2, 1, 4, 3], "the figure above holds all four"),
    ("1.4", [1, 2, 3], "the shape must be [4], got [3]"),
    ("1.5", lambda p, T: (p / T) / (p / T).sum(1, keepdim=True), "changes nothing"),
    ("1.5", lambda p, T: p / T, "no longer sum to one"),
    ("1.5", lambda p, T: F.softmax(p / T, 1), "take the logarithm"),
    ("1.5", lambda p, T: F.softmax(p.log() * T, 1), "the power is 1 / T"),
    ("1.5", lambda p, T: p ** (1 / T), "must sum to one"),
    ("1.5", lambda p, T: F.log_softmax(p.log() / T, 1), "not their logarithms"),
    ("1.5", lambda p, T: F.softmax(p.log() / T, 0), "not over the batch"),
    ("1.5", lambda p, T: F.softmax(p, 1), "softmax(log p / T)"),
    ("1.6", 0, "still says 7 or 8"),
    ("1.6", 1.0, "lower them more"),
    ("1.6", 9.0, "too seldom"),
    ("1.6", -3.5, "too high already"),
    ("1.6", (7, 8), "return one number"),
    ("1.6", float("nan"), "return one number"),
]
