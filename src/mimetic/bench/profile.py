"""Where the time of a training step goes: by phase, and by kind of operation."""

from __future__ import annotations

import os
import re
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch

from mimetic.bench.train import Bench, wait
from mimetic.flops import peak as card_peak

# What an operator or kernel does, by the first entry whose words its name holds: PyTorch's names on a CPU, those of
# kernels on a GPU.
KINDS = {
    "attention kernels": ("flash", "fmha", "scaled_dot_product", "sdpa"),
    "optimiser": ("adam", "multi_tensor", "_foreach"),
    "matrix products": (
        "gemm", "nvjet", "cutlass", "aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "linear", "conv",
    ),
    "copies and casts": (
        "copy", "memcpy", "memset", "aten::to", "aten::cat", "index", "gather", "aten::fill_", "aten::zero_",
    ),
    "norms, softmax, GELU, sums": ("",),
}  # fmt: skip
LARGEST = 12  # how many operators or kernels a record names


def kind_of(name: str) -> str:
    """The kind (of KINDS) of an operator or kernel. A compiled one is named after all that is fused in it, and is none
    of the library calls that the other kinds are."""
    if name.startswith("triton_"):
        return list(KINDS)[-1]
    return next(kind for kind, words in KINDS.items() if any(word in name.lower() for word in words))


def bench_profile(experiment: str = "cifar10-lab30", steps: int = 20, device: str = "auto") -> dict[str, Any]:
    """Time the phases of a named experiment's training step, and the kinds of operation in it; print and return them.

    The phases are timed one by one, with the device waited for after each. On a GPU their sum is more than the step, in
    which nothing waits and which is one CUDA graph (training.step).
    The kinds come from PyTorch's profiler: on a GPU kernel times, on a CPU each operator's own time.

    Args:
        experiment: whose model, batch, augmentation and precision; pixels are random.
        steps: how many are timed, after a few that are not.
        device: auto, cpu, cuda, mps.

    Returns:
        "precision" and "products" (see training.precision); "step" seconds of a whole step; "phases" {name: seconds};
        "kinds" {name: share of the measured time}; "top" {operator or kernel: share}, the LARGEST; "busy" share of the
        step in which the GPU computes (nan on a CPU); "images_per_second"; "flops" of an image, forward and backward;
        "peak" share of the card's bfloat16 peak (nan where it is not known).

    Raises:
        ValueError: unknown experiment or device, or steps below 1.
    """
    with Bench(experiment, steps, device) as bench, bench.as_trained():
        phases, whole = bench.our_phases(), bench.our_step()
        per_second = bench.images_per_second(whole)
        step = bench.config.batch_size / per_second
        seconds = dict.fromkeys(phases, 0.0)
        for turn in range(-3, steps):  # the first three do not count
            passed = None
            for name, phase in phases.items():
                start = time.perf_counter()
                passed = phase(passed)
                wait(bench.device)
                seconds[name] += (turn >= 0) * (time.perf_counter() - start) / steps
        operations = _operations(whole, steps, bench.device)
    total = sum(operations.values())
    spent = dict.fromkeys(KINDS, 0.0)
    for name, value in operations.items():
        spent[kind_of(name)] += value
    top = largest(operations)
    busy = total / step if bench.gpu else float("nan")
    peak = per_second * bench.flops / card_peak(bench.device_name)
    print(
        f"{bench.title}: {per_second:.0f} images/s, {1e3 * step:.1f} ms a step"
        + (f", {peak:.0%} of the peak" if peak == peak else "")
    )
    for name, value in seconds.items():
        print(f"{name:28s}{1e3 * value:8.1f} ms")
    for name, value in sorted(spent.items(), key=lambda item: -item[1]):
        print(f"{name:28s}{value / total:8.0%} of the time of operations")
    print("most of it:")
    for name, value in top.items():
        print(f"  {value:6.1%} {name}")
    if bench.gpu:
        print(f"the GPU computes in {busy:.0%} of the step")
    return {
        **bench.how(), "step": step, "phases": seconds,
        "kinds": {name: value / total for name, value in spent.items()}, "top": top, "busy": busy,
        "images_per_second": per_second, "flops": bench.flops, "peak": peak,
    }  # fmt: skip


def largest(operations: dict[str, float]) -> dict[str, float]:
    """The LARGEST operators or kernels and their share of all, names without types,
    arguments and counters, alike ones added up.
    """
    together: dict[str, float] = defaultdict(float)
    total = sum(operations.values())
    for name, value in operations.items():
        bare = re.sub(r"<.*|\(.*|^void ", "", name).rpartition("::")[2] if name.startswith("void ") else name
        together[re.sub(r"_\d+$", "", bare)[:80]] += value / total
    return {name: together[name] for name in sorted(together, key=together.get, reverse=True)[:LARGEST]}


def _operations(step: Callable[[], None], steps: int, device: torch.device) -> dict[str, float]:
    """Seconds a step by operator (on a CPU) or kernel (on a GPU)."""
    from torch.profiler import ProfilerActivity, profile

    gpu = device.type == "cuda"
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # else it reports that there is no GPU
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * gpu) as profiler:
        for _ in range(steps):
            step()
        wait(device)
    spent: dict[str, float] = defaultdict(float)
    for event in profiler.events():
        on_gpu = event.device_type == torch.autograd.DeviceType.CUDA
        marked = getattr(event, "is_user_annotation", False) or event.name.startswith("ProfilerStep")
        if on_gpu == gpu and not marked:
            micro = event.self_device_time_total if gpu else event.self_cpu_time_total
            spent[event.name] += micro / 1e6 / steps
    return dict(spent)
