"""Checks of arguments, in one dialect: the name, what it must be, what it is, what to do.

Every check returns what it was given (numbers converted to Python's own), so that it can stand
where the value is used. A wrong type raises TypeError, a wrong value ValueError.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Collection, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor

Value = TypeVar("Value")


def number(
    name: str,
    value: Any,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    above: float = -math.inf,
    below: float = math.inf,
) -> float:
    """A finite number with low <= value <= high and above < value < below."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {describe(value)}")
    value = float(value)
    if not (math.isfinite(value) and low <= value <= high and above < value < below):
        raise ValueError(f"{name} must be {_range(low, high, above, below)}, got {value:g}")
    return value


def _range(low: float, high: float, above: float, below: float) -> str:
    limits = [
        f"of at least {low:g}" if low > -math.inf else "",
        f"above {above:g}" if above > -math.inf else "",
        f"at most {high:g}" if high < math.inf else "",
        f"below {below:g}" if below < math.inf else "",
    ]
    return " ".join(["a finite number", " and ".join(filter(None, limits))]).strip()


def whole(name: str, value: Any, *, low: int = 1, high: int | None = None) -> int:
    """A whole number with low <= value <= high; integers of numpy and torch count, 2.0 does not."""
    if isinstance(value, Tensor) and value.ndim == 0 and not value.is_floating_point():
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be a whole number, got {describe(value)}")
    value = int(value)
    if value < low or (high is not None and value > high):
        top = "" if high is None else f" and at most {high}"
        raise ValueError(f"{name} must be a whole number of at least {low}{top}, got {value}")
    return value


def wholes(**values: Any) -> tuple[int, ...]:
    """Several whole numbers of at least 1, by name."""
    return tuple(whole(name, value) for name, value in values.items())


def sizes(name: str, values: Any, *, least: int = 1) -> tuple[int, ...]:
    """A sequence of at least `least` whole numbers, each of at least 1."""
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise TypeError(f"{name} must be a sequence of whole numbers, got {describe(values)}")
    found = tuple(whole(f"{name}[{place}]", value) for place, value in enumerate(values))
    if len(found) < least:
        raise ValueError(f"{name} must hold at least {least} whole number(s), got {len(found)}")
    return found


def seed(name: str, value: Any) -> int:
    """A whole number from 0 to 2^63 - 1, as torch's generators take it."""
    return whole(name, value, low=0, high=2**63 - 1)


def instance(name: str, value: Any, kind: type | tuple[type, ...], hint: str = "") -> Any:
    """An object of the class `kind`, or of one of several; the hint, if any, ends the message."""
    if not isinstance(value, kind):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        wanted = " or ".join(one.__name__ for one in kinds)
        raise TypeError(f"{name} must be a {wanted}, got {describe(value)}{_after(hint)}")
    return value


def _after(hint: str) -> str:
    return f": {hint}" if hint else ""


def choice(name: str, value: Value, known: Collection[Value]) -> Value:
    """One of the `known` values; the message lists them."""
    if value not in known:
        listed = ", ".join(str(one) for one in known)
        raise ValueError(f"{name} must be one of {listed}; got {value!r}")
    return value


def lengths(**tensors: Tensor) -> None:
    """All tensors hold the same number of samples, at least one."""
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or not tensor.ndim:
            raise TypeError(f"{name} must be a tensor [n, ...], got {describe(tensor)}")
    found = {name: len(tensor) for name, tensor in tensors.items()}
    if min(found.values()) == 0:
        raise ValueError(f"{' and '.join(found)} must hold at least one sample, got none")
    if len(set(found.values())) > 1:
        listed = " and ".join(f"{count} in {name}" for name, count in found.items())
        raise ValueError(f"{' and '.join(found)} must hold the same samples, got {listed}")


