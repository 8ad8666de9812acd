"""The authors' guess as a table: attention's share of all parameters, and the gain of mimetic initialization, of every family.

A point is a model and a training in which the family's default and mimetic initialization both have runs, all other settings
equal (but for the learning rate, where an experiment has searched it for each arm). Mimetic initialization is W_Q W_K^T ~ 0.7 Z +- 0.7 I and
W_V W_proj ~ 0.4 Z +- 0.4 I; the published signs, + and -, are what the families are compared by, other signs are points of their own. Which families there are, which is their default, their metric and
its direction comes from their configs and modules, so that a new family appears here when its records do.

Families have different metrics, so a gain is relative: the improvement of the metric, in its own better direction, divided by the
default's value, pair by pair. 0.02 is an accuracy 2 % above the default's, or bits per byte 2 % below it. That makes a common axis,
not a common unit: one per cent of an accuracy and one per cent of a cross entropy are not the same achievement.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mimetic.data.fetch import data_dir
from mimetic.experiments.answers.common import blank, markdown, pairs_of, study_table, word
from mimetic.experiments.configs import EXPERIMENTS, named
from mimetic.experiments.configs.base import FREE
from mimetic.experiments.configs.language import OTHER_POSITIONS, SHARES, with_positions
from mimetic.experiments.language import METRIC
from mimetic.experiments.metrics import Metric
from mimetic.experiments.programmes.language import CENTRAL, POSITIONS, SHARE
from mimetic.experiments.runs import family
from mimetic.models.blocks import in_attention, parameter_counts, shapes_only
from mimetic.models.gpt import GPT, GPTConfig
from mimetic.models.vit import ViT, ViTConfig
from mimetic.statistics import ENOUGH, correlation, mean_interval, slopes_per_doubling
from mimetic.training.records import runs

SIZES = {"qk_alpha": 0.7, "qk_beta": 0.7, "vp_alpha": 0.4, "vp_beta": 0.4}  # of mimetic initialization, whatever its signs
PUBLISHED = "QK +, V·proj −"  # the paper's signs
# No points: the search for a recipe, the model of another experiment once more with a learning rate that is not the arm's own, and a
# control that nobody would train otherwise.
LEFT_OUT = (*(with_positions(kind) for kind in OTHER_POSITIONS if kind not in ("sincos", "rotary")), "tinyshakespeare-rate", "ml100k-rate", "beauty-rate")
RATES_OF_THEIR_OWN = ("mimetic.experiments.language",)  # families whose arms have a learning rate each
FEW = 3  # pairs below which a point is shown but no conclusion drawn from it
COLUMNS = ["family", "experiment", "point", "signs", "share", "gain", "low", "high", "pairs", "parameters", "by_seed"]
POINTS = Metric("", "", digits=1)  # percentage points
HALVED = "depth2"  # the one point of the sweep with fewer attention layers: in the figure, not in the correlation
# What changes the share in the sweep, one thing at a time: the points in which nothing else differs from its base.
ALONG = {"the vocabulary": ("v256", "base", "v4000", "v16000"), "the MLP": ("mlp1", "base", "mlp8")}


def gain_points(folder: str | Path | None = None) -> pd.DataFrame:
    """One row a point: family, experiment, point (what its arms are called), signs, share (of attention's weights and biases in
    all parameters), gain (relative, mean over pairs) with its 95 % interval low, high, pairs, parameters, by_seed ({seed: gain}).

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
            rest = {k: v for k, v in config.items() if k not in (*FREE, *SIZES, "qk_rank", "init", *own)}
            key = record["experiment"], json.dumps(rest, sort_keys=True)
            groups.setdefault(key, {}).setdefault(role, {})[record["seed"]] = record
    rows = []
    for (experiment, _), roles in groups.items():
        default = roles.pop("default", {})
        rows += [row for signs, runs in roles.items() if (row := _point(experiment, default, runs, signs))]
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
    """ "default", the signs of mimetic initialization in words, or None for every other arm."""
    if config["init"] == type(EXPERIMENTS[experiment]).default_init:
        return "default"
    plain = all(isinstance(config[name], (int, float)) and abs(config[name]) == size for name, size in SIZES.items())
    if config["init"] != "mimetic" or not plain or config["qk_rank"] is not None:
        return None
    qk, vp = ("+" if config[name] > 0 else "−" for name in ("qk_beta", "vp_beta"))
    return f"QK {qk}, V·proj {vp}"


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
        "gain": gains.mean(), "low": low, "high": high, "pairs": len(seeds), "parameters": counts["total"], "by_seed": dict(zip(seeds, gains.tolist())),
    }  # fmt: skip


