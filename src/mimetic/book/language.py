"""What the language chapters say (10 and 11): the comparison, the products, runs on the way; what they say of learning
rates is in rates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from math import sqrt

import pandas as pd

from mimetic.audit import CHANCE
from mimetic.audit.report import beyond_chance
from mimetic.book import common
from mimetic.experiments.configs import named
from mimetic.experiments.configs.language import FITTED
from mimetic.experiments.language import METRIC
from mimetic.experiments.programmes.language import (
    CENTRAL,
    CENTRAL_SEEDS,
    OF_VISION,
    OF_VISION_WIKITEXT2,
    POSITIONS,
    POSITIONS_WIKITEXT2,
    RATE,
    SECOND,
    SECOND_WIKITEXT2,
    SEEDS,
    STRUCTURE,
    WIKITEXT2,
)
from mimetic.experiments.programmes.study import Study
from mimetic.experiments.recorded import product_table, recorded_products
from mimetic.figures.style import LABELS, TEXT_POSITIONS
from mimetic.pretrained import effective
from mimetic.statistics import ENOUGH
from mimetic.training.records import load_runs, read_record, record_path

COMMAND = "python -m mimetic queue language"
XLABEL = "bits per byte after the last step minus the default's (left of 0 is better)"
draw = partial(common.draw, command=COMMAND)


def progress(study: Study, finals: pd.DataFrame) -> str:
    """How many of a study's runs are in; "" when all are."""
    about = f"{study.question}{'' if study.question.endswith('?') else ':'} "
    return common.missing(study, finals, SEEDS[study.name], COMMAND, about)


# --- the comparison --------------------------------------------------------------------------------------------------


def comparisons(studies: tuple[Study, ...] = (CENTRAL, WIKITEXT2, STRUCTURE)) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Every arm against the default, a group a corpus: table and points for figures.comparisons."""
    return common.stacked(((study, load_runs(study.experiment)) for study in studies), METRIC)


def overview() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Both sets of signs against the default, with GPT-2's own positions and with fixed ones, on both texts: table and
    points for figures.comparisons."""
    rows = []
    for kind, studies in {"learned": (CENTRAL, WIKITEXT2), "sincos": (POSITIONS, POSITIONS_WIKITEXT2)}.items():
        for arm, study in [(arm, study) for arm in ("vision", "language") for study in studies]:
            pairs = {f"{LABELS[arm]}, {text_of(study)}": ("gpt2", arm)}
            rows.append((replace(study, question=TEXT_POSITIONS[kind], comparisons=pairs), load_runs(study.experiment)))
    return common.stacked(rows, METRIC)


def text_of(study: Study) -> str:
    """The text that a study reads, in words."""
    return study.question.partition(",")[0]


