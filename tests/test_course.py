"""The course file: what it says, and that every wrong entry is named with its line."""

import re
import tomllib
from datetime import date

import pytest

from kdlib import __main__ as cli
from kdlib.homework import course, entries, report
from kdlib.homework.entries import Text

ENGLISH_IN_THE_LECTURE = ("Neural Architecture Search", "Parameter efficient fine tuning")


@pytest.fixture
def text():
    return course.FILE.read_text("utf-8")


@pytest.fixture
def changed(text, tmp_path):
    """changed(old, new) writes a course file in which `old` became `new`, once."""

    def make(old, new):
        assert text.count(old) >= 1, old
        path = tmp_path / "course.toml"
        path.write_text(text.replace(old, new, 1), encoding="utf-8")
        return path

    return make


def test_the_course_is_that_of_the_lecture():
    found = course.load()
    assert found.title.ru == "Эффективные системы машинного обучения"
    assert found.university.ru == "ВМК МГУ" and "@trandelik" in found.contact.en
    assert found.lecture.title.ru == "Правила игры и дистилляция знаний"
    assert found.lecture.date == date(2024, 9, 20) and found.lecture.number == 1
    assert found.lecture.teacher.key == "feoktistov"
    assert [one.key for one in found.team] == ["oganov", "feoktistov", "alekseev"]
    assert [[one.key for one in block.teachers] for block in found.blocks] == [
        ["feoktistov"],
        ["alekseev", "feoktistov"],
        ["oganov"],
    ]
    assert [len(block.topics) for block in found.blocks] == [3, 6, 4]
    assert [one.issued for one in found.homeworks] == [date(2024, 10, 18), date(2024, 11, 15)]
    rules = found.rules
    assert (rules.team_size, rules.pages, rules.weeks) == (4, 6, 3)
    assert len(found.flags.red) == len(found.flags.green) == 3


def test_every_text_is_in_both_languages():
    def texts(value):
        if isinstance(value, Text):
            yield value
        elif isinstance(value, tuple):
            for one in value:
                yield from texts(one)
        elif hasattr(value, "__dataclass_fields__"):
            for name in value.__dataclass_fields__:
                yield from texts(getattr(value, name))

    found = list(texts(course.load()))
    assert len(found) > 40
    for one in found:
        assert re.search("[а-яё]", one.ru.lower()) or one.ru in ENGLISH_IN_THE_LECTURE
        assert not re.search("[а-яё]", one.en.lower()), one.en
        assert one.of("en") == one.en and one.of("ru") == one.ru
    with pytest.raises(ValueError, match="language must be one of en, ru; got 'de'"):
        found[0].of("de")


def test_a_course_is_frozen():
    with pytest.raises(AttributeError):
        course.load().title = "another"


WRONG = [
    ("team_size = 4", 'team_size = "four"', "rules.team_size must be a whole number from 1 to 50"),
    ("team_size = 4", "team_size = 0", "rules.team_size must be .*got int 0"),
    ("pages = 6", "pages = true", "rules.pages must be a whole number"),
    ("pages = 6", "pagse = 6", "rules.pagse is no known entry: write pages"),
    ("weeks = 3", "weeks = 3\nparty = 1", "rules.party is no known entry: remove it, or use"),
    ("weeks = 3", "", "rules.weeks is missing: add weeks = ..."),
    ("issued = 2024-10-18", 'issued = "18.10.2024"', r"homeworks\[0\].issued must be a date"),
    (
        "issued = 2024-11-15",
        "issued = 2024-11-15T10:00:00",
        r"homeworks\[1\].issued must be a date",
    ),
    ('teacher = "feoktistov"', 'teacher = "feoktistow"', "lecture.teacher must be one of oganov"),
    ('teachers = ["oganov"]', 'teachers = ["nobody"]', r"blocks\[2\].teachers\[0\] must be one"),
    ('teachers = ["oganov"]', "teachers = []", r"blocks\[2\].teachers must be an array of 1 to"),
    ('key = "alekseev"', 'key = "oganov"', r"team\[2\].key must be another key"),
    ('en = "Time series", ', "", r"blocks\[1\].topics\[1\].en is missing"),
    ('en = "Time series"', "en = 3", r"blocks\[1\].topics\[1\].en must be a text in quotes"),
    ('en = "Time series"', 'en = " "', r"blocks\[1\].topics\[1\].en must be one line of 1 to"),
    ('en = "Time series"', r'en = "two\nlines"', r"topics\[1\].en must be one line"),
    ('en = "Time series"', 'de = "Reihen"', r"blocks\[1\].topics\[1\].de is no known entry"),
]


