import numpy as np
import pandas as pd
import pytest
from scipy.stats import permutation_test, t, ttest_1samp

from mimetic.statistics import (
    compare,
    contrast,
    corrected,
    crossed_interval,
    difference,
    holm,
    mean_interval,
    paired_differences,
    sign_flip_test,
    smallest_p,
    steps_to_reach,
)

RUNS = pd.DataFrame(
    {
        "arm": ["timm", "mimetic", "timm", "mimetic", "timm"],
        "seed": [1, 1, 0, 0, 2],
        "test_accuracy": [0.5, 0.6, 0.4, 0.35, 0.9],
    }
)


def test_pairs_by_seed_and_leaves_out_what_has_no_partner():
    pairs = paired_differences(RUNS)
    assert list(pairs.index) == [0, 1]
    assert pairs.difference.tolist() == pytest.approx([-0.05, 0.1])
    assert paired_differences(RUNS, arms=("mimetic", "timm")).difference.tolist() == pytest.approx([0.05, -0.1])


def test_a_difference_of_two_arms_may_be_of_two_experiments():
    assert difference(RUNS, "mimetic", "timm").to_dict() == pytest.approx({0: -0.05, 1: 0.1})
    others = RUNS.assign(test_accuracy=RUNS["test_accuracy"] - 0.3)
    assert difference(RUNS, "timm", "timm", others=others).to_dict() == pytest.approx({0: 0.3, 1: 0.3, 2: 0.3})
    weights = {"mimetic": 1, "timm": -1}
    assert difference(RUNS, "mimetic", "timm").equals(contrast(RUNS, weights))


def test_without_runs_of_an_arm_nothing_is_paired():
    nothing = pd.DataFrame(columns=["arm", "seed"])  # load_runs without records: no metric either
    for runs in (RUNS, nothing):
        assert difference(runs, "torch", "timm").empty and difference(runs, "timm", "torch").empty
        assert contrast(runs, {"torch": 1, "timm": -1, "mimetic": 1}).empty
        pairs = paired_differences(runs, arms=("timm", "torch"))
        assert pairs.empty and list(pairs) == ["timm", "torch", "difference"]
        assert compare(runs, {"torch": ("timm", "torch")}).empty


def test_two_runs_of_one_seed_are_refused():
    twice = pd.concat([RUNS, RUNS.iloc[:1]])
    for pair in (paired_differences, lambda runs: difference(runs, "mimetic", "timm")):
        with pytest.raises(ValueError, match="two runs of one seed of arm 'timm'"):
            pair(twice)


def test_smallest_p_is_that_of_the_exact_test():
    """scipy's exact test of five differences of one sign: all 2^5 sign flips."""
    result = permutation_test(
        (np.array([1.0, 2.0, 1.5, 0.5, 3.0]),),
        np.mean,
        permutation_type="samples",
        alternative="two-sided",
        n_resamples=np.inf,
    )
    assert result.pvalue == pytest.approx(smallest_p(5)) == 0.0625
    with pytest.raises(ValueError):
        smallest_p(0)


@pytest.mark.parametrize("n", [2, 3, 6, 9])
def test_sign_flip_is_scipys_exact_permutation_test(n):
    x = np.random.default_rng(n).normal(0.4, 1, n)
    wanted = permutation_test(
        (x,), np.mean, permutation_type="samples", alternative="two-sided", n_resamples=np.inf
    ).pvalue
    assert sign_flip_test(x) == pytest.approx(wanted)


def test_sign_flip_worked_example():
    """Three differences 1, 2, 4: sums of the eight patterns are +-7, +-5, +-3, +-1."""
    assert sign_flip_test([1, 2, 4]) == 2 / 8
    assert sign_flip_test([1, 2, -4]) == 1 and sign_flip_test([-1, 2, 4]) == 4 / 8  # 1: all eight; 5: +-7 and +-5
    assert sign_flip_test([0, 0]) == 1
    assert sign_flip_test([0.1] * 6) == smallest_p(6) == 1 / 32  # equal sums are equal, whatever the rounding


def test_interval_is_students():
    x = [1.0, 2.0, 4.0, 2.5]
    wanted = ttest_1samp(x, 0).confidence_interval(0.95)
    assert mean_interval(x) == pytest.approx((wanted.low, wanted.high))
    assert mean_interval([1.0]) == (-np.inf, np.inf)


def test_interval_covers_as_often_as_it_says():
    draws = np.random.default_rng(0).normal(1.0, 2.0, (4000, 4))
    covered = np.mean([low <= 1 <= high for low, high in map(mean_interval, draws)])
    assert covered == pytest.approx(0.95, abs=0.015)


