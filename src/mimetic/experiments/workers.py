"""Processes that train the runs of a queue, one after another."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

import torch

from mimetic.attention import MimeticWarning
from mimetic.data.fetch import Unavailable
from mimetic.experiments.configs import RunConfig
from mimetic.experiments.processes import gpu_is_lost, in_a_line, leave_with_parent
from mimetic.experiments.runs import run_or_restart
from mimetic.training.checkpoint import BusyCheckpoint, CheckpointError
from mimetic.training.loop import TimeLimit
from mimetic.training.records import now


class Worker:
    """A process that trains one run after another, on the one card that it sees."""

    def __init__(self, card: str | None = None) -> None:
        # glibc gives tensors of some MB back to the system and asks for them again, page by page, all the time: keeping
        # them makes training a fifth faster. It reads these at the start of a process.
        os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(2**25))
        os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(2**34))
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self.card = card
        with _environment("CUDA_VISIBLE_DEVICES", card):  # CUDA reads it when the process first uses a card
            self.process.start()
        theirs.close()
        self.config: RunConfig | None = None

    def give(self, config: RunConfig, deadline: float | None, checkpoint_seconds: float) -> None:
        """Have it train a run, until the deadline (time.monotonic) at most. OSError: the process has died."""
        self.config = config
        self.connection.send((config, deadline, checkpoint_seconds))

    def stop(self) -> None:
        """End the process: one in a run when its step is over, an idle one by itself. (Killed, it leaves semaphores of
        its libraries behind, and Python warns of them on the user's terminal.)"""
        self.connection.close()
        if self.config is not None:
            self.process.terminate()
        self.process.join(timeout=5.0)
        self.process.kill()
        self.process.join()


@contextmanager
def _environment(name: str, value: str | None) -> Iterator[None]:
    """An environment variable for the processes that are started meanwhile; None: as it is."""
    before = os.environ.get(name)
    if value is not None:
        os.environ[name] = value
    try:
        yield
    finally:
        if value is not None:
            del os.environ[name]
            os.environ.update({} if before is None else {name: before})


def cards() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES has them; [] without."""
    if not torch.cuda.is_available():
        return []
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return [card.strip() for card in visible.split(",")]
    return [str(i) for i in range(torch.cuda.device_count())]


def _serve(connection: Connection) -> None:
    """Train what comes through the pipe, until it is closed or the queue has ended, however."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the queue ends its workers itself
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an end in which libraries remove their semaphores
    warnings.simplefilter("ignore", MimeticWarning)
    # a queue that is killed leaves none that trains on, and holds its run
    threading.Thread(target=leave_with_parent, daemon=True).start()
    while True:
        try:
            config, deadline, checkpoint_seconds = connection.recv()
        except (EOFError, OSError):
            return
        began = now()
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        try:
            record = run_or_restart(
                config,
                say=lambda line: connection.send(("says", line)),
                progress=False,
                checkpoint_seconds=checkpoint_seconds,
                time_limit=left,
                on_epoch=lambda entry: connection.send(("epoch", entry)),
            )
            message = "done" if record["finished"] >= began else "there", record["final"]
        except TimeLimit:
            message = "stopped", ""
        except (BrokenPipeError, ConnectionResetError):
            return
        except Unavailable as error:
            message = "unavailable", in_a_line(error)
        except OSError as error:
            message = "full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "failed", in_a_line(error)
        except BusyCheckpoint:
            message = "busy", ""
        except CheckpointError as error:
            message = "failed", str(error)
        except Exception as error:  # noqa: BLE001  one run must not stop the others; its error is shown
            message = "lost" if gpu_is_lost(error) else "failed", in_a_line(error)
        try:
            connection.send(message)
        except (BrokenPipeError, ConnectionResetError):
            return
        if message[0] == "lost":
            return
