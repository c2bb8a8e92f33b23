"""Processes that do not outlive the one that started them, however that one ended."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

SECONDS = 1.0  # between two looks at the parent


def end_with_parent(parent: int) -> None:
    """End this process within about a second after the process `parent` that started it.

    A killed parent cannot tell its children, so a thread of each child looks for it.
    """
    alive = _sign_of_life(parent)

    def watch() -> None:
        while alive():
            time.sleep(SECONDS)
        os._exit(1)

    threading.Thread(target=watch, name="kdlib: end with parent", daemon=True).start()


def _sign_of_life(parent: int) -> Callable[[], bool]:
    """A function that tells whether the parent still runs."""
    if os.name == "posix":
        return lambda: os.getppid() == parent  # an orphan gets another parent
    try:  # Windows keeps the number of a dead parent
        import psutil

        return psutil.Process(parent).is_running
    except ImportError:
        return lambda: True
    except psutil.Error:
        return lambda: False
