"""Experiments: paired seeds, records that identify, resume and repeat, failures that stay small."""

import json
import os
import re
import signal
import subprocess
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from test_training import CLASSES, bright, conv, mlp, toy, weights
from torch import nn

from kdlib import (
    data,
    distillers,
    evidence,
    experiments,
    language,
    models,
    recipes,
    records,
    training,
)
from kdlib.data import Split
from kdlib.experiments import Outcome, compare, over_seeds
from kdlib.records import Run, Runs
from kdlib.repetition import repeat

METHODS = {"CE": {}, "CE again": {}, "KD": {"method": "kd"}}
NET = partial(models.ConvNet, (4, 8))
quiet = {"progress": False, "workers": 1}


@pytest.fixture
def teacher():
    network = training.build(conv, 7)
    training.fit(network, toy(), epochs=3, lr=1e-2, progress=False)
    return network


@pytest.fixture(scope="module")
def digits():
    found = data.load(size=8)
    return found.train.take(slice(0, 128)), found.validation.take(slice(0, 60))


# Functions of a seed


def twice(seed):
    return {"twice": 2 * seed, "root": np.float32(seed) ** 0.5}


def several(seed):
    return Outcome({"A": {"x": seed}, "B": {"x": torch.tensor(seed + 0.5)}}, kept={"seed": seed})


def failing(seed):
    if seed == 1:
        raise ValueError("no result today")
    return {"x": seed}


def test_any_function_of_a_seed():
    runs = over_seeds(twice, (4, 9), experiment="doubling", **quiet)
    assert runs.methods == ["doubling"] and runs.values("doubling", "twice").tolist() == [8, 18]
    assert type(runs[1].metrics["root"]) is float and runs[1].metrics["root"] == 3
    assert type(runs[0].metrics["twice"]) is int


def test_a_function_may_compare_methods_by_itself_and_keep_things():
    runs = over_seeds(several, np.arange(3), experiment="pairs", progress=False)
    assert runs.paired("B", "A", "x").tolist() == [0.5, 0.5, 0.5]
    assert runs.kept("A") == {seed: {"seed": seed} for seed in range(3)}


def third(seed):
    return {"C": {"x": seed + 3.0}}


@pytest.mark.parametrize("workers", [1, 2])
def test_functions_with_methods_of_their_own_run_side_by_side(workers, tmp_path):
    settings = dict(experiment="e", folder=tmp_path, workers=workers, progress=False)
    runs = over_seeds([several, third], [4, 2], **settings)
    assert runs.methods == ["A", "B", "C"] and len(runs) == 6
    assert runs.paired("C", "A", "x").tolist() == [3, 3] and runs.kept("C") == {2: None, 4: None}
    alone = over_seeds(third, [4, 2], experiment="e", **quiet)
    assert runs.values("C", "x").tolist() == alone.values("C", "x").tolist()
    assert over_seeds([third], [4, 2], resume=True, **settings)[0].identity == runs[-2].identity
    assert over_seeds([several, third], [4, 2], resume=True, **settings) == runs


def test_functions_that_share_a_method_are_named():
    for functions in ([several, several], [several, lambda seed: {"B": {"x": 1.0}}]):
        with pytest.raises(ValueError, match="methods of their own, got '[AB]' from two"):
            over_seeds(functions, [0, 1], experiment="e", **quiet)
    for nothing in ([], [several, "third"]):
        with pytest.raises(TypeError, match="function must be a function of a seed, or several"):
            over_seeds(nothing, [0], experiment="e", **quiet)


def test_a_failing_seed_costs_only_itself(tmp_path):
    with pytest.warns(RuntimeWarning, match="1 of 3 runs of trial failed:\n  trial, seed 1: Valu"):
        runs = over_seeds(failing, range(3), experiment="trial", folder=tmp_path, **quiet)
    assert [run.seed for run in runs] == [0, 2] == [r.seed for r in records.load(tmp_path)]


