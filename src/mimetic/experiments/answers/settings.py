"""What the recommender chapter (12) says of other settings than the common one: another learning rate, and the users' last but one items."""

from __future__ import annotations

import pandas as pd

from mimetic.experiments.answers.recommenders import COMPARED, VALIDATION_COLUMN, interval
from mimetic.experiments.configs import EXPERIMENTS
from mimetic.experiments.programmes.recommenders import DEFAULT
from mimetic.experiments.recommenders import METRIC
from mimetic.statistics import compare


def elsewhere(data: str, finals: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """The comparisons that the answer rests on at both learning rates and on both held-out items, as text: a row the default's mean and
    each difference with its interval and number of pairs, a column a rate and kind of item. Nothing is chosen.

    Args:
        finals: the runs at the common rate.
        other: those of the same arms at the other one.
    """
    columns = {}
    for items, column in (("last items", METRIC.column), ("last but one", VALIDATION_COLUMN)):
        for name, runs in ((data, finals), (f"{data}-rate", other)):
            table = compare(runs, COMPARED, column)
            if len(table):
                cells = {"default": f"{runs.loc[runs['arm'] == DEFAULT, column].mean():.4f}" if DEFAULT in set(runs["arm"]) else ""}
                columns[f"{items}, {EXPERIMENTS[name].lr:g}"] = cells | {
                    row.Index: f"{METRIC.signed(row.difference)} {interval(row.low, row.high)}, {row.pairs}" if row.pairs > 1 else f"{METRIC.signed(row.difference)}, one pair"
                    for row in table.itertuples()
                }
    order = [name for name in ("default", *COMPARED) if any(name in cells for cells in columns.values())]
    return pd.DataFrame(columns).reindex(order).fillna("")
