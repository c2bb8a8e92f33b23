"""A report's own text, read without its engine: sections, result keys, citations, each by line."""

from __future__ import annotations

import bisect
import posixpath
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from kdlib.homework import typed
from kdlib.homework.typed import Decimal

TYPST, LATEX = "report.typ", "report.tex"
BIBLIOGRAPHY = "references.bib"
STYLES = ("kdreport.typ", "kdreport.sty")
MOST_BYTES = 1_000_000
MOST_FILES = 50


class Found(NamedTuple):
    """Something in the text, and where it stands."""

    name: str
    place: str  # "report.typ:12"


@dataclass(frozen=True)
class Source:
    """What a report's text holds.

    Attributes:
        main: the file that the engine starts with.
        sections: calls of `section`, in their order.
        bodies: the text below each of them, by the same order.
        keys: of `result`.
        experiments: of tables and figures of results.
        cited: keys that must stand in the bibliography.
        calls: the commands of the style that it uses, e.g. "contributions".
        decimals: typed by hand, lengths of the layout aside.
        figures: labels of figures, those of results included.
        referred: labels that the text refers to.
        swallowed: calls of `result` behind which Typst takes a semicolon for its own.
    """

    main: str
    sections: tuple[Found, ...]
    bodies: tuple[str, ...]
    keys: tuple[Found, ...]
    experiments: tuple[Found, ...]
    cited: tuple[Found, ...]
    calls: frozenset[str]
    decimals: tuple[Decimal, ...]
    figures: tuple[Found, ...]
    referred: frozenset[str]
    swallowed: tuple[Found, ...]


class _Syntax(NamedTuple):
    """How an engine writes what the checks look for; the first group that fits is the name."""

    comment: str  # and what looks like one in code and in strings
    include: str
    section: str
    key: str
    experiment: str
    cite: str
    reference: str
    label: str
    figure: str
    call: str


_SYNTAX = {
    ".typ": _Syntax(
        comment=r"(`{3,9}).*?(?:\1|\Z)|`[^`\n]*`|\"[^\"\n]*\"|/\*.*?(?:\*/|\Z)|(?<!:)//[^\n]*",
        include=r'#?(?:include|import)\s+"([^"\n]+)"[^\n]*',
        section=r'#section\("([^"\n]*)"\)',
        key=r'\bresult\(\s*"([^"]*)"\s*\)',
        experiment=r'#results-(?:table|figure)\(\s*"([^"]*)"',
        cite=r"\bcite\(\s*<([^>\s]+)>",
        reference=r"(?<![\w.\\])@([^\W\d][\w:.-]*)",
        label=r"<([^\W\d][\w:.-]*)>|#label\(\s*\"([^\"\n]+)\"\s*\)",
        figure=r'#results-figure\(\s*"([^"]*)"',
        call=r"#(title|abstract|sources|contributions|reproducibility|references)\(|"
        r"^[ \t]*(title|abstract):",
    ),
    ".tex": _Syntax(
        comment=r"(?<!\\)%[^\n]*",
        include=r"\\(?:input|include)\{([^{}\n]+)\}",
        section=r"\\kdsection\{([^{}]*)\}",
        key=r"\\result\{([^{}]*)\}",
        experiment=r"\\results(?:table|figure)\{([^{}]*)\}",
        cite=r"\\(?:no)?cite[a-zA-Z]*\*?(?:\[[^\]\n]{0,300}\])*\{([^{}]*)\}",
        reference=r"(?!)",
        label=r"\\label\{([^{}]*)\}",
        figure=r"\\resultsfigure\{([^{}]*)\}",
        call=r"\\kd(sources|contributions|reproducibility|references)\b|"
        r"\\(title)\{|\\begin\{(abstract)\}",
    ),
}
_FIGURE = {
    ".typ": r"(?<![\w-])figure\((?!\s*table\b)",
    ".tex": r"\\begin\{figure\*?\}((?:(?!\\begin\{figure).)*?)\\end\{figure\*?\}",
}
_REFERENCE = {
    ".typ": r"(?<![\w.\\])@([^\W\d](?:[\w:.-]*\w)?)|#ref\(\s*<([^>\s]+)>",
    ".tex": r"\\(?:auto|c|C|v|page|eq|name)?ref\*?\{([^{}]*)\}",
}


def main_file(folder: str | Path, language: str, *, latex: bool = False) -> Path | None:
    """The file to build: report.tex, or report.typ, where report_ru.typ goes before in Russian."""
    folder = Path(folder)
    names = [LATEX] if latex else [f"report_{language}.typ", TYPST]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def read(main: str | Path) -> Source:
    """Read a report's text, with the files that it includes from its own folder.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file is too long or no UTF-8, or there are too many.
    """
    main = Path(main)
    syntax = _SYNTAX[main.suffix]
    expanded = list(_lines(main.parent, main.name, syntax, set()))
    text = "\n".join(line for line, _ in expanded)

    ends_of_lines = [found.start() for found in re.finditer("\n", text)]

    def where(position: int) -> str:
        return expanded[bisect.bisect_left(ends_of_lines, position)][1]

    def search(pattern: str) -> list[tuple[str, int]]:
        return [
            (next(filter(None, found.groups()), ""), found.start())
            for found in re.finditer(pattern, text, re.MULTILINE)
        ]

    def all_of(pattern: str) -> tuple[Found, ...]:
        return tuple(Found(name, where(position)) for name, position in search(pattern))

    cited = list(_cited(syntax, search))
    starts = [found.span() for found in re.finditer(syntax.section, text)]
    ends = [start for start, _ in starts[1:]] + [len(text)]
    return Source(
        main=main.name,
        sections=all_of(syntax.section),
        bodies=tuple(text[start[1] : end] for start, end in zip(starts, ends)),
        keys=all_of(syntax.key),
        experiments=all_of(syntax.experiment),
        figures=tuple(
            Found(name, where(place)) for name, place in _figures(text, main.suffix, syntax)
        ),
        referred=frozenset(_referred(text, main.suffix)),
        cited=tuple(Found(name, where(position)) for name, position in cited),
        calls=frozenset(name for name, _ in search(syntax.call)),
        decimals=typed.find(text, cited, where),
        swallowed=all_of(r'#result\("([^"]*)"\);') if main.suffix == ".typ" else (),
    )


