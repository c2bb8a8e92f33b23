"""Texts as numbers: words or characters, fitted to one's own texts, and batches of examples.

Every vocabulary begins with three special tokens: PAD 0 fills rows up, END 1 ends an answer, and
SEPARATOR 2 stands between a prompt and its answer. A fourth, for what the tokenizer was not fitted
to, is there only if it was asked for: otherwise such a text is an error. Texts may be in any
script; letters that Unicode writes in two ways are made one (NFC), so "й" is one letter however it
was typed. Case is kept.
"""

from __future__ import annotations

import functools
import itertools
import json
import unicodedata
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor

from kdlib import inputs
from kdlib.engine.files import write_atomically
from kdlib.identity import digest

PAD, END, SEPARATOR = 0, 1, 2
SPECIAL = ("<pad>", "<end>", "<separator>")  # how `decode` shows them
UNKNOWN = "<unknown>"  # its number is 3 where there is one

Kind = TypeVar("Kind", bound="Tokenizer")

_FORMAT = "kdlib vocabulary 1"
_NAMED = 5  # unknown parts that an error names


def words(text: str) -> list[str]:
    """The words and signs of a text, without the white space: "isn't 3.5" has six.

    A word is a run of letters, their marks, digits and underscores of any script; Chinese and
    Japanese letters stand for themselves, as does every other sign. Scripts that put no space
    between words (Thai, for one) are not divided.
    """
    text = unicodedata.normalize("NFC", inputs.instance("text", text, str))
    found: list[str] = []
    for kind, letters in itertools.groupby(text, _kind):
        if kind == "word":
            found.append("".join(letters))
        elif kind == "sign":
            found.extend(letters)
    return found


@functools.lru_cache(maxsize=4096)
def _kind(letter: str) -> str:
    """word, sign or space: what a character is a part of."""
    if letter.isspace():
        return "space"
    name = unicodedata.name(letter, "")
    if name.startswith(("CJK UNIFIED", "CJK COMPATIBILITY IDEOGRAPH", "HIRAGANA", "KATAKANA")):
        return "sign"
    marks = unicodedata.category(letter).startswith("M")
    return "word" if letter.isalnum() or letter == "_" or marks else "sign"


