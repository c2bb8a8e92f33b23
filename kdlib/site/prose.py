"""Markdown as the site shows it: formulas drawn, links followed, wide tables in a frame."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

from kdlib.site.formulas import mathml
from kdlib.site.links import Links
from kdlib.site.listings import highlighted


class Prose(IPythonRenderer):
    """Renders the Markdown of one text.

    Args:
        links: of the site.
        text: the file that holds the Markdown, relative to the project.
        page: where it is shown.
        names: what code in the text has imported; None: the library by its own names.
    """

    def __init__(
        self, links: Links, text: str, page: str, names: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(escape=False)
        self.links, self.text_file, self.page, self.names = links, text, page, names

    def block_math(self, body: str) -> str:
        return f'<div class="formula">{mathml(body, block=True)}</div>'

    def inline_math(self, body: str) -> str:
        return mathml(body)

    def latex_environment(self, name: str, body: str) -> str:
        return self.block_math(rf"\begin{{{name}}}{body}\end{{{name}}}")

    def heading(self, text: str, level: int, **attrs: Any) -> str:
        return f"<h{level}>{text}</h{level}>\n"

    def table(self, text: str) -> str:
        return f'<div class="wide"><table>\n{text}</table></div>\n'

    def link(self, text: str, url: str, title: str | None = None) -> str:
        address = self.links.resolve(url, text=self.text_file, page=self.page)
        return f'<a href="{html.escape(address)}">{text}</a>'

    def image(self, text: str, url: str, title: str | None = None) -> str:
        address = self.links.picture(url, text=self.text_file, page=self.page)
        return f'<img src="{html.escape(address)}" alt="{html.escape(text)}">'

    def codespan(self, text: str) -> str:
        code = f"<code>{html.escape(text, quote=False)}</code>"
        address = self.links.mention(text, self.page, self.names)
        return f'<a class="name" href="{address}">{code}</a>' if address else code

    def block_code(self, code: str, info: str | None = None) -> str:
        file = {"python": "x.py", "bash": "x.sh"}.get((info or "").strip(), "x.txt")
        lines = "\n".join(highlighted(code.rstrip("\n"), file))
        if file == "x.py":
            lines = self.links.code(lines, self.page, self.names or {})
        return f"<pre><code>{lines}</code></pre>\n"


def rendered(markdown: str, renderer: Prose) -> str:
    """Markdown as HTML.

    Raises:
        ValueError: a formula cannot be drawn or a link leads nowhere.
    """
    return str(MarkdownWithMath(renderer=renderer).render(markdown))
