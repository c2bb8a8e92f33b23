"""The same digits in other worlds: colours, photographs, edges, rotations, scenes.

Each function takes images in [0, 1] and returns new ones; where it draws at random, it does so
from a seed (or a generator, for augmentations), so a domain is the same on every machine.
"""

from __future__ import annotations

import math
from functools import cache, partial
from typing import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from kdlib.data import Split, generator

# Luminance and the two colour axes of the YIQ space: turning hue keeps the grey axis fixed.
_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])


def _check(images: Tensor, channels: tuple[int, ...] = (1, 3)) -> None:
    if images.ndim != 4 or not len(images) or images.shape[1] not in channels:
        raise ValueError(f"images must be [n, c, h, w] with n >= 1 and c in {channels}; got "
                         f"{tuple(images.shape)}")
    if not 0 <= float(images.min()) <= float(images.max()) <= 1:  # NaN fails too
        raise ValueError("images must lie in [0, 1] and be finite; they span "
                         f"{float(images.min()):.3g} to {float(images.max()):.3g}")


def to_rgb(images: Tensor) -> Tensor:
    """Grey images [n, 1, h, w] as colour images [n, 3, h, w]."""
    _check(images, (1,))
    return images.expand(-1, 3, -1, -1).contiguous()


def hue_to_rgb(hue: Tensor, saturation: float = 1.0) -> Tensor:
    """Fully bright colours [n, 3] for hues [n] in turns of the colour circle."""
    wheel = hue[:, None] + torch.tensor([0.0, 2 / 3, 1 / 3], device=hue.device)
    full = ((wheel % 1 * 6 - 3).abs() - 1).clamp(0, 1)
    return 1 - saturation + saturation * full


def colour_digits(images: Tensor, labels: Tensor, *, seed: int, bias: float = 0.97) -> Tensor:
    """Coloured digits whose hue tells the class in a share `bias` of the images: a shortcut.

    Returns:
        [n, 3, h, w]; the other images have a random hue.
    """
    _check(images, (1,))
    stream = generator(seed)
    n, device = len(images), images.device
    told = torch.rand(n, generator=stream) < bias
    typical = (labels.cpu() / 10 + 0.03 * torch.randn(n, generator=stream)) % 1
    hue = torch.where(told, typical, torch.rand(n, generator=stream)).to(device)
    return images * hue_to_rgb(hue, 0.8)[:, :, None, None]


def colour_jitter(images: Tensor, stream: torch.Generator, *, strength: float = 0.4) -> Tensor:
    """Random brightness, contrast and saturation in 1 +- strength, hue turned by +- strength / 2.

    Hue is in turns of the colour circle. An augmentation: each image draws its own values.
    """
    n = len(images)

    def factor() -> Tensor:
        draw = 2 * torch.rand(n, 1, 1, 1, generator=stream) - 1
        return (1 + strength * draw).to(images.device)

    yiq = _YIQ.to(images.device)
    bright = images * factor()
    middle = bright.mean((1, 2, 3), keepdim=True)
    contrasted = middle + factor() * (bright - middle)
    grey = torch.einsum("c,nchw->nhw", yiq[0], contrasted)[:, None]
    saturated = grey + factor() * (contrasted - grey)
    angle = (math.pi * strength * (2 * torch.rand(n, generator=stream) - 1)).to(images.device)
    turn = torch.zeros(n, 3, 3, device=images.device)
    turn[:, 0, 0], turn[:, 1, 1], turn[:, 2, 2] = 1, angle.cos(), angle.cos()
    turn[:, 1, 2], turn[:, 2, 1] = -angle.sin(), angle.sin()
    matrix = torch.linalg.inv(yiq) @ turn @ yiq
    return torch.einsum("nij,njhw->nihw", matrix, saturated).clamp(0, 1)


def colour_background(images: Tensor, *, seed: int) -> Tensor:
    """MNIST-Color: white digits on a background of one random colour each, [n, 3, h, w]."""
    _check(images, (1,))
    stream = generator(seed)
    colour = hue_to_rgb(torch.rand(len(images), generator=stream))
    colour = colour * (0.2 + 0.6 * torch.rand(len(images), 1, generator=stream))
    return images + (1 - images) * colour.to(images.device)[:, :, None, None]


@cache
def photograph() -> Tensor:
    """The portrait of Grace Hopper that ships with matplotlib, [3, height, width] in [0, 1]."""
    from matplotlib import cbook, image
    pixels = image.imread(cbook.get_sample_data("grace_hopper.jpg"))
    return torch.tensor(pixels).permute(2, 0, 1).float() / 255


