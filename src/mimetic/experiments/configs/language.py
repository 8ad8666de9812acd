"""Language experiments by name, and their arms: every setting of every run, nothing that computes.

tinyshakespeare-recipe
    The search for the learning rate, of every arm alike: one seed, judged on the last tenth of the training text.
tinyshakespeare
    The central comparison, each arm at the rate that the search chose for it: tiny Shakespeare by character, GPT of
    d 128, depth 4, 4 heads, context 128 (0.8 M parameters), 1,200 steps of 16 windows: 2.5 million characters, two and
    a half passes.
tinyshakespeare-rate
    The default and both sets of signs at one rate for all: a gentle one, and the default's best; and the arms for which
    the search had two rates that one seed cannot tell apart, at the other of them.
wikitext2
    The same model on WikiText-2 with a byte-level BPE of 2,000 tokens, 1,200 steps; the default at half its rate, too.
share
    The authors' guess: attention stays as it is, its share of all parameters changes with the vocabulary, the MLP and
    the depth; WikiText-2, 1,200 steps.
share-sincos
    The default and vision's signs at every point of that sweep with fixed sin-cos positions, with which a GPT gains.
tinyshakespeare-long
    Five times as long, to see where it ends: 6,000 steps, twelve passes.
tinyshakespeare-halves
    The default, vision's signs and each of their halves once more, all on one machine; V.proj alone at both rates that
    its search could not tell apart, and the default at the one that all the others have (GENTLE), too.
wikitext2-halves
    The same on the other text.
tinyshakespeare-sincos
    The default, both sets of signs, each half of vision's and the controls of size with fixed sin-cos positions, since
    learned ones take vision's gain away (cifar10-lab10).
tinyshakespeare-KIND, tinyshakespeare-KIND-recipe
    The default and vision's signs with other positions (models.gpt), and the search for their rates, which sincos has,
    too. KIND is one of
    scaled       learned once more, tokens and positions times sqrt(d): what enters is as large as with fixed ones
    shuffled     the fixed ones in a random order: as large, but neighbours are not alike; with the controls of size
    centred      the fixed ones without what all positions have in common, their mean
    rotary       no embedding of positions: queries and keys are rotated by their places, as in most language models
                 since 2021; with the language signs, too
    from-sincos  learned ones that start from sines and cosines, tokens as large as with fixed ones
    from-noise   the same from noise as large: must positions be fixed, alike where they are near, or only large?
wikitext2-sincos, tinyshakespeare-sincos-long
    The default and both sets of signs with fixed positions on the other text, and for 6,000 steps.
tinyshakespeare-from-sincos-long
    The default, at both rates that its search could not tell apart, and vision's signs with learned positions that
    start from sines and cosines, for 6,000 steps.
wikitext2-from-sincos
    The default and vision's signs with learned positions that start from sines and cosines, on the other text; and the
    default at the rate that it has with fixed ones.
tinyshakespeare-narrow
    One run of width 96, whose trained products FITTED imitates.
wikitext2-gpu, share-gpu
    WikiText-2 with a vocabulary of 8,000, GPT of d 512, depth 8, context 512 (29 M parameters), 800 steps; and the
    share of attention at that size. For a GPU, not run yet, one learning rate for all arms: no expected numbers.
pydoc
    Python's help texts by character: no download, a demonstration that everything works, not evidence.

An "epoch" is a fixed number of steps; a step is batch_size windows of `context` tokens from random places of the
training text.

The learning rate is the one setting in which arms differ, because it decides the comparison: at the default's best
rate, 8e-3, the first runs with mimetic initialization learned hardly more than which character follows which, and at a
gentle one the default is far from its best. So every arm has the same search over the same rates (CHOSEN), on tiny
Shakespeare's training text only; WikiText-2 takes the rates as they are. The comparisons at one rate for all stand
beside it.

About 2.5 minutes a run of tinyshakespeare on one otherwise idle core of an AMD EPYC of 2023, 4 to 5 beside three other
processes on two cores; by that measure wikitext2 takes 6 minutes, share from 2 to 14, tinyshakespeare-long 13, and the
programme over a day (29 hours) of one core.

Arms of one seed are paired: they see the same windows in the same order, and share every initial weight that their
initializers do not set differently. The runs train in bfloat16 on a CPU too (AdamW and the weights in float32), which
is 1.7 times as fast where the CPU has instructions for it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from mimetic.experiments.configs.base import RunConfig


@dataclass(frozen=True)
class LanguageConfig(RunConfig):
    """A GPT that is trained to predict text."""

    family: ClassVar[str] = "mimetic.experiments.language"
    default_init: ClassVar[str] = "gpt2"

    init: str = "gpt2"  # initializer by name, one of mimetic.INITIALIZERS

    # with this sign the constants are mimetic.LANGUAGE

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
    num_heads: int = 4  # must divide d_model
    mlp_ratio: float = 4.0  # hidden width of the MLP / d_model
    # learned, as GPT-2's; scaled: these and the tokens times sqrt(d_model); sincos: fixed; shuffled, centred,
    # from-sincos, from-noise: controls; rotary (models.gpt)
    pos_embed: str = "learned"


RATES = (1e-3, 2e-3, 4e-3, 8e-3)  # of the search, for every arm
# one rate more, for the arms whose best is the highest of those, or might be
EDGE_RATE, AT_EDGE = 16e-3, ("gpt2", "speedrun", "tenth")
# arm -> learning rate: the best of the search. A test compares it with the committed records; an arm that is not here
# is still searched for.
CHOSEN: dict[str, float] = {
    "gpt2": 8e-3, "language": 4e-3, "vision": 2e-3, "qk": 2e-3, "vp": 2e-3, "vp-minus": 4e-3, "fit": 4e-3,
    "speedrun": 8e-3, "rescaled": 4e-3, "random-directions": 2e-3, "gpt2-signs": 2e-3, "both-minus": 4e-3,
    "tenth": 8e-3,
}  # fmt: skip
GENTLE = 2e-3
TIE = 0.025  # bits per byte: two runs of one configuration and seed on two machines differ by up to 0.044
# arm -> the rate that was second in the search and not worse by more than a run's own noise (TIE): there the search, of
# one seed, cannot tell. Which those are follows from the search's records; a test compares.
RUNNER_UP: dict[str, float] = {
    "gpt2": 4e-3, "language": 2e-3, "vp-minus": 2e-3, "random-directions": 4e-3, "both-minus": 2e-3, "tenth": 4e-3,
}  # fmt: skip

# The same for the model with other positions (GPTConfig.pos_embed), each kind with a search of its own: kind -> the
# arms there, and the rates chosen.
OTHER_POSITIONS: dict[str, tuple[tuple[str, ...], dict[str, float]]] = {
    "sincos": (
        ("gpt2", "language", "vision", "rescaled", "random-directions", "qk", "vp-minus"),
        {
            "gpt2": 4e-3, "language": 4e-3, "vision": 4e-3, "rescaled": 8e-3, "random-directions": 4e-3, "qk": 4e-3,
            "vp-minus": 4e-3,
        },
    ),
    "shuffled": (
        ("gpt2", "vision", "rescaled", "random-directions"),
        {"gpt2": 2e-3, "vision": 2e-3, "rescaled": 4e-3, "random-directions": 2e-3},
    ),
    "scaled": (("gpt2", "vision"), {"gpt2": 4e-3, "vision": 4e-3}),
    "centred": (("gpt2", "vision"), {"gpt2": 4e-3, "vision": 4e-3}),
    "rotary": (("gpt2", "language", "vision"), {"gpt2": 8e-3, "language": 4e-3, "vision": 4e-3}),
    "from-sincos": (("gpt2", "vision"), {"gpt2": 8e-3, "vision": 4e-3}),
    "from-noise": (("gpt2", "vision"), {"gpt2": 4e-3, "vision": 4e-3}),
}  # fmt: skip
# kind -> the arms whose best is the highest of RATES: EDGE_RATE, too
AT_EDGE_OF = {"sincos": ("gpt2", "rescaled"), "rotary": ("gpt2",), "from-sincos": ("gpt2",)}
# kind -> where the rate that came second in the search is run, too: a loss, or a gain over the default, may be the
# rate's
SECOND_RATE = {"scaled": {"vision": 2e-3}, "from-sincos": {"gpt2": 4e-3}}
SINCOS_CHOSEN = OTHER_POSITIONS["sincos"][1]


def with_positions(kind: str, search: bool = False) -> str:
    """What the experiment on tiny Shakespeare with these positions is called, or its search."""
    return f"tinyshakespeare-{kind}{'-recipe' * search}"


LAB = LanguageConfig(
    "tinyshakespeare", epochs=12, batch_size=16, lr=CHOSEN["gpt2"], weight_decay=0.1, curve_tokens=20_000, threads=1,
    precision="bfloat16",
)  # fmt: skip
WIKITEXT2 = replace(LAB, experiment="wikitext2", dataset="wikitext2", tokenizer="bpe", vocab_size=2_000)
LONG = replace(LAB, experiment="tinyshakespeare-long", epochs=30, steps_per_epoch=200)
GPU = replace(
    WIKITEXT2, experiment="wikitext2-gpu", vocab_size=8_000, context=512, d_model=512, depth=8, num_heads=8,
    batch_size=32, epochs=8, lr=5e-4, curve_tokens=100_000, precision="auto",
)  # fmt: skip
EXPERIMENTS: dict[str, LanguageConfig] = {
    config.experiment: config
    for config in (
        LAB,
        WIKITEXT2,
        replace(WIKITEXT2, experiment="share", vocab_size=1_000),
        replace(WIKITEXT2, experiment="share-recipe", vocab_size=1_000, validation=True),
        replace(WIKITEXT2, experiment="share-sincos", vocab_size=1_000, pos_embed="sincos"),
        replace(WIKITEXT2, experiment="share-sincos-recipe", vocab_size=1_000, pos_embed="sincos", validation=True),
        replace(LAB, experiment="tinyshakespeare-rate"),
        replace(LAB, experiment="tinyshakespeare-halves"),
        replace(WIKITEXT2, experiment="wikitext2-halves"),
        LONG,
        replace(LAB, experiment="tinyshakespeare-narrow", d_model=96, num_heads=3, epochs=20),
        *(replace(LAB, experiment=with_positions(kind), pos_embed=kind) for kind in OTHER_POSITIONS),
        *(
            replace(LAB, experiment=with_positions(kind, search=True), pos_embed=kind, validation=True, lr=1e-3)
            for kind in OTHER_POSITIONS
        ),
        *(
            replace(LONG, experiment=f"{with_positions(kind)}-long", pos_embed=kind)
            for kind in ("sincos", "from-sincos")
        ),
        replace(WIKITEXT2, experiment="wikitext2-sincos", pos_embed="sincos"),
        replace(WIKITEXT2, experiment="wikitext2-from-sincos", pos_embed="from-sincos"),
        replace(LAB, experiment="tinyshakespeare-recipe", validation=True, lr=1e-3),
        GPU,
        replace(GPU, experiment="share-gpu"),
        LanguageConfig(
            "pydoc", dataset="pydoc", context=64, d_model=64, depth=3, num_heads=2, batch_size=16, lr=2e-3,
            weight_decay=0.1, epochs=5, steps_per_epoch=40, threads=1,
        ),
    )
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

# What an arm changes of the default, besides its learning rate.
SIGNS: dict[str, dict[str, Any]] = {
    "gpt2": {"init": "gpt2"},
    "language": {"init": "mimetic"},
    "vision": {"init": "mimetic", **VISION_SIGNS},
}
TRIED: dict[str, dict[str, Any]] = {
    **SIGNS,
    "qk": {"init": "mimetic-qk"},
    "vp": {"init": "mimetic-vp"},
    "fit": {"init": "mimetic", **FITTED},
    # what a public speed-run tried (KellerJordan/modded-nanogpt, pull request 214): W_V W_proj = -0.05 I, QK as it was;
    # there with a little noise, of standard deviation .01 in the weights
    "speedrun": {"init": "mimetic-vp", "vp_alpha": 0.0, "vp_beta": -0.05},
}
CONTROLS: dict[str, dict[str, Any]] = {
    # the default at the norms of mimetic initialization, and mimetic's singular values without its directions: is it
    # the size?
    "rescaled": {"init": "timm-rescaled"},
    "random-directions": {"init": "mimetic-random-directions"},
    # the signs that a secondary source reports of GPT-2, and the fourth pair of signs
    "gpt2-signs": {"init": "mimetic", "qk_beta": -0.7, "vp_beta": 0.4},
    "both-minus": {"init": "mimetic", "qk_beta": -0.7, "vp_beta": -0.4},
    # vision's structure at a tenth of its size
    "tenth": {"init": "mimetic", "qk_alpha": 0.07, "qk_beta": 0.07, "vp_alpha": 0.04, "vp_beta": -0.04},
}
EVERY = TRIED | CONTROLS
ASKED_AGAIN = {name: lr for name, lr in RUNNER_UP.items() if name in EVERY}  # at their second rate, in -rate
KNOWN = EVERY | {"vp-minus": {"init": "mimetic-vp", "vp_beta": -0.4}}  # V.proj alone, with vision's sign


def at_own_rate(*names: str, chosen: dict[str, float] = CHOSEN) -> dict[str, dict[str, Any]]:
    """Arms with the learning rate that the search chose for each; those that
    it has chosen none for yet are left out.
    """
    return {name: {**KNOWN[name], "lr": chosen[name]} for name in names if name in chosen}


def search_arms(names: Iterable[str], at_edge: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The runs of a search: every arm at every rate, and those whose best is the highest of them at EDGE_RATE, too."""
    return {
        searched(name, lr): {**KNOWN[name], "lr": lr}
        for name in names
        for lr in (*RATES, *[EDGE_RATE] * (name in at_edge))
    }


