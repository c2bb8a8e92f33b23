"""A training as a film of decision boundaries, under a slider."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kdlib import inputs, show
from kdlib.data import Split
from kdlib.stages import predict
from kdlib.training import fit
from kdlib.widgets.moving import Moving, floats, grey

ALT = (
    "The plane at four moments of training, one row a student: shaded by the class that the "
    "student answers, its boundary a solid line, the teacher's a dashed one."
)
# Options with which steps are not taken, or are taken without the hooks of the network.
UNSEEN = {"compile", "graphs", "checkpoint", "stop_after"}


class Film(NamedTuple):
    """What a network answered on a plane while it learnt."""

    steps: list[int]  # of training, at which each frame was taken; the last one is the end
    frames: Tensor  # float32 [frames, n], the probability of class 1


def film(
    student: nn.Module, train: Split, plane: Tensor, *, frames: int = 40, **options: Any
) -> Film:
    """Train a student as `training.fit` does, to the same bits, and keep its answers on the way.

    Frames lie closer at the start, where a boundary moves most: frame i at the share (i/last)² of
    the steps.

    Args:
        student: a network [n, ...] -> logits [n, 2]; it is trained.
        train: what it learns from.
        plane: points [n, ...] on which it is asked.
        frames: how many to keep, the state before and after the training among them; at least 2.
        options: of `training.fit`, but for those in `UNSEEN`.

    Raises:
        TypeError, ValueError: an argument of the wrong kind; the student has not two classes.
    """
    frames = inputs.whole("frames", frames, low=2)
    for name in sorted(UNSEEN & options.keys()):
        raise ValueError(f"{name} must be left out: a film needs every step of a plain training")
    epochs = inputs.whole("epochs", options.get("epochs", 20))
    options = {"batch_size": 64, **options, "epochs": epochs}
    batch = min(inputs.whole("batch_size", options["batch_size"]), len(train.labels))
    total = epochs * (len(train.labels) // batch)
    wanted = sorted({round(total * (i / (frames - 1)) ** 2) for i in range(frames)})
    kept: list[Tensor] = []
    step = 0

    def ask() -> None:
        logits = predict(student, plane)
        if logits.shape[1] != 2:
            raise ValueError(f"student must have two classes for a boundary, got {logits.shape[1]}")
        kept.append(logits.softmax(1)[:, 1].float().cpu())

    def look(network: nn.Module, _: Any) -> None:
        nonlocal step
        if network.training:  # not when it is asked
            if step in wanted:
                ask()
            step += 1

    handle = student.register_forward_pre_hook(look)
    try:
        fit(student, train, progress=False, **options)
    finally:
        handle.remove()
    ask()
    return Film(wanted, torch.stack(kept))


def scrub(films: Mapping[str, Film], teacher: nn.Module, plane: Tensor, train: Split) -> Moving:
    """A slider over training: the boundary of each student, and the teacher's, frame by frame.

    Args:
        films: {name: its film}, all with the same steps.
        teacher: a network [n, ...] -> logits [n, 2].
        plane: the points of the films, [side², 2, ...], a square grid: the second coordinate runs
            fastest, as `torch.cartesian_prod(edge, edge)` has it.
        train: the points that the students saw, images [n, 2, ...] and labels 0 or 1.

    Raises:
        TypeError, ValueError: the plane is no such grid; films that do not fit it or each other.
    """
    where = inputs.tensor("plane", plane, "[n, 2, ...]").detach().cpu().flatten(1)
    side = round(len(where) ** 0.5)
    edge = where[:side, -1]
    if where.shape[1] != 2 or side < 2 or not torch.equal(where, torch.cartesian_prod(edge, edge)):
        raise ValueError(
            f"plane must be the points of a square grid, got {list(plane.shape)}: make it with "
            "torch.cartesian_prod(edge, edge)"
        )
    if not isinstance(films, Mapping) or not films:
        raise TypeError(f"films must be a dictionary {{name: film}}, got {inputs.describe(films)}")
    for name, one in films.items():
        inputs.instance(f"films[{name!r}]", one, Film, "make it with widgets.film")
    steps = next(iter(films.values())).steps
    shapes = {name: (one.steps, tuple(one.frames.shape)) for name, one in films.items()}
    if any(found != (steps, (len(steps), side**2)) for found in shapes.values()):
        raise ValueError(
            f"films must hold the same steps and {side**2} points of the plane each: make all with "
            "the same options of widgets.film"
        )
    points = inputs.tensor("train.images", train.images, "[n, 2, ...]").detach().cpu().flatten(1)
    labels = inputs.classes("train.labels", train.labels, 2, ndim=1).tolist()
    border = predict(teacher, plane).softmax(1)[:, 1].cpu()

    line = edge.numpy()
    moments = [round(share * (len(steps) - 1)) for share in (0, 0.3, 0.6, 1)]
    still, axes = show.figure(len(films), 4, height=2.2, sharex=True, sharey=True, squeeze=False)
    for row, (name, one) in zip(axes, films.items()):
        for axis, moment in zip(row, moments):
            maps = {"teacher": (border, "--"), name: (one.frames[moment], "-")}
            for who, (values, style) in maps.items():
                found = line, line, values.view(side, side).T.numpy()
                if who == name:
                    axis.contourf(*found, [0, 0.5, 1], colors=["white", show.SKY], alpha=0.4)
                colour = show.look(who)["color"]
                axis.contour(*found, [0.5], linestyles=style, colors=[colour])
            dots = ["white" if one else "black" for one in labels]
            axis.scatter(
                *points.T.numpy(), s=8, c=dots, edgecolors="black", linewidths=0.5, zorder=3
            )
            axis.set(title=f"{name}, step {steps[moment]}", aspect="equal", xticks=[], yticks=[])
            axis.title.set_fontsize(9)
    data = {
        "side": side,
        "edge": [float(edge[0]), float(edge[-1])],
        "steps": steps,
        "teacher": grey(border),
        "students": [
            {"name": name, "frames": grey(one.frames), "colour": show.look(name)["color"]}
            for name, one in films.items()
        ],
        "points": floats(points),
        "labels": labels,
    }
    return Moving("scrubbing", still, ALT, data)
