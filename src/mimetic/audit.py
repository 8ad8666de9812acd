"""Is mimetic initialization worth trying for this kind of model? Three questions to a trained one, answered with numbers.

    1. Does it have layers worth imitating?           the diagonals of both products against chance, by layer and head
    2. Can matrix operations imitate them?            how much of a product alpha Z + beta I is, before and after truncation
    3. Are those layers a meaningful share of it?     attention's share of the parameters, for catalogues of any size

The questions are those of a review of the paper that asked them of recommenders. The answers in words follow from the
numbers and the thresholds below.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from mimetic.attention import AttentionLayer, MimeticWarning, UnsupportedAttention
from mimetic.measure import LAYER_HEAD, _truncation_curve, fit_layer, measure
from mimetic.scan import attention_layers, clean_name

if TYPE_CHECKING:
    import pandas as pd

# Thresholds of the answers in words; the numbers do not depend on them.
CHANCE = 2.0  # a diagonal counts when it is so many null standard deviations away from chance
CLEAR = 0.75  # a product has a sign when more than this share of its heads (QK) or layers (V.proj) have it
EXPLAINED = 0.05  # of a product's energy must lie along the identity for an imitation to say something about it
MEANINGFUL = 0.10  # of the parameters must be attention for its initialization to be a large part of the model's
CATALOGUES = tuple(10**k for k in range(2, 8))  # items

_TABLES = {"qk": "W_Q W_K^T", "vp": "W_V W_proj"}


@dataclass(frozen=True)
class StateNames:
    """Where the attention weights are in a state dict: patterns with {} for the number of the layer, numbers of any step.

    Either qkv (fused, rows of all queries, then keys, then values) or q, k and v. Weights are as nn.Linear stores them,
    (out, in); transposed=True for (in, out), as Conv1D of GPT-2 stores them.
    """

    proj: str
    num_heads: int
    qkv: str | None = None
    q: str | None = None
    k: str | None = None
    v: str | None = None
    transposed: bool = False
    in_gain: str | None = None  # gain of the LayerNorm in front, if the block is pre-LN
    table: str | None = None  # the item or token embedding, (items, width); None: found by its name

    def __post_init__(self) -> None:
        if not isinstance(self.num_heads, int) or self.num_heads < 1:
            raise ValueError(f"num_heads must be a whole number of at least 1, not {self.num_heads!r}")
        separate = [name for name in "qkv" if getattr(self, name)]
        if bool(self.qkv) == bool(separate) or (separate and len(separate) < 3):
            raise ValueError("name either qkv, or q and k and v")
        for name in ("proj", "qkv", "q", "k", "v", "in_gain"):
            pattern = getattr(self, name)
            if pattern is not None and pattern.count("{}") != 1:
                raise ValueError(f"{name} must have one {{}} for the number of the layer, not {pattern!r}")


@dataclass(frozen=True)
class Parameters:
    """How many parameters a model has, by what they do. The item (or token) table and an output of its size grow with the
    catalogue: per_item parameters for each of items."""

    attention: int
    mlp: int
    embedding: int  # all embeddings, positions and outputs of the table's size included
    rest: int  # norms, heads, ...
    items: int | None = None  # rows of the table; None: there is none
    per_item: float = 0.0

    @property
    def total(self) -> int:
        return self.attention + self.mlp + self.embedding + self.rest

    def share(self, items: int | None = None) -> float:
        """Attention's share of all parameters, as the model is or with a catalogue of so many items.

        Raises:
            ValueError: items are given, and the model has no item table.
        """
        if items is None:
            return self.attention / self.total
        if self.items is None:
            raise ValueError("this model has no item table: its size does not depend on a catalogue")
        return self.attention / (self.total + (items - self.items) * self.per_item)


@dataclass(frozen=True)
class Audit:
    """What :func:`audit` found; ``print`` it, or read the tables."""

    name: str
    products: pd.DataFrame  # measure's rows: one a head (qk) or layer (vp), with explained
    layers: pd.DataFrame  # one row a layer and product: alpha, beta, explained, imitated, target, limit, reachable
    fold: bool  # gains of the norms folded in
    parameters: Parameters | None  # None: only attention weights are at hand
    notes: tuple[str, ...] = ()
    answers: tuple[str, str, str, str] = field(default=("",) * 4)  # the three answers and what follows from them

    def shares(self, catalogues: Sequence[int] = CATALOGUES) -> dict[int, float]:
        """Attention's share of the parameters by catalogue size; {} without an item table."""
        if self.parameters is None or self.parameters.items is None:
            return {}
        return {n: self.parameters.share(n) for n in catalogues}

    def signs(self) -> dict[str, str]:
        """"+", "−" or "none" for "qk" (over heads) and "vp" (over layers): what more than CLEAR of them have beyond CHANCE."""
        return {product: _sign(rows["sigmas"]) for product, rows in self.products.groupby("product")}

    def __str__(self) -> str:
        return "\n".join(_report(self))


