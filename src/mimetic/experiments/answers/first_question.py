"""The first of the three questions of chapter 12, layers worth imitating: which signs do trained recommenders have, and
with which changes of the model do they turn (chapter 12b)?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from mimetic.audit.report import beyond_chance, sign
from mimetic.experiments.answers import common
from mimetic.experiments.answers.recommenders import COMMAND, TITLES
from mimetic.experiments.programmes.recommenders import DEFAULT, FIRST_SEEDS, MODELS, SIGNS, VISION
from mimetic.experiments.recorded import recorded_products
from mimetic.statistics import mean_interval
from mimetic.training.records import load_runs


def trained(experiment: str, arm: str = DEFAULT) -> pd.DataFrame:
    """The products of every recorded run of an arm after training (recorded.recorded_products)."""
    products = recorded_products(experiment, [arm])
    return products[products["when"] == "after"]


def trained_panels() -> pd.DataFrame:
    """Question 1's figure: the default arm on each data set, and the vision-sign arm
    on the first, as far as they are recorded.
    """
    shown = [("ml100k", DEFAULT, "default"), ("beauty", DEFAULT, "default"), ("ml100k", VISION, "vision signs")]
    parts = [
        recorded_products(name, [arm]).assign(panel=f"{TITLES[name].split(' (')[0]}, {words}")
        for name, arm, words in shown
    ]
    return pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)


def layer_signs(products: pd.DataFrame) -> pd.DataFrame:
    """One row a product and layer of a model's trained products: the mean z of its heads over runs, its
    95 % interval over the runs' means, how many heads (of all runs) lie above and below chance, and the
    sign that mimetic.audit's rule gives them.
    """
    rows = {}
    for (product, layer), part in products.groupby(["product", "layer"]):
        sigmas = part["sigmas"]
        above, below = beyond_chance(sigmas)
        low, high = mean_interval(part.groupby("seed")["z"].mean())
        rows[product, layer] = {
            "z": part["z"].mean(),
            "low": low,
            "high": high,
            "above": above,
            "below": below,
            "count": len(part),
            "sign": sign(sigmas),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def signs_in_words(products: pd.DataFrame) -> str:
    """The signs of a model's trained products, layer by layer."""
    signs, common_signs, parts = layer_signs(products)["sign"], [], []
    for product, name in common.SHORT.items():
        found = signs[product]
        common_signs.append(found.iloc[0] if found.nunique() == 1 else "none")
        if common_signs[-1] != "none":
            parts.append(f"{name} {common_signs[-1]} in every layer")
        else:
            parts.append(
                f"{name} {', '.join(f'{s} in layer {i}' for i, s in found.items() if s != 'none') or 'in no layer'}"
            )
    patterns = {("+", "−"): "vision's signs", ("−", "+"): "the opposite of vision's signs"}
    if tuple(common_signs) in patterns:
        parts.append(patterns[tuple(common_signs)])
    return ", ".join(parts)


def sign_table(models: Mapping[str, str] = MODELS, experiment: str = "ml100k") -> pd.DataFrame:
    """Which signs training finds from the default: one row a model; mean z and, where there is
    one, the sign of each product and layer.
    """
    rows = {}
    for name, arm in models.items():
        part = trained(experiment, arm)
        if part.empty:
            continue
        row: dict[str, object] = {"seeds": part["seed"].nunique()}
        for (product, layer), found in layer_signs(part).iterrows():
            common_sign = f" ({found['sign']})" if found["sign"] != "none" else ""
            z = common.minus(f"{found['z']:+.2f}")
            row[f"{common.SHORT[product]}, layer {layer}"] = f"{z}{common_sign}"
        rows[name] = row
    return pd.DataFrame.from_dict(rows, orient="index")


def first_answer() -> str:
    """Does a trained BERT4Rec have layers worth imitating? From every recorded run of the default arm."""
    lines = []
    for experiment, title in TITLES.items():
        part = trained(experiment)
        if part.empty:
            lines.append(f"* {title}: no run of the default is in yet. `{COMMAND}` makes them.")
            continue
        words = []
        for (product, layer), row in layer_signs(part).iterrows():
            at_mark = 4 * max(row["above"], row["below"]) == 3 * row["count"]
            said = (
                f"{common.PRODUCTS[product]} in layer {layer} above chance in {row['above']}"
                f" and below in {row['below']} of {row['count']}"
            )
            words.append(said + ", exactly at the mark, so not counted" * at_mark)
        seeds = part["seed"].nunique()
        lines.append(f"* {title} ({common.plural(seeds, 'seed')}): **{signs_in_words(part)}**. {'; '.join(words)}.")
    return "\n".join(lines)


