"""What the readers are made of: checked views of parameters in the x @ W
convention, and one wording for each caveat.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from typing import NoReturn

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from mimetic.attention import AttentionLayer, UnsupportedAttention

Ancestors = list[tuple[str, nn.Module]]
Reader = Callable[[nn.Module, str, Ancestors], AttentionLayer]

# One wording for each caveat; mimetic_init_ repeats it as a warning.
ROPE = (
    "RoPE rotates queries and keys by position after these weights: the product is +beta I only between tokens at the"
    " same position, and fades with distance"
)
QK_NORM = (
    "QK-norm rescales every query and key after these weights: W_Q W_K^T acts up to each token's scale (and, where the"
    " norm is a LayerNorm, without the mean over each head)"
)
INNER_NORM = "a norm sits between the heads and proj: W_V W_proj acts only up to that norm's scale"
GATE = "a learned gate multiplies the heads' output before proj: W_V W_proj acts only up to that gate"
BIAS_GATE = (
    "a learned gate scales the position bias beside q k^T, token by token: how much these products weigh beside"
    " positions changes with it"
)
CLAMPED = (
    "queries, keys and values are clamped after these weights (clip_qkv): the products are the layer's as long as"
    " nothing reaches the bound"
)
SINKS = "attention sinks take a part of every head's attention: W_V W_proj acts with what is left"
HOOKED = "a forward hook sits on it or on one of its projections: what that hook changes is not in these products"
NO_DROPOUT = "something other than a dropout sits in a dropout's place: what it does is not in these products"
UNSCALED = (
    "this layer does not divide q k^T by sqrt(head_dim): its logits are larger or smaller than those of the paper's"
    " attention by a constant factor"
)
VALUE_NORM = "every value is normalised after W_V: the direction of W_V W_proj is kept, its size is not"
OTHER_QUERIES = (
    "queries from and to some tokens (LUKE's entities) are made by matrices of their own, which are left as they are:"
    " W_Q W_K^T is that of the other tokens"
)
OUT_NORM = (
    "a norm sits between proj and the residual stream: the size of W_V W_proj does not matter, its direction does"
)


# what torch.compile, DDP, FSDP and activation checkpointing call the module that they wrap
WRAPPERS = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


# whose attribute "module" is what they wrap; anybody may call a part so
_WRAP = re.compile(r"(?i:parallel|fsdp|ddp|wrap|averag|engine|trainer|lightning)|EMA|Ema")


def wrapped(module: nn.Module) -> nn.Module | None:
    """The module of which this is such a wrapper; None if it is none."""
    parts = module._modules  # a scripted module's has no get
    names = WRAPPERS if _WRAP.search(type(module).__name__) else [name for name in WRAPPERS if name != "module"]
    return next((parts[name] for name in names if name in parts and parts[name] is not None), None)


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside of such wrappers."""
    while (inner := wrapped(module)) is not None:
        module = inner
    return module


DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)  # that weights can be written in

# names of cross-attention, in a class or in the path to a layer
CROSS = re.compile(
    r"cross|enc(oder)?_?dec|dec(oder)?_?enc|(^|[._])enc(oder)?_?att|^x_?attn|^(src|source|mem|memory|context|ctx|cond|inter|co|guided)(_tgt)?_?att"
    r"|(^|_)ca(_|$)|^attn_?2$|token_to_image|image_to_token",
    re.IGNORECASE,
)


def full_name(cls: type) -> str:
    """The name of a class in the tables."""
    return f"{cls.__module__}.{cls.__qualname__}"


def library(function: Callable) -> str:
    """The library in which a function was written, also one that passes for another (functools.wraps)."""
    return (getattr(function, "__globals__", {}).get("__name__") or function.__module__ or "").partition(".")[0]


def forward_of(cls: type) -> Callable | None:
    """A class's forward, without what torch and transformers put around it (transformers
    does so anew in every subclass of a block).
    """
    forward = getattr(cls, "forward", None)
    while hasattr(forward, "__wrapped__") and library(forward) in ("torch", "transformers"):
        forward = forward.__wrapped__
    return forward


def lineage(cls: type) -> list[type]:
    """A class and those of its bases whose forward it has unchanged, nearest first: what
    a table says of one of them holds for it.
    """
    return [base for base in cls.__mro__ if forward_of(base) is forward_of(cls)]


