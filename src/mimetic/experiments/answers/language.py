"""What the language chapters say (10 and 11): the comparison, the search for rates, the products, convergence, samples."""

from __future__ import annotations

from functools import partial
from html import escape

import pandas as pd

from mimetic.experiments import pattern
from mimetic.experiments.answers import common
from mimetic.experiments.answers.common import finding, study_table
from mimetic.experiments.configs import named
from mimetic.experiments.configs.language import CHOSEN, ENDS, EVERY, FITTED, RATES, SIGNS, end_rates, searched
from mimetic.experiments.language import METRIC
from mimetic.experiments.programmes.language import CENTRAL, LONG, SEARCH, SEEDS, STRUCTURE, STUDIES, WIKITEXT2
from mimetic.experiments.programmes.study import Study
from mimetic.experiments.recorded import product_table
from mimetic.figures.style import LABELS
from mimetic.statistics import ENOUGH, mean_interval, smallest_p
from mimetic.training.records import load_runs, read_record, record_path

COMMAND = "python -m mimetic queue language"
XLABEL = "difference in last-epoch bits per byte (left of 0 is better)"
draw = partial(common.draw, command=COMMAND)


def progress(study: Study, finals: pd.DataFrame) -> str:
    """How many of a study's runs are in; "" when all are."""
    return common.missing(study, finals, SEEDS[study.name], COMMAND, study.question + ("" if study.question.endswith("?") else ":") + " ")


# --- the comparison --------------------------------------------------------------------------------------------------


def comparisons(studies: tuple[Study, ...] = (CENTRAL, WIKITEXT2, STRUCTURE)) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Every arm against the default, a group a corpus: table and points for figures.comparisons."""
    return common.stacked(((study, load_runs(study.experiment)) for study in studies), METRIC)


def plain_answer() -> str:
    """Yes or no to the chapter's question, where both texts and both sets of signs agree; else ""."""
    words = set()
    for study in (CENTRAL, WIKITEXT2):
        table = study_table(study, load_runs(study.experiment), METRIC)
        words |= {common.word(table.loc[LABELS[arm]], METRIC) if LABELS[arm] in table.index else "" for arm in ("language", "vision")}
    return {
        frozenset({"loses"}): "No: with constants of the published size a small GPT ends worse than from GPT-2's own start, with either set of signs and on both texts.",
        frozenset({"gains"}): "Yes, with either set of signs and on both texts.",
    }.get(frozenset(words), "")


def answer(study: Study = CENTRAL) -> str:
    """What the comparison on a corpus shows so far, the two sets of signs first."""
    table = study_table(study, load_runs(study.experiment), METRIC)
    if table.empty:
        return f"On {study.question}: no pair of runs is in yet. `{COMMAND}` makes them, and this page follows."
    config, lines = named(study.experiment), []
    for arm in ("language", "vision"):
        if LABELS[arm] in table.index:
            row = table.loc[LABELS[arm]]
            lines.append(f"{LABELS[arm]}: {finding(row, METRIC)}, on the default's {row['reference']:.3f}")
    steps = config.epochs * config.steps_per_epoch
    pairs = int(table["pairs"].max())
    strength = ""
    if pairs < ENOUGH:
        strength = f" {pairs} pair{'s' * (pairs != 1)} can at best give p = {smallest_p(pairs, 'two-sided'):.2g} in an exact sign-flip test: not enough for a claim."
    if not lines:
        return f"On {study.question}: neither set of signs has a pair with the default yet."
    if study is CENTRAL:  # the controls are of the same text, in a study of their own
        table = pd.concat([table, controls]) if len(controls := study_table(STRUCTURE, load_runs(study.experiment), METRIC)) else table
    others = table.drop(index=[LABELS[arm] for arm in ("language", "vision")], errors="ignore")
    if len(others):
        best = others["difference"].idxmin()
        lines.append(f"best of {len(others)} other arms (and chosen as that), {best}: {finding(others.loc[best], METRIC)}")
    return f"On {study.question}, after {steps:,} steps, against the default: " + "; ".join(lines) + f". Fewer bits per byte are better.{strength}"


