"""The training loop: AdamW, warm-up and cosine, clipping, checkpoints. It knows no modality.

A task gives the batches, the loss and the evaluation; the loop turns them into weights and a curve. Batches are a pure
function of (epoch, step), so that a run that was killed and resumed sees what it would have seen.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

try:
    from tqdm import tqdm
except ImportError:

    class tqdm:  # noqa: N801  on a bare GPU machine: the lines without the bar
        disable = True

        def __init__(self, **_: Any) -> None: ...

        def update(self) -> None: ...

        def close(self) -> None: ...

        def write(self, line: str) -> None:
            print(line, flush=True)

from mimetic.data.fetch import Unavailable
from mimetic.training.checkpoint import load_checkpoint, rng_state, save_checkpoint, set_rng_state
from mimetic.training.parallel import ALONE, Group
from mimetic.training.precision import cast, cpu_has_bfloat16, products
from mimetic.training.step import Step

# Deterministic products on a GPU need it, and cuBLAS reads it once, at a process's first product: so it is set before any.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("auto", "float32", "bfloat16")
COMPILE = ("auto", "on", "off")
CHECKPOINT_SHARE = 0.02  # of the time may go into checkpoints after epochs; on a GPU one can take as long as a tenth of an epoch
MOST_THREADS = 1024
MOST_GRAPHS = 256  # of one function; a shape of GPT takes five
LIMIT_STEPS = 20  # how often several processes agree on whether the time is up
_NO_DECAY = ("pos_embed", "cls_token")  # besides everything with fewer than two dimensions: biases and norms


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
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, not {getattr(self, name)!r}")
        for name, low in (("epochs", 1), ("threads", 1)):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < low:
                raise ValueError(f"{name} must be a whole number of at least {low}, not {getattr(self, name)!r}")
        if self.threads > MOST_THREADS:
            raise ValueError(f"threads must be at most {MOST_THREADS}, not {self.threads!r}")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr must be greater than 0 and finite, not {self.lr!r}")
        for name in ("weight_decay", "grad_clip"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be at least 0 and finite, not {getattr(self, name)!r}")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup is a share of the run, at least 0 and less than 1, not {self.warmup!r}")


class Task(Protocol):
    """What the loop trains. Everything random in it must follow from its seed and (epoch, step)."""

    steps_per_epoch: int
    unit: str  # what throughput counts: "images", "tokens", ...
    units_per_step: int
    mean_over_rows: bool  # whether the loss is a plain mean over the batch's rows; else several processes cannot share it

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
    seconds: dict[str, float] = field(default_factory=dict)  # compile (the first step of a compiled model), train, evaluate, save
    units_per_second: float = 0.0
    resumed: int = 0  # how often the run went on from a checkpoint
    started: str | None = None  # what was passed as ``started`` when the run first began
    machines: list[dict[str, Any]] = field(default_factory=list)  # name, processes, from which step on; one entry unless it moved


class TimeLimit(Exception):
    """The time limit was reached; everything is saved, the same call goes on from there."""


class Diverged(ArithmeticError):
    """The loss or a metric is no longer a finite number."""


def derive_seed(*parts: int | str) -> int:
    """A seed for one purpose: a function of its arguments only, unrelated to those of other purposes or neighbours."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


def resolve_device(name: str) -> torch.device:
    """The device behind "auto", "cpu", "cuda", "mps".

    Raises:
        ValueError: unknown name, or this machine has no such device.
    """
    if name not in DEVICES:
        raise ValueError(f"device must be one of {', '.join(DEVICES)}, not {name!r}")
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device("cuda" if there["cuda"] else "mps" if there["mps"] else "cpu")
    if not there[name]:
        raise ValueError(f"device={name!r}: PyTorch finds none on this machine; choices here: auto, "
                         + ", ".join(key for key, value in there.items() if value))  # fmt: skip
    return torch.device(name)


