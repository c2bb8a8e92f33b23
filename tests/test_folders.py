"""One's own images: layouts, decoding, the kept bytes, what is left out, and records."""

import os
import re
import sys
import time
import warnings
from functools import partial
from pathlib import Path

import bad
import numpy as np
import pytest
import torch
from PIL import Image

from kdlib import data, folders, models, recipes
from kdlib.experiments import compare
from kdlib.repetition import repeat

SIDE = 8
LINKS = pytest.mark.skipif(os.name == "nt", reason="Windows makes no links without a privilege")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """The working folder of a team; decoded images are kept beside it."""
    monkeypatch.setenv("KDLIB_DATA", str(tmp_path / "kept"))
    monkeypatch.setenv("KDLIB_PROGRESS", "0")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def picture(label, number, side=SIDE, mode="RGB"):
    """An image that tells its class and its number: red and green of every pixel."""
    return Image.new("RGB", (side, side), (40 * label + 10, number, 5)).convert(mode)


def write(place, counts, mode="RGB", start=0):
    """counts[name] images of each class into sub-folders of `place`, labels by the sorted names."""
    for label, name in enumerate(sorted(counts)):
        (Path(place) / name).mkdir(parents=True)
        for number in range(start, start + counts[name]):
            file = Path(place) / name / f"{number:03}.png"
            picture(label, number, mode=mode).save(file)


def load(place="photos", **options):
    return data.load(place, **({"size": SIDE} | options))


def told(split):
    """(label, number) of each image, as its pixels tell them."""
    pixels = (split.images[:, :2, 0, 0] * 255).round().long()
    labels = (pixels[:, 0] - 10) // 40
    assert torch.equal(labels, split.labels)  # images stay with their labels
    return set(zip(labels.tolist(), pixels[:, 1].tolist()))


@pytest.fixture
def decoding(monkeypatch):
    """Counts the calls of `folders.decode`."""
    calls, decode = [], folders.decode
    monkeypatch.setattr(
        folders, "decode", lambda stream, size: calls.append(size) or decode(stream, size)
    )
    return calls


# --- layouts


def test_a_folder_of_classes_becomes_three_stratified_splits():
    write("photos", {"dog": 20, "cat": 10, "ant": 3})
    found = load()
    assert found.classes == ("ant", "cat", "dog") and found.num_classes == 3
    assert found.name == "photos"
    sizes = [split.labels.bincount().tolist() for split in found[:3]]
    assert sizes == [[1, 7, 14], [1, 1, 2], [1, 2, 4]]
    seen = [told(split) for split in found[:3]]
    assert len(set.union(*seen)) == 33 == sum(map(len, seen))
    assert found.train.images.shape == (22, 3, SIDE, SIDE)
    assert found.train.images.dtype == torch.float32 and found.train.labels.dtype == torch.int64
    again = load(Path("photos"))
    for split, other in zip(found[:3], again[:3]):
        assert torch.equal(split.images, other.images) and torch.equal(split.labels, other.labels)
    order = found.train.labels.tolist()
    assert order != sorted(order)  # the first images are not all of one class


def test_the_shares_are_those_of_the_shipped_set():
    assert data._shares(500) == (350, 50, 100)
    assert data._shares(3) == (1, 1, 1)


def test_splits_of_ones_own_are_kept():
    write("photos/train", {"a": 4, "b": 3})
    write("photos/Val", {"a": 1, "b": 2}, start=50)
    write("photos/test", {"a": 2, "b": 1}, start=90)
    found = load()
    assert told(found.train) == {(0, n) for n in range(4)} | {(1, n) for n in range(3)}
    assert told(found.validation) == {(0, 50), (1, 50), (1, 51)}
    assert told(found.test) == {(0, 90), (0, 91), (1, 90)}


def test_a_missing_validation_set_comes_from_the_training_images():
    write("photos/train", {"a": 20, "b": 2})
    write("photos/test", {"a": 1, "b": 1}, start=90)
    found = load()
    sizes = [split.labels.bincount().tolist() for split in found[:3]]
    assert sizes == [[18, 1], [2, 1], [1, 1]]
    assert told(found.train) | told(found.validation) == {
        *((0, n) for n in range(20)),
        *((1, n) for n in range(2)),
    }
    assert told(found.test) == {(0, 90), (1, 90)}


