"""Where a network trains: its device, the order of its pixels, the threads of the processor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from kdlib import efficiency

SMALL = 5e8  # FLOPs of a batch below which several threads only wait for each other


def placed(
    network: nn.Module, device: torch.device, memory_format: torch.memory_format | None
) -> nn.Module:
    """The network on the device, its pixels in the order that it prefers, or in the given one."""
    order = getattr(network, "memory_format", None) if memory_format is None else memory_format
    network = network.to(device)
    return network if order is None else network.to(memory_format=order)


@contextmanager
def threads_for(student: nn.Module, images: Tensor, batch_size: int) -> Iterator[None]:
    """One thread while a small network trains: two would wait for each other."""
    before = torch.get_num_threads()
    countable = images.device.type == "cpu" and not hasattr(student, "_orig_mod")
    if before > 1 and countable:
        small = batch_size * efficiency.flops(student, images.shape[1:]) < SMALL
        torch.set_num_threads(1 if small else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
