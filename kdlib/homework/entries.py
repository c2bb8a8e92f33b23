"""TOML files with errors that a reader can act on: the file, the line, the entry, what to do.

tomllib reads the file and knows no lines. `lines` finds them in what tomllib has accepted.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any, NamedTuple

from kdlib import inputs

Path_ = tuple[str | int, ...]
LANGUAGES = ("en", "ru")
MOST_BYTES = 100_000  # of a file; anybody may hand one in


class Text(NamedTuple):
    """A text in both languages."""

    en: str
    ru: str

    def of(self, language: str) -> str:
        """The text in "en" or "ru"."""
        return self[LANGUAGES.index(inputs.choice("language", language, LANGUAGES))]


@dataclass(frozen=True)
class Entry:
    """One value of a TOML file, and where it stands. Every check raises ValueError."""

    value: Any
    path: Path_
    file: str
    lines: Mapping[Path_, int]

    @property
    def line(self) -> int:
        """Where it stands; for an entry that is not there, where its table begins."""
        path = self.path
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)

    @property
    def name(self) -> str:
        """Its key, e.g. members[0].name."""
        text = ""
        for part in self.path:
            dot = "." if text else ""
            text += f"[{part}]" if isinstance(part, int) else f"{dot}{_quoted(part)}"
        return text or "the file"

    @property
    def place(self) -> str:
        return f"{self.file}, line {self.line}"

    def error(self, wanted: str, advice: str = "") -> ValueError:
        """An error about this value: what it must be, what it is, what to do."""
        found = inputs.describe(self.value)
        after = f": {advice}" if advice else ""
        return ValueError(f"{self.place}: {self.name} must be {wanted}, got {found}{after}")

    def table(self, needed: Collection[str], optional: Collection[str] = ()) -> dict[str, Entry]:
        """Its entries by key: all of `needed`, and none beside those and the `optional`."""
        if not isinstance(self.value, dict):
            raise self.error("a table", f"give it {', '.join(needed)}")
        known = [*needed, *optional]
        for key in self.value:
            if key not in known:
                near = difflib.get_close_matches(key, known, 1)
                advice = f"write {near[0]}" if near else f"remove it, or use {', '.join(known)}"
                where = self._child(key)
                raise ValueError(f"{where.place}: {where.name} is no known entry: {advice}")
        for key in needed:
            if key not in self.value:
                where = self._child(key)
                raise ValueError(f"{where.place}: {where.name} is missing: add {key} = ...")
        return {key: self._child(key) for key in self.value}

    def named(self, most: int = 100) -> dict[str, Entry]:
        """Its entries by keys of the writer's own choice."""
        if not isinstance(self.value, dict) or len(self.value) > most:
            raise self.error(f"a table of at most {most} entries")
        return {key: self._child(key) for key in self.value}

    def items(self, least: int = 1, most: int = 100) -> list[Entry]:
        """The entries of its array."""
        if not isinstance(self.value, list) or not least <= len(self.value) <= most:
            raise self.error(f"an array of {least} to {most} entries")
        return [self._child(place) for place in range(len(self.value))]

    def _child(self, key: str | int) -> Entry:
        inside = isinstance(key, int) or key in self.value
        value = self.value[key] if inside else None
        return Entry(value, (*self.path, key), self.file, self.lines)

    def text(self, most: int = 500) -> str:
        """One line of 1 to `most` signs; spaces at its ends are dropped."""
        if not isinstance(self.value, str):
            raise self.error("a text in quotes")
        found = self.value.strip()
        if not found or len(found) > most or not found.isprintable():
            raise self.error(f"one line of 1 to {most} signs")
        return found

    def texts(self, least: int = 1, most: int = 50) -> tuple[str, ...]:
        """Several lines of text."""
        return tuple(one.text() for one in self.items(least, most))

    def both(self, most: int = 500) -> Text:
        """A text in both languages: {en = "...", ru = "..."}, or one text for both."""
        if isinstance(self.value, str):
            return Text(*2 * (self.text(most),))
        if not isinstance(self.value, dict):
            raise self.error("a text in quotes", 'or one in both languages: {en = "...", ru = ...}')
        found = self.table(LANGUAGES)
        return Text(*(found[language].text(most) for language in LANGUAGES))

    def all_both(self, least: int = 1, most: int = 50) -> tuple[Text, ...]:
        """Several texts in both languages."""
        return tuple(one.both() for one in self.items(least, most))

    def whole(self, low: int, high: int) -> int:
        """A whole number from `low` to `high`."""
        if type(self.value) is not int or not low <= self.value <= high:
            raise self.error(f"a whole number from {low} to {high}")
        return self.value

    def day(self) -> date:
        """A date such as 2024-10-18."""
        if not isinstance(self.value, date) or isinstance(self.value, datetime):
            raise self.error("a date without quotes, such as 2024-10-18")
        return self.value

    def one_of(self, known: Sequence[str], advice: str = "") -> str:
        """One of the `known` texts."""
        if self.value not in known:
            raise self.error(f"one of {', '.join(known) or 'none'}", advice)
        return str(self.value)


