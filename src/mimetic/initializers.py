"""Whole models initialised in place, by name, as timm does it: defaults, mimetic initialization, and its controls.

A control shares one property with mimetic initialization and lacks another, so that an experiment can say which of them
matters. The names are INITIALIZERS. With one generator state all of them share every weight that they do not set
differently.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from mimetic.adapters.views import DTYPES, expanded
from mimetic.attention import AttentionLayer, MimeticWarning, wide
from mimetic.construct import check_generator
from mimetic.defaults import DEFAULTS, Generator
from mimetic.initialize import first_process_generator, mimetic_init_
from mimetic.messages import check_choice
from mimetic.plan import plan
from mimetic.scan import plain
from mimetic.spec import VISION, MimeticSpec

# --- mimetic initialization and its controls -------------------------------------------------------------------------


def random_directions_(model: nn.Module, generator: Generator = None) -> None:
    """Replace the singular vectors of every attention product by random ones; the singular values and how they are
    split between the factors stay. For models that mimetic_init_ has just written: there the columns of a factor are
    orthogonal, so their norms are the square roots of the singular values."""
    for layer in _written(model):
        for h in range(layer.num_heads):
            for factor in (layer.q, layer.k):
                factor[:, h] = _orthonormal(layer.d_model, layer.head_dim, generator) * wide(factor[:, h]).norm(dim=0)
        rank = layer.num_heads * layer.head_dim
        v = wide(layer.v.flatten(1))
        layer.v.copy_((_orthonormal(layer.d_model, rank, generator) * v.norm(dim=0)).view_as(layer.v))
        proj = wide(layer.proj.flatten(0, 1))
        layer.proj.copy_((_orthonormal(layer.d_model, rank, generator) * proj.norm(dim=1)).mT.view_as(layer.proj))


def untransposed_(model: nn.Module, generator: Generator = None) -> None:
    """Store V's and proj's factors the way several public codes do: v.weight = L, proj.weight = R for the target L @ R.
    nn.Linear multiplies by the transpose, so the product becomes (R L)^T: the target's eigenvalues, hence its trace, on
    a diagonal that is far from constant."""
    for layer in _written(model):
        v, proj = layer.v.flatten(1).mT.clone(), layer.proj.flatten(0, 1).mT.clone()
        layer.v.copy_(v.view_as(layer.v))
        layer.proj.copy_(proj.view_as(layer.proj))


def rescale_like_(model: nn.Module, other: nn.Module) -> None:
    """Scale every head's W_Q and W_K and every layer's W_V and W_proj to the Frobenius norm that they have in other."""
    for ours, theirs in zip(_written(model), _written(other), strict=True):
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
        ValueError: rank is not between 1 and head_dim, or a head is larger than the model is wide.
    """
    for layer in _written(model):
        _check_rank(layer, rank)
        for h in range(layer.num_heads):
            spread = _orthonormal(layer.head_dim, rank, generator).mT
            for factor in (layer.q, layer.k):
                kept = wide(factor[:, h, :rank])
                with torch.autocast(kept.device.type, enabled=False):
                    factor[:, h] = kept @ spread.to(kept.dtype)


def _check_rank(layer: AttentionLayer, rank: int | None) -> None:
    if rank is None:
        return
    # there mimetic_init_ has spread the directions over the head already
    if isinstance(rank, int) and layer.head_dim > layer.d_model:
        raise ValueError(
            f"{layer.name}: qk_rank is for heads that are no larger than the model is wide, here {layer.head_dim} and"
            f" {layer.d_model}"
        )
    if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= layer.head_dim:
        raise ValueError(f"qk_rank must be between 1 and the head size {layer.head_dim}, not {rank!r}")


def _check_control(layer: AttentionLayer, name: str) -> None:
    rank = layer.num_heads * layer.head_dim
    if name in CONTROLS and layer.v.shape[2] != layer.head_dim:
        raise ValueError(
            f"{layer.name}: {name} is for values as wide as keys, not {layer.v.shape[2]} and {layer.head_dim}"
        )
    if name in CONTROLS and rank > layer.d_model or name == "mimetic-untransposed" and rank != layer.d_model:
        raise ValueError(
            f"{layer.name}: {name} is for layers of num_heads * head_dim = d_model, not {layer.num_heads} *"
            f" {layer.head_dim} in width {layer.d_model}"
        )


