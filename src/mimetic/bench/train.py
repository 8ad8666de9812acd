"""How fast training is, against timm's own ingredients on the same batch, model size and list of augmentations.

ours   the data set and its augmentation as tensors on the device, our ViT, bfloat16 as in the config
timm   timm's VisionTransformer of the same size and a DataLoader with timm's transforms, image by image, in the main
       process and in workers, in bfloat16 and, on a CPU, in float32; the fastest of these counts

Images are random pixels: the time does not depend on what they show, and nothing has to be downloaded.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mimetic.data.fetch import Unavailable
from mimetic.data.images import ImageData
from mimetic.experiments.configs import EXPERIMENTS, named
from mimetic.experiments.configs.vision import VisionConfig
from mimetic.experiments.processes import cores
from mimetic.experiments.runs import train_config
from mimetic.experiments.vision import VisionTask, build_model, vit_config
from mimetic.flops import peak as card_peak
from mimetic.flops import total
from mimetic.training.backend import resolve_backend, resolve_device, settings
from mimetic.training.loop import make_optimizer
from mimetic.training.precision import cast, products
from mimetic.training.step import Step

PREFETCH = 2  # batches that a worker of a DataLoader makes ahead, PyTorch's default


class Bench:
    """The model, batch and device of a named vision experiment, with random pixels; a
    context that sets the experiment's threads.

    Raises:
        ValueError: unknown experiment or device, an experiment without images, or steps below 1.
    """

    def __init__(self, experiment: str, steps: int, device: str) -> None:
        if steps < 1:
            raise ValueError(f"steps must be at least 1, not {steps}")
        of_images = [name for name, config in EXPERIMENTS.items() if isinstance(config, VisionConfig)]
        if experiment not in of_images:
            raise ValueError(f"experiment must be one of {', '.join(of_images)}, which have images; not {experiment!r}")
        self.config, self.device, self.steps = named(experiment), resolve_device(device), steps
        self.settings = train_config(self.config)
        self.gpu = self.device.type == "cuda"
        self.backend = resolve_backend(train_config(named(experiment, device=device)))
        self.device_name = self.backend["name"]
        self.vit = vit_config(self.config)
        self.flops = total(self.vit)
        c, v = self.config, self.vit
        self.title = (
            f"{experiment}: batch {c.batch_size}, d {c.d_model}, depth {c.depth}, patch {c.patch_size};"
            f" {self.device_name}, {self.backend['precision']}"
        )
        shape = max(2_000, 4 * c.batch_size), v.in_chans, v.img_size, v.img_size
        self.images = torch.randint(0, 256, shape, dtype=torch.uint8)
        self.labels = torch.randint(0, v.num_classes, (len(self.images),))

    def __enter__(self) -> Bench:
        self._threads = torch.get_num_threads()
        torch.set_num_threads(self.config.threads)
        return self

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self._threads)

    def as_trained(self) -> AbstractContextManager:
        """The settings under which the training loop runs: on a GPU deterministic kernels,
        which timm's ingredients do not ask for.
        """
        return settings(self.settings, self.backend, seed=0)

    def how(self) -> dict[str, str]:
        """What precision our steps have, and in which their matrix products are taken."""
        return {name: self.backend[name] for name in ("precision", "products")}

    def images_per_second(self, step: Callable[[], Any], ready: int = 0) -> float:
        """Of step(), after three calls that do not count, and as many more as there may be batches ready before it asks
        for them; then over at least twice as many."""
        for _ in range(3 + ready):
            step()
        wait(self.device)
        steps = max(self.steps, 2 * ready)
        start = time.perf_counter()
        for _ in range(steps):
            step()
        wait(self.device)
        return steps * self.config.batch_size / (time.perf_counter() - start)

    def our_step(self) -> Callable[[], None]:
        """A training step as training.loop takes it."""
        task, model, forward, optimizer = self.ours
        step = Step(model, forward, task.loss, optimizer, self.config.grad_clip, self.backend, captures=self.gpu)
        numbers = itertools.count()

        def run() -> None:
            with products(self.backend):
                step(task.batch(*divmod(next(numbers), task.steps_per_epoch)), self.config.lr)

        return run

    def our_phases(self) -> dict[str, Callable[[Any], Any]]:
        """A training step in pieces, name -> function of what the one before returned (the first: of anything)."""
        task, model, forward, optimizer = self.ours
        config, numbers = self.config, itertools.count()

        def batch(_: Any) -> Any:
            return task.batch(*divmod(next(numbers), task.steps_per_epoch))

        def loss(made: Any) -> Tensor:
            with cast(self.backend), products(self.backend):
                return task.loss(forward, made)[0]

        def backward(value: Tensor) -> Tensor:
            optimizer.zero_grad(set_to_none=True)
            with products(self.backend):
                value.backward()
            return value.detach()

        def update(value: Tensor) -> Tensor:
            nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
            optimizer.step()
            return value

        return {"batch and augmentation": batch, "forward": loss, "backward": backward, "clipping and update": update}

    @cached_property
    def ours(self) -> tuple[VisionTask, nn.Module, nn.Module, torch.optim.AdamW]:
        """Our task, model, the same as it is called, and optimiser."""
        config, device = self.config, self.device
        x, y = self.images.to(device), self.labels.to(device)
        mean, sd = (torch.full((x.shape[1], 1, 1), value, device=device) for value in (127.0, 64.0))
        names = tuple(map(str, range(self.vit.num_classes)))
        task = VisionTask(ImageData(config.dataset, x, y, x, y, names, mean, sd), config, compiled=self.gpu)
        model = build_model(config).to(device).train()
        forward = torch.compile(model, dynamic=False) if self.gpu else model
        return task, model, forward, make_optimizer(model, self.settings)


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


def bench_train(
    experiment: str = "cifar10-lab30", steps: int = 20, workers: int | None = None, device: str = "auto"
) -> dict[str, Any]:
    """Time training steps of a named experiment, ours and timm's, after a few to warm up; print and return images/s.

    Args:
        experiment: whose model, batch, augmentation and precision.
        steps: timed steps of each.
        workers: worker processes of the DataLoader, besides a measurement with none; None: one on every core but one,
            two at least.
        device: auto, cpu, cuda, mps.

    Returns:
        "precision" and "products", ours (see training.precision), "ours" images/s, "timm" {variant: images/s}, "ratio"
        ours / the fastest of timm's, "flops" of one image forward and backward, "peak" share of the card's bfloat16
        peak (nan where it is not known).

    Raises:
        ValueError: unknown experiment or device, an experiment without images, steps below 1 or workers below 0.
        Unavailable: timm is not installed.
    """
    try:
        import timm  # noqa: F401
    except ImportError:
        raise Unavailable("bench train compares with timm, which is not installed: pip install timm") from None
    workers = max(2, cores()) if workers is None else workers
    if workers < 0:
        raise ValueError(f"workers must be at least 0, not {workers}")
    with Bench(experiment, steps, device) as bench:
        config = bench.config
        with bench.as_trained():
            ours = bench.images_per_second(bench.our_step())
        timms = {}
        for half in (True,) if bench.gpu else (False, True):
            for count in dict.fromkeys((0, workers)):
                name = f"{'bfloat16' if half else 'float32'}, {count} workers"
                with contextlib.closing(_loader(config, bench.images, bench.labels, count)) as batches:
                    timms[name] = bench.images_per_second(_timm_step(bench, batches, half), PREFETCH * count)
    peak = ours * bench.flops / card_peak(bench.device_name)
    best = max(timms, key=timms.get)
    print(bench.title)
    print(f"ours        {ours:8.0f} images/s")
    for name, speed in timms.items():
        print(f"timm        {speed:8.0f} images/s, {name}")
    print(f"ratio       {ours / timms[best]:8.2f} times the fastest of timm's ({best})")
    print(
        f"arithmetic  {bench.flops / 1e9:8.2f} GFLOP an image, forward and backward: {ours * bench.flops / 1e12:.2f}"
        " TFLOP/s" + (f", {peak:.0%} of the peak" if peak == peak else "")
    )
    return {**bench.how(), "ours": ours, "timm": timms, "ratio": ours / timms[best], "flops": bench.flops, "peak": peak}


def _timm_step(bench: Bench, batches: Iterator, bfloat16: bool) -> Callable[[], Tensor]:
    from timm.models.vision_transformer import VisionTransformer

    config, device, v = bench.config, bench.device, bench.vit
    alike = ("img_size", "in_chans", "patch_size", "depth", "num_heads", "mlp_ratio", "num_classes")
    shape = {name: getattr(v, name) for name in alike}
    model = VisionTransformer(**shape, embed_dim=v.d_model, class_token=False, global_pool="avg").to(device)
    forward = torch.compile(model) if bench.gpu else model
    optimizer = make_optimizer(model, bench.settings)

    def step() -> Tensor:
        x, y = next(batches)
        x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            loss = F.cross_entropy(forward(x).float(), y, label_smoothing=config.label_smoothing)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
        optimizer.step()
        return loss.detach()

    return step


class _Pictures(torch.utils.data.Dataset):
    """The images one by one, through transforms that work on PIL images, as timm's loaders do it."""

    def __init__(self, images: Tensor, labels: Tensor, transform) -> None:
        pixels = images.permute(0, 2, 3, 1).numpy()
        self.images = pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels
        self.labels, self.transform = labels, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int):
        from PIL import Image

        return self.transform(Image.fromarray(self.images[i])), int(self.labels[i])


