"""Data sets by name, their fixed splits, and augmentations that run on whole batches.

Every data set becomes three `Split`s of tensors on one device. Nothing here needs worker
processes: the sets are small enough to index as tensors, and augmentations act on a batch at a
time. `mnist-5k` ships with the package; the others come through torchvision.
"""

from __future__ import annotations

import os
import zipfile
from importlib import resources
from pathlib import Path
from typing import Callable, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Augment = Callable[[Tensor, torch.Generator], Tensor]

TORCHVISION = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "cifar10": "CIFAR10",
               "cifar100": "CIFAR100"}
KNOWN = ("mnist-5k", *TORCHVISION)
ASSET = "mnist_5k.npz"


class Split(NamedTuple):
    """Images, float32 [n, channels, height, width] in [0, 1], and labels, int64 [n]."""

    images: Tensor
    labels: Tensor

    def take(self, index: Tensor | slice) -> Split:
        """The examples at `index` (positions, a boolean mask or a slice)."""
        return Split(self.images[index], self.labels[index])

    def to(self, device: str | torch.device) -> Split:
        return Split(self.images.to(device), self.labels.to(device))


class Dataset(NamedTuple):
    """Train, validation and test splits. Choose on validation; read test once, at the end."""

    train: Split
    validation: Split
    test: Split
    name: str
    num_classes: int


def generator(seed: int) -> torch.Generator:
    """A CPU generator: randomness that does not depend on the device the data live on."""
    return torch.Generator().manual_seed(seed)


def data_folder() -> Path:
    """Where downloads go: `$KDLIB_DATA`, else `~/.cache/kdlib`."""
    return Path(os.environ.get("KDLIB_DATA", Path.home() / ".cache" / "kdlib"))


def device_of(device: str | torch.device) -> torch.device:
    """`device` as a torch device that exists on this machine, or a ValueError."""
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device {device!r} is unknown: use 'cpu', 'cuda' or 'mps'") from error
    usable = {"cpu": True, "cuda": torch.cuda.is_available(),
              "mps": torch.backends.mps.is_available()}
    if not usable.get(found.type, False):
        raise ValueError(f"device {device!r} is not available here: use 'cpu', or see what "
                         "`python -m kdlib doctor` finds")
    return found


def load(name: str = "mnist-5k", *, size: int | None = None, device: str | torch.device = "cpu",
         folder: str | Path | None = None, download: bool = True) -> Dataset:
    """Load a data set by name with its fixed train/validation/test split.

    `mnist-5k` is shipped (350/50/100 images per digit). `mnist`, `fashion-mnist`, `cifar10`
    and `cifar100` are downloaded once and verified by torchvision; a tenth of their training
    images, stratified, becomes the validation split.

    Args:
        name: one of `KNOWN`.
        size: side in pixels to which images are averaged down (or enlarged); None keeps it.
        device: where the tensors live.
        folder: where downloads are kept; default `data_folder()`.
        download: whether a missing set may be fetched.

    Raises:
        ValueError: unknown name or device, `size` below 4.
        FileNotFoundError: a set is not on disk and cannot be downloaded.
        RuntimeError: the shipped asset is damaged.
    """
    device = device_of(device)
    if size is not None and size < 4:
        raise ValueError(f"size must be at least 4 pixels, got {size}")
    if name == "mnist-5k":
        images, labels = _read_asset()
        parts = _stratified(labels, (350, 50, 100))
        splits = [(images[part], labels[part]) for part in parts]
    elif name in TORCHVISION:
        splits = _read_torchvision(name, Path(folder or data_folder()), download)
    else:
        raise ValueError(f"name {name!r} is not a known data set: use one of {', '.join(KNOWN)}")

    def tensors(images: np.ndarray, labels: np.ndarray) -> Split:
        x = torch.from_numpy(images).to(device).float().div_(255)
        if size is not None and size != x.shape[-1]:
            mode = "area" if size < x.shape[-1] else "bilinear"
            x = F.interpolate(x, size=size, mode=mode)
        return Split(x, torch.from_numpy(labels).to(device).long())

    train, validation, test = (tensors(*split) for split in splits)
    return Dataset(train, validation, test, name, int(train.labels.max()) + 1)


def on_disk(name: str, folder: str | Path | None = None) -> bool:
    """Whether `load(name)` works without a network."""
    if name not in KNOWN:
        raise ValueError(f"name {name!r} is not a known data set: use one of {', '.join(KNOWN)}")
    if name == "mnist-5k":
        return resources.files("kdlib").joinpath("assets", ASSET).is_file()
    from torchvision import datasets
    try:
        getattr(datasets, TORCHVISION[name])(Path(folder or data_folder()), download=False)
    except RuntimeError:
        return False
    return True


