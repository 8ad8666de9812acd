"""Records of speed: one JSON file a measurement, ``data/speed/KIND-N.json``, with the machine and the versions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mimetic.data.fetch import atomic_path, data_dir
from mimetic.measure import for_json
from mimetic.training.records import RecordError, now, versions

if TYPE_CHECKING:
    import pandas as pd

DIGITS = 4  # more than a clock is good for
KINDS = ("init", "train", "profile")
_FIELDS = {
    "kind": str,
    "arguments": dict,
    "result": dict,
    "device": str,
    "threads": int,
    "versions": dict,
    "finished": str,
}


def store_bench(
    kind: str,
    arguments: dict[str, Any],
    result: dict[str, Any],
    device: str,
    threads: int,
    folder: str | Path | None = None,
) -> Path:
    """Keep a measurement beside those that are there; returns its path.

    Raises:
        ValueError: unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, not {kind!r}")
    folder = Path(folder or data_dir() / "speed")
    number = 1 + max((int(path.stem.rpartition("-")[2]) for path in folder.glob(f"{kind}-*.json")), default=0)
    record = {
        "kind": kind,
        "arguments": arguments,
        "result": for_json(result, DIGITS),
        "device": device,
        "threads": threads,
        "versions": versions(),
        "finished": now(),
    }
    path = folder / f"{kind}-{number}.json"
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return path


def load_bench(kind: str, folder: str | Path | None = None) -> pd.DataFrame:
    """One row a measurement of a kind, oldest first: arguments.NAME, the results by name
    (dicts as they are), device, threads, torch.

    Raises:
        RecordError: a file is damaged; the message names it.
    """
    import pandas as pd

    rows = []
    for path in Path(folder or data_dir() / "speed").glob(f"{kind}-*.json"):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise RecordError(f"{path.name} is damaged: not JSON ({error})") from None
        for key, expected in _FIELDS.items():
            if not isinstance(record, dict) or not isinstance(record.get(key), expected):
                raise RecordError(f"{path.name} is damaged: no {key!r}")
        rows.append(
            {f"arguments.{k}": v for k, v in record["arguments"].items()}
            | record["result"]
            | {
                "device": record["device"],
                "threads": record["threads"],
                "torch": record["versions"].get("torch"),
                "finished": record["finished"],
            }
        )
    return pd.DataFrame(sorted(rows, key=lambda row: row["finished"])) if rows else pd.DataFrame(columns=["device"])
