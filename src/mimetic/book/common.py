"""What the answers to all questions share: a study's comparisons as tables and points, findings in words, what is
missing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mimetic.data.fetch import data_dir
from mimetic.experiments.metrics import ACCURACY, Metric
from mimetic.experiments.programmes.study import Study
from mimetic.figures.style import LABELS
from mimetic.statistics import (
    ENOUGH,
    compare,
    contrast,
    corrected,
    difference,
    mean_interval,
    smallest_p,
    steps_to_reach,
    summary,
)
from mimetic.training.records import load_runs

UNCONFIRMED = " by the interval, which the exact test does not confirm"
NO_DIFFERENCE = "no difference that these pairs can show"
PRODUCTS = {"qk": r"$W_QW_K^\top$", "vp": "$W_VW_{proj}$"}  # the two products in formulas
SHORT = {"qk": "QK", "vp": "V·proj"}  # and in plain text
VALUES = ["difference", "low", "high"]  # what Metric.shown takes of a row of statistics.summary or compare
IN_PERCENT = Metric("", "", scale=100, digits=1)  # a share of something


def draw(figure, data, *args, command: str, **kwargs) -> None:
    """Show figure(data, ...), or say that its runs are not in yet and which command makes them; reference: an argument
    of figure, the arm without which there is nothing to draw."""
    import matplotlib.pyplot as plt
    from IPython.display import Markdown, display

    if len(data) and ("reference" not in kwargs or kwargs["reference"] in set(data["arm"])):
        figure(data, *args, **kwargs)
        plt.show()
    else:
        display(Markdown(f"*No figure yet: its runs are not in. `{command}` makes them, and this page follows.*"))


def replicas_dir() -> Path:
    """The folder of the records that another machine made, too."""
    return data_dir() / "replicas"


def replicas(experiment: str) -> pd.DataFrame:
    """load_runs of the runs of an experiment that another machine made, too."""
    return load_runs(experiment, folder=replicas_dir())


def label(arm: str) -> str:
    """An arm in words."""
    if arm in LABELS:
        return LABELS[arm]
    part, what, value = arm.rsplit("-", 2)
    return f"{SHORT[part]} { {'alpha': '|α|', 'beta': '|β|', 'rank': 'rank'}[what] } {value}"


def comparisons_of(study: Study) -> dict[str, tuple[str, str]]:
    """label -> (reference arm, arm) of a study: those that it names, else every arm against its first one."""
    if study.comparisons is not None:
        return dict(study.comparisons)
    return {label(arm): (study.arms[0], arm) for arm in study.arms[1:]}


def study_table(study: Study, finals: pd.DataFrame, metric: Metric = ACCURACY) -> pd.DataFrame:
    """statistics.compare of a study's comparisons, with the study's question as column group, and what is compared:
    (experiment, reference arm, arm)."""
    arms = comparisons_of(study)
    table = compare(finals, arms, metric.column)
    if table.empty:
        return table
    return table.assign(group=study.question, compared=[(study.experiment, *arms[name]) for name in table.index])


def study_points(study: Study, finals: pd.DataFrame, metric: Metric = ACCURACY) -> pd.DataFrame:
    """One row a pair: label, group, seed, difference."""
    rows = [
        {"label": name, "group": study.question, "seed": seed, "difference": value}
        for name, (reference, arm) in comparisons_of(study).items()
        for seed, value in difference(finals, arm, reference, metric.column).items()
    ]
    return pd.DataFrame(rows, columns=["label", "group", "seed", "difference"])


def stacked(
    studies: Iterable[tuple[Study, pd.DataFrame]], metric: Metric = ACCURACY
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tables and the points of several studies, each with its runs, one below the other (for
    figures.comparisons)."""
    studies = list(studies)
    tables = [table for study, finals in studies if len(table := study_table(study, finals, metric))]
    points = [study_points(study, finals, metric) for study, finals in studies]
    empty = pd.DataFrame(columns=["group", "difference", "low", "high"])
    return pd.concat(tables) if tables else empty, pd.concat(points, ignore_index=True)


