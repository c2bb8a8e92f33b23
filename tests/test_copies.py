"""A student's own copies: made, renewed, kept, and never overwritten once they were touched."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from kdlib.commands import doctor, run
from kdlib.engine import copies, files, notebooks

MADE, AGAIN, RENEWED, KEPT, UNKNOWN = (
    f"mine/01_a.ipynb: {news}"
    for news in (
        copies.MADE,
        copies.MADE_AGAIN,
        copies.RENEWED,
        copies.KEPT,
        copies.UNKNOWN,
    )
)


class Kit:
    """A small kit in a folder of its own, whose copies lie in `mine`."""

    def __init__(self, folder):
        self.originals, self.mine = folder / "notebooks", folder / "mine"
        self.originals.mkdir()

    def write(self, source, name="01_a"):
        """An executed original."""
        output = nbformat.v4.new_output("stream", text="3\n")
        cells = [
            nbformat.v4.new_markdown_cell("# A", id="title"),
            nbformat.v4.new_code_cell(
                source, id="one", metadata={"tags": ["x"]}, outputs=[output], execution_count=1
            ),
        ]
        nbformat.write(
            nbformat.v4.new_notebook(cells=cells), self.originals / f"{name}.ipynb", version=4
        )

    def start(self):
        return copies.refresh(notebooks.find(folder=self.originals), self.mine)

    @property
    def copy(self):
        return self.mine / "01_a.ipynb"

    def edit(self, change):
        """What JupyterLab does when it saves a notebook that `change(notebook)` was applied to."""
        notebook = nbformat.read(self.copy, as_version=4)
        change(notebook)
        self.copy.write_text(json.dumps(notebook, indent=4) + "\n\n", encoding="utf-8")
        return self.copy.read_bytes()

    def content(self):
        return {path.name: path.read_bytes() for path in self.mine.iterdir()}


@pytest.fixture
def kit(tmp_path):
    kit = Kit(tmp_path)
    kit.write("print(3)")
    return kit


def source(value):
    def change(notebook):
        notebook.cells[1].source = value

    return change


def executed(notebook):
    notebook.cells[1].outputs = [nbformat.v4.new_output("stream", text="3\n")]
    notebook.cells[1].execution_count = 7


def executed_silently(notebook):
    notebook.cells[1].execution_count = 7


def tagged(notebook):
    notebook.cells[1].metadata.tags.append("mine")


def longer(notebook):
    notebook.cells.append(nbformat.v4.new_markdown_cell("a note"))


def shorter(notebook):
    del notebook.cells[0]


def turned(notebook):
    notebook.cells.reverse()


def retyped(notebook):
    notebook.cells[0] = nbformat.v4.new_raw_cell("# A")


def pictured(notebook):
    notebook.cells[0].attachments = {"a.png": {"image/png": "aGk="}}


def other_kernel(notebook):
    notebook.metadata.kernelspec = {"name": "julia", "display_name": "J", "language": "julia"}


TOUCHED = [source("print(4)"), executed, executed_silently, tagged, longer, shorter, turned]
TOUCHED += [retyped, pictured, other_kernel]


def saved(notebook):
    pass


def looked_at(notebook):
    notebook.cells[0].metadata["jp-MarkdownHeadingCollapsed"] = True
    notebook.cells[1].metadata["scrolled"] = True
    notebook.metadata.kernelspec.display_name = "Python, mine"
    notebook.cells[1].id = "another"


def cleared(notebook):
    executed(notebook)
    notebook.cells[1].outputs, notebook.cells[1].execution_count = [], None


UNTOUCHED = [saved, looked_at, cleared]


def test_made_and_then_left_alone(kit):
    kit.write("print(5)", "02_b")
    assert kit.start() == [MADE, f"mine/02_b.ipynb: {copies.MADE}"]
    before = kit.content()
    assert sorted(before) == [copies.STATE, "01_a.ipynb", "02_b.ipynb"]
    times = [path.stat().st_mtime_ns for path in sorted(kit.mine.iterdir())]
    assert kit.start() == [] and kit.content() == before
    assert times == [path.stat().st_mtime_ns for path in sorted(kit.mine.iterdir())]


def test_a_copy_is_the_original_without_outputs(kit):
    kit.start()
    original = nbformat.read(kit.originals / "01_a.ipynb", as_version=4)
    copy = nbformat.read(kit.copy, as_version=4)
    assert original.cells[1].outputs and original.cells[1].execution_count == 1
    assert copy.cells[1].outputs == [] and copy.cells[1].execution_count is None
    for key in ("id", "source", "cell_type", "metadata"):
        assert [cell[key] for cell in copy.cells] == [cell[key] for cell in original.cells]
    assert copy.cells[1].metadata.tags == ["x"]


def test_the_copies_of_the_course(root, tmp_path):
    """No output, every cell, links that lead somewhere; the originals stay as they are."""
    known = notebooks.find()
    before = [path.read_bytes() for path in known]
    assert len(copies.refresh(known, tmp_path / "mine")) == len(known)
    assert before == [path.read_bytes() for path in known]
    for original in known:
        copy, given = notebooks.read(tmp_path / "mine" / original.name), notebooks.read(original)
        assert [(cell.id, cell.source, cell.metadata.get("tags")) for cell in copy.cells] == [
            (cell.id, cell.source, cell.metadata.get("tags")) for cell in given.cells
        ]
        assert not any(cell.get("outputs") for cell in copy.cells)
        assert copy.metadata.kdlib == given.metadata.kdlib  # `run` shows the time left
        for cell in copy.cells:
            for link in re.findall(r"\]\(([\w./]+\.\w+)", cell.source):
                target = Path(os.path.normpath(copies.FOLDER / link))
                if target.parent == copies.FOLDER:
                    assert target.name in [path.name for path in known]
                else:
                    assert target.exists()


def test_metadata_is_that_of_the_running_kernel(kit):
    """To the letter: otherwise JupyterLab marks a notebook as changed when it opens it."""
    from jupyter_client.manager import start_new_kernel

    kit.start()
    manager, client = start_new_kernel(kernel_name="python3")
    try:
        client.kernel_info()
        said = client.get_shell_msg(timeout=30)["content"]["language_info"]
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    metadata = json.loads(kit.copy.read_bytes())["metadata"]
    assert metadata["language_info"] == said
    assert metadata["kernelspec"] == {
        "display_name": manager.kernel_spec.display_name,
        "language": "python",
        "name": "python3",
    }


@pytest.mark.parametrize("change", UNTOUCHED)
def test_an_untouched_copy_is_renewed(change, kit):
    kit.start()
    kit.edit(change)
    assert kit.start() == []  # the original is the same
    kit.write("print(33)")
    assert kit.start() == [RENEWED]
    assert nbformat.read(kit.copy, as_version=4).cells[1].source == "print(33)"
    assert kit.start() == []


@pytest.mark.parametrize("change", TOUCHED)
def test_a_touched_copy_is_never_overwritten(change, kit):
    kit.start()
    work = kit.edit(change)
    assert kit.start() == [] and kit.copy.read_bytes() == work
    for news in ("print(33)", "print(34)"):
        kit.write(news)
        for _ in range(2):  # said at every start
            assert kit.start() == [KEPT] and kit.copy.read_bytes() == work


def test_the_advice_to_rename_or_delete_works(kit):
    kit.start()
    work = kit.edit(executed)
    kit.write("print(33)")
    assert kit.start() == [KEPT]
    kit.copy.rename(kit.mine / "01_old.ipynb")
    assert kit.start() == [AGAIN]
    assert (kit.mine / "01_old.ipynb").read_bytes() == work
    assert "print(33)" in kit.copy.read_text("utf-8") and kit.start() == []


def test_work_undone_is_an_untouched_copy(kit):
    kit.start()
    kit.edit(source("print(4)"))
    kit.edit(source("print(3)"))
    kit.write("print(33)")
    assert kit.start() == [RENEWED]


def test_a_new_run_of_an_original_changes_no_copy(kit):
    kit.start()
    before = kit.content()
    original = nbformat.read(kit.originals / "01_a.ipynb", as_version=4)
    original.cells[1].outputs[0].text = "4\n"
    nbformat.write(original, kit.originals / "01_a.ipynb")
    assert kit.start() == [] and kit.content() == before


def test_new_and_withdrawn_notebooks_of_the_kit(kit):
    kit.start()
    kit.write("print(5)", "02_b")
    assert kit.start() == [f"mine/02_b.ipynb: {copies.MADE}"]
    (kit.originals / "01_a.ipynb").unlink()
    assert kit.start() == [] and kit.copy.exists()


def test_another_python(kit, monkeypatch):
    kit.start()
    metadata = copies.kernel_metadata()
    metadata["language_info"]["version"] = "3.99.0"
    monkeypatch.setattr(copies, "kernel_metadata", lambda: metadata)
    work = kit.edit(executed)
    assert kit.start() == [] and kit.copy.read_bytes() == work
    kit.edit(cleared)
    assert kit.start() == [f"mine/01_a.ipynb: {copies.RENEWED_FOR_PYTHON}"]
    assert '"3.99.0"' in kit.copy.read_text("utf-8") and kit.start() == []


# The state


BAD_STATES = [
    None,
    b"",
    b"{",
    b"\xff\xfe",
    b"[]",
    b"3",
    b"null",
    b'{"01_a.ipynb": 3}',
    b"[" * 99999,
]
BAD_STATES += [b'{"01_a.ipynb": ["x"]}', b'{"01_a.ipynb": null}', b'{"02_b.ipynb": "x"}']


@pytest.mark.parametrize("state", BAD_STATES)
def test_without_its_state_no_copy_is_overwritten(state, kit):
    kit.start()
    work = kit.edit(source("print(4)"))
    if state is None:
        (kit.mine / copies.STATE).unlink()
    else:
        (kit.mine / copies.STATE).write_bytes(state)
    kit.write("print(33)")
    assert kit.start() == [UNKNOWN] and kit.start() == []
    kit.write("print(34)")
    assert kit.start() == [KEPT] and kit.copy.read_bytes() == work


def test_a_foreign_state_overwrites_nothing(kit):
    kit.start()
    work = kit.edit(source("print(4)"))
    (kit.mine / copies.STATE).write_text(json.dumps({"01_a.ipynb": "0" * 64}))
    assert kit.start() == [KEPT] and kit.copy.read_bytes() == work


def test_an_untouched_copy_needs_no_state(kit):
    kit.start()
    (kit.mine / copies.STATE).unlink()
    assert kit.start() == []
    kit.write("print(33)")
    assert kit.start() == [RENEWED]


def test_a_folder_that_was_there_before(kit):
    """A student who copied the executed notebooks by hand keeps them."""
    shutil.copytree(kit.originals, kit.mine)
    work = kit.copy.read_bytes()
    assert kit.start() == [UNKNOWN] and kit.start() == []
    assert kit.copy.read_bytes() == work


@pytest.mark.parametrize("content", [b"", b"{}", b"no json", b'{"nbformat": 4}', b"\xff", b"[3]"])
def test_what_is_no_notebook_is_kept(content, kit):
    kit.start()
    kit.copy.write_bytes(content)
    kit.write("print(33)")
    assert kit.start() == [KEPT] and kit.copy.read_bytes() == content


def test_a_folder_or_a_dead_link_in_its_place_is_kept(kit):
    kit.mine.mkdir()
    kit.copy.mkdir()
    assert kit.start() == [UNKNOWN] and kit.copy.is_dir()
    kit.copy.rmdir()
    try:
        kit.copy.symlink_to(kit.mine / "not_there.ipynb")
    except OSError:
        pytest.skip("no links here")
    assert kit.start() == [] and kit.copy.is_symlink()


# When it goes wrong


def fail_at(monkeypatch, number):
    """The given write, counted from 1, ends as on a full disk; what came before stays."""
    calls = []
    replace = files.os.replace

    def limited(*arguments):
        calls.append(arguments)
        if len(calls) >= number:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(*arguments)

    monkeypatch.setattr(files.os, "replace", limited)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_crash_midway_is_made_good_at_the_next_start(number, kit, monkeypatch):
    kit.write("print(5)", "02_b")
    with monkeypatch.context() as limited:
        fail_at(limited, number)
        with pytest.raises(OSError, match="nothing was overwritten"):
            kit.start()
    assert len(kit.content()) == number - 1  # no half file, no temporary one
    rest = ["01_a", "02_b"][number - 1 :]
    assert kit.start() == [f"mine/{name}.ipynb: {copies.MADE}" for name in rest]
    assert kit.start() == []
    for name in ("01_a", "02_b"):
        kit.write("print(33)", name)
    with monkeypatch.context() as limited:
        fail_at(limited, number)
        with pytest.raises(OSError, match="nothing was overwritten"):
            kit.start()
    assert kit.start() == [f"mine/{name}.ipynb: {copies.RENEWED}" for name in rest]
    for name in ("01_a", "02_b"):  # and they count as untouched
        kit.write("print(34)", name)
    assert len(kit.start()) == 2


def test_killed_midway(kit):
    """A process that ends between two copies, without any clean-up."""
    kit.write("print(5)", "02_b")
    code = (
        "import os, pathlib, sys\nfrom kdlib.engine import copies, notebooks\n"
        "write = copies.write_atomically\n"
        "copies.write_atomically = lambda path, text: "
        "os._exit(9) if path.name == '02_b.ipynb' else write(path, text)\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "copies.refresh(notebooks.find(folder=folder / 'notebooks'), folder / 'mine')"
    )
    done = subprocess.run([sys.executable, "-c", code, str(kit.mine.parent)], check=False)
    assert done.returncode == 9 and list(kit.content()) == ["01_a.ipynb"]
    assert kit.start() == [f"mine/02_b.ipynb: {copies.MADE}"] and kit.start() == []


def test_a_folder_that_cannot_be_written(kit, monkeypatch):
    def refuse(*arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as refused:
        refused.setattr(files.tempfile, "mkstemp", refuse)
        with pytest.raises(PermissionError, match="nothing was overwritten"):
            kit.start()
    kit.start()
    monkeypatch.setattr(files.tempfile, "mkstemp", refuse)
    assert kit.start() == []  # nothing to write, so nothing to complain about


def test_a_file_in_place_of_the_folder(kit):
    kit.mine.write_text("mine")
    with pytest.raises(OSError, match="nothing was overwritten"):
        kit.start()
    assert kit.mine.read_text() == "mine"


def test_a_broken_original_stops_before_anything_is_written(kit):
    (kit.originals / "02_b.ipynb").write_text("{")
    with pytest.raises(ValueError, match="02_b.ipynb is not a readable notebook"):
        kit.start()
    assert not kit.mine.exists()


# A copy is an ordinary notebook


def test_copies_run_and_count_as_touched_then(kit, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "machine_speed", lambda: 1.0)
    kit.start()
    original = (kit.originals / "01_a.ipynb").read_bytes()
    [outcome] = run.run(notebooks.find([str(kit.copy)], kit.originals), save=True)
    assert outcome.path == kit.copy.resolve() and not outcome.failures and not outcome.unsaved
    assert nbformat.read(kit.copy, as_version=4).cells[1].outputs[0].text == "3\n"
    assert (kit.originals / "01_a.ipynb").read_bytes() == original
    kit.write("print(33)")
    assert kit.start() == [KEPT]
    assert notebooks.find(["1"], kit.originals) == [kit.originals / "01_a.ipynb"]
