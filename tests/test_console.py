"""What the library says itself, on any console and in a notebook."""

import contextlib
import io
import subprocess
import sys

import nbformat
import pytest

from kdlib.check import check
from kdlib.engine import kernels
from kdlib.engine.console import say


@pytest.mark.parametrize(
    "encoding, seen",
    [("utf-8", "é ≈ 2"), ("cp1251", "? ? 2"), ("latin-1", "é ? 2"), ("ascii", "? ? 2")],
)
def test_a_console_shows_what_it_can(encoding, seen):
    raw = io.BytesIO()
    with contextlib.redirect_stdout(io.TextIOWrapper(raw, encoding=encoding)) as console:
        say("é ≈ 2", claim={"text": "é"})
        console.flush()
    assert raw.getvalue().decode(encoding).splitlines() == [seen]


def test_a_stream_without_an_encoding_is_no_problem():
    with contextlib.redirect_stdout(io.StringIO()) as stream:
        say("≈ 2")
    assert stream.getvalue() == "≈ 2\n"


def test_check_on_an_ascii_console():
    code = "from kdlib.check import check; check('2.1', lambda s, t, T: (s - t).sum())"
    done = subprocess.run(
        [sys.executable, "-X", "utf8=0", "-c", code],
        capture_output=True,
        env={"PYTHONIOENCODING": "ascii"},
        check=False,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("not yet: 2.1 compute T? ? KL(p || q)")


def test_a_notebook_gets_a_display_with_data(tmp_path, capsys):
    sources = [
        "from kdlib.check import check\nfrom kdlib.engine.console import say",
        "print('before')\nsay('≈ 2', claim={'text': 'a', 'mean': 2.0})\nprint('after')",
        "check('2.1', None)",
    ]
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(one) for one in sources])
    assert not kernels.execute(made, tmp_path).failures
    before, said, after = made.cells[1].outputs
    assert before.text == "before\n" and after.text == "after\n"
    assert said.output_type == "display_data" and said.data == {"text/plain": "≈ 2"}
    assert said.metadata == {"kdlib": {"claim": {"text": "a", "mean": 2.0}}}
    (said,) = made.cells[2].outputs
    check("2.1", None)
    line = capsys.readouterr().out.rstrip("\n")  # outside a kernel it is printed
    assert line == "[to do] 2.1: The distillation loss with temperature"
    assert said.data == {"text/plain": line}
    assert said.metadata == {"kdlib": {"check": {"name": "2.1", "state": "to do", "line": line}}}
