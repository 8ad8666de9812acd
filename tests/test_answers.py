"""Chapters' tables and sentences follow the records, also when few or none are there."""

import numpy as np
import pandas as pd
import pytest
import torch

from mimetic import factor_top_k, figures, semi_diagonal
from mimetic.book import common, growth, head_start, kept, parts, published, recipes
from mimetic.book import vision as answers
from mimetic.experiments.configs import ARMS, EXPERIMENTS, named
from mimetic.experiments.configs.vision import CHECK_RATES, CHECKED, FITTED
from mimetic.experiments.metrics import ACCURACY
from mimetic.experiments.programmes.vision import (
    ASKED_OF_POSITIONS,
    CENTRAL,
    NOISE_ONLY,
    PAIR,
    QUESTIONS,
    STUDIES,
    TRACE,
    lab_runs,
)
from mimetic.statistics import contrast, mean_interval, rests_on, side, slopes_per_doubling
from mimetic.training.records import load_runs

COUNTS = {"parameters.attention_qkv": 3, "parameters.attention_proj": 1, "parameters.total": 12}


def invented(gain=0.03, seeds=(0, 1, 2), experiment="cifar10-lab10", noise=0.004):
    """Finals for every run of the programme: the default at 50 %, every other arm ahead by gain."""
    rng, rows = np.random.default_rng(0), []
    for config in lab_runs():
        if config.experiment == experiment and config.seed in seeds:
            arm = config.arm or config.init
            accuracy = 0.5 + (0 if arm.endswith("timm") else gain) + noise * rng.standard_normal()
            fields = {
                "config.d_model": config.d_model,
                "config.depth": config.depth,
                "config.train_size": config.train_size,
            }
            rows.append({"arm": arm, "seed": config.seed, "epoch": 10, "test_accuracy": accuracy, **fields, **COUNTS})
    return pd.DataFrame(rows)


EMPTY = load_runs("nothing-of-this-name")


def test_both_noises_beside_the_controls_of_size(monkeypatch):
    assert "minus random directions +0.3 (" in parts.noise_only()
    # compared with its own machine's runs
    runs = [("timm", 0.5), ("mimetic", 0.54), (TRACE, 0.52)]
    there = pd.DataFrame([{"arm": arm, "seed": s, "test_accuracy": v} for arm, v in runs for s in range(3)])
    monkeypatch.setattr(common, "replicas", lambda experiment: there)
    assert parts.trace().endswith(
        "over the default +2.0 (+2.0 to +2.0, 3 pairs); minus mimetic initialization −2.0 (−2.0 to −2.0, 3 pairs)"
    )
    monkeypatch.setattr(common, "replicas", lambda experiment: EMPTY)
    assert parts.noise_only() == parts.trace() == ""


def test_whether_one_rate_suits_every_arm():
    assert "Not all of these runs are in yet" in recipes.rates_sentence(EMPTY) and recipes.rates_table(EMPTY).empty
    best = {"timm": 1e-3, "mimetic": 1e-3, "xavier": 2e-3}
    finals = pd.DataFrame(
        [
            {"arm": f"{arm}-lr-{lr:g}", "test_accuracy": 0.5 + (0.02 if lr == best.get(arm) else 0)}
            for arm in CHECKED
            for lr in CHECK_RATES
        ]
    )
    text = recipes.rates_sentence(finals)
    assert text.startswith("Better by more than 1 point at another rate: Xavier (best at 0.002, +2.0 points). ")
    assert text.endswith("(One seed; another would change a number by about a point.)")
    # level: the lowest counts
    assert (
        "A lower rate than the default's suits default at mimetic's norms, mimetic's singular values, random"
        " directions." in text
    )
    none = finals.assign(test_accuracy=[0.5 + 0.02 * arm.endswith("lr-0.001") for arm in finals["arm"]])
    assert recipes.rates_sentence(none).startswith("Every arm is best at 0.001, the common rate; we had expected")
    but_one = none.assign(test_accuracy=none["test_accuracy"] + 0.05 * (none["arm"] == "xavier-lr-0.004"))
    assert "suits none of the arms with large weights, **against our expectation**." in recipes.rates_sentence(but_one)
    assert recipes.rates_sentence(finals.assign(test_accuracy=0.5)).startswith("No arm is better by more than 1 point")
    assert "Not all" in recipes.rates_sentence(finals[1:]) and recipes.rates_table(finals[1:]).isna().sum().sum() == 1


def test_every_arm_is_compared_and_has_a_name():
    compared = {
        arm
        for study in STUDIES.values()
        if study.experiment == "cifar10-lab10"
        for arms in common.comparisons_of(study).values()
        for arm in arms
    }
    assert compared | {TRACE, NOISE_ONLY} == {
        "timm",
        "mimetic",
        "mimetic-qk",
        "mimetic-vp",
        "torch",
        "xavier",
        "timm-rescaled",
        *ARMS["cifar10-lab10"],
    }
    for study in STUDIES.values():
        names = common.comparisons_of(study)
        assert len(set(names.values())) == len(names)
    assert common.label("vp-beta-0.2") == "V·proj |β| 0.2" and common.label("qk-rank-8") == "QK rank 8"


@pytest.mark.parametrize(
    ("gain", "word"), [(0.03, "gains: +"), (-0.03, "loses: −"), (0.0, "no difference that these pairs can show")]
)
def test_verdict_words_follow_the_interval(gain, word):
    finals = invented(gain, seeds=(0, 1, 2, 3, 4), noise=0.002)
    if not gain:  # pairs that differ by chance, symmetric about 0
        finals["test_accuracy"] = 0.5 + 0.01 * (finals["arm"] != "timm") * (finals["seed"] - 2)
    text = answers.found("which-half", finals)
    assert text.count(word) == 3 and "runs are in" not in text
    if gain:  # four pairs of the same runs carry no claim
        few = answers.found("which-half", finals[finals["seed"] < 4])
        assert word not in few and few.count("so far: ") == few.count("4 pairs, too few for a claim") == 3


