"""What the recommender chapter (12) says of other settings than the common one: another learning rate, and the users' last but one items."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from mimetic.experiments.answers import common
from mimetic.experiments.answers.recommenders import COMPARED, TITLES, VALIDATION_COLUMN, interval
from mimetic.experiments.configs import EXPERIMENTS
from mimetic.experiments.programmes.recommenders import DEFAULT
from mimetic.experiments.recommenders import METRIC
from mimetic.statistics import ENOUGH, compare
from mimetic.training.records import load_runs


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


def other_settings(finals: Mapping[str, pd.DataFrame]) -> str:
    """What the other learning rate and the last but one items change, in short; "" while no setting has enough pairs."""
    settings = in_how_many_settings(finals)
    if not settings:
        return ""
    return (
        f"In how many settings (two learning rates, each user's last item and last but one) an interval leaves out 0, of those with at least {ENOUGH} pairs:\n\n{settings}\n\n"
        "The settings share runs and users, so this is no vote."
    )


def in_how_many_settings(finals: Mapping[str, pd.DataFrame]) -> str:
    """In how many of the four settings of elsewhere() that have enough pairs each comparison lies above 0, or below it, as a Markdown table,
    a column a data set; "" if no setting has."""
    columns = {}
    for data, runs in finals.items():
        tables = [compare(part, COMPARED, column) for column in (METRIC.column, VALIDATION_COLUMN) for part in (runs, load_runs(f"{data}-rate"))]
        cells = []
        for name in COMPARED:
            rows = [table.loc[name] for table in tables if name in table.index and table.loc[name, "pairs"] >= ENOUGH]
            up, down = sum(row["low"] > 0 for row in rows), sum(row["high"] < 0 for row in rows)
            cells.append(f"above in {up}, below in {down} of {len(rows)}" if rows else "")
        columns[TITLES[data]] = cells
    if not any(any(cells) for cells in columns.values()):
        return ""
    return common.markdown(pd.DataFrame({"comparison": list(COMPARED), **columns}))
