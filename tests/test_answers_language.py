"""The language chapters' tables and sentences follow the records, also when few or none are there."""

import json
import re
from dataclasses import asdict
from shutil import rmtree

import numpy as np
import pandas as pd
import pytest

from mimetic import figures
from mimetic.book import common, pattern, rates
from mimetic.book import language as answers
from mimetic.experiments import yardsticks
from mimetic.experiments.configs import ARMS, named
from mimetic.experiments.configs.language import (
    CONTROLS,
    ENDS,
    EVERY,
    GENTLE,
    RATES,
    SHARES,
    SIGNS,
    TRIED,
    end_rates,
    searched,
)
from mimetic.experiments.programmes.language import (
    CENTRAL,
    LONG,
    OF_VISION,
    POSITIONS,
    RATE,
    SEARCH,
    SEEDS,
    SHARE,
    STRUCTURE,
    WIKITEXT2,
)
from mimetic.experiments.recorded import recorded_products
from mimetic.figures.style import LABELS, TEXT_POSITIONS
from mimetic.training.records import load_runs, read_record, runs_dir, write_record

OTHERS = len(CENTRAL.arms) - 1
RUNS = len(CENTRAL.arms) * len(SEEDS["central"])
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
            curve = [
                entry | {"test_bits_per_byte": value + 0.1 * (len(TEMPLATE["curve"]) - entry["epoch"])}
                for entry in TEMPLATE["curve"]
            ]
            config = json.loads(json.dumps(asdict(config)))
            write_record(
                TEMPLATE
                | {
                    "experiment": study.experiment,
                    "arm": arm,
                    "seed": config["seed"],
                    "config": config,
                    "curve": curve,
                    "final": curve[-1],
                }
            )


def test_every_arm_has_a_label():
    for study in (CENTRAL, WIKITEXT2, STRUCTURE, LONG):
        assert set(study.arms) <= set(LABELS)
    assert set(EVERY) <= set(LABELS)


def test_nothing_yet():
    table, points = answers.comparisons()
    assert table.empty and points.empty
    for table, points in (answers.overview(), answers.structure()):
        assert table.empty and points.empty
    nothing = answers.side_by_side({"tiny Shakespeare": (CENTRAL,)})
    assert f"nothing yet. *tiny Shakespeare, by character: 0 of {RUNS} runs" in nothing
    assert "no records yet" in rates.rates_sentence()
    assert rates.best_rates() == {}
    assert rates.rate_table().empty and "not in yet" in rates.slow_sentence(3.6)
    products = recorded_products("tinyshakespeare", ("gpt2", "language"))
    assert products.empty and answers.kept(products).empty
    assert answers.on_the_way({"learned": load_runs("x", curves=True)}) == ""
    assert answers.planned().count("(0 of ") == len(answers.FIRST_PAGE) and answers.planned().startswith(
        "*Not all runs are in"
    )
    # the pretrained ones are there without any run
    assert set(answers.causal_products()["title"]) >= {"SmolLM2-135M-Instruct", "Whisper tiny.en decoder"}


@pytest.mark.parametrize(("effect", "said"), [(-0.05, "−0.050"), (0.05, "+0.050")])
def test_what_two_texts_say_stands_side_by_side(effect, said):
    put(CENTRAL, effect)
    put(WIKITEXT2, effect, seeds=SEEDS["wikitext2"])
    text = answers.side_by_side({"tiny Shakespeare": (CENTRAL,), "WikiText-2": (WIKITEXT2,)})
    assert text.splitlines()[0] == (
        "| bits per byte; of an arm alone, minus the default's | tiny Shakespeare | WikiText-2 |"
    )
    (row,) = (line for line in text.splitlines() if line.startswith("| vision signs |"))
    assert re.fullmatch(rf"\| vision signs \| {re.escape(said)} \(.*, 3 pairs\) \| {re.escape(said)} \([^,]*\) \|", row)
    assert f"*tiny Shakespeare, by character: {3 * len(CENTRAL.arms)} of {RUNS} runs are in" in text
    only = {"tiny Shakespeare": (CENTRAL,)}
    assert "| language signs minus vision signs" not in answers.side_by_side(only, contrasts=False)
    assert len(answers.side_by_side(only, comparisons=False).splitlines()) == 3 + 2
    table, points = common.stacked([(CENTRAL, load_runs("tinyshakespeare"))], answers.METRIC)
    assert len(points) == 3 * OTHERS
    (ax,) = figures.comparisons(table, points, xlabel=answers.XLABEL, scale=1).axes
    assert [text.get_text() for text in ax.texts].count("n = 3") == OTHERS


