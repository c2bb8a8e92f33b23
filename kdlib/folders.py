"""One's own images: a folder with a sub-folder for each class, decoded once and kept as bytes.

The folder holds the classes, or `train`, `validation` (`val`, `valid`) and `test` above them. Names
that begin with a dot are passed over; any other file in a class is an image, or is listed as left
out. Errors name the argument `name`, by which `data.load` is given the folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from kdlib.identity import digest

# Only these of Pillow's readers: some others start programs.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
SPLITS = {  # folder names, in lower case
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
}
WHOLE = "all"  # the part of a folder without splits

_VERSION = 1  # of the cache file, and of how images are decoded: another one decodes again
_LISTED = 20  # left-out files that a warning names


class Images(NamedTuple):
    """The images of a folder, in the order of their paths."""

    images: np.ndarray  # uint8 [n, c, size, size]; c is 1 if all are grey, else 3
    labels: np.ndarray  # int64 [n], positions in `classes`
    part: np.ndarray  # int64 [n], positions in `parts`
    parts: tuple[str, ...]  # (WHOLE,), or train, perhaps validation, and test
    classes: tuple[str, ...]  # names of the class folders, sorted
    content: str  # SHA-256 of the paths below the folder and of the files themselves
    left_out: tuple[tuple[str, str], ...]  # paths below the folder, each with the reason


class _Entry(NamedTuple):
    """A file that should be an image."""

    place: str  # below the folder, with "/"
    part: int
    label: int


def read(folder: Path, size: int, cache: Path) -> Images:
    """Decode all images of `folder`, or take them from the file in `cache` that an earlier call
    left there; files that are no images are left out, and a warning names them.

    Decoded again is a folder in which a path, a size or a time of change differs. The cache file
    is a plain .npz; one that was damaged is made anew.

    Args:
        folder: exists; see the module for what it holds.
        size: side of the result in pixels. The shorter side is resized to it, smoothed where it
            shrinks, and the centre cropped. Transparent pixels are laid on white; of an animation,
            the first image counts.
        cache: a folder; made if need be. Where it cannot be written, a warning says so.

    Raises:
        ValueError: fewer than two classes, no images, or splits that are not complete.
    """
    entries, parts, classes, loose = _entries(folder)
    key = _key(folder, size, entries)
    name = digest(str(folder.resolve()))[:12]
    file = cache / "images" / f"{folder.resolve().name[:40]}-{name}-{size}.npz"
    found = _kept(file, key)
    if found is None:
        found = _decoded(folder, size, entries, parts, classes)
        try:
            _keep(found, key, file)
        except OSError as error:
            warnings.warn(
                f"the decoded images of {folder} could not be kept in {file.parent} ({error}): "
                "they are decoded in every process; set KDLIB_DATA to a folder that can be written",
                stacklevel=4,
            )
    outside = tuple((place, "lies in the folder of no class") for place in loose)
    found = found._replace(left_out=(*outside, *found.left_out))
    if found.left_out:
        shown = "\n".join(f"  {place}: {reason}" for place, reason in found.left_out[:_LISTED])
        more = len(found.left_out) - _LISTED
        shown += f"\n  and {more} more" if more > 0 else ""
        warnings.warn(
            f"files left out of {folder}: {len(found.left_out)}; convert them to PNG or JPEG, or "
            f"delete them:\n{shown}",
            stacklevel=4,
        )
    if not len(found.images):
        raise ValueError(
            f"name must be a folder with images, got {str(folder)!r}, of whose files none can be "
            f"read; {found.left_out[0][0]}: {found.left_out[0][1]}"
        )
    return found


# What lies in the folder


def _entries(
    folder: Path,
) -> tuple[list[_Entry], tuple[str, ...], tuple[str, ...], list[str]]:
    """(files of the classes, parts, classes, image files outside of all classes)."""
    below = _folders(folder)
    split = {name: SPLITS[name.lower()] for name in below if name.lower() in SPLITS}
    if not split:
        tops = {WHOLE: folder}
    else:
        _check_splits(folder, below, split)
        places = {part: folder / name for name, part in split.items()}
        tops = {part: places[part] for part in ("train", "validation", "test") if part in places}
    classes = tuple(sorted({name for top in tops.values() for name in _folders(top)}))
    loose = [
        path.relative_to(folder).as_posix()
        for top in dict.fromkeys((folder, *tops.values()))
        for path in sorted(top.iterdir())
        if path.is_file() and _suffix_of_image(path)
    ]
    if len(classes) < 2:
        raise ValueError(
            "name must be a folder with a sub-folder of images for each of at least two classes, "
            f"got {str(folder)!r} with {f'only {classes[0]!r}' if classes else 'none'}: "
            + ("put the images of each class into a folder of its own" if loose else "")
            + ("" if loose else "give the folder that lies directly above those of the classes")
        )
    entries = [
        _Entry(path.relative_to(folder).as_posix(), part, label)
        for part, top in enumerate(tops.values())
        for label, name in enumerate(classes)
        for path in _files(top / name, set())
    ]
    if not entries:
        raise ValueError(
            f"name must be a folder with images, got {str(folder)!r}, whose {len(classes)} "
            "sub-folders hold no file: copy the images of each class into its folder"
        )
    return sorted(entries), tuple(tops), classes, loose


def _check_splits(folder: Path, below: list[str], split: dict[str, str]) -> None:
    """Folders named after splits are two or three of them, the test set included, and no others."""
    others = [name for name in below if name not in split]
    twice = sorted({part for part in split.values() if list(split.values()).count(part) > 1})
    problem, advice = "", ""
    if others:
        problem = f"the splits {', '.join(split)} beside {', '.join(others[:5])}"
        advice = "move the other folders away, or into each split if they are classes"
    elif twice:
        problem = f"two folders for {' and '.join(twice)}"
        advice = "join them"
    elif not {"train", "test"} <= set(split.values()):
        problem = f"only {' and '.join(split)}"
        advice = "train and test are needed; or put all images into class folders without splits"
        if "test" not in split.values() and len(split) == 2:
            advice = "rename the second to test, and the validation set will be split off train"
    if problem:
        raise ValueError(
            f"name must be a folder of classes, or of splits, got {str(folder)!r} with {problem}: "
            f"{advice}"
        )


def _folders(place: Path) -> list[str]:
    """Names of the folders in `place`, sorted; not the hidden ones, nor what macOS packs along."""
    return sorted(
        path.name
        for path in place.iterdir()
        if path.is_dir() and not path.name.startswith((".", "__MACOSX"))
    )


def _files(place: Path, seen: set[str]) -> Iterator[Path]:
    """All files at any depth; links are followed, and a folder that is met again is left."""
    real = os.path.realpath(place)
    if real in seen or not place.is_dir():
        return
    seen.add(real)
    for path in sorted(place.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _files(path, seen)
        else:
            yield path


def _suffix_of_image(path: Path) -> bool:
    return Image.registered_extensions().get(path.suffix.lower()) in FORMATS


def _key(folder: Path, size: int, entries: list[_Entry]) -> str:
    """What a cache file must agree with: all paths, sizes and times, and the options."""
    seen = []
    for entry in entries:
        try:
            status = (folder / entry.place).stat()
            seen.append((*entry, status.st_size, status.st_mtime_ns))
        except OSError:  # a broken link; decoding says so
            seen.append((*entry, -1, -1))
    return digest(json.dumps([_VERSION, size, seen]))


# Decoding


def decode(stream: BinaryIO, size: int) -> np.ndarray:
    """An image file as uint8 [3, size, size], upright and on white; see `read`.

    Raises:
        Exception: of any kind, as the decoders have it, if this is no readable image.
    """
    with Image.open(stream, formats=FORMATS) as image:
        image.draft(None, (2 * size, 2 * size))  # a large JPEG is decoded at a part of its size
        upright = _eight_bit(ImageOps.exif_transpose(image))
        side = min(upright.size)
        left, top = (upright.width - side) / 2, (upright.height - side) / 2
        box = (left, top, left + side, top + side)
        square = upright.resize((size, size), Image.Resampling.BILINEAR, box=box)
        if square.mode == "RGBA":
            white = Image.new("RGBA", square.size, "white")
            square = Image.alpha_composite(white, square)
        return np.asarray(square.convert("RGB")).transpose(2, 0, 1)


def _eight_bit(image: Image.Image) -> Image.Image:
    """The image as RGB, or as RGBA if pixels may be transparent."""
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image)
        if image.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise ValueError("its numbers have more than 16 bits")
        image = Image.fromarray(((values.astype(np.int64) + 128) // 257).astype(np.uint8))
    transparent = "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBA", "RGBa")
    return image.convert("RGBA" if transparent else "RGB")


def _decoded(
    folder: Path,
    size: int,
    entries: list[_Entry],
    parts: tuple[str, ...],
    classes: tuple[str, ...],
) -> Images:
    images = np.empty((len(entries), 3, size, size), np.uint8)

    def one(row: int) -> tuple[str, bool, str]:
        """(SHA-256 of the file, whether it is in colour, why it is left out) of one image."""
        try:
            with open(folder / entries[row].place, "rb") as stream:
                images[row] = decode(stream, size)
                stream.seek(0)
                found = hashlib.file_digest(stream, "sha256").hexdigest()
        except Exception as error:  # on a broken file a decoder raises anything
            return "", False, _reason(error)
        return found, bool((images[row, 0] != images[row, 1:]).any()), ""

    results = []
    hidden = os.environ.get("KDLIB_PROGRESS") == "0"  # None: shown in a terminal only
    # Threads: Pillow decodes and resizes without Python's lock.
    with (
        ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool,
        tqdm(
            total=len(entries), desc="decoding images", leave=False, disable=hidden or None
        ) as bar,
    ):
        for result in pool.map(one, range(len(entries))):
            results.append(result)
            bar.update()
    usable = np.array([not reason for *_, reason in results])
    kept = [entry for entry, (*_, reason) in zip(entries, results) if not reason]
    left_out = [(entry.place, result[2]) for entry, result in zip(entries, results) if result[2]]
    if not usable.all():
        images = images[usable]
    if not any(coloured for _, coloured, _ in results):
        images = images[:, :1].copy()
    sums = [(entry.place, result[0]) for entry, result in zip(entries, results) if not result[2]]
    return Images(
        images,
        np.array([entry.label for entry in kept], np.int64),
        np.array([entry.part for entry in kept], np.int64),
        parts,
        classes,
        digest(json.dumps(sums)),
        tuple(left_out),
    )


def _reason(error: Exception) -> str:
    """Why a file cannot be read, in a few words."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "no image of a known format"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).partition("\n")[0][:100] or type(error).__name__


