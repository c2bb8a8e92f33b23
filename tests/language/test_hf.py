"""Models and tokenizers of Hugging Face: tiny, random, and never downloaded."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from kdlib.language import generate, hf
from kdlib.language.objectives import joined, log_probs
from kdlib.language.training import fit
from kdlib.training import build


def test_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    for function in (lambda: hf.CausalLM(nn.Linear(1, 1)), lambda: hf.load("gpt2")):
        with pytest.raises(
            ModuleNotFoundError, match=r"needs the package transformers.*kdlib\[hf\]"
        ):
            function()


@pytest.fixture(scope="module")
def package():
    return pytest.importorskip("transformers")


PAIRS = [("tell anna", "the fox is red ."), ("story ben sea", "he sat ."), ("list", "a b c .")]
WORDS = sorted({word for pair in PAIRS for text in pair for word in text.split()})


@pytest.fixture(scope="module")
def tokenizer(package):
    """Words, with an end token and none for padding, as GPT-2's."""
    library = pytest.importorskip("tokenizers")
    vocabulary = {word: number for number, word in enumerate([*WORDS, "\n", "<|endoftext|>"])}
    made = library.Tokenizer(library.models.WordLevel(vocabulary, unk_token="<|endoftext|>"))
    made.pre_tokenizer = library.pre_tokenizers.Split(" ", "removed")
    return package.PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|endoftext|>")


@pytest.fixture(scope="module")
def words(tokenizer) -> hf.SubWords:
    return hf.SubWords(tokenizer)


def small(package, vocabulary: int, seed: int = 0, dim: int = 32) -> hf.CausalLM:
    config = package.GPT2Config(
        vocab_size=vocabulary, n_positions=24, n_embd=dim, n_layer=2, n_head=2,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, initializer_range=0.3,
        bos_token_id=vocabulary - 1, eos_token_id=vocabulary - 1,
    )  # fmt: skip
    return hf.CausalLM(build(lambda: package.GPT2LMHeadModel(config), seed)).eval()


def test_batches_are_those_of_the_kit_in_the_numbers_of_the_model(words: hf.SubWords):
    pad, end, line = words.pad, words.end, words.separator
    assert pad == end == len(words) - 1 and line == len(words) - 2
    found = words.batch(PAIRS, 24)
    prompt, response = (words.encode(text) for text in PAIRS[1])
    row = [*prompt, line, *response, end]
    assert found.tokens[1].tolist() == row[:-1] + [pad] * (found.tokens.shape[1] - len(row) + 1)
    assert found.targets[1][found.mask[1]].tolist() == [*response, end]
    asked = words.prompt_tokens([prompt for prompt, _ in PAIRS])
    assert asked[2].tolist() == [pad, pad, *words.encode("list"), line]
    assert words.decode(torch.tensor([*response, end, 0])) == PAIRS[1][1]
    for wrong, message in (([], "at least one, got none"), ([("tell", " ")], "must not be empty")):
        with pytest.raises(ValueError, match=message):
            words.batch(wrong, 24)
    with pytest.raises(ValueError, match=r"examples\[0\] must fit the context of 5 tokens"):
        words.batch(PAIRS, 5)


def test_a_tokenizer_needs_an_end_and_a_separator(package, tokenizer):
    with pytest.raises(ValueError, match=r"separator must be one token, got 'fox red' with 2"):
        hf.SubWords(tokenizer, separator="fox red")
    bare = package.PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(ValueError, match="tokenizer must have an end token, got none"):
        hf.SubWords(bare)
    own, other = hf.SubWords(tokenizer), hf.SubWords(tokenizer, separator="fox")
    assert own.fingerprint == hf.SubWords(tokenizer).fingerprint != other.fingerprint


def test_the_cache_changes_no_answer(package, words: hf.SubWords):
    model = small(package, len(words))
    asked = words.prompt_tokens([prompt for prompt, _ in PAIRS])
    found = generate(
        model, asked, max_new_tokens=12, end=words.end, pad=words.pad,
        generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    batch = joined(asked, found.tokens, found.mask)
    with torch.no_grad():
        again = log_probs(model(batch.tokens, padding=words.pad), batch.targets)
        for row, skipped in enumerate((1, 0, 2)):
            alone = model(batch.tokens[row : row + 1, skipped:], padding=None)
            own = log_probs(alone, batch.targets[row : row + 1, skipped:])[0]
            assert_close(
                again[row, skipped:][batch.mask[row, skipped:]], own[batch.mask[row, skipped:]]
            )
    assert_close(again[:, asked.shape[1] - 1 :][found.mask], found.log_probs[found.mask])
    assert found.lengths.max() > 3 and again.isfinite().all()


def test_a_cache_has_limits(package, words: hf.SubWords):
    model, tokens = small(package, len(words)), torch.ones(2, 25, dtype=torch.int64)
    for function, message in (
        (lambda: model(tokens), "tokens must be at most 24, the context, got 25"),
        (lambda: model(tokens[:, :5], cache=model.new_cache(2, 4)), "hold 2 rows of 5 .* 2 of 4"),
        (lambda: model.new_cache(2, 25), "room must be .* at most 24"),
        (lambda: hf.CausalLM(model.model, context=25), "context must be .* at most 24"),
        (lambda: hf.CausalLM(nn.Linear(1, 1)), "model must be a PreTrainedModel, got Linear"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            function()


@pytest.mark.parametrize("method", ["sft", "kd", "seqkd", "gkd", "minillm"])
def test_every_method_trains_one(method: str, package, words: hf.SubWords, tmp_path):
    teacher = None if method == "sft" else small(package, len(words), 1)
    given = {"method": method, "teacher": teacher, "steps": 2, "epochs": 2, "batch_size": 2}
    file = tmp_path / "run.pt"
    first, half, whole = (small(package, len(words), dim=16) for _ in range(3))
    before = first.model.lm_head.weight.clone()
    fit(half, PAIRS, words, checkpoint=file, progress=False, stop_after=1, **given)
    for student, path in ((first, file), (whole, None)):
        found = fit(student, PAIRS, words, checkpoint=path, progress=False, **given)
        assert len(found.history) == 2 and found.sequences == 4
    assert torch.equal(first.model.lm_head.weight, whole.model.lm_head.weight)
    assert not torch.equal(first.model.lm_head.weight, before)
    assert teacher is None or all(x.grad is None for x in teacher.parameters())


def test_what_was_saved_is_loaded(package, tokenizer, words: hf.SubWords, tmp_path):
    model = small(package, len(words))
    model.model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again, found = hf.load(tmp_path)
    batch = words.batch(PAIRS, again.context)
    assert found.encode(PAIRS[0][1]) == words.encode(PAIRS[0][1])
    assert_close(again(batch.tokens, padding=found.pad), model(batch.tokens, padding=words.pad))
