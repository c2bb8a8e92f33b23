"""Studies: recorded in parts, resumed, read also when stale, shown beside what a notebook takes."""

import json
import signal
import subprocess
import sys
import time
import tomllib
import zipfile
from functools import partial

import numpy as np
import pytest
from test_training import conv, toy

from kdlib import experiments, studies
from kdlib.engine import notebooks
from kdlib.studies import options

QUIET = {"progress": False, "workers": 1}
ROOT = notebooks.PROJECT


def rates(**keep):
    """At which rate does the student do best?"""
    methods = options("alone", "lr", (0.001, 0.01)) | options("KD", "lr", (0.01, 0.1), method="kd")
    return experiments.compare(
        methods, student=conv, teacher=conv(), train=toy(), evaluate_on=toy(40, 1),
        seeds=[0, 1, 2], epochs=1, experiment="rates", **keep,
    )  # fmt: skip


def numbers(**keep):
    """Which number is the highest?"""

    def own(seed):
        return {f"a | {value}": {"accuracy": value * 10.0 + seed % 2} for value in (1, 2, 3)} | {
            "b": {"accuracy": 5.0}
        }

    return experiments.over_seeds(own, [0, 1, 2], experiment="numbers", **keep)


def failing(**keep):
    """What happens to a run that fails?"""

    def half(seed):
        if seed:
            raise ValueError("no result today")
        return {"a | 1": {"accuracy": 1.0}}

    return experiments.over_seeds(half, [0, 1], experiment="failing", **keep)


@pytest.fixture
def own(monkeypatch):
    """A study of this file under the name of a real one."""
    name = studies.NAMES[0]
    monkeypatch.setattr(studies.module(name), "PARTS", (numbers, failing, rates))
    return name


def test_a_part_is_recorded_and_read(own, tmp_path):
    path = studies.record(own, "numbers", tmp_path, **QUIET)
    found = studies.read(own, tmp_path)["numbers"]
    assert found.question == "Which number is the highest?" and not found.stale
    assert found.runs.methods == ["a | 1", "a | 2", "a | 3", "b"]
    assert np.array_equal(found.runs.paired("a | 2", "a | 1"), [10, 10, 10])
    studies.record(own, "rates", tmp_path, **QUIET)
    both = studies.read(own, tmp_path)
    assert list(both) == ["numbers", "rates"] and len(both["rates"].runs) == 12
    assert both["numbers"].runs == found.runs, "the other part stays"
    assert max(map(len, path.read_text().splitlines())) < 2000, "a line a run, for git"
    assert not (tmp_path / ".unfinished" / own / "rates").exists()


def test_a_stale_file_is_reported_and_readable(own, tmp_path, monkeypatch):
    studies.record(own, "numbers", tmp_path, **QUIET)
    monkeypatch.setattr(studies, "fingerprint", lambda name: "other code")
    assert studies.read(own, tmp_path)["numbers"].stale
    assert "numbers: stale" in overview(tmp_path)
    monkeypatch.undo()


def validated(**keep):
    """What does a student reach after every epoch?"""
    return experiments.compare(
        {"alone": {}}, student=conv, train=toy(), evaluate_on=toy(40, 1), validation=toy(20, 2),
        seeds=[0, 1], epochs=3, experiment="validated", **keep,
    )  # fmt: skip


def test_the_curve_of_a_validated_run_is_kept(own, tmp_path, monkeypatch):
    monkeypatch.setattr(studies.module(own), "PARTS", (validated, numbers))
    for part in ("validated", "numbers"):
        studies.record(own, part, tmp_path, **QUIET)
    found = studies.read(own, tmp_path)
    for run in found["validated"].runs:
        curve = [epoch["validation_accuracy"] for epoch in run.history]
        assert len(curve) == 3 and all(0 <= value <= 100 for value in curve)
        assert set(run.history[0]) == {"validation_accuracy", "validation_loss"}
    assert all(run.history == [] for run in found["numbers"].runs)


def test_a_run_of_several_methods_counts_its_seconds_once(own, tmp_path):
    studies.record(own, "numbers", tmp_path, **QUIET)
    found = studies.read(own, tmp_path)["numbers"]
    assert len(found.runs) == 12 and len({run.identity for run in found.runs}) == 3
    wanted = sum(run.seconds for run in found.runs.of("a | 1").values())
    assert found.seconds == pytest.approx(wanted)


def overview(place):
    from kdlib.commands import record

    return record.overview(place)


def test_the_overview_says_what_is_missing_or_broken(own, tmp_path):
    assert "numbers: missing" in overview(tmp_path)
    studies.record(own, "numbers", tmp_path, **QUIET)
    assert "numbers: recorded, 0 core minutes" in overview(tmp_path)
    (tmp_path / f"{own}.json").write_text("{}")
    assert f"is no record of {own}" in overview(tmp_path)


def test_a_run_that_fails_keeps_the_file_as_it_was(own, tmp_path):
    path = studies.record(own, "numbers", tmp_path, **QUIET)
    before = path.read_bytes()
    with pytest.raises(RuntimeWarning, match="no result today"):
        studies.record(own, "failing", tmp_path, **QUIET)
    assert path.read_bytes() == before
    assert list((tmp_path / ".unfinished" / own / "failing").rglob("*.json")), "the other run"


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"format": 1, "study": "other", "parts": {}}', '{"format": 1}']
)
def test_what_is_no_record_is_named_and_not_replaced(content, own, tmp_path):
    (tmp_path / f"{own}.json").write_text(content)
    for action in (studies.read, partial(studies.record, part="numbers", **QUIET)):
        with pytest.raises(ValueError, match=rf"{own}\.json is no record of {own}"):
            action(own, place=tmp_path)
    assert (tmp_path / f"{own}.json").read_text() == content