def correlated(points: pd.DataFrame) -> tuple[float, float, float, int] | None:
    """Correlation of gain and the logarithm of the share over the points with enough pairs: r, its interval, how many points; None where
    they are too few."""
    points = points[points["pairs"] >= FEW]
    if len(points) < 4 or points["share"].nunique() < 3 or points["gain"].nunique() < 2:
        return None
    return (*correlation(np.log2(points["share"].astype(float)), points["gain"]), len(points))


def gaining(points: pd.DataFrame) -> int:
    """At how many of the points with enough pairs mimetic initialization is ahead on average."""
    return int((points.loc[points["pairs"] >= FEW, "gain"] > 0).sum())


def mostly_gains(points: pd.DataFrame) -> bool:
    """Whether mimetic initialization is ahead at more than half of the points with enough pairs: else there is no gain to ask about."""
    return gaining(points) > (points["pairs"] >= FEW).sum() / 2


def correlation_words(r: float, low: float, high: float, n: int) -> str:
    return f"r = {r:+.2f}, 95 % interval {low:+.2f} to {high:+.2f}, n = {n}".replace("-", "−")


def relation(points: pd.DataFrame, what: str) -> str:
    """Whether the gain follows the share over these points, in words, with the correlation and its interval."""
    thin = int((points["pairs"] < FEW).sum())
    found, n = correlated(points), len(points) - thin
    if found is None:
        aside = f" ({thin} more with fewer than {FEW} pairs)" if thin else ""
        return f"{what}: {n} point{'s' * (n != 1)} so far{aside}, too few for a correlation with an interval (it needs four)."
    _, low, high, _ = found
    if mostly_gains(points):
        says = (
            "the gain grows with attention's share, as the guess has it" if low > 0
            else "the gain falls as attention's share grows, against the guess" if high < 0
            else "these points cannot say whether the gain follows the share"
        )  # fmt: skip
    else:
        says = (
            "the difference rises as attention's share grows" if low > 0 else "the difference falls as attention's share grows" if high < 0
            else "these points cannot say whether the difference follows the share"
        )  # fmt: skip
    sure = int((points.loc[points["pairs"] >= FEW, "low"] > 0).sum())
    ahead = f"ahead at {gaining(points)} of {n} points ({'none' if not sure else sure} with an interval above 0)"
    others = [r[0] for name in points["point"] if (r := correlated(points[points["point"] != name]))]
    left_out = f"; with one point left out, r from {min(others):+.2f} to {max(others):+.2f}".replace("-", "−") if others else ""
    return f"{what}: {ahead}, and {says} ({correlation_words(*found)}{left_out})."


def slopes(points: pd.DataFrame, sweep: str = "share") -> pd.DataFrame:
    """How much the gain changes when attention's share doubles, in percentage points: one row a set of signs and a thing that changes
    the share; a least-squares slope on log2(share) of every seed, mean and 95 % interval over seeds; and the least and the most that the mean
    is when one point is left out."""
    rows = {}
    for signs, part in points[points["experiment"] == sweep].groupby("signs", sort=False):
        part, by_seed = part.set_index("point"), {}
        for along, names in ALONG.items():
            there = part.loc[[name for name in names if name in part.index]]
            if len(found := _slopes(there)):
                by_seed[along] = found
                others = [_slopes(there.drop(index=name)).mean() for name in there.index]
                rows[signs, f"along {along}"] = _slope_row(found, len(there)) | {"least without one point": min(others), "most": max(others)}
        if len(by_seed) > 1 and len(difference := by_seed["the vocabulary"].sub(by_seed["the MLP"]).dropna()):
            rows[signs, "vocabulary minus MLP"] = _slope_row(difference, np.nan)
    return pd.DataFrame.from_dict(rows, orient="index").round(2)


def slopes_table(points: pd.DataFrame, sweep: str = "share") -> pd.DataFrame:
    """slopes for the page."""
    table = slopes(points, sweep)
    return blank(table.assign(points=[f"{n:.0f}" if np.isfinite(n) else "" for n in table["points"]])) if len(table) else table


def _slopes(points: pd.DataFrame) -> pd.Series:
    """The slope of every seed, in percentage points a doubling."""
    dots = [(row.share, seed, gain) for row in points.itertuples() for seed, gain in row.by_seed.items()]
    return 100 * slopes_per_doubling(pd.DataFrame(dots, columns=["x", "seed", "difference"]))


