"""timm's attention classes: ViT, DeiT, DINOv2, SigLIP, EVA, BEiT, Swin and whatever else shares them."""

from torch import nn

from mimetic.adapters import GATE, INNER_NORM, QK_NORM, ROPE, NotSelfAttention, fused_out, gain, linear_in, linear_out, usable
from mimetic.attention import AttentionLayer

# Blocks that compute x + scale(attn(norm1(x))): the gain and the LayerScale that belong to the product. In any other
# block fold=True is refused. An attribute that holds nn.Identity or None counts as absent.
PRE_NORM_BLOCKS = {
    "timm.models.vision_transformer.Block": ("norm1", "ls1"),
    "timm.models.eva.EvaBlock": ("norm1", "gamma_1"),
    "timm.models.beit.Block": ("norm1", "gamma_1"),
    "timm.models.deit.Block": ("norm1", "ls1"),
    "timm.models.swin_transformer.SwinTransformerBlock": ("norm1", None),
}


def fused(module, name, ancestors) -> AttentionLayer:
    """timm.layers.Attention and everything with the same qkv [3, head, K] and proj."""
    heads = module.num_heads
    (q, qb), (k, kb), (v, vb) = fused_out(module.qkv, heads, name)
    if getattr(module, "q_bias", None) is not None:  # BEiT, EVA: q and v biases beside a bias-free qkv; k's is a zero buffer
        qb, vb = (usable(b, name, "bias").view(heads, -1) for b in (module.q_bias, module.v_bias))
    return _layer(module, name, ancestors, q, k, v, qb, kb, vb)


def fused_or_separate(module, name, ancestors) -> AttentionLayer:
    """AttentionRope and EvaAttention: one qkv, or q_proj, k_proj (perhaps fewer heads) and v_proj."""
    if module.qkv is not None:
        return fused(module, name, ancestors)
    kv_heads = getattr(module, "num_kv_heads", module.num_heads)
    q, qb = linear_out(module.q_proj, module.num_heads, name, "q_proj")
    k, kb = linear_out(module.k_proj, kv_heads, name, "k_proj")
    v, vb = linear_out(module.v_proj, kv_heads, name, "v_proj")
    return _layer(module, name, ancestors, q, k, v, qb, kb, vb)


def rope(reader):
    """A reader for a class that rotates its queries and keys."""

    def read(module, name, ancestors):
        layer = reader(module, name, ancestors)
        object.__setattr__(layer, "caveats", (ROPE, *layer.caveats))
        return layer

    return read


def pooling(module, name, ancestors):
    raise NotSelfAttention(f"{type(module).__name__} pools with a learned query: its keys and queries are different tokens")


def _layer(module, name, ancestors, q, k, v, qb, kb, vb) -> AttentionLayer:
    proj, pb = linear_in(module.proj, module.num_heads, name)
    caveats = []
    if not isinstance(getattr(module, "q_norm", nn.Identity()), nn.Identity):
        caveats.append(QK_NORM)
    if not isinstance(getattr(module, "norm", nn.Identity()), nn.Identity):
        caveats.append(INNER_NORM)
    if getattr(module, "gate", None) is not None:
        caveats.append(GATE)
    in_gain, out_gain, known = _block_gains(ancestors, name)
    return AttentionLayer(
        name, q, k, v, proj, qb, kb, vb, pb, in_gain=in_gain, out_gain=out_gain, gains_known=known, caveats=tuple(caveats)
    )


def _block_gains(ancestors, name):
    if not ancestors:  # the bare layer: nothing around it to fold
        return None, None, True
    block = ancestors[0][1]
    attributes = PRE_NORM_BLOCKS.get(f"{type(block).__module__}.{type(block).__qualname__}")
    if attributes is None:
        return None, None, False
    scale = getattr(block, attributes[1], None) if attributes[1] else None
    if isinstance(scale, nn.Module):  # LayerScale keeps its vector in .gamma
        scale = getattr(scale, "gamma", None)
    return gain(getattr(block, attributes[0]), name), None if scale is None else usable(scale, name, "LayerScale"), True


READERS = {
    "timm.layers.attention.Attention": fused,
    "timm.layers.attention.AttentionRope": rope(fused_or_separate),
    "timm.models.eva.EvaAttention": rope(fused_or_separate),
    "timm.models.beit.Attention": fused,
    "timm.models.swin_transformer.WindowAttention": fused,
    "timm.models.vision_transformer_relpos.RelPosAttention": fused,
    "timm.layers.attention_pool.AttentionPoolLatent": pooling,
}
