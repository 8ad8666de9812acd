"""Is mimetic initialization worth trying for this kind of model? Three questions
to a trained one, answered with numbers.

    1. Does it have layers worth imitating?           the diagonals of both products against chance, by layer and head
    2. Can matrix operations imitate them?            how much of a product alpha Z + beta I is, before and after
                                                      truncation
    3. Are those layers a meaningful share of it?     attention's share of the parameters, for catalogues of any size

The questions are those of a review of the paper that asked them of recommenders. The answers in words follow from the
numbers and the thresholds below.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from inspect import signature
from pathlib import Path

from torch import Tensor, nn

from mimetic.attention import AttentionLayer
from mimetic.audit.parameters import Parameters, count_parameters, count_state
from mimetic.audit.products import from_layers, from_table
from mimetic.audit.report import CHANCE, CLEAR, EXPLAINED, MEANINGFUL, Audit
from mimetic.audit.state import StateNames, layers_from_state, state_file
from mimetic.scan import attention_layers

__all__ = [
    "CHANCE", "CLEAR", "EXPLAINED", "MEANINGFUL", "Audit", "Parameters", "StateNames", "audit", "count_parameters",
    "layers_from_state",
]  # fmt: skip


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
            ("ml100k/bert-seed0": its checkpoint if it is half done, its record if it is finished; an experiment of
            your own by its record).
        fold: with the LayerNorm gains in the products; None: where they are known.
        names: where the attention weights are in a state dict.
        name: what the report calls it.

    Raises:
        ValueError: an unknown name (the choices are listed), names without a state dict and the reverse, or names that
            are no StateNames.
        CheckpointError: the checkpoint of a half-done run is damaged.
        UnsupportedAttention: no layer with a diagonal, a weight that a state dict does not have (it is named) or whose
            shape does not fit, or fold=True where the gains are not known.
    """
    if names is not None and not isinstance(names, StateNames):
        raise ValueError(f"names must be a StateNames, not a {type(names).__name__}")
    if isinstance(model, (str, Path)):
        path = Path(model)
        if path.is_file():
            return audit(state_file(path), fold=fold, names=names, name=name or path.name)
        if names is not None:
            raise ValueError(f"names belong to a state dict, and there is no file {str(model)!r}")
        return _named(str(model), fold, name)
    if isinstance(model, Mapping):
        if names is None:
            raise ValueError("a state dict needs names=StateNames(...): where its attention weights are")
        layers = layers_from_state(model, names)
        return from_layers(layers, fold, name or "state dict", count_state(model, names))
    if names is not None:
        raise ValueError("names belong to a state dict; a module's layers are found by themselves")
    if isinstance(model, nn.Module):
        layers = attention_layers(model)
        return from_layers(layers, fold, name or type(model).__name__, count_parameters(model, layers))
    if isinstance(model, list) and model and all(isinstance(layer, AttentionLayer) for layer in model):
        return from_layers(model, fold, name or "attention layers", None)
    raise ValueError(f"expected a module, a list of AttentionLayer, a state dict or a name, got {type(model).__name__}")


# --- by name ---------------------------------------------------------------------------------------------------------


def _named(given: str, fold: bool | None, name: str | None) -> Audit:
    """The audit of a pretrained source or of one of our runs."""
    from mimetic.pretrained.sources import SOURCES

    if given in SOURCES:
        return _pretrained(given, fold, name)
    match = re.fullmatch(r"([^/]+)/(.+?)(?:-seed(\d+))?", given)
    from mimetic.experiments.configs import EXPERIMENTS, config_from_record, named
    from mimetic.training.records import NAME, read_record, record_files, record_path, runs_dir

    experiment, arm, seed = match.groups() if match else (given, "", None)
    if experiment in EXPERIMENTS:
        config = named(experiment, seed=int(seed or 0), arm=arm or "")
    elif (
        all(map(NAME.fullmatch, (experiment, arm or ""))) and (own := record_path(experiment, arm, seed or 0)).is_file()
    ):
        config = config_from_record(read_record(own)["config"])
    else:
        recorded = [f"{path.parent.name}/{path.stem}" for path in record_files(runs_dir())]
        if near := get_close_matches(given, [*SOURCES, *EXPERIMENTS, *recorded], 3):
            raise ValueError(f"{given!r} is not known: did you mean {' or '.join(near)}?")
        raise ValueError(
            f"{given!r} is no file, no pretrained model ({', '.join(SOURCES)}), no run of an experiment "
            f"({', '.join(EXPERIMENTS)}): EXPERIMENT/ARM-seedN, and no finished run of another experiment in"
            f" {runs_dir()}"
        )
    return _our_run(config, fold, name or config.name)


