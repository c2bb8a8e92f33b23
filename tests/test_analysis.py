"""Analyses against closed forms, plain implementations and maps drawn by hand."""

import copy
import importlib
import itertools
import math
import pkgutil

import bad
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import SwinTransformer, VisionTransformer

from kdlib import analysis, data, inputs, stages
from kdlib.analysis.cka import _hsic
from kdlib.models import MLP, ConvNet, Mixer, ViT, foreign
from kdlib.stages import Tap, evaluating


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def lookup(table):
    """A model that answers class table[value of the only pixel, rounded]."""

    class Lookup(nn.Module):
        def forward(self, images):
            answers = torch.tensor(table)[images.flatten(1)[:, 0].round().long()]
            return F.one_hot(answers, 10).float()

    return Lookup()


# --- Grad-CAM


def test_grad_cam_of_a_linear_head_by_hand():
    model = ConvNet((3,), num_classes=4)
    images, target = torch.rand(5, 1, 6, 6), torch.tensor([0, 1, 2, 3, 3])
    feature = model.eval().blocks(images)  # [5, 3, 3, 3]; the score is linear in its mean
    weights = model.head.weight[target] / 9
    expected = F.relu(torch.einsum("nk,nkhw->nhw", weights, feature))
    torch.testing.assert_close(analysis.grad_cam(model, images, target, "blocks.0"), expected)
    torch.testing.assert_close(analysis.grad_cam(model, images, target, -2), expected)


def test_grad_cam_weights_are_finite_differences_of_the_class_score():
    model = ConvNet((3, 4), num_classes=4).double().eval()
    images, target = torch.rand(4, 1, 9, 9).double(), torch.tensor([3, 1, 0, 2])

    def score(feature):
        return model.head(model.pool(model.blocks[1](feature))).gather(1, target[:, None])[:, 0]

    feature, step, weights = model.blocks[0](images), 1e-6, []
    for channel in range(3):  # lift one channel by a constant: the sum of its gradients
        bump = torch.zeros_like(feature)
        bump[:, channel] = step
        weights.append((score(feature + bump) - score(feature - bump)) / (2 * step) / 25)
    expected = F.relu((torch.stack(weights, 1)[:, :, None, None] * feature).sum(1))
    cam = analysis.grad_cam(model, images, target, "blocks.0")
    torch.testing.assert_close(cam, expected, rtol=1e-6, atol=1e-9)


def test_grad_cam_in_batches_and_of_a_frozen_network(monkeypatch):
    model, images, target = ConvNet((3, 4)), torch.rand(7, 1, 9, 9), torch.arange(7)
    whole = analysis.grad_cam(model, images, target, 0)
    monkeypatch.setattr(stages, "BATCH", 3)
    with torch.no_grad():
        parts = analysis.grad_cam(model.requires_grad_(False), images, target, 0)
    torch.testing.assert_close(parts, whole)


def test_grad_cam_errors():
    model, images, target = ConvNet((3,)), torch.rand(2, 1, 6, 6), torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"stage 'pool' has no spatial axes.*shape .2, 3."):
        analysis.grad_cam(model, images, target, -1)
    with pytest.raises(ValueError, match="unknown stage 'layer1'"):
        analysis.grad_cam(model, images, target, "layer1")
    with pytest.raises(ValueError, match=r"target must lie in 0\.\.9, got 1 to 10"):
        analysis.grad_cam(model, images, torch.tensor([1, 10]), 0)
    with pytest.raises(ValueError, match="2 in images and 3 in target"):
        analysis.grad_cam(model, images, torch.zeros(3, dtype=torch.int64), 0)
    with pytest.raises(TypeError, match=r"images must be torch.float64 as the model"):
        analysis.grad_cam(model.double(), images, target, 0)
    assert not any(module._forward_hooks for module in model.modules())


class Tokens(nn.Module):
    """Pixels as tokens [n, t, d], behind `before` zeros; the score is linear in them."""

    def __init__(self, weights, before=0):
        super().__init__()
        self.tokens, self.before = nn.Identity(), before
        self.register_buffer("weights", weights)  # [classes, t, d]

    def forward(self, images):
        tokens = images.flatten(2).transpose(1, 2)
        tokens = F.pad(tokens, (0, 0, self.before, 0))
        return torch.einsum("ntd,ktd->nk", self.tokens(tokens), self.weights)


@pytest.mark.parametrize("before", [0, 1])
def test_grad_cam_of_tokens_by_hand(before):
    """Without a class token, and with one, whose gradient must not enter the mean."""
    weights = torch.zeros(2, 4, 2)
    weights[1, :, 0] = torch.tensor([1.0, 2.0, 3.0, 6.0])  # their mean is 3
    weights[1, :, 1] = -1.0
    weights = torch.cat([torch.full((2, before, 2), 1e3), weights], 1)
    images = torch.tensor([[[[1.0, 0.0], [2.0, 0.0]], [[0.0, 5.0], [5.0, 0.0]]]])
    cam = analysis.grad_cam(Tokens(weights, before), images, torch.tensor([1]), "tokens")
    assert torch.equal(cam, torch.tensor([[[3.0, 0.0], [1.0, 0.0]]]))  # ReLU(3 a - b)


def test_grad_cam_of_a_transformer_is_that_of_its_tokens_as_a_map():
    model, images, target = ViT(8, 2, image_size=12), torch.rand(5, 1, 12, 12), torch.arange(5)
    tokens = model.eval().blocks[0](model.tokens(images)).detach().requires_grad_()
    score = model.head(model.pool(model.norm(model.blocks[1](tokens))))
    (gradient,) = torch.autograd.grad(score.gather(1, target[:, None]).sum(), tokens)
    expected = (gradient.mean(1, keepdim=True) * tokens).sum(2).relu().view(5, 3, 3)
    torch.testing.assert_close(analysis.grad_cam(model, images, target, 0), expected)
    assert analysis.grad_cam(Mixer(8, 1, image_size=12), images, target, 0).shape == (5, 3, 3)


