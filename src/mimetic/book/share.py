"""The authors' guess (chapter 11): does the gain follow attention's share of the parameters, in the sweeps that change
it and in models of one share?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from mimetic.book.common import IN_PERCENT, VALUES, markdown, pairs_of, replicas_dir, study_table, with_interval, word
from mimetic.book.gains import FEW, PUBLISHED, SIGN_NAMES, gain_points
from mimetic.experiments.configs import EXPERIMENTS
from mimetic.experiments.language import METRIC
from mimetic.experiments.metrics import Metric
from mimetic.experiments.programmes import command_for
from mimetic.experiments.programmes.language import CENTRAL, POSITIONS, SHARE, SHARE_FIXED
from mimetic.experiments.programmes.study import Study
from mimetic.statistics import ENOUGH, correlation, difference, mean_interval, slopes_per_doubling

# the sweeps: experiment -> the positions of its GPTs
SWEEPS = {
    SHARE.experiment: "learned positions",
    SHARE_FIXED.experiment: "fixed sin-cos positions",
    "share-gpu": "learned positions",
}
R, POINTS = Metric("", "", digits=2), Metric("", "", digits=1)  # a correlation; percentage points
HALVED = "depth2"  # the one point of the sweep with fewer attention layers: in the figure, not in the correlation
# What changes the share in the sweep, one thing at a time: the points in which nothing else differs from its base.
ALONG = {"the vocabulary": ("v256", "base", "v4000", "v16000"), "the MLP": ("mlp1", "base", "mlp8")}


def correlated(points: pd.DataFrame) -> tuple[float, float, float, int] | None:
    """Correlation of gain and the logarithm of the share over the points with enough pairs: r, its interval, how many
    points; None where they are too few."""
    points = points[points["pairs"] >= FEW]
    if len(points) < 4 or points["share"].nunique() < 3 or points["gain"].nunique() < 2:
        return None
    return (*correlation(np.log2(points["share"].astype(float)), points["gain"]), len(points))


def gaining(points: pd.DataFrame) -> int:
    """At how many of the points with enough pairs mimetic initialization is ahead on average."""
    return int((points.loc[points["pairs"] >= FEW, "gain"] > 0).sum())


def mostly_gains(points: pd.DataFrame) -> bool:
    """Whether mimetic initialization is ahead at more than half of the points with enough pairs: else there is no gain
    to ask about."""
    return gaining(points) > (points["pairs"] >= FEW).sum() / 2


def correlation_words(r: float, low: float, high: float, n: int) -> str:
    return f"r = {R.signed(r)}, 95 % interval {R.span(low, high)}, n = {n}"


def slopes(points: pd.DataFrame, sweep: str = "share") -> pd.DataFrame:
    """How much the gain changes when attention's share doubles, in percentage points: one row a set of signs and a
    thing that changes the share; a least-squares slope on log2(share) of every seed, mean and 95 % interval over seeds;
    and the least and the most that the mean is when one point is left out."""
    rows = {}
    for signs, part in points[points["experiment"] == sweep].groupby("signs", sort=False):
        part, by_seed = part.set_index("point"), {}
        for along in ALONG:
            there = _along(part, along)
            if len(found := _slopes(there)):
                by_seed[along] = found
                others = [_slopes(there.drop(index=name), least=2).mean() for name in there.index]
                rows[signs, f"along {along}"] = _slope_row(found, len(there)) | {
                    "least without one point": min(others),
                    "most": max(others),
                }
        if len(by_seed) > 1 and len(difference := by_seed["the vocabulary"].sub(by_seed["the MLP"]).dropna()):
            rows[signs, "vocabulary minus MLP"] = _slope_row(difference, np.nan)
    return pd.DataFrame.from_dict(rows, orient="index").round(2)


def _along(part: pd.DataFrame, along: str) -> pd.DataFrame:
    """The points that differ in one thing (ALONG), of points by their name."""
    return part.loc[[name for name in ALONG[along] if name in part.index]]


def slopes_by_seed(points: pd.DataFrame, sweep: str) -> dict[str, pd.Series]:
    """thing that changes the share -> the slope of every seed with the published signs, in percentage points a
    doubling; empty where not all points are in."""
    part = points[(points["experiment"] == sweep) & (points["signs"] == PUBLISHED)].set_index("point")
    return {
        along: _slopes(there) if len(there := _along(part, along)) == len(names) else pd.Series(dtype=float)
        for along, names in ALONG.items()
    }


def _slopes(points: pd.DataFrame, least: int = 3) -> pd.Series:
    """The slope of every seed, in percentage points a doubling; empty with fewer points than least."""
    dots = [(row.share, seed, gain) for row in points.itertuples() for seed, gain in row.by_seed.items()]
    return 100 * slopes_per_doubling(pd.DataFrame(dots, columns=["x", "seed", "difference"]), least)


def _slope_row(values: pd.Series, points: float) -> dict[str, Any]:
    low, high = mean_interval(values)
    return {"points": points, "slope": values.mean(), "low": low, "high": high, "seeds": len(values)}


def of_one_size(experiment: str) -> dict[str, str]:
    """Of SWEEPS those of the GPTs that are as large as an experiment's."""
    width = EXPERIMENTS[experiment].d_model
    return {name: positions for name, positions in SWEEPS.items() if EXPERIMENTS[name].d_model == width}


