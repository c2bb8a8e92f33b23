"""Each exercise: a right answer passes, each common mistake meets its own message.

The answers are in tests/answers/. Instructors delete that folder before students get the
repository, so nothing here may give an answer away.
"""

import ast
import re
from fractions import Fraction

import nbformat
import numpy as np
import pytest
import torch
from conftest import NO_ANSWERS

from kdlib import check as module
from kdlib.check import as_tensor, check, compare, verdict
from kdlib.exercises import notebook_1

if NO_ANSWERS:
    RIGHT, WRONG = {}, []
else:
    from answers import RIGHT, WRONG

needs_answers = pytest.mark.skipif(bool(NO_ANSWERS), reason=NO_ANSWERS)

# One of the wrong answers is the slip that PyTorch warns of.
pytestmark = pytest.mark.filterwarnings("ignore:reduction. 'mean'")


@needs_answers
def test_every_exercise_has_a_right_answer_and_a_wrong_one():
    assert set(RIGHT) == set(module.exercises()) == {name for name, _, _ in WRONG}


@needs_answers
@pytest.mark.parametrize("name", module.exercises())
def test_right_answer_passes(name):
    assert verdict(name, RIGHT[name]).startswith(f"correct: {name} ")


KINDS = {
    "array": lambda result: result.detach().numpy(),
    "numpy scalar": lambda result: result.numpy()[()],
    "list": lambda result: result.tolist(),
    "list of tensors": list,
    "list of arrays": lambda result: [row.numpy() for row in result],
    "array of tensors": lambda result: np.array([*result, None], dtype=object)[:-1],
}
TRAINED = {"2.1", "3.1", "3.2", "3.7", "5.2", "6.1", "6.2"}  # the answer has to carry a gradient
RECIPES = {"3.5"}  # the answer is no number
NUMBERS = {"1.4", "1.6", "4.6"}  # the answer is one number, or a few


@needs_answers
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", sorted(set(module.exercises()) - TRAINED - RECIPES))
def test_right_answer_of_another_type_passes(name, kind):
    def answer(*given):
        result = RIGHT[name](*given)
        result = torch.stack(result) if isinstance(result, tuple) and name != "1.1" else result
        result = torch.as_tensor(result)
        return KINDS[kind](result) if result.ndim or not kind.endswith("s") else result

    assert verdict(name, answer).startswith(f"correct: {name} ")


@needs_answers
def test_gradients_are_asked_for_whatever_the_type():
    for name in ("2.1", "3.1", "3.2"):
        line = verdict(name, lambda *given, name=name: RIGHT[name](*given).detach().numpy())
        assert "no gradient" in line
    assert verdict("3.2", lambda *given: list(RIGHT["3.2"](*given))).startswith("correct: 3.2")


@pytest.mark.parametrize(
    "given, value",
    [
        (2, 2.0),
        (True, 1.0),
        (Fraction(1, 2), 0.5),
        (np.float32(0.5), 0.5),
        (np.bool_(True), 1.0),
        (np.arange(3, dtype=np.uint8), [0.0, 1.0, 2.0]),
        (range(2), [0.0, 1.0]),
        ([torch.tensor(1), np.float64(2), 3], [1.0, 2.0, 3.0]),
        (([1, 2], np.array([True, False])), [[1.0, 2.0], [1.0, 0.0]]),
    ],
)
def test_as_tensor(given, value):
    found = as_tensor(given)
    assert found.dtype == torch.float64 and found.tolist() == value


@pytest.mark.parametrize(
    "given", ["2", None, [1, [2, 3]], [], {"a": 1}, 1j, [1, "a"], np.array(["a"])]
)
def test_what_is_no_tensor_stays(given):
    assert not torch.is_tensor(as_tensor(given))
    assert "return a tensor, not" in verdict("2.2", lambda *_: given if given is not None else "")


def test_complex_numbers_are_not_cut():
    message = "return real numbers, not complex ones"
    assert verdict("2.2", lambda s, t, T: s + 1j) == f"not yet: 2.2 {message}"
    right = torch.ones(2)
    assert compare(right + 1j, right, {}, "wrong") == message