def test_what_is_missing_is_said():
    finals = invented()
    assert "*12 of 20 runs are in" in answers.found("which-half", finals)
    assert "nothing yet. *0 of 20 runs are in" in answers.found("which-half", EMPTY)
    one = answers.found("signs", finals[finals["seed"] == 0])
    assert "points in the only pair so far" in one
    # nine of the twelve central runs
    part = invented(experiment="cifar10-lab30", seeds=(0, 1, 2, 3))
    assert "*8 of 12 runs are in" in answers.planned(part)
    assert answers.planned(invented(experiment="cifar10-lab30", seeds=range(6))) == ""


@pytest.mark.parametrize(
    ("gain", "seeds", "words"),
    [
        (0.03, range(6), "is better: +"),
        (0.03, range(6), "p = 0.031, the least that 6 pairs can give."),
        (-0.03, range(6), "mimetic initialization is worse: −"),
        (0.03, range(5), "p = 0.062, the least that 5 pairs can give."),
        (0.0, range(6), "**No difference seen: "),
        (0.03, range(3), "**Too few pairs for a claim: +"),
        (0.03, range(3), "the smallest possible p is 0.250."),
        (0.03, range(1), "(1 paired seed, ahead in 1 of 1)"),
    ],
)
def test_central_answer(gain, seeds, words):
    assert words in answers.central(invented(gain, seeds, "cifar10-lab30"))


def test_nothing_yet_everywhere(monkeypatch):
    assert "No pair of runs is in yet" in answers.central(EMPTY)
    assert "No pair" in head_start.steps_sentence(EMPTY, EMPTY)
    tables, points, labels = growth.gain_panels(EMPTY)
    assert tables == points == labels == {} and growth.trends(points) == ""
    assert answers.pair_table(EMPTY).empty
    assert growth.sizes_table(EMPTY) == ""
    assert head_start.steps_saved(EMPTY, EMPTY).empty
    table, points = answers.ablation(["which-half", "signs"], EMPTY)
    assert table.empty and points.empty and answers.numbers(table).empty
    products, maps = kept.load_anatomy("nothing-of-this-name")
    assert "`python -m mimetic queue paper`" in kept.in_short(products, "cifar10-paper")
    assert kept.uniform_distance("cifar10-paper") > 1.9 * kept.uniform_distance("cifar10-lab30") > 7
    assert "not in yet" in kept.in_short(products) and kept.table(products, maps) == "" == kept.by_layer(products)
    assert answers.by_arm(EMPTY).empty
    monkeypatch.setattr(answers, "load_runs", lambda name: EMPTY)
    assert "no record yet" in answers.paper_scale()
    monkeypatch.setattr(
        answers, "load_runs", lambda name: pd.DataFrame({"arm": ["timm"], "seed": [0], "test_accuracy": [0.9]})
    )
    assert "No pair of runs is in yet. `python -m mimetic queue paper" in answers.paper_scale()


def test_steps_saved_worked_example():
    finals = pd.DataFrame({"arm": ["timm", "mimetic"] * 2, "seed": [0, 0, 1, 1], "test_accuracy": [0.5, 0.6, 0.7, 0.6]})
    steps, rising = [10, 20, 30, 40], [0.2, 0.4, 0.6, 0.6]
    own = {0: [0.1, 0.3, 0.6, 0.5], 1: [0.1, 0.3, 0.5, 0.7]}  # noisy: the first passes its last value before its end
    curves = pd.concat([pd.DataFrame({"arm": arm, "seed": s, "step": steps, "test_accuracy": values})
                        for s in (0, 1) for arm, values in (("mimetic", rising), ("timm", own[s]))])  # fmt: skip
    table = head_start.steps_saved(finals, curves)
    assert table["mimetic"].tolist() == pytest.approx([25 / 40, np.nan], nan_ok=True)
    assert table["default"].tolist() == pytest.approx([(20 + 10 * 2 / 3) / 40, 1.0])
    assert table["earlier by"].tolist() == pytest.approx([1 / 24, 0])
    text = head_start.steps_sentence(finals, curves)
    assert text.startswith(
        "The mimetic runs first reach the default's final accuracy after 81 % of the schedule, the default's own after"
        " 83 % (in 1 of 2 pairs"
    )
    assert ": **earlier by 2 % of the run** (95 % interval −24 to +29, 2 pairs)." in text
    way = head_start.on_the_way(curves, (0.5, 0.6, 0.7))  # worked by hand; 0.7 is never reached by the mimetic arm
    assert list(way) == [0.5, 0.6]
    assert way[0.5].tolist() == pytest.approx([1 / 24, 1 / 8])
    assert way[0.6].tolist() == pytest.approx([0, 1 / 8])
    assert (
        "50 by 8.3 % of the run (" in text
        and "The lead in time is largest" not in text
        and head_start.on_the_way(EMPTY) == {}
    )


@pytest.mark.parametrize(("gain", "word"), [(0.03, "Yes"), (-0.03, "No,"), (0.0, "Not visibly")])
def test_the_fewest_words(gain, word):
    rows = [
        {"arm": arm, "seed": s, "test_accuracy": 0.5 + (gain + 0.01 * (-1) ** s) * (arm == "mimetic")}
        for arm in PAIR
        for s in range(6)
    ]
    assert answers.yes_or_no(pd.DataFrame(rows)).startswith(word)
    assert answers.yes_or_no(EMPTY) == answers.yes_or_no(pd.DataFrame(rows[:2])) == "Not known yet"


def test_conditions_have_the_accuracies_themselves(monkeypatch):
    again = EMPTY
    monkeypatch.setattr(common, "replicas", lambda experiment: again)
    rows = []
    for i, (reference, arm) in enumerate(parts.CONDITIONS.values()):
        rows += [
            {
                "arm": a,
                "seed": s,
                "test_accuracy": 0.5 + 0.01 * gain + 0.001 * s,
                "device.name": "one",
                "experiment": "x",
            }
            for s in range(5)
            for a, gain in ((reference, 0), (arm, i))
        ]
    finals = pd.DataFrame(rows).drop_duplicates(["arm", "seed"])  # some conditions share an arm
    table = parts.conditions_table(finals)
    assert "(5 pairs each, on one; in brackets" in table
    assert "| learned positions, average pooling | 50.2 | 51.2 | +1.0 (+1.0 to +1.0) |" in table
    assert table.count("\n|") == 2 + len(parts.CONDITIONS) and "−" not in table
    assert "Made again" not in table  # no other machine's
    again = finals.assign(**{"device.name": "two"})
    monkeypatch.setattr(common, "replicas", lambda experiment: again)
    assert parts.conditions_table(finals) == table  # nothing else there
    again = again.assign(test_accuracy=again["test_accuracy"] - 0.03 * (again["arm"] == "learned-avg-mimetic"))
    last = (
        "\n\nMade again on another machine, *learned positions, average pooling* has −2.0 (−2.0 to −2.0) on two in"
        " place of one."
    )
    assert parts.conditions_table(finals) == table + last
    again = again[(again["seed"] < 4) | (again["arm"] != "learned-avg-mimetic")]
    assert parts.conditions_table(finals) == table  # a pair is missing
    assert (
        parts.conditions_table(finals[finals["seed"] < 4])
        == parts.conditions_table(finals[:0].assign(**{"device.name": ""}))
        == ""
    )


