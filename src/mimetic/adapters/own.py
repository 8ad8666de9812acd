"""mimetic's own models."""

from mimetic.adapters.views import fused_out, gain, linear_in
from mimetic.attention import AttentionLayer


def self_attention(module, name, ancestors) -> AttentionLayer:
    (q, qb), (k, kb), (v, vb) = fused_out(module.qkv, module.num_heads, name)
    proj, pb = linear_in(module.proj, module.num_heads, name)
    block = ancestors[0][1] if ancestors else None
    pre = getattr(block, "norm1", None) if getattr(block, "norm_first", True) else None
    return AttentionLayer(name, q, k, v, proj, qb, kb, vb, pb, in_gain=gain(pre, name))


READERS = {"mimetic.models.blocks.SelfAttention": self_attention}
