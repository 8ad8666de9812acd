"""Yardsticks for a text model: what the last character alone predicts, where an untrained
model looks, and how large what it reads is.

    python -m mimetic.experiments.yardsticks      writes data/language/yardsticks.json (needs tiny Shakespeare and
                                                  CIFAR-10)
"""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from mimetic.attention import MimeticWarning
from mimetic.data.fetch import data_dir
from mimetic.data.json_files import write_json
from mimetic.data.text import load_text
from mimetic.experiments import vision
from mimetic.experiments.configs import named
from mimetic.experiments.configs.language import EVERY
from mimetic.experiments.language import build_model
from mimetic.figures.style import LABELS, TEXT_POSITIONS
from mimetic.models.gpt import GPT
from mimetic.models.positions import rotate
from mimetic.scan import attention_layers

# kinds of positions that differ before training: those of GPTConfig.pos_embed without the two that start as some of
# these and are learned
POSITIONS = ("learned", "scaled", "sincos", "shuffled", "centred", "rotary")


def pair_model_bits(dataset: str = "pydoc", validation: bool = False) -> float:
    """Bits per byte of the evaluated text under a table of how often each character follows each other one in the
    training text (add-one smoothing): what can be predicted from the last character alone, without any attention.
    validation: of the last tenth of the training text instead.

    Raises what data.text.load_text raises.
    """
    data = load_text(dataset, validation=validation)
    V = data.vocab_size
    train, test = data.train.long(), data.test.long()
    counts = torch.bincount(train[:-1] * V + train[1:], minlength=V * V).view(V, V).double() + 1
    bits = -(counts / counts.sum(1, keepdim=True)).log2()[test[:-1], test[1:]]
    return float(bits.sum() / data.token_bytes[test[1:]].sum())


def attention_before_training(dataset: str = "pydoc", windows: int = 8) -> pd.DataFrame:
    """How much of its attention a token gives to itself, and how much to itself or an equal token before
    it, in percent, in the first and in the last layer of untrained models (those of "tinyshakespeare",
    seed 0), over windows of the evaluated text.

    Raises what data.text.load_text raises.
    """
    arms = "gpt2", "language", "vision", "qk", "vp", "gpt2-signs", "both-minus", "rescaled", "random-directions"
    rows = {}
    for arm in arms:
        ids_BN, layers = _attention(dataset, arm, "learned", windows)
        row, equal_BNN = {}, ids_BN[:, :, None] == ids_BN[:, None]
        for name, attention_BNN in (("first layer", layers[0]), ("last layer", layers[-1])):
            row[name, "to itself"] = 100 * attention_BNN.diagonal(dim1=1, dim2=2).mean().item()
            row[name, "to itself or its equals"] = 100 * (attention_BNN * equal_BNN).sum(-1).mean().item()
        rows[LABELS[arm]] = row
    return pd.DataFrame.from_dict(rows, orient="index").round(1)


