"""Is the product that an AttentionLayer shows the product that the module's own forward computes?

The check knows nothing of which parameter is which. While the model runs, the tokens that enter an attention module are
replaced by random ones, its softmax by the identity with a random factor a head, and what reaches the softmax and what
leaves the module is recorded. Differences between runs remove every bias, mask and position bias, so that exactly

    y - y' = sum_h c_h (x - x') W_V,h W_proj,h    and    l - l' - l'' + l''' = s (u - u') W_Q,h W_K,h^T (v - v')^T

must hold for every head, with one scale s a layer. RoPE rotates by position alone: there the second line holds between
queries and keys of the same position. Norms, gates and clamps inside the module are taken out, and a layer that has
them must carry the caveat that says so. A bias beside a weight that is read must be read, too.

Shape suffixes: B batch, N query tokens, M key tokens, H heads, K head_dim, D d_model.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mimetic.adapters.views import BIAS_GATE, GATE, QK_NORM, ROPE, UNSCALED
from mimetic.attention import VIEWS, AttentionLayer
from mimetic.construct import double
from mimetic.scan import Parameters, evaluating, held, scan, views
from mimetic.verify.fold import fold_errors
from mimetic.verify.session import Record, Session
from mimetic.verify.tokens import arrange, relative_error

RUNS = 5  # tokens (U, V), (U', V), (U, V'), (U', V') at (even, odd) positions, and (W, W)


@dataclass(frozen=True)
class Check:
    """What was found for one layer; errors are relative to the largest expected entry."""

    name: str  #: of the layer
    qk_error: float = math.nan  #: of W_Q W_K^T, the worst head
    vp_error: float = math.nan  #: of W_V W_proj, the worst head
    #: of the folded products; nan where the gains are not known, the block could not be isolated, or attention adds so
    #: little that rounding hides it
    fold_error: float = math.nan
    scale: float = math.nan  #: factor on q k^T in units of 1/sqrt(head_dim), 1 in the paper's attention
    caveats: tuple[str, ...] = ()  #: those of the layer
    needs: tuple[str, ...] = ()  #: the caveats that this forward calls for
    problem: str = ""  #: what is wrong, or "unverified" and why where nothing could be measured; "" where all is well

    @property
    def ok(self) -> bool:
        """Whether there is no problem."""
        return not self.problem


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

    Raises:
        UnsupportedAttention: no layers were given, and attention_layers(model) refuses the model.
    """
    found = scan(model)
    layers = found.require(model) if layers is None else layers
    # of compiled code no hook sees the inside
    with evaluating(model), torch.no_grad(), torch.compiler.set_stance("force_eager"):
        session = Session(model, layers, seed)
        records = [session.run(run, r) for r in range(RUNS)]
        # a sigmoid that the tokens do not change is no gate that a caveat speaks of: it belongs to the products
        session.constant = {
            (i, n)
            for i, (a, b) in enumerate(zip(records[0], records[4]))
            for n, (one, other) in enumerate(zip(a.gates, b.gates))
            if torch.equal(one, other)
        }
        if session.constant:
            records = [session.run(run, r) for r in range(RUNS)]
        checks = _checks(session, records, tolerance)
        # heads and batch may be one dimension in another order
        session.heads_first = {i for i, check in enumerate(checks) if "differs" in check.problem}
        if session.heads_first:
            again = _checks(session, [session.run(run, r) for r in range(RUNS)], tolerance)
            session.heads_first &= {i for i, check in enumerate(again) if check.ok}
            checks = [again[i] if i in session.heads_first else check for i, check in enumerate(checks)]
        if fold:
            for i, error in fold_errors(session, run).items():
                problem = checks[i].problem
                if not problem and not error <= tolerance:
                    problem = (
                        f"wrong: the folded W_V W_proj differs from the block's forward (relative error {error:.1e})"
                    )
                checks[i] = replace(checks[i], fold_error=error, problem=problem)
    beside = zip(checks, layers, session.attention)
    return [_with_biases(check, layer, module, found.parameters) for check, layer, module in beside]