def word(row: pd.Series, metric: Metric = ACCURACY, more: bool = True) -> str:
    """What a comparison says, without its numbers: it follows from the interval and the number of pairs; more: further
    pairs are planned."""
    if row["pairs"] == 1:
        return "only one pair so far"
    if not (row["low"] > 0 or row["high"] < 0):
        return NO_DIFFERENCE
    ahead = metric.better(row["low"])
    if row["pairs"] < ENOUGH:
        return f"{'ahead' if ahead else 'behind'}{' so far' if more else ''}"
    return "gains" if ahead else "loses"


def exact_p(row: Mapping[str, float]) -> str:
    """ ", exact p 0.062" where the exact test and the interval of a row (statistics.summary) do not say the same; ""
    where they do, or where so few pairs cannot give a p below 0.05."""
    says = row["low"] > 0 or row["high"] < 0
    agree = says == (row["p"] <= 0.05)
    return "" if agree or smallest_p(int(row["pairs"])) > 0.05 else f", exact p {row['p']:.3f}"


def estimate(row: Mapping[str, float], metric: Metric = ACCURACY, more: str = "", unit: str = "") -> str:
    """A mean of paired values with its 95 % interval and their number, of a row of statistics.summary or compare, and
    more: "+0.1 (+0.0 to +0.2, 5 pairs)"; unit: behind the mean."""
    value, span = f"{metric.signed(row['difference'])} {unit}", metric.span(row["low"], row["high"])
    return f"{value.rstrip()} ({span}, {plural(row['pairs'], 'pair')}{more})"


def finding(row: pd.Series, metric: Metric = ACCURACY, more: bool = True) -> str:
    """One comparison in words: its verdict follows from its interval and the number of pairs; more: further pairs are
    planned."""
    if row["pairs"] == 1:
        return _only_pair(row, metric)
    said = word(row, metric, more)
    few = ", too few for a claim" if said.startswith(("ahead", "behind")) else ""
    return f"{said}: {estimate(row, metric, few + exact_p(row), metric.difference)}"


def _only_pair(row: Mapping[str, float], metric: Metric) -> str:
    value = f"{metric.signed(row['difference'])} {metric.difference}"
    return f"{value.rstrip()} in the only pair so far"


def measured(values: pd.Series, metric: Metric = ACCURACY, more: str = "") -> str:
    """A mean of paired values with its 95 % interval and their number, and more: "+0.1 (+0.0 to +0.2, 5 pairs)"; of one
    pair without an interval. Without more, the exact test's p where it says something else than the interval.

    Raises:
        ValueError: no values.
    """
    row = summary(values)
    return estimate(row, metric, more or exact_p(row))


def with_interval(values: pd.Series, metric: Metric = ACCURACY) -> str:
    """A mean of paired values with its 95 % interval: "+0.1 (+0.0 to +0.2)"; of one value without."""
    return metric.shown(values.mean(), *mean_interval(values))


def contrast_table(study: Study, finals: pd.DataFrame, metric: Metric = ACCURACY) -> pd.DataFrame:
    """One row a contrast of the study that has runs: difference, low, high, pairs, p; and expected, see
    study.Contrast."""
    rows = {}
    for name, asked in study.contrasts.items():
        values = contrast(finals, asked.arms, metric.column)
        if len(values):
            rows[name] = summary(values) | {"expected": asked.expected}
    return pd.DataFrame.from_dict(rows, orient="index")


AGAINST = "**against our expectation**"


def outcome(row: Mapping[str, float], expected: float | None) -> str:
    """What a difference (statistics.summary) says of what we expected of it (study.Contrast)."""
    if row["pairs"] < ENOUGH:
        return "too few pairs for a verdict"
    if not (row["low"] > 0 or row["high"] < 0):
        return "as expected, by what these pairs can show" if expected == 0 else "these pairs cannot say"
    if pd.notna(expected):
        return "as expected" if expected * row["difference"] > 0 else AGAINST
    return f"a difference{UNCONFIRMED if exact_p(row) else ''}"


def contrast_words(row: pd.Series, metric: Metric = ACCURACY) -> str:
    """One contrast in words, and whether it is what we expected."""
    if row["pairs"] == 1:
        return _only_pair(row, metric)
    return f"{estimate(row, metric, exact_p(row), metric.difference)}; {outcome(row, row['expected'])}"


