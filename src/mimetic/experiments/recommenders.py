"""Recommenders from scratch: BERT4Rec or its causal next-item sibling, an initialization, a data set.

    python -m mimetic data fetch ml100k
    python -m mimetic train ml100k --init bert --seed 0
    python -m mimetic train ml100k --init mimetic --seed 0

What can be run by name, and how long it takes, is in mimetic.experiments.configs.recommenders. Order of the users,
windows and masked positions follow from the seed alone, so two arms with one seed see the same batches.

The curve: test_ndcg10, test_recall10, test_mrr are the metrics on the users' last items (in the experiments that choose
the recipe, validation=True, on the items before them); test_validation_ndcg10 is NDCG@10 on the items before the last
in any case. ("test_" is the training loop's word for "evaluated".) Nothing is chosen by the test items: the last epoch
counts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mimetic.attention_maps import product_table
from mimetic.data.sequences import SequenceData, check_sequences, load_sequences, num_items, num_users
from mimetic.experiments.configs.recommenders import RecommenderConfig
from mimetic.experiments.metrics import Metric
from mimetic.experiments.ranking import pad_left, ranking_metrics, target_ranks
from mimetic.experiments.runs import COMMON_SOURCE, Prepared, initialized
from mimetic.messages import check_choice, check_whole
from mimetic.models.bert4rec import BERT4Rec, BERT4RecConfig
from mimetic.training.backend import derive_seed

METRIC = Metric("test_ndcg10", "test NDCG@10", digits=4, difference="NDCG@10")
MEAN_OVER_ROWS = False  # it is one over masked positions, of which rows have different numbers
# The files that have a part in the numbers of a run; their hash goes into the record.
SOURCE = (
    *COMMON_SOURCE,
    "data/sequences.py",
    "experiments/ranking.py",
    "experiments/recommenders.py",
    "models/bert4rec.py",
)
OBJECTIVES = ("mask", "next")
EVALUATION_BATCH = 256  # users


def check(config: RecommenderConfig) -> None:
    """Raise ValueError, naming the choices, unless the config's data, objective and model make sense; reads no data."""
    check_sequences(config.dataset, config.items)
    check_choice("objective", config.objective, OBJECTIVES)
    if config.objective == "next" and not config.causal:
        raise ValueError(
            "objective='next' needs causal=True: where attention sees both sides, the next item is its own answer"
        )
    for name in ("mask_prob", "last_only"):
        value = getattr(config, name)
        if not 0 <= value <= 1 or (name == "mask_prob" and not value):
            raise ValueError(f"{name} is a probability, not {value!r}")
    if config.compile != "off":
        raise ValueError(
            f"compile must be off for a recommender, not {config.compile!r}: the number of masked items changes from"
            " batch to batch, and each number would be compiled anew"
        )
    check_whole("passes", config.passes)
    check_whole("max_len", config.max_len, 2 if config.objective == "mask" else 1)  # a mask needs an item beside it
    _model_config(config)


def prepare(config: RecommenderConfig, device: torch.device) -> Prepared:
    """Data on the device, the model with its initial weights, and what the record says of its weights."""
    data = load_sequences(config.dataset, items=config.items)
    if config.batch_size > data.num_users:
        raise ValueError(f"batch_size={config.batch_size} is more than the {data.num_users} users of {config.dataset}")
    task = RecommenderTask(data, config, device)
    return Prepared(task, build_model(config).to(device), anatomy, task.sequences(), task.cases)


def cost(config: RecommenderConfig) -> float:
    """Work of a run: positions seen, forward and backward, times multiply-adds a position, with its share of scores."""
    d, n, items = config.d_model, config.max_len, num_items(config.dataset, config.items)
    users = num_users(config.dataset, config.items)
    block = config.depth * d * ((4 + 2 * config.mlp_ratio) * d + 2 * n)
    targets = 1.0 if config.objective == "next" else config.mask_prob
    train = users * n * (block + targets * 0.6 * d * items)  # about 0.6 of the positions are no padding
    evaluate = 2 * users * (n * block + d * items)
    return config.epochs * (3 * config.passes * train + evaluate)


def anatomy(model: nn.Module) -> dict[str, Any]:
    """What the record keeps of the weights: the products; fold has the gain of the LayerNorm
    in front, which only pre-LN blocks have.
    """
    return {"products": product_table(model)}


