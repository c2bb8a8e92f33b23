"""The command line as a user meets it: run, doctor, lab, and their words when all is not well."""

import argparse
import ast
import errno
import importlib
import inspect
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import nbformat
import psutil
import pytest
from browser import printed

from kdlib import __main__ as cli
from kdlib.commands import doctor, lab
from kdlib.commands import run as runner
from kdlib.engine import copies, files, kernels, notebooks

# What `evidence.claim` displays, without training anything.
CLAIM = """import os
from kdlib.engine.console import say
offset = int(os.environ.get("KDLIB_SEED_OFFSET", 0))
def claim(text, verdict, near, numbers):
    line = f"claim: {text} | {verdict}{' (≈ close)' if near else ''} | {numbers}, 5 paired seeds"
    say(line, claim={"text": text, "verdict": verdict, "near": near, "line": line})
claim("the student gains", "not shown" if offset else "holds", False,
      "≈ +2.7 points [≈ +1.9, ≈ +3.4]")
claim("barely", "holds", True, "≈ +0.2 points [≈ +0.1, ≈ +0.3]")
claim("nothing is lost", "≈holds, but close", False, "≈ +0.1 points [≈ -0.1, ≈ +0.3]")"""

# What the closing table of `evidence.Family` displays: two of its verdicts differ from the above.
FAMILY = """def row(text, verdict, p):
    return {"text": text, "verdict": verdict, "p": p}
say("a table", family=[
    row("the student gains", "not shown" if offset else "holds", 0.2 if offset else 0.012),
    row("barely", "not shown (≈ close)", 0.0612),
    row("nothing is lost", "≈not shown, but close", 0.00002)])"""

CHECKS = """from kdlib import losses
from kdlib.check import check
check("2.1", None)
check("2.2", lambda s, t, T: s - t)
check("3.6", losses.attention)"""

# Where the kit imports a module by a name that is not in its source, and nowhere else.
DYNAMIC = {
    "__main__.py": {"importlib.import_module"},
    "benchmarks/catalogue.py": {"importlib.import_module"},
    "benchmarks/peers.py": {"importlib.import_module"},
    "check.py": {"importlib.import_module", "pkgutil.iter_modules"},
    "commands/train.py": {"importlib.import_module"},
    "identity.py": {"importlib.import_module"},
    "recipes.py": {"importlib.import_module"},
    "studies/__init__.py": {"importlib.import_module"},
}


@pytest.fixture
def write(tmp_path):
    """write("01_a", "x = 1", ...) makes a notebook of code cells in a fresh folder."""

    def make(stem, *sources, tags=()):
        notebook = nbformat.v4.new_notebook(
            cells=[
                nbformat.v4.new_code_cell(
                    source, id=f"cell-{number}", metadata={"tags": list(tags)}
                )
                for number, source in enumerate(sources)
            ]
        )
        path = tmp_path / f"{stem}.ipynb"
        nbformat.write(notebook, path)
        return path

    return make


@pytest.fixture
def quick(monkeypatch):
    """The machine's speed is not measured."""
    monkeypatch.setattr(doctor, "machine_speed", lambda: 1.0)


def run(*arguments):
    return cli.main(["run", *map(str, arguments)])


# The commands


def test_every_command_is_listed(root):
    folder = root / "kdlib" / "commands"
    found = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    assert set(cli.COMMANDS) == found
    for name, module in cli.COMMANDS.items():
        command = importlib.import_module(module)
        assert module == f"kdlib.commands.{name}"
        assert cli.help_line(name) == command.HELP and "\n" not in command.HELP
        assert list(inspect.signature(command.configure).parameters) == ["parser"]
        assert list(inspect.signature(command.main).parameters) == ["arguments"]
        command.configure(argparse.ArgumentParser())


def test_dynamic_imports_are_listed(root):
    loaders = re.compile(
        r"importlib\.import_module|importlib\.util\.\w*from\w*|importlib\.machinery\..*"
        r"|pkgutil\..*|runpy\..*|__import__|import_module"
    )
    found = {}
    for path in (root / "kdlib").rglob("*.py"):
        calls = {
            ast.unparse(node.func)
            for node in ast.walk(ast.parse(path.read_text("utf-8")))
            if isinstance(node, ast.Call)
        }
        used = set(filter(loaders.fullmatch, calls))
        if used:
            found[path.relative_to(root / "kdlib").as_posix()] = used
    assert found == DYNAMIC