class Tokenizer(ABC):
    """A vocabulary, and how texts are cut by it; made by `fit` or `load` of `Words`, `Characters`.

    `len` of it is the number of tokens, the special ones included. Two are equal if they give
    every text the same numbers.
    """

    kind: ClassVar[str]
    joint: ClassVar[str]  # between two tokens of a decoded text

    def __init__(self, parts: Iterable[str], *, unknown: bool = False) -> None:
        """parts: the vocabulary after the special tokens, in its order; see `fit`."""
        self.unknown = inputs.instance("unknown", unknown, bool)
        special = (*SPECIAL, UNKNOWN) if self.unknown else SPECIAL
        self.vocabulary = (*special, *parts)
        self._number = {part: number for number, part in enumerate(self.vocabulary)}
        odd = [part for part in self.vocabulary[len(special) :] if self.cut(part) != [part]]
        if odd or len(self._number) < len(self.vocabulary):
            problem = f"{odd[0]!r} is none" if odd else "one occurs twice"
            raise ValueError(f"parts must be different {self.kind}, and {problem}: use `fit`")

    @classmethod
    @abstractmethod
    def cut(cls, text: str) -> list[str]:
        """The parts of a text."""

    @classmethod
    def fit(
        cls: type[Kind],
        texts: Iterable[str | Sequence[str]],
        *,
        unknown: bool = False,
        at_least: int = 1,
    ) -> Kind:
        """The tokenizer whose vocabulary is what occurs in the texts, sorted.

        Args:
            texts: strings, or pairs of them such as `pairs.Example`s; at least one part in all.
            unknown: whether there is a token for everything else. It is trained on nothing unless
                `at_least` leaves parts of the training texts to it.
            at_least: parts that occur less often are left out; above 1 only with `unknown`.

        Raises:
            TypeError: one text instead of many, or something else among them.
            ValueError: no text, or `at_least` without `unknown`.
        """
        at_least = inputs.whole("at_least", at_least)
        inputs.instance("unknown", unknown, bool)
        if at_least > 1 and not unknown:
            raise ValueError("unknown must be True if at_least is above 1: rare parts become it")
        if isinstance(texts, str) or not isinstance(texts, Iterable):
            raise TypeError(f"texts must be a list of texts, got {inputs.describe(texts)}")
        counts: Counter[str] = Counter()
        for place, entry in enumerate(texts):
            for text in (entry,) if isinstance(entry, str) else tuple(entry):
                counts.update(cls.cut(inputs.instance(f"texts[{place}]", text, str)))
        kept = sorted(part for part, count in counts.items() if count >= at_least)
        if not kept:
            raise ValueError(f"texts must hold {cls.kind} that occur {at_least} time(s), got none")
        return cls(kept, unknown=unknown)

    def __len__(self) -> int:
        return len(self.vocabulary)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokenizer) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} tokens, {self.fingerprint[:8]})"

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the kind and the vocabulary."""
        return digest(self.kind, *self.vocabulary)

    def encode(self, text: str, name: str = "text") -> list[int]:
        """The numbers of a text, without special tokens at its ends; an empty text has none.

        Raises:
            ValueError: parts that are not in the vocabulary, and no token for them; the message
                begins with `name`.
        """
        parts = self.cut(inputs.instance(name, text, str))
        try:
            return [self._number[part] for part in parts]
        except KeyError:
            if self.unknown:
                return [self._number.get(part, len(SPECIAL)) for part in parts]
        new = list(dict.fromkeys(part for part in parts if part not in self._number))
        listed = ", ".join(map(repr, new[:_NAMED]))
        listed += f" and {len(new) - _NAMED} more" if len(new) > _NAMED else ""
        raise ValueError(
            f"{name} must consist of the {self.kind} of the vocabulary, got {listed}: fit the "
            "tokenizer to these texts too, or with unknown=True"
        )

    def decode(self, numbers: Iterable[int] | Tensor) -> str:
        """The text of numbers up to the first END. Other special tokens show as in the vocabulary,
        so padding that a model drew is seen.

        Of `Characters` this gives back what was encoded, in NFC; of `Words` its words with one
        space between them.

        Raises:
            ValueError: a number outside of the vocabulary.
        """
        found = []
        for number in numbers.tolist() if isinstance(numbers, Tensor) else numbers:
            number = inputs.whole("numbers", number, low=0, high=len(self) - 1)
            if number == END:
                break
            found.append(self.vocabulary[number])
        return self.joint.join(found)

    def save(self, path: str | Path) -> Path:
        """Write the vocabulary as JSON, which `load` reads."""
        inputs.instance("path", path, (str, Path))
        special = len(SPECIAL) + self.unknown
        content = {
            "format": _FORMAT,
            "kind": self.kind,
            "unknown": self.unknown,
            "fingerprint": self.fingerprint,
            "vocabulary": self.vocabulary[special:],
        }
        return write_atomically(path, json.dumps(content, ensure_ascii=False, indent=1) + "\n")


class Words(Tokenizer):
    """Words and signs, as `words` cuts them; `decode` puts a space between any two."""

    kind = "words"
    joint = " "

    @classmethod
    def cut(cls, text: str) -> list[str]:
        return words(text)


class Characters(Tokenizer):
    """Single characters, white space and line ends among them."""

    kind = "characters"
    joint = ""

    @classmethod
    def cut(cls, text: str) -> list[str]:
        return list(unicodedata.normalize("NFC", inputs.instance("text", text, str)))


def load(path: str | Path) -> Tokenizer:
    """The tokenizer that `save` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no vocabulary, or was changed by hand.
    """
    file = Path(inputs.instance("path", path, (str, Path)))
    if not file.is_file():
        raise FileNotFoundError(f"path must be a saved vocabulary, got {str(path)!r}: no such file")
    try:
        content = json.loads(file.read_text("utf-8"))
        kinds: dict[str, type[Tokenizer]] = {one.kind: one for one in (Words, Characters)}
        found = kinds[content["kind"]](content["vocabulary"], unknown=content["unknown"])
        whole = content["format"] == _FORMAT and content["fingerprint"] == found.fingerprint
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"path must be a saved vocabulary, got {str(path)!r}: {error!r}") from None
    if not whole:
        raise ValueError(
            f"path must be a vocabulary as it was saved, got {str(path)!r}, which was changed or "
            "comes from another version: fit the tokenizer anew, and train its models anew"
        )
    return found


def check_same(student: Tokenizer, teacher: Tokenizer) -> None:
    """Student and teacher mean the same by each number: otherwise no divergence of their
    predictions means anything.

    Raises:
        ValueError: they do not; the message tells the first difference.
    """
    inputs.instance("student", student, Tokenizer)
    inputs.instance("teacher", teacher, Tokenizer)
    if student == teacher:
        return
    problem = f"{student.kind} against {teacher.kind}"
    if student.kind == teacher.kind:
        pairs = itertools.zip_longest(student.vocabulary, teacher.vocabulary)
        place, pair = next((place, pair) for place, pair in enumerate(pairs) if len({*pair}) > 1)
        one, other = ("nothing" if part is None else repr(part) for part in pair)
        problem = (
            f"{len(student)} tokens against {len(teacher)}, and number {place} is {one} against "
            f"{other}"
        )
    raise ValueError(
        f"student must have the vocabulary of the teacher, got {problem}: fit one tokenizer, and "
        "give it to both"
    )


# Batches


class Batch(NamedTuple):
    """Rows of a prompt, SEPARATOR, answer and END, then PAD, for predicting the next token.

    The shapes are [n, t]; `mask` tells which targets belong to an answer, its END included, and is
    aligned with the logits for `tokens`.
    """

    tokens: Tensor  # int64: what the model reads
    targets: Tensor  # int64: the token that follows each
    mask: Tensor  # bool: targets that count

    def take(self, rows: Tensor | slice) -> Batch:
        """Some of the rows (positions [k] or a slice), cut after the longest of them."""
        found = Batch(*(part[rows] for part in self))
        used = found.mask.any(0).nonzero()
        width = int(used.max()) + 1 if len(used) else 0
        return Batch(*(part[:, :width] for part in found))


def batch(examples: Sequence[Sequence[str]], tokenizer: Tokenizer, context: int) -> Batch:
    """Examples for supervised training, padded on the right to the longest.

    Args:
        examples: at least one pair of a prompt and a response, such as `pairs.Example`s.
        tokenizer: with the vocabulary of the model.
        context: how many tokens the model reads at most. The END is predicted, not read.

    Raises:
        TypeError: an example that is no pair of texts.
        ValueError: none, an empty prompt or response, a part outside of the vocabulary, a row
            longer than the context; the message names the example.
    """
    context = inputs.whole("context", context)
    inputs.instance("tokenizer", tokenizer, Tokenizer)
    rows, starts = [], []
    for place, pair in enumerate(_many("examples", examples)):
        name = f"examples[{place}]"
        if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
            raise TypeError(
                f"{name} must be a pair of prompt and response, got {inputs.describe(pair)}"
            )
        prompt, response = (
            _encoded(f"{name}, {part},", text, tokenizer)
            for part, text in zip(("prompt", "response"), pair)
        )
        rows.append([*prompt, SEPARATOR, *response, END])
        starts.append(len(prompt))
        if len(rows[-1]) - 1 > context:
            raise ValueError(
                f"{name} must fit the context of {context} tokens, got {len(prompt)} of the prompt "
                f"and {len(response)} of the response, {len(rows[-1]) - 1} with the separator: "
                "shorten or leave out such examples, or build the model with a longer context"
            )
    width = max(map(len, rows))
    filled = torch.tensor([row + [PAD] * (width - len(row)) for row in rows])
    column = torch.arange(width - 1)
    lengths = torch.tensor([len(row) for row in rows])
    first = torch.tensor(starts)  # where the separator is read, the first word is predicted
    mask = (column >= first[:, None]) & (column < lengths[:, None] - 1)
    return Batch(filled[:, :-1].contiguous(), filled[:, 1:].contiguous(), mask)


def prompt_tokens(
    prompts: Sequence[str], tokenizer: Tokenizer, context: int | None = None
) -> Tensor:
    """Prompts with SEPARATOR for sampling answers, padded on the left: int64 [n, longest + 1].

    Args:
        prompts: at least one.
        tokenizer: with the vocabulary of the model.
        context: a prompt must leave room for one token of an answer in so many; None: any will do.

    Raises:
        TypeError: a prompt that is no text.
        ValueError: none, an empty one, a part outside of the vocabulary, one that is too long; the
            message names the prompt.
    """
    inputs.instance("tokenizer", tokenizer, Tokenizer)
    rows = [
        [*_encoded(f"prompts[{place}]", prompt, tokenizer), SEPARATOR]
        for place, prompt in enumerate(_many("prompts", prompts))
    ]
    width = max(map(len, rows))
    if context is not None and width > inputs.whole("context", context):
        longest = [len(row) for row in rows].index(width)
        raise ValueError(
            f"prompts[{longest}] must fit the context of {context} tokens, got {width} with the "
            "separator: shorten it, or build the model with a longer context"
        )
    return torch.tensor([[PAD] * (width - len(row)) + row for row in rows])


def _many(name: str, values: Sequence) -> Sequence:
    """A sequence of at least one, and no single text."""
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise TypeError(f"{name} must be a list, got {inputs.describe(values)}")
    if not values:
        raise ValueError(f"{name} must hold at least one, got none")
    return values


def _encoded(name: str, text: str, tokenizer: Tokenizer) -> list[int]:
    numbers = tokenizer.encode(text, name)
    if not numbers:
        raise ValueError(f"{name} must not be empty, got {text!r}")
    return numbers
