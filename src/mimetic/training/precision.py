"""Mixed precision: autocast to bfloat16, on every processor at a bearable speed.

The weights and AdamW stay in float32; autocast casts what goes into a matrix product to bfloat16. A CPU without
instructions for bfloat16 (before AVX-512, most laptops, many virtual machines) then trains at an eighth of its float32
speed (book/speed). There, the products are taken in float32 and rounded to bfloat16: the same numbers, up to the order
of a sum, since bfloat16 instructions add up in float32 too.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

_aten = torch.ops.aten
_PRODUCTS = {
    _aten.mm.default, _aten.addmm.default, _aten.bmm.default, _aten.baddbmm.default,
    _aten.convolution.default, _aten.convolution_backward.default,
}  # fmt: skip


def cast(backend: dict[str, Any]) -> AbstractContextManager:
    """autocast for the forward pass, as the backend (of backend.resolve_backend) wants it."""
    return torch.autocast(backend["type"], torch.bfloat16, enabled=backend["precision"] == "bfloat16")


def products(backend: dict[str, Any]) -> AbstractContextManager:
    """Matrix products as the backend wants them, to be entered around forward and backward pass."""
    return InFloat32() if backend["products"] != backend["precision"] else nullcontext()


def cpu_has_bfloat16() -> bool:
    """Whether PyTorch counts this CPU among those that are fast in bfloat16 (AVX-512 and later, some ARM)."""
    try:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    except (AttributeError, RuntimeError):  # built without oneDNN
        return False


class InFloat32(TorchDispatchMode):
    """Matrix products of bfloat16 tensors in float32, their results rounded to bfloat16; the
    backward pass too, where it runs inside.
    """

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function not in _PRODUCTS or not any(isinstance(a, Tensor) and a.dtype == torch.bfloat16 for a in args):
            return function(*args, **kwargs)
        found = function(*(a.float() if isinstance(a, Tensor) else a for a in args), **kwargs)
        return tree_map_only(Tensor, lambda t: t.bfloat16(), found)
