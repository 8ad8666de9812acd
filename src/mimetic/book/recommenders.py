"""What the recommender chapters (12, 12b) say of the experiment: the verdict and what qualifies it."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
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
FITTED = "fit-"  # what the arm begins with whose constants are fitted to the model of the other data set
GLANCE = {  # AGAINST_DEFAULT in words that a figure can do with
    "mimetic, vision's signs": (DEFAULT, VISION),
    "mimetic, both signs reversed": (DEFAULT, OPPOSITE),
    "as large, no diagonal: default at vision's norms": (DEFAULT, RESCALED),
    "as large, no diagonal: random directions": (DEFAULT, RANDOM),
}
PARTS = {  # which product does it, and what an imitation of a trained model does
    "QK only, vision's sign": (DEFAULT, "mimetic-qk"),
    "V·proj only, vision's sign": (DEFAULT, "mimetic-vp"),
    "vision signs minus V·proj only": ("mimetic-vp", VISION),
    "fitted constants": (DEFAULT, FITTED),
    "fitted constants minus default at vision's norms": (RESCALED, FITTED),
    "fitted constants minus random directions": (RANDOM, FITTED),
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
    """The experiment's answer: what the comparisons of each data set come to, in a sentence each, and how many runs are
    missing."""
    gaps = [text for data, runs in finals.items() if (text := _missing(data, runs))]
    lines = [f"* {conclusion(data, compare(runs, COMPARED, METRIC.column))}" for data, runs in finals.items()]
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
    short, long = (f"{len(seeds)} pairs" for seeds in (FIRST_SEEDS + MORE_SEEDS, FIRST_SEEDS))  # fewer are named
    columns = [
        "next item: difference (95 % interval)",
        f"last items, 20 epochs, {short}",
        "over seeds and users",
        "last but one items",
        f"last items, 40 epochs, {long}",
    ]
    cells = [(*(cell.replace(f", {short}", "") for cell in row[:-1]), row[-1].replace(f", {long}", "")) for row in rows]
    return common.markdown(cells, columns)


def compared(finals: Mapping[str, pd.DataFrame], pairs: Mapping[str, tuple[str, str]]) -> dict[str, pd.DataFrame]:
    """Comparisons of every data set, and of the causal sibling where it has any (its arms are named as BERT4Rec's,
    behind a prefix)."""
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


def _missing(data: str, finals: pd.DataFrame) -> str:
    """How many of the runs that the answer rests on are in: of the central comparison, its controls and the other
    learning rate; "" if all."""
    studies = {
        "of the comparison": (CENTRAL[data], finals, SEEDS[data]),
        "of its controls": (STRUCTURE[data], finals, SEEDS[data]),
        "at the other rate": (RATE[data], load_runs(f"{data}-rate"), SEEDS[data]),
    }
    if data == STUDIES["next"].experiment:
        studies["of the sibling"] = STUDIES["next"], finals, FIRST_SEEDS + MORE_SEEDS
    counts = {what: common.counts(*study) for what, study in studies.items()}
    if all(there == wanted for there, wanted in counts.values()):
        return ""
    parts = [f"{there} of {wanted} runs {what}" for what, (there, wanted) in counts.items()]
    return f"{TITLES[data]}: {', '.join(parts)} are in; `{COMMAND}` adds the others, and this page follows."


def conclusion(data: str, table: pd.DataFrame) -> str:
    """What one data set's comparisons (compare with COMPARED) come to: does it matter which signs, is it their size?"""
    silent = "these pairs do not say whether it is the size of the weights or the signs"
    return f"**{TITLES[data]}**: {'no pair yet' if table.empty else _size_or_sign(table) or silent}."


