"""Every loss against reference values, against its equation written out, and at its edges.

A check takes a loss. Those of the library have to pass, the usual mistakes below have to fail.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable
from decimal import Decimal
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reference import DTYPES, GOLDEN, close, compare, inputs
from torch import Tensor

from kdlib import losses

LOSSES = {
    name: function
    for name, function in vars(losses).items()
    if inspect.isfunction(function)
    and function.__module__ == losses.__name__
    and not name.startswith("_")
    and function.__annotations__["return"] == "Tensor"
}
ON_LOGITS = [
    name for name in LOSSES if "student_logits" in inspect.signature(LOSSES[name]).parameters
]


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# Reference values of the authors' own code

CASES = {case["id"]: case for case in GOLDEN["cases"] if not case["loss"].startswith("crd")}
EDGES = {f"{edge['loss']}: {edge['situation']}": edge for edge in GOLDEN["edge_cases"]}


def stages(x: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    return [(x[f"s{i}"], x[f"t{i}"]) for i in range(len(x)) if f"s{i}" in x]


def evaluate(case: dict, x: dict[str, Tensor]) -> Tensor:
    """The loss of a reference case, with our functions."""
    p = case["params"]
    s, t = (next((x[k] for k in x if k.startswith(who)), None) for who in ("student", "teacher"))
    y = x.get("target")
    match case["loss"]:
        case "kd":
            return losses.kd(s, t, p["T"])
        case "kd_total":
            kd = losses.kd(s, t, p["T"])
            return p["ce_weight"] * F.cross_entropy(s, y) + p["kd_weight"] * kd
        case "fitnet":
            return losses.hint(s, t)
        case "at" | "at_paper":
            variant = p.get("mode", "official")
            return sum(losses.attention(a, b, variant=variant) for a, b in stages(x))
        case "sp":
            return losses.similarity(x["s0"], x["t0"])
        case "cc":
            return losses.cc(s, t)
        case "rkd":
            return losses.rkd(s, t, distance_weight=p["w_d"], angle_weight=p["w_a"])
        case "pkt":
            return losses.pkt(s, t)
        case "nst":
            return losses.nst(x["s0"], x["t0"])
        case "vid":
            mean = F.adaptive_avg_pool2d(s, min(s.shape[2], t.shape[2]))
            for i, name in enumerate(("w1", "w2", "w3")):
                mean = F.conv2d(mean.relu() if i else mean, x[name])
            start = torch.full((mean.shape[1],), math.log(math.expm1(5 - 1e-5)), dtype=s.dtype)
            return losses.vid(mean, x.get("log_scale", start), t)
        case "dkd":
            return losses.dkd(s, t, y, alpha=p["alpha"], beta=p["beta"], temperature=p["T"])
        case "dkd_total":
            loss = losses.dkd(s, t, y, alpha=p["alpha"], beta=p["beta"], temperature=p["T"])
            return p["ce_weight"] * F.cross_entropy(s, y) + min(p["epoch"] / p["warmup"], 1) * loss
        case "dist":
            return losses.dist(s, t, beta=p["beta"], gamma=p["gamma"], temperature=p["T"])
        case "ofa":
            return losses.ofa(s, t, y, gamma=p["eps"], temperature=p["T"])
        case "ofa_total":
            *early, last = p["eps_per_stage_then_logits"]
            terms = [losses.ofa(x[f"stage{i}_logits"], t, y, e) for i, e in enumerate(early, 1)]
            total = p["ofa_loss_weight"] * sum(terms)
            total = total + p["kd_loss_weight"] * losses.ofa(s, t, y, gamma=last)
            return total + p["gt_loss_weight"] * F.cross_entropy(s, y)
    raise AssertionError(f"no loss for {case['loss']}")


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_reference(name: str, precision: str):
    x = inputs(CASES[name], DTYPES[precision])
    compare(CASES[name], precision, evaluate(CASES[name], x), x)
    assert all(v.grad is None for k, v in x.items() if k.startswith("t")), "the teacher is trained"


def gradient(loss: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Value and gradient of `loss` at `x`, both of which have to be finite."""
    x = x.clone().requires_grad_()
    value = loss(x)
    (grad,) = torch.autograd.grad(value, x)
    assert value.isfinite() and grad.isfinite().all(), f"loss {value}, gradient {grad}"
    return value.detach(), grad


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=list(DTYPES))
@pytest.mark.parametrize("name", EDGES)
def test_edge(name: str, dtype: torch.dtype):
    """Where the authors' code is NaN or has no finite gradient; `kit_should` says what to do."""
    case = EDGES[name]
    s, t, *y = (torch.tensor(a) for a in case["arrays"].values())
    s, t, p = s.to(dtype), t.to(dtype), case["params"]
    run: dict[str, tuple[Callable[[Tensor], Tensor], float | None]] = {
        "kd": (lambda s: losses.kd(s, t, p["T"]), 0.0),
        "dkd": (lambda s: losses.dkd(s, t, *y, p["alpha"], p["beta"], p["T"]), 0.0),
        "ofa": (lambda s: losses.ofa(s, t, *y, gamma=p["eps"], temperature=p["T"]), None),
        "dist": (lambda s: losses.dist(s, t, p["beta"], p["gamma"], p["T"]), 1 / 3),
        "rkd": (lambda s: losses.rkd(s, t, p["w_d"], p["w_a"]), 0.0),
        "cc": (lambda s: losses.cc(s, t), 0.0),
        "pkt": (lambda s: losses.pkt(s, t), 0.0057489825412631035),
        "at": (lambda s: losses.attention(s, t), 0.25),
    }
    loss, wanted = run[case["loss"]]
    value, grad = gradient(loss, s)
    if wanted is not None:
        close(value.item(), wanted, 1e-5, 1e-5 if case["loss"] == "dist" else 1e-7)
    assert grad.abs().max() < 100


# The equations as they are written, sample by sample; those on logits with 28 decimal digits.
# Options after the star make the usual mistakes.


def softmax(row: list[float], temperature: float) -> list[Decimal]:
    z = [Decimal(v) / Decimal(temperature) for v in row]
    powers = [(v - max(z)).exp() for v in z]
    return [v / sum(powers) for v in powers]


