"""Several processes, one training: what `torchrun` needs, and nothing in a single process.

Every process draws the same batches, runs its networks on its own rows, and gathers the outputs of
all rows with their gradients. So a loss over the batch sees the whole batch, and PyTorch's DDP
averages equal losses: two processes equal one with the same batch, up to the last bits.

Equal too are batch norm and dropout modules, which `joined` lets see the whole batch. Not equal
are functions that draw at random or average over the batch inside of a network's `forward`, and
parameters whose true gradient is zero (a bias before batch norm), which AdamW moves by its noise.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as distributed
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

TIMEOUT = timedelta(minutes=5)  # a process that waits longer for another one gives up
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


def join(timeout: timedelta = TIMEOUT) -> tuple[int, int]:
    """Rank and number of processes; joins the group when started by `torchrun`."""
    try:
        world = int(os.environ.get("WORLD_SIZE", "1"))
    except ValueError as error:
        raise ValueError(
            f"WORLD_SIZE must be a whole number, as torchrun sets it: {error}"
        ) from None
    if world > 1 and not distributed.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        distributed.init_process_group(backend, timeout=timeout)
    return (int(os.environ.get("RANK", "0")), world) if world > 1 else (0, 1)


def own_device(device: torch.device) -> torch.device:
    """This process's GPU where several share the work on `cuda`, else `device`."""
    if device.type == "cuda" and join()[1] > 1:
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return device


def share(count: int) -> slice:
    """This process's rows of a batch of `count` rows, a multiple of the number of processes."""
    rank, world = join()
    return slice(rank * count // world, (rank + 1) * count // world)


class _Gather(torch.autograd.Function):
    """All rows in order; backward, the sum over the processes of the own rows' gradients.

    No factor: averaging the gradients of parameters divides what is summed here.
    """

    @staticmethod
    def forward(ctx, rows: Tensor) -> Tensor:
        rank, world = join()
        rows = rows.contiguous()
        parts = [torch.empty_like(rows) for _ in range(world)]
        distributed.all_gather(parts, rows)
        ctx.own = slice(rank * len(rows), (rank + 1) * len(rows))
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(gradient)
        return gradient[ctx.own]


class _Total(torch.autograd.Function):
    """The sum over the processes; backward likewise."""

    @staticmethod
    def forward(ctx, value: Tensor) -> Tensor:
        value = value.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(value)
        return value

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return _Total.forward(ctx, gradient)


def gather(rows: Tensor) -> Tensor:
    """The rows [n / processes, ...] of all processes as one tensor [n, ...], with gradients."""
    return _Gather.apply(rows) if join()[1] > 1 else rows


def wrap(objective: nn.Module) -> nn.Module:
    """The objective, its gradients averaged over the processes, its weights those of the first."""
    if join()[1] == 1:
        return objective
    return nn.parallel.DistributedDataParallel(
        objective, find_unused_parameters=True, broadcast_buffers=False
    )


def agree(name: str, value: int) -> None:
    """Raise a ValueError in every process unless all hold the same `value`."""
    if join()[1] > 1:
        found: list[int | None] = [None] * join()[1]
        distributed.all_gather_object(found, value)
        if len(set(found)) > 1:
            raise ValueError(f"{name} must be equal in all processes, got {found}")


@contextmanager
def joined(network: nn.Module) -> Iterator[None]:
    """Batch norm and dropout inside of `network` act on the batch of all processes."""
    patched: list[nn.Module] = []
    if join()[1] > 1:
        for module in network.modules():
            if isinstance(module, _BatchNorm):
                module.forward = _batch_norm(module)  # type: ignore[method-assign, assignment]
            elif isinstance(module, DROPOUTS):
                module.forward = _dropout(module)  # type: ignore[method-assign, assignment]
            else:
                continue
            patched.append(module)
    try:
        yield
    finally:
        for module in patched:
            del module.forward


def _batch_norm(module: _BatchNorm) -> Callable[[Tensor], Tensor]:
    """`forward` of a batch norm whose two sums run over all processes."""

    def forward(x: Tensor) -> Tensor:
        if not module.training:
            return type(module).forward(module, x)
        kind, x = x.dtype, x.float()  # sums of half-precision numbers lose digits
        axes, shape = [0, *range(2, x.ndim)], [1, -1, *[1] * (x.ndim - 2)]
        count = x.numel() // x.shape[1] * join()[1]
        mean = _Total.apply(x.sum(axes)) / count
        centred = x - mean.view(shape)
        variance = _Total.apply(centred.square().sum(axes)) / count
        mean_kept, variance_kept = module.running_mean, module.running_var
        steps = module.num_batches_tracked
        if mean_kept is not None and variance_kept is not None and steps is not None:
            with torch.no_grad():
                steps += 1
                new = 1 / steps.item() if module.momentum is None else module.momentum
                mean_kept.lerp_(mean, new)
                variance_kept.lerp_(variance * count / max(count - 1, 1), new)
        x = centred * (variance + module.eps).rsqrt().view(shape)
        if module.affine:
            x = x * module.weight.view(shape) + module.bias.view(shape)
        return x.to(kind)

    return forward


def _dropout(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """`forward` of a dropout that takes its rows of the mask of the whole batch."""

    def forward(x: Tensor) -> Tensor:
        whole = x.new_ones((len(x) * join()[1], *x.shape[1:]))
        return x * type(module).forward(module, whole)[share(len(whole))]

    return forward


@contextmanager
def lost_peers() -> Iterator[None]:
    """Say what it means when another process ended or does not answer."""
    try:
        yield
    except RuntimeError as error:
        rank, world = join()
        words = ("peer", "timed out", "timeout", "socket", "nccl", "gloo", "connection")
        if world > 1 and any(word in str(error).lower() for word in words):
            raise RuntimeError(
                f"rank {rank} lost another of the {world} processes: it ended or hangs, see its "
                "own output. Start again: with a checkpoint, training goes on from there"
            ) from error
        raise
