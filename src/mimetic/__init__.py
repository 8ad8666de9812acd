"""Mimetic initialization of self-attention layers (Trockman & Kolter, ICML 2023): the public names."""

from mimetic import verify  # noqa: F401  mimetic.verify.verify, as the documentation has it
from mimetic.adapters import register_adapter
from mimetic.attention import AttentionLayer, MimeticWarning, UnsupportedAttention
from mimetic.audit import Audit, StateNames, audit
from mimetic.construct import factor, factor_top_k, semi_diagonal
from mimetic.initialize import WrittenLayer, mimetic_init_
from mimetic.initializers import INITIALIZERS, initialize_
from mimetic.measure import fit, measure
from mimetic.scan import attention_layers
from mimetic.spec import LANGUAGE, VISION, MimeticSpec

__version__ = "0.1.0"

__all__ = [
    "INITIALIZERS",
    "LANGUAGE",
    "VISION",
    "AttentionLayer",
    "Audit",
    "MimeticSpec",
    "MimeticWarning",
    "StateNames",
    "UnsupportedAttention",
    "WrittenLayer",
    "attention_layers",
    "audit",
    "factor",
    "factor_top_k",
    "fit",
    "initialize_",
    "measure",
    "mimetic_init_",
    "register_adapter",
    "semi_diagonal",
]