def patches(count: int, side: int, *, seed: int, part: str) -> Tensor:
    """Random crops of a photograph at half its size, [count, 3, side, side].

    Args:
        part: "train" crops from the even vertical strips of 32 pixels, "test" from the odd ones,
            so that no test background was seen in training.
    """
    if part not in ("train", "test"):
        raise ValueError(f"part must be 'train' or 'test', got {part!r}")
    strip = 32
    if not 1 <= side <= strip:
        raise ValueError(f"side must lie in 1..{strip} pixels, got {side}")
    picture = F.avg_pool2d(photograph(), 2)
    stream = generator(seed)
    strips = torch.arange(part == "test", picture.shape[2] // strip, 2)
    chosen = strips[torch.randint(len(strips), (count,), generator=stream)]
    left = strip * chosen + torch.randint(strip - side + 1, (count,), generator=stream)
    top = torch.randint(picture.shape[1] - side + 1, (count,), generator=stream)
    rows = top[:, None, None] + torch.arange(side)[:, None]
    columns = left[:, None, None] + torch.arange(side)
    return picture[:, rows, columns].transpose(0, 1).contiguous()


def mnist_m(images: Tensor, *, seed: int, part: str) -> Tensor:
    """MNIST-M style: |photograph patch - digit|, [n, 3, h, w] (Ganin et al., JMLR 2016)."""
    _check(images, (1,))
    background = patches(len(images), images.shape[-1], seed=seed, part=part)
    return (background.to(images.device) - images).abs()


def stylise(images: Tensor, *, seed: int, part: str = "test") -> Tensor:
    """Digits filled with the texture of a photograph on black, [n, 3, h, w]."""
    _check(images, (1,))
    return images * patches(len(images), images.shape[-1], seed=seed, part=part).to(images.device)


def rotate(images: Tensor, degrees: float) -> Tensor:
    """Every image turned counter-clockwise by `degrees`, zero filled."""
    _check(images)
    angle = math.radians(degrees)
    matrix = torch.tensor([[math.cos(angle), -math.sin(angle), 0.0],
                           [math.sin(angle), math.cos(angle), 0.0]], device=images.device)
    grid = F.affine_grid(matrix.expand(len(images), 2, 3), list(images.shape),
                         align_corners=False)
    return F.grid_sample(images, grid, align_corners=False).clamp(0, 1)


def invert(images: Tensor) -> Tensor:
    """Black on white instead of white on black."""
    _check(images)
    return 1 - images


def edges(images: Tensor) -> Tensor:
    """Absolute differences to the left and upper neighbour, summed and clipped."""
    _check(images)
    left = F.pad(images, (1, 0, 0, 0))[..., :-1]
    upper = F.pad(images, (0, 0, 1, 0))[..., :-1, :]
    return ((images - left).abs() + (images - upper).abs()).clamp(0, 1)


def silhouette(images: Tensor) -> Tensor:
    """The digit thickened by a pixel and filled with pure white."""
    _check(images)
    return (F.max_pool2d(images, 3, 1, 1) > 0.5).float()


def blur(images: Tensor) -> Tensor:
    """Two 3 x 3 box filters in a row."""
    _check(images)
    return F.avg_pool2d(F.avg_pool2d(images, 3, 1, 1), 3, 1, 1)


def stripes(images: Tensor) -> Tensor:
    """The digit behind vertical grey stripes two pixels wide."""
    _check(images)
    pattern = 0.6 * (torch.arange(images.shape[-1], device=images.device) % 4 < 2)
    return torch.maximum(images, pattern.expand_as(images))


def add_noise(images: Tensor, *, seed: int, std: float = 0.4) -> Tensor:
    """Gaussian pixel noise of standard deviation `std`, clipped to [0, 1]."""
    _check(images)
    noise = torch.randn(images.shape, generator=generator(seed)).to(images.device)
    return (images + std * noise).clamp(0, 1)


def unseen(images: Tensor, *, seed: int) -> dict[str, Tensor]:
    """Grey images in eight domains, as colour images [n, 3, h, w]."""
    turned: dict[str, Callable[[Tensor], Tensor]] = {
        "inverted": invert, "edges": edges, "silhouette": silhouette,
        "rotated 30°": partial(rotate, degrees=30), "blurred": blur, "striped": stripes}
    domains = {name: to_rgb(change(images)) for name, change in turned.items()}
    domains["noisy"] = add_noise(to_rgb(images), seed=seed)
    domains["stylised"] = stylise(images, seed=seed)
    return domains


def scene(split: Split, *, marker: str, seed: int) -> Split:
    """A 32 x 32 scene: a digit on one side, a 6 x 6 glyph on the other, faint noise over both.

    Args:
        split: grey digits; each is averaged to 20 x 20.
        marker: "class": the glyph is a code of the label, as informative as the digit;
            "random": it is a random one of the ten codes.

    Returns:
        Images [n, 1, 32, 32], which reach 1.1 where noise lies on white, clipped to 1.
    """
    if marker not in ("class", "random"):
        raise ValueError(f"marker must be 'class' or 'random', got {marker!r}")
    _check(split.images, (1,))
    n, device = len(split.labels), split.images.device
    glyphs = (torch.rand(10, 6, 6, generator=generator(99)) > 0.5).float().to(device)
    digits = F.interpolate(split.images, size=20, mode="area")[:, 0]
    stream = generator(seed)
    code = split.labels if marker == "class" else torch.randint(10, (n,), generator=stream)
    top = torch.randint(13, (n,), generator=stream)
    right = torch.randint(2, (n,), generator=stream)
    glyph_top = torch.randint(27, (n,), generator=stream)
    noise = 0.1 * torch.rand(n, 1, 32, 32, generator=stream)
    canvas = torch.zeros(n, 32, 32, device=device)
    _paste(canvas, digits, top, 12 * right)
    _paste(canvas, glyphs[code.to(device)], glyph_top, torch.where(right == 1, 1, 25))
    return Split((canvas[:, None] + noise.to(device)).clamp(0, 1), split.labels)


def _paste(canvas: Tensor, stamps: Tensor, top: Tensor, left: Tensor) -> None:
    """Lay stamp i on canvas i at (top[i], left[i]), keeping the brighter pixel."""
    size = torch.arange(stamps.shape[-1])
    n = torch.arange(len(canvas))[:, None, None]
    rows, columns = top[:, None, None] + size[:, None], left[:, None, None] + size
    canvas[n, rows, columns] = torch.maximum(canvas[n, rows, columns], stamps)