def softmaxes(z: Tensor, temperature: float) -> list[list[Decimal]]:
    return [softmax(row, temperature) for row in z.tolist()]


def divergence(p: list[Decimal], q: list[Decimal]) -> Decimal:
    return sum(a * (a.ln() - b.ln()) for a, b in zip(p, q))


def mean(values):
    return sum(values) / len(values)


def kd(s, t, temperature=4.0, *, power=2, cold=False, exchanged=False, axis=1, count=len):
    s, t = (s, t) if axis else (s.T, t.T)
    pairs = zip(softmaxes(s, 1.0 if cold else temperature), softmaxes(t, temperature))
    total = sum(divergence(q, p) if exchanged else divergence(p, q) for q, p in pairs)
    return float(Decimal(temperature) ** power * total / count(s))


def reverse_kl(s, t, temperature=4.0, *, power=2, cold=False, exchanged=True, count=len):
    return kd(s, t, temperature, power=power, cold=cold, exchanged=exchanged, count=count)


def jsd(
    s, t, temperature=4.0, beta=0.5, *, power=2, exchanged=False, middle=None, weighted=True, once=0
):
    beta, total = Decimal(beta), Decimal(0)
    share = beta if middle is None else Decimal(middle)
    for q, p in zip(softmaxes(s, temperature), softmaxes(t, temperature)):
        q, p = (p, q) if exchanged else (q, p)
        m = [share * a + (1 - share) * b for a, b in zip(p, q)]
        parts = [divergence(p, m), divergence(q, m) * (1 - once)]
        weights = (beta, 1 - beta) if weighted else (Decimal("0.5"), Decimal("0.5"))
        total += sum(weight * part for weight, part in zip(weights, parts))
    return float(Decimal(temperature) ** power * total / len(s))


def dkd(s, t, target, alpha=1.0, beta=8.0, temperature=4.0, *, power=2, swap=False, kept=False):
    alpha, beta = map(Decimal, (beta, alpha) if swap else (alpha, beta))
    terms = []
    for q, p, y in zip(softmaxes(s, temperature), softmaxes(t, temperature), target.tolist()):
        p_others, q_others = ([v for c, v in enumerate(x) if c != y] for x in (p, q))
        p_rest, q_rest = sum(p_others), sum(q_others)
        if kept:
            p_hat, q_hat = p, q
        else:
            p_hat, q_hat = [v / p_rest for v in p_others], [v / q_rest for v in q_others]
        terms.append(alpha * divergence([p[y], p_rest], [q[y], q_rest]))
        terms.append(beta * divergence(p_hat, q_hat))
    return float(Decimal(temperature) ** power * sum(terms) / len(s))


def dist(s, t, beta=1.0, gamma=1.0, temperature=1.0, *, power=2, centred=True, eps="1e-8"):
    q, p = softmaxes(s, temperature), softmaxes(t, temperature)

    def pearson(a, b):
        a, b = ([v - mean(x) * centred for v in x] for x in (a, b))
        norms = sum(v * v for v in a).sqrt() * sum(v * v for v in b).sqrt()
        return sum(v * w for v, w in zip(a, b)) / (norms + Decimal(eps))

    rows = mean([pearson(a, b) for a, b in zip(q, p)])
    columns = mean([pearson(a, b) for a, b in zip([*zip(*q)], [*zip(*p)])])
    total = Decimal(beta) * (1 - rows) + Decimal(gamma) * (1 - columns)
    return float(Decimal(temperature) ** power * total)


def ofa(
    s,
    t,
    target,
    gamma=1.0,
    temperature=1.0,
    variant="official",
    *,
    power=0,
    boost=1,
    exchanged=False,
    others=None,
):
    official = (variant == "official") != exchanged
    others = Decimal(gamma if official else 1) if others is None else others
    total = Decimal(0)
    for q, p, y in zip(softmaxes(s, temperature), softmaxes(t, temperature), target.tolist()):
        weights = [v**others for v in p]
        weights[y] = (boost + p[y]) ** Decimal(gamma) - official
        total -= sum(w * v.ln() for w, v in zip(weights, q))
    return float(Decimal(temperature) ** power * total / len(s))


def hint(s, t, *, power=2, count=Tensor.numel):
    return ((s - t).abs() ** power).sum() / count(s)


def blocks(a: Tensor) -> Tensor:
    """A map [..., 2h, 2w] as [..., h, w, 4]."""
    return torch.stack([a[..., i::2, j::2] for i in (0, 1) for j in (0, 1)], -1)


def halved(a: Tensor) -> Tensor:
    return blocks(a).mean(-1)


def attention(s, t, variant="official", *, power=2, norm=2.0, pool=halved, exchanged=False):
    terms = []
    for a, b in zip(s, pool(t)):
        a, b = ((x.abs() ** power).mean(0).flatten() for x in (a, b))
        gap = a / a.norm(norm) - b / b.norm(norm) if norm else a - b
        official = (variant == "official") != exchanged
        terms.append((gap**2).mean() if official else (gap**2).sum().sqrt())
    return mean(terms)


def similarity(s, t, *, norm=2.0, count=lambda s: len(s) ** 2):
    s, t = (x.flatten(1) @ x.flatten(1).T for x in (s, t))
    if norm:
        s, t = (x / x.norm(norm, 1, keepdim=True) for x in (s, t))
    return (s - t).square().sum() / count(s)


def cc(
    s,
    t,
    variant="official",
    gamma=0.4,
    order=2,
    *,
    count=lambda s: len(s) - 1,
    less=0,
    size=abs,
    scaled=True,
    factorial=math.factorial,
    unit=True,
):
    if variant == "official":
        gaps = size(s - t)
        return sum(a @ b for a, b in pairwise(gaps)) / count(s)
    kernels = []
    for x in (s, t):
        x = x / x.norm(dim=1, keepdim=True) if unit else x
        terms = [(2 * gamma * x @ x.T) ** p / factorial(p) for p in range(order + 1 - less)]
        kernels.append(math.exp(-2 * gamma * scaled) * sum(terms))
    return (kernels[0] - kernels[1]).square().sum() / len(s) ** 2