def test_an_arm_is_not_sooner_than_itself():
    rng = np.random.default_rng(0)
    rows = [
        {"arm": arm, "seed": s, "step": e, "test_accuracy": value}
        for s in range(6)
        for e, value in enumerate(1 - 0.9 ** np.arange(1, 31) + 0.02 * rng.standard_normal(30), 1)
        for arm in PAIR
    ]
    curves = pd.DataFrame(rows)
    table = head_start.steps_saved(curves[curves["step"] == 30], curves)
    assert (table["earlier by"] == 0).all() and table["default"].mean() < 1  # which would have been called time saved


def test_recipe_rule():
    finals = pd.DataFrame(
        {"arm": ["base", "base", "a", "b"], "seed": [0, 1, 0, 0], "test_accuracy": [0.50, 0.502, 0.505, 0.4]}
    )
    assert "`a`, is 0.5 points ahead of the base with the same seed" in recipes.recipe_sentence(finals)
    assert "so the base was kept" in recipes.recipe_sentence(finals)
    better = finals.assign(test_accuracy=[0.5, 0.52, 0.53, 0.4])
    assert "it replaces the base's value" in recipes.recipe_sentence(better)
    assert recipes.recipe_table(finals).index[0] == "a"


def test_the_frozen_recipe_is_what_the_committed_search_says():
    finals = load_runs("cifar10-recipe")
    assert not finals.empty and "the base was kept" in recipes.recipe_sentence(finals)
    base, lab = EXPERIMENTS["cifar10-recipe"], EXPERIMENTS["cifar10-lab30"]
    for field in (
        "lr",
        "weight_decay",
        "warmup",
        "randaugment_ops",
        "crop_padding",
        "flip",
        "batch_size",
        "label_smoothing",
        "grad_clip",
    ):
        assert getattr(base, field) == getattr(lab, field)


def test_a_trend_is_a_slope_over_seeds_and_may_hang_on_one_size():
    def dots(slope, sizes=(64, 96, 128, 192), seeds=5):
        return pd.DataFrame(
            [
                {"x": x, "seed": s, "difference": (slope + 0.001 * (s - 2)) * np.log2(x)}
                for x in sizes
                for s in range(seeds)
            ]
        )

    def cells(frame):
        return [cell.strip() for cell in growth.trends({"width": frame}).splitlines()[2].strip("|").split("|")]

    assert cells(dots(0.01))[:3] == ["width (heads of 32)", "+1.0 (+0.8 to +1.2, 5 pairs)", "–"]
    assert "0.0 (−0.2 to +0.2" in cells(dots(0))[1]
    assert cells(dots(0))[3] == "none"
    broken = dots(0.0).assign(difference=lambda t: t["difference"] - 0.05 * (t["x"] == 192))
    assert cells(broken)[2].startswith("without 192: ")
    assert cells(broken)[2].count("without") == 1
    assert cells(broken)[3].startswith("64 and 192: −5.0 (")
    assert list(rests_on(broken)) == [192] and rests_on(dots(0.01)) == {} == rests_on(dots(0))
    assert growth.trends({"width": dots(0.01, sizes=(64, 96))}) == "" == growth.trends({})


def at_twelve(gains, device="a CPU", seeds=5):
    return pd.DataFrame(
        [
            {
                "arm": f"depth12{arm}",
                "seed": s,
                "device.name": device,
                "test_accuracy": 0.5 + gain + 0.001 * s,
                "train_loss": 1.0,
            }
            for arm, gain in gains.items()
            for s in range(seeds)
        ]
    )


def test_twelve_layers_at_both_rates(monkeypatch):
    finals = pd.concat(
        [
            at_twelve({"-timm": 0.06, "-mimetic": 0.04}, "a GPU"),
            at_twelve({"-half-timm": 0.04, "-half-mimetic": 0.055}, seeds=10),
        ],
        ignore_index=True,
    )
    held = {"timm": (0.51, 0.55), "mimetic": (0.55, 0.42)}  # at half the rate, at the recipe's
    rates = pd.DataFrame(
        [
            {
                "arm": f"depth12-{arm}-lr-{lr:g}",
                "seed": 0,
                "device.name": "a CPU",
                "test_accuracy": v,
                "train_loss": 1.0,
            }
            for arm, values in held.items()
            for lr, v in zip((0.0005, 0.001), values)
        ]
    )
    again = at_twelve({"-timm": 0.06, "-mimetic": 0.05}, seeds=2)
    monkeypatch.setattr(growth, "load_runs", lambda experiment: {"cifar10-rates": rates}.get(experiment, EMPTY))
    monkeypatch.setattr(common, "replicas", lambda experiment: {"cifar10-lab10": again}.get(experiment, EMPTY))
    lines = growth.twelve(finals).splitlines()
    assert lines[2] == "| at the rate chosen for six | −2.0 (−2.0 to −2.0, 5 pairs) | 0 of 5 |"
    assert lines[3] == "| the same pairs again, on a CPU | −1.0 (−1.0 to −1.0, 2 pairs) | 0 of 2 |"
    assert lines[4] == "| at half that rate | +1.5 (+1.5 to +1.5, 10 pairs) | 10 of 10 |"
    assert lines[5].endswith("5 pairs) | 5 of 5 |")
    assert "those added" in lines[6]
    assert (
        "each arm at its better rate (the default's 0.001, mimetic initialization's 0.0005; on a CPU and a GPU) |"
        " −0.5 (" in lines[7]
    )
    assert (
        lines[-1]
        == "| the default alone: at half the rate minus at that for six | −2.0 (−2.0 to −2.0, 5 pairs) | 0 of 5 |"
    )
    table = growth.repeated(finals)
    assert table.iloc[:, 0].tolist() == [-2.0] * 5
    assert table.iloc[:, 1].tolist() == [-1.0, -1.0, "", "", ""]
    assert table.iloc[0, 2] == -13.0
    assert growth.held_back().splitlines()[2:] == ["| default | 51.0 % | 55.0 % |", "| mimetic | 55.0 % | 42.0 % |"]
    rates = again = EMPTY
    assert growth.twelve(EMPTY) == "" and growth.repeated(EMPTY).empty and "queue lab" in growth.held_back()
    assert "better rate" not in growth.twelve(finals)


