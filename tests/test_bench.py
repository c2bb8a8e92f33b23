"""`bench`: the arithmetic of ratios on fakes, the report, what cannot be measured. No seconds."""

import json
from itertools import count, islice

import pytest
import torch

from kdlib import training
from kdlib.__main__ import main
from kdlib.benchmarks import catalogue, loops, networks, peers, rows, runner, vision
from kdlib.benchmarks.clock import Called, Looped, Paced, Ratio, in_turns
from kdlib.benchmarks.plan import Plan
from kdlib.benchmarks.rows import Row

CPU = torch.device("cpu")


class Fake:
    """Takes these seconds a step, one value a round, and notes when it was asked."""

    def __init__(self, name, asked, *seconds):
        self.name, self.asked, self.found = name, asked, iter(seconds)

    def seconds(self, steps):
        self.asked.append((self.name, steps))
        return steps * next(self.found)


# --- ratios


def test_a_ratio_is_the_median_of_the_rounds():
    found = Ratio.of([2.0, 9.0, 4.0], [1.0, 3.0, 1.0])
    assert found == Ratio(3.0, 2.5, 3.5, 4.0, 1.0, 3)
    assert found.inverse()[:3] == pytest.approx((1 / 3, 1 / 3.5, 1 / 2.5))
    assert Ratio.of([2.0], [4.0])[:3] == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("first, second", [([], []), ([1.0], [1.0, 2.0])])
def test_rounds_are_paired(first, second):
    with pytest.raises(ValueError, match=f"got {len(first)} and {len(second)}"):
        Ratio.of(first, second)


def test_both_take_turns_and_times_are_of_a_step():
    asked = []
    found = in_turns(Fake("a", asked, 2, 3), Fake("b", asked, 1, 2), steps=5, rounds=2)
    assert asked == [("a", 5), ("b", 5), ("b", 5), ("a", 5)]
    assert (found.first, found.second, found.median) == (2.5, 1.5, 1.75)


def test_a_machine_that_slows_down_changes_no_ratio():
    slowing = [1.0, 2.0, 5.0, 9.0]
    twice = Fake("a", [], *(2 * x for x in slowing))
    found = in_turns(twice, Fake("b", [], *slowing), steps=1, rounds=4)
    assert found[:3] == (2.0, 2.0, 2.0)


# --- what is asked for steps


def steps_of(asked, groups=2, length=100):
    """A training that asks its schedule for each group of parameters, as the loop does."""

    def train(schedule):
        for step in range(length):
            asked.append(step)
            for _ in range(groups):
                schedule(step / length)

    return train


def test_a_paced_training_makes_the_steps_it_is_asked_for():
    begun = []
    with Paced(steps_of(begun), CPU, warmup=3) as timed:
        assert len(begun) == 4  # three are done, the next one waits for its rate
        assert timed.seconds(5) >= 0 and len(begun) == 9
    assert len(begun) == 9


def test_a_paced_training_hands_on_what_goes_wrong():
    def failing(schedule):
        schedule(0.0)
        raise FloatingPointError("the loss")

    with pytest.raises(FloatingPointError, match="the loss"):
        Paced(failing, CPU)
    with pytest.raises(RuntimeError, match="more epochs"):
        Paced(steps_of([], length=2), CPU)


def test_a_real_training_is_paced():
    plan = Plan(scale="smoke")
    with vision.paced(plan, networks.small(), networks.digits(plan), method="kd") as timed:
        assert timed.seconds(2) > 0


def test_loops_and_calls_are_counted():
    calls, steps = [], count()
    looped = Looped(steps, CPU, warmup=2)
    called = Called(lambda: calls.append(1), CPU, warmup=1)
    looped.seconds(3), called.seconds(4)
    assert next(steps) == 5 and len(calls) == 5


def test_a_stopwatch_ends_the_training():
    watch, begun = vision.Stopwatch(Plan(), steps=4, rounds=3), []
    with pytest.raises(vision.Enough):
        steps_of(begun)(watch)
    assert len(watch.times) == 3 and len(begun) == 13 + 3 * 4


# --- the other loops


@pytest.mark.parametrize("name", ["own", "published"])
def test_the_other_loops_train(name):
    pair = networks.colour("resnet8", "resnet8")
    teacher, student = (training.build(one, seed) for seed, one in enumerate(pair[1:3]))
    before = [p.clone() for network in (teacher, student) for p in network.parameters()]
    if name == "own":
        made = loops.own(teacher, student, networks.noise(16, CPU), batch_size=8)
    else:
        pictures = loops.Pictures(16)
        made = loops.published(teacher, student, pictures, CPU, batch_size=8, workers=0)
    assert len(list(islice(made, 3))) == 3  # more than an epoch
    moved = [
        not torch.equal(old, new)
        for old, new in zip(before, [*teacher.parameters(), *student.parameters()])
    ]
    half = len(list(teacher.parameters()))
    assert not any(moved[:half]) and any(moved[half:])


def test_their_divergence_is_ours():
    from kdlib import losses

    one, other = torch.randn(2, 5, 7).unbind()
    torch.testing.assert_close(loops.divergence(one, other), losses.kd(one, other))


# --- rows


