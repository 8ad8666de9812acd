"""What a recommender must beat: popularity, and neighbours of the items that the user had.

    python -m mimetic.experiments.baselines            (writes data/recommenders/; seconds)

On equal terms with the models: they count what the models are trained on (all but every user's last two items), a
user's own history is known up to the target, and the whole catalogue without that history is ranked.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mimetic.data.fetch import data_dir
from mimetic.data.json_files import write_json
from mimetic.data.sequences import SequenceData, fetch_sequences, load_sequences
from mimetic.experiments.ranking import pad_left, ranking_metrics, target_ranks

# of each item in item-kNN: the best by the validation items is taken
NEIGHBOURS = (1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 900)


def popularity(data: SequenceData, validation: bool = False) -> np.ndarray:
    """(users, items) float64: how many users have the item in their training part."""
    counts = np.zeros(data.num_items)
    for user in range(data.num_users):
        counts[data.train(user) - 1] += 1
    return np.broadcast_to(counts, (data.num_users, data.num_items))


def item_knn(data: SequenceData, validation: bool = False, neighbours: int = 50) -> np.ndarray:
    """(users, items) float64: the summed cosine similarity of an item to the items of the user's history, an item
    counting only those of its own nearest neighbours (Sarwar et al. 2001; Deshpande & Karypis 2004). Similarities are
    those of the training parts. Order does not matter to it.

    Raises:
        ValueError: neighbours is not between 1 and the number of items - 1.
    """
    from scipy import sparse

    if not 1 <= neighbours < data.num_items:
        raise ValueError(f"neighbours must be from 1 to {data.num_items - 1}, not {neighbours}")

    def counted(sequences: list[np.ndarray]) -> sparse.csr_matrix:
        begins = np.concatenate([[0], np.cumsum([len(s) for s in sequences])])
        X = sparse.csr_matrix(
            (np.ones(begins[-1]), np.concatenate(sequences) - 1, begins), shape=(data.num_users, data.num_items)
        )
        X.data[:] = 1.0
        return X

    users = range(data.num_users)
    X = counted([data.train(u) for u in users])
    norms = np.sqrt(np.asarray(X.sum(0)).ravel())
    unit = X @ sparse.diags(np.divide(1, norms, out=np.zeros_like(norms), where=norms > 0))
    similarity = (unit.T @ unit).toarray().round(12)  # equal ones stay equal, whatever the order of the sums
    np.fill_diagonal(similarity, 0)
    smallest = np.argsort(-similarity, axis=1, kind="stable")[:, neighbours:]
    np.put_along_axis(similarity, smallest, 0, axis=1)
    return counted([data.history(u, validation) for u in users]) @ similarity.T


def rank_metrics(scores: np.ndarray, data: SequenceData, validation: bool = False) -> dict[str, float]:
    """Recall@10, NDCG@10 and MRR of (users, items) scores."""
    users = range(data.num_users)
    history = pad_left([data.history(u, validation) for u in users])
    target = torch.tensor([data.target(u, validation) for u in users])
    return ranking_metrics(target_ranks(torch.from_numpy(np.ascontiguousarray(scores)), target, history))


def baselines(dataset: str, items: int | None = None) -> list[dict[str, Any]]:
    """One row a baseline and split: dataset, items, users, baseline, split,
    neighbours (of item-kNN), ndcg10, recall10, mrr.
    """
    data = load_sequences(dataset, items=items)
    choices = [k for k in NEIGHBOURS if k < data.num_items]
    best = max(choices, key=lambda k: rank_metrics(item_knn(data, True, k), data, True)["ndcg10"])
    about = {"dataset": dataset, "items": data.num_items, "users": data.num_users, "interactions": data.interactions}
    recommenders = {"popularity": (None, popularity), "item-kNN": (best, partial(item_knn, neighbours=best))}
    return [
        about | {"baseline": name, "neighbours": neighbours, "split": "validation" if validation else "test"}
        | {k: round(v, 6) for k, v in rank_metrics(scores(data, validation), data, validation).items()}
        for name, (neighbours, scores) in recommenders.items() for validation in (True, False)
    ]  # fmt: skip


def bursts(path: Path) -> dict[str, float]:
    """How arbitrary the order of a rating file is: the shares of users whose last two ratings have the same second
    (tied), and whose ratings all fall within a day (one_day).

    Args:
        path: lines ``user <tab> item <tab> rating <tab> seconds``.
    """
    lines = path.read_text(encoding="ascii").splitlines()
    rows = np.array([[int(line.split("\t")[i]) for i in (0, 3)] for line in lines])
    times = [np.sort(rows[rows[:, 0] == user, 1]) for user in np.unique(rows[:, 0])]
    return {
        "tied": float(np.mean([t[-1] == t[-2] for t in times])),
        "one_day": float(np.mean([t[-1] - t[0] < 86_400 for t in times])),
    }


def baselines_path() -> Path:
    """Where the measured baselines are kept."""
    return data_dir() / "recommenders" / "baselines.json"


def bursts_path() -> Path:
    """Where bursts() of MovieLens-100K is kept."""
    return data_dir() / "recommenders" / "bursts.json"


def main() -> None:
    from mimetic.experiments.configs import EXPERIMENTS

    rows = [
        row
        for name in ("ml100k", "beauty", "clusters")
        for row in baselines(EXPERIMENTS[name].dataset, EXPERIMENTS[name].items)
    ]
    found = {"ml100k": {name: round(share, 4) for name, share in bursts(fetch_sequences("ml100k")).items()}}
    write_json(baselines_path(), rows)
    write_json(bursts_path(), found)
    for row in rows:
        print({k: v for k, v in row.items() if k not in ("users", "interactions")})
    print(found)


if __name__ == "__main__":
    main()
