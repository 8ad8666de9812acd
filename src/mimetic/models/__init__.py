"""Models of the experiments. They know nothing of data or training."""

from mimetic.models.bert4rec import BERT4Rec, BERT4RecConfig
from mimetic.models.blocks import Block, Mlp, SelfAttention, parameter_counts
from mimetic.models.gpt import GPT, GPTConfig
from mimetic.models.vit import ViT, ViTConfig

__all__ = [
    "BERT4Rec",
    "BERT4RecConfig",
    "Block",
    "GPT",
    "GPTConfig",
    "Mlp",
    "SelfAttention",
    "ViT",
    "ViTConfig",
    "parameter_counts",
]
