"""What chapter 9 says: the products and the attention maps before and after training."""

from __future__ import annotations

import math

import pandas as pd

from mimetic.audit import CHANCE
from mimetic.audit.report import sign
from mimetic.data.images import TRAIN_SIZES
from mimetic.experiments.answers import common
from mimetic.experiments.answers.common import PRODUCTS
from mimetic.experiments.answers.vision import COMMAND
from mimetic.experiments.configs import EXPERIMENTS
from mimetic.experiments.programmes.vision import CENTRAL, PAIR
from mimetic.experiments.recorded import recorded_products, records_of, table_of
from mimetic.experiments.runs import train_config
from mimetic.figures.style import LABELS
from mimetic.statistics import mean_interval
from mimetic.training.loop import learning_rate

SHORT = {"qk": "QK", "vp": "V·proj"}  # where a name stands in the head of a table


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


def table(products: pd.DataFrame, maps: pd.DataFrame) -> pd.DataFrame:
    """Means over layers, heads and seeds, before and after training: the two diagonals, as they are and in units of the off-diagonal
    spread; the share of heads (layers) whose diagonal is beyond chance on either side; the distance attended."""
    rows = {}
    for arm in dict.fromkeys(products["arm"] if len(products) else ()):
        for when in ("before", "after"):
            part, looks = (f[(f["arm"] == arm) & (f["when"] == when)] for f in (products, maps))
            row = {}
            for product, name, unit in (("qk", "QK", "heads"), ("vp", "V·proj", "layers")):
                these = part[part["product"] == product]
                row |= {
                    f"{name} mean diagonal": these["diag_mean"].mean(), f"{name} off-diagonal spread": these["offdiag_sd"].mean(),
                    f"{name} diagonal / spread": these["z"].mean(), f"{name} {unit} above chance (%)": 100 * (these["sigmas"] > CHANCE).mean(),
                    f"{name} {unit} below chance (%)": 100 * (these["sigmas"] < -CHANCE).mean(),
                }  # fmt: skip
            row |= {"distance attended (patches)": looks["distance"].mean(), "attention to itself (%)": 100 * looks["itself"].mean()}
            rows[LABELS.get(arm, arm).split(" (")[0], when] = row
    found = pd.DataFrame(rows)  # a column for each arm before and after: the names of the rows are long
    digits = [3 if name.endswith(("mean diagonal", "off-diagonal spread")) else 0 if name.endswith("(%)") else 2 for name in found.index]
    return found.apply(lambda column: [f"{round(v, d) + 0.0:.{d}f}".replace("-", "−") for v, d in zip(column, digits)])


def by_layer(products: pd.DataFrame) -> pd.DataFrame:
    """Layer by layer: the mean diagonal of both products over its off-diagonal spread, after training; mean over heads and seeds."""
    after = products[products["when"] == "after"] if len(products) else products
    table = pd.DataFrame({
        (LABELS.get(arm, arm).split(" (")[0], SHORT[product]): part.groupby("layer")["z"].mean()
        for (arm, product), part in after.groupby(["arm", "product"], sort=False)
    })  # fmt: skip
    return table.round(2)


def left_by_decay(experiment: str) -> float:
    """The share of a product of two weight matrices that weight decay alone would leave, if no gradient ever moved them."""
    config = EXPERIMENTS[experiment]
    settings = train_config(config)
    steps = (config.epoch_images or config.train_size or TRAIN_SIZES[config.dataset]) // config.batch_size
    return math.prod(1 - learning_rate(step, settings, steps) * settings.weight_decay for step in range(settings.epochs * steps)) ** 2


def layers_sentence(products: pd.DataFrame) -> str:
    """In which layers the default's heads grow which sign of W_Q W_K^T, in words; "" without runs."""
    after = products[(products["arm"] == PAIR[0]) & (products["when"] == "after") & (products["product"] == "qk")] if len(products) else products
    if after.empty:
        return ""
    up, down = (after.assign(beyond=side * after["sigmas"] > CHANCE).groupby("layer")["beyond"].mean() for side in (1, -1))
    shares = ", ".join(f"{100 * up[layer]:.0f}/{100 * down[layer]:.0f}" for layer in up.index)
    return f"The default's {PRODUCTS['qk']}, heads above/below chance in percent, from the first layer to the last: {shares}."


