"""The three questions that a recommender researcher asks first (chapter 12): are there layers worth imitating
(first_question), can matrix operations imitate them, are they a meaningful share of all parameters?"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from mimetic.audit import EXPLAINED, MEANINGFUL, Parameters, audit
from mimetic.book import common
from mimetic.book.first_question import layer_signs, signs_in_words, trained
from mimetic.book.recommenders import COMMAND
from mimetic.data.sequences import num_items
from mimetic.experiments.configs import EXPERIMENTS, named
from mimetic.experiments.programmes.recommenders import DEFAULT, SIBLING_PREFIX
from mimetic.experiments.recorded import records_of
from mimetic.experiments.runs import existing
from mimetic.initialize import mimetic_init_
from mimetic.models.bert4rec import BERT4Rec, BERT4RecConfig
from mimetic.models.blocks import Block, in_attention, parameter_counts, shapes_only
from mimetic.models.vit import ViT, ViTConfig
from mimetic.pretrained import SOURCES
from mimetic.scan import attention_layers

# --- question 2 ------------------------------------------------------------------------------------------------------

WRITTEN = "what mimetic_init_ writes"
# name -> (experiment, arm) of its runs
OURS = {
    "BERT4Rec, MovieLens-100K": ("ml100k", DEFAULT),
    "BERT4Rec, Amazon Beauty": ("beauty", DEFAULT),
    "causal sibling, MovieLens-100K": ("ml100k", SIBLING_PREFIX + DEFAULT),
}
# experiment -> its name in share_marks
MARKS = {"beauty": "Beauty, ours", "ml100k": "ML-100K", "ml1m": "ML-1M", "beauty-full": "Beauty, all"}
# the encoders of which a measurement is recorded
REFERENCES = ("dinov2-vit-s", "svtrv2-base", "whisper-tiny-encoder", "minilm-l6")


def explained_table() -> pd.DataFrame:
    """How much of the products alpha Z + beta I explains: columns model, product, explained, imitated, target,
    reachable, times chance (explained, against independent entries of that width); means over layers and, for our runs,
    seeds. The paper's own vision target for a model of our shape, then what was measured."""
    frames = []
    blocks = torch.nn.Sequential(*(Block(64, 2) for _ in range(4)))
    mimetic_init_(blocks, generator=torch.Generator().manual_seed(0))
    frames.append(audit(attention_layers(blocks)).layers.assign(model=WRITTEN, d_model=64))
    for name in REFERENCES:
        found, widths = audit(name), dict(enumerate(d for d, _ in SOURCES[name].layer_dims()))
        frames.append(found.layers.assign(model=found.name, d_model=found.layers["layer"].map(widths)))
    for model, (experiment, arm) in OURS.items():
        for record in records_of(experiment, [arm]):
            found = audit(f"{experiment}/{arm}-seed{record['seed']}")
            frames.append(found.layers.assign(model=model, d_model=record["config"]["d_model"]))
    table = pd.concat(frames, ignore_index=True)
    # E[tr(P)^2] / (d |P|^2) is 1 / d^2 for independent entries
    table["times chance"] = table["explained"] * table["d_model"] ** 2
    groups = table.groupby(["model", "product"], sort=False)
    return groups[["explained", "imitated", "target", "reachable", "times chance"]].mean().reset_index()


def _ours(explained: pd.DataFrame) -> pd.Series:
    """Which rows are of our own trained recommenders."""
    return explained["model"].isin(OURS)


def second_answer(table: pd.DataFrame) -> str:
    """Question 2 for our models as a Markdown table, beside trained encoders of other kinds of data and chance."""
    ours, others = table[_ours(table)], table[~_ours(table)]
    if ours.empty:
        return f"**Not known yet:** no run of the default is in. `{COMMAND}` makes them."
    rows = [
        (model, *(cell for _, row in part.iterrows() for cell in _carried(row)))
        for model, part in ours.groupby("model", sort=False)
    ]
    head = [f"{name}: {what}" for name in common.SHORT.values() for what in ("energy along the identity", "imitation")]
    others = others[others["model"] != WRITTEN]
    spans = []
    for product, name in common.PRODUCTS.items():
        part = others[others["product"] == product]
        spans.append(
            f"{common.percent(part['explained'].min(), 1)} to {common.percent(part['explained'].max(), 1)} of {name}"
            f" ({part['times chance'].min():,.0f} to {part['times chance'].max():,.0f} times chance)"
        )
    return (
        f"{common.markdown(rows, ['model', *head])}\n\nIn the trained encoders of the figure the identity carries"
        f" {' and '.join(spans)}. Chance falls with the width."
    )


def _carried(row: pd.Series) -> tuple[str, str]:
    """What the identity carries of a product of a model, and of its imitation."""
    own = f"{common.percent(row['explained'], 2)} ({row['times chance']:.0f} times chance)"
    before = f" ({common.percent(row['target'], 2)} before truncation)" * (row["product"] == "qk")
    return own, common.percent(row["imitated"], 2) + before


def _explained_word(part: pd.DataFrame) -> str:
    """In which products of a model (its rows of explained_table) the identity carries EXPLAINED or more, audit's
    threshold."""
    enough = [common.PRODUCTS[row["product"]] for _, row in part.iterrows() if row["explained"] >= EXPLAINED]
    return "yes" if len(enough) == len(part) else f"only {enough[0]}" if enough else "hardly"


