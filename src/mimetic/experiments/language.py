"""Language modelling from scratch: a GPT, an initialization, a corpus.

    python -m mimetic train tinyshakespeare --init gpt2 --seed 0
    python -m mimetic train tinyshakespeare --arm language --seed 0

What can be run by name, and how long it takes, is in mimetic.experiments.configs.language. Runs are judged by bits per
byte of the evaluated text: cross entropy over all its tokens divided by the number of its bytes, which makes tokenizers
comparable. The text is read in windows of the context's length that do not overlap, so a token is predicted from what
stands before it in its window, and only the very first token of the text is not predicted. After the last epoch that is
the whole text.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mimetic.attention_maps import product_table
from mimetic.data.text import CORPORA, HELD_OUT, TextData, check_text, load_text
from mimetic.experiments.configs.language import LanguageConfig
from mimetic.experiments.metrics import Metric
from mimetic.experiments.runs import COMMON_SOURCE, Prepared, initialized
from mimetic.messages import check_whole
from mimetic.models.gpt import GPT, GPTConfig, generate
from mimetic.training.backend import derive_seed

METRIC = Metric("test_bits_per_byte", "validation bits per byte", "", "bits per byte", digits=3, lower_is_better=True)
MEAN_OVER_ROWS = True
# The files that have a part in the numbers of a run; their hash goes into the record.
SOURCE = (*COMMON_SOURCE, "data/text.py", "experiments/language.py", "models/gpt.py", "training/parallel.py")
EVALUATION_TOKENS = {"cpu": 2048}  # tokens of an evaluation batch; else 32,768
PROMPT_TOKENS, SAMPLE_TOKENS, SAMPLE_SEED = 32, 200, 0  # the sample of text in the record


def check(config: LanguageConfig) -> None:
    """Raise ValueError, naming the choices, unless the config's data and model make sense; reads no data."""
    check_text(config.dataset, config.tokenizer, config.vocab_size)
    if not isinstance(config.validation, bool):
        raise ValueError(f"validation must be one of True, False, not {config.validation!r}")
    check_whole("steps_per_epoch", config.steps_per_epoch)
    if config.curve_tokens is not None:
        check_whole("curve_tokens", config.curve_tokens, otherwise=", or None")
    config.part(GPTConfig, vocab_size=max(config.vocab_size, 1))
    # a token is at least a byte, so no text has more tokens than bytes; the exact number is known once the text is read
    corpus = CORPORA[config.dataset]
    known = (corpus.train_characters or 0) * HELD_OUT if config.validation else corpus.test_bytes
    if known:
        _check_context(config, min(known, corpus.train_characters or known))


def load(config: LanguageConfig, device: torch.device) -> TextData:
    """The config's text on the device."""
    return load_text(
        config.dataset, tokenizer=config.tokenizer, vocab_size=config.vocab_size, validation=config.validation,
        device=device,
    )  # fmt: skip


def bare_model(config: LanguageConfig, data: TextData) -> GPT:
    """The model, its weights not initialised."""
    return GPT(config.part(GPTConfig, vocab_size=data.vocab_size))


def prepare(
    config: LanguageConfig, device: torch.device, data: TextData | None = None, model: GPT | None = None
) -> Prepared:
    """Text on the device (None: what load gives), the model (None: with its initial weights),
    and what the record says of its weights.

    Raises:
        ValueError: the text is shorter than the context.
    """
    data = data or load(config, device)
    _check_context(config, min(len(data.train), len(data.test)))
    model = model or build_model(config, data.vocab_size).to(device)
    task = LanguageTask(data, config)
    text = {"train": data.train, "test": data.test, "token_bytes": data.token_bytes}
    return Prepared(task, model, lambda model: anatomy(model, data), text, task.cases)


def cost(config: LanguageConfig) -> float:
    """Work of a run: tokens seen, forward and backward, times multiply-adds a token;
    evaluation with three bytes a token of a BPE.
    """
    d = config.d_model
    token = config.depth * d * ((4 + 2 * config.mlp_ratio) * d + 2 * config.context) + max(config.vocab_size, 100) * d
    tests = (CORPORA[config.dataset].test_bytes or 50_000) / (
        1 if config.tokenizer == "char" or config.vocab_size < 400 else 3
    )
    evaluated = tests + (config.epochs - 1) * (config.curve_tokens or tests)
    return token * (3 * config.epochs * config.steps_per_epoch * config.batch_size * config.context + evaluated)


