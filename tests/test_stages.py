"""Reading networks: taps on the kit's models and on any other module, answers batch by batch."""

import copy
import pickle

import pytest
import torch
import torchvision
from torch import nn

from kdlib import stages
from kdlib.models import ConvNet
from kdlib.stages import Tap


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


class Foreign(nn.Module):
    """Built like a torchvision network: layers, avgpool, fc; nothing in it knows about us."""

    def __init__(self):
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.layer2 = nn.Sequential(nn.Conv2d(4, 6, 3, 2), nn.ReLU(inplace=True))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.unused = nn.Linear(2, 2)
        self.recurrent = nn.LSTM(6, 6)
        self.fc = nn.Linear(6, 10)

    def forward(self, x):
        x = self.avgpool(self.layer2(self.layer1(x))).flatten(1)
        return self.fc(self.recurrent(x)[0])


def test_tap_on_a_foreign_module():
    model, x = Foreign().eval(), torch.rand(2, 3, 9, 9)
    with Tap(model, ("layer1", "layer2.0", "avgpool")) as tap:
        logits, features = tap(x)
        assert list(features) == ["layer1", "layer2.0", "avgpool"]
        tap(torch.rand(2, 3, 9, 9))
    assert torch.equal(features["layer1"], model.layer1(x))  # not overwritten by the second pass
    assert torch.equal(logits, model(x))
    model.stages = ("layer1", "layer2", "avgpool")
    assert stages.stage_shapes(model, x)["avgpool"] == (6, 1, 1)


def test_tap_keeps_the_graph_and_respects_no_grad():
    model = ConvNet((4, 4))
    with Tap(model, ["blocks.0"]) as tap:
        assert tap(torch.rand(2, 1, 8, 8))[1]["blocks.0"].requires_grad
        with torch.no_grad():
            assert not tap(torch.rand(2, 1, 8, 8))[1]["blocks.0"].requires_grad


def test_close_removes_the_hooks():
    model, x = Foreign().eval(), torch.rand(2, 3, 9, 9)
    expected = model(x)
    tap = Tap(model, ["layer1"])
    tap.close()
    tap.close()
    assert not any(module._forward_hooks for module in model.modules())
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), expected)
    with pytest.raises(RuntimeError, match="the tap is closed"):
        tap(x)


def test_tap_errors():
    model = Foreign()
    with pytest.raises(ValueError, match=r"unknown stage 'layer9'.*layer1, .*avgpool"):
        Tap(model, ["layer1", "layer9"])
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(ValueError, match=r"unknown stage 'x'; known, shallow to deep: blocks.0"):
        Tap(ConvNet(), ["x"])
    with pytest.raises(TypeError, match="sequence of names"):
        Tap(model, "layer1")
    with Tap(model, ["unused"]) as tap, pytest.raises(RuntimeError, match="forward did not run"):
        tap(torch.rand(2, 3, 9, 9))
    with (
        Tap(model, ["recurrent"]) as tap,
        pytest.raises(TypeError, match="'recurrent' returns tup"),
    ):
        tap(torch.rand(2, 3, 9, 9))


def test_features_of_an_earlier_pass_are_not_taken_for_new_ones():
    class Sometimes(nn.Sequential):
        def forward(self, x):
            return self[0](x) if x.mean() > 0 else x

    with Tap(Sometimes(nn.ReLU()), ["0"]) as tap:
        tap(torch.ones(2, 3))
        with pytest.raises(RuntimeError, match="stage '0' gave no output"):
            tap(-torch.ones(2, 3))


def test_stage_names_and_resolution():
    model = ConvNet()
    assert stages.stage_names(model) == ("blocks.0", "blocks.1", "blocks.2", "pool")
    assert stages.resolve_stage(model, -1) == "pool"
    assert stages.resolve_stage(model, -2) == stages.resolve_stage(model, 2) == "blocks.2"
    assert stages.resolve_stage(model, "blocks.1.0") == "blocks.1.0"  # any module has a name
    assert stages.resolve_stage(("a", "b"), 0) == "a"
    for known, stage in ((model, 4), (model, -5), (("blocks.0", "b"), "c")):
        with pytest.raises(ValueError, match=r"unknown stage .*known, shallow to deep: blocks.0"):
            stages.resolve_stage(known, stage)
    with pytest.raises(ValueError, match=r"set model.stages .*layer1"):
        stages.stage_names(Foreign())
    with pytest.raises(ValueError, match=r"set model.stages"):
        stages.resolve_stage(Foreign(), -1)


