"""The command line: ``python -m mimetic``, or ``mimetic`` once installed.

Every command is a dataclass whose fields are its options; what a command needs is imported when it runs. Those that a
bare GPU machine has too are in commands.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import tyro
from tyro.conf import CascadeSubcommandArgs, OmitArgPrefixes, OmitSubcommandPrefixes, Positional, PositionalRequiredArgs
from tyro.extras import subcommand_type_from_defaults

from mimetic.commands import BenchInit, BenchProfile, BenchTrain, DataFetch, Mistake, Queue, carry_out, one_name
from mimetic.experiments.configs import EXPERIMENTS, with_arm

EXAMPLES = """Mimetic initialization of self-attention layers: train, measure speed and coverage, fetch data.

examples:
  python -m mimetic train digits --init mimetic             a small ViT, in well under a minute
  python -m mimetic train cifar10-lab30 --init timm --seed 1  one run of the laboratory experiment
  python -m mimetic train cifar10-lab30 --help                every setting of a run
  python -m mimetic train tinyshakespeare --arm language    one run of the GPT attempt
  python -m mimetic queue lab --minutes 9                   work off the laboratory programme for nine minutes
  python -m mimetic sweep paper --partition gpu             hand a programme to a Slurm cluster
  python -m mimetic data fetch cifar10                      download CIFAR-10 to the cache
  python -m mimetic pretrained list                         pretrained models whose attention can be had
  python -m mimetic audit whisper-tiny-encoder              three questions to a trained model
  python -m mimetic bench init                              how fast is the initializer?
  python -m mimetic bench train                             how fast is training?
  python -m mimetic bench profile                           where does a training step's time go?
  python -m mimetic coverage timm                           which of timm's models are supported?
