"""What other positions do to a recommender (chapter 12b): signs and sizes with fixed sines and cosines, signs with
learned positions that start from these or from noise as large."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pandas as pd

from mimetic.book import common
from mimetic.book.recommenders import COMMAND, COMPARED, OVER_USERS, TITLES, VALIDATION_COLUMN
from mimetic.experiments.configs import EXPERIMENTS
from mimetic.experiments.programmes.recommenders import DEFAULT, FIXED, FIXED_SEEDS, STARTED
from mimetic.experiments.programmes.study import Study
from mimetic.experiments.recommenders import METRIC
from mimetic.statistics import difference
from mimetic.training.records import load_runs

COLUMNS = (
    "NDCG@10: difference (95 % interval)",
    "fixed positions, last items",
    "the same, last but one",
    "fixed minus learned, last items",
)


def _rows(fixed: str) -> dict[str, tuple[str, str, str]]:
    """The cells of by_positions of one experiment with fixed positions, by comparison; empty without runs."""
    rows, mean = {}, partial(common.measured, metric=METRIC)
    there, here = load_runs(fixed), load_runs(fixed.replace("-sincos", ""))
    change = difference(there, DEFAULT, DEFAULT, METRIC.column, here)
    if len(change):
        default = there[(there["arm"] == DEFAULT) & there["seed"].isin(change.index)]
        ends = [f"{default[column].mean():.4f}" for column in (METRIC.column, VALIDATION_COLUMN)]
        rows["default"] = (*ends, mean(change))
    for name, (reference, arm) in COMPARED.items():
        values = [difference(runs, arm, reference, METRIC.column) for runs in (here, there)]
        seeds = values[0].index.intersection(values[1].index)
        if len(seeds):
            of_learned, of_fixed = (v.loc[seeds] for v in values)
            before_last = difference(there, arm, reference, VALIDATION_COLUMN).loc[seeds]
            rows[name] = tuple(map(mean, (of_fixed, before_last, of_fixed - of_learned)))
    return rows


def _rate(fixed: str) -> str:
    return f"at {EXPERIMENTS[fixed].lr:g}"


def by_positions(data: str) -> str:
    """What signs and sizes gain on a data set with fixed positions, on both kinds of items, and how that differs from
    learned positions, at every learning rate, as a Markdown table of the seeds that both have; "" without runs."""
    rows = [
        (f"{_rate(fixed)}: {name}", *cells)
        for fixed in FIXED
        if fixed.startswith(data)
        for name, cells in _rows(fixed).items()
    ]
    # the page says how many pairs once; fewer are named
    return common.markdown(rows, COLUMNS).replace(f", {len(FIXED_SEEDS)} pairs", "")


def glance() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Table and points of what fixed positions do to the signs, on every data set and at every rate, on the last items
    (figures.comparisons)."""
    pairs = {name: COMPARED[name] for name in OVER_USERS}
    studies = [
        (Study("fixed", f"{TITLES[name.split('-')[0]]}, {_rate(name)}", name, (DEFAULT,), pairs), load_runs(name))
        for name in FIXED
    ]
    return common.stacked(studies, METRIC)


# positions in words -> the experiment on MovieLens that has them
KINDS = {
    "learned, starting small": "ml100k",
    "fixed sin-cos": "ml100k-sincos",
    "learned, starting from sin-cos": "ml100k-from-sincos",
    "learned, starting from noise as large": "ml100k-from-noise",
}


def by_kind() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Table and points of both signs with every kind of positions on MovieLens, on the last items
    (figures.comparisons)."""
    study = FIXED["ml100k-sincos"]
    rows = [
        (replace(study, question=name, comparisons={kind: COMPARED[name]}), load_runs(experiment))
        for name in reversed(OVER_USERS)
        for kind, experiment in KINDS.items()
    ]
    return common.stacked(rows, METRIC)


def whole() -> str:
    """by_positions of every data set."""
    tables = [f"{title}:\n\n{table}" for data, title in TITLES.items() if (table := by_positions(data))]
    return "\n\n".join(tables) or "No table yet."


def missing() -> str:
    """How many runs with other positions are in, in words; "" when all are."""
    counts = [common.counts(study, load_runs(name), FIXED_SEEDS) for name, study in (FIXED | STARTED).items()]
    there, wanted = (sum(numbers) for numbers in zip(*counts))
    if there == wanted:
        return ""
    return f"*{there} of {wanted} of these runs are in; `{COMMAND}` adds the others, and this page follows.*"
