"""A notebook as a page: nbconvert walks over its cells, the kit draws what is in them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bs4 import BeautifulSoup
from nbconvert.exporters import HTMLExporter

from kdlib.engine import notebooks
from kdlib.site import glossary, headings, pictures
from kdlib.site.headings import Section
from kdlib.site.links import Links
from kdlib.site.listings import highlighted
from kdlib.site.pictures import Picture
from kdlib.site.prose import Prose, rendered
from kdlib.site.symbols import imported

TEMPLATES = Path(__file__).with_name("templates")
# The first that an output has is shown; a widget needs a kernel, so its still picture is.
SHOWN = ["text/html", "text/markdown", "image/png", "text/plain"]


@dataclass
class Lesson:
    """A notebook, read; `page` is where it is shown."""

    path: Path
    notebook: Any
    number: int
    title: str
    question: str  # Markdown
    time: str
    files: dict[str, bytes] = field(default_factory=dict)
    pictures: dict[str, list[Picture]] = field(default_factory=dict)
    body: str = ""
    sections: list[Section] = field(default_factory=list)

    @property
    def page(self) -> str:
        return f"{self.path.stem}.html"

    @property
    def source(self) -> str:
        """Its place in the project, which its links start from."""
        return f"notebooks/{self.path.name}"

    @property
    def first_picture(self) -> Picture | None:
        """The figure that opens the notebook, if it has any."""
        return next((picture for beside in self.pictures.values() for picture in beside), None)

    def section(self, number: str) -> Section | None:
        """The section with this number, None if there is none."""
        return next((one for one in self.sections if one.number == number), None)


def read(path: Path) -> Lesson:
    """Read an executed notebook.

    Raises:
        ValueError: it is not executed, or its opening lacks the title, question or time.
    """
    notebook = notebooks.read(path)
    for cell in notebook.cells:
        if cell.cell_type == "code" and cell.source.strip() and cell.execution_count is None:
            raise ValueError(
                f"{path}: cell {cell.id!r} has not run: execute the notebook with "
                f"`python -m kdlib run --save {path.stem}`"
            )
    opening = notebook.cells[0].source if notebook.cells else ""
    found = {
        "a title, '# 1. ...'": re.search(r"^# (\d+)\. (.+)$", opening, re.MULTILINE),
        "'**Question.** ...'": re.search(r"^\*\*Question\.\*\* (.+)$", opening, re.MULTILINE),
        "'**Time.** ...'": re.search(r"^\*\*Time\.\*\* (.+)$", opening, re.MULTILINE),
    }
    for part, match in found.items():
        if match is None:
            raise ValueError(f"{path}: the first cell lacks {part}: add the line")
    title, question, time = (match for match in found.values() if match)
    lesson = Lesson(path, notebook, int(title[1]), title[2], question[1], time[1])
    lesson.files, lesson.pictures = pictures.collect(notebook, path.stem)
    return lesson


class _Exporter(HTMLExporter):
    """Writes the cells of one notebook with the kit's template."""

    def __init__(self, lesson: Lesson, links: Links, **options: Any) -> None:
        sources = [cell.source for cell in lesson.notebook.cells if cell.cell_type == "code"]
        self._names: Mapping[str, str] = imported(sources)
        self._lesson, self._links = lesson, links
        super().__init__(
            template_file=str(TEMPLATES / "cells.html.j2"),
            filters={"highlight_code": self._code},
            **options,
        )

    @property
    def default_config(self) -> Any:
        config = super().default_config
        config.NbConvertBase.display_data_priority = SHOWN
        return config

    def default_filters(self) -> Any:
        yield from super().default_filters()
        yield "markdown2html", self._markdown

    def _markdown(self, source: str) -> str:
        lesson = self._lesson
        renderer = Prose(self._links, lesson.source, lesson.page, self._names)
        return rendered(source, renderer)

    def _code(self, source: str, **_: Any) -> str:
        code = "\n".join(highlighted(source.rstrip("\n"), "cell.py"))
        return self._links.code(code, self._lesson.page, self._names)


def render(lesson: Lesson, links: Links, terms: tuple[glossary.Term, ...]) -> None:
    """Fill in the body and the sections of a lesson.

    Raises:
        ValueError: a formula cannot be drawn or a link leads nowhere; the message has the file.
    """
    try:
        page, _ = _Exporter(lesson, links).from_notebook_node(lesson.notebook)
    except ValueError as error:
        raise ValueError(f"{lesson.source}: {error}") from None
    soup = BeautifulSoup(page, "html.parser")
    lesson.sections = headings.anchor(soup)
    glossary.link(soup, terms, glossary.PAGE)
    lesson.body = str(soup)
