"""Environment variables of processes that run notebooks: one thread, and no words about HOME."""

from __future__ import annotations

import logging
import os
import stat
import sys
import tempfile
from pathlib import Path

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


def one_thread_environment() -> dict[str, str]:
    """Variables that give a process one thread; none if `OMP_NUM_THREADS` is set already."""
    return {} if "OMP_NUM_THREADS" in os.environ else dict.fromkeys(THREADS, "1")


def quiet_environment() -> dict[str, str]:
    """Variables that lead Matplotlib, IPython and Jupyter away from a home they cannot write.

    There they warn or fail; each gets a temporary folder instead, the same one in every process.
    Update `os.environ` with it before Matplotlib is imported. Matplotlib's notice about its first
    scan of the fonts is silenced too.
    """
    logging.getLogger("matplotlib.font_manager").addFilter(_no_font_scan)
    if os.name == "nt":  # its home is always writable
        return {}
    try:
        home = Path.home()
    except RuntimeError:  # no HOME, and no entry for this user
        home = Path(os.devnull)

    def folder(variable: str, *otherwise: Path) -> list[Path]:
        return [Path(os.environ[variable])] if os.environ.get(variable) else list(otherwise)

    mac = sys.platform == "darwin"
    config, cache = (
        folder("XDG_CONFIG_HOME", home / ".config"),
        folder("XDG_CACHE_HOME", home / ".cache"),
    )
    shared = folder("XDG_DATA_HOME", home / ".local" / "share")[0] / "jupyter"
    data = folder("JUPYTER_DATA_DIR", home / "Library" / "Jupyter" if mac else shared)
    plots = [home / ".matplotlib"] if mac else [config[0] / "matplotlib", cache[0] / "matplotlib"]
    needed = {
        "MPLCONFIGDIR": folder("MPLCONFIGDIR", *plots),
        "IPYTHONDIR": folder("IPYTHONDIR", home / ".ipython"),
        "JUPYTER_CONFIG_DIR": folder("JUPYTER_CONFIG_DIR", home / ".jupyter"),
        "JUPYTER_DATA_DIR": data,
        "JUPYTER_RUNTIME_DIR": folder("JUPYTER_RUNTIME_DIR", data[0] / "runtime"),
    }
    lost = [name for name, folders in needed.items() if not all(map(writable, folders))]
    if not lost:
        return {}
    instead = _own_folder()
    return {name: str(instead / name.lower()) for name in lost}


def _no_font_scan(record: logging.LogRecord) -> bool:
    return "building the font cache" not in record.getMessage()


def writable(folder: Path) -> bool:
    """Whether a folder can be written, or made if it is missing; nothing is made here."""
    while not os.path.exists(folder) and folder != folder.parent:
        folder = folder.parent
    return os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)


def _own_folder() -> Path:
    """A temporary folder that belongs to this user alone."""
    folder = Path(tempfile.gettempdir()) / f"kdlib-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if (
            stat.S_ISDIR(found.st_mode)
            and found.st_uid == os.getuid()
            and not found.st_mode & 0o077
        ):
            return folder
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="kdlib-"))  # somebody else has that name
