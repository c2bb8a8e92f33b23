"""The benchmarks by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

from kdlib.benchmarks.plan import Plan
from kdlib.benchmarks.rows import Row

BOTH = ("cpu", "cuda")


class Benchmark(NamedTuple):
    """A measurement: a function of this package, the devices that it is for, seconds it may take.

    The function is named "module:function", so that listing imports nothing.
    """

    title: str
    function: str
    limits: dict[str, float]  # by device: the longest that it may take

    @property
    def measure(self) -> Callable[[Plan], Iterator[Row]]:
        module, _, name = self.function.partition(":")
        return getattr(importlib.import_module(f"kdlib.benchmarks.{module}"), name)


BENCHMARKS: dict[str, Benchmark] = {
    "recipe": Benchmark(
        "the published recipe: our loop beside the published one", "vision:recipe", {"cuda": 240}
    ),
    "methods": Benchmark(
        "a step of each method beside a plain step", "vision:methods", {"cpu": 300, "cuda": 400}
    ),
    "teacher": Benchmark(
        "the teacher cached, or run in each step", "vision:teacher", {"cpu": 90, "cuda": 90}
    ),
    "operations": Benchmark("where the time of a step goes", "vision:operations", {"cuda": 120}),
    "objectives": Benchmark(
        "language objectives beside fine-tuning", "text:objectives", {"cuda": 180}
    ),
    "fused": Benchmark(
        "the divergence with the output layer, fused", "text:fused", {"cpu": 120, "cuda": 60}
    ),
    "sampling": Benchmark(
        "sampling with a cache of keys and values", "text:sampling", {"cpu": 120, "cuda": 90}
    ),
    "compiled": Benchmark(
        "the published recipe with torch.compile", "vision:compiled", {"cuda": 400}
    ),
    "input": Benchmark(
        "batches beside the step that reads them", "vision:input_pipeline", {"cpu": 60, "cuda": 60}
    ),
    "ranks": Benchmark(
        "one training by two processes", "ranks:two_processes", {"cpu": 120, "cuda": 120}
    ),
    "loops": Benchmark(
        "our loop beside a plain one and the published one", "peers:loops_beside", {"cpu": 240}
    ),
    "peer": Benchmark("our loop beside that of --peer", "peers:peer", {"cpu": 300}),
    "pixels": Benchmark("channels last", "vision:pixels", {"cpu": 90}),
    "losses": Benchmark("RKD and NST beside their plain forms", "forms:losses", {"cpu": 120}),
    "workers": Benchmark("two worker processes beside one", "laptop:processes", {"cpu": 180}),
    "memory": Benchmark("peak memory of each method", "laptop:memory", {"cpu": 300}),
    "busy": Benchmark("a notebook beside a busy core", "laptop:busy", {"cpu": 600}),
    "notebooks": Benchmark("peak memory of each notebook", "laptop:whole_notebooks", {"cpu": 3000}),
}
