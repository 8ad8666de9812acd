"""What chapter 10 says of a GPT with other positions, in the figure that opens it and on its second page: does mimetic
initialization fail with language, or with what enters a GPT's first block?
"""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from mimetic.experiments.answers import common, rates
from mimetic.experiments.answers.common import measured
from mimetic.experiments.answers.language import COMMAND
from mimetic.experiments.configs.language import OTHER_POSITIONS, RUNNER_UP, SIGNS, TIE, with_positions
from mimetic.experiments.language import METRIC
from mimetic.experiments.programmes.language import (
    CENTRAL,
    CENTRED,
    FROM_NOISE,
    FROM_SINCOS,
    FROM_SINCOS_WIKITEXT2,
    GENTLER,
    LONG,
    OF_VISION,
    OF_VISION_WIKITEXT2,
    POSITIONS,
    POSITIONS_LONG,
    POSITIONS_WIKITEXT2,
    ROTARY,
    SCALED,
    SEEDS,
    SHUFFLED,
    WIKITEXT2,
)
from mimetic.experiments.programmes.study import Study
from mimetic.figures.style import LABELS, TEXT_POSITIONS
from mimetic.statistics import ENOUGH, difference, side
from mimetic.training.records import load_runs

SIGNED = [arm for arm in SIGNS if arm != "gpt2"]
LEARNED, LEARNED_WIKITEXT2 = (replace(study, arms=tuple(SIGNS), contrasts={}) for study in (CENTRAL, WIKITEXT2))
# GPTConfig.pos_embed -> its study, in the order of by_kind
OF_KIND = {
    "learned": LEARNED,
    "scaled": SCALED,
    "from-noise": FROM_NOISE,
    "rotary": ROTARY,
    "shuffled": SHUFFLED,
    "sincos": POSITIONS,
    "centred": CENTRED,
    "from-sincos": FROM_SINCOS,
}
CONTROLS = (SHUFFLED, CENTRED, SCALED, FROM_SINCOS, FROM_NOISE)
STUDIES = {f"tiny Shakespeare, {TEXT_POSITIONS[kind]}": study for kind, study in OF_KIND.items()} | {
    f"WikiText-2, {TEXT_POSITIONS['learned']}": LEARNED_WIKITEXT2,
    f"WikiText-2, {TEXT_POSITIONS['sincos']}": POSITIONS_WIKITEXT2,
    f"WikiText-2, {TEXT_POSITIONS['from-sincos']}": FROM_SINCOS_WIKITEXT2,
}


def comparisons() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Every arm against the default of the same positions, of the two kinds with which more than signs was run: table
    and points for figures.comparisons."""
    return common.stacked(((study, load_runs(study.experiment)) for study in (POSITIONS, SHUFFLED)), METRIC)


def by_kind() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Vision's signs against the default of the same positions, at the better of its rates, a group a text and a row a
    kind of positions: table and points for figures.comparisons."""
    studies = []
    for question, study in STUDIES.items():
        text, _, kind = question.partition(", ")
        rate = better_rate(study)
        name = kind if rate == "gpt2" else f"{kind}, over the default at {RUNNER_UP['gpt2']:g}"
        studies.append(
            (replace(study, question=text, comparisons={name: (rate, "vision")}), load_runs(study.experiment))
        )
    return common.stacked(studies, METRIC)


AT_A_GLANCE = ("learned", "sincos", "from-sincos", "rotary")  # what the chapter opens with: no controls


def at_a_glance() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Both sets of signs against the default of the same positions, a group a kind of positions and a text: table and
    points for figures.comparisons."""
    studies = []
    for text in ("tiny Shakespeare", "WikiText-2"):
        for kind in AT_A_GLANCE:
            question = f"{text}, {TEXT_POSITIONS[kind]}"
            if question in STUDIES:
                study = STUDIES[question]
                every = common.comparisons_of(study)
                of_signs = {name: pair for name, pair in every.items() if name.split(" signs")[0] in SIGNED}
                study = replace(study, question=question, comparisons=of_signs)
                studies.append((study, load_runs(study.experiment)))
    return common.stacked(studies, METRIC)


def effect_of(study: Study, arm: str, reference: str = "gpt2", other: Study | None = None) -> pd.Series:
    """seed -> an arm minus a reference, the default, of the same study or of another one (bits per byte); empty without
    runs of both."""
    others = load_runs(other.experiment) if other else None
    return difference(load_runs(study.experiment), arm, reference, METRIC.column, others)


def _own(study: Study) -> tuple[Study, Study]:
    """The studies of the same text with GPT-2's own positions: that of a GPU, and that of a CPU."""
    shakespeare = study.experiment.startswith(CENTRAL.experiment)
    return (CENTRAL, OF_VISION) if shakespeare else (WIKITEXT2, OF_VISION_WIKITEXT2)


