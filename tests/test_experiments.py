"""The small experiments of the chapters: their tables against the construction
itself, their sentences against their records.
"""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from mimetic import attention_layers
from mimetic.attention_maps import attention_map
from mimetic.book import construction, live, pattern, report
from mimetic.data.fetch import Unavailable
from mimetic.experiments.configs import named
from mimetic.models.blocks import SelfAttention
from mimetic.pretrained import effective, load_measurements
from mimetic.training.records import load_runs

ROOT = Path(__file__).parents[1]


def test_truncation_keeps_everything_at_full_rank_and_shrinks_the_diagonal_below():
    table = construction.truncation(48, ranks=(8, 24, 48), draws=3)
    means = table.groupby("k")[["diag_mean", "kept"]].mean()
    assert means.loc[48, "kept"] == pytest.approx(1) and means.loc[48, "diag_mean"] == pytest.approx(0.7, abs=0.05)
    assert means.diag_mean.is_monotonic_increasing and means.kept.is_monotonic_increasing
    assert 0.7 * 8 / 48 < means.loc[8, "diag_mean"] < 0.7


def test_orientations_is_what_nn_linear_computes():
    """The "wrong" product is that of a layer in which L and R are stored as they are."""
    table = construction.orientations(48, draws=2, seed=3).set_index(["draw", "stored"])
    generator = torch.Generator().manual_seed(3)
    from mimetic import factor, semi_diagonal
    from mimetic.measure import statistics

    left, right = factor(semi_diagonal(48, 0.4, -0.4, generator=generator))
    attn = SelfAttention(48, 3)
    with torch.no_grad():
        attn.qkv.weight[96:], attn.proj.weight[:] = left, right
    stored = statistics(attention_layers(attn)[0].vp())
    assert table.loc[(0, "untransposed (wrong)"), "diag_sd"] == pytest.approx(stored["diag_sd"], rel=1e-4)
    right_way, wrong_way = (table.xs(s, level="stored") for s in ("transposed (right)", "untransposed (wrong)"))
    assert np.allclose(right_way["mean eigenvalue"], wrong_way["mean eigenvalue"], atol=1e-4)
    assert np.allclose(right_way.diag_mean, wrong_way.diag_mean, atol=1e-4)


def test_head_shares_add_up_and_the_first_is_the_largest():
    shares = construction.head_shares(48, 3, draws=4)
    assert shares.groupby("draw").diag_mean.sum().mean() == pytest.approx(-0.4, abs=0.03)
    assert shares.groupby("head").diag_mean.mean().is_monotonic_increasing


def test_attention_map_is_the_layers_own():
    torch.manual_seed(0)
    attn, x = SelfAttention(48, 3), torch.randn(2, 5, 48)
    maps = attention_map(attention_layers(attn)[0], x)
    assert torch.allclose(maps.sum(-1), torch.ones(2, 3, 5))
    q, k, v = attn.qkv(x).view(2, 5, 3, 3, 16).permute(2, 0, 3, 1, 4)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(maps @ v, expected, atol=1e-5, rtol=1e-4)


def test_map_statistics_of_known_maps():
    side = 3
    table = construction.map_statistics({("mimetic", "none"): torch.eye(9).expand(1, 1, 9, 9)}, side).set_index("init")
    assert table.loc["mimetic", "attention to itself"] == 1 and table.loc["mimetic", "mean distance (patches)"] == 0
    assert table.loc["uniform", "attention to itself"] == pytest.approx(1 / 9)


def test_gauge_freedom_changes_the_factors_and_not_the_product():
    changes = pattern.gauge_freedom(attention_layers(SelfAttention(48, 3))[0])
    assert changes["W_Q"] > 0.5 and changes["W_K"] > 0.5 and changes["W_Q W_K^T"] < 1e-9


def products(title, qk, vp):
    rows = [
        {"title": title, "layer": 0, "head": h, "product": "qk", "z": z, "sigmas": 20 * z} for h, z in enumerate(qk)
    ]
    return rows + [
        {"title": title, "layer": i, "head": -1, "product": "vp", "z": z, "sigmas": 20 * z} for i, z in enumerate(vp)
    ]


