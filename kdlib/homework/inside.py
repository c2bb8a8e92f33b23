"""A program of its own in the sandbox: set the limits, run one command, hand out its files.

Its argument is JSON, see `sandbox.run`. Only the standard library, so that it starts at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

STARTED = b"started\n"  # the first line of the stream of results
MOST_LINE = 2**14  # bytes of a line in it
NOT_RUN, MISSING = 126, 127  # exit status of what cannot be started, as shells have it


def line(package: Path, job: Mapping[str, Any]) -> list[str]:
    """The command line that runs this program, where the kit's package lies there."""
    program = package / "homework" / Path(__file__).name
    return [sys.executable, "-I", "-S", str(program), json.dumps(job)]


def main() -> int:
    """Run what the argument asks for; returns the exit status of the command, 128 + n after n."""
    job: dict[str, Any] = json.loads(sys.argv[1])
    with open(job["stream"], "wb") as stream:
        stream.write(STARTED)
        stream.flush()
        try:
            if job["seed"]:
                copy(Path(job["seed"]), Path(job["results"]))
        except OSError as error:
            print(f"{error.filename}: {error.strerror}", file=sys.stderr)
            return NOT_RUN
        limit(job["limits"])
        status = _status(job["command"], job["folder"])
        if job["alone"]:
            _end_all_others()
        if job["pack"]:
            pack(Path(job["results"]), stream)
    return status


def kept(folder: Path) -> Iterator[Path]:
    """The files and links below a folder, but nothing hidden and no environment of Python."""
    for place, below, names in os.walk(folder):
        names += [name for name in below if Path(place, name).is_symlink()]
        below[:] = [name for name in below if not _passed_over(Path(place, name))]
        for path in (Path(place, name) for name in names if not name.startswith(".")):
            if path.is_symlink() or os.path.isfile(path):  # no pipe, no device
                yield path


def _passed_over(folder: Path) -> bool:
    return folder.name.startswith(".") or os.path.exists(folder / "pyvenv.cfg")


def copy(source: Path, target: Path) -> None:
    """Copy what is kept of a folder; links stay links."""
    target.mkdir(parents=True, exist_ok=True)
    for path in kept(source):
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place, follow_symlinks=False)


def limit(limits: dict[str, int]) -> None:
    """Set limits by name, those that this system knows, for this process and all it starts."""
    try:
        import resource
    except ImportError:  # Windows
        return
    for name, most in limits.items():
        try:
            resource.setrlimit(getattr(resource, name), (most, most))
        except (AttributeError, ValueError, OSError):
            pass
    try:
        Path("/proc/self/oom_score_adj").write_text("1000")  # the first to go if memory is short
    except OSError:
        pass


def _status(command: list[str], folder: str) -> int:
    try:
        code = subprocess.run(command, cwd=folder, check=False).returncode
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)
        return MISSING
    return 128 - code if code < 0 else code


def _end_all_others() -> None:
    """End what the command left running; here no other process can be reached."""
    if Path("/proc/1/comm").read_text() == "bwrap\n":  # never elsewhere: it would end everything
        with contextlib.suppress(ProcessLookupError):  # there are none
            os.kill(-1, signal.SIGKILL)


def pack(folder: Path, stream: BinaryIO) -> None:
    """Write all regular files below `folder`: a line [name, size] of JSON, then the content."""
    for place, below, names in os.walk(folder):
        below.sort()
        for name in sorted(names):
            path = Path(place, name)
            with contextlib.suppress(OSError):  # closed by its maker, or too deep
                if stat.S_ISREG(path.lstat().st_mode):  # no link, no pipe
                    with open(path, "rb") as source:
                        _pack_one(path.relative_to(folder).as_posix(), source, stream)


def _pack_one(name: str, source: BinaryIO, stream: BinaryIO) -> None:
    size = os.fstat(source.fileno()).st_size
    stream.write(json.dumps([name, size]).encode() + b"\n")
    _copy_bytes(source, stream, size)


def unpack(stream: BinaryIO, folder: Path, *, most: int, files: int) -> None:
    """Outside: put files that `pack` wrote into a folder, in the place of all it holds.

    Args:
        stream: nothing in it is trusted.
        most: bytes of all files.
        files: how many there may be.

    Raises:
        ValueError: the stream breaks off, or leaves the folder or the limits; then it is empty.
    """
    _clear(folder)
    try:
        for count, head in enumerate(iter(lambda: stream.readline(MOST_LINE), b""), start=1):
            name, size = json.loads(head)
            parts = PurePosixPath(name).parts
            if not parts or {"/", ".."} & set(parts) or type(size) is not int or size < 0:
                raise ValueError(f"no file: {name!r} of {size!r} bytes")
            if count > files or size > most:
                raise ValueError(f"{count} files or more, {name} among them, are too much")
            most -= size
            path = folder.joinpath(*parts)
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "xb") as target:
                _copy_bytes(stream, target, size)
    except (ValueError, TypeError, OSError, RecursionError) as error:
        _clear(folder)
        raise ValueError(f"{folder} cannot take what the command left: {error}") from None


def _copy_bytes(source: BinaryIO, target: BinaryIO, size: int) -> None:
    while size:
        part = source.read(min(size, 2**20))
        if not part:
            raise ValueError("it breaks off")
        target.write(part)
        size -= len(part)


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


if __name__ == "__main__":
    sys.exit(main())
