"""Short paired runs for a chapter: nothing is stored, the curves come back as a DataFrame."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from mimetic.experiments.configs import named
from mimetic.experiments.runs import check, run


def live_runs(
    dataset: str = "digits",
    *,
    epochs: int = 10,
    seeds: Sequence[int] = (0, 1),
    arms: Sequence[str] = ("timm", "mimetic"),
    device: str = "cpu",
    threads: int = 1,
) -> pd.DataFrame:
    """Train every arm with every seed and return the curves: columns arm, seed, epoch, train_*, test_*.

    digits takes the model of the experiment "digits", anything else that of "cifar10-lab30".

    Raises:
        ValueError: a bad value, before anything is trained; the message names the choices.
        Unavailable: the data set cannot be had.
    """
    base = replace(
        named("digits" if dataset == "digits" else "cifar10-lab30"),
        experiment="live", dataset=dataset, epochs=epochs, device=device, threads=threads,
    )  # fmt: skip
    configs = [replace(base, init=arm, seed=seed) for arm in arms for seed in seeds]
    for config in configs:
        check(config)
    rows = []
    for config in configs:
        record = run(config, store=False, progress=False)
        rows += [{"arm": config.init, "seed": config.seed, **entry} for entry in record["curve"]]
    return pd.DataFrame(rows)


def interrupted(*, epochs: int = 4, stop_after: int = 2, **changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The records of one run of the digits on the CPU, made twice: without a break, and stopped after some epochs and gone on with
    from its checkpoint. Both are made in a folder that is removed again.

    Args:
        changes: fields of the config.
    """
    import os
    from unittest.mock import patch

    config = replace(named("digits"), experiment="interrupted", init="mimetic", epochs=epochs, device="cpu", **changes)

    def stop(entry: dict[str, float]) -> None:
        if entry["epoch"] == stop_after:
            raise InterruptedError

    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, MIMETIC_DATA=folder, MIMETIC_RUNS=folder):
        whole = run(config, store=False, progress=False)
        try:
            run(config, progress=False, on_epoch=stop)
        except InterruptedError:
            pass
        return whole, run(config, progress=False)
