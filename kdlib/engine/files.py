"""Files that are never half written."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write_atomically(path: str | Path, content: str | bytes) -> Path:
    """Write a file so that a reader finds the old content or the new, never half of it.

    The bytes go to a temporary file in the same folder, reach the disk, then replace `path`.

    Raises:
        OSError: the folder cannot be written or the disk is full; `path` is left as it was.
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:80]}.")
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _unusable(path, error) from error
        raise
    return path


def probe(path: str | Path) -> None:
    """Raise the OSError that writing `path` would meet, before any work is done for it."""
    path = Path(path)
    try:
        if path.is_dir():
            raise IsADirectoryError(21, "is a folder, not a file")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".probe."):
            pass
    except OSError as error:
        raise _unusable(path, error) from error


def _unusable(path: Path, error: OSError) -> OSError:
    advice = "nothing was overwritten. Free some space or choose another place"
    return type(error)(error.errno, f"{error.strerror}; {advice}", str(path))


def _umask() -> int:
    """The permission bits that new files do not get; `mkstemp` keeps a file to its owner."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
