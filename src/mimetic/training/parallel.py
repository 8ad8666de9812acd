"""Data-parallel training: the processes that torchrun or accelerate launch has started, and what they tell one another.

    torchrun --nproc-per-node 8 -m mimetic train cifar10-paper --init mimetic

Every process has the whole model and makes the whole batch, of which it takes its rows; gradients are averaged. So the
global batch, its images and its augmentation are those of one process, and the loss is the same to rounding. The first
process alone reads and writes records and checkpoints: the machines need no common disk.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")
VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what both launchers set


@dataclass(frozen=True)
class Group:
    """The processes that train one run together. One process alone is a group, too, with nobody to talk to."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that stores and prints."""
        return self.rank == 0

    def agree(self, compute: Callable[[], T]) -> T:
        """What compute() gives in the first process, in all of them; what it raises there is raised in all of them."""
        if self.size == 1:
            return compute()
        said: list[Any] = [None, None]
        if self.first:
            try:
                said[0] = compute()
            except Exception as error:  # noqa: BLE001  the others wait for an answer and must get one
                said[1] = error
        dist.broadcast_object_list(said, src=0)
        if said[1] is not None:
            raise said[1]
        return said[0]

    def rows(self, batch: Any) -> Any:
        """This process's rows of a tensor, or of every tensor in a tuple.

        Raises:
            ValueError: the number of rows is not a multiple of the number of processes.
        """
        if self.size == 1:
            return batch
        if isinstance(batch, tuple):
            return tuple(self.rows(value) for value in batch)
        each, rest = divmod(len(batch), self.size)
        if rest:
            raise ValueError(f"a batch of {len(batch)} cannot be shared equally by {self.size} processes")
        return batch[self.rank * each : (self.rank + 1) * each]

    def mean(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """The means over the processes of scalars of one dtype."""
        if self.size == 1 or not values:
            return values
        together = torch.stack(list(values.values()))
        dist.all_reduce(together)
        return dict(zip(values, together / self.size, strict=True))

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model whose backward pass averages the gradients over the processes."""
        if self.size == 1:
            return model
        device = next(model.parameters()).device
        return nn.parallel.DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)


ALONE = Group()


def launched() -> bool:
    """Whether a launcher has started this process as one of several."""
    return all(name in os.environ for name in VARIABLES) and int(os.environ["WORLD_SIZE"]) > 1


def is_first() -> bool:
    """Whether this process is the one that prints; known before the processes are connected."""
    return not launched() or int(os.environ["RANK"]) == 0


def own_card() -> bool:
    """Whether there is a GPU for each of the processes that were launched on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) <= torch.cuda.device_count()


def connect() -> Group:
    """The group that this process was launched into; ALONE if it was not
    launched. Connected once, until the process ends.

    On a machine with GPUs each process takes the one of its LOCAL_RANK.
    """
    if not launched():
        return ALONE
    if not dist.is_initialized():
        gpu = own_card()  # else they can train on the CPU only
        if gpu:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo")
        atexit.register(dist.destroy_process_group)  # not after every run: to connect again at once is a race
    return Group(dist.get_rank(), dist.get_world_size())
