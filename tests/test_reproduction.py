"""The reproduction report: a verdict follows from the interval, and every claim has one, with all records or none."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from mimetic import figures
from mimetic.experiments import share
from mimetic.experiments.answers import reproduction as report
from mimetic.experiments.answers.reproduction import HOLDS, NOT, OPEN, PART, UNDECIDED
from mimetic.experiments.language import METRIC as BITS
from mimetic.experiments.metrics import ACCURACY
from mimetic.experiments.programmes import QUEUES
from mimetic.experiments.programmes.language import SHARES

ROOT = Path(__file__).parents[1]
AHEAD = pd.Series([0.02, 0.03, 0.025, 0.03, 0.02])


@pytest.fixture
def no_records(tmp_path, monkeypatch):
    monkeypatch.setenv("MIMETIC_RUNS", str(tmp_path))


def test_a_verdict_follows_from_the_interval_the_pairs_and_what_was_expected():
    assert report.judged(AHEAD, ACCURACY) == (HOLDS, "+2.5 points (+1.9 to +3.1, 5 pairs)")
    assert report.judged(-AHEAD, ACCURACY)[0] == NOT
    assert report.judged(-AHEAD, ACCURACY, expected=-1)[0] == HOLDS
    assert report.judged(AHEAD, BITS)[0] == NOT and report.judged(-AHEAD, BITS)[0] == HOLDS  # fewer bits are better
    assert report.judged(AHEAD - AHEAD.mean(), ACCURACY)[0] == UNDECIDED
    assert report.judged(AHEAD[:4], ACCURACY)[0] == OPEN
    assert report.judged(AHEAD[:1], ACCURACY) == (OPEN, "+2.0 points, one pair")
    assert report.judged(pd.Series(dtype=float), ACCURACY) == (OPEN, "no pair yet")


def test_a_claim_tested_twice_holds_only_if_both_do():
    yes, no, wait = (HOLDS, "a"), (NOT, "b"), (OPEN, "c")
    assert report.joined({"x": yes, "y": yes}) == (HOLDS, "x a; y a")
    assert report.joined({"x": yes, "y": no})[0] == PART
    assert report.joined({"x": yes, "y": wait})[0] == OPEN


def test_every_claim_has_a_verdict_and_a_chapter():
    table = report.claims()
    assert set(table["verdict"]) <= set(report.MEANING) and table["claim"].is_unique and table["found"].str.len().min() > 5
    listed = str(yaml.safe_load((ROOT / "_toc.yml").read_text()))
    assert all(f"book/{page}'" in listed for page in table["page"])
    pages = set(table["page"])
    assert report.claims_table(table).count(".ipynb)") == len(table) == report.short_table(table).count("\n") - 1
    assert {claim.part for claim in report.CLAIMS} == set(report.PARTS)
    for part in report.PARTS:
        assert set(report.claims(part)["part"]) == {part}
    assert "06_cifar_claim" in pages and f"Of {len(table)} claims" in report.answer(table)


def test_without_records_what_needs_training_is_open(no_records):
    table = report.claims().set_index("claim")
    trained = table[~table["page"].isin(["02_looking_inside", "03_construction"])]
    untrained = "They are a meaningful share of its parameters"
    assert set(trained.drop(untrained)["verdict"]) == {OPEN} and table.loc[untrained, "verdict"] != OPEN
    assert report.shown() == [] and report.programme()["recorded"].sum() == 0


def _gains(rows):
    columns = ["experiment", "point", "share", "gain", "low", "high", "pairs"]
    return pd.DataFrame(rows, columns=columns).assign(signs=share.PUBLISHED)


@pytest.mark.parametrize(("text", "pairs", "verdict"), [(0.001, 6, HOLDS), (0.08, 6, UNDECIDED), (0.001, 4, OPEN)])
def test_language_gains_less_when_its_interval_lies_below(monkeypatch, text, pairs, verdict):
    rows = [("cifar10-lab30", "cifar10-lab30", 0.3, 0.05, 0.03, 0.07, 6)]
    rows += [(name, name, 0.3, text, text - 0.005, text + 0.005, pairs) for name in ("tinyshakespeare", "wikitext2")]
    monkeypatch.setattr(report, "_gains", lambda: _gains(rows))
    assert report._language_gains_less()[0] == verdict
    monkeypatch.setattr(report, "_gains", lambda: _gains(rows[:2]))
    assert report._language_gains_less() == (OPEN, "no pair yet")


@pytest.mark.parametrize(("slope", "verdict"), [(1.0, HOLDS), (-1.0, NOT), (0.0, UNDECIDED)])
def test_the_guess_is_judged_when_the_whole_sweep_is_in(monkeypatch, slope, verdict):
    shares = np.linspace(0.05, 0.4, len(SHARES))
    wiggle = 0.01 * np.resize([1, -1, -1, 1], len(shares))
    rows = [("share", point, s, slope * s + w, 0.0, 0.0, 3) for point, s, w in zip(SHARES, shares, wiggle)]
    monkeypatch.setattr(report, "_gains", lambda: _gains(rows))
    found = report._share_guess()
    assert found[0] == verdict and found[1].startswith("r = ")
    monkeypatch.setattr(report, "_gains", lambda: _gains(rows[1:]))
    assert report._share_guess() == (OPEN, f"{len(SHARES) - 1} of {len(SHARES)} points of the sweep are in")


def test_better_lies_to_the_right_in_every_panel():
    table = pd.DataFrame({"group": "g", "pairs": [5, 3], "difference": [0.02, -0.01], "low": [0.01, -np.inf], "high": [0.03, np.inf]}, index=["a", "b"])
    points = pd.DataFrame({"label": ["a", "b"], "group": "g", "difference": [0.02, -0.01]})
    figure = figures.families([(ACCURACY, table, points), (BITS, table, points)])
    accuracy, bits = figure.axes
    assert not accuracy.xaxis_inverted() and bits.xaxis_inverted()
    assert "test accuracy (points): better to the right" in accuracy.get_xlabel() and bits.get_xlabel().count("bits per byte") == 1
    faces = [line.get_markerfacecolor() for line in accuracy.lines if line.get_marker() == "o"]
    assert faces[1] == "white" != faces[0]


def test_what_was_run_counts_the_committed_records():
    table = report.programme()
    assert list(table.index) == list(QUEUES) and (table["recorded"] <= table["planned"]).all()
    assert table.loc["recipe", "recorded"] == table.loc["recipe", "planned"] and table.loc["lab", "hours"] > 1
    committed = len(list((ROOT / "data" / "runs").glob("*/*.json")))
    assert table["recorded"].sum() == committed, "a record that no queue plans, or that two do"


def test_the_re_implementations_are_a_table():
    lines = report.implementations().splitlines()
    assert len(lines) > 8 and {line.count("|") for line in lines} == {4}
