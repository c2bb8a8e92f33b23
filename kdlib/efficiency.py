"""What a network costs, and the lecture's efficiency: result per resource.

Parameters, FLOPs and bytes are exact, the same on every machine. Latency, throughput and energy are
measured: they belong to the machine, so print them with the sign for "about" (see `show.approx`).
An input shape is that of one sample, without the batch: (1, 28, 28).
"""

import io
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kdlib.models import evaluating


def parameters(model: nn.Module) -> int:
    """Number of parameters, frozen ones included; a shared one counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def flops(model: nn.Module, input_shape: Sequence[int]) -> int:
    """Floating-point operations of one forward pass of one sample.

    PyTorch's counter: matrix products and convolutions, a multiplication and an addition as two
    operations; activations, normalisation and pooling are not counted.
    """
    # The counter does not know the fused attention kernels. The plain backend, and an input that
    # needs a gradient (it closes nn.TransformerEncoder's fast path), replace them by products.
    images = _samples(model, input_shape, 1).requires_grad_()
    counter = FlopCounterMode(display=False)
    with evaluating(model), sdpa_kernel(SDPBackend.MATH), torch.enable_grad(), counter:
        model(images)
    return counter.get_total_flops()


def size_bytes(model: nn.Module) -> int:
    """Bytes that the saved weights (`torch.save` of the state dictionary) take on disk."""
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    return buffer.tell()


def latency(model: nn.Module, input_shape: Sequence[int], *, repeats: int = 50) -> float:
    """Milliseconds for a batch of one: the median of `repeats` passes after a warm-up.

    A processor works with one thread, so that small networks are compared without its scheduler;
    an accelerator is waited for in every pass.
    """
    return 1e3 * _seconds(model, input_shape, 1, repeats)


def throughput(
    model: nn.Module, input_shape: Sequence[int], batch_size: int = 256, *, repeats: int = 5
) -> float:
    """Samples per second in batches of `batch_size`, measured as in `latency`."""
    return batch_size / _seconds(model, input_shape, batch_size, repeats)


def ratio(result: float, resource: float) -> float:
    """The lecture's efficiency = result / resource, for example accuracy points per megabyte."""
    if not resource > 0:
        raise ValueError(f"resource must be positive, got {resource}")
    return result / resource


def profile(
    models: dict[str, nn.Module | Sequence[nn.Module]],
    input_shape: Sequence[int],
    *,
    measure: bool = True,
) -> list[dict]:
    """One row per model: its name, then raw numbers.

    Exact: "parameters", "FLOPs" (one sample), "bytes". With `measure` also "latency ms" (batch of
    one) and "images/s" (batches of 256). A list of modules is an ensemble: all its members have to
    run, so their costs and times add up.
    """
    rows = []
    for name, entry in models.items():
        several = isinstance(entry, (list, tuple, nn.ModuleList))
        members = list(entry) if several else [entry]
        if not members or not all(isinstance(member, nn.Module) for member in members):
            raise TypeError(
                f"models[{name!r}] must be a module or a list of modules, got {entry!r}"
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


RAPL = Path("/sys/class/powercap")  # energy counters of the processor packages on Linux


class Energy(NamedTuple):
    joules: float | None  # None where it cannot be measured honestly
    seconds: float
    source: str  # what was metered, or why nothing was


def measure_energy(function: Callable[[], object]) -> Energy:
    """Energy used while `function()` runs, from hardware counters only; never an estimate.

    Sources: Linux RAPL for the processor packages, NVML for the current CUDA device. Both meter the
    whole chip, other programs and idling included. joules is None, and source the reason, where no
    counter can be read, where the accelerator in use has none (its share would be missing), or
    where the run is shorter than the 0.2 s that the counters resolve.
    """
    meters, missing = _meters()
    before = [read() for read, _, _ in meters]
    start = time.perf_counter()
    function()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    if missing:
        return Energy(None, seconds, missing)
    if seconds < 0.2:
        return Energy(None, seconds, f"{seconds:.3f} s is too short: repeat the work in function")
    # A counter that has reached its range starts again at zero.
    spent = [(read() - old) % span for (read, span, _), old in zip(meters, before)]
    return Energy(sum(spent), seconds, " and ".join(name for _, _, name in meters))


def _meters() -> tuple[list[tuple[Callable[[], float], float, str]], str]:
    """Readable counters as (read joules, range in joules, name), and what is missing, if any."""
    meters = []
    for folder in sorted(RAPL.glob("intel-rapl:?")):  # one per package
        try:
            span = int((folder / "max_energy_range_uj").read_text()) / 1e6
            counter = folder / "energy_uj"
            counter.read_text()
        except OSError:
            return [], f"{folder} cannot be read (most systems reserve it for root)"
        meters.append(
            (lambda path=counter: int(path.read_text()) / 1e6, span, f"RAPL {folder.name}")
        )
    if torch.cuda.is_initialized():  # CUDA is in use: without its share the sum would be a lie
        try:
            import pynvml

            pynvml.nvmlInit()
            uuid = f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"
            device = pynvml.nvmlDeviceGetHandleByUUID(uuid)
            pynvml.nvmlDeviceGetTotalEnergyConsumption(device)
        except Exception as error:  # noqa: BLE001 (no module, no driver, no such counter)
            return [], f"the energy counter of the CUDA device cannot be read: {error}"
        read = pynvml.nvmlDeviceGetTotalEnergyConsumption
        meters.append((lambda: read(device) / 1e3, float("inf"), "NVML"))
    return meters, "" if meters else "this machine has no energy counter that can be read"


def _samples(model: nn.Module, input_shape: Sequence[int], count: int) -> Tensor:
    """Zeros of the model's device and type; a cost does not depend on the values."""
    if not all(isinstance(size, int) and size > 0 for size in input_shape):
        raise ValueError(f"input_shape must hold positive integers, got {tuple(input_shape)}")
    like = next(model.parameters(), torch.empty(0))
    return torch.zeros(count, *input_shape, dtype=like.dtype, device=like.device)


def _seconds(model: nn.Module, input_shape: Sequence[int], batch: int, repeats: int) -> float:
    """Median time of a forward pass in evaluation mode, after a warm-up."""
    if repeats < 1 or batch < 1:
        raise ValueError(f"repeats and batch_size must be at least 1, got {repeats} and {batch}")
    images, threads, times = _samples(model, input_shape, batch), torch.get_num_threads(), []
    try:
        torch.set_num_threads(1)
        with evaluating(model), torch.no_grad():
            for _ in range(repeats + max(2, repeats // 5)):
                start = time.perf_counter()
                model(images)
                if images.is_cuda:
                    torch.cuda.synchronize(images.device)
                times.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return statistics.median(times[-repeats:])
