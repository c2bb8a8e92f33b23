"""One loop for every method, checkpoints, comparisons, worker processes and torchrun."""

import os
import signal
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn

from kdlib import data, distillers, models, parallel, training
from kdlib.data import Split
from kdlib.training import build, compare, fit

CLASSES = 4


def toy(n: int = 64, seed: int = 0) -> Split:
    """Images whose brightest quadrant is their class."""
    stream = data.generator(seed)
    labels = torch.randint(CLASSES, (n,), generator=stream)
    images = 0.3 * torch.rand(n, 1, 8, 8, generator=stream)
    for image, label in zip(images, labels.tolist()):
        image[0, 4 * (label // 2):, 4 * (label % 2):][:4, :4] += 0.5
    return Split(images, labels)


def conv() -> nn.Module:
    return models.ConvNet((4, 8), num_classes=CLASSES, dropout=0.2)


def mlp() -> nn.Module:
    return models.MLP((16,), in_features=64, num_classes=CLASSES)


@pytest.fixture
def teacher():
    network = build(conv, 7)
    fit(network, toy(), epochs=3, lr=1e-2, progress=False)
    return network


def weights(network: nn.Module) -> torch.Tensor:
    return torch.cat([value.flatten().double() for value in network.state_dict().values()])


def trained(method: str = "ce", seed: int = 0, constructor=conv, **options) -> nn.Module:
    network = build(constructor, seed)
    fit(network, toy(), method=method, seed=seed, batch_size=16, progress=False,
        **{"epochs": 2, "lr": 1e-2} | options)
    return network


def test_the_loop_learns():
    network = trained(epochs=20, constructor=mlp)
    assert training.evaluate(network, toy(seed=1))["accuracy"] > 90
    assert not network.training


@pytest.mark.parametrize("method", [*distillers.METHODS, "kd+crd"])
def test_every_method_trains_and_repeats_to_the_bit(method, teacher):
    before = weights(teacher)
    options = {"stage": -2} if method in ("hint",) else {}
    first = trained(method, teacher=teacher, **options)
    again = trained(method, teacher=teacher, **options)
    assert torch.equal(weights(first), weights(again))
    assert not torch.equal(weights(first), weights(build(conv, 0)))
    assert torch.equal(before, weights(teacher)) and not teacher.training


def test_random_state_of_the_caller_is_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    trained()
    assert torch.equal(torch.rand(1), expected)


def test_cached_teacher_outputs_change_nothing(teacher, monkeypatch):
    cached = trained("kd+hint", teacher=teacher)
    monkeypatch.setattr(training, "CACHE_LIMIT", 0)
    torch.testing.assert_close(weights(trained("kd+hint", teacher=teacher)), weights(cached))
    seen = trained("kd+hint", teacher=teacher, augment=lambda images, stream: images)
    torch.testing.assert_close(weights(seen), weights(cached))


def test_teacher_sees_the_augmented_and_mixed_images(teacher):
    class Recorder(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.seen = teacher, []

        def forward(self, images):
            self.seen.append(images)
            return self.inner(images)

    class Student(Recorder):
        def __init__(self):
            super().__init__()
            self.inner = build(conv, 0)

    student, recorder = Student(), Recorder()
    fit(student, toy(), method="kd", teacher=recorder, epochs=1, augment=data.shift, mixup=True,
        batch_size=16, progress=False)
    for ours, theirs in zip(student.seen[-4:], recorder.seen[-4:]):
        assert torch.equal(ours, theirs)
    assert not any(torch.equal(image, other) for image in student.seen[-1]
                   for other in toy().images)


def test_mixup_and_smoothing_enter_the_cross_entropy(monkeypatch):
    seen = []
    original = distillers.CrossEntropy.forward
    monkeypatch.setattr(distillers.CrossEntropy, "forward",
                        lambda self, batch: seen.append(batch) or original(self, batch))
    trained(mixup=True, label_smoothing=0.2)
    soft = seen[0].soft_target
    torch.testing.assert_close(soft.sum(1), torch.ones(16))
    assert soft.min() >= 0.2 / CLASSES - 1e-6 and ((soft > 0.06).sum(1) == 2).any()
    trained()
    assert seen[-1].soft_target is None


def test_learning_rate_warms_up_and_ends_at_zero():
    rates = [training.learning_rate(step, 100, 1.0) for step in range(100)]
    assert rates[0] == 0.1 and max(rates) == 1.0 and rates.index(1.0) in (9, 10)
    assert rates[-1] < 0.001 and rates[10:] == sorted(rates[10:], reverse=True)


def test_validation_curve_and_terms_are_in_the_history(teacher):
    network = build(conv, 0)
    history = fit(network, toy(), method="kd", teacher=teacher, epochs=2, validation=toy(20, 1),
                  progress=False).history
    assert [entry["epoch"] for entry in history] == [1, 2]
    assert history[0]["loss"] == pytest.approx(history[0]["ce"] + history[0]["kd"])
    assert history[1]["validation_accuracy"] == training.evaluate(network, toy(20, 1))["accuracy"]


@pytest.mark.parametrize("method", ["ce", "kd+crd", "vid", "hint"])
def test_resumed_training_equals_an_uninterrupted_one(method, teacher, tmp_path, monkeypatch):
    settings = dict(teacher=teacher, epochs=4, augment=data.shift)
    whole = trained(method, **settings)
    stop_after, save = [2], training.checkpoints.save

    def save_then_stop(*arguments):
        save(*arguments)
        stop_after[0] -= 1
        if not stop_after[0]:
            raise KeyboardInterrupt

    monkeypatch.setattr(training.checkpoints, "save", save_then_stop)
    with pytest.raises(KeyboardInterrupt):
        trained(method, checkpoint=tmp_path / "c.pt", **settings)
    resumed = trained(method, checkpoint=tmp_path / "c.pt", **settings)
    assert torch.equal(weights(resumed), weights(whole))


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from test_training import trained, training, weights, torch
save = training.checkpoints.save
def save_then_die(path, settings, history, parts):
    save(path, settings, history, parts)
    if sys.argv[3] == "die" and len(history) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
training.checkpoints.save = save_then_die
torch.set_num_threads(1)
torch.save(weights(trained(epochs=4, checkpoint=sys.argv[2])), sys.argv[2] + ".weights")
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_killed_process_loses_nothing(tmp_path):
    def start(name, word):
        command = [sys.executable, "-c", KILLED, os.path.dirname(__file__), str(tmp_path / name),
                   word]
        return subprocess.run(command, capture_output=True, timeout=120).returncode

    assert start("a", "die") == -signal.SIGKILL
    assert start("a", "live") == 0 and start("b", "live") == 0
    first, second = (torch.load(tmp_path / f"{n}.weights", weights_only=True) for n in "ab")
    assert torch.equal(first, second)


def test_strange_checkpoints_are_refused(tmp_path):
    path = tmp_path / "c.pt"
    trained(checkpoint=path)
    with pytest.raises(ValueError, match="other lr: choose another file"):
        fit(build(conv, 0), toy(), epochs=2, batch_size=16, lr=2e-2, checkpoint=path)
    with pytest.raises(ValueError, match="belongs to another network"):
        fit(models.ConvNet((4, 4), num_classes=CLASSES), toy(), epochs=2, batch_size=16, lr=1e-2,
            checkpoint=path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match="damaged .* delete it"):
        trained(checkpoint=path)


@pytest.mark.parametrize("change, message", [
    ({"epochs": 0}, "epochs must be a whole number"),
    ({"batch_size": 2.5}, "batch_size must be"),
    ({"lr": -1.0}, "lr must be a positive"),
    ({"lr": float("nan")}, "lr must be a positive"),
    ({"label_smoothing": 1.0}, "label_smoothing must lie"),
    ({"device": "gpu"}, "device 'gpu' is unknown"),
    ({"method": "magic"}, "method 'magic' is unknown; known:"),
    ({"method": "kd"}, "teacher is missing: method 'kd'"),
    ({"train": Split(toy().images, toy().labels + 3)}, "must lie in 0..3"),
    ({"train": Split(toy().images, toy().labels.float())}, "must be int64"),
    ({"train": Split(toy().images * torch.nan, toy().labels)}, "train.images holds NaN"),
    ({"train": Split(toy().images[:5], toy().labels)}, "train must hold images"),
    ({"train": Split(toy().images[:0], toy().labels[:0])}, "n >= 1"),
])
def test_bad_arguments_are_named(change, message):
    arguments = {"train": toy(), "epochs": 1, "progress": False} | change
    with pytest.raises(ValueError, match=message):
        fit(build(conv, 0), arguments.pop("train"), **arguments)


def test_unknown_options_and_stages_list_the_known(teacher):
    with pytest.raises(TypeError, match="no option 'temprature'; it has .*temperature"):
        trained("kd", teacher=teacher, temprature=2.0)
    with pytest.raises(ValueError, match="layer9.*blocks.0"):
        trained("hint", teacher=teacher, stage="layer9")


def test_a_diverging_training_says_what_to_lower(teacher):
    with pytest.raises(FloatingPointError, match="'logits' became nan in epoch 1: lower lr"):
        trained("hint", teacher=teacher, stage=-2, lr=1e30)
    with pytest.raises(FloatingPointError, match="'hint' became inf in epoch 1: lower lr"):
        trained("hint", teacher=teacher, stage=-2, weight=1e39, lr=1e-30)


def test_any_network_works_once_its_stages_are_named(teacher):
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, CLASSES))
    network.stages = ("1",)
    fit(network, toy(), method="kd", teacher=teacher, epochs=1, progress=False)
    fit(network, toy(), method="rkd", teacher=teacher, epochs=1, progress=False, stage="1",
        teacher_stage=-1)


METHODS = {"CE": {}, "CE again": {}, "KD": {"method": "kd"}}


def test_comparison_is_paired(teacher):
    runs = compare(METHODS, student=conv, train=toy(), evaluate_on=toy(40, 1), seeds=[3, 4],
                   teacher=teacher, epochs=2, batch_size=16, workers=1, keep=True, progress=False,
                   metrics=lambda student, master: {"agreement": 100 * (
                       training.predict(student, toy(40, 1).images).argmax(1)
                       == training.predict(master, toy(40, 1).images).argmax(1)
                   ).double().mean().item()})
    assert [(r.method, r.seed) for r in runs] == [(m, s) for m in METHODS for s in (3, 4)]
    by = {(r.method, r.seed): r for r in runs}
    for seed in (3, 4):
        assert torch.equal(weights(by["CE", seed].student), weights(by["CE again", seed].student))
    assert not torch.equal(weights(by["CE", 3].student), weights(by["CE", 4].student))
    run = by["KD", 3]
    assert run.metrics["accuracy"] == training.evaluate(run.student, toy(40, 1))["accuracy"]
    assert 0 <= run.metrics["agreement"] <= 100 and run.metrics["extra_bytes"] == 64 * CLASSES * 4
    assert run.config["method"] == "kd" and run.config["teacher"].startswith("ConvNet:")
    assert run.code and run.data and run.versions["torch"] == torch.__version__


def test_workers_give_the_same_bits_as_one_process(teacher):
    settings = dict(student=conv, train=toy(), evaluate_on=toy(40, 1), seeds=[0, 1],
                    teacher={0: teacher, 1: teacher}, epochs=2, keep=True, progress=False)
    alone = compare(METHODS, workers=1, **settings)
    spread = compare(METHODS, workers=2, **settings)
    for ours, theirs in zip(alone, spread):
        assert torch.equal(weights(ours.student), weights(theirs.student))


def test_a_method_of_a_notebook_reaches_the_workers(teacher):
    try:
        @distillers.register("toy")
        class Toy(distillers.Distiller):
            def loss(self, batch):
                return (batch.student.logits - batch.teacher.logits).abs().mean()

        runs = compare({"Toy": {"method": "toy"}}, student=conv, train=toy(), evaluate_on=toy(),
                       seeds=[0, 1], teacher=teacher, epochs=1, workers=2, progress=False)
        assert ["toy" in run.history[0] for run in runs] == [True, True]
    finally:
        del distillers.METHODS["toy"]


def deadly():
    if torch.initial_seed() == 1:  # the seed whose network is being built
        os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
    return conv()


def raising():
    if torch.initial_seed() == 1:
        raise ValueError("no network today")
    return conv()


@pytest.mark.parametrize("constructor, error", [
    (raising, "CE, seed 1: ValueError: no network today"),
    (deadly, "CE, seed 1: the worker process died")])
def test_a_failing_worker_costs_only_its_own_run(constructor, error, tmp_path):
    with pytest.warns(RuntimeWarning, match=f"1 of 4 runs of trial failed:\n  {error}"):
        runs = compare({"CE": {"student": constructor}, "Other": {}}, student=conv, train=toy(),
                       evaluate_on=toy(), seeds=[0, 1], epochs=1, workers=2, folder=tmp_path,
                       experiment="trial", progress=False)
    assert [(r.method, r.seed) for r in runs] == [("CE", 0), ("Other", 0), ("Other", 1)]
    assert len(list((tmp_path / "trial").glob("*.json"))) == 3


def test_finished_runs_are_taken_from_their_records(tmp_path, monkeypatch):
    settings = dict(student=conv, train=toy(), evaluate_on=toy(), seeds=[0, 1], epochs=1,
                    workers=1, folder=tmp_path, progress=False)
    first = compare({"CE": {}}, **settings)
    trained_now = []
    original = training._train_one
    monkeypatch.setattr(training, "_train_one",
                        lambda *a: trained_now.append(a[0]) or original(*a))
    again = compare({"CE": {}, "Smooth": {"label_smoothing": 0.1}}, resume=True, **settings)
    assert [task.method for task in trained_now] == ["Smooth", "Smooth"]
    assert again[:2] == first
    compare({"CE": {}}, resume=True, **settings | {"epochs": 2})
    assert len(trained_now) == 4  # other settings are other runs


def test_parallel_keeps_order_and_survives():
    def square(x):
        if x == 2:
            raise ValueError("two")
        return x * x

    for workers in (1, 2):
        with pytest.warns(RuntimeWarning, match="1 of 3 runs failed:\n  2: ValueError: two"):
            results = parallel.run(square, [3, 2, 1], workers=workers, progress=False)
        assert results[0] == 9 and results[2] == 1
        assert results[1].item == 2 and "ValueError: two" in results[1].error
    with pytest.raises(RuntimeError, match="all 1 runs failed.*\n.*two"):
        parallel.run(square, [2], progress=False)
    with pytest.raises(ValueError, match="workers"):
        parallel.run(square, [1], workers=0)
    assert parallel.run(square, [], progress=False) == []


def test_workers_use_one_thread():
    assert parallel.run(lambda _: torch.get_num_threads(), [0, 1], workers=2,
                        progress=False) == [1, 1]
    before = torch.get_num_threads()
    assert parallel.run(lambda _: torch.get_num_threads(), [0], workers=1, progress=False) == [1]
    assert torch.get_num_threads() == before


DISTRIBUTED = """
import sys
sys.path.insert(0, sys.argv[1])
from test_training import build, conv, fit, mlp, toy, torch, training, weights
torch.set_num_threads(1)
teacher = build(mlp, 9)
student = build(mlp, 0)
fit(student, toy(), method="kd", teacher=teacher, epochs=2, batch_size=16, progress=False)
if training.processes.join()[0] == 0:
    torch.save(weights(student), sys.argv[2])
torch.distributed.destroy_process_group()
"""


@pytest.mark.skipif(os.name == "nt", reason="gloo on Windows needs its own set-up")
def test_two_processes_train_as_one(tmp_path):
    (tmp_path / "script.py").write_text(DISTRIBUTED)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone",
               "--nproc-per-node=2", str(tmp_path / "script.py"), os.path.dirname(__file__),
               str(tmp_path / "weights")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-2000:]
    alone = build(mlp, 0)
    fit(alone, toy(), method="kd", teacher=build(mlp, 9), epochs=2, batch_size=16, progress=False)
    torch.testing.assert_close(torch.load(tmp_path / "weights", weights_only=True),
                               weights(alone), atol=1e-5, rtol=1e-4)


def test_compare_needs_something_to_do():
    with pytest.raises(ValueError, match="must not be empty"):
        compare({}, student=conv, train=toy(), evaluate_on=toy(), seeds=[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="no network for seed 1"):
            compare({"KD": {"method": "kd"}}, student=conv, train=toy(), evaluate_on=toy(),
                    seeds=[1], teacher={0: conv()})