# --- comparison -------------------------------------------------------------------------------------------------------


def _checks(session: Session, records: list[list[Record]], tolerance: float) -> list[Check]:
    return [
        _compare(layer, [rec[i] for rec in records], c_H, tolerance)
        for i, (layer, c_H) in enumerate(zip(session.layers, session.c_H))
    ]


def _compare(layer: AttentionLayer, recs: list[Record], c_H: Tensor, tolerance: float) -> Check:
    base = Check(layer.name, caveats=layer.caveats)
    first = recs[0]
    if first.x_BND is None:
        return replace(
            base, problem="unverified: the layer was not called, or its tokens were not found among its arguments"
        )
    if not first.softmaxes or first.y_BND is None:
        return replace(base, problem="unverified: no softmax and output were seen")
    if first.apart and layer.kind == "self":
        return replace(
            base, problem="wrong: it is called with other tokens as keys than as queries, so it is cross-attention"
        )
    vp_error = _vp_error(layer, recs, c_H)
    qk_error, scale, rope = _qk_error(layer, recs, tolerance)
    problem, needed = "", set()
    if not vp_error <= tolerance:
        problem = f"wrong: W_V W_proj differs from the forward (relative error {vp_error:.1e})"
    elif qk_error is None:
        problem = "unverified: queries and keys were not seen"
    elif not qk_error <= tolerance:
        problem = f"wrong: W_Q W_K^T differs from the forward (relative error {qk_error:.1e})"
    elif not math.isfinite(scale):
        problem = "wrong: what reaches the softmax is not q k^T times one number"
    elif scale < 0:
        problem = "wrong: W_Q W_K^T has the opposite sign in the forward"
    else:
        needed = set().union(*(rec.taken_out for rec in recs)) | ({ROPE} if rope else set())
        # of the heads, or of the position bias
        if any(not torch.equal(a, b) for a, b in zip(recs[0].gates, recs[4].gates)):
            needed.add(BIAS_GATE if BIAS_GATE in layer.caveats else GATE)
        if abs(scale - 1) > 0.01 and QK_NORM not in needed:
            needed.add(UNSCALED)
        missing = needed - set(layer.caveats)
        if missing:
            problem = f"wrong: missing caveat: {'; '.join(sorted(missing))} (scale {scale:.3g})"
    if "differs" in problem and layer.kind == "cross" and not first.apart:
        problem = "unverified: the tokens of its keys were not found among its arguments"
    elif "differs" in problem and first.softmaxes > 1:  # heads one at a time, pieces of a sequence, ...
        problem = f"unverified: {first.softmaxes} softmaxes were seen in one pass, of which only the first is compared"
    return replace(
        base, vp_error=vp_error, qk_error=math.nan if qk_error is None else qk_error, scale=scale,
        needs=tuple(sorted(needed)), problem=problem,
    )  # fmt: skip


def _vp_error(layer: AttentionLayer, recs: list[Record], c_H: Tensor) -> float:
    products = [layer.vp(h) for h in range(layer.num_heads)]
    weighted = sum(c.to(p) * p for c, p in zip(c_H, products))
    errors = [relative_error(layer.vp(), sum(products))]
    for a, b in ((0, 3), (3, 4)):
        kv = (recs[a].kv_BMD - recs[b].kv_BMD).to(weighted)
        y = (recs[a].y_BND - recs[b].y_BND).to(weighted)
        N, M = recs[a].x_BND.shape[1], kv.shape[1]
        expected = kv[:, torch.arange(N, device=kv.device) % M] @ weighted
        # the class may add the residual itself: its own input (ALBERT), or an argument (BLOOM)
        added = [(recs[a].x_BND - recs[b].x_BND).to(weighted)]
        if recs[a].residual_BND is not None:
            added.append((recs[a].residual_BND - recs[b].residual_BND).to(weighted))
        added = [r for r in added if r.shape == y.shape]
        errors.append(min(relative_error(y - r, expected) for r in (torch.zeros_like(y), *added)))
    return max(errors)