def test_the_gain_by_number_of_images():
    rows = [
        {
            "arm": f"{prefix}{arm}",
            "seed": s,
            "test_accuracy": 0.5 + 0.05 * (arm == "mimetic") + 0.03 * (prefix == "n50000-"),
            "train_accuracy": 0.75,
            "test_loss": 1.0 - 0.1 * (arm == "mimetic") * (prefix != "n2000-"),
        }
        for prefix in ("", "n2000-", "n5000-", "n50000-")
        for arm in PAIR
        for s in range(5)
    ]
    lines = growth.data_table(pd.DataFrame(rows)).splitlines()
    cells = [cell.strip() for cell in lines[2].strip("|").split(" | ")]
    assert cells[0] == "2,000 images" and cells[2] == "10.0 %" and cells[4] == "20 / 25"
    assert cells[1] == "+5.0 (+5.0 to +5.0, 5 pairs)" and cells[3] == "+0.000 (+0.000 to +0.000)"
    assert cells[5] == "+0.0 (+0.0 to +0.0, 5 pairs)"
    assert lines[3].split(" | ")[3] == "−0.100 (−0.100 to −0.100)"
    assert lines[4].endswith("| 20 / 25 |  |") and lines[5].endswith(" | +3.0 (+3.0 to +3.0, 5 pairs) |")
    assert len(lines) == 6 and growth.data_table(EMPTY) == ""


def test_chapter_8_says_what_the_records_say():
    """Its answer, and what it says of twelve layers and of few images, are written
    by hand: they hold as long as this does.
    """
    finals, curves, replicas = (
        load_runs("cifar10-lab10"),
        load_runs("cifar10-lab10", curves=True),
        common.replicas("cifar10-lab10"),
    )
    _, dots, _ = growth.gain_panels(finals)
    slopes = {title: slopes_per_doubling(frame) for title, frame in dots.items()}
    assert {title: side(v) for title, v in slopes.items()} == {"width": -1, "depth": -1, "data": 1}
    assert {title: list(rests_on(frame)) for title, frame in dots.items()} == {
        "width": [192],
        "depth": [12],
        "data": [2_000],
    }
    apart = {title: set(growth._apart(frame)) for title, frame in dots.items()}
    assert apart == {
        "width": {(64, 192), (96, 192)},
        "depth": {(3, 12), (6, 12)},
        "data": {(2_000, x) for x in (5_000, 10_000, 50_000)},
    }
    # twelve layers
    full, half = ({f"depth12{rate}-mimetic": 1, f"depth12{rate}-timm": -1} for rate in ("", "-half"))
    first, added = growth.before_and_after_the_look(contrast(finals, half))
    assert [
        side(v) for v in (contrast(finals, full), contrast(replicas, full), contrast(finals, half), first, added)
    ] == [0, 0, 1, 0, 1]
    assert len(first) == len(added) == 5
    assert side(growth.half_costs(finals)[0]) == -1 and side(growth.better_rates(finals)[0]) == 0
    rates = load_runs("cifar10-rates").set_index("arm")["train_loss"]
    again = replicas[replicas["seed"] == 0].set_index("arm")["train_loss"]
    moved = {arm: abs(again[f"depth12-{arm}"] - rates[f"depth12-{arm}-lr-0.001"]) for arm in PAIR}
    assert moved["timm"] == pytest.approx(0.001, abs=0.0005) and moved["mimetic"] == pytest.approx(0.25, abs=0.005)
    # few images
    gain = {
        prefix: contrast(finals, {f"{prefix}mimetic": 1, f"{prefix}timm": -1}).mean()
        for prefix in ("", "n2000-", "n5000-", "n50000-")
    }
    assert min(gain, key=gain.get) == "n2000-"
    assert side(contrast(finals, {"n2000-mimetic": 1, "n2000-timm": -1}, "test_loss")) == 0
    above = {
        arm: (part["train_accuracy"] - part["test_accuracy"]).mean()
        for arm, part in finals.groupby("arm")
        if arm in ("n2000-timm", "n2000-mimetic")
    }
    assert 0.1 < above["n2000-timm"] < above["n2000-mimetic"]
    by_epoch = growth.gaps(curves, ("d 96, depth 6", "2,000 images"))
    few, many = (by_epoch[name]["difference"] for name in ("2,000 images", "d 96, depth 6"))
    config = EXPERIMENTS["cifar10-lab10"]
    assert few.idxmax() == 2
    assert few[2] > many[2]
    assert few.iloc[-1] < many.iloc[-1]
    assert 2 * config.epoch_images / 2_000 == 10


def test_contrasts_are_worked_out_seed_by_seed():
    finals = invented(0.03, seeds=range(5), noise=0.002)
    finals.loc[finals["arm"] == "random-directions", "test_accuracy"] -= 0.03  # no better than the default
    table = common.contrast_table(STUDIES["structure"], finals)
    wide = finals.pivot(index="seed", columns="arm", values="test_accuracy")
    expected = (wide["mimetic"] - wide["random-directions"]).mean()
    assert table.loc["mimetic minus random directions", "difference"] == pytest.approx(expected) and expected > 0.02
    text = answers.found("structure", finals)
    assert f"* mimetic minus random directions: {ACCURACY.signed(expected)} points" in text and "; a difference" in text
    turned = finals.assign(test_accuracy=finals["test_accuracy"] + 0.06 * (finals["arm"] == "untransposed"))
    assert "**against our expectation**" in answers.found("structure", turned)
    assert "too few pairs for a verdict" in answers.found("structure", finals[finals["seed"] < 3])
    both = common.contrast_table(STUDIES["which-half"], finals).loc["both, beyond the sum of the halves", "difference"]
    assert both == pytest.approx((wide["mimetic"] - wide["mimetic-qk"] - wide["mimetic-vp"] + wide["timm"]).mean())
    asked = [asked.arms for questions in ASKED_OF_POSITIONS.values() for _, asked in questions]
    assert {len(contrast(finals, arms)) for arms in asked} == {5}


