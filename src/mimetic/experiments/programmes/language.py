"""The language programme: which arms and seeds answer which question, and in which order the queue takes them.

    python -m mimetic queue language-recipe    the search for every arm's learning rate, on a part of the training text
    python -m mimetic queue language           the comparison on two corpora, controls, the sweep of attention's share,
                                               runs to convergence
    python -m mimetic queue language-gpu       the comparison and the sweep with a larger model, for a GPU

The arms themselves, what each changes and nothing else, are mimetic.experiments.configs.language.ARMS.
"""

from __future__ import annotations

from collections.abc import Mapping

from mimetic.experiments.configs import ARMS, RunConfig, named
from mimetic.experiments.configs.language import (
    ASKED_AGAIN,
    CHOSEN,
    CONTROLS,
    GENTLE,
    OTHER_POSITIONS,
    RUNNER_UP,
    SECOND_RATE,
    SHARES,
    SIGNS,
    SINCOS_CHOSEN,
    TRIED,
    at_rate,
    rated,
    with_positions,
)
from mimetic.experiments.programmes.study import Contrast, Study, once

CENTRAL_SEEDS = tuple(range(6))  # the fewest with which an exact two-sided test can give p < 0.05
FIRST_SEEDS = (0, 1, 2)  # three pairs for every question first


def _ready(names) -> tuple[str, ...]:
    """The arms that have a learning rate already."""
    return tuple(name for name in names if name in CHOSEN)


def _of_all_arms(name: str, question: str, experiment: str, *more, **named_more) -> Study:
    """A study of every arm that the experiment has; what else a Study takes."""
    return Study(name, question, experiment, tuple(ARMS[experiment]), *more, **named_more)


def _over_both(lr: float) -> dict[str, tuple[str, str]]:
    """Vision's signs over the default at its own rate, and at another."""
    return {
        "vision signs": ("gpt2", "vision"),
        f"vision signs, over the default at {lr:g}": (rated("gpt2", lr), "vision"),
    }


def _signs(chosen: Mapping[str, float]) -> dict[str, Contrast]:
    """Both sets of signs against each other: where each has a rate of its own, the difference is not of the signs
    alone; book.rates.signs_at_one_rate has that."""
    own = {chosen["language"], chosen["vision"]}
    at = "each at its own rate" if len(own) > 1 else f"both at {own.pop():g}"
    return {f"language signs minus vision signs, {at}": Contrast({"language": 1, "vision": -1})}


SIGN = _signs(CHOSEN)


# The halves of vision's signs. Asked with fixed positions first, when language signs had gained nothing there, which
# differ from vision's in V.proj alone: we expected that half alone to gain what the whole does, and QK's nothing. It
# gained two thirds, QK nothing, and the whole more than both. With learned positions, where the whole loses as much as
# QK alone, we expected V.proj alone to lose less than half of that
def _halves(
    over_vp: int | None = None,
    over_qk: int | None = None,
    over_sum: int | None = None,
    vp: str = "vp-minus",
    default: str = "gpt2",
    at: str = "",
) -> dict[str, Contrast]:
    """Vision's signs against each of their halves, with what we expected of it, and against the sum of both; with which
    arms for V.proj alone and the default the sum is made, since all four must have one rate (at: which, in words)."""
    return {
        "vision signs minus V·proj alone, vision's sign": Contrast({"vision": 1, "vp-minus": -1}, over_vp),
        "vision signs minus QK alone": Contrast({"vision": 1, "qk": -1}, over_qk),
        f"vision signs minus the sum of both halves{at}": Contrast(
            {"vision": 1, "qk": -1, vp: -1, default: 1}, over_sum
        ),
    }


CENTRAL = Study("central", "tiny Shakespeare, by character", "tinyshakespeare", _ready(TRIED), contrasts=SIGN)
WIKITEXT2 = Study("wikitext2", "WikiText-2, byte-pair encoded", "wikitext2", _ready(TRIED), contrasts=SIGN)
# as large as mimetic's weights, without a diagonal
SIZES = {"default at mimetic's norms": "rescaled", "random directions": "random-directions"}


