"""Analyses against closed forms, plain implementations and maps drawn by hand."""

import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdlib import analysis
from kdlib.models import MLP, ConvNet, ViT


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
    monkeypatch.setattr(analysis, "BATCH", 3)
    with torch.no_grad():
        parts = analysis.grad_cam(model.requires_grad_(False), images, target, 0)
    torch.testing.assert_close(parts, whole)


def test_grad_cam_errors():
    model, images, target = ConvNet((3,)), torch.rand(2, 1, 6, 6), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="stage 'pool' has no spatial axes.*shape .2, 3."):
        analysis.grad_cam(model, images, target, -1)
    with pytest.raises(ValueError, match="stage 'blocks.0' has no spatial axes"):
        analysis.grad_cam(ViT(8, 1, image_size=6, patch=3), images, target, 0)
    with pytest.raises(ValueError, match="unknown stage 'layer1'"):
        analysis.grad_cam(model, images, target, "layer1")
    with pytest.raises(ValueError, match="target must hold classes from 0 to 9, got 1 to 10"):
        analysis.grad_cam(model, images, torch.tensor([1, 10]), 0)
    with pytest.raises(TypeError, match="target must hold integer classes"):
        analysis.grad_cam(model, images, torch.tensor([1.0, 2.0]), 0)
    with pytest.raises(ValueError, match="2 in images and 3 in target"):
        analysis.grad_cam(model, images, torch.zeros(3, dtype=torch.int64), 0)
    assert not any(module._forward_hooks for module in model.modules())


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
    with pytest.raises(ValueError, match="mismatched lengths: 4 in a and 3 in b"):
        analysis.cam_similarity(teacher, torch.rand(3, 1, 2))


# --- attacks


def linear_model(pixels=6):
    model = nn.Sequential(nn.Flatten(), nn.Linear(pixels, 2))
    return model


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
    monkeypatch.setattr(analysis, "BATCH", 4)
    with torch.no_grad():
        parts = analysis.fgsm(model.requires_grad_(False), images, target, epsilon=0.1)
    torch.testing.assert_close(parts, moved)


def test_fgsm_errors():
    model, images, target = linear_model(), torch.rand(2, 1, 2, 3), torch.tensor([0, 1])

    def attack(images=images, target=target, epsilon=0.1, steps=5):
        return analysis.fgsm(model, images, target, epsilon=epsilon, steps=steps)

    with pytest.raises(ValueError, match=r"images must lie in \[0, 1\], got values from .* to 255"):
        attack(images=images.round() * 0 + 255)
    with pytest.raises(ValueError, match=r"images must lie in \[0, 1\]"):
        attack(images=images * float("nan"))
    for options in ({"epsilon": -0.1}, {"epsilon": float("nan")}, {"steps": 0}):
        with pytest.raises(ValueError, match="epsilon >= 0 and steps >= 1"):
            attack(**options)
    with pytest.raises(ValueError, match="target must hold classes from 0 to 1"):
        attack(target=torch.tensor([0, 2]))
    with pytest.raises(ValueError, match="at least one sample"):
        attack(images=images[:0], target=target[:0])
    with pytest.raises(ValueError, match="mismatched lengths"):
        attack(target=target[:1])


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
            "student accuracy": 75.0,
            "teacher accuracy": 50.0,
            "student entropy": entropy,
            "teacher entropy": 1.0,
            "collapsed": False,
        }
    )


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
    with pytest.raises(ValueError, match="take logits.argmax"):
        analysis.agreement(torch.rand(2, 10), torch.rand(2, 10))
    with pytest.raises(ValueError, match="classes from 0 to 1, got 0 to 2"):
        analysis.consensus(torch.tensor([0, 2]), labels, labels, 2)
    with pytest.raises(ValueError, match="at least one sample"):
        analysis.consensus(labels[:0], labels[:0], labels[:0], 2)
    with pytest.raises(ValueError, match="num_classes must be at least 2"):
        analysis.prediction_entropy(labels, 1)
    with pytest.raises(ValueError, match="images must hold at least one sample"):
        analysis.predictions(linear_model(), torch.rand(0, 6))


# --- CKA


def naive_cka(x, y):
    """The lecture's equations 3 and 4 to the letter."""
    n = len(x)
    h = torch.eye(n).double() - torch.ones(n, n).double() / n
    k, l = (f.flatten(1).double() @ f.flatten(1).double().T for f in (x, y))

    def hsic(a, b):
        return torch.trace(a @ h @ b @ h) / (n - 1) ** 2

    return (hsic(k, l) / (hsic(k, k) * hsic(l, l)).sqrt()).item()


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
    k, l = x @ x.T, y @ y.T
    terms = [
        k[i, j] * (l[i, j] + l[q, r] - 2 * l[i, q])
        for i, j, q, r in itertools.permutations(range(n), 4)
    ]
    k.fill_diagonal_(0)
    l.fill_diagonal_(0)
    assert analysis._hsic(k, l).item() == pytest.approx(torch.stack(terms).mean().item())


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


