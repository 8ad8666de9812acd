"""How large a share of its parameters a model has in attention, before anything is trained (chapter 11)."""

from __future__ import annotations

from typing import Any

import pandas as pd

from mimetic.book.gains import millions
from mimetic.experiments.configs import named
from mimetic.experiments.configs.language import SHARES
from mimetic.models.blocks import in_attention, parameter_counts, shapes_only
from mimetic.models.gpt import GPT, GPTConfig
from mimetic.models.vit import ViT, ViTConfig


def sweep_table(experiment: str = "share") -> pd.DataFrame:
    """The points of the sweep: what each changes, parameters by kind, and attention's share, smallest first."""
    rows = {}
    for point, changes in SHARES.items():
        config = named(experiment, arm=f"{point}-gpt2")
        shown = changes or {name: getattr(config, name) for name in ("vocab_size", "mlp_ratio", "depth")}
        what = "the base: " * (not changes) + ", ".join(f"{name} {value:g}" for name, value in shown.items())
        rows[point] = {"changes": what} | _sizes(
            config.vocab_size, config.context, config.d_model, config.depth, config.num_heads, config.mlp_ratio
        )
    return pd.DataFrame.from_dict(rows, orient="index").sort_values("attention (%)")


def known_models() -> pd.DataFrame:
    """Attention's share in well-known shapes: GPT-2's (OpenAI's hyperparameters), ours, and vision transformers
    (timm's)."""
    rows = {}
    for name, d, depth, heads in (
        ("GPT-2 small", 768, 12, 12),
        ("GPT-2 medium", 1024, 24, 16),
        ("GPT-2 large", 1280, 36, 20),
        ("GPT-2 XL", 1600, 48, 25),
    ):
        rows[name] = _sizes(50_257, 1024, d, depth, heads, 4.0)
    for name, d, heads in (("ViT-Ti/16", 192, 3), ("ViT-S/16", 384, 6), ("ViT-B/16", 768, 12)):
        with shapes_only():
            rows[name] = _counted(ViT(ViTConfig(d_model=d, depth=12, num_heads=heads)))
    rows["our GPT, by character"] = _sizes(65, 128, 128, 4, 4, 4.0)
    return pd.DataFrame.from_dict(rows, orient="index").sort_values("attention (%)")


def _sizes(vocab_size: int, context: int, d_model: int, depth: int, num_heads: int, mlp_ratio: float) -> dict[str, Any]:
    with shapes_only():  # counted, not made
        return _counted(GPT(GPTConfig(vocab_size, context, d_model, depth, num_heads, mlp_ratio)))


def _counted(model) -> dict[str, Any]:
    counts = parameter_counts(model)
    attention = in_attention(counts)
    return {
        "attention (%)": round(100 * attention / counts["total"], 1),
        "parameters": millions(counts["total"]),
        "attention": millions(attention),
        "MLP": millions(counts["mlp"]),
        "embedding and head": millions(counts["embedding"] + counts["head"]),
    }
