"""Attention maps and the numbers about them, against the model's own forward and hand-made cases."""

import json
import math

import pytest
import torch

from mimetic import attention_layers, initialize_, measure
from mimetic.attention_maps import MAP_COLUMNS, PRODUCT_COLUMNS, anatomy, attention_map, patch_distances, product_table
from mimetic.models import ViT, ViTConfig
from mimetic.models.blocks import SelfAttention


def vit(**changes):
    torch.manual_seed(0)
    return ViT(
        ViTConfig(
            **dict(img_size=8, patch_size=2, in_chans=1, num_classes=3, d_model=16, depth=2, num_heads=2) | changes
        )
    )


def rows(table):
    return [dict(zip(table["columns"], row)) for row in table["rows"]]


def test_distances():
    d = patch_distances(3)
    assert d.shape == (9, 9) and d[0, 8] == pytest.approx(8**0.5) and d[0, 1] == d[0, 3] == 1 and not d.diagonal().any()


@pytest.mark.parametrize("pool", ["avg", "token"])
def test_uniform_attention_has_known_numbers(pool):
    model = vit(global_pool=pool)
    for block in model.blocks:
        torch.nn.init.zeros_(block.attn.qkv.weight)
        torch.nn.init.zeros_(block.attn.qkv.bias)
    found = rows(anatomy(model, torch.randn(3, 1, 8, 8))["maps"])
    tokens = 16 + (pool == "token")
    assert len(found) == 4 and set(found[0]) == set(MAP_COLUMNS)
    for row in found:
        assert row["entropy"] == pytest.approx(math.log(tokens), rel=1e-4)
        assert row["itself"] == pytest.approx(1 / tokens, rel=1e-4)
        assert row["distance"] == pytest.approx(patch_distances(4).mean().item(), rel=1e-4)


def test_a_layer_that_attends_to_itself():
    """Queries and keys that are a large multiple of the normalised token: the largest dot product is with itself."""
    model = vit(num_heads=1, depth=1)
    with torch.no_grad():
        model.blocks[0].attn.qkv.weight[:32] = 10 * torch.cat([torch.eye(16), torch.eye(16)])
    row = rows(anatomy(model, torch.randn(2, 1, 8, 8))["maps"])[0]
    assert row["itself"] > 0.99 and row["distance"] < 0.05 and row["entropy"] < 0.1


def test_products_are_those_of_measure():
    model = vit()
    initialize_(model, "mimetic", generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.blocks[0].norm1.weight.mul_(3)
    model.train()
    found = rows(anatomy(model, torch.randn(2, 1, 8, 8))["products"])
    assert model.training and set(found[0]) == set(PRODUCT_COLUMNS)
    wanted = measure(model, fold=True, heads=False)
    folded = [r for r in found if r["fold"]]
    assert len(folded) == len(wanted) == 6
    for row, (_, other) in zip(folded, wanted.iterrows()):
        assert (row["layer"], row["head"], row["product"]) == (other.layer, other["head"], other["product"])
        assert row["diag_mean"] == pytest.approx(other.diag_mean, rel=1e-4)
    raw = [r for r in found if not r["fold"]]
    assert folded[0]["diag_mean"] == pytest.approx(9 * raw[0]["diag_mean"], rel=1e-3)


def test_a_bare_multiple_of_the_identity_can_be_stored():
    model = vit(depth=1)
    layer = attention_layers(model)[0]
    layer.v.copy_(torch.eye(16).view_as(layer.v))
    layer.proj.copy_(-0.05 * torch.eye(16).view_as(layer.proj))
    table = product_table(model)
    (row,) = [r for r in rows(table) if r["product"] == "vp" and not r["fold"]]
    assert row["diag_mean"] == pytest.approx(-0.05) and row["offdiag_sd"] == 0
    assert row["sigmas"] == pytest.approx(-15)  # d - 1
    assert json.dumps(table, allow_nan=False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_tokens_of_any_precision(dtype):
    layer, tokens = attention_layers(SelfAttention(32, 4))[0], torch.randn(2, 5, 32)
    torch.testing.assert_close(attention_map(layer, tokens.to(dtype)), attention_map(layer, tokens), atol=0.02, rtol=0)
