"""What the speed page and the GPU chapter say: measurements of data/speed as tables and sentences."""

from __future__ import annotations

import pandas as pd

from mimetic.bench.records import load_bench
from mimetic.book.common import markdown, percent, plural
from mimetic.book.gpu import TITLES

VIT_B = {"d_model": 768, "depth": 12, "num_heads": 12}


def init_measurements() -> pd.DataFrame:
    """Every stored `bench init` that timed the plain way on all layers: columns model, device, threads, ours, plain,
    floor, ratio, floors (ours / floor), difference; smallest model first."""
    table = load_bench("init")
    if table.empty:
        return table.reindex(columns="model device threads ours plain floor ratio floors difference".split())
    sizes = table[[f"arguments.{name}" for name in ("depth", "num_heads", "d_model")]]
    table["model"] = [f"{depth} layers, {heads} heads, d {d}" for depth, heads, d in sizes.itertuples(index=False)]
    table["floors"] = table["ours"] / table["floor"]
    return table[table["arguments.plain_layers"] == 0].sort_values(["arguments.d_model", "finished"], ignore_index=True)


def init_table() -> str:
    """A Markdown table, one row a model and number of threads, with the range over measurements; what to run, if
    nothing is stored."""
    rows = []
    for (model, device, threads), part in init_measurements().groupby(["model", "device", "threads"], sort=False):
        size = part[[f"arguments.{name}" for name in VIT_B]].iloc[0]
        name = f"{model}{' (ViT-B/16)' * bool((size == list(VIT_B.values())).all())}"
        made = f"{name}; {device}, {plural(threads, 'thread')}, {plural(len(part), 'run')}"
        rows.append(
            {
                "model; machine, threads, runs": made,
                "mimetic (s)": _range(part["ours"], ".2f"),
                "plain way (s)": _range(part["plain"], ".1f"),
                "times as fast": _range(part["ratio"], ".1f"),
                "times the floor": _range(part["floors"], ".1f"),
                "largest difference": f"{part['difference'].max():.1e}",
            }
        )
    return markdown(rows) or "*No measurement is stored yet: `python -m mimetic bench init --store`.*"


def head_table() -> pd.DataFrame:
    """Milliseconds a head by width: the median initialization divided by its layers times (heads + 2)."""
    table = init_measurements()
    if table.empty:
        return pd.DataFrame()
    table = table[table["threads"] == table["threads"].max()]
    heads = table["arguments.depth"] * (table["arguments.num_heads"] + 2)
    grouped = (1e3 * table["ours"] / heads).groupby(table["arguments.d_model"]).median()
    return pd.DataFrame({"ms a head": grouped.round(1)}).rename_axis("width").T


def _lacking(table: pd.DataFrame) -> pd.Series:
    """Whether the training of a measurement was in bfloat16 on a device that has no instructions for it."""
    return table.reindex(columns=["precision", "products"]).eq(["bfloat16", "float32"]).all(axis=1)


def _trained_on(table: pd.DataFrame) -> pd.Series:
    """The device of every measurement, with what it lacks."""
    return table["device"] + _lacking(table).map({True: " without bfloat16 instructions", False: ""})


def train_table() -> str:
    """A Markdown table, one row an experiment and machine: images/s of ours and of the fastest of timm's variants, and
    their ratio; what to run, if nothing is stored."""
    table, rows = load_bench("train"), []
    if table.empty:
        return "*No measurement is stored yet: `python -m mimetic bench train --store`.*"
    groups = table.assign(device=_trained_on(table)).groupby(["arguments.experiment", "device"], sort=False)
    for (experiment, device), part in groups:
        best = part["timm"].map(lambda variants: max(variants, key=variants.get))
        rows.append(
            {
                "experiment": experiment,
                "device": device,
                "runs": f"{len(part)}",
                "ours (images/s)": _range(part["ours"], ".0f"),
                "timm's (images/s)": _range(part["timm"].map(lambda v: max(v.values())), ".0f"),
                "timm's fastest": ", or ".join(dict.fromkeys(best)),
                "times as fast": _range(part["ratio"], ".2f"),
                "peak (%)": _share(part["peak"]),
            }
        )
    return markdown(rows)


