"""What the language chapters say (10 and 11): the comparison, the products, convergence, samples; what they say of
learning rates is in rates.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from html import escape
from math import sqrt

import pandas as pd

from mimetic.audit import CHANCE
from mimetic.audit.report import beyond_chance
from mimetic.experiments import pattern
from mimetic.experiments.answers import common
from mimetic.experiments.answers.common import study_table
from mimetic.experiments.configs import named
from mimetic.experiments.configs.language import FITTED
from mimetic.experiments.language import METRIC
from mimetic.experiments.programmes import command_for
from mimetic.experiments.programmes.language import CENTRAL, FIRST_SEEDS, SEEDS, STRUCTURE, STUDIES, WIKITEXT2
from mimetic.experiments.programmes.study import Study
from mimetic.experiments.recorded import product_table, recorded_products
from mimetic.figures.style import LABELS
from mimetic.statistics import difference
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


def fresh(compared: tuple[str, str, str]) -> pd.Series:
    """Arm minus reference of the seeds that were added to the plan after the first ones had been seen. compared:
    experiment, reference, arm.
    """
    experiment, reference, arm = compared
    values = difference(load_runs(experiment), arm, reference, METRIC.column)
    return values[[seed for seed in values.index if seed not in FIRST_SEEDS]]


def found(study: Study) -> str:
    """A study's findings as Markdown: one line a comparison, and how many runs are missing."""
    finals = load_runs(study.experiment)
    said = {}
    for name, row in study_table(study, finals, METRIC).iterrows() if study is STRUCTURE else ():
        added = fresh(row["compared"])  # an arm that got further seeds because it led cannot be judged by its interval
        if common.word(row, METRIC) == "gains" and len(added):
            said[name] = (
                f"without a verdict (the best of the arms, given {len(added)} more seeds because it led;"
                f" exact p = {row['p']:.3f})"
            )
    return common.findings(study, finals, progress(study, finals), METRIC, "mean difference to the default", said)


def side_by_side(studies: Mapping[str, Study]) -> str:
    """The findings of several studies of the same arms, a column each (its title -> the study), as a Markdown table;
    below it how many runs are missing."""
    columns, gaps = {}, []
    for title, study in studies.items():
        finals = load_runs(study.experiment)
        gaps.append(progress(study, finals))
        lines = {
            f"{name}, minus the default": common.finding(row, METRIC, bool(gaps[-1]))
            for name, row in study_table(study, finals, METRIC).iterrows()
        }
        for name, row in common.contrast_table(study, finals, METRIC).iterrows():
            lines[name] = common.contrast_words(row, METRIC)
        columns[title] = pd.Series(lines, dtype=object)
    order = list(dict.fromkeys(name for lines in columns.values() for name in lines.index))
    table = pd.DataFrame(columns, index=order).fillna("–").rename_axis(METRIC.difference).reset_index()
    if table.empty:
        return f"**We found** nothing yet. {' '.join(gaps)}"
    short = table.map(lambda cell: cell.replace(f" {METRIC.difference} (", " ("))  # the title says it
    return "\n\n".join((common.markdown(short), *filter(None, gaps)))


def numbers(table: pd.DataFrame) -> pd.DataFrame:
    """A table of comparisons for the page; p corrected over all its rows. ahead: pairs with
    fewer bits (wins counts larger metrics).
    """
    return (
        common.rounded(table.assign(ahead=table["pairs"] - table["wins"]), 4, ("pairs", "ahead"))
        if len(table)
        else table
    )


def run_table(experiment: str) -> pd.DataFrame:
    """Every run of an experiment: the last epoch's metrics, and what it took."""
    finals = load_runs(experiment)
    columns = [
        "arm",
        "seed",
        "step",
        "train_loss",
        "test_loss",
        "test_perplexity",
        "test_bits_per_byte",
        "seconds.total",
    ]
    if finals.empty:
        return pd.DataFrame(columns=columns)
    table = finals[columns].sort_values(["seed", "test_bits_per_byte"], ignore_index=True)
    return table.round(
        {"train_loss": 3, "test_loss": 3, "test_perplexity": 2, "test_bits_per_byte": 4, "seconds.total": 1}
    )


