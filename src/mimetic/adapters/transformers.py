"""Hugging Face transformers: one reader a layout, and tables of the classes whose products were verified.

The layouts:
    separate     q_proj, k_proj, v_proj, o_proj under their many names (Llama, CLIP, T5, DistilBERT, OPT, ...); k and v
                 may have fewer heads
    sibling      query, key, value, and the output matrix in a module beside them (BERT: output.dense)
    parts        one matrix [q | k | v], each [head, K] (GPT-2's c_attn is a Conv1D and so already (in, out); Phi-3
                 groups)
    interleaved  one matrix [head, (q, k, v), K] (GPT-NeoX, BLOOM)
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from mimetic.adapters.transformers_caveats import caveats, refuse_unlike
from mimetic.adapters.transformers_classes import BLOCKS, CLASSES, ONE_PLUS_GAIN, POOLED, POOLING, SANDWICH_BLOCKS
from mimetic.adapters.views import (
    CROSS,
    HOOKED,
    OUT_NORM,
    REDUCED,
    NotSelfAttention,
    as_written,
    both,
    dropout_caveats,
    forward_of,
    gain,
    hooked,
    library,
    lineage,
    linear_in,
    linear_out,
    passed_over,
    pooling,
    replaced_forward,
    unwrapped,
    weight,
)
from mimetic.attention import AttentionLayer, UnsupportedAttention

PROJECTIONS = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("q", "k", "v"),
    ("q_lin", "k_lin", "v_lin"),
    ("query_proj", "key_proj", "value_proj"),
    ("linear_q", "linear_k", "linear_v"),
    ("Wq", "Wk", "Wv"),
    ("project_q", "project_k", "project_v"),
)
FUSED = ("qkv", "query_key_value", "c_attn", "qkv_proj", "Wqkv", "att_proj", "in_proj")
OUTPUTS = (
    "o_proj", "out_proj", "proj", "projection", "projection_layer", "dense", "c_proj", "o", "out_lin", "Wo", "output",
    "linear_out", "attention_out", "attn_out", "wo",
)  # fmt: skip
SIBLINGS = ("output.dense", "output", "attention_output.dense", "dense", "out_proj")
HEAD_DIMS = ("head_dim", "attention_head_size", "key_value_proj_dim", "head_size", "dim_head", "dim_per_head")
HEAD_COUNTS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads", "num_attn_heads")
DROPOUTS = (
    "dropout", "attn_dropout", "attention_dropout", "attn_drop", "resid_dropout", "projection_dropout", "proj_drop",
    "output_dropout", "out_drop",
)  # fmt: skip
REDUCTIONS = ("sr_ratio", "sequence_reduction_ratio", "sequences_reduction_ratio", "spatial_reduction_ratio")


# --- readers ----------------------------------------------------------------------------------------------------------


def separate(module, name, ancestors) -> AttentionLayer:
    """Three matrices and an output matrix in one module."""
    names = _projections(module, name)
    K = _head_dim(module, name)
    return _layer(module, name, ancestors, *_three(module, names, K, name), _output(module), K)


def sibling(module, name, ancestors) -> AttentionLayer:
    """Three matrices here, the output matrix in a module beside this one (BERT and its many copies)."""
    names = _projections(module, name)
    K = _head_dim(module, name)
    out, around = _sibling_output(ancestors, name)
    layer = _layer(module, name, ancestors, *_three(module, names, K, name), out, K)
    return replace(layer, caveats=tuple(dict.fromkeys((*layer.caveats, *around))))


def parts(module, name, ancestors) -> AttentionLayer:
    """One matrix [q | k | v] or, in grouped-query attention, [all q heads | k heads | v heads]."""
    fused = _fused(module)
    if getattr(module, "is_cross_attention", False) and hasattr(module, "q_attn"):
        return _queries_apart(module, name, ancestors)
    if getattr(module, "multi_query", None) is False:  # GPT-BigCode with as many key heads as query heads
        return interleaved(module, name, ancestors)
    K, outputs = _fused_head_dim(module, fused, name), weight(fused, name, "qkv").shape[1]
    proj = _output(module)
    H = weight(proj, name, "proj").shape[0] // K
    G, rest = divmod(outputs // K - H, 2)
    if outputs % K or rest or G < 1:
        raise UnsupportedAttention(
            f"{name}: {outputs} outputs are not {H} query heads of {K} and as many keys as values"
        )
    q, k, v = both(fused, name, "qkv", lambda t: t.unflatten(-1, (-1, K)).split([H, G, G], dim=-2), 3)
    return _layer(module, name, ancestors, q, k, v, proj, K)


def _queries_apart(module, name, ancestors) -> AttentionLayer:
    """GPT-2's cross-attention: q_attn for queries, c_attn [k | v] for keys and values."""
    # GPT-BigCode splits c_attn's output into two single heads, which fits no model of several
    if hasattr(module, "multi_query"):
        raise UnsupportedAttention(
            f"{name}: the cross-attention of {type(module).__name__} does not fit its own weights"
        )
    K = _head_dim(module, name)
    (q,) = _three(module, ("q_attn",), K, name)
    k, v = both(module.c_attn, name, "c_attn", lambda t: t.unflatten(-1, (2, -1, K)).unbind(-3), 2)
    return _layer(module, name, ancestors, q, k, v, _output(module), K)