def learned(arm: str, study: Study) -> Study:
    """The study of the same text with GPT-2's own positions to hold an arm against: the one that was run on a CPU, as
    all other positions were, if the arm is in it, else the one of a GPU."""
    own, twin = _own(study)
    return twin if {"gpt2", arm} <= set(load_runs(twin.experiment).get("arm", ())) else own


def changes(arm: str, study: Study = POSITIONS, other: Study | None = None) -> pd.Series:
    """seed -> what an arm does to the default in one study, less what it does in another, by default with GPT-2's own
    positions (bits per byte); empty without runs of both. A seed has the same windows of text in both."""
    return (effect_of(study, arm) - effect_of(other or learned(arm, study), arm)).dropna()


def better_rate(study: Study) -> str:
    """At which of its two rates the default is taken in a study, as its arm is called there: the other one where its
    runs are better by what they can show (a choice by the text that judges, which flatters the default), else the
    searched one."""
    change = effect_of(study, GENTLER)
    return GENTLER if len(change) >= ENOUGH and side(change) < 0 else "gpt2"


def over_own_start(arm: str, study: Study) -> pd.Series:
    """seed -> an arm minus GPT-2's own start on the same text, which has learned positions (bits per byte), on
    WikiText-2 at the better of its two rates; empty without runs of both."""
    rate = better_rate(_own(study)[0])
    return effect_of(study, arm, rate, learned(rate, study))


def searched_sentence(search: str) -> str:
    """What a search with fixed positions chose for each arm, and where that is the end of what was tried or hardly
    better than another rate.
    """
    table, best = rates.rate_table(search), rates.best_rates(search)
    if not best:
        return f"The search of `{search}` has no records yet: `python -m mimetic queue language-recipe`."
    said = []
    for arm, lr in best.items():
        row = table.loc[arm].dropna().sort_values()
        end = ", the highest tried" if lr == row.index.max() else ", the lowest tried" if lr == row.index.min() else ""
        behind = row.iloc[1] - row.iloc[0]
        close = f"; {row.index[1]:g} only {behind:.3f} behind" if behind <= TIE else ""
        said.append(f"{LABELS[arm]} {lr:g} ({row.iloc[0]:.3f}{end}{close})")
    return f"{', '.join(said)}."


def searches() -> str:
    """The searches, in words."""
    found = {TEXT_POSITIONS[kind]: with_positions(kind, search=True) for kind in OTHER_POSITIONS}
    return "One seed; in brackets validation bits per byte. " + " ".join(
        f"With {name}: {searched_sentence(search)}" for name, search in found.items()
    )


KINDS = ("learned", "sincos", "from-sincos", "rotary")
# What the table on top of the page compares: text -> the study of each of KINDS, None where it was not run
TEXTS: dict[str, tuple[Study | None, ...]] = {
    "tiny Shakespeare": (LEARNED, POSITIONS, FROM_SINCOS, ROTARY),
    "tiny Shakespeare, 6,000 steps": (LONG, POSITIONS_LONG, None, None),
    "WikiText-2": (LEARNED_WIKITEXT2, POSITIONS_WIKITEXT2, FROM_SINCOS_WIKITEXT2, None),
}


