"""Paired comparisons of arms over seeds. Few seeds: every pair is shown, and
what the number of pairs can prove is said.

A pair is two runs with one seed: the same images in the same order, the same initial weights where the arms agree.
Their difference is tested by flipping its sign: if the arms were alike, each pair's difference would as well have come
out with the other sign, so the 2^n sign patterns are equally likely (Fisher 1935). The interval is Student's, which
takes the differences as normal; with three pairs it is wide, and that is the truth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import stats

MOST_PAIRS = 20  # 2^20 sign patterns; more pairs than that are not exact any more


def by_seed(runs: pd.DataFrame, arm: str, column: str = "test_accuracy") -> pd.Series:
    """seed -> a metric of an arm's runs; empty without runs.

    Args:
        runs: one row a run, columns arm, seed and the metric (training.records.load_runs).

    Raises:
        ValueError: two runs of one seed.
    """
    runs = runs[runs["arm"] == arm]
    if runs["seed"].duplicated().any():
        raise ValueError(f"two runs of one seed of arm {arm!r}: compare one experiment at a time")
    # a table without runs has no metrics either
    return runs.set_index("seed")[column].sort_index() if len(runs) else pd.Series(dtype=float)


def difference(
    runs: pd.DataFrame, arm: str, reference: str, column: str = "test_accuracy", others: pd.DataFrame | None = None
) -> pd.Series:
    """seed -> a metric of an arm minus that of its reference, of the seeds that have a run in both; empty if there is
    none. others: the runs that the reference is of, if not these."""
    return (by_seed(runs, arm, column) - by_seed(runs if others is None else others, reference, column)).dropna()


def paired_differences(
    finals: pd.DataFrame, metric: str = "test_accuracy", arms: Sequence[str] = ("timm", "mimetic")
) -> pd.DataFrame:
    """One row a seed that has a run in both arms: the metric of each, and difference = second arm minus first; empty
    where an arm has no runs.

    Raises:
        ValueError: two runs of one seed.
    """
    wide = pd.DataFrame({arm: by_seed(finals, arm, metric) for arm in arms}).dropna()
    return wide.assign(difference=wide[arms[1]] - wide[arms[0]])


ENOUGH = 5  # pairs from which a verdict is drawn; below, the numbers are shown without one


def smallest_p(pairs: int) -> float:
    """The smallest p that the exact two-sided sign-flip test can give with this
    many pairs: all differences of one sign.
    """
    if pairs < 1:
        raise ValueError(f"pairs must be at least 1, got {pairs}")
    return 2 * 0.5**pairs


def sign_flip_test(differences: Sequence[float]) -> float:
    """p of the exact two-sided sign-flip test of the mean difference: the share of all 2^n sign patterns whose mean is
    at least as far from 0 as the one that was seen.

    Raises:
        ValueError: no differences, more than 20, or one that is not finite.
    """
    x = np.asarray(differences, dtype=float)
    if not 1 <= x.size <= MOST_PAIRS:
        raise ValueError(f"the exact test is for 1 to {MOST_PAIRS} pairs, got {x.size}")
    if not np.isfinite(x).all():
        raise ValueError(f"differences must be finite, got {x.tolist()}")
    signs = 1 - 2 * ((np.arange(2**x.size)[:, None] >> np.arange(x.size)) & 1)
    # a pattern that is the seen one but for rounding is as extreme as the seen one
    return float(np.mean(np.abs(signs @ x) >= abs(x.sum()) - 1e-12 * np.abs(x).sum()))


def mean_interval(differences: Sequence[float]) -> tuple[float, float]:
    """Student's 95 % interval of the mean difference; infinite for a single pair.

    Raises:
        ValueError: no differences.
    """
    x = np.asarray(differences, dtype=float)
    if not x.size:
        raise ValueError("no differences")
    if x.size == 1:
        return -np.inf, np.inf
    half = stats.t.ppf(0.975, x.size - 1) * x.std(ddof=1) / x.size**0.5
    return float(x.mean() - half), float(x.mean() + half)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """p-values corrected for their number (Holm 1979): the chance of any false claim among them stays below the level.
    A nan stays one, and does not count."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")  # nan last
    number = (~np.isnan(p)).sum()
    stepped = np.maximum.accumulate((number - np.arange(len(p))) * p[order])
    out = np.empty_like(p)
    out[order] = np.minimum(stepped, 1.0)
    return out


def crossed_interval(values: Sequence[Sequence[float]]) -> tuple[float, float]:
    """95 % interval of a mean over two crossed samples, such as seeds and users: what other
    seeds *and* other users would have given.

    The variance of the mean is that of the rows' means plus that of the columns' means minus that of what neither
    explains, which both contain; degrees of freedom by Satterthwaite. It is never narrower than the interval of the
    rows or of the columns alone. Source: two-way random-effects analysis of variance, one value a cell.

    Args:
        values: (rows, columns), two or more of each.

    Raises:
        ValueError: fewer than two rows or columns.
    """
    y = np.asarray(values, dtype=float)
    if y.ndim != 2 or min(y.shape) < 2:
        raise ValueError(f"a crossed interval needs two or more rows and columns, not shape {y.shape}")
    n, m = y.shape
    rows, columns = y.mean(1), y.mean(0)
    rest = y - rows[:, None] - columns + y.mean()
    parts = np.array([rows.var(ddof=1) / n, columns.var(ddof=1) / m, -(rest**2).sum() / ((n - 1) * (m - 1)) / (n * m)])
    variance = max(parts.sum(), 0.0)  # an estimate by subtraction
    df = variance**2 / (parts**2 / [n - 1, m - 1, (n - 1) * (m - 1)]).sum() if variance else n - 1
    half = stats.t.ppf(0.975, max(df, 1)) * variance**0.5
    # the two samples' own are floors
    half = max(half, *(np.diff(mean_interval(sample))[0] / 2 for sample in (rows, columns)))
    return float(y.mean() - half), float(y.mean() + half)


