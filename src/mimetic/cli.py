"""The command line: ``python -m mimetic``, or ``mimetic`` once installed.

Every command is a dataclass whose fields are its options; what a command needs is imported when it runs.
"""

from __future__ import annotations

import codecs
import errno
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import tyro
from tyro.conf import CascadeSubcommandArgs, OmitArgPrefixes, OmitSubcommandPrefixes, Positional
from tyro.extras import subcommand_type_from_defaults

from mimetic.bench.commands import BenchInit, BenchProfile, BenchTrain, Mistake
from mimetic.experiments.configs import EXPERIMENTS, with_arm
from mimetic.messages import STOPPED

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
class DataFetch:
    """Download data sets or pretrained attention weights to the cache (MIMETIC_DATA, or data/cache), verified.

    Data sets: cifar10, cifar100; tinyshakespeare, wikitext2; ml100k, ml1m, beauty. Nothing to download: digits (part of
    scikit-learn), pydoc (part of Python), clusters (synthetic). Any other name is a pretrained model; `python -m
    mimetic pretrained list` shows them.

    examples:
      python -m mimetic data fetch cifar10
      python -m mimetic data fetch tinyshakespeare wikitext2 ml100k beauty
      python -m mimetic data fetch gpt2 minilm-l6
    """

    names: Positional[tuple[str, ...]]

    def __call__(self) -> None:
        from mimetic.data import sequences
        from mimetic.data.fetch import ChecksumError, Unavailable
        from mimetic.data.images import DATASETS, fetch_images, load_images
        from mimetic.data.text import CORPORA, fetch_text
        from mimetic.pretrained.sources import SOURCES

        known = (*DATASETS, *CORPORA, *sequences.DATASETS, *SOURCES)
        if not self.names:
            raise Mistake(f"name what to fetch: {', '.join(known)}")
        for name in self.names:
            if name not in known:
                raise Mistake(f"{name!r} is not known; choose from {', '.join(known)}")
        failed = []
        for name in self.names:
            try:
                if name in DATASETS:
                    load_images(name)  # what is there already is verified, too
                    where = fetch_images(name) or "part of scikit-learn"
                elif name in CORPORA:
                    where = ", ".join(map(str, fetch_text(name))) or "part of Python"
                elif name in sequences.DATASETS:
                    sequences.load_sequences(name)
                    where = sequences.fetch_sequences(name) or "made when it is asked for"
                else:
                    from mimetic.pretrained import fetch

                    where = fetch(name)
                print(f"{name}: {where}")
            except (Unavailable, ChecksumError) as error:  # the others may be had
                failed.append(str(error))
        if failed:
            raise Mistake("\nerror: ".join(failed))


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
class Queue:
    """Work off a named list of runs: finished ones are skipped, half-done ones go on. May be stopped at any moment.

    names:
      lab                  every question at laboratory scale: 402 runs, 20 hours
                           of two CPU cores (--together 60: 20 minutes of a GPU)
      recipe               the search that chose the laboratory's recipe, 10 runs
      paper                ViT-Tiny, 50,000 images, 100 epochs, for a GPU
      language             GPTs on text: 544 runs, over a day of one core
      recommenders         BERT4Rec: 398 runs, 30 hours of one core
      language-recipe, recommenders-recipe    the searches for their recipes
      language-gpu, recommenders-gpu          larger ones, for a GPU

    examples:
      python -m mimetic queue lab --minutes 9
      python -m mimetic queue lab --together 60
      python -m mimetic queue lab --list
    """

    name: Positional[str]
    # stop after this time, everything saved (with --together: begin nothing that would take longer); default: when all
    # is done
    minutes: float | None = None
    # runs side by side; default: one on each GPU, else two; with --together: helpers on the CPU
    processes: int | None = None
    # train up to so many runs of one shape in the same kernels: for small vision and text runs on a GPU
    together: int | None = None
    compile: Literal["auto", "on", "off"] = "auto"  # torch.compile: off for a GPU machine without a C compiler
    list: bool = False  # only show what is done and what is left

    def __call__(self) -> None:
        from mimetic.experiments.queue import run_queue

        try:
            outcome = run_queue(self.name, self.minutes, self.processes, self.list, self.together, self.compile)
        except ValueError as error:
            raise Mistake(error) from None
        if outcome and outcome.failed:
            raise Mistake("; ".join(f"{name}: {why}" for name, why in outcome.failed.items()))


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
    "queue": Queue,
    "sweep": Sweep,
    "coverage": Coverage,
    "bench init": BenchInit,
    "bench train": BenchTrain,
    "bench profile": BenchProfile,
    "data fetch": DataFetch,
    "pretrained list": PretrainedList,
    "pretrained measure": PretrainedMeasure,
}


