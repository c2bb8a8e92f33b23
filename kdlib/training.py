"""Training on images: the objective of distillation, its batches, and `fit`, which joins them.

The objective owns the cross-entropy with the labels. A distiller (see `distillers`) adds its own
terms; the loop itself is `engine.loop.optimise`.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlib import inputs, recipes
from kdlib.data import Augment, Split, device_of
from kdlib.data import mixup as mix_images
from kdlib.distillers import (
    METHODS,
    Batch,
    Distiller,
    Outputs,
    Setup,
    create,
    needs_teacher,
    parts_of,
)
from kdlib.engine import loop, optimizers, ranks
from kdlib.engine.checkpoints import Checkpoint, History
from kdlib.engine.graphs import Recorded
from kdlib.engine.placement import placed, threads_for
from kdlib.identity import identity
from kdlib.stages import BATCH, Tap, evaluating, predict, stage_shapes

TEACHERS = 10_000  # added to a seed for its teacher: twins of one architecture must not start alike
CACHE_LIMIT = 2**30  # bytes of teacher outputs that are kept; above it the teacher runs each step

__all__ = [
    "Fitted",
    "ImageObjective",
    "as_split",
    "build",
    "drawn",
    "evaluate",
    "fit",
    "fresh",
    "predict",
    "relabel",
    "trained",
]


def evaluate(model: nn.Module, split: Split) -> dict[str, float]:
    """{"accuracy": percent, "loss": mean cross-entropy in nats} on a split."""
    split = as_split("split", split)
    logits = predict(model, split.images)
    right = (logits.argmax(1) == split.labels).sum().item()
    return {
        "accuracy": 100 * right / len(split.labels),
        "loss": F.cross_entropy(logits.float(), split.labels).item(),
    }


@recipes.traced
@torch.inference_mode(False)
def build(constructor: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Call `constructor` with torch's random state set to `seed`, and restored afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(inputs.seed("seed", seed))
        network = constructor()
    if not isinstance(network, nn.Module):
        raise TypeError(
            f"constructor must return a network, got {inputs.describe(network)}: give the class "
            "or functools.partial of it, not a result"
        )
    return network


@recipes.traced
def relabel(split: Split, teacher: nn.Module) -> Split:
    """The images of `split` with the teacher's answers as labels."""
    return Split(split.images, predict(teacher, split.images).argmax(1))


class Images(NamedTuple):
    """One batch of training images. Under mixup, target and index are the heavier image's."""

    images: Tensor  # [B, c, h, w]
    target: Tensor  # int64 [B]
    soft_target: Tensor | None  # [B, C], what the cross-entropy takes (mixup, smoothing)
    index: Tensor  # type: ignore[assignment]  # int64 [B], positions in the training set
    epoch: int  # from 1
    lesson: Outputs | None  # the teacher's cached outputs


class ImageObjective(nn.Module):
    """ce_weight * cross-entropy + the distiller's terms.

    Under `torchrun` each process runs the networks on its rows; the losses see all rows.

    Args:
        student_tap, teacher_tap: on the networks, at the stages that the distiller reads.
        ce_weight: of the cross-entropy with the labels.
    """

    def __init__(
        self,
        student_tap: Tap | Recorded,
        teacher_tap: Tap | Recorded | None,
        distiller: Distiller,
        ce_weight: float,
    ):
        super().__init__()
        self.student, self.distiller, self.ce_weight = student_tap.model, distiller, ce_weight
        self._taps = student_tap, teacher_tap  # the teacher is neither trained nor stored

    def forward(self, batch: Images) -> dict[str, Tensor]:
        rows = ranks.share(len(batch.images))
        images, (tap, teacher_tap), lesson = batch.images[rows], self._taps, batch.lesson
        student = _joined(tap, images, "student")
        logits = student.logits
        if logits.device.type == "cpu" and not math.isfinite(logits.detach().sum()):
            raise loop.NotFinite("the student's logits became infinite or NaN")
        if lesson is None and teacher_tap is not None:
            with torch.no_grad():
                lesson = _joined(teacher_tap, images, "teacher")
        with torch.autocast(logits.device.type, enabled=False):
            terms = {}
            if self.ce_weight:
                target = batch.target if batch.soft_target is None else batch.soft_target
                terms["ce"] = self.ce_weight * F.cross_entropy(logits, target)
            lesson = lesson or Outputs(logits.new_empty(0), {})  # a method without a teacher
            seen = Batch(student, lesson, batch.target, batch.index, batch.epoch)
            return terms | self.distiller(seen)


