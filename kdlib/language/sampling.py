"""Answers drawn from a language model, from its teacher, or from a mixture of both.

One uniform number a token decides (the inverse of the cumulative distribution). It belongs to a row
and a place, so what a row says depends on its own numbers only: not on the rows beside it, and not
on how long they go on.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from kdlib import inputs
from kdlib.stages import evaluating


@runtime_checkable
class LanguageModel(Protocol):
    """What `generate` asks of a network (an nn.Module); `GPT` is one.

    `context` is the longest sequence that it reads. `new_cache(batch, room)` returns an object,
    the network's own, that remembers up to `room` tokens of each of `batch` rows. A call reads
    tokens [B, T], int64, as the continuation of those in the cache, adds them to it, and returns
    logits [B, T, V] of the token that follows each of them; only those at the last place are read,
    so [B, 1, V] will do. Only the first call of a cache may have padding, on the left of a row: it
    must not change what the network says about that row. No gradient is asked for.
    """

    context: int

    def new_cache(self, batch: int, room: int) -> Any: ...

    def __call__(self, tokens: Tensor, *, cache: Any = None, padding: int | None = 0) -> Tensor: ...


class Generated(NamedTuple):
    """Answers to B prompts, cut after the longest, [B, N] with N <= max_new_tokens.

    The log-probabilities are those of the drawn tokens, 0 where the mask is False.
    """

    tokens: Tensor  # int64; the padding where the mask is False
    mask: Tensor  # bool: True for each drawn token, the end token included
    log_probs: Tensor  # of the distribution that was drawn from: temperature, filters and mixture
    student_log_probs: Tensor  # of the model itself: temperature, no filter, no mixture
    teacher_log_probs: Tensor | None  # of the teacher itself, None without one

    @property
    def lengths(self) -> Tensor:
        """Drawn tokens of each answer, the end token included: int64 [B]."""
        return self.mask.sum(1)


def distribution(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Tensor:
    """Probabilities [..., V] to draw from: softmax(z / T), cut to the likely tokens, renormalised.

    Args:
        logits: [..., V], finite.
        temperature: at least 0; 0 leaves the most likely token alone, the first of equals.
        top_k: keep the k most likely tokens, and those as likely as the last of them.
        top_p: in (0, 1]: of those, keep the fewest whose probabilities reach top_p (nucleus
            sampling, Holtzman et al. 2020).

    Raises:
        ValueError, TypeError: an argument out of range or of another type.
    """
    logits = inputs.tensor("logits", logits, "[n, ...]", finite=False)
    if inputs.number("temperature", temperature, low=0) == 0:
        best = logits.argmax(-1, keepdim=True)
        return torch.zeros_like(logits, dtype=_precise(logits)).scatter_(-1, best, 1.0)
    scaled = logits.to(_precise(logits)) / temperature
    if top_k is not None:
        kept = min(inputs.whole("top_k", top_k), scaled.shape[-1])
        least = scaled.topk(kept).values[..., -1:]
        scaled = scaled.masked_fill(scaled < least, -torch.inf)
    probs = scaled.softmax(-1)
    if top_p is not None and inputs.number("top_p", top_p, above=0, high=1) < 1:
        ordered, places = probs.sort(dim=-1, descending=True, stable=True)
        needless = ordered.cumsum(-1) - ordered >= top_p  # the tokens before it reach top_p
        probs = probs.masked_fill(needless.scatter(-1, places, needless), 0.0)
        probs = probs / probs.sum(-1, keepdim=True)
    return probs


def mixture(student: Tensor, teacher: Tensor, mix: float) -> Tensor:
    """Probabilities mix · p + (1 − mix) · q, q of the student, p of the teacher: [..., V].

    Teacher-mixed sampling of MiniLLM (Gu et al. 2024, Section 2.2), α = mix = 0.2 there: the
    teacher keeps the student from strings that only exploit the reward. As in the official code,
    each side has been filtered by itself. q / mixture, the weight that corrects for it, is at most
    1 / (1 − mix).

    Raises:
        ValueError, TypeError: mix outside [0, 1], no tensors, or of unlike shapes.
    """
    inputs.tensor("student", student, "[n, ...]", finite=False)
    inputs.tensor("teacher", teacher, "[n, ...]", finite=False)
    if teacher.shape != student.shape:
        wanted, got = list(student.shape), list(teacher.shape)
        raise ValueError(f"teacher must have the shape of student, {wanted}, got {got}")
    inputs.number("mix", mix, low=0, high=1)
    return mix * teacher + (1 - mix) * student


@torch.no_grad()
def generate(
    model: LanguageModel,
    prompts: Tensor,
    *,
    max_new_tokens: int,
    end: int | None,
    pad: int = 0,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    teacher: LanguageModel | None = None,
    mix: float = 0.0,
    generator: torch.Generator | None = None,
    uniforms: Tensor | None = None,
) -> Generated:
    """Answers to prompts [B, P], token by token, each row until its end token.

    Args:
        model: the student; it runs in evaluation mode and has its own mode back afterwards.
        prompts: int64 [B, P], padded on the left: each row ends with a token other than `pad`.
        max_new_tokens: at least 1; the prompts and they fit the context of each network.
        end: the token that ends an answer; None: every answer has max_new_tokens.
        pad: fills short prompts and answers. A network may draw that token too: go by the mask.
        temperature, top_k, top_p: see `distribution`; for the model and for the teacher, each by
            itself. With temperature 0 (greedy; with a mixture, one of the two favourites) their
            own log-probabilities are those at temperature 1.
        teacher: it reads what the model reads, and has the same vocabulary.
        mix: the teacher's share of the distribution that is drawn from, in [0, 1]: see `mixture`.
        generator: draws B * max_new_tokens uniform numbers at once; None: torch's own.
        uniforms: these numbers themselves, floating-point [B, max_new_tokens] in [0, 1).

    Raises:
        ValueError: an argument out of range, a context that is too short, NaN in logits.
        TypeError: an argument of another type, a network that is no `LanguageModel`.
    """
    steps = inputs.whole("max_new_tokens", max_new_tokens)
    inputs.number("mix", mix, low=0, high=1)
    if mix and teacher is None:
        raise ValueError(f"teacher must be a network where mix is {mix:g}, got None")
    cut = partial(distribution, temperature=temperature, top_k=top_k, top_p=top_p)
    fed = prompts = _prompts(prompts, inputs.whole("pad", pad, low=0))
    numbers = _numbers(uniforms, generator, len(prompts), steps)
    alive = torch.ones(len(prompts), dtype=torch.bool, device=prompts.device)
    columns: list[tuple[Tensor, ...]] = []
    with ExitStack() as stack:
        readers = [_reader("model", model, prompts, steps, stack)]
        if teacher is not None:
            readers.append(_reader("teacher", teacher, prompts, steps, stack))
        for step in range(steps):
            logits = [read(fed, None if step else pad) for read in readers]
            if not step:
                _check_vocabulary(logits, end)
            probs = mixture(cut(logits[0]), cut(logits[1]), mix) if mix else cut(logits[0])
            token = _draw(probs, numbers[:, step]).to(prompts.device)
            own = [(z / (temperature or 1.0)).log_softmax(-1) for z in logits]
            found = [x.gather(1, token[:, None])[:, 0] for x in (probs.log(), *own)]
            token = token.where(alive, pad)
            columns.append((token, alive, *(x.where(alive, 0.0) for x in found)))
            if end is not None:
                alive = alive & (token != end)
                if not alive.any():
                    break
            fed = token[:, None]
    tokens, mask, drawn, student, *rest = (torch.stack(column, 1) for column in zip(*columns))
    return Generated(tokens, mask, drawn, student, rest[0] if rest else None)


def _draw(probs: Tensor, numbers: Tensor) -> Tensor:
    """The token [B] where the cumulative distribution of [B, V] passes the number in [0, 1)."""
    # In double precision no rounding lets a token of probability 0 through, nor one beyond the end.
    cumulative = inputs.float64(probs).cumsum(-1)
    target = numbers.to(cumulative.device)[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True)[:, 0]


def _precise(logits: Tensor) -> torch.dtype:
    """float32, or the type of the logits where it is wider."""
    return torch.promote_types(logits.dtype, torch.float32)


def _reader(
    name: str, network: LanguageModel, prompts: Tensor, steps: int, stack: ExitStack
) -> Callable[[Tensor, int | None], Tensor]:
    """A function of tokens [B, t] and padding: the network's logits [B, V] for the next token."""
    inputs.instance(name, network, nn.Module)
    inputs.instance(name, network, LanguageModel, "give it a context and new_cache, as GPT has")
    rows, room = len(prompts), prompts.shape[1] + steps
    if room > network.context:
        raise ValueError(
            f"max_new_tokens must fit the context of {name}, {network.context}, after the "
            f"prompts, got {room} tokens together: ask for fewer or build a longer context"
        )
    stack.enter_context(evaluating(cast(nn.Module, network)))
    cache = network.new_cache(rows, room)

    def read(tokens: Tensor, padding: int | None) -> Tensor:
        found = network(tokens, cache=cache, padding=padding)
        if not isinstance(found, Tensor) or found.ndim != 3 or len(found) != rows:
            got = inputs.describe(found)
            raise TypeError(f"{name} must return logits [B, T, V] for {rows} rows, got {got}")
        logits = found[:, -1].to(_precise(found))
        if logits.is_cpu and logits.isnan().any():
            raise ValueError(f"{name} must return numbers as logits, got NaN: check its training")
        return logits

    return read