def test_holm_worked_example():
    """Holm 1979: .01 * 4, .02 * 3 = .06, .03 * 2 = .06, .04 stays at .06; in the order given."""
    assert holm([0.02, 0.04, 0.01, 0.03]).tolist() == pytest.approx([0.06, 0.06, 0.04, 0.06])
    assert holm([0.9, 0.8]).tolist() == [1.0, 1.0]
    assert holm([0.02, np.nan, 0.04]).tolist() == pytest.approx([0.04, np.nan, 0.04], nan_ok=True)


def test_one_pair_is_no_test_to_correct_the_others_for():
    runs = [
        {"arm": arm, "seed": seed, "test_accuracy": 0.5 + 0.01 * seed + 0.1 * (arm != "timm")}
        for arm in ("timm", "a", "b")
        for seed in range(6)
        if arm != "b" or not seed
    ]
    table = compare(pd.DataFrame(runs), {"six pairs": ("timm", "a"), "one pair": ("timm", "b")})
    assert corrected(table).tolist() == table["p"].tolist() == [2 / 64, 1.0]


def test_compare_one_row_a_comparison():
    table = compare(RUNS, {"main": ("timm", "mimetic"), "absent": ("timm", "torch")})
    assert list(table.index) == ["main"]
    row = table.loc["main"]
    assert (row.pairs, row.wins) == (2, 1)
    assert row.difference == pytest.approx(0.025) and row.reference == pytest.approx(0.45)
    assert row.low < row.difference < row.high and row.p == 1.0


def test_steps_to_reach():
    curve = pd.DataFrame({"step": [10, 20, 30], "test_accuracy": [0.2, 0.4, 0.3]})
    assert steps_to_reach(curve, 0.3) == 15
    assert steps_to_reach(curve, 0.1) == 10
    assert np.isnan(steps_to_reach(curve, 0.5))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: sign_flip_test([]), "1 to 20 pairs"),
        (lambda: sign_flip_test([1.0, float("nan")]), "finite"),
        (lambda: mean_interval([]), "no differences"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_a_crossed_interval_covers_the_mean_of_both_samples():
    """500 draws of 5 rows and 40 columns with effects of both: 95 % of the intervals hold the true mean; those of the
    rows or of the columns alone do not."""
    generator, held = np.random.default_rng(0), np.zeros((500, 3))
    for i in range(500):
        y = 1.0 + generator.normal(0, 1, (5, 1)) + generator.normal(0, 3, (1, 40)) + generator.normal(0, 1, (5, 40))
        for j, (low, high) in enumerate((crossed_interval(y), mean_interval(y.mean(1)), mean_interval(y.mean(0)))):
            held[i, j] = low <= 1.0 <= high
    crossed, rows, columns = held.mean(0)
    assert 0.925 <= crossed <= 0.99 and rows < 0.925 and columns < 0.925


def test_a_crossed_interval_worked_example():
    """Effects of +-1 of rows, of columns and of both: variances of the mean 1/3, 1/3 and 1/9, which is subtracted."""
    one, other = np.array([1.0, 1, -1, -1]), np.array([1.0, -1, 1, -1])
    y = one[:, None] + other + np.outer(other, one)
    df = (5 / 9) ** 2 / (2 * (1 / 3) ** 2 / 3 + (1 / 9) ** 2 / 9)
    half = t.ppf(0.975, df) * (5 / 9) ** 0.5
    assert crossed_interval(y) == pytest.approx((-half, half)) and half == pytest.approx(2.05, abs=0.005)


def test_a_crossed_interval_is_never_narrower_than_either_sample_alone():
    y = np.random.default_rng(1).normal(size=(6, 50))
    low, high = crossed_interval(y)
    assert (low + high) / 2 == pytest.approx(y.mean())
    for seed in range(20):  # few rows that differ little, as four seeds and thousands of users do
        x = (
            0.003 * np.random.default_rng(seed).normal(size=(4, 1))
            + np.random.default_rng(seed).normal(size=(1, 900)) * 0.05
            + 0.1 * np.random.default_rng(seed + 99).normal(size=(4, 900))
        )
        assert (
            np.ptp(crossed_interval(x))
            >= max(np.ptp(mean_interval(x.mean(1))), np.ptp(mean_interval(x.mean(0)))) - 1e-12
        )
    same_rows = np.tile(y[:1], (6, 1))  # no difference between rows: the interval is that of the columns
    assert np.ptp(crossed_interval(same_rows)) == pytest.approx(np.ptp(mean_interval(same_rows[0])), rel=0.01)
    with pytest.raises(ValueError, match=r"two or more rows and columns, not shape \(1, 50\)"):
        crossed_interval(y[:1])
