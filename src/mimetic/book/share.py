"""The authors' guess as a table: attention's share of all parameters, and the gain of
mimetic initialization, of every family.

A point is a model and a training in which the family's default and mimetic initialization both have runs, all other
settings equal (but for the learning rate, where an experiment has searched it for each arm). Mimetic initialization is
W_Q W_K^T ~ 0.7 Z +- 0.7 I and W_V W_proj ~ 0.4 Z +- 0.4 I; the published signs, + and -, are what the families are
compared by, other signs are points of their own. Which families there are, which is their default, their metric and its
direction comes from their configs and modules, so that a new family appears here when its records do.

Families have different metrics, so a gain is relative: the improvement of the metric, in its own better direction,
divided by the default's value, pair by pair. 0.02 is an accuracy 2 % above the default's, or bits per byte 2 % below
it. That makes a common axis, not a common unit: one per cent of an accuracy and one per cent of a cross entropy are not
the same achievement.
"""

from __future__ import annotations

import json
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mimetic.audit.report import sign_words
from mimetic.book.common import (
    IN_PERCENT,
    VALUES,
    markdown,
    pairs_of,
    replicas_dir,
    study_table,
    with_interval,
    word,
)
from mimetic.experiments.configs import EXPERIMENTS, named
from mimetic.experiments.configs.base import FREE
from mimetic.experiments.configs.language import NOT_ITS_OWN, OTHER_POSITIONS, SHARES, with_positions
from mimetic.experiments.language import METRIC
from mimetic.experiments.metrics import Metric
from mimetic.experiments.programmes import command_for
from mimetic.experiments.programmes.language import CENTRAL, POSITIONS, SHARE, SHARE_FIXED
from mimetic.experiments.programmes.study import Study
from mimetic.experiments.runs import family
from mimetic.models.blocks import in_attention, parameter_counts, shapes_only
from mimetic.models.gpt import GPT, GPTConfig
from mimetic.models.vit import ViT, ViTConfig
from mimetic.statistics import ENOUGH, correlation, difference, mean_interval, slopes_per_doubling
from mimetic.training.records import runs

# the constants of mimetic initialization, whatever their signs
SIZES = {"qk_alpha": 0.7, "qk_beta": 0.7, "vp_alpha": 0.4, "vp_beta": 0.4}
PUBLISHED = sign_words("+", "−")  # the paper's signs
SIGN_NAMES = {PUBLISHED: "vision signs", sign_words("+", "+"): "language signs"}
# No points: the search for a recipe, the model of another experiment once more with a learning rate that is not the
# arm's own, and a control that nobody would train otherwise.
LEFT_OUT = (
    *(with_positions(kind) for kind in OTHER_POSITIONS if kind not in ("sincos", "rotary")),
    "wikitext2-from-sincos",
    "tinyshakespeare-from-sincos-long",
    "tinyshakespeare-halves",  # the same as tinyshakespeare on another machine
    "wikitext2-halves",
    "tinyshakespeare-rate",
    "ml100k-rate",
    "beauty-rate",
    "ml100k-sincos-rate",
)
RATES_OF_THEIR_OWN = ("mimetic.experiments.language",)  # families whose arms have a learning rate each
# the sweeps: experiment -> the positions of its GPTs
SWEEPS = {
    SHARE.experiment: "learned positions",
    SHARE_FIXED.experiment: "fixed sin-cos positions",
    "share-gpu": "learned positions",
}
R, POINTS = Metric("", "", digits=2), Metric("", "", digits=1)  # a correlation; percentage points
FEW = 3  # pairs below which a point is shown but no conclusion drawn from it
COLUMNS = ["family", "experiment", "point", "signs", "share", "gain", "low", "high", "pairs", "parameters", "by_seed"]
HALVED = "depth2"  # the one point of the sweep with fewer attention layers: in the figure, not in the correlation
# What changes the share in the sweep, one thing at a time: the points in which nothing else differs from its base.
ALONG = {"the vocabulary": ("v256", "base", "v4000", "v16000"), "the MLP": ("mlp1", "base", "mlp8")}