@pytest.mark.parametrize(
    "result, message",
    [
        (None, "must return metrics"),
        ({}, "must return metrics"),
        ({"x": "high"}, "metric 'x'"),
        ({"x": torch.zeros(2)}, "metric 'x' must be a number"),
        ({"x": [1]}, "metric 'x'"),
    ],
)
def test_what_is_no_metric_is_named(result, message):
    with pytest.raises(RuntimeError, match=message):
        over_seeds(lambda seed: result, [0], experiment="e", **quiet)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"seeds": []}, "seeds must be different"),
        ({"seeds": [1, 1]}, "seeds must be different"),
        ({"seeds": [0.5]}, "seeds must be a whole number"),
        ({"seeds": [-1]}, "seeds must be"),
        ({"experiment": "../x"}, "experiment must be"),
        ({"experiment": "a:b"}, "experiment must be"),
        ({"experiment": ""}, "experiment must be"),
        ({"experiment": "x" * 81}, "experiment must be"),
        ({"resume": "old"}, "resume must be one of"),
        ({"workers": 0}, "workers must be"),
        ({"executor": "tcp://scheduler:8786"}, "executor must be a concurrent.futures.Executor"),
        ({"executor": ThreadPoolExecutor(1)}, "executor must work in processes, got Thread"),
        ({"executor": ProcessPoolExecutor(1), "workers": 2}, "workers must be left out beside"),
    ],
)
def test_bad_arguments_of_over_seeds(change, message, tmp_path):
    given = {"seeds": [0], "experiment": "e", "folder": tmp_path, "progress": False} | change
    with pytest.raises((ValueError, TypeError), match=message):
        over_seeds(twice, given.pop("seeds"), **given)
    assert not list(tmp_path.rglob("*.json"))


# Comparisons


def test_comparison_is_paired(teacher):
    def agreement(student, master):
        same = training.predict(student, toy().images).argmax(1) == training.predict(
            master, toy().images
        ).argmax(1)
        return {"agreement": 100 * same.double().mean()}

    runs = compare(
        METHODS,
        student=conv,
        train=toy(),
        evaluate_on=toy(40, 1),
        seeds=[3, 4],
        teacher=teacher,
        epochs=2,
        batch_size=16,
        keep=True,
        metrics=agreement,
        **quiet,
    )
    assert [(r.method, r.seed) for r in runs] == [(m, s) for m in METHODS for s in (3, 4)]
    for seed in (3, 4):
        ours, again = (runs.kept(name)[seed] for name in ("CE", "CE again"))
        assert torch.equal(weights(ours), weights(again))
    assert not torch.equal(weights(runs.kept("CE")[3]), weights(runs.kept("CE")[4]))
    run = runs.of("KD")[3]
    assert run.metrics["accuracy"] == training.evaluate(run.kept, toy(40, 1))["accuracy"]
    assert 0 <= run.metrics["agreement"] <= 100 and run.metrics["extra_bytes"] == 64 * CLASSES * 4
    assert run.config["method"] == "kd" and run.config["teacher"].startswith("ConvNet, ")
    assert run.code and run.data and run.versions["torch"] == torch.__version__


def test_several_splits_are_evaluated_at_once():
    splits = {"validation": toy(40, 1), "test": toy(40, 2)}
    run = compare(
        {"CE": {}},
        student=conv,
        train=toy(),
        evaluate_on=splits,
        seeds=[0],
        epochs=1,
        keep=True,
        **quiet,
    )[0]
    for name, split in splits.items():
        assert run.metrics[f"{name} accuracy"] == training.evaluate(run.kept, split)["accuracy"]


def test_workers_give_the_same_bits_as_one_process(teacher):
    settings = dict(
        student=conv,
        train=toy(),
        evaluate_on=toy(40, 1),
        seeds=[0, 1],
        teacher={0: teacher, 1: teacher},
        epochs=2,
        keep=True,
        progress=False,
    )
    alone = compare(METHODS, workers=1, **settings)
    spread = compare(METHODS, workers=2, **settings)
    for ours, theirs in zip(alone, spread):
        assert torch.equal(weights(ours.kept), weights(theirs.kept))


def test_a_method_without_a_teacher_reaches_the_workers():
    try:

        @distillers.register("calm", needs_teacher=False)
        def calm(setup, *, weight: float = 1.0):
            return distillers.Distiller(
                lambda batch: batch.student.logits.square().mean(), weight=weight
            )

        runs = compare(
            {"Calm": {"method": "calm"}},
            student=conv,
            train=tuple(toy()),
            evaluate_on=toy(),
            seeds=[0, 1],
            epochs=1,
            workers=2,
            progress=False,
        )
        assert ["calm" in run.history[0] for run in runs] == [True, True]
    finally:
        del distillers.METHODS["calm"]


def test_a_method_of_a_notebook_reaches_the_workers(teacher):
    try:

        @distillers.register("toy")
        def toy_method(setup, *, weight: float = 1.0):
            return distillers.Distiller(
                lambda batch: (batch.student.logits - batch.teacher.logits).abs().mean(),
                weight=weight,
            )

        runs = compare(
            {"Toy": {"method": "toy"}},
            student=conv,
            train=toy(),
            evaluate_on=toy(),
            seeds=[0, 1],
            teacher=teacher,
            epochs=1,
            workers=2,
            progress=False,
        )
        assert ["toy" in run.history[0] for run in runs] == [True, True]
    finally:
        del distillers.METHODS["toy"]


