"""Image data sets as tensors on the device: CIFAR-10, CIFAR-100 and scikit-learn's digits through one code path.

CIFAR comes through torchvision (from its original host, its checksum verified) and is kept as one ``cifar10.npz`` or
``cifar100.npz`` in the cache folder. The digits are part of scikit-learn: no download, no file.

Shape suffixes: N images, C channels, Y X pixels.
"""

from __future__ import annotations

import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mimetic.data.fetch import Unavailable, atomic_path, cache_dir, link_or_copy, require_network
from mimetic.messages import check_choice, one_line

DATASETS = ("cifar10", "cifar100", "digits")
# Which images a subset holds must not change with the run: one fixed seed for every run.
SUBSET_SEED = 0
# scikit-learn's digits have no official split; this one is fixed, stratified, and holds 360 of the 1,797 images out.
DIGITS_TEST_SIZE = 360
NUM_CLASSES = {"cifar10": 10, "cifar100": 100, "digits": 10}
TRAIN_SIZES = {"cifar10": 50_000, "cifar100": 50_000, "digits": 1797 - DIGITS_TEST_SIZE}
# training and test images of a data set's smallest class
SMALLEST_CLASS = {"cifar10": (5_000, 1_000), "cifar100": (500, 100), "digits": (139, 35)}
TEST_SIZES = {"cifar10": 10_000, "cifar100": 10_000, "digits": DIGITS_TEST_SIZE}
IMAGE_SHAPES = {"cifar10": (3, 32, 32), "cifar100": (3, 32, 32), "digits": (1, 8, 8)}  # (C, Y, X)

_ARCHIVES = {"cifar10": "cifar-10-python.tar.gz", "cifar100": "cifar-100-python.tar.gz"}  # as their host names them
_KEYS = ("x_train", "y_train", "x_test", "y_test", "classes")
_COUNTS = {"train": 50_000, "test": 10_000}  # both CIFARs


@dataclass(frozen=True)
class ImageData:
    """A data set on a device: pixels stay uint8 until a batch is made of them."""

    name: str
    x_train: Tensor  # (N, C, Y, X) uint8
    y_train: Tensor  # (N,) int64
    x_test: Tensor
    y_test: Tensor
    classes: tuple[str, ...]
    mean: Tensor  # (C, 1, 1) float32, pixels in 0..255, of the training images
    sd: Tensor

    def normalise(self, x_NCYX: Tensor) -> Tensor:
        """uint8 pixels to float32 with mean 0 and standard deviation 1 a channel over the training images."""
        return (x_NCYX.float() - self.mean) / self.sd


def load_images(
    name: str, *, train_size: int | None = None, validation: int = 0, device: str | torch.device = "cpu"
) -> ImageData:
    """A data set on ``device``; fetched first if it is not in the cache.

    Args:
        name: cifar10, cifar100 or digits.
        train_size: number of training images, the same number of each class, always the same images in the same order;
            None for all.
        validation: 0: x_test is the whole test set. Else this many other images of the training set, the same number of
            each class, stand in its place, so that a recipe can be chosen without the test set.
        device: where the tensors live.

    Raises:
        ValueError: unknown name, or sizes that cannot be had.
        Unavailable: it is not in the cache and cannot be fetched, or the cached file is damaged; the message says
            what to do.
    """
    check_dataset(name, train_size, validation)
    arrays = _digits() if name == "digits" else _read(name, fetch_images(name))
    x_train, y_train, x_test, y_test = (arrays[key] for key in _KEYS[:4])
    if train_size is not None and train_size != len(y_train):
        chosen = balanced_subset(y_train, train_size)
        if validation:  # subsets are nested: the larger one without the training images
            held = np.setdiff1d(balanced_subset(y_train, train_size + validation), chosen)
            x_test, y_test = x_train[held], y_train[held]
        x_train, y_train = x_train[chosen], y_train[chosen]
    mean, sd = _channel_statistics(x_train)

    def pixels(x: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2))).to(device)

    return ImageData(
        name,
        x_train=pixels(x_train),
        y_train=torch.from_numpy(y_train).to(device),
        x_test=pixels(x_test),
        y_test=torch.from_numpy(y_test).to(device),
        classes=tuple(str(c) for c in arrays["classes"]),
        mean=torch.tensor(mean, dtype=torch.float32, device=device).view(-1, 1, 1),
        sd=torch.tensor(sd, dtype=torch.float32, device=device).view(-1, 1, 1),
    )


def check_dataset(name: str, train_size: int | None = None, validation: int = 0) -> None:
    """Raise ValueError unless ``load_images`` with these arguments makes sense; reads no data."""
    check_choice("dataset", name, DATASETS)
    classes, largest = NUM_CLASSES[name], TRAIN_SIZES[name]
    left = largest - (train_size or largest)
    if validation and (validation < 0 or validation % classes or validation > left):
        raise ValueError(
            f"validation={validation} must be the same number of each of the {classes} classes, of the {left} images "
            f"that train_size={train_size} leaves"
        )
    if train_size is None:
        return
    if not classes <= train_size <= largest:
        raise ValueError(f"train_size must be from {classes} to {largest} for {name}, not {train_size}")
    if train_size % classes and train_size != largest:
        raise ValueError(f"train_size={train_size} is not the same number of each of the {classes} classes of {name}")
    most = classes * SMALLEST_CLASS[name][0]
    if train_size != largest and train_size + validation > most:
        raise ValueError(
            f"{name} has {most} training images with the same number of each class, not {train_size + validation}; or"
            f" take all {largest}"
        )