def _slope_row(values: pd.Series, points: float) -> dict[str, Any]:
    low, high = mean_interval(values)
    return {"points": points, "slope": values.mean(), "low": low, "high": high, "seeds": len(values)}


SAME_MODEL = "wikitext2"  # of chapter 10: the base of the sweep with 2,000 tokens


def with_same_model(points: pd.DataFrame) -> str:
    """r with the experiment that is a point of the sweep in all but its name, in words; "" without its runs."""
    said = []
    for signs, part in held_fixed(points).groupby("signs"):
        more = points[(points["experiment"] == SAME_MODEL) & (points["signs"] == signs)]
        if len(more) and (found := correlated(pd.concat([part, more]))):
            said.append(f"{found[0]:+.2f} with {signs}".replace("-", "−"))
    pairs = points.loc[points["experiment"] == SAME_MODEL, "pairs"]
    return f"{SAME_MODEL} of [chapter 10](10_gpt.ipynb), in the right panel, is the base of the sweep with 2,000 tokens and {pairs.iloc[0]} pairs. Counted as a point of it, r is {' and '.join(said)}." if said else ""


def smallest_r(n: int) -> float:
    """The smallest |r| of n points whose 95 % interval leaves out 0."""
    return float(np.tanh(1.96 / np.sqrt(n - 3)))


def verdict(points: pd.DataFrame, sweep: str = "share") -> str:
    """The answer of a sweep, for each set of signs. Not of all families together: they differ in more than the share."""
    part = held_fixed(points, sweep)
    if part.empty:
        return relation(part, "The sweep")
    every = [part[part["signs"] == signs] for signs in dict.fromkeys(part["signs"])]
    lines = [relation(rows, f"With {rows['signs'].iloc[0]}") for rows in every]
    said = "\n".join(f"* {line}" for line in lines)
    return f"{lead(every)}Mimetic initialization against the default, attention held fixed (so without `{HALVED}`) and its share from {_range(part['share'])}:\n\n{said}"


def lead(every: Sequence[pd.DataFrame]) -> str:
    """The verdict in a few words, where the points of all sets of signs agree; "" where they do not, or are too few."""
    found = [correlated(rows) for rows in every]
    if None in found:
        return ""
    gains = [mostly_gains(rows) for rows in every]
    if all(gains) and all(r[1] > 0 for r in found):
        return "**Yes, in this sweep.** "
    if all(r[1] <= 0 <= r[2] for r in found):
        return "**Undecided" + (".** " if any(gains) else ", and there is hardly a gain that could follow anything.** ")
    return ""


def _range(shares: pd.Series) -> str:
    """From the smallest to the largest share, in percent; one number if they read the same."""
    low, high = (f"{100 * value:.0f}" for value in (shares.min(), shares.max()))
    return f"{low} %" if low == high else f"{low} to {high} %"


def held_fixed(points: pd.DataFrame, sweep: str = "share") -> pd.DataFrame:
    """The points of a sweep whose attention layers are the same."""
    return points[(points["experiment"] == sweep) & (points["point"] != HALVED)]


ANCHORS = ("cifar10-lab30", "tinyshakespeare")  # a vision and a language experiment whose models have nearly the same share


def within_vision(points: pd.DataFrame) -> str:
    """How far apart the gains of the vision models are, in one unit and at nearly one share, in words; "" before there are claims."""
    part = points[(points["family"] == "vision") & (points["signs"] == PUBLISHED) & (points["pairs"] >= ENOUGH)]
    if len(part) < 2:
        return ""

    def words(row: pd.Series) -> str:
        return f"{_points(100 * row['gain'])} % ({row['point']}; {_points(100 * row['low'])} to {_points(100 * row['high'])})"

    means = [part.loc[part["gain"].idxmin()], part.loc[part["gain"].idxmax()]]
    sure = [part.loc[part["high"].idxmin()], part.loc[part["low"].idxmax()]]  # what is certain, not what is farthest
    others = [words(row) for row, mean in zip(sure, means) if row["point"] != mean["point"]]
    certain = f"; the {'lowest and highest' if len(others) == 2 else 'lowest' if sure[0]['point'] != means[0]['point'] else 'highest'} that the intervals make certain: {' and '.join(others)}" if others else ""
    end = " The share alone does not decide: these models differ in positions, depth, width and data." if sure[0]["high"] < sure[1]["low"] else ""
    return (
        f"Among the {len(part)} comparisons in vision with the published signs and at least {ENOUGH} pairs, all with {_range(part['share'])} attention, the mean relative gain of accuracy "
        f"goes from {words(means[0])} to {words(means[1])}{certain}.{end}"
    )


