"""Distillation methods: a loss of `losses` with its state (regressors, memory bank), by name.

A distiller turns one batch of outputs into named loss terms and knows nothing of the training loop.
`METHODS` is the one registry: a class below `@register("name")` is all that a new method needs, and
its keyword-only arguments are the options that `create` accepts.

Default weights are the published ones (CIFAR-100 on networks of three to five stages). On small
maps some fail: measured on 14 x 28 images with a ConvNet 8-16-32, attention transfer with 1000 lost
61 points of accuracy and NST with 50 lost 8. Docstrings name weights that worked there; choose on
validation.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlib import losses
from kdlib.bank import Bank
from kdlib.models import resolve_stage

Stages = str | int | Sequence[str | int] | None
Shape = tuple[int, ...]


class Outputs(NamedTuple):
    """What a network gave for a batch of B images."""

    logits: Tensor  # [B, C]
    features: dict[str, Tensor]  # by stage, [B, ...]


class Batch(NamedTuple):
    """All that a distiller sees of one step."""

    student: Outputs
    teacher: Outputs | None
    target: Tensor | None  # int64 [B]
    soft_target: Tensor | None  # [B, C], replaces target in the cross-entropy (mixup, smoothing)
    index: Tensor  # int64 [B], positions in the training set
    epoch: int  # from 1


class Probe(NamedTuple):
    """What a distiller has to know before the first batch; shapes are per sample, by stage."""

    student: dict[str, Shape]
    teacher: dict[str, Shape] | None
    labels: Tensor | None  # int64 [num_samples], of the training set
    num_classes: int
    num_samples: int


class Distiller(nn.Module):
    """ce_weight * cross-entropy + weight * self.loss(batch); a weight of 0 leaves the term out.

    A subclass defines `loss` and sets `student_stages` and `teacher_stages` to what it reads.
    """

    name = ""  # set by `register`
    student_stages: tuple[str, ...] = ()
    teacher_stages: tuple[str, ...] = ()
    needs_teacher = True

    def __init__(self, probe: Probe, *, weight: float = 1.0, ce_weight: float = 1.0):
        super().__init__()
        for option, value in (("weight", weight), ("ce_weight", ce_weight)):
            if not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"{option} is {value}; it must be 0 or a positive number")
        self.weight, self.ce_weight = weight, ce_weight

    @classmethod
    def options(cls) -> list[str]:
        """Names that `create` accepts: the keyword-only arguments."""
        return inspect.getfullargspec(cls.__init__).kwonlyargs

    def loss(self, batch: Batch) -> Tensor:
        """The method's own scalar term, without its weight."""
        raise NotImplementedError

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """The weighted terms beside the cross-entropy."""
        return {self.name: self.weight * self.loss(batch)} if self.weight else {}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Named, weighted scalar terms; the loss is their sum."""
        if not self.ce_weight:
            return self.terms(batch)
        target = batch.target if batch.soft_target is None else batch.soft_target
        if target is None:
            raise ValueError("target is missing; give labels, or leave the cross-entropy out")
        ce = self.ce_weight * F.cross_entropy(batch.student.logits, target)
        return {"ce": ce} | self.terms(batch)


METHODS: dict[str, type[Distiller]] = {}


def register(name: str) -> Callable[[type[Distiller]], type[Distiller]]:
    """Class decorator that adds a method to `METHODS`."""

    def add(cls: type[Distiller]) -> type[Distiller]:
        cls.name = name
        METHODS[name] = cls
        return cls

    return add


def create(method: str, probe: Probe, **options) -> Distiller:
    """The distiller `method`; "kd+crd" combines, with options by part: crd=dict(weight=0.1).

    In a combination the cross-entropy is the first part's. Raises ValueError for an unknown method
    and TypeError for an unknown option; both list the known ones.
    """
    parts = method.split("+")
    for part in parts:
        if part not in METHODS:
            raise ValueError(f"method {part!r} is unknown; known: {', '.join(sorted(METHODS))}")
    if len(parts) == 1:
        return _build(method, probe, options)
    if len(set(parts)) < len(parts):
        raise ValueError(f"method {method!r} names a part twice; combine different methods")
    strange = [k for k, v in options.items() if k not in parts or not isinstance(v, dict)]
    if strange:
        example = ", ".join(f"{part}=dict(...)" for part in parts)
        raise TypeError(f"options of {method!r} go by part: {example}; got {', '.join(strange)}")
    return Combination([_build(part, probe, options.get(part, {})) for part in parts])


def _build(method: str, probe: Probe, options: dict) -> Distiller:
    cls = METHODS[method]
    known = ", ".join(cls.options())
    for option in options:
        if option not in cls.options():
            raise TypeError(f"method {method!r} has no option {option!r}; it has {known}")
    if cls.needs_teacher and probe.teacher is None:
        raise ValueError(f"teacher is missing: method {method!r} needs one")
    return cls(probe, **options)


class Combination(Distiller):
    """Several methods at once; the cross-entropy is the first one's."""

    def __init__(self, parts: Sequence[Distiller]):
        nn.Module.__init__(self)
        self.parts = nn.ModuleList(parts)
        self.needs_teacher = any(part.needs_teacher for part in parts)
        for side in ("student_stages", "teacher_stages"):
            stages = (stage for part in parts for stage in getattr(part, side))
            setattr(self, side, tuple(dict.fromkeys(stages)))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        terms = self.parts[0](batch)
        for part in self.parts[1:]:
            terms |= part.terms(batch)
        return terms


