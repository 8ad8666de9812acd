"""Many small runs of ViTs or GPTs at once on one GPU: those of one shape are trained in the same kernels (models.stacked).

    python -m mimetic queue lab --together 36          the whole laboratory in minutes instead of a day

What each run sees and does is what it would alone (experiments.runs): its own weights, images, augmentation, gradient norm and
optimiser state; the numbers agree to the order of a sum. There are no checkpoints: a group that is stopped starts again, which costs
less than a minute.
"""

from __future__ import annotations

import math
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mimetic.experiments.configs import with_arm
from mimetic.experiments.configs.base import RunConfig
from mimetic.experiments.configs.language import LanguageConfig
from mimetic.experiments.configs.vision import VisionConfig
from mimetic.experiments.runs import Prepared, cases, check, checkpoint_path, existing, family, make_record, train_config
from mimetic.models.stacked import stack
from mimetic.training.checkpoint import exclusive, remove_checkpoint
from mimetic.training.loop import Result, adamw, learning_rate, resolve_backend, resolve_device
from mimetic.training.loop import settings as loop_settings
from mimetic.training.precision import cast, products
from mimetic.training.records import now, source_hash, write_record

# What the runs of one group may differ in: initial weights, seed, learning rate, and which training images there are (not how many
# an epoch has)
FREE = ("experiment", "arm", "init", "seed", "qk_alpha", "qk_beta", "vp_alpha", "vp_beta", "qk_rank", "lr", "train_size")
PROCESSES = 4  # groups side by side: one alone does not fill a GPU all the time
_SOURCE = ("experiments/together.py", "models/stacked.py")  # besides the family's


def groups(runs: Sequence[RunConfig], at_most: int) -> list[list[RunConfig]]:
    """The runs in groups of one shape, none larger than ``at_most`` and all of a shape about equally large; in the order of their first runs.

    Raises:
        ValueError: at_most is below 1, or a run is of another kind of model.
    """
    if at_most < 1:
        raise ValueError(f"together must be at least 1, not {at_most}")
    shapes: dict[tuple, list[RunConfig]] = {}
    for config in runs:
        if not isinstance(config, (VisionConfig, LanguageConfig)):
            raise ValueError(f"only ViTs and GPTs can be trained together, and {config.name} is neither")
        shapes.setdefault(_shape(config), []).append(config)
    made = []
    for same in shapes.values():
        each = math.ceil(len(same) / math.ceil(len(same) / at_most))
        made += [same[i : i + each] for i in range(0, len(same), each)]
    return sorted(made, key=lambda group: runs.index(group[0]))


def _shape(config: VisionConfig) -> tuple:
    """What all runs of a group have in common."""
    common = {name: value for name, value in asdict(with_arm(config)).items() if name not in FREE}
    epoch = (config.epoch_images or config.train_size) if isinstance(config, VisionConfig) else config.steps_per_epoch
    return type(config), *common.items(), epoch


def run_together(configs: Sequence[RunConfig], say: Callable[[str], None] = print) -> dict[str, str]:
    """Train those of the runs that have no record, all at once, and write their records.

    Args:
        configs: of one shape (see groups).
        say: called with a line after every epoch.

    Returns:
        The runs that failed, name -> why; the others are not touched by it.

    Raises:
        ValueError: a bad config, or configs of different shape; nothing has been computed.
        Unavailable: the data set cannot be had.
        RecordError: a record exists, but it is damaged or has another config.
        BusyCheckpoint: another process trains one of the runs.
    """
    configs = [with_arm(config) for config in configs]
    for config in configs:
        check(config)
    if len({_shape(config) for config in configs}) > 1:
        raise ValueError("runs of different shape cannot be trained together")
    source, failed = source_hash((*family(configs[0]).SOURCE, *_SOURCE)), {}
    with ExitStack() as held:
        for config in configs:
            held.enter_context(exclusive(checkpoint_path(config)))
        waiting = [config for config in configs if existing(config) is None]
        for config, record in zip(waiting, _train(waiting, source, say) if waiting else (), strict=True):
            if isinstance(record, str):
                failed[config.name] = record
            else:
                write_record(record)
                remove_checkpoint(checkpoint_path(config))
    return failed


