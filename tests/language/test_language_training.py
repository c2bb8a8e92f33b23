"""Sources of batches, methods, `fit`: what is drawn, that it repeats, resumes and learns."""

from __future__ import annotations

import copy
import functools
import itertools
import json

import pytest
import torch
from torch import nn

from kdlib.engine import loop, optimizers
from kdlib.experiments import over_seeds
from kdlib.identity import identity
from kdlib.language import GPT, Words, corpus, generate, load_pairs, sources, training
from kdlib.language.minillm import MiniLLM
from kdlib.language.objectives import Supervised, Tally
from kdlib.language.sources import answered_once, from_data, from_model, mixed, rollouts
from kdlib.language.tokenizers import Batch, batch, prompt_tokens
from kdlib.language.training import fit
from kdlib.training import build

PAIRS = corpus.examples("train", 12, seed=3)
WORLD = Words(corpus.VOCABULARY)
CONTEXT = 40
DATA = batch(PAIRS, WORLD, CONTEXT)
PROMPTS = prompt_tokens([prompt for prompt, _ in PAIRS], WORLD)
METHODS = tuple(training.METHODS)
LIMIT = {"max_new_tokens": 5, "end": 1}


def small(dim: int = 8, *, seed: int = 0, vocabulary: int = 118, context: int = CONTEXT) -> GPT:
    return build(lambda: GPT(vocabulary, context, dim=dim, depth=1, heads=2), seed)


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def first(source: loop.Batches, count: int, seed: int = 0, epoch: int = 1) -> list:
    return [found for found, _ in zip(source(epoch, stream(seed)), range(count))]


def same(one: Batch, other: Batch) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other))


TEACHER = small(16, seed=1)
GIVEN = {"steps": 4, "epochs": 2, "batch_size": 4, "progress": False}
run = functools.partial(fit, pairs=PAIRS, tokenizer=WORLD, **GIVEN)


def options(method: str) -> dict:
    return {"method": method, "teacher": None if method == "sft" else TEACHER}


# Sources


def test_data_come_in_passes():
    found = first(from_data(DATA, 5), 12)
    rows = [tuple(row.tolist()) for part in found for row in part.targets[:, :9]]
    every = sorted(tuple(row.tolist()) for row in DATA.targets[:, :9])
    passes = [rows[start : start + 12] for start in range(0, 60, 12)]
    assert all(sorted(one) == every for one in passes) and len(set(map(str, passes))) == 5
    assert all(map(same, found, first(from_data(DATA, 5), 12)))
    assert not same(found[0], first(from_data(DATA, 5), 1, seed=1)[0])
    assert len(first(from_data(DATA, 30), 2)[1].tokens) == 30, "more than there are"


def test_answers_come_from_the_model_of_the_moment():
    model, tally = small(), Tally()
    source = from_model(model, PROMPTS, 6, inner=2, tally=tally, **LIMIT)
    batches = source(1, stream())
    one, again = next(batches), next(batches)
    assert one is again and one.mask.any(0).sum() == 5
    prompts = {tuple(row.tolist()) for row in PROMPTS}
    width = one.tokens.shape[1] + 1 - 5
    assert {(0,) * (5 - width) + tuple(row.tolist()) for row in one.tokens[:, :width]} <= prompts
    with torch.no_grad():
        model.head.weight[1] += 30 * model.head.weight[1].sign()  # says the end at once, or never
    found = next(batches)
    assert not same(found, next(iter(first(source, 3, seed=9)[2:])))
    assert not same(found, first(from_model(small(), PROMPTS, 6, inner=2, **LIMIT), 3)[2])
    means = tally.means()
    assert means.keys() == {"length", "tokens_per_second"} and 1 <= means["length"] <= 5


def test_a_mixture_draws_batches_from_either():
    def constant(value: int) -> loop.Batches:
        return lambda epoch, generator: itertools.repeat(value)

    for share, low, high in ((0.0, 0, 0), (1.0, 400, 400), (0.3, 90, 150)):
        source = mixed(constant(1), constant(0), share)
        assert low <= sum(first(source, 400)) <= high and first(source, 400) == first(source, 400)