def newer_step() -> str:
    """That a step was profiled later than it was compared with timm's, if so, on the same card; else ""."""
    compared, steps = load_bench("train"), load_bench("profile")
    if compared.empty or steps.empty:
        return ""
    says = []
    for (experiment, device), part in compared.groupby(["arguments.experiment", "device"], sort=False):
        later = steps[(steps["arguments.experiment"] == experiment) & (steps["device"] == device)]
        later = later[(later["finished"] > part["finished"].max()) & later["peak"].notna()]
        if len(later):
            says.append(
                f"On the {device} the step has become faster since: {later['images_per_second'].iloc[-1]:,.0f} images/s"
                f" and {percent(later['peak'].iloc[-1])} of the peak in the newest profile of {experiment}."
            )
    return " ".join(says)


def without_sentence() -> str:
    """What a processor without instructions for bfloat16 makes of it, if one was measured; else ""."""
    table = load_bench("train")
    table = table[_lacking(table)] if len(table) else table
    if table.empty:
        return ""
    row = table.iloc[-1]
    fastest = {p: max(v for name, v in row["timm"].items() if name.startswith(p)) for p in ("float32", "bfloat16")}
    return (
        f"On a processor without instructions for bfloat16 ({row['device']}), autocast as PyTorch has it trains"
        f" {fastest['bfloat16']:.0f} images/s, and float32 {fastest['float32']:.0f} (timm's ViT). Our training takes"
        " the matrix products in float32 there and rounds them, the same numbers up to the order of a sum:"
        f" {row['ours']:.0f} images/s. With `--precision float32` there is nothing to round,"
        " and the numbers are others."
    )


def profiles() -> pd.DataFrame:
    """The newest `bench profile` of every experiment and machine: columns label, measure (phase or kind), name, share,
    and for phases milliseconds."""
    table, rows = load_bench("profile"), []
    if len(table):
        table = table.assign(device=_trained_on(table)).drop_duplicates(["arguments.experiment", "device"], keep="last")
    for _, row in table.iterrows():
        label = f"{TITLES.get(row['arguments.experiment'], row['arguments.experiment'])}; {row['device']}"
        phases = sum(row["phases"].values())
        rows += [
            {"label": label, "measure": "phase", "name": k, "share": v / phases, "milliseconds": 1e3 * v}
            for k, v in row["phases"].items()
        ]
        rows += [{"label": label, "measure": "kind", "name": k, "share": v} for k, v in row["kinds"].items()]
    return pd.DataFrame(rows, columns=["label", "measure", "name", "share", "milliseconds"])


def profile_sentence() -> str:
    """The largest kind of operation on every machine that was measured, in words."""
    table = profiles()
    if table.empty:
        return "No profile is stored yet: `python -m mimetic bench profile --store`."
    parts = []
    for label, part in table[table["measure"] == "kind"].groupby("label", sort=False):
        part = part.set_index("name")["share"]
        products = part["matrix products"] + part["attention kernels"]
        largest = part.drop(["matrix products", "attention kernels"]).idxmax()
        beside = f"then {largest} with {percent(part[largest])}"
        parts.append(f"{label}: {percent(products)} in matrix products and attention, {beside}")
    text = ". ".join(parts) + "."
    return text if any(name in text for name in ("NVIDIA", "AMD Instinct")) else text + " No GPU has been profiled yet."


def _range(values: pd.Series, form: str) -> str:
    """Smallest to largest value; one value if they read the same."""
    low, high = format(values.min(), form), format(values.max(), form)
    return low if low == high else f"{low} to {high}"


def _share(values: pd.Series) -> str:
    known = values.dropna().astype(float)
    return _range(100 * known, ".0f") if len(known) else "–"
