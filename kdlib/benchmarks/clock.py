"""Two things timed in turns: ratios that hold on a machine whose speed changes meanwhile."""

from __future__ import annotations

import gc
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import torch

MIB = 2**20
RATE = 1e-3  # of the peak: a measurement need not train, and no method diverges
WARMUP = 5  # steps before the first that counts: kernels are chosen and compiled


class Enough(Exception):
    """Ends a training whose speed is known."""


class Timed(Protocol):
    """Something that can be asked to go on for a number of steps."""

    def seconds(self, steps: int) -> float:
        """Seconds that the next `steps` steps take."""
        ...


def waited(device: torch.device) -> float:
    """The clock, when the device has finished all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def occupied(device: torch.device) -> int:
    """Bytes of tensors on a GPU, without those that only wait to be collected; 0 for a CPU."""
    gc.collect()
    return torch.cuda.memory_allocated() if device.type == "cuda" else 0


def beyond(timed: Timed, device: torch.device, before: int) -> float:
    """MiB that two steps need on a GPU, beyond `before`, what was there; 0 for a CPU."""
    if device.type != "cuda":
        return 0.0
    torch.cuda.reset_peak_memory_stats()
    timed.seconds(2)
    return (torch.cuda.max_memory_allocated() - before) / MIB


class Paced:
    """A training of the kit that advances some steps at a time.

    `fit` runs in a thread of its own, and waits in its schedule, which the loop calls at the start
    of each step. So a step is measured as it is, without the time before the first one, and
    several trainings take turns.

    Args:
        train: train(schedule) trains until the schedule raises.
        device: that it trains on.
        warmup: steps that are made at once, and not counted.

    Raises:
        what `train` raises, in `seconds` and when it is made.
    """

    def __init__(
        self, train: Callable[..., Any], device: torch.device, warmup: int = WARMUP
    ) -> None:
        self._device = device
        self._left, self._closing, self._seen = 0, False, -1.0
        self._error: BaseException | None = None
        self._go, self._paused = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, args=(train,), daemon=True)
        self._thread.start()
        self.seconds(warmup)

    def seconds(self, steps: int) -> float:
        start = waited(self._device)
        self._left = steps
        self._go.release()
        self._paused.acquire()
        if self._error is not None:
            raise self._error
        return waited(self._device) - start

    def close(self) -> None:
        """End the training; its memory is free afterwards."""
        self._closing = True
        self._go.release()
        self._thread.join()

    def __enter__(self) -> Paced:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, train: Callable[..., Any]) -> None:
        self._go.acquire()
        try:
            train(self._schedule)
            raise RuntimeError("the training ended before its measurement did: more epochs")
        except Enough:
            pass
        except BaseException as error:
            self._error = error
        finally:
            self._paused.release()

    def _schedule(self, progress: float) -> float:
        if progress != self._seen:  # the loop asks once for each group of parameters
            self._seen = progress
            if self._left == 0:
                self._paused.release()
                self._go.acquire()
                if self._closing:
                    raise Enough
            self._left -= 1
        return RATE


class Looped:
    """Any loop, given as an endless iterator of which each item is a step."""

    def __init__(self, steps: Iterator[Any], device: torch.device, warmup: int = WARMUP) -> None:
        self._steps, self._device = steps, device
        self.seconds(warmup)

    def seconds(self, steps: int) -> float:
        start = waited(self._device)
        for _ in range(steps):
            next(self._steps)
        return waited(self._device) - start


class Called:
    """A function, of which each call is a step."""

    def __init__(self, function: Callable[[], Any], device: torch.device, warmup: int = 1) -> None:
        self._function, self._device = function, device
        self.seconds(warmup)

    def seconds(self, steps: int) -> float:
        start = waited(self._device)
        for _ in range(steps):
            self._function()
        return waited(self._device) - start


class Ratio(NamedTuple):
    """Of the times of two things, round by round."""

    median: float
    low: float  # first quartile
    high: float  # third quartile
    first: float  # median seconds of a step of the first
    second: float
    rounds: int

    @classmethod
    def of(cls, first: list[float], second: list[float]) -> Ratio:
        """From the seconds of equally many rounds, in order.

        Raises:
            ValueError: no rounds, or unequally many.
        """
        if not first or len(first) != len(second):
            raise ValueError(f"rounds must be equally many, got {len(first)} and {len(second)}")
        ratios = [a / b for a, b in zip(first, second)]
        low, high = ratios[0], ratios[0]
        if len(ratios) > 1:
            low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
        one, other = statistics.median(first), statistics.median(second)
        return cls(statistics.median(ratios), low, high, one, other, len(ratios))

    def inverse(self) -> Ratio:
        """The second over the first: of speeds, where this is of times."""
        median, low, high = 1 / self.median, 1 / self.high, 1 / self.low
        return self._replace(median=median, low=low, high=high)


def in_turns(first: Timed, second: Timed, *, steps: int, rounds: int) -> Ratio:
    """Both make `steps` steps in each round; every other round the second goes first."""
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds):
        order = ((first, times[0]), (second, times[1]))
        for timed, found in order if number % 2 == 0 else order[::-1]:
            found.append(timed.seconds(steps) / steps)
    return Ratio.of(*times)
