"""What chapter 9 shows: the products and the attention maps before and after training."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pandas as pd

from mimetic.attention_maps import patch_distances
from mimetic.audit import CHANCE
from mimetic.book import common
from mimetic.book.common import PRODUCTS, SHORT, percent
from mimetic.data.images import IMAGE_SHAPES, TRAIN_SIZES
from mimetic.experiments.configs import EXPERIMENTS, named
from mimetic.experiments.programmes import command_for
from mimetic.experiments.programmes.vision import CENTRAL, PAIR
from mimetic.experiments.recorded import recorded_products, records_of, table_of
from mimetic.experiments.runs import train_config
from mimetic.figures.style import LABELS
from mimetic.statistics import mean_interval
from mimetic.training.loop import learning_rate

TEN_EPOCHS = "cifar10-lab10"  # chapter 7's runs
# arm: the signs of QK and V·proj
SIGNS = {"mimetic": ("+", "−"), "both-flipped": ("−", "+"), "qk-minus": ("−", "−"), "vp-plus": ("+", "+")}
# arms that begin without a diagonal, in words
WITHOUT = {PAIR[0]: "default", "random-directions": "mimetic's singular values, random directions"}


def load_anatomy(
    experiment: str = CENTRAL.experiment, arms: tuple[str, ...] = PAIR
) -> tuple[pd.DataFrame, pd.DataFrame]:
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


def left_by_decay(experiment: str) -> float:
    """The share of a product of two weight matrices that weight decay alone would leave, if no gradient ever moved
    them."""
    config = EXPERIMENTS[experiment]
    settings = train_config(config)
    steps = (config.epoch_images or config.train_size or TRAIN_SIZES[config.dataset]) // config.batch_size
    rates = (learning_rate(step, settings, steps) for step in range(settings.epochs * steps))
    return math.prod(1 - rate * settings.weight_decay for rate in rates) ** 2


def shares_kept(products: pd.DataFrame, arm: str = PAIR[1], what: str = "diag_mean") -> pd.DataFrame:
    """What is left of the diagonals of an arm (or of another column), mean after / mean before training: a row a seed,
    a column a product."""
    means = products[products["arm"] == arm].groupby(["product", "seed", "when"])[what].mean().unstack()
    return (means["after"] / means["before"]).unstack("product")[list(PRODUCTS)]


def beyond_chance(products: pd.DataFrame, arm: str, product: str, when: str = "after") -> tuple[float, float]:
    """The share of heads (of layers, for V·proj) whose diagonal is above chance, and the share below."""
    chosen = (products["arm"] == arm) & (products["product"] == product) & (products["when"] == when)
    sigmas = products.loc[chosen, "sigmas"]
    return (sigmas > CHANCE).mean(), (sigmas < -CHANCE).mean()


def uniform_distance(experiment: str) -> float:
    """How far, in patches, a head of the experiment's model looks that attends everywhere alike."""
    config = named(experiment)
    return float(patch_distances(IMAGE_SHAPES[config.dataset][1] // config.patch_size).mean())


def in_short(products: pd.DataFrame, experiment: str = CENTRAL.experiment) -> str:
    """What training leaves of the written diagonals, beside what weight decay alone leaves, and what the default grows,
    as a Markdown table; else which command makes the runs."""
    if products.empty or not set(PAIR) <= set(products["arm"]):
        return f"*The runs are not in yet. `{command_for(experiment)}` makes them, and this page follows.*"
    unfolded = recorded_products(experiment, PAIR[1:], fold=False)  # decay acts on weights, not on the gains of norms
    folded, raw, spread = shares_kept(products), shares_kept(unfolded), shares_kept(unfolded, what="offdiag_sd")

    def means(arm: str, when: str) -> list[str]:
        part = products[(products["arm"] == arm) & (products["when"] == when)]
        return [_number(part[part["product"] == p]["diag_mean"].mean()) for p in PRODUCTS]

    rows = [
        ("**Mimetic initialization**: mean diagonal before training", *means(PAIR[1], "before")),
        ("after training", *means(PAIR[1], "after")),
        ("what is left of it", *(_share(folded[p]) for p in PRODUCTS)),
        ("what is left of it in the weights alone (LayerNorm's gains left out)", *(_share(raw[p]) for p in PRODUCTS)),
        ("what weight decay alone would leave, without any gradient", *[percent(left_by_decay(experiment), 1)] * 2),
        ("spread of the other entries (weights alone), after / before", *(_share(spread[p]) for p in PRODUCTS)),
        ("**Default**: mean diagonal after training", *means(PAIR[0], "after")),
    ]
    seeds = common.plural(products["seed"].nunique(), "seed")
    return common.markdown(rows, [f"mean over {seeds} (95 % interval)", *PRODUCTS.values()])


def table(products: pd.DataFrame, maps: pd.DataFrame) -> str:
    """Means over layers, heads and seeds, before → after training, as a Markdown table with a column an arm: the two
    diagonals, as they are and in units of the off-diagonal spread; the share of heads (layers) whose diagonal is beyond
    chance on either side; the distance attended. "" without runs."""
    columns = {}
    for arm in dict.fromkeys(products["arm"] if len(products) else ()):
        cells: dict[str, dict[str, str]] = {}
        for when in ("before", "after"):
            part, looks = (f[(f["arm"] == arm) & (f["when"] == when)] for f in (products, maps))
            found = {}
            for product, unit in (("qk", "heads"), ("vp", "layers")):
                these, (above, below) = part[part["product"] == product], beyond_chance(products, arm, product, when)
                found |= {
                    f"{SHORT[product]} mean diagonal": _number(these["diag_mean"].mean()),
                    f"{SHORT[product]} spread of the other entries": f"{these['offdiag_sd'].mean():.3f}",
                    f"{SHORT[product]} diagonal / off-diagonal sd": _number(these["z"].mean(), 2),
                    f"{SHORT[product]} {unit} above chance": percent(above),
                    f"{SHORT[product]} {unit} below chance": percent(below),
                }
            cells[when] = found | {
                "distance attended (patches)": f"{looks['distance'].mean():.2f}",
                "attention to itself": percent(looks["itself"].mean()),
            }
        columns[LABELS.get(arm, arm).split(" (")[0]] = pd.DataFrame(cells).agg(" → ".join, axis=1)
    return common.markdown(pd.DataFrame(columns).reset_index(names="before → after training"))


def by_layer(products: pd.DataFrame) -> str:
    """Layer by layer, after training, as a Markdown table: the mean diagonal of both products over the spread of its
    other entries, mean over heads and seeds, and of the default the share of heads (layers) above and below chance; ""
    without runs."""
    after = products[products["when"] == "after"] if len(products) else products
    rows = []
    for layer, found in after.groupby("layer") if len(after) else ():
        row = {"layer": f"{layer}"}
        for (arm, product), part in found.groupby(["arm", "product"], sort=False):
            value = _number(part["z"].mean(), 2)
            if arm == PAIR[0]:
                above, below = beyond_chance(found, arm, product)
                value += f" ({percent(above)} / {percent(below)})"
            row[f"{LABELS.get(arm, arm).split(' (')[0]}, {SHORT[product]}"] = value
        rows.append(row)
    return common.markdown(rows)


def kept_by_sign() -> dict[str, pd.DataFrame]:
    """arm of SIGNS -> shares_kept, gains not folded in; empty without all of them."""
    products = recorded_products(TEN_EPOCHS, tuple(SIGNS), fold=False)
    if products.empty or set(products["arm"]) != set(SIGNS):
        return {}
    return {arm: shares_kept(products, arm) for arm in SIGNS}


def either_sign() -> str:
    """Whether a diagonal of the wrong sign is kept as well as that of mimetic initialization, as a Markdown table; ""
    without runs."""
    kept = kept_by_sign()
    if not kept:
        return ""
    rows = [
        (f"QK {signs[0]}, V·proj {signs[1]}", *(_share(kept[arm][p]) for p in PRODUCTS)) for arm, signs in SIGNS.items()
    ]
    rows.append(("weight decay alone", *[percent(left_by_decay(TEN_EPOCHS), 1)] * 2))
    return common.markdown(rows, ["signs written; left of the diagonal", *PRODUCTS.values()])


def grown() -> pd.Series:
    """(arm, product, seed) -> the mean diagonal after training of the arms of WITHOUT; empty without runs of both."""
    products = recorded_products(TEN_EPOCHS, tuple(WITHOUT))
    if products.empty or set(products["arm"]) != set(WITHOUT):
        return pd.Series(dtype=float)
    return products[products["when"] == "after"].groupby(["arm", "product", "seed"])["diag_mean"].mean()


def by_itself() -> str:
    """How much of a diagonal large weights grow beside the default's small ones, as a Markdown table; "" without
    runs."""
    after = grown()
    if after.empty:
        return ""
    fine = partial(_number, digits=4)
    rows = [
        (name, *(f"{fine(after[arm, p].mean())} ({_interval(after[arm, p], fine)})" for p in PRODUCTS))
        for arm, name in WITHOUT.items()
    ]
    columns = ["mean diagonal after ten epochs (95 % interval)", *PRODUCTS.values()]
    return common.markdown(rows, columns)


def _number(value: float, digits: int = 3) -> str:
    return common.minus(f"{round(value, digits) + 0.0:+.{digits}f}")


def _interval(values: pd.Series, shown: Callable[[float], str]) -> str:
    return "no interval, 1 seed" if len(values) < 2 else " to ".join(map(shown, mean_interval(values)))


def _share(values: pd.Series) -> str:
    """A share with its 95 % interval over seeds."""
    return f"{percent(values.mean(), 1)} ({_interval(values, lambda end: f'{100 * end:.1f}')})"
