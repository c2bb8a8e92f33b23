"""What a review finds: flags, findings, and what stands below them on the page."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from kdlib.homework.entries import Text

# In the order of the page: what an instructor asks first.
FLAGS = {
    "team_size": Text("Size of the team", "Размер команды"),
    "contributions": Text("Contributions", "Вклад участников"),
    "tasks": Text("Items of the task", "Пункты задания"),
    "reproducibility": Text("Reproducibility", "Воспроизводимость"),
    "tampering": Text("Tampering", "Вмешательство"),
    "similarity": Text("Similarity", "Сходство с другими"),
    "unbound_numbers": Text("Typed numbers", "Набранные числа"),
    "sources": Text("Sources", "Источники"),
    "notebooks": Text("Notebooks", "Блокноты"),
    "exercises": Text("Exercises", "Упражнения"),
    "page_limit": Text("Length", "Объём"),
    "conclusions": Text("Conclusions", "Выводы"),
    "figures": Text("Figures", "Графики"),
    "failed_attempts": Text("What did not work", "Что не получилось"),
}
SEVERITIES = RED, GREEN, NOTE = "red", "green", "note"


class Finding(NamedTuple):
    """One piece of evidence.

    Attributes:
        flag: one of `FLAGS`.
        severity: "red" for what a person must look at, "green" for what speaks for the work,
            "note" for the rest, for what could not be looked at, too.
        evidence: one sentence with its figures.
        where: file and line, or "".
    """

    flag: str
    severity: str
    evidence: str
    where: str = ""


class Table(NamedTuple):
    """Figures below the findings of a flag."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


class Passage(NamedTuple):
    """Text of two places, side by side."""

    left: str  # "solution.py:3-9"
    left_text: str
    right: str
    right_text: str


class Answer(NamedTuple):
    """What a review says about one flag.

    Attributes:
        findings: at least one.
        tables: figures.
        passages: common code.
        commands: that repeat what was found.
    """

    findings: tuple[Finding, ...]
    tables: tuple[Table, ...] = ()
    passages: tuple[Passage, ...] = ()
    commands: tuple[str, ...] = ()

    @classmethod
    def of(cls, findings: Iterable[Finding], good: Finding, **more: Any) -> Answer:
        """The findings; `good`, if none of them is red, before them."""
        found = tuple(findings)
        if not any(one.severity == RED for one in found):
            found = (good, *found)
        return cls(found, **more)

    @classmethod
    def note(cls, flag: str, evidence: str) -> Answer:
        """Nothing was looked at, and why."""
        return cls((Finding(flag, NOTE, evidence),))


def some(names: Iterable[Any], most: int = 6) -> str:
    """The first of them, and how many more there are."""
    listed = [str(name) for name in names]
    rest = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + rest


def counted(number: int, noun: str) -> str:
    """ "1 commit", "2 commits"."""
    plural = {"person": "people"}.get(noun, f"{noun}s")
    return f"{number} {noun if number == 1 else plural}"