def test_cka_errors():
    x = torch.randn(5, 3)
    with pytest.raises(ValueError, match="mismatched lengths: 5 in x and 4 in y"):
        analysis.linear_cka(x, x[:4])
    with pytest.raises(ValueError, match="y is constant"):
        analysis.linear_cka(x, torch.ones(5, 2))
    with pytest.raises(ValueError, match="x is constant or not finite"):
        analysis.linear_cka(x / 0, x)
    with pytest.raises(ValueError, match="batches is empty"):
        analysis.minibatch_cka([])
    with pytest.raises(ValueError, match="at least 4; got .3."):
        analysis.minibatch_cka([(x[:3], x[:3])])
    with pytest.raises(ValueError, match=r"same samples.*got \[4, 5\]"):
        analysis.minibatch_cka([(x, x[:4])])


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
    with pytest.raises(ValueError, match="at least three points of a plane, got 0"):
        analysis.random_planes(images[:0])
    with pytest.raises(ValueError, match="planes must be at least 1"):
        analysis.random_planes(images, 0)
    for third in (images[0], images[1], 0.3 * images[0] + 0.7 * images[1]):
        with pytest.raises(ValueError, match="lie on a line"):
            analysis.plane_points(torch.stack([images[0], images[1], third]))
    with pytest.raises(ValueError, match="lie on a line"):
        analysis.plane_points(images[[0, 0, 1]])
    with pytest.raises(ValueError, match="resolution >= 2 and margin >= 0"):
        analysis.plane_points(images, resolution=1)


def test_map_overlap_by_hand():
    teacher = torch.tensor([[0, 0, 0, 1], [2, 2, 2, 2]])
    student = torch.tensor([[0, 0, 1, 1], [2, 2, 2, 2]])
    overlap = analysis.map_overlap(teacher, student, 3)
    # plane 1: class 0 has 2 of 3, class 1 has 1 of 2, class 2 does not occur; plane 2 is the same
    assert overlap["class_iou"] == pytest.approx(100 * ((2 / 3 + 1 / 2) / 2 + 1) / 2)
    assert overlap["pixel_iou"] == pytest.approx(100 * (3 / 5 + 1) / 2)
    foreign = analysis.map_overlap(teacher[1:], student[1:] - 2, 3)  # both classes count, with 0
    assert foreign == {"class_iou": 0, "pixel_iou": 0}
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
    assert same == {"class_iou": 100, "pixel_iou": 100}


def test_map_overlap_errors():
    maps = torch.zeros(2, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"shape \[planes, points\]"):
        analysis.map_overlap(maps, maps[:, :3], 2)
    with pytest.raises(ValueError, match=r"shape \[planes, points\]"):
        analysis.map_overlap(maps[0], maps[0], 2)
    with pytest.raises(ValueError, match="student_maps must hold classes from 0 to 1, got 2"):
        analysis.map_overlap(maps, maps + 2, 2)
    with pytest.raises(ValueError, match="at least one sample"):
        analysis.map_overlap(maps[:0], maps[:0], 2)


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


def test_calibration_errors():
    logits, labels = torch.rand(3, 4), torch.tensor([0, 1, 2])
    for wrong, message in (
        ((logits[:2], labels), "2 in logits and 3 in labels"),
        ((logits[:, 0], labels), r"need logits \[n, C\]"),
        ((logits / 0, labels), "logits must be finite"),
        ((logits, labels + 2), "labels must hold classes from 0 to 3, got 2 to 4"),
        ((logits, labels, 0), "bins >= 1"),
    ):
        with pytest.raises(ValueError, match=message):
            analysis.expected_calibration_error(*wrong)


# --- what every function that takes a model promises

IMAGES, TARGET = torch.rand(6, 1, 8, 8), torch.arange(6)


@pytest.mark.parametrize(
    "function",
    [
        lambda model: analysis.predictions(model, IMAGES),
        lambda model: analysis.grad_cam(model, IMAGES, TARGET, 0),
        lambda model: analysis.fgsm(model, IMAGES, TARGET, epsilon=0.1),
        lambda model: analysis.fooling_rate(model, IMAGES, IMAGES.flip(0)),
        lambda model: analysis.successful_attacks(model, IMAGES, TARGET, epsilon=0.1),
        lambda model: analysis.boundary_overlap(model, model, IMAGES, planes=2, resolution=3),
    ],
)
def test_the_model_comes_back_as_it_was(function):
    model = ConvNet((4, 4), dropout=0.5)
    model.blocks[0][1].eval()  # a frozen batch norm
    modes, state = [m.training for m in model.modules()], copy.deepcopy(model.state_dict())
    first, second = function(model), function(model)
    assert str(first) == str(second)  # dropout is off
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(a, b) for a, b in zip(state.values(), model.state_dict().values()))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    assert not IMAGES.requires_grad
