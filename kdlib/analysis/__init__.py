"""What a student took over from its teacher: where it looks, what fools it, where its borders run.

The measurements of Ojha et al. 2023, "What Knowledge Gets Distilled in Knowledge Distillation?",
and the feature similarity (CKA) and calibration of other chapters. Shares are percent. Every
function takes a model in any mode, evaluates it, and gives the mode back; no gradient stays behind.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlib.models import Tap, evaluating, resolve_stage

BATCH = 250  # images per pass: larger ones leave the processor's cache and are no faster


def predictions(model: nn.Module, images: Tensor) -> Tensor:
    """Predicted classes, int64 [n], of images [n, ...]."""
    _check_lengths(images=images)
    with evaluating(model), torch.no_grad():
        return torch.cat([model(batch).argmax(1) for batch in images.split(BATCH)])


# --- localisation (lecture figure 2)


def grad_cam(model: nn.Module, images: Tensor, target: Tensor, stage: str | int) -> Tensor:
    """Grad-CAM: where the evidence for class `target` lies in the feature map of a stage.

        CAM = ReLU(sum_k w_k A_k),   w_k = mean over the positions of d score_target / d A_k

    with A [c, h, w] the output of the stage and the score before the softmax (Selvaraju et al.
    2017, equations 1 and 2). images [n, ...], target int64 [n]; returns maps [n, h, w] of the
    stage's resolution, not scaled. ValueError for a stage whose output is not [n, c, h, w].
    """
    _check_lengths(images=images, target=target)
    stage, maps = resolve_stage(model, stage), []
    with evaluating(model), torch.enable_grad(), Tap(model, [stage]) as tap:
        for batch, label in zip(images.split(BATCH), target.split(BATCH)):
            # The images ask for a gradient, so that a frozen model builds its graph, too.
            logits, features = tap(batch.detach().requires_grad_())
            feature = features[stage]
            if feature.ndim != 4:
                raise ValueError(
                    f"stage {stage!r} has no spatial axes: its output has shape "
                    f"{list(feature.shape)}, Grad-CAM needs [n, channels, height, width]"
                )
            _check_classes("target", label, logits.shape[1])
            score = logits.gather(1, label[:, None]).sum()  # the images do not mix
            (gradient,) = torch.autograd.grad(score, feature)
            weights = gradient.mean((2, 3), keepdim=True)
            maps.append((weights * feature).sum(1).relu().detach())
    return torch.cat(maps)


def cam_similarity(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of two sets of maps [n, h, w], image by image: [n] in [0, 1]; an empty map has 0."""
    _check_lengths(a=a, b=b)
    if a.shape != b.shape:
        raise ValueError(
            f"a and b must have one shape, got {list(a.shape)} and {list(b.shape)}; "
            f"use stages of equal resolution, or resize one set with F.interpolate"
        )
    # In float64: maps may be as small as the gradients that they are made of.
    a, b = (F.normalize(maps.flatten(1).double(), dim=1, eps=1e-30) for maps in (a, b))
    return (a * b).sum(1)


def closer_share(teacher_cam: Tensor, distilled_cam: Tensor, independent_cam: Tensor) -> float:
    """Percent of images whose teacher map is more similar to the distilled student's map than to
    the independent student's; ties count half. 50 means that nothing was transferred."""
    distilled = cam_similarity(teacher_cam, distilled_cam)
    independent = cam_similarity(teacher_cam, independent_cam)
    closer = (distilled > independent).double() + 0.5 * (distilled == independent)
    return 100 * closer.mean().item()


# --- adversarial vulnerability (lecture figure 3)


