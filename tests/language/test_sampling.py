"""Sampling: the distribution that is drawn from, the answers, what rows owe each other: nothing."""

from __future__ import annotations

import json
import math
from pathlib import Path

import bad
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from kdlib.benchmarks.text import Uncached
from kdlib.language import GPT, distribution, generate, mixture, sampling
from kdlib.training import build

FILE = Path(__file__).parents[1] / "golden" / "divergences.json"
GOLDEN = json.loads(FILE.read_text("utf-8"))["mixture"]
END, PAD = 1, 0


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def uniform(*shape: int, seed: int = 0) -> Tensor:
    stream = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=stream, dtype=torch.float64)


class Table(nn.Module):
    """The smallest language model: the logits of a token depend on the one before, [V, V]."""

    context = 99

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def new_cache(self, batch: int, room: int) -> None:
        return None

    def forward(self, tokens: Tensor, *, cache: None = None, padding: int | None = 0) -> Tensor:
        return self.logits[tokens]


def small(seed: int, **sizes: int) -> GPT:
    sizes = {"vocabulary": 11, "context": 24, "dim": 16, "depth": 2, "heads": 2} | sizes
    model = build(lambda: GPT(**sizes), seed)
    with torch.no_grad():
        for parameter in model.blocks.parameters():
            parameter.mul_(3)  # or each token would be followed by itself, the weights being tied
    return model


STUDENT, TEACHER = small(0), small(1, dim=24)
TABLE_S, TABLE_T = Table(1.5 * randn(5, 5)), Table(1.5 * randn(5, 5, seed=1))
PROMPTS = torch.tensor([[0, 0, 0, 5], [7, 2, 10, 3], [0, 4, 4, 6], [0, 0, 9, 8], [0, 1, 0, 2]])


# The distribution


def test_mixture_of_the_official_code():
    sides = []
    for name in ("student", "teacher"):
        recipe = GOLDEN["inputs"][name]
        array = np.random.default_rng(recipe["seed"]).standard_normal(recipe["shape"])
        sides.append(distribution(torch.tensor(array * recipe["scale"]).float()))
    wanted = torch.tensor(GOLDEN["expected"])
    assert_close(mixture(*sides, GOLDEN["mix"]), wanted, rtol=1e-5, atol=0)
    assert not torch.allclose(mixture(*sides[::-1], GOLDEN["mix"]), wanted, rtol=0.1)
    assert torch.equal(mixture(*sides, 0), sides[0]) and torch.equal(mixture(*sides, 1), sides[1])
    assert (sides[0] / mixture(*sides, 0.2)).max() <= 1 / 0.8 + 1e-6


P = torch.tensor([0.15, 0.4, 0.25, 0.2])
CUTS = [
    ({}, [0.15, 0.4, 0.25, 0.2]),
    ({"top_k": 2}, [0, 0.4, 0.25, 0]),
    ({"top_k": 9}, [0.15, 0.4, 0.25, 0.2]),
    ({"top_p": 0.39}, [0, 0.4, 0, 0]),
    ({"top_p": 0.41}, [0, 0.4, 0.25, 0]),
    ({"top_p": 0.8}, [0, 0.4, 0.25, 0.2]),
    ({"top_k": 3, "top_p": 0.7}, [0, 0.4, 0.25, 0]),  # of 0.85 that are left, 0.65 is enough
    ({"temperature": 0}, [0, 1, 0, 0]),
    ({"temperature": 0.5, "top_p": 0.6}, [0, 0.16, 0.0625, 0]),
]


@pytest.mark.parametrize("options, kept", CUTS, ids=[str(options) for options, _ in CUTS])
def test_what_is_left_of_a_distribution(options: dict, kept: list[float]):
    wanted = torch.tensor(kept) / sum(kept)
    for logits in (P.log(), P.log() + 50, torch.stack([P.log(), P.flip(0).log()])):
        found = distribution(logits, **options)
        assert_close(found if found.ndim == 1 else found[0], wanted)
    assert_close(found[1], wanted.flip(0))


