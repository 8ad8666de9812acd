"""torch.nn.MultiheadAttention, packed and separate in_proj, and so torchvision's ViT and nn.Transformer."""

import re
from collections.abc import Iterator
from itertools import islice

from torch import nn

from mimetic.adapters.calls import UNSAID, made_by, tokens_of_call
from mimetic.adapters.code import reads
from mimetic.adapters.views import (
    CROSS,
    as_written,
    dropout_caveats,
    full_name,
    gain,
    is_matrix,
    lineage,
    linear_in,
    matrix,
    own_parameter,
    pooling,
    replaced_forward,
    split_out,
    unwrapped,
)
from mimetic.attention import AttentionLayer, UnsupportedAttention

POOLING = re.compile(
    r"(?<!mean)(?<!avg)(?<!average)(?<!max)(?<!mean_)(?<!avg_)(?<!max_)pool|probe|(^| )mab|resampler", re.IGNORECASE
)
SELF = re.compile(r"^(self|slf)_?att|^sa(_|$)", re.IGNORECASE)
OTHER_TOKENS = (
    "its block calls it with different expressions for queries and for keys, and whether these are the same tokens is"
    " not seen: it is taken for self-attention (if it is none, call it cross_attn, or register_adapter the class around"
    " it with None)"
)
ZERO = "add_zero_attn adds one token of zeros to keys and values: W_V W_proj acts with the attention that it leaves"
CONTAINERS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)  # a layer in one of them is called like the container


def multihead_attention(module, name, ancestors) -> AttentionLayer:
    """W_Q, W_K, W_V are (out, in) rows of in_proj_weight, or q/k/v_proj_weight where key or value widths differ."""
    d, heads = module.embed_dim, module.num_heads
    for block in (type(unwrapped(a)) for _, a in ancestors[:2]):
        if reads(block, "in_proj_weight"):
            raise UnsupportedAttention(
                f"{name}: {block.__name__}, which holds it, uses its in_proj_weight itself, so which rows are"
                " queries, keys and values is not known: register_adapter that class"
            )
    for place, block in islice(_callers(ancestors), 1):
        _check_not_made_before(block, place.split(".")[0], name)
    # looked for among the parameters: to ask a parametrised one would compute it anew
    if "in_proj_weight" not in module._parameters or module.in_proj_weight is not None:
        packed = matrix(own_parameter(module, "in_proj_weight", name, "q"), name, "in_proj_weight")
        ws = packed.unflatten(0, (3, d)).unbind(0)
    else:
        separate = {part: f"{part}_proj_weight" for part in "qkv"}
        ws = [matrix(own_parameter(module, w, name, part), name, w) for part, w in separate.items()]
    q, k, v = (split_out(w.mT, heads, name) for w in ws)
    bs = (None,) * 3
    if "in_proj_bias" not in module._parameters or module.in_proj_bias is not None:
        bs = own_parameter(module, "in_proj_bias", name, "q_bias").view(3, heads, -1).unbind(0)
    proj, pb = linear_in(module.out_proj, heads, name, "out_proj")
    path, parent = ancestors[0] if ancestors else ("", None)
    kind, said = _kind(ancestors)
    if k.shape[0] != d or v.shape[0] != d:  # kdim, vdim: keys or values of another width are other tokens
        kind = "cross"
    # behind attention: dropout1 in torch's encoder and decoder, else dropout, as in torchvision
    known_names = path in ("self_attn", "self_attention")
    dropouts = ("dropout1" if hasattr(parent, "dropout1") else "dropout",) if known_names else ()
    caveats = [*dropout_caveats(parent, dropouts, name)]
    in_gain, known = (None, False) if caveats else _pre_norm(path, parent, name, d)
    if kind == "self" and not said:
        caveats.append(OTHER_TOKENS)
    if module.bias_k is not None:
        caveats.append("bias_k and bias_v add one learned token to keys and values, which is left as it is")
    if module.add_zero_attn:
        caveats.append(ZERO)
    return AttentionLayer(
        name, q, k, v, proj, *bs, pb, in_gain=in_gain, gains_known=known, kind=kind, caveats=tuple(caveats)
    )


