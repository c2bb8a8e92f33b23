"""Two losses beside the form in which they are usually written."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from kdlib import losses as ours
from kdlib.benchmarks.clock import Called, in_turns
from kdlib.benchmarks.plan import Plan, machine
from kdlib.benchmarks.rows import Row

Loss = Callable[[Tensor, Tensor], Tensor]


def plain_rkd(student: Tensor, teacher: Tensor) -> Tensor:
    """All differences x_j - x_i, a tensor of B B D numbers, for the angles."""

    def relations(x: Tensor) -> tuple[Tensor, Tensor]:
        off = ~torch.eye(len(x), dtype=torch.bool)
        square = x.square().sum(1)
        distance = (square[:, None] + square - 2 * x @ x.T).clamp_min(1e-12).sqrt() * off
        unit = F.normalize(x[None] - x[:, None], dim=2)
        return distance / distance[off].mean(), torch.bmm(unit, unit.transpose(1, 2))

    (ds, cs), (dt, ct) = relations(student), relations(teacher.detach())
    return 25 * F.smooth_l1_loss(ds, dt) + 50 * F.smooth_l1_loss(cs, ct)


def plain_nst(student: Tensor, teacher: Tensor) -> Tensor:
    """Products of all pairs of channels as one tensor [B, C, C, HW], summed over the last axis."""
    s, t = F.normalize(student.flatten(2), dim=2), F.normalize(teacher.detach().flatten(2), dim=2)

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a[:, :, None] * b[:, None]).sum(3).square().mean()

    return kernel(s, s) + kernel(t, t) - 2 * kernel(s, t)


def losses(plan: Plan) -> Iterator[Row]:
    """Value and gradient: ours over the usual form."""
    stream = torch.Generator().manual_seed(0)
    side = plan.sized(16_384, 64)
    maps = [torch.randn(64, channels, 8, 8, generator=stream).relu() for channels in (64, 128)]
    rows = [torch.randn(64, side, generator=stream) for _ in range(2)]
    for name, plain, loss, pair in (
        (f"RKD, 64 samples x {side}", plain_rkd, ours.rkd, rows),
        ("NST, 64 x 64 and 128 x 8 x 8", plain_nst, ours.nst, maps),
    ):
        quick, slow = (
            Called(functools.partial(_step, one, *pair), plan.where) for one in (loss, plain)
        )
        ratio = in_turns(slow, quick, steps=1, rounds=plan.rounds(5))
        row = Row.measured("losses", f"{name}: ours / the usual form", ratio, unit="speed")
        row.values = {"ms": 1e3 * ratio.second, "usual ms": 1e3 * ratio.first}
        row.device = machine(plan.device)
        yield row


def _step(loss: Loss, student: Tensor, teacher: Tensor) -> None:
    leaf = student.clone().requires_grad_()
    torch.autograd.grad(loss(leaf, teacher), leaf)
