"""The three questions that a recommender researcher asks first (chapter 12): are there layers worth imitating, can matrix operations
imitate them, are they a meaningful share of all parameters?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from mimetic.audit import CHANCE, MEANINGFUL, Parameters, audit
from mimetic.audit.report import sign
from mimetic.experiments.answers import common
from mimetic.experiments.answers.recommenders import COMMAND, TITLES
from mimetic.experiments.configs import EXPERIMENTS
from mimetic.experiments.programmes.recommenders import DEFAULT, FIRST_SEEDS, MODELS, SIGNS, VISION
from mimetic.experiments.recorded import recorded_products, records_of
from mimetic.training.records import load_runs

# Measured on public checkpoints that are no longer to be had, by an earlier, unpublished reading: quoted, not repeated here.
# Mean diagonal / off-diagonal sd of the first and the second layer. SASRec: pmixer/SASRec.pytorch, ml-1m, four checkpoints;
# S3-Rec: Beauty, LastFM, Toys.
SECONDARY = (
    "An earlier reading of public checkpoints that have since been taken down (four SASRec on MovieLens-1M, three S3-Rec on Beauty, LastFM "
    "and Toys) found the opposite signs on both products: QK from −1.28 to −0.04, V·proj from +0.63 to +5.1 off-diagonal spreads. "
    "We cannot repeat it, and its block is another one: there only queries are normalised, and the residual starts from them."
)


# --- question 1 ------------------------------------------------------------------------------------------------------


def trained(experiment: str, arm: str = DEFAULT) -> pd.DataFrame:
    """The products of every recorded run of an arm after training (recorded.recorded_products)."""
    products = recorded_products(experiment, [arm])
    return products[products["when"] == "after"]


def trained_panels(experiments=("ml100k", "beauty")) -> pd.DataFrame:
    """Question 1's figure: the default arm on each data set, and the vision-sign arm on the first, as far as they are recorded."""
    shown = [(name, DEFAULT, "default") for name in experiments] + [(experiments[0], VISION, "vision signs")]
    parts = [recorded_products(name, [arm]).assign(panel=f"{TITLES[name].split(' (')[0]}, {words}") for name, arm, words in shown]
    return pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)


def sign_of(sigmas: pd.Series) -> str:
    """mimetic.audit's sign, and where there is none "mixed" if more than half are beyond chance on either side."""
    found = sign(sigmas)
    return "mixed" if found == "none" and (sigmas.abs() > CHANCE).mean() > 0.5 else found


def sign_table(models: Mapping[str, str] = MODELS, experiment: str = "ml100k") -> pd.DataFrame:
    """Which signs training finds from the default: one row a model; over all layers, heads and seeds."""
    rows = {}
    for name, arm in models.items():
        part = trained(experiment, arm)
        if part.empty:
            continue
        row: dict[str, object] = {"seeds": part["seed"].nunique()}
        for product, title in (("qk", "QK"), ("vp", "V·proj")):
            some = part[part["product"] == product]
            row |= {
                f"{title} z": some["z"].mean(), f"{title} above (%)": 100 * (some["sigmas"] > CHANCE).mean(),
                f"{title} below (%)": 100 * (some["sigmas"] < -CHANCE).mean(), f"{title} sign": sign_of(some["sigmas"]),
            }  # fmt: skip
        rows[name] = row
    return pd.DataFrame.from_dict(rows, orient="index").round(2)


def first_answer() -> str:
    """Does a trained BERT4Rec have layers worth imitating? From every recorded run of the default arm."""
    lines = []
    for experiment, title in TITLES.items():
        part = trained(experiment)
        if part.empty:
            lines.append(f"* {title}: no run of the default is in yet. `{COMMAND}` makes them.")
            continue
        words = []
        for product, name, unit in (("qk", common.PRODUCTS["qk"], "heads"), ("vp", common.PRODUCTS["vp"], "layers")):
            some = part[part["product"] == product]
            above, below = int((some["sigmas"] > CHANCE).sum()), int((some["sigmas"] < -CHANCE).sum())
            layers = ", ".join(f"layer {i} {z:+.2f}" for i, z in some.groupby("layer")["z"].mean().items()).replace("-", "−")
            words.append(f"{name} above chance in {above} and below in {below} of {len(some)} {unit} (mean z: {layers})")
        seeds = part["seed"].nunique()
        lines.append(f"* {title} ({seeds} seed{'s' if seeds > 1 else ''}): **{_worth_imitating(part)}**; {'; '.join(words)}.")
    return "\n".join(lines)


