"""Open JupyterLab on a student's own copies, also as root in a container and without a display."""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from kdlib.engine import copies, notebooks
from kdlib.engine.environment import one_thread_environment, quiet_environment

HELP = "open JupyterLab on your own copies of the notebooks, in mine/"
ASSETS = Path(__file__).resolve().parents[1] / "assets"
SETTINGS = ASSETS / "jupyter"  # no question about news; a saved copy keeps what moves
ORIGINALS = ASSETS / "jupyter_originals"  # written when asked to, and without widgets


def configure(parser: argparse.ArgumentParser) -> None:
    """One option is the kit's, every other one JupyterLab's."""
    parser.add_argument(
        "--originals",
        action="store_true",
        help="open notebooks/ instead, and leave mine/ as it is",
    )
    parser.epilog = "Other options go to JupyterLab, for example --port 9000."
    parser.set_defaults(options=[])


def main(arguments: argparse.Namespace) -> int:
    """Start the server; returns its exit status."""
    return start(arguments.options, originals=arguments.originals)


def has_display(environment: Mapping[str, str] = os.environ, platform: str = sys.platform) -> bool:
    """Whether a browser could open a window here."""
    if platform in ("win32", "darwin"):
        return "SSH_CONNECTION" not in environment
    return bool(environment.get("DISPLAY") or environment.get("WAYLAND_DISPLAY"))


def is_root() -> bool:
    """Whether this process runs as root (never on Windows)."""
    return hasattr(os, "geteuid") and os.geteuid() == 0


def command(
    options: Sequence[str] = (),
    *,
    root: bool,
    display: bool,
    folder: Path = notebooks.FOLDER,
    first: str = "",
) -> list[str]:
    """The command line of the server; `options` come last, so they win.

    The server may read the whole kit (a notebook links to the library), and opens in `folder`, at
    the notebook `first` or, without one, in a workspace of its own. Quiet: what Jupyter prints at
    this log level is its address, with the token.
    """
    page = quote(f"/lab/tree/{folder.name}/{first}") if first else "/lab/workspaces/originals"
    return [
        sys.executable,
        "-m",
        "jupyterlab",
        "--Application.log_level=ERROR",
        "--LabApp.log_level=ERROR",
        f"--ServerApp.root_dir={folder.parent}",
        f"--FileContentsManager.preferred_dir={folder}",
        f"--LabApp.default_url={page}",
        # Nothing is asked of the network.
        "--LabApp.news_url=None",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        *(["--allow-root"] if root else []),
        *([] if display else ["--no-browser"]),
        *options,
    ]


def start(options: Sequence[str] = (), *, originals: bool = False) -> int:
    """Start the server and stay until it ends; returns its exit status.

    Args:
        options: of JupyterLab.
        originals: open the kit's notebooks themselves instead of the student's copies.

    Raises:
        FileNotFoundError: JupyterLab or the folder of notebooks is missing; says what to do.
        ValueError: a notebook of the kit cannot be read.
        OSError: the copies cannot be written; says what to do.
    """
    if importlib.util.find_spec("jupyterlab") is None:
        raise FileNotFoundError(
            f"JupyterLab is not installed for {sys.executable}: run "
            "`python -m pip install -r requirements.txt` in the kit's folder"
        )
    if not notebooks.FOLDER.is_dir():
        raise FileNotFoundError(
            f"no folder {notebooks.FOLDER}: install the kit from its own folder with "
            "`pip install -r requirements.txt`"
        )
    folder, first = notebooks.FOLDER, ""
    if not originals:
        folder, first = copies.FOLDER, _refresh_copies()
    line = command(options, root=is_root(), display=has_display(), folder=folder, first=first)
    environment = os.environ | server_environment(originals=originals)
    print("Starting JupyterLab. Stop it with Ctrl-C.", flush=True)
    if os.name == "posix":  # become the server: signals reach it directly
        os.execve(line[0], line, environment)
    process = subprocess.Popen(line, env=environment)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:  # the server has it too, and asks whether to stop
            continue


def server_environment(*, originals: bool = False) -> dict[str, str]:
    """Variables of the server and its kernels."""
    given = os.environ.get("JUPYTER_CONFIG_PATH")
    own = [str(ORIGINALS)] * originals + [str(SETTINGS)]
    return {
        # The kernel "python3" of this environment, not one that the user installed for another.
        "JUPYTER_PREFER_ENV_PATH": "1",
        "JUPYTER_CONFIG_PATH": os.pathsep.join([*filter(None, [given]), *own]),
        **one_thread_environment(),
        **quiet_environment(),
    }


def _refresh_copies() -> str:
    """Bring the copies up to date and say how; returns the name of the first."""
    known = notebooks.find()
    try:
        news = copies.refresh(known, copies.FOLDER)
    except OSError as error:
        advice = f"{error.strerror}. `lab --originals` opens the notebooks without copies"
        raise type(error)(error.errno, advice, error.filename) from error
    for line in news:
        print(line)
    return known[0].name
