"""The course as static HTML: every page, link, formula and figure, and the folder they go to."""

import base64
import copy
import io
import posixpath
import re
import subprocess
import sys
from urllib.parse import unquote

import nbformat
import pytest
from bs4 import BeautifulSoup
from PIL import Image

from kdlib import __main__ as cli
from kdlib import site
from kdlib.engine import notebooks
from kdlib.site import building, glossary, lessons, listings, pictures
from kdlib.site.folder import MANIFEST
from kdlib.site.formulas import mathml
from kdlib.site.headings import number_of
from kdlib.site.links import Links, relative, slug
from kdlib.site.prose import Prose, rendered
from kdlib.site.symbols import Place, Symbols, imported

OUTSIDE = re.compile(r"^(?:[a-z]+:)?//")
FORMULA = re.compile(r"\$\$.+?\$\$|\$[^$\n]+?\$", re.DOTALL)


@pytest.fixture(scope="module")
def files(site_files):
    return site_files


@pytest.fixture(scope="module")
def pages(files):
    """{page: its parsed HTML}; the source pages apart from a few, which keeps this quick."""
    kept = [
        name
        for name in files
        if name.endswith(".html") and (name.count("/") < 2 or "losses" in name or "assets" in name)
    ]
    return {name: BeautifulSoup(files[name].decode(), "html.parser") for name in kept}


@pytest.fixture(scope="module")
def course():
    """{page: the notebook that it shows}."""
    return {f"{path.stem}.html": notebooks.read(path) for path in notebooks.find()}


def texts(notebook):
    return [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]


def without_code(text):
    return re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.DOTALL)


# The pages


def test_every_link_leads_somewhere(files):
    ids, found = {}, 0
    for name, content in files.items():
        if name.endswith(".html"):
            ids[name] = re.findall(r'\sid="([^"]*)"', content.decode())
            assert len(ids[name]) == len(set(ids[name])), f"{name}: an id stands twice"
    for name in ids:
        for address in re.findall(r'\s(?:href|src)="([^"]*)"', files[name].decode()):
            if re.match("https?:", address):
                continue
            found += 1
            file, _, anchor = unquote(address).partition("#")
            target = posixpath.normpath(posixpath.join(posixpath.dirname(name), file))
            target = target if file else name
            assert target in files, f"{name}: {address}"
            assert not anchor or anchor in ids[target], f"{name}: {address}"
    assert found > 5000


def test_nothing_is_asked_of_a_network(files):
    for name, content in files.items():
        text = content.decode("utf-8", "replace")
        if name.endswith(".html"):
            soup = [tag for tag in re.findall(r"<[a-z][^>]*>", text) if not tag.startswith("<a ")]
            assert not any(re.search(r"=\"(?:https?:)?//", tag) for tag in soup), name
            assert "<script" not in text and "<iframe" not in text, name
            assert "data:" not in "".join(soup), name
        elif name.endswith(".css"):
            assert re.findall(r"url\(([^)]*)\)", text) == ["math.woff2"]
            assert "@import" not in text and not OUTSIDE.search(text)


def test_every_formula_is_drawn(pages, course):
    total = 0
    for page, notebook in course.items():
        wanted = sum(len(FORMULA.findall(without_code(text))) for text in texts(notebook))
        main = copy.copy(pages[page].find("main"))
        assert len(main.find_all("math")) == wanted, page
        total += wanted
        for tag in main.find_all(["code", "pre"]):
            tag.decompose()
        for text in main.find_all(string=True):
            assert not re.search(r"\\[a-zA-Z]+|\$[^$]+\$", text), (page, text)
        assert not main.find("merror")
    assert total > 300


def test_the_font_has_every_sign_of_the_formulas(files, pages):
    style = files["style.css"].decode()
    ranges = re.search(r"unicode-range:([^;]*);", style)[1]
    covered = set()
    for one in re.findall(r"U\+([0-9A-F]+)(?:-([0-9A-F]+))?", ranges):
        covered |= set(range(int(one[0], 16), int(one[1] or one[0], 16) + 1))
    signs = {sign for page in pages.values() for math in page("math") for sign in math.get_text()}
    assert len(signs) > 80
    assert not {sign for sign in signs if ord(sign) not in covered and not sign.isspace()}


