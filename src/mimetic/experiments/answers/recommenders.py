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
from mimetic.experiments.configs.recommenders import CHECK_RATES, SIGN_ARMS, check_arm
from mimetic.experiments.programmes.recommenders import CENTRAL, DEFAULT, OPPOSITE, RATE, SEEDS, STUDIES, VISION
from mimetic.experiments.recommenders import METRIC
from mimetic.experiments.recorded import cases_of, recorded_products, records_of
from mimetic.figures.style import LABELS
from mimetic.statistics import (
    ENOUGH,
    compare,
    mean_interval,
    paired_differences,
    sign_flip_test,
    smallest_p,
    steps_to_reach,
)
from mimetic.training.records import load_runs

COMMAND = "python -m mimetic queue recommenders"
TITLES = {"ml100k": "MovieLens-100K", "beauty": "Amazon Beauty (1,000 items)"}
ARM_LABELS = LABELS | {VISION: "vision signs", "mimetic-qk": "QK only, vision's sign", "mimetic-vp": "V·proj only, vision's sign"}
WORTH = 0.005  # of NDCG@10: about what a seed is worth, the rule of the recipe search
draw = partial(common.draw, command=COMMAND)


def central(data: str, finals: pd.DataFrame) -> str:
    """The verdict on one data set: vision's and the opposite signs against the default."""
    return f"**{TITLES[data]}**, test NDCG@10: " + "; ".join(_against_default(finals, data)) + "."


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


def at_own_rates(data: str, finals: pd.DataFrame, other: pd.DataFrame) -> str:
    """The verdict once more, each arm at its own learning rate."""
    runs, rates = own_rates(data, finals, other)
    if not rates:
        return f"On {TITLES[data]} with each at its own learning rate: no pair yet."
    common_lr, other_lr = (EXPERIMENTS[name].lr for name in (data, f"{data}-rate"))
    if set(rates.values()) == {common_lr}:
        seeds = runs["seed"].nunique()
        return (
            f"By the validation items each of these arms is at its better learning rate: {common_lr:g}, against {other_lr:g} ({seeds} seed{'s' * (seeds != 1)})."
        )
    chosen = ", ".join(f"{ARM_LABELS[arm]} {lr:g}" for arm, lr in rates.items())
    return f"On {TITLES[data]} with each at its own learning rate, by the validation items ({chosen}): {'; '.join(_against_default(runs))}."


def without_a_diagonal(finals: pd.DataFrame) -> str:
    """What the size of the weights does alone: the two controls against the default; "" without a pair of either."""
    arms = {"the default's weights at the norms of vision's signs": "timm-rescaled", "their singular values in random directions": "random-directions"}
    table = compare(finals, {name: (DEFAULT, arm) for name, arm in arms.items()}, METRIC.column)
    words = [f"{name} {finding(row, METRIC)}" for name, row in table.iterrows()]
    return f"As large, without a diagonal: {'; '.join(words)}." if words else ""


def _against_default(finals: pd.DataFrame, data: str | None = None) -> list[str]:
    """Each sign pattern against the default in words; with data, other users' interval from the records of that experiment."""
    lines = []
    for arm, name in ((VISION, "vision's signs"), (OPPOSITE, "the opposite signs")):
        if not {DEFAULT, arm} <= set(finals["arm"]) or (pairs := paired_differences(finals, METRIC.column, (DEFAULT, arm))).empty:
            lines.append(f"{name}: no pair yet")
            continue
        n, d = len(pairs), pairs["difference"]
        low, high = mean_interval(d)
        text = f"{name}: {METRIC.signed(d.mean())} on {pairs[DEFAULT].mean():.4f} over {n} paired seed{'s' if n > 1 else ''}"
        if n > 1:
            text += f", 95 % interval {METRIC.signed(low)} to {METRIC.signed(high)}, ahead in {(d > 0).sum()}"
        users = user_differences(data, arm) if data else []
        if len(users):
            low_u, high_u = mean_interval(users)
            text += f" (for these seeds and other users: {METRIC.signed(low_u)} to {METRIC.signed(high_u)})"
        if n == 1:
            text += ", which proves nothing"
        elif n < ENOUGH:
            text += f"; {n} pairs cannot carry a claim (smallest possible p {smallest_p(n, 'two-sided'):.3f})"
        else:
            word = "more than chance explains" if low > 0 or high < 0 else "which chance can explain"
            text += f"; {word} (exact sign-flip test, p = {sign_flip_test(d):.3f}; {n} pairs can give {smallest_p(n, 'two-sided'):.3f} at best)"
        lines.append(text)
    return lines


