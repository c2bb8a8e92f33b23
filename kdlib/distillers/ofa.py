"""OFA-KD: early stages speak the teacher's language, logits, so that families need not match.

Hao et al. 2023 (One-for-All). A branch behind each stage of the student projects its features to
logits, and every branch learns from the teacher's final logits: nothing compares features. The
branches are dropped after training; the deployed student is the plain one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlib import inputs, losses
from kdlib.distillers.base import Batch, Distiller, Setup, Shape, Stages, register, stages_of
from kdlib.distillers.logits import TEMPERATURE

SIDE = 4  # positions a side that a convolutional branch keeps


@register("ofa")
def ofa(
    setup: Setup,
    *,
    stage: Stages = None,
    gamma: float | Sequence[float] = 1.0,
    temperature: float = 1.0,
    variant: str = "official",
    branch_weight: float = 1.0,
    width: int = 64,
    weight: float = 1.0,
) -> Distiller:
    """weight T² (`losses.ofa` of the final logits + branch_weight Σ `losses.ofa` of the branches).

    Published: cross-entropy 1, weight 1, T 1, four stages, gamma 1 to 1.5. The factor T², which the
    official code lacks (at its T = 1 there is no difference), keeps the weight's meaning at other
    temperatures. The teacher gives its final logits only.

    stage: the student's stages with a branch, all that are maps or tokens unless given; () gives
    none, and `losses.ofa` of the final logits is left.
    gamma: one for all, or one for each branch and a last one for the final logits.
    width: channels inside of a branch (the paper's are wider).
    """
    branches = Branches(setup, stage, width)
    count = len(branches.stages) + 1
    gammas = tuple(gamma) if isinstance(gamma, Sequence) else (gamma,) * count
    if len(gammas) != count:
        raise ValueError(
            f"gamma must be one number, or {len(branches.stages)} for the branches and one for "
            f"the final logits, got {len(gammas)}"
        )
    for one in gammas:
        inputs.number("gamma", one, above=0)
    inputs.number("temperature", temperature, **TEMPERATURE)
    inputs.choice("variant", variant, ("official", "lecture"))
    inputs.number("branch_weight", branch_weight, low=0)
    return Distiller(
        _OneForAll(branches, gammas, temperature, variant, branch_weight),
        weight=weight,
        stages=branches.stages,
    )


class _OneForAll(nn.Module):
    """`losses.ofa` of each branch and of the final logits."""

    def __init__(
        self,
        branches: Branches,
        gammas: Sequence[float],
        temperature: float,
        variant: str,
        branch_weight: float,
    ):
        super().__init__()
        self.branches, self.gammas, self.temperature = branches, gammas, temperature
        self.variant, self.branch_weight = variant, branch_weight

    def forward(self, batch: Batch) -> Tensor:
        total = torch.zeros((), device=batch.student.logits.device)
        answers = [*self.branches(batch), batch.student.logits]
        for logits, gamma in zip(answers, self.gammas):
            term = losses.ofa(
                logits, batch.teacher.logits, batch.target, gamma, self.temperature, self.variant
            )
            total = total + (1 if logits is answers[-1] else self.branch_weight) * term
        return self.temperature**2 * total


@register("branches", needs_teacher=False)
def branches(
    setup: Setup, *, stage: Stages = None, width: int = 64, weight: float = 1.0
) -> Distiller:
    """Cross-entropy of OFA's branches with the labels: what the branches do without a teacher.

    Deep supervision (Lee et al. 2015), and the control that tells the teacher's share in OFA from
    that of the additional heads. Summed over the branches.
    """
    found = Branches(setup, stage, width)
    if not found.stages:
        raise ValueError("stage must name at least one stage, got none")
    return Distiller(_Supervised(found), weight=weight, stages=found.stages)


class _Supervised(nn.Module):
    """Cross-entropy of each branch with the labels, summed."""

    def __init__(self, branches: Branches):
        super().__init__()
        self.branches = branches

    def forward(self, batch: Batch) -> Tensor:
        answers = self.branches(batch)
        return torch.stack([F.cross_entropy(one, batch.target) for one in answers]).sum()


class Branches(nn.Module):
    """A small network behind each of the student's stages, from its features to logits [B, C].

    Args:
        stage: maps or tokens; None for all of them.
        width: channels inside.

    Raises:
        ValueError: an unknown stage, a vector, tokens that are no square grid.
    """

    def __init__(self, setup: Setup, stage: Stages, width: int):
        super().__init__()
        inputs.whole("width", width)
        empty = isinstance(stage, (list, tuple)) and not stage
        self.stages = () if empty else stages_of("student", setup.student, stage, maps=True)
        shapes = [setup.student[name] for name in self.stages]
        self.heads = nn.ModuleList(_branch(one, width, setup.num_classes) for one in shapes)

    def forward(self, batch: Batch) -> list[Tensor]:
        return [head(batch.student.features[s]) for s, head in zip(self.stages, self.heads)]


def _branch(shape: Shape, width: int, classes: int) -> nn.Module:
    if len(shape) == 3:
        return _ConvBranch(shape[0], width, classes)
    return _TokenBranch(shape[0], shape[1], width, classes)


class _ConvBranch(nn.Sequential):
    """Maps [B, C, H, W]: pooled to 4 x 4, a separable convolution, four quarters, a classifier."""

    def __init__(self, channels: int, width: int, classes: int):
        super().__init__(
            nn.AdaptiveAvgPool2d(SIDE),
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
            nn.Conv2d(channels, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(SIDE // 2),
            nn.Flatten(),
            nn.Linear(width * (SIDE // 2) ** 2, classes),
        )


class _TokenBranch(nn.Module):
    """Tokens [B, N, D]: four neighbours merged to one (Liu et al. 2021, Swin), a block, their mean.

    An odd grid is padded with zeros. A grid of one position has no neighbours to merge.
    """

    def __init__(self, tokens: int, dim: int, width: int, classes: int):
        super().__init__()
        self.grid = round(tokens**0.5)
        self.merge = nn.Sequential(nn.LayerNorm(4 * dim), nn.Linear(4 * dim, width))
        self.block = nn.TransformerEncoderLayer(
            width, _heads(width), 2 * width, dropout=0.0, activation="gelu",
            batch_first=True, norm_first=True,
        )  # fmt: skip
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = x.unflatten(1, (self.grid, self.grid))  # [B, rows, columns, D]
        if self.grid % 2:
            x = F.pad(x, (0, 0, 0, 1, 0, 1))
        half = x.shape[1] // 2
        quads = x.unflatten(2, (half, 2)).unflatten(1, (half, 2)).transpose(2, 3)
        x = self.merge(quads.flatten(3).flatten(1, 2))  # [B, half * half, width]
        return self.head(self.block(x).mean(1))


def _heads(width: int) -> int:
    """Heads of about 16 channels that divide the width."""
    return next(n for n in range(max(1, width // 16), 0, -1) if width % n == 0)
