"""Costs against counting by hand; measured ones only for being sane."""

import io
import itertools

import bad
import pytest
import torch
from torch import nn

from kdlib import efficiency
from kdlib.models import MLP, ConvNet, ViT


def test_parameters_by_hand():
    assert efficiency.parameters(nn.Linear(3, 4)) == 3 * 4 + 4
    assert efficiency.parameters(nn.Conv2d(2, 5, 3, bias=False).requires_grad_(False)) == 2 * 5 * 9
    shared = nn.Linear(3, 3)
    assert efficiency.parameters(nn.Sequential(shared, shared)) == 12


def encoder():
    return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)


T, D = 16, 8  # tokens and width: projections and MLP, then the two products of attention
ATTENTION = 2 * (T * D * 3 * D + T * D * D + 2 * T * D * 2 * D) + 2 * (2 * T * T * D)


@pytest.mark.parametrize(
    "model, shape, expected",
    [
        (nn.Linear(3, 4), (3,), 2 * 3 * 4),
        (nn.Conv2d(2, 3, 3, padding=1), (2, 5, 6), 2 * (5 * 6) * (2 * 9) * 3),
        (nn.Conv2d(4, 4, 3, stride=2, groups=4), (4, 7, 7), 2 * (3 * 3) * 9 * 4),
        (ConvNet((4,)), (1, 8, 8), 2 * 16 * 9 * 4 + 2 * 4 * 10),
        (ViT(D, 1, image_size=14), (1, 14, 14), ATTENTION + 2 * T * 16 * D + 2 * D * 10),
        (encoder(), (T, D), ATTENTION),
        (encoder().requires_grad_(False), (T, D), ATTENTION),  # PyTorch's fused path is avoided
        (nn.ReLU(), (3,), 0),
    ],
)
def test_flops_by_hand(model, shape, expected):
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert efficiency.flops(model, shape) == expected
    assert model.training and all(p.grad is None for p in model.parameters())


def test_size_is_that_of_the_saved_file(tmp_path):
    model = ConvNet()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    size = efficiency.size_bytes(model)
    assert abs(size - (tmp_path / "weights.pt").stat().st_size) < 2000  # the name is stored inside
    assert size > 4 * efficiency.parameters(model)
    half = efficiency.size_bytes(ConvNet().half())
    assert half < size - 1.9 * efficiency.parameters(model)


def test_latency_and_throughput_use_one_thread_and_restore_everything(monkeypatch):
    seen = set()
    threads = torch.get_num_threads()

    class Probe(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))

        def forward(self, x):
            seen.add((torch.get_num_threads(), self.training, x.dtype, len(x)))
            return x

    model = Probe()
    torch.set_num_threads(3)
    ticks = itertools.count(step=0.5)  # a clock on which every pass takes half a second
    monkeypatch.setattr(efficiency.time, "perf_counter", lambda: next(ticks))
    assert efficiency.latency(model, (3,), repeats=3) == 500
    assert efficiency.throughput(model, (3,), 8, repeats=2) == 16
    assert seen == {(1, False, torch.float64, 1), (1, False, torch.float64, 8)}
    assert model.training and torch.get_num_threads() == 3
    torch.set_num_threads(threads)


def test_a_larger_network_is_slower():
    small, large = MLP((8,)), MLP((2048, 2048))
    shape = (1, 28, 28)
    assert efficiency.latency(large, shape) > efficiency.latency(small, shape)
    assert efficiency.throughput(large, shape) < efficiency.throughput(small, shape)


def test_ratio():
    assert efficiency.ratio(90.0, 4.5) == 20.0


def test_profile_adds_up_an_ensemble(monkeypatch):
    one, two = MLP((4,)), MLP((5,))
    rows = efficiency.profile({"one": one, "two": two, "both": [one, two]}, (784,), measure=False)
    assert [row["model"] for row in rows] == ["one", "two", "both"]
    for column in ("parameters", "FLOPs", "bytes"):
        assert rows[2][column] == rows[0][column] + rows[1][column]
    monkeypatch.setattr(efficiency, "latency", lambda model, shape: 2.0)
    monkeypatch.setattr(efficiency, "throughput", lambda model, shape: 50.0)
    row = efficiency.profile({"members": nn.ModuleList([one, two])}, (784,))[0]
    assert list(row) == ["model", "parameters", "FLOPs", "bytes", "latency ms", "images/s"]
    assert row["latency ms"] == 4.0 and row["images/s"] == 25.0  # one after the other


def test_an_accelerator_is_waited_for(monkeypatch):
    waited = []

    class Elsewhere(torch.Tensor):
        device = torch.device("mps")

    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    samples = efficiency._samples(nn.ReLU(), (3,), 1).as_subclass(Elsewhere)
    monkeypatch.setattr(efficiency, "_samples", lambda model, shape, count: samples)
    efficiency.latency(nn.ReLU(), (3,), repeats=4)
    assert len(waited) >= 4 and set(waited) == {torch.device("mps")}


# --- bad arguments, by enumeration

NET = nn.Linear(3, 2)
BAD: bad.Table = {
    "parameters": ({"model": NET}, {"model": (*bad.NETWORKS, [NET])}),
    "size_bytes": ({"model": NET}, {"model": (*bad.NETWORKS, [NET])}),
    "flops": (
        {"model": NET, "input_shape": (3,)},
        {"model": (*bad.NETWORKS, [NET]), "input_shape": (*bad.SEQUENCES, ())},
    ),
    "latency": (
        {"model": NET, "input_shape": (3,), "repeats": 1},
        {"model": bad.NETWORKS, "input_shape": (*bad.SEQUENCES, ()), "repeats": bad.SIZES},
    ),
    "throughput": (
        {"model": NET, "input_shape": (3,), "repeats": 1},
        {
            "model": bad.NETWORKS,
            "input_shape": (*bad.SEQUENCES, ()),
            "batch_size": bad.SIZES,
            "repeats": bad.SIZES,
        },
    ),
    "ratio": (
        {"result": 1, "resource": 2},
        {"result": bad.NUMBERS, "resource": (*bad.NUMBERS, 0, -1)},
    ),
    "profile": (
        {"models": {"x": NET}, "input_shape": (3,), "measure": False},
        {
            "models": (None, [NET], NET, {"x": []}, {"x": "name"}, {"x": [NET, 3]}, {"x": None}),
            "input_shape": (*bad.SEQUENCES, ()),
            "measure": bad.SWITCHES,
        },
    ),
}


@pytest.mark.parametrize("name, parameter", bad.checks(BAD))
def test_bad_arguments_are_refused_by_name(name, parameter):
    bad.refuses(efficiency, BAD, name, parameter)


def test_no_argument_was_forgotten():
    assert bad.missing(efficiency, BAD, {}) == []


def test_an_image_that_the_network_cannot_read():
    with pytest.raises(ValueError, match="784 values"):
        efficiency.flops(MLP(), (1, 14, 14))


def test_eight_bits_keep_the_answers_and_save_bytes():
    """What notebook 7 builds on: torchao replaces the linear layers of a network of the kit."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    network = MLP((64, 64), in_features=64).eval()
    images = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    before = network(images)
    plain = _stored(network)
    quantize_(network, Int8WeightOnlyConfig())
    assert (network(images) - before).abs().max() < 0.01 * before.abs().max()
    assert _stored(network) < 0.5 * plain


def _stored(network):
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    return len(file.getvalue())
