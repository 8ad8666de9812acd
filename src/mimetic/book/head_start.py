"""What chapter 6 says of the way: how much sooner mimetic initialization gets there, whether its lead is a head start,
and what a shorter schedule leaves of it."""

from __future__ import annotations

import pandas as pd

from mimetic.book import common
from mimetic.experiments.configs import EXPERIMENTS
from mimetic.experiments.metrics import ACCURACY
from mimetic.experiments.programmes.vision import CENTRAL, PAIR
from mimetic.statistics import ENOUGH, difference, mean_interval, paired_differences, summary
from mimetic.training.records import load_runs


def steps_saved(finals: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """One row a seed: the default's final accuracy; after which share of the run each arm's own curve first reaches it
    (linear between epochs; missing: never); and how much earlier the mimetic arm does, as a share of the run (a run
    that never does counts as 1)."""
    columns = ["default at the end (%)", "mimetic", "default", "earlier by"]
    targets = paired_differences(finals)[PAIR[0]]
    default, mimetic = _passages(curves, targets)
    return pd.concat([100 * targets, mimetic, default, default.fillna(1.0) - mimetic.fillna(1.0)], axis=1, keys=columns)


def _passages(curves: pd.DataFrame, targets: pd.Series) -> list[pd.Series]:
    """common.first_passage of the default and of mimetic initialization, for every seed of the targets."""
    return [common.first_passage(curves, arm, targets, "test_accuracy").reindex(targets.index) for arm in PAIR]


def steps_sentence(finals: pd.DataFrame, curves: pd.DataFrame) -> str:
    """steps_saved in words."""
    table = steps_saved(finals, curves)
    if table.empty:
        return "No pair of runs is in yet."
    own, share = table["default"].fillna(1.0), table["mimetic"]
    if share.isna().all():
        return f"In none of {len(share)} pairs does the mimetic arm reach the default's final accuracy."
    text = (
        f"The mimetic runs first reach the default's final accuracy after"
        f" {common.percent(share.fillna(1.0).mean())} of the schedule, the default's own after"
        f" {common.percent(own.mean())}"
    )
    if share.isna().any():
        text += f" (in {share.notna().sum()} of {len(share)} pairs; the others count as the whole run)"
    lead, (low, high) = table["earlier by"].mean(), mean_interval(table["earlier by"])
    text += f": **{'earlier' if lead > 0 else 'later'} by {common.percent(abs(lead))} of the run**"
    if len(share) > 1:
        text += common.minus(f" (95 % interval {100 * low:+.0f} to {100 * high:+.0f}, {len(share)} pairs)")
    text += "."
    if marks := on_the_way(curves):
        text += f" Lower accuracies are passed {on_the_way_sentence(marks)}."
        if max(earlier.mean() for earlier in marks.values()) < lead:
            text += (
                " The lead in time is largest at the end, where the mimetic runs are higher and the curves are flat."
            )
    return text


MARKS = (0.5, 0.55, 0.6)  # accuracies on the way, which the curves of a laboratory run pass


def on_the_way(curves: pd.DataFrame, marks: tuple[float, ...] = MARKS) -> dict[float, pd.Series]:
    """mark -> how much earlier than the default's curve the mimetic arm's first reaches that accuracy, as a share of
    the run, a number a seed; marks that some run of a pair never reaches are left out."""
    if curves.empty or not set(PAIR) <= set(curves["arm"]):
        return {}
    seeds = sorted(set.intersection(*(set(curves.loc[curves["arm"] == arm, "seed"]) for arm in PAIR)))
    found = {}
    for mark in marks:
        default, mimetic = _passages(curves, pd.Series(mark, index=seeds))
        earlier = default - mimetic
        if len(seeds) and earlier.notna().all():
            found[mark] = earlier
    return found


def on_the_way_sentence(marks: dict[float, pd.Series]) -> str:
    """on_the_way in words; "" if no mark is passed in all runs."""
    said = []
    for mark, earlier in marks.items():
        low, high = mean_interval(earlier)
        unseen = ": not visibly" if low < 0 < high else ""
        span = f" ({common.IN_PERCENT.span(low, high)}{unseen})" if len(earlier) > 1 else ""
        said.append(f"{100 * mark:.0f} by {100 * earlier.mean():.1f} % of the run{span}")
    return common.minus(f"earlier by less: {', '.join(said)}") if said else ""


def gap_by_epoch(curves: pd.DataFrame, reference: str = "timm", arm: str = "mimetic") -> pd.DataFrame:
    """Arm minus reference of the same seed, by epoch: difference, low, high (95 % interval over seeds), pairs."""
    rows = {}
    for epoch, part in curves.groupby("epoch"):
        values = difference(part, arm, reference)
        if len(values):
            rows[epoch] = summary(values)
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("epoch")


def gap_sentence(curves: pd.DataFrame) -> str:
    """Whether the lead is only a head start: the gap at the first epoch, at its smallest, in the last quarter of the
    run."""
    gap = gap_by_epoch(curves)
    if gap.empty:
        return "No pair of runs is in yet."
    first, low = gap.iloc[0], gap["difference"].idxmin()
    tail, least = gap.iloc[-max(1, len(gap) // 4) :], gap.loc[low]
    span = f", {ACCURACY.span(least['low'], least['high'])}" if least["pairs"] > 1 else ""
    text = (
        f"The lead is {ACCURACY.signed(first['difference'])} points after the first epoch,"
        f" at its smallest at epoch {low} ({ACCURACY.signed(least['difference'])}{span}),"
        f" and {ACCURACY.span(tail['difference'].min(), tail['difference'].max())} in the last {len(tail)} epochs."
    )
    if first["pairs"] < ENOUGH:
        return text + " Too few pairs for a verdict."
    end = gap.iloc[-1]
    if end["high"] < 0:
        says = "a head start that ends behind the default" if first["low"] > 0 else "no lead, but a loss"
    elif end["low"] > 0:
        says = "more than a head start"
    elif first["low"] > 0:
        says = "a head start that these pairs cannot tell from nothing at the end"
    else:
        says = "no lead that these pairs can show"
    return f"{text} In this schedule it is {says}."


SHORT = "cifar10-lab10"  # the same with a shorter schedule: chapter 7's runs


def schedules(finals: pd.DataFrame) -> list[tuple[str, pd.Series]]:
    """How the lead at the end of the central runs compares with that of the same seeds at the end of the shorter
    schedule, in words, and the difference as summary has it: of all its runs, and of those that the machine of these
    made (data/replicas)."""
    if finals.empty or set(finals["experiment"]) != {CENTRAL.experiment}:
        return []
    here, machines, said = difference(finals, PAIR[1], PAIR[0]), set(finals["device.name"]), []
    again = common.replicas(SHORT)
    of_these = again[again["device.name"].isin(machines)] if len(again) else again
    for runs in (load_runs(SHORT), of_these):
        there = difference(runs, PAIR[1], PAIR[0])
        seeds = there.index.intersection(here.index)
        if len(seeds) > 1:
            row, made = summary(here[seeds] - there[seeds]), set(runs.loc[runs["arm"].isin(PAIR), "device.name"])
            where = "" if made == machines else f", the shorter runs on {', '.join(sorted(made))}"
            text = (
                f"{ACCURACY.signed(there[seeds].mean())} points after {EXPERIMENTS[SHORT].epochs} epochs,"
                f" {ACCURACY.signed(here[seeds].mean())} after {EXPERIMENTS[CENTRAL.experiment].epochs}"
                f" ({row['pairs']} pairs{where};"
                f" difference {ACCURACY.signed(row['difference'])}, {ACCURACY.span(row['low'], row['high'])})"
            )
            said.append((text, pd.Series(row)))
    return said


def shorter(finals: pd.DataFrame) -> str:
    """The last of schedules, that of one kind of machine if there is one, as a paragraph of chapter 6; "" without
    runs."""
    if not (said := schedules(finals)):
        return ""
    text, row = said[-1]
    word = "smaller" if row["high"] < 0 else "larger" if row["low"] > 0 else "not visibly another"
    long, short = EXPERIMENTS[CENTRAL.experiment].epochs, EXPERIMENTS[SHORT].epochs
    return (
        f"In a longer schedule the lead is {word}: at the end of runs planned for {short} or for {long} epochs, of the"
        f" same seeds, it is {text}. The figure cannot show this: at its epoch {short} the learning rate is still high."
        " What a hundred epochs would leave is open."
    )
