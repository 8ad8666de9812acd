"""Transformer parts that every model of this package shares: self-attention, MLP, block.

A vision transformer uses the block as it is (pre-LN, full attention), a GPT sets ``causal=True``, BERT4Rec sets
``norm_first=False``. Module and parameter names are timm's, so that weights can be copied by ``load_state_dict``.

Shape suffixes: B batch, N tokens, D d_model, H num_heads, K head_dim.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mimetic.models.positions import rotate, rotations

LAYER_NORM_EPS = 1e-6  # timm's; PyTorch's own default is 1e-5


def attend(
    q_BHNK: Tensor,
    k_BHNK: Tensor,
    v_BHNK: Tensor,
    mask: Tensor | None = None,
    *,
    causal: bool = False,
    dropout: float = 0.0,
) -> Tensor:
    """softmax(q k^T / sqrt(head_dim)) v, (B, H, N, K); ``mask`` as in
    SelfAttention, ``dropout`` of the attention weights.
    """
    if mask is None and not dropout and q_BHNK.dtype == torch.bfloat16 and not q_BHNK.is_cuda:
        # on a CPU PyTorch's fused attention is six times slower than this in bfloat16, most of it in backward (causal:
        # four)
        N, K = q_BHNK.shape[-2:]
        scores_BHNN = q_BHNK @ k_BHNK.mT * K**-0.5
        if causal:
            scores_BHNN = scores_BHNN + scores_BHNN.new_full((N, N), -torch.inf).triu(1)
        return scores_BHNN.softmax(dim=-1).to(v_BHNK.dtype) @ v_BHNK
    return F.scaled_dot_product_attention(q_BHNK, k_BHNK, v_BHNK, attn_mask=mask, dropout_p=dropout, is_causal=causal)


class SelfAttention(nn.Module):
    """Multi-head self-attention with one fused query, key and value layer.

    ``qkv.weight`` (3 * d_model, d_model) holds the rows of all queries, then keys, then values; within each, head h has
    the rows ``h * head_dim : (h + 1) * head_dim``. (nn.Linear stores (out, in): W_Q of the formulas is the transpose.)

    Args:
        d_model: width of the tokens.
        num_heads: number of heads; must divide d_model.
        causal: a token attends to itself and earlier tokens only.
        bias: biases in both linear layers.
        dropout: probability of dropping an attention weight, in training only.
        rotary: queries and keys are rotated by their places, of so many tokens at most; 0: they are not.

    Raises:
        ValueError: num_heads does not divide d_model, or rotary positions with heads of odd size.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        *,
        causal: bool = False,
        bias: bool = True,
        dropout: float = 0.0,
        rotary: int = 0,
    ) -> None:
        super().__init__()
        check_heads(num_heads, d_model)
        self.num_heads = num_heads
        self.head_dim = d_model // num_heads
        self.causal = causal
        self.dropout = dropout
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=bias)
        self.proj = nn.Linear(d_model, d_model, bias=bias)
        self.register_buffer("rotary", rotations(rotary, self.head_dim) if rotary else None, persistent=False)

    def forward(self, x_BND: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, N, d_model) to the same shape; ``mask`` broadcasts to (B, H, N, N), True (or 0.0) where attended."""
        B, N, D = x_BND.shape
        q_BHNK, k_BHNK, v_BHNK = self.qkv(x_BND).view(B, N, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q_BHNK, k_BHNK = rotate(q_BHNK, self.rotary), rotate(k_BHNK, self.rotary)
        if mask is not None and self.causal:
            raise ValueError("a causal layer takes no mask: put the causal part into the mask, build with causal=False")
        x_BHNK = attend(
            q_BHNK, k_BHNK, v_BHNK, mask, causal=self.causal, dropout=self.dropout if self.training else 0.0
        )
        return self.proj(x_BHNK.transpose(1, 2).reshape(B, N, D))


class Mlp(nn.Module):
    """Two linear layers with a GELU between them, exact or its "tanh"
    approximation; (B, N, d_model) to the same shape.
    """

    def __init__(self, d_model: int, hidden: int, *, bias: bool = True, gelu: str = "none") -> None:
        super().__init__()
        self.fc1 = nn.Linear(d_model, hidden, bias=bias)
        self.act = nn.GELU(approximate=gelu)
        self.fc2 = nn.Linear(hidden, d_model, bias=bias)

    def forward(self, x_BND: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x_BND)))


def check_heads(num_heads: int, d_model: int) -> None:
    """Raise ValueError unless so many heads share the width equally."""
    if num_heads < 1 or d_model % num_heads:
        raise ValueError(f"num_heads={num_heads} does not divide d_model={d_model}")


def check_mlp_ratio(mlp_ratio: float, d_model: int) -> None:
    """Raise ValueError unless an MLP of this ratio has units, and a finite number of them."""
    if not 0 < d_model * mlp_ratio < float("inf") or round(d_model * mlp_ratio) < 1:
        raise ValueError(
            f"mlp_ratio must be finite and give at least one hidden unit (d_model={d_model}), not {mlp_ratio!r}"
        )


class Block(nn.Module):
    """Attention and MLP, each with a residual connection and a LayerNorm.

    Args:
        d_model: width of the tokens.
        num_heads: number of heads.
        mlp_ratio: hidden width of the MLP / d_model.
        norm_first: pre-LN, ``x + f(norm(x))`` (ViT, GPT-2), or else post-LN, ``norm(x + f(x))`` (BERT).
        causal, rotary: see SelfAttention.
        bias: biases in all linear layers.
        dropout: after attention, after the MLP and on the attention weights, in training only.
        eps: of the LayerNorms.
        gelu: "none", exact, or "tanh", GPT-2's approximation.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        *,
        mlp_ratio: float = 4.0,
        norm_first: bool = True,
        causal: bool = False,
        bias: bool = True,
        dropout: float = 0.0,
        rotary: int = 0,
        eps: float = LAYER_NORM_EPS,
        gelu: str = "none",
    ) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.norm1 = nn.LayerNorm(d_model, eps=eps)
        self.attn = SelfAttention(d_model, num_heads, causal=causal, bias=bias, dropout=dropout, rotary=rotary)
        self.norm2 = nn.LayerNorm(d_model, eps=eps)
        self.mlp = Mlp(d_model, round(d_model * mlp_ratio), bias=bias, gelu=gelu)
        self.drop = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, x_BND: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, N, d_model) to the same shape; ``mask`` as in SelfAttention."""
        if self.norm_first:
            x_BND = x_BND + self.drop(self.attn(self.norm1(x_BND), mask))
            return x_BND + self.drop(self.mlp(self.norm2(x_BND)))
        x_BND = self.norm1(x_BND + self.drop(self.attn(x_BND, mask)))
        return self.norm2(x_BND + self.drop(self.mlp(x_BND)))


# Where a parameter counts, by the names used throughout the package; the first match decides.
_KINDS = (
    ("attention_qkv", (".qkv.",)),
    ("attention_proj", (".attn.proj.",)),
    ("mlp", (".mlp.",)),
    ("norm", ("norm",)),
    ("head", ("head.",)),
    ("embedding", ("embed", "token")),
)


class _NothingDrawn(TorchFunctionMode):
    """On the meta device there is nothing to draw, and PyTorch's normal_ there imports its compiler: seconds."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return args[0] if func is Tensor.normal_ else func(*args, **(kwargs or {}))


@contextmanager
def shapes_only() -> Iterator[None]:
    """Models that are made meanwhile have shapes and no weights (PyTorch's meta
    device): to be counted, or filled later.
    """
    with torch.device("meta"), _NothingDrawn():
        yield


def parameter_counts(model: nn.Module) -> dict[str, int]:
    """Number of parameters by kind: attention_qkv, attention_proj, mlp, norm, head, embedding, other, and total.

    For models made of this module's parts. Tied parameters count once; a fixed (sin-cos) position embedding is a buffer
    and does not count.
    """
    counts = dict.fromkeys((*(kind for kind, _ in _KINDS), "other"), 0)
    for name, parameter in model.named_parameters():
        kind = next((kind for kind, parts in _KINDS if any(part in name for part in parts)), "other")
        counts[kind] += parameter.numel()
    return counts | {"total": sum(counts.values())}


def in_attention(counts: Mapping[str, int]) -> int:
    """How many of parameter_counts' parameters are attention's, with their biases."""
    return counts["attention_qkv"] + counts["attention_proj"]