def test_a_command_is_imported_when_it_is_chosen():
    code = (
        "import sys, kdlib.__main__ as cli\n"
        "def loaded(): return {m for m in sys.modules if m.startswith('kdlib.')}\n"
        "assert loaded() == {'kdlib.__main__'}, loaded()\n"
        "assert not {'torch', 'numpy', 'nbformat'} & set(sys.modules)\n"
        "for words in (['--help'], ['run', '--help']):\n"
        "    try: cli.main(words)\n"
        "    except SystemExit as end: assert end.code == 0\n"
        "    assert ('kdlib.commands.run' in loaded()) == (words[0] == 'run')\n"
        "assert 'kdlib.commands.lab' not in loaded()\n"
        "assert not {'torch', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in cli.COMMANDS:
        assert re.search(rf"^  {name} +{re.escape(cli.help_line(name))}$", done.stdout, re.M)
    assert "--timeout SECONDS" in done.stdout


def test_a_missing_package_is_one_line(monkeypatch, capsys):
    monkeypatch.setitem(cli.COMMANDS, "run", "kdlib.commands.no_such_module")
    assert cli.main(["run"]) == 2
    errors = capsys.readouterr().err
    assert "no_such_module" in errors and "doctor" in errors and errors.count("\n") == 1


# Finding notebooks, parsing


def test_notebooks_by_number_name_and_path(write, tmp_path, monkeypatch):
    one, two, ten = write("01_a", "1"), write("02_b", "1"), write("10_c", "1")
    write("01_a.executed", "1")  # what `run --save` left is no notebook of the course
    assert notebooks.find((), tmp_path) == [one, two, ten]
    assert notebooks.find(["10", "02_b", "1", "01_a.ipynb"], tmp_path) == [ten, two, one, one]
    monkeypatch.chdir(tmp_path)
    assert notebooks.find(["02_b.ipynb"], Path("elsewhere")) == [two]
    assert notebooks.FOLDER.joinpath("01_motivation.ipynb").is_file()


def test_unknown_notebook_lists_the_known(write, tmp_path):
    write("01_a", "1")
    with pytest.raises(ValueError, match=r"'7' not found.*01_a"):
        notebooks.find(["7"], tmp_path)
    write("01_b", "1")
    with pytest.raises(ValueError, match=r"'1' fits several.*01_a, 01_b"):
        notebooks.find(["1"], tmp_path)
    with pytest.raises(ValueError, match="no notebooks in"):
        notebooks.find((), tmp_path / "empty")


def test_a_typo_is_one_line(capsys):
    assert run("99_no_such_notebook") == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: notebook '99_no_such_notebook'") and errors.count("\n") == 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["run", "--save", "--seed-offset", "3"], "not allowed with"),
        (["run", "--seed-offset", "-3"], "0 or more"),
        (["run", "--seed-offset", "many"], "0 or more"),
        (["run", "--timeout", "0"], "seconds above 0"),
        (["run", "--timeout", "nan"], "seconds above 0"),
        (["run", "--timeout", "soon"], "seconds above 0"),
        (["run", "--fast"], "unrecognized arguments: --fast"),
        (["doctor", "--fast"], "unrecognized arguments: --fast"),
        (["fly"], "invalid choice"),
        ([], "COMMAND"),
    ],
)
def test_bad_usage(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "no notebook", "{}", "[]", '{"cells": 1}'])
def test_a_broken_file_is_named(content, tmp_path, capsys):
    path = tmp_path / "broken.ipynb"
    path.write_text(content)
    assert run(path) == 2
    assert "broken.ipynb is not a readable notebook" in capsys.readouterr().err


def output(data, text="", kind="display_data"):
    if kind == "stream":
        return nbformat.v4.new_output(kind, name="stdout", text=text)
    return nbformat.v4.new_output(kind, data={"text/plain": text}, metadata={"kdlib": data})


def test_claims_and_checks_are_read_from_the_data_of_displays():
    line = "claim: a | holds | ≈ +1 points"
    said = {"text": "a", "verdict": "holds", "near": False, "line": line}
    checked = {"name": "2.1", "state": "correct", "line": "correct: 2.1 The\x1b[2K\nloss"}
    cell = nbformat.v4.new_code_cell(
        f"print('{line}')",
        outputs=[
            output({}, line, "stream"),
            output({}, line),
            output({"claim": said}, "another text"),
            output({"claim": {"text": 1, "near": "yes"}}),
            output({"claim": [said]}),
            output({"check": checked}),
            output({"check": {**checked, "state": "solved"}}),
        ],
    )
    notebook = nbformat.v4.new_notebook(cells=[cell, nbformat.v4.new_markdown_cell(line)])
    assert notebooks.claims(notebook) == [("a", "holds", False, "≈ +1 points"), ("", "", False, "")]
    assert notebooks.checks(notebook) == [("2.1", "correct", "correct: 2.1 The [2K loss")]


