"""The default initializations that mimetic initialization is compared with and written over, of whole models, in place:
timm's, PyTorch's, Xavier's, GPT-2's, BERT's. By name: mimetic.initializers.initialize_, which also takes care of
weights on another device.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from mimetic.adapters.views import is_conv1d

Generator = torch.Generator | None

# learned position embeddings that are parameters, of our models, timm's and torchvision's
POSITIONS = ("pos_embed", "pos_embedding")
# layers of queries, keys and values; also transformers' Conv1D, (in, out)
FUSED = (
    "c_attn",
    "qkv_proj",
    "to_qkv",
    "kqv",
    "qkv_linear",
    "attn_qkv",
    "W_pack",
    "query_key_value",
    "Wqkv",
    "in_proj",
)
CLASS_TOKENS = ("cls_token", "class_token")


def init_timm_(model: nn.Module, generator: Generator = None) -> None:
    """timm's ViT default: nn.Linear weights trunc-normal with std .02, biases 0; learned position embedding and class
    token as timm has them (std .02 and 1e-6); everything else (patch embedding, norms) as PyTorch. Source: timm
    models/vision_transformer.py, init_weights_vit_timm."""
    init_torch_(model, generator)
    for _, weights, bias in _linear(model):
        for weight in weights:
            _trunc_normal_(weight, generator)
        if bias is not None:
            nn.init.zeros_(bias)


def init_torch_(model: nn.Module, generator: Generator = None) -> None:
    """PyTorch's own default of every module (reset_parameters), with a seed drawn from the generator; position
    embedding and class token, which PyTorch has no default for, as timm has them."""
    device = generator.device if generator is not None else "cpu"
    seed = int(torch.randint(2**31, (), generator=generator, device=device))
    leaves, others = [], []
    for module in model.modules():
        (leaves if next(module.children(), None) is None else others).append(module)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which would reseed the GPUs as well
        for module in (*leaves, *reversed(others)):  # what a module sets of its parts comes after them
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
            elif isinstance(module, nn.MultiheadAttention):
                module._reset_parameters()
            elif is_conv1d(module):  # as transformers builds it
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
    for name, p in model.named_parameters():
        if name.endswith(POSITIONS) and p.requires_grad:
            _trunc_normal_(p, generator)
        elif name.endswith(CLASS_TOKENS):
            nn.init.normal_(p, std=1e-6, generator=generator)


def init_xavier_(model: nn.Module, generator: Generator = None) -> None:
    """Xavier (Glorot) uniform for every nn.Linear, biases 0; a fused qkv weight as three matrices, since its fan-out as
    one is not that of a query. The rest as init_torch_. The choice of the original ViT and of Flax's attention."""
    init_torch_(model, generator)
    for name, weights, bias in _linear(model):
        for weight in weights:
            fused = (
                name.rpartition(".")[2] == "qkv" or 3 * min(weight.shape) == max(weight.shape) and name.endswith(FUSED)
            )
            for part in weight.chunk(3, dim=int(weight.shape[0] < weight.shape[1])) if fused else (weight,):
                nn.init.xavier_uniform_(part, generator=generator)
        if bias is not None:
            nn.init.zeros_(bias)


def init_gpt2_(model: nn.Module, generator: Generator = None) -> None:
    """GPT-2's default: nn.Linear and nn.Embedding weights and a learned position embedding normal with std .02, biases
    0, and std .02 / sqrt(2 * depth), the root of their number, for the two layers of a block that write to the residual
    stream (attention's projection, the MLP's second layer, known by their names). Source: Radford et al. 2019, section
    2.3; transformers models/gpt2/modeling_gpt2.py.

    Raises:
        ValueError: no layer has one of those names. Nothing was written.
    """
    attention, mlp = (
        {name for name, _, _ in _linear(model) if f".{name}".endswith(ends)} for ends in (ATTENTION_OUT, MLP_OUT)
    )
    # not a head's
    mlp = {
        name
        for name in mlp
        if f".{name}".endswith(".mlp.fc2") or not name.endswith("fc2") or re.search(r"(^|\.)\d+\.", name)
    }
    residual = attention | mlp
    for found, what, ends in (
        (attention, "projection of attention", ATTENTION_OUT),
        (mlp - attention, "second layer of an MLP", MLP_OUT),
    ):
        if not found:
            raise ValueError(
                f"gpt2 is smaller in front of the residual stream, and found no {what}: no layer is called"
                f" {', '.join(end.strip('.') for end in ends)}"
            )
    init_torch_(model, generator)
    for name, weights, bias in _linear(model, embeddings=True):
        for weight in weights:
            nn.init.normal_(weight, std=0.02 / len(residual) ** 0.5 if name in residual else 0.02, generator=generator)
        if bias is not None:
            nn.init.zeros_(bias)
    for name, p in model.named_parameters():
        if name.endswith(POSITIONS) and p.requires_grad:
            nn.init.normal_(p, std=0.02, generator=generator)
    _zero_padding_(model)


