"""Paired comparisons of arms over seeds. Few seeds: every pair is shown, and what the number of pairs can prove is said."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd


def paired_differences(finals: pd.DataFrame, metric: str = "test_accuracy", arms: Sequence[str] = ("timm", "mimetic")) -> pd.DataFrame:
    """One row a seed that has a run in both arms: the metric of each, and difference = second arm minus first.

    Args:
        finals: one row a run, columns arm, seed and the metric (training.records.load_runs).

    Raises:
        ValueError: an arm has no runs (the message says which there are), or an arm has two runs of one seed.
    """
    there = list(dict.fromkeys(finals["arm"]))
    for arm in arms:
        if arm not in there:
            raise ValueError(f"no runs of arm {arm!r}; there are {', '.join(there) or 'none'}")
    if finals.duplicated(["arm", "seed"]).any():
        raise ValueError("two runs of one arm and seed: compare one experiment at a time")
    wide = finals.pivot(index="seed", columns="arm", values=metric)[list(arms)].dropna()
    wide.columns.name = None
    return wide.assign(difference=wide[arms[1]] - wide[arms[0]])


def smallest_p(pairs: int) -> float:
    """The smallest one-sided p that an exact sign-flip test can give with this many pairs: all differences of one sign."""
    if pairs < 1:
        raise ValueError(f"pairs must be at least 1, got {pairs}")
    return 0.5**pairs
