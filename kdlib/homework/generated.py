"""What `report` writes for the engines: results.json for Typst, results.tex for LaTeX, figures.

All are made from the records, team.toml and the state of the repository, in one language, and are
the same for the same input. Nobody edits them by hand; `checks` finds it if somebody does.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kdlib.homework import words
from kdlib.homework.course import Course
from kdlib.homework.repository import GENERATED, Repository
from kdlib.homework.results import Results, Row, Summary
from kdlib.homework.team import Team
from kdlib.homework.words import latex

JSON, TEX = f"{GENERATED}/results.json", f"{GENERATED}/results.tex"
FORMAT = 1
NOTE = "written by python -m kdlib report from the run records: edit nothing here"
UNKNOWN = "–"  # in place of a number of commits


def content(
    results: Results, team: Team, course: Course, state: Repository, figures: Mapping[str, str]
) -> dict[str, Any]:
    """The content of results.json.

    Args:
        figures: {file name: SHA-256} of the figures that belong to it.

    Raises:
        ValueError: team.toml names a homework that the course does not have.
    """
    language = results.language
    if team.homework > len(course.homeworks):
        raise ValueError(
            f"team.toml: homework must be one of the course, 1 to {len(course.homeworks)}, got "
            f"{team.homework}"
        )
    topic = course.homeworks[team.homework - 1].topic.of(language)
    homework = f"{course.title.of(language)}, {words.WORDS['homework'].of(language)}"
    return {
        "format": FORMAT,
        "note": NOTE,
        "language": language,
        "digest": results.digest,
        "commit": state.commit,
        "commits": list(state.commits),
        "figures": dict(figures),
        "title": {
            "team": team.name.of(language),
            "members": [member.name.of(language) for member in team.members],
            "repository": team.repository,
            "homework": f"{homework} {team.homework}: {topic}",
        },
        "words": words.words(language),
        "results": values(results),
        "tables": tables(results),
        "sources": [
            [one.what.of(language), one.origin.of(language), one.licence, one.changed.of(language)]
            for one in team.sources
        ],
        "contributions": [
            [
                member.name.of(language),
                "; ".join(item.of(language) for item in member.items),
                UNKNOWN if count is None else str(count),
                ", ".join(words.SECTIONS[name].of(language) for name in member.sections),
            ]
            for member, count in zip(team.members, state.commits, strict=True)
        ],
        "reproducibility": {"text": _reproducibility(results), "command": team.reproduce},
    }


def values(results: Results) -> dict[str, Any]:
    """Every number of results.json by its key."""
    return {key: value._asdict() for key, value in results.values.items()}


def tables(results: Results) -> dict[str, Any]:
    """Every table of results.json by the part of its experiment."""
    return {one.part: _table(one, results.language) for one in results.experiments}


def _table(found: Summary, language: str) -> dict[str, Any]:
    """Head and rows; a column of seeds only where methods differ in their number."""
    counts = {row.value.seeds for row in found.rows}
    compared = any(row.difference is not None for row in found.rows)
    head = [words.WORDS["label"].of(language), _capital(words.metric(found.metric, language))]
    if compared:
        head.append(words.WORDS["difference"].of(language).format(baseline=found.baseline))
    if len(counts) > 1:
        head.append(words.WORDS["seeds"].of(language))

    def cells(row: Row) -> list[str]:
        line = [row.method, row.value.text]
        if compared:
            line.append("" if row.difference is None else row.difference.text)
        return [*line, str(row.value.seeds)] if len(counts) > 1 else line

    figure = stem(found) if found.differences else ""
    return {"head": head, "rows": [cells(row) for row in found.rows], "figure": figure}


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _reproducibility(results: Results) -> list[str]:
    """Sentences about the records, in front of the command."""
    language, runs = results.language, results.runs
    machines = list(
        dict.fromkeys(
            ", ".join(
                f"{label}{run.versions[name]}"
                for name, label in (("processor", ""), ("accelerator", ""), ("torch", "PyTorch "))
                if run.versions.get(name)
            )
            for run in runs
        )
    )
    shown = "; ".join(filter(None, machines[:3])) + ("; …" if len(machines) > 3 else "")
    teachers = {(run.experiment, run.seed, run.teacher_seconds) for run in runs}
    minutes = (sum(run.seconds for run in runs) + sum(one[2] for one in teachers)) / 60
    return [
        words.WORDS["computed"].of(language).format(
            count=len(runs),
            digest=results.digest,
            repeatable=sum(run.repeat is not None for run in runs),
        ),
        words.WORDS["time"].of(language).format(
            minutes=words.number(minutes, 0 if minutes >= 10 else 1, language),
            machines=shown or "–",
        ),
        words.WORDS["command"].of(language),
    ]  # fmt: skip


def as_json(found: Mapping[str, Any]) -> str:
    """results.json as text; one line a result, so that Git shows what changed."""
    text = json.dumps(found, ensure_ascii=False, allow_nan=False, indent=1) + "\n"
    return re.sub(r"\{\n\s+(\"text\": [^{}]*?)\n\s+\}", _one_line, text)


def _one_line(match: re.Match[str]) -> str:
    return "{" + re.sub(r"\n\s+", " ", match[1]) + "}"


# LaTeX


def as_tex(found: Mapping[str, Any]) -> str:
    """results.tex: the same content as commands of kdreport.sty, all text escaped."""
    title = found["title"]
    lines = [f"% {NOTE}", r"\kdset{language}{" + found["language"] + "}"]
    lines += [
        rf"\kdset{{{name}}}{{{latex(text)}}}"
        for name, text in (
            ("digest", found["digest"]),
            ("commit", found["commit"] or found["words"]["no commit"]),
            ("team", title["team"]),
            ("members", ", ".join(title["members"])),
            ("repository", title["repository"]),
            ("homework", title["homework"]),
        )
    ]
    lines += [r"\kdset{hascommit}{}"] if found["commit"] else []
    lines += [rf"\kdset{{word {key}}}{{{latex(text)}}}" for key, text in found["words"].items()]
    lines += [
        rf"\kdset{{result {key}}}{{{latex(value['text'])}}}"
        for key, value in found["results"].items()
    ]
    lines += [
        rf"\kdset{{near {start}}}{{{', '.join(keys)}}}"
        for start, keys in _nearby(list(found["results"])).items()
    ]
    for key, table in found["tables"].items():
        columns = "l" + "r" * (len(table["head"]) - 1)
        lines.append(rf"\kdset{{table {key}}}{{{_tabular(columns, table['head'], table['rows'])}}}")
        if table["figure"]:
            lines.append(rf"\kdset{{figure {key}}}{{{table['figure']}}}")
    head = [found["words"][key] for key in ("what", "from", "licence", "changed")]
    lines.append(rf"\kdset{{sources}}{{{_tabular('YYlY', head, found['sources'])}}}")
    head = [found["words"][key] for key in ("person", "items", "commits", "sections")]
    lines.append(rf"\kdset{{contributions}}{{{_tabular('YYrY', head, found['contributions'])}}}")
    text, command = (found["reproducibility"][key] for key in ("text", "command"))
    lines.append(rf"\kdset{{reproducibility}}{{{latex(' '.join(text))}}}")
    lines.append(rf"\kdset{{command}}{{{latex(command)}}}")
    return "\n".join(lines) + "\n"


def _nearby(keys: Sequence[str], most: int = 8) -> dict[str, list[str]]:
    """{beginning of a key: one key for each way to go on}, for the error about an unknown one."""
    found: dict[str, dict[str, str]] = {}
    for key in keys:
        bits = key.split(".")
        for length in range(min(len(bits), 3)):
            below = found.setdefault(".".join(bits[:length]), {})
            below.setdefault(bits[length], key)
    return {start: list(below.values())[:most] for start, below in found.items()}


def _tabular(columns: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with the rules of booktabs; Y is a column that breaks its lines (kdreport.sty)."""
    wide = "Y" in columns
    name, width = ("tabularx", r"{\linewidth}") if wide else ("tabular", "")
    body = [" & ".join(map(latex, line)) + r" \\" for line in rows]
    return "%\n".join(
        [
            rf"\begin{{{name}}}{width}{{@{{}}{columns}@{{}}}}",
            r"\toprule",
            " & ".join(map(latex, head)) + r" \\",
            r"\midrule",
            *body,
            rf"\bottomrule\end{{{name}}}",
        ]
    )


