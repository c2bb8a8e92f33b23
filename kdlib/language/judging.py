"""The judge of the corpus: is a text one of the answers that the grammar allows, with true facts?

It reads an answer by the grammar of `corpus`, and enumerates nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kdlib import inputs
from kdlib.language.corpus import (
    CATEGORIES,
    LIST_CLOSING,
    LIST_ITEMS,
    LIST_OPENING,
    SLOTS,
    STORY,
    TELL_FIRST,
    TELL_NEXT,
    TELL_OPENING,
    TEMPLATES,
    WORLD,
    World,
    flat,
    parsed,
    pronoun,
)


@dataclass(frozen=True)
class Verdict:
    """Whether an answer is valid, and if not, why; as true as `valid`.

    The reason begins with its kind and a colon: wrong fact, wrong number, wrong name, wrong order,
    wrong word, missing word, extra word, repeated word, cut short or too long.
    """

    valid: bool
    reason: str = ""

    def __bool__(self) -> bool:
        return self.valid


def judge(prompt: str, response: str, *, world: World = WORLD) -> Verdict:
    """Is this an answer that the grammar allows, with facts of the world?

    The answer is read once from left to right, and the first fault is told. White space between
    words does not matter, capitals do.

    Args:
        prompt: one of the language; see the module.
        response: any text.
        world: whose facts hold.

    Raises:
        ValueError: the prompt is none of the language.
    """
    (task, name, topic), count = parsed(prompt)
    inputs.instance("world", world, World)
    reader = _Reader(inputs.instance("response", response, str).split(), task, name)
    try:
        if task == "tell":
            _judge_tell(reader, topic, world)
        elif task == "story":
            _judge_story(reader, topic, world)
        else:
            _judge_list(reader, topic, count)
        reader.end()
    except _Fault as fault:
        return Verdict(False, str(fault))
    return Verdict(True)


class _Fault(Exception):
    """Why an answer is not valid."""


class _Reader:
    """Reads the words of an answer by the templates of its task."""

    def __init__(self, words: list[str], task: str, name: str) -> None:
        self.words, self.task, self.name = words, task, name
        self.place = 0  # of the next word

    @property
    def done(self) -> bool:
        return self.place >= len(self.words)

    def read(self, templates: Sequence[str]) -> dict[str, str]:
        """Read one of the templates, and return its slots with the words in them.

        No template is the beginning of another, so at most one fits.
        """
        rest = self.words[self.place :]
        for template in templates:
            if _fits(template, rest) == len(template.split()):
                found = {
                    slot[1:-1]: word for slot, word in zip(template.split(), rest) if slot[0] == "{"
                }
                self.place += len(template.split())
                self._check_names(found)
                return found
        raise _Fault(self._reason(templates, rest))

    def end(self) -> None:
        if not self.done:
            word, before = self.words[self.place], self.words[self.place - 1]
            if word == before:
                raise _Fault(f"repeated word: '{before} {word}'")
            raise _Fault(f"too long: {word!r} stands after the end")

    def _check_names(self, found: dict[str, str]) -> None:
        for slot, wanted in (("name", self.name), ("pronoun", pronoun(self.name))):
            if found.get(slot, wanted) != wanted:
                raise _Fault(
                    f"wrong name: {found[slot]!r} instead of {wanted!r}, as {self.name} is meant"
                )

    def _reason(self, templates: Sequence[str], rest: list[str]) -> str:
        """Why none of the templates fits the words that follow."""
        fits = {template: _fits(template, rest) for template in templates}
        read = max(fits.values())
        before = self.words[self.place + read - 1] if self.place + read else ""
        if read == len(rest):
            return f"cut short: the answer ends after {before!r}" if before else "cut short: empty"
        word = rest[read]
        if word == before:
            return f"repeated word: '{before} {word}'"
        for template in TEMPLATES[self.task]:
            if _fits(template, rest) == len(template.split()):
                sentence = " ".join(rest[: len(template.split())])
                return f"wrong order: '{sentence}' cannot stand here"
        after = f"after {before!r}" if before else "at the beginning"
        closest = [template.split() for template in templates if fits[template] == read]
        for slots in closest:
            if read + 1 < len(slots) and _takes(slots[read + 1], word):
                return f"missing word: {_called(slots[read])} {after}"
        for slots in closest:
            if read + 1 < len(rest) and _takes(slots[read], rest[read + 1]):
                return f"extra word: {word!r} {after}"
        for slots in closest:
            if read + 1 == len(slots):
                return f"missing word: {_called(slots[read])} {after}"
        wanted = " or ".join(dict.fromkeys(_called(slots[read]) for slots in closest))
        return f"wrong word: {after} comes {wanted}, not {word!r}"


def _takes(slot: str, word: str) -> bool:
    """Whether a word may stand in a place of a template: a literal word or a slot."""
    return word in SLOTS[slot[1:-1].rstrip("123")] if slot[0] == "{" else word == slot


def _fits(template: str, words: Sequence[str]) -> int:
    """How many of the first words follow the template."""
    for place, (slot, word) in enumerate(zip(template.split(), words)):
        if not _takes(slot, word):
            return place
    return min(len(template.split()), len(words))


def _called(slot: str) -> str:
    """A place of a template, for a reason."""
    return f"a word for {slot[1:-1].rstrip('1234')}" if slot[0] == "{" else repr(slot)


def _judge_tell(reader: _Reader, animal: str, world: World) -> None:
    reader.read(TELL_OPENING)
    told: set[str] = set()
    while len(told) < 2 or (len(told) < 3 and not reader.done):
        if told and reader.done:
            raise _Fault(f"cut short: 1 sentence about the {animal}, of 2 or 3")
        found = reader.read(flat(TELL_NEXT if told else TELL_FIRST))
        if found.pop("animal", animal) != animal:
            raise _Fault(f"wrong fact: another animal than the {animal}")
        kind = next(iter(found))  # the first slot of a sentence is called like its kind
        if kind in told:
            raise _Fault(f"repeated word: the {kind} is told twice")
        told.add(kind)
        _check_facts(animal, found, world)


_FACTS = {
    "colour": "the {animal} is not {word}",
    "place": "the {animal} does not live in the {word}",
    "food": "the {animal} does not eat {word}",
    "skill": "the {animal} cannot {word}",
    "lack": "the {animal} can {word}",
}


def _check_facts(animal: str, found: Mapping[str, str], world: World) -> None:
    """The words in the slots are true of the animal, and two in one sentence are different."""
    own = world.animals[animal]
    truths = dict(zip(_FACTS, (own.colours, own.places, own.foods, own.skills, own.skills)))
    for slot, word in found.items():
        kind = slot.rstrip("2")
        if kind in truths and (word in truths[kind]) == (kind == "lack"):
            raise _Fault("wrong fact: " + _FACTS[kind].format(animal=animal, word=word))
        if found.get(f"{slot}2") == word:
            raise _Fault(f"repeated word: {word!r} is told twice")


def _judge_story(reader: _Reader, place: str, world: World) -> None:
    if reader.read(STORY["scene"])["scene"] != place:
        raise _Fault(f"wrong fact: another place than the {place}")
    met = reader.read(STORY["meeting"])
    _check_facts(met["animal"], {"place": place}, world)
    if met["number"] == "1":
        raise _Fault("wrong number: 1 animal, and 2 to 8 may be met")
    event = reader.read(STORY["event"])
    _check_facts(met["animal"], event, world)
    if "left" in event and int(event["left"]) + int(event["stayed"]) != int(met["number"]):
        raise _Fault(
            f"wrong number: {event['left']} and {event['stayed']} do not make {met['number']}"
        )
    reader.read(STORY["end"])


def _judge_list(reader: _Reader, category: str, count: str) -> None:
    opening = reader.read(LIST_OPENING)
    if opening.get("count", count) != count:
        raise _Fault(f"wrong number: {opening['count']} instead of {count}")
    if opening.get("category", category) != category:
        raise _Fault(f"wrong fact: {opening['category']} instead of {category}")
    items = list(reader.read(tuple(LIST_ITEMS.values())).values())
    for place, item in enumerate(items):
        if item not in CATEGORIES[category]:
            raise _Fault(f"wrong fact: {item!r} is none of the {category}")
        if item in items[:place]:
            raise _Fault(f"repeated word: {item!r} is listed twice")
    if len(items) != int(count):
        raise _Fault(f"wrong number: {len(items)} {category} instead of {count}")
    best = reader.read(LIST_CLOSING).get("best", items[0])
    if best not in items:
        raise _Fault(f"wrong fact: {best!r} is none of the {category} that were listed")
