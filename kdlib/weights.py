"""Weights of networks as files: read without running anything, fitted tensor by tensor."""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdlib import recipes
from kdlib.engine import checkpoints
from kdlib.engine.files import write_atomically
from kdlib.training import build

WRAPPERS = ("state_dict", "model", "net", "model_state_dict")  # where public checkpoints keep them
PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and torch.compile


def load(constructor: Callable[[], nn.Module], path: str | Path) -> nn.Module:
    """The network that `constructor` builds, with the weights of a file; in eval mode.

    The network remembers the file by its digest: a run with it as teacher can be repeated where
    the file lies at the same place below the working folder.

    Args:
        constructor: as for `training.build`.
        path: of a checkpoint of `fit` (its student), or a file of `torch.save` that holds a
            state dict, by itself or as published checkpoints keep it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds something else, or tensors that do not fit; names the first.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise FileNotFoundError(
            error.errno, "cannot be read: give the file of a network's weights", str(path)
        ) from error
    network = _fitted(constructor, content, path)
    here, found = Path.cwd(), path.resolve()
    reason = recipes.Unrepeatable(f"its weights come from {path.name}, outside of this folder")
    if not found.is_relative_to(here):
        recipes.remember(network, reason)
        return network
    try:
        recipe = recipes.recipe_of_call(
            again, constructor, found.relative_to(here).as_posix(), _digest(content)
        )
    except recipes.Unrepeatable as obstacle:
        recipe = obstacle  # type: ignore[assignment]
    recipes.remember(network, recipe)
    return network


@recipes.safe
def again(constructor: Callable[[], nn.Module], place: str, digest: str) -> nn.Module:
    """What `load` gave for the file at `place`, below the working folder and unchanged since."""
    path = Path.cwd() / place
    if not path.resolve().is_relative_to(Path.cwd()):
        raise ValueError(f"place must lie below the working folder, got {place!r}")
    if not path.is_file():
        raise ValueError(f"the weights {place!r} are missing: a record needs them")
    content = path.read_bytes()
    if _digest(content) != digest:
        raise ValueError(f"the weights {place!r} are not those of the record: they were replaced")
    return _fitted(constructor, content, path)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _fitted(constructor: Callable[[], nn.Module], content: bytes, path: Path) -> nn.Module:
    network = build(constructor, 0)
    state = _state(content, path)
    found = checkpoints.misfit(network.state_dict(), state)
    if found:
        raise ValueError(f"{path} belongs to another network, or to other classes: {found}")
    network.load_state_dict(state)
    return network.eval()


def _state(content: bytes, path: Path) -> dict[str, Tensor]:
    """{name: tensor} of a file; nothing in it is run."""
    try:
        found = checkpoints.unpacked(content)
    except (RuntimeError, pickle.UnpicklingError, ValueError, EOFError, KeyError) as error:
        raise ValueError(
            f"{path} holds no weights that can be read safely ({type(error).__name__}): store "
            "them with torch.save(network.state_dict(), file)"
        ) from error
    if isinstance(found, Mapping) and "states" in found:  # a checkpoint of `fit`
        parts = found["states"].get("objective", {})
        found = {
            name.removeprefix("student."): value
            for name, value in parts.items()
            if name.startswith("student.")
        }
    for wrapper in WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(wrapper), Mapping):
            found = found[wrapper]
            break
    if not isinstance(found, Mapping) or not _tensors(found):
        raise ValueError(
            f"{path} holds no state dict, {{name: tensor}}, but {type(found).__name__}"
        )
    return {_bare(name): value for name, value in found.items()}


def _tensors(found: Mapping[Any, Any]) -> bool:
    return bool(found) and all(isinstance(value, Tensor) for value in found.values())


def _bare(name: str) -> str:
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name


def save(network: nn.Module, path: str | Path) -> Path:
    """Write a network's state dict, as `load` and `torch.load` read it; atomically."""
    content = io.BytesIO()
    torch.save(network.state_dict(), content)
    return write_atomically(path, content.getvalue())