"""

# What an experiment's name is followed by: a subcommand whose options start at the experiment's values.
Experiment = subcommand_type_from_defaults(
    EXPERIMENTS,
    {name: f"{c.dataset}, {c.epochs} epochs, d {c.d_model}, depth {c.depth}" for name, c in EXPERIMENTS.items()},
)  # fmt: skip


Config = TypeVar("Config")


@dataclass(frozen=True)
class Train(Generic[Config]):
    """Train one run of an experiment, or show its record if it is there already.

    examples:
      python -m mimetic train cifar10-lab30 --init mimetic --seed 0
      python -m mimetic train cifar10-lab30 --experiment trial --epochs 2 --lr 5e-4
      python -m mimetic train digits --no-store

    A run that was stopped goes on where it was when the same command is given again.
    """

    config: Config
    """which experiment; its settings follow its name and begin at its values"""
    force: bool = False  # train again, even if there is a record; stopped, the same command goes on
    store: bool = True  # keep a record (data/runs) and a checkpoint (data/cache/checkpoints)
    checkpoint_seconds: float = 30.0  # how often to save the state
    time_limit: float | None = None  # seconds after which to save and stop
    quiet: bool = False  # only the result

    goes_on = True  # when it was stopped, with the same command

    def __call__(self) -> None:
        from mimetic.experiments.runs import existing, family, run
        from mimetic.training.loop import Diverged
        from mimetic.training.parallel import is_first

        config, known = self.config, False
        if self.time_limit is not None and not self.store:
            raise Mistake("--time-limit saves and stops, and --no-store keeps nothing: choose one of them")
        try:
            config = with_arm(config)
            known = self.store and not self.force and existing(config) is not None
            record = run(
                config, force=self.force, store=self.store, progress=not self.quiet,
                checkpoint_seconds=self.checkpoint_seconds, time_limit=self.time_limit,
            )  # fmt: skip
        except (ValueError, Diverged) as error:
            raise Mistake(error) from None
        if not is_first():
            return
        final, speed, seconds = record["final"], record["throughput"], record["seconds"]["total"]
        print(
            f"{config.name}: {family(config).METRIC.show(final)}{' (of the validation part)' * bool(config.validation)}"
            f" after {final['epoch']} epochs ({speed['per_second']:.0f} {speed['unit']}/s, {seconds:.0f} s)"
            + (" (this is the record that there is; --force trains it again)" if known else "")
        )


@dataclass(frozen=True)
class Coverage:
    """Try every attention architecture of a library: supported (products verified), or refused (with the reason).
    Ten minutes of two cores; the table goes to data/coverage.

    example: python -m mimetic coverage timm
    """

    library: Positional[Literal["timm", "transformers"]]

    def __call__(self) -> None:
        from mimetic import coverage

        coverage.main(self.library)


@dataclass(frozen=True)
class PretrainedList:
    """The pretrained models whose attention weights can be had, and which of them are in the cache and measured.

    example: python -m mimetic pretrained list
    """

    def __call__(self) -> None:
        from mimetic.pretrained import SOURCES, cached_path, recorded

        have = recorded()
        for src in SOURCES.values():
            cached = "cached" if cached_path(src.name).is_file() else "-"
            measured = "measured" if src.name in have else "-"
            print(f"{src.name:<22} {cached:<7} {measured:<9} {src.licence:<11} {src.title}, {src.kind} {src.origin}")


@dataclass(frozen=True)
class PretrainedMeasure:
    """Measure the products of pretrained models, fetched first if they are not in the
    cache, into data/pretrained (all: 3 minutes).

    example: python -m mimetic pretrained measure minilm-l6 gpt2
    """

    names: Positional[tuple[str, ...]] = ()  # all that can be had, if none is named

    def __call__(self) -> None:
        from mimetic.pretrained import SOURCES, measure_all, source

        try:
            names = [source(name).name for name in self.names or SOURCES]
        except ValueError as error:
            raise Mistake(error) from None
        lacking = set(names) - {path.stem for path in measure_all(names)}
        if self.names and lacking:
            raise Mistake(f"not measured: {', '.join(sorted(lacking))}")


@dataclass(frozen=True)
class AuditModel:
    """Three questions to a trained model: has it layers worth imitating, can matrix operations imitate them, are they a
    meaningful share of its parameters?

    A pretrained model (`python -m mimetic pretrained list`), a run of this book or of your own (EXPERIMENT/ARM-seedN),
    or a file with a state dict (.safetensors, .pt) and the names of its attention weights, {} for the number of the
    layer.

    examples:
      python -m mimetic audit minilm-l6
      python -m mimetic audit ml100k/bert-seed0
      python -m mimetic audit sasrec.pt --num-heads 2 --qkv blocks.{}.attn.qkv.weight --proj blocks.{}.attn.proj.weight
    """

    model: Positional[str]
    raw: bool = False  # the weights as they are, without the gains of the norms
    num_heads: int | None = None  # the rest is for state dicts: how many heads a layer has
    qkv: str | None = None  # one fused matrix ...
    q: str | None = None  # ... or three
    k: str | None = None
    v: str | None = None
    proj: str | None = None  # the output matrix
    in_gain: str | None = None  # gain of the LayerNorm in front, if there is one
    table: str | None = None  # the item embedding
    transposed: bool = False  # matrices are stored (in, out)

    def __call__(self) -> None:
        from mimetic.attention import UnsupportedAttention
        from mimetic.audit import StateNames, audit

        try:
            names = None
            given = {k: v for k, v in vars(self).items() if k not in ("model", "raw")}
            if any(given.values()) or self.num_heads is not None:
                if self.num_heads is None or self.proj is None:
                    raise ValueError("a state dict needs both --num-heads and --proj, and --qkv or --q, --k and --v")
                names = StateNames(**given)
            elif Path(self.model).is_file():
                raise ValueError(
                    "a file with a state dict needs --num-heads, --proj, and --qkv or --q, --k and --v: where its"
                    " attention weights are"
                )
            print(audit(self.model, fold=False if self.raw else None, names=names))
        except (ValueError, UnsupportedAttention) as error:
            raise Mistake(error) from None


@dataclass(frozen=True)
class Sweep:
    """Submit a queue to a cluster, one Slurm job a run (submitit); finished runs are not submitted, stopped ones go on.

    examples:
      python -m mimetic sweep paper --partition gpu --minutes 60 --at-once 8
      python -m mimetic sweep lab --executor local --at-once 2
    """

    name: Positional[str]
    executor: Literal["slurm", "local"] = "slurm"  # local: processes on this machine
    minutes: int = 60  # time limit of a job; a run may take several
    gpus: int | None = None  # on each node; default: one with Slurm, none on this machine
    nodes: int = 1
    cpus: int = 8  # for each process
    partition: str | None = None  # Slurm's
    account: str | None = None  # Slurm's
    at_once: int = 8  # how many jobs may run at a time
    folder: Path = Path("_build/sweep")  # of the jobs' logs; the machines must share it
    wait: bool = False  # until all jobs have ended

    goes_on = True  # when it was stopped, with the same command

    def __call__(self) -> None:
        from mimetic.experiments.cluster import Resources, report, submit
        from mimetic.experiments.queue import queue_runs

        gpus = self.gpus if self.gpus is not None else int(self.executor == "slurm")
        resources = Resources(self.minutes, gpus, self.nodes, self.cpus, self.partition, self.account)
        try:
            jobs = submit(
                queue_runs(self.name), self.folder, executor=self.executor, resources=resources, at_once=self.at_once
            )
        except ValueError as error:
            raise Mistake(error) from None
        print(
            f"{len(jobs)} jobs submitted, logs in {self.folder}; `python -m mimetic queue {self.name} --list` shows"
            " what is done"
        )
        failed = report(jobs) if self.wait or self.executor == "local" else {}
        if failed:
            raise Mistake("; ".join(f"{name}: {why}" for name, why in failed.items()))


COMMANDS = {
    "train": Train[Experiment],
    "audit": AuditModel,
    "queue": PositionalRequiredArgs[Queue],
    "sweep": Sweep,
    "coverage": Coverage,
    "bench init": BenchInit,
    "bench train": BenchTrain,
    "bench profile": BenchProfile,
    "data fetch": PositionalRequiredArgs[DataFetch],
    "pretrained list": PretrainedList,
    "pretrained measure": PretrainedMeasure,
}


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (commands.carry_out)."""
    return carry_out(partial(_read, args))


def _read(args: Sequence[str] | None) -> Any:
    args = one_name(args, COMMANDS)
    if args[:1] == ["train"] and len(args) > 1 and args[1] in EXPERIMENTS:
        # an option that it does not know is then not looked for in all the other experiments
        config = EXPERIMENTS[args[1]]
        return tyro.cli(
            Train[type(config)], default=Train(config), prog=f"python -m mimetic train {args[1]}", args=args[2:],
            config=(OmitArgPrefixes,),
        )  # fmt: skip
    return tyro.extras.subcommand_cli_from_dict(
        COMMANDS, prog="python -m mimetic", description=EXAMPLES, args=args,
        config=(OmitArgPrefixes, OmitSubcommandPrefixes, CascadeSubcommandArgs),
    )  # fmt: skip
