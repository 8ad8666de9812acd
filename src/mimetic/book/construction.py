"""Small experiments on the construction itself, seconds each: what the book's chapter 3 states, as DataFrames.

Every one takes a seed and gives the same numbers each time.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor

from mimetic.attention_maps import attention_map, patch_distances
from mimetic.construct import factor, factor_top_k, semi_diagonal
from mimetic.initializers import initialize_
from mimetic.measure import statistics
from mimetic.models.vit import ViT, ViTConfig
from mimetic.scan import attention_layers
from mimetic.spec import VISION

QK, VP = (VISION.qk_alpha, VISION.qk_beta), (VISION.vp_alpha, VISION.vp_beta)


def truncation(
    d: int = 192, ranks: Sequence[int] = (8, 16, 24, 32, 64, 96, 128, 160, 192), draws: int = 5, seed: int = 0
) -> pd.DataFrame:
    """What truncation to rank k does to alpha Z + beta I, by VISION's constants of W_Q W_K^T: rows (k, draw) with the
    columns of measure.statistics and kept = ||A_k||_F^2 / ||A||_F^2."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for draw in range(draws):
        A = semi_diagonal(d, *QK, generator=generator, dtype=torch.float64)
        left, right = factor(A)  # the first k columns and rows are the rank-k factors
        for k in ranks:
            P = left[:, :k] @ right[:k]
            kept = (P.norm() / A.norm()).item() ** 2
            rows.append({"k": k, "k/d": k / d, "draw": draw, "kept": kept, **statistics(P)})
    return pd.DataFrame(rows)


def orientations(d: int = 192, draws: int = 30, seed: int = 0) -> pd.DataFrame:
    """V.proj, by VISION's constants, as the product that the layer computes: both factors stored rightly, and both
    untransposed.

    nn.Linear keeps (out, in), so v.weight must hold left.T and proj.weight right.T. Storing left and right as they are
    computes right-to-left: R L has the trace and eigenvalues of L R, and another diagonal. Columns beside those of
    measure.statistics: first, last (mean of the diagonal's first and last five entries), mean eigenvalue.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for draw in range(draws):
        left, right = factor(semi_diagonal(d, *VP, generator=generator))
        for stored, P in (("transposed (right)", left @ right), ("untransposed (wrong)", left.mT @ right.mT)):
            eigenvalue = torch.linalg.eigvals(P).real.mean().item()
            ends = {"first": P.diagonal()[:5].mean().item(), "last": P.diagonal()[-5:].mean().item()}
            rows.append({"stored": stored, "draw": draw, "mean eigenvalue": eigenvalue, **ends, **statistics(P)})
    return pd.DataFrame(rows)


def head_shares(d: int = 192, num_heads: int = 3, draws: int = 30, seed: int = 0) -> pd.DataFrame:
    """Mean diagonal of each head's share W_V[h] W_proj[h] of V.proj, by VISION's constants: the singular values are
    sorted, so the first head gets the largest; and what it would be with both factors stored untransposed."""
    generator = torch.Generator().manual_seed(seed)
    k = d // num_heads
    rows = []
    for draw in range(draws):
        left, right = factor(semi_diagonal(d, *VP, generator=generator))
        for h in range(num_heads):
            part = slice(h * k, (h + 1) * k)
            wrong = statistics(left[part].mT @ right[:, part].mT)["diag_mean"]
            rows.append({"draw": draw, "head": h, **statistics(left[:, part] @ right[part]), "untransposed": wrong})
    return pd.DataFrame(rows)


def constants_table(d: int = 192, num_heads: int = 3, draws: int = 30, seed: int = 0) -> pd.DataFrame:
    """Means over draws of what mimetic.measure says of a product (diag_mean, diag_sd, offdiag_sd, z, sigmas), for the
    published constants both ways round."""
    generator = torch.Generator().manual_seed(seed)
    k = d // num_heads
    cases = {
        "QK target 0.7 Z + 0.7 I": (0.7, 0.7, d),
        f"QK after truncation to rank {k}": (0.7, 0.7, k),
        f"QK 0.4 / 0.4, rank {k}": (0.4, 0.4, k),
        "V·proj 0.4 Z − 0.4 I": (0.4, -0.4, d),
    }
    rows = []
    for name, (alpha, beta, rank) in cases.items():
        for _ in range(draws):
            left, right = factor_top_k(semi_diagonal(d, alpha, beta, generator=generator), rank)
            rows.append({"product": name, **statistics(left @ right)})
    columns = ["diag_mean", "diag_sd", "offdiag_sd", "z", "sigmas"]
    return pd.DataFrame(rows).groupby("product", sort=False)[columns].mean()


@torch.no_grad()
def maps_at_init(
    images: Tensor, *, d_model: int = 192, num_heads: int = 3, patch_size: int = 4, seed: int = 0
) -> dict[tuple[str, str], Tensor]:
    """First-layer attention maps of an untrained ViT, without positions and with sin-cos ones, by default and from
    mimetic initialization: (init, position embedding) -> (B, H, N, N).

    Args:
        images: (B, C, size, size) floats, normalised as for training.
    """
    maps = {}
    for init in ("timm", "mimetic"):
        for pos_embed in ("none", "sincos2d"):
            config = ViTConfig(
                img_size=images.shape[-1], patch_size=patch_size, in_chans=images.shape[1], d_model=d_model, depth=1,
                num_heads=num_heads, global_pool="avg", pos_embed=pos_embed,
            )  # fmt: skip
            model = ViT(config).eval()
            initialize_(model, init, generator=torch.Generator().manual_seed(seed))
            seen = []
            model.blocks[0].attn.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(args[0]))
            model(images)
            maps[init, pos_embed] = attention_map(attention_layers(model)[0], seen[0])
    return maps


def maps_over_seeds(images: Tensor, seeds: Sequence[int], **shape: int) -> pd.DataFrame:
    """map_statistics of maps_at_init with several seeds of the initializer, one after the other: and a column seed.

    Args:
        images: as maps_at_init takes them; shape: its d_model, num_heads and patch_size.
    """
    side = images.shape[-1] // shape.get("patch_size", 4)
    tables = [map_statistics(maps_at_init(images, seed=seed, **shape), side).assign(seed=seed) for seed in seeds]
    return pd.concat(tables, ignore_index=True)


def map_statistics(maps: dict[tuple[str, str], Tensor], side: int) -> pd.DataFrame:
    """Attention paid to the token itself, and the mean distance attended in
    patches, per map; uniform attention for scale.

    Args:
        side: number of patches along an edge.
    """
    distance, rows = patch_distances(side), []
    for key, A in {**maps, ("uniform", "–"): torch.full((1, 1, side**2, side**2), 1 / side**2)}.items():
        rows.append((*key, A.diagonal(dim1=-2, dim2=-1).mean().item(), (A * distance).sum(-1).mean().item()))
    columns = ["init", "position embedding", "attention to itself", "mean distance (patches)"]
    return pd.DataFrame(rows, columns=columns)