def test_roll_outs_are_used_several_times_with_other_texts():
    objective, tally = MiniLLM(small(), TEACHER, inner=3, lm=1), Tally()
    found = first(rollouts(objective, PROMPTS, 4, text=DATA, tally=tally, **LIMIT), 6)
    for group in (found[:3], found[3:]):
        assert all(one.tokens is group[0].tokens for one in group)
        assert not same(group[0].text, group[1].text)
    assert not torch.equal(found[0].old, found[3].old) and len(found[0].text.tokens) == 4
    assert tally.means()["length"] <= 5
    objective.lm = 0.0
    assert first(rollouts(objective, PROMPTS, 4, text=DATA, **LIMIT), 1)[0].text is None


def test_the_teacher_answers_once():
    found = answered_once(TEACHER, PROMPTS, seed=4, **LIMIT)
    assert len(found.tokens) == 12 and found.mask.sum(1).max() == 5
    assert torch.equal(found.tokens[:, : PROMPTS.shape[1]], PROMPTS)
    assert same(found, answered_once(TEACHER, PROMPTS, seed=4, **LIMIT))
    assert not same(found, answered_once(TEACHER, PROMPTS, seed=5, **LIMIT))
    ends = found.targets.where(found.mask, 0)
    assert ((ends == 1).sum(1) <= 1).all(), "nothing counts behind the end"


def test_sequence_level_kd_is_supervised_training_on_these_answers():
    one, other, limit = small(), small(), {"max_new_tokens": CONTEXT - PROMPTS.shape[1], "end": 1}
    shape = {"clip": 0.01, "schedule": lambda progress: 1 - progress, "seed": 7}
    history = run(one, **options("seqkd"), **shape).history
    answers = answered_once(TEACHER, PROMPTS, seed=7, **limit)
    objective, given = Supervised(other), {"lr": 5e-3, "weight_decay": 0.01}
    made = optimizers.create("muon", objective.named_parameters(), **given)
    given = {"epochs": 2, "steps": 2, "progress": False} | shape
    again = loop.optimise(objective, from_data(answers, 4), made, **given)  # on all threads
    assert [entry["nll"] for entry in history] == pytest.approx([e["nll"] for e in again], rel=1e-6)
    assert torch.allclose(one.head.weight, other.head.weight, atol=1e-5)


# fit


@pytest.mark.parametrize("method", METHODS)
def test_a_training_repeats_and_resumes(method: str, tmp_path):
    more = {"gkd": {"lam": 0.5, "inner": 2, "kind": "jsd"}, "minillm": {"inner": 3}}
    given = options(method) | more.get(method, {}) | {"validation": PAIRS[:3]}
    students = [small() for _ in range(4)]
    whole, again = run(students[0], **given), run(students[1], **given)
    path = tmp_path / "run.pt"
    half = run(students[2], checkpoint=path, stop_after=1, **given)
    rest = run(students[2], checkpoint=path, **given)
    run(students[3], **given, seed=1)
    weights = [one.head.weight for one in students]
    assert torch.equal(weights[0], weights[1]) and torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0], weights[3]) and not students[0].training
    for history in (again.history, rest.history):
        for mine, other in zip(whole.history, history):
            assert [*mine] == [*other]
            assert all(mine[k] == other[k] for k in mine if k != "tokens_per_second")
    assert len(half.history) == 1 and (half.sequences, rest.sequences) == (8, 16)
    for name, value in {"lr": 1e-3, "pairs": PAIRS[::-1], "validation": PAIRS[:2]}.items():
        with pytest.raises(ValueError, match=f"belongs to a run with other {name}"):
            run(small(), checkpoint=path, **(given | {name: value}))


