"""`bench`: what the kit costs, side by side with plain training and with other loops."""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING

from kdlib import inputs

if TYPE_CHECKING:
    from kdlib.benchmarks.rows import Row

HELP = "time and memory of methods, loops and language models, side by side in one run"
DEVICES = ("cpu", "cuda")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="one benchmark; may be repeated"
    )
    parser.add_argument("--list", action="store_true", help="name the benchmarks, measure nothing")
    scale = parser.add_mutually_exclusive_group()
    scale.add_argument("--quick", action="store_true", help="fewer rounds")
    scale.add_argument(
        "--smoke", action="store_true", help="tiny sizes, to see whether all runs; no measurement"
    )
    parser.add_argument("--device", choices=DEVICES, help="default: the CPU, and a GPU if present")
    parser.add_argument(
        "--minutes", type=float, metavar="N", help="after which the rest is left unmeasured"
    )
    parser.add_argument(
        "--limit", type=float, metavar="N", help="seconds that each benchmark may take at most"
    )
    parser.add_argument(
        "--peer",
        type=Path,
        metavar="PATH",
        help="a clone of RepDistiller, or another version of this kit, to run beside ours",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was found")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table")
    parser.add_argument(
        "--before", type=Path, metavar="FILE", help="JSON of an earlier run: list what differs"
    )


def main(arguments: argparse.Namespace) -> int:
    """Measure and show; 1 if something could not be measured for want of more than a device."""
    from kdlib.benchmarks.catalogue import BENCHMARKS
    from kdlib.benchmarks.rows import apart, from_json, markdown
    from kdlib.engine.files import probe

    if arguments.list:
        width = max(map(len, BENCHMARKS))
        for name, one in BENCHMARKS.items():
            print(f"{name:{width}}  {one.title} ({' and '.join(one.limits)})")
        return 0
    for name in arguments.only:
        inputs.choice("--only", name, tuple(BENCHMARKS))
    for name in ("minutes", "limit"):
        if getattr(arguments, name) is not None:
            inputs.number(f"--{name}", getattr(arguments, name), above=0)
    if arguments.peer is not None and not arguments.peer.is_dir():
        raise ValueError(f"--peer must be a folder, got {str(arguments.peer)!r}")
    for path in filter(None, (arguments.json, arguments.markdown)):
        probe(path)
    before = None
    if arguments.before is not None:
        before = from_json(json.loads(arguments.before.read_text("utf-8"))["rows"])
    rows = _all(arguments)
    print(markdown(rows))
    if before is not None:
        lines = apart(rows, before)
        print("\n".join(lines) if lines else "every ratio is within 10 % of the earlier run")
    return 1 if any(row.unmeasured and row.device for row in rows) else 0


def _all(arguments: argparse.Namespace) -> list[Row]:
    """Measure everything that was asked for, and write the files as it goes."""
    import torch

    from kdlib.benchmarks import runner
    from kdlib.benchmarks.catalogue import BENCHMARKS
    from kdlib.benchmarks.plan import Plan
    from kdlib.benchmarks.rows import Row
    from kdlib.engine.progress import bar

    scale = "smoke" if arguments.smoke else "quick" if arguments.quick else "full"
    peer = None if arguments.peer is None else str(arguments.peer.resolve())
    devices = [arguments.device] if arguments.device else list(DEVICES)
    absent = {} if torch.cuda.is_available() else {"cuda": "no GPU here"}
    chosen = arguments.only or list(BENCHMARKS)
    todo = [(d, n) for d in devices for n in chosen if d in BENCHMARKS[n].limits]
    end = time.monotonic() + 60 * (arguments.minutes or 1e9)
    most = arguments.limit or 1e9
    rows: list[Row] = []
    with bar(len(todo), "benchmarks") as ticker:
        for device, name in todo:
            ticker.set_postfix_str(f"{name} on {device}")
            left = end - time.monotonic()
            reason = absent.get(device, "" if left > 0 else "the time was up")
            if reason:
                rows.append(Row(name, BENCHMARKS[name].title, unmeasured=reason))
            else:
                for row in runner.measured(
                    name, Plan(device, scale, peer), tick=ticker.refresh, most=min(left, most)
                ):
                    rows.append(row)
                    _write(arguments, rows)
            ticker.update()
    _write(arguments, rows)
    return rows


def _write(arguments: argparse.Namespace, rows: list[Row]) -> None:
    from kdlib.benchmarks.rows import as_json, markdown
    from kdlib.engine.files import write_atomically

    if arguments.json is not None:
        found = {"machine": _machine(), "rows": as_json(rows)}
        write_atomically(arguments.json, json.dumps(found, indent=1) + "\n")
    if arguments.markdown is not None:
        text = f"{', '.join(f'{name} {value}' for name, value in _machine().items())}\n\n"
        write_atomically(arguments.markdown, text + markdown(rows))


def _machine() -> dict[str, str]:
    """The machine and the libraries, in words."""
    import os

    import torch

    found = {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "Python": platform.python_version(),
        "PyTorch": torch.__version__,
    }
    if torch.cuda.is_available():
        found["GPU"] = torch.cuda.get_device_name()
    return found


def _processor() -> str:
    """Its name; Linux has it in a file."""
    file = Path("/proc/cpuinfo")
    if file.is_file():
        for line in file.read_text("utf-8", "replace").splitlines():
            if line.lower().startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
