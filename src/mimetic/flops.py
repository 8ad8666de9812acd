"""Floating-point operations of a ViT, counted by PyTorch, and what they cost on a
card. No weights and no data are needed.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import lru_cache

import torch

from mimetic.models.blocks import parameter_counts, shapes_only
from mimetic.models.vit import ViT, ViTConfig

# Dense bfloat16 peaks in FLOP/s, from NVIDIA's data sheets (without sparsity), by words of the card's name; the longer
# names first.
PEAKS = {
    "H200 NVL": 835e12,
    "H200": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
}

# Where a product counts, by the end of its module's name: in every block, and once in a model.
_IN_BLOCKS = {"qkv": "queries, keys, values", "attn.proj": "projection", "attn": "attention itself", "mlp": "MLP"}
_ONCE = {"patch_embed": "patches", "head": "head"}


@lru_cache
def flops(config: ViTConfig) -> dict[str, float]:
    """FLOPs of one image, forward and backward, by part; a multiply-add counts as two, as on the cards' data sheets.

    Matrix products and convolutions only: norms, GELU and softmax are left out, as is usual. The gradient of the
    pixels, which no one needs, is not counted.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    with shapes_only():  # all blocks cost the same, so one is counted
        model, images = ViT(replace(config, depth=1)), torch.empty(2, config.in_chans, config.img_size, config.img_size)
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        model(images).sum().backward()
    counted = {name.removeprefix("ViT."): sum(ops.values()) / 2 for name, ops in counter.get_flop_counts().items()}
    parts = {}
    for name, part in (_IN_BLOCKS | _ONCE).items():
        found = sum(n for module, n in counted.items() if module == name or module.endswith(f".{name}"))
        parts[part] = found * (config.depth if name in _IN_BLOCKS else 1)
    parts["attention itself"] -= parts["queries, keys, values"] + parts["projection"]
    return parts


def total(config: ViTConfig) -> float:
    """FLOPs of one image, forward and backward."""
    return sum(flops(config).values())


def peak(name: str) -> float:
    """bfloat16 peak in FLOP/s of the card with this name; nan if it is not known (a
    laptop's card shares the name and not the peak).
    """
    known = {} if "Laptop" in name else PEAKS
    return next((value for part, value in known.items() if re.search(rf"\b{part}\b", name)), float("nan"))


def parameters(config: ViTConfig) -> int:
    """Number of parameters."""
    with shapes_only():
        return parameter_counts(ViT(config))["total"]