NOT_ITS_OWN = "lr-"  # how the name of an arm at a rate that is not its own begins


def rated(name: str, lr: float) -> str:
    """What an arm at a rate that is not its own is called."""
    return f"{NOT_ITS_OWN}{lr:g}-{name}"


def at_other_rates(rates: dict[str, float]) -> dict[str, dict[str, Any]]:
    """Arms at rates that are not their own, arm -> rate, under the names that they have there."""
    return {rated(name, lr): {**KNOWN[name], "lr": lr} for name, lr in rates.items()}


def at_rate(lr: float) -> dict[str, dict[str, Any]]:
    """The default and both sets of signs at one learning rate."""
    return at_other_rates(dict.fromkeys(SIGNS, lr))


def searched(name: str, lr: float) -> str:
    """What a run of the search is called; the default's were the first, and have no prefix."""
    return f"{name}-lr-{lr:g}" if name != "gpt2" else "base" if lr == RATES[0] else f"lr-{lr:g}"


# The points of the sweep: what each changes of "share"; width and heads of attention are the same in every layer.
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
# The two ends of the sweep, at which the rates that were found on tiny Shakespeare are checked, by a part of the
# training text
ENDS = ("v256-mlp1", "v16000")


def end_rates(lr: float) -> tuple[float, float, float]:
    """The rates that are tried there of an arm for which the search chose lr: this one, half of it and twice it."""
    return lr / 2, lr, lr * 2


