"""The command line as a user meets it: run, doctor, lab, and their words when all is not well."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import nbformat
import pytest

from kdlib import __main__ as cli
from kdlib import doctor, lab, notebooks, runner

CLAIM = """import os
offset = int(os.environ.get("KDLIB_SEED_OFFSET", 0))
verdict = "holds" if offset == 0 else "not shown"
print(f"claim: the student gains | {verdict} | ≈ +2.7 points [≈ +1.9, ≈ +3.4], 5 paired seeds")
print("claim: barely | holds (≈ close) | ≈ +0.2 points [≈ +0.1, ≈ +0.3], 5 paired seeds")
print("claim: nothing is lost | close ≈holds | ≈ +0.1 points [≈ -0.1, ≈ +0.3], 5 paired seeds")"""


@pytest.fixture
def write(tmp_path):
    """write("01_a", "x = 1", ...) makes a notebook of code cells in a fresh folder."""
    def make(stem, *sources):
        notebook = nbformat.v4.new_notebook(cells=[
            nbformat.v4.new_code_cell(source, id=f"cell-{number}")
            for number, source in enumerate(sources)])
        path = tmp_path / f"{stem}.ipynb"
        nbformat.write(notebook, path)
        return path
    return make


def run(*arguments):
    return cli.main(["run", *map(str, arguments)])


# Finding notebooks, parsing

def test_notebooks_by_number_name_and_path(write, tmp_path, monkeypatch):
    one, two, ten = write("01_a", "1"), write("02_b", "1"), write("10_c", "1")
    assert notebooks.find((), tmp_path) == [one, two, ten]
    assert notebooks.find(["10", "02_b", "1", "01_a.ipynb"], tmp_path) == [ten, two, one, one]
    monkeypatch.chdir(tmp_path)
    assert notebooks.find(["02_b.ipynb"], Path("elsewhere")) == [two]


def test_unknown_notebook_lists_the_known(write, tmp_path):
    write("01_a", "1")
    with pytest.raises(ValueError, match="'7' not found.*01_a"):
        notebooks.find(["7"], tmp_path)
    write("01_b", "1")
    with pytest.raises(ValueError, match="'1' fits several.*01_a, 01_b"):
        notebooks.find(["1"], tmp_path)
    with pytest.raises(ValueError, match="no notebooks in"):
        notebooks.find((), tmp_path / "empty")


def test_a_typo_is_one_line(capsys):
    assert run("99_no_such_notebook") == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: notebook '99_no_such_notebook'") and errors.count("\n") == 1


@pytest.mark.parametrize("arguments, message", [
    (["run", "--save", "--seed-offset", "3"], "not allowed with"),
    (["run", "--seed-offset", "-3"], "0 or more"),
    (["run", "--seed-offset", "many"], "0 or more"),
    (["run", "--fast"], "unrecognized arguments: --fast"),
    (["fly"], "invalid choice"),
    ([], "COMMAND"),
])
def test_bad_usage(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "no notebook", "{}", "[]", '{"cells": 1}'])
def test_a_broken_file_is_named(content, tmp_path, capsys):
    path = tmp_path / "broken.ipynb"
    path.write_text(content)
    assert run(path) == 2
    assert "broken.ipynb is not a readable notebook" in capsys.readouterr().err


def test_claims_are_read_from_outputs_only():
    text = "claim: a | holds | ≈ +1 points\nno claim: b | holds | c\nclaim: broken"
    cell = nbformat.v4.new_code_cell("print('claim: source | holds | 1')", outputs=[
        nbformat.v4.new_output("stream", name="stdout", text=text)])
    assert notebooks.claims(nbformat.v4.new_notebook(cells=[cell])) == [
        ("a", "holds", "≈ +1 points"), ("broken", "", "")]


def test_changes_name_what_flipped_appeared_and_vanished():
    before = [notebooks.Verdict(*row, "") for row in
              [("a", "holds"), ("a", "holds"), ("b", "holds"), ("c", "holds")]]
    after = [notebooks.Verdict(*row, "") for row in
             [("a", "holds (≈ close)"), ("a", "not shown"), ("b", "close ≈holds"),
              ("d", "holds")]]
    assert notebooks.changes(before, after) == [
        "a: holds -> not shown", "b: holds -> close ≈holds", "c: holds -> absent",
        "d: absent -> holds"]
    assert notebooks.changes(before, before) == []


# Running them

def test_run_ends_with_the_claims_and_writes_nothing(write, capsys):
    path = write("01_a", CLAIM)
    before = path.read_bytes()
    assert run(path) == 0
    printed = capsys.readouterr().out
    assert printed.index("01_a.ipynb: ran in") < printed.index("\nClaims\n")
    assert re.search(r"^  holds +the student gains\n +≈ \+2\.7 points", printed, re.MULTILINE)
    assert re.search(r"^  close ≈holds +nothing is lost$", printed, re.MULTILINE)
    assert "notebooks: 1, failed: 0, claims: 3" in printed
    assert path.read_bytes() == before


def test_a_failing_cell_is_shown_and_the_next_notebook_runs(write, capsys):
    bad = write("01_bad", "x = 0", "def half(n):\n    return 1 / n\nhalf(x)", "print('later')")
    dead = write("02_dead", "import os\nos._exit(3)")
    good = write("03_good", CLAIM)
    before = bad.read_bytes()
    assert run("--save", bad, dead, good) == 1
    printed = capsys.readouterr().out
    assert "01_bad.ipynb: FAILED" in printed and "    half(x)" in printed
    assert "ZeroDivisionError: division by zero" in printed and "\x1b" not in printed
    assert "02_dead.ipynb: FAILED" in printed and "os._exit(3)" in printed
    assert "the student gains" in printed
    assert "notebooks: 3, failed: 2, claims: 3" in printed
    assert bad.read_bytes() == before    # a failed run is not saved


def test_seed_offset_lists_changed_verdicts(write, capsys):
    path = write("01_a", CLAIM)
    assert run("--save", path) == 0
    saved = path.read_bytes()
    capsys.readouterr()
    assert run("--seed-offset", "5", path) == 0
    report = capsys.readouterr().out.split("Verdicts that changed with seeds shifted by 5:")[1]
    assert report.strip() == "01_a: the student gains: holds -> not shown"
    assert path.read_bytes() == saved


def test_shifted_seeds_are_never_saved(write, monkeypatch, capsys):
    monkeypatch.setenv(runner.SEED_OFFSET, "5")
    assert run("--save", write("01_a", CLAIM)) == 2
    assert runner.SEED_OFFSET in capsys.readouterr().err


def test_saving_again_changes_no_byte(write, monkeypatch):
    monkeypatch.setattr(doctor, "machine_speed", lambda: 1.0)
    path = write("01_a", "import time, sys\nprint('out', flush=True)\nprint('err', file=sys.stderr)"
                 "\nprint('out again')\ntime.sleep(1.3)", CLAIM,
                 "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()")
    assert run("--save", path) == 0
    first = path.read_bytes()
    assert run("--save", path) == 0
    assert path.read_bytes() == first
    notebook = notebooks.read(path)
    assert [cell.execution_count for cell in notebook.cells] == [1, 2, 3]
    assert list(notebook.metadata.kdlib.slow_cells) == ["cell-0"]
    assert notebooks.stored_seconds(notebook) > 1.3
    assert b"3.1" not in first.split(b'"language_info"')[1]     # no version of Python
    assert [item.name for item in path.parent.iterdir()] == [path.name]


def test_stored_times_move_only_when_they_are_off_by_a_factor():
    notebook = nbformat.v4.new_notebook()
    for seconds, stored in [(10.04, 10.0), (19.0, 10.0), (5.1, 10.0), (30.0, 30.0)]:
        notebooks.store_seconds(notebook, {"a": seconds, "b": 0.9}, seconds)
        assert notebooks.stored_seconds(notebook) == stored
        assert notebook.metadata.kdlib.slow_cells == {"a": stored}


def test_the_kernel_is_this_interpreter(write):
    path = write("01_a", "import sys\nprint(sys.executable)")
    notebook = notebooks.read(path)
    notebook.metadata["kernelspec"] = {"name": "no-such-kernel", "display_name": "none"}
    runner.execute(notebook, path.parent)
    assert notebook.cells[0].outputs[0].text.strip() == sys.executable


@pytest.mark.skipif(os.name != "posix", reason="sends a signal as a terminal does")
def test_ctrl_c_ends_cleanly(write):
    quick, slow = write("01_a", CLAIM), write("02_b", "import time\ntime.sleep(60)")
    process = subprocess.Popen([sys.executable, "-m", "kdlib", "run", quick, slow], text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               # a shell that starts the tests in the background ignores the signal
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    for line in process.stdout:     # wait for the first notebook
        if "ran in" in line:
            break
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "the student gains" in printed and "Traceback" not in errors


# The doctor

def test_doctor_reports_every_kind_of_finding(write, tmp_path, monkeypatch):
    path = write("01_a", "1")
    notebook = notebooks.read(path)
    notebooks.store_seconds(notebook, {}, 40.0)
    notebooks.save(notebook, path)
    write("02_b", "1")
    monkeypatch.setattr(doctor, "machine_speed", lambda: 0.5)
    times = {finding.name: finding.text for finding in doctor.running_times(tmp_path)}
    assert times["01_a"] == "about 80 s" and "not timed yet" in times["02_b"]

    found = [*doctor.packages(), *doctor.device(), *doctor.space(), *doctor.data_sets(),
             *doctor.programs()]
    names = {finding.name for finding in found}
    assert {"Python", "torch", "device", "threads", "memory", "disk", "data sets", "LaTeX",
            "sandbox"} <= names
    assert all(finding.advice for finding in found if finding.state != doctor.OK)
    assert "mnist-5k on disk" in doctor.format_report(found)


def test_doctor_advises_on_what_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    advice = {finding.name: finding.advice for finding in doctor.programs()}
    assert "report" in advice["LaTeX"] and "instructors" in advice["sandbox"]

    monkeypatch.setattr(doctor.metadata, "requires", lambda name: ["torch>=99.1", "no-such>=1.0"])
    assert cli.main(["doctor"]) == 1
    printed = capsys.readouterr().out
    assert re.search(r"MISSING +torch +\S+, but 99\.1 or newer is needed", printed)
    assert re.search(r"MISSING +no-such +is not installed\n +-> .*pip install -r", printed)
    assert "2 missing" in printed


def test_calibration_takes_half_a_second_and_changes_no_state():
    import torch

    threads, state = torch.get_num_threads(), torch.get_rng_state()
    start = time.perf_counter()
    assert doctor.calibrate() > 0
    assert time.perf_counter() - start < 5      # half a second and the warm-up
    assert torch.get_num_threads() == threads and torch.equal(torch.get_rng_state(), state)


def test_requirements_and_bounds_agree(root):
    """requirements.txt names what pyproject.toml bounds, each bound with its reason."""
    import tomllib

    text = (root / "pyproject.toml").read_text(encoding="utf-8")
    bounded = tomllib.loads(text)["project"]["dependencies"]
    names = [re.fullmatch(r"([\w-]+)>=[\d.]+", line)[1] for line in bounded]
    listed = (root / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert "-e ." in listed
    assert sorted(names) == sorted(line for line in listed if re.fullmatch(r"[\w-]+", line))
    assert len(re.findall(r'^    "[\w-]+>=[\d.]+", *# \w+', text, re.MULTILINE)) == len(names)


def test_ci_runs_the_command_of_the_readme(root):
    readme = (root / "README.md").read_text(encoding="utf-8").splitlines()
    ci = (root / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    commands = [line for line in readme if line.startswith("python3 -m venv .venv && ")]
    assert commands[0].endswith("python -m kdlib lab") and commands[1].endswith("pytest")
    assert commands[1] in ci


def test_the_command_line_starts_fast():
    code = "import kdlib.__main__, sys; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# The lab

def test_lab_command():
    plain = lab.command(root=False, display=True)
    assert plain[:3] == [sys.executable, "-m", "jupyterlab"]
    assert not {"--allow-root", "--no-browser"} & set(plain)
    bare = lab.command(["--port", "9000"], root=True, display=False)
    assert {"--allow-root", "--no-browser"} <= set(bare) and bare[-2:] == ["--port", "9000"]


def test_lab_display():
    assert not lab.has_display({}, "linux")
    assert lab.has_display({"DISPLAY": ":0"}, "linux")
    assert lab.has_display({"WAYLAND_DISPLAY": "wayland-0"}, "linux")
    assert lab.has_display({}, "darwin") and lab.has_display({}, "win32")
    assert not lab.has_display({"SSH_CONNECTION": "x"}, "darwin")


def test_lab_without_jupyter_says_what_to_do(monkeypatch, capsys):
    monkeypatch.setattr(lab.importlib.util, "find_spec", lambda name: None)
    assert cli.main(["lab"]) == 2
    assert "pip install -r requirements.txt" in capsys.readouterr().err


def test_lab_passes_options_on(monkeypatch):
    seen = []
    monkeypatch.setattr(lab, "start", lambda options: seen.extend(options) or 0)
    assert cli.main(["lab", "--port", "9000", "--ip=0.0.0.0"]) == 0
    assert seen == ["--port", "9000", "--ip=0.0.0.0"]


def fetch(address, patience):
    """The page at an address; the server prints it a moment before it listens."""
    end = time.monotonic() + patience
    while True:
        try:
            with urllib.request.urlopen(address, timeout=patience) as answer:
                return answer.read().decode()
        except urllib.error.URLError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


def test_lab_answers_on_the_printed_address(tmp_path):
    try:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
    except OSError:
        pytest.skip("no port can be opened here")
    environment = {key: value for key, value in os.environ.items()
                   if key not in ("DISPLAY", "WAYLAND_DISPLAY") and not key.startswith("JUPYTER")}
    environment |= {"JUPYTER_CONFIG_DIR": str(tmp_path), "JUPYTER_RUNTIME_DIR": str(tmp_path)}
    process = subprocess.Popen([sys.executable, "-m", "kdlib", "lab", "--no-browser"], text=True,
                               env=environment, cwd=tmp_path, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT)
    try:
        lines = []
        for line in process.stdout:
            lines.append(line)
            address = re.search(r"http://(?:localhost|127\.0\.0\.1):\d+/lab\?token=\w+", line)
            if address:
                break
        else:
            pytest.fail("no address was printed:\n" + "".join(lines))
        assert '"preferredPath": "notebooks"' in fetch(address[0], patience=30)
    finally:
        process.terminate()
        process.communicate(timeout=30)
