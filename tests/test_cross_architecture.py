"""The study of notebook 5: settings come from its records, rows hold what they promise."""

import json
import re

import nbformat
import numpy as np
import pytest

from kdlib import evidence, studies
from kdlib.engine import notebooks
from kdlib.records import Run, Runs
from kdlib.studies import cross_architecture as study

RECORD = notebooks.PROJECT / "notebooks" / "records" / "cross_architecture.json"
NOTEBOOK = notebooks.PROJECT / "notebooks" / "05_modern_results_vision.ipynb"


def part(scores):
    """A recorded part from {method: accuracy}."""
    runs = Runs(Run("e", method, 50, metrics={"accuracy": v}) for method, v in scores.items())
    return studies.Recorded("?", runs, 1.0, "", {}, "", False)


@pytest.fixture
def tried(monkeypatch):
    """Records in which each student prefers another setting."""
    rates = {f"{s} from scratch | {rate:g}": -abs(rate - 0.008) for s in study.FAMILIES
             for rate in study.RATES[s]}  # fmt: skip
    weights = {"ViT: labels only | 0.3": 2.0, "ViT: labels only | 1": 1.0}
    for teacher, likes in (("CNN", 2.0), ("Mixer", 3.5)):
        for value in (2.0, 4.0, 8.0):
            weights[f"{teacher} → ViT: KD | {value:g}"] = 10 - (value - likes) ** 2
        for lr in (0.004, 0.016):
            weights[f"{teacher} → ViT: KD, longer | {lr:g}"] = lr
    parts = {"learning rate": part(rates), "weights": part(weights)}
    monkeypatch.setattr(study, "read", lambda name: parts)
    return parts


def test_settings_are_the_best_on_average_over_teachers(tried):
    assert study.rate("ViT") == 0.008
    found = study.chosen("KD", "ViT")
    assert (found["temperature"], found["lr"], found["epochs"]) == (2.0, 0.008, study.EPOCHS["ViT"])
    assert found["optimizer"] == "muon" and found["student"] is study.SMALL["ViT"]
    longer = study.chosen("KD, longer", "ViT")
    assert (longer["temperature"], longer["lr"]) == (2.0, 0.016)
    assert longer["epochs"] == study.LONGER["ViT"] > found["epochs"]
    assert study.chosen("labels only", "ViT")["weight"] == 0.3
    assert "method" not in study.chosen("scratch", "ViT")


def test_a_missing_part_is_named_with_its_command(tried):
    del tried["weights"]
    with pytest.raises(ValueError, match="run python -m kdlib record cross_architecture 'weights'"):
        study.chosen("KD", "ViT")


def test_composites_of_the_roles_share_no_digit():
    digits = {}
    for role in ("teachers", "students", "validation", "test"):
        images = study.composites(role).images
        assert images.shape[1:] == (1, 28, 28)
        halves = (images[:500, ..., :14], images[:500, ..., 14:])
        tops = [half[i, :, rows.nonzero()[0].item() :].flatten()[:98].numpy().tobytes()
                for half in halves for i, rows in enumerate(half.sum((1, 3)))]  # fmt: skip
        digits[role] = set(tops)
    roles = list(digits)
    assert all(not digits[a] & digits[b] for i, a in enumerate(roles) for b in roles[:i])


def test_every_method_has_as_many_tries():
    counts = {len(values) for _, values, _ in (*study.TRIES.values(), study.LABELS_ONLY)}
    assert counts == {3}
    assert set(study.HINTS) | set(study.LOGITS) == set(study.TRIES)


@pytest.fixture(scope="module")
def accuracies():
    """{method: {seed: accuracy}} of the table, read without the kit."""
    found: dict[str, dict[int, float]] = {}
    for run in json.loads(RECORD.read_text("utf-8"))["parts"]["table"]["runs"]:
        found.setdefault(run["method"], {})[run["seed"]] = run["metrics"]["accuracy"]
    return found


def difference(accuracies, pair, one, other):
    a, b = accuracies[f"{pair} | {one}"], accuracies[f"{pair} | {other}"]
    return np.array([a[seed] - b[seed] for seed in sorted(a)])


def outputs(cell):
    """Plain text of a stored cell's outputs, without the signs of measured numbers."""
    stored = nbformat.read(NOTEBOOK, as_version=4)
    found = next(one for one in stored.cells if one.id == cell).outputs
    return "\n".join(out.get("data", {}).get("text/plain", "") for out in found).replace("≈ ", "")


def test_the_notebook_prints_what_the_raw_records_give(accuracies):
    pairs = [f"{t} → {s}" for t, s in study.PAIRS]
    for other, cell in (("KD, longer", "equal_claim"), ("KD", "main_claims")):
        mean = np.mean([difference(accuracies, pair, "OFA", other) for pair in pairs], 0).mean()
        line = re.search(
            r"claim: OFA beats KD at equal \w+ \| .* \| ([+-][\d.e-]+) ", outputs(cell)
        )
        assert line and float(line[1]) == pytest.approx(mean, abs=0.06)
        assert np.sign(float(line[1])) == np.sign(mean)


def test_the_marks_of_the_table_are_those_of_the_raw_records(accuracies):
    text = outputs("full_table").splitlines()
    names = ["scratch", *study.TRIES]
    for teacher, student in study.PAIRS:
        pair = f"{teacher} → {student}"
        line = next(one for one in text if one.startswith(pair))
        means = {name: np.mean(list(accuracies[f"{pair} | {name}"].values())) for name in names}
        first, second = sorted(names, key=lambda name: -means[name])[:2]
        low = evidence.interval(difference(accuracies, pair, first, second)).low
        assert line.count("*") == (low > 0)
        if low > 0:
            assert f"{means[first]:.1f}" in line.partition("*")[0].rpartition("  ")[2]
