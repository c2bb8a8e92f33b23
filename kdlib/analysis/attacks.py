"""Are teacher and student fooled by the same images? (lecture figure 3)"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlib import inputs, stages
from kdlib.analysis.agreement import agreement, predictions


def fgsm(
    model: nn.Module,
    images: Tensor,
    target: Tensor,
    *,
    epsilon: float,
    steps: int = 5,
    step_size: float | None = None,
) -> Tensor:
    """Iterative FGSM (Kurakin et al. 2017): climb the cross-entropy by the sign of its gradient.

        x <- clip(x + step_size * sign(d CE(model(x), target) / dx))

    into the box of +-epsilon around the image and into [0, 1]. The gradient is taken of the
    log-odds against the target, of which the cross-entropy is an increasing function: the sign is
    the same, but it does not vanish where the network is sure:

        log((1 - p_t) / p_t) = log(sum of exp z_j over j != t) - z_t,   CE = log(1 + exp(log-odds))

    It works under `torch.no_grad` and `torch.inference_mode`, too.

    Args:
        images: [n, ...] in [0, 1].
        target: int64 [n], the true labels.
        epsilon: how far a pixel may move, 0 to 1.
        step_size: above 0; default 1.5 * epsilon / steps, enough to reach the border of the box and
            to turn back once.

    Returns:
        Adversarial images [n, ...].

    Raises:
        ValueError: images, classes or options out of range, nothing given, a network that answers
            NaN or infinity.
        TypeError: arguments of another type, a network that returns something else than logits.
    """
    images = inputs.tensor("images", images, low=0, high=1)
    inputs.lengths(images=images, target=inputs.classes("target", target, ndim=1))
    epsilon = inputs.number("epsilon", epsilon, low=0, high=1)
    steps = inputs.whole("steps", steps)
    if step_size is None:
        step_size = 1.5 * epsilon / steps
    else:
        step_size = inputs.number("step_size", step_size, above=0)
    result = []
    with torch.inference_mode(False), torch.enable_grad(), stages.evaluating(model):
        for batch, label in zip(images.split(stages.BATCH), target.split(stages.BATCH)):
            batch = batch.detach().clone()  # what was made in inference mode has no gradient
            low, high = (batch - epsilon).clamp(min=0), (batch + epsilon).clamp(max=1)
            moved = batch
            for _ in range(steps):
                moved = moved.detach().requires_grad_()
                odds = _log_odds(stages.logits_of(model, moved), label).sum()
                (gradient,) = torch.autograd.grad(odds, moved)
                moved = (moved.detach() + step_size * gradient.sign()).clamp(low, high)
            result.append(moved)
    return torch.cat(result)


def _log_odds(logits: Tensor, target: Tensor) -> Tensor:
    """Log-odds [n] of all other classes against the target, from logits [n, C].

    The gradient of the cross-entropy has the factor 1 - p_t, which rounds to 0 where the network is
    sure; the gradient of the log-odds has not.
    """
    inputs.tensor("the network's logits", logits, "[n, C]")
    classes = inputs.classes("target", target, logits.shape[1]).long()
    own = F.one_hot(classes, logits.shape[1]).bool()
    return logits.masked_fill(own, -torch.inf).logsumexp(1) - logits[own]


def fooling_rate(model: nn.Module, clean: Tensor, adversarial: Tensor) -> float:
    """Percent of images [n, ...] whose prediction changes from the clean to the adversarial
    version, whether the clean prediction was right or not (as in the study). Errors as in
    `predictions`."""
    inputs.lengths(clean=clean, adversarial=adversarial)
    return 100 - agreement(predictions(model, clean), predictions(model, adversarial))


class Attack(NamedTuple):
    """What `successful_attacks` found."""

    clean: Tensor  # the images that were turned, before ...
    adversarial: Tensor  # ... and after
    rate: float  # percent of all images that were turned
    unmoved: float  # percent of all images in which no pixel moved: their gradient was 0


def successful_attacks(model: nn.Module, images: Tensor, target: Tensor, **options: Any) -> Attack:
    """The attacks that fool `model`, to be tried on its students.

    Arguments, options and errors as in `fgsm`. Read `rate` beside `unmoved`: an image that did not
    move was not attacked, and says nothing about the network's strength.
    """
    moved = fgsm(model, images, target, **options)
    fooled = predictions(model, images) != predictions(model, moved)
    still = (moved == images).flatten(1).all(1)
    rate, unmoved = (100 * inputs.float64(share).mean().item() for share in (fooled, still))
    return Attack(images[fooled], moved[fooled], rate, unmoved)
