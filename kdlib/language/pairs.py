"""Prompts with their answers: what every text here is made of, and one's own from a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from kdlib import inputs


class Example(NamedTuple):
    """An instruction and an answer to it."""

    prompt: str
    response: str


_LISTED = 10  # bad lines that an error names


def load_pairs(path: str | Path) -> list[Example]:
    """The pairs of a JSON-lines file: an object with `prompt` and `response` on each line.

    UTF-8, with or without a byte order mark; lines end as on any system. Other keys are passed
    over, and so are empty lines. Texts are kept as they are, the spaces around them included.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is no such object, or one of its texts is empty: the error names the
            first ten of these lines with what is wrong. Or the file holds no pair at all.
    """
    file = Path(inputs.instance("path", path, (str, Path)))
    if not file.is_file():
        problem = "that is a folder" if file.is_dir() else "there is no such file"
        raise FileNotFoundError(f"path must be a file of JSON lines, got {str(path)!r}: {problem}")
    content = file.read_bytes()
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError(f"path must be a file in UTF-8, got {str(path)!r} in UTF-16: save it anew")
    found, faults = [], []
    # `splitlines` of bytes ends lines at \n, \r\n and \r alone, that of text within strings too.
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").splitlines(), 1):
        if line.strip():
            try:
                found.append(_pair(line))
            except ValueError as error:
                faults.append(f"  line {number}: {error}")
    if faults:
        listed = "\n".join(faults[:_LISTED])
        more = len(faults) - _LISTED
        listed += f"\n  and {more} more" if more > 0 else ""
        raise ValueError(
            f"path must be a file of JSON lines with prompt and response, got {str(path)!r}: "
            f"correct or delete {len(faults)} of its lines\n{listed}"
        )
    if not found:
        raise ValueError(
            f"path must be a file with at least one pair, got {str(path)!r} with none: write lines "
            'such as {"prompt": "...", "response": "..."}'
        )
    return found


def _pair(line: bytes) -> Example:
    """The pair on a line, or a ValueError that says what is wrong with it."""
    try:
        entry: Any = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start + 1} is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON: {error.msg} at character {error.pos + 1}") from None
    except RecursionError:
        raise ValueError("no JSON: too many brackets within each other") from None
    if not isinstance(entry, dict):
        raise ValueError(f"must be an object with prompt and response, got {type(entry).__name__}")
    for key in Example._fields:
        if key not in entry:
            keys = ", ".join(map(repr, entry)) or "none"
            raise ValueError(f"no {key!r}; its keys are {keys}"[:200])
        text = entry[key]
        if not isinstance(text, str):
            raise ValueError(f"{key} must be a text, got {inputs.describe(text)}")
        if not text.strip():
            raise ValueError(f"{key} is empty")
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise ValueError(f"{key} holds half a character (a lone \\ud800 to \\udfff)")
    return Example(entry["prompt"], entry["response"])
