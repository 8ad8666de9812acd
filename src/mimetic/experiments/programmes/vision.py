"""The vision programme: which arms and seeds answer which question, and in which order the queue takes them.

    python -m mimetic queue recipe         the search that chose the recipe, on a split of the training set
    python -m mimetic queue lab            the questions at laboratory scale (hours; stop and start at will; with
                                           --together 60 minutes, on a GPU)
    python -m mimetic queue paper          ViT-Tiny, 50,000 images, 100 epochs, for a GPU

The arms themselves, what each changes and nothing else, are mimetic.experiments.configs.vision.ARMS.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import chain

from mimetic.experiments.configs import ARMS, RunConfig, named
from mimetic.experiments.programmes.study import Contrast, Study, once

PAIR = ("timm", "mimetic")
# Asked once, on a CPU: their runs, with those of the default and of mimetic initialization beside them, are in
# data/replicas
TRACE, NOISE_ONLY = "vp-alpha-0.001", "noise-only"
CENTRAL_SEEDS = tuple(range(6))
PAPER_SEEDS = tuple(range(5))
FIRST_SEEDS, MORE_SEEDS = (0, 1, 2), (3, 4)  # three pairs for every question first, then two more each


def pair(prefix: str) -> tuple[str, str]:
    """The default and mimetic initialization in one setting; prefix of the arms' names ("base": none)."""
    return PAIR if prefix == "base" else (f"{prefix}-{PAIR[0]}", f"{prefix}-{PAIR[1]}")


def gain(prefix: str) -> dict[str, float]:
    """Mimetic initialization minus the default in one setting, as a sum of arms (statistics.contrast)."""
    return dict(zip(pair(prefix), (-1, 1)))


def _paired(name: str, question: str, **settings: str) -> Study:
    """Mimetic initialization against the default in several settings: prefix of the arms'
    names (see pair; _ for -) -> the setting in words.
    """
    pairs = {words: pair(prefix.replace("_", "-")) for prefix, words in settings.items()}
    return Study(name, question, "cifar10-lab10", tuple(chain(*pairs.values())), pairs)


def _gains(one: str, other: str, expected: int | None = None, words: str = "") -> Contrast:
    """The gain of mimetic initialization in one setting minus that in another."""
    return Contrast(dict(zip((*pair(one), *pair(other)), (-1, 1, 1, -1))), expected, words)


def _minus(one: str, other: str, expected: int | None = None) -> Contrast:
    return Contrast({one: 1, other: -1}, expected)


