"""Weights as files: what fits is loaded, what does not is named, nothing in a file is run."""

import os
import pickle
from functools import partial

import pytest
import torch
from test_training import CLASSES, toy

from kdlib import models, recipes, training, weights

NET = partial(models.ConvNet, (4, 8), num_classes=CLASSES)


def same(one, other):
    states = one.state_dict(), other.state_dict()
    return all(torch.equal(states[0][name], value) for name, value in states[1].items())


@pytest.fixture
def network():
    found = training.build(NET, 3)
    training.fit(found, toy(), epochs=1, progress=False)
    return found


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": {f"module.{name}": value for name, value in state.items()}},
        lambda state: {"net": {f"_orig_mod.{name}": value for name, value in state.items()}},
    ],
)
def test_published_forms_are_read(wrap, network, tmp_path):
    torch.save(wrap(network.state_dict()), tmp_path / "a.pt")
    found = weights.load(NET, tmp_path / "a.pt")
    assert same(found, network) and not found.training


def test_what_was_saved_and_a_checkpoint_of_fit_are_read(network, tmp_path):
    assert same(weights.load(NET, weights.save(network, tmp_path / "b.pt")), network)
    other = training.build(NET, 3)
    training.fit(other, toy(), epochs=1, progress=False, checkpoint=tmp_path / "c.pt")
    assert same(weights.load(NET, tmp_path / "c.pt"), other)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_classes": CLASSES + 1}, r"'head.weight' has shape \(\d+, 8\), \(\d+, 8\) is"),
        ({"in_channels": 3}, r"'blocks.0.0.weight' has shape \(4, 1, 3, 3\), \(4, 3, 3, 3\) is"),
    ],
)
def test_the_first_tensor_that_does_not_fit_is_named(change, message, network, tmp_path):
    path = weights.save(network, tmp_path / "d.pt")
    with pytest.raises(ValueError, match=message):
        weights.load(partial(NET, **change), path)
    state = network.state_dict()
    del state["head.bias"]
    torch.save(state, path)
    with pytest.raises(ValueError, match="'head.bias' is missing"):
        weights.load(NET, path)
    torch.save(network.state_dict() | {"extra": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="'extra' is not of this network"):
        weights.load(NET, path)


class Trap:
    def __reduce__(self):
        return os.mkdir, ("trapped",)


@pytest.mark.parametrize("content", [Trap(), {"state_dict": Trap()}, network, 7, {}])
def test_a_file_of_a_stranger_runs_nothing(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        torch.save(content, "e.pt")
    except (pickle.PicklingError, AttributeError):
        torch.save(NET(), "e.pt")  # a whole network instead of its weights
    with pytest.raises(ValueError, match="e.pt holds no (weights that can be|state dict)"):
        weights.load(NET, "e.pt")
    assert not os.path.exists("trapped")


def test_damaged_and_missing_files(network, tmp_path):
    with pytest.raises(FileNotFoundError, match="give the file of a network's weights"):
        weights.load(NET, tmp_path / "no.pt")
    path = tmp_path / "f.pt"
    training.fit(training.build(NET, 3), toy(), epochs=1, progress=False, checkpoint=path)
    path.write_bytes(path.read_bytes()[:-9] + b"x" * 9)
    with pytest.raises(ValueError, match="f.pt holds no weights"):
        weights.load(NET, path)


def test_a_file_below_the_folder_can_be_found_again(network, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights.save(network, "teachers/g.pt")
    found = weights.load(NET, "teachers/g.pt")
    recipe = recipes.recipe_of(found)
    assert same(recipes.make(recipe), network)
    weights.save(training.build(NET, 4), "teachers/g.pt")
    with pytest.raises(ValueError, match="not those of the record"):
        recipes.make(recipe)
    (tmp_path / "teachers/g.pt").unlink()
    with pytest.raises(ValueError, match="are missing"):
        recipes.make(recipe)
    monkeypatch.chdir("teachers")
    weights.save(network, "../h.pt")
    with pytest.raises(recipes.Unrepeatable, match="outside of this folder"):
        recipes.recipe_of(weights.load(NET, "../h.pt"))
    with pytest.raises(ValueError, match="must lie below the working folder"):
        weights.again(NET, "../h.pt", "")
