"""Whole models initialised in place, by name, as timm does it: defaults, mimetic initialization, and its controls.

A control shares one property with mimetic initialization and lacks another, so that an experiment can say which of them
matters. The names are INITIALIZERS. With one generator state all of them share every weight that they do not set differently.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from mimetic.adapters.views import is_conv1d
from mimetic.attention import AttentionLayer, MimeticWarning
from mimetic.initialize import VISION, MimeticSpec, mimetic_init_
from mimetic.plan import plan
from mimetic.scan import attention_layers

Generator = torch.Generator | None


# --- defaults --------------------------------------------------------------------------------------------------------


POSITIONS = ("pos_embed", "pos_embedding")  # learned position embeddings that are parameters, of our models, timm's and torchvision's
CLASS_TOKENS = ("cls_token", "class_token")


def init_timm_(model: nn.Module, generator: Generator = None) -> None:
    """timm's ViT default: nn.Linear weights trunc-normal with std .02, biases 0; learned position embedding and class token
    as timm has them (std .02 and 1e-6); everything else (patch embedding, norms) as PyTorch. Source: timm
    models/vision_transformer.py, init_weights_vit_timm."""
    init_torch_(model, generator)
    for _, weights, bias in _linear(model):
        for weight in weights:
            nn.init.trunc_normal_(weight, std=0.02, generator=generator)
        if bias is not None:
            nn.init.zeros_(bias)


def init_torch_(model: nn.Module, generator: Generator = None) -> None:
    """PyTorch's own default of every module (reset_parameters), with a seed drawn from the generator; position embedding
    and class token, which PyTorch has no default for, as timm has them."""
    device = generator.device if generator is not None else "cpu"
    seed = int(torch.randint(2**31, (), generator=generator, device=device))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in model.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
            elif isinstance(module, nn.MultiheadAttention):
                module._reset_parameters()
            elif is_conv1d(module):  # as transformers builds it
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
    for name, p in model.named_parameters():
        if name.endswith(POSITIONS) and p.requires_grad:
            nn.init.trunc_normal_(p, std=0.02, generator=generator)
        elif name.endswith(CLASS_TOKENS):
            nn.init.normal_(p, std=1e-6, generator=generator)


def init_xavier_(model: nn.Module, generator: Generator = None) -> None:
    """Xavier (Glorot) uniform for every nn.Linear, biases 0; a fused qkv weight as three matrices, since its fan-out as one
    is not that of a query. The rest as init_torch_. The choice of the original ViT and of Flax's attention."""
    init_torch_(model, generator)
    for name, weights, bias in _linear(model):
        for weight in weights:
            for part in weight.chunk(3) if name.rpartition(".")[2] == "qkv" else (weight,):
                nn.init.xavier_uniform_(part, generator=generator)
        if bias is not None:
            nn.init.zeros_(bias)


def init_gpt2_(model: nn.Module, generator: Generator = None) -> None:
    """GPT-2's default: nn.Linear and nn.Embedding weights and a learned position embedding normal with std .02, biases 0, and
    std .02 / sqrt(2 * depth) for the two layers of a block that write to the residual stream (attention's projection, the
    MLP's second layer). Source: Radford et al. 2019, section 2.3; transformers models/gpt2/modeling_gpt2.py."""
    init_torch_(model, generator)
    depth = sum(name.endswith(ATTENTION_OUT) for name, _ in model.named_modules())
    for name, weights, bias in _linear(model, embeddings=True):
        residual = name.endswith((*ATTENTION_OUT, *MLP_OUT))
        for weight in weights:
            nn.init.normal_(weight, std=0.02 / (2 * depth) ** 0.5 if residual else 0.02, generator=generator)
        if bias is not None:
            nn.init.zeros_(bias)
    for name, p in model.named_parameters():
        if name.endswith(POSITIONS) and p.requires_grad:
            nn.init.normal_(p, std=0.02, generator=generator)


ATTENTION_OUT, MLP_OUT = ("attn.proj", "attn.c_proj"), ("mlp.fc2", "mlp.c_proj")  # ours and timm's, transformers' GPT-2's


def init_bert_(model: nn.Module, generator: Generator = None) -> None:
    """BERT's and BERT4Rec's own: the weight of every nn.Linear and nn.Embedding and the learned position embedding from a normal
    of std .02 cut at two standard deviations (TensorFlow's truncated_normal), biases 0, norms 1 and 0. Unlike "timm" it sets
    embeddings, whose PyTorch default, std 1, would make the scores of a tied output fifty times larger, and it cuts at .04
    where timm's cut, at 2, never happens. Source: create_initializer in google-research/bert and FeiSun/BERT4Rec, modeling.py."""
    init_torch_(model, generator)
    for _, weights, bias in _linear(model, embeddings=True):
        for weight in weights:
            _bert_normal_(weight, generator)
        if bias is not None:
            nn.init.zeros_(bias)
    for name, p in model.named_parameters():
        if name.endswith(POSITIONS):
            _bert_normal_(p, generator)