def shares_kept(products: pd.DataFrame) -> pd.DataFrame:
    """What is left of the diagonals that mimetic initialization wrote, mean after / mean before training: a row a seed, a column a product."""
    means = products[products["arm"] == PAIR[1]].groupby(["product", "seed", "when"])["diag_mean"].mean().unstack()
    return (means["after"] / means["before"]).unstack("product")[list(PRODUCTS)]


def _share(values: pd.Series) -> tuple[str, float, float]:
    """A share in words, with the 95 % interval over seeds, and the interval's ends."""
    low, high = mean_interval(values) if len(values) > 1 else (float("nan"),) * 2
    return common.percent(values.mean(), 1) + (f" (95 % interval {100 * low:.1f} to {100 * high:.1f})" if len(values) > 1 else ""), low, high


def sentence(products: pd.DataFrame, experiment: str = CENTRAL.experiment) -> str:
    """How much of the written diagonals mimetic initialization keeps, against what weight decay alone leaves, and whether the default grows any."""
    if products.empty or not set(PAIR) <= set(products["arm"]):
        return f"The runs are not in yet. `{COMMAND}` makes them, and this page follows."
    folded, decay = shares_kept(products), left_by_decay(experiment)
    unfolded = recorded_products(experiment, PAIR[1:], fold=False)
    raw = shares_kept(unfolded)  # decay acts on weights, not on the gains of norms
    answer = ("No", "In part", "Yes")[sum(folded.mean() > 0.5)]
    kept = " and ".join(f"{common.percent(folded[product].mean())} of {'the diagonal' if product == 'qk' else 'that'} written into {name}" for product, name in PRODUCTS.items())
    against = []
    for product, name in PRODUCTS.items():
        words, low, high = _share(raw[product])
        does = "more than that" if low > decay else "less than that" if high < decay else "no more than that"
        against.append(f"{words} in {name}, {does}")
    grows = []
    for product, name in PRODUCTS.items():
        after, other = (products[(products["arm"] == arm) & (products["product"] == product) & (products["when"] == "after")] for arm in PAIR)
        unit, what = ("heads", "one way in its heads") if product == "qk" else ("layers", "one way")
        where = f"above chance in {common.percent((after['sigmas'] > CHANCE).mean())} of {unit}, below in {common.percent((after['sigmas'] < -CHANCE).mean())}"
        layers = after.groupby("layer")["diag_mean"].mean()
        if sign(after["sigmas"]) == "none" and layers.min() < 0 < layers.max():  # a mean would hide both
            where += f"; mean of each layer, from the first to the last, {', '.join(f'{value:+.3f}' for value in layers)}"
        how = {"+": f"grows a positive one by itself ({where}", "−": f"grows a negative one by itself ({where}", "none": f"does not grow {what} ({where}"}[sign(after["sigmas"])]
        grows.append(f"{name} {how}; mean {after['diag_mean'].mean():+.3f}, mimetic models' {other['diag_mean'].mean():+.3f})".replace("-", "−"))
    return (
        f"{answer}: {kept} are left after training ({len(folded)} seeds, LayerNorm's gains folded in). Against inertia: weight decay alone, with no gradient, would leave "
        f"{common.percent(decay)} of every entry of the weights' own products. Left of their mean diagonal, gains not folded in: {'; '.join(against)}. {_size_kept(unfolded, EXPERIMENTS[experiment].d_model)}Under the default {'; '.join(grows)}."
        f"{_kept_anyway()}"
    )


def _kept_anyway() -> str:
    other = _kept_by_sign("cifar10-lab10")
    return " Diagonals of the wrong signs are kept as well (below), so that one is kept is no sign that training wants it." if len(other) and other["both-flipped"].min() > 0.5 else ""


def _size_kept(products: pd.DataFrame, d: int) -> str:
    """What is left of the products (d, d) as a whole, that is of their Frobenius norms, in words."""
    energy = d * products["diag_mean"] ** 2 + d**2 * products["offdiag_sd"] ** 2  # the diagonal spreads as the rest does
    means = products.assign(norm=energy**0.5).groupby(["product", "when"])["norm"].mean().unstack()
    share = means["after"] / means["before"]
    spread = products.groupby(["product", "when"])["offdiag_sd"].mean().unstack()
    others = spread["after"] / spread["before"]
    return (
        f"The products as a whole are {' and '.join(f'{common.percent(share[p], 1)} ({SHORT[p]})' for p in PRODUCTS)} of their size before, in Frobenius norm, and the spread of their other entries "
        f"{' and '.join(common.percent(others[p], 1) for p in PRODUCTS)} of what it was{', so beside these every diagonal is smaller than it was' if _beside_others(products) else ''}. "
    )


