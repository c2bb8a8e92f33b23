"""What a text of the project points to, as an address within the site."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote, unquote

from kdlib.site.symbols import DOTTED, Place, Symbols

HANDBOOK = "handbook.html"
_TAGGED = re.compile(r'(<span class="[scm]">.*?</span>|<[^>]*>)')
_CALLED = re.compile(r"\w[\w.]*")


def slug(text: str) -> str:
    """The id of a heading, or what a notebook's link calls it: "1.1 The task" -> "1-1-the-task"."""
    return re.sub(r"[\W_]+", "-", text.lower()).strip("-") or "section"


def relative(target: str, page: str) -> str:
    """The address of `target` on `page`; both are paths inside the site."""
    file, hash_, anchor = target.partition("#")
    found = posixpath.relpath(file, posixpath.dirname(page) or ".")
    return quote(found) + hash_ + quote(anchor, safe=".-_~")


class Links:
    """Knows every page; collects the source files and pictures that texts point to.

    Args:
        project: the folder of the kit.
        pages: {file of a text, relative to the project: its page}; "FILE#ANCHOR" for a section
            that has a page of its own.
        symbols: of the library.
    """

    def __init__(self, project: Path, pages: Mapping[str, str], symbols: Symbols) -> None:
        self.project, self.pages, self.symbols = project, dict(pages), symbols
        self.sources = set(symbols.files.values())
        self.pictures: dict[str, str] = {}

    def source_page(self, file: str) -> str:
        """The page of a source file."""
        return f"source/{file}.html"

    def place(self, place: Place, page: str) -> str:
        """The address of a definition."""
        self.sources.add(place.file)
        return relative(
            self.source_page(place.file) + (f"#{place.name}" if place.name else ""), page
        )

    def resolve(self, address: str, *, text: str, page: str) -> str:
        """The address on `page` of what the file `text` links to.

        Raises:
            ValueError: nothing is there.
        """
        if re.match(r"[a-z][a-z+.-]*:", address):
            return address
        file, hash_, anchor = address.partition("#")
        anchor = slug(unquote(anchor)) if hash_ else ""
        if not file:
            own = self.pages.get(f"{text}#{anchor}")
            return relative(own, page) if own else f"#{quote(anchor)}"
        target = posixpath.normpath(posixpath.join(posixpath.dirname(text), unquote(file)))
        if target in self.pages:
            return relative(self.pages[target] + (f"#{anchor}" if anchor else ""), page)
        if (self.project / target).is_file():
            return self.place(Place(target, ""), page)
        raise ValueError(
            f"{text} links to {address!r}, but there is no {target}: mend the link, or get a copy "
            "of the whole kit"
        )

    def picture(self, address: str, *, text: str, page: str) -> str:
        """The address on `page` of a picture that the file `text` shows.

        Raises:
            ValueError: nothing is there.
        """
        file = posixpath.normpath(posixpath.join(posixpath.dirname(text), unquote(address)))
        if not (self.project / file).is_file():
            raise ValueError(f"{text} shows {address!r}, but there is no {file}: mend the address")
        self.pictures[file] = f"pictures/{posixpath.basename(file)}"
        return relative(self.pictures[file], page)

    def code(self, code: str, page: str, names: Mapping[str, str]) -> str:
        """Highlighted code with a link at each name of the library that it uses."""

        def linked(match: re.Match[str]) -> str:
            word, called = match[0], code_after(match)
            dotted = bool(DOTTED.fullmatch(word))
            place = self.symbols.find(word, names) if dotted or called else None
            if place is None or not (dotted or place.name):
                return word
            return f'<a href="{self.place(place, page)}">{word}</a>'

        def code_after(match: re.Match[str]) -> bool:
            return match.string[match.end() : match.end() + 1] == "("

        parts = _TAGGED.split(code)
        return "".join(
            part if part.startswith("<") else _CALLED.sub(linked, part) for part in parts
        )

    def mention(self, code: str, page: str, names: Mapping[str, str] | None) -> str | None:
        """The address of what a text mentions as code: `losses.kd(...)`, `kdlib/losses.py`."""
        word = re.match(r"[\w./]+", code)
        if not word or code[word.end() : word.end() + 1] not in ("", "("):
            return None
        if "/" in word[0]:
            place = self.symbols.file(word[0])
        elif DOTTED.fullmatch(word[0]):
            place = self.symbols.find(word[0]) or self.symbols.find(word[0], names or {})
        else:
            return None
        return self.place(place, page) if place else None
