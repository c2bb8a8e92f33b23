"""The homework report: numbers by key, both engines, and everything that `--check` has to find."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from pdfs import pages_of, squeezed, text_of

from kdlib import __main__ as cli
from kdlib import evidence, records
from kdlib.commands import report as command
from kdlib.homework import (
    building,
    checks,
    course,
    entries,
    generated,
    report,
    repository,
    results,
    sources,
    team,
    words,
)
from kdlib.homework.results import Value
from kdlib.homework.team import Experiment
from kdlib.records import Run, Runs

RULES = course.load()
needs_tex = pytest.mark.skipif(
    bool(building.missing_tex()),
    reason=f"{' and '.join(building.missing_tex())} not installed: {building.tex_advice()}",
)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A report as the template starts one, with its generated files."""
    folder = tmp_path_factory.mktemp("homework") / "report"
    report.start(folder, "en")
    report.make(report.read(folder, RULES))
    return folder


@pytest.fixture
def folder(finished, tmp_path):
    """A copy of it, to break."""
    return Path(shutil.copytree(finished, tmp_path / "report"))


def change(path, old, new, count=1):
    text = path.read_text("utf-8")
    assert old in text, f"{old} is not in {path}"
    path.write_text(text.replace(old, new, count), encoding="utf-8")


def found_in(folder, **options):
    return report.findings(report.read(folder, RULES), **options)


def run(experiment="e", method="KD", seed=0, value=90.0, **fields):
    fields = {"identity": f"{method}{seed}", "setting": "s", "data": "d", "code": "c"} | fields
    metrics = fields.pop("metrics", {"accuracy": value})
    return Run(experiment, method, seed, {}, metrics, **fields)


def several(*lines, experiment="e"):
    """Runs of (method, values by seed)."""
    return Runs(
        run(experiment, method, seed, value)
        for method, values in lines
        for seed, value in enumerate(values)
    )


def values_of(runs, baseline=None, language="en", metric=None):
    named = {} if baseline is None else {"e": Experiment(baseline, metric, 1)}
    return results.compute(runs, named, language).values


# Numbers by key


def test_keys_and_their_texts():
    runs = several(("CE", [90, 91, 92]), ("KD, T=4", [92, 93.5, 94]))
    found = values_of(runs, "CE")
    mean, gain = evidence.interval([92, 93.5, 94]), evidence.interval([2, 2.5, 2])
    assert found["e.kd-t-4.accuracy"].text == f"93.2 [{mean.low:.1f},\u00a0{mean.high:.1f}]"
    assert found["e.kd-t-4.accuracy.mean"].text == "93.2"
    assert found["e.kd-t-4.accuracy.gain"].text == f"+2.2 [+{gain.low:.1f},\u00a0+{gain.high:.1f}]"
    assert found["e.kd-t-4.accuracy.gain.mean"].text == "+2.2"
    assert found["e.kd-t-4.seeds"].text == "3" and found["e.kd-t-4.accuracy"].seeds == 3
    assert found["e.kd-t-4.accuracy"].low == pytest.approx(mean.low)
    assert "e.ce.accuracy.gain" not in found, "the baseline has no difference to itself"
    assert "e.kd-t-4.seconds" in found and "e.kd-t-4.seconds.gain" not in found
    assert not any("gain" in key for key in values_of(runs)), "no baseline, no differences"


def test_a_key_stays_when_other_runs_are_added():
    few = several(("CE", [1, 2]), ("KD", [3, 4]))
    more = few + several(("A method", [5, 6])) + several(("CE", [1, 2]), experiment="another")
    assert set(values_of(few, "CE")) < set(values_of(more, "CE"))


def test_names_that_would_share_a_key_are_told_apart():
    found = results.parts(["KD", "kd!", "KD + CRD", "KD_CRD", "seeds", "Ученик", "—"], ["seeds"])
    assert len(set(found.values())) == len(found)
    assert re.fullmatch(r"kd-[0-9a-f]{4}", found["KD"]) and found["Ученик"] == "ученик"
    assert re.fullmatch(r"seeds-[0-9a-f]{4}", found["seeds"]) and found["—"] == "x"
    assert all(re.fullmatch(r"[^\W_]+(-[^\W_]+)*", part) for part in found.values())


def test_one_rule_for_the_digits():
    assert words.decimals([0.34, 0.2], [1.0]) == 2
    assert words.decimals([3.4, 0.2], [1.0]) == 1 and words.decimals([34, 3], [1.0]) == 0
    assert words.decimals([0.0996], [1.0]) == 2, "that is 0.10 when rounded"
    assert words.decimals([0.0], [3, 4.0]) == 0 and words.decimals([0.0], [0.5]) == 2
    assert words.decimals([1e-12], [1.0]) == 6 and words.decimals([float("nan")], [1.5]) == 2
    assert words.number(-0.04, 1, "en") == "0.0" and words.number(-0.06, 1, "en") == "−0.1"
    assert words.number(0.04, 1, "en", sign=True) == "0.0"
    assert words.number(1234567.5, 1, "en") == "1,234,567.5"
    assert words.number(1234567.5, 1, "ru", sign=True) == "+1\u202f234\u202f567,5"
    assert words.interval(1, 0.5, 1.5, 1, "ru") == "1,0 [0,5;\u00a01,5]"
    with pytest.raises(ValueError, match="language must be one of en, ru"):
        words.number(1.0, 1, "de")


