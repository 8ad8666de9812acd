"""Figures of weights, products and attention maps, and of counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mimetic.figures.style import LABELS, NULL, QK, RIGHT, SIGNED, VP, WRONG, note, panels, styled
from mimetic.measure import LAYER_HEAD


@styled
def matrices(products: Mapping[str, np.ndarray], *, rows: int = 1, title: str = "") -> Figure:
    """Signed products as pictures, their first 64 rows and columns, under a common title if one is given; each has
    its own scale, the 99.5th percentile of its size, given below it: blue negative, red positive, white 0."""
    columns = -(-len(products) // rows)
    width = 7.4
    figure, axes = panels(width, rows * (width / columns + 0.38), nrows=rows, ncols=columns)
    if title:
        figure.suptitle(title, fontsize=9.5)
    for ax in axes.flat[len(products) :]:
        ax.axis("off")
    for ax, (name, P) in zip(axes.flat, products.items()):
        part = np.asarray(P, dtype=np.float64)[:64, :64]
        scale = max(np.quantile(np.abs(part), 0.995), 1e-12)
        ax.imshow(part, cmap=SIGNED, vmin=-scale, vmax=scale)
        ax.set_title(name, fontsize=8.5)
        ax.set(xticks=[], yticks=[])
        ax.set_xlabel(f"± {scale:.2g}", fontsize=7.5)
        ax.spines[["top", "right"]].set_visible(True)
    return figure


MANY_HEADS = 150  # of a model: more dots than a panel can show


@styled
def z_by_layer(measurements: pd.DataFrame) -> Figure:
    """z = mean diagonal / off-diagonal sd of every layer, one panel a model: W_Q W_K^T (a dot a head, or a band from
    their 10th to their 90th percentile where there are more than MANY_HEADS; a line for their mean) and W_V W_proj of
    the layer (squares); the grey band is chance, ±2 sd of the null.

    measurements: columns of measure.measure and `title`, the panel; `fold` must be constant within a panel.
    """
    titles = list(dict.fromkeys(measurements["title"]))
    columns = 2 if len(titles) in (2, 4) else 3  # 3 would leave one panel of 4 alone in its row
    rows = -(-len(titles) // columns)
    figure, axes = panels(7.4, 0.5 + 2.0 * rows, nrows=rows, ncols=columns, sharey=True)
    for ax in axes.flat[len(titles) :]:
        ax.axis("off")
    for i, (ax, title) in enumerate(zip(axes.flat, titles)):
        part = measurements[measurements["title"] == title]
        qk, vp = part[part["product"] == "qk"], part[(part["product"] == "vp") & (part["head"] == LAYER_HEAD)]
        band = part.groupby("layer")[["null_mean", "null_sd"]].mean()
        low, high = band.null_mean - 2 * band.null_sd, band.null_mean + 2 * band.null_sd
        ax.fill_between(band.index, low, high, color=NULL, label="chance (±2 sd)")
        ax.axhline(0, color="black", lw=0.6)
        if many := len(qk) > MANY_HEADS:
            # a column that was joined to an empty one holds objects
            most = qk.z.astype(float).groupby(qk.layer).quantile([0.1, 0.9]).unstack()
            ax.fill_between(most.index, most[0.1], most[0.9], color=QK, alpha=0.2, lw=0)
        else:
            ax.plot(qk.layer, qk.z, ".", ms=3, color=QK, alpha=0.5)
        means = qk.groupby("layer").z.mean()
        ax.plot(means.index, means, "-", color=QK, lw=1.3, label=r"$W_QW_K^\top$ (dots: heads, line: mean)")
        ax.plot(vp.layer, vp.z, "s-", ms=2.5 if many else 3.5, lw=1.3, color=VP, label="$W_VW_{proj}$")
        ax.set_title(title, fontsize=8.5)
        ax.set_yscale("symlog", linthresh=1)
        ax.yaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda v, _: f"{v:g}"))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        if i % columns == 0:
            ax.set_ylabel("z = diagonal / off-diag. sd")
        if i >= len(titles) - columns:
            ax.set_xlabel("layer")
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8.5)
    return figure


@styled
def profiles(
    frame: pd.DataFrame, *, title: str = "", colors: Sequence[str] = (VP, QK, "#7a7a7a", "#009e73", "#cc79a7")
) -> Figure:
    """Mean entry of a product at each distance from its diagonal: a spike at 0 is the semi-diagonal pattern.

    frame: columns offset, value, panel, and label (a line each; one of the colours a label, in order).
    """
    names = list(dict.fromkeys(frame["panel"]))
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure, axes = panels(7.4, 0.5 + 1.9 * rows, nrows=rows, ncols=columns)
    for ax in axes.flat[len(names) :]:
        ax.axis("off")
    labels = list(dict.fromkeys(frame["label"]))
    colors = dict(zip(labels, colors))
    if title:
        figure.suptitle(title, fontsize=9)
    for ax, name in zip(axes.flat, names):
        for label in labels:
            part = frame[(frame["panel"] == name) & (frame["label"] == label)].sort_values("offset")
            ax.plot(part.offset, part.value, lw=1.2, color=colors[label], label=label)
            # else a small spike is hidden by a large one
            ax.plot(0, part.value[part.offset == 0].iloc[0], "o", ms=3, color=colors[label])
        ax.axhline(0, color="black", lw=0.6)
        ax.set_title(name, fontsize=8.5)
        ax.set_xlabel("column − row")
    axes.flat[0].set_ylabel("mean entry / off-diagonal sd")
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(labels))
    return figure


@styled
def truncation(table: pd.DataFrame) -> Figure:
    """Left: mean diagonal left after truncation to rank k, all draws; right: share of the squared norm that is kept.
    table: as book.construction.truncation gives it."""
    beta = 0.7  # of the table's targets
    figure, axes = panels(7.4, 2.6, ncols=2)
    left, right = axes[0]
    left.plot(table["k/d"], table.diag_mean, ".", ms=4, color=QK)
    means = table.groupby("k/d")[["diag_mean", "kept"]].mean()
    left.plot(means.index, means.diag_mean, color=QK, lw=1.2, label="after truncation")
    left.axhline(beta, color="#7a7a7a", ls="--", lw=1, label=f"β = {beta:g} of the target")
    left.plot([0, 1], [0, beta], color="#7a7a7a", ls=":", lw=1, label="β·k/d: random directions")
    for rank, name, x in ((1 / 3, "k/d = 1/3", 0.04), (1 / 8, "1/8", 0.015)):
        at = float(np.interp(rank, means.index, means.diag_mean))
        left.annotate(f"{at:.2f} at {name}", (rank, at), (x, at + 0.13), arrowprops={"arrowstyle": "-", "lw": 0.7})
    left.set(ylabel="mean diagonal", title=r"Diagonal of $W_QW_K^\top$", ylim=(0, beta * 1.15))
    right.plot(table["k/d"], table.kept, ".", ms=4, color=QK)
    right.plot(means.index, means.kept, color=QK, lw=1.2)
    right.plot([0, 1], [0, 1], color="#7a7a7a", ls=":", lw=1, label="k/d: random directions")
    right.set(ylabel="share of squared norm", title="What the best rank-k keeps", ylim=(0, 1.05))
    for ax in (left, right):
        ax.set(xlabel="rank kept, k/d", xlim=(0, 1))
        ax.legend(loc="lower right")
    return figure


@styled
def orientations(table: pd.DataFrame) -> Figure:
    """The transposition trap: the two orientations agree in the mean diagonal, a draw a dot, and differ in its
    spread."""
    figure, axes = panels(7.4, 2.3, ncols=2)
    for row, (color, (_, part)) in enumerate(zip((RIGHT, WRONG), table.groupby("stored", sort=False))):
        jitter = row + np.linspace(-0.2, 0.2, len(part))
        for ax, values in zip(axes[0], (part.diag_mean, part.diag_sd)):
            ax.plot(values, jitter, ".", ms=4, color=color)
    names = list(dict.fromkeys(table["stored"]))
    for ax, title in zip(axes[0], ("Mean of the diagonal: the same", "Spread of the diagonal: not the same")):
        ax.set_yticks(range(len(names)), names if ax is axes[0, 0] else [""] * len(names))
        ax.set_ylim(len(names) - 0.5, -0.5)
        ax.set_title(title)
    axes[0, 0].set(xlabel="mean diagonal", xlim=(-0.5, -0.3))
    axes[0, 1].set(xlabel="sd of the diagonal", xlim=(0, None))
    return figure


@styled
def attention_maps(maps: Mapping[tuple[str, str], np.ndarray], pixels: np.ndarray) -> Figure:
    """The image, (size, size), and first-layer attention of an untrained model's first head to its patches of one
    pixel: rows attend to columns; black is 0, one scale for all panels but the image's.

    maps: (initializer, position) -> (images, heads, patches, patches), the image first; as
    book.construction.maps_at_init gives them."""
    figure, axes = panels(7.4, 2.2, ncols=1 + len(maps))
    picture, axes = axes[0, 0], axes[:, 1:]
    picture.imshow(np.asarray(pixels), cmap="gray")
    picture.set_title("the digit\n", fontsize=8.5)
    picture.set(xticks=[], yticks=[])
    picture.set_xlabel("patch 0 top left,\nrow by row", fontsize=7.5)
    pictures = {key: np.asarray(A)[0, 0] for key, A in maps.items()}
    top = max(np.quantile(P, 0.999) for P in pictures.values())
    for ax, ((init, position), P) in zip(axes[0], pictures.items()):
        shown = ax.imshow(P, cmap="magma", vmin=0, vmax=top)
        position = {"none": "no position", "sincos2d": "sin-cos position", "learned": "learned position"}[position]
        ax.set_title(f"{LABELS[init].split(' (')[0]}\n{position}", fontsize=8.5)
        side = round(len(P) ** 0.5)  # a row of the image
        ax.set_xticks(range(0, len(P), 2 * side))
        ax.set_yticks(range(0, len(P), side) if ax is axes[0, 0] else [])
        ax.tick_params(labelsize=6.5)
        ax.set_xlabel("attended patch", fontsize=8)
    axes[0, 0].set_ylabel("attending patch", fontsize=8)
    figure.colorbar(shown, ax=axes[0].tolist(), shrink=0.8, label="attention")
    return figure


@styled
def counts(table: pd.DataFrame, *, xlabel: str) -> Figure:
    """Horizontal bars: a panel a column of the table, a bar a row of its index, the number written at its end."""
    figure, axes = panels(7.4, 0.6 + 0.3 * len(table), ncols=len(table.columns), sharey=True)
    for ax, column in zip(axes[0], table.columns):
        ax.barh(table.index, table[column], color=VP)
        for y, count in enumerate(table[column]):
            note(ax, f"{count:g}", (count, y), (3, 0), va="center", fontsize=8)
        ax.set(title=column, xlabel=xlabel, xlim=(0, 1.15 * max(table[column].max(), 1)))
    axes[0, 0].invert_yaxis()
    return figure


@styled
def measured_and_imitated(measured: pd.DataFrame, imitated: pd.DataFrame) -> Figure:
    """Mean diagonal of both products by layer, of the model that was measured (dots) and of its imitation (crosses),
    with the off-diagonal spread as a bar to either side. Frames as measure.measure(model, heads=False) gives them."""
    figure, axes = panels(7.4, 2.6, ncols=2)
    products = (("qk", QK, r"$W_QW_K^\top$, mean over heads"), ("vp", VP, "$W_VW_{proj}$"))
    for ax, (product, color, title) in zip(axes[0], products):
        for shift, marker, frame, label in (
            (-0.12, "o", measured, "measured"),
            (0.12, "x", imitated, "imitated, another seed"),
        ):
            part = frame[frame["product"] == product].groupby("layer")[["diag_mean", "offdiag_sd"]].mean()
            ax.errorbar(
                part.index + shift, part.diag_mean, part.offdiag_sd, fmt=marker, ms=4.5, lw=0.9, color=color,
                alpha=1 if marker == "o" else 0.7, label=label,
            )  # fmt: skip
        ax.axhline(0, color="black", lw=0.6)
        ax.set(title=title, xlabel="layer")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0, 0].set_ylabel("mean diagonal ± off-diagonal sd")
    axes[0, 1].legend(loc="lower right")
    return figure
