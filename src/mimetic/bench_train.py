"""How fast training is, against timm's own ingredients on the same batch, model size and list of augmentations.

ours   the data set and its augmentation as tensors on the device, our ViT, bfloat16 as in the config
timm   timm's VisionTransformer of the same size and a DataLoader with timm's transforms, image by image, in the main
       process and in workers, in float32 and in bfloat16; the fastest of these counts

Images are random pixels: the time does not depend on what they show, and nothing has to be downloaded.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mimetic.experiments.configs import named
from mimetic.experiments.configs.vision import VisionConfig
from mimetic.flops import peak as card_peak
from mimetic.flops import total


def bench_train(experiment: str = "cifar10-lab30", steps: int = 20, workers: int = 2, device: str = "auto") -> dict[str, Any]:
    """Time training steps of a named experiment, ours and timm's, after a few to warm up; print and return images/s.

    Args:
        experiment: whose model, batch, augmentation and precision.
        steps: timed steps of each.
        workers: worker processes of the DataLoader, besides a measurement with none.
        device: auto, cpu, cuda, mps.

    Returns:
        "ours" images/s, "timm" {variant: images/s}, "ratio" ours / the fastest of timm's, "flops" of one image forward and
        backward, "peak" share of the card's bfloat16 peak (nan where it is not known).

    Raises:
        ValueError: unknown experiment or device, or steps below 1.
        Unavailable: timm is not installed.
    """
    from mimetic.data.fetch import Unavailable
    from mimetic.experiments.vision import vit_config
    from mimetic.training.loop import resolve_device

    try:
        import timm  # noqa: F401
    except ImportError:
        raise Unavailable("bench train compares with timm, which is not installed: pip install timm") from None
    if steps < 1 or workers < 0:
        raise ValueError(f"steps must be at least 1 and workers at least 0, not {steps} and {workers}")
    config, where = named(experiment), resolve_device(device)
    images = torch.randint(0, 256, (max(2_000, 4 * config.batch_size), 3, 32, 32), dtype=torch.uint8)
    labels = torch.randint(0, 10, (len(images),))
    gpu = where.type == "cuda"
    bfloat16 = config.precision == "bfloat16" or (gpu and config.precision == "auto")
    threads = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        ours = _time(_our_step(config, images, labels, where, bfloat16), config.batch_size, steps, where)
        timms = {}
        for half in (False, True):
            for count in dict.fromkeys((0, workers)):
                name = f"{'bfloat16' if half else 'float32'}, {count} workers"
                with contextlib.closing(_loader(config, images, labels, count)) as batches:
                    step = _timm_step(config, batches, where, half)
                    timms[name] = _time(step, config.batch_size, steps, where)
    finally:
        torch.set_num_threads(threads)
    flops = total(vit_config(config))
    peak = card_peak(torch.cuda.get_device_name(where)) if gpu else float("nan")
    best = max(timms, key=timms.get)
    print(f"{experiment}: batch {config.batch_size}, d {config.d_model}, depth {config.depth}, patch {config.patch_size}, on {where}")
    print(f"ours        {ours:8.0f} images/s, {'bfloat16' if bfloat16 else 'float32'}")
    for name, speed in timms.items():
        print(f"timm        {speed:8.0f} images/s, {name}")
    print(f"ratio       {ours / timms[best]:8.2f} times the fastest of timm's ({best})")
    print(f"arithmetic  {flops / 1e9:8.2f} GFLOP an image, forward and backward: {ours * flops / 1e12:.2f} TFLOP/s"
          + (f", {ours * flops / peak:.0%} of the peak" if peak == peak else ""))  # fmt: skip
    return {"ours": ours, "timm": timms, "ratio": ours / timms[best], "flops": flops, "peak": ours * flops / peak}


def _time(step: Callable[[], Tensor], batch: int, steps: int, device: torch.device) -> float:
    """Images per second of step(), after three calls that do not count."""
    for _ in range(3):
        step()
    _wait(device)
    start = time.perf_counter()
    for _ in range(steps):
        step()
    _wait(device)
    return steps * batch / (time.perf_counter() - start)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _our_step(config: VisionConfig, images: Tensor, labels: Tensor, device: torch.device, bfloat16: bool) -> Callable[[], Tensor]:
    from mimetic.data.images import ImageData
    from mimetic.experiments.runs import train_config
    from mimetic.experiments.vision import VisionTask, build_model
    from mimetic.training.loop import make_optimizer

    x, y = images.to(device), labels.to(device)
    mean, sd = torch.full((3, 1, 1), 127.0, device=device), torch.full((3, 1, 1), 64.0, device=device)
    task = VisionTask(ImageData(config.dataset, x, y, x, y, tuple("0123456789"), mean, sd), config)
    model = build_model(config).to(device).train()
    forward = torch.compile(model) if device.type == "cuda" else model
    optimizer = make_optimizer(model, train_config(config))
    done = 0

    def step() -> Tensor:
        nonlocal done
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            loss, _ = task.loss(forward, task.batch(*divmod(done, task.steps_per_epoch)))
        done += 1
        return _update(model, optimizer, loss, config)

    return step


def _timm_step(config: VisionConfig, batches: Iterator, device: torch.device, bfloat16: bool) -> Callable[[], Tensor]:
    from timm.models.vision_transformer import VisionTransformer

    from mimetic.experiments.runs import train_config
    from mimetic.training.loop import make_optimizer

    model = VisionTransformer(
        img_size=32, patch_size=config.patch_size, embed_dim=config.d_model, depth=config.depth, num_heads=config.num_heads,
        mlp_ratio=config.mlp_ratio, num_classes=10, class_token=False, global_pool="avg",
    ).to(device)  # fmt: skip
    forward = torch.compile(model) if device.type == "cuda" else model
    optimizer = make_optimizer(model, train_config(config))

    def step() -> Tensor:
        x, y = next(batches)
        x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            loss = F.cross_entropy(forward(x).float(), y, label_smoothing=config.label_smoothing)
        return _update(model, optimizer, loss, config)

    return step


def _update(model: nn.Module, optimizer, loss: Tensor, config: VisionConfig) -> Tensor:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
    optimizer.step()
    return loss.detach()


class _Pictures(torch.utils.data.Dataset):
    """The images one by one, through transforms that work on PIL images, as timm's loaders do it."""

    def __init__(self, images: Tensor, labels: Tensor, transform) -> None:
        self.images, self.labels, self.transform = images.permute(0, 2, 3, 1).numpy(), labels, transform

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
        steps.append(T.RandomCrop(32, config.crop_padding, padding_mode="reflect" if config.padding_mode == "reflect" else "constant"))
    if config.flip:
        steps.append(T.RandomHorizontalFlip())
    if config.randaugment_ops:
        steps.append(rand_augment_transform(f"rand-m{config.randaugment_magnitude}-n{config.randaugment_ops}", {}))
    steps += [T.ToTensor(), T.Normalize((0.5,) * 3, (0.25,) * 3)]
    loader = torch.utils.data.DataLoader(
        _Pictures(images, labels, T.Compose(steps)), config.batch_size, shuffle=True, drop_last=True, num_workers=workers,
        persistent_workers=workers > 0,
    )  # fmt: skip
    while True:
        yield from loader