# The cache file


def _keep(found: Images, key: str, file: Path) -> None:
    """Write the cache file so that a reader finds all of it or none.

    The arrays go straight to the disk: `engine.files.write_atomically`, which stands above this
    module, would first need a copy of all images in memory.
    """
    head = found._asdict()
    arrays = {name: head.pop(name) for name in ("images", "labels", "part")}
    head["sum"] = _sum(key, head, arrays)
    arrays["head"] = np.frombuffer(json.dumps(head).encode(), np.uint8)
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    try:
        with open(temporary, "xb") as stream:
            np.savez(stream, **arrays)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _kept(file: Path, key: str) -> Images | None:
    """The content of a cache file; None if there is none with this key, or it is damaged."""
    try:
        with np.load(file, allow_pickle=False) as stored:
            head = json.loads(stored["head"].tobytes())
            arrays = {name: stored[name] for name in ("images", "labels", "part")}
        if head.pop("sum") != _sum(key, head, arrays):
            return None
        return Images(
            **arrays,
            parts=tuple(head["parts"]),
            classes=tuple(head["classes"]),
            content=head["content"],
            left_out=tuple((place, reason) for place, reason in head["left_out"]),
        )
    except Exception:  # absent, cut or damaged in any way: the images are decoded again
        return None


def _sum(key: str, head: dict, arrays: dict[str, np.ndarray]) -> str:
    text = json.dumps(head, sort_keys=True)
    return digest(key, text, *(arrays[name] for name in sorted(arrays)))