def audit(
    model: nn.Module | list[AttentionLayer] | Mapping[str, Tensor] | str | Path,
    *,
    fold: bool | None = None,
    names: StateNames | None = None,
    name: str | None = None,
) -> Audit:
    """Answer the three questions for a trained model.

    Args:
        model: a module (ours, timm's, transformers', torch's); a list of AttentionLayer; a state dict, or a file that
            holds one (.safetensors, or what torch.save wrote), with ``names``; or the name of a pretrained source
            (mimetic.pretrained.SOURCES: its recorded measurement, no download) or of one of our runs
            ("ml100k/bert-seed0": its checkpoint if it is half done, its record if it is finished).
        fold: with the LayerNorm gains in the products; None: where they are known.
        names: where the attention weights are in a state dict.
        name: what the report calls it.

    Raises:
        ValueError: an unknown name (the choices are listed), or names without a state dict and the reverse.
        UnsupportedAttention: no layer with a diagonal, a weight that a state dict does not have (it is named) or whose
            shape does not fit, or fold=True where the gains are not known.
    """
    if isinstance(model, (str, Path)):
        path = Path(model)
        if path.is_file():
            return audit(_state_file(path), fold=fold, names=names, name=name or path.name)
        if names is not None:
            raise ValueError(f"names belong to a state dict, and there is no file {str(model)!r}")
        return _named(str(model), fold, name)
    if isinstance(model, Mapping):
        if names is None:
            raise ValueError("a state dict needs names=StateNames(...): where its attention weights are")
        layers = layers_from_state(model, names)
        return _from_layers(layers, fold, name or "state dict", _count_state(model, names))
    if names is not None:
        raise ValueError("names belong to a state dict; a module's layers are found by themselves")
    if isinstance(model, nn.Module):
        layers = attention_layers(model)
        return _from_layers(layers, fold, name or type(model).__name__, count_parameters(model, layers))
    if isinstance(model, list) and model and all(isinstance(layer, AttentionLayer) for layer in model):
        return _from_layers(model, fold, name or "attention layers", None)
    raise ValueError(f"expected a module, a list of AttentionLayer, a state dict or a name, got {type(model).__name__}")


# --- 1 and 2: the products -------------------------------------------------------------------------------------------


def _from_layers(layers: list[AttentionLayer], fold: bool | None, name: str, parameters: Parameters | None) -> Audit:
    notes, kept = [], []
    for layer in layers:
        square = {layer.k.shape[0], layer.v.shape[0], layer.proj.shape[2]} == {layer.d_model}
        if layer.kind == "self" and square:
            kept.append(layer)
    if len(kept) < len(layers):
        notes.append(f"{len(layers) - len(kept)} of {len(layers)} attention layers are not audited: cross-attention, or widths that differ")
    if not kept:
        raise UnsupportedAttention(f"{name}: none of its {len(layers)} attention layers is self-attention of one width: no diagonal")
    known = all(layer.gains_known for layer in kept)
    fold = known if fold is None else fold
    if not known and not fold:
        notes.append("the products are the raw weights': which norm feeds the layers is not known")
    notes += dict.fromkeys(caveat for layer in kept for caveat in layer.caveats)
    sizes = {i: (layer.d_model, layer.head_dim, layer.v.shape[1] * layer.v.shape[2]) for i, layer in enumerate(kept)}
    return _audit(name, measure(kept, fold, heads=False), sizes, fold, parameters, notes)


