"""What chapter 10 says of other positions follows the records, also when few or none are there."""

import json
from dataclasses import asdict, replace

import pytest

from mimetic import figures
from mimetic.book import gains, positions
from mimetic.book import language as language_answers
from mimetic.book.claims import language, verdicts
from mimetic.experiments import yardsticks
from mimetic.experiments.configs import EXPERIMENTS
from mimetic.experiments.configs.language import OTHER_POSITIONS, RATES, searched
from mimetic.experiments.programmes.language import (
    CENTRAL,
    CENTRED,
    FROM_NOISE,
    FROM_SINCOS,
    FROM_SINCOS_LONG,
    FROM_SINCOS_WIKITEXT2,
    LONG,
    OF_VISION,
    POSITIONS,
    POSITIONS_LONG,
    POSITIONS_WIKITEXT2,
    ROTARY,
    SCALED,
    SHUFFLED,
    SIZES,
    WIKITEXT2,
)
from mimetic.figures.style import LABELS, TEXT_POSITIONS
from mimetic.models.gpt import POS_EMBED
from mimetic.training.records import read_record, runs_dir, write_record

TEMPLATE = read_record(next(iter(sorted((runs_dir() / "tinyshakespeare-recipe").glob("*.json")))))


@pytest.fixture(autouse=True)
def _folders(tmp_path, monkeypatch):
    monkeypatch.setenv("MIMETIC_RUNS", str(tmp_path))


def put(study, effects, seeds=range(6), level=2.0):
    """Records of a study whose arms differ by these from the default, which has this level; every seed moves all arms
    alike, and the effect a little.
    """
    for arm, effect in {"gpt2": 0.0, **effects}.items():
        for seed in seeds:
            value = level + 0.01 * seed + effect * (1 + 0.02 * (seed - 2.5))
            curve = [entry | {"test_bits_per_byte": value} for entry in TEMPLATE["curve"]]
            init = {"gpt2": "gpt2", "rescaled": "timm-rescaled", "random-directions": "mimetic-random-directions"}.get(
                arm, "mimetic"
            )
            config = replace(
                EXPERIMENTS[study.experiment], arm=arm, seed=seed, init=init, vp_beta=-0.4 if arm == "vision" else 0.4
            )
            write_record(
                TEMPLATE
                | {
                    "experiment": study.experiment,
                    "arm": arm,
                    "seed": seed,
                    "config": json.loads(json.dumps(asdict(config))),
                    "curve": curve,
                    "final": curve[-1],
                }
            )


def test_nothing_yet():
    for table, points in (positions.comparisons(), positions.by_kind(), positions.what_it_takes()):
        assert table.empty and points.empty
    assert positions.in_short() == "" == positions.own_start()
    assert positions.controls().count("no pair yet (`python -m mimetic queue language`)") == 6
    assert "no pair is in yet" in positions.rotary_answer()
    assert positions.searches().count("has no records yet") == len(OTHER_POSITIONS)
    # on tiny Shakespeare, two on WikiText-2, and three kinds in longer runs
    assert positions.missing().count("runs are in") == len(OTHER_POSITIONS) + 2 + 3
    assert positions.longer() == {} and positions.at_the_end() == ""
    assert positions.changes("vision").empty and positions.effect_of(POSITIONS, "vision", "gpt2", CENTRAL).empty


def test_it_hangs_on_the_positions_if_a_loss_becomes_a_gain():
    put(CENTRAL, {"language": 0.4, "vision": 0.2})
    put(POSITIONS, {"language": 0.03, "vision": -0.2, "rescaled": -0.05, "random-directions": 0.0}, level=2.1)
    short = positions.in_short()
    assert "| tiny Shakespeare, default (GPT-2's) | 2.025 | 2.125 | planned | planned |" in short
    assert "WikiText" not in short
    assert (
        "| tiny Shakespeare, vision signs | +0.200 (+0.192 to +0.208) | −0.200 (−0.208 to −0.192) | planned | planned |"
        in short
    )
    assert ") | +0.030 (" in short
    assert (
        "Vision signs minus GPT-2's own start: with fixed positions −0.100 (" in positions.own_start()
    )  # 2.1 - 0.2 against 2.0
    text = positions.controls()
    assert "* Controls of size, fixed positions in order: default at mimetic's norms minus the default −0.050 (" in text
    assert ", vision signs minus that −0.150 (" in text and "; random directions minus the default +0.000 (" in text
    assert "vision signs minus that −0.200 (" in text and "a random order:" not in text
    table, points = positions.comparisons()
    assert len(table) == 4  # of GPT-2's own positions nothing
    assert len(points) == 4 * 6
    assert len(figures.comparisons(table, points, xlabel="", scale=1).axes) == 1
    put(POSITIONS_WIKITEXT2, {"vision": -0.02, "language": -0.01})
    assert "| WikiText-2, language signs | planned | −0.010 (" in positions.in_short()
    put(POSITIONS_LONG, {"vision": -0.05}, seeds=(0, 1, 2))
    assert "| tiny Shakespeare, 6,000 steps, vision signs | planned | −0.04" in positions.in_short()
    assert "3 pairs) | planned | not run |" in positions.in_short()