def classes(
    name: str, found: Any, num_classes: int | None = None, *, ndim: int | None = None
) -> Tensor:
    """Whole class numbers from 0 to num_classes - 1 (None: any), at least one; `ndim` axes."""
    if (
        not isinstance(found, Tensor)
        or found.is_floating_point()
        or found.is_complex()
        or found.dtype == torch.bool
    ):
        raise TypeError(f"{name} must hold whole class numbers, got {describe(found)}")
    if not found.numel() or ndim not in (None, found.ndim):
        wanted = "" if ndim is None else f" in {ndim} axes"
        raise ValueError(
            f"{name} must hold at least one class number{wanted}, got a tensor of "
            f"shape {list(found.shape)}"
        )
    low, high = int(found.min()), int(found.max())
    if low < 0 or (num_classes is not None and high >= num_classes):
        top = "" if num_classes is None else num_classes - 1
        raise ValueError(f"{name} must lie in 0..{top}, got {low} to {high}")
    return found


def tensor(
    name: str,
    found: Any,
    shape: str = "[n, ...]",
    *,
    low: float = -math.inf,
    high: float = math.inf,
    finite: bool = True,
    hint: str = "",
) -> Tensor:
    """A floating-point tensor with at least one value, of the axes in `shape`, "..." for any more.

    Every value is finite (unless `finite` is False) with low <= value <= high. The hint, if any,
    ends the message about a wrong shape.
    """
    axes = shape.strip("[]").split(", ")
    if not isinstance(found, Tensor):
        raise TypeError(f"{name} must be a tensor {shape}, got {describe(found)}")
    if not found.is_floating_point():
        raise TypeError(
            f"{name} must be floating-point numbers, got {found.dtype}: convert them "
            "with .float(), bytes of an image with .float() / 255"
        )
    fits = found.ndim >= len(axes) - 1 if axes[-1] == "..." else found.ndim == len(axes)
    if not fits or not found.numel():
        raise ValueError(
            f"{name} must be {shape} with n >= 1, got {list(found.shape)}{_after(hint)}"
        )
    if finite or low > -math.inf or high < math.inf:
        least, most = float(found.detach().min()), float(found.detach().max())  # NaN shows in both
        if finite and not (math.isfinite(least) and math.isfinite(most)):
            raise ValueError(
                f"{name} must be finite, got NaN or infinity: check how they were made"
            )
        if not low <= least <= most <= high:
            raise ValueError(
                f"{name} must lie in [{low:g}, {high:g}], got {least:.3g} to {most:.3g}"
            )
    return found


def images(
    name: str,
    found: Any,
    *,
    channels: Iterable[int] | None = None,
    unit: bool = False,
    finite: bool = True,
    hint: str = "",
) -> Tensor:
    """Floating-point images [n, c, h, w], n >= 1, with one of `channels`; `unit`: in [0, 1]."""
    low, high = (0.0, 1.0) if unit else (-math.inf, math.inf)
    tensor(name, found, "[n, c, h, w]", low=low, high=high, finite=finite, hint=hint)
    allowed = None if channels is None else tuple(channels)
    if allowed is not None and found.shape[1] not in allowed:
        raise ValueError(
            f"{name} must be [n, c, h, w] with n >= 1 and c in {allowed}, got "
            f"{list(found.shape)}{_after(hint)}"
        )
    return found


def logits(name: str, found: Any, count: int) -> Tensor:
    """What the network `name` returned for `count` images: one tensor [count, classes]."""
    if not isinstance(found, Tensor) or found.ndim != 2 or found.shape[0] != count:
        raise TypeError(
            f"{name} must return logits [n, classes] for images [n, ...], got "
            f"{describe(found)} for {count} of them: wrap it in a module that returns the logits "
            f"alone"
        )
    return found


def float64(found: Tensor) -> Tensor:
    """The tensor in double precision, on the CPU where its device has none (Apple's GPUs)."""
    return (found.cpu() if found.device.type == "mps" else found).double()


def describe(value: Any) -> str:
    """A value for an error message: its type, and its shape or its (shortened) text."""
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor of shape {list(value.shape)}"
    if isinstance(value, (tuple, list, dict)) and any(
        isinstance(part, Tensor) for part in (value.values() if isinstance(value, dict) else value)
    ):
        return f"a {type(value).__name__} of {len(value)}"  # a tensor's text is long
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