def found(study: Study) -> str:
    """A study's findings as Markdown: one line a comparison, and how many runs are missing."""
    finals = load_runs(study.experiment)
    return common.findings(study, finals, progress(study, finals), METRIC, "mean difference to the default")


def numbers(table: pd.DataFrame) -> pd.DataFrame:
    """A table of comparisons for the page; p corrected over all its rows. ahead: pairs with fewer bits (wins counts larger metrics)."""
    return common.rounded(table.assign(ahead=table["pairs"] - table["wins"]), 4, ("pairs", "ahead")) if len(table) else table


def run_table(experiment: str) -> pd.DataFrame:
    """Every run of an experiment: the last epoch's metrics, and what it took."""
    finals = load_runs(experiment)
    columns = ["arm", "seed", "step", "train_loss", "test_loss", "test_perplexity", "test_bits_per_byte", "seconds.total"]
    if finals.empty:
        return pd.DataFrame(columns=columns)
    table = finals[columns].sort_values(["seed", "test_bits_per_byte"], ignore_index=True)
    return table.round({"train_loss": 3, "test_loss": 3, "test_perplexity": 2, "test_bits_per_byte": 4, "seconds.total": 1})


# --- the search for learning rates -----------------------------------------------------------------------------------


def rate_table(finals: pd.DataFrame | None = None) -> pd.DataFrame:
    """The search: held-out bits per byte of every arm (rows, in words) at every learning rate (columns); nan: not run."""
    finals = load_runs(SEARCH) if finals is None else finals
    if finals.empty:
        return pd.DataFrame()
    values = finals.groupby("arm")["test_bits_per_byte"].mean()
    rates = sorted({*RATES, *finals.get("config.lr", pd.Series(dtype=float))})
    table = pd.DataFrame({lr: {arm: values.get(searched(arm, lr)) for arm in EVERY} for lr in rates}, dtype=float)
    return table.dropna(how="all").rename_axis(columns="learning rate")


def best_rates(finals: pd.DataFrame | None = None) -> dict[str, float]:
    """arm -> the rate with the fewest held-out bits per byte, of the arms that were run at all of RATES."""
    table = rate_table(finals)
    whole = table[table[list(RATES)].notna().all(axis=1)] if len(table) else table
    return {arm: float(row.idxmin()) for arm, row in whole.iterrows()}


def rates_sentence(finals: pd.DataFrame | None = None) -> str:
    """What the search chose for every arm, and which arms it has still to try."""
    table, best = rate_table(finals), best_rates(finals)
    if not best:
        return "The search has no records yet: `python -m mimetic queue language-recipe`."
    parts = [f"{LABELS[arm]} {lr:g} ({table.loc[arm, lr]:.3f})" for arm, lr in best.items()]
    lacking = [LABELS[arm] for arm in EVERY if arm not in best]
    text = f"Chosen rate, with its held-out bits per byte: {'; '.join(parts)}."
    for end, pick in (("lowest", min), ("highest", max)):
        edge = [LABELS[arm] for arm, lr in best.items() if lr == pick(table.columns[table.loc[arm].notna()])]
        text += f" At the {end} rate tried: {', '.join(edge)}." if edge else ""
    return text + (f" Still to be searched: {', '.join(lacking)} (`python -m mimetic queue language-recipe`)." if lacking else "")


