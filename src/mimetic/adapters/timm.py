"""timm's attention classes: ViT, DeiT, DINOv2/v3, SigLIP, EVA, BEiT, Swin, SAM,
Hiera, MaxViT and whatever else shares them.
"""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from mimetic.adapters.views import (
    GATE,
    INNER_NORM,
    OUT_NORM,
    QK_NORM,
    REDUCED,
    ROPE,
    UNSCALED,
    NotSelfAttention,
    as_written,
    both,
    dropout_caveats,
    full_name,
    fused_out,
    gain,
    lineage,
    linear_in,
    linear_out,
    passed_over,
    pooling,
    refuse,
    usable,
    weight,
)
from mimetic.attention import AttentionLayer, UnsupportedAttention

# Blocks that compute x + scale(attn(norm1(x))): (attribute of the attention, norm, scale). An attribute that holds
# nn.Identity or None counts as absent. In any other block fold=True is refused. Verified through the block's forward.
PRE_NORM_BLOCKS: dict[str, tuple[str, str, str | None]] = {
    "timm.models.vision_transformer.Block": ("attn", "norm1", "ls1"),
    "timm.models.eva.EvaBlock": ("attn", "norm1", "gamma_1"),
    "timm.models.beit.Block": ("attn", "norm1", "gamma_1"),
    "timm.models.swin_transformer.SwinTransformerBlock": ("attn", "norm1", None),
    "timm.models.vision_transformer_relpos.RelPosBlock": ("attn", "norm1", "ls1"),
    "timm.models.vision_transformer_sam.Block": ("attn", "norm1", "ls1"),
    "timm.models.hiera.HieraBlock": ("attn", "norm1", "ls1"),
    "timm.models.hieradet_sam2.MultiScaleBlock": ("attn", "norm1", "ls1"),
}
# A norm follows proj before the residual is added: its size does not matter then, and fold=True is refused.
OUT_NORM_BLOCKS = {
    "timm.models.swin_transformer_v2.SwinTransformerV2Block",
    "timm.models.swin_transformer_v2_cr.SwinTransformerV2CrBlock",
    "timm.models.vision_transformer.ResPostBlock",
    "timm.models.vision_transformer_relpos.ResPostRelPosBlock",
    "timm.models.eva.EvaBlockPostNorm",
    "timm.models.gemma4_vit.Gemma4Block",
}


# --- readers ----------------------------------------------------------------------------------------------------------


def fused(module, name, ancestors) -> AttentionLayer:
    """timm.layers.Attention and everything with the same qkv [3, head, K] and proj."""
    heads = getattr(module, "num_heads", None) or module.heads
    parts = fused_out(module.qkv, heads, name)
    # BEiT, EVA: q and v biases beside a bias-free qkv; k's is a zero buffer
    if getattr(module, "q_bias", None) is not None:
        qb, vb = (usable(b, name, "bias").view(heads, -1) for b in (module.q_bias, module.v_bias))
        parts = [(parts[0][0], qb), (parts[1][0], None), (parts[2][0], vb)]
    return _layer(module, name, ancestors, *parts)


def fused_or_separate(module, name, ancestors) -> AttentionLayer:
    """AttentionRope and EvaAttention: one qkv, or q_proj, k_proj (perhaps fewer heads) and v_proj."""
    if getattr(module, "qkv", None) is not None:
        return fused(module, name, ancestors)
    kv_heads = getattr(module, "num_kv_heads", module.num_heads)
    q = linear_out(module.q_proj, module.num_heads, name, "q_proj")
    k = linear_out(module.k_proj, kv_heads, name, "k_proj")
    v = linear_out(module.v_proj, kv_heads, name, "v_proj")
    return _layer(module, name, ancestors, q, k, v)


def per_head(module, name, ancestors) -> AttentionLayer:
    """qkv laid out [head, (q, k, v)], where values may be wider than keys (TinyViT, EfficientFormer, CoAtNet)."""
    heads = module.num_heads
    K = getattr(module, "key_dim", None) or module.dim_head
    V = getattr(module, "val_dim", K)
    parts = both(module.qkv, name, "qkv", lambda t: t.unflatten(-1, (heads, 2 * K + V)).split([K, K, V], dim=-1), 3)
    return _layer(module, name, ancestors, *parts)


def maxxvit(module, name, ancestors) -> AttentionLayer:
    return (per_head if module.head_first else fused)(module, name, ancestors)


def queries_keys_together(module, name, ancestors) -> AttentionLayer:
    """TNT: one matrix for q and k, one for v."""
    q, k = fused_out(module.qk, module.num_heads, name, "qk", parts=2)
    return _layer(module, name, ancestors, q, k, linear_out(module.v, module.num_heads, name, "v"))


