"""What chapter 8 says: the gain against the size of the model and the number of images."""

from __future__ import annotations

import re
from itertools import combinations

import pandas as pd

from mimetic.book import common, machines
from mimetic.book.common import comparisons_of, study_points, study_table
from mimetic.book.head_start import gap_by_epoch
from mimetic.experiments.configs import EXPERIMENTS
from mimetic.experiments.configs.vision import DEEP, DEEP_RATES
from mimetic.experiments.metrics import Metric
from mimetic.experiments.programmes.vision import DEEPER_SEEDS, PAIR, STUDIES, gain, pair
from mimetic.statistics import ENOUGH, compare, contrast, difference, mean_interval, rests_on, slopes_per_doubling
from mimetic.training.records import load_runs

LOSS = Metric("test_loss", "test loss")
# Panels of the gain against a number: study, how its default arms begin, the number's column, the axis's name
GAIN_PANELS = {
    "width": ("size", re.compile(r"d\d"), "config.d_model", "width (heads of 32)"),
    "depth": ("size", re.compile(r"depth"), "config.depth", "layers"),
    "data": ("data", re.compile(r"n\d"), "config.train_size", "training images"),
}


def panel_arms(title: str) -> dict[str, tuple[str, str]]:
    """The comparisons of a panel of GAIN_PANELS, with the base."""
    name, begins, _, _ = GAIN_PANELS[title]
    return {k: v for k, v in comparisons_of(STUDIES[name]).items() if v == PAIR or begins.match(v[0])}


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
        shown = every[every["label"].isin(table.index)]
        dots[title] = shown.assign(x=shown["label"].map(x))
        xlabels[title] = xlabel
    return tables, dots, xlabels


