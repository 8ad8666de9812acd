"""What chapter 8 says: the gain against the size of the model and the number of images."""

from __future__ import annotations

from itertools import combinations

import pandas as pd

from mimetic.data.fetch import data_dir
from mimetic.experiments.answers import common, machines
from mimetic.experiments.answers.common import comparisons_of, study_points, study_table
from mimetic.experiments.answers.vision import gap_by_epoch, points
from mimetic.experiments.configs import EXPERIMENTS
from mimetic.experiments.configs.vision import DEEP, DEEP_RATES
from mimetic.experiments.programmes.vision import DEEPER_SEEDS, PAIR, STUDIES
from mimetic.statistics import ENOUGH, compare, contrast, mean_interval, rests_on, side, slopes_per_doubling
from mimetic.training.records import load_runs

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


def at_other_rates(finals: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """For figures.gains, by panel: the gain at twelve layers and half the rate; {} without a pair."""
    arms = {"half the rate": (f"{DEEP}-half-timm", f"{DEEP}-half-mimetic")}
    table = compare(finals, arms)
    return {"depth": table.assign(x=12.0)} if len(table) else {}


def made_on(finals: pd.DataFrame) -> str:
    """Which machines made this chapter's runs."""
    studies = tuple(STUDIES[name] for name in ("size", "data", "deeper"))
    text = machines.made_on(finals[finals["arm"].isin({arm for study in studies for arm in study.arms})], studies)
    replicas = load_runs("cifar10-lab10", folder=data_dir() / "replicas")
    return f"{text} Where each arm has its better rate, the default's first runs are those of `data/replicas`." if text and len(replicas) and f"{DEEP}-timm" in set(replicas["arm"]) else text


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
            "in attention (%)": 100 * pd.Series(attention),
            "default: accuracy (%)": 100 * table["reference"], "mimetic: accuracy (%)": 100 * table["arm"],
            "gain (points)": 100 * table["difference"], "low": 100 * table["low"], "high": 100 * table["high"], "pairs": table["pairs"],
        }
    )  # fmt: skip
    return common.blank(out.loc[table.index].round(1))


def trend(dots: dict[str, pd.DataFrame], title: str) -> str:
    """How much the gain changes when x doubles: the slope of every seed over all x, its mean and 95 % interval over seeds; and the sizes
    without which it would not be there, since a slope does not say whether a change is steady."""
    slopes = slopes_per_doubling(dots[title]) if title in dots else []
    if not len(slopes):
        return f"Against {title}: not enough runs yet."
    value = f"{points(slopes.mean())} points a doubling"
    if len(slopes) == 1:
        return f"Against {title}: {value}, in the only seed so far."
    value = _slope(slopes, " points a doubling")
    if len(slopes) < ENOUGH:
        return f"Against {title}: {value}; too few seeds for a verdict."
    where_to = side(slopes)
    says = {1: f"The gain grows with {title}", -1: f"The gain shrinks with {title}"}.get(where_to, f"Whether the gain grows or shrinks with {title} these runs cannot say")
    without = rests_on(dots[title])
    if not without:
        return f"{says}: {value}."
    alone = ", ".join(f"without {x:,.0f} the line cannot be told from a level one, {_slope(values)}" for x, values in without.items())
    return f"A line through all gains {'rises' if where_to > 0 else 'falls'} with {title}: {value}. But one size decides it: {alone}."


def _slope(slopes: pd.Series, unit: str = "") -> str:
    low, high = mean_interval(slopes)
    return f"{points(slopes.mean())}{unit} ({points(low)} to {points(high)}, {len(slopes)} seeds)"


def _at_most(dots: pd.DataFrame, towards: int) -> float:
    """The largest change a doubling, in the direction (1 up, -1 down), that is in the interval with all sizes or without one that decides."""
    return max(towards * mean_interval(slopes)[towards > 0] for slopes in (slopes_per_doubling(dots), *rests_on(dots).values()))


def where(dots: dict[str, pd.DataFrame], title: str) -> str:
    """The gains at each x, and between which sizes they differ, by the differences of each seed."""
    if title not in dots or dots[title]["x"].nunique() < 2:
        return ""
    wide = _by_size(dots[title])
    at = ", ".join(f"{points(wide[x].mean())} at {x:,.0f}" for x in wide)
    changes = [f"{x:,.0f} and {y:,.0f} ({points(d.mean())}, {' to '.join(map(points, mean_interval(d)))})" for (x, y), d in _apart(dots[title]).items()]
    asked = len(list(combinations(wide, 2)))
    return f"Gains: {at}. " + (f"Sizes between which the interval leaves out 0 (of {asked} asked, not corrected): {', '.join(changes)}." if changes else "Between no two sizes does the interval leave out 0.")


