"""From run records to what the vision chapters say: tables, and sentences whose numbers and verdict words are computed.

Every function takes what load_runs gives and copes with records that are not there yet: it says how many runs are in, and
compares the arms that have pairs.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from mimetic.data.fetch import data_dir
from mimetic.experiments.metrics import ACCURACY, Metric
from mimetic.experiments.programmes.study import Study
from mimetic.experiments.programmes.vision import CENTRAL, CENTRAL_SEEDS, FIRST_SEEDS, MORE_SEEDS, PAIR, STUDIES
from mimetic.figures.style import LABELS
from mimetic.statistics import compare, holm, paired_differences, sign_flip_test, smallest_p, steps_to_reach
from mimetic.training.records import load_runs, read_record, runs_dir

ALL_SEEDS = (*FIRST_SEEDS, *MORE_SEEDS)
COMMAND = "python -m mimetic queue lab"


def draw(figure, data, *args, command: str = COMMAND, **kwargs) -> None:
    """Show figure(data, ...), or say that its runs are not in yet."""
    import matplotlib.pyplot as plt
    from IPython.display import Markdown, display

    if len(data):
        figure(data, *args, **kwargs)
        plt.show()
    else:
        display(Markdown(f"*No figure yet: its runs are not in. `{command}` makes them, and this page follows.*"))


# --- comparisons -----------------------------------------------------------------------------------------------------


def comparisons_of(study: Study) -> dict[str, tuple[str, str]]:
    """label -> (reference arm, arm) of a study: every arm against its first one; mimetic against the default where the
    study is made of such pairs or of defaults."""
    arms = study.arms
    if study.comparisons is not None:
        return dict(study.comparisons)
    if study.name in ("size", "data", "position", "precision"):
        prefixes = dict.fromkeys("" if arm in PAIR else arm.removesuffix("-timm").removesuffix("-mimetic") for arm in arms)
        return {_setting(study, p): (f"{p}-timm", f"{p}-mimetic") if p else PAIR for p in prefixes}
    if study.name == "default":
        return {f"mimetic against {LABELS[arm]}": (arm, "mimetic") for arm in arms if arm != "mimetic"}
    return {label(arm): (arms[0], arm) for arm in arms[1:]}


def label(arm: str) -> str:
    """An arm in words."""
    if arm in LABELS:
        return LABELS[arm]
    part, what, value = arm.rsplit("-", 2)
    return f"{ {'qk': 'QK', 'vp': 'V·proj'}[part]} { {'alpha': '|α|', 'beta': '|β|', 'rank': 'rank'}[what]} {value}"


def _setting(study: Study, prefix: str) -> str:
    """What a pair's prefix stands for."""
    if study.name == "precision":
        return prefix or "bfloat16"
    if not prefix:
        return {"size": "d 96, depth 6", "data": "10,000 images", "position": "sin-cos, average"}[study.name]
    if study.name == "size":
        return f"depth {prefix.removeprefix('depth')}" if prefix.startswith("depth") else f"d {prefix[1:]}"
    if study.name == "data":
        return f"{int(prefix[1:]):,} images"
    pos, pool = prefix.split("-")
    words = {"sincos2d": "sin-cos", "learned": "learned", "none": "no position", "avg": "average", "token": "class token"}
    return f"{words[pos]}, {words[pool]}"


def study_table(study: Study, finals: pd.DataFrame, metric: Metric = ACCURACY) -> pd.DataFrame:
    """statistics.compare of a study's comparisons, with the study's question as column group."""
    table = compare(finals, comparisons_of(study), metric.column)
    return table.assign(group=study.question) if len(table) else table


def study_points(study: Study, finals: pd.DataFrame, metric: Metric = ACCURACY) -> pd.DataFrame:
    """One row a pair: label, group, seed, difference."""
    rows = []
    for name, arms in comparisons_of(study).items():
        if set(arms) <= set(finals["arm"]):
            pairs = paired_differences(finals, metric.column, arms)
            rows += [{"label": name, "group": study.question, "seed": s, "difference": d} for s, d in pairs["difference"].items()]
    return pd.DataFrame(rows, columns=["label", "group", "seed", "difference"])