class RecommenderTask:
    """Masked-item or next-item training for the loop: batches of windows, full
    cross entropy, ranking over the catalogue.
    """

    unit = "sequences"
    mean_over_rows = MEAN_OVER_ROWS

    def __init__(self, data: SequenceData, config: RecommenderConfig, device: torch.device | str = "cpu") -> None:
        self.data, self.config, self.device = data, config, torch.device(device)
        users = range(data.num_users)
        self.units_per_step = config.batch_size
        self.steps_per_pass = data.num_users // config.batch_size  # the rest of a pass's users is left out
        self.steps_per_epoch = config.passes * self.steps_per_pass
        train = [data.train(u) for u in users]
        self._length = torch.tensor([len(s) for s in train])
        self._begin = self._length.cumsum(0) - self._length
        self._flat = torch.from_numpy(np.concatenate(train))
        self._generator = torch.Generator()
        self._order: tuple[int, Tensor] | None = None
        self._splits = {}
        for validation in (True, False):
            histories = [data.history(u, validation) for u in users]
            inputs = pad_left(histories, config.max_len - (config.objective == "mask"))
            if config.objective == "mask":  # the item to be found is a mask at the end
                inputs = torch.nn.functional.pad(inputs, (0, 1), value=data.num_items + 1)
            target = torch.tensor([data.target(u, validation) for u in users])
            self._splits[validation] = tuple(t.to(self.device) for t in (inputs, pad_left(histories), target))

    def sequences(self) -> dict[str, Tensor]:
        """Every user's items, one user after the other (items), and how many each has (lengths)."""
        sequences = self.data.sequences
        return {
            "items": torch.from_numpy(np.concatenate(sequences)),
            "lengths": torch.tensor([len(items) for items in sequences]),
        }

    def windows(self, users: Tensor, size: int) -> Tensor:
        """(B, size): of each user's training items a window of the last ``size`` items before a random place, 0 in
        front. Of a sequence that is not longer than the window it is all of it."""
        length = self._length[users]
        spare = (length - size).clamp_min(0)
        end = length - (torch.rand(len(users), generator=self._generator) * (spare + 1)).long()
        place = end[:, None] - size + torch.arange(size)
        items = self._flat[(self._begin[users, None] + place).clamp_min(0)]
        return torch.where(place >= 0, items, 0)

    def batch(self, epoch: int, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Input items (B, N), where the loss looks (B, N), and the items that are right there (T,) from 0: a function
        of seed, epoch and step only, the same on every device."""
        config, size = self.config, self.config.batch_size
        turn, place = divmod(epoch * self.steps_per_epoch + step, self.steps_per_pass)
        if self._order is None or self._order[0] != turn:
            generator = torch.Generator().manual_seed(derive_seed(config.seed, "order", turn))
            self._order = turn, torch.randperm(self.data.num_users, generator=generator)
        users = self._order[1][place * size : (place + 1) * size]
        self._generator.manual_seed(derive_seed(config.seed, "window", epoch, step))
        if config.objective == "next":
            items = self.windows(users, config.max_len + 1)
            inputs, answers = items[:, :-1], items[:, 1:]
            at = inputs > 0
        else:
            answers = self.windows(users, config.max_len)
            at = torch.rand(answers.shape, generator=self._generator) < config.mask_prob
            only = torch.rand(len(users), 1, generator=self._generator) < config.last_only
            at &= (answers > 0) & ~only
            at[:, -1] |= only[:, 0] | ~at.any(1)  # at least one; the last position always holds an item
            inputs = answers.masked_fill(at, self.data.num_items + 1)
        return tuple(t.to(self.device) for t in (inputs.contiguous(), at, answers[at] - 1))

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross entropy over the whole catalogue, mean over the positions that are asked for."""
        inputs, at, answers = batch
        return F.cross_entropy(model(inputs, at).float(), answers), {}

    def evaluate(self, model: nn.Module, last: bool) -> dict[str, float]:
        """Recall@10, NDCG@10 and MRR over the whole catalogue without the user's history, of every user."""
        test = self.metrics(model, self.config.validation)
        validation = test if self.config.validation else self.metrics(model, True)
        return test | {"validation_ndcg10": validation["ndcg10"]}

    def metrics(self, model: nn.Module, validation: bool) -> dict[str, float]:
        """The metrics on one of the two splits."""
        return ranking_metrics(self.ranks(model, validation))

    def ranks(self, model: nn.Module, validation: bool) -> Tensor:
        """The rank of every user's held-out item of one of the two splits."""
        ranks = []
        for inputs, history, target in zip(*(t.split(EVALUATION_BATCH) for t in self._splits[validation]), strict=True):
            last_BD = model.features(inputs)[:, -1]
            with torch.autocast(last_BD.device.type, enabled=False):  # scores in bfloat16 would tie by the dozen
                ranks.append(target_ranks(model.scores(last_BD.float()), target, history))
        return torch.cat(ranks)

    def cases(self, model: nn.Module) -> dict[str, list[float]]:
        """The rank of every user's held-out item that the metrics are of, in the order of the users."""
        return {"ranks": self.ranks(model, self.config.validation).tolist()}


def build_model(config: RecommenderConfig) -> BERT4Rec:
    """The model with its initial weights, on the CPU: a function of the config only."""
    return initialized(lambda: BERT4Rec(_model_config(config)), config)


def _model_config(config: RecommenderConfig):
    return config.part(BERT4RecConfig, num_items=num_items(config.dataset, config.items))
