"""Many small runs of ViTs or GPTs at once on one GPU: those of one shape are trained in the same kernels (models.stacked).

    python -m mimetic queue lab --together 60          the whole laboratory in minutes instead of a day

What each run sees and does is what it would alone (experiments.runs): its own weights, images, augmentation, gradient norm and
optimiser state; the numbers agree to the order of a sum. On a GPU a step is one CUDA graph. Meanwhile other processes, one on each
core, make the initial weights of the next runs and look into those of the last. There are no checkpoints: a group that is stopped starts
again, which costs about a minute.
"""

from __future__ import annotations

import gc
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mimetic.experiments.configs import with_arm
from mimetic.experiments.configs.base import RunConfig
from mimetic.experiments.configs.language import LanguageConfig
from mimetic.experiments.configs.vision import VisionConfig
from mimetic.experiments.runs import cases, check, checkpoint_path, existing, family, make_record, train_config
from mimetic.models.stacked import stack
from mimetic.training.checkpoint import exclusive, remove_checkpoint
from mimetic.training.group import GroupStep
from mimetic.training.loop import Result, learning_rate, resolve_backend, resolve_device
from mimetic.training.loop import settings as loop_settings
from mimetic.training.precision import cast, products
from mimetic.training.records import now, source_hash, write_record

# What the runs of one group may differ in: initial weights, seed, learning rate, and which training images there are (not how many
# an epoch has)
FREE = ("experiment", "arm", "init", "seed", "qk_alpha", "qk_beta", "vp_alpha", "vp_beta", "qk_rank", "lr", "train_size")
_DATA = ("dataset", "train_size", "validation", "tokenizer", "vocab_size")  # what a run's data follow from
_SOURCE = ("experiments/together.py", "models/stacked.py", "training/group.py")  # besides the family's
DIVERGED = "Diverged: its loss is no longer a finite number"


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


def run_together(configs: Sequence[RunConfig], say: Callable[[str], None] = print, pool: Executor | None = None) -> dict[str, str]:
    """Train those of the runs that have no record, all at once, and write their records.

    Args:
        configs: of one shape (see groups).
        say: called with a line after every epoch.
        pool: processes that make the initial weights and look into the trained ones; None: this one does.

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
    pool = pool or _Here()
    with ExitStack() as held:
        for config in configs:
            held.enter_context(exclusive(checkpoint_path(config)))
        waiting = [config for config in configs if existing(config) is None]
        begun = [pool.submit(begin, config) for config in waiting]
        return {name: why for name, why in finished(train_group(waiting, begun, pool, say)) if why}


def finished(ends: Sequence[tuple[str, Future]]) -> Iterator[tuple[str, str]]:
    """Name of each run, and why it failed ("": it did not), when it is written."""
    for name, end in ends:
        try:
            yield name, end.result()
        except Exception as error:  # noqa: BLE001  one run must not stop the others; its error is shown
            yield name, f"{type(error).__name__}: {' '.join(str(error).split())}"


class _Here(Executor):
    """A pool of no processes: what is submitted is done at once."""

    def submit(self, function, /, *args, **kwargs) -> Future:
        future: Future = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except Exception as error:  # noqa: BLE001  it belongs to the future, as in a pool
            future.set_exception(error)
        return future


# --- in the pool: before and after training ----------------------------------------------------------------------------


def begin(config: RunConfig) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """A run's initial weights, and what its record says of them."""
    prepared = family(config).prepare(config, torch.device("cpu"), _data(config, "cpu"))
    return _arrays(prepared.model), prepared.anatomy(prepared.model)


def end(config: RunConfig, arrays: dict[str, np.ndarray], before: dict[str, Any], result: Result, **rest: Any) -> str:
    """Look into a run's trained weights and write its record; "", or why there is none."""
    if not all(math.isfinite(value) for entry in result.curve for value in entry.values()):
        return DIVERGED
    data = _data(config, "cpu")
    prepared = family(config).prepare(config, torch.device("cpu"), data, _model(config, data, arrays, "cpu"))
    write_record(make_record(config, result, prepared.model, anatomy={"before": before, "after": prepared.anatomy(prepared.model)}, **rest))
    remove_checkpoint(checkpoint_path(config))
    return ""


