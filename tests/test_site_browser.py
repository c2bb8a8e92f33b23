"""The site in a real browser, with the network blocked."""

import pytest
from browser import CHROMIUM, browser

from kdlib import site

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")

PHONE, DESKTOP = 400, 1400
NEXT_TO = ("index.html", "glossary.html", "rules_ru.html", "handbook.html", "source/index.html")
OPEN_FOLDS = "document.querySelectorAll('details').forEach(one => one.open = true)"
FLAT = """[...document.querySelectorAll('main math')].filter(one => {
    const box = one.getBoundingClientRect(); return box.width < 2 || box.height < 5
}).map(one => one.textContent)"""
BROKEN = "[...document.images].filter(one => !one.naturalWidth).map(one => one.src)"
WIDE = "document.documentElement.scrollWidth"
MENU = "getComputedStyle(document.querySelector('.menu')).display"


@pytest.fixture(scope="module")
def folder(site_files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("site") / "out"
    site.write(site_files, folder)
    return folder


@pytest.fixture(scope="module")
def page():
    with browser() as page:
        yield page


def lessons(folder):
    return sorted(path.name for path in folder.glob("0*.html"))


def test_every_page_opens_without_a_network(folder, page):
    found = sorted(folder.rglob("*.html"))
    assert len(found) > 100
    for path in found:
        page.open(path.as_uri())
        assert all(url.startswith(folder.as_uri() + "/") for url in page.requests), page.requests
        assert not page.failures and not page.messages, (path, page.failures, page.messages)
        assert not page.run(BROKEN), path


def test_a_missing_file_and_a_message_would_be_noticed(tmp_path, page):
    path = tmp_path / "bad.html"
    path.write_text("<img src='no.png'><script>console.error('oh')</script>", "utf-8")
    page.open(path.as_uri())
    assert page.failures and any("oh" in text for text in page.messages)
    assert page.run(BROKEN)
    path.write_text("<img src='https://example.org/a.png'>", "utf-8")
    page.open(path.as_uri())
    assert "https://example.org/a.png" in page.requests and page.failures


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_formulas_show_and_nothing_is_wider_than_the_window(width, folder, page):
    for name in [*lessons(folder), *NEXT_TO]:
        page.open((folder / name).as_uri(), width=width)
        page.run(OPEN_FOLDS)
        assert page.run(FLAT) == [], name
        assert page.run(WIDE) <= width, name


def test_formulas_are_drawn_with_the_font_of_the_site(folder, page):
    page.open((folder / lessons(folder)[1]).as_uri())
    loaded = page.run("[...document.fonts].filter(one => one.status == 'loaded').length")
    assert loaded == 1


def test_the_menu_of_a_phone_opens_without_a_script(folder, page):
    page.open((folder / lessons(folder)[0]).as_uri(), width=PHONE)
    assert page.run(MENU) == "none"
    page.run("document.querySelector('header label').click()")
    assert page.run(MENU) == "block"
    page.open((folder / lessons(folder)[0]).as_uri(), width=DESKTOP)
    assert page.run(MENU) == "block"
    assert page.run("document.scripts.length") == 0


def test_an_answer_opens_at_a_click(folder, page):
    page.open((folder / lessons(folder)[0]).as_uri())
    fold = "document.querySelector('.prose details')"
    assert not page.run(f"{fold}.open")
    page.run(f"{fold}.querySelector('summary').click()")
    assert page.run(f"{fold}.open")


def test_dark_and_light_are_readable(folder, page):
    """Text against page: a contrast of 7 (WCAG AAA) or more in both."""
    contrast = """(() => {
        const light = colour => {
            const [r, g, b] = colour.match(/\\d+/g).map(one => one / 255)
                .map(one => one <= .03928 ? one / 12.92 : ((one + .055) / 1.055) ** 2.4)
            return .2126 * r + .7152 * g + .0722 * b }
        const style = getComputedStyle(document.body)
        const [a, b] = [light(style.color), light(style.backgroundColor)].sort((x, y) => y - x)
        return [(a + .05) / (b + .05), light(style.backgroundColor)] })()"""
    pages = []
    for scheme in ("light", "dark"):
        page.call(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": scheme}],
        )
        page.open((folder / "index.html").as_uri())
        ratio, background = page.run(contrast)
        assert ratio > 7
        pages.append(background)
    assert pages[0] > 0.9 and pages[1] < 0.05
