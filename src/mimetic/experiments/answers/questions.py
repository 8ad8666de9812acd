"""The three questions that a recommender researcher asks first (chapter 12): are there layers worth imitating, can
matrix operations imitate them, are they a meaningful share of all parameters?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch

from mimetic.audit import CHANCE, EXPLAINED, MEANINGFUL, Parameters, audit
from mimetic.audit.report import sign
from mimetic.experiments.answers import common, recommenders
from mimetic.experiments.answers.recommenders import COMMAND, SHOWN, SIBLING_RUNS, TITLES
from mimetic.experiments.configs import EXPERIMENTS, named
from mimetic.experiments.programmes.recommenders import DEFAULT, FIRST_SEEDS, MODELS, SIBLING_PREFIX, SIGNS, VISION
from mimetic.experiments.recorded import recorded_products, records_of
from mimetic.experiments.runs import existing
from mimetic.initialize import mimetic_init_
from mimetic.models.bert4rec import BERT4Rec, BERT4RecConfig
from mimetic.models.blocks import Block, in_attention, parameter_counts, shapes_only
from mimetic.models.vit import ViT, ViTConfig
from mimetic.pretrained import SOURCES
from mimetic.scan import attention_layers
from mimetic.statistics import mean_interval
from mimetic.training.records import load_runs

# --- question 1 ------------------------------------------------------------------------------------------------------


def trained(experiment: str, arm: str = DEFAULT) -> pd.DataFrame:
    """The products of every recorded run of an arm after training (recorded.recorded_products)."""
    products = recorded_products(experiment, [arm])
    return products[products["when"] == "after"]


def trained_panels() -> pd.DataFrame:
    """Question 1's figure: the default arm on each data set, and the vision-sign arm
    on the first, as far as they are recorded.
    """
    shown = [("ml100k", DEFAULT, "default"), ("beauty", DEFAULT, "default"), ("ml100k", VISION, "vision signs")]
    parts = [
        recorded_products(name, [arm]).assign(panel=f"{TITLES[name].split(' (')[0]}, {words}")
        for name, arm, words in shown
    ]
    return pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)


def layer_signs(products: pd.DataFrame) -> pd.DataFrame:
    """One row a product and layer of a model's trained products: the mean z of its heads over runs, its
    95 % interval over the runs' means, how many heads (of all runs) lie above and below chance, and the
    sign that mimetic.audit's rule gives them.
    """
    rows = {}
    for (product, layer), part in products.groupby(["product", "layer"]):
        sigmas = part["sigmas"]
        low, high = mean_interval(part.groupby("seed")["z"].mean())
        rows[product, layer] = {
            "z": part["z"].mean(),
            "low": low,
            "high": high,
            "above": int((sigmas > CHANCE).sum()),
            "below": int((sigmas < -CHANCE).sum()),
            "count": len(part),
            "sign": sign(sigmas),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def signs_in_words(products: pd.DataFrame) -> str:
    """The signs of a model's trained products, layer by layer."""
    signs, common_signs, parts = layer_signs(products)["sign"], [], []
    for product, name in (("qk", "QK"), ("vp", "V·proj")):
        found = signs[product]
        common_signs.append(found.iloc[0] if found.nunique() == 1 else "none")
        if common_signs[-1] != "none":
            parts.append(f"{name} {common_signs[-1]} in every layer")
        else:
            parts.append(
                f"{name} {', '.join(f'{s} in layer {i}' for i, s in found.items() if s != 'none') or 'in no layer'}"
            )
    patterns = {("+", "−"): "vision's signs", ("−", "+"): "the opposite of vision's signs"}
    if tuple(common_signs) in patterns:
        parts.append(patterns[tuple(common_signs)])
    return ", ".join(parts)


def sign_table(models: Mapping[str, str] = MODELS, experiment: str = "ml100k") -> pd.DataFrame:
    """Which signs training finds from the default: one row a model; mean z and, where there is
    one, the sign of each product and layer.
    """
    rows = {}
    for name, arm in models.items():
        part = trained(experiment, arm)
        if part.empty:
            continue
        row: dict[str, object] = {"seeds": part["seed"].nunique()}
        for (product, layer), found in layer_signs(part).iterrows():
            common_sign = f" ({found['sign']})" if found["sign"] != "none" else ""
            z = f"{found['z']:+.2f}".replace("-", "−")
            row[f"{'QK' if product == 'qk' else 'V·proj'}, layer {layer}"] = f"{z}{common_sign}"
        rows[name] = row
    return pd.DataFrame.from_dict(rows, orient="index")


