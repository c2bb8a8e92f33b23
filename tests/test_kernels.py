"""Notebooks in kernels: which kit they use, what stops them, what their cells leave behind."""

import io
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest

import kdlib
from kdlib.engine import environment, kernels, launch
from kdlib.engine.outputs import LIMIT, Outputs, rewritten

FAKE = {
    "__init__.py": "",
    "check.py": "def check(name, answer):\n    print(f'correct: {name}')",
}


def notebook(*sources, tags=()):
    cells = [
        nbformat.v4.new_code_cell(source, id=f"cell-{number}", metadata={"tags": list(tags)})
        for number, source in enumerate(sources)
    ]
    return nbformat.v4.new_notebook(cells=cells)


def shown(cell):
    """What a cell printed and displayed, as one text."""
    return "".join(
        output.get("text", "") or output.get("data", {}).get("text/plain", "")
        for output in cell.outputs
    )


@pytest.fixture
def run(tmp_path):
    """run("print(1)", ...) executes these cells in a fresh folder: (cells, execution)."""

    def execute(*sources, tags=(), **options):
        made = notebook(*sources, tags=tags)
        return made.cells, kernels.execute(made, tmp_path, **options)

    return execute


@pytest.fixture
def fake(tmp_path):
    """Another `kdlib` beside the notebook, whose check is always content."""
    folder = tmp_path / "kdlib"
    folder.mkdir()
    for name, text in FAKE.items():
        (folder / name).write_text(text)
    return folder


# Which kit


def test_the_kit_beside_a_notebook_is_not_used(run, fake, tmp_path):
    (tmp_path / "helper.py").write_text("answer = 3")
    cells, execution = run(
        "from kdlib.check import check\nimport kdlib, helper",
        "check('2.2', lambda s, t, T: s - t)\nprint(kdlib.__file__, helper.answer)",
        "from kdlib.engine import workers\n"
        "workers.each(lambda _: __import__('kdlib').__file__, [0, 1], workers=2)",
    )
    assert execution.own_kit and not execution.failures
    assert shown(cells[1]).startswith("not yet: 2.2 ")
    assert shown(cells[1]).endswith(f"{kdlib.__file__} 3\n")
    assert shown(cells[2]) == repr([kdlib.__file__] * 2)


@pytest.mark.parametrize(
    "trick",
    [
        "[sys.modules.pop(name) for name in list(sys.modules) if name.startswith('kdlib')]\n"
        "sys.path.insert(0, '.')",
        "import kdlib\nkdlib.__path__.insert(0, 'kdlib')",
        "import types\nmodule = sys.modules['kdlib.check'] = types.ModuleType('kdlib.check')\n"
        "module.check = lambda name, answer: print('correct:', name)",
    ],
)
def test_a_notebook_that_chooses_another_kit_is_found_out(run, fake, trick):
    cells, execution = run(f"import sys\n{trick}", "from kdlib.check import check\ncheck('2.2', 0)")
    assert shown(cells[1]) == "correct: 2.2\n"  # the trick works, so it has to be reported
    assert not execution.own_kit
    assert "did not use the kit in" in execution.failures[-1].reason
    assert "kdlib.check from " in execution.failures[-1].reason


