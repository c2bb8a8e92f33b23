"""What a reader would find wrong with a report, told before it is handed in.

Every check returns findings: lines that name the place, what is wrong and what to do. None of them
builds a PDF.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from kdlib.homework import generated, repository, sources, team, words
from kdlib.homework.course import Course
from kdlib.homework.repository import Repository
from kdlib.homework.results import Results
from kdlib.homework.sources import Source
from kdlib.homework.team import Team
from kdlib.homework.words import SECTIONS

AGAIN = "run `python -m kdlib report` again"
MOST_BYTES = 20_000_000  # of a generated file
NEEDED = ("title", "abstract", "sources", "contributions", "reproducibility", "references")
_LABEL = re.compile(r"(?:fig(?:ure)?|tab(?:le)?|eqn?|sec|lst|alg)[-:_.]|рис|табл")
OWN_TEXT = tuple(name for name in SECTIONS if name not in NEEDED)


def of_team(found: Team, course: Course, results: Results) -> Iterator[str]:
    """Members, baselines and experiments of team.toml."""
    if len(found.members) > course.rules.team_size:
        yield (
            f"{team.FILE}: {len(found.members)} members, but a team may have at most "
            f"{course.rules.team_size}"
        )
    for member in found.members:
        name = member.name.of(found.language)
        for missing, what in ((not member.items, "items"), (not member.sections, "sections")):
            if missing:
                yield f"{team.FILE}, line {member.line}: {name} has no {what}: list what they did"
    known = {one.name: one for one in results.experiments}
    for name, entry in found.experiments.items():
        where = f"{team.FILE}, line {entry.line}: experiment {name!r}"
        if name not in known:
            yield f"{where} has no records; there are {', '.join(known)}"
            continue
        methods = [row.method for row in known[name].rows]
        if entry.baseline not in methods:
            yield f"{where}: baseline must be one of {', '.join(methods)}; got {entry.baseline!r}"
    for name, one in known.items():
        if len(one.rows) > 1 and name not in found.experiments:
            yield (
                f"{team.FILE}: experiment {name!r} has no baseline: add "
                f'[experiments."{name}"] with baseline = "{one.rows[0].method}" or another method'
            )


def of_text(
    found: Source, results: Results, keys_of_bibliography: Collection[str], course: Course
) -> Iterator[str]:
    """Sections, result keys, tables and citations of the text."""
    yield from structure(found)
    yield from empty(found, OWN_TEXT, course.review.words)
    yield from unknown(found, results)
    yield from uncited(found, keys_of_bibliography)
    yield from unlabelled(found, results, keys_of_bibliography)


def unknown(found: Source, results: Results) -> Iterator[str]:
    """Keys and experiments that no record gives."""
    for key, place in found.keys:
        if key not in results.values:
            yield f"{place}: unknown result key {key!r}: {nearest(key, results.values)}"
    parts = [one.part for one in results.experiments]
    for name, place in found.experiments:
        if name not in parts:
            yield f"{place}: unknown experiment {name!r}: {nearest(name, parts)}"


def uncited(found: Source, keys_of_bibliography: Collection[str]) -> Iterator[str]:
    """Citations without an entry."""
    for name, place in found.cited:
        if name not in keys_of_bibliography and name not in SECTIONS and not _LABEL.match(name):
            near = nearest(name, [*keys_of_bibliography, *SECTIONS])
            yield f"{place}: {name!r} is cited, but not in {sources.BIBLIOGRAPHY}: {near}"


def unlabelled(
    found: Source, results: Results | None, keys_of_bibliography: Collection[str]
) -> Iterator[str]:
    """References to a figure, a table or an equation that is not there.

    Without results nothing is said about those that `report` makes.
    """
    parts = [one.part for one in results.experiments] if results else ()
    labels = [f"{kind}-{part}" for kind in ("table", "figure") for part in parts]
    for name, place in found.cited:
        passed = results is None and re.match("(table|figure)-", name)
        if _LABEL.match(name) and not passed and name not in (*labels, *keys_of_bibliography):
            near = nearest(name, [*labels, *(one.name for one in found.figures if one.name)])
            yield f"{place}: nothing carries the label {name!r}: {near}"


def nearest(name: str, known: Collection[str]) -> str:
    """The names most like one that is wrong, for the end of a message."""
    found = difflib.get_close_matches(name, list(known), 3, cutoff=0.3)
    return f"nearest are {', '.join(found)}" if found else f"known are {_some(known)}"


def _some(names: Iterable[str]) -> str:
    """The first eight names."""
    listed = list(names)
    return ", ".join(listed[:8]) + (f" and {len(listed) - 8} more" if listed[8:] else "") or "none"


def structure(found: Source) -> Iterator[str]:
    """Sections that are unknown, missing or out of order, and what else a report shows."""
    names = [name for name, _ in found.sections]
    for name, place in found.sections:
        if name not in SECTIONS:
            yield f"{place}: unknown section {name!r}: {nearest(name, SECTIONS)}"
    for number, name in enumerate(names):
        if name in names[:number]:
            yield f"{found.sections[number].place}: section {name!r} stands there a second time"
    present = [name for name in dict.fromkeys(names) if name in SECTIONS]
    for name in SECTIONS:
        if name not in present:
            yield f"{found.main}: section {name!r} is missing: a report has {', '.join(SECTIONS)}"
    wanted = [name for name in SECTIONS if name in present]
    if present != wanted:
        yield f"{found.main}: sections must stand in the order {', '.join(wanted)}"
    for name in NEEDED:
        if name not in found.calls:
            yield f"{found.main}: {name!r} is not shown: take its line from the template"


def empty(found: Source, names: Collection[str], words: int) -> Iterator[str]:
    """Sections of fewer than so many words: no more is judged than that there is a text."""
    for (name, place), body in zip(found.sections, found.bodies):
        if name in names and len(re.findall(r"\w{2,}", body)) < words:
            yield f"{place}: section {name!r} is empty: write it"


def hints(found: Source) -> Iterator[str]:
    """What is no mistake by itself, but a reader should look at."""
    for one in found.decimals:
        if one.measured:
            yield (
                f"{one.place}: {one.name} is typed by hand: if it was measured, take it from the "
                "records"
            )
    for key, place in found.swallowed:
        yield f"{place}: the semicolon behind {key!r} is not printed: write \\; for it"


# What `report` has written


def of_generated(
    folder: str | Path, results: Results, found: Team, course: Course
) -> Iterator[str]:
    """Whether the generated files are what the records, team.toml and the history give."""
    try:
        stored, state = _stored(folder, len(found.members))
    except OSError:
        yield f"{generated.JSON} is missing: {AGAIN}, and commit what it writes"
        return
    except ValueError:
        yield f"{generated.JSON} is damaged, or of another team: {AGAIN}"
        return
    path = Path(folder) / generated.JSON
    expected = generated.content(results, found, course, state, stored["figures"])
    differences = list(_differences(stored, expected, results))
    yield from differences
    if not differences and _content(path).decode().replace("\r", "") != generated.as_json(expected):
        yield f"{generated.JSON} was edited: {AGAIN}"
    yield from _tex(folder, expected)
    yield from _figures(Path(folder), results, stored["figures"])
    yield from _history(folder, state, found)


def of_numbers(folder: str | Path, results: Results) -> Iterator[str]:
    """Whether the stored numbers, tables and figures are what the records give.

    Unlike `of_generated` it asks no more: what team.toml says may have changed since.
    """
    try:
        stored, _ = _stored(folder, None)
        lines = [*_edited(stored, results.language), *_numbers(stored, results)]
        if not lines and stored.get("tables") != generated.tables(results):
            lines.append(f"{generated.JSON}: 'tables' are not what the records give: {AGAIN}")
        yield from lines
        yield from _tex(folder, stored)
        yield from _figures(Path(folder), results, stored["figures"])
    except OSError:
        yield f"{generated.JSON} is missing: {AGAIN}, and commit what it writes"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        yield f"{generated.JSON} is damaged: {AGAIN}"


def different(folder: str | Path, results: Results) -> list[tuple[str, str, str]]:
    """(key, stored text, text that the records give) of each number that differs; "" for none.

    Raises:
        OSError: results.json is missing.
        ValueError: it is damaged.
    """
    stored, _ = _stored(folder, None)
    numbers = stored.get("results")
    numbers = numbers if isinstance(numbers, dict) else {}
    expected = generated.values(results)
    return [
        (str(key), _said(numbers.get(key)), _said(expected.get(key)))
        for key in [*expected, *(numbers.keys() - expected.keys())]
        if numbers.get(key) != expected.get(key)
    ]


def _said(value: Any) -> str:
    """The text of a stored number."""
    text = value.get("text", "") if isinstance(value, dict) else "" if value is None else value
    return str(text)[:100]


def _quoted(text: Any) -> str:
    """A text of a file in quotes, its no-break spaces as spaces."""
    return repr(re.sub("[\u00a0\u202f]", " ", text) if isinstance(text, str) else text)


def _edited(stored: dict[str, Any], language: str) -> Iterator[str]:
    """Numbers whose text is not that of their own mean: whatever the records, somebody wrote it."""
    if stored.get("language") != language:
        return
    for key, one in stored["results"].items():
        mean, shown = one["mean"], re.split(r" [\[(]", one["text"])[0]
        forms = {
            words.number(mean, digits, language, sign=sign)
            for digits in range(7)
            for sign in (False, True)
        }
        if shown != str(mean) and shown not in forms:
            yield (
                f"{generated.JSON}: {key!r} was edited: it says {_quoted(one['text'])}, but its "
                f"mean is {mean:.6g}"
            )


def _stored(folder: str | Path, members: int | None) -> tuple[dict[str, Any], Repository]:
    """What results.json holds, as far as `report` could have written it.

    Raises:
        OSError: it is missing.
        ValueError: it is damaged, or of another number of members.
    """
    try:
        stored = json.loads(_content(Path(folder) / generated.JSON))
        state = Repository(stored["commit"], tuple(stored["commits"]))
        _plausible(state, stored["figures"], len(state.commits) if members is None else members)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{generated.JSON} is damaged") from error
    return stored, state


def _tex(folder: str | Path, content: dict[str, Any]) -> Iterator[str]:
    """Whether results.tex is what results.json gives."""
    tex = Path(folder) / generated.TEX
    if not tex.is_file():
        yield f"{generated.TEX} is missing: {AGAIN}"
    elif _content(tex).decode("utf-8", "replace").replace("\r", "") != generated.as_tex(content):
        yield f"{generated.TEX} is not what the records give, or was edited: {AGAIN}"


def _content(path: Path) -> bytes:
    """A file, or its beginning if it is larger than anything that `report` writes."""
    with path.open("rb") as stream:
        return stream.read(MOST_BYTES)


def _plausible(state: Repository, figures: Any, members: int) -> None:
    """Raise ValueError for values that `report` does not write; they come from a file."""
    counts_fit = len(state.commits) == members and all(
        count is None or (type(count) is int and count >= 0) for count in state.commits
    )
    commit_fits = isinstance(state.commit, str) and re.fullmatch(
        r"([0-9a-f]{12,40}\+?)?", state.commit
    )
    figures_fit = isinstance(figures, dict) and all(
        isinstance(part, str) for pair in figures.items() for part in pair
    )
    if not (counts_fit and commit_fits and figures_fit):
        raise ValueError("it is not as it was written")


def _differences(
    stored: dict[str, Any], expected: dict[str, Any], results: Results
) -> Iterator[str]:
    """Numbers that differ, by key; else the first thing that does."""
    numbers = list(_numbers(stored, results))
    if any(stored.get(name) != expected[name] for name in ("language", "digest")):
        yield numbers[0]
        return  # all else differs for this reason
    yield from numbers
    for name in {**expected, **stored}:
        if name not in ("digest", "results") and stored.get(name) != expected.get(name):
            yield f"{generated.JSON}: {str(name)[:100]!r} is not what team.toml gives: {AGAIN}"


def _numbers(stored: dict[str, Any], results: Results) -> Iterator[str]:
    """Numbers that the records do not give, by key; before them the reason, if there is one."""
    if stored.get("language") != results.language:
        yield f"{generated.JSON} is in another language than the report: {AGAIN}"
        return
    if stored.get("digest") != results.digest:
        yield f"{generated.JSON} was made from other records than those in runs/: {AGAIN}"
    numbers, expected = stored.get("results"), generated.values(results)
    numbers = numbers if isinstance(numbers, dict) else {}
    for key, value in expected.items():
        if key not in numbers:
            yield f"{generated.JSON} lacks {key!r}: {AGAIN}"
        elif numbers[key] != value:
            said = numbers[key].get("text") if isinstance(numbers[key], dict) else numbers[key]
            other = _quoted(said) if said != value["text"] else "another value"
            yield (
                f"{generated.JSON}: {key!r} says {other}, the records give {_quoted(value['text'])}"
            )
    for key in numbers.keys() - expected.keys():
        yield f"{generated.JSON}: no record gives {str(key)[:100]!r}: {AGAIN}"


def _figures(folder: Path, results: Results, figures: dict[str, str]) -> Iterator[str]:
    """Figures are compared by what was written last: other versions of Matplotlib draw others."""
    stems = {generated.stem(one) for one in results.experiments if one.differences}
    wanted = {f"{stem}.{kind}" for stem in stems for kind in ("svg", "pdf")}
    for name in sorted(wanted | figures.keys()):
        path = folder / repository.GENERATED / "figures" / name
        if name not in wanted or name not in figures:
            yield f"{generated.JSON}: figures are not those of the records ({name}): {AGAIN}"
        elif not path.is_file():
            yield f"generated/figures/{name} is missing: {AGAIN}"
        elif generated.sha256(_figure(path)) != figures[name]:
            yield f"generated/figures/{name} was edited: {AGAIN}"


def _figure(path: Path) -> bytes:
    """A figure as it was written, also where Git changed the ends of its lines."""
    content = _content(path)
    return content.replace(b"\r\n", b"\n") if path.suffix == ".svg" else content


def _history(folder: str | Path, state: Repository, found: Team) -> Iterator[str]:
    """The commit exists, and nobody has more commits than Git counts."""
    commit = state.commit.rstrip("+")
    if commit and repository.has(folder, commit) is False:
        yield f"{generated.JSON} names the commit {commit}, which this repository lacks: {AGAIN}"
    if not repository.has(folder, "HEAD"):
        return  # outside of Git, and in a clone without history, nothing can be counted
    now = repository.commits(folder, found.members)
    for member, said, counted in zip(found.members, state.commits, now):
        if said is not None and said > (counted or 0):
            yield (
                f"{generated.JSON} says {said} commit{'s' * (said != 1)} of "
                f"{member.name.of(found.language)}, Git "
                f"counts {counted or 0}: {AGAIN}"
            )


def of_pages(body: int | None, course: Course) -> Iterator[str]:
    """The length of the text before the contributions."""
    if body is None:
        yield "the body has no end: section 'contributions' is missing"
    elif body > course.rules.pages:
        yield (
            f"the text has {body} pages before the contributions, at most {course.rules.pages} are "
            "allowed: shorten it"
        )