def _at_ends(*names: str, chosen: dict[str, float] = CHOSEN) -> dict[str, dict[str, Any]]:
    """The arms of that check."""
    return {
        f"{point}-{searched(name, lr)}": {**SHARES[point], **KNOWN[name], "lr": lr}
        for point in ENDS
        for name in names
        for lr in end_rates(chosen[name])
    }


def _sweep(arms: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {f"{point}-{name}": {**changes, **arm} for point, changes in SHARES.items() for name, arm in arms.items()}


# Arms of an experiment besides the plain initializers: name -> what the arm changes, everything else is the
# experiment's.
ARMS: dict[str, dict[str, dict[str, Any]]] = {
    "tinyshakespeare-recipe": search_arms(KNOWN, AT_EDGE),
    **{
        with_positions(kind, search=True): search_arms(arms, AT_EDGE_OF.get(kind, ()))
        for kind, (arms, _) in OTHER_POSITIONS.items()
    },
    "share-recipe": _at_ends(*SIGNS),
    "share-sincos-recipe": _at_ends("gpt2", "vision", chosen=SINCOS_CHOSEN),
    "tinyshakespeare": at_own_rate(*EVERY),
    "wikitext2": at_own_rate(*TRIED) | at_other_rates({"gpt2": RUNNER_UP["gpt2"]}),
    "tinyshakespeare-long": at_own_rate(*SIGNS),
    **{
        with_positions(kind): at_own_rate(*arms, chosen=chosen) | at_other_rates(SECOND_RATE.get(kind, {}))
        for kind, (arms, chosen) in OTHER_POSITIONS.items()
    },
    "tinyshakespeare-sincos-long": at_own_rate(*SIGNS, chosen=SINCOS_CHOSEN),
    "tinyshakespeare-from-sincos-long": at_own_rate("gpt2", "vision", chosen=OTHER_POSITIONS["from-sincos"][1])
    | at_other_rates(SECOND_RATE["from-sincos"]),
    "wikitext2-sincos": at_own_rate(*SIGNS, chosen=SINCOS_CHOSEN),
    "wikitext2-from-sincos": at_own_rate("gpt2", "vision", chosen=OTHER_POSITIONS["from-sincos"][1])
    | at_other_rates({"gpt2": SINCOS_CHOSEN["gpt2"]}),
    "tinyshakespeare-rate": at_rate(GENTLE) | at_rate(CHOSEN["gpt2"]) | at_other_rates(ASKED_AGAIN),
    **dict.fromkeys(
        ("tinyshakespeare-halves", "wikitext2-halves"),
        at_own_rate("gpt2", "vision", "qk", "vp-minus") | at_other_rates({"vp-minus": GENTLE, "gpt2": GENTLE}),
    ),
    "share": _sweep(at_own_rate(*SIGNS)),
    "share-sincos": _sweep(at_own_rate("gpt2", "vision", chosen=SINCOS_CHOSEN)),
    "wikitext2-gpu": {name: arm for name, arm in TRIED.items() if name != "fit"},  # FITTED has four layers
    "share-gpu": _sweep(SIGNS),
    "pydoc": SIGNS,
}
