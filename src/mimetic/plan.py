"""What mimetic_init_ will write, decided and checked before anything is written."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mimetic.adapters.views import OUT_NORM
from mimetic.attention import VIEWS, AttentionLayer, UnsupportedAttention
from mimetic.scan import Parameters, Scan, held, overlap, plain, scan, views
from mimetic.spec import MimeticSpec

# views of each product
WEIGHTS, BIASES = {"qk": ("q", "k"), "vp": ("v", "proj")}, {"qk": ("q_bias", "k_bias"), "vp": ("v_bias", "proj_bias")}


@dataclass(frozen=True)
class Plan:
    """What mimetic_init_ will write, all checks made and nothing written."""

    names: list[str]  # of all layers that will hold what is written, in the model's order
    layers: list[AttentionLayer]  # those with parameters of their own
    constants: list[dict[str, float]]  # of the layers
    tied: list[tuple[AttentionLayer, str]]  # layers whose parameters are those of an earlier one, and its name
    notes: list[str]  # what to warn of


def plan(
    model: nn.Module, spec: MimeticSpec, *, qk: bool = True, vp: bool = True, cross: bool = False, biases: str = "zero"
) -> Plan:
    """The plan for a model; raises what mimetic_init_ raises."""
    products = (("qk",) if qk else ()) + (("vp",) if vp else ())
    weights = tuple(view for product in products for view in WEIGHTS[product])
    zeroed = tuple(view for product in products for view in BIASES[product]) if biases == "zero" else ()
    found = scan(model)
    every = found.require(model)
    chosen = [layer for layer in every if cross or layer.kind == "self"]
    left = [layer for layer in every if layer not in chosen]
    if not chosen:
        for layer in every:
            _check_shapes(layer, qk, vp)
        raise UnsupportedAttention(f"{left[0].name}: only cross-attention was found; cross=True writes it all the same")
    layers, tied = _untie(chosen, weights)
    written = {place for layer in layers for place in _places(layer, (*weights, *zeroed))}
    for layer in left:
        if written & set(_places(layer, VIEWS)):
            raise UnsupportedAttention(
                f"{layer.name}: cross-attention that shares its projections or their biases with a layer to be written;"
                " cross=True writes both"
            )
    for layer in layers:
        _check_shapes(layer, qk, vp)
        for part in (*weights, *zeroed):
            if (
                (view := getattr(layer, part)) is not None
                and view.is_inference()
                and not torch.is_inference_mode_enabled()
            ):
                raise UnsupportedAttention(
                    f"{layer.name}: {part} was made under torch.inference_mode and cannot be written in place"
                )
    _check_owners(found, [*layers, *(layer for layer, _ in tied)], (*weights, *zeroed))
    _check_apart(layers, weights)
    _check_kept(model, found, layers)
    if vp:
        _check_whole(layers, found.parameters)
    constants = {layer.name: spec.layer(i, len(chosen)) for i, layer in enumerate(chosen)}
    for layer in layers:
        for product in products:
            _check_size(layer, product, constants[layer.name])
    for layer, other in tied:
        if constants[layer.name] != constants[other]:
            raise ValueError(
                f"{layer.name} has the parameters of {other}, so both need the same constants (those of"
                " fit(model, fold=True) differ where their norms do; fold=False gives the same)"
            )
    notes = (
        [f"{_names([layer.name for layer in left])}: cross-attention, left alone (cross=True writes it too)"]
        if left
        else []
    )
    notes += [f"{name}: left alone, {reason}" for name, reason in found.passed_over.items()]
    stuck = [
        layer.name
        for layer in layers
        if any(not p.requires_grad for view in views(layer, weights) for _, _, p in held(view, found.parameters))
    ]
    notes += [f"{_names(stuck)}: frozen (requires_grad is False), written all the same"] if stuck else []
    caveats: dict[str, list[str]] = {}
    for layer in chosen:
        blocks = found.blocks[layer.name]
        scaled = [caveat for block in blocks or [None] for caveat in _scaled(layer, block)] if vp else []
        low_rank = _low_rank(found.modules[layer.name], *blocks)
        for caveat in dict.fromkeys((*layer.caveats, *low_rank, *scaled)):
            caveats.setdefault(caveat, []).append(layer.name)
    notes += [f"{_names(names)}: {caveat}" for caveat, names in caveats.items()]
    return Plan(list(constants), layers, [constants[layer.name] for layer in layers], tied, notes)


_SCALES = re.compile(
    r"(^|[._])(ls_?\w?|\w*layer_?scale\w*|gamma(_\w)?|lambda_?\d?|res_?(scale|weight)\w*|skip_?(gain|weight))([._]|$)",
    re.IGNORECASE,
)
# one number under these names may be the temperature of the softmax
_VECTORS = re.compile(r"attn_?(scale|gain|gamma)|attention_?(scale|gain)", re.IGNORECASE)


def _scaled(layer: AttentionLayer, block: nn.Module | None) -> tuple[str, ...]:
    """The caveat of a layer whose LayerScale makes its V·proj act with another size than is written; it is a value, so
    no reader has it. Where the block is not one that the tables know, what is called like a LayerScale in it counts,
    and where a norm follows, its gain."""
    gains = {} if layer.out_gain is None else {"": layer.out_gain}
    if layer.out_gain is None and not layer.gains_known and block is not None:
        norms = {name: m for name, m in block.named_modules() if "norm" in type(m).__name__.lower()}
        inside = {f"{name}.{part}" for name, m in norms.items() for part in m._parameters}
        torchs = {f"{name}.weight" for name, m in norms.items() if isinstance(m, (nn.LayerNorm, nn.RMSNorm))}
        behind = torchs if OUT_NORM in layer.caveats else set()
        gains = {
            name: p
            for name, p in block.named_parameters()
            if plain(p)
            and p.numel() in (1, layer.d_model)
            and (name in behind or (name not in inside and _called_a_scale(name, p)))
        }
    if block is not None and not layer.gains_known:
        if gate := _zero_gate(block, layer.d_model):
            return (
                f"{gate} beside it, which may gate its output (adaLN-Zero), ends in a layer of zeros: W_V W_proj does"
                " nothing until training opens that gate",
            )
    for name, found in gains.items():
        size = found.detach().abs().float().median().item()
        if not 0.5 <= size <= 2:
            what = (
                f"{name} beside it, which may scale its output,"
                if name
                else "LayerScale, or what else scales proj's output,"
            )
            return (
                f"{what} is about {size:.1g}: W_V W_proj acts with that part of its size, until training changes it",
            )
    return ()


_CLOSED = re.compile(
    r"(re)?_?zero\w*|((attn|attention|residual|branch|skip|res)_)?(alpha|gate|gain|scale)(_(attn|attention|residual))?",
    re.IGNORECASE,
)


def _called_a_scale(name: str, p: Tensor) -> bool:
    """Whether a parameter of a block, and of no norm, is called like a LayerScale or another scale of a branch."""
    vector = p.numel() > 1 and _VECTORS.fullmatch(name)
    return bool(_SCALES.search(name) or vector or _closed(name, p))


def _closed(name: str, p: Tensor) -> bool:
    """Whether a parameter of a block itself is likely a scale that starts at 0 (ReZero), by a name less sure."""
    return "." not in name and _CLOSED.fullmatch(name) is not None and not p.any()


def _low_rank(*around: nn.Module) -> tuple[str, ...]:
    """The caveat of a layer with parts called LoRA in it or in its block, which may be added to its projections."""
    parts = [name for m in around for name in (*m._modules, *m._parameters)]
    found = next((name for name in parts if re.search(r"(^|_)(?i:[dl]ora)(_|[A-Z0-9]|$)", name)), None)
    if found is None:
        return ()
    return (f"{found} beside it may be added to its projections: what it adds is not in these products",)


_MODULATION = re.compile(r"ada_?(ln|norm|rms|layer_?norm)|(^|_)modulation|(^|_)mod$", re.IGNORECASE)


def _zero_gate(block: nn.Module, d: int) -> str | None:
    """The child of a block that makes shift, scale and gate of its parts (DiT's adaLN_modulation: 3 or 6 of d outputs)
    in a layer that starts as zeros."""
    for name, child in block.named_children():
        last = next((m for m in reversed(list(child.modules())) if isinstance(m, nn.Linear)), None)
        if last is None or not _MODULATION.search(name) or last.out_features % (3 * d):
            continue
        if all(plain(p) and not p.any() for p in last.parameters(recurse=False)):
            return name
    return None


def _untie(
    chosen: list[AttentionLayer], weights: tuple[str, ...]
) -> tuple[list[AttentionLayer], list[tuple[AttentionLayer, str]]]:
    """The layers with parameters of their own, and (layer, name of the earlier one) for those whose parameters are an
    earlier layer's; of the views that are to be written."""
    layers, tied, seen = [], [], {}
    kept = {place: layer for layer in chosen for place in _places(layer, {"q", "k", "v", "proj"}.difference(weights))}
    for layer in chosen:
        places = _places(layer, weights)
        if len(set(places)) < len(places):
            raise UnsupportedAttention(
                f"{layer.name}: two of its projections are one parameter, so a product cannot be set alone"
            )
        if other := next((kept[place] for place in places if place in kept), None):
            where = "another of its projections" if other is layer else f"a projection of {other.name}"
            raise UnsupportedAttention(f"{layer.name}: one of its weights is also {where}, which would be written over")
        owner = next((seen[place] for place in places if place in seen), None)
        if owner is None:
            layers.append(layer)
            seen.update(dict.fromkeys(places, layer))
            continue
        alike = all(
            (a.shape, a.stride()) == (b.shape, b.stride()) for a, b in zip(views(layer, weights), views(owner, weights))
        )
        if places != _places(owner, weights) or not alike:
            raise UnsupportedAttention(
                f"{layer.name}: shares some but not all of its projections with {owner.name}, or reads them in"
                " another way"
            )
        tied.append((layer, owner.name))
    return layers, tied


def _check_owners(found: Scan, written: list[AttentionLayer], parts: tuple[str, ...]) -> None:
    """UnsupportedAttention if a weight or bias to be written belongs to a module
    outside of the attention layers as well.
    """
    within = {layer.name: set(found.modules[layer.name].modules()) for layer in found.layers}
    attention = set().union(*within.values())
    read = Counter(view.data_ptr() for layer in written for view in views(layer))
    for layer in written:
        for part in parts:
            if (view := getattr(layer, part)) is None:
                continue
            same = held(view, found.parameters)
            outside = [name for name, module, _ in same if module not in attention]
            # BERT's output matrix lies beside its layer: one holder outside for every layer that reads it
            allowed = 0 if any(module in within[layer.name] for _, module, _ in same) else read[view.data_ptr()]
            if len(outside) > allowed:
                what = "biases" if part.endswith("bias") else "weights"
                raise UnsupportedAttention(
                    f"{layer.name}: one of its {what} is also {_listed(outside)}, outside of attention, which would be"
                    " written over"
                )


def _check_apart(layers: list[AttentionLayer], weights: tuple[str, ...]) -> None:
    """UnsupportedAttention if two weights to be written have an entry in common:
    the second would be written over the first.
    """
    by_storage: dict[int, list[tuple[str, Tensor]]] = {}
    for layer in layers:
        for view in views(layer, weights):
            by_storage.setdefault(view.untyped_storage().data_ptr(), []).append((layer.name, view))
    for there in by_storage.values():
        there.sort(key=lambda entry: entry[1].data_ptr())
        if not any(overlap(a, b) for (_, a), (_, b) in zip(there, there[1:])):
            continue
        first = there[0][1]
        # interleaved views are not to blame
        taken = torch.zeros(first.untyped_storage().nbytes() // first.element_size(), dtype=torch.bool)
        for name, view in there:
            mine = taken.as_strided(view.shape, view.stride(), view.storage_offset())
            if mine.any():
                raise UnsupportedAttention(
                    f"{name}: its projections overlap in memory with one another or with another layer's: one would be"
                    " written over the other"
                )
            mine.fill_(True)


def _check_size(layer: AttentionLayer, product: str, constants: dict[str, float]) -> None:
    """UnsupportedAttention if the entries of a product's factors would be 0, or nearly, in the layer's float16."""
    size = max(abs(constants[f"{product}_alpha"]), abs(constants[f"{product}_beta"]))
    least = torch.finfo(torch.float16).tiny
    if torch.float16 in {view.dtype for view in views(layer, WEIGHTS[product])} and 0 < size < least**2 * layer.d_model:
        raise UnsupportedAttention(
            f"{layer.name}: weights for {product}_alpha {constants[f'{product}_alpha']:g} and {product}_beta"
            f" {constants[f'{product}_beta']:g} are smaller than float16 can hold ({least:.1g}): use bfloat16 or"
            " float32"
        )


def _check_kept(model: nn.Module, found: Scan, layers: list[AttentionLayer]) -> None:
    """UnsupportedAttention if FSDP holds gathered copies of a layer's parameters at the
    moment, which the next pass makes anew from the shards.
    """
    for module in model.modules():
        if not (_gathered(module) or _gathered_by_wrapper(module)):
            continue
        inside = set(module.modules())
        for layer in layers:
            if found.modules[layer.name] in inside:
                raise UnsupportedAttention(
                    f"{layer.name}: FSDP has gathered its parameters for a pass and will throw these copies away:"
                    " initialise before sharding (or, with FullyShardedDataParallel, within summon_full_params with"
                    " writeback)"
                )


def _gathered(module: nn.Module) -> bool:
    """Whether fully_shard's parameters of a module are gathered now. Its state is private: where it
    cannot be read, a layer that is no DTensor any more counts as gathered.
    """
    if not hasattr(module, "_get_fsdp_state"):
        return False
    state = module._get_fsdp_state()
    groups = getattr(state, "_fsdp_param_groups", None)
    if groups is None:  # an older torch has one group
        if not hasattr(state, "_fsdp_param_group"):
            return True
        groups = [state._fsdp_param_group]
    return any(group is not None and getattr(group, "is_unsharded", True) for group in groups)


def _gathered_by_wrapper(module: nn.Module) -> bool:
    """The same for FullyShardedDataParallel; within its summon_full_params what is written is kept."""
    handle = getattr(module, "_handle", None) if type(module).__name__ == "FullyShardedDataParallel" else None
    return handle is not None and handle.uses_sharded_strategy and module.training_state.name != "SUMMON_FULL_PARAMS"


def _check_whole(layers: list[AttentionLayer], parameters: Parameters) -> None:
    """UnsupportedAttention if the projections of several layers are parts of one matrix: then these are heads of one
    layer, and each would get the whole target."""
    seen: dict[int, str] = {}
    for layer in layers:
        for name, _, p in held(layer.proj, parameters):
            if (other := seen.setdefault(id(p), layer.name)) != layer.name:
                raise UnsupportedAttention(
                    f"{layer.name}: its projection is a part of {name}, as that of {other} is: heads that are modules"
                    " of their own are one layer, of which this library sees only views of whole parameters; keep the"
                    " heads' weights in one, or write with vp=False"
                )


def _listed(names: list[str]) -> str:
    return " and ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")


def _places(layer: AttentionLayer, names: Iterable[str]) -> list[tuple[int, int]]:
    """Where in memory the views begin."""
    return [(t.untyped_storage().data_ptr(), t.storage_offset()) for t in views(layer, names)]


def _check_shapes(layer: AttentionLayer, qk: bool, vp: bool) -> None:
    d = layer.d_model
    if qk and layer.k.shape[0] != d:
        raise UnsupportedAttention(
            f"{layer.name}: queries are made from width {d}, keys from width {layer.k.shape[0]}; W_Q W_K^T has no"
            " diagonal"
        )
    if vp and (layer.v.shape[0], layer.proj.shape[2]) != (d, d):
        raise UnsupportedAttention(
            f"{layer.name}: values are made from width {layer.v.shape[0]} and written to width {layer.proj.shape[2]} "
            f"in a model of width {d}; W_V W_proj has no diagonal"
        )
    if layer.k.shape[2] != layer.head_dim or layer.proj.shape[:2] != (layer.num_heads, layer.v.shape[2]):
        raise UnsupportedAttention(
            f"{layer.name}: queries of {layer.head_dim} and keys of {layer.k.shape[2]}, or values"
            f" {tuple(layer.v.shape)} and a projection {tuple(layer.proj.shape)}, do not fit together"
        )
    if layer.num_heads % layer.num_kv_heads or layer.v.shape[1] != layer.num_kv_heads:
        raise UnsupportedAttention(
            f"{layer.name}: {layer.num_heads} query, {layer.num_kv_heads} key and {layer.v.shape[1]} value heads do not"
            " group"
        )


def _names(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} layers ({names[0]} to {names[-1]})"
