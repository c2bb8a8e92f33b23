"""Intervals and claims."""

import numpy as np
import pytest

from kdlib import evidence
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
    assert line.startswith("claim: A beats B | holds | ≈ +2 points [≈ +1.8, ≈ +2.2], 5 paired")
    assert evidence.claim("A beats B", [2.0, -2.1, 1.9, -2.2, 0.2]).verdict == "not shown"
    assert evidence.claim("by 3", [2.0, 2.1, 1.9, 2.2, 1.8], above=3).verdict == "not shown"
    assert "[≈ +1.8, ≈ +2.2], needs > 3, 5 paired seeds" in capsys.readouterr().out


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
        result = evidence.claim("said so", shifted, close=True)
        assert f"| close ≈{word} |" in capsys.readouterr().out
        assert result.verdict == f"close ≈{word}" and not result.near


def test_equivalence_needs_the_interval_inside():
    values = [0.1, -0.1, 0.05, -0.05, 0.0]
    equal = evidence.claim("no difference", values, within=1)
    assert equal.verdict == "holds" and ", needs within ±1, 5 paired seeds" in str(equal)
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
    with pytest.raises(ValueError, match="above must be left out beside within"):
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
