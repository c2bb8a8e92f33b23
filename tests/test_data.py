"""Data sets, splits and domains."""

import copy
import gzip
import hashlib
import inspect
import pickle
import tarfile

import bad
import cloudpickle
import numpy as np
import pytest
import torch
from torchvision import datasets

from kdlib import data, domains
from kdlib.data import Split, generator


@pytest.fixture(scope="module")
def digits():
    return data.load()


# --- the shipped set


def test_shipped_set_has_the_fixed_stratified_split(digits):
    sizes = [split.labels.bincount().tolist() for split in digits[:3]]
    assert sizes == [[350] * 10, [50] * 10, [100] * 10]
    again = data.load()
    assert torch.equal(digits.test.images, again.test.images)
    assert digits.train.images.shape == (3500, 1, 28, 28)
    assert digits.train.images.min() >= 0 and digits.train.images.max() == 1


def test_classes_have_names(digits):
    assert digits.classes == tuple("0123456789") and digits.num_classes == 10
    train, validation, test, name, count, classes = digits
    assert (name, count, len(classes)) == ("mnist-5k", 10, 10)
    assert data.Dataset(train, validation, test, "mine", 10).classes == ()


def test_no_image_is_in_two_splits(digits):
    rows = torch.cat([split.images for split in digits[:3]]).flatten(1)
    assert len(torch.unique(rows, dim=0)) == 5000


def test_size_averages_areas(digits):
    small = data.load(size=14)
    expected = torch.nn.functional.avg_pool2d(digits.test.images, 2)
    torch.testing.assert_close(small.test.images, expected)


def test_a_set_that_is_not_there_is_reported_with_what_to_do(tmp_path):
    for name in data.TORCHVISION:
        with pytest.raises(FileNotFoundError, match="copy torchvision's original files"):
            data.load(name, folder=tmp_path, download=False)
        assert not data.on_disk(name, tmp_path)
    assert data.on_disk("mnist-5k")


def test_damaged_asset_is_reported_with_its_remedy(tmp_path, monkeypatch):
    file = tmp_path / "assets" / data.ASSET
    file.parent.mkdir()
    monkeypatch.setattr(data.resources, "files", lambda package: tmp_path)
    zeroed = {"images": np.zeros((5000, 28, 28), np.uint8), "labels": np.arange(5000) % 10}
    for make in (
        lambda: None,
        lambda: file.write_bytes(b"PK\x03\x04 not really a zip"),
        lambda: np.savez(file, **zeroed),
    ):
        make()
        with pytest.raises(RuntimeError, match=r"damaged or missing: .*`git checkout"):
            data.load()


def test_the_download_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("KDLIB_DATA", str(tmp_path))
    monkeypatch.setattr(data.Path, "home", lambda: pytest.fail("asked for a home"))
    assert data.data_folder() == tmp_path
    monkeypatch.setattr(data.Path, "home", lambda: tmp_path)
    monkeypatch.delenv("KDLIB_DATA")
    assert data.data_folder() == tmp_path / ".cache" / "kdlib"


def test_a_device_that_this_machine_lacks():
    assert data.device_of("cpu") == torch.device("cpu")
    for device in ("gpu", "cuda:99", "meta", None, 1.5):
        with pytest.raises(ValueError, match="device must be"):
            data.device_of(device)
    with pytest.raises(ValueError, match="device must be"):
        data.load(device="cuda:99")


# --- files of torchvision


def write(raw, stem, images, labels):
    """Images [n, h, w] and labels [n] in the published format, unpacked and as an archive."""
    raw.mkdir(parents=True, exist_ok=True)
    for name, array in (
        (f"{stem}-images-idx3-ubyte", images),
        (f"{stem}-labels-idx1-ubyte", labels),
    ):
        head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
        (raw / name).write_bytes(head + array.astype(np.uint8).tobytes())


