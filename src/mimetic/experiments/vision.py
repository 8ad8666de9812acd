"""Image classification from scratch: a ViT, an initialization, a data set. One call, ``run(config)``, one record.

    python -m mimetic train cifar10-lab --init timm --seed 0
    python -m mimetic train cifar10-lab --init mimetic --seed 0

cifar10-lab   10,000 class-balanced images of CIFAR-10, ViT of d 96, depth 6, 3 heads, patch 4 (0.68 M parameters),
              20 epochs. Time: about 20 minutes a run on one CPU core that does nothing else.
              Expected test accuracy, seeds 0 and 1: timm 59.9 and 60.0 %, mimetic 64.6 and 63.4 %
digits        scikit-learn's digits (8 x 8 pixels), a ViT of d 64, depth 4, patch 2 (0.20 M parameters), 10 epochs. No
              download; about 15 seconds a run on one CPU core. Expected test accuracy, seed 0: timm 58 %, mimetic
              85 %. A demonstration that everything works, not evidence.

The recipe (AdamW, lr, weight decay, warm-up, crop and flip, label smoothing) is an ordinary one, the same for every
arm, and provisional: no value was tuned, for any arm. Arms of one seed are paired: they see the same images in the same
order with the same augmentation; only the initial weights differ. The initial weights are drawn from a generator of
their own, so two arms with one seed also share every weight that their initializers do not set differently.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from mimetic.training.records import (
    RecordError,
    check_name,
    now,
    read_record,
    record_path,
    source_hash,
    versions,
    write_record,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mimetic.data.images import ImageData

# The files that have a part in the numbers of a run; their hash goes into the record.
SOURCE = (
    "adapters/__init__.py", "adapters/own.py", "attention.py", "construct.py", "data/augment.py", "data/images.py",
    "experiments/vision.py", "initialize.py", "lapack.py", "models/blocks.py", "models/vit.py", "training/loop.py",
)  # fmt: skip
EVALUATION_BATCH = {"cpu": 250}  # on a CPU, what stays in its cache; else 1000
# What may differ between two runs of one named experiment.
_FREE = ("init", "arm", "seed", "device", "threads", "precision", "compile")


@dataclass(frozen=True)
class VisionConfig:
    """A run, completely. Two equal configs give the same record on the same machine."""

    experiment: str  # name of the folder of the records
    init: str = "timm"  # initializer by name: timm, torch, mimetic, mimetic-qk, mimetic-vp
    seed: int = 0  # of the initial weights, the data order and the augmentation (separate generators)
    arm: str = ""  # what the record is called within the experiment; "": the name of the initializer

    # data
    dataset: str = "cifar10"  # cifar10, cifar100, digits
    train_size: int | None = None  # training images, class-balanced and always the same; None: all
    crop_padding: int = 4  # random crop: pixels added on each side; 0: no crop
    padding_mode: str = "reflect"  # reflect, or zero: black
    flip: bool = True  # mirror left and right
    randaugment_ops: int = 0  # RandAugment operations an image; 0: none
    randaugment_magnitude: int = 9  # 0 to 30

    # model
    d_model: int = 192  # width of the tokens
    depth: int = 12  # blocks
    num_heads: int = 3
    mlp_ratio: float = 4.0  # hidden width of the MLP / d_model
    patch_size: int = 4  # pixels
    global_pool: str = "avg"  # avg: average of the patches; token: class token
    pos_embed: str = "sincos2d"  # sincos2d, learned, none

    # training
    epochs: int = 100
    batch_size: int = 128
    lr: float = 1e-3  # peak; AdamW
    weight_decay: float = 0.05
    warmup: float = 0.1  # share of the run, linear; then cosine to 0
    grad_clip: float = 1.0  # largest gradient norm; 0: no clipping
    label_smoothing: float = 0.1

    # machine
    device: str = "auto"  # auto, cpu, cuda, mps
    threads: int = 2  # CPU threads; they change the order of sums, so bit-identical means with equal threads
    precision: str = "auto"  # auto (bfloat16 on cuda), float32, bfloat16
    compile: str = "auto"  # auto (on cuda), on, off

    @property
    def name(self) -> str:
        """experiment/arm-seedN"""
        return f"{self.experiment}/{self.arm or self.init}-seed{self.seed}"


EXPERIMENTS: dict[str, VisionConfig] = {
    "cifar10-lab": VisionConfig(
        "cifar10-lab", dataset="cifar10", train_size=10_000, d_model=96, depth=6, num_heads=3, epochs=20
    ),
    "digits": VisionConfig(
        "digits", dataset="digits", d_model=64, depth=4, num_heads=4, patch_size=2, epochs=10, batch_size=32,
        crop_padding=1, padding_mode="zero", flip=False, threads=1,
    ),
}  # fmt: skip


def named(experiment: str, /, **changes: Any) -> VisionConfig:
    """The config of a named experiment, with some fields changed: ``named("cifar10-lab", init="mimetic", seed=1)``.

    Raises:
        ValueError: unknown experiment or field; the message names the choices.
    """
    if experiment not in EXPERIMENTS:
        raise ValueError(f"experiment must be one of {', '.join(EXPERIMENTS)}, not {experiment!r}")
    known = [f.name for f in fields(VisionConfig)]
    for name in changes:
        if name not in known:
            raise ValueError(f"{name!r} is not a field of VisionConfig; the fields are {', '.join(known)}")
    return replace(EXPERIMENTS[experiment], **changes)


def check(config: VisionConfig, *, store: bool = True) -> None:
    """Raise ValueError, naming the choices, unless ``run`` with these arguments can work; reads no data."""
    from mimetic.data.images import TRAIN_SIZES, check_dataset
    from mimetic.initialize import INITIALIZERS
    from mimetic.training.loop import resolve_device

    check_name("experiment", config.experiment)
    if config.arm:
        check_name("arm", config.arm)
    if config.init not in INITIALIZERS:
        raise ValueError(f"init must be one of {', '.join(INITIALIZERS)}, not {config.init!r}")
    for name, low in (("seed", 0), ("batch_size", 1)):
        value = getattr(config, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            raise ValueError(f"{name} must be a whole number of at least {low}, not {value!r}")
    if not 0 <= config.label_smoothing < 1:
        raise ValueError(f"label_smoothing must be at least 0 and less than 1, not {config.label_smoothing!r}")
    check_dataset(config.dataset, config.train_size)
    images = config.train_size or TRAIN_SIZES[config.dataset]
    if config.batch_size > images:
        raise ValueError(f"batch_size={config.batch_size} is more than the {images} training images")
    _augmentation(config), _train_config(config), _vit_config(config)
    resolve_device(config.device)
    if store:
        _check_named(config)


def run(
    config: VisionConfig,
    *,
    force: bool = False,
    store: bool = True,
    progress: bool = True,
    checkpoint_seconds: float = 30.0,
    time_limit: float | None = None,
) -> dict[str, Any]:
    """The record of ``config``: read if it exists, else trained (from its checkpoint, if there is one) and written.

    Args:
        force: train again from the start, and replace the record.
        store: False for a run that is only looked at: no record and no checkpoint is read or written.
        progress: a progress bar and a line an epoch.
        checkpoint_seconds: how often the state is saved, besides after every epoch.
        time_limit: seconds after which to save and stop with training.loop.TimeLimit.

    Raises:
        ValueError: a bad config; nothing has been computed.
        Unavailable: the data set cannot be had.
        RecordError: a record of this name exists, but it is damaged or has another config.
        CheckpointError: the checkpoint is damaged, has another config or source, or is in use.
    """
    check(config, store=store)
    identity = {"config": _hash(asdict(config)), "source": source_hash(SOURCE)["sha256"]}
    if not store:
        return _train(config, None, identity, progress, checkpoint_seconds, time_limit)
    from mimetic.data.fetch import cache_dir
    from mimetic.training.checkpoint import exclusive, remove_checkpoint

    path = record_path(config.experiment, config.arm or config.init, config.seed)
    checkpoint = cache_dir() / "checkpoints" / f"{config.name}.pt"
    if path.is_file() and not force:
        return _existing(config, path)
    with exclusive(checkpoint):
        if path.is_file() and not force:  # another process has finished it meanwhile
            return _existing(config, path)
        if force:
            remove_checkpoint(checkpoint)
        record = _train(config, checkpoint, identity, progress, checkpoint_seconds, time_limit)
        record = read_record(write_record(record))
        remove_checkpoint(checkpoint)
    return record


class VisionTask:
    """Image classification for the training loop: batches, label-smoothed cross entropy, accuracy on the test set."""

    unit = "images"

    def __init__(self, data: ImageData, config: VisionConfig) -> None:
        import torch

        self.data, self.config = data, config
        self.augment = _augmentation(config)
        self.units_per_step = config.batch_size
        self.steps_per_epoch = len(data.x_train) // config.batch_size  # the rest of an epoch's images is left out
        self._generator = torch.Generator(data.x_train.device)
        self._order: tuple[int, Tensor] | None = None

    def batch(self, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """Images (B, C, Y, X) float32, normalised, and labels (B,): a function of seed, epoch and step only."""
        import torch

        from mimetic.training.loop import derive_seed

        data, size = self.data, self.config.batch_size
        if self._order is None or self._order[0] != epoch:
            # drawn on the CPU: the same order on every device
            generator = torch.Generator().manual_seed(derive_seed(self.config.seed, "order", epoch))
            order = torch.randperm(len(data.x_train), generator=generator)
            self._order = epoch, order.to(data.x_train.device)
        index = self._order[1][step * size : (step + 1) * size]
        self._generator.manual_seed(derive_seed(self.config.seed, "augment", epoch, step))
        return data.normalise(self.augment(data.x_train[index], self._generator)), data.y_train[index]

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross entropy, and the accuracy on the augmented batch."""
        import torch.nn.functional as F

        images, labels = batch
        logits = model(images).float()
        loss = F.cross_entropy(logits, labels, label_smoothing=self.config.label_smoothing)
        return loss, {"accuracy": (logits.argmax(1) == labels).float().mean()}

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Cross entropy (without smoothing) and accuracy on the whole test set."""
        import torch
        import torch.nn.functional as F

        data, loss, correct = self.data, 0.0, 0
        size = EVALUATION_BATCH.get(data.x_test.device.type, 1000)
        parts = zip(data.x_test.split(size), data.y_test.split(size), strict=True)
        for images, labels in parts:
            logits = model(data.normalise(images)).float()
            loss += F.cross_entropy(logits, labels, reduction="sum")
            correct += torch.sum(logits.argmax(1) == labels)
        return {"loss": float(loss) / len(data.y_test), "accuracy": int(correct) / len(data.y_test)}


def build_model(config: VisionConfig) -> nn.Module:
    """The model with its initial weights, on the CPU: a function of the config only."""
    import torch

    from mimetic.initialize import initialize_
    from mimetic.models.vit import ViT
    from mimetic.training.loop import derive_seed

    seed = derive_seed(config.seed, "init")
    with torch.random.fork_rng(devices=[]):  # PyTorch's constructors draw from the global generator
        torch.manual_seed(seed)
        model = ViT(_vit_config(config))
    initialize_(model, config.init, generator=torch.Generator().manual_seed(seed))
    return model


def _train(config, checkpoint, identity, progress, checkpoint_seconds, time_limit) -> dict[str, Any]:
    from mimetic.data.images import load_images
    from mimetic.models.blocks import parameter_counts
    from mimetic.training.loop import resolve_backend, resolve_device, train

    clock, source, settings = monotonic(), source_hash(SOURCE), _train_config(config)
    device = resolve_device(config.device)
    task = VisionTask(load_images(config.dataset, train_size=config.train_size, device=device), config)
    model = build_model(config).to(device)
    setup = {"setup": monotonic() - clock}
    result = train(
        model, task, settings, seed=config.seed, checkpoint=checkpoint, identity=identity, started=now(),
        checkpoint_seconds=checkpoint_seconds, time_limit=time_limit, progress=progress, label=config.name,
    )  # fmt: skip
    seconds = result.seconds | {"total": sum((setup | result.seconds).values())}
    return {
        "schema": 1,
        "experiment": config.experiment,
        "arm": config.arm or config.init,
        "seed": config.seed,
        "config": asdict(config),
        "curve": result.curve,
        "final": result.curve[-1],
        "parameters": parameter_counts(model),
        "throughput": {"unit": task.unit, "per_second": round(result.units_per_second, 1)},
        "seconds": {k: round(v, 2) for k, v in seconds.items()},
        "device": resolve_backend(settings),
        "versions": versions(),
        "source": source,
        "started": result.started,
        "finished": now(),
        "resumed": result.resumed,
    }


def _existing(config: VisionConfig, path: Path) -> dict[str, Any]:
    """The stored record, if it is one of this config."""
    record = read_record(path)
    # a field that is newer than the record had its default's effect then
    stored = {f.name: f.default for f in fields(VisionConfig)} | record["config"]
    differs = [f"{k}: {stored.get(k)!r} there, {v!r} here" for k, v in asdict(config).items() if stored.get(k) != v]
    if differs:
        raise RecordError(
            f"a record {config.name} exists with another config ({'; '.join(differs)}): "
            "choose another experiment or arm, or replace it with force (--force)"
        )
    return record


def _check_named(config: VisionConfig) -> None:
    """A record in the folder of a named experiment must be a run of that experiment."""
    base = EXPERIMENTS.get(config.experiment)
    if base is None:
        return
    differs = [
        f"{f.name}={getattr(config, f.name)!r} (there {getattr(base, f.name)!r})"
        for f in fields(config)
        if f.name not in _FREE and getattr(config, f.name) != getattr(base, f.name)
    ]
    if differs:
        raise ValueError(
            f"{config.experiment} is defined with other values than {', '.join(differs)}: give the run "
            "another experiment name (--experiment), or do not store it (store=False, --no-store)"
        )


def _hash(config: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def _augmentation(config: VisionConfig):
    from mimetic.data.augment import Augmentation

    names = [f.name for f in fields(Augmentation)]
    return Augmentation(**{name: getattr(config, name) for name in names})


def _train_config(config: VisionConfig):
    from mimetic.training.loop import TrainConfig

    names = ("epochs", "lr", "weight_decay", "warmup", "grad_clip", "device", "threads", "precision", "compile")
    return TrainConfig(**{name: getattr(config, name) for name in names})


def _vit_config(config: VisionConfig):
    from mimetic.data.images import IMAGE_SHAPES, NUM_CLASSES
    from mimetic.models.vit import ViTConfig

    channels, size, _ = IMAGE_SHAPES[config.dataset]
    names = ("d_model", "depth", "num_heads", "mlp_ratio", "patch_size", "global_pool", "pos_embed")
    return ViTConfig(
        img_size=size, in_chans=channels, num_classes=NUM_CLASSES[config.dataset],
        **{name: getattr(config, name) for name in names},
    )  # fmt: skip