def _joined(tap: Tap | Recorded, images: Tensor, role: str) -> Outputs:
    """Outputs for the rows of all processes; half precision becomes float32 for the losses."""
    logits, features = tap(images)
    logits = inputs.logits(role, logits, len(images))

    def whole(x: Tensor) -> Tensor:
        return ranks.gather(x.float() if x.dtype in (torch.bfloat16, torch.float16) else x)

    return Outputs(whole(logits), {name: whole(value) for name, value in features.items()})


class Fitted(NamedTuple):
    """What `fit` leaves behind besides the trained student."""

    history: History  # one dictionary an epoch: loss, its terms, validation scores
    distiller: Distiller  # with its trained regressors or its memory bank
    extra_bytes: int  # the distiller's buffers and the cached teacher outputs


@torch.inference_mode(False)
def fit(
    student: nn.Module,
    train: Split,
    *,
    method: str = "ce",
    teacher: nn.Module | None = None,
    validation: Split | None = None,
    epochs: int = 20,
    batch_size: int = 64,
    lr: float = 2e-3,
    weight_decay: float = 1e-4,
    optimizer: str | optimizers.Maker = "adamw",
    schedule: loop.Schedule = loop.warmup_cosine,
    clip: float | None = None,
    precision: str | None = None,
    augment: Augment | None = None,
    mixup: bool = False,
    label_smoothing: float = 0.0,
    ce_weight: float | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    memory_format: torch.memory_format | None = None,
    compile: bool = False,
    graphs: bool = False,
    checkpoint: str | Path | None = None,
    stop_after: int | None = None,
    progress: bool = True,
    **options: Any,
) -> Fitted:
    """Train `student` in place, alone or with a teacher.

    The last, partial batch of an epoch is dropped. The teacher sees exactly the images that the
    student sees (augmented and mixed); where those are the same in every epoch, its outputs are
    computed once. On a CPU the result is bit-identical on repeat at a fixed number of threads;
    small networks use one. Under `torchrun` each process takes its share of every batch.

    Args:
        student: any network [n, c, h, w] -> logits [n, classes]; left in eval mode.
        train: images and labels; all finite.
        method: a name of `distillers.METHODS`, or several joined by "+".
        teacher: any such network; every method but "ce" needs one, and "ce" takes none.
        validation: evaluated after every epoch if given.
        lr: the peak learning rate; `schedule` shapes it (see `engine.loop`).
        optimizer: "adamw", "sgd", "muon", or a maker (see `engine.optimizers`).
        clip: largest norm of the gradient.
        precision: None for float32; "bf16" runs the networks in bfloat16, the losses in float32
            (cached outputs of the teacher stay float32).
        augment: `augment(images, generator) -> images`, e.g. `data.shift`.
        mixup: blend pairs of images and their targets.
        label_smoothing: share of the target spread evenly over the classes, in [0, 1).
        ce_weight: of the cross-entropy; None takes the published one (kd: 1 - alpha). A
            combination has none: state it.
        seed: of batch order, augmentation, dropout and the distiller's initial weights.
        device: where to train; default: where `train` lives.
        memory_format: order of the pixels; default: channels last for the kit's own convolutional
            networks, where that is faster.
        compile: run the networks through `torch.compile`, which pays in long trainings on a GPU;
            only for methods that read no stages.
        graphs: replay the networks' passes as CUDA graphs, which makes small networks several times
            faster on an NVIDIA GPU, for every method (see `engine.graphs`).
        checkpoint: file written after every epoch. If it exists, training goes on from it, and
            ends with the weights of an uninterrupted run.
        stop_after: epochs after which to stop early, on the schedule of all `epochs`; 0 checks
            every argument and trains nothing.
        progress: show a bar with the time left.
        options: of the method, e.g. `temperature=4.0`.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of range, labels do not fit
            the logits, the checkpoint belongs to another run or is damaged.
        FloatingPointError: the loss became infinite or NaN; names the term, the epoch and the
            step. The student is left as it was after the epoch before.
        torch.OutOfMemoryError: with a batch size whose step fits.
    """
    settings = {name: value for name, value in locals().items() if name not in _NO_SETTINGS}
    _, world = ranks.join()
    train = as_split("train", train)
    validation = None if validation is None else as_split("validation", validation)
    _check_networks(student, teacher, method)
    batch_size = min(inputs.whole("batch_size", batch_size), len(train.labels))
    inputs.number("label_smoothing", label_smoothing, low=0, below=1)
    inputs.instance("mixup", mixup, bool)
    for name, value in {"augment": augment, "schedule": schedule}.items():
        if value is not None and not callable(value):
            raise TypeError(f"{name} must be a function, got {inputs.describe(value)}")
    inputs.seed("seed", seed)
    if batch_size % world:
        raise ValueError(f"batch_size must be a multiple of {world} processes, got {batch_size}")
    device = ranks.own_device(device_of(train.images.device if device is None else device))
    if inputs.instance("graphs", graphs, bool):
        _check_graphs(device, compile)
    origin = _recipe_of_training(student, settings)
    kept = None
    if checkpoint is not None:
        digest = functools.partial(recipes.weights_digest, student)
        kept = Checkpoint(Path(checkpoint), _fixed_settings(student, settings), digest(), digest)
    train = train.to(device)
    validation = None if validation is None else validation.to(device)
    student = placed(student, device, memory_format)
    if teacher is not None:
        teacher = placed(teacher, device, memory_format)

    with ExitStack() as stack:
        stack.callback(student.eval)
        stack.enter_context(threads_for(student, train.images, batch_size))
        if teacher is not None:
            stack.enter_context(evaluating(teacher))
        distiller, classes = _distiller(method, student, teacher, train, seed, options)
        distiller = distiller.to(device)
        weight = _ce_weight(ce_weight, distiller, method)
        if label_smoothing and not weight:
            raise ValueError("label_smoothing must be 0 where ce_weight is 0: it has no effect")

        cache = None
        if teacher is not None and augment is None and not mixup and stop_after != 0:
            cache = cached_outputs(teacher, train.images, distiller.teacher_stages)
        student_tap = stack.enter_context(Tap(student, distiller.student_stages))
        teacher_tap = None
        if teacher is not None:
            teacher_tap = stack.enter_context(Tap(teacher, distiller.teacher_stages))
        if not any(parameter.requires_grad for parameter in student.parameters()):
            raise ValueError("student must have parameters with requires_grad=True, got none")
        if inputs.instance("compile", compile, bool):
            _compile(method, *filter(None, (student_tap, teacher_tap)))
        batches = functools.partial(
            image_batches, train, classes=classes, augment=augment, mixup=mixup,
            label_smoothing=label_smoothing, cache=cache,
        )  # fmt: skip
        taps: tuple[Any, Any] = (student_tap, teacher_tap)
        if graphs and stop_after != 0:
            first = next(iter(batches(batch_size=batch_size)(1, torch.Generator())))
            taps = _recorded(student_tap, teacher_tap, first, precision)
        objective = ImageObjective(*taps, distiller, weight)

        def scores(epoch: int) -> dict[str, float]:
            found = {} if validation is None else evaluate(student, validation)
            return {f"validation_{name}": score for name, score in found.items()}

        with _out_of_memory_told(objective, batches, batch_size, seed):
            history = loop.optimise(
                objective,
                batches(batch_size=batch_size),
                optimizers.create(
                    optimizer, objective.named_parameters(), lr=lr, weight_decay=weight_decay
                ),
                epochs=epochs,
                steps=len(train.labels) // batch_size,
                schedule=schedule,
                precision=precision,
                clip=clip,
                seed=seed,
                stop_after=stop_after,
                after_epoch=scores,
                checkpoint=kept,
                progress=progress,
            )
    recipes.remember(student, origin)
    held = [*distiller.buffers(), *([cache.logits, *cache.features.values()] if cache else [])]
    return Fitted(history, distiller, sum(t.numel() * t.element_size() for t in held))


