"""Checks of the exercises of notebook 5: distillation across architectures."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from kdlib.check import compare, exercise, normal


@exercise("5.1")
def _cka(answer: Callable) -> str | None:
    """Centred kernel alignment"""
    x = normal(7, 5, seed=31) + 1.5
    y = torch.cat([x[:, :2] * 2, normal(7, 4, seed=32) - 1], dim=1)

    def value(k: Tensor, ell: Tensor, root: bool = True) -> Tensor:
        both, own, other = (k * ell).sum(), (k * k).sum(), (ell * ell).sum()
        return both / ((own * other).sqrt() if root else own * other)

    def gram(z: Tensor) -> Tensor:
        return z @ z.T

    def centred(z: Tensor, axis: int = 0) -> Tensor:
        return z - z.mean(axis, keepdim=True)

    right = value(gram(centred(x)), gram(centred(y)))
    return compare(
        answer(x, y),
        right,
        {
            "centre the features first: subtract each column's mean over the samples": value(
                gram(x), gram(y)
            ),
            "centre over the samples (dim 0), not within each sample": value(
                gram(centred(x, 1)), gram(centred(y, 1))
            ),
            "the denominator is a square root": value(
                gram(centred(x)), gram(centred(y)), root=False
            ),
            "centre both sets of features": value(gram(centred(x)), gram(y)),
            "the Gram matrix holds products of samples, [n, n]: X X^T": F.cosine_similarity(
                centred(x).mean(1), centred(y).mean(1), 0
            ),
        },
        "center X and Y, take K = X X^T and L = Y Y^T, return sum(K L) / sqrt(sum(K K) sum(L L))",
    )


@exercise("5.2")
def _ofa(answer: Callable) -> str | None:
    """The loss of OFA-KD, as on the slide"""
    student, teacher = normal(6, 5, seed=33, scale=2), normal(6, 5, seed=34, scale=2)
    target, gamma = torch.tensor([0, 1, 2, 3, 4, 0]), 1.7
    own = F.one_hot(target, 5).bool()
    log_q, p = F.log_softmax(student, 1), teacher.softmax(1)

    def total(at_target: Tensor, elsewhere: Tensor) -> Tensor:
        return -(torch.where(own, at_target, elsewhere) * log_q).sum(1).mean()

    right = total((1 + p) ** gamma, p)
    teacher.requires_grad_()
    result = answer(student.requires_grad_(), teacher, target, gamma)
    message = compare(
        result,
        right,
        {
            "gamma belongs to the target's weight only": total((1 + p) ** gamma, p**gamma),
            "the target's weight is (1 + p) to the power gamma": total(1 + p, p),
            "the target's weight is (1 + p) ** gamma, not 1 + p ** gamma": total(1 + p**gamma, p),
            "this is the official code's form, which takes 1 from the target's weight; the slide "
            "does not": total((1 + p) ** gamma - 1, p),
            "the second sum leaves the target out": total((1 + p) ** gamma + p, p),
            "the second sum is missing: the teacher also weights the other classes": total(
                (1 + p) ** gamma, torch.zeros_like(p)
            ),
            "the expectation is a sum weighted with the teacher's probabilities, not a mean over "
            "the classes": total((1 + p) ** gamma, p / 4),
            "the sign is wrong: the loss is minus the weighted log-probabilities": -right,
        },
        "weight -log q with (1 + p) ** gamma at the target and with p elsewhere, sum over classes",
    )
    if message is None and not (isinstance(result, Tensor) and result.requires_grad):
        return "the value is right but carries no gradient: avoid .item(), .detach(), .numpy()"
    if message is None and torch.autograd.grad(result, teacher, allow_unused=True)[0] is not None:
        return "the loss would train the teacher too: detach its logits"
    return message


@exercise("5.3")
def _merging(answer: Callable) -> str | None:
    """Patch merging"""
    tokens = torch.arange(2 * 16 * 3, dtype=torch.float64).reshape(2, 16, 3)
    grid = tokens.reshape(2, 4, 4, 3)
    places = ((0, 0), (0, 1), (1, 0), (1, 1))

    def merged(order: tuple[tuple[int, int], ...]) -> Tensor:
        return torch.cat([grid[:, r::2, c::2] for r, c in order], dim=3).flatten(1, 2)

    right = merged(places)
    return compare(
        answer(tokens),
        right,
        {
            "tokens 0 to 3 are one row of the grid, not a square: neighbours lie above one "
            "another, too": tokens.reshape(2, 4, 12),
            "the four are right, their order is not: left to right, then down": merged(
                ((0, 0), (1, 0), (0, 1), (1, 1))
            ),
            "the merged tokens are right, their order is not: row by row": torch.cat(
                [grid.transpose(1, 2)[:, r::2, c::2] for c, r in places], dim=3
            ).flatten(1, 2),
            "keep all four vectors side by side instead of averaging them": F.avg_pool2d(
                grid.permute(0, 3, 1, 2), 2
            )
            .flatten(2)
            .transpose(1, 2),
            "return tokens [B, N / 4, 4 D], not a grid": right.reshape(2, 2, 2, 12),
        },
        "view the tokens as a grid [B, 4, 4, D], join each 2 x 2 square to one vector of 4 D",
    )


@exercise("5.4")
def _equal_compute(answer: Callable) -> str | None:
    """Epochs at equal compute"""
    for kd, ofa, teacher, epochs in ((1.0, 1.9, 0.5, 6), (2.0, 3.1, 2.0, 4), (1.0, 1.5, 0.0, 4)):
        own, theirs = kd + teacher, ofa + teacher
        exact = epochs * theirs / own
        message = compare(
            answer(kd, ofa, teacher, epochs),
            torch.tensor(float(math.ceil(exact - 1e-9))),
            {
                "round up: the comparison must not favour the method that costs more": torch.tensor(
                    float(math.floor(exact))
                ),
                "a whole number of epochs, please": torch.tensor(exact),
                "the teacher's forward pass belongs to both methods": torch.tensor(
                    float(math.ceil(epochs * ofa / kd - 1e-9))
                ),
                "the teacher's forward pass belongs to KD's epoch as well": torch.tensor(
                    float(math.ceil(epochs * theirs / kd - 1e-9))
                ),
                "the other way round: KD may train longer, for its epoch is cheaper": torch.tensor(
                    float(math.ceil(epochs * own / theirs - 1e-9))
                ),
            },
            "OFA's whole training takes epochs * (ofa + teacher); an epoch of KD kd + teacher",
        )
        if message is not None:
            return message
    return None
