"""One style, one function a figure. Functions take DataFrames or arrays and return a matplotlib Figure; none sees a
model."""

from mimetic.figures.differences import comparisons, families, gains, gap, gaps
from mimetic.figures.language import (
    attention_by_distance,
    curves_and_gaps,
    gaps_on_the_way,
    products_before_and_after,
    rates,
    share_and_gain,
)
from mimetic.figures.products import (
    attention_maps,
    counts,
    matrices,
    measured_and_imitated,
    orientations,
    profiles,
    truncation,
    z_by_layer,
)
from mimetic.figures.recommenders import catalogue, diagonals, explained, ranking_curves
from mimetic.figures.runs import before_and_after, curves_and_pairs, learning_curves, overview
from mimetic.figures.speed import init_seconds, minutes_by_share, step_shares

__all__ = [
    "attention_by_distance",
    "attention_maps",
    "before_and_after",
    "catalogue",
    "comparisons",
    "counts",
    "curves_and_gaps",
    "curves_and_pairs",
    "diagonals",
    "explained",
    "families",
    "gains",
    "gap",
    "gaps",
    "gaps_on_the_way",
    "init_seconds",
    "learning_curves",
    "matrices",
    "measured_and_imitated",
    "minutes_by_share",
    "orientations",
    "overview",
    "products_before_and_after",
    "profiles",
    "ranking_curves",
    "rates",
    "share_and_gain",
    "step_shares",
    "truncation",
    "z_by_layer",
]
