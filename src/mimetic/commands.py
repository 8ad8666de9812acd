"""The commands that a bare GPU machine has too (torch, torchvision, timm and NumPy): ``queue``, ``data fetch`` and
``bench``; and how every command is carried out.

A command is a dataclass whose fields are its options, and the comments beside them their help: cli.py reads it with
tyro, ``main`` with the standard library. What a command needs is imported when it runs.
"""

from __future__ import annotations

import argparse
import codecs
import errno
import inspect
import os
import re
import sys
import warnings
from collections.abc import Callable, Container, Sequence
from dataclasses import MISSING, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from mimetic.messages import STOPPED


class Mistake(Exception):
    """The user asked for something that cannot be; the message says what can."""


@dataclass(frozen=True)
class Queue:
    """Work off a named list of runs: finished ones are skipped, half-done ones go on. May be stopped at any moment.

    names:
      lab                  every question at laboratory scale: 402 runs, 20 hours
                           of two CPU cores (--together 60: 20 minutes of a GPU)
      recipe               the search that chose the laboratory's recipe, 10 runs
      paper                ViT-Tiny, 50,000 images, 100 epochs, for a GPU
      language             GPTs on text: 640 runs, over a day of one core
      recommenders         BERT4Rec: 434 runs, 32 hours of one core
      language-recipe, recommenders-recipe    the searches for their recipes
      language-gpu, recommenders-gpu          larger ones, for a GPU

    examples:
      python -m mimetic queue lab --minutes 9
      python -m mimetic queue lab --together 60
      python -m mimetic queue lab --list
    """

    name: str  # which list
    # stop after this time, everything saved (with --together: begin nothing that would take longer); default: when all
    # is done
    minutes: float | None = None
    # runs side by side; default: one on each GPU, else two; with --together: helpers on the CPU
    processes: int | None = None
    # train up to so many runs of one shape in the same kernels: for small vision and text runs on a GPU
    together: int | None = None
    compile: Literal["auto", "on", "off"] = "auto"  # torch.compile: off for a GPU machine without a C compiler
    list: bool = False  # only show what is done and what is left

    goes_on = True  # when it was stopped, with the same command

    def __call__(self) -> None:
        from mimetic.experiments.queue import run_queue

        try:
            outcome = run_queue(self.name, self.minutes, self.processes, self.list, self.together, self.compile)
        except ValueError as error:
            raise Mistake(error) from None
        if outcome and outcome.failed:
            raise Mistake("; ".join(f"{name}: {why}" for name, why in outcome.failed.items()))


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

    names: tuple[str, ...]  # of data sets or models

    def __call__(self) -> None:
        from mimetic.data import sequences
        from mimetic.data.fetch import ChecksumError, Unavailable
        from mimetic.data.images import DATASETS, fetch_images, load_images
        from mimetic.data.text import CORPORA, fetch_text

        lacking = ""
        try:
            from mimetic.pretrained import SOURCES, fetch
        except ModuleNotFoundError as error:  # on a bare machine
            if (error.name or "").partition(".")[0] == "mimetic":
                raise
            SOURCES, lacking = {}, f" (pretrained models need {error.name})"

        known = (*DATASETS, *CORPORA, *sequences.DATASETS, *SOURCES)
        if not self.names:
            raise Mistake(f"name what to fetch: {', '.join(known)}")
        for name in self.names:
            if name not in known:
                raise Mistake(f"{name!r} is not known; choose from {', '.join(known)}{lacking}")
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
                    where = fetch(name)
                print(f"{name}: {where}")
            except (Unavailable, ChecksumError) as error:  # the others may be had
                failed.append(str(error))
        if failed:
            raise Mistake("\nerror: ".join(failed))


@dataclass(frozen=True)
class BenchInit:
    """Time mimetic_init_ on a ViT-B/16 against the plain way, a full SVD a head, on the same random numbers.

    example: python -m mimetic bench init --plain-layers 1
    """

    d_model: int = 768  # width of the tokens
    depth: int = 12  # number of layers
    num_heads: int = 12
    seed: int = 0
    repeats: int = 1  # how often ours is timed; the median counts
    plain_layers: int = 0  # time the plain way on this many layers and scale up; 0: all
    store: bool = False  # keep the numbers in data/speed, which the speed page reads

    def __call__(self) -> None:
        from mimetic.bench import bench_init

        _bench("init", bench_init, self, "cpu")


@dataclass(frozen=True)
class BenchTrain:
    """Time training steps of an experiment, against timm's model and DataLoader with the same batch and augmentations.

    example: python -m mimetic bench train --steps 10
    """

    experiment: str = "cifar10-lab30"  # whose model, batch, augmentation and precision
    steps: int = 20  # timed steps of each
    # worker processes of timm's DataLoader, besides a measurement with none; default: one on every core but one, two at
    # least
    workers: int | None = None
    device: str = "auto"  # auto, cpu, cuda, mps
    store: bool = False  # keep the numbers in data/speed, which the speed page reads

    def __call__(self) -> None:
        from mimetic.bench import bench_train

        _bench("train", bench_train, self, self.device)


@dataclass(frozen=True)
class BenchProfile:
    """Where the time of a training step goes: batch, forward, backward, update; matrix products and the rest.

    example: python -m mimetic bench profile --experiment cifar10-paper
    """

    experiment: str = "cifar10-lab30"  # whose model, batch, augmentation and precision
    steps: int = 20  # timed steps
    device: str = "auto"  # auto, cpu, cuda, mps
    store: bool = False  # keep the numbers in data/speed, which the speed page and the GPU chapter read

    def __call__(self) -> None:
        from mimetic.bench import bench_profile

        _bench("profile", bench_profile, self, self.device)


