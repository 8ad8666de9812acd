"""What chapter 10 says of a GPT with other positions, on its second page: does mimetic initialization fail with
language, or with what enters a GPT's first block?"""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from mimetic.book import common, rates
from mimetic.book.common import measured
from mimetic.book.language import COMMAND, text_of, without_six
from mimetic.experiments.configs.language import OTHER_POSITIONS, RUNNER_UP, SIGNS, TIE, with_positions
from mimetic.experiments.language import METRIC
from mimetic.experiments.programmes.language import (
    CENTRAL,
    CENTRED,
    FROM_NOISE,
    FROM_SINCOS,
    FROM_SINCOS_LONG,
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
    SIZES,
    WIKITEXT2,
)
from mimetic.experiments.programmes.study import Study
from mimetic.figures.style import LABELS, TEXT_POSITIONS
from mimetic.statistics import ENOUGH, difference, side
from mimetic.training.records import load_runs

GENTLER_RATE = RUNNER_UP["gpt2"]  # of the arm GENTLER
SEARCHED_RATE = OTHER_POSITIONS["from-sincos"][1]["gpt2"]
SIGNED = [arm for arm in SIGNS if arm != "gpt2"]
LEARNED, LEARNED_WIKITEXT2 = (replace(study, arms=tuple(SIGNS), contrasts={}) for study in (CENTRAL, WIKITEXT2))
# GPTConfig.pos_embed -> its study on tiny Shakespeare
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
# (text, kind) -> its study
STUDIES = {("tiny Shakespeare", kind): study for kind, study in OF_KIND.items()} | {
    ("WikiText-2", "learned"): LEARNED_WIKITEXT2,
    ("WikiText-2", "sincos"): POSITIONS_WIKITEXT2,
    ("WikiText-2", "from-sincos"): FROM_SINCOS_WIKITEXT2,
}


def comparisons() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Every arm against the default of the same positions, of the two kinds with which more than signs was run: table
    and points for figures.comparisons."""
    return common.stacked(((study, load_runs(study.experiment)) for study in (POSITIONS, SHUFFLED)), METRIC)


def by_kind() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Vision's signs against the default of the same positions, at the better of its rates, a group a text and a row
    each of KINDS: table and points for figures.comparisons."""
    return _of_vision({key: study for key, study in STUDIES.items() if key[1] in KINDS})


def what_it_takes() -> tuple[pd.DataFrame, pd.DataFrame]:
    """The same with fixed positions and with every control of the reason."""
    kinds = ("sincos", "centred", "shuffled", "from-sincos", "from-noise", "scaled")
    return _of_vision({("tiny Shakespeare", kind): OF_KIND[kind] for kind in kinds})


def _of_vision(studies: dict[tuple[str, str], Study]) -> tuple[pd.DataFrame, pd.DataFrame]:
    rows = []
    for (text, kind), study in studies.items():
        rate = better_rate(study)
        name = _named(kind, rate)
        rows.append((replace(study, question=text, comparisons={name: (rate, "vision")}), load_runs(study.experiment)))
    return common.stacked(rows, METRIC)


