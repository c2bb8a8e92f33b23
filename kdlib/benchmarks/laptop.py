"""What a laptop feels: worker processes, a busy core, memory of methods and notebooks."""

from __future__ import annotations

import functools
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kdlib import data, training
from kdlib.benchmarks import networks
from kdlib.benchmarks.clock import MIB, Called, Ratio, in_turns
from kdlib.benchmarks.plan import Plan
from kdlib.benchmarks.rows import Row
from kdlib.benchmarks.vision import method_names
from kdlib.engine import kernels, notebooks, workers
from kdlib.engine.loop import warmup_cosine

LAPTOP = 3 * 2**30  # bytes that nothing of the laptop's path may exceed
LOOK = 0.25  # seconds between two looks at the memory


# Worker processes


def processes(plan: Plan) -> Iterator[Row]:
    """The same trainings by one worker, and by two."""
    train, count = networks.digits(plan), plan.sized(8, 2)
    job = functools.partial(_trained, train=train, epochs=plan.sized(3, 1))
    run = functools.partial(workers.each, job, range(count), progress=False)
    two, one = (
        Called(functools.partial(run, workers=number), plan.where) for number in (2, 1)
    )  # the first call of `two` starts the workers
    ratio = in_turns(one, two, steps=1, rounds=plan.rounds(5))
    what = f"{count} trainings: two workers / one"
    values = {"one s": ratio.first, "two s": ratio.second}
    yield Row.measured("workers", what, ratio, unit="speed", values=values, device="CPU")


def _trained(seed: int, train: data.Split, epochs: int) -> None:
    student = training.build(networks.small().student, seed)
    training.fit(student, train, epochs=epochs, seed=seed, progress=False)


# Memory of methods


PEAK = """
import resource, sys
from kdlib.benchmarks import laptop
laptop.one_training(*sys.argv[1:])
print(laptop.peak_of_this_process())
"""


def memory(plan: Plan) -> Iterator[Row]:
    """Peak of a whole process that trains with each method, over one that trains without."""
    plain = _process_peak(plan, "ce")
    for method in method_names():
        peak = _process_peak(plan, method)
        row = Row("memory", f"{networks.small().title}: a process with {method} / one with ce")
        row.unit, row.device = "memory", "CPU"
        row.ratio, row.rounds = peak / plain, 1
        row.values = {"peak MiB": peak / MIB, "plain MiB": plain / MIB}
        yield row


def one_training(method: str, scale: str) -> None:
    """What the process of `memory` does: two epochs."""
    plan, pair = Plan(scale=scale), networks.small()
    networks.fitted(pair, networks.digits(plan), warmup_cosine, method=method, epochs=2)


def _process_peak(plan: Plan, method: str) -> float:
    command = [sys.executable, "-c", PEAK, method, plan.scale]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def peak_of_this_process() -> float:
    """Bytes."""
    status = Path("/proc/self/status")
    if status.is_file():  # what getrusage says on Linux counts the parent in
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return 1024 * float(line.split()[1])
    import resource

    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)  # bytes on a Mac


# Notebooks


def whole_notebooks(plan: Plan) -> Iterator[Row]:
    """Peak memory of each notebook, its kernel and workers together, over what is allowed."""
    paths = sorted(notebooks.FOLDER.glob("*.ipynb"))
    if not paths:
        yield Row("notebooks", "peak memory of the notebooks", unmeasured="there are none here")
    for path in paths[: plan.sized(len(paths), 1)]:
        watch = Watch()
        with watch:
            seconds, failed = _executed(path)
        row = Row("notebooks", f"{path.stem}: peak memory / 3 GiB", "memory", goal="<= 1")
        row.device, row.values = "CPU", {"peak MiB": watch.peak / MIB, "seconds": seconds}
        row.details["cells that failed"] = failed
        row.ratio, row.rounds = watch.peak / LAPTOP, 1
        yield row


def busy(plan: Plan) -> Iterator[Row]:
    """The notebook that takes least, while another program keeps one core busy, and alone."""
    stored = {path: _stored(path) for path in notebooks.FOLDER.glob("*.ipynb")}
    if not stored:
        yield Row("busy", "a notebook beside a busy core", unmeasured="there are no notebooks here")
        return
    path = min(stored, key=lambda one: stored[one])
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(plan.rounds(3, 2)):
        with _a_core_busy():
            times[0].append(_executed(path)[0])
        times[1].append(_executed(path)[0])
    ratio = Ratio.of(*times)
    values = {"busy s": ratio.first, "alone s": ratio.second}
    what = f"{path.stem}: beside one busy core / alone"
    yield Row.measured("busy", what, ratio, values=values, device="CPU")


def _stored(path: Path) -> float:
    return notebooks.stored_seconds(notebooks.read(path)) or float("inf")


def _executed(path: Path) -> tuple[float, int]:
    """Seconds, and how many cells failed."""
    start = time.perf_counter()
    environment = {"KDLIB_PROGRESS": "0"}
    found = kernels.execute(notebooks.read(path), path.parent, environment=environment)
    return time.perf_counter() - start, len(found.failures)


@contextmanager
def _a_core_busy() -> Iterator[None]:
    spin = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        spin.kill()
        spin.wait()


class Watch(threading.Thread):
    """Looks at the memory of all processes that this one has started, while its block runs.

    Pages that processes share count once where the system tells them apart (Linux).
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0.0
        self._end = threading.Event()

    def run(self) -> None:
        import psutil

        while not self._end.wait(LOOK):
            total = 0.0
            for child in psutil.Process().children(recursive=True):
                try:
                    found = child.memory_full_info()
                    total += getattr(found, "pss", found.rss)
                except psutil.Error:  # it has ended meanwhile
                    continue
            self.peak = max(self.peak, total)

    def __enter__(self) -> Watch:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self.join()
