"""What the chapters say of machines: which made the runs, whether two agree, what runs side by side took."""

import pandas as pd
import pytest

from mimetic.book import common, machines
from mimetic.experiments.programmes.vision import QUESTIONS, STUDIES

CPU, GPU = "a processor", "a card"


def runs(device, gain=0.04, seeds=(0, 1, 2), shift=0.0, **more):
    rows = [
        {
            "experiment": "cifar10-lab10",
            "arm": arm,
            "seed": seed,
            "epoch": 10,
            "test_accuracy": 0.5 + extra + shift + seed / 100,
            "device.name": device,
            **more,
        }
        for arm, extra in (("timm", 0.0), ("mimetic", gain))
        for seed in seeds
    ]
    return pd.DataFrame(rows)


def test_which_machine_made_the_runs():
    assert machines.made_on(runs(GPU), QUESTIONS) == "All 6 runs were made on one kind of machine, a card."
    assert machines.made_on(runs(GPU).iloc[:0], QUESTIONS) == ""
    two = pd.concat([runs(GPU), runs(CPU, seeds=(3,))])
    assert (
        machines.made_on(two, QUESTIONS)
        == "The runs were made on a card (6) and a processor (2); the two runs of a pair always on one of them."
    )
    two.loc[(two["arm"] == "mimetic") & (two["seed"] == 3), "device.name"] = GPU
    assert machines.mixed_pairs(two, (STUDIES["which-half"],)) == [("mimetic", 3)]
    assert "1 pair on two of them" in machines.made_on(two, (STUDIES["which-half"],))


def test_whether_two_machines_agree(monkeypatch):
    here, there = runs(GPU, shift=0.002), runs(CPU, gain=0.03, seeds=(0, 1))
    monkeypatch.setattr(machines, "load_runs", lambda experiment: here)
    monkeypatch.setattr(common, "replicas", lambda experiment: there)
    both = machines.made_on_both("cifar10-lab10")
    assert len(both) == 4
    assert set(both["other device"]) == {CPU}
    assert (both["here"] - both["there"]).to_numpy() == pytest.approx([0.002, 0.002, 0.012, 0.012])
    said = machines.replicas_sentence()
    assert "4 of these runs" in said
    assert "+0.7 points" in said
    assert "with the 2 seeds that both have: +4.0 points here, +3.0 there" in said
    there = runs(GPU)  # the same machine is no other machine
    assert machines.made_on_both("cifar10-lab10").empty and machines.replicas_sentence() == ""


def test_differences_that_two_machines_made(monkeypatch):
    here, there = runs(GPU), runs(CPU, gain=0.0, seeds=(0, 1))
    monkeypatch.setattr(machines, "load_runs", lambda experiment: here)
    monkeypatch.setattr(common, "replicas", lambda experiment: there)
    table = machines.asked_again(
        {
            "A question": {
                "the other way": ("mimetic", "timm"),
                "of an arm without runs": ("timm", "xavier"),
            }
        }
    )
    assert list(table.index) == [("The gain", "mimetic initialization"), ("A question", "the other way")]
    assert table[GPU].tolist() == ["+4.0 (+4.0 to +4.0)", "−4.0 (−4.0 to −4.0)"]
    assert table["pairs"].tolist() == [2, 2]
    assert table[""].tolist() == [f"undecided on {CPU}"] * 2
    assert [machines._agree(*sides, (GPU, CPU)) for sides in ((1, 1), (-1, 1), (0, -1), (0, 0))] == [
        "the same",
        "opposite",
        f"undecided on {GPU}",
        "undecided on both",
    ]
    there = runs(GPU)  # the same machine is no other machine
    assert machines.asked_again({}).empty
    there = there.iloc[:0]
    assert machines.asked_again({}).empty


def test_whether_two_machines_agree_on_text(monkeypatch):
    here, there = (runs(device).assign(test_bits_per_byte=2.0) for device in (GPU, CPU))
    monkeypatch.setattr(machines, "load_runs", lambda experiment: here)
    monkeypatch.setattr(common, "replicas", lambda experiment: there)
    there.loc[[0, 1, 2, 3], "test_bits_per_byte"] = [2.01, 1.99, 2.01, 2.03]
    said = machines.text_replicas_sentence("share")
    assert "6 of these runs" in said
    assert "by 0.010 bits per byte (median), most at " in said
    assert said.endswith(": by 0.030.")
    there.loc[3, "test_bits_per_byte"] = 2.3
    assert "by 0.300. Where rounding decides so much" in machines.text_replicas_sentence("share")
    assert "another sign" not in machines.text_replicas_sentence("share")
    points = pd.DataFrame(
        {"arm": ["p-gpt2", "p-vision"], "seed": 0, "device.name": GPU, "test_bits_per_byte": [2.55, 2.64]}
    )
    here, there = points, points.assign(**{"device.name": CPU}, test_bits_per_byte=[2.73, 2.61])
    monkeypatch.setattr(machines, "_made_there", lambda both: "")
    points["arm"] = there["arm"] = ["gpt2", "lr-0.002-vision"]
    assert machines.moved_by_arm(("share",)).endswith(
        "a processor minus a card: default (GPT-2's) +0.180; vision signs −0.030."
    )
    points["arm"] = there["arm"] = ["p-gpt2", "p-vision"]
    assert (
        machines._turned(machines.made_on_both("share", machines.BITS))
        == " A difference to the default has another sign there: p, seed 0: vision signs +0.090 here and −0.120 there;"
        " the default itself moved by 0.180. So the sign at a single point and seed is not to be"
        " relied on."
    )
    there = here
    assert machines.text_replicas_sentence("share") == ""


def test_the_committed_replicas_are_of_another_machine():
    both = machines.made_on_both("cifar10-lab10")
    assert len(both) >= 50 and set(both["device"]).isdisjoint(both["other device"])


def test_what_runs_side_by_side_took():
    finals = runs(GPU, **{"device.together": 3, "seconds.total": 20.0})
    assert (
        machines.together_sentence(finals)
        == "6 runs in groups of up to 3 took 2 minutes of one a card, data and evaluation included: 20.0 seconds a run."
    )
    assert machines.together_sentence(runs(CPU)) == ""
