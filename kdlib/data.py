"""Data sets by name, their fixed splits, and augmentations that run on whole batches.

Every data set becomes three `Split`s of tensors on one device. Nothing here needs worker
processes: the sets are small enough to index as tensors, and augmentations act on a batch at a
time. `mnist-5k` ships with the package; the others come through torchvision. Bad arguments raise
ValueError, of another type TypeError, with their name.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kdlib import inputs, recipes

Augment = Callable[[Tensor, torch.Generator], Tensor]

TORCHVISION = {
    "mnist": "MNIST",
    "fashion-mnist": "FashionMNIST",
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
}
KNOWN = ("mnist-5k", *TORCHVISION)
ASSET = "mnist_5k.npz"
ASSET_SHA256 = "246e0c30eeea57c8d0037d3f38c8e00651ec204cc61b8022563e9aeeb9d756f4"  # see its card
# MD5 sums of the unpacked files as published; torchvision knows those of the archives only.
MD5 = {
    "mnist": {
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    },
    "fashion-mnist": {
        "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
        "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
        "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
    },
}


class _Pair(NamedTuple):
    images: Tensor
    labels: Tensor


class Split(_Pair):
    """Images, float32 [n, channels, height, width] in [0, 1], and labels, int64 [n].

    A pair: it unpacks, and `Split(*pair)` makes one. `origin` says where the examples come from,
    where that is known.
    """

    origin: Any = None
    versions: Any = None  # of the tensors, when the origin was noted

    @classmethod
    def of(cls, found: Any, name: str = "split") -> Split:
        """A Split as it is, or one made of a pair (images [n, ...], labels [n]), n >= 1.

        Raises:
            TypeError: something else, such as a `Dataset`, which has three splits.
            ValueError: no images, or another number of labels.
        """
        if isinstance(found, Dataset):
            raise TypeError(f"{name} must be one Split, got a Dataset: choose its .train, for one")
        if not isinstance(found, (tuple, list)) or len(found) != 2:
            raise TypeError(
                f"{name} must be a Split (images, labels), got {inputs.describe(found)}"
            )
        images, labels = found
        inputs.lengths(**{f"{name}.images": images, f"{name}.labels": labels})
        return found if isinstance(found, cls) else cls(images, labels)

    @recipes.traced
    def take(self, index: Tensor | slice | Sequence[int]) -> Split:
        """The examples at `index`: positions [k], a boolean mask [n] or a slice."""
        if not isinstance(index, slice):
            index = torch.as_tensor(index)
            if index.ndim != 1 or index.is_floating_point() or index.is_complex():
                raise TypeError(
                    f"index must be positions [k], a mask [n] or a slice, got "
                    f"{inputs.describe(index)}"
                )
            index = index if index.dtype == torch.bool else index.long()
        return Split(self.images[index], self.labels[index])

    @recipes.traced
    def to(self, device: str | torch.device) -> Split:
        """The same examples on `device` (the same tensors where they are there already)."""
        return Split(self.images.to(device), self.labels.to(device))


class Dataset(NamedTuple):
    """Train, validation and test splits. Choose on validation; read test once, at the end."""

    train: Split
    validation: Split
    test: Split
    name: str
    num_classes: int


def generator(seed: int) -> torch.Generator:
    """A CPU generator: randomness that does not depend on the device the data live on.

    seed: a whole number of at least 0.
    """
    return torch.Generator().manual_seed(inputs.seed("seed", seed))


def data_folder() -> Path:
    """Where downloads go: `$KDLIB_DATA`, else `~/.cache/kdlib`."""
    return Path(os.environ.get("KDLIB_DATA") or Path.home() / ".cache" / "kdlib")


def device_of(device: str | torch.device) -> torch.device:
    """`device` as a torch device that exists on this machine, or a ValueError."""
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device must be 'cpu', 'cuda' or 'mps', got {device!r}") from error
    usable = {
        "cpu": True,
        "cuda": torch.cuda.device_count() > (found.index or 0),
        "mps": torch.backends.mps.is_available(),
    }
    if not usable.get(found.type, False):
        raise ValueError(
            f"device must be one of this machine, got {device!r}: use 'cpu', or see what "
            "`python -m kdlib doctor` finds"
        )
    return found


@recipes.traced
def load(
    name: str = "mnist-5k",
    *,
    size: int | None = None,
    device: str | torch.device = "cpu",
    folder: str | Path | None = None,
    download: bool = True,
) -> Dataset:
    """Load a data set by name with its fixed train/validation/test split.

    `mnist-5k` is shipped (350/50/100 images per digit). `mnist`, `fashion-mnist`, `cifar10`
    and `cifar100` are downloaded once by torchvision, and their files are verified by checksums
    each time; a tenth of their training images, stratified, becomes the validation split.

    Args:
        name: one of `KNOWN`.
        size: side in pixels, at least 4, to which images are averaged down (or enlarged); None
            keeps it.
        device: where the tensors live.
        folder: where downloads are kept; default `data_folder()`.
        download: whether a missing set may be fetched.

    Raises:
        ValueError: unknown name or device, `size` below 4.
        FileNotFoundError: a set is not on disk and cannot be downloaded.
        RuntimeError: the shipped asset or a file on disk is not the published one; the message
            names the remedy.
    """
    device = device_of(device)
    size = None if size is None else inputs.whole("size", size, low=4)
    inputs.instance("download", download, bool)
    if inputs.choice("name", name, KNOWN) == "mnist-5k":
        images, labels = _read_asset()
        parts = _stratified(labels, (350, 50, 100))
        splits = [(images[part], labels[part]) for part in parts]
    else:
        splits = _read_torchvision(name, _where(folder), download)

    def tensors(images: np.ndarray, labels: np.ndarray) -> Split:
        x = torch.from_numpy(images).to(device).float().div_(255)
        if size is not None and size != x.shape[-1]:
            mode = "area" if size < x.shape[-1] else "bilinear"
            x = F.interpolate(x, size=size, mode=mode)
        return Split(x, torch.from_numpy(labels).to(device).long())

    train, validation, test = (tensors(*split) for split in splits)
    return Dataset(train, validation, test, name, int(train.labels.max()) + 1)


def on_disk(name: str, folder: str | Path | None = None) -> bool:
    """Whether `load(name)` works without a network: all files are there, and as published."""
    if inputs.choice("name", name, KNOWN) == "mnist-5k":
        return resources.files("kdlib").joinpath("assets", ASSET).is_file()
    try:
        _read_torchvision(name, _where(folder), download=False)
    except (FileNotFoundError, RuntimeError):
        return False
    return True


def _where(folder: str | Path | None) -> Path:
    return data_folder() if folder is None else Path(inputs.instance("folder", folder, (str, Path)))


def _read_asset() -> tuple[np.ndarray, np.ndarray]:
    file = resources.files("kdlib").joinpath("assets", ASSET)
    try:
        content = file.read_bytes()
    except OSError:
        content = b""
    if hashlib.sha256(content).hexdigest() != ASSET_SHA256:
        raise RuntimeError(
            f"the shipped data file {ASSET} is damaged or missing: restore it with "
            f"`git checkout -- kdlib/assets/{ASSET}`"
        )
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return arrays["images"][:, None], arrays["labels"].astype(np.int64)


def _read_torchvision(
    name: str, folder: Path, download: bool
) -> list[tuple[np.ndarray, np.ndarray]]:
    from torchvision import datasets

    family = getattr(datasets, TORCHVISION[name])
    parts = _read_idx if name in MD5 else _read_cifar
    (images, labels), test = parts(name, family, folder, download)
    held_out = int(np.bincount(labels).min()) // 10
    train, validation = _stratified(labels, (None, held_out))
    return [(images[train], labels[train]), (images[validation], labels[validation]), test]


def _read_cifar(name: str, family: Any, folder: Path, download: bool) -> list[tuple]:
    """Training and test set as (images [n, 3, 32, 32], labels [n]); torchvision verifies them."""
    with _fetching(name, folder, folder):
        parts = [family(folder, train=train, download=download) for train in (True, False)]
    return [
        (np.ascontiguousarray(part.data.transpose(0, 3, 1, 2)), np.asarray(part.targets, np.int64))
        for part in parts
    ]


def _read_idx(name: str, family: Any, folder: Path, download: bool) -> list[tuple]:
    """Training and test set as (images [n, 1, 28, 28], labels [n]) from the unpacked files.

    torchvision only fetches and unpacks them: it reads what lies there, whatever it is.
    """
    raw = folder / family.__name__ / "raw"
    files = [(raw / file, md5) for file, md5 in MD5[name].items()]
    if not all(file.exists() for file, _ in files):
        with _fetching(name, folder, raw):
            family(folder, download=download)
    arrays = []
    for file, md5 in files:
        content = _verified(name, file, md5)
        # The head: 0, 0, 8 for bytes, the number of axes; then their sizes in four bytes each.
        axes = content[3]
        sizes = np.frombuffer(content, ">u4", count=axes, offset=4)
        arrays.append(np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(sizes).copy())
    images, labels, test_images, test_labels = arrays
    return [
        (images[:, None], labels.astype(np.int64)),
        (test_images[:, None], test_labels.astype(np.int64)),
    ]


def _verified(name: str, file: Path, md5: str) -> bytes:
    content = file.read_bytes()
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
        raise RuntimeError(
            f"{file} is not the published file (it was cut, damaged or made by hand): delete it "
            f"and call data.load({name!r}) again, which unpacks or downloads it anew"
        )
    return content


@contextmanager
def _fetching(name: str, folder: Path, where: Path) -> Iterator[None]:
    """Turn torchvision's several errors about missing files into one that says what to do."""
    try:
        yield
    except Exception as error:  # torchvision raises URLError, RuntimeError or OSError
        raise FileNotFoundError(
            f"data set {name!r} is not complete in {folder} and could not be downloaded "
            f"({error}). Connect once and call data.load({name!r}) again, or copy torchvision's "
            f"original files from another machine into {where}. "
            "data.load('mnist-5k') needs no network."
        ) from error


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


