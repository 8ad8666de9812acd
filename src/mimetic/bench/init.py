"""How long the initializer takes, against the plain way and against the matrix products that it is built on."""

from __future__ import annotations

import time

import numpy as np
import torch

from mimetic.construct import semi_diagonal
from mimetic.initialize import mimetic_init_
from mimetic.models.blocks import Block
from mimetic.scan import attention_layers
from mimetic.spec import VISION


def bench_init(
    d_model: int = 768, depth: int = 12, num_heads: int = 12, seed: int = 0, repeats: int = 1, plain_layers: int = 0
) -> dict[str, float]:
    """Time mimetic_init_ on the attention of a ViT (default ViT-B/16) and the plain way on the same random numbers.

    The plain way is public code's: for each head and each layer one full NumPy double-precision SVD of the target. Both
    are timed from the drawing of Z to weights in the model, in this process, one after the other; the products of every
    head and layer are then compared. The floor is the time of drawing Z and of the two products the method is built on:
    A^T A and A V.

    Args:
        d_model, depth, num_heads: size of the model.
        seed: of the generator that both ways start from.
        repeats: how often ours is timed; the median counts.
        plain_layers: time the plain way on the first few layers only and scale up (0: all).

    Returns:
        seconds "ours", "plain", "floor", "ratio" plain / ours, "difference": the largest over all products of
        ||ours - plain||_F / ||plain||_F, which is also printed.

    Raises:
        ValueError: a size below 1, num_heads does not divide d_model, or plain_layers is not between 0 and depth.
    """
    for name, value in {"d_model": d_model, "depth": depth, "num_heads": num_heads, "repeats": repeats}.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    if not 0 <= plain_layers <= depth:
        raise ValueError(f"plain_layers must be between 0 and depth={depth}, got {plain_layers}")
    model = torch.nn.Sequential(*(Block(d_model, num_heads) for _ in range(depth)))
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        mimetic_init_(model, generator=torch.Generator().manual_seed(seed))
        seconds.append(time.perf_counter() - start)
    ours = float(np.median(seconds))
    layers = attention_layers(model)
    plain, difference = _plain(layers[: plain_layers or depth], torch.Generator().manual_seed(seed))
    plain *= depth / (plain_layers or depth)
    floor = _floor(d_model, num_heads, depth, seed)
    threads = torch.get_num_threads()
    print(f"model       {depth} layers, {num_heads} heads, d {d_model}; {threads} thread{'s' * (threads > 1)}")
    print(f"mimetic     {ours:7.2f} s" + (f"  (median of {repeats})" if repeats > 1 else ""))
    print(
        f"plain       {plain:7.2f} s  full float64 NumPy SVD per head"
        + (f", {plain_layers} layers scaled up" if plain_layers else "")
    )
    print(f"floor       {floor:7.2f} s  drawing Z, A^T A and A V in float32, done plainly")
    print(f"ratio       {plain / ours:7.1f} times the speed of plain, {ours / floor:.1f} times the time of the floor")
    print(f"difference  {difference:.1e}  largest relative difference of a product (Frobenius)")
    return {"ours": ours, "plain": plain, "floor": floor, "ratio": plain / ours, "difference": difference}


def _plain(layers, generator) -> tuple[float, float]:
    """(seconds, largest relative difference of the products in the model from the plain way's)."""
    seconds, worst = 0.0, 0.0
    for layer in layers:
        products = []
        for part, count in (("qk", layer.num_heads), ("vp", 1)):
            for h in range(count):
                alpha, beta = (getattr(VISION, f"{part}_{name}") for name in ("alpha", "beta"))
                start = time.perf_counter()
                A = semi_diagonal(layer.d_model, alpha, beta, generator=generator)
                U, S, Vt = np.linalg.svd(A.double().numpy())
                k = layer.head_dim if part == "qk" else layer.d_model
                left, right = U[:, :k] * np.sqrt(S[:k]), np.sqrt(S[:k])[:, None] * Vt[:k]
                left, right = left.astype(np.float32), right.astype(np.float32)
                seconds += time.perf_counter() - start
                product = layer.qk(h) if part == "qk" else layer.vp()
                products.append((left @ right, product.numpy()))
        for reference, product in products:
            worst = max(worst, float(np.linalg.norm(product - reference) / np.linalg.norm(reference)))
    return seconds, worst


def _floor(d: int, heads: int, depth: int, seed: int) -> float:
    """Seconds for depth layers, from the median of fifteen: every target drawn, its
    Gram matrix, its product with its vectors.
    """
    generator, seconds = torch.Generator().manual_seed(seed), []
    for _ in range(15):
        start = time.perf_counter()
        for k in [d // heads] * heads + [d]:
            A = semi_diagonal(d, 0.7, 0.7, generator=generator)
            G = A.mT @ A
            A @ G[:, :k]
        seconds.append(time.perf_counter() - start)
    return depth * float(np.median(seconds))
