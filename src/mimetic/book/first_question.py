"""The first of the three questions of chapter 12, layers worth imitating: which signs do trained recommenders have, and
with which changes of the model do they turn (chapter 12b)?"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from mimetic.audit.report import beyond_chance, sign
from mimetic.book import common
from mimetic.book.recommenders import TITLES
from mimetic.experiments.programmes.recommenders import DEFAULT, MODELS, VISION
from mimetic.experiments.recorded import recorded_products


def trained(experiment: str, arm: str = DEFAULT) -> pd.DataFrame:
    """The products of every recorded run of an arm after training (recorded.recorded_products)."""
    products = recorded_products(experiment, [arm])
    return products[products["when"] == "after"]


def trained_panels() -> pd.DataFrame:
    """Question 1's figure: the default arm on each data set, and the vision-sign arm on the first, as far as they are
    recorded."""
    shown = [("ml100k", DEFAULT, "default"), ("beauty", DEFAULT, "default"), ("ml100k", VISION, "vision signs")]
    parts = [
        recorded_products(name, [arm]).assign(panel=f"{TITLES[name].split(' (')[0]}, {words}")
        for name, arm, words in shown
    ]
    return pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)


def layer_signs(products: pd.DataFrame) -> pd.DataFrame:
    """One row a product and layer of a model's trained products: the mean z of its heads over runs, how many heads (of
    all runs) lie above and below chance, and the sign that mimetic.audit's rule gives them."""
    rows = {}
    for (product, layer), part in products.groupby(["product", "layer"]):
        above, below = beyond_chance(part["sigmas"])
        seen = {"z": part["z"].mean(), "above": above, "below": below, "count": len(part)}
        rows[product, layer] = seen | {"sign": sign(part["sigmas"])}
    return pd.DataFrame.from_dict(rows, orient="index")


def signs_in_words(products: pd.DataFrame) -> str:
    """The signs of a model's trained products, layer by layer."""
    signs, common_signs, parts = layer_signs(products)["sign"], [], []
    for product, name in common.SHORT.items():
        found = signs[product]
        common_signs.append(found.iloc[0] if found.nunique() == 1 else "none")
        each = ", ".join(f"{s} in layer {i}" for i, s in found.items() if s != "none") or "in no layer"
        parts.append(f"{name} {each if common_signs[-1] == 'none' else f'{common_signs[-1]} in every layer'}")
    patterns = {("+", "−"): "vision's signs", ("−", "+"): "the opposite of vision's signs"}
    if tuple(common_signs) in patterns:
        parts.append(patterns[tuple(common_signs)])
    return ", ".join(parts)


def sign_table(models: Mapping[str, str] = MODELS, experiment: str = "ml100k") -> pd.DataFrame:
    """Which signs training finds from the default: one row a model; mean z and, where there is one, the sign of each
    product and layer."""
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
    """How many heads (of V·proj: layers) of all recorded runs of the default lie above and below chance, as a Markdown
    table; "" without a run."""
    rows = []
    for experiment, title in TITLES.items():
        part = trained(experiment)
        if part.empty:
            continue
        cells = {
            f"{common.SHORT[product]}, layer {layer}": f"{row['above']} + and {row['below']} − of {row['count']}"
            + f" ({row['sign']})" * (row["sign"] != "none")
            for (product, layer), row in layer_signs(part).iterrows()
        }
        rows.append({"BERT4Rec": f"{title}, {common.plural(part['seed'].nunique(), 'seed')}"} | cells)
    return common.markdown(pd.DataFrame(rows).fillna("")) if rows else ""
