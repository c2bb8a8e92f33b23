"""Time of a distillation step over a plain step, of the order of pixels, and of two workers.

    python tests/benchmarks/bench_training.py [--peer PATH]

All ratios are of medians over interleaved rounds of one run, on one thread.
"""

import argparse
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import torch

from kdlib import data, models, training
from kdlib.engine import workers

METHODS = ("kd", "dkd", "dist", "hint", "at", "sp", "rkd", "pkt", "vid", "nst", "crd")
STUDENT = partial(models.ConvNet, (16, 32, 64))
TEACHER = partial(models.ConvNet, (32, 64, 128))


def seconds(network, train, **options) -> float:
    """Wall-clock seconds of one `fit`, without filling the cache of the teacher's outputs."""
    spent = 0.0
    cached = training.cached_outputs

    def timed(*arguments):
        nonlocal spent
        start = time.perf_counter()
        found = cached(*arguments)
        spent += time.perf_counter() - start
        return found

    training.cached_outputs = timed
    try:
        start = time.perf_counter()
        training.fit(network, train, progress=False, **options)
        return time.perf_counter() - start - spent
    finally:
        training.cached_outputs = cached


def medians(jobs: dict, rounds: int) -> dict[str, float]:
    """{name: median seconds}, in turns, so that all jobs meet the same load."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, job in jobs.items():
            times[name].append(job())
    return {name: statistics.median(found) for name, found in times.items()}


def step_ratios(train: data.Split, rounds: int = 5, epochs: int = 4) -> None:
    teacher = training.build(TEACHER, 1)
    jobs = {"ce": lambda: seconds(training.build(STUDENT, 0), train, epochs=epochs)}
    for name in METHODS:
        jobs[name] = partial(
            lambda name: seconds(
                training.build(STUDENT, 0), train, method=name, teacher=teacher, epochs=epochs
            ),
            name,
        )
    found = medians(jobs, rounds)
    print(f"step with cached teacher / plain step, median of {rounds} rounds")
    for name in METHODS:
        print(f"  {name:5s} {found[name] / found['ce']:5.2f}")


def memory_formats(rounds: int = 3) -> None:
    """Pixels last against channels last: resnet20 teaches resnet8 on 32 x 32 colour images."""
    stream = data.generator(0)
    images = torch.rand(1024, 3, 32, 32, generator=stream)
    train = data.Split(images, torch.randint(10, (1024,), generator=stream))
    big, small = (partial(models.ResNet, depth, in_channels=3) for depth in (20, 8))
    teacher = training.build(big, 1)
    for title, augment in {"teacher in each step": data.shift, "teacher cached": None}.items():
        jobs = {
            str(order): partial(
                lambda order, augment: seconds(
                    training.build(small, 0),
                    train,
                    method="kd",
                    teacher=teacher,
                    epochs=1,
                    memory_format=order,
                    augment=augment,
                ),
                order,
                augment,
            )
            for order in (torch.contiguous_format, torch.channels_last)
        }
        plain, last = medians(jobs, rounds).values()
        print(f"channels last / contiguous, {title}: {last / plain:.2f}")


def worker_ratio(train: data.Split, rounds: int = 3) -> None:
    def job(seed: int) -> None:
        training.fit(training.build(STUDENT, seed), train, epochs=3, seed=seed, progress=False)

    workers.each(job, range(2), workers=2, progress=False)  # start the workers
    jobs = {}
    for count in (1, 2):

        def timed(count: int = count) -> float:
            start = time.perf_counter()
            workers.each(job, range(8), workers=count, progress=False)
            return time.perf_counter() - start

        jobs[str(count)] = timed
    one, two = medians(jobs, rounds).values()
    print(f"eight trainings: one worker {one:.1f} s, two workers {two:.1f} s: {one / two:.2f}")


PEER = """
import sys, time, torch
sys.path.insert(0, sys.argv[1])
torch.set_num_threads(1)
from kdlib import data, models, training
train = data.load().train
teacher = training.build(lambda: models.ConvNet((32, 64, 128)), 1)
for method in ("ce", "kd", "hint"):
    student = training.build(lambda: models.ConvNet((16, 32, 64)), 0)
    own = {} if method == "ce" else {"teacher": teacher}
    start = time.perf_counter()
    training.fit(student, train, method=method, epochs=4, progress=False, **own)
    print(method, time.perf_counter() - start)
"""


def against(peer: str, rounds: int = 5) -> None:
    """This kit over another version of it, which lies in the folder `peer`."""
    times: dict[str, dict[str, list[float]]] = {}
    for _ in range(rounds):
        for place in (str(Path(__file__).parents[2]), peer):
            done = subprocess.run(
                [sys.executable, "-c", PEER, place], capture_output=True, text=True, check=True
            )
            for line in done.stdout.splitlines():
                name, found = line.split()
                times.setdefault(name, {}).setdefault(place, []).append(float(found))
    for name, found in times.items():
        ours, theirs = (statistics.median(values) for values in found.values())
        print(f"this kit / the other version, {name}: {ours / theirs:.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", help="folder of another version of the kit to time beside")
    options = parser.parse_args()
    torch.set_num_threads(1)
    digits = data.load().train
    step_ratios(digits)
    memory_formats()
    worker_ratio(digits)
    if options.peer:
        against(options.peer)