def _train(configs: Sequence[RunConfig], source: dict[str, Any], say: Callable[[str], None]) -> Iterator[dict[str, Any] | str]:
    """The record of each run, or why there is none."""
    clock, started, size = time.perf_counter(), now(), len(configs)
    settings = [train_config(config) for config in configs]
    first = settings[0]
    device, backend = resolve_device(first.device), resolve_backend(replace(first, compile="off"))
    prepared = _prepare(configs, device)
    before = [each.anatomy(each.model) for each in prepared]
    # runs that differ in their weights only see the same batches
    streams = {_stream(config): each.task for config, each in zip(configs, prepared, strict=True)}
    stream = torch.tensor([list(streams).index(_stream(config)) for config in configs], device=device)
    task = prepared[0].task
    stacked = stack([each.model for each in prepared])
    optimizer = adamw([(name, weight, weight.ndim - 1) for name, weight in zip(stacked.names, stacked.weights, strict=True)], first)
    highest = max(settings, key=lambda s: s.lr)
    rates = torch.tensor([s.lr / highest.lr for s in settings], device=device)
    seconds = {"setup": time.perf_counter() - clock, "compile": 0.0, "train": 0.0, "evaluate": 0.0, "save": 0.0}
    curves: list[list[dict[str, float]]] = [[] for _ in configs]
    step, steps = 0, task.steps_per_epoch
    with loop_settings(first, backend, seed=0), products(backend):
        for epoch in range(first.epochs):
            clock, sums = time.perf_counter(), {}
            while step < (epoch + 1) * steps:
                batches = [each.batch(epoch, step - epoch * steps) for each in streams.values()]
                inputs, targets = (torch.stack(parts)[stream] for parts in zip(*batches, strict=True))
                for part in optimizer.param_groups:
                    part["lr"] = learning_rate(step, highest, steps)
                with cast(backend):
                    losses, metrics = _losses(stacked(inputs).float(), targets, configs[0])
                optimizer.zero_grad(set_to_none=True)
                losses.sum().backward()
                if first.grad_clip:
                    clip_each_(stacked.weights, first.grad_clip)
                step_each_(optimizer, stacked.weights, rates if highest.lr > min(s.lr for s in settings) else None)
                step += 1
                for name, value in {"loss": losses.detach(), **metrics}.items():
                    sums[name] = sums.get(name, 0) + value.double()
            trained = {f"train_{name}": (value / steps).tolist() for name, value in sums.items()}
            seconds["train"] += time.perf_counter() - clock
            clock = time.perf_counter()
            with torch.no_grad(), cast(backend):
                for run, each in enumerate(prepared):
                    tested = each.task.evaluate(each.model.eval(), epoch + 1 == first.epochs)
                    curves[run].append(
                        {"epoch": epoch + 1, "step": step, "lr": learning_rate(step - 1, settings[run], steps)}
                        | {name: values[run] for name, values in trained.items()} | {f"test_{name}": float(value) for name, value in tested.items()}
                    )  # fmt: skip
            seconds["evaluate"] += time.perf_counter() - clock
            say(f"{size} runs, {configs[0].name} and others: epoch {epoch + 1}/{first.epochs}, "
                f"{size * step * task.units_per_step / seconds['train']:.0f} {task.unit}/s")  # fmt: skip
    clock, after, seen = time.perf_counter(), {}, {}
    for run, each in enumerate(prepared):
        if all(math.isfinite(value) for entry in curves[run] for value in entry.values()):
            after[run], seen[run] = each.anatomy(each.model), cases(each, each.model, first)
    seconds["setup"] += time.perf_counter() - clock
    share = {name: value / size for name, value in seconds.items() if name != "setup"} | {"total": sum(seconds.values()) / size}
    for run, config in enumerate(configs):
        if run not in after:
            yield "Diverged: its loss is no longer a finite number"
            continue
        result = Result(curves[run], units_per_second=size * step * task.units_per_step / seconds["train"], started=started)
        yield make_record(
            config, result, prepared[run].model, source=source, unit=task.unit, seconds=share, anatomy={"before": before[run], "after": after[run]},
            cases=seen[run], device=backend | {"processes": 1, "together": size},
        )  # fmt: skip


