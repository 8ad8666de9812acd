"""Downloads: whole or not at all, the right file or none, one line when it cannot be had."""

import errno
import hashlib
import http.server
import os
import threading
import time
from pathlib import Path

import pytest

from mimetic.data import fetch
from mimetic.data.fetch import ChecksumError, Unavailable, atomic_path, cache_dir, data_dir, download, offline

CONTENT = bytes(range(256)) * 5000  # 1.28 MB: more than one block of the copy
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests.append(self.path)
        if self.path == "/missing":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[: len(CONTENT) // 2] if self.path == "/broken" else CONTENT)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.requests = []
        running.url = f"http://127.0.0.1:{running.server_port}"
        thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def online(monkeypatch):
    monkeypatch.delenv("MIMETIC_OFFLINE", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def test_cache_dir_is_named_by_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("MIMETIC_DATA", str(tmp_path / "elsewhere"))
    assert cache_dir() == tmp_path / "elsewhere"
    assert not cache_dir().exists()


def test_cache_dir_defaults_to_the_checkout(monkeypatch, tmp_path):
    monkeypatch.delenv("MIMETIC_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    root = Path(fetch.__file__).resolve().parents[3]
    assert cache_dir() == root / "data" / "cache"


def test_data_dir_of_an_installed_package_is_found_from_the_current_directory(monkeypatch, tmp_path):
    monkeypatch.setattr(fetch, "__file__", str(tmp_path / "site-packages" / "mimetic" / "data" / "fetch.py"))
    repository = tmp_path / "repository"
    (repository / "src" / "mimetic").mkdir(parents=True)
    (repository / "pyproject.toml").touch()
    (repository / "book").mkdir()
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(repository / "book")
    assert data_dir() == repository / "data"
    monkeypatch.chdir(tmp_path / "other")
    assert data_dir() == tmp_path / "other" / "data"


@pytest.mark.parametrize(("value", "expected"), [("", False), ("0", False), ("no", False), ("1", True), ("true", True)])
def test_offline(monkeypatch, value, expected):
    monkeypatch.setenv("MIMETIC_OFFLINE", value)
    assert offline() is expected


def test_atomic_path_writes_whole_files(tmp_path):
    target = tmp_path / "new" / "file.json"
    with atomic_path(target) as temporary:
        assert temporary.suffix == ".json" and temporary.parent == target.parent
        temporary.write_text("new")
        assert not target.exists()
    assert target.read_text() == "new"
    assert list(target.parent.iterdir()) == [target]


def test_atomic_path_keeps_the_old_file_when_the_writing_fails(tmp_path):
    target = tmp_path / "file.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError, match="halfway"), atomic_path(target) as temporary:
        temporary.write_text("ne")
        raise RuntimeError("halfway")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_atomic_path_of_two_writers(tmp_path):
    target = tmp_path / "file.txt"
    with atomic_path(target) as first, atomic_path(target) as second:
        first.write_text("first")
        second.write_text("second")
    assert target.read_text() == "first"  # the one that ended last


def test_a_killed_writer_leaves_no_half_file(tmp_path):
    target = tmp_path / "file.bin"
    if not (child := os.fork()):
        with atomic_path(target) as temporary:
            temporary.write_bytes(b"half")
            os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert not target.exists()
    (half,) = tmp_path.iterdir()
    with atomic_path(target) as temporary:  # a minute later it could be another process's that is still writing
        temporary.write_bytes(b"whole")
    assert half.exists()
    a_day_ago = time.time() - fetch.ABANDONED - 60
    os.utime(half, (a_day_ago, a_day_ago))
    with atomic_path(tmp_path / "file.txt") as temporary:  # another file's
        temporary.write_bytes(b"whole")
    assert half.exists()
    with atomic_path(target) as temporary:
        temporary.write_bytes(b"whole")
    assert not half.exists()


def test_download(server, tmp_path):
    path = download(f"{server.url}/file", tmp_path / "a" / "file", SHA256)
    assert path.read_bytes() == CONTENT
    assert list(path.parent.iterdir()) == [path]


def test_download_uses_the_file_that_is_there(server, tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    monkeypatch.setenv("MIMETIC_OFFLINE", "1")
    assert download(f"{server.url}/file", path, SHA256.upper()) == path
    assert server.requests == []


def test_download_replaces_a_wrong_file(server, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(CONTENT[:-1])
    assert download(f"{server.url}/file", path, SHA256).read_bytes() == CONTENT


def test_a_wrong_file_is_named_when_it_cannot_be_replaced(tmp_path, monkeypatch):
    monkeypatch.setenv("MIMETIC_OFFLINE", "1")
    (tmp_path / "file").write_bytes(CONTENT[:-1])
    with pytest.raises(
        Unavailable, match="file: the file in .* is another one .SHA-256 .* expected .* and MIMETIC_OFFLINE"
    ):
        download("http://127.0.0.1:9/file", tmp_path / "file", SHA256)

    def text(path):
        return path.read_text(encoding="utf-8")

    (tmp_path / "file").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(Unavailable, match="not to be had"):
        download("http://127.0.0.1:9/file", tmp_path / "file", SHA256, digest=text)


def test_download_refuses_a_wrong_checksum_and_leaves_nothing(server, tmp_path):
    with pytest.raises(ChecksumError, match=f"file: SHA-256 is {SHA256}, expected {'0' * 64}"):
        download(f"{server.url}/file", tmp_path / "file", "0" * 64)
    assert list(tmp_path.iterdir()) == []

    def not_text(path):  # a portal's page in place of a text
        return b"\xff\xfe".decode("utf-8")

    with pytest.raises(ChecksumError, match="file: SHA-256 is not to be had .*, expected"):
        download(f"{server.url}/file", tmp_path / "file", SHA256, digest=not_text)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("where", ["broken", "missing"])
def test_download_that_fails_is_one_line_and_leaves_nothing(server, tmp_path, where):
    with pytest.raises(Unavailable) as caught:
        download(f"{server.url}/{where}", tmp_path / "file", SHA256)
    assert server.requests == [f"/{where}"]
    assert "\n" not in str(caught.value) and str(caught.value).startswith("file: ")
    assert list(tmp_path.iterdir()) == []


def test_download_from_a_server_that_is_not_there(tmp_path):
    with pytest.raises(Unavailable, match="file: cannot be fetched from http://127.0.0.1:9/file"):
        download("http://127.0.0.1:9/file", tmp_path / "file", SHA256)
    assert list(tmp_path.iterdir()) == []


def test_download_offline_asks_no_server(server, tmp_path, monkeypatch):
    monkeypatch.setenv("MIMETIC_OFFLINE", "1")
    with pytest.raises(
        Unavailable, match="^file: not in the cache, and MIMETIC_OFFLINE is set .unset it to fetch it from http"
    ):
        download(f"{server.url}/file", tmp_path / "file", SHA256)
    assert server.requests == []
    assert os.listdir(tmp_path) == []


def test_an_error_of_the_disk_names_the_file(tmp_path):
    def full():
        with atomic_path(tmp_path / "a.json"):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left on device.*a.json"):
        full()
    with pytest.raises(OSError, match="^a word$"), atomic_path(tmp_path / "a.json"):
        raise OSError("a word")
