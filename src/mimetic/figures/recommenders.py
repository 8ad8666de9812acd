"""Figures of the recommender chapter."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mimetic.figures.style import NULL, PRODUCTS, QK, VP, by_layer, diagonal_rows, note, panels, runs_and_mean, styled


@styled
def diagonals(products: pd.DataFrame) -> Figure:
    """Diagonals before (hollow) and after training (filled) by layer: rows QK and V·proj, a column a panel. Small dots
    are heads or layers of single runs, the grey band is chance.

    products: columns panel, when, layer, product, z, null_mean, null_sd.
    """
    figure, axes = by_layer(4.0, diagonal_rows(products), "panel")
    for row, (product, _, _) in zip(axes, PRODUCTS):
        for ax, name in zip(row, products["panel"].unique()):
            part = products[(products["product"] == product) & (products["panel"] == name)]
            band = part.groupby("layer")[["null_mean", "null_sd"]].mean()
            for layer, mean, sd in band.itertuples():
                x, label = [layer - 0.35, layer + 0.35], "_" if layer else "chance"
                ax.fill_between(x, mean - 2 * sd, mean + 2 * sd, color=NULL, lw=0, label=label)
            ax.set(xlim=(-0.6, part["layer"].max() + 0.6))
    for ax, name in zip(axes[0], products["panel"].unique()):
        ax.set_title(name, fontsize=8.5)  # they are long
    axes[0, 0].legend(fontsize=7)
    return figure


@styled
def explained(table: pd.DataFrame) -> Figure:
    """How much of a product lies along the identity: in the trained model, in its imitation after truncation, in the
    target before; on a logarithmic axis, a row a model. table: columns model, product, explained, imitated, target
    (shares)."""
    names = list(dict.fromkeys(table["model"]))
    figure, axes = panels(7.4, 0.9 + 0.32 * len(names), ncols=2, sharey=True, sharex=True)
    marks = (
        ("explained", "o", "trained model"), ("imitated", "x", "imitation, truncated to the layer's rank"),
        ("target", "|", "its target, before"),
    )  # fmt: skip
    for ax, (product, title, color) in zip(axes[0], PRODUCTS):
        part = table[table["product"] == product].set_index("model").loc[names]
        for column, marker, label in marks:
            size = 11 if marker == "|" else 6  # a bar is seen behind a dot
            shares = 100 * part[column].clip(lower=1e-5)
            ax.plot(shares, range(len(names)), marker, ms=size, mew=1.4, color=color, label=label)
        ax.axvline(5, color="black", lw=0.7, ls=":")
        ax.set(xscale="log", xlim=(1e-3, 120), title=title, xlabel="energy along the identity (%)")
        ax.set_ylim(len(names) - 0.4, -0.6)
        ax.set_yticks(range(len(names)), names)
        ax.grid(axis="x", color="#eeeeee")
    axes[0, 1].legend(fontsize=7, loc="lower left", bbox_to_anchor=(0.0, 1.1))
    return figure


@styled
def catalogue(shares: pd.DataFrame, marks: Mapping[str, tuple[int, float]], levels: Mapping[str, float]) -> Figure:
    """Attention's share of the parameters against the number of items.

    Args:
        shares: index number of items, a column a model shape, values from 0 to 1.
        marks: what is marked on the curves: label -> (items, share).
        levels: horizontal lines: label -> share, of models whose size does not depend on a catalogue.
    """
    figure, axes = panels(7.4, 3.1)
    ax = axes[0, 0]
    for column, style in zip(shares.columns, ("-", "--", ":", "-.")):
        ax.plot(shares.index, 100 * shares[column], style, color=VP, lw=1.6, label=column)
    # neighbours are labelled on different sides of the line
    for i, (label, (items, share)) in enumerate(marks.items()):
        ax.plot(items, 100 * share, "o", ms=5, color=QK)
        place, side = ((-4, -9), "right") if i % 2 == 0 else ((4, 4), "left")
        note(ax, label, (items, 100 * share), place, ha=side)
    for label, share in levels.items():
        ax.axhline(100 * share, color="#999999", lw=0.9)
        note(ax, label, (shares.index.max(), 100 * share), (-2, 2), ha="right", color="#555555")
    ax.set(xlabel="items in the catalogue", ylabel="attention's share of the parameters (%)")
    ax.set(xscale="log", yscale="log")
    ax.set_ylim(top=130)
    ax.legend(loc="lower left")
    ax.grid(color="#eeeeee")
    return figure


@styled
def ranking_curves(
    curves: pd.DataFrame, levels: Mapping[str, float], *, metric: str = "test_ndcg10", ylabel: str = "test NDCG@10"
) -> Figure:
    """Learning curves, a thin line a run, a thick one an arm's mean, with horizontal lines for what does not learn.

    curves: columns arm, seed, epoch and the metric."""
    figure, axes = panels(7.4, 3.4)
    ax = axes[0, 0]
    palette = ("#7a7a7a", "#0072b2", "#d55e00", "#009e73", "#56b4e9", "#cc79a7", "#e69f00")
    for color, (arm, part) in zip(palette, curves.groupby("arm", sort=False)):
        values = part.set_index(["seed", "epoch"])[metric]
        runs_and_mean(ax, values, arm, color=color, lw=0.6, alpha=0.25)  # faint: the means are what is compared
    ax.set(xlabel="epoch", ylabel=ylabel, ylim=(0, 1.12 * max([curves[metric].max(), *levels.values()])))
    names: list[list] = []  # levels that are too close to be told apart share a label
    for label, value in sorted(levels.items(), key=lambda level: level[1]):
        ax.axhline(value, color="black", lw=0.8, ls=":")
        if names and value - names[-1][1] < 0.06 * ax.get_ylim()[1]:
            names[-1] = [f"{names[-1][0]}, {label}", value]
        else:
            names.append([label, value])
    for label, value in names:
        note(ax, label, (curves["epoch"].max(), value), (0, 2), ha="right")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    ax.grid(axis="y", color="#eeeeee")
    return figure
