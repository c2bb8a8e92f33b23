"""What a team's code needs and this environment lacks, as its own files declare it."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import PurePosixPath

from kdlib.homework.review.findings import some
from kdlib.homework.review.handed_in import HandedIn

INSTALL = "pip install --only-binary=:all:"
MOST = 200  # signs of a line
# A name, extras, versions and a condition: no address, path or option goes into a command.
_PLAIN = re.compile(
    r"([a-z0-9](?:[\w.-]*[a-z0-9])?)(?:\[[\w,\s.-]*\])?"
    r"\s*(?:(?:===|[<>=!~]=?)\s*[\w.*+-]+\s*,?\s*)*(?:;[^#]*)?",
    re.ASCII | re.IGNORECASE,
)


def missing(text: str) -> str:
    """The module that an error in a text names, if it cannot be imported here; else ""."""
    for name in re.findall(r"No module named '(\w+)", text):
        if name not in sys.modules and not importlib.util.find_spec(name):
            return str(name)
    return ""


def lacking(handed_in: HandedIn) -> dict[str, str]:
    """{requirement: file} of what the team declares and is not installed here."""
    return {text: place for name, text, place in _declared(handed_in) if not is_installed(name)}


def told(handed_in: HandedIn, module: str) -> str:
    """What to install so that a module that is missing here can be imported."""
    absent = lacking(handed_in)
    if not absent:
        return (
            f"it needs the module {module!r}, which is not installed here, and no requirements.txt "
            "or pyproject.toml names a package that is missing: ask the team which one it is"
        )
    line = " ".join(shlex.quote(text) for text in list(absent)[:8])
    files = some(dict.fromkeys(absent.values()), 3)
    return (
        f"it needs the module {module!r}, which is not installed here; {files} may ask for it: "
        f"`{INSTALL} {line}` into an environment made for this review (a package may run when "
        "Python starts), then review again"
    )


def _declared(handed_in: HandedIn) -> Iterator[tuple[str, str, str]]:
    """(package, requirement, place) of each plain requirement."""
    for file in handed_in.entries:
        name = PurePosixPath(file).name
        text = handed_in.text(file)[:20_000]
        if re.fullmatch(r"requirements[\w.-]*\.txt", name):
            lines = [line.split(" #")[0].strip() for line in text.splitlines()]
        elif name == "pyproject.toml":
            lines = _of_project(text)
        else:
            continue
        for line in lines:
            if found := _PLAIN.fullmatch(line[:MOST]):
                yield found[1], found[0], file


def _of_project(text: str) -> list[str]:
    try:
        listed = tomllib.loads(text).get("project", {}).get("dependencies", [])
    except (tomllib.TOMLDecodeError, AttributeError, RecursionError):
        return []
    return [one for one in listed if isinstance(one, str)] if isinstance(listed, list) else []


def is_installed(package: str) -> bool:
    """Whether a distribution of this name is installed here."""
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True
