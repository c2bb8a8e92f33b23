"""Intervals, paired differences, claims and run records."""

import json
import os

import numpy as np
import pytest
import torch

from kdlib import evidence, records
from kdlib.records import Run


def runs(**accuracies):
    return [Run("e", method, seed, {}, {"accuracy": value})
            for method, values in accuracies.items() for seed, value in enumerate(values)]


def test_interval_is_student_t():
    found = evidence.interval([1.0, 2.0, 3.0, 4.0, 5.0])
    # t(0.975, 4) = 2.776445, standard error = sqrt(2.5 / 5)
    assert found.mean == 3
    assert found.half_width == pytest.approx(2.776445 * 0.7071068, rel=1e-6)


def test_interval_covers_about_95_percent():
    draws = np.random.default_rng(0).normal(size=(4000, 5))
    inside = [abs(e.mean) < e.half_width for e in map(evidence.interval, draws)]
    assert 0.94 < np.mean(inside) < 0.96


def test_paired_uses_common_seeds():
    mixed = runs(a=[3, 5, 9], b=[1, 2])
    assert evidence.paired(mixed, "a", "b").tolist() == [2, 3]


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
    for shift, line in [(1.1, "| holds (≈ close) |"), (1.9, "| holds (≈ close) |"),
                        (2.1, "| holds |"), (0.9, "| not shown (≈ close) |"),
                        (0.6, "| not shown (≈ close) |"), (0.4, "| not shown |")]:
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


def test_seeds_shift_as_a_block(monkeypatch):
    monkeypatch.delenv("KDLIB_SEED_OFFSET", raising=False)
    assert evidence.seeds(3) == [0, 1, 2]
    monkeypatch.setenv("KDLIB_SEED_OFFSET", "100")
    assert evidence.seeds(3) == [100, 101, 102]
    monkeypatch.setenv("KDLIB_SEED_OFFSET", "ten")
    with pytest.raises(ValueError, match="KDLIB_SEED_OFFSET"):
        evidence.seeds()


def test_unknown_method_and_metric_list_what_is_there():
    with pytest.raises(ValueError, match="the runs hold a, b"):
        evidence.paired(runs(a=[1, 2], b=[1, 2]), "c", "a")
    with pytest.raises(ValueError, match="metric 'f1' .* use one of accuracy"):
        evidence.collect(runs(a=[1, 2]), "a", "f1")
    with pytest.raises(ValueError, match="share 1 seeds"):
        evidence.paired(runs(a=[1], b=[1, 2]), "a", "b")


def test_records_survive_the_round_trip(tmp_path):
    run = Run("trial", "KD, T=4", 3, {"lr": 0.1}, {"accuracy": 91.5}, [{"epoch": 1, "loss": 2.0}],
              1.25, "d", "c", {"torch": "2"}, "abc", student=torch.nn.Linear(2, 2))
    path = records.save(run, tmp_path)
    assert path.parent.name == "trial" and path.name.startswith("kd--t-4-seed3-")
    assert records.load(tmp_path) == [run]
    assert records.load(tmp_path)[0].student is None
    assert not list(path.parent.glob(".*"))


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
def test_a_written_file_has_the_usual_permissions(tmp_path):
    plain, path = tmp_path / "plain", tmp_path / "file"
    plain.write_text("x")
    records.write_atomically(path, "new")
    assert path.stat().st_mode == plain.stat().st_mode
    path.chmod(0o640)
    records.write_atomically(path, "newer")
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    records.write_atomically(path, "old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="nothing was overwritten"):
        records.write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 1}', '{"format": 9}', "null"])
def test_what_is_not_a_record_is_named(tmp_path, text):
    (tmp_path / "strange.json").write_text(text)
    with pytest.raises(ValueError, match="strange.json is not a run record"):
        records.load(tmp_path)


def test_nan_metrics_are_refused(tmp_path):
    with pytest.raises(ValueError, match="NaN"):
        records.save(Run("e", "m", 0, {}, {"accuracy": float("nan")}), tmp_path)
    with pytest.raises(FileNotFoundError, match="no runs were recorded"):
        records.load(tmp_path / "nowhere")


def test_key_follows_what_defines_a_run():
    base = Run("e", "m", 0, {"lr": 1.0}, {"accuracy": 1.0}, data="x")
    same = Run("e", "m", 0, {"lr": 1.0}, {"accuracy": 2.0}, seconds=9, data="x")
    assert base.key == same.key
    for change in ({"seed": 1}, {"config": {"lr": 2.0}}, {"data": "y"}, {"method": "n"}):
        fields = dict(experiment="e", method="m", seed=0, config={"lr": 1.0}, metrics={}, data="x")
        assert Run(**(fields | change)).key != base.key


def test_fingerprint_sees_content_shape_and_type():
    x = torch.arange(6.0)
    prints = {records.fingerprint(x), records.fingerprint(x.view(2, 3)),
              records.fingerprint(x.double()), records.fingerprint(x + 1)}
    assert len(prints) == 4
    assert records.fingerprint(x) == records.fingerprint(x.clone())
    assert json.dumps(records.environment()[0])