def by_positions(points: pd.DataFrame) -> str:
    """What one GPT gains with learned and with fixed positions, at nearly one share, in words; "" before there are claims."""
    published = points[(points["signs"] == PUBLISHED) & (points["pairs"] >= ENOUGH)].set_index("experiment")
    rows = {name: published.loc[experiment] for name, experiment in {"learned": CENTRAL.experiment, "fixed sin-cos": POSITIONS.experiment}.items() if experiment in published.index}
    if len(rows) < 2:
        return ""
    said = [f"{_points(100 * row['gain'])} % with {name} ones ({_points(100 * row['low'])} to {_points(100 * row['high'])}, {row['pairs']} pairs)" for name, row in rows.items()]
    learned, fixed = rows.values()
    end = " So it takes another position embedding, and no larger share, to make a gain of the loss." if learned["high"] < 0 < fixed["low"] else ""
    return f"One GPT on one text, with {_range(pd.Series([learned['share'], fixed['share']]))} attention, changes by {' and by '.join(said).replace('with learned ones', 'with learned positions')} ([chapter 10](10_gpt.ipynb)).{end}"


def at_equal_share(points: pd.DataFrame) -> str:
    """The other way round: what a vision and a language model of the same share gain, with the published signs, in words."""
    published = points[(points["signs"] == PUBLISHED) & (points["point"] == points["experiment"])].set_index("experiment")
    rows = [published.loc[name] for name in ANCHORS if name in published.index]
    if len(rows) < 2 or min(row["pairs"] for row in rows) < FEW:
        return "The other way round, a vision and a language model at nearly the same share: not enough pairs yet."

    def words(row: pd.Series) -> str:
        gain, low, high = (f"{100 * row[name]:+.1f}".replace("-", "−") for name in ("gain", "low", "high"))
        says = "a gain" if row["low"] > 0 else "a loss" if row["high"] < 0 else "neither gain nor loss that these pairs can show"
        return f"{row.name} has {100 * row['share']:.0f} % attention and, with {PUBLISHED}, {says} ({gain} %, {low} to {high}, {row['pairs']} pairs)"

    apart = min(row["high"] for row in rows) < 0 < max(row["low"] for row in rows)
    end = " So something else than the share decides between them." if apart else ""
    return f"The other way round: {' and '.join(words(row) for row in rows)}.{end} (Per cent of an accuracy and of bits per byte are different units; only the signs can be compared.)"


def along(points: pd.DataFrame, sweep: str = "share") -> str:
    """Along which of the two things that change the share the gain moves, in words, where they differ; "" else. Only where both slopes are
    clear, with either sign set, and none turns when a point is left out, is it said that the gain does not follow the share."""
    table, said, doubts = slopes(points, sweep), [], []
    for signs in dict.fromkeys(table.index.get_level_values(0)) if len(table) else ():
        rows = table.loc[signs]
        if {"along the vocabulary", "along the MLP", "vocabulary minus MLP"} <= set(rows.index):
            apart = rows.loc["vocabulary minus MLP", "low"] > 0 or rows.loc["vocabulary minus MLP", "high"] < 0
            if apart and rows.loc["along the vocabulary", "slope"] * rows.loc["along the MLP", "slope"] < 0:
                parts = []
                for name in ("along the vocabulary", "along the MLP"):
                    row = rows.loc[name]
                    ends = row["least without one point"], row["most"]
                    parts.append(f"{_points(row['slope'])} ({POINTS.span(row['low'], row['high'])}) {name}" + (f" (with one point left out {_points(ends[0])} to {_points(ends[1])})" if np.isfinite(ends).all() else ""))
                    if np.isfinite(ends).all() and ends[0] * ends[1] < 0:
                        doubts.append(f"with {signs} the slope {name} turns when one point is left out")
                    if row["low"] < 0 < row["high"]:
                        doubts.append(f"with {signs} that {name} may be 0")
                said.append(f"with {signs}: {' and '.join(parts)}")
    if not said:
        return ""
    firm = "One share, two directions: it is not the share that it follows." if not doubts else f"Taken at face value the two directions disagree, and no one slope belongs to the share; but {', and '.join(doubts)}: undecided."
    return f"Where the share doubles, the gain changes by so many percentage points, {'; '.join(said)}. {firm} (95 % intervals over {min(table['seeds'])} seeds.)"


