"""What was measured on the pretrained models, kept as one small JSON a model in ``data/pretrained``.

The records hold numbers, not weights: the table of ``mimetic.measure`` for every layer and head, raw and with the gains
folded in, and for each layer the mean of the product's entries at every distance from the diagonal, which is enough to
draw the diagonal where the weights cannot be fetched.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from mimetic.attention import AttentionLayer
from mimetic.data.fetch import atomic_path, data_dir
from mimetic.data.json_files import RecordError, digest, installed, misfit, read_json
from mimetic.measure import LAYER_HEAD, for_json, measure
from mimetic.messages import one_line
from mimetic.pretrained.cache import PROBLEMS, load
from mimetic.pretrained.sources import SOURCES, Wheel, source

SCHEMA = 1
_ABOUT = ("title", "modality", "block", "causal")  # of a source, in a record and in every table
PROFILE_WIDTH = 32  # offsets -32 to 32 around the diagonal
_KEYS = {  # of a record, with the type of each
    "schema": int, "name": str, "title": str, "modality": str, "block": str, "causal": bool, "licence": str,
    "kind": str, "origin": dict, "dims": list, "gains": dict, "versions": dict, "date": str, "measurements": dict,
    "profiles": dict, "digest": str,
}  # fmt: skip
_SPACED = (", ", ": ")  # separators of the JSON that the digests are of


def diagonal_profile(product_DD: Tensor, width: int = PROFILE_WIDTH) -> list[float]:
    """The mean entry of a (D, D) product at each offset from its diagonal, -width to width: 2 * width + 1 numbers.

    Offset o is the mean over i of product[i, i + o]. Raises ValueError unless D > width.
    """
    if product_DD.ndim != 2 or product_DD.shape[0] != product_DD.shape[1] or product_DD.shape[0] <= width:
        raise ValueError(f"expected a square matrix wider than {width}, got shape {tuple(product_DD.shape)}")
    return [product_DD.diagonal(offset).mean().item() for offset in range(-width, width + 1)]


def measure_source(name: str) -> dict[str, Any]:
    """The record of one pretrained model, its weights fetched if need be. Raises what ``load`` raises."""
    src = source(name)
    layers = load(name)
    gains = {
        "in_gain": any(layer.in_gain is not None for layer in layers),
        "out_gain": any(layer.out_gain is not None for layer in layers),
    }
    # without any gain the folded products are the raw ones, and are not written twice
    folds = (False, True) if any(gains.values()) else (False,)
    tables = {fold: measure(layers, fold=fold) for fold in folds}
    columns = list(tables[False].columns)
    origin = dataclasses.asdict(src.origin)
    if isinstance(src.origin, Wheel):
        origin = {key: origin[key] for key in ("package", "version", "sha256", "member")}
    packages = ("mimetic", "torch", "numpy", "timm", "transformers", "onnx", "safetensors", "gguf")
    record = {
        "schema": SCHEMA,
        **{key: getattr(src, key) for key in ("name", *_ABOUT, "licence", "kind")},
        "origin": origin,
        "dims": [list(run) for run in src.dims],
        "gains": gains,
        "versions": installed(packages),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "measurements": {
            "columns": ["fold", *columns],
            "rows": [
                [fold, *(for_json(value, 6) for value in row)]
                for fold, table in tables.items()
                for row in table.itertuples(index=False, name=None)
            ],
        },
        "profiles": {
            "offsets": list(range(-PROFILE_WIDTH, PROFILE_WIDTH + 1)),
            "columns": ["fold", "layer", "name", "head", "product", "mean"],
            "rows": [row for fold in folds for i, layer in enumerate(layers) for row in _profiles(i, layer, fold)],
        },
    }
    return record | {"digest": digest(record, _SPACED)}


def _profiles(index: int, layer: AttentionLayer, fold: bool) -> list[list]:
    """The profiles of V·proj of the whole layer, and of QK of the head with the median diagonal of the raw products."""
    diagonals = torch.stack([layer.qk(h).diagonal().mean() for h in range(layer.num_heads)])
    head = int(diagonals.argsort()[(layer.num_heads - 1) // 2])
    products = (("qk", head, layer.qk(head, fold)), ("vp", LAYER_HEAD, layer.vp(fold=fold)))
    return [
        [fold, index, layer.name, number, product, [for_json(x, 4) for x in diagonal_profile(matrix)]]
        for product, number, matrix in products
    ]


# --- files ----------------------------------------------------------------------------------------------------------


def _folder(folder: str | Path | None) -> Path:
    return data_dir() / "pretrained" if folder is None else Path(folder)


def write_record(record: dict[str, Any], folder: str | Path | None = None) -> Path:
    """Write a record to FOLDER/NAME.json, atomically, a row a line so that a change can be read in a diff."""
    lines = []
    for key, value in record.items():
        if isinstance(value, dict) and "rows" in value:
            parts = [f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in value.items() if k != "rows"]
            rows = ",\n".join("   " + json.dumps(row) for row in value["rows"])
            lines.append(f" {json.dumps(key)}: {{\n" + ",\n".join([*parts, f'  "rows": [\n{rows}\n  ]']) + "\n }")
        else:
            lines.append(f" {json.dumps(key)}: {json.dumps(value)}")
    path = _folder(folder) / f"{record['name']}.json"
    with atomic_path(path) as temporary:
        temporary.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    return path


def read_record(path: str | Path) -> dict[str, Any]:
    """A record, checked. Raises RecordError, which names the file and what is wrong with it."""
    path = Path(path)

    def wrong(record: dict[str, Any]) -> str:
        if record.get("schema") != SCHEMA:
            return f"not of schema {SCHEMA}"
        if why := misfit(record, _KEYS):
            return why
        if record["digest"] != digest(record, _SPACED):
            return "its content does not match its digest"
        return "" if record["name"] == path.stem else f"it is the record of {record['name']}"

    return read_json(path, str(path), wrong, "; measure it again")


def recorded(folder: str | Path | None = None) -> list[str]:
    """The names that have a record, in the order of SOURCES, then any others."""
    # a name with a dot in front is the temporary file of a writer that was killed
    names = [path.stem for path in sorted(_folder(folder).glob("*.json")) if not path.name.startswith(".")]
    return [name for name in SOURCES if name in names] + [name for name in names if name not in SOURCES]


def measure_all(
    names: Sequence[str] | None = None, folder: str | Path | None = None, say: Callable[[str], None] = print
) -> list[Path]:
    """Measure the named sources (all by default) and write their records; what cannot be had is said in one line.

    A record in which nothing but the date and the versions would change is left as it is. Returns the paths of the
    records that are now up to date.
    """
    paths = []
    for src in [source(name) for name in (SOURCES if names is None else names)]:
        try:
            record = measure_source(src.name)
        except PROBLEMS as error:
            say(f"left out    {one_line(error)}")
            continue
        path = _folder(folder) / f"{src.name}.json"
        try:
            old = read_record(path)
        except (OSError, RecordError):
            old = {}
        volatile = ("date", "versions", "digest")
        same = all(old.get(key) == record[key] for key in record if key not in volatile)
        if not same:
            write_record(record, folder)
        say(f"{'unchanged' if same else 'measured':<11} {src.name}")
        paths.append(path)
    return paths


def _records(names: Sequence[str] | None, folder: str | Path | None) -> list[dict[str, Any]]:
    have = recorded(folder)
    missing = [name for name in names or () if name not in have]
    if missing:
        raise ValueError(f"no measurements of {', '.join(missing)}; recorded are: {', '.join(have) or 'none'}")
    return [read_record(_folder(folder) / f"{name}.json") for name in (have if names is None else names)]


def load_measurements(names: Sequence[str] | None = None, folder: str | Path | None = None) -> pd.DataFrame:
    """The recorded measurements of the named sources (default: all that are recorded), one row a product.

    Columns: source, title, modality, block, causal, fold (were the gains folded in), and those of ``mimetic.measure``.
    A model without gains has no rows with fold=True: its folded products are its raw ones.

    Raises:
        ValueError: a name without a record (the message says which there are).
        RecordError: a file that is not as it was written.
    """
    return _frame([(r, r["measurements"]["columns"], r["measurements"]["rows"]) for r in _records(names, folder)])


def load_profiles(names: Sequence[str] | None = None, folder: str | Path | None = None) -> pd.DataFrame:
    """The recorded diagonal profiles, in long form: one row a source, fold, layer, product and offset.

    Columns: source, title, modality, block, causal, fold, layer, name, head, product, offset, mean. "vp" is the product
    of the whole layer (head -1), "qk" that of the layer's head with the median diagonal.

    Raises what ``load_measurements`` raises.
    """
    parts = []
    for record in _records(names, folder):
        stored = record["profiles"]
        columns = [*stored["columns"][:-1], "offset", "mean"]
        rows = [
            [*row[:-1], offset, mean]
            for row in stored["rows"]
            for offset, mean in zip(stored["offsets"], row[-1], strict=True)
        ]
        parts.append((record, columns, rows))
    return _frame(parts)


def _frame(parts: list[tuple[dict, list[str], list[list]]]) -> pd.DataFrame:
    frames = []
    for record, columns, rows in parts:
        frame = pd.DataFrame(rows, columns=columns)
        for position, key in enumerate(("name", *_ABOUT)):
            frame.insert(position, "source" if key == "name" else key, record[key])
        frames.append(frame)
    if not frames:
        return pd.DataFrame(columns=["source", *_ABOUT])
    return pd.concat(frames, ignore_index=True)


def effective(measurements: pd.DataFrame | None = None) -> pd.DataFrame:
    """The recorded products as the layer computes them: gains folded in where the model has any, raw otherwise."""
    measurements = load_measurements() if measurements is None else measurements
    with_gains = measurements.loc[measurements["fold"], "source"]
    return measurements[measurements["fold"] | ~measurements["source"].isin(with_gains)]