def _beyond_size(sign: str) -> dict[str, Contrast]:
    """Signs against both controls of their size, each at its own rate."""
    return {f"{sign} signs minus {name}": Contrast({sign: 1, arm: -1}) for name, arm in SIZES.items()}


BEYOND_SIZE = _beyond_size("vision") | _beyond_size("language")
STRUCTURE = Study(
    "structure", "tiny Shakespeare, controls: structure or scale?", "tinyshakespeare",
    _ready(("gpt2", *CONTROLS, "language", "vision")),
    {
        "default at mimetic's norms": ("gpt2", "rescaled"),
        "mimetic's singular values, random directions": ("gpt2", "random-directions"),
        "GPT-2's signs as reported (QK −, V·proj +)": ("gpt2", "gpt2-signs"),
        "QK −, V·proj −": ("gpt2", "both-minus"),
        "a tenth of vision's constants": ("gpt2", "tenth"),
    },
    BEYOND_SIZE
    | {"language signs minus GPT-2's signs, each at its own rate": Contrast({"language": 1, "gpt2-signs": -1})},
)  # fmt: skip
RATE = Study(
    "rate", "tiny Shakespeare, one learning rate for all", "tinyshakespeare-rate",
    (*at_rate(GENTLE), *at_rate(CHOSEN["gpt2"])),
    {
        f"{sign} signs, all at {lr:g}": (f"lr-{lr:g}-gpt2", f"lr-{lr:g}-{sign}")
        for lr in (GENTLE, CHOSEN["gpt2"])
        for sign in ("language", "vision")
    },
)  # fmt: skip
# Asked after a reader had seen that the search chose between rates that its one seed cannot tell apart
SECOND = Study(
    "second", "The second rate of the search, where one seed cannot tell", "tinyshakespeare-rate",
    tuple(rated(name, lr) for name, lr in ASKED_AGAIN.items()),
    {},
)  # fmt: skip
# V.proj alone, with vision's sign, at the rate of its own and at the one that the search could not tell from it
VP_MINUS = {"": "vp-minus", f" at {GENTLE:g}": rated("vp-minus", GENTLE)}
EACH_HALF = {"vision signs": ("gpt2", "vision"), "QK only": ("gpt2", "qk")} | {
    f"V·proj only, vision's sign{',' * bool(at)}{at}": ("gpt2", arm) for at, arm in VP_MINUS.items()
}
# The default at GENTLE was added when a reader had seen that the sum of the halves counts the default's rate twice. We
# expected that the whole then loses as much as the sum on tiny Shakespeare (three pairs of other runs had shown that),
# and less on WikiText-2
GENTLE_DEFAULT = rated("gpt2", GENTLE)
ALL_GENTLE = {
    f"{name}, all at {GENTLE:g}": (GENTLE_DEFAULT, arm)
    for name, arm in {
        "vision signs": "vision", "QK only": "qk", "V·proj only, vision's sign": rated("vp-minus", GENTLE)
    }.items()
}  # fmt: skip
OF_ALL_GENTLE = {"vp": rated("vp-minus", GENTLE), "default": GENTLE_DEFAULT, "at": f", all at {GENTLE:g}"}
# On one machine, so the default, vision's signs and QK alone once more: those of CENTRAL are a GPU's
OF_VISION = Study(
    "halves", "tiny Shakespeare, learned positions, each half of vision's signs", "tinyshakespeare-halves",
    tuple(ARMS["tinyshakespeare-halves"]),
    EACH_HALF | ALL_GENTLE,
    _halves(over_vp=1, over_sum=0, **OF_ALL_GENTLE)
    | {
        f"V·proj alone{at}, minus half of QK's": Contrast({arm: 1, "qk": -0.5, "gpt2": -0.5}, -1)
        for at, arm in VP_MINUS.items()
    },
)  # fmt: skip
# Here the whole loses a third of what QK alone does. We expected what the other text has shown: V.proj alone loses,
# too, but less than QK alone, and the whole less than the sum of both
OF_VISION_WIKITEXT2 = Study(
    "halves-wikitext2", "WikiText-2, learned positions, each half of vision's signs", "wikitext2-halves",
    tuple(ARMS["wikitext2-halves"]),
    EACH_HALF | ALL_GENTLE,
    _halves(over_qk=-1, over_sum=-1, **OF_ALL_GENTLE)
    | {f"V·proj alone{at}, minus QK alone": Contrast({arm: 1, "qk": -1}, -1) for at, arm in VP_MINUS.items()},
)  # fmt: skip
LONG = Study("long", "learned positions, 6,000 steps", "tinyshakespeare-long", _ready(SIGNS))
# Asked because learned positions take vision's gain away (cifar10-lab10): is it language, or is it the positions of a
# GPT?
POSITIONS = _of_all_arms(
    "positions", "tiny Shakespeare, fixed sin-cos positions", "tinyshakespeare-sincos",
    contrasts=BEYOND_SIZE | _signs(SINCOS_CHOSEN) | _halves(over_vp=0, over_qk=-1),
)  # fmt: skip
# The controls of size were added when vision's signs had gained half as much there: we expected that these gain as much
SHUFFLED = _of_all_arms(
    "shuffled", "tiny Shakespeare, fixed positions in a random order", "tinyshakespeare-shuffled",
    contrasts=_beyond_size("vision"),
)  # fmt: skip
# Asked when the search in a random order had put vision's signs ahead there, too: is it, then, the size of what enters
# the first block?
AT_SECOND = SECOND_RATE["scaled"]["vision"]
SCALED = _of_all_arms(
    "scaled", "tiny Shakespeare, learned positions, times √d", "tinyshakespeare-scaled",
    {"vision signs": ("gpt2", "vision"), f"vision signs at {AT_SECOND:g}": ("gpt2", rated("vision", AT_SECOND))},
)  # fmt: skip
# Asked when the search with the last one had not put vision's signs ahead: is it that most of what fixed positions add
# is the same everywhere?
CENTRED = _of_all_arms("centred", "tiny Shakespeare, fixed positions without their mean", "tinyshakespeare-centred")
# Asked because most language models have neither: their positions turn queries and keys, so W_Q W_K^T = I makes a token
# look at itself, and at its equals nearby
ROTARY = _of_all_arms(
    "rotary", "tiny Shakespeare, rotary positions", "tinyshakespeare-rotary",
    contrasts=_signs(OTHER_POSITIONS["rotary"][1]),
)  # fmt: skip
# Asked when a ViT had gained as much in a random order: must positions be fixed, or only large? We expected vision's
# signs to gain with both of these, as much as with fixed ones where they start from sines and cosines, and as much as
# in a random order where they start from noise. The default's second rate, hardly worse in the search, was added when a
# reader had seen that on the other text it took nearly half of the gain: we expected half of it to stay, or more
FROM_SINCOS = _of_all_arms(
    "from-sincos", "tiny Shakespeare, learned positions that start from sin-cos", "tinyshakespeare-from-sincos",
    _over_both(SECOND_RATE["from-sincos"]["gpt2"]),
)  # fmt: skip
FROM_NOISE = _of_all_arms(
    "from-noise", "tiny Shakespeare, learned positions that start from noise as large", "tinyshakespeare-from-noise"
)
POSITIONS_WIKITEXT2 = _of_all_arms("positions-wikitext2", "WikiText-2, fixed sin-cos positions", "wikitext2-sincos")
# We expected a gain as with fixed ones. The default at the rate that it has there was added when two pairs had shown a
# larger one: its own rate, from a search on the other text, is twice that
FROM_SINCOS_WIKITEXT2 = _of_all_arms(
    "from-sincos-wikitext2", "WikiText-2, learned positions that start from sin-cos", "wikitext2-from-sincos",
    _over_both(SINCOS_CHOSEN["gpt2"]),
)  # fmt: skip
# Asked when a reader had seen that the default's rate, from the other text, was never questioned here, and that with
# started positions half of it is better by as much as vision's signs are ahead of it: is it GPT-2's own start, or its
# rate?
GENTLER = rated("gpt2", RUNNER_UP["gpt2"])
SECOND_WIKITEXT2 = Study(
    "second-wikitext2", "WikiText-2, the default at its second rate", "wikitext2",
    ("gpt2", GENTLER),
    {f"default at {RUNNER_UP['gpt2']:g}": ("gpt2", GENTLER)},
)  # fmt: skip
POSITIONS_LONG = _of_all_arms("positions-long", "fixed sin-cos positions, 6,000 steps", "tinyshakespeare-sincos-long")
# Asked because with GPT-2's own positions the lead is lost again. We expected vision's signs to stay ahead of the
# default at either rate, by as much as with fixed ones (.01 to .04)
FROM_SINCOS_LONG = _of_all_arms(
    "from-sincos-long",
    "learned positions that start from sin-cos, 6,000 steps",
    "tinyshakespeare-from-sincos-long",
    FROM_SINCOS.comparisons,
)


