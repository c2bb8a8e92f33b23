"""A picture that moves in a running notebook and stands still everywhere else."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from kdlib import show
from kdlib.engine.outputs import VIEW

FOLDER = Path(__file__).parent
PALETTE = ("GREY", "BLUE", "SKY", "GREEN", "ORANGE", "RED", "PINK", "YELLOW")
MISSING = "This picture moves where anywidget is installed: pip install -r requirements.txt"


class Moving:
    """A still figure and the browser's program that moves it; the last line of a cell shows it.

    The program gets its data once and asks the kernel nothing. What is stored in a notebook is the
    figure: where there is no program, or no anywidget, a reader sees it.

    Args:
        name: of the program, a file NAME.js beside this one.
        still: the figure; it is drawn and closed.
        alt: what the figure shows, in words without measured numbers.
        data: numbers, texts, lists, dictionaries and bytes for the program.
    """

    def __init__(self, name: str, still: Figure, alt: str, data: Mapping[str, Any]) -> None:
        self.name, self.alt = name, alt
        palette = {colour.lower(): getattr(show, colour) for colour in PALETTE}
        self.data = {**data, "palette": palette, "title": alt}
        stream = io.BytesIO()
        still.savefig(stream, format="png", dpi=2 * still.dpi, bbox_inches="tight")
        plt.close(still)
        self.png = stream.getvalue()
        width, height = (int.from_bytes(self.png[at : at + 4], "big") for at in (16, 20))
        self._size = {"width": width // 2, "height": height // 2}

    def __repr__(self) -> str:
        return self.alt

    def _repr_mimebundle_(
        self, include: Any = None, exclude: Any = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        png = base64.b64encode(self.png).decode()
        forms: dict[str, Any] = {"text/plain": self.alt, "image/png": png}
        model = self._model()
        if model is None:
            size = " ".join(f'{side}="{pixels}"' for side, pixels in self._size.items())
            picture = (
                f'<img src="data:image/png;base64,{png}" {size} alt="{html.escape(self.alt)}">'
            )
            forms["text/html"] = f"<div>{picture}<br>{MISSING}</div>"
        else:
            forms[VIEW] = {"version_major": 2, "version_minor": 0, "model_id": model}
        return forms, {"image/png": {**self._size, "alt": self.alt}}

    def _model(self) -> str | None:
        """The id of a fresh model for the front end; None without anywidget."""
        try:
            import anywidget
            import traitlets
        except ModuleNotFoundError:
            return None

        class Widget(anywidget.AnyWidget):
            _esm = program(self.name)
            _css = (FOLDER / "style.css").read_text("utf-8")
            data = traitlets.Dict(self.data).tag(sync=True)

        return str(Widget().model_id)


def program(name: str) -> str:
    """The JavaScript module of a widget: what all of them share, then its own file."""
    return "\n".join((FOLDER / f"{part}.js").read_text("utf-8") for part in ("shared", name))


def grey(image: Tensor) -> bytes:
    """A picture of values from 0 to 1, [h, w] or [1, h, w], one byte a pixel, row by row."""
    return np.rint(255 * image.detach().cpu().double().clamp(0, 1).numpy()).astype("u1").tobytes()


def floats(values: Tensor) -> bytes:
    """Values as float32, little end first, the last axis fastest."""
    return values.detach().cpu().float().contiguous().numpy().astype("<f4").tobytes()