def user_differences(experiment: str, arm: str, reference: str = DEFAULT) -> np.ndarray:
    """Every user's NDCG@10 under an arm minus that under its reference, mean over the paired seeds whose records hold the users'
    ranks; empty if there is none. Its spread says what other users would have changed, as pairs of seeds say it of other seeds."""
    gains = {(r["arm"], r["seed"]): np.where(ranks <= 10, 1 / np.log2(1 + ranks), 0.0)
             for r in records_of(experiment, (arm, reference)) if len(ranks := cases_of(r, "ranks"))}  # fmt: skip
    seeds = [seed for name, seed in gains if name == arm and (reference, seed) in gains]
    return np.mean([gains[arm, seed] - gains[reference, seed] for seed in seeds], axis=0) if seeds else np.array([])


def verdict(finals: Mapping[str, pd.DataFrame]) -> str:
    """The chapter's answer: both data sets, with one recipe and with each arm at its own learning rate, and how many runs are missing."""
    parts = [central(data, table) + " " + at_own_rates(data, table, load_runs(f"{data}-rate")) + " " + without_a_diagonal(table) for data, table in finals.items()]
    gaps = [f"{TITLES[data]}: {text.strip('*')}" for data, table in finals.items() if (text := common.missing(CENTRAL[data], table, SEEDS[data], COMMAND))]
    return "\n\n".join(parts) + ("\n\n*" + " ".join(gaps) + "*" if gaps else "")


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


