"""Positions: sines and cosines of a place on a line or in a plane, an order that takes neighbours apart, noise as large
as they are, and rotations by the place."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

FIXED = ("sincos", "sincos2d", "shuffled", "centred", "noise")
STARTED = ("from-sincos", "from-noise")


class KindOfPositions:
    """What a model's config says of its kind of positions, its field pos_embed."""

    pos_embed: str

    @property
    def fixed_positions(self) -> bool:
        """Whether fixed positions are added to the tokens."""
        return self.pos_embed in FIXED

    @property
    def starting_positions(self) -> bool:
        """Whether the positions are learned as a change of something that they start from."""
        return self.pos_embed in STARTED


def register_positions(
    model: nn.Module, shape: tuple[int, ...], sines: Callable[[], Tensor], *, before: int = 0
) -> None:
    """Give a model the positions that its config names, of the shape (..., before + places, d_model): pos_embed, a
    parameter (normal, .02) where they are learned, a buffer where they are fixed, else None; and pos_start, the buffer
    that learned ones are a change of, where they start from something. sines: makes (places, d_model); tokens before
    the first place have zeros.
    """
    config = model.config
    *_, tokens, d_model = shape
    if config.fixed_positions or config.starting_positions:
        rows = noise(tokens - before, d_model) if config.pos_embed.endswith("noise") else sines()
        if config.pos_embed == "shuffled":
            rows = rows[shuffled_order(len(rows))]
        elif config.pos_embed == "centred":
            rows = centred(rows)
        rows = torch.cat([torch.zeros(before, d_model), rows]).reshape(shape)
        # a buffer: fixed, but part of the state dict, as in timm
        model.register_buffer("pos_embed" if config.fixed_positions else "pos_start", rows)
    if not config.fixed_positions:
        learned = config.pos_embed not in ("none", "rotary")
        model.pos_embed = nn.Parameter(torch.empty(shape).normal_(std=0.02)) if learned else None


def sincos(length: int, d_model: int, temperature: float = 10_000.0) -> Tensor:
    """The fixed position embedding of Vaswani et al. 2017, 3.5: (length, d_model), float32.

    Two equal parts, sin(n w) and cos(n w) with w_i = temperature ** (-2 i / d_model); the paper has them in turn, which
    is another order of the channels.

    Raises:
        ValueError: d_model is odd.
    """
    if d_model % 2:
        raise ValueError(f"d_model must be even, not {d_model}")
    # float64, so that every machine rounds to the same float32
    omega = temperature ** (-torch.arange(d_model // 2, dtype=torch.float64) / (d_model // 2))
    angle = torch.arange(length)[:, None] * omega
    return torch.cat([angle.sin(), angle.cos()], dim=1).float()


def sincos2d(height: int, width: int, d_model: int, temperature: float = 10_000.0) -> Tensor:
    """The fixed 2-D position embedding: (height * width, d_model), float32, tokens in row order.

    Four equal parts: sin(x w), cos(x w), sin(y w), cos(y w) with w_i = temperature ** (-4 i / d_model), as in
    MoCo v3 (Chen, Xie & He 2021).

    Raises:
        ValueError: d_model is not divisible by 4.
    """
    if d_model % 4:
        raise ValueError(f"d_model must be divisible by 4, not {d_model}")
    # float64, so that every machine rounds to the same float32
    omega = temperature ** (-torch.arange(d_model // 4, dtype=torch.float64) / (d_model // 4))
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    x, y = x.reshape(-1, 1) * omega, y.reshape(-1, 1) * omega
    return torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=1).float()


def rotations(length: int, head_dim: int, temperature: float = 10_000.0) -> Tensor:
    """The cosines and sines of rotary positions (Su et al. 2021): (2, length, head_dim / 2), float32. Place n turns
    pair i by n temperature ** (-2 i / head_dim).

    Raises:
        ValueError: head_dim is odd.
    """
    if head_dim % 2:
        raise ValueError(f"rotary positions need an even head_dim, not {head_dim}")
    sines, cosines = sincos(length, head_dim, temperature).chunk(2, dim=1)
    return torch.stack([cosines, sines])


def rotate(x: Tensor, table: Tensor | None) -> Tensor:
    """Queries or keys (..., N, head_dim) turned by their places: channel i of a head with channel i + head_dim / 2, as
    in GPT-NeoX and Llama. table: rotations of at least N places; None: positions are not rotary, and nothing is turned.
    """
    if table is None:
        return x
    cosines, sines = table[:, : x.shape[-2]].to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cosines - second * sines, second * cosines + first * sines], dim=-1)


def centred(rows: Tensor) -> Tensor:
    """Fixed positions (places, d_model) without what all places have in common, their mean, and
    as large as they were (root mean square).
    """
    rows = rows.double()
    apart = rows - rows.mean(0)
    return (apart * (rows.square().mean() / apart.square().mean()).sqrt()).float()


def noise(places: int, d_model: int) -> Tensor:
    """Normal noise as large as sines and cosines (root mean square 1 / sqrt(2)), always the
    same: (places, d_model), float32, on the CPU.
    """
    return torch.randn(places, d_model, generator=torch.Generator().manual_seed(0), device="cpu") * 0.5**0.5


def shuffled_order(places: int) -> Tensor:
    """A random order of so many places, always the same one: (places,), on the CPU."""
    return torch.randperm(places, generator=torch.Generator().manual_seed(0), device="cpu")