def test_what_was_expected_is_said_where_something_was():
    put(OF_VISION, 0.05, seeds=SEEDS["halves"])
    text = answers.side_by_side({"tiny Shakespeare": (OF_VISION,)}, comparisons=False)
    assert re.search(
        r"\| V·proj alone, minus half of QK's \| \+0\.025 \([^;]*\); \*\*against our expectation\*\* \|", text
    )
    assert re.search(r"\| vision signs minus QK alone \| \+0\.000 \([^;]*\) \|", text)


def test_the_first_page_opens_with_both_sets_of_signs_and_two_kinds_of_positions():
    put(CENTRAL, 0.05)
    put(POSITIONS, -0.05)
    table, points = answers.overview()
    assert list(zip(table["group"], table.index, table["difference"].round(3))) == [
        (TEXT_POSITIONS["learned"], "vision signs, tiny Shakespeare", 0.05),
        (TEXT_POSITIONS["learned"], "language signs, tiny Shakespeare", 0.05),
        (TEXT_POSITIONS["sincos"], "vision signs, tiny Shakespeare", -0.05),
        (TEXT_POSITIONS["sincos"], "language signs, tiny Shakespeare", -0.05),
    ]
    assert len(points) == 4 * 3


def test_signs_are_held_against_the_controls():
    put(STRUCTURE, 0.1, arms=("gpt2", "rescaled", "vision", "tenth"))
    table, _ = answers.structure()
    assert table["group"].value_counts().to_dict() == {"controls, minus the default": 2, "signs, minus a control": 1}
    assert table.loc["vision signs minus default at mimetic's norms", "compared"][1:] == ("rescaled", "vision")


def test_enough_pairs_need_no_caveat_and_leave_nothing_to_do():
    put(CENTRAL, -0.05, seeds=SEEDS["central"])
    assert answers.progress(CENTRAL, load_runs("tinyshakespeare")) == ""


def test_the_sweep_compares_within_a_point():
    put(SHARE, -0.02, seeds=(0,))
    text = answers.side_by_side({"WikiText-2": (SHARE,)})
    assert text.count("−0.020 (no interval, 1 pair)") == len(SHARE.arms) - len(SHARES)
    assert f"{len(SHARE.arms)} of {3 * len(SHARE.arms)} runs" in text


def test_one_rate_for_all():
    put(RATE, 0.1, seeds=(0,))
    assert answers.side_by_side({"tiny Shakespeare": (RATE,)}).count("+0.100 (no interval, 1 pair)") == 4
    assert {name.rpartition("-")[2] for name in RATE.arms} == set(SIGNS)


def put_runs(experiment, finals):
    """Records of these runs, and no others of the experiment."""
    rmtree(runs_dir() / experiment, ignore_errors=True)
    for row in finals.to_dict("records"):
        final = TEMPLATE["final"] | {"test_bits_per_byte": row["test_bits_per_byte"]}
        config = TEMPLATE["config"] | {"lr": row.get("config.lr", TEMPLATE["config"]["lr"])}
        run = {"experiment": experiment, "arm": row["arm"], "seed": row.get("seed", 0), "config": config}
        write_record(TEMPLATE | run | {"curve": [*TEMPLATE["curve"][:-1], final], "final": final})


