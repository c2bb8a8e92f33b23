"""The loop by itself: objectives that are no image training, optimizers, schedules, clipping."""

import math

import pytest
import torch
from torch import nn

from kdlib.engine import loop, optimizers
from kdlib.engine.loop import optimise, published_steps, warmup_cosine


class Line(nn.Module):
    """Fit y = w x; two terms, one of them a decay."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))
        self.own = nn.Parameter(torch.zeros(1))

    def forward(self, batch):
        x, y = batch
        return {
            "fit": (self.w * x - y).square().mean(),
            "own": (self.own - 3).square().sum(),
        }


def batches(epoch, generator):
    for _ in range(5):
        x = torch.randn(8, generator=generator)
        yield x, 2 * x


def sgd(module, lr=0.1):
    return torch.optim.SGD(module.parameters(), lr=lr)


def run(module, optimizer=None, source=batches, **options):
    given = {"epochs": 4, "steps": 5, "progress": False} | options
    return optimise(module, source, optimizer or sgd(module), **given)


def test_any_objective_is_minimised_and_every_term_is_in_the_history():
    line = Line()
    history = run(line, epochs=10, after_epoch=lambda epoch: {"extra": 2.0 * epoch})
    assert line.w.item() == pytest.approx(2, abs=0.1)
    assert [entry["epoch"] for entry in history] == list(range(1, 11))
    assert history[3]["extra"] == 8 and history[-1]["fit"] < history[0]["fit"]
    assert history[2]["loss"] == pytest.approx(history[2]["fit"] + history[2]["own"])


def test_the_bar_shows_the_loss_and_what_is_watched(monkeypatch):
    shown = []

    class Bar:
        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

        def update(self, count=1):
            return None

        def set_postfix(self, values, refresh):
            shown.append(values)

    monkeypatch.setattr(loop, "bar", lambda *given, **options: Bar())
    history = run(Line(), epochs=2, after_epoch=lambda epoch: {"reverse_kl": epoch / 3})
    assert [values["reverse_kl"] for values in shown] == ["0.333", "0.667"]
    assert [values["loss"] for values in shown] == [f"{one['loss']:.3f}" for one in history]


def test_a_source_may_sample_from_the_student():
    """As on-policy distillation does: the batches depend on the weights of the moment."""
    line, seen = Line(), []

    def on_policy(epoch, generator):
        for _ in range(5):
            seen.append(line.w.item())
            x = line.w.detach() + torch.randn(8, generator=generator)
            yield x, 2 * x

    run(line, source=on_policy, epochs=2)
    assert len(set(seen)) == 10, "all batches were drawn before the first step"


def test_each_group_keeps_its_own_peak_rate():
    line, rates = Line(), []
    optimizer = torch.optim.SGD(
        [{"params": [line.w], "lr": 0.1}, {"params": [line.own], "lr": 0.4}]
    )
    second = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)

    def watched(epoch, generator):
        for batch in batches(epoch, generator):
            yield batch
            rates.append([g["lr"] for one in (optimizer, second) for g in one.param_groups])

    run(line, [optimizer, second], watched, epochs=2, schedule=lambda progress: 1 - progress)
    assert rates[0] == pytest.approx([0.095, 0.38, 0.95])  # the middle of the first of ten steps
    assert rates[7] == pytest.approx([0.015, 0.06, 0.15])
    assert [g["lr"] for g in optimizer.param_groups] == [0.1, 0.4], "the peaks are left behind"


def test_schedules():
    assert warmup_cosine(0.05) == pytest.approx(0.5) and warmup_cosine(0.1) == pytest.approx(1)
    assert warmup_cosine(0.55) == pytest.approx(0.5) and warmup_cosine(1.0) == pytest.approx(0)
    marks = [149.5 / 240, 150.5 / 240, 180.5 / 240, 239 / 240]
    assert [published_steps(mark) for mark in marks] == pytest.approx([1, 0.1, 0.01, 0.001])


def test_clipping_bounds_the_whole_gradient():
    line, clipped = Line(), Line()
    run(line, epochs=1, steps=1, schedule=lambda progress: 1.0)
    run(clipped, epochs=1, steps=1, schedule=lambda progress: 1.0, clip=0.5)

    def moved(module):
        return torch.cat([module.w, module.own]).norm().item()

    assert moved(line) > 0.5 and moved(clipped) == pytest.approx(0.1 * 0.5, rel=1e-4)
    direction = line.own / line.w
    assert torch.allclose(clipped.own / clipped.w, direction, rtol=1e-4)


class Replay:
    """A source with a state of its own."""

    def __init__(self):
        self.kept = torch.zeros(1)

    def __call__(self, epoch, generator):
        for x, y in batches(epoch, generator):
            self.kept = 0.9 * self.kept + x.mean()
            yield x + self.kept, y

    def state_dict(self):
        return {"kept": self.kept}

    def load_state_dict(self, state):
        self.kept = state["kept"]


def test_a_sources_state_is_resumed(tmp_path):
    whole = Line()
    run(whole, source=Replay())
    half, resumed = Line(), Line()
    run(half, source=Replay(), checkpoint=tmp_path / "c.pt", stop_after=2)
    history = run(resumed, source=Replay(), checkpoint=tmp_path / "c.pt")
    assert torch.equal(resumed.w, whole.w) and len(history) == 4


def test_a_term_that_is_not_finite_is_named_with_its_step_and_undone():
    line = Line()

    def breaking(epoch, generator):
        for number, (x, y) in enumerate(batches(epoch, generator)):
            yield x, y * (math.inf if epoch == 3 and number == 1 else 1)

    with pytest.raises(FloatingPointError, match="term 'fit' became inf in epoch 3, step 2"):
        run(line, source=breaking)
    good = Line()
    run(good, stop_after=2)
    assert torch.equal(line.w, good.w) and torch.equal(line.own, good.own)


def test_a_sum_that_overflows_is_no_finished_epoch():
    class Large(Line):
        def forward(self, batch):
            return {"a": self.w * 0 + 3e38, "b": self.own * 0 + 3e38}

    with pytest.raises(FloatingPointError, match="sum of the terms became infinite in epoch 1"):
        run(Large())


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"epochs": 0}, ValueError, "epochs must be"),
        ({"steps": 0}, ValueError, "steps must be"),
        ({"steps": 6}, ValueError, "batches must give 6 batches, got 5 in epoch 1"),
        ({"stop_after": 9}, ValueError, "stop_after must be"),
        ({"clip": -1}, ValueError, "clip must be"),
        ({"precision": "fp16"}, ValueError, "precision must be"),
    ],
)
def test_bad_arguments_are_named(options, error, message):
    with pytest.raises(error, match=message):
        run(Line(), **options)


def test_muon_takes_the_matrices_of_blocks_and_adamw_the_rest():
    network = nn.ModuleDict(
        {
            "embed": nn.Linear(4, 4),
            "blocks": nn.Sequential(nn.Linear(4, 4), nn.Conv2d(4, 4, 3)),
            "head": nn.Linear(4, 2),
        }
    )
    first, second = optimizers.create("muon", network.named_parameters(), lr=0.01, weight_decay=0.1)
    chosen = [p for group in first.param_groups for p in group["params"]]
    assert len(chosen) == 1 and chosen[0] is network["blocks"][0].weight
    rest = [p for group in second.param_groups for p in group["params"]]
    assert len(rest) == len(list(network.parameters())) - 1
    assert (first.param_groups[0]["lr"], second.param_groups[0]["lr"]) == (0.02, 0.01)
    for name in ("lr", "weight_decay"):
        with pytest.raises((ValueError, TypeError), match=f"{name} must be"):
            optimizers.create(
                "sgd",
                network.named_parameters(),
                **{"lr": 1.0, "weight_decay": 0.0} | {name: float("nan")},
            )