def _beside_others(products: pd.DataFrame) -> bool:
    """Whether both products' mean diagonals shrink in units of the spread of the other entries."""
    z = products.assign(z=products["diag_mean"].abs() / products["offdiag_sd"]).groupby(["product", "when"])["z"].mean().unstack()
    return bool((z["after"] < z["before"]).all())


SIGNS = {"mimetic": ("+", "−"), "both-flipped": ("−", "+"), "qk-minus": ("−", "−"), "vp-plus": ("+", "+")}  # arm: the signs of QK and V·proj


def _kept_by_sign(experiment: str) -> pd.Series:
    """(arm of SIGNS, product) -> the share of its mean diagonal that is left, gains not folded in, mean over seeds; empty without all four."""
    products = recorded_products(experiment, tuple(SIGNS), fold=False)
    if products.empty or set(products["arm"]) != set(SIGNS):
        return pd.Series(dtype=float)
    means = products.groupby(["arm", "product", "seed", "when"])["diag_mean"].mean().unstack()
    return (means["after"] / means["before"]).groupby(["arm", "product"]).mean()


def either_sign(experiment: str = "cifar10-lab10") -> str:
    """Whether a diagonal of the wrong sign is kept as well as that of mimetic initialization, in words; "" without runs."""
    kept = _kept_by_sign(experiment)
    if kept.empty:
        return ""
    rows = [", ".join(f"{SHORT[product]} {written} {common.percent(kept[arm, product], 1)}" for product, written in zip(PRODUCTS, signs)) for arm, signs in SIGNS.items()]
    decay = common.percent(left_by_decay(experiment), 1)
    text = f"Would another diagonal be kept? Left after ten epochs, where weight decay alone would leave {decay}, with these signs written (gains not folded in): {'; '.join(rows)}."
    return text + (f" Whichever sign is written, {common.percent(kept.min())} to {common.percent(kept.max())} of it is there at the end." if kept.min() > 0.5 else "")


def by_itself(experiment: str = "cifar10-lab10", size: str = "random-directions") -> str:
    """Whether weights as large as mimetic initialization's grow as much of a V·proj diagonal as the default's small ones, and what their
    QK does, in words; "" without runs."""
    products = recorded_products(experiment, (PAIR[0], size))
    if products.empty or set(products["arm"]) != {PAIR[0], size}:
        return ""
    part = products[products["product"] == "vp"]
    after = part[part["when"] == "after"]
    means = after.groupby(["arm", "seed"])["diag_mean"].mean()
    if min(len(means[arm]) for arm in (PAIR[0], size)) < 2:
        return ""
    (small, low, high), (large, large_low, large_high) = ((means[arm].mean(), *mean_interval(means[arm])) for arm in (PAIR[0], size))
    spreads = after.groupby("arm")["offdiag_sd"].mean()
    below = part.assign(below=part["sigmas"] < -CHANCE).groupby(["arm", "when"])["below"].mean()
    beyond = {arm: f"{common.percent(below[arm, 'before'])} to {common.percent(below[arm, 'after'])}" for arm in (PAIR[0], size)}
    says = "So size hides the growth and does not stop it." if large_high < 0 and abs(large) > 0.5 * abs(small) else "So weights of that size grow less of it."
    keys = products[(products["product"] == "qk") & (products["when"] == "after")].groupby(["arm", "seed"])["diag_mean"].mean()
    ends = {arm: mean_interval(keys[arm]) for arm in (PAIR[0], size)}
    qk = " and ".join(f"{keys[arm].mean():+.4f} ({ends[arm][0]:+.4f} to {ends[arm][1]:+.4f}) {name}" for arm, name in ((PAIR[0], "under the default"), (size, "in those")))
    return (
        f"After ten epochs the mean diagonal of {PRODUCTS['vp']} is {small:+.4f} ({low:+.4f} to {high:+.4f}) under the default and {large:+.4f} ({large_low:+.4f} to {large_high:+.4f}) in models that "
        f"began with large random weights. {says} Their other entries spread by {spreads[PAIR[0]]:.3f} and {spreads[size]:.3f}, so the layers below chance go from {beyond[PAIR[0]]} with the first and from {beyond[size]} with the second. "
        f"That of {PRODUCTS['qk']}: {qk}; its first and last layers differ, as above."
    ).replace("-", "−")
