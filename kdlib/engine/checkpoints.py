"""Checkpoints of a training: written atomically after each epoch, read without unpickling."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any, Mapping

import torch

from kdlib.records import write_atomically

History = list[dict[str, float]]


def save(path: str | Path, settings: Mapping[str, Any], history: History,
         parts: Mapping[str, Any]) -> None:
    """Write the settings, the history and the `state_dict` of every part."""
    content = io.BytesIO()
    torch.save({"settings": json.dumps(settings), "history": history}
               | {name: part.state_dict() for name, part in parts.items()}, content)
    write_atomically(path, content.getvalue())


def resume(path: str | Path, settings: Mapping[str, Any], parts: Mapping[str, Any]) -> History:
    """Load every part's state and return the history; an empty one if there is no file.

    Raises:
        ValueError: the file is damaged, or belongs to a run with other settings or networks.
    """
    if not Path(path).exists():
        return []
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        stored = json.loads(state["settings"])
        states = {name: state[name] for name in parts}
        history = state["history"]
    except Exception as error:  # a damaged file raises one of many types
        raise ValueError(f"checkpoint {str(path)!r} is damaged ({type(error).__name__}): delete "
                         "it to start anew") from error
    changed = [name for name in settings if settings[name] != stored.get(name)]
    if changed:
        raise ValueError(f"checkpoint {str(path)!r} belongs to a run with other "
                         f"{', '.join(changed)}: choose another file or delete it")
    try:
        for name, part in parts.items():
            part.load_state_dict(states[name])
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"checkpoint {str(path)!r} belongs to another network: choose another "
                         "file or delete it") from error
    return history
