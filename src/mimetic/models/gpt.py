"""GPT-2: token and learned position embedding, pre-LN causal blocks, LayerNorm, a head that shares the token embedding;
or the same with the fixed positions of the first transformer, or with rotary ones.

With the same weights its logits are those of ``transformers.GPT2LMHeadModel`` (tests/test_models_gpt.py).

Shape suffixes: B batch, N tokens, D d_model, V vocab_size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mimetic.messages import check_choice, check_whole
from mimetic.models.blocks import Block, check_heads, check_mlp_ratio
from mimetic.models.positions import KindOfPositions, register_positions, sincos
from mimetic.scan import evaluating

GPT2_EPS = 1e-5  # of GPT-2's LayerNorms
POS_EMBED = ("learned", "scaled", "sincos", "shuffled", "centred", "rotary", "from-sincos", "from-noise")


@dataclass(frozen=True)
class GPTConfig(KindOfPositions):
    """Shape of a GPT. The defaults are GPT-2 small (124 M parameters)."""

    vocab_size: int = 50_257
    context: int = 1024  # most tokens that it can attend to
    d_model: int = 768  # width of the tokens
    depth: int = 12  # number of blocks
    num_heads: int = 12  # must divide d_model
    mlp_ratio: float = 4.0  # hidden width of the MLP / d_model
    # "learned": GPT-2's, normal .02; "scaled": the same, and tokens and positions times sqrt(d_model); "sincos": fixed,
    # of the size 1 / sqrt(2), and the tokens times sqrt(d_model) (Vaswani et al. 2017, 3.4, 3.5);
    # "shuffled": the same in a random order of the positions, so that neighbours are not alike; "centred": the same
    # without what all positions have in common. Both are controls; "rotary": no embedding, queries and keys are rotated
    # by their places (Su et al. 2021), as in GPT-NeoX and Llama;
    # "from-sincos": learned, as a change of "sincos", that is starting there, the tokens as large; "from-noise": the
    # same of noise as large: a control
    pos_embed: str = "learned"

    def __post_init__(self) -> None:
        for name in ("vocab_size", "context", "d_model", "depth", "num_heads"):
            check_whole(name, getattr(self, name))
        check_mlp_ratio(self.mlp_ratio, self.d_model)
        check_heads(self.num_heads, self.d_model)
        check_choice("pos_embed", self.pos_embed, POS_EMBED)
        if self.pos_embed in ("sincos", "shuffled", "centred", "from-sincos") and self.d_model % 2:
            raise ValueError(f"pos_embed={self.pos_embed!r} needs an even d_model, not {self.d_model}")
        if self.pos_embed == "rotary" and self.d_model // self.num_heads % 2:
            raise ValueError(
                f"pos_embed='rotary' needs an even d_model / num_heads, not {self.d_model} / {self.num_heads}"
            )


class GPT(nn.Module):
    """Causal language model (Radford et al. 2019): token ids (B, N), N <=
    context, to logits (B, N, V) of the next tokens.

    The head is the token embedding, as in GPT-2: one parameter, counted once. There is no dropout. The constructor
    leaves PyTorch's default initialization; ``mimetic.initialize_`` sets another one by name ("gpt2" is GPT-2's own).
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        D = config.d_model
        self.token_embed = nn.Embedding(config.vocab_size, D)
        register_positions(self, (config.context, D), lambda: sincos(config.context, D))
        self.blocks = nn.Sequential(
            *(
                Block(
                    D,
                    config.num_heads,
                    mlp_ratio=config.mlp_ratio,
                    causal=True,
                    eps=GPT2_EPS,
                    gelu="tanh",
                    rotary=config.context if config.pos_embed == "rotary" else 0,
                )
                for _ in range(config.depth)
            )
        )
        self.norm = nn.LayerNorm(D, eps=GPT2_EPS)

    def embed(self, ids_BN: Tensor) -> Tensor:
        """Token ids to the tokens that enter the first block, (B, N, D)."""
        positions = None if self.pos_embed is None else self.pos_embed[: ids_BN.shape[1]]
        if self.config.starting_positions:
            positions = positions + self.pos_start[: ids_BN.shape[1]]
        return combine(self.config, self.token_embed(ids_BN), positions)

    def features(self, ids_BN: Tensor) -> Tensor:
        """Token ids to the tokens that the head reads, (B, N, D).

        Raises:
            ValueError: more tokens than the context.
        """
        N = ids_BN.shape[1]
        if N > self.config.context:
            raise ValueError(f"{N} tokens are more than the context of {self.config.context}")
        return self.norm(self.blocks(self.embed(ids_BN)))

    def forward(self, ids_BN: Tensor) -> Tensor:
        """Token ids (B, N) to logits (B, N, V)."""
        return F.linear(self.features(ids_BN), self.token_embed.weight)


def combine(config: GPTConfig, tokens: Tensor, positions: Tensor | None) -> Tensor:
    """What enters the first block, of a token's embedding and its position's, if it has one; shapes that broadcast."""
    if positions is None:
        return tokens
    root = config.d_model**0.5
    if config.fixed_positions or config.starting_positions:
        return tokens * root + positions
    return (tokens + positions) * root if config.pos_embed == "scaled" else tokens + positions


@torch.no_grad()
def generate(model: GPT, ids: list[int], length: int, *, seed: int = 0, temperature: float = 1.0) -> list[int]:
    """``length`` tokens that follow ``ids``, drawn one by one from the model's
    distribution; a function of its arguments.

    The model sees at most its context of the last tokens. It is left in the mode that it was in.

    Raises:
        ValueError: no tokens to begin with, or a temperature that is not positive.
    """
    if not ids:
        raise ValueError("no tokens to begin with")
    if not temperature > 0:
        raise ValueError(f"temperature must be greater than 0, not {temperature!r}")
    device = model.token_embed.weight.device
    generator, out = torch.Generator().manual_seed(seed), list(ids)
    with evaluating(model):
        for _ in range(length):
            logits = model(torch.tensor([out[-model.config.context :]], device=device))[0, -1]
            p = (logits.cpu().double() / temperature).softmax(0)  # drawn on the CPU: the same numbers on every device
            out.append(int(torch.multinomial(p, 1, generator=generator)))
    return out[len(ids) :]
