"""Every queue by name: a function that lists its runs in order."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from mimetic.experiments.configs import RunConfig
from mimetic.experiments.programmes import language, recommenders, vision

_FAMILIES = (vision, language, recommenders)
QUEUES: dict[str, Callable[[], list[RunConfig]]] = {
    name: runs for family in _FAMILIES for name, runs in family.QUEUES.items()
}


@cache
def command_for(experiment: str) -> str:
    """The command that makes an experiment's runs: of the queue that has most of them."""
    counts = {name: sum(config.experiment == experiment for config in runs()) for name, runs in QUEUES.items()}
    return f"python -m mimetic queue {max(counts, key=counts.get)}"
