"""A report as PDF, by Typst or LaTeX, and as one file for an online editor.

Both engines work on a copy of the report's files in a temporary folder, in a process with a time
limit, and write nothing into the report. Neither can start programs.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from kdlib.homework import repository, sandbox
from kdlib.homework.sandbox import PROJECT, RESULTS, Finished, Limits

PDF, ZIP = "report.pdf", "report.zip"
KINDS = {
    ".typ", ".tex", ".sty", ".cls", ".bib", ".bst", ".csl", ".toml", ".json", ".csv", ".txt", ".md",
    ".svg", ".pdf", ".png", ".jpg", ".jpeg",
}  # fmt: skip
LEFT_OUT = ("runs", "build", "__pycache__")
MOST_BYTES, MOST_FILES = 50_000_000, 1000
TIMEOUT = {"typst": 60.0, "latex": 300.0}  # a first LaTeX run in Cyrillic makes fonts


class Built(NamedTuple):
    """What an engine made of a report.

    Attributes:
        pdf: the document; None if the engine stopped.
        pages: all of them.
        body: the page on which the text before the contributions ends, as the engine counted.
        problem: why the engine stopped, in a few lines.
    """

    pdf: bytes | None
    pages: int
    body: int | None
    problem: str = ""


def package(folder: str | Path) -> dict[str, bytes]:
    """{name: content} of the files that an engine may need.

    Left out are records, hidden files, links, and what Git is told to ignore, except `generated/`.

    Raises:
        ValueError: more than 1000 files or 50 MB.
    """
    folder = Path(folder)
    found: dict[str, bytes] = {}
    size, away = 0, repository.ignored(folder)
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in name.parts) or name.parts[0] in LEFT_OUT
        linked = any((folder / part).is_symlink() for part in [name, *name.parents])
        if hidden or linked or path.suffix.lower() not in KINDS or not path.is_file():
            continue
        above = [f"{part.as_posix()}/" for part in name.parents]
        passed_over = name.parts[0] != repository.GENERATED and away & {name.as_posix(), *above}
        if name.as_posix() == PDF or passed_over:
            continue
        size += path.stat().st_size
        if size > MOST_BYTES or len(found) >= MOST_FILES:
            raise ValueError(
                f"{folder} must hold at most {MOST_FILES} files and {MOST_BYTES // 10**6} MB "
                f"beside its records, got more up to {name}: let Git ignore what the report does "
                "not show, for example photos or an environment"
            )
        found[name.as_posix()] = path.read_bytes()
    return found


def archive(files: Mapping[str, bytes]) -> bytes:
    """A ZIP file, the same for the same files."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in sorted(files.items()):
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            packed.writestr(entry, content)
    return stream.getvalue()


def typst(files: Mapping[str, bytes], main: str, *, trust: bool = True) -> Built:
    """Build the Typst file `main` with the `typst` wheel.

    Args:
        trust: without it, in the sandbox.

    Raises:
        ModuleNotFoundError: the wheel is not installed.
        NoSandbox: `trust` is False, and none works here.
    """
    import importlib.util

    if importlib.util.find_spec("typst") is None:
        raise ModuleNotFoundError("No module named 'typst'", name="typst")
    with _unpacked(files) as (folder, made):
        job = json.dumps({"root": PROJECT, "main": main, "output": f"{RESULTS}/{PDF}"})
        line = [sys.executable, "-X", "utf8", "-m", "kdlib.homework.typesetting"]
        limits = Limits(seconds=TIMEOUT["typst"])
        done = sandbox.run(line, folder, writable=made, text=job, limits=limits, trust=trust)
        if done.stopped:
            return Built(None, 0, None, _stopped("Typst", done, limits))
        try:
            answer: dict[str, Any] = json.loads(done.stdout)
        except ValueError:
            said = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
            return Built(None, 0, None, f"Typst ended without a result ({said[0]})")
        if "error" in answer:
            return Built(None, 0, None, _typst_error(answer))
        pdf = (made / PDF).read_bytes()
        return Built(pdf, pages(pdf), answer["body"])


