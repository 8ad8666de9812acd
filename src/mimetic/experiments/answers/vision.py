"""What the vision chapters say: the central claim (6) and the questions after it
(7); growth and kept have chapters 8 and 9.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import torch

from mimetic.experiments.answers import common
from mimetic.experiments.configs import EXPERIMENTS
from mimetic.experiments.configs.vision import CHECK_RATES, CHECKED, FITTED
from mimetic.experiments.metrics import ACCURACY
from mimetic.experiments.programmes.vision import CENTRAL, CENTRAL_SEEDS, FIRST_SEEDS, MORE_SEEDS, PAIR, STUDIES
from mimetic.figures.style import LABELS
from mimetic.initializers import initialize_
from mimetic.models.blocks import Block
from mimetic.scan import attention_layers
from mimetic.statistics import (
    ENOUGH,
    compare,
    contrast,
    mean_interval,
    paired_differences,
    smallest_p,
    summary,
)
from mimetic.training.records import load_runs

ALL_SEEDS = (*FIRST_SEEDS, *MORE_SEEDS)
COMMAND = "python -m mimetic queue lab"
PAPER_COMMAND = "python -m mimetic queue paper --minutes 9"  # on a GPU
LARGE = ("mimetic", "timm-rescaled", "random-directions")  # arms whose weights are several times the default's
SEED_WORTH = 1.0  # percentage points that one seed is worth after 10 epochs, about; the rule of the recipe search
draw = partial(common.draw, command=COMMAND)
PILOT = {0: 0.0473, 1: 0.0337}  # seed -> mimetic minus default of the runs that came before all others
PILOT_COMMIT = "0ff20b1"  # where their records are


def ablation(names: list[str], finals: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tables and the points of several studies, one below the other (for figures.comparisons)."""
    return common.stacked((STUDIES[name], finals) for name in names)


def points(value: float) -> str:
    """A difference of accuracies in percentage points, with its sign."""
    return ACCURACY.signed(value)


def ahead(value: float) -> str:
    """A difference of accuracies against something, in words."""
    return f"{points(abs(value))[1:]} points {'ahead of' if value > 0 else 'behind'}"


def found(study_name: str, finals: pd.DataFrame) -> str:
    """A study's findings as Markdown: one line a comparison, and how many runs are missing."""
    study = STUDIES[study_name]
    seeds = FIRST_SEEDS if study.name == "precision" else ALL_SEEDS
    return common.findings(study, finals, common.missing(study, finals, seeds, COMMAND))


def central(finals: pd.DataFrame, command: str = COMMAND) -> str:
    """The central claim's answer in words; its verdict follows from the
    interval, beside which the exact test stands.
    """
    pairs = paired_differences(finals) if set(PAIR) <= set(finals["arm"]) else pd.DataFrame()
    if pairs.empty:
        return f"No pair of runs is in yet. `{command}` makes them, and this page follows."
    row = compare(finals, {"central": PAIR}).iloc[0]
    n, p = len(pairs), row.p
    mean = f"{100 * row.reference:.2f} % with timm's default, {100 * row.arm:.2f} % with mimetic initialization"
    least = f"; {n} pairs cannot give less" if p <= smallest_p(n) * 1.001 else ""
    tested = (
        "exact sign-flip test: chance alone would give a mean difference at least this far from 0, on either side,"
        f" with p = {p:.3f}{least}"
    )
    if n < ENOUGH:
        verdict = (
            f"{n} pair{'s' if n > 1 else ''} cannot carry a claim (the smallest possible p is {smallest_p(n):.3f})"
        )
    elif row.low > 0:
        verdict = f"so at this scale, with this recipe, mimetic initialization is better than this default ({tested})"
    elif row.high < 0:
        verdict = f"so at this scale, with this recipe, mimetic initialization is worse than this default ({tested})"
    else:
        verdict = f"which chance can explain ({tested})"
    interval = f", 95 % interval {points(row.low)} to {points(row.high)}" if n > 1 else ""
    seeds = f"{n} paired seed{'s' if n > 1 else ''}"
    return (
        f"{mean}: **{replace(ACCURACY, digits=2).signed(row.difference)} points** over {seeds}{interval},"
        f" ahead in {row.wins:.0f} of {n}; {verdict}."
    )


