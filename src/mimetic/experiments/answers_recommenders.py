"""From run records to what the recommender chapter says: tables, and sentences whose numbers and verdict words are computed.

As in answers.py, every function copes with records that are not there yet and says what is missing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import pandas as pd

from mimetic.audit import CHANCE, CLEAR, EXPLAINED, MEANINGFUL, Parameters, audit
from mimetic.experiments.answers import finding, study_points, study_table
from mimetic.experiments.baselines import baselines_path
from mimetic.experiments.configs import EXPERIMENTS
from mimetic.experiments.fitted import product_table
from mimetic.experiments.programmes.recommenders import CENTRAL, DEFAULT, MODELS, OPPOSITE, SEEDS, SIGNS, STUDIES, VISION
from mimetic.experiments.programmes.study import Study
from mimetic.experiments.recommenders import METRIC
from mimetic.figures.style import LABELS
from mimetic.statistics import compare, holm, mean_interval, paired_differences, sign_flip_test, smallest_p, steps_to_reach
from mimetic.training.records import load_runs, read_record, runs_dir

COMMAND = "python -m mimetic queue recommenders"
TITLES = {"ml100k": "MovieLens-100K", "beauty": "Amazon Beauty (1,000 items)"}
# Measured on public checkpoints that are no longer to be had, by an earlier, unpublished reading: quoted, not repeated here.
# Mean diagonal / off-diagonal sd of the first and the second layer. SASRec: pmixer/SASRec.pytorch, ml-1m, four checkpoints;
# S3-Rec: Beauty, LastFM, Toys.
SECONDARY = (
    "An earlier reading of public checkpoints that have since been taken down (four SASRec on MovieLens-1M, three S3-Rec on Beauty, LastFM "
    "and Toys) found the opposite signs on both products: QK from −1.28 to −0.04, V·proj from +0.63 to +5.1 off-diagonal spreads. "
    "We cannot repeat it."
)
ARM_LABELS = LABELS | {VISION: "vision signs", "mimetic-qk": "QK only, vision's sign", "mimetic-vp": "V·proj only, vision's sign"}
WORTH = 0.005  # of NDCG@10: about what a seed is worth, the rule of the recipe search


def draw(figure, data, *args, **kwargs) -> None:
    """Show figure(data, ...), or say that its runs are not in yet."""
    import matplotlib.pyplot as plt
    from IPython.display import Markdown, display

    if len(data):
        figure(data, *args, **kwargs)
        plt.show()
    else:
        display(Markdown(f"*No figure yet: its runs are not in. `{COMMAND}` makes them, and this page follows.*"))


# --- records ---------------------------------------------------------------------------------------------------------


def missing(study: Study, finals: pd.DataFrame, seeds: tuple[int, ...]) -> str:
    """How many of a study's runs are in, as a sentence; "" when all are."""
    wanted = {(config.arm or config.init, config.seed) for config in study.runs(seeds)}
    there = wanted & set(zip(finals["arm"], finals["seed"]))
    if there == wanted:
        return ""
    return f"*{len(there)} of {len(wanted)} runs are in; `{COMMAND}` adds the others, and this page follows.*"


def load_products(arms: Mapping[str, str], experiment: str = "ml100k") -> pd.DataFrame:
    """The products before and after training of every recorded run of some arms (panel -> arm), with the LayerNorm gains folded in
    where a block has one in front (pre-LN): columns panel, arm, seed, when, layer, head, product, z, sigmas, null_mean, ..."""
    frames = []
    for panel, arm in arms.items():
        for path in sorted((runs_dir() / experiment).glob(f"{arm}-seed*.json")):
            record = read_record(path)
            if record["arm"] == arm:
                for when in ("before", "after"):
                    table = product_table(record, when, fold=True)
                    frames.append(table.assign(panel=panel, arm=arm, seed=record["seed"], when=when))
    columns = ["panel", "arm", "seed", "when", "layer", "head", "product", "z", "sigmas", "null_mean", "null_sd"]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=columns)


# --- question 1 ------------------------------------------------------------------------------------------------------


def trained_panels(experiments=("ml100k", "beauty")) -> pd.DataFrame:
    """Question 1's figure: the default arm on each data set, and the vision-sign arm on the first, as far as they are recorded."""
    parts = [load_products({f"{TITLES[name].split(' (')[0]}, default": DEFAULT}, name) for name in experiments]
    parts.append(load_products({f"{TITLES[experiments[0]].split(' (')[0]}, vision signs": VISION}, experiments[0]))
    parts = [p for p in parts if len(p)]
    return pd.concat(parts, ignore_index=True) if parts else load_products({})