def test_closing_tables_and_sentences_are_read_from_the_data_of_displays():
    row = {"text": "a\x1b[2K", "verdict": "holds (≈ close)", "p": 0.01}
    outputs = [
        output({}, "a  holds  p ≈ 0.0100", "stream"),
        output({"family": [row, row, {**row, "verdict": "≈holds, but close", "p": 1}]}),
        output({"family": [row, {**row, "text": "b", "verdict": "not shown"}, 3, None, [row]]}),
        output({"family": row}),
        output({"family": "row"}),
        output({"family": [{"text": 1, "verdict": ["holds"]}]}),
        *(output({"family": [{**row, "p": p}]}) for p in ("0", True, [], 2, -1, 10**400)),
        output({"family": [{**row, "p": float("nan")}]}),
        output({"stated": {"line": "the text\nsays"}}),
        output({"stated": {"line": 4}}),
        output({"stated": ["the text says"]}),
        output([]),
        nbformat.NotebookNode(output_type="display_data", data={}, metadata=None),
        nbformat.NotebookNode(output_type="display_data", data={}, metadata=[1]),
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell()])
    notebook.cells[0].outputs = outputs
    assert notebooks.family(notebook) == [
        ("a [2K", "holds", True, 0.01),
        ("a [2K", "≈holds, but close", False, 1.0),
        ("b", "not shown", False, 0.01),
        ("", "", False, None),
        ("a [2K", "holds", True, None),
    ]
    assert notebooks.left(notebook) == ["the text says", ""]
    assert notebooks.claims(notebook) == notebooks.checks(notebook) == []


def test_changes_name_what_flipped_appeared_and_vanished():
    before = [
        notebooks.Verdict(*row, False, "")
        for row in [("a", "holds"), ("a", "holds"), ("b", "holds"), ("c", "holds")]
    ]
    after = [
        notebooks.Verdict(*row, "")
        for row in [
            ("a", "holds", True),
            ("a", "not shown", False),
            ("b", "≈holds, but close", False),
            ("d", "holds", False),
        ]
    ]
    assert notebooks.changes(before, after) == [
        "a: holds -> not shown",
        "b: holds -> ≈holds, but close",
        "c: holds -> absent",
        "d: absent -> holds",
    ]
    assert notebooks.changes(before, before) == []


# Running them


def test_run_ends_with_what_the_notebook_says_and_writes_nothing(write, capsys):
    path = write(
        "01_a",
        CHECKS,
        CLAIM,
        "print('claim: forged | holds | ≈ 9 points')\nprint('correct: 9.9 forged')",
    )
    before = path.read_bytes()
    assert run(path) == 0
    printed = capsys.readouterr().out
    places = [
        printed.index(part)
        for part in ("01_a.ipynb: ran in", "\nExercises\n01_a\n", "\nClaims\n01_a\n")
    ]
    assert places == sorted(places)
    assert re.search(
        r"^  \[to do\] 2\.1: The .*\n  not yet: 2\.2 .*\n  correct: 3\.6 Attention transfer",
        printed,
        re.MULTILINE,
    )
    assert re.search(r"^  holds +the student gains\n +≈ \+2\.7 points", printed, re.MULTILINE)
    assert re.search(r"^  holds \(≈ close\) +barely$", printed, re.MULTILINE)
    assert re.search(r"^  ≈holds, but close +nothing is lost$", printed, re.MULTILINE)
    assert "notebooks: 1, failed: 0, checks: 3, correct: 1, claims: 3" in printed
    assert "forged" not in printed and path.read_bytes() == before


def test_run_lists_the_closing_table_and_the_sentences_that_their_numbers_left(write, capsys):
    sentences = (
        "from kdlib import evidence\n"
        "evidence.states('about 4 points', 7.25, 3, 5.5)\n"
        "evidence.states('about 4 points', 4.25, 3, 5.5)\n"
        "evidence.states('the smallest gains most', 1 > 2)\n"
        "print('the text says: forged')"
    )
    assert run(write("01_a", CLAIM, FAMILY), write("02_b", CLAIM), write("03_c", sentences)) == 0
    printed = capsys.readouterr().out
    assert "forged" not in printed
    claims = """01_a
  holds              the student gains
                     ≈ +2.7 points [≈ +1.9, ≈ +3.4], 5 paired seeds
  holds (≈ close)    barely
                     ≈ +0.2 points [≈ +0.1, ≈ +0.3], 5 paired seeds
  ≈holds, but close  nothing is lost
                     ≈ +0.1 points [≈ -0.1, ≈ +0.3], 5 paired seeds
"""
    end = """
Sentences that their numbers left
03_c
  the text says: "about 4 points" (3 to 5.5), measured ≈ 7.25
  the text says: "the smallest gains most", which is not so here
notebooks: 3, failed: 0, checks: 0, correct: 0, claims: 6, sentences left by their numbers: 2
"""
    table = """  Primary claims, adjusted for their number (Holm)
    adjusted: holds                                             p ≈ 0.0120  the student gains
    adjusted: not shown (≈ close) (alone: holds)                p ≈ 0.0612  barely
    adjusted: ≈not shown, but close (alone: ≈holds, but close)  p < 0.0001  nothing is lost
"""
    alone = claims.replace("01_a", "02_b")
    assert printed.split("\nClaims\n")[1] == claims + table + alone + "03_c\n  none\n" + end


