"""Instant checks for the exercises: `check("2.1", answer)` prints one line and never raises.

The line begins with "[to do]" while the exercise is untouched, "correct:", or "not yet:" with what
to look at. Inputs are fixed, so the line is the same on every machine. To add an exercise, write a
function that takes the answer, returns None if it is right or else a message, and decorate it:
the first line of its docstring becomes the title. An answer is a value or the student's function.
"""

from __future__ import annotations

import functools
import math
from typing import Any, Callable

import torch
from torch import Tensor, nn
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


# Notebook 1: motivation

@exercise("1.1")
def _cost(answer: Callable) -> str | None:
    """The cost of a fully connected network"""
    sizes = [20, 8, 6, 5]
    weights, biases = 20 * 8 + 8 * 6 + 6 * 5, 8 + 6 + 5

    def pair(parameters: int, operations: int) -> Tensor:
        return torch.tensor([parameters, operations], dtype=torch.float64)

    message = compare(_as_tensor(answer(sizes)), pair(weights + biases, 2 * weights), {
        "every layer has biases, one for each output": pair(weights, 2 * weights),
        "a weight costs two operations: a multiplication and an addition":
            pair(weights + biases, weights),
        "parameters include the biases, and a weight costs two operations": pair(weights, weights),
        "PyTorch's counter leaves the biases out: count the products only":
            pair(weights + biases, 2 * weights + biases),
        "a bias is one addition, and PyTorch's counter leaves it out":
            pair(weights + biases, 2 * (weights + biases)),
        "parameters come first, FLOPs second": pair(2 * weights, weights + biases),
    }, "parameters: inputs times outputs plus outputs, summed over the layers; "
       "FLOPs: two for each weight")
    if message is not None:
        return message
    for sizes, cost in {(4, 5, 6, 5, 3): (114, 190), (7, 3): (24, 42)}.items():
        if compare(_as_tensor(answer(list(sizes))), pair(*cost), {}, "wrong") is not None:
            return (f"right for three layers, not for {len(sizes) - 1}: sizes may have any length, "
                    "so loop over pairs of neighbours")
    return None


@exercise("1.2")
def _frontier(answer: Callable) -> str | None:
    """The networks that no other network beats"""
    costs = torch.tensor([4.0, 1.0, 2.0, 3.0, 2.0, 4.0, 5.0])
    accuracies = torch.tensor([70.0, 50.0, 60.0, 58.0, 55.0, 70.0, 70.0])

    def mask(text: str) -> Tensor:
        return torch.tensor([mark == "1" for mark in text], dtype=torch.float64)

    result = _as_tensor(answer(costs, accuracies))
    return compare(result, mask("1110010"), {
        "the mask is the wrong way round: True is for networks that nothing beats":
            mask("0001101"),
        "as cheap and more accurate, or as accurate and cheaper, is better too": mask("1110111"),
        "two equal networks do not beat each other: both stay": mask("0110000"),
        "of two equal networks both stay": mask("1110000"),
        "a network does not beat itself": mask("0000000"),
        "the networks are not sorted by cost": mask("1000000"),
        "the wrong axis: these networks beat no other; with costs[:, None] <= costs the winner is "
        "on axis 0, so reduce that axis": mask("0101101"),
        "the wrong axis, and the wrong way round: with costs[:, None] <= costs reduce axis 0, the "
        "winner's; True is for networks that nothing beats": mask("1010010"),
        "the best ratio is one point of the frontier, not all of it": mask("0100000"),
    }, "compare each network with all others: is one at least as good in both, and better in one?")


@exercise("1.3")
def _jensen(answer: Callable) -> str | None:
    """What averaging gains in cross-entropy"""
    logits, target = normal(3, 6, 5, seed=11, scale=2), torch.tensor([0, 1, 2, 3, 4, 0])
    own = F.one_hot(target, 5).bool()
    single = -F.log_softmax(logits, 2)[:, own]          # [members, samples]
    together = -F.softmax(logits, 2).mean(0)[own].log()
    right = single.mean(0) - together
    return compare(answer(logits, target), right, {
        "the sign is wrong: subtract the ensemble's loss from the members'": -right,
        "return one value for each sample, without the mean over the batch": right.mean(),
        "return one value for each sample, without the sum over the batch": right.sum(),
        "return one value for each sample: average over the members too": single - together,
        "this sums over the members: their loss is the mean": single.sum(0) - together,
        "this sums the members' probabilities: the ensemble's are their mean":
            single.mean(0) - (together - math.log(3)),
        "the mean of the logarithms is the members' loss itself: average the probabilities":
            torch.zeros_like(right),
        "this averages the logits: average the probabilities":
            single.mean(0) + F.log_softmax(logits.mean(0), 1)[own],
        "the loss is a logarithm; this is a difference of probabilities":
            F.softmax(logits, 2).mean(0)[own] - single.mean(0).neg().exp(),
        "this is the ensemble's loss: what do its members lose on average?": together,
        "this is the members' loss: subtract the ensemble's": single.mean(0),
    }, "the mean over members of -log p_m(y), minus -log of the mean over members of p_m(y)")