def _check_not_made_before(block: nn.Module, attribute: str, name: str) -> None:
    """UnsupportedAttention if a block makes queries and keys with matrices of its own before it calls the layer."""
    made = sorted(made_by(type(block), attribute))
    parts = [getattr(block, part, None) for part in made]
    parts = [m for part in parts for m in (part if isinstance(part, nn.ModuleList) else [part])]
    if made and all(isinstance(m, nn.Module) and _is_projection(m) for m in parts):
        raise UnsupportedAttention(
            f"{name}: {type(block).__name__}, which holds it, makes queries and keys with {' and '.join(made)} before"
            " it calls the layer: the products of the two together are not the layer's"
        )


def _is_projection(module: nn.Module) -> bool:
    """Whether a module is a matrix, perhaps with an activation or a norm behind it."""
    simple = not any(next(child.children(), None) for child in module.children())
    return simple and 0 < sum(map(is_matrix, module.parameters())) <= 2


def _callers(ancestors) -> Iterator[tuple[str, nn.Module]]:
    """(path from it down to the one before, module): what calls the layer, and what calls that, without lists."""
    below = 0
    for path, ancestor in ancestors:
        module, parts = unwrapped(ancestor), path.split(".")
        if isinstance(module, (nn.ModuleList, nn.ModuleDict)) and module.forward.__func__ is nn.Module.forward:
            continue
        if replaced_forward(module):
            return
        yield ".".join(parts[: len(parts) - below]), module
        below = len(parts)


def _kind(ancestors) -> tuple[str, bool]:
    """The kind ("self" or "cross"), which the layer does not know, and whether anything says so: by the code of its
    block and, where that does not say, by what it and its block are called; raises NotSelfAttention if it pools.
    """
    called_with = tokens_of_call(_callers(ancestors))
    if called_with == "pooling":
        pooling(next(module for _, module in _callers(ancestors)))
    if called_with in ("self", "cross"):
        return called_with, True
    kind = _kind_by_name(ancestors)
    if called_with != UNSAID or kind == "cross":
        return kind, True
    # what is only wrapped around it is called by the name that tells: cross_attn.fn.mha
    outer = [path for path, _ in list(_callers(ancestors))[:3]]
    told = next(
        (name for path in outer for name in reversed(path.split(".")) if SELF.search(name) or CROSS.search(name)), None
    )
    return ("self" if told is None or SELF.search(told) else "cross"), told is not None


def _kind_by_name(ancestors) -> str:
    """The kind by what a layer and its block are called; raises NotSelfAttention if it pools."""
    # its own name, that of the list that holds it; all names down from the block if there are containers in between
    own, holder = next(((path.split(".")[0], a) for path, a in ancestors if not path[0].isdigit()), ("", None))
    names, block = next(((path.split("."), a) for path, a in ancestors if type(a) not in CONTAINERS), ([own], holder))
    around = [own] if SELF.search(own) else [*names, *(type(a).__name__ for _, a in ancestors[:1])]
    if POOLING.search(" ".join(around)):
        pooling(block)
    # a second one beside a self_attn, as in nn.TransformerDecoderLayer and its many copies; ML-Decoder has that one
    # alone
    decoder = own == "multihead_attn" and "decoder" in type(holder).__name__.lower()
    children = holder.named_children() if holder is not None else ()
    siblings = [n for n, m in children if isinstance(unwrapped(m), nn.MultiheadAttention)]
    beside = own in siblings and not SELF.search(own) and any(map(SELF.search, siblings))
    return "cross" if decoder or beside or any(map(CROSS.search, around)) else "self"


def _pre_norm(path, parent, name, width):
    """(gain, whether it is known) of the norm that feeds the layer, for the blocks whose order is known."""
    blocks = [full_name(base) for base in lineage(type(parent))] if parent is not None and as_written(parent) else []
    if "torchvision.models.vision_transformer.EncoderBlock" in blocks:
        return gain(parent.ln_1, name, width) if path == "self_attention" else (None, False)
    if any(f"torch.nn.modules.transformer.Transformer{part}Layer" in blocks for part in ("Encoder", "Decoder")):
        if not parent.norm_first:
            return None, True
        # the decoder's cross-attention reads its queries through norm2 and its keys from the encoder
        return gain(parent.norm1, name, width) if path == "self_attn" else (None, False)
    return None, False


READERS = {"torch.nn.modules.activation.MultiheadAttention": multihead_attention}
