"""Instant checks for the exercises: `check("2.1", answer)` prints one line and never raises.

The line begins with "[to do]" while the exercise is untouched, "correct:", or "not yet:" with what
to look at. Inputs are fixed, so the line is the same on every machine. To add an exercise, write a
function that takes the answer, returns None if it is right or else a message, and decorate it:
the first line of its docstring becomes the title. An answer is a value or the student's function.
"""

from __future__ import annotations

import functools
from typing import Any, Callable

import torch
from torch import Tensor
from torch.nn import functional as F

EXERCISES: dict[str, tuple[str, Callable[[Any], str | None]]] = {}


class Untouched(Exception):
    """The student's function gave no answer yet."""


def exercise(name: str) -> Callable[[Callable], Callable]:
    """Register the decorated function as the check of the exercise `name`."""
    def register(function: Callable[[Any], str | None]) -> Callable[[Any], str | None]:
        if name in EXERCISES:
            raise ValueError(f"exercise {name} is registered twice")
        title = (function.__doc__ or name).strip().splitlines()[0].rstrip(".")
        EXERCISES[name] = title, function
        return function
    return register


def check(name: str, answer: Any) -> None:
    """Print whether `answer` solves the exercise `name`.

    Args:
        name: the number of the exercise, as "2.1".
        answer: a value or a function; None, `...`, and a function that returns one of them or
            raises NotImplementedError count as untouched.
    """
    print(verdict(name, answer))


def verdict(name: str, answer: Any) -> str:
    """The line that `check` prints."""
    if name not in EXERCISES:
        return f"not yet: there is no exercise {name!r}; known are {', '.join(sorted(EXERCISES))}"
    title, function = EXERCISES[name]
    if answer is None or answer is ...:
        return f"[to do] {name}: {title}"
    try:
        message = function(_guard(answer) if callable(answer) else answer)
    except (Untouched, NotImplementedError):
        return f"[to do] {name}: {title}"
    except Exception as error:  # whatever the student's code raises becomes the message
        reason = str(error).strip().splitlines()
        message = f"your code raised {type(error).__name__}" + (f": {reason[0]}" if reason else "")
    return f"correct: {name} {title}" if message is None else f"not yet: {name} {message}"


def _guard(answer: Callable) -> Callable:
    """The student's function; an empty result says that the exercise is untouched."""
    @functools.wraps(answer)
    def call(*args: Any, **options: Any) -> Any:
        result = answer(*args, **options)
        if result is None or result is ...:
            raise Untouched
        return result
    return call


def compare(result: Any, right: Tensor, mistakes: dict[str, Tensor], otherwise: str, *,
            tolerance: float = 1e-6) -> str | None:
    """None if `result` is `right`, else the message of the mistake that gives this result.

    Args:
        result: what the student's function returned; a number or a tensor.
        right: the expected tensor.
        mistakes: {message: the tensor that this mistake gives}; the first that fits is told.
        otherwise: the message for any other wrong value.
        tolerance: relative to `right`, with the same absolute floor.
    """
    if not isinstance(result, (int, float, Tensor)):
        return f"return a tensor, not {type(result).__name__}"
    result = torch.as_tensor(result).detach().to(right)
    same = functools.partial(torch.allclose, rtol=tolerance, atol=tolerance)
    for message, wrong in mistakes.items():
        if result.shape == wrong.shape != right.shape and same(result, wrong):
            return message
    if result.shape != right.shape:
        return f"the shape must be {list(right.shape)}, got {list(result.shape)}"
    if not result.isfinite().all():
        return "the result is not finite: stay in log space with log_softmax"
    if same(result, right):
        return None
    return next((text for text, wrong in mistakes.items()
                 if wrong.shape == right.shape and same(result, wrong)), otherwise)


def normal(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    """A fixed float64 tensor of normal numbers."""
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed),
                               dtype=torch.float64)


# Notebook 2: derivation

@exercise("2.1")
def _kd(answer: Callable) -> str | None:
    """The distillation loss with temperature"""
    student, teacher, T = normal(6, 5, seed=1, scale=2), normal(6, 5, seed=2, scale=2), 3.0
    student.requires_grad_()
    p, log_p = F.softmax(teacher / T, 1), F.log_softmax(teacher / T, 1)
    q, log_q = F.softmax(student / T, 1), F.log_softmax(student / T, 1)
    kl = (p * (log_p - log_q)).sum(1).mean()
    hot_p, hot_q = F.log_softmax(teacher, 1), F.log_softmax(student, 1)
    result = answer(student, teacher, T)
    message = compare(result, T**2 * kl, {
        "the factor T² is missing: without it the gradient fades as 1/T²": kl,
        "multiply by T², not by T": T * kl,
        "the loss is C times too small: average over the batch, but sum over the classes":
            T**2 * kl / 5,
        "T² is missing, and the loss is averaged over the classes instead of summed": kl / 5,
        "average over the batch instead of summing over it": T**2 * kl * 6,
        "student and teacher are swapped: this is KL(q || p), the reverse divergence":
            T**2 * (q * (log_q - log_p)).sum(1).mean(),
        "this is the cross-entropy: subtract the teacher's entropy to get the divergence":
            -T**2 * (p * log_q).sum(1).mean(),
        "divide the logits of both networks by T before the softmax":
            T**2 * (hot_p.exp() * (hot_p - hot_q)).sum(1).mean(),
        "the student's logits must be divided by T too":
            T**2 * (p * (log_p - hot_q)).sum(1).mean(),
        "return one number: average over the batch": T**2 * (p * (log_p - log_q)).sum(1),
    }, "compute T² · KL(p || q), summed over classes and averaged over the batch")
    if message is None and not (isinstance(result, Tensor) and result.requires_grad):
        return "the value is right but carries no gradient: avoid .item(), .detach(), .numpy()"
    return message


