"""Intervals and claims."""

import nbformat
import numpy as np
import pytest
import torch

from kdlib import evidence
from kdlib.engine import notebooks
from kdlib.records import Run, Runs


def test_interval_is_student_t():
    found = evidence.interval([1.0, 2.0, 3.0, 4.0, 5.0])
    # t(0.975, 4) = 2.776445, standard error = sqrt(2.5 / 5)
    assert found.mean == 3
    assert found.half_width == pytest.approx(2.776445 * 0.7071068, rel=1e-6)


def test_interval_covers_about_95_percent():
    draws = np.random.default_rng(0).normal(size=(4000, 5))
    inside = [abs(e.mean) < e.half_width for e in map(evidence.interval, draws)]
    assert 0.94 < np.mean(inside) < 0.96


def test_claim_needs_the_whole_interval(capsys):
    result = evidence.claim("A beats B", [2.0, 2.1, 1.9, 2.2, 1.8])
    assert result.verdict == "holds" and result.shown
    line = capsys.readouterr().out
    assert line.startswith(
        "claim: A beats B | holds | ≈ +2.0 [≈ +1.8, ≈ +2.2] points; 5 paired seeds"
    )
    assert evidence.claim("A beats B", [2.0, -2.1, 1.9, -2.2, 0.2]).verdict == "not shown"
    assert evidence.claim("by 3", [2.0, 2.1, 1.9, 2.2, 1.8], above=3).verdict == "not shown"
    assert "[≈ +1.8, ≈ +2.2] points, needs > 3; 5 paired seeds" in capsys.readouterr().out


def test_claim_near_the_threshold_says_so(capsys):
    values = np.array([-1.0, -0.5, 0.0, 0.5, 1.0])
    half = evidence.interval(values).half_width
    for shift, line in [
        (1.1, "| holds (≈ close) |"),
        (1.9, "| holds (≈ close) |"),
        (2.1, "| holds |"),
        (0.9, "| not shown (≈ close) |"),
        (0.6, "| not shown (≈ close) |"),
        (0.4, "| not shown |"),
    ]:
        result = evidence.claim("shifted", values + shift * half)
        assert line in capsys.readouterr().out
        assert result.verdict == ("holds" if shift > 1 else "not shown")
        assert result.near == ("close" in line)


def test_a_declared_close_claim_is_masked(capsys):
    values = np.array([-1.0, -0.5, 0.0, 0.5, 1.0])
    for shift, word in [(0.9, "not shown"), (1.1, "holds"), (9, "holds")]:
        shifted = values + shift * evidence.interval(values).half_width
        result = evidence.claim("said so", shifted, close="near")
        assert f"| ≈{word}, but close |" in capsys.readouterr().out
        assert result.verdict == f"≈{word}, but close" and not result.near


def test_equivalence_needs_the_interval_inside():
    values = [0.1, -0.1, 0.05, -0.05, 0.0]
    equal = evidence.claim("no difference", values, within=1)
    assert equal.verdict == "holds" and ", needs within ±1; 5 paired seeds" in str(equal)
    assert evidence.claim("no difference", [3.0, 3.1, 2.9, 3, 3], within=1).verdict == "not shown"
    wide = [4.0, -4.0, 3.0, -3.0, 0.0]  # no difference seen is not no difference
    assert evidence.claim("no difference", wide, within=1).verdict == "not shown"