def attention_by_distance(
    dataset: str = "pydoc",
    positions: tuple[str, ...] = POSITIONS,
    arms: tuple[str, ...] = ("gpt2", "vision"),
    farthest: int = 32,
    windows: int = 8,
) -> pd.DataFrame:
    """Where tokens look before training: the share of attention (mean over heads and all layers) that goes so many
    tokens back. Columns positions, arm, back (0: to itself), share; of the tokens in the second half of a window, which
    all have as many before them.

    Raises what data.text.load_text raises; ValueError: farthest is more than half of a window.
    """
    N = named("tinyshakespeare").context
    if not 0 <= farthest <= N // 2:
        raise ValueError(f"farthest must be from 0 to half of the window of {N}, not {farthest!r}")
    frames = []
    for kind in positions:
        for arm in arms:
            _, layers = _attention(dataset, arm, kind, windows)
            mean_NN = torch.stack(layers).mean((0, 1))
            here = torch.arange(N // 2, N)
            shares = [mean_NN[here, here - back].mean().item() for back in range(farthest + 1)]
            frames.append(pd.DataFrame({"positions": kind, "arm": arm, "back": range(farthest + 1), "share": shares}))
    return pd.concat(frames, ignore_index=True)


def stream_before_training(
    dataset: str = "pydoc", positions: tuple[str, ...] = POSITIONS, windows: int = 8
) -> pd.DataFrame:
    """How large what enters the first block is, and what its attention adds to that, before training: root mean squares
    over windows of the evaluated text, a row a kind of positions; and the second in units of the first.

    Raises what data.text.load_text raises.
    """
    rows = {}
    for kind in positions:
        row: dict[tuple[str, str], float] = {}
        for arm in ("gpt2", "vision"):
            ids_BN, model = _untrained(dataset, arm, kind, windows)
            row |= {
                (what, LABELS[arm] if what != "enters" else ""): value
                for what, value in entering(model, model.embed(ids_BN)).items()
            }
        rows[TEXT_POSITIONS[kind]] = row
    table = pd.DataFrame.from_dict(rows, orient="index")
    return table[["enters", "attention adds", "times what enters"]].round(2)


@torch.no_grad()
def entering(model: nn.Module, x_BND: Tensor) -> dict[str, float]:
    """Root mean square of the tokens that enter the first block and of what its attention adds to them, and their
    ratio. model: with blocks.
    """
    block = model.blocks[0]
    enters, adds = (x.square().mean().sqrt().item() for x in (x_BND, block.attn(block.norm1(x_BND))))
    return {"enters": enters, "attention adds": adds, "times what enters": adds / enters}


def _untrained(dataset: str, arm: str, positions: str, windows: int) -> tuple[Tensor, GPT]:
    """Windows of the evaluated text (B, N), and the model of "tinyshakespeare" (seed
    0) with these positions before training.
    """
    data = load_text(dataset)
    config = replace(named("tinyshakespeare"), arm=arm, pos_embed=positions, **EVERY[arm])
    ids_BN = data.test[: windows * config.context].view(windows, config.context).long()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MimeticWarning)  # rotary positions: here it is looked at what they do
        return ids_BN, build_model(config, data.vocab_size).eval()


def _attention(dataset: str, arm: str, positions: str, windows: int) -> tuple[Tensor, list[Tensor]]:
    """Windows of the evaluated text (B, N), and what attention each layer gives them before
    training, mean over heads: (B, N, N) a layer.
    """
    ids_BN, model = _untrained(dataset, arm, positions, windows)
    N, seen, layers = ids_BN.shape[1], [], []
    for block in model.blocks:
        block.attn.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model(ids_BN)
    for block, layer, x_BND in zip(model.blocks, attention_layers(model), seen, strict=True):
        q, k = (rotate(torch.einsum("bnd,dhk->bhnk", x_BND, w), block.attn.rotary) for w in (layer.q, layer.k))
        scores = (q @ k.mT / layer.head_dim**0.5).masked_fill(torch.ones(N, N, dtype=torch.bool).triu(1), -torch.inf)
        layers.append(scores.softmax(-1).mean(1))
    return ids_BN, layers


def yardsticks_path() -> Path:
    return data_dir() / "language" / "yardsticks.json"


def stored_bits(dataset: str, split: str = "test") -> float:
    """pair_model_bits of a corpus, as it was computed and stored; split: test or validation."""
    return json.loads(yardsticks_path().read_text(encoding="utf-8"))["pair_model_bits"][dataset][split]


def stored_entering() -> dict[str, float]:
    """entering of the ViT of "cifar10-lab10" from mimetic initialization, as it was computed and stored."""
    return json.loads(yardsticks_path().read_text(encoding="utf-8"))["entering"]["cifar10-lab10"]


def main() -> None:
    name, images = "tinyshakespeare", named("cifar10-lab10", arm="mimetic", seed=0)
    bits = {split: round(pair_model_bits(name, split == "validation"), 4) for split in ("test", "validation")}
    prepared = vision.prepare(images, torch.device("cpu"))
    seen = entering(prepared.model.eval(), prepared.model.embed(prepared.task.batch(0, 0)[0]))
    found = {
        "pair_model_bits": {name: bits},
        "entering": {images.experiment: {what: round(value, 3) for what, value in seen.items()}},
    }
    write_json(yardsticks_path(), found)
    print(found)


if __name__ == "__main__":
    main()
