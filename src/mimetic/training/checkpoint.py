"""Checkpoints: everything a run needs to go on as if it had never stopped, written whole or not at all."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mimetic.data.fetch import atomic_path
from mimetic.messages import one_line


class CheckpointError(RuntimeError):
    """A checkpoint is damaged, belongs to something else, or is in use. The message names the file."""


class ForeignCheckpoint(CheckpointError):
    """A checkpoint of other code, another config or another backend: a run can no longer go on from it."""


class BusyCheckpoint(CheckpointError):
    """Another process is training this run."""


def save_checkpoint(path: str | Path, state: dict[str, Any]) -> None:
    """Write atomically: whenever the process dies, the file is the old checkpoint or the new one.

    Raises:
        OSError: the disk is full, or the like; the old checkpoint is as it was.
    """
    whole = io.BytesIO()  # torch's own writer says of a full disk only that a position is unexpected
    torch.save(state, whole)
    content = whole.getbuffer()[:-2]  # it is a zip archive, which ends with the length of its comment, 0
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write(content)
        file.write(_seal(content))


def _seal(content: bytes | memoryview) -> bytes:
    """The end of the archive: a comment, and its length before it. torch.load does not compare the checksums of the
    tensors, and those of a zip archive do not cover all of it."""
    comment = b"sha256 " + hashlib.sha256(content).digest()
    return len(comment).to_bytes(2, "little") + comment


_SEAL = len(_seal(b""))


def load_checkpoint(path: str | Path, identity: dict[str, str] | None) -> dict[str, Any] | None:
    """The state at ``path``, on the CPU, or None if there is none.

    Args:
        identity: what the state must have been saved with under ``identity``, such as the hashes of config and source;
            a run that goes on with other settings or code would be neither one run nor the other. None: anything.

    Raises:
        CheckpointError: it is damaged.
        ForeignCheckpoint: its identity is another one; the message says which part.
    """
    path = Path(path)
    if not path.is_file():
        return None
    written = path.read_bytes()  # an error of the disk is raised here: what follows is of the content
    if written[-22:-18] == b"PK\5\6" and written[-2:] == b"\0\0":  # a zip archive that ends without a comment
        raise ForeignCheckpoint(f"{path} was written with another version: train with force (--force) to start again")
    try:
        if written[-_SEAL:] != _seal(written[:-_SEAL]):
            raise ValueError("its content does not match its digest")
        state = torch.load(io.BytesIO(written), map_location="cpu", weights_only=True)
    except MemoryError:  # says nothing of the file
        raise
    except Exception as error:  # noqa: BLE001  a damaged file makes torch raise many kinds
        raise CheckpointError(f"{path} is damaged ({one_line(error, 120)}): delete it") from None
    if not isinstance(state, dict) or not isinstance(state.get("identity"), dict):
        raise CheckpointError(f"{path} is no checkpoint of a run: delete it")
    found = state["identity"]
    identity = found if identity is None else identity
    differs = sorted(key for key in identity.keys() | found.keys() if identity.get(key) != found.get(key))
    if differs:
        what = " and ".join(differs) if len(differs) <= 4 else f"{', '.join(differs[:3])} and {len(differs) - 3} more"
        raise ForeignCheckpoint(f"{path} was written with another {what}: train with force (--force) to start again")
    return state


def remove_checkpoint(path: str | Path) -> None:
    """Delete a checkpoint, and what a process that was killed while writing it may have left."""
    path = Path(path)
    for left in (path, aside(path), *path.parent.glob(f".{path.stem}.*.tmp{path.suffix}")):
        left.unlink(missing_ok=True)


def aside(path: str | Path) -> Path:
    """Where a checkpoint of something else is put when its run begins anew, until that run has its record."""
    return Path(path).with_suffix(".old.pt")


def rng_state() -> dict[str, Any]:
    """The state of PyTorch's global generators (dropout draws from them): of
    the CPU, and of the device that is in use.
    """
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    elif torch.backends.mps.is_available():
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore what :func:`rng_state` returned."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    elif "mps" in state and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"])


@contextmanager
def exclusive(path: str | Path) -> Iterator[None]:
    """Hold the checkpoint at ``path`` for this process; the hold ends with the process, however it ends.

    Raises:
        BusyCheckpoint: another process holds it.
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
            raise BusyCheckpoint(f"another process is training this run (it holds {lock})") from None
        except OSError:  # a network disk without locks: two processes on one run are then not noticed
            pass
        yield
