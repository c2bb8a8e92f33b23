"""The command line, `python -m kdlib COMMAND`. A command's module is imported when it is chosen."""

from __future__ import annotations

import argparse
import ast
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

# Each module has HELP (one line), configure(parser) and main(arguments) -> exit status.
COMMANDS = {
    "lab": "kdlib.commands.lab",
    "run": "kdlib.commands.run",
    "train": "kdlib.commands.train",
    "repeat": "kdlib.commands.repeat",
    "record": "kdlib.commands.record",
    "team": "kdlib.commands.team",
    "report": "kdlib.commands.report",
    "review": "kdlib.commands.review",
    "bench": "kdlib.commands.bench",
    "site": "kdlib.commands.site",
    "doctor": "kdlib.commands.doctor",
}


def overview() -> argparse.ArgumentParser:
    """The parser of the first word; its help lists all commands, without importing them."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {help_line(name)}" for name in COMMANDS]
    top = argparse.ArgumentParser(
        prog="python -m kdlib",
        description="Knowledge distillation: a course kit",
        epilog="\n".join(["commands:", *lines, "\nCOMMAND --help lists the options of one."]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    top.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of those below")
    return top


def help_line(name: str) -> str:
    """`HELP` of a command, read from its source."""
    source = Path(__file__).parent.joinpath(*COMMANDS[name].split(".")[1:]).with_suffix(".py")
    for statement in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "HELP":
            return str(ast.literal_eval(statement.value))
    raise ValueError(f"{source} must assign one line to HELP")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 good, 1 something failed, 2 bad usage."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a console that cannot show "≈" prints "?"
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] not in COMMANDS:
        overview().parse_args(words[:1])
    name = words[0]
    try:
        command = importlib.import_module(COMMANDS[name])
        parser = argparse.ArgumentParser(
            prog=f"python -m kdlib {name}", description=command.HELP, allow_abbrev=False
        )
        command.configure(parser)
        arguments, options = parser.parse_known_args(words[1:])
        # A command that hands unknown options on has set a default for `options`.
        if options and "options" not in arguments:
            parser.error(f"unrecognized arguments: {' '.join(options)}")
        arguments.options = options
        return int(command.main(arguments))
    except ModuleNotFoundError as error:
        print(f"error: {error}: `python -m kdlib doctor` says what to do", file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