def test_the_lead_by_epoch():
    rows = [
        {"arm": arm, "seed": s, "epoch": e, "test_accuracy": 0.1 * e + (lead[e - 1] + 0.001 * s) * (arm == "mimetic")}
        for lead in [(0.06, 0.01, 0.03, 0.03)]
        for arm in ("timm", "mimetic")
        for s in range(5)
        for e in (1, 2, 3, 4)
    ]
    curves = pd.DataFrame(rows)
    assert head_start.gap_by_epoch(curves)["difference"].tolist() == pytest.approx([0.062, 0.012, 0.032, 0.032])
    text = head_start.gap_sentence(curves)
    assert "+6.2 points after the first epoch, at its smallest at epoch 2 (+1.2, " in text
    assert "it is more than a head start" in text
    behind = curves.assign(
        test_accuracy=curves["test_accuracy"] - 0.1 * ((curves["arm"] == "mimetic") & (curves["epoch"] == 4))
    )
    assert "a head start that ends behind the default" in head_start.gap_sentence(behind)
    assert "Too few pairs" in head_start.gap_sentence(curves[curves["seed"] < 2])
    assert "No pair" in head_start.gap_sentence(EMPTY)
    assert len(figures.gap(head_start.gap_by_epoch(curves)).axes[0].lines) == 2


def test_norms_and_fitted_constants_are_tabled():
    table = answers.norm_table()
    assert table.loc["default (trunc-normal .02)", "QK product"] > 30
    assert table.loc["Xavier", "V·proj product"] < 1
    assert len(table) == 3
    table = answers.fitted_table()
    assert len(table) == 2 * len(FITTED)
    for (name, product), row in table.iterrows():
        part = {"QK: α, β": "qk", "V·proj: α, β": "vp"}[product]
        constants = [tuple(map(float, cell.replace("−", "-").split(", "))) for cell in row]
        assert constants == list(zip(FITTED[name][f"{part}_alpha"], FITTED[name][f"{part}_beta"]))


def test_figures_of_the_whole_programme():
    finals = invented()
    table, points = answers.ablation([s.name for s in QUESTIONS if s.name not in ("size", "data")], finals)
    (ax,) = figures.comparisons(table, points, band=answers.band(finals)).axes
    assert set(table.index) <= {text.get_text() for text in ax.texts} and table["pairs"].eq(3).all()
    assert [text.get_text() for text in ax.texts].count("n = 3") == len(table)
    tables, dots, xlabels = growth.gain_panels(finals)
    assert list(tables) == ["width", "depth", "data"]
    assert tables["width"]["x"].tolist() == [64, 96, 128, 192]
    assert tables["data"]["x"].tolist() == [
        2000,
        5000,
        10000,
        50000,
    ]
    assert len(figures.gains(tables, dots, xlabels=xlabels, log=["data"]).axes) == 3
    assert "p" in answers.numbers(table)
    table, points = parts.every_arm(finals)
    assert {"V·proj without its noise", "sin-cos in a random order, average (CPU)"} <= set(table.index)
    assert set(table.index) == set(points["label"]) and table.index.is_unique
    # the numbers of both figures; the gain of mimetic initialization, three rows of the first, once
    constants, _ = answers.ablation(["constants"], finals)
    assert len(parts.every_number(finals)) == len(table) - 2 + len(constants)
    assert parts.every_number(EMPTY).empty
    assert answers.between("constants", finals).startswith("* QK's noise alone, beside V·proj, minus V·proj only: ")
    assert "QK |α|" not in answers.between("constants", finals)
    assert any(
        line.startswith("| d 192 | 12 | 50.") and "3 pairs) |" in line
        for line in growth.sizes_table(finals).splitlines()
    )


def test_what_weight_decay_alone_leaves_is_what_the_optimiser_does():
    from mimetic.experiments.runs import train_config
    from mimetic.training.loop import learning_rate, make_optimizer

    settings, model = train_config(EXPERIMENTS["cifar10-lab30"]), torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(model.weight)
    optimizer = make_optimizer(model, settings)
    steps = 10_000 // EXPERIMENTS["cifar10-lab30"].batch_size
    for step in range(settings.epochs * steps):
        optimizer.param_groups[0]["lr"] = learning_rate(step, settings, steps)
        model.weight.grad = torch.zeros_like(model.weight)
        optimizer.step()
    assert kept.left_by_decay("cifar10-lab30") == pytest.approx(model.weight.item() ** 2, rel=1e-4)


def test_a_longer_schedule_against_a_shorter_one(monkeypatch):
    def runs(gain, seeds, device):
        return pd.DataFrame(
            [
                {
                    "experiment": "cifar10-lab30",
                    "arm": arm,
                    "seed": s,
                    "test_accuracy": 0.5 + (arm == "mimetic") * (gain + 0.001 * s),
                    "device.name": device,
                }
                for s in seeds
                for arm in PAIR
            ]
        )

    here, short = runs(0.02, range(6), "a CPU"), runs(0.05, range(3), "a card")
    again = pd.concat([runs(0.04, (0, 1), "a CPU"), runs(0.09, (2, 3), "a card")])
    monkeypatch.setattr(head_start, "load_runs", lambda experiment: short)
    monkeypatch.setattr(common, "replicas", lambda experiment: again)
    (everywhere, _), (one_machine, row) = head_start.schedules(here)
    assert (
        everywhere
        == "+5.1 points after 10 epochs, +2.1 after 30 (3 pairs, the shorter runs on a card; difference −3.0, −3.0 to"
        " −3.0)"
    )
    assert one_machine == "+4.1 points after 10 epochs, +2.1 after 30 (2 pairs; difference −2.0, −2.0 to −2.0)"
    assert (
        row["high"] < 0
        and "In a longer schedule the lead is smaller: at the end of runs planned for 10 or for 30 epochs, of the same"
        f" seeds, it is {one_machine}. The figure cannot"
        in head_start.shorter(here)
    )
    short = again = EMPTY
    assert head_start.schedules(here) == []
    assert (
        head_start.shorter(here)
        == ""
        == head_start.shorter(EMPTY)
        == head_start.shorter(here.assign(experiment="cifar10-paper"))
    )