_loaded: dict[tuple, Any] = {}


def _data(config: RunConfig, device: torch.device | str) -> Any:
    """The data of a run; kept for the next one."""
    key = (config.family, str(device), *(getattr(config, name, None) for name in _DATA))
    if key not in _loaded:
        if len(_loaded) > 3:
            _loaded.pop(next(iter(_loaded)))
        _loaded[key] = family(config).load(config, torch.device(device))
    return _loaded[key]


def _arrays(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """A model's state as NumPy arrays, which go from process to process by value."""
    return {name: value.detach().cpu().numpy().copy() for name, value in model.state_dict().items()}


def _model(config: RunConfig, data: Any, arrays: dict[str, np.ndarray], device: torch.device | str) -> torch.nn.Module:
    """The model of a run with these weights."""
    with torch.device("meta"):
        model = family(config).bare_model(config, data)
    model.to_empty(device=device)
    model.load_state_dict({name: torch.from_numpy(value) for name, value in arrays.items()})
    return model


# --- training ----------------------------------------------------------------------------------------------------------


def train_group(configs: Sequence[RunConfig], begun: Sequence[Future], pool: Executor, say: Callable[[str], None]) -> list[tuple[str, Future]]:
    """Train the runs from what ``begin`` gives of each; name of each run and what ``end`` will return."""
    if not configs:
        return []
    clock, started, size = time.perf_counter(), now(), len(configs)
    source = source_hash((*family(configs[0]).SOURCE, *_SOURCE))
    settings = [train_config(config) for config in configs]
    first = settings[0]
    device, backend = resolve_device(first.device), resolve_backend(replace(first, compile="off"))
    before, prepared = [], []
    for config, future in zip(configs, begun, strict=True):
        arrays, looked = future.result()
        data = _data(config, device)
        before.append(looked)
        prepared.append(family(config).prepare(config, device, data, _model(config, data, arrays, device)))
    # runs that differ in their weights only see the same batches
    streams = {_stream(config): each.task for config, each in zip(configs, prepared, strict=True)}
    stream = torch.tensor([list(streams).index(_stream(config)) for config in configs], device=device)
    task = prepared[0].task
    seconds = {"compile": 0.0, "train": 0.0, "evaluate": 0.0, "save": 0.0}
    curves: list[list[dict[str, float]]] = [[] for _ in configs]
    done, steps = 0, task.steps_per_epoch
    with loop_settings(first, backend, seed=0), products(backend):
        step = GroupStep(stack([each.model for each in prepared]), partial(_losses, configs[0]), _metrics(configs[0]), settings, backend)
        for epoch in range(first.epochs):
            timer = time.perf_counter()
            while done < (epoch + 1) * steps:
                batches = [each.batch(epoch, done - epoch * steps) for each in streams.values()]
                inputs, targets = (torch.stack(parts)[stream] for parts in zip(*batches, strict=True))
                step(inputs, targets, learning_rate(done, step.highest, steps))
                done += 1
            trained = step.means(steps)
            seconds["train"] += time.perf_counter() - timer
            timer = time.perf_counter()
            with torch.no_grad(), cast(backend):
                for run, each in enumerate(prepared):
                    tested = each.task.evaluate(each.model.eval(), epoch + 1 == first.epochs)
                    curves[run].append(
                        {"epoch": epoch + 1, "step": done, "lr": learning_rate(done - 1, settings[run], steps)}
                        | {f"train_{name}": values[run] for name, values in trained.items()}
                        | {f"test_{name}": float(value) for name, value in tested.items()}
                    )  # fmt: skip
            seconds["evaluate"] += time.perf_counter() - timer
            say(f"{size} runs, {configs[0].name} and others: epoch {epoch + 1}/{first.epochs}, "
                f"{size * done * task.units_per_step / seconds['train']:.0f} {task.unit}/s")  # fmt: skip
        seen = [cases(each, each.model, first) for each in prepared]
    share = {name: value / size for name, value in seconds.items()} | {"total": (time.perf_counter() - clock) / size}
    ends = []
    for run, config in enumerate(configs):
        result = Result(curves[run], units_per_second=size * done * task.units_per_step / seconds["train"], started=started)
        ends.append((config.name, pool.submit(
            end, config, _arrays(prepared[run].model), before[run], result, source=source, unit=task.unit, seconds=share, cases=seen[run],
            device=backend | {"processes": 1, "together": size},
        )))  # fmt: skip
    return ends


def _stream(config: RunConfig) -> tuple:
    """What the batches of a run follow from, within a group."""
    return config.seed, getattr(config, "train_size", None)


def _metrics(config: RunConfig) -> tuple[str, ...]:
    """What is averaged over an epoch besides the loss."""
    return ("accuracy",) if isinstance(config, VisionConfig) else ()


def _losses(config: RunConfig, logits: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Each run's loss and metrics, as its task has them, (R,): logits (R, ..., classes) and classes (R, ...)."""
    smoothing = getattr(config, "label_smoothing", 0.0)
    rows = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), label_smoothing=smoothing, reduction="none")
    metrics = {"accuracy": (logits.detach().argmax(2) == targets).float().mean(1)} if _metrics(config) else {}
    return rows.view(len(logits), -1).mean(1), metrics


