"""Data sets by name or from a folder of images, their fixed splits, and augmentations of batches.

Every data set becomes three `Split`s of tensors on one device. Nothing here needs worker
processes: the sets are small enough to index as tensors, and augmentations (see `augment`) act on a
batch at a time. `mnist-5k` ships with the package; the other names come through torchvision, one's
own images from `folders`. Bad arguments raise ValueError, of another type TypeError, with their
name.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Sequence
from functools import partial
from importlib import resources
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kdlib import folders, inputs, recipes
from kdlib.augment import Augment, chain, crop, flip, jitter, mixup, shift, standard

__all__ = [
    "KNOWN",
    "MD5",
    "TORCHVISION",
    "Augment",
    "Dataset",
    "Split",
    "chain",
    "crop",
    "data_folder",
    "device_of",
    "flip",
    "generator",
    "jitter",
    "load",
    "mixup",
    "on_disk",
    "own_images",
    "published",
    "shift",
    "standard",
    "two_digits",
]

# Records of earlier versions of the kit call the augmentations by these names.
recipes.SAFE.update(f"{__name__}:{one.__name__}" for one in (shift, flip))

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
    """Train, validation and test splits. Choose on validation; read test once, at the end.

    `classes` holds the name of each label, `num_classes` of them.
    """

    train: Split
    validation: Split
    test: Split
    name: str
    num_classes: int
    classes: tuple[str, ...] = ()


def generator(seed: int) -> torch.Generator:
    """A CPU generator: randomness that does not depend on the device the data live on.

    seed: a whole number of at least 0.
    """
    return torch.Generator().manual_seed(inputs.seed("seed", seed))


def data_folder() -> Path:
    """Where downloads and decoded images go: `$KDLIB_DATA`, else `~/.cache/kdlib`."""
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


def load(
    name: str | Path = "mnist-5k",
    *,
    size: int | None = None,
    device: str | torch.device = "cpu",
    folder: str | Path | None = None,
    download: bool = True,
) -> Dataset:
    """Load a data set by name, or a folder of one's own images, with a fixed split.

    `mnist-5k` is shipped (350/50/100 images per digit). `mnist`, `fashion-mnist`, `cifar10`
    and `cifar100` are downloaded once by torchvision, and their files are verified by checksums
    each time; a tenth of their training images, stratified, becomes the validation split.

    A folder holds a sub-folder for each class; labels follow the sorted names. Of each class 70 %
    become training, 10 % validation and 20 % test images, the shares of `mnist-5k`, drawn by a
    fixed seed. If `train` and `test` stand above the classes, and perhaps `validation`, these are
    the splits; without the third, a tenth of each class of `train` becomes it. Images (PNG, JPEG,
    WebP, BMP, GIF, TIFF) are decoded once, and their bytes kept below `data_folder()`; see
    `folders.read`. Files that cannot be read are left out, and a warning names them. A run on a
    folder below the working folder can be repeated from its record, as long as its files are the
    same.

    All splits live on the device as float32: 4 n c h w bytes, for CIFAR 737 MB. Meanwhile the bytes
    of one split, a quarter of its size, lie beside it.

    Args:
        name: one of `KNOWN`, or the path of a folder. To a folder that is called like a known set
            belongs "./".
        size: side in pixels, at least 4. Known sets are averaged down to it (or enlarged), None
            keeps theirs; of one's own images the shorter side becomes it, None makes it 32.
        device: where the tensors live.
        folder: where downloads and decoded images are kept; default `data_folder()`.
        download: whether a missing set may be fetched.

    Raises:
        ValueError: unknown name or device, `size` below 4, a folder that is no set of images.
        FileNotFoundError: a known set is not on disk and cannot be downloaded.
        RuntimeError: the shipped asset or a file on disk is not the published one; the message
            names the remedy.
    """
    inputs.instance("name", name, (str, Path))
    inputs.instance("download", download, bool)
    if isinstance(name, str) and name in KNOWN:
        return published(name, size=size, device=device, folder=folder, download=download)
    size, target = _options(32 if size is None else size, device)
    place = Path(name).expanduser()
    if not (name and place.is_dir()):  # an empty text would be the working folder
        problem = "there is no such folder"
        if place.is_file():
            problem = "that is a file: unpack it, and give the folder above those of the classes"
        raise ValueError(
            f"name must be one of {', '.join(KNOWN)}, or a folder of images; got {str(name)!r}: "
            f"{problem}"
        )
    dataset, content = _from_folder(place, size, target, folder)
    try:
        options = {"content": content, "size": size, "device": device}
        origin = recipes.recipe_of_call(own_images, _below_here(place), **options)
        recipes.remember(dataset, origin)
    except recipes.Unrepeatable as reason:
        recipes.remember(dataset, reason)
    return dataset


@recipes.traced
def published(
    name: str,
    *,
    size: int | None = None,
    device: str | torch.device = "cpu",
    folder: str | Path | None = None,
    download: bool = True,
) -> Dataset:
    """A set of `KNOWN` as `load` gives it. A record calls this: `load` reads any folder."""
    target = device_of(device)
    size = None if size is None else inputs.whole("size", size, low=4)
    inputs.instance("download", download, bool)
    classes = tuple("0123456789")
    if inputs.choice("name", name, KNOWN) == "mnist-5k":
        images, labels = _read_asset()
        parts = _stratified(labels, lambda n: (350, 50, 100))
        splits = [(images[part], labels[part]) for part in parts]
    else:
        splits, classes = _read_torchvision(name, _where(folder), download)

    def tensors(images: np.ndarray, labels: np.ndarray) -> Split:
        split = _split(images, labels, target)
        x = split.images
        if size is not None and size != x.shape[-1]:
            mode = "area" if size < x.shape[-1] else "bilinear"
            x = F.interpolate(x, size=size, mode=mode)
        return Split(x, split.labels)

    train, validation, test = (tensors(*split) for split in splits)
    return Dataset(train, validation, test, name, len(classes), classes)


@recipes.safe
def own_images(
    place: str, *, content: str, size: int = 32, device: str | torch.device = "cpu"
) -> Dataset:
    """A folder of images below the working folder as `load` gives it, if its files are the same.

    A record of a run on one's own images calls this. It may not name a place elsewhere, nor, on
    Windows, another machine.

    Args:
        place: the path from the working folder on, with "/".
        content: digest of all paths and files below it, as `load` found it.

    Raises:
        ValueError: `place` is not below the working folder, is no folder of images, or holds
            others than `content` says.
    """
    size, target = _options(size, device)
    inputs.instance("place", place, str)
    inputs.instance("content", content, str)
    elsewhere = PurePosixPath(place).is_absolute() or PureWindowsPath(place).anchor
    if elsewhere or ".." in PureWindowsPath(place).parts or not Path(place).is_dir():
        raise ValueError(
            f"place must be a folder below the working folder, {Path.cwd()}, got {place!r}: put "
            "the images there, or change to the folder in which the run was made"
        )
    dataset, found = _from_folder(Path(place), size, target, None)
    if found != content:
        raise ValueError(
            f"content of {place!r} must be {content[:12]}..., got {found[:12]}...: its images are "
            "not those of the record; restore them"
        )
    options = {"content": content, "size": size, "device": device}
    recipes.remember(dataset, recipes.recipe_of_call(own_images, place, **options))
    return dataset


def _options(size: Any, device: Any) -> tuple[int, torch.device]:
    return inputs.whole("size", size, low=4), device_of(device)


def _split(images: np.ndarray, labels: np.ndarray, device: torch.device) -> Split:
    """Bytes go to the device, and become numbers in [0, 1] there."""
    x = torch.from_numpy(images).to(device).float().div_(255)
    return Split(x, torch.from_numpy(labels).to(device).long())


def _from_folder(
    place: Path, size: int, device: torch.device, cache: str | Path | None
) -> tuple[Dataset, str]:
    """The data set that a folder of images makes, and the digest of its files."""
    found = folders.read(place, size, _where(cache))
    positions = _parts_of(found, place)
    train, validation, test = (
        _split(found.images[part], found.labels[part], device) for part in positions
    )
    name = place.resolve().name
    dataset = Dataset(train, validation, test, name, len(found.classes), found.classes)
    return dataset, found.content


def _parts_of(found: folders.Images, place: Path) -> list[np.ndarray]:
    """Positions of the three splits, shuffled; each holds every class."""
    own = {name: np.flatnonzero(found.part == number) for number, name in enumerate(found.parts)}
    needs = {name: 1 for name in own}
    if folders.WHOLE in own:
        needs = {folders.WHOLE: 3}
    elif "validation" not in own:
        needs["train"] = 2
    few = [
        f"{name!r} has {count}" + (f" in {part}" if part != folders.WHOLE else "")
        for part, rows in own.items()
        for name, count in zip(
            found.classes, np.bincount(found.labels[rows], minlength=len(found.classes))
        )
        if count < needs[part]
    ]
    if few:
        least = ", ".join(
            f"{count}" + (f" in {part}" if part != folders.WHOLE else "")
            for part, count in needs.items()
        )
        raise ValueError(
            f"name must be a folder with enough images of each class for the splits (at least "
            f"{least}); in {str(place)!r} {', '.join(few[:10])}{', ...' * (len(few) > 10)}: add "
            "images, or take the class away"
        )

    def drawn(part: str, counts: Callable[[int], Sequence[int]]) -> list[np.ndarray]:
        return [own[part][chosen] for chosen in _stratified(found.labels[own[part]], counts)]

    if folders.WHOLE in own:
        return drawn(folders.WHOLE, _shares)
    if "validation" not in own:
        return [*drawn("train", _tenth), *drawn("test", lambda n: (n,))]
    return [drawn(part, lambda n: (n,))[0] for part in ("train", "validation", "test")]


def _shares(count: int) -> tuple[int, int, int]:
    """70 % of the images of a class, 10 % and 20 %; at least one each of three."""
    validation, test = max(1, round(0.1 * count)), max(1, round(0.2 * count))
    return count - validation - test, validation, test


def _tenth(count: int) -> tuple[int, int]:
    """90 % of the training images of a class and 10 %, at least one of two."""
    return count - max(1, count // 10), max(1, count // 10)


def _below_here(place: Path) -> str:
    """The path from the working folder on, with "/"; Unrepeatable if it leads out of there."""
    here = Path.cwd()
    for absolute in (Path(os.path.abspath(place)), place.resolve()):
        if absolute.is_relative_to(here):
            return absolute.relative_to(here).as_posix()
    raise recipes.Unrepeatable(
        "it was read from a folder outside of the working folder: a record names no other places "
        "of the machine, so put the images below the working folder"
    )


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
) -> tuple[list[tuple[np.ndarray, np.ndarray]], tuple[str, ...]]:
    """The three splits as (images uint8 [n, c, h, w], labels [n]), and the names of the classes."""
    from torchvision import datasets

    family = getattr(datasets, TORCHVISION[name])
    parts = _read_idx if name in MD5 else _read_cifar
    (images, labels), test, classes = parts(name, family, folder, download)
    held_out = int(np.bincount(labels).min()) // 10
    train, validation = _stratified(labels, lambda n: (n - held_out, held_out))
    splits = [(images[train], labels[train]), (images[validation], labels[validation]), test]
    return splits, classes


def _read_cifar(name: str, family: Any, folder: Path, download: bool) -> tuple:
    """Training and test set as (images [n, 3, 32, 32], labels [n]), and the names of the classes.

    torchvision unpickles the files, after they were found to be the published ones.
    """
    from torchvision.datasets.utils import download_and_extract_archive

    listed = [*family.train_list, *family.test_list, (family.meta["filename"], family.meta["md5"])]
    files = [(folder / family.base_folder / file, md5) for file, md5 in listed]
    archive = folder / family.filename
    unpack = partial(  # `family(download=True)` would not miss a file of class names
        download_and_extract_archive, family.url, folder, None, family.filename, family.tgz_md5
    )
    _fetch(name, unpack if download else None, folder, files, [(archive, family.tgz_md5)])
    for file, md5 in files:
        _verified(name, file, md5)
    parts = [family(folder, train=train) for train in (True, False)]
    train, test = (
        (np.ascontiguousarray(part.data.transpose(0, 3, 1, 2)), np.asarray(part.targets, np.int64))
        for part in parts
    )
    return train, test, tuple(map(str, parts[0].classes))


def _read_idx(name: str, family: Any, folder: Path, download: bool) -> tuple:
    """Training and test set as (images [n, 1, 28, 28], labels [n]) from the unpacked files, and the
    names of the classes.

    torchvision only fetches and unpacks them: it reads what lies there, whatever it is.
    """
    raw = folder / family.__name__ / "raw"
    files = [(raw / file, md5) for file, md5 in MD5[name].items()]
    archives = [(raw / file, md5) for file, md5 in family.resources]
    _fetch(
        name, partial(family, folder, download=True) if download else None, folder, files, archives
    )
    arrays = []
    for file, md5 in files:
        content = _verified(name, file, md5)
        # The head: 0, 0, 8 for bytes, the number of axes; then their sizes in four bytes each.
        axes = content[3]
        sizes = np.frombuffer(content, ">u4", count=axes, offset=4)
        arrays.append(np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(sizes).copy())
    images, labels, test_images, test_labels = arrays
    return (
        (images[:, None], labels.astype(np.int64)),
        (test_images[:, None], test_labels.astype(np.int64)),
        tuple("0123456789") if name == "mnist" else tuple(family.classes),
    )


def _verified(name: str, file: Path, md5: str) -> bytes:
    content = file.read_bytes()
    if _md5(content) != md5:
        raise RuntimeError(
            f"{file} is not the published file (it was cut, damaged or made by hand): delete it "
            f"and call data.load({name!r}) again, which unpacks or downloads it anew"
        )
    return content


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _fetch(
    name: str,
    fetch: Callable[[], Any] | None,
    folder: Path,
    files: list[tuple[Path, str]],
    archives: list[tuple[Path, str]],
) -> None:
    """Have torchvision download and unpack what is missing (fetch None: not), and turn its several
    errors into one that says what to do. Files and archives come with their MD5 sums."""
    if all(file.exists() for file, _ in files):
        return
    failure, reason = None, "and is not to be downloaded"
    if fetch is not None:
        try:
            fetch()
            return
        except Exception as error:  # torchvision raises URLError, RuntimeError, OSError, TarError
            failure, reason = error, f"and could not be downloaded or unpacked ({error})"
    absent = ", ".join(file.name for file, _ in files if not file.exists())
    damaged = "".join(
        f"{archive} is not the published file (it was cut or damaged): delete it. "
        for archive, md5 in archives
        if archive.exists() and _md5(archive.read_bytes()) != md5
    )
    raise FileNotFoundError(
        f"data set {name!r} is not complete in {folder} (missing: {absent or 'nothing now'}), "
        f"{reason}. {damaged}Connect once and call data.load({name!r}) again, or copy "
        f"torchvision's original files from another machine into {archives[0][0].parent}. "
        "data.load('mnist-5k') needs no network."
    ) from failure


def _stratified(labels: np.ndarray, counts: Callable[[int], Sequence[int]]) -> list[np.ndarray]:
    """Disjoint, shuffled positions; a class of n examples gives counts(n) of them to the parts."""
    rng = np.random.default_rng(0)  # fixed: the split is part of the data set
    found = []
    for label in np.unique(labels):
        positions = rng.permutation(np.flatnonzero(labels == label))
        sizes = counts(len(positions))
        found.append(np.split(positions, np.cumsum(sizes))[: len(sizes)])
    return [rng.permutation(np.concatenate(part)) for part in zip(*found)]


@recipes.traced
def two_digits(split: Split, count: int, *, seed: int, shift: int | None = None) -> Split:
    """`count` >= 1 composites of two random digits side by side: [count, 1, 14, 28], 100 classes.

    Each digit of `split` (a Split or a pair) is averaged down to half its side and brightened by
    1.3; the class is the two-digit number. Ten classes carry too little "dark knowledge" for some
    questions, a hundred do.

    shift: makes the images square, [count, 1, 28, 28], for networks on patches; each digit then
        stands up to `shift` pixels, at most a quarter of the side, above or below the middle.
    """
    images, labels = Split.of(split)
    inputs.images("split.images", images, channels=(1,), unit=True)
    inputs.classes("split.labels", labels, 10, ndim=1)
    count = inputs.whole("count", count)
    digits = F.avg_pool2d(images, 2).mul(1.3).clamp_(0, 1)
    random = generator(seed)
    left, right = torch.randint(0, len(digits), (2, count), generator=random).to(digits.device)
    halves = digits[left], digits[right]
    if shift is not None:
        high = inputs.whole("shift", shift, low=0, high=digits.shape[2] // 2)
        drops = torch.randint(-high, high + 1, (2, count), generator=random).to(digits.device)
        halves = _lowered(halves[0], drops[0]), _lowered(halves[1], drops[1])
    return Split(torch.cat(halves, dim=3), 10 * labels[left] + labels[right])


def _lowered(digits: Tensor, drop: Tensor) -> Tensor:
    """Digits [n, 1, h, w] on canvases [n, 1, 2 h, w], `drop` [n] pixels below the middle."""
    h, w = digits.shape[2:]
    rows = torch.arange(2 * h, device=digits.device) - h // 2 - drop[:, None]  # of the digit
    inside = (rows >= 0) & (rows < h)
    picked = rows.clamp(0, h - 1)[:, None, :, None].expand(-1, 1, -1, w)
    return digits.gather(2, picked) * inside[:, None, :, None]