def contrast_lines(study: Study, finals: pd.DataFrame, metric: Metric = ACCURACY) -> list[str]:
    """The contrasts of a study that have runs, as list items."""
    table = contrast_table(study, finals, metric)
    return [f"* {name}: {contrast_words(row, metric)}" for name, row in table.iterrows()]


def counts(study: Study, finals: pd.DataFrame, seeds: tuple[int, ...]) -> tuple[int, int]:
    """How many of a study's runs are in, and how many there are to be."""
    wanted = {(config.arm_name, config.seed) for config in study.runs(seeds)}
    return len(wanted & set(zip(finals["arm"], finals["seed"]))), len(wanted)


def missing(study: Study, finals: pd.DataFrame, seeds: tuple[int, ...], command: str, about: str = "") -> str:
    """How many of a study's runs are in, as a sentence that begins with what it is about; "" when all are."""
    there, wanted = counts(study, finals, seeds)
    if there == wanted:
        return ""
    return f"*{about}{there} of {wanted} runs are in; `{command}` adds the others, and this page follows.*"


def percent(share: float, digits: int = 0) -> str:
    """A share as the book writes it: 0.123 -> "12 %"."""
    return f"{100 * share:.{digits}f} %"


def plural(number: float, noun: str) -> str:
    """A number of things: "1 pair", "5 pairs"."""
    return f"{number:.0f} {noun}{'' if number == 1 else 's'}"


def minus(text: str) -> str:
    """Numbers as the book writes them, with a minus sign."""
    return text.replace("-", "−")


def rounded(table: pd.DataFrame, digits: int, columns: tuple[str, ...] = ("pairs", "wins")) -> pd.DataFrame:
    """A table of compare for the page, its values to so many digits, p corrected over all its rows (Holm). A comparison
    that answers several questions counts once; one pair has no interval."""
    if table.empty:
        return table
    table = table[~table["compared"].duplicated()]
    values, ps = ["reference", "arm", *VALUES], ["p", "p_holm"]
    out = table.assign(p_holm=corrected(table)).round(dict.fromkeys(values, digits) | dict.fromkeys(ps, 3))
    out = out.set_index("group", append=True).swaplevel()[[*values, *columns, *ps]].rename_axis([None, None])
    return blank(out)


def blank(table: pd.DataFrame) -> pd.DataFrame:
    """A table for the page: nothing where there is no value (nan) or no interval (infinite, of one pair)."""
    empty = table.isna() | table.isin([np.inf, -np.inf])
    return table.astype({name: object for name in table if empty[name].any()}).mask(empty, "")


def pairs_of(table: pd.DataFrame) -> str:
    """How many pairs the rows of a table of compare have: "5 pairs", "3 to 5 pairs"."""
    fewest, most = int(table["pairs"].min()), int(table["pairs"].max())
    return f"{fewest} to {most} pairs" if fewest < most else plural(most, "pair")


def first_passage(curves: pd.DataFrame, arm: str, targets: pd.Series, column: str) -> pd.Series:
    """seed -> share of the run after which the arm's own curve first reaches the seed's target; nan: never. The arm
    that the targets were taken from passes them before its end, too, since curves are noisy: only the difference to it
    says that an arm is sooner."""
    found = {}
    for seed, curve in curves[(curves["arm"] == arm) & curves["seed"].isin(targets.index)].groupby("seed"):
        curve = curve.sort_values("step")
        found[seed] = steps_to_reach(curve, targets[seed], column) / curve["step"].max()
    return pd.Series(found, dtype=float)


def markdown(rows: pd.DataFrame | Sequence[Any], columns: Sequence[str] | None = None) -> str:
    """A table of text as Markdown, whose long cells wrap on the page; a DataFrame's index is left out; "" without rows.
    columns: their names, where rows are tuples of cells."""
    table = pd.DataFrame(rows, columns=columns)
    if table.empty:
        return ""
    lines = [list(table.columns), ["---"] * len(table.columns), *table.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