def _cited(
    syntax: _Syntax, search: Callable[[str], list[tuple[str, int]]]
) -> Iterator[tuple[str, int]]:
    """(name, position) of citations, and in Typst of references to what is no label of the text."""
    cites = search(syntax.cite)
    for names, position in cites:
        for name in re.split(r"\s*,\s*", names.strip()):
            yield name, position
    labels = {name for name, _ in search(syntax.label)} - {name for name, _ in cites}
    for name, position in search(syntax.reference):
        if name.rstrip(".:") not in labels:
            yield name.rstrip(".:"), position


def _figures(text: str, suffix: str, syntax: _Syntax) -> Iterator[tuple[str, int]]:
    """(label, position) of each figure that is no table; "" where it has none."""
    for found in re.finditer(syntax.figure, text):
        yield f"figure-{found[1]}", found.start()
    closed = _closed(text) if suffix == ".typ" else {}
    for found in re.finditer(_FIGURE[suffix], text, re.DOTALL):
        if suffix == ".tex":
            label = re.search(syntax.label, found[1])
        else:
            behind = re.compile(r"\s*\]?\s*(?:" + syntax.label + ")")
            label = behind.match(text, closed.get(found.end() - 1, len(text)))
        yield (next(filter(None, label.groups())) if label else ""), found.start()


def _closed(text: str) -> dict[int, int]:
    """{position of a parenthesis: behind the one that closes it}."""
    found: dict[int, int] = {}
    waiting: list[int] = []
    for one in re.finditer(r"[()]", text):
        if one[0] == "(":
            waiting.append(one.start())
        elif waiting:
            found[waiting.pop()] = one.end()
    return found


def _referred(text: str, suffix: str) -> Iterator[str]:
    for found in re.finditer(_REFERENCE[suffix], text):
        yield from re.split(r"\s*,\s*", next(filter(None, found.groups()), "").strip())


def _lines(folder: Path, name: str, syntax: _Syntax, seen: set[str]) -> Iterator[tuple[str, str]]:
    """(line without comments, its place), files included in their places."""
    seen.add(name)
    if len(seen) > MOST_FILES:
        raise ValueError(f"{folder / name}: a report may have at most {MOST_FILES} files of text")
    path = folder / name
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path} has more than {MOST_BYTES} bytes: is it the text of the report?")
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be text in UTF-8 ({error}): save it as such") from error
    text = re.sub(syntax.comment, _without_comment, text, flags=re.DOTALL)
    for number, line in enumerate(text.splitlines(), start=1):
        yield line, f"{name}:{number}"
        for found in re.finditer(syntax.include, line):
            inner = found[1] if "." in found[1] else found[1] + path.suffix
            if path.suffix == ".typ":  # Typst starts at the file that includes, "/" is the top
                inner = posixpath.normpath(posixpath.join(posixpath.dirname(name), inner))
                inner = inner.lstrip("/")
            if inner not in (*seen, *STYLES) and _own(folder, inner, path.suffix):
                yield from _lines(folder, inner, syntax, seen)


def _without_comment(found: re.Match[str]) -> str:
    """Nothing for a comment, a string as it is, and code that is shown without calls and labels."""
    if found[0].startswith('"'):
        return found[0]
    if found[0].startswith("`"):
        return re.sub("[@<#]", " ", found[0])
    return "\n" * found[0].count("\n")


def _own(folder: Path, name: str, suffix: str) -> bool:
    """Whether a file is text of the team, inside of the folder."""
    inner = folder / name
    inside = ".." not in Path(name).parts and not Path(name).is_absolute()
    written = Path(name).suffix == suffix and not name.startswith("generated/")
    return inside and written and inner.is_file() and not inner.is_symlink()


def bibliography(path: str | Path) -> set[str]:
    """The keys of a BibTeX file; none if it is not there.

    Raises:
        ValueError: it is too long or no UTF-8.
    """
    path = Path(path)
    if not path.is_file():
        return set()
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path} has more than {MOST_BYTES} bytes: keep what the report cites")
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be text in UTF-8 ({error}): save it as such") from error
    found = re.findall(r"^\s*@(\w+)\s*\{\s*([^,\s{}]+)\s*,", text, re.MULTILINE)
    return {key for kind, key in found if kind.casefold() not in ("comment", "string", "preamble")}