def _sweep(experiment: str, name: str = "share", where: str = "") -> Study:
    arms = tuple(ARMS[experiment])
    pairs = {
        f"{point}, {sign} signs": (f"{point}-gpt2", f"{point}-{sign}")
        for sign in ("language", "vision") for point in SHARES if f"{point}-{sign}" in arms
    }  # fmt: skip
    return Study(name, f"Does the gain follow attention's share of the parameters?{where}", experiment, arms, pairs)


SHARE = _sweep("share")
# Asked because with learned positions there was hardly a gain that could follow the share. With fixed ones the GPT
# gains: so we expected vision's signs ahead at every point, and, if the authors' guess is right, by more where the
# share is larger, along the vocabulary and along the MLP. One rate for both arms (SINCOS_CHOSEN)
SHARE_FIXED = _sweep("share-sincos", "share-fixed", " With fixed sin-cos positions")
STUDIES = {
    study.name: study
    for study in (
        CENTRAL, STRUCTURE, RATE, WIKITEXT2, SHARE, LONG, SECOND, POSITIONS, SHUFFLED, SCALED, CENTRED, ROTARY,
        FROM_SINCOS, FROM_NOISE, POSITIONS_WIKITEXT2, FROM_SINCOS_WIKITEXT2, SECOND_WIKITEXT2, POSITIONS_LONG,
        FROM_SINCOS_LONG, OF_VISION, OF_VISION_WIKITEXT2, SHARE_FIXED,
    )
}  # fmt: skip
# In the whole programme. The controls' seeds beyond the first three were added after those had been seen: one of them
# was ahead. So were those of the two long comparisons, because three pairs are too few for what is said of them; there
# we expected that vision's signs stay ahead with fixed positions (by .02 to .04), and that with learned ones six pairs
# cannot tell them from the default either.
SEEDS = dict.fromkeys(STUDIES, CENTRAL_SEEDS) | dict.fromkeys(("rate", "share"), FIRST_SEEDS)