def keys_values_together(module, name, ancestors) -> AttentionLayer:
    """PVT v2 and Twins: q beside kv, where keys and values are the tokens themselves."""
    if getattr(module, "sr", None) is not None or getattr(module, "pool", None) is not None:
        raise NotSelfAttention(REDUCED)
    k, v = fused_out(module.kv, module.num_heads, name, "kv", parts=2)
    return _layer(module, name, ancestors, linear_out(module.q, module.num_heads, name, "q"), k, v)


def not_pooled(module, name, ancestors) -> AttentionLayer:
    """Hiera and SAM 2: queries are max-pooled where the resolution drops."""
    if getattr(module, "q_stride", 1) > 1 or getattr(module, "q_pool", None) is not None:
        raise NotSelfAttention("its queries are max-pooled tokens: a query and its key are not the same token")
    return fused(module, name, ancestors)


def gcvit(module, name, ancestors) -> AttentionLayer:
    if module.use_global:
        raise NotSelfAttention("its queries come from global tokens, its keys from the window")
    return fused(module, name, ancestors)


def caveat(reader, *always):
    """A reader for a class whose products carry these caveats."""

    def read(module, name, ancestors):
        layer = reader(module, name, ancestors)
        return replace(layer, caveats=(*always, *(c for c in layer.caveats if c not in always)))

    return read


def heads_innermost(module, name, ancestors) -> AttentionLayer:
    """NesT: qkv as everywhere, but the heads' outputs meet proj laid out [K, head]."""
    layer = fused(module, name, ancestors)
    proj = weight(module.proj, name, "proj").unflatten(0, (-1, module.num_heads)).transpose(0, 1)
    return replace(layer, proj=proj)


def rope(reader):
    """A reader for a class that rotates its queries and keys where its model hands it a rotation."""

    def read(module, name, ancestors):
        layer = reader(module, name, ancestors)
        owners = [a for _, a in ancestors if hasattr(a, "rope")] + ([module] if hasattr(module, "rope") else [])
        if ancestors and owners and all(a.rope is None for a in owners):
            return layer
        return replace(layer, caveats=(ROPE, *layer.caveats))

    return read


# --- the rest of the layer --------------------------------------------------------------------------------------------


def _layer(module, name, ancestors, q, k, v) -> AttentionLayer:
    proj, pb = linear_in(module.proj, q[0].shape[1], name)
    if proj.shape[2] != q[0].shape[0]:
        raise NotSelfAttention(
            f"it changes the width from {q[0].shape[0]} to {proj.shape[2]}: its products have no diagonal"
        )
    if proj.shape[1] != v[0].shape[2]:
        raise UnsupportedAttention(f"{name}: values of size {v[0].shape[2]} meet an output matrix for {proj.shape[1]}")
    caveats = [*dropout_caveats(module, ("attn_drop", "proj_drop"), name)]
    scale = getattr(module, "scale", None)
    if not getattr(module, "fused_attn", False) and isinstance(scale, (int, float)):  # fused, timm leaves it unread
        caveats += [UNSCALED] * (abs(scale * q[0].shape[2] ** 0.5 - 1) > 1e-2)
    if any(_is_norm(module, a) for a in ("q_norm", "k_norm")):
        caveats.append(QK_NORM)
    if getattr(module, "gate", None) is not None:
        caveats.append(GATE)
    pre_norm = None  # TinyViT normalises inside the layer, before qkv; everyone else's inner norm follows the heads
    if _is_norm(module, "norm"):
        if hasattr(module, "key_dim"):
            pre_norm = module.norm
        else:
            caveats.append(INNER_NORM)
    if pre_norm is not None:
        (in_gain, known), out_gain = gain(pre_norm, name, q[0].shape[0]), None
    else:
        in_gain, out_gain, known, post = _block_gains(ancestors, name, q[0].shape[0])
        caveats += [OUT_NORM] * post
    around = dropout_caveats(ancestors[0][1], ("drop_path", "drop_path1"), name) if ancestors else ()
    if around and pre_norm is None:  # what follows proj is not known
        in_gain, out_gain, known = None, None, False
    caveats += [caveat for caveat in around if caveat not in caveats]
    return AttentionLayer(
        name, q[0], k[0], v[0], proj, q[1], k[1], v[1], pb,
        in_gain=in_gain, out_gain=out_gain, gains_known=known, caveats=tuple(caveats),
    )  # fmt: skip


def _is_norm(module, attribute) -> bool:
    return not isinstance(getattr(module, attribute, None) or nn.Identity(), nn.Identity)


