"""A run as a small JSON file: what ran, on what, what came out, and how to repeat it.

Records are the only way a number reaches a report. They are plain JSON (never pickled), written
atomically. A record identifies what ran by content (see `identity`), and holds a recipe from which
a fresh process repeats it (see `recipes`), or the reason why none exists.
"""

from __future__ import annotations

import ast
import hashlib
import json
import platform
import re
import subprocess
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch

from kdlib.engine.files import write_atomically

FORMAT = 3
METRIC = "accuracy"

# What changes numbers: a record made by other code in these places is stale.
CODE = (
    "analysis", "augment.py", "data.py", "distillers", "domains.py", "efficiency.py",
    "engine/loop.py", "engine/optimizers.py", "engine/placement.py", "engine/ranks.py",
    "experiments.py", "folders.py", "inputs.py", "language", "losses.py", "models", "stages.py",
    "training.py",
)  # fmt: skip


@dataclass
class Run:
    """One run of an experiment.

    Attributes:
        experiment: the name under which runs are compared.
        method: the row of the comparison, e.g. "KD, T=4".
        seed: initial weights, batch order and augmentation follow from it.
        config: what was chosen, in words for a reader, as JSON values.
        metrics: results by name; accuracies in percent, losses in nats.
        history: one dictionary an epoch.
        seconds: wall-clock time of the run.
        teacher_seconds: of training its seed's own teacher, which other methods may share.
        threads: CPU threads that it used.
        identity: SHA-256 of everything that ran, the seed and the data included.
        setting: the same without the seed and what is drawn anew with it (networks).
        data: of the evaluation data.
        code: fingerprint of the kit's code that changes numbers.
        versions: Python and library versions, system, processor.
        commit: git commit of the working folder, with "+" if it has uncommitted changes.
        repeat: a recipe, or None.
        obstacle: why there is no recipe.
        kept: what the run was asked to keep, e.g. the trained network; it is never written.
    """

    experiment: str
    method: str
    seed: int
    config: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    teacher_seconds: float = 0.0
    threads: int = 1
    identity: str = ""
    setting: str = ""
    data: str = ""
    code: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    commit: str = ""
    repeat: Any = None
    obstacle: str = ""
    kept: Any = field(default=None, repr=False, compare=False)

    @property
    def stale(self) -> bool:
        """Whether other code than the present one made it."""
        return self.code != code_fingerprint()

    @property
    def filename(self) -> str:
        """Of the record, below the folder of its experiment."""
        slug = re.sub(r"[^a-z0-9]+", "-", self.method.lower()).strip("-")[:60]
        label = hashlib.sha256(self.method.encode()).hexdigest()[:6]  # two labels may share a slug
        return f"{slug or 'run'}-{label}-seed{self.seed}-{self.identity[:12]}.json"

    def __str__(self) -> str:
        return f"{self.experiment}: {self.method}, seed {self.seed}"


class Runs(Sequence[Run]):
    """Runs of one or several methods, addressed by method and metric, paired by seed."""

    def __init__(self, runs: Iterable[Run] = ()):
        self._runs = list(runs)

    @overload
    def __getitem__(self, place: int) -> Run: ...
    @overload
    def __getitem__(self, place: slice) -> Runs: ...
    def __getitem__(self, place: int | slice) -> Run | Runs:
        return Runs(self._runs[place]) if isinstance(place, slice) else self._runs[place]

    def __len__(self) -> int:
        return len(self._runs)

    def __iter__(self) -> Iterator[Run]:
        return iter(self._runs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Runs) and self._runs == other._runs

    def __add__(self, other: Iterable[Run]) -> Runs:
        return Runs([*self._runs, *other])

    def __repr__(self) -> str:
        return f"Runs({len(self)} of {', '.join(self.methods) or 'no method'})"

    @property
    def methods(self) -> list[str]:
        """The methods, in their order."""
        return list(dict.fromkeys(run.method for run in self))

    def of(self, method: str) -> dict[int, Run]:
        """{seed: run} of one method, by rising seed.

        Raises:
            ValueError: there is none, or its runs were made with different settings.
        """
        found = [run for run in self if run.method == method]
        if not found:
            raise ValueError(
                f"method must be one of {', '.join(self.methods) or 'no runs'}; got {method!r}"
            )
        by_seed = {run.seed: run for run in sorted(found, key=lambda run: run.seed)}
        for run in found:
            other = next((o for o in found if _differ(run, o)), None)
            if other is None and by_seed[run.seed] is not run:
                other = by_seed[run.seed]
            if other is not None:
                files = " or ".join(sorted((run.filename, other.filename)))
                raise ValueError(
                    f"method {method!r} mixes runs: {_difference(run, other)}. If you changed it, "
                    f"delete the old records ({files}); else give each setting a method or an "
                    "experiment of its own"
                )
        return by_seed

    def kept(self, method: str) -> dict[int, Any]:
        """{seed: what the run kept} of one method, for example its trained network."""
        return {seed: run.kept for seed, run in self.of(method).items()}

    def values(self, method: str, metric: str = METRIC) -> np.ndarray:
        """A metric of one method, one value a seed, by rising seed."""
        return np.array([_metric(run, metric) for run in self.of(method).values()])

    def paired(self, method: str, baseline: str, metric: str = METRIC) -> np.ndarray:
        """Differences `method - baseline` of a metric, one for each seed that both have.

        Raises:
            ValueError: fewer than two common seeds, other evaluation data, mixed settings.
        """
        ours, theirs = self.of(method), self.of(baseline)
        common = sorted(ours.keys() & theirs.keys())
        if len(common) < 2:
            raise ValueError(
                f"methods {method!r} and {baseline!r} must share at least two seeds, got "
                f"{len(common)}"
            )
        for seed in common:
            if ours[seed].data != theirs[seed].data:
                raise ValueError(
                    f"methods {method!r} and {baseline!r} must be evaluated on the "
                    f"same data, but differ for seed {seed}"
                )
        return np.array([_metric(ours[s], metric) - _metric(theirs[s], metric) for s in common])


