"""Comparisons of arms: differences with their intervals, by question, by epoch and by size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation

from mimetic.figures.style import VP, interval_bars, note, panels, styled
from mimetic.statistics import ENOUGH

if TYPE_CHECKING:
    from mimetic.experiments.metrics import Metric


@styled
def comparisons(
    table: pd.DataFrame,
    points: pd.DataFrame,
    *,
    xlabel: str = "last-epoch test accuracy minus the default's (points)",
    scale: float = 100,
    band: tuple[float, float] | None = None,
) -> Figure:
    """Every comparison as one row: its label, below it mean and interval, below these its pairs as small dots, their
    number at the right; rows in groups. Narrow enough for a telephone. A hollow dot has too few pairs for a claim.

    Args:
        table: index label; columns group, pairs, difference, low, high, as book.common.study_table gives them; they are
            shown times scale.
        points: columns label, difference: one row a pair.
        band: an interval that is shaded behind all rows, to compare them with.
    """
    figure, axes = panels(_WIDTH, 0.7 + _ROW * _height(table))
    ax = axes[0, 0]
    _comparison_rows(ax, table, points, scale)
    if band is not None:
        ax.axvspan(scale * band[0], scale * band[1], color=VP, alpha=0.12, lw=0)
    ax.set(xlabel=xlabel)
    return figure


_WIDTH, _ROW, _HEADING = 4.8, 0.34, 0.8  # inches; inches; rows


def _height(table: pd.DataFrame) -> float:
    """Rows of a panel: one a comparison, and the groups' headings."""
    return len(table) + _HEADING * table["group"].nunique()


def _comparison_rows(ax, table, points, scale) -> None:
    def write(x, y, text, **kwargs):
        """Over the line at 0."""
        box = dict(fc="white", ec="none", pad=0.8)
        ax.text(x, y, text, transform=ax.get_yaxis_transform(), va="center", bbox=box, **kwargs)

    y = 0.0
    for group, rows in table.groupby("group", sort=False):
        y += _HEADING
        write(0.0, y - 0.1, group, fontsize=8.5, fontweight="bold")
        for label, row in rows.iterrows():
            y += 1
            write(0.0, y - 0.32, label, fontsize=8)
            dots = scale * points.loc[(points["label"] == label) & (points["group"] == group), "difference"]
            ax.plot(dots, np.full(len(dots), y + 0.2), ".", ms=4, color="#999999")
            if np.isfinite(row["low"]):
                ax.plot([scale * row["low"], scale * row["high"]], [y, y], color=VP, lw=1.4)
            ax.plot(scale * row["difference"], y, "o", ms=4.5, mec=VP, mfc=VP if row["pairs"] >= ENOUGH else "white")
            write(1.0, y - 0.32, f"n = {row['pairs']:.0f}", fontsize=7, color="#777777", ha="right")
    ax.axvline(0, color="black", lw=0.8)
    ax.set_yticks([])
    # one very wide interval of three pairs must not squeeze all the others: it is cut at the edge of the picture
    wide = table[table["pairs"] >= ENOUGH]
    low = scale * min(points["difference"].min(), wide["low"].min(), 0)
    high = scale * max(points["difference"].max(), wide["high"].max(), 0)
    room = 0.08 * (high - low) + 0.0005 * scale
    ax.set(ylim=(y + 0.5, 0.1), xlim=(low - room, high + room))
    ax.spines["left"].set_visible(False)
    ax.grid(axis="x", color="#eeeeee")


@styled
def families(shown: Sequence[tuple[Metric, pd.DataFrame, pd.DataFrame]]) -> Figure:
    """Comparisons with several metrics, a panel each as in comparisons; in all of them an arm that is ahead lies to the
    right. A hollow dot has too few pairs for a claim.

    Args:
        shown: metric, table and points of a panel (book.reproduction.shown).
    """
    heights = [_height(table) + 1.8 for _, table, _ in shown]  # and the axis below
    figure, axes = panels(_WIDTH, _ROW * sum(heights), nrows=len(shown), height_ratios=heights)
    for ax, (metric, table, points) in zip(axes[:, 0], shown):
        _comparison_rows(ax, table, points, metric.scale)
        unit = f" ({metric.difference})" if metric.difference not in metric.name else ""
        ax.set_xlabel(f"last-epoch {metric.name} minus the default's{unit}:\nbetter to the right")
        if metric.lower_is_better:
            ax.invert_xaxis()
        ax.xaxis.set_major_locator(MaxNLocator(6))
    return figure