@exercise("1.4")
def _temper(answer: Callable) -> str | None:
    """A temperature for a teacher that answers with probabilities"""
    probabilities, T = F.softmax(normal(6, 5, seed=12, scale=2), 1), 4.0
    power = probabilities ** (1 / T)
    right = power / power.sum(1, keepdim=True)
    steep = probabilities ** T
    return compare(answer(probabilities, T), right, {
        "dividing probabilities by T and normalising again changes nothing": probabilities,
        "divided by T they no longer sum to one, and normalising would undo it":
            probabilities / T,
        "a softmax expects logits: take the logarithm of the probabilities first":
            F.softmax(probabilities / T, 1),
        "this sharpens: the power is 1 / T, not T": steep / steep.sum(1, keepdim=True),
        "normalise: the probabilities of a sample must sum to one": power,
        "return probabilities, not their logarithms": right.log(),
        "the softmax runs over the classes, not over the batch":
            power / power.sum(0, keepdim=True),
    }, "logits are log-probabilities up to a constant: softmax(log p / T)")


def _as_tensor(result: Any) -> Any:
    """Numbers, booleans or a list of them as a float64 tensor; anything else as it is."""
    if isinstance(result, (list, tuple)):
        result = torch.tensor([float(value) for value in result], dtype=torch.float64)
    return result.double() if isinstance(result, Tensor) else result


# Notebook 2: derivation

def _is_nan(result: Any) -> bool:
    return isinstance(result, (float, Tensor)) and bool(torch.as_tensor(result).isnan().any())


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
        return ("the result is NaN: F.kl_div takes the student's log-probabilities first, then "
                "the teacher's probabilities (or logarithms too, with log_target=True)")
    message = compare(result, T**2 * kl, {
        "a probability stands first: F.kl_div takes the student's log-probabilities there":
            T**2 * F.kl_div(q, p, reduction="batchmean"),
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
        "the teacher's logits must be divided by T too":
            T**2 * (hot_p.exp() * (hot_p - log_q)).sum(1).mean(),
        "the softmax runs over the classes, dim=1, not over the batch":
            T**2 * (over_batch[0].exp() * (over_batch[0] - over_batch[1])).sum(1).mean(),
        "return one number: average over the batch": T**2 * (p * (log_p - log_q)).sum(1),
    }, "compute T² · KL(p || q), summed over classes and averaged over the batch")
    if message is None and not (isinstance(result, Tensor) and result.requires_grad):
        return "the value is right but carries no gradient: avoid .item(), .detach(), .numpy()"
    return message or _survives_a_gap(answer)


def _survives_a_gap(answer: Callable) -> str | None:
    """Float32 logits 120 apart, where exp underflows, in the student and then in the teacher."""
    flat, far = torch.tensor([[0.5, 0.0, -0.5]]), torch.tensor([[120.0, 0.0, 60.0]])
    for student, teacher in ((far, flat), (flat, far)):
        log_q, log_p = F.log_softmax(student, 1), F.log_softmax(teacher, 1)
        right = (log_p.exp() * (log_p - log_q)).sum()
        result = torch.as_tensor(answer(student, teacher, 1.0)).detach().to(right)
        if not torch.allclose(result, right, rtol=1e-4):
            return (f"right for small logits, but for float32 logits 120 apart it is {result:.4g} "
                    f"instead of {right:.4g}: softmax underflows there; use log_softmax")
    return None


