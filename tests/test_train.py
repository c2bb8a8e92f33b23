"""`train`: by name and by module, on files in CIFAR's format; interrupted, resumed, repeated."""

import argparse
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from test_data import cifar  # noqa: F401  (a fixture: a small set in CIFAR's place)

from kdlib import __main__ as cli
from kdlib import export, models, records, training, weights
from kdlib.commands import train
from kdlib.repetition import repeat


def line(text):
    """The words of a command."""
    return text.split()


QUICK = line("--epochs 2 --batch-size 16 --seeds 2 --workers 1")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("KDLIB_PROGRESS", "0")
    return folder


def run(*words):
    return cli.main(["train", *words])


def by_method(folder):
    runs = records.load(folder)
    return {method: runs.of(method) for method in runs.methods}


SMALL = line("--dataset mnist-5k --size 8 --student mlp-s --teacher mlp-m")


def test_every_training_of_the_readme_can_begin(cifar, here, monkeypatch):  # noqa: F811
    name, folder = cifar
    monkeypatch.setenv("KDLIB_DATA", str(folder))
    text = (Path(__file__).parents[1] / "README.md").read_text("utf-8").replace("\\\n", " ")
    found = re.findall(r"train --dataset cifar100 ([^`\n]*)", text)
    assert len(found) > 3
    for words in found:
        parser = argparse.ArgumentParser(allow_abbrev=False)
        train.configure(parser)
        plan = train.Plan(
            parser.parse_args([*line(words), *line(f"--dataset {name} --device cpu")])
        )
        assert plan.teachers and len(plan.methods) > 1
        assert plan.student().training


def test_records_of_a_comparison_repeat(here, capsys):
    assert run(*SMALL, *QUICK, "--method", "kd", "--set", "temperature=2") == 0
    said = capsys.readouterr().out
    assert "teacher mlp-m: " in said and "difference to alone" in said and "records: runs" in said
    found = by_method("runs")
    chosen = found["kd, temperature=2"]
    assert set(found) == {"alone", "kd, temperature=2"} and set(chosen) == {0, 1}
    assert chosen[0].config["temperature"] == 2
    assert set(chosen[0].metrics) >= {"validation accuracy", "validation loss"}
    assert not any("test" in name for name in chosen[0].metrics), "the test split stays unread"
    (path,) = (here / "runs").rglob("kd-*seed1*.json")
    again = repeat(path)
    assert again.verdict == "repeats" and not again.notes, again
    # Another setting stands beside it; what has no label needs an experiment of its own.
    assert run(*SMALL, *QUICK, "--set", "temperature=8") == 0
    assert {"kd, temperature=2", "kd, temperature=8"} < set(by_method("runs"))
    assert run(*SMALL, *QUICK, "--experiment", "slower", "--lr", "1e-3") == 0
    assert set(records.load("runs/slower").methods) == {"alone", "kd"}


def test_a_method_without_a_teacher_stands_beside_one_with(here, capsys):
    pair = line("--dataset mnist-5k --student convnet-s --teacher convnet-m")
    assert run(*pair, *QUICK, "--epochs", "1", *line("--method branches --method ofa")) == 0
    found = by_method("runs")
    assert set(found) == {"alone", "branches", "ofa"}
    heads = {found[name][0].metrics["extra_parameters"] for name in ("branches", "ofa")}
    assert len(heads) == 1 and heads.pop() > 0
    (path,) = (here / "runs").rglob("branches-*seed1*.json")
    assert repeat(path).verdict == "repeats"


def test_cifar_by_name_trains_and_repeats(cifar, here, capsys, monkeypatch):  # noqa: F811
    name, folder = cifar
    monkeypatch.setenv("KDLIB_DATA", str(folder))
    words = f"--dataset {name} --teacher resnet14 --student resnet8 --method crd --augment standard"
    assert run(*words.split(), *line("--epochs 1 --batch-size 16 --seeds 1 --workers 1")) == 0
    said = capsys.readouterr().out
    assert re.search(r"crd: validation accuracy \d+\.\d %, one seed: no interval", said)
    (path,) = (here / "runs").rglob("crd-*.json")
    assert "ResNet(8" in records.read(path).config["student"]
    found = repeat(path)
    assert found.verdict == "repeats" and not found.notes, found


def test_presets_are_recipes_of_fit():
    known = train.presets()
    published = known["published"]
    assert (published["epochs"], published["lr"], published["optimizer"]) == (240, 0.05, "sgd")
    for recipe in known.values():
        training.fit(models.by_name("convnet-s")(), _tiny(), stop_after=0, progress=False, **recipe)


def _tiny():
    from kdlib import data

    return data.Split(torch.rand(8, 1, 28, 28), torch.arange(8))