def read(path: str | Path) -> Entry:
    """The whole of a TOML file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is too long, no UTF-8 or no TOML; the message has the line where it can.
    """
    path = Path(path)
    with path.open("rb") as stream:
        content = stream.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"{path} must have at most {MOST_BYTES} bytes: shorten its texts")
    try:
        text = content.decode("utf-8-sig").replace("\r\n", "\n")
        return Entry(tomllib.loads(text), (), str(path), lines(text))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be text in UTF-8 ({error}): save it as such") from error
    except tomllib.TOMLDecodeError as error:
        raise ValueError(
            f"{path} is not valid TOML: {error}: mend that line, see https://toml.io"
        ) from error
    except RecursionError:
        raise ValueError(f"{path} nests its arrays too deeply: flatten them") from None


# Where entries stand

_BLANK = re.compile(r"(?:[ \t\n\r]|#[^\n]*)*")
_SCALAR = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}|\'\'\'.*?\'{3,5}|"(?:\\.|[^"\\\n])*"|\'[^\'\n]*\'|[^,\]}\n#]+',
    re.DOTALL,
)
_KEY = re.compile(r'(?:"(?:\\.|[^"\\\n])*"|\'[^\'\n]*\'|[\w\-]+|[ \t]*\.[ \t]*)+')


def lines(text: str) -> dict[Path_, int]:
    """{path: line} of every table, array and value of a valid TOML document, from line 1."""
    return _Lines(text).found


class _Lines:
    """One pass over a document, which tomllib has accepted."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0
        self.found: dict[Path_, int] = {}
        self.counts: dict[Path_, int] = {}  # of the tables of an array [[...]]
        table: Path_ = ()
        self._skip()
        while self.at < len(text):
            if text[self.at] == "[":
                table = self._header()
            else:
                self._pair(table)
            self._skip()

    def _skip(self) -> None:
        self.at = _BLANK.match(self.text, self.at).end()  # type: ignore[union-attr]

    def _note(self, path: Path_) -> None:
        self.found.setdefault(path, self.text.count("\n", 0, self.at) + 1)

    def _key(self) -> Path_:
        while self.text[self.at] in " \t":
            self.at += 1
        match = _KEY.match(self.text, self.at)
        assert match is not None, "tomllib has accepted the file"
        self.at = match.end()
        found: Any = tomllib.loads(f"{match[0]} = 0")
        parts = []
        while isinstance(found, dict):
            ((part, found),) = found.items()
            parts.append(part)
        return tuple(parts)

    def _header(self) -> Path_:
        many = self.text.startswith("[[", self.at)
        start = self.at
        self.at += 2 if many else 1
        path: Path_ = ()
        for part in self._key():
            if path in self.counts:  # below an array: of its last table
                path += (self.counts[path] - 1,)
            path += (part,)
        end, self.at = self.text.index("]", self.at) + (2 if many else 1), start
        self._note(path)
        if many:
            self.counts[path] = self.counts.get(path, 0) + 1
            path += (self.counts[path] - 1,)
            self._note(path)
        elif path in self.counts:
            path += (self.counts[path] - 1,)
        self.at = end
        return path

    def _pair(self, table: Path_) -> None:
        start = self.at
        path = table + self._key()
        end, self.at = self.at, start
        for length in range(len(table) + 1, len(path) + 1):
            self._note(path[:length])
        self.at = self.text.index("=", end) + 1
        self._value(path)

    def _value(self, path: Path_) -> None:
        self._skip()
        self._note(path)
        opened = self.text[self.at]
        if opened in "[{":
            self.at += 1
            self._skip()
            place = 0
            while self.text[self.at] not in "]}":
                if opened == "[":
                    self._value((*path, place))
                    place += 1
                else:
                    self._pair(path)
                self._skip()
                if self.text[self.at] == ",":
                    self.at += 1
                self._skip()
            self.at += 1
        else:
            match = _SCALAR.match(self.text, self.at)
            assert match is not None, "tomllib has accepted the file"
            self.at = match.end()


def _quoted(key: str) -> str:
    return key if re.fullmatch(r"[\w-]+", key) else f'"{key}"'
