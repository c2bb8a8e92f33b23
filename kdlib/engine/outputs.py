"""The outputs of one cell while it runs, as a notebook stores them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LIMIT = 1_000_000  # characters of each stream, and of each text, that a cell keeps
VIEW = "application/vnd.jupyter.widget-view+json"


class Outputs:
    """Collects the messages of a cell; `nodes` gives what the notebook keeps.

    What a cell prints between two displays becomes one stdout and one stderr, in this order,
    because the order in which the two arrive differs from run to run.

    Args:
        displays: {display id: its outputs}, shared by the cells of a notebook: a display may be
            updated from a later cell.
    """

    def __init__(self, displays: dict[str, list[Any]]) -> None:
        self._displays = displays
        self._clear_next = False
        self._clear()

    def _clear(self) -> None:
        self._found: list[Any] = []
        self._open: dict[str, list[str]] = {}  # what was printed since the last display
        self._size: dict[str, int] = {}

    def take(self, kind: str, content: Mapping[str, Any]) -> None:
        """Take the content of one message; kinds that leave no output are passed over."""
        import nbformat

        if kind == "clear_output":
            self._clear_next = bool(content.get("wait"))
            if not self._clear_next:
                self._clear()
            return
        if kind == "update_display_data":
            for node in self._displays.get(_display_id(content), []):
                node.data, node.metadata = map(nbformat.from_dict, _mimebundle(content))
            return
        if kind not in ("stream", "display_data", "execute_result", "error"):
            return
        if self._clear_next:
            self._clear()
            self._clear_next = False
        if kind == "stream":
            self._print(content["name"], content["text"])
            return
        self._close_streams()
        if kind == "error":
            fields = {name: content[name] for name in ("ename", "evalue", "traceback")}
            self._found.append(nbformat.v4.new_output("error", **fields))
            return
        data, metadata = _mimebundle(content)
        count = {"execution_count": content["execution_count"]} if kind == "execute_result" else {}
        node = nbformat.v4.new_output(kind, data=data, metadata=metadata, **count)
        self._found.append(node)
        if _display_id(content):
            self._displays.setdefault(_display_id(content), []).append(node)

    def _print(self, name: str, text: str) -> None:
        before = self._size.get(name, 0)
        self._size[name] = before + len(text)
        if before < LIMIT:
            self._open.setdefault(name, []).append(text[: LIMIT - before])

    def _close_streams(self) -> None:
        import nbformat

        for name in sorted(self._open, reverse=True):  # stdout, then stderr
            text = rewritten("".join(self._open[name]))
            self._found.append(nbformat.v4.new_output("stream", name=name, text=text))
        self._open = {}

    def nodes(self) -> list[Any]:
        """The outputs so far; a note follows the streams that were cut."""
        for name, size in self._size.items():
            if size > LIMIT:
                self._open.setdefault(name, []).append(_note(size - LIMIT))
                self._size[name] = LIMIT
        self._close_streams()
        return self._found


def rewritten(text: str) -> str:
    """Text as a terminal leaves it: a carriage return begins its line anew."""
    if "\r" not in text:
        return text
    return "\n".join(
        line[line.rfind("\r", 0, len(line) - 1) + 1 :] if line else line
        for line in text.split("\n")
    )


def _note(count: int) -> str:
    return f"\n[{count:,} more characters were not kept]\n"


def _display_id(content: Mapping[str, Any]) -> str:
    return str((content.get("transient") or {}).get("display_id") or "")


def _mimebundle(content: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    data = dict(content["data"])
    # It names, at random, a model in a kernel that is gone: JupyterLab would say that it is not
    # found, and not show the other forms.
    data.pop(VIEW, None)
    text = data.get("text/plain", "")
    if len(text) > LIMIT:
        data["text/plain"] = text[:LIMIT] + _note(len(text) - LIMIT)
    return data, dict(content["metadata"])
