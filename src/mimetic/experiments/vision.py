"""Image classification from scratch: a ViT, an initialization, a data set. One call, ``run(config)``, one record.

    python -m mimetic train cifar10-lab30 --init timm --seed 0
    python -m mimetic train cifar10-lab30 --init mimetic --seed 0

What can be run by name, and how long it takes, is in mimetic.experiments.configs. The initial weights are drawn from a
generator of their own, so two arms with one seed share every weight that their initializers do not set differently; the
order of the images and their augmentation follow from the seed alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, fields
from time import monotonic
from typing import TYPE_CHECKING, Any

from mimetic.experiments.configs import VisionConfig, check_named, with_arm
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
    "experiments/vision.py", "initialize.py", "initializers.py", "lapack.py", "models/blocks.py", "models/vit.py",
    "training/loop.py",
)  # fmt: skip
ANATOMY_IMAGES = 250  # test images whose attention maps are summed up in the record, before and after training
EVALUATION_BATCH = {"cpu": 250}  # on a CPU, what stays in its cache; else 1000


def check(config: VisionConfig, *, store: bool = True) -> None:
    """Raise ValueError, naming the choices, unless ``run`` with these arguments can work; reads no data."""
    from mimetic.data.images import NUM_CLASSES, TEST_SIZES, TRAIN_SIZES, check_dataset
    from mimetic.initializers import INITIALIZERS
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
    check_dataset(config.dataset, config.train_size, config.validation)
    images = config.train_size or TRAIN_SIZES[config.dataset]
    if config.batch_size > images:
        raise ValueError(f"batch_size={config.batch_size} is more than the {images} training images")
    if config.epoch_images is not None and config.epoch_images < config.batch_size:
        raise ValueError(f"epoch_images={config.epoch_images} is less than batch_size={config.batch_size}")
    tests, classes = config.validation or TEST_SIZES[config.dataset], NUM_CLASSES[config.dataset]
    part = config.curve_images
    if part is not None and (not classes <= part <= tests or part % classes):
        raise ValueError(f"curve_images must be the same number of each of {classes} classes, at most {tests}, not {part}")
    _spec(config)
    _augmentation(config), _train_config(config), _vit_config(config)
    resolve_device(config.device)
    if store:
        check_named(config)


def run(
    config: VisionConfig,
    *,
    force: bool = False,
    store: bool = True,
    progress: bool = True,
    checkpoint_seconds: float = 30.0,
    time_limit: float | None = None,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
) -> dict[str, Any]:
    """The record of ``config``: read if it exists, else trained (from its checkpoint, if there is one) and written.

    Args:
        force: train again from the start, and replace the record.
        store: False for a run that is only looked at: no record and no checkpoint is read or written.
        progress: a progress bar and a line an epoch.
        checkpoint_seconds: how often the state is saved, besides after every epoch.
        time_limit: seconds after which to save and stop with training.loop.TimeLimit.
        on_epoch: called with the entry of the curve after every epoch.

    Raises:
        ValueError: a bad config; nothing has been computed.
        Unavailable: the data set cannot be had.
        RecordError: a record of this name exists, but it is damaged or has another config.
        CheckpointError: the checkpoint is damaged, has another config or source, or is in use.
    """
    config = with_arm(config)
    check(config, store=store)
    identity = {"config": _hash(asdict(config)), "source": source_hash(SOURCE)["sha256"]}
    options = {
        "progress": progress, "checkpoint_seconds": checkpoint_seconds, "time_limit": time_limit, "on_epoch": on_epoch,
    }  # fmt: skip
    if not store:
        return _train(config, None, identity, options)
    from mimetic.data.fetch import cache_dir
    from mimetic.training.checkpoint import exclusive, remove_checkpoint

    checkpoint = cache_dir() / "checkpoints" / f"{config.name}.pt"
    if not force and (record := existing(config)):
        return record
    with exclusive(checkpoint):
        if not force and (record := existing(config)):  # another process has finished it meanwhile
            return record
        if force:
            remove_checkpoint(checkpoint)
        record = _train(config, checkpoint, identity, options)
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
        self.steps_per_pass = len(data.x_train) // config.batch_size  # the rest of a pass's images is left out
        self.steps_per_epoch = (config.epoch_images or len(data.x_train)) // config.batch_size
        self._generator = torch.Generator(data.x_train.device)
        self._order: tuple[int, Tensor] | None = None

    def batch(self, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """Images (B, C, Y, X) float32, normalised, and labels (B,): a function of seed, epoch and step only."""
        import torch

        from mimetic.training.loop import derive_seed

        data, size = self.data, self.config.batch_size
        # an epoch is a pass over the images unless epoch_images says otherwise
        turn, place = divmod(epoch * self.steps_per_epoch + step, self.steps_per_pass)
        if self._order is None or self._order[0] != turn:
            # drawn on the CPU: the same order on every device
            generator = torch.Generator().manual_seed(derive_seed(self.config.seed, "order", turn))
            order = torch.randperm(len(data.x_train), generator=generator)
            self._order = turn, order.to(data.x_train.device)
        index = self._order[1][place * size : (place + 1) * size]
        self._generator.manual_seed(derive_seed(self.config.seed, "augment", epoch, step))
        return data.normalise(self.augment(data.x_train[index], self._generator)), data.y_train[index]

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross entropy, and the accuracy on the augmented batch."""
        import torch.nn.functional as F

        images, labels = batch
        logits = model(images).float()
        loss = F.cross_entropy(logits, labels, label_smoothing=self.config.label_smoothing)
        return loss, {"accuracy": (logits.argmax(1) == labels).float().mean()}

    def evaluate(self, model: nn.Module, last: bool) -> dict[str, float]:
        """Cross entropy (without smoothing) and accuracy on the whole test set; before the last epoch on curve_images of it."""
        import torch
        import torch.nn.functional as F

        from mimetic.data.images import balanced_subset

        data, loss, correct, part = self.data, 0.0, 0, self.config.curve_images
        x, y = data.x_test, data.y_test
        if part and not last:
            chosen = torch.from_numpy(balanced_subset(y.cpu().numpy(), part)).to(y.device)
            x, y = x[chosen], y[chosen]
        size = EVALUATION_BATCH.get(x.device.type, 1000)
        for images, labels in zip(x.split(size), y.split(size), strict=True):
            logits = model(data.normalise(images)).float()
            loss += F.cross_entropy(logits, labels, reduction="sum")
            correct += torch.sum(logits.argmax(1) == labels)
        return {"loss": float(loss) / len(y), "accuracy": int(correct) / len(y)}


