"""Do the borders between classes run alike? (lecture figure 7 and table 1)"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from kdlib import inputs
from kdlib.analysis.agreement import predictions


class Plane(NamedTuple):
    """A grid on a plane through three images."""

    images: Tensor  # [resolution^2, ...], row by row: one row per y, one column per x
    points: Tensor  # [3, 2], where the three given images lie, (x, y)
    x: Tensor  # [resolution], coordinates of the columns
    y: Tensor  # [resolution], and of the rows


def plane_points(images: Tensor, resolution: int = 20, margin: float = 0.2) -> Plane:
    """A grid on the plane through three images [3, ...], in coordinates of Euclidean length.

    The first image is the origin, the second lies on the x axis. The grid covers the three points
    and a margin on each side. Pixels may leave [0, 1] there: a plane does not end (Somepalli et al.
    2022).

    Args:
        images: floating-point and finite; exactly three that do not lie on a line.
        resolution: points a side, at least 2.
        margin: share of the extent of the three points, 0 to 100.

    Raises:
        ValueError: not three images, three on a line, options out of range.
        TypeError: arguments of another type.
    """
    if len(inputs.tensor("images", images)) != 3:
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
    """Grids on `planes` >= 1 planes through three random images each, of images [n, ...], n >= 3.

    The same seed gives the same planes, so one teacher's predictions serve all its students.
    Returns [planes, resolution^2, ...]. Options and errors as in `plane_points`.
    """
    if len(inputs.tensor("images", images)) < 3:
        raise ValueError(f"images must hold at least three points of a plane, got {len(images)}")
    planes = inputs.whole("planes", planes)
    generator = torch.Generator().manual_seed(inputs.seed("seed", seed))
    corners = [torch.randperm(len(images), generator=generator)[:3] for _ in range(planes)]
    return _planes(images[torch.stack(corners)], resolution, margin)[0]


def _planes(
    corners: Tensor, resolution: int, margin: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`plane_points` of [planes, 3, ...] at once."""
    resolution = inputs.whole("resolution", resolution, low=2)
    margin = inputs.number("margin", margin, low=0, high=100)
    origin, second, third = corners.flatten(2).unbind(1)  # each [planes, d]
    u, v = second - origin, third - origin
    length = u.norm(dim=1, keepdim=True)
    u = u / length
    along = (u * v).sum(1, keepdim=True)
    v = v - along * u
    height = v.norm(dim=1, keepdim=True)
    # NaN (two equal points) fails the comparison as well.
    if not (height > 1e-5 * (length + along.abs())).all():
        raise ValueError("images must span a plane, got three on a line (or two that are equal)")
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
    """Overlap of two partitions into classes, percent, mean over the planes.

    Three numbers go by the name of intersection over union. Somepalli et al. (2022), whose score
    the study takes, divide the points of equal class by all points (`calculate_iou_simple` in
    their code): "equal_points". As sets of (point, class) pairs, two maps of n points with m equal
    ones have the IoU m / (2n - m), which is lower: "pixel_iou".

    Args:
        teacher_maps, student_maps: predicted classes [planes, points], 0 to num_classes - 1.

    Returns:
        "equal_points", "pixel_iou" as above. "class_iou": IoU of each class that occurs in either
        map, averaged over these classes, so that a small region weighs as much as a large one.

    Raises:
        ValueError, TypeError: maps of unlike shape, empty or of another type, classes out of range.
    """
    num_classes = inputs.whole("num_classes", num_classes)
    inputs.classes("teacher_maps", teacher_maps, num_classes, ndim=2)
    inputs.classes("student_maps", student_maps, num_classes, ndim=2)
    if teacher_maps.shape != student_maps.shape:
        raise ValueError(
            f"teacher_maps and student_maps must both be [planes, points] of one shape, got "
            f"{list(teacher_maps.shape)} and {list(student_maps.shape)}"
        )
    planes, points = teacher_maps.shape
    plane = torch.arange(planes, device=teacher_maps.device)[:, None]
    joint = (plane * num_classes + teacher_maps) * num_classes + student_maps
    counts = torch.bincount(joint.flatten(), minlength=planes * num_classes**2)
    counts = inputs.float64(counts).view(planes, num_classes, -1)  # [plane, teacher, student]
    shared = counts.diagonal(dim1=1, dim2=2)
    union = counts.sum(1) + counts.sum(2) - shared
    per_class = (shared / union).nanmean(1)  # 0 / 0, NaN: a class that neither map has
    agreed = shared.sum(1)
    per_pixel = agreed / (2 * points - agreed)
    return {
        "equal_points": 100 * (agreed / points).mean().item(),
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

    For several students of one teacher, call `random_planes`, `predictions` and `map_overlap`
    yourself and reuse the teacher's maps.

    Args:
        images: [n, ...], n >= 3, floating-point and finite.
        planes, resolution, seed: as in `random_planes`.
        num_classes: how many classes both models know.

    Returns:
        {"equal_points", "class_iou", "pixel_iou"} in percent, as in `map_overlap`.

    Raises:
        ValueError, TypeError: as in `random_planes`, `predictions` and `map_overlap`.
    """
    grids = random_planes(images, planes, resolution=resolution, seed=seed).flatten(0, 1)
    teacher_maps, student_maps = (
        predictions(model, grids).view(planes, -1) for model in (teacher, student)
    )
    return map_overlap(teacher_maps, student_maps, num_classes)
