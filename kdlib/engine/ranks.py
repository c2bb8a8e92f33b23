"""Several processes, one training: what `torchrun` needs, and nothing in a single process."""

from __future__ import annotations

import os
from typing import Iterable

import torch
import torch.distributed as distributed
from torch import Tensor, nn


def join() -> tuple[int, int]:
    """Rank and number of processes; joins the group when started by `torchrun`."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1 and not distributed.is_initialized():
        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return int(os.environ.get("RANK", "0")), world


def own_device(device: torch.device, world: int) -> torch.device:
    """This process's GPU where several share the work on `cuda`, else `device`."""
    if device.type == "cuda" and world > 1:
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return device


def share(tensors: Iterable[Tensor], world: int) -> None:
    """Give every process the first one's values."""
    if world > 1:
        for tensor in tensors:
            distributed.broadcast(tensor.detach(), 0)


def average_gradients(parameters: Iterable[nn.Parameter], world: int) -> None:
    """Replace each gradient by its mean over the processes."""
    if world > 1:
        for parameter in parameters:
            if parameter.grad is not None:
                distributed.all_reduce(parameter.grad)
                parameter.grad /= world