@pytest.mark.parametrize("old, new, message", WRONG)
def test_a_wrong_entry_is_named_with_its_line(old, new, message, changed, text):
    path = changed(old, new)
    line = text[: text.index(old)].count("\n") + 1
    if "is missing" in message and not new:  # what is not there has the line of its table
        line = None
    if "party" in message:
        line += 1
    with pytest.raises(ValueError, match=message) as caught:
        course.load(path)
    said = re.match(rf"{re.escape(str(path))}, line (\d+): ", str(caught.value))
    assert said, caught.value
    if line is None:
        assert 1 <= int(said[1]) <= text[: text.index(old)].count("\n") + 1
    else:
        assert int(said[1]) == line


def test_a_missing_table_is_named(text, tmp_path):
    path = tmp_path / "course.toml"
    path.write_text(text.split("[flags]")[0], encoding="utf-8")
    with pytest.raises(ValueError, match=r"line 1: flags is missing: add flags = \.\.\."):
        course.load(path)


def test_what_is_no_file_of_this_kind_is_told(tmp_path):
    path = tmp_path / "course.toml"
    for content, message in (
        (b"pages = \n", r"is not valid TOML: .*line 1"),
        (b"a = 1\n" * 30_000, "must have at most 100000 bytes"),
        (b'title = "\xff"', "must be text in UTF-8"),
        (b"a = " + b"[" * 40_000, "(nests its arrays too deeply|is not valid TOML)"),
        (b"team = 1\n", "title is missing"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            course.load(path)
    with pytest.raises(FileNotFoundError):
        course.load(tmp_path / "none.toml")


# Lines

TRICKY = '''\
# a = 0
"quoted key" = 1   # comment with ] } "
a.b = { c = "]", d = [1, { e = 2 }] }
long = """
x = 1
[table]
\\""" y"""
literal = \'\'\'
[[no]] # no comment
\'\'\'
when = 2024-10-18 10:00:00
list = [
    "one",  # ,
    # nothing
    [2, 3],
    { deep = "four" },
]
[table]
x = 'a # b'
[table."sub ] key".z]
y = 1
[[rows]]
x = 1
[rows.inner]
x = 2
[[rows]]
[[rows.cells]]
x = 3
[[rows.cells]]
x = 4
'''


def test_lines_of_every_entry():
    found = entries.lines(TRICKY)
    assert tomllib.loads(TRICKY)
    want = {
        ("quoted key",): 2,
        ("a", "b", "c"): 3,
        ("a", "b", "d", 1, "e"): 3,
        ("long",): 4,
        ("literal",): 8,
        ("when",): 11,
        ("list",): 12,
        ("list", 0): 13,
        ("list", 1): 15,
        ("list", 1, 1): 15,
        ("list", 2, "deep"): 16,
        ("table",): 18,
        ("table", "x"): 19,
        ("table", "sub ] key", "z"): 20,
        ("table", "sub ] key", "z", "y"): 21,
        ("rows", 0): 22,
        ("rows", 0, "inner", "x"): 25,
        ("rows", 1): 26,
        ("rows", 1, "cells", 0, "x"): 28,
        ("rows", 1, "cells", 1, "x"): 30,
    }
    assert {path: found.get(path) for path in want} == want


def test_lines_of_the_course_file_are_those_of_its_keys(text):
    source = text.splitlines()
    found = entries.lines(text)

    def walk(value, path):
        yield path
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        for key, part in parts:
            if isinstance(part, (dict, list)):
                yield from walk(part, (*path, key))
            else:
                yield (*path, key)

    paths = list(walk(tomllib.loads(text), ()))[1:]
    assert len(paths) > 100
    for path in paths:
        line = source[found[path] - 1]
        named = [part for part in path if isinstance(part, str)]
        assert isinstance(path[-1], int) or re.search(rf"\b{named[-1]}\b", line), (path, line)


# As a command hands it on


def test_another_course_is_handed_on(changed, tmp_path, capsys):
    folder = tmp_path / "report"
    report.start(folder, "en")
    strict = changed("team_size = 4", "team_size = 2")
    assert cli.main(["report", str(folder), "--check", "--course", str(strict)]) == 1
    assert "3 members, but a team may have at most 2" in capsys.readouterr().out
    broken = changed("pages = 6", "pages = 0")
    assert cli.main(["report", str(folder), "--check", "--course", str(broken)]) == 2
    assert re.search(r"course\.toml, line \d+: rules\.pages must be", capsys.readouterr().err)


def test_a_variable_names_the_course_of_all_commands(tmp_path, monkeypatch):
    own = tmp_path / "own.toml"
    text = course.FILE.read_text("utf-8").replace("@trandelik", "@somebody")
    own.write_text(text, encoding="utf-8")
    monkeypatch.setenv("KDLIB_COURSE", str(own))
    assert "@somebody" in course.load().contact.en
    assert "@trandelik" in course.load(course.FILE).contact.en
    monkeypatch.setenv("KDLIB_COURSE", "")
    assert "@trandelik" in course.load().contact.en
