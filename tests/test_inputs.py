"""Checks of arguments: what passes comes back, what does not is named with what it must be."""

import inspect
import types

import numpy as np
import pytest
import torch
from torch import nn

from kdlib import inputs

NAN, INF = float("nan"), float("inf")
X, Y = torch.rand(3, 1, 4, 4), torch.tensor([0, 1, 2])


def test_numbers():
    for good, found in ((2, 2.0), (0.5, 0.5), (np.float32(0.5), 0.5), (np.int64(3), 3.0)):
        value = inputs.number("weight", good)
        assert value == found and type(value) is float
    assert inputs.number("weight", 0, low=0) == 0 and inputs.number("weight", 1, high=1) == 1
    for bad in ("1", None, True, [1.0], 1j, torch.tensor(1.0)):
        with pytest.raises(TypeError, match="weight must be a number, got"):
            inputs.number("weight", bad)
    for bad, limits, message in (
        (NAN, {}, "a finite number, got nan"),
        (-INF, {}, "a finite number, got -inf"),
        (-1, {"low": 0}, "a finite number of at least 0, got -1"),
        (0, {"above": 0}, "a finite number above 0, got 0"),
        (1, {"low": 0, "below": 1}, "a finite number of at least 0 and below 1, got 1"),
        (2, {"low": 0, "high": 1}, "a finite number of at least 0 and at most 1, got 2"),
    ):
        with pytest.raises(ValueError, match=f"weight must be {message}"):
            inputs.number("weight", bad, **limits)


def test_whole_numbers():
    for good in (3, np.int64(3), np.uint8(3), torch.tensor(3)):
        value = inputs.whole("steps", good)
        assert value == 3 and type(value) is int
    for bad in (2.0, "2", None, True, NAN, torch.tensor(2.0), torch.tensor([2])):
        with pytest.raises(TypeError, match="steps must be a whole number, got"):
            inputs.whole("steps", bad)
    with pytest.raises(ValueError, match="steps must be a whole number of at least 1, got 0"):
        inputs.whole("steps", 0)
    with pytest.raises(ValueError, match="of at least 2 and at most 5, got 6"):
        inputs.whole("steps", 6, low=2, high=5)
    assert inputs.wholes(a=1, b=np.int64(2)) == (1, 2)
    with pytest.raises(ValueError, match="b must be a whole number"):
        inputs.wholes(a=1, b=0)


def test_sizes():
    for good in ((3, 4), [3, 4], torch.Size([3, 4]), np.array([3, 4]), iter([3, 4])):
        assert inputs.sizes("shape", good) == (3, 4)
    assert inputs.sizes("shape", (), least=0) == ()
    with pytest.raises(ValueError, match=r"shape must hold at least 1 whole number.s., got 0"):
        inputs.sizes("shape", ())
    with pytest.raises(ValueError, match=r"shape\[1\] must be a whole number of at least 1, got 0"):
        inputs.sizes("shape", (2, 0))
    for bad in (3, None, "34", b"34"):
        with pytest.raises(TypeError, match="shape must be a sequence of whole numbers"):
            inputs.sizes("shape", bad)


def test_seeds_are_what_a_generator_takes():
    for good in (0, 2**63 - 1, np.int64(7)):
        torch.Generator().manual_seed(inputs.seed("seed", good))
    for bad in (-1, 2**63):
        with pytest.raises(ValueError, match="seed must be"):
            inputs.seed("seed", bad)


def test_instances_and_choices():
    net = nn.Linear(1, 1)
    assert inputs.instance("model", net, nn.Module) is net
    assert inputs.instance("folder", "x", (str, bytes)) == "x"
    with pytest.raises(TypeError, match="model must be a Module, got int 3: build one"):
        inputs.instance("model", 3, nn.Module, "build one")
    with pytest.raises(TypeError, match=r"folder must be a str or bytes, got int 3$"):
        inputs.instance("folder", 3, (str, bytes))
    assert inputs.choice("part", "a", ("a", "b")) == "a"
    with pytest.raises(ValueError, match="part must be one of a, b; got 'c'"):
        inputs.choice("part", "c", ("a", "b"))


def test_lengths():
    inputs.lengths(x=X, y=Y)
    with pytest.raises(ValueError, match="x and y must hold the same samples, got 3 in x and 2 in"):
        inputs.lengths(x=X, y=Y[:2])
    with pytest.raises(ValueError, match="x and y must hold at least one sample, got none"):
        inputs.lengths(x=X[:0], y=Y[:0])
    for bad in (3, None, [1, 2, 3], torch.tensor(3)):
        with pytest.raises(TypeError, match=r"y must be a tensor \[n, ...\], got"):
            inputs.lengths(x=X, y=bad)


