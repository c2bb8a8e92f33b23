"""Divergences against reference values, against their equations, and at their edges."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from functools import partial
from pathlib import Path

import bad
import numpy as np
import pytest
import torch
from reference import close
from torch import Tensor
from torch.testing import assert_close

from kdlib.language import divergence, divergences, linear_divergence

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "divergences.json").read_text("utf-8"))
KINDS = tuple(divergences.DIVERGENCES)
ANALYTIC = tuple(divergences.GRADIENTS)


def made(recipe: dict, dtype: torch.dtype = torch.float64) -> Tensor:
    rng = np.random.default_rng(recipe["seed"])
    array = (rng.standard_normal(recipe["shape"]) * recipe["scale"]).astype(np.float32)
    return torch.from_numpy(array).to(dtype).requires_grad_()


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


S, T = 2 * randn(2, 3, 5), 2 * randn(2, 3, 5, seed=1)
MASK = torch.tensor([[True, True, True], [False, True, False]])


# Reference values of the authors' own code


def check(case: dict, dtype: torch.dtype, function=divergence) -> None:
    """Value and student's gradient of a case against the stored ones."""
    s, t = (made(case["inputs"][name], dtype) for name in ("student", "teacher"))
    mask = case["mask"] and torch.tensor(case["mask"]).bool()
    options = {"beta": case["beta"], "temperature": case["temperature"], "mask": mask}
    loss = case["factor"] * function(s, t, case["kind"], **options)
    loss.backward()
    wanted = case["expected"]
    exact = dtype == torch.float64 and case["digits"] == "float64"
    rtol = 1e-7 if exact else 2e-4 if s.numel() > 1e5 else 2e-5
    close(loss.item(), wanted["loss"], rtol)
    assert s.grad is not None and t.grad is None, "not the student is trained"
    close(s.grad.norm().item(), wanted["grad_norm"], 10 * rtol, 1e-3 * rtol)


DTYPES = {"float64": torch.float64, "float32": torch.float32}


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=list(DTYPES))
@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["id"])
def test_reference(case: dict, dtype: torch.dtype):
    check(case, dtype)


@pytest.mark.parametrize("kind", KINDS)
def test_exchanged_networks_fail_the_reference(kind: str):
    def exchanged(s, t, kind, **options):
        return divergence(t, s, kind, **options)

    cases = [case for case in GOLDEN["cases"] if case["kind"] == kind and case["expected"]["loss"]]
    for case in cases:
        with pytest.raises(AssertionError):
            check(case, torch.float64, exchanged)
    assert cases


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"tvd"}))
def test_exchanged_equation_fails_the_reference(kind: str, monkeypatch):
    """The same with the right network trained; `tvd` is symmetric."""
    right = divergences.DIVERGENCES[kind]
    swapped = {kind: lambda log_q, log_p, beta: right(log_p, log_q, beta)}
    monkeypatch.setattr(divergences, "DIVERGENCES", divergences.DIVERGENCES | swapped)
    cases = [case for case in GOLDEN["cases"] if case["kind"] == kind and case["expected"]["loss"]]
    with pytest.raises(AssertionError, match="instead of"):
        for case in cases:
            check(case, torch.float64)


def test_reference_at_each_place():
    case = GOLDEN["places"]
    s, t = (made(case["inputs"][name]) for name in ("student", "teacher"))
    found = divergence(s, t, case["kind"], beta=case["beta"], reduction="none")
    assert_close(found, torch.tensor(case["expected"]).double(), rtol=1e-5, atol=0)


# The equations as they are written, place by place


def kl(a: list[float], b: list[float]) -> float:
    return math.fsum(x * math.log(x / y) for x, y in zip(a, b))


def equation(kind: str, z_s: list[float], z_t: list[float], beta: float, heat: float) -> float:
    q, p = ([math.exp(v / heat) for v in z] for z in (z_s, z_t))
    q, p = ([v / sum(x) for v in x] for x in (q, p))
    m = [beta * a + (1 - beta) * b for a, b in zip(p, q)]
    n = [beta * b + (1 - beta) * a for a, b in zip(p, q)]
    return {
        "forward": kl(p, q),
        "reverse": kl(q, p),
        "jsd": beta * kl(p, m) + (1 - beta) * kl(q, m),
        "skew-forward": kl(p, m),
        "skew-reverse": kl(q, n),
        "tvd": math.fsum(abs(a - b) for a, b in zip(p, q)) / 2,
    }[kind]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beta, temperature", [(0.5, 1.0), (0.1, 2.0), (0.8, 0.5)])