def work_together(
    runs: Sequence[RunConfig], at_most: int, *, processes: int | None = None, minutes: float | None = None, say: Callable[[str], None] = print
) -> tuple[list[str], dict[str, str]]:
    """Train the runs without a record, group by group.

    Args:
        at_most: runs in a group: as many as the GPU's memory holds.
        processes: that make initial weights and look into trained ones; None: one less than there are cores.
        minutes: begin no group after this time; None: no limit.
        say: called with a line after every group.

    Returns:
        Names of the runs whose records were written; and those that failed, name -> why.

    Raises:
        ValueError: a bad config, or a bad limit; nothing has been computed.
        RecordError: a record is damaged.
    """
    if (processes is not None and processes < 1) or (minutes is not None and not minutes > 0):
        raise ValueError(f"processes must be at least 1 and minutes more than 0, not {processes} and {minutes}")
    for config in runs:
        check(config)
    waiting = groups([with_arm(config) for config in runs if existing(config) is None], at_most)
    deadline = math.inf if minutes is None else time.monotonic() + 60 * minutes
    clock, written, failed = time.monotonic(), [], {}
    pool = ProcessPoolExecutor(processes or max(1, (os.cpu_count() or 2) - 1), multiprocessing.get_context("spawn"), initializer=_on_one_core)
    ends: list[tuple[str, Future]] = []

    def settle(wait: bool) -> None:
        for name, end in [pair for pair in ends if wait or pair[1].done()]:
            ((_, why),) = finished([(name, end)])
            ends.remove((name, end))
            if why:
                failed[name] = why
                say(f"{name}  FAILED: {why}")
            else:
                written.append(name)

    begun = {index: [pool.submit(begin, config) for config in group] for index, group in enumerate(waiting[:1])}
    try:
        for index, group in enumerate(waiting):
            if time.monotonic() > deadline:
                break
            if index + 1 < len(waiting):  # the cores make the next group's weights while the GPU trains this one
                begun[index + 1] = [pool.submit(begin, config) for config in waiting[index + 1]]
            with ExitStack() as held:
                try:
                    for config in group:
                        held.enter_context(exclusive(checkpoint_path(config)))
                    ends += train_group(group, begun.pop(index), pool, lambda line: None)
                except Exception as error:  # noqa: BLE001  one group must not stop the others; its error is shown
                    why = f"{type(error).__name__}: {' '.join(str(error).split())}"
                    failed |= {config.name: why for config in group}
                    say(f"{group[0].name} and {len(group) - 1} others  FAILED: {why}")
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            settle(wait=False)
            say(f"[{time.monotonic() - clock:.0f} s, {index + 1} of {len(waiting)} groups]  {len(group)} runs, {group[0].name} to {group[-1].name}: trained")
        settle(wait=True)
    finally:
        pool.shutdown(cancel_futures=True)
    return written, failed


def _on_one_core() -> None:
    """In each process of the pool: one thread, and no GPU."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    torch.set_num_threads(1)
