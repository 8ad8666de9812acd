"""What other positions do to a recommender (chapter 12): signs and sizes with fixed sines and cosines."""

from __future__ import annotations

from functools import partial

import pandas as pd

from mimetic.experiments.answers import common
from mimetic.experiments.answers.recommenders import AGAINST_DEFAULT, COMMAND, TITLES, VALIDATION_COLUMN
from mimetic.experiments.configs import EXPERIMENTS
from mimetic.experiments.programmes.recommenders import (
    DEFAULT,
    FIXED,
    FIXED_SEEDS,
    OPPOSITE,
    RANDOM,
    RESCALED,
    VISION,
)
from mimetic.experiments.recommenders import METRIC
from mimetic.statistics import contrast
from mimetic.training.records import load_runs


def by_positions(data: str) -> str:
    """What signs and sizes gain on a data set with fixed positions, on both kinds of items, and how that differs from
    learned positions, at every learning rate, as a Markdown table of the seeds that both have; "" without runs."""
    rows, mean = [], partial(common.measured, metric=METRIC)
    for fixed in (name for name in FIXED if name.startswith(data)):
        there, here = load_runs(fixed), load_runs(fixed.replace("-sincos", ""))
        if there.empty or here.empty:
            continue
        rate = f"{EXPERIMENTS[fixed].lr:g}"
        change = common.between_runs(there, here, (DEFAULT, DEFAULT), METRIC.column)
        if len(change):
            default = there[(there["arm"] == DEFAULT) & there["seed"].isin(change.index)]
            ends = [f"{default[column].mean():.4f}" for column in (METRIC.column, VALIDATION_COLUMN)]
            rows.append((f"at {rate}: default", *ends, mean(change)))
        for name, (reference, arm) in {
            **AGAINST_DEFAULT,
            "vision signs minus default at vision's norms": (RESCALED, VISION),
            "opposite minus vision signs": (VISION, OPPOSITE),
            "opposite signs minus default at vision's norms": (RESCALED, OPPOSITE),
            "opposite signs minus random directions": (RANDOM, OPPOSITE),
        }.items():
            values = [contrast(runs, {arm: 1, reference: -1}, METRIC.column) for runs in (here, there)]
            seeds = values[0].index.intersection(values[1].index)
            if len(seeds):
                of_learned, of_fixed = (v.loc[seeds] for v in values)
                before_last = contrast(there, {arm: 1, reference: -1}, VALIDATION_COLUMN).loc[seeds]
                cells = (of_fixed, before_last, of_fixed - of_learned)
                rows.append((f"at {rate}: {name}", *map(mean, cells)))
    columns = [
        "test NDCG@10: difference (95 % interval)",
        "fixed positions, last items",
        "the same, last but one",
        "fixed minus learned, last items",
    ]
    return common.markdown(pd.DataFrame(rows, columns=columns)) if rows else ""


def answer() -> str:
    """by_positions of every data set, and how many of these runs are in, as Markdown."""
    tables = [f"{title}:\n\n{table}" for data, title in TITLES.items() if (table := by_positions(data))]
    return "\n\n".join(filter(None, [*tables, fixed_missing()]))


def fixed_missing() -> str:
    """How many runs with fixed positions are in, in words; "" when all are."""
    counts = [common.counts(study, load_runs(name), FIXED_SEEDS) for name, study in FIXED.items()]
    there, wanted = (sum(numbers) for numbers in zip(*counts))
    if there == wanted:
        return ""
    return f"*{there} of {wanted} of these runs are in; `{COMMAND}` adds the others, and this page follows.*"