# ours and timm's; torch.nn's, torchvision's, transformers' CLIP's and BART's; GPT-2's; Llama's; BERT's; GPT-NeoX's and
# Falcon's; T5's
ATTENTION_OUT = (
    ".attn.proj",
    "attn.out_proj",
    ".attn.c_proj",
    "attn.o_proj",
    "attention.output.dense",
    "attention.dense",
    "Attention.o",
    "attention.out_proj",
)
MLP_OUT = (
    ".mlp.fc2",
    ".fc2",
    ".linear2",
    ".mlp.3",
    ".mlp.c_proj",
    ".mlp.down_proj",
    ".output.dense",
    ".dense_4h_to_h",
    ".wo",
    ".fc_out",
)


def init_bert_(model: nn.Module, generator: Generator = None) -> None:
    """BERT's and BERT4Rec's own: the weight of every nn.Linear and nn.Embedding and the learned position embedding from
    a normal of std .02 cut at two standard deviations (TensorFlow's truncated_normal), biases 0, norms 1 and 0. Unlike
    "timm" it sets embeddings, whose PyTorch default, std 1, would make the scores of a tied output fifty times larger,
    and it cuts at .04 where timm's cut, at 2, never happens. Source: create_initializer in google-research/bert and
    FeiSun/BERT4Rec, modeling.py."""
    init_torch_(model, generator)
    for _, weights, bias in _linear(model, embeddings=True):
        for weight in weights:
            _trunc_normal_(weight, generator, 0.04)
        if bias is not None:
            nn.init.zeros_(bias)
    for name, p in model.named_parameters():
        if name.endswith(POSITIONS) and p.requires_grad:
            _trunc_normal_(p, generator, 0.04)
    _zero_padding_(model)


def _linear(model: nn.Module, embeddings: bool = False) -> Iterator[tuple[str, list[Tensor], Tensor | None]]:
    """(name, weights, bias) of every linear map, in the model's order: nn.Linear, transformers' Conv1D,
    nn.MultiheadAttention's queries, keys and values as matrices of their own; and nn.Embedding if wanted. A parameter
    that several modules share comes as often as it does in them."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) or is_conv1d(module) or (embeddings and isinstance(module, nn.Embedding)):
            yield name, [module.weight], getattr(module, "bias", None)
        elif isinstance(module, nn.MultiheadAttention):
            packed = module.in_proj_weight
            weights = (
                [getattr(module, f"{part}_proj_weight") for part in "qkv"] if packed is None else list(packed.chunk(3))
            )
            yield name, weights, module.in_proj_bias


def _zero_padding_(model: nn.Module) -> None:
    """The row of a padding index: 0, as nn.Embedding has it and since it is never trained."""
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            module.weight[module.padding_idx].zero_()


def _trunc_normal_(p: Tensor, generator: Generator, cut: float = 2.0) -> None:
    """Normal with std .02, cut at +-cut. In half precision by way of float32: there PyTorch before 2.7 or so puts
    single entries at the cut.
    """
    if p.dtype in (torch.float32, torch.float64):
        nn.init.trunc_normal_(p, std=0.02, a=-cut, b=cut, generator=generator)
    else:
        p.copy_(
            nn.init.trunc_normal_(
                torch.empty_like(p, dtype=torch.float32), std=0.02, a=-cut, b=cut, generator=generator
            )
        )


DEFAULTS: dict[str, Callable] = {
    "timm": init_timm_, "torch": init_torch_, "xavier": init_xavier_, "gpt2": init_gpt2_, "bert": init_bert_,
}  # fmt: skip
