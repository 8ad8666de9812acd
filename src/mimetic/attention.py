"""One view of any attention layer, in the x @ W convention.

An AttentionLayer holds no copies: q, k, v and proj are strided views into the parameters' own storage, so reading one
reads the model and writing one writes it. An adapter (mimetic.adapters) only says which view of which parameter each is.

Shape suffixes: D d_model, H query heads, G key/value heads (G = H unless grouped-query), K head_dim.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


class UnsupportedAttention(ValueError):
    """An attention layer (or a whole model) that cannot be read or written correctly; names the layer and the reason."""


class MimeticWarning(UserWarning):
    """Something was done, but its effect differs from the paper's setting."""


@dataclass(frozen=True, eq=False)
class AttentionLayer:
    """The projections of one attention layer as views (d_in, heads, head_dim), and what surrounds them.

    Grouped-query attention has fewer key/value heads than query heads; query head h reads key/value head
    h // (num_heads // num_kv_heads).
    """

    name: str  # qualified name of the module in the model, without compile/DDP prefixes
    q: Tensor  # (D, H, K)
    k: Tensor  # (D, G, K)
    v: Tensor  # (D, G, K of the values)
    proj: Tensor  # (H, K of the values, D)
    q_bias: Tensor | None = None  # (H, K)
    k_bias: Tensor | None = None  # (G, K)
    v_bias: Tensor | None = None  # (G, K of the values)
    proj_bias: Tensor | None = None  # (D,)
    in_gain: Tensor | None = None  # (D,) gain of the LayerNorm or RMSNorm that feeds q, k and v
    out_gain: Tensor | None = None  # (D,) LayerScale behind proj
    gains_known: bool = True  # False: the adapter does not know this block, fold=True is refused
    kind: str = "self"  # "self" or "cross"
    caveats: tuple[str, ...] = ()  # what changes the effect: RoPE, QK-norm, ... (each a short sentence)
    parameters: dict[str, nn.Parameter] = field(default_factory=dict, repr=False)

    def __repr__(self) -> str:
        heads = f"{self.num_heads}" if self.num_heads == self.num_kv_heads else f"{self.num_heads}/{self.num_kv_heads}"
        return f"AttentionLayer({self.name!r}, d_model={self.d_model}, heads={heads}, head_dim={self.head_dim})"

    @property
    def d_model(self) -> int:
        """Width of the tokens that the queries are made from."""
        return self.q.shape[0]

    @property
    def num_heads(self) -> int:
        return self.q.shape[1]

    @property
    def num_kv_heads(self) -> int:
        return self.k.shape[1]

    @property
    def head_dim(self) -> int:
        """Size of a query or key head, the k of the paper's 1/sqrt(k)."""
        return self.q.shape[2]

    def kv_head(self, h: int) -> int:
        """The key/value head that query head h reads."""
        if not 0 <= h < self.num_heads:
            raise IndexError(f"{self.name}: head {h} does not exist, there are {self.num_heads} (0 to {self.num_heads - 1})")
        return h // (self.num_heads // self.num_kv_heads)

    def w_q(self, h: int) -> Tensor:
        """W_Q of query head h, (d_model, head_dim), a view."""
        self.kv_head(h)
        return self.q[:, h]

    def w_k(self, h: int) -> Tensor:
        """W_K that query head h meets, (d_model, head_dim), a view."""
        return self.k[:, self.kv_head(h)]

    def w_v(self, h: int) -> Tensor:
        """W_V that query head h averages, (d_model, head_dim), a view."""
        return self.v[:, self.kv_head(h)]

    def w_proj(self, h: int) -> Tensor:
        """Head h's rows of W_proj, (head_dim, d_model), a view."""
        self.kv_head(h)
        return self.proj[h]

    @torch.no_grad()
    def qk(self, h: int, fold: bool = False) -> Tensor:
        """W_Q W_K^T of query head h, (d_model, d_model), in at least float32.

        fold=True multiplies the gain of the preceding LayerNorm into the rows of both: the product as the normalised
        tokens see it. Raises UnsupportedAttention where the adapter does not know that gain.
        """
        gain, _ = self._gains(fold)
        return _fold_rows(_wide(self.w_q(h)), gain) @ _fold_rows(_wide(self.w_k(h)), gain).mT

    @torch.no_grad()
    def vp(self, h: int | None = None, fold: bool = False) -> Tensor:
        """W_V W_proj, (d_model, d_model), of head h or (h=None) of the whole layer: the sum over heads.

        fold=True multiplies the LayerNorm gain into the rows of W_V and LayerScale into the columns of W_proj.
        """
        gain, scale = self._gains(fold)
        heads = range(self.num_heads) if h is None else [h]
        left = torch.cat([_fold_rows(_wide(self.w_v(i)), gain) for i in heads], dim=1)
        right = torch.cat([_wide(self.w_proj(i)) for i in heads], dim=0)
        if scale is not None:
            right = right * scale
        return left @ right

    def _gains(self, fold: bool) -> tuple[Tensor | None, Tensor | None]:
        if not fold:
            return None, None
        if not self.gains_known:
            raise UnsupportedAttention(f"{self.name}: which LayerNorm feeds this layer is not known, so fold=True is refused")
        return (None if g is None else _wide(g) for g in (self.in_gain, self.out_gain))


