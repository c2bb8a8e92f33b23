"""Networks: shapes, parameter counts, errors; taps on our models and on any other module."""

import copy
import pickle

import pytest
import torch
import torchvision
from torch import nn

from kdlib import models
from kdlib.models import MLP, ConvNet, Mixer, ResNet, Tap, ViT

NETS = {
    "ConvNet, stride": (lambda: ConvNet((4, 8)), (1, 14, 14), [(4, 7, 7), (8, 4, 4), (8,)]),
    "ConvNet, pool": (
        lambda: ConvNet((4, 8), in_channels=3, downsample="pool", dropout=0.1),
        (3, 14, 28),
        [(4, 7, 14), (8, 3, 7), (8,)],
    ),
    "MLP": (lambda: MLP((6, 5), in_features=196), (1, 14, 14), [(6,), (5,)]),
    "linear": (lambda: MLP((), in_features=2), (2,), [(2,)]),
    "ResNet": (
        lambda: ResNet(8, width=4),
        (1, 15, 15),
        [(4, 15, 15), (8, 8, 8), (16, 4, 4), (16,)],
    ),
    "ViT, padded": (
        lambda: ViT(8, 3, heads=2, image_size=14),
        (1, 14, 14),
        [(16, 8), (16, 8), (16, 8), (8,)],
    ),
    "Mixer": (lambda: Mixer(8, 2, patch=7, in_channels=3), (3, 28, 28), [(16, 8), (16, 8), (8,)]),
}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", NETS)
def test_shapes_stages_and_gradients(name):
    build, shape, stages = NETS[name]
    model = build()
    assert list(models.stage_shapes(model, torch.rand(3, *shape)).values()) == stages
    with Tap(model, model.stages) as tap:
        logits, features = tap(torch.rand(3, *shape))
    assert logits.shape == (3, 10) and features[model.stages[-1]].ndim == 2
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("name", NETS)
def test_the_embedding_is_what_the_classifier_reads(name):
    build, shape, _ = NETS[name]
    model = build().eval()
    with Tap(model, [model.stages[-1]]) as tap:
        logits, features = tap(torch.rand(3, *shape))
    torch.testing.assert_close(model.head(features[model.stages[-1]]), logits)


@pytest.mark.parametrize("name", NETS)
def test_a_seed_decides_the_weights_and_models_travel(name):
    build, shape, _ = NETS[name]
    nets = []
    for _ in range(2):
        torch.manual_seed(3)
        nets.append(build().eval())
    x = torch.rand(2, *shape)
    assert torch.equal(nets[0](x), nets[1](x))
    assert torch.equal(pickle.loads(pickle.dumps(nets[0]))(x), nets[0](x))


def test_parameter_counts():
    assert count(ResNet(20, in_channels=3)) == 269_722  # He et al. 2016: 0.27 million
    assert round(count(ResNet(56, in_channels=3)) / 1e6, 2) == 0.85  # the paper's 0.85 million
    assert count(ConvNet((4, 8))) == 4 * 9 + 8 + 4 * 8 * 9 + 16 + 8 * 10 + 10
    assert count(MLP((5,), in_features=7, num_classes=3)) == 7 * 5 + 5 + 5 * 3 + 3


def test_shortcut_keeps_every_second_pixel_and_adds_empty_channels():
    block = models.ResidualBlock(2, 4, stride=2).eval()
    nn.init.zeros_(block.norm2.weight)  # the residual branch is silent
    x = torch.rand(1, 2, 6, 6)
    expected = torch.cat([x[:, :, ::2, ::2], torch.zeros(1, 2, 3, 3)], 1)
    torch.testing.assert_close(block(x), expected)


def test_attention_equals_the_plain_formula():
    layer, x = models.Attention(6, heads=2), torch.randn(2, 5, 6)
    query, key, value = layer.qkv(x).split(6, dim=2)
    heads = []
    for part in (slice(0, 3), slice(3, 6)):
        scores = query[..., part] @ key[..., part].transpose(1, 2) / 3**0.5
        heads.append(scores.softmax(2) @ value[..., part])
    torch.testing.assert_close(layer(x), layer.out(torch.cat(heads, 2)))