def test_a_single_seed_has_no_interval():
    found = values_of(several(("large", [88.4]), ("CE", [80.0])), "CE")
    assert found["e.large.accuracy"].text == "88.40 (one run)"
    assert found["e.large.accuracy"].low is None and found["e.large.accuracy.mean"].text == "88.40"
    assert "e.large.accuracy.gain" not in found, "a difference needs two common seeds"
    ru = values_of(several(("large", [88.4])), language="ru")
    assert ru["e.large.accuracy"].text == "88,40 (один запуск)"


def test_numbers_that_every_seed_shares_stand_alone():
    runs = Runs(run(seed=seed, metrics={"extra_parameters": 1184}) for seed in range(3))
    found = values_of(runs)
    assert found["e.kd.extra-parameters"].text == "1,184"


def test_differences_are_paired_by_common_seeds():
    runs = several(("CE", [90, 91, 92])) + [run(seed=seed, value=95) for seed in (1, 2, 7)]
    found = values_of(runs, "CE")["e.kd.accuracy.gain"]
    assert found.seeds == 2 and found.mean == 3.5


def test_what_cannot_be_compared_is_refused():
    runs = several(("CE", [90, 91])) + [run(seed=s, value=95, data="other") for s in (0, 1)]
    with pytest.raises(ValueError, match="experiment 'e': .*evaluated on the same data"):
        values_of(runs, "CE")
    mixed = Runs([*several(("KD", [90, 91])), run(seed=3, setting="another")])
    with pytest.raises(ValueError, match="experiment 'e': method 'KD' mixes runs"):
        values_of(mixed)
    with pytest.raises(ValueError, match="metric must be one of accuracy, seconds; got 'f1'"):
        values_of(several(("CE", [1, 2])), "CE", metric="f1")


def test_the_baseline_leads_and_numbers_in_names_sort(finished):
    found = report.read(finished, RULES).results
    (temperature,) = [one for one in found.experiments if one.name == "temperature"]
    assert [row.method for row in temperature.rows] == ["alone"] + [
        f"KD, T={value}" for value in (1, 2, 4, 8, 16)
    ]


def test_the_digest_is_of_the_content(tmp_path):
    runs = several(("CE", [1, 2]))
    paths = [records.save(one, tmp_path / "runs") for one in runs]
    first = results.digest(results.read(tmp_path))
    paths[0].rename(paths[0].with_name("renamed.json"))
    paths[1].write_bytes(paths[1].read_bytes().replace(b"\n", b"\r\n"))
    assert results.digest(results.read(tmp_path)) == first
    assert results.digest(several(("CE", [1, 2.5]))) != first


def test_records_are_not_trusted(tmp_path):
    path = records.save(run(), tmp_path / "runs")
    good = path.read_text("utf-8")
    for old, new in (
        ('"accuracy": 90.0', '"accuracy": NaN'),
        ('"accuracy": 90.0', '"accuracy": "90"'),
        ('"accuracy": 90.0', '"accuracy": true'),
        ('"method": "KD"', '"method": "K\\nD"'),
        ('"method": "KD"', f'"method": "{"K" * 300}"'),
        ('"experiment": "e"', '"experiment": "../e"'),
        ('"seconds": 0.0', '"seconds": "long"'),
        ('"commit": ""', '"commit": 7'),
        ("{", "[" * 100_000),
        ("{", " " * results.MOST_BYTES + "{"),
    ):
        assert old in good
        path.write_text(good.replace(old, new, 1), encoding="utf-8")
        with pytest.raises(ValueError, match=rf"{re.escape(path.name)} is (not a|no) run record"):
            results.read(tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match="holds no run records: give folder="):
        results.read(tmp_path)


# Untrusted text


NASTY = r'\input{/etc/passwd} $x$ #sys 100% a_b ^ ~ & {" ` '


def test_latex_prints_text_and_runs_none():
    escaped = words.latex(NASTY)
    assert "\\input" not in escaped and r"\textbackslash{}input" in escaped
    assert not re.search(r"(?<!\\)[#$%&_^~]", escaped.replace(r"\textasciitilde", ""))
    assert words.latex("α−β ≈ Жё é 火") == (
        r"\ensuremath{\alpha}\ensuremath{-}\ensuremath{\beta} \ensuremath{\approx} Жё é ?"
    )
    every = "".join(map(chr, range(32, 0x2300)))
    assert not re.search(r"(?<!\\)[#$%&_]", words.latex(every))


