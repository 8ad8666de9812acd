"""A change of the code must not change the numbers: losses of tiny runs, written down once.

The records of an experiment are made over days, by versions of the code that follow one another. They belong together
as long as this test passes unchanged. Other processors round differently, so the last digits are not compared.
"""

import json
from pathlib import Path

import pytest

from mimetic.experiments.configs import named
from mimetic.experiments.runs import run

GOLDEN = Path(__file__).parent / "golden" / "digits.json"
ARMS = {
    "timm": {},
    "mimetic": {"init": "mimetic"},
    "random-directions": {"init": "mimetic-random-directions"},
    "token-learned": {"init": "mimetic", "global_pool": "token", "pos_embed": "learned"},
    "randaugment": {"randaugment_ops": 1},
    "bfloat16": {"init": "mimetic", "precision": "bfloat16"},
}


def losses(arm):
    config = named(
        "digits", experiment="golden", train_size=480, d_model=32, depth=2, num_heads=2, epochs=2, lr=3e-3, device="cpu", **ARMS[arm]
    )
    record = run(config, store=False, progress=False)
    return [round(entry[key], 6) for entry in record["curve"] for key in ("train_loss", "test_loss")]


@pytest.mark.parametrize("arm", ARMS)
def test_losses_are_what_they_were(arm):
    tolerance = 5e-3 if arm == "bfloat16" else 2e-4
    assert losses(arm) == pytest.approx(json.loads(GOLDEN.read_text())[arm], rel=tolerance)


if __name__ == "__main__":  # python tests/test_golden.py: after a change that is meant to change the numbers
    GOLDEN.write_text(json.dumps({arm: losses(arm) for arm in ARMS}, indent=1) + "\n")
