"""A program of its own: compile one Typst file, in a process that can be stopped.

Reads {"root", "main", "output"} as JSON from its input; writes the PDF, and as JSON what came out:
{"body": page on which the text ends or null, "warnings": [...]} or {"error": ...}.
"""

from __future__ import annotations

import json
import sys
from typing import Any

END = "<body-end>"  # of kdreport.typ


def main() -> None:
    """Compile what the input asks for."""
    job = json.load(sys.stdin)
    import typst

    where: dict[str, Any] = {"root": job["root"], "ignore_system_fonts": True}
    try:
        typst.compile(job["main"], output=job["output"], **where)
        found = json.loads(typst.query(job["main"], END, field="value", **where))
        answer: dict[str, Any] = {"body": found[-1] if found else None}
    except RuntimeError as error:  # TypstError of newer releases is one
        told = getattr(error, "diagnostic", None) or str(error)
        message = getattr(error, "message", None) or told.splitlines()[0].removeprefix("error: ")
        hints = [f"hint: {hint}" for hint in getattr(error, "hints", [])]
        answer = {"error": "\n".join([message, *hints]), "trace": told}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