def of_the_errors(table: pd.DataFrame) -> str:
    """The gains as shares of the errors that the default makes, from a table of gain_panels, in words: points flatter a size whose default is low."""
    shares = (table["difference"] / (1 - table["reference"])).groupby(table["x"]).first()
    return f"Of the default's errors: {', '.join(f'{100 * share:+.1f} % at {x:,.0f}'.replace('-', '−') for x, share in shares.items())}."


def _by_size(dots: pd.DataFrame) -> pd.DataFrame:
    """Gains, a row a seed and a column a size."""
    return dots.pivot_table(index="seed", columns="x", values="difference")


def _apart(dots: pd.DataFrame) -> dict[tuple[float, float], pd.Series]:
    """(size, larger size) -> by how much the gain differs, seed by seed, for the sizes between which its interval leaves out 0."""
    wide, found = _by_size(dots), {}
    for x, y in combinations(wide, 2):
        steps = (wide[y] - wide[x]).dropna()
        if len(steps) >= ENOUGH:
            low, high = mean_interval(steps)
            if low > 0 or high < 0:
                found[x, y] = steps
    return found


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
    text = f"With twelve layers in place of six, at the rate chosen for six, {' and '.join(said.values())}. At twelve mimetic initialization is behind in {int((behind < 0).sum())} of {len(behind)} pairs: {', '.join(points(d) for d in sorted(behind))}."
    return f"{text} {repeated_at_twelve(finals)}".strip()


def repeated_at_twelve(finals: pd.DataFrame) -> str:
    """How far trainings of one pair of twelve layers, at the recipe's rate, come apart, in words; "" without repetitions."""
    own, replicas, rates = EXPERIMENTS["cifar10-rates"].lr, load_runs("cifar10-lab10", folder=data_dir() / "replicas"), load_runs("cifar10-rates")
    arms = {arm: f"{DEEP}-{arm}" for arm in PAIR}
    checked = {arm: f"{name}-lr-{own:g}" for arm, name in arms.items()}
    sets = {"here": (finals, arms), "again, on a CPU": (replicas, arms), "in the check of learning rates, on a CPU, with the same training images and other ones to judge": (rates, checked)}
    gaps = {where: contrast(runs, {names["mimetic"]: 1, names["timm"]: -1}) for where, (runs, names) in sets.items()}
    here, *others = gaps.values()
    said = [
        f"seed {seed} {', '.join(f'{points(values[seed])} {where}' for where, values in gaps.items() if seed in values)}"
        for seed in here.index if any(seed in values for values in others)
    ]  # fmt: skip
    if not said:
        return ""
    text = f"Trained again, the same pairs came out otherwise: {'; '.join(said)}."
    again = gaps["again, on a CPU"]
    if len(again) >= ENOUGH:
        text += f" All {len(again)} again, on a CPU: {common.measured(again)}."
    if len(replicas) and len(rates):
        first, second = (runs.set_index(["arm", "seed"])["train_loss"] for runs in (replicas, rates))
        moved = {arm: abs(first[arms[arm], 0] - second[checked[arm], 0]) for arm in PAIR if (arms[arm], 0) in first and (checked[arm], 0) in second}
        if len(moved) == len(PAIR):
            text += f" Between seed 0's two runs on a CPU the default's last training loss moved by {moved['timm']:.3f}, that of mimetic initialization by {moved['mimetic']:.3f}."
            if moved["mimetic"] > 10 * moved["timm"]:
                text += " So at this rate a mimetic model of twelve layers does not train in a stable way, and the interval over seeds is too narrow."
    return text


