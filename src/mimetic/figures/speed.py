"""Figures of measured speed, and of the time that it amounts to."""

from __future__ import annotations

import pandas as pd
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from mimetic.figures.style import COLORS, NULL, QK, VP, note, one_each, panels, styled

PLAIN = "#d55e00"


@styled
def init_seconds(table: pd.DataFrame) -> Figure:
    """Seconds to initialize a model, a row a model: the floor and ours with as many threads as were measured, the plain
    way with those (full) and with fewer (hollow), a dot a measurement; the number is the ratio of the medians, with the
    plain way at its faster number of threads.

    table: columns model, threads, device, ours, plain, floor (book.speed.init_measurements)."""
    models, most = list(dict.fromkeys(table["model"])), table["threads"].max()
    figure, axes = panels(7.4, 0.95 + 0.42 * len(models))
    ax = axes[0, 0]
    for y, model in enumerate(models):
        part = table[table["model"] == model]
        whole, fewer = part[part["threads"] == part["threads"].max()], part[part["threads"] < part["threads"].max()]
        ours, plain = whole["ours"].median(), part.groupby("threads")["plain"].median().min()
        ax.plot([ours, plain], [y, y], color=NULL, lw=3, zorder=0)
        note(ax, f"{plain / ours:.1f}×", ((ours * plain) ** 0.5, y), (0, 4), ha="center", fontsize=8)
        for values, label, look in (
            (whole["floor"], "noise and two products (floor)", dict(marker="|", ms=8, mew=1.5, color="#999999")),
            (whole["ours"], "mimetic_init_", dict(marker="o", color=COLORS["mimetic"])),
            (whole["plain"], "full double-precision SVD per head", dict(marker="s", color=PLAIN)),
            (fewer["plain"], "the same on one thread", dict(marker="s", color=PLAIN, mfc="none")),
        ):
            if len(values):
                ax.plot(values, [y] * len(values), ls="", **{"ms": 5, "mew": 0.9, **look}, label=label)
    ax.set_title(f"{', '.join(dict.fromkeys(table['device']))}, {most} threads", fontsize=9)
    ax.set(xscale="log", xlabel="seconds", ylim=(len(models) - 0.5, -0.6))
    ax.set_yticks(range(len(models)), models)
    ax.grid(axis="x", color="#eeeeee")
    figure.legend(*one_each(ax), loc="outside lower center", ncols=4, fontsize=8)
    return figure


LEAST_SHOWN = 0.02  # of the time: what takes less on every machine cannot be seen in a bar


@styled
def step_shares(profiles: pd.DataFrame) -> Figure:
    """Where the time of a training step goes: a bar a machine, left by phase, right by kind of operation.

    profiles: columns label, measure (phase or kind), name, share (book.speed.profiles)."""
    labels = list(dict.fromkeys(profiles["label"]))
    figure, axes = panels(7.4, 2.0 + 0.4 * len(labels), ncols=2, sharey=True)
    palettes = {
        "phase": ("#999999", "#56b4e9", "#0072b2", "#009e73"),
        "kind": ("#cc79a7", "#666666", "#d55e00", "#e69f00", "#8c6d46"),
    }
    for ax, measure, title in ((axes[0, 0], "phase", "by phase"), (axes[0, 1], "kind", "by kind of operation")):
        part = profiles[profiles["measure"] == measure]
        part = part[part.groupby("name")["share"].transform("max") >= LEAST_SHOWN]
        part = part.pivot_table(index="label", columns="name", values="share", sort=False).loc[labels]
        left = pd.Series(0.0, index=labels)
        for color, name in zip(palettes[measure], part.columns, strict=False):
            width = 100 * part[name]
            ax.barh(range(len(labels)), width, left=left, color=color, label=name, height=0.6)
            for y, (start, value) in enumerate(zip(left, width)):
                if value > 9:
                    dark = sum(w * c for w, c in zip((0.3, 0.6, 0.1), to_rgb(color))) < 0.5
                    look = {"fontsize": 7.5, "color": "white" if dark else "black"}
                    ax.text(start + value / 2, y, f"{value:.0f} %", ha="center", va="center", **look)
            left = left + width
        ax.set(title=title, xlabel="share of the time (%)", xlim=(0, 100))
        ax.set_yticks(range(len(labels)), [label.replace("; ", "\n") for label in labels])
    axes[0, 0].invert_yaxis()
    for ax, side in zip(axes[0], ("left", "right")):
        figure.legend(*ax.get_legend_handles_labels(), loc=f"outside lower {side}", ncols=1, fontsize=7.5)
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
        measured = f"{label}, measured, everything included" if len(dots) else None
        ax.plot(100 * dots["share"], dots["minutes"], "o", ms=6, color=color, label=measured)
    ax.axhline(target, color="black", lw=0.8, ls="--")
    at = 100 * lines["share"].max(), target * 1.06
    ax.text(*at, f"target: {target:g} minutes", ha="right", va="bottom", fontsize=8)
    ax.set(xscale="log", yscale="log", xlabel="share of the card's bfloat16 peak (%)", ylabel="minutes a run")
    for axis, ticks in ((ax.xaxis, (5, 10, 20, 40)), (ax.yaxis, (2, 5, 10, 20, 50))):
        axis.set_ticks(ticks, [str(t) for t in ticks])
        axis.set_minor_locator(NullLocator())
    ax.legend(loc="upper right")
    ax.grid(color="#eeeeee")
    return figure
