"""The constants of mimetic initialization, and the two sets of them that have a name."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, fields
from numbers import Real

from torch import Tensor

from mimetic.construct import NOISES
from mimetic.messages import check_choice

# of a constant that is not 0: the factors are made in float32; its square root must fit into half precision, its square
# into single
LEAST, LARGEST = 1e-15, 1e6


@dataclass(frozen=True)
class MimeticSpec:
    """The constants of the targets. Signs live in beta. Each is one number, or one number a layer.

    Without noise a target has no directions of its own. Queries and keys are given a trace of it to draw theirs; with
    vp_alpha=0 the factors of V·proj are coordinate axes, so that each head reads and writes coordinates of its own, in
    every layer the same (0.001 avoids that).
    """

    qk_alpha: float | Sequence[float] = 0.7  #: noise of W_Q W_K^T
    qk_beta: float | Sequence[float] = 0.7  #: identity of W_Q W_K^T
    vp_alpha: float | Sequence[float] = 0.4  #: noise of W_V W_proj
    vp_beta: float | Sequence[float] = -0.4  #: identity of W_V W_proj
    noise: str = "normal"  #: "normal" N(0, 1/d) or "uniform" of the same variance

    def __post_init__(self):
        check_choice("noise", self.noise, NOISES)
        for name in self.constants():
            value = getattr(self, name)
            if isinstance(value, Tensor) and value.ndim <= 1:
                value = value.tolist()
                object.__setattr__(self, name, value)
            if isinstance(value, (Mapping, Set)):  # their order is not that of layers
                raise TypeError(
                    f"{name} must be a finite number or a sequence of them, one a layer; got a {type(value).__name__}:"
                    f" {value!r}"
                )
            values = ()
            if _is_number(value):
                values = (value,)
            elif isinstance(value, Iterable) and not isinstance(value, bytes) and getattr(value, "ndim", 1) == 1:
                values = tuple(value)
            if not values or not all(map(_is_number, values)):
                raise ValueError(f"{name} must be a finite number or a sequence of them, one a layer; got {value!r}")
            if tiny := next((v for v in values if 0 < abs(v) < LEAST), None):
                raise ValueError(
                    f"{name} must be 0 or at least {LEAST:g} in size (the factors are made in float32); got {tiny!r}"
                )
            if max(map(abs, values)) > LARGEST:
                raise ValueError(f"{name} must be between -{LARGEST:g} and {LARGEST:g}; got {value!r}")
            if not isinstance(value, Real):
                object.__setattr__(self, name, tuple(float(v) for v in values))
        for part in ("qk", "vp"):
            alpha, beta = getattr(self, f"{part}_alpha"), getattr(self, f"{part}_beta")
            count = max(len(v) if isinstance(v, tuple) else 1 for v in (alpha, beta))
            pairs = zip(*(v if isinstance(v, tuple) else (v,) * count for v in (alpha, beta)))
            for i, pair in enumerate(pairs):
                if pair == (0, 0):
                    where = f" in layer {i}" if count > 1 else ""
                    raise ValueError(
                        f"{part}_alpha and {part}_beta are both 0{where}: such weights never learn; use {part}=False"
                        " instead"
                    )

    @classmethod
    def constants(cls) -> list[str]:
        return [f.name for f in fields(cls) if f.name != "noise"]

    def layer(self, i: int, count: int) -> dict[str, float]:
        """The four constants of layer i of count. Raises ValueError if a sequence has another length than count."""
        out = {}
        for name in self.constants():
            value = getattr(self, name)
            if isinstance(value, tuple):
                if len(value) != count:
                    raise ValueError(f"{name} has {len(value)} values, the model has {count} layers to write")
                value = value[i]
            out[name] = float(value)
        return out


def _is_number(value: object) -> bool:
    """Whether it is a finite number, and not the switch that qk=True is elsewhere."""
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        return False


VISION = MimeticSpec()
"""The signs of trained vision transformers (Trockman & Kolter 2023) and the commonest constants of public code
(alpha 0.7 and beta +0.7 for W_Q W_K^T, alpha 0.4 and beta −0.4 for W_V W_proj)."""
LANGUAGE = MimeticSpec(qk_beta=0.7, vp_beta=0.4)
"""VISION's sizes with the signs of the one pretrained language model that was measured, SmolLM2-135M
(data/pretrained/smollm2-135m.json): W_Q W_K^T positive in most heads, W_V W_proj positive in most layers, strongly so
in the upper half. It is not a law of language models: the decoder of Whisper
(data/pretrained/whisper-tiny-decoder.json) and small GPTs that we trained (data/runs, chapter 10) have W_Q W_K^T
positive but W_V W_proj negative in most layers, and for GPT-2 a secondary source reports W_Q W_K^T negative and
W_V W_proj positive. Where VISION is the paper's published claim, this is a starting point: measure and fit your own
model."""
