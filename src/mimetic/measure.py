"""From a model to numbers: how diagonal its products are, against chance, and the constants that imitate them."""

from __future__ import annotations

import math
import warnings
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from mimetic.attention import AttentionLayer, MimeticWarning, UnsupportedAttention
from mimetic.construct import double, factor_top_k, semi_diagonal
from mimetic.scan import attention_layers
from mimetic.spec import MimeticSpec

if TYPE_CHECKING:
    import pandas as pd

LAYER_HEAD = -1  # the head column of a row about the whole layer


def measure(
    model: nn.Module | list[AttentionLayer], fold: bool = False, *, heads: bool = True, cross: bool = False
) -> pd.DataFrame:
    """One row a product: W_Q W_K^T of every head ("qk"), W_V W_proj of every head and of the layer ("vp", head -1).

    Columns: layer (which of the layers in the table, from 0; cross-attention that is left out does not count), name,
    head, product; diag_mean, diag_sd, offdiag_sd of its (d, d) entries; z = diag_mean / offdiag_sd; and what it would
    be by chance: null_mean and null_sd, the exact mean and standard deviation of the mean diagonal over all ways to
    pair the product's rows with its columns at random (Hoeffding 1951), in units of the same offdiag_sd; for unrelated
    random matrices 0 and 1/sqrt(d). sigmas = (z - null_mean) / null_sd; a bare diagonal has it, too, though its z is
    infinite.

    Args:
        model: a module, or a list of AttentionLayer.
        fold: with the LayerNorm gain and LayerScale in the product; see AttentionLayer.qk.
        heads: False leaves out the rows of W_V W_proj for single heads.
        cross: also cross-attention layers whose two sides have one width.

    Raises:
        UnsupportedAttention: no supported layer, or (fold=True) a layer whose gains are not known.
    """
    import pandas as pd

    return pd.DataFrame(product_rows(_layers(model, cross), fold, heads))


def product_rows(layers: list[AttentionLayer], fold: bool = False, heads: bool = True) -> list[dict[str, Any]]:
    """What measure puts into its DataFrame, as dicts; for machines without pandas."""
    rows = []
    for i, layer in enumerate(layers):
        for h in range(layer.num_heads):
            rows.append({"layer": i, "name": layer.name, "head": h, "product": "qk", **statistics(layer.qk(h, fold))})
        for h in (*(range(layer.num_heads) if heads else ()), None):
            number = LAYER_HEAD if h is None else h
            rows.append(
                {"layer": i, "name": layer.name, "head": number, "product": "vp", **statistics(layer.vp(h, fold))}
            )
    return rows


def statistics(A: Tensor) -> dict[str, float]:
    """The numbers of one (d, d) product; see measure."""
    A = double(A)
    d = A.shape[0]
    diagonal = A.diagonal()
    mean, grand = diagonal.mean().item(), A.mean()
    # the rows of d + 1 entries between one diagonal entry and the next
    others = A.flatten()[1:].view(d - 1, d + 1)[:, :-1] if d > 1 else A[:0]
    offdiag_sd = others.std().item() if d > 1 else float("nan")
    if d > 1 and offdiag_sd <= ROUNDING * others.abs().max().item():
        offdiag_sd = 0.0
    centred = A - A.mean(0, keepdim=True) - A.mean(1, keepdim=True) + grand
    null_sd = (centred.square().sum() / (d - 1)).sqrt().item() / d if d > 1 else float("nan")
    if null_sd <= ROUNDING * A.abs().max().item():  # one and the same number everywhere
        null_sd = 0.0
    sigmas = (mean - grand.item()) / null_sd if null_sd else float("nan")
    if offdiag_sd:
        z, null_mean, null_sd = (np.divide(x, offdiag_sd) for x in (mean, grand.item(), null_sd))
    else:  # of a multiple of the identity: nothing to divide by
        excess = mean - others.mean().item() if d > 1 else 0.0
        excess = excess if abs(excess) > ROUNDING * A.abs().max().item() else 0.0
        z = math.copysign(math.inf, excess) if excess else float("nan")
        null_mean, null_sd = 0.0 if excess and not others.any() else float("nan"), float("nan")
    return {
        "diag_mean": mean,
        "diag_sd": diagonal.std().item() if d > 1 else float("nan"),
        "offdiag_sd": offdiag_sd,
        "z": float(z),
        "null_mean": float(null_mean),
        "null_sd": float(null_sd),
        "sigmas": sigmas,
    }


