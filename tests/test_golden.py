"""A change of the code must not change the numbers: losses of tiny runs, written down once.

The records of an experiment are made over days, by versions of the code that follow one another. They belong together
as long as this test passes unchanged. Other processors round differently, so the last digits are not compared. Other
versions of PyTorch draw other numbers from one seed (trunc_normal_ changed after 2.6), so the test holds for the
version it was written with.
"""

import json
from pathlib import Path

import pytest
import torch

from mimetic.data import text
from mimetic.experiments.configs import named
from mimetic.experiments.configs.language import TRIED
from mimetic.experiments.configs.recommenders import OPPOSITE
from mimetic.experiments.runs import run

GOLDEN = Path(__file__).parent / "golden"
VERSION = ".".join(torch.__version__.split(".")[:2])
BFLOAT16 = {"precision": "bfloat16"}
SIZE = {"experiment": "golden", "d_model": 32, "depth": 2, "num_heads": 2, "epochs": 2, "device": "cpu"}
# family -> (experiment, what is smaller, its arms, what is compared of every epoch)
FAMILIES = {
    "digits": (
        "digits",
        {"train_size": 480, "lr": 3e-3},
        {
            "timm": {},
            "mimetic": {"init": "mimetic"},
            "random-directions": {"init": "mimetic-random-directions"},
            "token-learned": {"init": "mimetic", "global_pool": "token", "pos_embed": "learned"},
            "randaugment": {"randaugment_ops": 1},
            "bfloat16": {"init": "mimetic"} | BFLOAT16,
        },
        ("train_loss", "test_loss"),
    ),
    "language": (
        "pydoc",
        {"dataset": "golden", "context": 16, "steps_per_epoch": 20},
        {
            "gpt2": {},
            "language": TRIED["language"],
            "vision": TRIED["vision"],
            "bfloat16": TRIED["language"] | BFLOAT16,
        },
        ("train_loss", "test_loss", "test_bits_per_byte"),
    ),
    "recommenders": (
        "clusters",
        {"passes": 2},
        {
            "bert": {},
            "mimetic": {"init": "mimetic"},
            "opposite": OPPOSITE,
            "pre-ln": {"norm_first": True},
            "masked": {"objective": "mask", "causal": False},
            "bfloat16": {"init": "mimetic"} | BFLOAT16,
        },
        ("train_loss",),  # the metrics are ranks, which a last digit can turn over
    ),
}
# No Python version changes this text.
WORDS = ("the", "king", "said", "that", "no", "man", "of", "his", "house", "should", "speak", "again")
TOY = text.Corpus(
    {}, lambda _: text.held_out(" ".join(WORDS[i * i % 31 % 12] + "," * (i % 7 == 0) for i in range(4000)))
)


def losses(family, arm):
    experiment, smaller, arms, columns = FAMILIES[family]
    text.CORPORA["golden"] = TOY
    try:
        record = run(named(experiment, **SIZE, **smaller, **arms[arm]), store=False, progress=False)
    finally:
        del text.CORPORA["golden"]
    return [round(entry[column], 6) for entry in record["curve"] for column in columns]


# bfloat16 below, where each of the two ways that a CPU can have is tested
@pytest.mark.parametrize(
    ("family", "arm"),
    [(family, arm) for family, (_, _, arms, _) in FAMILIES.items() for arm in arms if arm != "bfloat16"],
)
def test_losses_are_what_they_were(family, arm):
    golden = json.loads((GOLDEN / f"{family}.json").read_text())
    if golden["torch"] != VERSION:
        pytest.skip(f"written with torch {golden['torch']}, this is {VERSION}")
    assert losses(family, arm) == pytest.approx(golden[arm], rel=2e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("native", [True, False])
def test_bfloat16_is_the_same_with_and_without_instructions_for_it(family, native, monkeypatch):
    golden = json.loads((GOLDEN / f"{family}.json").read_text())
    if golden["torch"] != VERSION:
        pytest.skip(f"written with torch {golden['torch']}, this is {VERSION}")
    monkeypatch.setattr("mimetic.training.backend.cpu_has_bfloat16", lambda: native)
    assert losses(family, "bfloat16") == pytest.approx(golden["bfloat16"], rel=5e-3)


if __name__ == "__main__":  # python tests/test_golden.py: after a change that is meant to change the numbers
    for name, (_, _, names, _) in FAMILIES.items():
        golden = {"torch": VERSION} | {arm: losses(name, arm) for arm in names}
        (GOLDEN / f"{name}.json").write_text(json.dumps(golden, indent=1) + "\n")
