"""What a config means on this machine (device, precision, compilation), and the
settings of PyTorch that hold during a run.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from mimetic.data.fetch import Unavailable
from mimetic.messages import check_choice
from mimetic.training.config import DEVICES, TrainConfig
from mimetic.training.precision import cpu_has_bfloat16

# Deterministic products on a GPU need it, and cuBLAS reads it once, at a process's first product: so it is set before
# any.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

MOST_GRAPHS = 256  # of one function; a shape of GPT takes five


def derive_seed(*parts: int | str) -> int:
    """A seed for one purpose: a function of its arguments only, unrelated to those of other purposes or neighbours."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


def resolve_device(name: str) -> torch.device:
    """The device behind "auto", "cpu", "cuda", "mps".

    Raises:
        ValueError: unknown name, or this machine has no such device.
    """
    check_choice("device", name, DEVICES)
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device("cuda" if there["cuda"] else "mps" if there["mps"] else "cpu")
    if not there[name]:
        raise ValueError(f"device={name!r}: PyTorch finds none on this machine; choices here: auto, "
                         + ", ".join(key for key, value in there.items() if value))  # fmt: skip
    return torch.device(name)


def resolve_backend(config: TrainConfig) -> dict[str, Any]:
    """What a config means on this machine: type, name, threads, precision, products (the precision they are taken in;
    see training.precision), compiled."""
    device = resolve_device(config.device)
    gpu = device.type == "cuda"
    # older cards have no bfloat16, or only an emulation, and the compiler refuses them
    precision, compiled = config.precision, config.compile == "on"
    if precision == "auto":
        half = gpu and torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "bfloat16" if half else "float32"
    if config.compile == "auto":
        compiled = gpu and torch.cuda.get_device_capability(device) >= (7, 0)
    return {
        "type": device.type,
        "name": torch.cuda.get_device_name(device) if gpu else _cpu_name(),
        "threads": config.threads,
        "precision": precision,
        "products": "float32" if device.type == "cpu" and not compiled and not cpu_has_bfloat16() else precision,
        "compiled": compiled,
    }


@contextmanager
def settings(config: TrainConfig, backend: dict[str, Any], seed: int) -> Iterator[None]:
    """Threads, global generators and, on a GPU, deterministic kernels, for the time of a run; all restored after."""
    threads, gpu = torch.get_num_threads(), backend["type"] == "cuda"
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    with (
        torch.random.fork_rng(devices=[torch.cuda.current_device()] if gpu else []),
        _no_silent_eager() if backend["compiled"] else nullcontext(),
    ):
        torch.manual_seed(derive_seed(seed, "global"))
        try:
            torch.set_num_threads(config.threads)
            # the same run twice gives the same bits; CPU kernels do so anyway. With warn_only attention's backward
            # would not
            if gpu:
                torch.use_deterministic_algorithms(True)
                torch.utils.deterministic.fill_uninitialized_memory = False  # a debugging aid that costs time
            yield
        finally:
            torch.set_num_threads(threads)
            if gpu:
                torch.use_deterministic_algorithms(before[0], warn_only=before[1])
                torch.utils.deterministic.fill_uninitialized_memory = fill


def _cpu_name() -> str:
    """The processor's model name."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _no_silent_eager() -> AbstractContextManager:
    """dynamo counts the graphs of one function over all models of a process, and beyond eight would go on without
    compiling: other bits, another speed, and nothing said. So there may be many, which runs of one shape then share,
    and too many are an error."""
    dynamo = torch._dynamo.config
    limits = "recompile_limit", "accumulated_recompile_limit", "fail_on_recompile_limit_hit"
    if not hasattr(dynamo, limits[0]):  # before PyTorch 2.7
        limits = "cache_size_limit", "accumulated_cache_size_limit", "fail_on_cache_limit_hit"
    wanted = dict(zip(limits, (MOST_GRAPHS, 8 * MOST_GRAPHS, True)))
    return dynamo.patch(**{name: value for name, value in wanted.items() if hasattr(dynamo, name)})


@contextmanager
def compiler_needed() -> Iterator[None]:
    """One line in place of a compiler's hundred."""
    try:
        yield
    except Exception as error:
        if type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
            said = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
            raise Unavailable(
                f"torch.compile fails on this machine ({type(error).__name__}: {said[:160]}): choose --compile off, or"
                " install a compiler"
            ) from error
        raise
