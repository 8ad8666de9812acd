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
from mimetic.book.common import IN_PERCENT
from mimetic.experiments.configs import EXPERIMENTS
from mimetic.experiments.configs.base import FREE
from mimetic.experiments.configs.language import NOT_ITS_OWN, OTHER_POSITIONS, with_positions
from mimetic.experiments.runs import family
from mimetic.models.blocks import in_attention
from mimetic.statistics import mean_interval
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
FEW = 3  # pairs below which a point is shown but no conclusion drawn from it
COLUMNS = ["family", "experiment", "point", "signs", "share", "gain", "low", "high", "pairs", "parameters", "by_seed"]


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
    out["parameters"] = points["parameters"].map(millions)
    return out.set_index(["family", "signs", "model"]).sort_index(level=0, sort_remaining=False)


def millions(n: int) -> str:
    return f"{n / 1e6:,.0f}\u00a0M" if n >= 1e8 else f"{n / 1e6:.3g}\u00a0M"  # on one line
