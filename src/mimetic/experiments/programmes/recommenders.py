"""The recommender programme."""

from __future__ import annotations

from mimetic.experiments.configs import ARMS, RunConfig, named
from mimetic.experiments.programmes.study import Study

RECIPES = tuple(
    Study("recipe", "Which recipe? (default arm, validation items)", f"{data}-recipe", tuple(ARMS[f"{data}-recipe"]))
    for data in ("ml100k", "beauty")
)  # fmt: skip


def recipe_runs() -> list[RunConfig]:
    return [run for study in RECIPES for run in (*study.runs((0,)), named(study.experiment, arm="base", seed=1))]


QUEUES = {"recommenders-recipe": recipe_runs}
