"""How a value was made, as JSON from which a fresh process makes it again.

A recipe is a JSON value; objects in it are tagged: {"call": "module:name", "args": [...],
"kwargs": {...}}, {"partial": ...} alike, {"name": "module:name"}, {"tuple": [...]}, {"dict":
{...}}, {"slice": [...]}, {"torch": "channels_last"}, and {"get": "train", "of": recipe} for an
attribute. Splits and trained networks remember theirs: see `traced` and `remember`.

`make` calls only what the kit marks as safe and constructors of networks: a record of somebody
else must not be able to run any function of any library, nor to name files. Code below the folder
that it is run in is called where that is asked for.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
import sys
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from kdlib.identity import digest

Function = TypeVar("Function", bound=Callable[..., Any])

SAFE: set[str] = set()  # names of the kit's functions that a record may name or call
PARTS = ("train", "validation", "test", "kept")  # what a recipe may get of a result
PLACES = ("checkpoint", "folder")  # arguments that name files of the machine
_NETWORKS: weakref.WeakKeyDictionary[nn.Module, tuple[Any, str]] = weakref.WeakKeyDictionary()


class Unrepeatable(ValueError):
    """A value that no recipe leads to; the message says which and why."""


def traced(function: Function) -> Function:
    """Decorator: the function's result remembers the call (or why it cannot be repeated)."""
    safe(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        try:
            remember(result, recipe_of_call(function, *args, **kwargs))
        except Unrepeatable as reason:
            remember(result, reason)
        return result

    return call  # type: ignore[return-value]


def safe(function: Function) -> Function:
    """Decorator: a record may name this function of the kit, or call it."""
    SAFE.add(f"{function.__module__}:{function.__qualname__}")
    return function


def remember(value: Any, recipe: Any) -> None:
    """Note how a value was made; a network together with a digest of its weights."""
    if isinstance(value, nn.Module):
        _NETWORKS[value] = recipe, weights_digest(value)
        return
    if hasattr(value, "origin"):
        value.origin, value.versions = recipe, _versions(value)
    for name in getattr(value, "_fields", ()):  # the splits of a data set
        part = getattr(value, name)
        if hasattr(part, "origin"):
            origin = recipe if isinstance(recipe, Exception) else {"get": name, "of": recipe}
            part.origin, part.versions = origin, _versions(part)


def _versions(split: Any) -> list[int]:
    """How often each tensor of a split was changed in place."""
    return [-1 if part.is_inference() else part._version for part in split]


def weights_digest(network: nn.Module) -> str:
    """SHA-256 of a network's parameters and buffers."""
    parts = (part for name, value in network.state_dict().items() for part in (name, value))
    return digest(*parts)


def recipe_of_call(function: Callable, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """The recipe of `function(*args, **kwargs)`."""
    return {
        "call": name_of(function),
        "args": [recipe_of(arg, f"argument {place + 1}") for place, arg in enumerate(args)],
        "kwargs": {name: recipe_of(value, name) for name, value in kwargs.items()},
    }


def recipe_of(value: Any, name: str = "value") -> Any:
    """The recipe of a value, or an `Unrepeatable` that names it."""
    if isinstance(value, np.generic) or (isinstance(value, Tensor) and value.ndim == 0):
        value = value.item()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise Unrepeatable(f"{name} is {value}, which JSON does not hold")
        return value
    if hasattr(value, "origin"):
        if value.origin is not None and value.versions != _versions(value):
            raise Unrepeatable(f"{name} was changed in place after it was made")
        return _known(name, value.origin)
    if isinstance(value, nn.Module):
        recipe, weights = _NETWORKS.get(value, (None, ""))
        if recipe is not None and weights != weights_digest(value):
            raise Unrepeatable(f"{name} was changed after it was built or trained")
        return _known(name, recipe) | {"weights": weights}
    if isinstance(value, functools.partial):
        return {"partial": name_of(value.func, name)} | {
            "args": [
                recipe_of(arg, f"{name}, argument {i + 1}") for i, arg in enumerate(value.args)
            ],
            "kwargs": {k: recipe_of(v, f"{name}, {k}") for k, v in value.keywords.items()},
        }
    if isinstance(value, (list, tuple)):
        parts = [recipe_of(part, f"{name}[{place}]") for place, part in enumerate(value)]
        return parts if isinstance(value, list) else {"tuple": parts}
    if isinstance(value, Mapping):
        if not all(isinstance(key, (str, int)) for key in value):
            raise Unrepeatable(f"{name} has keys that are neither texts nor whole numbers")
        pairs = [[key, recipe_of(part, f"{name}[{key!r}]")] for key, part in value.items()]
        return {"dict": pairs}
    if isinstance(value, slice):
        return {"slice": [recipe_of(v, name) for v in (value.start, value.stop, value.step)]}
    if isinstance(value, (torch.memory_format, torch.dtype, torch.device)):
        return {"torch": str(value).removeprefix("torch.")}
    if callable(value):
        return {"name": name_of(value, name)}
    raise Unrepeatable(f"{name} is a {type(value).__name__}, which has no recipe")


def _known(name: str, recipe: Any) -> Any:
    if isinstance(recipe, Exception):
        raise Unrepeatable(f"{name}: {recipe}")
    if recipe is None:
        raise Unrepeatable(
            f"nothing says how {name} was made: make data with kdlib.data, networks with "
            "training.build and training.fit"
        )
    return recipe


def name_of(function: Any, name: str = "function") -> str:
    """ "module:qualified name" of a function or class that can be imported."""
    module, path = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    if module is None or not path or hasattr(function, "__self__"):
        raise Unrepeatable(f"{name} is a {type(function).__name__}: use a function of a module")
    if module == "__main__" or "<" in path:
        raise Unrepeatable(
            f"{name} is {path}, defined in {'a script or notebook' if '<' not in path else module}"
            ": put it into a module, or use functools.partial of a function of one"
        )
    try:
        found = _resolve(f"{module}:{path}")
    except (ImportError, AttributeError):
        found = None
    if found is not function and getattr(found, "__wrapped__", None) is not function:
        raise Unrepeatable(f"{name} cannot be imported as {module}:{path}")
    return f"{module}:{path}"


def _resolve(name: str) -> Any:
    module, _, path = name.partition(":")
    return functools.reduce(getattr, path.split("."), importlib.import_module(module))


def make(recipe: Any, notes: list[str] | None = None, *, own_code: bool = False) -> Any:
    """The value of a recipe.

    Args:
        recipe: JSON as `recipe_of` gives it.
        notes: takes a line for each network whose weights differ from the recorded ones.
        own_code: modules below the working folder may be imported and called.

    Raises:
        ValueError: the recipe is malformed, or names what may not be called.
    """
    again = functools.partial(make, notes=notes, own_code=own_code)
    if isinstance(recipe, list):
        return [again(part) for part in recipe]
    if not isinstance(recipe, dict):
        return recipe
    if "tuple" in recipe:
        return tuple(again(part) for part in recipe["tuple"])
    if "dict" in recipe:
        return {key: again(part) for key, part in recipe["dict"]}
    if "slice" in recipe:
        return slice(*recipe["slice"])
    if "torch" in recipe:
        found = getattr(torch, recipe["torch"], None)
        known = isinstance(found, (torch.dtype, torch.memory_format))
        return found if known else torch.device(recipe["torch"])
    if "name" in recipe:
        return allowed(recipe["name"], own_code=own_code)
    if "get" in recipe:
        value, name = again(recipe["of"]), recipe["get"]
        if name not in PARTS or name not in getattr(value, "_fields", ()):
            raise ValueError(f"recipe may get {', '.join(PARTS)} of what the kit made, not {name}")
        return _compared(getattr(value, name), recipe, notes)
    kind = next((kind for kind in ("call", "partial") if kind in recipe), None)
    if kind is None:
        raise ValueError(f"recipe must be tagged, got the keys {', '.join(recipe) or 'none'}")
    function = allowed(recipe[kind], own_code=own_code)
    args = again(recipe.get("args", []))
    kwargs = {key: again(part) for key, part in recipe.get("kwargs", {}).items()}
    places = [name for name in PLACES if kwargs.get(name) is not None]
    if places:
        raise ValueError(f"recipe may not name places on this machine, got {', '.join(places)}")
    if kind == "partial":
        return functools.partial(function, *args, **kwargs)
    return _compared(function(*args, **kwargs), recipe, notes)


def _compared(value: Any, recipe: Mapping[str, Any], notes: list[str] | None) -> Any:
    """The value; a note if it is a network with other weights than recorded."""
    wanted = recipe.get("weights")
    if wanted and isinstance(value, nn.Module) and weights_digest(value) != wanted:
        told = f"a network ({type(value).__name__}) has other weights than recorded"
        (notes if notes is not None else []).append(told)
    return value


def allowed(name: str, *, own_code: bool = False) -> Any:
    """What `name`, "module:qualified name", stands for, if a record may use it.

    That is: what the kit marks as safe, classes of networks of the kit and of torch.nn, builders
    of torchvision.models, and with `own_code` what a module below this folder defines. Nothing is
    imported for any other name.

    Raises:
        ValueError: it may not, or it cannot be imported.
    """
    module, _, path = str(name).partition(":")
    own = _below_here(module)
    known = ("kdlib.", "torch.nn.", "torchvision.models.")
    if own and not own_code:
        raise ValueError(
            f"{name} is code below this folder: it is imported and run only with own_code "
            "(--own-code), if you trust it"
        )
    if not own and not f"{module}.".startswith(known):
        raise ValueError(f"{name} is neither of the kit nor below this folder: it is not called")
    try:
        found = _resolve(name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{name} cannot be imported: {error}") from error
    home = str(getattr(found, "__module__", ""))  # not what the module imports from elsewhere
    at_home = home == module or home.startswith(f"{module}.")
    network = at_home and isinstance(found, type) and issubclass(found, nn.Module)
    builder = at_home and module.startswith("torchvision.models.") and path in _builders()
    if name in SAFE or network or builder or (own and at_home):
        return found
    raise ValueError(f"{name} is not a network, and nothing that a record may call")


@functools.cache
def _builders() -> frozenset[str]:
    """Names of the functions of torchvision that build networks."""
    from torchvision import models

    return frozenset(models.list_models())


def _below_here(module: str) -> bool:
    """Whether the module's file lies below the working folder, outside of installed packages."""
    root = module.partition(".")[0]
    if root == "kdlib" or root in sys.stdlib_module_names:
        return False
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return False
    if spec is None or not spec.origin:
        return False
    file = Path(spec.origin).resolve()
    return file.is_relative_to(Path.cwd()) and "site-packages" not in file.parts
