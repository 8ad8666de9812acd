"""What the recommender chapter (12) advises a practitioner to do, by what the comparisons say."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import pandas as pd

from mimetic.experiments.answers.recommenders import (
    AGAINST_DEFAULT,
    COMPARED,
    SHOWN,
    SIGN_PAIRS,
    VALIDATION_COLUMN,
    beyond_size,
    compared,
    interval,
    words_of,
)
from mimetic.experiments.programmes.recommenders import DEFAULT
from mimetic.experiments.recommenders import METRIC
from mimetic.statistics import ENOUGH

HALVES = {"QK alone": (DEFAULT, "mimetic-qk"), "V·proj alone": (DEFAULT, "mimetic-vp")}


def monday(finals: Mapping[str, pd.DataFrame]) -> str:
    """Advice to a practitioner, data set by data set, by what the comparisons say; as Markdown list items."""
    halves, others = compared(finals, HALVES), compared(finals, COMPARED, VALIDATION_COLUMN)
    return "\n".join(f"* {SHOWN[data]}: {_advice(table, others[data])}{_halves(halves.get(data))}" for data, table in compared(finals, COMPARED).items())


def _halves(table: pd.DataFrame | None) -> str:
    """Which product of vision's signs does it, where one of them gains; else ""."""
    words = {} if table is None else words_of(table)
    if "gains" not in words.values():
        return ""
    return f" Of the products of vision's signs: {'; '.join(f'{name}: {words[name]}' for name in words)}."


def _values(table: pd.DataFrame, names: list[str]) -> str:
    """Comparisons with their difference and interval."""
    return ", ".join(f"{name} {METRIC.signed(table.loc[name, 'difference'])} {interval(table.loc[name, 'low'], table.loc[name, 'high'])}" for name in names)


def _advice(table: pd.DataFrame, other: pd.DataFrame) -> str:
    """Advice from the comparisons on the last items, held against those on the last but one."""
    rows = {name: row for name, row in table.iterrows() if row["pairs"] >= ENOUGH}
    signs = {name: row for name, row in rows.items() if name in SIGN_PAIRS}
    if not signs:
        return "too few pairs for advice about the initialization."

    values = partial(_values, table)
    good, bad = [n for n, r in rows.items() if r["low"] > 0 and n in AGAINST_DEFAULT], [n for n, r in signs.items() if r["high"] < 0]
    size = [name for name in good if name not in SIGN_PAIRS]
    if beyond := beyond_size(lambda name: name in rows and rows[name]["low"] > 0):
        return f"mimetic initialization gains beyond what the size of its weights gives ({values([f'{name} minus default at their norms' for name in beyond])}): worth a paired run on your data."
    if size:
        again = [name for name in size if other.loc[name, "low"] > 0]
        held = "on the users' last but one items, too" if len(again) == len(size) else f"on the users' last but one items only {again[0]}" if again else "not so on the users' last but one items"
        there = beyond_size(lambda name: name in other.index and other.loc[name, "low"] > 0)
        diagonals = [f"{name} minus default at their norms" for name in there]
        if diagonals:
            held += f", where it is the diagonal that gains ({_values(other, diagonals)})"
        return f"larger attention weights gain without any diagonal ({values(size)}; {held}): cheap to try, since they need no measurement (`timm-rescaled` and `mimetic-random-directions` of `mimetic.initializers`)."
    if good and bad:
        return f"one pattern gains and the other loses ({values(good + bad)}): only a paired run on your data can say."
    if good:
        return f"it gains ({values(good)}), and whether by its size is not known: worth a paired run on your data."
    if bad:
        return f"it loses ({values(bad)}): keep the default."
    return f"no interval of the signs leaves out 0 ({values(list(signs))}): keep the default, and spend the time on training long enough."
