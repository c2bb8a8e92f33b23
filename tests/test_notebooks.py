"""Rules for the committed notebooks that nbval does not see: it passes one without outputs."""

import ast
import base64
import importlib
import inspect
import json
import math
import re
import textwrap
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pytest
from nbval import plugin as nbval
from test_strict import passes

from kdlib import evidence
from kdlib.engine import notebooks

ROOT = Path(__file__).resolve().parents[1]
PATHS = notebooks.find((), ROOT / "notebooks")

PRINTING = {"print", "claim", "check", "display", "show"}  # calls that always leave an output
MACHINE = re.compile(
    r"(?<![\w.])/(?:home|root|Users|tmp|private|opt|usr|mnt|var)/|\b[A-Z]:\\\\?\w"
    r"|site-packages|ipykernel_\d|/\S*bin/python"
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


def called(call):
    """The name of the function that a call calls, without that of its module."""
    return getattr(call.func, "attr", getattr(call.func, "id", ""))


def outer_calls(node):
    """Names of the functions that run whenever the cell runs: not in a definition or a branch."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.ClassDef, ast.Lambda, ast.If, ast.Try)):
            continue
        if isinstance(child, ast.Call):
            yield called(child)
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


@pytest.mark.parametrize("name", ["README.md", "kdlib/homework/instructors.md"])
def test_links_of_other_texts_resolve(name):
    path = ROOT / name
    assert not broken_links(path, path.read_text(encoding="utf-8"))


def test_the_readme_opens_with_the_first_figure():
    """Stored once more as a file, because a README cannot show what a notebook holds."""
    cell = next(cell for cell in read(PATHS[0]).cells if cell.get("id") == "three_figure")
    png = next(out.data["image/png"] for out in cell.outputs if "image/png" in out.get("data", {}))
    picture = ROOT / "kdlib" / "assets" / "opening.png"
    assert picture.read_bytes() == base64.b64decode(png), (
        f"notebook 1 was executed again: store the figure of its cell {cell.id!r} as {picture}"
    )


def test_instructors_read_of_every_flag():
    from kdlib.homework.review.findings import FLAGS

    text = (ROOT / "kdlib" / "homework" / "instructors.md").read_text("utf-8")
    listed = re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)
    assert sorted(re.findall(r"`(\w+)`", " ".join(listed))) == sorted(FLAGS)


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
    near = [claim.text for claim in [*found, *notebooks.family(read(path))] if claim.near]
    assert not near, "give these claims the reason why they are close, or more seeds"


# Sentences that are tied to their numbers: cells that call `evidence.states`

PROSE = "prose:"  # begins the tag of such a cell; the id of the markdown cell follows


def told(text):
    """The words of a text as its reader sees them: without emphasis and line breaks."""
    return " ".join(text.replace("*", "").split())


def quotes(text, sentence):
    """Whether a text has these words, and not as a part of a longer word or number."""
    words = re.escape(told(sentence))
    return bool(re.search(rf"(?<![\w.,+−-]){words}(?!\w|[.,]\d)", told(text)))


def literal(node):
    """The value of a literal; the node itself where something is computed."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        return node


def call_faults(call, text):
    """What is wrong with one call of `evidence.states` about a text."""
    words = {one.arg: one.value for one in call.keywords}
    try:
        nodes = inspect.signature(evidence.states).bind(*call.args, **words).arguments
    except TypeError as error:
        return [str(error)]
    given = {name: literal(node) for name, node in nodes.items()}
    bounds = [given[name] for name in ("low", "high") if given.get(name) is not None]
    found = []
    if not isinstance(given["sentence"], str):
        found.append("the sentence must be written down")
    elif not quotes(text, given["sentence"]):
        found.append(f"the text does not say {given['sentence']!r}")
    if not isinstance(given["value"], ast.AST):
        found.append("the value must be measured")
    if not all(isinstance(one, (int, float)) and math.isfinite(one) for one in bounds):
        found.append("low and high must be finite numbers, written down")
    elif bounds != sorted(set(bounds)):
        found.append("low must be below high")
    return found


def prose_faults(notebook):
    """What is wrong with the cells of a notebook that tie a sentence to its number."""
    texts = {cell.id: cell.source for cell in notebook.cells if cell.cell_type == "markdown"}
    faults = []
    for cell in notebook.cells:
        code = tree(cell) if cell.cell_type == "code" else ast.Module([], [])
        calls = [
            node
            for node in ast.walk(code)
            if isinstance(node, ast.Call) and called(node) == "states"
        ]
        tags = [tag for tag in cell.metadata.get("tags", []) if tag.startswith(PROSE)]
        if not calls and not tags:
            continue
        found = []
        if len(tags) != 1 or tags[0].removeprefix(PROSE) not in texts:
            found.append(f"one tag {PROSE}ID must name the markdown cell with the sentence")
        else:
            text = texts[tags[0].removeprefix(PROSE)]
            found += [fault for call in calls for fault in call_faults(call, text)]
        lines = [line.value for line in code.body if isinstance(line, ast.Expr)]
        if not calls or not all(call in lines for call in calls):
            found.append("it must call evidence.states in lines of their own, in no loop or branch")
        if not cell.metadata.get("jupyter", {}).get("source_hidden"):
            found.append("it must be collapsed: metadata.jupyter.source_hidden")
        if cell.get("outputs"):
            found.append("its sentence and its number differ: it must have no stored outputs")
        faults += [f"{cell.id}: {fault}" for fault in found]
    return faults


@every
def test_sentences_are_tied_to_their_numbers(path):
    """Each sentence stands in its text; strict nbval fails where its number leaves it."""
    assert not prose_faults(read(path))


def prose(code, text="KD gains **about 4\npoints** here.", tags=("prose:text",), **changes):
    """A notebook with a text and a cell that is tied to it."""
    cell = nbformat.v4.new_code_cell(
        code, id="code", metadata={"tags": list(tags), "jupyter": {"source_hidden": True}}
    )
    cell.update(changes)
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text, id="text"), cell])