def gain_points(folder: str | Path | None = None) -> pd.DataFrame:
    """One row a point: family, experiment, point (what its arms are called), signs, share (of attention's
    weights and biases in all parameters), gain (relative, mean over pairs) with its 95 % interval low, high,
    pairs, parameters, by_seed ({seed: gain}).

    Args:
        folder: instead of ``data/runs``.

    Raises:
        RecordError: a record is damaged; the message names the file.
    """
    groups: dict[tuple[str, str], dict[str, dict[int, dict]]] = {}
    for record in (run for name in sorted(set(EXPERIMENTS) - set(LEFT_OUT)) for run, _ in runs(name, folder=folder)):
        config = _whole_config(record)
        if config.get("validation"):
            continue
        if role := _role(record["experiment"], config):
            own = ("lr",) if EXPERIMENTS[record["experiment"]].family in RATES_OF_THEIR_OWN else ()
            if own and record["arm"].startswith(NOT_ITS_OWN):  # the default once more
                continue
            rest = {k: v for k, v in config.items() if k not in (*FREE, *SIZES, "qk_rank", "init", *own)}
            key = record["experiment"], json.dumps(rest, sort_keys=True)
            groups.setdefault(key, {}).setdefault(role, {})[record["seed"]] = record
    rows = []
    for (experiment, _), roles in groups.items():
        default = roles.pop("default", {})
        rows += [row for signs, mimetic in roles.items() if (row := _point(experiment, default, mimetic, signs))]
    table = pd.DataFrame(rows, columns=COLUMNS)
    return table.sort_values(["family", "experiment", "signs", "share"], ignore_index=True)


def _whole_config(record: dict[str, Any]) -> dict[str, Any]:
    """A record's config; a field that is newer than the record has its default."""
    base = EXPERIMENTS[record["experiment"]]
    return {f.name: f.default for f in fields(base) if f.default is not MISSING} | _part(record, "config")


def _part(record: dict[str, Any], name: str) -> dict[str, Any]:
    """A record's config or parameters, of the flat form that records.runs gives."""
    return {key.removeprefix(f"{name}."): value for key, value in record.items() if key.startswith(f"{name}.")}


def _role(experiment: str, config: dict[str, Any]) -> str | None:
    """What an arm is: "default", the signs of mimetic initialization in words, or None for every other arm."""
    if config["init"] == type(EXPERIMENTS[experiment]).default_init:
        return "default"
    plain = all(isinstance(config[name], (int, float)) and abs(config[name]) == size for name, size in SIZES.items())
    if config["init"] != "mimetic" or not plain or config["qk_rank"] is not None:
        return None
    return sign_words(*("+" if config[name] > 0 else "−" for name in ("qk_beta", "vp_beta")))


def _point(experiment: str, default: dict[int, dict], mimetic: dict[int, dict], signs: str) -> dict[str, Any] | None:
    metric = family(EXPERIMENTS[experiment]).METRIC
    seeds = sorted(set(default) & set(mimetic))
    if not seeds:
        return None
    reference, value = (np.array([part[s][metric.column] for s in seeds]) for part in (default, mimetic))
    gains = (value - reference) / reference * (-1 if metric.lower_is_better else 1)
    low, high = mean_interval(gains)
    first = mimetic[seeds[0]]
    counts = _part(first, "parameters")
    return {
        "family": EXPERIMENTS[experiment].family.rpartition(".")[2],
        "experiment": experiment,
        "point": default[seeds[0]]["arm"].rpartition("-")[0] or experiment,
        "signs": signs,
        "share": in_attention(counts) / counts["total"],
        "gain": gains.mean(),
        "low": low,
        "high": high,
        "pairs": len(seeds),
        "parameters": counts["total"],
        "by_seed": dict(zip(seeds, gains.tolist())),
    }


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
    """Whether mimetic initialization is ahead at more than half of the points with enough
    pairs: else there is no gain to ask about.
    """
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
            r, low, high, _ = found
            cells = {
                "points ahead on average": f"{gaining(part)} of {len(part)}",
                "with an interval above 0": f"{(part['low'] > 0).sum()}",
                "correlation $r$ of gain and log share": R.shown(r, low, high),
            }
            others = [r[0] for name in part["point"] if (r := correlated(part[part["point"] != name]))]
            if others:
                cells["with one point left out"] = R.span(min(others), max(others))
            for name in every.loc[signs].index if signs in every.index else ():
                row = every.loc[(signs, name)]
                cells[f"slope {name}"] = POINTS.shown(*row[["slope", "low", "high"]])
                if np.isfinite(row.get("most", np.nan)):
                    cells[f"slope {name}, one point left out"] = POINTS.span(
                        row["least without one point"], row["most"]
                    )
            columns[f"{SIGN_NAMES.get(signs, signs)}, {SWEEPS[sweep]}"] = cells
    return "\n\n".join([*([_by_signs(columns)] if columns else []), *missing])


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
    return points.assign(
        by_seed=[
            row.by_seed | (again.get((row.signs, row.point), {}) if row.experiment == SHARE.experiment else {})
            for row in points.itertuples()
        ]
    )


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


