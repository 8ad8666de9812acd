"""Do trained models show the pattern? Tables from the recorded measurements, and the
products of an untrained model beside them.

Run: python -m mimetic pretrained measure   (about 3 minutes with a network; writes data/pretrained/)
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mimetic.attention import AttentionLayer
from mimetic.audit.products import explained
from mimetic.audit.report import beyond_chance, sign, sign_words
from mimetic.book.common import SHORT
from mimetic.initializers import initialize_
from mimetic.measure import LAYER_HEAD, measure
from mimetic.models.blocks import Block
from mimetic.pretrained import SOURCES, diagonal_profile, effective, load_measurements, load_profiles
from mimetic.pretrained.sources import Wheel
from mimetic.scan import attention_layers

QK_SIDES, VP_SIDES = ("QK +", "QK −"), ("V·proj −", "V·proj +")  # the published sign first


def verdicts(measurements: pd.DataFrame) -> pd.DataFrame:
    """One row a model: how many of its heads have a W_Q W_K^T above and below chance, how many of its layers a
    W_V W_proj, the median z of each ("QK z", "V·proj z"), and the verdict in words.

    Verdict: "the paper's signs" if the median QK z is positive and the median V.proj z is negative and more than three
    quarters of heads and layers are on those sides of chance; "opposite signs" likewise with both signs turned; else
    what is and is not there.
    """
    rows = []
    for title, part in measurements.groupby("title", sort=False):
        qk, vp = part[part["product"] == "qk"], part[(part["product"] == "vp") & (part["head"] == LAYER_HEAD)]
        row: dict[str, object] = {"model": title, "heads": len(qk), "layers": len(vp)}
        row["QK +"], row["QK −"] = beyond_chance(qk["sigmas"])
        row["V·proj +"], row["V·proj −"] = beyond_chance(vp["sigmas"])
        row |= {"QK z": qk["z"].median(), "V·proj z": vp["z"].median()}
        rows.append(row | {"verdict": _verdict(sign(qk["sigmas"]), sign(vp["sigmas"]))})
    return pd.DataFrame(rows).set_index("model").round(2)


def verdict_table(measurements: pd.DataFrame) -> pd.DataFrame:
    """verdicts for the page: a count as "61/104"."""
    table = verdicts(measurements)
    for column in (*QK_SIDES, *VP_SIDES):
        of = table["heads" if column in QK_SIDES else "layers"]
        table[column] = [f"{n}/{every}" for n, every in zip(table[column], of)]
    return table[[*QK_SIDES, "QK z", *VP_SIDES, "V·proj z", "verdict"]]


def raw_verdicts(measurements: pd.DataFrame) -> str:
    """What verdicts counts without any gains, in words: of the models that have the paper's signs with or without."""
    tables = [verdict_table(rows) for rows in (measurements[~measurements["fold"]], effective(measurements))]
    raw, acting = (table["verdict"] == "the paper's signs" for table in tables)
    said = [
        f"{name} has QK + in {row['QK +']} heads and V·proj − in {row['V·proj −']} layers"
        f" ({row['V·proj +']} with V·proj +){'' if raw[name] else ', not enough'}"
        for name, row in tables[0][raw | acting].iterrows()
    ]
    return "; ".join(said)


