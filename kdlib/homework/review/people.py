"""Flags about the people: how many they are, who did what, and how much of it."""

from __future__ import annotations

import re

from kdlib.homework.review import history
from kdlib.homework.review.findings import GREEN, NOTE, RED, Answer, Finding, Table, counted, some
from kdlib.homework.review.handed_in import HandedIn
from kdlib.homework.review.history import Work
from kdlib.homework.team import FILE, Member
from kdlib.homework.words import SECTIONS

UNREAD = f"{FILE} could not be read"
SHORTLOG = "git shortlog -sne --no-merges --group=author --group=trailer:co-authored-by HEAD"


def team_size(handed_in: HandedIn) -> Answer:
    """At most as many members as the course allows."""
    count, most = len(handed_in.team.members), handed_in.course.rules.team_size
    if handed_in.team_problem:
        told = f"{UNREAD}: {counted(count, 'person')} committed, at most {most} may be in a team"
        return Answer.note("team_size", told)
    evidence = f"{counted(count, 'member')} in {FILE}, at most {most} are allowed"
    return Answer((Finding("team_size", RED if count > most else GREEN, evidence, FILE),))


def tasks(handed_in: HandedIn) -> Answer:
    """An item of the task or more for each member."""
    language, members = handed_in.team.language, handed_in.team.members
    if handed_in.team_problem:
        line = re.search(r"\bline (\d+)", handed_in.team_problem)
        where = f"{FILE}:{line[1]}" if line else FILE
        return Answer((Finding("tasks", RED, handed_in.team_problem, where),))
    items = {item.of(language).casefold() for member in members for item in member.items}
    found = []
    if len(items) < len(members):
        found.append(
            Finding(
                "tasks", RED,
                f"{counted(len(items), 'different item')} for {counted(len(members), 'member')}: "
                "less than one for each", f"{FILE}:{members[0].line}",
            )
        )  # fmt: skip
    for member in members:
        if not member.items:
            evidence = f"{member.name.of(language)} has no item"
            found.append(Finding("tasks", RED, evidence, f"{FILE}:{member.line}"))
        elif not member.sections:
            evidence = f"{member.name.of(language)} wrote no section of the report"
            found.append(Finding("tasks", NOTE, evidence, f"{FILE}:{member.line}"))
    evidence = f"{counted(len(items), 'item')}, one or more for each member"
    good = Finding("tasks", GREEN, evidence, f"{FILE}:{members[0].line}")
    rows = tuple(
        (
            member.name.of(language),
            "; ".join(item.of(language) for item in member.items) or "–",
            ", ".join(SECTIONS[name].of(language) for name in member.sections) or "–",
        )
        for member in members
    )
    return Answer.of(found, good, tables=(Table(FILE, ("member", "items", "sections"), rows),))


def contributions(handed_in: HandedIn, works: dict[str, Work]) -> Answer:
    """What the history says about each member, and whether one did nearly everything."""
    if handed_in.shallow:
        return Answer.note(
            "contributions",
            "the history was cut off (a shallow clone): it cannot tell who did what",
        )
    members = handed_in.team.members
    owned = _owned(handed_in, members, works)
    strangers = [work for address, work in works.items() if address not in owned]
    by_member = [
        _joined(member, [works[one] for one, owner in owned.items() if owner is member])
        for member in members
    ]
    tables = (_figures(handed_in, by_member, strangers), _files(handed_in, by_member, strangers))
    if handed_in.team_problem:  # who is whose colleague cannot be told, so nobody is accused
        told = f"{UNREAD}, so that nothing says whose commits these are"
        note = Answer.note("contributions", told)
        return note._replace(tables=tables, commands=(SHORTLOG,))
    found = list(_judged(handed_in, by_member, strangers))
    parts = [f"{work.name} {share:.0f} %" for work, share in zip(by_member, _shares(by_member))]
    good = Finding(
        "contributions", GREEN,
        f"every member committed; {_unit(by_member)}: {', '.join(parts)}",
    )  # fmt: skip
    return Answer.of(found, good, tables=tables, commands=(SHORTLOG,))


