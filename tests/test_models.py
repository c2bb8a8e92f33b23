"""Networks: shapes, parameter counts, the numbers that they give, names, bad arguments."""

import pickle
import urllib.error
from functools import partial

import bad
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision import models as theirs

from kdlib import models, recipes, training
from kdlib.models import (
    MLP,
    VGG,
    Answers,
    ConvNet,
    Ensemble,
    Mixer,
    MobileNetV2,
    ResNet,
    TwoDigits,
    ViT,
    WideResNet,
    by_name,
    foreign,
)
from kdlib.stages import Tap, stage_names, stage_shapes

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
    "ResNet, projected": (
        lambda: ResNet(14, width=4, stem=2, shortcut="projected"),
        (1, 15, 15),
        [(4, 15, 15), (8, 8, 8), (16, 4, 4), (16,)],
    ),
    "WideResNet": (
        lambda: WideResNet(10, 2, in_channels=3),
        (3, 9, 9),
        [(32, 9, 9), (64, 5, 5), (128, 3, 3), (128,)],
    ),
    "VGG": (
        lambda: VGG((1, 2, 1, 1, 1), width=2),
        (1, 28, 28),
        [(2, 28, 28), (4, 14, 14), (8, 7, 7), (16, 3, 3), (16, 3, 3), (16,)],
    ),
    "MobileNetV2": (
        lambda: MobileNetV2(0.25),
        (1, 28, 28),
        [(6, 14, 14), (8, 7, 7), (24, 4, 4), (80, 2, 2), (1280,)],
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


# Millions of parameters of networks for three channels, as published to so many decimals
PUBLISHED = {
    10: {
        "He et al. 2016": {"resnet20": "0.27", "resnet32": "0.46", "resnet44": "0.66"}
        | {"resnet56": "0.85", "resnet110": "1.7"},
        "Zagoruyko and Komodakis 2016, 2017": {"wrn-16-1": "0.2", "wrn-16-2": "0.7"}
        | {"wrn-40-1": "0.6", "wrn-40-2": "2.2"},
    },
    100: {
        "RepDistiller": {"resnet20": "0.28", "resnet8x4": "1.23", "resnet32x4": "7.43"}
        | {"vgg8": "3.97", "vgg13": "9.46", "mobilenetv2-half": "0.81"},
    },
}


@pytest.mark.parametrize("classes", PUBLISHED)
def test_parameter_counts_are_the_published_ones(classes):
    for source, counts in PUBLISHED[classes].items():
        for name, millions in counts.items():
            network = by_name(name, in_channels=3, num_classes=classes, image_size=32)()
            found = f"{count(network) / 1e6:.{len(millions.partition('.')[2])}f}"
            assert found == millions, f"{name} has {count(network)}, {source} says {millions} M"


def test_parameter_counts():
    assert count(ResNet(20, in_channels=3)) == 269_722
    assert count(ConvNet((4, 8))) == 4 * 9 + 8 + 4 * 8 * 9 + 16 + 8 * 10 + 10
    assert count(MLP((5,), in_features=7, num_classes=3)) == 7 * 5 + 5 + 5 * 3 + 3
    # The published wide networks, with the counts of their own code
    assert count(ResNet(8, width=64, stem=32, shortcut="projected", in_channels=3)) == 1_210_410
    assert count(WideResNet(40, 2, in_channels=3)) == 2_243_546
    assert count(VGG(in_channels=3, num_classes=100)) == 3_965_028


def test_shortcut_keeps_every_second_pixel_and_adds_empty_channels():
    block = models.ResidualBlock(2, 4, stride=2).eval()
    nn.init.zeros_(block.norm2.weight)  # the residual branch is silent
    x = torch.rand(1, 2, 6, 6)
    expected = torch.cat([x[:, :, ::2, ::2], torch.zeros(1, 2, 3, 3)], 1)
    torch.testing.assert_close(block(x), expected)


def test_projected_shortcut_is_used_where_the_shape_changes():
    x = torch.rand(2, 3, 6, 6)
    block = models.ResidualBlock(3, 4, stride=2, project=True).eval()
    nn.init.zeros_(block.norm2.weight)  # the residual branch is silent
    conv, norm = block.project
    picked = torch.einsum("ck,nkhw->nchw", conv.weight[:, :, 0, 0], x[:, :, ::2, ::2])
    torch.testing.assert_close(block(x), F.relu(picked / (1 + norm.eps) ** 0.5))
    assert models.ResidualBlock(3, 3, stride=1, project=True).project is None
    padded, projected = (ResNet(8, width=2, shortcut=one) for one in ("padded", "projected"))
    assert count(projected) - count(padded) == 2 * 4 + 8 + 4 * 8 + 16


def test_pre_activation_block_equals_the_formula():
    for block in (models.PreActivationBlock(3, 4, 2), models.PreActivationBlock(3, 3, 1)):
        block.eval()
        for norm in (block.norm1, block.norm2):
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
        x = torch.randn(2, 3, 6, 6)
        active = F.relu(block.norm1(x))
        stride = block.conv1.stride
        out = F.conv2d(active, block.conv1.weight, stride=stride, padding=1)
        out = F.conv2d(F.relu(block.norm2(out)), block.conv2.weight, padding=1)
        if block.project is None:
            expected = x + out  # the input itself, not what the norm made of it
        else:
            expected = F.conv2d(active, block.project.weight, stride=stride) + out
        torch.testing.assert_close(block(x), expected)
        assert (block(x) < 0).any(), "a ReLU acts on the sum"


def test_inverted_residual_widens_mixes_each_channel_and_narrows():
    block = models.InvertedResidual(2, 2, 1, expansion=3).eval()
    expand, _, _, each, _, last, back, norm = block.layers
    assert expand.weight.shape == (6, 2, 1, 1) and each.weight.shape == (6, 1, 3, 3)
    assert back.weight.shape == (2, 6, 1, 1) and isinstance(last, nn.ReLU6)
    x = torch.randn(2, 2, 5, 5)
    torch.testing.assert_close(block(x), x + block.layers(x))
    assert (block.layers(x) < 0).any(), "a ReLU acts on the narrow end"
    with torch.no_grad():
        norm.weight.zero_()
    torch.testing.assert_close(block(x), x)
    for other in (models.InvertedResidual(2, 2, 2, 3), models.InvertedResidual(2, 4, 1, 3)):
        torch.testing.assert_close(other.eval()(x), other.layers(x))
    assert len(models.InvertedResidual(2, 2, 1, expansion=1).layers) == 5


def test_convolutions_start_at_the_scale_of_relu_networks():
    """std² = 2 / (k² · output channels) for every convolution, biases 0."""
    for net in (ResNet(8), WideResNet(10), VGG(), MobileNetV2()):
        for layer in (m for m in net.modules() if isinstance(m, nn.Conv2d)):
            size = layer.kernel_size[0] ** 2 * layer.out_channels
            if layer.weight.numel() > 2000:
                assert layer.weight.std().item() == pytest.approx((2 / size) ** 0.5, rel=0.1)
            assert layer.bias is None or not layer.bias.any()


def test_the_embedding_of_a_convolutional_network_is_a_mean_of_activations():
    for name, (build, shape, _) in NETS.items():
        model = build().eval()
        if hasattr(model, "memory_format"):
            with Tap(model, ["pool"]) as tap:
                _, features = tap(torch.randn(4, *shape))
            assert features["pool"].min() >= 0, f"{name} has no ReLU in front of its pool"


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
    convolutional = {"ConvNet", "ResNet", "WideResNet", "VGG", "MobileNetV2"}
    assert declared == convolutional
    for net in (net.eval() for net in nets.values() if type(net).__name__ in convolutional):
        x = torch.rand(2, net.in_channels, 14, 14)
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


def test_an_ensemble_is_a_teacher_for_methods_on_logits(split):
    """`fit` at a temperature sees the mean probability; on features there is no single answer."""

    class MeanProbability(nn.Module):
        def __init__(self, members):
            super().__init__()
            self.members = nn.ModuleList(members)

        def forward(self, images):
            return sum(member(images).softmax(1) for member in self.members).log()

    members = [MLP((8,), in_features=16, num_classes=3) for _ in range(3)]

    def history(teacher, **options):
        student = training.build(partial(MLP, (6,), in_features=16, num_classes=3), seed=1)
        quiet = {"epochs": 2, "batch_size": 8, "progress": False}
        return [
            one["kd"]
            for one in training.fit(
                student, split, method="kd", teacher=teacher, **quiet, **options
            ).history
        ]

    found = history(Ensemble(members), temperature=3.0)
    assert found == pytest.approx(history(MeanProbability(members), temperature=3.0), rel=1e-4)
    assert found != pytest.approx(history(members[0], temperature=3.0), rel=1e-2)
    assert found != pytest.approx(history(Ensemble(members), temperature=1.0), rel=1e-2)
    for method in ("hint", "rkd", "crd"):
        student = MLP((6, 6), in_features=16, num_classes=3)
        with pytest.raises(ValueError, match=f"method '{method}': teacher names no stages"):
            training.fit(student, split, method=method, teacher=Ensemble(members), progress=False)


@pytest.fixture
def split():
    return training.Split(torch.rand(24, 1, 4, 4), torch.arange(24) % 3)


# --- names


@pytest.mark.parametrize("name", models.NAMES)
def test_a_name_gives_a_constructor_that_a_record_can_repeat(name):
    constructor = by_name(name, in_channels=3, num_classes=7, image_size=32)
    again = recipes.make(recipes.recipe_of(constructor))
    assert (again.func, again.args) == (constructor.func, constructor.args)
    assert again.keywords == constructor.keywords
    with torch.device("meta"):
        network = constructor()
    images = torch.rand(2, 3, 32, 32, device="meta")
    with Tap(network.eval(), stage_names(network)) as tap:
        logits, features = tap(images)
    assert logits.shape == (2, 7) and features[network.stages[-1]].ndim == 2
    assert len(models.NAMES[name]) > 10 and "\n" not in models.NAMES[name]


@pytest.mark.parametrize("name", ("mlp-m", "convnet-s", "vit-tiny", "mixer-tiny", "resnet8"))
def test_the_default_sizes_are_those_of_the_kits_digits(name):
    assert by_name(name)()(torch.rand(2, 1, 28, 28)).shape == (2, 10)
    assert by_name(name.upper()).keywords == by_name(name).keywords


def test_names_that_a_student_may_mistype():
    for wrong, near in (
        ("resnet21", "the nearest: .*resnet20"),
        ("wrn_40_2", "wrn-40-2"),
        ("convnet", "convnet-s"),
        ("mobilenetv2", "mobilenetv2-half"),
        ("vgg", "vgg8"),
        ("mobilenet", "mobilenet_v2"),
        ("7", "the kit has mlp-s"),
    ):
        with pytest.raises(ValueError, match=f"name must be .* got '{wrong}': .*{near}"):
            by_name(wrong)
    with pytest.raises(ValueError, match="pretrained must be False for 'resnet20'"):
        by_name("resnet20", pretrained=True)
    vgg = by_name("vgg13", in_channels=3)
    assert vgg.func is VGG, "the kit's network goes before torchvision's of the same name"
    assert by_name("vgg13_bn", in_channels=3).func is foreign.network


# --- torchvision's


@pytest.fixture(scope="module")
def small():
    """Torchvision's networks for 32 pixels and 7 classes, built once."""
    sizes = {"in_channels": 3, "num_classes": 7, "image_size": 32}
    names = ("resnet18", "mobilenet_v2", "vit_b_32", "swin_t")
    return {name: training.build(by_name(name, **sizes), 0).eval() for name in names}


def test_stages_of_torchvisions_networks(small):
    x = torch.rand(2, 3, 32, 32)
    assert [*stage_shapes(small["resnet18"], x).values()] == [
        *((64, 8, 8), (128, 4, 4), (256, 2, 2), (512, 1, 1), (512, 1, 1))
    ]
    assert [*stage_shapes(small["mobilenet_v2"], x).values()] == [
        *((24, 8, 8), (32, 4, 4), (96, 2, 2), (320, 1, 1), (1280,))
    ]
    assert [*stage_shapes(small["vit_b_32"], x).values()] == [(2, 768)] * 4 + [(768,)]
    assert [*stage_shapes(small["swin_t"], x).values()] == [
        *((96, 8, 8), (192, 4, 4), (384, 2, 2), (768, 1, 1), (768,))
    ]
    heads = {"resnet18": "fc", "mobilenet_v2": "classifier.1", "vit_b_32": "heads.head"}
    for name, head in (heads | {"swin_t": "head"}).items():
        with Tap(small[name], [-1]) as tap:
            logits, features = tap(x)
        embedding = next(iter(features.values())).flatten(1)
        torch.testing.assert_close(small[name].get_submodule(head)(embedding), logits)
        assert logits.shape == (2, 7)


@pytest.mark.parametrize("name", ("vit_b_32", "swin_t"))
def test_what_shows_the_features_changes_nothing_else(small, name):
    torch.manual_seed(0)
    options = {"image_size": 32} if name == "vit_b_32" else {}
    plain = theirs.get_model(name, num_classes=7, **options).eval()
    assert [*plain.state_dict()] == [*small[name].state_dict()]
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(plain(x), small[name](x))
    if name == "swin_t":  # [n, h, w, d] becomes [n, d, h, w]
        with Tap(plain, ["features.3"]) as tap, Tap(small[name], [1]) as shown:
            (before,), (after,) = (one(x)[1].values() for one in (tap, shown))
        assert torch.equal(before.permute(0, 3, 1, 2), after)


@pytest.mark.parametrize(
    "name", ("squeezenet1_1", "googlenet", "shufflenet_v2_x0_5", "regnet_x_400mf")
)
def test_any_classifier_of_torchvision_has_so_many_classes(name):
    network = by_name(name, in_channels=3, num_classes=7, image_size=64)()
    assert network.train()(torch.rand(2, 3, 64, 64)).shape == (2, 7)  # no second output
    with pytest.raises(ValueError, match="does not say where its features are: set model.stages"):
        stage_names(network)


def test_a_gray_image_is_read_as_three_equal_channels(small):
    gray = training.build(by_name("resnet18", num_classes=7), 0).eval()
    x = torch.rand(2, 1, 32, 32)
    wanted = small["resnet18"](x.expand(-1, 3, -1, -1))
    torch.testing.assert_close(gray(x), wanted, rtol=1e-3, atol=1e-4)


def test_a_network_of_torchvision_is_repeated_from_a_recipe(small):
    sizes = {"in_channels": 3, "num_classes": 7, "image_size": 32}
    network = training.build(by_name("resnet18", **sizes), 0)
    again = recipes.make(recipes.recipe_of(network))
    assert recipes.weights_digest(again) == recipes.weights_digest(small["resnet18"])


def test_pretrained_weights_and_a_new_classifier(monkeypatch, tmp_path):
    published, asked = theirs.resnet18(), []

    def download(url, *args, **kwargs):
        asked.append(url)
        return published.state_dict()

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    network = by_name("resnet18", in_channels=3, num_classes=7, pretrained=True)()
    assert torch.equal(network.layer4[0].conv1.weight, published.layer4[0].conv1.weight)
    assert network.fc.weight.shape == (7, 512) and "resnet18" in asked[0]
    full = by_name("resnet18", in_channels=3, num_classes=1000, pretrained=True)()
    assert torch.equal(full.fc.weight, published.fc.weight)
    x = torch.rand(1, 1, 64, 64)
    gray = by_name("resnet18", num_classes=1000, pretrained=True)().eval()
    torch.testing.assert_close(gray(x), full.eval()(x.expand(-1, 3, -1, -1)), rtol=1e-3, atol=1e-4)

    def offline(url, *args, **kwargs):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="'resnet18' are not on this machine") as caught:
        by_name("resnet18", in_channels=3, pretrained=True)()
    for part in ("no route to host", "https://download.pytorch.org", f"{tmp_path}/hub/checkpoints"):
        assert part in str(caught.value)


