"""Figures of a notebook as files beside its page, at the size at which the notebook shows them."""

from __future__ import annotations

import ast
import base64
import io
import re
from typing import Any, NamedTuple

WORTH = 0.9  # a picture is packed again if this saves a tenth
LONGEST = 240  # signs of a sentence in an alt text
SIGNS = {"approx": "≈", "to": "→", "times": "×", "le": "≤", "ge": "≥", "pm": "±", "infty": "∞"}
LABELS = ("title", "suptitle", "xlabel", "ylabel")


class Picture(NamedTuple):
    """A file and how a page shows it, in CSS pixels."""

    file: str
    width: int
    height: int
    alt: str


def packed(png: bytes) -> bytes:
    """The same pixels in fewer bytes, if that saves much."""
    from PIL import Image

    with Image.open(io.BytesIO(png)) as opened:
        image: Image.Image = opened.convert("RGBA")
    if image.getchannel("A").getextrema() == (255, 255):  # nothing shines through
        image = image.convert("RGB")
        colours = image.getcolors(256)
        few = image.quantize(len(colours), dither=Image.Dither.NONE) if colours else image
        image = few if few.convert("RGB").tobytes() == image.tobytes() else image
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    return stream.getvalue() if stream.tell() <= WORTH * len(png) else png


def collect(notebook: Any, folder: str) -> tuple[dict[str, bytes], dict[str, list[Picture]]]:
    """The figures of a notebook; each output gets its `Picture` as metadata, for the template.

    Returns:
        {file: content}, and {cell id: its pictures, in order}.
    """
    files: dict[str, bytes] = {}
    found: dict[str, list[Picture]] = {}
    for number, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" not in data or "text/html" in data:  # HTML is shown instead
                continue
            png = base64.b64decode(data["image/png"])
            beside = found.setdefault(cell.id, [])
            name = f"{folder}/{cell.id}{f'-{len(beside) + 1}' if beside else ''}.png"
            shown = output.get("metadata", {}).get("image/png", {})
            width, height = _size(png)
            width, height = shown.get("width", width), shown.get("height", height)
            alt = shown.get("alt") or cell.metadata.get("alt") or described(notebook.cells, number)
            files[name] = packed(png)
            picture = Picture(name, round(width), round(height), " ".join(alt.split()))
            output.metadata["picture"] = picture._asdict()
            beside.append(picture)
    return files, found


def _size(png: bytes) -> tuple[int, int]:
    from PIL import Image

    with Image.open(io.BytesIO(png)) as image:
        return image.size


def described(cells: list[Any], number: int) -> str:
    """The alt text of a figure that has none of its own.

    The rule: the last heading before the figure, the titles and axis labels that its cell writes,
    and the first sentence of the "Look." that follows within the section. So it says what the
    figure is about, what is drawn, and what is to be seen.
    """
    heading = ""
    for cell in cells[: number + 1]:
        if cell.cell_type == "markdown":
            headings = re.findall(r"^#{1,4} +(.+)$", cell.source, re.MULTILINE)
            heading = headings[-1] if headings else heading
    look = ""
    for cell in cells[number + 1 :]:
        if cell.cell_type == "markdown":
            before = re.split(r"^#{1,4} ", cell.source, maxsplit=1, flags=re.MULTILINE)[0]
            match = re.search(r"\*\*Look\.?\*\* *(.+?[.?])(?=\s|$)", before, re.DOTALL)
            look = plain(match[1]) if match else ""
            break
    drawn = "; ".join(labels(cells[number].source))
    seen = look if len(look) <= LONGEST else ""
    parts = [f"Figure: {plain(heading).rstrip('.?')}.", f"{drawn}." if drawn else "", seen]
    return " ".join(filter(None, parts))


def labels(source: str) -> list[str]:
    """The titles and axis labels that a cell gives to its figure, as far as they are literal."""
    try:
        calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    except SyntaxError:
        return []
    given = [word.value for call in calls for word in call.keywords if word.arg in LABELS]
    for call in calls:
        if isinstance(call.func, ast.Attribute) and call.func.attr.removeprefix("set_") in LABELS:
            given += call.args[:1]
    texts = [one.value for one in given if isinstance(one, ast.Constant)]
    found = [plain(text).rstrip(".") for text in texts if isinstance(text, str)]
    return list(dict.fromkeys(filter(None, found)))


def plain(markdown: str) -> str:
    """Markdown as words: no emphasis, links, code marks; formulas lose their commands."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", markdown)
    for command, sign in SIGNS.items():
        text = re.sub(rf"\\{command}\b", sign, text)
    text = re.sub(r"\\(?:mathrm|text|mathcal|mathbf|tilde|bar|hat)\b|\\[,;! ]", "", text)
    return re.sub(r"[*`$\\{}]|(?<!\w)_|_(?!\w)", "", text).strip()