def test_grad_cam_of_torchvisions_transformers():
    images, target = torch.rand(2, 3, 32, 32), torch.tensor([0, 6])
    sizes = {"num_layers": 3, "num_heads": 2, "hidden_dim": 8, "mlp_dim": 16}
    vit = VisionTransformer(image_size=32, patch_size=8, num_classes=7, **sizes)
    nn.init.normal_(vit.heads.head.weight)  # it starts at 0, where nothing has an influence
    cam = analysis.grad_cam(vit, images, target, "encoder.layers.encoder_layer_0")
    assert cam.shape == (2, 4, 4) and cam.any()
    with pytest.raises(ValueError, match="no influence .* but through its class token: choose an"):
        analysis.grad_cam(vit, images, target, "encoder.layers.encoder_layer_2")

    windows = {"num_heads": [2, 2], "window_size": [2, 2]}
    swin = SwinTransformer([4, 4], embed_dim=8, depths=[1, 1], num_classes=7, **windows)
    blocks = analysis.grad_cam(swin, images, target, "features.1", channels_last=True)
    assert blocks.shape == (2, 8, 8) and blocks.any()
    with pytest.raises(ValueError, match=r"channels_last must be .* stage 'features.3'.* 4, 4, 16"):
        analysis.grad_cam(swin, images, target, "features.3")
    swin.features[1].append(foreign.ChannelsFirst())
    assert torch.equal(analysis.grad_cam(swin, images, target, "features.1.1.maps"), blocks)


def test_grad_cam_where_the_order_of_the_axes_has_to_be_said():
    class Square(nn.Module):
        def __init__(self):
            super().__init__()
            self.stage = nn.Identity()

        def forward(self, images):
            return self.stage(images).flatten(1)[:, ::2]

    images, target = torch.rand(3, 4, 4, 6), torch.arange(3)
    rows = analysis.grad_cam(Square(), images, target, "stage", channels_last=False)
    tokens = analysis.grad_cam(Square(), images, target, "stage", channels_last=True)
    assert rows.shape == (3, 4, 6) and tokens.shape == (3, 4, 4)
    with pytest.raises(ValueError, match=r"channels_last must be True or False for stage 'stage'"):
        analysis.grad_cam(Square(), images, target, "stage")
    plain = analysis.grad_cam(Square(), images[:, :3], target, "stage")  # 3, 4, 6: channels first
    assert plain.shape == (3, 4, 6)


@pytest.mark.parametrize("count", [3, 6, 7, 8, 11])
def test_grad_cam_of_tokens_that_form_no_grid(count):
    model, images = Tokens(torch.rand(2, count, 2)), torch.rand(1, 2, count, 1)
    with pytest.raises(
        ValueError, match=rf"'tokens' has tokens that form no grid: .*neither {count}"
    ):
        analysis.grad_cam(model, images, torch.tensor([1]), "tokens")


def test_grad_cam_of_a_stage_that_decides_nothing():
    class Aside(nn.Module):
        def __init__(self):
            super().__init__()
            self.aside, self.head = nn.Conv2d(1, 2, 3), nn.Linear(36, 4)

        def forward(self, images):
            self.aside(images)
            return self.head(images.flatten(1))

    with pytest.raises(ValueError, match="stage 'aside' has no influence"):
        analysis.grad_cam(Aside(), torch.rand(2, 1, 6, 6), torch.tensor([0, 1]), "aside")


def test_cam_similarity_and_closer_share_by_hand():
    teacher = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]], [[1.0, 1.0]], [[0.0, 0.0]]])
    near = torch.tensor([[[2.0, 0.0]], [[1.0, 1.0]], [[0.0, 3.0]], [[1.0, 0.0]]])
    far = torch.tensor([[[0.0, 5.0]], [[1.0, 0.5]], [[2.0, 0.0]], [[1.0, 1.0]]])
    half = 0.5**0.5
    expected = torch.tensor([1.0, half, half, 0.0]).double()  # an empty map is like nothing
    torch.testing.assert_close(analysis.cam_similarity(teacher, near), expected)
    # closer, farther, two ties
    assert analysis.closer_share(teacher, near, far) == 100 * (1 + 0 + 0.5 + 0.5) / 4
    assert analysis.closer_share(teacher, near, near) == 50
    tiny = analysis.cam_similarity(1e-20 * teacher, near)  # as small as gradients may be
    torch.testing.assert_close(tiny, expected)
    with pytest.raises(ValueError, match="must have one shape"):
        analysis.cam_similarity(teacher, torch.rand(4, 2, 2))
    with pytest.raises(ValueError, match="same samples, got 4 in a and 3 in b"):
        analysis.cam_similarity(teacher, torch.rand(3, 1, 2))


# --- attacks


def linear_model(pixels=6):
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, 2))


def test_fgsm_of_a_linear_model_goes_to_the_corner():
    model, images = linear_model(), torch.rand(8, 1, 2, 3)
    target = torch.arange(8) % 2
    slope = model[1].weight[1 - target] - model[1].weight[target]  # what raises the loss
    corner = (images + 0.2 * slope.sign().view_as(images)).clamp(0, 1)
    torch.testing.assert_close(analysis.fgsm(model, images, target, epsilon=0.2), corner)
    small = analysis.fgsm(model, images, target, epsilon=0.2, steps=2, step_size=0.03)
    expected = images
    for _ in range(2):
        expected = (expected + 0.03 * slope.sign().view_as(images)).clamp(0, 1)
    torch.testing.assert_close(small, expected)