def in_short() -> str:
    """What the two sets of signs do with every one of KINDS, for the top of the page: a Markdown table, and how the
    better of them stands to GPT-2's own start; "" without a pair."""
    rows: dict[str, dict[str, str]] = {}
    for text, studies in TEXTS.items():
        for kind, study in zip(KINDS, studies):
            if study is None:
                continue
            pairs = {LABELS[arm]: (better_rate(study), arm) for arm in SIGNED}
            table = common.study_table(replace(study, comparisons=pairs), load_runs(study.experiment), METRIC)
            for arm in SIGNED:
                if LABELS[arm] in table.index:
                    row = table.loc[LABELS[arm]]
                    rows.setdefault(f"{text}, {LABELS['gpt2']}", {})[kind] = f"{row['reference']:.3f}"
                    rows.setdefault(f"{text}, {LABELS[arm]}", {})[kind] = (
                        f"{common.estimate(row, METRIC, common.exact_p(row))}: *{common.word(row, METRIC, more=False)}*"
                    )
    if not rows:
        return ""
    order = [f"{text}, {LABELS[arm]}" for text in TEXTS for arm in ("gpt2", *SIGNED)]
    table = common.markdown(
        [(name, *(rows[name].get(kind, "not run") for kind in KINDS)) for name in order if name in rows],
        ["bits per byte; for the signs, minus the default's", *(TEXT_POSITIONS[kind] for kind in KINDS)],
    )
    said = []
    for kind, studies in {
        "fixed positions": (POSITIONS, POSITIONS_WIKITEXT2),
        "learned ones that start from these": (FROM_SINCOS, FROM_SINCOS_WIKITEXT2),
    }.items():
        own = {study.question.partition(",")[0]: over_own_start("vision", study) for study in studies}
        found = [f"{measured(values, METRIC)} on {text}" for text, values in own.items() if len(values) >= ENOUGH]
        said += [f"with {kind} {', '.join(found)}"] if found else []
    if not said:
        return table
    beyond = "Vision signs minus GPT-2's own start, the default with learned positions:"
    return f"{table}\n\n{beyond} {'; '.join(said)}."


def longer() -> dict[str, pd.DataFrame]:
    """The curves of the longer runs by kind of positions, of the kinds that have a pair."""
    sets = {
        kind: load_runs(study.experiment, curves=True)
        for kind, study in (("learned", LONG), ("sincos", POSITIONS_LONG))
    }
    return {
        TEXT_POSITIONS[kind]: curves
        for kind, curves in sets.items()
        if "gpt2" in set(curves["arm"]) and curves["arm"].nunique() > 1
    }


def _arms(study: Study, kind: str) -> tuple[str, list[str], list[str]]:
    """What each arm does with one kind of positions: how the answer begins, a list item an arm, with whether that is
    something else than with learned positions, and one a contrast of arms; all empty without a pair."""
    finals = load_runs(study.experiment)
    table = common.study_table(study, finals, METRIC)
    if table.empty:
        return "", [], []
    lines = []
    for name, row in table.iterrows():
        apart = _against_learned(changes(row["compared"][2], study))
        lines.append(f"* {name}: {common.finding(row, METRIC)}{apart}")
    against = [
        common.contrast_line(name, row, METRIC) for name, row in common.contrast_table(study, finals, METRIC).iterrows()
    ]
    text = (
        f"**We found**, on tiny Shakespeare, against the default with {kind} positions,"
        f" {table['reference'].iloc[0]:.3f} bits per byte:\n\n"
    )
    return text, lines, against


def answer() -> str:
    """What each arm does with fixed positions, as Markdown, and how they stand to GPT-2's own start."""
    text, lines, against = _arms(POSITIONS, "fixed")
    if not lines:
        return f"With fixed positions no pair of runs is in yet: `{COMMAND}`."
    text += "\n".join(lines)
    text += "\n\nThe arms against each other, seed by seed:\n\n" + "\n".join(against) if against else ""
    own = {
        "the default": over_own_start("gpt2", POSITIONS),
        "vision signs": over_own_start("vision", POSITIONS),
    }
    said = [f"{name} {measured(values, METRIC)}" for name, values in own.items() if len(values)]
    return text + (
        f"\n\nWith fixed positions minus GPT-2's own start with learned ones: {'; '.join(said)}." if said else ""
    )


def controls() -> str:
    """What vision's signs do in every control of the reason, against its own default, against what they do with fixed
    positions in their order, and against GPT-2's own start, as a Markdown table; then what else was asked of a random
    order, as list items."""
    rows = []
    for study in CONTROLS:
        name, finals = study.question.partition(", ")[2], load_runs(study.experiment)
        table = common.study_table(study, finals, METRIC)
        of_vision = [label for label in table.index if label.startswith(LABELS["vision"])]
        for label in of_vision:
            row, rate = table.loc[label], label.removeprefix(LABELS["vision"]).lstrip(",")
            arm = row["compared"][2]
            gain = effect_of(study, arm, row["compared"][1])
            against = (gain - effect_of(POSITIONS, arm)).dropna(), over_own_start(arm, study)
            cells = (measured(values, METRIC) if len(values) else "–" for values in against)
            says = f"{measured(gain, METRIC)}: *{common.word(row, METRIC, more=False)}*"
            rows.append((f"{name}{',' * bool(rate)}{rate}", f"{row['reference']:.3f}", says, *cells))
        if not of_vision:
            rows.append((name, f"no pair yet (`{COMMAND}`)", "–", "–", "–"))
    columns = [
        "positions",
        "default",
        "vision signs, minus the default",
        "the same, minus that with fixed positions in order",
        "vision signs minus GPT-2's own start",
    ]
    return f"{common.markdown(rows, columns)}\n\n{_in_a_random_order()}".rstrip()