def _compile(method: str, *taps: Tap) -> None:
    """Let the taps run compiled networks; the plain ones, which share the weights, stay in use."""
    for tap in taps:
        if tap.stages:
            raise ValueError(
                f"compile must be False for method {method!r}: it reads stages, which a compiled "
                "network does not show"
            )
        tap.model = torch.compile(tap.model)  # type: ignore[assignment]


def _check_graphs(device: torch.device, compile: bool) -> None:
    """Where networks can be recorded as CUDA graphs."""
    reasons = {
        f"on {device.type}: they need an NVIDIA GPU": device.type != "cuda",
        "beside compile: choose one of them": compile,
        "under torchrun, where networks wait for each other": ranks.join()[1] > 1,
    }
    for reason, holds in reasons.items():
        if holds:
            raise ValueError(f"graphs must be False {reason}")


def _recorded(
    student: Tap, teacher: Tap | None, batch: Images, precision: str | None
) -> tuple[Recorded, Tap | Recorded | None]:
    """Both as CUDA graphs; a teacher whose outputs are cached does not run any more."""
    images = batch.images
    found = Recorded(student, images, precision, training=True)
    if teacher is None or batch.lesson is not None:
        return found, teacher
    return found, Recorded(teacher, images, precision, training=False)


@contextmanager
def _out_of_memory_told(
    objective: nn.Module, batches: Callable[..., loop.Batches], batch_size: int, seed: int
) -> Iterator[None]:
    """Look for a batch whose step fits, where this one does not, and name it in the error."""
    try:
        yield
        return
    except torch.OutOfMemoryError as error:
        first = str(error).partition(". ")[0]
    # Outside of the except clause the failed step's graph is free.
    size = batch_size // 2
    while size:
        try:
            batch = next(iter(batches(batch_size=size)(1, torch.Generator().manual_seed(seed))))
            sum(objective(batch).values()).backward()
            break
        except torch.OutOfMemoryError:
            size //= 2
        finally:
            objective.zero_grad(set_to_none=True)
    advice = f"a step of {size} fits" if size else "not even 1 fits: take smaller networks"
    raise torch.OutOfMemoryError(
        f"out of memory at batch_size={batch_size}: {advice}; precision='bf16' needs less, too. "
        f"Build the networks anew. ({first})"
    )