def test_fgsm_stays_in_the_box_and_in_the_range():
    model, images = ConvNet((4, 4)), torch.rand(9, 1, 8, 8)
    images[0], images[1] = 0, 1
    target = torch.arange(9)
    before = images.clone()
    for steps, step_size in ((1, None), (5, None), (3, 10.0)):
        moved = analysis.fgsm(model, images, target, epsilon=0.1, steps=steps, step_size=step_size)
        assert moved.min() >= 0 and moved.max() <= 1
        assert (moved - images).abs().max() <= 0.1 + 1e-7
        assert not moved.requires_grad
    assert torch.equal(images, before)
    assert torch.equal(analysis.fgsm(model, images, target, epsilon=0), images)


def test_fgsm_raises_the_loss_and_works_on_a_frozen_network_in_batches(monkeypatch):
    model, images, target = ConvNet((4, 4)).eval(), torch.rand(9, 1, 8, 8), torch.arange(9)
    moved = analysis.fgsm(model, images, target, epsilon=0.1)
    loss = [F.cross_entropy(model(x), target, reduction="none") for x in (images, moved)]
    assert (loss[1] > loss[0]).all()
    explicit = analysis.fgsm(model, images, target, epsilon=0.1, step_size=0.03)
    assert torch.equal(moved, explicit)  # 1.5 * epsilon / steps
    monkeypatch.setattr(stages, "BATCH", 4)
    with torch.no_grad():
        parts = analysis.fgsm(model.requires_grad_(False), images, target, epsilon=0.1)
    torch.testing.assert_close(parts, moved)


def test_fgsm_climbs_the_cross_entropy_to_the_letter():
    model, images, target = MLP((9,), in_features=30).double(), torch.rand(12, 30).double(), LABELS
    expected = images.clone()
    for _ in range(4):
        expected.requires_grad_()
        (slope,) = torch.autograd.grad(F.cross_entropy(model(expected), target), expected)
        stepped = expected.detach() + 0.03 * slope.sign()
        expected = torch.minimum(torch.maximum(stepped, images - 0.05), images + 0.05).clamp(0, 1)
    moved = analysis.fgsm(model, images, target, epsilon=0.05, steps=4, step_size=0.03)
    torch.testing.assert_close(moved, expected)


LABELS = torch.arange(12) % 10


@pytest.fixture(scope="module")
def trained():
    """A network that reads digits, and 300 images of the test split."""
    digits = data.load(size=14)
    torch.manual_seed(0)
    model = MLP((64,), in_features=196)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        loss = F.cross_entropy(model(digits.train.images), digits.train.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model, digits.test.take(slice(0, 300))


@pytest.mark.parametrize("factor", [20, 1000])
def test_a_network_that_is_sure_is_fooled_as_often(trained, factor):
    model, (images, labels) = trained
    sure = copy.deepcopy(model)  # the same decisions; the softmax rounds to 0 and 1
    with torch.no_grad():
        sure.head.weight.mul_(factor)
        sure.head.bias.mul_(factor)
    assert torch.equal(analysis.predictions(sure, images), analysis.predictions(model, images))
    slopes = torch.autograd.grad(
        F.cross_entropy(sure(images.requires_grad_()), labels, reduction="sum"), images
    )[0]
    images.requires_grad_(False)
    assert (slopes == 0).flatten(1).all(1).double().mean() > 0.3  # what the attack must get around
    plain, scaled = (
        analysis.successful_attacks(network, images, labels, epsilon=0.1)
        for network in (model, sure)
    )
    assert plain.rate > 80 and plain.unmoved == scaled.unmoved == 0
    assert abs(plain.rate - scaled.rate) < 5


def test_images_that_an_attack_leaves_as_they_are_are_counted():
    class Flat(nn.Module):  # without a slope where the pixel is below one half
        def forward(self, images):
            z = (images.flatten(1) - 0.5).relu()
            return torch.cat([0.1 + 0 * z, z], 1)

    images = torch.tensor([0.1, 0.2, 0.3, 0.55]).view(4, 1, 1, 1)
    target = torch.tensor([0, 0, 0, 0])
    attack = analysis.successful_attacks(Flat(), images, target, epsilon=0.2)
    assert attack.unmoved == 75 and attack.rate == 25
    assert attack[:3] == (attack.clean, attack.adversarial, attack.rate)
    nothing = analysis.successful_attacks(Flat(), images, target, epsilon=0)
    assert nothing.unmoved == 100 and nothing.rate == 0


def test_fgsm_errors():
    model, images, target = linear_model(), torch.rand(2, 1, 2, 3), torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"images must lie in \[0, 1\], got .* to 255"):
        analysis.fgsm(model, images.round() * 0 + 255, target, epsilon=0.1)
    with pytest.raises(ValueError, match=r"epsilon must be .* at most 1, got 8"):
        analysis.fgsm(model, images, target, epsilon=8)  # of 255
    with pytest.raises(ValueError, match="same samples, got 2 in images and 1 in target"):
        analysis.fgsm(model, images, target[:1], epsilon=0.1)
    model[1].bias.data[0] = torch.inf
    with pytest.raises(ValueError, match="the network's logits must be finite"):
        analysis.fgsm(model, images, target, epsilon=0.1)