def _in_a_random_order() -> str:
    """What the controls of size do where the fixed positions stand in a random order, and what noise as large does
    compared with these, as Markdown list items; "" without the runs."""
    finals = load_runs(SHUFFLED.experiment)
    table = common.study_table(SHUFFLED, finals, METRIC)
    sizes = [label for label in table.index if label != LABELS["vision"]]
    lines = [f"* in a random order, {label}: {common.finding(table.loc[label], METRIC)}" for label in sizes]
    lines += [
        common.contrast_line(f"in a random order, {arms}", row, METRIC)
        for arms, row in common.contrast_table(SHUFFLED, finals, METRIC).iterrows()
    ]
    noise = changes("vision", FROM_NOISE, SHUFFLED)
    if len(noise):
        lines.append(
            f"* what vision signs do from noise as large, minus that in a random order: {measured(noise, METRIC)}"
        )
    return "\n".join(lines)


def started_on_wikitext2() -> str:
    """What vision's signs do on the other text with learned positions that start from sines and cosines, over the
    default at two rates, and how they stand to GPT-2's own start there, as a paragraph; "" without a pair."""
    study = FROM_SINCOS_WIKITEXT2
    table = common.study_table(study, load_runs(study.experiment), METRIC)
    if table.empty:
        return ""
    found = [f"{name}: {common.finding(row, METRIC)}" for name, row in table.iterrows()]
    own = {
        "vision signs": over_own_start("vision", study),
        "default": over_own_start("gpt2", study),
    }
    said = [f"{name} {measured(values, METRIC)}" for name, values in own.items() if len(values)]
    fixed = effect_of(POSITIONS_WIKITEXT2, "vision")
    beyond = [
        f"{measured(values, METRIC)}{name.removeprefix(LABELS['vision'])}"
        for name, row in table.iterrows()
        if len(values := (effect_of(study, "vision", row["compared"][1]) - fixed).dropna())
    ]
    return (
        f"On WikiText-2 with learned positions that start from sin-cos, where we expected a gain as with fixed ones:"
        f" {'; '.join(found)}. The same minus that with fixed positions: {'; '.join(beyond)}. Minus GPT-2's own start"
        f" with learned positions: {'; '.join(said)}."
    )


def rotary_answer() -> str:
    """What both sets of signs do with rotary positions, as Markdown list items, and how the
    better start with fixed ones stands to them.
    """
    text, lines, against = _arms(ROTARY, "rotary")
    if not lines:
        return f"With rotary positions no pair is in yet: `{COMMAND}`."
    beyond = effect_of(POSITIONS, "vision", other=ROTARY)
    if len(beyond):
        against.append(
            f"* vision signs with fixed positions minus the default with rotary ones: {measured(beyond, METRIC)}"
        )
    return text + "\n".join(lines + against)


def _against_learned(apart: pd.Series) -> str:
    """Whether an arm's effect is another than with learned positions (changes), as a clause; "" without pairs."""
    if not len(apart):
        return ""
    if len(apart) < ENOUGH:
        return f"; compared with learned positions: {measured(apart, METRIC)}, too few pairs"
    says = {
        -1: "lower than that with learned positions",
        1: "higher than that with learned positions",
        0: "not to be told from that with learned positions",
    }
    return f"; this difference is {says[side(apart)]}: {measured(apart, METRIC)}"


def missing() -> str:
    """How many runs of these studies are in; "" when all are."""
    studies = (POSITIONS, *CONTROLS, ROTARY, POSITIONS_WIKITEXT2, FROM_SINCOS_WIKITEXT2, POSITIONS_LONG)
    said = (common.missing(s, load_runs(s.experiment), SEEDS[s.name], COMMAND, f"{s.question}: ") for s in studies)
    return " ".join(filter(None, said))