def _qk_error(layer: AttentionLayer, recs: list[Record], tolerance: float) -> tuple[float | None, float, bool]:
    """(relative error, scale in units of 1/sqrt(head_dim), whether queries and keys are rotated by position)."""
    first = recs[0]
    seen = first.logits_BHNM if first.logits_BHNM is not None else first.q_BHNK
    arranged = None if seen is None else arrange(seen, layer.num_heads, first.x_BND.shape, first.heads_first)
    if arranged is None:
        return None, math.nan, False
    tries = [_qk_error_arranged(layer, recs, tolerance, way) for way in arranged[1]]
    return min(tries, key=lambda t: math.inf if t[0] is None else t[0])


def _qk_error_arranged(layer: AttentionLayer, recs: list[Record], tolerance: float, way: Callable):
    H, products = layer.num_heads, torch.stack([layer.qk(h) for h in range(layer.num_heads)])
    cross = layer.kind == "cross"
    x = [way(r.x_BND.to(products)) for r in recs]
    kv = [r.kv_BMD.to(products) for r in recs] if cross else x
    B, N = recs[0].x_BND.shape[:2]
    places = way(torch.arange(N, device=products.device).expand(B, N)[..., None])

    def heads(tensors):
        found = [
            None if t is None
            else arrange(t, H, (r.x_BND if t.shape[-2] == x[0].shape[1] else r.kv_BMD).shape, r.heads_first)
            for t, r in zip(tensors, recs)
        ]  # fmt: skip
        return None if any(f is None for f in found) else [f[0].to(products) for f in found]

    logits, q, k = (heads([getattr(r, a) for r in recs]) for a in ("logits_BHNM", "q_BHNK", "k_BHMK"))
    results = {}
    if logits:
        measured = logits[0] - logits[1] - logits[2] + logits[3]
        dq, dk = (x[0] - x[1], kv[0] - kv[2]) if cross else (x[0] - x[3], x[0] - x[3])
        if dq.shape[0] == measured.shape[0] and dk.shape[:1] == dq.shape[:1]:
            expected = torch.einsum("bnd,hde,bme->bhnm", dq, products, dk)
            measured = measured[..., : expected.shape[-1]]  # without attention sinks
            # masked pairs: a constant in place of the logit (GPT-1), or a large negative number added (Swin: -100)
            level = [t[..., : expected.shape[-1]] for t in logits[:4]]
            constant = (level[0] == level[1]) & (level[0] == level[2]) & (level[0] == level[3])
            use = measured.isfinite() & (level[0] > -50) & ~constant
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
    error, ratio = _fit(double(diagonal[0] - diagonal[3]), double(dots[0] - dots[3]))
    return ratio if error < 1e-2 else math.nan


def _fit(measured: Tensor, expected: Tensor) -> tuple[float, float]:
    """(relative error, s) of the best single factor s: measured = s * expected."""
    norm = (expected * expected).sum()
    if not norm > 0:
        return math.inf, math.nan
    s = ((measured * expected).sum() / norm).item()
    return (relative_error(measured, s * expected) if s else math.inf), s


_BIAS = re.compile(r"(.*\.)?((in_|out_)?proj_|qkv?_|kv?_|v_)?bias")


def _with_biases(check: Check, layer: AttentionLayer, module: nn.Module, parameters: Parameters) -> Check:
    """The check, with the problem of a bias beside one of the layer's weights that is not, or not all, in its biases:
    it would be left as it is where biases are zeroed."""
    biases = [view for view in VIEWS if view.endswith("_bias")]
    read = Counter()
    for view in views(layer, biases):
        read.update({id(p): view.numel() for _, _, p in held(view, parameters)})
    owners = {owner for view in views(layer, set(VIEWS).difference(biases)) for _, owner, _ in held(view, parameters)}
    forgotten = (
        name
        for entries in parameters.values()
        for name, owner, p in entries
        if (owner in owners or owner is module) and _BIAS.fullmatch(name) and read[id(p)] < p.numel()
    )
    if check.ok and (name := next(forgotten, None)):
        return replace(check, problem=f"wrong: {name} is not all in the layer's biases")
    return check
