"""Figures of training runs: curves, pairs, comparisons of many arms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullLocator
from matplotlib.transforms import ScaledTranslation

from mimetic.figures import style
from mimetic.figures.style import COLORS, LABELS, QK, VP, interval_bars, panels, runs_and_mean, styled
from mimetic.statistics import ENOUGH

if TYPE_CHECKING:
    from mimetic.experiments.metrics import Metric


@styled
def learning_curves(curves: pd.DataFrame) -> Figure:
    """One thin line a run, one thick line an arm's mean, a band from the lowest run to the highest. curves: columns
    arm, seed, epoch and test_accuracy.
    """
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
    initialization, a line joins the pair. Frames as in learning_curves; finals: one row a run."""
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
        ax.annotate(
            f"seed {seed}", (at, value), (5, 0), textcoords="offset points", fontsize=7.5, va="center", color="#555555"
        )
    for i, arm in enumerate(arms):
        ax.plot(np.full(len(wide), i), wide[arm], "o", ms=5, color=COLORS[arm])
    ax.set_xticks(range(len(arms)), [LABELS[arm].split(" (")[0] for arm in arms])
    ax.set(xlim=(-0.35, 1.55), ylabel="last-epoch test accuracy (%)")


@styled
def overview(profile: pd.DataFrame, finals: pd.DataFrame) -> Figure:
    """The claim in one figure: the pattern in a trained model, the same pattern made from a formula, and what it buys.

    profile: as pattern.overview_profiles gives it; finals: one row a run.
    """
    figure, axes = panels(7.6, 2.7, ncols=3)
    colors = {"vp": VP, "qk": QK, "untrained": "#7a7a7a"}
    names = {"vp": "$W_VW_{proj}$", "qk": "$W_QW_K^T$", "untrained": "untrained"}
    titles = {"trained": "1 · a trained model, all layers", "made": "2 · made by a formula"}
    for ax, panel in zip(axes[0], ("trained", "made")):
        ax.axhline(0, color="black", lw=0.6)
        lines = profile[profile["panel"] == panel].groupby(["label", "apart", "layer"], sort=False)
        for (label, apart, _), part in lines:
            ax.plot(
                part.offset,
                part.value,
                color=colors[label],
                lw=1.8 if apart else 0.5,
                alpha=1 if apart else 0.5,
                label=names[label] if apart else "_",
            )
        ax.set(
            title=titles[panel],
            xlabel="places off the diagonal",
            ylabel="mean entry / off-diagonal sd" if panel == "trained" else "",
        )
        ax.legend(loc="lower right", fontsize=7.5)
    limits = [ax.get_ylim() for ax in axes[0, :2]]
    for ax in axes[0, :2]:
        ax.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
    _pairs(axes[0, 2], finals)
    axes[0, 2].set_title("3 · CIFAR-10 (small ViT)")
    return figure


@styled
def comparisons(
    table: pd.DataFrame,
    points: pd.DataFrame,
    *,
    xlabel: str = "last-epoch test accuracy minus the default's (points)",
    scale: float = 100,
    band: tuple[float, float] | None = None,
) -> Figure:
    """Every comparison as one row: its pairs as small dots, their mean and interval above, their number at the right;
    rows in groups. A hollow dot has too few pairs for a claim.

    Args:
        table: index label; columns group, pairs, difference, low, high, as answers.study_table gives them; they are
            shown times scale.
        points: columns label, difference: one row a pair.
        band: an interval that is shaded behind all rows, to compare them with.
    """
    figure, axes = panels(7.4, 0.9 + _ROW * _height(table))
    ax = axes[0, 0]
    _comparison_rows(ax, table, points, scale)
    if band is not None:
        ax.axvspan(scale * band[0], scale * band[1], color=VP, alpha=0.12, lw=0)
    ax.set(xlabel=xlabel)
    return figure


_ROW = 0.3  # inches
_LABEL = 31  # characters; longer labels take two lines, so that a narrow screen shows the rows beside them


def _height(table: pd.DataFrame) -> int:
    """Rows of a panel: one a comparison, one a group's heading."""
    return len(table) + table["group"].nunique()


