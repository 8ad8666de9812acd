"""Every claim about mimetic initialization that this book tests: whose it is, what was found, and a verdict (chapter
13). A module a part of the book, with the rows {(part, whose, page): {what it says: the function that judges it}}."""

from __future__ import annotations

import pandas as pd

from mimetic.book.claims import language, pattern, recommenders, vision
from mimetic.book.claims.verdicts import ASKED, MEANING, OURS, PAPER, Claim

__all__ = ["ASKED", "CLAIMS", "MEANING", "OURS", "PAPER", "PARTS", "claims"]

CLAIMS = tuple(
    Claim(part, says, whose, page, judge)
    for module in (pattern, vision, language, recommenders)
    for (part, whose, page), judges in module.CLAIMS.items()
    for says, judge in judges.items()
)
PARTS = tuple(dict.fromkeys(claim.part for claim in CLAIMS))


def claims(part: str | None = None) -> pd.DataFrame:
    """One row a claim, or one a claim of a part: part, claim, whose, found, verdict, page."""
    rows = []
    for claim in CLAIMS:
        if part in (None, claim.part):
            verdict, found = claim.judge()
            rows.append((claim.part, claim.says, claim.whose, found, verdict, claim.page))
    return pd.DataFrame(rows, columns=["part", "claim", "whose", "found", "verdict", "page"])
