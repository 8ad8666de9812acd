"""The gains that fold=True multiplies in, through the forward of the block around an attention layer.

The block gets random tokens z and everything in it but this attention is silenced. A pre-norm block then gives
z + attention(normalise(z)), a post-norm block a norm of z + attention(z).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mimetic.attention import AttentionLayer
from mimetic.scan import ancestors
from mimetic.verify.session import Session
from mimetic.verify.tokens import (
    QUERY_NAMES,
    find_tokens,
    first_tensor,
    generator_for,
    relative_error,
    swap_tokens,
    tokens_of,
)

# rounding of the residual stream, in units of what attention adds to it, up to which a folded product can be told from
# another
SEEN = 1e-4
# what may normalise the tokens in front: LayerNorm, RMSNorm, timm's SimpleNorm (the mean is in the variance and stays
# in the tokens), nothing
NORMS: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda z: F.layer_norm(z, z.shape[-1:]),
    lambda z: z * z.pow(2).mean(-1, keepdim=True).rsqrt(),
    lambda z: z * z.var(-1, keepdim=True).rsqrt(),
    lambda z: z,
)


def fold_errors(session: Session, run: Callable) -> dict[int, float]:
    """Layer index -> relative error of the folded V.proj, through the block around the layer: the nearest ancestor that
    has the residual connection. Layers whose block cannot be isolated, or adds too little to be seen, are absent.
    """
    errors: dict[int, float] = {}
    session.take_out_pre_norms = False
    known = [i for i, layer in enumerate(session.layers) if layer.gains_known and layer.kind == "self"]
    for depth in range(3):
        blocks = {}
        for i in known:
            around = ancestors(session.modules, session.names[i])[depth : depth + 1]
            if i not in errors and around and not isinstance(around[0][1], (nn.ModuleList, nn.Sequential)):
                blocks[i] = around[0][1]
        while blocks:  # one layer of a block at a time: its others are silenced
            first = {block: i for i, block in reversed(blocks.items())}
            group = {i: block for block, i in first.items()}
            try:
                silent, one, two = (_block_run(session, run, group, r, silent=r == 0) for r in range(3))
            except (RuntimeError, ValueError, TypeError, IndexError):  # this ancestor cannot be called on other tokens
                break
            isolated = {i for i in group if all(i in r and r[i][0].shape == r[i][1].shape for r in (silent, one, two))}
            for i in isolated:
                error = _fold_error(session.layers[i], session.c_H[i], silent[i], one[i], two[i])
                if error is not None:
                    errors[i] = error
            # what cannot be isolated for one of its layers cannot for another
            blocks = {i: block for i, block in blocks.items() if i not in group and first[block] in isolated}
    return errors


def _block_run(session: Session, run: Callable, blocks: dict[int, nn.Module], r: int, silent: bool):
    """{layer: (z, block output, attention input)}, each (B, N, D), of one run with tokens z into the blocks."""
    seen: dict[int, list] = {}
    handles = []

    def keep(i, module, args, kwargs):
        x = find_tokens(module, args, kwargs, QUERY_NAMES, session.layers[i].d_model)
        if i in seen and len(seen[i]) == 1 and x is not None:
            seen[i].append(tokens_of(x, module, session.layers[i].d_model))
        return None

    for i, block in blocks.items():

        def enter(module, args, kwargs, i=i):
            x = find_tokens(module, args, kwargs, QUERY_NAMES, session.layers[i].d_model)
            if x is None or i in seen:
                return None
            z = torch.randn(x.shape, generator=generator_for(session.seed, i, 100 + r)).to(x)
            seen[i] = [tokens_of(z, module, session.layers[i].d_model)]
            return swap_tokens(module, args, kwargs, x, z, None, None)

        def leave(module, args, output, i=i):
            out = first_tensor(output)
            if i in seen and len(seen[i]) == 2 and out is not None:
                seen[i].append(tokens_of(out, module, session.layers[i].d_model))

        handles.append(block.register_forward_pre_hook(enter, with_kwargs=True))
        inside = set(session.attention[i].modules()) | set(session.outputs[i].modules())
        # proj, so that a residual connection inside the attention class stays; nn.MultiheadAttention never calls its
        # own
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
        expected = [(norm(z1) - norm(z2)).to(measured) @ expected_map for norm in NORMS]
        # of z + attention(z): behind a LayerScale of 1e-5 little else is left of the second
        rounding = torch.finfo(out.dtype).eps * out1.abs().max()
        if rounding > SEEN * expected[0].abs().max():
            return None
        return min(relative_error(measured, e) for e in expected)
    if x.shape == z.shape and torch.equal(x, z) and layer.in_gain is None and layer.out_gain is None:
        # the tokens pass by the silent attention: the residual connection is in here
        if (out - out[:, :1]).abs().max() > 1e-3:
            return 0.0  # norm(z + attention(z)): the layer reads the residual stream itself, nothing to fold
    return None