def _block_gains(ancestors, name, width):
    """(in_gain, out_gain, known, whether a norm follows proj)."""
    if not ancestors:  # the bare layer: what stands around it in its model is not known
        return None, None, False, False
    path, block = ancestors[0]
    keys = [full_name(base) for base in lineage(type(block))]
    if OUT_NORM_BLOCKS.intersection(keys):
        return None, None, False, True
    attribute, norm, scale = next((PRE_NORM_BLOCKS[key] for key in keys if key in PRE_NORM_BLOCKS), ("", "", None))
    if path != attribute or not as_written(block):
        return None, None, False, False
    in_gain, norm_known = gain(getattr(block, norm), name, width)
    out_gain, scale_known = gain(getattr(block, scale, None) if scale else None, name, width)
    return (in_gain, out_gain, True, False) if norm_known and scale_known else (None, None, False, False)


_READERS = (
    (fused, """
    layers.attention.Attention models.beit.Attention models.convit.MHSA models.davit.WindowAttention
    models.fastvit.Attention models.metaformer.Attention models.swin_transformer.WindowAttention
    models.twins.LocallyGroupedAttn models.vision_transformer_relpos.RelPosAttention models.visformer.Attention
    models.volo.Attention
    """),
    (rope(fused), "models.vision_transformer_sam.Attention"),
    (caveat(fused, QK_NORM), """
    models.swin_transformer_v2.WindowAttention models.swin_transformer_v2_cr.WindowMultiHeadAttention
    """),
    (rope(fused_or_separate), "layers.attention.AttentionRope models.eva.EvaAttention"),
    (per_head, "models.efficientformer.Attention models.tiny_vit.Attention"),
    (maxxvit, "layers.attention2d.Attention2d models.maxxvit.Attention2d models.maxxvit.AttentionCl"),
    (queries_keys_together, "models.tnt.Attention"),
    (keys_values_together, "models.pvt_v2.Attention models.twins.GlobalSubSampleAttn"),
    (not_pooled, "models.hiera.MaskUnitAttention models.hieradet_sam2.MultiScaleAttention"),
    (gcvit, "models.gcvit.WindowAttentionGlobal"),
    (heads_innermost, "models.nest.Attention"),
    (pooling, """
    layers.attention_pool.AttentionPoolLatent layers.attention_pool.AttentionPoolPrr
    layers.attention_pool2d.AttentionPool2d layers.attention_pool2d.RotAttentionPool2d
    """),
    (passed_over("only the class token asks: attention of one token over all others"), """
    models.cait.ClassAttn models.crossvit.CrossAttention models.volo.ClassAttention
    """),
    (passed_over("it weighs channels or branches, not tokens"), """
    layers.selective_kernel.SelectiveKernelAttn layers.split_attn.SplitAttn
    """),
    (passed_over("it mixes states that all tokens share: there is no q k^T"), "models.efficientvim.HSMSSD"),
    (refuse("differential attention: each head subtracts two attention maps"), "layers.diff_attention.DiffAttention"),
    (refuse("differential attention: each head subtracts two maps"),
     "models.vision_transformer.DiffParallelScalingBlock"),
    (refuse("one matrix holds q, k, v and the MLP's input together"), "models.vision_transformer.ParallelScalingBlock"),
    (refuse("talking heads: the heads' logits and weights are mixed by learned matrices"),
     "models.cait.TalkingHeadAttn"),
    (refuse("factorised attention: softmax over keys, then (k^T v), not over q k^T"),
     "models.coat.FactorAttnConvRelPosEnc"),
    (refuse("gated positional attention: a learned gate mixes the map of q k^T with one made of positions alone"),
     "models.convit.GPSA"),
    (refuse("channel attention: it mixes channels, not tokens"),
     "models.davit.ChannelAttention models.davit.ChannelAttentionV2"),
    (refuse("cross-covariance attention: it mixes channels, not tokens"),
     "models.edgenext.CrossCovarianceAttn models.xcit.XCA"),
    (refuse("a sigmoid follows v and batch norm q, k, v and proj: the matrices are not the layer's own"),
     "models.iformer.SHMA"),
    (refuse("batch norm follows q, k, v and proj, and only some of the channels are attended to"), "models.shvit.SHSA"),
    (refuse("batch norm follows q, k, v and proj (LinearNorm): the matrices are not the layer's own"),
     "models.levit.Attention"),
    (refuse("queries are subsampled and batch norm follows q, k, v and proj"), "models.levit.AttentionDownsample"),
    (refuse("linear attention: one context vector, no q k^T"), "models.mobilevit.LinearSelfAttention"),
    (refuse("q, k and v are pooled by convolutions after their matrices"), "models.mvitv2.MultiScaleAttention"),
    (refuse("q, k and v are made from pooled tokens"), "models.mvitv2.MultiScaleAttentionPoolFirst"),
    (refuse("outlook attention: weights come from one matrix, there is no q k^T"), "models.volo.OutlookAttention"),
)  # fmt: skip
READERS = {f"timm.{name}": reader for reader, names in _READERS for name in names.split()}
