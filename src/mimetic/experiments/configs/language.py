"""Language experiments by name, and their arms: every setting of every run, nothing that computes.

tinyshakespeare    the central comparison: tiny Shakespeare by character, GPT of d 128, depth 4, 4 heads, context 128 (0.8 M
                 parameters), 1,200 steps of 16 windows: 2.5 million characters, two and a half passes
tinyshakespeare-rate  default and both sets of signs at GENTLE, a quarter of that learning rate
wikitext2        the same model on WikiText-2 with a byte-level BPE of 2,000 tokens, 1,200 steps
share            the authors' guess: attention stays as it is, its share of all parameters changes with the vocabulary, the MLP and
                 the depth; WikiText-2, 600 steps
tinyshakespeare-long  five times as long, to see where it ends: 6,000 steps, twelve passes
tinyshakespeare-narrow  one run of width 96, whose trained products FITTED imitates
tinyshakespeare-recipe  the search that chose the recipe: default arm, judged on the last tenth of the training text
wikitext2-gpu    WikiText-2 with a vocabulary of 8,000, GPT of d 512, depth 8, context 512 (29 M parameters), 800 steps; and the
share-gpu        share of attention at that size. For a GPU, not run yet: no expected numbers
pydoc            Python's help texts by character: no download, a demonstration that everything works, not evidence

An "epoch" is a fixed number of steps; a step is batch_size windows of `context` tokens from random places of the training text.
The learning rate was searched with the default only, and 8e-3 was the best. At that rate the first runs with mimetic initialization
(tinyshakespeare, seed 0) learned hardly more than which character follows which, so the experiments after the central one are run
at GENTLE, where every arm learns; with eyes open, that is, but for every arm alike.

About 2.5 minutes a run of tinyshakespeare on one otherwise idle core of an AMD EPYC of 2023, 4 to 5 beside three other processes on
two cores; by that measure wikitext2 takes 6 minutes, share from 1 to 7, tinyshakespeare-long 13, and the programme 10 hours of one core.

All arms of an experiment have the recipe in common. Arms of one seed are paired: they see the same windows in the same order, and
share every initial weight that their initializers do not set differently. The runs train in bfloat16 on a CPU too (AdamW and the
weights in float32), which is 1.7 times as fast where the CPU has instructions for it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from mimetic.experiments.configs.base import RunConfig


@dataclass(frozen=True)
class LanguageConfig(RunConfig):
    """A GPT that is trained to predict text."""

    family: ClassVar[str] = "mimetic.experiments.language"
    default_init: ClassVar[str] = "gpt2"

    init: str = "gpt2"  # initializer by name, one of mimetic.INITIALIZERS

    # the mimetic initializers' constants, one number or one a layer; the defaults are mimetic.LANGUAGE
    qk_alpha: float | tuple[float, ...] = 0.7  # noise of W_Q W_K^T
    qk_beta: float | tuple[float, ...] = 0.7  # identity of W_Q W_K^T
    vp_alpha: float | tuple[float, ...] = 0.4  # noise of W_V W_proj
    vp_beta: float | tuple[float, ...] = 0.4  # identity of W_V W_proj

    # data
    dataset: str = "tinyshakespeare"  # tinyshakespeare, wikitext2, pydoc
    tokenizer: str = "char"  # char, or bpe: byte-level byte-pair encoding
    vocab_size: int = 0  # of the bpe, from 256; 0 for char: the characters of the corpus
    validation: bool = False  # evaluate on the last tenth of the training text instead (to choose a recipe)
    steps_per_epoch: int = 100  # what counts as an epoch
    curve_tokens: int | None = None  # about so many tokens are evaluated after every epoch but the last; None: all

    # model
    context: int = 128  # tokens of a window
    d_model: int = 128  # width of the tokens
    depth: int = 4  # blocks
    num_heads: int = 4
    mlp_ratio: float = 4.0  # hidden width of the MLP / d_model


LAB = LanguageConfig(
    "tinyshakespeare", epochs=12, batch_size=16, lr=8e-3, weight_decay=0.1, curve_tokens=20_000, threads=1, precision="bfloat16",
)  # fmt: skip
GENTLE = LAB.lr / 4
WIKITEXT2 = replace(LAB, experiment="wikitext2", lr=GENTLE, dataset="wikitext2", tokenizer="bpe", vocab_size=2_000)
GPU = replace(
    WIKITEXT2, experiment="wikitext2-gpu", vocab_size=8_000, context=512, d_model=512, depth=8, num_heads=8, batch_size=32, epochs=8,
    lr=5e-4, curve_tokens=100_000, precision="auto",
)  # fmt: skip
EXPERIMENTS: dict[str, LanguageConfig] = {
    "tinyshakespeare": LAB,
    "wikitext2": WIKITEXT2,
    "share": replace(WIKITEXT2, experiment="share", vocab_size=1_000, epochs=6),
    "tinyshakespeare-rate": replace(LAB, experiment="tinyshakespeare-rate", lr=GENTLE),
    "tinyshakespeare-long": replace(LAB, experiment="tinyshakespeare-long", lr=GENTLE, epochs=30, steps_per_epoch=200),
    "tinyshakespeare-narrow": replace(LAB, experiment="tinyshakespeare-narrow", d_model=96, num_heads=3, epochs=20),
    "tinyshakespeare-recipe": replace(LAB, experiment="tinyshakespeare-recipe", validation=True, lr=1e-3),
    "wikitext2-gpu": GPU,
    "share-gpu": replace(GPU, experiment="share-gpu"),
    "pydoc": LanguageConfig(
        "pydoc", dataset="pydoc", context=64, d_model=64, depth=3, num_heads=2, batch_size=16, lr=2e-3, weight_decay=0.1, epochs=5,
        steps_per_epoch=40, threads=1,
    ),
}  # fmt: skip

# Constants that imitate our own trained GPT of another width, python -m mimetic.experiments.fitted: the products of
# tinyshakespeare-narrow after training, LayerNorm gains folded in. A test compares them with the committed record.
FITTED: dict[str, tuple[float, ...]] = {
    "qk_alpha": (0.476, 0.303, 0.433, 0.564),
    "qk_beta": (0.0201, 0.00985, 0.0187, 0.00561),
    "vp_alpha": (0.353, 0.33, 0.403, 0.401),
    "vp_beta": (0.00722, -0.0333, -0.0429, -0.0279),
}
VISION_SIGNS = {"qk_alpha": 0.7, "qk_beta": 0.7, "vp_alpha": 0.4, "vp_beta": -0.4}  # mimetic.VISION

RECIPE_LR = (2e-3, 4e-3, 8e-3, 16e-3)

TRIED: dict[str, dict[str, Any]] = {
    "language": {"init": "mimetic"},
    "vision": {"init": "mimetic", **VISION_SIGNS},
    "qk": {"init": "mimetic-qk"},
    "vp": {"init": "mimetic-vp"},
    "fit": {"init": "mimetic", **FITTED},
    # what a public speed-run tried (KellerJordan/modded-nanogpt, pull request 214): W_V W_proj = -0.05 I, no noise, QK as it was
    "speedrun": {"init": "mimetic-vp", "vp_alpha": 0.0, "vp_beta": -0.05},
}

# The points of the sweep: what each changes of "share"; attention itself is the same in every layer.
SHARES: dict[str, dict[str, Any]] = {
    "v256-mlp1": {"vocab_size": 256, "mlp_ratio": 1.0},
    "mlp1": {"mlp_ratio": 1.0},
    "v256": {"vocab_size": 256},
    "base": {},
    "v4000": {"vocab_size": 4_000},
    "mlp8": {"mlp_ratio": 8.0},
    "v16000": {"vocab_size": 16_000},
    "depth2": {"depth": 2},
}
_SWEEP = {
    f"{point}-{name}": {**changes, **arm}
    for point, changes in SHARES.items()
    for name, arm in {"gpt2": {"init": "gpt2"}, "language": TRIED["language"], "vision": TRIED["vision"]}.items()
}

# Arms of an experiment besides the plain initializers: name -> what the arm changes, everything else is the experiment's.
ARMS: dict[str, dict[str, dict[str, Any]]] = {
    "tinyshakespeare": TRIED,
    "wikitext2": TRIED,
    "wikitext2-gpu": {name: arm for name, arm in TRIED.items() if name != "fit"},  # FITTED has four layers
    "tinyshakespeare-long": {name: TRIED[name] for name in ("language", "vision")},
    "tinyshakespeare-rate": {
        f"lr-{GENTLE:g}-{name}": arm
        for name, arm in {"gpt2": {"init": "gpt2"}, "language": TRIED["language"], "vision": TRIED["vision"]}.items()
    },
    "share": _SWEEP,
    "share-gpu": _SWEEP,
    "pydoc": {name: TRIED[name] for name in ("language", "vision")},
    # the default arm only: the learning rate, from nanoGPT's 1e-3 upwards until it stops to pay
    "tinyshakespeare-recipe": {f"lr-{lr:g}": {"lr": lr} for lr in RECIPE_LR} | {"base": {}},
}
