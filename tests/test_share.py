"""Attention's share and the gain: pairs found in any family's records, relative gains worked out by hand, verdicts from intervals."""

import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from mimetic import figures
from mimetic.experiments.answers import share
from mimetic.experiments.answers.share import POINTS
from mimetic.experiments.configs import EXPERIMENTS, named
from mimetic.experiments.configs.language import EVERY, SHARES
from mimetic.statistics import correlation
from mimetic.training.records import RecordError, load_runs, write_record

PLUS_MINUS, PLUS_PLUS = share.PUBLISHED, "QK +, V·proj +"


def put(folder, config, column, value, share_of_attention=0.25):
    """A record as run would write it, with an invented result."""
    from dataclasses import asdict

    entry = {"epoch": 1, "step": 1, "lr": 0.0, "train_loss": 1.0, column: value}
    counts = {"attention_qkv": round(750 * share_of_attention), "attention_proj": round(250 * share_of_attention), "total": 1000}
    record = {
        "schema": 1, "experiment": config.experiment, "arm": config.arm or config.init, "seed": config.seed,
        "config": json.loads(json.dumps(asdict(config))), "curve": [entry], "final": entry, "parameters": counts,
        "throughput": {"unit": "tokens", "per_second": 1.0}, "seconds": {"total": 1.0}, "device": {"type": "cpu"}, "versions": {},
        "source": {"sha256": ""}, "started": "", "finished": "", "resumed": 0,
    }  # fmt: skip
    write_record(record, folder)


@pytest.fixture
def folder(tmp_path):
    """Vision gains 10 % of accuracy; a sweep whose gain is a fifth of the share; arms and experiments that must not count."""
    for seed, (a, b) in enumerate(((0.50, 0.55), (0.60, 0.66), (0.50, 0.55))):
        put(tmp_path, named("cifar10-lab30", init="timm", seed=seed), "test_accuracy", a)
        put(tmp_path, named("cifar10-lab30", init="mimetic", seed=seed), "test_accuracy", b)
        for i, point in enumerate(SHARES):
            of_attention = 0.1 + 0.04 * i
            for arm, effect in (("gpt2", 0.0), ("vision", of_attention / 5), ("language", -of_attention / 5)):
                put(tmp_path, sweep_run(point, arm, seed), "test_bits_per_byte", 2.0 * (1 - effect), of_attention)
    put(tmp_path, named("cifar10-lab30", init="mimetic-qk", seed=0), "test_accuracy", 0.9)
    for arm, value in (("gpt2", 2.0), ("language", 1.9), ("vision", 2.1), ("fit", 0.5)):
        put(tmp_path, text_run("tinyshakespeare", arm), "test_bits_per_byte", value)
    put(tmp_path, text_run("wikitext2", "gpt2"), "test_bits_per_byte", 2.0)  # no partner
    put(tmp_path, text_run("wikitext2", "language", seed=1), "test_bits_per_byte", 2.0)
    # the search and the equal rates are the same models again
    put(tmp_path, named("tinyshakespeare-recipe", arm="base"), "test_bits_per_byte", 2.0)
    put(tmp_path, named("tinyshakespeare-recipe", arm="vision-lr-0.001"), "test_bits_per_byte", 1.0)
    for arm in ("gpt2", "vision"):
        put(tmp_path, named("tinyshakespeare-rate", arm=f"lr-0.002-{arm}"), "test_bits_per_byte", 1.5)
    return tmp_path


def text_run(experiment, arm, seed=0, **changes):
    """A run of an arm at a rate of its own, whatever the search has chosen."""
    return replace(EXPERIMENTS[experiment], arm=arm, seed=seed, lr=8e-3 if arm == "gpt2" else 1e-3, **(EVERY[arm] | changes))


def sweep_run(point, arm, seed):
    return replace(text_run("share", arm, seed, **SHARES[point]), arm=f"{point}-{arm}")


def test_points(folder):
    points = share.gain_points(folder).set_index(["experiment", "signs", "point"]).sort_index(level=[0, 1], sort_remaining=False)
    assert set(points.index.get_level_values(0)) == {"cifar10-lab30", "share", "tinyshakespeare"}
    vision = points.loc[("cifar10-lab30", PLUS_MINUS, "cifar10-lab30")]
    assert vision["gain"] == pytest.approx(0.1) and vision["pairs"] == 3 and vision["share"] == pytest.approx(0.25)
    # lower is better; fitted constants are not mimetic initialization as published
    assert points.loc["tinyshakespeare"]["gain"].to_dict() == pytest.approx({(PLUS_PLUS, "tinyshakespeare"): 0.05, (PLUS_MINUS, "tinyshakespeare"): -0.05})
    for signs, sign in ((PLUS_MINUS, 1), (PLUS_PLUS, -1)):
        sweep = points.loc[("share", signs)]
        assert list(sweep.index) == list(SHARES) and len(sweep) == 8
        assert np.allclose(sweep["gain"], sign * sweep["share"] / 5, rtol=0.02)