def _worth_imitating(products: pd.DataFrame) -> str:
    """The first question's answer for one model's trained products, in a few words."""
    signs = [sign_of(products.loc[products["product"] == p, "sigmas"]) for p in ("qk", "vp")]
    clear = sum(s in "+−" for s in signs)
    return {("+", "−"): "yes, with the signs of vision", ("−", "+"): "yes, with the opposite of vision's signs"}.get(
        (signs[0], signs[1]), "in one product" if clear == 1 else "yes" if clear else "no common sign"
    )


def sign_question() -> str:
    """Does the sign that training finds depend on the norm, on masking, on causality? From sign_table."""
    table = sign_table()
    if len(table) < 2:
        return f"Fewer than two of the six models are in. `{COMMAND}` adds the others, and this page follows."
    parts = []
    for product in ("QK", "V·proj"):
        signs = table[f"{product} sign"]
        groups = {s: ", ".join(f"*{name}*" for name in signs.index[signs == s]) for s in dict.fromkeys(signs)}
        words = {"none": "no clear sign", "mixed": "both signs, no common one", "+": "+", "−": "−"}
        parts.append(f"**{product}**: " + "; ".join(f"{words[s]} in {names}" for s, names in groups.items()))
    gap = common.missing(SIGNS, load_runs("ml100k"), FIRST_SEEDS, COMMAND)
    return ". ".join(parts) + "." + (f"\n\n{gap}" if gap else "")


# --- question 2 ------------------------------------------------------------------------------------------------------

WRITTEN = "what mimetic_init_ writes"
REFERENCES = ("dinov2-vit-s", "whisper-tiny-encoder", "minilm-l6")  # of which a measurement is recorded


def explained_table(experiments=("ml100k", "beauty")) -> pd.DataFrame:
    """How much of the products alpha Z + beta I explains: columns model, product, explained, imitated, target, reachable; means over
    layers and, for our runs, seeds. The paper's own vision target for a model of our shape, then what was measured."""
    import torch

    from mimetic.initialize import mimetic_init_
    from mimetic.models.blocks import Block
    from mimetic.scan import attention_layers

    frames = []
    blocks = torch.nn.Sequential(*(Block(64, 2) for _ in range(4)))
    mimetic_init_(blocks, generator=torch.Generator().manual_seed(0))
    frames.append(audit(attention_layers(blocks)).layers.assign(model=WRITTEN))
    for name in REFERENCES:
        found = audit(name)
        frames.append(found.layers.assign(model=found.name))
    for experiment in experiments:
        for record in records_of(experiment, [DEFAULT]):
            found = audit(f"{experiment}/{DEFAULT}-seed{record['seed']}")
            frames.append(found.layers.assign(model=f"BERT4Rec, {TITLES[experiment].split(' (')[0]}"))
    table = pd.concat(frames, ignore_index=True)
    groups = table.groupby(["model", "product"], sort=False)
    return groups[["explained", "imitated", "target", "reachable"]].mean().reset_index()


def second_answer(table: pd.DataFrame) -> str:
    """Question 2 for our models in words, beside trained encoders of other kinds of data and beside chance."""
    ours, others = (table[table["model"].str.startswith("BERT4Rec") == mine] for mine in (True, False))
    if ours.empty:
        return f"**Not known yet:** no run of the default is in. `{COMMAND}` makes them."
    others = others[others["model"] != WRITTEN].pivot(index="model", columns="product", values="explained")
    chance = 1 / EXPERIMENTS["ml100k"].d_model ** 2
    lines = []
    for model, part in ours.groupby("model", sort=False):
        part = part.set_index("product")
        enough = [p for p in ("qk", "vp") if part.loc[p, "explained"] >= others[p].min()]
        word = (
            "**as much of a diagonal as there**" if len(enough) == 2
            else f"**as much of a diagonal as the weakest of these in** {common.PRODUCTS[enough[0]]}, less in the other" if enough
            else "**the constants yes, the layers hardly**"
        )  # fmt: skip
        lines.append(
            f"* {model}: {word}. The identity carries {part.loc['qk', 'explained']:.2%} of the energy of $W_QW_K^T$ and "
            f"{part.loc['vp', 'explained']:.2%} of $W_VW_{{proj}}$; the imitations have {part.loc['qk', 'imitated']:.2%} and "
            f"{part.loc['vp', 'imitated']:.2%} after truncation ({part.loc['qk', 'target']:.2%} and {part.loc['vp', 'target']:.2%} before)."
        )
    spans = [f"{others[p].min():.1%} to {others[p].max():.1%} of {name}" for p, name in common.PRODUCTS.items()]
    return f"In the trained encoders of the figure, of images, speech and text, the identity carries {' and '.join(spans)}; by chance it would be {chance:.2%}.\n\n" + "\n".join(lines)


