"""`torchrun`: two processes equal one; a lost process ends the job with a word and a checkpoint."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from test_training import build, conv, trained, weights

from kdlib import data, distillers
from kdlib.engine import ranks
from kdlib.engine.checkpoints import Checkpoint

pytestmark = pytest.mark.skipif(os.name == "nt", reason="gloo on Windows needs its own set-up")

METHODS = {name: dict(method=name) for name in (*distillers.METHODS, "kd+crd")}
METHODS["crd of a batch"] = dict(method="crd", bank=False, other_classes=True)
WAYS = {"plain": {}, "augmented": {"augment": data.shift}, "mixed": {"mixup": True}}


def trainings():
    """{name: weights} of every method in every way after twelve steps in float32.

    Batch norm, dropout and a memory bank take part; each has a term of the cross-entropy, without
    which a parameter can have no true gradient, and AdamW would move it by the noise.
    """
    teacher = build(conv, 9)
    found = {}
    for method, lesson in METHODS.items():
        own = lesson if method == "ce" else lesson | {"ce_weight": 0.5}
        own |= {"teacher": teacher} if distillers.needs_teacher(own["method"]) else {}
        for name, way in WAYS.items():
            network = trained(epochs=3, lr=2e-3, **own, **way)
            found[f"{method}, {name}"] = weights(network)
    return found


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
from test_ranks import ranks, torch, trainings
torch.set_num_threads(1)
found = trainings()
if ranks.join()[0] == 0:
    torch.save(found, sys.argv[2])
torch.distributed.destroy_process_group()
"""

LOST = """
import datetime, os, signal, sys, time
sys.path.insert(0, sys.argv[1])
from test_ranks import data, ranks, torch, trained
torch.set_num_threads(1)
rank, _ = ranks.join(datetime.timedelta(seconds=8))
steps = [0]
def augment(images, stream):
    steps[0] += 1
    if rank == 1 and steps[0] == 10:
        os.kill(os.getpid(), signal.SIGKILL) if sys.argv[3] == "die" else time.sleep(600)
    return images
trained(epochs=50, checkpoint=sys.argv[2], augment=augment)
"""


def launch(script: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    (folder / "script.py").write_text(script)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        str(folder / "script.py"),
        str(Path(__file__).parent),
        *arguments,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=240, env=environment, check=False
    )


def test_two_processes_equal_one(tmp_path):
    done = launch(SCRIPT, tmp_path, str(tmp_path / "weights"))
    assert done.returncode == 0, done.stderr[-3000:]
    spread = torch.load(tmp_path / "weights", weights_only=True)
    alone = trainings()
    gaps = {name: (spread[name] - value).abs().max().item() for name, value in alone.items()}
    assert len(gaps) == len(METHODS) * len(WAYS)
    assert {name: gap for name, gap in gaps.items() if not gap <= 1e-5} == {}
    start = weights(build(conv, 0))
    assert all((value - start).abs().max() > 1e-3 for value in alone.values())


@pytest.mark.parametrize("how, limit", [("die", 60), ("hang", 90)])
def test_a_lost_process_ends_the_job(how, limit, tmp_path):
    start = time.monotonic()
    done = launch(LOST, tmp_path, str(tmp_path / "c.pt"), how)
    assert done.returncode != 0 and time.monotonic() - start < limit
    if how == "hang":  # a dead one is seen by torchrun, which ends the other at once
        assert "lost another of the 2 processes" in done.stderr
        assert "with a checkpoint, training goes on" in done.stderr
    else:
        assert "SIGKILL" in done.stderr and "rank" in done.stderr
    history = Checkpoint(tmp_path / "c.pt", {}).read()["history"]
    assert [entry["epoch"] for entry in history] == [1, 2], "it died in the third epoch"


def test_a_batch_that_cannot_be_shared_is_refused(monkeypatch):
    monkeypatch.setattr(ranks, "join", lambda *_: (0, 3))
    with pytest.raises(ValueError, match="batch_size must be a multiple of 3 processes, got 16"):
        trained()
