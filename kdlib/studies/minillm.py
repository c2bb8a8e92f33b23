"""MiniLLM and its neighbours: direction, source of prefixes, pairs, teachers (notebook 6).

The language is that of `kdlib.language.corpus`; answers are drawn at temperature 1 and judged
exactly. The teacher is trained anew for every seed, on many pairs of its own; students start from
one fine-tuned network a seed, and every method makes as many updates on as many sequences.
Parts after the first take learning rates from its records, so it is recorded first.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kdlib import evidence, language
from kdlib.engine import optimizers
from kdlib.experiments import over_seeds
from kdlib.language import GPT, Example, corpus, metrics
from kdlib.language.minillm import PRESETS
from kdlib.language.tokenizers import END, batch, prompt_tokens
from kdlib.records import Runs
from kdlib.studies import read

SEEDS = tuple(evidence.seeds(6))
TRIALS = (50, 51)  # seeds of the choice of learning rates
RATES = (0.005, 0.01, 0.02, 0.04)
HIGHER = (0.08, 0.16)  # tried afterwards, as the best of several methods was the last of RATES
PAIRS = 400
CONTEXT = 64
WORDS = language.Words(corpus.VOCABULARY)
STUDENT = partial(GPT, len(WORDS), CONTEXT, dim=24, depth=1, heads=4)
TEACHERS = {
    f"{depth} x {dim}": partial(GPT, len(WORDS), CONTEXT, dim=dim, depth=depth, heads=4)
    for depth, dim in ((1, 32), (2, 64), (3, 96))
}
OTHERS = ("1 x 32", "3 x 96")  # teachers besides that of the table
LESSON: dict[str, Any] = dict(steps=1500, batch_size=32)
START: dict[str, Any] = dict(steps=250, batch_size=32)  # fine-tuning before every method
BUDGET: dict[str, Any] = dict(steps=500, batch_size=64)

SOURCES = ("data", "teacher", "student")  # whose answers the prefixes come from
DIRECTIONS = ("forward", "reverse")
CELLS: dict[str, dict[str, Any]] = {
    f"{kind}, {source}": dict(method="gkd", kind=kind)
    if source == "student"
    else dict(method="kd", kind=kind, prefixes=source)
    for source in SOURCES
    for kind in DIRECTIONS
}
METHODS: dict[str, dict[str, Any]] = {
    "SFT": dict(method="sft"),
    "KD": CELLS["forward, data"],
    "SeqKD": dict(method="seqkd"),
    "MiniLLM": dict(method="minillm"),
    "GKD": CELLS["reverse, student"],
}
SAME = {cell: name for cell, own in CELLS.items() for name in METHODS if METHODS[name] is own}
OFF: dict[str, dict[str, Any]] = {
    "no single step": dict(single_step=False),
    "no teacher mixing": dict(teacher_mix=0.0),
    "no length normalisation": dict(length_normalise=False),
    "no long term": dict(long_term=False),
}
OFF["all three off"] = OFF["no single step"] | OFF["no teacher mixing"]
OFF["all three off"] |= OFF["no length normalisation"]
OFF |= {f"preset {name}": dict(preset=name) for name in PRESETS}
SIZES = (100, 1600, 6400)  # numbers of pairs besides those of the table
LENGTHS = (5, 10, 15, 20)  # at which the excess error is kept
BINS = 10
FEW, MANY = 9, 36  # answers to each of 56 prompts


def lessons() -> list[Example]:
    """What teachers learn from."""
    return corpus.examples("train", 60_000, seed=1)


def pairs(count: int, seed: int) -> list[Example]:
    """What students learn from, drawn anew for every seed."""
    return corpus.examples("train", count, seed=1000 + seed)


def teacher(size: str = "2 x 64") -> partial:
    """A teacher that is trained anew for every seed."""
    return language.fresh(TEACHERS[size], lessons(), WORDS, **LESSON)


def at_rate(lr: float) -> dict[str, Any]:
    """Arguments of a training: `lr` for AdamW's parameters, four times that for Muon's."""
    return {"lr": lr, "optimizer": partial(optimizers.muon, matrix_lr=4 * lr)}


def started(count: int, seed: int, **changes: Any) -> nn.Module:
    """The network that all students of a seed start from."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = STUDENT()
    return language.trained(student, pairs(count, seed), WORDS, seed=seed, **(START | changes))


def taught(
    start: nn.Module, teacher: nn.Module, count: int, seed: int, **own: Any
) -> tuple[nn.Module, float]:
    """(a student that goes on from the start with a method, the seconds that took)."""
    own = BUDGET | own
    if own["method"] != "sft":
        own["teacher"] = teacher
    begin = time.process_time()
    student = language.trained(copy.deepcopy(start), pairs(count, seed), WORDS, seed=seed, **own)
    return student, time.process_time() - begin


# Measuring


