"""Measured numbers and tables."""

import re
import subprocess
import sys

import pytest

from kdlib import tables
from kdlib.tables import Interval


def test_measured_numbers_carry_the_sign_and_exact_ones_do_not():
    text = repr(tables.table([{"a": 1234, "b": 0.5, "c": "x", "d": True, "e": Interval(1, 0, 2)}]))
    assert "1,234" in text and "≈ 1,234" not in text
    assert "≈ 0.50" in text and "yes" in text and "≈ 1.0 [≈ 0.0, ≈ 2.0]" in text
    assert tables.approx(2.66, sign=True, unit="points") == "≈ +2.7 points"


def test_tables_render_in_both_worlds():
    table = tables.table([{"name": "<b>", "n": 1}], caption="A caption")
    assert "&lt;b&gt;" in table._repr_html_() and "<caption>A caption" in table._repr_html_()
    assert repr(table).splitlines() == ["A caption", "name  n", "-------", "<b>   1"]
    with pytest.raises(ValueError, match="rows"):
        tables.table([])


def test_tables_need_no_matplotlib():
    code = "import sys, kdlib.tables, kdlib.evidence; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_reader_sees_clean_numbers_and_the_test_sees_their_room():
    close = "≈holds, but close"
    table = tables.table([{"a": 0.5, "b": Interval(27.4, 25.1, 29.9), "c": 3, "d": close}])
    page = table._repr_html_()
    assert "≈" not in page
    assert '<span class="measured">27.4</span> [<span class="measured">25.1</span>' in page
    assert '<span class="close">holds</span>, but close' in page
    forms, metadata = table._repr_mimebundle_()
    assert "≈ 27.4 [≈ 25.1, ≈ 29.9]" in forms["text/plain"]
    mean, end = pytest.approx(6 * 2.4), pytest.approx(8 * 2.4)
    assert metadata["kdlib"]["measured"] == [[0.5, None], [27.4, mean], [25.1, end], [29.9, end]]


def test_only_marked_numbers_become_elements():
    text = "≈ +1,234.5 of 7 < 8, x ≈ y, ≈ nan, ≈ 1.2e-05 & ≈ −7 %"
    whole = tables.as_html("[≈ +23, ≈ 1,234, ≈ 5]")
    assert re.findall(r"<[^>]*>([^<]*)</span>", whole) == ["+23", "1,234", "5"], "commas stay out"
    assert tables.as_html(text) == (
        '<span class="measured">+1,234.5</span> of 7 &lt; 8, x ≈ y, ≈ nan, '
        '<span class="measured">1.2e-05</span> &amp; <span class="measured">−7</span> %'
    )


def test_a_line_is_printed_elsewhere(capsys):
    tables.say("accuracy", tables.approx(91.26, room=1.0), "%")
    assert capsys.readouterr().out == "accuracy ≈ 91.3 %\n"


def test_a_number_that_is_none_is_stored_as_none():
    """JSON has no NaN; a number that appears or vanishes fails in the strict comparison."""
    parts = [tables.approx(float("nan")), tables.approx(1.0, room=float("inf"))]
    assert tables.numbers_of(parts) == [[None, None], [1.0, None]]


@pytest.mark.parametrize(
    "low, high, text",
    [
        (25.1, 29.9, "≈ 27.5 [≈ 25.1, ≈ 29.9]"),
        (92.69, 92.75, "≈ 92.72 [≈ 92.69, ≈ 92.75]"),
        (0.04, 2.0, "≈ 1.02 [≈ 0.04, ≈ 2.00]"),
        (-0.0008, 0.0012, "≈ 0.0002 [≈ -0.0008, ≈ 0.0012]"),
        (0.0, 2.0, "≈ 1.0 [≈ 0.0, ≈ 2.0]"),
        (3.0, 3.0, "≈ 3.0 [≈ 3.0, ≈ 3.0]"),
    ],
)
def test_an_interval_shows_its_width_and_its_side_of_zero(low, high, text):
    assert tables.approx_interval(Interval((low + high) / 2, low, high)) == text
