"""What the kit runs of somebody else's homework, in the sandbox: notebooks and reports."""

from __future__ import annotations

from pathlib import Path

from kdlib.homework.building import Built
from kdlib.homework.sandbox import Finished, Limits


def run_notebook(
    path: Path, project: Path, *, limits: Limits = Limits(), trust: bool = False  # noqa: B008
) -> Finished:
    """Repeat a notebook of `project` and compare each output with the stored one (strict nbval).

    The project's own configuration of pytest (`conftest.py`, `pytest.ini`, …) is not read. The
    return code is pytest's: 0 equal, 1 a difference or an error, 5 no cells of code. The notebook
    runs in a copy of the project and may write there; nothing comes out but the text. It can forge
    this answer: check the files that it claims from outside.

    Args:
        path: of the notebook, relative to `project`.
        project: the team's folder.

    Raises:
        NoSandbox: none works here, and `trust` is not given.
        ValueError: the path leaves the project, or the project is too large to copy.
    """
    raise NotImplementedError


def build_report(folder: Path, main: str, *, trust: bool = False) -> Built:
    """Build the PDF of somebody else's report, as `building.typst` and `building.latex` do.

    Args:
        folder: of the report; nothing outside it can be read.
        main: the file to start with, `.typ` or `.tex`.

    Raises:
        NoSandbox: none works here, and `trust` is not given.
        FileNotFoundError: LaTeX is not installed.
        ValueError: the folder is too large.
    """
    raise NotImplementedError
