"""Distillation between families: a CNN, a ViT and an MLP-Mixer teach one another (notebook 5).

Composites of two digits, 28 x 28, a hundred classes; teachers learn from other digits than
students. Teachers are drawn anew for every seed. Each part takes its settings from the records of
the parts before it, so they are recorded in the order of `PARTS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
import torch
from torch import nn

from kdlib import analysis, data, evidence, training
from kdlib.data import Split
from kdlib.experiments import compare, over_seeds
from kdlib.models import ConvNet, Mixer, ViT
from kdlib.records import Runs
from kdlib.studies import SEEDS, options, read

FAMILIES = ("CNN", "ViT", "Mixer")
PATCHES: dict[str, Any] = dict(patch=7, num_classes=100)
BIG: dict[str, partial[Any]] = {
    "CNN": partial(ConvNet, (16, 32, 64, 64), num_classes=100),
    "ViT": partial(ViT, 64, 4, **PATCHES),
    "Mixer": partial(Mixer, 64, 4, **PATCHES),
}
SMALL: dict[str, partial[Any]] = {
    "CNN": partial(ConvNet, (4, 8, 16, 16), num_classes=100),
    "ViT": partial(ViT, 48, 4, **PATCHES),
    "Mixer": partial(Mixer, 32, 4, **PATCHES),
}
STAGES = (0, 1, 2, 3)  # the four that are compared and that get a branch
COMMON: dict[str, Any] = dict(batch_size=64, weight_decay=0.01)
TOKENS: dict[str, Any] = dict(COMMON, optimizer="muon")  # with AdamW alone a ViT learns little
LESSONS: dict[str, dict[str, Any]] = {
    "CNN": dict(COMMON, epochs=3, lr=6e-3),
    "ViT": dict(TOKENS, epochs=4, lr=3e-3),
    "Mixer": dict(TOKENS, epochs=4, lr=3e-3),
}
EPOCHS = {"CNN": 6, "ViT": 4, "Mixer": 5}
LONGER = {"CNN": 14, "ViT": 6, "Mixer": 10}  # KD with the compute of OFA, rounded up
RATES = {"CNN": (0.01, 0.02, 0.04, 0.08)} | dict.fromkeys(
    ("ViT", "Mixer"), (0.004, 0.008, 0.016, 0.032)
)
TRIES: dict[str, tuple[str, tuple[float, ...], dict[str, Any]]] = {
    "FitNet": ("weight", (0.1, 1.0, 10.0), dict(method="hint", stage=1, normalise=True)),
    "CC": ("weight", (0.02, 0.2, 2.0), dict(method="cc")),
    "RKD": ("weight", (0.1, 0.3, 1.0), dict(method="rkd")),
    "CRD": ("weight", (0.3, 1.0, 3.0), dict(method="crd", bank=False)),
    "KD": ("temperature", (2.0, 4.0, 8.0), dict(method="kd")),
    "DKD": ("beta", (1.0, 2.0, 4.0), dict(method="dkd", warmup=1)),
    "DIST": ("temperature", (1.0, 2.0, 4.0), dict(method="dist", beta=2.0, gamma=2.0)),
    "OFA": (
        "temperature", (2.0, 4.0, 8.0),
        dict(method="ofa", stage=STAGES, weight=0.9, ce_weight=0.1, branch_weight=0.25),
    ),
}  # fmt: skip
HINTS, LOGITS = ("FitNet", "CC", "RKD", "CRD"), ("KD", "DKD", "DIST", "OFA")
LABELS_ONLY = ("weight", (0.1, 0.3, 1.0), dict(method="branches", stage=STAGES))
PAIRS = tuple((t, s) for s in FAMILIES for t in FAMILIES if t != s)
CLOSELY = (("CNN", "ViT"), ("ViT", "CNN"))  # for what is too long for all pairs


def composites(part: str) -> Split:
    """The images of a role: "teachers", "students", "validation", "test"."""
    digits = data.load("mnist-5k")
    source, count, seed = {
        "teachers": (digits.train.take(slice(0, 2200)), 30_000, 1),
        "students": (digits.train.take(slice(2200, None)), 8000, 2),
        "validation": (digits.validation, 2000, 3),
        "test": (digits.test, 3000, 4),
    }[part]
    return data.two_digits(source, count, seed=seed, shift=3)


def teacher(family: str) -> partial:
    """A big network of the family, trained anew for every seed."""
    return training.fresh(BIG[family], composites("teachers"), **LESSONS[family])


def recipe(student: str) -> dict[str, Any]:
    """Arguments of a student's training, whatever it learns from."""
    return dict(COMMON if student == "CNN" else TOKENS, student=SMALL[student],
                epochs=EPOCHS[student])  # fmt: skip


