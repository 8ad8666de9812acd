"""Measure, then mimic: the constants that imitate a trained model, from what is recorded of its products.

python -m mimetic.experiments.fitted       prints all of them as they stand in mimetic.experiments.configs
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from mimetic.experiments.configs import named
from mimetic.experiments.configs.recommenders import FITTED_FROM
from mimetic.experiments.recorded import product_table
from mimetic.measure import fit_layer
from mimetic.pretrained import SOURCES, effective, load_measurements
from mimetic.training.records import read_record, record_path

Constants = dict[str, tuple[float, ...]]  # {qk_alpha, qk_beta, vp_alpha, vp_beta: one value a layer}, three digits


def imitating(products: pd.DataFrame, d_model: int, num_heads: int, depth: int | None = None) -> Constants:
    """The constants that imitate these products, layer by layer (measure.fit_layer).

    Args:
        products: as measure gives them, of one model, folded or raw.
        depth: layers of the model that is to imitate it; the constants are interpolated linearly over the relative
            depth, first layer to first, last to last. None: as deep as the trained one.
    """
    fits = [
        fit_layer(layer, d_model, d_model // num_heads, name=f"layer {i}") for i, layer in products.groupby("layer")
    ]
    places = np.linspace(0, len(fits) - 1, depth or len(fits))
    return {
        name: tuple(float(f"{v:.3g}") for v in np.interp(places, range(len(fits)), [f[name] for f in fits]))
        for name in fits[0]
    }


def fit_recorded(experiment: str, arm: str, seed: int = 0, *, fold: bool = False) -> Constants:
    """The constants that imitate a recorded run after its training.

    Raises:
        FileNotFoundError: the run is not recorded.
    """
    config = named(experiment, arm=arm)
    return imitating(
        product_table(read_record(record_path(experiment, arm, seed)), fold=fold), config.d_model, config.num_heads
    )


def from_pretrained(source: str, depth: int, *, fold: bool = True) -> Constants:
    """The constants that imitate a pretrained model, from its recorded measurement, for a model of another depth; fold:
    with the gains folded in where it has any.

    Raises:
        ValueError: nothing is recorded of this source, or it has layers of different sizes.
    """
    measured = load_measurements()
    rows = (effective(measured) if fold else measured[~measured["fold"]])[lambda t: t["source"] == source]
    if rows.empty:
        raise ValueError(f"nothing is recorded of {source!r}; choose from {', '.join(measured['source'].unique())}")
    sizes = set(SOURCES[source].layer_dims())
    if len(sizes) > 1:
        raise ValueError(f"{source} has layers of different sizes (d_model, num_heads): {sorted(sizes)}")
    return imitating(rows, *sizes.pop(), depth)


def main() -> None:
    found = {
        "vision": {
            "dinov2": from_pretrained("dinov2-vit-s", 6),
            "dinov2-raw": from_pretrained("dinov2-vit-s", 6, fold=False),
        },
        "language": {"FITTED": fit_recorded("tinyshakespeare-narrow", "gpt2", fold=True)},
        "recommenders": {name: fit_recorded(*source) for name, source in FITTED_FROM.items()},
    }
    for family, models in found.items():
        print(f"configs/{family}.py")
        for name, constants in models.items():
            print(f'    "{name}": {constants},')


if __name__ == "__main__":
    main()