def at_half_the_rate(finals: pd.DataFrame) -> str:
    """What mimetic initialization gains at twelve layers and half the recipe's rate, in words; or which command asks."""
    timm, mimetic = (f"{DEEP}-half-{arm}" for arm in PAIR)
    values = contrast(finals, {mimetic: 1, timm: -1})
    if not len(values):
        return "Pairs at half the rate are not in yet: `python -m mimetic queue lab`."
    runs = finals[finals["arm"].isin((timm, mimetic))]
    where = f" on {' and '.join(sorted(runs['device.name'].unique()))}"
    found = f"At half the rate, on the test images, in points: {common.measured(values, more=where)}: "
    if len(values) < ENOUGH:
        return f"{found}too few for a verdict."
    word = {
        1: "there mimetic initialization gains at twelve layers, too", -1: "there it loses, too",
        0: f"ahead in {int((values > 0).sum())} of {len(values)}, which does not decide whether it gains; a loss of more than {100 * max(0.0, -mean_interval(values)[0]):.1f} points is outside the interval",
    }[side(values)]  # fmt: skip
    arms = " and ".join(f"{100 * runs.loc[runs['arm'] == arm, 'test_accuracy'].mean():.1f} % {name}" for arm, name in ((timm, "default"), (mimetic, "mimetic")))
    dearer, where_made = half_costs(finals)
    cost = f" Half the rate costs the default {common.measured(-dearer, more=f', on {where_made}')} points." if len(dearer) >= ENOUGH and side(dearer) < 0 else ""
    first, later = before_and_after_the_look(values)
    decided = "decided it" if side(first) else "did not decide it"
    alone = f" The first {len(first)} of these pairs, {common.measured(first)}, {decided}, and {len(later)} were added; these alone, which no look had chosen, say {common.measured(later)}. The interval of all does not count the first look." if ENOUGH <= len(later) < len(values) else ""
    return f"{found}{word} ({arms}).{alone}{cost} {each_at_its_rate(finals)}".strip()


def before_and_after_the_look(values: pd.Series) -> tuple[pd.Series, pd.Series]:
    """The pairs at twelve layers that were planned first, and those that were added when these had been seen. values: a number a seed."""
    added = values.index.isin(DEEPER_SEEDS)
    return values[~added], values[added]


def half_costs(finals: pd.DataFrame) -> tuple[pd.Series, str]:
    """What half the rate changes the default by at twelve layers, a number a seed, and the machines in words."""
    return _few_machines(finals, (f"{DEEP}-timm", f"{DEEP}-half-timm"))


def _few_machines(finals: pd.DataFrame, names: tuple[str, str]) -> tuple[pd.Series, str]:
    """The second arm's accuracy minus the first's, a number a seed, and the machines in words: of the runs here, or of those here and in
    data/replicas that one machine made, whichever has more pairs, and then fewer machines."""
    replicas = load_runs("cifar10-lab10", folder=data_dir() / "replicas")
    runs = pd.concat([part[part["arm"].isin(names)] for part in (finals, replicas) if len(part)], ignore_index=True)
    sets = [finals[finals["arm"].isin(names)], *(part.drop_duplicates(["arm", "seed"]) for _, part in runs.groupby("device.name"))]
    found = [(contrast(part, {names[1]: 1, names[0]: -1}), sorted(part["device.name"].unique())) for part in sets]
    values, devices = min(found, key=lambda pair: (-len(pair[0]), len(pair[1])))
    return values, " and ".join(devices)


def better_rates(finals: pd.DataFrame) -> tuple[pd.Series, str]:
    """Mimetic initialization minus the default at twelve layers, each at the better of the recipe's rate and half of it by the held-back images
    of cifar10-rates: a difference a seed, and words for rates and machines; empty without runs."""
    own = EXPERIMENTS["cifar10-lab10"].lr
    held = _deep_rates().reindex([own, own / 2]).dropna()
    if len(held) < 2 or finals.empty:
        return pd.Series(dtype=float), ""
    rates = held.idxmax()
    values, devices = _few_machines(finals, tuple(f"{DEEP}-{arm}" if rates[arm] == own else f"{DEEP}-half-{arm}" for arm in PAIR))
    return values, f"the default's {rates['timm']:g}, mimetic initialization's {rates['mimetic']:g}; on {devices}"


def each_at_its_rate(finals: pd.DataFrame) -> str:
    """better_rates in words; "" without its runs."""
    values, words = better_rates(finals)
    if len(values) < ENOUGH:
        return ""
    says = {1: "there mimetic initialization is ahead", -1: "there it is behind", 0: "which puts neither ahead"}[side(values)]
    first, later = before_and_after_the_look(values)
    split = f" (the first {len(first)} {common.with_interval(first)}, those added {common.with_interval(later)})" if min(len(first), len(later)) >= ENOUGH else ""
    return f"Each at the better of these two rates, by the images held back ({words}): {common.measured(values)} points on the test images{split}, {says}."


NEAREST = {"with 50,000 images to draw from": "n50000", "at width 192": "d192", "at twelve layers": DEEP, "at twelve layers and half the learning rate": f"{DEEP}-half"}


