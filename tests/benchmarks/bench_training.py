"""Time of a distillation step over a plain step, and of two workers over one, in one run.

python tests/benchmarks/bench_training.py
"""

import statistics
import time

import torch

from kdlib import data, models, parallel, training


def student() -> torch.nn.Module:
    return models.ConvNet((16, 32, 64))


def seconds(method: str, teacher: torch.nn.Module | None, train: data.Split, epochs: int) -> float:
    network = training.build(student, 0)
    start = time.perf_counter()
    training.fit(network, train, method=method, teacher=teacher, epochs=epochs, progress=False)
    return time.perf_counter() - start


def step_ratios(train: data.Split, rounds: int = 5, epochs: int = 4) -> None:
    """Interleaved rounds, so that all methods meet the same load; filling the cache is apart."""
    teacher = training.build(lambda: models.ConvNet((32, 64, 128)), 1).eval()
    methods = ("kd", "dkd", "dist", "hint", "at", "sp", "rkd", "pkt", "vid", "nst", "crd")
    times: dict[str, list[float]] = {name: [] for name in ("ce", *methods)}
    for _ in range(rounds):
        start = time.perf_counter()
        training.cached_outputs(teacher, train.images, teacher.stages)
        filling = time.perf_counter() - start
        times["ce"].append(seconds("ce", None, train, epochs))
        for name in methods:
            times[name].append(seconds(name, teacher, train, epochs) - filling)
    base = statistics.median(times["ce"])
    print(
        f"step with cached teacher / plain step, one thread, median of {rounds}; filling the "
        f"cache takes {filling / base * epochs:.2f} plain epochs, once"
    )
    for name in methods:
        print(f"  {name:5s} {statistics.median(times[name]) / base:5.2f}")


def worker_ratio(train: data.Split, rounds: int = 3) -> None:
    def job(seed: int) -> None:
        training.fit(training.build(student, seed), train, epochs=3, seed=seed, progress=False)

    parallel.run(job, range(2), workers=2, progress=False)  # start the workers
    times: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(rounds):
        for workers, found in times.items():
            start = time.perf_counter()
            parallel.run(job, range(8), workers=workers, progress=False)
            found.append(time.perf_counter() - start)
    one, two = (statistics.median(times[workers]) for workers in (1, 2))
    print(
        f"eight trainings: one worker {one:.1f} s, two workers {two:.1f} s, ratio {one / two:.2f}"
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    digits = data.load().train
    step_ratios(digits)
    worker_ratio(digits)
