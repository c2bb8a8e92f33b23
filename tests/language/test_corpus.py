"""The corpus: a judge that accepts all that is generated and nothing else, splits, own pairs."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from random import Random

import pytest

from kdlib.language import corpus
from kdlib.language.corpus import CATEGORIES, WORLD, examples
from kdlib.language.judging import judge
from kdlib.language.pairs import Example, load_pairs

MANY = 10_000
CONTENT = {word: category for category, words in CATEGORIES.items() for word in words}


def refused(error, message, function, *arguments, **options):
    with pytest.raises(error, match=message):
        function(*arguments, **options)


def test_every_generated_answer_is_valid():
    for split, seed in (("train", 1), ("validation", 2), ("test", 3)):
        for example in examples(split, MANY, seed):
            verdict = judge(*example)
            assert verdict and verdict.valid and verdict.reason == "", (example, verdict)


def test_the_words_are_those_of_the_vocabulary():
    texts = itertools.chain.from_iterable(examples("train", MANY))
    found = set(itertools.chain.from_iterable(text.split(" ") for text in texts))
    assert sorted(found) == list(corpus.VOCABULARY) and len(found) == 115


def test_the_same_arguments_give_the_same_examples_everywhere():
    found = examples("train", 1000, seed=5)
    assert examples("train", 100, seed=5) == found[:100] != examples("train", 100, seed=6)
    text = "\n".join(map(" -> ".join, found + examples("test", 1000, seed=5)))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "20b746ccf3ae1613"


def test_a_prompt_has_many_valid_answers():
    least_of = {"tell anna fox": 1500, "story ben sea": 1000, "list eva 2 foods": 300}
    for prompt, least in least_of.items():
        found = corpus.answers(prompt, 2000, seed=1)
        assert len(set(found)) >= least and all(judge(prompt, answer) for answer in found)
        assert corpus.answers(prompt, 10, seed=1) == found[:10]
    lengths = [len(response.split()) for _, response in examples("train", 2000)]
    assert 16 < sum(lengths) / 2000 < 19 and max(lengths) < 26


def test_no_fact_is_in_two_splits():
    by_split = {split: corpus.facts(split) for split in corpus.SPLITS}
    sizes = {split: len(found) for split, found in by_split.items()}
    assert sizes == {"train": 184, "validation": 46, "test": 46}
    everything = [fact for found in by_split.values() for fact in found]
    assert len(set(everything)) == 276 == 12 * (12 + 6 + 5)
    topics = {(task, topic) for task, topics in corpus.TOPICS.items() for topic in topics}
    for split, found in by_split.items():
        assert {(fact.task, fact.topic) for fact in found} == topics
        asked = {example.prompt for example in examples(split, MANY)}
        assert asked == set(corpus.prompts(split))
        assert {(w[0], w[1], w[-1]) for w in map(str.split, asked)} == set(found)
    for task, times in (("tell", 8), ("story", 4)):
        names = Counter(fact.name for fact in by_split["train"] if fact.task == task)
        assert names == dict.fromkeys(corpus.NAMES, times)


def test_a_shuffled_world_is_alike_but_for_its_facts():
    other = corpus.shuffled(3)
    assert other == corpus.shuffled(3) != corpus.shuffled(4)
    for mine, theirs in zip(zip(*WORLD.animals.values()), zip(*other.animals.values())):
        assert sorted(mine) == sorted(theirs)
    assert all(len(world.living_in(p)) == 4 for world in (WORLD, other) for p in corpus.PLACES)
    found = examples("train", 2000, world=other)
    assert all(judge(*example, world=other) for example in found)
    told = [example for example in found if example.prompt.startswith("tell")]
    assert sum(map(bool, itertools.starmap(judge, told))) < 0.2 * len(told)


# What is corrupted. Each of these returns an answer that cannot be valid, or None.


def wrong_fact(rng, prompt, words):
    """Which facts are true depends on the prompt and the animal alone, not on other words, so one
    that is false there makes any answer invalid. An item of another category is neither of the
    category, nor among those that were listed."""
    task, topic = prompt[0], prompt[-1]
    place = rng.choice([place for place, word in enumerate(words) if word in CONTENT])
    category = CONTENT[words[place]]
    if task == "list":
        options = [word for word in CONTENT if CONTENT[word] != topic]
    elif category == "animals":
        options = [animal for animal in corpus.ANIMALS if animal != topic]
        options = [a for a in options if task == "tell" or topic not in WORLD.animals[a].places]
    elif category == "places" and task == "story":
        options = [one for one in corpus.PLACES if one != topic]
    else:
        animal = topic if task == "tell" else next(w for w in words if w in corpus.ANIMALS)
        true = getattr(WORLD.animals[animal], category)
        lacking = words[place - 1] == "not"
        options = [one for one in CATEGORIES[category] if (one in true) == lacking]
    return [*words[:place], rng.choice(options), *words[place + 1 :]]


def wrong_number(rng, prompt, words):
    """A list has as many items as its prompt says. Of M + N = K one number was changed. A number
    without a sum may be 2 to 8, so it becomes 1."""
    places = [place for place, word in enumerate(words) if word in corpus.NUMBERS]
    if not places:
        return None
    place = rng.choice(places)
    free = prompt[0] == "story" and len(places) == 1
    options = [one for one in corpus.NUMBERS if one != words[place]]
    return [*words[:place], "1" if free else rng.choice(options), *words[place + 1 :]]


def wrong_name(rng, prompt, words):
    """The prompt names somebody, and by that says he or she: any other is wrong."""
    others = {name: [o for o in corpus.NAMES if o != name] for name in corpus.NAMES}
    others |= {"he": ["she"], "she": ["he"]}
    places = [place for place, word in enumerate(words) if word in others]
    if not places:
        return None
    place = rng.choice(places)
    return [*words[:place], rng.choice(others[words[place]]), *words[place + 1 :]]


def wrong_order(rng, prompt, words):
    """Openings, first sentences ("the fox"), later ones ("it"), the four sentences of a story,
    items and closings: no form of one of these is a form of another. Two later sentences may stand
    in any order, so these are not exchanged."""
    parts, start = [], 0
    for place, word in enumerate(words):
        if word == "." or (not parts and prompt[0] != "story" and word in ",:"):
            parts.append(words[start : place + 1])
            start = place + 1
    pairs = itertools.combinations(range(len(parts)), 2)
    free = (2, 3) if prompt[0] == "tell" else None
    one, other = rng.choice([pair for pair in pairs if pair != free])
    parts[one], parts[other] = parts[other], parts[one]
    return list(itertools.chain(*parts))


def dropped(rng, prompt, words):
    """The last word of an answer is always a full stop. Before the others a word and the one that
    follows it never may stand in the same place, so the latter cannot be there, but for one pair:
    without its "then" a sentence may begin with "she", but "went" cannot follow."""
    place = rng.randrange(len(words))
    return words[:place] + words[place + 1 :]


def doubled(rng, prompt, words):
    """No form has the same word twice in a row, and none ends as the next begins."""
    place = rng.randrange(len(words))
    return words[: place + 1] + words[place:]


def truncated(rng, prompt, words):
    """Every answer ends in a full stop, and this one does not."""
    return words[: rng.choice([p for p in range(len(words)) if not p or words[p - 1] != "."])]


CORRUPTED = {
    wrong_fact: {"wrong fact"},
    wrong_number: {"wrong number"},
    wrong_name: {"wrong name"},
    wrong_order: {"wrong order"},
    dropped: {"missing word", "cut short"},  # or the grammar breaks elsewhere: ", red ," as ", ,"
    doubled: {"repeated word"},
    truncated: {"cut short"},
}


@pytest.mark.parametrize("corrupt", CORRUPTED, ids=lambda one: one.__name__)
def test_every_corrupted_answer_is_rejected_and_the_reason_told(corrupt):
    rng, kinds = Random(0), Counter()
    for prompt, response in itertools.chain.from_iterable(
        examples("train", MANY, seed) for seed in itertools.count(10)
    ):
        words = corrupt(rng, prompt.split(), response.split())
        if words is None:
            continue
        verdict = judge(prompt, " ".join(words))
        assert not verdict and not verdict.valid, (prompt, response, words)
        kinds[verdict.reason.partition(":")[0]] += 1
        if kinds.total() == MANY:
            break
    told = sum(kinds[kind] for kind in CORRUPTED[corrupt])
    assert told == MANY or (corrupt is dropped and told > 0.98 * MANY), kinds


FOX = "dear anna , the fox can run but not fly . it eats fruit and meat ."
MET = "ben walked in the sea . he met 5 duck ."
REASONS = {
    "tell anna fox": [
        (FOX.replace("fly", "dig"), "wrong fact: the fox can dig"),
        (FOX.replace("meat", "fruit"), "repeated word: 'fruit' is told twice"),
        (FOX.replace("fox", "cat"), "wrong fact: another animal than the fox"),
        (FOX.split(" it")[0], "cut short: 1 sentence about the fox, of 2 or 3"),
        (FOX + " it can dig .", "repeated word: the skill is told twice"),
        (FOX + " it is red . it hides", "too long: 'it' stands after the end"),
        (FOX.replace(" it ", " the fox "), "wrong order: 'the fox eats fruit and meat .' cannot"),
        (FOX.replace(" it ", " it often "), "extra word: 'often' after 'it'"),
        (FOX.replace(", the", "the"), "missing word: ',' after 'anna'"),
        (FOX.replace("meat", "run"), "wrong word: after 'and' comes a word for food, not 'run'"),
        ("Hello", "wrong word: at the beginning comes 'dear' or 'listen' or 'well', not 'Hello'"),
        (" ", "cut short: empty"),
    ],
    "story ben sea": [
        (MET.replace(" he ", " she "), "wrong name: 'she' instead of 'he', as ben is meant"),
        (MET + " 2 left so 2 stayed .", "wrong number: 2 and 2 do not make 5"),
    ],
    "list eva 2 foods": [
        ("sure : meat , fish and bread .", "wrong number: 3 foods instead of 2"),
        ("sure : meat and meat .", "repeated word: 'meat' is listed twice"),
        ("sure : meat and fish . eva likes bread .", "wrong fact: 'bread' is none of the foods"),
    ],
}


@pytest.mark.parametrize("prompt", REASONS)
def test_reasons(prompt):
    for response, reason in REASONS[prompt]:
        verdict = judge(prompt, response)
        assert not verdict.valid and verdict.reason.startswith(reason), verdict


def test_white_space_does_not_matter_and_no_text_is_too_strange():
    assert judge(" tell  anna fox", f"\n{FOX}  \t")
    assert not judge("tell anna fox", FOX.replace("dear", "Dear"))
    rng = Random(0)
    pieces = [*corpus.VOCABULARY, "{name}", "{", "лиса", "\x00", "<pad>", FOX, "it is red ."]
    for _ in range(3000):
        text = " ".join(rng.choice(pieces) for _ in range(rng.randrange(12)))
        verdict = judge("tell anna fox", text)
        assert text.startswith(FOX) if verdict else ":" in verdict.reason


def test_bad_arguments_of_the_corpus():
    for bad in ("", "tell anna", "tell fox anna", "list anna 4 foods", "story anna fox", "sing"):
        refused(ValueError, "prompt must be 'tell NAME ANIMAL'", judge, bad, FOX)
    message = "split must be one of train, validation, test; got 'dev'"
    refused(ValueError, message, examples, "dev", 1)
    refused(ValueError, "count must be a whole number of at least 1", examples, "train", 0)
    refused(ValueError, "seed must be a whole number of at least 0", examples, "train", 1, seed=-1)
    refused(TypeError, "world must be a World, got dict", judge, "tell anna fox", FOX, world={})
    refused(TypeError, "response must be a str, got NoneType", judge, "tell anna fox", None)


# One's own pairs

GOOD = [{"prompt": "Кто живёт тут?", "response": "Лиса\nи волк."}, {"prompt": "a", "response": "b"}]


def lines(*entries):
    return "\n".join(one if isinstance(one, str) else json.dumps(one) for one in entries)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_pairs_are_read_as_any_editor_writes_them(tmp_path, end, mark):
    rows = [json.dumps(one, ensure_ascii=False) for one in GOOD]
    rows[1] = rows[1].replace("b", "b\u2028c\x85")  # ends of lines for Python's text, not for JSON
    file = tmp_path / "own.jsonl"
    for last in ("", end, end + "  " + end):
        file.write_bytes(mark + (end.join(rows) + last).encode())
        wanted = [Example(**GOOD[0]), Example("a", "b\u2028c\x85")]
        assert load_pairs(file) == wanted
    file.write_text(lines({"prompt": " a ", "response": "b", "topic": 3}))
    assert load_pairs(str(file)) == [Example(" a ", "b")]


def test_every_bad_line_is_told(tmp_path):
    bad = {
        "{": "no JSON: Expecting property name enclosed in double quotes at character 2",
        "[1]": "must be an object with prompt and response, got list",
        '{"prompt": "a"}': "no 'response'; its keys are 'prompt'",
        '{"prompt": 3, "response": "b"}': "prompt must be a text, got int 3",
        '{"prompt": "a", "response": null}': "response must be a text, got NoneType None",
        '{"prompt": "\\t", "response": "b"}': "prompt is empty",
        '{"prompt": "a", "response": ""}': "response is empty",
        '{"prompt": "a", "response": "\\ud83d"}': "response holds half a character",
        "[" * 100_000: "no JSON: too many brackets within each other",
    }
    file = tmp_path / "own.jsonl"
    file.write_bytes(lines(GOOD[1], "", *bad).encode() + b'\n{"prompt": "\xe4"}')
    with pytest.raises(ValueError, match="correct or delete 10 of its lines") as error:
        load_pairs(file)
    told = [*bad.values(), "byte 13 is not UTF-8"]
    for number, row in enumerate(str(error.value).splitlines()[1:]):
        assert row.startswith(f"  line {number + 3}: {told[number]}")
    assert number == 9
    file.write_text(lines(*["{}"] * 14))
    message = r"14 of its lines[^$]*line 10: no 'prompt'[^$]*and 4 more$"
    refused(ValueError, message, load_pairs, file)


def test_files_that_hold_no_pairs(tmp_path):
    load, file = load_pairs, tmp_path / "own.jsonl"
    refused(FileNotFoundError, r"own\.jsonl': there is no such file", load, file)
    refused(FileNotFoundError, "that is a folder", load, tmp_path)
    for content in (b"", b"\xef\xbb\xbf", b"\n \r\n"):
        file.write_bytes(content)
        refused(ValueError, "with at least one pair, got .* with none: write lines", load, file)
    file.write_text(lines(GOOD[1]), "utf-16")
    refused(ValueError, "in UTF-16: save it anew", load, file)
    refused(TypeError, "path must be a str or Path, got NoneType", load, None)
