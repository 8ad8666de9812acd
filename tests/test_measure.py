"""measure against plain NumPy, its null distribution against permutations, fit against what was written."""

import sys

import numpy as np
import pytest
import torch
from torch import nn

import mimetic
from mimetic import (
    AttentionLayer,
    MimeticSpec,
    MimeticWarning,
    UnsupportedAttention,
    attention_layers,
    fit,
    measure,
    mimetic_init_,
)
from mimetic.measure import for_json, statistics, truncation_curve
from mimetic.models.blocks import Block


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def blocks(d=96, heads=3, depth=2, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(*(Block(d, heads) for _ in range(depth)))


def test_statistics_against_numpy():
    A = torch.randn(20, 20, generator=seeded()) + 0.3 * torch.eye(20) + 5
    a = A.double().numpy()
    diagonal, off = np.diag(a), a[~np.eye(20, dtype=bool)]
    numbers = statistics(A)
    assert numbers["diag_mean"] == pytest.approx(diagonal.mean(), rel=1e-9)
    assert numbers["diag_sd"] == pytest.approx(diagonal.std(ddof=1), rel=1e-9)
    assert numbers["offdiag_sd"] == pytest.approx(off.std(ddof=1), rel=1e-9)
    assert numbers["z"] == pytest.approx(diagonal.mean() / off.std(ddof=1), rel=1e-9)


def test_numbers_of_a_record_are_plain_and_short():
    numbers = {"a": torch.tensor(1 / 3), "b": {"c": np.float64(123456.0)}, "d": float("inf"), "e": 7, "f": "text"}
    assert for_json(numbers, 4) == {"a": 0.3333, "b": {"c": 123500.0}, "d": None, "e": 7, "f": "text"}
    assert for_json(float("nan"), 5) is None and for_json(None, 5) is None
    assert type(for_json(np.int64(3), 5)) is int


def test_a_bare_multiple_of_the_identity_is_beyond_any_chance():
    found = statistics(-0.4 * torch.eye(8))
    assert (
        found["z"] == -float("inf")
        and found["null_mean"] == found["offdiag_sd"] == 0
        and np.isclose(found["sigmas"], -7)
    )
    found = statistics(0.1 * torch.eye(300))  # though 0.1 is no binary number
    assert found["z"] == float("inf") and np.isclose(found["sigmas"], 299)
    nearly = 0.3 * torch.eye(64) + 1e-6 * torch.randn(64, 64, generator=seeded())
    assert np.isclose(statistics(nearly)["sigmas"], 63, rtol=1e-3)
    mixed = torch.diag(torch.linspace(-1, 1.01, 64))  # a diagonal whose mean is nothing beside its spread
    assert 0 < statistics(mixed)["sigmas"] < 1
    assert for_json(found, 4)["z"] is None
    # no diagonal, though a third is no binary number
    for product in (torch.zeros(8, 8), torch.ones(8, 8), torch.ones(300, 300, dtype=torch.float64) / 3):
        assert np.isnan([statistics(product)[name] for name in ("z", "sigmas")]).all()


def test_matrices_of_two_dtypes_are_measured():
    model = nn.Sequential(Block(16, 2), Block(16, 2))
    model[1].attn.proj.double()
    model[0].norm1.double()
    wide = mimetic.measure(model.double(), fold=True)
    model.float()
    model[1].attn.proj.double()
    model[0].norm1.double()
    assert np.allclose(mimetic.measure(model, fold=True)["diag_mean"], wide["diag_mean"], atol=1e-6)


def test_null_distribution_against_permutations():
    # rows and columns of very different size and offset, as trained products have
    g = seeded()
    A = torch.randn(40, 40, generator=g) * torch.linspace(0.1, 3, 40)[:, None] + torch.linspace(0, 2, 40)
    numbers = statistics(A)
    permuted = [
        A[torch.randperm(40, generator=g)].diagonal().mean().item() / numbers["offdiag_sd"] for _ in range(20_000)
    ]
    assert numbers["null_mean"] == pytest.approx(np.mean(permuted), abs=4 * np.std(permuted) / 20_000**0.5)
    assert numbers["null_sd"] == pytest.approx(np.std(permuted), rel=0.03)


def test_null_of_unrelated_matrices_is_one_over_root_d():
    model = blocks(d=96, heads=3, depth=8)
    table = measure(model)
    assert table.null_sd.mean() == pytest.approx(96**-0.5, rel=0.05)
    assert table.null_mean.abs().max() < 0.05
    qk = table[table["product"] == "qk"]
    assert qk.sigmas.std() == pytest.approx(1.0, abs=0.35) and qk.sigmas.abs().max() < 5


def test_measure_has_one_row_a_product():
    table = measure(blocks(d=48, heads=3, depth=2))
    assert list(table.columns[:7]) == ["layer", "name", "head", "product", "diag_mean", "diag_sd", "offdiag_sd"]
    assert len(table) == 2 * (3 + 3 + 1)
    assert len(measure(blocks(d=48), heads=False)) == 2 * (3 + 1)
    layer = attention_layers(blocks(d=48, heads=3))[0]
    row = table.query("layer == 0 and product == 'vp' and head == -1").iloc[0]
    assert row.diag_mean == pytest.approx(layer.vp().diagonal().mean().item(), rel=1e-5)
    heads = table.query("layer == 0 and product == 'vp' and head >= 0")
    assert heads.diag_mean.sum() == pytest.approx(row.diag_mean, rel=1e-4)


def test_fold_multiplies_the_gains_in():
    model = blocks(d=48, heads=3, depth=1)
    nn.init.uniform_(model[0].norm1.weight, 0.1, 2, generator=seeded())
    layer, gain = attention_layers(model)[0], model[0].norm1.weight.detach()
    torch.testing.assert_close(layer.qk(1, fold=True), gain[:, None] * layer.qk(1) * gain, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(layer.vp(fold=True), gain[:, None] * layer.vp(), atol=1e-6, rtol=1e-5)
    assert measure(model, fold=True).diag_mean.tolist() != measure(model).diag_mean.tolist()
    # through the block's own norm: the folded product acts on the normalised tokens before the gain
    x = torch.randn(1, 1, 48, generator=seeded(1))
    with torch.no_grad():
        model[0].attn.qkv.bias.zero_(), model[0].attn.proj.bias.zero_()
        out = model[0].attn(model[0].norm1(x))[0]
    normalised = (x[0] - x.mean()) / (x.var(unbiased=False) + 1e-6).sqrt()
    torch.testing.assert_close(normalised @ layer.vp(fold=True), out, atol=1e-6, rtol=1e-4)


def test_fold_is_refused_where_the_block_is_not_known():
    class Strange(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.MultiheadAttention(16, 2)

    with pytest.raises(UnsupportedAttention, match="inner: which LayerNorm"):
        measure(Strange(), fold=True)
    assert len(measure(Strange())) == 5


@pytest.mark.parametrize("spec", [mimetic.VISION, mimetic.LANGUAGE, MimeticSpec(0.2, 0.05, 0.3, 0.9)])
def test_fit_recovers_what_was_written(spec):
    model = blocks(d=192, heads=3, depth=4)
    mimetic_init_(model, spec, generator=seeded(3))
    fitted = fit(model)
    for name in MimeticSpec.constants():
        values = getattr(fitted, name)
        assert len(values) == 4
        assert np.mean(values) == pytest.approx(getattr(spec, name), rel=0.03, abs=0.01), name


def test_measure_then_mimic_gives_the_statistics_layer_by_layer():
    trained = blocks(d=128, heads=4, depth=3)
    spec = MimeticSpec(
        qk_alpha=(0.5, 0.7, 1.5), qk_beta=(1.0, -0.4, 0.2), vp_alpha=(0.2, 0.3, 0.4), vp_beta=(-1.0, 0.0, 0.5)
    )
    mimetic_init_(trained, spec, generator=seeded(1))
    fresh = blocks(d=128, heads=4, depth=3, seed=5)
    mimetic_init_(fresh, fit(trained), generator=seeded(2))
    a, b = (
        measure(m, heads=False).groupby(["layer", "product"])[["diag_mean", "offdiag_sd"]].mean()
        for m in (trained, fresh)
    )
    np.testing.assert_allclose(a.diag_mean, b.diag_mean, atol=0.03)
    np.testing.assert_allclose(a.offdiag_sd, b.offdiag_sd, rtol=0.05)


@pytest.mark.parametrize(("d", "k"), [(1024, 8), (480, 16), (1600, 64), (4096, 8)])
def test_truncation_is_drawn_at_the_ratio_that_is_asked_for(d, k, monkeypatch):
    seen = []
    monkeypatch.setattr(
        sys.modules["mimetic.measure"],
        "factor_top_k",
        lambda A, rank: seen.append(rank / A.shape[0]) or (torch.eye(A.shape[0], dtype=A.dtype)[:, :1], A[:1]),
    )
    truncation_curve.__wrapped__(d, k)
    assert set(seen) == {k / d}


def test_fit_says_when_a_diagonal_is_out_of_reach():
    # W_Q = W_K with orthonormal columns: a projection, the most diagonal product of its rank
    columns = torch.linalg.qr(torch.randn(64, 64, generator=seeded()))[0][:, None, :32].expand(64, 2, 32)
    identity = torch.eye(64)
    layer = AttentionLayer("perfect", columns, columns, v=identity.view(64, 2, 32), proj=-identity.view(2, 32, 64))
    with pytest.warns(MimeticWarning, match="perfect: a diagonal"):
        spec = fit([layer])
    assert spec.qk_beta[0] > 0 and spec.vp_beta[0] == pytest.approx(-1.0) and spec.vp_alpha[0] == 0.0


def test_fit_says_that_one_number_has_nothing_off_the_diagonal():
    with pytest.raises(UnsupportedAttention, match="attn: tokens of width 1, whose products are one number"):
        mimetic.fit(nn.ModuleDict({"attn": nn.MultiheadAttention(1, 1)}))


def test_fit_names_a_layer_without_a_product():
    """A zero output matrix is a common initialization: imitated, it would be a layer that never learns."""
    model = nn.Sequential(nn.MultiheadAttention(32, 4), nn.MultiheadAttention(32, 4))
    nn.init.zeros_(model[1].out_proj.weight)
    with pytest.raises(UnsupportedAttention, match="1: a product of its weights is 0"):
        mimetic.fit(model)


def test_products_are_full_precision_under_autocast():
    layer = mimetic.attention_layers(nn.MultiheadAttention(32, 4))[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert layer.qk(0).dtype == layer.vp().dtype == torch.float32


def test_only_cross_attention():
    layer = nn.TransformerDecoderLayer(32, 4)
    assert set(measure(layer).name) == {"self_attn"}
    assert set(measure(layer, cross=True).name) == {"self_attn", "multihead_attn"}
    cross = [found for found in attention_layers(layer) if found.kind == "cross"]
    with pytest.raises(UnsupportedAttention, match=r"among 1 attention layers \(cross=True takes them too\)$"):
        measure(cross)
    with pytest.raises(UnsupportedAttention, match="no self-attention layer among 1 attention layers$"):
        fit(cross)  # which has no such option


@pytest.mark.parametrize("function", [measure, fit])
def test_an_empty_list_is_named(function):
    with pytest.raises(UnsupportedAttention, match="the list of attention layers is empty"):
        function([])


def test_a_bare_identity_cut_to_a_head_is_imitated_as_well_as_it_can_be():
    layer = nn.MultiheadAttention(32, 2)
    with torch.no_grad():
        layer.in_proj_weight.copy_(torch.eye(32).repeat(3, 1))
    with pytest.warns(MimeticWarning, match="beta = 10 alpha is taken"):
        spec = fit(layer)
    assert spec.qk_beta[0] == pytest.approx(10 * spec.qk_alpha[0]) and np.isfinite(spec.qk_alpha[0])


def test_one_head_that_is_no_number_is_not_passed_over():
    layer = nn.MultiheadAttention(32, 2)
    with torch.no_grad():
        layer.in_proj_weight[0, 0] = float("nan")
    with pytest.raises(UnsupportedAttention, match="not finite"):
        fit(layer)
