"""What the vision chapters say: the central claim (6) and the questions after it (7); head_start has what happens on
the way, recipes what was searched, growth and kept chapters 8 and 9."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import torch

from mimetic.book import common
from mimetic.experiments.configs.vision import FITTED
from mimetic.experiments.metrics import ACCURACY
from mimetic.experiments.programmes import command_for
from mimetic.experiments.programmes.vision import (
    CENTRAL,
    CENTRAL_SEEDS,
    FIRST_SEEDS,
    MORE_SEEDS,
    PAIR,
    PAPER_SEEDS,
    STUDIES,
)
from mimetic.figures.style import LABELS
from mimetic.initializers import initialize_
from mimetic.models.blocks import Block
from mimetic.scan import attention_layers
from mimetic.statistics import ENOUGH, compare, difference, mean_interval, paired_differences, side, smallest_p, summary
from mimetic.training.records import load_runs

ALL_SEEDS = (*FIRST_SEEDS, *MORE_SEEDS)
COMMAND = "python -m mimetic queue lab"
PAPER_COMMAND = "python -m mimetic queue paper --minutes 9"  # on a GPU
draw = partial(common.draw, command=COMMAND)
PILOT = {0: 0.0473, 1: 0.0337}  # seed -> mimetic minus default of the runs that came before all others
PILOT_COMMIT = "0ff20b1"  # where their records are


def ablation(names: list[str], finals: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tables and the points of several studies, one below the other (for figures.comparisons)."""
    return common.stacked((STUDIES[name], finals) for name in names)


def ahead(value: float) -> str:
    """A difference of accuracies against something, in words."""
    return f"{ACCURACY.signed(abs(value))[1:]} points {'ahead of' if value > 0 else 'behind'}"


def found(study_name: str, finals: pd.DataFrame) -> str:
    """A study's findings as Markdown: one line a comparison, one a contrast, and how many runs are missing."""
    study = STUDIES[study_name]
    gap = common.missing(study, finals, FIRST_SEEDS if study.name == "precision" else ALL_SEEDS, COMMAND)
    table = common.study_table(study, finals)
    if table.empty:
        return f"**We found** nothing yet. {gap}"
    lines = [f"* {name}: {common.finding(row, more=bool(gap))}" for name, row in table.iterrows()]
    text = "**We found** (mean difference, 95 % interval):\n\n" + "\n".join(lines)
    if against := common.contrast_lines(study, finals):
        text += "\n\nThe arms against each other, seed by seed:\n\n" + "\n".join(against)
    return text + (f"\n\n{gap}" if gap else "")


def between(study_name: str, finals: pd.DataFrame, *more: str) -> str:
    """A study's differences between arms alone, as Markdown, for a page that shows its comparisons in a figure; more
    list items, and how many runs are missing."""
    study = STUDIES[study_name]
    lines = [*common.contrast_lines(study, finals), *filter(None, more)]
    return "\n\n".join(filter(None, ("\n".join(lines), common.missing(study, finals, ALL_SEEDS, COMMAND))))


def central(finals: pd.DataFrame, command: str = COMMAND) -> str:
    """The central claim's answer in words; its verdict follows from the interval, beside which the exact test
    stands."""
    if (table := compare(finals, {"central": PAIR})).empty:
        return f"No pair of runs is in yet. `{command}` makes them, and this page follows."
    row = table.iloc[0]
    n = int(row.pairs)
    interval = f"95 % interval {ACCURACY.span(row.low, row.high)}, " if n > 1 else ""
    if n < ENOUGH:
        verdict, tested = "Too few pairs for a claim", f"With so few the smallest possible p is {smallest_p(n):.3f}."
    else:
        least = f", the least that {n} pairs can give" if row.p <= smallest_p(n) * 1.001 else ""
        tested = f"Exact sign-flip test: p = {row.p:.3f}{least}."
        verdict = "No difference seen"
        if row.low > 0 or row.high < 0:
            verdict = f"At this scale mimetic initialization is {'better' if row.low > 0 else 'worse'}"
    return (
        f"**{verdict}: {replace(ACCURACY, digits=2).signed(row.difference)} points**"
        f" ({interval}{common.plural(n, 'paired seed')}, ahead in {row.wins:.0f} of {n}). That is {100 * row.arm:.2f} %"
        f" against {100 * row.reference:.2f} % with timm's default. {tested}"
    )


def number(finals: pd.DataFrame) -> str:
    """The central claim's number alone; chapter 6 says what it can carry (central)."""
    table = compare(finals, {"central": PAIR})
    if table.empty:
        return f"no pair of runs is in yet (`{COMMAND}` makes them)"
    row = table.iloc[0]
    span = f" (95 % interval {ACCURACY.span(row.low, row.high)}; exact p {row.p:.3f})" if row.pairs > 1 else ""
    seeds = common.plural(row.pairs, "paired seed")
    return (
        f"{100 * row.reference:.2f} % with timm's default, {100 * row.arm:.2f} % with mimetic initialization,"
        f" **{replace(ACCURACY, digits=2).signed(row.difference)} points** over {seeds}{span}"
    )


