"""Instant checks for the exercises: `check("2.1", answer)` says one line and never raises.

The line begins with "[to do]" while the exercise is untouched, "correct:", or "not yet:" with what
to look at. Inputs are fixed, so the line is the same on every machine. The checks themselves are in
`kdlib/exercises/`, a module for each notebook. To add one, write a function that takes the answer,
returns None if it is right or else a message, and decorate it with `exercise`: the first line of
its docstring becomes the title. An answer is a value or the student's function.
"""

from __future__ import annotations

import functools
import importlib
import numbers
import pkgutil
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdlib.engine.console import say

STATES = {"correct:": "correct", "not yet:": "not yet", "[to do]": "to do"}  # by a line's beginning

_REGISTERED: dict[str, tuple[str, Callable[[Any], str | None]]] = {}


class Untouched(Exception):
    """The student's function gave no answer yet."""


def exercise(name: str) -> Callable[[Callable], Callable]:
    """Register the decorated function as the check of the exercise `name`."""

    def register(function: Callable[[Any], str | None]) -> Callable[[Any], str | None]:
        if name in _REGISTERED:
            raise ValueError(f"exercise {name} is registered twice")
        title = (function.__doc__ or name).strip().splitlines()[0].rstrip(".")
        _REGISTERED[name] = title, function
        return function

    return register


def exercises() -> dict[str, tuple[str, Callable[[Any], str | None]]]:
    """{number: (title, check)} of all exercises."""
    folder = importlib.import_module("kdlib.exercises")  # its modules import this one
    for module in pkgutil.iter_modules(folder.__path__):
        importlib.import_module(f"{folder.__name__}.{module.name}")
    return _REGISTERED


def check(name: str, answer: Any) -> None:
    """Say whether `answer` solves the exercise `name`.

    Args:
        name: the number of the exercise, as "2.1".
        answer: a value or a function; None, `...`, and a function that returns one of them or
            raises NotImplementedError count as untouched.
    """
    line = verdict(name, answer)
    state = next(state for beginning, state in STATES.items() if line.startswith(beginning))
    say(line, check={"name": str(name), "state": state, "line": line})


def verdict(name: str, answer: Any) -> str:
    """The line that `check` says."""
    known = exercises()
    if name not in known:
        return f"not yet: there is no exercise {name!r}; known are {', '.join(sorted(known))}"
    title, function = known[name]
    if answer is None or answer is ...:
        return f"[to do] {name}: {title}"
    try:
        message = function(_guard(answer) if callable(answer) else answer)
    except (Untouched, NotImplementedError):
        return f"[to do] {name}: {title}"
    except Exception as error:  # whatever the student's code raises becomes the message
        reason = str(error).strip().splitlines()
        message = f"your code raised {type(error).__name__}" + (f": {reason[0]}" if reason else "")
    return f"correct: {name} {title}" if message is None else f"not yet: {name} {message}"


def _guard(answer: Callable) -> Callable:
    """The student's function; an empty result says that the exercise is untouched."""

    @functools.wraps(answer)
    def call(*args: Any, **options: Any) -> Any:
        result = answer(*args, **options)
        if result is None or result is ...:
            raise Untouched
        return result

    return call


def compare(
    result: Any,
    right: Tensor,
    mistakes: dict[str, Tensor],
    otherwise: str,
    *,
    tolerance: float = 1e-6,
) -> str | None:
    """None if `result` is `right`, else the message of the mistake that gives this result.

    Args:
        result: what the student's function returned; anything that `as_tensor` knows.
        right: the expected tensor.
        mistakes: {message: the tensor that this mistake gives}; the first that fits is told.
        otherwise: the message for any other wrong value.
        tolerance: relative to `right`, with the same absolute floor.
    """
    result, given = as_tensor(result), type(result).__name__
    if not isinstance(result, Tensor):
        return f"return a tensor, not {given}"
    if result.is_complex():
        return "return real numbers, not complex ones"
    result = result.detach().to(right)
    same = functools.partial(torch.allclose, rtol=tolerance, atol=tolerance)
    for message, wrong in mistakes.items():
        if result.shape == wrong.shape != right.shape and same(result, wrong):
            return message
    if result.shape != right.shape:
        return f"the shape must be {list(right.shape)}, got {list(result.shape)}"
    if not result.isfinite().all():
        return (
            "the result is not finite: look for a division by 0, or the logarithm of 0 "
            "(log_softmax avoids it)"
        )
    if same(result, right):
        return None
    return next(
        (
            text
            for text, wrong in mistakes.items()
            if wrong.shape == right.shape and same(result, wrong)
        ),
        otherwise,
    )


def normal(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    """A fixed float64 tensor of normal numbers."""
    return scale * torch.randn(
        *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def as_tensor(result: Any) -> Any:
    """A number, an array, a tensor, or a list of them as a tensor; anything else as it is.

    Numbers and arrays become float64; a tensor keeps its type and its gradient.
    """
    if isinstance(result, Tensor):
        return result
    if isinstance(result, (list, tuple)):
        parts = [as_tensor(part) for part in result]
        alike = all(isinstance(part, Tensor) for part in parts)
        if not alike or not parts or len({part.shape for part in parts}) > 1:
            return result
        return torch.stack([part.double() for part in parts])
    if isinstance(result, numbers.Real):
        return torch.tensor(float(result), dtype=torch.float64)
    try:
        array = np.asarray(result)
    except (TypeError, ValueError, RuntimeError):  # refuses to be an array
        return result
    if array.dtype.kind == "O" and array.ndim:  # for example of tensors
        return as_tensor(array.tolist())
    if array.dtype.kind not in "biuf":
        return result
    return torch.from_numpy(array.astype(np.float64))
