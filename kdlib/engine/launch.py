"""A kernel of this very kit: a script that `kdlib.engine.kernels` starts in a process of its own.

The kit comes before whatever lies beside the notebook, one thread is used, libraries keep quiet,
and the kernel ends with its parent.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # the folder that holds `kdlib`


def serve() -> None:
    """Be a kernel until the client or the parent ends."""
    sys.path[:] = search_path(sys.path)
    from kdlib.engine import environment, orphans  # loaded before a cell can choose another kit

    os.environ.update(environment.quiet_environment() | environment.one_thread_environment())
    if os.name == "posix" and os.environ.get("JPY_PARENT_PID"):  # elsewhere ipykernel does it
        orphans.end_with_parent(int(os.environ["JPY_PARENT_PID"]))
    from ipykernel.kernelapp import IPKernelApp

    app = IPKernelApp.instance()
    app.initialize()
    sys.path[:] = search_path(sys.path)
    app.start()


def search_path(path: Sequence[str]) -> list[str]:
    """The path of a kernel: the kit, then the notebook's folder (""), then what is installed.

    If the kit is installed among other packages, the notebook's folder comes after all of them.
    """
    here, root = os.path.realpath(os.getcwd()), str(ROOT)
    found = [one for one in path if one and os.path.realpath(one) != here]
    if root not in found:
        installed = [
            place
            for place, one in enumerate(found)
            if Path(one).name in ("site-packages", "dist-packages")
        ]
        found.insert(installed[0] if installed else len(found), root)
    found.insert(found.index(root) + 1, "")
    return found


if __name__ == "__main__":
    serve()
