"""What a distillation method is: a function that builds a loss with its state, known by a name.

A distiller turns one batch of outputs into named, weighted loss terms. It knows neither the
training loop nor the cross-entropy with the labels, which belongs to the image objective. A new
method is one function below `@register("name")`; its keyword-only arguments are its options.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from kdlib import inputs
from kdlib.stages import resolve_stage

Stages = str | int | Sequence[str | int] | None
Shape = tuple[int, ...]
Terms = dict[str, Tensor]


class Outputs(NamedTuple):
    """What a network gave for a batch of B images."""

    logits: Tensor  # [B, C]
    features: dict[str, Tensor]  # by stage, [B, ...]


class Batch(NamedTuple):
    """All that a distiller sees of one step.

    Under `mixup`, `target` and `index` are those of the image that weighs more in the blend.
    """

    student: Outputs
    teacher: Outputs
    target: Tensor  # int64 [B]
    index: Tensor  # type: ignore[assignment]  # int64 [B], positions in the training set
    epoch: int  # from 1


class Setup(NamedTuple):
    """What a method has to know before the first batch; shapes are per sample, by stage."""

    student: dict[str, Shape]
    teacher: dict[str, Shape] | None  # None: there is no teacher
    labels: Tensor  # int64 [n], of the training set
    num_classes: int


class Pairs:
    """Stages of student and teacher that a method compares, one to one.

    Args:
        stage: name or index (-1 the embedding, -2 the last block), or several of them; None for
            all stages that are maps.
        teacher_stage: the teacher's; the same unless given.
        maps: only stages with positions will do, and tokens are handed out as maps.
        several: more than one stage is allowed.

    Raises:
        ValueError: an unknown stage, no stage, a vector where maps are needed, unequal counts.
    """

    def __init__(
        self,
        setup: Setup,
        stage: Stages,
        teacher_stage: Stages = None,
        *,
        maps: bool = False,
        several: bool = True,
    ):
        self.maps = maps
        teacher_stage = stage if teacher_stage is None else teacher_stage
        self.student = stages_of("student", setup.student, stage, maps=maps)
        self.teacher = stages_of("teacher", teacher_shapes(setup), teacher_stage, maps=maps)
        if len(self.student) != len(self.teacher):
            raise ValueError(
                f"stages are paired one to one, but the student has {len(self.student)} "
                f"({', '.join(self.student)}) and the teacher {len(self.teacher)} "
                f"({', '.join(self.teacher)}): choose equally many with stage and teacher_stage"
            )
        if not several and len(self.student) > 1:
            raise ValueError(f"stage must be one stage, got {', '.join(self.student)}")
        self.shapes = [
            (setup.student[s], teacher_shapes(setup)[t]) for s, t in zip(self.student, self.teacher)
        ]

    def __call__(self, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        """(student, detached teacher) features of each pair."""
        student = [batch.student.features[stage] for stage in self.student]
        teacher = [batch.teacher.features[stage].detach() for stage in self.teacher]
        if self.maps:
            student, teacher = list(map(as_map, student)), list(map(as_map, teacher))
        return list(zip(student, teacher))


def stages_of(
    side: str, shapes: dict[str, Shape], stage: Stages, *, maps: bool = False
) -> tuple[str, ...]:
    """Names of the stages that a method reads of one network, the "student" or the "teacher".

    Args:
        shapes: of one sample, by stage.
        stage: names or indices; None for all stages that are maps.
        maps: only stages with positions will do.

    Raises:
        ValueError: an unknown stage, no stage, a vector where maps are needed.
    """
    if not shapes:
        raise ValueError(
            f"{side} names no stages: set {side}.stages to names of its modules, and train "
            "the plain network, not a compiled one"
        )
    if stage is None:
        stage = [name for name, shape in shapes.items() if map_shape(shape)]
    chosen = [stage] if isinstance(stage, (str, int)) else stage
    try:
        names = tuple(resolve_stage(tuple(shapes), name) for name in chosen)
    except ValueError as error:
        raise ValueError(f"{side}: {error}") from None
    if not names or (maps and any(map_shape(shapes[name]) is None for name in names)):
        found = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(
            "stages must be maps (C, H, W) or tokens (N, D) of a square grid, but the "
            f"{side} has {found}"
        )
    return names


class Distiller(nn.Module):
    """weight * loss(batch), as a term with the method's name.

    Args:
        loss: a function of a `Batch`, or a module where the method has state (regressors, a
            memory bank); returns a scalar. None: the method adds no term.
        weight: of the term; 0 leaves it out.
        ce_weight: published weight of the cross-entropy beside it.
        pairs: the stages that the loss reads of both networks.
        stages: of the student, where the loss reads none of the teacher.
    """

    name = ""  # set by `create`

    def __init__(
        self,
        loss: Callable[[Batch], Tensor] | None,
        *,
        weight: float = 1.0,
        ce_weight: float | None = 1.0,
        pairs: Pairs | None = None,
        stages: tuple[str, ...] = (),
    ):
        super().__init__()
        self.loss, self.ce_weight = loss, ce_weight
        self.weight = inputs.number("weight", weight, low=0)
        self.student_stages = pairs.student if pairs else stages
        self.teacher_stages = pairs.teacher if pairs else ()

    def forward(self, batch: Batch) -> Terms:
        if self.loss is None or not self.weight:
            return {}
        return {self.name: self.weight * self.loss(batch)}


class Combination(Distiller):
    """Several methods at once: the sum of their terms, in any order."""

    def __init__(self, parts: Sequence[Distiller]):
        super().__init__(None, ce_weight=None)
        self.parts = nn.ModuleList(parts)
        self.student_stages = tuple(dict.fromkeys(s for part in parts for s in part.student_stages))
        self.teacher_stages = tuple(dict.fromkeys(s for part in parts for s in part.teacher_stages))

    def forward(self, batch: Batch) -> Terms:
        return {name: term for part in self.parts for name, term in part(batch).items()}


# The registry


Method = Callable[..., Distiller]  # shapes and options in, a distiller out

METHODS: dict[str, Method] = {}


def register(name: str, *, needs_teacher: bool = True) -> Callable[[Method], Method]:
    """Decorator that makes a function known as a method.

    A cell of a notebook that registers a method may be run again; a method of the kit cannot be
    replaced.

    Args:
        name: small letters, digits, "-" and "_".
        needs_teacher: False for a method that learns from the labels alone.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
        raise ValueError(f"name must be small letters, digits, - and _, got {name!r}")

    def add(function: Method) -> Method:
        known = METHODS.get(name)
        if known is not None and _of_the_kit(known) and known is not function:
            raise ValueError(f"name {name!r} is a method of the kit: choose another one")
        function.needs_teacher = needs_teacher  # type: ignore[attr-defined]
        METHODS[name] = function
        return function

    return add


