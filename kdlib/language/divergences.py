"""Divergences of two next-token distributions: a student's q and its teacher's p.

p = softmax(z_t / T), q = softmax(z_s / T) over a vocabulary of V tokens, and at each place of a
sequence

    forward       KL(p ‖ q)                                word-level KD (Hinton et al. 2015)
    reverse       KL(q ‖ p)                                MiniLLM (Gu et al. 2024)
    jsd           β KL(p ‖ m) + (1 − β) KL(q ‖ m)          GKD (Agarwal et al. 2024)
    skew-forward  KL(p ‖ m)                                DistiLLM (Ko et al. 2024)
    skew-reverse  KL(q ‖ (1 − β) p + β q)                  DistiLLM
    tvd           ½ Σ |p − q|                              total variation distance

with m = β p + (1 − β) q. As in the papers there is no factor T² (DistillKit has one), and no
gradient reaches the teacher. Where conventions differ:

- At β = 0 and 1 the equation of jsd gives 0. Here, as in TRL, it is then `forward` and `reverse`:
  what it tends to after division by β and 1 − β. The scale jumps there.
- DistiLLM's code names the weights of its JSD the other way round, 1 − β for β. Its β for the
  skewed ones is 0.1; its skewed forward KL lacks the entropy of the teacher, which changes the
  value and not the gradient.

Half-precision logits are computed in float32. Values of tensors on an accelerator are not
inspected, because looking would make the device wait.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from kdlib import inputs, losses

REDUCTIONS = ("tokens", "sequences", "none")
CHUNK = 2**21  # logits that `linear_divergence` makes at a time, 8 MiB in float32


def divergence(
    student_logits: Tensor,
    teacher_logits: Tensor,
    kind: str,
    *,
    beta: float = 0.5,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    reduction: str = "tokens",
) -> Tensor:
    """A divergence of teacher and student at each place, reduced; the equations stand above.

    Args:
        student_logits: [B, T, V], V >= 2, finite where the mask is True.
        teacher_logits: alike; detached.
        kind: "forward", "reverse", "jsd", "skew-forward", "skew-reverse" or "tvd".
        beta: in [0, 1] for jsd, in [0, 1) for the skewed ones, ignored by the others.
        temperature: divides both logits, 1e-3 to 1e6 (to 100 unless in float64).
        mask: bool [B, T], True where the place counts: aligned with the logits, so place t stands
            for token t + 1 of a text. None: all count.
        reduction: "tokens", the mean over all places that count; "sequences", the mean over
            sequences of the mean over their places (GKD's 1 / L_y: a short answer weighs as much
            as a long one), sequences without any left out; "none", [B, T] with 0 where the mask is
            False. A mean over nothing is 0.

    Returns:
        A scalar, or [B, T] for "none", in float32 or float64.

    Raises:
        ValueError: logits that are not finite or of unlike shapes, options out of range.
        TypeError: arguments of another type.
    """
    _check_options(kind, beta, temperature, reduction)
    _check_places("student_logits", student_logits, "[B, T, V]")
    _check_places("teacher_logits", teacher_logits, "[B, T, V]")
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"teacher_logits must have the shape of student_logits, {list(student_logits.shape)}, "
            f"got {list(teacher_logits.shape)}: both networks read the same tokens"
        )
    _check_mask(mask, student_logits)
    dtype = _precise(student_logits, teacher_logits)
    student, teacher = (
        _places(x, mask).to(dtype) for x in (student_logits, teacher_logits.detach())
    )
    if len(student):
        losses.check_logits(student, teacher, temperature)
    log_q, log_p = (F.log_softmax(z / temperature, -1) for z in (student, teacher))
    values = DIVERGENCES[kind](log_q, log_p, beta)
    if reduction != "none":
        return (values * _shares(values, mask, reduction)).sum()
    if mask is None:
        return values.view(student_logits.shape[:2])
    return values.new_zeros(mask.shape).masked_scatter(mask, values)


def _kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    """KL(a ‖ b) over the last axis; from logarithms, so that no probability underflows in one."""
    return (log_a.exp() * (log_a - log_b)).sum(-1)


def _mixed(log_a: Tensor, log_b: Tensor, beta: float) -> Tensor:
    """log(β a + (1 − β) b) for 0 <= β < 1."""
    if beta == 0:
        return log_b
    return torch.logaddexp(log_a + math.log(beta), log_b + math.log1p(-beta))


def _forward(log_q: Tensor, log_p: Tensor, beta: float) -> Tensor:
    return _kl(log_p, log_q)


def _reverse(log_q: Tensor, log_p: Tensor, beta: float) -> Tensor:
    return _kl(log_q, log_p)


def _jsd(log_q: Tensor, log_p: Tensor, beta: float) -> Tensor:
    if beta in (0, 1):
        return _reverse(log_q, log_p, beta) if beta else _forward(log_q, log_p, beta)
    log_m = _mixed(log_p, log_q, beta)
    return beta * _kl(log_p, log_m) + (1 - beta) * _kl(log_q, log_m)


def _skew_forward(log_q: Tensor, log_p: Tensor, beta: float) -> Tensor:
    return _kl(log_p, _mixed(log_p, log_q, beta))


def _skew_reverse(log_q: Tensor, log_p: Tensor, beta: float) -> Tensor:
    return _kl(log_q, _mixed(log_q, log_p, beta))


def _tvd(log_q: Tensor, log_p: Tensor, beta: float) -> Tensor:
    return 0.5 * (log_p.exp() - log_q.exp()).abs().sum(-1)


DIVERGENCES: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "forward": _forward,
    "reverse": _reverse,
    "jsd": _jsd,
    "skew-forward": _skew_forward,
    "skew-reverse": _skew_reverse,
    "tvd": _tvd,
}


# Large vocabularies: the output layer and the divergence in one, a few places at a time


def linear_divergence(
    hidden: Tensor,
    weight: Tensor,
    teacher: Tensor | tuple[Tensor, Tensor],
    kind: str,
    *,
    beta: float = 0.5,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    reduction: str = "tokens",
    chunk: int | None = None,
) -> Tensor:
    """`divergence` of the logits hidden · weightᵀ, which are never held all at once.

    The same value and gradients. Logits of a vocabulary of 50,000 fill the memory several times
    over, once for each step of the plain computation; here a chunk of places goes through the
    output layer, the divergence and back through its gradient before the next one begins. Two
    copies of the gradient of `weight` are what remains. There are no second derivatives. It saves
    memory, not time: on an H200, for 4096 places and 50,257 tokens, it took 3 to 6 % of the memory
    and 1.8 to 4.3 times as long; larger chunks lie between.

    Args:
        hidden: what the output layer reads, [B, T, d] (`GPT.hidden`).
        weight: of the output layer, [V, d], without bias (`GPT.head.weight`).
        teacher: its logits [B, T, V], or its own (hidden [B, T, d'], weight [V, d']); detached.
        kind: "forward", "reverse" or "jsd".
        reduction: "tokens" or "sequences".
        chunk: places at a time; None: as many as make 2^21 logits, at least one.
        beta, temperature, mask: as in `divergence`.

    Raises:
        ValueError, TypeError: as in `divergence`, and shapes that do not fit.
    """
    _check_options(kind, beta, temperature, reduction, GRADIENTS, REDUCTIONS[:2])
    _check_places("hidden", hidden, "[B, T, d]")
    _check_layer("weight", weight, hidden)
    _check_mask(mask, hidden)
    read = _teacher_reader(teacher, mask, (*hidden.shape[:2], len(weight)))
    size = inputs.whole("chunk", max(1, CHUNK // len(weight)) if chunk is None else chunk)
    if not torch.is_grad_enabled():
        hidden, weight = hidden.detach(), weight.detach()
    dtype = torch.promote_types(hidden.dtype, weight.dtype)
    rows = _places(hidden, mask).to(dtype)
    shares = _shares(rows[:, 0].detach().to(_precise(rows)), mask, reduction)
    step = partial(GRADIENTS[kind], beta=beta)
    with torch.autocast(rows.device.type, enabled=False):
        total = _LinearDivergence.apply(
            rows, weight.to(dtype), shares, read, step, temperature, size
        )
    if total.is_cpu and not total.isfinite():
        text = f"hidden, weight and teacher must give finite logits, got a {kind} divergence of"
        raise ValueError(f"{text} {float(total)}")
    return total


class _LinearDivergence(torch.autograd.Function):
    """Both gradients are found on the way forward, while the logits of a chunk are at hand."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        shares: Tensor,
        read: Callable[[slice], Tensor],
        step: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
        temperature: float,
        size: int,
    ) -> Tensor:
        total = shares.new_zeros(())
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight = (
            torch.zeros_like(weight, dtype=shares.dtype) if ctx.needs_input_grad[1] else None
        )
        for start in range(0, len(hidden), size):
            part = slice(start, start + size)
            z = (hidden[part] @ weight.T).to(shares.dtype)
            log_q = F.log_softmax(z.div_(temperature), -1)
            log_p = F.log_softmax(read(part).to(shares.dtype) / temperature, -1)
            values, dz = step(log_q, log_p)
            total += (values * shares[part]).sum()
            dz *= shares[part, None] / temperature
            if grad_hidden is not None:
                grad_hidden[part] = dz.to(weight.dtype) @ weight
            if grad_weight is not None:
                grad_weight.addmm_(dz.T, hidden[part].to(dz.dtype))
        ctx.save_for_backward(
            grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype)
        )
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scaled = (None if saved is None else grad * saved for saved in ctx.saved_tensors)
        return (*scaled, None, None, None, None, None)