def test_fooling_rate_by_hand():
    model = lookup([0, 1, 1, 2])
    clean = torch.tensor([0.0, 1, 2, 3]).view(4, 1)
    adversarial = torch.tensor([1.0, 2, 2, 0]).view(4, 1)  # 0 -> 1, 1 -> 1, 1 -> 1, 2 -> 0
    assert analysis.fooling_rate(model, clean, adversarial) == 50
    assert analysis.fooling_rate(model, clean, clean) == 0
    with pytest.raises(ValueError, match="clean and adversarial must hold at least one sample"):
        analysis.fooling_rate(model, clean[:0], adversarial[:0])


def test_successful_attacks_are_those_that_turn_the_model():
    model, images = linear_model(), torch.rand(40, 1, 2, 3)
    target = analysis.predictions(model, images)
    attack = analysis.successful_attacks(model, images, target, epsilon=0.1)
    assert 0 < len(attack.clean) < 40
    assert attack.rate == 100 * len(attack.clean) / 40
    assert analysis.fooling_rate(model, attack.clean, attack.adversarial) == 100
    assert (attack.clean - attack.adversarial).abs().max() <= 0.1 + 1e-7
    none = analysis.successful_attacks(model, images, target, epsilon=0.0)
    assert none.rate == 0 and len(none.clean) == 0


# --- agreement


def test_agreement_and_consensus_by_hand():
    labels = torch.tensor([0, 0, 1, 1])
    student = torch.tensor([0, 1, 1, 1])
    teacher = torch.tensor([0, 1, 0, 1])
    assert analysis.agreement(student, teacher) == 75
    entropy = -(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75))
    assert analysis.consensus(student, teacher, labels, 2) == pytest.approx(
        {
            "consensus": 75.0,
            "chance": 50.0,
            "student accuracy": 75.0,
            "teacher accuracy": 50.0,
            "student entropy": entropy,
            "teacher entropy": 1.0,
            "collapsed": False,
        }
    )


def test_chance_is_the_agreement_of_shuffled_answers():
    stream = torch.Generator().manual_seed(0)
    a = torch.tensor([0, 0, 0, 1])  # 3/4 and 1/4
    b = torch.tensor([0, 1, 1, 1])  # 1/4 and 3/4
    assert analysis.chance_agreement(a, b, 2) == pytest.approx(100 * (3 + 3) / 16)
    assert analysis.chance_agreement(a, torch.tensor([0, 1, 0, 1]), 2) == pytest.approx(50)
    assert analysis.chance_agreement(a * 0, a * 0, 10) == 100
    p, q = (torch.randint(3, (4000,), generator=stream).clamp(max=1 + k) for k in (0, 1))
    shuffled = [analysis.agreement(p[torch.randperm(4000, generator=stream)], q) for _ in range(50)]
    expected = analysis.chance_agreement(p, q, 3)
    assert sum(shuffled) / 50 == pytest.approx(expected, abs=0.5)


def test_the_permutation_test_counts_all_ways_to_hand_out_teachers():
    table = np.array([[9.0, 1, 1], [1, 9, 1], [1, 1, 9]])
    found = analysis.permutation_test(table)
    assert found == pytest.approx((8, 1 / 6, 1 / 6))
    assert analysis.permutation_test(np.stack([table, 3 * table])) == pytest.approx(
        (16, 1 / 6, 1 / 6)
    )
    assert analysis.permutation_test(table[[1, 0, 2]]).p == pytest.approx(4 / 6)
    assert analysis.permutation_test(np.ones((4, 4))) == pytest.approx((0, 1, 1 / 24))


def test_the_permutation_test_is_exact():
    """Without an effect p is uniform, also where students and teachers differ in level."""
    stream = np.random.default_rng(0)
    tables = stream.normal(size=(2000, 4, 4))
    tables += 5 * stream.normal(size=(2000, 4, 1)) + 5 * stream.normal(size=(2000, 1, 4))
    found = np.array([analysis.permutation_test(table).p for table in tables])
    for level in (1 / 24, 0.25, 0.5):
        assert (found <= level + 1e-9).mean() == pytest.approx(level, abs=0.035)


@pytest.mark.parametrize("table", [np.ones(3), np.ones((2, 3)), np.ones((1, 1)), np.ones((9, 9))])
def test_the_permutation_test_refuses_other_shapes(table):
    with pytest.raises(ValueError, match=r"table must be \[\.\.\., n, n\] with n from 2 to 8"):
        analysis.permutation_test(table)


def test_the_permutation_test_refuses_what_is_no_number():
    with pytest.raises(ValueError, match="table must be finite"):
        analysis.permutation_test(np.full((3, 3), np.nan))


def test_collapse_is_flagged_although_consensus_is_perfect():
    ones, labels = torch.ones(30, dtype=torch.int64), torch.arange(30) % 10
    result = analysis.consensus(ones, ones, labels, 10)
    assert result["consensus"] == 100 and result["student accuracy"] == 10
    assert result["student entropy"] == 0 and result["collapsed"] is True
    assert analysis.consensus(ones, labels, labels, 10)["collapsed"] is True  # one is enough
    assert analysis.consensus(labels, labels, labels, 10)["collapsed"] is False
    assert analysis.consensus(labels, labels, labels, 10, threshold=1.1)["collapsed"] is True


def test_agreement_errors():
    labels = torch.tensor([0, 1])
    with pytest.raises(ValueError, match="2 in predictions_a and 3 in predictions_b"):
        analysis.agreement(labels, torch.tensor([0, 1, 2]))
    with pytest.raises(TypeError, match=r"predictions_a must be .*take logits\.argmax"):
        analysis.agreement(torch.rand(2, 10), torch.rand(2, 10))
    with pytest.raises(ValueError, match=r"must lie in 0\.\.1, got 0 to 2"):
        analysis.consensus(torch.tensor([0, 2]), labels, labels, 2)