def _owned(
    handed_in: HandedIn, members: tuple[Member, ...], works: dict[str, Work]
) -> dict[str, Member]:
    """{address of the history: the member whose it is}; `.mailmap` joins addresses, too."""
    given = [(member, address) for member in members for address in member.git]
    mapped = history.canonical(handed_in.git, [("", address) for _, address in given])
    found: dict[str, Member] = {}
    for (member, address), other in zip(given, mapped, strict=True):
        for one in (address.casefold(), other):
            if one in works:
                found.setdefault(one, member)
    return found


def _joined(member: Member, works: list[Work]) -> Work:
    """The work of one member under all addresses."""
    total = Work(member.name.en)
    for work in works:
        total.commits += work.commits
        total.add(work.lines)
    return total


def _amount(lines: float) -> str:
    """Shared lines are no whole numbers."""
    return f"{lines:.1f}".removesuffix(".0")


def _unit(works: list[Work]) -> str:
    return "new source lines" if any(work.total for work in works) else "commits"


def _shares(works: list[Work]) -> list[float]:
    """Percent of the source lines; of the commits, if there are no lines."""
    lines = any(work.total for work in works)
    amounts = [work.total if lines else work.commits for work in works]
    return [100 * one / max(1, sum(amounts)) for one in amounts]


def _judged(handed_in: HandedIn, works: list[Work], strangers: list[Work]) -> list[Finding]:
    rules, found = handed_in.course.review, []
    if not any(work.commits for work in works):
        return [
            Finding(
                "contributions", RED,
                f"no commit carries an address of {FILE}: who did what cannot be seen; the commits "
                f"are by {some(work.name for work in strangers)}",
            )
        ]  # fmt: skip
    for work, share in zip(works, _shares(works)):
        if len(works) > 1 and share >= rules.share:
            found.append(
                Finding(
                    "contributions", RED,
                    f"{work.name} did nearly everything: {share:.0f} % of the {_unit(works)} "
                    f"({_amount(work.total)} lines, {work.commits} of "
                    f"{counted(sum(w.commits for w in works), 'commit')})",
                )
            )  # fmt: skip
    idle = [work.name for work in works if not work.commits]
    if idle and not found:
        found.append(
            Finding(
                "contributions", RED,
                f"no commit by {some(idle)}: what they did cannot be seen",
            )
        )  # fmt: skip
    if strangers:
        lines, all_lines = (sum(w.total for w in part) for part in (strangers, strangers + works))
        share = 100 * lines / max(1, all_lines)
        found.append(
            Finding(
                "contributions", RED if share >= rules.strangers else NOTE,
                f"{counted(sum(work.commits for work in strangers), 'commit')} with "
                f"{_amount(lines)} new source lines ({share:.0f} %) by nobody of {FILE}: "
                f"{some(work.name for work in strangers)}",
                FILE,
            )
        )  # fmt: skip
    return found


def _figures(handed_in: HandedIn, works: list[Work], strangers: list[Work]) -> Table:
    shares = [f"{share:.0f} %" for share in _shares(works)]
    rows = [
        (
            member.name.of(handed_in.team.language), str(work.commits), _amount(work.total), share,
            str(len(member.items)),
        )
        for member, work, share in zip(handed_in.team.members, works, shares)
    ]  # fmt: skip
    rows += [
        (f"{work.name} (nobody of {FILE})", str(work.commits), _amount(work.total), "", "")
        for work in strangers
    ]
    return Table(
        "Commits without merges, co-authors included. A changed line counts once, as it reads "
        "afterwards, in equal parts for the authors of its commit; lines of the kit, outputs of "
        "notebooks and written files do not count.",
        ("member", "commits", "new source lines", "share", "items"),
        tuple(rows),
    )


def _files(handed_in: HandedIn, works: list[Work], strangers: list[Work], most: int = 12) -> Table:
    """Who touched what: the files with most new lines."""
    total = Work("all")
    for work in works + strangers:
        total.add(work.lines)
    largest = sorted(total.lines, key=lambda name: -total.lines[name])[:most]
    names = [member.name.of(handed_in.team.language) for member in handed_in.team.members]
    rows = [
        (name, *(_amount(work.lines[name]) if name in work.lines else "–" for work in works))
        for name in largest
    ]
    return Table("New source lines by file", ("file", *names), tuple(rows))
