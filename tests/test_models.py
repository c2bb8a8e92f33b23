"""Networks: shapes, parameter counts, the numbers that they give, bad arguments."""

import pickle

import bad
import pytest
import torch
from torch import nn

from kdlib import models
from kdlib.models import MLP, Answers, ConvNet, Ensemble, Mixer, ResNet, TwoDigits, ViT
from kdlib.stages import Tap, stage_shapes

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
    assert list(stage_shapes(model, torch.rand(3, *shape)).values()) == stages
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


def test_the_order_of_pixels_is_declared_by_convolutional_networks():
    nets = {name: build() for name, (build, _, _) in NETS.items()}
    declared = {type(net).__name__ for net in nets.values() if hasattr(net, "memory_format")}
    assert declared == {"ConvNet", "ResNet"}
    for net in (ConvNet((4, 8)).eval(), ResNet(8, width=4).eval()):
        x = torch.rand(2, 1, 14, 14)
        expected = net(x)
        net.to(memory_format=net.memory_format)
        torch.testing.assert_close(net(x.to(memory_format=net.memory_format)), expected)


# --- two digits, ensembles and closed services


def test_two_digits_reads_the_halves_with_one_network():
    net = TwoDigits((5,))
    assert sum(p.numel() for p in net.parameters()) == count(MLP((5,), in_features=196))
    left, right = torch.rand(3, 1, 14, 14), torch.rand(3, 1, 14, 14)
    logits = net(torch.cat([left, right], 3)).view(3, 10, 10)
    a, b = net.digit(left), net.digit(right)
    for tens, ones in ((0, 0), (3, 7), (9, 2)):
        torch.testing.assert_close(logits[:, tens, ones], a[:, tens] + b[:, ones])
    assert TwoDigits((4,), in_features=16)(torch.rand(2, 1, 4, 8)).shape == (2, 100)
    with pytest.raises(ValueError, match="images must have an even width"):
        net(torch.rand(2, 1, 14, 27))
    with pytest.raises(ValueError, match="196 values a sample"):
        net(torch.rand(2, 1, 14, 30))


class Fixed(nn.Module):
    """A network that gives the same logits to every image."""

    def __init__(self, *logits):
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, images):
        return self.logits.expand(len(images), -1)


ONE = torch.rand(2, 1)


def test_an_ensemble_gives_the_mean_probability():
    members = [MLP((4,), in_features=6).eval() for _ in range(3)]
    x = torch.rand(5, 6)
    expected = torch.stack([m(x).softmax(1) for m in members]).mean(0)
    ensemble = Ensemble(members)
    torch.testing.assert_close(ensemble(x).exp(), expected)
    torch.testing.assert_close(Ensemble(members[:1])(x), members[0](x).log_softmax(1))
    assert count(ensemble) == sum(count(member) for member in members)
    # A probability that no float32 holds: log((e^-500 + 0.5) / 2), log((e^-500 + e^-900) / 2)
    sure = Ensemble([Fixed(500.0, 0.0, 0.0), Fixed(900.0, 900.0, 0.0)])(ONE)
    wanted = torch.tensor([0.75, 0.25, torch.nan]).log()
    torch.testing.assert_close(sure[0, :2], wanted[:2])
    assert sure[0, 2].item() == pytest.approx(-500 - torch.tensor(2.0).log().item())
    with pytest.raises(ValueError, match=r"members must give the same classes, got \[2, 3\]"):
        Ensemble([Fixed(1.0, 2.0), Fixed(1.0, 2.0, 3.0)])(ONE)
    with pytest.raises(TypeError, match="a member must return logits"):
        Ensemble([bad.Pair()])(ONE)


def test_answers_reveal_the_top_classes_and_spread_the_rest():
    p = torch.tensor([0.1, 0.6, 0.05, 0.25])
    teacher = Fixed(*p.log().tolist())
    found = Answers(teacher, top=2)(ONE)
    assert found.shape == (2, 4)
    torch.testing.assert_close(found[0].exp(), torch.tensor([0.075, 0.6, 0.075, 0.25]))
    torch.testing.assert_close(Answers(teacher, top=3)(ONE)[0].exp(), p)  # one class is left
    sure = Answers(Fixed(1000.0, 0.0, 0.0), top=1)(ONE)[0]  # the rest is 1e-7, not 0
    torch.testing.assert_close(sure, torch.tensor([1, 5e-8, 5e-8]).log())
    assert Answers(Fixed(1000.0, 0.0, 0.0), top=2)(ONE).isfinite().all()  # a known 0
    with pytest.raises(ValueError, match=r"top must be .* at most 3, got 4"):
        Answers(teacher, top=4)(ONE)


def test_answers_round_to_decimals():
    p = torch.tensor([0.1234, 0.866, 0.004, 0.0066])
    teacher = Fixed(*p.log().tolist())
    expected = torch.tensor([0.12, 0.87, 0.0, 0.01]) + 1e-5
    torch.testing.assert_close(Answers(teacher, decimals=2)(ONE)[1].exp(), expected)
    whole = torch.tensor([0.0, 1.0, 0.0, 0.0]) + 1e-5
    torch.testing.assert_close(Answers(teacher, decimals=0)(ONE)[1].exp(), whole)
    for options in ({}, {"top": 1, "decimals": 2}):
        with pytest.raises(ValueError, match="exactly one of top and decimals"):
            Answers(teacher, **options)
    with pytest.raises(TypeError, match="teacher must return logits"):
        Answers(bad.Pair(), top=1)(ONE)


