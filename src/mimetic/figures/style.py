"""The book's colours, labels and style."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Okabe & Ito's palette: told apart with any colour vision. One meaning each, throughout the book.
COLORS = {
    "timm": "#7a7a7a", "torch": "#b0a08a", "xavier": "#8c6d46", "mimetic": "#0072b2", "mimetic-qk": "#56b4e9",
    "mimetic-vp": "#009e73",
    "gpt2": "#7a7a7a", "vision": "#0072b2", "language": "#e69f00",
}  # fmt: skip
QK, VP, NULL, RIGHT, WRONG = "#d55e00", "#0072b2", "#d9d9d9", "#0072b2", "#cc79a7"
PRODUCTS = (("qk", r"$W_QW_K^\top$", QK), ("vp", "$W_VW_{proj}$", VP))  # name, formula and colour of each
LABELS = {  # of arms
    "timm": "default (trunc-normal .02)",
    "torch": "PyTorch default",
    "xavier": "Xavier",
    "mimetic": "mimetic",
    "mimetic-qk": "QK only",
    "mimetic-vp": "V·proj only",
    "qk-minus": "QK sign flipped",
    "vp-plus": "V·proj sign flipped",
    "both-flipped": "both signs flipped",
    "timm-rescaled": "default at mimetic's norms",
    "random-directions": "mimetic's singular values, random directions",
    "untransposed": "V·proj untransposed, as in public code",
    "swapped": "0.4 for QK, 0.7 for V·proj",
    "fit-dinov2": "constants fitted to DINOv2, gains folded in",
    "fit-dinov2-raw": "constants fitted to DINOv2, raw",
    "gpt2": "default (GPT-2's)",
    "language": "language signs",
    "vision": "vision signs",
    "qk": "QK only",
    "vp": "V·proj only",
    "vp-minus": "V·proj only, vision's sign",
    "fit": "fitted to our own trained GPT",
    "rescaled": "default at mimetic's norms",
    "gpt2-signs": "GPT-2's signs as reported (QK −, V·proj +)",
    "both-minus": "QK −, V·proj −",
    "tenth": "a tenth of vision's constants",
    "speedrun": "V·proj −0.05 I, as in a speed-run",
    # recommenders
    "bert": "default (BERT's trunc-normal .02)",
    "opposite": "opposite signs",
    "fit-beauty": "fitted to a BERT4Rec trained on Beauty",
    "fit-ml100k": "fitted to a BERT4Rec trained on MovieLens",
}
TEXT_POSITIONS = {
    "learned": "learned positions (GPT-2's)",
    "scaled": "learned ones, times √d",
    "sincos": "fixed sin-cos positions",
    "shuffled": "fixed ones in a random order",
    "centred": "fixed ones without their mean",
    "rotary": "rotary positions",
    "from-sincos": "learned ones that start from sin-cos",
    "from-noise": "learned ones that start from noise as large",
}
SIGNED = "RdBu_r"

STYLE = {
    "figure.dpi": 200,  # twice the pixels of a page's column: sharp on dense screens
    "savefig.dpi": 200,
    "figure.facecolor": "white",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "image.interpolation": "nearest",
    "figure.constrained_layout.use": True,
}


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """The book's style for everything that a figure function draws."""

    @wraps(draw)
    def inner(*args, **kwargs):
        with mpl.rc_context(STYLE):
            return draw(*args, **kwargs)

    return inner


def panels(width: float, height: float, **kwargs) -> tuple[Figure, np.ndarray]:
    """plt.subplots with the size in inches and always a matrix of axes."""
    return plt.subplots(figsize=(width, height), squeeze=False, **kwargs)


def interval_bars(table: pd.DataFrame, value: str) -> np.ndarray:
    """How far columns low and high lie from ``value``, (2, rows), for errorbar; 0 where they are infinite: one pair has
    no interval."""
    lengths = np.abs(table[["low", "high"]].to_numpy() - table[[value]].to_numpy()).T
    return np.where(np.isfinite(lengths), lengths, 0.0)


def note(ax: Axes, text: str, at: tuple[float, float], offset: tuple[float, float], **kwargs) -> None:
    """A small text beside a point, so many points from it."""
    ax.annotate(text, at, offset, textcoords="offset points", **{"fontsize": 7.5, **kwargs})


def one_each(ax: Axes) -> tuple[list, list]:
    """Handles and labels of a legend, each label once."""
    found = dict(zip(*reversed(ax.get_legend_handles_labels())))
    return list(found.values()), list(found)


def runs_and_mean(
    ax: Axes, values: pd.Series, arm: str, *, color: str | None = None, lw: float = 0.8, alpha: float = 0.45
) -> None:
    """A thin line a run of an arm, a thick line their mean. values: index seed and the number on the x axis; color:
    None: the arm's; lw, alpha: of a run."""
    color = color or COLORS.get(arm, "black")
    for _, run in values.groupby(level=0):
        ax.plot(run.index.get_level_values(1), run, color=color, lw=lw, alpha=alpha)
    mean, n = values.groupby(level=1).mean(), values.index.get_level_values(0).nunique()
    ax.plot(mean.index, mean, color=color, lw=2, label=f"{LABELS.get(arm, arm)} ({n} seed{'s' * (n != 1)})")


def by_layer(height: float, rows: Sequence[tuple], columns: str) -> tuple[Figure, np.ndarray]:
    """Numbers by layer, before training to the left and hollow, after it to the right and filled: small dots are rows
    of a frame, large ones their means.

    Args:
        rows: of panels: label, frame (with columns when ("before", "after"), layer and the number), the number's
            column, color, and where a line lies.
        columns: name of the frames' column that has a panel in each row for each of its values.
    """
    names = list(dict.fromkeys(rows[0][1][columns]))
    figure, axes = panels(7.4, height, nrows=len(rows), ncols=len(names), sharex=True, sharey="row")
    for line, (label, frame, column, color, zero) in zip(axes, rows):
        for ax, name in zip(line, names):
            for when, shift, face in (("before", -0.14, "white"), ("after", 0.14, color)):
                part = frame[(frame[columns] == name) & (frame["when"] == when)]
                ax.plot(part["layer"] + shift, part[column], ".", ms=3, color=color, alpha=0.35)
                mean = part.groupby("layer")[column].mean()
                ax.plot(mean.index + shift, mean, "o", ms=5, mfc=face, mec=color, label=f"{when} training")
            ax.axhline(zero, color="black", lw=0.7)
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        line[0].set_ylabel(label, fontsize=8)
    for top, bottom, name in zip(axes[0], axes[-1], names):
        top.set_title(LABELS.get(name, name))
        bottom.set_xlabel("layer")
    return figure, axes


def diagonal_rows(products: pd.DataFrame) -> list[tuple]:
    """Rows for by_layer: the diagonals of either product. products: with columns product and z."""
    return [
        (f"{name}:\ndiagonal / off-diagonal sd", products[products["product"] == product], "z", color, 0)
        for product, name, color in PRODUCTS
    ]
