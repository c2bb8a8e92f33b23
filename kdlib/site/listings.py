"""Source files as pages: numbered lines, highlighted, with an anchor at each definition."""

from __future__ import annotations

import ast
import html
from collections.abc import Iterable, Mapping
from pathlib import Path

# What a colour tells apart; all else is plain, which keeps the pages small.
CLASSES = {
    "Keyword": "k",
    "Operator.Word": "k",
    "Literal.String": "s",
    "Literal.Number": "m",
    "Comment": "c",
    "Name.Function": "nf",
    "Name.Class": "nf",
    "Name.Decorator": "nd",
}


def colour(kind: object) -> str:
    """The class of a Pygments token, "" for a plain one."""
    name = str(kind).removeprefix("Token.")
    while name:
        if name in CLASSES:
            return CLASSES[name]
        name = name.rpartition(".")[0]
    return ""


def highlighted(text: str, file: str) -> list[str]:
    """The lines of a file as HTML; no element goes over the end of a line."""
    from pygments.lexers import get_lexer_for_filename
    from pygments.lexers.special import TextLexer
    from pygments.util import ClassNotFound

    try:
        lexer = get_lexer_for_filename(file, stripnl=False, ensurenl=False)
    except ClassNotFound:
        lexer = TextLexer(stripnl=False, ensurenl=False)
    lines = [""]
    for kind, value in lexer.get_tokens(text):
        name = colour(kind)
        for number, part in enumerate(value.split("\n")):
            if number:
                lines.append("")
            if part:
                safe = html.escape(part, quote=False)
                lines[-1] += f'<span class="{name}">{safe}</span>' if name else safe
    return lines


def listing(path: Path, file: str, defined: Mapping[str, int]) -> tuple[str, str]:
    """The columns of numbers and of code of a source page.

    Args:
        defined: {name: line}; each becomes an anchor.
    """
    anchors = {line: name for name, line in reversed(list(defined.items()))}
    lines = highlighted(path.read_text("utf-8").rstrip("\n"), file)
    marked = [
        f'<span id="{anchors[number]}">{line}</span>' if number in anchors else line
        for number, line in enumerate(lines, 1)
    ]
    return "\n".join(map(str, range(1, len(lines) + 1))), "\n".join(marked)


def parsed(path: Path) -> ast.Module:
    """The syntax of a Python file."""
    return ast.parse(path.read_text("utf-8"))


def summary(path: Path) -> str:
    """The first line of a module's docstring, "" without one or for another file."""
    text = (ast.get_docstring(parsed(path)) or "") if path.suffix == ".py" else ""
    return text.partition("\n")[0].replace("`", "")


def rooms(files: Iterable[str]) -> dict[str, list[str]]:
    """{folder: its files}: those of the package, the top first, then what stands around it."""
    found: dict[str, list[str]] = {}
    for file in sorted(files, key=lambda one: (not one.endswith(".py"), one.count("/"), one)):
        found.setdefault(file.rpartition("/")[0], []).append(file)
    return found
