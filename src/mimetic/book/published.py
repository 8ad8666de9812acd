"""What others have published: numbers and code, each with its source (data/published)."""

from __future__ import annotations

import re

import pandas as pd

from mimetic.book import common
from mimetic.data.fetch import data_dir


def numbers() -> pd.DataFrame:
    """Published numbers on vision with their sources, from data/published/vision.csv, and their differences; all text,
    "" where nothing is said."""
    found = pd.read_csv(data_dir() / "published" / "vision.csv", dtype=str).fillna("")
    before, after = (pd.to_numeric(found[f"{arm} (%)"]) for arm in ("default", "mimetic"))
    found.insert(2, "difference (points)", [f"{d:+.1f}" if d == d else "" for d in after - before])
    return found


def _linked(text: str) -> str:
    """The sources that a text names, as links."""
    text = re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", text)
    return re.sub(r"OpenReview (\w{10})", r"[OpenReview](https://openreview.net/forum?id=\1)", text)


def table() -> str:
    """numbers() as Markdown."""
    return _linked(common.markdown(numbers()))


def cifar() -> str:
    """The rows of numbers() on CIFAR as Markdown."""
    found = numbers()
    return _linked(common.markdown(found[found.apply(lambda column: column.str.contains("CIFAR")).any(axis=1)]))


def implementations() -> str:
    """The public re-implementations that were read, from data/published/implementations.csv, as a Markdown table."""
    return common.markdown(pd.read_csv(data_dir() / "published" / "implementations.csv", dtype=str).fillna(""))
