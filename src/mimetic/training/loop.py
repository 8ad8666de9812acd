"""The training loop: AdamW, warm-up and cosine, clipping, checkpoints. It knows no modality.

A task gives the batches, the loss and the evaluation; the loop turns them into weights and a curve. Batches are a pure
function of (epoch, step), so that a run that was killed and resumed sees what it would have seen.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mimetic.training.backend import compiler_needed, derive_seed, resolve_backend, settings
from mimetic.training.checkpoint import load_checkpoint, rng_state, save_checkpoint, set_rng_state
from mimetic.training.config import TrainConfig
from mimetic.training.parallel import ALONE, Group
from mimetic.training.precision import cast, products
from mimetic.training.progress import Progress
from mimetic.training.step import Step

# share of the time that checkpoints after epochs may take: on a GPU one can take as long as a tenth of an epoch
CHECKPOINT_SHARE = 0.005
LIMIT_STEPS = 20  # how often several processes agree on whether the time is up
_NO_DECAY = ("pos_embed", "cls_token")  # besides everything with fewer than two dimensions: biases and norms


class Task(Protocol):
    """What the loop trains. Everything random in it must follow from its seed and (epoch, step)."""

    steps_per_epoch: int
    unit: str  # what throughput counts: "images", "tokens", ...
    units_per_step: int
    # whether the loss is a plain mean over the batch's rows; else several processes cannot share it
    mean_over_rows: bool

    def batch(self, epoch: int, step: int) -> Any:
        """Batch ``step`` (from 0) of ``epoch`` (from 0), on the device."""

    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to minimise, and metrics to average over the epoch (scalars; they appear as train_NAME)."""

    def evaluate(self, model: nn.Module, last: bool) -> dict[str, float]:
        """Metrics on the test set (they appear as test_NAME): all of it when this is the last epoch; before, part of it
        will do for a curve. Gradients are off, the model is in eval mode."""


@dataclass
class Result:
    """What training gave."""

    curve: list[dict[str, float]]  # one dict an epoch: epoch (from 1), step, lr, train_loss, train_*, test_*
    # compile (the first step of a compiled model), train, evaluate, save
    seconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("compile", "train", "evaluate", "save"), 0.0)
    )
    units_per_second: float = 0.0
    resumed: int = 0  # how often the run went on from a checkpoint
    started: str | None = None  # what was passed as ``started`` when the run first began
    # name, processes, from which step on; one entry unless it moved
    machines: list[dict[str, Any]] = field(default_factory=list)
    graph: bool | None = None  # whether a step was one CUDA graph; None: not on a GPU


class TimeLimit(Exception):
    """The time limit was reached; everything is saved, the same call goes on from there."""


class Diverged(ArithmeticError):
    """The loss or a metric is no longer a finite number."""


