"""`review`: what each repository must give, no more and no fewer; and that reading harms nobody."""

import csv
import importlib.util
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import teams
from teams import ANNA, BORIS, RULES, VERA, change, commit, git, notebook, write

from kdlib import __main__ as cli
from kdlib.homework import course, sandbox
from kdlib.homework.review import cells, cohort, findings, kit, page, reviewing, running, stored
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
    return {flag: page.state(found, flag) for flag in FLAGS}


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
    lines = "\n".join(f"measured_{number} = {number} ** 2" for number in range(400))
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
    return {row[0]: (int(row[1]), int(row[2])) for row in table.rows}


def test_coauthors_count_and_mailmap_joins_addresses(team, look):
    before = works(look, team)
    git(team, "commit", "-q", "--allow-empty", "-m",
        "together\n\nCo-authored-by: Boris Obraztsov <boris@example.org>", by=VERA)  # fmt: skip
    write(team, "late.py", "late = 1\nlater = 2\n", ("Old", "old@laptop"))
    after = works(look, team)
    assert after["Boris Obraztsov"][0] == before["Boris Obraztsov"][0] + 1
    assert after["Old (nobody of team.toml)"] == (1, 2)
    write(team, ".mailmap", "Anna Primerova <anna@example.org> <old@laptop>\n")
    joined = works(look, team)
    assert len(joined) == 3 and joined["Anna Primerova"][1] == before["Anna Primerova"][1] + 2


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
    files = look(finished).answers["contributions"].tables[1]
    assert "report.typ" not in {row[0] for row in files.rows}


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
        clock = running.Clock(True, True, seconds, 7)
        runs = list(copy.runs.values())
        return running.chosen(look_at(runs), copy, clock)


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
    assert running._failure(error, run)[0] == severity


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
    finished, tmp_path, given
):
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
    found = {one.name: one for one in cohort.review(paths, options, tmp_path / "out")}
    assert {name: page.state(one, "similarity") for name, one in found.items()} == {
        "first": RED, "second": RED, "third": GREEN,
    }  # fmt: skip
    passages = found["first"].answers["similarity"].passages
    assert any("work.ipynb:" in one.right and "solution.py:" in one.left for one in passages)


@needs_copydetect
def test_code_of_last_year_is_compared_and_what_was_given_out_is_not(team, tmp_path, capsys):
    write(team, "solution.py", SOLUTION)
    old = tmp_path / "last year" / "a team"
    old.mkdir(parents=True)
    (old / "main.py").write_text(SOLUTION)
    line = ["review", str(team), "--no-run", "--out", str(tmp_path), "--against", str(old.parent)]
    assert cli.main(line) == 1
    said = capsys.readouterr().out
    assert "similarity: last year/a team" in said
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