@exercise("2.2")
def _kd_gradient(answer: Callable) -> str | None:
    """The gradient of the distillation loss by hand"""
    student, teacher, T = normal(6, 5, seed=3, scale=2), normal(6, 5, seed=4, scale=2), 3.0
    difference = F.softmax(student / T, 1) - F.softmax(teacher / T, 1)
    right = T * difference / 6
    hot = F.softmax(student, 1) - F.softmax(teacher, 1)
    result, message = _by_hand(answer, student, teacher, T)
    return message or compare(result, right, {
        "the sign is wrong: the gradient points from the teacher to the student, q - p": -right,
        "divide by the batch size: the loss is a mean over the batch": right * 6,
        "divide by the batch size, not by the number of entries": right / 5,
        "one factor T is missing: T² from the loss times 1/T from the chain rule leaves T":
            right / T,
        "a factor T is missing, and so is the mean over the batch": difference,
        "one factor T is too many: the chain rule through z / T gives 1/T": right * T,
        "this is the gradient without T²: multiply it by T²": right / T**2,
        "q and p are taken at the temperature T": T * hot / 6,
        "q and p are taken at the temperature T, and a factor in front is missing": hot / 6,
        "q and p are taken at the temperature T, and the mean over the batch is missing": T * hot,
        "q and p are taken at the temperature T; then think of T² and of the batch": hot,
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
    result = answer(student, teacher, target)
    if _is_nan(result):
        return ("the result is NaN: a target filled with -inf gives 0 · (-inf) in the sum; leave "
                "the class out instead, or fill it with a large negative number")
    return compare(result, right, {
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
        "only one direction is asked for: the student searches among the teacher's rows":
            (right + F.cross_entropy(scores.T, own)) / 2,
        "only one direction is asked for, the student's search among the teacher's rows":
            right + F.cross_entropy(scores.T, own),
        "scale each row to length one, dim=1; this scales each feature over the batch":
            F.cross_entropy(F.normalize(student, dim=0) @ F.normalize(teacher, dim=0).T / tau, own),
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
    result, message = _by_hand(answer, student, teacher)
    return message or compare(result, right, {
        "q - p is the gradient of the forward divergence": q - log_p.exp(),
        "subtract from log q - log p its mean under q: a reward counts against its baseline":
            q * gap,
        "nearly: the baseline is the mean under q, not the plain mean over the classes":
            q * (gap - gap.mean(1, keepdim=True)),
        "this differentiates q alone or log q alone; the constant +1 has to cancel": q * (gap + 1),
        "the sign is wrong: this is the ascent on the reward log p - log q": -right,
        "weight with the student's probabilities: the expectation is under q":
            log_p.exp() * (gap - divergence),
        "every logit's gradient is weighted with its probability q": gap - divergence,
        "return the gradient for each sample: no mean over the batch": right / 6,
    }, "with the reward log p - log q and its mean under q as baseline, the gradient of the loss "
       "is q (baseline - reward), entry by entry")


# Notebook 3: code walkthrough

@exercise("3.1")
def _combined(answer: Callable) -> str | None:
    """Labels and teacher in one loss"""
    student, teacher = normal(6, 5, seed=11, scale=2), normal(6, 5, seed=12, scale=2)
    target, T, alpha = torch.tensor([0, 1, 2, 3, 4, 0]), 3.0, 0.8
    ce = F.cross_entropy(student, target)
    log_p, log_q = F.log_softmax(teacher / T, 1), F.log_softmax(student / T, 1)
    kl = (log_p.exp() * (log_p - log_q)).sum(1).mean()
    soft = T**2 * kl
    teacher.requires_grad_()
    result = answer(student.requires_grad_(), teacher, target, T, alpha)
    message = compare(result, (1 - alpha) * ce + alpha * soft, {
        "alpha is the teacher's share, 1 - alpha the labels'": alpha * ce + (1 - alpha) * soft,
        "the factor T² is missing in front of the divergence": (1 - alpha) * ce + alpha * kl,
        "T² belongs to the divergence only, not to the cross-entropy":
            T**2 * ((1 - alpha) * ce + alpha * kl),
        "the labels are not softened: the cross-entropy takes the logits without T":
            (1 - alpha) * F.cross_entropy(student / T, target) + alpha * soft,
        "the divergence is C times too small: sum it over the classes":
            (1 - alpha) * ce + alpha * soft / 5,
        "the cross-entropy with the labels is missing": alpha * soft,
        "weight the cross-entropy with 1 - alpha": ce + alpha * soft,
    }, "compute (1 - alpha) · cross-entropy + alpha · T² · KL(p || q)")
    if message is None and not (isinstance(result, Tensor) and result.requires_grad):
        return "the value is right but carries no gradient: avoid .item(), .detach(), .numpy()"
    if message is None and torch.autograd.grad(result, teacher, allow_unused=True)[0] is not None:
        return "the loss would train the teacher too: detach its logits"
    return message


@exercise("3.2")
def _hook(answer: Callable) -> str | None:
    """A hook that reads a stage"""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    for number, parameter in enumerate(model.parameters()):
        parameter.data = normal(*parameter.shape, seed=20 + number)
    images = normal(5, 4, seed=14)
    entering = model[1](images)
    right, logits = entering.relu(), model(images)
    model[3].eval()                                     # parts of a network can differ in mode
    modes = [module.training for module in model.modules()]
    result = answer(model, "2", images)
    message = compare(result, right, {
        "this is the output of the whole network": logits,
        "this is what enters the module: a hook gets (module, inputs, output)": entering,
        "this applies the module to the images: call the whole network, and let the hook note what "
        "passes": images.relu(),
    }, "return the output of the module called name")
    if message is None and any(module._forward_hooks for module in model.modules()):
        return "the hook is still there: call .remove() on the handle, or hooks pile up"
    if message is None and [module.training for module in model.modules()] != modes:
        return "the network's mode changed: leave training and evaluation mode as you found them"
    if message is None and not result.requires_grad:
        return ("the values are right but carry no gradient, and a loss on features needs it: "
                "avoid torch.no_grad() and .detach()")
    return message


@exercise("3.3")
def _paired(answer: Callable) -> str | None:
    """The interval of a paired difference"""
    ours = torch.tensor([92.1, 93.4, 91.0, 94.2, 92.8], dtype=torch.float64)
    theirs = torch.tensor([91.3, 92.1, 90.6, 93.1, 92.1], dtype=torch.float64)
    gap, n, t = ours - theirs, len(ours), 2.7764451051977987   # t: 97.5 % point, 4 degrees

    def ends(half: Tensor | float) -> Tensor:
        return torch.stack([gap.mean() - half, gap.mean() + half])

    right = t * gap.std() / n**0.5
    unpaired = ((ours.var() + theirs.var()) / n).sqrt()
    seed_by_seed = "take the differences seed by seed first: unpaired, the noise of the seeds stays"
    return compare(_as_tensor(answer(ours.tolist(), theirs.tolist())), ends(right), {
        f"{seed_by_seed} in": ends(t * unpaired),
        f"{seed_by_seed} in (paired, there are 4 degrees of freedom)": ends(2.306004 * unpaired),
        f"{seed_by_seed} in; and divide by the root of n": ends(t * n**0.5 * unpaired),
        "divide the standard deviation by the root of n": ends(t * gap.std()),
        "1.96 is for many seeds: with five, Student's t gives 2.776": ends(1.96 / t * right),
        "divide by n - 1 in the standard deviation (ddof=1)":
            ends(t * gap.std(correction=0) / n**0.5),
        "use n - 1 = 4 degrees of freedom": ends(2.5706 / t * right),
        "this is the one-sided 95 % point: the interval needs 97.5 % at each end":
            ends(2.1318 / t * right),
        "the sign: ours minus theirs": -ends(right).flip(0),
    }, "mean ± t · s / √n of the five differences, as (low, high)", tolerance=1e-4)


@exercise("3.4")
def _attention(answer: Callable) -> str | None:
    """Attention transfer from its formula"""
    student, teacher = normal(6, 3, 4, 4, seed=15), normal(6, 5, 4, 4, seed=16)

    def squares(a: Tensor) -> Tensor:
        return a.square().mean(1)

    def distance(unit: Callable = F.normalize, attention: Callable = squares) -> Tensor:
        s, t = (unit(attention(a).flatten(1)) for a in (student, teacher))
        return (s - t).square().mean()

    def unflattened(a: Tensor) -> Tensor:
        return F.normalize(a.square().mean(1), dim=1)

    apart = (F.normalize(student.square().mean(1).flatten(1))
             - F.normalize(teacher.square().mean(1).flatten(1))).square()
    return compare(answer(student, teacher), distance(), {
        "square the activations first: a map's sign says nothing about attention":
            distance(attention=lambda a: a.mean(1)),
        "square the activations, A²: the absolute value weights strong ones less":
            distance(attention=lambda a: a.abs().mean(1)),
        "square first, then average over the channels: before the square, opposite signs cancel":
            distance(attention=lambda a: a.mean(1).square()),
        "scale every sample's map to length one": distance(lambda a: a),
        "normalize(x, 1) reads 1 as the p of the norm: write normalize(x, dim=1)":
            distance(lambda a: F.normalize(a, 1)),
        "normalise each sample, not each position over the batch":
            distance(lambda a: F.normalize(a, dim=0)),
        "flatten the map to [B, H·W] before you normalise it":
            (unflattened(student) - unflattened(teacher)).square().mean(),
        "average over samples and positions instead of summing": apart.sum(),
        "average over the positions too": apart.sum(1).mean(),
        "return one number: average over samples and positions": apart,
    }, "mean of (q_s - q_t)², where q is the mean over channels of A², flattened, of length one")


@exercise("3.5")
def _step(answer: Callable) -> str | None:
    """A training step without its five bugs"""
    images, target = normal(8, 6, seed=13), torch.arange(8) % 3

    def network(seed: int) -> nn.Sequential:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers = nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)
            return nn.Sequential(*layers).double()

    def trained(seen: nn.Module, T2: float = 16.0, classes: int = 1, steps: int = 2,
                keep: bool = False) -> Tensor:
        student = network(1)
        optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
        for _ in range(steps):
            with torch.no_grad():
                p = F.softmax(seen(images) / 4, 1)
            logits = student(images)
            kl = F.kl_div(F.log_softmax(logits / 4, 1), p, reduction="batchmean") / classes
            if not keep:
                optimizer.zero_grad()
            (0.1 * F.cross_entropy(logits, target) + 0.9 * T2 * kl).backward()
            optimizer.step()
        return torch.cat([p.flatten() for p in student.parameters()]).detach()

    student, teacher = network(1), network(2).train()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    for _ in range(2):
        answer(student, teacher, optimizer, images, target)
    if any(not torch.equal(value, before[name]) for name, value in teacher.state_dict().items()):
        return "the teacher changed: call teacher.eval(), or its batch norm goes on learning"
    if not student.training:
        return "the student must be in training mode"
    result = torch.cat([p.flatten() for p in student.parameters()])
    known = network(2).eval()
    message = compare(result, trained(known), {
        "the student did not move: call backward() and optimizer.step()": trained(known, steps=0),
        "the factor T² is missing": trained(known, T2=1.0),
        "reduction='mean' divides by the number of classes as well: use 'batchmean'":
            trained(known, classes=3),
        "T² is missing, and reduction='mean' divides by the number of classes as well":
            trained(known, T2=1.0, classes=3),
        "gradients of earlier steps add up: call optimizer.zero_grad() before backward()":
            trained(known, keep=True),
    }, "two steps end at other weights than they should: compare with losses.kd line by line")
    if message is None and any(p.grad is not None for p in teacher.parameters()):
        return "the weights are right, but the teacher gets gradients: wrap it in torch.no_grad()"
    return message


# Notebook 4: what gets distilled

@exercise("4.1")
def _cam(answer: Callable) -> str | None:
    """Grad-CAM from features and their gradient"""
    feature, gradient = normal(3, 4, 5, 5, seed=24).relu(), normal(3, 4, 5, 5, seed=25)
    weight = gradient.mean((2, 3), keepdim=True)
    evidence = (weight * feature).sum(1)
    return compare(answer(feature, gradient), evidence.relu(), {
        "ReLU is missing: evidence against the class does not count": evidence,
        "ReLU comes after the sum over the channels": (weight * feature).relu().sum(1),
        "average each channel's gradient over the positions first":
            (gradient * feature).sum(1).relu(),
        "sum over the channels instead of averaging": evidence.relu() / 4,
        "average the gradient over the positions instead of summing": evidence.relu() * 25,
        "ReLU clips the map, it is no absolute value": evidence.abs(),
        "weight the features with the mean gradient of their channel":
            feature.sum(1).relu(),
        "drop the channel axis: the result is [n, h, w]": evidence.relu()[:, None],
    }, "weights are the mean gradient of each channel; ReLU of the weighted sum of the channels")


@exercise("4.2")
def _fooling(answer: Callable) -> str | None:
    """The fooling rate of an attack"""
    clean, attacked = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7]), torch.tensor([0, 1, 9, 9, 4, 5, 6, 2])
    labels = torch.tensor([0, 1, 2, 9, 4, 5, 6, 2])
    share = (clean != attacked).double().mean()
    right = clean == labels
    return compare(answer(clean, attacked, labels), 100 * share, {
        "give the rate in percent": share,
        "this is the share that did not change": 100 * (1 - share),
        "this is the error under attack: an image that was wrong before and after is not fooled":
            100 * (attacked != labels).double().mean(),
        "this is the loss of accuracy: count every changed prediction, also a wrong one":
            100 * (right.double().mean() - (attacked == labels).double().mean()),
        "count images whose clean prediction was wrong, too":
            100 * (clean != attacked)[right].double().mean(),
        "divide by the number of images": (clean != attacked).sum().double(),
    }, "count the images whose predicted class changed, whatever the label says")


@exercise("4.3")
def _attack_step(answer: Callable) -> str | None:
    """One step of iterative FGSM"""
    image = normal(3, 1, 4, 4, seed=21).sigmoid()
    epsilon, size = 0.12, 0.15     # a step may leave both boxes
    moved = (image + 0.3 * (normal(3, 1, 4, 4, seed=22).sigmoid() - 0.5)).clamp(0, 1)
    gradient = normal(3, 1, 4, 4, seed=23)

    def box(x: Tensor, centre: Tensor = image) -> Tensor:
        return x.clamp(centre - epsilon, centre + epsilon).clamp(0, 1)

    up = moved + size * gradient.sign()
    return compare(answer(moved, gradient, image, epsilon, size), box(up), {
        "the attack goes down the loss: add the signs instead of subtracting them":
            box(moved - size * gradient.sign()),
        "take the sign of the gradient: only the direction of each pixel counts":
            box(moved + size * gradient),
        "start from `moved`, the image after the earlier steps, not from the clean one":
            box(image + size * gradient.sign()),
        "the box lies around the clean image, not around `moved`": box(up, moved),
        "a pixel has left [0, 1]": up.clamp(image - epsilon, image + epsilon),
        "a pixel has left the box of ±epsilon around the clean image": up.clamp(0, 1),
        "both limits are missing: ±epsilon around the clean image, and [0, 1]": up,
        "step by `size`; epsilon is the limit": box(moved + epsilon * gradient.sign()),
    }, "move each pixel by size along the sign of its gradient, then clip twice")


@exercise("4.4")
def _own(answer: Callable) -> str | None:
    """Consensus with the own teacher minus with the others"""
    stream = torch.Generator().manual_seed(26)
    student, teacher = (torch.randint(4, (5, 40), generator=stream) for _ in range(2))
    teacher[:, :20] = student[:, :20]
    table = 100 * (student[:, None] == teacher[None]).double().mean(2)   # [student, teacher]
    own = table.diagonal()
    right = own - (table.sum(1) - own) / 4
    return compare(answer(student, teacher), right, {
        "give the differences in percentage points": right / 100,
        "the own teacher must not be among the others": own - table.mean(1),
        "the own teacher must not be among the others: divide by s - 1 after taking it out":
            own - (table.sum(1) - own) / 5,
        "this is the consensus with the own teacher; subtract the one with the others": own,
        "the sign is wrong: own minus others": -right,
        "compare one student with all teachers, not one teacher with all students":
            own - (table.sum(0) - own) / 4,
        "return one value for each student": right.mean(),
    }, "for student i: agreement with teacher i, minus the mean agreement with the other teachers")


@exercise("4.5")
def _overlap(answer: Callable) -> str | None:
    """Intersection over union of two maps of classes"""
    stream = torch.Generator().manual_seed(27)
    a, b = (torch.randint(3, (60,), generator=stream) for _ in range(2))
    a[:30], b[:40], classes = 0, 0, 6     # classes 3 to 5 occur in neither map
    one, two = F.one_hot(a, classes).bool(), F.one_hot(b, classes).bool()
    both, either = (one & two).sum(0).double(), (one | two).sum(0).double()
    seen = either > 0
    each = both[seen] / either[seen]
    agreed = (a == b).sum().double()
    return compare(answer(a, b, classes), 100 * each.mean(), {
        "give the overlap in percent": each.mean(),
        "this is the share of equal points": 100 * agreed / 60,
        "this is the overlap of all points at once: average over the classes, so that small "
        "regions count": 100 * agreed / (120 - agreed),
        "average over the classes that occur in a map: an absent one is no disagreement":
            100 * each.sum() / classes,
        "a class that occurs in neither map has no overlap: leave it out":
            100 * (each.sum() + classes - seen.sum()) / classes,
        "divide by the union, not by the sum of the two regions":
            100 * (both / (one.sum(0) + two.sum(0)))[seen].mean(),
        "divide by the union, not by the teacher's region": 100 * (both / one.sum(0))[seen].mean(),
        "return the mean over the classes": 100 * each,
    }, "for each class |A and B| / |A or B|, then the mean over the classes that occur")
