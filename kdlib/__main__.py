"""The command line: ``python -m kdlib {lab, run, doctor}``. Each command imports what it needs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence


def _lab(arguments, options: list[str]) -> int:
    from kdlib import lab

    return lab.start(options)


def _run(arguments, options: list[str]) -> int:
    from kdlib import notebooks, runner

    outcomes = runner.run(notebooks.find(arguments.notebooks), save=arguments.save,
                          seed_offset=arguments.seed_offset)
    return 1 if any(outcome.error for outcome in outcomes) else 0


def _doctor(arguments, options: list[str]) -> int:
    from kdlib import doctor

    findings = doctor.report()
    print(doctor.format_report(findings))
    return 1 if any(finding.state == doctor.MISSING for finding in findings) else 0


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number of 0 or more, got {text!r}")
    return int(text)


def parser() -> argparse.ArgumentParser:
    """Every command of the kit, with its options."""
    top = argparse.ArgumentParser(prog="python -m kdlib", description="Knowledge distillation kit",
                                  allow_abbrev=False)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    lab = commands.add_parser("lab", help="open JupyterLab in notebooks/", allow_abbrev=False,
                              epilog="Other options go to JupyterLab, for example --port 9000.")
    lab.set_defaults(action=_lab)

    run = commands.add_parser("run", help="execute notebooks in the terminal, list their claims")
    run.add_argument("notebooks", nargs="*", metavar="NOTEBOOK",
                     help="number, name or path; default: all in notebooks/")
    how = run.add_mutually_exclusive_group()
    how.add_argument("--save", action="store_true",
                     help="store the outputs in the notebooks that ran to the end")
    how.add_argument("--seed-offset", type=_whole, metavar="N",
                     help="use another block of seeds, list every verdict that changed")
    run.set_defaults(action=_run)

    doctor = commands.add_parser("doctor", help="look at this machine, advise on what is missing")
    doctor.set_defaults(action=_doctor)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 good, 1 something failed, 2 bad usage."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")    # a console that cannot show "≈" prints "?"
    top = parser()
    arguments, options = top.parse_known_args(argv)
    if options and arguments.command != "lab":
        top.error(f"unrecognized arguments: {' '.join(options)}")
    try:
        return arguments.action(arguments, options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