def _comparison_rows(ax, table, points, scale) -> None:
    y, ticks = 0.0, []
    for group, rows in table.groupby("group", sort=False):
        y += 1
        ax.text(
            0.0,
            y,
            group,
            transform=ax.get_yaxis_transform(),
            fontsize=8.5,
            fontweight="bold",
            va="center",
            ha="left",
            bbox=dict(fc="white", ec="none", pad=1.5),
        )
        for label, row in rows.iterrows():
            y += 1
            dots = scale * points.loc[(points["label"] == label) & (points["group"] == group), "difference"]
            ax.plot(dots, np.full(len(dots), y + 0.16), ".", ms=4, color="#999999")
            if np.isfinite(row["low"]):
                ax.plot([scale * row["low"], scale * row["high"]], [y, y], color=VP, lw=1.4)
            ax.plot(scale * row["difference"], y, "o", ms=4.5, mec=VP, mfc=VP if row["pairs"] >= ENOUGH else "white")
            ax.text(
                1.0,
                y,
                f"n = {row['pairs']:.0f}",
                transform=ax.get_yaxis_transform(),
                fontsize=7,
                color="#777777",
                ha="right",
                va="center",
            )
            ticks.append((y, label))
    ax.axvline(0, color="black", lw=0.8)
    ax.set_yticks(
        [t for t, _ in ticks],
        [fill(label, _LABEL, break_on_hyphens=False) for _, label in ticks],
        fontsize=8,
        linespacing=1.05,
    )
    # one very wide interval of three pairs must not squeeze all the others: it is cut at the edge of the picture
    wide = table[table["pairs"] >= ENOUGH]
    low = scale * min(points["difference"].min(), wide["low"].min(), 0)
    high = scale * max(points["difference"].max(), wide["high"].max(), 0)
    room = 0.08 * (high - low) + 0.0005 * scale
    ax.set(ylim=(y + 0.8, 0.2), xlim=(low - room, high + 2 * room))  # on the right the numbers of pairs
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.grid(axis="x", color="#eeeeee")


@styled
def families(shown: Sequence[tuple[Metric, pd.DataFrame, pd.DataFrame]]) -> Figure:
    """Comparisons with several metrics, a panel each as in comparisons; in all of them an arm that is ahead lies to the
    right. A hollow dot has too few pairs for a claim.

    Args:
        shown: metric, table and points of a panel (experiments.answers.reproduction.shown).
    """
    heights = [_height(table) + 2.2 for _, table, _ in shown]  # and the axis below
    figure, axes = panels(7.4, _ROW * sum(heights), nrows=len(shown), height_ratios=heights)
    for ax, (metric, table, points) in zip(axes[:, 0], shown):
        _comparison_rows(ax, table, points, metric.scale)
        unit = f" ({metric.difference})" if metric.difference not in metric.name else ""
        ax.set_xlabel(f"last-epoch {metric.name} minus the default's{unit}: better to the right")
        if metric.lower_is_better:
            ax.invert_xaxis()
    return figure


