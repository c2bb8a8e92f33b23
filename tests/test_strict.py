"""What strict nbval compares in a notebook: text, verdicts, and numbers within their room."""

import json
import subprocess
import sys

import nbformat
import pytest

from kdlib.commands import run as runner
from kdlib.engine import kernels, strict

SOURCES = [
    "from kdlib import evidence, tables\n"
    "claims = evidence.Family('A beats B', 'C is near')\n"
    "claims.claim('A beats B', [2.0, 2.1, 1.9, 2.2, 1.8], control=[0.1, 0.0, 0.1, 0.0, 0.05])\n"
    "claims.claim('C is near', [0.3, -0.1, 0.2, 0.1, 0.2], close='near zero')",
    "tables.say('accuracy', tables.approx(91.3, room=1.0), 'of all, exactly', 7)",
    "tables.table([{'method': 'KD', 'gain': evidence.interval([1.0, 1.2, 0.8, 1.1, 0.9])}])",
    "claims.table()",
]


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    made = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(one, id=f"c{i}") for i, one in enumerate(SOURCES)]
    )
    kernels.execute(made, tmp_path_factory.mktemp("run"))
    assert runner is not None and all(cell.outputs for cell in made.cells)
    return nbformat.writes(made)


def passes(text, folder):
    """Whether `pytest --nbval` in a folder of its own finds the outputs as stored."""
    (folder / "a.ipynb").write_text(text, "utf-8")
    line = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--nbval",
        "--nbval-current-env",
        "-p",
        "no:cacheprovider",
        "-o",
        "addopts=",
        "--rootdir",
        folder,
        folder,
    ]
    done = subprocess.run(line, capture_output=True, text=True, cwd=folder, check=False)
    return done.returncode == 0, done.stdout


def test_the_stored_outputs_pass_in_any_folder(executed, tmp_path):
    fine, said = passes(executed, tmp_path)
    assert fine, said


def edited(text, old, new):
    """The notebook with a text in its outputs, not in its sources, replaced."""
    made = nbformat.reads(text, 4)
    for cell in made.cells:
        outputs = json.dumps(cell.outputs, ensure_ascii=False)
        cell.outputs = nbformat.from_dict(json.loads(outputs.replace(old, new)))
    assert nbformat.writes(made) != text, f"{old!r} is not in the outputs"
    return nbformat.writes(made)


@pytest.mark.parametrize(
    "what, old, new, fine",
    [
        ("a number moved within its room", "[[91.3, 1.0]]", "[[91.9, 1.0]]", True),
        ("a number moved by ten rooms", "[[91.3, 1.0]]", "[[81.3, 1.0]]", False),
        ("a number in a wider room", "[[91.3, 1.0]]", "[[86.3, 6.0]]", True),
        ("a number in a forged room", "[[91.3, 1.0]]", "[[71.3, 99.0]]", False),
        ("a number without a room", "[[91.3, 1.0]]", "[[71.3, null]]", False),
        ("another measured text", "≈ 91.3", "≈ 12.5", True),
        ("a stored nan", "≈ 91.3", "≈ nan", False),
        ("an exact number", "exactly 7", "exactly 8", False),
        ("a changed word", "of all", "of none", False),
        (
            "a word inside the mark",
            'measured\\">1.0<',
            'measured\\">one<',
            False,
        ),
        ("a flipped verdict", "A beats B | holds", "A beats B | not shown", False),
        ("a flipped close verdict", "≈not shown, but close |", "≈holds, but close |", True),
        ("a close verdict that is refuted", "but close |", "but close, refuted |", False),
        ("the control's outcome", "; beyond its", "; not beyond its", False),
    ],
)
def test_what_is_compared(what, old, new, fine, executed, tmp_path):
    text = edited(executed, old, new)
    found, said = passes(text, tmp_path)
    assert found == fine, f"{what}:\n{said[-1500:]}"


def test_moved_numbers_are_named():
    def output(*pairs):
        return [{"metadata": {"kdlib": {"measured": [list(pair) for pair in pairs]}}}]

    stored = output((27.4, 2.4), (5.0, None), (1.0, 0.1))
    assert not strict.moved(stored, output((29.7, 0.3), (500.0, None), (1.05, 0.0)))
    assert not strict.moved(stored, output((30.0, 9.9), (5.0, None), (1.0, 0.1))), "the larger room"
    forged = strict.moved(output((27.4, 99.0)), output((30.0, 0.2)))
    assert forged == ["measured number 1 moved from 27.4 to 30.0; its room is 2.0"]
    assert strict.moved(stored, output((30.0, 0.9), (5.0, None), (1.0, 0.1))) == [
        "measured number 1 moved from 27.4 to 30.0; its room is 2.4"
    ]
    assert "3 measured numbers are stored, 1" in strict.moved(stored, output((27.4, 2.4)))[0]
    assert strict.moved(output((float("nan"), 1.0)), output((1.0, 1.0)))
