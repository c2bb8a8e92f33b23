"""The same digits in other worlds: colours, photographs, edges, rotations, sketches, scenes.

Each function takes images in [0, 1] and returns new ones of the same floating-point type; where it
draws at random, it does so from a seed (or a generator, for augmentations), so a domain is the same
on every machine. Bad arguments raise ValueError, of another type TypeError, with their name.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from kdlib import inputs, recipes
from kdlib.data import Split, generator

# Luminance and the two colour axes of the YIQ space: turning hue keeps the grey axis fixed.
_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_STRIP = 32  # pixels; the strips of the photograph belong to "train" and "test" in turn


def _grey(images: Tensor) -> Tensor:
    return inputs.images("images", images, channels=(1,), unit=True)


def _grey_or_colour(images: Tensor) -> Tensor:
    return inputs.images("images", images, channels=(1, 3), unit=True)


def to_rgb(images: Tensor) -> Tensor:
    """Grey images [n, 1, h, w] as colour images [n, 3, h, w]."""
    return _grey(images).expand(-1, 3, -1, -1).contiguous()


def hue_to_rgb(hue: Tensor, saturation: float = 1.0) -> Tensor:
    """Fully bright colours [n, 3] for hues [n] in turns of the colour circle, 0 to 1; saturation
    from 0 (white) to 1."""
    inputs.tensor("hue", hue, "[n]", low=0, high=1)
    saturation = inputs.number("saturation", saturation, low=0, high=1)
    wheel = hue[:, None] + torch.tensor([0.0, 2 / 3, 1 / 3]).to(hue)
    full = ((wheel % 1 * 6 - 3).abs() - 1).clamp(0, 1)
    return 1 - saturation + saturation * full


def colour_digits(images: Tensor, labels: Tensor, *, seed: int, bias: float = 0.97) -> Tensor:
    """Coloured digits whose hue tells the class in a share `bias` of the images: a shortcut.

    Args:
        images: [n, 1, h, w].
        labels: [n], 0 to 9.
        bias: 0 to 1.

    Returns:
        [n, 3, h, w]; the other images have a random hue.
    """
    _grey(images)
    inputs.lengths(images=images, labels=inputs.classes("labels", labels, 10, ndim=1))
    bias = inputs.number("bias", bias, low=0, high=1)
    stream = generator(seed)
    n = len(images)
    told = torch.rand(n, generator=stream) < bias
    typical = (labels.cpu() / 10 + 0.03 * torch.randn(n, generator=stream)) % 1
    hue = torch.where(told, typical, torch.rand(n, generator=stream))
    return images * hue_to_rgb(hue, 0.8).to(images)[:, :, None, None]


@recipes.safe
def colour_jitter(images: Tensor, stream: torch.Generator, *, strength: float = 0.4) -> Tensor:
    """Random brightness, contrast and saturation in 1 +- strength, hue turned by +- strength / 2.

    Hue is in turns of the colour circle; strength from 0 to 1. An augmentation of colour images
    [n, 3, h, w]: each draws its own values.
    """
    inputs.images("images", images, channels=(3,), unit=True)
    inputs.instance("stream", stream, torch.Generator, "data.generator(seed) makes one")
    strength = inputs.number("strength", strength, low=0, high=1)
    n = len(images)

    def factor() -> Tensor:
        draw = 2 * torch.rand(n, 1, 1, 1, generator=stream) - 1
        return (1 + strength * draw).to(images)

    yiq = _YIQ.to(images)
    bright = images * factor()
    middle = bright.mean((1, 2, 3), keepdim=True)
    contrasted = middle + factor() * (bright - middle)
    grey = torch.einsum("c,nchw->nhw", yiq[0], contrasted)[:, None]
    saturated = grey + factor() * (contrasted - grey)
    angle = (math.pi * strength * (2 * torch.rand(n, generator=stream) - 1)).to(images)
    turn = torch.zeros(n, 3, 3).to(images)
    turn[:, 0, 0], turn[:, 1, 1], turn[:, 2, 2] = 1, angle.cos(), angle.cos()
    turn[:, 1, 2], turn[:, 2, 1] = -angle.sin(), angle.sin()
    matrix = torch.linalg.inv(yiq) @ turn @ yiq
    return torch.einsum("nij,njhw->nihw", matrix, saturated).clamp(0, 1)


def colour_background(images: Tensor, *, seed: int) -> Tensor:
    """MNIST-Color: white digits [n, 1, h, w] on a background of one random colour each,
    [n, 3, h, w]."""
    _grey(images)
    stream = generator(seed)
    colour = hue_to_rgb(torch.rand(len(images), generator=stream))
    colour = colour * (0.2 + 0.6 * torch.rand(len(images), 1, generator=stream))
    return images + (1 - images) * colour.to(images)[:, :, None, None]


@cache
def photograph() -> Tensor:
    """The portrait of Grace Hopper that ships with matplotlib, [3, height, width] in [0, 1]."""
    from matplotlib import cbook, image

    pixels = image.imread(str(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)))
    return torch.tensor(pixels).permute(2, 0, 1).float() / 255


def patches(count: int, side: int, *, seed: int, part: str) -> Tensor:
    """Random crops of a photograph at half its size, [count, 3, side, side].

    Args:
        count: at least 1.
        side: 1 to 32 pixels.
        part: "train" crops from the even vertical strips of 32 pixels, "test" from the odd ones,
            so that no test background was seen in training.
    """
    inputs.choice("part", part, ("train", "test"))
    count, side = inputs.whole("count", count), inputs.whole("side", side, high=_STRIP)
    picture = F.avg_pool2d(photograph(), 2)
    stream = generator(seed)
    strips = torch.arange(part == "test", picture.shape[2] // _STRIP, 2)
    chosen = strips[torch.randint(len(strips), (count,), generator=stream)]
    left = _STRIP * chosen + torch.randint(_STRIP - side + 1, (count,), generator=stream)
    top = torch.randint(picture.shape[1] - side + 1, (count,), generator=stream)
    rows = top[:, None, None] + torch.arange(side)[:, None]
    columns = left[:, None, None] + torch.arange(side)
    return picture[:, rows, columns].transpose(0, 1).contiguous()


def mnist_m(images: Tensor, *, seed: int, part: str) -> Tensor:
    """MNIST-M style: |photograph patch - digit|, [n, 3, h, h] (Ganin et al., JMLR 2016).

    Args:
        images: [n, 1, h, h] with h up to 32.
        seed, part: as in `patches`.
    """
    return (_backgrounds(images, seed, part) - images).abs()


def stylise(images: Tensor, *, seed: int, part: str = "test") -> Tensor:
    """Digits filled with the texture of a photograph on black, [n, 3, h, h]; see `mnist_m`."""
    return images * _backgrounds(images, seed, part)


def _backgrounds(images: Tensor, seed: int, part: str) -> Tensor:
    n, _, height, width = _grey(images).shape
    if height != width or width > _STRIP:
        raise ValueError(
            f"images must be square, with up to {_STRIP} pixels a side, got {list(images.shape)}"
        )
    return patches(n, width, seed=seed, part=part).to(images)


def rotate(images: Tensor, degrees: float) -> Tensor:
    """Every image [n, 1 or 3, h, w] turned counter-clockwise by `degrees`, zero filled."""
    _grey_or_colour(images)
    angle = math.radians(inputs.number("degrees", degrees))
    turn = [[math.cos(angle), -math.sin(angle), 0.0], [math.sin(angle), math.cos(angle), 0.0]]
    matrix = torch.tensor(turn).to(images).expand(len(images), 2, 3)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False).clamp(0, 1)


def invert(images: Tensor) -> Tensor:
    """Black on white instead of white on black; [n, 1 or 3, h, w] as it is."""
    return 1 - _grey_or_colour(images)


def edges(images: Tensor) -> Tensor:
    """Absolute differences to the left and upper neighbour, summed and clipped; [n, 1 or 3, h, w]
    as it is."""
    _grey_or_colour(images)
    left = F.pad(images, (1, 0, 0, 0))[..., :-1]
    upper = F.pad(images, (0, 0, 1, 0))[..., :-1, :]
    return ((images - left).abs() + (images - upper).abs()).clamp(0, 1)


def silhouette(images: Tensor) -> Tensor:
    """The digit thickened by a pixel and filled with pure white; [n, 1 or 3, h, w] as it is."""
    return (F.max_pool2d(_grey_or_colour(images), 3, 1, 1) > 0.5).to(images.dtype)


def sketch(images: Tensor, *, seed: int) -> Tensor:
    """The digit drawn with a thin, unsteady line: [n, 1, h, w] as it is.

    The line keeps the pixels above 0.3 that are ridges of the stroke, from left to right or from
    top to bottom; a smooth random displacement of about half a pixel bends it.
    """
    n = len(_grey(images))
    across, down = (
        (images > images.roll(1, axis)) & (images >= images.roll(-1, axis)) for axis in (3, 2)
    )
    line = ((across | down) & (images > 0.3)).to(images.dtype)
    bend = torch.randn(n, 2, 4, 4, generator=generator(seed)).to(images)
    bend = F.interpolate(bend, size=images.shape[2:], mode="bilinear", align_corners=True)
    identity = torch.eye(2, 3).to(images).expand(n, 2, 3)
    grid = F.affine_grid(identity, list(images.shape), align_corners=False)
    moved = grid + bend.movedim(1, 3) / images.shape[3]  # 2 / w is a pixel
    return F.grid_sample(line, moved, align_corners=False).clamp(0, 1)


def cue_conflict(images: Tensor, labels: Tensor, *, seed: int) -> Tensor:
    """A large digit in front of four small grey ones of another class: [n, 1, h, w] as it is.

    Cue conflict images have the shape of one class and the texture of another (Geirhos et al.,
    ICLR 2019). A stroke of two pixels holds no texture, so here the texture is the background.

    Args:
        images: [n, 1, h, w] with even h and w.
        labels: [n], 0 to 9, of two classes at least.

    Raises:
        ValueError: images or labels of another shape, odd sides, labels of one class only.
    """
    _grey(images)
    inputs.lengths(images=images, labels=inputs.classes("labels", labels, 10, ndim=1))
    if images.shape[2] % 2 or images.shape[3] % 2:
        raise ValueError(f"images must have even sides, got {list(images.shape)}")
    other = labels[:, None] != labels
    if not bool(other.any(1).all()):
        raise ValueError("labels must be of two classes or more: the small digits are of another")
    score = torch.rand(other.shape, generator=generator(seed)).to(labels.device)
    partner = score.masked_fill(~other, -1.0).argmax(1)
    small = F.avg_pool2d(images[partner], 2).repeat(1, 1, 2, 2)
    return torch.maximum(images, 0.6 * small)


def blur(images: Tensor) -> Tensor:
    """Two 3 x 3 box filters in a row; [n, 1 or 3, h, w] as it is."""
    return F.avg_pool2d(F.avg_pool2d(_grey_or_colour(images), 3, 1, 1), 3, 1, 1)


def stripes(images: Tensor) -> Tensor:
    """The digit behind vertical grey stripes two pixels wide; [n, 1 or 3, h, w] as it is."""
    pattern = 0.6 * (torch.arange(_grey_or_colour(images).shape[-1]) % 4 < 2)
    return torch.maximum(images, pattern.to(images).expand_as(images))


def add_noise(images: Tensor, *, seed: int, std: float = 0.4) -> Tensor:
    """Gaussian pixel noise of standard deviation `std` >= 0, clipped to [0, 1]; [n, 1 or 3, h, w]
    as it is."""
    _grey_or_colour(images)
    std = inputs.number("std", std, low=0)
    noise = torch.randn(images.shape, generator=generator(seed)).to(images)
    return (images + std * noise).clamp(0, 1)


def unseen(images: Tensor, labels: Tensor, *, seed: int) -> dict[str, Tensor]:
    """Grey images [n, 1, h, h], even h up to 32, in ten domains, as colour images [n, 3, h, h].

    labels: classes [n], 0 to 9, for `cue_conflict`.
    """
    turned: dict[str, Callable[[Tensor], Tensor]] = {
        "sketch": partial(sketch, seed=seed),
        "cue conflict": partial(cue_conflict, labels=labels, seed=seed),
        "edges": edges,
        "inverted": invert,
        "silhouette": silhouette,
        "rotated 30°": partial(rotate, degrees=30),
        "blurred": blur,
        "striped": stripes,
    }
    domains = {name: to_rgb(change(images)) for name, change in turned.items()}
    domains["noisy"] = add_noise(to_rgb(images), seed=seed)
    domains["stylised"] = stylise(images, seed=seed)
    return domains


@recipes.traced
def scene(split: Split, *, marker: str, seed: int) -> Split:
    """A 32 x 32 scene: a digit on one side, a 6 x 6 glyph on the other, faint noise over both.

    Args:
        split: grey digits with labels 0 to 9, a Split or a pair; each is averaged to 20 x 20.
        marker: "class": the glyph is a code of the label, as informative as the digit;
            "random": it is a random one of the ten codes.

    Returns:
        Images [n, 1, 32, 32], which reach 1.1 where noise lies on white, clipped to 1.
    """
    inputs.choice("marker", marker, ("class", "random"))
    images, labels = Split.of(split)
    inputs.images("split.images", images, channels=(1,), unit=True)
    inputs.classes("split.labels", labels, 10, ndim=1)
    n, device = len(labels), images.device
    glyphs = (torch.rand(10, 6, 6, generator=generator(99)) > 0.5).to(images)
    digits = F.interpolate(images, size=20, mode="area")[:, 0]
    stream = generator(seed)
    code = labels if marker == "class" else torch.randint(10, (n,), generator=stream)
    top = torch.randint(13, (n,), generator=stream)
    right = torch.randint(2, (n,), generator=stream)
    glyph_top = torch.randint(27, (n,), generator=stream)
    noise = 0.1 * torch.rand(n, 1, 32, 32, generator=stream)
    canvas = torch.zeros(n, 32, 32).to(images)
    _paste(canvas, digits, top, 12 * right)
    _paste(canvas, glyphs[code.to(device).long()], glyph_top, torch.where(right == 1, 1, 25))
    return Split((canvas[:, None] + noise.to(images)).clamp(0, 1), labels)


def _paste(canvas: Tensor, stamps: Tensor, top: Tensor, left: Tensor) -> None:
    """Lay stamp i on canvas i at (top[i], left[i]), keeping the brighter pixel."""
    size = torch.arange(stamps.shape[-1])
    n = torch.arange(len(canvas))[:, None, None]
    rows, columns = top[:, None, None] + size[:, None], left[:, None, None] + size
    canvas[n, rows, columns] = torch.maximum(canvas[n, rows, columns], stamps)