def huber(x: float) -> float:
    return 0.5 * x**2 if abs(x) < 1 else abs(x) - 0.5


def rkd(
    s,
    t,
    distance_weight=25.0,
    angle_weight=50.0,
    *,
    far=huber,
    bent=huber,
    scaled=True,
    pairs=lambda n: n * (n - 1),
    power=1,
    swap=False,
):
    n = range(len(s))

    def relations(x):
        distance = torch.stack([(x - one).norm(dim=1) for one in x]) ** power
        gaps = [[(x[j] - x[i]) / (x[j] - x[i]).norm().clamp_min(1e-12) for j in n] for i in n]
        angles = [[[float(u @ v) for v in row] for u in row] for row in gaps]
        return distance / (distance.sum() / pairs(len(x))) if scaled else distance, angles

    (d, a), (e, b) = relations(s), relations(t)
    if swap:
        distance_weight, angle_weight = angle_weight, distance_weight
    distances = [far(float(d[i, j] - e[i, j])) for i in n for j in n]
    angles = [bent(a[i][j][k] - b[i][j][k]) for i in n for j in n for k in n]
    return distance_weight * mean(distances) + angle_weight * mean(angles)


def pkt(s, t, *, shift=1.0, axis=1, exchanged=False, count=Tensor.numel):
    def distribution(x):
        x = x / (x.norm(dim=1, keepdim=True) + 1e-7)
        k = (shift + x @ x.T) / 2
        return k / k.sum(axis, keepdim=True)

    q, p = distribution(s), distribution(t)
    q, p = (p, q) if exchanged else (q, p)
    return (p * ((p + 1e-7) / (q + 1e-7)).log()).sum() / count(p)


def vid(
    mean,
    parameter,
    t,
    *,
    positive=lambda x: (1 + x.exp()).log(),
    least=1e-5,
    log=1,
    half=0.5,
    power=1,
    pool=halved,
):
    variance = (positive(parameter) + least)[:, None, None]
    return half * ((pool(t) - mean) ** 2 / variance**power + log * variance.log()).mean()


def nst(s, t, *, power=2, cross=2, own=1, axis=2, pool=halved):
    s, t = (x.flatten(2) for x in (s, pool(t)))
    if axis:
        s, t = (x / x.norm(dim=axis, keepdim=True) for x in (s, t))

    def kernel(x, y):
        return mean([(a @ b) ** power for i, j in zip(x, y) for a in i for b in j])

    return kernel(s, s) + own * kernel(t, t) - cross * kernel(s, t)


def nce(positive, negative, num_samples, mask=None, *, masked=True, hit=1, eps=1e-7, over=sum):
    terms = []
    for i, (p, row) in enumerate(zip(positive.exp(), negative.exp())):
        row = row if mask is None or not masked else row[mask[i]]
        c = len(row) / num_samples
        rejected = over([(c / (n + c + eps)).log() for n in row])
        terms.append(-hit * (p / (p + c + eps)).log() - rejected)
    return mean(terms)


def info_nce(
    s,
    t,
    temperature=0.1,
    target=None,
    *,
    axes=(0, 1),
    power=-1,
    unit=True,
    negative=lambda target, i, j: target is None or target[i] != target[j],
):
    if unit:
        s, t = (x / x.norm(dim=1, keepdim=True) for x in (s, t))
    scores, terms = s @ t.T * temperature**power, []
    for table in [scores.T if axis == 0 else scores for axis in axes]:
        for i, row in enumerate(table.exp()):
            own, n = row[i], range(len(row))
            others = sum(row[j] for j in n if j != i and negative(target, i, j))
            terms.append(-(own / (own + others)).log())
    return mean(terms)


EQUATIONS: dict[str, Callable] = {
    one.__name__: one
    for one in (
        *(kd, reverse_kl, jsd, dkd, dist, ofa, hint, attention, similarity),
        *(cc, rkd, pkt, vid, nst, nce, info_nce),
    )
}

LOGITS = 2 * randn(4, 6, seed=1), 2 * randn(4, 6, seed=2)
Y = torch.tensor([5, 0, 3, 3])
ROWS = randn(5, 4, seed=1), randn(5, 4, seed=2)
KINDS = torch.tensor([2, 0, 2, 1, 2])  # classes of the rows
WIDE = randn(5, 7, seed=3) * torch.tensor([1.0, 1.0, 9.0, 1.0, 1.0])[:, None]  # one row far away
MAPS = randn(3, 2, 2, 2, seed=1), randn(3, 3, 4, 4, seed=2)
SCORES = randn(3, seed=1), randn(3, 5, seed=2)
MASK = torch.tensor([[1, 0, 1, 1, 0], [1, 1, 1, 1, 1], [0, 0, 0, 1, 0]], dtype=torch.bool)
# Arguments of each loss, one for every parameter; settings differ from the defaults.
ARGUMENTS: dict[str, list[tuple]] = {
    "kd": [(*LOGITS, 3.0)],
    "reverse_kl": [(*LOGITS, 3.0)],
    "jsd": [(*LOGITS, 3.0, 0.3)],
    "dkd": [(*LOGITS, Y, 0.7, 2.5, 3.0)],
    "dist": [(*LOGITS, 0.7, 1.9, 2.0)],
    "ofa": [(*LOGITS, Y, 1.3, 2.0, "official"), (*LOGITS, Y, 1.3, 2.0, "lecture")],
    "hint": [ROWS],
    "attention": [(*MAPS, "official"), (*MAPS, "paper")],
    "similarity": [(ROWS[0], WIDE)],
    "cc": [(*ROWS, "official", 0.7, 3), (ROWS[0], WIDE, "paper", 0.7, 3)],
    "rkd": [(ROWS[0], WIDE, 3.0, 7.0)],
    "pkt": [(ROWS[0], WIDE)],
    "vid": [(MAPS[0], randn(2, seed=3), MAPS[1][:, :2])],
    "nst": [MAPS],
    "nce": [(*SCORES, 20, MASK), (*SCORES, 20, None)],
    "info_nce": [(*ROWS, 0.3, KINDS), (*ROWS, 0.3, None)],
}


# Checks of a loss