def yes_or_no(finals: pd.DataFrame) -> str:
    """Whether mimetic initialization helps, in the fewest words."""
    values = difference(finals, *reversed(PAIR))
    if len(values) < ENOUGH:
        return "Not known yet"
    return {1: "Yes, at laboratory scale", 0: "Not visibly", -1: "No, it does worse"}[side(values)]


def pilot(finals: pd.DataFrame) -> str:
    """What was seen of the two arms before the recipe was frozen; "" without the runs of other seeds, whose gain is
    fresh_pairs."""
    if not fresh_pairs(finals):
        return ""
    seen = " and ".join(ACCURACY.signed(gain) for gain in PILOT.values())
    return (
        f"Two pairs were seen before: seeds {' and '.join(map(str, PILOT))}, 20 epochs of what became the base,"
        f" judged on the test images ({seen} points; the longer runs replaced their records,"
        f" which are in the repository's history, commit {PILOT_COMMIT})."
    )


def fresh_pairs(finals: pd.DataFrame) -> str:
    """The gain of the pairs whose seeds had not been seen before the recipe was frozen, as a sentence; "" without
    them."""
    fresh = difference(finals, "mimetic", "timm").drop(index=list(PILOT), errors="ignore")
    if len(fresh) < 2:
        return ""
    least = smallest_p(len(fresh))
    few = f", too few for a claim: the smallest possible p is {least:.3f}" if len(fresh) < ENOUGH else ""
    return (
        f"Without seeds {' and '.join(map(str, PILOT))}, which had been tried in shorter runs:"
        f" {common.estimate(summary(fresh), more=few, unit='points')}."
    )


def relative(finals: pd.DataFrame) -> str:
    """The central difference in shares of the default's accuracy and of its errors, since a "%" may mean either; ""
    without pairs."""
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
    return (100 * paired_differences(finals)).round(2)


def band(finals: pd.DataFrame) -> tuple[float, float] | None:
    """The 95 % interval of mimetic minus default, which the ablation figure shows behind every row; None before there
    are two pairs."""
    values = difference(finals, "mimetic", "timm")
    return mean_interval(values) if len(values) > 1 else None


def fitted_table() -> pd.DataFrame:
    """The constants of the fitted arms, layer by layer, as configs/vision.py has them."""
    rows = {}
    for name, fit in FITTED.items():
        for product, words in common.SHORT.items():
            cells = [f"{a:g}, {b:+g}" for a, b in zip(fit[f"{product}_alpha"], fit[f"{product}_beta"])]
            rows[name, f"{words}: α, β"] = {f"layer {i}": common.minus(cell) for i, cell in enumerate(cells)}
    return pd.DataFrame(rows).T


def norm_table() -> pd.DataFrame:
    """How large each default's attention is against mimetic initialization's: ratios of Frobenius norms of one matrix
    of queries, of values and of the two products (mean over layers and heads, seed 0), at width 96 with heads of 32."""
    norms = {}
    for name in ("mimetic", "timm", "torch", "xavier"):
        blocks = torch.nn.Sequential(*(Block(96, 3) for _ in range(2)))
        initialize_(blocks, name, generator=torch.Generator().manual_seed(0))
        layers = attention_layers(blocks)
        heads = [(layer, h) for layer in layers for h in range(layer.num_heads)]
        values = [torch.cat([layer.w_v(h) for h in range(layer.num_heads)], 1) for layer in layers]
        norms[LABELS[name]] = {
            "W_Q": np.mean([layer.w_q(h).norm().item() for layer, h in heads]),
            "W_V": np.mean([value.norm().item() for value in values]),
            "QK product": np.mean([layer.qk(h).norm().item() for layer, h in heads]),
            "V·proj product": np.mean([layer.vp().norm().item() for layer in layers]),
        }
    mimetic = pd.Series(norms.pop(LABELS["mimetic"]))
    return (mimetic / pd.DataFrame.from_dict(norms, orient="index")).rename_axis("mimetic divided by").round(2)


def numbers(table: pd.DataFrame) -> pd.DataFrame:
    """A table of compare for the page: accuracies and differences in percent. Without corrected p: with five pairs none
    could be below 1."""
    if table.empty:
        return table
    units = {"reference": "%", "arm": "%", "difference": "points", "low": "points", "high": "points"}
    shown = common.rounded(table.assign(**{name: 100 * table[name] for name in units}), digits=1)
    return shown.drop(columns="p_holm").rename(columns={name: f"{name} ({unit})" for name, unit in units.items()})


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


def planned(finals: pd.DataFrame, experiment: str = CENTRAL.experiment) -> str:
    """How many of the central comparison's runs are in, or of the same at paper scale; "" when all are."""
    seeds = CENTRAL_SEEDS if experiment == CENTRAL.experiment else PAPER_SEEDS
    return common.missing(CENTRAL, finals, seeds, command_for(experiment))