# --- question 3 ------------------------------------------------------------------------------------------------------

CATALOGUE = tuple(int(n) for n in np.unique(np.round(np.logspace(2, 7, 26)).astype(int)))
SHAPES = {
    "d 64, 2 layers (ours, 50 positions)": (64, 2, 2),
    "d 256, 4 layers": (256, 4, 4),
    "d 768, 12 layers (BERT base)": (768, 12, 12),
}


def shape_parameters(d_model: int, depth: int, num_heads: int, items: int = 1_000, max_len: int = 50) -> Parameters:
    """The parameters of a BERT4Rec of this shape, counted on a model without weights."""
    with shapes_only():
        model = BERT4Rec(BERT4RecConfig(items, max_len, d_model, depth, num_heads))
    counts = parameter_counts(model)
    attention, mlp, embedding = in_attention(counts), counts["mlp"], counts["embedding"] + items
    return Parameters(attention, mlp, embedding, counts["total"] - attention - mlp - embedding, items, d_model + 1)


def share_table() -> pd.DataFrame:
    """Attention's share of the parameters: index items, a column a shape."""
    return pd.DataFrame(
        {name: {n: shape_parameters(*shape).share(n) for n in CATALOGUE} for name, shape in SHAPES.items()}
    )


def share_marks() -> dict[str, tuple[int, float]]:
    """Our data sets with our shape, each with its number of positions: label -> (items, share)."""
    shape, marks = SHAPES["d 64, 2 layers (ours, 50 positions)"], {}
    for experiment, name in MARKS.items():
        config = EXPERIMENTS[experiment]
        n = num_items(config.dataset, config.items)
        marks[name] = n, shape_parameters(*shape, items=n, max_len=config.max_len).share(n)
    return marks


def share_levels() -> dict[str, float]:
    """Models whose size does not depend on a catalogue, counted: ViT-Tiny."""
    with shapes_only():
        counts = parameter_counts(ViT(ViTConfig()))
    return {"ViT-Tiny": in_attention(counts) / counts["total"]}


def third_answer() -> str:
    """Question 3 in words: our share, and where a share falls below the threshold."""
    crossings = []
    for name, shape in SHAPES.items():
        p = shape_parameters(*shape)
        crossing = p.items + (p.attention / MEANINGFUL - p.total) / p.per_item
        crossings.append(f"{crossing:,.0f} items with {name}")
    ours = ", ".join(
        f"{common.percent(share, 1)} with {n:,} items ({name})" for name, (n, share) in share_marks().items()
    )
    return (
        f"**In small catalogues only.** At our width and depth it is {ours}. It falls below"
        f" {common.percent(MEANINGFUL)} at {'; '.join(crossings)}."
    )


def audited() -> str:
    """What the chapter audits: a run of ours, or before there is one a pretrained model of which a measurement is
    recorded."""
    return "ml100k/bert-seed0" if existing(named("ml100k", arm=DEFAULT, seed=0)) else "minilm-l6"


# --- all three -------------------------------------------------------------------------------------------------------


def beside(explained: pd.DataFrame) -> str:
    """What the identity carries of QK and of V·proj in the trained encoders beside ours, a sentence; "" without
    them."""
    others = explained[~_ours(explained) & (explained["model"] != WRITTEN)]
    spans = [
        f"{100 * part.min():.1f} to {common.percent(part.max(), 1)} of {common.SHORT[product]}"
        for product, part in others.groupby("product", sort=False)["explained"]
    ]
    low = (others[others["product"] == "qk"].groupby("model")["explained"].max() < EXPLAINED).all()
    none = f"; no QK of theirs reaches our mark, {common.percent(EXPLAINED)}, either" if low else ""
    said = f" In trained encoders of images, speech and text the identity carries {' and '.join(spans)}{none}."
    return said if spans else ""


def _worth(products: pd.DataFrame) -> str:
    """Whether a model has layers worth imitating, and which."""
    there = layer_signs(products)["sign"] != "none"
    return f"{'yes' if there.all() else 'in part' if there.any() else 'no'}: {signs_in_words(products)}"


def overview(explained: pd.DataFrame) -> str:
    """The three questions as a Markdown table with a column a model and data set, from the same tables as their
    sections (explained: explained_table)."""
    marks, columns = share_marks(), {}
    for model, (experiment, arm) in OURS.items():
        part, energy = trained(experiment, arm), explained[explained["model"] == model]
        carried = ", ".join(common.percent(value, 2) for value in energy["explained"])
        share = marks[MARKS[experiment]][1]
        columns[model] = [
            _worth(part) if len(part) else "no run yet",
            f"{_explained_word(energy)}: {carried}" if len(energy) else "no run yet",
            f"{'yes' if share >= MEANINGFUL else 'no'}: {common.percent(share, 1)}",
        ]
    rows = [
        "Layers worth imitating?",
        f"Can matrix operations imitate them? (energy along the identity: {', '.join(common.SHORT.values())})",
        f"A meaningful share, {common.percent(MEANINGFUL)} or more of the parameters?",
    ]
    return common.markdown(pd.DataFrame({"asked": rows, **columns})).replace(" %", "\u00a0%")