def test_equation_and_reductions(kind: str, beta: float, temperature: float):
    options = {"beta": beta, "temperature": temperature}
    pairs = zip(S.flatten(0, 1).tolist(), T.flatten(0, 1).tolist())
    values = [equation(kind, z_s, z_t, beta, temperature) for z_s, z_t in pairs]
    places = torch.tensor(values, dtype=torch.float64).view(2, 3)
    assert_close(divergence(S, T, kind, reduction="none", **options), places)
    masked = divergence(S, T, kind, reduction="none", mask=MASK, **options)
    assert_close(masked, places * MASK)
    assert_close(divergence(S, T, kind, **options), places.mean())
    options["mask"] = MASK
    assert_close(divergence(S, T, kind, **options), places[MASK].mean())
    of_sequences = divergence(S, T, kind, reduction="sequences", **options)
    assert_close(of_sequences, (places[0].mean() + places[1, 1]) / 2)
    options["mask"] = MASK & MASK[0].new_tensor([[True], [False]])
    of_the_first = divergence(S, T, kind, reduction="sequences", **options)
    assert_close(of_the_first, places[0].mean())


@pytest.mark.parametrize("kind", ["skew-forward", "skew-reverse"])
def test_a_skew_of_one_is_refused(kind: str):
    with pytest.raises(ValueError, match=f"beta must be below 1 for {kind}"):
        divergence(S, T, kind, beta=1)


def test_ends_of_beta():
    """The ends of jsd, and the plain divergences that the skewed ones start from."""
    ends = [("jsd", 0, "forward"), ("jsd", 1, "reverse")]
    ends += [("skew-forward", 0, "forward"), ("skew-reverse", 0, "reverse")]
    for kind, beta, same in ends:
        assert torch.equal(divergence(S, T, kind, beta=beta), divergence(S, T, same))
    for end, same in [(1e-6, "forward"), (1 - 1e-6, "reverse")]:
        scaled = divergence(S, T, "jsd", beta=end) / 1e-6
        assert_close(scaled, divergence(S, T, same), rtol=1e-3, atol=0)


# Edges


