"""What one attention layer of transformers does besides softmax(x W_Q W_K^T x^T) x W_V W_proj, by its class, its flags
and its config: what a caveat can say, and what no product can."""

from __future__ import annotations

import math
import re

from torch import nn

from mimetic.adapters.transformers_classes import CLASSES
from mimetic.adapters.views import (
    BIAS_GATE,
    CLAMPED,
    GATE,
    INNER_NORM,
    OTHER_QUERIES,
    QK_NORM,
    ROPE,
    SINKS,
    UNSCALED,
    VALUE_NORM,
)
from mimetic.attention import UnsupportedAttention

QK_NORMS = re.compile(r"^(q|k|qk|query|key)_?(layer)?_?norm$|^(query|key)_layernorm$", re.IGNORECASE)


def refuse_unlike(module: nn.Module, short: str, name: str, ancestors) -> None:
    """UnsupportedAttention where this layer's place or config makes its forward another one than that of its class.

    Args:
        short: the class as the tables call it.
    """
    if getattr(module, "position_embeddings_type", None) == "rotary":  # Wav2Vec2Conformer and its copies
        raise UnsupportedAttention(
            f"{name}: RoPE rotates the tokens by position before W_Q and W_K: no product of the two is the layer's"
        )
    turned = getattr(module, "rotary_value", False)  # RoFormer
    if short == "clvp.ClvpSelfAttention" and ancestors and _is_a(ancestors[0][1], "ClvpEncoderLayer"):
        encoder = next((a for _, a in ancestors if _is_a(a, "ClvpEncoder")), None)
        turned = encoder is None or encoder.rotary_pos_emb is not None
    if turned:
        raise UnsupportedAttention(
            f"{name}: RoPE rotates the values, too, by position: no product W_V W_proj is the layer's"
        )
    if getattr(module, "use_fsmn", False):  # FunASR
        raise UnsupportedAttention(
            f"{name}: a memory block adds the values to the output past the output matrix: no product W_V W_proj is the"
            " layer's"
        )


def _is_a(module: nn.Module, name: str) -> bool:
    """Whether a module's class, or one that it derives from, is called so."""
    return any(base.__qualname__ == name for base in type(module).__mro__)


def caveats(module: nn.Module, short: str, K: int, kind: str) -> tuple[str, ...]:
    """The caveats of a layer with head size K: what its class is known for, and what its own attributes show."""
    flags = CLASSES.get(short, ("", ""))[1].split()
    norms = [n for n, child in module.named_children() if not isinstance(child, nn.Identity)]
    config = getattr(module, "config", None)
    found = {
        # Falcon has one or the other
        ROPE: (
            "rope" in flags
            and kind == "self"
            and getattr(module, "use_rope", True)
            and getattr(config, "alibi", False) is not True
        ),
        QK_NORM: "qk_norm" in flags or any(QK_NORMS.match(n) for n in norms),
        VALUE_NORM: "value_norm" in flags,
        INNER_NORM: "inner_norm" in flags,
        GATE: "gate" in flags,
        BIAS_GATE: "bias_gate" in flags,
        UNSCALED: "unscaled" in flags or abs(_scale(module, short, K) * K**0.5 - 1) > 1e-2,
        CLAMPED: "clamped" in flags and bool(getattr(module, "clip_qkv", getattr(config, "clip_qkv", None))),
        OTHER_QUERIES: bool(getattr(module, "use_entity_aware_attention", False)),
        SINKS: isinstance(getattr(module, "sinks", None), nn.Parameter),
    }
    return tuple(caveat for caveat, holds in found.items() if holds)


def _scale(module: nn.Module, short: str, K: int) -> float:
    """The factor on q k^T that the module says it has; 1/sqrt(K) where it says nothing."""
    for attribute in ("scaling", "softmax_scale"):
        value = getattr(module, attribute, None)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return value
    scale = 1.0 if getattr(module, "scale_attn_weights", True) is False else K**-0.5
    if short == "deberta_v2.DisentangledSelfAttention":  # the logits are a sum of up to three, scaled as one
        scale /= math.sqrt(1 + len({"c2p", "p2c"} & set(module.pos_att_type)))
    if getattr(module, "scale_attn_by_inverse_layer_idx", False):
        scale /= (module.layer_idx or 0) + 1
    return scale
