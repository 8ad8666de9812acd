"""What the recommender chapter (12) says of the experiment: the verdict, the scores, convergence, what training keeps, advice."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial

import numpy as np
import pandas as pd

from mimetic.experiments.answers import common
from mimetic.experiments.answers.common import finding
from mimetic.experiments.baselines import baselines_path
from mimetic.experiments.configs import EXPERIMENTS
from mimetic.experiments.programmes.recommenders import CENTRAL, DEFAULT, OPPOSITE, RATE, SEEDS, STUDIES, VISION
from mimetic.experiments.recommenders import METRIC
from mimetic.experiments.recorded import cases_of, recorded_products, records_of
from mimetic.figures.style import LABELS
from mimetic.statistics import (
    ENOUGH,
    compare,
    mean_interval,
)
from mimetic.training.records import load_runs

COMMAND = "python -m mimetic queue recommenders"
TITLES = {"ml100k": "MovieLens-100K", "beauty": "Amazon Beauty (1,000 items)"}
ARM_LABELS = LABELS | {VISION: "vision signs", "mimetic-qk": "QK only, vision's sign", "mimetic-vp": "V·proj only, vision's sign"}
SIGN_PAIRS = {"vision signs": (DEFAULT, VISION), "opposite signs": (DEFAULT, OPPOSITE)}
COMPARED = SIGN_PAIRS | {  # what the answer rests on: label -> (reference arm, arm)
    "opposite against vision signs": (VISION, OPPOSITE),
    "default at the norms of vision signs (no diagonal)": (DEFAULT, "timm-rescaled"),
    "vision's singular values in random directions (no diagonal)": (DEFAULT, "random-directions"),
    "vision signs against the default at their norms": ("timm-rescaled", VISION),
}
draw = partial(common.draw, command=COMMAND)


def verdict(finals: Mapping[str, pd.DataFrame]) -> str:
    """The chapter's answer: each data set in words, all its comparisons as a table, what another learning rate would change, and how
    many runs are missing."""
    tables = {data: compare(runs, COMPARED, METRIC.column) for data, runs in finals.items()}
    parts = ["\n".join(_in_words(data, table) for data, table in tables.items()), _in_numbers(tables)]
    parts += [at_own_rates(data, table, load_runs(f"{data}-rate")) for data, table in finals.items()]
    gaps = [f"{TITLES[data]}: {text.strip('*')}" for data, table in finals.items() if (text := common.missing(CENTRAL[data], table, SEEDS[data], COMMAND))]
    return "\n\n".join([*filter(None, parts), *([f"*{' '.join(gaps)}*"] if gaps else [])])


def _in_words(data: str, table: pd.DataFrame) -> str:
    """One data set's comparisons by what they say, as an item of a list."""
    said: dict[str, list[str]] = {}
    for name, row in table.iterrows():
        said.setdefault(common.word(row, METRIC), []).append(name)
    words = "; ".join(f"*{word}*: {', '.join(names)}" for word, names in said.items())
    return f"* **{TITLES[data]}**: {words or 'no pair yet'}."


def _in_numbers(tables: Mapping[str, pd.DataFrame]) -> str:
    """The comparisons of all data sets as a Markdown table, a column a data set, and for sign patterns what other users would have
    changed; "" without a pair."""
    rows: dict[str, dict[str, str]] = {}
    for data, table in tables.items():
        for i, (name, row) in enumerate(table.iterrows()):
            reference, arm = COMPARED[name]
            if not i and reference == DEFAULT:
                rows.setdefault("default", {})[data] = f"{row['reference']:.4f}"
            rows.setdefault(name, {})[data] = _cell(row)
            users = user_differences(data, arm, reference) if arm in (VISION, OPPOSITE) and reference == DEFAULT else ()
            if len(users):
                low, high = (METRIC.signed(end) for end in mean_interval(users))
                rows.setdefault(f"{name}: these seeds, other users", {})[data] = f"{low} to {high}"
    if not rows:
        return ""
    columns = {TITLES[data]: [cells.get(data, "") for cells in rows.values()] for data in tables}
    return common.markdown(pd.DataFrame({"test NDCG@10, difference (95 % interval)": list(rows), **columns}))


def _cell(row: pd.Series) -> str:
    if row["pairs"] == 1:
        return f"{METRIC.signed(row['difference'])}, one pair"
    return (
        f"{METRIC.signed(row['difference'])} ({METRIC.signed(row['low'])} to {METRIC.signed(row['high'])}), ahead in {row['wins']:.0f} of {row['pairs']:.0f} pairs, "
        f"p {row['p']:.3f}"
    )


