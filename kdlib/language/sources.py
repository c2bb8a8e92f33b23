"""Where batches come from.

A source of batches is a function (epoch, generator) -> iterator, as `engine.loop` takes it. All
that it draws comes from that generator, so a training that goes on from its checkpoint sees the
same batches, and sources have no state of their own.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlib import inputs
from kdlib.engine import loop
from kdlib.language import tokenizers
from kdlib.language.minillm import MiniLLM
from kdlib.language.objectives import Answers, Tally, joined
from kdlib.language.sampling import LanguageModel, generate
from kdlib.language.tokenizers import Batch

ROWS = 250  # answers that are drawn or measured at a time


def from_data(data: Batch, batch_size: int) -> loop.Batches:
    """Rows of the data, shuffled anew for each pass: for `Supervised` and word-level KD."""

    def batches(epoch: int, generator: torch.Generator) -> Iterator[Batch]:
        for rows in _rows(len(data.tokens), batch_size, generator):
            yield data.take(rows)

    return batches


def from_model(
    model: nn.Module,
    prompts: Tensor,
    batch_size: int,
    *,
    max_new_tokens: int,
    end: int | None,
    pad: int = tokenizers.PAD,
    inner: int = 1,
    tally: Tally | None = None,
) -> loop.Batches:
    """Fresh answers of a network to random prompts: the student's own (on-policy), or a teacher's.

    Args:
        model: it draws with the weights of the moment, at temperature 1.
        prompts: int64 [n, P], padded on the left, on the network's device.
        max_new_tokens, end, pad: as in `generate`.
        inner: updates on each batch of answers.
        tally: takes the means of "length" (tokens of an answer) and "tokens_per_second" (drawn).
    """

    def batches(epoch: int, generator: torch.Generator) -> Iterator[Answers]:
        for rows in _rows(len(prompts), batch_size, generator):
            asked = _trimmed(prompts[rows], pad)
            with _timed(tally) as timed:
                drawn = generate(
                    cast(LanguageModel, model), asked, max_new_tokens=max_new_tokens, end=end,
                    pad=pad, generator=generator,
                )  # fmt: skip
                timed.append(drawn.mask)
            yield from itertools.repeat(joined(asked, drawn.tokens, drawn.mask), inner)

    return batches


def mixed(first: loop.Batches, second: loop.Batches, share: float) -> loop.Batches:
    """Each batch from the first source with probability `share`, else from the second.

    GKD's mixture of on-policy batches and data, λ = share (Agarwal et al. 2024, Algorithm 1).
    """

    def batches(epoch: int, generator: torch.Generator) -> Iterator[Any]:
        one, other = iter(first(epoch, generator)), iter(second(epoch, generator))
        while True:
            yield next(one if torch.rand((), generator=generator).item() < share else other)

    return batches


def rollouts(
    objective: MiniLLM,
    prompts: Tensor,
    batch_size: int,
    *,
    max_new_tokens: int,
    end: int | None,
    text: Batch | None = None,
    tally: Tally | None = None,
) -> loop.Batches:
    """Roll-outs of `MiniLLM` for random prompts, each for `objective.inner` updates in a row.

    Args:
        prompts, max_new_tokens, end, tally: as in `from_model`.
        text: data for the language-modelling term; each update gets other rows, `batch_size` of
            them. None where there is no such term.
    """

    def batches(epoch: int, generator: torch.Generator) -> Iterator[Any]:
        texts = None
        if text is not None and objective.lm:
            texts = iter(from_data(text, batch_size)(epoch, generator))
        for rows in _rows(len(prompts), batch_size, generator):
            asked = _trimmed(prompts[rows], objective.padding)
            with _timed(tally) as timed:
                found = objective.roll_out(
                    asked, max_new_tokens=max_new_tokens, end=end, generator=generator
                )
                timed.append(found.mask)
            for _ in range(objective.inner):
                yield found if texts is None else found._replace(text=next(texts))

    return batches


def answered_once(
    model: nn.Module,
    prompts: Tensor,
    *,
    max_new_tokens: int,
    end: int | None,
    pad: int = tokenizers.PAD,
    seed: int = 0,
) -> Batch:
    """One answer of a network to each of the prompts [n, P], as data: for sequence-level KD.

    Answers are drawn at temperature 1; those that do not end in max_new_tokens have no end token.
    """
    stream = torch.Generator().manual_seed(inputs.seed("seed", seed))
    parts = [
        generate(
            cast(LanguageModel, model), some, max_new_tokens=max_new_tokens, end=end, pad=pad,
            generator=stream,
        )
        for some in prompts.split(ROWS)
    ]  # fmt: skip
    width = max(part.tokens.shape[1] for part in parts)
    tokens, mask = (
        torch.cat([F.pad(x, (0, width - x.shape[1]), value=fill) for x in column])
        for column, fill in (
            ([part.tokens for part in parts], pad),
            ([part.mask for part in parts], False),
        )
    )
    return Batch(*joined(prompts, tokens, mask))


def _rows(count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Endless rows of a list, which is shuffled for each pass over it."""
    order = torch.empty(0, dtype=torch.int64)
    while True:
        while len(order) < size:
            order = torch.cat((order, torch.randperm(count, generator=generator)))
        yield order[:size]
        order = order[size:]


def _trimmed(prompts: Tensor, pad: int) -> Tensor:
    """Without the columns that hold nothing but padding."""
    return prompts[:, int((prompts == pad).cumprod(1).sum(1).min()) :]


@contextmanager
def _timed(tally: Tally | None) -> Iterator[list[Tensor]]:
    """Takes the mask [B, T] of what is drawn inside of the block."""
    masks: list[Tensor] = []
    start = time.perf_counter()
    yield masks
    if tally is not None:
        drawn = int(masks[0].sum())  # an accelerator has finished then
        tally.add("length", drawn, len(masks[0]))
        tally.add("tokens_per_second", drawn, time.perf_counter() - start)