FACTORS = {  # what differs between two of MODELS
    "the norm (pre-LN in place of post-LN)": [
        (f"{task}, post-LN", f"{task}, pre-LN") for task in ("BERT4Rec", "masked items, causal", "next item, causal")
    ],
    "causality (a causal mask)": [
        (f"BERT4Rec, {norm}", f"masked items, causal, {norm}") for norm in ("post-LN", "pre-LN")
    ],
    "the task (next item in place of masked items, 20 epochs in place of 40)": [
        (f"masked items, causal, {norm}", f"next item, causal, {norm}") for norm in ("post-LN", "pre-LN")
    ],
    "the task, where both were trained for 40 epochs": [
        (f"masked items, causal, {norm}", f"next item, causal, {norm}, 40 epochs") for norm in ("post-LN", "pre-LN")
    ],
    "longer training (40 epochs in place of 20)": [
        (f"next item, causal, {norm}", f"next item, causal, {norm}, 40 epochs") for norm in ("post-LN", "pre-LN")
    ],
}


def sign_changes() -> pd.DataFrame:
    """What changes of the signs that training finds between models that differ in one of FACTORS: a row a
    factor and product; in how many layers of all such pairs of models the sign turns, appears or vanishes,
    their number (layers) and that of the pairs.
    """
    layers = {name: layer_signs(part) for name, arm in MODELS.items() if len(part := trained("ml100k", arm))}
    signs = {name: table["sign"] for name, table in layers.items()}
    # of the layer's mean, where its interval leaves out 0
    sides = {
        name: np.sign(table["low"]).where(np.sign(table["low"]) == np.sign(table["high"]), 0)
        for name, table in layers.items()
    }
    rows = []
    for factor, pairs in FACTORS.items():
        there = [(signs[a], signs[b]) for a, b in pairs if a in signs and b in signs]
        means = [(sides[a], sides[b]) for a, b in pairs if a in signs and b in signs]
        for product, name in common.SHORT.items() if there else ():
            before, after = (np.concatenate([pair[i][product].to_numpy() for pair in there]) for i in (0, 1))
            counts = {
                "turns": (before != after) & (before != "none") & (after != "none"),
                "appears": (before == "none") & (after != "none"), "vanishes": (before != "none") & (after == "none"),
            }  # fmt: skip
            rows.append(
                {
                    "factor": factor,
                    "product": name,
                    **{word: int(found.sum()) for word, found in counts.items()},
                    "layers": len(before),
                    "pairs": len(there),
                    "means turn": sum(int((a[product] * b[product] < 0).sum()) for a, b in means),
                }
            )
    return pd.DataFrame(rows)


def sign_question() -> str:
    """Does the sign that training finds depend on the norm, on masking, on causality? In short."""
    table = sign_changes()
    if table.empty:
        return f"No two models that differ in one of these are in. `{COMMAND}` adds the others, and this page follows."
    runs = load_runs("ml100k")
    gap = common.missing(SIGNS, runs, FIRST_SEEDS, COMMAND)
    return f"Change by change: {_sign_changes_in_short(table)}\n\n{gap}".rstrip()


def _sign_changes_in_short(table: pd.DataFrame) -> str:
    """Which factors change a product's sign in at least half of the layers
    (sign_changes), and whether any turns it round.
    """
    changed = table.assign(changed=table[["turns", "appears", "vanishes"]].sum(axis=1))
    parts = []
    for product, part in changed.groupby("product", sort=False):
        often = part[2 * part["changed"] >= part["layers"]]
        factors = [f"{row.factor.split(' (')[0]} ({row.changed} of {row.layers} layers)" for row in often.itertuples()]
        how = "changes" if part["turns"].any() else "appears or vanishes"
        with_these = " and with ".join(factors) or "none of these"
        few = [
            f"{row.factor.split(' (')[0]} ({row.changed} of {row.layers})"
            for row in part.drop(often.index).itertuples()
        ]
        parts.append(
            f"the sign of {product} {how} in half of the layers or more with {with_these}"
            + f", in fewer with {', '.join(few)}" * bool(few)
        )
    turned, means = changed["turns"].sum(), changed["means turn"].sum()
    by_mean = (
        f" (Without the mark: in {means} of {changed['layers'].sum()} comparisons of a layer's mean its sign changes,"
        " and both intervals leave out 0.)"
        if means > turned
        else ""
    )
    by_mark = (
        "No single change turns a + into a − or back."
        if turned == 0
        else f"A + turns into a −, or back, in {turned} of these."
    )
    return f"{'; '.join(parts)}. {by_mark}{by_mean}"