def learning_rate(step: int, config: TrainConfig, steps_per_epoch: int) -> float:
    """The learning rate of step ``step`` (from 0)."""
    total = config.epochs * steps_per_epoch
    warmup = round(config.warmup * total)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1)))


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW in two groups: with weight decay (matrices) and without (the rest)."""
    return adamw([(name, parameter, parameter.ndim) for name, parameter in model.named_parameters()], config)


def adamw(parameters: Sequence[tuple[str, nn.Parameter, int]], config: TrainConfig) -> torch.optim.AdamW:
    """As make_optimizer, of parameters with the name and the number of dimensions that each has in the model."""
    decay, rest = [], []
    for name, parameter, dimensions in parameters:
        if parameter.requires_grad:
            exempt = dimensions < 2 or name.rpartition(".")[2] in _NO_DECAY
            (rest if exempt else decay).append(parameter)
    groups = [{"params": decay, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    fused = parameters[0][1].device.type in ("cpu", "cuda")
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.lr, betas=config.betas, fused=fused)


def train(
    model: nn.Module,
    task: Task,
    config: TrainConfig,
    *,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    identity: dict[str, str] | None = None,
    started: str | None = None,
    checkpoint_seconds: float = 30.0,
    time_limit: float | None = None,
    progress: bool = True,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
    label: str = "",
    group: Group = ALONE,
) -> Result:
    """Train ``model`` in place (it is on its device already) and return the curve.

    Args:
        seed: of PyTorch's global generators during training (dropout); they are restored afterwards.
        checkpoint: file to resume from if it exists and to save to; None: neither. The caller deletes it.
        identity: what a checkpoint must have been saved with (see load_checkpoint).
        started: kept in the checkpoint and handed back, so that a resumed run knows when it began.
        checkpoint_seconds: a checkpoint is saved when this much time has passed, and after an epoch if that costs
            little. One that cannot be written is said, and the run goes on with the old one.
        time_limit: seconds after which to save and stop with TimeLimit; None: no limit.
        progress: a bar (in a terminal) and a line an epoch.
        on_epoch: called with the entry of the curve after every epoch.
        label: what the progress display calls the run.
        group: the processes that train it together (see training.parallel); each takes its rows of every batch.

    Raises:
        TimeLimit: the limit was reached. With a checkpoint, the same call goes on from there.
        OSError: the limit was reached, and the checkpoint cannot be written.
        Unavailable: torch.compile fails here, for want of a compiler for example.
        Diverged: the loss or a metric is not finite at the end of an epoch.
        CheckpointError: the checkpoint is damaged or belongs to another run.
        ValueError: several processes, and a task whose loss or batch they cannot share.
    """
    if group.size > 1 and not task.mean_over_rows:
        raise ValueError(
            f"{type(task).__name__}: its loss is not a mean over rows, so several processes cannot share a batch"
        )
    backend, steps = resolve_backend(config), task.steps_per_epoch
    shown, total, gpu = label or "the run", config.epochs * steps, backend["type"] == "cuda"
    saver = _Saver(checkpoint, checkpoint_seconds, time_limit, shown, group)
    with settings(config, backend, seed), products(backend):
        optimizer = make_optimizer(model, config)
        state = group.agree(lambda: load_checkpoint(checkpoint, identity or {})) if checkpoint else None
        step = state["step"] if state else 0
        result = _restore(state, model, optimizer) if state else Result(curve=[], started=started)
        here = {"name": backend["name"], "processes": group.size}
        if not result.machines or {k: result.machines[-1][k] for k in here} != here:
            result.machines.append(here | {"from_step": step})
        if group.size > 1:  # what is random in the model differs by process; and by step, when a run is gone on with
            torch.manual_seed(derive_seed(seed, "global", group.rank, step))
        forward, evaluated = _compiled(model, backend, group)
        # a graph holds one shape of batch, and no other process
        captures = gpu and backend["compiled"] and group.size == 1 and task.mean_over_rows
        trained = Step(model, forward, task.loss, optimizer, config.grad_clip, backend, captures, group)
        if state:
            device = next(model.parameters()).device
            trained.sums = {name: value.to(device) for name, value in state["sums"].items()}
        lap, compiling = _Laps(result.seconds), backend["compiled"]

        def save(must: bool = False) -> None:
            saver.save(must, lambda: {
                "identity": identity or {}, "model": model.state_dict(), "optimizer": optimizer.state_dict(),
                "rng": rng_state(), "step": step, "sums": trained.sums, "result": vars(result),
            })  # fmt: skip
            lap("save")

        with closing(Progress(label, step, total, progress and group.first)) as bar:
            for epoch in range(len(result.curve), config.epochs):
                model.train()
                lap()
                while step < (epoch + 1) * steps:
                    batch = group.rows(task.batch(epoch, step - epoch * steps))
                    with compiler_needed() if compiling else nullcontext():
                        trained(batch, learning_rate(step, config, steps))
                    step += 1
                    result.graph = trained.graph if gpu else None
                    if compiling:  # no part of the speed
                        lap("compile")
                        compiling = False
                    bar.advance(trained.sums, step - epoch * steps)
                    if (out_of_time := saver.out_of_time(step)) or saver.due():
                        if gpu:  # what the card has still to do is training, and no part of saving
                            torch.cuda.synchronize()
                        lap("train")
                        save(must=out_of_time)
                        if out_of_time:
                            raise TimeLimit(f"{shown} stopped after {step} of {total} steps")
                entry = {"epoch": epoch + 1, "step": step, "lr": learning_rate(step - 1, config, steps)}
                entry |= {f"train_{name}": float(value) / steps for name, value in trained.sums.items()}
                lap("train")
                _check_finite(entry, shown)
                model.eval()
                with torch.no_grad(), cast(backend):
                    tested = task.evaluate(evaluated, epoch + 1 == config.epochs)
                    entry |= {f"test_{name}": float(value) for name, value in tested.items()}
                _check_finite(entry, shown)
                lap("evaluate")
                result.curve.append(entry)
                result.units_per_second = step * task.units_per_step / result.seconds["train"]
                trained.reset()
                if saver.cheap():
                    save()
                bar.epoch(result, config.epochs, task.unit)
                if on_epoch is not None:
                    on_epoch(entry)
    return result


def _check_finite(entry: dict[str, float], label: str) -> None:
    if bad := [name for name, value in entry.items() if not math.isfinite(value)]:
        raise Diverged(f"{label}: {bad[0]} is {entry[bad[0]]} in epoch {entry['epoch']}")


class _Laps:
    """A stopwatch: each call counts the seconds since the last one to a part (of Result.seconds), or to none."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds, self.last = seconds, time.perf_counter()

    def __call__(self, part: str | None = None) -> None:
        now = time.perf_counter()
        if part:
            self.seconds[part] += now - self.last
        self.last = now