def test_a_diverged_network_has_no_predictions():
    model = linear_model()
    model[1].bias.data[0] = torch.nan
    with pytest.raises(ValueError, match="model answers NaN"):
        analysis.predictions(model, torch.rand(3, 1, 2, 3))


# --- CKA


def naive_cka(x, y):
    """The lecture's equations 3 and 4 to the letter."""
    n = len(x)
    h = torch.eye(n).double() - torch.ones(n, n).double() / n
    k, ell = (f.flatten(1).double() @ f.flatten(1).double().T for f in (x, y))

    def hsic(a, b):
        return torch.trace(a @ h @ b @ h) / (n - 1) ** 2

    return (hsic(k, ell) / (hsic(k, k) * hsic(ell, ell)).sqrt()).item()


def orthogonal(width):
    return torch.linalg.qr(torch.randn(width, width).double())[0]


@pytest.mark.parametrize("n, d1, d2", [(50, 4, 7), (6, 30, 5), (9, 12, 40)])
def test_linear_cka_equals_the_lecture(n, d1, d2):
    x = torch.randn(n, d1) + 3
    y = x[:, :1] * torch.randn(1, d2) + torch.randn(n, d2)
    assert analysis.linear_cka(x, y) == pytest.approx(naive_cka(x, y), rel=1e-9)
    assert analysis.linear_cka(x, y) == pytest.approx(analysis.linear_cka(y, x), rel=1e-12)


@pytest.mark.parametrize("n, d", [(40, 6), (8, 20)])
def test_cka_invariances(n, d):
    x, y = torch.randn(n, d).double(), torch.randn(n, d + 1).double()
    y[:, :3] += x[:, :3]
    for cka in (analysis.linear_cka, lambda a, b: analysis.minibatch_cka([(a, b)])):
        value = cka(x, y)
        assert cka(x, x) == pytest.approx(1, abs=1e-12)
        assert cka(x @ orthogonal(d), y) == pytest.approx(value, abs=1e-10)
        assert cka(-7.5 * x, 1e-6 * y) == pytest.approx(value, abs=1e-10)
        assert cka(x + 100, y) == pytest.approx(value, abs=1e-8)
        stretched = x * torch.linspace(0.1, 5, d)  # other linear maps do matter
        assert abs(cka(stretched, y) - value) > 1e-3


def test_the_unbiased_hsic_is_a_mean_over_distinct_samples():
    n = 6
    x, y = torch.randn(n, 3).double(), torch.randn(n, 4).double()
    k, ell = x @ x.T, y @ y.T
    terms = [
        k[i, j] * (ell[i, j] + ell[q, r] - 2 * ell[i, q])
        for i, j, q, r in itertools.permutations(range(n), 4)
    ]
    k.fill_diagonal_(0)
    ell.fill_diagonal_(0)
    assert _hsic(k, ell).item() == pytest.approx(torch.stack(terms).mean().item())


def test_unbiased_cka_of_independent_noise_is_near_zero():
    batches = [(torch.randn(32, 64), torch.randn(32, 48)) for _ in range(64)]
    assert abs(analysis.minibatch_cka(batches)) < 0.03
    assert analysis.linear_cka(*batches[0]) > 0.5  # the biased estimate sees similarity here


def test_minibatches_agree_with_the_whole_set():
    x = torch.randn(4000, 12)
    y = x[:, :6] + 0.5 * torch.randn(4000, 6)
    whole = analysis.minibatch_cka([(x, y)])
    assert whole == pytest.approx(analysis.linear_cka(x, y), abs=0.01)
    assert analysis.minibatch_cka(zip(x.split(50), y.split(50))) == pytest.approx(whole, abs=0.02)


def test_heatmap_holds_the_pairs():
    batches = []
    for _ in range(3):
        maps = torch.randn(20, 2, 3, 3)
        batches.append(([maps, maps.mean((2, 3))], [maps.mean((2, 3)), maps, torch.randn(20, 5)]))
    heatmap = analysis.cka_heatmap(batches)
    assert heatmap.shape == (2, 3)
    for i, j in itertools.product(range(2), range(3)):
        pair = analysis.minibatch_cka((x[i], y[j]) for x, y in batches)
        assert heatmap[i, j].item() == pytest.approx(pair, abs=1e-12)
    assert heatmap[0, 1].item() == pytest.approx(1) and heatmap[1, 0].item() == pytest.approx(1)


def test_network_cka_reads_the_stages_of_both():
    first, second = ConvNet((4, 6)), ViT(8, 3, heads=2)
    first.train()
    images = torch.rand(23, 1, 28, 28)
    found = analysis.network_cka(first, second, images, batch_size=10)
    assert found.shape == (3, 4) and first.training
    with evaluating(first), torch.no_grad(), Tap(first, [0]) as a, Tap(second, [-1]) as b:
        pairs = [(a(x)[1]["blocks.0"], b(x)[1]["pool"]) for x in images[:20].split(10)]
    assert found[0, 3].item() == pytest.approx(analysis.minibatch_cka(pairs), abs=1e-9)
    same = analysis.network_cka(first, first, images, [0, 1], batch_size=10)
    assert same.diagonal().tolist() == pytest.approx([1, 1]) and same[0, 1] < 1
    with pytest.raises(ValueError, match="unknown stage 5"):
        analysis.network_cka(first, second, images, [5], batch_size=10)
    with pytest.raises(ValueError, match="batch_size must be .* at most 23, got 24"):
        analysis.network_cka(first, second, images, batch_size=24)