def test_an_end_of_an_interval_that_is_not_0_is_not_shown_as_0():
    assert ACCURACY.span(0.0004, 0.0179) == "+0.04 to +1.79" and ACCURACY.span(-0.0179, -0.0004) == "−1.79 to −0.04"
    assert ACCURACY.span(0.0006, 0.0179) == "+0.1 to +1.8" and ACCURACY.span(0.0, 0.0179) == "+0.0 to +1.8"


def product_sizes(d: int, k: int, alpha: float = 0.7, beta: float = 0.7, draws: int = 10, seed: int = 0) -> pd.Series:
    """Mean Frobenius norm over draws of alpha Z + beta I cut to rank k: of both, and with one of the constants at 0."""
    generator = torch.Generator().manual_seed(seed)
    cases = {"both": (alpha, beta), "no diagonal": (alpha, 0.0), "no noise": (0.0, beta)}
    products = {
        name: [factor_top_k(semi_diagonal(d, *constants, generator=generator), k) for _ in range(draws)]
        for name, constants in cases.items()
    }
    return pd.Series(
        {name: sum((left @ right).norm().item() for left, right in pairs) / draws for name, pairs in products.items()}
    )


def test_what_a_constant_at_nothing_makes_smaller():
    sizes = product_sizes(64, 64, draws=4)  # whole: alpha Z + beta I has the norm sqrt((alpha^2 + beta^2) d)
    assert sizes["no noise"] == pytest.approx(0.7 * 8)
    assert sizes["no diagonal"] == pytest.approx(0.7 * 8, rel=0.05)
    assert sizes["both"] == pytest.approx(0.7 * 8 * 2**0.5, rel=0.05)
    sizes = product_sizes(96, 32)  # of the laboratory's models, as chapter 7 has it
    assert (1 - sizes["no diagonal"] / sizes["both"], 1 - sizes["no noise"] / sizes["both"]) == pytest.approx(
        (0.27, 0.51), abs=0.005
    )


def test_anatomy_of_recorded_runs():
    products, maps = kept.load_anatomy("cifar10-recipe", arms=("base",))
    assert set(products["when"]) == {"before", "after"} and products["fold"].all()
    config = named("cifar10-lab30")
    seeds = products["seed"].nunique()
    assert len(products) == 2 * seeds * config.depth * (config.num_heads + 1)
    assert len(maps) == 2 * seeds * config.depth * config.num_heads
    assert kept.table(products, maps).startswith("| before → after training | base |")
    assert "not in yet" in kept.in_short(products)
    central, _ = kept.load_anatomy()
    text = kept.in_short(central)
    of_mimetic = (
        central[(central["arm"] == "mimetic") & (central["product"] == "vp")]
        .groupby(["seed", "when"])["diag_mean"]
        .mean()
        .unstack()
    )
    assert f" {common.percent((of_mimetic['after'] / of_mimetic['before']).mean(), 1)} (" in text.splitlines()[4]
    assert text.count("\n") == 8
    assert kept.by_layer(central).count("\n") == 1 + config.depth
    assert len(figures.before_and_after(products, maps, uniform_distance=4.1).axes) == 3


def _diagonals(arms, seeds=range(3)):
    """arm -> {product: (before, after)} as recorded products."""
    return pd.DataFrame(
        [
            {
                "arm": arm,
                "seed": s,
                "when": when,
                "layer": 0,
                "head": 0,
                "product": product,
                "diag_mean": value * (1 + 0.001 * s),
                "offdiag_sd": 0.05,
                "sigmas": value * 100,
            }
            for arm, both in arms.items()
            for product, values in both.items()
            for when, value in zip(("before", "after"), values)
            for s in seeds
        ]
    )


@pytest.mark.parametrize("left", [0.9, 0.2])
def test_whether_a_wrong_sign_is_kept(monkeypatch, left):
    made = {
        arm: {
            p: (side * 0.4, side * 0.4 * left)
            for p, side in zip(("qk", "vp"), (1 if sign == "+" else -1 for sign in signs))
        }
        for arm, signs in kept.SIGNS.items()
    }
    monkeypatch.setattr(
        kept,
        "recorded_products",
        lambda experiment, arms, fold=True: _diagonals({a: made[a] for a in arms if a in made}),
    )
    assert (
        f"| QK −, V·proj + | {100 * left:.1f} % ({100 * left:.1f} to {100 * left:.1f}) | {100 * left:.1f} % ("
        in kept.either_sign()
    )
    del made["vp-plus"]
    assert kept.either_sign() == ""


def test_what_large_weights_grow_by_themselves(monkeypatch):
    made = {
        "timm": {"qk": (0, -0.003), "vp": (0, -0.01)},
        "random-directions": {"qk": (0, 0.004), "vp": (-0.001, -0.03)},
    }
    monkeypatch.setattr(
        kept,
        "recorded_products",
        lambda experiment, arms, fold=True: _diagonals({a: made[a] for a in arms if a in made}),
    )
    text = kept.by_itself()
    assert "| default | −0.0030 (" in text
    assert "−0.0100 (" in text
    assert "random directions | +0.0040 (" in text
    assert "−0.0300 (" in text
    del made["random-directions"]
    assert kept.by_itself() == ""


