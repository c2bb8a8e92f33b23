"""Run a command of somebody else: no network, a read-only system, limits of everything.

On Linux with bubblewrap (`bwrap`). Elsewhere `run` refuses, unless `trust` says that the code is
the caller's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PROJECT = "{project}"  # in a command, its environment and `folder`: where the project lies
RESULTS = "{results}"  # and where the content of `writable` lies


class NoSandbox(RuntimeError):
    """No sandbox works here; the message says why, and what to do."""


@dataclass(frozen=True)
class Limits:
    """Of one run.

    Attributes:
        seconds: by the clock; then everything is ended.
        memory: bytes of address space of each process, and bytes in use by all of them together.
        processes: processes and threads.
        file_size: bytes of one file.
        output: bytes of stdout and of stderr that are kept; the rest is dropped.
        disk: bytes of all files written together, in memory (tmpfs).
        files: how many of them.
    """

    seconds: float = 600
    memory: int = 4 * 2**30
    processes: int = 256
    file_size: int = 256 * 2**20
    output: int = 2**20
    disk: int = 512 * 2**20
    files: int = 20_000


@dataclass(frozen=True)
class Finished:
    """How a command ended.

    Attributes:
        returncode: of the command; 124 if it was stopped, negative or above 128 after a signal.
        stdout: its beginning, up to the limit; undecodable bytes are replaced.
        stderr: likewise.
        stopped: "" or the limit that ended it: "time", "memory", "disk" or "output".
    """

    returncode: int
    stdout: str
    stderr: str
    stopped: str


def probe() -> str:
    """Why no sandbox works here, on one line; "" if one does.

    Found out by running one, once a process.
    """
    raise NotImplementedError


def run(
    command: Sequence[str],
    project: Path,
    *,
    writable: Path | None = None,
    readable: Sequence[Path] = (),
    environment: Mapping[str, str] | None = None,
    limits: Limits = Limits(),  # noqa: B008
    trust: bool = False,
    folder: str = PROJECT,
    text: str = "",
) -> Finished:
    """Run a command in the sandbox.

    It sees the system and this interpreter with its packages, read-only, the kit's own `kdlib`
    before any other, `project` read-only as "{project}", and `writable` as "{results}": a copy of
    what that folder holds, the only place that the command can change and that outlives it. Its
    home, /tmp and the environment are empty; no network, no other process.

    Args:
        command: a program and its words; in each, "{project}" and "{results}" are replaced.
            `sys.executable` is there too.
        project: a folder of somebody else.
        writable: a folder that the caller made; afterwards it holds the regular files that the
            command left, and never a link, within the limits of `limits`.
        readable: further files and folders, seen read-only at their own paths.
        environment: variables added to the few that are set.
        limits: of time, memory, processes and files.
        trust: without a sandbox, run it as an ordinary process, in a copy of the project. Only for
            one's own code: it can read and send everything that the caller can.
        folder: where it starts.
        text: its input.

    Raises:
        NoSandbox: none works here, and `trust` is not given.
        ValueError: the project or `writable` is beyond the limits.
    """
    raise NotImplementedError
