"""One training by two processes: python -m torch.distributed.run ... -m kdlib.benchmarks.ranks."""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
from collections.abc import Iterator

import torch
import torch.distributed as distributed

from kdlib.benchmarks import networks
from kdlib.benchmarks.clock import Enough, Ratio
from kdlib.benchmarks.networks import BATCH, fitted
from kdlib.benchmarks.plan import Plan, machine
from kdlib.benchmarks.rows import Row
from kdlib.benchmarks.vision import CPU_PAIR, RECIPE, Stopwatch
from kdlib.engine import ranks


def two_processes(plan: Plan) -> Iterator[Row]:
    """Two processes over one, same batches of all: gloo on a CPU, NCCL on two GPUs."""
    what = "kd by two processes / by one"
    if plan.device == "cuda" and torch.cuda.device_count() < 2:
        yield Row("ranks", what, "speed", unmeasured="only one GPU here")
        return
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(plan.rounds(3)):
        for place, world in enumerate((1, 2)):
            times[place].append(_seconds(plan, world))
    ratio = Ratio.of(*times)
    values = {"one ms": 1e3 * ratio.first, "two ms": 1e3 * ratio.second}
    row = Row.measured("ranks", what, ratio, unit="speed", values=values)
    row.device = machine(plan.device)
    yield row


def _seconds(plan: Plan, world: int) -> float:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={world}", "-m", "kdlib.benchmarks.ranks"]
    done = subprocess.run(
        [*command, plan.device, plan.scale], capture_output=True, text=True, check=True
    )
    return float(next(x for x in done.stdout.splitlines() if x.startswith("seconds")).split()[1])


def main(device: str, scale: str) -> None:
    """In each process: some steps; the first one prints the median seconds of a step."""
    plan = Plan(device, scale)
    torch.set_num_threads(1)
    pair = networks.published(plan)[0] if device == "cuda" else networks.colour(*CPU_PAIR)
    torch.manual_seed(0)  # all processes have the same images
    train = networks.noise(plan.sized(100, 4) * BATCH, ranks.own_device(plan.where))
    watch = Stopwatch(plan, plan.sized(10, 1), plan.rounds(5))
    with contextlib.suppress(Enough):
        fitted(pair, train, watch, method="kd", **RECIPE)
    if ranks.join()[0] == 0:
        print("seconds", statistics.median(watch.times))
    if distributed.is_initialized():
        distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