def _named(kind: str, rate: str) -> str:
    """A kind of positions in words, with the default's rate where that is its second one (better_rate)."""
    return f"{TEXT_POSITIONS[kind]}{'' if rate == 'gpt2' else f', over the default at {GENTLER_RATE:g}'}"


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
    better than another rate."""
    table, best = rates.rate_table(search), rates.best_rates(search)
    if not best:
        return f"The search of `{search}` has no records yet: `python -m mimetic queue language-recipe`."
    said = []
    for arm, lr in best.items():
        row = table.loc[arm].dropna().sort_values()
        end = ", the highest tried" if lr == row.index.max() else ", the lowest tried" if lr == row.index.min() else ""
        behind = row.iloc[1] - row.iloc[0]
        close = f"; {row.index[1]:g}: +{behind:.3f}" if behind <= TIE else ""
        said.append(f"{LABELS[arm]} {lr:g} ({row.iloc[0]:.3f}{end}{close})")
    return f"{', '.join(said)}."


def searches() -> str:
    """The searches, in words."""
    found = {TEXT_POSITIONS[kind]: with_positions(kind, search=True) for kind in OTHER_POSITIONS}
    return "One seed; in brackets validation bits per byte. " + " ".join(
        f"With {name}: {searched_sentence(search)}" for name, search in found.items()
    )


KINDS = ("learned", "sincos", "from-sincos", "rotary")
LONGER = "tiny Shakespeare, 6,000 steps"
# What the table of every number compares: text -> the study of each of KINDS, None where it was not run
TEXTS: dict[str, tuple[Study | None, ...]] = {
    "tiny Shakespeare": (LEARNED, POSITIONS, FROM_SINCOS, ROTARY),
    LONGER: (LONG, POSITIONS_LONG, FROM_SINCOS_LONG, None),
    "WikiText-2": (LEARNED_WIKITEXT2, POSITIONS_WIKITEXT2, FROM_SINCOS_WIKITEXT2, None),
}


def in_short() -> str:
    """What the two sets of signs do with every one of KINDS, as a Markdown table; "" without a pair."""
    rows: dict[str, dict[str, str]] = {}
    for text, studies in TEXTS.items():
        for kind, study in zip(KINDS, studies):
            if study is None:
                continue
            rate = better_rate(study)
            pairs = {LABELS[arm]: (rate, arm) for arm in SIGNED}
            table = common.study_table(replace(study, comparisons=pairs), load_runs(study.experiment), METRIC)
            for label, row in table.iterrows():
                level = f"{row['reference']:.3f}{'' if rate == 'gpt2' else f' at {GENTLER_RATE:g}'}"
                rows.setdefault(f"{text}, {LABELS['gpt2']}", {})[kind] = level
                rows.setdefault(f"{text}, {label}", {})[kind] = common.estimate(row, METRIC, common.exact_p(row))
    cells = [
        (name, *(rows[name].get(kind, _lacking(study, arm)) for kind, study in zip(KINDS, studies)))
        for text, studies in TEXTS.items()
        for arm in ("gpt2", *SIGNED)
        if (name := f"{text}, {LABELS[arm]}") in rows
    ]
    columns = ["bits per byte; for the signs, minus the default's", *(TEXT_POSITIONS[kind] for kind in KINDS)]
    return without_six(common.markdown(cells, columns))


def own_start() -> str:
    """How vision's signs stand to GPT-2's own start, in a sentence; "" with too few pairs."""
    said = []
    for kind, studies in {
        "fixed positions": (POSITIONS, POSITIONS_WIKITEXT2),
        "started ones": (FROM_SINCOS, FROM_SINCOS_WIKITEXT2),
    }.items():
        own = {text_of(study): over_own_start("vision", study) for study in studies}
        found = [f"{measured(values, METRIC)} on {text}" for text, values in own.items() if len(values) >= ENOUGH]
        said += [f"with {kind} {', '.join(found)}"] if found else []
    beyond = "Vision signs minus GPT-2's own start:"
    return f"{beyond} {'; '.join(said)}." if said else ""


def _lacking(study: Study | None, arm: str) -> str:
    """What a cell says that has no pair yet."""
    return "planned" if study and arm in study.arms else "not run"


def longer() -> dict[str, pd.DataFrame]:
    """The curves of the longer runs by kind of positions in words, of the kinds that have a pair; the default at the
    better of its rates."""
    sets = {}
    for kind, study in zip(KINDS, TEXTS[LONGER]):
        if study is None:
            continue
        curves, rate = load_runs(study.experiment, curves=True), better_rate(study)
        curves = curves[curves["arm"].isin([rate, *SIGNED])].replace({"arm": {rate: "gpt2"}})
        if {"gpt2", "vision"} <= set(curves["arm"]):
            sets[_named(kind, rate)] = curves
    return sets


def at_the_end() -> str:
    """How the longer runs end against GPT-2's own start after as many steps, and with started positions against either
    default, in two sentences; "" with too few pairs."""
    said = []
    for kind, study in zip(KINDS[1:], TEXTS[LONGER][1:]):
        for arm in ("vision", better_rate(study)) if study else ():
            values = effect_of(study, arm, better_rate(LONG), LONG)
            if len(values) >= ENOUGH:
                at = f" at {GENTLER_RATE:g}" if arm == GENTLER else ""
                name = "vision signs" if arm == "vision" else f"the default{at}"
                said.append(f"{name} with {TEXT_POSITIONS[kind]} {measured(values, METRIC)}")
    text = f"At the end, minus GPT-2's own start after as many steps: {'; '.join(said)}." if said else ""
    study = FROM_SINCOS_LONG
    table = common.study_table(study, load_runs(study.experiment), METRIC)
    either = [f"{name}: {common.finding(row, METRIC)}" for name, row in table.iterrows() if row["pairs"] >= ENOUGH]
    return f"{text} With {study.question}: {'; '.join(either)}." if either else text


def controls() -> str:
    """What vision's signs do in every control of the reason, and on the other text with learned positions that start
    from sines and cosines, against its own default, against what they do with fixed positions in their order, and
    against GPT-2's own start, as a Markdown table; then what else was asked, as list items."""
    rows = []
    for study in (*CONTROLS, FROM_SINCOS_WIKITEXT2):
        text, _, kind = study.question.partition(", ")
        name, fixed = (kind, POSITIONS) if study in CONTROLS else (f"{text}: {kind}", POSITIONS_WIKITEXT2)
        table = common.study_table(study, load_runs(study.experiment), METRIC)
        of_vision = [label for label in table.index if label.startswith(LABELS["vision"])]
        for label in of_vision:
            row, rate = table.loc[label], label.removeprefix(LABELS["vision"]).lstrip(",")
            arm = row["compared"][2]
            gain = effect_of(study, arm, row["compared"][1])
            against = (gain - effect_of(fixed, arm)).dropna(), over_own_start(arm, study)
            cells = (measured(values, METRIC) if len(values) else "–" for values in against)
            default = f"{row['reference']:.3f}"
            rows.append((f"{name}{',' * bool(rate)}{rate}", default, measured(gain, METRIC), *cells))
        if not of_vision:
            rows.append((name, f"no pair yet (`{COMMAND}`)", "–", "–", "–"))
    columns = [
        "positions",
        "default",
        "vision signs, minus the default",
        "the same, minus that with fixed positions in order",
        "vision signs minus GPT-2's own start",
    ]
    return without_six(f"{common.markdown(rows, columns)}\n\n{_what_else()}".rstrip())


