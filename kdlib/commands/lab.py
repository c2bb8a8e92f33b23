"""Open JupyterLab in `notebooks/`, also as root in a container and without a display."""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from kdlib.engine.environment import one_thread_environment, quiet_environment
from kdlib.engine.notebooks import FOLDER

HELP = "open JupyterLab in notebooks/"


def configure(parser: argparse.ArgumentParser) -> None:
    """Every other option is JupyterLab's."""
    parser.epilog = "Other options go to JupyterLab, for example --port 9000."
    parser.set_defaults(options=[])


def main(arguments: argparse.Namespace) -> int:
    """Start the server; returns its exit status."""
    return start(arguments.options)


def has_display(environment: Mapping[str, str] = os.environ, platform: str = sys.platform) -> bool:
    """Whether a browser could open a window here."""
    if platform in ("win32", "darwin"):
        return "SSH_CONNECTION" not in environment
    return bool(environment.get("DISPLAY") or environment.get("WAYLAND_DISPLAY"))


def is_root() -> bool:
    """Whether this process runs as root (never on Windows)."""
    return hasattr(os, "geteuid") and os.geteuid() == 0


def command(
    options: Sequence[str] = (), *, root: bool, display: bool, folder: Path = FOLDER
) -> list[str]:
    """The command line of the server; `options` come last, so they win.

    The server may read the whole kit (a notebook links to the library), and opens in `folder`.
    Quiet: what Jupyter prints at this log level is its address, with the token.
    """
    return [
        sys.executable,
        "-m",
        "jupyterlab",
        "--Application.log_level=ERROR",
        "--LabApp.log_level=ERROR",
        f"--ServerApp.root_dir={folder.parent}",
        f"--FileContentsManager.preferred_dir={folder}",
        # Nothing is asked of the network.
        "--LabApp.news_url=None",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        *(["--allow-root"] if root else []),
        *([] if display else ["--no-browser"]),
        *options,
    ]


def start(options: Sequence[str] = ()) -> int:
    """Start the server and stay until it ends; returns its exit status.

    Raises:
        FileNotFoundError: JupyterLab or the folder of notebooks is missing; says what to do.
    """
    if importlib.util.find_spec("jupyterlab") is None:
        raise FileNotFoundError(
            f"JupyterLab is not installed for {sys.executable}: run "
            "`python -m pip install -r requirements.txt` in the kit's folder"
        )
    if not FOLDER.is_dir():
        raise FileNotFoundError(
            f"no folder {FOLDER}: install the kit from its own folder with "
            "`pip install -r requirements.txt`"
        )
    line = command(options, root=is_root(), display=has_display())
    # The kernel "python3" of this environment, not one that the user installed for another.
    settings = {"JUPYTER_PREFER_ENV_PATH": "1", **one_thread_environment(), **quiet_environment()}
    environment = os.environ | settings
    print("Starting JupyterLab. Stop it with Ctrl-C.", flush=True)
    if os.name == "posix":  # become the server: signals reach it directly
        os.execve(line[0], line, environment)
    process = subprocess.Popen(line, env=environment)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:  # the server has it too, and asks whether to stop
            continue
