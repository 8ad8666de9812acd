"""Which view of which parameter is q, k, v and proj: one small module a library.

A reader is a function (module, name, ancestors) -> AttentionLayer for one attention class. READERS maps the class's
full name to it, so that timm and transformers are never imported here. A class is listed only if its products were
verified through its own forward (tests, `python -m mimetic coverage`); anything else that looks like attention is
refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

from mimetic.adapters import own, timm, torch_nn, transformers
from mimetic.adapters.code import attends
from mimetic.adapters.views import (
    NotSelfAttention,
    Reader,
    full_name,
    fused_out,
    is_matrix,
    library,
    linear_in,
    linear_out,
    overridden,
    refuse,
)
from mimetic.attention import UnsupportedAttention

__all__ = [
    "Reader", "find_reader", "fused_out", "has_projections", "linear_in", "linear_out", "looks_like_attention",
    "left_alone", "register_adapter", "unknown",
]  # fmt: skip

READERS: dict[str, Reader] = own.READERS | torch_nn.READERS | timm.READERS | transformers.READERS
_CUSTOM: dict[type, Reader] = {}


def register_adapter(attention_class: type, reader: Reader | None) -> None:
    """Teach the library an attention class of your own, without touching the
    class. Check it with `mimetic.verify.verify`.

    Args:
        attention_class: the nn.Module subclass that owns the projections. Its own subclasses are read like it, unless
            they override its forward.
        reader: function (module, name, ancestors) -> AttentionLayer whose q, k, v, proj are views into the module's
            parameters; `linear_out(lin, heads, name)`, `fused_out` and `linear_in(lin, heads, name)` of
            mimetic.adapters make them from nn.Linear. ancestors are pairs (path, module): the modules around it,
            nearest first, and the path from each down to this one; a norm in front of the layer is in one of them
            (in_gain). There are none where the layer itself is what was passed in. What changes the effect of the
            products belongs into the layer's caveats, in the words of mimetic.adapters.views (ROPE, QK_NORM, GATE,
            ...), which verify asks for. None: the class is no self-attention, for all its name; it is left alone with
            all that is inside of it, with a note.

    Raises:
        TypeError: attention_class is no module class, or nn.Module itself, or reader no function.
    """
    if (
        not (isinstance(attention_class, type) and issubclass(attention_class, nn.Module))
        or attention_class is nn.Module
    ):
        raise TypeError(f"attention_class must be a torch.nn.Module subclass, got {attention_class!r}")
    if reader is None:
        reader = _left_alone
    if not callable(reader):
        raise TypeError(f"reader must be a function (module, name, ancestors) -> AttentionLayer, got {reader!r}")
    _CUSTOM[attention_class] = reader


def left_alone(cls: type) -> bool:
    """Whether a class was registered as no self-attention."""
    return find_reader(cls) is _left_alone


def find_reader(cls: type) -> Reader | None:
    """The reader for a class, or for the listed class whose forward it inherits unchanged."""
    for base in cls.__mro__:
        if base in _CUSTOM:
            # an abstract base says nothing of a forward
            known = base.forward is nn.Module.forward or not overridden(cls, base)
            return _CUSTOM[base] if known else _changed(base)
        if reader := READERS.get(full_name(base)):
            owner = next((c for c in base.__mro__ if "forward" in vars(c)), base)
            if library(base.forward) not in (owner.__module__.partition(".")[0], "torch"):
                return _patched
            return reader if not overridden(cls, base) else _changed(base)
    return None


def _left_alone(module, name, ancestors):
    raise NotSelfAttention(f"{name}: {type(module).__name__} was registered as no self-attention")


_patched = refuse(
    "the forward of its class was replaced, so the same weights may mean something else: initialise before that"
)


def _changed(base: type) -> Reader:
    def refuse(module, name, ancestors):
        mine, theirs = type(module).__qualname__, base.__qualname__
        if mine == theirs:
            mine, theirs = full_name(type(module)), full_name(base)
        raise UnsupportedAttention(
            f"{name}: {mine} overrides the forward of {theirs}, or a part of it, so the"
            " same weights may mean something else; register_adapter it if they do not"
        )

    return refuse


_LOOKS = re.compile(
    r"attention|attn|^mha|mhsa|^s?w?msa$|^multi_?head(ed)?$|multi_?head_?self|self_?att|^att_?(block|layer)?$|^xca$|MLA$",
    re.IGNORECASE,
)
# a projection by its name, without what is put around it: q_proj, Wq, to_q, linear_q, query_projection, ...
_ROLE = re.compile(
    r"(to|i2|x2|h2|attn_w|mha_w|w|fc|lin|linears?|dense|proj|project|projection|c|in|in_proj|add|fused|attn[12]?|att|self|mha"
    r"|conv|mlp|map|mat|trans|weight|layer|self_attn|cross_attn)?_?(?P<role>q|k|v|qk|kv|qkv|kqv|qkvo|w_pack|query|key|value|querie|query_key_value)s?"
    r"_?(proj|projection|lin|linear|layer|layers|fc|dense|conv|head|embed|w|weights?|map|mat|net|trans|transform|matrix|mlp)?s?(_weight)?[0-9]?",
    re.IGNORECASE,
)
# with other words around it, the one that is unmistakable (img_qkv, qkv_text, x_qkv_2), unless it names what goes with
# a projection
_QKV = re.compile(
    r"(?!.*(lora|adapter|scale|bias|emb|norm|table|prompt|gate|mask|drop|_pos|_rel))(?!pos|rel)(.*_)?qkv(_.*|[0-9].*)?",
    re.IGNORECASE,
)
_SHORT = {"query": "q", "querie": "q", "key": "k", "value": "v"}
_SHORT |= dict.fromkeys(("query_key_value", "kqv", "qkvo", "w_pack"), "qkv")
_PARTS = ({"qkv"}, {"q", "k"}, {"q", "kv"}, {"qk", "v"}, {"theta", "phi", "g"})


def looks_like_attention(module: nn.Module) -> bool:
    """True for a module that owns weights, directly or in its direct children, and is named like attention, calls a
    library's attention function, or has children (or weights of its own) that are named like its projections (qkv,
    q_proj beside k_proj, ...)."""
    children, projections = dict(module.named_children()), has_projections(module)
    scripted = isinstance(module, torch.jit.ScriptModule)
    named = _LOOKS.search(module.original_name if scripted else type(module).__name__)
    if not (named or projections or (not scripted and attends(type(module)))):
        return False
    weights = list(module.parameters(recurse=False))
    for child in children.values():
        weights += child.parameters(recurse=False)
    # in wrapped linear layers (LoRA, quantisation, a norm behind each) the weights lie deeper: a fused one and another
    # are enough where more than one thing speaks for attention
    enough = 2 if projections or (named and not scripted and attends(type(module), False)) else 3
    return (
        any(is_lazy(p) or p.ndim >= 2 for p in weights)
        or sum(is_lazy(p) or p.ndim >= 2 for p in module.parameters()) >= enough
    )


def has_projections(module: nn.Module) -> bool:
    """Whether a module has children or weights that are an attention layer's
    projections, by name or (in_proj) by name and shape.
    """
    weights = [n for n, p in module.named_parameters(recurse=False) if is_matrix(p)]
    children = [n for n, m in module.named_children() if _roles([n]) and not _another_part(n, m)]
    # not of both kinds together: a learned query beside a kv layer pools
    return any(parts <= _roles(names) for names in (children, weights) for parts in _PARTS) or _packed(module)


def _another_part(name: str, module: nn.Module) -> bool:
    """Whether a child that is called like a projection is none: the query
    tower of a retriever, an embedding of keys, a norm behind x_qkv.
    """
    if not _ROLE.fullmatch(name) and not any(is_lazy(p) or is_matrix(p) for p in module.parameters()):
        return True
    return isinstance(module, nn.Embedding) or any(find_reader(type(m)) for m in module.modules())


def _roles(names: Iterable[str]) -> set[str]:
    names = list(names)
    roles = (m["role"].lower() for m in map(_ROLE.fullmatch, names) if m)
    spelt = {"theta", "phi", "g"} & set(names)  # non-local blocks
    return {_SHORT.get(role, role) for role in roles} | {"qkv" for name in names if _QKV.fullmatch(name)} | spelt


def _packed(module: nn.Module) -> bool:
    """Whether a module has an in_proj three times its out_proj, as nn.MultiheadAttention's
    are, and no convolution, as gated ones have.
    """
    parts = {**module._modules, **module._parameters}

    def shape(*names: str) -> tuple[int, ...]:
        found = (getattr(parts.get(n), "weight", parts.get(n)) for n in names)
        w = next((w for w in found if isinstance(w, Tensor)), None)
        return () if w is None or is_lazy(w) else tuple(w.shape)

    first = shape("in_proj_weight", "in_proj", "c_attn", "attn_in", "attn_in_proj")
    last = shape("out_proj", "o_proj", "c_proj", "proj", "out", "attn_out", "attn_out_proj")
    if len(first) != 2 or len(last) != 2 or any(isinstance(m, _ConvNd) for m in module.modules()):
        return False
    return first in ((3 * last[1], last[0]), (last[1], 3 * last[0]))  # the second as transformers' Conv1D stores them


_HINTS = (  # an attribute that gives the kind of attention away -> what it is
    ("kv_b_proj|kv_a_proj\\w*", "latent attention: keys and values are made by two matrices with a norm between them"),
    ("sampling_offsets", "deformable attention: values are read at learned places, there is no q k^T"),
    ("k_content_proj|ca_kcontent_proj", "contents and positions have matrices of their own"),
    ("conv1d|A_log|b_proj", "linear or state-space attention: there is no softmax over q k^T"),
    ("lambda_q1", "differential attention: each head subtracts two attention maps"),
    ("query_global|key_global", "some tokens use a second set of matrices"),
)


def unknown(module: nn.Module, owner: nn.Module | None = None) -> str:
    """Why a module that looks like attention is refused: it is not in the tables, and what it seems to be; owner: the
    module that holds it."""
    if isinstance(module, torch.jit.ScriptModule):
        return "it is scripted or traced (torch.jit): initialise before that"
    if isinstance(module if type(module) is not nn.Module else owner, torch.fx.GraphModule):
        return "it is traced (torch.fx, torch.export): initialise before that"
    if owner is not None and isinstance(module, (nn.ModuleDict, nn.ModuleList, nn.ParameterDict, nn.ParameterList)):
        return f"it holds the projections of {full_name(type(owner))}, which is not a known attention class"
    reason = f"{type(module).__module__}.{type(module).__qualname__} is not a known attention class"
    names = [*(n for n, _ in module.named_children()), *(n for n, _ in module.named_parameters(recurse=False))]
    for pattern, hint in _HINTS:
        if any(re.fullmatch(pattern, n) for n in names):
            return f"{reason} ({hint})"
    return reason