def test_what_chapter_2_says_of_the_share_along_the_identity():
    shares = pattern.identity_shares(effective())
    *_, written = shares.index
    made, shares = shares.loc[written], shares.drop(index=written)
    assert made["V·proj: mean"] == pytest.approx(50, abs=2) and made["QK: mean"] == pytest.approx(12, abs=0.5)
    # it exaggerates
    assert (made["V·proj: mean"] > 4.8 * shares["V·proj: mean"]).all()
    assert (made["QK: mean"] > 4.8 * shares["QK: mean"]).all()
    # single ones come near
    assert made["QK: mean"] < shares["QK: largest"].max() and made["V·proj: mean"] < shares["V·proj: largest"].max()
    assert shares["QK: possible"].between(8, 17).all()
    assert shares["V·proj: mean"].max() < 10.5
    assert shares["V·proj: median"].max() < 7
    assert shares["QK: mean"].max() < 2
    dinov2 = shares.loc["DINOv2-type ViT-S/14"]
    # one layer of twelve makes nearly half of the mean
    assert 0.4 < dinov2["V·proj: largest"] / 12 / dinov2["V·proj: mean"] < 0.5


def test_what_chapter_2_says_of_the_signs():
    table = pattern.verdicts(effective())
    positive, negative = (table[column] / table["heads"] for column in ("QK +", "QK −"))
    assert round(positive.min(), 2) == 0.59 and round(positive.max(), 2) == 0.92
    assert round(negative.min(), 2) == 0.07 and round(negative.max(), 2) == 0.28
    smollm2 = load_measurements(["smollm2-135m"]).query("fold and product == 'vp' and head == -1").set_index("layer")
    assert (smollm2["sigmas"].loc[12:] > 2).all() and smollm2["sigmas"].loc[:11].lt(-2).any()


def test_what_chapter_2_says_of_raw_queries_and_keys():
    qk = load_measurements(["dinov2-vit-s"]).query("product == 'qk'")
    raw, folded = ((qk.loc[qk["fold"] == fold, "sigmas"] > 2).sum() for fold in (False, True))
    assert 0.9 < raw / folded < 1


def test_where_layer_scale_turns_a_diagonal():
    (layer,) = pattern.untrained_layers(8, 1, 2, "mimetic")
    signs = torch.tensor([1.0, -1.0] * 4)
    turned = dataclasses.replace(layer, proj=layer.proj.detach() * signs, out_gain=signs)
    table = pattern.layer_scale_signs([turned])
    assert table.loc[0, "s negative (%)"] == 50
    assert table.loc[0, "raw diagonal against s (%)"] == round(100 * (layer.vp().diagonal() < 0).float().mean().item())
    assert pattern.layer_scale_signs(None).empty and pattern.layer_scale_signs([layer]).empty


def test_verdicts():
    frame = pd.DataFrame(
        products("paper", [1, 2, 3, 0.5, 1], [-3, -2])
        + products("turned", [-1, -1], [2, 2])
        + products("neither", [1, -1], [-2, -2])
    )
    table = pattern.verdicts(frame)
    assert table.verdict.to_dict() == {
        "paper": "the paper's signs",
        "turned": "opposite signs",
        "neither": "QK mixed, V·proj −",
    }
    assert table.loc["paper", "QK +"] == table.loc["paper", "heads"] == 5 and table.loc["neither", "V·proj −"] == 2
    shown = pattern.verdict_table(frame)
    assert shown.loc["paper", "QK +"] == "5/5" and shown.loc["neither", "V·proj −"] == "2/2"


def test_pictures_without_weights_and_with():
    without = pattern.pictures(None, 0, 0)
    assert list(without) == ["QK · untrained", "QK · mimetic", "V·proj · untrained", "V·proj · mimetic"]
    layers = pattern.untrained_layers(48, 2, 3)
    assert torch.equal(pattern.pictures(layers, 1, 2)["QK · trained, raw"], layers[1].qk(2))
    with pytest.raises(ValueError, match="layer must be from 0 to 1"):
        pattern.pictures(layers, 2, 0)
    with pytest.raises(ValueError, match="head must be from 0 to 2"):
        pattern.pictures(layers, 0, 3)


