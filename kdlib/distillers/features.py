"""Methods on features: stages of the student are compared with stages of the teacher.

Default weights are the published ones (CIFAR-100 on networks of three to five stages). On small
maps some fail: measured on 14 x 28 images with a ConvNet 8-16-32, attention transfer with 1000 lost
61 points of accuracy and NST with 50 lost 8. Docstrings name weights that worked there.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from kdlib import inputs, losses
from kdlib.distillers.base import (
    Batch,
    Distiller,
    Pairs,
    Setup,
    Stages,
    as_map,
    as_vector,
    map_shape,
    register,
    vector_size,
)


def _summed(function: Callable[..., Tensor], pairs: Pairs, weight: float) -> Distiller:
    """A method without state: `function` of each pair of stages, summed."""

    def loss(batch: Batch) -> Tensor:
        return torch.stack([function(s, t) for s, t in pairs(batch)]).sum()

    return Distiller(loss, weight=weight, pairs=pairs)


@register("at")
def at(
    setup: Setup,
    *,
    stage: Stages = None,
    teacher_stage: Stages = None,
    variant: str = "official",
    weight: float = 1000.0,
) -> Distiller:
    """`losses.attention` of all maps. Published: weight 1000; 3 worked on small maps."""
    inputs.choice("variant", variant, ("official", "paper"))
    pairs = Pairs(setup, stage, teacher_stage, maps=True)
    return _summed(lambda s, t: losses.attention(s, t, variant), pairs, weight)


@register("nst")
def nst(
    setup: Setup, *, stage: Stages = None, teacher_stage: Stages = None, weight: float = 50.0
) -> Distiller:
    """`losses.nst` of all maps. Published: weight 50; 5 did no harm on small maps."""
    return _summed(losses.nst, Pairs(setup, stage, teacher_stage, maps=True), weight)


@register("sp")
def sp(
    setup: Setup, *, stage: Stages = -2, teacher_stage: Stages = None, weight: float = 3000.0
) -> Distiller:
    """`losses.similarity` of the last block. Published: weight 3000; 300 worked on small maps."""
    return _summed(losses.similarity, Pairs(setup, stage, teacher_stage), weight)


@register("rkd")
def rkd(
    setup: Setup,
    *,
    stage: Stages = -1,
    teacher_stage: Stages = None,
    distance_weight: float = 25.0,
    angle_weight: float = 50.0,
    weight: float = 1.0,
) -> Distiller:
    """`losses.rkd` of the embedding. Published: weight 1 (that is, 25 and 50); 0.3 worked."""
    losses.check_weights(distance_weight=distance_weight, angle_weight=angle_weight)
    pairs = Pairs(setup, stage, teacher_stage)
    return _summed(lambda s, t: losses.rkd(s, t, distance_weight, angle_weight), pairs, weight)


@register("pkt")
def pkt(
    setup: Setup, *, stage: Stages = -1, teacher_stage: Stages = None, weight: float = 30000.0
) -> Distiller:
    """`losses.pkt` of the embedding. Published: weight 30000."""
    return _summed(losses.pkt, Pairs(setup, stage, teacher_stage), weight)


@register("cc")
def cc(
    setup: Setup,
    *,
    stage: Stages = -1,
    teacher_stage: Stages = None,
    variant: str = "official",
    gamma: float = 0.4,
    order: int = 2,
    weight: float = 0.02,
) -> Distiller:
    """`losses.cc` of the embedding. Published: weight 0.02; 500 lost 25 points on small networks.

    The official variant needs equal dimensions: the student is projected to the teacher's. The
    authors project both sides and train both, which two constant projections would satisfy; here
    the teacher stays as it is.
    """
    inputs.choice("variant", variant, ("official", "paper"))
    inputs.number("gamma", gamma, above=0, high=10)
    inputs.whole("order", order, high=100)
    pairs = Pairs(setup, stage, teacher_stage, several=False)
    return Distiller(_Correlation(pairs, variant, gamma, order), weight=weight, pairs=pairs)


class _Correlation(nn.Module):
    """Correlation congruence behind a projection of the student."""

    def __init__(self, pairs: Pairs, variant: str, gamma: float, order: int):
        super().__init__()
        self.pairs, self.settings = pairs, (variant, gamma, order)
        ((student, teacher),) = pairs.shapes
        linear = nn.Linear(vector_size(student), vector_size(teacher))
        self.projection = linear if variant == "official" else nn.Identity()

    def forward(self, batch: Batch) -> Tensor:
        ((s, t),) = self.pairs(batch)
        return losses.cc(self.projection(as_vector(s)), as_vector(t), *self.settings)


@register("hint")
def hint(
    setup: Setup,
    *,
    stage: Stages = -2,
    teacher_stage: Stages = None,
    normalise: bool = False,
    weight: float = 100.0,
) -> Distiller:
    """`losses.hint` behind a learned linear regressor (a 1x1 convolution between maps).

    Published: weight 100 (RepDistiller); 10 on the last block worked on small maps. The official
    regressor ends in batch norm and ReLU and cannot reach negative features; this one can. The
    larger map is average-pooled; where one side is a vector, the other is averaged to one.
    `normalise` expresses the targets in units of the teacher's standard deviation, measured on the
    first batch, so that the weight does not depend on the teacher's scale. Stages are summed.
    """
    inputs.instance("normalise", normalise, bool)
    pairs = Pairs(setup, stage, teacher_stage)
    return Distiller(_Hint(pairs, normalise), weight=weight, pairs=pairs)


class _Hint(nn.Module):
    """A regressor for each pair of stages, and the scale of each target."""

    def __init__(self, pairs: Pairs, normalise: bool):
        super().__init__()
        self.pairs, self.normalise = pairs, normalise
        self.regressors = nn.ModuleList()
        for student, teacher in pairs.shapes:
            linear = nn.Linear(vector_size(student), vector_size(teacher))
            maps = map_shape(student) and map_shape(teacher)
            conv = maps and nn.Conv2d(linear.in_features, linear.out_features, 1)
            self.regressors.append(conv or linear)
        self.scale: Tensor
        self.register_buffer("scale", torch.zeros(len(pairs.shapes)))  # 0: not measured yet

    def forward(self, batch: Batch) -> Tensor:
        total = torch.zeros((), device=batch.student.logits.device)
        for i, ((s, t), regressor) in enumerate(zip(self.pairs(batch), self.regressors)):
            if isinstance(regressor, nn.Conv2d):
                s, t = losses.match_maps(as_map(s), as_map(t))
            else:
                s, t = as_vector(s), as_vector(t)
            if self.normalise:
                # No branch on the value: reading it would make an accelerator wait.
                self.scale[i] = torch.where(self.scale[i] > 0, self.scale[i], t.std())
                t = t / self.scale[i].clamp_min(1e-6)
            total = total + losses.hint(regressor(s), t)
        return total


@register("vid")
def vid(
    setup: Setup,
    *,
    stage: Stages = None,
    teacher_stage: Stages = None,
    variance: float = 5.0,
    weight: float = 1.0,
) -> Distiller:
    """`losses.vid` of all maps, summed; regressors and variances are trained.

    Published: weight 1, initial variance 5; weight 20 worked on small maps. The regressor is the
    authors': three 1x1 convolutions without bias, ReLU between.
    """
    inputs.number("variance", variance, above=losses.VARIANCE_FLOOR)
    pairs = Pairs(setup, stage, teacher_stage, maps=True)
    return Distiller(_Variational(pairs, variance), weight=weight, pairs=pairs)


class _Variational(nn.Module):
    """A regressor and a variance per channel for each pair of maps."""

    def __init__(self, pairs: Pairs, variance: float):
        super().__init__()
        self.pairs = pairs
        start = math.log(
            math.expm1(variance - losses.VARIANCE_FLOOR)
        )  # the inverse of the softplus
        self.regressors, self.variances = nn.ModuleList(), nn.ParameterList()
        for student, teacher in pairs.shapes:
            width, c = vector_size(student), vector_size(teacher)
            first, *rest = (nn.Conv2d(n, c, 1, bias=False) for n in (width, c, c))
            self.regressors.append(nn.Sequential(first, nn.ReLU(), rest[0], nn.ReLU(), rest[1]))
            self.variances.append(nn.Parameter(torch.full((c,), start)))

    def forward(self, batch: Batch) -> Tensor:
        total = torch.zeros((), device=batch.student.logits.device)
        for (s, t), regressor, variance in zip(self.pairs(batch), self.regressors, self.variances):
            s, t = losses.match_maps(s, t)
            total = total + losses.vid(regressor(s), variance, t)
        return total
