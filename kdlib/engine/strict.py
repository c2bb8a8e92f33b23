"""A plugin of pytest: what `pytest --nbval` compares in a notebook that was written with the kit.

Installed with the kit, it serves notebooks in any folder. It runs them in the kernel of this
interpreter with this kit, on one thread; masks measured numbers where outputs are compared as
text; then compares the numbers themselves, each within the room that its display carries. Without
the kit installed a notebook is compared more loosely: the stored outputs are the same.
"""

from __future__ import annotations

import importlib.resources
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

MASKS = importlib.resources.files("kdlib") / "assets" / "nbval_sanitize.cfg"
MOST_WIDER = 10.0  # times the fresh room; of five seeds on two machines, one in 3,000 is wider


def pytest_configure(config: Any) -> None:
    """Prepare nbval where it is in use."""
    if not getattr(config.option, "nbval", False):
        return
    import nbval.kernel
    from nbval.plugin import IPyNbCell

    from kdlib.engine import environment, kernels

    os.environ.update(environment.quiet_environment())
    if config.option.nbval_sanitize_with is None:
        config.option.nbval_sanitize_with = str(MASKS)

    class OwnKernels(nbval.kernel.NbvalKernelspecManager):
        """With `--nbval-current-env` a kernel is this interpreter with this kit."""

        def get_kernel_spec(self, kernel_name: str) -> Any:
            if kernel_name == nbval.kernel.CURRENT_ENV_KERNEL_NAME:
                return kernels.spec()
            return super().get_kernel_spec(kernel_name)

    nbval.kernel.NbvalKernelspecManager = OwnKernels
    if not hasattr(IPyNbCell, "compare_as_text"):
        IPyNbCell.compare_as_text = IPyNbCell.compare_outputs
        IPyNbCell.compare_outputs = _compare_outputs


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave out what `kdlib run --save` left beside a notebook."""
    return True if collection_path.name.endswith(".executed.ipynb") else None


def _compare_outputs(cell: Any, test: Any, ref: Any, skip_compare: Any = None) -> bool:
    """nbval's own comparison, then the measured numbers."""
    if not cell.compare_as_text(test, ref, skip_compare):
        return False
    cell.comparison_traceback = moved(ref, test)
    return not cell.comparison_traceback


def moved(stored: Iterable[Mapping[str, Any]], fresh: Iterable[Mapping[str, Any]]) -> list[str]:
    """A line for each measured number of `stored` that `fresh` has not within its room."""
    before, after = _measured(stored), _measured(fresh)
    if len(before) != len(after):
        return [f"{len(before)} measured numbers are stored, {len(after)} were measured now"]
    lines = []
    for place, ((value, room), (other, now)) in enumerate(zip(before, after), start=1):
        if value is None or other is None or not math.isfinite(value + other):
            apart = value != other
        else:
            room = _shared(room, now)
            apart = room is not None and abs(value - other) > room
        if apart:
            lines.append(
                f"measured number {place} moved from {value} to {other}; its room is {room}"
            )
    return lines


def _shared(stored: float | None, fresh: float | None) -> float | None:
    """The larger room of the two runs. What is stored may be forged: the fresh one bounds it."""
    if not fresh:  # none, or seeds that agree to the last bit
        return stored
    return fresh if stored is None else max(fresh, min(stored, MOST_WIDER * fresh))


def _measured(outputs: Iterable[Mapping[str, Any]]) -> list[tuple[float | None, float | None]]:
    """All (number, room) of the outputs of a cell, in order."""
    return [
        (pair[0], pair[1])
        for output in outputs
        for pair in output.get("metadata", {}).get("kdlib", {}).get("measured", ())
    ]
