"""Attention layers in a state dict, by the names of its tensors."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mimetic.attention import AttentionLayer, UnsupportedAttention
from mimetic.messages import check_whole, one_line


@dataclass(frozen=True)
class StateNames:
    """Where the attention weights are in a state dict: patterns with {} for the
    number of the layer, numbers of any step.

    Either qkv (fused, rows of all queries, then keys, then values) or q, k and v. Weights are as nn.Linear stores them,
    (out, in); transposed=True for (in, out), as Conv1D of GPT-2 stores them.
    """

    proj: str  #: of the projection behind the values
    num_heads: int  #: the same in every layer
    qkv: str | None = None  #: of the fused layer
    q: str | None = None  #: of the queries
    k: str | None = None  #: of the keys
    v: str | None = None  #: of the values
    transposed: bool = False  #: weights are (in, out)
    #: gain of the LayerNorm in front, if the block is pre-LN; with None the raw weights are audited
    in_gain: str | None = None
    table: str | None = None  #: the item or token embedding, (items, width); with None it is found by its name

    def __post_init__(self) -> None:
        check_whole("num_heads", self.num_heads)
        for name in ("proj", "qkv", "q", "k", "v", "in_gain", "table"):
            value = getattr(self, name)
            if not isinstance(value, str) and (value is not None or name == "proj"):
                raise ValueError(f"{name} must be the name of a tensor, not {value!r}")
        separate = [name for name in "qkv" if getattr(self, name)]
        if bool(self.qkv) == bool(separate) or (separate and len(separate) < 3):
            raise ValueError("name either qkv, or q and k and v")
        for name in ("proj", "qkv", "q", "k", "v", "in_gain"):
            pattern = getattr(self, name)
            if pattern is not None and pattern.count("{}") != 1:
                raise ValueError(f"{name} must have one {{}} for the number of the layer, not {pattern!r}")


def layers_from_state(state: Mapping[str, Tensor], names: StateNames) -> list[AttentionLayer]:
    """The attention layers in a state dict.

    Raises:
        UnsupportedAttention: no layer at all, a tensor that is missing (it is named), or a shape that does not fit.
    """
    layers = []
    for i in layer_numbers(state, names):
        keys = [pattern.format(i) for pattern in ((names.qkv,) if names.qkv else (names.q, names.k, names.v))]
        weights = [_matrix(state, key, names.transposed) for key in keys]  # (in, out)
        if names.qkv:
            if weights[0].shape[1] % 3:
                raise UnsupportedAttention(
                    f"{keys[0]}: {weights[0].shape[1]} outputs are not queries, keys and values of one width"
                )
            weights, keys = list(weights[0].chunk(3, dim=1)), keys * 3
        proj_key = names.proj.format(i)
        proj = _matrix(state, proj_key, names.transposed)
        d = weights[0].shape[0]
        for key, w in zip(keys, weights):
            if w.shape[0] != d or w.shape[1] % names.num_heads or w.shape[1] != weights[0].shape[1]:
                raise UnsupportedAttention(
                    f"{key}: shape (in, out) = {tuple(w.shape)} does not fit {names.num_heads} heads of width {d} like"
                    f" {keys[0]}"
                )
        if proj.shape != (weights[2].shape[1], d):
            raise UnsupportedAttention(
                f"{proj_key}: shape (in, out) = {tuple(proj.shape)}, expected {(weights[2].shape[1], d)}"
            )
        q, k, v = (w.unflatten(1, (names.num_heads, -1)) for w in weights)
        gain = None
        if names.in_gain:
            gain = tensor(state, names.in_gain.format(i))
            if gain.shape != (d,):
                raise UnsupportedAttention(f"{names.in_gain.format(i)}: shape {tuple(gain.shape)}, expected {(d,)}")
        name = proj_key.rsplit(".", 2)[0]
        layers.append(
            AttentionLayer(
                name, q, k, v, proj.unflatten(0, (names.num_heads, -1)), in_gain=gain, gains_known=gain is not None
            )
        )
    return layers


def layer_numbers(state: Mapping[str, Tensor], names: StateNames) -> list[int]:
    """The numbers of the layers, by the output matrix's pattern."""
    before, after = names.proj.split("{}")
    pattern = re.compile(re.escape(before) + r"(\d+)" + re.escape(after))
    numbers = sorted(int(m.group(1)) for key in state if (m := pattern.fullmatch(key)))
    if not numbers:
        near = [key for key in state if key.endswith(after)][:3] or list(state)[:3]
        raise UnsupportedAttention(
            f"no tensor is called like {names.proj!r}; there are {', '.join(near) or 'none'}, ... ({len(state)} in all)"
        )
    return numbers


def tensor(state: Mapping[str, Tensor], key: str) -> Tensor:
    if key not in state:
        near = [other for other in state if other.rpartition(".")[2] == key.rpartition(".")[2]][:3]
        raise UnsupportedAttention(
            f"the state dict has no {key}" + (f"; there are {', '.join(near)}, ..." if near else "")
        )
    return state[key]


def _matrix(state: Mapping[str, Tensor], key: str, transposed: bool) -> Tensor:
    t = tensor(state, key)
    if not isinstance(t, Tensor) or t.ndim != 2 or not t.is_floating_point():
        raise UnsupportedAttention(f"{key} is no matrix of floating-point numbers: {tuple(getattr(t, 'shape', ()))}")
    if t.is_meta or t.layout is not torch.strided:
        raise UnsupportedAttention(
            f"{key} is {'a meta tensor, without numbers' if t.is_meta else f'stored as {t.layout}'}"
        )
    return t.detach() if transposed else t.detach().mT


def state_file(path: Path) -> Mapping[str, Tensor]:
    """The state dict in a file; one level of wrapping ("model", "state_dict") is opened."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError(
            f"{path.name} cannot be read as a state dict: it holds more than tensors, or is no file of PyTorch's; save"
            " model.state_dict() and name that file"
        ) from None
    except Exception as error:  # noqa: BLE001  safetensors, zip and torch each raise their own
        raise ValueError(f"{path.name} cannot be read as a state dict ({one_line(error, 120)})") from None
    for key in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not any(isinstance(t, Tensor) for t in state.values()):
        raise ValueError(f"{path.name} holds no state dict")
    return state
