"""A student's own copies of the notebooks: without outputs, renewed until they are touched.

A copy is untouched while it says what the kit wrote: the same cells, none of them run. What
JupyterLab changes when it saves (layout of the file, metadata) does not count.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdlib.engine.files import write_atomically
from kdlib.engine.notebooks import PROJECT, parse, read

FOLDER = PROJECT / "mine"
# {name: fingerprint of the copy as written}, which is that of its original without outputs too.
STATE = ".copies.json"

# What can be said about a copy; "" where there is nothing to say.
MADE = "made"
MADE_AGAIN = "made again, it was gone"
RENEWED = "renewed, its original has changed"
RENEWED_FOR_PYTHON = "renewed, Python has changed"
HOW = "to get that, rename or delete your copy and start again"
KEPT = f"kept, because you changed or ran it; its original is newer: {HOW}"
UNKNOWN = f"kept, because it may be your work; it differs from its original: {HOW}"


def refresh(originals: Sequence[Path], folder: Path) -> list[str]:
    """Make the copies that are missing, renew the untouched ones whose original has changed.

    A touched copy is never overwritten, nor is one that the state does not know, unless it equals
    its original. So a crash, a lost or a foreign state can cost a renewal, but no work.

    Args:
        originals: the notebooks of the kit.
        folder: where the copies lie; made if it is missing.

    Returns:
        A line for each copy that was made or renewed, or kept although its original differs: `KEPT`
        at every start, `UNKNOWN` once.

    Raises:
        ValueError: an original is no notebook; nothing was written.
        OSError: an original cannot be read (nothing was written), or the folder cannot be written
            (each copy is the old one or the new one, never half of it).
    """
    import nbformat

    metadata = kernel_metadata()
    fresh = {path.name: without_outputs(read(path), metadata) for path in originals}
    state = _read_state(folder / STATE)
    before, lines = dict(state), []
    for name, notebook in fresh.items():
        news = _news(folder / name, notebook, state.get(name))
        if news not in ("", KEPT, UNKNOWN):
            write_atomically(folder / name, nbformat.writes(notebook) + "\n")
        if news != KEPT:
            state[name] = fingerprint(notebook)
        if news:
            lines.append(f"{folder.name}/{name}: {news}")
    if state != before:
        write_atomically(folder / STATE, json.dumps(state, indent=1, sort_keys=True) + "\n")
    return lines


def _news(path: Path, fresh: Any, known: str | None) -> str:
    """What there is to say, given the copy as it would be now, and the state's entry."""
    if not os.path.lexists(path):
        return MADE if known is None else MADE_AGAIN
    wanted = fingerprint(fresh)
    copy = _open(path)
    if copy is None or fingerprint(copy) not in (wanted, known):
        if known is None:
            return UNKNOWN
        return "" if known == wanted else KEPT
    if fingerprint(copy) != wanted:
        return RENEWED
    same = copy.metadata.get("language_info") == fresh.metadata.get("language_info")
    return "" if same else RENEWED_FOR_PYTHON


def without_outputs(notebook: Any, metadata: Mapping[str, Any]) -> Any:
    """The notebook, in place, as if nobody had run it; ids and tags stay."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of day
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    notebook.metadata.update(metadata)
    return notebook


def fingerprint(notebook: Any) -> str:
    """SHA-256 of what a student can change in a notebook or get from it by running it."""
    cells = [
        [
            *(cell.cell_type, cell.source, cell.metadata.get("tags") or []),
            *(cell.get(key) or None for key in ("attachments", "outputs", "execution_count")),
        ]
        for cell in notebook.cells
    ]
    kernel = notebook.metadata.get("kernelspec", {}).get("name")
    return hashlib.sha256(json.dumps([kernel, cells], sort_keys=True).encode()).hexdigest()


def kernel_metadata() -> dict[str, Any]:
    """`kernelspec` and `language_info` as the kernel of `lab` states them.

    JupyterLab marks a notebook as changed when it opens one that differs from its kernel.
    """
    from ipykernel.ipkernel import IPythonKernel
    from jupyter_client.kernelspec import NATIVE_KERNEL_NAME, KernelSpecManager
    from jupyter_core.paths import ENV_JUPYTER_PATH

    folders = [str(Path(folder, "kernels")) for folder in ENV_JUPYTER_PATH]
    spec = KernelSpecManager(kernel_dirs=folders).get_kernel_spec(NATIVE_KERNEL_NAME)
    return {
        "kernelspec": {
            "display_name": spec.display_name,
            "language": spec.language,
            "name": NATIVE_KERNEL_NAME,
        },
        "language_info": dict(IPythonKernel.language_info),
    }


def _open(path: Path) -> Any:
    """The notebook at `path`, None for what is not one that the kit can have written."""
    try:
        notebook = parse(path.read_bytes(), path)
        fingerprint(notebook)
    except Exception:  # whatever it is, it is not the kit's to overwrite
        return None
    return notebook


def _read_state(path: Path) -> dict[str, str]:
    """The entries that are of use; none where the file is missing or somebody else's."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    entries = found.items() if isinstance(found, dict) else ()
    return {name: value for name, value in entries if isinstance(value, str)}
