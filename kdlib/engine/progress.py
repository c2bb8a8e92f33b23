"""A progress bar with the time left, in a terminal and in a notebook.

In a notebook the bar lives in a display that is empty before and after, so that a stored notebook
holds no trace of it and strict comparison of outputs passes however the notebook was run.
"""

from __future__ import annotations

import os

from tqdm import tqdm

from kdlib.engine.console import in_kernel


class _NotebookLine:
    """A file for tqdm that rewrites one Jupyter display instead of printing."""

    def __init__(self) -> None:
        from IPython.display import display

        self._handle = display({"text/plain": ""}, raw=True, display_id=True)

    def write(self, text: str) -> None:
        line = text.replace("\r", "").strip()
        self._handle.update({"text/plain": line}, raw=True)

    def flush(self) -> None:
        """Nothing is buffered."""


def bar(total: int, label: str, *, enabled: bool = True) -> tqdm:
    """A bar over `total` steps; `enabled=False` or `$KDLIB_PROGRESS=0` hides it."""
    hidden = not enabled or os.environ.get("KDLIB_PROGRESS") == "0"
    notebook = not hidden and in_kernel()
    return tqdm(
        total=total,
        desc=label,
        disable=hidden,
        leave=False,
        dynamic_ncols=not notebook,
        ncols=90 if notebook else None,
        file=_NotebookLine() if notebook else None,
    )