def at_own_rates(data: str, finals: pd.DataFrame, other: pd.DataFrame) -> str:
    """The verdict once more, each arm at its own learning rate."""
    runs, rates = own_rates(data, finals, other)
    if not rates:
        return f"On {TITLES[data]} with each arm at its own learning rate: no pair yet."
    common_lr, other_lr = (EXPERIMENTS[name].lr for name in (data, f"{data}-rate"))
    seeds = runs["seed"].nunique()
    if set(rates.values()) == {common_lr}:
        return f"On {TITLES[data]} default and sign patterns are better at this learning rate, {common_lr:g}, than at {other_lr:g}, by the validation items ({seeds} seed{'s' * (seeds != 1)})."
    chosen = ", ".join(f"{ARM_LABELS[arm]} {lr:g}" for arm, lr in rates.items())
    found = "; ".join(f"{name} {finding(row, METRIC)}" for name, row in compare(runs, SIGN_PAIRS, METRIC.column).iterrows())
    return f"On {TITLES[data]} with each arm at its own learning rate, by the validation items ({chosen}): {found}."


def own_rates(data: str, finals: pd.DataFrame, other: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, float]]:
    """The default and both sign patterns, each at that of two learning rates at which its mean NDCG@10 on the validation items is
    higher: one row a run, and the rates by arm. Only seeds that all of them have at both rates count; empty without such seeds.

    Args:
        finals: the runs at the common rate.
        other: those of the same arms at the other one.
    """
    if finals.empty or other.empty:
        return finals[:0], {}
    arms = [arm for arm in (DEFAULT, VISION, OPPOSITE) if arm in set(finals["arm"]) & set(other["arm"])]
    seeds = set.intersection(*(set(t.loc[t["arm"] == arm, "seed"]) for t in (finals, other) for arm in arms)) if arms else set()
    if DEFAULT not in arms or len(arms) < 2 or not seeds:
        return finals[:0], {}
    parts, rates = [], {}
    for arm in arms:
        options = {EXPERIMENTS[name].lr: t[(t["arm"] == arm) & t["seed"].isin(seeds)] for name, t in ((data, finals), (f"{data}-rate", other))}
        rates[arm] = max(options, key=lambda lr: options[lr]["test_validation_ndcg10"].mean())
        parts.append(options[rates[arm]])
    return pd.concat(parts, ignore_index=True), rates


def user_differences(experiment: str, arm: str, reference: str = DEFAULT) -> np.ndarray:
    """Every user's NDCG@10 under an arm minus that under its reference, mean over the paired seeds whose records hold the users'
    ranks; empty if there is none. Its spread says what other users would have changed, as pairs of seeds say it of other seeds."""
    gains = {(r["arm"], r["seed"]): np.where(ranks <= 10, 1 / np.log2(1 + ranks), 0.0)
             for r in records_of(experiment, (arm, reference)) if len(ranks := cases_of(r, "ranks"))}  # fmt: skip
    seeds = [seed for name, seed in gains if name == arm and (reference, seed) in gains]
    return np.mean([gains[arm, seed] - gains[reference, seed] for seed in seeds], axis=0) if seeds else np.array([])


def found(name: str, finals: pd.DataFrame, seeds: tuple[int, ...]) -> str:
    """A study's findings as Markdown, one line a comparison, and how many runs are missing."""
    study = STUDIES[name]
    return common.findings(study, finals, common.missing(study, finals, seeds, COMMAND), METRIC, "mean difference of NDCG@10")


def found_at_own_rates(data: str, finals: pd.DataFrame) -> str:
    """The findings with each arm at its own learning rate as Markdown, and how many runs are missing."""
    study, other = RATE[data], load_runs(f"{data}-rate")
    runs, rates = own_rates(data, finals, other)
    gap = common.missing(study, other, SEEDS[data], COMMAND)
    taken = "; ".join(f"{ARM_LABELS[arm]} {lr:g}" for arm, lr in rates.items())
    return common.findings(study, runs, gap, METRIC, f"learning rates: {taken}; mean difference of NDCG@10" if rates else "mean difference of NDCG@10")


