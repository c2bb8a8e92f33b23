"""Every loss against reference values, at its edges, and against wrong versions of itself."""

from __future__ import annotations

import inspect
import math
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from reference import DTYPES, GOLDEN, close, compare, inputs, killed, mutant

from kdlib import losses

CASES = {case["id"]: case for case in GOLDEN["cases"] if not case["loss"].startswith("crd")}
EDGES = GOLDEN["edge_cases"]
SIGNATURES = {
    "kd": "student_logits, teacher_logits, temperature=4.0",
    "hint": "student_features, teacher_features",
    "attention": "student_map, teacher_map, variant='official'",
    "similarity": "student_features, teacher_features",
    "cc": "student_features, teacher_features, variant='official', gamma=0.4, order=2",
    "rkd": "student_features, teacher_features, distance_weight=25.0, angle_weight=50.0",
    "pkt": "student_features, teacher_features",
    "vid": "mean, variance_parameter, teacher_features",
    "nst": "student_map, teacher_map",
    "dkd": "student_logits, teacher_logits, target, alpha=1.0, beta=8.0, temperature=4.0",
    "dist": "student_logits, teacher_logits, beta=1.0, gamma=1.0, temperature=1.0",
    "ofa": "student_logits, teacher_logits, target, gamma=1.0, temperature=1.0, "
    "variant='official'",
    "nce": "positive, negative, num_samples, mask=None",
    "info_nce": "student_embedding, teacher_embedding, temperature=0.1",
}
NAMES = {"fitnet": "hint", "at": "attention", "at_paper": "attention", "sp": "similarity"}


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def gradient(loss, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Value and gradient of `loss` at `x`, both of which have to be finite."""
    x = x.clone().requires_grad_()
    value = loss(x)
    assert value.requires_grad, "no gradient"
    (grad,) = torch.autograd.grad(value, x)
    assert value.isfinite() and grad.isfinite().all(), f"loss {value}, gradient {grad}"
    return value.detach(), grad


# Checks: each takes the module under test, so that it can be turned on a mutant


def stages(x: dict) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(x[f"s{i}"], x[f"t{i}"]) for i in range(len(x)) if f"s{i}" in x]


def evaluate(case: dict, x: dict[str, torch.Tensor], m) -> torch.Tensor:
    """The loss of a reference case, computed with the functions of module `m`."""
    p = case["params"]
    s, t = (next((x[k] for k in x if k.startswith(who)), None) for who in ("student", "teacher"))
    y = x.get("target")
    match case["loss"]:
        case "kd":
            return m.kd(s, t, p["T"])
        case "kd_total":
            return p["ce_weight"] * F.cross_entropy(s, y) + p["kd_weight"] * m.kd(s, t, p["T"])
        case "fitnet":
            return m.hint(s, t)
        case "at" | "at_paper":
            variant = p.get("mode", "official")
            return sum(m.attention(a, b, variant=variant) for a, b in stages(x))
        case "sp":
            return m.similarity(x["s0"], x["t0"])
        case "cc":
            return m.cc(s, t)
        case "rkd":
            return m.rkd(s, t, distance_weight=p["w_d"], angle_weight=p["w_a"])
        case "pkt":
            return m.pkt(s, t)
        case "nst":
            return m.nst(x["s0"], x["t0"])
        case "vid":
            mean = F.adaptive_avg_pool2d(s, min(s.shape[2], t.shape[2]))
            for i, name in enumerate(("w1", "w2", "w3")):
                mean = F.conv2d(mean.relu() if i else mean, x[name])
            start = torch.full((mean.shape[1],), math.log(math.expm1(5 - 1e-5)), dtype=s.dtype)
            return m.vid(mean, x.get("log_scale", start), t)
        case "dkd":
            return m.dkd(s, t, y, alpha=p["alpha"], beta=p["beta"], temperature=p["T"])
        case "dkd_total":
            loss = m.dkd(s, t, y, alpha=p["alpha"], beta=p["beta"], temperature=p["T"])
            return p["ce_weight"] * F.cross_entropy(s, y) + min(p["epoch"] / p["warmup"], 1) * loss
        case "dist":
            return m.dist(s, t, beta=p["beta"], gamma=p["gamma"], temperature=p["T"])
        case "ofa":
            return m.ofa(s, t, y, gamma=p["eps"], temperature=p["T"])
        case "ofa_total":
            *early, last = p["eps_per_stage_then_logits"]
            terms = [m.ofa(x[f"stage{i}_logits"], t, y, gamma=e) for i, e in enumerate(early, 1)]
            total = p["ofa_loss_weight"] * sum(terms)
            total = total + p["kd_loss_weight"] * m.ofa(s, t, y, gamma=last)
            return total + p["gt_loss_weight"] * F.cross_entropy(s, y)
    raise AssertionError(f"no loss for {case['loss']}")


def check_reference(m, case: dict, precision: str = "float64") -> None:
    x = inputs(case, DTYPES[precision])
    compare(case, precision, evaluate(case, x, m), x)
    assert all(v.grad is None for k, v in x.items() if k.startswith("t")), "the teacher is trained"


def check_signature(m, name: str) -> None:
    parameters = inspect.signature(getattr(m, name)).parameters.values()
    found = [p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in parameters]
    assert ", ".join(found) == SIGNATURES[name]


def check_defaults_are_used(m, name: str) -> None:
    """A call without options equals the call with the published ones."""
    s, t, y = randn(6, 10, seed=1), randn(6, 10, seed=2), torch.arange(6)
    plain = {
        "kd": (m.kd(s, t), m.kd(s, t, 4.0)),
        "dkd": (m.dkd(s, t, y), m.dkd(s, t, y, 1.0, 8.0, 4.0)),
        "dist": (m.dist(s, t), m.dist(s, t, 1.0, 1.0, 1.0)),
        "rkd": (m.rkd(s, t), m.rkd(s, t, 25.0, 50.0)),
        "ofa": (m.ofa(s, t, y), F.cross_entropy(s, t.softmax(1))),
    }
    close(*(v.item() for v in plain[name]), 1e-12)


def check_edge(m, case: dict, dtype: torch.dtype = torch.float64) -> None:
    """The stored edge cases; `kit_should` says what is wanted."""
    s, t, *y = (torch.tensor(a) for a in case["arrays"].values())
    s, t, p = s.to(dtype), t.to(dtype), case["params"]
    run = {
        "kd": lambda s: m.kd(s, t, p["T"]),
        "dkd": lambda s: m.dkd(s, t, *y, alpha=p["alpha"], beta=p["beta"], temperature=p["T"]),
        "ofa": lambda s: m.ofa(s, t, *y, gamma=p["eps"], temperature=p["T"]),
        "dist": lambda s: m.dist(s, t, p["beta"], p["gamma"], p["T"]),
        "rkd": lambda s: m.rkd(s, t, p["w_d"], p["w_a"]),
        "cc": lambda s: m.cc(s, t),
        "pkt": lambda s: m.pkt(s, t),
        "at": lambda s: m.attention(s, t),
    }
    value, grad = gradient(run[case["loss"]], s)
    wanted = {"kd": 0, "dkd": 0, "rkd": 0, "cc": 0, "dist": 1 / 3, "at": 0.25, "ofa": None}
    wanted["pkt"] = case["official_float32"]["loss"]
    if wanted[case["loss"]] is not None:
        close(value.item(), wanted[case["loss"]], 1e-5, 1e-5 if case["loss"] == "dist" else 1e-7)
    assert grad.abs().max() < 100
    if case["loss"] == "pkt":
        assert (grad[0] == 0).all(), "a row of zeros has a gradient"


def check_extreme_logits(m, name: str) -> None:
    """A gap of 104 on one side only: finite, and right in float32 (float64 is the reference)."""
    hot, flat = torch.zeros(2, 10), torch.zeros(2, 10)
    hot[:, 0] = 104.0
    y = torch.tensor([0, 1])
    run = {
        "kd": lambda s, t: m.kd(s, t, 1.0),
        "dkd": lambda s, t: m.dkd(s, t, y, temperature=1.0),
        "dist": lambda s, t: m.dist(s, t),
        "ofa": lambda s, t: m.ofa(s, t, y, gamma=1.5) + m.ofa(s, t, y, variant="lecture"),
    }[name]
    for student, teacher in ((flat, hot), (hot, flat), (hot, -hot), (-hot, hot)):
        single, _ = gradient(lambda s: run(s, teacher), student)
        double, _ = gradient(lambda s: run(s, teacher.double()), student.double())
        close(single.item(), double.item(), 1e-5)


def check_degenerate_rows(m, name: str) -> None:
    """Equal and all-zero rows, in student, teacher or both, keep value and gradient bounded."""
    loss = getattr(m, name)
    for dtype in DTYPES.values():
        x, other = randn(6, 5, dtype=dtype), randn(6, 5, seed=1, dtype=dtype)
        twins, zeros, collapsed = x.clone(), x.clone(), x[:1].expand(6, 5).clone()
        twins[1] = twins[0]
        zeros[2:4] = 0.0
        for student in (twins, zeros, collapsed, torch.zeros_like(x)):
            for s, t in ((student, other), (other, student), (student, student)):
                _, grad = gradient(lambda s: loss(s, t), s)
                assert grad.abs().max() < 1e3
        _, grad = gradient(lambda s: loss(s, other), zeros)
        assert name != "pkt" or (grad[2:4] == 0).all(), "a row of zeros has a gradient"


def check_one_sample(m, name: str) -> None:
    for variant in ({"variant": "official"}, {"variant": "paper"}) if name == "cc" else ({},):
        value, _ = gradient(lambda s: getattr(m, name)(s, randn(1, 4), **variant), randn(1, 4))
        assert value == 0


def check_rkd_plain(m) -> None:
    """The Gram form against the formula as it is written, with equal rows among the samples."""
    s, t = randn(7, 4, seed=3), randn(7, 9, seed=4)
    s[3] = s[5]
    t[1] = t[2]

    def relations(x):
        gaps = x[None] - x[:, None]
        off = ~torch.eye(len(x), dtype=torch.bool)
        distance = gaps.square().sum(2).clamp_min(1e-12).sqrt() * off
        unit = F.normalize(gaps, dim=2)
        return distance / distance[off].mean(), unit @ unit.transpose(1, 2)

    (ds, cs), (dt, ct) = relations(s), relations(t)
    wanted = 25 * F.smooth_l1_loss(ds, dt) + 50 * F.smooth_l1_loss(cs, ct)
    value, grad = gradient(lambda s: m.rkd(s, t), s)
    close(value.item(), wanted.item(), 1e-10)
    # Far from the origin only centring saves the digits of the Gram matrix.
    near, _ = gradient(lambda s: m.rkd(s, t.float()), s.float())
    far, _ = gradient(lambda s: m.rkd(s, t.float()), s.float() + 300)
    close(far.item(), near.item(), 1e-3)


def check_cc_paper(m) -> None:
    """Against the exponential itself: with enough terms the series is the Gaussian kernel."""
    s, t = randn(5, 4, seed=1), randn(5, 6, seed=2)

    def gaussian(x):
        x = x / x.norm(dim=1, keepdim=True)
        return (-0.7 * torch.cdist(x, x).square()).exp()

    wanted = (gaussian(s) - gaussian(t)).square().sum() / 25
    close(m.cc(s, t, "paper", gamma=0.7, order=20).item(), wanted.item(), 1e-9)
    near = m.cc(s, t, "paper")
    a, b = ((x / x.norm(dim=1, keepdim=True)) for x in (s, t))
    a, b = (math.exp(-0.8) * (1 + 0.8 * k + 0.32 * k**2) for k in (a @ a.T, b @ b.T))
    close(near.item(), (a - b).square().mean().item(), 1e-12)


def check_ofa_lecture(m) -> None:
    s, t, y = randn(4, 6, seed=1), randn(4, 6, seed=2), torch.tensor([5, 0, 3, 3])
    p, log_q = (t / 2).softmax(1), (s / 2).log_softmax(1)
    wanted = 0.0
    for i, c in enumerate(y.tolist()):
        wanted -= (1 + p[i, c]) ** 1.3 * log_q[i, c]
        wanted -= sum(p[i, k] * log_q[i, k] for k in range(6) if k != c)
    close(m.ofa(s, t, y, 1.3, 2.0, "lecture").item(), wanted.item() / 4, 1e-12)
    _, grad = gradient(lambda t: m.ofa(s, t, y, variant="lecture") + 0 * t.sum(), t)
    assert (grad == 0).all(), "the teacher is trained"


def check_dkd_is_kd(m) -> None:
    """With two classes NCKD is 0 and DKD is KD; otherwise KD = TCKD + (1 − p_y) NCKD."""
    s, t, y = randn(3, 2, seed=1), randn(3, 2, seed=2), torch.tensor([0, 1, 1])
    close(m.dkd(s, t, y, temperature=3.0).item(), m.kd(s, t, 3.0).item(), 1e-12)
    s, t, y = randn(1, 5, seed=1), randn(1, 5, seed=2), torch.tensor([3])
    rest = 1 - t.softmax(1)[0, 3].item()
    close(m.dkd(s, t, y, 1.0, rest, 1.0).item(), m.kd(s, t, 1.0).item(), 1e-12)


def check_vid(m) -> None:
    mean, t = randn(3, 4, 2, 2), randn(3, 4, 2, 2, seed=1)
    parameter = randn(4, seed=2)
    _, grad = gradient(lambda p: m.vid(mean, p, t), parameter)
    assert (grad.abs() > 1e-4).all(), "the variance is not trained"
    variance = F.softplus(parameter) + 1e-5
    wanted = 0.5 * ((mean - t).square() / variance[:, None, None] + variance.log()[:, None, None])
    close(m.vid(mean, parameter, t).item(), wanted.mean().item(), 1e-12)
    close(m.vid(mean[..., 0, 0], parameter, t[..., 0, 0]).item(), wanted[..., 0, 0].mean(), 1e-12)
    small = m.vid(mean, torch.full((4,), -50.0, dtype=torch.float64), mean)
    close(small.item(), 0.5 * math.log(1e-5), 1e-9)


def check_nce(m) -> None:
    """Against probabilities as they are written, with a mask and without."""
    positive, negative = randn(3, seed=1), randn(3, 5, seed=2)
    mask = torch.tensor([[1, 0, 1, 1, 0], [1, 1, 1, 1, 1], [0, 0, 0, 1, 0]], dtype=torch.bool)
    for chosen in (torch.ones_like(mask), mask):
        wanted = 0.0
        for p, row, keep in zip(positive.exp(), negative.exp(), chosen):
            c = keep.sum().item() / 20
            wanted -= (p / (p + c + 1e-7)).log() + (c / (row[keep] + c + 1e-7)).log().sum()
        found = m.nce(positive, negative, 20, None if chosen.all() else chosen)
        close(found.item(), wanted.item() / 3, 1e-12)
    far = torch.tensor([200.0, -200.0])  # log P far beyond exp's range in float32
    gradient(lambda x: m.nce(far, x, 20, torch.tensor([[True], [False]])), -far[:, None])


def check_info_nce(m) -> None:
    s, t = randn(5, 8, seed=1), randn(5, 8, seed=2)
    value, grad = gradient(lambda s: m.info_nce(s, t), s)
    cosine = F.cosine_similarity(s[:, None], t[None], dim=2) / 0.1
    wanted = -(cosine.log_softmax(1).diagonal() + cosine.log_softmax(0).diagonal()).mean() / 2
    close(value.item(), wanted.item(), 1e-12)
    close(m.info_nce(t, s).item(), value.item(), 1e-12)
    close(m.info_nce(3 * s, t).item(), value.item(), 1e-12)
    _, grad = gradient(lambda t: m.info_nce(s, t), t)
    assert grad.abs().max() > 0, "the projection of the teacher is not trained"


CHECKS: dict[str, list] = {name: [partial(check_signature, name=name)] for name in SIGNATURES}
for _case in CASES.values():
    _name = NAMES.get(_case["loss"], _case["loss"].removesuffix("_total"))
    CHECKS[_name].append(partial(check_reference, case=_case))
for _case in EDGES:
    _check = partial(check_edge, case=_case)
    CHECKS[NAMES.get(_case["loss"], _case["loss"])].append(_check)
for _name in ("kd", "dkd", "dist", "ofa"):
    CHECKS[_name].append(partial(check_extreme_logits, name=_name))
for _name in ("kd", "dkd", "dist", "ofa", "rkd"):
    CHECKS[_name].append(partial(check_defaults_are_used, name=_name))
for _name in ("rkd", "pkt", "similarity"):
    CHECKS[_name].append(partial(check_degenerate_rows, name=_name))
for _name in ("rkd", "pkt", "similarity", "cc"):
    CHECKS[_name].append(partial(check_one_sample, name=_name))
CHECKS["rkd"].append(check_rkd_plain)
CHECKS["cc"].append(check_cc_paper)
CHECKS["ofa"].append(check_ofa_lecture)
CHECKS["dkd"].append(check_dkd_is_kd)
CHECKS["vid"].append(check_vid)
CHECKS["nce"].append(check_nce)
CHECKS["info_nce"].append(check_info_nce)


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_reference(name, precision):
    check_reference(losses, CASES[name], precision)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=list(DTYPES))
@pytest.mark.parametrize("case", EDGES, ids=[f"{e['loss']}: {e['situation']}" for e in EDGES])
def test_edge(case, dtype):
    check_edge(losses, case, dtype)


@pytest.mark.parametrize("name", CHECKS)
def test_properties(name):
    for check in CHECKS[name]:
        check(losses)


# Wrong versions, each of which the checks above must notice

KD_KL = 'return temperature**2 * F.kl_div(s, t, reduction="batchmean", log_target=True)'
KD_LOG = "s, t = F.log_softmax(s / temperature, 1), F.log_softmax(t / temperature, 1)\n    return"
DKD_END = "return temperature**2 * (alpha * tckd + beta * nckd)"
DIST_END = "return temperature**2 * (\n        beta"
AT_MAP = "(F.normalize(a.square().mean(1).flatten(1)) for a in (s, t))"
AT_MSE = 'if variant == "official":\n        return F.mse_loss(s, t)\n    return torch'
SP_END = "return F.mse_loss(_unit(s @ s.T, 0.0), _unit(t @ t.T, 0.0))"
CC_OFF = "(gap[:-1] * gap[1:]).sum() / max(len(s) - 1, 1)"
RKD_D = "distance_weight * F.smooth_l1_loss(s_distance, t_distance)"
RKD_A = "angle_weight * F.smooth_l1_loss(s_cosine, t_cosine)"
PKT_END = "return (t * ((t + eps) / (s + eps)).log()).mean()"
VID_END = "return 0.5 * ((t - mu).square() / variance + variance.log()).mean()"
NST_END = "return kernel(s, s) + kernel(t, t) - 2 * kernel(s, t)"
OFA_W = "boosted = (1 + p.gather(1, target[:, None])) ** gamma - (1 if official else 0)"
OFA_LOG = "log_q, p = F.log_softmax(s / temperature, 1), (t / temperature).softmax(1)"
DETACH = "return student, teacher.detach()"
OPTIONS = "    student_features: Tensor,\n    teacher_features: Tensor,\n    "
SOFTMAXES = "s, t = (s / temperature).softmax(1), (t / temperature).softmax(1)"

MUTANTS = [
    ("kd", "T² dropped", KD_KL, KD_KL.replace("temperature**2 * ", "")),
    ("kd", "T instead of T²", KD_KL, KD_KL.replace("**2", "")),
    ("kd", "mean over classes", KD_KL, KD_KL.replace("batchmean", "mean")),
    ("kd", "sum over the batch", KD_KL, KD_KL.replace("batchmean", "sum")),
    ("kd", "student and teacher swapped", KD_KL, KD_KL.replace("(s, t,", "(t, s,")),
    ("kd", "logits divided after the softmax", KD_LOG, KD_LOG.replace(
        "F.log_softmax(s / temperature, 1)", "F.log_softmax(s, 1) / temperature")),
    ("kd", "student without T", KD_LOG, KD_LOG.replace("s / temperature", "s")),
    ("kd", "softmax, then log", KD_LOG, KD_LOG.replace(
        "F.log_softmax(s / temperature, 1)", "(s / temperature).softmax(1).log()")),
    ("kd", "softmax over the batch", KD_LOG, KD_LOG.replace("temperature, 1)", "temperature, 0)")),
    ("kd", "wrong default", "Tensor, temperature: float = 4.0) -> Tensor:",
     "Tensor, temperature: float = 1.0) -> Tensor:"),
    ("kd", "teacher not detached", DETACH, "return student, teacher"),
    ("rkd", "teacher not detached", DETACH, "return student, teacher"),
    ("ofa", "teacher not detached", DETACH, "return student, teacher"),
    ("nst", "teacher not detached", DETACH, "return student, teacher"),
    ("hint", "student detached instead", DETACH, "return student.detach(), teacher"),
    ("hint", "sum", "    return F.mse_loss(s, t)\n\n\ndef attention",
     "    return F.mse_loss(s, t, reduction='sum')\n\n\ndef attention"),
    ("hint", "absolute error", "    return F.mse_loss(s, t)\n\n\ndef attention",
     "    return F.l1_loss(s, t)\n\n\ndef attention"),
    ("attention", "not normalised", AT_MAP, "(a.square().mean(1).flatten(1) for a in (s, t))"),
    ("attention", "L1 norm", AT_MAP, AT_MAP.replace("flatten(1))", "flatten(1), 1)")),
    ("attention", "not squared", AT_MAP, AT_MAP.replace("square", "abs")),
    ("attention", "sum over samples and positions", AT_MSE,
     AT_MSE.replace("(s, t)", "(s, t, reduction='sum')")),
    ("attention", "variants swapped", AT_MSE, AT_MSE.replace("==", "!=")),
    ("attention", "pooled by the largest value", "F.adaptive_avg_pool2d(x, size)",
     "F.adaptive_max_pool2d(x, size)"),
    ("attention", "wrong default", 'teacher_map: Tensor, variant: str = "official"',
     'teacher_map: Tensor, variant: str = "paper"'),
    ("similarity", "rows not normalised", SP_END, "return F.mse_loss(s @ s.T, t @ t.T)"),
    ("similarity", "columns normalised", SP_END,
     "return F.mse_loss(F.normalize(s @ s.T, dim=0), F.normalize(t @ t.T, dim=0))"),
    ("similarity", "L1 norm", SP_END, "return F.mse_loss(F.normalize(s @ s.T, 1), "
     "F.normalize(t @ t.T, 1))"),
    ("similarity", "unbounded at zero rows", SP_END,
     "return F.mse_loss(F.normalize(s @ s.T), F.normalize(t @ t.T))"),
    ("similarity", "sum", SP_END, SP_END[:-1] + ", reduction='sum')"),
    ("cc", "mean over dimensions", CC_OFF, CC_OFF.replace(".sum()", ".mean()")),
    ("cc", "divided by B", CC_OFF, CC_OFF.replace("len(s) - 1", "len(s)")),
    ("cc", "signed differences", "(s - t).abs()", "(s - t)"),
    ("cc", "paper: factorial left out", " / math.factorial(p)", ""),
    ("cc", "paper: scale left out", "math.exp(-2 * gamma) * sum", "sum"),
    ("cc", "paper: one power too few", "range(order + 1)", "range(order)"),
    ("cc", "paper: rows not normalised", "_unit(x, 0.0) @ _unit(x, 0.0).T", "x @ x.T"),
    ("cc", "wrong default", "gamma: float = 0.4", "gamma: float = 0.5"),
    ("rkd", "squared instead of Huber, distances", RKD_D, RKD_D.replace("smooth_l1", "mse")),
    ("rkd", "squared instead of Huber, angles", RKD_A, RKD_A.replace("smooth_l1", "mse")),
    ("rkd", "absolute instead of Huber", RKD_D, RKD_D.replace("smooth_l1", "l1")),
    ("rkd", "sum over pairs", RKD_D, RKD_D.replace("distance)", "distance, reduction='sum')")),
    ("rkd", "weights swapped", RKD_D, RKD_D.replace("distance_weight", "angle_weight")),
    ("rkd", "mean over B² pairs", "(len(x) * (len(x) - 1))", "(len(x) * len(x))"),
    ("rkd", "distances not scaled", "return distance / (distance.sum() / (len(x) * (len(x) - 1)))",
     "return distance"),
    ("rkd", "squared distances", "squared.clamp_min(1e-12).sqrt()", "squared.clamp_min(1e-12)"),
    ("rkd", "not centred", "x = x - x.detach().mean(0)  # ", "# "),
    ("rkd", "wrong vertex of the angle", "squared[:, :, None] + squared[:, None, :] - squared\n",
     "squared[:, :, None] + squared - squared[:, None, :]\n"),
    ("rkd", "equal rows not recognised", "distinct = squared > 16 *", "distinct = squared > -1 *"),
    ("rkd", "one sample", "if len(s) == 1:", "if len(s) == 0:"),
    ("rkd", "wrong default", "angle_weight: float = 50.0", "angle_weight: float = 25.0"),
    ("pkt", "student and teacher swapped", PKT_END,
     "return (s * ((s + eps) / (t + eps)).log()).mean()"),
    ("pkt", "sum over a row", PKT_END, PKT_END.replace(".mean()", ".sum(1).mean()")),
    ("pkt", "cosine not shifted", "kernel = (x @ x.T + 1) / 2", "kernel = x @ x.T"),
    ("pkt", "rows do not sum to one", "return kernel / kernel.sum(1, keepdim=True)",
     "return kernel / kernel.sum()"),
    ("pkt", "zero row without care", "x = _unit(x, eps)",
     "x = x / (x.square().sum(1, keepdim=True).sqrt() + eps)"),
    ("vid", "variance frozen", "F.softplus(variance_parameter)",
     "F.softplus(variance_parameter.detach())"),
    ("vid", "exp instead of softplus", "F.softplus(variance_parameter)",
     "variance_parameter.exp()"),
    ("vid", "no lower bound", "+ 1e-5).view", ").view"),
    ("vid", "logarithm left out", VID_END, VID_END.replace(" + variance.log()", "")),
    ("vid", "½ left out", VID_END, VID_END.replace("0.5 * ", "")),
    ("vid", "standard deviation", VID_END, VID_END.replace("/ variance", "/ variance.sqrt()")),
    ("vid", "teacher not pooled", "t = _pool(t, mu)",
     "t = F.interpolate(t, mu.shape[2:])"),
    ("nst", "cross term once", NST_END, NST_END.replace("2 * ", "")),
    ("nst", "teacher's own term left out", NST_END, NST_END.replace(" + kernel(t, t)", "")),
    ("nst", "not normalised", "(F.normalize(a.flatten(2), dim=2) for a in match_maps",
     "(a.flatten(2) for a in match_maps"),
    ("nst", "normalised over channels", "F.normalize(a.flatten(2), dim=2)",
     "F.normalize(a.flatten(2), dim=1)"),
    ("nst", "linear kernel", "(a @ b.transpose(1, 2)).square().mean()",
     "(a @ b.transpose(1, 2)).mean()"),
    ("dkd", "T² dropped", DKD_END, DKD_END.replace("temperature**2 * ", "")),
    ("dkd", "T² on one part only", DKD_END,
     "return temperature**2 * alpha * tckd + beta * nckd"),
    ("dkd", "alpha and beta swapped", DKD_END, DKD_END.replace("alpha * tckd + beta * nckd",
                                                             "beta * tckd + alpha * nckd")),
    ("dkd", "target kept among the others", "return torch.cat(pair, 1), F.log_softmax(rest, 1)",
     "return torch.cat(pair, 1), log_p"),
    ("dkd", "wrong class left out", "others = others + (others >= target[:, None])",
     "others = others + (others > target[:, None])"),
    ("dkd", "rest without T", "(z / temperature).gather(1, others)", "z.gather(1, others)"),
    ("dkd", "student and teacher swapped", "F.kl_div(s_rest, t_rest,", "F.kl_div(t_rest, s_rest,"),
    ("dkd", "mean over classes", 'F.kl_div(s_pair, t_pair, reduction="batchmean"',
     'F.kl_div(s_pair, t_pair, reduction="mean"'),
    ("dkd", "softmax, then log", "log_p, rest = F.log_softmax(z / temperature, 1)",
     "log_p, rest = (z / temperature).softmax(1).log()"),
    ("dkd", "wrong default", "beta: float = 8.0", "beta: float = 2.0"),
    ("dist", "T² dropped", DIST_END, DIST_END.replace("temperature**2 * ", "")),
    ("dist", "columns twice", "correlation(s, t, 1)", "correlation(s, t, 0)"),
    ("dist", "rows twice", "correlation(s, t, 0)", "correlation(s, t, 1)"),
    ("dist", "not centred", "a, b = a - a.mean(axis, keepdim=True), b - b.mean(axis, keepdim=True)",
     "a, b = a, b"),
    ("dist", "on logits", SOFTMAXES, "s, t = s / temperature, t / temperature"),
    ("dist", "one norm only", "* torch.linalg.vector_norm(b, dim=axis)", "** 2"),
    ("dist", "ε inside each norm", "/ (norms + 1e-8)", "/ norms"),
    ("ofa", "T² added", "return -(weight * log_q).sum(1).mean()",
     "return -temperature**2 * (weight * log_q).sum(1).mean()"),
    ("ofa", "mean over classes", "return -(weight * log_q).sum(1).mean()",
     "return -(weight * log_q).mean()"),
    ("ofa", "softmax, then log", OFA_LOG, OFA_LOG.replace("F.log_softmax(s / temperature, 1)",
                                                         "(s / temperature).softmax(1).log()")),
    ("ofa", "teacher without T", OFA_LOG, OFA_LOG.replace("(t / temperature)", "t")),
    ("ofa", "variants swapped", OFA_W, OFA_W.replace("1 if official else 0",
                                                    "0 if official else 1")),
    ("ofa", "target not boosted", OFA_W, OFA_W.replace("(1 + p", "(p")),
    ("ofa", "lecture: others to the power", "(p**gamma if official else p)", "(p**gamma)"),
    ("ofa", "official: others as they are", "(p**gamma if official else p)", "(p)"),
    ("nce", "mask dropped", "rejected = rejected.masked_fill(~mask, 0.0)", "pass"),
    ("nce", "masked columns counted", "count = mask.sum(1).to(negative.dtype)",
     "count = negative.new_full((len(negative),), negative.shape[1])"),
    ("nce", "mean over negatives", "(hit + rejected.sum(1)).mean()",
     "(hit + rejected.mean(1)).mean()"),
    ("nce", "positive left out", "(hit + rejected.sum(1))", "(rejected.sum(1))"),
    ("nce", "ε left out", "(count / num_samples + 1e-7).log()", "(count / num_samples).log()"),
    ("info_nce", "one direction", "(F.cross_entropy(scores, partner) + F.cross_entropy(scores.T, "
     "partner)) / 2", "F.cross_entropy(scores, partner)"),
    ("info_nce", "not normalised", "F.normalize(s) @ F.normalize(teacher_embedding).T",
     "s @ teacher_embedding.T"),
    ("info_nce", "teacher detached", "s, _ = _pair(student_embedding, teacher_embedding, names,",
     "s, teacher_embedding = _pair(student_embedding, teacher_embedding, names,"),
    ("info_nce", "multiplied by T", ".T / temperature\n    partner", ".T * temperature\n    partner"),
]


@pytest.mark.filterwarnings("ignore:reduction")
@pytest.mark.parametrize("name, what, old, new", MUTANTS, ids=[f"{m[0]}: {m[1]}" for m in MUTANTS])
def test_wrong_version_is_noticed(name, what, old, new, tmp_path):
    assert killed(CHECKS[name], mutant(Path(losses.__file__), old, new, tmp_path)), what


@pytest.mark.parametrize("name", CHECKS)
def test_gradient_by_differences(name):
    s, t, y = randn(4, 5, seed=7), randn(4, 5, seed=8), torch.tensor([0, 4, 2, 2])
    maps = randn(2, 3, 4, 4, seed=7), randn(2, 5, 2, 2, seed=8)
    function, arguments = getattr(losses, name), (s, t)
    if name in ("attention", "nst"):
        arguments = maps
    elif name in ("dkd", "ofa"):
        arguments = (s, t, y)
    elif name == "vid":
        arguments = (s, randn(5, seed=9).requires_grad_(), t)
    elif name == "nce":
        arguments = (s[:, 0], t.requires_grad_(), 10)
    arguments[0].requires_grad_()
    torch.autograd.gradcheck(function, arguments)


# Bad arguments

S, T, Y = randn(4, 3), randn(4, 3, seed=1), torch.tensor([0, 1, 2, 0])
M = randn(4, 2, 3, 3)
NAN = S.clone()
NAN[1, 1] = math.nan
ERRORS = [
    (lambda: losses.kd(S, T[:, :2]), ValueError,
     "student_logits has shape (4, 3), teacher_logits has (4, 2); project"),
    (lambda: losses.hint(S, T[:3]), ValueError, "teacher_features has (3, 3); use one batch"),
    (lambda: losses.rkd(S, T[:3]), ValueError, "teacher_features has (3, 3); use one batch"),
    (lambda: losses.kd(S[0], T[0]), ValueError, "student_logits has shape (3,); it must have 2"),
    (lambda: losses.pkt(S[0], T[0]), ValueError, "must have at least 2 axes, samples first"),
    (lambda: losses.attention(S, M), ValueError, "student_map has shape (4, 3); it must have 4"),
    (lambda: losses.nst(M, M[:2]), ValueError, "teacher_map has (2, 2, 3, 3); use one batch"),
    (lambda: losses.kd(S[:0], T[:0]), ValueError, "student_logits is empty, shape (0, 3)"),
    (lambda: losses.kd(S[:, :1], T[:, :1]), ValueError, "student_logits has 1 class"),
    (lambda: losses.kd(S, NAN), ValueError, "teacher_logits holds NaN or infinity"),
    (lambda: losses.similarity(S / 0, T), ValueError, "student_features holds NaN or infinity"),
    (lambda: losses.kd(S.numpy(), T), TypeError, "student_logits is ndarray; convert"),
    (lambda: losses.kd(S, T.half()), TypeError, "teacher_logits is a torch.float16 tensor"),
    (lambda: losses.kd(S, T.float()), TypeError, "student_logits is torch.float64, teacher_logits"),
    (lambda: losses.kd(S, T, 0), ValueError, "temperature is 0; it must be a positive number"),
    (lambda: losses.dist(S, T, temperature=math.nan), ValueError, "temperature is nan"),
    (lambda: losses.info_nce(S, T, -1.0), ValueError, "temperature is -1.0"),
    (lambda: losses.ofa(S, T, Y, gamma=0), ValueError, "gamma is 0; it must be a positive"),
    (lambda: losses.dkd(S, T, Y.int()), TypeError, "target is torch.int32; give class numbers"),
    (lambda: losses.dkd(S, T, [0, 1, 2, 0]), TypeError, "target is list; give class numbers"),
    (lambda: losses.dkd(S, T, Y[:2]), ValueError, "target has shape (2,); it must be (4,)"),
    (lambda: losses.dkd(S, T, Y + 1), ValueError, "target ranges from 1 to 3; classes are 0 to 2"),
    (lambda: losses.ofa(S, T, Y - 1), ValueError, "target ranges from -1 to 1; classes are"),
    (lambda: losses.cc(S, T, variant="kernel"), ValueError,
     "variant is 'kernel'; known: official, paper"),
    (lambda: losses.cc(S, randn(4, 6)), ValueError, "project one to the shape of the other"),
    (lambda: losses.cc(S, T, "paper", order=0), ValueError, "order is 0; it must be an integer"),
    (lambda: losses.ofa(S, T, Y, variant="paper"), ValueError, "known: official, lecture"),
    (lambda: losses.vid(S, Y[:2], T), ValueError, "variance_parameter has shape (2,)"),
    (lambda: losses.vid(randn(4, 2, 6, 6), S[0, :2], M), ValueError, "mean has shape (4, 2, 6, 6)"),
    (lambda: losses.nce(S[:, 0], T[0], 10), ValueError, "they must be (B,) and (B, K)"),
]


@pytest.mark.parametrize("call, error, message", ERRORS, ids=[m for _, _, m in ERRORS])
def test_bad_argument(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)


def test_large_but_finite_values_pass():
    """Their sum overflows in float32, the values themselves do not."""
    x = torch.full((2, 3), 3e38)
    assert losses.hint(x, x) == 0
