"""Several ViTs of one shape side by side: every weight has a leading axis of models, every product is one batched product.

A small model leaves a GPU idle: what it waits for is the start of the next kernel. Forty small models in the same kernels take hardly
longer than one. The models have nothing to do with one another, so the gradient of the sum of their losses is each one's own gradient.

Shape suffixes: R models, B batch, C channels, Y X pixels, P pixels of a patch times channels, N tokens, D d_model, H heads, K head_dim.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mimetic.models.blocks import LAYER_NORM_EPS, attend
from mimetic.models.vit import ViT


class StackedViT(nn.Module):
    """The weights of several ViTs (models.vit) as one module; the models themselves stay as they are until ``unstack_``.

    ``names[i]`` is the name that parameter i of ``parameters()`` has in each model.

    Raises:
        ValueError: no model, or models of different shape.
    """

    def __init__(self, models: Sequence[ViT]) -> None:
        super().__init__()
        if not models or any(model.config != models[0].config for model in models):
            raise ValueError("the models must be at least one, and of one shape")
        self.config, self.size = models[0].config, len(models)
        self.names = [name for name, _ in models[0].named_parameters()]
        together = zip(*(model.parameters() for model in models), strict=True)
        self.weights = nn.ParameterList(nn.Parameter(torch.stack([p.detach() for p in each])) for each in together)
        fixed = self.config.pos_embed == "sincos2d"
        self.register_buffer("fixed_pos_embed", models[0].pos_embed.detach().clone() if fixed else None)

    @torch.no_grad()
    def unstack_(self, models: Sequence[ViT]) -> None:
        """Write the weights into as many models of the same shape."""
        for name, weight in zip(self.names, self.weights, strict=True):
            for model, value in zip(models, weight, strict=True):
                model.get_parameter(name).copy_(value)

    def forward(self, x_RBCYX: Tensor) -> Tensor:
        """Each model's own images, or (1, B, C, Y, X): the same for all, to logits (R, B, classes)."""
        w, c = dict(zip(self.names, self.weights, strict=True)), self.config
        one, B = x_RBCYX.shape[:2]
        patches = F.unfold(x_RBCYX.flatten(0, 1), c.patch_size, stride=c.patch_size)  # (one * B, P, N)
        N = patches.shape[-1]
        patches_RTP = patches.mT.reshape(one, B * N, -1).expand(self.size, -1, -1)
        kernel_RPD = w["patch_embed.proj.weight"].flatten(2).mT
        x_RBND = torch.baddbmm(w["patch_embed.proj.bias"][:, None], patches_RTP, kernel_RPD).view(self.size, B, N, -1)
        if c.global_pool == "token":
            x_RBND = torch.cat([w["cls_token"].expand(-1, B, -1, -1), x_RBND], dim=2)
        if c.pos_embed == "sincos2d":
            x_RBND = x_RBND + self.fixed_pos_embed
        elif c.pos_embed == "learned":
            x_RBND = x_RBND + w["pos_embed"]
        N = x_RBND.shape[2]
        x_RTD = x_RBND.flatten(1, 2)
        for i in range(c.depth):
            at = f"blocks.{i}."
            qkv = _linear(w, at + "attn.qkv", _norm(w, at + "norm1", x_RTD))
            q, k, v = qkv.view(self.size * B, N, 3, c.num_heads, -1).permute(2, 0, 3, 1, 4)
            x_RTD = x_RTD + _linear(w, at + "attn.proj", attend(q, k, v).transpose(1, 2).reshape(x_RTD.shape))
            hidden = _linear(w, at + "mlp.fc1", _norm(w, at + "norm2", x_RTD))
            x_RTD = x_RTD + _linear(w, at + "mlp.fc2", F.gelu(hidden))
        x_RBND = x_RTD.view(self.size, B, N, -1)
        if c.global_pool == "token":
            x_RBD = _norm(w, "norm", x_RBND[:, :, 0])
        else:
            x_RBD = _norm(w, "fc_norm", x_RBND.mean(dim=2))
        return _linear(w, "head", x_RBD)


def _linear(w: dict[str, Tensor], name: str, x_RTD: Tensor) -> Tensor:
    """nn.Linear of every model."""
    return torch.baddbmm(w[f"{name}.bias"][:, None], x_RTD, w[f"{name}.weight"].mT)


def _norm(w: dict[str, Tensor], name: str, x_RTD: Tensor) -> Tensor:
    """nn.LayerNorm of every model."""
    normal = F.layer_norm(x_RTD, x_RTD.shape[-1:], eps=LAYER_NORM_EPS)
    return torch.addcmul(w[f"{name}.bias"][:, None], normal, w[f"{name}.weight"][:, None])
