"""What a team says about itself and its work: team.toml beside the report."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from kdlib.homework import entries
from kdlib.homework.entries import LANGUAGES, Entry, Text
from kdlib.homework.words import AFTER, SECTIONS

FILE = "team.toml"
WRITABLE = tuple(name for name in SECTIONS if name not in AFTER)  # sections that members write


@dataclass(frozen=True)
class Member:
    """A member: addresses of the commits, items of the task, sections of the report."""

    name: Text
    git: tuple[str, ...]
    items: tuple[Text, ...]
    sections: tuple[str, ...]
    line: int = field(compare=False)


@dataclass(frozen=True)
class Source:
    """Code that is not the team's: what it is, where it comes from, what was changed in it."""

    what: Text
    origin: Text
    licence: str
    changed: Text
    line: int = field(compare=False)


@dataclass(frozen=True)
class Experiment:
    """What a reader compares in an experiment.

    Attributes:
        baseline: the method from which differences are taken.
        metric: of the table and the figure; None: its accuracy, or else its first.
        line: of the entry.
    """

    baseline: str
    metric: str | None
    line: int = field(compare=False)


@dataclass(frozen=True)
class Team:
    """Everything in team.toml."""

    name: Text
    homework: int
    repository: str
    language: str
    reproduce: str
    members: tuple[Member, ...]
    sources: tuple[Source, ...]
    experiments: dict[str, Experiment]


def load(path: str | Path) -> Team:
    """Read team.toml.

    Raises:
        OSError: the file cannot be read.
        ValueError: an entry is wrong, missing or unknown; the message has its line.
    """
    found = entries.read(path).table(
        ["team", "homework", "repository", "language", "reproduce", "members"],
        ["sources", "experiments"],
    )
    sources = found["sources"].items(least=0) if "sources" in found else []
    experiments = found["experiments"].named() if "experiments" in found else {}
    return Team(
        name=found["team"].both(100),
        homework=found["homework"].whole(1, 20),
        repository=found["repository"].text(200),
        language=found["language"].one_of(LANGUAGES),
        reproduce=found["reproduce"].text(300),
        members=tuple(_member(entry) for entry in found["members"].items(most=20)),
        sources=tuple(_source(entry) for entry in sources),
        experiments={name: _experiment(entry) for name, entry in experiments.items()},
    )


def _member(entry: Entry) -> Member:
    found = entry.table(["name", "git", "items", "sections"])
    sections = found["sections"].items(least=0, most=len(WRITABLE))
    return Member(
        name=found["name"].both(100),
        git=tuple(address.casefold() for address in found["git"].texts(least=0)),
        items=found["items"].all_both(least=0),
        sections=tuple(one.one_of(WRITABLE) for one in sections),
        line=entry.line,
    )


def _source(entry: Entry) -> Source:
    found = entry.table(["what", "from", "licence", "changed"])
    return Source(
        what=found["what"].both(),
        origin=found["from"].both(),
        licence=found["licence"].text(60),
        changed=found["changed"].both(),
        line=entry.line,
    )


def _experiment(entry: Entry) -> Experiment:
    found = entry.table(["baseline"], ["metric"])
    metric = found["metric"].text(100) if "metric" in found else None
    return Experiment(found["baseline"].text(200), metric, entry.line)
