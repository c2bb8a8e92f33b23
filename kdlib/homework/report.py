"""A report from its folder: start one from the template, write what its records give, check it.

A report is a folder with team.toml, the text (report.typ or report.tex), references.bib and run
records in runs/. `make` writes generated/, `findings` says what is wrong, `build` makes the PDF.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from kdlib.engine import files
from kdlib.homework import building, checks, generated, repository, results, sources, team
from kdlib.homework.building import Built
from kdlib.homework.course import Course
from kdlib.homework.results import Results
from kdlib.homework.team import Team

HERE = Path(__file__).resolve().parent
CHECKOUT, INSTALLED = HERE.parents[1] / "report_template", HERE.parent / "report_template"
ITS_OWN = ("generated", "__pycache__", "report.pdf", "report.zip", ".gitignore")


def template() -> Path:
    """The folder of the template: beside `kdlib` in a clone, in the package once installed."""
    return CHECKOUT if (CHECKOUT / team.FILE).is_file() else INSTALLED


def start(folder: str | Path, language: str) -> list[Path]:
    """Copy the template to a new folder, in one language; returns the files.

    Raises:
        FileExistsError: the folder holds something already; nothing was written.
        OSError: it cannot be written.
    """
    folder, origin = Path(folder), template()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(17, "is there already: choose another name", str(folder))
    text = sources.main_file(origin, language)
    written = []
    for path in sorted(origin.rglob("*")):
        name = path.relative_to(origin)
        if not path.is_file() or set(name.parts) & set(ITS_OWN):
            continue
        content = path.read_bytes()
        if re.fullmatch(r"report(_\w\w)?\.typ", name.name):
            if path != text:  # in the other language
                continue
            name = Path(sources.TYPST)
        if name.name == team.FILE:
            content = re.sub(
                rb'(?m)^language = "\w+"', f'language = "{language}"'.encode(), content
            )
        written.append(files.write_atomically(folder / name, content))
    return written


@dataclass(frozen=True)
class Report:
    """A report as it lies in its folder, with what its records give.

    Attributes:
        folder: of the report.
        team: of team.toml.
        course: whose rules hold.
        results: in the report's language.
    """

    folder: Path
    team: Team
    course: Course
    results: Results

    def main(self, *, latex: bool = False) -> Path:
        """The file that the engine starts with; report.tex also where it stands alone.

        Raises:
            FileNotFoundError: there is none.
        """
        found = sources.main_file(self.folder, self.results.language, latex=latex)
        if found is None and not latex:
            found = sources.main_file(self.folder, self.results.language, latex=True)
        if found is None:
            name = sources.LATEX if latex else sources.TYPST
            raise FileNotFoundError(2, "take it from the template", str(self.folder / name))
        return found


def read(folder: str | Path, course: Course, language: str | None = None) -> Report:
    """Read a report's folder.

    Args:
        language: instead of the one in team.toml.

    Raises:
        FileNotFoundError: the folder is no report; says how to start one.
        ValueError: team.toml or a record is wrong; the message names the file.
    """
    folder = Path(folder)
    if not (folder / team.FILE).is_file():
        raise FileNotFoundError(
            2,
            "is missing, so this folder is no report: `python -m kdlib team FOLDER` starts one "
            "from the template",
            str(folder / team.FILE),
        )
    found = team.load(folder / team.FILE)
    runs = results.read(folder)
    computed = results.compute(runs, found.experiments, language or found.language)
    return Report(folder, found, course, computed)


def make(report: Report) -> list[Path]:
    """Write results.json, results.tex and the figures, each atomically; returns their paths.

    Raises:
        ValueError: team.toml does not fit the course.
        OSError: the folder cannot be written.
    """
    figures = generated.figures(report.results)
    content = generated.content(
        report.results,
        report.team,
        report.course,
        repository.look(report.folder, report.team.members),
        {name: generated.sha256(data) for name, data in figures.items()},
    )
    place = report.folder / repository.GENERATED / "figures"
    written = [files.write_atomically(place / name, data) for name, data in figures.items()]
    for path in sorted(place.glob("*")):  # of experiments that are gone
        if path.suffix in (".svg", ".pdf") and path.name not in figures:
            path.unlink()
    written.append(
        files.write_atomically(report.folder / generated.JSON, generated.as_json(content))
    )
    written.append(files.write_atomically(report.folder / generated.TEX, generated.as_tex(content)))
    return written


def findings(report: Report, *, latex: bool = False, written: bool = True) -> list[str]:
    """All that is wrong with a report and can be told without a PDF.

    Args:
        latex: read report.tex instead of report.typ.
        written: look at the generated files, too.
    """
    found = list(checks.of_team(report.team, report.course, report.results))
    try:
        text = sources.read(report.main(latex=latex))
        keys = sources.bibliography(report.folder / sources.BIBLIOGRAPHY)
        found += checks.of_text(text, report.results, keys, report.course)
    except (OSError, ValueError) as error:
        found.append(str(error))
    if written:
        try:
            found += checks.of_generated(report.folder, report.results, report.team, report.course)
        except (OSError, ValueError) as error:
            found.append(str(error))
    return list(dict.fromkeys(found))


def hints(report: Report, *, latex: bool = False) -> list[str]:
    """What is no mistake by itself, but somebody should look at."""
    stale = report.results.stale
    found = []
    if stale:
        found.append(
            f"{stale} of {len(report.results.runs)} runs were made by other code of the kit; "
            "`python -m kdlib repeat FILE` says whether it matters"
        )
    try:
        return found + list(checks.hints(sources.read(report.main(latex=latex))))
    except (OSError, ValueError):
        return found  # told among the findings


def build(report: Report, *, latex: bool = False) -> Built:
    """Build the PDF from the files as they lie there, and write nothing.

    Raises:
        FileNotFoundError: the text or LaTeX is missing; says what to do.
        ModuleNotFoundError: the `typst` wheel is missing.
        ValueError: the folder is too large.
    """
    main = report.main(latex=latex)
    engine = building.latex if main.suffix == ".tex" else building.typst
    return engine(building.package(report.folder), main.name)