def test_cka_does_not_overflow():
    x = torch.randn(20, 3).double()
    for scale in (1e-100, 1e100):
        assert analysis.linear_cka(scale * x, x) == pytest.approx(1)
    for scale in (1e-30, 1e30):
        assert analysis.minibatch_cka([(scale * x, x)]) == pytest.approx(1)


def test_cka_errors():
    x = torch.randn(5, 3)
    with pytest.raises(ValueError, match="same samples, got 5 in x and 4 in y"):
        analysis.linear_cka(x, x[:4])
    with pytest.raises(ValueError, match="y must differ between the samples"):
        analysis.linear_cka(x, torch.ones(5, 2))
    with pytest.raises(ValueError, match="x must differ between the samples"):
        analysis.linear_cka(x[:1], x[:1])
    for batches, message in (
        ([], "batches must hold at least one pair"),
        ([(x[:3], x[:3])], "the number of samples in x must be .* at least 4, got 3"),
        ([(x, x[:4])], "same samples, got 5 in x and 4 in y"),
        ([(x, x / 0)], r"y\[0\] must be finite"),
        ([(x, x), (x, 0 * x)], r"y\[0\] must differ"),
    ):
        with pytest.raises(ValueError, match=message):
            analysis.minibatch_cka(batches)
    with pytest.raises(TypeError, match="x must be a list of tensors, one per stage"):
        analysis.cka_heatmap([(x, x)])
    with pytest.raises(TypeError, match="y must be a list of tensors, one per stage"):
        analysis.cka_heatmap([([x], [])])
    with pytest.raises(ValueError, match="every batch must hold the same stages"):
        analysis.cka_heatmap([([x], [x]), ([x, x], [x])])


def test_a_batch_too_small_for_a_ratio_is_an_error_not_nan():
    corners = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [-1, -1, -1]])
    grams = (corners - corners.mean(0)) @ (corners - corners.mean(0)).T
    grams.fill_diagonal_(0)
    if _hsic(grams, grams) > 0:
        pytest.fail("choose features whose unbiased HSIC is not positive")
    with pytest.raises(ValueError, match="use more samples in a batch"):
        analysis.minibatch_cka([(corners, corners)])


# --- decision boundaries


def test_plane_is_an_isometric_picture_of_the_three_images():
    images = torch.rand(3, 2, 4, 4).double()
    plane = analysis.plane_points(images, resolution=7, margin=0.25)
    assert plane.images.shape == (49, 2, 4, 4)
    flat, corners = plane.images.flatten(1), images.flatten(1)
    y, x = torch.meshgrid(plane.y, plane.x, indexing="ij")  # rows are y, columns are x
    coordinates = torch.stack([x.flatten(), y.flatten()], 1)
    torch.testing.assert_close(torch.cdist(flat, corners), torch.cdist(coordinates, plane.points))
    torch.testing.assert_close(
        torch.cdist(corners, corners), torch.cdist(plane.points, plane.points)
    )
    assert plane.points[0].tolist() == [0, 0] and plane.points[1, 1] == 0
    for axis, name in ((0, "x"), (1, "y")):
        low, high = plane.points[:, axis].min(), plane.points[:, axis].max()
        ends = torch.stack([low - 0.25 * (high - low), high + 0.25 * (high - low)])
        torch.testing.assert_close(getattr(plane, name)[[0, -1]], ends)


def test_random_planes_are_repeatable_and_equal_plane_points():
    images = torch.rand(9, 1, 5, 5)
    grids = analysis.random_planes(images, 4, resolution=6, seed=3)
    assert grids.shape == (4, 36, 1, 5, 5)
    assert torch.equal(grids, analysis.random_planes(images, 4, resolution=6, seed=3))
    assert not torch.equal(grids, analysis.random_planes(images, 4, resolution=6, seed=4))
    first = torch.randperm(9, generator=torch.Generator().manual_seed(3))[:3]
    torch.testing.assert_close(grids[0], analysis.plane_points(images[first], 6).images)


def test_plane_errors():
    images = torch.rand(3, 1, 4, 4)
    with pytest.raises(ValueError, match="exactly three points of the plane, got 2"):
        analysis.plane_points(images[:2])
    with pytest.raises(ValueError, match="at least three points of a plane, got 2"):
        analysis.random_planes(images[:2])
    for third in (images[0], images[1], 0.3 * images[0] + 0.7 * images[1]):
        with pytest.raises(ValueError, match="three on a line"):
            analysis.plane_points(torch.stack([images[0], images[1], third]))
    with pytest.raises(ValueError, match="three on a line"):
        analysis.plane_points(images[[0, 0, 1]])


def test_map_overlap_by_hand():
    teacher = torch.tensor([[0, 0, 0, 1], [2, 2, 2, 2]])
    student = torch.tensor([[0, 0, 1, 1], [2, 2, 2, 2]])
    overlap = analysis.map_overlap(teacher, student, 3)
    # plane 1: class 0 has 2 of 3, class 1 has 1 of 2, class 2 does not occur; plane 2 is the same
    assert overlap["class_iou"] == pytest.approx(100 * ((2 / 3 + 1 / 2) / 2 + 1) / 2)
    assert overlap["pixel_iou"] == pytest.approx(100 * (3 / 5 + 1) / 2)
    assert overlap["equal_points"] == pytest.approx(100 * (3 / 4 + 1) / 2)
    foreign = analysis.map_overlap(teacher[1:], student[1:] - 2, 3)  # both classes count, with 0
    assert foreign == {"equal_points": 0, "class_iou": 0, "pixel_iou": 0}
    assert analysis.map_overlap(student, teacher, 3) == pytest.approx(overlap)