def test_the_index_names_all_notebooks(pages, course):
    index = pages["index.html"]
    cards = index.select(".cards li")
    assert len(cards) == len(course) >= 7
    for card, (page, notebook) in zip(cards, course.items(), strict=True):
        assert card.find("a")["href"] == page
        title = notebook.cells[0].source.partition("\n")[0].removeprefix("# ")
        assert card.h3.get_text() == title
        assert card.p.get_text().endswith("?")
        assert re.search(r"minutes? to read", card.select_one(".time").get_text())
    hero = index.select_one(".hero img")
    assert hero["src"].startswith(f"{next(iter(course)).removesuffix('.html')}/") and hero["alt"]


def test_a_notebook_is_whole(pages, course):
    """Its code, its outputs and its folds, in order; what belongs to a text is folded."""
    for page, notebook in course.items():
        main = pages[page].find("main")
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        hidden = [c for c in code if c.metadata.get("jupyter", {}).get("source_hidden")]
        shown = [pre.get_text() for pre in main.select("pre.cell")]
        assert shown == [c.source.rstrip("\n") for c in code if c not in hidden]
        assert [d.pre.get_text() for d in main.select(".tied")] == [c.source for c in hidden]
        folds = sum(text.count("<details") for text in texts(notebook))
        assert len(main.select(".prose details")) == folds
        assert all(d.find("summary") and not d.has_attr("open") for d in main("details"))
        claims = [v.text for v in notebooks.claims(notebook)]
        assert len(main.select(".claim")) == len(claims)
        tables = main.find_all("table")
        assert tables and all(table.find_parent(class_="wide") for table in tables)
        assert main.find("h1") and len(main("h1")) == 1
        assert all(heading.get("id") for heading in main(["h1", "h2", "h3"]))


def test_the_menu_knows_where_the_reader_is(pages, course):
    for page in course:
        menu = pages[page].select_one(".menu")
        assert [a["href"] for a in menu.select("[aria-current]")] == [page]
        sections = [a["href"][1:] for a in menu.select("ul ul a")]
        assert sections == [h["id"] for h in pages[page].find("main")(["h2", "h3"])]
    first, *_, last = course
    beside = [[a["rel"] for a in pages[page].select(".beside a")] for page in (first, last)]
    assert beside == [[["next"]], [["prev"]]]


def test_figures_have_texts_and_the_size_of_the_notebook(files, pages, course):
    count = 0
    for page, notebook in course.items():
        outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
        drawn = [o for o in outputs if "image/png" in o.get("data", {})]
        images = pages[page].select("figure img")
        assert len(images) == len(drawn)
        for image, output in zip(images, drawn):
            count += 1
            png = base64.b64decode(output.data["image/png"])
            with (
                Image.open(io.BytesIO(png)) as old,
                Image.open(io.BytesIO(files[unquote(image["src"])])) as new,
            ):
                assert old.size == new.size
                assert old.convert("RGBA").tobytes() == new.convert("RGBA").tobytes()
                shown = output.metadata.get("image/png", {})
                size = (shown.get("width", old.width), shown.get("height", old.height))
            assert (int(image["width"]), int(image["height"])) == tuple(map(round, size))
            assert len(image["alt"]) > 15 and not re.search(r"[$\\`]|\*\*", image["alt"])
    assert count > 40


def test_calls_lead_to_the_source(pages):
    page = pages["03_code_walkthrough.html"]
    links = {a.get_text(): a["href"] for a in page.select("pre.cell a")}
    assert links["losses.kd"] == "source/kdlib/losses.py.html#kd"
    assert links["training.fit"] == "source/kdlib/training.py.html#fit"
    assert links["check"] == "source/kdlib/check.py.html#check"
    source = pages["source/kdlib/losses.py.html"].select_one("#kd")
    assert source.get_text().startswith("def kd(")
    handbook = pages["handbook.html"]
    assert handbook.find("a", href="source/kdlib/homework/course.toml.html")
    card = pages["source/kdlib/assets/README.md.html"].find("main")  # Markdown is drawn
    assert card.h1.get_text().startswith("Data card") and card.find("table")


