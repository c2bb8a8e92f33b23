"""Instant checks for the exercises: `check("2.1", answer)` prints one line and never raises.

The line begins with "[to do]" while the exercise is untouched, "correct:", or "not yet:" with what
to look at. Inputs are fixed, so the line is the same on every machine. The checks themselves are in
`kdlib/exercises/`, a module for each notebook. To add one, write a function that takes the answer,
returns None if it is right or else a message, and decorate it with `exercise`: the first line of
its docstring becomes the title. An answer is a value or the student's function.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from typing import Any, Callable

import torch
from torch import Tensor

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
    from kdlib import exercises as folder
    for module in pkgutil.iter_modules(folder.__path__):
        importlib.import_module(f"{folder.__name__}.{module.name}")
    return _REGISTERED


def check(name: str, answer: Any) -> None:
    """Print whether `answer` solves the exercise `name`.

    Args:
        name: the number of the exercise, as "2.1".
        answer: a value or a function; None, `...`, and a function that returns one of them or
            raises NotImplementedError count as untouched.
    """
    print(verdict(name, answer))


def verdict(name: str, answer: Any) -> str:
    """The line that `check` prints."""
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


def compare(result: Any, right: Tensor, mistakes: dict[str, Tensor], otherwise: str, *,
            tolerance: float = 1e-6) -> str | None:
    """None if `result` is `right`, else the message of the mistake that gives this result.

    Args:
        result: what the student's function returned; a number or a tensor.
        right: the expected tensor.
        mistakes: {message: the tensor that this mistake gives}; the first that fits is told.
        otherwise: the message for any other wrong value.
        tolerance: relative to `right`, with the same absolute floor.
    """
    if not isinstance(result, (int, float, Tensor)):
        return f"return a tensor, not {type(result).__name__}"
    result = torch.as_tensor(result).detach().to(right)
    same = functools.partial(torch.allclose, rtol=tolerance, atol=tolerance)
    for message, wrong in mistakes.items():
        if result.shape == wrong.shape != right.shape and same(result, wrong):
            return message
    if result.shape != right.shape:
        return f"the shape must be {list(right.shape)}, got {list(result.shape)}"
    if not result.isfinite().all():
        return "the result is not finite: look for a division by 0, or the logarithm of 0 " \
               "(log_softmax avoids it)"
    if same(result, right):
        return None
    return next((text for text, wrong in mistakes.items()
                 if wrong.shape == right.shape and same(result, wrong)), otherwise)


def normal(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    """A fixed float64 tensor of normal numbers."""
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed),
                               dtype=torch.float64)


def as_tensor(result: Any) -> Any:
    """Numbers, booleans or a list of them as a float64 tensor; anything else as it is."""
    if isinstance(result, (list, tuple)):
        result = torch.tensor([float(value) for value in result], dtype=torch.float64)
    return result.double() if isinstance(result, Tensor) else result
