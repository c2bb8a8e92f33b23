"""Rules for the committed notebooks that nbval does not see: it passes one without outputs."""

import ast
import importlib
import inspect
import json
import re
import textwrap
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pytest
from nbval import plugin as nbval

from kdlib.engine import notebooks

ROOT = Path(__file__).resolve().parents[1]
PATHS = notebooks.find((), ROOT / "notebooks")

PRINTING = {"print", "claim", "check", "display", "show"}  # calls that always leave an output
MACHINE = re.compile(
    r"(?<![\w.])/(?:home|root|Users|tmp|private|opt|usr|mnt|var)/|\b[A-Z]:\\\\?\w"
    r"|site-packages|ipykernel_\d"
)
LINK = re.compile(r"\[[^\]]*\]\(\s*<?([^)>\s]+)>?[^)]*\)")

OPENING = {
    "the question": "question",
    "the goals": "afterwards you can|goals",
    "the prerequisites": "you need|prerequisites",
    "the time": r"\bminutes?\b",
}
CLOSING = {
    "a recap": "recap",
    "questions": "test yourself|self-test",
    "report ideas": "report",
    "further reading": "read on|further reading",
}

every = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(path):
    return [cell for cell in read(path).cells if cell.cell_type == "code" and cell.source.strip()]


def markdown(path):
    return "\n\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")


def tree(cell):
    """The syntax tree of a cell; lines with IPython's % and ! are blanked."""
    return ast.parse(re.sub(r"^\s*[%!].*$", "pass", cell.source, flags=re.MULTILINE))


def outer_calls(node):
    """Names of the functions that run whenever the cell runs: not in a definition or a branch."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.ClassDef, ast.Lambda, ast.If, ast.Try)):
            continue
        if isinstance(child, ast.Call):
            yield getattr(child.func, "attr", getattr(child.func, "id", ""))
        yield from outer_calls(child)


@every
def test_committed_executed(path):
    """Once, from top to bottom, without an error, and with its outputs kept."""
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        assert all(output.output_type != "error" for output in cell.outputs), cell.source
        if PRINTING & set(outer_calls(tree(cell))):
            assert cell.outputs, f"its outputs were cleared:\n{cell.source}"


@every
def test_cells_are_small_and_clean(path):
    for cell in read(path).cells:
        assert cell.source.strip() or cell.cell_type == "code", "an empty markdown cell"
        if cell.cell_type == "code":
            assert len(cell.source.splitlines()) <= 25, cell.source
            assert not cell.source.rstrip().endswith(";"), f"a trailing ';':\n{cell.source}"


def escapes(cell):
    """What makes nbval skip a cell, or not compare all that it shows."""
    found = [*nbval.find_comment_markers(cell.source), *nbval.find_metadata_tags(cell.metadata)]
    found += [tag for tag in cell.metadata.get("tags", []) if tag == "skip-execution"]
    return found + re.findall(r"^%%capture", cell.source, flags=re.MULTILINE)


@every
def test_no_cell_escapes_comparison(path):
    for cell in code_cells(path):
        assert not escapes(cell), cell.source


@pytest.mark.parametrize(
    "line",
    [
        "# NBVAL_SKIP",
        "#NBVAL_IGNORE_OUTPUT",
        "  ## NBVAL_CHECK_OUTPUT",
        "# NBVAL_RAISES_EXCEPTION",
        "# PYTEST_VALIDATE_IGNORE_OUTPUT",
        "%%capture out",
    ],
)
def test_a_marker_is_seen(line):
    assert escapes(nbformat.v4.new_code_cell(f"{line}\nprint(1)"))
    assert not escapes(nbformat.v4.new_code_cell(f"print('{line}')"))


@pytest.mark.parametrize(
    "tag",
    [
        "nbval-skip",
        "nbval-ignore-output",
        "nbval-check-output",
        "nbval-raises-exception",
        "pytest-validate-ignore-output",
        "raises-exception",
        "skip-execution",
    ],
)
def test_a_tag_is_seen(tag):
    assert escapes(nbformat.v4.new_code_cell("print(1)", metadata={"tags": ["other", tag]}))
    assert not escapes(nbformat.v4.new_code_cell("print(1)", metadata={"tags": ["listing"]}))


@every
def test_no_trace_of_a_machine(path):
    for cell in read(path).cells:
        texts = [cell.source]
        for output in cell.get("outputs", []):
            data = {
                key: value
                for key, value in output.get("data", {}).items()
                if not key.startswith("image/")
            }
            texts += [output.get("text", ""), json.dumps(data, ensure_ascii=False)]
        for text in texts:
            found = MACHINE.search(text)
            assert not found, f"{found[0]!r} in: {text[max(0, found.start() - 60) :][:160]}"


@every
def test_imports_public_names(path):
    for cell in code_cells(path):
        imported = set()
        for node in ast.walk(tree(cell)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("kdlib"):
                imported |= {*node.module.split("."), *(alias.name for alias in node.names)}
            elif isinstance(node, ast.Import):
                imported |= {
                    part
                    for alias in node.names
                    if alias.name.startswith("kdlib")
                    for part in alias.name.split(".")
                }
        assert not [name for name in imported if name.startswith("_")], cell.source
        private = re.findall(
            r"\b(?:kdlib|data|models|losses|distillers|training|analysis|evidence"
            r"|show|efficiency|records)\._\w+",
            cell.source,
        )
        assert not private, cell.source


def statements(node):
    """Each statement of a function (or of a class's methods) as text, without docstrings."""
    if isinstance(node, ast.ClassDef):
        return [
            line
            for part in node.body
            if isinstance(part, ast.FunctionDef)
            for line in [f"def {part.name}", *statements(part)]
        ]
    return [
        ast.unparse(line)
        for line in node.body
        if not (isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant))
    ]