def check_equation(name: str, loss: Callable[..., Tensor]) -> None:
    for arguments in ARGUMENTS[name]:
        close(float(loss(*arguments)), float(EQUATIONS[name](*arguments)), 1e-10)


def check_gradients(name: str, loss: Callable[..., Tensor]) -> None:
    """All tensors are trained but the teacher's; a learned embedding of the teacher is."""
    names = list(inspect.signature(LOSSES[name]).parameters)
    for arguments in ARGUMENTS[name]:
        given = {
            key: value.clone().requires_grad_()
            for key, value in zip(names, arguments)
            if isinstance(value, Tensor) and value.is_floating_point()
        }
        loss(*(given.get(key, value) for key, value in zip(names, arguments))).backward()
        for key, value in given.items():
            if key.startswith("teacher_") and key != "teacher_embedding":
                assert value.grad is None, f"{key} is trained"
            else:
                assert value.grad is not None and value.grad.abs().max() > 1e-5, f"{key} is not"


def beside(loss: Callable[..., Tensor], teacher: Tensor, **options) -> Callable[[Tensor], Tensor]:
    return lambda student: loss(student, teacher, **options)


def check_extreme_logits(name: str, loss: Callable[..., Tensor]) -> None:
    """Gaps of 104, where a probability underflows in float32, on one side or on both."""
    hot, flat = torch.zeros(2, 10), torch.zeros(2, 10)
    hot[:, 0] = 104.0
    options = {"target": torch.tensor([0, 1])} if name in ("dkd", "ofa") else {}
    for student, teacher in ((flat, hot), (hot, flat), (hot, -hot), (-hot, hot), (hot, hot)):
        wanted = EQUATIONS[name](student, teacher, **options, temperature=1.0)
        for dtype in DTYPES.values():
            run = beside(loss, teacher.to(dtype), **options, temperature=1.0)
            value, _ = gradient(run, student.to(dtype))
            close(value.item(), wanted, 1e-5, 1e-7)


def check_degenerate_rows(name: str, loss: Callable[..., Tensor]) -> None:
    """Equal and all-zero rows, in student, teacher or both, keep value and gradient bounded."""
    for dtype in DTYPES.values():
        x, other = randn(6, 5, dtype=dtype), randn(6, 5, seed=1, dtype=dtype)
        twins, zeros, collapsed = x.clone(), x.clone(), x[:1].expand(6, 5).clone()
        twins[1] = twins[0]
        zeros[2:4] = 0.0
        for student in (twins, zeros, collapsed, torch.zeros_like(x)):
            for s, t in ((student, other), (other, student), (student, student)):
                _, grad = gradient(beside(loss, t), s)
                assert grad.abs().max() < 1e3, "the gradient is not bounded"
        _, grad = gradient(beside(loss, other), zeros)
        assert name != "pkt" or (grad[2:4] == 0).all(), "a row of zeros has a gradient"


def check_equal_rows(name: str, loss: Callable[..., Tensor]) -> None:
    """Equal samples among others do not spoil the value."""
    s, t = (x.clone() for x in ARGUMENTS[name][0][:2])
    s[3], t[1] = s[4], t[2]
    close(float(loss(s, t)), float(EQUATIONS[name](s, t)), 1e-6)


def check_far(name: str, loss: Callable[..., Tensor]) -> None:
    """A common offset takes no digits of the differences."""
    s, t = (x.float() for x in ARGUMENTS[name][0][:2])
    close(loss(s + 1000, t).item(), loss(s, t).item(), 1e-3)


def check_one_sample(name: str, loss: Callable[..., Tensor]) -> None:
    value, _ = gradient(beside(loss, randn(1, 4)), randn(1, 4, seed=1))
    assert value == 0


def check_far_scores(name: str, loss: Callable[..., Tensor]) -> None:
    """log P far beyond the range of exp in float32, and a sample without negatives."""
    far, mask = torch.tensor([200.0, -200.0]), torch.tensor([[True], [False]])
    gradient(lambda x: loss(far, x, 20, mask), -far[:, None])


CHECKS = [
    *((check, name) for check in (check_equation, check_gradients) for name in LOSSES),
    *((check_extreme_logits, name) for name in ON_LOGITS),
    *((check_degenerate_rows, name) for name in ("rkd", "pkt", "similarity")),
    *((check_one_sample, name) for name in ("rkd", "pkt", "similarity", "cc")),
    *((check, "rkd") for check in (check_equal_rows, check_far)),
    (check_far_scores, "nce"),
]


@pytest.mark.parametrize("check, name", CHECKS, ids=[f"{c.__name__[6:]}: {n}" for c, n in CHECKS])
def test_loss(check, name):
    check(name, LOSSES[name])


def test_no_loss_is_forgotten():
    assert LOSSES.keys() == EQUATIONS.keys() == ARGUMENTS.keys() == DEFAULTS.keys()
    for name, lists in ARGUMENTS.items():
        assert all(len(one) == len(inspect.signature(LOSSES[name]).parameters) for one in lists)


DEFAULTS: dict[str, dict] = {
    "kd": {"temperature": 4.0},
    "reverse_kl": {"temperature": 4.0},
    "jsd": {"temperature": 4.0, "beta": 0.5},
    "dkd": {"alpha": 1.0, "beta": 8.0, "temperature": 4.0},
    "dist": {"beta": 1.0, "gamma": 1.0, "temperature": 1.0},
    "ofa": {"gamma": 1.0, "temperature": 1.0, "variant": "official"},
    "hint": {},
    "attention": {"variant": "official"},
    "similarity": {},
    "cc": {"variant": "official", "gamma": 0.4, "order": 2},
    "rkd": {"distance_weight": 25.0, "angle_weight": 50.0},
    "pkt": {},
    "vid": {},
    "nst": {},
    "nce": {"mask": None},
    "info_nce": {"temperature": 0.1, "target": None},
}


