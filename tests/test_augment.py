"""Augmentations of whole batches: their values, their randomness, their place in a record."""

import json
from functools import partial

import bad
import numpy as np
import pytest
import torch

from kdlib import augment, data, models, provenance, recipes
from kdlib.data import generator
from kdlib.experiments import compare
from kdlib.identity import identity
from kdlib.repetition import repeat

RGB = torch.rand(200, 3, 9, 12, generator=generator(0))
LUMINANCE = torch.tensor([0.299, 0.587, 0.114])
AUGMENTATIONS = {
    "shift": data.shift,
    "crop": data.crop,
    "reflecting crop": partial(data.crop, padding=2, fill="reflect"),
    "flip": data.flip,
    "jitter": data.jitter,
    "standard": data.standard,
    "chain": data.chain(data.standard, partial(data.jitter, contrast=0.1)),
}


# --- what all have in common


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_an_augmentation_follows_its_generator_alone(name):
    change, before = AUGMENTATIONS[name], RGB.clone()
    first, again, other = (change(RGB, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.shape == RGB.shape and torch.equal(RGB, before)
    stream = generator(1)
    change(RGB, stream)
    assert not torch.equal(change(RGB, stream), first)  # the next batch has other draws


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_every_image_has_its_own_draw(name):
    same = RGB[:1].expand(200, -1, -1, -1)
    assert len(torch.unique(AUGMENTATIONS[name](same, generator(0)).flatten(1), dim=0)) > 1


@pytest.mark.parametrize("kind", [torch.float16, torch.float64])
@pytest.mark.parametrize("name", [*AUGMENTATIONS, "mixup"])
def test_an_augmentation_keeps_the_type_of_the_images(name, kind):
    change = AUGMENTATIONS.get(name, lambda x, stream: data.mixup(x, stream)[0])
    changed = change(RGB.to(kind), generator(0))
    assert changed.dtype == kind
    expected = change(RGB, generator(0)).to(kind)
    torch.testing.assert_close(changed, expected, atol=3e-3, rtol=0)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_only_a_few_numbers_an_image_cross_to_the_device(name, monkeypatch):
    sent, send = [], augment._sent
    monkeypatch.setattr(augment, "_sent", lambda x, to: sent.append(x.numel()) or send(x, to))
    AUGMENTATIONS[name](RGB, generator(0))
    assert sent and max(sent) <= 3 * len(RGB)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here")
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_the_device_changes_nothing(name):
    there = AUGMENTATIONS[name](RGB.cuda(), generator(3))
    assert there.is_cuda
    torch.testing.assert_close(there.cpu(), AUGMENTATIONS[name](RGB, generator(3)))


# --- moves


@pytest.mark.parametrize("fill, mode", [("zero", "constant"), ("reflect", "reflect")])
@pytest.mark.parametrize("padding", [0, 1, 4])
def test_crop_is_what_a_loop_over_the_images_does(fill, mode, padding):
    found = data.crop(RGB, generator(5), padding=padding, fill=fill)
    rows, columns = torch.randint(0, 2 * padding + 1, (2, len(RGB)), generator=generator(5))
    for image, original, y, x in zip(found, RGB, rows, columns):
        padded = np.pad(original.numpy(), ((0, 0), (padding,) * 2, (padding,) * 2), mode=mode)
        assert np.array_equal(image, padded[:, y : y + 9, x : x + 12])
    assert {*rows.tolist()} == {*columns.tolist()} == {*range(2 * padding + 1)}


def test_reflection_needs_room():
    with pytest.raises(ValueError, match="padding must be below the side of the images, 9,"):
        data.crop(RGB, generator(0), padding=9, fill="reflect")
    data.crop(RGB, generator(0), padding=8, fill="reflect")
    data.crop(RGB, generator(0), padding=9)


def test_shift_is_a_crop_of_zeros_and_repeats():
    moved = data.shift(RGB, generator(3), pixels=2)
    assert torch.equal(moved, data.crop(RGB, generator(3), padding=2))
    assert torch.equal(data.shift(RGB, generator(0), pixels=0), RGB)


def test_flip_mirrors_about_half():
    flipped = data.flip(RGB, generator(0))
    same = (flipped == RGB).flatten(1).all(1)
    mirrored = (flipped == RGB.flip(-1)).flatten(1).all(1)
    assert (same ^ mirrored).all() and 60 < mirrored.sum() < 140


def test_standard_is_the_published_recipe():
    stream = generator(7)
    expected = data.flip(data.crop(RGB, stream, padding=4, fill="zero"), stream)
    assert torch.equal(data.standard(RGB, generator(7)), expected)


# --- colours


def test_jitter_is_what_a_loop_over_the_images_does():
    found = data.jitter(RGB, generator(5), brightness=0.5, contrast=0.9, saturation=0.2)
    draws = 2 * torch.rand(3, len(RGB), generator=generator(5)) - 1
    for image, original, (b, c, s) in zip(found, RGB, draws.T):
        bright = (original * (1 + 0.5 * b)).clamp(0, 1)
        middle = torch.tensordot(LUMINANCE, bright, 1).mean()
        contrasted = (middle + (1 + 0.9 * c) * (bright - middle)).clamp(0, 1)
        grey = torch.tensordot(LUMINANCE, contrasted, 1)
        expected = (grey + (1 + 0.2 * s) * (contrasted - grey)).clamp(0, 1)
        torch.testing.assert_close(image, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("strength", [0.0, 0.3, 0.6])
def test_jitter_reaches_its_range_and_no_further(strength):
    """Where nothing is clipped, each factor can be read off the images."""
    images = 0.5 + 0.05 * (torch.rand(2000, 3, 4, 4, generator=generator(1)) - 0.5)
    off = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0}

    def grey(x):
        return torch.einsum("c,nchw->nhw", LUMINANCE, x)

    def spread(x):
        return (x - grey(x).mean((1, 2))[:, None, None, None]).flatten(1).norm(dim=1)

    def colour(x):
        return (x - grey(x)[:, None]).flatten(1).norm(dim=1)

    for name, measure in {
        "brightness": lambda x: x.sum((1, 2, 3)),
        "contrast": spread,
        "saturation": colour,
    }.items():
        changed = data.jitter(images, generator(2), **(off | {name: strength}))
        factor = measure(changed) / measure(images)
        assert factor.min() == pytest.approx(1 - strength, abs=0.005)
        assert factor.max() == pytest.approx(1 + strength, abs=0.005)
        if name != "brightness":  # what it leaves alone
            means = (grey(x).mean((1, 2)) for x in (changed, images))
            torch.testing.assert_close(*means, atol=1e-5, rtol=0)
        if name == "saturation":
            torch.testing.assert_close(grey(changed), grey(images), atol=1e-5, rtol=0)


def test_jitter_stays_in_range():
    hard = (RGB > 0.5).float()
    changed = data.jitter(hard, generator(0), brightness=1, contrast=1, saturation=1)
    assert changed.min() >= 0 and changed.max() <= 1 and not torch.equal(changed, hard)


def test_mixup_blends_partners():
    mixed, weight, partner = data.mixup(RGB[:8], generator(0))
    expected = weight[3] * RGB[3] + (1 - weight[3]) * RGB[partner[3]]
    torch.testing.assert_close(mixed[3], expected)
    assert partner.sort().values.tolist() == list(range(8))


# --- chains


def test_a_chain_applies_one_after_the_other():
    stream = generator(4)
    expected = data.jitter(data.flip(RGB, stream), stream, saturation=0.1)
    chained = data.chain(data.flip, partial(data.jitter, saturation=0.1))
    assert torch.equal(chained(RGB, generator(4)), expected)
    nested = data.chain(data.chain(data.flip), partial(data.jitter, saturation=0.1))
    assert torch.equal(nested(RGB, generator(4)), expected)


def test_a_chain_refuses_what_is_no_augmentation():
    with pytest.raises(ValueError, match="augmentations must hold at least one"):
        data.chain()
    for wrong in ("flip", None, RGB):
        with pytest.raises(TypeError, match=r"augmentations\[1\] must be a function"):
            data.chain(data.flip, wrong)
    with pytest.raises(TypeError, match=r"augmentations\[1\] must return .* mixup=True"):
        data.chain(data.flip, data.mixup)(RGB, generator(0))


def chained(contrast=0.1):
    return data.chain(data.crop, partial(data.jitter, contrast=contrast))


def test_a_chain_has_a_recipe_an_identity_and_words():
    made = recipes.make(json.loads(json.dumps(recipes.recipe_of(chained()))))
    assert torch.equal(made(RGB, generator(1)), chained()(RGB, generator(1)))
    assert identity(made) == identity(chained()) != identity(chained(0.2))
    assert identity(chained()) != identity(data.chain(*reversed(chained().args)))
    words = provenance.Identities(required=True).words(chained(), "augment")
    assert "crop" in words and "contrast=0.1" in words and " at 0x" not in words


def test_a_run_with_a_chain_repeats_from_its_record(tmp_path):
    digits = data.load(size=8)
    train, validation = digits.train.take(slice(0, 200)), digits.validation
    compare(
        {"A": {"augment": data.chain(partial(data.crop, padding=1), data.flip)}, "B": {}},
        student=partial(models.ConvNet, (4, 8)),
        train=train,
        evaluate_on=validation,
        augment=data.standard,
        seeds=[0],
        epochs=2,
        folder=tmp_path,
        workers=1,
        progress=False,
    )
    paths = list(tmp_path.rglob("*.json"))
    assert len(paths) == 2 and {repeat(path).verdict for path in paths} == {"repeats"}


@pytest.mark.parametrize("name", ["shift", "flip"])
def test_earlier_records_find_their_augmentations(name):
    assert recipes.allowed(f"kdlib.data:{name}") is getattr(augment, name)


# --- bad arguments, by enumeration

X = torch.rand(4, 3, 8, 8)
STREAMS = (None, 0, "seed")
SHARED = {
    "images": bad.images_like(X, unit=False, channels=False),
    "generator": STREAMS,
}
GOOD = {"images": X, "generator": generator(0)}
SHARES = (*bad.NUMBERS, -0.1, 1.1)
BAD: bad.Table = {
    "shift": (GOOD, SHARED | {"pixels": bad.WHOLES}),
    "crop": (GOOD, SHARED | {"padding": bad.WHOLES, "fill": ("edge", "constant", None, 0)}),
    "flip": (GOOD, SHARED),
    "jitter": (
        GOOD,
        {
            "images": (*bad.images_like(X), X[:, :1]),
            "generator": STREAMS,
            "brightness": SHARES,
            "contrast": SHARES,
            "saturation": SHARES,
        },
    ),
    "standard": (GOOD, SHARED),
    "mixup": (GOOD, SHARED),
}
EXEMPT = {
    "chain": "takes any number of functions; see the test of chains",
    "in_turn": "what a chain is made of",
}


@pytest.mark.parametrize("name, parameter", bad.checks(BAD))
def test_augmentations_refuse_bad_arguments_by_name(name, parameter):
    bad.refuses(augment, BAD, name, parameter)


def test_no_argument_was_forgotten():
    assert bad.missing(augment, BAD, EXEMPT) == []