def balanced_subset(labels: np.ndarray, size: int) -> np.ndarray:
    """Indices of ``size`` items, the same number of each class, in ascending order; a function of its arguments only.

    Subsets are nested: the 2,000 are among the 10,000.

    Raises:
        ValueError: size is not a multiple of the number of classes, or a class has too few items.
    """
    classes = np.unique(labels)
    each, rest = divmod(size, len(classes))
    if rest:
        raise ValueError(f"{size} is not the same number of each of {len(classes)} classes")
    rng = np.random.Generator(np.random.PCG64(SUBSET_SEED))
    chosen = []
    for c in classes:
        items = np.flatnonzero(labels == c)
        if len(items) < each:
            raise ValueError(f"class {c} has {len(items)} items, {each} are wanted")
        # ranks of uniform numbers rather than rng.permutation: the stream of `random` is frozen by NumPy
        chosen.append(items[np.argsort(rng.random(len(items)), kind="stable")[:each]])
    return np.sort(np.concatenate(chosen))


def fetch_images(name: str) -> Path | None:
    """Make sure that a data set is in the cache; returns its file (None for the digits, which need none).

    An archive of the original host in the cache folder (cifar-10-python.tar.gz, cifar-100-python.tar.gz) is unpacked;
    without one it is downloaded. Its checksum is verified either way.

    Raises:
        ValueError: unknown name.
        Unavailable: it cannot be fetched; the message says what was tried and what to do.
    """
    check_dataset(name)
    if name == "digits":
        return None
    path = cache_dir() / f"{name}.npz"
    if path.is_file():
        return path
    archive = cache_dir() / _ARCHIVES[name]
    remedy = f"Put {archive.name} into {path.parent} (MIMETIC_DATA names another folder), or choose digits: no download"
    try:
        if not archive.is_file():
            require_network(path.name)
        arrays = _from_torchvision(name, archive if archive.is_file() else None)
    except Unavailable as error:
        raise Unavailable(f"{error}. {remedy}") from None
    except Exception as error:  # noqa: BLE001  torchvision raises what urllib, tarfile and its own checksum raise
        tried = f"{path.name} is not there and torchvision could not fetch {name} ({one_line(error)})"
        raise Unavailable(f"{tried}. {remedy}") from None
    with atomic_path(path) as temporary:
        np.savez(temporary, **arrays)
    return path


def _from_torchvision(name: str, archive: Path | None = None) -> dict[str, np.ndarray]:
    """Download (or take the archive that is there), verify (torchvision's MD5)
    and unpack; what is downloaded is not kept.
    """
    import torchvision

    logging.getLogger("torchvision").setLevel(logging.WARNING)
    cls = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}[name]
    cache_dir().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_dir(), prefix=f".{name}-") as folder:
        if archive is not None:
            if not torchvision.datasets.utils.check_integrity(str(archive), cls.tgz_md5):
                raise Unavailable(f"{archive} is not the archive of {name}'s host (its MD5 differs): delete it")
            link_or_copy(archive, Path(folder) / archive.name)
        parts = {split: cls(folder, train=split == "train", download=True) for split in ("train", "test")}
        arrays = {"classes": np.array(parts["train"].classes)}
        for split, part in parts.items():
            arrays[f"x_{split}"] = np.asarray(part.data, dtype=np.uint8)
            arrays[f"y_{split}"] = np.asarray(part.targets, dtype=np.int64)
    return arrays


def _read(name: str, path: Path) -> dict[str, np.ndarray]:
    """The arrays of a cached file, checked; an incomplete or foreign file is refused with its name."""
    advice = "delete it and fetch it again"
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in _KEYS}
    except MemoryError:  # says nothing of the file
        raise
    except Exception as error:  # noqa: BLE001  a damaged file makes zipfile and NumPy raise many kinds
        raise Unavailable(f"{path} is not a whole {name} file ({one_line(error)}): {advice}") from None
    for split, count in _COUNTS.items():
        x, y = arrays[f"x_{split}"], arrays[f"y_{split}"]
        right = x.shape == (count, 32, 32, 3) and x.dtype == np.uint8 and y.shape == (count,) and y.dtype == np.int64
        if (
            not right
            or y.min() < 0
            or (np.bincount(y, minlength=NUM_CLASSES[name]) != count // NUM_CLASSES[name]).any()
        ):
            raise Unavailable(f"{path} does not hold the {split} images and labels of {name}: {advice}")
    if len(arrays["classes"]) != NUM_CLASSES[name]:
        raise Unavailable(f"{path} does not hold the class names of {name}: {advice}")
    return arrays


def _digits() -> dict[str, np.ndarray]:
    """scikit-learn's 1,797 handwritten digits, 8 x 8 grey, 0..16 scaled to 0..255."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    x = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    y = digits.target.astype(np.int64)
    train, test = train_test_split(np.arange(len(y)), test_size=DIGITS_TEST_SIZE, stratify=y, random_state=0)
    return {
        "x_train": x[train], "y_train": y[train], "x_test": x[test], "y_test": y[test],
        "classes": digits.target_names.astype(str),
    }  # fmt: skip


def _channel_statistics(x: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, exactly, from the 256 counts (no float copy of the images)."""
    values = np.arange(256)
    means, sds = [], []
    for c in range(x.shape[-1]):
        counts = np.bincount(x[..., c].ravel(), minlength=256)
        mean = float(counts @ values / counts.sum())
        means.append(mean)
        sds.append(max(float(np.sqrt(counts @ (values - mean) ** 2 / counts.sum())), 1e-6))
    return means, sds
