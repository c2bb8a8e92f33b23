"""Costs against counting by hand; measured ones only for being sane."""

import io
import sys
import types

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
    with torch.no_grad():
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


def test_latency_and_throughput_use_one_thread_and_restore_everything():
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
    assert 0 < efficiency.latency(model, (3,), repeats=3) < 1000
    assert efficiency.throughput(model, (3,), 8, repeats=2) > 8
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
    for resource in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="resource must be positive"):
            efficiency.ratio(1.0, resource)


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
    for wrong in ([], "name", [one, 3]):
        with pytest.raises(TypeError, match=r"models\['x'\] must be a module or a list of modules"):
            efficiency.profile({"x": wrong}, (784,))


def test_bad_input():
    for shape in ((1, 0), (-1,), (2.5,)):
        with pytest.raises(ValueError, match="input_shape must hold positive integers"):
            efficiency.flops(nn.ReLU(), shape)
    with pytest.raises(ValueError, match="repeats and batch_size must be at least 1"):
        efficiency.latency(nn.ReLU(), (1,), repeats=0)
    with pytest.raises(ValueError, match="784 values"):
        efficiency.flops(MLP(), (1, 14, 14))


@pytest.fixture
def rapl(tmp_path, monkeypatch):
    """A counter of one package that wraps at 10 J, and a clock, both moved by the test."""
    folder, now = tmp_path / "intel-rapl:0", [0.0]
    folder.mkdir()
    (folder / "max_energy_range_uj").write_text("10000000")
    (folder / "energy_uj").write_text("9000000")
    monkeypatch.setattr(efficiency, "RAPL", tmp_path)
    monkeypatch.setattr(efficiency.time, "perf_counter", lambda: now[0])

    def work(seconds, microjoules):
        now[0] += seconds
        (folder / "energy_uj").write_text(str(microjoules))

    return work


def test_energy_is_the_difference_of_the_counter(rapl):
    energy = efficiency.measure_energy(lambda: rapl(1.0, 9_500_000))
    assert energy.joules == pytest.approx(0.5) and energy.source == "RAPL intel-rapl:0"
    energy = efficiency.measure_energy(lambda: rapl(2.0, 1_500_000))  # past the end of its range
    assert energy.joules == pytest.approx(2.0) and energy.seconds == 2.0


def test_no_energy_without_an_honest_measurement(rapl, tmp_path, monkeypatch):
    energy = efficiency.measure_energy(lambda: rapl(0.1, 9_100_000))
    assert energy.joules is None and "too short" in energy.source
    (tmp_path / "intel-rapl:0" / "max_energy_range_uj").unlink()
    energy = efficiency.measure_energy(lambda: rapl(1.0, 9_200_000))
    assert energy.joules is None and "cannot be read" in energy.source
    monkeypatch.setattr(efficiency, "RAPL", tmp_path / "nothing")
    energy = efficiency.measure_energy(io.StringIO)
    assert energy.joules is None and "no energy counter" in energy.source


def test_energy_of_a_cuda_device_in_use_is_added_or_nothing_is(rapl, monkeypatch):
    readings = iter((5000, 5000, 7500))  # millijoules; the first reading only tries the counter
    nvml = types.SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetTotalEnergyConsumption=lambda device: next(readings),
    )
    device = types.SimpleNamespace(uuid="1234")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: device)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    energy = efficiency.measure_energy(lambda: rapl(1.0, 9_500_000))
    assert energy.joules == pytest.approx(0.5 + 2.5)
    assert energy.source == "RAPL intel-rapl:0 and NVML"
    monkeypatch.setitem(sys.modules, "pynvml", None)  # not installed
    energy = efficiency.measure_energy(lambda: rapl(1.0, 9_900_000))
    assert energy.joules is None and "CUDA device cannot be read" in energy.source