def deadly(images, stream):
    if torch.initial_seed() == 1_000_003 + 1:  # the first epoch of seed 1
        os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
    return images


def raising(images, stream):
    if torch.initial_seed() == 1_000_003 + 1:
        raise ValueError("no images today")
    return images


@pytest.mark.parametrize(
    "augment, error",
    [
        (raising, "CE, seed 1: ValueError: no images today"),
        (deadly, "CE, seed 1: the worker process died"),
    ],
)
def test_a_failing_worker_costs_only_its_own_run(augment, error, tmp_path):
    with pytest.warns(RuntimeWarning, match=f"1 of 4 runs of trial failed:\n  {error}"):
        runs = compare(
            {"CE": {"augment": augment}, "Other": {}},
            student=conv,
            train=toy(),
            evaluate_on=toy(),
            seeds=[0, 1],
            epochs=1,
            workers=2,
            folder=tmp_path,
            experiment="trial",
            progress=False,
        )
    assert [(r.method, r.seed) for r in runs] == [("CE", 0), ("Other", 0), ("Other", 1)]
    assert len(list((tmp_path / "trial").glob("*.json"))) == 3


network = training.build(conv, 0)


@pytest.mark.parametrize(
    "methods, change, message",
    [
        ({}, {}, "methods must hold"),
        ({"A": {}}, {"seeds": []}, "seeds must be"),
        ({"KD": {"method": "kd"}}, {"teacher": {0: network}, "seeds": [1]}, "network for seed 1"),
        (
            {"A": {}, "KD": {"method": "kd", "temprature": 2}},
            {"teacher": network},
            "'KD': method 'kd' has no option 'temprature'",
        ),
        ({"A": {}, "B": {"lr": "0.1"}}, {}, "'B': lr must be a number"),
        (
            {"A": {}, "B": {"method": "kd+hint"}},
            {"teacher": network},
            "'B': ce_weight must be given",
        ),
        ({"A": {}}, {"student": lambda: network}, "'A' must build a new network at every call"),
        ({"A": {}}, {"seed": 3}, "seed must be left out"),
        ({"A": {"checkpoint": "c.pt"}}, {}, "checkpoint must be left out"),
        ({"A": {}}, {"keep": True, "resume": True}, "resume must be False where networks are kept"),
        ({"A": {}}, {"resume": True}, "resume needs the folder"),
        ({"A": {}}, {"evaluate_on": Split(toy().images[:0], toy().labels[:0])}, "evaluate_on"),
    ],
)
def test_errors_are_found_before_the_first_run(methods, change, message, monkeypatch):
    monkeypatch.setattr(experiments, "each", lambda *a, **k: pytest.fail("it started"))
    given = {
        "student": conv,
        "train": toy(),
        "evaluate_on": toy(),
        "seeds": [0],
        "epochs": 1,
        "progress": False,
    } | change
    with pytest.raises((ValueError, TypeError), match=message):
        compare(methods, **given)


def test_unusable_folders_are_found_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(experiments, "each", lambda *a, **k: pytest.fail("it started"))
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="choose another place"):
        over_seeds(twice, [0], experiment="e", folder=tmp_path / "file", progress=False)


def test_one_unwritable_result_costs_only_its_record(tmp_path):
    def metrics(student, teacher):
        return {"scalar": np.float32(2), "tensor": torch.tensor(3.0), "bad": float("nan")}

    settings = dict(
        student=mlp, train=toy(), evaluate_on=toy(), seeds=[0], epochs=1, folder=tmp_path, **quiet
    )
    with pytest.warns(RuntimeWarning, match="not recorded: .*NaN"):
        runs = compare({"CE": {}}, metrics=metrics, **settings)
    assert runs[0].metrics["scalar"] == 2 and runs[0].metrics["tensor"] == 3
    label = "a label " * 40
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compare({label: {}}, **settings)
    assert records.load(tmp_path)[0].method == label


# Records: what ran


def other_images(images, stream):
    return images * 0.9


def once(student, teacher):
    return {"extra": 1.0}


def changed_once(student, teacher):
    return {"extra": 2.0}


