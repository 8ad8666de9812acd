"""Mimetic initialization of a model's attention layers, in place.

    W_Q W_K^T  ~ qk_alpha Z + qk_beta I   per head, a fresh Z each, truncated to rank head_dim
    W_V W_proj ~ vp_alpha Z + vp_beta I   per layer

Source: Trockman & Kolter 2023 (arXiv 2305.09828), method section; the constants are the commonest of public code.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mimetic import lapack
from mimetic.attention import AttentionLayer, MimeticWarning
from mimetic.construct import check_generator, semi_diagonal
from mimetic.messages import check_choice
from mimetic.plan import plan
from mimetic.spec import VISION, MimeticSpec

BIASES = ("zero", "keep")

# Heads that share their keys (grouped-query attention) share this part of their noise's variance; see _qk_targets.
SHARED_NOISE = 0.5
TIE_BREAK = 1e-3


@dataclass(frozen=True)
class WrittenLayer:
    """What ``mimetic_init_`` wrote into one layer; pandas.DataFrame(list of these) is a table."""

    name: str  #: of the module
    d_model: int  #: width of the tokens
    num_heads: int  #: query heads
    num_kv_heads: int  #: key and value heads
    head_dim: int  #: of queries and keys
    qk_target: tuple[float, float] | None  #: (alpha, beta), None where the product was left alone
    qk_diagonal: float | None  #: mean diagonal of W_Q W_K^T over heads, after truncation
    vp_target: tuple[float, float] | None  #: the same of W_V W_proj
    vp_diagonal: float | None  #: mean diagonal of W_V W_proj
    zeroed_biases: tuple[str, ...]  #: their names
    dtype: str  #: of the weights
    tied_to: str | None = None  #: an earlier layer with the same parameters, which were written once


@torch.no_grad()
def mimetic_init_(
    model: nn.Module,
    spec: MimeticSpec = VISION,
    *,
    qk: bool = True,
    vp: bool = True,
    biases: str = "zero",
    cross: bool = False,
    generator: torch.Generator | None = None,
) -> list[WrittenLayer]:
    """Write semi-diagonal products into every self-attention layer of a model, in place: W_Q W_K^T ~ alpha Z + beta I
    for every head, with a Z of its own and truncated to rank head_dim, and W_V W_proj ~ alpha Z + beta I for the layer
    (Trockman & Kolter 2023).

    Nothing but attention weights (and their biases) is touched. All checks come before the first write. The targets are
    drawn on the generator's device (CPU without one) and factorised on the CPU in float32 or better, then cast to the
    parameters' dtype and device: one seed gives the same products everywhere, and with the same LAPACK the same
    weights. Around DistributedDataParallel, all processes must call it; without a generator they take the first one's
    random numbers. Cost: heads * d^3 per layer.

    Grouped-query attention: the query heads of one key head cannot each have a product of their own. Their targets
    share half of their noise's variance, W_K takes the directions that serve the group best (the top right singular
    vectors of its stacked targets), and each W_Q the best fit given those: rank head_dim, the diagonal about a tenth
    below a head of its own. W_V W_proj is the best approximation of rank num_kv_heads * head_dim, its right factor
    split evenly among the query heads that share a value head. More head dimensions than d_model: the exact factors,
    spread by a random rotation so that no direction is dead.

    What training gains hangs on the position embedding: with sines and cosines, fixed or as the start of a learned
    embedding, small ViTs and GPTs gained; with learned positions that start small they did not, nor did GPTs with
    rotary ones (the book's chapters 7 and 10).

    A layer is found by its class, and what is not known by what its class or its parts are called and by whether its
    code calls an attention function or spells one out: what shows neither is not seen, so count what comes back.
    nn.MultiheadAttention does not know what it is called with: whether it is self- or cross-attention is read from the
    code of the block around it and, where that does not say, from names (self_attn, cross_attn, multihead_attn of a
    decoder, ...); what is called with different expressions and neither says which is taken for self-attention, with a
    warning. Copies in one module (an EMA teacher beside its student) are layers of their own, with noise of their own:
    copy after this call.

    Args:
        model: any module with supported attention layers (see the coverage table).
        spec: constants; per-layer sequences follow the order of attention_layers(model), self-attention only unless
            cross; layers that share their parameters must have the same values.
        qk: write W_Q and W_K.
        vp: write W_V and W_proj.
        biases: "zero" zeroes the biases of what is written, "keep" leaves them.
        cross: also write cross-attention layers (outside the paper's setting); they are left alone otherwise.
        generator: source of randomness; None takes torch's global one.

    Returns:
        One WrittenLayer for each layer, in order.

    Raises:
        UnsupportedAttention: a layer cannot be handled, or another module holds one of its weights or biases, too;
            names it and the reason. Nothing was written.
        ValueError, TypeError: bad biases, spec, generator or combination of arguments. Nothing was written.

    Warns:
        MimeticWarning: RoPE, QK-norm, a LayerScale near 0, hooks on projections and other things that change the
            effect; frozen layers; layers that were left alone.
    """
    check_choice("biases", biases, BIASES)
    for flag, value in (("qk", qk), ("vp", vp), ("cross", cross)):
        if not isinstance(value, bool):  # "no" would count as true
            raise TypeError(f"{flag} must be True or False; got {value!r}")
    if not (qk or vp):
        raise ValueError("nothing to write: qk and vp are both False")
    if not isinstance(spec, MimeticSpec):
        raise TypeError(f"spec must be a MimeticSpec, got {type(spec).__name__}")
    check_generator(generator)
    planned = plan(model, spec, qk=qk, vp=vp, cross=cross, biases=biases)
    layers, constants, tied = planned.layers, planned.constants, planned.tied
    for note in planned.notes:  # stacklevel: the caller of mimetic_init_, through no_grad's wrapper
        warnings.warn(note, MimeticWarning, stacklevel=3)
    if generator is None:
        generator = first_process_generator(model)
        processes = torch.distributed.get_world_size() if _distributed() else 1
        if generator is None and processes > 1:
            warnings.warn(
                f"no generator in one of {processes} processes: their weights are alike only if all were seeded alike;"
                " pass a generator with one seed in all, or the DistributedDataParallel around the model",
                MimeticWarning,
                stacklevel=3,
            )

    written = {}
    jobs = _jobs(layers, constants, spec.noise, qk, vp, generator)
    for (layer, part, g), lefts, right in _factor(jobs, generator):
        diagonals = written.setdefault(layer.name, {"qk": [], "vp": []})[part]
        diagonals.append(float((lefts * right.mT).sum(-1).mean()))
        if part == "qk":
            group = layer.num_heads // layer.num_kv_heads
            layer.q[:, g * group : (g + 1) * group].copy_(lefts.movedim(0, 1))
            layer.k[:, g].copy_(right.mT)
        else:
            _write_vp(layer, lefts[0], right)
    torch.clear_autocast_cache()  # else a forward pass under autocast goes on with copies of the old weights
    every = [*layers, *(layer for layer, _ in tied)]  # tied weights may have biases of their own
    zeroed = {layer.name: _zero_biases(layer, qk, vp) if biases == "zero" else () for layer in every}

    def report(layer, c, tied_to=None):
        # after _factor each diagonal is that of the float32 factors, before the cast to the layer's dtype
        means = {part: sum(v) / len(v) if v else None for part, v in written[tied_to or layer.name].items()}
        return WrittenLayer(
            layer.name, layer.d_model, layer.num_heads, layer.num_kv_heads, layer.head_dim,
            (c["qk_alpha"], c["qk_beta"]) if qk else None, means["qk"],
            (c["vp_alpha"], c["vp_beta"]) if vp else None, means["vp"],
            zeroed[layer.name], str(layer.q.dtype).removeprefix("torch."), tied_to,
        )  # fmt: skip

    by_name = {layer.name: c for layer, c in zip(layers, constants)}
    reports = {layer.name: report(layer, c) for layer, c in zip(layers, constants)}
    reports |= {layer.name: report(layer, by_name[other], other) for layer, other in tied}
    return [reports[name] for name in planned.names]


def first_process_generator(model: nn.Module) -> torch.Generator | None:
    """For a model whose replicas must stay equal (DistributedDataParallel and the like): a
    generator with one seed in all their processes.
    """
    if not _distributed():
        return None
    group = next((g for g in map(_replicated_in, model.modules()) if g is not None), None)
    if group is None or group.size() == 1:
        return None
    dist = torch.distributed
    seed = [int(torch.randint(2**62, ()))]
    dist.broadcast_object_list(
        seed, src=dist.get_global_rank(group, 0), group=group, device=next(model.parameters()).device
    )
    return torch.Generator().manual_seed(seed[0])


def _distributed() -> bool:
    """Whether this is one of several processes of torch.distributed."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _replicated_in(module: nn.Module) -> Any:
    """The process group whose processes all hold this module: of DistributedDataParallel, of FSDP's (NO_SHARD; what is
    sharded is refused elsewhere) and of composable replicate(); else None."""
    if isinstance(module, nn.parallel.DistributedDataParallel) or type(module).__name__ == "FullyShardedDataParallel":
        return module.process_group
    from torch.distributed._composable.contract import _get_registry

    if "replicate" not in (_get_registry(module) or ()):
        return None
    from torch.distributed._composable.replicate import replicate

    ddp = getattr(replicate.state(module), "_ddp", None)  # made at the first forward pass
    return torch.distributed.group.WORLD if ddp is None else ddp.process_group


def _jobs(layers, constants, noise, qk, vp, generator) -> Iterator[tuple[tuple, Tensor, int]]:
    """((layer, part, key head), targets (g, d, d), rank), each drawn when it is asked for."""
    for layer, c in zip(layers, constants):
        if qk:
            group = layer.num_heads // layer.num_kv_heads
            for g in range(layer.num_kv_heads):
                stack = _qk_targets(layer.d_model, group, c["qk_alpha"], c["qk_beta"], noise, generator)
                yield (layer, "qk", g), stack, layer.head_dim
        if vp:
            rank = layer.v.shape[1] * layer.v.shape[2]
            alpha = _drawn(c["vp_alpha"], c["vp_beta"]) if rank < layer.d_model else c["vp_alpha"]
            target = semi_diagonal(layer.d_model, alpha, c["vp_beta"], generator=generator, noise=noise)
            yield (layer, "vp", 0), target[None], rank


def _drawn(alpha: float, beta: float) -> float:
    """alpha for a target that is cut to a lower rank. A bare multiple of I has no directions of its own: a trace of
    noise draws them, else all heads and layers would keep the same ones."""
    return alpha or TIE_BREAK * abs(beta)


def _qk_targets(d, group, alpha, beta, noise, generator) -> Tensor:
    """Targets (group, d, d) of the query heads that share one key head, each distributed as alpha Z + beta I.

    With independent noise the shared directions keep only about 70 to 80 % of the diagonal that a head of its own would
    keep, with the same noise the heads are copies of each other. Half and half keeps 90 to 93 % and the heads apart
    (measured for groups of 3 to 8).
    """
    alpha = _drawn(alpha, beta)
    if group == 1:
        return semi_diagonal(d, alpha, beta, generator=generator, noise=noise)[None]
    common = semi_diagonal(d, alpha * SHARED_NOISE**0.5, beta, generator=generator, noise=noise)
    own = [
        semi_diagonal(d, alpha * (1 - SHARED_NOISE) ** 0.5, 0.0, generator=generator, noise=noise) for _ in range(group)
    ]
    return common + torch.stack(own)


def _factor(jobs, generator) -> Iterator[tuple[tuple, Tensor, Tensor]]:
    """(key, lefts (g, d, rank), right (rank, d)) for each job, ranks above d spread by a random rotation."""
    waiting = deque()

    def feed():
        for key, stack, rank in jobs:
            d, spread = stack.shape[-1], None
            if rank > d:  # drawn here, in the order of the jobs, not when a thread is done
                device = generator.device if generator is not None else "cpu"
                spread = torch.linalg.qr(
                    torch.randn(rank, d, generator=generator, device=device, dtype=torch.float32).cpu()
                )[0].mT
            waiting.append((key, spread))
            yield stack.cpu(), min(rank, d)

    for lefts, right in lapack.factor_all(feed()):
        key, spread = waiting.popleft()
        if spread is not None:
            # its rows are orthonormal: lefts @ spread @ spread.T @ right = lefts @ right, and no head dimension is dead
            with torch.autocast("cpu", enabled=False):
                lefts, right = lefts @ spread, spread.mT @ right
        yield key, lefts, right


def _write_vp(layer: AttentionLayer, left: Tensor, right: Tensor) -> None:
    """left (d, r) into W_V, right (r, d) into W_proj, r = num_kv_heads * head_dim."""
    _, heads, k = layer.v.shape
    group = layer.num_heads // heads
    layer.v.copy_(left.unflatten(1, (heads, k)))
    layer.proj.copy_(right.unflatten(0, (heads, k)).repeat_interleave(group, dim=0) / group)


def _zero_biases(layer: AttentionLayer, qk: bool, vp: bool) -> tuple[str, ...]:
    names = (("q_bias", "k_bias") if qk else ()) + (("v_bias", "proj_bias") if vp else ())
    present = tuple(n for n in names if getattr(layer, n) is not None)
    for n in present:
        getattr(layer, n).zero_()
    return present
