"""What the language chapters say of learning rates (10 and 11): the search, the rate that came second in it, one rate
for all, and what of the signs is left at one rate."""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd

from mimetic.book.common import UNCONFIRMED, VALUES, markdown, measured, plural, with_interval
from mimetic.experiments.configs.language import (
    ASKED_AGAIN,
    CHOSEN,
    ENDS,
    EVERY,
    GENTLE,
    KNOWN,
    RATES,
    RUNNER_UP,
    SIGNS,
    SINCOS_CHOSEN,
    end_rates,
    rated,
    searched,
)
from mimetic.experiments.language import METRIC
from mimetic.experiments.programmes.language import CENTRAL, SEARCH, SECOND, WIKITEXT2
from mimetic.figures.style import LABELS
from mimetic.statistics import ENOUGH, contrast, difference, mean_interval, side, sign_flip_test, summary
from mimetic.training.records import load_runs

# --- the search -------------------------------------------------------------------------------------------------------


def rate_table(search: str = SEARCH) -> pd.DataFrame:
    """A search: validation bits per byte of every arm (rows, in words) at every learning rate (columns); nan: not
    run."""
    finals = load_runs(search)
    if finals.empty:
        return pd.DataFrame()
    values = finals.groupby("arm")["test_bits_per_byte"].mean()
    rates = sorted({*RATES, *finals.get("config.lr", pd.Series(dtype=float))})
    table = pd.DataFrame({lr: {arm: values.get(searched(arm, lr)) for arm in KNOWN} for lr in rates}, dtype=float)
    return table.dropna(how="all").rename_axis(columns="learning rate")


def best_rates(search: str = SEARCH) -> dict[str, float]:
    """arm -> the rate with the fewest validation bits per byte, of the arms that were run at all of RATES."""
    table = rate_table(search)
    whole = table[table[list(RATES)].notna().all(axis=1)] if len(table) else table
    return {arm: float(row.idxmin()) for arm, row in whole.iterrows()}


def rates_sentence() -> str:
    """What the search chose for every arm, and which arms it has still to try."""
    table, best = rate_table(), best_rates()
    if not best:
        return "The search has no records yet: `python -m mimetic queue language-recipe`."
    parts = [f"{LABELS[arm]} {lr:g} ({table.loc[arm, lr]:.3f})" for arm, lr in best.items()]
    lacking = [LABELS[arm] for arm in EVERY if arm not in best]
    text = f"Chosen rate, with its validation bits per byte: {'; '.join(parts)}."
    for end, pick in (("lowest", min), ("highest", max)):
        edge = [LABELS[arm] for arm, lr in best.items() if lr == pick(table.columns[table.loc[arm].notna()])]
        text += f" At the {end} rate tried: {', '.join(edge)}." if edge else ""
    if lacking:
        text += f" Still to be searched: {', '.join(lacking)} (`python -m mimetic queue language-recipe`)."
    return text


def ends() -> str:
    """Whether the rates of the search are those that the ends of the sweep would choose, by a part of the training text
    (one seed): a Markdown table and what follows from it."""
    found = _at_the_ends()
    rows = [
        (f"`{point}`", positions, LABELS[arm], f"{own:g}", f"{best:g}", f"{cost:.3f}" if cost else "–")
        for (positions, point, arm), (own, best, cost) in found.items()
    ]
    columns = [
        "model",
        "positions",
        "arm",
        "its rate",
        "best of half, its own and twice",
        "it would save (bits per byte)",
    ]
    table = markdown(rows, columns)
    if len(found) < len(ENDS) * sum(len(chosen) for _, chosen in SEARCHED.values()):
        return f"Not all of these runs are in yet: `python -m mimetic queue language-recipe`.\n\n{table}".strip()
    at_edge = sum(best != own for own, best, _ in found.values())  # three were tried
    if not at_edge:
        return f"{table}\n\nOne seed."
    return (
        f"{table}\n\nOne seed. In {at_edge} of the {len(found)} rows the best is the lowest or the highest rate tried,"
        " so a better one may lie beyond. And two runs of one configuration may differ by more than the last column"
        " ([chapter 10](10_gpt.ipynb), and [below](#retrained)). Of the points between the ends none was checked."
    )


# experiment -> the positions of its GPTs, and the rate of each arm that is asked there
SEARCHED = {
    "share-recipe": ("learned", {arm: CHOSEN[arm] for arm in SIGNS}),
    "share-sincos-recipe": ("fixed", {arm: SINCOS_CHOSEN[arm] for arm in ("gpt2", "vision")}),
}


