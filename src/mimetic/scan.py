"""Finding the attention layers of a model: which modules are read, which are refused and why, which are passed over."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from mimetic.adapters import Reader, find_reader, has_projections, left_alone, looks_like_attention, unknown
from mimetic.adapters.code import attends
from mimetic.adapters.views import (
    HOOKED,
    WRAPPERS,
    Ancestors,
    NotSelfAttention,
    expanded,
    hooked,
    is_matrix,
    replaced_forward,
    wrapped,
)
from mimetic.attention import VIEWS, AttentionLayer, UnsupportedAttention
from mimetic.messages import one_line

# by where the memory begins: name, the module that holds it, the parameter
Parameters = dict[int, list[tuple[str, nn.Module, Tensor]]]


@dataclass
class Scan:
    """All that a walk through a model found."""

    layers: list[AttentionLayer]
    refused: dict[str, str]  # name -> reason: looks like attention and cannot be handled
    # name -> reason: not self-attention in the paper's sense (pooling with a learned query, ...)
    passed_over: dict[str, str]
    modules: dict[str, nn.Module] = field(default_factory=dict)  # name of a layer -> its module
    # name of a layer -> the nearest modules around it that are no lists, one for each place where it is registered
    blocks: dict[str, list[nn.Module]] = field(default_factory=dict)
    parameters: Parameters = field(default_factory=dict)  # of the whole model

    def add_caveats(self, name: str, caveats: Iterable[str]) -> None:
        """Further caveats of the layer of this name."""
        place = next(i for i, layer in enumerate(self.layers) if layer.name == name)
        every = dict.fromkeys((*self.layers[place].caveats, *caveats))
        self.layers[place] = replace(self.layers[place], caveats=tuple(every))

    def require(self, model: nn.Module) -> list[AttentionLayer]:
        """The layers, or UnsupportedAttention if something was refused or nothing was found."""
        if self.refused:
            lines = [f"{name}: {reason}" for name, reason in list(self.refused.items())[:4]]
            more = f"\n... and {len(self.refused) - 4} more" if len(self.refused) > 4 else ""
            if any("not a known attention class" in reason for reason in self.refused.values()):
                more += (
                    "\n(register_adapter teaches a class of your own, or with None that it is no self-attention, nor"
                    " anything inside of it; a part of the model can be passed by itself)"
                )
            raise UnsupportedAttention("cannot handle " + "\n".join(lines) + more)
        if not self.layers:
            why = "; ".join(f"{name}: {reason}" for name, reason in self.passed_over.items())
            raise UnsupportedAttention(
                f"no attention layer found in {type(model).__name__}"
                + (f" ({why})" if why else "")
                + "; register_adapter teaches a class of your own"
            )
        return self.layers


def scan(model: nn.Module) -> Scan:
    """Every attention layer of a model, the ones that are refused (with the reason), and the ones passed over."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a torch.nn.Module, got {type(model).__name__}")
    modules = dict(_outside(model))
    seen = set(modules.values())
    hidden = {name: module for name, module in model.named_modules() if module not in seen}
    found = Scan([], {}, {}, parameters=_parameters(modules | hidden))
    claimed: dict[str, AttentionLayer | None] = {}
    cleaned = Counter(clean_name(name) for name, module in modules.items() if find_reader(type(module)))
    suspects: list[tuple[str, str]] = []
    aliases = _aliases(modules)
    owned = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers()) if plain(t)}
    wrappers = {child: parent for parent in modules.values() if (child := wrapped(parent)) is not None}
    for name, module in modules.items():
        reader = find_reader(type(module))
        if reader is None:
            if looks_like_attention(module):
                suspects.append((name, unknown(module, modules.get(name.rpartition(".")[0]) if name else None)))
            continue
        claimed |= dict.fromkeys((name, *aliases.get(module, ())))
        shown = clean_name(name) or type(module).__name__
        if cleaned[clean_name(name)] > 1:  # a part of the model is itself called like a wrapper
            shown = name or type(module).__name__
        places = [ancestors(modules, place) for place in (name, *aliases.get(module, ()))]
        places.sort(key=_in_a_list)  # what a list of layers says of one, its block says better
        # a registered layer around it, whose reader has read it
        outer = next(
            (layer for other, layer in claimed.items()
             if layer and _within(name, other) and _reads(layer, module, found.parameters)),
            None,
        )  # fmt: skip
        try:
            try:
                layer = _checked(_read(reader, module, shown, places), owned)
            except NotSelfAttention:
                if outer is None:
                    raise
                layer = outer  # what it is called like matters no more: a reader has read it
            if HOOKED not in layer.caveats and _hooked(layer, module, found.parameters, wrappers):
                layer = replace(layer, caveats=(*layer.caveats, HOOKED))
            claimed[name] = layer
            if outer is not None:
                found.add_caveats(outer.name, layer.caveats)
                continue
            found.layers.append(layer)
            found.modules[shown] = module
            around = (next((a for _, a in place if not isinstance(a, LISTS)), None) for place in places)
            found.blocks[shown] = [block for block in dict.fromkeys(around) if block is not None]
        except NotSelfAttention as reason:
            found.passed_over[shown] = str(reason).removeprefix(f"{shown}: ") + _with_those_inside(module, hidden)
        except UnsupportedAttention as reason:
            found.refused[shown] = str(reason).removeprefix(f"{shown}: ")
        except Exception as error:  # noqa: BLE001  a model in a state that the reader does not know: it must not fail without a name
            found.refused[shown] = f"cannot be read ({type(error).__name__}: {one_line(error, 200)})"
    for name, reason in suspects:
        if _of_its_own(name, modules[name], claimed):
            found.refused[clean_name(name) or type(modules[name]).__name__] = reason
    return found


