"""The study of notebook 6: settings come from its records, which the notebook prints."""

import json
import math
import re

import nbformat
import numpy as np
import pytest
import torch

from kdlib import language, studies
from kdlib.engine import notebooks
from kdlib.language import corpus, tokenizers
from kdlib.records import Run, Runs
from kdlib.studies import minillm as study

RECORD = notebooks.PROJECT / "notebooks" / "records" / "minillm.json"
NOTEBOOK = notebooks.PROJECT / "notebooks" / "06_modern_results_language.ipynb"


@pytest.fixture
def tried(monkeypatch):
    """Records in which each method prefers another learning rate."""
    own = [name for name in (*study.METHODS, *study.CELLS) if name not in study.SAME]
    rates = {"learning rate": study.RATES, "higher rates": study.HIGHER}
    likes = dict(zip(own, 2 * (*study.RATES, *study.HIGHER)))
    parts = {}
    for part, values in rates.items():
        runs = Runs(
            Run("e", f"{name} | {lr:g}", seed, metrics={"valid": -abs(lr - like) + seed})
            for name, like in likes.items() for lr in values for seed in (50, 51)
        )  # fmt: skip
        parts[part] = studies.Recorded("?", runs, 1.0, "", {}, "", False)
    monkeypatch.setattr(study, "read", lambda name: parts)
    return parts, likes


def test_every_method_takes_its_own_best_rate(tried):
    _, likes = tried
    found = study.chosen(study.METHODS | study.CELLS)
    for name, own in found.items():
        assert own["lr"] == likes[study.SAME.get(name, name)]
        assert own["optimizer"].keywords == {"matrix_lr": 4 * own["lr"]}
    assert study.SAME == {"forward, data": "KD", "reverse, student": "GKD"}
    for cell, method in study.SAME.items():
        assert (
            found[cell]["lr"] == found[method]["lr"] and study.CELLS[cell] == study.METHODS[method]
        )
    ablated = study.chosen({"x": {"method": "minillm", "lm": 0.0}}, like="MiniLLM")["x"]
    assert ablated["lr"] == likes["MiniLLM"] and ablated["lm"] == 0


@pytest.mark.parametrize("part", ["learning rate", "higher rates"])
def test_a_missing_part_is_named_with_its_command(tried, part):
    del tried[0][part]
    with pytest.raises(ValueError, match=f"python -m kdlib record minillm '{part}'"):
        study.chosen(study.METHODS)


def test_the_cells_cross_two_directions_and_three_sources():
    assert len(study.CELLS) == 6
    settings = [(own["kind"], own["method"], own.get("prefixes")) for own in study.CELLS.values()]
    assert len(set(settings)) == 6
    assert {kind for kind, *_ in settings} == set(study.DIRECTIONS)


def test_all_three_off_is_the_three_together():
    three = [study.OFF[f"no {name}"] for name in
             ("single step", "teacher mixing", "length normalisation")]  # fmt: skip
    assert study.OFF["all three off"] == three[0] | three[1] | three[2]


def test_pairs_of_a_seed_grow_and_differ_from_those_of_others():
    assert study.pairs(10, 3) == study.pairs(20, 3)[:10] != study.pairs(10, 4)
    train, test = ({prompt for prompt, _ in corpus.examples(one, 3000)} for one in
                   ("train", "test"))  # fmt: skip
    assert not train & test


@pytest.fixture(scope="module")
def teacher():
    torch.manual_seed(0)
    return study.TEACHERS["1 x 32"]()


def test_students_of_a_seed_start_from_the_same_weights(teacher, monkeypatch):
    monkeypatch.setitem(study.START, "steps", 2)
    seen = []

    def keep(student, *args, **options):
        seen.append((options["method"], options.get("teacher"),
                     student.token.weight.detach().clone()))  # fmt: skip
        return student

    start = study.started(20, 5)
    monkeypatch.setattr(language, "trained", keep)
    for own in study.METHODS.values():
        study.taught(start, teacher, 20, 5, **own)
    assert [method for method, *_ in seen] == ["sft", "kd", "seqkd", "minillm", "gkd"]
    assert [one is teacher for _, one, _ in seen] == [False, True, True, True, True]
    assert all(torch.equal(weights, start.token.weight) for *_, weights in seen)
    assert not torch.equal(study.STUDENT().token.weight, start.token.weight)