# --- question 3 ------------------------------------------------------------------------------------------------------

CATALOGUE = tuple(int(n) for n in np.unique(np.round(np.logspace(2, 7, 26)).astype(int)))
SHAPES = {"d 64, 2 layers (BERT4Rec on Beauty)": (64, 2, 2), "d 256, 4 layers": (256, 4, 4), "d 768, 12 layers (BERT base)": (768, 12, 12)}


def shape_parameters(d_model: int, depth: int, num_heads: int, items: int = 1_000, max_len: int = 50) -> Parameters:
    """The parameters of a BERT4Rec of this shape, counted on a model without weights."""
    import torch

    from mimetic.models.bert4rec import BERT4Rec, BERT4RecConfig
    from mimetic.models.blocks import parameter_counts

    with torch.device("meta"):
        model = BERT4Rec(BERT4RecConfig(items, max_len, d_model, depth, num_heads))
    counts = parameter_counts(model)
    attention = counts["attention_qkv"] + counts["attention_proj"]
    embedding = counts["embedding"] + items
    return Parameters(attention, counts["mlp"], embedding, counts["total"] - attention - counts["mlp"] - embedding, items, d_model + 1)


def share_table() -> pd.DataFrame:
    """Attention's share of the parameters: index items, a column a shape."""
    return pd.DataFrame({name: {n: shape_parameters(*shape).share(n) for n in CATALOGUE} for name, shape in SHAPES.items()})


def share_marks() -> dict[str, tuple[int, float]]:
    """Our data sets on the curve of our shape: label -> (items, share)."""
    base = shape_parameters(*SHAPES["d 64, 2 layers (BERT4Rec on Beauty)"])
    sizes = {"Beauty, ours": 1_000, "ML-100K": 1_682, "ML-1M": 3_706, "Beauty, all": 12_101}
    return {name: (n, base.share(n)) for name, n in sizes.items()}


def share_levels() -> dict[str, float]:
    """Models whose size does not depend on a catalogue, counted: ViT-Tiny."""
    import torch

    from mimetic.models.blocks import parameter_counts
    from mimetic.models.vit import ViT, ViTConfig

    with torch.device("meta"):
        counts = parameter_counts(ViT(ViTConfig()))
    return {"ViT-Tiny": (counts["attention_qkv"] + counts["attention_proj"]) / counts["total"]}


def third_answer() -> str:
    """Question 3 in words: where the share falls below the threshold, and what a large catalogue leaves."""
    marks, levels = share_marks(), share_levels()
    parts = []
    for name, shape in SHAPES.items():
        p = shape_parameters(*shape)
        crossing = p.items + (p.attention / MEANINGFUL - p.total) / p.per_item
        parts.append(f"{name}: below {MEANINGFUL:.0%} from {crossing:,.0f} items on, {p.share(10**6):.2%} at a million")
    ours = ", ".join(f"{share:.1%} with {name} ({n:,} items)" for name, (n, share) in marks.items())
    vit = "; ".join(f"{name} {share:.0%}" for name, share in levels.items())
    return f"Of a BERT4Rec of width 64 and two layers attention is {ours} ({vit}). {'; '.join(parts)}."


# --- all three -------------------------------------------------------------------------------------------------------


def in_short(explained: pd.DataFrame) -> str:
    """The three questions in a line each, from the same tables as their sections (explained: explained_table)."""
    models = [(title.split(" (")[0], experiment, DEFAULT) for experiment, title in TITLES.items()]
    models.append(("its causal sibling, next item, MovieLens-100K", "ml100k", MODELS["next item, causal, post-LN"]))
    first = [f"{name}: {_worth_imitating(part)}" for name, experiment, arm in models if len(part := trained(experiment, arm))]
    ours = explained[explained["model"].str.startswith("BERT4Rec")].groupby("model", sort=False)
    carried = [
        f"{name.removeprefix('BERT4Rec, ')} " + " and ".join(f"{row.explained:.2%} of {common.PRODUCTS[row.product]}" for row in part.itertuples()) for name, part in ours
    ]
    second = [f"Their two constants, always; the identity carries, of the energy: {', '.join(carried)}"] if carried else []
    third = [f"{share:.1%} of the parameters with {n:,} items ({name})" for name, (n, share) in share_marks().items() if name in ("ML-100K", "Beauty, all")]
    answers = {"Layers worth imitating?": first, "Can matrix operations imitate them?": second, "A meaningful share?": third}
    return "\n".join(f"* {asked} {'; '.join(parts) or 'no run is in yet'}." for asked, parts in answers.items())