def _audit(name, table, sizes, fold, parameters, notes) -> Audit:
    """An Audit from measure's rows and (d_model, head_dim, rank of V.proj) by layer."""
    import pandas as pd

    table = table[(table["product"] == "qk") | (table["head"] == LAYER_HEAD)].reset_index(drop=True)
    table = table.assign(explained=[explained(row, sizes[row.layer][0]) for row in table.itertuples()])
    rows = []
    for layer, part in table.groupby("layer"):
        d, head_dim, rank = sizes[layer]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", MimeticWarning)
            constants = fit_layer(part, d, head_dim, rank, f"layer {layer}")
        for product, k in (("qk", head_dim), ("vp", rank)):
            alpha, beta = constants[f"{product}_alpha"], constants[f"{product}_beta"]
            kind = part[part["product"] == product]
            rows.append({
                "layer": layer, "product": product, "alpha": alpha, "beta": beta,
                "explained": float(kind["explained"].mean()), "imitated": imitated(alpha, beta, d, k),
                "target": beta**2 / (alpha**2 + beta**2), "limit": min(1.0, k / d),
                "reachable": not any(f"rank-{min(k, d)} " in str(w.message) for w in caught),
            })  # fmt: skip
    found = Audit(name, table, pd.DataFrame(rows), fold, parameters, tuple(notes))
    return Audit(name, table, found.layers, fold, parameters, tuple(notes), _answers(found))


def explained(row: Any, d: int) -> float:
    """Share of a (d, d) product's energy (squared Frobenius norm) that lies along the identity, <P, I>^2 / (d ||P||^2), from a
    row of measure; what is left is the residual. Unrelated random matrices have 1 / d^2."""
    total = row.null_mean * row.offdiag_sd * d**2  # the sum of all entries
    off_mean = (total - d * row.diag_mean) / (d * (d - 1))
    energy = (d - 1) * row.diag_sd**2 + d * row.diag_mean**2 + (d * (d - 1) - 1) * row.offdiag_sd**2 + d * (d - 1) * off_mean**2
    return float(d * row.diag_mean**2 / energy) if energy else float("nan")


def imitated(alpha: float, beta: float, d: int, k: int) -> float:
    """The same share for what mimetic_init_ makes of these constants, after truncation to rank k."""
    if k >= d:
        return beta**2 / (alpha**2 + beta**2)
    ratios, means, spreads = _truncation_curve(d, k)
    ratio = min(abs(beta) / alpha if alpha else ratios[-1], ratios[-1])
    mean, spread = np.interp(ratio, ratios, means), np.interp(ratio, ratios, spreads)
    return float(mean**2 / (mean**2 + d * spread**2))


def _sign(sigmas: pd.Series) -> str:
    above, below = (sigmas > CHANCE).mean(), (sigmas < -CHANCE).mean()
    return "+" if above > CLEAR else "−" if below > CLEAR else "none"


# --- 3: parameters ---------------------------------------------------------------------------------------------------

_POSITION = re.compile(r"pos(ition)?_?(emb|ids)|position|wpe|token_type|segment", re.IGNORECASE)
_EMBEDDING = re.compile(r"embed|wte|wpe|cls_token|mask_token|register_tokens|class_token", re.IGNORECASE)


def count_parameters(model: nn.Module, layers: list[AttentionLayer] | None = None) -> Parameters:
    """A module's parameters by what they do; tied ones count once.

    attention: what the attention layers view, with biases. mlp: every other matrix, with its bias, inside the blocks that
    hold an attention layer. embedding: nn.Embedding, what is called embedding, and everything with as many rows as the
    largest table (an untied output, its bias).
    """
    layers = attention_layers(model) if layers is None else layers
    storages = {
        t.untyped_storage().data_ptr()
        for layer in layers
        for t in (layer.q, layer.k, layer.v, layer.proj, layer.q_bias, layer.k_bias, layer.v_bias, layer.proj_bias)
        if t is not None
    }
    tables = {id(m.weight): m.weight for m in model.modules() if isinstance(m, nn.Embedding)}
    named = [(clean_name(n), p, p.untyped_storage().data_ptr() in storages, id(p) in tables) for n, p in model.named_parameters()]
    rows = [p.shape[0] for n, p, _, table in named if table and not _POSITION.search(n)]
    return _count([(n, tuple(p.shape), a, t) for n, p, a, t in named], [layer.name for layer in layers], max(rows, default=None))