def needs_teacher(method: str) -> bool:
    """Whether a method, or a part of a combination, learns from a teacher."""
    return any(getattr(METHODS[part], "needs_teacher", True) for part in parts_of(method))


def _of_the_kit(function: Method) -> bool:
    return function.__module__.partition(".")[0] == __name__.partition(".")[0]


def options_of(method: str) -> tuple[str, ...]:
    """Names of a method's options: the keyword-only arguments of its function."""
    parameters = inspect.signature(METHODS[method]).parameters.values()
    return tuple(one.name for one in parameters if one.kind is one.KEYWORD_ONLY)


def parts_of(method: str) -> list[str]:
    """The methods of "crd+kd" in alphabetical order, so that a sum does not depend on the order."""
    if not isinstance(method, str):
        raise TypeError(f"method must be a name such as 'kd', got {inputs.describe(method)}")
    parts = method.split("+")
    for part in parts:
        if part not in METHODS:
            raise ValueError(f"method {part!r} is unknown: use one of {', '.join(sorted(METHODS))}")
    if len(set(parts)) < len(parts):
        raise ValueError(f"method {method!r} names a part twice: combine different methods")
    return sorted(parts)


def create(method: str, setup: Setup, **options) -> Distiller:
    """The distiller `method`; "kd+crd" combines, with options by part: crd=dict(weight=0.1).

    Raises:
        ValueError: an unknown method, or a value that its function refuses.
        TypeError: an unknown option; the message lists the known ones.
    """
    parts = parts_of(method)
    if len(parts) == 1:
        return _build(method, setup, options)
    strange = [k for k, v in options.items() if k not in parts or not isinstance(v, dict)]
    if strange:
        example = ", ".join(f"{part}=dict(...)" for part in parts)
        raise TypeError(f"options of {method!r} go by part: {example}; got {', '.join(strange)}")
    return Combination([_build(part, setup, options.get(part, {})) for part in parts])


def _build(method: str, setup: Setup, options: dict) -> Distiller:
    known = options_of(method)
    if needs_teacher(method) and setup.teacher is None:
        raise ValueError(f"method {method!r}: {NO_TEACHER}")
    for option in options:
        if option not in known:
            listed = f"its options are {', '.join(known)}" if known else "it has none"
            raise TypeError(f"method {method!r} has no option {option!r}: {listed}")
    try:
        distiller = METHODS[method](setup, **options)
    except (ValueError, TypeError) as error:
        raise type(error)(f"method {method!r}: {error}") from error
    distiller.name = method
    return distiller


NO_TEACHER = "teacher is missing: give one, or use method 'ce'"


def teacher_shapes(setup: Setup) -> dict[str, Shape]:
    """Shapes of the teacher's stages; ValueError if there is no teacher."""
    if setup.teacher is None:
        raise ValueError(NO_TEACHER)
    return setup.teacher


# Shapes of features


def map_shape(shape: Shape) -> Shape | None:
    """(C, H, W) of a stage with more than one position, per sample; None of a vector.

    The tokens (N, D) of a transformer or mixer count as a map where N is a square number.
    """
    side = round(shape[0] ** 0.5)
    if len(shape) == 2 and side**2 == shape[0]:
        shape = (shape[1], side, side)
    return shape if len(shape) == 3 and shape[1] * shape[2] > 1 else None


def as_map(x: Tensor) -> Tensor:
    """Maps [B, C, H, W] as they are, tokens [B, N, D] as maps [B, D, √N, √N]."""
    return x if x.ndim == 4 else x.transpose(1, 2).unflatten(2, (round(x.shape[1] ** 0.5), -1))


def as_vector(x: Tensor) -> Tensor:
    """Maps and tokens averaged over positions, to [B, D]; vectors as they are."""
    return x.mean((2, 3)) if x.ndim == 4 else x.mean(1) if x.ndim == 3 else x


def vector_size(shape: Shape) -> int:
    """D of `as_vector`, from the shape of one sample."""
    return shape[0] if len(shape) == 3 else shape[-1]