def _of_its_own(name: str, module: nn.Module, claimed: dict[str, AttentionLayer | None]) -> bool:
    """Whether an unknown module that looks like attention is a layer of its own: a container around a known one is not,
    unless it attends itself or has projections beside it; nor is a part of one, unless it has projections that the
    layer does not read.
    """
    inside = any(
        _within(name, other) and (layer is None or not _apart(module, layer)) for other, layer in claimed.items()
    )
    itself = has_projections(module) or attends(type(module), False)
    around = any(_within(other, name) for other in claimed) and not itself
    return not (inside or around)


def _matrix_beside(parent: nn.Module, module: nn.Module) -> bool:
    """Whether a module holds a matrix itself or in a direct child other than this one, which may be used with it."""
    owners = (parent, *(child for child in parent.children() if child is not module))
    own = (p for owner in owners if find_reader(type(owner)) is None for p in owner.parameters(recurse=False))
    return any(map(is_matrix, own))


LISTS = (nn.ModuleList, nn.ModuleDict)  # they hold modules and compute nothing


def _in_a_list(place: Ancestors) -> bool:
    """Whether a place is a list of attention layers and of nothing else, which may be a block."""
    return bool(place) and isinstance(place[0][1], LISTS) and all(find_reader(type(m)) for m in place[0][1].children())


def _outside(module: nn.Module, name: str = "", seen: set[nn.Module] | None = None) -> Iterator[tuple[str, nn.Module]]:
    """named_modules without what only lies inside of classes that were registered as no self-attention: that is their
    own matter."""
    seen = set() if seen is None else seen
    if module in seen:
        return
    seen.add(module)
    yield name, module
    if left_alone(type(module)):
        return
    for attribute, child in module._modules.items():
        if child is not None:
            yield from _outside(child, f"{name}.{attribute}".lstrip("."), seen)


def _with_those_inside(module: nn.Module, hidden: dict[str, nn.Module]) -> str:
    """What is said of known layers inside of a class that was registered as no self-attention; "" of any other."""
    if not left_alone(type(module)):
        return ""
    within = set(module.modules())
    known = [
        clean_name(name)
        for name, m in hidden.items()
        if m in within and find_reader(type(m)) is not None and not left_alone(type(m))
    ]
    if not known:
        return ""
    what = f"{known[0]} and {len(known) - 1} more" if len(known) > 1 else known[0]
    return f", and with it known attention inside of it ({what})"


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode; afterwards every module in the mode that it was in, a frozen trunk still in eval mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def plain(t: Tensor) -> bool:
    """Whether a parameter or buffer is numbers in memory (not lazy, meta, sparse, sharded or quantised)."""
    return not is_lazy(t) and type(t.data) is Tensor and not t.is_meta and t.layout is torch.strided


