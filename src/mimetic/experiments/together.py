"""Many small runs at once on one GPU: those of one shape are trained in the same kernels (models.stacked).

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

from mimetic.attention_maps import anatomy
from mimetic.data.images import ImageData, balanced_subset, load_images
from mimetic.experiments.configs import with_arm
from mimetic.experiments.configs.vision import VisionConfig
from mimetic.experiments.runs import check, checkpoint_path, existing, make_record, train_config
from mimetic.experiments.vision import ANATOMY_IMAGES, SOURCE, VisionTask, build_model
from mimetic.models.stacked import StackedViT
from mimetic.models.vit import ViT
from mimetic.training.checkpoint import exclusive, remove_checkpoint
from mimetic.training.loop import Result, adamw, learning_rate, resolve_backend, resolve_device, settings
from mimetic.training.precision import cast, products
from mimetic.training.records import now, source_hash, write_record

# What the runs of one group may differ in: initial weights, seed, and which training images there are (not how many an epoch has)
FREE = ("experiment", "arm", "init", "seed", "qk_alpha", "qk_beta", "vp_alpha", "vp_beta", "qk_rank", "train_size")
EVALUATION_BATCH = 250  # of each run
PROCESSES = 4  # groups side by side: one alone does not fill a GPU all the time
_SOURCE = (*SOURCE, "experiments/together.py", "models/stacked.py")


def groups(runs: Sequence[VisionConfig], at_most: int) -> list[list[VisionConfig]]:
    """The runs in groups of one shape, none larger than ``at_most`` and all of a shape about equally large; in the order of their first runs.

    Raises:
        ValueError: at_most is below 1, or a run is not of a vision experiment.
    """
    if at_most < 1:
        raise ValueError(f"together must be at least 1, not {at_most}")
    shapes: dict[tuple, list[VisionConfig]] = {}
    for config in runs:
        if not isinstance(config, VisionConfig):
            raise ValueError(f"only vision runs can be trained together, and {config.name} is none")
        shapes.setdefault(_shape(config), []).append(config)
    made = []
    for same in shapes.values():
        each = math.ceil(len(same) / math.ceil(len(same) / at_most))
        made += [same[i : i + each] for i in range(0, len(same), each)]
    return sorted(made, key=lambda group: runs.index(group[0]))


def _shape(config: VisionConfig) -> tuple:
    """What all runs of a group have in common."""
    common = {name: value for name, value in asdict(with_arm(config)).items() if name not in FREE}
    return *common.items(), config.epoch_images or config.train_size


def run_together(configs: Sequence[VisionConfig], say: Callable[[str], None] = print) -> dict[str, str]:
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
    source, failed = source_hash(_SOURCE), {}
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


def _train(configs: Sequence[VisionConfig], source: dict[str, Any], say: Callable[[str], None]) -> Iterator[dict[str, Any] | str]:
    """The record of each run, or why there is none."""
    clock, started, size = time.perf_counter(), now(), len(configs)
    first = train_config(configs[0])
    device = resolve_device(first.device)
    backend = resolve_backend(replace(first, compile="off"))
    data = {config.train_size: None for config in configs}
    for train_size in data:
        data[train_size] = load_images(configs[0].dataset, train_size=train_size, validation=configs[0].validation, device=device)
    looked_at = {train_size: d.normalise(d.x_test[:ANATOMY_IMAGES]) for train_size, d in data.items()}
    models = [build_model(config).to(device) for config in configs]

    def look() -> list[dict[str, Any]]:
        return [anatomy(model, looked_at[config.train_size]) for model, config in zip(models, configs, strict=True)]

    before = look()
    # runs that differ in their weights only see the same images
    tasks = {(config.seed, config.train_size): VisionTask(data[config.train_size], config) for config in configs}
    stream = torch.tensor([list(tasks).index((config.seed, config.train_size)) for config in configs], device=device)
    task = next(iter(tasks.values()))
    test = _Test(configs, data, device)
    stacked = StackedViT(models)
    optimizer = adamw([(n, p, p.ndim - 1) for n, p in zip(stacked.names, stacked.weights, strict=True)], first)
    seconds = {"setup": time.perf_counter() - clock, "compile": 0.0, "train": 0.0, "evaluate": 0.0, "save": 0.0}
    curves: list[list[dict[str, float]]] = [[] for _ in configs]
    step, steps = 0, task.steps_per_epoch
    with settings(first, backend, seed=0), products(backend):
        for epoch in range(first.epochs):
            clock, sums = time.perf_counter(), torch.zeros(2, size, dtype=torch.float64, device=device)
            while step < (epoch + 1) * steps:
                images, labels = (torch.stack(parts)[stream] for parts in zip(*(t.batch(epoch, step - epoch * steps) for t in tasks.values()), strict=True))
                for part in optimizer.param_groups:
                    part["lr"] = learning_rate(step, first, steps)
                with cast(backend):
                    logits = stacked(images).float()
                    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=configs[0].label_smoothing, reduction="none")
                losses = losses.view(size, -1).mean(1)
                optimizer.zero_grad(set_to_none=True)
                losses.sum().backward()
                if first.grad_clip:
                    clip_each_(stacked.weights, first.grad_clip)
                optimizer.step()
                step += 1
                sums += torch.stack([losses.detach(), (logits.detach().argmax(2) == labels).float().mean(1)])
            trained = (sums / steps).tolist()
            seconds["train"] += time.perf_counter() - clock
            clock = time.perf_counter()
            with torch.no_grad(), cast(backend):
                tested = test(stacked, epoch + 1 == first.epochs)
            seconds["evaluate"] += time.perf_counter() - clock
            rate = learning_rate(step - 1, first, steps)
            for run, curve in enumerate(curves):
                curve.append({
                    "epoch": epoch + 1, "step": step, "lr": rate, "train_loss": trained[0][run], "train_accuracy": trained[1][run],
                    "test_loss": tested[0][run], "test_accuracy": tested[1][run],
                })  # fmt: skip
            say(f"{size} runs, {configs[0].name} and others: epoch {epoch + 1}/{first.epochs}, "
                f"{size * step * task.units_per_step / seconds['train']:.0f} {task.unit}/s")  # fmt: skip
    clock = time.perf_counter()
    stacked.unstack_(models)
    after = look()
    seconds["setup"] += time.perf_counter() - clock
    share = {name: value / size for name, value in seconds.items() if name != "setup"} | {"total": sum(seconds.values()) / size}
    for run, config in enumerate(configs):
        if not all(math.isfinite(value) for entry in curves[run] for value in entry.values()):
            yield "Diverged: its loss is no longer a finite number"
            continue
        result = Result(curves[run], units_per_second=size * step * task.units_per_step / seconds["train"], started=started)
        yield make_record(
            config, result, models[run], source=source, unit=task.unit, seconds=share, anatomy={"before": before[run], "after": after[run]},
            cases={}, device=backend | {"processes": 1, "together": size},
        )  # fmt: skip


@torch.no_grad()
def clip_each_(weights: Sequence[Tensor], largest: float) -> None:
    """torch.nn.utils.clip_grad_norm_ of each model: ``weights`` have a leading axis of models."""
    squares = torch.stack([weight.grad.flatten(1).square().sum(1) for weight in weights]).sum(0)
    factor = (largest / (squares.sqrt() + 1e-6)).clamp(max=1.0)
    for weight in weights:
        weight.grad *= factor.view(-1, *[1] * (weight.ndim - 1))


class _Test:
    """Cross entropy and accuracy of every run on the test set: VisionTask.evaluate for stacked models."""

    def __init__(self, configs: Sequence[VisionConfig], data: dict[int | None, ImageData], device: torch.device) -> None:
        self.part = configs[0].curve_images
        self.data = list(data.values())  # they have their test images in common, but not what these are normalised with
        self.of = torch.tensor([list(data).index(config.train_size) for config in configs], device=device)

    def __call__(self, stacked: StackedViT, last: bool) -> tuple[list[float], list[float]]:
        """Loss and accuracy of every run; before the last epoch on curve_images of the test set."""
        x, y = self.data[0].x_test, self.data[0].y_test
        if self.part and not last:
            chosen = torch.from_numpy(balanced_subset(y.cpu().numpy(), self.part)).to(y.device)
            x, y = x[chosen], y[chosen]
        loss, correct = torch.zeros(2, stacked.size, dtype=torch.float64, device=y.device)
        for images, labels in zip(x.split(EVALUATION_BATCH), y.split(EVALUATION_BATCH), strict=True):
            normal = torch.stack([data.normalise(images) for data in self.data])
            logits = stacked(normal[self.of] if len(normal) > 1 else normal).float()
            every = labels.expand(stacked.size, -1)
            loss += F.cross_entropy(logits.flatten(0, 1), every.flatten(), reduction="none").view(stacked.size, -1).sum(1)
            correct += (logits.argmax(2) == every).sum(1)
        return (loss / len(y)).tolist(), (correct / len(y)).tolist()


def work_together(
    runs: Sequence[VisionConfig], at_most: int, *, processes: int = PROCESSES, minutes: float | None = None, say: Callable[[str], None] = print
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
    running: dict[Future, list[VisionConfig]] = {}
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
