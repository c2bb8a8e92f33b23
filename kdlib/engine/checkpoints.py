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
            if not _fits(part, content["states"].get(name)):
                raise ValueError(
                    f"checkpoint {str(self.path)!r} belongs to another network ({name} differs): "
                    "choose another file or delete it"
                )
        for name, part in parts.items():
            part.load_state_dict(content["states"][name])
        return content["history"]

    def read(self) -> dict[str, Any]:
        """What the file holds: "settings" (JSON), "history", "states" and "weights"."""
        head, _, payload = Path(self.path).read_bytes().partition(b"\n")
        if head != MAGIC + _sum(payload):
            raise ValueError(
                f"checkpoint {str(self.path)!r} is damaged, or of an older release: delete it to "
                "start anew"
            )
        return torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)


def _sum(payload: bytes) -> bytes:
    return hashlib.sha256(payload).hexdigest().encode()


def _fits(part: Stateful, state: Any) -> bool:
    """Whether `state` can be loaded into `part`: the same names and shapes throughout."""
    if state is None:
        return False
    if isinstance(part, nn.Module):
        own = part.state_dict()
        return own.keys() == state.keys() and all(
            getattr(own[name], "shape", None) == getattr(value, "shape", None)
            for name, value in state.items()
        )
    if isinstance(part, Optimizer):
        own_groups, groups = part.state_dict()["param_groups"], state["param_groups"]
        return [len(one["params"]) for one in own_groups] == [len(one["params"]) for one in groups]
    return True
