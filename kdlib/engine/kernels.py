"""Run a notebook in a kernel of this very interpreter and this very kit."""

from __future__ import annotations

import ast
import json
import os
import queue
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from kdlib.engine import launch
from kdlib.engine.outputs import Outputs

START = 60.0  # seconds that a kernel gets to start
GRACE = 10.0  # seconds that a cell gets to end after it was interrupted
LAST_WORDS = 4.0  # seconds of silence after which a cell that has replied is done
ANSI = re.compile(r"\x1b\[[0-9;]*m")

# Evaluated in the kernel: {module: its file} of the kit.
MODULES = """__import__("json").dumps({
    name: getattr(module, "__file__", None) or "".join(list(getattr(module, "__path__", ()))[:1])
    for name, module in list(__import__("sys").modules.items())
    if name.split(".")[0] == "kdlib"})"""


class Failure(NamedTuple):
    """What went wrong: in a cell, or in the kernel as a whole (then `source` is empty)."""

    source: str
    reason: str

    def __str__(self) -> str:
        reason = [f"    {line}" for line in self.reason.splitlines()]
        if not self.source:
            return "\n".join(["this went wrong:", *reason])
        cell = [f"    {line}" for line in self.source.splitlines()]
        return "\n".join(["this cell failed:", *cell, "with:", *reason])


class Execution(NamedTuple):
    """What `execute` reports; the outputs are in the notebook's cells."""

    seconds: dict[str, float]  # {id: seconds} of the code cells that ran
    failures: list[Failure]
    own_kit: bool  # the notebook used this kit to its end, as far as can be seen


class _Dead(Exception):
    """The kernel is gone, or does not listen."""


def spec() -> Any:
    """A jupyter_client KernelSpec whose kernel is this interpreter with this kit."""
    from jupyter_client.kernelspec import KernelSpec

    # -P: the folder of the notebook is not on the path while Python starts.
    return KernelSpec(
        argv=[
            sys.executable,
            "-P",
            str(Path(launch.__file__).resolve()),
            "-f",
            "{connection_file}",
            "--HistoryManager.hist_file=:memory:",
        ],
        display_name="Python 3",
        language="python",
    )


def execute(
    notebook: Any,
    folder: Path,
    *,
    timeout: float | None = None,
    environment: Mapping[str, str] | None = None,
    on_cell: Callable[[Any], None] = lambda cell: None,
) -> Execution:
    """Run the code cells of a notebook in order, in place; a failing cell does not stop it.

    Only a kernel that dies does. Tags of cells change nothing.

    Args:
        notebook: an nbformat node; the outputs of its code cells are replaced.
        folder: working directory of the kernel.
        timeout: seconds that each cell gets before it is interrupted; None sets no limit.
        environment: further variables for the kernel.
        on_cell: called with each code cell before it runs.
    """
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in cells:
        cell.outputs, cell.execution_count = [], None
    seconds: dict[str, float] = {}
    failures: list[Failure] = []
    displays: dict[str, list[Any]] = {}
    strangers: dict[str, str] | None = None
    cell = None
    try:
        with _kernel(folder, environment or {}) as (manager, client):
            strangers = _strangers(manager, client)
            for cell in cells:
                on_cell(cell)
                start = time.perf_counter()
                reason = _run_cell(cell, manager, client, timeout, displays)
                seconds[cell.id] = time.perf_counter() - start
                if reason is not None:
                    failures.append(Failure(cell.source, reason))
            cell = None
            strangers = strangers or _strangers(manager, client)
    except _Dead as death:
        failures.append(Failure("" if cell is None else cell.source, str(death)))
    if strangers:
        listed = [f"{name} from {file or 'nowhere'}" for name, file in strangers.items()]
        failures.append(
            Failure(
                "",
                "\n".join(
                    [
                        f"the notebook did not use the kit in {launch.ROOT / 'kdlib'}, but",
                        *listed,
                        "so nothing that it says about claims and exercises counts",
                    ]
                ),
            )
        )
    return Execution(seconds, failures, strangers == {})


