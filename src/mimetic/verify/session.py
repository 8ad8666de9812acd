"""Running a model with random tokens in its attention layers and the identity in
place of softmax, and keeping what is seen.

Shape suffixes: B batch, N query tokens, M key tokens, H heads, K head_dim, D d_model.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mimetic.adapters.views import CLAMPED, INNER_NORM, QK_NORM, VALUE_NORM
from mimetic.attention import AttentionLayer
from mimetic.scan import ancestors, clean_name
from mimetic.verify.tokens import (
    KEY_NAMES,
    QUERY_NAMES,
    argument,
    find_tokens,
    first_tensor,
    generator_for,
    other_tokens,
    swap_tokens,
    tokens_like,
    tokens_of,
)


@dataclass
class Record:
    """One layer in one run."""

    # (H * B, N, *) is meant where heads and batch are one dimension, not (B * H, N, *)
    heads_first: bool = False
    x_BND: Tensor | None = None
    kv_BMD: Tensor | None = None
    q_BHNK: Tensor | None = None
    k_BHMK: Tensor | None = None
    logits_BHNM: Tensor | None = None
    y_BND: Tensor | None = None
    # added to the output inside the attention class: its input (ALBERT) or an argument (BLOOM)
    residual_BND: Tensor | None = None
    entered: Tensor | None = None  # what the module was called with
    apart: bool = False  # it was called with other tokens as keys than as queries
    gates: list[Tensor] = field(default_factory=list)  # inputs of its sigmoids
    softmaxes: int = 0
    projected: bool = False  # proj has run
    taken_out: set[str] = field(default_factory=set)


class Session:
    """Hooks and replacements around the attention modules of a model."""

    def __init__(self, model: nn.Module, layers: list[AttentionLayer], seed: int):
        self.model, self.layers, self.seed = model, layers, seed
        self.modules = dict(model.named_modules())
        by_clean = {clean_name(name): name for name in self.modules}
        self.names = [by_clean.get(layer.name, "") for layer in layers]
        self.attention = [self.modules[name] for name in self.names]
        self.owners = [self._proj_owner(i) for i in range(len(layers))]
        # the layer's output is the module's own, or (BERT) that of the sibling that holds proj
        inside = [owner in set(module.modules()) for owner, module in zip(self.owners, self.attention)]
        self.outputs = [module if held else owner for module, owner, held in zip(self.attention, self.owners, inside)]
        self.c_H = [1 + torch.rand(layer.num_heads, generator=generator_for(seed, i)) for i, layer in enumerate(layers)]
        self.stack: list[int] = []
        self.take_out_pre_norms = True
        self.norms = 0  # modules called like a norm that are running now
        self.heads_first: set[int] = set()  # layers whose heads come before the batch (Record)
        self.constant: set[tuple[int, int]] = set()  # (layer, number) of its sigmoids that the tokens do not change
        self.records: list[Record] = []

    def _proj_owner(self, i: int) -> nn.Module:
        """The nearest module that holds proj itself (others may share its storage)."""
        pointer = self.layers[i].proj.untyped_storage().data_ptr()
        near = [self.attention[i], *(a for _, a in ancestors(self.modules, self.names[i]))]
        for module in (m for outer in near for m in outer.modules()):
            if any(p.untyped_storage().data_ptr() == pointer for p in module.parameters(recurse=False)):
                return module
        return self.attention[i]

    @contextlib.contextmanager
    def hooked(self, inject: Callable[[int, nn.Module, tuple, dict], tuple[tuple, dict] | None]):
        """Record everything; inject may replace a layer's arguments before it runs."""
        self.records = [Record(i in self.heads_first) for i in range(len(self.layers))]
        handles = []
        for i, module in enumerate(self.attention):

            def enter(module, args, kwargs, i=i):
                self.stack.append(i)
                changed = inject(i, module, args, kwargs)
                self.records[i].entered = find_tokens(
                    module, *(changed or (args, kwargs)), QUERY_NAMES, self.layers[i].d_model
                )
                return changed

            def leave(module, args, output):
                self.stack.pop()

            handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            handles.append(module.register_forward_hook(leave, always_call=True))
            for child_name, child in module.named_modules():
                if child is not module and "norm" in type(child).__name__.lower() and not list(child.children()):
                    handles.append(child.register_forward_pre_hook(self._norm_begins))
                    handles.append(child.register_forward_hook(self._norm_ends, always_call=True))
                    handles.append(child.register_forward_hook(self._take_out(i, child_name)))
        for i, module in enumerate(self.outputs):

            def read(module, args, output, i=i):
                rec = self.records[i]
                if rec.y_BND is None and rec.softmaxes:
                    rec.y_BND = tokens_of(first_tensor(output), self.attention[i], self.layers[i].proj.shape[2])

            handles.append(module.register_forward_hook(read))
            if self.owners[i] is not module:

                def projected(module, args, output, i=i):
                    self.records[i].projected = True

                handles.append(self.owners[i].register_forward_hook(projected))
        try:
            with _Identity(self):
                yield self.records
        finally:
            self.stack.clear()
            self.norms = 0
            for handle in handles:
                handle.remove()

    def _norm_begins(self, module, args):
        self.norms += 1

    def _norm_ends(self, module, args, output):
        self.norms -= 1

    def _take_out(self, i: int, name: str):
        def hook(module, args, output):
            return args[0] if isinstance(output, Tensor) and self.takes_out(i, args[0], name) else output

        return hook

    def takes_out(self, i: int, x: Tensor, name: str = "") -> bool:
        """Whether a norm of layer i, of what is given, is to be the identity; notes the caveat that it calls for."""
        rec = self.records[i]
        if rec.projected:
            pass  # a post-norm inside the attention class (ALBERT)
        elif rec.softmaxes:
            rec.taken_out.add(INNER_NORM)
        elif rec.entered is not None and torch.equal(x, rec.entered):
            return self.take_out_pre_norms  # a pre-norm inside the attention class (TinyViT)
        elif name.split(".")[-1].startswith("v"):
            rec.taken_out.add(VALUE_NORM)
        else:
            rec.taken_out.add(QK_NORM)
        return True

    def run(self, run: Callable, r: int) -> list[Record]:
        def inject(i, module, args, kwargs):
            rec = self.records[i]
            x = find_tokens(module, args, kwargs, QUERY_NAMES, self.layers[i].d_model)
            if x is None:
                return None
            kv = find_tokens(module, args, kwargs, KEY_NAMES, self.layers[i].v.shape[0])
            if kv is None and self.layers[i].kind == "cross":  # under another name
                kv = other_tokens(args, kwargs, x, self.layers[i].v.shape[0])
            rec.apart |= kv is not None and not (kv is x or torch.equal(kv, x))
            new_x = self._draw(i, r, x, "self" if kv is None or self.layers[i].kind == "self" else "query")
            new_kv = new_x if kv is None or self.layers[i].kind == "self" else self._draw(i, r, kv, "key")
            if rec.x_BND is None:
                width = self.layers[i].d_model, self.layers[i].v.shape[0]
                rec.residual_BND = tokens_of(argument(module, args, kwargs, "residual"), module, width[0])
                rec.x_BND, rec.kv_BMD = tokens_of(new_x, module, width[0]), tokens_of(new_kv, module, width[1])
            return swap_tokens(module, args, kwargs, x, new_x, kv, new_kv)

        with self.hooked(inject) as records:
            run(self.model)
        return records

    def _draw(self, i: int, r: int, like: Tensor, what: str) -> Tensor:
        """Random tokens for layer i in run r, of the shape of `like`."""
        even, odd = (0, 1, 0, 1, 2)[r], (0, 0, 1, 1, 2)[r]
        width = self.layers[i].v.shape[0] if what == "key" else self.layers[i].d_model
        shape = tokens_of(like, self.attention[i], width).shape

        def draw(which):
            g = generator_for(self.seed, i, {"self": 0, "query": 1, "key": 2}[what], which)
            return torch.randn(shape, generator=g).to(like)

        if what == "query":
            tokens = draw(even)
        elif what == "key":
            tokens = draw(odd)
        else:
            tokens = draw(even)
            tokens[:, 1::2] = draw(10 + odd)[:, 1::2]
        return tokens_like(tokens, like, self.attention[i], width)