@pytest.mark.parametrize("method", METHODS)
def test_budgets_and_histories(method: str):
    """Equal updates and sequences; MiniLLM reads as many rows of text besides."""
    student, seen, own = small(), [], method in ("gkd", "minillm")
    student.register_forward_hook(lambda m, x, out: seen.extend([len(x[0])] * out.requires_grad))
    found = run(student, **options(method))
    assert seen == [4] * (8 if method == "minillm" else 4) and found.sequences == 16
    watched = {"reward", "reverse_kl", "length", "tokens_per_second"}
    assert [watched & entry.keys() for entry in found.history] == [watched if own else set()] * 2
    terms = {"minillm": {"single", "long", "lm"}, "sft": {"nll"}, "seqkd": {"nll"}}
    for entry in found.history:
        names = terms.get(method, {"divergence"})
        assert entry["loss"] == pytest.approx(sum(entry[name] for name in names))


@pytest.mark.parametrize("method", ["kd", "gkd", "minillm"])
def test_the_student_comes_closer_to_its_teacher(method: str):
    given = options(method) | ({"lm": 0.0} if method == "minillm" else {"kind": "reverse"})
    history = run(small(), **given, steps=60, epochs=3, lr=0.03).history
    name = "divergence" if method == "kd" else "reverse_kl"
    assert history[-1][name] < 0.7 * history[0][name]
    assert method == "kd" or history[-1]["reward"] > history[0]["reward"]


def test_a_black_box_is_known_by_its_texts(tmp_path):
    path, one, other = tmp_path / "answers.jsonl", small(), small()
    path.write_text("\n".join(json.dumps(pair._asdict()) for pair in PAIRS), "utf-8")
    assert run(one, pairs=load_pairs(path)).history == run(other).history
    assert torch.equal(one.head.weight, other.head.weight)


def test_likelihood_is_measured_over_all_tokens():
    model, many = small(), Batch(*(part.repeat(30, 1) for part in DATA))
    logits = model(DATA.tokens).log_softmax(-1).gather(-1, DATA.targets[..., None])[..., 0]
    for data in (DATA, many):
        wanted = pytest.approx(-logits[DATA.mask].mean().item(), rel=1e-5)
        assert training.likelihood(model, data) == wanted


def test_prefixes_come_from_where_they_are_asked_for(monkeypatch):
    asked: list[nn.Module] = []
    noted = lambda m, *x, **o: asked.append(m) or generate(m, *x, **o)  # noqa: E731
    monkeypatch.setattr(sources, "generate", noted)
    for given, own, other in (
        (options("kd"), 0, 0), (options("kd") | {"prefixes": "teacher"}, 0, 4),
        (options("gkd"), 4, 0), (options("gkd") | {"lam": 0.0}, 0, 0), (options("seqkd"), 0, 1),
    ):  # fmt: skip
        asked.clear()
        run(small(), **given)
        assert [one is TEACHER for one in asked] == [False] * own + [True] * other, given


def test_a_preset_comes_before_options():
    given = options("minillm") | {"steps": 2, "epochs": 1}
    plain, paper = (run(small(), **given, preset=name).history[0] for name in (None, "paper"))
    assert plain["lm"] < 0.2 * paper["lm"] and "lm" in paper
    assert "lm" not in run(small(), **given, preset="paper", lm=0.0).history[0]


# Teachers of a seed


LESS = {"steps": 2, "epochs": 1, "batch_size": 4}


def first_weight(seed: int, make: functools.partial) -> dict[str, float]:
    return {"weight": make(seed).head.weight[5, 0].item()}