def fitted_sentence() -> str:
    """How much of a diagonal the fitted constants have, in off-diagonal spreads of the target."""
    d = named("tinyshakespeare").d_model
    ratios = {
        part: [b * sqrt(d) / a for a, b in zip(FITTED[f"{part}_alpha"], FITTED[f"{part}_beta"])]
        for part in ("qk", "vp")
    }
    spans = {part: common.minus(f"{min(r):+.1f} to {max(r):+.1f}") for part, r in ratios.items()}
    return (
        f"The fitted arm has the size of trained products and hardly a diagonal: {spans['qk']} off-diagonal sd for QK"
        f" (before it is cut to a head's rank) and {spans['vp']} for V·proj, where mimetic initialization has"
        f" {sqrt(d):.0f}."
        " What it tests is mostly that size; it says little about diagonals."
    )


# --- the products ----------------------------------------------------------------------------------------------------


def trained_products() -> pd.DataFrame:
    """The products of our own GPTs after training from the default (seed 0), gains
    folded in, as measure gives them, and title.
    """
    frames = []
    for experiment in ("tinyshakespeare-narrow", "tinyshakespeare", "tinyshakespeare-sincos", "wikitext2"):
        path = record_path(experiment, "gpt2", 0)
        if path.is_file():
            record = read_record(path)
            learned = record["config"].get("pos_embed", "learned") == "learned"
            shape = f"d {record['config']['d_model']}" if learned else "sin-cos"
            title = f"our GPT, {record['config']['dataset']}, {shape}"
            frames.append(product_table(record, fold=True).assign(title=title))
    return (
        pd.concat(frames, ignore_index=True)
        if frames
        else pd.DataFrame(columns=["title", "layer", "head", "product", "z", "sigmas"])
    )


def causal_products() -> pd.DataFrame:
    """The products of every causal language model that was measured, pretrained
    ones first, then our own; gains folded in.
    """
    products = pattern.effective()
    text = products[products["causal"] & (products["modality"] == "text")]
    return pd.concat([text, trained_products()], ignore_index=True)


def signs_sentence() -> str:
    """Which of the causal text models measured have a common sign in either product."""
    table = pattern.verdicts(causal_products())
    has = table["verdict"].str.contains(r"\+|−|signs")
    clear, others = [f"{name}: {said}" for name, said in table.loc[has, "verdict"].items()], table.index[~has]
    return f"A common sign in a product: {'; '.join(clear) or 'none of these models'}." + (
        f" In neither product: {'; '.join(others)}." if len(others) else ""
    )


def signs_by_layer() -> str:
    """In how many runs each layer's V·proj has a positive, and in how many a negative diagonal after training from the
    default (beyond two standard deviations of the null), as a Markdown table: a model whose layers differ may still be
    the same from seed to seed.
    """
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
    """Means over layers, heads and seeds, before and after training: both diagonals in units of
    the off-diagonal spread, and the share of heads or layers that are beyond chance on either
    side (two standard deviations of the null).
    """
    rows = {}
    for arm in dict.fromkeys(products["arm"]):
        for when in ("before", "after"):
            part = products[(products["arm"] == arm) & (products["when"] == when)]
            row = {}
            for product, name in common.SHORT.items():
                these = part[part["product"] == product]
                row |= {
                    f"{name} diagonal / off-diagonal sd": these["z"].mean(),
                    f"{name} above chance (%)": 100 * (these["sigmas"] > CHANCE).mean(),
                    f"{name} below chance (%)": 100 * (these["sigmas"] < -CHANCE).mean(),
                }
            rows[LABELS.get(arm, arm), when] = row
    return pd.DataFrame(rows).round(2)


# --- convergence -----------------------------------------------------------------------------------------------------


def gap_to(curves: pd.DataFrame, arm: str) -> pd.DataFrame:
    """Bits per byte of arm minus the default, step x seed."""
    wide = curves.pivot_table(index=["seed", "step"], columns="arm", values="test_bits_per_byte")
    return (wide[arm] - wide["gpt2"]).dropna().unstack("seed")


