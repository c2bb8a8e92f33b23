"""The text of a PDF for the tests that look at one: without blanks, which readers misplace."""

import io
import re

from pypdf import PdfReader


def squeezed(text):
    """A text as `pages_of` and `text_of` give it."""
    return re.sub(r"\s", "", text)


def pages_of(pdf):
    """The text of each page."""
    return [squeezed(page.extract_text()) for page in PdfReader(io.BytesIO(pdf)).pages]


def text_of(pdf):
    """The text of all pages."""
    return "".join(pages_of(pdf))