CHANGES = {
    "student": partial(models.ConvNet, (4, 16), num_classes=CLASSES),
    "dropout": partial(models.ConvNet, (4, 8), num_classes=CLASSES, dropout=0.5),
    "augment": other_images,
    "lr": np.float32(0.1),
    "batch_size": 16,
    "seeds": [2],
    "train": toy(seed=5),
    "evaluate_on": toy(40, 9),
    "metrics": changed_once,
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_record_of_something_else_is_never_taken(name, tmp_path, monkeypatch):
    key = "student" if name == "dropout" else name
    settings = dict(
        student=partial(models.ConvNet, (4, 8), num_classes=CLASSES),
        train=toy(),
        evaluate_on=toy(40, 1),
        seeds=[0],
        epochs=1,
        augment=bright,
        lr=1e-3,
        metrics=once,
        folder=tmp_path,
        **quiet,
    )
    first = compare({"CE": {}}, **settings)
    count = []
    original = experiments.train_and_measure

    def counted(*args, **kwargs):
        count.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr(experiments, "train_and_measure", counted)
    monkeypatch.setattr(counted, "__module__", original.__module__, raising=False)
    counted.__qualname__ = original.__qualname__
    assert compare({"CE": {}}, resume=True, **settings) == first and not count
    compare({"CE": {}}, resume=True, **settings | {key: CHANGES[name]})
    assert count == [1]


def test_a_corrected_method_under_the_same_name_is_run_again(tmp_path):
    settings = dict(
        student=mlp,
        train=toy(),
        evaluate_on=toy(),
        seeds=[0],
        epochs=2,
        teacher=training.build(mlp, 3),
        folder=tmp_path,
        **quiet,
    )
    results = []
    try:
        for factor in (1.0, 50.0):

            @distillers.register("toy")
            def method(setup, *, weight: float = 1.0, factor=factor):
                return distillers.Distiller(
                    lambda batch: (
                        factor * (batch.student.logits - batch.teacher.logits).abs().mean()
                    ),
                    weight=weight,
                )

            results.append(compare({"Toy": {"method": "toy"}}, resume=True, **settings)[0])
    finally:
        del distillers.METHODS["toy"]
    assert results[0].identity != results[1].identity
    assert results[0].history != results[1].history


def test_teachers_that_differ_outside_their_weights_are_told_apart(tmp_path):
    def prepared(p):
        return training.build(
            partial(models.MLP, (16,), in_features=64, num_classes=CLASSES, dropout=p), 3
        )

    found = [
        compare(
            {"KD": {"method": "kd"}},
            student=mlp,
            train=toy(),
            evaluate_on=toy(),
            seeds=[0],
            epochs=1,
            teacher=prepared(p),
            folder=tmp_path,
            **quiet,
        )[0]
        for p in (0.0, 0.5)
    ]
    assert found[0].identity != found[1].identity


def test_what_has_no_identity_is_refused_where_records_are_kept(tmp_path):
    stream = (number for number in range(3))

    def augment(images, generator):
        return images * (next(stream, 0) + 1)

    settings = dict(student=mlp, train=toy(), evaluate_on=toy(), seeds=[0], epochs=1, **quiet)
    with pytest.raises(ValueError, match="a record must identify what ran: .*augment.*stream"):
        compare({"CE": {"augment": augment}}, folder=tmp_path, **settings)
    assert compare({"CE": {"augment": augment}}, **settings)[0].metrics


def test_records_of_other_code_are_stale_and_the_caller_decides(tmp_path, monkeypatch):
    settings = dict(experiment="e", folder=tmp_path, **quiet)
    over_seeds(twice, [0], **settings)
    (path,) = tmp_path.rglob("*.json")
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"code": "older", "metrics": {"twice": -1}}))
    with pytest.warns(UserWarning, match="1 of 1 runs .* made by other code"):
        assert records.load(tmp_path)[0].stale
    assert over_seeds(twice, [0], resume="stale", **settings)[0].metrics == {"twice": -1}
    with pytest.warns(UserWarning, match="1 recorded runs were made by other code"):
        assert over_seeds(twice, [0], resume=True, **settings)[0].metrics["twice"] == 0


def test_mixed_settings_are_refused(tmp_path):
    settings = dict(
        student=mlp,
        train=toy(),
        evaluate_on=toy(),
        seeds=[0, 1],
        epochs=1,
        teacher=training.build(mlp, 3),
        folder=tmp_path,
        **quiet,
    )
    for temperature in (1.0, 20.0):
        compare({"KD": {"method": "kd", "temperature": temperature}}, **settings)
    with pytest.raises(ValueError, match="'KD' mixes runs: temperature is 1.0 and 20.0"):
        records.load(tmp_path).values("KD")
    runs = compare({"CE": {}, "Other": {}}, **settings)
    elsewhere = compare({"Other": {}}, **settings | {"evaluate_on": toy(40, 1)})
    with pytest.raises(ValueError, match="evaluated on the same data"):
        (runs[:2] + elsewhere).paired("CE", "Other")