def test_overview_profiles_show_the_spike_where_it_is():
    every = pattern.overview_profiles()
    assert every[every["panel"] == "trained"].groupby("label")["layer"].nunique().to_dict() == {"qk": 12, "vp": 12}
    frame = every[every["apart"]].set_index(["panel", "label", "offset"]).value
    assert frame["made", "vp", 0] < -5 and frame["made", "qk", 0] > 3 and abs(frame["made", "untrained", 0]) < 0.5
    assert frame["trained", "vp", 0] < -2 and abs(frame["trained", "vp", 5]) < 1


@pytest.mark.parametrize(("name", "said"), report.WRITTEN.items())
def test_pages_hold_the_numbers_of_the_records(name, said):
    text = (Path(__file__).parents[1] / name).read_text(encoding="utf-8")
    assert text == report.with_findings(text, said()), f"{name} is out of date: python -m mimetic.book.report"
    with pytest.raises(ValueError, match="lacks the marks"):
        report.with_findings("# nothing", "")


def test_live_runs_refuse_bad_values_before_training():
    with pytest.raises(ValueError, match="digits"):
        live.live_images("mnist")
    with pytest.raises(ValueError, match="timm, torch"):
        live.live_images("digits", arms=("kaiming",))


def test_what_a_live_run_lacks_is_said_at_once(monkeypatch, tmp_path):
    monkeypatch.setenv("MIMETIC_DATA", str(tmp_path))
    monkeypatch.setenv("MIMETIC_OFFLINE", "1")
    for dataset in ("digits", "pydoc", "clusters"):
        live.require(dataset)
    for dataset in ("cifar10", "tinyshakespeare", "ml100k"):
        with pytest.raises(Unavailable, match="MIMETIC_OFFLINE is set"):
            live.require(dataset)
    with pytest.raises(ValueError, match="device must be one of"):
        live.require("digits", "gpu")


def test_attention_before_training_over_several_seeds():
    images = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    shape = {"d_model": 24, "num_heads": 2, "patch_size": 2}
    table = construction.maps_over_seeds(images, range(2), **shape)
    assert set(table["seed"]) == {0, 1} and len(table) == 2 * 5
    one = construction.map_statistics(construction.maps_at_init(images, seed=1, **shape), side=4)
    pd.testing.assert_frame_equal(
        table[table["seed"] == 1].drop(columns="seed").reset_index(drop=True), one, check_exact=True
    )
    mimetic = table.query("init == 'mimetic'")["attention to itself"]
    assert (mimetic > 1 / 16).all() and mimetic.nunique() == 4


def test_live_runs_are_paired():
    frame = live.live_images("digits", epochs=1, seeds=[3])
    assert list(frame.arm) == ["timm", "mimetic"] and set(frame.seed) == {3} and frame.test_accuracy.between(0, 1).all()


def test_expected_numbers_of_the_experiments_are_those_of_their_records():
    """configs/vision.py states what the laboratory run gives; seeds 0 to 2 are committed."""
    from mimetic.experiments.configs import vision

    said = re.search(r"([\d.]+) and ([\d.]+) % \(seeds 0 to (\d)\)", vision.__doc__)
    finals = load_runs("cifar10-lab30", folder=ROOT / "data" / "runs")
    means = finals[finals["seed"] <= int(said[3])].groupby("arm")["test_accuracy"].mean()
    assert [f"{100 * means[arm]:.1f}" for arm in ("timm", "mimetic")] == [said[1], said[2]]


def test_a_stopped_run_is_gone_on_with_as_if_nothing_had_happened(tmp_path, monkeypatch):
    monkeypatch.setenv("MIMETIC_RUNS", str(tmp_path))
    whole, resumed = live.interrupted(epochs=3, stop_after=1, train_size=480, d_model=16, depth=1, num_heads=2)
    assert (whole["resumed"], resumed["resumed"]) == (0, 1) and whole["curve"] == resumed["curve"]
    assert not list(tmp_path.iterdir())  # what it makes, it makes elsewhere, and removes


@pytest.mark.parametrize("changes", [{"arm": "swapped", "qk_alpha": 0.7}, {"arm": "mimetic", "init": "timm"}])
def test_an_arm_is_not_given_a_setting_that_it_changes(changes):
    """Also the base's own value, which an arm cannot tell from none given: the keywords can."""
    with pytest.raises(ValueError, match=f"arm '{changes['arm']}' of cifar10-lab10 sets what was given otherwise"):
        named("cifar10-lab10", **changes)
