"""Reference values of the authors' own code, shared by the tests.

`golden/vision.json` does not store inputs: each case gives a recipe and a fingerprint (see
`meta.input_recipe` there). `cross_check` and the sums beside the fingerprints were left out.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import torch

GOLDEN = json.loads((Path(__file__).parent / "golden" / "vision.json").read_text("utf-8"))
DTYPES = {"float64": torch.float64, "float32": torch.float32}
RTOL = {"float64": 1e-9, "float32": 2e-5}


def make(recipe: dict) -> np.ndarray:
    """The array that a recipe describes (float32 or int64)."""
    shape = recipe["shape"]
    if recipe["kind"] == "arange_stride":
        return (recipe["start"] + recipe["stride"] * np.arange(shape[0])) % recipe["modulo"]
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
    """Tensors of a case by name; student and teacher ask for a gradient."""
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


def close(found: float, wanted: float, rtol: float, atol: float = 0.0) -> None:
    assert abs(found - wanted) <= rtol * abs(wanted) + atol, f"{found} instead of {wanted}"


def compare(case: dict, precision: str, loss: torch.Tensor, x: dict[str, torch.Tensor]) -> None:
    """Value and student's gradient of a case against the stored ones."""
    loss.backward()
    wanted, rtol = case["expected"][precision], RTOL[precision]
    assert loss.shape == ()
    close(loss.item(), wanted["loss"], rtol)
    for name, norm in wanted["grad_norm"].items():
        assert x[name].grad is not None, f"no gradient for {name}"
        close(x[name].grad.norm().item(), norm, rtol)
        for found, value in zip(x[name].grad.flatten(), wanted["grad_first"][name]):
            close(found.item(), value, rtol, rtol * norm)