# A fresh teacher a seed


def first_weight(seed, teacher):
    return {"weight": next(teacher.parameters()).flatten()[0].item()}


def test_a_fresh_teacher_is_trained_once_a_seed_and_counted(tmp_path, digits, monkeypatch):
    train, validation = digits
    teacher = training.fresh(NET, train, epochs=2, lr=1e-2)
    settings = dict(
        student=NET,
        train=train,
        evaluate_on=validation,
        seeds=[0, 1],
        teacher=teacher,
        epochs=1,
        folder=tmp_path,
        **quiet,
    )
    methods = {"CE": {}, "KD": {"method": "kd"}, "DKD": {"method": "dkd", "warmup": 1}}
    count, fit = [], training.fit

    def counted(*args, **options):
        count.append(options.get("stop_after"))
        return fit(*args, **options)

    monkeypatch.setattr(training, "fit", counted)
    runs = compare(methods, **settings)
    assert count.count(None) == 2, "one teacher for each of two seeds, shared by the methods"
    monkeypatch.undo()
    for run in runs:
        assert (run.teacher_seconds > 0) == (run.method != "CE")
    assert "drawn(ConvNet" in runs.of("KD")[0].config["teacher"]
    # The same as with the networks trained beforehand.
    trained = {seed: teacher(seed) for seed in (0, 1)}
    again = compare(methods, **settings | {"teacher": trained, "folder": None})
    for method in methods:
        assert np.array_equal(runs.values(method), again.values(method))
    count.clear()
    monkeypatch.setattr(training, "fit", counted)
    assert compare({"KD": methods["KD"]}, **settings, resume=True) == runs[2:4]
    assert count.count(None) == 0, "a teacher was trained for runs that are on record"
    monkeypatch.undo()
    (path,) = tmp_path.rglob("dkd*seed1*.json")
    found = repeat(path)
    assert found.verdict == "repeats" and not found.notes, found


def test_workers_get_the_fresh_teachers(digits):
    train, validation = digits
    settings = dict(student=NET, train=train, evaluate_on=validation, seeds=[0, 1], epochs=1)
    settings["teacher"] = training.fresh(NET, train, epochs=1)
    one, two = (
        compare({"KD": {"method": "kd"}}, **settings, progress=False, workers=count)
        for count in (1, 2)
    )
    assert np.array_equal(one.values("KD"), two.values("KD"))


def test_over_seeds_hands_a_fresh_teacher_over(tmp_path, digits):
    teacher = training.fresh(NET, digits[0], epochs=1)
    runs = over_seeds(
        first_weight, [0, 1], experiment="e", teacher=teacher, folder=tmp_path, **quiet
    )
    first, second = runs.values("e", "weight")
    assert first != second and all(run.teacher_seconds > 0 for run in runs)
    twin, start = training.build(NET, 0), teacher(0, stop_after=0)
    assert not torch.equal(*(next(net.parameters()) for net in (twin, start)))
    other = training.fresh(NET, digits[0], epochs=2)
    settings = dict(experiment="e", folder=tmp_path, **quiet)
    assert over_seeds(first_weight, [0, 1], teacher=teacher, resume=True, **settings) == runs
    assert over_seeds(first_weight, [0, 1], teacher=other, resume=True, **settings) != runs


def test_several_functions_share_the_fresh_teacher_of_a_seed(digits):
    def second(seed, teacher):
        return {"second": {"weight": next(teacher.parameters()).flatten()[0].item()}}

    teacher = training.fresh(NET, digits[0], epochs=1)
    runs = over_seeds([first_weight, second], [0, 1], experiment="e", teacher=teacher, **quiet)
    assert runs.paired("second", "e", "weight").tolist() == [0, 0]
    assert len({run.teacher_seconds for run in runs}) == 2, "one training a seed"


def test_over_seeds_hands_a_language_teacher_over_and_compare_refuses_it(digits):
    pairs = [("a b", "b a"), ("b", "a a")]
    words = language.Words.fit(text for pair in pairs for text in pair)
    network = partial(language.GPT, len(words), 8, dim=4, depth=1, heads=1)
    teacher = language.fresh(network, pairs, words, steps=2, batch_size=2)
    runs = over_seeds(first_weight, [0, 1], experiment="e", teacher=teacher, **quiet)
    first, second = runs.values("e", "weight")
    assert first != second and all(run.teacher_seconds > 0 for run in runs)
    train, validation = digits
    with pytest.raises(TypeError, match=r"training.fresh\(constructor"):
        compare(
            {"KD": {"method": "kd"}}, student=NET, train=train, evaluate_on=validation,
            seeds=[0], teacher=teacher, **quiet,
        )  # fmt: skip