FINE = "evidence.states('about 4 points', gain.mean, 3, 5.5)"


@pytest.mark.parametrize(
    "code, text",
    [
        (FINE, "KD gains **about 4\npoints** here."),
        (FINE, "About 4 points; *about* 4 points."),
        ("from kdlib import evidence\n" + FINE + "\n" + FINE, "(about 4 points)"),
        ("evidence.states('more than 10 points', x, low=10)", "It is more than 10 points."),
        ("evidence.states('-2 at most', x, high=-2)", "It is -2 at most."),
        ("evidence.states('the *small* one ' 'gains', a > b)", "Of the two,\nthe small one gains."),
        ("other.call('unknown words')", "nothing"),
    ],
)
def test_a_tied_sentence_passes(code, text):
    tags = ["prose:text"] if "states" in code else ["other"]
    assert not prose_faults(prose(code, text, tags))
    assert not prose_faults(nbformat.v4.new_notebook())


@pytest.mark.parametrize(
    "notebook, fault",
    [
        (prose(FINE, "KD gains 4 points."), "does not say 'about 4 points'"),
        (prose(FINE.replace("about ", ""), "KD gains 14 points."), "does not say '4 points'"),
        (prose(FINE.replace("about ", ""), "KD gains 1.4 points."), "does not say '4 points'"),
        (prose(FINE.replace("about ", ""), "KD gains -4 points."), "does not say '4 points'"),
        (prose(FINE.replace(" points", ""), "about 4.5 points"), "does not say 'about 4'"),
        (prose(FINE.replace("points", "point")), "does not say 'about 4 point'"),
        (prose("say = 'about 4 points'\nevidence.states(say, gain, 3, 5)"), "be written down"),
        (prose("evidence.states(f'about {4} points', gain, 3, 5)"), "sentence must be written"),
        (prose("evidence.states('about 4 points', 4.1, 3, 5)"), "value must be measured"),
        (prose("evidence.states('about 4 points', gain, 0.9 * gain, 5)"), "finite numbers, writ"),
        (prose("evidence.states('about 4 points', gain, 3, 1e999)"), "finite numbers, written"),
        (prose("evidence.states('about 4 points', gain, 5, 3)"), "low must be below high"),
        (prose("evidence.states('about 4 points', gain, low=3, high=3)"), "low must be below"),
        (prose("evidence.states('about 4 points')"), "missing a required argument: 'value'"),
        (prose("evidence.states('about 4 points', gain, **bounds)"), "keywords must be strings"),
        (prose(f"if gain:\n    {FINE}"), "in no loop or branch"),
        (prose(f"for gain in gains:\n    {FINE}"), "in no loop or branch"),
        (prose("print(1)"), "it must call evidence.states"),
        (prose(FINE, tags=()), "one tag prose:ID must name"),
        (prose(FINE, tags=("prose:code",)), "one tag prose:ID must name"),
        (prose(FINE, tags=("prose:text", "prose:other")), "one tag prose:ID must name"),
        (prose(FINE, metadata={"tags": ["prose:text"]}), "it must be collapsed"),
        (
            prose(FINE, outputs=[nbformat.v4.new_output("stream", text="the text says: ...")]),
            "must have no stored outputs",
        ),
    ],
)
def test_a_sentence_that_is_not_tied_is_seen(notebook, fault):
    found = prose_faults(notebook)
    assert len(found) == 1 and fault in found[0], found


