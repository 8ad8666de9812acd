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

NEAR = 0.05  # a share that differs by less from what weight decay leaves says nothing else


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
    return found.apply(lambda column: [round(v, d) for v, d in zip(column, digits)])


def by_layer(products: pd.DataFrame) -> pd.DataFrame:
    """Layer by layer: the mean diagonal of both products over its off-diagonal spread, after training; mean over heads and seeds."""
    after = products[products["when"] == "after"] if len(products) else products
    table = pd.DataFrame({
        (LABELS.get(arm, arm).split(" (")[0], PRODUCTS[product]): part.groupby("layer")["z"].mean()
        for (arm, product), part in after.groupby(["arm", "product"], sort=False)
    })  # fmt: skip
    return table.round(2)


def left_by_decay(experiment: str) -> float:
    """The share of a product of two weight matrices that weight decay alone would leave, if no gradient ever moved them."""
    config = EXPERIMENTS[experiment]
    settings = train_config(config)
    steps = (config.epoch_images or config.train_size or TRAIN_SIZES[config.dataset]) // config.batch_size
    return math.prod(1 - learning_rate(step, settings, steps) * settings.weight_decay for step in range(settings.epochs * steps)) ** 2


def sentence(products: pd.DataFrame, experiment: str = CENTRAL.experiment) -> str:
    """How much of the written diagonals mimetic initialization keeps, and whether the default grows any by itself."""
    if products.empty or not set(PAIR) <= set(products["arm"]):
        return f"The runs are not in yet. `{COMMAND}` makes them, and this page follows."
    grown, mimetic = (products[products["arm"] == arm] for arm in PAIR)
    kept, grows = {}, []
    for product, name in PRODUCTS.items():
        means = mimetic[mimetic["product"] == product].groupby(["seed", "when"])["diag_mean"].mean().unstack()
        shares = means["after"] / means["before"]
        low, high = mean_interval(shares) if len(shares) > 1 else (float("nan"),) * 2
        span = f" ({100 * low:.0f} to {100 * high:.0f}, {len(shares)} seeds)" if len(shares) > 1 else ""
        kept[f"{common.percent(shares.mean())} of {'that' if kept else 'the diagonal'} written into {name}{span}"] = shares.mean()
        after = grown[(grown["product"] == product) & (grown["when"] == "after")]
        unit, what = ("heads", "one way in its heads") if product == "qk" else ("layers", "one way")
        where = f"above chance in {common.percent((after['sigmas'] > CHANCE).mean())} of {unit}, below in {common.percent((after['sigmas'] < -CHANCE).mean())}"
        how = {"+": f"grows a positive one by itself ({where}", "−": f"grows a negative one by itself ({where}", "none": f"does not grow {what} ({where}"}[sign(after["sigmas"])]
        grows.append(f"{name} {how}; mean {after['diag_mean'].mean():+.3f}, mimetic models' {means['after'].mean():+.3f})".replace("-", "−"))
    most = sum(share > 0.5 for share in kept.values())
    answer = ("No", "In part", "Yes")[most]
    decay = left_by_decay(experiment)
    near = all(abs(share - decay) < NEAR for share in kept.values())
    meaning = " So nearly all that is lost is lost to weight decay: the pattern stays, but that does not show that training wants it." if near else ""
    return (
        f"{answer}: {' and '.join(kept)} are left after training. Weight decay alone, with no gradient, would leave {common.percent(decay)} of either.{meaning} "
        f"Under the default {'; '.join(grows)}."
    )


def by_itself(experiment: str = "cifar10-lab10", size: str = "random-directions") -> str:
    """Whether weights as large as mimetic initialization's grow as much of a V·proj diagonal as the default's small ones, in words; "" without runs."""
    products = recorded_products(experiment, (PAIR[0], size))
    after = products[(products["when"] == "after") & (products["product"] == "vp")] if len(products) else products
    if after.empty or set(after["arm"]) != {PAIR[0], size}:
        return ""
    share = {arm: (part["sigmas"] < -CHANCE).mean() for arm, part in after.groupby("arm")}
    conclusion = " Large weights move little in so many steps, and a diagonal that they start with is kept as one that they start without is not grown." if share[size] < share[PAIR[0]] / 2 else ""
    return f"After ten epochs {PRODUCTS['vp']} is below chance in {common.percent(share[PAIR[0]])} of the default's layers, and in {common.percent(share[size])} of those that began with large random weights.{conclusion}"