def _at_the_ends() -> dict[tuple[str, str, str], tuple[float, float, float]]:
    """(positions, end of the sweep, arm) -> the rate that it was given, its best one there, and how many bits per byte
    more it needs at the first."""
    found = {}
    for search, (positions, chosen) in SEARCHED.items():
        finals = load_runs(search)
        values = finals.set_index("arm")["test_bits_per_byte"] if len(finals) else pd.Series(dtype=float)
        for point, (arm, own) in product(ENDS, chosen.items()):
            tried = {lr: values.get(f"{point}-{searched(arm, lr)}") for lr in end_rates(own)}
            if None not in tried.values():
                found[positions, point, arm] = own, min(tried, key=tried.get), tried[own] - min(tried.values())
    return found


def slow_sentence(plateau: float) -> str:
    """Which arms are nearer to the plateau than to the default at the default's best rate,
    and what that says about size and identity.

    Args:
        plateau: bits per byte of predicting from the last character alone.
    """
    table, rate = rate_table(), CHOSEN["gpt2"]
    values = table[rate].dropna() if rate in table else pd.Series(dtype=float)
    if "gpt2" not in values.index or len(values) < 2:
        return "The runs that test it are not in yet."
    limit = (values["gpt2"] + plateau) / 2
    slow = [arm for arm in values.index if values[arm] > limit]
    near = [arm for arm in values.index if arm not in slow and arm != "gpt2"]
    text = (
        f"In the search, at {rate:g}, the default needs {values['gpt2']:.3f} bits per byte, and the last character"
        f" alone gives {plateau:.3f}. {plural(len(slow), 'arm')} of {len(values) - 1} are nearer to that plateau than"
        f" to the default; the others: {', '.join(f'{LABELS[a]} {values[a]:.3f}' for a in near) or 'none'}. "
    )
    if {"rescaled", "random-directions"} <= set(values.index):
        if "rescaled" in slow:
            text += "Weights of that size are enough to slow a model down at this rate."
        elif "random-directions" in slow:
            text += "The singular values are enough, without the identity; size alone is not."
        elif {"language", "vision"} & set(slow):
            text += "Neither the size nor the singular values do it: it takes the identity."
    if {"gpt2-signs", "both-minus"} <= set(slow):
        text += (
            " Looking at oneself is not the reason, or not the only one: the two arms with −I in QK, whose tokens look"
            " at themselves less than the default's, are as slow."
        )
    return text.strip() + " (One seed an arm.)"


# --- the second rate of the search, and one rate for all -------------------------------------------------------------


def _by_arm() -> pd.DataFrame:
    """The runs of the central comparison and those at other rates, in one table: the arms' names differ."""
    return pd.concat([load_runs(CENTRAL.experiment), load_runs(SECOND.experiment)], ignore_index=True)


def second_table() -> pd.DataFrame:
    """One row an arm with two rates that the search cannot tell apart: the chosen and the other rate, the mean bits per
    byte at each, the difference (other minus chosen) with its 95 % interval over seeds and its exact p, and how far the
    arm is behind the default's better rate at its own better one (behind, with its interval; nothing for the default).
    """
    finals, rows, better = _by_arm(), {}, {}
    values = finals.groupby("arm")[METRIC.column].mean() if len(finals) else {}
    for arm, lr in ASKED_AGAIN.items():
        other = rated(arm, lr)
        change = difference(finals, other, arm, METRIC.column)
        if len(change):
            better[arm] = other if change.mean() < 0 and len(change) >= ENOUGH else arm
            means = {"rate": CHOSEN[arm], "bits per byte": values[arm], "other rate": lr, "there": values[other]}
            rows[arm] = means | summary(change)
    for arm in rows:
        if arm != "gpt2":
            behind = difference(finals, better[arm], better.get("gpt2", "gpt2"), METRIC.column)
            found = (behind.mean(), *mean_interval(behind)) if len(behind) else [np.nan] * 3
            rows[arm] |= dict(zip(("behind", "behind low", "behind high"), found))
    return pd.DataFrame.from_dict(rows, orient="index")


def second_rates() -> str:
    """What the second rates change, the default's on the other text last, as a Markdown table; which are not in yet."""
    table = second_table()
    enough = table[table["pairs"] >= ENOUGH] if len(table) else table
    rows = []
    for arm, row in enough.iterrows():
        change, behind = METRIC.shown(*row[VALUES]), "–"
        if arm != "gpt2" and np.isfinite(row["behind"]):
            behind = METRIC.shown(*row[["behind", "behind low", "behind high"]])
        clear = 1 if row["low"] > 0 else -1 if row["high"] < 0 else 0
        rates = f"{row['other rate']:g} for {row['rate']:g}"
        rows.append((LABELS[arm], rates, change, f"{row['p']:.3f}", _moved(clear, row["p"]), behind))
    rate = RUNNER_UP["gpt2"]
    other = difference(load_runs(WIKITEXT2.experiment), rated("gpt2", rate), "gpt2", METRIC.column)
    lacking = [LABELS[arm] for arm in ASKED_AGAIN if arm not in enough.index]
    if len(other) >= ENOUGH:
        p = sign_flip_test(other)
        rates = f"{rate:g} for {CHOSEN['gpt2']:g}"
        rows.append((OTHER_TEXT, rates, with_interval(other, METRIC), f"{p:.3f}", _moved(side(other), p), "–"))
    else:
        lacking.append(OTHER_TEXT)
    columns = [
        "arm",
        "second rate, for the first",
        "second minus first (bits per byte)",
        "p",
        "its second rate is",
        "each at the better of its two: arm minus default",
    ]
    gap = f"Not all in yet: {', '.join(lacking)} (`python -m mimetic queue language`)." if lacking else ""
    return "\n\n".join(filter(None, (markdown(rows, columns), gap)))