@styled
def gap(table: pd.DataFrame) -> Figure:
    """The paired difference of two arms by epoch: mean, and 95 % interval over seeds as a band.

    table: index epoch; columns difference, low, high (experiments.answers.vision.gap_by_epoch)."""
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
        otherwise: title -> rows as in tables, of another recipe, drawn hollow.
    """
    figure, axes = panels(7.4, 2.8, ncols=len(tables), sharey=True)
    for ax, (title, table) in zip(axes[0], tables.items()):
        table = table.sort_values("x")
        beside = ax.transData + ScaledTranslation(6 / 72, 0, figure.dpi_scale_trans)
        ax.plot(points[title]["x"], 100 * points[title]["difference"], ".", ms=4, color="#999999", transform=beside)
        alike = table["pairs"].nunique() == 1  # a line joins only means of equally many pairs
        ax.errorbar(
            table["x"],
            100 * table["difference"],
            100 * interval_bars(table, "difference"),
            fmt="o-" if alike else "o",
            ms=4.5,
            lw=1.3,
            color=VP,
        )
        if title in otherwise:
            other = otherwise[title]
            ax.errorbar(
                other["x"],
                100 * other["difference"],
                100 * interval_bars(other, "difference"),
                fmt="o",
                ms=4.5,
                lw=1,
                color=VP,
                mfc="white",
                transform=ax.transData + ScaledTranslation(-6 / 72, 0, figure.dpi_scale_trans),
            )
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


@styled
def before_and_after(products: pd.DataFrame, maps: pd.DataFrame, *, uniform_distance: float) -> Figure:
    """What training does to the diagonals and to the distance attended, by layer:
    rows QK, V·proj, distance; a column an arm.

    Args:
        products: columns arm, seed, when, layer, head, product, z (mean diagonal / off-diagonal sd).
        maps: columns arm, seed, when, layer, head, distance (patches).
        uniform_distance: of a head that attends everywhere alike.
    """
    arms = list(dict.fromkeys(products["arm"]))
    figure, axes = panels(7.4, 6.4, nrows=3, ncols=len(arms), sharex=True, sharey="row")
    rows = (("$W_QW_K^T$:\ndiagonal / off-diagonal sd", products[products["product"] == "qk"], "z", QK),
            ("$W_VW_{proj}$:\ndiagonal / off-diagonal sd", products[products["product"] == "vp"], "z", VP),
            ("mean distance attended\n(patches)", maps, "distance", "#009e73"))  # fmt: skip
    for i, (title, frame, column, color) in enumerate(rows):
        for ax, arm in zip(axes[i], arms):
            style.before_and_after(ax, frame[frame["arm"] == arm], column, color)
            ax.axhline(uniform_distance if column == "distance" else 0, color="black", lw=0.7)
            if i == 0:
                ax.set_title(LABELS.get(arm, arm))
            if i == len(rows) - 1:
                ax.set_xlabel("layer")
        axes[i, 0].set_ylabel(title, fontsize=8)
    axes[2, 0].text(
        0.02,
        uniform_distance,
        "uniform attention",
        transform=axes[2, 0].get_yaxis_transform(),
        va="bottom",
        fontsize=7.5,
    )
    handles = [Line2D([], [], ls="", marker="o", ms=5, mec="#555555", mfc=face) for face in ("white", "#555555")]
    figure.legend(handles, ("before training", "after training"), loc="outside lower center", ncols=2)
    return figure


@styled
def minutes_by_share(lines: pd.DataFrame, points: pd.DataFrame, *, target: float) -> Figure:
    """How long a run takes against the share of the card's peak that it reaches:
    a line a model, a dot what was measured.

    Args:
        lines: columns label, share (0 to 1), minutes.
        points: the same columns, of records; may be empty.
        target: minutes, a dashed line.
    """
    figure, axes = panels(7.4, 2.8)
    ax = axes[0, 0]
    for (label, part), color in zip(lines.groupby("label", sort=False), (VP, QK, "#009e73")):
        ax.plot(100 * part["share"], part["minutes"], color=color, lw=1.6, label=label)
        dots = points[points["label"] == label] if len(points) else points
        ax.plot(
            100 * dots["share"],
            dots["minutes"],
            "o",
            ms=6,
            color=color,
            label=f"{label}, measured, everything included" if len(dots) else None,
        )
    ax.axhline(target, color="black", lw=0.8, ls="--")
    ax.text(
        100 * lines["share"].max(), target * 1.06, f"target: {target:g} minutes", ha="right", va="bottom", fontsize=8
    )
    ax.set(xscale="log", yscale="log", xlabel="share of the card's bfloat16 peak (%)", ylabel="minutes a run")
    for axis, ticks in ((ax.xaxis, (5, 10, 20, 40)), (ax.yaxis, (2, 5, 10, 20, 50))):
        axis.set_ticks(ticks, [str(t) for t in ticks])
        axis.set_minor_locator(NullLocator())
    ax.legend(loc="upper right")
    ax.grid(color="#eeeeee")
    return figure
