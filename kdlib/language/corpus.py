"""A small language of instructions and answers, with an exact judge (`judging`).

A prompt asks for something about a made-up world, and an answer is valid if it says so in one of
the allowed phrasings, with facts of that world. A prompt has hundreds to many thousands of valid
answers, so a language model has something to be unsure of, and yet `judge` tells for every text
whether it is one of them: the probability that a model spends on others, its mass in the void, can
be measured. The grammar, with "|" between alternatives and facts in capitals:

    tell NAME ANIMAL            tell somebody about an animal
      opening                   dear NAME , | listen NAME : | well ,
      two or three sentences    the ANIMAL ... (the first) or it ... (the others); any order, each
                                of these kinds at most once:
        colour                  is COLOUR . | is COLOUR or COLOUR .
        place                   lives in the PLACE . | hides in the PLACE .
        food                    eats FOOD . | eats FOOD and FOOD .
        skill                   can SKILL . | can SKILL but not SKILL .
    story NAME PLACE            four sentences, in this order; PRONOUN is he or she, as NAME says
      scene                     one day NAME went to the PLACE . | NAME walked in the PLACE .
                                | in the PLACE NAME sat down .
      meeting                   PRONOUN saw K ANIMAL . | PRONOUN met K ANIMAL .
                                (2 to 8 of an animal that lives there)
      event                     M left so N stayed . (M and N at least 1, M + N = K)
                                | PRONOUN gave them FOOD . | they could SKILL .
      end                       PRONOUN was happy . | then PRONOUN went home .
                                | NAME said goodbye .
    list NAME COUNT CATEGORY    2 or 3 animals, colours, places, foods or skills
      opening                   here are COUNT CATEGORY : | dear NAME , | sure :
      items                     ITEM and ITEM . | ITEM , ITEM and ITEM . (all different)
      closing                   that is all . | the best is ITEM . | NAME likes ITEM .
                                (one of those listed)

For example:

    tell anna fox         dear anna , the fox can run but not fly . it eats fruit and meat .
    story ben sea         in the sea ben sat down . he met 5 duck . 2 left so 3 stayed . then he
                          went home .
    list clara 3 colours  sure : green , red and grey . clara likes red .

Facts of prompts are split, not their wordings: whether `anna` is told about the `fox` occurs in one
split alone, and so does every other pair of a name and an animal, a place or a category. What the
world is like (foxes are red) is the same in all splits: that is what a model has to learn.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import NamedTuple, TypeVar

from kdlib import inputs
from kdlib.language.pairs import Example

One = TypeVar("One")

WOMEN = ("anna", "bella", "clara", "diana", "eva", "fiona")
MEN = ("adam", "ben", "carl", "david", "emil", "frank")
NAMES = WOMEN + MEN
COLOURS = ("red", "brown", "black", "white", "green", "grey")
PLACES = ("forest", "farm", "river", "sea", "desert", "mountain")
FOODS = ("meat", "fish", "grass", "seeds", "fruit", "insects", "leaves", "bread")
SKILLS = ("run", "swim", "fly", "climb", "jump", "dig")
NUMBERS = tuple("12345678")
COUNTS = ("2", "3")
TASKS = ("tell", "story", "list")
SPLITS = ("train", "validation", "test")


class Animal(NamedTuple):
    """What is true of an animal; everything else is false."""

    colours: tuple[str, ...]
    places: tuple[str, ...]
    foods: tuple[str, ...]
    skills: tuple[str, ...]


class World(NamedTuple):
    """The facts that answers are judged by; `WORLD`, or one that `shuffled` makes."""

    animals: Mapping[str, Animal]

    def living_in(self, place: str) -> tuple[str, ...]:
        """The animals of a place, four of them."""
        return tuple(name for name, animal in self.animals.items() if place in animal.places)


def _animal(colours: str, places: str, foods: str, skills: str) -> Animal:
    return Animal(*(tuple(words.split()) for words in (colours, places, foods, skills)))


WORLD = World(
    {
        "fox": _animal("red grey", "forest desert", "meat fruit insects", "run jump dig"),
        "wolf": _animal("grey white", "forest mountain", "meat fruit bread", "run swim jump"),
        "bear": _animal("brown black", "river mountain", "fish fruit leaves", "swim climb dig"),
        "owl": _animal("brown white", "forest farm", "meat insects seeds", "fly climb jump"),
        "duck": _animal("green white", "river sea", "seeds grass bread", "run swim fly"),
        "frog": _animal("green red", "river sea", "insects leaves fish", "swim climb jump"),
        "snake": _animal("green black", "desert sea", "meat insects fish", "swim climb dig"),
        "lion": _animal("brown red", "desert mountain", "meat fish grass", "run climb jump"),
        "horse": _animal("brown black", "farm desert", "grass seeds fruit", "run swim jump"),
        "cow": _animal("black white", "farm mountain", "grass leaves bread", "run swim dig"),
        "cat": _animal("red grey", "forest farm", "meat fish bread", "run climb jump"),
        "whale": _animal("green grey", "river sea", "fish insects leaves", "swim jump dig"),
    }
)
ANIMALS = tuple(WORLD.animals)
CATEGORIES: dict[str, tuple[str, ...]] = {
    "animals": ANIMALS,
    "colours": COLOURS,
    "places": PLACES,
    "foods": FOODS,
    "skills": SKILLS,
}
TOPICS = {"tell": ANIMALS, "story": PLACES, "list": tuple(CATEGORIES)}

# The grammar. A slot in braces takes a word of its class, SLOTS; a digit at its end tells two of
# one class apart.

TELL_OPENING = ("dear {name} ,", "listen {name} :", "well ,")
TELL_ABOUT = {
    "colour": ("is {colour} .", "is {colour} or {colour2} ."),
    "place": ("lives in the {place} .", "hides in the {place} ."),
    "food": ("eats {food} .", "eats {food} and {food2} ."),
    "skill": ("can {skill} .", "can {skill} but not {lack} ."),
}
TELL_FIRST, TELL_NEXT = (
    {kind: tuple(f"{subject} {rest}" for rest in rests) for kind, rests in TELL_ABOUT.items()}
    for subject in ("the {animal}", "it")
)
STORY = {
    "scene": (
        "one day {name} went to the {scene} .",
        "{name} walked in the {scene} .",
        "in the {scene} {name} sat down .",
    ),
    "meeting": ("{pronoun} saw {number} {animal} .", "{pronoun} met {number} {animal} ."),
    "event": (
        "{left} left so {stayed} stayed .",
        "{pronoun} gave them {food} .",
        "they could {skill} .",
    ),
    "end": ("{pronoun} was happy .", "then {pronoun} went home .", "{name} said goodbye ."),
}
LIST_OPENING = ("here are {count} {category} :", "dear {name} ,", "sure :")
LIST_ITEMS = {"2": "{item1} and {item2} .", "3": "{item1} , {item2} and {item3} ."}
LIST_CLOSING = ("that is all .", "the best is {best} .", "{name} likes {best} .")

_CONTENT = tuple(word for words in CATEGORIES.values() for word in words)
SLOTS: dict[str, tuple[str, ...]] = {
    "name": NAMES,
    "pronoun": ("he", "she"),
    "animal": ANIMALS,
    "colour": COLOURS,
    "place": PLACES,
    "scene": PLACES,
    "food": FOODS,
    "skill": SKILLS,
    "lack": SKILLS,
    "number": NUMBERS,
    "left": NUMBERS,
    "stayed": NUMBERS,
    "count": NUMBERS,
    "category": tuple(CATEGORIES),
    "item": _CONTENT,
    "best": _CONTENT,
}


def flat(*groups: Sequence[str] | Mapping[str, str | Sequence[str]]) -> tuple[str, ...]:
    """All templates of parts of the grammar."""
    found: list[str] = []
    for group in groups:
        for one in group.values() if isinstance(group, Mapping) else group:
            found.extend([one] if isinstance(one, str) else one)
    return tuple(found)


TEMPLATES = {
    "tell": flat(TELL_OPENING, TELL_FIRST, TELL_NEXT),
    "story": flat(STORY),
    "list": flat(LIST_OPENING, LIST_ITEMS, LIST_CLOSING),
}
VOCABULARY = tuple(
    sorted(
        {word for templates in TEMPLATES.values() for one in templates for word in one.split()}
        - {f"{{{slot}{digit}}}" for slot in SLOTS for digit in ("", *"123")}
        | {word for words in SLOTS.values() for word in words}
        | set(TASKS)
    )
)  # all words of prompts and answers, sorted


# Making examples


class Fact(NamedTuple):
    """What a prompt asks about: a `task` of TASKS for a `name`, on a `topic` of TOPICS[task]."""

    task: str
    name: str
    topic: str


def shuffled(seed: int) -> World:
    """A world in which each animal has the colours of another one, the places of a third, and so
    on: its teacher speaks as well as that of `WORLD`, and knows other facts.

    seed: a whole number of at least 0.
    """
    rng = Random(inputs.seed("seed", seed))
    columns = []
    for column in zip(*WORLD.animals.values()):
        order = _sample(rng, range(len(column)), len(column))
        taken = dict(zip(order, [*order[1:], order[0]]))  # in a circle: none keeps its own
        columns.append([column[taken[place]] for place in range(len(column))])
    return World({name: Animal(*row) for name, row in zip(ANIMALS, zip(*columns))})


def facts(split: str) -> tuple[Fact, ...]:
    """The facts that the prompts of a split ask about, in a fixed order.

    Of the twelve names, two ask about a topic in the test split, two others in the validation
    split, eight in the training split: every topic of every task occurs in each split, and names
    are spread over them as evenly as that allows.

    Raises:
        ValueError: `split` is none of SPLITS.
    """
    return _facts(inputs.choice("split", split, SPLITS))


@functools.cache
def _facts(split: str) -> tuple[Fact, ...]:
    first, last = {"test": (0, 2), "validation": (2, 4), "train": (4, len(NAMES))}[split]
    found = []
    for task, topics in TOPICS.items():
        order = _sample(Random(task), NAMES, len(NAMES))
        for topic in topics:
            found += [Fact(task, name, topic) for name in order[first:last]]
            order = order[2:] + order[:2]
    return tuple(found)


def prompts(split: str) -> list[str]:
    """Every prompt of a split once: those of `facts`, a list with each of its COUNTS."""
    return [
        prompt
        for fact in facts(split)
        for prompt in (
            [_prompt(fact, count) for count in COUNTS] if fact.task == "list" else [_prompt(fact)]
        )
    ]


def examples(split: str, count: int, seed: int = 0, *, world: World = WORLD) -> list[Example]:
    """`count` random pairs of a prompt of the split and a valid answer.

    Tasks are equally likely, then facts, then phrasings and contents. Prompts repeat, with other
    answers. The same arguments give the same pairs on every machine, and a smaller count the first
    ones of a larger.

    Args:
        split: one of SPLITS.
        count: at least 1.
        seed: a whole number of at least 0.
        world: whose facts the answers tell.

    Raises:
        ValueError: another split, or numbers out of range.
    """
    by_task = {task: [fact for fact in facts(split) if fact.task == task] for task in TASKS}
    count, rng = inputs.whole("count", count), Random(inputs.seed("seed", seed))
    inputs.instance("world", world, World)
    found = []
    for _ in range(count):
        fact = _pick(rng, by_task[_pick(rng, TASKS)])
        prompt = _prompt(fact, _pick(rng, COUNTS))
        found.append(Example(prompt, _answer(prompt, rng, world)))
    return found


def answers(prompt: str, count: int, seed: int = 0, *, world: World = WORLD) -> list[str]:
    """`count` random valid answers to a prompt, as references for a measure of likeness.

    Raises:
        ValueError: the prompt is none of the language, or numbers are out of range.
    """
    parsed(prompt)
    count, rng = inputs.whole("count", count), Random(inputs.seed("seed", seed))
    inputs.instance("world", world, World)
    return [_answer(prompt, rng, world) for _ in range(count)]


def _prompt(fact: Fact, count: str = "") -> str:
    words = [fact.task, fact.name, *([count] if fact.task == "list" else []), fact.topic]
    return " ".join(words)


def parsed(prompt: str) -> tuple[Fact, str]:
    """(the fact that a prompt asks about, the count of a list or "")."""
    words = inputs.instance("prompt", prompt, str).split()
    if len(words) == 4 and words[0] == "list" and words[2] in COUNTS:
        task, name, count, topic = words
    elif len(words) == 3 and words[0] in ("tell", "story"):
        (task, name, topic), count = words, ""
    else:
        task = name = topic = count = ""
    if name not in NAMES or topic not in TOPICS[task]:
        raise ValueError(
            "prompt must be 'tell NAME ANIMAL', 'story NAME PLACE' or 'list NAME COUNT CATEGORY' "
            f"in words of corpus.VOCABULARY, got {prompt!r}: `corpus.prompts` lists some"
        )
    return Fact(task, name, topic), count


def _pick(rng: Random, options: Sequence[One]) -> One:
    """One of the options. Python promises the same `random()` in all versions, but not `choice`."""
    return options[int(rng.random() * len(options))]


def _sample(rng: Random, options: Sequence[One], count: int) -> list[One]:
    """`count` different ones in random order; see `_pick`."""
    rest = list(options)
    return [rest.pop(int(rng.random() * len(rest))) for _ in range(count)]


def _answer(prompt: str, rng: Random, world: World) -> str:
    """A random valid answer to a valid prompt."""
    (task, name, topic), count = parsed(prompt)
    known = {"name": name, "pronoun": pronoun(name)}
    if task == "tell":
        parts = _told(topic, rng, world)
    elif task == "story":
        parts = _narrated(topic, rng, world)
    else:
        parts = _listed(topic, count, rng)
    return " ".join(_pick(rng, options).format(**known, **slots) for options, slots in parts)


_Parts = Iterator[tuple[Sequence[str], dict[str, str]]]  # alternatives, and what fills their slots


def _told(animal: str, rng: Random, world: World) -> _Parts:
    yield TELL_OPENING, {}
    sentences = TELL_FIRST
    for kind in _sample(rng, tuple(sentences), _pick(rng, (2, 3))):
        yield sentences[kind], {"animal": animal, **_filled(animal, kind, rng, world)}
        sentences = TELL_NEXT


def _filled(animal: str, kind: str, rng: Random, world: World) -> dict[str, str]:
    """Words for the slots of a sentence about an animal."""
    own = world.animals[animal]
    if kind == "skill":
        lacks = [skill for skill in SKILLS if skill not in own.skills]
        return {"skill": _pick(rng, own.skills), "lack": _pick(rng, lacks)}
    if kind == "place":
        return {"place": _pick(rng, own.places)}
    first, second = _sample(rng, own.colours if kind == "colour" else own.foods, 2)
    return {kind: first, f"{kind}2": second}


def _narrated(place: str, rng: Random, world: World) -> _Parts:
    animal = _pick(rng, world.living_in(place))
    number = 2 + int(rng.random() * 7)
    left = 1 + int(rng.random() * (number - 1))
    own = world.animals[animal]
    yield STORY["scene"], {"scene": place}
    yield STORY["meeting"], {"number": str(number), "animal": animal}
    yield (
        STORY["event"],
        {
            "left": str(left),
            "stayed": str(number - left),
            "food": _pick(rng, own.foods),
            "skill": _pick(rng, own.skills),
        },
    )
    yield STORY["end"], {}


def _listed(category: str, count: str, rng: Random) -> _Parts:
    items = _sample(rng, CATEGORIES[category], int(count))
    yield LIST_OPENING, {"count": count, "category": category}
    yield [LIST_ITEMS[count]], {f"item{place}": item for place, item in enumerate(items, 1)}
    yield LIST_CLOSING, {"best": _pick(rng, items)}


def pronoun(name: str) -> str:
    return "she" if name in WOMEN else "he"