def resolve_backend(config: TrainConfig) -> dict[str, Any]:
    """What a config means on this machine: type, name, threads, precision, products (the precision they are taken in; see
    training.precision), compiled."""
    device = resolve_device(config.device)
    gpu = device.type == "cuda"
    # older cards have no bfloat16, or only an emulation, and the compiler refuses them
    precision = config.precision if config.precision != "auto" else "bfloat16" if gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    compiled = gpu and torch.cuda.get_device_capability(device) >= (7, 0) if config.compile == "auto" else config.compile == "on"
    return {
        "type": device.type,
        "name": torch.cuda.get_device_name(device) if gpu else _cpu_name(),
        "threads": config.threads,
        "precision": precision,
        "products": "float32" if device.type == "cpu" and not compiled and not cpu_has_bfloat16() else precision,
        "compiled": compiled,
    }


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
        checkpoint_seconds: a checkpoint is saved when this much time has passed, and after an epoch if that costs little. One that cannot be
            written is said, and the run goes on with the old one.
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
        raise ValueError(f"{type(task).__name__}: its loss is not a mean over rows, so several processes cannot share a batch")
    backend, steps = resolve_backend(config), task.steps_per_epoch
    began = saved = time.monotonic()
    cost = 0.0  # seconds that the last checkpoint took
    result = Result(curve=[], seconds=dict.fromkeys(("compile", "train", "evaluate", "save"), 0.0), started=started)
    with settings(config, backend, seed), products(backend):
        optimizer = make_optimizer(model, config)
        step = 0
        state = group.agree(lambda: load_checkpoint(checkpoint, identity or {})) if checkpoint else None
        if state is not None:
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            set_rng_state(state["rng"])
            step = state["step"]
            result = Result(**state["result"])
            result.resumed += 1
        here = {"name": backend["name"], "processes": group.size}
        if not result.machines or {k: result.machines[-1][k] for k in here} != here:
            result.machines.append(here | {"from_step": step})
        if group.size > 1:  # what is random in the model differs by process; and by step, when a run is gone on with
            torch.manual_seed(derive_seed(seed, "global", group.rank, step))

        def save(must: bool = False) -> None:
            nonlocal saved, cost
            before = time.monotonic()
            if checkpoint and group.first:
                try:
                    save_checkpoint(checkpoint, {
                        "identity": identity or {}, "model": model.state_dict(), "optimizer": optimizer.state_dict(),
                        "rng": rng_state(), "step": step, "sums": trained.sums, "result": vars(result),
                    })  # fmt: skip
                except OSError as error:
                    if must:
                        raise
                    warnings.warn(f"{label or 'the run'} is not saved ({error}); it goes on, and may be lost", stacklevel=2)
            saved = time.monotonic()
            cost = saved - before
            result.seconds["save"] += cost

        forward, evaluated = group.wrap(model), model  # every process evaluates the whole test set: nothing to wait for
        if backend["compiled"]:
            # dynamic=False: the larger batch of the evaluation would make PyTorch compile all later graphs for any batch size
            forward = torch.compile(forward, dynamic=False)
            evaluated = forward if group.size == 1 else torch.compile(model, dynamic=False)
        # a graph holds one shape of batch, and no other process
        captures = backend["type"] == "cuda" and backend["compiled"] and group.size == 1 and task.mean_over_rows
        trained = Step(model, forward, task.loss, optimizer, config.grad_clip, backend, captures, group)
        if state is not None:
            trained.sums = {name: value.to(_device(model)) for name, value in state["sums"].items()}
        compiling = backend["compiled"]
        bar = _Progress(label, step, config.epochs * steps, progress and group.first)
        try:
            for epoch in range(len(result.curve), config.epochs):
                model.train()
                clock = time.perf_counter()
                while step < (epoch + 1) * steps:
                    batch = group.rows(task.batch(epoch, step - epoch * steps))
                    with _compiler_needed() if compiling else nullcontext():
                        trained(batch, learning_rate(step, config, steps))
                    step += 1
                    if compiling:  # no part of the speed
                        result.seconds["compile"] += time.perf_counter() - clock
                        clock, compiling = time.perf_counter(), False
                    bar.advance(trained.sums, step - epoch * steps)
                    now = time.monotonic()
                    out_of_time = time_limit is not None and now - began > time_limit
                    if time_limit is not None and group.size > 1:  # clocks differ, and all must stop at the same step
                        out_of_time = step % LIMIT_STEPS == 0 and group.agree(lambda out=out_of_time: out)
                    if out_of_time or now - saved > checkpoint_seconds:
                        result.seconds["train"] += time.perf_counter() - clock
                        save(must=out_of_time)
                        clock = time.perf_counter()
                        if out_of_time:
                            total = config.epochs * steps
                            raise TimeLimit(f"{label or 'the run'} stopped after {step} of {total} steps")
                entry = {f"train_{name}": float(value) / steps for name, value in trained.sums.items()}
                result.seconds["train"] += time.perf_counter() - clock
                if not math.isfinite(entry["train_loss"]):
                    raise Diverged(f"{label or 'training'}: the loss is {entry['train_loss']} in epoch {epoch + 1}")
                clock = time.perf_counter()
                model.eval()
                with torch.no_grad(), cast(backend):
                    entry |= {f"test_{name}": float(value) for name, value in task.evaluate(evaluated, epoch + 1 == config.epochs).items()}
                if bad := [name for name, value in entry.items() if not math.isfinite(value)]:
                    raise Diverged(f"{label or 'training'}: {bad[0]} is {entry[bad[0]]} in epoch {epoch + 1}")
                result.seconds["evaluate"] += time.perf_counter() - clock
                rate = learning_rate(step - 1, config, steps)
                result.curve.append({"epoch": epoch + 1, "step": step, "lr": rate, **entry})
                result.units_per_second = step * task.units_per_step / result.seconds["train"]
                trained.reset()
                if time.monotonic() - saved > min(checkpoint_seconds, cost / CHECKPOINT_SHARE):
                    save()
                bar.epoch(result, config.epochs, task.unit)
                if on_epoch is not None:
                    on_epoch(result.curve[-1])
        finally:
            bar.close()
    return result