def ends_sentence(finals: pd.DataFrame | None = None) -> str:
    """Whether the rates of the search are those that the ends of the sweep would choose, by a part of the training text (one seed)."""
    finals = load_runs("share-recipe") if finals is None else finals
    values = finals.set_index("arm")["test_bits_per_byte"] if len(finals) else pd.Series(dtype=float)
    parts = []
    for point in ENDS:
        for arm in SIGNS:
            tried = {lr: values.get(f"{point}-{searched(arm, lr)}") for lr in end_rates(arm)}
            if None not in tried.values():
                best, cost = min(tried, key=tried.get), tried[CHOSEN[arm]] - min(tried.values())
                parts.append(f"{point}, {LABELS[arm]}: best at {best:g}" + (f", where it needs {cost:.3f} bits per byte fewer than at its {CHOSEN[arm]:g}" if best != CHOSEN[arm] else ", its rate"))
    if len(parts) < len(ENDS) * len(SIGNS):
        return "Not all of these runs are in yet: `python -m mimetic queue language-recipe`." + (f" {'; '.join(parts)}." if parts else "")
    return f"{'; '.join(parts)}. (One seed.)"


def first_look() -> str:
    """The search's best values, arm by arm, as long as the central comparison has no pair; else ""."""
    table, best = rate_table(), best_rates()
    if len(best) < 2 or len(study_table(CENTRAL, load_runs(CENTRAL.experiment), METRIC)):
        return ""
    values = sorted((table.loc[arm, lr], LABELS[arm]) for arm, lr in best.items())
    return (
        "A first look, from the search for learning rates (one seed, each arm at its best rate, a held-out part of the training text): "
        f"{', '.join(f'{name} {value:.3f}' for value, name in values)} bits per byte."
    )


def slow_sentence(plateau: float, rate: float = CHOSEN["gpt2"], finals: pd.DataFrame | None = None) -> str:
    """Which arms are nearer to the plateau than to the default at the default's best rate, and what that says about size and identity.

    Args:
        plateau: bits per byte of predicting from the last character alone.
    """
    table = rate_table(finals)
    if rate not in table or "gpt2" not in table.index or table[rate].notna().sum() < 2:
        return "The runs that test it are not in yet."
    values = table[rate].dropna()
    limit = (values["gpt2"] + plateau) / 2
    slow = [arm for arm in values.index if values[arm] > limit]
    text = f"At {rate:g} the default needs {values['gpt2']:.3f} bits per byte, and the last character alone gives {plateau:.3f}. "
    for arms, word in ((slow, "Nearer to that plateau"), ([a for a in values.index if a not in slow and a != "gpt2"], "Nearer to the default")):
        text += f"{word}: {', '.join(f'{LABELS[a]} {values[a]:.3f}' for a in arms) or 'none'}. "
    if {"rescaled", "random-directions"} <= set(values.index):
        if "rescaled" in slow:
            text += "Weights of that size are enough to slow a model down at this rate; whether the identity adds to it is asked under Result."
        elif "random-directions" in slow:
            text += "The singular values are enough, without the identity; size alone is not."
        elif {"language", "vision"} & set(slow):
            text += "Neither the size nor the singular values do it: it takes the identity."
    if {"gpt2-signs", "both-minus"} <= set(slow):
        text += " The arms with −I in QK, whose tokens do not look at themselves, are as slow: looking at oneself is not the reason, or not the only one."
    return text.strip() + " (One seed an arm.)"


def fitted_sentence() -> str:
    """How much of a diagonal the fitted constants have, in off-diagonal spreads of the target."""
    import numpy as np

    d = named("tinyshakespeare").d_model
    ratios = {part: [b * np.sqrt(d) / a for a, b in zip(FITTED[f"{part}_alpha"], FITTED[f"{part}_beta"])] for part in ("qk", "vp")}
    spans = {part: f"{min(r):+.1f} to {max(r):+.1f}".replace("-", "−") for part, r in ratios.items()}
    return (
        f"The fitted arm has the size of trained products and hardly a diagonal: {spans['qk']} spreads for QK (before it is cut to a head's rank) and {spans['vp']} for V·proj, where mimetic initialization has "
        f"{np.sqrt(d):.0f}. What it tests is mostly that size; it says little about diagonals."
    )


# --- the products ----------------------------------------------------------------------------------------------------