def _written(model: nn.Module) -> list[AttentionLayer]:
    """The layers that mimetic_init_ writes, each set of parameters once; ValueError if heads share keys and values."""
    layers = plan(model, VISION).layers
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

CONTROLS: dict[str, Callable] = {"mimetic-random-directions": random_directions_, "mimetic-untransposed": untransposed_}
RANKED = ("mimetic", "mimetic-qk")  # that take a qk_rank
INITIALIZERS = (*DEFAULTS, "mimetic", "mimetic-qk", "mimetic-vp", *CONTROLS, "timm-rescaled")
"""The names that ``initialize_`` takes:

* ``timm``: every nn.Linear trunc-normal with std .02, the default that this book compares with;
* ``torch``: PyTorch's own defaults;
* ``xavier``: Xavier uniform for every matrix, queries, keys and values each on their own;
* ``gpt2``: GPT-2's, normal with std .02, less in front of the residual stream; the default of text models;
* ``bert``: BERT's, matrices and embeddings trunc-normal with std .02, cut at two of them;
* ``mimetic``: the default with both products of every attention layer written over;
* ``mimetic-qk``, ``mimetic-vp``: one of the two products;
* ``mimetic-random-directions``, a control: each factor of ``mimetic`` keeps its singular values and gets random
  directions;
* ``mimetic-untransposed``, a control: V and proj stored without transposing, as several public codes do it;
* ``timm-rescaled``, a control: the default with every attention matrix scaled to its Frobenius norm under ``mimetic``.
"""


def constants_of(name: str) -> list[str]:
    """Which constants of a specification the initializer of this name reads."""
    parts = {"mimetic-qk": ("qk",), "mimetic-vp": ("vp",)}.get(name, () if name in DEFAULTS else ("qk", "vp"))
    return [constant for constant in MimeticSpec.constants() if constant.startswith(parts)]


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
    """Initialise a whole model in place by name. Random numbers are drawn, and weights made, on the CPU
    wherever the model is. Around DistributedDataParallel, all processes must call it; without a generator
    they take the first one's random numbers.

    Args:
        model: any model whose attention ``mimetic_init_`` can write; the controls are for our own models.
        name: one of INITIALIZERS.
        default: the default initialization that the mimetic names write over, "timm" or another of DEFAULTS.
        spec: constants of the mimetic names and of timm-rescaled; ignored by the defaults.
        qk_rank: rank of W_Q W_K^T, None for head_dim; mimetic names only.
        generator: source of randomness, of one on another device the seed; None takes torch's global one.

    Raises:
        ValueError: unknown name (the message lists the choices), a qk_rank that the name does not take, a shape that a
            control is not for, a model in which "gpt2" does not find the layers that it sets apart, or one with
            parameters that cannot be written (made under torch.inference_mode, or on the meta device beside others that
            are not). Nothing was written.
        UnsupportedAttention: a mimetic name, and a layer cannot be handled. Nothing was written.

    Warns:
        MimeticWarning: parameters that the default has no rule for (a module's own tokens, gains and the like); and
            what ``mimetic_init_`` warns of.
    """
    check_choice("init", name, INITIALIZERS)
    if qk_rank is not None and name not in RANKED:
        raise ValueError(f"qk_rank is for {' and '.join(RANKED)}; {name} takes none")
    check_choice("default", default, DEFAULTS)
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(spec, MimeticSpec):
        raise TypeError(f"spec must be a MimeticSpec, got {type(spec).__name__}")
    check_generator(generator)
    qk, vp = name != "mimetic-vp", name != "mimetic-qk"
    if name not in DEFAULTS:
        plan(model, spec, qk=qk, vp=vp)  # nothing is written into a model that cannot be initialised
    if name in (*CONTROLS, "timm-rescaled") or qk_rank is not None:
        for layer in _written(model):
            _check_rank(layer, qk_rank)
            _check_control(layer, name)
    _check_writable(model)
    generator = first_process_generator(model) if generator is None else generator
    if generator is not None and generator.device.type != "cpu":
        generator = torch.Generator().manual_seed(
            int(torch.randint(2**62, (), generator=generator, device=generator.device))
        )
    there, model = model, _on_cpu(model)
    # some models cannot be copied: before anything is written
    target = copy.deepcopy(model) if name == "timm-rescaled" else model
    _default_(model, name if name in DEFAULTS else default, generator)
    if name not in DEFAULTS:
        mimetic_init_(target, spec, qk=qk, vp=vp, generator=generator)
    if name == "timm-rescaled":
        rescale_like_(model, target)
    elif name in CONTROLS:
        CONTROLS[name](model, generator)
    elif qk_rank is not None:
        truncate_qk_(model, qk_rank, generator)
    if model is not there:
        for ours, theirs in ((there.parameters(), model.parameters()), (there.buffers(), model.buffers())):
            for t, made in zip(ours, theirs, strict=True):
                t.copy_(made)


