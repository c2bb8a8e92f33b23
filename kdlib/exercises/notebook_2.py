"""Checks of the exercises of notebook 2: derivation."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdlib import data, training
from kdlib.check import as_tensor, compare, exercise, normal


def _is_nan(result: Any) -> bool:
    found = as_tensor(result)
    return isinstance(found, Tensor) and bool(found.isnan().any())


def _by_hand(answer: Callable, *args: Any) -> tuple[Any, str | None]:
    """What the answer returns where autograd is off, and a message if it cannot do without."""
    try:
        with torch.no_grad():
            return answer(*args), None
    except RuntimeError as error:
        if "does not require grad" not in str(error):
            raise
        return None, "write the derivative down, without autograd"


@exercise("2.1")
def _kd(answer: Callable) -> str | None:
    """The distillation loss with temperature"""
    student, teacher, T = normal(6, 5, seed=1, scale=2), normal(6, 5, seed=2, scale=2), 3.0
    student.requires_grad_()
    p, log_p = F.softmax(teacher / T, 1), F.log_softmax(teacher / T, 1)
    q, log_q = F.softmax(student / T, 1), F.log_softmax(student / T, 1)
    kl = (p * (log_p - log_q)).sum(1).mean()
    hot_p, hot_q = F.log_softmax(teacher, 1), F.log_softmax(student, 1)
    over_batch = [F.log_softmax(logits / T, 0) for logits in (teacher, student)]
    result = answer(student, teacher, T)
    if _is_nan(result):
        return (
            "the result is NaN: F.kl_div takes the student's log-probabilities first, then "
            "the teacher's probabilities (or logarithms too, with log_target=True)"
        )
    message = compare(
        result,
        T**2 * kl,
        {
            "a probability stands first: F.kl_div takes the student's log-probabilities there": (
                T**2 * F.kl_div(q, p, reduction="batchmean")
            ),
            "the factor T² is missing: without it the gradient fades as 1/T²": kl,
            "multiply by T², not by T": T * kl,
            "the loss is C times too small: average over the batch, but sum over the classes": (
                T**2 * kl / 5
            ),
            "T² is missing, and the loss is averaged over the classes instead of summed": kl / 5,
            "average over the batch instead of summing over it": T**2 * kl * 6,
            "student and teacher are swapped: this is KL(q || p), the reverse divergence": (
                T**2 * (q * (log_q - log_p)).sum(1).mean()
            ),
            "this is the cross-entropy: subtract the teacher's entropy to get the divergence": (
                -(T**2) * (p * log_q).sum(1).mean()
            ),
            "divide the logits of both networks by T before the softmax": (
                T**2 * (hot_p.exp() * (hot_p - hot_q)).sum(1).mean()
            ),
            "the student's logits must be divided by T too": (
                T**2 * (p * (log_p - hot_q)).sum(1).mean()
            ),
            "the teacher's logits must be divided by T too": (
                T**2 * (hot_p.exp() * (hot_p - log_q)).sum(1).mean()
            ),
            "the softmax runs over the classes, dim=1, not over the batch": (
                T**2 * (over_batch[0].exp() * (over_batch[0] - over_batch[1])).sum(1).mean()
            ),
            "return one number: average over the batch": T**2 * (p * (log_p - log_q)).sum(1),
        },
        "compute T² · KL(p || q), summed over classes and averaged over the batch",
    )
    if message is None and not (isinstance(result, Tensor) and result.requires_grad):
        return "the value is right but carries no gradient: avoid .item(), .detach(), .numpy()"
    return message or _survives_a_gap(answer)


def _survives_a_gap(answer: Callable) -> str | None:
    """Float32 logits 120 apart, where exp underflows, in the student and then in the teacher."""
    flat, far = torch.tensor([[0.5, 0.0, -0.5]]), torch.tensor([[120.0, 0.0, 60.0]])
    for student, teacher in ((far, flat), (flat, far)):
        log_q, log_p = F.log_softmax(student, 1), F.log_softmax(teacher, 1)
        right = (log_p.exp() * (log_p - log_q)).sum()
        result = as_tensor(answer(student, teacher, 1.0)).detach().to(right)
        if not torch.allclose(result, right, rtol=1e-4):
            return (
                f"right for small logits, but for float32 logits 120 apart it is {result:.4g} "
                f"instead of {right:.4g}: softmax underflows there; use log_softmax"
            )
    return None


@exercise("2.2")
def _kd_gradient(answer: Callable) -> str | None:
    """The gradient of the distillation loss by hand"""
    student, teacher, T = normal(6, 5, seed=3, scale=2), normal(6, 5, seed=4, scale=2), 3.0
    difference = F.softmax(student / T, 1) - F.softmax(teacher / T, 1)
    right = T * difference / 6
    hot = F.softmax(student, 1) - F.softmax(teacher, 1)
    result, message = _by_hand(answer, student, teacher, T)
    return message or compare(
        result,
        right,
        {
            "the sign is wrong: the gradient points from the teacher to the student, q - p": -right,
            "divide by the batch size: the loss is a mean over the batch": right * 6,
            "divide by the batch size, not by the number of entries": right / 5,
            "one factor T is missing: T² from the loss times 1/T from the chain rule "
            "leaves T": right / T,
            "a factor T is missing, and so is the mean over the batch": difference,
            "one factor T is too many: the chain rule through z / T gives 1/T": right * T,
            "this is the gradient without T²: multiply it by T²": right / T**2,
            "q and p are taken at the temperature T": T * hot / 6,
            "q and p are taken at the temperature T, and a factor in front is missing": hot / 6,
            "q and p are taken at the temperature T, and the mean over the batch is missing": (
                T * hot
            ),
            "q and p are taken at the temperature T; then think of T² and of the batch": hot,
        },
        "the gradient with respect to the student's logits is T (q - p) / B",
    )


@exercise("2.3")
def _nckd(answer: Callable) -> str | None:
    """The non-target part of DKD"""
    student, teacher = normal(6, 5, seed=5, scale=2), normal(6, 5, seed=6, scale=2)
    target = torch.tensor([0, 1, 2, 3, 4, 0])
    others = ~F.one_hot(target, 5).bool()
    log_p, log_q = F.log_softmax(teacher, 1), F.log_softmax(student, 1)

    def part(values: Tensor) -> Tensor:
        return values[others].view(6, 4)

    hat_p, hat_q = F.log_softmax(part(teacher), 1), F.log_softmax(part(student), 1)
    right = (hat_p.exp() * (hat_p - hat_q)).sum(1)
    rest = part(log_p.exp()).sum(1)
    result = answer(student, teacher, target)
    if _is_nan(result):
        return (
            "the result is NaN: a target filled with -inf gives 0 · (-inf) in the sum; leave "
            "the class out instead, or fill it with a large negative number"
        )
    return compare(
        result,
        right,
        {
            "renormalise: the probabilities of the other classes must sum to one": (
                (part(log_p).exp() * (part(log_p) - part(log_q))).sum(1)
            ),
            "leave out the factor 1 - p_y: removing it is the point of DKD": rest * right,
            "this is the whole KL: the target class has to go first": (
                (log_p.exp() * (log_p - log_q)).sum(1)
            ),
            "student and teacher are swapped: weight with the teacher's probabilities": (
                (hat_q.exp() * (hat_q - hat_p)).sum(1)
            ),
            "return one value for each sample, without the mean over the batch": right.mean(),
            "return one value for each sample, without the sum over the batch": right.sum(),
            "a zero in place of the target's logit still "
            "takes part in the softmax: leave it out": _masked_with_zero(student, teacher, others),
        },
        "take the softmax over the C - 1 other classes, then KL from teacher to student",
    )


def _masked_with_zero(student: Tensor, teacher: Tensor, others: Tensor) -> Tensor:
    log_p, log_q = F.log_softmax(teacher * others, 1), F.log_softmax(student * others, 1)
    return (log_p.exp() * (log_p - log_q)).sum(1)


@exercise("2.4")
def _infonce(answer: Callable) -> str | None:
    """InfoNCE between student and teacher features"""
    student, teacher = normal(6, 4, seed=7, scale=2), normal(6, 4, seed=8, scale=2)
    tau, own = 0.5, torch.arange(6)
    unit_student, unit_teacher = F.normalize(student, dim=1), F.normalize(teacher, dim=1)
    scores = unit_student @ unit_teacher.T / tau
    right = F.cross_entropy(scores, own)
    raw = student @ teacher.T
    diagonal = scores.diagonal()
    negatives = scores.masked_fill(torch.eye(6, dtype=torch.bool), -torch.inf)
    return compare(
        answer(student, teacher, tau),
        right,
        {
            "normalise every row to length one first": F.cross_entropy(raw / tau, own),
            "normalize(x, 1) reads 1 as the p of the "
            "norm: write normalize(x, dim=1)": F.cross_entropy(
                F.normalize(student, 1) @ F.normalize(teacher, 1).T / tau, own
            ),
            "divide the similarities by the temperature": F.cross_entropy(scores * tau, own),
            "divide by the temperature instead of multiplying": F.cross_entropy(
                scores * tau**2, own
            ),
            "only one direction is asked for: the student searches among the teacher's rows": (
                (right + F.cross_entropy(scores.T, own)) / 2
            ),
            "only one direction is asked for, the student's search among the teacher's rows": (
                right + F.cross_entropy(scores.T, own)
            ),
            "scale each row to length one, dim=1; this "
            "scales each feature over the batch": F.cross_entropy(
                F.normalize(student, dim=0) @ F.normalize(teacher, dim=0).T / tau, own
            ),
            "the candidates must be the teacher's rows: the "
            "softmax runs over the wrong axis": F.cross_entropy(scores.T, own),
            "the sign is wrong: the loss is minus the log-probability": -right,
            "the positive belongs in the denominator as well": (
                (negatives.logsumexp(1) - diagonal).mean()
            ),
            "average over the batch instead of summing": right * 6,
            "return one number: average over the batch": F.cross_entropy(
                scores, own, reduction="none"
            ),
        },
        "cross-entropy of the cosine similarities / tau, where the right answer is the own row",
    )


@exercise("2.5")
def _reverse_gradient(answer: Callable) -> str | None:
    """The gradient of the reverse divergence"""
    student, teacher = normal(6, 5, seed=9, scale=2), normal(6, 5, seed=10, scale=2)
    log_q, log_p = F.log_softmax(student, 1), F.log_softmax(teacher, 1)
    q, gap = log_q.exp(), log_q - log_p
    divergence = (q * gap).sum(1, keepdim=True)
    right = q * (gap - divergence)
    result, message = _by_hand(answer, student, teacher)
    return message or compare(
        result,
        right,
        {
            "q - p is the gradient of the forward divergence": q - log_p.exp(),
            "subtract from log q - log p its mean under q: a reward counts against its baseline": (
                q * gap
            ),
            "nearly: the baseline is the mean under q, not the plain mean over the classes": (
                q * (gap - gap.mean(1, keepdim=True))
            ),
            "this differentiates q alone or log q alone; the constant +1 has to cancel": (
                q * (gap + 1)
            ),
            "the sign is wrong: this is the ascent on the reward log p - log q": -right,
            "weight with the student's probabilities: the expectation is under q": (
                log_p.exp() * (gap - divergence)
            ),
            "every logit's gradient is weighted with its probability q": gap - divergence,
            "return the gradient for each sample: no mean over the batch": right / 6,
        },
        "with the reward log p - log q and its mean under q as baseline, the gradient of the loss "
        "is q (baseline - reward), entry by entry",
    )


TEMPERATURE, ENOUGH = 8.0, 10  # the students of a wasted teacher read less, in %


@exercise("2.6")
def _waste(answer: Callable) -> str | None:
    """Waste a good teacher and leave every answer as it is"""
    digits = data.load("mnist-5k")
    p = _probabilities(training.predict(_big_teacher(), digits.train.images))
    changed = as_tensor(answer(p.clone()))
    if not isinstance(changed, Tensor) or changed.shape != p.shape or changed.is_complex():
        return "return the changed probabilities in the shape of those that you get, [B, 10]"
    changed = changed.detach().to(p)
    sums = changed.sum(1)
    if not torch.allclose(sums, torch.ones_like(sums), atol=1e-6) or bool((changed < 0).any()):
        return "each row must stay a distribution: nothing below 0, and the sum is 1"
    order = p.argsort(1, descending=True)
    before, after = (one.gather(1, order) for one in (p, changed))
    if not torch.allclose(before[:, 0], after[:, 0], atol=1e-6):
        return "the class in front must keep its probability"
    if bool(((before.diff() < 0) & (after.diff() >= 0)).any()):
        return "every class must keep its rank, and no two may become equal"
    found, plain = (_reads(function, of) for function, of in ((answer, changed), (_same, p)))
    if found < ENOUGH:
        return None
    told = f"the students read {found:.0f} % of the 3s; from the teacher as it is {plain:.0f} %"
    if found > plain:
        return f"{told}: you made it a better teacher of the 3"
    if found < plain:
        return f"{told}: the direction is right, go on"
    return f"{told}: on an 8 nobody says 3, so what do they learn it from?"


_READ: dict[str, float] = {}  # a training for each set of answers, whoever computes them


def _reads(change: Callable, of: Tensor) -> float:
    """Per cent of the validation 3s that pocket students read, mean of three that saw none."""
    key = hashlib.sha256(of.numpy().tobytes()).hexdigest()
    if key not in _READ:
        _READ[key] = math.fsum(_read(change, seed) for seed in range(3)) / 3
    return _READ[key]


def _read(change: Callable, seed: int) -> float:
    digits = data.load("mnist-5k")
    student = training.build(functools.partial(_network, 32), seed)
    training.fit(
        student, digits.train.take(digits.train.labels != 3), method="kd", alpha=1.0,
        temperature=TEMPERATURE, teacher=_Changed(change), epochs=20, lr=5e-3, seed=seed,
        progress=False,
    )  # fmt: skip
    threes = digits.validation.take(digits.validation.labels == 3)
    return training.evaluate(student, threes)["accuracy"]


class _Changed(nn.Module):
    """The big teacher behind a function that changes its probabilities."""

    def __init__(self, change: Callable) -> None:
        super().__init__()
        self.network, self.change = _big_teacher(), change

    def forward(self, images: Tensor) -> Tensor:
        p = _probabilities(self.network(images))
        changed = as_tensor(self.change(p)).to(p)
        return TEMPERATURE * changed.clamp_min(1e-30).log().float()


def _probabilities(logits: Tensor) -> Tensor:
    return F.softmax(logits.double() / TEMPERATURE, 1)


def _same(p: Tensor) -> Tensor:
    return p


@functools.cache
def _big_teacher() -> nn.Module:
    """The recipe of the notebook."""
    teacher = training.build(functools.partial(_network, 400, dropout=0.3), 0)
    training.fit(
        teacher,
        data.load("mnist-5k").train,
        epochs=25,
        batch_size=128,
        augment=functools.partial(data.shift, pixels=2),
        progress=False,
    )
    return teacher


def _network(width: int, dropout: float = 0.0) -> nn.Module:
    """784 -> width -> width -> 10, in float32 whatever the notebook's default."""
    layers: list[nn.Module] = [nn.Flatten()]
    for size in (784, width):
        layers += [nn.Linear(size, width), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(width, 10)).float()
