"""Ranks and metrics against ranx, scikit-learn and worked examples; the baselines against a plain loop."""

import json
import math
import warnings

import numpy as np
import pytest
import torch

from mimetic.data.sequences import SequenceData, load_sequences, oracle
from mimetic.experiments.baselines import baselines, baselines_path, bursts, item_knn, popularity, rank_metrics
from mimetic.experiments.ranking import pad_left, ranking_metrics, target_ranks


def example(users=60, items=40, seed=0):
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(users, items))
    orders = [rng.permutation(items) + 1 for _ in range(users)]
    history = [o[: rng.integers(1, 12)] for o in orders]
    target = np.array([o[20] for o in orders])
    return scores, history, target


def ours(scores, history, target, k=10):
    ranks = target_ranks(torch.from_numpy(scores), torch.from_numpy(target), pad_left(history))
    return ranks, ranking_metrics(ranks, k)


def test_worked_example():
    """Items 1 to 6 with scores 9 8 7 6 5 4; the user had 1 and 3 and wants 5:
    before it stand 2 and 4, so its rank is 3.
    """
    scores = np.array([[9.0, 8, 7, 6, 5, 4]])
    ranks, metrics = ours(scores, [np.array([1, 3])], np.array([5]))
    assert ranks.tolist() == [3] and metrics == pytest.approx({"ndcg10": 0.5, "recall10": 1, "mrr": 1 / 3})
    assert ours(scores, [np.array([1, 3])], np.array([5]), k=2)[1] == pytest.approx(
        {"ndcg2": 0, "recall2": 0, "mrr": 1 / 3}
    )


def test_ties_count_half():
    ranks, _ = ours(np.array([[1.0, 1, 1, 0, 2]]), [np.array([2])], np.array([1]))
    assert ranks.tolist() == [1 + 1 + 0.5]  # item 5 above, item 3 level; item 2 is history


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_scores_that_are_no_numbers_have_no_rank(bad):
    """Not the first rank, which comparing with nan would give."""
    scores = torch.tensor([[0.1, bad, 0.3], [0.1, 0.2, 0.3]])
    ranks = target_ranks(scores, torch.tensor([2, 3]), torch.zeros(2, 1, dtype=torch.int64))
    assert ranks[0].isnan() and ranks[1] == 1 and math.isnan(ranking_metrics(ranks)["mrr"])


def test_padding_to_no_length_is_not_the_longest():
    assert pad_left([[1, 2]], 0).shape == (1, 0)
    assert pad_left([[1, 2]]).tolist() == [[1, 2]]
    assert pad_left([[1, 2, 3]], 2).tolist() == [[2, 3]]


def test_against_scikit_learn():
    from sklearn.metrics import label_ranking_average_precision_score, ndcg_score

    scores, history, target = example()
    _, found = ours(scores, history, target)
    shown, truth = scores.copy(), np.zeros_like(scores)
    for i, (h, t) in enumerate(zip(history, target)):
        shown[i, h - 1] = -99
        truth[i, t - 1] = 1
    assert found["ndcg10"] == pytest.approx(ndcg_score(truth, shown, k=10))
    assert found["mrr"] == pytest.approx(label_ranking_average_precision_score(truth, shown))


@pytest.mark.slow
def test_against_ranx(monkeypatch):
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")  # compiling it takes a minute, running it as Python a moment
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of numba, about its own integers
        ranx = pytest.importorskip("ranx")
        scores, history, target = example()
        _, found = ours(scores, history, target)
        qrels = ranx.Qrels({f"u{i}": {f"i{t}": 1} for i, t in enumerate(target)})
        run = ranx.Run(
            {
                f"u{i}": {f"i{j + 1}": float(s) for j, s in enumerate(row) if j + 1 not in history[i]}
                for i, row in enumerate(scores)
            }
        )
        theirs = ranx.evaluate(qrels, run, ["ndcg@10", "recall@10", "mrr"])
    assert found == pytest.approx({"ndcg10": theirs["ndcg@10"], "recall10": theirs["recall@10"], "mrr": theirs["mrr"]})


def test_baselines_against_a_plain_loop():
    data = load_sequences("clusters")
    few = SequenceData("few", data.sequences[:40], data.num_items)
    counts = sum(np.bincount(few.train(u), minlength=65)[1:] for u in range(40))
    assert np.array_equal(popularity(few)[7], counts)
    X, known = np.zeros((40, 64)), np.zeros((40, 64))
    for u in range(40):
        X[u, few.train(u) - 1] = 1
        known[u, few.history(u, False) - 1] = 1
    norms = np.linalg.norm(X, axis=0)
    S = (X.T @ X / np.maximum(np.outer(norms, norms), 1e-12)).round(12)
    np.fill_diagonal(S, 0)
    scores = item_knn(few, neighbours=63)  # all of them: the plain sum
    np.testing.assert_allclose(scores, known @ S, atol=1e-9)
    cut = S.copy()
    for row in cut:
        row[np.argsort(-row, kind="stable")[5:]] = 0
    np.testing.assert_allclose(item_knn(few, neighbours=5), known @ cut.T, atol=1e-9)
    with pytest.raises(ValueError, match="from 1 to 63"):
        item_knn(few, neighbours=64)


def test_nothing_beats_the_oracle_on_average():
    data = load_sequences("clusters")
    best = rank_metrics(np.array([oracle(data.history(u, False)) for u in range(data.num_users)]), data)
    others = [rank_metrics(scores(data), data) for scores in (popularity, item_knn)]
    assert all(best["ndcg10"] > 1.5 * other["ndcg10"] for other in others)


def test_the_committed_baselines_are_those_of_this_code_and_complete():
    rows = json.loads(baselines_path().read_text())
    assert {(r["dataset"], r["items"], r["users"]) for r in rows} == {
        ("ml100k", 1682, 943),
        ("beauty", 1000, 4500),
        ("clusters", 64, 600),
    }
    assert [r for r in rows if r["dataset"] == "clusters"] == baselines("clusters")


def test_what_others_did_last_does_not_count():
    """A baseline is fitted to what the models are trained on: the last two items of the others change nothing."""
    data = load_sequences("clusters")
    changed = SequenceData(
        "changed",
        (data.sequences[0], *(np.concatenate([s[:-2], s[-1:], s[-2:-1]]) for s in data.sequences[1:])),
        data.num_items,
    )
    for scores in (popularity, item_knn):
        assert np.array_equal(scores(data)[0], scores(changed)[0])


def test_bursts(tmp_path):
    path = tmp_path / "ratings"
    path.write_text("1\t5\t3\t100\n1\t6\t3\t50\n1\t7\t3\t100\n2\t5\t3\t1\n2\t6\t3\t90000\n")
    assert bursts(path) == {"tied": 0.5, "one_day": 0.5}


@pytest.mark.network
def test_the_committed_baselines_of_movielens():
    rows = json.loads(baselines_path().read_text())
    assert [r for r in rows if r["dataset"] == "ml100k"] == baselines("ml100k")
