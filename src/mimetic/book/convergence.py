"""What the second recommender chapter (12b) says of the training: did it last long enough, at a fair recipe, how soon
does an arm get there, and what another learning rate and other items change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from mimetic.book import common
from mimetic.book.recommenders import AGAINST_DEFAULT, COMMAND, COMPARED, TITLES, VALIDATION_COLUMN, arm_label
from mimetic.experiments.configs import EXPERIMENTS
from mimetic.experiments.configs.recommenders import CHECK_RATES, SIGN_ARMS, check_arm
from mimetic.experiments.programmes.recommenders import DEFAULT, RANDOM, RESCALED, SIBLING_PREFIX
from mimetic.experiments.recommenders import METRIC
from mimetic.statistics import difference, mean_interval, side, summary
from mimetic.training.records import load_runs

# What a difference of NDCG@10 must be to count, by the rule of the recipe search: about the spread of the difference of
# two runs on MovieLens, twice that on Beauty
WORTH = 0.005
ITEMS = {"last items": METRIC.column, "last but one": VALIDATION_COLUMN}


def converged(curves: pd.DataFrame, data: str) -> str:
    """How far the default's validation NDCG@10 still moved in the last fifth of the run."""
    part = curves[curves["arm"] == DEFAULT]
    if part.empty:
        return f"No run of the default on {TITLES[data]} is in yet."
    level, change, fifth = _last_fifths(part)
    word = "level" if abs(change) < WORTH else "still rising" if change > 0 else "falling"
    return (
        f"On {TITLES[data]} the default's validation NDCG@10 is {word} at the end:"
        f" {level:.4f} in the last {fifth} epochs, {METRIC.signed(change)} against the {fifth} before"
        f" ({common.plural(part['seed'].nunique(), 'seed')})."
    )