# Methods on logits


@register("ce")
class CrossEntropy(Distiller):
    """Labels only: the independent student."""

    needs_teacher = False

    def __init__(self, probe: Probe, *, ce_weight: float = 1.0):
        super().__init__(probe, weight=0.0, ce_weight=ce_weight)


@register("kd")
class KD(Distiller):
    """(1 − alpha) CE + alpha KD (`losses.kd`). Published: T 4, alpha 0.9."""

    def __init__(self, probe: Probe, *, temperature: float = 4.0, alpha: float = 0.9):
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha is {alpha}; it must lie in 0 to 1")
        super().__init__(probe, weight=alpha, ce_weight=1 - alpha)
        self.temperature = temperature

    def loss(self, batch: Batch) -> Tensor:
        return losses.kd(batch.student.logits, batch.teacher.logits, self.temperature)


@register("dkd")
class DKD(Distiller):
    """`losses.dkd`, ramped up linearly over the first `warmup` epochs (0: no ramp).

    Published: alpha 1, beta 8 (2 or 6 for some pairs), T 4, 20 of 240 epochs. In a short training
    shorten the ramp as well; beta 2 worked on small networks.
    """

    def __init__(self, probe: Probe, *, alpha: float = 1.0, beta: float = 8.0,
                 temperature: float = 4.0, warmup: int = 20, weight: float = 1.0,
                 ce_weight: float = 1.0):
        super().__init__(probe, weight=weight, ce_weight=ce_weight)
        self.settings = (alpha, beta, temperature)
        self.warmup = warmup

    def loss(self, batch: Batch) -> Tensor:
        ramp = min(batch.epoch / self.warmup, 1.0) if self.warmup else 1.0
        student, teacher = batch.student.logits, batch.teacher.logits
        return ramp * losses.dkd(student, teacher, batch.target, *self.settings)


@register("dist")
class DIST(Distiller):
    """`losses.dist`. The code's defaults: beta 1, gamma 1, T 1. Weight 2, T 2 worked.

    Published: beta 2, gamma 2, T 4 on CIFAR-100; 2, 2, 1 on ImageNet.
    """

    def __init__(self, probe: Probe, *, beta: float = 1.0, gamma: float = 1.0,
                 temperature: float = 1.0, weight: float = 1.0, ce_weight: float = 1.0):
        super().__init__(probe, weight=weight, ce_weight=ce_weight)
        self.settings = (beta, gamma, temperature)

    def loss(self, batch: Batch) -> Tensor:
        return losses.dist(batch.student.logits, batch.teacher.logits, *self.settings)


