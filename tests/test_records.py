"""Records on disk, files that are never half written, what the fingerprints see."""

import json
import os
import shutil

import pytest
import torch

from kdlib import __main__ as cli
from kdlib import records
from kdlib.engine import files
from kdlib.records import Run


def test_records_survive_the_round_trip(tmp_path):
    run = Run(
        "trial",
        "KD, T=4",
        3,
        {"lr": 0.1},
        {"accuracy": 91.5},
        [{"epoch": 1, "loss": 2.0}],
        1.25,
        identity="ab12",
        code=records.code_fingerprint(),
        versions={"torch": "2"},
        repeat={"function": None},
        kept=torch.nn.Linear(2, 2),
    )
    path = records.save(run, tmp_path)
    assert path.parent.name == "trial" and path.name == "kd-t-4-ff0bf1-seed3-ab12.json"
    assert list(records.load(tmp_path)) == [run]
    assert records.load(tmp_path)[0].kept is None and not run.stale
    assert not list(path.parent.glob(".*"))


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
def test_a_written_file_has_the_usual_permissions(tmp_path):
    plain, path = tmp_path / "plain", tmp_path / "file"
    plain.write_text("x")
    files.write_atomically(path, "new")
    assert path.stat().st_mode == plain.stat().st_mode
    path.chmod(0o640)
    files.write_atomically(path, "newer")
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    files.write_atomically(path, "old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="nothing was overwritten"):
        files.write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"format": 1}', '{"format": 9}', "null"])
def test_what_is_not_a_record_is_named(tmp_path, text):
    (tmp_path / "strange.json").write_text(text)
    with pytest.raises(ValueError, match="strange.json is not a run record"):
        records.load(tmp_path)


def test_repeat_goes_on_after_files_that_cannot_be_read(tmp_path, capsys):
    (tmp_path / "strange.json").write_text("{}")
    paths = [str(tmp_path / "absent.json"), str(tmp_path), str(tmp_path / "strange.json")]
    assert cli.main(["repeat", *paths]) == 2
    printed = capsys.readouterr().out
    assert "Errno" not in printed
    assert printed.count("cannot be read (") == 2
    assert "strange.json is not a run record" in printed


def test_nan_metrics_are_refused(tmp_path):
    with pytest.raises(ValueError, match="NaN"):
        records.save(Run("e", "m", 0, {}, {"accuracy": float("nan")}), tmp_path)
    with pytest.raises(FileNotFoundError, match="no runs were recorded"):
        records.load(tmp_path / "nowhere")


def test_names_of_experiments_stay_below_the_folder(tmp_path):
    for name in ("../x", "a/b", "a:b", "", ".", "..", "-x", "x" * 81, 3):
        with pytest.raises(ValueError, match="experiment must be up to 80"):
            records.save(Run(name, "m", 0), tmp_path)
    assert not list(tmp_path.iterdir())


def test_file_names_are_short_and_plain(tmp_path):
    for method in ("x" * 500, "a/b\\c:d", "кд", "+ hint\nT = 4"):
        path = records.save(Run("e", method, 0, identity="0a1b"), tmp_path)
        assert records.read(path).method == method and len(path.name) < 100
        assert all(c.isascii() and (c.isalnum() or c in "-.") for c in path.name)


def test_the_code_fingerprint_sees_code_and_not_words(tmp_path, monkeypatch):
    copy = tmp_path / "kdlib"
    shutil.copytree(os.path.dirname(records.__file__), copy)
    monkeypatch.setattr(records, "__file__", str(copy / "records.py"))

    def fingerprint():
        records.code_fingerprint.cache_clear()
        return records.code_fingerprint()

    try:
        first = fingerprint()
        losses, show = copy / "losses.py", copy / "show.py"
        text = losses.read_text("utf-8")
        losses.write_text("# a comment\n" + text.replace("Hinton, Vinyals", "Vinyals"), "utf-8")
        show.write_text(show.read_text("utf-8") + "\nnew = 1\n", "utf-8")
        assert fingerprint() == first
        assert "temperature**2" in text
        losses.write_text(text.replace("temperature**2", "temperature**3", 1), "utf-8")
        assert fingerprint() != first
    finally:
        records.code_fingerprint.cache_clear()


def test_versions_name_the_processor():
    found = records.versions()
    assert json.dumps(found) and found["torch"] == torch.__version__ and found["processor"]


def test_an_unusable_place_is_found_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "folder", tmp_path / "file" / "x.json"):
        with pytest.raises(OSError, match="nothing was overwritten"):
            files.probe(path)
    files.probe(tmp_path / "new" / "x.json")
    assert list((tmp_path / "new").iterdir()) == []