@LINKS
def test_images_lie_at_any_depth_and_links_are_followed(home):
    write("photos", {"a": 3, "b": 3})
    write("elsewhere", {"x": 1, "y": 1}, start=70)
    (home / "photos" / "a" / "deep" / "er").mkdir(parents=True)
    picture(0, 60).save("photos/a/deep/er/x.PNG")
    (home / "photos" / "b" / "link").symlink_to(home / "elsewhere" / "y")
    (home / "photos" / "b" / "round").symlink_to(home / "photos" / "b")
    for hidden in (".hidden", "__MACOSX"):
        (home / "photos" / hidden).mkdir()
    (home / "photos" / "a" / "._000.png").write_text("what macOS leaves behind")
    found = load()
    seen = set.union(*(told(split) for split in found[:3]))
    assert found.classes == ("a", "b") and len(seen) == 8 and {(0, 60), (1, 70)} <= seen


def test_the_device_and_the_default_size():
    write("photos", {"a": 3, "b": 3})
    found = data.load("photos", device="cpu")
    assert found.train.images.shape == (2, 3, 32, 32) and found.train.images.device.type == "cpu"


def test_names_of_known_sets_come_first(monkeypatch):
    write("mnist-5k", {"a": 3, "b": 3})
    assert data.load().name == "mnist-5k" and data.load().num_classes == 10
    assert data.load("./mnist-5k", size=SIDE).classes == ("a", "b")


# --- what is wrong with a folder


def nothing():
    """No folder at all."""


def file():
    Path("photos").write_bytes(b"PK")


def empty():
    Path("photos").mkdir()


def empty_classes():
    for name in "ab":
        Path("photos", name).mkdir(parents=True)


def loose():
    Path("photos").mkdir()
    picture(0, 0).save("photos/x.png")


def beside():
    write("photos/train", {"a": 3, "b": 3})
    write("photos/test", {"a": 3, "b": 3})
    write("photos", {"c": 3})


def text_only():
    for name in "ab":
        Path("photos", name).mkdir(parents=True)
        Path("photos", name, "notes.txt").write_text("not an image")


def splits(**counts):
    def make():
        for part, found in counts.items():
            write(Path("photos", part), found)

    return make


AB = {"a": 3, "b": 3}
WRONG = {
    "nothing": (nothing, "got 'photos': there is no such folder"),
    "file": (file, "that is a file: unpack it"),
    "empty": (empty, "with none: give the folder that lies directly above"),
    "one class": (partial(write, "photos", {"a": 9}), "with only 'a': give the folder that lies"),
    "loose": (loose, "with none: put the images of each class into a folder of its own"),
    "empty classes": (empty_classes, "whose 2 sub-folders hold no file"),
    "no image": (text_only, "none can be read; a/notes.txt: no image of a known format"),
    "few": (
        partial(write, "photos", {"a": 2, "b": 3, "c": 1}),
        r"at least 3\); in 'photos' 'a' has 2, 'c' has 1: add images",
    ),
    "few to hold out": (
        splits(train={"a": 1, "b": 2}, test=AB),
        r"at least 2 in train, 1 in test\); in 'photos' 'a' has 1 in train:",
    ),
    "a class only in train": (
        splits(train=AB | {"c": 3}, val=AB, test=AB),
        "'c' has 0 in validation, 'c' has 0 in test: add",
    ),
    "no test set": (splits(train=AB, val=AB), "only train and val: rename the second to test"),
    "no training set": (splits(val=AB, test=AB), "only test and val: train and test are needed"),
    "two of one": (splits(train=AB, val=AB, valid=AB, test=AB), "two folders for validation: join"),
    "others": (beside, "the splits test, train beside c: move the other folders away"),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.filterwarnings("ignore:files left out")
def test_an_unusable_folder_is_reported_with_what_to_do(case):
    make, message = WRONG[case]
    make()
    for _ in range(2):  # the second time from what was kept, if anything was
        with pytest.raises(ValueError, match=message) as caught:
            load()
        assert str(caught.value).startswith("name must be ") and "'photos'" in str(caught.value)


# --- decoding


def decoded(image, suffix="png", side=4, **options):
    """What the kit makes of an image that was saved as a file: [3, side, side]."""
    place = Path(f"x.{suffix}")
    image.save(place, **options)
    with open(place, "rb") as stream:
        return folders.decode(stream, side)


@pytest.mark.parametrize("suffix", ["png", "jpg", "jpeg", "webp", "bmp", "gif", "tif"])
def test_every_format_is_read(suffix):
    colour = (200, 100, 40)
    for side in (4, 64):  # large JPEGs are decoded at a part of their size
        found = decoded(Image.new("RGB", (side, side), colour), suffix)
        assert found.shape == (3, 4, 4) and found.dtype == np.uint8
        assert np.abs(found[:, 0, 0] - np.array(colour, float)).max() <= 3
        assert (found == found[:, :1, :1]).all()


def test_pixels_of_the_chosen_size_are_kept_to_the_bit():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8)
    assert np.array_equal(decoded(Image.fromarray(pixels)), pixels.transpose(2, 0, 1))


