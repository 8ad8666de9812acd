"""Every queue by name: a function that lists its runs in order."""

from __future__ import annotations

from collections.abc import Callable

from mimetic.experiments.configs import RunConfig
from mimetic.experiments.programmes import language, recommenders, vision

_FAMILIES = (vision, language, recommenders)
QUEUES: dict[str, Callable[[], list[RunConfig]]] = {
    name: runs for family in _FAMILIES for name, runs in family.QUEUES.items()
}