def trained_products(experiments: tuple[str, ...] = ("tinyshakespeare-narrow", "tinyshakespeare", "wikitext2"), arm: str = "gpt2") -> pd.DataFrame:
    """The products of our own GPTs after training from the default (seed 0), gains folded in, as measure gives them, and title."""
    frames = []
    for experiment in experiments:
        path = record_path(experiment, arm, 0)
        if path.is_file():
            record = read_record(path)
            title = f"our GPT, {record['config']['dataset']}, d {record['config']['d_model']}"
            frames.append(product_table(record, fold=True).assign(title=title))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["title", "layer", "head", "product", "z", "sigmas"])


def causal_products() -> pd.DataFrame:
    """The products of every causal language model that was measured, pretrained ones first, then our own; gains folded in."""
    effective = pattern.effective()
    return pd.concat([effective[effective["causal"] & (effective["modality"] == "text")], trained_products()], ignore_index=True)


def measured_signs(products: pd.DataFrame) -> pd.DataFrame:
    """One row a model: the share of heads (QK) and of layers (V·proj) on either side of chance, and the median z."""
    return pattern.verdicts(products)


def signs_sentence() -> str:
    """Which of the causal text models measured have a common sign in either product."""
    table = measured_signs(causal_products())
    has = table["verdict"].str.contains(r"\+|−|signs")
    clear, others = [f"{name}: {said}" for name, said in table.loc[has, "verdict"].items()], table.index[~has]
    return f"A common sign in a product: {'; '.join(clear) or 'none of these models'}." + (f" In neither product: {'; '.join(others)}." if len(others) else "")


def kept(products: pd.DataFrame) -> pd.DataFrame:
    """Means over layers, heads and seeds, before and after training: both diagonals in units of the off-diagonal spread, and the
    share of heads or layers that are beyond chance on either side (two standard deviations of the null)."""
    rows = {}
    for arm in dict.fromkeys(products["arm"]):
        for when in ("before", "after"):
            part = products[(products["arm"] == arm) & (products["when"] == when)]
            row = {}
            for product, name in (("qk", "QK"), ("vp", "V·proj")):
                these = part[part["product"] == product]
                row |= {
                    f"{name} diagonal / spread": these["z"].mean(),
                    f"{name} above chance (%)": 100 * (these["sigmas"] > 2).mean(),
                    f"{name} below chance (%)": 100 * (these["sigmas"] < -2).mean(),
                }
            rows[LABELS.get(arm, arm), when] = row
    return pd.DataFrame(rows).round(2)


# --- convergence -----------------------------------------------------------------------------------------------------