def _count_state(state: Mapping[str, Tensor], names: StateNames) -> Parameters:
    """The same of a state dict: attention by the names, the rest by name and shape; tensors that share memory count once."""
    numbers = _numbers(state, names)
    patterns = [p for p in (names.qkv, names.q, names.k, names.v, names.proj) if p]
    attention = {p.format(i) for p in patterns for i in numbers}
    attention |= {re.sub(r"weight$", "bias", key) for key in attention}
    rows, seen, entries = None, set(), []
    if names.table is not None:
        rows = _tensor(state, names.table).shape[0]
    for key, t in state.items():
        if not isinstance(t, Tensor) or not t.is_floating_point() or key.endswith(("running_mean", "running_var")):
            continue
        place = (t.untyped_storage().data_ptr(), t.storage_offset(), tuple(t.shape))
        if t.numel() and place in seen:
            continue
        seen.add(place)
        entries.append((key, tuple(t.shape), key in attention, key == names.table or bool(t.ndim == 2 and _EMBEDDING.search(key))))
    if rows is None:
        rows = max((shape[0] for key, shape, _, table in entries if table and not _POSITION.search(key)), default=None)
    return _count(entries, [names.proj.format(i).rsplit(".", 2)[0] for i in numbers], rows)


def _count(entries: list[tuple[str, tuple[int, ...], bool, bool]], layers: list[str], rows: int | None) -> Parameters:
    """Parameters from (name, shape, is attention, is an embedding table), the layers' names and the rows of the table."""
    blocks = {m.group() for name in layers if (m := re.match(r"(.*\.)?\d+(?=\.|$)", name))}
    counts, matrices, per_item = dict.fromkeys(("attention", "mlp", "embedding", "rest"), 0), set(), 0.0
    for name, shape, attention, _ in entries:
        if not attention and len(shape) >= 2:
            matrices.add(name.rpartition(".")[0])
    for name, shape, attention, table in entries:
        size, owner = int(np.prod(shape)), name.rpartition(".")[0]
        # the table, and what has one row an item beside it: a few rows may be padding and mask
        of_items = rows is not None and rows >= 16 and not attention and shape and 0 <= rows - shape[0] <= 3 and not _POSITION.search(name)
        inside = any(name.startswith(f"{block}.") for block in blocks)
        if attention:
            kind = "attention"
        elif of_items and (table or not inside):
            kind = "embedding"
            per_item += size / shape[0]
        elif table or (not inside and _EMBEDDING.search(name) and "norm" not in name.lower()):
            kind = "embedding"
        else:
            kind = "mlp" if inside and owner in matrices else "rest"
        counts[kind] += size
    return Parameters(**counts, items=rows if per_item else None, per_item=per_item)


# --- state dicts -----------------------------------------------------------------------------------------------------


