"""One call, ``run(config)``, one record: whatever is trained, it is stored, found again and gone on with in one way.

What is particular to images, text or item sequences is in the config's family, a module with

    METRIC, SOURCE             what its runs are judged by; the files that have a part in their numbers
    MEAN_OVER_ROWS             whether its loss is a mean over a batch's rows, which several processes can then share
    check(config)              raises ValueError, naming the choices; reads no data
    prepare(config, device, …) the task, the model and what the record says of its weights (Prepared)
    cost(config)               work of a run, proportional to its time
    build_model(config, …)     the model with its initial weights, as an audit of a checkpoint needs it
    load, bare_model           its data, and the model without weights, where runs are trained together
                               (experiments.together)
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from time import monotonic
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mimetic.data.fetch import cache_dir, check_writable, data_dir
from mimetic.experiments.configs import check_named, with_arm
from mimetic.experiments.configs.base import MACHINE, RunConfig
from mimetic.initializers import INITIALIZERS, RANKED, constants_of, initialize_
from mimetic.messages import check_choice, check_whole
from mimetic.models.blocks import parameter_counts
from mimetic.spec import MimeticSpec
from mimetic.training.backend import derive_seed, resolve_backend, resolve_device
from mimetic.training.checkpoint import (
    BusyCheckpoint,
    CheckpointError,
    ForeignCheckpoint,
    aside,
    exclusive,
    load_checkpoint,
    remove_checkpoint,
)
from mimetic.training.config import TrainConfig
from mimetic.training.loop import Result, Task, train
from mimetic.training.parallel import Group, connect, launched, own_card
from mimetic.training.precision import cast, products
from mimetic.training.records import (
    RecordError,
    check_name,
    data_hash,
    now,
    read_record,
    record_path,
    runs_dir,
    source_hash,
    versions,
    write_record,
)

# The files that have a part in the numbers of every run; a family adds its own.
COMMON_SOURCE = (
    "adapters/__init__.py", "adapters/own.py", "adapters/views.py", "attention.py", "attention_maps.py", "construct.py",
    "defaults.py", "experiments/runs.py", "initialize.py", "initializers.py", "lapack.py", "measure.py",
    "models/blocks.py", "models/positions.py", "plan.py", "scan.py", "spec.py", "training/backend.py",
    "training/config.py", "training/loop.py", "training/precision.py", "training/step.py",
)  # fmt: skip

Model = TypeVar("Model", bound="nn.Module")


@dataclass(frozen=True)
class Prepared:
    """What a family makes of a config before training."""

    task: Task
    model: nn.Module  # with its initial weights, on the device
    # what the record says of the weights, asked before and after training
    anatomy: Callable[[nn.Module], dict[str, Any]]
    # what it is trained and tested on, for the record and the checkpoint: with other data it is another run
    data: dict[str, Tensor]
    # the last evaluation case by case (users, windows of text): name -> numbers; so that an interval can be over cases,
    # too
    cases: Callable[[nn.Module], dict[str, list[float]]] | None = None


def family(config: RunConfig) -> ModuleType:
    """The module that knows how to train the config."""
    return importlib.import_module(config.family)


def check(config: RunConfig, *, store: bool = True) -> None:
    """Raise ValueError, naming the choices, unless ``run`` with these arguments can work; reads no data."""
    try:
        _check(config, store)
    except TypeError:  # of a comparison with a value of another type
        config.check_types()
        raise
    config.check_types()


def _check(config: RunConfig, store: bool) -> None:
    check_name("experiment", config.experiment)
    if config.arm:
        check_name("arm", config.arm)
    check_choice("init", config.init, INITIALIZERS)
    check_whole("seed", config.seed, 0)
    check_whole("batch_size", config.batch_size)
    family(config).check(config)
    head = config.d_model // config.num_heads
    if config.qk_rank is not None and config.init not in RANKED:
        raise ValueError(f"qk_rank is for init {' and '.join(RANKED)}; {config.init} takes none")
    if config.qk_rank is not None and not 1 <= config.qk_rank <= head:
        raise ValueError(f"qk_rank must be from 1 to the head size, {head}, not {config.qk_rank!r}")
    mimetic_spec(config)
    default = {f.name: f.default for f in fields(config)}
    read = constants_of(config.init)
    for name in MimeticSpec.constants():
        if name not in read and getattr(config, name) != default[name]:
            reading = [init for init in INITIALIZERS if name in constants_of(init)]
            raise ValueError(
                f"{name}={getattr(config, name)!r} would change nothing with init={config.init!r}: choose one of"
                f" {', '.join(reading)} (--init)"
            )
    train_config(config)
    resolve_device(config.device)
    if store:
        check_named(config)
        if not path_of(config).exists():
            _check_folders(config)


def _check_folders(config: RunConfig) -> None:
    """Raise ValueError unless the run's record and checkpoint can be written."""
    check_writable(path_of(config).parent, "MIMETIC_RUNS")
    check_writable(checkpoint_path(config).parent, "MIMETIC_DATA")


