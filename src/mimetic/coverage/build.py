"""Building one architecture small: what a plan is, weights that hide nothing, an attention module called on its own."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from mimetic.adapters import find_reader
from mimetic.attention import AttentionLayer

MAX_PARAMETERS = 150_000_000


class NotBuilt(Exception):
    """The architecture could not be built small, or not run."""


class TimeUp(Exception):
    """The time for one architecture is up."""


@dataclass(frozen=True)
class Plan:
    """How to build one architecture small."""

    model: str  # its name in the library
    outline: nn.Module  # the same model without weights (on the meta device), or with them where that cannot be
    make: Callable[[], nn.Module]


def may_have_attention(outline: nn.Module) -> bool:
    """Whether any module is of an attention class that is known; if not, the outline already tells why."""
    return any(find_reader(type(module)) is not None for module in outline.modules())


def short_error(e: Exception | None) -> str:
    text = " ".join(f"{type(e).__name__}: {e}".split())
    text = re.sub(r" from '/[^']*'?", "", text)  # where this machine keeps its packages is nobody's business
    return text[:140]


def attention_calls(layer: AttentionLayer, module: nn.Module, block: nn.Module | None = None):
    """Ways to call an attention module on its own, where the whole model wants inputs that
    cannot be guessed; block is what holds it.
    """
    D, K, kv_width = layer.d_model, layer.head_dim, layer.v.shape[0]
    g = torch.Generator().manual_seed(0)

    def tokens(*shape):
        return torch.randn(*shape, generator=g).to(layer.q.dtype)

    names = inspect.signature(module.forward).parameters
    rotate = getattr(module, "rotary_ndims", None) or K
    for shape in ((2, 16), (16,), (2, 4, 4)):
        x, kv = tokens(*shape, D), tokens(*shape[:-1], 12 if len(shape) < 3 else 4, kv_width)
        n = 16
        pairs = [(shape, True) for shape in ((1, n, rotate), (n, rotate), (n, rotate // 2))]
        # CLVP takes the angles themselves, and places to read them at, in those of its blocks that are given angles
        asked = block is not None and "rotary_pos_emb" in inspect.signature(block.forward).parameters
        bare = [((1, n, rotate), False)] * ("rotary_pos_emb" in names and asked)
        for angle_shape, pair in (*pairs, *bare, (None, True)):
            kwargs = {}
            for name, p in names.items():
                required = p.default is inspect.Parameter.empty
                if name in ("position_embeddings", "rotary_pos_emb", "position_embedding") and angle_shape:
                    # one angle a position for all dimensions: a rotation in the half-split and in the interleaved
                    # layout
                    angles = torch.arange(n).view(n, 1).expand(angle_shape).float() / 3
                    kwargs[name] = (angles.cos(), angles.sin()) if pair else angles
                elif name in ("cu_seqlens", "cu_seq_lens"):
                    kwargs[name] = torch.tensor([0, n], dtype=torch.int32)
                elif name == "max_seqlen":
                    kwargs[name] = n
                elif name in ("encoder_hidden_states", "key_value_states", "cross_attention_states"):
                    if layer.kind == "cross":
                        kwargs[name] = kv
                elif name in ("query", "queries"):
                    kwargs[name] = x
                elif name in ("key", "value", "keys", "values"):
                    kwargs[name] = kv if layer.kind == "cross" else x
                elif required and name == "attention_mask":
                    kwargs[name] = None
                elif name == "position_ids" and (required or not pair):
                    kwargs[name] = torch.arange(n)[None]
            args = () if "query" in kwargs or "queries" in kwargs else (x,)
            yield lambda _, args=args, kwargs=kwargs: module(*args, **kwargs)


@torch.no_grad()
def make_generic(model: nn.Module) -> None:
    """Random gains, and random numbers in place of all-zero matrices, so that nothing is verified by being 1 or 0."""
    g = torch.Generator().manual_seed(0)
    gains = re.compile(r"gamma|lambda|layer_?scale|(^|\.)ls\d")
    for module in model.modules():
        norm = "norm" in type(module).__name__.lower()
        for name, p in module.named_parameters(recurse=False):
            if not p.is_floating_point():
                continue
            if p.ndim == 1 and (norm or gains.search(name) or gains.search(type(module).__name__.lower())):
                p.copy_(0.5 + torch.rand(p.shape, generator=g))
            elif p.ndim >= 2 and p.numel() and float(p.abs().max()) < 1e-4:
                p.copy_(0.05 * torch.randn(p.shape, generator=g))
