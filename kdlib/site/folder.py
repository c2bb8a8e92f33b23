"""The folder of the site: only what this command wrote is ever replaced or removed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from kdlib.engine.files import probe, write_atomically

MANIFEST = ".kdlib-site.json"  # the names of our files; it makes the folder ours


def write(files: Mapping[str, bytes], folder: Path) -> int:
    """Bring the folder to hold exactly these files; returns how many changed.

    A file that is already right is not touched. The manifest comes first, so that a run that was
    interrupted leaves a folder that the next one knows.

    Args:
        files: {path inside the folder: content}.

    Raises:
        OSError: `folder` is a file, is not ours, or cannot be written; nothing was changed.
    """
    old = _ours(folder)
    probe(folder / MANIFEST)
    _note(folder, {*files, *old})
    changed = 0
    for name, content in files.items():
        path = folder / name
        if not path.is_file() or path.read_bytes() != content:
            write_atomically(path, content)
            changed += 1
    for name in sorted(old - files.keys()):
        _remove(folder, name)
        changed += 1
    _note(folder, set(files))
    return changed


def check(folder: Path) -> None:
    """Raise the OSError that writing into `folder` would meet, before any work is done for it."""
    _ours(folder)
    probe(folder / MANIFEST)


def _note(folder: Path, names: set[str]) -> None:
    path, content = folder / MANIFEST, json.dumps(sorted(names), indent=0) + "\n"
    if not path.is_file() or path.read_text("utf-8") != content:
        write_atomically(path, content)


def _ours(folder: Path) -> set[str]:
    """The names of the files that an earlier run wrote; none for a new or empty folder."""
    if folder.is_dir() and not any(folder.iterdir()):
        return set()
    if not folder.exists() and not folder.is_symlink():
        return set()
    try:
        names = json.loads((folder / MANIFEST).read_text("utf-8"))
        if isinstance(names, list) and all(_inside(name) for name in names):
            return set(names)
    except (OSError, ValueError):
        pass
    raise FileExistsError(
        17, "is not a folder that `site` made, so nothing was written: choose another", str(folder)
    )


def _inside(name: object) -> bool:
    """Whether a name stays below the folder."""
    return isinstance(name, str) and not Path(name).is_absolute() and ".." not in Path(name).parts


def _remove(folder: Path, name: str) -> None:
    """Remove a file of an earlier run, and the folders that this leaves empty."""
    path = folder / name
    path.unlink(missing_ok=True)
    for parent in path.parents:
        if parent == folder or not parent.is_dir() or any(parent.iterdir()):
            return
        parent.rmdir()