def hand_made(count, constant=None):
    labels = np.arange(count) % 10
    images = np.repeat(labels if constant is None else labels * 0 + constant, 784)
    return images.reshape(count, 28, 28), labels


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A small set that takes the place of MNIST: its sums are the published ones in this test."""
    raw = tmp_path / "MNIST" / "raw"
    for stem, count in (("train", 100), ("t10k", 20)):
        write(raw, stem, *hand_made(count))
    unpacked = sorted(raw.iterdir())

    def md5(content):
        return hashlib.md5(content).hexdigest()

    sums = {name: md5((raw / name).read_bytes()) for name in data.MD5["mnist"]}
    for file in unpacked:
        (raw / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes(), mtime=0))
    archives = [(f"{name}.gz", md5((raw / f"{name}.gz").read_bytes())) for name in sums]
    monkeypatch.setitem(data.MD5, "mnist", sums)
    monkeypatch.setattr(datasets.MNIST, "resources", archives)
    monkeypatch.setattr(datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])  # nobody answers
    return tmp_path


def test_torchvision_sets_become_three_splits(published):
    loaded = data.load("mnist", folder=published, download=False)
    assert [len(split.labels) for split in loaded[:3]] == [90, 10, 20]
    assert loaded.validation.labels.bincount().tolist() == [1] * 10
    assert loaded.num_classes == 10 and loaded.train.images.shape[1:] == (1, 28, 28)
    for split in loaded[:3]:  # images stay with their labels
        assert torch.equal((split.images[:, 0, 0, 0] * 255).round().long(), split.labels)
    assert data.on_disk("mnist", published)
    assert loaded.classes == tuple("0123456789")


@pytest.mark.parametrize("damage", ["cut", "longer", "one bit", "empty", "zeroed"])
def test_a_damaged_file_is_named_and_the_remedy_works(published, damage):
    file = published / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    content = file.read_bytes()
    flipped = content[:-1] + bytes([content[-1] ^ 1])
    changed = {
        "cut": content[:-100],
        "longer": content + b"\0",
        "one bit": flipped,
        "empty": b"",
        "zeroed": bytes(len(content)),
    }
    file.write_bytes(changed[damage])
    for download in (False, True):
        with pytest.raises(
            RuntimeError, match=f"{file.name} is not the published.*: delete it and"
        ):
            data.load("mnist", folder=published, download=download)
    assert not data.on_disk("mnist", published)
    file.unlink()  # what the message says
    assert len(data.load("mnist", folder=published).test.labels) == 20
    assert file.read_bytes() == content


def test_a_missing_archive_is_reported_as_missing(published):
    for file in (published / "MNIST" / "raw").glob("t10k-images*"):
        file.unlink()
    with pytest.raises(FileNotFoundError, match="could not be downloaded"):
        data.load("mnist", folder=published)


@pytest.mark.parametrize("name, family", [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_hand_made_files_are_refused(name, family, tmp_path):
    raw = tmp_path / family / "raw"
    sets = {
        "zeroed": [hand_made(60000, 0), hand_made(10000, 0)],
        "few": [hand_made(100), hand_made(20)],
        "unlike counts": [(hand_made(200)[0], hand_made(150)[1]), hand_made(20)],
    }
    for parts in sets.values():
        for stem, (images, labels) in zip(("train", "t10k"), parts):
            write(raw, stem, images, labels)
        with pytest.raises(RuntimeError, match="train-images-idx3-ubyte is not the published"):
            data.load(name, folder=tmp_path, download=False)


def test_a_damaged_archive_is_named_and_the_remedy_works(published):
    raw = published / "MNIST" / "raw"
    (raw / "t10k-images-idx3-ubyte").unlink()
    archive = raw / "t10k-images-idx3-ubyte.gz"
    content = archive.read_bytes()
    archive.write_bytes(content[:-10])
    with pytest.raises(
        FileNotFoundError,
        match=r"(?s)\(missing: t10k-images-idx3-ubyte\).*images-idx3-ubyte.gz is not .* delete it",
    ):
        data.load("mnist", folder=published)
    archive.write_bytes(content)  # copied from another machine
    assert len(data.load("mnist", folder=published).test.labels) == 20


# --- CIFAR's own format: pickled batches with a row of 1024 red, green and blue values an image

CIFARS = {
    "cifar10": (datasets.CIFAR10, ["data_batch_1", "data_batch_2"], "test_batch"),
    "cifar100": (datasets.CIFAR100, ["train"], "test"),
}


def rows(count, seed):
    """Images as rows [count, 3072] whose first red value is the label, and the labels."""
    found = np.random.default_rng(seed).integers(0, 256, (count, 3072)).astype(np.uint8)
    labels = np.arange(count) % 10
    found[:, 0] = labels
    return found, labels.tolist()


@pytest.fixture(params=CIFARS)
def cifar(request, tmp_path, monkeypatch):
    """(name, folder) of a small set in the place of CIFAR, unpacked and as an archive: its sums are
    the published ones in this test."""
    family, train, test = CIFARS[request.param]
    base = tmp_path / family.base_folder
    base.mkdir()
    fine = request.param == "cifar100"
    for seed, (file, count) in enumerate([*((name, 100) for name in train), (test, 20)]):
        images, labels = rows(count, seed)
        batch = {"data": images, "filenames": [f"{n}.png" for n in range(count)]}
        batch |= {"fine_labels" if fine else "labels": labels}
        batch |= {"coarse_labels": [9 - label for label in labels]} if fine else {}
        (base / file).write_bytes(pickle.dumps(batch, protocol=2))
    names = [f"thing {n}" for n in range(10)]
    (base / family.meta["filename"]).write_bytes(pickle.dumps({family.meta["key"]: names}, 2))

    def md5(file):
        return hashlib.md5(file.read_bytes()).hexdigest()

    archive = tmp_path / family.filename
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(base, family.base_folder)
    monkeypatch.setattr(family, "train_list", [[name, md5(base / name)] for name in train])
    monkeypatch.setattr(family, "test_list", [[test, md5(base / test)]])
    meta = base / family.meta["filename"]
    monkeypatch.setattr(family, "meta", family.meta | {"md5": md5(meta)})
    monkeypatch.setattr(family, "tgz_md5", md5(archive))
    monkeypatch.setattr(family, "url", "http://127.0.0.1:9/cifar.tar.gz")  # nobody answers
    return request.param, tmp_path


def test_cifar_becomes_three_splits(cifar):
    name, folder = cifar
    loaded = data.load(name, folder=folder, download=False)
    train = 100 * len(CIFARS[name][1])
    assert [len(split.labels) for split in loaded[:3]] == [0.9 * train, 0.1 * train, 20]
    assert loaded.validation.labels.bincount().tolist() == [train // 100] * 10
    assert loaded.num_classes == 10 and loaded.classes[3] == "thing 3" and loaded.name == name
    for split in loaded[:3]:  # images stay with their labels
        assert split.images.shape[1:] == (3, 32, 32)
        assert torch.equal((split.images[:, 0, 0, 0] * 255).round().long(), split.labels)
    images, _ = rows(20, len(CIFARS[name][1]))
    expected = images.reshape(20, 3, 32, 32)  # channel, row, column
    assert np.array_equal((loaded.test.images * 255).round().byte(), expected)
    assert data.on_disk(name, folder)
    small = data.load(name, folder=folder, download=False, size=16)
    torch.testing.assert_close(
        small.test.images, torch.nn.functional.avg_pool2d(loaded.test.images, 2)
    )


@pytest.mark.parametrize("which", ["train", "test", "meta"])
@pytest.mark.parametrize("damage", ["cut", "one bit", "hand-made"])
def test_a_damaged_file_of_cifar_is_named_and_the_remedy_works(cifar, which, damage):
    name, folder = cifar
    family, train, test = CIFARS[name]
    file = (
        folder
        / family.base_folder
        / {"train": train[-1], "test": test}.get(which, family.meta["filename"])
    )
    content = file.read_bytes()
    file.write_bytes(
        {
            "cut": content[:-100],
            "one bit": content[:-1] + bytes([content[-1] ^ 1]),
            "hand-made": pickle.dumps(Trap(folder / "TRAPPED")),
        }[damage]
    )
    for download in (False, True):
        with pytest.raises(
            RuntimeError, match=f"{file.name} is not the published.*: delete it and"
        ):
            data.load(name, folder=folder, download=download)
    assert not data.on_disk(name, folder)
    assert not (folder / "TRAPPED").exists()  # nothing was unpickled
    file.unlink()  # what the message says
    with pytest.raises(FileNotFoundError, match=rf"\(missing: {file.name}\)") as caught:
        data.load(name, folder=folder, download=False)
    assert "is not the published" not in str(caught.value)  # the archive is whole
    assert len(data.load(name, folder=folder).test.labels) == 20  # unpacked without a network
    assert file.read_bytes() == content


class Trap:
    """Makes a file where it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return open, (str(self.file), "w")


