"""The language chapters' tables and sentences follow the records, also when few or none are there."""

import json
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest

from mimetic import figures
from mimetic.experiments.answers import language as answers
from mimetic.experiments.configs import named
from mimetic.experiments.programmes.language import CENTRAL, LONG, RATE, SHARE, STUDIES, WIKITEXT2
from mimetic.experiments.recorded import recorded_products
from mimetic.figures.style import LABELS
from mimetic.training.records import load_runs, read_record, runs_dir, write_record

TEMPLATE = read_record(next(iter(sorted((runs_dir() / "tinyshakespeare-recipe").glob("*.json")))))


@pytest.fixture(autouse=True)
def _folders(tmp_path, monkeypatch):
    monkeypatch.setenv("MIMETIC_RUNS", str(tmp_path))


def put(study, effect, seeds=(0, 1, 2), arms=None, noise=0.002):
    """Records of a study whose every arm but the reference has this effect; a symmetric noise over seeds."""
    for config in study.runs(seeds):
        arm = config.arm or config.init
        if arms is None or arm in arms:
            reference = arm == study.arms[0] or arm.endswith("-gpt2")
            value = 2.0 + (0 if reference else effect + noise * (config.seed - np.mean(seeds)))
            curve = [entry | {"test_bits_per_byte": value + 0.1 * (len(TEMPLATE["curve"]) - entry["epoch"])} for entry in TEMPLATE["curve"]]
            config = json.loads(json.dumps(asdict(config)))
            write_record(TEMPLATE | {"experiment": study.experiment, "arm": arm, "seed": config["seed"], "config": config, "curve": curve, "final": curve[-1]})


def test_every_arm_has_a_label():
    for study in (CENTRAL, WIKITEXT2, LONG):
        assert set(study.arms) <= set(LABELS)
    assert {"central", "rate", "wikitext2", "share", "long"} == set(STUDIES)


def test_nothing_yet():
    table, points = answers.comparisons()
    assert table.empty and points.empty and answers.numbers(table).empty and answers.run_table("tinyshakespeare").empty
    assert "no pair of runs is in yet" in answers.answer() and "nothing yet. *tiny Shakespeare, by character: 0 of 35 runs" in answers.found(CENTRAL)
    assert "No samples yet" in answers.samples() and "no records yet" in answers.recipe_sentence(load_runs("tinyshakespeare-recipe"))
    products = recorded_products("tinyshakespeare", ("gpt2", "language"))
    assert products.empty and answers.kept(products).empty
    assert "no pair" in answers.head_start(load_runs("x", curves=True), "language") and answers.overfitting(load_runs("x", curves=True)) == ""
    assert answers.planned().count(" of ") >= 5 and answers.planned().startswith("*Not all runs are in")
    # the pretrained ones are there without any run
    assert set(answers.causal_products()["title"]) >= {"SmolLM2-135M-Instruct", "Whisper tiny.en decoder"}


@pytest.mark.parametrize(
    ("effect", "words"), [(-0.05, "ahead so far: −0.050 bits per byte"), (0.05, "behind so far: +0.050 bits per byte"), (0.0, "no difference that these pairs can show")]
)
def test_fewer_bits_are_a_gain(effect, words):
    put(CENTRAL, effect)
    text = answers.answer()
    assert words in text and "3 pairs can at best give p = 0.25" in text and "of the default's 2.000" in text
    assert answers.found(CENTRAL).count(words) == 6 and "*tiny Shakespeare, by character: 21 of 35 runs are in" in answers.found(CENTRAL)
    table, points = answers.comparisons()
    assert len(points) == 18 and answers.numbers(table)["ahead"].tolist() == [3 if effect < 0 else 0 if effect > 0 else answers.numbers(table)["ahead"].iloc[0]] * 6
    (ax,) = figures.comparisons(table, points, xlabel=answers.XLABEL, scale=1).axes
    assert len(ax.get_yticks()) == 6


def test_five_pairs_need_no_caveat_and_leave_nothing_to_do():
    put(CENTRAL, -0.05, seeds=range(5))
    assert "can at best" not in answers.answer() and answers.progress(CENTRAL, load_runs("tinyshakespeare")) == ""


def test_the_sweep_compares_within_a_point():
    put(SHARE, -0.02, seeds=(0,))
    text = answers.found(SHARE)
    assert text.count("−0.020 bits per byte in the only pair so far") == 16 and "24 of 72 runs" in text


def test_arms_at_several_rates():
    assert answers.by_rate().empty
    put(CENTRAL, 0.9, seeds=(0,))
    put(RATE, 0.1, seeds=(0,))
    table = answers.by_rate()
    assert sorted(table.columns) == [0.002, 0.008] and set(table.index) == {LABELS[a] for a in ("gpt2", "language", "vision")}
    assert table.loc[LABELS["vision"]].tolist() == [2.1, 2.9] and table.loc[LABELS["gpt2"]].tolist() == [2.0, 2.0]
    assert "+0.100 bits per byte in the only pair so far" in answers.found(RATE) and "*tiny Shakespeare, at a quarter" in answers.found(RATE)