@pytest.mark.parametrize("side", [5, 9, 16, 40])
def test_resizing_smooths_what_shrinks(side):
    """Beside PyTorch's own antialiased resizing, on the worst case: noise."""
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    found = decoded(Image.fromarray(pixels), side=8)
    expected = torch.nn.functional.interpolate(
        torch.tensor(pixels.transpose(2, 0, 1)[None]).double(),
        size=8,
        mode="bilinear",
        antialias=True,
    )[0]
    assert np.abs(found - expected.numpy()).max() <= 1.01
    if side == 16:  # without smoothing, lines one pixel wide would all be black or all white
        lines = np.zeros((16, 16, 3), np.uint8)
        lines[:, ::2] = 255
        assert np.abs(decoded(Image.fromarray(lines), side=8)[:, :, 1:-1] - 127.5).max() < 2


def test_the_shorter_side_is_resized_and_the_centre_cropped():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 12, 3), np.uint8)
    wide = Image.fromarray(pixels)
    whole = np.asarray(wide.resize((8, 4), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert np.array_equal(decoded(wide), whole[:, :, 2:6])
    tall = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 0, 2)))
    apart = decoded(tall) - whole[:, :, 2:6].transpose(0, 2, 1).astype(int)
    assert np.abs(apart).max() <= 1  # rows and columns are resized, and rounded, in one order
    assert np.array_equal(decoded(wide, side=6), pixels[:, 3:9].transpose(2, 0, 1))


def test_grey_palettes_sixteen_bits_and_print_colours():
    ramp = np.arange(16, dtype=np.uint8).reshape(4, 4) * 17
    grey = Image.fromarray(ramp)
    assert np.array_equal(decoded(grey), np.stack([ramp] * 3))
    assert np.array_equal(decoded(grey.convert("P"), "gif"), np.stack([ramp] * 3))
    deep = Image.fromarray(ramp.astype(np.uint16) * 257)
    for suffix in ("png", "tif"):
        assert np.array_equal(decoded(deep, suffix), np.stack([ramp] * 3))
    one_bit = decoded(Image.fromarray((ramp > 100).astype(np.uint8) * 255).convert("1"))
    assert np.array_equal(one_bit[0], (ramp > 100) * 255)
    print_colours = decoded(Image.new("RGB", (8, 8), (250, 250, 250)).convert("CMYK"), "jpg")
    assert np.abs(print_colours - 250.0).max() < 4
    with pytest.raises(ValueError, match="more than 16 bits"):
        decoded(Image.fromarray(ramp.astype(np.float32)), "tif")