def structure() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Every control against the default, and both sets of signs against the controls: table and points for
    figures.comparisons."""
    against = {
        name: (min(asked.arms, key=asked.arms.get), max(asked.arms, key=asked.arms.get))
        for name, asked in STRUCTURE.contrasts.items()
    }
    finals = load_runs(STRUCTURE.experiment)
    groups = (
        replace(STRUCTURE, question="controls, minus the default"),
        replace(STRUCTURE, question="signs, minus a control", comparisons=against),
    )
    return common.stacked([(group, finals) for group in groups], METRIC)


def side_by_side(columns: Mapping[str, tuple[Study, ...]], comparisons: bool = True, contrasts: bool = True) -> str:
    """What studies of the same arms found, a column a text (its title -> its studies), as a Markdown table: their
    comparisons, their contrasts or both; below it how many runs are missing."""
    found, gaps = {}, []
    for title, studies in columns.items():
        lines = {}
        for study in studies:
            finals = load_runs(study.experiment)
            gaps.append(progress(study, finals))
            table = common.study_table(study, finals, METRIC)
            for name, row in table.iterrows() if comparisons else ():
                lines[name] = _numbers(row)
            for name, row in common.contrast_table(study, finals, METRIC).iterrows() if contrasts else ():
                expected = pd.notna(row["expected"])
                lines[name] = common.contrast_words(row, METRIC) if expected else _numbers(row)
        found[title] = pd.Series(lines, dtype=object)
    order = list(dict.fromkeys(name for lines in found.values() for name in lines.index))
    title = f"{METRIC.difference}; of an arm alone, minus the default's"
    table = pd.DataFrame(found, index=order).fillna("–").rename_axis(title).reset_index()
    if table.empty:
        return f"**We found** nothing yet. {' '.join(gaps)}"
    short = table.map(lambda cell: cell.replace(f" {METRIC.difference} (", " ("))  # the title says it
    return "\n\n".join((without_six(common.markdown(short)), *filter(None, gaps)))


def without_six(table: str) -> str:
    """A table without the number of pairs of its cells, where it is that of all seeds: the page says so once."""
    return table.replace(f", {common.plural(len(CENTRAL_SEEDS), 'pair')}", "")


def _numbers(row: pd.Series) -> str:
    return common.estimate(row, METRIC, common.exact_p(row))


def fitted_sentence() -> str:
    """How much of a diagonal the fitted constants have, in off-diagonal spreads of the target."""
    d = named("tinyshakespeare").d_model
    spans = {}
    for part in ("qk", "vp"):
        ratios = [b * sqrt(d) / a for a, b in zip(FITTED[f"{part}_alpha"], FITTED[f"{part}_beta"])]
        spans[part] = common.minus(f"{min(ratios):+.1f} to {max(ratios):+.1f}")
    return (
        f"The fitted arm tests mostly size: its diagonals are {spans['qk']} off-diagonal sd for QK (before it is cut to"
        f" a head's rank) and {spans['vp']} for V·proj, where mimetic initialization has {sqrt(d):.0f}."
    )


# --- the products ----------------------------------------------------------------------------------------------------


def trained_products() -> pd.DataFrame:
    """The products of our own GPTs after training from the default (seed 0), gains folded in, as measure gives them,
    and title."""
    frames = []
    for experiment in ("tinyshakespeare-narrow", "tinyshakespeare", "tinyshakespeare-sincos", "wikitext2"):
        path = record_path(experiment, "gpt2", 0)
        if path.is_file():
            record = read_record(path)
            learned = record["config"].get("pos_embed", "learned") == "learned"
            shape = f"d {record['config']['d_model']}" if learned else "sin-cos"
            title = f"our GPT, {record['config']['dataset']}, {shape}"
            frames.append(product_table(record, fold=True).assign(title=title))
    empty = pd.DataFrame(columns=["title", "layer", "head", "product", "z", "sigmas"])
    return pd.concat(frames, ignore_index=True) if frames else empty


def causal_products() -> pd.DataFrame:
    """The products of every causal language model that was measured, pretrained ones first, then our own; gains folded
    in."""
    products = effective()
    text = products[products["causal"] & (products["modality"] == "text")]
    return pd.concat([text, trained_products()], ignore_index=True)


def signs_by_layer() -> str:
    """In how many runs each layer's V·proj has a positive, and in how many a negative diagonal after training from the
    default (beyond two standard deviations of the null), as a Markdown table: a model whose layers differ may still be
    the same from seed to seed."""
    rows = []
    for experiment in ("tinyshakespeare", "tinyshakespeare-sincos", "wikitext2"):
        products = recorded_products(experiment, ("gpt2",))
        after = products[(products["when"] == "after") & (products["product"] == "vp")] if len(products) else products
        if len(after):
            layers = after.groupby("layer")["sigmas"]
            signs = {f"layer {i}": "{} / {}".format(*beyond_chance(sigmas)) for i, sigmas in layers}
            rows.append({"V·proj of our GPTs, runs + / −": experiment, **signs, "of": f"{layers.size().max()}"})
    return common.markdown(pd.DataFrame(rows).fillna("–"))


def kept(products: pd.DataFrame) -> pd.DataFrame:
    """Means over layers, heads and seeds, before and after training: both diagonals in units of the off-diagonal
    spread, and the share of heads or layers that are beyond chance on either side (two standard deviations of the
    null)."""
    columns: dict[tuple[str, str], dict[str, float]] = {}
    for (arm, when, product), part in products.groupby(["arm", "when", "product"], sort=False) if len(products) else ():
        name = common.SHORT[product]
        columns.setdefault((LABELS.get(arm, arm), when), {}).update(
            {
                f"{name} diagonal / off-diagonal sd": part["z"].mean(),
                f"{name} above chance (%)": 100 * (part["sigmas"] > CHANCE).mean(),
                f"{name} below chance (%)": 100 * (part["sigmas"] < -CHANCE).mean(),
            }
        )
    return pd.DataFrame(columns).round(2)


# --- on the way ------------------------------------------------------------------------------------------------------


def gap_to(curves: pd.DataFrame, arm: str) -> pd.DataFrame:
    """Bits per byte of arm minus the default, step x seed."""
    wide = curves.pivot_table(index=["seed", "step"], columns="arm", values="test_bits_per_byte")
    return (wide[arm] - wide["gpt2"]).dropna().unstack("seed")


def stretches(holds: pd.Series) -> str:
    """Where something holds, in words: "1,800 to 3,400, 5,000 to the end"; holds: step -> whether it does."""
    parts = [part.index[[0, -1]] for _, part in holds[holds].groupby((holds != holds.shift()).cumsum()[holds])]
    said = []
    for first, last in parts:
        end = "the end" if last == holds.index[-1] else f"{last:,}"
        said.append(f"{first:,} to {end}" if first < last else end)
    return ", ".join(said) or "–"


def on_the_way(sets: Mapping[str, pd.DataFrame]) -> str:
    """Bits per byte minus the default's early (after a fifth of the run, twice the warm-up), and at which steps an arm
    leads or is behind with every seed, as a Markdown table; "" without a pair. sets: kind of positions in words ->
    curves."""
    rows = []
    for kind, curves in sets.items():
        for arm in ("language", "vision"):
            gap = gap_to(curves, arm) if {"gpt2", arm} <= set(curves["arm"]) else pd.DataFrame()
            if len(gap):
                early = gap.index[max(0, len(gap) // 5 - 1)]
                where = [stretches((gap < 0).all(axis=1)), stretches((gap > 0).all(axis=1))]
                if gap.shape[1] < ENOUGH:
                    where = ["too few pairs"] * 2
                value = f"{common.measured(gap.loc[early], METRIC)} (step {early:,})"
                rows.append((f"{kind}, {LABELS[arm]}", value, *where))
    columns = [
        "bits per byte minus the default's",
        "early",
        "every seed ahead, at steps",
        "every seed behind, at steps",
    ]
    return common.markdown(rows, columns)


# --- what is missing -------------------------------------------------------------------------------------------------

# what chapter 10's first page shows
FIRST_PAGE = (CENTRAL, STRUCTURE, RATE, WIKITEXT2, SECOND, SECOND_WIKITEXT2, OF_VISION, OF_VISION_WIKITEXT2)


def planned() -> str:
    """Which studies of the first page lack runs; "" when all are in."""
    counts = {s.question.rstrip("?"): common.counts(s, load_runs(s.experiment), SEEDS[s.name]) for s in FIRST_PAGE}
    missing = [f"{question} ({there} of {wanted})" for question, (there, wanted) in counts.items() if there < wanted]
    said = f"*Not all runs are in: {'; '.join(missing)}. `{COMMAND}` adds the others, and this page follows.*"
    return said if missing else ""