def search(**values):
    """Finals of a search in which an arm has these values at RATES."""
    rows = [
        {"arm": searched(arm, lr), "config.lr": lr, "test_bits_per_byte": v}
        for arm, row in values.items()
        for lr, v in zip((*RATES, 16e-3), row)
    ]
    return pd.DataFrame(rows, columns=["arm", "config.lr", "test_bits_per_byte"])


def test_no_two_arms_look_alike_in_the_figure_of_the_rates():
    table = pd.DataFrame({1e-3: 2.0, 2e-3: 3.0}, index=list(EVERY))
    (ax,) = figures.rates(table, plateau=3.6, groups={"all": list(EVERY)}).axes
    looks = [(line.get_color(), line.get_linestyle()) for line in ax.lines if line.get_label() in LABELS.values()]
    assert len(looks) == len(set(looks)) == len(EVERY)
    groups = {"arms": list(TRIED), "controls": ["gpt2", *CONTROLS]}
    panels = figures.rates(table, plateau=3.6, groups=groups).axes
    assert [[t.get_text() for t in ax.get_legend().get_texts()] for ax in panels] == [
        [LABELS[a] for a in arms] for arms in groups.values()
    ]


def test_the_rates_at_the_ends_of_the_sweep():
    for search, (_, chosen) in rates.SEARCHED.items():
        values = {
            f"{point}-{searched(arm, lr)}": 2.0 + (lr != own)
            for point in ENDS
            for arm, own in chosen.items()
            for lr in end_rates(own)
        }
        finals = pd.DataFrame({"arm": values.keys(), "test_bits_per_byte": values.values()})
        put_runs(search, finals)
        assert set(values) == set(ARMS[search])
        if search == "share-recipe":
            assert rates.ends().startswith("Not all") and rates.ends().count("| – |") == 6
            learned = finals
    assert rates.ends().count("| – |") == 10 and rates.ends().endswith("One seed.")
    finals = learned
    other = finals.assign(
        test_bits_per_byte=finals["test_bits_per_byte"].where(finals["arm"] != "v16000-language-lr-0.002", 1.9)
    )
    put_runs("share-recipe", other)
    assert "| `v16000` | learned | language signs | 0.004 | 0.002 | 0.100 |" in rates.ends()
    assert "In 1 of the 10 rows the best is the lowest or the highest rate tried" in rates.ends()
    put_runs("share-recipe", finals[:-1])
    assert rates.ends().startswith("Not all of these runs are in yet")
    for search in rates.SEARCHED:
        put_runs(search, finals[:0])
    assert rates.ends().endswith("`.")


def test_the_second_rate_of_the_search():
    noise = {s: 0.001 * (s - 2.5) for s in range(6)}
    level = {"gpt2": 2.5, "lr-0.004-gpt2": 2.52, "language": 2.95, "lr-0.002-language": 2.85}
    finals = pd.DataFrame(
        [
            {"arm": arm, "seed": s, "test_bits_per_byte": v + noise[s] * len(arm)}
            for arm, v in level.items()
            for s in noise
        ]
    )
    put_runs(CENTRAL.experiment, finals)
    table = rates.second_table()
    assert list(table.index) == ["gpt2", "language"] and table.loc["language", "difference"] == pytest.approx(-0.1)
    # each at its better rate
    assert table.loc["language", "behind"] == pytest.approx(0.35) and pd.isna(table.loc["gpt2", "behind"])
    text = rates.second_rates()
    assert re.search(
        r"\| language signs \| 0.002 for 0.004 \| −0.100 \(.*\) \| 0.031 \| better \| \+0.350 \(.*\) \|", text
    )
    assert re.search(
        r"\| default \(GPT-2's\) \| 0.004 for 0.008 \| \+0.020 \(.*\) \| 0.062 \| worse by the interval, .* \| – \|",
        text,
    )
    assert "Not all in yet: mimetic's singular values" in text
    put_runs(CENTRAL.experiment, finals[finals["seed"] < 3])
    nothing = rates.second_rates()
    assert nothing.startswith("Not all in yet: default (GPT-2's), language signs, ") and "|" not in nothing
    put_runs(CENTRAL.experiment, finals[:0])
    assert rates.second_table().empty