def test_wrong_names_are_told(own, tmp_path):
    with pytest.raises(ValueError, match="name must be one of tuning_1"):
        studies.read("tuning")
    with pytest.raises(ValueError, match="part must be one of numbers, failing, rates"):
        studies.record(own, "weights", tmp_path)
    with pytest.raises(FileNotFoundError, match=f"kdlib record {own}"):
        studies.read(own, tmp_path)


SCRIPT = """
import sys, time
sys.path[:0] = {paths!r}
import test_studies
from kdlib import evidence, experiments, studies

def slow(**keep):
    \"\"\"How long does it take?\"\"\"
    def wait(seed):
        time.sleep(0.4)
        return {{"a | 1": {{"accuracy": float(seed)}}}}
    return experiments.over_seeds(wait, range(20), experiment="slow", **keep)

studies.module("tuning_1").PARTS = (slow,)
from kdlib.__main__ import main
sys.exit(main(["record", "tuning_1", "--folder", {folder!r}, "--workers", "1"]))
"""


def test_a_killed_part_goes_on_where_it_stopped(tmp_path):
    script = tmp_path / "script.py"
    folder = tmp_path / "records"
    script.write_text(SCRIPT.format(paths=[str(ROOT / "tests")], folder=str(folder)))
    command = [sys.executable, str(script)]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(folder.rglob("*.json"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
    first.wait()
    done = {path: path.stat().st_mtime_ns for path in folder.rglob("*.json")}
    assert 3 <= len(done) < 20 and not (folder / "tuning_1.json").exists()
    again = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    seen = {}
    while again.poll() is None:  # the kept runs are not made again
        for path in done:
            if path.exists():
                seen[path] = path.stat().st_mtime_ns
        time.sleep(0.05)
    assert again.returncode == 0, again.stdout.read()
    assert seen and all(done[path] == when for path, when in seen.items())
    content = json.loads((folder / "tuning_1.json").read_text())
    assert [run["seed"] for run in content["parts"]["slow"]["runs"]] == list(range(20))


# The table of a sweep


@pytest.fixture
def recorded(own, tmp_path, monkeypatch):
    studies.record(own, "numbers", tmp_path, **QUIET)
    monkeypatch.setattr(studies, "CHECKOUT", tmp_path)
    return own


def test_a_sweep_shows_what_is_taken_and_what_was_higher(recorded):
    table = studies.sweep(recorded, "numbers", {"a": 2})
    assert table.cells[0] == ["a", "1: 10.3 · [2: 20.3] · 3: 30.3*", "10.0 [10.0, 10.0]"]
    html = table._repr_html_()
    assert html.startswith("<details><summary>Which number") and html.endswith("</details>")
    assert "≈" not in repr(table) and "measured" not in html, "read from a file: exact"
    assert studies.sweep(recorded, "numbers", {"a": 3}).cells[0][1:] == [
        "1: 10.3 · 2: 20.3 · [3: 30.3*]",
        "",
    ]


def single(**keep):
    """What does one seed say?"""
    return numbers(**keep).__class__(run for run in numbers(**keep) if run.seed == 0)


def test_a_sweep_over_one_seed_gives_no_interval(own, tmp_path, monkeypatch):
    monkeypatch.setattr(studies.module(own), "PARTS", (single,))
    monkeypatch.setattr(studies, "CHECKOUT", tmp_path)
    studies.record(own, "single", tmp_path, **QUIET)
    table = studies.sweep(own, "single", {"a": 2})
    assert table.cells[0][2] == "10.0, one seed" and " 1 seed, in brackets" in table.caption


def test_a_setting_that_was_not_tried_is_named(recorded):
    with pytest.raises(ValueError, match="taken of 'a' must be one of 1, 2, 3, got 4"):
        studies.sweep(recorded, "numbers", {"a": 4})
    with pytest.raises(ValueError, match="taken must be one of a, ?.*got 'c'"):
        studies.sweep(recorded, "numbers", {"c": 1})
    with pytest.raises(ValueError, match="part must be one of numbers; got 'rates'"):
        studies.sweep(recorded, "rates", {})


# The committed records


@pytest.mark.parametrize("name", studies.NAMES)
def test_committed_records_are_complete(name):
    found = studies.read(name, ROOT / "notebooks" / "records")
    assert list(found) == list(studies.parts(name))
    for part in found.values():
        # 40 minutes on two idle cores; records may be made while the cores do other work, too.
        assert part.seconds < 1.25 * 2 * 40 * 60
        seeds = {run.seed for run in part.runs}
        sweep = set(studies.SEEDS)
        assert seeds <= sweep or len(seeds - sweep) == len(seeds) >= 5, "a sweep, or a claim"


def test_every_package_and_record_is_in_the_wheel(tmp_path):
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    packages = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "kdlib").rglob("__init__.py")
    }
    assert set(listed["packages"]) == packages | set(listed["package-dir"])
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(ROOT)],
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"kdlib/recorded/{name}.json" for name in studies.NAMES} <= names
    unpacked = tmp_path / "unpacked"
    zipfile.ZipFile(wheel).extractall(unpacked)
    code = "from kdlib import studies; print(len(studies.read('tuning_1')), studies.folder())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=unpacked, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip().endswith("recorded")