def layers_from_state(state: Mapping[str, Tensor], names: StateNames) -> list[AttentionLayer]:
    """The attention layers in a state dict.

    Raises:
        UnsupportedAttention: no layer at all, a tensor that is missing (it is named), or a shape that does not fit.
    """
    layers = []
    for i in _numbers(state, names):
        keys = [pattern.format(i) for pattern in ((names.qkv,) if names.qkv else (names.q, names.k, names.v))]
        weights = [_matrix(state, key, names.transposed) for key in keys]  # (in, out)
        if names.qkv:
            if weights[0].shape[1] % 3:
                raise UnsupportedAttention(f"{keys[0]}: {weights[0].shape[1]} outputs are not queries, keys and values of one width")
            weights, keys = list(weights[0].chunk(3, dim=1)), keys * 3
        proj_key = names.proj.format(i)
        proj = _matrix(state, proj_key, names.transposed)
        d = weights[0].shape[0]
        for key, w in zip(keys, weights):
            if w.shape[0] != d or w.shape[1] % names.num_heads or w.shape[1] != weights[0].shape[1]:
                raise UnsupportedAttention(
                    f"{key}: shape (in, out) = {tuple(w.shape)} does not fit {names.num_heads} heads of width {d} like {keys[0]}"
                )
        if proj.shape != (weights[2].shape[1], d):
            raise UnsupportedAttention(f"{proj_key}: shape (in, out) = {tuple(proj.shape)}, expected {(weights[2].shape[1], d)}")
        q, k, v = (w.unflatten(1, (names.num_heads, -1)) for w in weights)
        gain = None
        if names.in_gain:
            gain = _tensor(state, names.in_gain.format(i))
            if gain.shape != (d,):
                raise UnsupportedAttention(f"{names.in_gain.format(i)}: shape {tuple(gain.shape)}, expected {(d,)}")
        name = proj_key.rsplit(".", 2)[0]
        layers.append(AttentionLayer(name, q, k, v, proj.unflatten(0, (names.num_heads, -1)), in_gain=gain))
    return layers


def _numbers(state: Mapping[str, Tensor], names: StateNames) -> list[int]:
    """The numbers of the layers, by the output matrix's pattern."""
    before, after = names.proj.split("{}")
    pattern = re.compile(re.escape(before) + r"(\d+)" + re.escape(after))
    numbers = sorted(int(m.group(1)) for key in state if (m := pattern.fullmatch(key)))
    if not numbers:
        near = [key for key in state if key.endswith(after)][:3] or list(state)[:3]
        raise UnsupportedAttention(f"no tensor is called like {names.proj!r}; there are {', '.join(near) or 'none'}, ... ({len(state)} in all)")
    return numbers


def _tensor(state: Mapping[str, Tensor], key: str) -> Tensor:
    if key not in state:
        near = [other for other in state if other.rpartition(".")[2] == key.rpartition(".")[2]][:3]
        raise UnsupportedAttention(f"the state dict has no {key}" + (f"; there are {', '.join(near)}, ..." if near else ""))
    return state[key]


def _matrix(state: Mapping[str, Tensor], key: str, transposed: bool) -> Tensor:
    t = _tensor(state, key)
    if not isinstance(t, Tensor) or t.ndim != 2 or not t.is_floating_point():
        raise UnsupportedAttention(f"{key} is no matrix of floating-point numbers: {tuple(getattr(t, 'shape', ()))}")
    return t.detach() if transposed else t.detach().mT


