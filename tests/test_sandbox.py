"""The sandbox, attacked: as root where the tests run as root, and as an ordinary user."""

import ast
import contextlib
import io
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import nbformat
import pytest
from pdfs import squeezed, text_of

from kdlib.homework import bubblewrap, building, course, inside, report, sandbox, untrusted
from kdlib.homework.sandbox import Limits, NoSandbox

WHY = sandbox.probe()
confined = pytest.mark.skipif(bool(WHY), reason=f"no sandbox here: {WHY}")
needs_tex = pytest.mark.skipif(
    bool(building.missing_tex()),
    reason=f"{' and '.join(building.missing_tex())} not installed: {building.tex_advice()}",
)
QUICK = Limits(seconds=120)  # for a machine with other work to do
SECRET = "the answer of another team"


@pytest.fixture
def project(tmp_path):
    """A team's folder, beside a secret of the course."""
    (tmp_path / "course").mkdir()
    (tmp_path / "course" / "secret.txt").write_text(SECRET)
    folder = tmp_path / "team"
    folder.mkdir()
    (folder / "file.txt").write_text("theirs")
    return folder


def free(code, project, **more):
    """What a program does without the sandbox: its output, errors included."""
    line = [sys.executable, "-c", code]
    done = subprocess.run(
        line, check=False, cwd=project, capture_output=True, text=True, timeout=60, **more
    )
    return done.stdout + done.stderr


def caught(code, project, **more):
    """How the same program ends in the sandbox."""
    more = {"limits": QUICK, **more}
    return sandbox.run([sys.executable, "-c", code], project, **more)


# What a command gets


@confined
def test_a_command_sees_the_project_the_kit_and_all_processors(project):
    code = (
        "import os, sys, torch, kdlib; print(os.getcwd(), open('file.txt').read(), kdlib.__file__);"
        "print(len(os.sched_getaffinity(0)), torch.ones(2).sum().item(), sys.stdin.read())"
    )
    done = caught(code, project, text="words for {results}")
    assert done.stdout.splitlines() == [
        "/project theirs /kit/kdlib/__init__.py",
        f"{len(os.sched_getaffinity(0))} 2.0 words for /tmp/results",
    ], done.stderr
    assert (done.returncode, done.stderr, done.stopped) == (0, "", "")


@pytest.mark.parametrize("trust", [pytest.param(False, marks=confined), True])
def test_results_and_exit_status_come_out(project, tmp_path, trust):
    made = tmp_path / "made"
    made.mkdir()
    (made / "old.txt").write_text("old")
    code = (
        "import os, pathlib, sys; place = pathlib.Path(sys.argv[1]);"
        "print((place / 'old.txt').read_text()); (place / 'old.txt').unlink();"
        "(place / 'a' / 'b').mkdir(parents=True); (place / 'a' / 'b' / 'новый').write_text('new');"
        "print(os.environ['WHERE']); sys.exit(7)"
    )
    done = sandbox.run(
        [sys.executable, "-c", code, sandbox.RESULTS],
        project,
        writable=made,
        environment={"WHERE": f"{sandbox.PROJECT}/x"},
        limits=QUICK,
        trust=trust,
    )
    where = f"{project}/x" if trust else "/project/x"
    assert (done.returncode, done.stdout.split()) == (7, ["old", where]), done.stderr
    files = {path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file()}
    assert files == {"a/b/новый"} and (made / "a/b/новый").read_text() == "new"


@confined
def test_further_files_are_seen_at_their_own_paths_and_stay(project, tmp_path):
    shared = tmp_path / "data"
    shared.mkdir(mode=0o700)
    (shared / "images.bin").write_bytes(b"12")
    (shared / "images.bin").chmod(0o600)
    code = f"print(open({str(shared / 'images.bin')!r}).read()); open({str(shared / 'x')!r}, 'w')"
    done = caught(code, project, readable=[shared])
    assert done.stdout == "12\n" and "Read-only file system" in done.stderr
    assert os.listdir(shared) == ["images.bin"]


