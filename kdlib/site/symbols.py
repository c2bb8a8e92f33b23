"""Where a name of the library is defined: what a call in a text or a cell links to."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

DOTTED = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+")


class Place(NamedTuple):
    """A definition: its file, relative to the project, and its name there ("" for the file)."""

    file: str
    name: str


class Symbols:
    """The definitions of a package, read from its sources; nothing is imported.

    Args:
        folder: of the package, e.g. PROJECT / "kdlib".
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.package = folder, folder.name
        self.files: dict[str, str] = {}  # {dotted module: file relative to the project}
        self.defined: dict[str, dict[str, int]] = {}  # {module: {name: line}}
        self._imported: dict[str, dict[str, str]] = {}  # {module: {name: dotted origin}}
        for path in sorted(folder.rglob("*.py")):
            inside = path.relative_to(folder.parent)
            module = ".".join(inside.with_suffix("").parts).removesuffix(".__init__")
            tree = ast.parse(path.read_text("utf-8"))
            self.files[module] = inside.as_posix()
            self.defined[module] = dict(_definitions(tree))
            is_package = path.name == "__init__.py"
            self._imported[module] = imports(tree, module if is_package else _parent(module))

    def find(self, dotted: str, names: Mapping[str, str] | None = None) -> Place | None:
        """Where `dotted` (e.g. "losses.kd", "kdlib.losses.kd") is defined, None for anything else.

        Args:
            names: {name: dotted origin} that the text has imported; default: the modules of the
                package by their own names.
        """
        first, _, rest = dotted.partition(".")
        if names is not None:
            origin = names.get(first, first if first == self.package else "")
        else:
            origin = first if first == self.package else f"{self.package}.{first}"
        if not origin or origin.partition(".")[0] != self.package:
            return None
        return self._resolve(f"{origin}.{rest}" if rest else origin)

    def file(self, path: str) -> Place | None:
        """The module that a text names by its path, "kdlib/losses.py" or "engine/loop"."""
        for root in (self.folder.parent, self.folder):
            for end in ("", ".py"):
                found = root / (path + end)
                if found.is_file():
                    return Place(found.relative_to(self.folder.parent).as_posix(), "")
        return None

    def _resolve(self, dotted: str, depth: int = 0) -> Place | None:
        parts = dotted.split(".")
        for length in range(len(parts), 0, -1):
            module, rest = ".".join(parts[:length]), parts[length:]
            if module not in self.files:
                continue
            if not rest:
                return Place(self.files[module], "")
            for size in (2, 1):  # a method, else its class; a function
                name = ".".join(rest[:size])
                if name in self.defined[module]:
                    return Place(self.files[module], name)
            origin = self._imported[module].get(rest[0])
            if origin and depth < 5:
                return self._resolve(".".join([origin, *rest[1:]]), depth + 1)
            return None
        return None


def _parent(module: str) -> str:
    return module.rpartition(".")[0]


def _definitions(tree: ast.Module) -> Iterator[tuple[str, int]]:
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node.name, node.lineno
        elif isinstance(node, ast.ClassDef):
            yield node.name, node.lineno
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef):
                    yield f"{node.name}.{inner.name}", inner.lineno
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                if isinstance(target, ast.Name):
                    yield target.id, node.lineno


def imports(tree: ast.Module, package: str = "") -> dict[str, str]:
    """{name: dotted origin} of the imports at the top of a module; `package` is what "." means."""
    found = {}
    for node in tree.body:
        if isinstance(node, ast.Import):
            for one in node.names:
                name = one.asname or one.name.partition(".")[0]
                found[name] = one.name if one.asname else name
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                origin = f"{package}.{origin}".rstrip(".")
            for one in node.names:
                found[one.asname or one.name] = f"{origin}.{one.name}"
    return found


def imported(sources: Iterable[str]) -> dict[str, str]:
    """{name: dotted origin} of what the code cells import; a cell of another syntax is passed."""
    found = {}
    for source in sources:
        try:
            found.update(imports(ast.parse(source)))
        except SyntaxError:
            continue
    return found
