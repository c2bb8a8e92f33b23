"""The flag about files that would change how the work is judged."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import PurePosixPath

from kdlib.homework import checks, generated
from kdlib.homework.review.findings import GREEN, NOTE, RED, Answer, Finding, Table, counted, some
from kdlib.homework.review.handed_in import MB, HandedIn, digest
from kdlib.homework.review.kit import PACKAGE
from kdlib.homework.sources import STYLES

_NAMES = {
    "conftest.py": "pytest runs it, and it can turn failures into passes",
    "pytest.ini": "it configures pytest",
    ".pytest.ini": "it configures pytest",
    "pytest.toml": "it configures pytest",
    ".pytest.toml": "it configures pytest",
    "sitecustomize.py": "Python runs it at every start",
    "usercustomize.py": "Python runs it at every start",
    ".latexmkrc": "LaTeX builds run it as a program",
    "latexmkrc": "LaTeX builds run it as a program",
}
_SECTIONS = {"setup.cfg": "[tool:pytest]", "tox.ini": "[pytest]"}
_SHADOWED = ("torch", "torchvision", "numpy", "scipy", "matplotlib", "pytest", "nbval")
_OPAQUE = (".pkl", ".pickle", ".pt", ".pth", ".joblib", ".npy", ".npz", ".h5", ".safetensors")


def tampering(handed_in: HandedIn) -> Answer:
    """Nothing configures the checks, stands for the kit, or says other than the records."""
    numbers = _generated(handed_in)
    found = [
        *_by_name(handed_in),
        *_kits(handed_in),
        *_left(handed_in),
        *numbers.findings,
    ]
    evidence = f"{counted(len(handed_in.entries), 'file')}, none of which changes how it is judged"
    good = Finding("tampering", GREEN, evidence)
    return Answer.of(found, good, tables=numbers.tables)


def _by_name(handed_in: HandedIn) -> Iterator[Finding]:
    foreign = [name for name in handed_in.entries if not handed_in.is_kit(name)]
    for name in foreign:
        why = _why(PurePosixPath(name), handed_in)
        if why:
            yield Finding("tampering", RED, why, name)
    opaque = [name for name in foreign if name.endswith(_OPAQUE)]
    if opaque:
        evidence = f"{counted(len(opaque), 'file')} of data or weights, not opened"
        yield Finding("tampering", NOTE, evidence, some(opaque, 3))


def _why(path: PurePosixPath, handed_in: HandedIn) -> str:
    """What a file would change; "" if nothing."""
    if path.name in _NAMES:
        return _NAMES[path.name]
    if path.suffix == ".pth" and "site-packages" in path.parts:
        return "Python runs it at every start"
    text = handed_in.text(str(path)) if path.name in (*_SECTIONS, "pyproject.toml") else ""
    sections = path.name in _SECTIONS and _SECTIONS[path.name] in text
    if sections or (path.name == "pyproject.toml" and _configures(text)):
        return "it configures pytest"
    if path.parts[0].removesuffix(".py") in _SHADOWED:
        return f"it stands for the package {path.parts[0]}"
    return "the layout of the report was changed" if path.name in STYLES else ""


def _configures(text: str) -> bool:
    try:
        return "pytest" in tomllib.loads(text).get("tool", {})
    except (tomllib.TOMLDecodeError, AttributeError, RecursionError):
        return "pytest" in text


def _kits(handed_in: HandedIn) -> Iterator[Finding]:
    """A `kdlib` of the team's own, file by file against the pristine one."""
    own: dict[str, list[tuple[str, str]]] = {}
    for name in handed_in.entries:
        parts = PurePosixPath(name).parts
        for place, part in enumerate(parts):
            if part == "kdlib" or (part == "kdlib.py" and place == len(parts) - 1):
                own.setdefault("/".join(parts[: place + 1]), []).append(
                    (name, "/".join(parts[place + 1 :]))
                )
                break
    for top, names in own.items():
        changed = [name for name, inside in names if not _pristine(handed_in, name, inside)]
        if changed:
            evidence = (
                f"a kdlib that is not the course's: {len(changed)} of {len(names)} files differ"
            )
            yield Finding("tampering", RED, f"{evidence}, {some(changed, 4)}", top)
        else:
            evidence = (
                f"a copy of the kit, unchanged ({counted(len(names), 'file')}); it is not used"
            )
            yield Finding("tampering", NOTE, evidence, top)


