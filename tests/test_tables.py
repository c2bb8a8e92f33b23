"""Measured numbers and tables."""

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