def _last_fifths(curve: pd.DataFrame) -> tuple[float, float, int]:
    """Mean validation NDCG@10 of the last fifth of the epochs, its difference to the fifth before, and the epochs in a
    fifth."""
    mean = curve.groupby("epoch")[VALIDATION_COLUMN].mean()
    fifth = max(1, len(mean) // 5)
    return mean.iloc[-fifth:].mean(), mean.iloc[-fifth:].mean() - mean.iloc[-2 * fifth : -fifth].mean(), fifth


def converged_table(curves: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Validation NDCG@10 at the end of every arm but the default, which converged() has: last fifth of the epochs,
    difference to the fifth before, and how far below the curve's highest point it is, all of the mean over seeds."""
    rows = {}
    for data, table in curves.items():
        for arm in dict.fromkeys(table["arm"]):
            if arm == DEFAULT:
                continue
            part = table[table["arm"] == arm]
            level, change, _ = _last_fifths(part)
            mean = part.groupby("epoch")[VALIDATION_COLUMN].mean()
            rows[TITLES[data], arm_label(arm)] = {
                "seeds": part["seed"].nunique(),
                "epochs": int(mean.index.max()),
                "last fifth": level,
                "minus the fifth before": change,
                "minus the best epoch": mean.iloc[-1] - mean.max(),
            }
    return pd.DataFrame.from_dict(rows, orient="index").round(4)


def recipe_table() -> pd.DataFrame:
    """The search for the recipe: validation NDCG@10 by data set and setting."""
    rows = {}
    for data, title in TITLES.items():
        for arm, part in load_runs(f"{data}-recipe").groupby("arm"):
            values = part.set_index("seed")[VALIDATION_COLUMN]
            rows[title, arm] = {key: part[f"config.{key}"].iloc[0] for key in ("lr", "mask_prob", "epochs")} | {
                "seeds": len(values), "validation NDCG@10": values.mean(), "seed 0": values.get(0, float("nan")),
            }  # fmt: skip
    table = pd.DataFrame.from_dict(rows, orient="index").round(4)
    return common.blank(table.rename_axis(["data", "setting"])) if rows else table


def recipe_sentence() -> str:
    """What twice the training adds, for the default and the vision signs, and the recipe that was taken, from the
    configs."""
    checks = (("ml100k", "", "lr-0.001-epochs-40", "lr-0.001-epochs-80"), ("beauty", "", "epochs-40", "epochs-80"),
              ("ml100k", " with vision signs", "mimetic-lr-0.001-epochs-40", "mimetic-lr-0.001-epochs-80"))  # fmt: skip
    parts = []
    for data, who, short, long in checks:
        runs = load_runs(f"{data}-recipe")
        if {short, long} <= set(runs["arm"]):
            a, b = (
                runs.loc[(runs["arm"] == arm) & (runs["seed"] == 0), VALIDATION_COLUMN].mean() for arm in (short, long)
            )
            more = f"{'better' if b > a else 'worse'} by more than"
            word = f"{'less than' if abs(b - a) < WORTH else more} {WORTH:g}"
            parts.append(f"{METRIC.signed(b - a)} on {TITLES[data]}{who}, {word}")
    config = EXPERIMENTS["ml100k"]
    batches = " and ".join(f"{EXPERIMENTS[data].batch_size} ({title})" for data, title in TITLES.items())
    epochs = ", ".join(f"{EXPERIMENTS[data].epochs} on {title}" for data, title in TITLES.items())
    text = (
        f"Taken: learning rate {config.lr:g}, {common.percent(config.mask_prob)} masked, dropout {config.dropout:g},"
        f" weight decay {config.weight_decay:g}, warm-up over the first {common.percent(config.warmup)} of the run;"
        f" batches of {batches} sequences; epochs of {config.passes} passes: {epochs}."
    )
    if parts:
        text += f" With seed 0, 80 epochs in place of 40 change validation NDCG@10 by {'; '.join(parts)}."
    lacking = len(checks) - len(parts)
    return text + (f" Of {lacking} of {len(checks)} such checks the longer run is not in yet." if lacking else "")


def fairness_sentence(data: str = "ml100k") -> str:
    """Whether an arm would be better off at another learning rate than the common one, by the validation items: with
    one seed, and where it would by more than WORTH and the rate was run with more, with these."""
    runs, common_lr = load_runs(f"{data}-recipe"), EXPERIMENTS[data].lr
    here, there = load_runs(data), load_runs(f"{data}-rate")
    first = runs[runs["seed"] == 0].set_index("arm")[VALIDATION_COLUMN] if len(runs) else pd.Series(dtype=float)
    parts, lacking = [], []
    for arm in SIGN_ARMS:
        names = {lr: check_arm(f"{data}-recipe", arm, lr) for lr in CHECK_RATES}
        if not set(names.values()) <= set(first.index):
            lacking.append(arm_label(arm))
            continue
        values = pd.Series({lr: first[name] for lr, name in names.items()})
        gain = values.max() - values[common_lr]
        says = "the common rate" if gain == 0 else f"no better than at the common rate by more than {WORTH:g}"
        if gain >= WORTH:
            says = f"{METRIC.signed(gain)} over the common rate with seed 0"
            change = pd.Series(dtype=float)
            if values.idxmax() == EXPERIMENTS[f"{data}-rate"].lr:
                change = difference(there, arm, arm, VALIDATION_COLUMN, here)
            if len(change) > 1:
                so = "it is confirmed, so the recipe is unfair to it" if side(change) > 0 else "that is not confirmed"
                says += f"; with all {len(change)} seeds, on the same items, {so} ([below](#other-items))"
            else:
                says += ": the recipe may be unfair to it"
        parts.append(f"{arm_label(arm)}: best at {values.idxmax():g} ({values.max():.4f}), {says}")
    text = f"{TITLES[data]}: {'; '.join(parts)}." if parts else f"{TITLES[data]}:"
    if lacking:
        text += f" Not searched yet: {', '.join(lacking)} (`python -m mimetic queue recommenders-recipe`)."
    return text


def rate_table(finals: Mapping[str, pd.DataFrame], others: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """What the other learning rate changes for the default, both sign patterns and both size controls, and the default
    at the other rate against both sign patterns at the common one: mean over all seeds that have both, 95 % interval,
    number of seeds, as text; a column a data set and kind of held-out item. Empty without runs at both rates."""
    rows: dict[str, dict[str, str]] = {}
    for data, runs in finals.items():
        here, there = (EXPERIMENTS[name].lr for name in (data, f"{data}-rate"))
        pairs = {f"{arm_label(arm)}, {there:g} minus {here:g}": (arm, arm) for arm in (*SIGN_ARMS, RESCALED, RANDOM)}
        pairs |= {
            f"default at {there:g} minus {arm_label(arm)} at {here:g}": (DEFAULT, arm)
            for arm in SIGN_ARMS
            if arm != DEFAULT
        }
        for items, column in ITEMS.items():
            for name, (arm, reference) in pairs.items():
                change = difference(others[data], arm, reference, column, runs)
                if len(change) > 1:
                    cell = f"{common.with_interval(change, METRIC)}, {len(change)}"
                    rows.setdefault(name, {})[f"{TITLES[data].split(' (')[0]}, {items}"] = cell
    return pd.DataFrame.from_dict(rows, orient="index").fillna("")


def elsewhere(data: str, finals: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """The comparisons that the answer rests on at both learning rates and on both held-out items, as text: a row the
    default's mean and each difference with its interval and number of pairs, a column a rate and kind of item, and one
    the mean of each seed's four. Nothing is chosen.

    Args:
        finals: the runs at the common rate.
        other: those of the same arms at the other one.
    """
    columns = {}
    for place, (runs, column) in _places(data, finals, other).items():
        default = runs.loc[runs["arm"] == DEFAULT, column] if len(runs) else ()
        columns[place] = {"default": f"{default.mean():.4f}"} if len(default) else {}
    for place, found in _differences(data, finals, other).items():
        cells = columns.setdefault(place, {})
        for name, values in found.items():
            several = f"{common.with_interval(values, METRIC)}, {len(values)}"
            cells[name] = several if len(values) > 1 else f"{METRIC.signed(values.iloc[0])}, one pair"
    columns = {place: cells for place, cells in columns.items() if set(cells) - {"default"}}
    order = [name for name in ("default", *COMPARED) if any(name in cells for cells in columns.values())]
    return pd.DataFrame(columns, dtype=object).reindex(order).fillna("")


def _places(data: str, finals: pd.DataFrame, other: pd.DataFrame) -> dict[str, tuple[pd.DataFrame, str]]:
    """Where the comparisons were made: kind of item and learning rate -> runs and column."""
    return {
        f"{items}, {EXPERIMENTS[name].lr:g}": (runs, column)
        for items, column in ITEMS.items()
        for name, runs in ((data, finals), (f"{data}-rate", other))
    }


def _differences(data: str, finals: pd.DataFrame, other: pd.DataFrame) -> dict[str, dict[str, pd.Series]]:
    """The paired differences of COMPARED in every one of _places, and the mean of each seed's four; without what has no
    pair (the mean: fewer than two)."""
    found = {
        place: {name: difference(runs, arm, reference, column) for name, (reference, arm) in COMPARED.items()}
        for place, (runs, column) in _places(data, finals, other).items()
        if len(runs)
    }
    found = {place: {name: v for name, v in cells.items() if len(v)} for place, cells in found.items()}
    if not (finals.empty or other.empty):
        means = {name: _mean_of_all(finals, other, arms) for name, arms in COMPARED.items()}
        found["mean of the four"] = {name: v for name, v in means.items() if len(v) > 1}
    return found


def sides(data: str, finals: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """elsewhere() in signs: on which side of 0 a comparison's interval lies, "0" for both, in brackets where the exact
    test does not say so; "" with too few pairs. Empty without a pair."""
    columns = {
        place: {name: _side_sign(values) for name, values in cells.items()}
        for place, cells in _differences(data, finals, other).items()
        if cells
    }
    table = pd.DataFrame(columns, dtype=object)
    return table.reindex([name for name in COMPARED if name in table.index]).fillna("")


def _side_sign(values: pd.Series) -> str:
    if len(values) < common.ENOUGH:
        return ""
    sign = {1: "+", -1: "−", 0: "0"}[side(values)]
    return f"({sign})" if common.exact_p(summary(values)) else sign


def _mean_of_all(finals: pd.DataFrame, other: pd.DataFrame, arms: tuple[str, str]) -> pd.Series:
    """seed -> the mean of the four differences of two arms: at both rates, on both kinds of items."""
    reference, arm = arms
    differences = [difference(runs, arm, reference, column) for runs in (finals, other) for column in ITEMS.values()]
    return pd.concat(differences, axis=1).dropna().mean(axis=1)


def at_best_epoch(curves: pd.DataFrame) -> str:
    """The causal sibling's sign patterns against its default where every run is judged at the epoch that is best by its
    own validation items; "" without runs."""
    best = {}
    for arm in SIGN_ARMS:
        part = curves[curves["arm"] == SIBLING_PREFIX + arm] if len(curves) else curves
        if part.empty:
            return ""
        rows = part.loc[part.groupby("seed")[VALIDATION_COLUMN].idxmax()].set_index("seed")
        best[arm] = rows[METRIC.column], rows["epoch"].mean()
    said = []
    for arm in SIGN_ARMS:
        if arm != DEFAULT:
            change = (best[arm][0] - best[DEFAULT][0]).dropna()
            if not len(change):
                return ""
            said.append(f"{arm_label(arm)} {common.measured(change, METRIC)}")
    epochs = ", ".join(f"{arm_label(arm).split(' (')[0]} after {epoch:.0f}" for arm, (_, epoch) in best.items())
    return (
        f"Judged where each run's own validation NDCG@10 is highest ({epochs} epochs on average), the differences to"
        f" the default are: {'; '.join(said)}."
    )


def first_reached(finals: pd.DataFrame, curves: pd.DataFrame, arms: Sequence[str]) -> pd.DataFrame:
    """When an arm's own curve first reaches the validation NDCG@10 that the default of the same seed ends with (as the
    default's, too, may before its end, since curves are noisy): mean epoch (between two epochs on the line from one to
    the other; a run that never does counts as all of its epochs), number of pairs, and the 95 % interval, from and to,
    of how much earlier that is than the default's as a share of the run; nan in the default's own row, the first."""
    column = VALIDATION_COLUMN
    if DEFAULT not in set(finals["arm"]):
        return pd.DataFrame()
    targets = finals[finals["arm"] == DEFAULT].set_index("seed")[column]
    own = common.first_passage(curves, DEFAULT, targets, column).fillna(1.0)
    epochs = curves.groupby("arm")["epoch"].max()
    rows = {arm_label(DEFAULT): {"epochs": epochs[DEFAULT] * own.mean(), "pairs": len(own)}}
    for arm in arms:
        found = common.first_passage(curves, arm, targets, column).fillna(1.0)
        if len(found):
            low, high = mean_interval((own.reindex(found.index).fillna(1.0) - found).to_numpy())
            rows[arm_label(arm)] = {
                "epochs": epochs[arm] * found.mean(), "pairs": len(found), "from": low, "to": high,
            }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index")


def sooner_sentence(finals: Mapping[str, pd.DataFrame], curves: Mapping[str, pd.DataFrame]) -> str:
    """Which signs and controls of their size reach the default's end sooner than the default, by their intervals, of
    those with enough pairs."""
    parts = []
    for data, runs in finals.items():
        table = first_reached(runs, curves[data], [arm for _, arm in AGAINST_DEFAULT.values()])
        rows = table.iloc[1:]
        rows = rows[rows["pairs"] >= common.ENOUGH] if len(rows) else rows
        if len(rows):
            sooner = rows.loc[rows["from"] > 0, "epochs"]
            said = ", ".join(f"{arm.removesuffix(' (no diagonal)')} ({epochs:.1f})" for arm, epochs in sooner.items())
            parts.append(f"on {TITLES[data]} (default: {table['epochs'].iloc[0]:.1f}) by {said or 'none'}")
    if not parts:
        return f"How soon an arm reaches the default's end is not known yet: too few pairs (`{COMMAND}`)."
    return (
        "The validation NDCG@10 that the default of a seed ends with is reached after fewer epochs (in brackets) than"
        f" by the default itself {'; '.join(parts)}. Both signs and both size controls were asked."
    )