# What does not change a training's result, or is looked at by itself.
_NO_SETTINGS = {"student", "device", "checkpoint", "progress", "graphs"}


@recipes.safe
def trained(student: nn.Module, train: Split, **options: Any) -> nn.Module:
    """The student, after `fit(student, train, **options)`."""
    fit(student, train, progress=False, **options)
    return student


def fresh(constructor: Callable[[], nn.Module], train: Split, **options: Any) -> functools.partial:
    """A teacher that is built and trained anew for every seed, for `compare` and `over_seeds`.

    With one teacher for all seeds, intervals speak of other students of *this* teacher only. A
    claim about teachers needs fresh ones.

    Args:
        constructor: builds the network.
        train: what it learns from.
        options: of `fit`.
    """
    return functools.partial(drawn, constructor, as_split("train", train), **options)


@recipes.safe
def drawn(
    constructor: Callable[[], nn.Module], train: Split, seed: int, **options: Any
) -> nn.Module:
    """The teacher of one seed that `fresh` describes."""
    own = inputs.seed("seed", seed) + TEACHERS
    return trained(build(constructor, own), train, seed=own, **options)


def _fixed_settings(student: nn.Module, settings: dict[str, Any]) -> dict[str, str]:
    """What a training that goes on from a checkpoint must share: the identity of each setting."""
    parts = {part: METHODS[part] for part in parts_of(settings["method"])}
    bare = copy.deepcopy(student)
    with torch.no_grad():
        for value in (*bare.parameters(), *bare.buffers()):
            value.zero_()  # the weights are looked at by themselves
    trained = [name for name, value in student.named_parameters() if value.requires_grad]
    fixed = settings | {"method": parts, "student": (bare, trained)}
    del fixed["stop_after"]
    return {name: identity(value, name) for name, value in fixed.items()}


def _recipe_of_training(student: nn.Module, settings: dict[str, Any]) -> Any:
    """The recipe of the trained student, or the reason why there is none."""
    settings = settings | settings["options"]
    del settings["options"]
    if settings["validation"] is None:
        del settings["validation"]
    try:
        return recipes.recipe_of_call(trained, student, **settings)
    except recipes.Unrepeatable as reason:
        return reason


def image_batches(
    train: Split,
    batch_size: int,
    classes: int,
    augment: Augment | None = None,
    mixup: bool = False,
    label_smoothing: float = 0.0,
    cache: Outputs | None = None,
) -> loop.Batches:
    """A source of shuffled, augmented batches; the last, partial one of an epoch is dropped.

    Args:
        cache: the teacher's outputs for all of `train`, where they stay the same.
    """

    def batches(epoch: int, generator: torch.Generator) -> Iterator[Images]:
        order = torch.randperm(len(train.labels), generator=generator).to(train.labels.device)
        for index in order.split(batch_size):
            images, target = train.images[index], train.labels[index]
            soft: Tensor | None = None
            lesson: Outputs | None = None
            if augment is not None:
                images = augment(images, generator)
                if images.device.type == "cpu" and not math.isfinite(images.sum()):
                    raise ValueError("augment must return finite images, got NaN or infinity")
            if mixup or label_smoothing:
                soft = F.one_hot(target, classes).to(images.dtype)
                if mixup:
                    images, share, partner = mix_images(images, generator)
                    soft = share[:, None] * soft + (1 - share[:, None]) * soft[partner]
                    own = torch.arange(len(share), device=partner.device)
                    heavier = torch.where(share >= 0.5, own, partner)
                    index, target = index[heavier], target[heavier]
                soft = (1 - label_smoothing) * soft + label_smoothing / classes
            if cache is not None:
                features = {name: value[index] for name, value in cache.features.items()}
                lesson = Outputs(cache.logits[index], features)
            yield Images(images, target, soft, index, epoch, lesson)

    return batches


