"""What chapter 9 says: the products and the attention maps before and after training."""

from __future__ import annotations

import pandas as pd

from mimetic.experiments.answers import common
from mimetic.experiments.answers.vision import COMMAND
from mimetic.experiments.programmes.vision import CENTRAL, PAIR
from mimetic.experiments.recorded import recorded_products, records_of, table_of
from mimetic.figures.style import LABELS


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
                    f"{name} diagonal / spread": these["z"].mean(), f"{name} {unit} above chance (%)": 100 * (these["sigmas"] > 2).mean(),
                    f"{name} {unit} below chance (%)": 100 * (these["sigmas"] < -2).mean(),
                }  # fmt: skip
            row |= {"distance attended (patches)": looks["distance"].mean(), "attention to itself (%)": 100 * looks["itself"].mean()}
            rows[LABELS.get(arm, arm).split(" (")[0], when] = row
    found = pd.DataFrame(rows)  # a column for each arm before and after: the names of the rows are long
    digits = [3 if name.endswith(("mean diagonal", "off-diagonal spread")) else 2 for name in found.index]
    return found.apply(lambda column: [round(v, d) for v, d in zip(column, digits)])


def sentence(products: pd.DataFrame) -> str:
    """What the default grows by itself, and how much of the written diagonals mimetic initialization keeps."""
    if products.empty or not set(PAIR) <= set(products["arm"]):
        return f"The runs are not in yet. `{COMMAND}` makes them, and this page follows."
    grown, mimetic = (products[products["arm"] == arm] for arm in PAIR)
    after, parts = grown[grown["when"] == "after"], []
    for product, name, unit in (("qk", common.PRODUCTS["qk"], "heads"), ("vp", common.PRODUCTS["vp"], "layers")):
        some = after[after["product"] == product]
        above, below = (some["sigmas"] > 2).mean(), (some["sigmas"] < -2).mean()
        lean = "in both directions" if min(above, below) > 0.1 else "upwards" if above > below else "downwards"
        by_layer = ", ".join(f"{z:+.2f}" for z in some.groupby("layer")["z"].mean())
        parts.append(f"diagonals of {name} grow {lean}, above chance in {common.percent(above)} of {unit} and below in {common.percent(below)} (by layer, in spreads: {by_layer})")
    text = f"Under the default, {parts[0]}; {parts[1]}. "
    shares = []
    for product, name in common.PRODUCTS.items():
        mean = mimetic[mimetic["product"] == product].groupby("when")["diag_mean"].mean()
        other = after[after["product"] == product]["diag_mean"].mean()
        shares.append(f"{common.percent(mean['after'] / mean['before'])} of that of {name} ({mean['before']:+.3f} to {mean['after']:+.3f}; the default ends at {other:+.3f})")
    return (text + f"Mimetic models keep {' and '.join(shares)}.").replace("-", "−")
