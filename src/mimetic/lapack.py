"""Only the eigenvectors that are needed, on all cores: LAPACK's partial symmetric eigensolver called without the GIL.

Truncating d = 768 to 64 directions needs 64 eigenvectors of A^T A, not an SVD with all 768. torch offers no partial
eigensolver, and SciPy's holds Python's global lock while it runs, so the heads of a model would queue for one core.
SciPy publishes the same LAPACK routine as a C function (scipy.linalg.cython_lapack, meant for such callers); ctypes
releases the lock around it. Where SciPy or threadpoolctl is missing (a bare GPU machine), NumPy's full solver does it,
slower.
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import cache

import numpy as np
import torch
from torch import Tensor

try:
    import scipy.linalg
    from scipy.linalg import blas, cython_lapack
    from threadpoolctl import threadpool_limits
except ImportError:
    scipy = None

# A float32 solve mixes a wanted vector with an unwanted one by about 1e-7 over the relative gap of their eigenvalues.
# Solving for a quarter more than is wanted, and separating those in float64, moves the mixing out to where the gap is
# wide.
GUARD = 0.25


def factor_all(jobs: Iterable[tuple[Tensor, int]], threads: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """factor_shared(stack, k) for each job (stack, k), in order, the jobs side by side on the cores.

    Each job is worked on by one thread, so the numbers do not depend on how many there are.

    Args:
        jobs: (float32 CPU tensor (g, d, d), rank); drawn as it goes, at most 2 per thread held in memory.
        threads: default torch.get_num_threads().
    """
    threads = threads or torch.get_num_threads()
    pending: deque = deque()
    one_thread = threadpool_limits(1, user_api="blas") if scipy else nullcontext()
    with one_thread, _torch_on_one_thread(), ThreadPoolExecutor(threads) as pool:
        for stack, k in jobs:
            pending.append(pool.submit(factor_shared, stack, k))
            if len(pending) >= 2 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


@contextmanager
def _torch_on_one_thread() -> Iterator[None]:
    """torch's helper threads spin for a while after each operation, on the cores
    that the solver needs (a third of its time).
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def factor_shared(stack: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """lefts (g, d, k) and one right (k, d) such that lefts[h] @ right approximates stack[h] (d, d) best in total.

    The shared row space is spanned by the top right singular vectors V of the stacked matrix [A_1; ...; A_g]; each head
    then keeps A_h V V^T. For one matrix (g = 1) this is the truncated SVD with the singular values split evenly.
    """
    d = stack.shape[-1]
    m = k + max(8, int(GUARD * k))
    A = stack.numpy()
    if not scipy:
        rows = A.reshape(-1, d).astype(np.float64)
        V = np.linalg.eigh(rows.T @ rows)[1][:, -k:]
        AV = A.astype(np.float64) @ V
    elif k == d:
        # any orthogonal V gives A V V^T = A, so float32 vectors are as good as float32 factors can be
        V = scipy.linalg.eigh(_gram(A), lower=False, check_finite=False, overwrite_a=True, driver="evd")[1]
        AV = A @ V
    elif m > d // 2 or _ssyevr() is None:  # most vectors wanted, or no such entry point: the full solver is as good
        rows = A.reshape(-1, d).astype(np.float64)
        V = scipy.linalg.eigh(rows.T @ rows, check_finite=False)[1][:, -k:]
        AV = A.astype(np.float64) @ V
    else:
        V = top_eigenvectors(_gram(A), m).astype(np.float64)
        # Rayleigh-Ritz in float64 within the m-dimensional space: orthonormal basis, then the m x m eigenproblem
        V = scipy.linalg.solve_triangular(np.linalg.cholesky(V.T @ V), V.T, lower=True, check_finite=False).T
        AV = A.astype(np.float64) @ V
        flat = AV.reshape(-1, m)
        W = scipy.linalg.eigh(flat.T @ flat, subset_by_index=[m - k, m - 1], check_finite=False)[1]
        V, AV = V @ W, AV @ W
    V, AV = V[:, ::-1], AV[..., ::-1]
    # sqrt of the singular values, averaged over heads
    root = np.sqrt(np.sqrt(np.mean(np.sum(AV * AV, axis=1), axis=0)))
    left = AV / np.maximum(root, np.finfo(np.float32).tiny)
    return torch.from_numpy(left.astype(np.float32)), torch.from_numpy((V * root).T.astype(np.float32, order="C"))


def _gram(A: np.ndarray) -> np.ndarray:
    """Upper triangle (Fortran order) of sum_h A_h^T A_h, float32 (d, d)."""
    rows = A.reshape(-1, A.shape[-1])
    return blas.ssyrk(1.0, rows.T, lower=0)


def top_eigenvectors(G: np.ndarray, m: int) -> np.ndarray:
    """Eigenvectors (d, m) of the m largest eigenvalues (ascending) of a symmetric float32 G (d, d), Fortran order,
    upper triangle; G is overwritten. Raises np.linalg.LinAlgError if LAPACK reports a failure."""
    d = G.shape[0]
    G = np.asfortranarray(G, dtype=np.float32)
    w, z = np.empty(d, np.float32), np.empty((d, m), np.float32, order="F")
    support = np.empty(2 * m, np.int32)
    work, iwork = np.empty(1, np.float32), np.empty(1, np.int32)
    found, info = ctypes.c_int(), ctypes.c_int()

    def call(lwork: int, liwork: int) -> None:
        i, f = (lambda n: ctypes.byref(ctypes.c_int(n))), (lambda x: ctypes.byref(ctypes.c_float(x)))
        _ssyevr()(
            b"V", b"I", b"U", i(d), G.ctypes.data, i(d), f(0), f(0), i(d - m + 1), i(d), f(0), ctypes.byref(found),
            w.ctypes.data, z.ctypes.data, i(d), support.ctypes.data, work.ctypes.data, i(lwork), iwork.ctypes.data,
            i(liwork), ctypes.byref(info),
        )  # fmt: skip
        if info.value:
            raise np.linalg.LinAlgError(f"ssyevr failed with info={info.value}")

    call(-1, -1)  # asks for the best work size
    work, iwork = np.empty(int(work[0]), np.float32), np.empty(int(iwork[0]), np.int32)
    call(work.size, iwork.size)
    return z


@cache
def _ssyevr():
    """LAPACK's ssyevr as a ctypes function, or None where SciPy's build has another integer size."""
    capsule = cython_lapack.__pyx_capi__.get("ssyevr")
    name = ctypes.pythonapi.PyCapsule_GetName
    name.restype, name.argtypes = ctypes.c_char_p, [ctypes.py_object]
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    if capsule is None:
        return None
    signature = name(capsule)
    if b"long" in signature or b"int64" in signature:
        return None
    return ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 21)(pointer(capsule, signature))