def test_the_search_path_of_a_kernel(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root, packages = str(launch.ROOT), "/env/site-packages"
    assert launch.search_path(["", "/lib", str(tmp_path), packages]) == ["/lib", root, "", packages]
    assert launch.search_path(["/lib", packages, root]) == ["/lib", packages, root, ""]
    assert launch.search_path(["/lib"]) == ["/lib", root, ""]


def test_pytest_uses_this_kit_and_one_thread(fake, tmp_path, root):
    """nbval with the plugin of the kit, in any folder."""
    made = notebook(
        f"import kdlib, os\nassert kdlib.__file__ == {kdlib.__file__!r}, kdlib.__file__",
        "import torch\nassert torch.get_num_threads() == 1\nassert 'MPLCONFIGDIR' in os.environ",
    )
    for number, cell in enumerate(made.cells):
        cell.execution_count = number + 1
    nbformat.write(made, tmp_path / "01_a.ipynb")
    nbformat.write(notebook("1/0"), tmp_path / "01_b.executed.ipynb")
    line = [
        sys.executable,
        "-m",
        "pytest",
        "--nbval",
        "--nbval-current-env",
        "--rootdir",
        tmp_path,
        "-p",
        "no:cacheprovider",
        tmp_path,
    ]
    done = subprocess.run(
        line,
        env=bare() | {"HOME": str(tmp_path / "01_a.ipynb")},
        text=True,
        cwd=root,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0 and "2 passed" in done.stdout, done.stdout


# What stops it


def test_it_goes_on_after_a_failing_cell_whatever_its_tags(run):
    cells, execution = run(
        "1/0",
        "print('later')",
        "undefined",
        "print('last')",
        tags=["raises-exception", "skip-execution"],
    )
    assert [failure.source for failure in execution.failures] == ["1/0", "undefined"]
    assert "ZeroDivisionError" in execution.failures[0].reason
    assert "\x1b" not in str(execution.failures[0])
    assert shown(cells[1]) == "later\n" and shown(cells[3]) == "last\n"
    assert [cell.execution_count for cell in cells] == [1, 2, 3, 4]
    assert list(execution.seconds) == ["cell-0", "cell-1", "cell-2", "cell-3"]


def test_a_dead_kernel_ends_the_notebook(run):
    made = notebook("print(1)", "import os\nos._exit(3)", "print(2)")
    made.cells[2].outputs = [nbformat.v4.new_output("stream", text="old")]
    cells, execution = run("print(1)", "import os\nos._exit(3)", "print(2)")
    assert shown(cells[0]) == "1\n" and not cells[2].outputs and cells[2].execution_count is None
    (failure,) = execution.failures
    assert failure.source.endswith("os._exit(3)") and "the kernel died" in failure.reason


def test_a_slow_cell_is_interrupted(run):
    cells, execution = run(
        "print('before', flush=True)\nimport time\ntime.sleep(60)", "print('on')", timeout=1.0
    )
    assert shown(cells[0]) == "before\n" and shown(cells[1]) == "on\n"
    (failure,) = execution.failures
    assert "did not end within 1 s" in failure.reason
    assert 1 <= execution.seconds["cell-0"] < 10


def test_a_cell_that_does_not_heed_is_ended(run, monkeypatch):
    monkeypatch.setattr(kernels, "GRACE", 0.5)
    deaf = "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\ntime.sleep(60)"
    cells, execution = run(deaf, "print('on')", timeout=0.5)
    assert not cells[1].outputs
    (failure,) = execution.failures
    assert "nor when it was interrupted" in failure.reason


def test_a_kernel_that_cannot_start_says_why(run, monkeypatch):
    monkeypatch.setattr(launch, "__file__", "/no/such/file.py")
    _, execution = run("1")
    assert "did not start" in execution.failures[0].reason
    assert "can't open file" in execution.failures[0].reason


PARENT = """
from pathlib import Path
import nbformat
from kdlib.engine import kernels
source = '''
from kdlib.engine import workers
def sleep(item):
    import os, pathlib, time
    pathlib.Path(f"{os.getpid()}.worker").touch()
    time.sleep(600)
workers.each(sleep, [0, 1], workers=2)
'''
made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
kernels.execute(made, Path.cwd())
"""
SCRIPT = PARENT.split("'''")[1]


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
@pytest.mark.parametrize("code, how", [(PARENT, signal.SIGTERM), (SCRIPT, signal.SIGKILL)])
def test_kernels_and_workers_end_with_their_parent(code, how, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: len(list(tmp_path.glob("*.worker"))) == 2, patience=60)
        offspring = psutil.Process(process.pid).children(recursive=True)
        assert len(offspring) >= (3 if code == PARENT else 2)
    finally:
        process.send_signal(how)
        process.wait()
    _, alive = psutil.wait_procs(offspring, timeout=10)
    for one in alive:
        one.kill()
    assert not alive


def wait_for(condition, patience):
    end = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.1)


# What cells leave


def test_outputs_keep_their_order(run):
    cells, _ = run(
        "import sys\nprint('err', file=sys.stderr, flush=True)\nprint('out', flush=True)\n"
        "display(1)\nprint('out again')\n2",
        "from IPython.display import clear_output\nprint('gone')\nclear_output()\nprint('kept')",
        "handle = display('old', display_id=True)",
        "handle.update('new')\nprint('1 %\\r2 %\\r3 %')",
    )
    kinds = [(output.output_type, output.get("name")) for output in cells[0].outputs]
    assert kinds == [
        ("stream", "stdout"),
        ("stream", "stderr"),
        ("display_data", None),
        ("stream", "stdout"),
        ("execute_result", None),
    ]
    assert shown(cells[0]) == "out\nerr\n1out again\n2"
    assert [shown(cell) for cell in cells[1:]] == ["kept\n", "'new'", "3 %\n"]
    nbformat.validate(nbformat.v4.new_notebook(cells=cells))


def test_a_display_is_cleared_when_the_next_comes():
    outputs = Outputs({})
    outputs.take("stream", {"name": "stdout", "text": "old"})
    outputs.take("clear_output", {"wait": True})
    assert [node.text for node in outputs.nodes()] == ["old"]
    outputs.take("stream", {"name": "stdout", "text": "new"})
    assert [node.text for node in outputs.nodes()] == ["new"]


def test_a_flood_is_cut_and_quick(run):
    start = time.monotonic()
    cells, execution = run(
        "print('x' * 100_000_000)",
        "for _ in range(20):\n    print('y' * 1_000_000)",
        "print('ab\\r' * 1_000_000)",
        "'z' * 2_000_000",
        "print('after')",
    )
    assert time.monotonic() - start < 30 and not execution.failures
    for cell, letter, lost in [(cells[0], "x", "99,000,001"), (cells[1], "y", "19,000,020")]:
        text = shown(cell)
        assert text.startswith(letter * 1000) and f"[{lost} more characters" in text
        assert len(text) < LIMIT + 100
    assert len(shown(cells[2])) < 100
    assert len(shown(cells[3])) < LIMIT + 100
    assert shown(cells[4]) == "after\n"


@pytest.mark.parametrize(
    "text, seen",
    [
        ("a\rb", "b"),
        ("a\rb\nc\rd\n", "b\nd\n"),
        ("a\r\nb", "a\r\nb"),
        ("a\rb\r\n", "b\r\n"),
        ("a\r", "a\r"),
        ("\n\r\n", "\n\r\n"),
        ("", ""),
        ("plain\n", "plain\n"),
    ],
)
def test_a_carriage_return_begins_its_line_anew(text, seen):
    assert rewritten(text) == seen


# The environment


def bare():
    """The environment without what these functions set or look at."""
    names = {
        *environment.THREADS,
        "MPLCONFIGDIR",
        "IPYTHONDIR",
        "XDG_CONFIG_HOME",
        "XDG_CACHE_HOME",
        "XDG_DATA_HOME",
        "HOME",
    }
    return {
        name: value
        for name, value in os.environ.items()
        if name not in names and not name.startswith("JUPYTER")
    }


@pytest.fixture
def clean(monkeypatch, tmp_path):
    """An environment of which only HOME is known, an empty folder."""
    for name in set(os.environ) - set(bare()):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(environment.tempfile, "gettempdir", lambda: str(tmp_path))
    return tmp_path


@pytest.mark.skipif(os.name == "nt", reason="Windows has no HOME")
def test_only_folders_that_cannot_be_written_are_replaced(clean, monkeypatch):
    assert environment.quiet_environment() == {} and not list(clean.iterdir())
    (clean / "file").touch()
    for lost in (str(clean / "file"), str(clean / "file" / "home")):
        monkeypatch.setenv("HOME", lost)
        found = environment.quiet_environment()
        assert set(found) == {
            "MPLCONFIGDIR",
            "IPYTHONDIR",
            "JUPYTER_CONFIG_DIR",
            "JUPYTER_DATA_DIR",
            "JUPYTER_RUNTIME_DIR",
        }
        assert len(set(found.values())) == 5
        assert found == environment.quiet_environment()  # so that the next process finds its files
    own = Path(found["IPYTHONDIR"]).parent
    assert own.parent == clean and own.stat().st_mode & 0o777 == 0o700
    monkeypatch.setenv("IPYTHONDIR", str(clean / "mine"))
    assert "IPYTHONDIR" not in environment.quiet_environment()
    monkeypatch.setenv("IPYTHONDIR", str(clean / "file"))
    assert "IPYTHONDIR" in environment.quiet_environment()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no HOME")
def test_a_temporary_folder_of_somebody_else_is_not_used(clean, monkeypatch):
    monkeypatch.setenv("HOME", os.devnull)
    ours = Path(environment.quiet_environment()["IPYTHONDIR"]).parent
    ours.chmod(0o777)
    assert Path(environment.quiet_environment()["IPYTHONDIR"]).parent != ours


def test_the_first_scan_of_the_fonts_is_silent():
    environment.quiet_environment()
    logger, stream = logging.getLogger("matplotlib.font_manager"), io.StringIO()
    handler = logging.StreamHandler(stream)
    logger.addHandler(handler)
    try:
        logger.warning("Matplotlib is building the font cache; this may take a moment.")
        logger.warning("findfont: Font family %r not found.", "Comic")
    finally:
        logger.removeHandler(handler)
    assert stream.getvalue() == "findfont: Font family 'Comic' not found.\n"


@pytest.mark.parametrize("given, threads", [(None, 1), ("2", 2)])
def test_threads_and_home_of_a_kernel(given, threads, run, tmp_path, monkeypatch):
    """One thread unless told otherwise, and no word about a home that cannot be written."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    (tmp_path / "file").touch()
    lost = {"HOME": str(tmp_path / "file")} if os.name == "posix" else {}
    for name in ("MPLCONFIGDIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    cells, execution = run(
        "import torch, matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.close()",
        "print(torch.get_num_threads())",
        environment=lost,
    )
    assert not execution.failures and not shown(cells[0])
    assert shown(cells[1]) == f"{threads}\n"
