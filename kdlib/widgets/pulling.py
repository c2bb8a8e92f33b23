"""Forward and reverse KL between a mixture and one normal distribution, pulled by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from kdlib import inputs, show
from kdlib.widgets.moving import Moving

ALT = (
    "One normal distribution over a mixture of normal distributions; an arrow from its peak for "
    "forward and for reverse KL shows where a step downhill would move it."
)
WIDTHS = (0.2, 4.0)  # standard deviations that a hand can give
POINTS = 2001  # of the grid on which densities are summed


def pull(
    weights: Sequence[float],
    means: Sequence[float],
    widths: Sequence[float],
    *,
    mean: float = 1.0,
    width: float = 1.5,
) -> Moving:
    """A normal distribution q over a mixture p; its peak is dragged, or descends by itself.

    Both divergences, in nats, and their gradients for the mean and the logarithm of the width
    (Bishop, *Pattern Recognition and Machine Learning*, 2006, section 10.1.2) are sums over a grid.

    Args:
        weights: of the normals of p, positive; they add up to 1.
        means, widths: of each, in the units of the axis; widths (standard deviations) from 0.2.
        mean, width: where q begins; its width in [0.2, 4].

    Raises:
        TypeError, ValueError: an argument of the wrong kind or out of range.
    """
    given = {"weights": weights, "means": means, "widths": widths}
    for name, values in given.items():
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise TypeError(f"{name} must be a sequence of numbers, got {inputs.describe(values)}")
    if len({len(values) for values in given.values()}) > 1:
        sizes = ", ".join(f"{len(values)} {name}" for name, values in given.items())
        raise ValueError(f"weights, means and widths must be equally many, got {sizes}")
    low, high = WIDTHS
    shares = [inputs.number(f"weights[{i}]", one, above=0) for i, one in enumerate(weights)]
    middles = [inputs.number(f"means[{i}]", one) for i, one in enumerate(means)]
    spreads = [inputs.number(f"widths[{i}]", one, low=low) for i, one in enumerate(widths)]
    if not math.isclose(sum(shares), 1, abs_tol=1e-6):
        raise ValueError(f"weights must add up to 1, got {sum(shares):g}")
    left = min(m - 4 * s for m, s in zip(middles, spreads))
    right = max(m + 4 * s for m, s in zip(middles, spreads))
    mean = inputs.number("mean", mean, low=left, high=right)
    width = inputs.number("width", width, low=low, high=high)

    # Tails of q reach beyond the mixture's: the grid is wider than what is drawn.
    edge = 4 * high
    x = torch.linspace(left - edge, right + edge, POINTS, dtype=torch.float64)
    theta = torch.tensor([mean, math.log(width)], dtype=torch.float64, requires_grad=True)
    log_p = torch.logsumexp(
        torch.stack(
            [math.log(w) + log_normal(x, m, s) for w, m, s in zip(shares, middles, spreads)]
        ),
        0,
    )
    log_q = log_normal(x, theta[0], theta[1].exp())
    dx = float(x[1] - x[0])
    still, axis = show.figure(height=2.8)
    p, q = log_p.exp().numpy(), log_q.detach().exp().numpy()
    axis.fill_between(x.numpy(), p, color=show.GREY, alpha=0.3, linewidth=0)
    axis.plot(x.numpy(), p, color=show.BLACK, label="teacher: p")
    axis.plot(x.numpy(), q, linewidth=2.5, color=show.GREEN, label="student: q")
    peak = 1 / (width * math.sqrt(2 * math.pi))
    for kind, first, second in (("forward", log_p, log_q), ("reverse", log_q, log_p)):
        value = (first.exp() * (first - second)).sum() * dx
        down = -torch.autograd.grad(value, theta, retain_graph=True)[0]
        step = (down / max(1.0, float(down.norm()))).tolist()
        tip = (mean + step[0], peak * math.exp(-0.5 * step[1]))
        arrow = dict(arrowstyle="-|>", color=show.look(kind)["color"], lw=2)
        axis.annotate("", tip, (mean, peak), arrowprops=arrow)
        title = f"{kind} KL: {value.item():.2f} nats"
        axis.plot([], [], color=show.look(kind)["color"], label=title)
    axis.set(xlim=(left, right), ylim=(0, None), xlabel="y", ylabel="density")
    axis.legend(fontsize=9)
    data = {
        "weights": shares, "means": middles, "widths": spreads, "mean": mean, "width": width,
        "left": left, "right": right, "edge": edge, "points": POINTS, "limits": list(WIDTHS),
    }  # fmt: skip
    return Moving("pulling", still, ALT, data)


def log_normal(x: Tensor, mean: float | Tensor, width: float | Tensor) -> Tensor:
    """log N(x; mean, width²) at each point of x."""
    scale = torch.as_tensor(width, dtype=x.dtype)
    return -0.5 * ((x - mean) / scale) ** 2 - scale.log() - 0.5 * math.log(2 * math.pi)