@confined
def test_a_seed_is_a_copy_without_hidden_files_and_environments(project, tmp_path):
    (project / ".latexmkrc").write_text("x")
    (project / "env").mkdir()
    (project / "env" / "pyvenv.cfg").write_text("x")
    (project / "sub").mkdir()
    (project / "sub" / "link").symlink_to("../file.txt")
    code = "import os; print(os.listdir('.'), open('sub/link').read()); open('file.txt', 'w')"
    done = caught(code, project, seed=project, folder=sandbox.RESULTS)
    assert done.stdout == "['file.txt', 'sub'] theirs\n" or (
        done.stdout == "['sub', 'file.txt'] theirs\n"
    ), done.stderr
    assert (project / "file.txt").read_text() == "theirs"
    with pytest.raises(ValueError, match="must hold at most 0 MB to be copied"):
        caught(code, project, seed=project, limits=Limits(disk=3))


@confined
def test_a_program_that_is_missing_says_so(project):
    done = sandbox.run(["no-such-program"], project, limits=QUICK)
    assert done.returncode == 127 and "no-such-program: No such file" in done.stderr


@confined
def test_output_that_is_no_text_is_replaced(project):
    done = caught(r"import os; os.write(1, b'a\xff\x00b')", project)
    assert done.stdout == "a\ufffd\x00b"


# Where none works


def test_without_a_sandbox_running_is_refused(project, monkeypatch):
    monkeypatch.setenv("PATH", str(project))
    sandbox.probe.cache_clear()
    try:
        with pytest.raises(NoSandbox, match=r"(?s)(bwrap|bubblewrap).*container.*--trust"):
            sandbox.run([sys.executable, "-c", "print(1)"], project)
        done = sandbox.run([sys.executable, "-c", "print(1)"], project, trust=True)
        assert (done.returncode, done.stdout) == (0, "1\n")
        for platform in ("darwin", "win32"):
            sandbox.probe.cache_clear()
            monkeypatch.setattr(sys, "platform", platform)
            assert platform in sandbox.probe() and "\n" not in sandbox.probe()
    finally:
        sandbox.probe.cache_clear()


@pytest.mark.skipif(sys.platform != "linux", reason="bubblewrap is for Linux")
def test_a_bubblewrap_that_is_refused_is_no_sandbox(project, monkeypatch):
    broken = project / "bwrap"
    broken.write_text(
        "#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2; exit 1\n"
    )
    broken.chmod(0o755)
    (project / "setpriv").symlink_to(broken)
    monkeypatch.setenv("PATH", f"{project}:{os.environ['PATH']}")
    sandbox.probe.cache_clear()
    try:
        assert "No permissions to create new namespace" in sandbox.probe()
        monkeypatch.setattr(sandbox, "probe", lambda: "")
        with pytest.raises(NoSandbox, match="No permissions to create new namespace"):
            sandbox.run([sys.executable, "-c", "print(1)"], project)
    finally:
        monkeypatch.undo()
        sandbox.probe.cache_clear()


def test_trust_ends_at_the_limits_too(project):
    start = time.monotonic()
    line = [sys.executable, "-c", "while True: pass"]
    done = sandbox.run(line, project, limits=Limits(seconds=1), trust=True)
    assert (done.returncode, done.stopped) == (124, "time") and time.monotonic() - start < 10
    line = [sys.executable, "-c", "bytearray(8 << 30)"]
    if sys.platform == "linux":
        assert "MemoryError" in sandbox.run(line, project, trust=True).stderr


# The network


@confined
def test_no_network(project):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        code = f"import socket; socket.create_connection(('127.0.0.1', {port}), 5); print('there')"
        assert free(code, project) == "there\n"
        done = caught(code, project)
        assert "there" not in done.stdout and "ConnectionRefusedError" in done.stderr


