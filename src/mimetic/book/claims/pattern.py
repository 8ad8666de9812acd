"""What this book tests of the pattern and the formula (chapters 2 and 3)."""

from __future__ import annotations

import pandas as pd

from mimetic.audit import CHANCE, CLEAR, EXPLAINED
from mimetic.audit.report import beyond_chance, sign, sign_words
from mimetic.book import pattern
from mimetic.book.claims.verdicts import DETAILS, OURS, PAPER, REVIEW, Judgement, counted
from mimetic.book.common import percent
from mimetic.book.construction import constants_table
from mimetic.measure import LAYER_HEAD
from mimetic.pretrained import effective

PATTERN = "The pattern and the formula"


def _sides(products: pd.DataFrame) -> pd.DataFrame:
    """One row a measured model: the common sign of its QK heads (qk) and V·proj layers (vp), the shares of both that
    are beyond chance on either side (qk_any, vp_any), the median size of their diagonals in off-diagonal spreads
    (qk_size, vp_size), and its layers."""
    rows = {}
    for title, part in products.groupby("title", sort=False):
        vp = part[(part["product"] == "vp") & (part["head"] == LAYER_HEAD)]
        heads = {"qk": part[part["product"] == "qk"], "vp": vp}
        rows[title] = {k: sign(v["sigmas"]) for k, v in heads.items()} | {
            f"{k}_any": sum(beyond_chance(v["sigmas"])) / len(v) for k, v in heads.items()
        }
        rows[title] |= {f"{k}_size": v["z"].abs().median() for k, v in heads.items()} | {"layers": len(heads["vp"])}
    return pd.DataFrame.from_dict(
        rows, orient="index", columns=["qk", "vp", "qk_any", "vp_any", "qk_size", "vp_size", "layers"]
    )


def _trained_vision() -> Judgement:
    products = effective()
    sides = _sides(products[products["modality"] == "vision"])
    found = "; ".join(f"{row.Index}: {sign_words(row.qk, row.vp)}" for row in sides.itertuples())
    return counted([*(sides["qk"] == "+"), *(sides["vp"] == "−")]), found


def _trained_text() -> Judgement:
    products = effective()
    sides = _sides(products[products["causal"] & (products["modality"] == "text")])
    along = pattern.identity_shares(products).loc[sides.index]
    found = "; ".join(
        f"{row.Index}: beyond chance, on whichever side, QK in {percent(row.qk_any)} of heads"
        f" (median size {row.qk_size:.1f} sd), V·proj in {round(row.vp_any * row.layers)} of {row.layers} layers"
        f" ({row.vp_size:.1f}), along I {along.loc[row.Index, 'QK: mean']:g} and"
        f" {along.loc[row.Index, 'V·proj: mean']:g} % of the energy"
        for row in sides.itertuples()
    )
    multiples = along[["QK: mean", "V·proj: mean"]].to_numpy().ravel() >= 100 * EXPLAINED
    found += f"{DETAILS}{multiples.sum()} of {len(multiples)} are multiples of I by our mark of {percent(EXPLAINED)}."
    if not any("GPT-2" in name for name in sides.index):
        found += " GPT-2 itself could not be fetched."
    return counted([*(sides["qk_any"] > CLEAR), *(sides["vp_any"] > CLEAR), *multiples]), found


def _construction() -> Judgement:
    table = constants_table()
    full, kept = (table.loc[name] for name in ("QK target 0.7 Z + 0.7 I", "QK after truncation to rank 64"))
    found = (
        f"the mean diagonal of QK falls from {full['diag_mean']:.2f} to {kept['diag_mean']:.2f} (width 192, heads 64),"
        f" {kept['z']:.1f} off-diagonal sd"
    )
    return counted([kept["sigmas"] > CHANCE]), found


CLAIMS = {
    (PATTERN, PAPER, "02_looking_inside"): {
        r"In trained vision transformers $W_QW_K^\top$ leans to +I and $W_VW_{proj}$ to −I": _trained_vision,
    },
    (PATTERN, REVIEW, "02_looking_inside"): {
        "Products of GPT-type models are noise and a multiple of I, too": _trained_text,
    },
    (PATTERN, OURS, "03_construction"): {
        "αZ + βI, cut to the rank that a head has, is still semi-diagonal": _construction,
    },
}
