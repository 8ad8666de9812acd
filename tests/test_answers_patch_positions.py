"""What chapter 7 says of position embeddings, on every machine that made the runs."""

import numpy as np
import pandas as pd
import pytest

from mimetic.book import common, patch_positions
from mimetic.experiments.programmes.study import Contrast
from mimetic.experiments.programmes.vision import ASKED_OF_POSITIONS, PAIR
from mimetic.statistics import contrast, side
from mimetic.training.records import load_runs

EMPTY = load_runs("nothing-of-this-name")
OLD, NEW = "AMD EPYC", "NVIDIA H200"


def runs(device, arms, seeds, gain=0.0):
    """The default at 50 % and the others ahead by a gain."""
    return pd.DataFrame(
        [
            {
                "experiment": "x",
                "arm": arm,
                "seed": s,
                "test_accuracy": 0.5 + 0.001 * s + gain * arm.endswith("mimetic"),
                "device.name": device,
            }
            for arm in arms
            for s in seeds
        ]
    )


@pytest.fixture
def again(monkeypatch):
    """What data/replicas holds."""
    held = {"runs": EMPTY}
    monkeypatch.setattr(common, "replicas", lambda experiment: held["runs"])
    return held


def test_a_gain_is_that_of_one_machine(again):
    finals = pd.concat([runs("a card", PAIR, range(3), 0.05), runs("a CPU", ["shuffled-avg-timm"], range(3))])
    finals = pd.concat([finals, runs("a CPU", ["shuffled-avg-mimetic"], range(3), 0.02)])
    again["runs"] = runs("a CPU", PAIR, range(2), 0.03)
    found = patch_positions.by_machine(finals)
    assert list(found) == ["a CPU", "a card"] and len(found["a CPU"]) == 10
    text = patch_positions.gains(finals).replace("\u00a0", " ")
    rows = [line for line in text.splitlines() if line.startswith("| average")]
    # the accuracies are of the seeds that the first machine has of both arms
    assert rows == [
        "| average | sin-cos | 50.0 | 53.0 | +3.0 (+3.0 to +3.0) | +5.0 (+5.0 to +5.0) |",
        "| average | sin-cos in a random order | 50.1 | 52.1 | +2.0 (+2.0 to +2.0) | – |",
    ]
    assert "2 to 3 pairs each" in text and "12 of 110 runs are in" in text
    assert "too few pairs for a verdict" in patch_positions.expectations(finals)


def test_one_pair_has_no_interval_and_none_no_row(again):
    finals = runs("a CPU", PAIR, [0], 0.02)
    assert "| average | sin-cos | 50.0 | 52.0 | +2.0 |" in patch_positions.gains(finals)
    assert "1 pair each" in patch_positions.gains(finals) and "compare yet" in patch_positions.expectations(finals)
    nothing = patch_positions.gains(EMPTY)
    assert nothing.startswith("*Of these position embeddings 0 of 110 runs are in") and "|" not in nothing
    assert "compare yet" in patch_positions.expectations(EMPTY) and patch_positions.by_machine(EMPTY) == {}


@pytest.mark.parametrize(
    ("values", "expected", "word"),
    [
        ((0.1, 0.2, 0.1, 0.2, 0.1), 1, "as expected"),
        ((0.1, 0.2, 0.1, 0.2, 0.1), -1, common.AGAINST),
        ((0.1, 0.2, 0.1, 0.2, 0.1), 0, common.AGAINST),
        ((0.1, 0.2, 0.1, 0.2, 0.1), None, "a difference"),
        ((0.1, -0.1, 0.1, -0.1, 0.0), 1, "these pairs cannot say"),
        ((0.1, -0.1, 0.1, -0.1, 0.0), 0, "as expected, by what these pairs can show"),
        ((0.1, -0.1, 0.1, -0.1, 0.0), None, "these pairs cannot say"),
        ((0.1, 0.2), 1, "too few pairs for a verdict"),
        ((), 1, ""),
    ],
)
def test_a_verdict_follows_the_interval_and_the_expectation(monkeypatch, again, values, expected, word):
    asked = Contrast({"mimetic": 1, "timm": -1}, expected, "" if expected is None else "what we expected")
    monkeypatch.setattr(patch_positions, "ASKED_OF_POSITIONS", {"average": [("the difference", asked)]})
    finals = pd.concat([runs("a CPU", PAIR[:1], range(6)), runs("a CPU", PAIR[1:], range(len(values)))])
    of_the_others = finals["arm"] == "mimetic"
    finals.loc[of_the_others, "test_accuracy"] += np.array(values)
    said, others = patch_positions.expectations(finals), patch_positions.others(finals)
    if not word or expected is None:
        assert said == patch_positions.NO_GAINS
    if not word or expected is not None:
        assert others == patch_positions.NO_GAINS
    if word:
        said = others if expected is None else said
        assert said.splitlines()[-1].endswith(f"| {word} |") and said.count("the difference |") == 1
        assert ("we expected |" in said) == (expected is not None)


def test_what_was_expected_is_said():
    for questions in ASKED_OF_POSITIONS.values():
        assert all((asked.expected is not None) == bool(asked.words) for _, asked in questions)


def test_machines_that_differ_each_have_their_word(again):
    finals = pd.concat(
        [runs("a card", patch_positions.ARMS[:2], range(5), 0.03), runs("a card", ["none-avg-timm"], range(5))]
    )
    finals = pd.concat([finals, runs("a card", ["none-avg-mimetic"], range(5))])
    other = finals.assign(**{"device.name": "a CPU"})
    again["runs"] = other.assign(test_accuracy=other["test_accuracy"] - 0.06 * (other["arm"] == "mimetic"))
    said = f"{patch_positions.expectations(finals)}\n{patch_positions.others(finals)}"
    (line,) = [line for line in said.splitlines() if "| sin-cos minus none |" in line]
    assert line.endswith("| a CPU: **against our expectation**; a card: as expected |")


def test_chapter_7_says_of_positions_what_the_records_say():
    """Its paragraphs are written by hand: they hold as long as this does."""
    finals = load_runs("cifar10-lab10")
    machines = patch_positions.by_machine(finals)
    assert list(machines) == [OLD, NEW]
    table = patch_positions.gains(finals).replace("\u00a0", " ")
    assert "| average | fixed noise, as large | 51.4 | 52.9 | +1.5 (+0.6 to +2.4) | – |" in table
    rows = sum(map(len, patch_positions.POSITIONS.values()))
    assert table.count("\n| ") == rows + 1 and ", 5 pairs each," in table and "runs are in" not in table
    for pool, sides in (("avg", [0, -1]), ("token", [0, 0])):  # average pooling: a loss on one of two machines
        difference = {f"learned-{pool}-mimetic": 1, f"learned-{pool}-timm": -1}
        assert [side(contrast(machines[name], difference)) for name in (OLD, NEW)] == sides
    none = {"none-avg-mimetic": 1, "none-avg-timm": -1}  # and without positions on the other
    assert [side(contrast(machines[name], none)) for name in (OLD, NEW)] == [-1, 0]
    said = patch_positions.expectations(finals)
    against = [line.split(" | ")[2] for line in said.splitlines() if common.AGAINST in line]
    assert against == [
        "the gain in a random order itself",
        "random order minus fixed noise",
        "the gain without positions itself",
        "sin-cos, fixed minus learned from there",
    ]
    assert said.count("as expected") == 6 and ": as expected" not in said
    asked = sum(map(len, ASKED_OF_POSITIONS.values()))
    assert said.count("\n| ") + patch_positions.others(finals).count("\n| ") == asked + 2