def test_boundary_overlap_composes_the_pieces():
    images = torch.rand(20, 1, 4, 4)
    teacher, student = MLP((8,), in_features=16), MLP((8,), in_features=16)
    options = {"planes": 5, "resolution": 6, "seed": 1}
    overlap = analysis.boundary_overlap(teacher, student, images, **options)
    grids = analysis.random_planes(images, 5, resolution=6, seed=1)
    maps = [
        torch.stack([analysis.predictions(model, grid) for grid in grids])
        for model in (teacher, student)
    ]
    assert overlap == analysis.map_overlap(*maps, 10)
    assert 0 <= overlap["class_iou"] < 100
    same = analysis.boundary_overlap(teacher, copy.deepcopy(teacher), images, **options)
    assert same == {"equal_points": 100, "class_iou": 100, "pixel_iou": 100}


def test_map_overlap_errors():
    maps = torch.zeros(2, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"\[planes, points\] of one shape"):
        analysis.map_overlap(maps, maps[:, :3], 2)
    with pytest.raises(ValueError, match=r"student_maps must lie in 0\.\.1, got 2"):
        analysis.map_overlap(maps, maps + 2, 2)


# --- calibration


def test_calibration_error_by_hand():
    probabilities = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.35, 0.65], [0.55, 0.45]])
    labels = torch.tensor([0, 1, 1, 0])
    # with 2 bins all are in (.5, 1]: accuracy .75, confidence .725
    ece = analysis.expected_calibration_error(probabilities.log(), labels, bins=2)
    assert ece == pytest.approx(0.025)
    # with 4: (.5, .75] holds .65 and .55, both right; (.75, 1] holds .9 right and .8 wrong
    ece = analysis.expected_calibration_error(probabilities.log(), labels, bins=4)
    assert ece == pytest.approx(0.5 * (1 - 0.6) + 0.5 * (0.85 - 0.5))
    # a confidence of exactly .5 belongs to (0, .5], so it does not average out with the .9
    edge = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log()
    ece = analysis.expected_calibration_error(edge, torch.tensor([1, 0]), bins=2)
    assert ece == pytest.approx(0.5 * 0.5 + 0.5 * 0.1)
    certain = torch.tensor([[100.0, 0.0], [100.0, 0.0]])  # confidence 1 falls into the last bin
    assert analysis.expected_calibration_error(certain, torch.tensor([0, 1])) == pytest.approx(0.5)


# --- the models that are analysed

IMAGES, TARGET = torch.rand(6, 1, 8, 8), torch.arange(6)
READERS = {
    "predictions": lambda model, x, y: analysis.predictions(model, x),
    "grad_cam": lambda model, x, y: analysis.grad_cam(model, x, y, 0),
    "fgsm": lambda model, x, y: analysis.fgsm(model, x, y, epsilon=0.1),
    "fooling_rate": lambda model, x, y: analysis.fooling_rate(model, x, x.flip(0)),
    "successful_attacks": lambda model, x, y: analysis.successful_attacks(model, x, y, epsilon=0.1),
    "boundary_overlap": lambda model, x, y: analysis.boundary_overlap(
        model, ConvNet((4, 4)), x, planes=2, resolution=3
    ),
}


def test_every_function_that_takes_a_model_is_listed():
    takes = {name for name in analysis.__all__ if "model: nn.Module" in str(vars(analysis)[name])}
    for name in analysis.__all__:
        annotations = getattr(vars(analysis)[name], "__annotations__", {})
        if {"model", "teacher", "student"} & set(annotations):
            takes.add(name)
    assert takes == set(READERS)


@pytest.mark.parametrize("name", READERS)
def test_the_model_comes_back_as_it_was(name):
    model = ConvNet((4, 4), dropout=0.5)
    model.blocks[0][1].eval()  # a frozen batch norm
    modes, state = [m.training for m in model.modules()], copy.deepcopy(model.state_dict())
    results = []
    for _ in range(2):
        torch.manual_seed(5)
        results.append(str(READERS[name](model, IMAGES, TARGET)))
    assert results[0] == results[1]  # dropout is off
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(a, b) for a, b in zip(state.values(), model.state_dict().values()))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    assert not IMAGES.requires_grad


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_works_where_gradients_are_off(name, mode):
    model = ConvNet((4, 4))
    torch.manual_seed(5)
    expected = str(READERS[name](model, IMAGES, TARGET))
    with mode():
        images, target = IMAGES + 0, TARGET + 0  # made in this mode
        torch.manual_seed(5)
        assert str(READERS[name](model, images, target)) == expected
    torch.manual_seed(5)
    assert str(READERS[name](model, images, target)) == expected  # and outside of it


def test_no_double_precision_is_asked_of_a_device_that_lacks_it(monkeypatch):
    def refused(tensor):
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype")

    monkeypatch.setattr(inputs, "float64", lambda found: found.cpu().to(torch.float64))
    monkeypatch.setattr(torch.Tensor, "double", refused)
    for read in READERS.values():
        read(ConvNet((4, 4)), IMAGES, TARGET)
    for name, (good, _) in BAD.items():
        getattr(analysis, name)(**good)


# --- names and bad arguments, by enumeration

