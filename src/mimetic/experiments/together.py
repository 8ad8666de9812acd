"""Many small runs of ViTs or GPTs at once on one GPU: those of one shape are
trained in the same kernels (models.stacked).

    python -m mimetic queue lab --together 60          the whole laboratory in minutes instead of a day

What each run sees and does is what it would alone (experiments.runs): its own weights, images, augmentation, gradient
norm and optimiser state; the numbers agree to the order of a sum. On a GPU a step is one CUDA graph. Meanwhile helpers,
a process on each core, make the initial weights of the next runs and look into those of the last. There are no
checkpoints: a group that is stopped starts again (with small runs that is a minute or two), and what a run has half
done alone is not gone on with.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Sequence
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
from mimetic.experiments.processes import Helpers, Job, cores, gpu_is_lost, in_a_line, until_terminated
from mimetic.experiments.runs import cases, checkpoint_path, existing, family, make_record, to_be_run, train_config
from mimetic.models.blocks import shapes_only
from mimetic.models.stacked import stack
from mimetic.training.backend import resolve_backend, resolve_device
from mimetic.training.backend import settings as loop_settings
from mimetic.training.checkpoint import BusyCheckpoint, exclusive, remove_checkpoint
from mimetic.training.group import GroupStep
from mimetic.training.loop import Result, learning_rate
from mimetic.training.precision import cast, products
from mimetic.training.records import data_hash, now, source_hash, write_record

# What the runs of one group may differ in: initial weights, seed, learning rate, and which training images there are
# (not how many an epoch has)
MAY_DIFFER = (
    "experiment", "arm", "init", "seed", "qk_alpha", "qk_beta", "vp_alpha", "vp_beta", "qk_rank", "lr", "train_size",
)  # fmt: skip
_DATA = ("dataset", "train_size", "validation", "tokenizer", "vocab_size")  # what a run's data follow from
_SOURCE = ("experiments/together.py", "models/stacked.py", "training/group.py")  # besides the family's
DIVERGED = "Diverged: its loss is no longer a finite number"


def groups(runs: Sequence[RunConfig], at_most: int) -> list[list[RunConfig]]:
    """The runs in groups of one shape, none larger than ``at_most`` and all of a shape about equally large; in the
    order of their first runs.

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


def _shape(config: RunConfig) -> tuple:
    """What all runs of a group have in common."""
    common = {name: value for name, value in asdict(with_arm(config)).items() if name not in MAY_DIFFER}
    images = (config.epoch_images or config.train_size) if isinstance(config, VisionConfig) else None  # of an epoch
    return type(config), *common.items(), images


# --- in the helpers: before and after training ------------------------------------------------------------------------


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
    anatomy = {"before": before, "after": prepared.anatomy(prepared.model)}
    write_record(make_record(config, result, prepared.model, anatomy=anatomy, data=data_hash(prepared.data), **rest))
    remove_checkpoint(checkpoint_path(config))
    return ""


_loaded: dict[tuple, Any] = {}


def _data(config: RunConfig, device: torch.device | str) -> Any:
    """The data of a run; kept for the next one."""
    key = _key(config, device)
    if key not in _loaded:
        if len(_loaded) > 3:
            _loaded.pop(next(iter(_loaded)))
        _loaded[key] = family(config).load(config, torch.device(device))
    return _loaded[key]


def _key(config: RunConfig, device: torch.device | str) -> tuple:
    return config.family, str(device), *(getattr(config, name, None) for name in _DATA)