def test_ties_and_precision():
    even = torch.zeros(4)
    assert distribution(even, temperature=0).tolist() == [1, 0, 0, 0]
    assert distribution(even, top_k=2).tolist() == [0.25] * 4
    assert distribution(even, top_p=0.5).tolist() == [0.5, 0.5, 0, 0]
    assert distribution(even.bfloat16()).dtype == torch.float32
    assert distribution(even.double(), temperature=0).dtype == torch.float64


# The answers


@pytest.mark.parametrize("mix", [0.0, 0.2, 1.0])
def test_frequencies(mix: float):
    """Second tokens of 20,000 answers against the exact chain of two draws."""
    prompts = torch.full((20_000, 1), 3)
    found = generate(
        TABLE_S, prompts, max_new_tokens=2, end=None, teacher=TABLE_T, mix=mix,
        uniforms=uniform(20_000, 2),
    )  # fmt: skip
    q, p = TABLE_S.logits.softmax(-1), TABLE_T.logits.softmax(-1)
    chain = (mix * p + (1 - mix) * q).detach()
    wanted = chain[3] @ chain
    share = torch.bincount(found.tokens[:, 1], minlength=5) / 20_000
    assert ((share - wanted).abs() < 4 * (wanted * (1 - wanted) / 20_000).sqrt()).all()


def test_log_probabilities():
    options = {"temperature": 0.7, "top_p": 0.9, "teacher": TABLE_T, "mix": 0.3}
    prompts = torch.tensor([[2], [3], [4]])
    found = generate(TABLE_S, prompts, max_new_tokens=6, end=END, uniforms=uniform(3, 6), **options)
    before = torch.cat([prompts, found.tokens[:, :-1]], 1)
    sides = []
    for table, log_probs in zip((TABLE_S, TABLE_T), found[3:]):
        z = table.logits[before].detach()
        own = (z / 0.7).log_softmax(-1).gather(2, found.tokens[..., None])[..., 0]
        assert_close(log_probs, own * found.mask)
        sides.append(distribution(z, temperature=0.7, top_p=0.9))
    drawn = mixture(*sides, 0.3).gather(2, found.tokens[..., None])[..., 0]
    assert_close(found.log_probs.exp(), drawn.where(found.mask, torch.tensor(1.0)))


def test_answers_stop_after_their_end():
    found = generate(STUDENT, PROMPTS, max_new_tokens=16, end=END, uniforms=uniform(5, 16))
    free = generate(STUDENT, PROMPTS, max_new_tokens=16, end=None, uniforms=uniform(5, 16))
    assert free.tokens.shape == (5, 16) and free.mask.all() and free.teacher_log_probs is None
    for row, text in enumerate(free.tokens.tolist()):
        length = text.index(END) + 1 if END in text else 16
        assert found.lengths[row] == length
        assert found.tokens[row, :length].tolist() == text[:length]
        assert (found.tokens[row, length:] == PAD).all()
        assert (found.log_probs[row, length:] == 0).all()
    assert found.tokens.shape[1] == found.lengths.max() and len(set(found.lengths.tolist())) > 2


@pytest.mark.parametrize("options", [{}, {"teacher": TEACHER, "mix": 0.4}, {"top_k": 3}])
def test_rows_do_not_touch_each_other(options: dict):
    """A batch is its rows, each alone and without its padding."""
    numbers = uniform(5, 12)
    options = {"max_new_tokens": 12, "end": END, **options}
    together = generate(STUDENT, PROMPTS, uniforms=numbers, **options)
    for row, prompt in enumerate(PROMPTS):
        start = int((prompt != PAD).int().argmax())
        alone = generate(STUDENT, prompt[None, start:], uniforms=numbers[row : row + 1], **options)
        length = together.lengths[row]
        assert alone.lengths[0] == length
        assert torch.equal(alone.tokens[0, :length], together.tokens[row, :length])
        assert_close(alone.log_probs[0], together.log_probs[row, :length])


