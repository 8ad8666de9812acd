"""The products that run records hold, as DataFrames."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from mimetic.training.records import read_record, runs_dir

COLUMNS = ["arm", "seed", "when", "layer", "head", "product", "z", "sigmas", "null_mean", "null_sd"]


def table_of(record: dict[str, Any], when: str, name: str = "products") -> pd.DataFrame:
    """One of the tables in a record's anatomy, as written by attention_maps; when: before or after training."""
    part = record["anatomy"][when][name]
    return pd.DataFrame(part["rows"], columns=part["columns"])


def product_table(record: dict[str, Any], when: str = "after", fold: bool = False) -> pd.DataFrame:
    """The products in a record, one row a head (qk) or layer (vp), with z = diag_mean / offdiag_sd; fold: with the
    LayerNorm gains folded in where a block has one in front."""
    table = table_of(record, when)
    return table[table["fold"] == fold].assign(z=lambda t: t["diag_mean"] / t["offdiag_sd"]).reset_index(drop=True)


def cases_of(record: dict[str, Any], name: str) -> np.ndarray:
    """The last evaluation case by case ("ranks" of users; "nats", "bytes" of
    windows of text); empty if the record has none.
    """
    return np.array(record.get("cases", {}).get(name, "").split(), dtype=float)


def records_of(experiment: str, arms: Iterable[str]) -> list[dict[str, Any]]:
    """The records of an experiment's arms that hold an anatomy, arm by arm and seed by seed.

    Raises:
        RecordError: a record is damaged; the message names the file.
    """
    found = []
    for arm in arms:
        records = (read_record(path) for path in (runs_dir() / experiment).glob(f"{arm}-seed*.json"))
        found += sorted((r for r in records if r["arm"] == arm and "anatomy" in r), key=lambda r: r["seed"])
    return found


def recorded_products(experiment: str, arms: Iterable[str], fold: bool = True) -> pd.DataFrame:
    """product_table before and after training, of every recorded run of the arms, with columns arm, seed, when."""
    frames = [
        product_table(record, when, fold).assign(arm=record["arm"], seed=record["seed"], when=when)
        for record in records_of(experiment, arms) for when in ("before", "after")
    ]  # fmt: skip
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=COLUMNS)