def test_the_rules_are_in_both_languages(pages):
    from kdlib.homework import course

    rules = course.load()
    for language, name in building.RULES.items():
        page = pages[name]
        text = " ".join(page.find("main").get_text(" ").split())
        assert page.html["lang"] == language
        for flag in (*rules.flags.red, *rules.flags.green, rules.grading.passed, rules.title):
            assert flag.of(language) in text
        for homework in rules.homeworks:
            assert homework.topic.of(language) in text
    assert "kdlib lab" in pages["rules_ru.html"].get_text()
    handbook = pages["handbook.html"].find("main")
    assert not handbook.find(id="по-русски") and "Набор к курсу" not in handbook.get_text()
    assert handbook.find("a", string="По-русски")["href"] == "rules_ru.html"


def test_the_handbook_opens_with_the_picture_of_notebook_1(pages, files):
    picture = pages["handbook.html"].find("main").find("img")
    lesson = pages["01_motivation.html"].find("main").find("img")
    assert picture["alt"] and files[picture["src"]] == files[lesson["src"]]


def test_instructors_have_a_page(pages):
    page = pages["instructors.html"].find("main")
    assert {row.td.get_text() for row in page.find_all("tr") if row.td} >= {"reproducibility"}
    assert page.find("a", href="handbook.html") and page.find("a", href="07_team_homework.html")
    assert pages["index.html"].find("main").find("a", href="instructors.html")


def test_the_size(files, monkeypatch):
    assert sum(map(len, files.values())) < building.LIMIT == 15_000_000
    monkeypatch.setattr(building, "_Site", lambda folder: Small())
    monkeypatch.setattr(building, "LIMIT", 1000)
    with pytest.raises(ValueError, match=r"would have 0.2 MB, more than 0: .*math.woff2"):
        site.build()


class Small:
    def files(self):
        return {"index.html": b"small"}


# The glossary


def test_terms_are_where_the_glossary_says(course):
    """Each named section is there and speaks of the term."""
    spoken = {}
    for page, notebook in course.items():
        number, section = int(page[:2]), ""
        for line in "\n".join(texts(notebook)).split("\n"):
            heading = re.match(r"#{2,4} (.+)", line)
            section = number_of(heading[1]) or section if heading else section
            spoken[number, section] = spoken.get((number, section), "") + line + "\n"
    terms = glossary.load()
    wrong = [
        f"{term.name.en}: notebook {term.notebook}, section {term.section or '(opening)'}"
        for term in terms
        if not glossary.matcher([term])[0].search(spoken.get((term.notebook, term.section), ""))
    ]
    assert not wrong, "mend kdlib/site/glossary.toml:\n" + "\n".join(wrong)


def test_terms_are_bilingual_and_told_apart():
    terms = glossary.load()
    assert 30 <= len(terms) <= 60
    english = [s.lower() for t in terms for s in {t.name.en.lower(), *map(str.lower, t.spellings)}]
    assert len(set(english)) == len(english) and len({t.anchor for t in terms}) == len(terms)
    for term in terms:
        assert term.means.en.endswith(".") and term.means.ru.endswith(".")
        assert not re.search("[а-я]", term.means.en) and re.search("[а-яё]", term.means.ru)
        assert "<math" in mathml(term.symbol or "x")
    names = {term.name.ru for term in terms}
    assert {"дистилляция знаний", "учитель", "ученик", "температура", "логиты"} <= names


def test_terms_are_linked_at_their_first_use(pages, course):
    linked = set()
    for page in course:
        links = pages[page].select("a.term")
        targets = [a["href"] for a in links]
        assert len(set(targets)) == len(targets), page
        assert all(a["title"] and not a.find_parent(["pre", "a", "h2"]) for a in links)
        linked |= set(targets)
    known = {f"{glossary.PAGE}#{term.anchor}" for term in glossary.load()}
    assert linked <= known and len(linked) > 0.8 * len(known)