def test_a_student_that_is_its_teacher_has_no_divergence(teacher):
    found = study.measured(teacher, teacher, "validation", 0)
    assert found["reverse KL"] == found["forward KL"] == 0
    assert found["valid"] == 0 < found["Rouge-L"] < 50 and found["length"] > 20  # it babbles


def test_a_student_that_has_collapsed_is_measured_too(teacher, monkeypatch):
    monkeypatch.setattr(study, "MANY", 1)
    mute = study.STUDENT()
    with torch.no_grad():
        mute.norm.weight.zero_()  # the last state is then the same everywhere
        mute.norm.bias.copy_(100 * mute.head.weight[tokenizers.END])
    found = study.measured(mute, teacher, "test", 1, detail=True)
    assert found["length"] == 1 and found["valid"] == found["distinct-4"] == 0
    assert not any(name.startswith("excess error") for name in found)


def test_details_are_finite_and_bins_hold_every_token(teacher, monkeypatch):
    monkeypatch.setattr(study, "MANY", 4)
    found = study.measured(study.STUDENT(), teacher, "test", 1, detail=True)
    assert all(map(math.isfinite, found.values()))
    assert {f"excess error at {n}" for n in study.LENGTHS} <= set(found)
    sizes = sum(value for name, value in found.items() if name.endswith("size"))
    examples = corpus.examples("test", 500, seed=8)
    assert sizes == sum(len(response.split()) + 1 for _, response in examples)
    gaps = sum(found[f"bin {n} size"] * abs(found[f"bin {n} confidence"] -
               found[f"bin {n} accuracy"]) for n in range(study.BINS)
               if f"bin {n} size" in found)  # fmt: skip
    assert found["ECE"] == pytest.approx(100 * gaps / sizes)


# The record and the notebook


@pytest.fixture(scope="module")
def valid():
    """{part: {method: {seed: percent valid}}}, read without the kit."""
    found: dict = {}
    for part, content in json.loads(RECORD.read_text("utf-8"))["parts"].items():
        for run in content["runs"]:
            values = found.setdefault(part, {}).setdefault(run["method"], {})
            values[run["seed"]] = run["metrics"]["valid"]
    return found


def difference(values, one, other):
    return np.array([values[one][seed] - values[other][seed] for seed in sorted(values[one])])


def printed(cell):
    """Plain text of a stored cell's outputs, without the signs of measured numbers."""
    stored = nbformat.read(NOTEBOOK, as_version=4)
    outputs = next(one for one in stored.cells if one.id == cell).outputs
    return "\n".join(out.get("data", {}).get("text/plain", "") for out in outputs).replace("≈ ", "")


def test_the_notebook_prints_what_the_raw_records_give(valid):
    factorial = valid["factorial"]
    for count, title in ((400, "400"), (4000, "4,000")):
        own = difference(factorial, f"{count} | reverse, student", f"{count} | reverse, data")
        direction = np.mean([
            difference(factorial, f"{count} | reverse, {one}", f"{count} | forward, {one}")
            for one in ("data", "teacher", "student")
        ], 0)  # fmt: skip
        for text, values in (
            (f"{title} pairs, reverse: own prefixes beat those of the data", own),
            (f"{title} pairs: reverse KL beats forward KL (mean of three sources)", direction),
        ):
            line = re.search(re.escape(f"claim: {text}") + r" \| .* \| ([+-][\d.e-]+) ",
                             printed("factorial_claims"))  # fmt: skip
            assert line and float(line[1]) == pytest.approx(values.mean(), abs=0.06)


def test_parts_have_six_seeds_and_the_repetition_has_others(valid):
    seeds = {part: {seed for values in methods.values() for seed in values}
             for part, methods in valid.items()}  # fmt: skip
    assert list(seeds) == list(studies.parts("minillm"))
    choices = dict.fromkeys(("start", "learning rate", "higher rates"), 2)
    assert {part: len(found) for part, found in seeds.items()} == dict.fromkeys(seeds, 6) | choices
    assert not seeds["factorial"] & seeds["factorial again"]
    assert not seeds["learning rate"] & (seeds["table"] | seeds["factorial again"])
    for methods in valid.values():
        assert len({tuple(sorted(values)) for values in methods.values()}) == 1