def first_answer() -> str:
    """Does a trained BERT4Rec have layers worth imitating? From every recorded run of the default arm."""
    lines = []
    for experiment, title in TITLES.items():
        part = trained(experiment)
        if part.empty:
            lines.append(f"* {title}: no run of the default is in yet. `{COMMAND}` makes them.")
            continue
        several = part["seed"].nunique() > 1
        words = []
        for (product, layer), row in layer_signs(part).iterrows():
            span = f" ({row['low']:+.2f} to {row['high']:+.2f})" * several
            at_mark = 4 * max(row["above"], row["below"]) == 3 * row["count"]
            said = (
                f"{common.PRODUCTS[product]} in layer {layer}: z {row['z']:+.2f}{span}, above chance in {row['above']}"
                f" and below in {row['below']} of {row['count']}"
            )
            words.append((said + ", exactly at the mark, so not counted" * at_mark).replace("-", "−"))
        seeds = part["seed"].nunique()
        lines.append(
            f"* {title} ({seeds} seed{'s' if seeds > 1 else ''}): **{signs_in_words(part)}**. {'; '.join(words)}."
        )
    return "\n".join(lines)


FACTORS = {  # what differs between two of MODELS, and nothing else of the model
    "the norm (pre-LN in place of post-LN)": [
        (f"{task}, post-LN", f"{task}, pre-LN") for task in ("BERT4Rec", "masked items, causal", "next item, causal")
    ],
    "causality (a causal mask)": [
        (f"BERT4Rec, {norm}", f"masked items, causal, {norm}") for norm in ("post-LN", "pre-LN")
    ],
    "the task (next item in place of masked items)": [
        (f"masked items, causal, {norm}", f"next item, causal, {norm}") for norm in ("post-LN", "pre-LN")
    ],
    "longer training (40 epochs in place of 20)": [
        (f"next item, causal, {norm}", f"next item, causal, {norm}, 40 epochs") for norm in ("post-LN", "pre-LN")
    ],
}


def sign_changes() -> pd.DataFrame:
    """What changes of the signs that training finds between models that differ in one of FACTORS: a row a
    factor and product; in how many layers of all such pairs of models the sign turns, appears or vanishes,
    their number (layers) and that of the pairs.
    """
    layers = {name: layer_signs(part) for name, arm in MODELS.items() if len(part := trained("ml100k", arm))}
    signs = {name: table["sign"] for name, table in layers.items()}
    # of the layer's mean, where its interval leaves out 0
    sides = {
        name: np.sign(table["low"]).where(np.sign(table["low"]) == np.sign(table["high"]), 0)
        for name, table in layers.items()
    }
    rows = []
    for factor, pairs in FACTORS.items():
        there = [(signs[a], signs[b]) for a, b in pairs if a in signs and b in signs]
        means = [(sides[a], sides[b]) for a, b in pairs if a in signs and b in signs]
        for product, name in (("qk", "QK"), ("vp", "V·proj")) if there else ():
            before, after = (np.concatenate([pair[i][product].to_numpy() for pair in there]) for i in (0, 1))
            counts = {
                "turns": (before != after) & (before != "none") & (after != "none"),
                "appears": (before == "none") & (after != "none"), "vanishes": (before != "none") & (after == "none"),
            }  # fmt: skip
            rows.append(
                {
                    "factor": factor,
                    "product": name,
                    **{word: int(found.sum()) for word, found in counts.items()},
                    "layers": len(before),
                    "pairs": len(there),
                    "means turn": sum(int((a[product] * b[product] < 0).sum()) for a, b in means),
                }
            )
    return pd.DataFrame(rows)


def sign_question() -> str:
    """Does the sign that training finds depend on the norm, on masking, on causality? In short."""
    table = sign_changes()
    if table.empty:
        return f"No two models that differ in one of these are in. `{COMMAND}` adds the others, and this page follows."
    runs = load_runs("ml100k")
    gap = common.missing(SIGNS, runs, FIRST_SEEDS, COMMAND)
    few = [n for arm in MODELS.values() if 0 < (n := int((runs["arm"] == arm).sum())) < common.ENOUGH]
    thin = ""
    if few:
        thin = (
            f"{len(few)} of the models have {min(few)} seeds, too few for a claim."
            " Heads of one model, and layers, are not independent of each other,"
            " and a threshold makes a yes or no of a number that is not."
        )
    return "\n\n".join(filter(None, [f"**In short:** {_sign_changes_in_short(table)}", thin, gap]))


def _sign_changes_in_short(table: pd.DataFrame) -> str:
    """Which factors change a product's sign in at least half of the layers
    (sign_changes), and whether any turns it round.
    """
    changed = table.assign(changed=table[["turns", "appears", "vanishes"]].sum(axis=1))
    parts = []
    for product, part in changed.groupby("product", sort=False):
        often = part[2 * part["changed"] >= part["layers"]]
        factors = [f"{row.factor.split(' (')[0]} ({row.changed} of {row.layers} layers)" for row in often.itertuples()]
        how = "changes" if part["turns"].any() else "appears or vanishes"
        with_these = " and with ".join(factors) or "none of these"
        parts.append(f"the sign of {product} {how} in half of the layers or more with {with_these}")
    turned, means = changed["turns"].sum(), changed["means turn"].sum()
    by_mean = (
        f" (A layer's mean does, with an interval without 0 on either side, in {means} of {changed['layers'].sum()}.)"
        if means > turned
        else ""
    )
    by_mark = "By this mark no sign turns round." if turned == 0 else f"A sign turns round in {turned} of these."
    return f"{'; '.join(parts)}. {by_mark}{by_mean}"


