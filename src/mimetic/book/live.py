"""Short paired runs for a chapter: nothing is stored, the curves come back as a DataFrame.

All of them raise ValueError for a bad value, with the choices named, and Unavailable if the data cannot be had, before
anything is trained.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pandas as pd

from mimetic.data import images, sequences, text
from mimetic.experiments.configs import RunConfig, named
from mimetic.experiments.configs.recommenders import NEXT, OPPOSITE
from mimetic.experiments.runs import check, run
from mimetic.messages import check_choice
from mimetic.models.blocks import in_attention
from mimetic.training.backend import resolve_device

SIGNS: dict[str, dict[str, Any]] = {  # of a recommender
    "default": {"init": "bert"}, "vision": {"init": "mimetic"}, "opposite": OPPOSITE,
    "QK only": {"init": "mimetic-qk"}, "V·proj only": {"init": "mimetic-vp"},
}  # fmt: skip
# On real data: the causal sibling, which learns sooner, at a rate at which ten passes over the users show something.
SHORT: dict[str, dict[str, Any]] = {
    name: {**NEXT, "lr": 3e-3, "epochs": 5, "passes": passes, "precision": "auto", "d_model": 32}
    for name, passes in (("ml100k", 2), ("beauty", 1))
}


def require(dataset: str, device: str = "cpu") -> None:
    """Raise now what a live run with these data on this device would raise later: ValueError, Unavailable or
    ChecksumError; what is not in the cache is fetched.

    Args:
        dataset: a data set of images, text or item sequences.
    """
    resolve_device(device)
    if dataset in images.DATASETS:
        images.fetch_images(dataset)
    elif dataset in text.CORPORA:
        text.fetch_text(dataset)
    else:
        sequences.fetch_sequences(dataset)


def _trained(runs: Iterable[tuple[str, RunConfig]]) -> list[tuple[str, dict[str, Any]]]:
    """(name, record) of every (name, config), in order; all are checked before the first is trained."""
    runs = [(name, replace(config, experiment="live", arm="")) for name, config in runs]
    for _, config in runs:
        check(config, store=False)
    return [(name, run(config, store=False, progress=False)) for name, config in runs]


def _curves(runs: Iterable[tuple[str, RunConfig]]) -> pd.DataFrame:
    rows = [
        {"arm": arm, "seed": record["seed"], **entry} for arm, record in _trained(runs) for entry in record["curve"]
    ]
    return pd.DataFrame(rows)


def live_images(
    dataset: str = "digits",
    *,
    epochs: int = 10,
    seeds: Sequence[int] = (0, 1),
    arms: Sequence[str] = ("timm", "mimetic"),
    device: str = "cpu",
    threads: int = 1,
) -> pd.DataFrame:
    """Train a small ViT with every arm and seed and return the curves: columns arm, seed, epoch, train_*, test_*.

    digits takes the model of the experiment "digits", anything else that of "cifar10-lab30".
    """
    changes = {"dataset": dataset, "epochs": epochs, "device": device, "threads": threads}
    base = replace(named("digits" if dataset == "digits" else "cifar10-lab30"), **changes)
    return _curves((arm, replace(base, init=arm, seed=seed)) for arm in arms for seed in seeds)


def live_text(
    dataset: str = "pydoc",
    *,
    epochs: int = 5,
    seeds: Sequence[int] = (0,),
    arms: Sequence[str] = ("gpt2", "language"),
    device: str = "cpu",
    threads: int = 1,
) -> pd.DataFrame:
    """Train a small GPT with every arm and seed and return the curves: columns arm, seed, epoch, step, train_*, test_*.

    pydoc takes the model of the experiment "pydoc", another corpus that of "tinyshakespeare".
    """
    experiment = dataset if dataset in ("pydoc", "wikitext2") else "tinyshakespeare"
    changes = {"dataset": dataset, "epochs": epochs, "device": device, "threads": threads}
    return _curves((arm, replace(named(experiment, arm=arm, seed=seed), **changes)) for arm in arms for seed in seeds)


def live_sequences(
    data: str = "clusters",
    *,
    signs: Sequence[str] = ("default", "vision", "opposite"),
    seeds: Sequence[int] = (0,),
    **changes: Any,
) -> pd.DataFrame:
    """Train the causal recommender with every sign pattern and seed and return the curves: columns arm (the pattern),
    seed, epoch, train_*, test_*.

    Args:
        data: clusters (synthetic, seconds a run), or, shortened to some ten seconds a run (SHORT), ml100k or beauty.
        signs: of SIGNS.
        changes: of the config: d_model, depth, epochs, ... or objective="mask", causal=False, BERT4Rec, which learns
            later.
    """
    check_choice("data", data, ("clusters", *SHORT))
    for name in signs:
        if name not in SIGNS:
            raise ValueError(f"signs must be of {', '.join(SIGNS)}, not {name!r}")
    changes = SHORT.get(data, {}) | changes
    return _curves(
        (name, replace(named(data, seed=seed, **changes), **SIGNS[name])) for name in signs for seed in seeds
    )


def live_share(*, steps: int = 60, device: str = "cpu", threads: int = 1) -> pd.DataFrame:
    """Two points of the sweep of attention's share on pydoc: a row a vocabulary, with the share, both arms' bits per
    byte and the gain."""
    arms, changes = ("gpt2", "language"), {"epochs": 1, "steps_per_epoch": steps, "device": device, "threads": threads}
    sizes = [(arm, size) for size in (256, 2_000) for arm in arms]
    configs = [
        (arm, named("pydoc", arm=arm, seed=0, tokenizer="bpe", vocab_size=size, **changes)) for arm, size in sizes
    ]
    rows: dict[int, dict[str, float]] = {}
    for (arm, size), (_, record) in zip(sizes, _trained(configs)):
        counts = record["parameters"]
        share = in_attention(counts) / counts["total"]
        rows.setdefault(size, {"attention (%)": 100 * share})[arm] = record["final"]["test_bits_per_byte"]
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("vocabulary")
    return table.assign(**{"relative gain (%)": 100 * (table["gpt2"] - table["language"]) / table["gpt2"]}).round(2)


def interrupted(*, epochs: int = 4, stop_after: int = 2, **changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The records of one run of the digits on the CPU, made twice: without a break, and stopped after some epochs and
    gone on with from its checkpoint. Both are made in a folder that is removed again.

    Args:
        changes: fields of the config.
    """
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