def test_a_cut_archive_of_cifar_is_named(cifar):
    name, folder = cifar
    family, train, _ = CIFARS[name]
    (folder / family.base_folder / train[0]).unlink()
    archive = folder / family.filename
    content = archive.read_bytes()
    archive.write_bytes(content[:-100])
    with pytest.raises(FileNotFoundError) as caught:
        data.load(name, folder=folder)
    message = str(caught.value)
    for part in (
        f"(missing: {train[0]})",
        "could not be downloaded",
        f"{archive} is not the published file (it was cut or damaged): delete it.",
        f"copy torchvision's original files from another machine into {folder}",
    ):
        assert part in message
    archive.write_bytes(content)
    assert len(data.load(name, folder=folder).test.labels) == 20


def test_cifar_without_files_and_network(cifar):
    name, folder = cifar
    family, train, test = CIFARS[name]
    for file in (folder / family.base_folder).iterdir():
        file.unlink()
    (folder / family.filename).unlink()
    for download in (False, True):
        reason = "could not be downloaded" if download else "is not to be downloaded"
        with pytest.raises(FileNotFoundError, match=f"and {reason}") as caught:
            data.load(name, folder=folder, download=download)
        message = str(caught.value)
        absent = f"(missing: {', '.join([*train, test, family.meta['filename']])})"
        assert absent in message and "is not the published" not in message


