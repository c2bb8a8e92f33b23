"""Run one function over many items in worker processes, one thread each.

Small networks train faster as several one-thread processes than as one process with several
threads. Workers come from loky, the executor behind joblib: functions and classes defined in a
notebook cell work, on every system. A worker that raises or dies costs its own item, never the
finished ones.
"""

from __future__ import annotations

import os
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, as_completed
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import cloudpickle
import torch
from loky import cpu_count, get_reusable_executor

from kdlib import inputs
from kdlib.engine.orphans import end_with_parent
from kdlib.engine.progress import bar

# What loky says when it replaces a worker; an item lost with one is a `Failure`, and is reported.
REPLACED = r"A worker (stopped|was restarted) while some jobs were given"


class Failure(NamedTuple):
    """Stands in the results for an item that could not be finished."""

    item: Any
    error: str


@contextmanager
def threads(count: int = 1) -> Iterator[None]:
    """Use `count` CPU threads inside: their number changes the last bits of every result."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def each(
    function: Callable[[Any], Any],
    items: Iterable[Any],
    *,
    workers: int | None = None,
    label: str = "runs",
    on_result: Callable[[Any], None] | None = None,
    progress: bool = True,
) -> list[Any]:
    """`[function(item) for item in items]`, in parallel; failed items give a `Failure`.

    Failures are also listed in a warning.

    Args:
        function: called in a worker with one CPU thread; may be defined in a notebook.
        items: the arguments, small (what is large belongs into the function's closure, which is
            sent to each worker once).
        workers: number of processes; None takes one a core; 1 runs everything in this process.
        label: what the progress bar counts.
        on_result: called here with each result as soon as it arrives.

    Raises:
        TypeError: `workers` is not a whole number.
        ValueError: `workers` below 1.
        RuntimeError: every item failed; the message is the first error.
    """
    items = list(items)
    count = cpu_count() if workers is None else inputs.whole("workers", workers)
    count = min(count, max(len(items), 1))
    results: list[Any] = [None] * len(items)
    with warnings.catch_warnings(), bar(len(items), label, enabled=progress) as ticker:
        warnings.filterwarnings("ignore", REPLACED, UserWarning)
        outcomes = (
            _in_process(function, items) if count == 1 else _in_workers(function, items, count)
        )
        for position, result in outcomes:
            results[position] = result
            if on_result is not None and not isinstance(result, Failure):
                on_result(result)
            ticker.update()
    failures = [result for result in results if isinstance(result, Failure)]
    if items and len(failures) == len(items):
        raise RuntimeError(f"all {len(items)} {label} failed; the first said:\n{results[0].error}")
    if failures:
        lines = [f"  {failure.item}: {failure.error}" for failure in failures]
        warnings.warn(
            "\n".join([f"{len(lines)} of {len(items)} {label} failed:", *lines]),
            RuntimeWarning,
            stacklevel=2,
        )
    return results


def _in_process(function: Callable, items: list) -> Iterator[tuple[int, Any]]:
    with threads(1):
        for position, item in enumerate(items):
            try:
                yield position, function(item)
            except Exception as error:
                yield position, Failure(item, _brief(error))


def _in_workers(function: Callable, items: list, workers: int) -> Iterator[tuple[int, Any]]:
    waiting, alone, pool = list(range(len(items))), False, None
    with tempfile.TemporaryDirectory() as folder:
        payload = Path(folder) / "function"
        payload.write_bytes(cloudpickle.dumps(function))
        try:
            while waiting:
                pool = get_reusable_executor(
                    1 if alone else workers,
                    timeout=300,
                    initializer=end_with_parent,
                    initargs=(os.getpid(),),
                )
                batch = waiting[:1] if alone else waiting
                futures = {
                    pool.submit(_work, str(payload), cloudpickle.dumps(items[position])): position
                    for position in batch
                }
                for future in as_completed(futures):
                    position = futures[future]
                    try:
                        done, content = future.result()
                    except BrokenExecutor:
                        if not alone:
                            continue  # whose fault it was shows when each runs alone
                        done, content = False, "the worker process died (killed, or out of memory)"
                    waiting = [other for other in waiting if other != position]
                    yield (
                        position,
                        (cloudpickle.loads(content) if done else Failure(items[position], content)),
                    )
                alone = True
        except BaseException:  # Ctrl-C, or the loop over the results was left
            if pool is not None:
                pool.shutdown(wait=False, kill_workers=True)
            raise


def _work(payload: str, item: bytes) -> tuple[bool, Any]:
    """In a worker: (True, pickled result), or (False, what went wrong)."""
    torch.set_num_threads(1)
    os.environ["KDLIB_PROGRESS"] = "0"
    try:
        return True, cloudpickle.dumps(_function(payload)(cloudpickle.loads(item)))
    except Exception as error:
        return False, _brief(error)


@lru_cache(maxsize=1)
def _function(payload: str) -> Callable:
    return cloudpickle.loads(Path(payload).read_bytes())


def _brief(error: Exception) -> str:
    """The error with the one line of code that raised it."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} (in {Path(last.filename).name}, line {last.lineno})"