def test_transparent_pixels_are_laid_on_white():
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[..., 0], pixels[:2, :, 3], pixels[2, :, 3] = 255, 255, 51  # red: solid, a fifth, none
    found = decoded(Image.fromarray(pixels))
    assert found[:, 0, 0].tolist() == [255, 0, 0] and found[:, 3, 0].tolist() == [255] * 3
    assert np.abs(found[:, 2, 0] - np.array([255, 204, 204])).max() <= 1
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([9, 9, 9, 0, 0, 255])
    assert decoded(palette, transparency=1)[:, 0, 0].tolist() == [255] * 3
    assert decoded(palette)[:, 0, 0].tolist() == [0, 0, 255]
    faint = Image.fromarray(np.full((4, 4, 2), [0, 51], np.uint8))
    assert np.abs(decoded(faint)[:, 0, 0] - 204.0).max() <= 1


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_telephones_note_how_they_were_held(suffix):
    upright = np.zeros((64, 48, 3), np.uint8)
    upright[:32] = 255  # white above, black below
    exif = Image.Exif()
    exif[0x0112] = 6  # turn the stored pixels a quarter clockwise to see them upright
    stored = Image.fromarray(np.ascontiguousarray(np.rot90(upright)))
    found = decoded(stored, suffix, side=8, exif=exif).astype(float)
    assert found[:, :3].min() > 240 and found[:, -3:].max() < 15


def test_an_animation_gives_its_first_image():
    first, second = (Image.new("RGB", (4, 4), colour) for colour in ("red", "blue"))
    found = decoded(first, "gif", save_all=True, append_images=[second])
    assert found[:, 0, 0].tolist() == [255, 0, 0]


def test_grey_only_if_all_are_grey():
    write("photos", {"a": 5, "b": 5}, mode="L")
    found = load()
    assert found.train.images.shape[1] == 1
    picture(1, 99).save("photos/b/colour.png")
    mixed = load()
    assert mixed.train.images.shape[1] == 3
    greys = (mixed.train.images[:, :1] == mixed.train.images).flatten(1).all(1)
    assert greys.sum() >= len(greys) - 1


# --- what is left out


@LINKS
def test_files_that_cannot_be_read_are_named_and_counted(decoding):
    write("photos", {"a": 5, "b": 5})
    whole = Path("photos/a/000.png").read_bytes()
    Path("photos/a/cut.png").write_bytes(whole[:-30])
    Path("photos/a/empty.jpg").write_bytes(b"")
    Path("photos/b/absent.png").symlink_to("nowhere.png")
    Path("photos/b/program.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n")
    picture(0, 0).save("photos/loose.png")
    Path("photos/README.txt").write_text("beside the classes anything may lie")
    for _ in range(2):  # decoded, then kept
        with pytest.warns(UserWarning, match="files left out of photos: 5;") as caught:
            found = load()
        text = str(caught[0].message)
        for line in (
            "loose.png: lies in the folder of no class",
            "a/empty.jpg: no image of a known format",
            "b/absent.png: No such file",
            "b/program.eps: no image of a known format",
        ):
            assert f"\n  {line}" in text
        assert re.search(r"\n  a/cut.png: \w+", text) and "README" not in text
        assert sum(len(told(split)) for split in found[:3]) == 10
        assert caught[0].filename == __file__
    assert len(decoding) == 13  # not the broken link, and all of them once
    for number in range(20):
        Path(f"photos/a/{number}.txt").write_text("x")
    with pytest.warns(UserWarning, match="photos: 25;") as caught:
        load()
    text = str(caught[0].message)
    assert text.count("\n") == 21 and text.endswith("and 5 more")