def nasty(folder):
    """The report with hostile names everywhere."""
    shutil.rmtree(folder / "runs")
    for method in ("CE", NASTY, "*", "[0] −", "Ученик «Ё»"):
        for seed in range(3):
            records.save(run("comparison", method, seed, 90 + seed), folder / "runs")
    change(folder / team.FILE, "[experiments.temperature]\nbaseline", "# baseline")
    change(folder / team.FILE, 'baseline = "alone"', 'baseline = "CE"')
    quoted = NASTY.replace("\\", "\\\\").replace('"', '\\"').strip()
    change(folder / team.FILE, 'team = { en = "Three small students"', f'team = {{ en = "{quoted}"')
    change(folder / team.FILE, "Anna Primerova", quoted)
    change(folder / team.FILE, 'licence = "MIT"', f'licence = "{quoted[:40]}"')
    for name in ("report.typ", "report.tex"):
        text = (folder / name).read_text("utf-8")
        text = re.sub(r'#results-figure\("temperature".*?\]\)\n', "", text, flags=re.DOTALL)
        text = re.sub(r"\\resultsfigure\{temperature\}.*?\}\}\n", "", text, flags=re.DOTALL)
        text = text.replace("@figure-temperature", "The figure")
        text = re.sub(r'#result\("[^"]*"\)', '#result("comparison.ce.seeds")', text)
        text = re.sub(r"\\result\{[^}]*\}", r"\\result{comparison.ce.seeds}", text)
        (folder / name).write_text(text, encoding="utf-8")
    made = report.read(folder, RULES)
    report.make(made)
    return made


def test_hostile_names_are_printed_by_typst(folder):
    built = report.build(nasty(folder))
    assert built.pdf, built.problem
    assert r"\input{/etc/passwd}" in text_of(built.pdf)


@needs_tex
def test_hostile_names_are_printed_by_latex(folder):
    built = report.build(nasty(folder), latex=True)
    assert built.pdf, built.problem
    assert "passwd" in text_of(built.pdf) and "root:" not in text_of(built.pdf)


# The template


def test_the_template_has_what_the_guide_lists():
    folder = report.template()
    for name in ("report.typ", "report_ru.typ", "report.tex", "kdreport.typ", "kdreport.sty"):
        assert (folder / name).is_file()
    found = team.load(folder / team.FILE)
    assert 1 <= len(found.members) <= RULES.rules.team_size
    keys = sources.bibliography(folder / "references.bib")
    lecture = {"hinton2015", "bucilua2006", "romero2015", "tian2020", "ojha2023", "hao2023"}
    assert lecture | {"gu2024", "zhao2022"} <= keys


def test_all_texts_have_the_same_sections_and_keys():
    folder = report.template()
    read = [sources.read(folder / name) for name in ("report.typ", "report_ru.typ", "report.tex")]
    for part in ("sections", "keys", "experiments", "cited"):
        names = [{one.name for one in getattr(found, part)} for found in read]
        if part == "cited":  # references to labels are only Typst's citations
            names = [{name for name in found if re.search(r"\d{4}$", name)} for found in names]
        assert names[0] == names[1] == names[2], part
    orders = [[name for name, _ in found.sections] for found in read]
    assert orders[0] == orders[1] == orders[2] == list(words.SECTIONS)
    assert all(set(checks.NEEDED) <= found.calls for found in read)


@pytest.mark.parametrize("language", ["en", "ru"])
def test_the_template_builds_and_has_nothing_to_mend(language, tmp_path, capsys):
    folder = tmp_path / "report"
    report.start(folder, language)
    assert team.load(folder / team.FILE).language == language
    assert not (folder / "report_ru.typ").exists(), "one text in the chosen language"
    start = time.perf_counter()
    assert cli.main(["report", str(folder)]) == 0
    assert time.perf_counter() - start < 60
    said = capsys.readouterr().out
    assert re.search(
        r"report\.pdf: report\.typ, \d pages, the text ends on page \d of at most 6", said
    )
    assert "nothing to mend" in said
    pdf = (folder / "report.pdf").read_bytes()
    pages = pages_of(pdf)
    assert 3 <= len(pages) <= 6
    text = "".join(pages)
    for name, heading in words.SECTIONS.items():
        assert squeezed(heading.of(language)) in text, name
    found = report.read(folder, RULES)
    assert all(found.results.digest in page for page in pages), "in every footer"
    shown = squeezed(found.results.values["comparison.kd.accuracy.gain"].text)
    assert shown in text and ("," in shown[:5]) == (language == "ru")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert cli.main(["report", str(folder), "--check"]) == 0
    assert cli.main(["report", str(folder)]) == 0
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert before == after, "the same bytes again, and --check writes nothing"


def test_the_numbers_of_the_template_are_those_of_its_records(finished):
    runs = results.read(finished)
    own = Runs(one for one in runs if one.experiment == "comparison")
    gain = evidence.interval(own.paired("KD", "alone"))
    stored = json.loads((finished / generated.JSON).read_text("utf-8"))["results"]
    value = stored["comparison.kd.accuracy.gain"]
    assert value["mean"] == pytest.approx(gain.mean, rel=1e-6) and value["seeds"] == 5
    assert [value["low"], value["high"]] == pytest.approx([gain.low, gain.high], rel=1e-6)
    assert all(one.repeat is not None for one in runs), "each can be repeated from its file"
    assert {len({one.seed for one in runs if one.experiment == name}) for name in
            ("comparison", "temperature")} == {5}  # fmt: skip