def _here(t: Tensor) -> bool:
    """Whether a tensor is on the CPU, or is none that could be moved there (meta, sharded, quantised)."""
    return t.device.type == "cpu" or not plain(t)


def _on_cpu(model: nn.Module) -> nn.Module:
    """The model, or where some of its weights are on another device a copy on the CPU."""
    tensors = [*model.parameters(), *model.buffers()]
    if all(_here(t) for t in tensors):
        return model
    bare = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    memo = {
        id(t): nn.Parameter(t.detach().cpu(), t.requires_grad) if isinstance(t, nn.Parameter) else t.cpu()
        for t in tensors
    }
    return copy.deepcopy(bare, memo)  # with these in place of its own: no second copy on the device


def _check_writable(model: nn.Module) -> None:
    """ValueError before the first write, where one of the later ones would fail or would write nothing."""
    parameters = dict(model.named_parameters())
    if lazy := next((n for n, p in parameters.items() if is_lazy(p)), None):
        raise ValueError(f"{lazy} is not initialised yet (a lazy layer): run the model once first")
    meta = [n for n, p in parameters.items() if p.is_meta]
    if meta and len(meta) < len(parameters):
        raise ValueError(
            f"{meta[0]} is a meta tensor (no storage) and others are not; materialise the model first (to_empty)"
        )
    stuck = next((n for n, p in parameters.items() if p.is_inference()), None)
    if stuck is not None and not torch.is_inference_mode_enabled():
        raise ValueError(f"{stuck} was made under torch.inference_mode and cannot be written in place")
    for name, module in model.named_modules():
        if type(module).__module__.startswith("torch.ao.nn.quantized"):
            raise ValueError(
                f"{name} is quantised ({type(module).__qualname__}): its weights are no parameters, and would be left"
                " as they are"
            )
        if hasattr(module, "reset_parameters"):
            for part, p in module.named_parameters(recurse=False):
                if not (p.dtype in DTYPES or p.is_complex()):
                    raise ValueError(f"{name}.{part} has dtype {p.dtype}, which no default can be drawn in")
                if plain(p) and expanded(p):
                    raise ValueError(f"{name}.{part} is expanded: several of its entries are one number in memory")


def _default_(model: nn.Module, name: str, generator: Generator) -> None:
    """One of DEFAULTS; random parameters for which it has no rule are named in a warning and left as they are."""
    there = {n: p for n, p in model.named_parameters() if plain(p) and not p.is_inference()}

    def seen(p: Tensor) -> tuple[int, Tensor]:  # a write in place is counted, one through .data is not
        return p._version, p.detach().flatten()[:64].clone()

    before = {n: seen(p) for n, p in there.items()}
    DEFAULTS[name](model, generator)
    left = []
    for n, p in there.items():
        (version, start), (now, begins) = before[n], seen(p)
        if version == now and torch.equal(start, begins) and not (p == p.flatten()[:1]).all():
            left.append(n)
    if left:
        shown = f"{', '.join(left[:4])}{f' and {len(left) - 4} more' if len(left) > 4 else ''}"
        warnings.warn(f"{name!r} has no rule for {shown}: left as they were", MimeticWarning, stacklevel=4)