_ASCII = {"−": "-", "·": ".", "α": "alpha", "β": "beta", "±": "+-"}  # what is printed where the output is not UTF-8


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, or 2 if what was asked for cannot be had, or 1 if nobody reads
    what is printed any more (``| head``)."""
    try:
        status = _main(args)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still to be written goes nowhere
        return 1


def _warn(otherwise: Callable[..., None], message: Warning, category: type[Warning], *where: Any) -> None:
    """What is said to a user, without the line of code that says it."""
    if category is UserWarning:
        print(f"warning: {message}", file=sys.stderr)
    else:
        otherwise(message, category, *where)


def _main(args: Sequence[str] | None) -> int:
    codecs.register_error("ascii_signs", lambda error: (_ASCII.get(error.object[error.start], "?"), error.start + 1))
    for stream in (sys.stdout, sys.stderr):  # a Windows pipe, a Latin-1 terminal
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="ascii_signs")
    args = list(sys.argv[1:] if args is None else args)
    if " ".join(args[:2]) in COMMANDS:  # "bench init" is one command of two words
        args[:2] = [" ".join(args[:2])]
    elif args and (seconds := [name.split()[1] for name in COMMANDS if name.startswith(f"{args[0]} ")]):
        print(f"error: {args[0]} is followed by one of: {', '.join(seconds)}", file=sys.stderr)
        return 2
    if args[:1] == ["train"] and len(args) > 1 and args[1] in EXPERIMENTS:
        # an option that it does not know is then not looked for in all the other experiments
        config = EXPERIMENTS[args[1]]
        command = tyro.cli(
            Train[type(config)], default=Train(config), prog=f"python -m mimetic train {args[1]}", args=args[2:],
            config=(OmitArgPrefixes,),
        )  # fmt: skip
    else:
        command = tyro.extras.subcommand_cli_from_dict(
            COMMANDS, prog="python -m mimetic", description=EXAMPLES, args=args,
            config=(OmitArgPrefixes, OmitSubcommandPrefixes, CascadeSubcommandArgs),
        )  # fmt: skip
    from mimetic.data.fetch import ChecksumError, Unavailable
    from mimetic.training.checkpoint import CheckpointError
    from mimetic.training.loop import TimeLimit
    from mimetic.training.parallel import is_first
    from mimetic.training.records import RecordError

    try:
        with warnings.catch_warnings():
            warnings.showwarning = partial(_warn, warnings.showwarning)
            command()
    except TimeLimit as stopped:
        if is_first():  # of the processes that train the run together
            print(f"{stopped}; the same command goes on from there")
    except BrokenPipeError:
        raise
    except (Mistake, Unavailable, ChecksumError, CheckpointError, RecordError, OSError) as error:
        again = ""
        if isinstance(error, OSError) and error.errno == errno.ENOSPC and isinstance(command, (Train, Queue)):
            again = "; make room, and the same command goes on from the last checkpoint"
        print(f"error: {error}{again}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(STOPPED if isinstance(command, (Train, Queue, Sweep)) else "stopped", file=sys.stderr)
        return 130
    return 0
