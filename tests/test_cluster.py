"""Executors of the caller's, Dask's above all: the same records, and nothing that shares a process.

The tests with Dask are skipped where it is not installed (`pip install "kdlib[cluster]"`).
"""

import json
import multiprocessing
import os
import signal
import sys
import time
import warnings
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial

import cloudpickle
import pytest
import torch
from test_training import conv, toy, weights

from kdlib import distillers, experiments, records, training
from kdlib.engine import ranks, workers
from kdlib.engine.workers import Failure, each
from kdlib.experiments import compare, over_seeds

METHODS = {"CE": {}, "KD": {"method": "kd"}, "Hint": {"method": "kd+hint", "ce_weight": 0.5}}
TIMES = ("seconds", "teacher_seconds")
DEATHS = 0  # of workers, that Dask lets one task survive; its default of 3 takes longer


@pytest.fixture(scope="module")
def dask():
    """Makes Dask's executors on clusters of this machine, which end with the tests."""
    reason = "Dask is not installed: pip install 'kdlib[cluster]'"
    distributed = pytest.importorskip("distributed", reason=reason)
    from dask import config

    started, before = [], dict(os.environ)

    def start(*, n_workers=2, threads_per_worker=1, processes=True):
        with config.set({"distributed.scheduler.allowed-failures": DEATHS}):
            client = distributed.Client(
                n_workers=n_workers,
                threads_per_worker=threads_per_worker,
                processes=processes,
                dashboard_address=":0",
                silence_logs=50,
            )
        started.append((client, n_workers))
        return client.get_executor()

    yield start
    for client, count in started:
        if client.status == "running":
            client.wait_for_workers(count, timeout=60)  # one that starts cannot be closed
            client.shutdown()
    os.environ.clear()  # Dask sets variables for its workers and leaves them
    os.environ.update(before)


@pytest.fixture(scope="module")
def cluster(dask):
    return dask()


@pytest.fixture(scope="module")
def pool():
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as executor:
        yield executor


