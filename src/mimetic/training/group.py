"""A training step of many stacked models (models.stacked): what the loop does for one, for each of them at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mimetic.models.stacked import Stacked
from mimetic.training.config import TrainConfig
from mimetic.training.loop import adamw
from mimetic.training.precision import cast
from mimetic.training.step import Captured, sum_dtype

Losses = Callable[[Tensor, Tensor], tuple[Tensor, dict[str, Tensor]]]


class GroupStep(Captured):
    """A step of all models of a stack: forward, backward, clipping, AdamW, and the sums of loss
    and metrics. On a GPU it is a CUDA graph.

    Args:
        stacked: the models.
        losses: of logits (R, ...) and targets (R, ...): each model's loss (R,), and metrics, each (R,).
        metrics: their names.
        settings: of each model; they may differ in the learning rate.
        backend: of backend.resolve_backend.
    """

    def __init__(
        self,
        stacked: Stacked,
        losses: Losses,
        metrics: Sequence[str],
        settings: Sequence[TrainConfig],
        backend: dict[str, Any],
    ) -> None:
        self.stacked, self.losses = stacked, losses
        self.highest = max(settings, key=lambda s: s.lr)
        optimizer = adamw(
            [(name, weight, weight.ndim - 1) for name, weight in zip(stacked.names, stacked.weights, strict=True)],
            self.highest,
        )
        super().__init__(optimizer, backend, captures=backend["type"] == "cuda")
        device = stacked.weights[0].device
        same = all(s.lr == self.highest.lr for s in settings)
        self.rates = None if same else torch.tensor([s.lr / self.highest.lr for s in settings], device=device)
        self.sums = {
            name: torch.zeros(stacked.size, dtype=sum_dtype(backend), device=device) for name in ("loss", *metrics)
        }

    def means(self, steps: int) -> dict[str, list[float]]:
        """The mean of each sum over the steps since the last call, run by run."""
        found = {name: (value / steps).tolist() for name, value in self.sums.items()}
        self.reset()
        return found

    def _run(self, batch: tuple[Tensor, Tensor]) -> None:
        inputs, targets = batch
        with cast(self.backend):
            losses, metrics = self.losses(self.stacked(inputs).float(), targets)
        self.optimizer.zero_grad(set_to_none=True)
        losses.sum().backward()
        if self.highest.grad_clip:
            clip_each_(self.stacked.weights, self.highest.grad_clip)
        step_each_(self.optimizer, self.stacked.weights, self.rates)
        for name, value in {"loss": losses.detach(), **metrics}.items():
            self.sums[name] += value


@torch.no_grad()
def step_each_(optimizer: torch.optim.AdamW, weights: Sequence[Tensor], rates: Tensor | None) -> None:
    """A step in which each model has a learning rate of its own, ``rates`` (R,)
    times the optimiser's; None: all have that.

    AdamW's step, weight decay included, is proportional to the learning rate, and its state does not depend on it.
    """
    if rates is None:
        optimizer.step()
        return
    before = [weight.clone() for weight in weights]
    optimizer.step()
    for weight, old in zip(weights, before, strict=True):
        weight.copy_(torch.lerp(old, weight, rates.view(-1, *[1] * (weight.ndim - 1))))


@torch.no_grad()
def clip_each_(weights: Sequence[Tensor], largest: float) -> None:
    """torch.nn.utils.clip_grad_norm_ of each model: ``weights`` have a leading axis of models."""
    squares = torch.stack([weight.grad.flatten(1).square().sum(1) for weight in weights]).sum(0)
    factor = (largest / (squares.sqrt() + 1e-6)).clamp(max=1.0)
    for weight in weights:
        weight.grad *= factor.view(-1, *[1] * (weight.ndim - 1))