def held_fixed(points: pd.DataFrame, sweep: str = "share") -> pd.DataFrame:
    """The points of a sweep whose attention layers are the same."""
    return points[(points["experiment"] == sweep) & (points["point"] != HALVED)]


def summary(points: pd.DataFrame, *sweeps: str) -> str:
    """What sweeps come to, as a Markdown table with a column a sweep and set of signs: how many points are ahead, the
    correlation of gain and share, and the slopes, each also with one point left out; in words what is missing, where
    the points are too few."""
    columns, missing = {}, []
    for sweep in sweeps:
        fixed = held_fixed(points, sweep)
        enough = fixed[fixed["pairs"] >= FEW]
        if correlated(enough) is None:
            missing.append(
                f"*With {SWEEPS[sweep]} {enough['point'].nunique()} points with {FEW} pairs so far, too few for a"
                f" correlation with an interval (it needs four): `{command_for(sweep)}` adds the others.*"
            )
            continue
        every = slopes(points, sweep)
        for signs, part in enough.groupby("signs", sort=False):
            if (found := correlated(part)) is None:
                continue
            cells = {
                "points ahead on average": f"{gaining(part)} of {len(part)}",
                "with an interval above 0": f"{(part['low'] > 0).sum()}",
                "correlation $r$ of gain and log share": R.shown(*found[:3]),
            }
            others = [r[0] for name in part["point"] if (r := correlated(part[part["point"] != name]))]
            if others:
                cells["with one point left out"] = R.span(min(others), max(others))
            for name in every.loc[signs].index if signs in every.index else ():
                row = every.loc[(signs, name)]
                cells[f"slope {name}"] = POINTS.shown(*row[["slope", "low", "high"]])
                if np.isfinite(row.get("most", np.nan)):
                    ends = row["least without one point"], row["most"]
                    cells[f"slope {name}, one point left out"] = POINTS.span(*ends)
            columns[f"{SIGN_NAMES.get(signs, signs)}, {SWEEPS[sweep]}"] = cells
    return "\n\n".join(filter(None, [_by_signs(columns), *missing]))


def _by_signs(columns: dict[str, dict[str, str]]) -> str:
    """A Markdown table with a column a set of signs, of {their name: {row: cell}}."""
    rows = dict.fromkeys(name for cells in columns.values() for name in cells)
    cells = [(name, *(cells.get(name, "–") for cells in columns.values())) for name in rows]
    return markdown(cells, ["mean (95 % interval)", *columns])


def retrained(points: pd.DataFrame) -> pd.DataFrame:
    """The points with the pairs of the sweep that another machine trained again (data/replicas) in place of the first
    ones."""
    again = gain_points(replicas_dir())
    again = {(row.signs, row.point): row.by_seed for row in again[again["experiment"] == SHARE.experiment].itertuples()}
    by_seed = [
        row.by_seed | (again.get((row.signs, row.point), {}) if row.experiment == SHARE.experiment else {})
        for row in points.itertuples()
    ]
    return points.assign(by_seed=by_seed)


def with_pairs_made_again(points: pd.DataFrame) -> str:
    """What the pairs that another machine made, in place of the first ones, do to the slopes and to the points that are
    behind by their interval, as a Markdown table and a sentence; "" without any."""
    other = retrained(points)
    first, again = slopes(points), slopes(other)
    columns: dict[str, dict[str, str]] = {}
    for (signs, name), row in again.iterrows():
        if not np.isclose(row["slope"], first.loc[(signs, name), "slope"]):
            cells = columns.setdefault(SIGN_NAMES.get(signs, signs), {})
            cells[f"slope {name}"] = POINTS.shown(*row[["slope", "low", "high"]])
    here = (points["experiment"] == SHARE.experiment) & (points["pairs"] >= FEW)
    behind = other[here & (points["high"] < 0)]
    no_more = [
        f"`{row.point}` with {SIGN_NAMES.get(row.signs, row.signs)}"
        for row in behind.itertuples()
        if mean_interval(list(row.by_seed.values()))[1] > 0
    ]
    if not columns and not no_more:
        return ""
    which = f"{len(no_more)} no longer are: {', '.join(no_more)}" if no_more else "all still are"
    table = f"With these pairs in place of the first:\n\n{_by_signs(columns)}"
    asked = f"Of the {len(behind)} models and signs that are behind by the interval of their relative gain, {which}."
    return table if behind.empty else f"{table}\n\n{asked}"


