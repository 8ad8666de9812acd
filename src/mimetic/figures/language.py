"""Figures of the language chapters: curves and their paired gaps, products before and after, gain against attention's share."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mimetic.figures.style import COLORS, LABELS, QK, VP, panels, styled

FAMILIES = {"vision": "#0072b2", "language": "#e69f00", "recommenders": "#009e73"}  # any other family is drawn in black


@styled
def curves_and_gaps(
    curves: pd.DataFrame, *, reference: str, metric: str = "test_bits_per_byte", ylabel: str = "bits per byte", per: str = "step"
) -> Figure:
    """Left: a thin line a run, a thick line an arm's mean. Right: each arm minus the reference arm of the same seed, so 0 is the
    default; below it is better where the metric is a loss.

    curves: columns arm, seed, `per` and the metric; the arms in the order in which they appear.
    """
    figure, axes = panels(7.4, 2.9, ncols=2)
    left, right = axes[0]
    wide = curves.pivot_table(index=["seed", per], columns="arm", values=metric, sort=False)
    for arm in dict.fromkeys(curves["arm"]):
        color = COLORS.get(arm, "black")
        for values, ax in ((wide[arm], left), (wide[arm] - wide[reference], right)):
            if ax is right and arm == reference:
                continue
            values = values.dropna()
            for _, run in values.groupby("seed"):
                ax.plot(run.index.get_level_values(per), run, color=color, lw=0.8, alpha=0.45)
            mean, n = values.groupby(per).mean(), values.index.get_level_values("seed").nunique()
            ax.plot(mean.index, mean, color=color, lw=2, label=f"{LABELS.get(arm, arm)} ({n} seed{'s' * (n != 1)})")
    right.axhline(0, color=COLORS.get(reference, "black"), lw=1.2)
    left.set(xlabel=per, ylabel=ylabel)
    right.set(xlabel=per, ylabel=f"{ylabel}, minus the default's")
    left.legend(loc="upper right")
    for ax in (left, right):
        ax.grid(axis="y", color="#eeeeee")
    return figure


@styled
def products_before_and_after(products: pd.DataFrame) -> Figure:
    """What training does to the diagonals, by layer: rows QK and V·proj, a column an arm; hollow before, filled after.

    products: columns arm, seed, when, layer, product, z (mean diagonal / off-diagonal sd).
    """
    arms = list(dict.fromkeys(products["arm"]))
    figure, axes = panels(7.4, 4.4, nrows=2, ncols=len(arms), sharex=True, sharey="row")
    rows = (("qk", "$W_QW_K^T$", QK), ("vp", "$W_VW_{proj}$", VP))
    for i, (product, name, color) in enumerate(rows):
        for ax, arm in zip(axes[i], arms):
            for when, shift, face in (("before", -0.14, "white"), ("after", 0.14, color)):
                part = products[(products["arm"] == arm) & (products["when"] == when) & (products["product"] == product)]
                ax.plot(part["layer"] + shift, part["z"], ".", ms=3, color=color, alpha=0.35)
                mean = part.groupby("layer")["z"].mean()
                ax.plot(mean.index + shift, mean, "o", ms=5, mfc=face, mec=color, label=f"{when} training")
            ax.axhline(0, color="black", lw=0.7)
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
            if i == 0:
                ax.set_title(LABELS.get(arm, arm))
            else:
                ax.set_xlabel("layer")
        axes[i, 0].set_ylabel(f"{name}: diagonal / spread", fontsize=8)
    axes[0, -1].legend(loc="best")
    return figure


@styled
def share_and_gain(points: pd.DataFrame, *, sweep: str = "share") -> Figure:
    """The relative gain against attention's share of all parameters, mean and 95 % interval of each point. Left: the sweep alone,
    its points named; right: every point of every family.

    points: as experiments.share.gain_points gives them.
    """
    figure, axes = panels(7.4, 3.1, ncols=2)
    for ax, part, title in zip(axes[0], (points[points["experiment"] == sweep], points), ("the sweep: attention fixed", "every family")):
        for name, rows in part.groupby("family"):
            color = FAMILIES.get(name, "black")
            reach = 100 * rows["gain"].abs().max() * 3 + 0.5
            bars = [(100 * (rows["gain"] - rows["low"])).clip(upper=reach), (100 * (rows["high"] - rows["gain"])).clip(upper=reach)]
            ax.errorbar(100 * rows["share"], 100 * rows["gain"], bars, fmt="o", ms=4, lw=0.9, color=color, label=name)
        if ax is axes[0, 0]:
            for _, row in part.iterrows():
                ax.annotate(row["point"], (100 * row["share"], 100 * row["gain"]), (3, 3), textcoords="offset points", fontsize=7)
        ax.axhline(0, color="black", lw=0.8)
        if len(part):
            size = 100 * np.abs(part["gain"]).max()
            ax.set_ylim(-2.2 * size - 0.1, 2.2 * size + 0.1)
        else:
            ax.text(0.5, 0.6, "no runs yet", transform=ax.transAxes, ha="center")
        ax.set(title=title, xlabel="attention's share of all parameters (%)")
        ax.grid(color="#eeeeee")
    axes[0, 0].set_ylabel("relative gain of mimetic (%)")
    axes[0, 1].legend(loc="best")
    return figure