def test_the_table_of_pairs_of_characters(monkeypatch):
    from mimetic.data import text

    monkeypatch.setitem(text.CORPORA, "pairs", text.Corpus({}, lambda _: ("ab" * 20_000, "ababab")))
    assert answers.pair_model_bits("pairs") < 0.001
    rng = np.random.default_rng(0)
    fair = "".join(rng.choice(list("abcd"), 40_000))
    monkeypatch.setitem(text.CORPORA, "pairs", text.Corpus({}, lambda _: (fair[:30_000], fair[30_000:])))
    assert answers.pair_model_bits("pairs") == pytest.approx(2, abs=0.01)


def test_tokens_look_at_themselves_before_training_from_the_pattern():
    table = answers.attention_before_training(windows=2)
    itself, equal = table["first layer", "to itself"], table["first layer", "to equal tokens"]
    # without any preference: the mean of 1/n over 128 tokens
    assert itself[LABELS["gpt2"]] == pytest.approx(100 * np.mean(1 / np.arange(1, 129)), abs=0.5)
    assert itself[LABELS["language"]] > 50 and (equal > itself).all() and (equal <= 100).all()


@pytest.mark.parametrize(
    ("qk", "vp", "words"),
    [
        (0.9, 0.0, "QK only is held back too (+0.900); V·proj only is not held back (+0.000); so queries and keys are what does it (1 pair)."),
        (0.9, 0.9, "so queries and keys are not the whole of it"),
        (0.0, 0.0, "so it takes both products"),
        (None, 0.9, "so queries and keys are not the whole of it"),
        (None, None, "The runs that test it are not in yet."),
    ],
)
def test_conjecture(qk, vp, words):
    put(CENTRAL, 1.0, seeds=(0,), arms=("gpt2", "language"))
    for arm, effect in (("qk", qk), ("vp", vp)):
        if effect is not None:
            put(CENTRAL, effect, seeds=(0,), arms=(arm,), noise=0)
    assert words in answers.conjecture()


def test_recipe_rule():
    finals = pd.DataFrame({"arm": ["base", "base", "a", "b"], "test_bits_per_byte": [2.50, 2.52, 2.505, 2.6]})
    assert answers.recipe_winner(finals) == "base" and "`a`, is −0.005 from the base (2.510, its 2 seeds 0.020 apart), so the base was kept" in answers.recipe_sentence(finals)
    better = finals.assign(test_bits_per_byte=[2.5, 2.52, 2.4, 2.6])
    assert answers.recipe_winner(better) == "a" and "it replaces the base's value" in answers.recipe_sentence(better)
    assert answers.recipe_table(better).index[0] == "a"


def curves(gap):
    """Two seeds whose gap to the default runs through these values."""
    rows = []
    for seed in (0, 1):
        for i, g in enumerate(gap):
            base = 3 - 0.1 * i
            rows += [{"arm": arm, "seed": seed, "step": 100 * (i + 1), "test_bits_per_byte": base + d} for arm, d in (("gpt2", 0), ("language", g))]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("gap", "words"),
    [
        ([-0.3, -0.2, -0.1, 0.0], "the head start is gone at the end: −0.300 bits per byte after 100 steps"),
        ([-0.3, -0.3, -0.1, -0.05], "most of the head start is gone at the end"),
        ([-0.3, -0.3, -0.3, -0.3], "the head start is kept"),
        ([0.1, 0.1, 0.1, 0.1], "there is no head start:"),
        ([0.1, 0.0, -0.1, -0.2], "there is no head start, but a gain at the end"),
    ],
)
def test_head_start(gap, words):
    frame = curves(gap)
    assert words in answers.head_start(frame, "language")
    assert "still falls at its last step (400)" in answers.overfitting(frame)
    left, right = figures.curves_and_gaps(frame, reference="gpt2").axes
    drawn = [line.get_ydata() for line in right.get_lines() if len(line.get_ydata()) == 4]
    assert len(drawn) == 3 and all(np.allclose(y, gap) for y in drawn)


def test_overfitting_is_seen():
    frame = curves([0, 0, 0, 0])
    frame.loc[frame["step"] == 400, "test_bits_per_byte"] = 2.9
    assert "lowest point, 2.800, at step 300, and ends at 2.900" in answers.overfitting(frame)


def test_samples_products_and_runs():
    put(CENTRAL, -0.05, seeds=(0,))
    html = answers.samples()
    assert html.count("<pre") == 2 and "1.950 bits per byte" in html and "&lt;" not in LABELS["gpt2"] and "default (GPT-2&#x27;s)" in html
    products = recorded_products("tinyshakespeare", ("gpt2", "language"))
    config = named("tinyshakespeare")
    assert len(products) == 2 * 2 * config.depth * (config.num_heads + 1) and products["fold"].all()
    assert answers.kept(products).shape == (6, 4)
    assert len(figures.products_before_and_after(products).axes) == 4
    assert len(answers.run_table("tinyshakespeare")) == 7
    signs = answers.measured_signs(answers.causal_products())
    assert "our GPT, tinyshakespeare, d 128" in signs.index and signs.loc["SmolLM2-135M-Instruct", "V·proj z"] > 1
