"""Ranking over the whole catalogue: the rank of the right item among all items
that the user has not had, and what follows.

No sampled metrics: ranking against a sample of negatives can order recommenders differently (Krichene & Rendle 2020).
The items of a user's history are left out of the ranking, for every recommender here alike, as in the reproduction of
BERT4Rec that the reference numbers come from (Petrov & Macdonald 2022, public code asash/bert4rec_repro, filter_seen).

Shape suffixes: B users, I items, L items of the longest history.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mimetic.construct import double

CUTOFF = 10


def target_ranks(scores_BI: Tensor, target_B: Tensor, history_BL: Tensor) -> Tensor:
    """The rank (from 1) of each user's target among the items that are not in the history, (B,) float64.

    An item with the target's own score counts as half in front of it: the mean rank over all orders of the tied items.

    Args:
        scores_BI: any scores, higher is better; column i is item i + 1. Of a row with a nan or an infinity the rank is
            nan.
        target_B: int64, from 1. A target that is in the history is ranked all the same.
        history_BL: int64, padded with 0.
    """
    wanted_B1 = scores_BI.gather(1, target_B[:, None] - 1)
    had_BI = torch.zeros(len(scores_BI), scores_BI.shape[1] + 1, dtype=torch.bool, device=scores_BI.device)
    had_BI.scatter_(1, history_BL, True)
    had_BI.scatter_(1, target_B[:, None], True)  # it does not compete with itself
    others_BI = ~had_BI[:, 1:]
    above = ((scores_BI > wanted_B1) & others_BI).sum(1)
    level = ((scores_BI == wanted_B1) & others_BI).sum(1)
    # nothing is above a nan, which would make its rank the best
    known = torch.where(scores_BI.isfinite().all(1), 1.0, torch.nan)
    return double(known) + double(above) + double(level) / 2


def gains(ranks_B: Tensor, k: int = CUTOFF) -> Tensor:
    """Each user's NDCG@k, (B,): with one relevant item 1 / log2(1 + rank), beyond rank k 0."""
    return torch.where(ranks_B <= k, 1 / torch.log2(1 + ranks_B), 0.0)


def ranking_metrics(ranks_B: Tensor, k: int = CUTOFF) -> dict[str, float]:
    """Means over users of Recall@k, NDCG@k (gains) and MRR (1 / rank, no cutoff)."""
    return {
        f"ndcg{k}": float(gains(ranks_B, k).mean()),
        f"recall{k}": float(double(ranks_B <= k).mean()),
        "mrr": float((1 / ranks_B).mean()),
    }


def pad_left(sequences, length: int | None = None) -> Tensor:
    """Integer sequences as one (B, length) int64 tensor, the last items kept, 0 in
    front; length None: that of the longest.
    """
    length = max(len(s) for s in sequences) if length is None else length
    out = torch.zeros(len(sequences), length, dtype=torch.int64)
    for row, s in zip(out, sequences):
        s = s[-length:] if length else ()
        if len(s):
            row[-len(s) :] = torch.tensor(s)
    return out
