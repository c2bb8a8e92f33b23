"""Colours and figures."""

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from kdlib import show
from kdlib.engine import progress
from kdlib.records import Run, Runs
from kdlib.tables import Interval

matplotlib.use("Agg")


@pytest.fixture
def runs():
    return Runs(
        Run("e", method, seed, {}, {"accuracy": base + seed, "extra_parameters": 64})
        for method, base in (("CE", 90.0), ("KD, T=4", 93.0))
        for seed in range(3)
    )


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def test_a_method_keeps_its_colour():
    assert show.look("KD, T=4") == show.look("kd")
    assert show.look("DKD")["color"] != show.look("KD")["color"]
    assert show.look("KD + CRD")["marker"] != show.look("KD")["marker"]
    assert show.look("something new")["color"]
    looks = [
        tuple(show.look(name).values())
        for name in (
            "ce",
            "kd",
            "hint",
            "crd",
            "at",
            "sp",
            "cc",
            "rkd",
            "pkt",
            "vid",
            "nst",
            "dkd",
            "dist",
        )
    ]
    assert len(set(looks)) == len(looks)


def test_figures_are_labelled(runs):
    axes = show.gains(runs, "CE")
    assert axes.get_xlabel() and [t.get_text() for t in axes.get_yticklabels()] == ["KD, T=4"]
    axes = show.curves({"CE": [Interval(1, 0, 2)] * 2}, [5, 40], xlabel="epochs", ylabel="%")
    assert axes.get_legend() is not None
    groups = {
        "A": {"Ind": Interval(1, 0, 2), "KL*": Interval(2, 1, 3)},
        "B": {"KL*": Interval(3, 2, 4)},
    }
    axes = show.bars(groups, ylabel="%", reference=0.5, hatched=["KL*"])
    assert [t.get_text() for t in axes.get_xticklabels()] == ["A", "B"] and axes.get_legend()
    assert [bar.get_height() for bar in axes.patches] == [1, 2, 3]
    assert axes.patches[1].get_hatch() and not axes.patches[0].get_hatch()
    axes = show.bars({"A": groups["A"]}, ylabel="%")
    assert not len(axes.get_xticks()), "the names stand below the bars"
    assert [t.get_text() for t in axes.texts] == ["Ind", "KL*"] and axes.get_legend() is None
    axes = show.heatmap(
        np.arange(6.0).reshape(2, 3),
        rows="ab",
        columns="xyz",
        xlabel="x",
        ylabel="y",
        label="accuracy",
    )
    assert [t.get_text() for t in axes.texts] == ["0.0", "1.0", "2.0", "3.0", "4.0", "5.0"]
    picture = show.images(torch.rand(3, 1, 8, 8), ["a", "b", "c"])
    assert len(picture.axes) == 3


def test_bars_are_quiet_where_they_should_be(capsys, monkeypatch):
    monkeypatch.setenv("KDLIB_PROGRESS", "0")
    with progress.bar(2, "steps") as ticker:
        ticker.update()
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""
    monkeypatch.delenv("KDLIB_PROGRESS")
    with progress.bar(2, "steps") as ticker:
        ticker.update()
    assert "steps" in capsys.readouterr().err


def test_maps_on_one_scale_need_no_bar_each():
    fig, axes = show.figure(1, 2)
    common = dict(rows="ab", columns="ab", xlabel="", ylabel="", label="", limits=(0.0, 1.0))
    for axis, values in zip(axes, (np.eye(2), np.full((2, 2), 0.5))):
        show.heatmap(values, axes=axis, **common)
        assert axis.images[0].get_clim() == (0.0, 1.0)
    assert len(fig.axes) == 2, "no colour bar"
    show.heatmap(np.eye(2), axes=axes[0], **common | dict(label="CKA"))
    assert len(fig.axes) == 3