def test_the_longer_runs_as_they_arrive():
    for pairs in (1, 2):
        put(FROM_SINCOS_LONG, {"vision": -0.05}, seeds=range(pairs))
        assert list(positions.longer()) == [TEXT_POSITIONS["from-sincos"]]
        assert f"pair{'s' * (pairs > 1)}) | not run |" in positions.in_short()
        assert language_answers.on_the_way(positions.longer()).endswith("| too few pairs | too few pairs |")
        assert len(figures.gaps_on_the_way(positions.longer()).axes) == 1
    assert "| tiny Shakespeare, 6,000 steps, default (GPT-2's) | planned | planned | 2." in positions.in_short()
    put(FROM_SINCOS_LONG, {"lr-0.004-gpt2": -0.02, "vision": -0.05})
    put(LONG, {"vision": 0.02}, level=1.9)
    assert positions.at_the_end() == (
        "At the end, minus GPT-2's own start after as many steps: vision signs with learned ones that start from"
        " sin-cos +0.050 (+0.048 to +0.052, 6 pairs); the default at 0.004 with learned ones that start from sin-cos"
        " +0.080 (+0.079 to +0.081, 6 pairs). With learned positions that start from sin-cos, 6,000 steps:"
        " vision signs: gains: −0.050 bits per byte (−0.052 to −0.048, 6 pairs);"
        " vision signs, over the default at 0.004: gains: −0.030 bits per byte (−0.031 to −0.029, 6 pairs)."
    )
    _, started = positions.longer().items()
    assert started[0] == f"{TEXT_POSITIONS['from-sincos']}, over the default at 0.004"
    gap = language_answers.gap_to(started[1], "vision")
    assert gap.iloc[-1].mean() == pytest.approx(-0.03) and set(started[1]["arm"]) == {"gpt2", "vision"}
    assert ") | not run |" in positions.in_short() and " at 0.004 | not run |" in positions.in_short()


def test_the_second_page_opens_with_vision_signs_and_every_kind_of_positions():
    put(CENTRAL, {"language": 0.4, "vision": 0.2})
    put(POSITIONS, {"vision": -0.2})
    put(WIKITEXT2, {"lr-0.004-gpt2": -0.02, "vision": 0.03})
    table, points = positions.by_kind()
    assert dict(zip(zip(table["group"], table.index), table["difference"].round(3))) == {
        ("tiny Shakespeare", TEXT_POSITIONS["learned"]): 0.2,
        ("tiny Shakespeare", TEXT_POSITIONS["sincos"]): -0.2,
        ("WikiText-2", f"{TEXT_POSITIONS['learned']}, over the default at 0.004"): 0.05,
    }
    assert len(points) == 3 * 6
    assert set(positions.OF_KIND) == set(TEXT_POSITIONS)
    put(SHUFFLED, {"vision": -0.1})
    table, _ = positions.what_it_takes()
    assert list(table.index) == [TEXT_POSITIONS["sincos"], TEXT_POSITIONS["shuffled"]]
    assert TEXT_POSITIONS["shuffled"] not in positions.by_kind()[0].index


def test_a_random_order():
    put(POSITIONS, {"vision": -0.2})
    put(SHUFFLED, {"vision": 0.1})
    row = positions.controls().splitlines()[2]
    assert row.startswith("| fixed positions in a random order | 2.025 | +0.100 (+0.096 to +0.104) | +0.300 (")
    assert row.endswith(" | – |")  # GPT-2's own start is not in
    assert "Controls of size" not in positions.controls()
    put(SHUFFLED, {"vision": 0.1}, seeds=(0, 1))
    for seed in range(2, 6):
        for path in (runs_dir() / SHUFFLED.experiment).glob(f"*-seed{seed}.json"):
            path.unlink()
    assert "2 pairs) | " in positions.controls()
    put(SHUFFLED, {"vision": -0.1, "rescaled": 0.05, "random-directions": -0.2})
    put(FROM_NOISE, {"vision": 0.0})
    put(CENTRAL, {"vision": 0.2}, level=2.0)
    text = positions.controls()
    assert "* Controls of size, these in a random order: default at mimetic's norms minus the default +0.050 (" in text
    assert "; random directions minus the default −0.200 (" in text and ", vision signs minus that +0.100 (" in text
    assert "* What vision signs do from noise as large, minus that in a random order: +0.100 (" in text
    assert "| fixed positions in a random order | 2.025 | −0.100 (−0.104 to −0.096) | +0.100 (" in text
    assert text.splitlines()[2].endswith(" | −0.100 (−0.104 to −0.096) |")  # 1.925 against 2.025


