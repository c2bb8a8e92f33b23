"""Distillation of language models: divergences, objectives, sampling."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from kdlib.benchmarks import networks
from kdlib.benchmarks.clock import MIB, Called, Paced, beyond, in_turns, occupied
from kdlib.benchmarks.plan import Plan, machine
from kdlib.benchmarks.rows import Row
from kdlib.engine import loop, optimizers
from kdlib.language import GPT, divergence, generate, linear_divergence
from kdlib.language.objectives import Tally
from kdlib.language.tokenizers import Batch
from kdlib.language.training import METHODS, Setup

KINDS = ("forward", "reverse", "jsd")


# The divergence with the output layer


def fused(plan: Plan) -> Iterator[Row]:
    """`linear_divergence` over `divergence` of all logits at once: time and memory."""
    places = plan.sized(4096, 32) if plan.device == "cuda" else plan.sized(256, 32)
    vocabulary, widths = plan.sized(50_257, 97), (768, 1024)
    types = (torch.float32, torch.bfloat16) if plan.device == "cuda" else (torch.float32,)
    for dtype in types:
        tensors = _layers(places, vocabulary, widths, dtype, plan.where)
        for kind in KINDS:
            name = str(dtype).removeprefix("torch.")
            what = f"{kind}, {places} places, vocabulary {vocabulary}, {name}: fused / naive"
            yield from _both_ways(plan, what, kind, tensors)


def _layers(
    places: int, vocabulary: int, widths: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> list[Tensor]:
    """Hidden values [8, T, d] and output weights [V, d] of student and teacher."""
    made = []
    for width in widths:
        made.append(torch.randn(8, places // 8, width, device=device, dtype=dtype))
        made.append(torch.randn(vocabulary, width, device=device, dtype=dtype) / width**0.5)
    for own in made[:2]:
        own.requires_grad_()
    return made


def _naive_step(kind: str, tensors: list[Tensor]) -> None:
    hidden, weight, lesson, layer = tensors
    with torch.no_grad():
        wanted = lesson @ layer.T
    torch.autograd.grad(divergence(hidden @ weight.T, wanted, kind), (hidden, weight))


def _fused_step(kind: str, tensors: list[Tensor]) -> None:
    hidden, weight, lesson, layer = tensors
    value = linear_divergence(hidden, weight, (lesson, layer), kind)
    torch.autograd.grad(value, (hidden, weight))


def _both_ways(plan: Plan, what: str, kind: str, tensors: list[Tensor]) -> Iterator[Row]:
    where = machine(plan.device)
    try:
        ways = [functools.partial(step, kind, tensors) for step in (_fused_step, _naive_step)]
        one, other = (Called(way, plan.where) for way in ways)
        ratio = in_turns(one, other, steps=plan.sized(3, 1), rounds=plan.rounds(5))
        values = {"fused ms": 1e3 * ratio.first, "naive ms": 1e3 * ratio.second}
        yield Row.measured("fused", what, ratio, values=values, device=where)
        if plan.device == "cuda":
            peaks = [_peak(way) for way in ways]
            values = {"fused MiB": peaks[0], "naive MiB": peaks[1]}
            yield Row(
                "fused", what, "memory", peaks[0] / peaks[1], rounds=1, values=values, device=where
            )
    except Exception as error:
        torch.cuda.empty_cache()
        yield Row("fused", what, device=where, unmeasured=f"{type(error).__name__}: {error}"[:300])


def _peak(step: Callable[[], Any]) -> float:
    """MiB on the GPU beyond what lies there."""
    before = occupied(torch.device("cuda"))
    torch.cuda.reset_peak_memory_stats()
    step()
    return (torch.cuda.max_memory_allocated() - before) / MIB


# Objectives


def objectives(plan: Plan) -> Iterator[Row]:
    """A step of each language objective over a step of supervised fine-tuning, same student."""
    for name, precision in {"bf16": "bf16", "float32": None}.items():
        before = occupied(plan.where)
        with _training(plan, "sft", precision) as plain:
            alone = beyond(plain, plan.where, before)
            for method in ("kd", "gkd", "minillm"):
                yield _objective(plan, method, name, precision, plain, alone)


def _objective(
    plan: Plan, method: str, name: str, precision: str | None, plain: Paced, alone: float
) -> Row:
    what = f"GPT-2 medium's size teaches small's, {name}: step of {method} / step of sft"
    row = Row("objectives", what, device=machine(plan.device))
    before = occupied(plan.where)
    try:
        with _training(plan, method, precision) as timed:
            ratio = in_turns(timed, plain, steps=plan.sized(4, 2), rounds=plan.rounds(5, 2))
            row.values = {"step ms": 1e3 * ratio.first, "sft ms": 1e3 * ratio.second}
            if plan.device == "cuda":
                row.values["peak MiB"] = beyond(timed, plan.where, before)
                row.values["sft peak MiB"] = alone
    except Exception as error:
        torch.cuda.empty_cache()
        row.unmeasured = f"{type(error).__name__}: {error}"[:300]
        return row
    row.take(ratio)
    return row


def _training(plan: Plan, method: str, precision: str | None) -> Paced:
    """Rows of 256 tokens, of which a quarter is drawn where the student writes."""
    student, teacher, vocabulary = networks.language(plan)
    rows, length, new = 8, plan.sized(256, 12), plan.sized(64, 4)
    stream = torch.Generator().manual_seed(0)
    text = torch.randint(2, vocabulary, (4 * rows, length + 1), generator=stream).to(plan.where)
    mask = torch.ones(4 * rows, length, dtype=torch.bool, device=plan.where)
    batch = Batch(text[:, :-1], text[:, 1:], mask)
    setup = Setup(
        student, None if method == "sft" else teacher, batch, text[:, : length - new],
        rows, new, 1, 0, 0, Tally(),
    )  # fmt: skip
    objective, batches = METHODS[method](setup)
    made = optimizers.create("adamw", objective.named_parameters(), lr=1e-4, weight_decay=0.01)
    run = functools.partial(_optimised, objective, batches, made, precision)
    return Paced(run, plan.where, warmup=2)


def _optimised(
    objective: nn.Module, batches: Any, made: Any, precision: str | None, schedule: Any
) -> None:
    loop.optimise(
        objective, batches, made, epochs=networks.MANY, steps=1000, schedule=schedule,
        precision=precision, clip=1.0, progress=False,
    )  # fmt: skip


# Sampling


class Uncached(nn.Module):
    """A GPT whose cache is the text: it reads all of it again for each token."""

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model, self.context = model, model.context

    def new_cache(self, batch: int, room: int) -> list[Tensor]:
        return []

    def forward(self, tokens: Tensor, *, cache: list[Tensor], padding: int | None = 0) -> Tensor:
        cache.append(tokens)
        return self.model.head(self.model.hidden(torch.cat(cache, 1), padding=0)[:, -1:])


def sampling(plan: Plan) -> Iterator[Row]:
    """Drawing answers with a cache of keys and values, over reading the text for each token."""
    if plan.device == "cuda":
        student, _, vocabulary = networks.language(plan)
        models, counts = {"GPT-2 small's size": student}, (8, 64)
    else:
        vocabulary, counts = 118, (8, 64)
        models = {"1 x 24": _gpt(24, 1), "2 x 64": _gpt(64, 2), "4 x 128": _gpt(128, 4)}
    new, prompt = plan.sized(96, 4), 16
    for rows in counts:
        stream = torch.Generator().manual_seed(0)
        read = torch.randint(2, vocabulary, (rows, prompt), generator=stream)
        lengths = torch.randint(4, prompt + 1, (rows, 1), generator=stream)
        read = read.where(torch.arange(prompt) >= prompt - lengths, 0).to(plan.where)
        for name, model in models.items():
            draw = functools.partial(generate, prompts=read, max_new_tokens=new, end=None)
            one, other = (
                Called(functools.partial(draw, form), plan.where)
                for form in (model, Uncached(model))
            )
            ratio = in_turns(other, one, steps=1, rounds=plan.rounds(5))
            what = f"GPT {name}, {rows} rows, {new} tokens: cached / uncached sampling"
            values = {"tokens/s": rows * new / ratio.second}
            row = Row.measured("sampling", what, ratio, unit="speed", values=values)
            row.device = machine(plan.device)
            yield row


def _gpt(dim: int, depth: int) -> GPT:
    return GPT(118, 128, dim=dim, depth=depth, heads=4)