def at_other_rates(finals: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """For figures.gains, by panel: the gain at twelve layers and half the rate; {} without a pair."""
    table = compare(finals, {"half the rate": pair(f"{DEEP}-half")})
    return {"depth": table.assign(x=12.0)} if len(table) else {}


def made_on(finals: pd.DataFrame) -> str:
    """Which machines made this chapter's runs."""
    studies = tuple(STUDIES[name] for name in ("size", "data", "deeper"))
    text = machines.made_on(finals[finals["arm"].isin({arm for study in studies for arm in study.arms})], studies)
    if text and f"{DEEP}-timm" in set(common.replicas("cifar10-lab10")["arm"]):
        text += (
            " In the row “each arm at its better rate” the default's runs of the first pairs are the CPU's, from"
            " `data/replicas`."
        )
    return text


def sizes_table(finals: pd.DataFrame) -> str:
    """One row a model size: parameters, both accuracies, the gain, also in percent of the default's errors, as a
    Markdown table; "" without pairs."""
    table, arms = study_table(STUDIES["size"], finals), comparisons_of(STUDIES["size"])
    rows = [
        (
            name,
            f"{finals.loc[finals['arm'] == arms[name][0], 'parameters.total'].iloc[0]:,.0f}",
            f"{100 * row['reference']:.1f}",
            f"{100 * row['arm']:.1f}",
            common.measured(difference(finals, arms[name][1], arms[name][0])),
            common.minus(f"{100 * row['difference'] / (1 - row['reference']):.1f}"),
        )
        for name, row in table.iterrows()
    ]
    columns = [
        "*d*: width (depth 6), or depth (*d* 96)", "parameters", "default (%)", "mimetic (%)", "gain (points)",
        "in % of the default's errors",
    ]  # fmt: skip
    return common.markdown(rows, columns)


def trends(dots: dict[str, pd.DataFrame]) -> str:
    """How much the gain changes when a size doubles, as a Markdown table: the slope of every seed over all sizes, mean
    and 95 % interval over seeds; the same without a size that decides on which side of 0 it lies (statistics.rests_on);
    and between which sizes the gain differs. "" without enough sizes."""
    rows = []
    for title, (*_, xlabel) in GAIN_PANELS.items():
        slopes = slopes_per_doubling(dots[title]) if title in dots else []
        if len(slopes):
            without = [f"without {x:,.0f}: {common.measured(values)}" for x, values in rests_on(dots[title]).items()]
            apart = [
                f"{x:,.0f} and {y:,.0f}: {common.with_interval(steps)}" for (x, y), steps in _apart(dots[title]).items()
            ]
            rows.append((xlabel, common.measured(slopes), "; ".join(without) or "–", "; ".join(apart) or "none"))
    columns = [
        "points of gain when this doubles",
        "all sizes (95 % interval)",
        "without the size at the end",
        "sizes whose gains differ, not corrected",
    ]
    return common.markdown(rows, columns)


def _apart(dots: pd.DataFrame) -> dict[tuple[float, float], pd.Series]:
    """(size, larger size) -> by how much the gain differs, seed by seed, for the sizes between which its interval
    leaves out 0."""
    wide, found = dots.pivot_table(index="seed", columns="x", values="difference"), {}
    for x, y in combinations(wide, 2):
        steps = (wide[y] - wide[x]).dropna()
        if len(steps) >= ENOUGH:
            low, high = mean_interval(steps)
            if low > 0 or high < 0:
                found[x, y] = steps
    return found


def twelve(finals: pd.DataFrame) -> str:
    """What mimetic initialization gains at twelve layers, at the rate chosen for six, at half of it, and with each arm
    at the better of the two by held-back images, as a Markdown table; "" without runs."""
    full, half = gain(DEEP), contrast(finals, gain(f"{DEEP}-half"))
    better, words = better_rates(finals)
    added, split = before_and_after_the_look(half), before_and_after_the_look(better)
    rows = [
        ("at the rate chosen for six", contrast(finals, full)),
        ("the same pairs again, on a CPU", contrast(common.replicas("cifar10-lab10"), full)),
        ("at half that rate", half),
        ("of these, the pairs planned first", added[0]),
        ("those added when the first had been seen", added[1]),
        (f"each arm at its better rate ({words})", better),
        ("of these, the pairs planned first", split[0]),
        ("those added", split[1]),
        ("the default alone: at half the rate minus at that for six", half_costs(finals)[0] if len(finals) else []),
    ]
    said = [
        (name, common.measured(values), f"{int((values > 0).sum())} of {len(values)}")
        for name, values in rows
        if len(values)
    ]
    columns = [
        "twelve layers, points of accuracy: mimetic minus default, but for the last row",
        "mean (95 % interval)",
        "pairs above 0",
    ]
    return common.markdown(said, columns)


def repeated(finals: pd.DataFrame) -> pd.DataFrame:
    """How far trainings of the same pairs of twelve layers, at the rate chosen for six, come apart: mimetic minus
    default in points, a row a seed, a column a machine."""
    own, names = EXPERIMENTS["cifar10-rates"].lr, {arm: f"{DEEP}-{arm}" for arm in PAIR}
    sets = {
        "first": (finals, names),
        "again": (common.replicas("cifar10-lab10"), names),
        "a third time, judged on held-back training images": (
            load_runs("cifar10-rates"),
            {arm: f"{name}-lr-{own:g}" for arm, name in names.items()},
        ),
    }
    columns = {}
    for where, (runs, arms) in sets.items():
        if len(gain := difference(runs, arms["mimetic"], arms["timm"])):
            on = ", ".join(sorted(set(runs.loc[runs["arm"].isin(arms.values()), "device.name"])))
            columns[f"{where}, on {on}"] = (100 * gain).round(1)
    return common.blank(pd.DataFrame(columns))


def held_back() -> str:
    """Accuracy at twelve layers on held-back images at every rate of cifar10-rates, one seed, as a Markdown table; or
    which command asks."""
    table = _deep_rates()
    if len(table) < 2:
        return "*Not in yet: `python -m mimetic queue lab` asks twelve layers at other rates.*"
    columns = {f"{lr:g}": [f"{100 * row[arm]:.1f} %" for arm in PAIR] for lr, row in table.iterrows()}
    return common.markdown(pd.DataFrame({"learning rate": ["default", "mimetic"]} | columns))


def before_and_after_the_look(values: pd.Series) -> tuple[pd.Series, pd.Series]:
    """The pairs at twelve layers that were planned first, and those that were added when these had been seen. values: a
    number a seed."""
    added = values.index.isin(DEEPER_SEEDS)
    return values[~added], values[added]


def half_costs(finals: pd.DataFrame) -> tuple[pd.Series, str]:
    """What half the rate changes the default by at twelve layers, a number a seed, and the machines in words."""
    return _few_machines(finals, (f"{DEEP}-timm", f"{DEEP}-half-timm"))


def _few_machines(finals: pd.DataFrame, names: tuple[str, str]) -> tuple[pd.Series, str]:
    """The second arm's accuracy minus the first's, a number a seed, and the machines in words: of the runs here, or of
    those here and in data/replicas that one machine made, whichever has more pairs, and then fewer machines."""
    every = (finals, common.replicas("cifar10-lab10"))
    runs = pd.concat([part[part["arm"].isin(names)] for part in every if len(part)], ignore_index=True)
    sets = [
        finals[finals["arm"].isin(names)],
        *(part.drop_duplicates(["arm", "seed"]) for _, part in runs.groupby("device.name")),
    ]
    found = [(difference(part, names[1], names[0]), sorted(part["device.name"].unique())) for part in sets]
    values, devices = min(found, key=lambda pair: (-len(pair[0]), len(pair[1])))
    return values, " and ".join(devices)


def better_rates(finals: pd.DataFrame) -> tuple[pd.Series, str]:
    """Mimetic initialization minus the default at twelve layers, each at the better of the recipe's rate and half of it
    by the held-back images of cifar10-rates: a difference a seed, and words for rates and machines; empty without runs.
    """
    own = EXPERIMENTS["cifar10-lab10"].lr
    held = _deep_rates().reindex([own, own / 2]).dropna()
    if len(held) < 2 or finals.empty:
        return pd.Series(dtype=float), ""
    rates = held.idxmax()
    names = tuple(f"{DEEP}-{arm}" if rates[arm] == own else f"{DEEP}-half-{arm}" for arm in PAIR)
    values, devices = _few_machines(finals, names)
    return values, f"the default's {rates['timm']:g}, mimetic initialization's {rates['mimetic']:g}; on {devices}"


NEAREST = {
    "50,000 images to draw from": "n50000",
    "width 192": "d192",
    "twelve layers": DEEP,
    "twelve layers, half the learning rate": f"{DEEP}-half",
}


def nearest(finals: pd.DataFrame) -> str:
    """What laboratory runs, one setting at a time, say of a model as large as ViT-Tiny on all images, as a Markdown
    table; "" without pairs."""
    gains = {words: contrast(finals, gain(prefix)) for words, prefix in NEAREST.items()}
    gains["twelve layers, each arm at the better of these two rates"] = better_rates(finals)[0]
    rows = [(words, common.measured(values)) for words, values in gains.items() if len(values) >= ENOUGH]
    columns = ["ten epochs at laboratory scale, one setting changed", "mimetic minus default (points)"]
    return common.markdown(rows, columns)


def _deep_rates() -> pd.DataFrame:
    """Accuracy at twelve layers on the images that cifar10-rates holds back, of its one seed: a row a learning rate, a
    column an arm."""
    finals = load_runs("cifar10-rates")
    values = finals.set_index("arm")["test_accuracy"] if len(finals) else pd.Series(dtype=float)
    return pd.DataFrame(
        {arm: {lr: values.get(f"{DEEP}-{arm}-lr-{lr:g}") for lr in DEEP_RATES} for arm in PAIR}, dtype=float
    ).dropna()


def data_table(finals: pd.DataFrame) -> str:
    """The gain at each number of images in accuracy, in shares of the default's errors, and in test loss, and how far
    accuracy on the training images is above that on test images, and what the default itself gains from more images, as
    a Markdown table; "" without pairs. Where a set is read often enough to be learned by heart, test accuracy alone
    hides it."""
    rows = []
    base = PAIR[0]  # the setting that all panels share has 10,000 images
    for name, (reference, arm) in panel_arms("data").items():
        gain, loss = (difference(finals, arm, reference, metric) for metric in ("test_accuracy", "test_loss"))
        if len(gain):
            errors = gain.mean() / (1 - finals.loc[finals["arm"] == reference, "test_accuracy"].mean())
            above = (finals["train_accuracy"] - finals["test_accuracy"]).groupby(finals["arm"]).mean()[[arm, reference]]
            more = [] if reference == base else difference(finals, reference, base)
            rows.append(
                (
                    name,
                    common.measured(gain),
                    common.minus(common.percent(errors, 1)),
                    LOSS.shown(loss.mean(), *mean_interval(loss)),
                    common.minus(" / ".join(f"{round(100 * value):d}" for value in above)),
                    common.measured(more) if len(more) else "",
                )
            )
    columns = [
        "images",
        "gain (points)",
        "of the default's errors",
        "test loss (less is better)",
        "training minus test accuracy, mimetic / default (points)",
        "default, minus that with 10,000 images (points)",
    ]
    return common.markdown(rows, columns)


def gaps(curves: pd.DataFrame, names: tuple[str, ...]) -> dict[str, pd.DataFrame]:
    """The gain by epoch (gap_by_epoch) in settings of the size and data panels, by name in words; those without pairs
    are left out."""
    arms = {name: pair for title in GAIN_PANELS for name, pair in panel_arms(title).items()}
    tables = {name: gap_by_epoch(curves, *arms[name]) for name in names}
    return {name: table for name, table in tables.items() if len(table)}