def test_tokens_are_patches_row_by_row():
    model = Mixer(16, 1, patch=4, image_size=6)
    nn.init.eye_(model.embed.weight)  # the token is the patch
    nn.init.zeros_(model.embed.bias)
    image = torch.rand(1, 1, 6, 6)
    padded = nn.functional.pad(image, (1, 1, 1, 1))[0, 0]
    tokens = model.tokens(image)[0].view(2, 2, 4, 4)
    assert torch.equal(tokens[0, 1], padded[:4, 4:])
    assert torch.equal(tokens[1, 0], padded[4:, :4])


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: ConvNet(()), "widths needs at least one stage"),
        (lambda: ConvNet((4, 0)), "widths must be a positive integer, got 0"),
        (lambda: ConvNet(downsample="max"), '"stride" or "pool"'),
        (lambda: ConvNet(in_channels=0), "in_channels must be a positive integer"),
        (lambda: MLP(in_features=-1), "in_features must be a positive integer"),
        (lambda: ResNet(18), "6n . 2"),
        (lambda: ResNet(62), "8 to 56"),
        (lambda: ViT(10, heads=4), "dim must be divisible by heads"),
        (lambda: ViT(8, heads=0), "heads must be a positive integer"),
        (lambda: Mixer(8, patch=32, image_size=28), "patch must fit"),
        (lambda: Mixer(8, 1.5), "depth must be a positive integer"),
    ],
)
def test_bad_arguments(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    "model, shape, message",
    [
        (ConvNet((4, 4)), (2, 3, 14, 14), r"\[n, 1, height, width\], got \[2, 3, 14, 14\]"),
        (ConvNet((4, 4)), (14, 14), r"shape \[n, 1, height, width\]"),
        (ConvNet((4, 4, 4)), (2, 1, 4, 4), "at least 5 x 5 pixels, got 4 x 4"),
        (ConvNet((4, 4), downsample="pool"), (2, 1, 8, 3), "at least 4 x 4 pixels, got 8 x 3"),
        (ResNet(8, width=2), (2, 1, 2, 2), "at least 3 x 3"),
        (MLP((4,)), (2, 1, 14, 14), r"784 values per sample, got shape \[2, 1, 14, 14\]"),
        (MLP((4,)), (784,), "expects a batch"),
        (ViT(8, 1), (2, 1, 14, 14), "28 x 28 pixels, got 14 x 14; set image_size"),
        (Mixer(8, 1), (2, 2, 28, 28), "in_channels"),
    ],
)
def test_bad_images(model, shape, message):
    with pytest.raises(ValueError, match=message):
        model(torch.rand(shape))


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
    assert models.stage_shapes(model, x)["avgpool"] == (6, 1, 1)


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
    with pytest.raises(ValueError, match="unknown stage 'layer9'.*layer1, .*avgpool"):
        Tap(model, ["layer1", "layer9"])
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(ValueError, match="unknown stage 'x'; known, shallow to deep: blocks.0"):
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
    assert models.stage_names(model) == ("blocks.0", "blocks.1", "blocks.2", "pool")
    assert models.resolve_stage(model, -1) == "pool"
    assert models.resolve_stage(model, -2) == models.resolve_stage(model, 2) == "blocks.2"
    assert models.resolve_stage(model, "blocks.1.0") == "blocks.1.0"  # any module has a name
    assert models.resolve_stage(("a", "b"), 0) == "a"
    for known, stage in ((model, 4), (model, -5), (("blocks.0", "b"), "c")):
        with pytest.raises(ValueError, match="unknown stage .*known, shallow to deep: blocks.0"):
            models.resolve_stage(known, stage)
    with pytest.raises(ValueError, match="set model.stages .*layer1"):
        models.stage_names(Foreign())
    with pytest.raises(ValueError, match="set model.stages"):
        models.resolve_stage(Foreign(), -1)


def test_a_dry_run_changes_nothing():
    model = ConvNet((4, 4), dropout=0.5)
    model.blocks[0][1].eval()  # a frozen batch norm inside a network in training
    modes = [module.training for module in model.modules()]
    before, x, state = (
        copy.deepcopy(model.state_dict()),
        torch.rand(1, 1, 8, 8),
        torch.get_rng_state(),
    )
    models.stage_shapes(model, x)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values()))
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(ValueError, match="images is empty"):
        models.stage_shapes(model, torch.rand(0, 1, 8, 8))
    with pytest.raises(ValueError, match="in_channels"):
        models.stage_shapes(model, torch.rand(2, 3, 8, 8))
    assert [module.training for module in model.modules()] == modes  # after an error, too


def test_a_torchvision_network():
    model = torchvision.models.resnet18(num_classes=10)
    model.stages = ("layer1", "layer2", "layer3", "layer4", "avgpool")
    shapes = models.stage_shapes(model, torch.rand(2, 3, 32, 32))
    assert shapes["layer1"] == (64, 8, 8) and shapes["avgpool"] == (512, 1, 1)
