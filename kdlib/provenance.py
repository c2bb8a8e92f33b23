"""What ran in an experiment: its identity by content, words for a reader, a recipe to repeat it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from kdlib import inputs, recipes
from kdlib.data import Split
from kdlib.distillers import METHODS, parts_of
from kdlib.identity import Unidentifiable, identity
from kdlib.training import build


def identity_of(value: Any, name: str, required: bool) -> str:
    """The identity of a value; "" where it has none and no record is kept."""
    try:
        return identity(value, name)
    except Unidentifiable as error:
        if required:
            raise ValueError(f"a record must identify what ran: {error}") from error
        return ""


def joint(*parts: Any) -> str:
    """The identity of several identities; "" if one of them is missing."""
    return identity(parts) if all(part != "" for part in parts) else ""


class Identities:
    """Identities of the settings of a comparison; large values are hashed once."""

    def __init__(self, required: bool):
        self.required = required
        self.known: dict[int, tuple[Any, str]] = {}  # by address; the value is kept alive

    def part(self, value: Any, name: str) -> str:
        """The identity of one setting; of a split, that of its tensors."""
        if isinstance(value, Split):
            value = (value.images, value.labels)
            found = [self._once(part, name) for part in value]
            return joint(*found)
        return self._once(value, name)

    def _once(self, value: Any, name: str) -> str:
        if id(value) not in self.known:
            self.known[id(value)] = value, identity_of(value, name, self.required)
        return self.known[id(value)][1]

    def of(
        self,
        function: functools.partial,
        drawn_anew: bool,
        seed: int,
    ) -> tuple[str, ...]:
        """(setting, identity, evaluation data) of one run; `drawn_anew`: a teacher for each seed.

        The setting leaves out the seed and networks that are drawn anew with it; the identity
        holds the student as built at the seed. A teacher that is yet to be trained (`fresh`)
        counts by its recipe.
        """
        given = function.keywords
        data = joint(
            *(
                part
                for name, split in given["evaluate_on"].items()
                for part in (f"{name}.", self.part(split, "evaluate_on"))
            )
        )
        fixed = {
            name: self.part(value, name)
            for name, value in given.items()
            if name not in ("evaluate_on", "teacher", "keep")
        }
        method = given.get("method", "ce")
        fixed |= {f"method {part}": self._once(METHODS[part], part) for part in parts_of(method)}
        own = self.part(given["teacher"], "teacher")
        teacher = given["teacher"]
        fixed["teacher"] = joint(f"{type(teacher).__qualname__}\n{teacher}") if drawn_anew else own
        setting = joint(*(part for pair in sorted(fixed.items()) for part in pair), data)
        start = identity_of(build(given["student"], seed), "student", self.required)
        return setting, joint(setting, own, start, seed), data

    def words(self, value: Any, name: str) -> Any:
        """A setting in words for a reader; values that no text shows get a part of their hash."""
        if value is None or isinstance(value, (bool, int, str)):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else str(value)
        if isinstance(value, Split):
            shape = "x".join(map(str, value.images.shape))
            return f"images {shape}, {self.part(value, name)[:8]}"
        if isinstance(value, functools.partial):
            called = [self._argument(part, name) for part in value.args]
            called += [f"{k}={self._argument(v, name)}" for k, v in value.keywords.items()]
            text = f"{_name(value.func)}({', '.join(called)})"
            return text if len(text) < 200 else f"{text[:180]}..., {self.part(value, name)[:8]}"
        if isinstance(value, nn.Module):
            return f"{_name(type(value))}, {self.part(value, name)[:8]}"
        if isinstance(value, Mapping):
            if value and all(isinstance(part, nn.Module) for part in value.values()):
                return f"{_name(type(next(iter(value.values()))))}, one a seed"
            return {str(key): self.words(part, name) for key, part in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.words(part, name) for part in value]
        if isinstance(value, (Tensor, np.ndarray, np.generic)) or not callable(value):
            return inputs.describe(value)
        return f"{_name(value)}, {self.part(value, name)[:8]}"

    def _argument(self, value: Any, name: str) -> str:
        """An argument of a call in words; `repr` where that is plain."""
        plain = not isinstance(value, Split) and not callable(value)
        return repr(value) if plain else str(self.words(value, name))


def _name(value: Any) -> str:
    return getattr(value, "__qualname__", type(value).__qualname__)


def recipe_of_run(
    function: Callable[[int], Any], seed: int, methods: Sequence[str] = ()
) -> tuple[Any, str]:
    """(recipe, "") of `function(seed)`, or (None, why there is none); `methods` that it trains."""
    try:
        made_by = {name: recipes.name_of(METHODS[name], f"method {name!r}") for name in methods}
        found = {"function": recipes.recipe_of(function, "function"), "seed": seed}
        return found | ({"methods": made_by} if made_by else {}), ""
    except recipes.Unrepeatable as reason:
        return None, str(reason)