@pytest.mark.parametrize("kind", KINDS)
def test_none_between_equals_and_positive_elsewhere(kind: str):
    assert divergence(S, S, kind).abs() < 1e-15
    assert divergence(S, T, kind, reduction="none").min() > 0
    far = divergence(torch.eye(2)[None] * 99, torch.eye(2).flip(0)[None] * 99, kind)
    most = {"jsd": math.log(2), "skew-forward": math.log(2), "skew-reverse": math.log(2), "tvd": 1}
    close(far.item(), most.get(kind, 99), 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_extreme_logits_stay_finite(kind: str, dtype: torch.dtype):
    s, t = (1e4 * randn(2, 3, 9, seed=seed).clamp(-3, 3) for seed in (3, 4))
    s, t = s.to(dtype).requires_grad_(), t.to(dtype)
    loss = divergence(s, t, kind, beta=0.1)
    exact = divergence(s.detach().double(), t.double(), kind, beta=0.1)
    close(loss.item(), exact.item(), 1e-5)
    loss.backward()
    assert loss.dtype == torch.float32 and s.grad.dtype == dtype and s.grad.isfinite().all()
    assert torch.equal(loss, divergence(s.float(), t, kind, beta=0.1)), "single precision inside"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduction", divergences.REDUCTIONS)
def test_masked_places_play_no_part(kind: str, reduction: str):
    s, t = S.clone(), T.clone()
    plain = s.clone().requires_grad_()
    divergence(plain, t, kind, mask=MASK, reduction=reduction).sum().backward()
    s[~MASK], t[~MASK] = math.nan, math.inf
    s.requires_grad_()
    divergence(s, t, kind, mask=MASK, reduction=reduction).sum().backward()
    assert torch.equal(s.grad, plain.grad)
    assert (s.grad[~MASK] == 0).all() and (s.grad[MASK] != 0).all()


@pytest.mark.parametrize("reduction", divergences.REDUCTIONS)
def test_nothing_counts(reduction: str):
    s = S.clone().requires_grad_()
    loss = divergence(s, T, "reverse", mask=torch.zeros_like(MASK), reduction=reduction)
    loss.sum().backward()
    assert (loss == 0).all() and (s.grad == 0).all()


def test_probabilities_bring_a_warning():
    with pytest.warns(UserWarning, match="student_logits must be logits, got probab") as found:
        divergence(S.softmax(-1), T, "forward")
    assert found[0].filename == __file__


# The output layer and the divergence in one

HIDDEN, WEIGHT = randn(2, 3, 4, seed=5), randn(7, 4, seed=6)
PAIR = randn(2, 3, 6, seed=7), randn(7, 6, seed=8)
LOGITS = PAIR[0] @ PAIR[1].T
PLACES = {"kind": "jsd", "beta": 0.3, "temperature": 0.7, "mask": MASK}


def grown(function, *inputs: Tensor) -> tuple[Tensor, ...]:
    """The value of a function of copies of the inputs, and its gradient for each of them."""
    copies = [x.clone().requires_grad_() for x in inputs]
    value = function(*copies)
    return value.detach(), *torch.autograd.grad(value, copies)


@pytest.mark.parametrize("kind", ANALYTIC)
@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "masked"])
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("reduction", ["tokens", "sequences"])
def test_linear_equals_the_plain_computation(
    kind: str, mask: Tensor | None, beta: float, reduction: str
):
    options = {"beta": beta, "temperature": 0.7, "mask": mask, "reduction": reduction}
    plain = grown(lambda h, w: divergence(h @ w.T, LOGITS, kind, **options), HIDDEN, WEIGHT)
    for teacher, chunk in [(LOGITS, None), (PAIR, None), (LOGITS, 1), (PAIR, 4)]:
        fused = partial(linear_divergence, teacher=teacher, kind=kind, chunk=chunk, **options)
        assert_close(grown(fused, HIDDEN, WEIGHT), plain, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("kind", ANALYTIC)
def test_linear_passes_gradcheck(kind: str):
    def function(hidden: Tensor, weight: Tensor) -> Tensor:
        return linear_divergence(hidden, weight, PAIR, kind, beta=0.3, mask=MASK, chunk=3)

    leaves = HIDDEN.clone().requires_grad_(), WEIGHT.clone().requires_grad_()
    assert torch.autograd.gradcheck(function, leaves)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=list(DTYPES))
@pytest.mark.parametrize("case", GOLDEN["linear"], ids=lambda case: case["id"])
def test_linear_reference(case: dict, dtype: torch.dtype):
    h, w, t_h, t_w = (made(recipe, dtype) for recipe in case["inputs"].values())
    options = {"beta": case["beta"], "mask": torch.tensor([case["mask"]]).bool(), "chunk": 3}
    loss = linear_divergence(h[None], w, (t_h[None], t_w), case["kind"], **options)
    loss.backward()
    close(loss.item(), case["expected"]["loss"], 2e-5)
    close(h.grad.norm().item(), case["expected"]["grad_norm_hidden"], 1e-4)
    close(w.grad.norm().item(), case["expected"]["grad_norm_weight"], 1e-4)
    assert t_h.grad is None and t_w.grad is None


def test_linear_backward_scales_and_repeats():
    h, w = HIDDEN.clone().requires_grad_(), WEIGHT.clone().requires_grad_()
    loss = 3 * linear_divergence(h, w, LOGITS, **PLACES)
    loss.backward(retain_graph=True)
    once = h.grad.clone(), w.grad.clone()
    loss.backward()
    assert_close((h.grad, w.grad), tuple(2 * x for x in once))
    plain = grown(lambda h, w: 3 * divergence(h @ w.T, LOGITS, **PLACES), HIDDEN, WEIGHT)
    assert_close(once, plain[1:])


def test_linear_trains_what_asks_for_it():
    h, w = HIDDEN.clone().requires_grad_(), WEIGHT.clone().requires_grad_()
    plain = divergence(HIDDEN @ WEIGHT.T, LOGITS, **PLACES)
    for hidden, weight in ((h, WEIGHT), (HIDDEN, w)):
        loss = linear_divergence(hidden, weight, LOGITS, **PLACES)
        loss.backward()
        assert_close(loss.detach(), plain)
    assert h.grad is not None and w.grad is not None
    with torch.no_grad():
        assert not linear_divergence(h, w, LOGITS, **PLACES).requires_grad
    nothing = linear_divergence(h, w, LOGITS, "forward", mask=torch.zeros_like(MASK))
    assert nothing == 0
    nothing.backward()