def test_a_second_rate_that_the_exact_test_does_not_confirm():
    rows = [("gpt2", 2.5, 0), ("lr-0.004-gpt2", 2.52, 0), ("gpt2", 2.5, 1), ("lr-0.004-gpt2", 2.521, 1)]
    rows += [(arm, value, seed + 2) for arm, value, seed in rows] + [
        (arm, value, seed + 4) for arm, value, seed in rows[:2]
    ]
    finals = pd.DataFrame(rows, columns=["arm", "test_bits_per_byte", "seed"])
    put_runs(CENTRAL.experiment, finals)  # five pairs: p cannot be below 0.062
    assert "worse by the interval, which the exact test does not confirm" in rates.second_rates()


def test_the_second_rate_on_the_other_text():
    def put_pairs(effect, seeds=6):
        rows = [
            (arm, seed, 2.0 + 0.01 * seed + add * (1 + 0.1 * seed))
            for seed in range(seeds)
            for arm, add in (("gpt2", 0), ("lr-0.004-gpt2", effect))
        ]
        put_runs(WIKITEXT2.experiment, pd.DataFrame(rows, columns=["arm", "seed", "test_bits_per_byte"]))

    for effect, says in ((-0.02, "better"), (0.02, "worse"), (0.0, "not to be told apart")):
        put_pairs(effect)
        (row,) = (line for line in rates.second_rates().splitlines() if "on WikiText-2 |" in line)
        assert row.startswith("| default (GPT-2's), on WikiText-2 | 0.004 for 0.008 | ") and f" | {says} | " in row
    put_pairs(0.02, seeds=3)
    assert "on WikiText-2 (`python" in rates.second_rates()


def test_the_signs_at_one_rate_and_whether_they_add_up():
    # V·proj + costs .175, QK + .1 with it and .05 without
    level = {"language": 2.9, "vision": 2.7, "gpt2-signs": 2.8, "both-minus": 2.65}
    finals = pd.DataFrame(
        [
            {"arm": rates.AT_ONE_RATE[arm], "seed": s, "test_bits_per_byte": v + 0.001 * s * len(arm)}
            for arm, v in level.items()
            for s in range(6)
        ]
    )
    put_runs(CENTRAL.experiment, finals)
    text = rates.signs_at_one_rate()
    assert re.search(
        r"V·proj \+ instead of −: \+0\.17\d .*6 pairs, p 0\.031\), plus is worse\n\* QK \+ instead of − where V·proj is"
        r" \+: \+0\.09\d",
        text,
    )
    assert re.search(
        r"the same where V·proj is −: \+0\.04\d .*\n\* the difference between these two: \+0\.05\d .*the two differ$",
        text,
    )
    assert text.count("the exact test does not confirm") == 0
    # five seeds: p cannot be below 0.062
    put_runs(CENTRAL.experiment, finals[finals["seed"] < 5])
    assert "the two differ by the interval, which the exact test does not confirm" in rates.signs_at_one_rate()
    controls = [
        {"arm": arm, "seed": s, "test_bits_per_byte": 2.6 + 0.001 * s}
        for arm in ("rescaled", "random-directions")
        for s in range(6)
    ]
    put_runs(CENTRAL.experiment, pd.concat([finals, pd.DataFrame(controls)]))
    assert "Language signs at 0.002, their second rate: +0.3" in rates.beyond_size()
    put_runs(CENTRAL.experiment, finals)
    assert rates.beyond_size() == ""
    put_runs(CENTRAL.experiment, finals[finals["arm"] != "vision"])
    assert "not all in yet" in rates.signs_at_one_rate()
    assert all(
        named("tinyshakespeare" if arm in EVERY else "tinyshakespeare-rate", arm=arm).lr == GENTLE
        for arm in rates.AT_ONE_RATE.values()
    )