def test_verdicts_follow_the_interval(folder):
    points = share.gain_points(folder)
    text = share.verdict(points)
    assert f"With {PLUS_MINUS}: ahead at 7 of 7 points (7 with an interval above 0), and the gain grows with attention's share, as the guess has it (r = +0.9" in text
    assert f"With {PLUS_PLUS}: ahead at 0 of 7 points (none with an interval above 0), and the difference falls as attention's share grows" in text
    assert "; with one point left out, r from +0.9" in text and "so without `depth2`" in text
    assert "n = 7" in text and "families" not in text  # the point with half the attention layers is not among them
    assert "this sweep" not in text  # one set of signs says yes
    assert share.verdict(points[points["signs"] == PLUS_MINUS]).startswith("**Yes, in this sweep.** ")
    flat = share.verdict(points.assign(gain=[-0.1 + 0.01 * (-1) ** i for i in range(len(points))]))
    assert flat.startswith("**Undecided, and there is hardly a gain that could follow anything.** ")
    shrinking = points.assign(gain=np.where(points["gain"] < 0, -1 - points["gain"], points["gain"]))
    assert "the difference rises as attention's share grows" in share.verdict(shrinking)
    assert "against the guess" in share.verdict(points.assign(gain=1 - points["gain"]))
    rng = np.random.default_rng(0)
    assert "cannot say" in share.relation(points.assign(gain=5 + rng.standard_normal(len(points))), "x")
    text = share.relation(points.iloc[:3].assign(pairs=[3, 3, 1]), "x")
    assert "2 points so far (1 more with fewer than 3 pairs), too few for a correlation" in text


def test_slopes_along_one_thing_at_a_time(folder):
    table = share.slopes(share.gain_points(folder))
    assert list(table.index) == [(signs, row) for signs in (PLUS_PLUS, PLUS_MINUS) for row in ("along the vocabulary", "along the MLP", "vocabulary minus MLP")]
    assert share.slopes_table(share.gain_points(folder))["points"].tolist() == ["4", "3", "", "4", "3", ""] and (table["seeds"] == 3).all()
    x = np.log2([0.1 + 0.04 * list(SHARES).index(name) for name in share.ALONG["the MLP"]])
    expected = np.polyfit(x, 100 * (2**x) / 5, 1)[0]
    assert table.loc[(PLUS_MINUS, "along the MLP"), "slope"] == pytest.approx(expected, rel=0.02) == -table.loc[(PLUS_PLUS, "along the MLP"), "slope"]
    x = np.log2([0.1 + 0.04 * list(SHARES).index(name) for name in share.ALONG["the vocabulary"]])
    others = [np.polyfit(np.delete(x, i), np.delete(100 * (2**x) / 5, i), 1)[0] for i in range(4)]
    assert table.loc[(PLUS_MINUS, "along the vocabulary"), ["least without one point", "most"]].tolist() == pytest.approx([min(others), max(others)], rel=0.02)
    assert np.isnan(table.loc[(PLUS_MINUS, "along the MLP"), "most"])  # two points make no slope
    assert share.along(share.gain_points(folder)) == "" == share.along(share.gain_points(folder), "share-gpu")  # here it is the share that decides
    turned = share.gain_points(folder)
    turned["by_seed"] = [{s: -g if row.point in share.ALONG["the MLP"][1:] and row.point not in share.ALONG["the vocabulary"] else g for s, g in row.by_seed.items()} for row in turned.itertuples()]
    assert "One share, two directions: it is not the share that it follows." in share.along(turned) and "undecided" not in share.along(turned)
    table = share.slopes(turned)
    table.loc[(PLUS_MINUS, "along the MLP"), "high"] = 1.0
    table.loc[(PLUS_PLUS, "along the vocabulary"), "most"] = 1.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(share, "slopes", lambda points, sweep: table)
        text = share.along(turned)
        assert f"with {PLUS_PLUS} the slope along the vocabulary turns when one point is left out, and with {PLUS_MINUS} that along the MLP may be 0: undecided." in text
    assert share.ahead_by_seed(turned).startswith("Ahead on average, with the relative gain of every seed: ") and share.ahead_by_seed(turned, "share-gpu") == ""
    assert share.slopes(share.gain_points(folder), "share-gpu").empty and share.smallest_r(8) == pytest.approx(0.705, abs=1e-3)


def test_slopes_with_the_pairs_of_another_machine(folder, monkeypatch):
    points = share.gain_points(folder)
    own = share.slopes(points).loc[(PLUS_MINUS, "along the vocabulary"), "slope"]
    other = points[points["point"] == "v256"].assign(by_seed=[{0: row.by_seed[0] + 1.0} for row in points[points["point"] == "v256"].itertuples()])
    monkeypatch.setattr(share, "gain_points", lambda folder=None: other)
    text = share.as_retrained(points)
    assert text.startswith("With the pairs that another machine trained again in their place, along the vocabulary: ") and f"with {PLUS_MINUS}" in text
    assert POINTS.signed(own) not in text
    monkeypatch.setattr(share, "gain_points", lambda folder=None: points.iloc[:0])
    assert share.as_retrained(points) == ""