def fgsm(
    model: nn.Module,
    images: Tensor,
    target: Tensor,
    *,
    epsilon: float,
    steps: int = 5,
    step_size: float | None = None,
) -> Tensor:
    """Iterative FGSM (Kurakin et al. 2017): climb the cross-entropy by the sign of its gradient.

        x <- clip(x + step_size * sign(d CE(model(x), target) / dx))

    into the box of +-epsilon around the image and into [0, 1]. step_size defaults to
    1.5 * epsilon / steps: enough to reach the border of the box and to turn back once. images
    [n, ...] in [0, 1], target int64 [n], the true labels; returns adversarial images.
    """
    _check_lengths(images=images, target=target)
    low, high = images.min().item(), images.max().item()
    if not (low >= 0 and high <= 1):
        raise ValueError(f"images must lie in [0, 1], got values from {low:g} to {high:g}")
    if not epsilon >= 0 or steps < 1:
        raise ValueError(f"need epsilon >= 0 and steps >= 1, got {epsilon} and {steps}")
    step_size = 1.5 * epsilon / steps if step_size is None else step_size
    result = []
    with evaluating(model), torch.enable_grad():
        for batch, label in zip(images.detach().split(BATCH), target.split(BATCH)):
            low, high = (batch - epsilon).clamp(min=0), (batch + epsilon).clamp(max=1)
            moved = batch.clone()
            for _ in range(steps):
                moved.requires_grad_()
                logits = model(moved)
                _check_classes("target", label, logits.shape[1])
                loss = F.cross_entropy(logits, label, reduction="sum")
                (gradient,) = torch.autograd.grad(loss, moved)
                moved = (moved.detach() + step_size * gradient.sign()).clamp(low, high)
            result.append(moved)
    return torch.cat(result)


def fooling_rate(model: nn.Module, clean: Tensor, adversarial: Tensor) -> float:
    """Percent of images whose prediction changes from the clean to the adversarial version,
    whether the clean prediction was right or not (as in the study)."""
    _check_lengths(clean=clean, adversarial=adversarial)
    return 100 - agreement(predictions(model, clean), predictions(model, adversarial))


class Attack(NamedTuple):
    clean: Tensor  # the images that were turned, before ...
    adversarial: Tensor  # ... and after
    rate: float  # percent of all images that were turned


def successful_attacks(model: nn.Module, images: Tensor, target: Tensor, **options) -> Attack:
    """The attacks that fool `model`, to be tried on its students; options as in `fgsm`."""
    moved = fgsm(model, images, target, **options)
    fooled = predictions(model, images) != predictions(model, moved)
    return Attack(images[fooled], moved[fooled], 100 * fooled.double().mean().item())


# --- agreement and consensus (lecture figures 4 to 6)


def agreement(predictions_a: Tensor, predictions_b: Tensor) -> float:
    """Percent of equal predictions; classes [n] of two models, or of two versions of the images."""
    _check_lengths(predictions_a=predictions_a, predictions_b=predictions_b)
    if predictions_a.ndim != 1 or predictions_b.ndim != 1:
        raise ValueError(
            "predictions_a and predictions_b must be classes [n]; take logits.argmax(1)"
        )
    return 100 * (predictions_a == predictions_b).double().mean().item()


def prediction_entropy(classes: Tensor, num_classes: int) -> float:
    """Entropy of the frequencies of predicted classes, divided by log(num_classes): 1 when all
    classes are used alike, 0 when every answer is the same class."""
    _check_lengths(classes=classes)
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, got {num_classes}")
    _check_classes("classes", classes, num_classes)
    share = torch.bincount(classes, minlength=num_classes).double() / len(classes)
    return torch.special.entr(share).sum().item() / math.log(num_classes)


def consensus(
    student_predictions: Tensor,
    teacher_predictions: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    threshold: float = 0.5,
) -> dict[str, float | bool]:
    """How often student and teacher predict the same class, and what has to be read beside it.

    Keys: "consensus", "student accuracy", "teacher accuracy" in percent; "student entropy",
    "teacher entropy" of the predictions in [0, 1]; "collapsed": one of them is below `threshold`.
    Two networks that answer one class to everything agree perfectly and know nothing: at 0.5 a
    network uses no more than the square root of num_classes, in effect.
    """
    student = prediction_entropy(student_predictions, num_classes)
    teacher = prediction_entropy(teacher_predictions, num_classes)
    return {
        "consensus": agreement(student_predictions, teacher_predictions),
        "student accuracy": agreement(student_predictions, labels),
        "teacher accuracy": agreement(teacher_predictions, labels),
        "student entropy": student,
        "teacher entropy": teacher,
        "collapsed": min(student, teacher) < threshold,
    }


