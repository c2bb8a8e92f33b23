"""`repeat`: run recorded experiments again, recorded beside observed."""

from __future__ import annotations

import argparse
import json
from typing import Any

HELP = "run recorded runs again from their files, and compare"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="record of a run, *.json")
    parser.add_argument(
        "--epochs",
        type=int,
        metavar="N",
        help="train only N epochs, on the full schedule, and compare the history",
    )
    parser.add_argument(
        "--own-code",
        action="store_true",
        help="import and run modules below this folder that a record names",
    )
    parser.add_argument(
        "--observed", action="store_true",
        help="print what came out as JSON, one line a file, and compare nothing",
    )  # fmt: skip


def main(arguments: argparse.Namespace) -> int:
    """Repeat each file; 1 if a value lies beyond its tolerance, 2 if one cannot be repeated."""
    from kdlib import repetition

    status = 0
    for path in arguments.files:
        if arguments.observed:
            print(json.dumps(_observed(path, arguments)), flush=True)
            continue
        try:
            found = repetition.repeat(path, epochs=arguments.epochs, own_code=arguments.own_code)
        except (TypeError, ValueError) as error:
            print(f"{path}\n  {error}")
            status = 2
            continue
        print(f"{path}\n  {found.run}: {found.verdict} ({found.basis})")
        width = max(len(name) for name, *_ in found.rows)
        print(f"  {'':{width}}  {'recorded':>14}  {'observed':>14}  tolerance")
        for name, recorded, observed, tolerance in found.rows:
            room = "unknown" if tolerance is None else f"{tolerance:.4g}"
            print(f"  {name:{width}}  {recorded:14.8g}  {observed:14.8g}  {room}")
        for note in found.notes:
            print(f"  note: {note}")
        if found.verdict == "differs" and status == 0:
            status = 1
    return status


def _observed(path: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """What a record gives when it runs again, or the error and its kind."""
    from kdlib import repetition

    try:
        found = repetition.observe(path, epochs=arguments.epochs, own_code=arguments.own_code)
    except Exception as error:  # whatever the recorded code raises
        return {"kind": type(error).__name__, "error": str(error)}
    return found._asdict()
