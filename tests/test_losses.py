"""Every loss against reference values, at its edges, and against wrong versions of itself.

`golden/vision.json` holds values and gradients of the authors' own code. The inputs are not stored:
each case gives the recipe and a fingerprint (see `meta.input_recipe` there).
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kdlib import losses

GOLDEN = json.loads((Path(__file__).parent / "golden" / "vision.json").read_text())
CASES = {case["id"]: case for case in GOLDEN["cases"] if not case["loss"].startswith("crd")}
DTYPES = {"float64": torch.float64, "float32": torch.float32}


def make(recipe: dict) -> np.ndarray:
    """The array that a case describes (float32 or int64)."""
    shape = recipe["shape"]
    if recipe["kind"] == "arange_stride":
        steps = recipe["stride"] * np.arange(shape[0])
        return (recipe["start"] + steps) % recipe["modulo"]
    rng = np.random.default_rng(recipe["seed"])
    if recipe["kind"] in ("integers", "contrast"):
        return rng.integers(recipe["low"], recipe["high"], size=shape, dtype=np.int64)
    x = recipe.get("scale", 1.0) * rng.standard_normal(shape) + recipe.get("shift", 0.0)
    if recipe["kind"] == "relu_normal":
        x = np.maximum(x, 0)
    if recipe["kind"] == "unit_rows":
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
    for row, factor in recipe.get("row_scale", []):
        x[row] *= factor
    for to, source in recipe.get("copy_rows", []):
        x[to] = x[source]
    return x.astype(np.float32)


def inputs(case: dict, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Tensors of a case by name; the student's and the module's ask for a gradient."""
    tensors = {}
    for recipe in case["inputs"]:
        array = make(recipe)
        if recipe["kind"] == "contrast":
            array[:, 0] = tensors["index"].numpy()
        found = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
        assert found == recipe["fingerprint"]["sha256"], f"{recipe['name']} was not reproduced"
        x = torch.from_numpy(array)
        x = x.to(dtype) if x.is_floating_point() else x
        tensors[recipe["name"]] = x.requires_grad_(recipe["role"] in ("student", "teacher"))
    return tensors


def stages(x: dict) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(x[f"s{i}"], x[f"t{i}"]) for i in range(len(x)) if f"s{i}" in x]


def evaluate(case: dict, x: dict[str, torch.Tensor], m=losses) -> torch.Tensor:
    """The loss of a case, computed with the functions of module `m`."""
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
            size = min(s.shape[2], t.shape[2])
            mean = F.adaptive_avg_pool2d(s, size)
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
            total = sum(terms) * p["ofa_loss_weight"]
            total = total + p["kd_loss_weight"] * m.ofa(s, t, y, gamma=last)
            return total + p["gt_loss_weight"] * F.cross_entropy(s, y)
    raise AssertionError(f"no loss for {case['loss']}")


def check_golden(case: dict, precision: str, m=losses) -> None:
    rtol = {"float64": 1e-9, "float32": 2e-5}[precision]
    x = inputs(case, DTYPES[precision])
    loss = evaluate(case, x, m)
    loss.backward()
    want = case["expected"][precision]
    assert loss.shape == () and loss.item() == pytest.approx(want["loss"], rel=rtol)
    for name, norm in want["grad_norm"].items():
        gradient = x[name].grad
        assert gradient.norm().item() == pytest.approx(norm, rel=rtol)
        found = gradient.flatten()[:3].tolist()
        assert found == pytest.approx(want["grad_first"][name], rel=rtol, abs=rtol * norm)
    assert all(v.grad is None for k, v in x.items() if k.startswith("t"))


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_reference(name, precision):
    check_golden(CASES[name], precision)