@contextmanager
def _kernel(folder: Path, environment: Mapping[str, str]) -> Iterator[tuple[Any, Any]]:
    """Manager and client of a kernel that listens; it is gone afterwards."""
    from jupyter_client.manager import KernelManager

    class ThisInterpreter(KernelManager):
        """An installed kernel named "python3" may belong to another environment."""

        @property
        def kernel_spec(self) -> Any:
            return spec()

    manager, client = ThisInterpreter(), None
    # What the kernel's process itself writes is about its sockets; cells are captured.
    with tempfile.TemporaryFile() as errors:
        try:
            manager.start_kernel(
                cwd=str(folder),
                env={**os.environ, **environment},
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )
            client = manager.client()
            client.start_channels()
            try:
                client.wait_for_ready(timeout=START)
            except RuntimeError as error:
                errors.seek(0)
                said = errors.read().decode(errors="replace").strip().splitlines()[-12:]
                raise _Dead("\n".join([f"the kernel did not start: {error}", *said])) from None
            yield manager, client
        finally:
            if client is not None:
                client.stop_channels()
            if manager.has_kernel:
                manager.shutdown_kernel(now=True)


def _run_cell(
    cell: Any, manager: Any, client: Any, timeout: float | None, displays: dict[str, list[Any]]
) -> str | None:
    """Run one cell; returns what it failed with, or None.

    Raises:
        _Dead: the kernel ended, or could not be interrupted; the cell keeps its outputs.
    """
    outputs = Outputs(displays)
    request = client.execute(cell.source, allow_stdin=False, stop_on_error=False)
    limit = None if timeout is None else time.monotonic() + timeout
    interrupted = False
    try:
        for message in _messages(manager, client, request):
            if message is not None:
                kind, content = message["msg_type"], message["content"]
                if kind == "execute_input":
                    cell.execution_count = content["execution_count"]
                outputs.take(kind, content)
            if limit is not None and time.monotonic() > limit:
                if interrupted:
                    raise _Dead(
                        f"did not end within {timeout:g} s, nor when it was interrupted: "
                        "the kernel was ended"
                    )
                manager.interrupt_kernel()
                interrupted, limit = True, time.monotonic() + GRACE
        reply = _reply(manager, client, request)
    finally:
        cell.outputs = outputs.nodes()
    if interrupted:
        return f"was interrupted: it did not end within {timeout:g} s"
    if reply["status"] == "ok":
        return None
    lines = ANSI.sub("", "\n".join(reply.get("traceback") or [])).splitlines()[-12:]
    lines = lines or [f"{reply.get('ename', reply['status'])}: {reply.get('evalue', '')}"]
    return "\n".join(line if len(line) <= 300 else line[:297] + "..." for line in lines)


def _messages(manager: Any, client: Any, request: str) -> Iterator[Any]:
    """What the kernel publishes about a request until it is done; None where it is silent."""
    silent = 0
    while True:
        try:
            message = client.get_iopub_msg(timeout=0.2)
        except queue.Empty:
            if not manager.is_alive():
                raise _Dead("the kernel died (out of memory? close other programs)") from None
            silent = silent + 1 if client.shell_channel.msg_ready() else 0
            if silent * 0.2 > LAST_WORDS:  # a flood of messages can lose the last one
                return
            yield None
            continue
        silent = 0
        if message["parent_header"].get("msg_id") == request:
            if message["content"].get("execution_state") == "idle":
                return
            yield message
        elif message["msg_type"] == "update_display_data":  # of a thread that goes on
            yield message


def _reply(manager: Any, client: Any, request: str) -> dict[str, Any]:
    """The kernel's answer to a request that is done."""
    while True:
        try:
            message = client.get_shell_msg(timeout=1)
        except queue.Empty:
            if not manager.is_alive():
                raise _Dead("the kernel died (out of memory? close other programs)") from None
            continue
        if message["parent_header"].get("msg_id") == request:
            return dict(message["content"])


def _strangers(manager: Any, client: Any) -> dict[str, str]:
    """{module: file} of what the kernel loaded as `kdlib`, but not from this kit."""
    request = client.execute("", silent=True, user_expressions={"modules": MODULES})
    limit = time.monotonic() + START
    for _ in _messages(manager, client, request):
        if time.monotonic() > limit:
            raise _Dead("the kernel does not answer any more")
    answer = _reply(manager, client, request).get("user_expressions", {}).get("modules", {})
    try:
        found = json.loads(ast.literal_eval(answer["data"]["text/plain"]))
        kit = launch.ROOT / "kdlib"
        return {
            name: file
            for name, file in {"kdlib": "", **found}.items()
            if not file or not Path(file).resolve().is_relative_to(kit)
        }
    except (KeyError, ValueError, TypeError, SyntaxError, AttributeError):
        return {"kdlib": "a kernel that does not say"}