def test_a_term_is_a_word_of_its_own():
    terms = [term for term in glossary.load() if term.name.en in ("hint", "seed", "CKA", "logits")]
    soup = BeautifulSoup(
        "<p>Seeds of a reseed, <code>seed</code>, hinting, cka, CKA. A seed.</p><h2>seed</h2>"
        "<pre>logits</pre><details><p>logits</p></details>", "html.parser"
    )  # fmt: skip
    glossary.link(soup, terms, "g.html")
    assert [a.get_text() for a in soup("a")] == ["Seeds", "CKA"]


# What can go wrong


@pytest.fixture
def kit(tmp_path):
    """kit(first="...", code="x = 1") makes a kit of one notebook and returns its folder."""

    def make(first="# 1. A\n\n**Question.** Why?\n\n**Time.** 1 minute.", code="1", run=True):
        folder = tmp_path / "notebooks"
        folder.mkdir(exist_ok=True)
        cells = [nbformat.v4.new_markdown_cell(first, id="title")]
        cells.append(nbformat.v4.new_code_cell(code, id="one", execution_count=1 if run else None))
        nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "01_a.ipynb")
        return folder

    return make


OPENING = "# 1. A\n\n**Question.** Why?\n\n**Time.** 1 minute.\n\n"


@pytest.mark.parametrize(
    "given, message",
    [
        (dict(run=False), "cell 'one' has not run: execute the notebook with .* run --save 01_a"),
        (dict(first="# A"), "01_a.ipynb: the first cell lacks a title"),
        (dict(first="# 1. A"), r"the first cell lacks '\*\*Question"),
        (dict(first="# 1. A\n\n**Question.** Why?"), r"the first cell lacks '\*\*Time"),
        (dict(first=OPENING + "[2](02_b.ipynb)"), "links to '02_b.ipynb', but there is no note"),
        (dict(first=OPENING + r"$\nonsense{x}$"), r"01_a.ipynb: the formula '\\\\nonsense\{x\}'"),
        (dict(first=OPENING + r"$$\frac{1}{$$"), "the formula .* cannot be drawn"),
    ],
)
def test_a_bad_notebook_is_named(given, message, kit):
    with pytest.raises(ValueError, match=message):
        site.build(kit(**given))


def test_no_notebooks(tmp_path):
    with pytest.raises(ValueError, match="no notebooks in .*get a copy of the whole kit"):
        site.build(tmp_path)


def test_a_glossary_of_other_notebooks(kit):
    with pytest.raises(ValueError, match="is introduced in notebook .* which is not there"):
        site.build(kit())


FOREIGN = [
    lambda folder: folder.write_text("a file", "utf-8"),
    lambda folder: (folder.mkdir(), (folder / "thesis.tex").write_text("mine", "utf-8")),
    lambda folder: (folder.mkdir(), (folder / MANIFEST).write_text('["../thesis.tex"]', "utf-8")),
    lambda folder: (folder.mkdir(), (folder / MANIFEST).write_text("{}", "utf-8")),
    lambda folder: folder.symlink_to("nowhere"),
]


