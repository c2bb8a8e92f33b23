"""Do teacher and student look at the same place? (lecture figure 2)"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlib import inputs, stages


def grad_cam(
    model: nn.Module,
    images: Tensor,
    target: Tensor,
    stage: str | int,
    *,
    channels_last: bool | None = None,
) -> Tensor:
    """Grad-CAM: where the evidence for class `target` lies in the feature map of a stage.

        CAM = ReLU(sum_k w_k A_k),   w_k = mean over the positions of d score_target / d A_k

    with A [c, h, w] the output of the stage and the score before the softmax (Selvaraju et al.
    2017, equations 1 and 2). It works under `torch.no_grad` and `torch.inference_mode`, too.

    The paper knows convolutional networks only. Tokens [n, t, d] of a transformer or mixer are
    read as a map of d channels, row by row, as common tools do (Gildenblat's pytorch-grad-cam).
    If t is not a square number and t - 1 is, the first token is a class token, which has no place
    in the image and is left out. In the last block of such a network only the class token matters
    to the score: choose an earlier stage.

    Args:
        images: [n, ...], floating-point and finite.
        target: int64 [n], classes from 0.
        stage: name or index (see `stages.resolve_stage`) of a stage that gives [n, c, h, w] or
            tokens.
        channels_last: True for a stage that gives [n, h, w, d], as torchvision's Swin blocks do.
            None takes the channels to come first, and refuses a shape that speaks against it (two
            equal axes, then another).

    Returns:
        Maps [n, h, w] of the stage's resolution, not scaled, at least 0.

    Raises:
        ValueError: a stage without positions, of tokens that form no square grid, or without
            influence on the score; classes or images out of range, nothing given.
        TypeError: images or target of another type, a network that returns something else than
            logits.
    """
    images, target = inputs.tensor("images", images), inputs.classes("target", target, ndim=1)
    inputs.lengths(images=images, target=target)
    stage = stages.resolve_stage(inputs.instance("model", model, nn.Module), stage)
    if channels_last is not None:
        inputs.instance("channels_last", channels_last, bool)
    maps = []
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        stages.evaluating(model),
        stages.Tap(model, [stage]) as tap,
    ):
        for batch, label in zip(images.split(stages.BATCH), target.split(stages.BATCH)):
            # The images ask for a gradient, so that a frozen model builds its graph, too; a copy
            # of what was made in inference mode may take part in one.
            logits, features = tap(batch.detach().clone().requires_grad_())
            inputs.logits("model", logits, len(batch))
            label = inputs.classes("target", label, logits.shape[1]).long().clone()
            output = features[stage]
            feature = _as_map(output, stage, channels_last)
            score = logits.gather(1, label[:, None]).sum()  # the images do not mix
            (gradient,) = torch.autograd.grad(score, output, allow_unused=True)
            if gradient is None:
                raise ValueError(f"stage {stage!r} has no influence on the score of a class")
            gradient = _as_map(gradient, stage, channels_last)
            if feature.numel() < output.numel() and not gradient.any():
                raise ValueError(
                    f"stage {stage!r} has no influence on the score of a class but through its "
                    "class token: choose an earlier stage"
                )
            weights = gradient.mean((2, 3), keepdim=True)
            maps.append((weights * feature).sum(1).relu().detach())
    return torch.cat(maps)


def _as_map(x: Tensor, stage: str, channels_last: bool | None) -> Tensor:
    """The output of a stage (or its gradient) as [n, c, h, w], without a class token."""
    shape = list(x.shape)
    if x.ndim == 4:
        if channels_last is None and shape[1] == shape[2] != shape[3]:
            raise ValueError(
                f"channels_last must be True or False for stage {stage!r}: its output {shape} may "
                "be [n, h, w, channels] or [n, channels, h, w]"
            )
        return x.permute(0, 3, 1, 2) if channels_last else x
    if x.ndim != 3:
        raise ValueError(
            f"stage {stage!r} has no spatial axes: its output has shape {shape}, Grad-CAM needs "
            "[n, channels, height, width] or tokens [n, t, channels]"
        )
    for others in (0, 1):  # in front: no class token, or one
        side = math.isqrt(max(shape[1] - others, 0))
        if side and side**2 == shape[1] - others:
            return x[:, others:].transpose(1, 2).unflatten(2, (side, side))
    raise ValueError(
        f"stage {stage!r} has tokens that form no grid: its output has shape {shape}, and neither "
        f"{shape[1]} nor {shape[1] - 1} (without a class token) is a square number"
    )


def cam_similarity(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of two sets of maps [n, h, w], image by image: float64 [n].

    It lies in [0, 1] where no map has negative values, as Grad-CAM's have none; an empty map has
    similarity 0. ValueError for maps that differ in shape, are empty or not finite.
    """
    inputs.lengths(a=inputs.tensor("a", a, "[n, h, w]"), b=inputs.tensor("b", b, "[n, h, w]"))
    if a.shape != b.shape:
        raise ValueError(
            f"a and b must have one shape, got {list(a.shape)} and {list(b.shape)}: "
            f"use stages of equal resolution, or resize one set with F.interpolate"
        )
    # In float64: maps may be as small as the gradients that they are made of.
    a, b = (F.normalize(inputs.float64(maps.flatten(1)), dim=1, eps=1e-30) for maps in (a, b))
    return (a * b).sum(1)


def closer_share(teacher_cam: Tensor, distilled_cam: Tensor, independent_cam: Tensor) -> float:
    """Percent of images whose teacher map is more similar to the distilled student's map than to
    the independent student's, all maps [n, h, w]; ties count half. 50 means that nothing was
    transferred. Errors as in `cam_similarity`."""
    distilled = cam_similarity(teacher_cam, distilled_cam)
    independent = cam_similarity(teacher_cam, independent_cam)
    closer = inputs.float64(distilled > independent) + 0.5 * (distilled == independent)
    return 100 * closer.mean().item()