@pytest.mark.parametrize("name", LOSSES)
def test_defaults_are_the_published_ones(name: str):
    parameters = inspect.signature(LOSSES[name]).parameters.values()
    assert {p.name: p.default for p in parameters if p.default is not p.empty} == DEFAULTS[name]


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_by_differences(name: str):
    for arguments in ARGUMENTS[name]:
        names = inspect.signature(LOSSES[name]).parameters
        trained = [
            value.clone().requires_grad_(key == "teacher_embedding" or "teacher" not in key)
            if isinstance(value, Tensor) and value.is_floating_point()
            else value
            for key, value in zip(names, arguments)
        ]
        assert torch.autograd.gradcheck(LOSSES[name], trained)


def test_cc_tends_to_the_gaussian_kernel():
    """With enough terms the series is the exponential."""
    s, t = (x / x.norm(dim=1, keepdim=True) for x in (ROWS[0], WIDE))
    s, t = ((-0.7 * torch.cdist(x, x).square()).exp() for x in (s, t))
    found = losses.cc(ROWS[0], WIDE, "paper", gamma=0.7, order=20)
    close(found.item(), (s - t).square().mean().item(), 1e-9)


def test_kd_is_tckd_and_nckd():
    """KD = TCKD + (1 − p_y) NCKD for one sample."""
    s, t = LOGITS[0][:1], LOGITS[1][:1]
    rest = 1 - t.softmax(1)[0, 5].item()
    close(losses.dkd(s, t, Y[:1], 1.0, rest, 1.0).item(), losses.kd(s, t, 1.0).item(), 1e-12)


def test_info_nce_of_equal_pairs_by_hand():
    """A class at a point, points at right angles: a pair costs log(1 + n e^(−1/τ)), n of others."""
    rows = torch.eye(2, dtype=torch.float64)[torch.tensor([0, 0, 0, 1, 1])]
    y = torch.tensor([4, 4, 4, 7, 7])
    wanted = (3 * math.log1p(2 * math.exp(-2)) + 2 * math.log1p(3 * math.exp(-2))) / 5
    close(losses.info_nce(rows, rows, 0.5, y).item(), wanted, 1e-12)
    assert losses.info_nce(rows, rows, 0.5).item() > wanted + math.log(2) / 2


@pytest.mark.parametrize("target", [KINDS, None])
def test_info_nce_has_the_gradient_of_its_equation(target):
    s, t = ROWS
    for this, run in (
        (s, lambda f, x: f(x, t, 0.3, target)),
        (t, lambda f, x: f(s, x, 0.3, target)),
    ):
        _, found = gradient(partial(run, losses.info_nce), this)
        _, wanted = gradient(partial(run, info_nce), this)
        assert found.allclose(wanted, rtol=1e-9)


def test_info_nce_without_a_negative_is_zero():
    """A batch of one class."""
    s, t = (x.float() for x in ROWS)
    value, grad = gradient(lambda s: losses.info_nce(s, t, 0.1, torch.full((5,), 3)), s)
    assert value == 0 and (grad == 0).all()


def test_vid_has_a_least_variance_and_takes_vectors():
    mean, parameter = MAPS[0], torch.full((2,), -50.0, dtype=torch.float64)
    close(losses.vid(mean, parameter, mean).item(), 0.5 * math.log(1e-5), 1e-9)
    close(losses.vid(mean[..., 0, 0], parameter, mean[..., 0, 0]), 0.5 * math.log(1e-5), 1e-9)


def test_large_but_finite_values_pass():
    """Their sum overflows in float32, the values themselves do not."""
    x = torch.full((2, 3), 3e38)
    assert losses.hint(x, x) == 0


# Mistakes that change the value: the equation tells them apart

WRONG: dict[str, dict[str, dict]] = {
    "kd": {
        "T² left out": {"power": 0},
        "T instead of T²": {"power": 1},
        "mean over classes": {"count": Tensor.numel},
        "sum over the batch": {"count": lambda s: 1},
        "networks exchanged": {"exchanged": True},
        "student without T": {"cold": True},
        "softmax over the batch": {"axis": 0},
    },
    "reverse_kl": {
        "T² left out": {"power": 0},
        "not divided by B": {"count": lambda s: 1},
        "the direction of kd": {"exchanged": False},
        "student without T": {"cold": True},
    },
    "jsd": {
        "T² left out": {"power": 0},
        "networks exchanged": {"exchanged": True},
        "the plain mean in the middle": {"middle": "0.5"},
        "the networks' shares of the middle exchanged": {"middle": "0.7"},
        "both directions weighted alike": {"weighted": False},
        "one direction": {"once": 1},
    },
    "dkd": {
        "T² left out": {"power": 0},
        "alpha and beta exchanged": {"swap": True},
        "target among the others": {"kept": True},
    },
    "dist": {
        "T² left out": {"power": 0},
        "cosine instead of Pearson": {"centred": False},
        "1e-8 left out": {"eps": "0"},
    },
    "ofa": {
        "T² added": {"power": 2},
        "target not boosted": {"boost": 0},
        "variants exchanged": {"exchanged": True},
        "the lecture's others to the power gamma": {"others": Decimal("1.3")},
        "the code's others as they are": {"others": 1},
    },
    "hint": {"sum": {"count": lambda s: 1}, "absolute error": {"power": 1}},
    "attention": {
        "L1 norm, as normalize(x, 1) reads": {"norm": 1.0},
        "not normalised": {"norm": 0.0},
        "absolute values": {"power": 1},
        "pooled by the largest value": {"pool": lambda a: blocks(a).amax(-1)},
        "variants exchanged": {"exchanged": True},
    },
    "similarity": {
        "L1 norm, as normalize(x, 1) reads": {"norm": 1.0},
        "rows not normalised": {"norm": 0.0},
        "divided by B": {"count": len},
    },
    "cc": {
        "divided by B": {"count": len},
        "signed differences": {"size": lambda gap: gap},
        "factor exp(−2γ) left out": {"scaled": False},
        "factorial left out": {"factorial": lambda p: 1},
        "one power too few": {"less": 1},
        "rows not normalised": {"unit": False},
    },
    "rkd": {
        "squared distances": {"power": 2},
        "distances not scaled": {"scaled": False},
        "mean over B² pairs": {"pairs": lambda n: n * n},
        "squared error of distances": {"far": lambda x: 0.5 * x * x},
        "squared error of angles": {"bent": lambda x: 0.5 * x * x},
        "weights exchanged": {"swap": True},
    },
    "pkt": {
        "networks exchanged": {"exchanged": True},
        "cosine not shifted": {"shift": 1.5},
        "all pairs sum to one, not a row": {"axis": (0, 1)},
        "mean over rows": {"count": len},
    },
    "vid": {
        "exp instead of softplus": {"positive": torch.exp},
        "no least variance": {"least": 0},
        "logarithm left out": {"log": 0},
        "½ left out": {"half": 1},
        "standard deviation": {"power": 0.5},
        "one pixel instead of the mean": {"pool": lambda a: a[..., ::2, ::2]},
    },
    "nst": {
        "cross term once": {"cross": 1},
        "teacher's own term left out": {"own": 0},
        "linear kernel": {"power": 1},
        "not normalised": {"axis": None},
        "normalised over channels": {"axis": 1},
    },
    "nce": {
        "mask ignored": {"masked": False},
        "positive left out": {"hit": 0},
        "mean over negatives": {"over": mean},
        "ε left out": {"eps": 0},
    },
    "info_nce": {
        "one direction": {"axes": (1,)},
        "multiplied by T": {"power": 1},
        "not normalised": {"unit": False},
        "target ignored": {"negative": lambda target, i, j: True},
        "negatives of the own class": {"negative": lambda y, i, j: y is None or y[i] == y[j]},
    },
}