@confined
def test_no_names_and_no_packets(project):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:  # as one that answers names
        server.bind(("127.0.0.1", 0))
        server.settimeout(5)
        code = (
            "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM)"
            f".sendto(b'name?', ('127.0.0.1', {server.getsockname()[1]}))"
        )
        free(code, project)
        assert server.recv(100) == b"name?"
        caught(code, project)
        server.settimeout(0.3)
        with pytest.raises(TimeoutError):
            server.recv(100)
    done = caught("import socket; socket.getaddrinfo('example.org', 80)", project)
    assert "gaierror" in done.stderr
    done = caught("import socket; print(socket.if_nameindex())", project)
    assert done.stdout == "[(1, 'lo')]\n"


@confined
def test_no_sockets_of_this_machine(project):
    with socket.socket(socket.AF_UNIX) as server:
        name = f"\0kdlib-{os.getpid()}"
        server.bind(name)
        server.listen()
        code = f"import socket; socket.socket(socket.AF_UNIX).connect({name!r}); print('there')"
        assert free(code, project) == "there\n"
        done = caught(code, project)
        assert done.stdout == "" and "ConnectionRefusedError" in done.stderr


# Files of this machine


@confined
@pytest.mark.parametrize(
    "place", ["{team}/x", "{course}/x", "{team}/file.txt", "/project/x", "/x", "/kit/kdlib/x",
              "/usr/x", "/etc/passwd", "/dev/x", "{python}/x", "/var/x", "/sys/x"]
)  # fmt: skip
def test_nothing_is_written_outside(project, place):
    course = project.parent / "course"
    python = Path(sys.prefix)
    path = Path(place.format(team=project, course=course, python=python))
    code = f"open({str(path)!r}, 'w').write('theirs, too'); print('written')"
    if place.startswith("{course") or place == "{team}/x":
        assert free(code, project) == "written\n"
        path.unlink()
    before = path.read_bytes() if path.exists() else None
    done = caught(code, project)
    assert "written" not in done.stdout and re.search(
        r"(OS|Permission|FileNotFound)Error", done.stderr
    )
    assert (path.read_bytes() if path.exists() else None) == before


@confined
def test_secrets_of_this_machine_are_not_read(project, monkeypatch):
    secret = project.parent / "course" / "secret.txt"
    (project / "link.txt").symlink_to(secret)
    monkeypatch.setenv("TOKEN_OF_THE_COURSE", SECRET)
    for way in (repr(str(secret)), "'link.txt'", "'../course/secret.txt'"):
        code = f"print(open({way}).read())"
        assert free(code, project) == f"{SECRET}\n"
        assert "FileNotFoundError" in caught(code, project).stderr
    code = (
        "import contextlib, glob\n"
        "for path in glob.glob('/proc/*/environ'):\n"
        "    with contextlib.suppress(OSError): print(open(path, errors='replace').read())"
    )
    assert SECRET in free(code, project)
    done = caught(code, project)
    assert SECRET not in done.stdout and "HOME=/tmp/home" in done.stdout
    passwd = caught("print(open('/etc/passwd').read())", project).stdout.split()
    assert passwd == ["team:x:1000:1000::/tmp/home:/bin/sh"]


@confined
def test_of_this_machine_only_the_system_and_the_interpreter_are_seen(project):
    needed = {
        Path(sys.prefix),
        Path(sys.base_prefix),
        Path(os.path.realpath(sys.executable)).parents[1],
    }
    needed = {path for path in needed if not path.is_relative_to("/usr")}
    known = {
        "/": {"dev", "etc", "kit", "proc", "project", "sys", "tmp", "usr", "var", "bin", "sbin"},
        "/etc": {"alternatives", "fonts", "group", "hosts", "ld.so.cache", "localtime", "passwd",
                 "texmf"},
        "/tmp": {"home", "results"},
        "/var": {"lib", "tmp"},
    }  # fmt: skip
    known["/"] |= {name for name in os.listdir("/") if name.startswith("lib")}
    for path in needed:
        for above in path.parents:
            known.setdefault(str(above), set()).add(path.relative_to(above).parts[0])
    code = f"import os; print({{place: os.listdir(place) for place in {list(known)}}})"
    seen = ast.literal_eval(caught(code, project).stdout)
    for place, names in seen.items():
        assert set(names) <= known[place], place


# Rights and other processes


