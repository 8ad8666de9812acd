"""The commands ``bench init``, ``bench train`` and ``bench profile``: dataclasses whose fields are their options.

main is their command line with the standard library only, for a lent GPU machine.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields


class Mistake(Exception):
    """The user asked for something that cannot be; the message says what can."""


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


def main(arguments: Sequence[str]) -> int:
    """Run ``init``, ``train`` or ``profile`` with its options; returns the exit status."""
    from mimetic.data.fetch import Unavailable

    commands = {"init": BenchInit, "train": BenchTrain, "profile": BenchProfile}
    parser = argparse.ArgumentParser(prog="python -m mimetic bench", description=__doc__.splitlines()[0])
    names = parser.add_subparsers(dest="name", required=True)
    for name, command in commands.items():
        options = names.add_parser(name, help=command.__doc__.splitlines()[0])
        for field in fields(command):
            option = f"--{field.name.replace('_', '-')}"
            if isinstance(field.default, bool):
                options.add_argument(option, action="store_true")
            else:  # only a number of workers has no default
                kind = int if field.default is None else type(field.default)
                options.add_argument(option, type=kind, default=field.default)
    chosen = vars(parser.parse_args(arguments))
    try:
        commands[chosen.pop("name")](**chosen)()
    except (Mistake, Unavailable) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0