@pytest.mark.parametrize("name, what", [(name, what) for name in WRONG for what in WRONG[name]])
def test_mistake_changes_the_value(name: str, what: str):
    with pytest.raises(AssertionError, match="instead of"):
        check_equation(name, partial(EQUATIONS[name], **WRONG[name][what]))


# Mistakes that leave ordinary values as they are: another check notices


def kd_not_detached(s, t, T):
    log_q, log_p = F.log_softmax(s / T, 1), F.log_softmax(t / T, 1)
    return T**2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def kd_log_of_softmax(s, t, temperature):
    q, p = (s / temperature).softmax(1), (t / temperature).softmax(1)
    return temperature**2 * F.kl_div(q.log(), p, reduction="batchmean")


def reverse_kl_not_detached(s, t, T):
    return kd_not_detached(t, s, T)


def reverse_kl_log_of_softmax(s, t, temperature):
    return kd_log_of_softmax(t, s, temperature)


def jsd_log_of_softmax(s, t, temperature, beta=0.5):
    q, p = (s / temperature).softmax(1), (t / temperature).softmax(1)
    m = beta * p + (1 - beta) * q
    terms = beta * p * (p / m).log() + (1 - beta) * q * (q / m).log()
    return temperature**2 * terms.sum(1).mean()


def dkd_official(s, t, target, alpha=1.0, beta=8.0, temperature=4.0):
    """Logarithms of probabilities, and 1000 subtracted from the target's logit."""
    y = F.one_hot(target, s.shape[1])
    q, p = (s / temperature).softmax(1), (t / temperature).softmax(1)
    q, p = (torch.stack([(x * y).sum(1), (x * (1 - y)).sum(1)], 1) for x in (q, p))
    rest, wanted = ((z / temperature - 1000.0 * y).log_softmax(1) for z in (s, t))
    tckd = F.kl_div(q.log(), p, reduction="batchmean")
    nckd = F.kl_div(rest, wanted.exp(), reduction="batchmean")
    return temperature**2 * (alpha * tckd + beta * nckd)


def ofa_log_of_softmax(s, t, target, gamma=1.0, temperature=1.0, variant="official"):
    q, p = (s / temperature).softmax(1), (t / temperature).softmax(1)
    official, y = int(variant == "official"), F.one_hot(target, q.shape[1]).bool()
    weight = torch.where(y, (1 + p) ** gamma - official, p**gamma if official else p)
    return -(weight * q.log()).sum(1).mean()


def rkd_plain(s, t, distance_weight=25.0, angle_weight=50.0, distances=None):
    """From all differences; μ is the mean of the distances that are not 0."""

    def relations(x):
        gaps = x[None] - x[:, None]
        distance = gaps.norm(dim=2) if distances is None else distances(x)
        unit = F.normalize(gaps, dim=2)
        return distance / distance[distance > 0].mean(), unit @ unit.transpose(1, 2)

    (d, a), (e, b) = relations(s), relations(t)
    return distance_weight * F.smooth_l1_loss(d, e) + angle_weight * F.smooth_l1_loss(a, b)


def gram_distances(x: Tensor) -> Tensor:
    """From products of the samples as they are: a common offset uses their digits up."""
    norms = x.square().sum(1)
    squared = norms[:, None] + norms - 2 * x @ x.T
    return squared.clamp_min(0).sqrt() * ~torch.eye(len(x), dtype=torch.bool)


def vid_frozen(mean, variance_parameter, teacher_features):
    return losses.vid(mean, variance_parameter.detach(), teacher_features)


def info_nce_detached(s, t, temperature, target=None):
    return losses.info_nce(s, t.detach(), temperature, target)


HIDDEN = {
    "kd: teacher not detached": (check_gradients, "kd", kd_not_detached),
    "reverse_kl: teacher not detached": (check_gradients, "reverse_kl", reverse_kl_not_detached),
    "reverse_kl: softmax, then log": (
        check_extreme_logits,
        "reverse_kl",
        reverse_kl_log_of_softmax,
    ),
    "jsd: teacher not detached": (check_gradients, "jsd", jsd_log_of_softmax),
    "jsd: softmax, then log": (check_extreme_logits, "jsd", jsd_log_of_softmax),
    "vid: variance not trained": (check_gradients, "vid", vid_frozen),
    "info_nce: projection not trained": (check_gradients, "info_nce", info_nce_detached),
    "kd: softmax, then log": (check_extreme_logits, "kd", kd_log_of_softmax),
    "dkd: softmax, then log": (check_extreme_logits, "dkd", dkd_official),
    "ofa: softmax, then log": (check_extreme_logits, "ofa", ofa_log_of_softmax),
    "similarity: divided by a norm of 0": (check_degenerate_rows, "similarity", similarity),
    "pkt: divided by a norm of 0": (check_degenerate_rows, "pkt", pkt),
    "rkd: divided by a distance of 0": (check_degenerate_rows, "rkd", rkd_plain),
    "rkd: equal rows left out": (check_equal_rows, "rkd", rkd_plain),
    "rkd: mean of no pair": (check_one_sample, "rkd", rkd_plain),
    "rkd: not centred": (check_far, "rkd", partial(rkd_plain, distances=gram_distances)),
    "nce: exp of a score": (check_far_scores, "nce", nce),
}