@pytest.mark.parametrize(
    "result, message",
    [
        ([1.0, 2.0], None),
        ([1.0, 2.0 + 1e-7], None),
        ([1.0, 2.0 + 1e-4], "look again"),
        ([2.0, 1.0], "swapped"),
        (3.0, "not the sum"),
        (4.0, "the shape must be [2], got []"),
        ([1.0, np.inf], "the result is not finite"),
        ([np.nan, 2.0], "the result is not finite"),
        ("12", "return a tensor, not str"),
    ],
)
def test_compare(result, message):
    right = torch.tensor([1.0, 2.0], dtype=torch.float64)
    found = compare(
        result, right, {"swapped": right.flip(0), "not the sum": right.sum()}, "look again"
    )
    assert found is None if message is None else found.startswith(message)


def test_verdict(monkeypatch):
    known = {"0.1": ("Two", lambda answer: None if answer == 2 else "it is two")}
    monkeypatch.setattr(module, "exercises", lambda: known)
    assert verdict("0.1", 2) == "correct: 0.1 Two"
    assert verdict("0.1", 3) == "not yet: 0.1 it is two"
    assert verdict("0.1", None) == "[to do] 0.1: Two"
    assert verdict("0.2", 2) == "not yet: there is no exercise '0.2'; known are 0.1"


@pytest.mark.parametrize(
    "name, answer, message",
    [
        ("1.1", lambda sizes: 1, "the shape must be [2], got []"),
        ("2.1", lambda s, t, T: "loss", "return a tensor, not str"),
        ("2.1", lambda s, t, T: s @ t, "your code raised RuntimeError: "),
        ("2.1", lambda s, t, T: s.sum() * torch.inf, "the result is not finite"),
        ("2.2", lambda s, t, T: s @ t, "your code raised RuntimeError: "),
        ("2.2", lambda s, t, T: s.sum(), "the shape must be [6, 5], got []"),
        ("3.2", lambda model, name, images: images, "the shape must be [5, 3], got [5, 4]"),
    ],
)
def test_broken_answer(name, answer, message):
    assert verdict(name, answer).startswith(f"not yet: {name} {message}")


def test_nothing_but_the_answer_uses_the_random_stream_of_a_gpu(root):
    """`fork_rng` without `devices` initialises every GPU."""
    paths = [*(root / "kdlib" / "exercises").glob("*.py"), root / "kdlib/commands/doctor.py"]
    calls = [
        node
        for path in paths
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "fork_rng"
    ]
    assert len(calls) >= 2
    assert {ast.unparse(call) for call in calls} == {"torch.random.fork_rng(devices=[])"}


@needs_answers
@pytest.mark.parametrize("name, answer, message", WRONG)
def test_mistake_meets_its_message(name, answer, message):
    line = verdict(name, answer)
    assert line.startswith(f"not yet: {name} ") and message in line


def test_two_digits_teach_more_than_half_of_all():
    """What the text of exercise 1.6 says."""
    logits, labels = notebook_1._two_digits_seen()
    logits = logits.clone()
    logits[:, 7:9] -= 4
    right = (logits.argmax(1) == labels).double()
    assert right.mean() > 0.5 and right[labels == 0].mean() < 0.33


def test_the_step_of_the_text_has_five_bugs(root):
    notebook = nbformat.read(root / "notebooks" / "03_code_walkthrough.ipynb", as_version=4)
    text = next(cell.source for cell in notebook.cells if "### Exercise 3.7" in cell.source)
    names = {"torch": torch, "nn": torch.nn, "F": torch.nn.functional}
    exec(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1], names)
    assert verdict("3.7", names["step"]).endswith("; and 4 more")


@needs_answers
def test_reverse_gradient_agrees_with_autograd():
    from answers.notebook_2 import autograd, reverse_divergence

    student, teacher = torch.randn(2, 3, 4, dtype=torch.float64)
    expected = autograd(reverse_divergence)(student, teacher)
    assert torch.allclose(RIGHT["2.5"](student, teacher), expected)


def unfinished(*_):
    raise NotImplementedError


@pytest.mark.parametrize("name", module.exercises())
@pytest.mark.parametrize("answer", [None, ..., unfinished, lambda *_: None, lambda *_: ...])
def test_untouched_exercise(name, answer, capsys):
    check(name, answer)
    assert capsys.readouterr().out.startswith(f"[to do] {name}: ")


def test_verdict_never_raises():
    assert verdict("9.9", 1).startswith("not yet: there is no exercise '9.9'")
    for name in module.exercises():
        for answer in (3, lambda: 3):
            told = verdict(name, answer)
            refused = told.startswith(f"not yet: {name} your code raised TypeError")
            assert refused or (name in NUMBERS and told.partition(": ")[2].startswith(name))


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match="registered twice"):
        module.exercise("2.1")(lambda answer: None)