OTHER_TEXT = f"{LABELS['gpt2']}, on WikiText-2"


def _moved(clear: int, p: float) -> str:
    """Whether more bits (1), fewer (-1) or neither (0) are shown, in words."""
    return {0: "not to be told apart", 1: "worse", -1: "better"}[clear] + (UNCONFIRMED if clear and p > 0.05 else "")


# The four pairs of signs at one rate: each arm's name where it was run at GENTLE
AT_ONE_RATE = {
    name: name if CHOSEN[name] == GENTLE else rated(name, GENTLE)
    for name in ("language", "vision", "gpt2-signs", "both-minus")
}


def signs_at_one_rate() -> str:
    """What the sign of each product does at one rate for all four pairs of signs, as a list."""
    finals = _by_arm()
    if finals.empty or not set(AT_ONE_RATE.values()) <= set(finals["arm"]):
        return "The four pairs of signs at one rate are not all in yet: `python -m mimetic queue language`."
    lines = []
    effects = {
        "V·proj + instead of −": {"language": 0.5, "gpt2-signs": 0.5, "vision": -0.5, "both-minus": -0.5},
        "QK + instead of − where V·proj is +": {"language": 1, "gpt2-signs": -1},
        "the same where V·proj is −": {"vision": 1, "both-minus": -1},
        "the difference between these two": {"language": 1, "gpt2-signs": -1, "vision": -1, "both-minus": 1},
    }
    for name, weights in effects.items():
        values = contrast(finals, {AT_ONE_RATE[arm]: weight for arm, weight in weights.items()}, METRIC.column)
        if not len(values):
            return "The four pairs of signs at one rate have no seed in common yet: `python -m mimetic queue language`."
        (low, high), p = mean_interval(values), sign_flip_test(values)
        says = "plus is worse" if low > 0 else "plus is better"
        if name.startswith("the difference"):
            says = "the two differ"
        says = "these pairs cannot say" if low <= 0 <= high else says + UNCONFIRMED * (p > 0.05)
        lines.append(f"* {name}: {measured(values, METRIC, f', p {p:.3f}')}, {says}")
    return "\n".join(lines)


def beyond_size() -> str:
    """Language signs at their second rate against the two controls of their size, in a sentence; "" without the
    runs."""
    finals = _by_arm()
    said = []
    for control in ("rescaled", "random-directions"):
        values = difference(finals, rated("language", GENTLE), control, METRIC.column)
        if not len(values):
            return ""
        said.append(f"{measured(values, METRIC)} against {LABELS[control]}")
    return f"Language signs at {GENTLE:g}, their second rate: {' and '.join(said)}."


def twins_sentence() -> str:
    """How far runs of one configuration and seed that were made twice on one machine differ, in words; "" without
    any."""
    central, again = (load_runs(e) for e in (CENTRAL.experiment, SECOND.experiment))
    if central.empty or again.empty:
        return ""
    twins = again.assign(arm=again["arm"].map({rated(arm, CHOSEN[arm]): arm for arm in EVERY}))
    both = central.merge(twins, on=["arm", "seed", "device.name"])
    apart = (both[f"{METRIC.column}_y"] - both[f"{METRIC.column}_x"]).abs()
    if apart.empty:
        return ""
    return (
        f"Noise to compare with: {len(apart)} runs were made twice with one configuration, seed and card, in groups of"
        f" different sizes; the two differ by {apart.median():.3f} bits per byte (median) and up to {apart.max():.3f}."
    )


def one_rate_sentence() -> str:
    """The default's own bits per byte at each of the rates that all arms were run at, in words."""
    finals = load_runs(SECOND.experiment)
    said = []
    for lr in (GENTLE, CHOSEN["gpt2"]):
        values = finals.loc[finals["arm"] == rated("gpt2", lr), METRIC.column] if len(finals) else []
        if len(values):
            said.append(f"{values.mean():.3f} at {lr:g}")
    return f"(The default's own: {', '.join(said)}.)" if said else ""
