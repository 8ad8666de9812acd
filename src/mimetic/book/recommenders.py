"""What the recommender chapters (12, 12b) say of the experiment: the verdict and what qualifies it."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import torch

from mimetic.book import common
from mimetic.experiments import ranking
from mimetic.experiments.programmes.recommenders import (
    CENTRAL,
    DEFAULT,
    FIRST_SEEDS,
    LONG_SIBLING_PREFIX,
    MORE_SEEDS,
    OPPOSITE,
    RANDOM,
    RATE,
    RESCALED,
    SEEDS,
    SIBLING_PREFIX,
    STRUCTURE,
    STUDIES,
    VISION,
)
from mimetic.experiments.programmes.study import Study
from mimetic.experiments.recommenders import METRIC
from mimetic.experiments.recorded import cases_of, records_of
from mimetic.figures.style import LABELS
from mimetic.statistics import ENOUGH, compare, contrast, crossed_interval, difference
from mimetic.training.records import load_runs

COMMAND = "python -m mimetic queue recommenders"
TITLES = {"ml100k": "MovieLens-100K", "beauty": "Amazon Beauty (1,000 items)"}
SIBLING_RUNS = "ml100k-next"  # not an experiment: the arms of one whose names begin so
SHOWN = TITLES | {SIBLING_RUNS: "MovieLens-100K, causal next-item sibling"}
NAMES = LABELS | {
    VISION: "vision signs",
    RESCALED: "default at vision's norms (no diagonal)",
    RANDOM: "random directions (no diagonal)",
    "short-next-fit-beauty": "next item, fitted to the sibling of Beauty",
    "mimetic-qk": "QK only, vision's sign",
    "mimetic-vp": "V·proj only, vision's sign",
}
VARIANTS = {  # what the arms of a changed model begin with
    "short-next-": "next item, ",
    "short-pre-ln-next-": "next item, pre-LN, ",
    "next-": "next item, 40 epochs, ",
    "pre-ln-next-": "next item, pre-LN, 40 epochs, ",
    "causal-": "causal, ",
    "pre-ln-causal-": "causal, pre-LN, ",
    "pre-ln-": "pre-LN, ",
}
SIGN_PAIRS = {"vision signs": (DEFAULT, VISION), "opposite signs": (DEFAULT, OPPOSITE)}
AGAINST_DEFAULT = SIGN_PAIRS | {  # both signs, and both controls of their size
    "default at vision's norms (no diagonal)": (DEFAULT, RESCALED),
    "random directions (no diagonal)": (DEFAULT, RANDOM),
}
AGAINST_EACH_OTHER = {
    "opposite minus vision signs": (VISION, OPPOSITE),
    "vision signs minus default at vision's norms": (RESCALED, VISION),
    "vision signs minus random directions": (RANDOM, VISION),
    "opposite signs minus default at vision's norms": (RESCALED, OPPOSITE),
    "opposite signs minus random directions": (RANDOM, OPPOSITE),
}
CONTROLS = ("default at vision's norms", "random directions")  # as large, without a diagonal
HALVES = {
    "QK alone": (DEFAULT, "mimetic-qk"),
    "V·proj alone": (DEFAULT, "mimetic-vp"),
    "both minus V·proj alone": ("mimetic-vp", VISION),
}
OVER_USERS = (*SIGN_PAIRS, "opposite minus vision signs")  # of these also the interval over seeds and users
COMPARED = AGAINST_DEFAULT | AGAINST_EACH_OTHER  # what the answer rests on: label -> (reference arm, arm)
VALIDATION_COLUMN = "test_validation_ndcg10"
# on the last items, as NDCG@10: is the next item among the first ten; the mean of 1 / rank, without a cut
OTHER_METRICS = {"Recall@10": "test_recall10", "MRR": "test_mrr"}
USERS = "over seeds and users"  # the column of numbers() with such an interval
draw = partial(common.draw, command=COMMAND)


def arm_label(arm: str) -> str:
    """An arm in words."""
    prefix = next((p for p in VARIANTS if arm.startswith(p)), "") if arm not in NAMES else ""
    return VARIANTS.get(prefix, "") + NAMES.get(arm.removeprefix(prefix), arm)


def verdict(finals: Mapping[str, pd.DataFrame]) -> str:
    """The experiment's answer: what the comparisons of each data set, and of the causal sibling, come to, in a sentence
    each, and how many runs are missing.
    """
    gaps = [text for data, runs in finals.items() if (text := _missing(data, runs))]
    lines = [f"* {conclusion(data, table)}" for data, table in compared(finals, COMPARED).items()]
    return "\n\n".join(filter(None, ["\n".join(lines), f"*{' '.join(gaps)}*" if gaps else ""]))


def sibling_table(finals: Mapping[str, pd.DataFrame]) -> str:
    """What the causal sibling's comparisons come to on both kinds of items, with other users taken into account, and
    after twice as many epochs, as a Markdown table; "" without runs."""
    controls = ("vision signs minus default at vision's norms", "vision signs minus random directions")
    asked = {name: COMPARED[name] for name in (*OVER_USERS, *controls)} | {
        "fitted to a trained sibling of Beauty": (DEFAULT, "fit-beauty")
    }
    short, long = (_sibling(finals, prefix) for prefix in (SIBLING_PREFIX, LONG_SIBLING_PREFIX))
    rows = []
    for name, (reference, arm) in asked.items():
        values = [
            difference(runs, arm, reference, column)
            for runs, column in ((short, METRIC.column), (short, VALIDATION_COLUMN), (long, METRIC.column))
        ]
        users = user_differences("ml100k", SIBLING_PREFIX + arm, SIBLING_PREFIX + reference)
        last, before, later = (common.measured(v, METRIC) if len(v) else "–" for v in values)
        if last != "–":
            rows.append((name, last, interval(*crossed_interval(users)) if len(users) > 1 else "–", before, later))
    columns = [
        "next item: difference (95 % interval)",
        "last items, 20 epochs",
        "over seeds and users",
        "last but one items",
        "last items, 40 epochs",
    ]
    return common.markdown(rows, columns)


def imitations(finals: Mapping[str, pd.DataFrame]) -> str:
    """What the arm fitted to the trained model of the other data set gains over the default and over the controls of
    vision's size, in words; "" without.
    """
    said = []
    for data, runs in finals.items():
        fitted = next((arm for arm in CENTRAL[data].arms if arm.startswith("fit-")), None)
        references = dict(zip(("default", *CONTROLS), (DEFAULT, RESCALED, RANDOM)))
        pairs = {name: (arm, fitted) for name, arm in references.items()}
        table = compare(runs, pairs, METRIC.column) if fitted else pd.DataFrame()
        if len(table) and table["pairs"].min() >= ENOUGH:
            parts = (f"{METRIC.shown(*row[common.VALUES])} against {name}" for name, row in table.iterrows())
            said.append(f"{SHOWN[data]}: {', '.join(parts)}.")
    return " ".join(said)


def against_default(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """What every arm of AGAINST_DEFAULT does, with its interval and in a word: index the arms, a column a data set of
    tables (compared) that has a pair.
    """
    columns = {}
    for data, table in tables.items():
        if table.empty:
            continue
        cells = {"default": f"{table['reference'].iloc[0]:.4f}"}
        for name in AGAINST_DEFAULT:
            if name in table.index:
                row = table.loc[name]
                cells[name] = f"{METRIC.shown(*row[common.VALUES])}: *{common.word(row, METRIC)}*"
        columns[data] = cells
    rows = [name for name in ("default", *AGAINST_DEFAULT) if any(name in cells for cells in columns.values())]
    return pd.DataFrame(columns, index=rows, dtype=object).fillna("")


def halves_in_words(finals: Mapping[str, pd.DataFrame]) -> str:
    """Which product of vision's signs does it, where one of them gains by itself, a
    sentence a data set; "" where none does.
    """
    said = []
    for data, table in compared(finals, HALVES).items():
        words = words_of(table)
        if "gains" in (words.get("QK alone"), words.get("V·proj alone")):
            values = ", ".join(f"{name} {METRIC.shown(*table.loc[name, common.VALUES])}" for name in words)
            said.append(f"Of vision's two products on {SHOWN[data]}: {values}.")
    return " ".join(said)


def compared(finals: Mapping[str, pd.DataFrame], pairs: Mapping[str, tuple[str, str]]) -> dict[str, pd.DataFrame]:
    """Comparisons of every data set, and of the causal sibling where it has any (its arms
    are named as BERT4Rec's, behind a prefix).
    """
    tables = {data: compare(runs, pairs, METRIC.column) for data, runs in finals.items()}
    if "ml100k" in finals:
        if len(table := compare(_sibling(finals, SIBLING_PREFIX), pairs, METRIC.column)):
            tables[SIBLING_RUNS] = table
    return tables


def _sibling(finals: Mapping[str, pd.DataFrame], prefix: str) -> pd.DataFrame:
    """The causal sibling's runs, its arms named as BERT4Rec's; prefix: what their names begin with."""
    runs = finals["ml100k"]
    runs = runs[runs["arm"].str.startswith(prefix)]
    return runs.assign(arm=runs["arm"].str.removeprefix(prefix))


def words_of(table: pd.DataFrame) -> dict[str, str]:
    """What every comparison says."""
    return {name: common.word(row, METRIC) for name, row in table.iterrows()}


def gaining(words: Mapping[str, str]) -> set[str]:
    """The comparisons that gain (words_of)."""
    return {name for name, word in words.items() if word == "gains"}


def _missing(data: str, finals: pd.DataFrame) -> str:
    """How many of the runs that the answer rests on are in: of the central comparison, its controls and the other
    learning rate; "" if all.
    """
    studies = [
        (CENTRAL[data], finals, SEEDS[data]),
        (STRUCTURE[data], finals, SEEDS[data]),
        (RATE[data], load_runs(f"{data}-rate"), SEEDS[data]),
    ]
    if data == STUDIES["next"].experiment:
        studies.append((STUDIES["next"], finals, FIRST_SEEDS + MORE_SEEDS))
    counts = [common.counts(*study) for study in studies]
    if all(there == wanted for there, wanted in counts):
        return ""
    parts = [
        f"{there} of {wanted} runs {what}"
        for (there, wanted), what in zip(
            counts, ("of the comparison", "of its controls", "at the other rate", "of the sibling")
        )
    ]
    return f"{TITLES[data]}: {', '.join(parts)} are in; `{COMMAND}` adds the others, and this page follows."


def conclusion(data: str, table: pd.DataFrame) -> str:
    """What one data set's comparisons (compare with COMPARED) come to: does it matter which signs, is it their size?"""
    if table.empty:
        return f"**{SHOWN[data]}**: no pair yet."
    so = (
        _size_or_sign(words_of(table), doubted(table), data)
        or "these pairs do not say whether it is the size of the weights or the signs"
    )
    return f"**{SHOWN[data]}**: {so}."


def doubted(table: pd.DataFrame) -> bool:
    """Whether the exact test does not confirm what the interval says of the two sets of signs."""
    name = "opposite minus vision signs"
    return name in table.index and bool(common.exact_p(table.loc[name]))


def beyond_size(gains: Container[str]) -> list[str]:
    """The sign patterns that gain against the default and against both controls of
    their size; gains: the comparisons that do.
    """
    return [
        name for name in SIGN_PAIRS if name in gains and all(f"{name} minus {control}" in gains for control in CONTROLS)
    ]


def _size_or_sign(words: Mapping[str, str], doubted: bool, data: str) -> str:
    """The conclusion from the words of conclusion(), a clause; "" while they do not say; doubted: see there."""
    better = {
        "gains": "opposite signs do better than vision's",
        "loses": "vision signs do better than the opposite",
    }.get(words.get("opposite minus vision signs", ""), "")
    better += common.UNCONFIRMED if better and doubted else ""
    rest = f"; {better}" if better else ""
    if all(words.get(name) == common.NO_DIFFERENCE for name in AGAINST_EACH_OTHER):
        rest = "; neither the diagonal nor its sign adds anything that these pairs can show"
    elif better and not any(
        words.get(f"{name} minus {control}") == "gains" for name in SIGN_PAIRS for control in CONTROLS
    ):
        rest += ", but neither is shown to do better than both controls of its size"
        rest += "".join(
            f", and {name} do worse than {control}"
            for name in SIGN_PAIRS
            for control in CONTROLS
            if words.get(f"{name} minus {control}") == "loses"
        )
    if beyond := beyond_size(gaining(words)):
        return f"{' and '.join(beyond)} gain beyond the size of the weights and their singular values{rest}"
    if any(words.get(name) == "gains" for name in SIGN_PAIRS) and any(
        words.get(name) == "gains" for name in AGAINST_DEFAULT if name not in SIGN_PAIRS
    ):
        return f"larger attention weights gain, with a diagonal or without one{rest}"
    if not better:
        return ""
    asked = any(f"{name} minus {control}" in words for name in SIGN_PAIRS for control in CONTROLS)
    matters = "the sign matters"
    if data == SIBLING_RUNS:  # what its comparison is worth stands in 12b, by hand
        matters = "a sign may matter (after 20 epochs; [next page](12b_qualified.ipynb) for 40, the plan)"
    return f"{matters}: {better}" + "; that one of them gains beyond the size of its weights is not shown" * asked


def other_metrics(finals: Mapping[str, pd.DataFrame]) -> str:
    """Which comparisons that the answer rests on (COMPARED, with enough pairs) say something else by the other two
    metrics of the records, in a sentence."""
    number, others = 0, {}
    for data, table in compared(finals, COMPARED).items():
        runs = _sibling(finals, SIBLING_PREFIX) if data == SIBLING_RUNS else finals[data]
        for name, row in table[table["pairs"] >= ENOUGH].iterrows() if len(table) else ():
            number += 1
            says = common.word(row, METRIC)
            by = {
                metric: common.word(compare(runs, {name: COMPARED[name]}, column).loc[name])
                for metric, column in OTHER_METRICS.items()
            }
            if changed := [f"by {metric} *{word}*" for metric, word in by.items() if word != says]:
                others.setdefault(data, []).append(f"{name} (*{says}*; {', '.join(changed)})")
    metrics = " and ".join(OTHER_METRICS)
    if not number:
        return f"What {metrics} say is not known yet: no comparison has {ENOUGH} pairs."
    alike = number - sum(map(len, others.values()))
    text = f"{metrics} say the same as NDCG@10 in {alike} of the {number} comparisons behind the answer"
    said = "; ".join(f"on {SHOWN[data]}, {', '.join(names)}" for data, names in others.items())
    return f"{text}. Not so: {said}.".replace(common.NO_DIFFERENCE, "no difference") if others else f"{text}."


def interval(low: float, high: float) -> str:
    return f"({METRIC.span(low, high)})"


def user_differences(experiment: str, arm: str, reference: str = DEFAULT) -> np.ndarray:
    """(seeds, users): a user's NDCG@10 under an arm minus that under its reference, of the paired seeds whose records
    hold the users' ranks; empty if there is none."""
    gains = {
        (record["arm"], record["seed"]): ranking.gains(torch.from_numpy(ranks)).numpy()
        for record in records_of(experiment, (arm, reference))
        if len(ranks := cases_of(record, "ranks"))
    }
    seeds = [seed for name, seed in gains if name == arm and (reference, seed) in gains]
    return np.array([gains[arm, seed] - gains[reference, seed] for seed in seeds])


def norm_table(finals: Mapping[str, pd.DataFrame]) -> str:
    """What both signs gain with pre-LN, and how that differs from post-LN, on every data set, as a Markdown table; ""
    without runs."""
    rows = []
    for data, runs in finals.items():
        for name, (reference, arm) in SIGN_PAIRS.items():
            gain = {f"pre-ln-{arm}": 1, f"pre-ln-{reference}": -1}
            both = [contrast(runs, asked, METRIC.column) for asked in (gain, gain | {arm: -1, reference: 1})]
            cells = [common.measured(values, METRIC) if len(values) else "–" for values in both]
            if cells[0] != "–":
                rows.append((f"{TITLES[data].split(' (')[0]}: {name}", *cells))
    columns = ["NDCG@10, last items: difference (95 % interval)", "pre-LN", "the same minus that with post-LN"]
    return common.markdown(rows, columns)


def comparison(names: list[str], finals: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Tables and points of several studies on one data set (for figures.comparisons)."""
    return common.stacked(((STUDIES[name], finals) for name in names), METRIC)


def at_a_glance(finals: Mapping[str, pd.DataFrame]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Table and points of AGAINST_DEFAULT, on each data set and kind of items (figures.comparisons): what the chapter
    opens with."""
    panels = []
    for data, runs in finals.items():
        for items, column in (("last items", METRIC.column), ("last but one", VALIDATION_COLUMN)):
            study = Study(
                "at-a-glance",
                f"{TITLES[data]}, {items}",
                data,
                (DEFAULT, *(arm for _, arm in AGAINST_DEFAULT.values())),
                AGAINST_DEFAULT,
            )
            panels.append(common.stacked([(study, runs)], replace(METRIC, column=column)))
    return _one_below_the_other(panels)


def beside_the_glance(finals: Mapping[str, pd.DataFrame]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Table and points of what the central comparison and its controls ask and at_a_glance does not have, on each data
    set (figures.comparisons)."""
    shown = AGAINST_DEFAULT.values()
    panels = []
    for data, runs in finals.items():
        pairs = CENTRAL[data].comparisons | STRUCTURE[data].comparisons
        pairs = {label: arms for label, arms in pairs.items() if arms not in shown}
        panels.append(common.stacked([(Study("beside", TITLES[data], data, (DEFAULT,), pairs), runs)], METRIC))
    return _one_below_the_other(panels)


def _one_below_the_other(panels: list[tuple[pd.DataFrame, pd.DataFrame]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Tables and points of several panels as one of each; tables without a row have no columns to join by."""
    tables, points = zip(*panels, strict=True)
    there = [table for table in tables if len(table)]
    return pd.concat(there) if there else tables[0], pd.concat(points, ignore_index=True)


# What 12b opens with. Two questions: of a heading, (reference arm, arm)
CHANGEABLE = {
    "Do larger weights gain? (default at vision's norms)": (DEFAULT, RESCALED),
    "Does the sign matter? (opposite minus vision)": (VISION, OPPOSITE),
}
# asked under several circumstances: of a label, how the experiment's name ends and the arms' begin, by which items
CIRCUMSTANCES = {
    "as in chapter 12": ("", "", METRIC.column),
    "last but one items": ("", "", VALIDATION_COLUMN),
    "three times the rate": ("-rate", "", METRIC.column),
    "causal, next item": ("", SIBLING_PREFIX, METRIC.column),
    "pre-LN": ("", "pre-ln-", METRIC.column),
    "fixed positions": ("-sincos", "", METRIC.column),
}


def under_circumstances() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Table and points of CHANGEABLE on each data set under every one of CIRCUMSTANCES (figures.comparisons)."""
    panels = []
    for question, arms in CHANGEABLE.items():
        for data, title in TITLES.items():
            for label, (end, prefix, column) in CIRCUMSTANCES.items():
                pair = tuple(prefix + arm for arm in arms)
                name = f"{title.split(' (')[0]}, {label}"
                study = Study("under-circumstances", question, data + end, pair, {name: pair})
                panels.append(common.stacked([(study, load_runs(data + end))], replace(METRIC, column=column)))
    return _one_below_the_other(panels)


def numbers(names: list[str], finals: pd.DataFrame, beside: Sequence[str] = ()) -> pd.DataFrame:
    """The rows of comparison() in numbers, p corrected over all of them; below them, uncorrected, what of COMPARED they
    lack, so that no comparison of the answer is without its p. Of OVER_USERS also the interval over seeds and users.

    Args:
        beside: studies of the same runs that are shown elsewhere, so that p is corrected over their rows, too.
    """
    table = comparison([*names, *beside], finals)[0]
    there = set(table["compared"]) if len(table) else set()
    more = _uncorrected(names, there)
    parts = []
    for rows, corrected in ((table, True), (common.study_table(more, finals, METRIC), False)):
        if len(rows):
            users = [_over_users(*compared) for compared in rows["compared"]]
            part = common.rounded(rows.assign(**{USERS: users}), 4, ("pairs", "wins", USERS))
            parts.append(part if corrected else part.assign(p_holm=""))
    if not parts:
        return table
    shown = pd.concat(parts)
    return shown[~shown.index.isin([STUDIES[name].question for name in beside], level=0)]


def _uncorrected(names: list[str], there: Container[tuple[str, str, str]]) -> Study:
    """The comparisons of COMPARED, of BERT4Rec and of the sibling as far as their studies are named, that are not
    there."""
    experiment = STUDIES[names[0]].experiment
    prefixes = {"": ""} if CENTRAL[experiment].name in names else {}
    prefixes |= {SIBLING_PREFIX: ", next item"} if STUDIES["next"].name in names else {}
    pairs = {
        f"{label}{end}": (prefix + reference, prefix + arm)
        for prefix, end in prefixes.items()
        for label, (reference, arm) in COMPARED.items()
    }
    lacking = {label: arms for label, arms in pairs.items() if (experiment, *arms) not in there}
    return Study("more", "Against each other, not corrected", experiment, (DEFAULT,), lacking)


def _over_users(experiment: str, reference: str, arm: str) -> str:
    """The interval over seeds and users of a comparison of OVER_USERS, of BERT4Rec or of the sibling; "" of others, and
    without two seeds."""
    plain = tuple(name.removeprefix(SIBLING_PREFIX) for name in (reference, arm))
    if plain not in {COMPARED[name] for name in OVER_USERS}:
        return ""
    users = user_differences(experiment, arm, reference)
    return interval(*crossed_interval(users)) if len(users) > 1 else ""


def labelled(data: str, curves: pd.DataFrame) -> pd.DataFrame:
    """The curves of the central comparison's arms, in its order, arms in words (for figures.ranking_curves)."""
    parts = [curves[curves["arm"] == arm].assign(arm=arm_label(arm)) for arm in CENTRAL[data].arms]
    return pd.concat(parts, ignore_index=True)