def replaced_forward(module: nn.Module) -> bool:
    """Whether this one module's forward, or another method of its class, was replaced (a LoRA written
    over it, say): what it computes is then not known. The class's own forward, put back, is none;
    accelerate's hooks around it only move tensors.
    """
    own = vars(module)
    if any(
        inspect.isroutine(value) and inspect.isfunction(getattr(type(module), name, None))
        for name, value in own.items()
        if name != "forward"
    ):
        return True
    forward = own.get("_old_forward") if "_hf_hook" in own else own.get("forward")
    # also that of its class, if it is bound to another module: that one's weights are what is computed with
    return forward is not None and not (
        getattr(forward, "__func__", None) is type(module).forward and forward.__self__ is module
    )


class NotSelfAttention(UnsupportedAttention):
    """A known layer that is not self-attention in the paper's sense and is passed over, not refused."""


REDUCED = "its keys and values are made from a spatially reduced copy of the tokens, not from the tokens"


def pooling(module: nn.Module, *_: object) -> NoReturn:
    """The reader of a class that pools: raises NotSelfAttention."""
    raise NotSelfAttention(
        f"{type(module).__name__} pools with a learned query: its keys and queries are different tokens"
    )


def passed_over(reason: str) -> Reader:
    """The reader of a class that is no self-attention."""

    def read(module, name, ancestors):
        raise NotSelfAttention(reason)

    return read


def refuse(reason: str) -> Reader:
    """The reader of a class that is known, and not of the form softmax(x W_Q W_K^T x^T) x W_V W_proj."""

    def read(module, name, ancestors):
        raise UnsupportedAttention(f"{name}: {reason}")

    return read


def usable(p: Tensor | None, name: str, what: str) -> Tensor:
    """The parameter itself, detached, or a refusal that says what is wrong with it."""
    if p is None:
        raise UnsupportedAttention(f"{name}: {what} is missing")
    if is_lazy(p):
        raise UnsupportedAttention(f"{name}: {what} is not initialised yet (a lazy layer): run the model once first")
    if p.is_meta:
        raise UnsupportedAttention(
            f"{name}: {what} is a meta tensor (no storage); materialise the model first (to_empty)"
        )
    data = p.data if isinstance(p, nn.Parameter) else p
    if type(data) is not Tensor:
        raise UnsupportedAttention(
            f"{name}: {what} is a {type(data).__name__}, not a plain tensor (sharded or quantised): initialise before"
            " that"
        )
    if data.layout is not torch.strided:
        raise UnsupportedAttention(f"{name}: {what} is stored as {data.layout}, not as a plain matrix")
    if data.dtype not in DTYPES:
        raise UnsupportedAttention(
            f"{name}: {what} has dtype {data.dtype} ({'complex' if data.is_complex() else 'quantised'} weights); use"
            " float16, bfloat16 or float32"
        )
    if not data.numel():
        raise UnsupportedAttention(f"{name}: {what} has no elements (sharded, or not initialised yet)")
    return p.detach()  # not .data: autograd must see that what it keeps for a backward pass was written over


def is_matrix(p: Tensor) -> bool:
    """Whether a parameter is there and more than one row of numbers."""
    return not is_lazy(p) and p.ndim >= 2


def matrix(w: Tensor, name: str, what: str) -> Tensor:
    """A weight as it is, or a refusal if it is one row of numbers."""
    if w.ndim < 2:
        raise UnsupportedAttention(
            f"{name}: {what} has shape {tuple(w.shape)}, not that of a matrix (sharded or flattened, as FSDP does):"
            " initialise before that"
        )
    return w


def expanded(t: Tensor) -> bool:
    """Whether several entries of a tensor are one number in memory."""
    return any(s == 0 and n > 1 for s, n in zip(t.stride(), t.shape))


def own_parameter(module: nn.Module, attribute: str, name: str, view: str) -> Tensor:
    """A parameter that a module holds itself, as usable() gives it. A plain attribute in its place is computed anew in
    every forward, even where it starts in the memory of what it is computed from (torch.nn.utils.spectral_norm)."""
    if attribute not in module._parameters:
        raise UnsupportedAttention(
            f"{name}: {view} is no view of a parameter (it is computed: parametrised, pruned, or a copy): initialise"
            " before that"
        )
    return usable(module._parameters[attribute], name, attribute)


