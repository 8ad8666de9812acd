"""Figures of the language chapters: curves and their paired gaps, products before and after, gain against attention's
share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mimetic.figures.style import (
    COLORS,
    LABELS,
    TEXT_POSITIONS,
    by_layer,
    diagonal_rows,
    interval_bars,
    note,
    one_each,
    panels,
    runs_and_mean,
    styled,
)
from mimetic.statistics import ENOUGH

SWEEPS = ("#8c6d46", "#0072b2")  # colours of two sweeps in one panel


@styled
def curves_and_gaps(curves: pd.DataFrame, *, reference: str, title: str = "") -> Figure:
    """Left: a thin line a run, a thick line an arm's mean. Right: each arm minus the reference arm of the same seed, so
    0 is the default; below it is better.

    curves: columns arm, seed, step and test_bits_per_byte; the arms in the order in which they appear.
    """
    figure, axes = panels(7.4, 3.3 if title else 3.1, ncols=2)
    if title:
        figure.suptitle(title, fontsize=9.5)
    left, right = axes[0]
    wide = _by_arm(curves)
    for arm in dict.fromkeys(curves["arm"]):
        runs_and_mean(left, wide[arm].dropna(), arm)
    _gaps(right, wide, reference)
    left.set(xlabel="step", ylabel="bits per byte")
    right.set(xlabel="step", ylabel="bits per byte, minus the default's")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    left.grid(axis="y", color="#eeeeee")
    return figure


def _by_arm(curves: pd.DataFrame) -> pd.DataFrame:
    """Bits per byte: index seed, step, a column an arm."""
    return curves.pivot_table(index=["seed", "step"], columns="arm", values="test_bits_per_byte", sort=False)


def _gaps(ax: Axes, wide: pd.DataFrame, reference: str) -> None:
    """Each arm minus the reference arm of the same seed; wide: as _by_arm gives it."""
    for arm in wide.columns.drop(reference):
        runs_and_mean(ax, (wide[arm] - wide[reference]).dropna(), arm)
    ax.axhline(0, color=COLORS.get(reference, "black"), lw=1.2)
    ax.grid(axis="y", color="#eeeeee")


@styled
def gaps_on_the_way(sets: Mapping[str, pd.DataFrame]) -> Figure:
    """A panel a set of runs, title -> curves as curves_and_gaps takes them: each arm minus the default of the same
    seed, a thin line a run, a thick line their mean."""
    figure, axes = panels(7.4, 3.1, ncols=len(sets), sharey=True)
    for ax, (title, curves) in zip(axes[0], sets.items(), strict=True):
        _gaps(ax, _by_arm(curves), "gpt2")
        ax.set(xlabel="step", title=fill(title, 72 // len(sets)))
        ax.legend(fontsize=7.5)
    axes[0, 0].set(ylabel="bits per byte, minus the default's")
    return figure


@styled
def products_before_and_after(products: pd.DataFrame) -> Figure:
    """What training does to the diagonals, by layer: rows QK and V·proj, a column an arm; hollow before, filled after.

    products: columns arm, seed, when, layer, product, z (mean diagonal / off-diagonal sd).
    """
    figure, axes = by_layer(4.4, diagonal_rows(products), "arm")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


@styled
def attention_by_distance(table: pd.DataFrame) -> Figure:
    """How much of its attention a token gives to itself and to each token before it, in percent on a logarithmic axis;
    a panel a kind of positions, a line an arm.

    table: columns positions, arm, back, share (experiments.yardsticks.attention_by_distance).
    """
    kinds = list(dict.fromkeys(table["positions"]))
    figure, axes = panels(7.4, 2.9, ncols=len(kinds), sharey=True)
    for ax, kind in zip(axes[0], kinds):
        for arm, line in table[table["positions"] == kind].groupby("arm", sort=False):
            look = {"color": COLORS.get(arm, "black"), "label": LABELS.get(arm, arm)}
            ax.plot(line["back"], 100 * line["share"], "o-", ms=2.5, lw=1.2, **look)
        ax.set(title=TEXT_POSITIONS.get(kind, kind), xlabel="tokens back (0: to itself)", yscale="log")
        ax.grid(color="#eeeeee")
    axes[0, 0].set_ylabel("attention (%)")
    axes[0, 0].set_yticks([0.1, 1, 10, 100], ["0.1", "1", "10", "100"])
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


@styled
def rates(table: pd.DataFrame, *, plateau: float, groups: Mapping[str, Sequence[str]]) -> Figure:
    """Held-out bits per byte against the learning rate, a line an arm, its best rate as a large dot.

    Args:
        table: arms in rows, learning rates in columns; nan where nothing was run.
        plateau: bits per byte of predicting from the last character alone, a dashed line.
        groups: title -> the arms of a panel.
    """
    figure, axes = panels(7.4, 4.3, ncols=len(groups), sharey=True)
    palette = ("#56b4e9", "#009e73", "#cc79a7", "#d55e00", "#8c6d46", "#000000", "#999933")
    every = dict.fromkeys(arm for arms in groups.values() for arm in arms)
    looks = {arm: (COLORS[arm], "-", 2) for arm in every if arm in COLORS}
    # the second time round dashed
    others = ((color, line, 1) for line in ("-", "--") for color in palette)
    looks |= dict(zip((arm for arm in every if arm not in COLORS), others))
    for ax, (title, arms) in zip(axes[0], groups.items()):
        for arm in (a for a in arms if a in table.index):
            row = table.loc[arm].dropna()
            color, line, width = looks[arm]
            ax.plot(row.index, row, "o", ls=line, ms=3, lw=width, color=color, label=LABELS.get(arm, arm))
            ax.plot(row.idxmin(), row.min(), "o", ms=8, color=color)
        ax.axhline(plateau, color="black", lw=0.8, ls="--")
        note(ax, "from the last character alone", (table.columns.min(), plateau), (0, 3))
        ax.set(xscale="log", xlabel="learning rate", title=title)
        ax.set_xticks(list(table.columns), [f"{c:g}" for c in table.columns])
        ax.minorticks_off()
        ax.grid(color="#eeeeee")
        ax.legend(loc="upper left", bbox_to_anchor=(0, -0.2), fontsize=7.5)
    axes[0, 0].set(ylabel="validation bits per byte")
    return figure


@styled
def share_and_gain(
    points: pd.DataFrame, *, sweeps: Mapping[str, str], named: Mapping[tuple[str, str], tuple[str, str]]
) -> Figure:
    """The relative gain with the paper's signs against attention's share of all parameters, mean and 95 % interval of
    each point. Left: sweeps, one colour each, their points named; right: every model, and a few that are named.
    Hollow: too few pairs for a claim.

    points: as book.gains.gain_points gives them. sweeps: their experiments, and what the legend calls each. named:
    (experiment, point) -> what stands beside it on the right, and on which side of it ("left", "right").
    """
    points = points[points["signs"] == "QK +, V·proj −"]  # the paper's, as book.gains names them
    figure, (axes,) = panels(7.4, 3.3, ncols=2)
    left = points[points["experiment"].isin(list(sweeps))]
    titles = ("one GPT, attention layers of one size", "every model of this book")
    for ax, part, title in zip(axes, (left, points), titles):
        ax.axhline(0, color="black", lw=0.8)
        ax.set(title=title, xlabel="attention's share of all parameters (%)", xlim=(0, 70))
        ax.grid(color="#eeeeee")
        if len(part):
            low, high = 100 * min(part["gain"].min(), 0), 100 * max(part["gain"].max(), 0)
            room = 0.35 * (high - low) + 0.1
            ax.set_ylim(low - room, high + (2 * room if ax is axes[0] else room))  # intervals that go further are cut
        else:
            ax.text(0.5, 0.6, "no runs yet", transform=ax.transAxes, ha="center")
            ax.set_yticks([])
    ax = axes[0]  # doublings, as the correlation and the slopes have them, and room for the names
    ax.set(xscale="log", xlim=(7, 75), xticks=(10, 20, 40, 60), xticklabels=(10, 20, 40, 60))
    ax.minorticks_off()
    for i, (color, (experiment, name)) in enumerate(zip(SWEEPS, sweeps.items())):
        rows = left[left["experiment"] == experiment]
        # the sweeps have nearly the same shares: side by side
        _gains_at(ax, rows, 100 * (1 + 0.03 * (i - 0.5)) * rows["share"], color, label=name)
    for point, rows in left.groupby("point"):
        at = 100 * rows["share"].iloc[0], 0.98
        note(ax, point, at, (0, 0), xycoords=ax.get_xaxis_transform(), fontsize=7, rotation=90, ha="center", va="top")
    ax.set_ylabel("gain, % of the default's metric")
    if len(left):
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.2), "ncols": 3}
        ax.legend(*one_each(ax), fontsize=8, columnspacing=0.8, handletextpad=0, frameon=False, **below)
    ax = axes[1]
    keys = pd.Series(list(zip(points["experiment"], points["point"])), index=points.index, dtype=object)
    others, some = points[~keys.isin(list(named))], points[keys.isin(list(named))]
    ax.plot(100 * others["share"], 100 * others["gain"], "o", ms=3, color="#b5b5b5", mew=0)
    for key, (label, where) in named.items():
        rows = some[keys[some.index] == key]
        beside = 100 * _side_by_side(some["share"].round(2)) * some["share"]
        _gains_at(ax, rows, beside[rows.index], "black")
        offset, ha = ((15, 0), "left") if where == "right" else ((-15, 0), "right")
        look = {
            "bbox": {"fc": "white", "ec": "none", "pad": 1},
            "arrowprops": {"arrowstyle": "-", "lw": 0.6, "shrinkB": 3},
        }
        for at in zip(beside[rows.index], 100 * rows["gain"]):
            note(ax, label, at, offset, ha=ha, va="center", fontsize=7, zorder=4, **look)
    return figure


def _gains_at(ax: Axes, rows: pd.DataFrame, x: pd.Series, color: str, *, label: str = "") -> None:
    """The relative gains of points with their intervals; hollow with too few pairs for a claim."""
    for enough, some in rows.groupby(rows["pairs"] >= ENOUGH):
        bars, look = 100 * interval_bars(some, "gain"), {"color": color, "mfc": color if enough else "white"}
        ax.errorbar(x[some.index], 100 * some["gain"], bars, fmt="o", ms=4, lw=0.9, label=label, zorder=3, **look)


def _side_by_side(shares: pd.Series) -> pd.Series:
    """Factors around 1, different ones for equal shares."""
    same = shares.groupby(shares)
    return 1 + 0.012 * (same.cumcount() - (same.transform("size") - 1) / 2)
