"""Pictures that move: what is sent, stored and refused; test_widgets_browser.py moves them."""

import base64
import math
import subprocess
import sys
from functools import partial

import nbformat
import numpy as np
import pytest
import torch
from test_strict import passes
from torch import nn

from kdlib import data, models, show, widgets
from kdlib.engine import kernels, notebooks
from kdlib.stages import predict
from kdlib.training import build, fit
from kdlib.widgets import moving
from kdlib.widgets.drawing import layers

POINTS = partial(models.MLP, (8,), in_features=2, num_classes=2)
IMAGE = torch.linspace(0, 1, 784).view(1, 28, 28)


def networks():
    made = {"wide": partial(models.MLP, (20, 20), dropout=0.5), "pocket": partial(models.MLP, (6,))}
    return {name: build(one, 0) for name, one in made.items()}


def plane(side=9):
    edge = torch.linspace(-2, 2, side)
    return torch.cartesian_prod(edge, edge)[:, :, None, None]


def points(count=12):
    where = torch.randn(count, 2, 1, 1, generator=torch.Generator().manual_seed(1))
    return data.Split(where, (where[:, 0, 0, 0] > 0).long())


def filmed(seed=0, frames=5, **options):
    recipe = dict(epochs=20, batch_size=12, seed=seed)
    return widgets.film(build(POINTS, seed), points(), plane(), frames=frames, **recipe | options)


@pytest.fixture(scope="module")
def every():
    """One of each, by name."""
    films = {"Ind": filmed(), "KL": filmed(1)}
    return {
        "softening": widgets.soften(IMAGE, torch.arange(10.0), 3),
        "drawing": widgets.draw(networks(), IMAGE[None]),
        "pulling": widgets.pull((0.6, 0.4), (-2.0, 3.0), (0.8, 0.5)),
        "scrubbing": widgets.scrub(films, build(POINTS, 2), plane(), points()),
    }


# What is shown and what is stored


def test_each_shows_a_program_and_a_still_picture(every):
    for name, one in every.items():
        forms, metadata = one._repr_mimebundle_()
        assert forms[moving.VIEW]["model_id"] and one.name == name
        assert base64.b64decode(forms["image/png"]) == one.png and one.png.startswith(b"\x89PNG")
        shown = metadata["image/png"]
        assert shown["alt"] == one.alt == forms["text/plain"] == repr(one)
        assert 300 < shown["width"] < 1000 and 100 < shown["height"] < 700
        assert not any(sign.isdigit() for sign in one.alt.replace("T²", "")), "numbers may differ"
        assert one.data["palette"]["blue"] == show.BLUE and one.data["title"] == one.alt


def test_the_picture_is_the_same_at_every_run():
    again = [widgets.pull((1.0,), (0.0,), (1.0,)).png for _ in range(2)]
    assert again[0] == again[1]


def test_no_figure_is_left_open(every):
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    widgets.soften(IMAGE, torch.arange(10.0), 3)
    assert plt.get_fignums() == before


def test_without_anywidget_the_picture_stands_and_says_what_to_install(every, monkeypatch):
    monkeypatch.setitem(sys.modules, "anywidget", None)
    forms, _ = every["pulling"]._repr_mimebundle_()
    assert moving.VIEW not in forms and forms["image/png"]
    assert forms["text/html"].count("<img ") == 1 and "pip install -r" in forms["text/html"]


