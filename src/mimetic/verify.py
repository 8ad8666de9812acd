"""Is the product that an AttentionLayer shows the product that the module's own forward computes?

The check knows nothing of which parameter is which. While the model runs, the tokens that enter an attention module are
replaced by random ones, its softmax by the identity with a random factor a head, and what reaches the softmax and what
leaves the module is recorded. Differences between runs remove every bias, mask and position bias, so that exactly

    y - y' = sum_h c_h (x - x') W_V,h W_proj,h    and    l - l' - l'' + l''' = s (u - u') W_Q,h W_K,h^T (v - v')^T

must hold for every head, with one scale s a layer. RoPE rotates by position alone: there the second line holds between
queries and keys of the same position. Norms and gates inside the module are taken out, and a layer that has them must
carry the caveat that says so.

Shape suffixes: B batch, N query tokens, M key tokens, H heads, K head_dim, D d_model.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mimetic.adapters import GATE, INNER_NORM, QK_NORM, ROPE, UNSCALED, VALUE_NORM
from mimetic.attention import AttentionLayer, ancestors, clean_name, scan

RUNS = 5  # tokens (U, V), (U', V), (U, V'), (U', V') at (even, odd) positions, and (W, W)


@dataclass(frozen=True)
class Check:
    """What was found for one layer; errors are relative to the largest expected entry."""

    name: str
    qk_error: float = math.nan
    vp_error: float = math.nan
    fold_error: float = math.nan  # nan: the gains are not known, or the block could not be isolated
    scale: float = math.nan  # factor on q k^T, in units of 1/sqrt(head_dim): 1 in the paper's attention
    caveats: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()  # the caveats that this forward calls for
    problem: str = ""  # "" where all is well; "unverified: ..." where nothing could be measured

    @property
    def ok(self) -> bool:
        return not self.problem


@dataclass
class _Record:
    """One layer in one run."""

    x_BND: Tensor | None = None
    kv_BMD: Tensor | None = None
    q_BHNK: Tensor | None = None
    k_BHMK: Tensor | None = None
    logits_BHNM: Tensor | None = None
    y_BND: Tensor | None = None
    softmaxes: int = 0
    projected: bool = False  # proj has run
    taken_out: set[str] = field(default_factory=set)


def verify(
    model: nn.Module,
    run: Callable[[nn.Module], object],
    *,
    layers: list[AttentionLayer] | None = None,
    tolerance: float = 1e-3,
    seed: int = 0,
    fold: bool = True,
) -> list[Check]:
    """Compare every layer's qk(h), vp(h) and folded products with the model's own forward.

    Args:
        model: any model that attention_layers can read; left as it was.
        run: calls the model once on some input (`lambda m: m(images)`); more than one token a sequence.
        layers: the layers to check, attention_layers(model) by default.
        tolerance: largest relative error that counts as rounding (float32; raise it for half precision).
        seed: of the random tokens.
        fold: also verify the LayerNorm gain and LayerScale that fold=True multiplies in.

    Returns:
        One Check a layer, in the order of the layers. Check.problem is empty where the layer is right.
    """
    layers = scan(model).layers if layers is None else layers
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            session = _Session(model, layers, seed)
            records = [session.run(run, r) for r in range(RUNS)]
            checks = [_compare(layer, [rec[i] for rec in records], session.c_H[i], tolerance) for i, layer in enumerate(layers)]
            if fold:
                errors = _fold_errors(session, run)
                checks = [_with_fold(c, layer, errors.get(i), tolerance) for i, (c, layer) in enumerate(zip(checks, layers))]
    finally:
        model.train(was_training)
    return checks


# --- the runs --------------------------------------------------------------------------------------------------------


class _Session:
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
        self.c_H = [1 + torch.rand(layer.num_heads, generator=_generator(seed, i)) for i, layer in enumerate(layers)]
        self.stack: list[int] = []
        self.records: list[_Record] = []

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
        self.records = [_Record() for _ in self.layers]
        handles = []
        for i, module in enumerate(self.attention):

            def enter(module, args, kwargs, i=i):
                self.stack.append(i)
                return inject(i, module, args, kwargs)

            def leave(module, args, output):
                self.stack.pop()

            handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            handles.append(module.register_forward_hook(leave, always_call=True))
            for child_name, child in module.named_modules():
                if child is not module and "norm" in type(child).__name__.lower() and not list(child.children()):
                    handles.append(child.register_forward_hook(self._take_out(i, child_name)))
        for i, module in enumerate(self.outputs):

            def read(module, args, output, i=i):
                rec = self.records[i]
                if rec.y_BND is None and rec.softmaxes:
                    rec.y_BND = _tokens(_first_tensor(output), self.attention[i], self.layers[i].proj.shape[2])

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
            for handle in handles:
                handle.remove()

    def _take_out(self, i: int, name: str):
        def hook(module, args, output):
            rec = self.records[i]
            if rec.projected:
                pass  # a post-norm inside the attention class (ALBERT)
            elif rec.softmaxes:
                rec.taken_out.add(INNER_NORM)
            elif name.split(".")[-1].startswith("v"):
                rec.taken_out.add(VALUE_NORM)
            else:
                rec.taken_out.add(QK_NORM)
            return args[0] if isinstance(output, Tensor) else output

        return hook

    def run(self, run: Callable, r: int) -> list[_Record]:
        def inject(i, module, args, kwargs):
            rec = self.records[i]
            x = _find(module, args, kwargs, _QUERY_NAMES, self.layers[i].d_model)
            if x is None:
                return None
            kv = _find(module, args, kwargs, _KEY_NAMES, self.layers[i].v.shape[0])
            new_x = self._draw(i, r, x, "self" if kv is None or self.layers[i].kind == "self" else "query")
            new_kv = new_x if kv is None or self.layers[i].kind == "self" else self._draw(i, r, kv, "key")
            if rec.x_BND is None:
                width = self.layers[i].d_model, self.layers[i].v.shape[0]
                rec.x_BND, rec.kv_BMD = _tokens(new_x, module, width[0]), _tokens(new_kv, module, width[1])
            return _replace(module, args, kwargs, x, new_x, kv, new_kv)

        with self.hooked(inject) as records:
            run(self.model)
        return records

    def _draw(self, i: int, r: int, like: Tensor, what: str) -> Tensor:
        """Random tokens for layer i in run r, of the shape of `like`."""
        even, odd = (0, 1, 0, 1, 2)[r], (0, 0, 1, 1, 2)[r]
        width = self.layers[i].v.shape[0] if what == "key" else self.layers[i].d_model
        shape = _tokens(like, self.attention[i], width).shape

        def draw(which):
            g = _generator(self.seed, i, {"self": 0, "query": 1, "key": 2}[what], which)
            return torch.randn(shape, generator=g).to(like)

        if what == "query":
            tokens = draw(even)
        elif what == "key":
            tokens = draw(odd)
        else:
            tokens = draw(even)
            tokens[:, 1::2] = draw(10 + odd)[:, 1::2]
        return _untokens(tokens, like, self.attention[i], width)


_SOFTMAX = {torch.softmax, Tensor.softmax, F.softmax, torch.special.softmax}
_SIGMOID = {torch.sigmoid, Tensor.sigmoid, F.sigmoid, torch.special.expit}
_PRODUCTS = {torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm, torch.baddbmm, Tensor.baddbmm}


class _Identity(TorchFunctionMode):
    """Attention that looks only at the token itself, times c_h; remembers queries, keys and logits."""

    def __init__(self, session: _Session):
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
        if func in _SOFTMAX:
            dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
            logits = kwargs.get("input", args[0] if args else None)
            if dim in (-1, logits.ndim - 1) and logits.ndim >= 3:
                return self._softmax(rec, c_H, logits)
        if func in _SIGMOID:
            rec.taken_out.add(GATE)
            return torch.ones_like(args[0])
        out = func(*args, **kwargs)
        if func in _PRODUCTS and len(args) >= 2:
            left, right = args[-2:] if func in (torch.baddbmm, Tensor.baddbmm) else args[:2]
            self.products = [*self.products[-7:], (left, right, out.shape)]
        return out

    def _sdpa(self, rec, c_H, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
        H = query.shape[-3]
        if key.shape[-3] != H:  # what enable_gqa means
            key, value = (t.repeat_interleave(H // t.shape[-3], -3) for t in (key, value))
        N, M = query.shape[-2], key.shape[-2]
        rec.softmaxes += 1
        if rec.softmaxes == 1:
            rec.q_BHNK, rec.k_BHMK = query.clone(), key.clone()
            rec.logits_BHNM = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
        return _per_head(value[..., torch.arange(N, device=value.device) % M, :], c_H)

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
        return _per_head(eye.expand(logits.shape).clone(), c_H)


def _per_head(t: Tensor, c_H: Tensor) -> Tensor:
    """Multiply head h of (..., H, N, *), (B, H, ..., N, *) or (B * H, N, *) by c_h."""
    H = len(c_H)
    c_H = c_H.to(t)
    if t.ndim > 3 and t.shape[-3] == H:
        return t * c_H[:, None, None]
    if t.ndim > 3 and t.shape[1] == H:
        return t * c_H.view(H, *[1] * (t.ndim - 2))
    if t.shape[0] % H == 0:
        return t * c_H.repeat(t.shape[0] // H).view(-1, *[1] * (t.ndim - 1))
    return t


# --- arguments and shapes ----------------------------------------------------------------------------------------------

_QUERY_NAMES = ("hidden_states", "query", "x", "input", "inputs", "hidden_state", "queries", "query_states", "src", "input_tensor", "embeddings")
_KEY_NAMES = (
    "key_value_states", "encoder_hidden_states", "cross_attention_states", "key", "value", "keys", "values", "kv", "memory", "context",
)  # fmt: skip


def _generator(*seed: int) -> torch.Generator:
    mixed = 0
    for s in seed:
        mixed = (mixed * 1_000_003 + s + 1) % (2**61 - 1)
    return torch.Generator().manual_seed(mixed)


def _is_tokens(t, width: int) -> bool:
    return isinstance(t, Tensor) and t.is_floating_point() and t.ndim >= 2 and (t.shape[-1] == width or _channels_first(t, width))


def _channels_first(t: Tensor, width: int) -> bool:
    """(B, D, height, width), as layers made of 1x1 convolutions take it."""
    return t.ndim == 4 and t.shape[1] == width and t.shape[-1] != width


def _find(module: nn.Module, args: tuple, kwargs: dict, names: tuple[str, ...], width: int) -> Tensor | None:
    """The argument of one of these names, or (queries) the first positional one."""
    for name in names:
        if _is_tokens(kwargs.get(name), width):
            return kwargs[name]
    if names is _QUERY_NAMES:
        return args[0] if args and _is_tokens(args[0], width) else None
    # keys by position: nn.MultiheadAttention(query, key, value), or a forward whose second name is one of these
    if isinstance(module, nn.MultiheadAttention):
        return args[1] if len(args) > 1 else None
    parameters = type(module).forward.__code__.co_varnames[1 : type(module).forward.__code__.co_argcount]
    for name, value in zip(parameters, args):
        if name in names and _is_tokens(value, width):
            return value
    return None


def _replace(module, args, kwargs, x, new_x, kv, new_kv):
    swap = {id(x): new_x}
    if kv is not None:
        swap.setdefault(id(kv), new_kv)
        if isinstance(module, nn.MultiheadAttention):  # the value argument goes with the key
            value = kwargs.get("value", args[2] if len(args) > 2 else None)
            swap.setdefault(id(value), new_kv)
        for name in ("key", "value", "keys", "values"):
            if _is_tokens(kwargs.get(name), kv.shape[-1]):
                swap.setdefault(id(kwargs[name]), new_kv)
    return tuple(swap.get(id(a), a) for a in args), {k: swap.get(id(a), a) for k, a in kwargs.items()}


def _seq_first(module: nn.Module) -> bool:
    return isinstance(module, nn.MultiheadAttention) and not module.batch_first


def _tokens(t: Tensor | None, module: nn.Module, width: int) -> Tensor | None:
    """(B, N, D) from (N, D), (B, N, D), (B, height, width, D), (B, D, height, width) or a sequence-first layout."""
    if t is None:
        return None
    if t.ndim == 2:
        return t[None].clone()
    if t.ndim == 3 and _seq_first(module):
        return t.transpose(0, 1).clone()
    if _channels_first(t, width):
        return t.flatten(2).mT.clone()
    return t.reshape(t.shape[0], -1, t.shape[-1]).clone()


def _untokens(tokens: Tensor, like: Tensor, module: nn.Module, width: int) -> Tensor:
    if like.ndim == 3 and _seq_first(module):
        return tokens.transpose(0, 1).contiguous()
    if _channels_first(like, width):
        return tokens.mT.reshape(like.shape).contiguous()
    return tokens.reshape(like.shape)


def _first_tensor(output) -> Tensor | None:
    if isinstance(output, Tensor):
        return output
    if isinstance(output, dict):
        output = tuple(output.values())
    if isinstance(output, (tuple, list)):
        for item in output:
            found = _first_tensor(item)
            if found is not None:
                return found
    return None


def _arrange(t: Tensor, H: int, tokens_BN: torch.Size):
    """(t as (b, H, n, *), ways to bring tokens (B, N, D) to (b, n, D)), or None: how windows were cut is not known here."""
    B, N = tokens_BN[:2]
    if t.ndim == 3 and t.shape[0] % H == 0:
        t = t.unflatten(0, (-1, H))
    if t.ndim == 4 and t.shape[1] == H and t.shape[0] * t.shape[2] == B * N:
        b, n = t.shape[0], t.shape[2]
        return t, [lambda x: x.reshape(b, n, -1)]
    if t.ndim != 5:
        return None
    if t.shape[1] == H:  # (B, H, windows, n, *)
        t = t.transpose(1, 2)
    if t.shape[2] != H or t.shape[0] != B or t.shape[1] * t.shape[3] != N:
        return None
    w, n = t.shape[1], t.shape[3]
    ways = [lambda x: x.reshape(B * w, n, -1), lambda x: x.reshape(B, n, w, -1).transpose(1, 2).reshape(B * w, n, -1)]
    if math.isqrt(w) ** 2 == w and math.isqrt(n) ** 2 == n:  # square windows of a square image
        h, s = math.isqrt(w), math.isqrt(n)
        ways.append(lambda x: x.reshape(B, h, s, h, s, -1).transpose(2, 3).reshape(B * w, n, -1))
    return t.flatten(0, 1), ways


# --- comparison ----------------------------------------------------------------------------------------------------------


def _relative(measured: Tensor, expected: Tensor) -> float:
    if measured.shape != expected.shape:
        return math.inf
    top = expected.abs().max().item()
    error = (measured - expected).abs().max().item()
    return error / top if top > 0 and math.isfinite(error) else math.inf


def _compare(layer: AttentionLayer, recs: list[_Record], c_H: Tensor, tolerance: float) -> Check:
    base = Check(layer.name, caveats=layer.caveats)
    first = recs[0]
    if first.x_BND is None:
        return replace(base, problem="unverified: the layer was not called, or its tokens were not found among its arguments")
    if not first.softmaxes or first.y_BND is None:
        return replace(base, problem="unverified: no softmax and output were seen")
    vp_error = _vp_error(layer, recs, c_H)
    qk_error, scale, rope = _qk_error(layer, recs, tolerance)
    problem, needed = "", set()
    if not vp_error <= tolerance:
        problem = f"wrong: W_V W_proj differs from the forward (relative error {vp_error:.1e})"
    elif qk_error is None:
        problem = "unverified: queries and keys were not seen"
    elif not qk_error <= tolerance:
        problem = f"wrong: W_Q W_K^T differs from the forward (relative error {qk_error:.1e})"
    elif scale < 0:
        problem = "wrong: W_Q W_K^T has the opposite sign in the forward"
    else:
        needed = set().union(*(rec.taken_out for rec in recs)) | ({ROPE} if rope else set())
        if abs(scale - 1) > 0.01 and QK_NORM not in needed:
            needed.add(UNSCALED)
        missing = needed - set(layer.caveats)
        if missing:
            problem = f"wrong: missing caveat: {'; '.join(sorted(missing))} (scale {scale:.3g})"
    return replace(
        base, vp_error=vp_error, qk_error=math.nan if qk_error is None else qk_error, scale=scale,
        needs=tuple(sorted(needed)), problem=problem,
    )  # fmt: skip


def _vp_error(layer: AttentionLayer, recs: list[_Record], c_H: Tensor) -> float:
    products = [layer.vp(h) for h in range(layer.num_heads)]
    weighted = sum(c.to(p) * p for c, p in zip(c_H, products))
    errors = [_relative(layer.vp(), sum(products))]
    for a, b in ((0, 3), (3, 4)):
        kv, y = ((recs[a].kv_BMD - recs[b].kv_BMD).to(weighted), (recs[a].y_BND - recs[b].y_BND).to(weighted))
        N, M = recs[a].x_BND.shape[1], kv.shape[1]
        expected = kv[:, torch.arange(N, device=kv.device) % M] @ weighted
        residual = (recs[a].x_BND - recs[b].x_BND).to(weighted)  # ALBERT adds it inside the attention class
        errors.append(min(_relative(y, expected), _relative(y - residual, expected) if residual.shape == y.shape else math.inf))
    return max(errors)


def _qk_error(layer: AttentionLayer, recs: list[_Record], tolerance: float) -> tuple[float | None, float, bool]:
    """(relative error, scale in units of 1/sqrt(head_dim), whether queries and keys are rotated by position)."""
    first = recs[0]
    seen = first.logits_BHNM if first.logits_BHNM is not None else first.q_BHNK
    arranged = None if seen is None else _arrange(seen, layer.num_heads, first.x_BND.shape)
    if arranged is None:
        return None, math.nan, False
    tries = [_qk_error_arranged(layer, recs, tolerance, way) for way in arranged[1]]
    return min(tries, key=lambda t: math.inf if t[0] is None else t[0])


def _qk_error_arranged(layer: AttentionLayer, recs: list[_Record], tolerance: float, way: Callable):
    H, products = layer.num_heads, torch.stack([layer.qk(h) for h in range(layer.num_heads)])
    cross = layer.kind == "cross"
    x = [way(r.x_BND.to(products)) for r in recs]
    kv = [r.kv_BMD.to(products) for r in recs] if cross else x
    places = way(torch.arange(recs[0].x_BND.shape[1], device=products.device).expand(recs[0].x_BND.shape[:2])[..., None])

    def heads(tensors):
        found = [None if t is None else _arrange(t, H, r.x_BND.shape if t.shape[-2] == x[0].shape[1] else r.kv_BMD.shape)
                 for t, r in zip(tensors, recs)]  # fmt: skip
        return None if any(f is None for f in found) else [f[0].to(products) for f in found]

    logits, q, k = (heads([getattr(r, a) for r in recs]) for a in ("logits_BHNM", "q_BHNK", "k_BHMK"))
    results = {}
    if logits:
        measured = logits[0] - logits[1] - logits[2] + logits[3]
        dq, dk = (x[0] - x[1], kv[0] - kv[2]) if cross else (x[0] - x[3], x[0] - x[3])
        if dq.shape[0] == measured.shape[0] and dk.shape[:1] == dq.shape[:1]:
            expected = torch.einsum("bnd,hde,bme->bhnm", dq, products, dk)
            measured = measured[..., : expected.shape[-1]]  # without attention sinks
            # masked pairs: a constant in place of the logit (GPT-1), or a large negative number added
            level = [t[..., : expected.shape[-1]] for t in logits[:4]]
            use = measured.isfinite() & (level[0] > -5e3) & ~((level[0] == level[1]) & (level[0] == level[2]) & (level[0] == level[3]))
            if not cross:  # only pairs of an even and an odd position were varied independently
                use = use & ((places + places.mT) % 2 == 1)[:, None]
            if use.any():
                results["pairs"] = _fit(torch.where(use, measured, 0), torch.where(use, expected, 0))
    if q and k and not cross and q[0].shape == k[0].shape:
        measured = ((q[0] - q[3]) * (k[3] - k[4])).sum(-1)
        expected = torch.einsum("bnd,hde,bne->bhn", x[0] - x[3], products, x[3] - x[4])
        error, scale = _fit(measured, expected)
        ratio = _logit_ratio(logits, q, k) if logits else math.nan
        results["same position"] = error, scale * ratio
    if not results:
        return None, math.nan, False
    unit = layer.head_dim**0.5
    if "pairs" in results and ("same position" not in results or results["pairs"][0] <= tolerance):
        error, scale = results["pairs"]
        return max(error, results.get("same position", (0,))[0]), scale * unit, False
    error, scale = results["same position"]
    return error, scale * unit, "pairs" in results


def _logit_ratio(logits, q, k) -> float:
    """Logits over q k^T: a scale applied between the two, from differences at (i, i), which no causal mask hides."""
    diagonal = [t.diagonal(dim1=-2, dim2=-1) for t in logits]
    dots = [(a * b).sum(-1) for a, b in zip(q, k)]
    if diagonal[0].shape != dots[0].shape:
        return math.nan
    error, ratio = _fit((diagonal[0] - diagonal[3]).double(), (dots[0] - dots[3]).double())
    return ratio if error < 1e-2 else math.nan


def _fit(measured: Tensor, expected: Tensor) -> tuple[float, float]:
    """(relative error, s) of the best single factor s: measured = s * expected."""
    norm = (expected * expected).sum()
    if not norm > 0:
        return math.inf, math.nan
    s = ((measured * expected).sum() / norm).item()
    return (_relative(measured, s * expected) if s else math.inf), s


# --- LayerNorm gain and LayerScale -----------------------------------------------------------------------------------------


def _fold_errors(session: _Session, run: Callable) -> dict[int, float]:
    """Layer index -> relative error of the folded V.proj, through the block around the layer.

    The block gets random tokens z and everything in it but this attention is silenced. A pre-norm block then gives
    z + attention(normalise(z)), a post-norm block a norm of z + attention(z). The block is the nearest ancestor that
    has the residual connection. Layers whose block cannot be isolated are absent.
    """
    errors: dict[int, float] = {}
    known = [i for i, layer in enumerate(session.layers) if layer.gains_known and layer.kind == "self"]
    for depth in range(3):
        blocks = {}
        for i in known:
            chain = ancestors(session.modules, session.names[i])
            if i not in errors and depth < len(chain) and not isinstance(chain[depth][1], (nn.ModuleList, nn.Sequential)):
                blocks[i] = chain[depth][1]
        if not blocks:
            continue
        try:
            silent, one, two = (_block_run(session, run, blocks, r, silent=r == 0) for r in range(3))
        except (RuntimeError, ValueError, TypeError, IndexError):  # this ancestor cannot be called on other tokens
            continue
        for i in blocks:
            if all(i in r and r[i][0].shape == r[i][1].shape for r in (silent, one, two)):
                error = _fold_error(session.layers[i], session.c_H[i], silent[i], one[i], two[i])
                if error is not None:
                    errors[i] = error
    return errors


def _block_run(session: _Session, run: Callable, blocks: dict[int, nn.Module], r: int, silent: bool):
    """{layer: (z, block output, attention input)}, each (B, N, D), of one run with tokens z into the blocks."""
    seen: dict[int, list] = {}
    handles = []

    def keep(i, module, args, kwargs):
        x = _find(module, args, kwargs, _QUERY_NAMES, session.layers[i].d_model)
        if i in seen and len(seen[i]) == 1 and x is not None:
            seen[i].append(_tokens(x, module, session.layers[i].d_model))
        return None

    for i, block in blocks.items():

        def enter(module, args, kwargs, i=i):
            x = _find(module, args, kwargs, _QUERY_NAMES, session.layers[i].d_model)
            if x is None or i in seen:
                return None
            z = torch.randn(x.shape, generator=_generator(session.seed, i, 100 + r)).to(x)
            seen[i] = [_tokens(z, module, session.layers[i].d_model)]
            return _replace(module, args, kwargs, x, z, None, None)

        def leave(module, args, output, i=i):
            out = _first_tensor(output)
            if i in seen and len(seen[i]) == 2 and out is not None:
                seen[i].append(_tokens(out, module, session.layers[i].d_model))

        handles.append(block.register_forward_pre_hook(enter, with_kwargs=True))
        inside = set(session.attention[i].modules()) | set(session.outputs[i].modules())
        # proj, so that a residual connection inside the attention class stays; nn.MultiheadAttention never calls its own
        quiet = session.attention[i] if isinstance(session.attention[i], nn.MultiheadAttention) else session.owners[i]
        for module in block.modules():
            matrix = any(p.ndim >= 2 for p in module.parameters(recurse=False)) and module not in inside
            if matrix or (silent and module is quiet) or (module in session.attention and module not in inside):
                handles.append(module.register_forward_hook(_silence))
        handles.append(block.register_forward_hook(leave))
    try:
        with session.hooked(keep):
            run(session.model)
    finally:
        for handle in handles:
            handle.remove()
    return {i: (s[0], s[2], s[1]) for i, s in seen.items() if len(s) == 3}


def _silence(module, args, output):
    if isinstance(output, Tensor):
        return torch.zeros_like(output)
    if isinstance(output, tuple):
        return tuple(torch.zeros_like(t) if isinstance(t, Tensor) and t.is_floating_point() else t for t in output)
    return output


def _fold_error(layer: AttentionLayer, c_H: Tensor, silent, one, two) -> float | None:
    z, out, x = silent
    if torch.allclose(out, z, atol=1e-5):  # x + ...: the residual connection of a pre-norm block
        (z1, out1, _), (z2, out2, _) = one, two
        folded = [layer.vp(h, fold=True) for h in range(layer.num_heads)]
        expected_map = sum(c.to(p) * p for c, p in zip(c_H, folded))
        measured = ((out1 - z1) - (out2 - z2)).to(expected_map)
        return min(_relative(measured, (norm(z1) - norm(z2)).to(measured) @ expected_map) for norm in (_layer, _rms, _same))
    if x.shape == z.shape and torch.equal(x, z) and layer.in_gain is None and layer.out_gain is None:
        if (out - out[:, :1]).abs().max() > 1e-3:  # the tokens pass by the silent attention: the residual connection is in here
            return 0.0  # norm(z + attention(z)): the layer reads the residual stream itself, nothing to fold
    return None


def _layer(z: Tensor) -> Tensor:
    return F.layer_norm(z, z.shape[-1:])


def _rms(z: Tensor) -> Tensor:
    return z * z.pow(2).mean(-1, keepdim=True).rsqrt()


def _same(z: Tensor) -> Tensor:
    return z


def _with_fold(check: Check, layer: AttentionLayer, error: float | None, tolerance: float) -> Check:
    if error is None:
        return check
    problem = check.problem
    if not problem and not error <= tolerance:
        problem = f"wrong: the folded W_V W_proj differs from the block's forward (relative error {error:.1e})"
    return replace(check, fold_error=error, problem=problem)
