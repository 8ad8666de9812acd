"""The recommender family: batches, what the loss may see, evaluation, configs, and that it learns."""

import numpy as np
import pytest
import torch

from mimetic.data.sequences import load_sequences, oracle
from mimetic.experiments.baselines import popularity, rank_metrics
from mimetic.experiments.configs import ARMS, named
from mimetic.experiments.recommenders import METRIC, RecommenderTask, build_model
from mimetic.experiments.recorded import cases_of
from mimetic.experiments.runs import check, run
from mimetic.training.records import load_runs, read_record, record_path


def small(**changes):
    base = dict(
        experiment="toy", objective="mask", causal=False, epochs=2, batch_size=100, d_model=16, precision="float32"
    )
    return named("clusters", **base | changes)


def task(**changes):
    config = small(**changes)
    return RecommenderTask(load_sequences("clusters"), config)


def test_batches_follow_from_seed_epoch_and_step_alone():
    one, two, other = task(), task(), task(seed=1)
    two.batch(3, 2)
    for a, b, c in zip(one.batch(1, 4), two.batch(1, 4), other.batch(1, 4)):
        assert torch.equal(a, b) and not (a.shape == c.shape and torch.equal(a, c))
    assert one.steps_per_epoch == 6 and task(passes=3).steps_per_epoch == 18


def test_a_pass_takes_every_user_once():
    t = task()
    seen = []
    t.windows = lambda users, size: (seen.append(users), torch.ones(len(users), size, dtype=torch.long))[1]
    for step in range(t.steps_per_pass):
        t.batch(0, step)
    assert sorted(torch.cat(seen).tolist()) == list(range(600))
    t.batch(1, 0)
    assert not torch.equal(seen[0], seen[-1])


@pytest.mark.parametrize("objective", ["mask", "next"])
def test_the_last_two_items_are_never_trained_on_and_windows_are_contiguous(objective):
    data = load_sequences("clusters")
    t = task(objective=objective, causal=objective == "next")
    t._generator.manual_seed(0)
    ends = set()
    for _ in range(30):
        for user, window in enumerate(t.windows(torch.arange(600), 8).tolist()):
            allowed = data.train(user).tolist()
            kept = [i for i in window if i]
            assert len(kept) == min(8, len(allowed)) and window[: 8 - len(kept)] == [0] * (8 - len(kept))
            start = allowed.index(kept[0])
            assert allowed[start : start + len(kept)] == kept
            if user == 3:
                ends.add(start)
    ends |= {data.train(3).tolist().index(w[0]) for w in t.windows(torch.full((300,), 3), 8).tolist()}
    assert ends == set(range(len(data.train(3)) - 8 + 1))  # every place comes up


def test_masked_items_are_hidden_and_asked_for():
    t = task(mask_prob=0.5, last_only=0.0)
    rate = []
    for step in range(6):
        inputs, at, answers = t.batch(0, step)
        assert (inputs[at] == 65).all() and (inputs[~at] < 65).all()
        assert at.any(1).all() and len(answers) == at.sum() and answers.min() >= 0 and answers.max() < 64
        rate.append(at.sum() / (inputs > 0).sum())
    assert float(np.mean(rate)) == pytest.approx(0.5, abs=0.02)
    inputs, at, _ = task(last_only=1.0).batch(0, 0)
    assert at[:, -1].all() and at.sum() == len(at)


def test_next_item_training_asks_for_the_item_after():
    t = task(objective="next", causal=True)
    inputs, at, answers = t.batch(0, 0)
    assert torch.equal(inputs[:, 1:][at[:, :-1] & at[:, 1:]], (answers + 1)[_not_last(at)])
    assert (at == (inputs > 0)).all()


def _not_last(at):
    """Of the answers in row order: those whose position is not the row's last."""
    place = at.nonzero()[:, 1]
    return place < at.shape[1] - 1