def test_a_strange_closing_table_is_listed_as_it_is(tmp_path):
    rows = [
        notebooks.Adjusted("known twice", "not shown", False, None),
        notebooks.Adjusted("never claimed", "holds", False, 1.0),
        notebooks.Adjusted("", "", False, 0.0),
    ]
    claims = [notebooks.Verdict("known twice", word, False, "") for word in ("not shown", "holds")]
    outcome = runner.Outcome(tmp_path / "01_a.ipynb", claims, rows, [], [], [], [], 1.0)
    assert runner.summary([outcome]).splitlines()[-4:-1] == [
        "    adjusted: not shown (alone: holds)  p unknown   known twice",
        "    adjusted: holds                     p ≈ 1.0000  never claimed",
        "    adjusted:                           p < 0.0001  ",
    ]


def test_every_failing_cell_is_shown_and_the_next_notebook_runs(write, capsys, quick, tmp_path):
    bad = write(
        "01_bad",
        "x = 0",
        "def half(n):\n    return 1 / n\nhalf(x)",
        CHECKS,
        "undefined",
        tags=["raises-exception"],
    )
    dead = write("02_dead", "import os\nos._exit(3)", "print('not reached')")
    good = write("03_good", CLAIM)
    before = bad.read_bytes()
    assert run("--save", bad, dead, good) == 1
    printed = capsys.readouterr().out
    assert "01_bad.ipynb: FAILED" in printed and "    half(x)" in printed
    assert "ZeroDivisionError: division by zero" in printed and "\x1b" not in printed
    assert "NameError: name 'undefined'" in printed
    assert "02_dead.ipynb: FAILED" in printed and "os._exit(3)" in printed
    assert "the student gains" in printed and "correct: 3.6" in printed
    assert "notebooks: 3, failed: 2, checks: 3, correct: 1, claims: 3" in printed
    assert bad.read_bytes() == before  # its outputs are beside it
    assert "01_bad.ipynb is as it was, its outputs are in 01_bad.executed.ipynb" in printed
    cells = notebooks.read(tmp_path / "01_bad.executed.ipynb").cells
    assert cells[1].outputs[-1].ename == "ZeroDivisionError" and len(cells[2].outputs) == 3


def test_another_kit_is_not_believed(write, capsys):
    """A `kdlib` beside the notebook is not used; one that it chooses itself is not repeated."""
    wrong = "check('2.2', lambda s, t, T: s - t)"
    fair = write("01_fair", f"from kdlib.check import check\n{wrong}")
    forged = write(
        "02_forged",
        "import sys, types\nfrom kdlib.engine.console import say\n"
        "sys.modules['kdlib.check'] = types.ModuleType('kdlib.check')\n"
        "say('', check={'name': '2.2', 'state': 'correct', 'line': 'correct: 2.2'})",
    )
    folder = fair.parent / "kdlib"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "check.py").write_text("def check(*_):\n    print('correct: 2.2')")
    assert run(fair) == 0
    assert "  not yet: 2.2 " in (printed := capsys.readouterr().out)
    assert "correct: 0, claims" in printed
    assert run(forged) == 1
    printed = capsys.readouterr().out
    assert "kdlib.check from nowhere" in printed and "checks: 0, correct: 0" in printed


def test_timeout(write, capsys):
    path = write("01_a", "import time\ntime.sleep(60)", CLAIM)
    start = time.monotonic()
    assert run("--timeout", "1.5", path) == 1
    printed = capsys.readouterr().out
    assert "did not end within 1.5 s" in printed and "claims: 3" in printed
    assert time.monotonic() - start < 20


def test_seed_offset_lists_changed_verdicts(write, capsys, quick):
    path = write("01_a", CLAIM, FAMILY)
    assert run("--save", path) == 0
    saved = path.read_bytes()
    assert capsys.readouterr().out.count("say close=REASON: barely") == 1
    assert run("--seed-offset", "5", path) == 0
    report = capsys.readouterr().out.split("Verdicts that changed with seeds shifted by 5:")[1]
    assert report.splitlines()[1:] == [
        "  01_a: the student gains: holds -> not shown",
        "  01_a: adjusted: the student gains: holds -> not shown",
    ]
    assert path.read_bytes() == saved