# Methods on features


def map_shape(shape: Shape) -> Shape | None:
    """(C, H, W) of a stage with more than one position, per sample; None of a vector.

    The tokens (N, D) of a transformer or mixer count as a map where N is a square number.
    """
    if len(shape) == 2 and math.isqrt(shape[0]) ** 2 == shape[0]:
        shape = (shape[1], math.isqrt(shape[0]), math.isqrt(shape[0]))
    return shape if len(shape) == 3 and shape[1] * shape[2] > 1 else None


def as_map(x: Tensor) -> Tensor:
    """Maps [B, C, H, W] as they are, tokens [B, N, D] as maps [B, D, √N, √N]."""
    return x if x.ndim == 4 else x.transpose(1, 2).unflatten(2, (math.isqrt(x.shape[1]), -1))


def as_vector(x: Tensor) -> Tensor:
    """Maps and tokens averaged over positions, to [B, D]; vectors as they are."""
    return x.mean((2, 3)) if x.ndim == 4 else x.mean(1) if x.ndim == 3 else x


def vector_size(shape: Shape) -> int:
    """D of `as_vector`, from the shape of one sample."""
    return shape[0] if len(shape) == 3 else shape[-1]


class Features(Distiller):
    """Base of methods that compare stages of student and teacher, one to one.

    `stage`: name or index (-1 the embedding, -2 the last block), or several of them; None for all
    stages that are maps. `teacher_stage`: the same unless given.
    """

    maps = False  # a method for maps only
    several = True  # takes more than one stage

    def __init__(self, probe: Probe, stage: Stages, teacher_stage: Stages, weight: float,
                 ce_weight: float):
        super().__init__(probe, weight=weight, ce_weight=ce_weight)
        teacher_stage = stage if teacher_stage is None else teacher_stage
        self.student_stages = self._stages("student", probe.student, stage)
        self.teacher_stages = self._stages("teacher", probe.teacher, teacher_stage)
        s, t = self.student_stages, self.teacher_stages
        if len(s) != len(t):
            raise ValueError(
                f"method {self.name!r} pairs stages one to one, but the student has {len(s)} "
                f"({', '.join(s)}) and the teacher {len(t)} ({', '.join(t)}); choose equally many "
                "with stage and teacher_stage"
            )
        self.shapes = [(probe.student[a], probe.teacher[b]) for a, b in zip(s, t)]

    def _stages(self, side: str, shapes: dict[str, Shape], stage: Stages) -> tuple[str, ...]:
        if not shapes:
            raise ValueError(f"{side} declares no stages; set {side}.stages to names of modules")
        if stage is None:
            stage = [name for name, shape in shapes.items() if map_shape(shape)]
        try:
            chosen = [stage] if isinstance(stage, (str, int)) else stage
            names = tuple(resolve_stage(tuple(shapes), name) for name in chosen)
        except ValueError as error:
            raise ValueError(f"{side}: {error}") from None
        if not names or (self.maps and any(map_shape(shapes[name]) is None for name in names)):
            found = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
            raise ValueError(
                f"method {self.name!r} needs stages that are maps (C, H, W); the {side} has {found}"
            )
        if not self.several and len(names) > 1:
            raise ValueError(f"method {self.name!r} takes one stage, got {', '.join(names)}")
        return names

    def pairs(self, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        """(student, teacher) features of each pair of stages; tokens as maps where maps is set."""
        student = [batch.student.features[stage] for stage in self.student_stages]
        teacher = [batch.teacher.features[stage].detach() for stage in self.teacher_stages]
        if self.maps:
            student, teacher = map(as_map, student), map(as_map, teacher)
        return list(zip(student, teacher))


class FeatureLoss(Features):
    """Base of methods without state: `function` summed over stages, its keywords being options."""

    function: Callable[..., Tensor]
    default_stage: Stages = -1
    default_weight = 1.0

    def __init__(self, probe: Probe, *, stage: Stages = None, teacher_stage: Stages = None,
                 weight: float | None = None, ce_weight: float = 1.0, **settings):
        stage = self.default_stage if stage is None else stage
        weight = self.default_weight if weight is None else weight
        super().__init__(probe, stage, teacher_stage, weight, ce_weight)
        self.settings = settings

    @classmethod
    def options(cls) -> list[str]:
        own = inspect.getfullargspec(FeatureLoss.__init__).kwonlyargs
        return own + inspect.getfullargspec(cls.function).args[2:]

    def loss(self, batch: Batch) -> Tensor:
        return sum(self.function(s, t, **self.settings) for s, t in self.pairs(batch))


@register("at")
class AT(FeatureLoss):
    """`losses.attention` of all maps. Published: weight 1000; 3 worked on small maps."""

    function = staticmethod(losses.attention)
    maps, default_stage, default_weight = True, None, 1000.0


@register("nst")
class NST(FeatureLoss):
    """`losses.nst` of all maps. Published: weight 50; 5 did no harm on small maps."""

    function = staticmethod(losses.nst)
    maps, default_stage, default_weight = True, None, 50.0


@register("sp")
class SP(FeatureLoss):
    """`losses.similarity` of the last block. Published: weight 3000; 300 worked on small maps."""

    function = staticmethod(losses.similarity)
    default_stage, default_weight = -2, 3000.0


@register("rkd")
class RKD(FeatureLoss):
    """`losses.rkd` of the embedding. Published: weight 1 (that is, 25 and 50); 0.3 worked."""

    function = staticmethod(losses.rkd)


@register("pkt")
class PKT(FeatureLoss):
    """`losses.pkt` of the embedding. Published: weight 30000."""

    function = staticmethod(losses.pkt)
    default_weight = 30000.0


@register("cc")
class CC(FeatureLoss):
    """`losses.cc` of the embedding. Published: weight 0.02; 500 lost 25 points on small networks.

    The official variant needs equal dimensions: the student is projected to the teacher's. The
    authors project both sides and train both, which two constant projections would satisfy; here
    the teacher stays as it is.
    """

    function = staticmethod(losses.cc)
    default_weight, several = 0.02, False

    def __init__(self, probe: Probe, **options):
        super().__init__(probe, **options)
        (student, teacher), = self.shapes
        official = self.settings.get("variant", "official") == "official"
        linear = nn.Linear(vector_size(student), vector_size(teacher))
        self.projection = linear if official else nn.Identity()

    def pairs(self, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        (s, t), = super().pairs(batch)
        return [(self.projection(as_vector(s)), as_vector(t))]


@register("hint")
class Hint(Features):
    """`losses.hint` behind a learned linear regressor (a 1x1 convolution between maps).

    Published: weight 100 (RepDistiller); 10 on the last block worked on small maps. The official
    regressor ends in batch norm and ReLU and cannot reach negative features; this one can. The
    larger map is average-pooled; where one side is a vector, the other is averaged to one.
    `normalise` expresses the targets in units of the teacher's standard deviation, measured on the
    first batch, so that the weight does not depend on the teacher's scale. Stages are summed.
    """

    def __init__(self, probe: Probe, *, stage: Stages = -2, teacher_stage: Stages = None,
                 normalise: bool = False, weight: float = 100.0, ce_weight: float = 1.0):
        super().__init__(probe, stage, teacher_stage, weight, ce_weight)
        self.regressors = nn.ModuleList()
        for student, teacher in self.shapes:
            maps = map_shape(student) and map_shape(teacher)
            linear = nn.Linear(vector_size(student), vector_size(teacher))
            conv = maps and nn.Conv2d(linear.in_features, linear.out_features, 1)
            self.regressors.append(conv or linear)
        self.normalise = normalise
        self.register_buffer("scale", torch.zeros(len(self.shapes)))  # 0: not measured yet

    def loss(self, batch: Batch) -> Tensor:
        total = 0.0
        for i, ((s, t), regressor) in enumerate(zip(self.pairs(batch), self.regressors)):
            if isinstance(regressor, nn.Conv2d):
                s, t = losses.match_maps(as_map(s), as_map(t))
            else:
                s, t = as_vector(s), as_vector(t)
            if self.normalise:
                # No branch on the value: reading it would make an accelerator wait.
                self.scale[i] = torch.where(self.scale[i] > 0, self.scale[i], t.std())
                t = t / self.scale[i].clamp_min(1e-6)
            total = total + losses.hint(regressor(s), t)
        return total


@register("vid")
class VID(Features):
    """`losses.vid` of all maps, summed; regressors and variances are trained.

    Published: weight 1, initial variance 5; weight 20 worked on small maps. The regressor is the
    authors': three 1x1 convolutions without bias, ReLU between.
    """

    maps = True

    def __init__(self, probe: Probe, *, stage: Stages = None, teacher_stage: Stages = None,
                 variance: float = 5.0, weight: float = 1.0, ce_weight: float = 1.0):
        super().__init__(probe, stage, teacher_stage, weight, ce_weight)
        if not variance > 1e-5:
            raise ValueError(f"variance is {variance}; it must be above 1e-5, its lower bound")
        start = math.log(math.expm1(variance - 1e-5))  # the inverse of the softplus in losses.vid
        self.regressors, self.variances = nn.ModuleList(), nn.ParameterList()
        for student, teacher in self.shapes:
            c = map_shape(teacher)[0]
            first, *rest = (nn.Conv2d(n, c, 1, bias=False) for n in (map_shape(student)[0], c, c))
            self.regressors.append(nn.Sequential(first, nn.ReLU(), rest[0], nn.ReLU(), rest[1]))
            self.variances.append(nn.Parameter(torch.full((c,), start)))

    def loss(self, batch: Batch) -> Tensor:
        total = 0.0
        for (s, t), regressor, variance in zip(self.pairs(batch), self.regressors, self.variances):
            s, t = losses.match_maps(s, t)
            total = total + losses.vid(regressor(s), variance, t)
        return total


@register("crd")
class CRD(Features):
    """Contrastive distillation of the embedding: both sides projected to `dim`, of unit length.

    With `bank`, the paper's form: a memory of all training samples (`bank.Bank`), negatives from
    other classes, or all other samples where there are no labels. Published: 16384 negatives (None:
    all), T 0.07, momentum 0.5, dim 128, weight 0.8; on small networks try 0.1 too. Without,
    the negatives are the rest of the batch (`losses.info_nce`), and the defaults are T 0.1, dim 64,
    weight 1.
    """

    several = False

    def __init__(self, probe: Probe, *, bank: bool = True, num_negatives: int | None = 16384,
                 temperature: float | None = None, momentum: float = 0.5, dim: int | None = None,
                 stage: Stages = -1, teacher_stage: Stages = None, weight: float | None = None,
                 ce_weight: float = 1.0):
        given, defaults = (temperature, dim, weight), (0.07, 128, 0.8) if bank else (0.1, 64, 1.0)
        temperature, dim, weight = (d if g is None else g for g, d in zip(given, defaults))
        super().__init__(probe, stage, teacher_stage, weight, ce_weight)
        (student, teacher), = self.shapes
        self.student_head = nn.Linear(vector_size(student), dim)
        self.teacher_head = nn.Linear(vector_size(teacher), dim)
        labels = torch.arange(probe.num_samples) if probe.labels is None else probe.labels
        self.temperature = temperature
        self.bank = None
        if bank:
            self.bank = Bank(labels, dim, num_negatives=num_negatives, temperature=temperature,
                             momentum=momentum)

    def loss(self, batch: Batch) -> Tensor:
        (s, t), = self.pairs(batch)
        s, t = self.student_head(as_vector(s)), self.teacher_head(as_vector(t))
        if self.bank is None:
            return losses.info_nce(s, t, self.temperature)
        return self.bank(F.normalize(s), F.normalize(t), batch.index)