FOUND = [
    Row("methods", "kd / ce", ratio=1.02, low=1.0, high=1.04, rounds=5, goal="<= 1.05"),
    Row("loops", "ours / theirs", "speed", 1.3, 1.2, 1.4, 3, ">= 2", {"images/s": 1234.5}),
    Row("recipe", "a | b", unmeasured="no GPU here"),
    Row("memory", "peak", "memory", values={"MiB": 12.0}, device="CPU"),
]


def test_goals_are_met_or_missed():
    assert [row.met for row in FOUND] == [True, False, None, None]


def test_the_table_says_what_was_not_measured():
    lines = rows.markdown(FOUND).splitlines()
    assert len({line.count(" | ") for line in lines}) == 1 and len(lines) == 6
    assert "| 1.02 | 1.00 to 1.04 | <= 1.05, met |" in lines[2]
    assert ">= 2, missed | images/s 1,234 |" in lines[3]
    assert r"a \| b" in lines[4] and "unmeasured: no GPU here" in lines[4]
    assert "unmeasured" not in lines[5]


def test_rows_survive_their_file():
    assert rows.from_json(json.loads(json.dumps(rows.as_json(FOUND)))) == FOUND


def test_what_differs_from_an_earlier_run_is_listed():
    later = rows.from_json(rows.as_json(FOUND))
    assert rows.apart(later, FOUND) == []
    later[1].ratio = 1.3 * 1.2
    assert rows.apart(later, FOUND) == ["loops: ours / theirs: 1.56, before 1.30"]
    later[1].ratio, later[0].device = 1.3 * 1.09, "another"
    assert rows.apart(later, FOUND) == []


# --- benchmarks in their processes


@pytest.mark.parametrize("name", catalogue.BENCHMARKS)
def test_every_benchmark_can_be_imported(name):
    found = catalogue.BENCHMARKS[name]
    assert callable(found.measure) and set(found.limits) <= {"cpu", "cuda"}


def test_a_benchmark_that_takes_too_long_says_so():
    (row,) = runner.measured("methods", Plan(), most=0.5)
    assert row.ratio is None and "more than 0 s" in row.unmeasured


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_benchmark_that_dies_says_why():
    (row,) = runner.measured("recipe", Plan("cuda", "smoke"))
    assert row.ratio is None and "NVIDIA" in row.unmeasured


HELPER = """
def train_distill(epoch, loader, modules, criteria, optimizer, options):
    student, teacher = modules
    for images, target, index in loader:
        loss = options.gamma * criteria[0](student(images), target)
        loss = loss + options.alpha * criteria[1](student(images), teacher(images).detach())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
"""
NETWORKS = """
from kdlib import models
def made(num_classes):
    return models.ResNet(8, in_channels=3, num_classes=num_classes)
model_dict = {"resnet20": made, "resnet8": made}
"""


def test_a_peer_is_run_beside_ours(tmp_path):
    (tmp_path / "helper").mkdir()
    (tmp_path / "helper" / "loops.py").write_text(HELPER)
    (tmp_path / "models.py").write_text(NETWORKS)
    found = list(runner.measured("peer", Plan("cpu", "smoke", str(tmp_path))))
    assert [row.unmeasured for row in found] == ["", ""]
    assert all("its train_distill" in row.what and row.ratio > 0 for row in found)


def test_a_peer_must_be_one(tmp_path):
    (row,) = peers.peer(Plan("cpu", "smoke", str(tmp_path)))
    assert "helper/loops.py" in row.unmeasured
    (row,) = peers.peer(Plan("cpu", "smoke"))
    assert row.unmeasured == "no --peer was given"


# --- the command


def test_the_command_writes_its_files(tmp_path, capsys):
    table, found = tmp_path / "table.md", tmp_path / "found.json"
    options = ["--smoke", "--device", "cpu", "--only", "fused"]
    assert main(["bench", *options, "--json", str(found), "--markdown", str(table)]) == 0
    written = json.loads(found.read_text())
    assert len(written["rows"]) == 3 and written["machine"]["PyTorch"] == torch.__version__
    assert rows.markdown(rows.from_json(written["rows"])) in table.read_text()
    assert "fused / naive" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_its_rows_say_so(capsys):
    assert main(["bench", "--device", "cuda", "--only", "recipe"]) == 0
    assert "unmeasured: no GPU here" in capsys.readouterr().out


def test_when_the_time_is_up_the_rest_is_left(capsys):
    assert main(["bench", "--device", "cpu", "--only", "fused", "--minutes", "1e-9"]) == 0
    assert "unmeasured: the time was up" in capsys.readouterr().out


def test_the_command_lists_its_benchmarks(capsys):
    assert main(["bench", "--list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == list(catalogue.BENCHMARKS)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--only", "nothing"], "--only must be one of recipe"),
        (["--peer", "nowhere"], "--peer must be a folder, got 'nowhere'"),
        (["--before", "nowhere.json"], "nowhere.json"),
        (["--json", "."], "is a folder"),
        (["--minutes", "-1"], "--minutes must be a finite number above 0"),
    ],
)
def test_bad_options_are_named(options, message, capsys):
    assert main(["bench", *options]) == 2
    assert message in capsys.readouterr().err
