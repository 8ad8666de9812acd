"""Figures of measured speed."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from mimetic.figures.style import COLORS, NULL, panels, styled


@styled
def init_seconds(table: pd.DataFrame) -> Figure:
    """Seconds to initialize a model, a row a model: the floor, ours and the plain way, a dot a measurement.

    table: columns model, ours, plain, floor, ratio (experiments.answers.speed.init_measurements)."""
    models = list(dict.fromkeys(table["model"]))
    figure, axes = panels(7.4, 0.8 + 0.42 * len(models))
    ax = axes[0, 0]
    kinds = (("floor", "noise and two products (floor)", "#999999", "|"), ("ours", "mimetic_init_", COLORS["mimetic"], "o"),
             ("plain", "full double-precision SVD a head", "#d55e00", "s"))  # fmt: skip
    for y, model in enumerate(models):
        part = table[table["model"] == model]
        ax.plot([part["ours"].median(), part["plain"].median()], [y, y], color=NULL, lw=3, zorder=0)
        ax.annotate(f"{part['ratio'].median():.1f}×", ((part["ours"].median() * part["plain"].median()) ** 0.5, y), (0, 4),
                    textcoords="offset points", ha="center", fontsize=8)  # fmt: skip
        for name, label, color, marker in kinds:
            ax.plot(part[name], [y] * len(part), marker, color=color, ms=8 if marker == "|" else 5, mew=1.5 if marker == "|" else 0.5,
                    label=label if not y else None)  # fmt: skip
    ax.set(xscale="log", xlabel="seconds", yticks=range(len(models)), yticklabels=models, ylim=(len(models) - 0.5, -0.6))
    ax.grid(axis="x", color="#eeeeee")
    figure.legend(*ax.get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


@styled
def step_shares(profiles: pd.DataFrame) -> Figure:
    """Where the time of a training step goes: a bar a machine, left by phase, right by kind of operation.

    profiles: columns label, measure (phase or kind), name, share (experiments.answers.speed.profiles)."""
    labels = list(dict.fromkeys(profiles["label"]))
    figure, axes = panels(7.4, 2.0 + 0.4 * len(labels), ncols=2, sharey=True)
    palettes = {"phase": ("#999999", "#56b4e9", "#0072b2", "#009e73"), "kind": ("#cc79a7", "#666666", "#d55e00", "#e69f00", "#8c6d46")}
    for ax, measure, title in ((axes[0, 0], "phase", "by phase"), (axes[0, 1], "kind", "by kind of operation")):
        part = profiles[profiles["measure"] == measure].pivot_table(index="label", columns="name", values="share", sort=False).loc[labels]
        left = pd.Series(0.0, index=labels)
        for color, name in zip(palettes[measure], part.columns, strict=False):
            width = 100 * part[name]
            ax.barh(range(len(labels)), width, left=left, color=color, label=name, height=0.6)
            for y, (start, value) in enumerate(zip(left, width)):
                if value > 7:
                    ax.text(start + value / 2, y, f"{value:.0f} %", ha="center", va="center", fontsize=7.5, color="white")
            left = left + width
        ax.set(title=title, xlabel="share of the time (%)", xlim=(0, 100), yticks=range(len(labels)), yticklabels=labels)
    axes[0, 0].invert_yaxis()
    for ax, side in zip(axes[0], ("left", "right")):
        figure.legend(*ax.get_legend_handles_labels(), loc=f"outside lower {side}", ncols=1, fontsize=7.5)
    return figure
