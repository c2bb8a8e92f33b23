"""One training loop for every method, checkpoints, and comparisons over paired seeds.

`fit` trains a network alone or under any distiller; `compare` trains several methods for the same
seeds (same initial weights, batch order and augmentation) and returns run records.
"""

from __future__ import annotations

import io
import math
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping, NamedTuple, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlib import checkpoints, processes, records
from kdlib.data import Augment, Split, device_of, generator, mixup as mix_images
from kdlib.distillers import METHODS, Batch, Distiller, Outputs, Probe, create
from kdlib.models import Tap, evaluating, stage_shapes
from kdlib.parallel import run as run_parallel
from kdlib.progress import bar
from kdlib.records import Run

CACHE_LIMIT = 2**30  # bytes of teacher outputs that are kept; above it the teacher runs each step
EVALUATION_BATCH = 500


@torch.no_grad()
def predict(model: nn.Module, images: Tensor) -> Tensor:
    """Logits [n, classes] of `images`, in eval mode; the model's mode is restored."""
    with evaluating(model):
        return torch.cat([model(part) for part in images.split(EVALUATION_BATCH)])


def evaluate(model: nn.Module, split: Split) -> dict[str, float]:
    """{"accuracy": percent, "loss": mean cross-entropy in nats} on a split."""
    logits = predict(model, split.images)
    return {"accuracy": 100 * (logits.argmax(1) == split.labels).double().mean().item(),
            "loss": F.cross_entropy(logits, split.labels).item()}


