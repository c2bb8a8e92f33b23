"""Figures in one style, with the same colour for the same method everywhere."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from kdlib.engine.environment import quiet_environment

os.environ.update(quiet_environment())  # before Matplotlib looks for a place of its own

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from kdlib.evidence import interval
from kdlib.records import METRIC, Runs
from kdlib.tables import Interval

# Okabe and Ito's colours, safe for colour-blind readers; related methods share a hue and differ
# in the marker. A label such as "KD, T=4" takes the look of its longest known beginning; a
# notebook with names of its own adds them here.
BLACK, GREY, BLUE, SKY = "#000000", "#8a8a8a", "#0072B2", "#56B4E9"
GREEN, ORANGE, RED, PINK, YELLOW = "#009E73", "#E69F00", "#D55E00", "#CC79A7", "#B8A900"
LOOKS: dict[str, tuple[str, str]] = {
    "teacher": (BLACK, "*"), "ensemble": (BLACK, "P"),
    "ce": (GREY, "v"), "independent": (GREY, "v"), "alone": (GREY, "v"),
    "scratch": (GREY, "v"), "branches": (RED, "P"),
    "label smoothing": (GREY, "<"), "label": (GREY, "s"), "control": (GREY, "D"),
    "kd": (BLUE, "o"), "distilled": (BLUE, "o"), "kd + crd": (BLUE, "P"),
    "dkd": (SKY, "s"), "dist": (SKY, "^"), "ofa": (RED, "X"),
    "hint": (ORANGE, "o"), "fitnet": (ORANGE, "o"), "at": (ORANGE, "s"), "nst": (ORANGE, "^"),
    "vid": (YELLOW, "D"), "crd": (GREEN, "o"),
    "sp": (RED, "s"), "rkd": (RED, "^"), "pkt": (RED, "D"), "cc": (PINK, "v"),
    "start": (GREY, "<"), "sft": (GREY, "s"), "seqkd": (ORANGE, "^"),
    "minillm": (RED, "X"), "gkd": (GREEN, "D"),
    "forward": (BLUE, "o"), "reverse": (RED, "s"), "jsd": (GREEN, "^"),
    "skew-forward": (SKY, "o"), "skew-reverse": (ORANGE, "s"), "tvd": (PINK, "D"),
}  # fmt: skip
STYLE: dict[str, Any] = {
    "figure.dpi": 100,
    "savefig.dpi": 100,
    "font.size": 10,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "axes.titlesize": 11,
    "image.cmap": "cividis",
    "figure.constrained_layout.use": True,
    "axes.prop_cycle": plt.cycler(color=[BLUE, ORANGE, GREEN, RED, PINK, SKY, YELLOW, GREY]),
}
WIDTH = 8.0  # inches, of every figure


def look(method: str) -> dict[str, Any]:
    """Colour and marker of a method, as keywords for matplotlib."""
    known = [name for name in LOOKS if method.lower().startswith(name)]
    colour, marker = LOOKS[max(known, key=len)] if known else (PINK, "o")
    return {"color": colour, "marker": marker}


def figure(
    rows: int = 1, columns: int = 1, *, height: float = 3.2, **options: Any
) -> tuple[Figure, Any]:
    """A figure of the kit's width; `height` in inches for each row of axes.

    Sets the kit's style for this process: legends and texts added later follow it too. In a
    notebook the picture has twice the pixels of its shown size: sharp on a dense screen.

    Returns:
        (figure, axes) as `plt.subplots` gives them.
    """
    plt.rcParams.update(STYLE)  # type: ignore[arg-type]
    if plt.get_backend().endswith("inline"):
        from matplotlib_inline.backend_inline import set_matplotlib_formats  # with IPython alone

        set_matplotlib_formats("retina")
    return plt.subplots(rows, columns, figsize=(WIDTH, height * rows), **options)


def intervals(
    results: Mapping[str, Interval],
    *,
    xlabel: str,
    axes: Axes | None = None,
    reference: float | None = None,
    title: str = "",
) -> Axes:
    """Means with 95 % intervals, one line a method, the first at the top.

    Args:
        reference: where to draw a vertical line, e.g. 0 for differences.
    """
    if axes is None:
        _, axes = figure(height=0.6 + 0.32 * len(results))
    for row, (method, value) in enumerate(results.items()):
        axes.errorbar(
            value.mean, row, xerr=value.half_width, capsize=3, linestyle="none", **look(method)
        )
    if reference is not None:
        axes.axvline(reference, color=BLACK, linewidth=0.8, linestyle="--")
    axes.set(yticks=range(len(results)), yticklabels=list(results), xlabel=xlabel, title=title)
    axes.set_ylim(len(results) - 0.5, -0.5)
    return axes


def bars(
    groups: Mapping[str, Mapping[str, Interval]],
    *,
    ylabel: str,
    axes: Axes | None = None,
    reference: float | None = None,
    title: str = "",
    legend: bool = True,
    hatched: Collection[str] = (),
) -> Axes:
    """Bars with 95 % intervals, in groups over a common axis; one colour a method.

    Args:
        groups: {group: {method: interval}}; a single group writes the methods below its bars.
        reference: where to draw a horizontal line, e.g. chance.
        legend: name the methods of several groups in a legend.
        hatched: methods whose bars are hatched, e.g. controls.
    """
    if axes is None:
        _, axes = figure()
    methods = list(dict.fromkeys(name for group in groups.values() for name in group))
    width = 0.8 / len(methods)
    for column, method in enumerate(methods):
        found = [
            (row, group[method]) for row, group in enumerate(groups.values()) if method in group
        ]
        places = [row + (column - (len(methods) - 1) / 2) * width for row, _ in found]
        hatch = "///" if method in hatched else None
        axes.bar(
            places,
            [value.mean for _, value in found],
            0.9 * width,
            label=method,
            yerr=[value.half_width for _, value in found],
            color=look(method)["color"],
            hatch=hatch,
            edgecolor="white",
            ecolor=GREY if look(method)["color"] == BLACK else BLACK,
            error_kw={"capsize": 3, "elinewidth": 1},
        )
        if len(groups) == 1:
            axes.text(
                places[0],
                -0.02,
                method,
                ha="center",
                va="top",
                fontsize=9,
                transform=axes.get_xaxis_transform(),
            )
    if reference is not None:
        axes.axhline(reference, color=RED, linewidth=1, linestyle="--")
    axes.set(
        xticks=[] if len(groups) == 1 else range(len(groups)),
        xticklabels=[] if len(groups) == 1 else list(groups),
        ylabel=ylabel,
        title=title,
    )
    axes.grid(False, axis="x")
    if legend and len(groups) > 1:
        axes.legend()
    return axes


def gains(
    runs: Runs,
    baseline: str,
    *,
    metric: str = METRIC,
    xlabel: str | None = None,
    axes: Axes | None = None,
    title: str = "",
) -> Axes:
    """Paired differences of every method to `baseline`, with their intervals."""
    results = {
        method: interval(runs.paired(method, baseline, metric))
        for method in runs.methods
        if method != baseline
    }
    label = xlabel or f"{metric}: difference to {baseline}, points"
    return intervals(results, xlabel=label, axes=axes, reference=0.0, title=title)


def curves(
    series: Mapping[str, Sequence[Interval]],
    x: Sequence[float],
    *,
    xlabel: str,
    ylabel: str,
    axes: Axes | None = None,
    title: str = "",
) -> Axes:
    """One line a method over `x`, with a band for the 95 % interval."""
    if axes is None:
        _, axes = figure()
    for method, values in series.items():
        mean, low, high = np.array(values).T
        axes.plot(x, mean, label=method, markersize=5, **look(method))
        axes.fill_between(x, low, high, color=look(method)["color"], alpha=0.15, linewidth=0)
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
    axes.legend()
    return axes


def heatmap(
    values: np.ndarray,
    *,
    rows: Sequence[Any],
    columns: Sequence[Any],
    xlabel: str,
    ylabel: str,
    label: str,
    digits: int = 1,
    axes: Axes | None = None,
    title: str = "",
    limits: tuple[float, float] | None = None,
) -> Axes:
    """A matrix as colours with its numbers written in, and a colour bar named `label`.

    limits: ends of the colour scale, where several maps share one; then without a bar unless
        `label` is given.
    """
    if axes is None:
        _, axes = figure(height=0.9 + 0.45 * len(rows))
    low, high = limits or (np.nanmin(values), np.nanmax(values))
    image = axes.imshow(values, aspect="auto", cmap="cividis", vmin=low, vmax=high)
    middle = (low + high) / 2
    for (row, column), value in np.ndenumerate(values):
        axes.text(
            column,
            row,
            f"{value:.{digits}f}",
            ha="center",
            va="center",
            color="white" if value < middle else "black",
            fontsize=9,
        )
    axes.set(
        xticks=range(len(columns)),
        xticklabels=list(columns),
        yticks=range(len(rows)),
        yticklabels=list(rows),
        xlabel=xlabel,
        ylabel=ylabel,
        title=title,
    )
    axes.grid(False)
    if label or limits is None:
        axes.figure.colorbar(image, ax=axes, label=label)
    return axes


def branches(
    teacher: Mapping[str, Sequence[int]],
    student: Mapping[str, Sequence[int]],
    *,
    logits: int,
    titles: tuple[str, str] = ("teacher", "student"),
) -> Figure:
    """OFA-KD as a picture: modules of both networks, and the losses between logits.

    Args:
        teacher, student: {stage: shape of one sample} from shallow to deep.
        logits: number of classes.
        titles: of the two networks.
    """
    picture, axes = figure(height=4.2)
    top, margin = len(student), 9.85
    axes.set(xlim=(0, 10), ylim=(-0.7, top + 1.2))
    axes.axis("off")

    def box(x: float, y: float, text: str, colour: str, ink: str = "white") -> None:
        frame = dict(boxstyle="round,pad=0.4", facecolor=colour, edgecolor="none")
        axes.text(x, y, text, ha="center", va="center", fontsize=8, color=ink, bbox=frame)

    def arrow(start: tuple[float, float], end: tuple[float, float], colour: str = BLACK) -> None:
        axes.annotate("", end, start, arrowprops=dict(arrowstyle="->", color=colour))

    def loss(y: float, text: str) -> None:
        axes.text(9.06, y, text, ha="center", va="center", fontsize=12, color=RED)
        arrow((margin, y), (9.55, y), GREY)

    for x, title, stages in ((1.1, titles[0], teacher), (4.0, titles[1], student)):
        axes.text(x, top + 0.85, title, ha="center", fontsize=11)
        for row, (stage, shape) in enumerate(stages.items()):
            y = float(len(stages) - row)
            box(x, y + 0.2, f"{stage}\n{' x '.join(map(str, shape))}", BLACK if x < 2 else BLUE)
            arrow((x, y - 0.12), (x, y - 0.46))
        box(x, 0.35, f"{logits} logits", BLACK if x < 2 else BLUE)
    for row in range(top):
        y = top - row + 0.2
        arrow((4.75, y), (5.85, y))
        box(6.4, y, "branch", ORANGE, BLACK)
        arrow((6.95, y), (7.3, y))
        box(7.9, y, f"{logits} logits", SKY, BLACK)
        arrow((8.4, y), (8.75, y))
        loss(y, r"$\mathcal{L}_{OFA}$")
    arrow((4.8, 0.35), (8.55, 0.35))
    loss(0.35, r"$\mathcal{L}_{OFA}$, CE")
    # from the teacher's logits below everything and up the right margin, to all losses
    axes.plot((1.1, 1.1, margin, margin), (0.05, -0.25, -0.25, top + 0.2), color=GREY)
    text = "grey: the teacher's final logits, which enter every loss; its stages enter none"
    axes.text(5.4, -0.6, text, ha="center", fontsize=9)
    return picture


def compared(
    panels: Mapping[str, tuple[np.ndarray, np.ndarray | None, str]],
    *,
    columns: int = 3,
    titles: tuple[str, str] = ("teacher", "student"),
) -> Figure:
    """What methods compare: a panel each, with two matrices and a sentence.

    A matrix is drawn from white (its least value) to dark (its largest) in the method's hue, so
    that it reads in grey as well; NaN is grey. A matrix of texts is written out.

    Args:
        panels: {method: (of the teacher, of the student or None, what is compared)}; each is a
            matrix [rows, columns] of numbers or of short texts.
        titles: of the two matrices, written above those of the first panel.
    """
    rows = -(-len(panels) // columns)
    picture, frame = figure(height=1.9 * rows)
    picture.set_layout_engine("none")
    frame.set(position=(0, 0, 1, 1), xlim=(0, columns), ylim=(rows, 0))
    frame.axis("off")
    for place, (method, (left, right, sentence)) in enumerate(panels.items()):
        row, column = divmod(place, columns)
        colour = look(method)["color"]
        red, green, blue = to_rgb(colour)
        dark = to_hex((0.35 * red, 0.35 * green, 0.35 * blue))
        shades = LinearSegmentedColormap.from_list(method, ["white", colour, dark])
        frame.text(column + 0.04, row + 0.13, method, fontweight="bold", color=dark)
        for side, matrix in enumerate((left, right)):
            if matrix is not None:
                corner = (column + 0.04 + 0.47 * side) / columns, 1 - (row + 0.69) / rows
                cell = picture.add_axes((*corner, 0.43 / columns, 0.5 / rows), anchor="NW")
                _matrix(cell, matrix, shades)
                if place == 0:
                    cell.set_title(titles[side], fontsize=9, loc="left" if side else "right")
        lines = "\n".join(textwrap.wrap(sentence, 129 // columns))
        frame.text(column + 0.04, row + 0.73, lines, fontsize=8, va="top")
    return picture


def _matrix(axes: Axes, matrix: np.ndarray, shades: Any) -> None:
    """One matrix in a frame; of texts, each sign in its cell."""
    written = matrix.dtype.kind == "U"
    values = np.char.str_len(matrix) * 0.0 if written else matrix
    axes.set(xticks=[], yticks=[], facecolor="#d0d0d0")
    axes.imshow(values, cmap=shades, aspect="equal")
    axes.grid(False)
    for side in axes.spines.values():
        side.set(visible=True, color=shades(0.6))
    if written:
        for (row, column), sign in np.ndenumerate(matrix):
            axes.text(column, row, sign, ha="center", va="center", fontsize=8, color=shades(1.0))


def words(
    lines: Mapping[str, tuple[Sequence[str], Sequence[float] | None]],
    *,
    limits: tuple[float, float] = (-1, 1),
    label: str = "",
    title: str = "",
) -> Figure:
    """Texts word by word, each word on the colour of its value.

    Around 0 low is red and high is blue, and a line below a word, the thicker the lower, shows
    red in grey print, too. A scale that ends at 0 has one hue, dark for low.

    Args:
        lines: {what stands on the left, at most 24 signs: (words, their values or None)}.
        limits: ends of the colour scale, (-a, a) or (-a, 0).
        label: what the values are, beside the scale; shown where there are values.
    """
    left, right = 25, 110 if label else 124  # columns of signs, as wide as the font
    placed: list[tuple[int, int, str, float | None]] = []
    starts, row = {}, 0
    for name, (found, values) in lines.items():
        starts[name], column = row, left
        for place, word in enumerate(found):
            if column + len(word) > right:
                row, column = row + 1, left
            placed.append((row, column, word, None if values is None else values[place]))
            column += len(word) + 1
        row += 1
    picture, axes = figure(height=0.35 + 0.2 * row)
    axes.set(xlim=(0, right), ylim=(row - 0.4, -0.6))
    axes.set_title(title, loc="left")
    axes.axis("off")
    both = limits[1] > 0
    colour = plt.cm.ScalarMappable(plt.Normalize(*limits), "RdBu" if both else "Oranges_r")
    font: dict[str, Any] = dict(family="monospace", fontsize=7.5, va="center")
    for name, line in starts.items():
        axes.text(0, line, name[: left - 1], color="#404040", **font)
    for line, column, word, value in placed:
        if value is not None:
            shade = Rectangle(
                (column - 0.3, line - 0.42), len(word) + 0.6, 0.84,
                facecolor=colour.to_rgba(np.array(value)), alpha=0.6, linewidth=0,
            )  # fmt: skip
            axes.add_patch(shade)
            if both and value < 0:
                ends, depth = (column, column + len(word)), min(value / limits[0], 1.0)
                axes.plot(ends, (line + 0.4,) * 2, color=BLACK, linewidth=2 * depth)
        axes.text(column, line, word, **font)
    if label:
        picture.colorbar(colour, ax=axes, label=label, shrink=0.9, aspect=12)
    return picture


def images(
    batch: Tensor, titles: Sequence[str] | None = None, *, columns: int = 10, cmap: str = "gray"
) -> Figure:
    """Images [n, c, h, w] (or maps [n, h, w]) in a grid, values shown from 0 to 1."""
    batch = batch.detach().cpu()
    batch = batch[:, None] if batch.ndim == 3 else batch
    columns = min(columns, len(batch))
    rows = -(-len(batch) // columns)
    side = WIDTH / columns * batch.shape[2] / batch.shape[3]
    picture, axes = figure(rows, columns, height=side + (0.3 if titles else 0), squeeze=False)
    for position, cell in enumerate(axes.flat):
        cell.axis("off")
        if position < len(batch):
            pixels = batch[position].permute(1, 2, 0).squeeze(-1).numpy()
            cell.imshow(pixels, cmap=cmap, vmin=0, vmax=1)
            cell.set_title(titles[position] if titles else "", fontsize=9)
    return picture
