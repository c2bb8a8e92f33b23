"""Networks as CUDA graphs: all kernels of a pass are started by one call of the processor.

A pass of a small network is many short kernels, and starting each costs the processor more time
than the GPU needs to run it. A graph that was recorded once starts them together. The numbers stay
the same: the same kernels run in the same order.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, nn


def recorded_training(network: nn.Module, images: Tensor, precision: str | None) -> nn.Module:
    """The network, whose forward and backward passes in training mode are replayed, in place.

    Args:
        images: a batch of the shape that every step will have.
        precision: None, or "bf16" for a training under autocast.
    """
    kept = {name: value.clone() for name, value in network.named_buffers()}
    with _half(precision):
        torch.cuda.make_graphed_callables(network.train(), (images.clone(),))
    with torch.no_grad():
        for name, value in network.named_buffers():
            value.copy_(kept[name])  # recording ran a few steps
    return network


class Recorded(nn.Module):
    """The pass of a network in evaluation mode without gradients, replayed for one batch shape."""

    def __init__(self, network: nn.Module, images: Tensor, precision: str | None) -> None:
        super().__init__()
        self.network = network.eval()
        self._images, self._graph = images.clone(), torch.cuda.CUDAGraph()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.no_grad(), _half(precision):
            with torch.cuda.stream(stream):
                for _ in range(3):  # so that nothing is set up for the first time while recording
                    network(self._images)
            torch.cuda.current_stream().wait_stream(stream)
            with torch.cuda.graph(self._graph):
                self._logits = network(self._images)

    def forward(self, images: Tensor) -> Tensor:
        if images.shape != self._images.shape or torch.is_grad_enabled():
            return self.network(images)
        self._images.copy_(images)
        self._graph.replay()
        return self._logits.clone()


def _half(precision: str | None) -> Any:
    if precision is None:
        return contextlib.nullcontext()
    return torch.autocast("cuda", torch.bfloat16, cache_enabled=False)