SEARCH = "tinyshakespeare-recipe"


def language_runs() -> list[RunConfig]:
    """The run whose products `fit` imitates; every question with three seeds, in order; then the central comparison, on
    both corpora, and the controls with three more.
    """
    runs = [named("tinyshakespeare-narrow", seed=0)]
    for study in STUDIES.values():
        runs += study.runs(FIRST_SEEDS)
    for study in STUDIES.values():
        runs += study.runs(SEEDS[study.name])
    return once(runs)


def recipe_runs() -> list[RunConfig]:
    """The search: every arm at every rate, seed 0. The rule, the same for every arm: the rate with the fewest bits per
    byte is taken. Then the sign arms at the ends of the sweep, to see whether the rates hold there; a search with every
    other kind of positions; and the ends of the sweep with fixed ones."""
    return [
        named(experiment, arm=arm)
        for experiment in (
            SEARCH,
            "share-recipe",
            *(with_positions(kind, search=True) for kind in OTHER_POSITIONS),
            "share-sincos-recipe",
        )
        for arm in ARMS[experiment]
    ]


def gpu_runs() -> list[RunConfig]:
    """For a GPU: six pairs of every arm on WikiText-2, then the sweep with three."""
    arms = tuple(ARMS["wikitext2-gpu"])
    return [
        *Study("central", CENTRAL.question, "wikitext2-gpu", arms).runs(CENTRAL_SEEDS),
        *_sweep("share-gpu").runs(FIRST_SEEDS),
    ]


QUEUES = {"language": language_runs, "language-gpu": gpu_runs, "language-recipe": recipe_runs}
