"""`record`: make the recorded experiments again that notebooks read."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

HELP = "make recorded experiments again; without a name, list them and their state"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("study", nargs="?", metavar="NAME", help="of the study, e.g. tuning_3")
    parser.add_argument("parts", nargs="*", metavar="PART", help="default: all parts of the study")
    parser.add_argument(
        "--folder", type=Path, metavar="FOLDER", help="of the files; default: notebooks/records"
    )
    parser.add_argument("--workers", type=int, metavar="N", help="processes; default: one a core")


def main(arguments: argparse.Namespace) -> int:
    """List the studies, or run parts of one: 1 if a run failed, 2 for a wrong name."""
    from kdlib import studies

    place = studies.folder() if arguments.folder is None else arguments.folder
    if arguments.study is None:
        print(overview(place))
        return 0
    known = studies.parts(arguments.study)
    chosen = arguments.parts or list(known)
    for part in chosen:
        if part not in known:
            raise ValueError(f"part must be one of {', '.join(known)}; got {part!r}")
    expected = _seconds(arguments.study, place)
    for number, part in enumerate(chosen, start=1):
        about = f"; took {expected[part] / 60:.0f} core minutes" if part in expected else ""
        print(f"{part} ({number} of {len(chosen)}{about}): {studies.question(known[part])}")
        start = time.perf_counter()
        try:
            path = studies.record(arguments.study, part, place, workers=arguments.workers)
        except RuntimeWarning as failed:
            print(f"  not recorded, the finished runs are kept: start it again.\n  {failed}")
            return 1
        print(f"  {path}, after {(time.perf_counter() - start) / 60:.1f} minutes")
    return 0


def _seconds(study: str, place: Path) -> dict[str, float]:
    """What each part took when it was recorded."""
    from kdlib import studies

    try:
        return {part: found.seconds for part, found in studies.read(study, place).items()}
    except (FileNotFoundError, ValueError):
        return {}


def overview(place: Path) -> str:
    """One line a part: recorded, stale (by other code; still readable) or missing."""
    from kdlib import studies

    lines = []
    for study in studies.NAMES:
        lines.append(f"{study}: {studies.title(study)}")
        note = ""
        try:
            found = studies.read(study, place)
        except FileNotFoundError:
            found = {}
        except ValueError as error:
            found, note = {}, f"  {error}"
        for part in studies.parts(study):
            state = "missing"
            if part in found:
                state = "stale" if found[part].stale else "recorded"
                state += f", {found[part].seconds / 60:.0f} core minutes"
            lines.append(f"  {part}: {state}")
        if note:
            lines.append(note)
    lines.append(
        "stale: made by other code of the kit, and still read; `record NAME PART` makes it again"
    )
    return "\n".join(lines)