def path_of(config: RunConfig) -> Path:
    """Where the record of a run is, or will be."""
    return record_path(config.experiment, config.arm_name, config.seed)


def checkpoint_path(config: RunConfig) -> Path:
    """Where a half-done run is kept: a run of one name for another folder of records is another run."""
    folder = cache_dir() / "checkpoints"
    if runs_dir().resolve() != (data_dir() / "runs").resolve():
        folder /= "of-" + hashlib.sha256(str(runs_dir().resolve()).encode()).hexdigest()[:8]
    return folder / f"{config.name}.pt"


def check_processes(config: RunConfig, processes: int) -> None:
    """Raise ValueError unless so many processes can train the run together."""
    if config.batch_size % processes:
        raise ValueError(f"batch_size={config.batch_size} cannot be shared equally by {processes} processes")
    if processes > 1 and not family(config).MEAN_OVER_ROWS:
        raise ValueError(
            f"{config.name}: its loss is not a mean over rows, so {processes} processes cannot share a batch"
        )


def run(
    config: RunConfig,
    *,
    force: bool = False,
    store: bool = True,
    progress: bool = True,
    checkpoint_seconds: float = 30.0,
    time_limit: float | None = None,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
) -> dict[str, Any]:
    """The record of ``config``: read if it exists, else trained (from its checkpoint, if there is one) and written.

    Args:
        force: train again, and replace the record when that is done; a checkpoint of something else is put aside until
            then (training.checkpoint.aside). Stopped and called again with force, it goes on.
        store: False for a run that is only looked at: no record and no checkpoint is read or written.
        progress: a progress bar and a line an epoch.
        checkpoint_seconds: how often the state is saved; besides after an epoch, where that costs little.
        time_limit: seconds after which to save and stop with training.loop.TimeLimit.
        on_epoch: called with the entry of the curve after every epoch.

    Raises:
        ValueError: a bad config; nothing has been computed.
        Unavailable: the data set cannot be had, or torch.compile is wanted and fails.
        RecordError: a record of this name exists, but it is damaged or has another config.
        CheckpointError: the checkpoint is damaged, has another config, source or backend, or is in use.
        Diverged: the loss or a metric is not finite.

    Launched by torchrun or accelerate, the processes train the run together (see training.parallel); all return the
    record.
    """
    config = with_arm(config)
    check(config, store=store)
    if store and force:
        _check_folders(config)
    if not checkpoint_seconds >= 0:
        raise ValueError(f"checkpoint_seconds must be at least 0, not {checkpoint_seconds!r}")
    if time_limit is not None and not time_limit >= 0:
        raise ValueError(f"time_limit must be at least 0 seconds, not {time_limit!r}")
    options = {
        "progress": progress, "checkpoint_seconds": checkpoint_seconds, "time_limit": time_limit, "on_epoch": on_epoch,
    }  # fmt: skip
    group = connect()
    with ExitStack() as held:
        check_processes(config, group.size)
        if group.size > 1 and resolve_device(config.device).type == "cuda" and not own_card():
            raise ValueError(
                f"device={config.device!r}: more processes than GPUs on this machine; start fewer, or choose device cpu"
                " (--device cpu)"
            )
        source = source_hash(family(config).SOURCE)
        if not store:
            return _train(config, source, None, {}, options, group, force)
        checkpoint = checkpoint_path(config)
        if not force and (record := group.agree(lambda: existing(config))):
            if group.first and checkpoint.is_file():
                with suppress(CheckpointError, OSError, MemoryError), exclusive(checkpoint):
                    made_with = _identity(config, source) | ({DATA: record["data"]} if "data" in record else {})
                    load_checkpoint(checkpoint, made_with)  # of this record, and not of one to come
                    remove_checkpoint(checkpoint)
            return record

        def begin() -> tuple[dict[str, Any] | None, dict[str, str]]:
            held.enter_context(exclusive(checkpoint))
            identity = _identity(config, source)
            if not force:
                return existing(config), identity  # another process may have finished it meanwhile
            replaced = path_of(config)
            # so that this run's checkpoint is not taken for that of the one which made the record
            if replaced.is_file():
                identity["record to replace"] = hashlib.sha256(replaced.read_bytes()).hexdigest()
            return None, identity

        record, identity = group.agree(begin)
        if record:
            return record
        record = _train(config, source, checkpoint, identity, options, group, force)

        def end() -> dict[str, Any]:
            stored = read_record(write_record(record))
            remove_checkpoint(checkpoint)
            return stored

        return group.agree(end)