def _arrays(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """A model's weights and buffers as NumPy arrays, which go from process to process by value; also those buffers that
    no state dict has (rotary positions)."""
    return {name: value.detach().cpu().numpy().copy() for name, value in _tensors(model)}


def _tensors(model: torch.nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def _model(config: RunConfig, data: Any, arrays: dict[str, np.ndarray], device: torch.device | str) -> torch.nn.Module:
    """The model of a run with these weights."""
    with shapes_only():
        model = family(config).bare_model(config, data)
    model.to_empty(device=device)
    with torch.no_grad():
        for name, value in _tensors(model):
            value.copy_(torch.from_numpy(arrays[name]))
    return model


# --- training ---------------------------------------------------------------------------------------------------------


def train_group(
    configs: Sequence[RunConfig],
    begun: Sequence[tuple[dict[str, np.ndarray], dict[str, Any]]],
    say: Callable[[str], None],
) -> list[Callable[[], str]]:
    """Train the runs from what ``begin`` gives of each; for each a call of ``end``, which writes its record.

    Args:
        configs: of one shape (see groups).
        say: called with a line after every epoch.
    """
    clock, started, size = time.perf_counter(), now(), len(configs)
    source = source_hash((*family(configs[0]).SOURCE, *_SOURCE))
    settings = [train_config(config) for config in configs]
    first = settings[0]
    device, backend = resolve_device(first.device), resolve_backend(replace(first, compile="off"))
    before, prepared = [], []
    for config, (arrays, looked) in zip(configs, begun, strict=True):
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
        stacked = stack([each.model for each in prepared])
        step = GroupStep(stacked, partial(_losses, configs[0]), _metrics(configs[0]), settings, backend)
        for epoch in range(first.epochs):
            timer = time.perf_counter()
            while done < (epoch + 1) * steps:
                batches = [each.batch(epoch, done - epoch * steps) for each in streams.values()]
                inputs, targets = (torch.stack(parts)[stream] for parts in zip(*batches, strict=True))
                step((inputs, targets), learning_rate(done, step.highest, steps))
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
        result = Result(
            curves[run], units_per_second=size * done * task.units_per_step / seconds["train"], started=started
        )
        ends.append(partial(
            end, config, _arrays(prepared[run].model), before[run], result, source=source, unit=task.unit,
            seconds=share, cases=seen[run], device=backend | {"processes": 1, "together": size},
        ))  # fmt: skip
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


# --- the list of runs -------------------------------------------------------------------------------------------------


def work_together(
    runs: Sequence[RunConfig],
    at_most: int,
    *,
    processes: int | None = None,
    minutes: float | None = None,
    say: Callable[[str], None] = print,
) -> tuple[list[str], dict[str, str]]:
    """Train the runs without a record, group by group, on one GPU.

    What a group has trained is recorded whatever happens afterwards: Ctrl-C and SIGTERM end the group that is in
    training, and wait for the records of those before it.

    Args:
        at_most: runs in a group: as many as the GPU's memory holds.
        processes: helpers that make initial weights and look into trained ones; 0: none, this process does it; None:
            one on every core but one.
        minutes: begin no group that will not be done in this time, by the time of the last one; None: no limit.
        say: called with a line after every epoch and every group.

    Returns:
        Names of the runs whose records were written; and those that failed, name -> why. A run that another process
        trains is passed over.

    Raises:
        ValueError: a bad config, or a bad limit; nothing has been computed.
        Unavailable: a data set cannot be had.
        RecordError: a record is damaged.
    """
    if (processes is not None and processes < 0) or (minutes is not None and not minutes > 0):
        raise ValueError(f"processes must be at least 0 and minutes more than 0, not {processes} and {minutes}")
    runs = list({config.name: config for config in map(with_arm, runs)}.values())
    waiting = groups(to_be_run(runs), at_most)
    for config in {_key(config, "cpu"): config for group in waiting for config in group}.values():
        _data(config, "cpu")  # fetched once, and not by every helper
    deadline = math.inf if minutes is None else time.monotonic() + 60 * minutes
    with Helpers(cores() if processes is None else processes) as helpers, until_terminated():
        work = _Work(helpers, say)
        try:
            pace = 0.0  # seconds a unit of cost
            begun = work.begin(waiting[0]) if waiting else []
            for index, group in enumerate(waiting):
                cost = sum(family(config).cost(config) for config in group)
                if time.monotonic() + pace * cost > deadline or work.lost:
                    break
                # the helpers make the next group's weights while the GPU trains this one
                following = work.begin(waiting[index + 1]) if index + 1 < len(waiting) else []
                clock = time.monotonic()
                if work.train(group, begun):
                    pace = (time.monotonic() - clock) / cost
                begun = following
                work.settle(wait=False)
        finally:
            helpers.forget(lambda job: any(job is ending for _, ending, _ in work.ending))
            work.settle(wait=True)
    return work.written, work.failed


class _Work:
    """What work_together has in hand: runs that are trained and not yet recorded, each
    with its lock; and what came of the others.
    """

    def __init__(self, helpers: Helpers, say: Callable[[str], None]) -> None:
        self.helpers, self.say = helpers, say
        self.written: list[str] = []
        self.failed: dict[str, str] = {}
        self.lost = False  # the GPU, for this process: further groups would fail as the last one did
        self.ending: list[tuple[RunConfig, Job, ExitStack]] = []

    def begin(self, group: Sequence[RunConfig]) -> list[Job]:
        return [self.helpers.submit(partial(begin, config)) for config in group]

    def train(self, group: Sequence[RunConfig], begun: Sequence[Job]) -> bool:
        """Those of the group that no other process has finished or holds; whether they were all of it,
        so that its time says what a group takes.
        """
        ready: list[tuple[RunConfig, Any, ExitStack]] = []
        for config, job in zip(group, begun, strict=True):
            lock = ExitStack()
            try:
                lock.enter_context(exclusive(checkpoint_path(config)))
                if existing(config) is None:
                    ready.append((config, job.result(), lock))
                    continue
            except BusyCheckpoint:
                self.say(f"{config.name}  passed over: another process is training it")
            except Exception as error:  # noqa: BLE001  one run must not stop the others; its error is shown
                self.fail(config, in_a_line(error))
            lock.close()
        if not ready:
            return False
        configs = [config for config, _, _ in ready]
        try:
            ends = train_group(configs, [given for _, given, _ in ready], self.say)
        except Exception as error:  # noqa: BLE001  one group must not stop the others
            hint = ": choose a smaller --together" if isinstance(error, torch.OutOfMemoryError) else ""
            for config, _, lock in ready:
                self.fail(config, in_a_line(error) + hint)
                lock.close()
            self.lost = gpu_is_lost(error)
            return False
        finally:
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        self.ending += [
            (config, self.helpers.submit(finish), lock) for (config, _, lock), finish in zip(ready, ends, strict=True)
        ]
        self.say(f"{len(ready)} runs, {configs[0].name} to {configs[-1].name}: trained")
        return len(ready) == len(group)

    def settle(self, wait: bool) -> None:
        """Take note of records that are written; wait: until all are."""
        still = []
        for config, job, lock in self.ending:
            if not (wait or job.done()):
                still.append((config, job, lock))
                continue
            try:
                why = job.result()
            except Exception as error:  # noqa: BLE001
                why = in_a_line(error)
            lock.close()
            if why:
                self.fail(config, why)
            else:
                self.written.append(config.name)
        self.ending = still

    def fail(self, config: RunConfig, why: str) -> None:
        self.failed[config.name] = why
        self.say(f"{config.name}  FAILED: {why}")
