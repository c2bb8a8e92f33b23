"""Answers to the exercises of notebook 5, right and wrong."""

import math

import torch
from torch.nn import functional as F


def cka(centre=0, root=True, both=True):
    def value(x, y):
        if centre is not None:
            x = x - x.mean(centre, keepdim=True)
            y = y - y.mean(centre, keepdim=True) if both else y
        k, ell = x @ x.T, y @ y.T
        scale = (k * k).sum() * (ell * ell).sum()
        return (k * ell).sum() / (scale.sqrt() if root else scale)

    return value


def features_instead_of_samples(x, y):
    x, y = x - x.mean(0), y - y.mean(0)
    return F.cosine_similarity(x.mean(1), y.mean(1), 0)


def ofa(at_target=lambda p, gamma: (1 + p) ** gamma, elsewhere=lambda p, gamma: p, detach=True):
    def loss(student, teacher, target, gamma):
        p = (teacher.detach() if detach else teacher).softmax(1)
        own = F.one_hot(target, p.shape[1]).bool()
        weight = torch.where(own, at_target(p, gamma), elsewhere(p, gamma))
        return -(weight * F.log_softmax(student, 1)).sum(1).mean()

    return loss


def merge(first, second):
    """The four neighbours, in the order of two transpositions of [B, 2, 2, 2, 2, D]."""

    def tokens(x):
        squares = x.reshape(len(x), 2, 2, 2, 2, -1).transpose(2, 3)
        squares = squares.transpose(1, 2) if first else squares
        squares = squares.transpose(3, 4) if second else squares
        return squares.reshape(len(x), 4, -1)

    return tokens


def epochs(own=True, theirs=True, rounding=math.ceil, swap=False):
    def count(kd, ofa, teacher, epochs):
        a, b = ofa + teacher * theirs, kd + teacher * own
        return rounding(epochs * (b / a if swap else a / b) - 1e-9 * (rounding is math.ceil))

    return count


RIGHT = {"5.1": cka(), "5.2": ofa(), "5.3": merge(False, False), "5.4": epochs()}
WRONG = [
    ("5.1", cka(centre=None), "centre the features first"),
    ("5.1", cka(centre=1), "centre over the samples"),
    ("5.1", cka(root=False), "a square root"),
    ("5.1", cka(both=False), "centre both"),
    ("5.1", features_instead_of_samples, "[n, n]"),
    ("5.2", ofa(elsewhere=lambda p, gamma: p**gamma), "the target's weight only"),
    ("5.2", ofa(at_target=lambda p, gamma: 1 + p), "to the power gamma"),
    ("5.2", ofa(at_target=lambda p, gamma: 1 + p**gamma), "not 1 + p ** gamma"),
    ("5.2", ofa(at_target=lambda p, gamma: (1 + p) ** gamma - 1), "official code's form"),
    ("5.2", ofa(at_target=lambda p, gamma: (1 + p) ** gamma + p), "leaves the target out"),
    ("5.2", ofa(elsewhere=lambda p, gamma: 0 * p), "the second sum is missing"),
    ("5.2", ofa(elsewhere=lambda p, gamma: p / 4), "not a mean"),
    ("5.2", lambda *given: -ofa()(*given), "the sign is wrong"),
    ("5.2", ofa(detach=False), "detach"),
    ("5.3", lambda x: x.reshape(len(x), 4, -1), "not a square"),
    ("5.3", merge(False, True), "left to right, then down"),
    ("5.3", merge(True, False), "row by row"),
    ("5.3", lambda x: merge(False, False)(x).unflatten(2, (4, -1)).mean(2), "instead of averaging"),
    ("5.3", lambda x: merge(False, False)(x).unflatten(1, (2, 2)), "not a grid"),
    ("5.4", epochs(rounding=math.floor), "round up"),
    ("5.4", epochs(rounding=float), "a whole number"),
    ("5.4", epochs(own=False, theirs=False), "belongs to both"),
    ("5.4", epochs(own=False), "KD's epoch as well"),
    ("5.4", epochs(swap=True), "the other way round"),
]
