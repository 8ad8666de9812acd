"""Every figure draws what its table holds: counted in lines, dots and labels, not in pixels."""

import inspect

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from mimetic import figures, mimetic_init_
from mimetic.book import construction
from mimetic.figures import products
from mimetic.figures.style import interval_bars, styled
from mimetic.measure import measure
from mimetic.models.blocks import Block


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def table():
    model = nn.Sequential(Block(48, 3), Block(48, 3))
    mimetic_init_(model, generator=torch.Generator().manual_seed(0))
    return measure(model)


def runs():
    return pd.DataFrame(
        [{"arm": arm, "seed": s, "epoch": e, "test_accuracy": 0.1 * e + 0.01 * s + (arm == "mimetic") * 0.05}
         for arm in ("timm", "mimetic") for s in (0, 1) for e in (1, 2, 3)]
    )  # fmt: skip


def test_matrices_have_a_symmetric_scale_and_a_title_each():
    figure = figures.matrices({"a": np.eye(80), "b": -np.eye(80), "c": np.zeros((80, 80))}, rows=2)
    shown = [ax for ax in figure.axes if ax.images]
    assert [ax.get_title(loc="left") for ax in shown] == ["a", "b", "c"]
    low, high = shown[1].images[0].get_clim()
    assert low == -high and shown[0].images[0].get_array().shape == (64, 64)


def test_z_by_layer_draws_every_head_and_layer(table):
    figure = figures.z_by_layer(pd.concat([table.assign(title="one"), table.assign(title="two")]))
    ax = figure.axes[0]
    heads, mean, layers = (line.get_ydata() for line in ax.lines[1:4])
    qk = table[table["product"] == "qk"]
    np.testing.assert_allclose(heads, qk.z)
    np.testing.assert_allclose(mean, qk.groupby("layer").z.mean())
    assert len(layers) == 2 and figure.axes[1].get_title(loc="left") == "two"


def test_z_by_layer_draws_a_band_where_heads_are_many(table, monkeypatch):
    monkeypatch.setattr(products, "MANY_HEADS", 1)
    ax = figures.z_by_layer(table.assign(title="one", z=table["z"].astype(object))).axes[0]
    assert len(ax.collections) == 2 and len(ax.lines) == 3  # chance and the heads; 0, their mean, the layers
    most = table[table["product"] == "qk"].groupby("layer").z.quantile([0.1, 0.9])
    band = ax.collections[1].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((most.min(), most.max()))


def test_profiles_draw_a_line_a_label():
    frame = pd.DataFrame(
        {"panel": ["p"] * 6, "label": ["a"] * 3 + ["b"] * 3, "offset": [-1, 0, 1] * 2, "value": [0, 1, 0, 0, 2, 0]}
    )
    (ax,) = figures.profiles(frame).axes
    lines = [line for line in ax.lines if line.get_label() in ("a", "b")]
    assert [line.get_label() for line in lines] == ["a", "b"] and lines[1].get_ydata().max() == 2
    assert [float(dot.get_ydata()[0]) for dot in ax.lines if dot.get_marker() == "o"] == [1, 2]  # the diagonals


def test_construction_figures():
    left, right = figures.truncation(construction.truncation(24, ranks=(4, 8, 24), draws=2)).axes
    assert len(left.lines[0].get_xdata()) == 6 and left.get_ylim()[1] > 0.7
    mean, spread = figures.orientations(construction.orientations(24, draws=3)).axes
    assert len(spread.lines) == 2 and len(spread.lines[0].get_xdata()) == 3
    maps = {("timm", "none"): np.full((1, 1, 4, 4), 0.25), ("mimetic", "sincos2d"): np.eye(4)[None, None]}
    figure = figures.attention_maps(maps, np.eye(2))
    picture, first, second = figure.axes[:3]
    assert first.images[0].get_clim() == second.images[0].get_clim() == (0, 1)  # one scale, from 0 to the largest
    assert np.array_equal(picture.images[0].get_array(), np.eye(2))


def test_learning_curves_and_pairs():
    frame = runs()
    figure = figures.curves_and_pairs(frame, frame[frame.epoch == 3])
    curves, pairs = figure.axes
    means = [line for line in curves.lines if not line.get_label().startswith("_")]
    assert [line.get_label() for line in means] == ["default (trunc-normal .02) (2 seeds)", "mimetic (2 seeds)"]
    np.testing.assert_allclose(means[0].get_ydata(), [10.5, 20.5, 30.5])
    assert [text.get_text() for text in pairs.texts] == ["seed 0", "seed 1"]
    assert figures.learning_curves(frame).axes


def test_overview_and_bars_and_imitation(table):
    profile = pd.DataFrame(
        {
            "panel": ["trained", "made"],
            "label": ["vp", "untrained"],
            "layer": [0, 0],
            "apart": [True, True],
            "offset": [0, 0],
            "value": [1, 1],
        }
    )
    assert len(figures.overview(profile, runs().query("epoch == 3")).axes) == 3
    left, right = figures.counts(pd.DataFrame({"x": [3, 4], "y": [0, 1]}, index=["yes", "no"]), xlabel="n").axes
    assert [text.get_text() for text in left.texts] == ["3", "4"] and right.get_title(loc="left") == "y"
    assert len(figures.measured_and_imitated(table, table).axes[0].containers) == 2


def test_style_does_not_leak():
    before = plt.rcParams["font.size"]
    figures.learning_curves(runs())
    assert plt.rcParams["font.size"] == before


def test_interval_bars_reach_from_the_value_and_a_single_pair_has_none():
    table = pd.DataFrame({"gain": [2.0, 1.0], "low": [1.5, -np.inf], "high": [3.0, np.inf]})
    assert interval_bars(table, "gain").tolist() == [[0.5, 0.0], [1.0, 0.0]]


def test_every_figure_is_drawn_in_the_books_style():
    """A function without its decorator would draw in the reader's own style."""
    kinds = {"Figure", "matplotlib.figure.Figure"}
    drawing = [
        f
        for name in figures.__all__
        if inspect.isfunction(f := getattr(figures, name)) and f.__annotations__.get("return") in kinds
    ]
    assert len(drawing) > 20 and [f.__name__ for f in drawing if f.__code__ is not styled(f).__code__] == []
