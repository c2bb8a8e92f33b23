"""The widgets in a real browser: their numbers against torch, their movements, the network blocked.

Where they are shown alone, a page stands in for the notebook; the last tests are in JupyterLab.
"""

import base64
import json
import math
import os
import subprocess
from functools import partial

import nbformat
import pytest
import torch
from browser import CHROMIUM, browser, printed
from torch.nn import functional as F

from kdlib import data, losses, models, widgets
from kdlib.commands.lab import command, is_root, server_environment
from kdlib.engine import kernels, notebooks
from kdlib.stages import predict
from kdlib.training import build, trained
from kdlib.widgets.moving import FOLDER, program
from kdlib.widgets.pulling import log_normal

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")

# A page that shows one widget as anywidget does: `render` gets a model and an element.
START = """(async () => {
    const source = %s, style = %s, sent = %s
    const revive = value => {
        if (Array.isArray(value)) return value.map(revive)
        if (!value || typeof value != 'object') return value
        if ('$bytes' in value) {
            const all = Uint8Array.from(atob(value.$bytes), one => one.charCodeAt(0))
            const odd = new Uint8Array(all.length + 1)      // a view need not start at a word
            odd.set(all, 1)
            return new DataView(odd.buffer, 1) }
        return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, revive(v)])) }
    const url = URL.createObjectURL(new Blob([source], {type: 'text/javascript'}))
    window.widget = await import(url)
    window.data = revive(sent)
    document.head.append(Object.assign(document.createElement('style'), {textContent: style}))
    const el = document.body.appendChild(document.createElement('div'))
    window.widget.default.render({model: {get: name => window[name]}, el})
    return true })()"""