def test_runs_made_twice():
    assert rates.twins_sentence() == "" == rates.one_rate_sentence()
    put(CENTRAL, 0.1, seeds=SEEDS["central"])
    put(RATE, 0.1, seeds=(0, 1))
    assert re.search(r"4 runs were made twice .* differ by 0\.0\d\d", rates.twins_sentence())
    assert "2.000 at 0.002, 2.000 at 0.008" in rates.one_rate_sentence()


def test_the_search_takes_every_arms_best_rate_and_waits_for_the_rest():
    put_runs(SEARCH, search(gpt2=[2.7, 2.6, 2.5, 2.4, 2.45], language=[2.6, 2.8, 3.0, 3.3], qk=[2.5, 2.6]))
    assert rates.best_rates() == {"gpt2": 8e-3, "language": 1e-3}
    assert rates.rate_table().shape == (3, 5)
    text = rates.rates_sentence()
    assert "default (GPT-2's) 0.008 (2.400); language signs 0.001 (2.600)" in text
    assert "At the lowest rate tried: language signs." in text
    assert "Still to be searched: vision signs, QK only" in text
    (ax,) = figures.rates(rates.rate_table(), plateau=3.6, groups={"all": list(EVERY)}).axes
    assert [t.get_text() for t in ax.get_legend().get_texts()] == [LABELS[a] for a in ("gpt2", "language", "qk")]
    assert len(ax.lines) == 2 * 3 + 1


@pytest.mark.parametrize(
    ("rescaled", "random", "words"),
    [
        (3.4, 3.4, "Weights of that size are enough to slow a model down"),
        (2.5, 3.4, "The singular values are enough, without the identity"),
        (2.5, 2.5, "it takes the identity"),
    ],
)
def test_what_slows_a_model_down(rescaled, random, words):
    rows = {
        "gpt2": [2.7, 2.6, 2.5, 2.4, 2.45],
        "language": [2.6, 2.8, 3.0, 3.3],
        "rescaled": [3, 3, 3, rescaled],
        "random-directions": [3, 3, 3, random],
    }
    put_runs(SEARCH, search(**rows))
    text = rates.slow_sentence(3.6)
    assert words in text
    slow = 1 + (rescaled == 3.4) + (random == 3.4)
    assert f" {slow} arm{'s' * (slow > 1)} of 3 " in text and "language signs" not in text
    assert "One seed an arm" in text


def test_the_table_of_pairs_of_characters(monkeypatch):
    from mimetic.data import text

    monkeypatch.setitem(text.CORPORA, "pairs", text.Corpus({}, lambda _: ("ab" * 20_000, "ababab")))
    assert yardsticks.pair_model_bits("pairs") < 0.001
    rng = np.random.default_rng(0)
    fair = "".join(rng.choice(list("abcd"), 40_000))
    monkeypatch.setitem(text.CORPORA, "pairs", text.Corpus({}, lambda _: (fair[:30_000], fair[30_000:])))
    assert yardsticks.pair_model_bits("pairs") == pytest.approx(2, abs=0.01)


def test_tokens_look_at_themselves_before_training_from_the_pattern():
    table = yardsticks.attention_before_training(windows=2)
    itself, equal = table["first layer", "to itself"], table["first layer", "to itself or its equals"]
    # without any preference: the mean of 1/n over 128 tokens
    assert itself[LABELS["gpt2"]] == pytest.approx(100 * np.mean(1 / np.arange(1, 129)), abs=0.5)
    assert itself[LABELS["language"]] > 50 and (equal > itself).all() and (equal <= 100).all()