# --- question 2 ------------------------------------------------------------------------------------------------------

WRITTEN = "what mimetic_init_ writes"
# name -> (experiment, arm) of its runs
OURS = {
    "ml100k": ("ml100k", DEFAULT),
    "beauty": ("beauty", DEFAULT),
    SIBLING_RUNS: ("ml100k", SIBLING_PREFIX + DEFAULT),
}
MODEL_NAMES = {
    "ml100k": "BERT4Rec, MovieLens-100K",
    "beauty": "BERT4Rec, Amazon Beauty",
    SIBLING_RUNS: "causal sibling, MovieLens-100K",
}
MARKS = {"ml100k": "ML-100K", "beauty": "Beauty, ours"}  # experiment -> its name in share_marks
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
        found = audit(name)
        frames.append(
            found.layers.assign(
                model=found.name,
                d_model=found.layers["layer"].map(dict(enumerate(d for d, _ in SOURCES[name].layer_dims()))),
            )
        )
    for data, (experiment, arm) in OURS.items():
        for record in records_of(experiment, [arm]):
            found = audit(f"{experiment}/{arm}-seed{record['seed']}")
            frames.append(found.layers.assign(model=MODEL_NAMES[data], d_model=record["config"]["d_model"]))
    table = pd.concat(frames, ignore_index=True)
    # E[tr(P)^2] / (d |P|^2) is 1 / d^2 for independent entries
    table["times chance"] = table["explained"] * table["d_model"] ** 2
    groups = table.groupby(["model", "product"], sort=False)
    return groups[["explained", "imitated", "target", "reachable", "times chance"]].mean().reset_index()


def _ours(explained: pd.DataFrame) -> pd.Series:
    """Which rows are of our own trained recommenders."""
    return explained["model"].isin(MODEL_NAMES.values())


def second_answer(table: pd.DataFrame) -> str:
    """Question 2 for our models in words, beside trained encoders of other kinds of data and beside chance."""
    ours, others = table[_ours(table)], table[~_ours(table)]
    if ours.empty:
        return f"**Not known yet:** no run of the default is in. `{COMMAND}` makes them."
    lines = []
    for model, part in ours.groupby("model", sort=False):
        words = [
            f"{common.percent(row['explained'], 2)} of {common.PRODUCTS[row['product']]}"
            f" ({row['times chance']:.0f} times chance;"
            f" the imitation {common.percent(row['imitated'], 2)} after truncation,"
            f" {common.percent(row['target'], 2)} before)"
            for _, row in part.iterrows()
        ]
        lines.append(
            f"* {model}: **{_explained_word(part)}**. Of the energy the identity carries {' and '.join(words)}."
        )
    others = others[others["model"] != WRITTEN]
    spans = []
    for product, name in common.PRODUCTS.items():
        part = others[others["product"] == product]
        spans.append(
            f"{common.percent(part['explained'].min(), 1)} to {common.percent(part['explained'].max(), 1)} of {name}"
            f" ({part['times chance'].min():,.0f} to {part['times chance'].max():,.0f} times chance)"
        )
    return (
        "In the trained encoders of the figure, of images, speech and text, the identity carries"
        f" {' and '.join(spans)}; chance falls with the width.\n\n" + "\n".join(lines)
    )


def _explained_word(part: pd.DataFrame) -> str:
    """In which products of a model (its rows of explained_table) the identity
    carries EXPLAINED or more, audit's threshold.
    """
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
    attention = in_attention(counts)
    embedding = counts["embedding"] + items
    return Parameters(
        attention, counts["mlp"], embedding, counts["total"] - attention - counts["mlp"] - embedding, items, d_model + 1
    )


def share_table() -> pd.DataFrame:
    """Attention's share of the parameters: index items, a column a shape."""
    return pd.DataFrame(
        {name: {n: shape_parameters(*shape).share(n) for n in CATALOGUE} for name, shape in SHAPES.items()}
    )


def share_marks() -> dict[str, tuple[int, float]]:
    """Our data sets with our shape, each with its number of positions: label -> (items, share)."""
    shape = SHAPES["d 64, 2 layers (ours, 50 positions)"]
    sizes = {
        "Beauty, ours": (1_000, "beauty"),
        "ML-100K": (1_682, "ml100k"),
        "ML-1M": (3_706, "ml1m"),
        "Beauty, all": (12_101, "beauty-full"),
    }
    return {
        name: (n, shape_parameters(*shape, items=n, max_len=EXPERIMENTS[experiment].max_len).share(n))
        for name, (n, experiment) in sizes.items()
    }


