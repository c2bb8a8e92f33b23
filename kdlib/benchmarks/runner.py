"""Runs benchmarks one after the other, each in a process of its own with a limit on its time.

A benchmark that fails, hangs or runs out of memory costs its own remaining rows, no others.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from kdlib.benchmarks.catalogue import BENCHMARKS
from kdlib.benchmarks.plan import Plan
from kdlib.benchmarks.rows import Row, from_json
from kdlib.engine.environment import THREADS

POLL = 0.2  # seconds between two looks for new rows


def measured(
    name: str, plan: Plan, *, tick: Callable[[], None] = lambda: None, most: float = 1e9
) -> Iterator[Row]:
    """The rows of one benchmark as they come, and a row that says why it ended early, if it did.

    Args:
        name: one of `BENCHMARKS`.
        tick: called while there is nothing new.
        most: seconds that are left for it, if that is less than its own limit.
    """
    limit = min(BENCHMARKS[name].limits[plan.device], most)
    environment = {**os.environ, **dict.fromkeys(THREADS, "1"), "KDLIB_PROGRESS": "0"}
    with tempfile.TemporaryDirectory() as folder:
        file, said = Path(folder, "rows"), Path(folder, "said")
        file.touch()
        command = [sys.executable, "-m", "kdlib.benchmarks", name, plan.device, plan.scale]
        command += [str(file), *([plan.peer] if plan.peer else [])]
        with said.open("wb") as output:
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment
            )
        try:
            with file.open(encoding="utf-8") as stream:
                end = time.monotonic() + limit
                while child.poll() is None and time.monotonic() < end:
                    yield from _whole_lines(stream)
                    tick()
                    time.sleep(POLL)
                late = child.poll() is None
                if late:
                    child.kill()
                child.wait()
                yield from _whole_lines(stream)
        finally:
            child.kill()
            child.wait()
        if late:
            reason = f"it took more than {limit:.0f} s"
            yield Row(name, "the rest of it", unmeasured=reason, device=plan.device)
        elif child.returncode:
            words = said.read_text(errors="replace").strip().splitlines()
            reason = words[-1] if words else f"it ended with status {child.returncode}"
            row = Row(name, "the rest of it", unmeasured=reason[:300], device=plan.device)
            row.details["said"] = words[-40:]
            yield row


def _whole_lines(stream) -> Iterator[Row]:
    """The lines that are complete; the rest is read the next time."""
    while True:
        place = stream.tell()
        line = stream.readline()
        if not line.endswith("\n"):
            stream.seek(place)
            return
        yield from from_json([json.loads(line)])
