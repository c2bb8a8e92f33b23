"""`team`: a repository that builds at once, with the team's own names, and a first commit."""

import subprocess

import pytest

from kdlib import __main__ as cli
from kdlib import models, recipes, records, training
from kdlib.homework import course, examples, report, starting, team
from kdlib.homework.review import kit, reviewing, similarity
from kdlib.homework.review.findings import RED
from kdlib.homework.review.reviewing import Options

PEOPLE = ["Анна Иванова <anna@example.org>", "Bo O'Neil <bo@example.org>"]


@pytest.fixture(autouse=True)
def author(monkeypatch):
    """Git knows who commits, whatever the machine."""
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "A")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "a@example.org")


def test_a_repository_with_a_first_commit_builds_at_once(tmp_path, capsys):
    folder = tmp_path / "our team"
    assert cli.main(["team", str(folder), "--name", "Три ученика", "--language", "ru"]) == 0
    assert "a finished small paper" in capsys.readouterr().out
    log = subprocess.run(
        ["git", "log", "--format=%s"], cwd=folder, capture_output=True, text=True, check=True
    )
    assert log.stdout == "The kit starts us off\n"
    status = subprocess.run(
        ["git", "status", "--porcelain"], cwd=folder, capture_output=True, text=True, check=True
    )
    assert not status.stdout
    text = (folder / "README.md").read_text("utf-8")
    assert text.startswith("# Три ученика") and "{" not in text
    assert "Методы сжатия нейронных сетей" in text
    assert cli.main(["report", str(folder)]) == 0
    assert (folder / "report.pdf").stat().st_size > 10_000


def test_the_members_stand_in_its_file_and_have_done_nothing_yet(tmp_path, capsys):
    folder = tmp_path / "two"
    words = [word for person in PEOPLE for word in ("--member", person)]
    assert cli.main(["team", str(folder), *words]) == 0
    found = team.load(folder / team.FILE)
    assert [member.name.en for member in found.members] == ["Анна Иванова", "Bo O'Neil"]
    assert [list(member.git) for member in found.members] == [
        ["anna@example.org"],
        ["bo@example.org"],
    ]
    assert found.experiments, "the rest of the file stays"
    assert cli.main(["report", str(folder), "--check"]) == 1
    assert "Анна Иванова" in capsys.readouterr().out, "a member without items is told"


@pytest.mark.parametrize(
    "change, message",
    [
        ({"members": ["Anna"]}, 'members must be given as "Name <address>"'),
        ({"members": [f"P{n} <p{n}@x.org>" for n in range(5)]}, "4 at most, got 5"),
        ({"name": 'a"b'}, "name must be a line"),
        ({"name": "  "}, "name must be a line"),
        ({"language": "de"}, "language must be one of en, ru"),
    ],
)
def test_what_does_not_fit_is_told_and_nothing_written(change, message, tmp_path):
    settings = {"name": "T", "language": "en"} | change
    with pytest.raises(ValueError, match=message):
        starting.create(tmp_path / "new", course.load(), **settings)
    assert not (tmp_path / "new").exists()