def _read_asset() -> tuple[np.ndarray, np.ndarray]:
    file = resources.files("kdlib").joinpath("assets", ASSET)
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            images, labels = arrays["images"], arrays["labels"]
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise RuntimeError(f"the shipped data file {ASSET} is damaged or missing ({error}): "
                           f"restore it with `git checkout -- kdlib/assets/{ASSET}`") from error
    return images[:, None], labels.astype(np.int64)


def _read_torchvision(name: str, folder: Path, download: bool) -> list[tuple]:
    from torchvision import datasets
    family = getattr(datasets, TORCHVISION[name])
    try:
        parts = [family(folder, train=train, download=download) for train in (True, False)]
    except Exception as error:  # torchvision raises URLError, RuntimeError or OSError
        where = folder / family.__name__ / "raw" if "mnist" in name else folder
        raise FileNotFoundError(
            f"data set {name!r} is not complete in {folder} and could not be downloaded "
            f"({error}). Connect once and call data.load({name!r}) again, or copy torchvision's "
            f"original files from another machine into {where}. "
            "data.load('mnist-5k') needs no network.") from error
    arrays = []
    for part in parts:
        images = np.asarray(part.data)
        images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
        arrays.append((np.ascontiguousarray(images), np.asarray(part.targets, dtype=np.int64)))
    (images, labels), test = arrays
    held_out = np.bincount(labels).min() // 10
    train, validation = _stratified(labels, (None, held_out))
    return [(images[train], labels[train]), (images[validation], labels[validation]), test]


def _stratified(labels: np.ndarray, per_class: tuple[int | None, ...]) -> list[np.ndarray]:
    """Disjoint, shuffled positions with `per_class` examples of each class; None takes the rest."""
    rng = np.random.default_rng(0)  # fixed: the split is part of the data set
    parts: list[list[np.ndarray]] = [[] for _ in per_class]
    for label in np.unique(labels):
        positions = rng.permutation(np.flatnonzero(labels == label))
        rest = len(positions) - sum(count or 0 for count in per_class)
        ends = np.cumsum([rest if count is None else count for count in per_class])
        for part, chosen in zip(parts, np.split(positions, ends)[: len(per_class)]):
            part.append(chosen)
    return [rng.permutation(np.concatenate(part)) for part in parts]


def shift(images: Tensor, generator: torch.Generator, *, pixels: int = 1) -> Tensor:
    """Move every image by its own random whole number of pixels, up to `pixels`, zero filled.

    Args:
        images: [n, c, h, w].
    """
    n, _, h, w = images.shape
    dy, dx = torch.randint(0, 2 * pixels + 1, (2, n), generator=generator).to(images.device)
    # A view of all shifted images; indexing copies one of them for each image.
    shifted = F.pad(images, (pixels,) * 4).unfold(2, h, 1).unfold(3, w, 1)
    return shifted[torch.arange(n, device=images.device), :, dy, dx]


def flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image left to right with probability one half (not for digits)."""
    mirrored = torch.rand(len(images), generator=generator).to(images.device) < 0.5
    return torch.where(mirrored[:, None, None, None], images.flip(-1), images)


def mixup(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Blend each image with another of the batch (Zhang et al., ICLR 2018, with lambda ~ U(0, 1)).

    Returns:
        The mixed images, lambda [n], and the position of each image's partner [n]. The mixed
        target is `lambda * y + (1 - lambda) * y[partner]`.
    """
    weight = torch.rand(len(images), generator=generator).to(images.device)
    partner = torch.randperm(len(images), generator=generator).to(images.device)
    share = weight[:, None, None, None]
    return share * images + (1 - share) * images[partner], weight, partner


def two_digits(split: Split, count: int, *, seed: int) -> Split:
    """`count` composites of two random digits side by side: [count, 1, 14, 28], 100 classes.

    Each digit is averaged down to 14 x 14 and brightened by 1.3; the class is the two-digit
    number. Ten classes carry too little "dark knowledge" for some questions, a hundred do.
    """
    if len(split.images) == 0:
        raise ValueError("split holds no images: two_digits needs at least one")
    digits = F.avg_pool2d(split.images, 2).mul(1.3).clamp_(0, 1)
    left, right = torch.randint(0, len(digits), (2, count), generator=generator(seed))
    left, right = left.to(digits.device), right.to(digits.device)
    return Split(torch.cat([digits[left], digits[right]], dim=3),
                 10 * split.labels[left] + split.labels[right])