def for_json(value: Any, digits: int) -> Any:
    """Numbers as a record keeps them: plain Python ones, floats of so many significant digits, None for what is no
    finite number (z of a multiple of the identity). Those in a dict, too; what is no number stays as it is.
    """
    if isinstance(value, dict):
        return {key: for_json(each, digits) for key, each in value.items()}
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return float(f"{value:.{digits}g}") if math.isfinite(value) else None
    return value


ROUNDING = 1e-14  # of float64, in units of the largest entry
NARROW = "tokens of width 1, whose products are one number: there is nothing off the diagonal to compare it with"


def fit(model: nn.Module | list[AttentionLayer], fold: bool = False) -> MimeticSpec:
    """Measure, then mimic: the spec, one value a layer, whose products have this model's diagonals and spreads.

    V.proj: beta is the mean diagonal, alpha = sqrt(d) * the spread off the diagonal. QK: the spec's target is truncated
    to rank head_dim afterwards, which shrinks both, so (alpha, beta) are those whose *truncated* product has the
    layer's mean diagonal and root-mean-square spread over heads (found on random draws with a fixed seed). So
    `mimetic_init_(fresh, fit(trained))` gives a fresh model the trained one's statistics, at any seed.

    Heads that share a key head (grouped queries) end with a diagonal up to a tenth below the trained one's: their
    products are not free of each other.

    Raises:
        UnsupportedAttention: no supported self-attention layer, a layer whose product is 0 (nothing to imitate) or one
            number (width 1), or (fold=True) a layer whose gains are not known.
        ValueError: a layer whose products are so small that MimeticSpec does not take their constants.

    Warns:
        MimeticWarning: a diagonal stronger than any alpha Z + beta I of that rank has; the nearest ratio is taken.
    """
    layers = _layers(model, cross=False, hint="")
    if narrow := [layer.name for layer in layers if layer.d_model == 1]:
        raise UnsupportedAttention(f"{narrow[0]}: {NARROW}")
    table = measure(layers, fold, heads=False)
    out: dict[str, list[float]] = {name: [] for name in MimeticSpec.constants()}
    for i, layer in enumerate(layers):
        width = layer.v.shape[1] * layer.v.shape[2]
        for name, value in fit_layer(table[table.layer == i], layer.d_model, layer.head_dim, width, layer.name).items():
            out[name].append(value)
    return MimeticSpec(**{name: tuple(values) for name, values in out.items()})


def fit_layer(
    rows: pd.DataFrame, d_model: int, head_dim: int, rank: int | None = None, name: str = ""
) -> dict[str, float]:
    """The four constants that imitate one layer, from its rows of a table that measure made; see fit.

    Args:
        rows: the columns head, product, diag_mean and offdiag_sd: qk of every head, and vp of the layer (head -1).
        rank: num_kv_heads * head_dim, the rank of W_V W_proj; d_model by default.
    """
    vp_alpha, vp_beta = fit_product(
        rows[(rows["product"] == "vp") & (rows["head"] == LAYER_HEAD)], d_model, rank or d_model, name
    )
    qk_alpha, qk_beta = fit_product(rows[rows["product"] == "qk"], d_model, head_dim, name)
    return {"qk_alpha": qk_alpha, "qk_beta": qk_beta, "vp_alpha": vp_alpha, "vp_beta": vp_beta}


def fit_product(rows: pd.DataFrame, d_model: int, rank: int, name: str = "") -> tuple[float, float]:
    """(alpha, beta) of one product of a layer, from its rows of measure: the mean diagonal
    and the root-mean-square spread over them.
    """
    # numpy's mean does not pass over nan
    diagonal, spread = (rows[column].to_numpy() for column in ("diag_mean", "offdiag_sd"))
    return _untruncate(float(diagonal.mean()), float(np.sqrt(np.mean(spread**2))), d_model, min(d_model, rank), name)