@recipes.safe
def shift(images: Tensor, generator: torch.Generator, *, pixels: int = 1) -> Tensor:
    """Move every image [n, c, h, w] by its own random whole number of pixels, up to `pixels` >= 0
    in each direction, zero filled. An augmentation."""
    pixels = inputs.whole("pixels", pixels, low=0)
    n, _, h, w = _augmented(images, generator).shape
    dy, dx = torch.randint(0, 2 * pixels + 1, (2, n), generator=generator).to(images.device)
    # A view of all shifted images; indexing copies one of them for each image.
    shifted = F.pad(images, (pixels,) * 4).unfold(2, h, 1).unfold(3, w, 1)
    return shifted[torch.arange(n, device=images.device), :, dy, dx]


@recipes.safe
def flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image [n, c, h, w] left to right with probability one half (not for digits). An
    augmentation."""
    _augmented(images, generator)
    mirrored = torch.rand(len(images), generator=generator).to(images.device) < 0.5
    return torch.where(mirrored[:, None, None, None], images.flip(-1), images)


def mixup(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Blend each image [n, c, h, w] with another of the batch (Zhang et al., ICLR 2018, with
    lambda ~ U(0, 1)).

    Returns:
        The mixed images, lambda [n], and the position of each image's partner [n]. The mixed
        target is `lambda * y + (1 - lambda) * y[partner]`.
    """
    _augmented(images, generator)
    weight = torch.rand(len(images), generator=generator).to(images.device)
    partner = torch.randperm(len(images), generator=generator).to(images.device)
    share = weight.to(images.dtype)[:, None, None, None]
    return share * images + (1 - share) * images[partner], weight, partner


def _augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """The images, if both arguments of an augmentation are usable."""
    inputs.instance("generator", generator, torch.Generator, "data.generator(seed) makes one")
    return inputs.images("images", images)


@recipes.traced
def two_digits(split: Split, count: int, *, seed: int) -> Split:
    """`count` >= 1 composites of two random digits side by side: [count, 1, 14, 28], 100 classes.

    Each digit of `split` (a Split or a pair) is averaged down to half its side and brightened by
    1.3; the class is the two-digit number. Ten classes carry too little "dark knowledge" for some
    questions, a hundred do.
    """
    images, labels = Split.of(split)
    inputs.images("split.images", images, channels=(1,), unit=True)
    inputs.classes("split.labels", labels, 10, ndim=1)
    count = inputs.whole("count", count)
    digits = F.avg_pool2d(images, 2).mul(1.3).clamp_(0, 1)
    left, right = torch.randint(0, len(digits), (2, count), generator=generator(seed))
    left, right = left.to(digits.device), right.to(digits.device)
    return Split(torch.cat([digits[left], digits[right]], dim=3), 10 * labels[left] + labels[right])