def _restore(state: dict[str, Any], model: nn.Module, optimizer: torch.optim.AdamW) -> Result:
    """Put a checkpoint's state where it was; what training had given until then."""
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    set_rng_state(state["rng"])
    result = Result(**state["result"])
    result.resumed += 1
    return result


def _compiled(model: nn.Module, backend: dict[str, Any], group: Group) -> tuple[nn.Module, nn.Module]:
    """The model as it is trained and as it is evaluated: every process evaluates the whole test set, and waits for no
    other."""
    forward = group.wrap(model)
    if not backend["compiled"]:
        return forward, model
    # dynamic=False: the larger batch of the evaluation would make PyTorch compile all later graphs for any batch size
    forward = torch.compile(forward, dynamic=False)
    return forward, forward if group.size == 1 else torch.compile(model, dynamic=False)


class _Saver:
    """Writes the checkpoints of a run, in the first of its processes, and knows when the next one is due, and when the
    run has to stop."""

    def __init__(
        self, path: str | Path | None, every: float, time_limit: float | None, label: str, group: Group
    ) -> None:
        self.path, self.every, self.label, self.group = path if group.first else None, every, label, group
        self.last, self.cost = time.monotonic(), 0.0  # when a checkpoint was written, and how many seconds that took
        self.deadline = None if time_limit is None else self.last + time_limit

    def out_of_time(self, step: int) -> bool:
        """Whether the time limit is reached, of which several processes agree: their clocks differ, and all must stop
        at the same step."""
        out = self.deadline is not None and time.monotonic() > self.deadline
        if self.deadline is None or self.group.size == 1:
            return out
        return step % LIMIT_STEPS == 0 and self.group.agree(lambda: out)

    def due(self) -> bool:
        """Whether the time between checkpoints has passed."""
        return time.monotonic() - self.last > self.every

    def cheap(self) -> bool:
        """Whether that, or so much of it that another one costs little (CHECKPOINT_SHARE)."""
        return time.monotonic() - self.last > min(self.every, self.cost / CHECKPOINT_SHARE)

    def save(self, must: bool, state: Callable[[], dict[str, Any]]) -> None:
        """Write ``state()``. What cannot be written is raised if it must, else said."""
        before = time.monotonic()
        if self.path:
            try:
                save_checkpoint(self.path, state())
            except OSError as error:
                if must:
                    raise
                warnings.warn(f"{self.label} is not saved ({error}); it goes on, and may be lost", stacklevel=4)
        self.last = time.monotonic()
        self.cost = self.last - before