def sign_of(sigmas: pd.Series) -> str:
    """"+" or "−" if more than three quarters lie beyond chance on that side, "mixed" if half do on either, else "none"."""
    above, below = (sigmas > CHANCE).mean(), (sigmas < -CHANCE).mean()
    return "+" if above > CLEAR else "−" if below > CLEAR else "mixed" if above + below > 0.5 else "none"


def sign_table(models: Mapping[str, str] = MODELS, experiment: str = "ml100k") -> pd.DataFrame:
    """Which signs training finds from the default: one row a model; over all layers, heads and seeds."""
    rows = {}
    for name, arm in models.items():
        part = load_products({name: arm}, experiment)
        part = part[part["when"] == "after"]
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
        part = load_products({title: DEFAULT}, experiment)
        part = part[part["when"] == "after"]
        if part.empty:
            lines.append(f"* {title}: no run of the default is in yet. `{COMMAND}` makes them.")
            continue
        words = []
        for product, name, unit in (("qk", "$W_QW_K^T$", "heads"), ("vp", "$W_VW_{proj}$", "layers")):
            some = part[part["product"] == product]
            above, below = int((some["sigmas"] > CHANCE).sum()), int((some["sigmas"] < -CHANCE).sum())
            layers = ", ".join(f"layer {i} {z:+.2f}" for i, z in some.groupby("layer")["z"].mean().items()).replace("-", "−")
            words.append(f"{name} above chance in {above} and below in {below} of {len(some)} {unit} (mean z: {layers})")
        signs = {p: sign_of(part[part["product"] == p]["sigmas"]) for p in ("qk", "vp")}
        clear = [p for p in signs.values() if p in "+−"]
        verdict = {
            ("+", "−"): "**yes, with the signs of vision**", ("−", "+"): "**yes, with the opposite of vision's signs**",
        }.get((signs["qk"], signs["vp"]), "**in one product**" if len(clear) == 1 else "**yes**" if clear else "**no common sign**")  # fmt: skip
        seeds = part["seed"].nunique()
        lines.append(f"* {title} ({seeds} seed{'s' if seeds > 1 else ''}): {verdict}; {'; '.join(words)}.")
    return "\n".join(lines)


# --- question 2 ------------------------------------------------------------------------------------------------------

REFERENCES = ("dinov2-vit-s", "whisper-tiny-encoder", "minilm-l6")  # of which a measurement is recorded


def explained_table(experiments=("ml100k", "beauty")) -> pd.DataFrame:
    """How much of the products alpha Z + beta I explains: columns model, product, explained, imitated, target, reachable; means over
    layers and, for our runs, seeds. The paper's own vision target for a model of our shape, then what was measured."""
    import torch

    from mimetic.attention import attention_layers
    from mimetic.initialize import mimetic_init_
    from mimetic.models.blocks import Block

    frames = []
    blocks = torch.nn.Sequential(*(Block(64, 2) for _ in range(4)))
    mimetic_init_(blocks, generator=torch.Generator().manual_seed(0))
    frames.append(audit(attention_layers(blocks)).layers.assign(model="what mimetic_init_ writes"))
    for name in REFERENCES:
        found = audit(name)
        frames.append(found.layers.assign(model=found.name))
    for experiment in experiments:
        for path in sorted((runs_dir() / experiment).glob(f"{DEFAULT}-seed*.json")):
            seed = read_record(path)["seed"]
            found = audit(f"{experiment}/{DEFAULT}-seed{seed}")
            frames.append(found.layers.assign(model=f"BERT4Rec, {TITLES[experiment].split(' (')[0]}"))
    table = pd.concat(frames, ignore_index=True)
    groups = table.groupby(["model", "product"], sort=False)
    return groups[["explained", "imitated", "target", "reachable"]].mean().reset_index()


