"""Sampling with a cache of keys and values, and without: python tests/benchmarks/bench_sampling.py

96 new tokens after prompts of 4 to 16, padded on the left; one thread. The same answers both ways,
in turns; the best of the rounds. Without a cache the network reads the whole text again for each
token, and applies its output layer to the last place only.
"""

from __future__ import annotations

import time
from functools import partial

import torch
from torch import Tensor, nn

from kdlib.language import GPT, Generated, generate
from kdlib.training import build

PROMPT, NEW, VOCABULARY, PAD = 16, 96, 118, 0


class Uncached(nn.Module):
    """A GPT whose cache is the text."""

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model, self.context = model, model.context

    def new_cache(self, batch: int, room: int) -> list[Tensor]:
        return []

    def forward(self, tokens: Tensor, *, cache: list[Tensor], padding: int | None = 0) -> Tensor:
        cache.append(tokens)
        return self.model.head(self.model.hidden(torch.cat(cache, 1), padding=PAD)[:, -1:])


def prompts(rows: int) -> Tensor:
    stream = torch.Generator().manual_seed(0)
    texts = torch.randint(2, VOCABULARY, (rows, PROMPT), generator=stream)
    lengths = torch.randint(4, PROMPT + 1, (rows, 1), generator=stream)
    return texts.where(torch.arange(PROMPT) >= PROMPT - lengths, PAD)


def seconds(model: nn.Module, read: Tensor, **options) -> tuple[float, Generated]:
    stream, start = torch.Generator().manual_seed(1), time.perf_counter()
    found = generate(model, read, max_new_tokens=NEW, end=None, generator=stream, **options)
    return time.perf_counter() - start, found


def compare(name: str, rows: int, model: GPT, teacher: GPT | None = None, rounds: int = 3) -> None:
    """Prints the best time of each form, their ratio, and how many tokens both have in common."""
    read = prompts(rows)
    mixed = partial(seconds, read=read, mix=0.2 if teacher else 0.0)
    plain = None if teacher is None else Uncached(teacher)
    runs = [
        (mixed(model, teacher=teacher), mixed(Uncached(model), teacher=plain))
        for _ in range(rounds)
    ]
    (fast, ours), (slow, theirs) = (min(form, key=lambda run: run[0]) for form in zip(*runs))
    same = (ours.tokens == theirs.tokens).float().mean()
    print(
        f"{name:36} {rows:3} rows   without {1e3 * slow:8.1f} ms   with {1e3 * fast:7.1f} ms   "
        f"{slow / fast:5.1f} times as fast   {100 * same:.2f} % the same tokens"
    )


def main() -> None:
    torch.set_num_threads(1)
    sizes = {"student, 1 x 24": (24, 1), "teacher, 2 x 64": (64, 2), "larger, 4 x 128": (128, 4)}
    networks = {
        name: build(partial(GPT, VOCABULARY, 128, dim=dim, depth=depth, heads=4), 0)
        for name, (dim, depth) in sizes.items()
    }
    for rows in (8, 64):
        for name, network in networks.items():
            compare(name, rows, network)
        student, teacher, _ = networks.values()
        compare("student mixed with the teacher", rows, student, teacher)


if __name__ == "__main__":
    main()
