"""As tests/test_golden.py, for text: losses of tiny runs, written down once, on a text that no Python version changes."""

import json
from pathlib import Path

import pytest

from mimetic.data import text
from mimetic.experiments.configs import named
from mimetic.experiments.configs.language import TRIED
from mimetic.experiments.runs import run

GOLDEN = Path(__file__).parent / "golden" / "language.json"
ARMS = {
    "gpt2": {},
    "language": TRIED["language"],
    "vision": TRIED["vision"],
    "bfloat16": TRIED["language"] | {"precision": "bfloat16"},
}
WORDS = ("the", "king", "said", "that", "no", "man", "of", "his", "house", "should", "speak", "again")
TOY = text.Corpus({}, lambda _: text.held_out(" ".join(WORDS[i * i % 31 % 12] + "," * (i % 7 == 0) for i in range(4000))))


def losses(arm):
    text.CORPORA["golden"] = TOY
    try:
        config = named(
            "pydoc", experiment="golden", dataset="golden", d_model=32, depth=2, num_heads=2, context=16, epochs=2, steps_per_epoch=20,
            device="cpu", **ARMS[arm],
        )  # fmt: skip
        record = run(config, store=False, progress=False)
        return [round(entry[key], 6) for entry in record["curve"] for key in ("train_loss", "test_loss", "test_bits_per_byte")]
    finally:
        del text.CORPORA["golden"]


@pytest.mark.parametrize("arm", ARMS)
def test_losses_are_what_they_were(arm):
    tolerance = 5e-3 if arm == "bfloat16" else 2e-4
    assert losses(arm) == pytest.approx(json.loads(GOLDEN.read_text())[arm], rel=tolerance)


if __name__ == "__main__":  # python tests/test_golden_language.py: after a change that is meant to change the numbers
    GOLDEN.write_text(json.dumps({arm: losses(arm) for arm in ARMS}, indent=1) + "\n")