@torch.no_grad()
def cached_outputs(teacher: nn.Module, images: Tensor, stages: tuple[str, ...]) -> Outputs | None:
    """The teacher's logits and stages for all images, or None where they would fill the memory."""
    shapes = _shapes(teacher, images) if stages else {}
    size = predict(teacher, images[:2]).shape[1] + sum(math.prod(shapes[name]) for name in stages)
    if 4 * size * len(images) > CACHE_LIMIT:
        return None
    with evaluating(teacher), Tap(teacher, stages) as tap:
        parts = [Outputs(*tap(part)) for part in images.split(BATCH)]
    return Outputs(
        torch.cat([part.logits for part in parts]),
        {name: torch.cat([part.features[name] for part in parts]) for name in stages},
    )


def _distiller(
    method: str,
    student: nn.Module,
    teacher: nn.Module | None,
    train: Split,
    seed: int,
    options: dict[str, Any],
) -> tuple[Distiller, int]:
    """The distiller, and the number of classes that the student tells apart."""
    classes = predict(student, train.images[:2]).shape[-1]
    inputs.classes("train.labels", train.labels, classes)
    if teacher is not None:
        found = predict(teacher, train.images[:2]).shape[-1]
        if found != classes:
            raise ValueError(f"teacher must give {classes} logits, as the student, got {found}")
    setup = Setup(
        student=_shapes(student, train.images),
        teacher=None if teacher is None else _shapes(teacher, train.images),
        labels=train.labels,
        num_classes=classes,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        distiller = create(method, setup, **options)
    return distiller, classes


def _ce_weight(ce_weight: float | None, distiller: Distiller, method: str) -> float:
    """The weight of the cross-entropy: given, or the published one."""
    found = distiller.ce_weight if ce_weight is None else ce_weight
    if found is None:
        raise ValueError(
            f"ce_weight must be given for the combination {method!r}: the sum of its parts has "
            "no published one"
        )
    found = inputs.number("ce_weight", found, low=0)
    if not found and not any(part.weight and part.loss for part in _parts(distiller)):
        raise ValueError("ce_weight and weight must not both be 0: nothing would be learnt")
    return found


def _parts(distiller: Distiller) -> list[Distiller]:
    return list(getattr(distiller, "parts", [distiller]))


def _shapes(model: nn.Module, images: Tensor) -> dict[str, tuple[int, ...]]:
    """Shapes of the model's stages; none of a network that names none, or is compiled."""
    named = isinstance(getattr(model, "stages", None), (tuple, list))
    compiled = hasattr(model, "_orig_mod")
    return stage_shapes(model, images[:2]) if named and not compiled else {}


# Checks


def as_split(name: str, split: Any) -> Split:
    """A split of finite images [n, c, h, w] with int64 labels [n], n >= 1, or a clear error."""
    split = Split.of(split, name)
    inputs.images(f"{name}.images", split.images)
    labels = split.labels
    if labels.dtype != torch.int64 or labels.ndim != 1:
        raise TypeError(f"{name}.labels must be int64 [n], got {inputs.describe(labels)}")
    if split.images.is_inference() or labels.is_inference():
        split = Split(split.images.clone(), labels.clone())  # made in inference mode: no gradients
    return split


def _check_networks(student: nn.Module, teacher: nn.Module | None, method: str) -> None:
    """Both are networks in float32, and share no weights."""
    for name, network in {"student": student, "teacher": teacher}.items():
        if network is None and name == "teacher":
            continue
        if not isinstance(network, nn.Module):
            raise TypeError(
                f"{name} must be a torch.nn.Module, got {inputs.describe(network)}: wrap a "
                "function in a module"
            )
        kinds = {p.dtype for p in network.parameters() if p.is_floating_point()}
        if kinds - {torch.float32}:
            raise TypeError(
                f"{name} must have float32 weights, got {', '.join(map(str, kinds))}: call "
                ".float(); for half precision use precision='bf16'"
            )
    if teacher is not None:
        if not needs_teacher(method):
            raise ValueError(f"teacher must be None for method {method!r}, which takes none")
        own = set(map(id, student.parameters()))
        if teacher is student or own & set(map(id, teacher.parameters())):
            raise ValueError(
                "teacher must be another network, got the student or a part of it: use "
                "copy.deepcopy"
            )
