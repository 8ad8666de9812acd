"""What the vision chapters say (6 to 9): the central claim, the questions after it, sizes and data, what training keeps."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd

from mimetic.data.fetch import data_dir
from mimetic.experiments.answers import common
from mimetic.experiments.answers.common import comparisons_of, study_points, study_table
from mimetic.experiments.metrics import ACCURACY
from mimetic.experiments.programmes.vision import CENTRAL, CENTRAL_SEEDS, FIRST_SEEDS, MORE_SEEDS, PAIR, STUDIES
from mimetic.experiments.recorded import recorded_products, records_of, table_of
from mimetic.figures.style import LABELS
from mimetic.statistics import ENOUGH, compare, paired_differences, sign_flip_test, smallest_p, steps_to_reach
from mimetic.training.records import load_runs

ALL_SEEDS = (*FIRST_SEEDS, *MORE_SEEDS)
COMMAND = "python -m mimetic queue lab"
draw = partial(common.draw, command=COMMAND)


def ablation(names: list[str], finals: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tables and the points of several studies, one below the other (for figures.comparisons)."""
    return common.stacked((STUDIES[name], finals) for name in names)


def points(value: float) -> str:
    """A difference of accuracies in percentage points, with its sign."""
    return ACCURACY.signed(value)


def found(study_name: str, finals: pd.DataFrame) -> str:
    """A study's findings as Markdown: one line a comparison, and how many runs are missing."""
    study = STUDIES[study_name]
    seeds = FIRST_SEEDS if study.name == "precision" else ALL_SEEDS
    return common.findings(study, finals, common.missing(study, finals, seeds, COMMAND))


def central(finals: pd.DataFrame) -> str:
    """The central claim's answer in words."""
    pairs = paired_differences(finals) if set(PAIR) <= set(finals["arm"]) else pd.DataFrame()
    if pairs.empty:
        return f"No pair of runs is in yet. `{COMMAND}` makes them, and this page follows."
    row = compare(finals, {"central": PAIR}).iloc[0]
    n, p = len(pairs), sign_flip_test(pairs["difference"])
    mean = f"{100 * row.reference:.1f} % with the default, {100 * row.arm:.1f} % with mimetic initialization"
    tested = f"exact sign-flip test, p = {p:.3f}: how often chance alone would give a mean difference at least this large"
    if n < ENOUGH:
        verdict = f"{n} pair{'s' if n > 1 else ''} cannot carry a claim (the smallest possible p is {smallest_p(n, 'two-sided'):.3f})"
    elif p < 0.05 and row.difference > 0:
        verdict = f"so at this scale the claim holds ({tested})"
    elif p < 0.05:
        verdict = f"so at this scale the opposite of the claim holds ({tested})"
    else:
        verdict = f"which chance can explain ({tested})"
    interval = f", 95 % interval {points(row.low)} to {points(row.high)}" if n > 1 else ""
    return (
        f"{mean}: **{points(row.difference)} points** over {n} paired seed{'s' if n > 1 else ''}{interval}, "
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
    values = ["reference", "arm", "difference", "low", "high"]
    return common.rounded(table.assign(**{name: 100 * table[name] for name in values}), digits=1)


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
        products: see recorded.recorded_products;
        maps: arm, seed, when, and attention_maps.MAP_COLUMNS.
    """
    maps = [
        table_of(record, when, "maps").assign(arm=record["arm"], seed=record["seed"], when=when)
        for record in records_of(experiment, arms) for when in ("before", "after")
    ]  # fmt: skip
    return recorded_products(experiment, arms), pd.concat(maps, ignore_index=True) if maps else pd.DataFrame()


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
    return f"**Paper scale.** {central(finals)}"


def planned(finals: pd.DataFrame) -> str:
    """How many of the central comparison's runs are in; "" when all are."""
    return common.missing(CENTRAL, finals, CENTRAL_SEEDS, COMMAND)