def sent(value):
    """What the program gets, as JSON."""
    if isinstance(value, bytes):
        return {"$bytes": base64.b64encode(value).decode()}
    if isinstance(value, dict):
        return {key: sent(one) for key, one in value.items()}
    return [sent(one) for one in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def page():
    with browser() as page:
        yield page


@pytest.fixture
def shown(page, tmp_path):
    """shown(moving) renders a widget alone on a page, and returns the page."""

    def show(moving, dark=False):
        path = tmp_path / "page.html"
        path.write_text(
            "<!doctype html><meta charset=utf-8><meta name=color-scheme content='light dark'>",
            "utf-8",
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        page.call("Emulation.setEmulatedMedia", features=[scheme])
        page.open(path.as_uri(), width=900)
        css = (FOLDER / "style.css").read_text("utf-8")
        parts = (program(moving.name), css, sent(moving.data))
        page.run(START % tuple(map(json.dumps, parts)))
        return page

    yield show
    assert not page.messages and not page.failures, (page.messages, page.failures)
    assert all(url.startswith(("file:", "blob:")) for url in page.requests), page.requests


def text(page, selector):
    return page.run(f"document.querySelector({selector!r}).textContent")


def focus(page, selector):
    page.run(f"document.querySelector({selector!r}).focus()")


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


# Temperature and alpha


@pytest.fixture(scope="module")
def softening():
    image = torch.rand(1, 28, 28, generator=torch.Generator().manual_seed(0))
    return widgets.soften(image, 4 * normal(10, seed=1), 3, student=normal(10, seed=2))


@pytest.mark.parametrize("T, alpha", [(1.0, 0.0), (1.0, 0.3), (4.0, 0.9), (32.0, 1.0)])
def test_the_soft_target_and_its_pull_are_those_of_torch(T, alpha, softening, shown):
    page = shown(softening)
    z_t, z_s = (torch.tensor(softening.data[who]).double() for who in ("logits", "student"))
    call = f"(data.logits, data.label, {T}, {alpha})"
    soft = F.softmax(z_t / T, 0)
    mixed = alpha * soft + (1 - alpha) * F.one_hot(torch.tensor(3), 10).double()
    assert page.run(f"widget.mixed{call}") == pytest.approx(mixed.tolist(), abs=1e-12)

    student = z_s[None].requires_grad_()
    parts = {"labels": (1 - alpha) * F.cross_entropy(student, torch.tensor([3])),
             "squared": alpha * losses.kd(student, z_t[None], temperature=T)}  # fmt: skip
    parts["plain"] = parts["squared"] / T**2
    wanted = {name: torch.autograd.grad(part, student, retain_graph=True)[0].norm().item()
              for name, part in parts.items()}  # fmt: skip
    found = page.run(f"widget.pulls(data.logits, data.student, data.label, {T}, {alpha})")
    assert found == pytest.approx(wanted, abs=1e-9)
    share = page.run(f"widget.meant({T}, {alpha})")  # the same loss with T², up to a factor
    forgotten, right = parts["labels"] + parts["plain"], losses.kd(student, z_t[None], T)
    meant = (1 - share) * F.cross_entropy(student, torch.tensor([3])) + share * right
    factor = 1 - alpha + alpha / T**2
    assert forgotten.item() == pytest.approx(factor * meant.item())


def test_the_sliders_of_temperature_and_alpha_obey_the_keyboard(softening, shown):
    page = shown(softening)
    bars = "[...document.querySelectorAll('rect.soft')].map(one => +one.getAttribute('height'))"
    before = page.run(bars)
    focus(page, "input[type=range]")
    page.press("End")
    assert text(page, ".slider output") == "T = 32.0"
    flat = page.run(bars)
    assert max(flat) - min(flat) < max(before) - min(before)
    page.press("Tab", "End")
    assert page.run("document.activeElement.getAttribute('aria-valuetext')") == "α = 1.00"
    assert "α′ = 1.000" in text(page, "output[aria-live]")


# A drawn digit


@pytest.fixture(scope="module")
def digits():
    return data.load("mnist-5k")


@pytest.fixture(scope="module")
def networks(digits):
    few = digits.train.take(slice(None, 1500))
    recipe = dict(seed=0, epochs=4, lr=5e-3)
    wide = partial(models.MLP, (400, 400), dropout=0.3)
    made = {
        "wide": wide,
        "pocket": partial(models.MLP, (32, 32)),
        "linear": partial(models.MLP, ()),
    }
    return {name: trained(build(one, 0), few, **recipe) for name, one in made.items()}


@pytest.fixture(scope="module")
def drawing(networks, digits):
    return widgets.draw(networks, digits.test.images[:40])


ANSWERS = """data.networks.map(({layers}) => data.examples.map(view => {
    const bytes = new Uint8Array(view.buffer, view.byteOffset, view.byteLength)
    const pixels = Float32Array.from(bytes, value => value / 255)
    return widget.softmax(widget.answer(widget.unpacked(layers), pixels)) }))"""


def test_the_networks_answer_as_in_torch(drawing, networks, digits, shown):
    found = torch.tensor(shown(drawing).run(ANSWERS))  # [networks, images, classes]
    for answers, network in zip(found, networks.values()):
        wanted = predict(network, digits.test.images[:40]).softmax(1)
        assert torch.equal(answers.argmax(1), wanted.argmax(1))
        assert (answers - wanted).abs().max() < 1e-4
    assert len(set(found[0].argmax(1).tolist())) > 5


def test_a_drawing_is_centred_and_scaled_like_the_digits_of_mnist(drawing, digits, shown):
    """A digit of MNIST, drawn large and anywhere, comes back as it was."""
    page = shown(drawing)
    script = """data.examples.map(view => {
        const ink = new Float32Array(280 * 280)
        for (let y = 0; y < 224; y++) for (let x = 0; x < 224; x++) {
            const at = Math.floor(y / 8) * 28 + Math.floor(x / 8)
            ink[(y + 5) * 280 + x + 50] = view.getUint8(at) / 255 }
        return [...widget.centred(ink, 280)] })"""
    found = torch.tensor(page.run(script)).view(40, 1, 28, 28)
    assert (found - digits.test.images[:40]).abs().max() < 1e-5
    assert page.run("Math.max(...widget.centred(new Float32Array(280 * 280), 280))") == 0


SAID = "[...document.querySelectorAll('.answer')].map(one => one.textContent)"


def test_a_digit_is_drawn_by_mouse_and_by_keyboard(drawing, shown):
    page = shown(drawing)
    first = page.run(SAID)
    page.run("[...document.querySelectorAll('button')].find(b => b.textContent == 'Clear').click()")
    assert page.run(SAID) == ["–"] * 3
    left, top = page.run(
        "(({left, top}) => [left, top])(document.querySelector('.pad').getBoundingClientRect())"
    )
    page.drag(*((left + 112, top + 30 + 8 * step) for step in range(20)))
    by_mouse = page.run(SAID)
    assert by_mouse[0] == "1" and all(one.isdecimal() for one in by_mouse)
    focus(page, ".pad")
    page.press("Delete")
    assert page.run(SAID) == ["–"] * 3
    page.press(*["ArrowUp"] * 9, " ", *["ArrowDown"] * 18)
    assert page.run(SAID)[0] == "1"
    page.run("document.querySelector('button.thumb').click()")
    assert page.run(SAID) == first


# Forward and reverse KL


@pytest.fixture(scope="module")
def pulling():
    return widgets.pull((0.6, 0.4), (-2.0, 3.0), (0.8, 0.5))


@pytest.mark.parametrize(
    "mean, width", [(1.0, 1.5), (-2.0, 0.8), (0.0, 2.55), (3.0, 0.5), (-4, 0.3)]
)
def test_divergences_and_gradients_are_those_of_torch(mean, width, pulling, shown):
    found = shown(pulling).run(f"widget.divergences(widget.mixture(data), {mean}, {width})")
    x = torch.linspace(-30, 30, 60001, dtype=torch.float64)
    theta = torch.tensor([mean, math.log(width)], dtype=torch.float64, requires_grad=True)
    log_p = torch.logaddexp(
        math.log(0.6) + log_normal(x, -2.0, 0.8), math.log(0.4) + log_normal(x, 3.0, 0.5)
    )
    log_q = log_normal(x, theta[0], theta[1].exp())
    for kind, first, second in (("forward", log_p, log_q), ("reverse", log_q, log_p)):
        value = (first.exp() * (first - second)).sum() * (x[1] - x[0])
        gradient = torch.autograd.grad(value, theta, retain_graph=True)[0]
        assert found[kind]["value"] == pytest.approx(value.item(), abs=1e-6)
        assert found[kind]["gradient"] == pytest.approx(gradient.tolist(), abs=1e-5)


def numbers(page):
    """Mean and width as the sliders show them."""
    texts = "[...document.querySelectorAll('.slider output')].map(one => one.textContent)"
    return [float(one) for one in page.run(texts)]


def press_button(page, label):
    page.run(
        f"[...document.querySelectorAll('button')].find(b => b.textContent == {label!r}).click()"
    )


SETTLED = """/mean .0.00, log width .0.00/
    .test(document.querySelector('[data-kind=%s]').textContent)"""


@pytest.mark.parametrize("calm", [False, True])
def test_forward_covers_both_bumps_and_reverse_seeks_one(calm, pulling, shown):
    page = shown(pulling)
    if calm:  # a reader who wants no motion gets the end at once
        page.call("Emulation.setEmulatedMedia",
                  features=[{"name": "prefers-reduced-motion", "value": "reduce"}])  # fmt: skip
    press_button(page, "Descend forward KL")
    page.wait(SETTLED % "forward")
    mean, width = numbers(page)
    assert abs(mean) < 0.1 and width == pytest.approx(math.sqrt(6.484), abs=0.05)
    press_button(page, "Descend reverse KL")
    page.wait(SETTLED % "reverse")
    end = numbers(page)
    assert min(math.dist(end, one) for one in ((-2, 0.8), (3, 0.5))) < 0.1


def test_the_peak_is_dragged_and_the_sliders_follow(pulling, shown):
    page = shown(pulling)
    x, y = page.run("""(({left, top, width}) => [left + width / 2, top + width / 2])(
        document.querySelector('.handle').getBoundingClientRect())""")
    mean, width = numbers(page)
    page.drag((x, y), (x + 40, y - 20), (x + 80, y - 40))
    moved = numbers(page)
    assert moved[0] > mean + 0.5 and moved[1] < width - 0.1
    focus(page, ".slider input")
    page.press("ArrowLeft", "ArrowLeft")
    assert numbers(page)[0] == pytest.approx(moved[0] - 0.02, abs=0.011)


# A training as a film


@pytest.fixture(scope="module")
def scrubbing():
    edge = torch.linspace(-3, 3, 41)
    plane = torch.cartesian_prod(edge, edge)[:, :, None, None]
    made = partial(models.MLP, (16,), in_features=2, num_classes=2)
    points = normal(200, 2, seed=3).float()
    split = data.Split(points[:, :, None, None], (points.norm(dim=1) > 1.2).long())
    few = split.take(slice(None, 30))
    recipe = dict(lr=2e-2, batch_size=200)
    teacher = trained(build(made, 0), split, epochs=150, **recipe)
    lessons = {"Ind": {}, "KL": dict(method="kd", teacher=teacher, alpha=1.0)}
    films = {
        name: widgets.film(build(made, 1), few, plane, frames=12, epochs=150, **recipe, **lesson)
        for name, lesson in lessons.items()
    }
    return films, teacher, plane, widgets.scrub(films, teacher, plane, few)


def test_the_share_that_differs_is_that_of_torch(scrubbing, shown):
    films, teacher, plane, moving = scrubbing
    page = shown(moving)
    border = predict(teacher, plane).softmax(1)[:, 1]
    script = """data.students.map(({frames}) => data.steps.map((_, i) => widget.differs(
        new Uint8Array(frames.buffer, frames.byteOffset + 1681 * i, 1681),
        new Uint8Array(data.teacher.buffer, data.teacher.byteOffset, 1681))))"""
    for found, film in zip(page.run(script), films.values()):
        wanted = 100 * ((film.frames > 0.5) != (border > 0.5)).double().mean(1)
        assert found == pytest.approx(wanted.tolist(), abs=0.3)  # a point on the line itself


def test_a_contour_is_where_a_function_passes_one_half(shown, scrubbing):
    """Of x + 2y on a grid of 5 x 5: each point of the path lies on the line x + 2y = 6."""
    page = shown(scrubbing[-1])
    cells = [round(127.5 + 10 * (x + 2 * y - 6) + 0.01) for x in range(5) for y in range(5)]
    path = page.run(f"widget.contour(Uint8Array.from({cells}), 5, 400)")
    assert path.count("M") == 1 and path.count("L") >= 4  # one line, in one piece
    points = [tuple(map(float, one.split())) for one in path[1:].split("L")]
    assert all(abs(x / 100 + 2 * (400 - y) / 100 - 6) < 0.1 for x, y in points)
    ring = [255 * (x == y == 2) for x in range(5) for y in range(5)]
    path = page.run(f"widget.contour(Uint8Array.from({ring}), 5, 400)")
    ends = path[1:].split("L")
    assert path.count("M") == 1 and len(ends) == 5 and ends[0] == ends[-1]
    assert page.run("widget.contour(new Uint8Array(25), 5, 400)") == ""


def test_the_slider_scrubs_and_the_button_plays(scrubbing, shown):
    films, *_, moving = scrubbing
    page = shown(moving)
    lines = (
        "[...document.querySelectorAll('figure path:not(.teacher)')].map(p => p.getAttribute('d'))"
    )
    start = page.run(lines)
    focus(page, "input[type=range]")
    page.press("End")
    end = page.run(lines)
    assert text(page, ".slider output") == f"step {films['KL'].steps[-1]}"
    assert all(one != other for one, other in zip(start, end))
    press_button(page, "Play")  # from the end it begins anew
    assert page.run(lines) == start
    page.wait("document.querySelector('.slider output').textContent != 'step 0'")
    page.wait(
        f"document.querySelector('.slider output').textContent == 'step {films['KL'].steps[-1]}'"
    )
    assert page.run(lines) == end
    page.wait("[...document.querySelectorAll('button')].some(b => b.textContent == 'Play')")


# All of them


CONTRAST = """(() => {
    const light = colour => {
        const [r, g, b] = colour.match(/[\\d.]+/g).map(one => one / 255)
            .map(one => one <= .03928 ? one / 12.92 : ((one + .055) / 1.055) ** 2.4)
        return .2126 * r + .7152 * g + .0722 * b }
    const style = getComputedStyle(document.querySelector('.kdlib-moving'))
    const [a, b] = [light(style.color), light(style.backgroundColor)].sort((x, y) => y - x)
    return [(a + .05) / (b + .05), light(style.backgroundColor)] })()"""
NAMELESS = """[...document.querySelectorAll('input, button, [tabindex], [role]')]
    .filter(one => !(one.labels?.length || one.ariaLabel || one.textContent.trim()))
    .map(one => one.outerHTML)"""


@pytest.mark.parametrize("which", ["softening", "drawing", "pulling", "scrubbing"])
def test_names_themes_and_width(which, request, shown, pytestconfig):
    moving = request.getfixturevalue(which)
    moving = moving[-1] if isinstance(moving, tuple) else moving
    grounds = []
    for dark in (False, True):
        page = shown(moving, dark)
        assert page.run(NAMELESS) == []
        assert page.run("document.documentElement.scrollWidth") <= 900
        assert "it needs no kernel" in text(page, ".caption")
        ratio, ground = page.run(CONTRAST)
        assert ratio > 7
        grounds.append(ground)
    assert grounds[0] > 0.9 and grounds[1] < 0.1


# In JupyterLab

CELLS = """import torch
from kdlib import data, models, show, widgets
from kdlib.training import build
image = torch.linspace(0, 1, 784).view(1, 28, 28)
widgets.soften(image, torch.arange(10.0), 3)
---
widgets.draw({"a network": build(lambda: models.MLP((8,)), 0)}, image[None])
---
widgets.pull((0.6, 0.4), (-2.0, 3.0), (0.8, 0.5))
---
edge = torch.linspace(-2, 2, 15)
plane = torch.cartesian_prod(edge, edge)[:, :, None, None]
points = data.Split(plane[::9], (plane[::9, 0, 0, 0] > 0).long())
planar = build(lambda: models.MLP((8,), in_features=2, num_classes=2), 0)
films = {"Ind": widgets.film(planar, points, plane, frames=6, epochs=30, lr=2e-2)}
widgets.scrub(films, planar, plane, points)"""
MOVING = "document.querySelectorAll('.kdlib-moving .caption').length"
PICTURES = """[...document.querySelectorAll('.jp-RenderedImage img')]
    .filter(one => one.naturalWidth > 300).length"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of a server as `kdlib lab` starts it, with its token, and its folder."""
    folder = tmp_path_factory.mktemp("lab") / "mine"
    folder.mkdir()
    sources = CELLS.split("---\n")
    made = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(one, id=f"c{i}") for i, one in enumerate(sources)]
    )
    notebooks.save(made, folder / "fresh.ipynb")
    assert not kernels.execute(made, folder).failures
    notebooks.save(made, folder / "stored.ipynb")
    options = ["--no-browser", "--LabApp.expose_app_in_browser=True", "--ip=127.0.0.1"]
    options += [f"--LabApp.workspaces_dir={folder.parent / 'workspaces'}"]  # no tabs of another day
    line = command(options, root=is_root(), display=False, folder=folder, first="fresh.ipynb")
    process = subprocess.Popen(
        line, text=True, env={**os.environ, **server_environment()},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        found, _ = printed(process, r"(http://127[\d.:]+)/lab\S*(\?token=\w+)")
        yield found[1], found[2], folder
    finally:
        process.terminate()
        process.communicate(timeout=30)


def in_lab(page, lab, name):
    """Open a notebook in JupyterLab and wait for its kernel."""
    address, token, _ = lab
    page.open(f"{address}/lab/tree/mine/{name}{token}&reset", width=1200, height=3200)
    page.wait("!!window.jupyterapp?.shell.currentWidget?.content?.widgets?.length", 120)
    page.wait(
        "jupyterapp.shell.currentWidget.sessionContext.session?.kernel?.status == 'idle'", 120
    )


def local(page, lab):
    """What the page asked of anything but the server, and what went wrong."""
    ours = (lab[0], lab[0].replace("http", "ws"), "blob:", "data:")
    return [url for url in page.requests if not url.startswith(ours)]


def test_a_stored_notebook_shows_its_pictures_in_jupyterlab(page, lab):
    in_lab(page, lab, "stored.ipynb")
    page.wait(f"{PICTURES} == 4")
    assert page.run(MOVING) == 0
    assert "not found" not in page.run("document.body.innerText")
    assert not local(page, lab)


def test_in_jupyterlab_the_widgets_move_and_are_saved(page, lab):
    in_lab(page, lab, "fresh.ipynb")
    page.run("jupyterapp.commands.execute('notebook:run-all-cells').then(() => 0)")
    page.wait(f"{MOVING} == 4", 120)
    assert page.run(PICTURES) == 0
    # The kernel is gone, and they still move.
    page.run("jupyterapp.shell.currentWidget.sessionContext.shutdown().then(() => 0)")
    for number in range(4):
        sliders = page.run(f"""document.querySelectorAll('.kdlib-moving')[{number}]
            .querySelectorAll('input').length""")  # fmt: skip
        if sliders:
            page.run(f"""document.querySelectorAll('.kdlib-moving')[{number}]
                .querySelector('input').focus()""")  # fmt: skip
            before = page.run("document.activeElement.getAttribute('aria-valuetext')")
            page.press("End")
            assert page.run("document.activeElement.getAttribute('aria-valuetext')") != before
    focus(page, ".pad")
    page.press("Delete")
    assert text(page, ".answer") == "–"
    page.press(" ", "ArrowDown", "ArrowDown")
    assert text(page, ".answer").isdecimal()
    assert not local(page, lab)
    # A copy that was saved moves when it is opened again, before anything runs.
    page.run("jupyterapp.commands.execute('docmanager:save').then(() => 0)")
    saved = nbformat.read(lab[2] / "fresh.ipynb", 4)
    assert saved.metadata.widgets
    in_lab(page, lab, "fresh.ipynb")
    page.wait(f"{MOVING} == 4", 120)