@pytest.mark.parametrize("teacher", [NET, training.drawn, "resnet"])
def test_what_is_no_teacher_is_named(teacher, digits):
    train, validation = digits
    with pytest.raises((TypeError, ValueError), match="teacher|train"):
        compare(
            {"KD": {"method": "kd"}}, student=NET, train=train, evaluate_on=validation,
            seeds=[0], teacher=teacher, **quiet,
        )  # fmt: skip
    with pytest.raises(TypeError, match=r"training.fresh\(constructor"):
        over_seeds(first_weight, [0, 1], experiment="e", teacher=teacher, **quiet)


def test_a_teacher_that_fails_is_reported_with_its_runs(digits):
    train, validation = digits
    teacher = training.fresh(NET, train, epochs=1, lr=1e30)
    with pytest.raises(RuntimeError, match="2 teachers of comparison failed.*\\sFloatingPoint"):
        compare(
            {"KD": {"method": "kd"}}, student=NET, train=train, evaluate_on=validation,
            seeds=[0, 1], teacher=teacher, epochs=1, **quiet,
        )  # fmt: skip


# Records: repeating


def test_a_recorded_run_repeats_in_a_fresh_process(tmp_path, digits):
    train, validation = digits
    teacher = training.build(NET, 5)
    training.fit(teacher, train, epochs=2, lr=1e-2, progress=False)
    compare(
        {"KD": {"method": "kd", "temperature": 2.0}},
        student=NET,
        train=train,
        evaluate_on=validation,
        teacher=teacher,
        seeds=[0],
        epochs=3,
        lr=5e-3,
        augment=partial(data.shift, pixels=2),
        folder=tmp_path,
        **quiet,
    )
    (path,) = tmp_path.rglob("*.json")

    def command(*options):
        return subprocess.run(
            [sys.executable, "-m", "kdlib", "repeat", str(path), *options],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    done = command()
    assert done.returncode == 0 and "repeats (equal processor" in done.stdout, done.stdout
    first = command("--epochs", "1")
    assert first.returncode == 0 and "epoch 1, loss" in first.stdout
    content = json.loads(path.read_text())
    content["metrics"]["accuracy"] += 1
    path.write_text(json.dumps(content))
    forged = command()
    assert forged.returncode == 1 and "accuracy beyond the tolerance" in forged.stdout
    content["repeat"], content["obstacle"] = None, "student is a lambda"
    path.write_text(json.dumps(content))
    impossible = command()
    assert impossible.returncode == 2 and "student is a lambda" in impossible.stdout


def test_chains_of_kept_teachers_and_ensembles_repeat(tmp_path, digits):
    train, validation = digits
    common = dict(student=NET, evaluate_on=validation, epochs=1, lr=5e-3, **quiet)
    members = compare({"member": {}}, train=train, seeds=[10, 11], keep=True, **common)
    ensemble = training.build(partial(models.Ensemble, list(members.kept("member").values())), 0)
    compare(
        {"student": {"method": "kd"}},
        train=training.relabel(train, ensemble),
        seeds=[0],
        teacher=ensemble,
        folder=tmp_path,
        **common,
    )
    (path,) = tmp_path.rglob("*.json")
    found = repeat(path)
    assert found.verdict == "repeats" and not found.notes
    assert {name for name, *_ in found.rows} == {
        "accuracy",
        "loss",
        "extra_bytes",
        "extra_parameters",
    }


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"student": lambda: NET()}, "student is .*<lambda>"),
        ({"augment": lambda images, stream: images}, "augment is .*<lambda>"),
        ({"train": toy()}, "nothing says how .*evaluate_on.* was made"),
        ({"teacher": NET(), "method": "kd"}, "nothing says how .*teacher was made"),
        ({"lr": float("1e-3"), "metrics": once}, ""),
    ],
)
def test_a_record_that_cannot_be_repeated_says_why(change, reason, tmp_path, digits):
    train, validation = digits
    settings = (
        dict(
            student=NET,
            train=train,
            evaluate_on=validation,
            seeds=[0],
            epochs=1,
            folder=tmp_path,
            **quiet,
        )
        | change
    )
    if "train" in change:
        settings["student"] = conv
        settings["evaluate_on"] = toy()
    (run,) = compare({"A": {}}, **settings)
    assert (run.repeat is None) == bool(reason)
    if reason:
        assert re.search(reason, run.obstacle)


