"""The course as data: its blocks, its homeworks and their rules, in both languages."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from kdlib.homework import entries
from kdlib.homework.entries import Entry, Text

FILE = Path(__file__).with_name("course.toml")


@dataclass(frozen=True)
class Person:
    """Somebody who teaches the course; `key` is the name by which the file speaks of them."""

    key: str
    name: Text
    affiliation: Text


@dataclass(frozen=True)
class Lecture:
    """The lecture that this kit belongs to."""

    number: int
    title: Text
    date: date
    teacher: Person


@dataclass(frozen=True)
class Block:
    """A part of the course: its topics, and who teaches it."""

    title: Text
    topics: tuple[Text, ...]
    teachers: tuple[Person, ...]


@dataclass(frozen=True)
class Homework:
    """A team homework and about when it is issued."""

    topic: Text
    issued: date


@dataclass(frozen=True)
class Rules:
    """Of every homework: at most so many members and pages, so many weeks, and what is allowed."""

    team_size: int
    pages: int
    weeks: int
    hand_in: Text
    foreign_code: Text
    copying: Text


@dataclass(frozen=True)
class Grading:
    """What one and two passed homeworks give, and when one is passed."""

    one: Text
    two: Text
    passed: Text


@dataclass(frozen=True)
class Flags:
    """Examples of what speaks against and for a work; `note` says that they are no criteria."""

    note: Text
    red: tuple[Text, ...]
    green: tuple[Text, ...]


@dataclass(frozen=True)
class Review:
    """What `review` looks for, and how far it goes; the course file says why each is as it is.

    Attributes:
        language: of the headings.
        share: percent of the source lines from which one member did nearly everything.
        strangers: percent of the source lines from which people outside the team did too much.
        source: ends of the names of files whose lines count as work.
        made: names, and folders with "/", whose lines do not.
        words: that a section needs.
        similar: percent of common code from which two teams are told.
        passages: of common code that a page shows at most.
        largest, whole: megabytes of a file, and of a repository.
        commits: that are read at most, the latest.
        budget: minutes for running things again.
        notebooks: percent of the budget that records leave to notebooks.
        repeats: records that are run again at most.
        start: seconds that a run takes beside its training.
        accelerator: how many times faster than this machine a GPU is taken to be.
        slower: how many times as long as planned a run may take.
    """

    language: str
    share: int
    strangers: int
    source: tuple[str, ...]
    made: tuple[str, ...]
    words: int
    similar: int
    passages: int
    largest: int
    whole: int
    commits: int
    budget: int
    notebooks: int
    repeats: int
    start: int
    accelerator: int
    slower: int


@dataclass(frozen=True)
class Course:
    """Everything in the course file."""

    title: Text
    university: Text
    contact: Text
    lecture: Lecture
    team: tuple[Person, ...]
    blocks: tuple[Block, ...]
    homeworks: tuple[Homework, ...]
    rules: Rules
    grading: Grading
    flags: Flags
    review: Review


def load(path: str | Path | None = None) -> Course:
    """Read a course file; default: the one that the variable `KDLIB_COURSE` names, else the kit's.

    Raises:
        OSError: the file cannot be read.
        ValueError: an entry is wrong, missing or unknown; the message has its line.
    """
    found = entries.read(path or os.environ.get("KDLIB_COURSE") or FILE).table(
        ["title", "university", "contact", "lecture", "team", "blocks", "homeworks", "rules",
         "grading", "flags"], ["review"]
    )  # fmt: skip
    if "review" not in found:  # a course file may leave it to the kit
        found |= {"review": entries.read(FILE).named()["review"]}
    team: dict[str, Person] = {}
    for entry in found["team"].items(most=20):
        one = entry.table(["key", "name", "affiliation"])
        key = one["key"].text(40)
        if key in team:
            raise one["key"].error("another key than those above")
        team[key] = Person(key, one["name"].both(), one["affiliation"].both())
    return Course(
        title=found["title"].both(),
        university=found["university"].both(),
        contact=found["contact"].both(),
        lecture=_lecture(found["lecture"], team),
        team=tuple(team.values()),
        blocks=tuple(_block(entry, team) for entry in found["blocks"].items(most=20)),
        homeworks=tuple(_homework(entry) for entry in found["homeworks"].items(most=20)),
        rules=_rules(found["rules"]),
        grading=_grading(found["grading"]),
        flags=_flags(found["flags"]),
        review=_review(found["review"]),
    )


def _person(entry: Entry, team: dict[str, Person]) -> Person:
    return team[entry.one_of(tuple(team), "add the person to [[team]]")]


def _lecture(entry: Entry, team: dict[str, Person]) -> Lecture:
    found = entry.table(["number", "title", "date", "teacher"])
    return Lecture(
        number=found["number"].whole(1, 100),
        title=found["title"].both(),
        date=found["date"].day(),
        teacher=_person(found["teacher"], team),
    )


def _block(entry: Entry, team: dict[str, Person]) -> Block:
    found = entry.table(["title", "topics", "teachers"])
    teachers = tuple(_person(one, team) for one in found["teachers"].items())
    return Block(found["title"].both(), found["topics"].all_both(), teachers)


def _homework(entry: Entry) -> Homework:
    found = entry.table(["topic", "issued"])
    return Homework(found["topic"].both(), found["issued"].day())


def _rules(entry: Entry) -> Rules:
    found = entry.table(["team_size", "pages", "weeks", "hand_in", "foreign_code", "copying"])
    return Rules(
        team_size=found["team_size"].whole(1, 50),
        pages=found["pages"].whole(1, 100),
        weeks=found["weeks"].whole(1, 52),
        hand_in=found["hand_in"].both(),
        foreign_code=found["foreign_code"].both(),
        copying=found["copying"].both(),
    )


def _grading(entry: Entry) -> Grading:
    found = entry.table(["one", "two", "passed"])
    return Grading(found["one"].both(), found["two"].both(), found["passed"].both())


def _flags(entry: Entry) -> Flags:
    found = entry.table(["note", "red", "green"])
    return Flags(found["note"].both(), found["red"].all_both(), found["green"].all_both())


_COUNTS = {
    "share": 100, "strangers": 100, "words": 1000, "similar": 100, "passages": 1000,
    "largest": 10_000, "whole": 100_000, "commits": 1_000_000, "budget": 10_000,
    "notebooks": 40, "repeats": 1000,
    "start": 3600, "accelerator": 10_000, "slower": 1000,
}  # fmt: skip


def _review(entry: Entry) -> Review:
    found = entry.table(["language", "source", "made", *_COUNTS])
    return Review(
        language=found["language"].one_of(entries.LANGUAGES),
        source=found["source"].texts(),
        made=found["made"].texts(least=0),
        **{name: found[name].whole(1, most) for name, most in _COUNTS.items()},
    )