def test_learned_positions_are_those_of_the_same_machine_where_they_were_run_there():
    put(CENTRAL, {"language": 0.4, "vision": 0.2})
    put(POSITIONS, {"language": 0.03, "vision": -0.2}, level=2.1)
    assert positions.changes("vision").mean() == pytest.approx(-0.4)
    assert positions.over_own_start("vision", POSITIONS).mean() == pytest.approx(-0.1)
    put(OF_VISION, {"vision": 0.1, "vp-minus": 0.05}, level=2.05)
    assert positions.changes("vision").mean() == pytest.approx(-0.3)
    assert positions.changes("language").mean() == pytest.approx(-0.37)  # not run there
    assert positions.over_own_start("vision", POSITIONS).mean() == pytest.approx(-0.15)
    assert positions.learned("vision", POSITIONS_WIKITEXT2) is WIKITEXT2


def test_the_default_is_taken_at_its_better_rate(monkeypatch):
    put(WIKITEXT2, {"lr-0.004-gpt2": -0.02, "vision": 0.03})
    put(POSITIONS_WIKITEXT2, {"vision": -0.1})
    assert positions.better_rate(WIKITEXT2) == positions.GENTLER and positions.better_rate(CENTRAL) == "gpt2"
    # with the learned ones 0.02 more than over the searched rate, and so much less ahead of GPT-2's own start
    assert "| WikiText-2, vision signs | +0.050 (" in positions.in_short()
    assert "with fixed positions −0.080 (" in positions.own_start()
    assert positions.over_own_start("vision", POSITIONS_WIKITEXT2).mean() == pytest.approx(-0.08)
    put(FROM_SINCOS, {"vision": -0.1})
    assert positions.over_own_start("vision", FROM_SINCOS).empty  # of the other text
    put(FROM_SINCOS_WIKITEXT2, {"lr-0.004-gpt2": -0.05, "vision": -0.15}, level=2.1)
    text = positions.controls()
    assert "| WikiText-2: learned positions that start from sin-cos | 2.125 | −0.150 (" in text
    assert ") | −0.050 (" in text  # -0.15, with fixed ones -0.1
    assert (
        "| WikiText-2: learned positions that start from sin-cos, over the default at 0.004 | 2.075 | −0.100 (" in text
    )
    assert "minus GPT-2's own start: +0.120 (" in text and " at 0.008, +0.070 (" in text and text.endswith(" at 0.004.")


def test_the_controls_are_held_against_fixed_positions():
    put(POSITIONS, {"vision": -0.2})
    put(CENTRED, {"vision": -0.2})
    put(SCALED, {"vision": 0.15, "lr-0.002-vision": 0.05})
    lines = positions.controls().splitlines()[2:]
    assert lines[0].startswith("| fixed positions in a random order | no pair yet (`python -m mimetic queue language`)")
    assert lines[1].startswith("| fixed positions without their mean | 2.025 | −0.200 (") and ") | +0.000 (" in lines[1]
    assert ") | +0.350 (" in lines[2]
    assert lines[3].startswith("| learned positions, times √d, at 0.002 | 2.025 | +0.050 (") and ") | – |" in lines[3]


def test_rotary_positions():
    put(CENTRAL, {"language": 0.4, "vision": 0.2})
    put(ROTARY, {"language": 0.1, "vision": -0.1})
    put(POSITIONS, {"vision": -0.2})
    text = positions.rotary_answer()
    assert text.endswith(
        "* vision signs with fixed positions minus the default with rotary ones: −0.200 (−0.208 to −0.192, 6 pairs)"
    )
    assert text.startswith("* language signs minus vision signs, both at 0.004: +0.200")
    assert (
        "| tiny Shakespeare, vision signs | +0.200 (+0.192 to +0.208) | −0.200 (−0.208 to −0.192) |"
        " planned | −0.100 (" in positions.in_short()
    )