@pytest.mark.parametrize(
    "value",
    [
        torch.device("cuda", 1),
        torch.device("cpu"),
        torch.float32,
        torch.channels_last,
        (1, [2.5, None]),
        {"a": {1: "b"}},
        slice(0, 5),
        partial(models.MLP, (4,)),
    ],
)
def test_a_recipe_gives_the_value_back(value):
    found = recipes.make(json.loads(json.dumps(recipes.recipe_of(value))))
    assert found == value or (found.func, found.args) == (value.func, value.args)


def test_a_changed_teacher_has_no_recipe(digits, tmp_path):
    train, validation = digits
    teacher = training.build(NET, 5)
    with torch.no_grad():
        teacher.head.bias += 1
    (run,) = compare(
        {"KD": {"method": "kd"}},
        student=NET,
        train=train,
        evaluate_on=validation,
        seeds=[0],
        epochs=1,
        teacher=teacher,
        folder=tmp_path,
        **quiet,
    )
    assert run.repeat is None and "changed after it was built" in run.obstacle


def test_elsewhere_siblings_give_the_tolerance(tmp_path, digits):
    train, validation = digits
    compare(
        {"CE": {}},
        student=NET,
        train=train,
        evaluate_on=validation,
        seeds=range(5),
        epochs=1,
        folder=tmp_path,
        **quiet,
    )
    paths = sorted(tmp_path.rglob("*.json"))
    values = [json.loads(path.read_text())["metrics"]["loss"] for path in paths]
    spread = 3.182446 * np.std(values[1:], ddof=1) * 2**0.5
    for path in paths:
        content = json.loads(path.read_text())
        content["versions"]["torch"] = "1.0"
        path.write_text(json.dumps(content))
    assert "all values are the same" in repeat(paths[0]).basis
    content = json.loads(paths[0].read_text())

    def edited(**changes):
        metrics = {name: value + changes.get(name, 0) for name, value in content["metrics"].items()}
        paths[0].write_text(json.dumps(content | {"metrics": metrics}))
        return repeat(paths[0])

    found = edited(loss=0.01 * spread)
    assert found.verdict == "repeats" and "runs beside it" in found.basis
    room = {name: tolerance for name, _, _, tolerance in found.rows}
    assert room["loss"] == pytest.approx(spread, rel=1e-5)
    assert edited(loss=20 * spread).verdict == "differs", "it does not widen its own room"
    found = edited(accuracy=0.1)
    assert found.verdict == "differs" and "the same to the last digit, accuracy not" in found.basis
    for path in paths[2:]:
        path.unlink()
    assert edited(loss=0.01 * spread).verdict == "not decidable"


# Runs


def made(**values):
    return Runs(
        Run("e", method, seed, metrics={"accuracy": value})
        for method, found in values.items()
        for seed, value in enumerate(found)
    )


def test_runs_are_addressed_by_method_and_metric():
    runs = made(a=[3, 5, 9], b=[1, 2])
    assert runs.paired("a", "b").tolist() == [2, 3] and runs.methods == ["a", "b"]
    assert evidence.interval(runs.values("a")).mean == pytest.approx(17 / 3)
    assert len(runs + runs[:0]) == 5 and isinstance(runs[:2], Runs)
    with pytest.raises(ValueError, match="method must be one of a, b; got 'c'"):
        runs.values("c")
    with pytest.raises(ValueError, match="metric must be one of accuracy; got 'f1'"):
        runs.values("a", "f1")
    with pytest.raises(ValueError, match="must share at least two seeds, got 1"):
        made(a=[1], b=[1, 2]).paired("a", "b")
    with pytest.raises(ValueError, match="'a' mixes runs: two for seed 0"):
        (made(a=[1]) + made(a=[2])).values("a")


def test_a_network_in_a_worker_is_kept(digits):
    runs = compare(
        {"A": {}},
        student=NET,
        train=digits[0],
        evaluate_on=digits[1],
        seeds=[0, 1],
        epochs=1,
        keep=True,
        workers=2,
        progress=False,
    )
    assert all(isinstance(run.kept, nn.Module) for run in runs)
    assert not list(Path().glob("comparison"))


# What a foreign record must not do