def test_a_bomb_is_left_out(monkeypatch):
    write("photos", {"a": 3, "b": 3})
    Image.new("L", (400, 400)).save("photos/a/bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    with pytest.warns(UserWarning, match="a/bomb.png: .*decompression bomb"):
        load()


# --- what is kept


def kept():
    return list((data.data_folder() / "images").iterdir())


def test_images_are_decoded_once(decoding):
    write("photos", {"a": 5, "b": 5})
    first = load()
    assert len(decoding) == 10
    again = load()
    assert len(decoding) == 10
    assert again.classes == first.classes and again.num_classes == 2
    for split, other in zip(first[:3], again[:3]):
        assert torch.equal(split.images, other.images) and torch.equal(split.labels, other.labels)
    (file,) = kept()  # nothing half written lies there
    with np.load(file, allow_pickle=False) as stored:
        assert stored["images"].dtype == np.uint8 and stored["images"].shape == (10, 3, SIDE, SIDE)
    load(size=4)
    assert len(decoding) == 20 and len(kept()) == 2
    load()
    load(size=4)
    assert len(decoding) == 20


CHANGES = {
    "pixels": lambda: picture(2, 200).save("photos/a/000.png"),
    "added": lambda: picture(0, 200).save("photos/a/x.png"),
    "taken away": lambda: Path("photos/a/000.png").unlink(),
    "renamed": lambda: Path("photos/a/000.png").rename("photos/a/zzz.png"),
    "another class": lambda: Path("photos/a/000.png").rename("photos/b/zzz.png"),
    "a class renamed": lambda: Path("photos/a").rename("photos/c"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_folder_is_decoded_again(change, decoding):
    write("photos", {"a": 6, "b": 6})
    load()
    assert len(decoding) == 12
    CHANGES[change]()
    load()
    assert len(decoding) > 12 and len(kept()) == 1


def test_two_folders_of_one_name_do_not_meet():
    for place, label in (("one/photos", 0), ("two/photos", 3)):
        for name in "ab":
            Path(place, name).mkdir(parents=True)
            for number in range(3):
                picture(label, number).save(Path(place, name, f"{number}.bmp"))
    for path in Path().rglob("*.bmp"):
        os.utime(path, (1, 1))  # of the same sizes and times
    first, second = load("one/photos"), load("two/photos")
    assert first.train.images[0, 0, 0, 0] != second.train.images[0, 0, 0, 0]


class Trap:
    """Writes a file where it is unpickled."""

    def __reduce__(self):
        return open, ("TRAPPED", "w")


@pytest.mark.parametrize("damage", ["cut", "one bit", "empty", "pickled", "other content"])
def test_a_damaged_file_is_made_again(damage, decoding, home):
    write("photos", {"a": 5, "b": 5})
    expected = load()
    (file,) = kept()
    content = bytearray(file.read_bytes())
    with np.load(file) as stored:
        arrays = dict(stored)
    if damage == "cut":
        file.write_bytes(content[:-100])
    elif damage == "one bit":
        content[content.index(b"\x0a" * SIDE**2)] ^= 1
        file.write_bytes(content)
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "pickled":
        arrays["images"] = np.array([Trap()], object)
        np.savez(file, **arrays)
    else:
        np.savez(file, **(arrays | {"labels": arrays["labels"][::-1]}))
    found = load()
    assert len(decoding) == 20 and not (home / "TRAPPED").exists()
    assert torch.equal(found.train.images, expected.train.images)
    load()
    assert len(decoding) == 20  # the new one is whole


def test_a_place_that_cannot_be_written_is_no_obstacle(tmp_path, monkeypatch, decoding):
    write("photos", {"a": 3, "b": 3})
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KDLIB_DATA", str(tmp_path / "file"))
    for _ in range(2):
        with pytest.warns(UserWarning, match="could not be kept .*set KDLIB_DATA"):
            assert len(load().train.labels) == 2
    assert len(decoding) == 12


def test_an_interrupt_leaves_nothing_behind(monkeypatch):
    write("photos", {"a": 150, "b": 150})
    calls = []

    def stop(stream, size):
        calls.append(size)
        if len(calls) > 1:
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(folders, "decode", stop)
    with pytest.raises(KeyboardInterrupt):
        load()
    assert len(calls) < 200  # it does not wait for the other images
    assert not (data.data_folder() / "images").exists()


def test_the_folder_of_kept_images_is_chosen(tmp_path):
    write("photos", {"a": 3, "b": 3})
    load(folder=tmp_path / "other")
    assert len(list((tmp_path / "other" / "images").iterdir())) == 1
    assert not data.data_folder().exists()


def test_a_bar_shows_while_images_are_decoded(monkeypatch, capsys):
    write("photos", {"a": 3, "b": 3})
    load()
    assert capsys.readouterr().err == ""
    monkeypatch.delenv("KDLIB_PROGRESS")
    load(size=5)
    assert capsys.readouterr().err == "", "not in a file, nor in a notebook's outputs"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    load(size=4)
    assert "decoding images" in capsys.readouterr().err
    load(size=4)
    assert capsys.readouterr().err == ""


# --- records


def test_a_run_on_ones_own_images_repeats_from_its_record(home, tmp_path, monkeypatch):
    write("photos", {"a": 20, "b": 20})
    found = data.load(home / "photos", size=SIDE, folder=tmp_path / "other")
    compare(
        {"A": {}},
        student=partial(models.ConvNet, (4, 8), in_channels=3, num_classes=2),
        train=found.train,
        evaluate_on=found.validation,
        seeds=[0],
        epochs=2,
        folder=home / "runs",
        workers=1,
        progress=False,
    )
    (path,) = (home / "runs").rglob("*.json")
    text = path.read_text()
    assert str(tmp_path) not in text and "kdlib.data:own_images" in text
    assert repeat(path).verdict == "repeats"
    picture(3, 3).save("photos/a/000.png")
    with pytest.raises(ValueError, match="content of 'photos' must be .* not those of the record"):
        repeat(path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="place must be a folder below the working folder"):
        repeat(path)


def test_images_from_elsewhere_are_no_part_of_a_recipe(home, monkeypatch):
    write("photos", {"a": 3, "b": 3})
    recipe = recipes.recipe_of(load().train)
    assert torch.equal(recipes.make(recipe).images, load().train.images)
    assert recipe["of"]["args"] == ["photos"] and recipe["of"]["kwargs"]["size"] == SIDE
    (home / "deeper").mkdir()
    monkeypatch.chdir(home / "deeper")
    for place in ("../photos", home / "photos"):
        with pytest.raises(recipes.Unrepeatable, match="outside of the working folder"):
            recipes.recipe_of(load(place).train)


FOREIGN = [
    "{home}/photos",
    "../work/photos",
    "photos/../../work/photos",
    "photos\\..\\photos",
    "C:photos",
    "C:\\photos",
    "\\\\host\\share",
    "//host/share",
    "~/photos",
]


@pytest.mark.parametrize("place", FOREIGN)
def test_a_foreign_record_names_no_other_place(place, home, monkeypatch):
    write("photos", {"a": 3, "b": 3})
    monkeypatch.setattr(folders, "read", lambda *_: pytest.fail("a folder was read"))
    place = place.format(home=home)
    recipe = {"call": "kdlib.data:own_images", "args": [place], "kwargs": {"content": ""}}
    with pytest.raises(ValueError, match="place must be a folder below the working folder"):
        recipes.make(recipe)
    with pytest.raises(ValueError, match="nothing that a record may call"):
        recipes.make({"call": "kdlib.data:load", "args": [place]})
    with pytest.raises(ValueError, match="may not name places"):
        recipes.make(recipe | {"kwargs": {"folder": place}})


def test_the_digest_follows_the_files_and_nothing_else(home):
    write("photos", {"a": 3, "b": 3})
    write("copy/photos", {"a": 3, "b": 3})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first, second = (
            recipes.recipe_of(load(place).train)["of"]["kwargs"]["content"]
            for place in ("photos", "copy/photos")
        )
    assert first == second  # not the place, not the time
    picture(0, 77).save("photos/a/000.png")
    assert recipes.recipe_of(load().train)["of"]["kwargs"]["content"] != first


# --- bad arguments


def test_own_images_refuses_bad_arguments_by_name():
    write("photos", {"a": 3, "b": 3})
    content = recipes.recipe_of(load().train)["of"]["kwargs"]["content"]
    good = {"place": "photos", "content": content, "size": SIDE, "device": "cpu"}
    table: bad.Table = {
        "own_images": (
            good,
            {
                "place": ("nowhere", "..", None, 3, Path("photos")),
                "content": ("", content[:-1], None, 3),
                "size": (*bad.SIZES, 3),
                "device": ("gpu", None),
            },
        )
    }
    for parameter in table["own_images"][1]:
        bad.refuses(data, table, "own_images", parameter)