@confined
def test_a_command_has_no_rights(project):
    code = "import os; print(os.getuid(), open('/proc/self/status').read())"
    said = caught(code, project).stdout
    assert said.startswith("1000 ")
    for line in ("CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1"):
        assert line in said
    new = ["unshare", "--user", "true"]
    done = sandbox.run(new, project, limits=QUICK)
    assert done.returncode == 1 and "unshare failed" in done.stderr, "no namespace of its own"
    code = "import os; print(len([name for name in os.listdir('/proc') if name.isdigit()]))"
    assert int(caught(code, project).stdout) <= 3


@confined
def test_root_is_given_up(project):
    code = "import time; print(flush=True); time.sleep(9.25)"
    before = set(inside_of_here())
    thread = threading.Thread(
        target=caught, args=(code, project), kwargs={"limits": Limits(seconds=2)}
    )
    thread.start()
    time.sleep(1)
    owners = {os.stat(f"/proc/{pid}").st_uid for pid in set(inside_of_here()) - before}
    thread.join()
    assert owners == {int(bubblewrap.NOBODY) if os.geteuid() == 0 else os.geteuid()}


def inside_of_here():
    """Processes of this machine that lie in a sandbox."""
    for path in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            if (path.parent / "root" / "kit").exists():
                yield path.parent.name


@confined
def test_a_fork_bomb_is_held(project):
    code = (
        "import os, time\n"
        "for count in range(100):\n"
        "    try:\n"
        "        if not os.fork():\n"
        "            time.sleep(1)\n"
        "            os._exit(0)\n"
        "    except OSError:\n"
        "        break\n"
        "print(count)\n"
    )
    assert free(code, project) == "99\n"
    done = caught(code, project, limits=Limits(seconds=30, processes=40))
    assert 30 <= int(done.stdout) <= 40


@confined
def test_what_a_command_leaves_running_is_ended(project):
    seconds = f"{600 + os.getpid() % 300}.25"  # nobody else sleeps as long
    code = f"import subprocess; subprocess.Popen(['sleep', {seconds!r}], start_new_session=True)"
    subprocess.run([sys.executable, "-c", code], check=True)
    wait_for(lambda: sleeping(seconds))  # it has its name a moment after it began
    (left,) = sleeping(seconds)
    os.kill(left, signal.SIGKILL)
    assert caught(code, project).returncode == 0
    assert sleeping(seconds) == []
    done = caught(code + "; import time; time.sleep(50)", project, limits=Limits(seconds=1))
    assert done.stopped == "time"
    assert sleeping(seconds) == []