# Figures


def figures(results: Results) -> dict[str, bytes]:
    """{file name: content}: the differences of each experiment, as SVG and as PDF.

    The bytes are the same on repeat with the same Matplotlib.
    """
    found: dict[str, bytes] = {}
    for one in results.experiments:
        if one.differences:
            for kind in ("svg", "pdf"):
                found[f"{stem(one)}.{kind}"] = _figure(one, results.language, kind)
    return found


def stem(found: Summary) -> str:
    """Name of a figure's files; letters that not every engine reads in one become a hash."""
    if found.part.isascii():
        return found.part
    return f"experiment-{sha256(found.part.encode())[:8]}"


def _figure(found: Summary, language: str, kind: str) -> bytes:
    import matplotlib
    from matplotlib.figure import Figure

    from kdlib import show

    accurate = "accuracy" in found.metric
    label = words.WORDS["axis"].of(language).format(
        metric=_capital(words.metric(found.metric, language)),
        baseline=found.baseline,
        unit=words.WORDS["points"].of(language) if accurate else "",
    )  # fmt: skip
    style: Any = show.STYLE | {
        "font.size": 8,
        "axes.titlesize": 8,
        "svg.hashsalt": "kdlib",
        "pdf.fonttype": 42,
        "text.parse_math": False,  # a "$" in the name of a method is no mathematics
    }
    with matplotlib.rc_context(style):
        picture = Figure(figsize=(3.35, 0.55 + 0.2 * len(found.differences)))
        axes = picture.subplots()
        show.intervals(found.differences, xlabel=label, axes=axes, reference=0.0)
        axes.xaxis.set_major_formatter(_ticks(language))
        stream = io.BytesIO()
        nothing = ("Creator", "Date") if kind == "svg" else ("Creator", "Producer", "CreationDate")
        picture.savefig(stream, format=kind, metadata=dict.fromkeys(nothing))
    return stream.getvalue()


def _ticks(language: str) -> Callable[[float, float], str]:
    """Numbers of an axis as the text writes them."""

    def form(value: float, position: float) -> str:
        text = f"{value:g}".replace("-", "−")
        return text.replace(".", ",") if language == "ru" else text

    return form


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