def _bench(kind: str, measure, command, device: str) -> None:
    """Measure with a command's options, and keep the result if that is one of them."""
    import torch

    from mimetic.bench import store_bench
    from mimetic.training.backend import resolve_backend
    from mimetic.training.config import TrainConfig

    arguments = {name: value for name, value in vars(command).items() if name not in ("store", "device")}
    try:
        name = resolve_backend(TrainConfig(epochs=1, device=device))["name"]
        result = measure(**arguments) if kind == "init" else measure(**arguments, device=device)
    except ValueError as error:
        raise Mistake(error) from None
    if command.store:
        print(f"kept in {store_bench(kind, arguments, result, name, torch.get_num_threads()).name}")


COMMANDS = {
    "queue": Queue,
    "data fetch": DataFetch,
    "bench init": BenchInit,
    "bench train": BenchTrain,
    "bench profile": BenchProfile,
}


def main(args: Sequence[str] | None = None) -> int:
    """The command line without tyro; returns the exit status."""
    return carry_out(partial(_read, args))


def _read(args: Sequence[str] | None) -> Any:
    name, *args = one_name(args, COMMANDS) or [""]
    if name not in COMMANDS:
        raise Mistake("without tyro there are queue, bench and data fetch; for the rest, pip install tyro")
    command, kinds, helps = COMMANDS[name], get_type_hints(COMMANDS[name]), _helps(COMMANDS[name])
    parser = argparse.ArgumentParser(
        prog=f"python -m mimetic {name}", description=inspect.getdoc(command),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    for field in fields(command):
        kind, choices = kinds[field.name], get_args(kinds[field.name])
        options = {"help": helps[field.name]}
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif get_origin(kind) is Literal:
            options["choices"] = choices
        else:
            options["type"] = choices[0] if choices else kind
        if field.default is MISSING:
            parser.add_argument(field.name, nargs="*" if get_origin(kind) is tuple else None, **options)
        else:
            parser.add_argument(f"--{field.name.replace('_', '-')}", default=field.default, **options)
    return command(**vars(parser.parse_args(args)))


def _helps(command: type) -> dict[str, str]:
    """The comment beside each field, or above it, as tyro takes them."""
    helps, above = {}, []
    for line in inspect.getsource(command).splitlines():
        text, _, comment = line.strip().partition("#")
        if not text and comment:
            above.append(comment.strip())
            continue
        if field := re.match(r"\w+(?=: )", text):
            helps[field[0]] = comment.strip() or " ".join(above)
        above = []
    return helps


def one_name(args: Sequence[str] | None, commands: Container[str]) -> list[str]:
    """The arguments (default: of this process), a command of two words as one of them."""
    args = list(sys.argv[1:] if args is None else args)
    if " ".join(args[:2]) in commands:  # "bench init"
        args[:2] = [" ".join(args[:2])]
    elif args and (seconds := [name.split()[1] for name in commands if name.startswith(f"{args[0]} ")]):
        raise Mistake(f"{args[0]} is followed by one of: {', '.join(seconds)}")
    return args


_ASCII = {"−": "-", "·": ".", "α": "alpha", "β": "beta", "±": "+-"}  # what is printed where the output is not UTF-8


def carry_out(read: Callable[[], Any]) -> int:
    """Carry out the command that ``read`` makes of the command line; returns the exit status: 0, or 2 if what was asked
    for cannot be had, or 1 if nobody reads what is printed any more (``| head``)."""
    codecs.register_error("ascii_signs", lambda error: (_ASCII.get(error.object[error.start], "?"), error.start + 1))
    for stream in (sys.stdout, sys.stderr):  # a Windows pipe, a Latin-1 terminal
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="ascii_signs")
    try:
        status = _carry_out(read)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still to be written goes nowhere
        return 1


def _carry_out(read: Callable[[], Any]) -> int:
    command = None
    try:
        command = read()
        with warnings.catch_warnings():
            warnings.showwarning = partial(_warn, warnings.showwarning)
            command()
        return 0
    except KeyboardInterrupt:
        print(STOPPED if getattr(command, "goes_on", False) else "stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        raise
    except Exception as error:
        from mimetic.data.fetch import ChecksumError, Unavailable
        from mimetic.training.checkpoint import CheckpointError
        from mimetic.training.loop import TimeLimit
        from mimetic.training.parallel import is_first
        from mimetic.training.records import RecordError

        if isinstance(error, TimeLimit):
            if is_first():  # of the processes that train the run together
                print(f"{error}; the same command goes on from there")
            return 0
        if not isinstance(error, (Mistake, Unavailable, ChecksumError, CheckpointError, RecordError, OSError)):
            raise
        again = ""
        if getattr(command, "goes_on", False) and isinstance(error, OSError) and error.errno == errno.ENOSPC:
            again = "; make room, and the same command goes on from the last checkpoint"
        print(f"error: {error}{again}", file=sys.stderr)
        return 2


def _warn(
    otherwise: Callable[..., None], message: Warning, category: type[Warning], filename: str, *where: Any
) -> None:
    """What this package says to a user, without the line of code that says it; what others say, as it is."""
    if category is UserWarning and Path(filename).is_relative_to(Path(__file__).parent):
        print(f"warning: {message}", file=sys.stderr)
    else:
        otherwise(message, category, filename, *where)