def sleeping(seconds):
    """The processes of this machine that sleep for so long."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if path.read_bytes() == f"sleep\0{seconds}\0".encode():
                found.append(int(path.parent.name))
    return found


@confined
def test_a_sandbox_ends_with_the_process_that_made_it(project):
    seconds = f"{300 + os.getpid() % 300}.75"
    code = (
        "import pathlib, sys; from kdlib.homework import sandbox;"
        f"sandbox.run(['sleep', {seconds!r}], pathlib.Path({str(project)!r}))"
    )
    paths = {**os.environ, "PYTHONPATH": str(bubblewrap.PACKAGE.parent)}
    process = subprocess.Popen([sys.executable, "-c", code], env=paths)
    wait_for(lambda: sleeping(seconds))
    process.kill()
    process.wait()
    wait_for(lambda: not sleeping(seconds))


def wait_for(condition, most=60):
    end = time.monotonic() + most
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@confined
def test_killing_all_ends_only_itself(project, tmp_path):
    made = tmp_path / "made"
    made.mkdir()
    done = caught("import os; os.kill(-1, 9)", project, writable=made)
    assert done.returncode and list(made.iterdir()) == []
    stop = (
        "import os, signal\n"
        "os.kill(os.getppid(), signal.SIGSTOP)\n"
        "print('stopped', flush=True)\n"
        "while True: pass"
    )
    done = caught(stop, project, limits=Limits(seconds=1))
    assert (done.stdout, done.stopped) == ("stopped\n", "time")


# Limits


@confined
def test_an_endless_loop_is_ended(project):
    start = time.monotonic()
    done = caught("while True: pass", project, limits=Limits(seconds=1))
    assert (done.returncode, done.stopped) == (124, "time")
    assert time.monotonic() - start < 8


@confined
def test_memory_is_limited_of_one_and_of_all(project, monkeypatch):
    code = "import mmap; print(len(mmap.mmap(-1, 8 << 30, mmap.MAP_PRIVATE | 0x4000)))"
    assert free(code, project) == f"{8 << 30}\n", "no page is touched"
    assert "Cannot allocate memory" in caught(code, project).stderr
    assert "MemoryError" in caught("bytearray(8 << 30)", project).stderr
    code = (
        "import os, time\n"
        "for _ in range(6):\n"
        "    if not os.fork():\n"
        "        x = b'x' * (80 << 20)\n"
        "        time.sleep(20)\n"
        "time.sleep(3)\n"
        "print('still there')\n"
    )
    monkeypatch.setattr(sandbox, "SHARE", 0.0)
    done = caught(code, project, limits=Limits(memory=300 << 20))
    assert (done.returncode, done.stopped, done.stdout) == (124, "memory", "")
    monkeypatch.setattr(sandbox, "SPARE", 1.0)
    done = caught("import time; time.sleep(5)", project)
    assert done.stopped == "memory", "this machine has less to spare"


@confined
def test_endless_output_is_cut_and_ended(project):
    code = "import sys\nwhile True: sys.{}.write('y' * 1000)"
    done = caught(code.format("stdout"), project, limits=Limits(output=10_000))
    assert (done.stopped, done.stdout, done.stderr) == ("output", "y" * 10_000, "")
    done = caught(code.format("stderr"), project, limits=Limits(output=10_000))
    assert (done.stopped, done.stdout, done.stderr) == ("output", "", "y" * 10_000)
    done = caught("print('y' * 50_000); print('x', end='')", project, limits=Limits(output=10_000))
    assert (done.stopped, done.returncode, len(done.stdout)) == ("", 0, 10_000)


@confined
def test_files_are_limited_in_size_together_and_in_number(project):
    small = Limits(seconds=30, file_size=1 << 20, disk=4 << 20, files=500)
    write = "import os\nfor n in range({}): open(f'{}/{{n}}', 'wb').write(bytes({})); print(n)"
    done = caught(write.format(1, "/tmp", 2 << 20), project, limits=small)
    assert "File too large" in done.stderr
    for place in ("/tmp/results", "/tmp/home", "/dev/shm"):
        done = caught(write.format(8, place, 1 << 20), project, limits=small)
        assert "No space left on device" in done.stderr and 2 <= len(done.stdout.split()) <= 4
    done = caught("import os; os.truncate(os.open('/tmp/x', 66), 1 << 40)", project, limits=small)
    assert "File too large" in done.stderr, "a hole, too"
    start = time.monotonic()
    endless = "import itertools, os\nfor n in itertools.count(): os.mkdir(f'/tmp/{n}')"
    assert caught(endless, project, limits=small).stopped == "disk"
    assert time.monotonic() - start < 10


@confined
def test_results_beyond_the_limits_are_not_taken(project, tmp_path):
    made = tmp_path / "made"
    made.mkdir()
    small = Limits(seconds=30, file_size=1 << 20, disk=4 << 20)
    holes = "import os\nfor n in range(99): os.truncate(os.open(f'/tmp/results/{n}', 66), 1 << 20)"
    done = caught(holes, project, writable=made, limits=small)
    assert (done.returncode, done.stopped) == (124, "disk")
    assert list(made.iterdir()) == []


# What comes out


@confined
def test_only_regular_files_come_out(project, tmp_path):
    made = tmp_path / "made"
    made.mkdir()
    secret = project.parent / "course" / "secret.txt"
    code = (
        "import os; os.chdir('/tmp/results'); os.mkdir('d'); open('d/good', 'w').write('good');"
        f"os.symlink({str(secret)!r}, 'd/link'); os.symlink({str(secret.parent)!r}, 'folder');"
        "os.mkfifo('pipe'); os.symlink('pipe', 'e'); os.link('d/good', 'hard');"
        "open('closed', 'w'); os.chmod('closed', 0); os.mkdir('shut', 0)"
    )
    assert caught(code, project, writable=made).returncode == 0
    found = {path.relative_to(made).as_posix(): path for path in made.rglob("*")}
    assert set(found) == {"d", "d/good", "hard"}
    assert found["hard"].read_text() == "good" and not found["hard"].is_symlink()


@pytest.mark.parametrize(
    "stream",
    [
        b'["../x", 1]\nx', b'["/tmp/x", 1]\nx', b'["a/../../x", 1]\nx',  # leaves the folder
        b'["", 0]\n', b'["a\\u0000", 1]\nx', b'["\\ud800", 0]\n', b'[["x"], 1]\nx',  # no names
        b'["' + b"n" * 300 + b'", 0]\n', b'["a", 1]\nx["a/b", 1]\nx', b'["x", 0]\n["x", 0]\n',
        b'["x", -1]\n', b'["x", 1.0]\nx', b'["x", true]\nx', b'["x", ' + b"9" * 5000 + b"]\n",
        b'["x", 5]\nx', b'["x", 10000]\n' + b"x" * 10000,  # breaks off; too large; too many
        b'["a", 0]\n["b", 0]\n["c", 0]\n["d", 0]\n',
        b"{}\n", b"nonsense", b"\xff\n", b"[" * 9000 + b"\n", b"[" * 99_000,  # no JSON
    ],
)  # fmt: skip
def test_a_forged_stream_leaves_nothing(tmp_path, stream):
    made = tmp_path / "made"
    made.mkdir()
    (made / "old").write_text("old")
    good = b'["good", 1]\nx'
    inside.unpack(io.BytesIO(good), made, most=1000, files=3)
    assert [path.name for path in made.iterdir()] == ["good"]
    with pytest.raises(ValueError, match="cannot take what the command left"):
        inside.unpack(io.BytesIO(good + stream), made, most=1000, files=3)
    assert list(tmp_path.rglob("*")) == [made]


# Code of a team in the place of the kit's or of Python's


@confined
def test_their_kdlib_and_their_start_files_are_not_run(project):
    (project / "kdlib").mkdir()
    (project / "kdlib" / "__init__.py").write_text("print('theirs')")
    (project / "sitecustomize.py").write_text("print('theirs')")
    (project / "json.py").write_text("print('theirs')")
    (project / "evil.pth").write_text("import sys; print('theirs')\n")
    (project / "run.py").write_text("import kdlib, json; print(kdlib.__file__)")
    ways = {"-c": "import kdlib, json; print(kdlib.__file__)", "run.py": "", "-m": "run"}
    for way, more in ways.items():
        line = [sys.executable, *filter(None, [way, more])]
        clear = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        done = subprocess.run(
            line, check=False, cwd=project, capture_output=True, text=True, env=clear
        )
        assert "theirs" in done.stdout
        if way != "-m":
            done = sandbox.run(line, project, limits=QUICK)
            assert done.stdout == "/kit/kdlib/__init__.py\n", done.stderr
    clear["PYTHONPATH"] = str(project)
    assert "theirs" in free("", project, env=clear)
    done = sandbox.run([sys.executable, "-m", "run"], project, limits=QUICK)
    assert "No module named run" in done.stderr, "the working folder is no place of modules"


def notebook(folder, name, source, stored):
    """Write a notebook of one cell."""
    output = nbformat.v4.new_output("stream", name="stdout", text=stored)
    cell = nbformat.v4.new_code_cell(source, execution_count=1, outputs=[output])
    folder.joinpath(name).parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), folder / name)


@confined
def test_a_notebook_is_repeated_with_the_kit_alone(project):
    (project / "kdlib").mkdir()
    (project / "kdlib" / "__init__.py").write_text("raise SystemExit('theirs')")
    (project / "ours").mkdir()
    (project / "ours" / "model.py").write_text("NAME = 'our model'")
    source = (
        "import kdlib, os, sys\nsys.path.append('..')\nfrom ours import model\n"
        "open('made.txt', 'w').write('x')\nprint(kdlib.__file__, model.NAME, sorted(os.listdir()))"
    )
    stored = "/kit/kdlib/__init__.py our model ['made.txt', 'тетрадь.ipynb']\n"
    notebook(project, "my notebooks/тетрадь.ipynb", source, stored)
    done = untrusted.run_notebook("my notebooks/тетрадь.ipynb", project)
    assert done.returncode == 0, done.stdout + done.stderr
    assert os.listdir(project / "my notebooks") == ["тетрадь.ipynb"]


@confined
def test_their_test_configuration_is_not_read(project):
    """A wrong output, and a team that makes every failure a success."""
    notebook(project, "wrong.ipynb", "print(1)", "2\n")
    (project / "conftest.py").write_text(
        "import pytest\n"
        "@pytest.hookimpl(hookwrapper=True)\n"
        "def pytest_runtest_makereport(item, call):\n"
        "    (yield).get_result().outcome = 'passed'\n"
    )
    (project / "pytest.ini").write_text("[pytest]\naddopts = --nbval-lax\n")
    line = [sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env", "wrong.ipynb"]
    assert subprocess.run(line, check=False, cwd=project, capture_output=True).returncode == 0
    done = untrusted.run_notebook("wrong.ipynb", project)
    assert done.returncode == 1 and "mismatch 'stdout'" in done.stdout
    (project / "link.ipynb").symlink_to(project / "wrong.ipynb")
    for path in ("link.ipynb", "../team/wrong.ipynb", "absent.ipynb", project / "wrong.ipynb", "."):
        with pytest.raises(ValueError, match="path must be a notebook in"):
            untrusted.run_notebook(path, project)


@confined
def test_a_pickle_of_a_team_harms_only_itself(project, tmp_path):
    marker = tmp_path / "marker"
    code = (
        "import os, pickle\n"
        "class Evil:\n"
        f"    def __reduce__(self): return os.system, ('touch {marker} /tmp/results/marker',)\n"
        "open('weights.pt', 'wb').write(pickle.dumps(Evil()))"
    )
    free(code, project)
    load = "import pickle; print(pickle.load(open('weights.pt', 'rb')))"
    free(load, project)
    assert marker.exists()
    marker.unlink()
    assert caught(load, project).stdout == "256\n", "touch fails"
    assert not marker.exists()


# Reports


@pytest.fixture(scope="session")
def template(tmp_path_factory):
    folder = tmp_path_factory.mktemp("homework") / "report"
    report.start(folder, "en")
    report.make(report.read(folder, course.load()))
    return folder


@confined
def test_a_typst_report_is_the_same_in_the_sandbox(template):
    own = building.typst(building.package(template), "report.typ")
    built = untrusted.build_report(template, "report.typ")
    assert own.pdf and built == own, built.problem


@confined
@needs_tex
def test_a_latex_report_is_built_in_the_sandbox(template):
    built = untrusted.build_report(template, "report.tex")
    assert built.pdf, built.problem
    assert built.body and 1 <= built.body <= built.pages <= 6


@confined
def test_typst_reads_nothing_outside(project):
    import typst

    secret = project.parent / "course" / "secret.txt"
    main = project / "report.typ"
    main.write_text(f'#read("{secret}")')
    assert squeezed(SECRET) in text_of(typst.compile(main, root="/"))
    for path in (secret, "/etc/passwd", "../course/secret.txt", "/../course/secret.txt"):
        main.write_text(f'#read("{path}")')
        built = untrusted.build_report(project, main.name)
        assert built.pdf is None and re.search("not found|denied|outside", built.problem)
    main.write_text('#import "@preview/cetz:0.3.2"')
    assert untrusted.build_report(project, main.name).pdf is None
    main.write_text("#let f(x) = f(x + 1)\n#while true { }")
    assert untrusted.build_report(project, main.name).pdf is None


TEX = "\\documentclass{article}\\begin{document}%s\\end{document}"


def pdflatex(project, *options, **variables):
    line = ["pdflatex", "-interaction=nonstopmode", *options, "report.tex"]
    subprocess.run(
        line, check=False, cwd=project, capture_output=True, env={**os.environ, **variables}
    )
    return text_of((project / "report.pdf").read_bytes())


@confined
@needs_tex
def test_latex_starts_no_programs(project):
    marker = project / "marker"
    main = project / "report.tex"
    main.write_text(TEX % r"\immediate\write18{touch marker; cp marker /tmp/results}x")
    pdflatex(project, "-shell-escape")
    assert marker.exists()
    marker.unlink()
    main.write_text(TEX % r"\immediate\write18{echo hello > made.tex}\input{made.tex}")
    assert untrusted.build_report(project, main.name).pdf is None
    (project / ".latexmkrc").write_text("system('touch marker'); $pdflatex = 'touch marker';")
    (project / "latexmkrc").write_text("system('touch marker'); $pdflatex = 'touch marker';")
    main.write_text(TEX % "x")
    subprocess.run(["latexmk", "-pdf", "report.tex"], check=False, cwd=project, capture_output=True)
    assert marker.exists()
    marker.unlink()
    built = untrusted.build_report(project, main.name)
    assert built.pdf, built.problem
    assert not marker.exists()


@confined
@needs_tex
def test_latex_reads_nothing_outside(project):
    secret = project.parent / "course" / "secret.txt"
    main = project / "report.tex"
    for path in (secret, "/etc/passwd", "../course/secret.txt"):
        main.write_text(TEX % rf"\catcode95=12 \input{{{path}}}")
        if path == secret:
            assert squeezed(SECRET) in pdflatex(project, openin_any="a")
        built = untrusted.build_report(project, main.name)
        assert built.pdf is None, text_of(built.pdf)
    code = TEX % rf"\openin5={{{secret}}}\ifeof5 nothing\else\read5 to\x \x\fi"
    main.write_text(code)
    built = untrusted.build_report(project, main.name)
    assert built.pdf and "nothing" in text_of(built.pdf)


@confined
@needs_tex
def test_latex_is_stopped(project, monkeypatch):
    monkeypatch.setitem(building.TIMEOUT, "latex", 2.0)
    (project / "report.tex").write_text(TEX % r"\loop\iftrue\repeat")
    built = untrusted.build_report(project, "report.tex")
    assert built.pdf is None and "LaTeX was stopped after 2 s" in built.problem


# As an ordinary user


if hasattr(os, "geteuid") and os.geteuid() == 0:  # else all of the above was as a user already

    @confined
    def test_all_of_this_holds_for_an_ordinary_user(root):
        """The attacks once more, by one who cannot do what root can."""
        needed = {str(root), sys.base_prefix, os.path.realpath(sys.prefix)}
        needed.add(str(Path(os.path.realpath(sys.executable)).parents[1]))
        line = ["bwrap", "--die-with-parent", "--dev-bind", "/", "/"]
        for top in sorted({"/tmp", *filter(None, map(closed, needed))}):
            line += ["--perms", "1777", "--tmpfs", top]
        for path in sorted(needed):
            for above in reversed(Path(path).parents):
                if not above.exists() or closed(str(above)) or above.is_relative_to("/tmp/"):
                    line += ["--perms", "0755", "--dir", str(above)]
            line += ["--ro-bind", path, path]
        line += ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        line += [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider"]
        line += ["-o", "addopts=", "-c", os.devnull, "--rootdir", str(root), __file__]
        line += ["-k", "not (trust or forged or notebook or configuration or report_is)"]
        variables = {"PATH": os.environ["PATH"], "HOME": "/tmp", "PYTHONPATH": str(root)}
        done = subprocess.run(line, capture_output=True, text=True, env=variables, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "tests/test_sandbox.py" not in done.stdout.partition("SKIPPED")[2] or WHY


def closed(path):
    """The first folder on the way that only root can enter; None if there is none."""
    for place in reversed([Path(path), *Path(path).parents]):
        if not place.stat().st_mode & 0o001:
            return str(place)
    return None