def differences(listing, source):
    """How a listing departs from the library: other arguments, or statements not found in order.

    The library may have more (checks of its arguments); it may not have something else.
    """
    shown, library = ast.parse(listing), ast.parse(textwrap.dedent(source))
    for node in [*ast.walk(shown), *ast.walk(library)]:  # a listing may leave the types out
        if isinstance(node, ast.FunctionDef):
            node.returns = None
        elif isinstance(node, ast.arg):
            node.annotation = None
    real = library.body[0]
    name = real.name
    ours = [node for node in shown.body if getattr(node, "name", None) == name]
    if not ours:
        return [f"the listing does not define {name}"]
    wrong = []
    if isinstance(real, ast.FunctionDef):
        arguments = [
            [one.arg for one in (*node.args.args, *node.args.kwonlyargs)]
            for node in (ours[0], real)
        ]
        if arguments[0] != arguments[1]:
            wrong.append(f"arguments {arguments[0]}, in the library {arguments[1]}")
    rest = iter(statements(real))
    return wrong + [line for line in statements(ours[0]) if line not in rest]


@every
def test_listings_are_the_library(path):
    """A cell tagged ``listing:kdlib.losses.kd`` shows that very function."""
    for cell in code_cells(path):
        for tag in cell.metadata.get("tags", []):
            if tag.startswith("listing:"):
                module, name = tag.removeprefix("listing:").rsplit(".", 1)
                source = inspect.getsource(getattr(importlib.import_module(module), name))
                assert not differences(cell.source, source), tag


def test_a_wrong_listing_is_seen():
    library = '''
        def kd(student, teacher, temperature=4.0):
            """Text."""
            check(student)
            log_q = log_softmax(student / temperature)
            return kl(log_q, teacher) * temperature**2
    '''
    listing = textwrap.dedent(library).replace("    check(student)\n", "")
    assert not differences(listing, library)
    assert differences(listing.replace("**2", ""), library)
    assert differences(listing.replace("teacher,", "target,"), library)
    assert differences(listing.replace("def kd", "def my_kd"), library)
    lines = listing.splitlines()
    assert differences("\n".join([*lines[:3], lines[4], lines[3]]), library)


def headings(path):
    """Anchors of a notebook or text as Jupyter makes them: words joined with '-'."""
    text = markdown(path) if path.suffix == ".ipynb" else path.read_text(encoding="utf-8")
    found = re.findall(r"^#{1,6} +(.+?)\s*$", text, flags=re.MULTILINE)
    return {heading.replace(" ", "-") for heading in found} | {
        re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in found
    }


def broken_links(path, text):
    plain = re.sub(r"```.*?```|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]+\$", "", text, flags=re.DOTALL)
    broken = []
    for link in LINK.findall(plain):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = unquote(link).partition("#")
        file = (path.parent / target) if target else path
        if not file.exists() or (anchor and anchor not in headings(file)):
            broken.append(link)
    return broken


@every
def test_links_resolve(path):
    assert not broken_links(path, markdown(path))


def test_links_of_the_readme_resolve():
    path = ROOT / "README.md"
    assert not broken_links(path, path.read_text(encoding="utf-8"))


