"""What a network costs, and the lecture's efficiency: result per resource.

Parameters, FLOPs and bytes are exact, the same on every machine. Latency and throughput are
measured: they belong to the machine. An input shape is that of one sample, without the batch:
(1, 28, 28). Bad arguments raise ValueError or TypeError with their name.
"""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kdlib import inputs
from kdlib.stages import evaluating


def parameters(model: nn.Module) -> int:
    """Number of parameters, frozen ones included; a shared one counts once."""
    return sum(parameter.numel() for parameter in _network(model).parameters())


def flops(model: nn.Module, input_shape: Sequence[int]) -> int:
    """Floating-point operations of one forward pass of one sample of shape `input_shape`.

    PyTorch's counter: matrix products and convolutions, a multiplication and an addition as two
    operations; activations, normalisation and pooling are not counted.
    """
    counter = FlopCounterMode(display=False)
    with torch.inference_mode(False), torch.enable_grad(), evaluating(_network(model)):
        # The counter does not know the fused attention kernels. The plain backend, and an input
        # that needs a gradient (it closes nn.TransformerEncoder's fast path), replace them by
        # products.
        images = _samples(model, input_shape, 1).requires_grad_()
        with sdpa_kernel(SDPBackend.MATH), counter:
            model(images)
    return counter.get_total_flops()


def size_bytes(model: nn.Module) -> int:
    """Bytes that the saved weights (`torch.save` of the state dictionary) take on disk."""
    buffer = io.BytesIO()
    torch.save(_network(model).state_dict(), buffer)
    return buffer.tell()


def latency(model: nn.Module, input_shape: Sequence[int], *, repeats: int = 50) -> float:
    """Milliseconds for a batch of one: the median of `repeats` >= 1 passes after a warm-up.

    A processor works with one thread, so that small networks are compared without its scheduler;
    an accelerator is waited for in every pass.
    """
    return 1e3 * _seconds(model, input_shape, 1, repeats)


def throughput(
    model: nn.Module, input_shape: Sequence[int], batch_size: int = 256, *, repeats: int = 5
) -> float:
    """Samples per second in batches of `batch_size` >= 1, measured as in `latency`."""
    return batch_size / _seconds(model, input_shape, batch_size, repeats)


def ratio(result: float, resource: float) -> float:
    """The lecture's efficiency = result / resource, for example accuracy points per megabyte.

    ValueError unless the result is finite and the resource is finite and above 0.
    """
    return inputs.number("result", result) / inputs.number("resource", resource, above=0)


def profile(
    models: Mapping[str, nn.Module | Sequence[nn.Module]],
    input_shape: Sequence[int],
    *,
    measure: bool = True,
) -> list[dict[str, Any]]:
    """One row per model: its name, then raw numbers.

    Exact: "parameters", "FLOPs" (one sample), "bytes". With `measure` also "latency ms" (batch of
    one) and "images/s" (batches of 256). A list of modules is an ensemble: all its members have to
    run, so their costs and times add up. TypeError for what is neither a network nor such a list.
    """
    inputs.instance("models", models, Mapping, "give {name: network}")
    inputs.instance("measure", measure, bool)
    rows = []
    for name, entry in models.items():
        members: list[Any] = [entry]
        if isinstance(entry, (list, tuple, nn.ModuleList)):
            members = [*entry]
        if not members or not all(isinstance(member, nn.Module) for member in members):
            raise TypeError(
                f"models[{name!r}] must be a module or a list of modules, got "
                f"{inputs.describe(entry)}"
            )
        row = {
            "model": name,
            "parameters": sum(parameters(member) for member in members),
            "FLOPs": sum(flops(member, input_shape) for member in members),
            "bytes": sum(size_bytes(member) for member in members),
        }
        if measure:
            row["latency ms"] = sum(latency(member, input_shape) for member in members)
            row["images/s"] = 1 / sum(1 / throughput(member, input_shape) for member in members)
        rows.append(row)
    return rows


def _network(model: nn.Module) -> nn.Module:
    return inputs.instance("model", model, nn.Module, "for several, see profile")


def _samples(model: nn.Module, input_shape: Sequence[int], count: int) -> Tensor:
    """Zeros of the model's device and type; a cost does not depend on the values."""
    shape = inputs.sizes("input_shape", input_shape)
    like = next(model.parameters(), torch.empty(0))
    return torch.zeros(count, *shape, dtype=like.dtype, device=like.device)


def _seconds(model: nn.Module, input_shape: Sequence[int], batch_size: int, repeats: int) -> float:
    """Median time of a forward pass in evaluation mode, after a warm-up."""
    repeats, batch_size = inputs.whole("repeats", repeats), inputs.whole("batch_size", batch_size)
    images = _samples(_network(model), input_shape, batch_size)
    threads, times = torch.get_num_threads(), []
    try:
        torch.set_num_threads(1)
        with evaluating(model), torch.no_grad():
            for _ in range(repeats + max(2, repeats // 5)):
                start = time.perf_counter()
                model(images)
                if images.device.type != "cpu":
                    torch.accelerator.synchronize(images.device)
                times.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return statistics.median(times[-repeats:])