def test_fresh_teachers():
    make = training.fresh(small, PAIRS, WORLD, **LESS)
    one, again, other = (make(seed).head.weight for seed in (0, 0, 1))
    assert torch.equal(one, again) and not torch.equal(one, other) and not make(0).training
    student = training.trained(small(seed=0), PAIRS, WORLD, seed=10_000, **LESS)
    assert torch.equal(one, student.head.weight), "the seed of the batches is the teacher's own"
    assert identity(make) == identity(training.fresh(small, list(PAIRS), WORLD, **LESS))
    assert identity(make) != identity(training.fresh(small, PAIRS[1:], WORLD, **LESS))
    function = functools.partial(first_weight, make=make)
    runs = over_seeds(function, [0, 1], experiment="teachers", workers=1, progress=False)
    assert [run.metrics["weight"] for run in runs] == [one[5, 0].item(), other[5, 0].item()]
    bare = functools.partial(GPT, 118, 40, dim=8, depth=1, heads=2)
    make = training.fresh(bare, PAIRS, WORLD, stop_after=0)
    assert not torch.equal(make(0).head.weight, make(1).head.weight)


# Errors


def refused(message: str, student: nn.Module | None = None, kind=ValueError, **given) -> None:
    with pytest.raises(kind, match=message):
        run(student or small(), **given)


def test_networks_must_fit():
    message = f"teacher must have the student's vocabulary of {len(WORLD)} tokens, got 200"
    for method in METHODS[1:]:
        refused(message, method=method, teacher=small(vocabulary=200))
        refused(f"teacher must be a network for method '{method}'", method=method)
    refused("student must have the tokenizer's vocabulary of 118", small(vocabulary=9))
    refused("teacher must be None for method 'sft'", teacher=TEACHER)
    student, layer = small(), nn.Linear(1, 1)
    refused("teacher must be another network", student, method="kd", teacher=student)
    message = "teacher must be a LanguageModel, got Linear"
    refused(message, kind=TypeError, method="kd", teacher=layer)
    refused("student must be a Module, got str", "gpt", TypeError)
    broken = copy.deepcopy(TEACHER)
    nn.init.constant_(broken.head.weight, float("nan"))
    refused("teacher must give numbers as logits, got NaN", method="seqkd", teacher=broken)


def test_texts_must_fit():
    refused("examples must hold at least one, got none", pairs=[])
    refused(r"examples\[0\], response, must consist of the words", pairs=[("tell", "Fuchs")])
    message, short = r"examples\[0\] must fit the context of 8 tokens", small(context=8)
    refused(message, short)
    refused(message, method="kd", teacher=short)
    message = "tokenizer must be a Tokenizer of the kit or of language.hf"
    refused(message, kind=TypeError, tokenizer=str)


def test_options_must_be_known():
    refused("method must be one of sft, kd, seqkd, gkd, minillm; got 'dpo'", method="dpo")
    with pytest.raises(TypeError, match="method 'sft' has no option 'mix': it has none"):
        run(small(), mix=0.2)
    message = "method 'gkd' has no option 'alpha': its options are kind, beta, temperature, nll"
    refused(message, kind=TypeError, **options("gkd"), alpha=1)
    known = training.options_of("minillm")
    assert {"preset", "max_new_tokens", "single_step", "inner", "clip_ratio"} <= set(known)
    assert not {"student", "teacher", "padding", "tally", "options", "self"} & set(known)
    refused("steps must be a multiple of epochs, got 5 in 2 epochs", steps=5)
    assert len(run(small(), steps=15, epochs=None).history) == 5
    refused("preset must be one of paper, official", **options("minillm"), preset="no")
    refused("max_new_tokens must be .* at most 35", **options("gkd"), max_new_tokens=36)
    refused("lam must be a finite number of at least 0", **options("gkd"), lam=1.5)
    refused("schedule must be a function, got float", kind=TypeError, schedule=0.1)


def test_infinite_rewards_name_the_token():
    blind, student = copy.deepcopy(TEACHER), small()
    blind.register_forward_hook(lambda m, x, out: out.index_fill(2, torch.tensor(60), -torch.inf))
    before = student.head.weight.clone()
    message = r"rewards must be finite, got -inf for token \d+ of answer \d+ .*, number 60"
    refused(message, student, method="minillm", teacher=blind, batch_size=40)
    assert torch.equal(student.head.weight, before)