class LanguageTask:
    """Next-token prediction for the training loop: windows from random places, cross entropy, bits per byte."""

    unit = "tokens"
    mean_over_rows = MEAN_OVER_ROWS

    def __init__(self, data: TextData, config: LanguageConfig) -> None:
        self.data, self.config = data, config
        self.units_per_step = config.batch_size * config.context
        self.steps_per_epoch = config.steps_per_epoch
        self._window = torch.arange(config.context + 1, device=data.train.device)

    def batch(self, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """Token ids (B, N) and the ids that follow them (B, N): a function of seed, epoch and step only."""
        # drawn on the CPU: the same windows on every device
        generator = torch.Generator().manual_seed(derive_seed(self.config.seed, "windows", epoch, step))
        starts = torch.randint(
            len(self.data.train) - self.config.context, (self.config.batch_size,), generator=generator
        )
        windows = self.data.train[starts.to(self._window.device)[:, None] + self._window].long()
        return windows[:, :-1], windows[:, 1:]

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross entropy, in nats a token."""
        ids, following = batch
        return F.cross_entropy(model(ids).float().flatten(0, 1), following.flatten()), {}

    def evaluate(self, model: nn.Module, last: bool) -> dict[str, float]:
        """Over the whole evaluated text (before the last epoch over curve_tokens of it, in windows from beginning to
        end), in windows that do not overlap: loss (nats a token), bits_per_byte, and perplexity (a token)."""
        ids, N, part = self.data.test, self.config.context, self.config.curve_tokens
        starts = torch.arange(0, len(ids) - N, N, device=ids.device)
        rest = ids[len(starts) * N :] if last or part is None else ids[:0]  # what is left is a shorter window
        if not (last or part is None):
            starts = starts[:: max(1, len(starts) * N // part)]
        nats = torch.zeros((), dtype=torch.float32 if ids.device.type == "mps" else torch.float64, device=ids.device)
        tokens = size = 0
        for batch in [*self._batches(starts), *([rest[None].long()] if len(rest) > 1 else [])]:
            following = batch[:, 1:].flatten()
            nats += self._nats(model, batch).sum().to(nats.dtype)
            tokens, size = tokens + len(following), size + int(self.data.token_bytes[following].sum())
        loss = float(nats) / tokens
        return {
            "loss": loss,
            "bits_per_byte": float(nats) / math.log(2) / size,
            "perplexity": math.exp(min(loss, 700.0)),
        }

    def _batches(self, starts: Tensor) -> tuple[Tensor, ...]:
        """The windows (.., N + 1) that begin at these places, a few at a time."""
        windows = self.data.test[starts[:, None] + self._window].long()
        return windows.split(max(1, EVALUATION_TOKENS.get(windows.device.type, 32_768) // self.config.context))

    def _nats(self, model: nn.Module, windows: Tensor) -> Tensor:
        """(B, N): -log p of every token of the windows but the first."""
        return F.cross_entropy(model(windows[:, :-1]).float().transpose(1, 2), windows[:, 1:], reduction="none")

    def cases(self, model: nn.Module) -> dict[str, list[float]]:
        """Nats and bytes of every whole window of the evaluated text."""
        ids, N = self.data.test, self.config.context
        found: dict[str, list[float]] = {"nats": [], "bytes": []}
        for batch in self._batches(torch.arange(0, len(ids) - N, N, device=ids.device)):
            found["nats"] += self._nats(model, batch).sum(1).tolist()
            found["bytes"] += self.data.token_bytes[batch[:, 1:]].sum(1).tolist()
        return found


def build_model(config: LanguageConfig, vocab_size: int) -> GPT:
    """The model with its initial weights, on the CPU: a function of the config and the number of tokens only."""
    return initialized(lambda: GPT(config.part(GPTConfig, vocab_size=vocab_size)), config)


def anatomy(model: GPT, data: TextData) -> dict[str, Any]:
    """What the record keeps of the weights: the products of every layer and head, raw and with the LayerNorm gain, and
    a sample of text that follows the first tokens of the evaluated text."""
    prompt = data.test[:PROMPT_TOKENS].tolist()
    ids = generate(model, prompt, SAMPLE_TOKENS, seed=SAMPLE_SEED)
    sample = {"prompt": data.decode(prompt), "text": data.decode(ids), "seed": SAMPLE_SEED}
    return {"products": product_table(model), "sample": sample}


def _check_context(config: LanguageConfig, tokens: float) -> None:
    if config.context >= tokens:
        raise ValueError(
            f"context={config.context} is longer than the text: {config.dataset} has {tokens:,.0f} tokens at most in"
            " one part"
        )