def test_what_torchvisions_networks_cannot_read():
    for options, message in (
        ({"in_channels": 2}, "in_channels must be one of 1, 3"),
        ({"name": "vit_b_16", "image_size": 28}, "image_size must suit vit_b_16, got 28: .*size"),
        ({"name": "maxvit_t", "image_size": 64}, "image_size must suit maxvit_t, got 64: .*part"),
        ({"name": "vit_b_16", "image_size": 32, "pretrained": True}, "vit_b_16, got 32: .*224"),
        ({"name": "resnet20"}, "name must be one of alexnet, .*; got 'resnet20'"),
        ({"num_classes": 0}, "num_classes must be"),
    ):
        with pytest.raises(ValueError, match=message):
            foreign.network(**({"name": "resnet18"} | options))
    for options in ({"in_channels": 1.0}, {"image_size": "32"}, {"pretrained": 1}):
        with pytest.raises(TypeError, match=next(iter(options))):
            foreign.network("resnet18", **options)


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
    "ResNet": (
        {"depth": 8},
        {
            "depth": (*bad.SIZES, 18, 116, 2),
            "width": bad.SIZES,
            "stem": (*(one for one in bad.SIZES if one is not None), 17),
            "shortcut": ("projection", None, True),
            **SHARED,
        },
    ),
    "WideResNet": (
        {"depth": 10},
        {"depth": (*bad.SIZES, 20, 4, 46), "widen": bad.SIZES, **SHARED},
    ),
    "WideResNet.forward": ({"self": WideResNet(10), "images": IMAGES}, {"images": PIXELS}),
    "VGG": (
        {"convolutions": (1, 1, 1, 1, 1), "width": 2},
        {
            "convolutions": (*SEQUENCES, (1, 1, 1, 1), (1, 1, 1, 1, 1, 1)),
            "width": bad.SIZES,
            **SHARED,
        },
    ),
    "VGG.forward": ({"self": VGG(width=2), "images": IMAGES}, {"images": PIXELS}),
    "MobileNetV2": ({}, {"width": (*bad.NUMBERS, 0, 0.05, 9), **SHARED}),
    "MobileNetV2.forward": ({"self": MobileNetV2(0.25), "images": IMAGES}, {"images": PIXELS}),
    "ResNet.forward": ({"self": ResNet(8, width=2), "images": IMAGES}, {"images": PIXELS}),
    "ViT": ({"dim": 8}, {**TOKENS, **SHARED, "heads": (*bad.SIZES, 3)}),
    "ViT.tokens": ({"self": ViT(8, 1), "images": IMAGES}, {"images": (*PIXELS, SMALL)}),
    "Mixer": ({"dim": 8}, {**TOKENS, **SHARED}),
    "by_name": (
        {"name": "mlp-s"},
        {"name": (None, 3, "resnet21", ""), "image_size": bad.SIZES, "pretrained": (1, None, "no")}
        | SHARED,
    ),
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
    **dict.fromkeys(("Mean", "Attention", "TokenMixing", "TokenBlock"), LAYER),
    **dict.fromkeys(("ResidualBlock", "PreActivationBlock", "InvertedResidual"), LAYER),
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
        (WideResNet(10), (2, 1, 2, 2), "at least 3 x 3"),
        (VGG(width=2), (2, 1, 7, 8), "at least 8 x 8"),
        (MobileNetV2(0.25), (2, 1, 8, 9), "at least 9 x 9"),
        (MLP((4,)), (2, 1, 14, 14), r"784 values a sample, got \[2, 1, 14, 14\]: set in_features"),
        (MLP((4,)), (784,), "784 values a sample"),
        (ViT(8, 1), (2, 1, 14, 14), "28 x 28 pixels, got 14 x 14: set image_size"),
        (Mixer(8, 1), (2, 2, 28, 28), "in_channels"),
    ],
)
def test_bad_images(model, shape, message):
    with pytest.raises(ValueError, match=message):
        model(torch.rand(shape))