# --- similarity of features (lecture, equations 3 and 4)


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Linear centred kernel alignment of two sets of features of the same n samples, in [0, 1].

        CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)),   HSIC(K, L) = tr(K H L H) / (n - 1)^2

    with K = X X^T, L = Y Y^T and the centring matrix H (lecture, equations 3 and 4). x [n, ...] and
    y [n, ...] are flattened and may differ in width. The estimate is biased upwards when the
    features are wide and n is small; `minibatch_cka` is not.
    """
    _check_lengths(x=x, y=y)
    x, y = _centred("x", x), _centred("y", y)
    if max(x.shape[1], y.shape[1]) < len(x):  # tr(K H L H) = |X^T H Y|^2: no n x n matrix
        xy, xx, yy = ((a.T @ b).square().sum() for a, b in ((x, y), (x, x), (y, y)))
    else:
        k, l = x @ x.T, y @ y.T
        xy, xx, yy = (k * l).sum(), k.square().sum(), l.square().sum()
    return (xy / (xx * yy).sqrt()).item()


def minibatch_cka(batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """CKA over minibatches, each a pair of features (x, y) of the same at least four samples.

    The unbiased HSIC of every batch is averaged before the ratio is taken, so the result does not
    depend on the batch size, apart from noise (Nguyen et al. 2021); for unrelated features it is
    near 0 and may be negative.
    """
    return cka_heatmap(([x], [y]) for x, y in batches).item()


def cka_heatmap(batches: Iterable[tuple[Sequence[Tensor], Sequence[Tensor]]]) -> Tensor:
    """`minibatch_cka` of every stage of one model with every stage of another: [stages, stages].

    batches: pairs (features of the first model, features of the second), each a list of tensors
    [n, ...], one per stage, of the same samples.
    """
    xy = xx = yy = None
    for xs, ys in batches:
        lengths = {len(features) for features in (*xs, *ys)}
        if len(lengths) != 1 or min(lengths) < 4:
            raise ValueError(
                f"every batch needs features of the same samples, at least 4; got {sorted(lengths)}"
            )
        ks, ls = _grams("x", xs), _grams("y", ys)
        terms = _hsic(ks[:, None], ls[None]), _hsic(ks, ks), _hsic(ls, ls)
        xy, xx, yy = terms if xy is None else (xy + terms[0], xx + terms[1], yy + terms[2])
    if xy is None:
        raise ValueError("batches is empty; CKA needs at least one pair of features")
    return xy / (xx[:, None] * yy[None]).sqrt()


def _centred(name: str, features: Tensor) -> Tensor:
    """Features as float64 [n, d] of mean 0, an error where they carry nothing."""
    centred = features.detach().flatten(1).double()
    centred = centred - centred.mean(0)
    if not centred.square().sum() > 0 or not centred.isfinite().all():
        raise ValueError(f"{name} is constant or not finite: CKA is not defined")
    return centred


def _grams(name: str, stages: Sequence[Tensor]) -> Tensor:
    """Gram matrices [stages, n, n] with an empty diagonal, as the unbiased HSIC wants them."""
    grams = torch.stack([x @ x.T for x in (_centred(name, stage) for stage in stages)])
    grams.diagonal(dim1=1, dim2=2).zero_()
    return grams


def _hsic(k: Tensor, l: Tensor) -> Tensor:
    """Unbiased HSIC of Gram matrices [..., n, n] with an empty diagonal (Song et al. 2012)."""
    n = k.shape[-1]
    both = (k * l).sum((-2, -1))
    totals = k.sum((-2, -1)) * l.sum((-2, -1)) / ((n - 1) * (n - 2))
    rows = 2 * (k.sum(-1) * l.sum(-1)).sum(-1) / (n - 2)
    return (both + totals - rows) / (n * (n - 3))


# --- decision boundaries (lecture figure 7 and table 1)


class Plane(NamedTuple):
    images: Tensor  # [resolution^2, ...], row by row: one row per y, one column per x
    points: Tensor  # [3, 2], where the three given images lie, (x, y)
    x: Tensor  # [resolution], coordinates of the columns
    y: Tensor  # [resolution], and of the rows


def plane_points(images: Tensor, resolution: int = 20, margin: float = 0.2) -> Plane:
    """A grid on the plane through three images [3, ...], in coordinates of Euclidean length.

    The first image is the origin, the second lies on the x axis. The grid covers the three points
    and `margin` times their extent on each side. Pixels may leave [0, 1] there: a plane does not
    end (Somepalli et al. 2022). ValueError unless there are exactly three images not on a line.
    """
    if len(images) != 3:
        raise ValueError(f"images must hold exactly three points of the plane, got {len(images)}")
    grids, points, x, y = _planes(images[None], resolution, margin)
    return Plane(grids[0], points[0], x[0], y[0])


def random_planes(
    images: Tensor,
    planes: int = 50,
    *,
    resolution: int = 20,
    margin: float = 0.2,
    seed: int = 0,
) -> Tensor:
    """Grids on planes through three random images each: [planes, resolution^2, ...].

    The same seed gives the same planes, so one teacher's predictions serve all its students.
    """
    if len(images) < 3:
        raise ValueError(f"images must hold at least three points of a plane, got {len(images)}")
    if planes < 1:
        raise ValueError(f"planes must be at least 1, got {planes}")
    generator = torch.Generator().manual_seed(seed)
    corners = [torch.randperm(len(images), generator=generator)[:3] for _ in range(planes)]
    return _planes(images[torch.stack(corners)], resolution, margin)[0]


def _planes(corners: Tensor, resolution: int, margin: float) -> tuple[Tensor, ...]:
    """`plane_points` of [planes, 3, ...] at once."""
    if resolution < 2 or not margin >= 0:
        raise ValueError(f"need resolution >= 2 and margin >= 0, got {resolution} and {margin}")
    origin, second, third = corners.flatten(2).unbind(1)  # each [planes, d]
    u, v = second - origin, third - origin
    length = u.norm(dim=1, keepdim=True)
    u = u / length
    along = (u * v).sum(1, keepdim=True)
    v = v - along * u
    height = v.norm(dim=1, keepdim=True)
    # NaN (two equal points) fails the comparison as well.
    if not (height > 1e-5 * (length + along.abs())).all():
        raise ValueError("the three images lie on a line (or two are equal) and span no plane")
    v = v / height
    zero = torch.zeros_like(length)
    points = torch.cat([zero, zero, length, zero, along, height], 1).view(-1, 3, 2)
    low, high = points.amin(1), points.amax(1)  # [planes, 2]
    border = margin * (high - low)
    steps = torch.linspace(0, 1, resolution, dtype=corners.dtype, device=corners.device)
    axes = (low - border)[..., None] + (high - low + 2 * border)[..., None] * steps
    x, y = axes.unbind(1)  # [planes, resolution]
    rows = origin[:, None] + y[..., None] * v[:, None]  # [planes, resolution, d]
    columns = x[..., None] * u[:, None]
    grids = rows[:, :, None] + columns[:, None]
    return grids.reshape(len(corners), resolution**2, *corners.shape[2:]), points, x, y


def map_overlap(teacher_maps: Tensor, student_maps: Tensor, num_classes: int) -> dict[str, float]:
    """Intersection over union of two partitions into classes, percent, mean over the planes.

    Maps: predicted classes [planes, points]. "class_iou": IoU of each class that occurs in either
    map, averaged over these classes, so that a small region weighs as much as a large one.
    "pixel_iou": all regions as one set of (point, class) pairs; it is higher.
    """
    _check_lengths(teacher_maps=teacher_maps, student_maps=student_maps)
    if teacher_maps.ndim != 2 or teacher_maps.shape != student_maps.shape:
        raise ValueError(
            f"teacher_maps and student_maps must both have shape [planes, points], got "
            f"{list(teacher_maps.shape)} and {list(student_maps.shape)}"
        )
    _check_classes("teacher_maps", teacher_maps, num_classes)
    _check_classes("student_maps", student_maps, num_classes)
    planes, points = teacher_maps.shape
    plane = torch.arange(planes, device=teacher_maps.device)[:, None]
    joint = (plane * num_classes + teacher_maps) * num_classes + student_maps
    counts = torch.bincount(joint.flatten(), minlength=planes * num_classes**2)
    counts = counts.view(planes, num_classes, num_classes).double()  # [plane, teacher, student]
    shared = counts.diagonal(dim1=1, dim2=2)
    union = counts.sum(1) + counts.sum(2) - shared
    per_class = (shared / union).nanmean(1)  # 0 / 0, NaN: a class that neither map has
    agreed = shared.sum(1)
    per_pixel = agreed / (2 * points - agreed)
    return {
        "class_iou": 100 * per_class.mean().item(),
        "pixel_iou": 100 * per_pixel.mean().item(),
    }


def boundary_overlap(
    teacher: nn.Module,
    student: nn.Module,
    images: Tensor,
    *,
    planes: int = 50,
    resolution: int = 20,
    seed: int = 0,
    num_classes: int = 10,
) -> dict[str, float]:
    """How much the decision regions of two models overlap on random planes through three images.

    Returns {"class_iou", "pixel_iou"} as in `map_overlap`. For several students of one teacher,
    call `random_planes`, `predictions` and `map_overlap` yourself and reuse the teacher's maps.
    """
    grids = random_planes(images, planes, resolution=resolution, seed=seed).flatten(0, 1)
    maps = [predictions(model, grids).view(planes, -1) for model in (teacher, student)]
    return map_overlap(*maps, num_classes)


# --- calibration


def expected_calibration_error(logits: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Expected calibration error in [0, 1]: |accuracy - confidence| over bins of equal width.

        ECE = sum_b n_b / n * |accuracy_b - mean confidence_b|

    with the highest softmax probability as confidence (Guo et al. 2017, equation 3). logits [n, C],
    labels int64 [n].
    """
    _check_lengths(logits=logits, labels=labels)
    if logits.ndim != 2 or bins < 1:
        raise ValueError(f"need logits [n, C] and bins >= 1, got {list(logits.shape)} and {bins}")
    if not logits.isfinite().all():
        raise ValueError("logits must be finite, got NaN or infinity")
    _check_classes("labels", labels, logits.shape[1])
    confidence, predicted = logits.detach().double().softmax(1).max(1)
    which = (confidence * bins).ceil().long().clamp(1, bins) - 1  # bins (b / bins, (b + 1) / bins]
    gap = (predicted == labels).double() - confidence
    # n_b / n * |mean gap of bin b| = |sum of the gaps in bin b| / n
    return (torch.bincount(which, gap, minlength=bins).abs().sum() / len(labels)).item()


# --- bad input


def _check_lengths(**tensors: Tensor) -> None:
    """All tensors hold the same number of samples, at least one."""
    lengths = {name: len(tensor) for name, tensor in tensors.items()}
    if min(lengths.values()) == 0:
        raise ValueError(f"{' and '.join(lengths)} must hold at least one sample, got none")
    if len(set(lengths.values())) > 1:
        listed = " and ".join(f"{count} in {name}" for name, count in lengths.items())
        raise ValueError(f"mismatched lengths: {listed}")


def _check_classes(name: str, classes: Tensor, num_classes: int) -> None:
    """Integer class indices from 0 to num_classes - 1."""
    if classes.is_floating_point() or classes.is_complex():
        raise TypeError(f"{name} must hold integer classes, got {classes.dtype}")
    low, high = classes.min().item(), classes.max().item()
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"{name} must hold classes from 0 to {num_classes - 1}, got {low} to {high}"
        )
