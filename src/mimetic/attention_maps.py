"""Where heads look: attention maps of one layer, and what they and the products of a whole ViT amount to in numbers.

Shape suffixes: B batch, N tokens, D d_model, H num_heads, K head_dim.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mimetic.attention import AttentionLayer
from mimetic.measure import for_json, product_rows
from mimetic.scan import attention_layers, evaluating

PRODUCT_COLUMNS = (
    "fold",
    "layer",
    "head",
    "product",
    "diag_mean",
    "diag_sd",
    "offdiag_sd",
    "null_mean",
    "null_sd",
    "sigmas",
)
DIGITS = 5  # significant ones of a number in a record
MAP_COLUMNS = ("layer", "head", "distance", "itself", "entropy")


@torch.no_grad()
def attention_map(layer: AttentionLayer, x_BND: Tensor) -> Tensor:
    """softmax(x W_Q (x W_K)^T / sqrt(head_dim)) of every head, (B, H, N, N), for the tokens that enter the layer.

    With the layer's biases, without masks, position rotations or relative biases.
    """
    x_BND = x_BND.float()
    q_BHNK = torch.einsum("bnd,dhk->bhnk", x_BND, layer.q.float())
    k_BHNK = torch.einsum("bnd,dhk->bhnk", x_BND, layer.k.float())
    if layer.q_bias is not None:
        q_BHNK = q_BHNK + layer.q_bias.float()[:, None]
    if layer.k_bias is not None:
        k_BHNK = k_BHNK + layer.k_bias.float()[:, None]
    k_BHNK = k_BHNK.repeat_interleave(layer.num_heads // layer.num_kv_heads, dim=1)
    return (q_BHNK @ k_BHNK.mT / layer.head_dim**0.5).softmax(-1)


def patch_distances(side: int) -> Tensor:
    """Euclidean distance in patches between the patches of a side x side grid, (side^2, side^2), rows first."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    places = torch.stack([y.flatten(), x.flatten()], dim=1).float()
    return torch.cdist(places, places)


@torch.no_grad()
def product_table(model: nn.Module) -> dict[str, Any]:
    """A model's products in numbers as a table {"columns", "rows"} that JSON can hold: one row a product, see measure;
    every product raw and with the LayerNorm gain (fold), which training moves away from 1."""
    layers = attention_layers(model)
    rows = [row | {"fold": fold} for fold in (False, True) for row in product_rows(layers, fold, heads=False)]
    return {
        "columns": list(PRODUCT_COLUMNS),
        "rows": [[for_json(row[c], DIGITS) for c in PRODUCT_COLUMNS] for row in rows],
    }


@torch.no_grad()
def anatomy(model: nn.Module, images: Tensor) -> dict[str, dict[str, Any]]:
    """A ViT's products and attention maps in numbers, as two tables {"columns", "rows"} that JSON can hold.

    products: see product_table.
    maps: one row a head, means over images and query patches: the distance attended in patches, the attention to the
        token itself, the entropy in nats. A class token asks and is asked, but is left out of distance and itself.

    Args:
        model: a mimetic.models.vit.ViT, in any mode; left as it was.
        images: (B, C, Y, X) float32, normalised as for training, on the model's device.
    """
    layers = attention_layers(model)
    seen: list[Tensor] = []
    hooks = [block.attn.register_forward_pre_hook(lambda _, args: seen.append(args[0])) for block in model.blocks]
    try:
        with evaluating(model):
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    prefix = 0 if model.cls_token is None else 1
    distances = patch_distances(model.config.img_size // model.config.patch_size).to(images.device)
    maps = []
    for i, (layer, x_BND) in enumerate(zip(layers, seen, strict=True)):
        attention = attention_map(layer, x_BND.float())
        entropy = -torch.xlogy(attention, attention).sum(-1).mean(dim=(0, 2))
        patches = attention[:, :, prefix:, prefix:]
        distance = ((patches * distances).sum(-1) / patches.sum(-1)).mean(dim=(0, 2))
        itself = patches.diagonal(dim1=-2, dim2=-1).mean(dim=(0, 2))
        for h in range(layer.num_heads):
            maps.append([i, h, *(for_json(number[h], DIGITS) for number in (distance, itself, entropy))])
    return {
        "products": product_table(model),
        "maps": {"columns": list(MAP_COLUMNS), "rows": maps},
    }
