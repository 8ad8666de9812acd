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


def live_text_runs(
    dataset: str = "pydoc",
    *,
    epochs: int = 5,
    seeds: Sequence[int] = (0,),
    arms: Sequence[str] = ("gpt2", "language"),
    device: str = "cpu",
    threads: int = 1,
) -> pd.DataFrame:
    """Train a small GPT for every arm and seed and return the curves: columns arm, seed, epoch, step, train_*, test_*.

    pydoc takes the model of the experiment "pydoc", another corpus that of "tinyshakespeare".

    Raises:
        ValueError: a bad value, before anything is trained; the message names the choices.
        Unavailable: the corpus cannot be had.
    """
    experiment = dataset if dataset in ("pydoc", "wikitext2") else "tinyshakespeare"
    changes = {"dataset": dataset, "epochs": epochs, "device": device, "threads": threads}
    configs = [(arm, replace(named(experiment, arm=arm, seed=seed), experiment="live", **changes)) for arm in arms for seed in seeds]
    for _, config in configs:
        check(config, store=False)
    rows = []
    for arm, config in configs:
        record = run(config, store=False, progress=False)
        rows += [{"arm": arm, "seed": config.seed, **entry} for entry in record["curve"]]
    return pd.DataFrame(rows)


def live_share(*, vocabularies: Sequence[int] = (256, 2_000), steps: int = 60, seed: int = 0, device: str = "cpu", threads: int = 1) -> pd.DataFrame:
    """Two points of the sweep of attention's share on pydoc: a row a vocabulary, with the share, both arms' bits per byte and the gain.

    Raises:
        ValueError: a bad value, before anything is trained.
        Unavailable: the tokenizers library is not installed.
    """
    rows = {}
    for vocab_size in vocabularies:
        out = {}
        for arm in ("gpt2", "language"):
            config = named(
                "pydoc", arm=arm, seed=seed, tokenizer="bpe", vocab_size=vocab_size, epochs=1, steps_per_epoch=steps, device=device, threads=threads
            )
            record = run(replace(config, experiment="live"), store=False, progress=False)
            out[arm], counts = record["final"]["test_bits_per_byte"], record["parameters"]
        share = (counts["attention_qkv"] + counts["attention_proj"]) / counts["total"]
        rows[vocab_size] = {"attention (%)": 100 * share, **out, "relative gain (%)": 100 * (out["gpt2"] - out["language"]) / out["gpt2"]}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("vocabulary").round(2)
