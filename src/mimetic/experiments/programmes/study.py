"""A question, the arms and the seeds that answer it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from mimetic.experiments.configs import RunConfig, named


@dataclass(frozen=True)
class Contrast:
    """What a study asks of its arms beyond "better than the reference": a sum of arms times coefficients, and what we
    expected of it before the runs: 1 above 0, -1 below, 0 neither (no difference), None nothing; in words, where a page
    says them."""

    arms: Mapping[str, float]
    expected: int | None = None
    words: str = ""


@dataclass(frozen=True)
class Study:
    """One question: the arms that answer it, first the one that the others are compared with."""

    name: str
    question: str
    experiment: str
    arms: tuple[str, ...]
    # label -> (reference arm, arm); None: all against the first
    comparisons: Mapping[str, tuple[str, str]] | None = None
    contrasts: Mapping[str, Contrast] = field(default_factory=dict)  # label -> what the question is really about

    def runs(self, seeds: tuple[int, ...]) -> Iterator[RunConfig]:
        """Seed by seed, so that a queue that is stopped leaves whole pairs."""
        for seed in seeds:
            for arm in self.arms:
                yield named(self.experiment, arm=arm, seed=seed)


def once(runs: list[RunConfig]) -> list[RunConfig]:
    """The runs without repetitions, each where it comes first."""
    return list({config.name: config for config in runs}.values())
