"""Headings of a page: anchors, and the list that the sidebar shows."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from kdlib.site.links import slug


class Section(NamedTuple):
    """A heading: its level (2 or 3), anchor, words, and number ("" without one)."""

    level: int
    anchor: str
    html: str
    number: str
    words: str


def number_of(words: str) -> str:
    """The number at the beginning of a heading: "2.1 Into one network" -> "2.1"."""
    match = re.match(r"(\d+(?:\.\d+)*)\.? ", words)
    return match[1] if match else ""


def anchor(soup: Any) -> list[Section]:
    """Give every heading of a page an id of its own; returns the second and third levels."""
    found, taken = [], set()
    for heading in soup.find_all(["h1", "h2", "h3", "h4"]):
        words = " ".join(heading.get_text().split())
        name = base = slug(words)
        count = 1
        while name in taken:
            count += 1
            name = f"{base}-{count}"
        taken.add(name)
        heading["id"] = name
        level = int(heading.name[1])
        if level in (2, 3):
            inner = "".join(str(part) for part in heading.contents)
            found.append(Section(level, name, inner, number_of(words), words))
    return found