def overlap(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one storage have memory in common, from the first to the last of their entries."""
    (a0, a1), (b0, b1) = (
        (t.data_ptr(), t.data_ptr() + t.element_size() * (1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride()))))
        for t in (a, b)
    )
    return a0 < b1 and b0 < a1


def held(view: Tensor, parameters: Parameters) -> list[tuple[str, nn.Module, Tensor]]:
    """The parameters that a view has memory in common with."""
    return [entry for entry in parameters.get(view.untyped_storage().data_ptr(), []) if overlap(view, entry[2])]


def views(layer: AttentionLayer, names: Iterable[str] = VIEWS) -> list[Tensor]:
    """Those of a layer's views that there are."""
    return [view for name in names if (view := getattr(layer, name)) is not None]


def _read(reader: Reader, module: nn.Module, name: str, places: list[Ancestors]) -> AttentionLayer:
    """The layer as its reader sees it, in every place where its module is registered."""
    if replaced_forward(module):
        raise UnsupportedAttention(
            "its forward was replaced on this one module, so the same weights may mean something else: initialise"
            " before that"
        )
    path, parent = places[0][0] if places[0] else ("", None)
    if path == "base_layer":  # PEFT's name for what it wraps
        raise UnsupportedAttention(
            f"it is the base layer of a {type(parent).__name__}, and what that adds is not in its weights: initialise"
            " before wrapping"
        )
    if path == "original_module" and hasattr(parent, "modules_to_save"):  # PEFT's names
        raise NotSelfAttention(f"{type(parent).__name__} keeps it as it was, beside the copy that it trains")
    if any(map(_offloaded, module.modules())):
        raise UnsupportedAttention(
            "its weights are kept elsewhere (offloaded) and put in their place anew for every pass: initialise before"
            " that"
        )
    layer = reader(module, name, places[0])
    if not isinstance(layer, AttentionLayer):
        raise UnsupportedAttention(f"its reader gave a {type(layer).__name__}, not an AttentionLayer")
    kinds, others = {layer.kind}, []
    for place in places[1:]:
        try:
            other = reader(module, name, place)
        except NotSelfAttention:
            kinds.add("pooling")
            continue
        except UnsupportedAttention:
            if place and _matrix_beside(place[0][1], module):
                raise
            continue  # a further name for BERT's layer, away from its output matrix
        kinds.add(other.kind)
        others.append((other, place))
    if len(kinds) > 1:
        attributes = sorted(p[0][0] for p in places if p)
        raise UnsupportedAttention(
            f"one module, called {' and '.join(attributes)}, is {' and '.join(sorted(kinds))} attention at once"
        )
    for other, place in others:
        if other.proj.data_ptr() != layer.proj.data_ptr():  # BERT's self-attention, shared by blocks
            raise UnsupportedAttention(
                "it is registered in several blocks, and each has an output matrix of its own beside it, so W_V W_proj"
                " cannot be set for all of them: give each block its own, or share the output matrix, too"
            )
        layer = replace(layer, caveats=tuple(dict.fromkeys((*layer.caveats, *other.caveats))))
        if _in_a_list(place) and not _in_a_list(places[0]):
            continue  # the block knows what is around it, a list does not
        if place and places[0] and place[0][1] is places[0][0][1]:  # a second name in one block
            if other.gains_known and not layer.gains_known:
                layer = replace(layer, in_gain=other.in_gain, out_gain=other.out_gain, gains_known=True)
            continue
        alike = (_same(layer.in_gain, other.in_gain), _same(layer.out_gain, other.out_gain))
        if not all(alike) or layer.gains_known != other.gains_known:  # each place has a norm of its own
            layer = replace(layer, in_gain=None, out_gain=None, gains_known=False)
    return replace(layer, name=name)  # a reader of one's own may not have passed it on


def _offloaded(module: nn.Module) -> bool:
    """Whether accelerate's hook on a module takes its weights from somewhere else for each pass."""
    hook = getattr(module, "_hf_hook", None)
    return any(getattr(h, "offload", False) for h in (hook, *getattr(hook, "hooks", ())))


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    """Whether two views of a norm's gain are of one parameter, or both are none."""
    return a is b or (a is not None and b is not None and a.data_ptr() == b.data_ptr())


def _apart(module: nn.Module, layer: AttentionLayer) -> bool:
    """Whether a module has projections, and none of its parameters is in the views of a layer."""
    read = {view.untyped_storage().data_ptr() for view in views(layer)}
    return has_projections(module) and not any(
        plain(p) and p.untyped_storage().data_ptr() in read for p in module.parameters()
    )


def _reads(layer: AttentionLayer, module: nn.Module, parameters: Parameters) -> bool:
    """Whether all of a layer's weights are a module's."""
    own = set(module.modules())
    return all(any(owner in own for _, owner, _ in held(view, parameters)) for view in views(layer))


def _hooked(
    layer: AttentionLayer, module: nn.Module, parameters: Parameters, wrappers: dict[nn.Module, nn.Module]
) -> bool:
    """Whether the layer's module or a projection, a module that does little but hold weights of this layer, or what is
    wrapped around one of them, has forward hooks: what they do is not known."""
    near = {m for view in views(layer) for _, m, _ in held(view, parameters)}
    # a module that holds a weight among other things, BERT's self-attention in its block, is seen where it is a layer
    # itself
    near = {m for m in near if next(m.children(), None) is None or isinstance(m, nn.Linear)} | {module}
    outer = near
    while outer := {wrappers[m] for m in outer if m in wrappers} - near:
        near = near | outer
    return any(map(hooked, near))


def _checked(layer: AttentionLayer, owned: set[int]) -> AttentionLayer:
    """The layer, if all its views look into the model's own parameters: what is written into a copy would be lost."""
    for name in VIEWS:
        view = getattr(layer, name)
        if not (view is None or isinstance(view, Tensor)):
            raise UnsupportedAttention(
                f"{layer.name}: {name} must be a view of a parameter (see AttentionLayer), its reader gave a"
                f" {type(view).__name__}"
            )
        if view is not None and name in ("q", "k", "v", "proj") and view.ndim != 3:
            raise UnsupportedAttention(
                f"{layer.name}: {name} must have 3 dimensions (see AttentionLayer), its reader gave {tuple(view.shape)}"
            )
        if view is not None and view.untyped_storage().data_ptr() not in owned:
            raise UnsupportedAttention(
                f"{layer.name}: {name} is no view of a parameter (it is computed: parametrised, pruned, or a copy):"
                " initialise before that"
            )
        if view is not None and expanded(view):
            raise UnsupportedAttention(
                f"{layer.name}: {name} is expanded: several of its entries are one number in memory"
            )
    if layer.kind not in ("self", "cross"):
        raise UnsupportedAttention(f"{layer.name}: kind must be 'self' or 'cross', its reader gave {layer.kind!r}")
    if not isinstance(layer.caveats, tuple) or not all(isinstance(caveat, str) for caveat in layer.caveats):
        raise UnsupportedAttention(
            f"{layer.name}: caveats must be a tuple of sentences, its reader gave {layer.caveats!r}"
        )
    for name, width in {"in_gain": layer.q.shape[0], "out_gain": layer.proj.shape[2]}.items():
        if (gain := getattr(layer, name)) is not None and gain.shape != (width,):
            raise UnsupportedAttention(
                f"{layer.name}: {name} must have shape ({width},), its reader gave {tuple(gain.shape)}"
            )
    for weight, first in (("q", 1), ("k", 1), ("v", 1), ("proj", 2)):
        name, shape = f"{weight}_bias", getattr(layer, weight).shape[first:]
        if (b := getattr(layer, name)) is not None and b.shape != shape:
            raise UnsupportedAttention(
                f"{layer.name}: {name} has shape {tuple(b.shape)}, its weight asks for {tuple(shape)}"
            )
    return layer


def _aliases(modules: dict[str, nn.Module]) -> dict[nn.Module, list[str]]:
    """The further names of modules that are registered in more than one place; named_modules gives the first."""
    further: dict[nn.Module, list[str]] = {}
    for parent_name, parent in modules.items():
        if left_alone(type(parent)):
            continue
        for attribute, child in parent._modules.items():  # named_children leaves out a second name, too
            if child is not None:
                further.setdefault(child, []).append(f"{parent_name}.{attribute}".lstrip("."))
    return {module: [n for n in names if n not in modules] for module, names in further.items() if len(names) > 1}


def _parameters(modules: dict[str, nn.Module]) -> Parameters:
    found: Parameters = {}
    for name, module in modules.items():
        for part, p in module._parameters.items():
            if p is not None and plain(p):
                found.setdefault(p.untyped_storage().data_ptr(), []).append(
                    (clean_name(f"{name}.{part}".lstrip(".")), module, p)
                )
    return found


def attention_layers(model: nn.Module) -> list[AttentionLayer]:
    """Every self- and cross-attention layer of a model, in the order of model.named_modules().

    Raises:
        UnsupportedAttention: there is none, or a layer that looks like attention cannot be handled; the message names
            each such layer and the reason. To work on the rest, pass the submodule that holds it.
    """
    return scan(model).require(model)


def ancestors(modules: dict[str, nn.Module], name: str) -> list[tuple[str, nn.Module]]:
    """(attribute path from the ancestor down to the module, ancestor), nearest first; wrappers are stepped over."""
    parts = name.split(".") if name else []
    chain = []
    for cut in range(len(parts) - 1, -1, -1):
        parent = modules.get(".".join(parts[:cut]))
        if parent is not None and (parts[cut] not in WRAPPERS or wrapped(parent) is None):
            chain.append((".".join(p for p in parts[cut:] if p not in WRAPPERS) or parts[cut], parent))
    return chain


def clean_name(name: str) -> str:
    """A module's name without the parts that torch.compile, DDP and the like put in."""
    return re.sub(r"(^|\.)(" + "|".join(WRAPPERS) + r")(?=\.|$)", "", name).lstrip(".")


def _within(inner: str, outer: str) -> bool:
    return outer == "" or inner == outer or inner.startswith(outer + ".")