def _check_vocabulary(logits: list[Tensor], end: int | None) -> None:
    sizes = [z.shape[1] for z in logits]
    if len(set(sizes)) > 1:
        raise ValueError(f"teacher must have the model's vocabulary of {sizes[0]}, got {sizes[1]}")
    if end is not None:
        inputs.whole("end", end, low=0, high=sizes[0] - 1)


def _prompts(prompts: Any, pad: int) -> Tensor:
    """The prompts, without the columns that hold nothing but padding."""
    inputs.classes("prompts", prompts, ndim=2)
    if (prompts[:, -1] == pad).any():
        raise ValueError(
            f"prompts must end with a token other than pad ({pad}) in each row, got some that do: "
            "pad on the left"
        )
    return prompts[:, int((prompts == pad).cumprod(1).sum(1).min()) :].long()


def _numbers(uniforms: Any, generator: torch.Generator | None, rows: int, steps: int) -> Tensor:
    """A uniform number for each row and place, [rows, steps]."""
    if generator is not None:
        inputs.instance("generator", generator, torch.Generator)
    if uniforms is None:
        device = torch.device("cpu") if generator is None else generator.device
        size = (rows, steps)
        return torch.rand(size, generator=generator, dtype=torch.float64, device=device)
    if generator is not None:
        raise ValueError("uniforms must be None beside a generator, got both")
    inputs.tensor("uniforms", uniforms, "[B, max_new_tokens]", low=0, high=1)
    if uniforms.shape != (rows, steps) or uniforms.max() == 1:
        got = f"{list(uniforms.shape)} up to {float(uniforms.max()):g}"
        raise ValueError(f"uniforms must be [{rows}, {steps}] and below 1, got {got}")
    return uniforms.double()
