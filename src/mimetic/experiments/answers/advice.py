"""What the recommender chapter (12) advises a practitioner to do, by what the comparisons say."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import pandas as pd
import torch

from mimetic.experiments.answers.recommenders import (
    AGAINST_DEFAULT,
    COMPARED,
    CONTROLS,
    SHOWN,
    SIGN_PAIRS,
    VALIDATION_COLUMN,
    beyond_size,
    compared,
)
from mimetic.experiments.configs import EXPERIMENTS
from mimetic.experiments.recommenders import METRIC
from mimetic.initializers import initialize_
from mimetic.models.blocks import Block
from mimetic.scan import attention_layers
from mimetic.statistics import ENOUGH


def spreads(name: str, d_model: int, num_heads: int) -> tuple[float, float]:
    """Standard deviation of the entries of queries and keys, and of values and projection, under an initialization by name, at a shape."""
    block = Block(d_model, num_heads)
    initialize_(block, name, default="bert", generator=torch.Generator().manual_seed(0))
    (layer,) = attention_layers(block)
    return tuple(torch.cat([a.flatten(), b.flatten()]).std().item() for a, b in ((layer.q, layer.k), (layer.v, layer.proj)))


def monday(finals: Mapping[str, pd.DataFrame]) -> str:
    """Advice to a practitioner, data set by data set, by what the comparisons say; as Markdown list items."""
    others, advised = compared(finals, COMPARED, VALIDATION_COLUMN), False
    lines = []
    for data, table in compared(finals, COMPARED).items():
        text, scale = _advice(table, others[data])
        lines.append(f"* {SHOWN[data]}: {text}")
        advised |= scale
    if advised:
        ours, bert = EXPERIMENTS["ml100k"], (768, 12)
        shapes, said = ((ours.d_model, ours.num_heads), bert), []
        for shape in shapes:
            small, (qk, vp) = spreads("bert", *shape)[0], spreads("mimetic", *shape)
            said.append(f"{qk:.2g} (queries, keys) and {vp:.2g} (values, projection) at width {shape[0]} with {shape[1]} heads, {qk / small:.2g} and {vp / small:.2g} times BERT's")
        lines.append(
            f"* How: scale the attention weights of your model to entries of a standard deviation of about {'; '.join(said)}. We suppose that the size counts, not the factor; only width {ours.d_model} was run, and no larger default "
            f"(Xavier's is {spreads('xavier', *shapes[0])[0]:.3g} there). On a model of ours: `mimetic.initialize_(model, \"timm-rescaled\", default=\"bert\")`."
        )
    return "\n".join(lines)


def _values(table: pd.DataFrame, names: list[str]) -> str:
    """Comparisons with their difference and interval."""
    return ", ".join(f"{name.removesuffix(' (no diagonal)')} {METRIC.shown(table.loc[name])}" for name in names)


def _advice(table: pd.DataFrame, other: pd.DataFrame) -> tuple[str, bool]:
    """Advice from the comparisons on the last items, held against those on the last but one, and whether it is to make weights larger."""
    rows = {name: row for name, row in table.iterrows() if row["pairs"] >= ENOUGH}
    signs = {name: row for name, row in rows.items() if name in SIGN_PAIRS}
    if not signs:
        return "too few pairs for advice about the initialization.", False

    values = partial(_values, table)
    good, bad = [n for n, r in rows.items() if r["low"] > 0 and n in AGAINST_DEFAULT], [n for n, r in signs.items() if r["high"] < 0]
    size = [name for name in good if name not in SIGN_PAIRS]
    if beyond := beyond_size({name for name, row in rows.items() if row["low"] > 0}):
        against = [f"{name} minus {control}" for name in beyond for control in CONTROLS]
        return f"mimetic initialization gains beyond what the size of its weights gives ({values(against)}): worth a paired run on your data.", False
    if size:
        again = [name for name in size if other.loc[name, "low"] > 0]
        held = "on the users' last but one items, too" if len(again) == len(size) else f"on the users' last but one items only {again[0]}" if again else "not so on the users' last but one items"
        if there := beyond_size(set(other.index[other["low"] > 0])):
            held += f", where {' and '.join(there)} are ahead of both, uncorrected ({_values(other, [f'{name} minus {control}' for name in there for control in CONTROLS])})"
        return f"larger attention weights gain without any diagonal ({values(size)}; {held}): cheap to try.", True
    if good and bad:
        again = f"; on the users' last but one items {_values(other, good + bad)}"
        return f"one pattern gains and the other loses ({values(good + bad)}{again}), in these short runs: only a paired run on your data can say.", False
    if good:
        return f"it gains ({values(good)}), and whether by its size is not known: worth a paired run on your data.", False
    if bad:
        return f"it loses ({values(bad)}): keep the default.", False
    return f"no interval of the signs leaves out 0 ({values(list(signs))}): keep the default, and spend the time on training long enough.", False
