"""The small GPT: its numbers, its cache, padding on the left, bad arguments."""

import copy
import math

import bad
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from kdlib.engine import optimizers
from kdlib.language import GPT, gpt
from kdlib.training import build


def small(seed: int = 0, **sizes: int) -> GPT:
    sizes = {"vocabulary": 11, "context": 12, "dim": 8, "depth": 2, "heads": 2} | sizes
    return build(lambda: GPT(**sizes), seed).eval()


def tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(1, 11, shape, generator=torch.Generator().manual_seed(seed))


MODEL = small()


# The network


def test_agrees_with_the_layers_of_torch():
    """The blocks against nn.TransformerEncoderLayer with the same weights."""
    read = tokens(3, 9)
    x = MODEL.token.weight[read] + MODEL.position.weight[:9]
    for block in MODEL.blocks:
        layer = nn.TransformerEncoderLayer(
            8, 2, 32, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        pairs = {
            "self_attn.in_proj_": block.qkv,
            "self_attn.out_proj.": block.out,
            "linear1.": block.mlp[0],
            "linear2.": block.mlp[2],
            "norm1.": block.norm1,
            "norm2.": block.norm2,
        }
        parts = {f"{name}{k}": v for name, m in pairs.items() for k, v in m.state_dict().items()}
        layer.load_state_dict(parts)
        x = layer(x, src_mask=nn.Transformer.generate_square_subsequent_mask(9), is_causal=True)
    wanted = MODEL.norm(x) @ MODEL.token.weight.T
    assert_close(MODEL(read), wanted, rtol=0, atol=1e-5)
    assert_close(MODEL.head(MODEL.hidden(read)), MODEL(read), rtol=0, atol=0)


def test_size_ties_and_first_loss():
    model = small(vocabulary=118, context=64, dim=64)
    blocks = 2 * (12 * 64**2 + 13 * 64)
    assert sum(p.numel() for p in model.parameters()) == (118 + 64) * 64 + blocks + 2 * 64
    for one in (model, copy.deepcopy(model)):
        assert one.head.weight is one.token.weight
    read = torch.randint(1, 118, (32, 33), generator=torch.Generator().manual_seed(0))
    loss = F.cross_entropy(model(read[:, :-1]).flatten(0, 1), read[:, 1:].flatten())
    assert math.log(118) - 0.1 < loss < math.log(118) + 1


def test_no_token_sees_a_later_one():
    read, changed = tokens(2, 9), tokens(2, 9)
    changed[:, 6:] = tokens(2, 3, seed=1)
    found, other = MODEL(read), MODEL(changed)
    assert torch.equal(found[:, :6], other[:, :6])
    assert not torch.isclose(found[:, 6:], other[:, 6:]).all(-1).any()


def test_muon_finds_the_matrices():
    muon, adamw = optimizers.create("muon", MODEL.named_parameters(), lr=1e-3, weight_decay=0.01)
    matrices = sum(len(group["params"]) for group in muon.param_groups)
    rest = {id(p) for group in adamw.param_groups for p in group["params"]}
    assert matrices == 2 * 4
    assert {id(MODEL.token.weight), id(MODEL.position.weight)} < rest


# Padding on the left


@pytest.mark.parametrize("padding", [0, 10])
def test_padding_on_the_left_changes_nothing(padding: int):
    rows = [tokens(1, n, seed=n)[0].clamp_max(9) for n in (7, 4, 1)]
    padded = torch.stack([F.pad(row, (7 - len(row), 0), value=padding) for row in rows])
    found = MODEL(padded, padding=padding)
    assert found.isfinite().all()
    for row, logits in zip(rows, found):
        alone = MODEL(row[None], padding=None)[0]
        assert_close(logits[-len(row) :], alone, rtol=0, atol=1e-5)


def test_padding_elsewhere_is_a_token():
    read = tokens(2, 6)
    read[:, 3] = 0
    assert torch.equal(MODEL(read), MODEL(read, padding=None))
    read[:, 0] = 0
    assert not torch.allclose(MODEL(read)[:, 1:], MODEL(read, padding=None)[:, 1:])


def test_every_place_attends_to_something(monkeypatch):
    """Some kernels answer a softmax over nothing with NaN."""
    attention, masks = F.scaled_dot_product_attention, []

    def spy(*args, attn_mask, **options):
        masks.append(attn_mask)
        return attention(*args, attn_mask=attn_mask, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    read = tokens(3, 6)
    read[0, :4], read[1] = 0, 0
    MODEL(read)
    assert masks[0].shape == (3, 1, 6, 6) and masks[0].any(-1).all()


def test_gradients_with_padding_are_finite():
    model, read = copy.deepcopy(MODEL), tokens(3, 6)
    read[0, :4], read[1] = 0, 0
    model(read).square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert (model.position.weight.grad[6:] == 0).all()


# The cache


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("cuts", [(4, 1, 1, 1, 1, 1), (4, 1, 4), (9,)], ids=str)
def test_cached_logits_are_the_same(cuts: tuple[int, ...], padding: int):
    read = tokens(3, 9)
    read[0, :padding], read[1, 4] = 0, 0  # the latter is no padding, though it begins a part
    cache = MODEL.new_cache(3, 10)
    with torch.no_grad():
        found = torch.cat([MODEL(part, cache=cache) for part in read.split(cuts, 1)], 1)
        wanted = MODEL(read)
    assert_close(found[0, padding:], wanted[0, padding:], rtol=0, atol=1e-5)
    assert_close(found[1:], wanted[1:], rtol=0, atol=1e-5)
    assert cache.length == 9


def test_cache_takes_the_type_of_the_keys():
    read = tokens(2, 5)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        cache = MODEL.new_cache(2, 5)
        found = torch.cat([MODEL(part, cache=cache) for part in read.split(1, 1)], 1)
        wanted = MODEL(read)
    assert cache.buffer.dtype == torch.bfloat16
    assert_close(found, wanted, rtol=0.1, atol=0.1)


def test_cache_refuses_what_it_cannot_hold():
    cache = MODEL.new_cache(2, 4)
    with pytest.raises(ValueError, match="cache must be None in training"):
        MODEL(tokens(2, 3), cache=cache)
    with torch.no_grad():
        with pytest.raises(ValueError, match=r"cache must hold 3 rows of 3 tokens, got 2 of 4"):
            MODEL(tokens(3, 3), cache=cache)
        MODEL(tokens(2, 3), cache=cache)
        with pytest.raises(ValueError, match=r"cache must hold 2 rows of 5 tokens, got 2 of 4"):
            MODEL(tokens(2, 2), cache=cache)
        assert cache.length == 3


# Bad arguments

SIZES = {"vocabulary": 11, "context": 12, "dim": 8, "depth": 2, "heads": 2}
READ = (None, [[1]], tokens(2, 3).float(), tokens(6), tokens(2, 3) * 11, -tokens(2, 3))
TABLE: bad.Table = {
    "GPT": (SIZES, {name: bad.SIZES for name in SIZES} | {"heads": (*bad.SIZES, 3)}),
    "GPT.new_cache": (
        {"self": MODEL, "batch": 2, "room": 3},
        {"batch": bad.SIZES, "room": (*bad.SIZES, 13)},
    ),
}
TABLE |= {
    f"GPT.{name}": (
        {"self": MODEL, "tokens": tokens(2, 3), "padding": 0},
        {"tokens": (*READ, tokens(1, 13)), "padding": ("0", 0.5, -1, True)},
    )
    for name in ("forward", "hidden")
}


@pytest.mark.parametrize("name, parameter", bad.checks(TABLE))
def test_bad_argument(name: str, parameter: str):
    bad.refuses(gpt, TABLE, name, parameter)


def test_every_parameter_was_thought_of():
    told = "test_cache_refuses_what_it_cannot_hold"
    inside = dict.fromkeys(("Cache", "Block"), "made by the network itself")
    exempt = {"GPT.forward.cache": told, "GPT.hidden.cache": told} | inside
    assert bad.missing(gpt, TABLE, exempt) == []