def identity_shares(measurements: pd.DataFrame) -> pd.DataFrame:
    """How much of the products' energy (squared Frobenius norm) lies along the identity (see audit.products.explained),
    in percent: one row a model of the recorded sources, and last what mimetic_init_ writes; for QK over heads and for
    V·proj over layers the mean, the median, the largest, and what the rank allows (rank / d)."""
    rows = {}
    for title, part in measurements.groupby("title", sort=False):
        src, rows[title] = SOURCES[part["source"].iloc[0]], {}
        groups = (src.origin.kv_heads if isinstance(src.origin, Wheel) else None) or 0
        for product in SHORT:
            kind = part[(part["product"] == product) & ((product == "qk") | (part["head"] == LAYER_HEAD))]
            dims = [src.layer_dims()[layer] for layer in kind["layer"]]
            shares = [100 * explained(row, d) for row, (d, _) in zip(kind.itertuples(), dims)]
            possible = [100 / heads if product == "qk" else 100 * (groups or heads) / heads for _, heads in dims]
            rows[title] |= _summed_up(product, shares, np.mean(possible))
    made = measure(untrained_layers(384, 1, 6, "mimetic"), heads=False)
    written = rows["written by mimetic_init_, width 384, 6 heads"] = {}
    for product, possible in {"qk": 100 / 6, "vp": 100.0}.items():
        shares = [100 * explained(row, 384) for row in made[made["product"] == product].itertuples()]
        written |= _summed_up(product, shares, possible)
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("model").round(1)


def _summed_up(product: str, shares: list[float], possible: float) -> dict[str, float]:
    """The columns of identity_shares on one product."""
    found = {"mean": np.mean(shares), "median": np.median(shares), "largest": max(shares), "possible": possible}
    return {f"{SHORT[product]}: {name}": value for name, value in found.items()}


def layer_scale_signs(layers: list[AttentionLayer] | None) -> pd.DataFrame:
    """One row a layer with LayerScale s: in how many of its d places s is negative, and in how many the diagonal of the
    raw W_V W_proj has the sign that s has not, so that their product is negative; in percent. Empty without weights."""
    rows = {}
    for i, layer in enumerate(layers or ()):
        if (s := layer.out_gain) is not None:
            rows[i] = {
                "s negative (%)": 100 * (s < 0).float().mean().item(),
                "raw diagonal against s (%)": 100 * (layer.vp().diagonal() * s < 0).float().mean().item(),
            }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("layer").round(0)


def _verdict(qk: str, vp: str) -> str:
    if (qk, vp) == ("+", "−"):
        return "the paper's signs"
    if (qk, vp) == ("−", "+"):
        return "opposite signs"
    return sign_words(qk, vp, "mixed")


def untrained_layers(
    d_model: int, depth: int, num_heads: int, init: str = "timm", seed: int = 0
) -> list[AttentionLayer]:
    """The attention layers of blocks that were initialised by name and never trained."""
    model = torch.nn.Sequential(*(Block(d_model, num_heads) for _ in range(depth)))
    initialize_(model, init, generator=torch.Generator().manual_seed(seed))
    return attention_layers(model)


