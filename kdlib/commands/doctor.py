"""Look at this machine: what is installed, what is missing and what to do, how long things take."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from kdlib.engine import notebooks
from kdlib.engine.environment import one_thread_environment, quiet_environment

HELP = "look at this machine, advise on what is missing"

OK, NOTE, MISSING = "ok", "note", "MISSING"
GIB = 2**30

# Training steps a second of `calibrate` on the machine whose times the notebooks store.
REFERENCE_STEPS = 330.0


def configure(parser: argparse.ArgumentParser) -> None:
    """`doctor` has no options."""


def main(arguments: argparse.Namespace) -> int:
    """Print the report: 1 if something is missing that the notebooks need."""
    findings = report()
    print(format_report(findings))
    return 1 if any(finding.state == MISSING for finding in findings) else 0


class Finding(NamedTuple):
    """One line of the report; `advice` says what to do about a note or a missing thing."""

    state: str  # OK, NOTE (works without) or MISSING (the kit does not work)
    name: str
    text: str
    advice: str = ""


def packages() -> list[Finding]:
    """Python, and each dependency against the lower bound of pyproject.toml."""
    remedy = f"{sys.executable} -m pip install -r requirements.txt"
    version = sys.version.split()[0]
    found = [
        Finding(OK, "Python", version)
        if sys.version_info >= (3, 11)
        else Finding(MISSING, "Python", version, "install Python 3.11 or newer, make a new .venv")
    ]
    try:
        wanted = metadata.requires("kdlib") or []
    except metadata.PackageNotFoundError:
        return [*found, Finding(MISSING, "kdlib", "is not installed", remedy)]
    for requirement in wanted:
        bounded = re.match(r"([\w-]+)>=([\w.]+)", requirement)
        if bounded and "extra ==" not in requirement:  # what only developers need
            found.append(_package(bounded[1], bounded[2], remedy))
    return found


def _package(name: str, bound: str, remedy: str) -> Finding:
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Finding(MISSING, name, "is not installed", remedy)
    if _release(version) < _release(bound):
        return Finding(MISSING, name, f"{version}, but {bound} or newer is needed", remedy)
    return Finding(OK, name, version)


def _release(version: str) -> tuple[int, ...]:
    """The numbers of a version, (2, 14, 1) for 2.14.1+cpu."""
    return tuple(int(part) for part in re.findall(r"\d+", re.split(r"[^\d.]", version)[0]))


def device() -> list[Finding]:
    """The accelerator, if any, and the threads that torch uses."""
    import torch

    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / GIB
        text = f"{torch.cuda.get_device_name(0)} (cuda), {memory:.0f} GiB"
    elif torch.backends.mps.is_available():
        text = "Apple GPU (mps)"
    else:
        text = "CPU (every notebook is made to run on it)"
    threads = f"{torch.get_num_threads()} of {os.cpu_count()} cores"
    if one_thread_environment():
        threads += "; kernels use 1 (set OMP_NUM_THREADS to change it)"
    else:
        threads += f", OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']}"
    return [Finding(OK, "device", text), Finding(OK, "threads", threads)]


def home() -> list[Finding]:
    """The home directory, where Jupyter and Matplotlib keep their settings."""
    moved = quiet_environment()
    folder = os.path.expanduser("~")
    if not moved:
        return [Finding(OK, "home", folder)]
    instead = os.path.dirname(next(iter(moved.values())))
    advice = f"set HOME to a folder of yours: until then settings and caches go to {instead}"
    return [Finding(NOTE, "home", f"{folder} cannot be written ({', '.join(moved)})", advice)]


def space() -> list[Finding]:
    """Free memory and free disk."""
    disk = shutil.disk_usage(notebooks.PROJECT).free / GIB
    found = [
        Finding(OK, "disk", f"{disk:.1f} GiB free")
        if disk >= 1
        else Finding(
            NOTE,
            "disk",
            f"{disk:.1f} GiB free",
            "free at least 1 GiB: runs and downloaded data sets are kept on disk",
        )
    ]
    try:
        import psutil  # comes with Jupyter's kernel
    except ImportError:
        return found
    memory = psutil.virtual_memory()
    text = f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB free"
    advice = "close other programs: a notebook with its worker processes takes up to 3 GiB"
    return [
        Finding(OK, "memory", text)
        if memory.available >= 3 * GIB
        else Finding(NOTE, "memory", text, advice),
        *found,
    ]


def data_sets() -> list[Finding]:
    """Which data sets can be loaded without a network."""
    from kdlib import data

    present = [name for name in data.KNOWN if data.on_disk(name)]
    absent = [name for name in data.KNOWN if name not in present]
    found = [
        Finding(OK, "data sets", ", ".join(present) + " on disk")
        if present
        else Finding(
            MISSING,
            "data sets",
            "none on disk",
            "the shipped one is gone: get a fresh copy of the kit",
        )
    ]
    if absent:
        found.append(
            Finding(
                NOTE,
                "data sets",
                ", ".join(absent) + " not downloaded",
                "only projects need them: kdlib.data.load downloads at first use",
            )
        )
    return found


def programs() -> list[Finding]:
    """Programs outside Python: LaTeX for reports, a sandbox for instructors."""
    from kdlib.homework.building import missing_tex, tex_advice

    absent = missing_tex()
    latex = (
        Finding(
            NOTE,
            "LaTeX",
            f"{' and '.join(absent)} not found",
            "only report.tex needs it, report.typ builds without: "
            f"{tex_advice()}, or upload what `report --zip` makes",
        )
        if absent
        else Finding(OK, "LaTeX", "pdflatex and latexmk")
    )
    if shutil.which("bwrap"):
        return [latex, Finding(OK, "sandbox", "bubblewrap")]
    advice = (
        "sudo apt install bubblewrap"
        if sys.platform == "linux"
        else "bubblewrap exists only for Linux: use a container without network"
    )
    return [
        latex,
        Finding(
            NOTE,
            "sandbox",
            "bubblewrap (bwrap) not found",
            f"only instructors need it, to run students' code: {advice}",
        ),
    ]


def calibrate(seconds: float = 0.5) -> float:
    """Training steps a second of a small ConvNet on one thread (batch of 64, 14 x 14 pixels)."""
    import torch
    from torch import nn

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = nn.Sequential(
                nn.Conv2d(1, 16, 3, 2, 1),
                nn.BatchNorm2d(16),
                nn.ReLU(),
                nn.Conv2d(16, 32, 3, 2, 1),
                nn.BatchNorm2d(32),
                nn.ReLU(),
                nn.Flatten(),
                nn.Linear(32 * 16, 10),
            )
            images, labels = torch.rand(64, 1, 14, 14), torch.arange(64) % 10
        optimiser = torch.optim.AdamW(model.parameters())
        steps, start = -10, time.perf_counter()
        while steps < 0 or time.perf_counter() - start < seconds:
            if steps == 0:  # the first ten steps warm up the caches
                start = time.perf_counter()
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimiser.step()
            steps += 1
        return steps / (time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)


def machine_speed() -> float:
    """How fast this machine trains, in units of the reference machine."""
    return calibrate() / REFERENCE_STEPS


def running_times(folder: Path = notebooks.FOLDER) -> list[Finding]:
    """An estimate for each notebook: its stored time, scaled by this machine's speed."""
    speed = machine_speed()
    found = []
    for path in sorted(folder.glob("*.ipynb")):
        stored = notebooks.stored_seconds(notebooks.read(path))
        text = (
            f"about {stored / speed:.0f} s"
            if stored
            else f"not timed yet: python -m kdlib run --save {path.stem}"
        )
        found.append(Finding(OK, path.stem, text))
    if not found:
        found.append(
            Finding(
                MISSING,
                "notebooks",
                f"none in {folder}",
                "get a copy of the whole kit and install it from its folder",
            )
        )
    return found


def report() -> list[Finding]:
    """All findings. Without the packages only they are looked at: the rest would fail."""
    found = packages()
    if any(finding.state == MISSING for finding in found):
        return found
    return [*found, *device(), *home(), *space(), *data_sets(), *programs(), *running_times()]


def format_report(findings: list[Finding]) -> str:
    """One line a finding, the advice below it."""
    width = max(len(finding.name) for finding in findings)
    lines = []
    for state, name, text, advice in findings:
        lines.append(f"{state:8}{name:{width}}  {text}")
        if advice:
            lines.append(f"{'':{width + 10}}-> {advice}")
    missing = sum(finding.state == MISSING for finding in findings)
    lines.append(
        f"\n{missing} missing: see the advice above"
        if missing
        else "\nEverything that the notebooks need is here."
    )
    return "\n".join(lines)
