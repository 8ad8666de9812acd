"""The vision transformer, as in timm: patch embedding, pre-LN blocks, class token or average pooling, linear head.

With the same weights its output is that of ``timm.models.VisionTransformer`` (tests/test_models_vit.py).

Shape suffixes: B batch, C channels, Y X pixels, N tokens, D d_model.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mimetic.messages import check_choice, check_whole
from mimetic.models.blocks import LAYER_NORM_EPS, Block, check_heads, check_mlp_ratio
from mimetic.models.positions import KindOfPositions, register_positions, sincos2d

GLOBAL_POOL = ("token", "avg")
POS_EMBED = ("sincos2d", "learned", "none", "shuffled", "noise", "from-sincos", "from-noise")


@dataclass(frozen=True)
class ViTConfig(KindOfPositions):
    """Shape of a ViT. The defaults are ViT-Tiny/16 (5.7 M parameters)."""

    img_size: int = 224  # height and width of the images, in pixels
    patch_size: int = 16  # height and width of a patch; must divide img_size
    in_chans: int = 3  # channels: 3 colour, 1 grey
    num_classes: int = 1000
    d_model: int = 192  # width of the tokens
    depth: int = 12  # number of blocks
    num_heads: int = 3  # must divide d_model
    mlp_ratio: float = 4.0  # hidden width of the MLP / d_model
    # "token": a class token, and LayerNorm before it is read; "avg": no class token, LayerNorm after the average.
    # Both as in timm, where they are norm and fc_norm.
    global_pool: str = "token"
    # "sincos2d": fixed, temperature 10,000; "learned": timm's, trunc-normal .02; "none": none;
    # controls, both fixed: "shuffled": sincos2d in a random order of the places, so that neighbours are not alike;
    # "noise": noise as large;
    # "from-sincos": learned, as a change of sincos2d, that is starting there; "from-noise": the same of that noise: a
    # control
    pos_embed: str = "learned"

    def __post_init__(self) -> None:
        for name in ("img_size", "patch_size", "in_chans", "num_classes", "d_model", "depth", "num_heads"):
            check_whole(name, getattr(self, name))
        check_mlp_ratio(self.mlp_ratio, self.d_model)
        if self.img_size % self.patch_size:
            raise ValueError(f"patch_size={self.patch_size} does not divide img_size={self.img_size}")
        check_heads(self.num_heads, self.d_model)
        check_choice("global_pool", self.global_pool, GLOBAL_POOL)
        check_choice("pos_embed", self.pos_embed, POS_EMBED)
        if self.pos_embed in ("sincos2d", "shuffled", "from-sincos") and self.d_model % 4:
            raise ValueError(f"pos_embed={self.pos_embed!r} needs a d_model divisible by 4, not {self.d_model}")


class PatchEmbed(nn.Module):
    """Images (B, C, Y, X) to one token a patch (B, N, D): a convolution whose stride is its kernel size."""

    def __init__(self, patch_size: int, in_chans: int, d_model: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_chans, d_model, kernel_size=patch_size, stride=patch_size)

    def forward(self, x_BCYX: Tensor) -> Tensor:
        # in memory, too, token by token: else every residual sum and every norm's backward pass keeps the order of the
        # convolution
        return self.proj(x_BCYX).flatten(2).transpose(1, 2).contiguous()


class ViT(nn.Module):
    """Vision transformer (Dosovitskiy et al. 2021): images (B, C, img_size, img_size) to logits (B, num_classes).

    The constructor leaves PyTorch's default initialization (position embedding and class token: normal, .02);
    ``mimetic.initialize_`` sets another one by name.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        D = config.d_model
        grid = config.img_size // config.patch_size
        prefix = 1 if config.global_pool == "token" else 0
        self.patch_embed = PatchEmbed(config.patch_size, config.in_chans, D)
        self.cls_token = nn.Parameter(torch.empty(1, 1, D).normal_(std=0.02)) if prefix else None
        register_positions(self, (1, prefix + grid**2, D), lambda: sincos2d(grid, grid, D), before=prefix)
        self.blocks = nn.Sequential(
            *(Block(D, config.num_heads, mlp_ratio=config.mlp_ratio) for _ in range(config.depth))
        )
        pooled = config.global_pool == "avg"
        self.norm = nn.Identity() if pooled else nn.LayerNorm(D, eps=LAYER_NORM_EPS)
        self.fc_norm = nn.LayerNorm(D, eps=LAYER_NORM_EPS) if pooled else nn.Identity()
        self.head = nn.Linear(D, config.num_classes)

    def embed(self, x_BCYX: Tensor) -> Tensor:
        """Images to the tokens that enter the first block, (B, N, D); the class token, if any, comes first."""
        x_BND = self.patch_embed(x_BCYX)
        if self.cls_token is not None:
            x_BND = torch.cat([self.cls_token.expand(len(x_BND), -1, -1), x_BND], dim=1)
        if self.config.starting_positions:
            x_BND = x_BND + self.pos_start
        return x_BND if self.pos_embed is None else x_BND + self.pos_embed

    def features(self, x_BCYX: Tensor) -> Tensor:
        """Images to the tokens after the last block, (B, N, D)."""
        return self.norm(self.blocks(self.embed(x_BCYX)))

    def forward(self, x_BCYX: Tensor) -> Tensor:
        """Images to logits, (B, num_classes)."""
        x_BND = self.features(x_BCYX)
        x_BD = x_BND[:, 0] if self.cls_token is not None else x_BND.mean(dim=1)
        return self.head(self.fc_norm(x_BD))