def tries(name: str, student: str, row: str) -> dict[str, dict[str, Any]]:
    """{"row | value": arguments} of everything that is tried for a method."""
    option, values, common = LABELS_ONLY if name == "labels only" else TRIES[name]
    return options(row, option, values, **recipe(student), **common, lr=rate(student))


def best(part: str, option: str, *rows: str) -> float:
    """The tried value with the highest accuracy, as a mean over several rows of a recorded part."""
    recorded = read("cross_architecture")
    if part not in recorded:
        command = f"python -m kdlib record cross_architecture {part!r}"
        raise ValueError(f"settings come from part {part!r}, which is not recorded: run {command}")
    runs = recorded[part].runs
    means: dict[float, list[float]] = {}
    for method in runs.methods:
        row, _, value = method.rpartition(" | ")
        if row in rows:
            means.setdefault(float(value), []).append(runs.values(method).mean())
    return max(means, key=lambda value: float(np.mean(means[value])))


def rate(student: str) -> float:
    """The learning rate at which the student does best alone."""
    return best("learning rate", "lr", f"{student} from scratch")


def chosen(name: str, student: str) -> dict[str, Any]:
    """Arguments of a method for a student; the setting is the best one on average over teachers."""
    if name == "scratch":
        return recipe(student) | dict(lr=rate(student))
    option, _, common = LABELS_ONLY if name == "labels only" else TRIES[name.partition(",")[0]]
    rows = [f"{student}: labels only"] if name == "labels only" else [
        f"{t} → {s}: {name.partition(',')[0]}" for t, s in PAIRS if s == student
    ]  # fmt: skip
    found = recipe(student) | common | {option: best("weights", option, *rows), "lr": rate(student)}
    if name == "KD, longer":
        longer = [f"{t} → {s}: KD, longer" for t, s in PAIRS if s == student]
        found |= dict(epochs=LONGER[student], lr=best("weights", "lr", *longer))
    return found


def taught(
    family: str | None, methods: dict[str, dict[str, Any]], on: str, seeds: Sequence[int],
    experiment: str, **keep: Any,
) -> Runs:  # fmt: skip
    """Students of one teacher's family, or of labels alone."""
    if family is not None:
        keep["teacher"] = teacher(family)
    return compare(
        methods, student=SMALL["CNN"], train=composites("students"), evaluate_on=composites(on),
        seeds=seeds, experiment=experiment, **keep,
    )  # fmt: skip


# The parts


def learning_rate(**keep: Any) -> Runs:
    """At which learning rate does each student do best from scratch?"""
    methods: dict[str, dict[str, Any]] = {}
    for student in FAMILIES:
        methods |= options(f"{student} from scratch", "lr", RATES[student], **recipe(student))
    return taught(None, methods, "validation", SEEDS, "learning rate", **keep)


def weights(**keep: Any) -> Runs:
    """Which setting suits each method best, with three tries for every one?"""
    names = {s: tries("labels only", s, f"{s}: labels only") for s in FAMILIES}
    alone = {label: own for methods in names.values() for label, own in methods.items()}
    found = taught(None, alone, "validation", SEEDS[:1], "weights, no teacher", **keep)
    for family in FAMILIES:
        methods: dict[str, dict[str, Any]] = {}
        for student in FAMILIES:
            if student != family:
                row = f"{family} → {student}: "
                for name in TRIES:
                    methods |= tries(name, student, row + name)
                common = recipe(student) | dict(method="kd", epochs=LONGER[student])
                lr = rate(student)
                methods |= options(row + "KD, longer", "lr", (lr / 2, lr, 2 * lr), **common)
        experiment = f"weights, {family} teachers"
        found += taught(family, methods, "validation", SEEDS[:1], experiment, **keep)
    return found