@pytest.mark.parametrize("name", CIFARS)
def test_a_hand_made_cifar_is_refused(name, tmp_path):
    """The sums are those that torchvision publishes."""
    family, *_ = CIFARS[name]
    base = tmp_path / family.base_folder
    base.mkdir()
    for file in (*family.train_list, *family.test_list, [family.meta["filename"]]):
        (base / file[0]).write_bytes(pickle.dumps(Trap(tmp_path / "TRAPPED")))
    first = family.train_list[0][0]
    with pytest.raises(RuntimeError, match=f"{first} is not the published file"):
        data.load(name, folder=tmp_path, download=False)
    assert not (tmp_path / "TRAPPED").exists()


# --- splits


def test_a_split_is_a_pair_that_can_know_its_origin():
    split = Split(torch.rand(6, 1, 4, 4), torch.arange(6))
    images, labels = split
    assert images is split.images is split[0] and labels is split.labels and len(split) == 2
    assert split.origin is None and Split.origin is None
    split.origin = {"name": "mnist-5k"}
    for twin in (
        pickle.loads(pickle.dumps(split)),
        pickle.loads(cloudpickle.dumps(split)),
        copy.deepcopy(split),
    ):
        assert type(twin) is Split and twin.origin == split.origin
        assert torch.equal(twin.images, images) and torch.equal(twin.labels, labels)
    again = Split(*split)
    changed = split._replace(labels=labels + 1)
    assert type(changed) is Split and torch.equal(changed.labels, labels + 1)
    assert again.origin is None and changed.origin is None  # other contents, other origin
    assert Split.of(split) is split
    made = Split.of((images, labels))
    assert type(made) is Split and made.images is images


def test_take_and_to():
    split = Split(torch.rand(6, 1, 4, 4), torch.arange(6))
    mask = torch.tensor([True, False, True, False, False, False])
    for index in (
        slice(0, 3, 2),
        torch.tensor([0, 2]),
        mask,
        [0, 2],
        np.array([0, 2]),
        mask.numpy(),
    ):
        assert split.take(index).labels.tolist() == [0, 2]
    bytes_ = torch.tensor([0, 2], dtype=torch.uint8)  # positions, not a mask
    assert split.take(bytes_).labels.tolist() == [0, 2]
    moved = split.to("cpu")
    assert moved.images is split.images and moved.labels is split.labels


# --- composites


