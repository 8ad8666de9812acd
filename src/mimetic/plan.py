"""What mimetic_init_ will write, decided and checked before anything is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from mimetic.attention import AttentionLayer, UnsupportedAttention
from mimetic.scan import Scan, clean_name, plain, scan

if TYPE_CHECKING:
    from mimetic.initialize import MimeticSpec


@dataclass(frozen=True)
class Plan:
    """What mimetic_init_ will write, all checks made and nothing written."""

    names: list[str]  # of all layers that will hold what is written, in the model's order
    layers: list[AttentionLayer]  # those with parameters of their own
    constants: list[dict[str, float]]  # of the layers
    tied: list[tuple[AttentionLayer, str]]  # layers whose parameters are those of an earlier one, and its name
    notes: list[str]  # what to warn of


def plan(model: nn.Module, spec: MimeticSpec, *, qk: bool = True, vp: bool = True, cross: bool = False) -> Plan:
    """The plan for a model; raises what mimetic_init_ raises."""
    found = scan(model)
    every = found.require(model)
    chosen = [layer for layer in every if cross or layer.kind == "self"]
    left = [layer for layer in every if layer not in chosen]
    if not chosen:
        for layer in every:
            _check_shapes(layer, qk, vp)
        raise UnsupportedAttention(f"{left[0].name}: only cross-attention was found; cross=True writes it all the same")
    layers, tied = _untie(chosen)
    written = {place for layer in layers for place in _places(layer)}
    for layer in left:
        if written & set(_places(layer)):
            raise UnsupportedAttention(f"{layer.name}: cross-attention that shares its projections with a layer to be written; cross=True writes both")
    for layer in layers:
        _check_shapes(layer, qk, vp)
    _check_owners(model, found, [*layers, *(layer for layer, _ in tied)], (("q", "k") if qk else ()) + (("v", "proj") if vp else ()))
    constants = {layer.name: spec.layer(i, len(chosen)) for i, layer in enumerate(chosen)}
    for layer, other in tied:
        if constants[layer.name] != constants[other]:
            raise ValueError(f"{layer.name} has the parameters of {other}, so both need the same constants")
    notes = [f"{_names([layer.name for layer in left])}: cross-attention, left alone (cross=True writes it too)"] if left else []
    notes += [f"{name}: left alone, {reason}" for name, reason in found.passed_over.items()]
    frozen = {p.untyped_storage().data_ptr() for p in model.parameters() if plain(p) and not p.requires_grad}
    stuck = [layer.name for layer in layers if any(place in frozen for place, _ in _places(layer))]
    notes += [f"{_names(stuck)}: frozen (requires_grad is False), written all the same"] if stuck else []
    caveats: dict[str, list[str]] = {}
    for layer in layers:
        for caveat in layer.caveats:
            caveats.setdefault(caveat, []).append(layer.name)
    notes += [f"{_names(names)}: {caveat}" for caveat, names in caveats.items()]
    return Plan(list(constants), layers, [constants[layer.name] for layer in layers], tied, notes)


def _untie(chosen: list[AttentionLayer]) -> tuple[list[AttentionLayer], list[tuple[AttentionLayer, str]]]:
    """The layers with parameters of their own, and (layer, name of the earlier one) for those whose parameters are an earlier layer's."""
    layers, tied, seen = [], [], {}
    for layer in chosen:
        places = _places(layer)
        if len(set(places)) < 4:
            raise UnsupportedAttention(f"{layer.name}: two of its projections are one parameter, so a product cannot be set alone")
        owner = next((seen[place] for place in places if place in seen), None)
        if owner is None:
            layers.append(layer)
            seen.update(dict.fromkeys(places, layer))
            continue
        alike = all((a.shape, a.stride()) == (b.shape, b.stride()) for a, b in zip(_weights(layer), _weights(owner)))
        if places != _places(owner) or not alike:
            raise UnsupportedAttention(f"{layer.name}: shares some but not all of its projections with {owner.name}, or reads them in another way")
        tied.append((layer, owner.name))
    return layers, tied


def _check_owners(model: nn.Module, found: Scan, written: list[AttentionLayer], views: tuple[str, ...]) -> None:
    """UnsupportedAttention if a weight to be written belongs to a module outside of the attention layers as well."""
    within = {layer.name: set(found.modules[layer.name].modules()) for layer in found.layers}
    attention = set().union(*within.values())
    holders: dict[int, list[tuple[str, nn.Module, Tensor]]] = {}  # by memory
    for name, module in model.named_modules():
        for part, p in module._parameters.items():
            if p is not None and plain(p):
                holders.setdefault(p.untyped_storage().data_ptr(), []).append((clean_name(f"{name}.{part}".lstrip(".")), module, p))
    for layer in written:
        for view in (getattr(layer, part) for part in views):
            same = [(name, module) for name, module, p in holders.get(view.untyped_storage().data_ptr(), []) if _overlap(view, p)]
            outside = [name for name, module in same if module not in attention]
            # BERT's output matrix lies beside its layer: one holder outside for every layer that reads it
            readers = sum(view.data_ptr() == t.data_ptr() for other in written for t in _weights(other))
            allowed = 0 if any(module in within[layer.name] for _, module in same) else readers
            if len(outside) > allowed:
                raise UnsupportedAttention(f"{layer.name}: one of its weights is also {_listed(outside)}, outside of attention, which would be written over")


def _overlap(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one storage have memory in common, from the first to the last of their entries."""
    (a0, a1), (b0, b1) = ((t.data_ptr(), t.data_ptr() + t.element_size() * (1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride())))) for t in (a, b))
    return a0 < b1 and b0 < a1


def _listed(names: list[str]) -> str:
    return " and ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")


def _weights(layer: AttentionLayer) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return layer.q, layer.k, layer.v, layer.proj


def _places(layer: AttentionLayer) -> list[tuple[int, int]]:
    """Where in memory the four weights begin."""
    return [(t.untyped_storage().data_ptr(), t.storage_offset()) for t in _weights(layer)]


def _check_shapes(layer: AttentionLayer, qk: bool, vp: bool) -> None:
    d = layer.d_model
    if qk and layer.k.shape[0] != d:
        raise UnsupportedAttention(
            f"{layer.name}: queries are made from width {d}, keys from width {layer.k.shape[0]}; W_Q W_K^T has no diagonal"
        )
    if vp and (layer.v.shape[0], layer.proj.shape[2]) != (d, d):
        raise UnsupportedAttention(
            f"{layer.name}: values are made from width {layer.v.shape[0]} and written to width {layer.proj.shape[2]} "
            f"in a model of width {d}; W_V W_proj has no diagonal"
        )
    if layer.k.shape[2] != layer.head_dim or layer.proj.shape[:2] != (layer.num_heads, layer.v.shape[2]):
        raise UnsupportedAttention(
            f"{layer.name}: queries of {layer.head_dim} and keys of {layer.k.shape[2]}, or values {tuple(layer.v.shape)} and a projection "
            f"{tuple(layer.proj.shape)}, do not fit together"
        )
    if layer.num_heads % layer.num_kv_heads or layer.v.shape[1] != layer.num_kv_heads:
        raise UnsupportedAttention(
            f"{layer.name}: {layer.num_heads} query, {layer.num_kv_heads} key and {layer.v.shape[1]} value heads do not group"
        )


def _names(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} layers ({names[0]} to {names[-1]})"