def second_answer(table: pd.DataFrame) -> str:
    """Question 2 for our models, in words."""
    ours = table[table["model"].str.startswith("BERT4Rec")]
    if ours.empty:
        return f"**Not known yet:** no run of the default is in. `{COMMAND}` makes them."
    lines = []
    for model, part in ours.groupby("model", sort=False):
        part = part.set_index("product")
        enough = [p for p in ("qk", "vp") if part.loc[p, "explained"] >= EXPLAINED]
        word = "**yes**" if len(enough) == 2 else "**in part**" if enough else "**the constants yes, the layers hardly**"
        lines.append(
            f"* {model}: {word}. The identity carries {part.loc['qk', 'explained']:.1%} of the energy of $W_QW_K^T$ and "
            f"{part.loc['vp', 'explained']:.1%} of $W_VW_{{proj}}$; the imitations have {part.loc['qk', 'imitated']:.1%} and "
            f"{part.loc['vp', 'imitated']:.1%} after truncation ({part.loc['qk', 'target']:.1%} and {part.loc['vp', 'target']:.1%} before)."
        )
    return "\n".join(lines)


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
        parts.append(f"{name}: below {MEANINGFUL:.0%} from {crossing:,.0f} items on, {p.share(10**6):.2g} of all at a million")
    ours = ", ".join(f"{share:.1%} with {name} ({n:,} items)" for name, (n, share) in marks.items())
    vit = "; ".join(f"{name} {share:.0%}" for name, share in levels.items())
    return f"Of a BERT4Rec of width 64 and two layers attention is {ours} ({vit}). {'; '.join(parts)}."


# --- the experiment --------------------------------------------------------------------------------------------------


def central(data: str, finals: pd.DataFrame) -> str:
    """The verdict on one data set: vision's and the opposite signs against the default."""
    title = TITLES[data]
    lines = []
    for arm, name in ((VISION, "vision's signs"), (OPPOSITE, "the opposite signs")):
        if not {DEFAULT, arm} <= set(finals["arm"]) or (pairs := paired_differences(finals, METRIC.column, (DEFAULT, arm))).empty:
            lines.append(f"{name}: no pair yet")
            continue
        n, d = len(pairs), pairs["difference"]
        p, (low, high) = sign_flip_test(d), mean_interval(d)
        text = f"{name}: {METRIC.signed(d.mean())} on {pairs[DEFAULT].mean():.4f} over {n} paired seed{'s' if n > 1 else ''}"
        if n == 1:
            text += ", which proves nothing"
        else:
            text += f", 95 % interval {METRIC.signed(low)} to {METRIC.signed(high)}, ahead in {(d > 0).sum()}"
            if smallest_p(n, "two-sided") > 0.05:
                text += f"; {n} pairs cannot carry a claim (smallest possible p {smallest_p(n, 'two-sided'):.3f})"
            else:
                text += f"; {'more than chance explains' if p < 0.05 else 'which chance can explain'} (exact sign-flip test, p = {p:.3f})"
        lines.append(text)
    return f"**{title}**, test NDCG@10: " + "; ".join(lines) + "."


def verdict(finals: Mapping[str, pd.DataFrame]) -> str:
    """The chapter's answer: both data sets, and how many runs are missing."""
    parts = [central(data, table) for data, table in finals.items()]
    gaps = [f"{TITLES[data]}: {text.strip('*')}" for data, table in finals.items() if (text := missing(CENTRAL[data], table, SEEDS[data]))]
    return "\n\n".join(parts) + ("\n\n*" + " ".join(gaps) + "*" if gaps else "")


def found(name: str, finals: pd.DataFrame, seeds: tuple[int, ...]) -> str:
    """A study's findings as Markdown, one line a comparison, and how many runs are missing."""
    study = STUDIES[name]
    lines = [f"* {label}: {finding(row, METRIC)}" for label, row in study_table(study, finals, METRIC).iterrows()]
    gap = missing(study, finals, seeds)
    if not lines:
        return f"**We found** nothing yet. {gap}"
    return "**We found** (mean difference of NDCG@10, 95 % interval):\n\n" + "\n".join(lines) + (f"\n\n{gap}" if gap else "")