def nearest(finals: pd.DataFrame) -> str:
    """What laboratory runs, one setting at a time, say of a model as large as ViT-Tiny on all images, in a sentence; "" without pairs."""
    said = []
    for words, prefix in NEAREST.items():
        values = contrast(finals, {f"{prefix}-mimetic": 1, f"{prefix}-timm": -1})
        if len(values) >= ENOUGH:
            said.append(f"{words} {common.measured(values)}")
    better, _ = better_rates(finals)
    said += [f"each arm at the better of these two rates {common.measured(better)}"] if said and len(better) >= ENOUGH else []
    return f"The nearest evidence is of another size, ten epochs at laboratory scale with one setting changed ([chapter 8](08_size_and_data.ipynb)), in points: {'; '.join(said)}." if said else ""


def furthest_behind(table: pd.DataFrame | None) -> str:
    """Of a gap by epoch that ends below 0: where it was largest and what is left at the end, in words; "" else, and for one pair."""
    if table is None or len(table) < 3 or table["difference"].iloc[-1] >= 0 or table["pairs"].iloc[-1] < 2:
        return ""
    worst, end = table["difference"].idxmin(), table.iloc[-1]
    return f"At twelve layers it is furthest behind after epoch {worst} ({points(table.loc[worst, 'difference'])}); at the end it is {points(end['difference'])} ({points(end['low'])} to {points(end['high'])})."


def _deep_rates() -> pd.DataFrame:
    """Accuracy at twelve layers on the images that cifar10-rates holds back, of its one seed: a row a learning rate, a column an arm."""
    finals = load_runs("cifar10-rates")
    values = finals.set_index("arm")["test_accuracy"] if len(finals) else pd.Series(dtype=float)
    return pd.DataFrame({arm: {lr: values.get(f"{DEEP}-{arm}-lr-{lr:g}") for lr in DEEP_RATES} for arm in PAIR}, dtype=float).dropna()


def rates_at_twelve() -> str:
    """Whether twelve layers want another learning rate, by one seed and validation images (experiment cifar10-rates); or which command asks."""
    table = _deep_rates()
    if len(table) < 2:
        return "The learning rate was chosen at six layers, and this may be the rate's doing: `python -m mimetic queue lab` asks it at twelve, and this page follows."
    accuracies = {f"{lr:g}": [f"{100 * row[arm]:.1f} %" for arm in PAIR] for lr, row in table.iterrows()}
    shown = common.markdown(pd.DataFrame({"learning rate": ["default", "mimetic"]} | accuracies))
    best = table.max()
    at = table.idxmax()
    lowest = " (mimetic initialization at the lowest rate tried)" if at["mimetic"] == min(table.index) else ""
    text = f"Another learning rate? By one seed and 5,000 images held back from training:\n\n{shown}\n\nEach at its best of these: {points(best['mimetic'] - best['timm'])} points{lowest}."
    own = EXPERIMENTS["cifar10-rates"].lr
    if own in table.index:
        text += f" At the recipe's {own:g} it is {points(table.loc[own, 'mimetic'] - table.loc[own, 'timm'])}."
    lacking = [f"{lr:g}" for lr in DEEP_RATES if lr not in table.index]
    return text + (f" ({', '.join(lacking)} not in yet: `python -m mimetic queue lab`.)" if lacking else "")


def scarce(finals: pd.DataFrame, metric: str = "test_loss") -> str:
    """Mimetic minus default in the last epoch's test loss at each number of images, and both arms' accuracy in training, in words: where a set
    is read often enough to be learned by heart, test accuracy alone hides it. "" without all pairs."""
    rows = []
    for name, (reference, arm) in panel_arms("data").items():
        values = contrast(finals, {arm: 1, reference: -1}, metric)
        if len(values) < ENOUGH:
            return ""
        low, high = mean_interval(values)
        ahead = [100 * (finals.loc[finals["arm"] == a, "train_accuracy"] - finals.loc[finals["arm"] == a, "test_accuracy"]).mean() for a in (arm, reference)]
        rows.append((name, f"{values.mean():+.3f} ({low:+.3f} to {high:+.3f})".replace("-", "−"), ahead, high))
    none = [row for row in rows if not row[-1] < 0]
    text = f"In test loss (less is better): {'; '.join(f'{name} {value}' for name, value, *_ in rows)}."
    if none and len(none) < len(rows):
        text += " No gain in loss: " + "; ".join(f"{name}, where accuracy on the training images is {mine:.0f} points above that on test images with mimetic initialization, and {its:.0f} with the default" for name, _, (mine, its), _ in none)
        text += ". There the lead in accuracy brings none in loss."
    return text