def run_or_restart(config: RunConfig, say: Callable[[str], None] = print, **options: Any) -> dict[str, Any]:
    """run, as a queue does it: a half-done run of other code, config or backend, or whose checkpoint is
    damaged, starts again, and that is said.
    """
    try:
        return run(config, **options)
    except BusyCheckpoint:
        raise
    except CheckpointError as error:
        why = str(error).partition(": train with force")[0].removesuffix(": delete it")
        say(f"{config.name} begins anew: {why}")
        return run(config, force=True, **options)


DATA = "content of the data"  # as load_checkpoint names it: "written with another ..."


def _identity(config: RunConfig, source: dict[str, Any]) -> dict[str, str]:
    """What a checkpoint must have been made with, so that going on from it is one run; besides DATA, which takes
    reading."""
    backend = resolve_backend(train_config(config))
    parts = ("type", "precision", "products", "compiled")
    made_with = ", ".join(f"{k} {backend[k]}" for k in parts)
    # a field an entry, so that the message names what differs
    return {name: json.dumps(value) for name, value in asdict(config).items()} | {
        "source": source["sha256"],
        "backend": made_with,
        "torch": versions()["torch"],
    }


def _put_aside(checkpoint: Path, identity: dict[str, str]) -> None:
    """Of a run that begins anew: a checkpoint of anything else, or a damaged one."""
    try:
        load_checkpoint(checkpoint, identity)
    except ForeignCheckpoint:
        os.replace(checkpoint, aside(checkpoint))
    except CheckpointError:  # damaged
        remove_checkpoint(checkpoint)


def _train(config: RunConfig, source, checkpoint, identity, options, group: Group, force: bool) -> dict[str, Any]:
    clock, settings = monotonic(), train_config(config)
    prepared = family(config).prepare(config, resolve_device(config.device))
    task, model, data = prepared.task, prepared.model, data_hash(prepared.data)
    identity = identity | {DATA: data}
    if checkpoint and force:
        group.agree(lambda: _put_aside(checkpoint, identity))
    before = prepared.anatomy(model)
    setup = {"setup": monotonic() - clock}
    if options["time_limit"] is not None:
        options["time_limit"] = max(0.0, options["time_limit"] - setup["setup"])
    result = train(
        model, task, settings, seed=config.seed, checkpoint=checkpoint, started=now(), label=config.name,
        identity=identity, group=group, **options,
    )  # fmt: skip
    seconds = result.seconds | {"total": sum((setup | result.seconds).values())}
    device = resolve_backend(settings) | {"processes": group.size}
    if result.graph is not None:
        device["graph"] = result.graph
    if len(result.machines) > 1:
        device["machines"] = result.machines
    return make_record(
        config, result, model, unit=task.unit, seconds=seconds, device=device, source=source, data=data,
        anatomy={"before": before, "after": prepared.anatomy(model)}, cases=cases(prepared, model, settings),
    )  # fmt: skip