NET, MAPS, FEATURES = ConvNet((4, 4)), torch.rand(6, 4, 4), torch.rand(6, 5)
READ = {
    "model": bad.READ_NETWORKS,
    "images": (*bad.numbers_in(IMAGES), IMAGES[0, 0]),
}
ATTACKED = {"images": bad.numbers_in(IMAGES, unit=True), "target": bad.classes_like(TARGET, 10)}
PLANES = {"images": (*bad.numbers_in(IMAGES), IMAGES[:2])}
GRID = {"resolution": (*bad.SIZES, 1), "margin": (*bad.NUMBERS, -0.1)}
MAP = torch.zeros(2, 4, dtype=torch.int64)
BAD: bad.Table = {
    "predictions": ({"model": NET, "images": IMAGES}, READ),
    "grad_cam": (
        {"model": NET, "images": IMAGES, "target": TARGET, "stage": 0},
        {
            **READ,
            "target": bad.classes_like(TARGET, 10),
            "stage": (None, "layer9", 99, 0.0, bad.NAN, True, -1),
            "channels_last": ("yes", 1, 0.0, [True]),
        },
    ),
    "cam_similarity": (
        {"a": MAPS, "b": MAPS},
        {one: (*bad.numbers_in(MAPS), MAPS[:, 0]) for one in "ab"},
    ),
    "fgsm": (
        {"model": NET, "images": IMAGES, "target": TARGET, "epsilon": 0.1},
        {
            "model": bad.READ_NETWORKS,
            **ATTACKED,
            "epsilon": (*bad.NUMBERS, -0.1, 8),
            "steps": bad.SIZES,
            "step_size": (*(one for one in bad.NUMBERS if one is not None), -0.1, 0),
        },
    ),
    "successful_attacks": (
        {"model": NET, "images": IMAGES, "target": TARGET, "epsilon": 0.1},
        {"model": bad.READ_NETWORKS, **ATTACKED},
    ),
    "agreement": (
        {"predictions_a": TARGET, "predictions_b": TARGET},
        {
            f"predictions_{one}": (*bad.classes_like(TARGET, 10)[:-1], FEATURES, TARGET[0])
            for one in "ab"
        },
    ),
    "prediction_entropy": (
        {"classes": TARGET, "num_classes": 10},
        {
            "classes": bad.classes_like(TARGET, 10, paired=False),
            "num_classes": (*bad.SIZES, 1),
        },
    ),
    "chance_agreement": (
        {"predictions_a": TARGET, "predictions_b": TARGET, "num_classes": 10},
        {
            "predictions_a": bad.classes_like(TARGET, 10),
            "predictions_b": bad.classes_like(TARGET, 10),
            "num_classes": (*bad.SIZES, 1),
        },
    ),
    "consensus": (
        {
            "student_predictions": TARGET,
            "teacher_predictions": TARGET,
            "labels": TARGET,
            "num_classes": 10,
        },
        {
            "student_predictions": bad.classes_like(TARGET, 10),
            "teacher_predictions": bad.classes_like(TARGET, 10),
            "labels": bad.classes_like(TARGET, 10),
            "num_classes": (*bad.SIZES, 1),
            "threshold": (*bad.NUMBERS, -0.1),
        },
    ),
    "linear_cka": (
        {"x": FEATURES, "y": FEATURES},
        {one: (*bad.numbers_in(FEATURES), FEATURES[:1], FEATURES * 0) for one in "xy"},
    ),
    "plane_points": ({"images": IMAGES[:3]}, {"images": (*PLANES["images"], IMAGES), **GRID}),
    "random_planes": (
        {"images": IMAGES, "planes": 2, "resolution": 3},
        {**PLANES, **GRID, "planes": bad.SIZES, "seed": bad.SEEDS},
    ),
    "map_overlap": (
        {"teacher_maps": MAP, "student_maps": MAP, "num_classes": 3},
        {"num_classes": bad.SIZES}
        | {f"{one}_maps": (*bad.classes_like(MAP, 3), MAP[0]) for one in ("teacher", "student")},
    ),
    "boundary_overlap": (
        {"teacher": NET, "student": NET, "images": IMAGES, "planes": 2, "resolution": 3},
        {
            **PLANES,
            "planes": bad.SIZES,
            "resolution": (*bad.SIZES, 1),
            "seed": bad.SEEDS,
            "num_classes": bad.SIZES,
        },
    ),
    "expected_calibration_error": (
        {"logits": FEATURES, "labels": torch.arange(6) % 5},
        {
            "logits": (*bad.numbers_in(FEATURES), FEATURES[:, 0], FEATURES[:3]),
            "labels": bad.classes_like(torch.arange(6) % 5, 5),
            "bins": bad.SIZES,
        },
    ),
    "fooling_rate": (
        {"model": NET, "clean": IMAGES, "adversarial": IMAGES},
        {"model": READ["model"]},
    ),
}
EXEMPT = {
    "permutation_test.table": "see test_the_permutation_test_refuses_other_shapes",
    "closer_share": "two calls of cam_similarity",
    "minibatch_cka.batches": "see test_cka_errors",
    "cka_heatmap.batches": "see test_cka_errors",
    "network_cka": "see test_network_cka_reads_the_stages_of_both",
    "successful_attacks.options": "those of fgsm",
    "fooling_rate.clean": "those of predictions",
    "fooling_rate.adversarial": "those of predictions",
    "boundary_overlap.teacher": "those of predictions",
    "boundary_overlap.student": "those of predictions",
}


@pytest.mark.parametrize("name, parameter", bad.checks(BAD))
def test_bad_arguments_are_refused_by_name(name, parameter):
    bad.refuses(analysis, BAD, name, parameter)


def test_no_argument_was_forgotten():
    assert bad.missing(analysis, BAD, EXEMPT) == []


def test_the_package_exports_every_public_name():
    found = set()
    for info in pkgutil.iter_modules(analysis.__path__):
        module = importlib.import_module(f"kdlib.analysis.{info.name}")
        found |= {
            name
            for name, value in vars(module).items()
            if not name.startswith("_") and getattr(value, "__module__", "") == module.__name__
        }
        for name in found:
            assert f"`{name}`" in analysis.__doc__ or isinstance(vars(analysis)[name], type)
    assert found == set(analysis.__all__)
