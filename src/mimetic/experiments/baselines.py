"""What a recommender must beat: popularity, and neighbours of the items that the user had.

    python -m mimetic.experiments.baselines            (writes data/recommenders/baselines.json; seconds)

Both are ranked as the models are: the whole catalogue without the user's history.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mimetic.data.fetch import atomic_path, data_dir
from mimetic.data.sequences import SequenceData, load_sequences
from mimetic.experiments.ranking import pad_left, ranking_metrics, target_ranks

NEIGHBOURS = 50  # of each item in item-kNN; not tuned


def popularity(data: SequenceData, validation: bool = False) -> np.ndarray:
    """(users, items) float64: how many users have the item among what is known (every item but the target of its user)."""
    counts = np.zeros(data.num_items)
    for user in range(data.num_users):
        counts[data.history(user, validation) - 1] += 1
    return np.broadcast_to(counts, (data.num_users, data.num_items))


def item_knn(data: SequenceData, validation: bool = False, neighbours: int = NEIGHBOURS) -> np.ndarray:
    """(users, items) float64: the summed cosine similarity of an item to the items of the user's history, an item counting
    only those of its own nearest neighbours (Sarwar et al. 2001; Deshpande & Karypis 2004). Order does not matter to it.

    Raises:
        ValueError: neighbours is not between 1 and the number of items - 1.
    """
    from scipy import sparse

    if not 1 <= neighbours < data.num_items:
        raise ValueError(f"neighbours must be from 1 to {data.num_items - 1}, not {neighbours}")
    histories = [data.history(u, validation) for u in range(data.num_users)]
    begins = np.concatenate([[0], np.cumsum([len(h) for h in histories])])
    entries = np.ones(begins[-1])
    X = sparse.csr_matrix((entries, np.concatenate(histories) - 1, begins), shape=(data.num_users, data.num_items))
    X.data[:] = 1.0
    norms = np.sqrt(np.asarray(X.sum(0)).ravel())
    unit = X @ sparse.diags(np.divide(1, norms, out=np.zeros_like(norms), where=norms > 0))
    similarity = (unit.T @ unit).toarray()
    np.fill_diagonal(similarity, 0)
    smallest = np.argsort(-similarity, axis=1, kind="stable")[:, neighbours:]
    np.put_along_axis(similarity, smallest, 0, axis=1)
    return X @ similarity.T


def rank_metrics(scores: np.ndarray, data: SequenceData, validation: bool = False) -> dict[str, float]:
    """Recall@10, NDCG@10 and MRR of (users, items) scores."""
    users = range(data.num_users)
    history = pad_left([data.history(u, validation) for u in users])
    target = torch.tensor([data.target(u, validation) for u in users])
    return ranking_metrics(target_ranks(torch.from_numpy(np.ascontiguousarray(scores)), target, history))


BASELINES = {"popularity": popularity, "item-kNN": item_knn}


def baselines(dataset: str, items: int | None = None) -> list[dict[str, Any]]:
    """One row a baseline and split: dataset, items, users, baseline, split, ndcg10, recall10, mrr."""
    data = load_sequences(dataset, items=items)
    about = {"dataset": dataset, "items": data.num_items, "users": data.num_users, "interactions": data.interactions}
    return [
        about | {"baseline": name, "split": "validation" if validation else "test"}
        | {k: round(v, 6) for k, v in rank_metrics(scores(data, validation), data, validation).items()}
        for name, scores in BASELINES.items() for validation in (True, False)
    ]  # fmt: skip


def baselines_path() -> Path:
    """Where the measured baselines are kept."""
    return data_dir() / "recommenders" / "baselines.json"


def main() -> None:
    from mimetic.experiments.configs import EXPERIMENTS

    rows = [row for name in ("ml100k", "beauty", "clusters") for row in baselines(EXPERIMENTS[name].dataset, EXPERIMENTS[name].items)]
    with atomic_path(baselines_path()) as temporary:
        temporary.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    for row in rows:
        print({k: v for k, v in row.items() if k not in ("users", "interactions")})


if __name__ == "__main__":
    main()
