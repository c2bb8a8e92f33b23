"""`site`: the whole course as static HTML."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "write the course as static HTML that opens from disk, without a network"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "--out", type=Path, default=Path("site"), metavar="FOLDER",
        help="a new folder, or one that this command made (default: site)",
    )  # fmt: skip


def main(arguments: argparse.Namespace) -> int:
    """Build all pages, then write what changed."""
    from kdlib import site

    folder: Path = arguments.out
    site.check(folder)
    files = site.build()
    changed = site.write(files, folder)
    pages = sum(name.endswith(".html") for name in files)
    size = sum(map(len, files.values())) / 1e6
    print(f"{folder}: {pages} pages, {size:.1f} MB of at most {site.LIMIT / 1e6:.0f}")
    print(f"  {changed} of {len(files)} files written, the others were right already")
    print(f"  open {(folder / 'index.html').resolve().as_uri()}")
    return 0