CENTRAL = Study("central", "Does mimetic initialization help?", "cifar10-lab30", PAIR)
QUESTIONS = (  # in the order of the queue
    Study(
        "which-half", "Which half: QK, V·proj, or both?", "cifar10-lab10",
        ("timm", "mimetic-qk", "mimetic-vp", "mimetic"),
        None,
        {
            "V·proj only minus QK only": _minus("mimetic-vp", "mimetic-qk"),
            "both, beyond the sum of the halves": Contrast(
                {"mimetic": 1, "mimetic-qk": -1, "mimetic-vp": -1, "timm": 1}, 0
            ),
        },
    ),
    Study(
        "structure", "Is it structure or scale?", "cifar10-lab10",
        ("timm", "timm-rescaled", "random-directions", "untransposed", "swapped", "mimetic"),
        {
            "default at mimetic's norms": ("timm", "timm-rescaled"),
            "mimetic's singular values, random directions": ("timm", "random-directions"),
            "V·proj untransposed, as in public code": ("timm", "untransposed"),
            "0.4 for QK, 0.7 for V·proj": ("timm", "swapped"),
        },
        {
            "mimetic minus default at its norms": _minus("mimetic", "timm-rescaled"),
            "mimetic minus random directions": _minus("mimetic", "random-directions"),
            "mimetic minus untransposed": _minus("mimetic", "untransposed", 1),
            "mimetic minus swapped constants": _minus("mimetic", "swapped"),
        },
    ),
    Study(
        "signs", "Do the signs matter?", "cifar10-lab10",
        ("timm", "qk-minus", "vp-plus", "both-flipped", "mimetic", "mimetic-qk", "mimetic-vp"),
        {
            "QK sign flipped": ("timm", "qk-minus"), "V·proj sign flipped": ("timm", "vp-plus"),
            "both signs flipped": ("timm", "both-flipped"),
        },
        {
            "mimetic minus QK flipped": _minus("mimetic", "qk-minus", 1),
            "mimetic minus V·proj flipped": _minus("mimetic", "vp-plus", 1),
            "mimetic minus both signs flipped": _minus("mimetic", "both-flipped", 1),
            "QK left at its default minus QK flipped (V·proj right)": _minus("mimetic-vp", "qk-minus", 1),
            "V·proj left at its default minus V·proj flipped (QK right)": _minus("mimetic-qk", "vp-plus", 1),
            # added when their rows had been seen
            "QK without a diagonal minus QK flipped": _minus("qk-beta-0", "qk-minus"),
            "V·proj without a diagonal minus V·proj flipped": _minus("vp-beta-0", "vp-plus"),
        },
    ),
    _paired(
        "size", "Does the gain grow with the model?",
        d64="d 64", base="d 96, depth 6", d128="d 128", d192="d 192", depth3="depth 3", depth12="depth 12",
    ),
    _paired(
        "data", "Does it grow when data are scarce?",
        n2000="2,000 images", n5000="5,000 images", base="10,000 images", n50000="50,000 images",
    ),
    _paired(
        "position", "What do position embedding and pooling do?",
        base="sin-cos, average", learned_avg="learned, average", none_avg="no position, average",
        sincos2d_token="sin-cos, class token", learned_token="learned, class token",
        none_token="no position, class token",
    ),
    Study(
        "default", "Which default?", "cifar10-lab10",
        ("timm", "torch", "xavier", "mimetic"),
        {
            "mimetic against default (trunc-normal .02)": PAIR,
            "mimetic against PyTorch default": ("torch", "mimetic"),
            "mimetic against Xavier": ("xavier", "mimetic"),
        },
        {
            "PyTorch default minus trunc-normal .02": _minus("torch", "timm", 1),
            "Xavier minus trunc-normal .02": _minus("xavier", "timm", 1),
        },
    ),
    Study(
        "fit", "Measure, then mimic: constants fitted to a pretrained ViT", "cifar10-lab10",
        ("timm", "fit-dinov2", "fit-dinov2-raw", "mimetic"),
        {
            "fitted to DINOv2, gains folded in": ("timm", "fit-dinov2"),
            "fitted to DINOv2, raw": ("timm", "fit-dinov2-raw"),
        },
        {
            "fitted, gains folded in, minus 0.7 and 0.4": _minus("fit-dinov2", "mimetic", 1),
            "fitted, raw, minus 0.7 and 0.4": _minus("fit-dinov2-raw", "mimetic", 1),
        },
    ),
    Study(
        "constants", "How sensitive are α, β and the rank?", "cifar10-lab10",
        ("mimetic", *(
            arm for arm in ARMS["cifar10-lab10"]
            if arm.startswith(("qk-alpha", "qk-beta", "qk-rank", "vp-alpha", "vp-beta")) and arm != TRACE
        )),
        None,
        {"QK's noise alone, beside V·proj, minus V·proj only": _minus("qk-beta-0", "mimetic-vp")},
    ),
)  # fmt: skip
PRECISION = replace(
    _paired("precision", "Does bfloat16 change the answer?", base="bfloat16", float32="float32"),
    contrasts={"gain in bfloat16 minus gain in float32": _gains("base", "float32")},
)
# Added when cifar10-rates had shown, by one seed, no loss at half the rate
DEEPER = _paired(
    "deeper", "Is the loss at twelve layers the learning rate's?",
    depth12="the recipe's rate", depth12_half="half of it",
)  # fmt: skip
# Added when DEEPER's five pairs at half the rate had been ahead in all five and not decided it: five new seeds, judged
# with the first five and shown alone
DEEPER_SEEDS = tuple(range(5, 10))
DEEPER_AGAIN = replace(
    DEEPER,
    name="deeper-again",
    arms=("depth12-timm", "depth12-half-timm", "depth12-half-mimetic"),
    comparisons={
        "half of it": pair("depth12-half"),
        "each at its better rate": ("depth12-timm", "depth12-half-mimetic"),
    },
)
# Added when a GPT with fixed positions had gained, and with the same ones in a random order was to be asked: is it in
# vision that neighbours are alike?
NEIGHBOURS = _paired(
    "neighbours", "Is it that neighbours have positions that are alike?",
    base="sin-cos", shuffled_avg="the same in a random order",
)  # fmt: skip
# Added when in a random order the gain had been much the same, and only "fixed" and "large" were left of what sin-cos
# positions are
START = _paired(
    "start", "Must positions be fixed, or only large?",
    base="fixed sin-cos", from_sincos_avg="learned, starting from sin-cos",
    from_noise_avg="learned, starting from noise as large", learned_avg="learned, starting small",
)  # fmt: skip
# Added when learned ones from noise had gained little: is it that they are learned, or that noise has no few
# directions? We expected fixed noise to gain about as much as sines and cosines in a random order
FIXED_NOISE = _paired(
    "fixed-noise", "Is noise enough if it stays fixed?",
    shuffled_avg="sin-cos in a random order", noise_avg="fixed noise, as large",
    from_noise_avg="learned, starting from that noise",
)  # fmt: skip
# Added because timm's ViTs have a class token and learned positions. We expected about the gain with fixed ones and a
# class token
START_TOKEN = _paired(
    "start-token", "Do learned positions that start from sin-cos gain with a class token, too?",
    sincos2d_token="fixed sin-cos, class token", from_sincos_token="learned, starting from sin-cos, class token",
    learned_token="learned, starting small, class token",
)  # fmt: skip
# What is asked of the studies of positions and pooling together: pooling -> what is compared, in the order of the page
ASKED_OF_POSITIONS = {
    "average": (
        ("sin-cos minus none", _gains("base", "none-avg", 1, "the gain needs positions from the start")),
        ("sin-cos minus learned, starting small", _gains("base", "learned-avg", 1, "the same")),
        ("the gain in a random order itself",
         Contrast(gain("shuffled-avg"), 0, "it needs alike neighbours: none in a random order")),
        ("sin-cos minus random order", _gains("base", "shuffled-avg", 1, "the same")),
        ("sin-cos, fixed minus learned from there",
         _gains("base", "from-sincos-avg", 0, "positions need not stay fixed: no difference")),
        ("learned from sin-cos minus starting small",
         _gains("from-sincos-avg", "learned-avg", 1, "a start from sin-cos gains more than a small one")),
        ("learned from noise minus starting small",
         _gains("from-noise-avg", "learned-avg", 1, "so does one from noise")),
        ("random order minus fixed noise",
         _gains("shuffled-avg", "noise-avg", 0, "fixed noise gains as much as a random order")),
        ("noise, fixed minus learned from there", _gains("noise-avg", "from-noise-avg")),
        ("the default's accuracy: random order minus fixed noise", _minus("shuffled-avg-timm", "noise-avg-timm")),
        ("mimetic initialization's: the same", _minus("shuffled-avg-mimetic", "noise-avg-mimetic")),
        ("the default's accuracy: sin-cos minus random order", _minus("timm", "shuffled-avg-timm")),
        ("mimetic initialization's: the same", _minus("mimetic", "shuffled-avg-mimetic")),
        ("the default's accuracy: random order minus none", _minus("shuffled-avg-timm", "none-avg-timm")),
        ("mimetic initialization in a random order minus the default without positions",
         _minus("shuffled-avg-mimetic", "none-avg-timm")),
    ),
    "class token": (
        ("the gain without positions itself",
         Contrast(gain("none-token"), 0, "it needs positions here, too: none without")),
        # these two, and what is asked of both: added when their runs were in
        ("sin-cos minus none", _gains("sincos2d-token", "none-token")),
        ("sin-cos minus learned, starting small", _gains("sincos2d-token", "learned-token")),
        ("sin-cos, fixed minus learned from there",
         _gains("sincos2d-token", "from-sincos-token", 0, "as with average pooling: no difference")),
        ("learned from sin-cos minus starting small",
         _gains("from-sincos-token", "learned-token", 1, "a start from sin-cos gains more")),
    ),
    "both": (
        ("sin-cos: average minus class token", _gains("base", "sincos2d-token")),
        ("the default's accuracy: sin-cos, average minus learned, class token", _minus("timm", "learned-token-timm")),
    ),
}  # fmt: skip
# One seed, validation images: whether the recipe, chosen for the default, is unfair to an arm
RATES = Study("rates", "Does one learning rate suit every arm?", "cifar10-rates", tuple(ARMS["cifar10-rates"]), {})
STUDIES = {
    study.name: study for study in (CENTRAL, *QUESTIONS, PRECISION, DEEPER, NEIGHBOURS, START, FIXED_NOISE, START_TOKEN)
}