def compare(finals: pd.DataFrame, pairs: Mapping[str, tuple[str, str]], metric: str = "test_accuracy") -> pd.DataFrame:
    """One row a comparison that has runs in both arms, in the order of pairs.

    Args:
        finals: one row a run (training.records.load_runs of one experiment).
        pairs: label -> (reference arm, arm). Labels whose arms have no pair yet are left out.

    Returns:
        index label; reference, arm: mean metric over the pairs; pairs: their number; difference: mean of arm minus
        reference; low, high: its 95 % interval; p: exact, two-sided (corrected() has it for the number of rows); wins:
        in how many pairs the arm is ahead.
    """
    rows = {}
    for label, (reference, arm) in pairs.items():
        table = paired_differences(finals, metric, (reference, arm))
        if len(table):
            d = table["difference"]
            means = {"reference": table[reference].mean(), "arm": table[arm].mean()}
            rows[label] = means | {"wins": int((d > 0).sum())} | summary(d)
    return pd.DataFrame.from_dict(rows, orient="index")


def corrected(table: pd.DataFrame) -> pd.Series:
    """p of a table of compare, corrected for the number of its rows (holm). A row of one pair
    does not count: its p is 1 whatever it says.
    """
    return pd.Series(holm(table["p"].where(table["pairs"] > 1)), index=table.index).fillna(table["p"])


def contrast(finals: pd.DataFrame, arms: Mapping[str, float], metric: str = "test_accuracy") -> pd.Series:
    """seed -> sum of coefficient times metric over arms, such as a difference of differences, of the seeds that have a
    run in all of them; empty if there is none. Of two arms: difference."""
    wide = pd.DataFrame({arm: by_seed(finals, arm, metric) for arm in sorted(arms)}).dropna()
    return (wide * pd.Series(arms, dtype=float)).sum(axis=1)


def summary(values: Sequence[float]) -> dict[str, float]:
    """pairs, difference (mean), low, high (Student's 95 % interval), p (exact
    sign-flip test, two-sided) of paired values.
    """
    low, high = mean_interval(values)
    return {
        "pairs": len(values),
        "difference": float(np.mean(values)),
        "low": low,
        "high": high,
        "p": sign_flip_test(values),
    }


def slopes_per_doubling(points: pd.DataFrame, least: int = 3) -> pd.Series:
    """seed -> least-squares slope of difference on log2(x), of the seeds that
    have every x; empty with fewer x than least.

    Args:
        points: columns x (above 0), seed, difference.
    """
    wide = points.pivot(index="seed", columns="x", values="difference").dropna()
    if wide.shape[1] < least or wide.empty:
        return pd.Series(dtype=float)
    x = np.log2(wide.columns.to_numpy(float))
    return pd.Series(np.polyfit(x, wide.to_numpy().T, 1)[0], index=wide.index)


def rests_on(points: pd.DataFrame) -> dict[float, pd.Series]:
    """The x without which slopes_per_doubling would not have the side of 0 that they have with all: x -> the slopes
    without it. Empty if the interval of all slopes holds 0, or if no single x decides.

    Args:
        points: columns x (above 0), seed, difference.
    """
    slopes = slopes_per_doubling(points)
    if len(slopes) < 2 or not (seen := side(slopes)):
        return {}
    without = {x: slopes_per_doubling(points[points["x"] != x], least=2) for x in sorted(points["x"].unique())}
    return {x: values for x, values in without.items() if side(values) != seen}


def side(values: pd.Series) -> int:
    """On which side of 0 the 95 % interval of the mean lies: 1, -1, or 0 for both."""
    low, high = mean_interval(values)
    return 1 if low > 0 else -1 if high < 0 else 0


def steps_to_reach(curve: pd.DataFrame, level: float, metric: str = "test_accuracy") -> float:
    """Steps after which a run's curve first reaches a level, linear between epochs; nan if it never does.

    Args:
        curve: the rows of one run, columns step and the metric, sorted by step.
    """
    steps, values = curve["step"].to_numpy(float), curve[metric].to_numpy(float)
    above = np.flatnonzero(values >= level)
    if not above.size:
        return float("nan")
    i = int(above[0])
    if i == 0:
        return float(steps[0])
    return float(np.interp(level, values[i - 1 : i + 1], steps[i - 1 : i + 1]))


def correlation(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float]:
    """Pearson's r and its 95 % interval by Fisher's z transformation (Fisher
    1921): r, low, high; for independent points.

    Raises:
        ValueError: fewer than four points, lengths that differ, a constant x or y, or a value that is not finite.
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if x.shape != y.shape or x.ndim != 1 or x.size < 4:
        raise ValueError(
            f"a correlation with an interval needs at least four points, x and y alike; got {x.shape} and {y.shape}"
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all()) or np.ptp(x) == 0 or np.ptp(y) == 0:
        raise ValueError("x and y must be finite and not constant")
    found = stats.pearsonr(x, y)
    low, high = found.confidence_interval(0.95)
    return float(found.statistic), float(low), float(high)