def test_a_folder_that_holds_something_is_left_alone(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    assert cli.main(["team", str(tmp_path)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_without_git_the_files_are_there_and_the_advice(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cli.main(["team", str(tmp_path / "new")]) == 1
    assert "no first commit: git does not run" in capsys.readouterr().out
    assert (tmp_path / "new" / "networks.py").is_file()


def test_the_networks_of_the_starter_can_be_repeated(tmp_path, monkeypatch):
    starting.create(tmp_path / "new", course.load(), name="T", language="en")
    monkeypatch.chdir(tmp_path / "new")
    monkeypatch.syspath_prepend(str(tmp_path / "new"))
    import networks

    network = training.build(networks.Small, 0)
    again = recipes.make(recipes.recipe_of(network), own_code=True)
    assert type(again) is networks.Small and isinstance(models.ConvNet((4,)), models.ConvNet)


# What a team meets in its first days


@pytest.fixture
def repository(tmp_path):
    folder = tmp_path / "team"
    starting.create(folder, course.load(), name="T", language="en")
    assert cli.main(["report", str(folder)]) == 0
    return folder


def git(folder, *words):
    subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True)


def test_photos_that_git_ignores_do_not_stop_the_report(repository, capsys):
    (repository / "photos").mkdir()
    for number in range(1100):
        (repository / "photos" / f"{number}.png").write_bytes(b"x")
    assert cli.main(["report", str(repository)]) == 2
    said = capsys.readouterr().err
    assert "at most 1000 files" in said and "photos" in said and "let Git ignore" in said
    with (repository / ".gitignore").open("a") as file:
        file.write("/photos/\n")
    assert cli.main(["report", str(repository)]) == 0


def test_a_clone_without_history_or_with_other_line_ends_is_not_accused(
    repository, tmp_path, capsys
):
    git(repository, "add", "-A")
    git(repository, "commit", "-m", "the report")
    assert cli.main(["report", str(repository), "--check"]) == 0
    for name, options in {
        "shallow": ["--depth", "1"],
        "windows": ["-c", "core.autocrlf=true"],
    }.items():
        git(tmp_path, "clone", "-q", *options, repository.as_uri(), name)
        capsys.readouterr()
        assert cli.main(["report", str(tmp_path / name), "--check"]) == 0, capsys.readouterr().out


def test_another_set_of_records_is_told_in_one_line(repository, capsys):
    path = next((repository / "runs" / "comparison").glob("kd-*.json"))
    path.unlink()
    capsys.readouterr()
    assert cli.main(["report", str(repository), "--check"]) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if "results.json" in line]
    assert lines[0].startswith("generated/results.json was made from other records")
    assert len(lines) == 1, lines


def test_a_report_in_latex_alone_is_read(repository, capsys):
    for path in repository.glob("report*.typ"):
        path.unlink()
    capsys.readouterr()
    cli.main(["report", str(repository), "--check"])
    said = capsys.readouterr().out
    assert "report.typ" not in said and "Errno" not in said, said


# The invented teams


@pytest.fixture(scope="module")
def teams(tmp_path_factory):
    return examples.create(tmp_path_factory.mktemp("examples") / "teams", course.load())


def test_the_examples_are_repositories_with_the_flags_that_they_show(teams):
    given = kit.read()
    options = Options(run=False, course=course.load(), kit=given, seed=1)
    found = {
        one.folder.name: reviewing.review(one.folder, one.folder.name, options)[0] for one in teams
    }
    reds = {
        name: {one.flag for one in team.findings if one.severity == RED}
        for name, team in found.items()
    }
    assert reds == {
        "birch": set(),
        "alder": {"contributions", "unbound_numbers", "failed_attempts"},
        "maple": set(),
    }
    assert found["maple"].members == ("Denis Rybin", "Elsa Novak")


def test_one_example_copies_from_another(teams):
    pytest.importorskip("copydetect")
    given = kit.read()
    programs = [similarity.of_folder(one.folder, one.folder.name, given) for one in teams]
    first = max(
        similarity.compare(programs, given, course.load(), print), key=lambda pair: pair.share
    )
    assert {first.left.name, first.right.name} == {"birch", "maple"}
    assert first.share > course.load().review.similar


@pytest.mark.filterwarnings("ignore:.*made by other code of the kit")
def test_the_raised_records_of_an_example_are_those_of_the_comparison(teams):
    original = records.load(report.template() / "runs" / "comparison")
    raised = records.load(teams[-1].folder / "runs" / "comparison")
    for method in original.methods:
        more = raised.values(method) - original.values(method)
        assert more == pytest.approx([0.0 if method == "alone" else 3.0] * 5)


def test_examples_need_a_new_folder_and_nothing_that_describes_one_team(teams, tmp_path, capsys):
    assert cli.main(["team", str(teams[0].folder.parent), "--examples"]) == 2
    assert "is there already" in capsys.readouterr().err
    assert cli.main(["team", str(tmp_path / "new"), "--examples", "--name", "T"]) == 2
    assert "leave out --name" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