# The values [n] of n places, and their gradient by the student's logits (divided by T), [n, V]


def _forward_gradient(log_q: Tensor, log_p: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """q − p."""
    return _kl(log_p, log_q), log_q.exp() - log_p.exp()


def _reverse_gradient(log_q: Tensor, log_p: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """q (log q − log p − KL(q ‖ p))."""
    q, gap = log_q.exp(), log_q - log_p
    kl = (q * gap).sum(-1)
    return kl, gap.sub_(kl[:, None]).mul_(q)


def _jsd_gradient(log_q: Tensor, log_p: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """(1 − β) q (log q − log m − KL(q ‖ m))."""
    if beta in (0, 1):
        return (_reverse_gradient if beta else _forward_gradient)(log_q, log_p, beta)
    log_m = _mixed(log_p, log_q, beta)
    kl, gradient = _reverse_gradient(log_q, log_m, beta)
    return beta * _kl(log_p, log_m) + (1 - beta) * kl, gradient.mul_(1 - beta)


GRADIENTS = {"forward": _forward_gradient, "reverse": _reverse_gradient, "jsd": _jsd_gradient}


def _teacher_reader(
    teacher: Tensor | tuple[Tensor, Tensor], mask: Tensor | None, shape: tuple[int, int, int]
) -> Callable[[slice], Tensor]:
    """A function that gives the teacher's logits [n, V] at some of the places that count."""
    if isinstance(teacher, (tuple, list)) and len(teacher) == 2:
        source, layer = teacher
        _check_places("teacher[0]", source, "[B, T, d]")
        _check_layer("teacher[1]", layer, source)
        found = (*source.shape[:2], len(layer))
    else:
        hint = "logits [B, T, V], or a pair (hidden [B, T, d], weight [V, d])"
        source, layer = inputs.instance("teacher", teacher, Tensor, hint), None
        _check_places("teacher", source, "[B, T, V]")
        found = tuple(source.shape)
    if found != shape:
        raise ValueError(f"teacher must give logits {list(shape)}, got {list(found)}")
    flat = source.detach().flatten(0, 1)
    rows = None if mask is None else mask.flatten().nonzero()[:, 0]

    def read(part: slice) -> Tensor:
        some = flat[part if rows is None else rows[part]]
        return some if layer is None else some.to(layer.dtype) @ layer.detach().T

    return read


# What both share


def _places(x: Tensor, mask: Tensor | None) -> Tensor:
    """The places that count, [n, ...] of [B, T, ...]."""
    return x.flatten(0, 1) if mask is None else x[mask]


def _precise(*tensors: Tensor) -> torch.dtype:
    """The widest type among them, at least float32."""
    dtypes = (x.dtype for x in tensors)
    return functools.reduce(torch.promote_types, dtypes, torch.float32)


def _shares(values: Tensor, mask: Tensor | None, reduction: str) -> Tensor:
    """What each of the values [n] contributes to the mean."""
    if mask is None or reduction == "tokens":
        return torch.full_like(values, 1 / max(1, len(values)))
    counts = mask.sum(1)
    share = 1 / (counts * (counts > 0).sum()).to(values.dtype)
    return share[:, None].expand_as(mask)[mask]


def _check_options(
    kind: str,
    beta: float,
    temperature: float,
    reduction: str,
    kinds: Collection[str] = DIVERGENCES,
    reductions: Collection[str] = REDUCTIONS,
) -> None:
    inputs.choice("kind", kind, kinds)
    inputs.choice("reduction", reduction, reductions)
    inputs.number("temperature", temperature, low=1e-3, high=1e6)
    if inputs.number("beta", beta, low=0, high=1) == 1 and kind.startswith("skew"):
        raise ValueError(f"beta must be below 1 for {kind}, which is 0 at 1, got 1")


def _check_places(name: str, found: Tensor, shape: str) -> None:
    inputs.tensor(name, found, shape, finite=False)


def _check_layer(name: str, weight: Tensor, hidden: Tensor) -> None:
    """Weights [V, d] for hidden [B, T, d]."""
    inputs.tensor(name, weight, "[V, d]", finite=False)
    if weight.shape[1] != hidden.shape[2]:
        got = f"{list(weight.shape)} for {list(hidden.shape)}"
        raise ValueError(f"{name} must be [V, d] for hidden [B, T, d], got {got}")


def _check_mask(mask: Tensor | None, places: Tensor) -> None:
    if mask is None:
        return
    inputs.instance("mask", mask, Tensor)
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be bool, got {mask.dtype}: compare, as in tokens != padding")
    if mask.shape != places.shape[:2]:
        wanted, got = list(places.shape[:2]), list(mask.shape)
        raise ValueError(f"mask must be [B, T], here {wanted}, got {got}")
