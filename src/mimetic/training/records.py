"""Run records: one JSON file a run, everything needed to trust and repeat its numbers.

``data/runs/EXPERIMENT/ARM-seedN.json``; ``MIMETIC_RUNS`` names another folder. A record says what was run (complete
config, seed, hash of the source), where (device, versions), and what came out (a curve with one entry an epoch; the
final metrics are those of the last epoch, never of the best). It carries a digest of its own content, so that a damaged
or edited record is refused instead of believed.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mimetic.data.fetch import data_dir
from mimetic.data.json_files import RecordError, digest, installed, misfit, read_json, write_json

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

SCHEMA = 1
NAME = re.compile(r"[a-z0-9][a-z0-9._+=-]*")  # of experiments and arms: they become file names

# key -> type; what every record of this schema has
_FIELDS = {
    "schema": int,
    "experiment": str,
    "arm": str,
    "seed": int,
    "config": dict,  # every field of the experiment's config dataclass
    "curve": list,  # one dict an epoch: epoch, step, lr, train_*, test_* (accuracies are fractions, losses in nats)
    "final": dict,  # the last entry of the curve
    "parameters": dict,  # number of parameters by kind, and total
    "throughput": dict,  # unit (images, tokens, ...) and per_second, training only
    "seconds": dict,  # train, evaluate, total (with loading and initialization); interrupted runs: of the kept work
    # type, name, threads, precision, products (as precision where missing), compiled, processes (1 where missing),
    # together (runs trained in the same kernels: their times are shares of the group's, their speed is the group's)
    "device": dict,
    "versions": dict,  # python and packages
    "source": dict,  # sha256 of all, and of each file that had a part in the numbers
    "started": str,  # UTC, ISO 8601
    "finished": str,
    "resumed": int,  # how often the run went on from a checkpoint
    "digest": str,  # SHA-256 of all the rest
}
# newer ones have "data": SHA-256 of what they were trained and tested on (data_hash)


def runs_dir() -> Path:
    """The folder of the records: ``$MIMETIC_RUNS``, or ``data/runs``."""
    named = os.environ.get("MIMETIC_RUNS", "").strip()
    return Path(named).expanduser().resolve() if named else data_dir() / "runs"


LONGEST_NAME = 200


def check_name(kind: str, name: str) -> str:
    """``name`` if it may be part of a file name; raises ValueError otherwise."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ValueError(f"{kind} must be lower-case letters, digits and . _ + = - (it names a file), not {name!r}")
    if len(name) > LONGEST_NAME:
        raise ValueError(f"{kind} names a file and must have at most {LONGEST_NAME} characters, not {len(name)}")
    return name


def record_path(experiment: str, arm: str, seed: int, folder: str | Path | None = None) -> Path:
    """Where the record of a run is kept."""
    check_name("experiment", experiment)
    check_name("arm", arm)
    return Path(folder or runs_dir()) / experiment / f"{arm}-seed{seed}.json"


def write_record(record: dict[str, Any], folder: str | Path | None = None) -> Path:
    """Validate, add the digest, write atomically; returns the path.

    Raises:
        RecordError: something is missing, of the wrong type or not finite.
    """
    record = {**record, "schema": SCHEMA}
    record["digest"] = digest(record)
    path = record_path(record["experiment"], record["arm"], record["seed"], folder)
    if why := _wrong(record, path):
        raise RecordError(f"{path.parent.name}/{path.name}: {why}")
    return write_json(path, record)


def read_record(path: str | Path) -> dict[str, Any]:
    """One record, validated.

    Raises:
        FileNotFoundError: there is none.
        RecordError: it is damaged; the message names the file and what is wrong.
    """
    path = Path(path)
    remedy = f" (in {path.parent.parent}; restore the file, or train the run again with --force)"
    return read_json(path, f"{path.parent.name}/{path.name}", lambda record: _wrong(record, path), remedy)


def record_files(folder: str | Path, pattern: str = "*/*.json") -> list[Path]:
    """The records below a folder, sorted; not what another process is just writing, nor an editor's copies."""
    return sorted(
        path
        for path in Path(folder).glob(pattern)
        if not path.name.startswith(".") and not path.parent.name.startswith(".")
    )