# Models with about a third of their parameters in attention, in words -> (experiment, point)
ONE_SHARE = {
    "ViT, CIFAR-10, 10 epochs, fixed sin-cos positions": ("cifar10-lab10", "cifar10-lab10"),
    "ViT, CIFAR-10, 10 epochs, learned positions": ("cifar10-lab10", "learned-avg"),
    "GPT, tiny Shakespeare, fixed sin-cos positions": (POSITIONS.experiment, POSITIONS.experiment),
    "GPT, tiny Shakespeare, learned positions": (CENTRAL.experiment, CENTRAL.experiment),
}
# what the right panel calls the table's points, and on which side
SIDES = ("ViT, sin-cos", "left"), ("ViT, learned", "left"), ("GPT, sin-cos", "right"), ("GPT, learned", "right")
NAMED_POINTS = dict(zip(ONE_SHARE.values(), SIDES))


def at_one_share(points: pd.DataFrame) -> str:
    """What mimetic initialization with the published signs gains in models of nearly one share, as a Markdown table,
    with what as many pairs of another machine gave; "" without pairs."""
    first, again = (
        part[part["signs"] == PUBLISHED].set_index(["experiment", "point"])
        for part in (points, gain_points(replicas_dir()))
    )
    rows = []
    for name, key in ONE_SHARE.items():
        if key not in first.index:
            continue
        rows.append((name, *_gain_cells(first.loc[key])))
        if key in again.index and again.loc[key, "pairs"] == first.loc[key, "pairs"] > 1:
            rows.append(("… made again on another machine", *_gain_cells(again.loc[key])))
    columns = ["model", "attention", "relative gain (95 % interval)", "pairs"]
    return markdown(rows, columns)


def _gain_cells(row: pd.Series) -> tuple[str, str, str]:
    """A point's share, gain and pairs for the page."""
    span = f" ({IN_PERCENT.span(row['low'], row['high'])})" if row["pairs"] > 1 else ""
    return f"{100 * row['share']:.0f} %", f"{IN_PERCENT.signed(row['gain'])} %{span}", f"{row['pairs']}"


def found(*sweeps: tuple[Study, pd.DataFrame]) -> str:
    """Every point of sweeps (each with its runs) against its default in bits per byte, with interval and word, and
    both sets of signs against each other, where a sweep has both, as a Markdown table; "" without pairs."""
    rows: dict[str, dict[str, str]] = {}
    pairs = []
    for study, finals in sweeps:
        table, positions = study_table(study, finals, METRIC), SWEEPS[study.experiment]
        for _, row in table.iterrows():
            point, _, signs = row["compared"][2].rpartition("-")  # of the arm's name
            value = METRIC.shown(*row[VALUES])
            rows.setdefault(point, {})[f"{signs} signs, {positions}"] = f"{value}, {word(row, METRIC, more=False)}"
        for point in rows:
            arms = (f"{point}-{signs}" for signs in ("language", "vision"))
            if len(values := difference(finals, *arms, METRIC.column)) > 1:
                rows[point]["language minus vision signs"] = with_interval(values, METRIC)
        if len(table):
            few = ", too few for a claim" if table["pairs"].min() < ENOUGH else ""
            pairs.append(f"{positions}: {pairs_of(table)}{few}")
    if not rows:
        return ""
    frame = pd.DataFrame.from_dict(rows, orient="index").fillna("").rename("`{}`".format).reset_index(names="model")
    return f"**We found**, in bits per byte (above 0 is behind the default; {'; '.join(pairs)}):\n\n{markdown(frame)}"


def ahead_by_seed(points: pd.DataFrame) -> str:
    """The gains of every seed at the points of the sweep that are ahead on average, in a sentence; "" without any."""
    part = points[(points["experiment"] == SHARE.experiment) & (points["gain"] > 0) & (points["pairs"] >= FEW)]
    said = [
        f"{row.point} with {SIGN_NAMES.get(row.signs, row.signs)}"
        f" ({', '.join(IN_PERCENT.signed(gain) for gain in row.by_seed.values())} %)"
        for row in part.itertuples()
    ]
    return f"Ahead on average, with the relative gain of every seed: {'; '.join(said)}." if said else ""
