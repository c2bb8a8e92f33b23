"""The finished network as a file: what is in it, that it answers alike, what is refused."""

import copy
import json
import zipfile
from functools import partial

import bad
import pytest
import torch
from torch import nn

from kdlib import data, export, stages, training
from kdlib.models import ConvNet, ResNet, ViT

NETS = {
    "ConvNet": partial(ConvNet, (4, 8), num_classes=3, dropout=0.5),
    "ResNet": partial(ResNet, 8, width=4, num_classes=3),
    "ViT": partial(ViT, 8, 2, heads=2, image_size=14, num_classes=3),
}


@pytest.fixture(scope="module")
def split():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(300, 1, 14, 14, generator=generator)
    return data.Split(images, (images.mean((1, 2, 3)) * 999).long() % 3)


@pytest.mark.parametrize("name", NETS)
def test_a_file_answers_as_the_network_for_batches_of_any_size(name, split, tmp_path):
    network = training.build(NETS[name], 0)
    training.fit(network, split, epochs=1, progress=False)  # batch norm has seen images
    network.train()
    state = copy.deepcopy(network.state_dict())
    path = export.export(network, split.images[:1], tmp_path / "net.pt2")
    assert path == tmp_path / "net.pt2" and [*tmp_path.iterdir()] == [path]
    assert network.training and not network.head.weight.grad_fn
    assert all(torch.equal(a, b) for a, b in zip(state.values(), network.state_dict().values()))

    found = export.load(path)
    assert (found.input_shape, found.num_classes) == ((1, 14, 14), 3)
    for count in (1, 2, 3, 64, 300):
        wanted = stages.predict(network, split.images[:count])
        torch.testing.assert_close(found(split.images[:count]), wanted, rtol=1e-4, atol=1e-5)
    found.train()
    first, second = found(split.images[:5]), found(split.images[:5])
    assert torch.equal(first, second), "dropout is on"

    result = export.check(network, path, split)
    assert result["largest_difference"] < 1e-4
    accuracy = training.evaluate(network, split)["accuracy"]
    assert result["accuracy"] == result["original_accuracy"] == pytest.approx(accuracy)


def test_a_check_finds_another_network(split, tmp_path):
    one, other = (training.build(NETS["ConvNet"], seed) for seed in (0, 1))
    path = export.export(one, split.images, tmp_path / "one.pt2")
    result = export.check(other, str(path), split)
    assert result["largest_difference"] > 0.01
    for name, network in (("accuracy", one), ("original_accuracy", other)):
        assert result[name] == pytest.approx(training.evaluate(network, split)["accuracy"])
    with pytest.raises(ValueError, match="model must give the 3 classes of the file, got 10"):
        export.check(ConvNet((4,)), path, split)


def test_the_file_says_what_it_reads(split, tmp_path):
    path = export.export(NETS["ViT"](), split.images, tmp_path / "new" / "net.pt2")
    with zipfile.ZipFile(path) as archive:
        (name,) = (one for one in archive.namelist() if one.endswith("kdlib.json"))
        facts = json.loads(archive.read(name))
    assert facts == {
        "input_shape": [1, 14, 14],
        "dtype": "float32",
        "num_classes": 3,
        "network": "ViT",
        "torch": torch.__version__,
    }
    with pytest.raises(
        ValueError, match=r"images must be \[n, 1, 14, 14\], .* got \[2, 1, 7, 14\]"
    ):
        export.load(path)(torch.rand(2, 1, 7, 14))


def test_it_works_where_gradients_are_off(split, tmp_path):
    with torch.inference_mode():
        network = NETS["ConvNet"]()
        path = export.export(network, split.images + 0, tmp_path / "net.pt2")
        assert export.check(network, path, split)["largest_difference"] < 1e-5


class ByValue(nn.Module):
    """Its graph depends on the images."""

    def forward(self, images):
        return images.flatten(1) if images.sum() > 0 else images.flatten(1) * 2


class ByLength(nn.Module):
    """Its graph holds the number of images."""

    def forward(self, images):
        return images.reshape(len(images), -1)


class ByArray(nn.Module):
    """It leaves torch."""

    def forward(self, images):
        return torch.from_numpy(images.numpy()).flatten(1)


@pytest.mark.parametrize("network", [ByValue(), ByLength(), ByArray()])
def test_a_network_that_cannot_be_exported(network, tmp_path):
    (tmp_path / "net.pt2").write_text("older")
    name = type(network).__name__
    with pytest.raises(ValueError, match=f"model must be one .* {name} is not: .*Usual reasons"):
        export.export(network, torch.rand(2, 1, 4, 4), tmp_path / "net.pt2")
    assert (tmp_path / "net.pt2").read_text() == "older" and len([*tmp_path.iterdir()]) == 1


def test_an_example_that_the_network_cannot_read(tmp_path):
    with pytest.raises(ValueError, match="images for ConvNet must be"):
        export.export(ConvNet((4,)), torch.rand(2, 3, 8, 8), tmp_path / "net.pt2")
    assert not [*tmp_path.iterdir()]


def test_files_that_are_none(tmp_path):
    path = tmp_path / "net.pt2"
    with pytest.raises(FileNotFoundError, match=r"net\.pt2"):
        export.load(path)
    path.write_bytes(b"no archive")
    with pytest.raises(
        ValueError, match=r"path must lead to a file of kdlib.export, got .*net.pt2"
    ):
        export.load(path)
    whole = export.export(ConvNet((4,)), torch.rand(1, 1, 8, 8), tmp_path / "whole.pt2")
    path.write_bytes(whole.read_bytes()[:-200])
    with pytest.raises(ValueError, match="path must lead to a file of kdlib.export"):
        export.load(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/extra/kdlib.json", json.dumps({"torch": "2.0"}))
    with pytest.raises(ValueError, match=r"of release 2\.0, cannot be read"):
        export.load(path)


# --- bad arguments, by enumeration

NET, IMAGES = ConvNet((4,)), torch.rand(4, 1, 8, 8)
SPLIT = data.Split(IMAGES, torch.arange(4))
PATHS = (None, 3, "net.pt", "net", b"net.pt2")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return export.export(NET, IMAGES, tmp_path_factory.mktemp("exports") / "net.pt2")


def test_bad_arguments_are_refused_by_name(file, tmp_path):
    table: bad.Table = {
        "export": (
            {"model": NET, "example": IMAGES, "path": tmp_path / "net.pt2"},
            {
                "model": bad.READ_NETWORKS,
                "example": bad.numbers_in(IMAGES),
                "path": PATHS,
            },
        ),
        "load": ({"path": file}, {"path": PATHS}),
        "check": (
            {"model": NET, "path": file, "split": SPLIT},
            {
                "model": bad.READ_NETWORKS,
                "path": PATHS,
                "split": (
                    *(None, IMAGES, (IMAGES, torch.arange(3)), (IMAGES, torch.arange(4) + 9)),
                    *((IMAGES, torch.rand(4)), data.Dataset(SPLIT, SPLIT, SPLIT, "x", 4)),
                ),
            },
        ),
        "Exported.forward": (
            {"self": export.load(file), "images": IMAGES},
            {"images": (*bad.images_like(IMAGES, unit=False)[:4], IMAGES[0], IMAGES[:, :, 1:])},
        ),
    }
    for name, (_, wrong) in table.items():
        for parameter in wrong:
            bad.refuses(export, table, name, parameter)
    exempt = {"Exported.network": "made by load", "Exported.input_shape": "made by load"}
    exempt |= {"Exported.num_classes": "made by load", "Exported.train": "it does nothing"}
    assert bad.missing(export, table, exempt) == []