FOREIGN = [
    {"call": "os:system", "args": ["touch PWNED"]},
    {"call": "torchvision.models._api:inspect.os.system", "args": ["touch PWNED"]},
    {"call": "torchvision.models._api:inspect.builtins.exec", "args": ["open('PWNED', 'w')"]},
    {"call": "torch.nn:modules.module.torch.save", "args": [1, "PWNED"]},
    {"call": "kdlib.models:torch.save", "args": [1, "PWNED"]},
    {"call": "kdlib.engine.files:write_atomically", "args": ["PWNED", "x"]},
    {"call": "kdlib.records:save", "args": [1, "PWNED"]},
    {"call": "builtins:exec", "args": ["open('PWNED', 'w')"]},
    {"call": "subprocess:run", "args": [["touch", "PWNED"]]},
    {"call": "evil:f", "args": []},
    {
        "call": "kdlib.experiments:at_seed",
        "args": [{"get": "save", "of": {"call": "torch.jit:ScriptModule"}}, "PWNED"],
    },
    {"get": "__class__", "of": {"call": "kdlib.data:published"}},
    {"torch": "save"},
    {"call": "kdlib.data:published", "args": ["cifar10"], "kwargs": {"folder": "PWNED"}},
    {
        "call": "kdlib.training:trained",
        "args": [
            {"call": "kdlib.models.plain:MLP"},
            {"get": "train", "of": {"call": "kdlib.data:published"}},
        ],
        "kwargs": {"checkpoint": "PWNED", "stop_after": 0},
    },
    {"unknown": 1},
]


@pytest.mark.parametrize("recipe", FOREIGN, ids=[json.dumps(one)[:60] for one in FOREIGN])
def test_a_foreign_record_runs_nothing_and_writes_nothing(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "evil.py").write_text("open('PWNED', 'w')\ndef f():\n    return 1\n")
    with pytest.raises((ValueError, TypeError, RuntimeError)):
        found = recipes.make(recipe)
        assert not callable(found)
    assert not (tmp_path / "PWNED").exists()


def test_own_code_is_run_where_it_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "mine_alone.py").write_text("import os\ndef f(n):\n    return n + 1\n")
    recipe = {"call": "mine_alone:f", "args": [2]}
    with pytest.raises(ValueError, match="only with own_code"):
        recipes.make(recipe)
    assert recipes.make(recipe, own_code=True) == 3
    with pytest.raises(ValueError, match="nothing that a record may call"):
        recipes.make({"call": "mine_alone:os.getcwd"}, own_code=True)


def test_a_split_changed_in_place_has_no_recipe():
    split = data.load(size=8).train.take(slice(0, 8))
    assert recipes.recipe_of(split)
    split.labels[0] = 9
    with pytest.raises(recipes.Unrepeatable, match="changed in place"):
        recipes.recipe_of(split)


def test_a_record_with_another_identity_does_not_repeat(tmp_path, digits):
    train, validation = digits
    compare(
        {"CE": {}},
        student=NET,
        train=train,
        evaluate_on=validation,
        seeds=[0],
        epochs=1,
        folder=tmp_path,
        **quiet,
    )
    (path,) = tmp_path.rglob("*.json")
    assert repeat(path).verdict == "repeats"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"identity": "0" * 64}))
    assert repeat(path).verdict == "differs" and "identity" in repeat(path).basis
    path.write_text(json.dumps(content | {"metrics": {}}))
    assert repeat(path).verdict == "differs"


def test_labels_that_look_alike_keep_their_records(tmp_path):
    def found(seed):
        return {name: {"x": seed} for name in ("+1", "-1", "α", "β", "ce", "CE")}

    over_seeds(found, [0, 1], experiment="e", folder=tmp_path, **quiet)
    assert len(records.load(tmp_path)) == 12


def test_own_metrics_do_not_replace_the_measured_ones():
    with pytest.raises(RuntimeError, match="metrics must have names of their own, got accuracy"):
        compare(
            {"CE": {}},
            student=mlp,
            train=toy(),
            evaluate_on=toy(),
            seeds=[0],
            epochs=1,
            metrics=lambda student, teacher: {"accuracy": 99.0},
            **quiet,
        )


def test_teachers_of_other_shapes_are_not_mixed():
    common = dict(student=mlp, train=toy(), evaluate_on=toy(), epochs=1, **quiet)

    def teachers(width, seeds):
        shape = partial(models.MLP, (width,), in_features=64, num_classes=CLASSES)
        return {"teacher": {seed: training.build(shape, seed) for seed in seeds}, "seeds": seeds}

    few = compare({"KD": {"method": "kd"}}, **teachers(4, [0, 1]), **common)
    more = compare({"KD": {"method": "kd"}}, **teachers(32, [2, 3]), **common)
    with pytest.raises(ValueError, match="'KD' mixes runs"):
        (few + more).values("KD")
