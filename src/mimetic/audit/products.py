"""The first two questions: an audit's numbers from attention layers, or from measure's table of them."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np

from mimetic.attention import AttentionLayer, MimeticWarning, UnsupportedAttention
from mimetic.audit.parameters import Parameters
from mimetic.audit.report import Audit, answers
from mimetic.measure import LAYER_HEAD, NARROW, fit_product, measure, of_one_width, truncation_curve


def from_layers(layers: list[AttentionLayer], fold: bool | None, name: str, parameters: Parameters | None) -> Audit:
    notes, kept = [], [layer for layer in layers if layer.kind == "self" and of_one_width(layer)]
    if len(kept) < len(layers):
        notes.append(
            f"{len(layers) - len(kept)} of {len(layers)} attention layers are not audited: cross-attention, or widths"
            " that differ"
        )
    if not kept:
        raise UnsupportedAttention(
            f"{name}: none of its {len(layers)} attention layers is self-attention of one width: no diagonal"
        )
    if narrow := [layer.name for layer in kept if layer.d_model == 1]:
        raise UnsupportedAttention(f"{narrow[0]}: {NARROW}")
    known = all(layer.gains_known for layer in kept)
    fold = known if fold is None else fold
    if not known and not fold:
        notes.append("the products are the raw weights': which norm feeds the layers is not known")
    notes += dict.fromkeys(caveat for layer in kept for caveat in layer.caveats)
    sizes = {i: (layer.d_model, layer.head_dim, layer.v.shape[1] * layer.v.shape[2]) for i, layer in enumerate(kept)}
    names = [layer.name for layer in kept]
    return from_table(name, measure(kept, fold, heads=False), sizes, fold, parameters, notes, names)


def from_table(name, table, sizes, fold, parameters, notes, names=None) -> Audit:
    """An Audit from measure's rows and (d_model, head_dim, rank of V.proj) by layer; names: of the layers."""
    import pandas as pd

    table = table[(table["product"] == "qk") | (table["head"] == LAYER_HEAD)].reset_index(drop=True)
    table = table.assign(explained=[explained(row, sizes[row.layer][0]) for row in table.itertuples()])
    rows = []
    for layer, part in table.groupby("layer"):
        d, head_dim, rank = sizes[layer]
        for product, k in (("qk", head_dim), ("vp", rank)):
            kind = part[part["product"] == product]
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", MimeticWarning)
                alpha, beta = fit_product(kind, d, k, names[layer] if names else f"layer {layer}")
            rows.append({
                "layer": layer, "product": product, "alpha": alpha, "beta": beta,
                "explained": float(kind["explained"].mean()), "imitated": imitated(alpha, beta, d, k),
                "target": beta**2 / (alpha**2 + beta**2), "limit": min(1.0, k / d),
                "reachable": not any(issubclass(w.category, MimeticWarning) for w in caught),
            })  # fmt: skip
    found = Audit(name, table, pd.DataFrame(rows), fold, parameters, tuple(notes))
    return replace(found, answers=answers(found))


def explained(row: Any, d: int) -> float:
    """Share of a (d, d) product's energy (squared Frobenius norm) that lies along the identity, <P, I>^2 / (d ||P||^2),
    from a row of measure; what is left is the residual. Unrelated random matrices have 1 / d^2."""
    total = row.null_mean * row.offdiag_sd * d**2  # the sum of all entries
    if not row.offdiag_sd:  # a bare multiple of the identity, or (null_mean is nan) not known
        total = d * row.diag_mean + row.null_mean
    off_mean = (total - d * row.diag_mean) / (d * (d - 1))
    energy = (
        (d - 1) * row.diag_sd**2
        + d * row.diag_mean**2
        + (d * (d - 1) - 1) * row.offdiag_sd**2
        + d * (d - 1) * off_mean**2
    )
    return float(d * row.diag_mean**2 / energy) if energy else float("nan")


def imitated(alpha: float, beta: float, d: int, k: int) -> float:
    """The same share for what mimetic_init_ makes of these constants, after truncation to rank k."""
    if k >= d:
        return beta**2 / (alpha**2 + beta**2)
    ratios, means, spreads = truncation_curve(d, k)
    ratio = min(abs(beta) / alpha if alpha else ratios[-1], ratios[-1])
    mean, spread = np.interp(ratio, ratios, means), np.interp(ratio, ratios, spreads)
    return float(mean**2 / (mean**2 + d * spread**2))
