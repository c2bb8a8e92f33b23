"""Data sets, splits, augmentations and domains."""

import pytest
import torch

from kdlib import data, domains
from kdlib.data import generator


@pytest.fixture(scope="module")
def digits():
    return data.load()


def test_shipped_set_has_the_fixed_stratified_split(digits):
    sizes = [split.labels.bincount().tolist() for split in digits[:3]]
    assert sizes == [[350] * 10, [50] * 10, [100] * 10]
    again = data.load()
    assert torch.equal(digits.test.images, again.test.images)
    assert digits.train.images.shape == (3500, 1, 28, 28)
    assert 0 <= digits.train.images.min() and digits.train.images.max() == 1


def test_no_image_is_in_two_splits(digits):
    rows = torch.cat([split.images for split in digits[:3]]).flatten(1)
    assert len(torch.unique(rows, dim=0)) == 5000


def test_size_averages_areas(digits):
    small = data.load(size=14)
    expected = torch.nn.functional.avg_pool2d(digits.test.images, 2)
    torch.testing.assert_close(small.test.images, expected)


def test_load_names_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match="name 'imagenet' .*mnist-5k"):
        data.load("imagenet")
    with pytest.raises(ValueError, match="device 'gpu'"):
        data.load(device="gpu")
    with pytest.raises(ValueError, match="size must be at least 4"):
        data.load(size=2)
    with pytest.raises(FileNotFoundError, match="copy torchvision's original files"):
        data.load("cifar10", folder=tmp_path, download=False)


def test_damaged_asset_is_reported_with_its_remedy(tmp_path, monkeypatch):
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / data.ASSET).write_bytes(b"PK\x03\x04 not really a zip")
    monkeypatch.setattr(data.resources, "files", lambda package: tmp_path)
    with pytest.raises(RuntimeError, match="damaged or missing .*`git checkout"):
        data.load()


def test_torchvision_sets_become_three_splits(tmp_path):
    import numpy as np
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for stem, count in (("train", 100), ("t10k", 20)):
        labels = np.arange(count, dtype=np.uint8) % 10
        images = np.repeat(labels, 784).astype(np.uint8)
        head = (2051).to_bytes(4, "big") + count.to_bytes(4, "big") + (28).to_bytes(4, "big") * 2
        (raw / f"{stem}-images-idx3-ubyte").write_bytes(head + images.tobytes())
        head = (2049).to_bytes(4, "big") + count.to_bytes(4, "big")
        (raw / f"{stem}-labels-idx1-ubyte").write_bytes(head + labels.tobytes())
    loaded = data.load("mnist", folder=tmp_path, download=False)
    assert [len(split.labels) for split in loaded[:3]] == [90, 10, 20]
    assert loaded.validation.labels.bincount().tolist() == [1] * 10
    for split in loaded[:3]:  # images stay with their labels
        assert torch.equal((split.images[:, 0, 0, 0] * 255).round().long(), split.labels)


def test_shift_moves_by_whole_pixels_and_repeats(digits):
    images = digits.test.images[:50]
    moved = data.shift(images, generator(3), pixels=2)
    assert torch.equal(moved, data.shift(images, generator(3), pixels=2))
    padded = torch.nn.functional.pad(images, (2,) * 4)
    for image, original in zip(moved, padded):
        candidates = [original[:, y:y + 28, x:x + 28] for y in range(5) for x in range(5)]
        assert any(torch.equal(image, candidate) for candidate in candidates)


def test_mixup_blends_partners(digits):
    images = digits.test.images[:8]
    mixed, weight, partner = data.mixup(images, generator(0))
    expected = weight[3] * images[3] + (1 - weight[3]) * images[partner[3]]
    torch.testing.assert_close(mixed[3], expected)


def test_two_digits_labels_both_halves(digits):
    pairs = data.two_digits(digits.train, 200, seed=1)
    assert pairs.images.shape == (200, 1, 14, 28)
    assert pairs.labels.min() >= 0 and pairs.labels.max() <= 99
    small = torch.nn.functional.avg_pool2d(digits.train.images, 2).mul(1.3).clamp(0, 1)
    left = pairs.images[0, :, :, :14]
    match = (small - left).abs().flatten(1).sum(1).argmin()
    assert digits.train.labels[match] == pairs.labels[0] // 10


DOMAINS = {
    "colour_digits": lambda x, s: domains.colour_digits(x, torch.zeros(len(x)).long(), seed=s),
    "colour_background": lambda x, s: domains.colour_background(x, seed=s),
    "mnist_m": lambda x, s: domains.mnist_m(x, seed=s, part="train"),
    "stylise": lambda x, s: domains.stylise(x, seed=s),
    "noise": lambda x, s: domains.add_noise(x, seed=s),
    "jitter": lambda x, s: domains.colour_jitter(domains.to_rgb(x), generator(s)),
}


@pytest.mark.parametrize("name", DOMAINS)
def test_random_domains_follow_their_seed_and_stay_in_range(name, digits):
    images = data.F.avg_pool2d(digits.test.images[:20], 2)
    first, again, other = (DOMAINS[name](images, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.min() >= 0 and first.max() <= 1


def test_fixed_domains():
    images = torch.zeros(1, 1, 8, 8)
    images[0, 0, 3, 3] = 1
    assert domains.invert(images).sum() == 63
    assert domains.silhouette(images).sum() == 9
    assert domains.edges(images).sum() == 1 + 2  # the pixel itself (clipped), right and below
    torch.testing.assert_close(domains.rotate(images, 360), images, atol=1e-5, rtol=0)


def test_rotation_turns_counter_clockwise():
    images = torch.zeros(1, 1, 5, 5)
    images[0, 0, 2, 4] = 1  # at three o'clock
    assert domains.rotate(images, 90)[0, 0, 0, 2] > 0.9  # goes to twelve o'clock


def test_photograph_strips_of_train_and_test_differ():
    train = domains.patches(300, 14, seed=0, part="train")
    test = domains.patches(300, 14, seed=0, part="test")
    assert torch.cdist(train.flatten(1), test.flatten(1)).min() > 0
    with pytest.raises(ValueError, match="part must be"):
        domains.patches(1, 14, seed=0, part="validation")


def test_hue_tells_the_class_in_most_images(digits):
    x, y = digits.train
    coloured = domains.colour_digits(x, y, seed=0)
    red = coloured[y == 0].sum((2, 3))
    assert (red.argmax(1) == 0).float().mean() > 0.95


def test_scene_holds_digit_and_marker(digits):
    small = digits.test.take(slice(0, 60))
    told, random = (domains.scene(small, marker=m, seed=5) for m in ("class", "random"))
    assert told.images.shape == (60, 1, 32, 32)
    assert told.images.max() <= 1
    differs = (told.images - random.images).abs().flatten(1).amax(1) > 0.5
    assert differs.float().mean() > 0.7  # nine of ten random markers are wrong
    with pytest.raises(ValueError, match="marker"):
        domains.scene(small, marker="none", seed=0)


@pytest.mark.parametrize("images, message", [
    (torch.zeros(0, 1, 8, 8), "n >= 1"), (torch.full((1, 1, 8, 8), 2.0), "span 2 to 2"),
    (torch.full((1, 1, 8, 8), torch.nan), "finite"), (torch.zeros(8, 8), "must be")])
def test_domains_reject_what_is_not_an_image(images, message):
    with pytest.raises(ValueError, match=message):
        domains.invert(images)