@every
def test_opening_and_closing(path):
    cells = read(path).cells
    first = next(number for number, cell in enumerate(cells) if cell.cell_type == "code")
    last = max(number for number, cell in enumerate(cells) if cell.cell_type == "code")
    opening = "\n".join(cell.source for cell in cells[:first])
    closing = "\n".join(cell.source for cell in cells[last + 1 :])
    assert re.match(r"# \d+\. ", opening), "the first line is '# NUMBER. TITLE'"
    for part, pattern in OPENING.items():
        assert re.search(pattern, opening, re.IGNORECASE), f"the opening lacks {part}"
    for part, pattern in CLOSING.items():
        assert re.search(pattern, closing, re.IGNORECASE), f"the closing lacks {part}"


@every
def test_close_verdicts_are_declared(path):
    """A stored verdict is compared to the letter, so it may not be one that turns easily."""
    found = notebooks.claims(read(path))
    if any("claim" in outer_calls(tree(cell)) for cell in code_cells(path)):
        assert found, "it was executed before claims became displays"
    near = [claim.text for claim in found if claim.near]
    assert not near, "give these claims the reason why they are close, or more seeds"


def mask(text):
    """A text as nbval compares it."""
    config = (ROOT / "kdlib" / "assets" / "nbval_sanitize.cfg").read_text(encoding="ascii")
    for pattern, replacement in nbval.get_sanitize_patterns(config):
        text = re.sub(pattern, replacement, text)
    return text


@pytest.mark.parametrize(
    "one, other",
    [
        ("≈ +2.7", "≈ -12.25"),
        ("≈3", "≈ 1,234,567"),
        ("≈ 1.2e-05", "≈ −7"),
        ("≈ 98.7%", "≈ 3%"),
        ("≈ 12345", "≈ 1"),
        ("≈ 9.9", "≈ 10.1"),
        ("a |  ≈ 9.9 | b", "a | ≈ 10.1 | b"),
        ("<td>≈ 1.0 [≈ 0.9, ≈ 1.1]</td>", "<td>≈ 12.0 [≈ 9.9, ≈ 14.1]</td>"),
        (
            "x\nclaim: a | close ≈holds, not refuted | ≈ 1 points",
            "x\nclaim: a | close ≈not shown, not refuted | ≈ -1 points",
        ),
        ("claim: a | holds | ≈ 3 points", "claim: a | holds (≈ close) | ≈ 1 points"),
        (
            '<td>close <span class="close">holds</span></td>',
            '<td>close <span class="close">not shown</span></td>',
        ),
        (
            '<td><span class="measured">1.0</span> [<span class="measured">−0.9</span>]</td>',
            '<td><span class="measured">1,212.0</span> [<span class="measured">9e-5</span>]</td>',
        ),
        ("a  ≈ 1.0   close ≈holds\nb", "a  ≈ 10.0  close ≈not shown\nb"),
        ("a    close ≈holds      ≈ 1", "a    close ≈not shown  ≈ 1"),
        ("a    holds  ≈ 1", "a    holds (≈ close)  ≈ 12"),
        ("a    ≈ 1  not shown\nb", "a    ≈ 12  not shown (≈ close)\nb"),
    ],
)
def test_masked(one, other):
    assert mask(one) == mask(other)


@pytest.mark.parametrize(
    "one, other",
    [
        ("2.7", "2.8"),
        ("≈ 1", "≈ nan"),
        ("≈ 1", "≈ inf"),
        ("≈ inf", "≈ -inf"),
        ("≈ nan", "≈ inf"),
        ("≈ 98.7%", "≈ 98.7"),
        ("≈ 98.7 %", "≈ 98.7"),
        ("≈ 1,2,3,4", "≈ 9"),
        ("≈ 1,2,3,4", "≈ 1,2,3,5"),
        ("≈ 1,2345", "≈ 1"),
        ("≈ 1.2.3", "≈ 1.2"),
        ("≈ 1 s", "≈ 1 ms"),
        ("≈ 1 of 5", "≈ 1 of 6"),
        ("about 3", "about 4"),
        ("x ≈ y", "x ≈ z"),
        ("the effect ≈ holds", "the effect ≈ not shown"),
        ("so close ≈holds here", "so close ≈not shown here"),
        ("a | close ≈holds | b", "a | close ≈not shown | b"),
        ("claim: a | holds | ≈ 1", "claim: a | not shown | ≈ 1"),
        ("claim: a | holds (≈ close) | ≈ 1", "claim: a | not shown | ≈ 1"),
        ("claim: a | close ≈holds | ≈ 1", "claim: a | holds | ≈ 1"),
        ("claim: a ≈ holds | holds | ≈ 1", "claim: a ≈ not shown | holds | ≈ 1"),
        ("a (≈ close) | b", "a | b"),
        ("a  holds (≈ close)  ≈ 1", "a  not shown  ≈ 1"),
    ],
)
def test_not_masked(one, other):
    assert mask(one) != mask(other)
