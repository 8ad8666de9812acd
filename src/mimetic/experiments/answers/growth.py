"""What chapter 8 says: the gain against the size of the model and the number of images."""

from __future__ import annotations

import pandas as pd

from mimetic.experiments.answers import common
from mimetic.experiments.answers.common import comparisons_of, study_points, study_table
from mimetic.experiments.answers.vision import points
from mimetic.experiments.programmes.vision import PAIR, STUDIES
from mimetic.statistics import ENOUGH, compare, contrast, mean_interval, slopes_per_doubling

# Panels of the gain against a number: study, whether a default arm belongs to it, column of its number, name of the axis
GAIN_PANELS = {
    "width": ("size", lambda arm: arm.startswith("d") and not arm.startswith("depth"), "config.d_model", "width (heads of 32)"),
    "depth": ("size", lambda arm: arm.startswith("depth"), "config.depth", "layers"),
    "data": ("data", lambda arm: arm.startswith("n"), "config.train_size", "training images"),
}


def panel_arms(title: str) -> dict[str, tuple[str, str]]:
    """The comparisons of a panel of GAIN_PANELS, with the base."""
    name, belongs, _, _ = GAIN_PANELS[title]
    return {k: v for k, v in comparisons_of(STUDIES[name]).items() if v == PAIR or belongs(v[0])}


def gain_panels(finals: pd.DataFrame) -> tuple[dict[str, pd.DataFrame], dict[str, pd.DataFrame], dict[str, str]]:
    """Tables, points and x labels for figures.gains: the gain against width, depth and number of images."""
    tables, dots, xlabels = {}, {}, {}
    for title, (name, _, column, xlabel) in GAIN_PANELS.items():
        arms = panel_arms(title)
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
    out = pd.DataFrame(
        {
            "parameters": pd.Series({k: r["parameters.total"] for k, r in first.items()}),
            "attention (%)": 100 * pd.Series(attention),
            "default (%)": 100 * table["reference"], "mimetic (%)": 100 * table["arm"],
            "gain (points)": 100 * table["difference"], "low": 100 * table["low"], "high": 100 * table["high"], "pairs": table["pairs"],
        }
    )  # fmt: skip
    return common.blank(out.loc[table.index].round(1))


def trend(dots: dict[str, pd.DataFrame], title: str) -> str:
    """How much the gain changes when x doubles: the slope of every seed over all x, its mean and 95 % interval over seeds."""
    slopes = slopes_per_doubling(dots[title]) if title in dots else []
    if not len(slopes):
        return f"Against {title}: not enough runs yet."
    value = f"{points(slopes.mean())} points a doubling"
    if len(slopes) == 1:
        return f"Against {title}: {value}, in the only seed so far."
    low, high = mean_interval(slopes)
    value += f" ({points(low)} to {points(high)}, {len(slopes)} seeds)"
    if len(slopes) < ENOUGH:
        return f"Against {title}: {value}; too few seeds for a verdict."
    says = f"The gain grows with {title}" if low > 0 else f"The gain shrinks with {title}" if high < 0 else f"Whether the gain grows or shrinks with {title} these runs cannot say"
    return f"{says}: {value}."


def where(dots: dict[str, pd.DataFrame], title: str) -> str:
    """The gains at each x, and between which neighbours they differ, by the differences of each seed: a slope does not say whether a change
    is steady."""
    if title not in dots or dots[title]["x"].nunique() < 2:
        return ""
    wide = dots[title].pivot_table(index="seed", columns="x", values="difference")
    at = ", ".join(f"{points(wide[x].mean())} at {x:,.0f}" for x in wide)
    changes = []
    for x, following in zip(wide, wide.columns[1:]):
        steps = (wide[following] - wide[x]).dropna()
        if len(steps) >= ENOUGH:
            low, high = mean_interval(steps)
            if low > 0 or high < 0:
                changes.append(f"{points(steps.mean())} ({points(low)} to {points(high)}) from {x:,.0f} to {following:,.0f}")
    between = f"; between neighbours only {' and '.join(changes)}" if changes else "; between no two neighbours a difference that these pairs can show"
    return f"Gains: {at}{between}."


def deeper(finals: pd.DataFrame) -> str:
    """What twelve layers in place of six do to each arm, in words; "" without those runs."""
    said = {}
    for name, arms in {"the default": ("timm", "depth12-timm"), "mimetic initialization": ("mimetic", "depth12-mimetic")}.items():
        values = contrast(finals, {arms[1]: 1, arms[0]: -1})
        if len(values) < ENOUGH:
            return ""
        low, high = mean_interval(values)
        said[name] = f"{name} {points(values.mean())} points ({points(low)} to {points(high)})"
    behind = contrast(finals, {"depth12-mimetic": 1, "depth12-timm": -1})
    return (
        f"With twelve layers in place of six, {' and '.join(said.values())}. At twelve mimetic initialization is behind in {int((behind < 0).sum())} of {len(behind)} pairs. "
        "The learning rate was chosen at six layers, and this may be the rate's doing."
    )


def answer(finals: pd.DataFrame) -> str:
    """The chapter's answer: against width, depth and number of images the trend, and where it comes from."""
    _, dots, _ = gain_panels(finals)
    lines = []
    for title in GAIN_PANELS:
        gap = " (So far: not all sizes are in.)" if title in dots and dots[title]["x"].nunique() < len(panel_arms(title)) else ""
        lines.append(f"* {trend(dots, title)} {where(dots, title)}".rstrip() + gap)
    return f"**Answer.**{lead(dots)}\n\n" + "\n".join(lines)


def lead(dots: dict[str, pd.DataFrame]) -> str:
    """The answer in a few words, where all slopes are known and those of size have one direction; else ""."""
    signs = {}
    for title in GAIN_PANELS:
        slopes = slopes_per_doubling(dots[title]) if title in dots else []
        if len(slopes) < ENOUGH:
            return ""
        low, high = mean_interval(slopes)
        signs[title] = 1 if low > 0 else -1 if high < 0 else 0
    size, data = {signs["width"], signs["depth"]}, signs["data"]
    if len(size) > 1 or 0 in (*size, data):
        return ""
    size, data = size == {1}, data < 0
    word = {(True, True): "Both", (False, False): "Neither", (True, False): "The first", (False, True): "The second"}[size, data]
    return f" {word}: the gain {'grows' if size else 'shrinks'} with the model, and is larger where there are {'fewer' if data else 'more'} images."