def _loader(config: VisionConfig, images: Tensor, labels: Tensor, workers: int) -> Iterator:
    """Batches without end, augmented as the config says: crop, flip, and timm's RandAugment where ours is on."""
    from timm.data.auto_augment import rand_augment_transform
    from torchvision import transforms as T

    steps: list = []
    if config.crop_padding:
        mode = "reflect" if config.padding_mode == "reflect" else "constant"
        steps.append(T.RandomCrop(images.shape[-1], config.crop_padding, padding_mode=mode))
    if config.flip:
        steps.append(T.RandomHorizontalFlip())
    if config.randaugment_ops:
        steps.append(rand_augment_transform(f"rand-m{config.randaugment_magnitude}-n{config.randaugment_ops}", {}))
    steps += [T.ToTensor(), T.Normalize(0.5, 0.25)]
    pictures = _Pictures(images, labels, T.Compose(steps))
    # one epoch without an end: at the end of each a loader waits for what is on its way, and with few batches an epoch
    # most workers never get one
    endless = torch.utils.data.RandomSampler(pictures, replacement=True, num_samples=2**40)
    yield from torch.utils.data.DataLoader(
        pictures, config.batch_size, sampler=endless, num_workers=workers,
        prefetch_factor=PREFETCH if workers else None, pin_memory=torch.cuda.is_available(),
    )  # fmt: skip
