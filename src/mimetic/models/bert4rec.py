"""BERT4Rec and its causal sibling: the next item from the items so far.

BERT4Rec (Sun et al. 2019; public code: FeiSun/BERT4Rec) is BERT on items: learned positions (here also sines and
cosines, fixed or as a start), LayerNorm on the embedding, post-LN blocks with GELU, and BERT's masked-item head, a
linear layer with GELU and LayerNorm before the product with the item embedding (tied) and a bias an item.
``causal=True`` with next-item training shares with SASRec (Kang & McAuley 2018) the causal mask and the task; the
block, the head and the loss are BERT4Rec's. SASRec itself normalises only the queries, whose residual starts from them,
has no matrix after the values, and samples one negative. So the two models here differ in the direction of attention
and in what is predicted, nothing else.

Items are 1 to num_items; 0 is padding, on the left, so that the last position is always the most recent; num_items + 1
is the mask. Shape suffixes: B batch, N positions, D d_model, I items, T targets.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mimetic.messages import check_choice, check_whole
from mimetic.models.blocks import Block, check_heads, check_mlp_ratio
from mimetic.models.positions import KindOfPositions, register_positions, sincos

PADDING = 0
LAYER_NORM_EPS = 1e-12  # BERT's
POS_EMBED = ("learned", "sincos", "from-sincos", "from-noise")


@dataclass(frozen=True)
class BERT4RecConfig(KindOfPositions):
    """Shape of the model. The defaults are those of the paper for Amazon Beauty
    (d 64, 2 layers, 2 heads, 50 positions).
    """

    num_items: int
    max_len: int = 50  # positions; older items are not seen
    d_model: int = 64
    depth: int = 2  # blocks
    num_heads: int = 2  # must divide d_model
    mlp_ratio: float = 4.0
    norm_first: bool = False  # pre-LN blocks and a last LayerNorm instead of post-LN
    causal: bool = False  # a position attends to itself and earlier ones only
    dropout: float = 0.1  # of the embedding, of attention weights, after attention and after the MLP
    # "learned": BERT's; "sincos": fixed, and the items times sqrt(d_model) (Vaswani et al. 2017, 3.4, 3.5);
    # "from-sincos": learned, as a change of "sincos", that is starting there, the items as large; "from-noise": the
    # same of noise as large: a control
    pos_embed: str = "learned"

    def __post_init__(self) -> None:
        for name in ("num_items", "max_len", "d_model", "depth", "num_heads"):
            check_whole(name, getattr(self, name))
        check_heads(self.num_heads, self.d_model)
        check_mlp_ratio(self.mlp_ratio, self.d_model)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and less than 1, not {self.dropout!r}")
        check_choice("pos_embed", self.pos_embed, POS_EMBED)
        if self.pos_embed in ("sincos", "from-sincos") and self.d_model % 2:
            raise ValueError(f"pos_embed={self.pos_embed!r} needs an even d_model, not {self.d_model}")


class ItemHead(nn.Module):
    """BERT's masked-item head without its output matrix, which is the item embedding: (..., D) to (..., D)."""

    def __init__(self, d_model: int, num_items: int) -> None:
        super().__init__()
        self.dense = nn.Linear(d_model, d_model)
        self.norm = nn.LayerNorm(d_model, eps=LAYER_NORM_EPS)
        self.bias = nn.Parameter(torch.zeros(num_items))

    def forward(self, x_TD: Tensor) -> Tensor:
        return self.norm(F.gelu(self.dense(x_TD)))


class BERT4Rec(nn.Module):
    """Item sequences (B, N) to one score an item at every position, or at chosen ones.

    The constructor leaves PyTorch's default initialization; ``mimetic.initialize_(model, "bert")`` is the published
    one.
    """

    def __init__(self, config: BERT4RecConfig) -> None:
        super().__init__()
        self.config = config
        D = config.d_model
        self.item_embed = nn.Embedding(config.num_items + 2, D)
        register_positions(self, (1, config.max_len, D), lambda: sincos(config.max_len, D))
        self.embed_norm = nn.LayerNorm(D, eps=LAYER_NORM_EPS)
        self.drop = nn.Dropout(config.dropout)
        # the causal part is in the mask, beside the padding
        self.blocks = nn.ModuleList(
            Block(
                D,
                config.num_heads,
                mlp_ratio=config.mlp_ratio,
                norm_first=config.norm_first,
                dropout=config.dropout,
                eps=LAYER_NORM_EPS,
            )
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(D, eps=LAYER_NORM_EPS) if config.norm_first else nn.Identity()
        self.head = ItemHead(D, config.num_items)

    def attention_mask(self, items_BN: Tensor) -> Tensor:
        """(B, 1, N, N), True where attended: items, and in a causal model only up to the position
        itself. A position always attends to itself, so that no row of the softmax is empty; what
        comes out at a padded position is never read.
        """
        N = items_BN.shape[1]
        ones = torch.ones(N, N, dtype=torch.bool, device=items_BN.device)
        seen = (items_BN != PADDING)[:, None, None, :]
        return (seen & ones.tril() if self.config.causal else seen) | torch.eye(
            N, dtype=torch.bool, device=items_BN.device
        )

    def features(self, items_BN: Tensor) -> Tensor:
        """(B, N) int64 to what the head reads, (B, N, D). N may be less than
        max_len: the last N positions are then used.
        """
        N = items_BN.shape[1]
        if N > self.config.max_len:
            raise ValueError(f"{N} positions, the model has {self.config.max_len}")
        x_BND = self.item_embed(items_BN)
        if self.config.fixed_positions or self.config.starting_positions:
            x_BND = x_BND * self.config.d_model**0.5
        if self.config.starting_positions:
            x_BND = x_BND + self.pos_start[:, -N:]
        x_BND = self.drop(self.embed_norm(x_BND + self.pos_embed[:, -N:]))
        mask = self.attention_mask(items_BN)
        for block in self.blocks:
            x_BND = block(x_BND, mask)
        return self.norm(x_BND)

    def scores(self, x_TD: Tensor) -> Tensor:
        """Features (..., D) to one score an item, (..., I): index i is item i + 1; padding and mask have none."""
        table_ID = self.item_embed.weight[1 : self.config.num_items + 1]
        return F.linear(self.head(x_TD), table_ID, self.head.bias)

    def forward(self, items_BN: Tensor, at: Tensor | None = None) -> Tensor:
        """Scores at every position, (B, N, I), or where the boolean ``at`` (B, N) is True, (T, I)."""
        x_BND = self.features(items_BN)
        return self.scores(x_BND if at is None else x_BND[at])