def load_runs(experiment: str | None = None, *, folder: str | Path | None = None, curves: bool = False) -> pd.DataFrame:
    """All records, or those of one experiment, as a DataFrame sorted by experiment, arm and seed.

    Args:
        experiment: name of an experiment; None for all. One without records gives an empty DataFrame.
        folder: instead of ``data/runs``.
        curves: one row an epoch (the columns of the curve) instead of one row a run (the last epoch's metrics, config
            fields as ``config.NAME``, parameters as ``parameters.KIND``, throughput, time, device, source, dates).

    Raises:
        RecordError: a record is damaged; the message names the file.
    """
    import pandas as pd

    rows = [row for run, epochs in runs(experiment, folder=folder) for row in (epochs if curves else [run])]
    if not rows:
        return pd.DataFrame(columns=["experiment", "arm", "seed", "epoch"])
    return pd.DataFrame(rows).sort_values(["experiment", "arm", "seed", "epoch"], ignore_index=True)


def runs(
    experiment: str | None = None, *, folder: str | Path | None = None
) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """What load_runs makes its rows of, record by record: of the run, and of each
    epoch. They are shared: not to be changed.
    """
    pattern = "*/*.json" if experiment is None else f"{check_name('experiment', experiment)}/*.json"
    for path in record_files(folder or runs_dir(), pattern):
        found = path.stat()
        yield _rows(path, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size)


@cache
def _rows(path: Path, *version: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What load_runs shows of a record: of the run, and of each epoch. Read once in a process, unless the file changes
    (``version``): a chapter asks some thirty times for records of which there are hundreds."""
    record = read_record(path)
    who = {key: record[key] for key in ("experiment", "arm", "seed")}
    run = (
        who
        | record["final"]
        | {f"config.{key}": value for key, value in record["config"].items()}
        | {f"parameters.{key}": value for key, value in record["parameters"].items()}
        | {f"{record['throughput']['unit']}_per_second": record["throughput"]["per_second"]}
        | {f"seconds.{key}": value for key, value in record["seconds"].items()}
        | {f"device.{key}": value for key, value in record["device"].items()}
        | {"source": record["source"]["sha256"], "torch": record["versions"].get("torch"), "data": record.get("data")}
        | {key: record[key] for key in ("started", "finished", "resumed")}
        | {"file": f"{path.parent.name}/{path.name}"}
    )
    return run, [who | entry for entry in record["curve"]]


@cache
def _file_hash(name: str) -> str:
    data = (Path(__file__).resolve().parents[1] / name).read_bytes()
    return hashlib.sha256(data.replace(b"\r\n", b"\n")).hexdigest()  # a checkout on Windows is the same source


def source_hash(files: Iterable[str]) -> dict[str, Any]:
    """SHA-256 of source files, given relative to the package folder: {"sha256": of all, "files": {name: of each}}.

    A file is read once in a process: what is edited while a queue runs is not what its processes have imported.
    """
    hashes = {name: _file_hash(name) for name in sorted(files)}
    every = "".join(f"{digest}  {name}\n" for name, digest in hashes.items())
    return {"sha256": hashlib.sha256(every.encode()).hexdigest(), "files": hashes}


def data_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of what a run is trained and tested on: names, types, shapes and numbers, wherever the tensors live."""
    every = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        array = tensor.cpu().contiguous().numpy()
        every.update(f"{name} {array.dtype.name} {array.shape}\n".encode())
        every.update(array.data)
    return every.hexdigest()


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    return installed(("mimetic", "torch", "torchvision", "numpy", "scikit-learn", "tokenizers"))


def now() -> str:
    """The time, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _wrong(record: dict[str, Any], path: Path) -> str:
    """What is wrong with a record in this file, in words; "" if nothing."""
    if record.get("schema") != SCHEMA:
        return f"schema {record.get('schema')!r}, this version reads {SCHEMA}"
    if why := misfit(record, _FIELDS):
        return why
    if path.name != f"{record['arm']}-seed{record['seed']}.json" or path.parent.name != record["experiment"]:
        return f"it is the record of {record['experiment']}/{record['arm']}-seed{record['seed']}.json"
    curve = record["curve"]
    if not curve or not all(isinstance(entry, dict) for entry in curve):
        return "the curve is empty or not a list of epochs"
    if [entry.get("epoch") for entry in curve] != list(range(1, len(curve) + 1)):
        return "the curve's epochs are not 1, 2, 3, ..."
    if any(entry.keys() != curve[0].keys() for entry in curve):
        return "the curve's epochs do not hold the same metrics"
    for entry in curve:
        for key, value in entry.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                return f"{key} of epoch {entry['epoch']} is {value!r}"
    if record["final"] != curve[-1]:
        return "the final metrics are not those of the last epoch"
    if record["digest"] != digest(record):
        return "its content does not match its digest"
    if not record["throughput"].keys() >= {"unit", "per_second"} or "sha256" not in record["source"]:
        return "no unit or number of its throughput, or no hash of its source"
    return ""
