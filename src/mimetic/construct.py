"""The paper's page as code: a semi-diagonal target and its balanced factors. Knows only torch.

    A = alpha * Z + beta * I,   Z_ij ~ N(0, 1/d)
    A = U S V^T  ->  left = U sqrt(S),  right = sqrt(S) V^T

Source: Trockman & Kolter 2023, "Mimetic Initialization of Self-Attention Layers" (arXiv 2305.09828), method section.
"""

from __future__ import annotations

import math
import operator

import torch
from torch import Tensor

from mimetic.messages import check_choice

NOISES = ("normal", "uniform")


def semi_diagonal(
    d: int,
    alpha: float,
    beta: float,
    *,
    generator: torch.Generator | None = None,
    noise: str = "normal",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """alpha * Z + beta * I, shape (d, d), with Z's entries of mean 0 and variance 1/d.

    The numbers are drawn on the generator's device (the CPU when there is none), so that one seed gives one matrix
    wherever the model lives.

    Args:
        d: width of the model.
        alpha: size of the noise; only its absolute value matters in distribution.
        beta: size and sign of the identity.
        generator: source of randomness; None takes torch's global one.
        noise: "normal" is N(0, 1/d), "uniform" is U(-sqrt(3/d), sqrt(3/d)): the same variance.
        dtype: float32 or float64.

    Raises:
        ValueError: d is not a positive integer, alpha or beta is not finite (in dtype), or noise or dtype is not one of
            the choices.
        TypeError: generator is a seed, say.
    """
    if (size := _integer(d)) < 1:
        raise ValueError(f"d must be a positive integer, got {d!r}")
    d = size
    check_choice("noise", noise, NOISES)
    if not (math.isfinite(alpha) and math.isfinite(beta)):
        raise ValueError(f"alpha and beta must be finite, got {alpha!r} and {beta!r}")
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"dtype must be torch.float32 or torch.float64, got {dtype!r}; cast the factors afterwards")
    if max(abs(alpha), abs(beta)) > torch.finfo(dtype).max:
        raise ValueError(f"alpha and beta must be finite in {dtype}, got {alpha!r} and {beta!r}")
    check_generator(generator)
    device = generator.device if generator is not None else "cpu"
    A = torch.empty(d, d, dtype=dtype, device=device)
    if noise == "normal":
        A.normal_(0.0, 1.0, generator=generator).mul_(alpha / d**0.5)
    else:
        A.uniform_(-1.0, 1.0, generator=generator).mul_(alpha * (3 / d) ** 0.5)
    A.diagonal().add_(beta)
    return A


def _integer(value: object) -> int:
    """An integer, NumPy's too, as Python's; 0 for what is none."""
    try:
        return 0 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return 0


def check_generator(generator: torch.Generator | None) -> None:
    """TypeError for anything but a torch.Generator or None; a seed 0 would pass for none."""
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(
            f"generator must be a torch.Generator or None, got {generator!r}; torch.Generator().manual_seed(seed) makes"
            " one of a seed"
        )


def factor(A: Tensor) -> tuple[Tensor, Tensor]:
    """left (d, d) and right (d, d) with A = left @ right and the singular values split evenly between them.

    left = U sqrt(S) and right = sqrt(S) V^T for A = U S V^T, singular values in descending order, so
    left.T @ left = right @ right.T = S. Works in at least float32.

    Raises:
        ValueError: A is not a finite square floating-point matrix.
        TypeError: A is no torch.Tensor.
    """
    return factor_top_k(A, A.shape[-1] if isinstance(A, Tensor) and A.ndim else 0)


def factor_top_k(A: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """left (d, k) and right (k, d): left @ right is the best rank-k approximation of A (Eckart-Young).

    Truncation is what makes W_Q W_K^T fit a head: a (d, d) product of (d, head_dim) factors has rank head_dim. It
    shrinks the diagonal: beta = 0.7 leaves about 0.39 at k = d/3.

    Raises:
        ValueError: A is not a finite square floating-point matrix, or k is not between 1 and d.
        TypeError: A is no torch.Tensor.
    """
    if not isinstance(A, Tensor):
        raise TypeError(f"A must be a torch.Tensor, got {type(A).__name__}")
    if A.ndim != 2 or A.shape[0] != A.shape[1] or not A.numel():
        raise ValueError(f"A must be a square matrix, got shape {tuple(A.shape)}")
    if A.layout is not torch.strided or A.is_meta:
        raise ValueError(f"A must be a plain matrix in memory, got {'a meta tensor' if A.is_meta else A.layout}")
    if not A.is_floating_point():
        raise ValueError(f"A must be floating point, got {A.dtype}")
    d = A.shape[0]
    if not 1 <= (size := _integer(k)) <= d:
        raise ValueError(f"k must be an integer between 1 and {d}, got {k!r}")
    k = size
    if A.dtype not in (torch.float32, torch.float64):
        A = A.float()
    if not torch.isfinite(A).all():
        raise ValueError("A has entries that are not finite")
    # The square of a very small or large matrix would leave the range of its numbers; a power of 4 has an exact square
    # root.
    exponent = math.frexp(A.abs().max().item())[1] // 2
    scale = 2.0**exponent if abs(exponent) > 16 else 1.0
    A = A / scale / scale
    with torch.autocast(A.device.type, enabled=False):
        V = _top_right_vectors(A, k)
        # A V = U S: the product (A V) V^T is the projection of A on its top right singular vectors however small the
        # singular values are, and the column norms of A V are those values, more exactly than the eigenvalues' roots.
        AV = A @ V
        root = torch.linalg.vector_norm(AV, dim=0).sqrt()
        left = AV / root.clamp_min(torch.finfo(A.dtype).tiny)
    return left * scale, root[:, None] * V.mT * scale


def _top_right_vectors(A: Tensor, k: int) -> Tensor:
    """The top-k right singular vectors of A (d, d), as columns (d, k), largest first.

    They are the top eigenvectors of A^T A. Float64 keeps the squared matrix's small gaps apart: two neighbouring
    singular values at the cut differ by about 1e-3 relative, far above 1e-15 and not far enough above 1e-7.
    """
    G = double(A)
    _, V = torch.linalg.eigh(G.mT @ G)
    return V[:, -k:].flip(-1).to(A.device, A.dtype)


def double(t: Tensor) -> Tensor:
    """In float64, on the CPU where the device has none (Apple's MPS)."""
    return t.cpu().double() if t.device.type == "mps" else t.double()