def number(finals: pd.DataFrame) -> str:
    """The central claim's number alone; chapter 6 says what it can carry (central)."""
    table = compare(finals, {"central": PAIR})
    if table.empty:
        return f"no pair of runs is in yet (`{COMMAND}` makes them)"
    row = table.iloc[0]
    span = f" (95 % interval {ACCURACY.span(row.low, row.high)}; exact p {row.p:.3f})" if row.pairs > 1 else ""
    seeds = f"{row.pairs:.0f} paired seed{'s' if row.pairs != 1 else ''}"
    return (
        f"{100 * row.reference:.2f} % with timm's default, {100 * row.arm:.2f} % with mimetic initialization,"
        f" **{replace(ACCURACY, digits=2).signed(row.difference)} points** over {seeds}{span}"
    )


def pilot(finals: pd.DataFrame) -> str:
    """What was seen of the two arms before the recipe was frozen, and what the seeds
    say that were not in it; "" without them.
    """
    if not (fresh := fresh_pairs(finals)):
        return ""
    seen = " and ".join(points(gain) for gain in PILOT.values())
    return (
        f"Two pairs were seen before: seeds {' and '.join(map(str, PILOT))}, 20 epochs of what became the base,"
        f" judged on the test images ({seen} points; the longer runs replaced their records,"
        f" which are in the repository's history, commit {PILOT_COMMIT}). {fresh}"
    )


def fresh_pairs(finals: pd.DataFrame) -> str:
    """The gain of the pairs whose seeds had not been seen before the recipe
    was frozen, as a sentence; "" without them.
    """
    fresh = (
        paired_differences(finals).drop(index=list(PILOT), errors="ignore")["difference"]
        if set(PAIR) <= set(finals["arm"])
        else ()
    )
    if len(fresh) < 2:
        return ""
    low, high = mean_interval(fresh)
    least = smallest_p(len(fresh))
    few = f"; too few for a claim, the smallest possible p is {least:.3f}" if len(fresh) < ENOUGH else ""
    return (
        f"The {len(fresh)} seeds other than {' and '.join(map(str, PILOT))}, which had been tried in shorter runs,"
        f" alone: {points(fresh.mean())} points ({points(low)} to {points(high)}{few})."
    )


def relative(finals: pd.DataFrame) -> str:
    """The central difference in shares of the default's accuracy and of its errors, since
    a "%" may mean either; "" without pairs.
    """
    if (table := compare(finals, {"central": PAIR})).empty:
        return ""
    row = table.iloc[0]
    share, errors = (common.percent(abs(row.difference) / whole, 1) for whole in (row.reference, 1 - row.reference))
    return (
        f"The difference of {replace(ACCURACY, digits=2).signed(row.difference)} points here is {share} of the"
        f" default's accuracy, and {errors} of its errors."
    )


def by_arm(curves: pd.DataFrame) -> pd.DataFrame:
    """Curves with the default first, then mimetic, as the figures show them."""
    return pd.concat([curves[curves["arm"] == arm] for arm in PAIR])


def pair_table(finals: pd.DataFrame) -> pd.DataFrame:
    """One row a seed, in percent."""
    if not set(PAIR) <= set(finals["arm"]):
        return pd.DataFrame(columns=[*PAIR, "difference"])
    return (100 * paired_differences(finals)).round(2)


