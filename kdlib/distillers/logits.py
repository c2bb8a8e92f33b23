"""Methods on logits: the teacher may be any network, or a service that only answers.

Default weights are the published ones (CIFAR-100). Docstrings name those that worked on small
networks here; choose on validation.
"""

from __future__ import annotations

from torch import Tensor

from kdlib import inputs, losses
from kdlib.distillers.base import Batch, Distiller, Setup, register

TEMPERATURE = {"low": 1e-3, "high": 100.0}  # what the losses compute exactly in float32


@register("ce", needs_teacher=False)
def ce(setup: Setup) -> Distiller:
    """Labels only: the independent student."""
    return Distiller(None)


@register("kd")
def kd(setup: Setup, *, temperature: float = 4.0, alpha: float = 0.9) -> Distiller:
    """alpha `losses.kd`, beside (1 − alpha) cross-entropy. Published: T 4, alpha 0.9."""

    def loss(batch: Batch) -> Tensor:
        return losses.kd(batch.student.logits, batch.teacher.logits, temperature)

    alpha = inputs.number("alpha", alpha, low=0, high=1)
    inputs.number("temperature", temperature, **TEMPERATURE)
    return Distiller(loss, weight=alpha, ce_weight=1 - alpha)


@register("reverse_kl")
def reverse_kl(setup: Setup, *, temperature: float = 4.0, alpha: float = 0.9) -> Distiller:
    """alpha `losses.reverse_kl`, beside (1 − alpha) cross-entropy. T and alpha as in `kd`."""

    def loss(batch: Batch) -> Tensor:
        return losses.reverse_kl(batch.student.logits, batch.teacher.logits, temperature)

    alpha = inputs.number("alpha", alpha, low=0, high=1)
    inputs.number("temperature", temperature, **TEMPERATURE)
    return Distiller(loss, weight=alpha, ce_weight=1 - alpha)


@register("jsd")
def jsd(
    setup: Setup, *, temperature: float = 4.0, beta: float = 0.5, alpha: float = 0.9
) -> Distiller:
    """alpha `losses.jsd`, beside (1 − alpha) cross-entropy. T and alpha as in `kd`.

    With beta 0.5 the term is about a quarter of `kd`'s where student and teacher are close.
    """

    def loss(batch: Batch) -> Tensor:
        return losses.jsd(batch.student.logits, batch.teacher.logits, temperature, beta)

    alpha = inputs.number("alpha", alpha, low=0, high=1)
    inputs.number("beta", beta, above=0, below=1)
    inputs.number("temperature", temperature, **TEMPERATURE)
    return Distiller(loss, weight=alpha, ce_weight=1 - alpha)


@register("dkd")
def dkd(
    setup: Setup,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
    warmup: int = 20,
    weight: float = 1.0,
) -> Distiller:
    """`losses.dkd`, ramped up linearly over the first `warmup` epochs (0: no ramp).

    Published: alpha 1, beta 8 (2 or 6 for some pairs), T 4, 20 of 240 epochs. In a short training
    shorten the ramp as well; beta 2 worked on small networks. Reads the hard label.
    """
    ramp_epochs = inputs.whole("warmup", warmup, low=0)
    losses.check_weights(alpha=alpha, beta=beta)
    inputs.number("temperature", temperature, **TEMPERATURE)

    def loss(batch: Batch) -> Tensor:
        student, teacher = batch.student.logits, batch.teacher.logits
        ramp = min(batch.epoch / ramp_epochs, 1.0) if ramp_epochs else 1.0
        return ramp * losses.dkd(student, teacher, batch.target, alpha, beta, temperature)

    return Distiller(loss, weight=weight)


@register("dist")
def dist(
    setup: Setup,
    *,
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: float = 1.0,
    weight: float = 1.0,
) -> Distiller:
    """`losses.dist`. The code's defaults: beta 1, gamma 1, T 1. Weight 2, T 2 worked.

    Published: beta 2, gamma 2, T 4 on CIFAR-100; 2, 2, 1 on ImageNet.
    """
    losses.check_weights(beta=beta, gamma=gamma)
    inputs.number("temperature", temperature, **TEMPERATURE)

    def loss(batch: Batch) -> Tensor:
        return losses.dist(batch.student.logits, batch.teacher.logits, beta, gamma, temperature)

    return Distiller(loss, weight=weight)
