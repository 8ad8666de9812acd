"""JSON files that are believed or refused: written whole, read with a check of what is in them."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from mimetic.data.fetch import atomic_path

Kinds = Mapping[str, type | tuple[type, ...]]  # key -> what its value may be


class RecordError(ValueError):
    """A record is damaged, or does not belong to what was asked for. The message names the file."""


def write_json(path: Path, content: Any) -> Path:
    """Write a file atomically (data.fetch.atomic_path). ValueError: JSON has no word for a number in it."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return path


def read_json(path: Path, shown: str, wrong: Callable[[dict[str, Any]], str], remedy: str = "") -> dict[str, Any]:
    """The object in a file.

    Args:
        shown: what the file is called in messages.
        wrong: what is wrong with the object, in words; "" if nothing.
        remedy: what to do if something is, the end of the message.

    Raises:
        FileNotFoundError: there is none.
        RecordError: it is damaged.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        why = wrong(found) if isinstance(found, dict) else "not a JSON object"
    # no JSON or UTF-8; numbers and nesting beyond what Python reads
    except (ValueError, OverflowError, RecursionError) as error:
        why = f"not JSON ({error})"
    if why:
        raise RecordError(f"{shown} is damaged: {why}{remedy}")
    return found


def misfit(record: Mapping[str, Any], kinds: Kinds) -> str:
    """What a record lacks, or has of another type, in words; "" if nothing."""
    for key, kind in kinds.items():
        if key not in record:
            return f"no {key!r}"
        if not isinstance(record[key], kind) or (kind is int and isinstance(record[key], bool)):
            return f"{key!r} is {type(record[key]).__name__}"
    return ""


def digest(record: Mapping[str, Any], separators: tuple[str, str] = (",", ":")) -> str:
    """SHA-256 of all of a record but its "digest"."""
    rest = {key: value for key, value in record.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=separators).encode()).hexdigest()


def installed(packages: Iterable[str]) -> dict[str, str]:
    """The versions of Python and of those of the packages that are installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