def share_levels() -> dict[str, float]:
    """Models whose size does not depend on a catalogue, counted: ViT-Tiny."""
    with shapes_only():
        counts = parameter_counts(ViT(ViTConfig()))
    return {"ViT-Tiny": in_attention(counts) / counts["total"]}


def third_answer() -> str:
    """Question 3 in words: where the share falls below the threshold, and what a large catalogue leaves."""
    marks, levels = share_marks(), share_levels()
    parts = []
    for name, shape in SHAPES.items():
        p = shape_parameters(*shape)
        crossing = p.items + (p.attention / MEANINGFUL - p.total) / p.per_item
        parts.append(
            f"{name}: below {common.percent(MEANINGFUL)} from {crossing:,.0f} items on,"
            f" {common.percent(p.share(10**6), 2)} at a million"
        )
    ours = ", ".join(f"{common.percent(share, 1)} with {name} ({n:,} items)" for name, (n, share) in marks.items())
    vit = "; ".join(f"{name} {common.percent(share)}" for name, share in levels.items())
    return f"Of a BERT4Rec of width 64 and two layers attention is {ours} ({vit}). {'; '.join(parts)}."


def audited() -> str:
    """What the chapter audits: a run of ours, or before there is one a pretrained
    model of which a measurement is recorded.
    """
    return "ml100k/bert-seed0" if existing(named("ml100k", arm=DEFAULT, seed=0)) else "minilm-l6"


# --- all three -------------------------------------------------------------------------------------------------------


def beside(explained: pd.DataFrame) -> str:
    """What the identity carries of QK and of V·proj in the trained encoders
    beside ours, a sentence; "" without them.
    """
    others = explained[~_ours(explained) & (explained["model"] != WRITTEN)]
    spans = [
        f"{100 * part.min():.1f} to {common.percent(part.max(), 1)} of {'QK' if product == 'qk' else 'V·proj'}"
        for product, part in others.groupby("product", sort=False)["explained"]
    ]
    low = (others[others["product"] == "qk"].groupby("model")["explained"].max() < EXPLAINED).all()
    none = f"; no QK of theirs reaches our mark, {common.percent(EXPLAINED)}, either" if low else ""
    return (
        f" In trained encoders of images, speech and text the identity carries {' and '.join(spans)}{none}."
        if spans
        else ""
    )


def _worth(products: pd.DataFrame) -> str:
    """Whether a model has layers worth imitating, and which."""
    there = layer_signs(products)["sign"] != "none"
    return f"{'yes' if there.all() else 'in part' if there.any() else 'no'}: {signs_in_words(products)}"


def overview(explained: pd.DataFrame, finals: Mapping[str, pd.DataFrame]) -> str:
    """The three questions and what every arm of the experiment gains, as one Markdown table with a column a model and
    data set, from the same tables as their sections (explained: explained_table); then what else the third depends on.
    """
    tables, marks = recommenders.compared(finals, recommenders.COMPARED), share_marks()
    gains = recommenders.against_default(tables)
    columns = {}
    for data, (experiment, arm) in OURS.items():
        part, energy = trained(experiment, arm), explained[explained["model"] == MODEL_NAMES[data]]
        carried = ", ".join(common.percent(value, 2) for value in energy["explained"])
        share = marks[MARKS[experiment]][1]
        pairs = f", {common.pairs_of(tables[data])}" if data in gains else ""
        columns[f"{SHOWN[data]}{pairs}"] = [
            _worth(part) if len(part) else "no run yet",
            f"{_explained_word(energy)}: {carried}" if len(energy) else "no run yet",
            f"{'yes' if share >= MEANINGFUL else 'no'}: {common.percent(share, 1)}",
            *(gains[data] if data in gains else [""] * len(gains)),
        ]
    rows = [
        "Layers worth imitating?",
        f"Can matrix operations imitate them? (energy along the identity in {', '.join(common.PRODUCTS.values())})",
        f"A meaningful share, {common.percent(MEANINGFUL)} or more of the parameters?",
        *("last-epoch NDCG@10: default" if name == "default" else f"{name}, minus that" for name in gains.index),
    ]
    elsewhere = ", ".join(
        f"{common.percent(share, 1)} with {n:,} items ({name})"
        for name, (n, share) in marks.items()
        if name not in MARKS.values()
    )
    return (
        common.markdown(pd.DataFrame({"asked": rows, **columns})).replace(" %", "\u00a0%")
        + f"\n\nIn a larger catalogue attention's share is smaller: {elsewhere}.{beside(explained)}"
    )
