"""A claim and its verdict: a word that follows from an interval (judged) or from what was counted (counted); before all
planned pairs are in it is "open"."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pandas as pd

from mimetic.experiments.configs import EXPERIMENTS
from mimetic.experiments.metrics import Metric
from mimetic.experiments.runs import family
from mimetic.statistics import difference, summary
from mimetic.training.records import load_runs

HOLDS, PART, NOT, UNDECIDED, OPEN = "holds here", "holds in part", "does not hold here", "undecided", "open"
MEANING = {  # verdict: (what it means, how it is counted of one claim, of several)
    HOLDS: (
        "all planned pairs are in, and the 95 % interval of their mean lies on the claimed side", HOLDS, "hold here",
    ),
    PART: (
        "of several parts some hold, and the row says what the others do; or there is a gain that may be smaller than"
        " claimed", PART, "hold in part",
    ),
    NOT: (
        "all planned pairs are in, and the interval lies wholly on the other side; of several parts at least one does"
        " not hold, and none holds", NOT, "do not hold here",
    ),
    UNDECIDED: (
        "all planned pairs are in, and the interval has both sides in it (of a trend: with all sizes, or without one)",
        "is undecided", "are undecided",
    ),
    OPEN: ("not run, or fewer pairs than planned so far", "is open", "are open"),
}  # fmt: skip
MARKS = {HOLDS: "✓", PART: "◐", NOT: "✗", UNDECIDED: "?", OPEN: "○"}  # in tables, before the verdict
DETAILS = "<br>"  # a new line in a cell: between what a verdict rests on and what qualifies it
PAPER, REVIEW, ASKED, GUESS, COURSE, OURS = (
    "the paper",
    "a review of it",
    "asked by that review",
    "its authors, as that review reports",
    "a course project",
    "our question",
)
Judgement = tuple[str, str]  # verdict, and what was found, perhaps with DETAILS


@dataclass(frozen=True)
class Claim:
    """One row of the report."""

    part: str
    says: str
    whose: str
    page: str  # the chapter's file in book/
    judge: Callable[[], Judgement]


def judged(
    values: pd.Series, metric: Metric, planned: int, *, expected: int = 1, least: float = 0.0, unit: str = ""
) -> Judgement:
    """The verdict on paired values and the values in words: mean, 95 % interval, number of pairs.

    Args:
        values: one number a seed, in the metric's stored unit.
        planned: pairs; with fewer nothing is decided, so that no verdict depends on when one looks.
        expected: 1 if the claim says that the metric gets better, -1 worse.
        least: the gain that the claim says, in the stored unit.
        unit: instead of the metric's own.
    """
    if not len(values):
        return OPEN, "no pair yet"
    row, n = summary(values), len(values)
    unit = unit or metric.difference or metric.name
    found = f"{metric.signed(row['difference'])} {unit}".strip()
    if n < planned:
        so_far = f", one pair of {planned}"
        if n > 1:
            so_far = f" ({metric.span(row['low'], row['high'])}, {n} pairs of {planned})"
        return OPEN, found + so_far
    found += f" ({metric.span(row['low'], row['high'])}, {n} pairs, p {row['p']:.3f})" if n > 1 else ", one pair"
    # towards what the claim says is up
    low, high = sorted(expected * (-end if metric.lower_is_better else end) for end in (row["low"], row["high"]))
    if high < least:
        return PART if low > 0 else NOT, found
    return HOLDS if low > least else PART if low > 0 else UNDECIDED, found


def joined(parts: dict[str, Judgement]) -> Judgement:
    """One verdict on a claim that was tested in several ways: theirs if they agree, open while one is, that it does not
    hold if one does not and no other does."""
    words = {verdict for verdict, _ in parts.values()}
    if len(words) == 1:
        verdict = words.pop()
    else:
        verdict = OPEN if OPEN in words else PART if words & {HOLDS, PART} else NOT
    return verdict, "; ".join(f"{name}: {found}" for name, (_, found) in parts.items())


def counted(cells: Iterable[bool]) -> str:
    """The verdict on something that is there or not in each of several models and products."""
    cells = list(cells)
    return OPEN if not cells else HOLDS if all(cells) else PART if any(cells) else NOT


def against(
    experiment: str, arm: str, reference: str, planned: int, *, expected: int = 1, least: float = 0.0
) -> Judgement:
    metric = family(EXPERIMENTS[experiment]).METRIC
    values = difference(load_runs(experiment), arm, reference, metric.column)
    return judged(values, metric, planned, expected=expected, least=least)
