"""Image classification from scratch: a ViT, an initialization, a data set.

    python -m mimetic train cifar10-lab30 --init timm --seed 0
    python -m mimetic train cifar10-lab30 --init mimetic --seed 0

What can be run by name, and how long it takes, is in mimetic.experiments.configs.vision. The initial weights are drawn
from a generator of their own, so two arms with one seed share every weight that their initializers do not set
differently; the order of the images and their augmentation follow from the seed alone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mimetic.attention_maps import anatomy
from mimetic.data.augment import Augmentation
from mimetic.data.images import (
    IMAGE_SHAPES,
    NUM_CLASSES,
    SMALLEST_CLASS,
    TEST_SIZES,
    TRAIN_SIZES,
    ImageData,
    balanced_subset,
    check_dataset,
    load_images,
)
from mimetic.experiments.configs.vision import VisionConfig
from mimetic.experiments.metrics import ACCURACY
from mimetic.experiments.runs import COMMON_SOURCE, Prepared, initialized, train_config
from mimetic.models.vit import ViT, ViTConfig
from mimetic.training.backend import derive_seed, resolve_backend

METRIC = ACCURACY
MEAN_OVER_ROWS = True
# The files that have a part in the numbers of a run; their hash goes into the record.
SOURCE = (
    *COMMON_SOURCE,
    "data/augment.py",
    "data/images.py",
    "experiments/vision.py",
    "models/vit.py",
    "training/parallel.py",
)
ANATOMY_IMAGES = 250  # test images whose attention maps are summed up in the record, before and after training
EVALUATION_BATCH = {"cpu": 250}  # on a CPU, what stays in its cache; else 1000


def check(config: VisionConfig) -> None:
    """Raise ValueError, naming the choices, unless the config's data,
    augmentation and model make sense; reads no data.
    """
    if not 0 <= config.label_smoothing < 1:
        raise ValueError(f"label_smoothing must be at least 0 and less than 1, not {config.label_smoothing!r}")
    check_dataset(config.dataset, config.train_size, config.validation)
    images = config.train_size or TRAIN_SIZES[config.dataset]
    if config.batch_size > images:
        raise ValueError(f"batch_size={config.batch_size} is more than the {images} training images")
    if config.epoch_images is not None and config.epoch_images < config.batch_size:
        raise ValueError(f"epoch_images={config.epoch_images} is less than batch_size={config.batch_size}")
    part, classes = config.curve_images, NUM_CLASSES[config.dataset]
    most = config.validation or classes * SMALLEST_CLASS[config.dataset][1]
    if part is not None and (not classes <= part <= most or part % classes):
        raise ValueError(
            f"curve_images must be the same number of each of {classes} classes, at most {most}, not {part}"
        )
    config.part(Augmentation)
    vit_config(config)


def load(config: VisionConfig, device: torch.device) -> ImageData:
    """The config's images on the device."""
    return load_images(config.dataset, train_size=config.train_size, validation=config.validation, device=device)


def bare_model(config: VisionConfig, data: ImageData) -> ViT:
    """The model, its weights not initialised."""
    return ViT(vit_config(config))


def prepare(
    config: VisionConfig, device: torch.device, data: ImageData | None = None, model: ViT | None = None
) -> Prepared:
    """Data on the device (None: what load gives), the model (None: with its initial weights),
    and what the record says of its weights.
    """
    data = data or load(config, device)
    model = model or build_model(config).to(device)
    looked_at = data.normalise(data.x_test[:ANATOMY_IMAGES])
    compiled = resolve_backend(train_config(config))["compiled"]
    images = {name: getattr(data, name) for name in ("x_train", "y_train", "x_test", "y_test")}
    return Prepared(VisionTask(data, config, compiled=compiled), model, lambda model: anatomy(model, looked_at), images)


def cost(config: VisionConfig) -> float:
    """Work of a run: images seen, forward and backward, times multiply-adds an image."""
    d, tokens = config.d_model, (IMAGE_SHAPES[config.dataset][1] // config.patch_size) ** 2
    image = config.depth * tokens * d * ((4 + 2 * config.mlp_ratio) * d + 2 * tokens)
    trained = config.epoch_images or config.train_size or TRAIN_SIZES[config.dataset]
    tests = config.validation or TEST_SIZES[config.dataset]
    evaluated = (config.epochs - 1) * (config.curve_images or tests) + tests
    return image * (3 * trained * config.epochs + evaluated)


class VisionTask:
    """Image classification for the training loop: batches, label-smoothed cross entropy, accuracy on the test set."""

    unit = "images"
    mean_over_rows = MEAN_OVER_ROWS

    def __init__(self, data: ImageData, config: VisionConfig, *, compiled: bool = False) -> None:
        self.data, self.config = data, config
        self.augment = config.part(Augmentation, compiled=compiled)
        self.units_per_step = config.batch_size
        self.steps_per_pass = len(data.x_train) // config.batch_size  # the rest of a pass's images is left out
        self.steps_per_epoch = (config.epoch_images or len(data.x_train)) // config.batch_size
        self._generator = torch.Generator(data.x_train.device)
        self._order: tuple[int, Tensor] | None = None

    def batch(self, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """Images (B, C, Y, X) float32, normalised, and labels (B,): a function of seed, epoch and step only."""
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
        images, labels = batch
        logits = model(images).float()
        loss = F.cross_entropy(logits, labels, label_smoothing=self.config.label_smoothing)
        return loss, {"accuracy": (logits.argmax(1) == labels).float().mean()}

    def evaluate(self, model: nn.Module, last: bool) -> dict[str, float]:
        """Cross entropy (without smoothing) and accuracy on the whole test set;
        before the last epoch on curve_images of it.
        """
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


def build_model(config: VisionConfig) -> ViT:
    """The model with its initial weights, on the CPU: a function of the config only."""
    return initialized(lambda: ViT(vit_config(config)), config)


def vit_config(config: VisionConfig) -> ViTConfig:
    """The shape of the config's model."""
    channels, size, _ = IMAGE_SHAPES[config.dataset]
    return config.part(ViTConfig, img_size=size, in_chans=channels, num_classes=NUM_CLASSES[config.dataset])
