"""The same calls on a GPU: every method, half precision, checkpoints, comparisons."""

import math
import subprocess
import sys

import pytest
import torch
from test_training import CLASSES, build, conv, toy, trained, weights

from kdlib import data, distillers, experiments, language, models, stages, training

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here")

METHODS = [*distillers.METHODS, "kd+crd"]


def images(n: int = 64, seed: int = 0) -> data.Split:
    return toy(n, seed).to("cuda")


@pytest.fixture(scope="module")
def teacher():
    network = build(conv, 7)
    training.fit(network, toy(), epochs=3, lr=1e-2, progress=False)
    return network


@pytest.mark.parametrize("method", METHODS)
def test_every_method_follows_the_cpu(method, teacher):
    """Twelve steps without dropout, whose random numbers differ."""
    own = {} if method == "ce" else {"ce_weight": 0.5}
    own |= {"teacher": teacher} if distillers.needs_teacher(method) else {}
    found = []
    for device in ("cpu", "cuda"):
        network, lesson = build(conv, 0), {**own}
        network.dropout.p = 0.0
        if "teacher" in lesson:
            lesson["teacher"] = build(conv, 7)
            lesson["teacher"].load_state_dict(teacher.cpu().state_dict())
        if "crd" in method:  # a bank draws its negatives on the device
            lesson |= {"crd": {"bank": False}} if "+" in method else {"bank": False}
        training.fit(
            network,
            toy(),
            method=method,
            epochs=3,
            batch_size=16,
            lr=2e-3,
            seed=0,
            device=device,
            augment=data.shift,
            progress=False,
            **lesson,
        )
        assert next(network.parameters()).device.type == device
        found.append(weights(network.cpu()))
    torch.testing.assert_close(found[1], found[0], atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("method", ["ce", "kd", "crd", "hint"])
@pytest.mark.parametrize("precision", [None, "bf16"])
def test_a_training_on_the_gpu_resumes(method, precision, teacher, tmp_path):
    own = {} if method == "ce" else {"teacher": teacher.cuda()}
    settings = dict(device="cuda", epochs=4, augment=data.shift, precision=precision, **own)
    whole = trained(method, **settings)
    trained(method, checkpoint=tmp_path / "c.pt", stop_after=2, **settings)
    resumed = trained(method, checkpoint=tmp_path / "c.pt", **settings)
    torch.testing.assert_close(weights(resumed.cpu()), weights(whole.cpu()), atol=1e-3, rtol=1e-3)


def test_a_diverging_training_names_term_and_step():
    network = build(conv, 0)

    def growing(progress):
        return 1.0 if progress < 0.5 else 1e30

    with pytest.raises(FloatingPointError, match=r"term 'ce' became .* in epoch 2, step [1234]"):
        training.fit(
            network,
            images(),
            epochs=2,
            batch_size=16,
            lr=1e-2,
            schedule=growing,
            seed=0,
            progress=False,
        )
    assert all(value.isfinite().all() for value in network.state_dict().values())


def test_compiled_networks_train():
    network = torch.compile(build(conv, 0))
    training.fit(network, images(), epochs=2, batch_size=16, progress=False)
    assert stages.predict(network, images().images).isfinite().all()


# --- graphs


def graphed(method, constructor, **settings) -> list[torch.Tensor]:
    """Weights after a training as usual, and after one with graphs."""
    own = {} if method == "ce" else {"ce_weight": 0.5}
    made = [
        trained(method, constructor=constructor, graphs=graphs, **own, **settings)
        for graphs in (False, True)
    ]
    return list(map(weights, made))


@pytest.mark.parametrize("precision", [None, "bf16"])
@pytest.mark.parametrize("method", METHODS)
def test_graphs_change_no_result(method, precision, teacher):
    own = {"teacher": teacher.cuda()} if distillers.needs_teacher(method) else {}
    plain, recorded = graphed(
        method, steady, device="cuda", epochs=3, augment=data.shift, precision=precision, **own
    )
    room = 1e-3 if precision is None else 1e-2
    torch.testing.assert_close(recorded, plain, atol=room, rtol=room)


def steady():
    return models.ConvNet((4, 8), num_classes=CLASSES)


def test_graphs_draw_the_same_dropout():
    plain, recorded = graphed("ce", conv, device="cuda", epochs=3)
    torch.testing.assert_close(recorded, plain, atol=1e-3, rtol=1e-3)


def test_graphs_leave_the_network_as_it_is(teacher):
    network, split = build(conv, 0), images()
    before = network.forward
    settings = dict(method="kd", batch_size=48, mixup=True, progress=False)
    found = training.fit(
        network, split, teacher=teacher.cuda(), validation=split, epochs=2, graphs=True, **settings
    )
    assert network.forward == before and not network.training
    assert stages.predict(network, split.images).isfinite().all()
    assert found.history[-1]["validation_loss"] == pytest.approx(
        training.evaluate(network, split)["loss"]
    )


def test_graphs_resume(teacher, tmp_path):
    settings = dict(
        device="cuda", epochs=4, augment=data.shift, graphs=True, teacher=teacher.cuda()
    )
    whole = trained("kd", **settings)
    trained("kd", checkpoint=tmp_path / "c.pt", stop_after=2, **settings)
    resumed = trained("kd", checkpoint=tmp_path / "c.pt", **settings)
    torch.testing.assert_close(weights(resumed), weights(whole), atol=1e-3, rtol=1e-3)


def test_comparisons_run_on_the_gpu(teacher, tmp_path):
    runs = experiments.compare(
        {"CE": {}, "KD": {"method": "kd"}},
        student=conv,
        teacher=teacher.cuda(),
        train=images(),
        evaluate_on=images(40, 1),
        seeds=range(2),
        epochs=2,
        folder=tmp_path,
        progress=False,
    )
    assert runs.paired("KD", "CE").shape == (2,)


def test_measures_read_a_network_on_the_gpu(teacher):
    from kdlib import analysis

    network, split = teacher.cuda(), images()
    assert analysis.grad_cam(network, *split, "blocks.1").is_cuda
    attack = analysis.successful_attacks(network, *split, epsilon=0.2)
    assert 0 <= attack.rate <= 100
    assert analysis.linear_cka(split.images, split.images) == pytest.approx(1)


# --- language


@pytest.mark.parametrize("method", ["sft", "kd", "seqkd", "gkd", "minillm"])
def test_language_methods_run_on_the_gpu(method):
    """The same batches on both devices; what a student draws there may differ in a last bit."""
    pairs = language.corpus.examples("train", 64, seed=0)
    tokenizer = language.Words(language.corpus.VOCABULARY)
    histories = []
    for device in ("cpu", "cuda"):
        student, teacher = (
            training.build(lambda: language.GPT(len(tokenizer), 64, dim=24, depth=1, heads=4), seed)
            for seed in (0, 1)
        )
        own = {} if method == "sft" else {"teacher": teacher.to(device)}
        found = language.fit(
            student.to(device), pairs, tokenizer, method=method, steps=4, epochs=1, batch_size=8,
            progress=False, **own,
        )  # fmt: skip
        assert next(student.parameters()).device.type == device
        histories.append(found.history[-1]["loss"])
    if method in ("sft", "kd"):
        assert histories[1] == pytest.approx(histories[0], rel=1e-2)
    assert all(map(math.isfinite, histories))


@pytest.mark.parametrize("kind", ["forward", "reverse", "jsd"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fused_divergence_follows_the_cpu(kind, dtype):
    stream = torch.Generator().manual_seed(0)
    shapes = [(2, 5, 16), (97, 16), (2, 5, 24), (97, 24)]
    plain = [torch.randn(shape, generator=stream).to(dtype) for shape in shapes]
    values, gradients = [], []
    for device in ("cpu", "cuda"):
        hidden, weight, *lesson = (x.to(device) for x in plain)
        hidden.requires_grad_()
        value = language.linear_divergence(hidden, weight, tuple(lesson), kind, chunk=4)
        values.append(value.item())
        gradients.append(torch.autograd.grad(value, hidden)[0].float().cpu())
    room = 1e-4 if dtype == torch.float32 else 5e-2
    assert values[1] == pytest.approx(values[0], rel=room)
    torch.testing.assert_close(gradients[1], gradients[0], atol=room, rtol=room)


# --- a recording that fails


WAITING = """
import torch
from kdlib import models, training

class Waiting(models.ConvNet):
    def forward(self, images):
        return super().forward(images) * (1.0 if images.sum().item() > -1 else 2.0)

split = torch.rand(64, 1, 8, 8).cuda(), torch.randint(4, (64,)).cuda()
try:
    training.fit(Waiting((4, 8)), split, epochs=1, graphs=True, progress=False)
except ValueError as error:
    print(error)
"""


def test_a_network_that_waits_for_the_gpu_cannot_be_recorded():
    """In a process of its own, because a failed recording spoils the GPU's random numbers."""
    command = [sys.executable, "-c", WAITING]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("graphs must be False for Waiting") and "again" in done.stdout
