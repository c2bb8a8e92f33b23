"""Lines that the library says itself: displays with data in a notebook, prints elsewhere."""

from __future__ import annotations

import sys
from typing import Any


def say(text: str, *, html: str = "", **data: Any) -> None:
    """Say one text: in a notebook a display that carries `data`, elsewhere a print.

    The display's metadata hold `{"kdlib": data}`, where `kdlib run` finds it. A console that
    cannot show a sign, such as "≈", shows "?" in its place.

    Args:
        text: what the reader sees in a terminal, and where HTML is not shown.
        html: what the reader of a notebook sees.
        data: JSON values, for example `claim={"text": ...}`.
    """
    if in_kernel():
        from IPython.display import display

        forms = {"text/plain": text} | ({"text/html": html} if html else {})
        display(forms, raw=True, metadata={"kdlib": data})
        return
    try:
        print(text)
    except UnicodeEncodeError:
        encoding = getattr(sys.stdout, "encoding", None) or "ascii"
        print(text.encode(encoding, errors="replace").decode(encoding))


def in_kernel() -> bool:
    """Whether this process is the kernel of a notebook."""
    if "ipykernel" not in sys.modules:
        return False
    from IPython import get_ipython

    return getattr(get_ipython(), "kernel", None) is not None