def test_chapter_9_says_what_the_records_say():
    """Its prose is written by hand: it holds as long as this does."""
    products, maps = kept.load_anatomy()
    raw = kept.shares_kept(kept.recorded_products("cifar10-lab30", ("mimetic",), fold=False))
    decay = kept.left_by_decay("cifar10-lab30")
    assert len(raw) >= 5
    assert mean_interval(raw["vp"])[0] > decay > mean_interval(raw["qk"])[1]
    assert decay - raw["qk"].mean() < 0.04
    assert (kept.shares_kept(products) > 0.8).all(axis=None)
    assert (kept.shares_kept(products, what="z") < 0.95).all(axis=None)
    wrong, less = kept.kept_by_sign(), kept.left_by_decay("cifar10-lab10")
    ends = {arm: [mean_interval(shares[p]) for p in ("qk", "vp")] for arm, shares in wrong.items()}
    assert all(0.9 < low and high < 0.98 for both in ends.values() for low, high in both)
    assert all(ends[arm][1][0] > less for arm in ("mimetic", "vp-plus"))
    assert all(ends[arm][1][0] < less for arm in ("both-flipped", "qk-minus"))
    assert (
        side(contrast(load_runs("cifar10-lab10"), {"qk-minus": 1, "mimetic": -1}))
        == side(contrast(load_runs("cifar10-lab10"), {"vp-plus": 1, "mimetic": -1}))
        == -1
    )
    after = products[(products["arm"] == "timm") & (products["when"] == "after")]
    below = (
        after[after["product"] == "vp"].assign(below=after["sigmas"] < -kept.CHANCE).groupby("layer")["below"].mean()
    )
    assert (below.iloc[:-1] == 1).all() and below.iloc[-1] < 0.5
    layers = after[after["product"] == "qk"].groupby("layer")["diag_mean"].mean()
    by_seed = after[after["product"] == "qk"].groupby(["layer", "seed"])["diag_mean"].mean()
    assert [side(by_seed[layer]) for layer in range(6)] == [1, 1, 1, 0, -1, -1]
    assert abs(layers.mean()) < 0.1 * layers.abs().max()
    written = (
        products[(products["arm"] == "mimetic") & (products["when"] == "after")]
        .groupby("product")["diag_mean"]
        .mean()
        .abs()
    )
    assert layers.abs().max() < 0.06 * written["qk"]
    assert after[after["product"] == "vp"]["diag_mean"].mean() > -0.05 * written["vp"]
    z = products[(products["when"] == "after") & (products["product"] == "vp")].groupby("arm")["z"].mean()
    assert 11 < z["mimetic"] / z["timm"] < 13
    wider = maps.pivot_table(index=["arm", "layer", "seed"], columns="when", values="distance")
    wider = wider["after"] - wider["before"]
    assert [side(wider[arm].groupby("seed").mean()) for arm in ("mimetic", "timm")] == [1, -1]
    assert [side(wider["timm"][layer]) for layer in range(6)] == [-1, -1, -1, 0, 0, 0]
    assert [side(wider["mimetic"][layer]) for layer in range(6)] == [1, 1, 1, 1, 1, 0]
    grown = kept.grown().groupby(["arm", "product"]).mean()
    assert 0.9 < grown["random-directions", "vp"] / grown["timm", "vp"] < 1.3
    assert mean_interval(kept.grown()["random-directions", "vp"])[1] < 0
    ten, _ = kept.load_anatomy("cifar10-lab10", ("timm", "random-directions"))
    spread = ten[(ten["product"] == "vp") & (ten["when"] == "after")].groupby("arm")["offdiag_sd"].mean()
    assert 3.5 < spread["random-directions"] / spread["timm"] < 4.7
    assert kept.beyond_chance(ten, "timm", "vp")[1] > 2.5 * kept.beyond_chance(ten, "random-directions", "vp")[1]


def test_published_numbers_have_a_source():
    table = published.numbers()
    assert table["source"].str.len().gt(5).all() and len(table) > 5
    assert published.table().count("\n") == len(table) + 1
    assert CENTRAL.experiment == "cifar10-lab30"


def test_the_parts_in_a_figure():
    finals = invented(0.03, seeds=(0, 1, 2, 3, 4), noise=0.0)
    table, points = parts.answer(finals)
    assert len(table) == sum(len(study.comparisons) for study in parts.ANSWER) and table.index.is_unique
    assert table.loc["all of it", "difference"] == pytest.approx(0.03)
    assert set(table.index) == set(points["label"]) and len(points) == 5 * len(table)
    assert parts.answer(EMPTY)[0].empty
    said = parts.over_torch(finals)
    nothing = "+0.0 (+0.0 to +0.0, 5 pairs)"
    assert said == f"* one product alone, minus PyTorch's default: QK {nothing}; V·proj {nothing}"
    assert parts.over_torch(EMPTY) == ""


