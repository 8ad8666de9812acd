"""What the config of every run has, whatever is trained.

A named experiment is a config (EXPERIMENTS of a family's module); an arm is what a run of it changes (its ARMS);
everything else the arms of an experiment have in common.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache
from typing import Any, ClassVar, TypeVar, get_args, get_type_hints

# What may differ between two runs of one named experiment, and between two machines that make the same run.
MACHINE = ("device", "threads", "compile")
FREE = ("arm", "seed", *MACHINE)

Part = TypeVar("Part")


@dataclass(frozen=True)
class RunConfig:
    """A run, completely. Two equal configs give the same record on the same machine."""

    family: ClassVar[str]  # the module of mimetic.experiments that knows how to train it
    default_init: ClassVar[str] = "timm"  # the default initialization, which the mimetic ones write over

    experiment: str  # name of the folder of the records
    init: str = "timm"  # initializer by name, one of mimetic.INITIALIZERS
    seed: int = 0  # of the initial weights, the data order and the augmentation (separate generators)
    arm: str = ""  # what the record is called within the experiment; "": the name of the initializer

    # the mimetic initializers' constants, one number or one a layer; the defaults are mimetic.VISION

    qk_alpha: float | tuple[float, ...] = 0.7  # noise of W_Q W_K^T
    qk_beta: float | tuple[float, ...] = 0.7  # identity of W_Q W_K^T
    vp_alpha: float | tuple[float, ...] = 0.4  # noise of W_V W_proj
    vp_beta: float | tuple[float, ...] = -0.4  # identity of W_V W_proj
    qk_rank: int | None = None  # rank of W_Q W_K^T; None: the head size

    # training

    epochs: int = 100  # of training
    batch_size: int = 128  # images, windows of text or users a step
    lr: float = 1e-3  # peak; AdamW
    weight_decay: float = 0.05  # AdamW's, on matrices only
    warmup: float = 0.1  # share of the run, linear; then cosine to 0
    grad_clip: float = 1.0  # largest gradient norm; 0: no clipping

    # machine

    device: str = "auto"  # auto, cpu, cuda, mps
    threads: int = 2  # CPU threads; they change the order of sums, so bit-identical means with equal threads
    precision: str = "auto"  # auto (bfloat16 on cuda), float32, bfloat16
    compile: str = "auto"  # torch.compile: auto (on cuda), on, off

    @property
    def arm_name(self) -> str:
        """What the arm is called: one that has only another initializer by its name."""
        return self.arm or self.init

    @property
    def name(self) -> str:
        """experiment/arm-seedN"""
        return f"{self.experiment}/{self.arm_name}-seed{self.seed}"

    @classmethod
    def known(cls) -> list[str]:
        """Names of the fields."""
        return [f.name for f in fields(cls)]

    def part(self, kind: type[Part], **more: Any) -> Part:
        """The fields that another dataclass has, too, as one of its kind; more: of its fields."""
        return kind(**{f.name: getattr(self, f.name) for f in fields(kind) if hasattr(self, f.name)} | more)

    def check_types(self) -> None:
        """Raise ValueError, naming the field and what it may be, where a value is of another type than its field; the
        constants of the targets are MimeticSpec's to check."""
        for name, kinds in _kinds(type(self)).items():
            value = getattr(self, name)
            if not any(_is(value, kind) for kind in kinds):
                raise ValueError(f"{name} must be {' or '.join(_WORDS[kind] for kind in kinds)}, not {value!r}")


_WORDS = {int: "a whole number", float: "a number", bool: "one of True, False", type(None): "None"}


@cache
def _kinds(config: type[RunConfig]) -> dict[str, tuple[type, ...]]:
    """field -> the types that its value may have, of the fields that take numbers, but for one a layer."""
    hints = get_type_hints(config)
    kinds = {name: get_args(hints[name]) or (hints[name],) for name in config.known()}
    return {name: these for name, these in kinds.items() if all(kind in _WORDS for kind in these)}


def _is(value: object, kind: type) -> bool:
    """Whether a value is of a kind: True is no number, and a whole number is one."""
    return isinstance(value, (int, float) if kind is float else kind) and (kind is bool or not isinstance(value, bool))