def _typst_error(answer: Mapping[str, Any]) -> str:
    """The message, and the place in the report's own text where it came up."""
    places = re.findall(r"┌─ (.+?:\d+):\d+", answer["trace"])
    own = [place for place in places if "kdreport" not in place] or places
    message = str(answer["error"])
    message = re.sub(r'^panicked with: "?(.*?)"?$', r"\1", message)
    return f"{own[-1]}: {message}" if own else message


def tex_advice(platform: str = sys.platform) -> str:
    """How to get the LaTeX that report.tex needs."""
    packages = "texlive-latex-recommended texlive-lang-cyrillic cm-super latexmk"
    return {"linux": f"sudo apt install {packages}", "darwin": "install MacTeX"}.get(
        platform, "install MiKTeX"
    )


def missing_tex() -> list[str]:
    """The programs that building report.tex needs and that are not here."""
    return [name for name in ("pdflatex", "latexmk") if shutil.which(name) is None]


def latex(files: Mapping[str, bytes], main: str, *, trust: bool = True) -> Built:
    """Build the LaTeX file `main` with latexmk and pdfLaTeX.

    Args:
        trust: without it, in the sandbox.

    Raises:
        NoSandbox: `trust` is False, and none works here.
        FileNotFoundError: they are not installed; says how to do it, and what to do without.
    """
    absent = missing_tex()
    if absent:
        raise FileNotFoundError(
            2,
            f"is not installed: {tex_advice()}; or upload what `python -m kdlib report --zip` "
            "makes to an online editor",
            " and ".join(absent),
        )
    with _unpacked(files) as (folder, made):
        line = ["latexmk", "-norc", "-pdf", "-interaction=nonstopmode", "-halt-on-error"]
        line += ["-latexoption=-no-shell-escape", "-latexoption=-file-line-error", main]
        careful = {"openin_any": "p", "openout_any": "p", "max_print_line": "1000"}
        limits = Limits(seconds=TIMEOUT["latex"])
        done = sandbox.run(
            line, folder, seed=folder, writable=made, folder=RESULTS, environment=careful,
            limits=limits, trust=trust,
        )  # fmt: skip
        if done.stopped:
            return Built(None, 0, None, _stopped("LaTeX", done, limits))
        stem = made / Path(main).stem
        log = _read(stem.with_suffix(".log"))
        pdf = stem.with_suffix(".pdf")
        if done.returncode or not pdf.is_file():
            return Built(None, 0, None, _latex_error(log or done.stdout + done.stderr))
        body = re.findall(r"\\kdbodyends\{(\d+)\}", _read(stem.with_suffix(".aux")))
        content = pdf.read_bytes()
        return Built(content, pages(content), int(body[-1]) if body else None)


def _latex_error(log: str) -> str:
    """The first error of a log, with the lines that explain it."""
    lines = log.splitlines()
    for place, line in enumerate(lines):
        if line.startswith("! ") or re.match(r"[^:\s]+:\d+: ", line):
            further = [one.strip() for one in lines[place + 1 : place + 5]]
            kept = [one.replace("(kdreport)", "").strip() for one in further if "(kdre" in one]
            return " ".join([line.removeprefix("./").strip(), *kept])
    return lines[-1] if lines else "LaTeX ended without a log"


def _read(path: Path) -> str:
    return path.read_text("utf-8", errors="replace") if path.is_file() else ""


def pages(pdf: bytes) -> int:
    """How many pages a PDF has."""
    from pypdf import PdfReader

    return len(PdfReader(io.BytesIO(pdf)).pages)


def _stopped(engine: str, done: Finished, limits: Limits) -> str:
    after = {"time": f" after {limits.seconds:.0f} s", "memory": " for using too much memory"}
    why = after.get(done.stopped, " for writing too much")
    return f"{engine} was stopped{why}: look for an endless loop in the text"


@contextmanager
def _unpacked(files: Mapping[str, bytes]) -> Iterator[tuple[Path, Path]]:
    """(a temporary folder with the files, an empty one)."""
    with tempfile.TemporaryDirectory(prefix="kdlib-report-", ignore_cleanup_errors=True) as temp:
        folder, made = Path(temp).resolve() / "report", Path(temp).resolve() / "made"
        folder.mkdir()
        made.mkdir()
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        yield folder, made