@pytest.mark.parametrize("value", ["5", "many"])
def test_shifted_seeds_are_never_saved(value, write, monkeypatch, capsys):
    monkeypatch.setenv(runner.SEED_OFFSET, value)
    assert run("--save", write("01_a", CLAIM)) == 2
    assert runner.SEED_OFFSET in capsys.readouterr().err


def test_saving_again_changes_no_byte(write, quick):
    path = write(
        "01_a",
        "import time, sys, matplotlib.pyplot as plt\nprint('out', flush=True)\n"
        "print('err', file=sys.stderr)\nprint('out again')\ntime.sleep(2)",
        CLAIM,
        "plt.plot([1, 2])\nplt.show()",
    )
    assert run("--save", path) == 0
    first = path.read_bytes()
    assert run("--save", path) == 0
    assert path.read_bytes() == first
    notebook = notebooks.read(path)
    assert [cell.execution_count for cell in notebook.cells] == [1, 2, 3]
    assert list(notebook.metadata.kdlib.slow_cells) == ["cell-0"]
    assert notebooks.stored_seconds(notebook) >= 2
    assert len(notebooks.claims(notebook)) == 3
    assert b"3.1" not in first.split(b'"language_info"')[1]  # no version of Python
    assert [item.name for item in path.parent.iterdir()] == [path.name]


def test_an_edit_made_meanwhile_is_kept(write, capsys, quick, tmp_path):
    path = write(
        "01_a",
        "text = open('01_a.ipynb').read()\n"
        "open('01_a.ipynb', 'w').write(text.replace('my thoughts', 'my new thoughts'))",
        "# my thoughts\nprint('ran')",
    )
    gone = write("02_gone", "import os\nos.remove('02_gone.ipynb')")
    assert run("--save", path, gone) == 1
    printed = capsys.readouterr().out
    assert "01_a.ipynb was edited while it ran" in printed and "01_a.ipynb: ran in" in printed
    edited, stored = notebooks.read(path), notebooks.read(tmp_path / "01_a.executed.ipynb")
    assert "my new thoughts" in edited.cells[1].source and not edited.cells[1].outputs
    assert stored.cells[1].outputs[0].text == "ran\n"
    assert not gone.exists() and (tmp_path / "02_gone.executed.ipynb").exists()


def test_an_unwritable_notebook_is_found_before_it_runs(write, monkeypatch, capsys, quick):
    """Root may write everywhere, so the system's refusal is played."""

    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    path = write("01_a", "1")
    monkeypatch.setattr(kernels, "execute", lambda *_, **__: pytest.fail("it ran"))
    monkeypatch.setattr(runner.os, "access", lambda *_: False)
    assert run("--save", path) == 2
    assert "read-only: nothing was run" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setattr(kernels, "execute", lambda *_, **__: pytest.fail("it ran"))
    monkeypatch.setattr(files.tempfile, "NamedTemporaryFile", refuse)
    assert run("--save", path) == 2
    assert "Read-only file system" in (errors := capsys.readouterr().err)
    assert errors.count("\n") == 1


def test_a_full_disk_costs_one_notebook_its_outputs(write, monkeypatch, capsys, quick):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    paths = write("01_a", "1"), write("02_b", CLAIM)
    monkeypatch.setattr(notebooks, "write_atomically", full)
    assert run("--save", *paths) == 1
    printed = capsys.readouterr().out
    assert printed.count("its outputs are lost: [Errno 28] No space left") == 2
    assert "claims: 3" in printed


def test_stored_times_move_only_when_they_are_off_by_a_factor():
    notebook = nbformat.v4.new_notebook()
    for seconds, stored in [(10.04, 10.0), (19.0, 10.0), (5.1, 10.0), (30.0, 30.0)]:
        notebooks.store_seconds(notebook, {"a": seconds, "b": 0.9}, seconds)
        assert notebooks.stored_seconds(notebook) == stored
        assert notebook.metadata.kdlib.slow_cells == {"a": stored}


@pytest.mark.parametrize(
    "found",
    [
        "text",
        {"slow_cells": "a"},
        {"slow_cells": {"cell-0": "slow"}},
        {"slow_cells": {"cell-0": -1}, "reference_seconds": "long"},
        {"slow_cells": {"cell-0": 10**400}, "reference_seconds": True},
    ],
)
def test_times_that_somebody_else_wrote_do_no_harm(found, write):
    notebook = notebooks.read(write("01_a", "1"))
    notebook.metadata["kdlib"] = found
    assert notebooks.cell_weights(notebook) == {"cell-0": 1.0}
    assert notebooks.stored_seconds(notebook) is None
    notebooks.store_seconds(notebook, {"cell-0": 3.0}, 4.0)
    assert notebooks.cell_weights(notebook) == {"cell-0": 3.0}


