"""Checkpoints of a training: one file, written atomically, checked by its sum, never unpickled."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn
from torch.optim import Optimizer

from kdlib.engine.files import probe, write_atomically

History = list[dict[str, float]]
MAGIC = b"kdlib checkpoint 2 "  # then the SHA-256 of the rest in hex, and a line break
DAMAGED = "is damaged, or of an older release: delete it to start anew"


class Stateful(Protocol):
    """A part of a training that can be stored: a module, an optimizer, a source of batches."""

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state: Any) -> Any: ...


class Checkpoint(NamedTuple):
    """Where the state of a training is kept, and what the training is.

    Attributes:
        path: of the file.
        settings: JSON values that a resumed training must share, by name.
        begun: digest of the network's weights at the start of the training.
        weights: the same digest now. A training goes on only with a network as it was at the
            start, or as the file holds it.
    """

    path: Path
    settings: Mapping[str, Any]
    begun: str = ""
    weights: Callable[[], str] = str

    def save(self, history: History, parts: Mapping[str, Stateful]) -> None:
        """Write the settings, the history and the `state_dict` of every part."""
        content = io.BytesIO()
        states = {name: part.state_dict() for name, part in parts.items()}
        torch.save(
            {
                "settings": json.dumps(self.settings),
                "history": history,
                "states": states,
                "weights": [self.begun, self.weights()],
            },
            content,
        )
        payload = content.getvalue()
        write_atomically(self.path, MAGIC + _sum(payload) + b"\n" + payload)

    def resume(self, parts: Mapping[str, Stateful]) -> History:
        """Load every part's state and return the history; an empty one if there is no file.

        Everything is checked before the first part changes.

        Raises:
            OSError: the path cannot be written.
            ValueError: the file is damaged, or belongs to a run with other settings or networks.
        """
        probe(self.path)
        if not Path(self.path).exists():
            return []
        content = self.read()
        stored = json.loads(content["settings"])
        changed = [name for name, value in self.settings.items() if value != stored.get(name)]
        if changed:
            raise ValueError(
                f"checkpoint {str(self.path)!r} belongs to a run with other {', '.join(changed)}: "
                "choose another file or delete it"
            )
        if self.begun not in content["weights"]:
            raise ValueError(
                f"checkpoint {str(self.path)!r} belongs to another student: begin with the same "
                "weights, choose another file or delete it"
            )
        for name, part in parts.items():
            found = _misfit(part, content["states"].get(name))
            if found:
                raise ValueError(
                    f"checkpoint {str(self.path)!r} belongs to another network ({name}: {found}): "
                    "choose another file or delete it"
                )
        for name, part in parts.items():
            part.load_state_dict(content["states"][name])
        return content["history"]

    def read(self) -> dict[str, Any]:
        """What the file holds: "settings" (JSON), "history", "states" and "weights"."""
        content = Path(self.path).read_bytes()
        if not content.startswith(MAGIC):
            raise ValueError(f"checkpoint {str(self.path)!r} {DAMAGED}")
        try:
            return unpacked(content)
        except ValueError as error:
            raise ValueError(f"checkpoint {str(self.path)!r} {error}") from None


def unpacked(content: bytes) -> Any:
    """What a checkpoint of this format, or another file of `torch.save`, holds; nothing is run.

    Raises:
        ValueError: a checkpoint whose sum is wrong.
        pickle.UnpicklingError, RuntimeError: a file that is more than tensors and plain values.
    """
    if content.startswith(MAGIC):
        head, _, payload = content.partition(b"\n")
        if head != MAGIC + _sum(payload):
            raise ValueError(DAMAGED)
        content = payload
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _sum(payload: bytes) -> bytes:
    return hashlib.sha256(payload).hexdigest().encode()


def _misfit(part: Stateful, state: Any) -> str:
    """Why `state` cannot be loaded into `part`: the first tensor that differs; "" if it can."""
    if state is None:
        return "missing"
    if isinstance(part, nn.Module):
        return misfit(part.state_dict(), state)
    if isinstance(part, Optimizer):
        own_groups, groups = part.state_dict()["param_groups"], state["param_groups"]
        if [len(one["params"]) for one in own_groups] != [len(one["params"]) for one in groups]:
            return "another number of parameters"
    return ""


def misfit(own: Mapping[str, Any], state: Mapping[str, Any]) -> str:
    """The first tensor in which two state dicts do not fit, in words; "" if they do."""
    for name, value in own.items():
        if name not in state:
            return f"{name!r} is missing"
        shape, found = (getattr(one, "shape", None) for one in (value, state[name]))
        if shape != found:
            return f"{name!r} has shape {tuple(found or ())}, {tuple(shape or ())} is needed"
    return next((f"{name!r} is not of this network" for name in state if name not in own), "")
