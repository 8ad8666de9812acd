"""alpha Z + beta I and its factors: statistics of the noise, exactness of the factors, what truncation leaves."""

import numpy as np
import pytest
import torch

from mimetic import factor, factor_top_k, lapack, semi_diagonal

OFF_DIAGONAL = ~torch.eye(192, dtype=torch.bool)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def relative(P, reference):
    return ((P.double() - reference.double()).norm() / reference.double().norm()).item()


def best_rank_k(A, k):
    """By NumPy's full SVD in float64: another library, another algorithm."""
    U, S, Vt = np.linalg.svd(A.double().numpy())
    return torch.from_numpy((U[:, :k] * S[:k]) @ Vt[:k])


@pytest.mark.parametrize("noise", ["normal", "uniform"])
def test_noise_has_mean_zero_and_variance_one_over_d(noise):
    g = seeded()
    Z = torch.stack([semi_diagonal(192, 1.0, 0.0, generator=g, noise=noise) for _ in range(30)])
    # 1.1 million entries: the variance is known to about 0.15 % (normal) and 0.1 % (uniform)
    assert Z.var().item() * 192 == pytest.approx(1.0, abs=0.01)
    assert abs(Z.mean().item()) < 3 * 192**-0.5 / Z.numel() ** 0.5
    assert Z.diagonal(dim1=1, dim2=2).var().item() * 192 == pytest.approx(1.0, abs=0.08)
    if noise == "uniform":
        assert Z.abs().max().item() <= (3 / 192) ** 0.5
    else:
        assert (Z.abs() > (3 / 192) ** 0.5).float().mean().item() == pytest.approx(0.0833, abs=0.003)


def test_alpha_scales_the_noise_and_beta_is_the_diagonal():
    Z = semi_diagonal(64, 1.0, 0.0, generator=seeded())
    A = semi_diagonal(64, 0.4, -0.3, generator=seeded())
    torch.testing.assert_close(A, 0.4 * Z - 0.3 * torch.eye(64))


