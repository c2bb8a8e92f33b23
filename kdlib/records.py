"""A training run as a small JSON file: what was run, on what, and what came out.

Records are the only way a number reaches a report. They are plain JSON (never pickled), written
atomically, and carry what a reader needs to run the same thing again.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import tempfile
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, Iterable

FORMAT = 1


@dataclass
class Run:
    """One training run.

    Attributes:
        experiment: the name under which runs are compared.
        method: the row of the comparison, e.g. "KD, T=4".
        seed: initial weights, batch order and augmentation follow from it.
        config: everything else that was chosen, as JSON values.
        metrics: results by name; accuracies in percent, losses in nats.
        history: one dictionary an epoch.
        seconds: wall-clock time of the training.
        data: fingerprint of the training and evaluation tensors.
        code: fingerprint of the package's source.
        versions: Python and library versions, processor.
        commit: git commit of the working folder, with "+" if it has uncommitted changes.
        student: the trained network if it was asked for; it is never written.
    """

    experiment: str
    method: str
    seed: int
    config: dict[str, Any]
    metrics: dict[str, float]
    history: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    data: str = ""
    code: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    commit: str = ""
    student: Any = field(default=None, repr=False, compare=False)

    @property
    def key(self) -> str:
        """Names the run: the same experiment, method, seed, settings and data give the same key."""
        parts = [self.experiment, self.method, self.seed, self.config, self.data]
        return fingerprint(json.dumps(parts, sort_keys=True))[:12]

    @property
    def filename(self) -> str:
        slug = "".join(c if c.isalnum() else "-" for c in self.method.lower()).strip("-")
        return f"{slug}-seed{self.seed}-{self.key}.json"


_STORED = tuple(f.name for f in fields(Run) if f.name != "student")


def write_atomically(path: str | Path, content: str | bytes) -> Path:
    """Write a file so that a reader finds the old content or the new, never half of it.

    The bytes go to a temporary file in the same folder, reach the disk, then replace `path`.

    Raises:
        OSError: the folder cannot be written or the disk is full; `path` is left as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(error.errno, f"{error.strerror}; nothing was overwritten. Free some "
                          "space or choose another folder", str(path)) from error
        raise
    return path


def _umask() -> int:
    """The permission bits that new files do not get; `mkstemp` keeps a file to its owner."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def save(run: Run, folder: str | Path) -> Path:
    """Write `run` to `folder/experiment/`, and return the file's path."""
    content = {"format": FORMAT} | {name: getattr(run, name) for name in _STORED}
    try:
        text = json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False)
    except ValueError as error:
        raise ValueError(f"run {run.method!r}, seed {run.seed} holds a value that JSON cannot "
                         f"({error}): check its metrics for NaN") from error
    return write_atomically(Path(folder) / run.experiment / run.filename, text + "\n")


def load(folder: str | Path) -> list[Run]:
    """Read every record below `folder`, sorted by experiment, method and seed.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: a file is not a record; the message names it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"folder {str(folder)!r} does not exist: no runs were recorded "
                                "there")
    runs = [read(path) for path in sorted(folder.rglob("*.json"))]
    return sorted(runs, key=lambda run: (run.experiment, run.method, run.seed))


def read(path: str | Path) -> Run:
    """Read one record."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if content.pop("format") != FORMAT:
            raise ValueError("it has another format version")
        if set(content) != set(_STORED):
            raise ValueError(f"its fields differ from a record's: {set(content) ^ set(_STORED)}")
        return Run(**content)
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{path} is not a run record ({error!r}): move it out of the folder or "
                         "run the experiment again") from error


def fingerprint(*parts: Any) -> str:
    """SHA-256 (hex) of strings, bytes and tensors: equal content, equal fingerprint."""
    digest = hashlib.sha256()
    for part in parts:
        if hasattr(part, "detach"):
            array = part.detach().cpu().contiguous().numpy()
            digest.update(f"{array.dtype}{array.shape}".encode())
            part = array.tobytes()
        digest.update(part if isinstance(part, bytes) else str(part).encode())
    return digest.hexdigest()


@cache
def code_fingerprint() -> str:
    """Fingerprint of the package's own source files."""
    folder = Path(__file__).parent
    files: Iterable[Path] = sorted(folder.rglob("*.py"))
    return fingerprint(*(f"{f.relative_to(folder)}\n{f.read_text('utf-8')}" for f in files))[:16]


@cache
def environment() -> tuple[dict[str, str], str]:
    """Library versions with the processor, and the git commit of the working folder."""
    import numpy
    import torch
    import torchvision
    versions = {"python": platform.python_version(), "torch": torch.__version__,
                "torchvision": torchvision.__version__, "numpy": numpy.__version__,
                "machine": platform.machine(), "system": platform.system()}

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], capture_output=True, text=True, timeout=20)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        commit = git("rev-parse", "--short=12", "HEAD")
        commit += "+" if commit and git("status", "--porcelain") else ""
    except (OSError, subprocess.SubprocessError):
        commit = ""  # no git here: the code fingerprint still names the code
    return versions, commit