@styled
def gap(table: pd.DataFrame) -> Figure:
    """The paired difference of two arms by epoch: mean, and 95 % interval over seeds as a band.

    table: index epoch; columns difference, low, high (book.head_start.gap_by_epoch)."""
    figure, axes = panels(7.4, 2.4)
    _gap(axes[0, 0], table)
    axes[0, 0].set(ylabel="mimetic − default (points)")
    return figure


@styled
def gaps(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Several of figures.gap side by side, on one scale: title -> table."""
    figure, axes = panels(7.4, 2.6, ncols=len(tables), sharey=True)
    for ax, (title, table) in zip(axes[0], tables.items()):
        _gap(ax, table)
        ax.set_title(f"{title}, {table['pairs'].iloc[-1]:.0f} pairs")
    axes[0, 0].set(ylabel="mimetic − default\n(points of test accuracy)")
    return figure


def _gap(ax, table) -> None:
    if np.isfinite(table["low"]).all():
        ax.fill_between(table.index, 100 * table["low"], 100 * table["high"], color=VP, alpha=0.2, lw=0)
    ax.plot(table.index, 100 * table["difference"], "o-", ms=3, lw=1.5, color=VP)
    ax.axhline(0, color="black", lw=0.8)
    ax.set(xlabel="epoch")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(axis="y", color="#eeeeee")


@styled
def gains(
    tables: dict[str, pd.DataFrame],
    points: dict[str, pd.DataFrame],
    *,
    xlabels: dict[str, str],
    log: Sequence[str] = (),
    otherwise: Mapping[str, pd.DataFrame] = MappingProxyType({}),
) -> Figure:
    """The gain of mimetic over the default against a number, a panel a table: mean and interval, and every pair.

    Args:
        tables: title -> rows with columns x, difference, low, high.
        points: title -> rows with columns x, difference.
        log: titles whose x axis is logarithmic.
        otherwise: title -> rows as in tables, of another recipe that is their label, drawn hollow.
    """
    figure, axes = panels(7.4, 2.8, ncols=len(tables), sharey=True)
    for ax, (title, table) in zip(axes[0], tables.items()):
        table = table.sort_values("x")
        beside = ax.transData + ScaledTranslation(6 / 72, 0, figure.dpi_scale_trans)
        ax.plot(points[title]["x"], 100 * points[title]["difference"], ".", ms=4, color="#999999", transform=beside)
        alike = table["pairs"].nunique() == 1  # a line joins only means of equally many pairs
        _means(ax, table, fmt="o-" if alike else "o", lw=1.3)
        if title in otherwise:
            other, beside = otherwise[title], ScaledTranslation(-6 / 72, 0, figure.dpi_scale_trans)
            _means(ax, other, fmt="o", lw=1, mfc="white", transform=ax.transData + beside)
            for name, row in other.iterrows():
                at = row["x"], 100 * row["high"]
                note(ax, f"{name},\n{row['pairs']:.0f} pairs", at, (4, 4), ha="right", fontsize=7)
        ax.axhline(0, color="black", lw=0.8)
        if title in log:
            ax.set_xscale("log")
        ax.set_xticks(table["x"], [f"{x / 1000:g}k" if x >= 1000 else f"{x:g}" for x in table["x"]])
        ax.minorticks_off()
        each = f", {table['pairs'].iloc[0]:.0f} pairs each" if alike else ""
        ax.set(xlabel=xlabels[title], title=f"{title}{each}")
        ax.grid(axis="y", color="#eeeeee")
    # every pair is in the picture, and every interval that can carry a claim (that of a few pairs has no end)
    every = pd.concat([p["difference"] for p in points.values()])
    carrying = pd.concat([table[table["pairs"] >= ENOUGH] for table in tables.values()])
    every = 100 * pd.concat([every, carrying["low"], carrying["high"]])
    low, high = min(every.min(), 0), max(every.max(), 0)
    room = 0.06 * (high - low)
    axes[0, 0].set(ylabel="mimetic − default\n(points of test accuracy)", ylim=(low - room, high + room))
    for ax in axes[0]:
        ax.margins(x=0.12)
    return figure


def _means(ax, table, **look) -> None:
    """Means with their intervals, of gains by size."""
    bars = 100 * interval_bars(table, "difference")
    ax.errorbar(table["x"], 100 * table["difference"], bars, ms=4.5, color=VP, **look)
