"""Formulas: from TeX to MathML, which browsers draw by themselves."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

# Where browsers draw the converter's MathML poorly: (pattern, what they draw well).
MENDED = (
    # A bar of a given size as the base of an exponent keeps its size only in a row of its own.
    (r'<(msup|msub|msubsup)>(<mo stretchy="true"[^>]*>[^<]*</mo>)', r"<\1><mrow>\2</mrow>"),
    # MathML Core has no menclose: the style sheet draws the frame.
    (r'<menclose notation="box">(.*?)</menclose>', r'<mrow class="boxed">\1</mrow>'),
    # Fonts seldom have an arrow that grows with what stands below it.
    (r"<(munderover|munder|mover)><mo[^>]*>→</mo>", r"<\1><mo>⟶</mo>"),
)


@cache
def _converter() -> Any:
    from math_core import LatexToMathML

    return LatexToMathML(annotation=False, fancy_error=False)


def mathml(tex: str, *, block: bool = False) -> str:
    """A formula as a `<math>` element; a `block` stands on a line of its own.

    Raises:
        ValueError: the converter does not know a command, or the TeX is wrong.
    """
    from math_core import LatexError

    try:
        found = str(_converter().convert_with_local_state(tex, displaystyle=block))
    except LatexError as error:
        raise ValueError(f"the formula {tex.strip()!r} cannot be drawn: {error}") from None
    for pattern, mended in MENDED:
        found = re.sub(pattern, mended, found)
    return found
