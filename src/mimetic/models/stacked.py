"""Several models of one shape side by side: every weight has a leading axis of
models, every product is one batched product.

A small model leaves a GPU idle: what it waits for is the start of the next kernel. Forty small models in the same
kernels take hardly longer than one. The models have nothing to do with one another, so the gradient of the sum of their
losses is each one's own gradient.

Shape suffixes: R models, B batch, C channels, Y X pixels, P pixels of a patch times channels, N tokens, T tokens of the
whole batch, D d_model, H heads, K head_dim, V vocab_size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mimetic.models.blocks import LAYER_NORM_EPS, attend
from mimetic.models.gpt import GPT, GPT2_EPS, combine
from mimetic.models.positions import rotate
from mimetic.models.vit import ViT


class Stacked(nn.Module):
    """The weights of several models as one module. The models live on as views of it: what changes here changes there.

    ``names[i]`` is the name that parameter i of ``weights`` has in each model.

    Raises:
        ValueError: no model, or models of different shape.
    """

    eps: float  # of the LayerNorms
    causal: bool
    gelu: str

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        if not models or any(model.config != models[0].config for model in models):
            raise ValueError("the models must be at least one, and of one shape")
        self.config, self.size = models[0].config, len(models)
        self.names = [name for name, _ in models[0].named_parameters()]
        self.weights = nn.ParameterList()
        for name in self.names:
            each = [model.get_parameter(name) for model in models]
            self.weights.append(nn.Parameter(torch.stack([parameter.detach() for parameter in each])))
            for parameter, view in zip(each, self.weights[-1].detach(), strict=True):
                parameter.data = view
        # positions that are no parameter are the same in every model
        fixed = None
        if self.config.fixed_positions:
            fixed = models[0].pos_embed.detach()
        elif self.config.starting_positions:
            fixed = models[0].pos_start.detach()
        self.register_buffer("fixed", fixed)
        self.register_buffer("rotary", models[0].blocks[0].attn.rotary)

    def linear(self, name: str, x_RTD: Tensor) -> Tensor:
        """nn.Linear of every model."""
        return torch.baddbmm(self.weight(f"{name}.bias")[:, None], x_RTD, self.weight(f"{name}.weight").mT)

    def norm(self, name: str, x_RTD: Tensor) -> Tensor:
        """nn.LayerNorm of every model."""
        normal = F.layer_norm(x_RTD, x_RTD.shape[-1:], eps=self.eps)
        return torch.addcmul(self.weight(f"{name}.bias")[:, None], normal, self.weight(f"{name}.weight")[:, None])

    def blocks(self, x_RBND: Tensor) -> Tensor:
        """models.blocks.Block, pre-LN and without dropout, of every model and depth; (R, B, N, D) to (R, B * N, D)."""
        R, B, N, _ = x_RBND.shape
        x_RTD = x_RBND.flatten(1, 2)
        for i in range(self.config.depth):
            at = f"blocks.{i}."
            qkv = self.linear(at + "attn.qkv", self.norm(at + "norm1", x_RTD))
            q, k, v = qkv.view(R * B, N, 3, self.config.num_heads, -1).permute(2, 0, 3, 1, 4)
            mixed = (
                attend(rotate(q, self.rotary), rotate(k, self.rotary), v, causal=self.causal)
                .transpose(1, 2)
                .reshape(x_RTD.shape)
            )
            x_RTD = x_RTD + self.linear(at + "attn.proj", mixed)
            hidden = self.linear(at + "mlp.fc1", self.norm(at + "norm2", x_RTD))
            x_RTD = x_RTD + self.linear(at + "mlp.fc2", F.gelu(hidden, approximate=self.gelu))
        return x_RTD

    def weight(self, name: str) -> Tensor:
        """A parameter of every model, by its name in each."""
        return self.weights[self.names.index(name)]


class StackedViT(Stacked):
    """models.vit.ViT: images (R, B, C, Y, X) to logits (R, B, classes)."""

    eps, causal, gelu = LAYER_NORM_EPS, False, "none"

    def forward(self, x_RBCYX: Tensor) -> Tensor:
        c, B = self.config, x_RBCYX.shape[1]
        patches = F.unfold(x_RBCYX.flatten(0, 1), c.patch_size, stride=c.patch_size).mT  # (R * B, N, P)
        patches_RTP = patches.reshape(self.size, -1, patches.shape[-1])
        kernel_RPD = self.weight("patch_embed.proj.weight").flatten(2).mT
        x_RTD = torch.baddbmm(self.weight("patch_embed.proj.bias")[:, None], patches_RTP, kernel_RPD)
        x_RBND = x_RTD.view(self.size, B, -1, c.d_model)
        if c.global_pool == "token":
            x_RBND = torch.cat([self.weight("cls_token").expand(-1, B, -1, -1), x_RBND], dim=2)
        if self.fixed is not None:
            x_RBND = x_RBND + self.fixed
        if "pos_embed" in self.names:
            x_RBND = x_RBND + self.weight("pos_embed")
        x_RBND = self.blocks(x_RBND).view(x_RBND.shape)
        x_RBD = (
            self.norm("norm", x_RBND[:, :, 0]) if c.global_pool == "token" else self.norm("fc_norm", x_RBND.mean(dim=2))
        )
        return self.linear("head", x_RBD)


class StackedGPT(Stacked):
    """models.gpt.GPT: token ids (R, B, N) to logits (R, B, N, V)."""

    eps, causal, gelu = GPT2_EPS, True, "tanh"

    def forward(self, ids_RBN: Tensor) -> Tensor:
        R, B, N = ids_RBN.shape
        tokens_RVD = self.weight("token_embed.weight")
        # of each model's rows in the table of all
        first_R = torch.arange(R, device=ids_RBN.device) * tokens_RVD.shape[1]
        tokens_RBND = F.embedding(ids_RBN + first_R[:, None, None], tokens_RVD.flatten(0, 1))
        learned = self.weight("pos_embed")[:, None, :N] if "pos_embed" in self.names else None
        fixed = None if self.fixed is None else self.fixed[:N]
        positions = fixed if learned is None else learned if fixed is None else learned + fixed
        x_RBND = combine(self.config, tokens_RBND, positions)
        return (self.norm("norm", self.blocks(x_RBND)) @ tokens_RVD.mT).view(R, B, N, -1)


def stack(models: Sequence[nn.Module]) -> Stacked:
    """The models as one; ValueError for others than ViT and GPT."""
    kinds = {ViT: StackedViT, GPT: StackedGPT}
    if not models or type(models[0]) not in kinds:
        raise ValueError("only ViT and GPT can be stacked")
    return kinds[type(models[0])](models)
