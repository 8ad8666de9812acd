"""A step of training, and how a GPU is given it: as one CUDA graph, so that it never
waits for the CPU to start the next kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from mimetic.messages import one_line
from mimetic.training.parallel import ALONE, Group
from mimetic.training.precision import cast

Loss = Callable[[nn.Module, Any], tuple[Tensor, dict[str, Tensor]]]


class Captured:
    """A step that a GPU may be given as one CUDA graph, which the first call captures. Batches of
    another shape than the first are trained without it. What a step is says ``_run``; ``sums`` are of
    loss and metrics (reset() after an epoch).
    """

    def __init__(self, optimizer: torch.optim.AdamW, backend: dict[str, Any], captures: bool) -> None:
        self.optimizer, self.backend, self.captures = optimizer, backend, captures
        self.sums: dict[str, Tensor] = {}
        self.replay: Callable[[], None] | None = None
        if captures:
            read_rate_from_device(optimizer)

    def __call__(self, batch: Any, rate: float) -> None:
        set_rate(self.optimizer, rate)
        if not self.captures:
            self._run(batch)
            return
        if self.replay is None:
            self.batch = tree_map(torch.clone, batch)
            self.replay = as_graph(lambda: self._run(self.batch), lambda: {**changed(self.optimizer), **self.sums})
        given, kept = tree_leaves(batch), tree_leaves(self.batch)
        if [tensor.shape for tensor in given] != [tensor.shape for tensor in kept]:
            self._run(batch)
            return
        for old, new in zip(kept, given, strict=True):
            old.copy_(new)
        self.replay()

    @property
    def graph(self) -> bool:
        """Whether the step is one CUDA graph."""
        return self.replay is not None and isinstance(getattr(self.replay, "__self__", None), torch.cuda.CUDAGraph)

    def reset(self) -> None:
        """Begin the sums again."""
        for value in self.sums.values():
            value.zero_()

    def _run(self, batch: Any) -> None:
        raise NotImplementedError


class Step(Captured):
    """A step of one model: forward, backward, clipping, AdamW, and the sums of loss and metrics.

    Args:
        forward: the model as the loss calls it: compiled, wrapped for several processes.
        loss: of forward and a batch: the loss, and metrics to sum.
        grad_clip: largest norm of the gradient; 0: no clipping.
        backend: of backend.resolve_backend.
        captures: make the step a CUDA graph.
        group: the processes that train together.
    """

    def __init__(
        self,
        model: nn.Module,
        forward: nn.Module,
        loss: Loss,
        optimizer: torch.optim.AdamW,
        grad_clip: float,
        backend: dict[str, Any],
        captures: bool = False,
        group: Group = ALONE,
    ) -> None:
        super().__init__(optimizer, backend, captures)
        self.model, self.forward, self.loss, self.grad_clip, self.group = model, forward, loss, grad_clip, group

    def _run(self, batch: Any) -> None:
        with cast(self.backend):
            loss, metrics = self.loss(self.forward, batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.grad_clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.grad_clip)
        self.optimizer.step()
        # float64: a sum of thousands of values; kept on the device, read once an epoch. Of all processes' rows at every
        # step, so that a checkpoint inside an epoch holds what belongs to the whole batch
        values = {name: value.detach().to(sum_dtype(self.backend)) for name, value in {"loss": loss, **metrics}.items()}
        for name, value in self.group.mean(values).items():
            if name not in self.sums:
                self.sums[name] = torch.zeros_like(value)
            self.sums[name] += value


def sum_dtype(backend: dict[str, Any]) -> torch.dtype:
    """In which sums over an epoch are kept."""
    return torch.float32 if backend["type"] == "mps" else torch.float64


def read_rate_from_device(optimizer: torch.optim.AdamW) -> None:
    """Make the optimiser one that a CUDA graph can hold: its learning rate lies
    on the device, where set_rate writes it.
    """
    for part in optimizer.param_groups:
        part |= {"lr": torch.tensor(0.0, device=part["params"][0].device), "capturable": True}


def set_rate(optimizer: torch.optim.AdamW, rate: float) -> None:
    """Set the learning rate, wherever it lies."""
    for part in optimizer.param_groups:
        if isinstance(part["lr"], Tensor):
            part["lr"].fill_(rate)
        else:
            part["lr"] = rate


def changed(optimizer: torch.optim.AdamW) -> dict[Any, Tensor]:
    """The tensors that a step of the optimiser changes: its parameters, and its state as far as there is one."""
    parameters = [parameter for part in optimizer.param_groups for parameter in part["params"]]
    found: dict[Any, Tensor] = dict(enumerate(parameters))
    for i, parameter in enumerate(parameters):
        found |= {
            (i, name): value for name, value in optimizer.state.get(parameter, {}).items() if isinstance(value, Tensor)
        }
    return found


def as_graph(step: Callable[[], None], changed: Callable[[], dict[Any, Tensor]]) -> Callable[[], None]:
    """``step`` as one CUDA graph; as it is, after a line that says why, where it cannot be captured.

    Args:
        step: works on tensors that stay where they are.
        changed: every tensor that a step changes, by a name; the trial steps are undone in them. What the first step
            makes counts as zero before it.
    """
    before, random = {name: value.detach().clone() for name, value in changed().items()}, torch.cuda.get_rng_state()

    @torch.no_grad()
    def restore() -> None:
        for name, value in changed().items():
            if name in before:
                value.copy_(before[name])
            else:
                value.zero_()
        torch.cuda.set_rng_state(random)

    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(2):  # kernels are compiled and chosen
            step()
    torch.cuda.current_stream().wait_stream(aside)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()  # for the graph, which has memory of its own
    replay = step
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        replay = graph.replay
    except RuntimeError as error:
        print(f"no CUDA graph ({one_line(error, 200)})", flush=True)
    restore()
    return replay
