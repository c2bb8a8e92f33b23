"""The command line of bubblewrap: what a program in the sandbox sees.

As root it goes in two steps. The first, still root, shows at `STAGE` what only root can reach; then
root is given up, for it would pass every limit of processes; the second makes the sandbox, as an
ordinary user would.
"""

from __future__ import annotations

import os
import shutil
import site
import stat
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from kdlib.homework import inside

PROJECT, RESULTS, SEED, HOME, KIT = "/project", "/tmp/results", "/seed", "/tmp/home", "/kit"
PACKAGES = "/packages"  # further ones, for Python
PACKAGE = Path(__file__).resolve().parents[1]
BESIDE = ("notebooks/records", "report_template")  # of a checkout, which `kdlib` reads
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix/store")
# Of /etc what programs and LaTeX need to start, of /sys what counts the processors.
NEEDED = (
    "/etc/alternatives", "/etc/fonts", "/etc/ld.so.cache", "/etc/localtime", "/etc/texmf",
    "/sys/devices/system/cpu", "/var/lib/texmf",
)  # fmt: skip
ETC = {
    "passwd": f"team:x:1000:1000::{HOME}:/bin/sh\n",
    "group": "team:x:1000:\n",
    "hosts": "127.0.0.1 localhost\n",
}
STAGE, NOBODY = "/mnt", "65534"
ALONE = (
    "--unshare-all", "--unshare-user", "--disable-userns", "--uid", "1000", "--gid", "1000",
    "--hostname", "sandbox", "--cap-drop", "ALL", "--clearenv", "--new-session",
    "--die-with-parent",
)  # fmt: skip


def missing() -> list[str]:
    """The programs that are needed and not here."""
    needed = ["bwrap", "setpriv"] if _root() else ["bwrap"]
    return [name for name in needed if shutil.which(name) is None]


def _root() -> bool:
    return os.geteuid() == 0


def line(
    program: Sequence[str],
    shown: Mapping[str, Path],
    environment: Mapping[str, str],
    scratch: Path,
    disk: int,
) -> list[str]:
    """The command line that runs a program in the sandbox.

    Args:
        program: seen from inside.
        shown: {place: file or folder of this machine} that the program may read.
        environment: all variables that it gets, beside those that lead to the kit.
        scratch: a folder for what must be copied or written first.
        disk: bytes that it may write.
    """
    (scratch / "etc").mkdir()
    for name, content in ETC.items():
        (scratch / "etc" / name).write_text(content)
    shown = {place: _open_to_all(path, scratch, disk) for place, path in shown.items()}
    shown = _system() | {f"/etc/{name}": scratch / "etc" / name for name in ETC} | shown
    links = [place for place in SYSTEM if os.path.islink(place)]
    words = list(ALONE)
    for place in links:
        words += ["--symlink", os.readlink(place), place]
    words += ["--proc", "/proc", "--dev", "/dev", "--remount-ro", "/dev"]
    for place in ("/dev/shm", "/tmp"):
        words += ["--size", str(disk), "--tmpfs", place]
    words += ["--dir", HOME, "--dir", RESULTS, "--symlink", "/tmp", "/var/tmp"]
    outer: list[str] = []
    for number, place in enumerate(sorted(set(shown) - set(links))):  # a folder before its content
        source = str(shown[place])
        if _root():
            outer += ["--ro-bind", source, f"{STAGE}/{number}"]
            source = f"{STAGE}/{number}"
        words += ["--ro-bind", source, place]
    for name, value in (_variables() | dict(environment)).items():
        words += ["--setenv", name, value]
    words = ["bwrap", *words, "--remount-ro", "/", "--chdir", "/", "--", *program]
    return [*_giving_up_root(outer), *words] if _root() else words


def _giving_up_root(outer: Sequence[str]) -> list[str]:
    """The first step. Its own space of processes ends with it, whoever they belong to by then."""
    words = ["bwrap", "--die-with-parent", "--unshare-pid", "--dev-bind", "/", "/"]
    words += ["--tmpfs", STAGE, *outer, "--"]
    words += ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    return [*words, "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"]


def _system() -> dict[str, Path]:
    """{place: path} of programs, this interpreter with its packages, and the kit."""
    real = Path(os.path.realpath(sys.executable)).parents[1]
    folders = [*SYSTEM, *NEEDED, sys.prefix, sys.base_prefix, str(real), *_user_packages()]
    found = {one: Path(one) for one in folders if one in SYSTEM or not _of_the_system(one)}
    found |= {f"{KIT}/{one}": PACKAGE.parent / one for one in (PACKAGE.name, *BESIDE)}
    return {place: path for place, path in found.items() if path.exists()}


def _of_the_system(place: str) -> bool:
    return any(Path(place).is_relative_to(one) for one in SYSTEM)


def _user_packages() -> list[str]:
    """Where `pip install --user` puts packages, if this interpreter takes them from there."""
    return [site.getusersitepackages()] if site.ENABLE_USER_SITE else []


def _variables() -> dict[str, str]:
    """The kit before the team's `kdlib`, which Python would else take from the working folder."""
    return {
        "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
        "HOME": HOME,
        "LANG": "C.UTF-8",
        "PYTHONPATH": path(),
        "PYTHONSAFEPATH": "1",
        "PYTHONNOUSERSITE": "1",
        "MALLOC_ARENA_MAX": "4",  # else each thread of a large machine reserves memory of its own
    }


def path(*more: str) -> str:
    """Where Python looks for modules before its own packages: at the kit first."""
    return ":".join([KIT, *_user_packages(), *more])


def _open_to_all(path: Path, scratch: Path, most: int) -> Path:
    """A file or folder; for root a copy that every user can read, if somebody could not.

    Raises:
        ValueError: it would have to be copied, and is larger than `most` bytes.
    """
    if not _root() or all(map(_readable, (path, *path.rglob("*")))):
        return path
    check_size(path, most)
    copy = Path(tempfile.mkdtemp(dir=scratch)) / "copy"
    if path.is_dir():
        inside.copy(path, copy)
    else:
        shutil.copyfile(path, copy)
    for one in (copy, *copy.rglob("*")):
        if not one.is_symlink():
            one.chmod(0o755 if one.is_dir() else 0o644)
    return copy


def _readable(path: Path) -> bool:
    mode = path.lstat().st_mode
    needed = 0o005 if stat.S_ISDIR(mode) else 0o004
    return stat.S_ISLNK(mode) or mode & needed == needed


def check_size(path: Path, most: int) -> None:
    """Raise a ValueError if a file or folder is larger than `most` bytes, too much to be copied."""
    size = sum(one.lstat().st_size for one in (path, *inside.kept(path)))
    if size > most:
        raise ValueError(
            f"{path} must hold at most {most // 2**20} MB to be copied, got {size // 2**20} MB: "
            "move large files, for example data, out of it"
        )
