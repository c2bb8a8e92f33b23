"""A review as a page to read in ten minutes, on a screen or on paper; all text is escaped."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from html import escape
from urllib.parse import quote

from kdlib.homework.course import Course
from kdlib.homework.entries import Text
from kdlib.homework.review.findings import FLAGS, GREEN, NOTE, RED, Finding, Passage, Table
from kdlib.homework.review.reviewing import Failed, Review

MOST_ROWS, MOST_LINES, MOST_SIGNS = 40, 30, 400  # of a table, a passage, a text: ten minutes
MARKS = {RED: "✕", GREEN: "✓", NOTE: "○"}  # a grey print tells them apart, too

WORDS = {
    "title": Text("Review of a homework", "Проверка домашней работы"),
    "cohort": Text("Review of all homeworks", "Проверка всех домашних работ"),
    RED: Text("red", "красный"),
    GREEN: Text("green", "зелёный"),
    NOTE: Text("note", "заметка"),
    "summary": Text("Summary", "Сводка"),
    "evidence": Text("Evidence", "Что найдено"),
    "flag": Text("Flag", "Признак"),
    "members": Text("Members", "Участники"),
    "commit": Text("Commit", "Коммит"),
    "folder": Text("Folder", "Папка"),
    "took": Text("Took", "Заняло"),
    "sample": Text("Sample seed", "Выборка (seed)"),
    "where": Text("Where", "Где"),
    "repeat": Text("To see it again, in the team's repository", "Повторить в репозитории команды"),
    "decides": Text(
        "This page gathers evidence. A person decides.",
        "Эта страница собирает факты. Решает человек.",
    ),
    "more": Text("and {count} more", "и ещё {count}"),
    "team": Text("Team", "Команда"),
    "problem": Text("could not be reviewed", "не удалось проверить"),
    "sorted": Text(
        "What needs a person's eye first: what could not be reviewed; then most red flags, those "
        "counted first that may say that a work is not what it seems: {first}.",
        "По срочности: что не удалось проверить; затем больше красных признаков, причём сначала "
        "считаются те, что могут значить, что работа не то, чем кажется: {first}.",
    ),
    "pairs": Text("Pairs of teams, most alike first", "Пары команд, сначала самые похожие"),
}

STYLE = """
:root { --red: #b3261e; --green: #1e6b3a; --note: #5f6368; --line: #d9d9d9; }
* { box-sizing: border-box; }
body { font: 15px/1.45 "Helvetica Neue", Arial, "Liberation Sans", sans-serif; color: #1b1b1b;
  background: #fff; max-width: 60rem; margin: 2.2rem auto 4rem; padding: 0 1.5rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: .1rem 0 .6rem; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem; padding-top: .6rem;
  border-top: 2px solid #1b1b1b; }
h3 { font-size: 1.02rem; margin: 1.8rem 0 .4rem; }
p { margin: .4rem 0; }
.over { color: var(--note); margin: 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: .6rem 0; }
dt { color: var(--note); } dd { margin: 0; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; margin: .6rem 0 1rem; }
caption { text-align: left; color: var(--note); font-size: .87rem; padding-bottom: .25rem; }
th, td { text-align: left; vertical-align: top; padding: .28rem .7rem .28rem 0;
  border-bottom: 1px solid var(--line); overflow-wrap: anywhere; }
th { font-weight: 600; border-bottom: 1px solid #1b1b1b; }
.figures { font-size: .87rem; font-variant-numeric: tabular-nums; }
.summary td:first-child { white-space: nowrap; width: 6.5rem; }
.summary td:nth-child(2) { width: 11rem; }
a { color: inherit; text-decoration-color: #999; text-underline-offset: 2px; }
.mark { font-weight: 700; white-space: nowrap; }
.red { color: var(--red); } .green { color: var(--green); } .note { color: var(--note); }
.mark.note { font-weight: 400; }
.counts { font-size: 1.05rem; margin: .8rem 0; } .counts span { margin-right: 1.3rem; }
.findings { list-style: none; margin: .3rem 0; padding: 0; }
.findings li { padding: .12rem 0 .12rem 1.5rem; text-indent: -1.5rem; overflow-wrap: anywhere; }
.findings .mark { display: inline-block; width: 1.5rem; text-indent: 0; }
.where, code, pre { font: .82rem "DejaVu Sans Mono", Menlo, Consolas, monospace; }
.where { color: var(--note); }
pre { background: #f5f5f3; padding: .5rem .7rem; margin: .3rem 0; white-space: pre-wrap;
  overflow-wrap: anywhere; line-height: 1.35; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: .8rem; margin: .8rem 0; }
.pair > div { min-width: 0; }
.cohort { font-size: .84rem; table-layout: auto; }
.cohort td.flag, .cohort th.flag { text-align: center; padding: .28rem .1rem; }
.cohort th.flag { height: 10.5rem; white-space: nowrap; vertical-align: bottom; font-weight: 400; }
.cohort th.flag span { writing-mode: vertical-rl; transform: rotate(180deg); }
body.wide { max-width: 76rem; }
footer { margin-top: 3rem; padding-top: .6rem; border-top: 1px solid var(--line);
  color: var(--note); font-size: .87rem; }
@page { size: A4; margin: 16mm 15mm; }
@page wide { size: A4 landscape; }
body.wide { page: wide; }
@media print {
  html { font-size: 12.5px; }
  body { font-size: 1rem; max-width: none; margin: 0; padding: 0; }
  h2, h3, caption { break-after: avoid; }
  tr, li, .pair, pre { break-inside: avoid; }
  thead { display: table-header-group; }
  a { text-decoration: none; }
}
"""


def of_review(found: Review, course: Course, language: str) -> str:
    """review.html: the summary, then the evidence by flag."""
    about = [
        ("members", ", ".join(found.members)),
        ("commit", found.commit),
        ("folder", found.path),
        ("sample", str(found.seed)),
        ("took", f"{found.seconds:.0f} s"),
    ]
    body = [
        f'<p class="over">{_text(course.title.of(language))} · {_word("title", language)}</p>',
        f"<h1>{_text(found.team)}</h1>",
        "<dl>" + "".join(f"<dt>{_word(key, language)}</dt><dd>{_text(value)}</dd>"
                         for key, value in about) + "</dl>",
        _counts(found, language),
        f"<h2>{_word('summary', language)}</h2>",
        _summary(found, language),
        f"<h2>{_word('evidence', language)}</h2>",
        *(_flag(found, flag, language) for flag in found.answers),
        _footer(course, language),
    ]  # fmt: skip
    return _document(f"{found.team}: {WORDS['title'].of(language)}", body, language)


def of_cohort(
    found: Sequence[Review | Failed],
    first: Sequence[str],
    pairs: Table | str,
    course: Course,
    language: str,
) -> str:
    """cohort.html: a line for each repository with the state of each flag, then the pairs.

    Args:
        found: in the order of the page.
        first: the flags that came first in this order.
        pairs: the ranking of pairs, or why there is none.
        course: whose title and note it shows.
        language: of the headings.
    """
    names = ", ".join(FLAGS[flag].of(language) for flag in first)
    heads = "".join(
        f'<th class="flag"><span>{_text(name.of(language))}</span></th>' for name in FLAGS.values()
    )
    body = [
        f'<p class="over">{_text(course.title.of(language))}</p>',
        f"<h1>{_word('cohort', language)}</h1>",
        f"<p>{_text(WORDS['sorted'].of(language).format(first=names))}</p>",
        '<table class="cohort"><thead><tr>',
        f"<th>{_word('team', language)}</th><th>{_word('members', language)}</th>",
        *(f'<th class="flag {one}">{mark}</th>' for one, mark in MARKS.items()),
        f"{heads}</tr>",
        "</thead><tbody>",
        *(_line(one, language) for one in found),
        "</tbody></table>",
        "<p>" + " · ".join(_mark(one, language) for one in MARKS) + "</p>",
        f"<h2>{_word('pairs', language)}</h2>",
        f"<p>{_text(pairs)}</p>" if isinstance(pairs, str) else _table(pairs, language),
        _footer(course, language),
    ]
    return _document(WORDS["cohort"].of(language), body, language, wide=True)


def _line(one: Review | Failed, language: str) -> str:
    if isinstance(one, Failed):
        told = f"{_mark(RED, language, WORDS['problem'].of(language))}: {_text(one.problem)}"
        return f'<tr><td>{_text(one.name)}</td><td colspan="{len(FLAGS) + 4}">{told}</td></tr>'
    link = quote(f"reviews/{one.name}/review.html")
    cells = "".join(f'<td class="flag">{count}</td>' for count in one.counts.values())
    cells += "".join(
        f'<td class="flag"><a class="mark {one.state(flag)}" href="{link}#{flag}" '
        f'title="{_text(name.of(language))}">{MARKS[one.state(flag)]}</a></td>'
        for flag, name in FLAGS.items()
    )
    team = f'<a href="{link}">{_text(one.name)}</a>'
    team += f'<br><span class="note">{_text(one.team)}</span>' if one.team != one.name else ""
    return f"<tr><td>{team}</td><td>{_text(', '.join(one.members))}</td>{cells}</tr>"


# Parts


def _counts(found: Review, language: str) -> str:
    parts = [
        f'<span class="{one}">{MARKS[one]} <strong>{count}</strong> {_word(one, language)}</span>'
        for one, count in found.counts.items()
    ]
    return f'<p class="counts">{"".join(parts)}</p>'


def _summary(found: Review, language: str) -> str:
    order = {RED: 0, GREEN: 1, NOTE: 2}
    rows = []
    for flag, answer in sorted(found.answers.items(), key=lambda pair: found.state(pair[0]) != RED):
        worst = found.state(flag)
        said = min(answer.findings, key=lambda one: order[one.severity])
        rest = sum(one.severity == RED for one in answer.findings) - 1
        more = f" ({WORDS['more'].of(language).format(count=rest)})" if rest > 0 else ""
        rows.append(
            f"<tr><td>{_mark(worst, language)}</td>"
            f'<td><a href="#{flag}">{_text(FLAGS[flag].of(language))}</a></td>'
            f"<td>{_text(said.evidence)}{_place(said)}{_text(more)}</td></tr>"
        )
    return f'<table class="summary"><tbody>{"".join(rows)}</tbody></table>'


def _flag(found: Review, flag: str, language: str) -> str:
    answer = found.answers[flag]
    heading = f"{FLAGS[flag].of(language)}"
    mark = _mark(found.state(flag), language)
    parts = [f'<section id="{flag}"><h3>{_text(heading)} {mark}</h3>']
    shown = answer.findings[:MOST_ROWS]
    parts.append(f'<ul class="findings">{"".join(map(_finding, shown))}</ul>')
    parts.append(_rest(len(answer.findings), MOST_ROWS, language))
    parts += [_table(table, language) for table in answer.tables]
    parts += [_passage(passage, language) for passage in answer.passages]
    if answer.commands:
        commands = "\n".join(answer.commands[:MOST_ROWS])
        parts.append(f'<p class="where">{_word("repeat", language)}:</p>')
        parts.append(f"<pre>{_lines(commands)}</pre>")
    return "".join(parts) + "</section>"


def _finding(one: Finding) -> str:
    mark = f'<span class="mark {one.severity}">{MARKS[one.severity]}</span>'
    return f"<li>{mark}{_text(one.evidence)}{_place(one)}</li>"


def _place(one: Finding) -> str:
    return f' <span class="where">{_text(one.where)}</span>' if one.where else ""


def _table(table: Table, language: str) -> str:
    head = "".join(f"<th>{_text(cell)}</th>" for cell in table.head)
    rows = "".join(
        "<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>"
        for row in table.rows[:MOST_ROWS]
    )
    return (
        f'<table class="figures"><caption>{_text(table.caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        + _rest(len(table.rows), MOST_ROWS, language)
    )


def _passage(passage: Passage, language: str) -> str:
    sides = []
    for place, text in (
        (passage.left, passage.left_text), (passage.right, passage.right_text)
    ):  # fmt: skip
        lines = text.splitlines()
        rest = _rest(len(lines), MOST_LINES, language)
        shown = _lines("\n".join(line[:MOST_SIGNS] for line in lines[:MOST_LINES]))
        sides.append(
            f'<div><span class="where">{_text(place)}</span><pre>{shown}</pre>{rest}</div>'
        )
    return f'<div class="pair">{"".join(sides)}</div>'


def _rest(count: int, most: int, language: str) -> str:
    text = WORDS["more"].of(language).format(count=count - most)
    return f'<p class="note">{_text(text)}</p>' if count > most else ""


def _footer(course: Course, language: str) -> str:
    note = course.flags.note.of(language)
    return f"<footer><p>{_word('decides', language)} {_text(note)}.</p></footer>"


def _mark(severity: str, language: str, word: str = "") -> str:
    word = word or WORDS[severity].of(language)
    return f'<span class="mark {severity}">{MARKS[severity]} {_text(word)}</span>'


def _word(name: str, language: str) -> str:
    return _text(WORDS[name].of(language))


def _text(text: str) -> str:
    """One line for HTML, with no sign that is not seen."""
    shown = "".join(sign if sign.isprintable() else " " for sign in str(text))
    return escape(shown if len(shown) <= MOST_SIGNS else shown[:MOST_SIGNS] + "…")


def _lines(text: str) -> str:
    """Several lines for HTML."""
    kept = (
        sign if sign.isprintable() or sign in "\n\t" else "\N{REPLACEMENT CHARACTER}"
        for sign in text
    )
    return escape("".join(kept))


def _document(title: str, body: Sequence[str], language: str, *, wide: bool = False) -> str:
    """A page that loads nothing and runs nothing: only its own style is allowed."""
    label = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{label}'; base-uri 'none'; form-action 'none'"
    return (
        f'<!doctype html>\n<html lang="{language}">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body{' class=wide' if wide else ''}>\n" + "\n".join(body) + "\n</body>\n</html>\n"
    )
