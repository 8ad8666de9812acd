"""Processes that help one that trains on a GPU: they end with it, however it
ends, and are done without where they die.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch


class Job:
    """A call that a helper makes, or this process where there is none or it has died."""

    def __init__(self, call: Callable[[], Any], future: Future | None) -> None:
        self.call, self.future = call, future

    def done(self) -> bool:
        return self.future is None or self.future.done()

    def result(self) -> Any:
        if self.future is not None:
            try:
                return self.future.result()
            except BrokenExecutor:  # killed, perhaps for want of memory
                pass
        return self.call()


class Helpers:
    """Processes that share in the work, each with one thread and without a GPU;
    they end with this one, however it ends.
    """

    def __init__(self, number: int) -> None:
        self.number, self.jobs = number, []
        self.pool = self._new()

    def _new(self) -> ProcessPoolExecutor | None:
        if not self.number:
            return None
        return ProcessPoolExecutor(self.number, multiprocessing.get_context("spawn"), initializer=_help)

    def submit(self, call: Callable[[], Any]) -> Job:
        try:
            future = self.pool.submit(call) if self.pool else None
        except BrokenExecutor:
            self.pool = self._new()
            future = self.pool.submit(call)
        job = Job(call, future)
        self.jobs = [j for j in self.jobs if not j.done()] + [job]
        return job

    def forget(self, wanted: Callable[[Job], bool]) -> None:
        """Begin no more of the calls that are not wanted."""
        for job in self.jobs:
            if job.future is not None and not wanted(job):
                job.future.cancel()

    def __enter__(self) -> Helpers:
        return self

    def __exit__(self, *_: object) -> None:
        if self.pool:
            self.pool.shutdown()


def _help() -> None:
    """In each helper: one thread, no GPU, deaf to Ctrl-C (which reaches all processes), gone when the queue is."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    torch.set_num_threads(1)
    threading.Thread(target=leave_with_parent, daemon=True).start()


def leave_with_parent() -> None:
    """End this process when the one that started it ends, however that ends."""
    multiprocessing.parent_process().join()
    os._exit(1)


def gpu_is_lost(error: BaseException) -> bool:
    """Whether an error stays with the process: after an illegal access or a fault of the card every further call fails.
    Running out of memory does not.
    """
    return isinstance(error, getattr(torch, "AcceleratorError", ())) or "CUDA error" in str(error)


def cores() -> int:
    """How many helpers by default."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 2
    return max(1, min(16, available - 1))


@contextmanager
def until_terminated() -> Iterator[None]:
    """SIGTERM ends the work as an exception does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def in_a_line(error: Exception) -> str:
    """An error's type and message."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