def steps_saved(finals: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """One row a seed: the default's final accuracy; after which share of the run each arm's own curve first reaches it
    (linear between epochs; missing: never); and how much earlier the mimetic arm does, as a share of the run (a run
    that never does counts as 1)."""
    columns = ["default at the end (%)", "mimetic", "default", "earlier by"]
    if not set(PAIR) <= set(finals["arm"]):
        return pd.DataFrame(columns=columns)
    targets = paired_differences(finals)[PAIR[0]]
    default, mimetic = (
        common.first_passage(curves, arm, targets, "test_accuracy").reindex(targets.index) for arm in PAIR
    )
    return pd.concat([100 * targets, mimetic, default, default.fillna(1.0) - mimetic.fillna(1.0)], axis=1, keys=columns)


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
    low, high = mean_interval(table["earlier by"])
    span = (
        f" (95 % interval {100 * low:+.0f} to {100 * high:+.0f}, {len(share)} pairs)".replace("-", "−")
        if len(share) > 1
        else ""
    )
    marks, way = on_the_way(curves), ""
    if marks:
        less = max(earlier.mean() for earlier in marks.values()) < table["earlier by"].mean()
        flat = " Most of the lead in time arises because the mimetic runs end higher, where the curves are flat."
        way = f" Lower accuracies are passed {on_the_way_sentence(marks)}.{flat if less else ''}"
    lead = table["earlier by"].mean()
    return f"{text}: **{'earlier' if lead > 0 else 'later'} by {common.percent(abs(lead))} of the run**{span}.{way}"


MARKS = (0.5, 0.55, 0.6)  # accuracies on the way, which the curves of a laboratory run pass


def on_the_way(curves: pd.DataFrame, marks: tuple[float, ...] = MARKS) -> dict[float, pd.Series]:
    """mark -> how much earlier than the default's curve the mimetic arm's first reaches that accuracy, as a share of
    the run, a number a seed; marks that some run of a pair never reaches are left out."""
    if curves.empty or not set(PAIR) <= set(curves["arm"]):
        return {}
    seeds = sorted(set.intersection(*(set(curves.loc[curves["arm"] == arm, "seed"]) for arm in PAIR)))
    found = {}
    for mark in marks:
        targets = pd.Series(mark, index=seeds)
        default, mimetic = (common.first_passage(curves, arm, targets, "test_accuracy").reindex(seeds) for arm in PAIR)
        earlier = default - mimetic
        if len(seeds) and earlier.notna().all():
            found[mark] = earlier
    return found


def on_the_way_sentence(marks: dict[float, pd.Series]) -> str:
    """on_the_way in words; "" if no mark is passed in all runs."""
    said = []
    for mark, earlier in marks.items():
        low, high = mean_interval(earlier)
        span = f" ({common.IN_PERCENT.span(low, high)})" if len(earlier) > 1 else ""
        said.append(f"{common.percent(mark)} by {100 * earlier.mean():.1f} %{span}")
    return f"earlier by less of the run: {', '.join(said)}".replace("-", "−") if said else ""


def gap_by_epoch(curves: pd.DataFrame, reference: str = "timm", arm: str = "mimetic") -> pd.DataFrame:
    """Arm minus reference of the same seed, by epoch: difference, low, high (95 % interval over seeds), pairs."""
    rows = {}
    for epoch, part in curves.groupby("epoch"):
        values = contrast(part, {arm: 1, reference: -1})
        if len(values):
            rows[epoch] = summary(values)
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("epoch")


def gap_sentence(curves: pd.DataFrame) -> str:
    """Whether the lead is only a head start: the gap at the first epoch, at its
    smallest, in the last quarter of the run.
    """
    gap = gap_by_epoch(curves)
    if gap.empty:
        return "No pair of runs is in yet."
    first, low = gap.iloc[0], gap["difference"].idxmin()
    tail = gap.iloc[-max(1, len(gap) // 4) :]
    text = (
        f"The lead is {points(first['difference'])} points after the first epoch,"
        f" smallest after epoch {low} ({points(gap.loc[low, 'difference'])})"
        f" and {points(tail['difference'].min())} to {points(tail['difference'].max())} in the last {len(tail)} epochs."
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


def schedules(finals: pd.DataFrame) -> list[str]:
    """How the lead at the end of the central runs compares with that of the same seeds at the end of the shorter
    schedule, in words: of all its runs, and of those that the machine of these made (data/replicas)."""
    if finals.empty or set(finals["experiment"]) != {CENTRAL.experiment} or not set(PAIR) <= set(finals["arm"]):
        return []
    here, machines, said = paired_differences(finals)["difference"], set(finals["device.name"]), []
    again = common.replicas(SHORT)
    of_these = again[again["device.name"].isin(machines)] if len(again) else again
    for runs in (load_runs(SHORT), of_these):
        there = contrast(runs, {PAIR[1]: 1, PAIR[0]: -1})
        seeds = there.index.intersection(here.index)
        if len(seeds) > 1:
            row, made = summary(here[seeds] - there[seeds]), set(runs.loc[runs["arm"].isin(PAIR), "device.name"])
            where = "" if made == machines else f", the shorter runs on {', '.join(sorted(made))}"
            said.append(
                f"{points(there[seeds].mean())} points after {EXPERIMENTS[SHORT].epochs} epochs,"
                f" {points(here[seeds].mean())} after {EXPERIMENTS[CENTRAL.experiment].epochs}"
                f" ({row['pairs']} pairs{where};"
                f" difference {points(row['difference'])}, {ACCURACY.span(row['low'], row['high'])})"
            )
    return said


def shorter(finals: pd.DataFrame) -> str:
    """The last of schedules, that of one kind of machine if there is one, as a
    paragraph of chapter 6; "" without runs.
    """
    if not (said := schedules(finals)):
        return ""
    return (
        f"The lead may shrink in longer schedules. Of the same seeds, each at the end of its own schedule: {said[-1]}."
        " What a hundred epochs would leave is open."
    )


def recipe(finals: pd.DataFrame) -> str:
    """The recipe of the central comparison and what its runs were made on, from the first of them; "" without any."""
    if finals.empty:
        return ""
    first = finals.iloc[0]
    config = first.filter(like="config.").rename(lambda name: name.removeprefix("config."))
    threads = f"{first['device.threads']} thread{'s' if first['device.threads'] > 1 else ''}"
    return (
        f"Recipe, the same for both arms: AdamW, peak learning rate {config['lr']:g},"
        f" weight decay {config['weight_decay']:g},"
        f" linear warm-up over {common.percent(config['warmup'])} of the run, then cosine to 0,"
        f" batch {config['batch_size']}, gradient norm clipped at {config['grad_clip']:g},"
        f" label smoothing {config['label_smoothing']:g}"
        " (so the training loss is of smoothed labels, the test loss of plain ones),"
        f" random crop ({config['padding_mode']} padding {config['crop_padding']}) and flip."
        f" Device: {first['device.name']}, {first['device.precision']}, {threads}, torch {first['torch']}."
    )


def recipe_table(finals: pd.DataFrame) -> pd.DataFrame:
    """The search for the recipe: mean accuracy on the validation images by setting, best first."""
    if finals.empty:
        return pd.DataFrame()
    groups = finals.groupby("arm")["test_accuracy"]
    table = pd.DataFrame({"validation accuracy (%)": 100 * groups.mean(), "seeds": groups.size()})
    return table.sort_values("validation accuracy (%)", ascending=False).round(1)


def recipe_sentence(finals: pd.DataFrame) -> str:
    """Whether any setting beat the base by more than a point."""
    if finals.empty:
        return "The search has no records yet: `python -m mimetic queue recipe`."
    base = finals[finals["arm"] == "base"]["test_accuracy"]
    paired = finals[(finals["arm"] != "base") & finals["seed"].isin(finals.loc[finals["arm"] == "base", "seed"])]
    if paired.empty:
        return "No setting of the search has a run beside the base's yet: `python -m mimetic queue recipe`."
    others = paired.groupby("arm")["test_accuracy"].mean()
    best = others.idxmax()
    ends = f", over its {len(base)} seeds from {100 * base.min():.1f} to {100 * base.max():.1f}" * (len(base) > 1)
    seeds = finals.loc[finals["arm"] == best, "seed"]
    same = finals[(finals["arm"] == "base") & finals["seed"].isin(seeds)]["test_accuracy"]
    gain = others[best] - same.mean()
    kept = "so the base was kept" if 100 * gain <= SEED_WORTH else "so by the rule it replaces the base's value"
    return (
        f"The best setting, `{best}`, is {ahead(gain)} the base with the same seed"
        f" (base: {100 * base.mean():.1f} %{ends}), {kept}."
        " One seed a setting tells large differences only; that is all it was for."
    )


def rates_table(finals: pd.DataFrame) -> pd.DataFrame:
    """Validation accuracy in percent of every arm (rows, in words) at every learning rate
    (columns), nan where there is no run; one seed.
    """
    values = finals.set_index("arm")["test_accuracy"] if len(finals) else pd.Series(dtype=float)
    table = pd.DataFrame(
        {lr: {LABELS[arm]: 100 * values.get(f"{arm}-lr-{lr:g}", float("nan")) for arm in CHECKED} for lr in CHECK_RATES}
    )
    return table.dropna(how="all").rename_axis(columns="learning rate")


def rates_sentence(finals: pd.DataFrame) -> str:
    """Which arms would be better off by more than a seed is worth at another learning rate than the common one."""
    table, common_lr = rates_table(finals), EXPERIMENTS["cifar10-rates"].lr
    if len(table) < len(CHECKED) or table.isna().any(axis=None):
        return f"Not all of these runs are in yet: `{COMMAND}`."
    gains = table.max(axis=1) - table[common_lr]
    unfair = [
        f"{arm} (best at {table.loc[arm].idxmax():g}, {gains[arm]:+.1f} points)"
        for arm in table.index[gains > SEED_WORTH]
    ]
    best = "; ".join(f"{arm} {value:.1f}" for arm, value in table.max(axis=1).sort_values(ascending=False).items())
    text = (
        f"Better by more than {SEED_WORTH:g} point at another rate: {', '.join(unfair)}."
        if unfair
        else f"No arm is better by more than {SEED_WORTH:g} point at another rate."
    )
    lower = [LABELS[arm] for arm in LARGE if table.loc[LABELS[arm]].idxmax() < table.loc[LABELS[PAIR[0]]].idxmax()]
    suits = ", ".join(lower) or "none of the arms with large weights, **against our expectation**"
    text += f" A lower rate than the default's suits {suits}."
    return f"{text} Each at its best rate, in percent: {best}. (One seed, which is worth about a point.)"


def band(finals: pd.DataFrame) -> tuple[float, float] | None:
    """The 95 % interval of mimetic minus default, which the ablation figure shows behind
    every row; None before there are two pairs.
    """
    values = contrast(finals, {"mimetic": 1, "timm": -1})
    return mean_interval(values) if len(values) > 1 else None


def fitted_table() -> pd.DataFrame:
    """The constants of the fitted arms, layer by layer, as configs/vision.py has them."""
    rows = {
        (name, product): dict(enumerate(zip(fit[f"{product}_alpha"], fit[f"{product}_beta"])))
        for name, fit in FITTED.items()
        for product in ("qk", "vp")
    }
    table = pd.DataFrame(
        {
            key: {f"layer {i}": f"{a:g}, {b:+g}".replace("-", "−") for i, (a, b) in row.items()}
            for key, row in rows.items()
        }
    ).T
    return table.rename(index={"qk": "QK: α, β", "vp": "V·proj: α, β"}, level=1)


def norm_table() -> pd.DataFrame:
    """How large each default's attention is against mimetic initialization's: ratios of Frobenius norms of one matrix
    of queries, of values and of the two products (mean over layers and heads, seed 0), at width 96 with heads of 32."""
    norms = {}
    for name in ("mimetic", "timm", "torch", "xavier"):
        blocks = torch.nn.Sequential(*(Block(96, 3) for _ in range(2)))
        initialize_(blocks, name, generator=torch.Generator().manual_seed(0))
        layers = attention_layers(blocks)
        heads = [(layer, h) for layer in layers for h in range(layer.num_heads)]
        norms[name] = {
            "W_Q": np.mean([layer.w_q(h).norm().item() for layer, h in heads]),
            "W_V": np.mean(
                [torch.cat([layer.w_v(h) for h in range(layer.num_heads)], 1).norm().item() for layer in layers]
            ),
            "QK product": np.mean([layer.qk(h).norm().item() for layer, h in heads]),
            "V·proj product": np.mean([layer.vp().norm().item() for layer in layers]),
        }
    mimetic = pd.Series(norms.pop("mimetic"))
    return (
        pd.DataFrame({LABELS[name]: mimetic / pd.Series(values) for name, values in norms.items()})
        .T.rename_axis("mimetic divided by")
        .round(2)
    )


def numbers(table: pd.DataFrame) -> pd.DataFrame:
    """A table of compare for the page: accuracies and differences in percent. Without corrected
    p: with five pairs none could be below 1.
    """
    if table.empty:
        return table
    units = {"reference": "%", "arm": "%", "difference": "points", "low": "points", "high": "points"}
    shown = common.rounded(table.assign(**{name: 100 * table[name] for name in units}), digits=1).drop(
        columns="p_holm", errors="ignore"
    )
    return shown.rename(columns={name: f"{name} ({unit})" for name, unit in units.items()})


def paper_scale() -> str:
    """What is there at paper scale, in words."""
    finals = load_runs("cifar10-paper")
    if finals.empty:
        return (
            "**ViT-Tiny, all 50,000 images, 100 epochs** (our recipe; the paper's could not be read here; a GPU):"
            " no record yet. This page shows them beside these as soon as they are in `data/runs/cifar10-paper`."
        )
    return (
        "**ViT-Tiny, all 50,000 images, 100 epochs** (our recipe; the paper's could not be read here)."
        f" {central(finals, PAPER_COMMAND)}"
    )


def planned(finals: pd.DataFrame) -> str:
    """How many of the central comparison's runs are in; "" when all are."""
    return common.missing(CENTRAL, finals, CENTRAL_SEEDS, COMMAND)
