"""Records of speed: one JSON file a measurement, ``data/speed/KIND-N.json``, with the machine and the versions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mimetic.data.fetch import data_dir
from mimetic.data.json_files import misfit, read_json, write_json
from mimetic.measure import for_json
from mimetic.messages import check_choice
from mimetic.training.records import now, versions

if TYPE_CHECKING:
    import pandas as pd

DIGITS = 4  # more than a clock is good for
KINDS = ("init", "train", "profile")
_FIELDS = {
    "kind": str, "arguments": dict, "result": dict, "device": str, "threads": int, "versions": dict, "finished": str,
}  # fmt: skip


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
    check_choice("kind", kind, KINDS)
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
    return write_json(folder / f"{kind}-{number}.json", record)


def load_bench(kind: str, folder: str | Path | None = None) -> pd.DataFrame:
    """One row a measurement of a kind, oldest first: arguments.NAME, the results by name
    (dicts as they are), device, threads, torch.

    Raises:
        RecordError: a file is damaged; the message names it.
    """
    import pandas as pd

    rows = []
    for path in Path(folder or data_dir() / "speed").glob(f"{kind}-*.json"):
        record = read_json(path, path.name, lambda record: misfit(record, _FIELDS))
        rows.append(
            {f"arguments.{k}": v for k, v in record["arguments"].items()}
            | record["result"]
            | {"device": record["device"], "threads": record["threads"]}
            | {"torch": record["versions"].get("torch"), "finished": record["finished"]}
        )
    return pd.DataFrame(sorted(rows, key=lambda row: row["finished"])) if rows else pd.DataFrame(columns=["device"])