def head_start(curves: pd.DataFrame, arm: str, reference: str = "gpt2") -> str:
    """The paired gap to the default early (after a fifth of the run, twice the warm-up) and at the end, with 95 % intervals over pairs, in
    words: first whether there is a head start, then whether there is a better end."""
    arms = set(curves["arm"])
    if not {arm, reference} <= arms:
        return f"For the {LABELS[arm]}: no pair of these runs is in yet."
    wide = curves.pivot_table(index=["seed", "step"], columns="arm", values="test_bits_per_byte")
    gap = (wide[arm] - wide[reference]).dropna().unstack("seed")
    n, early = gap.shape[1], gap.index[max(0, len(gap) // 5 - 1)]
    parts = []
    for step, better, worse in ((early, "a head start", "a late start"), (gap.index[-1], "a better end", "a worse end")):
        mean, (low, high) = gap.loc[step].mean(), mean_interval(gap.loc[step])
        interval = f" ({METRIC.span(low, high)})" if n > 1 else ""
        says = better if high < 0 else worse if low > 0 else f"no difference that {'these pairs' if n > 1 else 'one pair'} can show"
        parts.append(f"after {step:,} steps {says}, {METRIC.signed(mean)}{interval}")
    few = f"; {n} pair{'s' * (n != 1)}, too few for a claim" if n < ENOUGH else f"; {n} pairs"
    return f"For the {LABELS[arm]}: {'; '.join(parts)}{few}.{ahead_between(gap)}"


def ahead_between(gap: pd.DataFrame, least: int = 3) -> str:
    """The longest stretch of the run in which every seed of the arm is ahead, if it is ``least`` points long and does not reach the end, in
    words. gap: bits per byte of arm minus reference, step x seed; the last step is the end."""
    ahead, best, now = (gap.iloc[:-1] < 0).all(axis=1), [], []
    for step, yes in ahead.items():
        now = [*now, step] if yes else []
        best = max(best, now, key=len)
    if len(best) < least or (best[-1] == ahead.index[-1] and (gap.iloc[-1] < 0).all()):
        return ""
    lowest = gap.loc[best].mean(axis=1)
    return f" On the way ahead with every seed from step {best[0]:,} to {best[-1]:,}, most at step {lowest.idxmin():,} ({METRIC.signed(lowest.min())})."


def longer(study: Study = LONG) -> str:
    """How the two sets of signs end in the longer runs, in a sentence; "" without them."""
    finals = load_runs(study.experiment)
    table = study_table(study, finals, METRIC) if len(finals) else finals
    said = [f"{LABELS[arm]}: {finding(table.loc[LABELS[arm]], METRIC, more=False)}" for arm in ("language", "vision") if len(table) and LABELS[arm] in table.index]
    return f"In runs of {finals['step'].max():,} steps: {'; '.join(said)}." if said else ""


def overfitting(curves: pd.DataFrame) -> str:
    """Where each arm's mean curve has its lowest point. The last entry of a curve is of other text than those before it, and left out."""
    parts = []
    for arm, runs in curves.groupby("arm", sort=False):
        mean = runs.groupby("step")["test_bits_per_byte"].mean().iloc[:-1]
        if len(mean):
            best, last = mean.idxmin(), mean.index[-1]
            parts.append(f"{LABELS.get(arm, arm)}: {mean[best]:.3f}, at step {best:,}" + (", the last of them" if best == last else f" ({mean[last]:.3f} at step {last:,})"))
    return f"Lowest point of each mean curve before the end: {'; '.join(parts)}." if parts else ""


# --- samples ---------------------------------------------------------------------------------------------------------


def samples(experiment: str = CENTRAL.experiment, arms: tuple[str, ...] = ("gpt2", "language"), seed: int = 0, letters: int = 320) -> str:
    """The text that both arms write after the same prompt at the same number of steps, side by side, as an HTML table."""
    cells = []
    for arm in arms:
        path = record_path(experiment, arm, seed)
        if not path.is_file():
            return f"<p><em>No samples yet: the record of {experiment}/{arm}, seed {seed}, is not in. <code>{COMMAND}</code> makes it.</em></p>"
        record = read_record(path)
        sample, final = record["anatomy"]["after"]["sample"], record["final"]
        head = f"{escape(LABELS[arm])}<br>{final['step']:,} steps, {final['test_bits_per_byte']:.3f} bits per byte"
        text = f"<strong>{escape(sample['prompt'])}</strong>{escape(sample['text'][:letters])}"
        cells.append((head, f'<pre style="white-space: pre-wrap">{text}</pre>'))
    heads = "".join(f'<th style="text-align: left; width: {100 // len(arms)}%">{head}</th>' for head, _ in cells)
    bodies = "".join(f'<td style="vertical-align: top; text-align: left">{body}</td>' for _, body in cells)
    return f"<table><tr>{heads}</tr><tr>{bodies}</tr></table>"


def planned() -> str:
    """Which studies lack runs; "" when all are in."""
    counts = {s.question.rstrip("?"): common.counts(s, load_runs(s.experiment), SEEDS[s.name]) for s in STUDIES.values()}
    missing = [f"{question} ({there} of {wanted})" for question, (there, wanted) in counts.items() if there < wanted]
    return f"*Not all runs are in: {'; '.join(missing)}. `{COMMAND}` adds the others, and this page follows.*" if missing else ""