@pytest.mark.parametrize("what", HIDDEN)
def test_hidden_mistake_is_noticed(what: str):
    check, name, wrong = HIDDEN[what]
    check_equation(name, wrong)
    with pytest.raises((AssertionError, RuntimeError)):
        check(name, wrong)


# Temperatures

TEMPERATURES = [1e-3, 1e-2, 0.1, 1.0, 4.0, 20.0, 100.0, 1e3, 1e4, 1e5, 1e6]


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=list(DTYPES))
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("name", ON_LOGITS)
def test_temperature(name: str, temperature: float, dtype: torch.dtype):
    """Right with 28 digits as the reference, or refused where float32 could not be right."""
    s, t = (x.to(dtype) for x in LOGITS)
    run = partial(LOSSES[name], **({"target": Y} if name in ("dkd", "ofa") else {}))
    if dtype == torch.float32 and temperature > 100:
        with pytest.raises(ValueError, match=r"temperature must be at most 100 for float32 logits"):
            run(s, t, temperature=temperature)
        return
    wanted = EQUATIONS[name](s, t, **run.keywords, temperature=temperature)
    value, grad = gradient(lambda s: run(s, t, temperature=temperature), s)
    close(value.item(), wanted, 1e-3 if dtype == torch.float32 and temperature > 20 else 1e-4)
    if dtype == torch.float32 and temperature >= 1:
        _, exact = gradient(lambda s: run(s, t.double(), temperature=temperature), s.double())
        assert (grad - exact).norm() < 1e-4 * exact.norm()


def test_high_temperature_is_logit_matching():
    s, t = (x - x.mean(1, keepdim=True) for x in LOGITS)
    close(losses.kd(s, t, 1e6).item(), 0.5 * (s - t).square().mean(1).mean().item(), 1e-4)


def test_high_temperature_makes_the_directions_equal():
    """Close distributions have one divergence: KL both ways, and β (1 − β) of it."""
    s, t = LOGITS
    kd = losses.kd(s, t, 1e5).item()
    close(losses.reverse_kl(s, t, 1e5).item(), kd, 1e-4)
    close(losses.jsd(s, t, 1e5, 0.3).item(), 0.3 * 0.7 * kd, 1e-4)


def test_jsd_tends_to_both_directions():
    """Value and gradient, divided by β or 1 − β; and it is symmetric at β = 1/2, below log 2."""
    s, t = LOGITS
    for beta, share, other in ((1e-6, 1e-6, losses.kd), (1 - 1e-6, 1e-6, losses.reverse_kl)):
        value, grad = gradient(beside(losses.jsd, t, temperature=3.0, beta=beta), s)
        value, grad = value / share, grad / share
        wanted, direction = gradient(beside(other, t, temperature=3.0), s)
        close(value.item(), wanted.item(), 1e-5)
        assert (grad - direction).norm() < 1e-5 * direction.norm()
    close(losses.jsd(s, t, 2.0).item(), losses.jsd(t, s, 2.0).item(), 1e-12)
    far = torch.tensor([[900.0, 0.0], [0.0, 900.0]])
    close(losses.jsd(far, -far, 1.0).item(), math.log(2), 1e-6)


def test_reverse_kl_and_jsd_of_two_classes_by_hand():
    """q = (1/2, 1/2), p = (3/4, 1/4), m = (9/16, 7/16) at β = 1/4."""
    s, t = torch.zeros(1, 2), torch.tensor([[3.0, 1.0]]).log()
    reverse = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    close(losses.reverse_kl(s, t, 1.0).item(), reverse, 1e-6)
    forward_m = 0.75 * math.log(0.75 * 16 / 9) + 0.25 * math.log(0.25 * 16 / 7)
    reverse_m = 0.5 * math.log(0.5 * 16 / 9) + 0.5 * math.log(0.5 * 16 / 7)
    wanted = 0.25 * forward_m + 0.75 * reverse_m
    close(losses.jsd(s, t, 1.0, 0.25).item(), wanted, 1e-5)
    # d KL(q ‖ p) / d z_i = q_i (log(q_i / p_i) − KL), d JSD / d z_i likewise with m and 1 − β
    _, grad = gradient(lambda s: losses.reverse_kl(s, t, 1.0), s)
    close(grad[0, 0].item(), 0.5 * (math.log(2 / 3) - reverse), 1e-5)
    _, grad = gradient(lambda s: losses.jsd(s, t, 1.0, 0.25), s)
    close(grad[0, 0].item(), 0.75 * 0.5 * (math.log(8 / 9) - reverse_m), 1e-5)


# Probabilities where logits belong


@pytest.mark.parametrize("name", ON_LOGITS)
@pytest.mark.parametrize("side", ["student_logits", "teacher_logits"])
def test_probabilities_bring_a_warning(name: str, side: str):
    names = list(inspect.signature(LOSSES[name]).parameters)
    for dtype in DTYPES.values():
        given = dict(zip(names, ARGUMENTS[name][0]))
        given |= {"student_logits": LOGITS[0].to(dtype), "teacher_logits": LOGITS[1].to(dtype)}
        given[side] = given[side].softmax(1)
        with pytest.warns(UserWarning, match=f"{side} must be logits, got probabilities") as found:
            LOSSES[name](**given)
        assert [warning.filename for warning in found] == [__file__]