def test_statistics_of_the_paper_constants():
    """d = 192: the numbers that any implementation of the published constants should show."""
    g = seeded()
    qk = torch.stack([semi_diagonal(192, 0.7, 0.7, generator=g) for _ in range(10)])
    truncated = torch.stack([left @ right for left, right in (factor_top_k(A, 64) for A in qk)])
    vp = torch.stack(
        [left @ right for left, right in (factor(semi_diagonal(192, 0.4, -0.4, generator=g)) for _ in range(10))]
    )
    diagonal = lambda P: P.diagonal(dim1=1, dim2=2)  # noqa: E731
    assert diagonal(qk).mean().item() == pytest.approx(0.70, abs=0.01)
    assert diagonal(truncated).mean().item() == pytest.approx(0.39, abs=0.01)
    assert diagonal(truncated).std().item() == pytest.approx(0.067, abs=0.005)
    assert truncated[:, OFF_DIAGONAL].std().item() == pytest.approx(0.052, abs=0.002)
    assert diagonal(vp).mean().item() == pytest.approx(-0.40, abs=0.01)
    assert diagonal(vp).std().item() == pytest.approx(0.029, abs=0.004)
    assert vp[:, OFF_DIAGONAL].std().item() == pytest.approx(0.029, abs=0.001)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_factor_is_exact_and_balanced(dtype):
    A = semi_diagonal(48, 0.4, -0.4, generator=seeded(), dtype=dtype)
    left, right = factor(A)
    tolerance = 2e-6 if dtype == torch.float32 else 1e-12
    assert relative(left @ right, A) < tolerance
    S = torch.linalg.svdvals(A)
    torch.testing.assert_close(left.mT @ left, torch.diag(S), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(right @ right.mT, torch.diag(S), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("k", [1, 7, 47, 48])
def test_factor_top_k_is_the_best_rank_k_approximation(k):
    A = semi_diagonal(48, 0.7, 0.7, generator=seeded())
    left, right = factor_top_k(A, k)
    assert left.shape == (48, k) and right.shape == (k, 48)
    assert relative(left @ right, best_rank_k(A, k)) < 2e-6


def test_factor_of_singular_and_graded_matrices():
    g = seeded()
    low = torch.randn(32, 5, generator=g) @ torch.randn(5, 32, generator=g)
    left, right = factor(low)
    assert relative(left @ right, low) < 2e-6 and torch.isfinite(left).all()
    graded = torch.diag(torch.logspace(0, -6, 32)) @ torch.linalg.qr(torch.randn(32, 32, generator=g))[0]
    left, right = factor_top_k(graded, 16)
    assert ((left @ right).double() - best_rank_k(graded, 16)).abs().max() < 1e-6
    zero_left, zero_right = factor(torch.zeros(4, 4))
    assert not zero_left.any() and not zero_right.any()


def test_half_precision_is_factored_in_float32():
    A = semi_diagonal(32, 0.4, -0.4, generator=seeded()).bfloat16()
    left, right = factor(A)
    assert left.dtype == torch.float32 and relative(left @ right, A) < 2e-6


@pytest.mark.parametrize("call", [factor, lambda A: factor_top_k(A, 16)])
def test_factors_are_full_precision_under_autocast(call):
    A = semi_diagonal(32, 0.4, -0.4, generator=seeded())
    outside = call(A)
    with torch.autocast("cpu", torch.bfloat16):
        inside = call(A)
    assert all(a.dtype == torch.float32 and torch.equal(a, b) for a, b in zip(inside, outside))


SIZES = [
    (torch.float64, 1e-200),
    (torch.float64, 1e200),
    (torch.float32, 1e-30),
    (torch.float32, 1e30),
    (torch.float32, 1e-12),
]


@pytest.mark.parametrize("dtype, size", SIZES)
def test_very_small_and_very_large_matrices(dtype, size):
    """Their squares leave the range of the numbers."""
    A = semi_diagonal(24, 0.7, 0.7, generator=seeded(), dtype=dtype)
    for k in (8, 24):
        left, right = factor_top_k(A * size, k)
        scaled = (left * size**-0.5) @ (right * size**-0.5)
        assert relative(scaled, best_rank_k(A, k)) < (2e-6 if dtype == torch.float32 else 1e-12)


def test_one_seed_one_matrix():
    torch.testing.assert_close(
        semi_diagonal(16, 0.7, 0.7, generator=seeded(3)),
        semi_diagonal(16, 0.7, 0.7, generator=seeded(3)),
        rtol=0,
        atol=0,
    )
    assert not torch.equal(
        semi_diagonal(16, 0.7, 0.7, generator=seeded(3)), semi_diagonal(16, 0.7, 0.7, generator=seeded(4))
    )


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: semi_diagonal(8, 1, 1, noise="gauss"), "normal, uniform"),
        (lambda: semi_diagonal(0, 1, 1), "positive integer"),
        (lambda: semi_diagonal(8.0, 1, 1), "positive integer"),
        (lambda: semi_diagonal(3, float("nan"), 0.5), "alpha and beta must be finite, got nan and 0.5"),
        (lambda: semi_diagonal(3, 0.5, float("inf")), "alpha and beta must be finite"),
        (lambda: factor(torch.zeros(3, 4)), "square"),
        (lambda: factor(torch.zeros(3)), "square"),
        (lambda: factor(torch.zeros(3, 3, dtype=torch.int64)), "floating point"),
        (lambda: factor(torch.full((3, 3), torch.nan)), "not finite"),
        (lambda: factor_top_k(torch.eye(3), 4), "between 1 and 3"),
        (lambda: factor_top_k(torch.eye(3), 0), "between 1 and 3"),
        (lambda: factor_top_k(torch.eye(3), 1.0), "between 1 and 3"),
    ],
)
def test_bad_input_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_a_size_that_the_dtype_cannot_hold_is_refused():
    with pytest.raises(ValueError, match="must be finite in torch.float32, got 1e"):
        semi_diagonal(2, 1e39, 0.0)
    assert semi_diagonal(2, 1e39, 0.0, dtype=torch.float64).isfinite().all()