def build_model(config: VisionConfig) -> nn.Module:
    """The model with its initial weights, on the CPU: a function of the config only."""
    import torch

    from mimetic.initializers import initialize_
    from mimetic.models.vit import ViT
    from mimetic.training.loop import derive_seed

    seed = derive_seed(config.seed, "init")
    with torch.random.fork_rng(devices=[]):  # PyTorch's constructors draw from the global generator
        torch.manual_seed(seed)
        model = ViT(_vit_config(config))
    generator = torch.Generator().manual_seed(seed)
    initialize_(model, config.init, spec=_spec(config), qk_rank=config.qk_rank, generator=generator)
    return model


def _train(config, checkpoint, identity, options) -> dict[str, Any]:
    from mimetic.attention_maps import anatomy
    from mimetic.data.images import load_images
    from mimetic.models.blocks import parameter_counts
    from mimetic.training.loop import resolve_backend, resolve_device, train

    clock, source, settings = monotonic(), source_hash(SOURCE), _train_config(config)
    device = resolve_device(config.device)
    data = load_images(config.dataset, train_size=config.train_size, validation=config.validation, device=device)
    task = VisionTask(data, config)
    model = build_model(config).to(device)
    looked_at = data.normalise(data.x_test[:ANATOMY_IMAGES])
    before = anatomy(model, looked_at)
    setup = {"setup": monotonic() - clock}
    result = train(
        model, task, settings, seed=config.seed, checkpoint=checkpoint, identity=identity, started=now(),
        label=config.name, **options,
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
        "anatomy": {"before": before, "after": anatomy(model, looked_at)},
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


def existing(config: VisionConfig) -> dict[str, Any] | None:
    """The stored record of the run, None if there is none.

    Raises:
        RecordError: it is damaged, or a run of another config has this name.
    """
    path = record_path(config.experiment, config.arm or config.init, config.seed)
    if not path.is_file():
        return None
    record = read_record(path)
    # a field that is newer than the record had its default's effect then
    stored = {f.name: f.default for f in fields(VisionConfig)} | record["config"]
    wanted = json.loads(json.dumps(asdict(config)))  # tuples are lists in a record
    differs = [f"{k}: {stored.get(k)!r} there, {v!r} here" for k, v in wanted.items() if stored.get(k) != v]
    if differs:
        raise RecordError(
            f"a record {config.name} exists with another config ({'; '.join(differs)}): "
            "choose another experiment or arm, or replace it with force (--force)"
        )
    return record


def _hash(config: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def _spec(config: VisionConfig):
    from mimetic.initialize import MimeticSpec

    spec = MimeticSpec(**{name: getattr(config, name) for name in MimeticSpec.constants()})
    spec.layer(0, config.depth)  # raises if there is not one value a layer
    return spec


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