def ablation(names: list[str], finals: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tables and the points of several studies, one below the other (for figures.comparisons)."""
    tables = [table for name in names if len(table := study_table(STUDIES[name], finals))]
    points = [study_points(STUDIES[name], finals) for name in names]
    empty = pd.DataFrame(columns=["group", "difference", "low", "high"])
    return pd.concat(tables) if tables else empty, pd.concat(points, ignore_index=True)


def progress(study: Study, finals: pd.DataFrame, seeds: tuple[int, ...] = ALL_SEEDS) -> str:
    """How many of a study's runs are in; "" when all are."""
    wanted = {(config.arm or config.init, config.seed) for config in study.runs(seeds)}
    there = wanted & set(zip(finals["arm"], finals["seed"]))
    if there == wanted:
        return ""
    return f"*{len(there)} of {len(wanted)} runs are in; `{COMMAND}` adds the others, and this page follows.*"


# --- sentences -------------------------------------------------------------------------------------------------------


def points(value: float) -> str:
    """A difference of accuracies in percentage points, with its sign."""
    return ACCURACY.signed(value)


def finding(row: pd.Series, metric: Metric = ACCURACY) -> str:
    """One comparison in words: its verdict follows from its interval."""
    value = f"{metric.signed(row['difference'])} {metric.difference}".rstrip()
    if row["pairs"] == 1:
        return f"{value} in the only pair so far"
    interval = f"{value} ({metric.signed(row['low'])} to {metric.signed(row['high'])}, {row['pairs']:.0f} pairs)"
    if row["low"] > 0 or row["high"] < 0:
        return f"{'gains' if metric.better(row['low']) else 'loses'}: {interval}"
    return f"no difference that these pairs can show: {interval}"


def found(study_name: str, finals: pd.DataFrame) -> str:
    """A study's findings as Markdown: one line a comparison, and how many runs are missing."""
    study = STUDIES[study_name]
    table = study_table(study, finals)
    lines = [f"* {name}: {finding(row)}" for name, row in table.iterrows()]
    missing = progress(study, finals, FIRST_SEEDS if study.name == "precision" else ALL_SEEDS)
    if not lines:
        return f"**We found** nothing yet. {missing}"
    return "**We found** (mean difference, 95 % interval):\n\n" + "\n".join(lines) + (f"\n\n{missing}" if missing else "")


def central(finals: pd.DataFrame) -> str:
    """The central claim's answer in words."""
    pairs = paired_differences(finals) if set(PAIR) <= set(finals["arm"]) else pd.DataFrame()
    if pairs.empty:
        return f"**Answer.** No pair of runs is in yet. `{COMMAND}` makes them, and this page follows."
    row = compare(finals, {"central": PAIR}).iloc[0]
    n, p = len(pairs), sign_flip_test(pairs["difference"])
    mean = f"{100 * row.reference:.1f} % with the default, {100 * row.arm:.1f} % with mimetic initialization"
    if n < 5:
        verdict = f"{n} pair{'s' if n > 1 else ''} cannot carry a claim (the smallest possible p is {smallest_p(n, 'two-sided'):.3f})"
    elif p < 0.05 and row.difference > 0:
        verdict = f"so at this scale the claim holds (exact sign-flip test, p = {p:.3f})"
    elif p < 0.05:
        verdict = f"so at this scale the opposite of the claim holds (exact sign-flip test, p = {p:.3f})"
    else:
        verdict = f"which chance can explain (exact sign-flip test, p = {p:.3f})"
    interval = f", 95 % interval {points(row.low)} to {points(row.high)}" if n > 1 else ""
    return (
        f"**Answer.** {mean}: {points(row.difference)} points over {n} paired seed{'s' if n > 1 else ''}{interval}, "
        f"ahead in {row.wins:.0f} of {n}; {verdict}."
    )


def by_arm(curves: pd.DataFrame) -> pd.DataFrame:
    """Curves with the default first, then mimetic, as the figures show them."""
    return pd.concat([curves[curves["arm"] == arm] for arm in PAIR])


def pair_table(finals: pd.DataFrame) -> pd.DataFrame:
    """One row a seed, in percent."""
    if not set(PAIR) <= set(finals["arm"]):
        return pd.DataFrame(columns=[*PAIR, "difference"])
    return (100 * paired_differences(finals)).round(2)


def steps_saved(finals: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """One row a seed: the default's final accuracy, and after which share of the run the mimetic arm first reaches it on its
    own curve (linear between epochs; nan: never)."""
    rows = []
    if not set(PAIR) <= set(finals["arm"]):
        return pd.DataFrame(columns=["default at the end", "steps", "share of the run"])
    for seed, pair in paired_differences(finals).iterrows():
        curve = curves[(curves["arm"] == PAIR[1]) & (curves["seed"] == seed)].sort_values("step")
        steps = steps_to_reach(curve, pair[PAIR[0]])
        rows.append({"seed": seed, "default at the end": pair[PAIR[0]], "steps": steps, "share of the run": steps / curve["step"].max()})
    return pd.DataFrame(rows).set_index("seed")


def steps_sentence(finals: pd.DataFrame, curves: pd.DataFrame) -> str:
    """steps_saved in words."""
    if not set(PAIR) <= set(finals["arm"]):
        return "No pair of runs is in yet."
    share = steps_saved(finals, curves)["share of the run"]
    reached = share.dropna()
    if reached.empty:
        return f"In none of {len(share)} pairs does the mimetic arm reach the default's final accuracy."
    text = f"The mimetic arm reaches the default's final accuracy after {reached.mean():.0%} of the run on average"
    if len(share) > 1:
        text += f" (from {reached.min():.0%} to {reached.max():.0%})"
    return text + ("." if len(reached) == len(share) else f", in {len(reached)} of {len(share)} pairs.")


def recipe_table(finals: pd.DataFrame) -> pd.DataFrame:
    """The search for the recipe: mean accuracy on the validation images by setting, best first."""
    groups = finals.groupby("arm")["test_accuracy"]
    table = pd.DataFrame({"validation accuracy (%)": 100 * groups.mean(), "seeds": groups.size()})
    return table.sort_values("validation accuracy (%)", ascending=False).round(1)


def recipe_sentence(finals: pd.DataFrame) -> str:
    """Whether any setting beat the base by more than a point."""
    if finals.empty:
        return "The search has no records yet: `python -m mimetic queue recipe`."
    base = finals[finals["arm"] == "base"]["test_accuracy"]
    others = finals[finals["arm"] != "base"].groupby("arm")["test_accuracy"].mean()
    best = others.idxmax()
    seeds = f", over its {len(base)} seeds from {100 * base.min():.1f} to {100 * base.max():.1f}" if len(base) > 1 else ""
    gain = others[best] - base.mean()
    kept = "so the base was kept" if gain <= 0.01 else "so by the rule it replaces the base's value"
    return (
        f"The best setting, `{best}`, is {points(gain)} points from the base ({100 * base.mean():.1f} %{seeds}), {kept}. "
        "One seed a setting tells large differences only; that is all it was for."
    )


def why(finals: pd.DataFrame) -> str:
    """Chapter 7's answer: the gain, the part that each half and each control has of it."""
    need = {"timm", "mimetic"}
    if not need <= set(finals["arm"]):
        return f"**Answer.** The runs of this chapter are not in yet. `{COMMAND}` makes them, and this page follows."
    arms = ("mimetic-qk", "mimetic-vp", "timm-rescaled", "random-directions", "untransposed", "both-flipped")
    table = compare(finals, {"mimetic": PAIR} | {arm: ("timm", arm) for arm in arms})
    whole = table.loc["mimetic"]
    text = f"**Answer.** After 10 epochs mimetic initialization is {points(whole.difference)} points from the default ({whole.pairs:.0f} pairs). "
    parts = [f"{LABELS[arm]} {points(table.loc[arm].difference)}" for arm in arms if arm in table.index]
    return text + ("For comparison, also against the default: " + "; ".join(parts) + "." if parts else "The controls are not in yet.")


def numbers(table: pd.DataFrame) -> pd.DataFrame:
    """A table of compare for the page: accuracies and differences in percent, p corrected over all its rows."""
    if table.empty:
        return table
    out = table.assign(p_holm=holm(table["p"]))
    for column in ("reference", "arm", "difference", "low", "high"):
        out[column] = (100 * out[column]).round(1)
    return out[["group", "reference", "arm", "difference", "low", "high", "pairs", "wins", "p", "p_holm"]].round({"p": 3, "p_holm": 3})


# --- size and data ---------------------------------------------------------------------------------------------------


def gain_panels(finals: pd.DataFrame) -> tuple[dict[str, pd.DataFrame], dict[str, pd.DataFrame], dict[str, str]]:
    """Tables, points and x labels for figures.gains: the gain against width, depth and number of images."""
    titles = {
        "width": ("size", lambda arm: arm.startswith("d") and not arm.startswith("depth"), "config.d_model", "d_model"),
        "depth": ("size", lambda arm: arm.startswith("depth"), "config.depth", "layers"),
        "data": ("data", lambda arm: arm.startswith("n"), "config.train_size", "training images"),
    }
    tables, dots, xlabels = {}, {}, {}
    for title, (name, belongs, column, xlabel) in titles.items():
        arms = {k: v for k, v in comparisons_of(STUDIES[name]).items() if v == PAIR or belongs(v[0])}
        table = compare(finals, arms)
        if table.empty:
            continue
        x = {k: float(finals.loc[finals["arm"] == arms[k][0], column].iloc[0]) for k in table.index}
        tables[title] = table.assign(x=pd.Series(x))
        every = study_points(STUDIES[name], finals)
        dots[title] = every[every["label"].isin(table.index)].assign(x=lambda t, x=x: t["label"].map(x))
        xlabels[title] = xlabel
    return tables, dots, xlabels


def attention_share(finals: pd.DataFrame, study: str = "size") -> pd.DataFrame:
    """One row a model size: parameters, the share of them in attention, the gain of mimetic over the default."""
    table = study_table(STUDIES[study], finals)
    if table.empty:
        return table
    first = {name: finals[finals["arm"] == arms[0]].iloc[0] for name, arms in comparisons_of(STUDIES[study]).items() if name in table.index}
    attention = {k: (r["parameters.attention_qkv"] + r["parameters.attention_proj"]) / r["parameters.total"] for k, r in first.items()}
    return pd.DataFrame(
        {
            "parameters": pd.Series({k: r["parameters.total"] for k, r in first.items()}),
            "attention (%)": 100 * pd.Series(attention),
            "default (%)": 100 * table["reference"], "mimetic (%)": 100 * table["arm"],
            "gain (points)": 100 * table["difference"], "low": 100 * table["low"], "high": 100 * table["high"], "pairs": table["pairs"],
        }
    ).loc[table.index].round(1)  # fmt: skip


def trend(tables: dict[str, pd.DataFrame], title: str) -> str:
    """In which direction the gain goes from the smallest to the largest x, by whether the two intervals are apart."""
    if title not in tables or len(tables[title]) < 2:
        return f"Against {title}: not enough runs yet."
    table = tables[title].sort_values("x")
    first, last = table.iloc[0], table.iloc[-1]
    ends = f"{points(first.difference)} points at {first.x:,g}, {points(last.difference)} at {last.x:,g}"
    if last.low > first.high:
        return f"The gain grows with {title}: {ends}."
    if last.high < first.low:
        return f"The gain shrinks with {title}: {ends}."
    return f"Whether the gain grows or shrinks with {title} these runs cannot say: {ends}, with overlapping intervals."


# --- what training keeps ---------------------------------------------------------------------------------------------


def load_anatomy(experiment: str = CENTRAL.experiment, arms: tuple[str, ...] = PAIR) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The products (gains folded in) and attention maps before and after training, of every recorded run of the arms.

    Returns:
        products: arm, seed, when, and the columns of attention_maps.PRODUCT_COLUMNS, z = diag_mean / offdiag_sd;
        maps: arm, seed, when, and MAP_COLUMNS.
    """
    frames = {"products": [], "maps": []}
    for path in sorted(Path(runs_dir() / experiment).glob("*.json")):
        record = read_record(path)
        if record["arm"] in arms and "anatomy" in record:
            for when in ("before", "after"):
                for name, frame in frames.items():
                    part = record["anatomy"][when][name]
                    table = pd.DataFrame(part["rows"], columns=part["columns"])
                    frame.append(table.assign(arm=record["arm"], seed=record["seed"], when=when))
    products, maps = (pd.concat(f, ignore_index=True) if f else pd.DataFrame() for f in frames.values())
    if len(products):
        products = products[products["fold"]].assign(z=lambda t: t["diag_mean"] / t["offdiag_sd"])
        for frame in (products, maps):
            frame["arm"] = pd.Categorical(frame["arm"], [a for a in arms if a in set(frame["arm"])])
        products, maps = products.sort_values(["arm", "seed"], kind="stable"), maps.sort_values(["arm", "seed"], kind="stable")
        products["arm"], maps["arm"] = products["arm"].astype(str), maps["arm"].astype(str)
    return products, maps


def kept(products: pd.DataFrame, maps: pd.DataFrame) -> pd.DataFrame:
    """Means over layers, heads and seeds, before and after training: the two diagonals in units of the off-diagonal spread,
    the share of heads (layers) whose diagonal is on the paper's side of chance, the distance attended."""
    rows = {}
    for arm in dict.fromkeys(products["arm"] if len(products) else ()):
        for when in ("before", "after"):
            part, looks = (f[(f["arm"] == arm) & (f["when"] == when)] for f in (products, maps))
            qk, vp = part[part["product"] == "qk"], part[part["product"] == "vp"]
            rows[LABELS.get(arm, arm).split(" (")[0], when] = {
                "QK diagonal / spread": qk["z"].mean(), "QK heads above chance (%)": 100 * (qk["sigmas"] > 2).mean(),
                "V·proj diagonal / spread": vp["z"].mean(), "V·proj layers below chance (%)": 100 * (vp["sigmas"] < -2).mean(),
                "distance attended (patches)": looks["distance"].mean(), "attention to itself (%)": 100 * looks["itself"].mean(),
            }  # fmt: skip
    return pd.DataFrame(rows).round(2)  # a column for each arm before and after: the names of the rows are long


def kept_sentence(products: pd.DataFrame) -> str:
    """Whether the default's products move towards mimetic initialization, and whether mimetic's stay."""
    if products.empty or not set(PAIR) <= set(products["arm"]):
        return f"The runs are not in yet. `{COMMAND}` makes them, and this page follows."
    z = products.groupby(["arm", "when", "product"])["z"].mean()
    parts = []
    for product, name, sign in (("qk", "$W_QW_K^T$", 1), ("vp", "$W_VW_{proj}$", -1)):
        start, end = (z["mimetic", when, product] for when in ("before", "after"))
        grown = z["timm", "after", product]
        keeps = np.sign(end) == np.sign(start)
        parts.append(
            f"The diagonal of {name} {'keeps its sign' if keeps else 'changes its sign'} under mimetic initialization "
            f"(from {start:+.2f} to {end:+.2f} spreads) and ends at {grown:+.2f} under the default, "
            + ("the side that the paper imitates." if grown * sign > 0.1 else "the other side." if grown * sign < -0.1 else "near 0.")
        )
    return " ".join(parts)


# --- what others have published --------------------------------------------------------------------------------------


def published() -> pd.DataFrame:
    """Published numbers on vision with their sources, from data/published/vision.csv; all text, "" where nothing is said."""
    return pd.read_csv(data_dir() / "published" / "vision.csv", dtype=str).fillna("")


def published_table() -> str:
    """published() as a Markdown table, whose long cells wrap on the page."""
    table = published()
    rows = [list(table.columns), ["---"] * len(table.columns), *table.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def paper_scale() -> str:
    """What is there at paper scale, in words."""
    finals = load_runs("cifar10-paper")
    if finals.empty:
        return (
            "**Paper scale** (ViT-Tiny, 50,000 images, 100 epochs, a GPU): no record yet. "
            "This page shows them beside these as soon as they are in `data/runs/cifar10-paper`."
        )
    return "**Paper scale.** " + central(finals).removeprefix("**Answer.** ")


def planned(finals: pd.DataFrame) -> str:
    """How many of the central comparison's runs are in; "" when all are."""
    return progress(CENTRAL, finals, CENTRAL_SEEDS)