def _prepare(configs: Sequence[RunConfig], device: torch.device) -> list[Prepared]:
    """Each run's task and model; the data are read once for all runs that have them in common."""
    data: dict[int | None, Any] = {}
    for config in configs:
        if _images(config) not in data:
            data[_images(config)] = family(config).load(config, device)
    return [family(config).prepare(config, device, data[_images(config)]) for config in configs]


def _images(config: RunConfig) -> int | None:
    """In what the data of a group's runs may differ."""
    return getattr(config, "train_size", None)


def _stream(config: RunConfig) -> tuple:
    """What the batches of a run follow from, within a group."""
    return config.seed, _images(config)


def _losses(logits: Tensor, targets: Tensor, config: RunConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """Each run's loss and metrics, as its task has them, (R,): logits (R, ..., classes) and classes (R, ...)."""
    smoothing = getattr(config, "label_smoothing", 0.0)
    rows = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), label_smoothing=smoothing, reduction="none")
    metrics = {"accuracy": (logits.detach().argmax(2) == targets).float().mean(1)} if isinstance(config, VisionConfig) else {}
    return rows.view(len(logits), -1).mean(1), metrics


@torch.no_grad()
def step_each_(optimizer: torch.optim.AdamW, weights: Sequence[Tensor], rates: Tensor | None) -> None:
    """A step in which each model has a learning rate of its own, ``rates`` (R,) times the optimiser's; None: all have that.

    AdamW's step, weight decay included, is proportional to the learning rate, and its state does not depend on it.
    """
    if rates is None:
        optimizer.step()
        return
    before = [weight.clone() for weight in weights]
    optimizer.step()
    for weight, old in zip(weights, before, strict=True):
        weight.copy_(torch.lerp(old, weight, rates.view(-1, *[1] * (weight.ndim - 1))))


@torch.no_grad()
def clip_each_(weights: Sequence[Tensor], largest: float) -> None:
    """torch.nn.utils.clip_grad_norm_ of each model: ``weights`` have a leading axis of models."""
    squares = torch.stack([weight.grad.flatten(1).square().sum(1) for weight in weights]).sum(0)
    factor = (largest / (squares.sqrt() + 1e-6)).clamp(max=1.0)
    for weight in weights:
        weight.grad *= factor.view(-1, *[1] * (weight.ndim - 1))


def work_together(
    runs: Sequence[RunConfig], at_most: int, *, processes: int = PROCESSES, minutes: float | None = None, say: Callable[[str], None] = print
) -> tuple[list[str], dict[str, str]]:
    """Train the runs without a record, group by group, some groups side by side (what one leaves of the GPU another one takes).

    Args:
        at_most: runs in a group.
        processes: groups at a time.
        minutes: begin no group after this time; None: no limit.
        say: called with a line after every group.

    Returns:
        Names of the runs whose records were written; and those that failed, name -> why.

    Raises:
        ValueError: a bad config, or a bad limit; nothing has been computed.
        RecordError: a record is damaged.
    """
    if processes < 1 or (minutes is not None and not minutes > 0):
        raise ValueError(f"processes must be at least 1 and minutes more than 0, not {processes} and {minutes}")
    for config in runs:
        check(config)
    waiting = groups([config for config in runs if existing(config) is None], at_most)
    deadline = math.inf if minutes is None else time.monotonic() + 60 * minutes
    began, finished, failed = time.monotonic(), [], {}
    running: dict[Future, list[RunConfig]] = {}
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"))
    try:
        while running or (waiting and time.monotonic() < deadline):
            while waiting and len(running) < processes and time.monotonic() < deadline:
                group = waiting.pop(0)
                running[pool.submit(run_together, group, _silent)] = group
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                group = running.pop(future)
                try:
                    wrong = future.result()
                except Exception as error:  # noqa: BLE001  one group must not stop the others; its error is shown
                    wrong = dict.fromkeys((config.name for config in group), f"{type(error).__name__}: {' '.join(str(error).split())}")
                failed |= wrong
                finished += [config.name for config in group if config.name not in wrong]
                for name, why in wrong.items():
                    say(f"{name}  FAILED: {why}")
                say(f"[{time.monotonic() - began:.0f} s, {len(finished)} runs]  {len(group)} runs, {group[0].name} to {group[-1].name}: done")
    finally:
        pool.shutdown(cancel_futures=True)
    return finished, failed


def _silent(_: str) -> None: ...
