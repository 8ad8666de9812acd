"""One view of any attention layer, in the x @ W convention.

An AttentionLayer holds no copies: q, k, v and proj are strided views into the parameters' own storage, so reading one
reads the model and writing one writes it. An adapter (mimetic.adapters) only says which view of which parameter each
is.

Shape suffixes: D d_model, H query heads, G key/value heads (G = H unless grouped-query), K head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


class UnsupportedAttention(ValueError):
    """An attention layer (or a whole model) that cannot be read or written
    correctly; names the layer and the reason.
    """


class MimeticWarning(UserWarning):
    """Something was done, but its effect differs from the paper's setting."""


# an AttentionLayer's fields that look into parameters
VIEWS = ("q", "k", "v", "proj", "q_bias", "k_bias", "v_bias", "proj_bias")


@dataclass(frozen=True, eq=False)
class AttentionLayer:
    """The projections of one attention layer as views (d_in, heads, head_dim), and what surrounds them.

    In the shapes, D is d_model, H the number of query heads, G that of key and value heads (H unless grouped-query), K
    the head size. Grouped-query attention has fewer key/value heads than query heads; query head h reads key/value head
    h // (num_heads // num_kv_heads).
    """

    name: str  #: qualified name of the module in the model, without compile/DDP prefixes
    q: Tensor  #: (D, H, K)
    k: Tensor  #: (D, G, K)
    v: Tensor  #: (D, G, K of the values)
    proj: Tensor  #: (H, K of the values, D)
    q_bias: Tensor | None = None  #: (H, K)
    k_bias: Tensor | None = None  #: (G, K)
    v_bias: Tensor | None = None  #: (G, K of the values)
    proj_bias: Tensor | None = None  #: (D,)
    in_gain: Tensor | None = None  #: (D,) gain of the LayerNorm or RMSNorm that feeds q, k and v
    out_gain: Tensor | None = None  #: (D,) LayerScale behind proj
    #: whether in_gain and out_gain are all there is around the layer (None for none); else fold=True is refused. True
    #: where one is given
    gains_known: bool = False
    kind: str = "self"  #: "self" or "cross"
    caveats: tuple[str, ...] = ()  #: short sentences on what changes the effect (RoPE, QK-norm and the like)

    def __post_init__(self) -> None:
        if self.in_gain is not None or self.out_gain is not None:
            object.__setattr__(self, "gains_known", True)

    def __repr__(self) -> str:
        heads = f"{self.num_heads}" if self.num_heads == self.num_kv_heads else f"{self.num_heads}/{self.num_kv_heads}"
        return f"AttentionLayer({self.name!r}, d_model={self.d_model}, heads={heads}, head_dim={self.head_dim})"

    @property
    def d_model(self) -> int:
        """Width of the tokens that the queries are made from."""
        return self.q.shape[0]

    @property
    def num_heads(self) -> int:
        """Query heads."""
        return self.q.shape[1]

    @property
    def num_kv_heads(self) -> int:
        """Key and value heads; num_heads unless attention is grouped-query."""
        return self.k.shape[1]

    @property
    def head_dim(self) -> int:
        """Size of a query or key head, the k of the paper's 1/sqrt(k)."""
        return self.q.shape[2]

    def kv_head(self, h: int) -> int:
        """The key/value head that query head h reads."""
        if isinstance(h, bool) or not hasattr(h, "__index__"):
            raise TypeError(
                f"{self.name}: a head is a number from 0 to {self.num_heads - 1}, not {h!r} (fold is a keyword:"
                " fold=True)"
            )
        if not 0 <= h < self.num_heads:
            raise IndexError(
                f"{self.name}: head {h} does not exist, there are {self.num_heads} (0 to {self.num_heads - 1})"
            )
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
        with torch.autocast(self.q.device.type, enabled=False):
            left, right = _of_one_dtype(_fold_rows(wide(self.w_q(h)), gain), _fold_rows(wide(self.w_k(h)), gain))
            return left @ right.mT

    @torch.no_grad()
    def vp(self, h: int | None = None, fold: bool = False) -> Tensor:
        """W_V W_proj, (d_model, d_model), of head h or (h=None) of the whole layer: the sum over heads.

        fold=True multiplies the LayerNorm gain into the rows of W_V and LayerScale into the columns of W_proj.
        """
        gain, scale = self._gains(fold)
        heads = range(self.num_heads) if h is None else [h]
        left = torch.cat([_fold_rows(wide(self.w_v(i)), gain) for i in heads], dim=1)
        right = torch.cat([wide(self.w_proj(i)) for i in heads], dim=0)
        if scale is not None:
            right = right * scale
        with torch.autocast(self.q.device.type, enabled=False):
            left, right = _of_one_dtype(left, right)
            return left @ right

    def _gains(self, fold: bool) -> tuple[Tensor | None, Tensor | None]:
        if not fold:
            return None, None
        if not self.gains_known:
            raise UnsupportedAttention(
                f"{self.name}: which LayerNorm feeds this layer is not known, so fold=True is refused (a layer passed"
                " by itself has none around it: pass its block or model)"
            )
        gain, scale = (None if g is None else wide(g) for g in (self.in_gain, self.out_gain))
        return gain, scale


def wide(t: Tensor) -> Tensor:
    return t if t.dtype == torch.float64 else t.float()


def _of_one_dtype(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the wider of their dtypes: one matrix of a layer may be float64."""
    dtype = torch.promote_types(a.dtype, b.dtype)
    return a.to(dtype), b.to(dtype)


def _fold_rows(w: Tensor, gain: Tensor | None) -> Tensor:
    return w if gain is None else gain[:, None] * w
