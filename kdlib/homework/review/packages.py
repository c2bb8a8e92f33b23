"""Packages that a team declares and this environment lacks, installed apart for the sandbox alone.

Only wheels: to download one runs nothing of it. They are unpacked in the sandbox, without a
network, and none may take the place of what is installed here.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdlib.homework import sandbox
from kdlib.homework.review.findings import some
from kdlib.homework.review.handed_in import MB
from kdlib.homework.review.needs import is_installed
from kdlib.homework.sandbox import PROJECT, RESULTS, Limits

SECONDS = 120.0  # for each step: more is no package but a framework
LARGEST = 200  # MB of all wheels
_AT_START = ("sitecustomize", "usercustomize")  # Python imports these by itself
_PIP = ("-m", "pip", "-q", "--disable-pip-version-check", "--no-input", "--retries", "1")


class NotInstalled(RuntimeError):
    """Why, on one line."""


def install(wanted: Sequence[str], place: Path) -> tuple[Path, list[str]]:
    """Install what is wanted, with all that it needs, into a folder below `place`.

    Args:
        wanted: names and versions, no addresses and no options.
        place: an empty folder.

    Returns:
        (folder, ["einops==0.8.1", ...])

    Raises:
        NotInstalled: there is no wheel or no network, it is too large, or it would take the place
            of something that is installed here.
        NoSandbox: none works here.
    """
    wheels, made = place / "wheels", place / "packages"
    wheels.mkdir()
    made.mkdir()
    names = _resolved(wanted, place)
    _pip(["download", "--no-deps", "--only-binary=:all:", "-d", str(wheels), *names], place)
    size = sum(path.stat().st_size for path in wheels.iterdir())
    if size > LARGEST * MB:
        raise NotInstalled(f"its wheels have {size // MB} MB, at most {LARGEST} are taken")
    line = ["install", "--no-index", "--no-deps", "--no-compile", "--find-links", PROJECT]
    done = sandbox.run(
        [sys.executable, *_PIP, *line, "--target", RESULTS, *names], wheels,
        writable=made, limits=Limits(seconds=SECONDS),
    )  # fmt: skip
    if done.returncode:
        raise NotInstalled(done.stopped or _last(done.stderr))
    brought = {path.name.split(".")[0] for path in made.iterdir() if path.suffix != ".dist-info"}
    taken = sorted(one for one in brought if _is_taken(one))
    if taken:
        raise NotInstalled(f"it would take the place of {some(taken, 3)}")
    return made, names


def _is_taken(module: str) -> bool:
    """Whether Python would import a module of this name without being asked, or finds one here."""
    known = module in _AT_START or module in sys.modules
    return bool(module) and (known or importlib.util.find_spec(module) is not None)


def _resolved(wanted: Sequence[str], place: Path) -> list[str]:
    """The versions that pip would install here, of packages that are not here yet."""
    line = ["install", "--dry-run", "--only-binary=:all:", "--report", "-", *wanted]
    try:
        report: dict[str, Any] = json.loads(_pip(line, place))
        found = [(one["metadata"]["name"], one["metadata"]["version"]) for one in report["install"]]
    except (ValueError, KeyError, TypeError) as error:
        raise NotInstalled(f"pip gives no report ({error!r})") from None
    here = [name for name, _ in found if is_installed(name)]
    if here:
        raise NotInstalled(f"it needs another version of {some(here, 3)} than is installed here")
    return [f"{name}=={version}" for name, version in found]


def _pip(words: Sequence[str], place: Path) -> str:
    """What pip prints; -I keeps modules of the working folder away from it."""
    try:
        done = subprocess.run(
            [sys.executable, "-I", *_PIP, *words],
            cwd=place,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise NotInstalled(f"pip does not run ({type(error).__name__})") from None
    if done.returncode:
        raise NotInstalled(_last(done.stderr))
    return done.stdout


def _last(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("ERROR: ")[:200] if lines else "pip says nothing"