def test_classes():
    for good in (Y, Y.int(), Y.to(torch.uint8)):
        assert inputs.classes("labels", good, 3, ndim=1) is good
    assert inputs.classes("labels", Y + 100) is not None  # as many classes as there are
    for bad in (Y.float(), Y.bool(), Y.to(torch.complex64), None, [0, 1], Y.numpy()):
        with pytest.raises(TypeError, match="labels must hold whole class numbers, got"):
            inputs.classes("labels", bad, 3)
    for bad, limits, message in (
        (Y[:0], (3,), "at least one class number, got a tensor of shape .0."),
        (Y, (2,), r"must lie in 0\.\.1, got 0 to 2"),
        (Y - 1, (3,), r"must lie in 0\.\.2, got -1 to 1"),
        (Y - 1, (), r"must lie in 0\.\., got -1 to 1"),
    ):
        with pytest.raises(ValueError, match=message):
            inputs.classes("labels", bad, *limits)
    with pytest.raises(ValueError, match=r"in 1 axes, got a tensor of shape \[3, 1\]"):
        inputs.classes("labels", Y[:, None], 3, ndim=1)


def test_tensors():
    for good in (X, X.double(), X.half(), X.to(memory_format=torch.channels_last)):
        assert inputs.tensor("x", good) is good
        assert inputs.tensor("x", good, "[n, c, h, w]", low=0, high=1) is good
    asks = X.clone().requires_grad_()
    assert inputs.tensor("x", asks) is asks
    for bad, message in (
        (None, r"x must be a tensor \[n, ...\], got NoneType None"),
        (X.numpy(), "x must be a tensor"),
        ((255 * X).to(torch.uint8), r"got torch.uint8: .* with .float\(\) / 255"),
        (Y, "x must be floating-point numbers, got torch.int64"),
        (X.to(torch.complex64), "x must be floating-point numbers"),
    ):
        with pytest.raises(TypeError, match=message):
            inputs.tensor("x", bad)
    one = X.clone()
    for value in (NAN, INF, -INF):
        one[0, 0, 0, 0] = value
        with pytest.raises(ValueError, match="x must be finite, got NaN or infinity"):
            inputs.tensor("x", one)
        assert inputs.tensor("x", one, finite=False) is one
        with pytest.raises(ValueError, match=r"x must lie in \[0, 1\], got"):
            inputs.tensor("x", one, low=0, high=1, finite=False)
    with pytest.raises(ValueError, match=r"x must lie in \[0, 1\], got 2 to 2"):
        inputs.tensor("x", torch.full((2, 2), 2.0), low=0, high=1)
    for bad in (X[0], X[:0], X[:, :, :0], torch.tensor(1.0)):
        with pytest.raises(ValueError, match=r"x must be \[n, c, h, w\] with n >= 1, got .*: why$"):
            inputs.tensor("x", bad, "[n, c, h, w]", hint="why")
    assert inputs.tensor("x", X, "[n, c, ...]") is X
    with pytest.raises(ValueError, match=r"x must be \[n, c, ...\]"):
        inputs.tensor("x", X[:, 0, 0, 0], "[n, c, ...]")


def test_images():
    assert inputs.images("images", X, channels=(1, 3), unit=True) is X
    with pytest.raises(ValueError, match=r"n >= 1 and c in \(3,\), got \[3, 1, 4, 4\]: turn them$"):
        inputs.images("images", X, channels=(3,), hint="turn them")
    with pytest.raises(ValueError, match=r"images must lie in \[0, 1\], got 3 to 3"):
        inputs.images("images", torch.full((1, 1, 2, 2), 3.0), unit=True)
    with pytest.raises(ValueError, match="must be finite"):
        inputs.images("images", X * NAN)
    assert inputs.images("images", X * NAN, finite=False).isnan().all()


def test_logits():
    logits = torch.rand(3, 5)
    assert inputs.logits("student", logits, 3) is logits
    for bad in ((logits, logits), logits[0], logits[:2], X, None, {"logits": logits}):
        with pytest.raises(
            TypeError, match=r"student must return logits .* for 3 of them: wrap it"
        ):
            inputs.logits("student", bad, 3)
    with pytest.raises(TypeError, match="got a tuple of 2 for 3"):
        inputs.logits("student", (logits, logits), 3)


def test_double_precision_where_a_device_has_none():
    assert inputs.float64(X).dtype == torch.float64
    assert torch.equal(inputs.float64(X), X.double())
    moved = types.SimpleNamespace(
        device=types.SimpleNamespace(type="mps"),
        cpu=lambda: X,
        double=lambda: pytest.fail("double precision on an Apple GPU"),
    )
    assert torch.equal(inputs.float64(moved), X.double())


def test_every_check_has_a_test():
    tested = "".join(
        inspect.getsource(test) for name, test in globals().items() if name.startswith("test_")
    )
    public = [name for name, found in vars(inputs).items() if inspect.isfunction(found)]
    mine = [name for name in public if vars(inputs)[name].__module__ == inputs.__name__]
    assert [n for n in mine if not n.startswith("_") and f"inputs.{n}(" not in tested] == [
        "describe"  # the end of every message
    ]