def test_strict_nbval_fails_where_a_number_left_its_sentence(tmp_path):
    """The stored cell is silent, so the line that `evidence.states` says is a difference."""
    sources = [
        "from kdlib import evidence",
        "evidence.states('about 4 points', 4.2, 3, 5.5)",
        "evidence.states('about 4 points', 7.1, 3, 5.5)",
        "evidence.states('the smallest gains most', 1 > 2)",
        "evidence.states('about 4 points', float('nan'), 3, 5.5)",
        "print(end='')",
    ]
    notebook = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_code_cell(source, id=f"c{count}", execution_count=count)
            for count, source in enumerate(sources)
        ]
    )
    fine, said = passes(nbformat.writes(notebook), tmp_path)
    assert not fine and "3 failed, 3 passed" in said, said


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
            "x\nclaim: a | ≈holds, but close | ≈ 1 points",
            "x\nclaim: a | ≈not shown, but close | ≈ -1 points",
        ),
        ("claim: a | holds | ≈ 3 points", "claim: a | holds (≈ close) | ≈ 1 points"),
        (
            '<td><span class="close">holds</span>, but close</td>',
            '<td><span class="close">not shown</span>, but close</td>',
        ),
        (
            '<td><span class="measured">1.0</span> [<span class="measured">−0.9</span>]</td>',
            '<td><span class="measured">1,212.0</span> [<span class="measured">9e-5</span>]</td>',
        ),
        ("a  ≈ 1.0   ≈holds, but close\nb", "a  ≈ 10.0  ≈not shown, but close\nb"),
        ("a    ≈holds, but close      ≈ 1", "a    ≈not shown, but close  ≈ 1"),
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
        ("so ≈holds, but close here", "so ≈not shown, but close here"),
        ("a | ≈holds, but close | b", "a | ≈not shown, but close | b"),
        ("claim: a | holds | ≈ 1", "claim: a | not shown | ≈ 1"),
        ("claim: a | holds (≈ close) | ≈ 1", "claim: a | not shown | ≈ 1"),
        ("claim: a | ≈holds, but close | ≈ 1", "claim: a | holds | ≈ 1"),
        ("claim: a ≈ holds | holds | ≈ 1", "claim: a ≈ not shown | holds | ≈ 1"),
        ("a (≈ close) | b", "a | b"),
        ("a  holds (≈ close)  ≈ 1", "a  not shown  ≈ 1"),
    ],
)
def test_not_masked(one, other):
    assert mask(one) != mask(other)