def test_the_means_and_what_is_certain_in_vision():
    rows = [("low", -0.04, -0.09, 0.01), ("surely-low", -0.03, -0.05, -0.01), ("high", 0.08, 0.06, 0.10)]
    points = pd.DataFrame(rows, columns=["point", "gain", "low", "high"]).assign(family="vision", signs=share.PUBLISHED, pairs=5, share=0.33)
    text = share.within_vision(points)
    assert "goes from −4.0 % (low; −9.0 to +1.0) to +8.0 % (high; +6.0 to +10.0); the lowest that the intervals make certain: −3.0 % (surely-low; −5.0 to −1.0)." in text
    assert "does not decide" in text and share.within_vision(points.iloc[:1]) == "" and "certain" not in share.within_vision(points.iloc[1:])


def test_families_at_the_same_share(folder):
    points = share.gain_points(folder)
    assert "not enough pairs yet" in share.at_equal_share(points)  # one pair of the language model
    points["pairs"] = 3
    text = share.at_equal_share(points.assign(low=points["gain"] - 0.01, high=points["gain"] + 0.01))
    assert f"cifar10-lab30 has 25 % attention and, with {PLUS_MINUS}, a gain (+10.0 %, +9.0 to +11.0, 3 pairs)" in text
    assert f"tinyshakespeare has 25 % attention and, with {PLUS_MINUS}, a loss (−5.0 %" in text and "So something else than the share decides" in text
    alike = share.at_equal_share(points.assign(low=-1.0, high=1.0))
    assert alike.count("neither gain nor loss") == 2 and "something else" not in alike
    one = points.assign(low=np.where(points["experiment"] == "cifar10-lab30", 0.05, -0.1), high=0.2)  # a gain, and one that may be as large
    assert "something else" not in share.at_equal_share(one)
    assert "not enough pairs yet" in share.at_equal_share(points[points["family"] == "vision"])


def test_nothing_yet(tmp_path):
    points = share.gain_points(tmp_path)
    assert points.empty and "0 points so far" in share.verdict(points) and share.points_table(points).empty


def test_figure_and_table(folder):
    points = share.gain_points(folder)
    left, right = figures.share_and_gain(points).axes
    assert {t.get_text() for t in left.texts} == set(SHARES)
    assert [t.get_text() for t in left.get_legend().get_texts()] == [PLUS_PLUS, PLUS_MINUS]
    assert [t.get_text() for t in right.get_legend().get_texts()] == ["language", "vision"]
    assert share.points_table(points).loc[("vision", PLUS_MINUS, "cifar10-lab30"), "gain (%)"].startswith("+10.00 (")
    assert share.points_table(points).loc[("language", PLUS_PLUS, "share: mlp8"), "gain (%)"].startswith("−")


def test_every_point_in_bits_per_byte(folder):
    lines = share.found(load_runs("share", folder=folder)).splitlines()
    assert lines[0].endswith("3 pairs: too few for a claim):") and lines[2] == "| model | language signs | vision signs |" and len(lines) == 4 + len(SHARES)
    base = next(line for line in lines if line.startswith("| `base` |"))
    assert re.fullmatch(r"\| `base` \| \+0\.\d{3} \(.*\), behind \| −0\.\d{3} \(.*\), ahead \|", base)
    assert share.found(load_runs("nothing", folder=folder)) == ""


def test_a_damaged_record_is_named(folder):
    path = next((folder / "share").glob("*.json"))
    path.write_text(path.read_text().replace('"test_bits_per_byte": ', '"test_bits_per_byte": 1'))
    with pytest.raises(RecordError, match=path.name):
        share.gain_points(folder)


def test_the_committed_vision_runs_are_points():
    points = share.gain_points().set_index("experiment")
    assert 0.3 < points.loc["cifar10-lab30", "share"] < 0.35 and points.loc["cifar10-lab30", "pairs"] >= 3


def test_correlation_against_known_values():
    # r = 0.5 and n = 28: Fisher's z is 0.5493 +- 1.96 / 5
    x = np.repeat([0.0, 1.0], 14)
    rng = np.random.default_rng(1)
    noise = rng.standard_normal(28)
    noise -= np.polyval(np.polyfit(x, noise, 1), x)
    y = (x - x.mean()) / np.linalg.norm(x - x.mean()) * 0.5 + noise / np.linalg.norm(noise) * 0.75**0.5
    r, low, high = correlation(x, y)
    assert (r, low, high) == pytest.approx((0.5, np.tanh(0.549306 - 0.391993), np.tanh(0.549306 + 0.391993)), abs=1e-5)
    assert correlation(x, -y)[0] == pytest.approx(-0.5)
    assert correlation([1, 2, 3, 4], [2, 4, 6, 8])[0] == pytest.approx(1)
    for bad in (([1, 2, 3], [1, 2, 3]), ([1, 1, 1, 1], [1, 2, 3, 4]), ([1, 2, 3, np.nan], [1, 2, 3, 4])):
        with pytest.raises(ValueError):
            correlation(*bad)


def test_points_are_sorted_by_share_within_an_experiment(folder):
    shares = share.gain_points(folder).query("experiment == 'share' and signs == @PLUS_PLUS")["share"]
    assert shares.is_monotonic_increasing and isinstance(shares, pd.Series)
