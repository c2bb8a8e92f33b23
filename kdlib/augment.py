"""Augmentations of whole batches, on the device where the images live.

Each is a function `(images, generator) -> images` of a batch [n, c, h, w], every image with its own
draw; `functools.partial` sets its options and `chain` joins several. Random numbers come from the
CPU generator, so they do not depend on the device, and only a few of them an image cross to it.
Bad arguments raise ValueError, of another type TypeError, with their name.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdlib import inputs, recipes

Augment = Callable[[Tensor, torch.Generator], Tensor]

_FILLS = {"zero": "constant", "reflect": "reflect"}  # our words for those of F.pad
_LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue, by ITU-R BT.601


@recipes.safe
def shift(images: Tensor, generator: torch.Generator, *, pixels: int = 1) -> Tensor:
    """Move every image [n, c, h, w] by its own random whole number of pixels, up to `pixels` >= 0
    in each direction, zero filled."""
    pixels = inputs.whole("pixels", pixels, low=0)
    return _moved(_augmented(images, generator), generator, pixels, "zero")


@recipes.safe
def crop(
    images: Tensor, generator: torch.Generator, *, padding: int = 4, fill: str = "zero"
) -> Tensor:
    """Pad every image [n, c, h, w], and cut a random part of the old size out of it.

    Args:
        padding: pixels added on each side, at least 0; the published recipe for CIFAR takes 4.
        fill: what they hold, "zero" or "reflect". The latter mirrors the image at its outermost
            pixels, so it needs a padding below its height and width.
    """
    padding = inputs.whole("padding", padding, low=0)
    inputs.choice("fill", fill, tuple(_FILLS))
    least = min(_augmented(images, generator).shape[2:])
    if fill == "reflect" and padding >= least:
        raise ValueError(
            f"padding must be below the side of the images, {least}, to reflect them, got "
            f"{padding}: take less, or fill='zero'"
        )
    return _moved(images, generator, padding, fill)


def _moved(images: Tensor, generator: torch.Generator, pixels: int, fill: str) -> Tensor:
    n, _, h, w = images.shape
    dy, dx = _sent(torch.randint(0, 2 * pixels + 1, (2, n), generator=generator), images)
    # A view of all moved images; indexing copies one of them for each image.
    moved = F.pad(images, (pixels,) * 4, _FILLS[fill]).unfold(2, h, 1).unfold(3, w, 1)
    return moved[torch.arange(n, device=images.device), :, dy, dx]


@recipes.safe
def flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image [n, c, h, w] left to right with probability one half (not for digits)."""
    _augmented(images, generator)
    mirrored = _sent(torch.rand(len(images), generator=generator), images) < 0.5
    return torch.where(mirrored[:, None, None, None], images.flip(-1), images)


@recipes.safe
def jitter(
    images: Tensor,
    generator: torch.Generator,
    *,
    brightness: float = 0.4,
    contrast: float = 0.4,
    saturation: float = 0.4,
) -> Tensor:
    """Change brightness, contrast and saturation of colour images [n, 3, h, w] in [0, 1].

    In this order, each by a factor of its own for every image, uniform in 1 +- the argument (0
    to 1), and clipped to [0, 1] after each. Brightness scales towards black, contrast towards the
    image's mean luminance, saturation towards each pixel's luminance (Howard, arXiv:1312.5402; as
    torchvision's ColorJitter without hue, in one fixed order). `domains.colour_jitter` turns hue,
    too.
    """
    _augmented(images, generator, channels=(3,), unit=True)
    limits = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
    spread = torch.tensor([inputs.number(name, v, low=0, high=1) for name, v in limits.items()])
    draws = 2 * torch.rand(3, len(images), generator=generator) - 1
    factors = _sent(1 + spread[:, None] * draws, images).to(images.dtype)
    bright, contrasted, saturated = factors[:, :, None, None, None]
    weights = images.new_tensor(_LUMINANCE)[:, None, None]

    def luminance(found: Tensor) -> Tensor:
        return (found * weights).sum(1, keepdim=True)

    images = (images * bright).clamp_(0, 1)
    middle = luminance(images).mean((2, 3), keepdim=True)
    images = torch.lerp(middle.expand_as(images), images, contrasted).clamp_(0, 1)
    grey = luminance(images).expand_as(images)
    return torch.lerp(grey, images, saturated).clamp_(0, 1)


@recipes.safe
def standard(images: Tensor, generator: torch.Generator) -> Tensor:
    """The published recipe for CIFAR, images [n, c, h, w]: `crop` with 4 zero pixels, then `flip`
    (He et al., CVPR 2016, section 4.2)."""
    return flip(crop(images, generator, padding=4), generator)


def chain(*augmentations: Augment) -> functools.partial[Tensor]:
    """One augmentation that applies several, at least one, in their order.

    Made of functions that can be imported, and of `functools.partial` of them, it can be
    identified and repeated from a record: chain(crop, partial(jitter, contrast=0.2)).
    """
    if not augmentations:
        raise ValueError("augmentations must hold at least one function, got none")
    for place, augmentation in enumerate(augmentations):
        if not callable(augmentation):
            raise TypeError(
                f"augmentations[{place}] must be a function (images, generator) -> images, got "
                f"{inputs.describe(augmentation)}"
            )
    return functools.partial(in_turn, *augmentations)


@recipes.safe
def in_turn(*given: Any) -> Tensor:
    """in_turn(augmentation, ..., images, generator): what `chain` makes a partial of.

    All stand in one row because a record shows a partial's arguments one by one, and names each
    function among them.
    """
    *augmentations, images, generator = given
    for place, augmentation in enumerate(augmentations):
        images = augmentation(images, generator)
        if not isinstance(images, Tensor):
            raise TypeError(
                f"augmentations[{place}] must return the images alone, got "
                f"{inputs.describe(images)}; for mixup use fit(..., mixup=True)"
            )
    return images


def mixup(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Blend each image [n, c, h, w] with another of the batch (Zhang et al., ICLR 2018, with
    lambda ~ U(0, 1)).

    Returns:
        The mixed images, lambda [n], and the position of each image's partner [n]. The mixed
        target is `lambda * y + (1 - lambda) * y[partner]`.
    """
    _augmented(images, generator)
    weight = _sent(torch.rand(len(images), generator=generator), images)
    partner = _sent(torch.randperm(len(images), generator=generator), images)
    share = weight.to(images.dtype)[:, None, None, None]
    return share * images + (1 - share) * images[partner], weight, partner


def _augmented(
    images: Tensor,
    generator: torch.Generator,
    *,
    channels: tuple[int, ...] | None = None,
    unit: bool = False,
) -> Tensor:
    """The images, if both arguments of an augmentation are usable.

    Their values are looked at on the CPU only: a GPU would have to finish its work first.
    """
    inputs.instance("generator", generator, torch.Generator, "data.generator(seed) makes one")
    here = getattr(getattr(images, "device", None), "type", "cpu") == "cpu"
    return inputs.images("images", images, channels=channels, unit=unit and here, finite=here)


def _sent(numbers: Tensor, images: Tensor) -> Tensor:
    """Numbers drawn on the CPU, on the device of the images; a GPU does not wait for them."""
    return numbers.to(images.device, non_blocking=images.is_cuda)