def test_the_kernel_is_this_interpreter(write):
    path = write("01_a", "import sys\nprint(sys.executable)")
    notebook = notebooks.read(path)
    notebook.metadata["kernelspec"] = {"name": "no-such-kernel", "display_name": "none"}
    kernels.execute(notebook, path.parent)
    assert notebook.cells[0].outputs[0].text.strip() == sys.executable


@pytest.mark.skipif(os.name != "posix", reason="sends a signal as a terminal does")
def test_ctrl_c_ends_cleanly(write):
    first, slow = write("01_a", CLAIM), write("02_b", "import time\ntime.sleep(60)")
    process = subprocess.Popen(
        [sys.executable, "-m", "kdlib", "run", first, slow],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # a shell that starts the tests in the background ignores the signal
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    for line in process.stdout:  # wait for the first notebook
        if "ran in" in line:
            break
    time.sleep(2)
    kernel = psutil.Process(process.pid).children()
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=120)
    assert kernel and not psutil.wait_procs(kernel, timeout=10)[1]
    assert process.returncode == 130
    assert "the student gains" in printed and "Traceback" not in errors


# The doctor


def test_doctor_reports_every_kind_of_finding(write, tmp_path, monkeypatch):
    path = write("01_a", "1")
    notebook = notebooks.read(path)
    notebooks.store_seconds(notebook, {}, 40.0)
    notebooks.save(notebook, path)
    write("02_b", "1")
    monkeypatch.setattr(doctor, "machine_speed", lambda: 0.5)
    times = {finding.name: finding.text for finding in doctor.running_times(tmp_path)}
    assert times["01_a"] == "about 80 s" and "not timed yet" in times["02_b"]

    found = [
        *doctor.packages(),
        *doctor.device(),
        *doctor.home(),
        *doctor.space(),
        *doctor.data_sets(),
        *doctor.programs(),
    ]
    names = {finding.name for finding in found}
    assert {
        "Python",
        "torch",
        "device",
        "threads",
        "home",
        "memory",
        "disk",
        "data sets",
        "LaTeX",
        "sandbox",
    } <= names
    assert all(finding.advice for finding in found if finding.state != doctor.OK)
    assert "mnist-5k on disk" in doctor.format_report(found)


def test_doctor_advises_on_what_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    advice = {finding.name: finding.advice for finding in doctor.programs()}
    assert "report" in advice["LaTeX"] and "instructors" in advice["sandbox"]

    monkeypatch.setattr(
        doctor.metadata,
        "requires",
        lambda name: ["torch>=99.1", "no-such>=1.0", "ruff>=99; extra == 'dev'"],
    )
    assert cli.main(["doctor"]) == 1
    printed = capsys.readouterr().out
    assert re.search(r"MISSING +torch +\S+, but 99\.1 or newer is needed", printed)
    assert re.search(r"MISSING +no-such +is not installed\n +-> .*pip install -r", printed)
    assert "2 missing" in printed


