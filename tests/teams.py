"""Teams' repositories for the tests of `review`: real histories, records made in moments."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from kdlib.homework import course, report, starting

RULES = course.load()
ANNA, BORIS, VERA = (
    ("Anna Primerova", "anna@example.org"),
    ("Boris Obraztsov", "boris@example.org"),
    ("Vera Shablonova", "vera@example.org"),
)
MODULE = '''\
"""Our measurements."""

import random

METHODS = {
    "teacher": ("large",),
    "comparison": ("alone", "label smoothing", "KD", "DKD", "DKD, published", "AT"),
    "temperature": ("alone", "KD, T=1", "KD, T=2", "KD, T=4", "KD, T=8", "KD, T=16"),
}


def measure(name, seed):
    draw = random.Random(f"{name} {seed}")
    return {
        method: {"accuracy": 70 + 2 * place + draw.random(), "extra_bytes": 512 * place}
        for place, method in enumerate(METHODS[name])
    }
'''
MAIN = """
import functools

from kdlib import experiments
import measuring

for name in measuring.METHODS:
    experiments.over_seeds(
        functools.partial(measuring.measure, name), range(5), experiment=name, folder="runs",
        workers=1,
    )
"""
WORK = {
    ANNA: '"""KD."""\n\n\ndef soften(logits, temperature):\n    top = max(logits)\n'
    "    return [(one - top) / temperature for one in logits]\n",
    BORIS: '"""DKD."""\n\nfrom itertools import pairwise\n\n\ndef rises(curve):\n'
    "    steps = [second - first for first, second in pairwise(curve)]\n"
    "    return sum(step > 0 for step in steps)\n",
    VERA: '"""AT."""\n\n\nclass Attention:\n    def __init__(self, power):\n'
    "        self.power = power\n\n    def __call__(self, maps):\n"
    "        while maps and not isinstance(maps[0], float):\n            maps = maps[0]\n"
    "        return sum(abs(one) ** self.power for one in maps)\n",
}
# Beginnings of lines of the starter's text, and what our team writes in their place.
OWN = {
    "We expected attention transfer to help, because": "Attention transfer was of no use, though",
    "On this task most of what distillation gains": "Our records say that most of what it gains",
    "What distillation gains over the student": "The gain of distillation over the student",
}


def git(folder, *words, by=ANNA, text=None):
    """Run Git in a repository as somebody."""
    name, address = by
    who = {f"GIT_{role}_{what}": value for role in ("AUTHOR", "COMMITTER")
           for what, value in (("NAME", name), ("EMAIL", address))}  # fmt: skip
    done = subprocess.run(
        ["git", "-c", "core.autocrlf=false", *words], cwd=folder, check=True, capture_output=True,
        input=text, env=os.environ | who,
    )  # fmt: skip
    return done.stdout.decode()


def commit(folder, message="work", by=ANNA):
    """Commit all that lies there."""
    git(folder, "add", "-A", by=by)
    git(folder, "commit", "-q", "--allow-empty", "-m", message, by=by)


def write(folder, name, text, by=ANNA):
    """Write a file and commit it."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    commit(folder, f"{name}", by)


def change(folder, name, old, new, by=ANNA):
    """Replace a text in a file and commit it."""
    text = (folder / name).read_text("utf-8")
    assert old in text, f"{old!r} is not in {name}"
    write(folder, name, text.replace(old, new, 1), by)


def again(folder, by=ANNA):
    """Write the numbers of the report again, and commit them."""
    report.make(report.read(folder, RULES))
    commit(folder, "numbers", by)


def run(folder, program):
    """Run a program of the team."""
    kit = str(Path(report.HERE).parents[1])
    subprocess.run(
        [sys.executable, "-c", program], cwd=folder, check=True, capture_output=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join((kit, str(folder)))},
    )  # fmt: skip


def good(folder):
    """A repository with nothing to find: three members, records, numbers, a text."""
    for role in ("AUTHOR", "COMMITTER"):
        os.environ |= {f"GIT_{role}_NAME": ANNA[0], f"GIT_{role}_EMAIL": ANNA[1]}
    try:
        starting.create(folder, RULES, name="Three small students", language="en")
    finally:
        for role in ("AUTHOR", "COMMITTER"):
            os.environ.pop(f"GIT_{role}_NAME")
            os.environ.pop(f"GIT_{role}_EMAIL")
    shutil.rmtree(folder / "runs")
    (folder / "measuring.py").write_text(MODULE, encoding="utf-8")
    run(folder, MAIN)
    (folder / "experiments.py").write_text(MAIN, encoding="utf-8")
    commit(folder, "Our experiments", BORIS)
    for number, (who, text) in enumerate(WORK.items()):
        write(folder, f"part_{number}.py", text, who)
    for old, new in OWN.items():
        change(folder, "report.typ", old, new, VERA)
    again(folder, VERA)
    return folder


def notebook(*cells):
    """A notebook as text; a cell is (source, execution count, printed text, tags)."""
    made = {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": []}
    for place, (source, count, said, tags) in enumerate(cells):
        printed = {"output_type": "stream", "name": "stdout", "text": said}
        cell = {"cell_type": "code", "id": f"cell{place}", "source": source}
        cell |= {"metadata": {"tags": tags}, "execution_count": count}
        made["cells"].append(cell | {"outputs": [printed] if said else []})
    return json.dumps(made, indent=1)