def test_fitted_constants_are_hardly_a_diagonal():
    text = answers.fitted_sentence()
    assert "where mimetic initialization has 11" in text and len(re.findall(r"[+−][\d.]+ to [+−][\d.]+ ", text)) == 2


def curves(gap, seeds):
    """Seeds whose gap to the default runs through these values."""
    rows = []
    for seed in seeds:
        for i, g in enumerate(gap):
            base = 3 - 0.1 * i
            rows += [
                {"arm": arm, "seed": seed, "step": 100 * (i + 1), "test_bits_per_byte": base + d}
                for arm, d in (("gpt2", 0), ("language", g))
            ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("gap", "early", "ahead", "behind"),
    [
        ([-0.3, -0.2, -0.1, 0.0], "−0.300", "100 to 300", "–"),
        ([-0.3, -0.3, -0.3, -0.3], "−0.300", "100 to the end", "–"),
        ([0.1, 0.2, -0.1, 0.1], "+0.100", "300", "100 to 200, the end"),
    ],
)
def test_on_the_way(gap, early, ahead, behind):
    frame = curves(gap, seeds=range(5))
    (line,) = answers.on_the_way({"learned": frame}).splitlines()[2:]
    value = f"{early} ({early} to {early}, 5 pairs)"
    assert line.replace(", exact p 0.062", "") == (
        f"| learned, language signs | {value} (step 100) | {ahead} | {behind} |"
    )
    few = curves(gap, seeds=(0, 1))
    assert answers.on_the_way({"learned": few}).endswith("| too few pairs | too few pairs |")
    left, right = figures.curves_and_gaps(few, reference="gpt2").axes
    drawn = [line.get_ydata() for line in right.get_lines() if len(line.get_ydata()) == 4]
    assert len(drawn) == 3 and all(np.allclose(y, gap) for y in drawn)
    panels = figures.gaps_on_the_way({"learned": few, "fixed": few}).axes
    assert [ax.get_title("left") for ax in panels] == ["learned", "fixed"]
    assert all(
        np.allclose(line.get_ydata(), gap) for ax in panels for line in ax.get_lines() if len(line.get_ydata()) == 4
    )


def test_seeds_that_do_not_agree_are_neither_ahead_nor_behind():
    frame = curves([0.1, -0.1, -0.1], seeds=range(5))
    other = (frame["seed"] == 3) & (frame["step"] == 200) & (frame["arm"] == "language")
    frame.loc[other, "test_bits_per_byte"] += 0.3
    assert answers.on_the_way({"learned": frame}).endswith("| the end | 100 |")


def test_products():
    put(CENTRAL, -0.05, seeds=(0,))
    products = recorded_products("tinyshakespeare", ("gpt2", "language"))
    config = named("tinyshakespeare")
    assert len(products) == 2 * 2 * config.depth * (config.num_heads + 1) and products["fold"].all()
    assert answers.kept(products).shape == (6, 4)
    assert len(figures.products_before_and_after(products).axes) == 4
    signs = pattern.verdicts(answers.causal_products())
    assert "our GPT, tinyshakespeare, d 128" in signs.index and signs.loc["SmolLM2-135M-Instruct", "V·proj z"] > 1


def test_the_committed_gpts_have_visions_sign_but_in_the_first_layer(monkeypatch):
    monkeypatch.delenv("MIMETIC_RUNS")
    head, _, learned, fixed, _ = answers.signs_by_layer().splitlines()
    assert head == "| V·proj of our GPTs, runs + / − | layer 0 | layer 1 | layer 2 | layer 3 | of |"
    assert learned == "| tinyshakespeare | 6 / 0 | 0 / 6 | 0 / 6 | 0 / 6 | 6 |"
    # with fixed positions in the first, too
    assert fixed == "| tinyshakespeare-sincos | 0 / 5 | 0 / 6 | 0 / 6 | 0 / 6 | 6 |"