_SOFTMAX = {torch.softmax, Tensor.softmax, F.softmax, torch.special.softmax}
_TANH = {torch.tanh, Tensor.tanh, F.tanh}
_SIGMOID = {torch.sigmoid, Tensor.sigmoid, F.sigmoid, torch.special.expit}
_CLAMPS = {torch.clamp, torch.clamp_, Tensor.clamp, Tensor.clamp_, torch.clip, Tensor.clip}
_NORMS = {F.layer_norm, torch.layer_norm, F.rms_norm, torch.rms_norm}
_PRODUCTS = {torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm, torch.baddbmm, Tensor.baddbmm}


class _Identity(TorchFunctionMode):
    """Attention that looks only at the token itself, times c_h; remembers queries, keys and logits."""

    def __init__(self, session: Session):
        super().__init__()
        self.session = session
        self.products: list[tuple[Tensor, Tensor, torch.Size]] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if not self.session.stack:
            return func(*args, **kwargs)
        i = self.session.stack[-1]
        rec, c_H = self.session.records[i], self.session.c_H[i]
        if func is F.multi_head_attention_forward:  # written in Python: let it call us for what is inside
            kept, F.has_torch_function = F.has_torch_function, lambda tensors: False
            try:
                with self:
                    return func(*args, **kwargs)
            finally:
                F.has_torch_function = kept
        if func is F.scaled_dot_product_attention:
            return self._sdpa(rec, c_H, *args, **kwargs)
        if func is F.normalize:
            rec.taken_out.add(QK_NORM)
            return args[0]
        if func in _NORMS and not self.session.norms and self.session.takes_out(i, args[0]):
            return args[0]
        # a soft cap of the logits
        if func in _TANH and self.products and not rec.softmaxes and args[0].shape == self.products[-1][2]:
            return args[0]
        if func in _CLAMPS and CLAMPED in self.session.layers[i].caveats and not rec.softmaxes:
            rec.taken_out.add(CLAMPED)
            return args[0]
        if func in _SOFTMAX:
            dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
            logits = kwargs.get("input", args[0] if args else None)
            if dim in (-1, logits.ndim - 1) and logits.ndim >= 3:
                return self._softmax(rec, c_H, logits)
        if func in _SIGMOID:  # a gate if it depends on the tokens; Swin v2's position bias goes through one, too
            rec.gates.append(args[0].clone())
            constant = (i, len(rec.gates) - 1) in self.session.constant
            return func(*args, **kwargs) if constant else torch.ones_like(args[0])
        out = func(*args, **kwargs)
        if func in _PRODUCTS and len(args) >= 2:
            left, right = args[-2:] if func in (torch.baddbmm, Tensor.baddbmm) else args[:2]
            self.products = [*self.products[-7:], (left, right, out.shape)]
        elif func is torch.einsum and (factors := _factors(*args)) is not None:
            self.products = [*self.products[-7:], (*factors, out.shape)]
        return out

    def _sdpa(
        self, rec, c_H, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False
    ):
        H = query.shape[-3]
        if key.shape[-3] != H:  # what enable_gqa means
            key, value = (t.repeat_interleave(H // t.shape[-3], -3) for t in (key, value))
        N, M = query.shape[-2], key.shape[-2]
        rec.softmaxes += 1
        if rec.softmaxes == 1:
            rec.q_BHNK, rec.k_BHMK = query.clone(), key.clone()
            rec.logits_BHNM = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
        return _per_head(value[..., torch.arange(N, device=value.device) % M, :], c_H, rec.heads_first)

    def _softmax(self, rec, c_H, logits):
        N, M = logits.shape[-2:]
        rec.softmaxes += 1
        if rec.softmaxes == 1:
            rec.logits_BHNM = logits.clone()
            for left, right, shape in reversed(self.products):
                # the logits may have a column more (attention sinks), or another split of batch and heads
                same_rows = shape[:-1] == logits.shape[:-1] and shape[-1] <= M
                if same_rows or shape.numel() == logits.numel():
                    rec.q_BHNK, rec.k_BHMK = left.clone(), right.mT.clone()
                    break
        eye = F.one_hot(torch.arange(N, device=logits.device) % M, M).to(logits)
        return _per_head(eye.expand(logits.shape).clone(), c_H, rec.heads_first)


def _factors(equation: str, *operands: Tensor) -> tuple[Tensor, Tensor] | None:
    """The two factors of an einsum as those of a matrix product (..., N, K) @ (..., K, M); None of any other einsum."""
    terms = re.fullmatch(r"(\w+),(\w+)->(\w*)(\w)(\w)", equation.replace(" ", "") if isinstance(equation, str) else "")
    if terms is None or len(operands) != 2:
        return None
    left, right, batch, row, column = terms.groups()
    summed = set(left) & set(right) - set(batch) - {row, column}
    if len(summed) != 1:
        return None
    k = summed.pop()
    if sorted(left) != sorted(batch + row + k) or sorted(right) != sorted(batch + k + column):
        return None
    return (
        operands[0].permute([left.index(c) for c in batch + row + k]),
        operands[1].permute([right.index(c) for c in batch + k + column]),
    )


def _per_head(t: Tensor, c_H: Tensor, heads_first: bool) -> Tensor:
    """Multiply head h of (..., H, N, *), (B, H, ..., N, *) or (B * H, N, *), heads_first: (H * B, N, *), by c_h."""
    H = len(c_H)
    c_H = c_H.to(t)
    if t.ndim > 3 and t.shape[-3] == H:
        return t * c_H[:, None, None]
    if t.ndim > 3 and t.shape[1] == H:
        return t * c_H.view(H, *[1] * (t.ndim - 2))
    if t.shape[0] % H == 0:
        times = t.shape[0] // H
        c_H = c_H.repeat_interleave(times) if heads_first else c_H.repeat(times)
        return t * c_H.view(-1, *[1] * (t.ndim - 1))
    return t
