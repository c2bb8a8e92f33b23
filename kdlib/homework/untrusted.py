"""What the kit runs of somebody else's homework, in the sandbox: notebooks and reports."""

from __future__ import annotations

import os
import sys
from pathlib import Path, PurePosixPath

from kdlib.homework import building, sandbox
from kdlib.homework.building import Built
from kdlib.homework.sandbox import DEFAULT, RESULTS, Finished, Limits

# pytest with nbval and the kit's rules, and with nothing that a project could bring along.
STRICT = (
    "-m",
    "pytest",
    "-p",
    "nbval.plugin",
    "-p",
    "kdlib.engine.strict",
    "-p",
    "no:cacheprovider",
)
OWN = ("--noconftest", "-c", os.devnull, "--rootdir", RESULTS)
ALONE = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""}


def run_notebook(
    path: str | Path,
    project: Path,
    *,
    limits: Limits = DEFAULT,
    trust: bool = False,
    packages: Path | None = None,
) -> Finished:
    """Repeat a notebook of `project` and compare each output with the stored one (strict nbval).

    The project's own configuration of pytest (`conftest.py`, `pytest.ini`, …) is not read. The
    return code is pytest's: 0 equal, 1 a difference or an error, 5 no cells with code. The notebook
    runs in a copy of the project without hidden files and may write there; nothing comes out but
    the text. It can forge this answer: what it claims must be checked by its files.

    Args:
        path: of the notebook, relative to `project`.
        project: the team's folder.
        limits: of time, memory, processes and files.
        trust: without a sandbox.
        packages: a folder of further packages, for the sandbox.

    Raises:
        NoSandbox: none works here, and `trust` is not given.
        ValueError: the path is no file of the project, or the project is too large to copy.
    """
    name = PurePosixPath(Path(path).as_posix())
    steps = [Path(project, part) for part in (name, *name.parents[:-1])]
    outside = name.is_absolute() or ".." in name.parts or any(one.is_symlink() for one in steps)
    if outside or not steps[0].is_file():
        raise ValueError(
            f"path must be a notebook in {project}, not behind a link, got {str(path)!r}"
        )
    words = ["--nbval", "--nbval-current-env", f"--nbval-cell-timeout={limits.seconds:.0f}"]
    line = [sys.executable, *STRICT, *OWN, *words, "-q", "--color=no", f"{RESULTS}/{name}"]
    return sandbox.run(
        line, project, seed=project, folder=RESULTS, environment=ALONE, limits=limits, trust=trust,
        packages=packages,
    )  # fmt: skip


def build_report(folder: str | Path, main: str, *, trust: bool = False) -> Built:
    """Build the PDF of somebody else's report, by the rules of one's own (`building`).

    Args:
        folder: of the report; nothing outside it can be read.
        main: the file to start with, `.typ` or `.tex`.

    Raises:
        NoSandbox: none works here, and `trust` is not given.
        FileNotFoundError: LaTeX is not installed.
        ValueError: the folder is too large.
    """
    engine = building.latex if main.endswith(".tex") else building.typst
    return engine(building.package(folder), main, trust=trust)