def _size_or_sign(table: pd.DataFrame) -> str:
    """The conclusion, a clause; "" while the comparisons do not say."""
    words = {name: common.word(row, METRIC) for name, row in table.iterrows()}
    gains = {name for name, word in words.items() if word == "gains"}
    controlled = {(name, control): f"{name} minus {control}" for name in SIGN_PAIRS for control in CONTROLS}
    signs = "opposite minus vision signs"
    said = {"gains": "opposite signs do better than vision's", "loses": "vision signs do better than the opposite"}
    better = said.get(words.get(signs), "")
    if better and common.exact_p(table.loc[signs]):
        better += common.UNCONFIRMED
    rest = f"; {better}" if better else ""
    if all(words.get(name) == common.NO_DIFFERENCE for name in AGAINST_EACH_OTHER):
        rest = "; we see no further gain from a diagonal or its sign"
    elif better and not gains & set(controlled.values()):
        rest += ", but neither is shown to do better than both controls of its size"
        worse = [names for names, comparison in controlled.items() if words.get(comparison) == "loses"]
        rest += "".join(f", and {name} do worse than {control}" for name, control in worse)
    beyond = [name for name in SIGN_PAIRS if {name, *(controlled[name, control] for control in CONTROLS)} <= gains]
    if beyond:
        return f"{' and '.join(beyond)} gain beyond the size of the weights and their singular values{rest}"
    if gains & set(SIGN_PAIRS) and gains & set(AGAINST_DEFAULT) - set(SIGN_PAIRS):
        return f"larger attention weights gain, with a diagonal or without one{rest}"
    return f"the sign matters: {better}" if better else ""


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


def panels(
    finals: Mapping[str, pd.DataFrame], pairs: Mapping[str, tuple[str, str]]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Table and points of the same comparisons on each data set, on the last items (figures.comparisons); pairs: label
    -> (reference arm, arm), see GLANCE, AGAINST_EACH_OTHER and PARTS."""
    studies = [
        (Study("panel", TITLES[data], data, (DEFAULT,), of_data(pairs, data)), runs) for data, runs in finals.items()
    ]
    return common.stacked(studies, METRIC)


def of_data(pairs: Mapping[str, tuple[str, str]], data: str) -> dict[str, tuple[str, str]]:
    """Comparisons with the arm that is fitted to the model of the other data set by its name on this one."""
    fitted = next(arm for arm in CENTRAL[data].arms if arm.startswith(FITTED))
    return {label: tuple(fitted if arm == FITTED else arm for arm in arms) for label, arms in pairs.items()}


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


def under_circumstances(data: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Table and points of CHANGEABLE on a data set under every one of CIRCUMSTANCES (figures.comparisons)."""
    studies = []
    for question, arms in CHANGEABLE.items():
        for label, (end, prefix, column) in CIRCUMSTANCES.items():
            pair, runs = tuple(prefix + arm for arm in arms), load_runs(data + end)
            study = Study("under-circumstances", question, data + end, pair, {label: pair})
            studies.append((study, runs.assign(**{METRIC.column: runs.get(column)})))
    return common.stacked(studies, METRIC)


def numbers(names: list[str], finals: pd.DataFrame, beside: Sequence[str] = ()) -> pd.DataFrame:
    """The rows of comparison() in numbers, p corrected over all of them; below them, uncorrected, what of COMPARED and
    PARTS they lack, so that no comparison of the page is without its p. Of OVER_USERS also the interval over seeds and
    users.

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
    """The comparisons of COMPARED, of BERT4Rec (and of its PARTS) and of the sibling as far as their studies are named,
    that are not there."""
    experiment = STUDIES[names[0]].experiment
    prefixes = {"": ""} if CENTRAL[experiment].name in names else {}
    prefixes |= {SIBLING_PREFIX: ", next item"} if STUDIES["next"].name in names else {}
    pairs = {
        f"{label}{end}": (prefix + reference, prefix + arm)
        for prefix, end in prefixes.items()
        for label, (reference, arm) in (COMPARED if prefix else COMPARED | of_data(PARTS, experiment)).items()
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