def test_chapter_7_says_what_the_records_say():
    """Its answer, and what it says of the constants, are written by hand: they hold as long as this does."""
    finals, replicas = load_runs("cifar10-lab10"), common.replicas("cifar10-lab10")
    xavier, torchs = (contrast(finals, {arm: 1, "timm": -1}) for arm in ("xavier", "torch"))
    assert side(xavier) == 0 and side(torchs) == 1
    assert contrast(finals, {"mimetic": 1, "xavier": -1}).mean() > contrast(finals, {"mimetic": 1, "timm": -1}).mean()
    there = pd.concat([finals[finals["arm"].str.startswith("shuffled-avg")], replicas])
    over_none = [contrast(there, {f"shuffled-avg-{arm}": 1, "none-avg-timm": -1}).mean() for arm in ("timm", "mimetic")]
    assert [round(100 * value) for value in over_none] == [-2, 2]  # of about two points
    assert side(contrast(finals, {"from-sincos-token-mimetic": 1, "from-sincos-token-timm": -1})) == 1

    def gain(arm, other="timm", runs=finals):
        values = contrast(runs, {arm: 1, other: -1})
        assert len(values) >= 5 or runs is replicas
        return values

    whole = gain("mimetic").mean()
    assert side(gain("mimetic-qk")) == side(gain("mimetic-vp")) == 1
    assert side(gain("mimetic-vp", "mimetic-qk")) == 1 and side(gain("mimetic")) == side(gain("mimetic", "torch")) == 1
    # nearly half, and all
    assert 0.4 < -gain("vp-beta-0", "mimetic").mean() / whole < 0.5 and side(gain("vp-alpha-0")) == 0
    assert side(gain("qk-minus", "qk-beta-0")) == -1 and side(gain("mimetic", "qk-beta-0")) == 0
    sizes = [gain(arm) for arm in ("timm-rescaled", "random-directions")]
    assert max(v.mean() for v in sizes) / whole == pytest.approx(0.35, abs=0.02)
    assert [side(gain(arm, runs=replicas)) for arm in ("timm-rescaled", "random-directions")] == [0, 0]
    assert gain("mimetic", "torch").mean() < whole
    assert [side(gain(arm, "torch")) for arm in ("mimetic-qk", "mimetic-vp")] == [0, 0]
    pooled = {
        kind: side(contrast(finals, {f"{kind}-mimetic": 1, f"{kind}-timm": -1}))
        for kind in ("learned-avg", "none-avg", "learned-token", "none-token")
    }
    assert pooled == {"learned-avg": -1, "none-avg": 0, "learned-token": 0, "none-token": 1}
    spread = [gain("mimetic-vp", runs=runs) for runs in (finals, replicas)]
    assert mean_interval(spread[1])[1] - mean_interval(spread[1])[0] > 3 * (
        mean_interval(spread[0])[1] - mean_interval(spread[0])[0]
    )
    # the noise without either diagonal
    noise = {
        other: gain(NOISE_ONLY, other, replicas) for other in ("timm", "mimetic", "timm-rescaled", "random-directions")
    }
    assert all(len(v) == 5 for v in noise.values()) and side(noise["mimetic"]) == -1 and side(noise["timm"]) == 1
    assert side(noise["timm-rescaled"]) == side(noise["random-directions"]) == 0
    assert 0.2 < noise["timm"].mean() / gain("mimetic", runs=replicas).mean() < 0.3
    # positions in a random order
    assert side(gain("shuffled-avg-mimetic", "shuffled-avg-timm")) == 1
    lost = gain("mimetic", runs=replicas) - gain("shuffled-avg-mimetic", "shuffled-avg-timm")  # of one machine
    assert len(lost) == 5 and side(lost) == 0 and mean_interval(lost)[1] < whole / 2
    started = gain("from-sincos-avg-mimetic", "from-sincos-avg-timm")
    assert side(started) == 1
    assert side(gain("mimetic", runs=replicas) - started) == 0
    assert side(started - gain("learned-avg-mimetic", "learned-avg-timm")) == 1
    noise, shuffled = (gain(f"{kind}-avg-mimetic", f"{kind}-avg-timm") for kind in ("from-noise", "shuffled"))
    assert (
        side(noise)
        == side(noise - gain("learned-avg-mimetic", "learned-avg-timm"))
        == side(started - noise)
        == side(shuffled - noise)
        == 1
    )
    assert noise.mean() < 0.25 * started.mean()
    # a random order gains more than noise because it is worse for the default, below no position at all; mimetic
    # initialization ends alike
    assert side(gain("shuffled-avg-timm", "noise-avg-timm")) == -1 == side(gain("shuffled-avg-timm", "none-avg-timm"))
    assert side(gain("shuffled-avg-mimetic", "noise-avg-mimetic")) == 0
    assert (
        gain("shuffled-avg-timm").mean()
        == pytest.approx(-0.06, abs=0.005)
        == gain("shuffled-avg-mimetic", "mimetic").mean()
    )
    # the constants
    twice, half = (
        ("qk-alpha-1.4", "qk-beta-1.4", "vp-alpha-0.8", "vp-beta-0.8"),
        ("qk-alpha-0.35", "qk-beta-0.35", "vp-alpha-0.2", "vp-beta-0.2"),
    )
    assert [side(gain(arm, "mimetic")) for arm in twice] == [-1] * 4
    assert [side(gain(arm, "mimetic")) for arm in half] == [0, 1, 0, 0]
    assert [
        side(gain(arm, "mimetic"))
        for arm in ("qk-rank-8", "qk-rank-16", "qk-alpha-0", "qk-beta-0", "vp-beta-0", "vp-alpha-0")
    ] == [0, 0, 0, 0, -1, -1]
    assert gain("vp-alpha-0", "mimetic").mean() < gain("vp-beta-0", "mimetic").mean()
    assert -gain("swapped", "mimetic").mean() > whole / 2
    assert side(gain(TRACE, "mimetic", replicas)) == -1
    assert gain(TRACE, "mimetic", replicas).mean() < gain("vp-alpha-0", "mimetic").mean() + 0.01


def test_the_nearest_evidence_for_a_larger_model():
    rows = [
        {"arm": f"{prefix}-{arm}", "seed": s, "device.name": "one", "test_accuracy": 0.5 + gain * (arm == "mimetic")}
        for prefix, gain in (("d192", 0.03), ("depth12", -0.02))
        for arm in PAIR
        for s in range(5)
    ]
    text = growth.nearest(pd.DataFrame(rows))
    assert text.endswith(
        "| width 192 | +3.0 (+3.0 to +3.0, 5 pairs) |\n| twelve layers | −2.0 (−2.0 to −2.0, 5 pairs) |"
    )
    assert growth.nearest(EMPTY) == "" == growth.nearest(pd.DataFrame(rows).query("seed < 3"))


def test_a_bar_in_a_cell_does_not_end_it():
    assert common.markdown(pd.DataFrame({"|α|": ["a|b"]})) == "| \\|α\\| |\n| --- |\n| a\\|b |"


@pytest.mark.parametrize(
    ("low", "high", "p", "expected", "says"),
    [
        (0.01, 0.03, 0.031, 1, "as expected"),
        (0.01, 0.03, 0.031, -1, "**against our expectation**"),
        (0.01, 0.03, 0.031, 0, "**against our expectation**"),
        (0.01, 0.03, 0.031, None, "a difference"),
        (0.01, 0.03, 0.062, None, "a difference by the interval, which the exact test does not confirm"),
        (-0.01, 0.03, 0.5, 1, "these pairs cannot say"),
        (-0.01, 0.03, 0.5, 0, "as expected, by what these pairs can show"),
        (-0.01, 0.03, 0.5, None, "these pairs cannot say"),
    ],
)
def test_a_contrast_is_held_against_what_was_expected(low, high, p, expected, says):
    row = {"difference": (low + high) / 2, "low": low, "high": high, "pairs": 6, "p": p, "expected": expected}
    rows = pd.DataFrame.from_dict({"it": row, "other": row | {"expected": 1}}, orient="index")  # None becomes NaN
    assert common.contrast_words(rows.loc["it"]).partition("; ")[2] == says
