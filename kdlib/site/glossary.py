"""The words of the field in two languages, and their links in the pages."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdlib.homework import entries
from kdlib.homework.entries import Text
from kdlib.site.links import slug

FILE = Path(__file__).with_name("glossary.toml")
PAGE = "glossary.html"
PLAIN = ("p", "li", "td")  # where a term is linked ...
APART = ("a", "code", "pre", "math", "summary", "details", "h1", "h2", "h3", "h4")  # ... and not


@dataclass(frozen=True)
class Term:
    """A term: its names, TeX symbol, meaning in a sentence, and where it is introduced."""

    name: Text
    spellings: tuple[str, ...]  # further ones, in English
    symbol: str  # "" without one
    means: Text
    notebook: int
    section: str  # the number of its heading; "" for the opening

    @property
    def anchor(self) -> str:
        return slug(self.name.en)


def load(path: Path = FILE) -> tuple[Term, ...]:
    """The terms in the order of the English alphabet.

    Raises:
        OSError: the file cannot be read.
        ValueError: an entry is wrong; the message has its line.
    """
    found = entries.read(path).table(["terms"])
    terms = []
    for entry in found["terms"].items(most=100):
        one = entry.table(["name", "means", "notebook"], ["spellings", "symbol", "section"])
        terms.append(
            Term(
                name=one["name"].both(80),
                spellings=one["spellings"].texts() if "spellings" in one else (),
                symbol=one["symbol"].text(80) if "symbol" in one else "",
                means=one["means"].both(),
                notebook=one["notebook"].whole(1, 99),
                section=one["section"].text(10) if "section" in one else "",
            )
        )
    return tuple(sorted(terms, key=lambda term: term.name.en.lower()))


def _pattern(spelling: str) -> str:
    """A word of small letters may begin a sentence; one with capitals stands as it is."""
    word = re.escape(spelling)
    if spelling.islower():
        return f"[{spelling[0]}{spelling[0].upper()}]{word[len(re.escape(spelling[0])) :]}"
    return word


def matcher(terms: Iterable[Term]) -> tuple[re.Pattern[str], dict[str, Term]]:
    """What finds a term in a text, and which one it is, by its spelling in small letters."""
    known = {spelling: term for term in terms for spelling in (term.name.en, *term.spellings)}
    longest = sorted(known, key=len, reverse=True)
    pattern = re.compile(rf"(?<![\w-])(?:{'|'.join(map(_pattern, longest))})(?![\w-])")
    return pattern, {spelling.lower(): term for spelling, term in known.items()}


def link(soup: Any, terms: Iterable[Term], address: str) -> None:
    """Link the first use of each term in the texts of a page; `address` is of the glossary."""
    from bs4 import NavigableString

    terms = tuple(terms)
    if not terms:
        return
    pattern, known = matcher(terms)
    seen: set[Term] = set()
    for text in list(soup.find_all(string=pattern)):
        if text.find_parent(PLAIN) is None or text.find_parent(APART) is not None:
            continue
        parts: list[Any] = []
        end = 0
        for match in pattern.finditer(text):
            term = known[match[0].lower()]
            if term in seen:
                continue
            seen.add(term)
            tag = soup.new_tag("a", href=f"{address}#{term.anchor}")
            tag["class"], tag["title"] = "term", f"{term.name.ru}. {term.means.en}"
            tag.string = match[0]
            parts += [NavigableString(text[end : match.start()]), tag]
            end = match.end()
        if parts:
            text.replace_with(*parts, NavigableString(text[end:]))
