"""mimetic's own models."""

from mimetic.adapters.views import ROPE, as_written, full_name, fused_out, gain, lineage, linear_in
from mimetic.attention import AttentionLayer


def self_attention(module, name, ancestors) -> AttentionLayer:
    (q, qb), (k, kb), (v, vb) = fused_out(module.qkv, module.num_heads, name)
    proj, pb = linear_in(module.proj, module.num_heads, name)
    block = ancestors[0][1] if ancestors else None
    known = (
        block is not None
        and as_written(block)
        and "mimetic.models.blocks.Block" in map(full_name, lineage(type(block)))
    )
    in_gain, known = gain(block.norm1 if block.norm_first else None, name, q.shape[0]) if known else (None, False)
    caveats = () if module.rotary is None else (ROPE,)
    return AttentionLayer(name, q, k, v, proj, qb, kb, vb, pb, in_gain=in_gain, gains_known=known, caveats=caveats)


READERS = {"mimetic.models.blocks.SelfAttention": self_attention}
