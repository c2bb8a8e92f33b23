"""`fit`: every method, checkpoints, bad arguments, precision, what is left alone."""

import inspect
import os
import signal
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from kdlib import data, distillers, models, training
from kdlib.data import Split
from kdlib.engine import graphs, loop, placement
from kdlib.stages import Tap
from kdlib.training import build, fit

CLASSES = 4


def toy(n: int = 64, seed: int = 0) -> Split:
    """Images whose brightest quadrant is their class."""
    stream = data.generator(seed)
    labels = torch.randint(CLASSES, (n,), generator=stream)
    images = 0.3 * torch.rand(n, 1, 8, 8, generator=stream)
    for image, label in zip(images, labels.tolist()):
        image[0, 4 * (label // 2) :, 4 * (label % 2) :][:4, :4] += 0.5
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
    fit(
        network,
        toy(),
        method=method,
        seed=seed,
        batch_size=16,
        progress=False,
        **{"epochs": 2, "lr": 1e-2} | options,
    )
    return network


def test_the_loop_learns():
    network = trained(epochs=20, constructor=mlp)
    assert training.evaluate(network, toy(seed=1))["accuracy"] > 90
    assert not network.training


@pytest.mark.parametrize("method", [*distillers.METHODS, "kd+crd"])
def test_every_method_trains_and_repeats_to_the_bit(method, teacher):
    before = weights(teacher)
    options = {"teacher": teacher} if distillers.needs_teacher(method) else {}
    if method == "kd+crd":
        options["ce_weight"] = 0.1
    first = trained(method, **options)
    again = trained(method, **options)
    assert torch.equal(weights(first), weights(again))
    assert not torch.equal(weights(first), weights(build(conv, 0)))
    assert torch.equal(before, weights(teacher))


def test_random_state_of_the_caller_is_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    trained()
    assert torch.equal(torch.rand(1), expected)


def test_cached_teacher_outputs_change_nothing(teacher, monkeypatch):
    both = dict(teacher=teacher, ce_weight=0.1)
    cached = trained("kd+hint", **both)
    monkeypatch.setattr(training, "CACHE_LIMIT", 0)
    torch.testing.assert_close(weights(trained("kd+hint", **both)), weights(cached))
    seen = trained("kd+hint", **both, augment=lambda images, stream: images)
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
    fit(
        student,
        toy(),
        method="kd",
        teacher=recorder,
        epochs=1,
        augment=data.shift,
        mixup=True,
        batch_size=16,
        progress=False,
    )
    for ours, theirs in zip(student.seen[-4:], recorder.seen[-4:]):
        assert torch.equal(ours, theirs)
    assert not any(
        torch.equal(image, other) for image in student.seen[-1] for other in toy().images
    )


@pytest.fixture
def batches(monkeypatch):
    """The batches that the objective sees while `fit` runs."""
    seen = []
    forward = training.ImageObjective.forward

    def watched(self, batch):
        seen.append(batch)
        return forward(self, batch)

    monkeypatch.setattr(training.ImageObjective, "forward", watched)
    return seen


def test_mixup_and_smoothing_enter_the_cross_entropy(batches):
    trained(mixup=True, label_smoothing=0.2)
    soft = batches[0].soft_target
    torch.testing.assert_close(soft.sum(1), torch.ones(16))
    assert soft.min() >= 0.2 / CLASSES - 1e-6 and ((soft > 0.06).sum(1) == 2).any()
    trained()
    assert batches[-1].soft_target is None


def test_under_mixup_the_hard_label_is_that_of_the_heavier_image(batches, teacher):
    trained("dkd", teacher=teacher, mixup=True)
    mixed = [batch for batch in batches if batch.soft_target is not None]
    assert len(mixed) == 8
    for batch in mixed:
        assert torch.equal(batch.target, batch.soft_target.argmax(1))
        assert torch.equal(batch.target, toy().labels[batch.index])
        close = (batch.images - toy().images[batch.index]).abs().mean((1, 2, 3))
        others = (batch.images[:, None] - toy().images[None]).abs().mean((2, 3, 4))
        assert (close <= others.min(1).values + 1e-6).double().mean() > 0.9


def test_validation_curve_and_terms_are_in_the_history(teacher):
    network = build(conv, 0)
    history = fit(
        network,
        toy(),
        method="kd",
        teacher=teacher,
        epochs=2,
        validation=toy(20, 1),
        progress=False,
    ).history
    assert [entry["epoch"] for entry in history] == [1, 2]
    assert history[0]["loss"] == pytest.approx(history[0]["ce"] + history[0]["kd"])
    assert history[1]["validation_accuracy"] == training.evaluate(network, toy(20, 1))["accuracy"]


@pytest.mark.parametrize(
    "method, optimizer",
    [("ce", "adamw"), ("crd", "adamw"), ("vid", "adamw"), ("hint", "sgd"), ("kd", "muon")],
)
def test_resumed_training_equals_an_uninterrupted_one(method, optimizer, teacher, tmp_path):
    settings = dict(epochs=4, augment=data.shift, optimizer=optimizer)
    settings |= {} if method == "ce" else {"teacher": teacher}
    if optimizer == "muon":
        settings["constructor"] = partial(
            models.ViT, 8, 2, heads=2, image_size=8, num_classes=CLASSES
        )
    whole = trained(method, **settings)
    half = trained(method, checkpoint=tmp_path / "c.pt", stop_after=2, **settings)
    assert not torch.equal(weights(half), weights(whole))
    resumed = trained(method, checkpoint=tmp_path / "c.pt", **settings)
    assert torch.equal(weights(resumed), weights(whole))


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from kdlib.engine import checkpoints
from test_training import trained, weights, torch
save = checkpoints.Checkpoint.save
def save_then_die(self, history, parts):
    save(self, history, parts)
    if sys.argv[3] == "die" and len(history) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
checkpoints.Checkpoint.save = save_then_die
torch.set_num_threads(1)
torch.save(weights(trained(epochs=4, checkpoint=sys.argv[2])), sys.argv[2] + ".weights")
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_killed_process_loses_nothing(tmp_path):
    def start(name, word):
        command = [
            sys.executable,
            "-c",
            KILLED,
            os.path.dirname(__file__),
            str(tmp_path / name),
            word,
        ]
        return subprocess.run(command, capture_output=True, timeout=120, check=False).returncode

    assert start("a", "die") == -signal.SIGKILL
    assert start("a", "live") == 0 and start("b", "live") == 0
    first, second = (torch.load(tmp_path / f"{n}.weights", weights_only=True) for n in "ab")
    assert torch.equal(first, second)


def bright(images, stream):
    return images * 1.1


@pytest.mark.parametrize(
    "change, message",
    [
        ({"lr": 2e-2}, "other lr, optimizers: choose another file"),
        ({"lr": np.float32(1e-2)}, "other lr"),
        ({"augment": bright}, "other augment"),
        ({"train": toy(seed=3)}, "other train"),
        ({"student": partial(models.ConvNet, (4, 8), num_classes=CLASSES)}, "other student"),
        ({"student": partial(models.ConvNet, (4, 4), num_classes=CLASSES)}, "other student"),
        ({"method": "kd"}, "other .*method"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(change, message, tmp_path, teacher):
    path = tmp_path / "c.pt"
    trained(checkpoint=path)
    options = {"train": toy(), "epochs": 2, "batch_size": 16, "lr": 1e-2} | change
    options |= {"teacher": teacher} if "method" in change else {}
    network = build(options.pop("student", conv), 0)
    before = weights(network)
    with pytest.raises(ValueError, match=message):
        fit(network, options.pop("train"), checkpoint=path, progress=False, **options)
    assert torch.equal(weights(network), before), "the network was changed by half"


def test_a_checkpoint_of_another_student_is_refused(tmp_path):
    path = tmp_path / "c.pt"
    settings = dict(epochs=3, batch_size=16, lr=1e-2, checkpoint=path, progress=False)
    first = build(conv, 1)
    fit(first, toy(), stop_after=1, **settings)
    other = build(conv, 2)
    with pytest.raises(ValueError, match="belongs to another student"):
        fit(other, toy(), **settings)
    assert torch.equal(weights(other), weights(build(conv, 2)))
    frozen = build(conv, 1)
    frozen.blocks[0].requires_grad_(False)
    with pytest.raises(ValueError, match="other student"):
        fit(frozen, toy(), **settings)
    fit(first, toy(), stop_after=2, **settings)  # as the file holds it
    fit(build(conv, 1), toy(), **settings)  # as it was at the start


def test_a_damaged_checkpoint_is_refused(tmp_path):
    path = tmp_path / "c.pt"
    trained(checkpoint=path)
    whole = path.read_bytes()
    stream = np.random.default_rng(0)
    for place in [*stream.integers(0, len(whole), 60), len(whole) - 1]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(stream.integers(8))
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged.* delete it"):
            trained(checkpoint=path)
    for cut in (0, 100, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match="damaged.* delete it"):
            trained(checkpoint=path)


def test_an_unusable_checkpoint_is_found_before_the_work(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "folder", tmp_path / "file" / "c.pt"):
        network = build(conv, 0)
        with pytest.raises(OSError, match="choose another place"):
            fit(network, toy(), checkpoint=path, progress=False)
        assert torch.equal(weights(network), weights(build(conv, 0)))


class Strange(nn.Module):
    """A network whose output is no tensor of logits."""

    def __init__(self, output):
        super().__init__()
        self.inner, self.output = build(mlp, 0), output

    def forward(self, images):
        return self.output(self.inner(images))


frozen = build(conv, 0).requires_grad_(False)
T = TypeError
V = ValueError


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"epochs": 0}, V, "epochs must be a whole number"),
        ({"epochs": "3"}, T, "epochs must be a whole number, got str '3'"),
        ({"batch_size": 2.5}, T, "batch_size must be a whole number"),
        ({"lr": -1.0}, V, "lr must be a finite number above 0"),
        ({"lr": "0.1"}, T, "lr must be a number, got str"),
        ({"lr": float("nan")}, V, "lr must be a finite number"),
        ({"weight_decay": -1}, V, "weight_decay must be"),
        ({"label_smoothing": 1.0}, V, "label_smoothing must be"),
        ({"ce_weight": -1.0}, V, "ce_weight must be"),
        ({"clip": 0}, V, "clip must be"),
        ({"seed": -1}, V, "seed must be"),
        ({"precision": "fp16"}, V, "precision must be one of None, bf16"),
        ({"optimizer": "adam"}, V, "optimizer must be one of adamw, sgd, muon"),
        ({"optimizer": "muon"}, V, "optimizer 'muon' must find matrices"),
        ({"device": "gpu"}, V, "device"),
        ({"method": "magic"}, V, "method 'magic' is unknown"),
        ({"method": 3}, T, "method must be a name"),
        ({"method": "kd"}, V, "method 'kd': teacher is missing"),
        ({"teacher": build(conv, 1)}, V, "teacher must be None for method 'ce'"),
        (
            {"method": "kd", "teacher": lambda images: images},
            T,
            "teacher must be a torch.nn.Module",
        ),
        ({"method": "kd+crd", "teacher": build(conv, 1)}, V, "ce_weight must be given"),
        (
            {"method": "kd", "alpha": 0, "ce_weight": 0, "teacher": build(conv, 1)},
            V,
            "must not both be 0",
        ),
        ({"ce_weight": 0}, V, "must not both be 0"),
        (
            {"method": "kd", "teacher": models.MLP((4,), in_features=64, num_classes=3)},
            V,
            "teacher must give 4 logits",
        ),
        ({"student": frozen}, V, "student must have parameters with requires_grad=True"),
        ({"student": frozen, "method": "hint", "teacher": build(conv, 1)}, V, "requires_grad=True"),
        ({"student": build(conv, 0).double()}, T, "student must have float32 weights"),
        ({"student": build(conv, 0).half()}, T, "student must have float32 weights"),
        ({"student": Strange(lambda z: (z, z))}, T, "must return logits"),
        ({"method": "kd", "teacher": Strange(lambda z: [z])}, T, "must return logits"),
        ({"train": Split(toy().images, toy().labels + 3)}, V, "train.labels must lie in 0..3"),
        ({"train": Split(toy().images, toy().labels.float())}, T, "train.labels must be int64"),
        (
            {"train": Split(toy().images * torch.nan, toy().labels)},
            V,
            "train.images must be finite",
        ),
        (
            {"train": Split((255 * toy().images).byte(), toy().labels)},
            T,
            "train.images must be floating-point",
        ),
        ({"train": Split(toy().images[:5], toy().labels)}, V, "must hold the same samples"),
        ({"train": Split(toy().images[:0], toy().labels[:0])}, V, "at least one sample"),
        ({"train": data.Dataset(toy(), toy(), toy(), "toy", 4)}, T, "got a Dataset: choose"),
        ({"train": toy().images}, T, "train must be a Split"),
        ({"validation": Split(toy().images[:0], toy().labels[:0])}, V, "validation.images"),
        ({"mixup": 0.2}, T, "mixup must be a bool"),
        ({"augment": "shift"}, T, "augment must be a function"),
        ({"schedule": "cosine"}, T, "schedule must be a function"),
        (
            {"label_smoothing": 0.3, "method": "kd", "alpha": 1, "teacher": build(conv, 1)},
            V,
            "label_smoothing must be 0 where ce_weight is 0",
        ),
        ({"augment": lambda images, stream: images * torch.nan}, V, "augment must return finite"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    arguments = {"train": toy(), "epochs": 1, "progress": False} | change
    with pytest.raises(error, match=message):
        fit(arguments.pop("student", build(conv, 0)), arguments.pop("train"), **arguments)


def test_a_student_is_not_its_own_teacher():
    network = build(conv, 0)
    for teacher in (network, nn.Sequential(network)):
        with pytest.raises(ValueError, match="teacher must be another network"):
            fit(network, toy(), method="kd", teacher=teacher, progress=False)


def test_an_empty_split_is_never_scored():
    with pytest.raises(ValueError, match="split.images"):
        training.evaluate(build(conv, 0), Split(toy().images[:0], toy().labels[:0]))


def test_a_plain_tuple_serves_as_a_split():
    network = build(conv, 0)
    fit(network, tuple(toy()), epochs=2, seed=0, batch_size=16, lr=1e-2, progress=False)
    assert torch.equal(weights(network), weights(trained()))


def test_unknown_options_and_stages_list_the_known(teacher):
    with pytest.raises(TypeError, match="no option 'temprature': its options are temperature"):
        trained("kd", teacher=teacher, temprature=2.0)
    with pytest.raises(ValueError, match=r"layer9.*blocks.0"):
        trained("hint", teacher=teacher, stage="layer9")


def test_a_diverging_training_names_term_and_step_and_keeps_the_last_good_state(teacher):
    network = build(conv, 0)

    def growing(progress):
        return 1.0 if progress < 0.5 else 1e30

    with pytest.raises(FloatingPointError, match=r"became .* in epoch 2, step [234]: lower lr"):
        fit(
            network,
            toy(),
            method="hint",
            teacher=teacher,
            epochs=2,
            batch_size=16,
            lr=1e-2,
            schedule=growing,
            seed=0,
            progress=False,
        )
    good = build(conv, 0)
    fit(
        good,
        toy(),
        method="hint",
        teacher=teacher,
        epochs=2,
        batch_size=16,
        lr=1e-2,
        seed=0,
        schedule=growing,
        stop_after=1,
        progress=False,
    )
    assert torch.equal(weights(network), weights(good))
    with pytest.raises(FloatingPointError, match="term 'hint' became inf in epoch 1, step 1"):
        trained("hint", teacher=teacher, stage=-2, weight=1e39, lr=1e-30)


def test_a_weight_that_breaks_in_the_last_step_is_noticed():
    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = build(mlp, 0)

        def forward(self, images):
            logits = self.inner(images)
            return logits + (logits * 0).square().sqrt()  # its gradient is not a number

    network = Root()
    with pytest.raises(FloatingPointError, match="a weight became infinite or NaN in epoch 1"):
        fit(network, toy(), epochs=1, batch_size=64, progress=False)
    assert all(value.isfinite().all() for value in network.parameters())


def test_an_interrupted_epoch_leaves_the_last_finished_one(tmp_path):
    calls = []

    def breaking(images, stream):
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return images

    network = build(conv, 0)
    with pytest.raises(KeyboardInterrupt):
        fit(network, toy(), augment=breaking, epochs=3, batch_size=16, lr=1e-2, progress=False)
    good = build(conv, 0)
    fit(
        good,
        toy(),
        augment=lambda images, stream: images,
        epochs=3,
        batch_size=16,
        lr=1e-2,
        stop_after=1,
        progress=False,
    )
    assert torch.equal(weights(network), weights(good))


def test_modes_are_left_as_they_were(teacher):
    teacher.train()
    trained("kd", teacher=teacher)
    assert teacher.training
    network = build(conv, 0)

    def interrupted(images, stream):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(network, toy(), method="kd", teacher=teacher, augment=interrupted, progress=False)
    assert teacher.training and not network.training


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_fit_trains_where_gradients_are_off(mode):
    with mode():
        network = trained()
    assert torch.equal(weights(network), weights(trained()))


def test_randomness_of_numpy_and_python_repeats_too():
    import random

    def scaled(images, stream):
        return images * (0.9 + 0.2 * np.random.rand() * random.random())

    np.random.seed(1)
    first = trained(augment=scaled)
    np.random.seed(2)
    state = np.random.get_state()[1].copy()
    assert torch.equal(weights(first), weights(trained(augment=scaled)))
    assert (np.random.get_state()[1] == state).all()


@pytest.mark.parametrize("method", ["kd", "rkd", "hint"])
def test_bf16_runs_the_networks_and_keeps_the_losses_in_float32(method, teacher, monkeypatch):
    seen = []
    create = training.create

    def watched(*args, **kwargs):
        distiller = create(*args, **kwargs)
        distiller.register_forward_pre_hook(lambda module, batch: seen.append(batch[0]))
        return distiller

    monkeypatch.setattr(training, "create", watched)
    half = trained(method, teacher=teacher, precision="bf16", augment=bright)
    whole = trained(method, teacher=teacher, augment=bright)
    assert not torch.equal(weights(half), weights(whole))
    torch.testing.assert_close(weights(half), weights(whole), atol=0.1, rtol=0.1)
    for batch in seen:
        assert batch.student.logits.dtype == batch.teacher.logits.dtype == torch.float32
        assert all(f.dtype == torch.float32 for f in batch.student.features.values())


def test_optimizers_and_schedules_by_name_and_as_functions():
    vit = partial(models.ViT, 8, 2, heads=2, image_size=8, num_classes=CLASSES)
    found = {
        name: weights(trained(constructor=vit, optimizer=name)) for name in ("adamw", "sgd", "muon")
    }
    own = weights(
        trained(
            constructor=vit,
            optimizer=lambda named, lr, weight_decay: torch.optim.AdamW(
                [p for _, p in named], lr, fused=True, weight_decay=weight_decay
            ),
        )
    )
    assert torch.equal(own, found["adamw"])
    assert not torch.equal(found["sgd"], found["adamw"])
    assert not torch.equal(found["muon"], found["adamw"])
    stepped = weights(trained(constructor=vit, schedule=loop.published_steps))
    assert not torch.equal(stepped, found["adamw"])


def test_convolutions_train_channels_last_unless_told_otherwise():
    network = trained()
    assert network.memory_format == torch.channels_last
    assert build(conv, 0).blocks[1][0].weight.is_contiguous()
    assert network.blocks[1][0].weight.is_contiguous(memory_format=torch.channels_last)
    plain = trained(memory_format=torch.contiguous_format)
    assert plain.blocks[1][0].weight.is_contiguous()
    torch.testing.assert_close(weights(plain), weights(network), atol=1e-3, rtol=1e-3)


def test_small_networks_use_one_thread_and_the_count_is_restored(monkeypatch):
    counts = []
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        trained(augment=lambda images, stream: counts.append(torch.get_num_threads()) or images)
        monkeypatch.setattr(placement, "SMALL", 0)
        trained(augment=lambda images, stream: counts.append(torch.get_num_threads()) or images)
        assert torch.get_num_threads() == 2 and {*counts[:8]} == {1} and {*counts[8:]} == {2}
    finally:
        torch.set_num_threads(before)


def test_any_network_works_once_its_stages_are_named(teacher):
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, CLASSES))
    fit(network, toy(), method="kd", teacher=teacher, epochs=1, progress=False)
    with pytest.raises(ValueError, match="student names no stages"):
        fit(network, toy(), method="rkd", teacher=teacher, progress=False)
    network.stages = ("1",)
    fit(
        network,
        toy(),
        method="rkd",
        teacher=teacher,
        epochs=1,
        progress=False,
        stage="1",
        teacher_stage=-1,
    )


def test_a_compiled_network_trains_with_methods_on_logits(teacher):
    network = torch.compile(build(mlp, 0), backend="eager")
    fit(
        network,
        toy(),
        method="kd",
        teacher=teacher,
        epochs=2,
        seed=0,
        batch_size=16,
        lr=1e-2,
        progress=False,
    )
    plain = trained("kd", teacher=teacher, constructor=mlp)
    torch.testing.assert_close(weights(network), weights(plain), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="not a compiled one"):
        fit(network, toy(), method="rkd", teacher=teacher, progress=False)


def test_relabelled_images_carry_the_teachers_answers(teacher):
    found = training.relabel(toy(), teacher)
    assert torch.equal(found.images, toy().images)
    assert torch.equal(found.labels, training.predict(teacher, toy().images).argmax(1))


def test_a_constructor_must_return_a_network():
    with pytest.raises(TypeError, match="constructor must return a network"):
        build(lambda: None, 0)


def test_every_argument_of_fit_is_described():
    text = inspect.getdoc(fit)
    missing = [
        name
        for name in inspect.signature(fit).parameters
        if f"    {name}:" not in text
        and name not in ("weight_decay", "epochs", "batch_size", "schedule")
    ]
    assert not missing
    assert distillers.METHODS


# Compiled networks, and too little memory


def test_a_compiled_network_learns_the_same():
    """Up to rounding: the compiler fuses operations (and draws dropout in its own way)."""
    still = partial(models.ConvNet, (4, 8), num_classes=CLASSES)
    teacher, plain, compiled = (training.build(still, seed) for seed in (7, 0, 0))
    options = dict(method="kd", teacher=teacher, epochs=1, optimizer="sgd", progress=False)
    first = training.fit(plain, toy(), **options)
    second = training.fit(compiled, toy(), compile=True, **options)
    assert second.history[0]["loss"] == pytest.approx(first.history[0]["loss"], rel=1e-4)
    assert plain.state_dict().keys() == compiled.state_dict().keys()
    for one, other in zip(plain.state_dict().values(), compiled.state_dict().values()):
        assert torch.allclose(one.float(), other.float(), atol=1e-3)
    with pytest.raises(ValueError, match="compile must be False for method 'hint'"):
        options["method"] = "hint"
        training.fit(training.build(conv, 0), toy(), compile=True, **options)


class Hungry(nn.Module):
    """Has no memory for more than `most` images at once while it trains."""

    def __init__(self, most):
        super().__init__()
        self.net, self.most = conv(), most

    def forward(self, images):
        if self.training and len(images) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return self.net(images)


def test_out_of_memory_names_the_batch_that_fits():
    with pytest.raises(torch.OutOfMemoryError, match=r"at batch_size=32: a step of 8 fits; prec"):
        training.fit(Hungry(10), toy(), batch_size=32, epochs=1, progress=False)
    with pytest.raises(torch.OutOfMemoryError, match="not even 1 fits: take smaller"):
        training.fit(Hungry(0), toy(), batch_size=32, epochs=1, progress=False)


# --- graphs (what they do on a GPU is in test_cuda.py)


def test_graphs_need_a_gpu():
    for own, reason in (
        ({"graphs": True}, "on cpu: they need an NVIDIA GPU"),
        ({"graphs": True, "stop_after": 0}, "on cpu"),
    ):
        with pytest.raises(ValueError, match=f"graphs must be False {reason}"):
            trained(**own)
    with pytest.raises(TypeError, match="graphs"):
        trained(graphs=1)


@pytest.mark.parametrize("method", ["ce", "kd", "hint", "at"])
@pytest.mark.parametrize("augment", [None, data.shift])
def test_recorded_taps_stand_for_taps(method, augment, teacher, monkeypatch):
    """Their plumbing, with the passes themselves in the place of recordings."""
    shapes = []

    def recorded(network, images):
        shapes.append((network.training, tuple(images.shape)))
        return network

    monkeypatch.setattr(graphs, "_with_gradient", recorded)
    monkeypatch.setattr(graphs, "_without_gradient", recorded)
    monkeypatch.setattr(training, "_check_graphs", lambda *_: None)
    own = {"augment": augment} | ({} if method == "ce" else {"teacher": teacher})
    plain, replayed = (trained(method, graphs=chosen, **own) for chosen in (False, True))
    assert torch.equal(weights(plain), weights(replayed))
    runs = [True] if method == "ce" or augment is None else [True, False]  # a cached teacher rests
    assert shapes == [(mode, (16, 1, 8, 8)) for mode in runs]


def test_a_recorded_tap_takes_other_shapes_and_names_its_failure(teacher, monkeypatch):
    tap = Tap(teacher, ["blocks.0"])
    images = toy().images
    monkeypatch.setattr(graphs, "_without_gradient", lambda network, images: network)
    found = graphs.Recorded(tap, images[:16], None, training=False)
    for some in (images[:16], images[:3]):
        (logits, features), (wanted, also) = found(some), tap(some)
        assert torch.equal(logits, wanted) and torch.equal(*map(stage_of, (features, also)))

    def failing(network, images):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(graphs, "_without_gradient", failing)
    with pytest.raises(ValueError, match="graphs must be False for ConvNet.*not permitted"):
        graphs.Recorded(tap, images, None, training=False)


def stage_of(features):
    return features["blocks.0"]