def test_evaluation_ranks_what_the_model_scores():
    """A model whose scores are the oracle's must be judged as the oracle is."""
    data = load_sequences("clusters")
    t = task(max_len=40)

    class Oracle(torch.nn.Module):
        def features(self, inputs):
            rows = [oracle(row[row > 0][:-1].numpy()) for row in inputs]  # without the mask at the end
            return torch.tensor(np.array(rows))[:, None]

        def scores(self, x):
            return x.double()

    found = t.evaluate(Oracle(), True)
    expected = rank_metrics(np.array([oracle(data.history(u, False)).astype(np.float32) for u in range(600)]), data)
    assert {k: found[k] for k in expected} == pytest.approx(expected, abs=1e-3)
    assert found["validation_ndcg10"] != found["ndcg10"]
    judged = task(max_len=40, validation=True).evaluate(Oracle(), True)
    assert judged["ndcg10"] == judged["validation_ndcg10"] == found["validation_ndcg10"]


@pytest.mark.parametrize(
    "changes",
    [{}, {"norm_first": True}, {"causal": True}, {"causal": True, "objective": "next"}],
    ids=["BERT4Rec", "pre-LN", "causal", "SASRec"],
)
def test_runs_and_is_recorded(changes, data_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("MIMETIC_RUNS", str(tmp_path / "runs"))
    config = small(**changes)
    record = run(config, progress=False)
    assert record == read_record(record_path("toy", "bert", 0))
    assert record["final"].keys() >= {"test_ndcg10", "test_recall10", "test_mrr", "test_validation_ndcg10"}
    columns, rows = (record["anatomy"]["after"]["products"][k] for k in ("columns", "rows"))
    assert len(rows) == 2 * 2 * (2 + 1) and len(columns) == len(rows[0])
    assert record["anatomy"]["before"] != record["anatomy"]["after"]
    assert load_runs("toy")["test_ndcg10"].iloc[0] == record["final"]["test_ndcg10"]
    assert "NDCG@10" in METRIC.show(record["final"])
    ranks = cases_of(record, "ranks")
    assert len(ranks) == 600
    assert np.where(ranks <= 10, 1 / np.log2(1 + ranks), 0).mean() == pytest.approx(
        record["final"]["test_ndcg10"], abs=1e-6
    )
    again = run(config, progress=False, force=True)
    assert again["curve"] == record["curve"]


def test_it_learns_what_there_is_to_learn():
    """More than popularity, not more than the oracle."""
    data = load_sequences("clusters")
    best = rank_metrics(np.array([oracle(data.history(u, False)) for u in range(600)]), data)["ndcg10"]
    plain = rank_metrics(popularity(data), data)["ndcg10"]
    found = run(named("clusters", experiment="toy"), store=False, progress=False)["final"]["test_ndcg10"]
    assert plain + 0.2 < found < best + 0.02


def test_arms_share_what_their_initializers_do_not_set():
    models = {init: build_model(small(init=init)).state_dict() for init in ("bert", "mimetic", "mimetic-qk")}
    differs = {k for k, v in models["bert"].items() if not torch.equal(v, models["mimetic"][k])}
    assert differs == {f"blocks.{i}.attn.{part}.weight" for i in (0, 1) for part in ("qkv", "proj")}
    assert torch.equal(models["bert"]["blocks.0.attn.proj.weight"], models["mimetic-qk"]["blocks.0.attn.proj.weight"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(objective="both"), "mask, next"),
        (dict(objective="next"), "needs causal=True"),
        (dict(dataset="netflix"), "ml100k, ml1m"),
        (dict(mask_prob=0.0), "mask_prob"),
        (dict(last_only=1.5), "last_only"),
        (dict(passes=0), "passes"),
        (dict(max_len=1), "max_len must be a whole number of at least 2"),
        (dict(num_heads=3), "num_heads"),
        (dict(items=7), "items must be"),
        (dict(qk_beta=(0.1, 0.2, 0.3)), "3 values"),
        (dict(compile="on"), "compile must be off for a recommender, not 'on'"),
        (dict(compile="auto"), "compile must be off for a recommender, not 'auto'"),
        (dict(mlp_ratio=1e308), "mlp_ratio must be finite"),
    ],
)
def test_bad_configs_are_refused_before_anything_is_read(changes, message):
    with pytest.raises(ValueError, match=message):
        check(small(**changes))


def test_too_large_a_batch():
    with pytest.raises(ValueError, match="600 users of clusters"):
        run(small(batch_size=601), store=False, progress=False)


def test_every_arm_is_a_valid_run():
    for experiment in ("ml100k", "beauty", "ml100k-recipe", "beauty-recipe"):
        for arm in ARMS.get(experiment, {}):
            check(named(experiment, arm=arm, device="cpu"))