def _pristine(handed_in: HandedIn, name: str, inside: str) -> bool:
    ours, theirs = PACKAGE / inside, handed_in.tree / name
    if not inside or not theirs.is_file() or not ours.is_file():
        return False
    return digest(ours.read_bytes()) == digest(theirs.read_bytes())


def _left(handed_in: HandedIn) -> Iterator[Finding]:
    """Files that were not copied: links, large ones, other repositories, odd names."""
    links = [name for name, entry in handed_in.entries.items() if entry.mode == "120000"]
    labels = [handed_in.entries[name].object for name in links]
    targets = handed_in.git.contents(sorted(set(labels)), MB)
    for name, label in zip(links, labels):
        target = targets.get(label, b"").decode("utf-8", "replace")
        if _leaves(name, target):
            evidence = f"a symbolic link out of the repository, to {target[:200]!r}"
            yield Finding("tampering", RED, evidence, name)
        else:
            yield Finding(
                "tampering", NOTE, f"a symbolic link to {target[:200]!r}: not followed", name
            )
    for name, why in handed_in.left.items():
        if name not in links:
            other = handed_in.entries[name].mode == "160000"
            evidence = f"it {why}: it was not read"
            yield Finding("tampering", NOTE if other else RED, evidence, _shown(name))


def _shown(name: str) -> str:
    text = "".join(sign if sign.isprintable() else "?" for sign in name)
    return text if len(text) <= 250 else text[:250] + "…"


def _leaves(name: str, target: str) -> bool:
    """Whether a link leads out of the repository."""
    if not target or target.startswith(("/", "~")) or "\\" in target or ":" in target[:3]:
        return True
    depth = len(PurePosixPath(name).parts) - 1
    for part in target.split("/"):
        depth += {"..": -1, ".": 0, "": 0}.get(part, 1)
        if depth < 0:
            return True
    return False


def _generated(handed_in: HandedIn) -> Answer:
    """The numbers, tables and figures that `report` wrote, against the records."""
    made = handed_in.report
    if made is None:
        return Answer.note("tampering", "the stored numbers could not be compared with records")
    where = handed_in.relative(handed_in.folder / generated.JSON)
    if where not in handed_in.entries:
        return Answer.note("tampering", f"{generated.JSON} is not handed in: nothing to compare")
    lines = list(checks.of_numbers(made.folder, made.results))
    if not lines:
        try:
            rest = list(checks.of_generated(made.folder, made.results, made.team, made.course))
        except ValueError as error:
            rest = [str(error)]
        return Answer(tuple(Finding("tampering", NOTE, line, where) for line in rest[:3]))
    try:
        rows = checks.different(made.folder, made.results)
    except (OSError, ValueError):
        rows = []
    more = []
    if len(rows) > 1:
        more.append(f"{len(rows)} numbers are not those of the records")
    if len(lines) > 1:
        more.append(f"{len(lines)} lines of `report --check`")
    evidence = f"{lines[0]} ({', '.join(more)})" if more else lines[0]
    key = rows[0][0] if len(rows) == 1 else ""
    texts = handed_in.text(where).splitlines()
    line = next((at for at, text in enumerate(texts, 1) if key and f'"{key}"' in text), 0)
    head = ("key", "stored", "the records give")
    tables = [Table("Numbers that the records do not give", head, tuple(rows))] if rows else []
    others = [(one,) for one in lines[1:] if not any(f"{row[0]!r}" in one for row in rows)]
    if others:
        tables.append(Table("What `report --check` says besides", ("line",), tuple(others)))
    found = Finding("tampering", RED, evidence, f"{where}:{line}" if line else where)
    return Answer((found,), tables=tuple(tables))
