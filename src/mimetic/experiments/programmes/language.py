"""The language programme: which arms and seeds answer which question, and in which order the queue takes them.

    python -m mimetic queue language-recipe    the search that chose the recipe, on a part of the training text
    python -m mimetic queue language           the comparison on two corpora, the sweep of attention's share, runs to convergence
    python -m mimetic queue language-gpu       the comparison and the sweep with a larger model, for a GPU

The arms themselves, what each changes and nothing else, are mimetic.experiments.configs.language.ARMS.
"""

from __future__ import annotations

from mimetic.experiments.configs import ARMS, RunConfig, named
from mimetic.experiments.configs.language import GENTLE, SHARES, TRIED
from mimetic.experiments.programmes.study import Study, once

CENTRAL_SEEDS = tuple(range(5))
FIRST_SEEDS = (0, 1, 2)  # three pairs for every question first

CENTRAL = Study("central", "tiny Shakespeare, by character", "tinyshakespeare", ("gpt2", *TRIED))
RATE = Study(
    "rate", "tiny Shakespeare, at a quarter of the learning rate", "tinyshakespeare-rate", tuple(ARMS["tinyshakespeare-rate"]),
    {f"{sign} signs": (f"lr-{GENTLE:g}-gpt2", f"lr-{GENTLE:g}-{sign}") for sign in ("language", "vision")},
)  # fmt: skip
WIKITEXT2 = Study("wikitext2", "WikiText-2, byte-pair encoded", "wikitext2", ("gpt2", *TRIED))
LONG = Study("long", "A head start, or a better end?", "tinyshakespeare-long", ("gpt2", "language", "vision"))


def _sweep(experiment: str) -> Study:
    signs = ("language", "vision")
    pairs = {f"{point}, {sign} signs": (f"{point}-gpt2", f"{point}-{sign}") for sign in signs for point in SHARES}
    arms = tuple(f"{point}-{arm}" for point in SHARES for arm in ("gpt2", *signs))
    return Study("share", "Does the gain follow attention's share of the parameters?", experiment, arms, pairs)


SHARE = _sweep("share")
STUDIES = {study.name: study for study in (CENTRAL, RATE, WIKITEXT2, SHARE, LONG)}
SEEDS = {"central": CENTRAL_SEEDS, "rate": FIRST_SEEDS, "wikitext2": CENTRAL_SEEDS, "share": FIRST_SEEDS, "long": FIRST_SEEDS}  # in the whole programme

RECIPE = Study("recipe", "Which recipe? (default arm, held-out training text)", "tinyshakespeare-recipe", tuple(ARMS["tinyshakespeare-recipe"]))
BETTER = 0.01  # bits per byte by which a setting must be better than the base to replace it: about what a seed is worth


def language_runs() -> list[RunConfig]:
    """The run whose products `fit` imitates; every question with three seeds, in order; then the central comparison, on both corpora, with two more."""
    runs = [named("tinyshakespeare-narrow", seed=0)]
    for study in STUDIES.values():
        runs += study.runs(FIRST_SEEDS)
    for study in STUDIES.values():
        runs += study.runs(SEEDS[study.name])
    return once(runs)


def recipe_runs() -> list[RunConfig]:
    """The search: every setting once, and the base with a second seed to see what a seed is worth. The rule, fixed before:
    a setting replaces the base's if it is better by more than BETTER."""
    return [*RECIPE.runs((0,)), named(RECIPE.experiment, arm="base", seed=1)]


def gpu_runs() -> list[RunConfig]:
    """For a GPU: five pairs of every arm on WikiText-2, then the sweep with three."""
    arms = ("gpt2", *ARMS["wikitext2-gpu"])
    return [*Study("central", CENTRAL.question, "wikitext2-gpu", arms).runs(CENTRAL_SEEDS), *_sweep("share-gpu").runs(FIRST_SEEDS)]


QUEUES = {"language": language_runs, "language-gpu": gpu_runs, "language-recipe": recipe_runs}
