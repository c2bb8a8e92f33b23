"""A review of one repository: every flag's function, called in turn."""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kdlib import __version__
from kdlib.homework.course import Course
from kdlib.homework.review import (
    executed,
    handed_in,
    history,
    length,
    needs,
    numbers,
    packages,
    people,
    running,
    similarity,
    stored,
    tampering,
    text,
)
from kdlib.homework.review.clock import Clock
from kdlib.homework.review.findings import (
    FLAGS,
    GREEN,
    NOTE,
    RED,
    Answer,
    Finding,
    Passage,
    Table,
    some,
)
from kdlib.homework.review.handed_in import HandedIn, Kit
from kdlib.homework.review.similarity import Program

FORMAT = 2


@dataclass(frozen=True)
class Options:
    """What holds for all repositories of one call.

    Attributes:
        course: rules and thresholds.
        kit: what teams were given.
        run: whether anything of a team's runs.
        trust: without a sandbox.
        budget: minutes for that, for each team.
        seed: of the sample of records; None draws one, so that no team can know it.
    """

    course: Course
    kit: Kit
    run: bool = True
    trust: bool = False
    budget: float = 4.0
    seed: int | None = None

    def key(self, commit: str) -> str:
        """Of a review of this commit: reviews with the same key need not be made again."""
        kit = sorted(self.kit.files)
        parts = [FORMAT, __version__, commit, self.run, self.trust, self.budget, self.seed, kit]
        return hashlib.sha256(repr([*parts, self.course]).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Review:
    """What was found in one repository.

    Attributes:
        name: of its folder, the same on all pages.
        path: that was given.
        team: its name, as team.toml says.
        members: their names.
        commit: that was read.
        key: of the options and the commit.
        seed: of the sample.
        seconds: that the review took.
        answers: by flag, in the order of the page.
    """

    name: str
    path: str
    team: str
    members: tuple[str, ...]
    commit: str
    key: str
    seed: int
    seconds: float
    answers: Mapping[str, Answer] = field(default_factory=dict)

    @property
    def findings(self) -> list[Finding]:
        """Of all flags."""
        return [one for answer in self.answers.values() for one in answer.findings]

    def state(self, flag: str) -> str:
        """The worst that was found: "red", else "green" if something is, else "note"."""
        seen = {one.severity for one in self.answers[flag].findings}
        return next((one for one in (RED, GREEN) if one in seen), NOTE)

    @property
    def counts(self) -> dict[str, int]:
        """{severity: how many flags are in this state}, as every page and table counts."""
        states = [self.state(flag) for flag in self.answers]
        return {severity: states.count(severity) for severity in (RED, GREEN, NOTE)}

    def told(self) -> str:
        """These counts in words."""
        return ", ".join(f"{count} {severity}" for severity, count in self.counts.items())

    def with_answer(self, flag: str, answer: Answer) -> Review:
        """The same with another answer."""
        return replace(self, answers={**self.answers, flag: answer})


@dataclass(frozen=True)
class Failed:
    """A repository that could not be reviewed, and why."""

    name: str
    path: str
    problem: str


def review(path: Path, name: str, options: Options) -> tuple[Review, Program]:
    """Review one repository; its code is returned for comparison with others.

    Raises:
        CannotReview: it is no repository, or empty.
        NoSandbox: something would have to run, and no sandbox works.
    """
    start = time.monotonic()
    with handed_in.copied(path, options.course, options.kit) as found:
        if options.run and not options.trust:
            _install(found)
        seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
        clock = Clock(options.run, options.trust, 60 * options.budget, seed)
        answers = {flag: function() for flag, function in _functions(found, clock).items()}
        language = found.team.language
        made = Review(
            name=name,
            path=str(path),
            team=found.team.name.of(language),
            members=tuple(member.name.of(language) for member in found.team.members),
            commit=found.commit,
            key=options.key(found.commit),
            seed=seed,
            seconds=round(time.monotonic() - start, 1),
            answers={flag: answers[flag] for flag in FLAGS},
        )
        return made, similarity.program(found, name)


def _install(found: HandedIn) -> None:
    """Install what the team declares and this environment lacks, for the sandbox alone."""
    wanted = list(needs.lacking(found))
    if not wanted:
        return
    place = found.git.folder.with_name("installed")
    place.mkdir()
    try:
        found.packages, names = packages.install(wanted, place)
        found.packages_told = f"installed for this review, from wheels: {some(names)}"
    except packages.NotInstalled as error:
        told = f"not installed for this review: {some(wanted)} ({error})"
        found.packages_told = " ".join(told.split())


def _functions(found: HandedIn, clock: Clock) -> dict[str, Callable[[], Answer]]:
    """{flag: what answers it}; what runs comes last, the longest at the end."""
    works = {} if found.shallow else history.read(found)
    return {
        "team_size": lambda: people.team_size(found),
        "contributions": lambda: people.contributions(found, works),
        "tasks": lambda: people.tasks(found),
        "tampering": lambda: tampering.tampering(found),
        "similarity": lambda: Answer.note("similarity", "not compared with other teams"),
        "unbound_numbers": lambda: numbers.unbound_numbers(found),
        "sources": lambda: text.sources_(found),
        "notebooks": lambda: stored.notebooks(found),
        "conclusions": lambda: text.conclusions(found),
        "figures": lambda: text.figures(found),
        "failed_attempts": lambda: text.failed_attempts(found),
        "page_limit": lambda: length.page_limit(found, clock),
        "exercises": lambda: executed.exercises(found, clock, works),
        "reproducibility": lambda: running.reproducibility(found, clock),
    }


# As JSON


def as_json(found: Review) -> str:
    """review.json: the findings first, then what the page shows below them."""
    content: dict[str, Any] = {
        "format": FORMAT,
        **{name: getattr(found, name) for name in _PLAIN},
        "flags": found.counts,
        "findings": [one._asdict() for one in found.findings],
        "details": {
            flag: {
                "tables": [table._asdict() for table in answer.tables],
                "passages": [passage._asdict() for passage in answer.passages],
                "commands": answer.commands,
            }
            for flag, answer in found.answers.items()
        },
    }
    return json.dumps(content, ensure_ascii=False, indent=1) + "\n"


_PLAIN = ("name", "path", "team", "members", "commit", "key", "seed", "seconds")


def from_json(text: str) -> Review:
    """The review that `as_json` wrote.

    Raises:
        ValueError: it is of another version, or damaged.
    """
    try:
        content = json.loads(text)
        if content["format"] != FORMAT:
            raise ValueError("another version wrote it")
        listed = [Finding(**one) for one in content["findings"]]
        answers = {
            flag: Answer(
                tuple(one for one in listed if one.flag == flag),
                tuple(_table(table) for table in below["tables"]),
                tuple(Passage(**passage) for passage in below["passages"]),
                tuple(below["commands"]),
            )
            for flag, below in content["details"].items()
        }
        plain = {name: content[name] for name in _PLAIN}
        return Review(**plain | {"members": tuple(plain["members"])}, answers=answers)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it is no review ({error!r})") from None


def _table(found: dict[str, Any]) -> Table:
    return Table(found["caption"], tuple(found["head"]), tuple(map(tuple, found["rows"])))