def answered(
    network: nn.Module, split: str, seed: int, repeats: int
) -> tuple[list[str], Tensor, language.Generated]:
    """Answers to every prompt of a split, several to each: (prompts, their tokens, answers)."""
    asked = [prompt for prompt in corpus.prompts(split) for _ in range(repeats)]
    tokens = prompt_tokens(asked, WORDS)
    drawn = language.generate(
        network, tokens, max_new_tokens=CONTEXT - tokens.shape[1], end=END,  # type: ignore[arg-type]
        generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip
    return asked, tokens, drawn


def texts(drawn: language.Generated) -> list[str]:
    return [WORDS.decode(row[mask]) for row, mask in zip(drawn.tokens, drawn.mask)]


@torch.no_grad()
def log_probs(network: nn.Module, prompts: Tensor, answers: Tensor) -> Tensor:
    """Of the next token at each place of the answers, [B, T, V]."""
    logits = network(torch.cat((prompts, answers), 1)[:, :-1])
    return logits[:, prompts.shape[1] - 1 :].log_softmax(-1)


def measured(
    network: nn.Module, teacher: nn.Module, split: str, seed: int, *, detail: bool = False
) -> dict[str, float]:
    """What is said of a student; with `detail` also its reliability and exposure bias.

    "valid": percent of its answers; "Rouge-L": with the nearest of eight valid answers, x 100;
    "reverse KL", "forward KL": of whole answers in nats; "ECE": of the tokens of unseen valid
    answers, x 100; "distinct-4": percent; "length": tokens, the end included.
    """
    repeats = MANY if detail else FEW
    asked, prompts, drawn = answered(network, split, seed, repeats)
    found = texts(drawn)
    references = {prompt: corpus.answers(prompt, 8, seed=7) for prompt in set(asked)}
    scores = [metrics.rouge_l(text, references[prompt]) for prompt, text in zip(asked, found)]
    _, _, told = answered(teacher, split, seed + 1, repeats)
    p, q = (log_probs(one, prompts, drawn.tokens) for one in (teacher, network))
    p_told, q_told = (log_probs(one, prompts, told.tokens) for one in (teacher, network))
    data = batch(corpus.examples(split, 500, seed=8), WORDS, CONTEXT)
    with torch.no_grad():
        logits = network(data.tokens)
    table = {
        "valid": metrics.validity(asked, found),
        "Rouge-L": 100 * sum(scores) / len(scores),
        "reverse KL": metrics.sampled_kl(q, p, drawn.mask, estimator="full").value,
        "forward KL": metrics.sampled_kl(p_told, q_told, told.mask, estimator="full").value,
        "ECE": 100 * metrics.calibration_error(logits, data.targets, data.mask, BINS),
        "distinct-4": metrics.distinct(found, 4) if any(t.count(" ") > 2 for t in found) else 0.0,
        "length": drawn.mask.sum().item() / len(found),
    }
    if detail and network is not teacher:
        own, theirs = ((x.exp() * (x - y)).sum(-1) for x, y in ((p, q), (p_told, q_told)))
        excess = metrics.excess_error(own, theirs, drawn.mask, told.mask, ended="skip")
        table |= {f"excess error at {n}": excess[n - 1].item() for n in LENGTHS if n <= len(excess)}
        for number, one in enumerate(metrics.reliability(logits, data.targets, data.mask, BINS)):
            if one.size:
                table |= {f"bin {number} {key}": getattr(one, key) for key in
                          ("size", "confidence", "accuracy")}  # fmt: skip
    return table


def each(
    methods: Mapping[str, Mapping[str, Any]], teacher: nn.Module, seed: int, *, count: int = PAIRS,
    split: str = "test", label: str = "{}", detail: bool = False,
) -> dict[str, dict[str, float]]:  # fmt: skip
    """{label of a method: what is measured} of one seed, the start included."""
    start = started(count, seed)
    look = partial(measured, teacher=teacher, split=split, seed=seed, detail=detail)
    found = {label.format("start"): look(start)}
    for name, own in methods.items():
        student, seconds = taught(start, teacher, count, seed, **own)
        found[label.format(name)] = look(student) | {"seconds": seconds}
    return found


def tries(name: str) -> dict[float, float]:
    """{learning rate: percent of valid answers to validation prompts} of all tries of a method."""
    recorded = read("minillm")
    found: dict[float, float] = {}
    for part, values in {"learning rate": RATES, "higher rates": HIGHER}.items():
        if part not in recorded:
            command = f"python -m kdlib record minillm {part!r}"
            raise ValueError(f"rates come from part {part!r}, which is not recorded: run {command}")
        runs = recorded[part].runs
        found |= {lr: float(runs.values(f"{name} | {lr:g}", "valid").mean()) for lr in values}
    return found


def best(name: str) -> float:
    """The learning rate of a method: the highest share of valid answers on validation prompts."""
    tried = tries(name)
    return max(tried, key=lambda lr: tried[lr])


def chosen(methods: Mapping[str, Mapping[str, Any]], like: str = "") -> dict[str, dict[str, Any]]:
    """Methods with their learning rates, or all with that of the method `like`."""
    return {
        name: {**own, **at_rate(best(like or SAME.get(name, name)))}
        for name, own in methods.items()
    }


# The parts


def rates(seed: int, teacher: nn.Module, *, values: tuple[float, ...]) -> dict[str, Any]:
    every = METHODS | {name: own for name, own in CELLS.items() if name not in SAME}
    tried = {
        f"{name} | {lr:g}": {**own, **at_rate(lr)} for name, own in every.items() for lr in values
    }
    return each(tried, teacher, seed, split="validation")


def begun(seed: int, teacher: nn.Module) -> dict[str, dict[str, float]]:
    found, held = {}, batch(corpus.examples("validation", 500, seed=8), WORDS, CONTEXT)
    for steps in (125, 250, 500, 1000):
        start = started(PAIRS, seed, steps=steps)
        row = measured(start, teacher, "validation", seed)
        row["nll"] = language.training.likelihood(start, held)
        found[f"{steps}"] = row
    return found


def start(**keep: Any) -> Runs:
    """For how many updates should a student be fine-tuned before the methods?"""
    return over_seeds(begun, TRIALS, experiment="start", teacher=teacher(), **keep)


def learning_rate(**keep: Any) -> Runs:
    """Which learning rate suits each method?"""
    function = partial(rates, values=RATES)
    return over_seeds(function, TRIALS, experiment="learning rate", teacher=teacher(), **keep)


def higher_rates(**keep: Any) -> Runs:
    """Is a still higher learning rate better?"""
    function = partial(rates, values=HIGHER)
    return over_seeds(function, TRIALS, experiment="higher rates", teacher=teacher(), **keep)


def crossed(seed: int, teacher: nn.Module, *, cells: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"teacher": measured(teacher, teacher, "test", seed)}
    for count in (PAIRS, 10 * PAIRS):
        found |= each(cells, teacher, seed, count=count, label=f"{count} | {{}}")
    return found


def factorial(**keep: Any) -> Runs:
    """Does the direction of the divergence help, or the source of the prefixes?"""
    function = partial(crossed, cells=chosen(CELLS))
    return over_seeds(function, SEEDS, experiment="factorial", teacher=teacher(), **keep)


def factorial_again(**keep: Any) -> Runs:
    """The same with other seeds: is the order the same?"""
    function, others = partial(crossed, cells=chosen(CELLS)), range(200, 206)
    return over_seeds(function, others, experiment="factorial again", teacher=teacher(), **keep)


def compared(seed: int, teacher: nn.Module, *, methods: Mapping[str, Any]) -> dict[str, Any]:
    found = {"teacher": measured(teacher, teacher, "test", seed, detail=True)}
    return found | each(methods, teacher, seed, detail=True)


def table(**keep: Any) -> Runs:
    """What does each method gain, and what do MiniLLM's stabilisers prevent?"""
    ablated = {f"MiniLLM, {name}": METHODS["MiniLLM"] | own for name, own in OFF.items()}
    methods = chosen(METHODS) | chosen(ablated, like="MiniLLM")
    function = partial(compared, methods=methods)
    return over_seeds(function, SEEDS, experiment="table", teacher=teacher(), **keep)


def sized(seed: int, teacher: nn.Module, *, methods: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for count in SIZES:
        found |= each(methods, teacher, seed, count=count, label=f"{{}} | {count}")
    return found


def data_size(**keep: Any) -> Runs:
    """With how many pairs does which method win? (The table has the row of 400.)"""
    names = ("SFT", "KD", "MiniLLM", "GKD")
    function = partial(sized, methods=chosen({name: METHODS[name] for name in names}))
    return over_seeds(function, SEEDS, experiment="data size", teacher=teacher(), **keep)


def scaled(
    seed: int, teacher: nn.Module, *, methods: Mapping[str, Any], size: str
) -> dict[str, Any]:
    label = f"{{}} | {size}"
    found = {label.format("teacher"): measured(teacher, teacher, "test", seed)}
    return found | each(methods, teacher, seed, label=label)


def teachers(**keep: Any) -> Runs:
    """Does a larger teacher make a better student? (The table has the one in between.)"""
    methods, found = chosen({name: METHODS[name] for name in ("SeqKD", "MiniLLM")}), Runs()
    for size in OTHERS:
        function = partial(scaled, methods=methods, size=size)
        experiment = f"teachers, {size}"
        found += over_seeds(function, SEEDS, experiment=experiment, teacher=teacher(size), **keep)
    return found


PARTS = (start, learning_rate, higher_rates, factorial, table, teachers, data_size, factorial_again)
