"""Run one function over many items in worker processes, one thread each.

Small networks train faster as several one-thread processes than as one process with several
threads. Workers come from loky, the executor behind joblib: functions and classes defined in a
notebook cell work, on every system. Or they come from an executor of the caller's, such as Dask's
with workers on many machines. A worker that raises or dies costs its own item, never the finished
ones.
"""

from __future__ import annotations

import concurrent.futures as cf
import os
import secrets
import tempfile
import threading
import traceback
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import cloudpickle
import torch
from loky import cpu_count, get_reusable_executor

from kdlib import inputs
from kdlib.engine.orphans import end_with_parent
from kdlib.engine.progress import bar

# Of loky, when it replaces a worker (an item lost with one is a `Failure`, and is reported), and of
# Dask, about what should be sent only once, as it is here.
UNSAID = (r"A worker (stopped|was restarted) while some jobs were given", "Sending large graph")
DIED = "the worker process died (killed, or out of memory)"
DASK = "Client(processes=True, threads_per_worker=1).get_executor()"
SPAWN = "ProcessPoolExecutor(mp_context=multiprocessing.get_context('spawn'))"

_PROCESS = secrets.token_hex(8)  # a fork of this process has it, too
_BUSY = threading.Lock()  # while this process works for an executor

Submit = Callable[[bytes], cf.Future]
Outcomes = Generator[tuple[int, Any], None, None]
Answer = tuple[bool | None, Any]


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
    executor: cf.Executor | None = None,
    check: Callable[[], None] | None = None,
    label: str = "runs",
    on_result: Callable[[Any], None] | None = None,
    progress: bool = True,
) -> list[Any]:
    """`[function(item) for item in items]`, in parallel; failed items give a `Failure`.

    Failures are also listed in a warning.

    Args:
        function: called in a worker with one CPU thread; may be defined in a notebook.
        items: the arguments, small (what is large belongs into the function's closure: Dask and
            this module's own workers get it once each, those of another executor with each item).
        workers: number of processes; None takes one a core; 1 runs everything in this process.
        executor: its processes do the work instead. It stays open.
        check: called before each item in the executor's processes; an error in it ends all.
        label: what the progress bar counts.
        on_result: called here with each result as soon as it arrives.

    Raises:
        TypeError: `workers` is not a whole number, or `executor` no executor.
        ValueError: `workers` below 1, or given beside an executor; the executor works in threads,
            in this process or in forks of it; the check failed.
        RuntimeError: every item failed; the message is the first error.
    """
    items = list(items)
    usable(executor, workers)
    count = cpu_count() if workers is None else inputs.whole("workers", workers)
    count = min(count, max(len(items), 1))
    results: list[Any] = [None] * len(items)
    if executor is not None:
        outcomes = _on_executor(function, items, executor, check)
    else:
        outcomes = (_in_process if count == 1 else _in_workers)(function, items, count)
    with warnings.catch_warnings(), bar(len(items), label, enabled=progress) as ticker:
        for message in UNSAID:
            warnings.filterwarnings("ignore", message, UserWarning)
        with closing(outcomes):
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


def usable(executor: Any, workers: Any = None) -> None:
    """Raise a TypeError or ValueError unless the executor, if any, may do the work."""
    if executor is None:
        return
    if not isinstance(executor, cf.Executor):
        found = inputs.describe(executor)
        raise TypeError(f"executor must be a concurrent.futures.Executor, got {found}: {DASK}")
    if isinstance(executor, cf.ThreadPoolExecutor):
        found = f"{type(executor).__name__}, which shares torch's random numbers"
        raise ValueError(f"executor must work in processes, got {found}: take {SPAWN}")
    if workers is not None:
        raise ValueError(f"workers must be left out beside an executor, got {workers}: choose one")


def _in_process(function: Callable, items: list, _: int) -> Outcomes:
    with threads(1):
        for position, item in enumerate(items):
            try:
                yield position, function(item)
            except Exception as error:
                yield position, Failure(item, _brief(error))


