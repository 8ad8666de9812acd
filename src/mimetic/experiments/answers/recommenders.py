"""What the recommender chapter (12) says of the experiment: the verdict, the scores, convergence, what training keeps, advice."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial

import numpy as np
import pandas as pd

from mimetic.experiments.answers import common
from mimetic.experiments.baselines import baselines_path
from mimetic.experiments.configs import EXPERIMENTS
from mimetic.experiments.programmes.recommenders import CENTRAL, DEFAULT, OPPOSITE, SEEDS, STUDIES, VISION
from mimetic.experiments.recommenders import METRIC
from mimetic.experiments.recorded import recorded_products
from mimetic.figures.style import LABELS
from mimetic.statistics import ENOUGH, compare, mean_interval, paired_differences, sign_flip_test, smallest_p, steps_to_reach
from mimetic.training.records import load_runs

COMMAND = "python -m mimetic queue recommenders"
TITLES = {"ml100k": "MovieLens-100K", "beauty": "Amazon Beauty (1,000 items)"}
ARM_LABELS = LABELS | {VISION: "vision signs", "mimetic-qk": "QK only, vision's sign", "mimetic-vp": "V·proj only, vision's sign"}
WORTH = 0.005  # of NDCG@10: about what a seed is worth, the rule of the recipe search
draw = partial(common.draw, command=COMMAND)


def central(data: str, finals: pd.DataFrame) -> str:
    """The verdict on one data set: vision's and the opposite signs against the default."""
    title = TITLES[data]
    lines = []
    for arm, name in ((VISION, "vision's signs"), (OPPOSITE, "the opposite signs")):
        if not {DEFAULT, arm} <= set(finals["arm"]) or (pairs := paired_differences(finals, METRIC.column, (DEFAULT, arm))).empty:
            lines.append(f"{name}: no pair yet")
            continue
        n, d = len(pairs), pairs["difference"]
        p, (low, high) = sign_flip_test(d), mean_interval(d)
        text = f"{name}: {METRIC.signed(d.mean())} on {pairs[DEFAULT].mean():.4f} over {n} paired seed{'s' if n > 1 else ''}"
        if n == 1:
            text += ", which proves nothing"
        else:
            text += f", 95 % interval {METRIC.signed(low)} to {METRIC.signed(high)}, ahead in {(d > 0).sum()}"
            if smallest_p(n, "two-sided") > 0.05:
                text += f"; {n} pairs cannot carry a claim (smallest possible p {smallest_p(n, 'two-sided'):.3f})"
            else:
                text += f"; {'more than chance explains' if p < 0.05 else 'which chance can explain'} (exact sign-flip test, p = {p:.3f})"
        lines.append(text)
    return f"**{title}**, test NDCG@10: " + "; ".join(lines) + "."


def verdict(finals: Mapping[str, pd.DataFrame]) -> str:
    """The chapter's answer: both data sets, and how many runs are missing."""
    parts = [central(data, table) for data, table in finals.items()]
    gaps = [f"{TITLES[data]}: {text.strip('*')}" for data, table in finals.items() if (text := common.missing(CENTRAL[data], table, SEEDS[data], COMMAND))]
    return "\n\n".join(parts) + ("\n\n*" + " ".join(gaps) + "*" if gaps else "")


def found(name: str, finals: pd.DataFrame, seeds: tuple[int, ...]) -> str:
    """A study's findings as Markdown, one line a comparison, and how many runs are missing."""
    study = STUDIES[name]
    return common.findings(study, finals, common.missing(study, finals, seeds, COMMAND), METRIC, "mean difference of NDCG@10")


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
    return out.sort_values("data", key=lambda c: c.map(order), kind="stable").set_index(["data", "recommender"]).round(4)


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