def test_linear_in_half_precision():
    h, w, t = HIDDEN.bfloat16(), WEIGHT.bfloat16(), LOGITS.bfloat16()
    found = grown(lambda h, w: linear_divergence(h, w, t, **PLACES), h, w)
    plain = grown(lambda h, w: divergence(h @ w.T, t, **PLACES), h, w)
    assert [x.dtype for x in found] == [torch.float32, torch.bfloat16, torch.bfloat16]
    assert_close(found, plain, rtol=0.05, atol=1e-3)
    wanted = divergence(h.float() @ WEIGHT.float().T, t, **PLACES)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = linear_divergence(h, WEIGHT.float(), t, **PLACES)
    assert_close(mixed, wanted, rtol=1e-5, atol=0)


MEMORY = """
import torch
from pathlib import Path
from kdlib.language import divergence, linear_divergence

def peak():  # of this process alone; ru_maxrss would start at that of the process that started it
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024

torch.set_num_threads(1)
h, w = torch.randn(2, 256, 64).requires_grad_(), torch.randn(50257, 64).requires_grad_()
t_h, t_w = torch.randn(2, 256, 32), torch.randn(50257, 32)
linear_divergence(h[:, :2], w[:9], (t_h[:, :2], t_w[:9]), "reverse").backward()  # loads kernels
h.grad = w.grad = None
start = peak()
linear_divergence(h, w, (t_h, t_w), "reverse").backward()
print(peak() - start)
divergence(h @ w.T, t_h @ t_w.T, "reverse").backward()
print(peak() - start)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
def test_linear_needs_little_memory():
    """512 places and 50,257 tokens: one tensor of logits has 98 MiB, a chunk of them 8.

    Libraries keep buffers of their own, which differ by processor: a ratio, with room for them.
    """
    command = [sys.executable, "-c", MEMORY]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    linear, plain = map(float, done.stdout.split())
    assert 4 * linear < plain


# Bad arguments

NOT_LOGITS = (None, S.tolist(), S.long(), S[0], S[:0])
PAIRS = ((*PAIR, 1), PAIR[:1], PAIR[::-1], (PAIR[0], WEIGHT), (PAIR[0][:1], PAIR[1]))
NOT_TEACHERS = (None, LOGITS.tolist(), LOGITS[..., :6], LOGITS[:1], LOGITS * math.nan, *PAIRS)
OPTIONS = {"beta": (*bad.NUMBERS, -0.1, 1.1), "temperature": (*bad.NUMBERS, 0.0, -1.0)}
OPTIONS["mask"] = (MASK.tolist(), MASK.long(), MASK[:1], MASK[0])
TABLE: bad.Table = {
    "divergence": (
        {"student_logits": S, "teacher_logits": T, "kind": "jsd"},
        OPTIONS
        | {
            "student_logits": (*NOT_LOGITS, S * math.nan, S[:, :, :1]),
            "teacher_logits": (*NOT_LOGITS, T * math.inf, T[:, :, :4], T[:, :2]),
            "kind": ("kl", "", None, 3),
            "reduction": ("mean", "", None),
        },
    ),
    "linear_divergence": (
        {"hidden": HIDDEN, "weight": WEIGHT, "teacher": PAIR, "kind": "jsd"},
        OPTIONS
        | {
            "hidden": (*NOT_LOGITS, HIDDEN * math.nan, HIDDEN[:, :, :3]),
            "weight": (None, WEIGHT.tolist(), WEIGHT[0], WEIGHT[:0], WEIGHT.long(), WEIGHT[:, :3]),
            "teacher": NOT_TEACHERS,
            "kind": ("tvd", "skew-forward", None),
            "reduction": ("none", "mean", None),
            "chunk": (*bad.WHOLES[:4], 0, -1, 1.5),
        },
    ),
}


@pytest.mark.parametrize("name, parameter", bad.checks(TABLE))
def test_bad_argument(name: str, parameter: str):
    bad.refuses(divergences, TABLE, name, parameter)


def test_every_parameter_was_thought_of():
    assert bad.missing(divergences, TABLE, {}) == []