@pytest.fixture(scope="module", params=["cluster", "pool"])
def executor(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def settings():
    return dict(
        student=conv,
        train=toy(),
        evaluate_on=toy(40, 1),
        seeds=[0, 1],
        epochs=1,
        batch_size=16,
        experiment="e",
        progress=False,
    )


def contents(folder):
    """{name of a record: its text without times}."""
    found = {path.name: json.loads(path.read_text("utf-8")) for path in folder.rglob("*.json")}
    for content in found.values():
        assert all(content.pop(name) >= 0 for name in TIMES)
    return {name: json.dumps(content) for name, content in found.items()}


# The same records


def test_records_equal_those_of_one_process(executor, settings, tmp_path):
    settings["teacher"] = training.fresh(conv, toy(), epochs=2, lr=1e-2)
    alone = compare(METHODS, folder=tmp_path / "alone", workers=1, keep=True, **settings)
    spread = compare(METHODS, folder=tmp_path / "spread", executor=executor, keep=True, **settings)
    assert contents(tmp_path / "alone") == contents(tmp_path / "spread")
    assert len(contents(tmp_path / "alone")) == len(alone) == 6
    for ours, theirs in zip(alone, spread):
        assert torch.equal(weights(ours.kept), weights(theirs.kept))
        assert (theirs.teacher_seconds > 0) == (theirs.method != "CE")
    assert compare(METHODS, folder=tmp_path / "spread", resume=True, **settings) == spread


def test_functions_and_methods_of_a_notebook_travel(executor, tmp_path):
    large = torch.arange(4_000_000.0)  # 16 MB: Dask warns where such an argument is sent

    def function(seed):
        return {"x": large[seed].item(), "known": "far" in distillers.METHODS}

    try:
        distillers.register("far")(lambda setup: None)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            runs = over_seeds(function, range(5), experiment="e", executor=executor, progress=False)
    finally:
        del distillers.METHODS["far"]
    assert [run.metrics for run in runs] == [{"x": seed, "known": True} for seed in range(5)]


def test_a_record_tells_the_versions_of_its_worker(executor, monkeypatch):
    monkeypatch.setattr(records, "versions", lambda: {"processor": "of the caller"})
    (run,) = over_seeds(
        lambda seed: {"x": 1}, [0], experiment="e", executor=executor, progress=False
    )
    assert run.versions["torch"] == torch.__version__ and run.threads == 1


# What is refused


def test_threads_are_refused(settings):
    with (
        ThreadPoolExecutor(1) as threads,
        pytest.raises(ValueError, match="executor must work in processes, got ThreadPoolExecutor"),
    ):
        compare({"CE": {}}, executor=threads, **settings)


def test_ranks_are_refused(pool, monkeypatch):
    monkeypatch.setattr(ranks, "join", lambda: (0, 2))
    with pytest.raises(ValueError, match="executor must be left out under torchrun"):
        over_seeds(abs, [0], experiment="e", executor=pool)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forks safely enough for a test")
def test_forks_of_the_caller_are_refused():
    with (
        ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as forks,
        pytest.raises(ValueError, match="got this one or a fork of it"),
    ):
        each(abs, [1], executor=forks, progress=False)


def test_workers_in_the_process_of_the_caller_are_refused(dask):
    with pytest.raises(ValueError, match="executor must work in processes of its own, got this"):
        each(abs, [1, 2], executor=dask(processes=False, n_workers=1), progress=False)


def test_workers_with_several_threads_are_refused(dask):
    several = dask(n_workers=1, threads_per_worker=2)
    with pytest.raises(ValueError, match="one run at a time, got two.*threads_per_worker=1"):
        each(time.sleep, [2, 2.1, 2.2, 2.3], executor=several, progress=False)


def test_workers_with_other_code_are_refused(executor, monkeypatch, tmp_path):
    monkeypatch.setattr(records, "code_fingerprint", lambda: "0" * 16)
    with pytest.raises(ValueError, match="kdlib 0{16} with torch .*, got workers with kdlib "):
        over_seeds(abs, [0, 1], experiment="e", executor=executor, progress=False)
    monkeypatch.undo()
    other = partial(experiments.same_code, records.code_fingerprint(), "1.0")
    with pytest.raises(ValueError, match="with torch 1.0, got workers"):
        each(abs, [0], executor=executor, check=other, progress=False)


def test_workers_without_the_kit_say_so(dask):
    bare = dask(n_workers=1)
    bare._client.run(lambda: sys.modules.update({"kdlib": None}))  # as if it was not installed
    with pytest.raises(RuntimeError, match="all 2 runs failed.*\nModuleNotFoundError"):
        each(abs, [1, 2], executor=bare, progress=False)


# Processes: theirs, shared, lost


def test_a_process_is_left_as_it_was(monkeypatch):
    monkeypatch.setenv("KDLIB_PROGRESS", "1")  # restored, whatever a worker sets
    function, item, check = map(
        cloudpickle.dumps, (lambda item: torch.get_num_threads(), None, bool)
    )
    with workers.threads(2):
        done, content = workers._visit(function, item, check, "elsewhere", "")
        assert done and cloudpickle.loads(content) == 1 and torch.get_num_threads() == 2
    assert not workers._BUSY.locked()


def die_once(seed, *, folder, deadly):
    """Ends its process for the deadly seed, at the first call or (folder None) at each one."""
    first = folder is not None and not (folder / "died").exists()
    if seed == deadly and (first or folder is None):
        if folder is not None:
            (folder / "died").write_text("")
        os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
    return {"seed": seed}


def test_a_lost_worker_costs_nothing_where_the_run_can_be_done_again(cluster, tmp_path):
    function = partial(die_once, folder=tmp_path, deadly=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        runs = over_seeds(
            function, range(6), experiment="e", executor=cluster, folder=tmp_path, progress=False
        )
    assert (tmp_path / "died").exists() and [run.seed for run in runs] == list(range(6))
    assert len(records.load(tmp_path)) == 6


def test_a_run_that_kills_its_workers_costs_only_itself(cluster, tmp_path):
    function = partial(die_once, folder=None, deadly=2)
    with pytest.warns(RuntimeWarning, match="1 of 6 runs of e failed:\n  e, seed 2: KilledWorker"):
        over_seeds(
            function, range(6), experiment="e", executor=cluster, folder=tmp_path, progress=False
        )
    assert [run.seed for run in records.load(tmp_path)] == [0, 1, 3, 4, 5]


def test_a_lost_scheduler_is_told(dask):
    lone = dask(n_workers=1)

    def lose(_):
        lone._client.close()

    with pytest.warns(RuntimeWarning, match="(?s)3 of 4 runs failed.*must be made anew"):
        found = each(time.sleep, [0.1, 1, 2, 3], executor=lone, on_result=lose, progress=False)
    assert found.count(None) == 1


def test_a_broken_pool_is_told():
    """It takes no more work after a death, so what was waiting is lost with it."""

    def last(x):
        if x == 2:
            time.sleep(1)
            os._exit(1)
        return x

    context = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(1, mp_context=context) as frail,
        pytest.warns(RuntimeWarning, match="2 of 4 runs failed:\n  2: .*must be made anew"),
    ):
        found = each(last, range(4), executor=frail, progress=False)
    assert found[:2] == [0, 1] and all(isinstance(one, Failure) for one in found[2:])


def test_an_interruption_cancels_what_is_waiting(executor, tmp_path):
    def leave_a_trace(item):
        (tmp_path / str(item)).write_text("")
        time.sleep(0.3)

    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        each(leave_a_trace, range(20), executor=executor, on_result=interrupt, progress=False)
    assert each(abs, [-1, -2], executor=executor, progress=False) == [1, 2]
    assert len(list(tmp_path.iterdir())) < 12