def as_retrained(points: pd.DataFrame, sweep: str = "share") -> str:
    """Slopes along the vocabulary with the pairs that another machine trained again (data/replicas) in place of the first ones, in words; "" without any."""
    again = gain_points(data_dir() / "replicas")
    again = {(row.signs, row.point): row.by_seed for row in again[again["experiment"] == sweep].itertuples()}
    mine = points[points["experiment"] == sweep]
    replaced = dict.fromkeys(row.signs for row in mine.itertuples() if (row.signs, row.point) in again and row.point in ALONG["the vocabulary"])
    table = slopes(mine.assign(by_seed=[row.by_seed | again.get((row.signs, row.point), {}) for row in mine.itertuples()]), sweep)
    rows = [(signs, table.loc[(signs, "along the vocabulary")]) for signs in replaced if (signs, "along the vocabulary") in table.index]
    said = ", ".join(f"{_points(row['slope'])} ({POINTS.span(row['low'], row['high'])}) with {signs}" for signs, row in rows)
    return f"With the pairs that another machine trained again in their place, along the vocabulary: {said}." if said else ""


def _points(value: float) -> str:
    return POINTS.signed(value)


def found(finals: pd.DataFrame) -> str:
    """Every point of the sweep against its default in bits per byte, with interval and word, as a Markdown table with a column a set of signs;
    "" without pairs."""
    table = study_table(SHARE, finals, METRIC)
    rows: dict[str, dict[str, str]] = {}
    for label, row in table.iterrows():
        point, signs = label.rsplit(", ", 1)
        span = f" ({METRIC.span(row['low'], row['high'])})" if row["pairs"] > 1 else ""
        rows.setdefault(f"`{point}`", {})[signs] = f"{METRIC.signed(row['difference'])}{span}, {word(row, METRIC, more=False)}"
    if not rows:
        return ""
    frame = pd.DataFrame.from_dict(rows, orient="index").fillna("").rename_axis("model").reset_index()
    few = ": too few for a claim" if table["pairs"].min() < ENOUGH else ""
    return f"**We found**, in bits per byte (above 0 is behind the default; {pairs_of(table)}{few}):\n\n{markdown(frame)}"


def ahead_by_seed(points: pd.DataFrame, sweep: str = "share") -> str:
    """The gains of every seed at the points of a sweep that are ahead on average, in a sentence; "" without any."""
    part = points[(points["experiment"] == sweep) & (points["gain"] > 0) & (points["pairs"] >= FEW)]
    said = [f"{row.point} with {row.signs} ({', '.join(_points(100 * gain) for gain in row.by_seed.values())} %)" for row in part.itertuples()]
    return f"Ahead on average, with the relative gain of every seed: {'; '.join(said)}." if said else ""


NAMES = {"next": "next item, 40 epochs", "short-next": "next item, 20 epochs", "pre-ln": "pre-LN"}  # points in words, where the arms' names are not


def points_table(points: pd.DataFrame) -> pd.DataFrame:
    """gain_points for the page, in percent."""
    out = points[["family", "signs"]].copy()
    out["model"] = [row.experiment if row.point == row.experiment else f"{row.experiment}: {NAMES.get(row.point, row.point)}" for row in points.itertuples()]
    out["attention (%)"] = (100 * points["share"].astype(float)).round(1)
    gains = [f"{100 * row.gain:+.2f}" + (f" ({100 * row.low:+.2f} to {100 * row.high:+.2f})" if np.isfinite(row.low) else "") for row in points.itertuples()]
    out["gain (%)"] = [gain.replace("-", "−") for gain in gains]
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
        rows[point] = {"changes": what} | _sizes(config.vocab_size, config.context, config.d_model, config.depth, config.num_heads, config.mlp_ratio)
    return pd.DataFrame.from_dict(rows, orient="index").sort_values("attention (%)")


def known_models() -> pd.DataFrame:
    """Attention's share in well-known shapes: GPT-2's (OpenAI's hyperparameters), ours, and vision transformers (timm's)."""
    rows = {}
    for name, d, depth, heads in (("GPT-2 small", 768, 12, 12), ("GPT-2 medium", 1024, 24, 16), ("GPT-2 large", 1280, 36, 20), ("GPT-2 XL", 1600, 48, 25)):
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
        "attention (%)": round(100 * attention / counts["total"], 1), "parameters": _millions(counts["total"]), "attention": _millions(attention),
        "MLP": _millions(counts["mlp"]), "embedding and head": _millions(counts["embedding"] + counts["head"]),
    }  # fmt: skip


def _millions(n: int) -> str:
    return f"{n / 1e6:,.0f} M" if n >= 1e8 else f"{n / 1e6:.3g} M"