def _metric(run: Run, metric: str) -> float:
    if metric not in run.metrics:
        raise ValueError(
            f"metric must be one of {', '.join(run.metrics)}; got {metric!r} for {run}"
        )
    return run.metrics[metric]


def _differ(run: Run, other: Run) -> bool:
    return (run.experiment, run.setting, run.config) != (
        other.experiment, other.setting, other.config)  # fmt: skip


def _difference(run: Run, other: Run) -> str:
    """Where two runs of one method differ, for a message."""
    if run.experiment != other.experiment:
        return f"of the experiments {run.experiment!r} and {other.experiment!r}"
    for name in {**run.config, **other.config}:
        ours, theirs = run.config.get(name), other.config.get(name)
        if ours != theirs:
            # Files come in the order of their hashed names, and the message should not vary.
            return f"{name} is {' and '.join(sorted(map(repr, (ours, theirs))))}"
    if run.setting != other.setting:
        return "what ran differs (a function, a network or data)"
    return f"two for seed {run.seed}"


# Files

_STORED = tuple(f.name for f in fields(Run) if f.name != "kept")


def check_experiment(name: str) -> str:
    """The name of an experiment, fit for a folder on every system."""
    if not isinstance(name, str) or not re.fullmatch(r"[\w][\w .,+=()-]{0,79}", name):
        raise ValueError(
            "experiment must be up to 80 letters, digits, spaces and -_.,+=() that begin with a "
            f"letter or digit, got {name!r}"
        )
    return name


def save(run: Run, folder: str | Path) -> Path:
    """Write `run` to `folder/experiment/`, and return the file's path.

    Raises:
        ValueError: it holds a value that JSON does not, such as NaN.
        OSError: the folder cannot be written.
    """
    content = {"format": FORMAT} | {name: getattr(run, name) for name in _STORED}
    try:
        text = json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{run} holds a value that JSON does not ({error}): it is not recorded, "
            "check its metrics for NaN"
        ) from error
    return write_atomically(
        Path(folder) / check_experiment(run.experiment) / run.filename, text + "\n"
    )


def load(folder: str | Path) -> Runs:
    """Read every record below `folder`, sorted by experiment, method and seed.

    Runs of older code are in it; a warning counts them, and `run.stale` says which.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: a file is not a record; the message names it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"folder {str(folder)!r} does not exist: no runs were recorded there"
        )
    runs = [read(path) for path in sorted(folder.rglob("*.json"))]
    stale = sum(run.stale for run in runs)
    if stale:
        warnings.warn(
            f"{stale} of {len(runs)} runs in {str(folder)!r} were made by other code of the kit",
            stacklevel=2,
        )
    return Runs(sorted(runs, key=lambda run: (run.experiment, run.method, run.seed)))


def read(path: str | Path) -> Run:
    """Read one record, or raise a ValueError that names the file."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if content.pop("format", None) != FORMAT:
            raise ValueError("it has another format version")
        if set(content) != set(_STORED):
            raise ValueError(f"its fields differ from a record's: {set(content) ^ set(_STORED)}")
        kinds: dict[str, Any] = {
            "metrics": dict,
            "config": dict,
            "history": list,
            "versions": dict,
            "seed": int,
        }
        kinds |= {"threads": int, "method": str, "experiment": str, "repeat": (dict, type(None))}
        for name, kind in kinds.items():
            if not isinstance(content[name], kind):
                raise ValueError(f"its {name} is of another type")
        return Run(**content)
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read ({error.strerror}): give the *.json file of a run"
        ) from error
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(
            f"{path} is not a run record ({error!r}): move it out of the folder or "
            "run the experiment again"
        ) from error


# What the numbers depend on besides the experiment


@cache
def code_fingerprint() -> str:
    """Fingerprint of the kit's code that changes numbers."""
    folder = Path(__file__).parent
    paths = [folder / place for place in CODE]
    return fingerprint(
        [one for path in paths for one in (sorted(path.rglob("*.py")) if path.is_dir() else [path])]
    )


def fingerprint(paths: Iterable[Path]) -> str:
    """16 signs of the code of modules of the kit; comments and docstrings do not count."""
    folder, found = Path(__file__).parent, hashlib.sha256()
    for path in paths:
        tree = ast.parse(path.read_text("utf-8"))
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list) and body and _is_text(body[0]):
                node.body = body[1:] or [ast.Pass()]  # type: ignore[attr-defined]
        found.update(f"{path.relative_to(folder).as_posix()}\n{ast.dump(tree)}\n".encode())
    return found.hexdigest()[:16]


def _is_text(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


@cache
def versions() -> dict[str, str]:
    """Versions of Python and the libraries, the system, and the processor with its vector unit."""
    import PIL
    import torchvision

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
        "pillow": PIL.__version__,
        "system": platform.system(),
        "machine": platform.machine(),
        "processor": f"{_processor()}, {torch.backends.cpu.get_cpu_capability()}",
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
    }


def _processor() -> str:
    """The processor's name; Linux tells it in a file, other systems through `platform`."""
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8", errors="replace")
    except OSError:
        text = ""
    found = re.search(r"model name\s*: (.*)", text)
    return found[1].strip() if found else platform.processor() or "unknown"


@cache
def commit() -> str:
    """The git commit of the working folder, "+" behind it for uncommitted changes; "" without."""

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", *words], capture_output=True, text=True, timeout=20, check=False
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        found = git("rev-parse", "--short=12", "HEAD")
        return found + ("+" if found and git("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return ""