def test_branches_shows_every_stage_with_its_shape_and_loss():
    teacher = {"blocks.0": (16, 64), "blocks.1": (16, 64)}
    student = {"blocks.0": (4, 14, 14), "blocks.1": (8, 7, 7), "blocks.2": (16, 4, 4)}
    fig = show.branches(teacher, student, logits=100, titles=("a ViT", "a CNN"))
    texts = [text.get_text() for text in fig.axes[0].texts]
    assert {"a ViT", "a CNN", "blocks.2\n16 x 4 x 4", "blocks.1\n16 x 64"} <= set(texts)
    assert texts.count("branch") == 3 and texts.count("100 logits") == 5
    assert sum("OFA" in text for text in texts) == 4, "a loss a branch, and one at the end"
    ends = [text.xy for text in fig.axes[0].texts if hasattr(text, "xy")]
    assert sum(x == 9.55 for x, _ in ends) == 4, "the teacher's logits reach every loss"
    assert sum(x == 8.75 for x, _ in ends) == 3, "and so do those of every branch"


def test_compared_draws_a_panel_for_each_method():
    numbers = np.array([[0.0, 1.0], [np.nan, 3.0]])
    signs = np.array([["+", ""], ["-", "+"]])
    fig = show.compared(
        {"KD": (numbers, numbers + 1, "Answers, softened."), "CRD": (signs, None, "Pairs. " * 12)},
        titles=("big", "small"),
    )
    frame, *cells = fig.axes
    assert [cell.get_title("left") or cell.get_title("right") for cell in cells] == [
        "big", "small", "",
    ]  # fmt: skip
    texts = [text.get_text() for text in frame.texts]
    assert texts[0::2] == ["KD", "CRD"] and "Answers, softened." in texts
    assert max(len(line) for text in texts for line in text.splitlines()) <= 43
    assert [text.get_text() for text in cells[2].texts] == ["+", "", "-", "+"]


def test_compared_reads_in_grey():
    """The least value is light and the largest dark, whatever the hue."""
    for method in ("KD", "DKD", "VID", "RKD", "CRD"):
        fig = show.compared({method: (np.array([[0.0, 0.5, 1.0]]), None, "")})
        image = fig.axes[1].images[0]
        light = image.cmap(image.norm(np.array([0.0, 0.5, 1.0])))[:, :3] @ [0.299, 0.587, 0.114]
        assert light[0] > light[1] + 0.2 and light[1] > light[2] + 0.1


def test_words_stand_on_their_colours_and_break_into_lines():
    long = ["word"] * 30
    fig = show.words({"coloured": (["low", "high"], [-2.0, 2.0]), "plain": (long, None)},
                     limits=(-2, 2), label="reward", title="texts")  # fmt: skip
    axes, bar = fig.axes
    low, high = (patch.get_facecolor() for patch in axes.patches)
    assert low[0] > low[2] and high[2] > high[0], "red for low, blue for high"
    placed = [text for text in axes.texts if text.get_text() == "word"]
    lines = {text.get_position()[1] for text in placed}
    assert len(placed) == 30 and lines == {1, 2}
    assert all(text.get_position()[0] + 4 <= axes.get_xlim()[1] for text in placed)
    assert bar.get_ylabel() == "reward" and axes.get_title("left") == "texts"
    below = [line.get_xdata()[0] for line in axes.lines]
    assert below == [axes.texts[2].get_position()[0]], "a line below the red word alone"
    assert len(show.words({"a": (["b"], None)}).axes) == 1, "no colours, no bar"


def test_words_on_a_scale_that_ends_at_0_have_one_hue():
    fig = show.words({"a": (["low", "middle", "high"], [-6.0, -3.0, 0.0])}, limits=(-6, 0))
    shades = [patch.get_facecolor() for patch in fig.axes[0].patches]
    grey = [0.3 * red + 0.6 * green + 0.1 * blue for red, green, blue, _ in shades]
    assert grey == sorted(grey) and grey[0] < grey[2] - 0.3 and not fig.axes[0].lines
