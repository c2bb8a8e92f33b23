"""All pages of the site, in memory."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from kdlib.engine import notebooks
from kdlib.homework import course
from kdlib.site import glossary, headings, lessons, listings
from kdlib.site.formulas import mathml
from kdlib.site.lessons import TEMPLATES, Lesson
from kdlib.site.links import HANDBOOK, Links, relative
from kdlib.site.pictures import packed
from kdlib.site.prose import Prose, rendered
from kdlib.site.symbols import Symbols, imports

HERE = Path(__file__).parent
LIMIT = 15_000_000  # bytes
RULES = {"en": "rules.html", "ru": "rules_ru.html"}
TITLES = {"en": "Rules of the course", "ru": "Правила курса"}
TEXTS = (("kdlib/homework/instructors.md", "instructors.html", "For instructors"),)
SOURCES = "source/index.html"
ASSETS = ("style.css", "math.woff2")
RUSSIAN = re.compile(r"## .*[а-яё]", re.IGNORECASE)  # the heading of a section


class Entry(NamedTuple):
    """A line of the menu that every page has."""

    page: str
    title: str
    language: str = "en"


def build(folder: Path = notebooks.FOLDER) -> dict[str, bytes]:
    """The files of the site: {path: content}.

    Args:
        folder: of the notebooks; the rest of the kit lies above it.

    Raises:
        ValueError: a notebook is missing or not executed, a link leads nowhere, a formula cannot
            be drawn, or the whole is larger than `LIMIT`.
        OSError: a file of the kit cannot be read.
    """
    files = {name: (HERE / name).read_bytes() for name in ASSETS} | _Site(folder).files()
    size = sum(map(len, files.values()))
    if size > LIMIT:
        largest = sorted(files, key=lambda name: -len(files[name]))[:3]
        raise ValueError(
            f"the site would have {size / 1e6:.1f} MB, more than {LIMIT / 1e6:.0f}: make its "
            f"largest files smaller, {', '.join(largest)}"
        )
    return files


class _Site:
    """What the pages share: the lessons, the links between them, the menu."""

    def __init__(self, folder: Path) -> None:
        self.project = folder.parent
        self.lessons = [lessons.read(path) for path in notebooks.find(folder=folder)]
        self.terms = glossary.load()
        pages = {lesson.source: lesson.page for lesson in self.lessons}
        symbols = Symbols(self.project / "kdlib")
        texts = {"README.md": HANDBOOK, "README.md#по-русски": RULES["ru"]}
        texts |= {file: page for file, page, _ in TEXTS}
        self.links = Links(self.project, pages | texts, symbols)
        for lesson in self.lessons:
            lessons.render(lesson, self.links, self.terms)
        self.menu = [
            *(Entry(lesson.page, f"{lesson.number}. {lesson.title}") for lesson in self.lessons),
            Entry(glossary.PAGE, "Glossary"),
            *(Entry(page, TITLES[language], language) for language, page in RULES.items()),
            Entry(HANDBOOK, "Handbook"),
            *(Entry(page, title) for _, page, title in TEXTS),
            Entry(SOURCES, "Source of kdlib"),
        ]

    def files(self) -> dict[str, bytes]:
        """{file: content} of all pages, with the pictures on them."""
        found = {name: page.encode() for name, page in self.pages().items()}
        for lesson in self.lessons:
            found |= lesson.files
        for file, name in self.links.pictures.items():
            found[name] = packed((self.project / file).read_bytes())
        return found

    def pages(self) -> dict[str, str]:
        """{page: its HTML}; the sources come last, for the other pages ask for them."""
        found = {lesson.page: self._lesson(number) for number, lesson in enumerate(self.lessons)}
        found["index.html"] = self._index()
        found[glossary.PAGE] = self._glossary()
        found |= {page: self._rules(language) for language, page in RULES.items()}
        found[HANDBOOK] = self._text(self._readme()[0], "README.md", HANDBOOK, "Handbook")
        for file, page, title in TEXTS:
            text = (self.project / file).read_text("utf-8")
            found[page] = self._text(text, file, page, title)
        return found | self._sources()

    def _page(self, template: str, page: str, title: str, **values: Any) -> str:
        shared: dict[str, Any] = {"page": page, "title": title, "language": "en"}
        shared |= {"menu": self.menu, "to": lambda target: relative(target, page)}
        return str(_templates().get_template(template).render(shared | values))

    def _lesson(self, number: int) -> str:
        lesson = self.lessons[number]
        before, _, after = [None, *self.lessons, None][number : number + 3]
        return self._page(
            "lesson.html.j2", lesson.page, f"{lesson.number}. {lesson.title}",
            body=lesson.body, sections=lesson.sections, before=before, after=after,
        )  # fmt: skip

    def _index(self) -> str:
        questions = {lesson.page: self._words(lesson.question, lesson) for lesson in self.lessons}
        return self._page(
            "index.html.j2", "index.html", "Knowledge distillation",
            lessons=self.lessons, questions=questions, hero=self.lessons[0].first_picture,
        )  # fmt: skip

    def _words(self, markdown: str, lesson: Lesson) -> str:
        """One paragraph, without its element."""
        page = rendered(markdown, Prose(self.links, lesson.source, "index.html"))
        return page.strip().removeprefix("<p>").removesuffix("</p>")

    def _glossary(self) -> str:
        by_number = {lesson.number: lesson for lesson in self.lessons}
        rows = []
        for term in self.terms:
            lesson = by_number.get(term.notebook)
            section = lesson.section(term.section) if lesson and term.section else None
            if lesson is None or (term.section and section is None):
                raise ValueError(
                    f"{glossary.FILE}: {term.name.en!r} is introduced in notebook {term.notebook}, "
                    f"section {term.section!r}, which is not there: name another"
                )
            symbol = mathml(term.symbol) if term.symbol else ""
            rows.append((term, symbol, lesson, section))
        return self._page("glossary.html.j2", glossary.PAGE, "Glossary", rows=rows)

    def _readme(self) -> tuple[str, str]:
        """The README without its Russian section, and that section without its heading."""
        parts = re.split(r"^(?=## )", (self.project / "README.md").read_text("utf-8"), flags=re.M)
        russian = [part for part in parts if RUSSIAN.match(part)]
        english = [part for part in parts if not RUSSIAN.match(part)]
        return "".join(english), "".join(part.partition("\n")[2] for part in russian)

    def _rules(self, language: str) -> str:
        page = RULES[language]
        start = self._readme()[1] if language == "ru" else ""
        return self._page(
            "rules.html.j2", page, TITLES[language], course=course.load(), language=language,
            other=next(RULES[other] for other in RULES if other != language),
            start=rendered(start, Prose(self.links, "README.md", page)),
        )  # fmt: skip

    def _text(self, markdown: str, file: str, page: str, title: str) -> str:
        """A page of Markdown that is no notebook; `file` is where it stands in the project."""
        from bs4 import BeautifulSoup

        soup = BeautifulSoup(rendered(markdown, Prose(self.links, file, page)), "html.parser")
        sections = headings.anchor(soup)
        return self._page(
            "lesson.html.j2", page, title, body=str(soup), sections=sections, text=True
        )

    def _sources(self) -> dict[str, str]:
        done: dict[str, str] = {}
        while waiting := sorted(self.links.sources - done.keys()):
            done |= {file: self._source(file) for file in waiting}
        found = {self.links.source_page(file): page for file, page in done.items()}
        return found | {SOURCES: self._source_index(done)}

    def _source(self, file: str) -> str:
        page, path = self.links.source_page(file), self.project / file
        if path.suffix == ".md":
            return self._text(path.read_text("utf-8"), file, page, file)
        module = file.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        names: dict[str, str] = {}
        defined = self.links.symbols.defined.get(module, {})
        if path.suffix == ".py":
            package = module if path.name == "__init__.py" else module.rpartition(".")[0]
            names = imports(listings.parsed(path), package)
        numbers, code = listings.listing(path, file, defined)
        return self._page(
            "source.html.j2", page, file, numbers=numbers,
            code=self.links.code(code, page, names), defined=_outline(defined),
        )  # fmt: skip

    def _source_index(self, files: Iterable[str]) -> str:
        about = {
            file: (self.links.source_page(file), listings.summary(self.project / file))
            for file in files
        }
        return self._page(
            "sources.html.j2", SOURCES, "Source of kdlib", rooms=listings.rooms(about), about=about
        )


def _outline(defined: dict[str, int]) -> list[str]:
    """The functions and classes of a module that others may use."""
    return [name for name in defined if not name.startswith("_") and "." not in name]


@cache
def _templates() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