_PLAIN_FORWARDS = {nn.Linear.forward, nn.Conv2d.forward}
# Linear layers with a forward of their own that computes the same
_PLAIN_CLASSES = {"transformers.models.falcon.modeling_falcon.FalconLinear"}


def is_conv1d(layer: nn.Module) -> bool:
    """Whether it is transformers' Conv1D, a linear layer whose weight is (in, out) already."""
    return full_name(type(layer)) == "transformers.pytorch_utils.Conv1D"


def weight(layer: nn.Module, name: str, what: str) -> Tensor:
    """The weight of a plain nn.Linear (out, in), transformers Conv1D or 1x1 nn.Conv2d, as an (in, out) view."""
    layer = getattr(layer, "_orig_mod", layer)
    if torch.nn.utils.parametrize.is_parametrized(layer) or "weight" not in layer._parameters:
        raise UnsupportedAttention(
            f"{name}: {what} is parametrised or has no plain weight ({full_name(type(layer))}): initialise before that"
        )
    if replaced_forward(layer):
        raise UnsupportedAttention(
            f"{name}: the forward of {what} was replaced on this one module, so its weight may not be all of it:"
            " initialise before that"
        )
    w = matrix(usable(layer.weight, name, f"{what}.weight"), name, f"{what}.weight")
    plain_call = type(layer).__call__ is nn.Module.__call__
    if plain_call and (type(layer).forward in _PLAIN_FORWARDS or full_name(type(layer)) in _PLAIN_CLASSES):
        if w.ndim == 4:
            if w.shape[2:] != (1, 1) or layer.groups != 1 or layer.stride != (1, 1):
                raise UnsupportedAttention(f"{name}: {what} is a {tuple(w.shape[2:])} convolution, not a matrix")
            w = w[:, :, 0, 0]
        return w.mT
    if is_conv1d(layer):
        return w
    raise UnsupportedAttention(
        f"{name}: {what} is a {full_name(type(layer))}, not a plain nn.Linear (if it computes the same, a reader may"
        " give a view of its weight itself)"
    )


def bias(layer: nn.Module, name: str, what: str) -> Tensor | None:
    """The bias of a layer, (out,), or None."""
    layer = getattr(layer, "_orig_mod", layer)
    b = getattr(layer, "bias", None)
    return None if b is None else usable(b, name, f"{what}.bias")


def both(
    layer: nn.Module, name: str, what: str, view: Callable[[Tensor], Sequence[Tensor]], parts: int
) -> list[tuple[Tensor, Tensor | None]]:
    """The (weight, bias) of each part of a fused layer; view: the parts of a tensor whose last dimension is outputs."""
    b = bias(layer, name, what)
    return list(zip(view(weight(layer, name, what)), [None] * parts if b is None else view(b), strict=True))


def split_out(w: Tensor, heads: int, name: str) -> Tensor:
    """(D, heads * K) -> (D, heads, K), a view."""
    if w.shape[1] % heads:
        raise UnsupportedAttention(f"{name}: {w.shape[1]} outputs do not divide into {heads} heads")
    return w.unflatten(1, (heads, -1))


def linear_out(lin: nn.Module, heads: int, name: str, what: str = "projection") -> tuple[Tensor, Tensor | None]:
    """Weight (D, heads, K) and bias (heads, K) of a layer that maps tokens to heads, as views."""
    b = bias(lin, name, what)
    return split_out(weight(lin, name, what), heads, name), None if b is None else b.view(heads, -1)


def linear_in(lin: nn.Module, heads: int, name: str, what: str = "proj") -> tuple[Tensor, Tensor | None]:
    """Weight (heads, K, D) and bias (D,) of a layer that maps heads to tokens, as views."""
    w = weight(lin, name, what)
    if w.shape[0] % heads:
        raise UnsupportedAttention(f"{name}: {w.shape[0]} inputs of {what} do not divide into {heads} heads")
    return w.unflatten(0, (heads, -1)), bias(lin, name, what)