def _linear(model: nn.Module, embeddings: bool = False) -> Iterator[tuple[str, list[Tensor], Tensor | None]]:
    """(name, weights, bias) of every linear map, in the model's order: nn.Linear, transformers' Conv1D, nn.MultiheadAttention's
    queries, keys and values as matrices of their own; and nn.Embedding if wanted. A parameter that several modules share comes
    as often as it does in them."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) or is_conv1d(module) or (embeddings and isinstance(module, nn.Embedding)):
            yield name, [module.weight], getattr(module, "bias", None)
        elif isinstance(module, nn.MultiheadAttention):
            packed = module.in_proj_weight
            weights = [getattr(module, f"{part}_proj_weight") for part in "qkv"] if packed is None else list(packed.chunk(3))
            yield name, weights, module.in_proj_bias


def _bert_normal_(p: Tensor, generator: Generator) -> None:
    nn.init.trunc_normal_(p, std=0.02, a=-0.04, b=0.04, generator=generator)


# --- mimetic initialization and its controls -------------------------------------------------------------------------


def random_directions_(model: nn.Module, generator: Generator = None) -> None:
    """Replace the singular vectors of every attention product by random ones; the singular values and how they are split
    between the factors stay. For models that mimetic_init_ has just written: there the columns of a factor are orthogonal,
    so their norms are the square roots of the singular values."""
    for layer in _unshared(model):
        for h in range(layer.num_heads):
            for factor in (layer.q, layer.k):
                factor[:, h] = _orthonormal(layer.d_model, layer.head_dim, generator) * factor[:, h].norm(dim=0)
        rank = layer.num_heads * layer.head_dim
        v = layer.v.flatten(1)
        layer.v.copy_((_orthonormal(layer.d_model, rank, generator) * v.norm(dim=0)).view_as(layer.v))
        proj = layer.proj.flatten(0, 1)
        layer.proj.copy_((_orthonormal(layer.d_model, rank, generator) * proj.norm(dim=1)).mT.view_as(layer.proj))


def untransposed_(model: nn.Module, generator: Generator = None) -> None:
    """Store V's and proj's factors the way most public code does: v.weight = L, proj.weight = R for the target L @ R.
    nn.Linear multiplies by the transpose, so the product becomes (R L)^T: the target's eigenvalues, hence its trace, on
    a diagonal that is far from constant."""
    for layer in _unshared(model):
        v, proj = layer.v.flatten(1).mT.clone(), layer.proj.flatten(0, 1).mT.clone()
        layer.v.copy_(v.view_as(layer.v))
        layer.proj.copy_(proj.view_as(layer.proj))


def rescale_like_(model: nn.Module, other: nn.Module) -> None:
    """Scale every head's W_Q and W_K and every layer's W_V and W_proj to the Frobenius norm that they have in other."""
    for ours, theirs in zip(_unshared(model), _unshared(other), strict=True):
        for name in ("q", "k"):
            matrix, wanted = getattr(ours, name), getattr(theirs, name)
            matrix.mul_(wanted.norm(dim=(0, 2), keepdim=True) / matrix.norm(dim=(0, 2), keepdim=True))
        for name in ("v", "proj"):
            matrix = getattr(ours, name)
            matrix.mul_(getattr(theirs, name).norm() / matrix.norm())


def truncate_qk_(model: nn.Module, rank: int, generator: Generator = None) -> None:
    """Cut every head's W_Q W_K^T to a smaller rank than head_dim, after mimetic_init_. What is left is spread over the
    head's dimensions by a random rotation: a dimension that is zero in W_Q and in W_K would never learn.

    Raises:
        ValueError: rank is not between 1 and head_dim.
    """
    for layer in _unshared(model):
        _check_rank(layer, rank)
        for h in range(layer.num_heads):
            spread = _orthonormal(layer.head_dim, rank, generator).mT
            for factor in (layer.q, layer.k):
                factor[:, h] = factor[:, h, :rank] @ spread


def _check_rank(layer: AttentionLayer, rank: int | None) -> None:
    if rank is not None and not 1 <= rank <= layer.head_dim:
        raise ValueError(f"qk_rank must be between 1 and the head size {layer.head_dim}, not {rank!r}")


def _unshared(model: nn.Module) -> list[AttentionLayer]:
    """The attention layers of one of our own models: every head has keys and values of its own."""
    layers = attention_layers(model)
    for layer in layers:
        if layer.num_kv_heads != layer.num_heads:
            raise ValueError(f"{layer.name}: the controls are for layers without grouped queries")
    return layers


def _orthonormal(d: int, k: int, generator: Generator) -> Tensor:
    """(d, k) with orthonormal columns, k <= d, uniformly distributed."""
    device = generator.device if generator is not None else "cpu"
    q, r = torch.linalg.qr(torch.randn(d, k, generator=generator, device=device, dtype=torch.float32).cpu())
    return q * r.diagonal().sign()  # without the signs QR prefers some directions (Mezzadri 2007)


# --- by name ---------------------------------------------------------------------------------------------------------

DEFAULTS: dict[str, Callable] = {
    "timm": init_timm_, "torch": init_torch_, "xavier": init_xavier_, "gpt2": init_gpt2_, "bert": init_bert_,
}  # fmt: skip
CONTROLS: dict[str, Callable] = {"mimetic-random-directions": random_directions_, "mimetic-untransposed": untransposed_}
INITIALIZERS = (*DEFAULTS, "mimetic", "mimetic-qk", "mimetic-vp", *CONTROLS, "timm-rescaled")
"""The names that ``initialize_`` takes:

* ``timm``: every nn.Linear trunc-normal with std .02, the default that the paper compares with;
* ``torch``: PyTorch's own defaults;
* ``xavier``: Xavier uniform for every matrix, queries, keys and values each on their own;
* ``gpt2``: GPT-2's, normal with std .02, less in front of the residual stream; the default of text models;
* ``bert``: BERT's, matrices and embeddings trunc-normal with std .02, cut at two of them;
* ``mimetic``: the default with both products of every attention layer written over;
* ``mimetic-qk``, ``mimetic-vp``: one of the two products;
* ``mimetic-random-directions``, a control: each factor of ``mimetic`` keeps its singular values and gets random directions;
* ``mimetic-untransposed``, a control: V and proj stored without transposing, as most public code does it;
* ``timm-rescaled``, a control: the default with every attention matrix scaled to its Frobenius norm under ``mimetic``.
"""


@torch.no_grad()
def initialize_(
    model: nn.Module,
    name: str,
    *,
    default: str = "timm",
    spec: MimeticSpec = VISION,
    qk_rank: int | None = None,
    generator: Generator = None,
) -> None:
    """Initialise a whole model in place by name, on its CPU copy's random numbers.

    Args:
        model: any model whose attention ``mimetic_init_`` can write; the controls are for our own models.
        name: one of INITIALIZERS.
        default: the default initialization that the mimetic names write over, "timm" or another of DEFAULTS.
        spec: constants of the mimetic names and of timm-rescaled; ignored by the defaults.
        qk_rank: rank of W_Q W_K^T, None for head_dim; mimetic names only.
        generator: source of randomness; None takes torch's global one.

    Raises:
        ValueError: unknown name (the message lists the choices), or a qk_rank that the name does not take. Nothing was written.
        UnsupportedAttention: a mimetic name, and a layer cannot be handled. Nothing was written.

    Warns:
        MimeticWarning: parameters that the default has no rule for (a module's own tokens, gains and the like); and what
            ``mimetic_init_`` warns of.
    """
    if name not in INITIALIZERS:
        raise ValueError(f"init must be one of {', '.join(INITIALIZERS)}; got {name!r}")
    if qk_rank is not None and name not in ("mimetic", "mimetic-qk"):
        raise ValueError(f"qk_rank is for mimetic and mimetic-qk; {name} takes none")
    if name in DEFAULTS:
        _default_(model, name, generator)
        return
    if default not in DEFAULTS:
        raise ValueError(f"default must be one of {', '.join(DEFAULTS)}; got {default!r}")
    qk, vp = name != "mimetic-vp", name != "mimetic-qk"
    plan(model, spec, qk=qk, vp=vp)  # nothing is written into a model that cannot be initialised
    if name in (*CONTROLS, "timm-rescaled") or qk_rank is not None:
        for layer in _unshared(model):
            _check_rank(layer, qk_rank)
    _default_(model, default, generator)
    target = copy.deepcopy(model) if name == "timm-rescaled" else model
    mimetic_init_(target, spec, qk=qk, vp=vp, generator=generator)
    if name == "timm-rescaled":
        rescale_like_(model, target)
    elif name in CONTROLS:
        CONTROLS[name](model, generator)
    elif qk_rank is not None:
        truncate_qk_(model, qk_rank, generator)


def _default_(model: nn.Module, name: str, generator: Generator) -> None:
    """One of DEFAULTS; random parameters for which it has no rule are named in a warning and left as they are."""
    covered = {id(p) for m in model.modules() if hasattr(m, "reset_parameters") for p in m.parameters(recurse=False)}
    others = {n: p for n, p in model.named_parameters() if id(p) not in covered and not (p.is_meta or p.is_inference())}
    before = {n: p._version for n, p in others.items()}  # counts what is written in place
    DEFAULTS[name](model, generator)
    left = [n for n, p in others.items() if p._version == before[n] and not (p == p.flatten()[:1]).all()]
    if left:
        shown = f"{', '.join(left[:4])}{f' and {len(left) - 4} more' if len(left) > 4 else ''}"
        warnings.warn(f"{name!r} has no rule for {shown}: left as they were", MimeticWarning, stacklevel=4)