# the table's points, which are named in the right panel, and on which side
NAMED_POINTS = dict(
    zip(ONE_SHARE.values(), (("ViT, sin-cos", "left"), ("ViT, learned", "left"), ("GPT, sin-cos", "right"),
                             ("GPT, learned", "right")))
)  # fmt: skip


def at_one_share(points: pd.DataFrame) -> str:
    """What mimetic initialization with the published signs gains in models of nearly one share, as a Markdown table,
    with what as many pairs of another machine gave; "" without pairs.
    """
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


# points in words, where the arms' names are not
NAMES = {"next": "next item, 40 epochs", "short-next": "next item, 20 epochs", "pre-ln": "pre-LN"}


def points_table(points: pd.DataFrame) -> pd.DataFrame:
    """gain_points for the page, in percent."""
    out = points[["family", "signs"]].copy()
    out["model"] = [
        row.experiment if row.point == row.experiment else f"{row.experiment}: {NAMES.get(row.point, row.point)}"
        for row in points.itertuples()
    ]
    out["attention (%)"] = (100 * points["share"].astype(float)).round(1)
    finer = replace(IN_PERCENT, digits=2)
    out["gain (%)"] = [finer.shown(row.gain, row.low, row.high) for row in points.itertuples()]
    out["pairs"] = points["pairs"]
    out["parameters"] = points["parameters"].map(_millions)
    return out.set_index(["family", "signs", "model"]).sort_index(level=0, sort_remaining=False)


# --- sizes, before anything is trained -------------------------------------------------------------------------------


def sweep_table(experiment: str = "share") -> pd.DataFrame:
    """The points of the sweep: what each changes, parameters by kind, and attention's share, smallest first."""
    rows = {}
    for point, changes in SHARES.items():
        config = named(experiment, arm=f"{point}-gpt2")
        shown = changes or {name: getattr(config, name) for name in ("vocab_size", "mlp_ratio", "depth")}
        what = "the base: " * (not changes) + ", ".join(f"{name} {value:g}" for name, value in shown.items())
        rows[point] = {"changes": what} | _sizes(
            config.vocab_size, config.context, config.d_model, config.depth, config.num_heads, config.mlp_ratio
        )
    return pd.DataFrame.from_dict(rows, orient="index").sort_values("attention (%)")


def known_models() -> pd.DataFrame:
    """Attention's share in well-known shapes: GPT-2's (OpenAI's
    hyperparameters), ours, and vision transformers (timm's).
    """
    rows = {}
    for name, d, depth, heads in (
        ("GPT-2 small", 768, 12, 12),
        ("GPT-2 medium", 1024, 24, 16),
        ("GPT-2 large", 1280, 36, 20),
        ("GPT-2 XL", 1600, 48, 25),
    ):
        rows[name] = _sizes(50_257, 1024, d, depth, heads, 4.0)
    for name, d, heads in (("ViT-Ti/16", 192, 3), ("ViT-S/16", 384, 6), ("ViT-B/16", 768, 12)):
        with shapes_only():
            rows[name] = _counted(ViT(ViTConfig(d_model=d, depth=12, num_heads=heads)))
    rows["our GPT, by character"] = _sizes(65, 128, 128, 4, 4, 4.0)
    return pd.DataFrame.from_dict(rows, orient="index").sort_values("attention (%)")


def _sizes(vocab_size: int, context: int, d_model: int, depth: int, num_heads: int, mlp_ratio: float) -> dict[str, Any]:
    with shapes_only():  # counted, not made
        return _counted(GPT(GPTConfig(vocab_size, context, d_model, depth, num_heads, mlp_ratio)))


def _counted(model) -> dict[str, Any]:
    counts = parameter_counts(model)
    attention = in_attention(counts)
    return {
        "attention (%)": round(100 * attention / counts["total"], 1),
        "parameters": _millions(counts["total"]),
        "attention": _millions(attention),
        "MLP": _millions(counts["mlp"]),
        "embedding and head": _millions(counts["embedding"] + counts["head"]),
    }


def _millions(n: int) -> str:
    return f"{n / 1e6:,.0f}\u00a0M" if n >= 1e8 else f"{n / 1e6:.3g}\u00a0M"  # on one line