@exercise("2.2")
def _kd_gradient(answer: Callable) -> str | None:
    """The gradient of the distillation loss by hand"""
    student, teacher, T = normal(6, 5, seed=3, scale=2), normal(6, 5, seed=4, scale=2), 3.0
    difference = F.softmax(student / T, 1) - F.softmax(teacher / T, 1)
    right = T * difference / 6
    return compare(answer(student, teacher, T), right, {
        "the sign is wrong: the gradient points from the teacher to the student, q - p": -right,
        "divide by the batch size: the loss is a mean over the batch": right * 6,
        "divide by the batch size, not by the number of entries": right / 5,
        "one factor T is missing: T² from the loss times 1/T from the chain rule leaves T":
            right / T,
        "a factor T is missing, and so is the mean over the batch": difference,
        "one factor T is too many: the chain rule through z / T gives 1/T": right * T,
        "this is the gradient without T²: multiply it by T²": right / T**2,
    }, "the gradient with respect to the student's logits is T (q - p) / B")


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
    return compare(answer(student, teacher, target), right, {
        "renormalise: the probabilities of the other classes must sum to one":
            (part(log_p).exp() * (part(log_p) - part(log_q))).sum(1),
        "leave out the factor 1 - p_y: removing it is the point of DKD": rest * right,
        "this is the whole KL: the target class has to go first":
            (log_p.exp() * (log_p - log_q)).sum(1),
        "student and teacher are swapped: weight with the teacher's probabilities":
            (hat_q.exp() * (hat_q - hat_p)).sum(1),
        "return one value for each sample, without the mean over the batch": right.mean(),
        "return one value for each sample, without the sum over the batch": right.sum(),
        "a zero in place of the target's logit still takes part in the softmax: leave it out":
            _masked_with_zero(student, teacher, others),
    }, "take the softmax over the C - 1 other classes, then KL from teacher to student")


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
    return compare(answer(student, teacher, tau), right, {
        "normalise every row to length one first": F.cross_entropy(raw / tau, own),
        "normalize(x, 1) reads 1 as the p of the norm: write normalize(x, dim=1)":
            F.cross_entropy(F.normalize(student, 1) @ F.normalize(teacher, 1).T / tau, own),
        "divide the similarities by the temperature": F.cross_entropy(scores * tau, own),
        "divide by the temperature instead of multiplying":
            F.cross_entropy(scores * tau**2, own),
        "the candidates must be the teacher's rows: the softmax runs over the wrong axis":
            F.cross_entropy(scores.T, own),
        "the sign is wrong: the loss is minus the log-probability": -right,
        "the positive belongs in the denominator as well":
            (negatives.logsumexp(1) - diagonal).mean(),
        "average over the batch instead of summing": right * 6,
        "return one number: average over the batch": F.cross_entropy(scores, own, reduction="none"),
    }, "cross-entropy of the cosine similarities / tau, where the right answer is the own row")


@exercise("2.5")
def _reverse_gradient(answer: Callable) -> str | None:
    """The gradient of the reverse divergence"""
    student, teacher = normal(6, 5, seed=9, scale=2), normal(6, 5, seed=10, scale=2)
    log_q, log_p = F.log_softmax(student, 1), F.log_softmax(teacher, 1)
    q, gap = log_q.exp(), log_q - log_p
    divergence = (q * gap).sum(1, keepdim=True)
    right = q * (gap - divergence)
    return compare(answer(student, teacher), right, {
        "q - p is the gradient of the forward divergence": q - log_p.exp(),
        "subtract the divergence: the reward counts against its mean under q": q * gap,
        "this differentiates q alone or log q alone; the constant +1 has to cancel": q * (gap + 1),
        "the sign is wrong: the loss is minimised, so a high log q - log p pushes q down": -right,
        "weight with the student's probabilities: the expectation is under q":
            log_p.exp() * (gap - divergence),
        "every logit's gradient is weighted with its probability q": gap - divergence,
        "return the gradient for each sample: no mean over the batch": right / 6,
    }, "the gradient is q (log q - log p - KL(q || p)), entry by entry")
