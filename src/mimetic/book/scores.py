"""How good the recommenders of chapter 12 are: their scores beside those of plain baselines, and the best possible."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import pandas as pd

from mimetic.book import common
from mimetic.book.recommenders import TITLES, arm_label
from mimetic.data.sequences import load_sequences, oracle
from mimetic.experiments.baselines import baselines_path, bursts_path, rank_metrics
from mimetic.experiments.programmes.recommenders import DEFAULT, SIBLING_PREFIX


def score_table(finals: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Baselines, BERT4Rec's default and the causal sibling's: test NDCG@10, mean and sd over seeds."""
    rows = [
        {
            "data": TITLES[row["dataset"]],
            "recommender": row["baseline"] + (f", {row['neighbours']} neighbours" if row["neighbours"] else ""),
            "seeds": "–",
            "ndcg10": row["ndcg10"],
        }
        for row in json.loads(baselines_path().read_text(encoding="utf-8"))
        if row["split"] == "test" and row["dataset"] in finals
    ]
    for data, table in finals.items():
        for model, prefix in {"BERT4Rec": "", "causal sibling": SIBLING_PREFIX}.items():
            part = table[table["arm"] == prefix + DEFAULT]
            if len(part):
                rows.append(
                    {
                        "data": TITLES[data],
                        "recommender": f"{model}, {arm_label(DEFAULT)}",
                        "seeds": len(part),
                        "ndcg10": part["test_ndcg10"].mean(),
                        "sd": f"{part['test_ndcg10'].std():.4f}" if len(part) > 1 else "",
                    }
                )
    out = pd.DataFrame(rows).rename(columns={"ndcg10": "NDCG@10", "sd": "sd over seeds"})
    out = out.sort_values("data", key=lambda titles: titles.map([*TITLES.values()].index), kind="stable")
    return common.blank(out.set_index(["data", "recommender"]).round(4))


def baseline_levels(data: str, split: str = "test") -> dict[str, float]:
    """The baselines' NDCG@10 on a data set, for a figure."""
    rows = json.loads(baselines_path().read_text(encoding="utf-8"))
    return {row["baseline"]: row["ndcg10"] for row in rows if row["dataset"] == data and row["split"] == split}


def bursts_sentence() -> str:
    """How arbitrary the order of MovieLens-100K is."""
    found = json.loads(bursts_path().read_text(encoding="utf-8"))["ml100k"]
    return (
        f"In MovieLens-100K {common.percent(found['tied'])} of the users have their last two ratings,"
        " the test and the validation item, in the same second:"
        " which of the two comes next is the order of a file, the same for every arm."
        f" {common.percent(found['one_day'])} rated everything within a day."
    )


def oracle_level() -> float:
    """NDCG@10 of the synthetic data's own transition probabilities: the best there is, on average."""
    data = load_sequences("clusters")
    return rank_metrics(np.array([oracle(data.history(u, False)) for u in range(data.num_users)]), data)["ndcg10"]
