"""What chapter 10 says of a GPT with fixed sin-cos positions: does mimetic initialization fail with language, or with a GPT's positions?"""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from mimetic.experiments.answers import common, rates
from mimetic.experiments.configs.language import CHOSEN, EDGE_RATE, SIGNS, SINCOS_CHOSEN
from mimetic.experiments.language import METRIC
from mimetic.experiments.programmes.language import CENTRAL, POSITIONS, SINCOS_SEARCH
from mimetic.figures.style import LABELS
from mimetic.statistics import ENOUGH, contrast, side
from mimetic.training.records import load_runs

LEARNED, FIXED = "learned positions (GPT-2's)", "fixed sin-cos positions"
SIGNED = [arm for arm in SIGNS if arm != "gpt2"]


def comparisons() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Both sets of signs against the default of the same positions: table and points for figures.comparisons."""
    studies = {LEARNED: replace(CENTRAL, arms=tuple(SIGNS), contrasts={}), FIXED: POSITIONS}
    return common.stacked(((replace(study, question=question), load_runs(study.experiment)) for question, study in studies.items()), METRIC)


def changes(arm: str) -> pd.Series:
    """seed -> what an arm does to the default with fixed positions, less what it does with learned ones (bits per byte); empty without
    runs of both. Seeds have the same windows of text in both."""
    runs = [load_runs(study.experiment) for study in (POSITIONS, CENTRAL)]
    if any(finals.empty for finals in runs):
        return pd.Series(dtype=float)
    fixed, learned = (contrast(finals, {arm: 1, "gpt2": -1}, METRIC.column) for finals in runs)
    return (fixed - learned).dropna()


def default_changes() -> pd.Series:
    """seed -> the default with fixed positions minus the default with learned ones (bits per byte), each at its own rate."""
    runs = [load_runs(study.experiment) for study in (POSITIONS, CENTRAL)]
    if any(finals.empty for finals in runs):
        return pd.Series(dtype=float)
    fixed, learned = (finals[finals["arm"] == "gpt2"].set_index("seed")[METRIC.column] for finals in runs)
    return (fixed - learned).dropna()


def searched_sentence(finals: pd.DataFrame | None = None) -> str:
    """What the search with fixed positions chose for each arm, and where that is the end of what was tried."""
    finals = load_runs(SINCOS_SEARCH) if finals is None else finals
    table, best = rates.rate_table(finals), rates.best_rates(finals)
    if not best:
        return "Its search for learning rates has no records yet: `python -m mimetic queue language-recipe`."
    said = []
    for arm, lr in best.items():
        row = table.loc[arm].dropna().sort_values()
        end = ", the highest tried" if lr == row.index.max() else ", the lowest tried" if lr == row.index.min() else ""
        close = f"; {row.index[1]:g} only {row.iloc[1] - row.iloc[0]:.3f} behind" if row.iloc[1] - row.iloc[0] <= rates.TIE else ""
        said.append(f"{LABELS[arm]} {lr:g} ({row.iloc[0]:.3f}{end}{close})")
    return f"The same search, anew (one seed, held-out bits per byte in brackets): {', '.join(said)}."


def answer() -> str:
    """What the two sets of signs do with fixed positions, and whether that is something else than with learned ones, as Markdown."""
    finals = load_runs(POSITIONS.experiment)
    table = common.study_table(POSITIONS, finals, METRIC) if len(finals) else finals
    if table.empty:
        return "With fixed positions no pair of runs is in yet: `python -m mimetic queue language`."
    lines = []
    for arm in SIGNED:
        if LABELS[arm] not in table.index:
            continue
        line, apart = f"{LABELS[arm]}: {common.finding(table.loc[LABELS[arm]], METRIC)}", changes(arm)
        if len(apart):
            less = {-1: "better than with learned ones", 1: "worse than with learned ones", 0: "not to be told from what it does with learned ones"}
            said = less[side(apart)] if len(apart) >= ENOUGH else "too few pairs to compare with learned ones"
            line += f"; {said}: {common.measured(apart, METRIC)}"
        lines.append(f"* {line}")
    default = default_changes()
    own = f" (The default itself: {METRIC.signed(default.mean())} to its own with learned positions.)" if len(default) else ""
    return f"With fixed positions, against the default with fixed positions, {table['reference'].iloc[0]:.3f} bits per byte:{own}\n\n" + "\n".join(lines)
