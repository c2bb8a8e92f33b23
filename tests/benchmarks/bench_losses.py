"""RKD and NST beside their usual, plain form: python tests/benchmarks/bench_losses.py

Value and gradient, one thread, the same inputs, both forms in turn; the best of the repeats. The
plain RKD needs about 2 GB of memory and some ten seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from kdlib import losses


def plain_rkd(student: Tensor, teacher: Tensor) -> Tensor:
    """All differences x_j − x_i, a tensor of B·B·D numbers, for the angles."""

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


def seconds(loss: Callable[[Tensor, Tensor], Tensor], s: Tensor, t: Tensor) -> tuple[float, Tensor]:
    start = time.perf_counter()
    (gradient,) = torch.autograd.grad(loss(s, t), s)
    return time.perf_counter() - start, gradient


def compare(
    name: str, plain: Callable, ours: Callable, s: Tensor, t: Tensor, repeats: tuple[int, int]
) -> None:
    """Prints the best time of each form, their ratio, and how far the gradients are apart."""
    s = s.requires_grad_()
    seconds(ours, s, t)  # the first call also loads the kernels
    slow, exact = min((seconds(plain, s, t) for _ in range(repeats[0])), key=lambda run: run[0])
    fast, found = min((seconds(ours, s, t) for _ in range(repeats[1])), key=lambda run: run[0])
    apart = (found - exact).norm() / exact.norm()
    print(
        f"{name:32} plain {1e3 * slow:8.1f} ms   ours {1e3 * fast:7.1f} ms   "
        f"{slow / fast:6.0f} times faster   gradients differ by {apart:.0e}"
    )


def main() -> None:
    torch.set_num_threads(1)
    g = torch.Generator().manual_seed(0)
    s, t = torch.randn(64, 16384, generator=g), torch.randn(64, 16384, generator=g)
    compare("RKD, 64 samples x 16384", plain_rkd, losses.rkd, s, t, (3, 20))
    s, t = torch.randn(64, 64, 8, 8, generator=g), torch.randn(64, 128, 8, 8, generator=g)
    compare("NST, 64 x 64 and 128 x 8 x 8", plain_nst, losses.nst, s.relu(), t.relu(), (3, 20))


if __name__ == "__main__":
    main()