def _in_workers(function: Callable, items: list, workers: int) -> Outcomes:
    pool: Any = None

    def begin(alone: bool) -> Submit:
        nonlocal pool
        start = {"initializer": end_with_parent, "initargs": (os.getpid(),)}
        pool = get_reusable_executor(1 if alone else workers, timeout=300, **start)
        return partial(pool.submit, _work, str(payload))

    with tempfile.TemporaryDirectory() as folder:
        payload = Path(folder) / "function"
        payload.write_bytes(cloudpickle.dumps(function))
        try:
            yield from _spread(items, begin, bool)
        except BaseException:  # Ctrl-C, or the loop over the results was left
            if pool is not None:
                pool.shutdown(wait=False, kill_workers=True)
            raise


def _on_executor(
    function: Callable, items: list, executor: cf.Executor, check: Callable[[], None] | None
) -> Outcomes:
    visit, guard, payload = _visit, cloudpickle.dumps(check or bool), cloudpickle.dumps(function)
    client = getattr(executor, "_client", None)
    if client is not None:  # Dask: as a task's result it goes to each worker once, and is made
        payload = client.submit(bytes, payload, pure=False)  # again where it is lost with one

        def visit(*call):  # sent by value: a worker without the kit says so, and does not die
            from kdlib.engine.workers import _visit

            return _visit(*call)

    def submit(item: bytes) -> cf.Future:
        try:  # the last argument tells calls apart: Dask takes equal ones for one
            return executor.submit(visit, payload, item, guard, _PROCESS, secrets.token_hex(8))
        except Exception as error:
            lost: cf.Future = cf.Future()
            lost.set_exception(RuntimeError(f"executor must be made anew: {error!r}"))
            return lost

    # Dask's tasks do not end when its scheduler is lost, but then it closes the client.
    yield from _spread(items, lambda _: submit, lambda: getattr(client, "status", "") == "closed")


def _spread(items: list, begin: Callable[[bool], Submit], lost: Callable[[], bool]) -> Outcomes:
    """Results as they arrive; an item lost with its worker is tried once more, alone."""
    waiting, alone = list(range(len(items))), False
    futures: dict[cf.Future, int] = {}
    try:
        while waiting:
            submit = begin(alone)
            for position in waiting[:1] if alone else waiting:
                futures[submit(cloudpickle.dumps(items[position]))] = position
            while futures:
                ended = cf.wait(futures, 10, cf.FIRST_COMPLETED).done
                for future in list(futures) if lost() else ended:
                    position = futures.pop(future)
                    try:
                        done, content = future.result(0)
                    except Exception as error:
                        if not alone:
                            continue  # whose fault it was shows when each runs alone
                        died = isinstance(error, cf.BrokenExecutor)
                        done, content = False, DIED if died else f"{type(error).__name__}: {error}"
                    if done is None:
                        raise ValueError(content)
                    waiting.remove(position)
                    failure = Failure(items[position], content)
                    yield position, cloudpickle.loads(content) if done else failure
            alone = True
    finally:
        for future in futures:  # there are some after Ctrl-C, or an error
            future.cancel()


def _visit(payload: bytes, item: bytes, check: bytes, caller: str, call: str) -> Answer:
    """In a process of an executor: as `_work`, or (None, why it must not work there)."""
    if caller == _PROCESS:
        found = "got this one or a fork of it, in which torch can hang"
        return None, f"executor must work in processes of its own, {found}: take {DASK} or {SPAWN}"
    if not _BUSY.acquire(blocking=False):
        found = "got two, which share torch's random numbers: start it with one thread"
        return None, f"executor must give a process one run at a time, {found}, {DASK}"
    try:
        with threads(1):
            cloudpickle.loads(check)()
            return _work(payload, item)
    except Exception as error:  # of the check
        return None, str(error)
    finally:
        _BUSY.release()


def _work(payload: str | bytes, item: bytes) -> Answer:
    """In a worker: (True, pickled result), or (False, what went wrong)."""
    torch.set_num_threads(1)
    os.environ["KDLIB_PROGRESS"] = "0"
    try:
        return True, cloudpickle.dumps(_function(payload)(cloudpickle.loads(item)))
    except Exception as error:
        return False, _brief(error)


@lru_cache(maxsize=1)
def _function(payload: str | bytes) -> Callable:
    """From a file, or from the bytes themselves."""
    return cloudpickle.loads(payload if isinstance(payload, bytes) else Path(payload).read_bytes())


def _brief(error: Exception) -> str:
    """The error with the one line of code that raised it."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} (in {Path(last.filename).name}, line {last.lineno})"
