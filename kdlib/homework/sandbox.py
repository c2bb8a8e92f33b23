"""Run a command of somebody else: no network, a read-only system, limits of everything.

On Linux with bubblewrap. Elsewhere `run` refuses, unless `trust` says that the code is the caller's
own. The sandbox protects this machine, not the answer: what runs in it can forge its own output,
so whoever reads that output checks the files from outside.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import io
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from kdlib.homework import bubblewrap, inside

PROJECT = "{project}"  # in what `run` is given: where the project lies
RESULTS = "{results}"  # and where the command may write

STOPPED = 124  # exit status of a command that was ended, as `timeout` has it
INTERVAL = 0.1  # seconds between two looks at what a command uses
SHARE, SPARE = 0.5, 0.03  # of the machine's memory: for a command at most, for all others at least
PATIENCE = 64  # times the output that is kept, then the command is ended
SLACK = 2**26  # bytes that names may add to a stream of results
ADVICE = (
    "run this in a container without a network, or give --trust if the code is your own: then it "
    "runs as an ordinary program"
)


class NoSandbox(RuntimeError):
    """No sandbox works here; the message says why, and what to do."""


@dataclass(frozen=True)
class Limits:
    """Of one run.

    Attributes:
        seconds: by the clock; then everything is ended.
        memory: bytes of each process that it alone can write. All of them together may use as
            much or half of the machine's memory, whichever is more.
        processes: with their threads.
        file_size: bytes of one file.
        output: bytes of stdout and of stderr that are kept. The rest is dropped, and far beyond
            it (64 times) the command is ended.
        disk: bytes of all files together, which lie in memory; and of shared memory.
        files: how many there may be.
    """

    seconds: float = 600
    memory: int = 4 * 2**30
    processes: int = max(256, 16 * (os.cpu_count() or 1))
    file_size: int = 256 * 2**20
    output: int = 2**20
    disk: int = 512 * 2**20
    files: int = 20_000

    def resources(self, *, alone: bool) -> dict[str, int]:
        """By the names of the system; of processes only where the user has no others."""
        found = {"RLIMIT_DATA": self.memory, "RLIMIT_AS": 8 * self.memory}  # libraries are large
        found |= {"RLIMIT_FSIZE": self.file_size, "RLIMIT_CORE": 0}
        return found | ({"RLIMIT_NPROC": self.processes} if alone else {})


DEFAULT = Limits()


@dataclass(frozen=True)
class Finished:
    """How a command ended.

    Attributes:
        returncode: of the command, 128 + n after signal n; 124 if it was stopped.
        stdout: its beginning, up to the limit; undecodable bytes are replaced.
        stderr: likewise.
        stopped: "" or the limit that ended it: "time", "memory", "output" or "disk".
    """

    returncode: int
    stdout: str
    stderr: str
    stopped: str


@functools.cache
def probe() -> str:
    """Why no sandbox works here, on one line; "" if one does.

    Found out by running one, once a process.
    """
    if sys.platform != "linux":
        return f"the sandbox is bubblewrap, which exists for Linux, not for {sys.platform}"
    if absent := bubblewrap.missing():
        return f"{' and '.join(absent)} not found: sudo apt install bubblewrap"
    with tempfile.TemporaryDirectory(prefix="kdlib-") as scratch:
        program = [sys.executable, "-c", "print(6 * 7)"]
        line = bubblewrap.line(program, {}, {}, Path(scratch), 2**20)
        try:
            done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
        except (OSError, subprocess.SubprocessError) as error:
            return f"bubblewrap does not work here ({error})"
    return "" if done.stdout == "42\n" else f"bubblewrap does not work here ({_last(done.stderr)})"


def _last(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1]


def run(
    command: Sequence[str],
    project: Path,
    *,
    writable: Path | None = None,
    readable: Sequence[Path] = (),
    environment: Mapping[str, str] | None = None,
    limits: Limits = DEFAULT,
    trust: bool = False,
    seed: Path | None = None,
    folder: str = PROJECT,
    text: str = "",
    packages: Path | None = None,
) -> Finished:
    """Run a command in the sandbox.

    It sees the system and this interpreter with its packages, read-only; the kit's own `kdlib`
    before any other; `project`, read-only, as "{project}"; and "{results}", which it can change
    and which is all that outlives it. Its home and /tmp are empty, few variables are set, there
    is no network and no other process.

    Args:
        command: a program and its words. In these, in `environment`, `folder` and `text`,
            "{project}" and "{results}" are replaced. `sys.executable` is there, too.
        project: a folder of somebody else.
        writable: a folder that the caller made. It then holds the regular files that the command
            left in "{results}", never a link, and nothing else. A command that was stopped leaves
            it alone; one that left more than the limits allow counts as stopped, and empties it.
        readable: further files and folders, seen read-only at their own paths.
        environment: variables added to the few that are set.
        limits: of time, memory, processes and files.
        trust: without a sandbox, run it as an ordinary process, in the project itself, with those
            limits that hold there (not the ones of processes and of files together). Only for
            one's own code: it can read, change and send whatever the caller can.
        seed: a folder that "{results}" holds at first, without hidden files and environments of
            Python; if it is not given, `writable`.
        folder: where it starts.
        text: its input.
        packages: a folder of further packages for Python; with `trust` it is not used.

    Raises:
        NoSandbox: none works here, and `trust` is not given.
        ValueError: a folder would have to be copied and is too large.
    """
    if not trust and (why := probe()):
        raise NoSandbox(f"{why}; {ADVICE}")
    project, seed = Path(project).resolve(), seed or writable
    if seed:
        bubblewrap.check_size(seed, limits.disk)
    with tempfile.TemporaryDirectory(prefix="kdlib-", ignore_cleanup_errors=True) as made:
        scratch = Path(made).resolve()
        places = {PROJECT: project.as_posix(), RESULTS: (scratch / "results").as_posix()}
        if not trust:
            places = {PROJECT: bubblewrap.PROJECT, RESULTS: bubblewrap.RESULTS}
        job = {
            "command": [_filled(word, places) for word in command],
            "folder": _filled(folder, places),
            "results": places[RESULTS],
            "seed": seed and str(seed.resolve() if trust else bubblewrap.SEED),
            "pack": writable is not None,
            "alone": not trust,
            "limits": limits.resources(alone=not trust),
        }
        variables = {name: _filled(value, places) for name, value in (environment or {}).items()}
        (scratch / "input").write_text(_filled(text, places), encoding="utf-8")
        if trust:
            finished = _run_trusted(job, variables, scratch, limits)
        else:
            shown = {str(path.absolute()): path for path in readable}
            shown |= {bubblewrap.PROJECT: project} | ({bubblewrap.SEED: seed} if seed else {})
            if packages:
                shown |= {bubblewrap.PACKAGES: packages}
                variables |= {"PYTHONPATH": bubblewrap.path(bubblewrap.PACKAGES)}
            finished = _run_confined(job, shown, variables, scratch, limits)
        return _taken(finished, scratch / "stream", writable, limits)


def _taken(finished: Finished, stream: Path, writable: Path | None, limits: Limits) -> Finished:
    """Put the results into `writable`; how the command ended, results beyond the limits included.

    Raises:
        NoSandbox: the command was never started.
    """
    if finished.stopped:
        return finished
    with open(stream, "rb") as source:
        if source.readline(inside.MOST_LINE) != inside.STARTED:
            raise NoSandbox(f"the sandbox does not start ({_last(finished.stderr)})")
        try:
            if writable is not None:
                inside.unpack(source, writable, most=limits.disk, files=limits.files)
        except ValueError as error:
            said = f"{finished.stderr}{error}\n"
            return replace(finished, returncode=STOPPED, stderr=said, stopped="disk")
    return finished


def _filled(text: str, places: Mapping[str, str]) -> str:
    for word, place in places.items():
        text = text.replace(word, place)
    return text


# Start, watch, end


def _run_trusted(
    job: Mapping[str, Any], variables: Mapping[str, str], scratch: Path, limits: Limits
) -> Finished:
    (scratch / "results").mkdir()
    kit = bubblewrap.PACKAGE.parent
    paths = [str(kit), *filter(None, [os.environ.get("PYTHONPATH")])]
    kits = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}
    line = inside.line(bubblewrap.PACKAGE, {**job, "stream": str(scratch / "stream")})
    with open(scratch / "input", "rb") as text:
        return _follow(_start(line, text, {**os.environ, **kits, **variables}), limits)


def _run_confined(
    job: Mapping[str, Any],
    shown: Mapping[str, Path],
    variables: Mapping[str, str],
    scratch: Path,
    limits: Limits,
) -> Finished:
    receiving, sending = os.pipe()
    with open(receiving, "rb") as source, open(sending, "wb") as sink:
        program = inside.line(Path(bubblewrap.KIT, "kdlib"), {**job, "stream": sink.fileno()})
        line = bubblewrap.line(program, shown, variables, scratch, limits.disk)
        with open(scratch / "input", "rb") as text, open(scratch / "stream", "wb") as stream:
            process = _start(line, text, {"PATH": os.environ["PATH"]}, pass_fds=[sink.fileno()])
            sink.close()
            return _follow(process, limits, _Reader(source, stream, limits.disk + SLACK))


def _start(
    line: Sequence[str], text: IO[bytes], environment: Mapping[str, str], **options: Any
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        line, stdin=text, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment,
        start_new_session=True, **options,
    )  # fmt: skip


class _Reader(threading.Thread):
    """Read a stream to its end, so that its writer never waits, and keep the beginning."""

    def __init__(self, source: IO[bytes] | None, target: IO[bytes], most: int):
        super().__init__(daemon=True)
        assert source is not None
        self.source, self.target, self.most, self.seen = source, target, most, 0
        self.start()

    def run(self) -> None:
        with self.source:
            while part := os.read(self.source.fileno(), 2**16):
                self.target.write(part[: max(0, self.most - self.seen)])
                self.seen += len(part)


def _follow(
    process: subprocess.Popen[bytes], limits: Limits, results: _Reader | None = None
) -> Finished:
    """Wait for a process, end it at its limits, and end what it left running."""
    kept = io.BytesIO(), io.BytesIO()
    said = [_Reader(process.stdout, kept[0], limits.output)]
    said += [_Reader(process.stderr, kept[1], limits.output)]
    try:
        stopped = _watch(process, limits, said, results)
    finally:
        _end(process)
        for reader in (*said, *filter(None, [results])):
            reader.join(5.0)  # what escaped from a trusted command may hold its output open
    out, err = (one.getvalue().decode("utf-8", "replace") for one in kept)
    return Finished(STOPPED if stopped else process.returncode, out, err, stopped)


def _watch(
    process: subprocess.Popen[bytes],
    limits: Limits,
    said: Sequence[_Reader],
    results: _Reader | None,
) -> str:
    """The limit that is reached before the process ends; "" if none is."""
    end = time.monotonic() + limits.seconds
    while True:
        try:
            process.wait(INTERVAL)
            return ""
        except subprocess.TimeoutExpired:
            memory, files = _in_use(process.pid)
        if time.monotonic() > end:
            return "time"
        if any(one.seen > limits.output * PATIENCE for one in said):
            return "output"
        physical, available = _machine()
        if memory > max(limits.memory, SHARE * physical) or available < SPARE * physical:
            return "memory"
        if files > limits.files or (results and results.seen > results.most):
            return "disk"


def _in_use(pid: int) -> tuple[int, int]:
    """(bytes of memory of a process and all below it, files in its sandbox); 0 where unknown."""
    memory = files = 0
    for one in _family(pid):
        try:
            status = Path(f"/proc/{one}/status").read_text()
            memory += sum(map(int, re.findall(r"Rss(?:Anon|Shmem):\s*(\d+) kB", status))) * 1024
            if os.path.exists(f"/proc/{one}/root{bubblewrap.KIT}"):  # it is in the sandbox
                space = os.statvfs(f"/proc/{one}/root/tmp")
                files = max(files, space.f_files - space.f_ffree)
        except OSError:  # it has ended, or this is no Linux
            pass
    return memory, files


def _machine() -> tuple[int, int]:
    """(bytes of memory of this machine, bytes that can still be had), (0, 0) where unknown."""
    try:
        found = dict(re.findall(r"(Mem\w+):\s*(\d+) kB", Path("/proc/meminfo").read_text()))
        return int(found["MemTotal"]) * 1024, int(found["MemAvailable"]) * 1024
    except (OSError, KeyError):  # no Linux
        return 0, 0


def _family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    found = [pid]
    for one in found:
        for path in glob.glob(f"/proc/{one}/task/*/children"):
            with contextlib.suppress(OSError):  # it has ended
                found += map(int, Path(path).read_text().split())
    return found


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process with its group; a sandbox ends with the process that made it."""
    try:
        if sys.platform != "win32":
            os.killpg(process.pid, signal.SIGKILL)
        elif process.poll() is None:
            line = ["taskkill", "/F", "/T", "/PID", str(process.pid)]
            subprocess.run(line, capture_output=True, check=False)
    except (ProcessLookupError, PermissionError):  # all gone, as Linux and macOS say it
        pass
    process.wait()