def repeats(by_epoch: dict[str, pd.DataFrame], scarce_set: str = "2,000 images", base: str = "d 96, depth 6") -> str:
    """When the gain with few images falls behind that with more, by epoch, and how often each image has been seen by then, in words; "" without
    both (gaps)."""
    few, many = by_epoch.get(scarce_set), by_epoch.get(base)
    if few is None or many is None or len(few) < 3:
        return ""
    config = EXPERIMENTS["cifar10-lab10"]
    times = (config.epoch_images or config.train_size) / float(scarce_set.split()[0].replace(",", ""))
    best, end = few["difference"].idxmax(), few.index[-1]
    if best == end or few.loc[end, "difference"] >= many.loc[end, "difference"]:
        return ""
    return (
        f"With {scarce_set} the lead is largest after epoch {best}, {points(few.loc[best, 'difference'])} ({points(many.loc[best, 'difference'])} with {config.train_size:,}), when each image has been seen {times * best:.0f} times, "
        f"and {points(few.loc[end, 'difference'])} at the end ({points(many.loc[end, 'difference'])}), after {times * end:.0f}: what makes the gain smaller there may be that images are repeated, and not that they are few."
    )


def gaps(curves: pd.DataFrame, names: tuple[str, ...]) -> dict[str, pd.DataFrame]:
    """The gain by epoch (gap_by_epoch) in settings of the size and data panels, by name in words; those without pairs are left out."""
    arms = {name: pair for title in GAIN_PANELS for name, pair in panel_arms(title).items()}
    tables = {name: gap_by_epoch(curves, *arms[name]) for name in names}
    return {name: table for name, table in tables.items() if len(table)}


def answer(finals: pd.DataFrame) -> str:
    """The chapter's answer: against width, depth and number of images the trend, and where it comes from."""
    tables, dots, _ = gain_panels(finals)
    lines = []
    for title in GAIN_PANELS:
        gap = " (So far: not all sizes are in.)" if title in dots and dots[title]["x"].nunique() < len(panel_arms(title)) else ""
        half = contrast(finals, {f"{DEEP}-half-mimetic": 1, f"{DEEP}-half-timm": -1}) if title == "depth" else []
        slower = f"All at one learning rate; 12 layers at half of it: {common.measured(half)}, [below](#twelve)." if len(half) >= ENOUGH else ""
        lines.append(" ".join(filter(None, (f"* **{title.capitalize()}.**", where(dots, title), trend(dots, title), of_the_errors(tables[title]) if title in tables else "", slower))) + gap)
    return f"**Answer.**{lead(dots)}\n\n" + "\n".join(lines)


def lead(dots: dict[str, pd.DataFrame]) -> str:
    """The answer in a few words, where all slopes are known and those of size have one direction; else ""."""
    sides, steady = {}, True
    for title in GAIN_PANELS:
        slopes = slopes_per_doubling(dots[title]) if title in dots else []
        if len(slopes) < ENOUGH:
            return ""
        sides[title], steady = side(slopes), steady and not rests_on(dots[title])
    size, data = {sides["width"], sides["depth"]}, sides["data"]
    if len(size) > 1 or 0 in (*size, data):
        return ""
    size, data = size == {1}, data < 0
    word = {(True, True): "Both", (False, False): "Neither", (True, False): "The first", (False, True): "The second"}[size, data]
    if steady:
        return f" {word}: the gain {'grows' if size else 'shrinks'} with the model, and is larger where there are {'fewer' if data else 'more'} images."
    if word == "Neither":
        ends = {title: set(rests_on(dots[title])) for title in GAIN_PANELS}
        others = all(ends[title] & set(pair) for title in GAIN_PANELS for pair in _apart(dots[title]))
        limits = ", ".join(f"{100 * _at_most(dots[title], towards):.1f} {unit}" for title, towards, unit in (("width", 1, "points a doubling of width"), ("depth", 1, "of depth (at one learning rate)"), ("data", -1, "a halving of the images")))
        return f" Neither is seen. Lines through all sizes run the other way, but single sizes at the ends decide it (such a trend is undecided in [the report](13_report.ipynb)){'; the other sizes cannot be told apart' if others else ''}. With and without them, growth of more than {limits} is outside the interval."
    return f" {word}, by a line through all sizes; but single sizes at the ends decide it."