def row(family: str, student: str) -> dict[str, dict[str, Any]]:
    """The methods of one row of the table; within a family the hints and KD alone."""
    names = [*HINTS, "KD"] if family == student else [*TRIES, "KD, longer"]
    return {f"{family} → {student} | {name}": chosen(name, student) for name in ("scratch", *names)}


def beside(student: nn.Module, teacher: nn.Module | None, *, trial: Split) -> dict[str, float]:
    """CKA of student and teacher, the mean over equally deep stages, and the teacher's accuracy."""
    assert teacher is not None
    found = analysis.network_cka(student, teacher, trial.images, STAGES)
    accuracy = training.evaluate(teacher, trial)["accuracy"]
    return {"cka": found.diagonal().mean().item(), "teacher's validation accuracy": accuracy}


def table(**keep: Any) -> Runs:
    """What does each method gain for each pair of teacher and student?"""
    alone = {f"{s} | labels only": chosen("labels only", s) for s in FAMILIES}
    found = taught(None, alone, "test", evidence.seeds(5), "table, no teacher", **keep)
    measure = partial(beside, trial=composites("validation").take(slice(0, 1000)))
    for family in FAMILIES:
        methods = {label: own for s in FAMILIES for label, own in row(family, s).items()}
        experiment = f"table, {family} teachers"
        found += taught(
            family, methods, "test", evidence.seeds(5), experiment, metrics=measure, **keep
        )
    return found


def convergence(**keep: Any) -> Runs:
    """Does OFA end higher than KD after four times as many epochs, or does it only learn faster?"""
    trial, found = composites("validation").take(slice(0, 1000)), Runs()
    for family, student in CLOSELY:
        methods = {
            f"{family} → {student} | {name}": chosen(name, student)
            | dict(epochs=4 * EPOCHS[student], validation=trial)
            for name in ("scratch", "KD", "DKD", "OFA")
        }
        experiment = f"convergence, {family} teachers"
        found += taught(family, methods, "test", evidence.seeds(5), experiment, **keep)
    return found


def ablation(**keep: Any) -> Runs:
    """What do the exponent gamma and the number of branches, the deepest first, do for OFA?"""
    found = Runs()
    for family, student in CLOSELY:
        label, ofa = f"{family} → {student}", chosen("OFA", student)
        methods = {
            f"{label}: branches | {count}": ofa | dict(stage=STAGES[len(STAGES) - count :])
            for count in range(len(STAGES) + 1)
        } | options(f"{label}: gamma", "gamma", (0.5, 1.5, 2.0), **ofa)
        experiment = f"ablation, {family} teachers"
        found += taught(family, methods, "validation", SEEDS, experiment, **keep)
    return found


def alike(seed: int, *, settings: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """CKA of stage i with stage j, for two students of each family: {"A × B": {"i, j": ...}}."""
    train, images = composites("students"), composites("validation").images
    networks = {
        family: [
            training.trained(
                training.build(SMALL[family], own), train, seed=own, **settings[family]
            )
            for own in (2 * seed, 2 * seed + 1)
        ]
        for family in FAMILIES
    }
    found = {}
    for one, other in combinations_with_replacement(FAMILIES, 2):
        every = [(a, b) for a in networks[one] for b in networks[other]]
        maps = [
            analysis.network_cka(a, b, images, STAGES)
            for a, b in ([tuple(networks[one])] if one == other else every)
        ]
        mean = torch.stack(maps).mean(0)
        found[f"{one} × {other}"] = {f"{i}, {j}": mean[i, j].item() for i in STAGES for j in STAGES}
    return found


def similarity(**keep: Any) -> Runs:
    """How alike are the stages of two students, of one family and of two?"""
    settings = {family: chosen("scratch", family) for family in FAMILIES}
    for own in settings.values():
        del own["student"]
    function = partial(alike, settings=settings)
    return over_seeds(function, evidence.seeds(5), experiment="similarity", **keep)


PARTS = (learning_rate, weights, similarity, table, convergence, ablation)