def build(constructor: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Call `constructor` with torch's random state set to `seed`, and restored afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return constructor()


def learning_rate(step: int, total: int, peak: float) -> float:
    """Linear warm-up over the first tenth of `total` steps, then half a cosine down to 0."""
    warm = max(1, total // 10)
    if step < warm:
        return peak * (step + 1) / warm
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


class Fitted(NamedTuple):
    """What `fit` leaves behind besides the trained student."""

    history: list[dict[str, float]]  # one dictionary an epoch: loss, its terms, validation scores
    distiller: Distiller  # with its trained regressors or its memory bank
    extra_bytes: int  # the distiller's buffers and the cached teacher outputs


def fit(student: nn.Module, train: Split, *, method: str = "ce", teacher: nn.Module | None = None,
        validation: Split | None = None, epochs: int = 20, batch_size: int = 64, lr: float = 2e-3,
        weight_decay: float = 1e-4, augment: Augment | None = None, mixup: bool = False,
        label_smoothing: float = 0.0, seed: int = 0, device: str | torch.device | None = None,
        checkpoint: str | Path | None = None, progress: bool = True, **options: Any) -> Fitted:
    """Train `student` in place, alone or with a teacher.

    AdamW with `learning_rate`'s schedule. The last, partial batch of an epoch is dropped. The
    teacher sees exactly the images that the student sees (augmented and mixed); where those are
    the same in every epoch, its outputs are computed once. On a CPU the result is bit-identical
    on repeat at a fixed number of threads. Under `torchrun` each process takes its share of
    every batch and gradients are averaged.

    Args:
        student: any network [n, c, h, w] -> logits [n, classes]; left in eval mode.
        train: images and labels; all finite.
        method: a name of `distillers.METHODS`, or several joined by "+".
        teacher: any such network; needed by every method but "ce".
        validation: evaluated after every epoch if given.
        lr: the peak learning rate.
        augment: `augment(images, generator) -> images`, e.g. `data.shift`.
        mixup: blend pairs of images and their targets.
        label_smoothing: share of the target spread evenly over the classes, in [0, 1).
        seed: of batch order, augmentation, dropout and the distiller's initial weights.
        device: where to train; default: where `train` lives.
        checkpoint: file written after every epoch. If it exists, training goes on from it, and
            ends with the weights of an uninterrupted run.
        progress: show a bar with the time left.
        options: of the method, e.g. `temperature=4.0`.

    Raises:
        ValueError: an argument is out of range, labels do not fit the logits, the checkpoint
            belongs to another run or is damaged.
        FloatingPointError: the loss became infinite or NaN; names the term.
    """
    rank, world = processes.join()
    _check(train, epochs, batch_size, lr, label_smoothing, world)
    device = device_of(train.images.device if device is None else device)
    device = processes.own_device(device, world)
    settings = {} if checkpoint is None else describe(dict(
        train=train, method=method, teacher=teacher, epochs=epochs, batch_size=batch_size, lr=lr,
        weight_decay=weight_decay, augment=augment, mixup=mixup, seed=seed, options=options,
        label_smoothing=label_smoothing, student=type(student)))
    train, student = train.to(device), student.to(device)
    if teacher is not None:
        teacher = teacher.to(device).eval()
    distiller = _distiller(method, student, teacher, train, seed, options).to(device)
    cache = None
    if distiller.needs_teacher and augment is None and not mixup:
        cache = cached_outputs(teacher, train.images, distiller.teacher_stages)
    parameters = [p for p in (*student.parameters(), *distiller.parameters()) if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay,
                                  fused=device.type in ("cpu", "cuda"))
    processes.share((*parameters, *student.buffers()), world)
    parts = {"student": student, "distiller": distiller, "optimizer": optimizer}
    history = [] if checkpoint is None else checkpoints.resume(checkpoint, settings, parts)
    batch_size = min(batch_size, len(train.images))
    steps = len(train.images) // batch_size  # an epoch

    with bar(epochs, "epochs", enabled=progress and rank == 0) as ticker:
        ticker.update(len(history))
        for epoch in range(len(history) + 1, epochs + 1):
            student.train()
            sums: dict[str, Tensor] = {}
            # Seeding by epoch makes a resumed run equal to an uninterrupted one.
            with (_seeded(1_000_003 * seed + epoch, device) as stream,
                  Tap(student, distiller.student_stages) as student_tap,
                  Tap(teacher or nn.Identity(), distiller.teacher_stages) as teacher_tap):
                order = torch.randperm(len(train.images), generator=stream).to(device)
                for step in range(steps):
                    index = order[step * batch_size: (step + 1) * batch_size]
                    batch = _batch(train, index, stream, student_tap, teacher_tap, cache,
                                   distiller.needs_teacher, augment, mixup, label_smoothing,
                                   epoch, slice(rank, None, world))
                    _check_finite({"logits": batch.student.logits.sum()}, epoch)
                    terms = distiller(batch)
                    _check_finite(terms, epoch)
                    optimizer.zero_grad(set_to_none=True)
                    sum(terms.values()).backward()
                    processes.average_gradients(parameters, world)
                    for group in optimizer.param_groups:
                        group["lr"] = learning_rate((epoch - 1) * steps + step, epochs * steps, lr)
                    optimizer.step()
                    for name, value in terms.items():
                        sums[name] = sums.get(name, 0.0) + value.detach()
            processes.share((*student.buffers(), *distiller.buffers()), world)
            means = {name: value.item() / steps for name, value in sums.items()}
            _check_finite(means, epoch)
            history.append({"epoch": epoch, "loss": sum(means.values())} | means)
            if validation is not None:
                scores = evaluate(student, validation.to(device))
                history[-1] |= {f"validation_{name}": score for name, score in scores.items()}
            if checkpoint is not None and rank == 0:
                checkpoints.save(checkpoint, settings, history, parts)
            ticker.set_postfix(loss=f"{history[-1]['loss']:.3f}", refresh=False)
            ticker.update()
    student.eval()
    held = [*distiller.buffers(), *([cache.logits, *cache.features.values()] if cache else [])]
    return Fitted(history, distiller, sum(t.numel() * t.element_size() for t in held))


@torch.no_grad()
def cached_outputs(teacher: nn.Module, images: Tensor,
                   stages: Sequence[str]) -> Outputs | None:
    """The teacher's logits and stages for all images, or None where they would fill the memory."""
    size = sum(math.prod(_shapes(teacher, images)[stage]) for stage in stages)
    if 4 * size * len(images) > CACHE_LIMIT:
        return None
    with Tap(teacher, stages) as tap:
        parts = [Outputs(*tap(part)) for part in images.split(EVALUATION_BATCH)]
    return Outputs(torch.cat([part.logits for part in parts]),
                   {name: torch.cat([part.features[name] for part in parts]) for name in stages})


def _batch(train: Split, index: Tensor, stream: torch.Generator, student: Tap, teacher: Tap,
           cache: Outputs | None, taught: bool, augment: Augment | None, mixup: bool,
           label_smoothing: float, epoch: int, share: slice) -> Batch:
    """What the distiller sees of the examples at `index`; `share` is this process's part."""
    images, target, soft = train.images[index], train.labels[index], None
    if augment is not None:
        images = augment(images, stream)
    if mixup:
        images, weight, partner = mix_images(images, stream)
    outputs = Outputs(*student(images[share]))
    if mixup or label_smoothing:
        classes = outputs.logits.shape[1]
        soft = F.one_hot(target, classes).to(outputs.logits.dtype)
        if mixup:
            soft = weight[:, None] * soft + (1 - weight[:, None]) * soft[partner]
        soft = ((1 - label_smoothing) * soft + label_smoothing / classes)[share]
    index = index[share]
    lesson = None
    if cache is not None:
        lesson = Outputs(cache.logits[index], {k: f[index] for k, f in cache.features.items()})
    elif taught:
        with torch.no_grad():
            lesson = Outputs(*teacher(images[share]))
    return Batch(outputs, lesson, target[share], soft, index, epoch)


def _distiller(method: str, student: nn.Module, teacher: nn.Module | None, train: Split, seed: int,
               options: dict[str, Any]) -> Distiller:
    classes = predict(student, train.images[:2]).shape[-1]
    low, high = int(train.labels.min()), int(train.labels.max())
    if low < 0 or high >= classes:
        raise ValueError(f"train.labels must lie in 0..{classes - 1}, as the student gives "
                         f"{classes} logits; they span {low}..{high}")
    probe = Probe(student=_shapes(student, train.images),
                  teacher=None if teacher is None else _shapes(teacher, train.images),
                  labels=train.labels, num_classes=classes, num_samples=len(train.labels))
    distiller = build(lambda: create(method, probe, **options), seed)
    if distiller.needs_teacher and teacher is None:
        raise ValueError(f"teacher is missing: method {method!r} needs one")
    if processes.join()[1] > 1 and any(len(train.labels) in b.shape for b in distiller.buffers()):
        raise ValueError(f"method {method!r} keeps state for each example and trains in one "
                         "process: start it without torchrun")
    return distiller


def _shapes(model: nn.Module, images: Tensor) -> dict[str, tuple[int, ...]]:
    """Shapes of the model's stages; none if it names no stages (logit methods need none)."""
    return stage_shapes(model, images[:2]) if hasattr(model, "stages") else {}


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[torch.Generator]:
    """A generator with this seed; torch's own random state too, until the block ends."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield generator(seed)


def _check_finite(values: Mapping[str, Tensor | float], epoch: int) -> None:
    """Raise if a value is not finite; tensors on a GPU are not read, which would stall it."""
    for name, value in values.items():
        if isinstance(value, Tensor):
            value = 0.0 if value.is_cuda else value.item()
        if not math.isfinite(value):
            raise FloatingPointError(f"{name!r} became {value} in epoch {epoch}: lower lr or the "
                                     "weight of a loss term")


def _check(train: Split, epochs: int, batch_size: int, lr: float, label_smoothing: float,
           world: int) -> None:
    images, labels = train
    if images.ndim != 4 or labels.ndim != 1 or len(images) != len(labels) or not len(labels):
        raise ValueError("train must hold images [n, c, h, w] and labels [n], n >= 1; got "
                         f"{tuple(images.shape)} and {tuple(labels.shape)}")
    if labels.dtype != torch.int64:
        raise ValueError(f"train.labels must be int64 class numbers, got {labels.dtype}")
    if not torch.isfinite(images).all():
        raise ValueError("train.images holds NaN or infinite values: check how they were made")
    for name, value in {"epochs": epochs, "batch_size": batch_size}.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number of 1 or more, got {value!r}")
    if not 0 < lr < math.inf:
        raise ValueError(f"lr must be a positive number, got {lr!r}")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must lie in [0, 1), got {label_smoothing!r}")
    if batch_size % world:
        raise ValueError(f"batch_size {batch_size} must be a multiple of the {world} processes")


def describe(value: Any) -> Any:
    """`value` in JSON terms: functions by name, networks and splits by class and fingerprint."""
    if isinstance(value, Mapping):
        return {str(name): describe(part) for name, part in value.items()}
    if isinstance(value, Split):
        return f"Split({len(value.labels)}):{records.fingerprint(*value)[:12]}"
    if isinstance(value, Tensor):
        return f"Tensor{tuple(value.shape)}:{records.fingerprint(value)[:12]}"
    if isinstance(value, nn.Module):
        return f"{type(value).__name__}:{records.fingerprint(*value.state_dict().values())[:12]}"
    if isinstance(value, (list, tuple)):
        return [describe(part) for part in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if hasattr(value, "func"):  # functools.partial
        return [describe(value.func), describe(value.args), describe(value.keywords)]
    return getattr(value, "__qualname__", type(value).__name__)


class _Task(NamedTuple):
    method: str
    seed: int

    def __str__(self) -> str:
        return f"{self.method}, seed {self.seed}"


def compare(methods: Mapping[str, Mapping[str, Any]], *, student: Callable[[], nn.Module],
            train: Split, evaluate_on: Split, seeds: Sequence[int],
            teacher: nn.Module | Mapping[int, nn.Module] | None = None,
            metrics: Callable[[nn.Module, nn.Module | None], Mapping[str, float]] | None = None,
            experiment: str = "comparison", folder: str | Path | None = None, resume: bool = False,
            keep: bool = False, workers: int | None = None, progress: bool = True,
            **common: Any) -> list[Run]:
    """Train every method for the same seeds and return one record a run.

    Paired: for a seed, all methods start from the same weights and see the same batches and
    augmentation. A run that fails is reported in a warning and left out; the others are kept.

    Args:
        methods: label -> what is special about it, e.g. `{"CE": {}, "KD": {"method": "kd",
            "temperature": 4.0}}`. Any argument of `fit`, and `teacher`, `student` and `train`.
        student: builds a fresh network.
        evaluate_on: the split behind the metrics "accuracy" and "loss": validation while you
            choose settings, test once at the end.
        seeds: e.g. `evidence.seeds(5)`.
        teacher: one network, or one for each seed.
        metrics: further results of a trained student and its teacher.
        experiment: name of the comparison in the records.
        folder: where finished runs are recorded, each as soon as it ends.
        resume: take runs that `folder` already holds, made by the same code, from there.
        keep: attach the trained networks as `run.student`.
        workers: processes; default one a core on a CPU, one on a GPU.
        common: arguments of `fit` for all methods.

    Returns:
        Runs in the order of `methods`, then `seeds`. `run.metrics` also holds "seconds" (wall
        clock of the training), "extra_parameters" (that the method trains besides the student)
        and "extra_bytes" (its buffers and cached teacher outputs).
    """
    if not methods or not seeds:
        raise ValueError("methods and seeds must not be empty")
    settings = {label: {"student": student, "train": train, "teacher": teacher, **common, **own}
                for label, own in methods.items()}
    data = records.fingerprint(*train, *evaluate_on)[:16]
    tasks = [_Task(label, seed) for label in methods for seed in seeds]
    described = {label: {name: describe(value) for name, value in own.items()
                         if name != "teacher"} for label, own in settings.items()}

    def blank(task: _Task) -> Run:
        config = described[task.method] | {
            "teacher": describe(_teacher(settings[task.method], task.seed))}
        versions, commit = records.environment()
        return Run(experiment, task.method, task.seed, config, {}, data=data,
                   code=records.code_fingerprint(), versions=versions, commit=commit)

    blanks = {task: blank(task) for task in tasks}
    finished: dict[_Task, Run] = {}
    if resume and folder is not None and (Path(folder) / experiment).is_dir() and not keep:
        stored = {(run.key, run.code): run for run in records.load(Path(folder) / experiment)}
        finished = {task: stored[run.key, run.code] for task, run in blanks.items()
                    if (run.key, run.code) in stored}

    registered = dict(METHODS)

    def one(task: _Task) -> tuple[_Task, dict[str, Any]]:
        return task, _train_one(task, settings[task.method], evaluate_on, metrics, registered)

    def collect(result: tuple[_Task, dict[str, Any]]) -> None:
        task, outcome = result
        run = blanks[task]
        run.metrics, run.history, run.seconds = (
            outcome["metrics"], outcome["history"], outcome["metrics"]["seconds"])
        if keep:
            run.student = build(settings[task.method]["student"], task.seed)
            run.student.load_state_dict(torch.load(io.BytesIO(outcome["weights"]),
                                                   weights_only=True))
            run.student.eval()
        finished[task] = run
        if folder is not None and processes.join()[0] == 0:
            records.save(run, folder)

    on_gpu = device_of(common.get("device") or train.images.device).type != "cpu"
    one_process = on_gpu or processes.join()[1] > 1
    run_parallel(one, [task for task in tasks if task not in finished],
                 workers=1 if one_process else workers, label=f"runs of {experiment}",
                 on_result=collect, progress=progress)
    return [finished[task] for task in tasks if task in finished]


def _teacher(settings: Mapping[str, Any], seed: int) -> nn.Module | None:
    teacher = settings["teacher"]
    if isinstance(teacher, Mapping):
        if seed not in teacher:
            raise ValueError(f"teacher has no network for seed {seed}: it holds "
                             f"{sorted(teacher)}")
        return teacher[seed]
    return teacher


def _train_one(task: _Task, settings: Mapping[str, Any], evaluate_on: Split,
               metrics: Callable | None, registered: Mapping[str, type]) -> dict[str, Any]:
    METHODS.update(registered)  # a worker lacks the methods that a notebook added
    options = dict(settings) | {"teacher": _teacher(settings, task.seed), "seed": task.seed}
    network = build(options.pop("student"), task.seed)
    start = time.perf_counter()
    fitted = fit(network, options.pop("train"), progress=False, **options)
    seconds = time.perf_counter() - start
    device = next(network.parameters()).device
    measured = evaluate(network, evaluate_on.to(device)) | {
        "seconds": seconds, "extra_bytes": fitted.extra_bytes,
        "extra_parameters": sum(p.numel() for p in fitted.distiller.parameters())}
    if metrics is not None:
        measured |= metrics(network, options["teacher"])
    weights = io.BytesIO()
    torch.save({name: value.cpu() for name, value in network.state_dict().items()}, weights)
    return {"metrics": measured, "history": fitted.history, "weights": weights.getvalue()}