@pytest.mark.parametrize("make", FOREIGN)
def test_a_folder_that_is_not_ours_is_left_alone(make, tmp_path, capsys):
    folder = tmp_path / "out"
    make(folder)
    before = sorted(tmp_path.rglob("*"))
    assert cli.main(["site", "--out", str(folder)]) == 2
    said = capsys.readouterr().err
    assert "is not a folder that `site` made, so nothing was written: choose another" in said
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_cannot_be_written(tmp_path, capsys, monkeypatch):
    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("kdlib.engine.files.tempfile.NamedTemporaryFile", refuse)
    assert cli.main(["site", "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "Permission denied; nothing was overwritten" in said and str(tmp_path) in said


def test_the_folder_holds_what_the_last_run_wrote(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()  # an empty one is as good as a new one
    assert site.write({"a.html": b"1", "deep/er/b.png": b"2", "c": b"3"}, folder) == 3
    (folder / "notes.txt").write_text("mine", "utf-8")
    old = (folder / "a.html").stat().st_mtime_ns
    assert site.write({"a.html": b"1", "c": b"new"}, folder) == 2
    left = sorted(path.name for path in folder.iterdir())
    assert left == [MANIFEST, "a.html", "c", "notes.txt"]
    assert (folder / "a.html").stat().st_mtime_ns == old
    assert (folder / "c").read_bytes() == b"new"


def test_an_interrupted_run_leaves_a_folder_that_the_next_one_knows(tmp_path, monkeypatch):
    folder, write = tmp_path / "out", site.folder.write_atomically

    def full(path, content):
        if path.name == "b":
            raise OSError(28, "No space left on device")
        return write(path, content)

    monkeypatch.setattr("kdlib.site.folder.write_atomically", full)
    with pytest.raises(OSError, match="No space"):
        site.write({"a": b"1", "b": b"2"}, folder)
    monkeypatch.undo()
    assert site.write({"b": b"2"}, folder) == 2
    assert not (folder / "a").exists() and (folder / "b").read_bytes() == b"2"


def test_a_second_run_changes_no_byte(files, tmp_path, root):
    """In another process, with another hash seed, from another folder."""
    folder = tmp_path / "out"
    site.write(files, folder)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    line = [sys.executable, "-m", "kdlib", "site", "--out", "out"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^out: \d+ pages, \d+\.\d MB of at most 15$", done.stdout, re.M)
    assert f"  0 of {len(files)} files written" in done.stdout
    assert f"  open {(folder / 'index.html').as_uri()}" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


# The parts


def test_headings_get_the_ids_that_links_of_notebooks_mean():
    assert slug("1.1 The task") == slug("1.1-The-task") == "1-1-the-task"
    assert slug("★★★") == "section" and number_of("2.1 Into one") == "2.1"
    assert number_of("3. Features") == "3" and number_of("2015: one") == ""


def test_addresses():
    assert relative("a.html#x", "a.html") == "a.html#x"
    assert relative("style.css", "source/kdlib/losses.py.html") == "../../style.css"
    assert relative("source/a b.html#Ab.c", "index.html") == "source/a%20b.html#Ab.c"


@pytest.fixture(scope="module")
def links(root):
    pages = {"notebooks/01_a.ipynb": "01_a.html", "README.md": "handbook.html"}
    return Links(root, pages, Symbols(root / "kdlib"))


def test_symbols(links):
    symbols = links.symbols
    assert symbols.find("losses.kd") == Place("kdlib/losses.py", "kd")
    assert symbols.find("kdlib.losses") == Place("kdlib/losses.py", "")
    assert symbols.find("distillers.register") == Place("kdlib/distillers/base.py", "register")
    assert symbols.find("evidence.Family.claim").name == "Family.claim"
    assert symbols.find("losses.nothing") is None and symbols.find("torch.nn") is None
    names = imported(["%magic", "from kdlib import losses as L\nfrom kdlib.check import check"])
    assert symbols.find("L.kd", names) == Place("kdlib/losses.py", "kd")
    assert symbols.find("check", names) == Place("kdlib/check.py", "check")
    assert symbols.find("losses.kd", names) is None
    assert symbols.file("engine/loop") == Place("kdlib/engine/loop.py", "")


def test_code_is_linked_outside_of_texts(links):
    names = {"losses": "kdlib.losses", "check": "kdlib.check.check"}
    code = "\n".join(listings.highlighted('x = losses.kd  # losses.kd\ny = "losses.kd"', "a.py"))
    linked = links.code(code, "p.html", names)
    assert linked.count("<a ") == 1 and linked.startswith('x = <a href="source/')
    assert links.code("check(1) + my.check + check", "p.html", names).count("<a ") == 1


def test_prose(links):
    def html(text, page="01_a.html"):
        return rendered(text, Prose(links, "notebooks/01_a.ipynb", page))

    assert 'href="01_a.html#1-1-x"' in html("[x](01_a.ipynb#1.1-X)")
    assert 'href="handbook.html"' in html("[x](../README.md)")
    assert 'href="https://a.b/c?d=1&amp;e"' in html("[x](https://a.b/c?d=1&e)")
    assert 'href="source/LICENSE.html"' in html("[x](../LICENSE)")
    assert '<a class="name" href="source/kdlib/losses.py.html#kd"><code>' in html("`losses.kd(s)`")
    assert "<a" not in html("`losses` and `x.y` and `a < b` and `kd`")
    assert html("a $x<1$ `$y$` b").count("<math") == 1
    assert '<div class="formula"><math display="block">' in html("$$\nx\n$$")
    assert '<div class="wide"><table>' in html("| a |\n|---|\n| $x$ |")
    with pytest.raises(ValueError, match="links to 'gone.md', but there is no notebooks/gone.md"):
        html("[x](gone.md)")


def test_formulas():
    assert 'class="boxed"' in mathml(r"\boxed{a}") and "⟶" in mathml(r"\xrightarrow[T]{}")
    assert "<msup><mrow><mo" in mathml(r"\big\|a\big\|^2")
    assert 'display="block"' in mathml("x", block=True) and "display" not in mathml("x")


def picture(colour=None, size=(64, 48)):
    image = Image.new("RGBA", size, colour or (255, 255, 255, 255))
    if colour is None:
        image.putdata([(i * 7 % 256, i * 13 % 256, i % 256, 255) for i in range(size[0] * size[1])])
    stream = io.BytesIO()
    image.save(stream, "PNG", compress_level=0)
    return stream.getvalue()


@pytest.mark.parametrize("colour", [None, (9, 8, 7, 255), (9, 8, 7, 100)])
def test_a_picture_is_packed_without_loss(colour):
    png = picture(colour)
    small = pictures.packed(png)
    assert len(small) < len(png)
    with Image.open(io.BytesIO(png)) as old, Image.open(io.BytesIO(small)) as new:
        assert old.convert("RGBA").tobytes() == new.convert("RGBA").tobytes()
    assert pictures.packed(small) == small


def test_texts_of_figures():
    def cell(kind, source="", **metadata):
        new = nbformat.v4.new_code_cell if kind == "code" else nbformat.v4.new_markdown_cell
        return new(source, id=f"c{len(cells)}", metadata=metadata)

    def figure(shown=None, **metadata):
        data = {"image/png": base64.b64encode(picture()).decode()}
        made = cell("code", **metadata)
        made.outputs = [nbformat.v4.new_output("display_data", data, metadata=shown or {})]
        return made

    cells = []
    cells.append(cell("text", "# 1. A\n\n## 2.1 Why $T^2$?\n\n**Predict.** Guess."))
    cells.append(figure())
    cells.append(cell("code"))
    cells.append(cell("text", "**Look.** The *blue* line `kd` rises. More."))
    cells.append(figure(alt="Own text\nof the cell"))
    cells.append(figure({"image/png": {"width": 32, "height": 24, "alt": "Its own"}}))
    cells.append(cell("text", "### 2.2 Next\n\n**Look.** Another figure."))
    notebook = nbformat.v4.new_notebook(cells=cells)
    files, found = pictures.collect(notebook, "01_a")
    drawn = 'axes.set(xlabel="T", title=f"{x}")\naxes.set_ylabel("loss, nats")\nfig.suptitle("T")'
    assert pictures.labels(drawn) == ["T", "loss, nats"] and pictures.labels("%magic") == []
    assert pictures.plain(r"$e^{-6} \approx 0.002$, `a_b`, *so*") == "e^-6 ≈ 0.002, a_b, so"
    first, second, third = (one[0] for one in found.values())
    assert first == ("01_a/c1.png", 64, 48, "Figure: 2.1 Why T^2. The blue line kd rises.")
    assert second.alt == "Own text of the cell"
    assert third[1:] == (32, 24, "Its own") and list(files) == [
        one[0].file for one in found.values()
    ]


def test_a_widget_shows_its_still_picture(kit):
    data = {
        "application/vnd.jupyter.widget-view+json": {"model_id": "x"},
        "image/png": base64.b64encode(picture()).decode(),
        "text/plain": "Widget()",
    }
    path = kit() / "01_a.ipynb"
    notebook = nbformat.read(path, 4)
    notebook.cells[1].outputs = [nbformat.v4.new_output("display_data", data)]
    nbformat.write(notebook, path)
    lesson = lessons.read(path)
    lessons.render(lesson, Links(path.parents[1], {}, Symbols(path.parents[1])), ())
    assert lesson.body.count("<img") == 1 and "Widget()" not in lesson.body