@pytest.mark.skipif(os.name == "nt", reason="Windows has no HOME")
def test_doctor_looks_at_home(write, monkeypatch):
    monkeypatch.setenv("HOME", str(write("01_a", "1")))
    for name in ("MPLCONFIGDIR", "IPYTHONDIR", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    (finding,) = doctor.home()
    assert (
        finding.state == doctor.NOTE and "01_a.ipynb cannot be written (MPLCONFIG" in finding.text
    )
    assert finding.advice.startswith("set HOME to a folder of yours")
    monkeypatch.setenv("HOME", str(write("01_a", "1").parent))
    assert doctor.home() == [(doctor.OK, "home", os.environ["HOME"], "")]


def test_doctor_says_how_many_threads_a_kernel_uses(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert "kernels use 1 (set OMP_NUM_THREADS to change it)" in doctor.device()[1].text
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert "OMP_NUM_THREADS=3" in doctor.device()[1].text


def test_doctor_runs_without_the_packages(tmp_path):
    """What it is for: a machine on which nothing else of the kit can be imported."""
    code = (
        "import sys\nfor name in ('torch', 'numpy', 'scipy', 'nbformat', 'matplotlib'):\n"
        "    sys.modules[name] = None\n"
        "from importlib import metadata\n"
        "metadata.requires = lambda name: ['no-such>=1.0']\n"
        "from kdlib.__main__ import main\nsys.exit(main(['doctor']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "MISSING no-such" in done.stdout, done.stderr


def test_calibration_takes_half_a_second_and_changes_no_state():
    import torch

    threads, state = torch.get_num_threads(), torch.get_rng_state()
    start = time.perf_counter()
    assert doctor.calibrate() > 0
    assert time.perf_counter() - start < 5  # half a second and the warm-up
    assert torch.get_num_threads() == threads and torch.equal(torch.get_rng_state(), state)


def test_requirements_and_bounds_agree(root):
    """requirements.txt names what pyproject.toml bounds, each bound with its reason."""
    import tomllib

    text = (root / "pyproject.toml").read_text(encoding="utf-8")
    bounded = tomllib.loads(text)["project"]["dependencies"]
    names = [re.fullmatch(r"([\w-]+)>=[\d.]+", line)[1] for line in bounded]
    listed = (root / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert "-e ." in listed
    assert sorted(names) == sorted(line for line in listed if re.fullmatch(r"[\w-]+", line))
    block = text.split("\ndependencies = [\n")[1].split("\n]\n")[0]
    assert len(re.findall(r'^    "[\w-]+>=[\d.]+", *# \w+', block, re.MULTILINE)) == len(names)


def test_ci_runs_the_command_of_the_readme(root):
    readme = (root / "README.md").read_text(encoding="utf-8").splitlines()
    ci = (root / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    commands = [line for line in readme if line.startswith("python3 -m venv .venv && ")]
    assert commands[0].endswith("python -m kdlib lab")
    assert commands[1].endswith("pytest -n 2 --dist loadfile")
    assert commands[1] in ci


def commands_in(text):
    """Each command of a text with its words, shell style; bare mentions of a name are none."""
    names = "|".join(cli.COMMANDS)
    found = re.findall(rf"(?:-m kdlib |(?<=`))((?:{names}) [^`\n]*)", text.replace("\\\n", " "))
    return [shlex.split(line.replace("...", ""), comments=True) for line in found]


@pytest.mark.parametrize("name", ["README.md", "kdlib/homework/instructors.md"])
def test_commands_in_texts_are_understood(root, name):
    found = commands_in((root / name).read_text("utf-8"))
    assert len(found) > 8
    for first, *words in found:
        parser = argparse.ArgumentParser(allow_abbrev=False)
        importlib.import_module(cli.COMMANDS[first]).configure(parser)
        if "--help" not in words:
            parsed, rest = parser.parse_known_args(words)
            assert not rest or "options" in parsed, (first, rest)


# The lab


def test_lab_command():
    plain = lab.command(root=False, display=True)
    assert plain[:3] == [sys.executable, "-m", "jupyterlab"]
    assert not {"--allow-root", "--no-browser"} & set(plain)
    bare = lab.command(["--port", "9000"], root=True, display=False)
    assert {"--allow-root", "--no-browser"} <= set(bare) and bare[-2:] == ["--port", "9000"]


def test_lab_display():
    assert not lab.has_display({}, "linux")
    assert lab.has_display({"DISPLAY": ":0"}, "linux")
    assert lab.has_display({"WAYLAND_DISPLAY": "wayland-0"}, "linux")
    assert lab.has_display({}, "darwin") and lab.has_display({}, "win32")
    assert not lab.has_display({"SSH_CONNECTION": "x"}, "darwin")


def test_lab_without_jupyter_says_what_to_do(monkeypatch, capsys):
    monkeypatch.setattr(lab.importlib.util, "find_spec", lambda name: None)
    assert cli.main(["lab"]) == 2
    assert "pip install -r requirements.txt" in capsys.readouterr().err


def test_lab_passes_options_on(monkeypatch):
    seen = []

    def start(options, originals):
        seen.append((options, originals))
        return 0

    monkeypatch.setattr(lab, "start", start)
    assert cli.main(["lab", "--port", "9000", "--ip=0.0.0.0"]) == 0
    assert cli.main(["lab", "--originals", "--port", "9000"]) == 0
    assert seen == [(["--port", "9000", "--ip=0.0.0.0"], False), (["--port", "9000"], True)]


@pytest.fixture
def started(monkeypatch, tmp_path):
    """started(originals=...) returns (command line, environment) of the server."""
    if os.name != "posix":
        pytest.skip("elsewhere the server is a child")

    class Started(Exception):
        pass

    def start(**options):
        seen = []

        def become(program, line, environment):
            seen.extend([line, environment])
            raise Started

        monkeypatch.setattr(lab.os, "execve", become)
        with pytest.raises(Started):
            lab.start(**options)
        return seen

    monkeypatch.setattr(copies, "FOLDER", tmp_path / "mine")
    return start


@pytest.mark.parametrize("given, seen", [(None, "1"), ("3", "3")])
def test_kernels_of_the_lab_use_one_thread(given, seen, started, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    _, environment = started()
    assert environment["OMP_NUM_THREADS"] == seen
    assert os.environ.get("OMP_NUM_THREADS") == given


def test_lab_opens_the_first_of_the_copies(started, tmp_path, capsys):
    line, _ = started(options=["--port", "9000"])
    assert f"--ServerApp.root_dir={tmp_path}" in line  # links lead out of the folder
    assert f"--FileContentsManager.preferred_dir={tmp_path / 'mine'}" in line
    assert "--LabApp.default_url=/lab/tree/mine/01_motivation.ipynb" in line
    assert line[-2:] == ["--port", "9000"]
    said = capsys.readouterr().out.splitlines()
    names = [path.name for path in notebooks.find()]
    assert said[:-1] == [f"mine/{name}: {copies.MADE}" for name in names]
    assert sorted(path.name for path in (tmp_path / "mine").glob("*.ipynb")) == names
    started()
    assert capsys.readouterr().out.splitlines() == said[-1:]


def test_lab_on_the_originals(started, tmp_path, capsys):
    line, _ = started(originals=True)
    assert line == lab.command(root=lab.is_root(), display=lab.has_display())
    assert f"--FileContentsManager.preferred_dir={notebooks.FOLDER}" in line
    assert "--LabApp.default_url=/lab/workspaces/originals" in line
    assert not (tmp_path / "mine").exists() and "mine" not in capsys.readouterr().out


def test_lab_names_the_way_out_if_no_copy_can_be_made(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine").write_text("a file")
    monkeypatch.setattr(copies, "FOLDER", tmp_path / "mine")
    assert cli.main(["lab"]) == 2
    errors = capsys.readouterr().err
    assert "nothing was overwritten" in errors and "--originals" in errors
    assert str(tmp_path / "mine") in errors and errors.count("\n") == 1


@pytest.mark.parametrize("given", [None, "/some/folder"])
def test_lab_asks_no_question_about_news(given, started, monkeypatch):
    monkeypatch.delenv("JUPYTER_CONFIG_PATH", raising=False)
    if given:
        monkeypatch.setenv("JUPYTER_CONFIG_PATH", given)
    _, environment = started()
    *before, ours = environment["JUPYTER_CONFIG_PATH"].split(os.pathsep)
    assert before == ([given] if given else [])
    settings = json.loads(Path(ours, "labconfig", "default_setting_overrides.json").read_text())
    assert settings == {
        "@jupyterlab/apputils-extension:notification": {"fetchNews": "false"},
        "@jupyter-widgets/jupyterlab-manager:plugin": {"saveState": True},
    }


def fetch(address, patience):
    """The page at an address; the server prints it a moment before it listens."""
    end = time.monotonic() + patience
    while True:
        try:
            with urllib.request.urlopen(address, timeout=patience) as answer:
                return answer.read().decode()
        except urllib.error.URLError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


@pytest.mark.parametrize("home", ["usable", "lost"])
def test_lab_answers_on_the_printed_address(home, tmp_path):
    """The lab of the copies with a home, that of the originals without one."""
    try:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
    except OSError:
        pytest.skip("no port can be opened here")
    environment = {
        key: value
        for key, value in os.environ.items()
        if key not in ("DISPLAY", "WAYLAND_DISPLAY", "IPYTHONDIR", "MPLCONFIGDIR")
        and not key.startswith(("JUPYTER", "XDG"))
    }
    (tmp_path / "file").touch()
    environment["HOME"] = str(tmp_path if home == "usable" else tmp_path / "file")
    folder = "mine" if home == "usable" else "notebooks"
    code = (
        "import pathlib, sys\n"
        "from kdlib.__main__ import main\nfrom kdlib.engine import copies\n"
        "copies.FOLDER = pathlib.Path(sys.argv[1])\n"
        "sys.exit(main(['lab', '--no-browser', *sys.argv[2:]]))"
    )
    originals = ["--originals"] if folder == "notebooks" else []
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "mine"), *originals],
        text=True,
        env=environment,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        address, said = printed(process, r"(http://[\w.]+:\d+)/lab(/[\w./]+)?\?token=\w+")
        assert "Traceback" not in said
        page = "/tree/mine/01_motivation.ipynb" if folder == "mine" else "/workspaces/originals"
        assert address[2] == page
        assert f'"preferredPath": "{folder}"' in fetch(address[0], patience=30)
        token = address[0].split("?")[1]

        def default(plugin, setting):
            found = fetch(
                f"{address[1]}/lab/api/settings/@jupyterlab/{plugin}?{token}", patience=30
            )
            return json.loads(found)["schema"]["properties"][setting]["default"]

        assert default("apputils-extension:notification", "fetchNews") == "false"
        assert default("docmanager-extension:plugin", "autosave") is (folder == "mine")
    finally:
        process.terminate()
        process.communicate(timeout=30)
