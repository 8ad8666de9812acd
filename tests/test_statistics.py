import pandas as pd
import pytest

from mimetic.statistics import paired_differences, smallest_p

RUNS = pd.DataFrame(
    {"arm": ["timm", "mimetic", "timm", "mimetic", "timm"], "seed": [1, 1, 0, 0, 2], "test_accuracy": [0.5, 0.6, 0.4, 0.35, 0.9]}
)


def test_pairs_by_seed_and_leaves_out_what_has_no_partner():
    pairs = paired_differences(RUNS)
    assert list(pairs.index) == [0, 1]
    assert pairs.difference.tolist() == pytest.approx([-0.05, 0.1])
    assert paired_differences(RUNS, arms=("mimetic", "timm")).difference.tolist() == pytest.approx([0.05, -0.1])


def test_bad_frames_are_refused():
    with pytest.raises(ValueError, match="no runs of arm 'torch'; there are timm, mimetic"):
        paired_differences(RUNS, arms=("timm", "torch"))
    with pytest.raises(ValueError, match="two runs of one arm and seed"):
        paired_differences(pd.concat([RUNS, RUNS.iloc[:1]]))


def test_smallest_p_is_that_of_the_exact_test():
    """scipy's exact test of five differences of one sign: all 2^5 sign flips."""
    import numpy as np
    from scipy.stats import permutation_test

    result = permutation_test((np.array([1.0, 2.0, 1.5, 0.5, 3.0]),), np.mean, permutation_type="samples", alternative="greater", n_resamples=np.inf)
    assert result.pvalue == pytest.approx(smallest_p(5)) == 0.03125
    with pytest.raises(ValueError):
        smallest_p(0)