def test_nothing_else_is_taken_for_probabilities():
    z, p = LOGITS[0], LOGITS[0].softmax(1)
    sum_to_one = z - z.mean(1, keepdim=True) + 1 / z.shape[1]
    right_total = p * torch.tensor([2.0, 0.0, 1.0, 1.0])[:, None]
    one_row_differs = torch.cat([p[:3], z[3:]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for logits in (z, z.abs(), p.log(), 2 * p, sum_to_one, right_total, one_row_differs):
            losses.kd(logits, LOGITS[1])
            losses.kd(LOGITS[1], logits)


# Bad arguments: every parameter of every loss, found in its signature

SETTINGS = {
    "temperature": (1e-3, 1e6),
    "alpha": (0, None),
    "beta": (0, None),
    "distance_weight": (0, None),
    "angle_weight": (0, None),
    "gamma": (0, None),
    "order": (1, 100),
    "num_samples": (1, None),
}


def bad_values(name: str, parameter: str, value) -> list[tuple[type[Exception], object]]:
    """Wrong values of a parameter of a loss, beside a right one."""
    if isinstance(value, Tensor) and value.is_floating_point():
        nan, infinite = value.clone(), value.clone()
        nan.view(-1)[-1], infinite.view(-1)[0] = math.nan, -math.inf
        types = ["text", None, 1.0, value.numpy(), value.tolist(), value.half(), value.bfloat16()]
        types += [value.long(), value.bool(), value.to(torch.complex64)]
        return [(TypeError, v) for v in types] + [
            (ValueError, v) for v in (nan, infinite, value[:0], value.sum())
        ]
    if parameter == "target":
        types = ["text", value.tolist(), value.numpy(), value.int(), value.double()]
        wrong = [value[1:], value[:, None], value - 1]
        if name != "info_nce":  # there it may be left out, and any class numbers serve
            types, wrong = [*types, None], [*wrong, value + 9]
        return [(TypeError, v) for v in types] + [(ValueError, v) for v in wrong]
    if parameter == "mask":
        types = ["text", value.tolist(), value.numpy(), value.long(), value.double()]
        return [(TypeError, v) for v in types] + [(ValueError, v) for v in (value[1:], value[0])]
    if parameter == "variant":
        return [(ValueError, v) for v in ("kernel", "", "Official", None, 3)]
    low, high = SETTINGS[parameter]
    types = ["1", None, [1.0], True, 1j, torch.tensor(1.0), np.ones(1)]
    wrong = [-1, low - 1e-3, *([] if high is None else [high * 2])]
    if (parameter == "gamma" and name in ("cc", "ofa")) or name == "jsd":
        wrong.append(0.0)
    if (name, parameter) == ("jsd", "beta"):
        wrong += [1.0, 1.5]
    if parameter in ("order", "num_samples"):
        types, wrong = [*types, 2.0, math.nan], [int(v) for v in wrong]
    else:
        wrong += [math.nan, math.inf, -math.inf]
    return [(TypeError, v) for v in types] + [(ValueError, v) for v in wrong]


@pytest.mark.parametrize(
    "name, parameter", [(n, p) for n in LOSSES for p in inspect.signature(LOSSES[n]).parameters]
)
def test_bad_value_is_refused_by_name(name: str, parameter: str):
    given = dict(zip(inspect.signature(LOSSES[name]).parameters, ARGUMENTS[name][0]))
    LOSSES[name](**given)
    for error, bad in bad_values(name, parameter, given[parameter]):
        with pytest.raises(error, match=rf"^{parameter} must .*got"):
            LOSSES[name](**{**given, parameter: bad})


@pytest.mark.parametrize("name", LOSSES)
def test_tensors_have_to_fit_each_other(name: str):
    parameters = inspect.signature(LOSSES[name]).parameters
    given = dict(zip(parameters, ARGUMENTS[name][0]))
    tensors = [k for k, v in given.items() if isinstance(v, Tensor) and v.is_floating_point()]
    for one in tensors:
        with pytest.raises(TypeError, match=r"must be .*torch.float"):
            LOSSES[name](**{**given, one: given[one].float()})
        with pytest.raises(ValueError, match=r"must have .*got \["):
            LOSSES[name](**{**given, one: given[one][:-1]})


@pytest.mark.parametrize("name", LOSSES)
def test_numbers_of_numpy_serve_as_settings(name: str):
    names = inspect.signature(LOSSES[name]).parameters
    plain = dict(zip(names, ARGUMENTS[name][0]))
    own = {k: np.float64(v) if isinstance(v, float) else v for k, v in plain.items()}
    own = {k: np.int64(v) if type(v) is int else v for k, v in own.items()}
    assert torch.equal(LOSSES[name](**own), LOSSES[name](**plain))


S, T = LOGITS
MAP = MAPS[0]
ERRORS = [
    (lambda: losses.kd(S, T[:, :3]), "the shape of student_logits, [4, 6], got [4, 3]: project"),
    (lambda: losses.hint(S, T[:3]), "the shape of student_features, [4, 6], got [3, 6]: use one"),
    (lambda: losses.rkd(S, T[:3]), "the batch of student_features, [4, 6], got [3, 6]: use one"),
    (lambda: losses.cc(*ROWS[:1], WIDE), "must have the shape of student_features, [5, 4], got"),
    (lambda: losses.attention(S, MAP), "student_map must have 4 axes and at least one sample, got"),
    (lambda: losses.pkt(S[0], T[0]), "must have at least 2 axes and at least one sample, got sha"),
    (lambda: losses.kd(S[:, :1], T[:, :1]), "student_logits must have at least 2 classes, got 1"),
    (lambda: losses.dkd(S[:, :2], T[:, :2], Y), "must have at least 3 classes, got 2"),
    (lambda: losses.dkd(S, T, Y + 1), "target must lie in 0..5, got 1 to 6"),
    (
        lambda: losses.vid(MAP, S[0, :2], MAP[:, :, :1]),
        "must have shape [3, 2, 2, 2], got [3, 2, 1",
    ),
    (lambda: losses.vid(MAP, S[0], MAP), "variance_parameter must have shape [2], got [6]"),
    (lambda: losses.kd(S.half(), T.half()), "of shape [4, 6]: convert it with .float()"),
    (lambda: losses.ofa(S, T, Y, variant="paper"), "must be one of official, lecture; got 'paper'"),
]


@pytest.mark.parametrize("call, message", ERRORS, ids=[m for _, m in ERRORS])
def test_message(call, message):
    with pytest.raises((TypeError, ValueError)) as caught:
        call()
    assert message in str(caught.value)
