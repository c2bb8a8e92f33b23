"""Bad arguments by kind, and what a table of them must cover.

A table maps a public name of a module ("shift", "ConvNet", "Split.take") to good arguments and, for
each parameter, values that must be refused with a message that names the parameter.
"""

from __future__ import annotations

import inspect
import re
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

NAN, INF = float("nan"), float("inf")
NUMBERS = (NAN, INF, -INF, "1", None, [1.0], True)
WHOLES = (*NUMBERS, 1.5, 2.0, -1)
SIZES = (*WHOLES, 0)
SEQUENCES = ((0,), (-1,), (2.5,), ("2",), (NAN,), 3, "33", None)
SEEDS = (*WHOLES, 2**64)
SWITCHES = ("no", 1, None)
Table = dict[str, tuple[dict[str, Any], dict[str, tuple]]]


def numbers_in(good: Tensor, *, unit: bool = False) -> tuple:
    """Values that are no tensor of finite numbers such as `good`; `unit`: nor in [0, 1]."""
    one_inf = good.clone()
    one_inf.view(-1)[-1] = INF
    wrong = (None, good.tolist(), good.numpy(), good[:0], good * NAN, one_inf, good.to(torch.uint8))
    return (*wrong, good + 1, good - 1) if unit else wrong


def images_like(good: Tensor, *, unit: bool = True, channels: bool = True) -> tuple:
    """Values that are no images such as `good` [n, c, h, w]; `channels`: nor have two of them."""
    two = (good[:, :1].repeat(1, 2, 1, 1),) if channels else ()
    return (*numbers_in(good, unit=unit), good[0], *two)


def classes_like(good: Tensor, classes: int, *, paired: bool = True) -> tuple:
    """Values that are no classes such as `good`, 0 to classes - 1; `paired`: of as many samples."""
    wrong = (None, good.tolist(), good[:0], good.float(), good.bool(), good[:, None])
    return (*wrong, *([good[:-1]] if paired else []), good * 0 - 1, good * 0 + classes)


class Pair(nn.Module):
    """A network that returns two things."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return images, images


NETWORKS = (None, "net", lambda images: images.flatten(1))
READ_NETWORKS = (*NETWORKS, Pair(), nn.Identity())  # where the output is read as logits [n, C]


def checks(table: Table) -> list:
    """Parameters for a test: one for each name and parameter of the table."""
    return [
        pytest.param(name, parameter, id=f"{name}-{parameter}")
        for name, (_, wrong) in table.items()
        for parameter in wrong
    ]


def refuses(module: ModuleType, table: Table, name: str, parameter: str, said: str = "") -> None:
    """Whether every bad value of the parameter is refused by name, and the good one is not."""
    function: Any = module
    for part in name.split("."):
        function = getattr(function, part)
    good, wrong = table[name]
    function(**good)
    for value in wrong[parameter]:
        with pytest.raises((TypeError, ValueError)) as caught:
            function(**(good | {parameter: value}))
            pytest.fail(f"{name}({parameter}={value!r}) passes")
        message = str(caught.value)
        assert re.search(rf"\b{said or parameter}\b", message), f"{value!r}: {message}"


def missing(module: ModuleType, table: Table, exempt: dict[str, str]) -> list[str]:
    """Public functions, classes and methods, and their parameters, that nobody thought of.

    `exempt` gives a reason for each "name" or "name.parameter" that is left out on purpose.
    """
    wanted = set()
    names = getattr(module, "__all__", None) or [n for n in vars(module) if not n.startswith("_")]
    for name in names:
        found = getattr(module, name)
        if getattr(found, "__module__", "").startswith(module.__name__) and callable(found):
            wanted |= _parameters(name, found)
    covered = {f"{name}.{parameter}" for name, (_, wrong) in table.items() for parameter in wrong}
    under = {name: {one for one in wanted if f"{one}.".startswith(f"{name}.")} for name in exempt}
    unused = [name for name, found in under.items() if not found]
    left_out = set().union(*under.values())
    return sorted(wanted - covered - left_out) + sorted(covered - wanted) + unused


def _parameters(name: str, found: Any) -> set[str]:
    if inspect.isclass(found):
        methods = {
            f"{name}.{key}": getattr(found, key)
            for key, value in vars(found).items()
            if not key.startswith("_")
            and (inspect.isfunction(value) or isinstance(value, classmethod))
        }
        own = set() if issubclass(found, tuple) else _names(name, found)
        return own.union(*(_names(key, method) for key, method in methods.items()))
    return _names(name, found)


def _names(name: str, function: Any) -> set[str]:
    return {f"{name}.{one}" for one in inspect.signature(function).parameters if one != "self"}
