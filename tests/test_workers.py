"""Worker processes: order, failures, threads, and no warnings of their own."""

import os
import time
import warnings

import pytest
import torch

from kdlib.engine import workers
from kdlib.engine.workers import Failure, each


@pytest.mark.parametrize("count", [1, 2])
def test_order_and_failures(count):
    def square(x):
        if x == 2:
            raise ValueError("two")
        return x * x

    seen = []
    with pytest.warns(RuntimeWarning, match="1 of 3 squares failed:\n  2: ValueError: two"):
        results = each(
            square,
            iter([3, 2, 1]),
            workers=count,
            progress=False,
            label="squares",
            on_result=seen.append,
        )
    assert results[0] == 9 and results[2] == 1 and sorted(seen) == [1, 9]
    assert isinstance(results[1], Failure) and results[1].item == 2
    assert "ValueError: two (in " in results[1].error
    with pytest.raises(RuntimeError, match=r"all 1 runs failed.*\n.*two"):
        each(square, [2], workers=count, progress=False)
    assert each(square, [], workers=count, progress=False) == []


def test_a_dying_worker_costs_its_own_item():
    def die(x):
        if x == 1:
            os._exit(1)
        return x

    with pytest.warns(RuntimeWarning, match="1 of 3 runs failed:\n  1: the worker process died"):
        results = each(die, [0, 1, 2], workers=2, progress=False)
    assert results[0] == 0 and results[2] == 2 and isinstance(results[1], Failure)


@pytest.mark.parametrize(
    "wrong, kind",
    [(0, ValueError), (-1, ValueError), (1.5, TypeError), ("2", TypeError), (True, TypeError)],
)
def test_the_number_of_workers_is_checked(wrong, kind):
    with pytest.raises(kind, match="workers must be a whole number"):
        each(abs, [1], workers=wrong)


def test_workers_use_one_thread():
    def threads(_):
        return torch.get_num_threads()

    before = torch.get_num_threads()
    assert each(threads, [0, 1], workers=2, progress=False) == [1, 1]
    assert each(threads, [0], workers=1, progress=False) == [1]
    assert torch.get_num_threads() == before
    with workers.threads(2):
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == before


def test_a_replaced_worker_is_no_news():
    """loky restarts a worker that grew, and says so in every notebook that trains long."""

    def grow(item):
        import builtins

        from loky import process_executor

        process_executor._MAX_MEMORY_LEAK_SIZE = 1
        builtins.kept = [*getattr(builtins, "kept", []), b"x" * 30_000_000]
        time.sleep(1.1)  # loky looks once a second
        return os.getpid()

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = each(grow, range(6), workers=2, progress=False)
    assert len(set(found)) > 2  # one was restarted
    assert not [str(one.message) for one in said]


def test_an_error_while_results_are_taken_ends_the_workers():
    start = time.monotonic()
    with pytest.raises(ZeroDivisionError):
        each(
            lambda x: time.sleep(60 * x),
            [0, 1],
            workers=2,
            progress=False,
            on_result=lambda result: 1 / 0,
        )
    assert each(abs, [-1, -2], workers=2, progress=False) == [1, 2]
    assert time.monotonic() - start < 30