def test_the_sentences_of_the_example_fit_its_numbers(finished):
    """Its records may be made again on another machine; then the text has to be read again."""
    found = report.read(finished, RULES).results.values
    gain = {name: found[f"comparison.{name}.accuracy.gain"] for name in
            ("kd", "label-smoothing", "dkd", "dkd-published", "at")}  # fmt: skip
    assert gain["label-smoothing"].low > 0, "soft targets help without a teacher"
    assert gain["kd"].mean > 2 * gain["label-smoothing"].mean, "most of it comes from the teacher"
    assert gain["dkd"].low < gain["kd"].high and gain["dkd-published"].low > 5
    assert "0.0" in gain["at"].text and gain["at"].mean < gain["label-smoothing"].mean
    warm = [found[f"temperature.kd-t-{one}.accuracy.gain"].mean for one in (1, 4, 8, 16)]
    assert warm[0] < warm[1] / 2 and all(abs(one - warm[1]) < 2 for one in warm[2:])


@needs_tex
@pytest.mark.parametrize("language", ["en", "ru"])
def test_latex_builds_in_both_languages(language, folder, capsys):
    options = ["--latex", "--language", language]
    assert cli.main(["report", str(folder), *options]) == 0, capsys.readouterr().out
    text = text_of((folder / "report.pdf").read_bytes())
    for heading in words.SECTIONS.values():
        assert squeezed(heading.of(language)).replace("-", "") in text.replace("-", "")
    assert cli.main(["report", str(folder), "--check", *options]) == 0, capsys.readouterr().out


def test_figures_are_the_same_on_repeat(finished):
    found = report.read(finished, RULES).results
    first = generated.figures(found)
    assert set(first) == {f"{name}.{kind}" for name in ("comparison", "temperature")
                          for kind in ("svg", "pdf")}  # fmt: skip
    assert first == generated.figures(found)
    assert b"<dc:date>" not in first["temperature.svg"]
    assert b"CreationDate" not in first["temperature.pdf"]


