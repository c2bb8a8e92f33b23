"""Words and characters of any script, special tokens, saved vocabularies, batches and prompts."""

from __future__ import annotations

import json
import unicodedata

import pytest
import torch

from kdlib.language import corpus, tokenizers
from kdlib.language.judging import judge
from kdlib.language.pairs import Example
from kdlib.language.tokenizers import END, PAD, SEPARATOR, Characters, Words, batch, prompt_tokens

TEXTS = ["The fox isn't red.", "Лиса — рыжая, не волк!", "你好 世界", "हिन्दी שלום", "a_b naïve"]
WORLD = Words(corpus.VOCABULARY)


def refused(error, message, function, *arguments, **options):
    with pytest.raises(error, match=message):
        function(*arguments, **options)


def test_words_of_any_script():
    for text, wanted in (
        ("The fox isn't red.", ["The", "fox", "isn", "'", "t", "red", "."]),
        ("  \tЛиса — рыжая,\nволк!", ["Лиса", "—", "рыжая", ",", "волк", "!"]),
        ("你好 世界。ひら", ["你", "好", "世", "界", "。", "ひ", "ら"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),  # vowel signs are marks, no letters
        ("a_b 3.5 😀😀", ["a_b", "3", ".", "5", "😀", "😀"]),
        ("", []),
    ):
        assert tokenizers.words(text) == wanted
    assert tokenizers.words(unicodedata.normalize("NFD", "Лисий й")) == ["Лисий", "й"]
    refused(TypeError, "text must be a str, got bytes", tokenizers.words, b"fox")


@pytest.mark.parametrize("kind", [Words, Characters])
def test_what_was_encoded_is_decoded(kind):
    for unknown in (False, True):
        made = kind.fit(TEXTS, unknown=unknown)
        assert made.vocabulary[:3] == ("<pad>", "<end>", "<separator>") == tokenizers.SPECIAL
        assert (PAD, END, SEPARATOR) == (0, 1, 2) and (made.vocabulary[3] == "<unknown>") == unknown
        parts = list(made.vocabulary[3 + unknown :])
        assert parts == sorted(set(parts)) and len(made) == 3 + unknown + len(parts)
        for text in TEXTS:
            numbers = made.encode(text)
            assert min(numbers) >= 3 + unknown and max(numbers) < len(made)
            wanted = text if kind is Characters else " ".join(tokenizers.words(text))
            assert made.decode(numbers) == made.decode(torch.tensor(numbers)) == wanted
            assert made.encode(unicodedata.normalize("NFD", text)) == numbers
        assert made.encode("") == [] and made.decode([]) == ""


def test_the_order_of_the_texts_does_not_matter():
    assert Words.fit(TEXTS).vocabulary == Words.fit(iter(TEXTS[::-1])).vocabulary
    pairs = corpus.examples("train", 3000)
    assert Words.fit(pairs) == WORLD and hash(Words.fit(pairs)) == hash(WORLD)
    assert len(WORLD) == 118 and str(WORLD).startswith("Words(118 tokens, ")
    for pair in pairs[:100]:
        assert WORLD.decode(WORLD.encode(pair.response)) == pair.response


def test_decode_ends_at_the_end_and_hides_nothing_before():
    fox, sure = WORLD.encode("fox sure")
    assert WORLD.decode([fox, sure, END, fox, PAD]) == "fox sure"
    assert WORLD.decode([PAD, fox, SEPARATOR, PAD, sure]) == "<pad> fox <separator> <pad> sure"
    assert not judge("list eva 2 foods", WORLD.decode([PAD, *WORLD.encode("sure :"), END]))
    for bad, error in ((118, ValueError), (-1, ValueError), (1.0, TypeError), ([3], TypeError)):
        refused(error, "numbers must be a whole number", WORLD.decode, [fox, bad])


def test_the_unknown_is_an_error_unless_it_was_asked_for():
    message = "text must consist of the words of the vocabulary, got 'zebra', 'emu': fit"
    refused(ValueError, message, WORLD.encode, "the zebra , the emu and the zebra")
    message = "got 'Ж', 'и', 'р', 'а', 'ф' and 1 more: fit"
    refused(ValueError, message, Characters.fit(["fox"]).encode, "Жирафы")
    made = Words.fit(["a a a b b c", "a"], unknown=True, at_least=2)
    assert made.vocabulary[3:] == ("<unknown>", "a", "b")
    assert made.encode("a c b zebra") == [4, 3, 5, 3] and made.decode([4, 3]) == "a <unknown>"


def test_bad_texts_to_fit():
    for bad in ("a fox", None, 3):
        refused(TypeError, "texts must be a list of texts, got", Words.fit, bad)
    refused(TypeError, r"texts\[1\] must be a str, got int 3", Words.fit, [("a", "b"), ("c", 3)])
    for bad in ([], ["", " "]):
        refused(ValueError, r"must hold words that occur 1 time\(s\), got none", Words.fit, bad)
    message = "unknown must be True if at_least is above 1"
    refused(ValueError, message, Words.fit, TEXTS, at_least=2)
    for kind, parts in ((Words, ["a", "a"]), (Words, ["a b"]), (Characters, ["ab"]), (Words, [""])):
        refused(ValueError, f"parts must be different {kind.kind}, and", kind, parts)


@pytest.mark.parametrize("kind", [Words, Characters])
def test_a_saved_vocabulary_is_the_same(tmp_path, kind):
    for unknown in (False, True):
        made = kind.fit(TEXTS, unknown=unknown)
        assert made.save(tmp_path / "deep" / "words.json") == tmp_path / "deep" / "words.json"
        found = tokenizers.load(str(tmp_path / "deep" / "words.json"))
        assert type(found) is kind and found == made and found.vocabulary == made.vocabulary
        assert found.unknown is unknown and found.fingerprint == made.fingerprint
    assert kind.fit(TEXTS) != kind.fit(TEXTS, unknown=True) != kind.fit(TEXTS[:2], unknown=True)
    assert Words(["a"]) != Characters(["a"]) and Words(["a"]) != "a"


def test_what_is_no_vocabulary_is_told(tmp_path):
    file = WORLD.save(tmp_path / "words.json")
    good = json.loads(file.read_text("utf-8"))
    for key, value, message in (
        ("vocabulary", good["vocabulary"][::-1], "which was changed or comes from another version"),
        ("format", "kdlib vocabulary 0", "which was changed or comes from another version"),
        ("kind", "syllables", "a saved vocabulary, got .*syllables"),
        ("vocabulary", [3], "a saved vocabulary, got .*text must be a str, got int 3"),
        ("unknown", 1, "a saved vocabulary, got .*unknown must be a bool"),
    ):
        file.write_text(json.dumps(good | {key: value}))
        refused(ValueError, message, tokenizers.load, file)
    for content in ("", "[]", "{}", '"words"'):
        file.write_text(content)
        refused(ValueError, "path must be a saved vocabulary, got", tokenizers.load, file)
    refused(FileNotFoundError, "no such file", tokenizers.load, tmp_path / "other.json")


def test_student_and_teacher_have_one_vocabulary():
    tokenizers.check_same(WORLD, Words(corpus.VOCABULARY))
    other = Words([*corpus.VOCABULARY[:10], "aardvark", *corpus.VOCABULARY[10:]])
    check, fewer = tokenizers.check_same, Words(corpus.VOCABULARY[:-1])
    refused(ValueError, "119 tokens .* 118, .*13 is 'aardvark' against ':'", check, other, WORLD)
    refused(ValueError, "117, and number 117 is 'wolf' against nothing", check, WORLD, fewer)
    refused(ValueError, "got characters against words: fit one", check, Characters(["a"]), WORLD)
    refused(TypeError, "teacher must be a Tokenizer, got NoneType", check, WORLD, None)


# Batches

PAIRS = [Example("tell anna fox", "well , the"), Example("list eva 2 foods", "sure :")]


def test_a_batch_by_hand():
    made = Words.fit(PAIRS)
    found = batch(PAIRS, made, 8)
    rows = [
        [*made.encode("tell anna fox"), SEPARATOR, *made.encode("well , the"), END],
        [*made.encode("list eva 2 foods"), SEPARATOR, *made.encode("sure :"), END],
    ]
    assert found.tokens.tolist() == [row[:-1] for row in rows]
    assert found.targets.tolist() == [row[1:] for row in rows]
    assert found.mask.tolist() == [[False] * 3 + [True] * 4, [False] * 4 + [True] * 3]
    assert found.tokens.dtype == found.targets.dtype == torch.int64
    longer = batch([*PAIRS, Example("tell", "the " * 7)], made, 9)
    assert longer.tokens.shape == longer.mask.shape == (3, 9)
    assert longer.tokens[0, 7:].tolist() == [END, PAD]
    assert longer.targets[0, 7:].tolist() == [PAD, PAD]
    assert not longer.mask[0, 7:].any()


def test_the_mask_holds_the_answer_and_its_end():
    pairs = corpus.examples("train", 300)
    found = batch(pairs, WORLD, 32)
    for pair, targets, mask in zip(pairs, found.targets, found.mask):
        assert WORLD.decode(targets[mask]) == pair.response and targets[mask][-1] == END
    assert (found.targets[:, :-1] == found.tokens[:, 1:]).all()
    rows = torch.tensor([5, 2, 5])
    for some, taken in ((rows, [pairs[5], pairs[2], pairs[5]]), (slice(7, 9), pairs[7:9])):
        alone = batch(taken, WORLD, 32)
        assert all(torch.equal(a, b) for a, b in zip(found.take(some), alone, strict=True))


def test_prompts_are_padded_on_the_left():
    found = prompt_tokens([pair.prompt for pair in PAIRS], WORLD, 5)
    tell, one = (WORLD.encode(pair.prompt) for pair in PAIRS)
    assert found.tolist() == [[PAD, *tell, SEPARATOR], [*one, SEPARATOR]]
    assert found.dtype == torch.int64
    message = r"prompts\[1\] must fit the context of 4 tokens, got 5 with the separator"
    refused(ValueError, message, prompt_tokens, [pair.prompt for pair in PAIRS], WORLD, 4)


BAD_EXAMPLES = [
    ([], ValueError, "examples must hold at least one, got none"),
    ("ab", TypeError, "examples must be a list, got str 'ab'"),
    ([PAIRS[0], "ab"], TypeError, r"examples\[1\] must be a pair of prompt and response, got str"),
    ([("fox", 3)], TypeError, r"examples\[0\], response, must be a str, got int 3"),
    ([(" ", "fox")], ValueError, r"examples\[0\], prompt, must not be empty, got ' '"),
    ([("fox", "")], ValueError, r"examples\[0\], response, must not be empty, got ''"),
    ([PAIRS[0], ("emu", "fox")], ValueError, r"examples\[1\], prompt, must consist .* got 'emu'"),
    (
        [("fox", "the " * 8)],
        ValueError,
        r"\[0\] must fit the context of 9 tokens, got 1 .* 8 .* 10",
    ),
]


def test_bad_examples():
    for pairs, error, message in BAD_EXAMPLES:
        refused(error, message, batch, pairs, WORLD, 9)


def test_bad_prompts():
    for bad, error, message in (
        ([], ValueError, "prompts must hold at least one, got none"),
        (["fox", None], TypeError, r"prompts\[1\] must be a str, got NoneType"),
        (["fox", ""], ValueError, r"prompts\[1\] must not be empty, got ''"),
        (["emu"], ValueError, r"prompts\[0\] must consist of the words .*, got 'emu'"),
    ):
        refused(error, message, prompt_tokens, bad, WORLD)
    refused(TypeError, "tokenizer must be a Tokenizer, got list", batch, PAIRS, list("ab"), 9)
    refused(ValueError, "context must be a whole number of at least 1", batch, PAIRS, WORLD, 0)
