"""Checkpoints: everything a run needs to go on as if it had never stopped, written whole or not at all."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mimetic.data.fetch import atomic_path


class CheckpointError(RuntimeError):
    """A checkpoint is damaged, belongs to something else, or is in use. The message names the file."""


def save_checkpoint(path: str | Path, state: dict[str, Any]) -> None:
    """Write atomically: whenever the process dies, the file is the old checkpoint or the new one."""
    with atomic_path(path) as temporary:
        torch.save(state, temporary)


def load_checkpoint(path: str | Path, identity: dict[str, str]) -> dict[str, Any] | None:
    """The state at ``path``, on the CPU, or None if there is none.

    Args:
        identity: what the state must have been saved with under ``identity``, such as the hashes of config and source;
            a run that goes on with other settings or code would be neither one run nor the other.

    Raises:
        CheckpointError: it is damaged, or its identity is another one; the message says which part.
    """
    path = Path(path)
    if not path.is_file():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} is damaged ({' '.join(str(error).split())[:120]}): delete it") from None
    found = state.get("identity", {})
    differs = sorted(key for key in identity.keys() | found.keys() if identity.get(key) != found.get(key))
    if differs:
        raise CheckpointError(
            f"{path} was written with another {' and '.join(differs)}: train with force (--force) to start again"
        )
    return state


def remove_checkpoint(path: str | Path) -> None:
    """Delete a checkpoint, and what a process that was killed while writing it may have left."""
    path = Path(path)
    for left in (path, *path.parent.glob(f".{path.stem}.*.tmp{path.suffix}")):
        left.unlink(missing_ok=True)


def rng_state() -> dict[str, Any]:
    """The state of PyTorch's global generators (dropout draws from them)."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore what :func:`rng_state` returned."""
    torch.set_rng_state(state["cpu"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])


@contextmanager
def exclusive(path: str | Path) -> Iterator[None]:
    """Hold the checkpoint at ``path`` for this process; the hold ends with the process, however it ends.

    Raises:
        CheckpointError: another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows: two processes on one run are then not noticed
        yield
        return
    lock = Path(path).with_suffix(".lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with open(lock, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CheckpointError(f"another process is training this run (it holds {lock})") from None
        yield