def comparison(names: list[str], finals: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Tables and points of several studies on one data set (for figures.comparisons)."""
    return common.stacked(((STUDIES[name], finals) for name in names), METRIC)


def numbers(table: pd.DataFrame) -> pd.DataFrame:
    """A table of compare for the page, p corrected over all its rows."""
    return common.rounded(table, digits=4)


def score_table(finals: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Baselines and every recorded arm of the central comparison, test metrics: mean, and sd of NDCG@10 over seeds."""
    rows = [
        {"data": TITLES[row["dataset"]], "recommender": row["baseline"], "seeds": 0} | {k: row[k] for k in ("ndcg10", "recall10", "mrr")}
        for row in json.loads(baselines_path().read_text(encoding="utf-8"))
        if row["split"] == "test" and row["dataset"] in finals
    ]
    for data, table in finals.items():
        for arm in CENTRAL[data].arms:
            part = table[table["arm"] == arm]
            if len(part):
                rows.append({
                    "data": TITLES[data], "recommender": f"BERT4Rec, {ARM_LABELS.get(arm, arm)}", "seeds": len(part),
                    **{k: part[f"test_{k}"].mean() for k in ("ndcg10", "recall10", "mrr")}, "sd": part["test_ndcg10"].std(),
                })  # fmt: skip
    out = pd.DataFrame(rows).rename(columns={"ndcg10": "NDCG@10", "recall10": "Recall@10", "mrr": "MRR", "sd": "sd of NDCG@10"})
    order = {TITLES[data]: i for i, data in enumerate(finals)}
    return common.blank(out.sort_values("data", key=lambda c: c.map(order), kind="stable").set_index(["data", "recommender"]).round(4))


def baseline_levels(data: str, split: str = "test") -> dict[str, float]:
    """The baselines' NDCG@10 on a data set, for a figure."""
    rows = json.loads(baselines_path().read_text(encoding="utf-8"))
    return {row["baseline"]: row["ndcg10"] for row in rows if row["dataset"] == data and row["split"] == split}


def oracle_level() -> float:
    """NDCG@10 of the synthetic data's own transition probabilities: the best there is, on average."""
    from mimetic.data.sequences import load_sequences, oracle
    from mimetic.experiments.baselines import rank_metrics

    data = load_sequences("clusters")
    return rank_metrics(np.array([oracle(data.history(u, False)) for u in range(data.num_users)]), data)["ndcg10"]


def labelled(data: str, curves: pd.DataFrame) -> pd.DataFrame:
    """The curves of the central comparison's arms, in its order, arms in words (for figures.ranking_curves)."""
    parts = [curves[curves["arm"] == arm].assign(arm=ARM_LABELS.get(arm, arm)) for arm in CENTRAL[data].arms]
    return pd.concat(parts, ignore_index=True)


def kept_sentence(experiment: str = "ml100k") -> str:
    """What training keeps of the written diagonals, for both sign patterns."""
    parts = []
    for arm in (VISION, OPPOSITE):
        part = recorded_products(experiment, [arm])
        if part.empty:
            parts.append(f"{ARM_LABELS[arm]}: no run yet")
            continue
        z = part.groupby(["when", "product"])["z"].mean()
        words = []
        for product, name in (("qk", "QK"), ("vp", "V·proj")):
            start, end = z["before", product], z["after", product]
            word = "turned" if start * end < 0 else f"{end / start:.0%} kept"
            words.append(f"{name} from {start:+.2f} to {end:+.2f} ({word})".replace("-", "−"))
        parts.append(f"{ARM_LABELS[arm]}: {', '.join(words)}")
    return "Mean diagonal in off-diagonal spreads, before and after training. " + "; ".join(parts) + "."


def monday(finals: Mapping[str, pd.DataFrame]) -> str:
    """Advice to a practitioner, by what the intervals say; with each arm at its own learning rate where those runs are in."""
    gains = {}
    for data, table in finals.items():
        for arm in (VISION, OPPOSITE):
            for runs in (table, own_rates(data, table, load_runs(f"{data}-rate"))[0]):  # where both are in, the own rate's counts
                row = compare(runs, {arm: (DEFAULT, arm)}, METRIC.column)
                if len(row) and row["pairs"].iloc[0] >= ENOUGH:
                    gains[data, arm] = row.iloc[0]
    if not gains:
        return "Too few pairs are in for advice about the initialization itself; what follows holds whatever they will say."
    good = [f"{ARM_LABELS[arm]} on {TITLES[data]}" for (data, arm), row in gains.items() if row["low"] > 0]
    bad = [f"{ARM_LABELS[arm]} on {TITLES[data]}" for (data, arm), row in gains.items() if row["high"] < 0]
    if good and not bad:
        return f"It gains with {', '.join(good)}: worth a paired run on your data."
    if bad and not good:
        return f"It loses with {', '.join(bad)}, and gains nowhere that the intervals can show: keep the default."
    if good and bad:
        return f"It gains with {', '.join(good)} and loses with {', '.join(bad)}: only a paired run on your data can say."
    return "No interval excludes 0: keep the default, and spend the time on training long enough."
