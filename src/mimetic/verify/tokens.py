"""Tokens among the arguments and outputs of an attention module: found, exchanged, and brought to one layout.

Shape suffixes: B batch, N tokens, H heads, D d_model; width is D.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

QUERY_NAMES = (
    "hidden_states", "query", "x", "input", "inputs", "hidden_state", "queries", "query_states", "src", "input_tensor",
    "embeddings",
)  # fmt: skip
KEY_NAMES = (
    "key_value_states", "encoder_hidden_states", "cross_attention_states", "key", "value", "keys", "values", "kv",
    "memory", "context",
)  # fmt: skip


def generator_for(*seed: int) -> torch.Generator:
    mixed = 0
    for s in seed:
        mixed = (mixed * 1_000_003 + s + 1) % (2**61 - 1)
    return torch.Generator().manual_seed(mixed)


def _is_tokens(t, width: int) -> bool:
    return (
        isinstance(t, Tensor)
        and t.is_floating_point()
        and t.ndim >= 2
        and (t.shape[-1] == width or _channels_first(t, width))
    )


def _channels_first(t: Tensor, width: int) -> bool:
    """(B, D, height, width), as layers made of 1x1 convolutions take it."""
    return t.ndim == 4 and t.shape[1] == width and t.shape[-1] != width


def find_tokens(module: nn.Module, args: tuple, kwargs: dict, names: tuple[str, ...], width: int) -> Tensor | None:
    """The argument of one of these names, or (queries) the first positional one."""
    for name in names:
        if _is_tokens(kwargs.get(name), width):
            return kwargs[name]
    if names is QUERY_NAMES:
        return args[0] if args and _is_tokens(args[0], width) else None
    # keys by position: nn.MultiheadAttention(query, key, value), or a forward whose second name is one of these
    if isinstance(module, nn.MultiheadAttention):
        return args[1] if len(args) > 1 else None
    parameters = type(module).forward.__code__.co_varnames[1 : type(module).forward.__code__.co_argcount]
    for name, value in zip(parameters, args):
        if name in names and _is_tokens(value, width):
            return value
    return None


def other_tokens(args: tuple, kwargs: dict, x: Tensor, width: int) -> Tensor | None:
    """The one argument beside x that may be tokens; None if there are none or several."""
    found = {id(t): t for t in (*args, *kwargs.values()) if t is not x and _is_tokens(t, width)}
    return next(iter(found.values())) if len(found) == 1 else None


def argument(module: nn.Module, args: tuple, kwargs: dict, name: str) -> Tensor | None:
    """The argument of this name, by keyword or by position."""
    code = type(module).forward.__code__
    value = kwargs.get(name, dict(zip(code.co_varnames[1 : code.co_argcount], args)).get(name))
    return value if isinstance(value, Tensor) else None


def swap_tokens(module, args, kwargs, x, new_x, kv, new_kv):
    swap = {id(x): new_x}
    if kv is not None:
        swap.setdefault(id(kv), new_kv)
        if isinstance(module, nn.MultiheadAttention):  # the value argument goes with the key
            value = kwargs.get("value", args[2] if len(args) > 2 else None)
            swap.setdefault(id(value), new_kv)
        for name in ("key", "value", "keys", "values"):
            if _is_tokens(kwargs.get(name), kv.shape[-1]):
                swap.setdefault(id(kwargs[name]), new_kv)
    return tuple(swap.get(id(a), a) for a in args), {k: swap.get(id(a), a) for k, a in kwargs.items()}


def _seq_first(module: nn.Module) -> bool:
    return isinstance(module, nn.MultiheadAttention) and not module.batch_first


def tokens_of(t: Tensor | None, module: nn.Module, width: int) -> Tensor | None:
    """(B, N, D) from (N, D), (B, N, D), (B, height, width, D), (B, D, height, width) or a sequence-first layout."""
    if t is None:
        return None
    if t.ndim == 2:
        return t[None].clone()
    if t.ndim == 3 and _seq_first(module):
        return t.transpose(0, 1).clone()
    if _channels_first(t, width):
        return t.flatten(2).mT.clone()
    return t.reshape(t.shape[0], -1, t.shape[-1]).clone()


def tokens_like(tokens: Tensor, like: Tensor, module: nn.Module, width: int) -> Tensor:
    if like.ndim == 3 and _seq_first(module):
        return tokens.transpose(0, 1).contiguous()
    if _channels_first(like, width):
        return tokens.mT.reshape(like.shape).contiguous()
    return tokens.reshape(like.shape)


def first_tensor(output) -> Tensor | None:
    if isinstance(output, Tensor):
        return output
    if isinstance(output, dict):
        output = tuple(output.values())
    if isinstance(output, (tuple, list)):
        for item in output:
            found = first_tensor(item)
            if found is not None:
                return found
    return None


def arrange(t: Tensor, H: int, tokens_BN: torch.Size, heads_first: bool):
    """(t as (b, H, n, *), ways to bring tokens (B, N, D) to (b, n, D)), or
    None: how windows were cut is not known here.
    """
    B, N = tokens_BN[:2]
    if t.ndim == 3 and t.shape[0] % H == 0:
        t = t.unflatten(0, (H, -1)).transpose(0, 1) if heads_first else t.unflatten(0, (-1, H))
    if t.ndim == 4 and t.shape[1] == H and t.shape[0] * t.shape[2] == B * N:
        b, n = t.shape[0], t.shape[2]
        ways = [lambda x: x.reshape(b, n, -1)]
        if (b, n) == (N, B):  # sequence first, which only nn.MultiheadAttention says of itself
            ways.append(lambda x: x.transpose(0, 1))
        return t, ways
    if t.ndim != 5:
        return None
    if t.shape[1] == H:  # (B, H, windows, n, *)
        t = t.transpose(1, 2)
    if t.shape[2] != H or t.shape[0] != B or t.shape[1] * t.shape[3] != N:
        return None
    w, n = t.shape[1], t.shape[3]
    ways = [lambda x: x.reshape(B * w, n, -1), lambda x: x.reshape(B, n, w, -1).transpose(1, 2).reshape(B * w, n, -1)]
    if math.isqrt(w) ** 2 == w and math.isqrt(n) ** 2 == n:  # square windows of a square image
        h, s = math.isqrt(w), math.isqrt(n)
        ways.append(lambda x: x.reshape(B, h, s, h, s, -1).transpose(2, 3).reshape(B * w, n, -1))
    return t.flatten(0, 1), ways


def relative_error(measured: Tensor, expected: Tensor) -> float:
    if measured.shape != expected.shape:
        return math.inf
    top = expected.abs().max().item()
    error = (measured - expected).abs().max().item()
    return error / top if top > 0 and math.isfinite(error) else math.inf