def test_anywidget_is_imported_when_a_widget_is_shown():
    code = (
        "import sys, kdlib\nfrom kdlib import widgets\n"
        "assert not {'anywidget', 'ipywidgets'} & set(sys.modules)\n"
        "widgets.pull((1.0,), (0.0,), (1.0,))._repr_mimebundle_()\n"
        "assert 'anywidget' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


CELL = "from kdlib import widgets\nwidgets.pull((0.6, 0.4), (-2.0, 3.0), (0.8, 0.5))"


def test_what_is_stored_is_the_picture_and_strict_nbval_passes(tmp_path):
    """Twice the same bytes, no random model, no state."""
    texts = []
    for _ in range(2):
        cell = nbformat.v4.new_code_cell(CELL, id="cell")
        made = nbformat.v4.new_notebook(cells=[cell], metadata={"widgets": {"state": {}}})
        assert not kernels.execute(made, tmp_path).failures
        texts.append(notebooks.save(made, tmp_path / "a.ipynb").read_text("utf-8"))
    assert texts[0] == texts[1]
    stored = nbformat.reads(texts[0], 4)
    (output,) = stored.cells[0].outputs
    assert set(output.data) == {"image/png", "text/plain"} and "widgets" not in stored.metadata
    fine, said = passes(texts[0], tmp_path)
    assert fine, said
    fine, said = passes(texts[0].replace("One normal distribution", "Another"), tmp_path)
    assert not fine, said


def test_the_programs_are_part_of_the_package(every):
    for name in every:
        assert "export default { render }" in moving.program(name)
        assert len((moving.FOLDER / f"{name}.js").read_text("utf-8").splitlines()) <= 200


# What is sent


def test_softening_sends_the_logits(every):
    sent = every["softening"].data
    assert sent["logits"] == list(range(10)) and sent["student"] == [0.0] * 10
    assert (sent["label"], sent["temperature"], sent["alpha"]) == (3, 4.0, 0.9)
    pixels = np.frombuffer(sent["image"], "u1").reshape(sent["shape"])
    assert np.abs(pixels / 255 - IMAGE[0].numpy()).max() < 0.5 / 255 + 1e-6
    student = torch.ones(10, dtype=torch.float64)
    assert widgets.soften(IMAGE, torch.zeros(10), 3, student=student).data["student"] == [1.0] * 10


def test_drawing_sends_the_weights(every):
    sent = {one["name"]: one["layers"] for one in every["drawing"].data["networks"]}
    network = networks()["wide"]
    linear = [one for one in network.modules() if isinstance(one, nn.Linear)]
    assert len(sent["wide"]) == 3 and len(sent["pocket"]) == 2
    for found, layer in zip(sent["wide"], linear):
        weight = np.frombuffer(found["weight"], "<f4").reshape(found["outputs"], found["inputs"])
        assert np.array_equal(weight, layer.weight.detach().numpy())
        assert np.array_equal(np.frombuffer(found["bias"], "<f4"), layer.bias.detach().numpy())


def test_a_layer_without_bias_gets_one_of_zeros():
    network = nn.Sequential(nn.Flatten(), nn.Linear(784, 3, bias=False))
    (found,) = layers("it", network, IMAGE[None])
    assert found["bias"] == bytes(12)


def test_pulling_sends_the_mixture(every):
    sent = every["pulling"].data
    assert sent["weights"] == [0.6, 0.4] and sent["means"] == [-2.0, 3.0]
    assert sent["left"] == pytest.approx(-5.2) and sent["right"] == pytest.approx(5.0)
    assert (sent["mean"], sent["width"]) == (1.0, 1.5)


def test_scrubbing_sends_the_frames(every):
    sent = every["scrubbing"].data
    assert sent["side"] == 9 and sent["edge"] == [-2.0, 2.0]
    assert [one["name"] for one in sent["students"]] == ["Ind", "KL"]
    frames = np.frombuffer(sent["students"][0]["frames"], "u1").reshape(5, 81)
    assert np.abs(frames / 255 - filmed().frames.numpy()).max() < 0.5 / 255 + 1e-6
    assert np.frombuffer(sent["points"], "<f4").size == 24 and len(sent["labels"]) == 12


def test_a_film_trains_to_the_same_bits_and_shows_start_and_end():
    filmed_one, plain = build(POINTS, 0), build(POINTS, 0)
    start = predict(plain, plane()).softmax(1)[:, 1]
    options = dict(epochs=20, batch_size=12, seed=0)
    found = widgets.film(filmed_one, points(), plane(), frames=5, **options)
    fit(plain, points(), progress=False, **options)
    for one, other in zip(filmed_one.parameters(), plain.parameters()):
        assert torch.equal(one, other)
    assert found.steps == [0, 1, 5, 11, 20] and found.frames.shape == (5, 81)
    assert torch.equal(found.frames[0], start)
    assert torch.equal(found.frames[-1], predict(plain, plane()).softmax(1)[:, 1])
    assert not filmed_one._forward_pre_hooks


def test_a_film_of_few_steps_has_few_frames():
    found = filmed(frames=40, epochs=3)
    assert found.steps == [0, 1, 2, 3] and len(found.frames) == 4


# What is refused


class Doubled(models.MLP):
    def forward(self, images):
        return 2 * super().forward(images)


def drawn(network):
    return widgets.draw({"it": network}, IMAGE[None])


Z = torch.zeros(10)


@pytest.mark.parametrize(
    "make, kind, message",
    [
        (lambda: widgets.soften(IMAGE, [1, 2], 0), TypeError, "logits must be a tensor"),
        (lambda: widgets.soften(IMAGE, Z[:1], 0), ValueError, "at least two classes, got 1"),
        (lambda: widgets.soften(IMAGE, Z, 10), ValueError, "label must be .* at most 9"),
        (lambda: widgets.soften(2 * IMAGE, Z, 1), ValueError, r"image must lie in \[0, 1\]"),
        (lambda: widgets.soften(None, Z, 1), TypeError, "image must be a tensor"),
        (lambda: widgets.soften(IMAGE, Z, 1, student=Z[:9]), ValueError, "student must hold 10"),
        (lambda: widgets.soften(IMAGE, Z, 1, temperature=0.5), ValueError, "temperature must be"),
        (lambda: widgets.soften(IMAGE, Z, 1, alpha=1.5), ValueError, "alpha must be"),
        (lambda: widgets.draw({}, IMAGE[None]), TypeError, "networks must be a dictionary"),
        (lambda: widgets.draw(networks(), IMAGE), ValueError, r"images must be \[n, c, h, w\]"),
        (lambda: drawn(build(models.ConvNet, 0)), TypeError, "built of Conv2d"),
        (lambda: drawn(nn.Sequential(nn.Flatten(), nn.Linear(784, 9), nn.ReLU())), TypeError,
         "is built of Linear, ReLU: a browser computes"),
        (lambda: drawn(nn.Flatten()), TypeError, "is built of nothing"),
        (lambda: drawn(Doubled((4,))), TypeError, "answers otherwise than its layers alone"),
        (lambda: drawn("network"), TypeError, r"networks\['it'\] must be a Module"),
        (lambda: widgets.draw({"a": models.MLP((4,)), "b": models.MLP((4,), num_classes=3)},
                              IMAGE[None]), ValueError, "as many classes as each other"),
        (lambda: widgets.draw(networks(), IMAGE[None, :, :14, :14]), ValueError, "28, 28"),
        (lambda: widgets.pull((0.6,), (0.0, 1.0), (1.0,)), ValueError, "equally many, got 1 weig"),
        (lambda: widgets.pull((0.6, 0.6), (0.0, 1.0), (1.0, 1.0)), ValueError, "add up to 1"),
        (lambda: widgets.pull((1.0,), (0.0,), (0.1,)), ValueError, r"widths\[0\] must be"),
        (lambda: widgets.pull((1.0,), (math.nan,), (1.0,)), ValueError, r"means\[0\] must be"),
        (lambda: widgets.pull(1.0, (0.0,), (1.0,)), TypeError, "weights must be a sequence"),
        (lambda: widgets.pull((1.0,), (0.0,), (1.0,), mean=9.0), ValueError, "mean must be"),
        (lambda: widgets.pull((1.0,), (0.0,), (1.0,), width=9.0), ValueError, "width must be"),
        (lambda: filmed(frames=1), ValueError, "frames must be"),
        (lambda: filmed(stop_after=3), ValueError, "stop_after must be left out"),
        (lambda: widgets.film(models.MLP((4,), in_features=2, num_classes=3), points(), plane(),
                              epochs=1), ValueError, "two classes for a boundary, got 3"),
        (lambda: widgets.scrub({"a": filmed()}, build(POINTS, 0), plane()[:80], points()),
         ValueError, "square grid"),
        (lambda: widgets.scrub({"a": filmed()}, build(POINTS, 0), plane(8), points()), ValueError,
         "64 points"),
        (lambda: widgets.scrub({"a": filmed(), "b": filmed(frames=4)}, build(POINTS, 0), plane(),
                               points()), ValueError, "the same steps"),
        (lambda: widgets.scrub({"a": 1}, build(POINTS, 0), plane(), points()), TypeError,
         r"films\['a'\] must be a Film"),
        (lambda: widgets.scrub({}, build(POINTS, 0), plane(), points()), TypeError, "dictionary"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(make, kind, message):
    with pytest.raises(kind, match=message):
        make()
