"""Measure on one data set, mimic on the other: the constants that imitate a recorded BERT4Rec.

    python -m mimetic.experiments.fitted       prints them as they stand in configs/recommenders.py
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from mimetic.experiments.configs import named
from mimetic.measure import fit_layer
from mimetic.training.records import read_record, record_path

SOURCES = ("ml100k", "beauty")


def product_table(record: dict[str, Any], when: str = "after", fold: bool = False) -> pd.DataFrame:
    """The products in a record's anatomy, one row a head (qk) or layer (vp), with z = diag_mean / offdiag_sd."""
    part = record["anatomy"][when]["products"]
    table = pd.DataFrame(part["rows"], columns=part["columns"])
    return table[table["fold"] == fold].assign(z=lambda t: t["diag_mean"] / t["offdiag_sd"]).reset_index(drop=True)


def fitted_constants(experiment: str, arm: str = "bert", seed: int = 0) -> dict[str, tuple[float, ...]]:
    """{qk_alpha, qk_beta, vp_alpha, vp_beta: one value a layer} that imitate a recorded run (measure.fit_layer), three digits.

    Raises:
        FileNotFoundError: the run is not recorded.
    """
    record = read_record(record_path(experiment, arm, seed))
    config = named(experiment, arm=arm)
    table = product_table(record)
    fits = [fit_layer(part, config.d_model, config.d_model // config.num_heads) for _, part in table.groupby("layer")]
    return {name: tuple(float(f"{f[name]:.3g}") for f in fits) for name in fits[0]}


def main() -> None:
    for source in SOURCES:
        print(f'    "{source}": {fitted_constants(source)},')


if __name__ == "__main__":
    main()
