"""The recommender programme."""

from __future__ import annotations

from mimetic.experiments.configs import ARMS, RunConfig, named
from mimetic.experiments.programmes.study import Study, once

RECIPES = tuple(
    Study("recipe", "Which recipe? (default arm, validation items)", f"{data}-recipe", tuple(ARMS[f"{data}-recipe"]))
    for data in ("ml100k", "beauty")
)  # fmt: skip


def recipe_runs() -> list[RunConfig]:
    first = [named("beauty-recipe", arm=arm) for arm in ("base", "mask-0.6")]
    return once([*first, *RECIPES[0].runs((0,)), *RECIPES[1].runs((0,))])


QUEUES = {"recommenders-recipe": recipe_runs}