def fused_out(
    lin: nn.Module, heads: int, name: str, what: str = "qkv", parts: int = 3
) -> list[tuple[Tensor, Tensor | None]]:
    """The parts (q, k, v) of one fused layer laid out [part, head, K], each as linear_out gives it."""
    outputs = weight(lin, name, what).shape[1]
    if outputs % (parts * heads):
        raise UnsupportedAttention(f"{name}: {outputs} outputs of {what} do not divide into {parts} x {heads} heads")
    return both(lin, name, what, lambda t: t.unflatten(-1, (parts, heads, -1)).unbind(-3), parts)


# modules whose one vector, if any, multiplies their output
_GAINED = re.compile(r"(layer|rms|simple)_?norm|identity|layer_?scale", re.IGNORECASE)
_LIBRARIES = ("torch", "torchvision", "timm", "transformers", "mimetic")


RECORDER = "transformers.utils.output_capturing"  # its hooks keep what passes by and change nothing


def hooked(module: nn.Module) -> bool:
    """Whether forward hooks sit on a module, of which is not known what they do."""
    return any(
        getattr(hook, "__module__", None) != RECORDER
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    )


_DROPS = re.compile("drop|identity", re.IGNORECASE)


def dropout_caveats(module: nn.Module, attributes: Iterable[str], name: str) -> tuple[str, ...]:
    """The caveats of what was put in the place of a layer's dropouts or hooked on them; what has weights of its own
    there (an adapter, say) is refused."""
    found = []
    for attribute in attributes:
        part = getattr(module, attribute, None)
        if not isinstance(part, nn.Module):
            continue
        if next(part.parameters(), None) is not None:
            raise UnsupportedAttention(
                f"{name}: {attribute} is a {type(part).__name__} with weights of its own: what it does is not in its"
                " products; initialise before that"
            )
        found += [NO_DROPOUT] * (_DROPS.search(type(part).__name__) is None) + [HOOKED] * hooked(part)
    return tuple(dict.fromkeys(found))


# methods that may be overridden
_NOT_COMPUTING = re.compile(r"__(?!call__|getattr__).*__|_?reset_parameters|_?init_weights|prune_heads")


def overridden(cls: type, base: type) -> bool:
    """Whether a subclass has another forward than its base, or another of the methods that the base has beyond
    nn.Module's."""
    mine = {name for c in cls.__mro__[: cls.__mro__.index(base)] for name in vars(c)}
    theirs = {
        name
        for c in base.__mro__
        if c not in nn.Module.__mro__
        for name, value in vars(c).items()
        if callable(value) or isinstance(value, property)
    }
    changed = mine & (theirs | {"__call__", "__getattr__"}) - {"forward"}
    return forward_of(cls) is not forward_of(base) or not all(map(_NOT_COMPUTING.fullmatch, changed))


def as_written(module: nn.Module) -> bool:
    """Whether a module computes what a library's class does: nothing of that is a subclass's own, nor replaced on the
    class or on this one module.
    """
    module = getattr(module, "_orig_mod", module)
    cls = type(module)
    base = next((c for c in cls.__mro__ if c.__module__.partition(".")[0] in _LIBRARIES), None)
    if base is None or library(forward_of(cls)) not in _LIBRARIES or replaced_forward(module):
        return False
    return base is cls or not overridden(cls, base)


def gain(module: nn.Module | nn.Parameter | None, name: str, width: int) -> tuple[Tensor | None, bool]:
    """The gain of a LayerNorm or RMSNorm, or a LayerScale's vector (a module's or the block's own parameter), (width,),
    or None where it has none; and whether that is known: in the place of a norm there may be anything."""
    module = getattr(module, "_orig_mod", module)
    if module is None:
        return None, True
    if isinstance(module, nn.Parameter):
        return usable(module, name, "LayerScale"), True
    if not (_GAINED.search(type(module).__name__) and as_written(module)) or hooked(module):
        return None, False
    w = getattr(module, "weight", None)
    w = w if w is not None else next(module.parameters(recurse=False), None)
    if w is None:
        return None, next(module.parameters(), None) is None  # what is around another norm has its own
    return (usable(w, name, "norm gain"), True) if w.shape == (width,) else (None, False)
