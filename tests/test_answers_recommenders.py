"""What the recommender chapter says, against toy records: verdict words follow from numbers, and what is missing is said."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from mimetic.experiments import live
from mimetic.experiments.answers import common, convergence, questions
from mimetic.experiments.answers import recommenders as rec
from mimetic.experiments.configs import EXPERIMENTS, named
from mimetic.experiments.configs.recommenders import FITTED
from mimetic.experiments.fitted import from_record
from mimetic.experiments.programmes import QUEUES
from mimetic.experiments.programmes.recommenders import CENTRAL, MODELS, RATE, SEEDS, STUDIES
from mimetic.experiments.recorded import product_table, recorded_products
from mimetic.experiments.runs import check, run
from mimetic.measure import fit_layer
from mimetic.training.records import load_runs, read_record, record_path


def finals(**arms):
    """One row a run: arm -> NDCG@10 by seed, on both splits."""
    rows = [{"arm": arm.replace("_", "-"), "seed": s, "test_ndcg10": v, "test_validation_ndcg10": v} for arm, values in arms.items() for s, v in enumerate(values)]
    return pd.DataFrame(rows, columns=["arm", "seed", "test_ndcg10", "test_validation_ndcg10"])


BASE = [0.100, 0.102, 0.098, 0.101, 0.099, 0.100]
BETTER = [v + 0.01 + 0.0002 * i for i, v in enumerate(BASE)]
MIXED = [v + (0.01 if i % 2 else -0.01) for i, v in enumerate(BASE)]


def test_the_answer_follows_from_the_pairs():
    text = rec.verdict({"ml100k": finals(bert=BASE, mimetic=BETTER, opposite=MIXED), "beauty": finals()})
    words = text.splitlines()[0]
    assert "*gains*: vision signs;" in words and "*no difference that these pairs can show*: opposite signs" in words and "*loses*: opposite against vision" not in words
    assert "* **Amazon Beauty (1,000 items)**: no pair yet." in text
    assert "| default | 0.1000 |  |" in text and "| vision signs | +0.0105 (+0.0101 to +0.0109), ahead in 6 of 6 pairs, p 0.031 |  |" in text
    three, one = (rec.verdict({"ml100k": finals(bert=BASE[:n], mimetic=BETTER[:n])}) for n in (3, 1))
    assert "*ahead so far*: vision signs" in three and "p 0.250" in three
    assert "*only one pair so far*: vision signs" in one and "| vision signs | +0.0100, one pair |" in one
    worse = rec.verdict({"ml100k": finals(bert=BETTER, mimetic=BETTER, opposite=BASE)})
    assert "*loses*: opposite signs, opposite against vision signs" in worse and "−0.0105" in worse


def test_each_arm_at_its_own_rate(monkeypatch):
    common, other = finals(bert=BASE, mimetic=BETTER, opposite=MIXED), finals(bert=BETTER, mimetic=BASE)
    runs, rates = rec.own_rates("ml100k", common, other)
    assert rates == {"bert": 3e-3, "mimetic": 1e-3} and len(runs) == 12  # opposite has no runs at the other rate
    text = rec.at_own_rates("ml100k", common, other)
    assert "(default (BERT's trunc-normal .02) 0.003, vision signs 0.001)" in text and "vision signs no difference that these pairs can show: +0.0000 NDCG@10" in text
    few = rec.own_rates("ml100k", common, finals(bert=BETTER[:2], mimetic=BASE[:4]))[0]
    assert few.groupby("arm")["seed"].apply(set).tolist() == [{0, 1}, {0, 1}]  # the same seeds choose and are compared
    assert rec.own_rates("ml100k", common, finals())[1] == {} and "no pair yet" in rec.at_own_rates("ml100k", common, finals())
    assert "better at this learning rate, 0.001, than at 0.003, by the validation items (6 seeds)" in rec.at_own_rates("ml100k", finals(bert=BETTER, mimetic=BETTER), finals(bert=BASE, mimetic=BASE))
    monkeypatch.setattr(rec, "load_runs", lambda name: other)
    assert rec.monday({"ml100k": common}).startswith("No interval excludes 0")  # at the common rate alone it would gain
    found = rec.found_at_own_rates("ml100k", common)
    assert "vision signs, each at its own rate: no difference" in found and "12 of 30 runs" in found


def test_what_the_size_does_alone():
    text = rec.verdict({"ml100k": finals(bert=BASE, timm_rescaled=BETTER, random_directions=MIXED, mimetic=BASE)})
    assert "*gains*: default at the norms of vision signs (no diagonal);" in text and "*loses*: vision signs against the default at their norms" in text


def test_what_is_missing_is_said_until_nothing_is():
    arms = CENTRAL["beauty"].arms
    table = finals(**{arm.replace("-", "_"): BASE for arm in arms})
    assert common.missing(CENTRAL["beauty"], table, SEEDS["beauty"], rec.COMMAND) == ""
    assert f"{6 * len(arms) - 1} of {6 * len(arms)} runs" in common.missing(CENTRAL["beauty"], table[1:], SEEDS["beauty"], rec.COMMAND)
    assert "runs are in" not in rec.verdict({"beauty": table}) and "0 of" in rec.verdict({"beauty": finals()})


def test_monday_follows_from_the_intervals():
    both = finals(bert=BASE, mimetic=BETTER, opposite=MIXED)
    assert rec.monday({"ml100k": both}).startswith("It gains with vision signs on MovieLens-100K")
    worse = finals(bert=BETTER, mimetic=BASE)
    assert "keep the default" in rec.monday({"ml100k": worse}) and "It loses" in rec.monday({"ml100k": worse})
    assert "only a paired run" in rec.monday({"ml100k": both, "beauty": worse})
    assert rec.monday({"ml100k": finals(bert=BASE, mimetic=MIXED)}).startswith("No interval excludes 0")
    assert "Too few pairs" in rec.monday({"ml100k": finals(bert=BASE[:3], mimetic=BETTER[:3])})


def test_findings_have_their_sign_and_unit():
    text = rec.found("central-ml100k", finals(bert=BASE, mimetic=BETTER), tuple(range(6)))
    assert "* vision signs: gains: +0.0105 NDCG@10" in text and "runs are in" in text
    table, points = rec.comparison(["central-ml100k", "norm"], finals(bert=BASE, mimetic=BETTER, pre_ln_bert=MIXED))
    assert list(table.index) == ["vision signs", "pre-LN instead of post-LN (default)"] and len(points) == 12
    assert rec.numbers(table)["difference"].tolist() == [0.0105, 0.0]


def curve(values, arm="bert", seed=0):
    return pd.DataFrame({
        "arm": arm, "seed": seed, "epoch": range(1, len(values) + 1), "step": range(10, 10 * len(values) + 1, 10), "test_ndcg10": values,
        "test_validation_ndcg10": values,
    })  # fmt: skip


def test_convergence_is_read_off_the_curve():
    flat, rising = [0.05, 0.09, *[0.1] * 8], list(np.linspace(0, 0.1, 10))
    assert "is level at the end: 0.1000" in convergence.converged(curve(flat), "ml100k")
    assert "is still rising at the end" in convergence.converged(curve(rising), "ml100k")
    assert "is falling at the end" in convergence.converged(curve(rising[::-1]), "ml100k")
    assert "is in yet" in convergence.converged(curve([]), "ml100k")


def test_steps_to_the_defaults_end():
    slow, fast = list(np.linspace(0.01, 0.1, 10)), list(np.linspace(0.02, 0.2, 10))
    curves = pd.concat([curve(slow), curve(fast, "mimetic")])
    table = convergence.steps_table(finals(bert=[0.1], mimetic=[0.2]), curves, ("bert", "mimetic", "opposite"))
    assert list(table.index) == ["default (BERT's trunc-normal .02)", "vision signs"]
    assert table["share of the run"].tolist() == pytest.approx([1, 0.5]) and table.loc["vision signs", "earlier than the default by"] == 0.5
    never = convergence.steps_table(finals(bert=[0.3], mimetic=[0.2]), curves, ("bert", "mimetic"))
    assert never.loc["vision signs", "share of the run"] == 1 and never.loc["vision signs", "reached"] == 0
    assert convergence.steps_table(finals(), curves, ("bert",)).empty


def test_signs_are_called_by_three_quarters():
    assert questions.sign_of(pd.Series([3, 4, 5, 6, 1])) == "+" and questions.sign_of(pd.Series([-3, -4, -5, -6, 1])) == "−"
    assert questions.sign_of(pd.Series([3, -4, 5, -6])) == "mixed" and questions.sign_of(pd.Series([0.1, 1, -1, 3])) == "none"


# --- on records ------------------------------------------------------------------------------------------------------


@pytest.fixture
def records(tmp_path, monkeypatch, data_folder):
    """ml100k on the synthetic data, a few steps: three arms, seed 0."""
    monkeypatch.setenv("MIMETIC_RUNS", str(tmp_path / "runs"))
    small = dict(dataset="clusters", max_len=6, d_model=32, batch_size=300, epochs=2, passes=1, precision="float32")
    monkeypatch.setitem(EXPERIMENTS, "ml100k", dataclasses.replace(EXPERIMENTS["ml100k"], **small))
    for arm in ("bert", "mimetic", "pre-ln-bert"):
        run(named("ml100k", arm=arm), progress=False)


def test_products_and_sentences_from_records(records):
    products = recorded_products("ml100k", ["bert", "mimetic"])
    assert len(products) == 2 * 2 * 2 * 3 and set(products["when"]) == {"before", "after"}
    before = products.query("arm == 'mimetic' and when == 'before'")
    assert (before.query("product == 'qk'")["z"] > 0.5).all() and (before.query("product == 'vp'")["z"] < -0.5).all()
    assert "no common sign" in questions.first_answer() and "no run of the default is in yet" in questions.first_answer()
    table = questions.sign_table()
    assert list(table.index) == ["BERT4Rec, post-LN", "BERT4Rec, pre-LN"] and (table["seeds"] == 1).all()
    assert "no clear sign in *BERT4Rec, post-LN*" in questions.sign_question()
    assert "opposite signs: no run yet" in rec.kept_sentence() and "% kept" in rec.kept_sentence()


def test_other_users_are_an_interval_of_their_own(records):
    difference = rec.user_differences("ml100k", "mimetic")
    runs = load_runs("ml100k").set_index("arm")["test_ndcg10"]
    assert len(difference) == 600 and difference.mean() == pytest.approx(runs["mimetic"] - runs["bert"], abs=1e-6)
    assert len(rec.user_differences("ml100k", "opposite")) == 0
    assert "| vision signs: these seeds, other users | " in rec.verdict({"ml100k": load_runs("ml100k")})


def test_whether_the_recipe_is_fair(monkeypatch):
    values = {"bert": (0.09, 0.10, 0.101), "mimetic": (0.09, 0.10, 0.12)}
    names = {("bert", 1e-3): "lr-0.001-epochs-40"}
    rows = [{"arm": names.get((arm, lr), f"{arm}-lr-{lr:g}-epochs-40"), "seed": 0, "test_validation_ndcg10": v}
            for arm, row in values.items() for lr, v in zip(convergence.CHECK_RATES, row)]  # fmt: skip
    monkeypatch.setattr(convergence, "load_runs", lambda name: pd.DataFrame(rows))
    text = convergence.fairness_sentence()
    assert text.startswith("MovieLens-100K: ") and "best at 0.003 (0.1010), no better than at the common rate" in text and "vision signs: best at 0.003 (0.1200), +0.0200 over the common rate: the recipe is unfair" in text
    assert "Not searched yet: opposite signs" in text


def test_explained_share_of_a_run_and_of_what_was_measured(records):
    table = questions.explained_table().set_index(["model", "product"])
    assert table.loc[("what mimetic_init_ writes", "vp"), "explained"] == pytest.approx(0.5, abs=0.03)
    assert table.loc[("BERT4Rec, MovieLens-100K", "qk"), "explained"] < 0.05
    short = questions.in_short(table.reset_index())
    assert "Layers worth imitating? MovieLens-100K: no common sign." in short and "always; the identity carries, of the energy: MovieLens-100K " in short
    assert "imitate them? no run is in yet." in questions.in_short(table.reset_index().iloc[:8])
    assert "the layers hardly" in questions.second_answer(table.reset_index())
    assert "Not known yet" in questions.second_answer(table.reset_index().iloc[:8])


def test_scores_have_baselines_and_runs(records):
    table = rec.score_table({"ml100k": load_runs("ml100k")})
    names = [name for _, name in table.index]
    assert names[:2] == ["popularity", "item-kNN"] and any(name.startswith("BERT4Rec, default") for name in names)


def test_fitted_constants_of_a_record(records):
    constants = from_record("ml100k", "bert")
    table = product_table(read_record(record_path("ml100k", "bert", 0)))
    expected = [fit_layer(part, 32, 16)["vp_beta"] for _, part in table.groupby("layer")]
    assert constants["vp_beta"] == pytest.approx(expected, rel=0.01) and {len(v) for v in constants.values()} == {2}


def test_committed_constants_are_those_of_the_committed_records():
    assert set(FITTED) == {"ml100k", "beauty"}
    for source, constants in FITTED.items():
        assert from_record(source, "bert") == constants


# --- the third question, the programme, the live run -----------------------------------------------------------------


def test_shares_fall_with_the_catalogue_and_are_those_of_a_built_model():
    from mimetic.audit import count_parameters
    from mimetic.models import BERT4Rec, BERT4RecConfig

    table = questions.share_table()
    assert (table.diff().dropna() < 0).all().all() and table.index.max() == 10**7
    built = count_parameters(BERT4Rec(BERT4RecConfig(1_682)))
    assert questions.share_marks()["ML-100K"][1] == pytest.approx(built.share(), rel=1e-9)
    assert questions.share_levels()["ViT-Tiny"] == pytest.approx(0.311, abs=0.001)
    assert "ML-100K (1,682 items)" in questions.third_answer()


def test_queues_hold_whole_pairs_in_order_and_valid_runs():
    runs = QUEUES["recommenders"]()
    names = [config.name for config in runs]
    assert len(set(names)) == len(names)
    for study in STUDIES.values():
        seeds = [config.seed for config in runs if config.experiment == study.experiment and (config.arm or config.init) in study.arms]
        assert set(seeds) >= {0, 1, 2}
    first = [config for config in runs if config.seed > 2]
    assert names.index(first[0].name) == sum(config.seed <= 2 for config in runs)  # three seeds of everything before the rest
    for studies in (CENTRAL, RATE):
        for data, study in studies.items():
            for arm in study.arms:
                assert {c.seed for c in runs if c.experiment == study.experiment and (c.arm or c.init) == arm} == set(SEEDS[data])
    for config in (*runs, *QUEUES["recommenders-gpu"](), *QUEUES["recommenders-recipe"]()):
        check(dataclasses.replace(config, device="cpu"))
    assert set(MODELS.values()) <= {config.arm or config.init for config in runs}


def test_arms_change_what_they_say_and_nothing_else():
    base = named("ml100k")
    for arm, expected in {
        "pre-ln-bert": {"norm_first"}, "causal-bert": {"causal"}, "next-bert": {"causal", "objective"},
        "opposite": {"init", "qk_beta", "vp_beta"}, "fit-beauty": {"init", "qk_alpha", "qk_beta", "vp_alpha", "vp_beta"},
    }.items():  # fmt: skip
        config = named("ml100k", arm=arm)
        differs = {name for name in config.known() if getattr(config, name) != getattr(base, name)}
        assert differs - {"arm"} == expected, arm


def test_live_sequences():
    table = live.live_sequences("clusters", signs=["default", "opposite"], epochs=1, d_model=16)
    assert table["arm"].tolist() == ["default", "opposite"] and table["test_ndcg10"].between(0, 1).all()
    with pytest.raises(ValueError, match="default, vision, opposite, QK only"):
        live.live_sequences(signs=["both"])


def test_the_oracle_is_ahead_of_the_baselines():
    assert rec.oracle_level() > 2 * max(rec.baseline_levels("clusters").values())