@pytest.mark.parametrize("generator", [0, 42])
def test_a_seed_is_no_generator(generator):
    with pytest.raises(TypeError, match=f"generator must be a torch.Generator or None, got {generator}; "):
        semi_diagonal(3, 0.7, 0.7, generator=generator)


# --- the fast path of mimetic_init_ ---


@pytest.mark.parametrize("d, k", [(256, 32), (200, 50), (96, 32), (64, 60), (128, 128)])
@pytest.mark.parametrize("constants", [(0.7, 0.7), (0.4, -0.4), (0.7, 0.0), (0.001, 0.7)])
def test_fast_factors_equal_the_best_approximation(d, k, constants):
    A = semi_diagonal(d, *constants, generator=seeded())
    left, right = lapack.factor_shared(A[None], k)
    product = (left[0] @ right).double()
    if constants[0] > 0.1:
        assert relative(product, best_rank_k(A, k)) < 5e-6
    # nearly equal singular values leave the best subspace open; the error it leaves is not
    assert (product - A).norm() - (best_rank_k(A, k) - A).norm() < 1e-4
    # in float32 the left vectors of singular values below 1e-3 of the largest are not quite orthogonal
    torch.testing.assert_close(left[0].mT @ left[0], right @ right.mT, atol=1e-4, rtol=1e-4)


def test_fast_path_falls_back_without_lapack(monkeypatch):
    A = semi_diagonal(128, 0.7, 0.7, generator=seeded())[None]
    fast = lapack.factor_shared(A, 16)
    monkeypatch.setattr(lapack, "_ssyevr", lambda: None)
    slow = lapack.factor_shared(A, 16)
    assert relative(fast[0][0] @ fast[1], slow[0][0] @ slow[1]) < 5e-6


def test_shared_factor_beats_every_other_shared_subspace():
    """The stacked SVD is optimal (Eckart-Young on the stack); perturbed subspaces do worse."""
    g = seeded()
    stack = torch.stack([semi_diagonal(96, 0.7, 0.7, generator=g) for _ in range(3)])
    lefts, right = lapack.factor_shared(stack, 16)
    best = (stack - lefts @ right).norm()
    basis = torch.linalg.qr(right.mT)[0]
    for _ in range(10):
        other = torch.linalg.qr(basis + 0.02 * torch.randn(basis.shape, generator=g))[0]
        assert (stack - stack @ other @ other.mT).norm() > best


def test_numbers_do_not_depend_on_the_number_of_threads():
    jobs = [(semi_diagonal(96, 0.7, 0.7, generator=seeded(i))[None], 16) for i in range(6)]
    one, three = list(lapack.factor_all(jobs, threads=1)), list(lapack.factor_all(jobs, threads=3))
    for (l1, r1), (l3, r3) in zip(one, three):
        assert torch.equal(l1, l3) and torch.equal(r1, r3)


def test_numpys_integers_are_integers_and_its_arrays_no_tensors():
    A = semi_diagonal(np.int64(6), 0.7, 0.7, generator=seeded())
    assert all(torch.equal(a, b) for a, b in zip(factor_top_k(A, np.int64(2)), factor_top_k(A, 2)))
    for call in (factor, lambda matrix: factor_top_k(matrix, 2)):
        with pytest.raises(TypeError, match="A must be a torch.Tensor, got ndarray"):
            call(np.eye(3))


@pytest.mark.parametrize(
    ("A", "words"),
    [
        (torch.empty(4, 4, device="meta"), "got a meta tensor"),
        (torch.eye(3).to_sparse(), "got torch.sparse_coo"),
        (torch.empty(0, 0), r"got shape \(0, 0\)"),
    ],
)
def test_what_is_no_matrix_in_memory_is_refused(A, words):
    with pytest.raises(ValueError, match=words):
        factor(A)


@pytest.mark.parametrize("dtype", [torch.int32, torch.float16])
def test_targets_are_drawn_in_single_or_double_precision(dtype):
    with pytest.raises(ValueError, match="dtype must be torch.float32 or torch.float64"):
        semi_diagonal(4, 0.7, 0.7, dtype=dtype)