def test_claim_refuses_weak_evidence():
    with pytest.raises(ValueError, match="at least five"):
        evidence.claim("three seeds", [1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="finite"):
        evidence.claim("failed run", [1.0, 1.0, 1.0, 1.0, np.nan])
    with pytest.raises(ValueError, match="separates"):
        evidence.claim("a | b", [1.0] * 5)
    with pytest.raises(ValueError, match="within must stand alone"):
        evidence.claim("two kinds", [1.0] * 5, above=1, within=2)
    for option in ("above", "within"):
        with pytest.raises((ValueError, TypeError), match=f"{option} must be"):
            evidence.claim("no number", [1.0] * 5, **{option: float("nan")})


def test_seeds_shift_as_a_block(monkeypatch):
    monkeypatch.delenv("KDLIB_SEED_OFFSET", raising=False)
    assert evidence.seeds(3) == [0, 1, 2]
    monkeypatch.setenv("KDLIB_SEED_OFFSET", "100")
    assert evidence.seeds(3) == [100, 101, 102]
    monkeypatch.setenv("KDLIB_SEED_OFFSET", "ten")
    with pytest.raises(ValueError, match="KDLIB_SEED_OFFSET"):
        evidence.seeds()


def test_comparison_pairs_with_the_baseline():
    runs = Runs(
        Run("e", method, seed, {}, {"accuracy": base + seed, "extra_parameters": 64})
        for method, base in (("CE", 90.0), ("KD, T=4", 93.0))
        for seed in range(3)
    )
    text = repr(evidence.comparison(runs, "CE", columns=["extra_parameters"]))
    assert "≈ +3.0 [≈ +3.0, ≈ +3.0]" in text and "extra parameters" in text
    assert "≈ 64" not in text and "64" in text


VALUES = np.array([1.8, 2.1, 2.0, 2.2, 1.9])


def test_a_control_decides():
    alone = evidence.claim("inherited", VALUES)
    assert alone.verdict == "holds"
    same = evidence.claim(
        "inherited", VALUES, control=VALUES + np.array([0.1, -0.1, 0, 0.05, -0.05])
    )
    assert same.verdict == "not shown", "an effect that its control has as well"
    assert "; not beyond its control: ≈" in str(same) and same.p > 0.1
    less = evidence.claim("inherited", VALUES, control=VALUES - VALUES.mean())
    assert less.verdict == "holds" and "; beyond its control: ≈ +2.0 [" in str(less)
    assert less.p == max(test.p for test in less.tests) >= alone.p
    more = evidence.claim("inherited", VALUES, control=VALUES - 1, above=1.5)
    assert more.verdict == "not shown", "what is left must clear the threshold, too"
    for control in (VALUES[:4], [np.nan] * 5):
        with pytest.raises(ValueError):
            evidence.claim("inherited", VALUES, control=control)


def test_p_values_are_students():
    found = evidence.claim("A beats B", VALUES)
    # t = 2 / (0.158114 / sqrt 5) = 28.284 with 4 degrees of freedom
    assert found.p == pytest.approx(4.65e-6, rel=0.01)
    assert evidence.claim("the other way", -VALUES).p == pytest.approx(1 - found.p)
    equal = evidence.claim("alike", VALUES - 2, within=1)
    assert equal.p == pytest.approx(evidence.claim("a", VALUES - 1).p, rel=1e-9)


def test_a_close_claim_has_an_exact_floor():
    assert "refuted" not in str(evidence.claim("close", VALUES - 2, close="near"))
    against = evidence.claim("close", -VALUES, close="near")
    assert against.refuted and "| ≈not shown, but close, refuted |" in str(against)
    assert evidence.claim("close", VALUES, within=1, close="near").refuted
    by_a_hair = evidence.claim("close", VALUES - 2.25, close="near")
    assert by_a_hair.interval.high < 0 and not by_a_hair.refuted, "another processor might not"
    assert evidence.claim("close", VALUES - 2.4, close="near").refuted
    with pytest.raises(TypeError, match="close must be the reason in words"):
        evidence.claim("close", VALUES, close=True)


def family(*shifts):
    """A family of claims whose intervals begin so many half-widths above zero."""
    noise = np.array([-1.0, -0.5, 0.0, 0.5, 1.0])
    half = evidence.interval(noise).half_width
    found = evidence.Family(*(f"claim {place}" for place in range(len(shifts))))
    for place, shift in enumerate(shifts):
        found.claim(f"claim {place}", noise + (1 + shift) * half)
    return found


def test_a_family_is_adjusted_for_its_number():
    (alone,) = family(0.2).adjusted()
    assert alone[2] and alone[1] == pytest.approx(2 * alone[0].p)
    many = family(*[0.2] * 8).adjusted()
    assert not any(holds for _, _, holds, _ in many), "a claim that holds only by itself"
    assert many[0][1] == pytest.approx(16 * many[0][0].p)
    strong = family(9.0, 0.2, -0.5).adjusted()  # Holm: the second is judged among two
    assert [holds for _, _, holds, _ in strong] == [True, strong[1][0].p * 4 <= 0.05, False]
    assert strong[1][1] == pytest.approx(4 * strong[1][0].p)
    assert family(-3.0, 9.0).adjusted()[0][1] == 1.0


def test_the_closing_table_names_every_claim_once():
    found = family(9.0, 5.0)
    text = repr(found.table())
    assert text.startswith("2 primary claims, verdicts adjusted") and text.count("holds") == 2
    assert found.table().data["family"][0]["verdict"] == "holds"
    incomplete = evidence.Family("a", "b")
    incomplete.claim("a", VALUES)
    with pytest.raises(ValueError, match="must all be made before the table.*'b'"):
        incomplete.table()
    with pytest.raises(ValueError, match="text must be one of the claims named beforehand"):
        incomplete.claim("c", VALUES)
    incomplete.claim("a", -VALUES)
    incomplete.claim("b", VALUES)
    assert [holds for _, _, holds, _ in incomplete.adjusted()] == [False, True], "rerun cells count"


def test_the_closing_table_is_read_as_it_is_displayed():
    table = family(9.0, 0.2, -0.5, 3.0).table()
    data, metadata = table._repr_mimebundle_()
    output = nbformat.v4.new_output("display_data", data=data, metadata=metadata)
    cell = nbformat.v4.new_code_cell(outputs=[output])
    read = notebooks.family(nbformat.v4.new_notebook(cells=[cell]))
    rows = table.data["family"]
    assert [one.text for one in read] == [row["text"] for row in rows]
    assert [one.p for one in read] == [row["p"] for row in rows]
    assert {one.verdict for one in read} == {"holds", "not shown"}, "without the mark"
    assert [one.near for one in read] == [row["verdict"].endswith(evidence.NEAR) for row in rows]
    assert len({one.near for one in read}) == 2 and notebooks.NEAR == evidence.NEAR


@pytest.mark.parametrize("texts", [(), ("a", "a"), tuple(map(str, range(13)))])
def test_a_family_is_small_and_without_repeats(texts):
    with pytest.raises(ValueError, match="texts must be 1 to 12 different claims"):
        evidence.Family(*texts)


def test_what_is_explored_has_no_verdict(capsys):
    found = evidence.explore("a difference", VALUES, control=VALUES - 2)
    line = capsys.readouterr().out
    assert line.startswith("explored: a difference | ≈ +2.0 [≈ +1.8, ≈ +2.2] points; its control")
    assert "holds" not in line and found.mean == pytest.approx(2)


@pytest.mark.parametrize(
    "value, low, high",
    [
        (4, 3, 5.5),
        (3.0, 3, 5.5),
        (5.5, 3, 5.5),
        (np.float32(4), 3, 5.5),
        (torch.tensor(4.0), 3, 5.5),
        (12.5, 10, None),
        (-7, None, 0),
        (True, None, None),
        (np.bool_(True), None, None),
        (torch.tensor(1) < torch.tensor(2), None, None),
    ],
)
def test_a_sentence_that_fits_its_number_is_silent(value, low, high, capsys):
    assert evidence.states("about 4 points", value, low, high) is None
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "value, low, high, rest",
    [
        (7.12345, 3, 5.5, " (3 to 5.5), measured ≈ 7.123"),
        (2.9, 3, 5.5, " (3 to 5.5), measured ≈ 2.9"),
        (torch.tensor(7), 3, 5.5, " (3 to 5.5), measured ≈ 7"),
        (9.5, 10, None, " (at least 10), measured ≈ 9.5"),
        (0.5, None, 0, " (at most 0), measured ≈ 0.5"),
        (float("nan"), 3, 5.5, " (3 to 5.5), measured ≈ nan"),
        (float("inf"), 3, None, " (at least 3), measured ≈ inf"),
        (False, None, None, ", which is not so here"),
        (np.bool_(False), None, None, ", which is not so here"),
    ],
)
def test_a_sentence_that_its_number_left_is_told(value, low, high, rest, capsys):
    evidence.states("about 4\n   points", value, low, high)
    assert capsys.readouterr().out == f'the text says: "about 4 points"{rest}\n'


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ((4, 4.0, 3, 5), TypeError, "sentence must be a str, got int 4"),
        (("  ", 4.0, 3, 5), ValueError, "sentence must hold words of the text"),
        (("a", None, 3, 5), TypeError, "value must be a number, True or False, got None"),
        (("a", [4.0], 3, 5), TypeError, "value must be a number.*got list"),
        (("a", np.array([4.0]), 3, 5), TypeError, "value must be a number.*got ndarray"),
        (("a", evidence.Interval(4.0, 3.0, 5.0), 3, 5), TypeError, "value must be a number"),
        (("a", 4.0), ValueError, "low and high must say which numbers fit, got None and None"),
        (("a", True, 3), ValueError, "low and high must be left out for a condition, got 3"),
        (("a", 4.0, "3", 5), TypeError, "low must be a number, got str"),
        (("a", 4.0, float("nan"), 5), ValueError, "low must be a finite number, got nan"),
        (("a", 4.0, 3, float("inf")), ValueError, "high must be a finite number, got inf"),
        (("a", 4.0, 5, 3), ValueError, "low must be below high, got 5 and 3"),
        (("a", 4.0, 4, 4), ValueError, "low must be below high, got 4 and 4"),
    ],
)
def test_a_sentence_without_a_range_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        evidence.states(*arguments)
