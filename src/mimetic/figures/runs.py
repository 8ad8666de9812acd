"""Figures of training runs: curves, pairs, and what attention looks like before and after."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from mimetic.figures.style import COLORS, LABELS, QK, VP, by_layer, diagonal_rows, note, panels, runs_and_mean, styled


@styled
def learning_curves(curves: pd.DataFrame) -> Figure:
    """One thin line a run, one thick line an arm's mean, a band from the lowest run to the highest. curves: columns
    arm, seed, epoch and test_accuracy."""
    figure, axes = panels(7.4, 2.9)
    _curves(axes[0, 0], curves)
    return figure


def _nothing(ax) -> None:
    ax.text(0.5, 0.5, "no runs yet", transform=ax.transAxes, ha="center", color="#555555")
    ax.set(xticks=[], yticks=[])


def _curves(ax, curves) -> None:
    if curves.empty:
        return _nothing(ax)
    for arm, part in curves.groupby("arm", sort=False):
        values = 100 * part.set_index(["seed", "epoch"])["test_accuracy"]
        runs_and_mean(ax, values, arm)
        ends = values.groupby("epoch").agg(["min", "max"])
        ax.fill_between(ends.index, ends["min"], ends["max"], color=COLORS.get(arm, "black"), alpha=0.12, lw=0)
    ax.set(xlabel="epoch", ylabel="test accuracy (%)")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(loc="lower right")
    ax.grid(axis="y", color="#eeeeee")


@styled
def curves_and_pairs(curves: pd.DataFrame, finals: pd.DataFrame) -> Figure:
    """Left: learning curves; right: the last-epoch accuracy of each seed under the default and under mimetic
    initialization, a line joins the pair, a bar is the mean of the pairs. Frames as in learning_curves; finals: one row
    a run."""
    figure, axes = panels(7.4, 2.9, ncols=2, width_ratios=[1.7, 1])
    _curves(axes[0, 0], curves)
    _pairs(axes[0, 1], finals)
    return figure


def _pairs(ax, finals) -> None:
    if finals.empty:
        return _nothing(ax)
    arms = ["timm", "mimetic"]
    wide = 100 * finals.pivot(index="seed", columns="arm", values="test_accuracy").reindex(columns=arms)
    for seed, (a, b) in wide.iterrows():
        ax.plot([0, 1], [a, b], color="#999999", lw=0.9, zorder=1)
        at, value = (0, a) if np.isnan(b) else (1, b)  # a run without its partner stands alone
        note(ax, f"seed {seed}", (at, value), (5, 0), va="center", color="#555555")
    means = wide.dropna().mean()  # of pairs: a run without its partner would tilt the comparison
    for i, arm in enumerate(arms):
        ax.plot(np.full(len(wide), i), wide[arm], "o", ms=5, color=COLORS[arm])
        ax.plot([i - 0.28, i - 0.06], [means[arm]] * 2, color=COLORS[arm], lw=2)
    names = [LABELS[arm].split(" (")[0] for arm in arms]
    below = [f"\nmean {mean:.2f}" if wide.notna().all(axis=1).sum() > 1 else "" for mean in means[arms]]
    ax.set_xticks(range(len(arms)), [name + mean for name, mean in zip(names, below)])
    ax.set(xlim=(-0.35, 1.55), ylabel="last-epoch test accuracy (%)")


@styled
def overview(profile: pd.DataFrame, finals: pd.DataFrame) -> Figure:
    """The claim in one figure: the pattern in a trained model, the same pattern made from a formula, and what it buys.

    profile: as pattern.overview_profiles gives it; finals: one row a run.
    """
    figure, axes = panels(7.6, 2.7, ncols=3)
    colors = {"vp": VP, "qk": QK, "untrained": "#7a7a7a"}
    names = {"vp": "$W_VW_{proj}$", "qk": r"$W_QW_K^\top$", "untrained": "timm's default"}
    titles = {"trained": "1 · a trained model, all layers", "made": "2 · made by a formula"}
    for ax, panel in zip(axes[0], ("trained", "made")):
        ax.axhline(0, color="black", lw=0.6)
        lines = profile[profile["panel"] == panel].groupby(["label", "apart", "layer"], sort=False)
        for (label, apart, _), part in lines:
            lw, alpha, name = (1.8, 1, names[label]) if apart else (0.5, 0.5, "_")
            ax.plot(part.offset, part.value, color=colors[label], lw=lw, alpha=alpha, label=name)
        ax.set(title=titles[panel], xlabel="places off the diagonal")
        lines = {line.get_label(): line for line in ax.get_lines()}  # in one order in both panels
        shown = [name for name in names.values() if name in lines]
        ax.legend([lines[name] for name in shown], shown, loc="lower right", fontsize=7, handlelength=1)
    axes[0, 0].set_ylabel("mean entry / off-diagonal sd")
    limits = [ax.get_ylim() for ax in axes[0, :2]]
    for ax in axes[0, :2]:
        ax.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
    _pairs(axes[0, 2], finals)
    axes[0, 2].set_title("3 · CIFAR-10 (small ViT)")
    return figure


@styled
def before_and_after(products: pd.DataFrame, maps: pd.DataFrame, *, uniform_distance: float) -> Figure:
    """What training does to the diagonals and to the distance attended, by layer:
    rows QK, V·proj, distance; a column an arm.

    Args:
        products: columns arm, seed, when, layer, head, product, z (mean diagonal / off-diagonal sd).
        maps: columns arm, seed, when, layer, head, distance (patches).
        uniform_distance: of a head that attends everywhere alike.
    """
    distance = ("mean distance attended\n(patches)", maps, "distance", "#009e73", uniform_distance)
    figure, axes = by_layer(6.4, [*diagonal_rows(products), distance], "arm")
    ax = axes[2, -1]  # mimetic heads look nearer: there is room
    ax.text(0.02, uniform_distance, "uniform attention", transform=ax.get_yaxis_transform(), va="bottom", fontsize=7.5)
    handles = [Line2D([], [], ls="", marker="o", ms=5, mec="#555555", mfc=face) for face in ("white", "#555555")]
    figure.legend(handles, ("before training", "after training"), loc="outside lower center", ncols=2)
    return figure