def converged(curves: pd.DataFrame, data: str) -> str:
    """How far the default's validation NDCG@10 still moved in the last fifth of the run."""
    part = curves[curves["arm"] == DEFAULT]
    if part.empty:
        return f"No run of the default on {TITLES[data]} is in yet."
    mean = part.groupby("epoch")["test_validation_ndcg10"].mean()
    fifth = max(1, len(mean) // 5)
    change = mean.iloc[-fifth:].mean() - mean.iloc[-2 * fifth : -fifth].mean()
    word = "level" if abs(change) < WORTH else "still rising" if change > 0 else "falling"
    return (
        f"On {TITLES[data]} the default's validation NDCG@10 is {word} at the end: {mean.iloc[-fifth:].mean():.4f} in the last {fifth} epochs, "
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
    """What twice the training adds, for the default and the vision signs, and the recipe that was taken, from the configs."""
    checks = (("ml100k", "", "lr-0.001-epochs-40", "lr-0.001-epochs-80"), ("beauty", "", "epochs-40", "epochs-80"),
              ("ml100k", " with vision signs", "mimetic-lr-0.001-epochs-40", "mimetic-lr-0.001-epochs-80"))  # fmt: skip
    parts = []
    for data, who, short, long in checks:
        runs = load_runs(f"{data}-recipe")
        if {short, long} <= set(runs["arm"]):
            a, b = (runs.loc[(runs["arm"] == arm) & (runs["seed"] == 0), "test_validation_ndcg10"].mean() for arm in (short, long))
            word = "less than a seed is worth" if abs(b - a) < WORTH else "better by more than a seed is worth" if b > a else "worse by more than a seed is worth"
            parts.append(f"on {TITLES[data]}{who} 80 epochs in place of 40 change validation NDCG@10 by {METRIC.signed(b - a)}, {word}")
    config = EXPERIMENTS["ml100k"]
    epochs = ", ".join(f"{EXPERIMENTS[data].epochs} on {title}" for data, title in TITLES.items())
    text = f"Taken: learning rate {config.lr:g}, {config.mask_prob:.0%} masked; epochs of {config.passes} passes: {epochs}."
    for part in parts:
        text += f" O{part[1:]}."
    lacking = len(checks) - len(parts)
    return text + (f" Of {lacking} of {len(checks)} such checks the longer run is not in yet." if lacking else "")


def fairness_sentence(data: str = "ml100k") -> str:
    """Whether an arm would be better off at another learning rate than the common one, by the validation items."""
    runs, common_lr = load_runs(f"{data}-recipe"), EXPERIMENTS[data].lr
    first = runs[(runs["seed"] == 0)].set_index("arm")["test_validation_ndcg10"] if len(runs) else pd.Series(dtype=float)
    parts, lacking = [], []
    for arm in SIGN_ARMS:
        names = {lr: check_arm(f"{data}-recipe", arm, lr) for lr in CHECK_RATES}
        if not set(names.values()) <= set(first.index):
            lacking.append(ARM_LABELS[arm])
            continue
        values = pd.Series({lr: first[name] for lr, name in names.items()})
        gain = values.max() - values[common_lr]
        parts.append(
            f"{ARM_LABELS[arm]}: best at {values.idxmax():g} ({values.max():.4f}), "
            + ("no better than at the common rate by more than a seed is worth" if gain < WORTH else f"{METRIC.signed(gain)} over the common rate: the recipe is unfair to it")
        )
    text = f"{TITLES[data]}: {'; '.join(parts)}." if parts else f"{TITLES[data]}:"
    return (text + (f" Not searched yet: {', '.join(lacking)} (`python -m mimetic queue recommenders-recipe`)." if lacking else "")).strip()


def steps_table(finals: pd.DataFrame, curves: pd.DataFrame, arms: tuple[str, ...]) -> pd.DataFrame:
    """Epochs to the default's final validation NDCG@10: a row an arm, the default first, whose own curve reaches it before its end,
    since curves are noisy. Mean share of the run after which the arm's curve first reaches it (a run that never does counts as 1), in
    how many pairs it does, and the paired difference of that share to the default's with its 95 % interval."""
    column, rows = "test_validation_ndcg10", {}

    if DEFAULT not in set(finals["arm"]):
        return pd.DataFrame()
    targets = finals[finals["arm"] == DEFAULT].set_index("seed")[column]
    own = _shares(curves, DEFAULT, targets, column)
    rows[ARM_LABELS[DEFAULT]] = {"share of the run": own.mean(), "reached": int(own.notna().sum()), "pairs": len(own)}
    for arm in arms:
        if arm == DEFAULT or arm not in set(finals["arm"]) or (found := _shares(curves, arm, targets, column)).empty:
            continue
        difference = (found.fillna(1.0) - own.reindex(found.index).fillna(1.0)).to_numpy()
        low, high = mean_interval(difference)
        rows[ARM_LABELS.get(arm, arm)] = {
            "share of the run": found.fillna(1.0).mean(), "reached": int(found.notna().sum()), "pairs": len(found),
            "earlier than the default by": -difference.mean(), "from": -high, "to": -low,
        }  # fmt: skip
    return common.blank(pd.DataFrame.from_dict(rows, orient="index").round(2))


def _shares(curves: pd.DataFrame, arm: str, targets: pd.Series, column: str) -> pd.Series:
    """seed -> share of the run after which the arm's own curve first reaches the seed's target; nan: never."""
    found = {}
    for seed, curve in curves[(curves["arm"] == arm) & curves["seed"].isin(targets.index)].groupby("seed"):
        curve = curve.sort_values("step")
        found[seed] = steps_to_reach(curve, targets[seed], column) / curve["step"].max()
    return pd.Series(found, dtype=float)


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
