"""`train`: a comparison by names, from the laptop to several GPUs, with records of every run."""

from __future__ import annotations

import argparse
import ast
import functools
import importlib
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

HELP = "train teacher and students by name, compare them over seeds, record every run"

EPILOG = """\
data sets  {data}, or a folder with one folder of images for each class
networks   {models},
           those of torchvision (resnet18, mobilenet_v2, vit_b_16, swin_t ...), or module:function,
           a function without arguments of your own code that returns a network
methods    {methods}, or several joined by +
presets    {presets}
"""


def presets() -> dict[str, dict[str, Any]]:
    """Recipes by name: arguments of `fit`."""
    from kdlib import data
    from kdlib.engine import loop

    return {
        "quick": dict(epochs=20, batch_size=64, lr=2e-3, optimizer="adamw"),
        # Of RepDistiller (Tian et al., ICLR 2020) for CIFAR-100.
        "published": dict(
            epochs=240, batch_size=64, lr=0.05, weight_decay=5e-4, optimizer="sgd",
            schedule=loop.published_steps, augment=data.standard,
        ),
    }  # fmt: skip


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add = parser.add_argument
    add("--dataset", default="mnist-5k", metavar="NAME", help="default: mnist-5k, which is shipped")
    add("--size", type=int, metavar="PIXELS", help="side of the images; default: as they are")
    add("--student", required=True, metavar="NETWORK")
    several: dict[str, Any] = {"action": "append", "default": []}
    add("--teacher", **several, metavar="NETWORK",
        help="may be given several times: their mean probability teaches")  # fmt: skip
    add("--teacher-weights", **several, metavar="FILE",
        help="of a teacher, in the order of the teachers, instead of training it")  # fmt: skip
    add(
        "--pretrained",
        action="store_true",
        help="teachers of torchvision start from published weights",
    )
    add("--fresh-teachers", action="store_true", help="train another teacher for each seed")
    add("--method", **several, metavar="METHOD",
        help="may be given several times; the student alone is always trained; default: kd",
    )  # fmt: skip
    add("--set", **several, metavar="OPTION=VALUE", dest="settings",
        help="an option of the methods, e.g. temperature=4, or of one of them, crd.weight=0.8",
    )  # fmt: skip
    add("--preset", default="quick", metavar="NAME", help="recipe of all trainings; default: quick")
    add("--epochs", type=int, metavar="N")
    add("--teacher-epochs", type=int, metavar="N", help="default: as the students")
    add("--batch-size", type=int, metavar="N")
    add("--lr", type=float, metavar="RATE", help="the peak learning rate")
    add("--optimizer", choices=("adamw", "sgd", "muon"))
    add("--augment", choices=("none", "shift", "flip", "standard"))
    add("--precision", choices=("bf16",))
    add("--device", metavar="DEVICE", help="default: cuda where there is a GPU, else cpu")
    add("--compile", action="store_true", help="torch.compile, for methods on logits")
    add("--graphs", action="store_true", help="CUDA graphs: small networks get faster on a GPU")
    add("--seeds", type=int, default=5, metavar="N", help="default: 5, the least for a claim")
    add("--out", type=Path, default=Path("runs"), metavar="FOLDER", help="default: runs")
    add("--experiment", metavar="NAME",
        help="under which the runs are compared; default: the names of data and networks. Give "
             "one to each setting that is none of --set, e.g. to other --epochs",
    )  # fmt: skip
    add("--resume", action="store_true",
        help="go on: take finished runs from the folder, interrupted ones from their checkpoints",
    )  # fmt: skip
    add("--workers", type=int, metavar="N", help="processes; default: one a core, on a GPU one")
    add("--test", action="store_true", help="read the test split, too: once, at the very end")
    add("--export", action="store_true", help="write each method's first student for deployment")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    if {"-h", "--help"} & set(sys.argv[1:]):
        parser.epilog = names()


def names() -> str:
    """All names that the options take."""
    from kdlib import data, models
    from kdlib.distillers import METHODS

    def wrapped(found: Sequence[str]) -> str:
        lines, line = [], ""
        for name in found:
            if len(line) + len(name) > 80:
                lines.append(line)
                line = ""
            line += name + ", "
        return "\n           ".join([*lines, line]).rstrip(", ")

    return EPILOG.format(
        data=wrapped(list(data.KNOWN)),
        models=wrapped(list(models.NAMES)),
        methods=wrapped([name for name in METHODS if name != "ce"]),
        presets=wrapped(list(presets())),
    )