def test_the_template_and_the_course_are_in_the_wheel(root, tmp_path):
    line = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(root)]
    subprocess.run(line, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    unpacked = tmp_path / "unpacked"
    zipfile.ZipFile(wheel).extractall(unpacked)
    code = (
        "import sys\nfrom kdlib.__main__ import main\nfrom kdlib.homework import course, report\n"
        "course.load()\nprint(report.template())\n"
        "report.start('mine', 'en')\nsys.exit(main(['report', 'mine', '--check']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=unpacked, capture_output=True, text=True, check=False
    )
    said = done.stdout.splitlines()
    assert said[0] == str(unpacked / "kdlib" / "report_template"), done.stderr
    assert f"{generated.JSON} is missing" in done.stdout and done.returncode == 1
    assert (unpacked / "mine" / "experiments.py").is_file()
    assert len(list((unpacked / "mine" / "runs").rglob("*.json"))) > 50


# Starting


def test_a_report_is_started_where_nothing_is(tmp_path):
    report.start(tmp_path / "new" / "report", "en")
    names = {path.name for path in (tmp_path / "new" / "report").iterdir()}
    assert {"report.typ", "report.tex", "team.toml", "runs"} <= names
    assert not names & {"generated", "report.pdf", ".gitignore", "report_ru.typ"}
    with pytest.raises(FileExistsError, match="is there already: choose another name"):
        report.start(tmp_path / "new" / "report", "en")


def test_a_folder_without_a_report_or_records_says_what_to_do(
    folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["report"]) == 2
    assert "this folder is no report: `python -m kdlib team" in capsys.readouterr().err
    shutil.rmtree(folder / "runs")
    for options in ([], ["--keys"], ["--zip"]):
        assert cli.main(["report", str(folder), *options]) == 2
        assert "holds no run records: give folder=" in capsys.readouterr().err
    assert cli.main(["report", str(folder), "--check"]) == 1
    assert "holds no run records" in capsys.readouterr().out


def test_keys_are_listed(folder, capsys):
    assert cli.main(["report", str(folder), "--keys"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(re.match(r"comparison\.kd\.accuracy\.gain +\+\d", line) for line in lines)
    assert len(lines) == len(report.read(folder, RULES).results.values)


# What --check finds


def edited_json(folder, edit):
    path = folder / generated.JSON
    content = json.loads(path.read_text("utf-8"))
    edit(content)
    path.write_text(generated.as_json(content), encoding="utf-8")


def set_result(content, **fields):
    content["results"]["comparison.kd.accuracy"] |= fields


BROKEN = {
    "a digit of the text": (
        lambda f: edited_json(f, lambda c: set_result(c, text="92.9 [91.5, 94.3]")),
        r"results\.json: 'comparison\.kd\.accuracy' says '92\.9 .*', the records give '8",
    ),
    "a digit of the number": (
        lambda f: edited_json(f, lambda c: set_result(c, mean=92.9)),
        r"'comparison\.kd\.accuracy' says another value",
    ),
    "a key of one's own": (
        lambda f: edited_json(f, lambda c: c["results"].update(x={"text": "99"})),
        "no record gives 'x'",
    ),
    "a key taken out": (
        lambda f: edited_json(f, lambda c: c["results"].pop("comparison.kd.accuracy")),
        r"lacks 'comparison\.kd\.accuracy'",
    ),
    "a cell of the table": (
        lambda f: edited_json(f, lambda c: c["tables"]["comparison"]["rows"][1].append("99")),
        "'tables' is not what team.toml gives",
    ),
    "more commits": (
        lambda f: edited_json(f, lambda c: c.update(commits=[900, 1])),
        "is damaged, or of another team",
    ),
    "a commit that is none": (
        lambda f: edited_json(f, lambda c: c.update(commit="#panic()")),
        "is damaged, or of another team",
    ),
    "spaces in results.json": (
        lambda f: change(f / generated.JSON, '"format": 1', '"format":  1'),
        r"results\.json was edited",
    ),
    "no JSON": (lambda f: (f / generated.JSON).write_text("{"), "is damaged"),
    "an array": (lambda f: (f / generated.JSON).write_text("[1]"), "is damaged"),
    "a digit in results.tex": (
        lambda f: change(f / generated.TEX, "accuracy.mean}{8", "accuracy.mean}{9"),
        r"results\.tex is not what the records give",
    ),
    "no results.tex": (lambda f: (f / generated.TEX).unlink(), r"results\.tex is missing"),
    "nothing generated": (
        lambda f: shutil.rmtree(f / "generated"),
        r"results\.json is missing: run `python -m kdlib report` again",
    ),
    "a figure drawn over": (
        lambda f: change(f / "generated/figures/temperature.svg", "<path", "<path "),
        r"figures/temperature\.svg was edited",
    ),
    "a figure taken out": (
        lambda f: (f / "generated/figures/temperature.pdf").unlink(),
        r"figures/temperature\.pdf is missing",
    ),
    "a record made better": (
        lambda f: improve(next((f / "runs/comparison").glob("kd-*seed0*"))),
        r"results\.json was made from other records",
    ),
    "a record taken out": (
        lambda f: next((f / "runs/comparison").glob("kd-*seed0*")).unlink(),
        r"results\.json was made from other records than those in runs/",
    ),
    "a section taken out": (
        lambda f: change(f / "report.typ", '#section("failures")', ""),
        r"report\.typ: section 'failures' is missing",
    ),
    "a section with another name": (
        lambda f: change(f / "report.typ", '#section("failures")', '#section("failure")'),
        r"report\.typ:\d+: unknown section 'failure': nearest are failures",
    ),
    "a section twice": (
        lambda f: change(f / "report.typ", '#section("failures")', '#section("results")'),
        r"section 'results' stands there a second time",
    ),
    "an empty section": (
        lambda f: empty(f / "report.typ", "failures"),
        r"report\.typ:\d+: section 'failures' is empty",
    ),
    "sections in another order": (
        lambda f: swap(f / "report.typ", "failures", "conclusions"),
        "sections must stand in the order introduction",
    ),
    "no table of contributions": (
        lambda f: change(f / "report.typ", "#contributions()", ""),
        "'contributions' is not shown",
    ),
    "an unknown key": (
        lambda f: change(f / "report.typ", "comparison.kd.accuracy", "comparison.kd.acuracy"),
        r"report\.typ:\d+: unknown result key 'comparison\.kd\.acuracy.*nearest are compar",
    ),
    "an unknown experiment": (
        lambda f: change(f / "report.typ", '-figure("temperature"', '-figure("temperatur"'),
        r"unknown experiment 'temperatur': nearest are temperature",
    ),
    "a citation without a source": (
        lambda f: change(f / "report.typ", "@hinton2015", "@hinton2014"),
        r"report\.typ:\d+: 'hinton2014' is cited, but not in references\.bib: nearest are hinton2",
    ),
    "no bibliography": (
        lambda f: (f / "references.bib").unlink(),
        r"'bucilua2006' is cited, but not in references\.bib",
    ),
    "a member without items": (
        lambda f: change(f / team.FILE, "{ en = \"attention", "# { en = \"attention"),
        r"team\.toml, line \d+: Vera Shablonova has no items",
    ),
    "a member without sections": (
        lambda f: change(f / team.FILE, 'sections = ["setup", "results"]', "sections = []"),
        "Boris Obraztsov has no sections",
    ),
    "no baseline": (
        lambda f: change(f / team.FILE, "[experiments.temperature]\nbaseline", "# baseline"),
        "experiment 'temperature' has no baseline: add",
    ),
    "a baseline without runs": (
        lambda f: change(f / team.FILE, 'baseline = "alone"', 'baseline = "CE"'),
        r"experiment 'comparison': baseline must be one of .*alone.*; got 'CE'",
    ),
    "an experiment without runs": (
        lambda f: change(f / team.FILE, "[experiments.temperature]", "[experiments.temperatures]"),
        "experiment 'temperatures' has no records; there are comparison, teacher, temperature",
    ),
    "an own text that is gone": (
        lambda f: [(f / name).unlink() for name in ("report.typ", "report.tex")],
        r"take it from the template: .*report\.typ",
    ),
}  # fmt: skip


def improve(path):
    content = json.loads(path.read_text("utf-8"))
    content["metrics"]["accuracy"] += 5
    path.write_text(json.dumps(content), encoding="utf-8")


def empty(path, name):
    text = path.read_text("utf-8")
    path.write_text(
        re.sub(rf'(#section\("{name}"\)).*?(?=#section)', r"\1\n\n", text, flags=re.DOTALL), "utf-8"
    )


def swap(path, one, other):
    text = path.read_text("utf-8").replace(f'"{one}")', '"?")').replace(f'"{other}")', f'"{one}")')
    path.write_text(text.replace('"?")', f'"{other}")'), encoding="utf-8")


def test_a_finished_report_has_no_findings(folder):
    assert found_in(folder) == []
    assert found_in(folder, latex=True) == []


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_wrong_is_found(name, folder):
    spoil, message = BROKEN[name]
    spoil(folder)
    found = found_in(folder)
    assert any(re.search(message, line) for line in found), found


def test_findings_end_with_1(folder, capsys):
    edited_json(folder, lambda content: set_result(content, text="99.9"))
    assert cli.main(["report", str(folder), "--check"]) == 1
    said = capsys.readouterr().out
    assert "says '99.9', the records give" in said and said.splitlines()[-1].endswith("to mend")
    assert cli.main(["report", str(folder)]) == 0, "made again, it is what the records give"


def test_a_wrong_team_file_is_a_finding_with_its_line(folder, capsys):
    change(folder / team.FILE, "homework = 1", 'homework = "first"')
    assert cli.main(["report", str(folder), "--check"]) == 1
    assert re.search(r"team\.toml, line \d+: homework must be a whole", capsys.readouterr().out)
    change(folder / team.FILE, 'homework = "first"', "homework = 3")
    assert cli.main(["report", str(folder), "--check"]) == 1
    assert "homework must be one of the course, 1 to 2, got 3" in capsys.readouterr().out


def test_latex_texts_are_checked_as_well(folder):
    change(folder / "report.tex", r"\kdsection{failures}", "")
    change(folder / "report.tex", r"\result{comparison.kd.seeds}", r"\result{comparison.kd.sed}")
    change(folder / "report.tex", r"\cite{hinton2015}", r"\cite{hinton2015, nobody2020}")
    change(folder / "report.tex", r"\kdreproducibility", "")
    found = "\n".join(found_in(folder, latex=True))
    for message in (
        "section 'failures' is missing",
        "unknown result key 'comparison.kd.sed': nearest are comparison.kd.seeds",
        "'nobody2020' is cited",
        "'reproducibility' is not shown",
    ):
        assert message in found


def test_comments_and_other_files_are_read_as_the_engine_does(tmp_path):
    (tmp_path / "references.bib").write_text("@article{a2020,\n}\n@comment{b2020,\n}\n", "utf-8")
    assert sources.bibliography(tmp_path / "references.bib") == {"a2020"}
    (tmp_path / "report.typ").write_text(
        '// #result("no")\n/* #result("no")\n@no */ https://a.org #result("yes")\n'
        '#include "part.typ"\n#include "../out.typ"\nme@x.org @a2020 and @fig.\n= A <fig>\n'
        "It is 12.5 % here.",
        encoding="utf-8",
    )
    (tmp_path / "part.typ").write_text('#include "report.typ"\n#result("two")', encoding="utf-8")
    (tmp_path.parent / "out.typ").write_text('#result("no")', encoding="utf-8")
    found = sources.read(tmp_path / "report.typ")
    assert found.keys == (("yes", "report.typ:3"), ("two", "part.typ:2"))
    assert found.cited == (("a2020", "report.typ:6"),)
    assert found.decimals == (("12.5", "report.typ:8", True, ()),)
    (tmp_path / "report.tex").write_text(
        "% \\result{no}\n50\\% \\result{yes} \\input{part}\\citep[p. 1]{a, b}\n", encoding="utf-8"
    )
    (tmp_path / "part.tex").write_text("\\result{two}", encoding="utf-8")
    found = sources.read(tmp_path / "report.tex")
    assert [key for key, _ in found.keys] == ["yes", "two"]
    assert [name for name, _ in found.cited] == ["a", "b"]


def test_a_number_typed_by_hand_is_a_hint(folder):
    change(
        folder / "report.typ", '#section("conclusions")', '#section("conclusions")\nIt has 93.7 %.'
    )
    change(folder / "report.typ", 'accuracy.gain.mean"),', 'accuracy.gain.mean");')
    found = report.read(folder, RULES)
    hints = report.hints(found)
    assert any("93.7 is typed by hand" in line for line in hints)
    assert any(
        "the semicolon behind 'temperature.kd-t-4.accuracy.gain.mean'" in line for line in hints
    )
    assert report.findings(found) == []


# The engines


def test_an_unknown_key_stops_typst(folder):
    change(folder / "report.typ", '"comparison.kd.accuracy', '"comparison.kd.acuracy')
    built = report.build(report.read(folder, RULES))
    assert built.pdf is None
    assert re.match(r"report\.typ:\d+: unknown result key 'comparison\.kd\.acuracy", built.problem)
    assert "nearest are comparison.kd.accuracy" in built.problem


@needs_tex
def test_an_unknown_key_stops_latex(folder):
    change(folder / "report.tex", "{comparison.kd.accuracy", "{comparison.kd.acuracy")
    built = report.build(report.read(folder, RULES), latex=True)
    assert built.pdf is None and "unknown result key 'comparison.kd.acuracy" in built.problem
    assert "nearest are comparison.kd.accuracy" in built.problem
    # An online editor goes on after errors; there is no PDF even so.
    line = ["pdflatex", "-interaction=nonstopmode", "report.tex"]
    done = subprocess.run(line, cwd=folder, capture_output=True, check=False)
    assert done.returncode and b"No pages of output" in done.stdout


def test_too_many_pages_are_counted_by_typst(folder, capsys):
    change(
        folder / "report.typ", '#section("conclusions")', '#section("conclusions")\n#lorem(6000)'
    )
    assert cli.main(["report", str(folder), "--check"]) == 1
    said = capsys.readouterr().out
    assert re.search(
        r"the text has \d+ pages before the contributions, at most 6 are allowed", said
    )


def test_references_do_not_count(folder, capsys):
    change(folder / "report.typ", "#references()", "#references()\n#lorem(6000)")
    assert cli.main(["report", str(folder)]) == 0
    said = capsys.readouterr().out
    pages, last = re.search(r"(\d+) pages, the text ends on page (\d)", said).groups()
    assert int(pages) > 6 and int(last) <= 3


@needs_tex
def test_too_many_pages_are_counted_by_latex(folder, capsys):
    filler = "\n\n".join(["word " * 200] * 40)
    change(
        folder / "report.tex", r"\kdsection{contributions}", filler + "\n\\kdsection{contributions}"
    )
    assert cli.main(["report", str(folder), "--check", "--latex"]) == 1
    assert re.search(r"the text has \d+ pages before", capsys.readouterr().out)


def test_an_engine_is_stopped(folder, monkeypatch):
    endless = "#for i in range(90000) { for j in range(90000) { let x = i * j } }"
    change(folder / "report.typ", '#section("method")', f'#section("method")\n{endless}')
    monkeypatch.setitem(building.TIMEOUT, "typst", 3.0)
    start = time.perf_counter()
    built = report.build(report.read(folder, RULES))
    assert built.problem.startswith("Typst was stopped after 3 s") and built.pdf is None
    assert time.perf_counter() - start < 20


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_engines_see_nothing_outside_the_folder(folder, tmp_path):
    (tmp_path / "secret.txt").write_text("hidden treasure")
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "linked").symlink_to(tmp_path)
    assert not any("secret" in name or "link" in name for name in building.package(folder))
    for path in ("link.txt", "../secret.txt", str(tmp_path / "secret.txt"), "/etc/hostname"):
        change(folder / "report.typ", "#references()", f'#references()\n#read("{path}")')
        assert report.build(report.read(folder, RULES)).pdf is None, path
        change(folder / "report.typ", f'\n#read("{path}")', "")


@needs_tex
def test_latex_starts_no_programs(folder):
    (folder / ".latexmkrc").write_text('system("touch /tmp/kdlib-test-escaped");')
    (folder / "latexmkrc").write_text('system("touch /tmp/kdlib-test-escaped");')
    change(folder / "report.tex", r"\maketitle", r"\maketitle\immediate\write18{touch escaped}")
    built = report.build(report.read(folder, RULES), latex=True)
    assert built.pdf, built.problem
    assert not Path("/tmp/kdlib-test-escaped").exists() and not (folder / "escaped").exists()
    change(folder / "report.tex", r"\maketitle", r"\maketitle\input{/etc/passwd}")
    assert report.build(report.read(folder, RULES), latex=True).pdf is None


def test_without_tex_the_latex_path_says_what_to_install(folder, monkeypatch, capsys):
    monkeypatch.setattr(building.shutil, "which", lambda name: None)
    assert cli.main(["report", str(folder), "--latex"]) == 2
    said = capsys.readouterr().err
    assert building.tex_advice() in said and "--zip" in said and "pdflatex and latexmk" in said
    assert cli.main(["report", str(folder), "--latex", "--check"]) == 0
    assert "the pages are not counted: LaTeX is not installed" in capsys.readouterr().out
    assert "texlive-lang-cyrillic" in building.tex_advice("linux")
    assert building.tex_advice("darwin") == "install MacTeX"
    assert building.tex_advice("win32") == "install MiKTeX"


def test_without_the_wheel_the_doctor_is_named(folder, monkeypatch, capsys):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert cli.main(["report", str(folder)]) == 2
    assert "python -m kdlib doctor" in capsys.readouterr().err


def test_the_zip_holds_the_generated_values(folder, tmp_path, capsys):
    assert cli.main(["report", str(folder), "--zip"]) == 0
    first = (folder / "report.zip").read_bytes()
    unpacked = tmp_path / "online"
    with zipfile.ZipFile(folder / "report.zip") as packed:
        names = set(packed.namelist())
        packed.extractall(unpacked)
    assert {"report.tex", "kdreport.sty", "references.bib", "report.typ"} <= names
    assert {generated.TEX, generated.JSON, "generated/figures/temperature.pdf"} <= names
    assert not any(name.startswith("runs/") or name.endswith(".zip") for name in names)
    assert cli.main(["report", str(folder), "--zip"]) == 0
    assert (folder / "report.zip").read_bytes() == first
    files = {path.relative_to(unpacked).as_posix(): path.read_bytes()
             for path in unpacked.rglob("*") if path.is_file()}  # fmt: skip
    assert building.typst(files, "report.typ").pdf
    if not building.missing_tex():
        assert building.latex(files, "report.tex").pdf


def test_a_folder_with_too_much_is_refused(folder, monkeypatch, capsys):
    monkeypatch.setattr(building, "MOST_FILES", 3)
    assert cli.main(["report", str(folder)]) == 2
    assert "must hold at most 3 files" in capsys.readouterr().err


# Git


@pytest.fixture
def committed(folder):
    if shutil.which("git") is None:
        pytest.skip("Git is not installed")

    author = {"NAME": "Anna", "EMAIL": "anna@example.org"}
    who = {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER")
           for key, value in author.items()}  # fmt: skip

    def git(*line):
        subprocess.run(
            ["git", *line], cwd=folder, check=True, capture_output=True, env=os.environ | who
        )

    git("init", "-q", "-b", "main")
    shutil.rmtree(folder / "generated")
    git("add", "-A")
    git("commit", "-q", "-m", "first")
    return git


def test_commits_are_counted_by_member(folder, committed):
    committed("commit", "-q", "--allow-empty", "-m",
              "two\n\nCo-authored-by: Boris <BORIS@home.example.org>")  # fmt: skip
    members = team.load(folder / team.FILE).members
    state = repository.look(folder, members)
    assert state.commits == (2, 1, 0) and re.fullmatch(r"[0-9a-f]{12}", state.commit)
    report.make(report.read(folder, RULES))
    assert repository.look(folder, members).commit == state.commit, "its own files do not count"
    rows = json.loads((folder / generated.JSON).read_text("utf-8"))["contributions"]
    assert [row[2] for row in rows] == ["2", "1", "0"]
    assert found_in(folder) == []
    (folder / "report.typ").write_text("changed")
    assert repository.look(folder, members).commit == state.commit + "+"


def test_git_contradicts_what_was_edited(folder, committed):
    report.make(report.read(folder, RULES))
    edited_json(folder, lambda content: content.update(commits=[50, 0, 0], commit="0" * 12))
    found = "\n".join(found_in(folder))
    assert "says 50 commits of Anna Primerova, Git counts 1" in found
    assert f"names the commit {'0' * 12}, which this repository lacks" in found


def test_a_report_made_before_the_last_commits_is_still_right(folder, committed):
    report.make(report.read(folder, RULES))
    committed("add", "-A")
    committed("commit", "-q", "-m", "the report")
    assert found_in(folder) == []


def test_addresses_that_fit_no_commit_give_no_counts(folder, committed):
    for name in ("anna@example.org",):
        change(folder / team.FILE, name, "nobody@example.org")
    assert repository.look(folder, team.load(folder / team.FILE).members).commits == (None,) * 3


def test_git_starts_nothing_that_a_folder_asks_for(folder, committed, capsys):
    report.make(report.read(folder, RULES))
    (folder / ".gitattributes").write_text("*.typ filter=x\n*.bib filter=a=b\n")
    committed("add", "-A")
    committed("commit", "-q", "-m", "attributes")
    mark = folder.parent / "ran"
    program = f"touch '{mark}'; cat"
    for name in ("core.fsmonitor", "core.sshCommand", "filter.x.clean", "filter.a=b.clean"):
        committed("config", name, program)
    committed("config", "filter.x.required", "true")
    change(folder / "report.typ", "a laptop", "the laptop")
    os.utime(folder / "references.bib", (0, 0))
    command_line = ["report", str(folder), "--check"]
    assert cli.main(command_line) == 0, capsys.readouterr().out
    assert repository.look(folder, ()).commit.endswith("+") and not mark.exists()
    committed("status")
    assert mark.exists(), "Git itself would have started it"


def test_without_git_there_is_no_commit(folder, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(folder.parent))
    state = repository.look(folder, team.load(folder / team.FILE).members)
    assert state == ("", (None, None, None))


# Small things


def test_the_help_names_every_option(capsys):
    with pytest.raises(SystemExit):
        cli.main(["report", "--help"])
    said = capsys.readouterr().out
    for option in ("--keys", "--check", "--zip", "--latex", "--language", "--course"):
        assert option in said
    assert cli.help_line("report") == command.HELP


def test_all_words_are_in_both_languages():
    for found in (words.WORDS, words.SECTIONS, words.METRICS):
        for text in found.values():
            assert re.search("[а-яё]", text.ru.lower()) and not re.search("[а-яё]", text.en.lower())
            names = [set(re.findall(r"\{(\w+)\}", part)) for part in text]
            assert names[0] == names[1]
    assert set(words.AFTER) < set(words.SECTIONS) and entries.LANGUAGES == ("en", "ru")
    assert Value("1", 1.0, None, None, 1)._asdict().keys() >= {"text", "mean", "seeds"}