RECIPE = Study(
    "recipe", "Which recipe? (default arm, validation images)", "cifar10-recipe", tuple(ARMS["cifar10-recipe"])
)


def lab_runs() -> list[RunConfig]:
    """The central claim, every question with three seeds, the learning rates, then every question with two more seeds,
    and what was asked later; each run once.
    """
    runs = [*CENTRAL.runs(CENTRAL_SEEDS)]
    for seeds in (FIRST_SEEDS, MORE_SEEDS):
        for study in QUESTIONS:
            runs += study.runs(seeds)
        if seeds == FIRST_SEEDS:
            runs += RATES.runs((0,))
    runs += PRECISION.runs(FIRST_SEEDS)
    runs += DEEPER.runs((*FIRST_SEEDS, *MORE_SEEDS))
    runs += DEEPER_AGAIN.runs(DEEPER_SEEDS)
    for study in (NEIGHBOURS, START, FIXED_NOISE, START_TOKEN):
        runs += study.runs((*FIRST_SEEDS, *MORE_SEEDS))
    return once(runs)


def recipe_runs() -> list[RunConfig]:
    """The search: every setting once, and the base with a second seed to see what a seed is worth. The rule: a setting
    replaces the base's if it is better by more than a point, which is about what a seed is worth."""
    return [*RECIPE.runs((0,)), named(RECIPE.experiment, arm="base", seed=1)]


def paper_runs() -> list[RunConfig]:
    """For a GPU, in order of priority: five pairs on CIFAR-10, on CIFAR-100, with ViT-Small; then questions 1 to 3."""
    runs = []
    for experiment in ("cifar10-paper", "cifar100-paper", "cifar10-small"):
        runs += Study("paper", CENTRAL.question, experiment, PAIR).runs(PAPER_SEEDS)
    for name in ("which-half", "structure", "signs"):
        runs += replace(STUDIES[name], experiment="cifar10-paper").runs(FIRST_SEEDS)
    return once(runs)


QUEUES = {"lab": lab_runs, "paper": paper_runs, "recipe": recipe_runs}
