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
    """A whole number with low <= value <= high; numpy's and torch's integers count, 2.0 does not."""
    if isinstance(value, Tensor) and value.ndim == 0 and not value.is_floating_point():
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be a whole number, got {describe(value)}")
    value = int(value)
    if value < low or (high is not None and value > high):
        top = "" if high is None else f" and at most {high}"
        raise ValueError(f"{name} must be a whole number of at least {low}{top}, got {value}")
    return value


def choice(name: str, value: Value, known: Collection[Value]) -> Value:
    """One of the `known` values; the message lists them."""
    if value not in known:
        listed = ", ".join(str(one) for one in known)
        raise ValueError(f"{name} must be one of {listed}; got {value!r}")
    return value


def lengths(**tensors: Tensor) -> None:
    """All tensors hold the same number of samples, at least one."""
    found = {name: len(tensor) for name, tensor in tensors.items()}
    if min(found.values()) == 0:
        raise ValueError(f"{' and '.join(found)} must hold at least one sample, got none")
    if len(set(found.values())) > 1:
        listed = " and ".join(f"{count} in {name}" for name, count in found.items())
        raise ValueError(f"{' and '.join(found)} must hold the same samples, got {listed}")


def classes(name: str, found: Tensor, num_classes: int) -> None:
    """Whole class numbers from 0 to num_classes - 1."""
    if not isinstance(found, Tensor) or found.is_floating_point() or found.is_complex():
        raise TypeError(f"{name} must hold whole class numbers, got {describe(found)}")
    low, high = int(found.min()), int(found.max())
    if low < 0 or high >= num_classes:
        raise ValueError(f"{name} must lie in 0..{num_classes - 1}, got {low} to {high}")


def images(
    name: str,
    found: Any,
    *,
    channels: Iterable[int] | None = None,
    unit: bool = False,
    finite: bool = True,
) -> Tensor:
    """Floating-point images [n, c, h, w], n >= 1, with one of `channels`; `unit`: in [0, 1]."""
    if not isinstance(found, Tensor):
        raise TypeError(f"{name} must be a tensor [n, c, h, w], got {describe(found)}")
    if not found.is_floating_point():
        raise TypeError(f"{name} must be floating-point numbers, got {found.dtype}: convert bytes "
                        "with .float() / 255")
    wanted = "c" if channels is None else f"c in {tuple(channels)}"
    if found.ndim != 4 or not len(found) or (channels is not None
                                            and found.shape[1] not in tuple(channels)):
        raise ValueError(f"{name} must be [n, c, h, w] with n >= 1 and {wanted}, got "
                         f"{list(found.shape)}")
    if finite and not bool(torch.isfinite(found).all()):
        raise ValueError(f"{name} must be finite, got NaN or infinity: check how they were made")
    if unit and not 0 <= float(found.min()) <= float(found.max()) <= 1:
        raise ValueError(f"{name} must lie in [0, 1], got {float(found.min()):.3g} to "
                         f"{float(found.max()):.3g}")
    return found


def float64(found: Tensor) -> Tensor:
    """The tensor in double precision, on the CPU where its device has none (Apple's GPUs)."""
    return (found.cpu() if found.device.type == "mps" else found).double()


def describe(value: Any) -> str:
    """A value for an error message: its type, and its shape or its (shortened) text."""
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor of shape {list(value.shape)}"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