def _untruncate(diagonal: float, spread: float, d: int, k: int, name: str) -> tuple[float, float]:
    """(alpha, beta) whose rank-k truncation in width d has this mean diagonal and off-diagonal sd."""
    if not (math.isfinite(diagonal) and math.isfinite(spread)):
        raise UnsupportedAttention(f"{name}: a product of its weights has entries that are not finite")
    if not diagonal and not spread:
        raise UnsupportedAttention(f"{name}: a product of its weights is 0, so there is nothing to imitate")
    if k == d:
        return spread * d**0.5, diagonal
    ratios, means, spreads = truncation_curve(d, k)
    wanted = abs(diagonal) / spread if spread else math.inf
    if wanted > (means / spreads)[-1]:
        warnings.warn(
            f"{name}: a diagonal of {wanted:.2f} times the spread is more than a rank-{k} product in width {d} can have"
            f" around alpha Z + beta I; beta = {ratios[-1]:g} alpha is taken",
            MimeticWarning,
            stacklevel=5,
        )
    ratio = float(np.interp(wanted, means / spreads, ratios))
    # both scale with alpha: the spread fixes it, or the diagonal where it has none
    alpha = spread / float(np.interp(ratio, ratios, spreads)) if spread else abs(diagonal) / float(means[-1])
    return alpha, float(np.copysign(ratio * alpha, diagonal))


@lru_cache(maxsize=64)
def truncation_curve(d: int, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """beta/alpha, and for alpha = 1 the mean diagonal and off-diagonal sd after truncation to rank k of d.

    Drawn in a smaller width with the same k/d where d is large: the diagonal depends on the ratio alone, the spread
    falls with 1/sqrt(d).
    """
    # the one in which k/d is met best, of equal ones that nearest to 192
    widths = range(128, min(d, max(384, -(-d // k))) + 1) if d > 192 else [d]
    width = min(widths, key=lambda w: (abs(max(1, round(k * w / d)) * d / (k * w) - 1), abs(w - 192)))
    rank = max(1, round(k * width / d))
    ratios = np.concatenate([np.linspace(0, 2, 9), [2.5, 3, 4, 6, 10]])
    generator = torch.Generator().manual_seed(0)
    noise = [semi_diagonal(width, 1.0, 0.0, generator=generator, dtype=torch.float64) for _ in range(4)]
    means, spreads = [], []
    for ratio in ratios:
        products = [
            left @ right
            for left, right in (
                factor_top_k(Z + ratio * torch.eye(width, dtype=Z.dtype, device=Z.device), rank) for Z in noise
            )
        ]
        numbers = [statistics(P) for P in products]
        # at beta = 0 there is no sign to keep: the expected diagonal is 0
        means.append(np.mean([n["diag_mean"] for n in numbers]) if ratio else 0.0)
        spreads.append(np.sqrt(np.mean([n["offdiag_sd"] ** 2 for n in numbers])) * (width / d) ** 0.5)
    return ratios, np.array(means), np.array(spreads)


def of_one_width(layer: AttentionLayer) -> bool:
    """Whether a layer's inputs and output have one width, so that its products have a diagonal."""
    return {layer.k.shape[0], layer.v.shape[0], layer.proj.shape[2]} == {layer.d_model}


def _layers(
    model: nn.Module | list[AttentionLayer], cross: bool, hint: str = " (cross=True takes them too)"
) -> list[AttentionLayer]:
    """The layers that have a diagonal, with cross-attention or without; hint: what the caller can do if that leaves
    none."""
    every = model if isinstance(model, list) else attention_layers(model)
    if not all(isinstance(layer, AttentionLayer) for layer in every):
        raise TypeError("expected a torch.nn.Module or a list of AttentionLayer, as attention_layers gives it")
    if not every:
        raise UnsupportedAttention("the list of attention layers is empty")
    layers = [layer for layer in every if (cross or layer.kind == "self")]
    if not layers:
        raise UnsupportedAttention(f"no self-attention layer among {len(every)} attention layers{hint}")
    square = list(filter(of_one_width, layers))
    if wrong := next((layer for layer in layers if layer not in square and (layer.kind == "self" or not square)), None):
        raise UnsupportedAttention(
            f"{wrong.name}: its inputs and output have different widths, so there is no diagonal"
        )
    return square  # without cross-attention of two widths