# --- bad arguments, by enumeration

SEQUENCES = bad.SEQUENCES
DROPOUT = (*bad.NUMBERS, -0.1, 1)
SHARED = {"in_channels": bad.SIZES, "num_classes": bad.SIZES}
TOKENS = {"dim": bad.SIZES, "depth": bad.SIZES, "patch": (*bad.SIZES, 29), "image_size": bad.SIZES}
IMAGES, SMALL = torch.rand(2, 1, 28, 28), torch.rand(2, 1, 14, 28)
PIXELS = (*bad.images_like(IMAGES, unit=False)[:4], IMAGES.to(torch.uint8), IMAGES[0, 0])
NET = MLP((4,))
BAD: bad.Table = {
    "ConvNet": (
        {"widths": (4,)},
        {
            "widths": (*SEQUENCES, ()),
            "downsample": ("max", None, 2),
            "dropout": DROPOUT,
            **SHARED,
        },
    ),
    "ConvNet.forward": ({"self": ConvNet((4,)), "images": IMAGES}, {"images": PIXELS}),
    "MLP": (
        {"hidden": (4,)},
        {
            "hidden": SEQUENCES,
            "in_features": bad.SIZES,
            "num_classes": bad.SIZES,
            "dropout": DROPOUT,
        },
    ),
    "MLP.forward": ({"self": NET, "images": IMAGES}, {"images": (*PIXELS, IMAGES[0, 0, 0])}),
    "ResNet": ({"depth": 8}, {"depth": (*bad.SIZES, 18, 62, 2), "width": bad.SIZES, **SHARED}),
    "ResNet.forward": ({"self": ResNet(8, width=2), "images": IMAGES}, {"images": PIXELS}),
    "ViT": ({"dim": 8}, {**TOKENS, **SHARED, "heads": (*bad.SIZES, 3)}),
    "ViT.tokens": ({"self": ViT(8, 1), "images": IMAGES}, {"images": (*PIXELS, SMALL)}),
    "Mixer": ({"dim": 8}, {**TOKENS, **SHARED}),
    "TwoDigits": ({}, {"hidden": SEQUENCES, "in_features": bad.SIZES}),
    "TwoDigits.forward": ({"self": TwoDigits((4,)), "images": SMALL}, {"images": PIXELS}),
    "Ensemble": (
        {"members": [NET, NET]},
        {"members": ([], (), None, NET, nn.Sequential(NET), [NET, 3], [None], "net")},
    ),
    "Answers": (
        {"teacher": NET, "top": 1},
        {
            "teacher": (*bad.NETWORKS, [NET]),
            "top": [one for one in bad.SIZES if one is not None],
        },
    ),
}
LAYER = "a layer inside the networks, which check sizes and images"
EXEMPT = {
    **dict.fromkeys(("Mean", "ResidualBlock", "Attention", "TokenMixing", "TokenBlock"), LAYER),
    "Answers.decimals": "see the test below",
    "Answers.forward": "those of the teacher",
    "Ensemble.forward": "those of the members",
}


@pytest.mark.parametrize("name, parameter", bad.checks(BAD))
def test_bad_arguments_are_refused_by_name(name, parameter):
    bad.refuses(models, BAD, name, parameter)


def test_no_argument_was_forgotten():
    assert bad.missing(models, BAD, EXEMPT) == []


@pytest.mark.parametrize("decimals", [*bad.WHOLES[:4], *bad.WHOLES[5:], 5])
def test_decimals_out_of_range(decimals):
    with pytest.raises((TypeError, ValueError), match="decimals must be a whole number"):
        Answers(NET, decimals=decimals)


@pytest.mark.parametrize(
    "model, shape, message",
    [
        (ConvNet((4, 4)), (2, 3, 14, 14), r"c in \(1,\), got \[2, 3, 14, 14\]: set in_channels"),
        (ConvNet((4, 4)), (14, 14), r"must be \[n, c, h, w\] .* got \[14, 14\]"),
        (ConvNet((4, 4, 4)), (2, 1, 4, 4), "at least 5 x 5 pixels, got 4 x 4"),
        (ConvNet((4, 4), downsample="pool"), (2, 1, 8, 3), "at least 4 x 4 pixels, got 8 x 3"),
        (ResNet(8, width=2), (2, 1, 2, 2), "at least 3 x 3"),
        (MLP((4,)), (2, 1, 14, 14), r"784 values a sample, got \[2, 1, 14, 14\]: set in_features"),
        (MLP((4,)), (784,), "784 values a sample"),
        (ViT(8, 1), (2, 1, 14, 14), "28 x 28 pixels, got 14 x 14: set image_size"),
        (Mixer(8, 1), (2, 2, 28, 28), "in_channels"),
    ],
)
def test_bad_images(model, shape, message):
    with pytest.raises(ValueError, match=message):
        model(torch.rand(shape))