def test_two_digits_labels_both_halves(digits):
    pairs = data.two_digits(digits.train, 200, seed=1)
    assert pairs.images.shape == (200, 1, 14, 28)
    small = torch.nn.functional.avg_pool2d(digits.train.images, 2).mul(1.3).clamp(0, 1)
    for half, read in (
        (pairs.images[..., :14], pairs.labels // 10),
        (pairs.images[..., 14:], pairs.labels % 10),
    ):
        match = torch.cdist(half[:20].flatten(1), small.flatten(1)).argmin(1)
        assert torch.equal(small[match], half[:20])
        assert torch.equal(digits.train.labels[match], read[:20])
    plain = data.two_digits(tuple(digits.train), 200, seed=1)  # a plain pair will do
    assert torch.equal(plain.images, pairs.images) and torch.equal(plain.labels, pairs.labels)


def test_shifted_composites_are_square_and_move_each_digit_by_itself(digits):
    flat = data.two_digits(digits.train, 300, seed=1)
    tall = data.two_digits(digits.train, 300, seed=1, shift=3)
    assert tall.images.shape == (300, 1, 28, 28) and torch.equal(tall.labels, flat.labels)
    middle = data.two_digits(digits.train, 300, seed=1, shift=0)
    assert torch.equal(middle.images[:, :, 7:21], flat.images)
    assert middle.images[:, :, :7].sum() == middle.images[:, :, 21:].sum() == 0
    drops = []
    for half in (slice(0, 14), slice(14, 28)):
        rolled = [middle.images[..., half].roll(drop, 2) for drop in range(-3, 4)]
        same = torch.stack([(tall.images[..., half] == one).all((1, 2, 3)) for one in rolled])
        assert same.any(0).all(), "each digit is whole, up to three pixels away"
        drops.append(same.float().argmax(0))
    assert all(len(drop.unique()) == 7 for drop in drops) and not torch.equal(*drops)


# --- domains

DOMAINS = {
    "colour_digits": lambda x, s: domains.colour_digits(x, torch.zeros(len(x)).long(), seed=s),
    "colour_background": lambda x, s: domains.colour_background(x, seed=s),
    "mnist_m": lambda x, s: domains.mnist_m(x, seed=s, part="train"),
    "stylise": lambda x, s: domains.stylise(x, seed=s),
    "add_noise": lambda x, s: domains.add_noise(x, seed=s),
    "colour_jitter": lambda x, s: domains.colour_jitter(domains.to_rgb(x), generator(s)),
    "scene": lambda x, s: domains.scene((x, torch.arange(len(x)) % 10), marker="random", seed=s)[0],
    "rotate": lambda x, s: domains.rotate(x, s),
}


@pytest.mark.parametrize("name", DOMAINS)
def test_random_domains_follow_their_seed_and_stay_in_range(name, digits):
    images = torch.nn.functional.avg_pool2d(digits.test.images[:20], 2)
    first, again, other = (DOMAINS[name](images, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.min() >= 0 and first.max() <= 1
    double = DOMAINS[name](images.double(), 1)  # the type of the images is kept
    torch.testing.assert_close(double, first.double(), atol=1e-5, rtol=0)


def test_fixed_domains():
    images = torch.zeros(1, 1, 8, 8)
    images[0, 0, 3, 3] = 1
    assert domains.invert(images).sum() == 63
    assert domains.silhouette(images).sum() == 9
    assert domains.edges(images).sum() == 1 + 2  # the pixel itself (clipped), right and below
    torch.testing.assert_close(domains.rotate(images, 360), images, atol=1e-5, rtol=0)
    assert domains.blur(images)[0, 0, 3, 3] == pytest.approx(1 / 9)
    assert domains.stripes(images)[0, 0, 0].tolist() == pytest.approx([0.6, 0.6, 0, 0] * 2)
    assert domains.stripes(images)[0, 0, 3, 3] == 1
    two = torch.cat([images, images])
    found = domains.unseen(two, torch.tensor([0, 1]), seed=0)
    assert found.keys() >= {"sketch", "cue conflict", "inverted", "noisy", "stylised"}
    assert all(domain.shape == (2, 3, 8, 8) for domain in found.values())


def test_a_sketch_keeps_a_thin_line():
    images = torch.zeros(50, 1, 12, 12)
    images[:, :, 2:10, 4:8] = torch.tensor([0.5, 1.0, 1.0, 0.5])  # a bar, four pixels wide
    lines = domains.sketch(images, seed=0)
    assert torch.equal(lines, domains.sketch(images, seed=0))
    assert not torch.equal(lines[0], lines[1]), "each line is unsteady in its own way"
    ink = lines[:, 0, 4:8].sum(2)  # of each row in the middle of the bar
    assert ink.mean() == pytest.approx(1, abs=0.1), "one pixel wide"
    assert lines[:, 0, :, :3].sum() < 1 and 0 <= lines.min() <= lines.max() <= 1


def test_cue_conflict_puts_small_digits_of_another_class_behind():
    images = torch.zeros(6, 1, 8, 8)
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    images[:3, 0, 0, 0], images[3:, 0, 2, 2] = 1, 1  # one pixel a digit: where says the class
    found = domains.cue_conflict(images, labels, seed=3)
    background = (found - images)[:, 0]
    assert background[:3].nonzero()[:, 1:].unique(dim=0).tolist() == [
        [1, 1],
        [1, 5],
        [5, 1],
        [5, 5],
    ]
    assert background[3:].nonzero()[:, 1:].unique(dim=0).tolist() == [
        [0, 0],
        [0, 4],
        [4, 0],
        [4, 4],
    ]
    assert background.max() == pytest.approx(0.6 / 4)
    with pytest.raises(ValueError, match="two classes or more"):
        domains.cue_conflict(images[:3], labels[:3], seed=0)
    with pytest.raises(ValueError, match="even sides"):
        domains.cue_conflict(images[:, :, 1:], labels, seed=0)


def test_jitter_turns_hue_by_half_its_strength_at_most():
    luminance = torch.tensor([0.299, 0.587, 0.114])
    grey, chroma = 0.5, torch.tensor([0.05, -0.02, 0.01])
    chroma = chroma - (luminance * chroma).sum()
    images = (grey + chroma).view(1, 3, 1, 1).repeat(2000, 1, 2, 2)
    axes = torch.tensor([[0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])

    def hue(found):
        i, q = axes @ found[:, :, 0, 0].T
        return torch.atan2(q, i) / (2 * torch.pi)

    for strength in (0.0, 0.3, 0.6):
        changed = domains.colour_jitter(images, generator(1), strength=strength)
        turn = (hue(changed) - hue(images) + 0.5) % 1 - 0.5
        assert turn.abs().max() == pytest.approx(strength / 2, abs=0.01)
        light = (luminance @ changed[:, :, 0, 0].T) / grey
        assert light.max() == pytest.approx(1 + strength, abs=0.02)
        assert light.min() == pytest.approx(1 - strength, abs=0.02)


def test_noise_and_textures_keep_what_they_should():
    plain = torch.full((4, 1, 28, 28), 0.5)
    assert torch.equal(domains.add_noise(plain, seed=0, std=0), plain)
    assert domains.add_noise(plain, seed=0, std=0.1).std() == pytest.approx(0.1, rel=0.05)
    texture = domains.patches(4, 28, seed=3, part="test")
    black, white = torch.zeros(4, 1, 28, 28), torch.ones(4, 1, 28, 28)
    assert torch.equal(domains.mnist_m(black, seed=3, part="test"), texture)
    assert torch.equal(domains.mnist_m(white, seed=3, part="test"), 1 - texture)
    assert torch.equal(domains.stylise(white, seed=3), texture)
    assert domains.stylise(black, seed=3).sum() == 0
    assert domains.colour_background(white, seed=0).min() == 1
    ground = domains.colour_background(black, seed=0)
    assert (ground == ground[:, :, :1, :1]).all() and ground.std(1).min() > 0  # one colour each


def test_rotation_turns_counter_clockwise():
    images = torch.zeros(1, 1, 5, 5)
    images[0, 0, 2, 4] = 1  # at three o'clock
    assert domains.rotate(images, 90)[0, 0, 0, 2] > 0.9  # goes to twelve o'clock


def test_hues_and_saturation():
    thirds = torch.tensor([0, 1 / 3, 2 / 3, 1])
    expected = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]])
    torch.testing.assert_close(domains.hue_to_rgb(thirds), expected, atol=1e-5, rtol=0)
    half = domains.hue_to_rgb(thirds, 0.5)
    torch.testing.assert_close(half, 0.5 + 0.5 * expected, atol=1e-5, rtol=0)
    assert torch.equal(domains.hue_to_rgb(thirds, 0), torch.ones(4, 3))


def test_photograph_strips_of_train_and_test_differ():
    train = domains.patches(300, 14, seed=0, part="train")
    test = domains.patches(300, 14, seed=0, part="test")
    assert torch.cdist(train.flatten(1), test.flatten(1)).min() > 0


def test_hue_tells_the_class_in_most_images(digits):
    x, y = digits.train
    coloured = domains.colour_digits(x, y, seed=0)
    red = coloured[y == 0].sum((2, 3))
    assert (red.argmax(1) == 0).float().mean() > 0.95
    told = domains.colour_digits(x, y, seed=0, bias=0)[y == 0].sum((2, 3))
    assert (told.argmax(1) == 0).float().mean() < 0.5


def test_scene_holds_digit_and_marker(digits):
    small = digits.test.take(slice(0, 60))
    told, random = (domains.scene(small, marker=m, seed=5) for m in ("class", "random"))
    assert told.images.shape == (60, 1, 32, 32)
    assert told.images.max() <= 1 and torch.equal(told.labels, small.labels)
    differs = (told.images - random.images).abs().flatten(1).amax(1) > 0.5
    assert differs.float().mean() > 0.7  # nine of ten random markers are wrong
    plain = domains.scene(tuple(small), marker="class", seed=5)
    assert torch.equal(plain.images, told.images)


# --- bad arguments, by enumeration

X, Y = torch.rand(4, 1, 8, 8), torch.arange(4)
RGB = X.expand(-1, 3, -1, -1).contiguous()
STREAMS = (None, 0, "seed")
PARTS = ("validation", "", None, 0)
GREY, ANY = (*bad.images_like(X), RGB), bad.images_like(X)
SPLITS = (
    None,
    X,
    (X, Y, Y),
    (X, None),
    (X[:0], Y[:0]),
    (X, Y[:2]),
    (X * bad.NAN, Y),
    (X.to(torch.uint8), Y),
    (X, Y + 10),
    (X, Y.float()),
    data.Dataset(Split(X, Y), Split(X, Y), Split(X, Y), "mine", 10),
)
SPLIT = Split(X, Y)
BAD_DATA: bad.Table = {
    "Split.of": ({"found": SPLIT}, {"found": (*SPLITS[:6], SPLITS[-1])}),
    "Split.take": (
        {"self": SPLIT, "index": [0]},
        {"index": (1, 1.5, [0.5], [bad.NAN], torch.tensor([[0]]), torch.tensor(2))},
    ),
    "generator": ({"seed": 1}, {"seed": bad.SEEDS}),
    "device_of": ({"device": "cpu"}, {"device": (None, "gpu", 1.5)}),
    "load": (
        {"name": "mnist-5k"},
        {
            "name": ("imagenet", "", None, 3),
            "size": (*bad.SIZES[:4], *bad.SIZES[5:], 3),
            "device": ("gpu", None),
            "download": bad.SWITCHES,
        },
    ),
    "published": (
        {"name": "mnist-5k"},
        {
            "name": ("imagenet", ".", None, 3),
            "size": (*bad.SIZES[:4], *bad.SIZES[5:], 3),
            "device": ("gpu", None),
            "download": bad.SWITCHES,
        },
    ),
    "on_disk": ({"name": "mnist-5k"}, {"name": ("imagenet", None, 3)}),
    "two_digits": (
        {"split": SPLIT, "count": 2, "seed": 0, "shift": 2},
        {
            "split": (*SPLITS, (RGB, Y)),
            "count": bad.SIZES,
            "seed": bad.SEEDS,
            "shift": (-1, 3, 1.5, "2"),
        },
    ),
}
EXEMPT_DATA = {
    "Split.of.name": "a name for messages",
    "Split.to": "torch names the devices that it knows",
    "load.folder": "read only where a set is not shipped; see the test of a folder",
    "published.folder": "as in load",
    "own_images": "see the tests of folders",
    "on_disk.folder": "as in load",
}
BAD_DOMAINS: bad.Table = {
    "to_rgb": ({"images": X}, {"images": GREY}),
    "hue_to_rgb": (
        {"hue": torch.rand(3)},
        {
            "hue": (*bad.numbers_in(torch.rand(3), unit=True), torch.rand(3, 1)),
            "saturation": (*bad.NUMBERS, -0.1, 1.1),
        },
    ),
    "colour_digits": (
        {"images": X, "labels": Y, "seed": 0},
        {
            "images": GREY,
            "labels": bad.classes_like(Y, 10),
            "seed": bad.SEEDS,
            "bias": (*bad.NUMBERS, -0.1, 2),
        },
    ),
    "colour_jitter": (
        {"images": RGB, "stream": generator(0)},
        {
            "images": (*bad.images_like(RGB), X),
            "stream": STREAMS,
            "strength": (*bad.NUMBERS, -0.1, 1.1),
        },
    ),
    "colour_background": ({"images": X, "seed": 0}, {"images": GREY, "seed": bad.SEEDS}),
    "patches": (
        {"count": 2, "side": 4, "seed": 0, "part": "train"},
        {"count": bad.SIZES, "side": (*bad.SIZES, 33), "seed": bad.SEEDS, "part": PARTS},
    ),
    "mnist_m": (
        {"images": X, "seed": 0, "part": "train"},
        {
            "images": (*GREY, X[..., :4], torch.rand(1, 1, 33, 33)),
            "seed": bad.SEEDS,
            "part": PARTS,
        },
    ),
    "stylise": (
        {"images": X, "seed": 0},
        {"images": (*GREY, X[..., :4]), "seed": bad.SEEDS, "part": PARTS},
    ),
    "rotate": ({"images": X, "degrees": 30}, {"images": ANY, "degrees": bad.NUMBERS}),
    "invert": ({"images": X}, {"images": ANY}),
    "edges": ({"images": X}, {"images": ANY}),
    "silhouette": ({"images": X}, {"images": ANY}),
    "blur": ({"images": X}, {"images": ANY}),
    "stripes": ({"images": X}, {"images": ANY}),
    "add_noise": (
        {"images": X, "seed": 0},
        {"images": ANY, "seed": bad.SEEDS, "std": (*bad.NUMBERS, -1)},
    ),
    "sketch": ({"images": X, "seed": 0}, {"images": GREY, "seed": bad.SEEDS}),
    "cue_conflict": (
        {"images": X, "labels": Y, "seed": 0},
        {"images": GREY, "labels": bad.classes_like(Y, 10), "seed": bad.SEEDS},
    ),
    "unseen": (
        {"images": X, "labels": Y, "seed": 0},
        {
            "images": (*GREY, X[..., :4]),
            "labels": bad.classes_like(Y, 10),
            "seed": bad.SEEDS,
        },
    ),
    "scene": (
        {"split": SPLIT, "marker": "class", "seed": 0},
        {"split": (*SPLITS, (RGB, Y)), "marker": ("none", None, 1), "seed": bad.SEEDS},
    ),
}


@pytest.mark.parametrize("name, parameter", bad.checks(BAD_DATA))
def test_data_refuses_bad_arguments_by_name(name, parameter):
    bad.refuses(data, BAD_DATA, name, parameter, said="split" if parameter == "found" else "")


@pytest.mark.parametrize("name, parameter", bad.checks(BAD_DOMAINS))
def test_domains_refuse_bad_arguments_by_name(name, parameter):
    bad.refuses(domains, BAD_DOMAINS, name, parameter)


def test_no_argument_was_forgotten():
    assert bad.missing(data, BAD_DATA, EXEMPT_DATA) == []
    assert bad.missing(domains, BAD_DOMAINS, {}) == []


def test_a_folder_must_be_a_path():
    for folder in (3, True, ["data"]):
        with pytest.raises(TypeError, match="folder must be a str or Path"):
            data.load("mnist", folder=folder)


def test_the_list_of_arguments_would_show_a_new_function(monkeypatch):
    def new(images, amount):
        return images

    new.__module__ = domains.__name__
    monkeypatch.setattr(domains, "new", new, raising=False)
    assert bad.missing(domains, BAD_DOMAINS, {}) == ["new.amount", "new.images"]
    assert "amount" in inspect.signature(domains.new).parameters