def _wide(t: Tensor) -> Tensor:
    return t if t.dtype == torch.float64 else t.float()


def _fold_rows(w: Tensor, gain: Tensor | None) -> Tensor:
    return w if gain is None else gain[:, None] * w


@dataclass
class Scan:
    """All that a walk through a model found."""

    layers: list[AttentionLayer]
    refused: dict[str, str]  # name -> reason: looks like attention and cannot be handled
    passed_over: dict[str, str]  # name -> reason: not self-attention in the paper's sense (pooling with a learned query, ...)

    def require(self, model: nn.Module) -> list[AttentionLayer]:
        """The layers, or UnsupportedAttention if something was refused or nothing was found."""
        if self.refused:
            lines = [f"{name}: {reason}" for name, reason in list(self.refused.items())[:4]]
            more = f"\n... and {len(self.refused) - 4} more" if len(self.refused) > 4 else ""
            raise UnsupportedAttention("cannot handle " + "\n".join(lines) + more)
        if not self.layers:
            why = "; ".join(f"{name}: {reason}" for name, reason in self.passed_over.items())
            raise UnsupportedAttention(f"no attention layer found in {type(model).__name__}" + (f" ({why})" if why else ""))
        return self.layers


def scan(model: nn.Module) -> Scan:
    """Every attention layer of a model, the ones that are refused (with the reason), and the ones passed over."""
    from mimetic.adapters import NotSelfAttention, find_reader, looks_like_attention, unknown

    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a torch.nn.Module, got {type(model).__name__}")
    modules = dict(model.named_modules())
    found = Scan([], {}, {})
    claimed: list[str] = []
    suspects: list[tuple[str, str]] = []
    for name, module in modules.items():
        reader = find_reader(type(module))
        if reader is None:
            if looks_like_attention(module):
                suspects.append((name, unknown(module)))
            continue
        claimed.append(name)
        shown = clean_name(name) or type(module).__name__
        try:
            found.layers.append(reader(module, shown, ancestors(modules, name)))
        except NotSelfAttention as reason:
            found.passed_over[shown] = str(reason).removeprefix(f"{shown}: ")
        except UnsupportedAttention as reason:
            found.refused[shown] = str(reason).removeprefix(f"{shown}: ")
    for name, reason in suspects:
        # a container around a known layer, or a part of one, is not a layer of its own
        if not any(_within(name, other) or _within(other, name) for other in claimed):
            found.refused[clean_name(name) or type(modules[name]).__name__] = reason
    return found


def attention_layers(model: nn.Module) -> list[AttentionLayer]:
    """Every self- and cross-attention layer of a model, in the order of model.named_modules().

    Raises:
        UnsupportedAttention: there is none, or a layer that looks like attention cannot be handled; the message names
            each such layer and the reason. To work on the rest, pass the submodule that holds it.
    """
    return scan(model).require(model)


def ancestors(modules: dict[str, nn.Module], name: str) -> list[tuple[str, nn.Module]]:
    """(attribute path from the ancestor down to the module, ancestor), nearest first; wrappers are stepped over."""
    parts = name.split(".") if name else []
    chain = []
    for cut in range(len(parts) - 1, -1, -1):
        parent = modules.get(".".join(parts[:cut]))
        if parent is not None and parts[cut] not in _WRAPPERS:
            chain.append((".".join(p for p in parts[cut:] if p not in _WRAPPERS), parent))
    return chain


_WRAPPERS = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


def clean_name(name: str) -> str:
    """A module's name without the parts that torch.compile, DDP and the like put in."""
    return re.sub(r"(^|\.)(" + "|".join(_WRAPPERS) + r")(?=\.|$)", "", name).lstrip(".")


def _within(inner: str, outer: str) -> bool:
    return outer == "" or inner == outer or inner.startswith(outer + ".")