def converged(curves: pd.DataFrame, data: str) -> str:
    """Whether the default's validation NDCG@10 still moved in the last fifth of the run."""
    part = curves[curves["arm"] == DEFAULT]
    if part.empty:
        return f"No run of the default on {TITLES[data]} is in yet."
    mean = part.groupby("epoch")["test_validation_ndcg10"].mean()
    fifth = max(1, len(mean) // 5)
    change = mean.iloc[-fifth:].mean() - mean.iloc[-2 * fifth : -fifth].mean()
    word = "has converged" if abs(change) < WORTH else "is still rising" if change > 0 else "is falling"
    return (
        f"On {TITLES[data]} the default's validation NDCG@10 {word}: {mean.iloc[-fifth:].mean():.4f} in the last {fifth} epochs, "
        f"{METRIC.signed(change)} against the {fifth} before ({part['seed'].nunique()} seed{'s' if part['seed'].nunique() > 1 else ''})."
    )


def recipe_table() -> pd.DataFrame:
    """The search for the recipe: validation NDCG@10 by data set and setting."""
    rows = []
    for data in TITLES:
        runs = load_runs(f"{data}-recipe")
        if len(runs):
            for arm, part in runs.groupby("arm"):
                settings = {key: part[f"config.{key}"].iloc[0] for key in ("lr", "mask_prob", "epochs")}
                rows.append({"data": TITLES[data], "setting": arm, **settings, "validation NDCG@10": part["test_validation_ndcg10"].mean()})
    table = pd.DataFrame(rows)
    return table.set_index(["data", "setting"]).round(4) if len(table) else table


def recipe_sentence() -> str:
    """What the longest training adds, and the recipe that was taken, from the configs."""
    parts = []
    for data, short, long in (("ml100k", "lr-0.001-epochs-40", "lr-0.001-epochs-80"), ("beauty", "epochs-40", "epochs-80")):
        runs = load_runs(f"{data}-recipe")
        if {short, long} <= set(runs["arm"]):
            a, b = (runs.loc[runs["arm"] == arm, "test_validation_ndcg10"].mean() for arm in (short, long))
            word = "less than a seed is worth" if abs(b - a) < WORTH else "more than a seed is worth"
            parts.append(f"on {TITLES[data]} 80 epochs in place of 40 change validation NDCG@10 by {METRIC.signed(b - a)}, {word}")
    config = EXPERIMENTS["ml100k"]
    epochs = ", ".join(f"{EXPERIMENTS[data].epochs} on {title}" for data, title in TITLES.items())
    text = f"Taken: learning rate {config.lr:g}, {config.mask_prob:.0%} masked; epochs of {config.passes} passes: {epochs}."
    for part in parts:
        text += f" O{part[1:]}."
    return text if len(parts) == len(TITLES) else f"{text} Of {len(TITLES) - len(parts)} of the {len(TITLES)} data sets the longer run is not in yet."


def steps_table(finals: pd.DataFrame, curves: pd.DataFrame, arms: tuple[str, ...]) -> pd.DataFrame:
    """Epochs to the default's final NDCG@10: one row an arm, the mean share of the run after which its own curve first reaches it,
    and in how many pairs it does."""
    rows = {}
    for arm in arms:
        if arm == DEFAULT or not {DEFAULT, arm} <= set(finals["arm"]):
            continue
        shares = []
        for seed, pair in paired_differences(finals, METRIC.column, (DEFAULT, arm)).iterrows():
            curve = curves[(curves["arm"] == arm) & (curves["seed"] == seed)].sort_values("step")
            shares.append(steps_to_reach(curve, pair[DEFAULT], METRIC.column) / curve["step"].max())
        if shares:
            reached = np.isfinite(shares)
            rows[ARM_LABELS.get(arm, arm)] = {
                "share of the run": np.mean(np.array(shares)[reached]) if reached.any() else np.nan,
                "pairs that reach it": int(reached.sum()), "pairs": len(shares),
            }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index").round(2)


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
    """Advice to a practitioner, by what the intervals say."""
    gains = {}
    for data, table in finals.items():
        for arm in (VISION, OPPOSITE):
            row = compare(table, {arm: (DEFAULT, arm)}, METRIC.column)
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
