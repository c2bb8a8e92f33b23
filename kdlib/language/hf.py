"""Causal language models of Hugging Face as students and teachers: the extra `kdlib[hf]`.

`CausalLM` makes a model of `transformers` a `LanguageModel`, and `SubWords` makes its tokenizer one
for `training.fit`. Only `load` may use the network, for a name that is no local folder. Token ids
are the model's own: give `generate` the `end` and `pad` of the tokenizer, objectives its `pad` as
`padding`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from kdlib import inputs
from kdlib.identity import digest
from kdlib.language import tokenizers
from kdlib.language.tokenizers import Batch


def _transformers() -> ModuleType:
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "language.hf needs the package transformers: `pip install 'kdlib[hf]'`"
        ) from error
    return transformers


class Cache:
    """Keys and values of `transformers`, and the padding that they begin with."""

    def __init__(self, past: Any, batch: int, room: int) -> None:
        self.past, self.batch, self.room = past, batch, room
        self.length = 0
        self.skipped: Tensor | None = None  # int64 [batch], None if there is no padding


class CausalLM(nn.Module):
    """A model of `transformers` that predicts the next token, as a `LanguageModel`.

    Args:
        model: such as `GPT2LMHeadModel`. Build a student for MiniLLM without dropout.
        context: the longest sequence that it reads; None: its `config.max_position_embeddings`.

    Raises:
        ModuleNotFoundError: transformers is not installed.
        TypeError: another network. ValueError: the context is unknown, or beyond the model's.
    """

    def __init__(self, model: nn.Module, *, context: int | None = None) -> None:
        super().__init__()
        inputs.instance("model", model, _transformers().PreTrainedModel)
        known = getattr(model.config, "max_position_embeddings", None)
        if known is None and context is None:
            raise ValueError("context must be given for a model whose config does not tell it")
        self.model = model
        self.context = inputs.whole("context", known if context is None else context, high=known)
        self._takes = set(inspect.signature(model.forward).parameters)

    def new_cache(self, batch: int, room: int) -> Cache:
        """An empty cache for `batch` rows of at most `room` tokens, room <= context."""
        batch, room = inputs.whole("batch", batch), inputs.whole("room", room, high=self.context)
        return Cache(_transformers().DynamicCache(), batch, room)

    def forward(
        self, tokens: Tensor, *, cache: Cache | None = None, padding: int | None = 0
    ) -> Tensor:
        """Logits [B, T, V] of the token that follows each of the tokens [B, T]; of the last alone,
        [B, 1, V], with a cache. A row may start with padding, as in `GPT`.

        Raises:
            ValueError: more tokens than the context or the cache can hold.
        """
        before = 0 if cache is None else cache.length
        end = before + tokens.shape[1]
        if end > self.context:
            raise ValueError(f"tokens must be at most {self.context}, the context, got {end}")
        if cache is not None and (cache.batch != len(tokens) or cache.room < end):
            held = f"{cache.batch} of {cache.room}"
            raise ValueError(f"cache must hold {len(tokens)} rows of {end} tokens, got {held}")
        skipped = None if cache is None else cache.skipped
        if before == 0 and padding is not None:
            found = (tokens == padding).cumprod(1).sum(1)
            skipped = found if found.any() else None
        options: dict[str, Any] = {"use_cache": cache is not None}
        if skipped is not None:
            place = torch.arange(end, device=tokens.device)
            options["attention_mask"] = (place >= skipped[:, None]).long()
            options["position_ids"] = (place[before:] - skipped[:, None]).clamp(min=0)
        if cache is not None:
            name = "cache" if "cache" in self._takes else "past_key_values"  # until 5.23
            options |= {name: cache.past, "logits_to_keep": 1}
            cache.length, cache.skipped = end, skipped
        # a model without positions (ALiBi) finds them in the attention mask
        options = {name: value for name, value in options.items() if name in self._takes}
        return self.model(tokens, **options).logits


class SubWords:
    """A tokenizer of `transformers`, with what `training.fit` and sampling ask of one.

    `len` of it is the number of tokens; `pad`, `end` and `separator` are the ids of the special
    ones. Where the tokenizer has no padding of its own, as GPT-2's, its end token fills rows up.

    Args:
        tokenizer: such as `AutoTokenizer` loads.
        separator: the text between a prompt and its answer, one token.

    Raises:
        ValueError: the tokenizer has no end token, or cuts the separator in several tokens.
    """

    def __init__(self, tokenizer: Any, *, separator: str = "\n") -> None:
        self.tokenizer = tokenizer
        if tokenizer.eos_token_id is None:
            raise ValueError("tokenizer must have an end token, got none: set its eos_token")
        self.end = int(tokenizer.eos_token_id)
        pad = tokenizer.pad_token_id
        self.pad = self.end if pad is None else int(pad)
        numbers = self.encode(inputs.instance("separator", separator, str))
        if len(numbers) != 1:
            raise ValueError(f"separator must be one token, got {separator!r} with {len(numbers)}")
        self.separator = numbers[0]

    def __len__(self) -> int:
        return len(self.tokenizer)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the vocabulary, how texts are cut, and the special tokens."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        words = sorted(self.tokenizer.get_vocab().items(), key=lambda item: item[1])
        rules = repr(words) if backend is None else backend.to_str()
        return digest(rules, f"{self.pad} {self.end} {self.separator}")

    def encode(self, text: str, name: str = "text") -> list[int]:
        """The numbers of a text, without special tokens at its ends."""
        text = inputs.instance(name, text, str)
        return self.tokenizer.encode(text, add_special_tokens=False)

    def decode(self, numbers: Iterable[int] | Tensor) -> str:
        """The text of numbers up to the first end token."""
        found = numbers.tolist() if isinstance(numbers, Tensor) else list(numbers)
        found = found[: found.index(self.end)] if self.end in found else found
        return self.tokenizer.decode(found)

    def batch(self, examples: Sequence[Sequence[str]], context: int) -> Batch:
        """As `tokenizers.batch`, with its errors."""
        found = tokenizers.batch(examples, _Shifted(self), context)
        return Batch(self._own(found.tokens), self._own(found.targets), found.mask)

    def prompt_tokens(self, prompts: Sequence[str], context: int | None = None) -> Tensor:
        """As `tokenizers.prompt_tokens`, with its errors."""
        return self._own(tokenizers.prompt_tokens(prompts, _Shifted(self), context))

    def _own(self, numbers: Tensor) -> Tensor:
        """Numbers of the kit's batches, special tokens first, as those of this tokenizer."""
        special = torch.tensor([self.pad, self.end, self.separator])  # PAD 0, END 1, SEPARATOR 2
        count = len(special)
        return torch.where(numbers < count, special[numbers.clamp(max=count - 1)], numbers - count)


class _Shifted(tokenizers.Tokenizer):
    """A tokenizer of the kit that leaves the first numbers to the kit's special tokens."""

    kind = "sub-words"

    def __init__(self, own: SubWords) -> None:
        super().__init__(())
        self.own = own

    @classmethod
    def cut(cls, text: str) -> list[str]:
        return [text]

    def encode(self, text: str, name: str = "text") -> list[int]:
        return [len(tokenizers.SPECIAL) + number for number in self.own.encode(text, name)]


def load(path: str | Path, *, separator: str = "\n") -> tuple[CausalLM, SubWords]:
    """A pretrained model and its tokenizer, from a folder or by a name of the hub.

    Raises:
        ModuleNotFoundError: transformers is not installed.
        OSError: there is no such model, or no network.
    """
    package = _transformers()
    model = package.AutoModelForCausalLM.from_pretrained(path)
    tokenizer = package.AutoTokenizer.from_pretrained(path)
    return CausalLM(model), SubWords(tokenizer, separator=separator)
