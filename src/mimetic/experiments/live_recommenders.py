"""Short paired recommender runs for a chapter: nothing is stored, the curves come back as a DataFrame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from mimetic.experiments.configs import named
from mimetic.experiments.configs.recommenders import OPPOSITE
from mimetic.experiments.runs import check, run

SIGNS: dict[str, dict[str, Any]] = {
    "default": {"init": "bert"}, "vision": {"init": "mimetic"}, "opposite": OPPOSITE,
    "QK only": {"init": "mimetic-qk"}, "V·proj only": {"init": "mimetic-vp"},
}  # fmt: skip


def live_runs(
    data: str = "clusters", *, signs: Sequence[str] = ("default", "vision", "opposite"), seeds: Sequence[int] = (0,), **changes: Any
) -> pd.DataFrame:
    """Train every sign pattern with every seed and return the curves: columns arm (the sign pattern), seed, epoch, train_*, test_*.

    Args:
        data: an experiment: clusters (synthetic, the causal model, seconds a run), ml100k, beauty.
        signs: of SIGNS.
        changes: of the experiment's config: d_model, depth, epochs, ...

    Raises:
        ValueError: a bad value, before anything is trained; the message names the choices.
        Unavailable: the data set cannot be had.
    """
    for name in signs:
        if name not in SIGNS:
            raise ValueError(f"signs must be of {', '.join(SIGNS)}, not {name!r}")
    configs = {
        (name, seed): replace(named(data, seed=seed, **changes), experiment="live", arm="", **SIGNS[name]) for name in signs for seed in seeds
    }  # fmt: skip
    for config in configs.values():
        check(config, store=False)
    rows = []
    for (name, seed), config in configs.items():
        rows += [{"arm": name, "seed": seed, **entry} for entry in run(config, store=False, progress=False)["curve"]]
    return pd.DataFrame(rows)