def _no_silent_eager() -> AbstractContextManager:
    """dynamo counts the graphs of one function over all models of a process, and beyond eight would go on without compiling: other bits, another
    speed, and nothing said. So there may be many, which runs of one shape then share, and too many are an error."""
    wanted = {"recompile_limit": MOST_GRAPHS, "accumulated_recompile_limit": 8 * MOST_GRAPHS, "fail_on_recompile_limit_hit": True}
    return torch._dynamo.config.patch(**{name: value for name, value in wanted.items() if hasattr(torch._dynamo.config, name)})


@contextmanager
def _compiler_needed() -> Iterator[None]:
    """One line in place of a compiler's hundred."""
    try:
        yield
    except Exception as error:
        if type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
            said = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
            raise Unavailable(f"torch.compile fails on this machine ({type(error).__name__}: {said[:160]}): choose --compile off, or install a compiler") from error
        raise


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


@contextmanager
def settings(config: TrainConfig, backend: dict[str, Any], seed: int) -> Iterator[None]:
    """Threads, global generators and, on a GPU, deterministic kernels, for the time of a run; all restored after."""
    threads, gpu = torch.get_num_threads(), backend["type"] == "cuda"
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if gpu else []), _no_silent_eager() if backend["compiled"] else nullcontext():
        torch.manual_seed(derive_seed(seed, "global"))
        try:
            torch.set_num_threads(config.threads)
            if gpu:  # the same run twice gives the same bits; CPU kernels do so anyway. With warn_only attention's backward would not
                torch.use_deterministic_algorithms(True)
                torch.utils.deterministic.fill_uninitialized_memory = False  # a debugging aid that costs time
            yield
        finally:
            torch.set_num_threads(threads)
            if gpu:
                torch.use_deterministic_algorithms(before[0], warn_only=before[1])
                torch.utils.deterministic.fill_uninitialized_memory = fill


def _cpu_name() -> str:
    """The processor's model name."""
    import platform

    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


class _Progress:
    """A bar with loss, accuracy and time left, and one line an epoch; silent if not wanted."""

    def __init__(self, label: str, step: int, total: int, shown: bool) -> None:
        # disable=None: no bar where the output is a file, only the lines
        self.shown, self.label, self.read = shown, label, 0.0
        self.bar = tqdm(
            total=total, initial=step, desc=label, unit="step", leave=False, dynamic_ncols=True,
            disable=None if shown else True,
        )  # fmt: skip

    def advance(self, sums: dict[str, Tensor], steps: int) -> None:
        self.bar.update()
        if not self.bar.disable and time.monotonic() - self.read > 0.5:  # reading the sums waits for the device
            means = {name: float(value) / steps for name, value in sums.items()}
            self.bar.set_postfix({name: f"{value:.3f}" for name, value in means.items()}, refresh=False)
            self.read = time.monotonic()

    def epoch(self, result: Result, epochs: int, unit: str) -> None:
        if self.shown:
            last = result.curve[-1]
            metrics = "  ".join(f"{k} {v:.4f}" for k, v in last.items() if k.startswith(("train_", "test_")))
            took = sum(result.seconds.values())
            self.bar.write(f"{self.label}  epoch {last['epoch']}/{epochs}  {metrics}  lr {last['lr']:.1e}  "
                           f"{result.units_per_second:.0f} {unit}/s  {took:.0f} s")  # fmt: skip

    def close(self) -> None:
        self.bar.close()