def _state_file(path: Path) -> Mapping[str, Tensor]:
    """The state dict in a file; one level of wrapping ("model", "state_dict") is opened."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # safetensors, pickle, zip and torch each raise their own
        raise ValueError(f"{path.name} cannot be read as a state dict ({' '.join(str(error).split())[:120]})") from None
    for key in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not any(isinstance(t, Tensor) for t in state.values()):
        raise ValueError(f"{path.name} holds no state dict")
    return state


# --- by name ---------------------------------------------------------------------------------------------------------


def _named(given: str, fold: bool | None, name: str | None) -> Audit:
    """The audit of a pretrained source or of one of our runs."""
    from mimetic.pretrained.sources import SOURCES

    if given in SOURCES:
        return _pretrained(given, fold, name)
    match = re.fullmatch(r"([^/]+)/(.+?)(?:-seed(\d+))?", given)
    from mimetic.experiments.configs import EXPERIMENTS, named

    experiment, arm, seed = match.groups() if match else (given, "", None)
    if experiment not in EXPERIMENTS:
        raise ValueError(
            f"{given!r} is no file, no pretrained model ({', '.join(SOURCES)}) and no run of an experiment "
            f"({', '.join(EXPERIMENTS)}): EXPERIMENT/ARM-seedN"
        )
    config = named(experiment, seed=int(seed or 0), arm=arm or "")
    return _our_run(config, fold, name or config.name)


def _pretrained(given: str, fold: bool | None, name: str | None) -> Audit:
    from mimetic.pretrained import load, load_measurements, recorded
    from mimetic.pretrained.sources import SOURCES

    src = SOURCES[given]
    only = ("only the attention weights of this model are at hand: its other parameters are not counted",)
    if given not in recorded():
        return _with_notes(_from_layers(load(given), fold, name or src.title, None), only)
    table = load_measurements([given])
    has_gains = bool(table["fold"].any())
    fold = has_gains if fold is None else fold
    table = table[table["fold"] == (fold and has_gains)]
    sizes = {i: (d, d // heads, d) for i, (d, heads) in enumerate(src.layer_dims())}
    return _audit(name or src.title, table.reset_index(drop=True), sizes, fold, None, only)


def _our_run(config, fold: bool | None, name: str) -> Audit:
    """A half-done run by its checkpoint, a finished one by its record."""
    import pandas as pd

    from mimetic.data.fetch import cache_dir
    from mimetic.experiments.runs import existing, family

    checkpoint = cache_dir() / "checkpoints" / f"{config.name}.pt"
    record = existing(config)
    if record is None:
        if not checkpoint.is_file():
            raise ValueError(f"{config.name} has not been run: there is no record and no checkpoint of it")
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        model = family(config).build_model(config)
        model.load_state_dict(state["model"])
        return _with_notes(audit(model, fold=fold, name=name), (f"from a checkpoint after {state['step']} steps",))
    products = record["anatomy"]["after"]["products"]
    table = pd.DataFrame(products["rows"], columns=products["columns"])
    fold = True if fold is None else fold
    table = table[table["fold"] == fold].reset_index(drop=True)
    table = table.assign(z=table["diag_mean"] / table["offdiag_sd"])
    if "diag_sd" not in table:
        table = table.assign(diag_sd=table["offdiag_sd"])
        notes = ("the record does not hold the diagonal's spread: that off the diagonal stands in",)
    else:
        notes = ()
    d, heads = config.d_model, config.num_heads
    counts, parameters = record["parameters"], None
    per_item, items = 0, None
    if hasattr(config, "items"):  # a recommender: one row of the table and one bias an item
        from mimetic.data.sequences import num_items

        items, per_item = num_items(config.dataset, config.items), d + 1
    attention = counts["attention_qkv"] + counts["attention_proj"]
    table_part = counts["embedding"] + (items or 0)
    parameters = Parameters(attention, counts["mlp"], table_part, counts["total"] - attention - counts["mlp"] - table_part, items, per_item)
    return _audit(name, table, {i: (d, d // heads, d) for i in range(config.depth)}, fold, parameters, notes)


def _with_notes(found: Audit, notes: tuple[str, ...]) -> Audit:
    from dataclasses import replace

    return replace(found, notes=(*found.notes, *notes))


# --- in words --------------------------------------------------------------------------------------------------------

_PATTERN = {("+", "−"): "the signs of vision models", ("−", "+"): "the opposite of vision's signs"}


def _answers(found: Audit) -> tuple[str, str, str, str]:
    signs = found.signs()
    clear = [product for product in ("qk", "vp") if signs[product] != "none"]
    parts = []
    for product, unit in (("qk", "heads"), ("vp", "layers")):
        rows = found.products[found.products["product"] == product]
        above, below = int((rows["sigmas"] > CHANCE).sum()), int((rows["sigmas"] < -CHANCE).sum())
        parts.append(f"{_TABLES[product]} is above chance in {above} and below in {below} of {len(rows)} {unit} (median z {rows['z'].median():+.2f})")
    named = _PATTERN.get((signs["qk"], signs["vp"]))
    if not clear:
        first = "No: neither product has a sign in more than three quarters of its heads or layers."
    else:
        has = " and ".join(f"{_TABLES[p]} {signs[p]}" for p in clear)
        if named:
            has += f", {named}"
        elif len(clear) == 1:
            has += f"; {_TABLES['vp' if clear == ['qk'] else 'qk']} has no clear sign"
        first = f"Yes: {has}."
    first = f"{first} {'; '.join(parts)}."

    shares = {p: found.layers[found.layers["product"] == p] for p in ("qk", "vp")}
    means = {p: float(rows["explained"].mean()) for p, rows in shares.items()}
    enough = [p for p in (clear or ("qk", "vp")) if means[p] >= EXPLAINED]
    word = "Yes" if clear and len(enough) == len(clear) else "In part" if clear and enough else "Hardly"
    details = [
        f"of {_TABLES[p]}'s energy {means[p]:.1%} lies along the identity ({rows['target'].mean():.1%} of the fitted target before "
        f"truncation to the rank that the layer has, {rows['imitated'].mean():.1%} after, at most {rows['limit'].mean():.0%})"
        for p, rows in shares.items()
    ]
    stuck = found.layers[~found.layers["reachable"]]
    second = f"{word}: {'; '.join(details)}. The rest of a product is noise to the imitation, whatever it is in the model."
    if len(stuck):
        second += f" In {len(stuck)} of {len(found.layers)} products the diagonal is stronger than a truncated alpha Z + beta I can be."

    counts = found.parameters
    if counts is None:
        third, meaningful = "Not known: the model's other parameters are not at hand.", None
    else:
        share, meaningful = counts.share(), counts.share() >= MEANINGFUL
        third = f"{'Yes' if meaningful else 'No'}: {counts.attention:,} of {counts.total:,} parameters are attention, {share:.1%}."
        if catalogue := found.shares():
            parts = [f"{n:,} items {catalogue[n]:{'.2g' if catalogue[n] < 0.001 else '.1%'}}" for n in (10**3, 10**5, 10**7)]
            third += f" With {', '.join(parts)}."

    if not clear:
        last = "There is no sign to imitate; keep the default, or test both signs against it."
    else:
        names = {"qk": "QK", "vp": "V.proj"}
        wish = {p: f"beta {'above' if signs[p] == '+' else 'below'} 0 for {names[p]}" for p in names}
        last = f"An imitation would take {' and '.join(wish[p] for p in clear)}: mimetic.fit gives the constants."
        if (signs["qk"], signs["vp"]) == ("−", "+"):
            last += " The default constants of mimetic_init_, vision's, would push both products the wrong way."
        if not enough:
            last += " Little of what training made is in those diagonals, so little is to be expected of it."
        if meaningful is False:
            last += " And most of this model lies outside attention, where this initialization does nothing."
    return first, second, third, last


def _report(found: Audit) -> list[str]:
    lines = [f"{found.name}: {'gains of the norms folded in' if found.fold else 'raw weights'}", ""]
    lines += ["layer  product        z     sigmas   alpha    beta   explained  target  imitated  limit"]
    for row in found.layers.itertuples():
        part = found.products[(found.products["layer"] == row.layer) & (found.products["product"] == row.product)]
        lines.append(
            f"{row.layer:5d}  {_TABLES[row.product]:10s} {part['z'].mean():+6.2f} {part['sigmas'].mean():+9.1f} {row.alpha:8.3g} {row.beta:+8.3g}"
            f" {row.explained:9.1%} {row.target:8.1%} {row.imitated:8.1%} {row.limit:7.0%}" + ("" if row.reachable else "  not reachable")
        )
    for product in ("qk", "vp"):
        rows = found.products[found.products["product"] == product]
        if product == "qk" and rows["head"].nunique() > 1:
            lines += ["", "sigmas of W_Q W_K^T by head"]
            for layer, part in rows.groupby("layer"):
                lines.append(f"{layer:5d}  " + " ".join(f"{s:+.1f}" for s in part["sigmas"]))
    if found.parameters is not None:
        p = found.parameters
        lines += ["", "parameters   " + "   ".join(f"{k} {v:,} ({v / p.total:.1%})" for k, v in
                  (("attention", p.attention), ("MLP", p.mlp), ("embedding", p.embedding), ("rest", p.rest)))]  # fmt: skip
        if shares := found.shares():
            lines += ["attention by catalogue size   " + "   ".join(f"{n:,}: {s:.2%}" if s >= 1e-4 else f"{n:,}: {s:.1e}" for n, s in shares.items())]
    questions = ("1. Layers worth imitating?", "2. Can matrix operations imitate them?", "3. A meaningful share of the model?", "So:")
    for question, answer in zip(questions, found.answers):
        lines += ["", f"{question} {answer}"]
    return lines + ([""] + [f"note: {note}" for note in found.notes] if found.notes else [])
