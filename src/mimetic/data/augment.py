"""Augmentation of whole batches on the device; every image has its own random numbers, all from one generator.

Random crop and flip are one gather. RandAugment (Cubuk et al. 2020) follows ``torchvision.transforms.RandAugment``
operation by operation, but is written so that images of one batch can take different operations: each of the fourteen
is an affine map, a table of 256 values, or a blend with another image.

Shape suffixes: B batch, C channels, Y X pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from mimetic.messages import check_choice, one_line

PADDINGS = ("reflect", "zero")
RANDAUGMENT_OPS = (
    "Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast",
    "Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize",
)  # fmt: skip
_BINS = 31  # magnitudes are 0..30


@dataclass(frozen=True)
class Augmentation:
    """What is done to training images, in this order."""

    crop_padding: int = 0  # pixels added on each side before a crop of the old size; 0: no crop
    padding_mode: str = "reflect"  # "reflect", or "zero": black, as torchvision's RandomCrop
    flip: bool = False  # mirror left and right with probability 1/2
    randaugment_ops: int = 0  # operations an image; 0: no RandAugment
    randaugment_magnitude: int = 9  # 0..30
    compiled: bool = False  # RandAugment through torch.compile: on a GPU a few kernels instead of hundreds

    def __post_init__(self) -> None:
        check_choice("padding_mode", self.padding_mode, PADDINGS)
        if self.crop_padding < 0 or self.randaugment_ops < 0:
            raise ValueError("crop_padding and randaugment_ops must not be negative")
        if not 0 <= self.randaugment_magnitude < _BINS:
            raise ValueError(f"randaugment_magnitude must be from 0 to {_BINS - 1}, not {self.randaugment_magnitude}")

    def __call__(self, x_BCYX: Tensor, generator: torch.Generator) -> Tensor:
        """uint8 images to uint8 images of the same shape. ``generator`` lives on the device of the images."""
        x_BCYX = random_crop_flip(x_BCYX, self.crop_padding, self.padding_mode, self.flip, generator)
        for _ in range(self.randaugment_ops):
            x_BCYX = randaugment_step(x_BCYX, self.randaugment_magnitude, generator, self.compiled)
        return x_BCYX


def random_crop_flip(x_BCYX: Tensor, padding: int, mode: str, flip: bool, generator: torch.Generator) -> Tensor:
    """Shift every image by up to ``padding`` pixels each way and mirror half of them; the shape stays.

    What comes in from outside is the image mirrored at its border pixel ("reflect") or black ("zero").
    """
    if not padding and not flip:
        return x_BCYX
    B, C, Y, X = x_BCYX.shape
    device = x_BCYX.device
    draw = {"generator": generator, "device": device}
    shift = torch.randint(-padding, padding + 1, (2, B, 1), **draw)
    rows, columns = torch.arange(Y, device=device) + shift[0], torch.arange(X, device=device) + shift[1]
    if flip:
        mirrored = torch.randint(0, 2, (B, 1), **draw).bool()
        columns = torch.where(mirrored, columns.flip(1), columns)
    rows_in, columns_in = _reflect(rows, Y), _reflect(columns, X)
    index = rows_in[:, :, None] * X + columns_in[:, None, :]  # (B, Y, X) into the flat pixels
    out = x_BCYX.flatten(2).gather(2, index.view(B, 1, Y * X).expand(B, C, Y * X)).view(B, C, Y, X)
    if mode == "zero":
        inside = ((rows == rows_in)[:, :, None] & (columns == columns_in)[:, None, :])[:, None]
        out = out * inside
    return out


def _reflect(index: Tensor, size: int) -> Tensor:
    """Indices outside 0..size-1 mirrored back in, the border itself not repeated: -1 -> 1, size -> size - 2."""
    period = max(2 * (size - 1), 1)
    index = index.remainder(period)
    return torch.where(index >= size, period - index, index)


def randaugment_step(x_BCYX: Tensor, magnitude: int, generator: torch.Generator, compiled: bool = False) -> Tensor:
    """One operation, drawn for every image on its own, with the sign of its magnitude."""
    B, device = len(x_BCYX), x_BCYX.device
    op = torch.randint(len(RANDAUGMENT_OPS), (B,), generator=generator, device=device)
    sign = torch.randint(0, 2, (B,), generator=generator, device=device).float() * 2 - 1
    return (_compiled_ops() if compiled else apply_ops)(x_BCYX, op, sign, magnitude)


@cache
def _compiled_ops() -> Callable[[Tensor, Tensor, Tensor, int], Tensor]:
    """apply_ops through torch.compile; as it is, and a line that says so, where it cannot be compiled."""
    compiled = torch.compile(apply_ops, dynamic=False, fullgraph=True)

    def ops(*arguments) -> Tensor:
        nonlocal compiled
        try:
            return compiled(*arguments)
        except Exception as error:  # a compiler has errors of many types
            if compiled is apply_ops or isinstance(error, torch.OutOfMemoryError):
                raise
            print(f"RandAugment is not compiled ({type(error).__name__}: {one_line(error, 200)})", flush=True)
            compiled = apply_ops
            return apply_ops(*arguments)

    return ops


def apply_ops(x_BCYX: Tensor, op_B: Tensor, sign_B: Tensor, magnitude: int) -> Tensor:
    """``RANDAUGMENT_OPS[op]`` on each uint8 image, at ``magnitude`` 0..30 in the direction of ``sign`` (+-1).

    As torchvision's at the usual magnitude, 9; at others a pixel may be one grey level off where Brightness, Color or
    Sharpness round (20 % of the pixels at 20).
    """
    is_op = {name: op_B == i for i, name in enumerate(RANDAUGMENT_OPS)}
    x = _affine(x_BCYX, is_op, sign_B, magnitude)
    x = _lookup(x, is_op, sign_B, magnitude)
    return _blend(x, is_op, sign_B, magnitude)


def magnitudes(magnitude: int, height: int, width: int) -> dict[str, float]:
    """The size of each operation at a magnitude of 0..30, in its own unit (torchvision's ranges)."""
    m = magnitude / (_BINS - 1)
    colour = 0.9 * m
    return {
        "ShearX": 0.3 * m, "ShearY": 0.3 * m,
        "TranslateX": int(150 / 331 * width * m), "TranslateY": int(150 / 331 * height * m),  # pixels
        "Rotate": 30 * m,  # degrees
        "Brightness": colour, "Color": colour, "Contrast": colour, "Sharpness": colour,
        "Posterize": 8 - round(4 * m),  # bits kept
        "Solarize": 255 * (1 - m),  # pixels from here on are inverted
    }  # fmt: skip


def _affine(x_BCYX: Tensor, is_op: dict[str, Tensor], sign_B: Tensor, magnitude: int) -> Tensor:
    """Shear (about the top left corner), shift and rotation (about the centre), nearest pixel, black outside."""
    B, C, Y, X = x_BCYX.shape
    size = magnitudes(magnitude, Y, X)
    # Output pixel (x, y), measured from the image's centre, takes the input pixel theta @ (x, y, 1).
    theta = torch.zeros(B, 2, 3, device=x_BCYX.device)
    angle = torch.where(is_op["Rotate"], sign_B * math.radians(size["Rotate"]), 0.0)
    theta[:, 0, 0] = theta[:, 1, 1] = angle.cos()
    shear_x = torch.where(is_op["ShearX"], sign_B * size["ShearX"], 0.0)
    shear_y = torch.where(is_op["ShearY"], sign_B * size["ShearY"], 0.0)
    theta[:, 0, 1] = shear_x - angle.sin()
    theta[:, 1, 0] = shear_y + angle.sin()
    theta[:, 0, 2] = shear_x * (Y / 2) - torch.where(is_op["TranslateX"], sign_B * size["TranslateX"], 0.0)
    theta[:, 1, 2] = shear_y * (X / 2) - torch.where(is_op["TranslateY"], sign_B * size["TranslateY"], 0.0)
    ys = torch.arange(Y, device=x_BCYX.device) - (Y - 1) / 2
    xs = torch.arange(X, device=x_BCYX.device) - (X - 1) / 2
    points = torch.stack([xs.repeat(Y), ys.repeat_interleave(X), torch.ones(Y * X, device=x_BCYX.device)])
    source = (theta @ points).transpose(1, 2).view(B, Y, X, 2)
    # two numbers made into a tensor here would be copied to a GPU, which waits for all it has to do
    grid = torch.stack([source[..., 0] / (X / 2), source[..., 1] / (Y / 2)], dim=-1)
    moved = F.grid_sample(x_BCYX.float(), grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return moved.to(torch.uint8)


def _lookup(x_BCYX: Tensor, is_op: dict[str, Tensor], sign_B: Tensor, magnitude: int) -> Tensor:
    """The operations that send each pixel value to another: one table of 256 values an image and channel."""
    B, C, Y, X = x_BCYX.shape
    size = magnitudes(magnitude, Y, X)
    flat = x_BCYX.flatten(2).long()
    value = torch.arange(256.0, device=x_BCYX.device).expand(B, C, 256)

    def where(name: str, new: Tensor, old: Tensor) -> Tensor:
        return torch.where(is_op[name].view(B, 1, 1), new, old)

    def factor(name: str) -> Tensor:
        return (1 + sign_B * size[name]).view(B, 1, 1)

    grey = _grey(x_BCYX).mean(dim=(2, 3))[:, :, None]
    table = where("Brightness", (factor("Brightness") * value).clamp(0, 255), value)
    table = where("Contrast", (factor("Contrast") * value + (1 - factor("Contrast")) * grey).clamp(0, 255), table)
    step = 2 ** (8 - size["Posterize"])
    table = where("Posterize", (value / step).floor() * step, table)
    table = where("Solarize", torch.where(value >= size["Solarize"], 255 - value, value), table)

    low, high = flat.amin(2, keepdim=True).float(), flat.amax(2, keepdim=True).float()
    stretched = ((value - low) * (255 / (high - low).clamp(min=1))).clamp(0, 255)
    table = where("AutoContrast", torch.where(high > low, stretched, value), table)

    # number of darker pixels, by sorting: a histogram by scatter_add_ is many times slower where PyTorch must be
    # deterministic
    levels = torch.arange(256, dtype=torch.uint8, device=x_BCYX.device).expand(B, C, 256).contiguous()
    before = torch.searchsorted(x_BCYX.flatten(2).sort(2).values, levels)
    step = before.gather(2, high.long()) // 255  # pixels below the brightest value, spread over the range
    even = ((before + step // 2) // step.clamp(min=1)).clamp(0, 255).float()
    even[..., 0] = 0
    table = where("Equalize", torch.where(step > 0, even, value), table)
    return table.to(torch.uint8).gather(2, flat).view(B, C, Y, X)


def _blend(x_BCYX: Tensor, is_op: dict[str, Tensor], sign_B: Tensor, magnitude: int) -> Tensor:
    """Colour (blend with the grey image) and sharpness (blend with the smoothed image)."""
    B, C, Y, X = x_BCYX.shape
    size = magnitudes(magnitude, Y, X)
    image = x_BCYX.float()
    # the mean of 3 x 3 pixels, the middle one counted five times; sums of whole numbers, so in any order the same
    rows = image[:, :, :-2] + image[:, :, 1:-1] + image[:, :, 2:]
    middle = image[:, :, 1:-1, 1:-1]
    smooth = image.clone()  # the border stays as it is
    smooth[:, :, 1:-1, 1:-1] = ((rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * middle) / 13).round()
    colour, sharpness = (is_op[name].view(B, 1, 1, 1) for name in ("Color", "Sharpness"))
    if C == 1:
        colour = torch.zeros_like(colour)  # grey stays grey
    other = torch.where(colour, _grey(x_BCYX), torch.where(sharpness, smooth, image))
    ratio = (1 + sign_B * size["Color"]).view(B, 1, 1, 1)
    blended = (ratio * image + (1 - ratio) * other).clamp(0, 255).to(torch.uint8)
    return torch.where(colour | sharpness, blended, x_BCYX)


def _grey(x_BCYX: Tensor) -> Tensor:
    """Luminance (ITU-R 601), whole numbers as float32, (B, 1, Y, X)."""
    if x_BCYX.shape[1] != 3:
        return x_BCYX[:, :1].float()
    red, green, blue = x_BCYX.float().unbind(1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue).floor()[:, None]