def layer_profiles(layers: list[AttentionLayer], panel: str, **labels: str) -> pd.DataFrame:
    """Diagonal profiles of the last of some layers in units of the product's off-diagonal sd: columns panel, label,
    offset, value; labels maps "qk" (head 0) and "vp" to the label of their line, a product without a label is left out.
    """
    layer, numbers = layers[-1], measure(layers, heads=False).query(f"layer == {len(layers) - 1}")
    rows = []
    for product, label in labels.items():
        P = layer.qk(0) if product == "qk" else layer.vp()
        sd = numbers[numbers["product"] == product].offdiag_sd.iloc[0]
        profile = diagonal_profile(P)
        offsets = range(-(len(profile) // 2), len(profile) // 2 + 1)
        rows += [{"panel": panel, "label": label, "offset": o, "value": v / sd} for o, v in zip(offsets, profile)]
    return pd.DataFrame(rows)


def overview_profiles(source: str = "dinov2-vit-s", layer: int = 9, seed: int = 0) -> pd.DataFrame:
    """For the figure that opens the book: a trained model's products beside the initializer's, same width and heads.

    Args:
        source: a recorded source; its gains are folded in.
        layer: the layer that is set apart from the others.

    Returns: columns panel (trained, made), label (vp, qk, untrained), layer, apart (of trained: the layer given),
    offset, value (mean entry over the spread of the others; for QK of one head a layer).
    """
    keys = ["product", "layer", "head"]
    stored = load_profiles([source])
    fold, numbers = bool(stored["fold"].any()), load_measurements([source])
    sds = numbers[numbers["fold"] == fold].set_index(keys)["offdiag_sd"]
    rows = []
    for (product, i, head), part in stored[stored["fold"] == fold].groupby(keys):
        shown = part[["offset"]].assign(value=part["mean"] / sds[product, i, head])
        rows.append(shown.assign(panel="trained", label=product, layer=i, apart=i == layer))
    d, heads = 384, 6
    for init, labels in {"mimetic": {"vp": "vp", "qk": "qk"}, "timm": {"vp": "untrained"}}.items():
        made = layer_profiles(untrained_layers(d, 1, heads, init, seed), "made", **labels)
        rows.append(made.assign(layer=0, apart=True))
    return pd.concat(rows, ignore_index=True)


def fold_profiles(source: str) -> pd.DataFrame:
    """Raw and folded diagonal profiles of V.proj of one source, a panel a recorded layer, each over its off-diagonal
    sd."""
    numbers = load_measurements([source])
    stored = load_profiles([source]).query("product == 'vp'")
    layers = numbers[(numbers["product"] == "vp") & (numbers["head"] == LAYER_HEAD)]
    sds = layers.set_index(["fold", "layer"]).offdiag_sd
    value = stored["mean"].to_numpy() / sds.loc[list(zip(stored["fold"], stored["layer"]))].to_numpy()
    label = np.where(stored["fold"], "gains folded in", "raw weights")
    panel = [f"layer {layer}" for layer in stored["layer"]]
    table = pd.DataFrame({"panel": panel, "label": label, "offset": stored["offset"], "value": value})
    return table.reset_index(drop=True)


def gauge_freedom(layer: AttentionLayer) -> pd.Series:
    """How much W_Q, W_K and W_Q W_K^T of the first head change (relative Frobenius norm) under W_Q -> W_Q M, W_K -> W_K
    M^-T with a random invertible M: the attention is the same function before and after, the single matrices are not
    the same."""
    generator = torch.Generator().manual_seed(0)
    q, k = layer.w_q(0).double(), layer.w_k(0).double()
    M = torch.randn(q.shape[1], q.shape[1], generator=generator, dtype=torch.float64)
    q2, k2 = q @ M, k @ torch.linalg.inv(M).mT

    def change(a: Tensor, b: Tensor) -> float:
        return ((a - b).norm() / a.norm()).item()

    return pd.Series(
        {"W_Q": change(q, q2), "W_K": change(k, k2), "W_Q W_K^T": change(q @ k.mT, q2 @ k2.mT)}, name="relative change"
    )


def pictures(layers: list[AttentionLayer] | None, layer: int, head: int) -> dict[str, Tensor]:
    """W_Q W_K^T of a head, then W_V W_proj: trained (folded, raw) if layers are given, untrained, and written by
    mimetic_init_, all of the trained model's width and heads (384 and 6 without one); title -> (d, d) matrix.

    Raises:
        ValueError: the model has no such layer or head.
    """
    columns = {}
    d, heads = 384, 6
    if layers is not None:
        if not 0 <= layer < len(layers):
            raise ValueError(f"layer must be from 0 to {len(layers) - 1}, got {layer}")
        trained = layers[layer]
        if not 0 <= head < trained.num_heads:
            raise ValueError(f"head must be from 0 to {trained.num_heads - 1}, got {head}")
        d, heads = trained.d_model, trained.num_heads
        columns = {"trained, folded": (trained, True), "trained, raw": (trained, False)}
    for name, init in (("untrained", "timm"), ("mimetic", "mimetic")):
        columns[name] = (untrained_layers(d, 1, heads, init)[0], False)
    out = {f"QK · {name}": view.qk(min(head, view.num_heads - 1), fold) for name, (view, fold) in columns.items()}
    return out | {f"V·proj · {name}": view.vp(fold=fold) for name, (view, fold) in columns.items()}
