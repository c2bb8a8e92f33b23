"""What teams were given, to be subtracted from what they hand in."""

from __future__ import annotations

from pathlib import Path

from kdlib.engine import notebooks
from kdlib.homework import report, starting
from kdlib.homework.review import cells
from kdlib.homework.review.handed_in import MB, Kit, digest
from kdlib.homework.review.history import source_lines

PACKAGE = Path(__file__).resolve().parents[2]  # kdlib itself
_PASSED = {".git", ".venv", "venv", "__pycache__", "mine", "build", "records", "runs"}
_CODE, _TEXT = {".py", ".ipynb"}, {".typ", ".tex", ".sty", ".md", ".toml", ".bib", ""}


def read(starter: Path | None = None) -> Kit:
    """The kit itself, its notebooks and templates, and a folder that was given out besides.

    Raises:
        OSError: a file cannot be read.
    """
    tests = PACKAGE.parent / "tests"
    places = [PACKAGE, report.template(), starting.STARTER, notebooks.FOLDER, tests]
    files, lines, codes = set(), set(), []
    for place in [*places, *([starter] if starter else [])]:
        for path in sorted(place.rglob("*")):
            if set(path.relative_to(place).parts) & _PASSED or path.is_symlink():
                continue
            if not path.is_file() or path.stat().st_size > 20 * MB:
                continue
            content = path.read_bytes()
            files |= {digest(content)} if content.strip() else set()
            suffix = path.suffix
            if suffix in _CODE | _TEXT and place not in (PACKAGE, tests):
                lines.update(source_lines(path.name, content))
            if suffix in _CODE and place != tests:
                text = content.decode("utf-8", "replace")
                codes.append(cells.code(content) if suffix == ".ipynb" else text)
    return Kit(frozenset(files), frozenset(lines), tuple(codes))
