"""CUDA graphs: all kernels of a pass are recorded once, and then started by a single call.

A pass of a small network is some hundred short kernels. To start them one by one takes the
processor several times as long as the GPU needs to run them; a replay does not. The kernels are the
same, so the numbers are. Only networks are recorded: losses, optimizers and augmentations run as
they always do, so every method will do.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import cast

import torch
from torch import Tensor, nn

from kdlib.stages import Tap

WARMUP = 3  # passes before one is recorded, in which kernels are chosen and memory is set up

Pass = Callable[[Tensor], tuple[Tensor, ...]]


class Recorded:
    """A tap that replays the passes of its network; batches of other shapes run as they did.

    What it returns is overwritten by the next pass.

    Args:
        tap: on a network on a CUDA device.
        images: [n, c, h, w], a batch as all that follow.
        precision: None, or "bf16" for passes under autocast.
        training: record the pass in training mode and its backward pass; else the pass in
            evaluation mode, which has no gradient.

    Raises:
        ValueError: a pass cannot be recorded, because it waits for the GPU (`.item()`), for
            example. A recording that fails leaves PyTorch's random numbers on the GPU unusable,
            so the process has to be started again.
    """

    def __init__(self, tap: Tap, images: Tensor, precision: str | None, *, training: bool) -> None:
        self.model, self.stages = tap.model, tap.stages
        self._tap, self._shape = tap, images.shape
        record = _with_gradient if training else _without_gradient
        # Weights were recorded on another stream than they train on; autograd waits for both.
        warnings.filterwarnings("ignore", "The AccumulateGrad node's stream", UserWarning)
        try:
            with _half(precision):
                self._replay: Pass = record(_Pass(tap).train(training), images.clone())
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise ValueError(
                f"graphs must be False for {type(tap.model).__name__}, whose pass cannot be "
                f"recorded ({error}); start this process again, the GPU's random numbers are lost"
            ) from error

    def __call__(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        if images.shape != self._shape:
            return self._tap(images)
        logits, *features = self._replay(images)
        return logits, dict(zip(self.stages, features))


class _Pass(nn.Module):
    """The network's logits and stages as one tuple of tensors."""

    def __init__(self, tap: Tap) -> None:
        super().__init__()
        self.network, self._tap = tap.model, tap

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        logits, features = self._tap(images)
        return logits, *(features[stage] for stage in self._tap.stages)


def _with_gradient(network: _Pass, images: Tensor) -> Pass:
    kept = [value.clone() for value in network.buffers()]
    with torch.enable_grad():
        replay = torch.cuda.make_graphed_callables(
            network, (images,), num_warmup_iters=WARMUP, allow_unused_input=True
        )
    for value, before in zip(network.buffers(), kept):
        value.copy_(before)  # the running statistics, which moved meanwhile
    return cast(Pass, replay)


@torch.no_grad()
def _without_gradient(network: _Pass, images: Tensor) -> Pass:
    graph, aside = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(WARMUP):
            network(images)
    torch.cuda.current_stream().wait_stream(aside)
    with torch.cuda.graph(graph):
        outputs = network(images)

    def replay(new: Tensor) -> tuple[Tensor, ...]:
        images.copy_(new)
        graph.replay()
        return outputs

    return replay


def _half(precision: str | None) -> AbstractContextManager:
    if precision is None:
        return nullcontext()
    return torch.autocast("cuda", torch.bfloat16, cache_enabled=False)
