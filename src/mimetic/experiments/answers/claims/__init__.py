"""Every claim about mimetic initialization that this book tests: whose it is, what was found, and a verdict (chapter
13). A module a part of the book.
"""

from __future__ import annotations

import pandas as pd

from mimetic.experiments.answers.claims import language, pattern, recommenders, vision
from mimetic.experiments.answers.claims.verdicts import ASKED, MEANING, OURS

__all__ = ["ASKED", "CLAIMS", "MEANING", "OURS", "PARTS", "claims"]

CLAIMS = (*pattern.CLAIMS, *vision.CLAIMS, *language.CLAIMS, *recommenders.CLAIMS)
PARTS = tuple(dict.fromkeys(claim.part for claim in CLAIMS))


def claims(part: str | None = None) -> pd.DataFrame:
    """One row a claim, or one a claim of a part: part, claim, whose, found, verdict, page."""
    rows = []
    for claim in CLAIMS:
        if part in (None, claim.part):
            verdict, found = claim.judge()
            rows.append(
                {
                    "part": claim.part,
                    "claim": claim.says,
                    "whose": claim.whose,
                    "found": found,
                    "verdict": verdict,
                    "page": claim.page,
                }
            )
    return pd.DataFrame(rows)