def test_a_dry_run_changes_nothing():
    model = ConvNet((4, 4), dropout=0.5)
    model.blocks[0][1].eval()  # a frozen batch norm inside a network in training
    modes = [module.training for module in model.modules()]
    before, x, state = (
        copy.deepcopy(model.state_dict()),
        torch.rand(1, 1, 8, 8),
        torch.get_rng_state(),
    )
    stages.stage_shapes(model, x)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values()))
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(ValueError, match="images must hold at least one sample"):
        stages.stage_shapes(model, torch.rand(0, 1, 8, 8))
    with pytest.raises(ValueError, match="in_channels"):
        stages.stage_shapes(model, torch.rand(2, 3, 8, 8))
    assert [module.training for module in model.modules()] == modes  # after an error, too


def test_a_torchvision_network():
    model = torchvision.models.resnet18(num_classes=10)
    model.stages = ("layer1", "layer2", "layer3", "layer4", "avgpool")
    shapes = stages.stage_shapes(model, torch.rand(2, 3, 32, 32))
    assert shapes["layer1"] == (64, 8, 8) and shapes["avgpool"] == (512, 1, 1)


def test_of_several_runs_in_one_pass_the_last_is_kept():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.part = nn.Linear(2, 3)

        def forward(self, x):
            return self.part(x[:, :2]) + self.part(x[:, 2:])

    model, x = Twice(), torch.rand(5, 4)
    with Tap(model, ["part"]) as tap:
        _, features = tap(x)
    torch.testing.assert_close(features["part"], model.part(x[:, 2:]))


def test_a_compiled_network_says_that_the_plain_one_is_to_be_tapped():
    plain = ConvNet((4, 4))
    compiled = torch.compile(plain, backend="eager")
    x = torch.rand(2, 1, 8, 8)
    for read in (
        stages.stage_names,
        lambda model: stages.resolve_stage(model, -1),
        lambda model: stages.resolve_stage(model, "_orig_mod.pool"),
        lambda model: Tap(model, ["pool"]),
        lambda model: stages.stage_shapes(model, x),
    ):
        with pytest.raises(ValueError, match="tap the plain network"):
            read(compiled)
    assert not any(module._forward_hooks for module in plain.modules())
    plain.eval()
    torch.testing.assert_close(stages.predict(compiled, x), plain(x))  # its answers can be read


def test_evaluating_gives_every_module_its_mode_back():
    model = ConvNet((4, 4), dropout=0.5)
    model.blocks[0].eval()
    modes = [module.training for module in model.modules()]
    with pytest.raises(KeyError), stages.evaluating(model) as same:
        assert same is model and not any(module.training for module in model.modules())
        raise KeyError
    assert [module.training for module in model.modules()] == modes


def test_predict_evaluates_in_batches_and_changes_nothing(monkeypatch):
    model, x = ConvNet((4, 4), dropout=0.9), torch.rand(7, 1, 8, 8)
    state = copy.deepcopy(model.state_dict())
    whole = stages.predict(model, x)
    sizes = []
    handle = model.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    monkeypatch.setattr(stages, "BATCH", 3)
    torch.testing.assert_close(stages.predict(model, x), whole)
    handle.remove()
    assert sizes == [3, 3, 1] and model.training and not whole.requires_grad
    assert all(torch.equal(a, b) for a, b in zip(state.values(), model.state_dict().values()))


class Pair(nn.Module):
    def forward(self, images):
        return images, images


def test_what_is_not_logits_is_named():
    x = torch.rand(3, 1, 8, 8)
    for model in (Pair(), nn.Identity(), nn.Flatten(0)):
        with pytest.raises(TypeError, match=r"student must return logits \[n, classes\]"):
            stages.logits_of(model, x, "student")
        with pytest.raises(TypeError, match=r"model must return logits \[n, classes\]"):
            stages.predict(model, x)
    with pytest.raises(TypeError, match="model must be a Module"):
        stages.predict(lambda images: images, x)


def test_images_of_another_type_or_place_are_named():
    x, model = torch.rand(3, 1, 8, 8), ConvNet((4, 4))
    with pytest.raises(
        TypeError, match=r"images must be torch.float32 as the teacher, got torch.f"
    ):
        stages.logits_of(model, x.double(), "teacher")
    with pytest.raises(TypeError, match=r"images must be torch.float16 as the model"):
        stages.predict(ConvNet((4, 4)).half(), x)
    with pytest.raises(ValueError, match="images must be where the model is, on meta, got cpu"):
        stages.predict(ConvNet((4, 4)).to("meta"), x)
    with (
        Tap(model, ["pool"]) as tap,
        pytest.raises(TypeError, match=r"images must be torch.float32"),
    ):
        tap(x.double())
    for wrong in (x[:0], x * torch.nan, x / 0):
        with pytest.raises(ValueError, match="images must be"):
            stages.predict(model, wrong)
    with pytest.raises(TypeError, match=r"images must be .*bytes of an image with .float"):
        stages.predict(model, (255 * x).to(torch.uint8))


def test_errors_of_the_network_itself_are_its_own():
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes"):
        stages.predict(nn.Linear(3, 2), torch.rand(4, 5))