def test_neighbours_do_not_change_the_numbers():
    """With a generator too: row 0 says the same beside others that stop early or late."""
    said = []
    for others in (PROMPTS[1:], PROMPTS[1:].flip(0), PROMPTS[:1].expand(4, -1)):
        stream, batch = torch.Generator().manual_seed(3), torch.cat([PROMPTS[:1], others])
        found = generate(STUDENT, batch, max_new_tokens=12, end=END, generator=stream)
        said.append((found.tokens[0, : found.lengths[0]].tolist(), torch.rand(1, generator=stream)))
    assert said[0] == said[1] == said[2]


@pytest.mark.parametrize("options", [{}, {"teacher": TEACHER, "mix": 0.2}, {"temperature": 0}])
def test_cache_changes_nothing(options: dict):
    options = {"max_new_tokens": 16, "end": END, "uniforms": uniform(5, 16), **options}
    found = generate(STUDENT, PROMPTS, **options)
    if "teacher" in options:
        options["teacher"] = Uncached(TEACHER)
    wanted = generate(Uncached(STUDENT), PROMPTS, **options)
    assert torch.equal(found.tokens, wanted.tokens) and torch.equal(found.mask, wanted.mask)
    assert_close(found[2:], wanted[2:], rtol=0, atol=1e-5)


def test_greedy_takes_the_best_token():
    found = generate(STUDENT, PROMPTS, max_new_tokens=5, end=None, temperature=0)
    logits = STUDENT(torch.cat([PROMPTS, found.tokens[:, :-1]], 1))[:, 3:].detach()
    best, chosen = logits.log_softmax(-1).max(-1)
    assert torch.equal(found.tokens, chosen)
    assert_close(found.student_log_probs, best, rtol=0, atol=1e-5)
    assert (found.log_probs == 0).all()


def test_a_seed_gives_the_answers():
    def answers(seed: int | None) -> list:
        stream = None if seed is None else torch.Generator().manual_seed(seed)
        found = generate(STUDENT, PROMPTS, max_new_tokens=9, end=END, generator=stream)
        return found.tokens.tolist()

    assert answers(0) == answers(0) != answers(1)
    torch.manual_seed(5)
    first = answers(None)
    torch.manual_seed(5)
    assert answers(None) == first


def test_the_ends_of_the_unit_interval():
    """No number draws a token without probability, be it 0 or the last below 1."""
    table = Table(torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]]).expand(4, 4).clone())
    numbers = torch.tensor([[0.0], [math.nextafter(1, 0)], [0.4999], [0.5]], dtype=torch.float64)
    prompts = torch.full((4, 1), 1)
    found = generate(table, prompts, max_new_tokens=1, end=None, uniforms=numbers)
    assert found.tokens[:, 0].tolist() == [1, 2, 1, 2]


def test_the_rarest_token_can_be_drawn():
    """Single precision would round 1 + 1e-9, the sum, to 1: the last token would never come."""
    table = Table(torch.tensor([[0.0, math.log(1e-9)]]).expand(2, 2).clone())
    numbers = torch.tensor([[1 - 5e-10], [1 - 5e-9]], dtype=torch.float64)
    prompts = torch.ones(2, 1).long()
    found = generate(table, prompts, max_new_tokens=1, end=None, uniforms=numbers)
    assert found.tokens[:, 0].tolist() == [1, 0]
    close = torch.tensor([math.log(1e-9), 0.0])
    assert_close(found.log_probs[:, 0], close, rtol=1e-6, atol=1e-6)


def test_only_the_first_call_has_padding():
    calls = []

    class Spy(Table):
        def forward(self, tokens: Tensor, *, cache=None, padding: int | None = 0) -> Tensor:
            calls.append((list(tokens.shape), padding))
            return super().forward(tokens)

    generate(Spy(torch.zeros(5, 5)), torch.full((2, 3), 4), max_new_tokens=3, end=None, pad=2)
    assert calls == [([2, 3], 2), ([2, 1], None), ([2, 1], None)]


