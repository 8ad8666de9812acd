"""The third question: attention's share of the parameters, for catalogues of any size."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from mimetic.attention import VIEWS, AttentionLayer, UnsupportedAttention
from mimetic.audit.state import StateNames, layer_numbers, tensor
from mimetic.scan import attention_layers, clean_name

_POSITION = re.compile(r"pos(ition)?_?(emb|ids)|position|wpe|token_type|segment", re.IGNORECASE)
_EMBEDDING = re.compile(r"embed|wte|wpe|cls_token|mask_token|register_tokens|class_token", re.IGNORECASE)


@dataclass(frozen=True)
class Parameters:
    """How many parameters a model has, by what they do. The item (or token) table and an output of its size grow with
    the catalogue: per_item parameters for each of items."""

    attention: int
    mlp: int
    embedding: int  # all embeddings, positions and outputs of the table's size included
    rest: int  # norms, heads, ...
    items: int | None = None  # rows of the table; None: there is none
    per_item: float = 0.0

    @property
    def total(self) -> int:
        return self.attention + self.mlp + self.embedding + self.rest

    def share(self, items: int | None = None) -> float:
        """Attention's share of all parameters, as the model is or with a catalogue of so many items.

        Raises:
            ValueError: items are given, and the model has no item table.
        """
        if items is None:
            return self.attention / self.total
        if self.items is None:
            raise ValueError("this model has no item table: its size does not depend on a catalogue")
        return self.attention / (self.total + (items - self.items) * self.per_item)


def count_parameters(model: nn.Module, layers: list[AttentionLayer] | None = None) -> Parameters:
    """A module's parameters by what they do; tied ones count once.

    attention: what the attention layers view, with biases. mlp: every other matrix, with its bias, inside the blocks
    that hold an attention layer. embedding: nn.Embedding, what is called embedding, and everything with as many rows as
    the largest table (an untied output, its bias).
    """
    layers = attention_layers(model) if layers is None else layers
    viewed = {view.data_ptr() for layer in layers for name in VIEWS if (view := getattr(layer, name)) is not None}
    tables = {id(m.weight): m.weight for m in model.modules() if isinstance(m, nn.Embedding)}
    named = [
        (clean_name(n), p, any(0 <= at - p.data_ptr() < p.numel() * p.element_size() for at in viewed), id(p) in tables)
        for n, p in model.named_parameters()
    ]
    rows = [p.shape[0] for n, p, _, table in named if table and not _POSITION.search(n)]
    return _count(
        [(n, tuple(p.shape), a, t) for n, p, a, t in named], [layer.name for layer in layers], max(rows, default=None)
    )


def count_state(state: Mapping[str, Tensor], names: StateNames) -> Parameters:
    """The same of a state dict: attention by the names, the rest by name and
    shape; tensors that share memory count once.
    """
    numbers = layer_numbers(state, names)
    patterns = [p for p in (names.qkv, names.q, names.k, names.v, names.proj) if p]
    attention = {p.format(i) for p in patterns for i in numbers}
    attention |= {re.sub(r"weight$", "bias", key) for key in attention}
    rows, seen, entries = None, set(), []
    if names.table is not None:
        table = tensor(state, names.table)
        if getattr(table, "ndim", 0) != 2:
            raise UnsupportedAttention(
                f"{names.table} is no table, (items, width): {tuple(getattr(table, 'shape', ()))}"
            )
        rows = table.shape[0]
    for key, t in state.items():
        if not isinstance(t, Tensor) or not t.is_floating_point() or key.endswith(("running_mean", "running_var")):
            continue
        place = (t.untyped_storage().data_ptr(), t.storage_offset(), tuple(t.shape))
        if t.numel() and place in seen:
            continue
        seen.add(place)
        table = key == names.table or bool(t.ndim == 2 and _EMBEDDING.search(key) and "patch" not in key)
        if t.ndim > 2 and t.shape[0] == 1 and t.shape[-1] == t.shape[-2] > 1:
            continue  # a causal mask kept as a buffer, (1, 1, N, N)
        entries.append((key, tuple(t.shape), key in attention, table))
    if rows is None:
        rows = max((shape[0] for key, shape, _, table in entries if table and not _POSITION.search(key)), default=None)
    return _count(entries, [names.proj.format(i).rsplit(".", 2)[0] for i in numbers], rows)


def _block(layer: str, others: set[str]) -> str | None:
    """The block of an attention layer: the innermost numbered part of its name in which there is another matrix, too
    (others, names); T5's attention and MLP are numbered once more inside of a block. None if there is no such part."""
    numbered = [layer[: m.end()] for m in re.finditer(r"(?<![^.])\d+(?=\.|$)", layer)]
    beside = {name for name in others if not name.startswith(f"{layer}.")}
    inner_first = reversed(numbered)
    return next((block for block in inner_first if any(name.startswith(f"{block}.") for name in beside)), None)


def _count(entries: list[tuple[str, tuple[int, ...], bool, bool]], layers: list[str], rows: int | None) -> Parameters:
    """Parameters from (name, shape, is attention, is an embedding table), the
    layers' names and the rows of the table.
    """
    counts, per_item = dict.fromkeys(("attention", "mlp", "embedding", "rest"), 0), 0.0
    matrices = {name.rpartition(".")[0] for name, shape, attention, _ in entries if not attention and len(shape) >= 2}
    others = {name for name, shape, attention, table in entries if len(shape) >= 2 and not attention and not table}
    blocks = {block for name in layers if (block := _block(name, others))}
    for name, shape, attention, table in entries:
        size, owner = int(np.prod(shape)), name.rpartition(".")[0]
        # the table, and what has one row an item beside it: a few rows may be padding and mask
        of_items = (
            rows is not None
            and rows >= 16
            and not attention
            and shape
            and 0 <= rows - shape[0] <= 3
            and not _POSITION.search(name)
        )
        inside = any(name.startswith(f"{block}.") for block in blocks)
        if attention:
            kind = "attention"
        elif of_items and (table or not inside):
            kind = "embedding"
            per_item += size / shape[0]
        elif table or (not inside and _EMBEDDING.search(name) and "norm" not in name.lower()):
            kind = "embedding"
        else:
            kind = "mlp" if inside and owner in matrices else "rest"
        counts[kind] += size
    return Parameters(**counts, items=rows if per_item else None, per_item=per_item)