def _pretrained(given: str, fold: bool | None, name: str | None) -> Audit:
    from mimetic.pretrained import load, load_measurements, recorded
    from mimetic.pretrained.sources import SOURCES

    src = SOURCES[given]
    only = ("only the attention weights of this model are at hand: its other parameters are not counted",)
    if given not in recorded():
        return _with_notes(from_layers(load(given), fold, name or src.title, None), only)
    table = load_measurements([given])
    has_gains = bool(table["fold"].any())
    fold = has_gains if fold is None else fold
    table = table[table["fold"] == (fold and has_gains)]
    kv_heads, caveats = getattr(src.origin, "kv_heads", None), getattr(src.origin, "caveats", ())
    sizes = {i: (d, d // heads, (kv_heads or heads) * (d // heads)) for i, (d, heads) in enumerate(src.layer_dims())}
    return from_table(name or src.title, table.reset_index(drop=True), sizes, fold, None, (*caveats, *only))


def _our_run(config, fold: bool | None, name: str) -> Audit:
    """A half-done run by its checkpoint, a finished one by its record."""
    from mimetic.experiments.recorded import product_table
    from mimetic.experiments.runs import checkpoint_path, existing, family
    from mimetic.models.blocks import in_attention
    from mimetic.training.checkpoint import load_checkpoint

    checkpoint = checkpoint_path(config)
    record = existing(config)
    if record is None:
        if not checkpoint.is_file():
            raise ValueError(f"{config.name} has not been run: there is no record and no checkpoint of it")
        state, build, sizes = load_checkpoint(checkpoint, None), family(config).build_model, {}
        if "vocab_size" in signature(build).parameters:  # a text model's vocabulary is its corpus's
            sizes["vocab_size"] = len(state["model"]["token_embed.weight"])
        model = build(config, **sizes)
        model.load_state_dict(state["model"])
        return _with_notes(audit(model, fold=fold, name=name), (f"from a checkpoint after {state['step']} steps",))
    fold = True if fold is None else fold
    table = product_table(record, fold=fold)
    notes = ()
    if "diag_sd" not in table:
        table = table.assign(diag_sd=table["offdiag_sd"])
        notes = ("the record does not hold the diagonal's spread: that off the diagonal stands in",)
    d, heads = config.d_model, config.num_heads
    counts = record["parameters"]
    per_item, items, table_part = 0, None, counts["embedding"]
    if hasattr(config, "items"):  # a recommender: one row of the table and one bias an item
        from mimetic.data.sequences import num_items

        items, per_item = num_items(config.dataset, config.items), d + 1
        table_part += items
    elif hasattr(config, "context"):  # a text model: its vocabulary is its catalogue, its output the same table
        items, per_item = table_part // d - config.context, d
    attention = in_attention(counts)
    parameters = Parameters(
        attention, counts["mlp"], table_part, counts["total"] - attention - counts["mlp"] - table_part, items, per_item
    )
    return from_table(name, table, {i: (d, d // heads, d) for i in range(config.depth)}, fold, parameters, notes)


def _with_notes(found: Audit, notes: tuple[str, ...]) -> Audit:
    return replace(found, notes=(*found.notes, *notes))