def test_own_code_serves_as_student_and_teacher(here, capsys):
    (here / "nets.py").write_text(
        "from torch import nn\n"
        "def small(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
        "class Large(nn.Sequential):\n"
        "    def __init__(self): super().__init__(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(),"
        " nn.Linear(32, 10))\n"
    )
    words = line("--dataset mnist-5k --size 8 --student nets:small --teacher nets:Large")
    assert run(*words, *QUICK) == 0
    (path,) = (here / "runs").rglob("kd-*seed0*.json")
    done = subprocess.run(
        [sys.executable, "-m", "kdlib", "repeat", "--own-code", str(path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and ": repeats (" in done.stdout, done.stdout + done.stderr
    assert run(*words[:4], "--student", "nets:none") == 2
    assert "nets:none cannot be imported" in capsys.readouterr().err


def test_several_teachers_weights_and_fresh_ones(here, capsys):
    network = training.build(models.by_name("mlp-m", image_size=8), 5)
    weights.save(network, "teacher.pt")
    two = [*SMALL, "--teacher", "mlp-s", "--teacher-weights", "teacher.pt"]
    assert run(*two, *QUICK, "--out", "two") == 0
    said = capsys.readouterr().out
    score = training.evaluate(network, _digits().validation)["accuracy"]
    assert f"teacher mlp-m: {score:.1f} %" in said, "the weights are taken as they are"
    assert by_method("two")["kd"][0].config["teacher"].startswith("Ensemble")
    assert run(*SMALL, *QUICK, "--fresh-teachers", "--out", "fresh") == 0
    assert by_method("fresh")["kd"][1].teacher_seconds > 0


def _digits():
    from kdlib import data

    return data.load("mnist-5k", size=8)


def test_the_test_split_and_the_export_come_when_asked(here, capsys):
    assert run(*SMALL, *QUICK, "--test", "--export", "--method", "dkd") == 0
    assert {"validation accuracy", "test accuracy"} <= set(by_method("runs")["dkd"][0].metrics)
    said = capsys.readouterr().out
    files = sorted(path.name for path in (here / "runs").rglob("*.pt2"))
    assert files == ["alone-seed0.pt2", "dkd-seed0.pt2"]
    for method in ("alone", "dkd"):
        found = re.search(rf"{method}-seed0.pt2: (\S+) % of .* the network (\S+) %", said)
        assert found[1] == found[2]
        recorded = by_method("runs")[method][0].metrics["validation accuracy"]
        assert f"{recorded:.1f}" == found[1], "it is the student of the record"
        (path,) = (here / "runs").rglob(f"{method}-seed0.pt2")
        assert export.load(path).num_classes == 10


@pytest.mark.parametrize(
    "words, message",
    [
        (["--student", "resnet2o"], "nearest: .*resnet20"),
        (["--student", "mlp-s", "--method", "kd"], "--teacher must be given"),
        ([*SMALL, "--method", "hnit"], "hint"),
        ([*SMALL, "--set", "temperature"], "--set must be OPTION=VALUE"),
        ([*SMALL, "--set", "crd.weight=1"], "--set must name a method that is trained, got crd"),
        ([*SMALL, "--set", "tmperature=3"], "'kd, tmperature=3': .*no option 'tmperature'"),
        ([*SMALL, "--preset", "fast"], "--preset must be one of quick, published"),
        ([*SMALL, "--teacher-weights", "no.pt"], "no.pt"),
        ([*SMALL, "--fresh-teachers", "--teacher", "mlp-s"], "--fresh-teachers must go with one"),
        (["--dataset", "cifar1O", "--student", "mlp-s"], "cifar10"),
        ([*SMALL, "--device", "cuda:7"], "device must be one of this machine"),
    ],
)
def test_mistakes_are_told_before_anything_is_trained(words, message, here, capsys, monkeypatch):
    monkeypatch.setattr(
        training.loop, "optimise", lambda *a, stop_after=None, **k: _only(stop_after)
    )
    assert run(*words) == 2
    assert re.search(message, capsys.readouterr().err)


def _only(stop_after):
    assert stop_after == 0, "something was trained"
    return []


def test_weights_of_another_network_name_the_tensor(here, capsys):
    weights.save(training.build(models.by_name("mlp-s", image_size=8), 0), "small.pt")
    assert run(*SMALL, *QUICK, "--teacher-weights", "small.pt") == 2
    assert re.search(r"small.pt belongs to another network.*has shape", capsys.readouterr().err)


def test_a_loss_that_is_not_finite_says_so(here, capsys):
    assert run(*SMALL, *QUICK, "--lr", "1e30") != 0
    captured = capsys.readouterr()
    assert "lower lr" in captured.out + captured.err


def test_help_lists_the_names():
    done = subprocess.run(
        [sys.executable, "-m", "kdlib", "train", "--help"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in ("cifar100", "resnet56", "wrn-40-2", "crd", "reverse_kl", "published", "swin_t"):
        assert name in done.stdout


def test_killed_and_resumed_it_ends_as_if_nothing_had_happened(here):
    words = [*SMALL, "--epochs", "6", "--batch-size", "8", "--seeds", "2", "--workers", "1"]
    command = [sys.executable, "-m", "kdlib", "train", *words]
    whole = subprocess.run([*command, "--out", "whole"], capture_output=True, text=True, check=True)
    assert "records: whole" in whole.stdout
    for _ in range(3):  # killed again and again
        broken = subprocess.Popen(
            [*command, "--out", "cut", "--resume"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        files = len(list((here / "cut").rglob("*.pt")))
        deadline = time.monotonic() + 60
        while len(list((here / "cut").rglob("*.pt"))) <= files and time.monotonic() < deadline:
            time.sleep(0.02)
        broken.send_signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
        broken.wait()
    subprocess.run([*command, "--out", "cut", "--resume"], check=True, capture_output=True)

    def content(folder):
        found = {}
        for path in sorted((here / folder).rglob("*.json")):
            one = json.loads(path.read_text())
            found[path.name] = {k: v for k, v in one.items() if k not in ("seconds", "commit")}
        return found

    whole, cut = content("whole"), content("cut")
    assert len(whole) == 4 and whole == cut