def main(arguments: argparse.Namespace) -> int:
    """Train and compare: 0 if every run finished, 1 if one failed."""
    from kdlib.engine import ranks

    rank, _ = ranks.join()
    say: Callable[..., None] = print if rank == 0 else lambda *parts: None
    plan = Plan(arguments)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            runs = plan.run(say)
        except (RuntimeError, FloatingPointError) as error:  # a teacher, or every run
            say(f"error: {error}")
            return 1
    ours = {
        str(w.message): w for w in told if issubclass(w.category, (UserWarning, RuntimeWarning))
    }
    for text in ours:
        say(f"warning: {text}")
    if rank == 0:
        plan.report(runs)
        if arguments.export:
            plan.export(runs)
    say(f"\nrecords: {plan.folder}; `python -m kdlib repeat FILE` runs one again")
    return 1 if any(issubclass(one.category, RuntimeWarning) for one in ours.values()) else 0


class Plan:
    """What the arguments ask for, checked before anything is trained."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        import torch

        from kdlib import data, inputs
        from kdlib.records import check_experiment

        self.arguments = arguments
        device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.data = data.load(arguments.dataset, size=arguments.size, device=device)
        self.recipe = self._recipe()
        self.student = self._constructor(arguments.student)
        self.teachers = [self._constructor(name, teacher=True) for name in arguments.teacher]
        self.methods = self._methods()
        inputs.whole("seeds", arguments.seeds)
        if len(arguments.teacher_weights) > len(self.teachers):
            raise ValueError("--teacher-weights must not be given more often than --teacher")
        if arguments.fresh_teachers and (len(self.teachers) != 1 or arguments.teacher_weights):
            raise ValueError("--fresh-teachers must go with one --teacher without weights")
        if arguments.experiment is not None:
            self.experiment = check_experiment(arguments.experiment)
            self.folder = arguments.out / self.experiment
            return
        teachers = " and ".join(map(_short, arguments.teacher)) or "no teacher"
        self.experiment = check_experiment(
            f"{_short(self.data.name)}, {teachers} to {_short(arguments.student)}"[:80].strip()
        )
        self.folder = arguments.out / self.experiment

    def _recipe(self) -> dict[str, Any]:
        from kdlib import data, inputs

        given, known = self.arguments, presets()
        recipe = known[inputs.choice("--preset", given.preset, tuple(known))]
        names = ("epochs", "batch_size", "lr", "optimizer", "precision")
        recipe |= {name: getattr(given, name) for name in names if getattr(given, name) is not None}
        if given.augment == "none":
            recipe.pop("augment", None)
        elif given.augment:
            recipe["augment"] = getattr(data, given.augment)
        return recipe

    def _constructor(self, name: str, teacher: bool = False) -> Callable[[], Any]:
        """The network of a name, or a function of the team's own code."""
        from kdlib import models

        if ":" in name:
            return _imported(name)
        channels, side, width = self.data.train.images.shape[1:]
        if side != width:
            raise ValueError(f"--dataset must hold square images, got {side} x {width}")
        pretrained = self.arguments.pretrained and teacher
        return models.by_name(
            name, in_channels=channels, num_classes=self.data.num_classes, image_size=side,
            pretrained=pretrained,
        )  # fmt: skip

    def _methods(self) -> dict[str, dict[str, Any]]:
        """The student alone, and every method with its options."""
        from kdlib.distillers import parts_of

        found: dict[str, dict[str, Any]] = {"alone": {}}
        names = self.arguments.method or (["kd"] if self.teachers else [])
        if names and not self.teachers:
            raise ValueError("--teacher must be given for methods that learn from one")
        options = [_option(text) for text in self.arguments.settings]
        for name in names:
            parts = parts_of(name)
            own: dict[str, Any] = {"method": name}
            for part, key, value in options:
                if len(parts) > 1 and part in parts:
                    own.setdefault(part, {})[key] = value
                elif part in ("", *parts):
                    own[key] = value
            chosen = {f"{part}.{key}" if part else key: value for part, key, value in options
                      if part in ("", *parts)}  # fmt: skip
            label = ", ".join([name, *(f"{key}={value}" for key, value in chosen.items())])
            found[label] = own
        unknown = {part for part, *_ in options} - {"", *(p for n in names for p in parts_of(n))}
        if unknown:
            raise ValueError(f"--set must name a method that is trained, got {', '.join(unknown)}")
        return found

    def run(self, say: Callable[..., None]) -> Any:
        """Train the teachers, then every method for every seed; the runs."""
        from kdlib import evidence
        from kdlib.experiments import compare

        given = self.arguments
        splits = {"validation": self.data.validation}
        if given.test:
            splits["test"] = self.data.test
        ways = {"compile": given.compile, "graphs": given.graphs}
        faster: dict[str, Any] = {name: True for name, chosen in ways.items() if chosen}
        self._rehearse(faster)
        return compare(
            self.methods,
            student=self.student,
            teacher=self._teacher(say),
            train=self.data.train,
            evaluate_on=splits,
            seeds=evidence.seeds(given.seeds),
            experiment=self.experiment,
            folder=given.out,
            resume=given.resume,
            checkpoints=self.folder / "checkpoints",
            workers=given.workers,
            **self.recipe,
            **faster,
        )

    def _rehearse(self, faster: dict[str, Any]) -> None:
        """Check every method with untrained networks, before a teacher is trained for a day."""
        from kdlib import distillers, training

        for label, own in self.methods.items():
            taught = distillers.needs_teacher(own.get("method", "ce"))
            lesson = {"teacher": training.build(self.teachers[0], 0)} if taught else {}
            settings = self.recipe | faster | own | lesson
            try:
                student = training.build(self.student, 0)
                training.fit(student, self.data.train, stop_after=0, progress=False, **settings)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{label!r}: {error}") from error

    def _teacher(self, say: Callable[..., None]) -> Any:
        from kdlib import models, training, weights
        from kdlib.engine.workers import threads

        if not self.teachers:
            return None
        epochs = {"epochs": self.arguments.teacher_epochs} if self.arguments.teacher_epochs else {}
        recipe = self.recipe | epochs
        if self.arguments.fresh_teachers:
            return training.fresh(self.teachers[0], self.data.train, **recipe)
        found = []
        for place, (name, constructor) in enumerate(zip(self.arguments.teacher, self.teachers)):
            if place < len(self.arguments.teacher_weights):
                network = weights.load(constructor, self.arguments.teacher_weights[place])
            else:
                network = training.build(constructor, place)
            network = network.to(self.data.train.images.device)
            if place >= len(self.arguments.teacher_weights):
                file = self.folder / "checkpoints" / f"teacher-{place + 1}.pt"
                if not self.arguments.resume:
                    file.unlink(missing_ok=True)
                file.parent.mkdir(parents=True, exist_ok=True)
                with threads(1):  # as its students, whose records repeat this training
                    training.fit(network, self.data.train, seed=place, checkpoint=file, **recipe)
            score = training.evaluate(network, self.data.validation)["accuracy"]
            say(f"teacher {name}: {score:.1f} % of the validation images")
            found.append(network)
        if len(found) == 1:
            return found[0]
        return training.build(functools.partial(models.Ensemble, found), 0)

    def report(self, runs: Any) -> None:
        """Tables, and a claim for each method where there are enough seeds."""
        from kdlib import evidence

        for split in ("validation", "test")[: 1 + self.arguments.test]:
            metric = f"{split} accuracy"
            if self.arguments.seeds < 2:
                for run in runs:
                    print(
                        f"{run.method}: {metric} {run.metrics[metric]:.1f} %, one seed: no interval"
                    )
                continue
            print(f"\n{evidence.comparison(runs, 'alone', metric=metric)}")
            for method in runs.methods[1:]:
                if len(runs.of(method)) >= 5:
                    text = f"{method} beats the student alone, {split}"
                    evidence.claim(text, runs.paired(method, "alone", metric))

    def export(self, runs: Any) -> None:
        """Each method's student of the first seed as a file that runs without its code."""
        from kdlib import export, weights

        for method in runs.methods:
            seed, run = next(iter(runs.of(method).items()))
            file = self.folder / "checkpoints" / run.filename.replace(".json", ".pt")
            network = weights.load(self.student, file)
            path = self.folder / f"{method.replace('+', '-')}-seed{seed}.pt2"
            export.export(network, self.data.validation.images[:1], path)
            found = export.check(network, path, self.data.validation)
            print(
                f"{path}: {found['accuracy']:.1f} % of the validation images, the network "
                f"{found['original_accuracy']:.1f} %"
            )


def _short(name: str) -> str:
    """A name for folders: of a path its last part, of `module:function` the function."""
    last = name.replace("\\", "/").rstrip("/").split("/")[-1].split(":")[-1]
    return "".join(sign if sign.isalnum() or sign in "-_ ." else "-" for sign in last) or "data"


def _option(text: str) -> tuple[str, str, Any]:
    """("crd", "weight", 0.8) of "crd.weight=0.8"; ("", "temperature", 4) of "temperature=4"."""
    name, equals, value = text.partition("=")
    part, _, key = name.strip().rpartition(".")
    if not equals or not key.isidentifier():
        raise ValueError(f"--set must be OPTION=VALUE or METHOD.OPTION=VALUE, got {text!r}")
    try:
        return part, key, ast.literal_eval(value.strip())
    except (ValueError, SyntaxError):
        return part, key, value.strip()


def _imported(name: str) -> Callable[[], Any]:
    """`module:function` of the code below the working folder."""
    module, _, path = name.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found: Any = importlib.import_module(module)
        return functools.reduce(getattr, path.split("."), found)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"{name} cannot be imported ({error}): give module:function of a file in this folder, "
            "without .py"
        ) from error