def test_leaves_the_networks_as_they_were():
    STUDENT.train(), TEACHER.blocks[0].train()
    modes = [m.training for net in (STUDENT, TEACHER) for m in net.modules()]
    options = {"teacher": TEACHER, "mix": 0.5, "uniforms": uniform(5, 3)}
    found = generate(STUDENT, PROMPTS, max_new_tokens=3, end=END, **options)
    assert modes == [m.training for net in (STUDENT, TEACHER) for m in net.modules()]
    assert not any(x.requires_grad for x in found)
    logits = STUDENT(torch.cat([PROMPTS, found.tokens], 1))
    logits.sum().backward()  # the answers may be trained on
    STUDENT.zero_grad(set_to_none=True)


def test_what_a_network_returns_is_checked():
    options = {"prompts": torch.ones(2, 1).long(), "max_new_tokens": 2, "end": None}
    with pytest.raises(ValueError, match="model must return numbers as logits, got NaN"):
        generate(Table(torch.full((5, 5), math.nan)), **options)
    with pytest.raises(TypeError, match=r"model must return logits \[B, T, V\] for 2 rows"):
        generate(Table(torch.zeros(5)), **options)


# Bad arguments

NETWORKS = (None, "net", nn.Linear(2, 2), lambda tokens: tokens)
GOOD = {"model": STUDENT, "prompts": PROMPTS, "max_new_tokens": 2, "end": END}
TABLE: bad.Table = {
    "distribution": (
        {"logits": P.log()},
        {
            "logits": (None, [0.5], torch.tensor([1, 2]), P[:0]),
            "temperature": (*bad.NUMBERS, -0.1),
            "top_k": (*[v for v in bad.WHOLES if v is not None], 0),
            "top_p": (*[v for v in bad.NUMBERS if v is not None], 0, 1.1),
        },
    ),
    "mixture": (
        {"student": P, "teacher": P, "mix": 0.2},
        {"mix": (*bad.NUMBERS, -0.1, 1.1), "student": (None, [1.0]), "teacher": (None, P[:3])},
    ),
    "generate": (
        GOOD | {"teacher": TEACHER},
        {
            "model": (*NETWORKS, small(0, vocabulary=12)),
            "prompts": (None, [[1]], PROMPTS[0], PROMPTS.float(), -PROMPTS, PROMPTS.flip(1)),
            "max_new_tokens": (*bad.WHOLES, 0, 21),
            "end": (*[v for v in bad.WHOLES if v is not None], 11),
            "pad": (*bad.WHOLES, 2),
            "temperature": (*bad.NUMBERS, -1),
            "top_k": (0, 1.5),
            "top_p": (0, 1.5),
            "teacher": (*NETWORKS[1:], small(0, vocabulary=12), small(0, context=5)),
            "mix": (*bad.NUMBERS, -0.1, 1.1),
            "generator": (0, "cpu"),
            "uniforms": (1, [[0.5]], uniform(5, 3), uniform(4, 2), uniform(5, 2) + 1),
        },
    ),
}


@pytest.mark.parametrize("name, parameter", bad.checks(TABLE))
def test_bad_argument(name: str, parameter: str):
    bad.refuses(sampling, TABLE, name, parameter)


def test_every_parameter_was_thought_of():
    assert bad.missing(sampling, TABLE, {"LanguageModel": "a protocol"}) == []


def test_what_does_not_go_together():
    with pytest.raises(ValueError, match=r"teacher must be a network where mix is 0.2, got None"):
        generate(**GOOD, mix=0.2)
    both = {"generator": torch.Generator(), "uniforms": uniform(5, 2)}
    with pytest.raises(ValueError, match="uniforms must be None beside a generator, got both"):
        generate(**GOOD, **both)
