"""How to train, without saying what."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mimetic.messages import check_choice, check_whole

DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("auto", "float32", "bfloat16")
COMPILE = ("auto", "on", "off")
MOST_THREADS = 1024


@dataclass(frozen=True)
class TrainConfig:
    """How to train; nothing about what."""

    epochs: int
    lr: float = 1e-3  # peak learning rate
    weight_decay: float = 0.05  # on matrices only: not on biases, norms, position embedding, class token
    betas: tuple[float, float] = (0.9, 0.999)  # of AdamW
    warmup: float = 0.1  # share of the run in which lr grows linearly; then a cosine to 0; both step by step
    grad_clip: float = 1.0  # largest norm of the gradient; 0: no clipping
    device: str = "auto"  # "auto": cuda, else mps, else cpu
    threads: int = 2  # of PyTorch on the CPU; sums are ordered by it, so it belongs to the config
    precision: str = "auto"  # "auto": bfloat16 autocast on cards that have it, float32 elsewhere
    compile: str = "auto"  # torch.compile; "auto": on cards that it supports

    def __post_init__(self) -> None:
        for name, choices in (("device", DEVICES), ("precision", PRECISIONS), ("compile", COMPILE)):
            check_choice(name, getattr(self, name), choices)
        check_whole("epochs", self.epochs)
        check_whole("threads", self.threads)
        if self.threads > MOST_THREADS:
            raise ValueError(f"threads must be at most {MOST_THREADS}, not {self.threads!r}")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr must be greater than 0 and finite, not {self.lr!r}")
        for name in ("weight_decay", "grad_clip"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be at least 0 and finite, not {getattr(self, name)!r}")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup is a share of the run, at least 0 and less than 1, not {self.warmup!r}")