def _what_else() -> str:
    """What the controls of size do with fixed positions in order and in a random one, what noise as large does compared
    with the latter, and how the default stands to GPT-2's own start on the other text, as Markdown list items; ""
    without the runs."""
    lines = []
    for order, study in {"fixed positions in order": POSITIONS, "these in a random order": SHUFFLED}.items():
        said = [
            f"{name} minus the default {measured(gain, METRIC)}, vision signs minus that {measured(beyond, METRIC)}"
            for name, arm in SIZES.items()
            if len(gain := effect_of(study, arm)) and len(beyond := effect_of(study, "vision", arm))
        ]
        lines += [f"* Controls of size, {order}: {'; '.join(said)}."] if said else []
    noise = changes("vision", FROM_NOISE, SHUFFLED)
    if len(noise):
        lines.append(
            f"* What vision signs do from noise as large, minus that in a random order: {measured(noise, METRIC)}."
        )
    study = FROM_SINCOS_WIKITEXT2
    own = {SEARCHED_RATE: over_own_start("gpt2", study), GENTLER_RATE: over_own_start(GENTLER, study)}
    said = [f"{measured(values, METRIC)} at {rate:g}" for rate, values in own.items() if len(values)]
    if said:
        lines.append(
            "* WikiText-2, the default with learned positions that start from sin-cos minus GPT-2's own start:"
            f" {', '.join(said)}."
        )
    return "\n".join(lines)


def rotary_answer() -> str:
    """How both sets of signs stand to each other with rotary positions, and how the better start with fixed ones stands
    to these, as Markdown list items."""
    against = common.contrast_lines(ROTARY, load_runs(ROTARY.experiment), METRIC)
    if not against:
        return f"With rotary positions no pair is in yet: `{COMMAND}`."
    beyond = effect_of(POSITIONS, "vision", other=ROTARY)
    if len(beyond):
        words = "vision signs with fixed positions minus the default with rotary ones"
        against.append(f"* {words}: {measured(beyond, METRIC)}")
    return "\n".join(against)


def missing() -> str:
    """How many runs of these studies are in; "" when all are."""
    studies = (POSITIONS, *CONTROLS, ROTARY, POSITIONS_WIKITEXT2, FROM_SINCOS_WIKITEXT2, *filter(None, TEXTS[LONGER]))
    said = (common.missing(s, load_runs(s.experiment), SEEDS[s.name], COMMAND, f"{s.question}: ") for s in studies)
    return " ".join(filter(None, said))