def interleaved(module, name, ancestors) -> AttentionLayer:
    """One matrix laid out [head, (q, k, v), K]."""
    fused = _fused(module)
    if getattr(module, "new_decoder_architecture", False) or getattr(module, "multi_query", False):
        return _falcon(module, name, ancestors)
    K, outputs = _fused_head_dim(module, fused, name), weight(fused, name, "qkv").shape[1]
    if outputs % (3 * K):
        raise UnsupportedAttention(f"{name}: {outputs} outputs do not divide into 3 x heads of {K}")
    q, k, v = both(fused, name, "qkv", lambda t: t.unflatten(-1, (-1, 3, K)).unbind(-2), 3)
    return _layer(module, name, ancestors, q, k, v, _output(module), K)


def _falcon(module, name, ancestors) -> AttentionLayer:
    """Falcon's grouped forms: [group, (its query heads, k, v), K], with one group in the multi-query form."""
    K, H, G = _head_dim(module, name), module.num_heads, module.num_kv_heads
    if G > 1 and G != H:
        # a group's query heads lie next to its key: their stride over heads is not constant, so no view can show them
        raise UnsupportedAttention(
            f"{name}: query heads are stored group by group between keys and values; no view shows them"
        )

    def view(t: Tensor) -> list[Tensor]:
        t = t.unflatten(-1, (G, H // G + 2, K))
        return [t[..., 0, :H, :] if G == 1 else t[..., 0, :], t[..., -2, :], t[..., -1, :]]

    return _layer(module, name, ancestors, *both(_fused(module), name, "qkv", view, 3), _output(module), K)


pooled = passed_over("its queries and keys are pooled in different ways: a query and its key are not the same token")


READERS_BY_LAYOUT = {"separate": separate, "sibling": sibling, "parts": parts, "interleaved": interleaved}


# --- the pieces -------------------------------------------------------------------------------------------------------


def _projections(module, name) -> tuple[str, str, str]:
    found = next((n for n in PROJECTIONS if all(isinstance(getattr(module, a, None), nn.Module) for a in n)), None)
    if found is None:
        raise UnsupportedAttention(
            f"{name}: this {type(module).__name__} lacks one of its query, key and value projections (keys that are"
            " values, say)"
        )
    return found


def _three(module, names, K, name):
    out = []
    for attribute in names:
        lin = getattr(module, attribute)
        outputs = weight(lin, name, attribute).shape[1]
        if outputs % K:
            raise UnsupportedAttention(f"{name}: {outputs} outputs do not divide into heads of {K}")
        out.append(linear_out(lin, outputs // K, name, attribute))
    return out


def _fused(module) -> nn.Module:
    return next(getattr(module, a) for a in FUSED if isinstance(getattr(module, a, None), nn.Module))


def _output(module) -> nn.Module:
    return next(getattr(module, a) for a in OUTPUTS if isinstance(getattr(module, a, None), nn.Module))


def _sibling_output(ancestors, name) -> tuple[nn.Module, tuple[str, ...]]:
    """The module of the output matrix, and the caveats of what is around it: hooks, what is in the place of its
    dropout."""
    for _, parent in ancestors[:1]:
        for path in SIBLINGS:
            chain = [parent]
            for attribute in path.split("."):
                chain.append(getattr(chain[-1], attribute, None))
            found = chain[-1]
            if not isinstance(found, nn.Module) or (
                path == "output" and "weight" not in getattr(found, "_orig_mod", found)._parameters
            ):
                continue
            # in a block of one's own anything may be called "output", and a replaced part may do anything
            for around in map(unwrapped, chain[:-1]):
                if library(forward_of(type(around))) != "transformers" or replaced_forward(around):
                    raise UnsupportedAttention(
                        f"{name}: the output matrix lies in a module beside this one, and {type(around).__name__},"
                        " which uses it, is none of transformers' own (or its forward was replaced): what it does with"
                        " the matrix is not known"
                    )
            around = [HOOKED] * any(hooked(m) or hooked(unwrapped(m)) for m in chain[1:-1])
            dropouts = [dropout_caveats(unwrapped(m), ("dropout",), name) for m in chain[1:-1]]
            return found, tuple(dict.fromkeys((*around, *(caveat for found in dropouts for caveat in found))))
    raise UnsupportedAttention(
        f"{name}: the output matrix lies in a module beside this one; pass the block, not the bare layer"
    )


def _sizes(module, names) -> list[int]:
    """Those of a module's attributes that are sizes, in this order."""
    return [v for v in (getattr(module, name, None) for name in names) if isinstance(v, int) and v > 0]


def _head_dim(module, name) -> int:
    if found := _sizes(module, HEAD_DIMS):
        return found[0]
    width = next((w for a in ("embed_dim", "hidden_size", "dim") if (w := getattr(module, a, None))), None)
    for heads in _sizes(module, HEAD_COUNTS):
        if isinstance(width, int) and width % heads == 0:
            return width // heads
    raise UnsupportedAttention(f"{name}: {type(module).__name__} does not say its head size")


def _fused_head_dim(module, fused, name) -> int:
    """The head size, from the number of heads where the class keeps only that (q, k and v of equal size)."""
    try:
        return _head_dim(module, name)
    except UnsupportedAttention:
        heads, outputs = _sizes(module, HEAD_COUNTS), weight(fused, name, "qkv").shape[1]
        if not heads or outputs % (3 * heads[0]):
            raise
        return outputs // (3 * heads[0])


def _layer(module, name, ancestors, q, k, v, out, K) -> AttentionLayer:
    if any(getattr(module, a, 1) > 1 for a in REDUCTIONS) or getattr(module, "linear_attention", False):
        raise NotSelfAttention(REDUCED)
    short = next((short for short in map(_short, lineage(type(module))) if short in CLASSES), _short(type(module)))
    refuse_unlike(module, short, name, ancestors)
    H = q[0].shape[1]
    proj, proj_bias = linear_in(out, H, name)
    if H % k[0].shape[1] or k[0].shape[1] != v[0].shape[1]:
        raise UnsupportedAttention(
            f"{name}: {H} query, {k[0].shape[1]} key and {v[0].shape[1]} value heads do not group"
        )
    if proj.shape[1] != v[0].shape[2]:
        raise UnsupportedAttention(f"{name}: values of size {v[0].shape[2]} meet an output matrix for {proj.shape[1]}")
    kind = _kind(module, ancestors)
    in_gain, out_gain, known, around = _block_gains(ancestors, name, kind, q[0].shape[0], proj)
    return AttentionLayer(
        name, q[0], k[0], v[0], proj, q[1], k[1], v[1], proj_bias,
        in_gain=in_gain, out_gain=out_gain, gains_known=known, kind=kind,
        caveats=(
            *caveats(module, short, K, kind), *dropout_caveats(module, DROPOUTS, name), *around,
        ),
    )  # fmt: skip


def _kind(module, ancestors) -> str:
    if getattr(module, "is_cross_attention", None) is True:
        return "cross"
    paths = [path.split(".")[0] for path, _ in ancestors[:2]]
    within = bool(ancestors) and type(ancestors[0][1]).__name__.endswith(("CrossAttentionLayer", "CrossAttentionBlock"))
    return "cross" if within or any(map(CROSS.search, [type(module).__name__, *paths])) else "self"


def _block_gains(ancestors, name, kind, width, proj) -> tuple[Tensor | None, Tensor | None, bool, tuple[str, ...]]:
    """(in_gain, out_gain, known, caveats of what follows proj) from the nearest block that the tables know."""
    for path, block in ancestors[:3]:
        shorts = list(map(_short, lineage(type(block))))
        if SANDWICH_BLOCKS.intersection(shorts):
            return None, None, False, (OUT_NORM,)
        entry = next((entry for short in shorts if (entry := BLOCKS.get(f"{short}:{path.split('.')[0]}"))), None)
        if entry is None:
            continue
        # queries are normalised here, keys and values by the encoder's last norm
        around = dropout_caveats(block, ("dropout", "drop_path", "resid_dropout"), name)
        if kind == "cross" or not as_written(block) or around:
            return None, None, False, around
        order, norm, scale = entry
        if order == "config":  # OPT, XGLM and their kin decide by a flag
            order = "pre" if getattr(block, "do_layer_norm_before", True) else "post"
        if order == "post":
            return None, None, True, ()
        if norm and not hasattr(block, norm):  # a variant of the block with other norms (Falcon's new decoder)
            return None, None, False, ()
        norm = getattr(block, norm) if norm else None  # OLMo's has no gain
        in_gain, norm_known = gain(norm, name, width)
        if in_gain is not None and ONE_PLUS_GAIN.intersection(map(_short, lineage(type(norm)))):
            in_gain = 1 + in_gain
        scale, scale_known = gain(getattr(block, scale, None) if scale else None, name, proj.shape[2])
        if not (norm_known and scale_known):
            return None, None, False, ()
        constant = getattr(block, "residual_multiplier", 1)  # Granite
        if constant != 1:
            scale = constant * (torch.ones(proj.shape[2]).to(proj) if scale is None else scale)
        return in_gain, scale, True, ()
    return None, None, False, ()


def _short(cls: type) -> str:
    """The name that the tables use: "bert.BertSelfAttention" for
    transformers.models.bert.modeling_bert.BertSelfAttention.
    """
    path = cls.__module__.removeprefix("transformers.models.")
    if path == cls.__module__:
        return f"{path}.{cls.__qualname__}"
    folder, _, file = path.partition(".")
    return f"{folder}.{cls.__qualname__}" if file == f"modeling_{folder}" else f"{path}.{cls.__qualname__}"


def _full(short: str) -> str:
    path, _, cls = short.rpartition(".")
    return f"transformers.models.{path if '.' in path else f'{path}.modeling_{path}'}.{cls}"


READERS = {_full(short): READERS_BY_LAYOUT[layout] for short, (layout, *_) in CLASSES.items()}
READERS |= {_full(short): pooling for short in POOLING} | {_full(short): pooled for short in POOLED}