def comparison(names: list[str], finals: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Tables and points of several studies on one data set (for figures.comparisons)."""
    tables = [table for name in names if len(table := study_table(STUDIES[name], finals, METRIC))]
    points = pd.concat([study_points(STUDIES[name], finals, METRIC) for name in names], ignore_index=True)
    return (pd.concat(tables) if tables else pd.DataFrame(columns=["group", "difference", "low", "high"])), points


def numbers(table: pd.DataFrame) -> pd.DataFrame:
    """A table of compare for the page, p corrected over all its rows."""
    if table.empty:
        return table
    columns = ["group", "reference", "arm", "difference", "low", "high", "pairs", "wins", "p", "p_holm"]
    rounded = dict.fromkeys(("reference", "arm", "difference", "low", "high"), 4) | dict.fromkeys(("p", "p_holm"), 3)
    return table.assign(p_holm=holm(table["p"]))[columns].round(rounded)


def score_table(finals: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Baselines and every recorded arm of the central comparison, test metrics: mean, and sd of NDCG@10 over seeds."""
    rows = [
        {"data": TITLES[row["dataset"]], "recommender": row["baseline"], "seeds": 0} | {k: row[k] for k in ("ndcg10", "recall10", "mrr")}
        for row in json.loads(baselines_path().read_text(encoding="utf-8"))
        if row["split"] == "test" and row["dataset"] in finals
    ]
    for data, table in finals.items():
        for arm in CENTRAL[data].arms:
            part = table[table["arm"] == arm]
            if len(part):
                rows.append({
                    "data": TITLES[data], "recommender": f"BERT4Rec, {ARM_LABELS.get(arm, arm)}", "seeds": len(part),
                    **{k: part[f"test_{k}"].mean() for k in ("ndcg10", "recall10", "mrr")}, "sd": part["test_ndcg10"].std(),
                })  # fmt: skip
    out = pd.DataFrame(rows).rename(columns={"ndcg10": "NDCG@10", "recall10": "Recall@10", "mrr": "MRR", "sd": "sd of NDCG@10"})
    order = {TITLES[data]: i for i, data in enumerate(finals)}
    return out.sort_values("data", key=lambda c: c.map(order), kind="stable").set_index(["data", "recommender"]).round(4)


def baseline_levels(data: str, split: str = "test") -> dict[str, float]:
    """The baselines' NDCG@10 on a data set, for a figure."""
    rows = json.loads(baselines_path().read_text(encoding="utf-8"))
    return {row["baseline"]: row["ndcg10"] for row in rows if row["dataset"] == data and row["split"] == split}


def oracle_level() -> float:
    """NDCG@10 of the synthetic data's own transition probabilities: the best there is, on average."""
    from mimetic.data.sequences import load_sequences, oracle
    from mimetic.experiments.baselines import rank_metrics

    data = load_sequences("clusters")
    return rank_metrics(np.array([oracle(data.history(u, False)) for u in range(data.num_users)]), data)["ndcg10"]


def labelled(data: str, curves: pd.DataFrame) -> pd.DataFrame:
    """The curves of the central comparison's arms, in its order, arms in words (for figures.ranking_curves)."""
    parts = [curves[curves["arm"] == arm].assign(arm=ARM_LABELS.get(arm, arm)) for arm in CENTRAL[data].arms]
    return pd.concat(parts, ignore_index=True)


def converged(curves: pd.DataFrame, data: str) -> str:
    """Whether the default's validation NDCG@10 still moved in the last fifth of the run."""
    part = curves[curves["arm"] == DEFAULT]
    if part.empty:
        return f"No run of the default on {TITLES[data]} is in yet."
    mean = part.groupby("epoch")["test_validation_ndcg10"].mean()
    fifth = max(1, len(mean) // 5)
    change = mean.iloc[-fifth:].mean() - mean.iloc[-2 * fifth : -fifth].mean()
    word = "has converged" if abs(change) < WORTH else "is still rising" if change > 0 else "is falling"
    return (
        f"On {TITLES[data]} the default's validation NDCG@10 {word}: {mean.iloc[-fifth:].mean():.4f} in the last {fifth} epochs, "
        f"{METRIC.signed(change)} against the {fifth} before ({part['seed'].nunique()} seed{'s' if part['seed'].nunique() > 1 else ''})."
    )


def recipe_table() -> pd.DataFrame:
    """The search for the recipe: validation NDCG@10 by data set and setting."""
    rows = []
    for data in TITLES:
        runs = load_runs(f"{data}-recipe")
        if len(runs):
            for arm, part in runs.groupby("arm"):
                settings = {key: part[f"config.{key}"].iloc[0] for key in ("lr", "mask_prob", "epochs")}
                rows.append({"data": TITLES[data], "setting": arm, **settings, "validation NDCG@10": part["test_validation_ndcg10"].mean()})
    table = pd.DataFrame(rows)
    return table.set_index(["data", "setting"]).round(4) if len(table) else table


def recipe_sentence() -> str:
    """What the longest training adds, and the recipe that was taken, from the configs."""
    parts = []
    for data, short, long in (("ml100k", "lr-0.001-epochs-40", "lr-0.001-epochs-80"), ("beauty", "epochs-40", "epochs-80")):
        runs = load_runs(f"{data}-recipe")
        if {short, long} <= set(runs["arm"]):
            a, b = (runs.loc[runs["arm"] == arm, "test_validation_ndcg10"].mean() for arm in (short, long))
            word = "less than a seed is worth" if abs(b - a) < WORTH else "more than a seed is worth"
            parts.append(f"on {TITLES[data]} 80 epochs in place of 40 change validation NDCG@10 by {METRIC.signed(b - a)}, {word}")
    config = EXPERIMENTS["ml100k"]
    epochs = ", ".join(f"{EXPERIMENTS[data].epochs} on {title}" for data, title in TITLES.items())
    text = f"Taken: learning rate {config.lr:g}, {config.mask_prob:.0%} masked; epochs of {config.passes} passes: {epochs}."
    for part in parts:
        text += f" O{part[1:]}."
    return text if len(parts) == len(TITLES) else f"{text} Of {len(TITLES) - len(parts)} of the {len(TITLES)} data sets the longer run is not in yet."


def steps_table(finals: pd.DataFrame, curves: pd.DataFrame, arms: tuple[str, ...]) -> pd.DataFrame:
    """Epochs to the default's final NDCG@10: one row an arm, the mean share of the run after which its own curve first reaches it,
    and in how many pairs it does."""
    rows = {}
    for arm in arms:
        if arm == DEFAULT or not {DEFAULT, arm} <= set(finals["arm"]):
            continue
        shares = []
        for seed, pair in paired_differences(finals, METRIC.column, (DEFAULT, arm)).iterrows():
            curve = curves[(curves["arm"] == arm) & (curves["seed"] == seed)].sort_values("step")
            shares.append(steps_to_reach(curve, pair[DEFAULT], METRIC.column) / curve["step"].max())
        if shares:
            reached = np.isfinite(shares)
            rows[ARM_LABELS.get(arm, arm)] = {
                "share of the run": np.mean(np.array(shares)[reached]) if reached.any() else np.nan,
                "pairs that reach it": int(reached.sum()), "pairs": len(shares),
            }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index").round(2)


def kept_sentence(experiment: str = "ml100k") -> str:
    """What training keeps of the written diagonals, for both sign patterns."""
    parts = []
    for arm in (VISION, OPPOSITE):
        part = load_products({arm: arm}, experiment)
        if part.empty:
            parts.append(f"{ARM_LABELS[arm]}: no run yet")
            continue
        z = part.groupby(["when", "product"])["z"].mean()
        words = []
        for product, name in (("qk", "QK"), ("vp", "V·proj")):
            start, end = z["before", product], z["after", product]
            word = "turned" if start * end < 0 else f"{end / start:.0%} kept"
            words.append(f"{name} from {start:+.2f} to {end:+.2f} ({word})".replace("-", "−"))
        parts.append(f"{ARM_LABELS[arm]}: {', '.join(words)}")
    return "Mean diagonal in off-diagonal spreads, before and after training. " + "; ".join(parts) + "."


def sign_question() -> str:
    """Does the sign that training finds depend on the norm, on masking, on causality? From sign_table."""
    table = sign_table()
    if len(table) < 2:
        return f"Fewer than two of the six models are in. `{COMMAND}` adds the others, and this page follows."
    parts = []
    for product in ("QK", "V·proj"):
        signs = table[f"{product} sign"]
        groups = {s: ", ".join(signs.index[signs == s]) for s in dict.fromkeys(signs)}
        words = {"none": "no clear sign", "mixed": "both signs, no common one", "+": "+", "−": "−"}
        parts.append(f"**{product}**: " + "; ".join(f"{words[s]} in {names}" for s, names in groups.items()))
    gap = missing(SIGNS, load_runs("ml100k"), (0, 1, 2))
    return ". ".join(parts) + "." + (f"\n\n{gap}" if gap else "")


def monday(finals: Mapping[str, pd.DataFrame]) -> str:
    """Advice to a practitioner, by what the intervals say."""
    gains = {}
    for data, table in finals.items():
        for arm in (VISION, OPPOSITE):
            row = compare(table, {arm: (DEFAULT, arm)}, METRIC.column)
            if len(row) and row["pairs"].iloc[0] >= 5:
                gains[data, arm] = row.iloc[0]
    if not gains:
        return "Too few pairs are in for advice about the initialization itself; what follows holds whatever they will say."
    good = [f"{ARM_LABELS[arm]} on {TITLES[data]}" for (data, arm), row in gains.items() if row["low"] > 0]
    bad = [f"{ARM_LABELS[arm]} on {TITLES[data]}" for (data, arm), row in gains.items() if row["high"] < 0]
    if good and not bad:
        return f"It gains with {', '.join(good)}: worth a paired run on your data."
    if bad and not good:
        return f"It loses with {', '.join(bad)}, and gains nowhere that the intervals can show: keep the default."
    if good and bad:
        return f"It gains with {', '.join(good)} and loses with {', '.join(bad)}: only a paired run on your data can say."
    return "No interval excludes 0: keep the default, and spend the time on training long enough."