def test_the_search_names_ends_and_ties():
    rows = {"gpt2": [2.9, 2.6, 2.5, 2.6], "language": [2.5, 2.6, 2.7, 2.8], "vision": [2.9, 2.6, 2.51, 2.5]}
    for arm, values in rows.items():
        for lr, value in zip(RATES, values):
            final = TEMPLATE["curve"][-1] | {"test_bits_per_byte": value}
            run = {"experiment": "x", "arm": searched(arm, lr), "config": TEMPLATE["config"] | {"lr": lr}}
            write_record(TEMPLATE | run | {"curve": [*TEMPLATE["curve"][:-1], final], "final": final})
    text = positions.searched_sentence("x")
    assert "default (GPT-2's) 0.004 (2.500)" in text and "language signs 0.001 (2.500, the lowest tried)" in text
    assert "vision signs 0.008 (2.500, the highest tried; 0.004: +0.010)" in text


def test_claims_and_the_share_follow():
    put(CENTRAL, {"vision": 0.2})
    put(WIKITEXT2, {"vision": 0.2})
    put(POSITIONS, {"vision": -0.2, "rescaled": 0.0, "random-directions": -0.1})
    put(POSITIONS_WIKITEXT2, {"vision": -0.02})
    put(SHUFFLED, {"vision": 0.1})
    assert (
        language._texts("vision", language.FIXED, POSITIONS_LONG)[0]
        == language._over(POSITIONS, SIZES)[0]
        == language._gains_less(SHUFFLED, "in a random order")[0]
        == language._beyond_learned()[0]
        == verdicts.HOLDS
    )
    put(SHUFFLED, {"vision": -0.3})
    assert language._gains_less(SHUFFLED, "in a random order")[0] == verdicts.NOT
    put(POSITIONS, {"vision": -0.2}, level=3.0)
    assert language._beyond_learned()[0] == verdicts.PART  # on the other text it is
    points = gains.gain_points()
    # a control is no point
    assert set(points["experiment"]) == {
        CENTRAL.experiment,
        WIKITEXT2.experiment,
        POSITIONS.experiment,
        POSITIONS_WIKITEXT2.experiment,
    }


def test_what_enters_and_what_attention_adds():
    table = yardsticks.stream_before_training(windows=2)
    times = table["times what enters", LABELS["vision"]]
    assert list(table.index) == [TEXT_POSITIONS[kind] for kind in yardsticks.POSITIONS]
    assert table["enters", ""].iloc[:5].is_monotonic_increasing
    # as the chapter says
    assert round(times.iloc[0]) == 17 and round(times.min(), 1) == 0.6 and round(times.iloc[1], 1) == 1.5
    assert (
        0.4 < table["attention adds", LABELS["vision"]].min() < table["attention adds", LABELS["vision"]].max() < 0.55
    )
    assert 0.4 < yardsticks.stored_entering()["times what enters"] < 0.6


def test_where_tokens_look_before_training():
    table = yardsticks.attention_by_distance(windows=2)
    assert set(table["positions"]) == set(yardsticks.POSITIONS) < set(POS_EMBED) == set(TEXT_POSITIONS)
    assert set(table["arm"]) == {"gpt2", "vision"} <= set(LABELS)
    shares = table.set_index(["positions", "arm", "back"])["share"].sort_index()
    near = {
        (kind, arm): shares[kind, arm].loc[1:4].mean() for kind in yardsticks.POSITIONS for arm in ("gpt2", "vision")
    }
    far = {
        (kind, arm): shares[kind, arm].loc[28:32].mean() for kind in yardsticks.POSITIONS for arm in ("gpt2", "vision")
    }
    assert near["sincos", "vision"] > 4 * far["sincos", "vision"]  # alike neighbours are looked at
    assert near["centred", "vision"] > 10 * far["centred", "vision"]
    assert near["rotary", "vision"] > 4 * far["rotary", "vision"]  # here they are turned alike
    for kind, arm in set(near) - {("sincos", "vision"), ("centred", "vision"), ("rotary", "vision")}:
        assert near[kind, arm] < 1.6 * far[kind, arm], (kind, arm)  # no others
    assert shares["learned", "vision", 0] > 10 * shares["learned", "gpt2", 0]
    assert (shares > 0).all()
    assert table.groupby(["positions", "arm"])["share"].sum().max() <= 1
    assert len(figures.attention_by_distance(table).axes) == len(yardsticks.POSITIONS)
    with pytest.raises(ValueError, match="farthest must be from 0 to half of the window of 128, not 65"):
        yardsticks.attention_by_distance(farthest=65)