def make_record(
    config: RunConfig, result: Result, model: nn.Module, *, unit: str, seconds: dict[str, float], **parts: Any
) -> dict[str, Any]:
    """What is written of a finished run (see training.records); parts: anatomy, cases, device, source, data."""
    return {
        "experiment": config.experiment,
        "arm": config.arm_name,
        "seed": config.seed,
        "config": asdict(config),
        "curve": result.curve,
        "final": result.curve[-1],
        **parts,
        "parameters": parameter_counts(model),
        "throughput": {"unit": unit, "per_second": round(result.units_per_second, 1)},
        "seconds": {k: round(v, 2) for k, v in seconds.items()},
        "versions": versions(),
        "started": result.started,
        "finished": now(),
        "resumed": result.resumed,
    }


def cases(prepared: Prepared, model: nn.Module, settings: TrainConfig) -> dict[str, str]:
    """The last evaluation case by case, in the run's own precision; numbers as a
    line of text, which keeps the file short.
    """
    if prepared.cases is None:
        return {}
    backend = resolve_backend(settings)
    with torch.no_grad(), cast(backend), products(backend):
        return {name: " ".join(f"{v:.6g}" for v in values) for name, values in prepared.cases(model.eval()).items()}


def to_be_run(runs: Iterable[RunConfig]) -> list[RunConfig]:
    """Those of a queue's runs that have no record.

    Raises:
        ValueError: a bad config, or a launcher started this process.
        RecordError: a record is damaged, or a run of another config has this name.
    """
    if launched():
        raise ValueError(
            "a queue starts its own processes: run it plainly, not under torchrun, which is for single runs (train)"
        )
    runs = list(runs)
    for config in runs:
        check(config)
    return [config for config in runs if existing(config) is None]


def existing(config: RunConfig) -> dict[str, Any] | None:
    """The stored record of the run, None if there is none.

    Raises:
        RecordError: it is damaged, or a run of another config has this name.
    """
    path = path_of(config)
    if not path.is_file():
        return None
    record = read_record(path)
    # a field that is newer than the record had its default's effect then
    stored = {f.name: f.default for f in fields(config) if f.default is not MISSING} | record["config"]
    wanted = json.loads(json.dumps(asdict(config)))  # tuples are lists in a record
    for values in (stored, wanted):  # an arm that is called like its initializer may have been named or not
        values["arm"] = values["arm"] or values["init"]
    differs = [
        f"{k}: {stored.get(k)!r} there, {v!r} here"
        for k, v in wanted.items()
        if k not in MACHINE and stored.get(k) != v
    ]
    if differs:
        raise RecordError(
            f"a record {config.name} exists with another config ({'; '.join(differs)}): "
            "choose another experiment or arm, or replace it with force (--force)"
        )
    return record


# --- for the families ------------------------------------------------------------------------------------------------


def initialized(build: Callable[[], Model], config: RunConfig) -> Model:
    """The model that ``build`` makes, initialised as the config says, on the CPU: a function of the config only.

    The weights are drawn from generators of their own, so two arms with one seed share every weight that their
    initializers do not set differently.
    """
    seed = derive_seed(config.seed, "init")
    with torch.random.fork_rng(devices=[]):  # PyTorch's constructors draw from the global generator
        torch.default_generator.manual_seed(seed)  # the CPU's only, as in mimetic.defaults
        model = build()
    generator = torch.Generator().manual_seed(seed)
    initialize_(
        model, config.init, default=config.default_init, spec=mimetic_spec(config), qk_rank=config.qk_rank,
        generator=generator,
    )  # fmt: skip
    return model


def mimetic_spec(config: RunConfig) -> MimeticSpec:
    """The config's constants; ValueError if there is not one value a layer."""
    spec = config.part(MimeticSpec)
    spec.layer(0, config.depth)
    return spec


def train_config(config: RunConfig) -> TrainConfig:
    """The part of the config that the training loop reads."""
    return config.part(TrainConfig)
