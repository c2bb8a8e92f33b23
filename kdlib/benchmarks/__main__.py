"""One benchmark in a process of its own: python -m kdlib.benchmarks NAME DEVICE SCALE FILE [PEER].

Each row is appended to FILE as a line of JSON as soon as it is known.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import torch

from kdlib.benchmarks.catalogue import BENCHMARKS
from kdlib.benchmarks.plan import Plan
from kdlib.benchmarks.rows import as_json


def main(name: str, device: str, scale: str, file: str, peer: str | None = None) -> None:
    """Measure, and write rows."""
    # Python warns of forks beside threads: those of a paced training only wait here.
    warnings.filterwarnings("ignore", ".* multi-threaded", DeprecationWarning)
    torch.set_num_threads(1)
    with Path(file).open("a", encoding="utf-8") as stream:
        for row in BENCHMARKS[name].measure(Plan(device, scale, peer)):
            print(json.dumps(as_json([row])[0]), file=stream, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