def lead_of_all(gap: pd.DataFrame, least: int = 3) -> pd.Series:
    """The mean gap over the longest stretch of the run in which every seed of the arm is ahead, if it is ``least``
    points long and does not reach the end; else empty. gap: see gap_to; the last step is the end."""
    ahead, best, now = (gap.iloc[:-1] < 0).all(axis=1), [], []
    for step, yes in ahead.items():
        now = [*now, step] if yes else []
        best = max(best, now, key=len)
    if len(best) < least or (best[-1] == ahead.index[-1] and (gap.iloc[-1] < 0).all()):
        return pd.Series(dtype=float)
    return gap.loc[best].mean(axis=1)


def head_starts(sets: Mapping[str, pd.DataFrame]) -> str:
    """Bits per byte minus the default's early (after a fifth of the run, twice the warm-up), at the
    end, and where an arm leads with every seed on the way, as a Markdown table; "" without a pair.
    sets: kind of positions in words -> curves.
    """
    rows = []
    for kind, curves in sets.items():
        for arm in ("language", "vision"):
            gap = gap_to(curves, arm) if {"gpt2", arm} <= set(curves["arm"]) else pd.DataFrame()
            if len(gap):
                steps = gap.index[max(0, len(gap) // 5 - 1)], gap.index[-1]
                lead, way = lead_of_all(gap), "–"
                if len(lead):
                    way = f"from step {lead.index[0]:,} to {lead.index[-1]:,}, most at {lead.idxmin():,}"
                    way += f" ({METRIC.signed(lead.min())})"
                elif (gap.iloc[-1] < 0).all():
                    behind = gap.index[(gap >= 0).any(axis=1)]
                    way = f"from step {gap.index[gap.index > max(behind, default=0)][0]:,} to the end"
                ends = (f"{common.measured(gap.loc[step], METRIC)} (step {step:,})" for step in steps)
                rows.append((f"{kind}, {LABELS[arm]}", *ends, way))
    columns = [
        "bits per byte minus the default's",
        "early",
        "at the end",
        "longest stretch on the way with every seed ahead",
    ]
    return common.markdown(rows, columns)


# --- samples ---------------------------------------------------------------------------------------------------------


def samples(experiment: str = CENTRAL.experiment) -> str:
    """The text that the default and language signs (seed 0) write after the same prompt at the same number
    of steps, side by side, as an HTML table.
    """
    cells = []
    for arm in ("gpt2", "language"):
        path = record_path(experiment, arm, 0)
        if not path.is_file():
            return (
                f"<p><em>No samples yet: the record of {experiment}/{arm}, seed 0, is not in."
                f" <code>{command_for(experiment)}</code> makes it.</em></p>"
            )
        record = read_record(path)
        sample, final = record["anatomy"]["after"]["sample"], record["final"]
        head = f"{escape(LABELS[arm])}<br>{final['step']:,} steps, {final['test_bits_per_byte']:.3f} bits per byte"
        text = f"<strong>{escape(sample['prompt'])}</strong>{escape(sample['text'][:320])}"
        cells.append((head, f'<pre style="white-space: pre-wrap">{text}</pre>'))
    heads = "".join(f'<th style="text-align: left; width: 50%">{head}</th>' for head, _ in cells)
    bodies = "".join(f'<td style="vertical-align: top; text-align: left">{body}</td>' for _, body in cells)
    return f"<table><tr>{heads}</tr><tr>{bodies}</tr></table>"


def planned() -> str:
    """Which studies lack runs; "" when all are in."""
    counts = {
        s.question.rstrip("?"): common.counts(s, load_runs(s.experiment), SEEDS[s.name]) for s in STUDIES.values()
    }
    missing = [f"{question} ({there} of {wanted})" for question, (there, wanted) in counts.items() if there < wanted]
    return (
        f"*Not all runs are in: {'; '.join(missing)}. `{COMMAND}` adds the others, and this page follows.*"
        if missing
        else ""
    )
