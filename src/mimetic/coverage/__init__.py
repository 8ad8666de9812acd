"""Which attention layers of the installed timm and transformers are supported: each built small from its config with
random weights, run, and compared with its own forward (mimetic.verify). `python -m mimetic coverage timm|transformers`.

Verdicts of an architecture, best first:
    supported      every attention layer: products verified
    with caveat    the same, but something changes the effect of the weights (RoPE, QK-norm, ...)
    in part        refused as a whole; some layers verified (pass the part that holds them), others refused with their
                   reason
    refused        attention_layers refuses the model and says why
    none           no self-attention in it
    not built      could not be built small or run here; says nothing about support
    wrong          a product that attention_layers shows is not the one that the forward computes: must be 0
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.metadata
import json
import logging
import multiprocessing
import os
import signal
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

import torch

from mimetic.coverage.architecture import examine, names, not_built
from mimetic.coverage.build import TimeUp, short_error
from mimetic.coverage.page import VERDICTS, page
from mimetic.data.fetch import atomic_path, data_dir
from mimetic.messages import check_choice

LIBRARIES = ("timm", "transformers")
MEMORY = 12 * 2**30  # bytes of address space of one worker
GROWTH = 2**30  # bytes: a worker that has kept so much of it from the models before is replaced, so that no row hangs
# on which models came before it
SECONDS = 300  # for one architecture; the slowest takes 100 on a quiet core


def _address_space() -> int:
    """Bytes of this process's address space, 0 where the system does not say (all but Linux)."""
    with contextlib.suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def _worker(library: str, connection, growth: int) -> None:
    """Answer each name with its row, and whether this process has grown by more than so many bytes."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with contextlib.suppress(ImportError, ValueError):  # not on Windows; a model that wants more is "not built"
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    logging.disable(logging.CRITICAL)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

    def up(*_):
        raise TimeUp

    alarm = getattr(signal, "alarm", lambda seconds: None)  # on Windows there is none: what hangs is ended from outside
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, up)
    importlib.import_module(library)
    begin = _address_space()
    while True:
        name = connection.recv()
        alarm(SECONDS)
        try:
            row = examine(library, name)
        except TimeUp:
            row = not_built(name, f"took more than {SECONDS} s")
        except Exception as e:  # noqa: BLE001  one model must not stop the table, and its error is shown in it
            row = not_built(name, short_error(e))
        finally:
            alarm(0)
        gc.collect()
        connection.send((row, _address_space() - begin > growth))


class _Process:
    """A worker that is replaced when it crashes, hangs or has grown."""

    def __init__(self, library: str, growth: int = GROWTH):
        self.library, self.growth = library, growth
        self._start()

    def _start(self):
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_worker, args=(self.library, theirs, self.growth), daemon=True)
        self.process.start()
        theirs.close()

    def give(self, name: str):
        if not self.process.is_alive():  # it has died since its last architecture
            self._start()
        self.name, self.since = name, time.monotonic()
        self.connection.send(name)

    def take(self) -> dict | None:
        """The row if it is there; a row that says so if the worker died or hangs."""
        problem = ""
        try:
            if self.connection.poll():
                row, grown = self.connection.recv()
                if grown:
                    self._replace()
                return row
        except (EOFError, OSError):
            problem = "the process died"
        if not problem and time.monotonic() - self.since > SECONDS + 30:
            problem = f"hung for more than {SECONDS} s"
        if not problem:
            return None
        self._replace()
        return not_built(self.name, problem)

    def _replace(self):
        self.stop()
        self._start()

    def stop(self):
        self.process.kill()
        self.process.join()


def survey(library: str, chosen: list[str] | None = None, processes: int | None = None) -> dict:
    """Examine every architecture (or the chosen ones) in worker processes; returns the table as a dict."""
    from tqdm.auto import tqdm

    waiting = list(names(library) if chosen is None else chosen)[::-1]
    workers = [_Process(library) for _ in range(min(processes or os.cpu_count() or 1, len(waiting)))]
    rows, idle, busy = [], list(workers), []
    with tqdm(total=len(waiting), desc=f"coverage {library}", unit="model") as bar:
        while waiting or busy:
            while idle and waiting:
                worker = idle.pop()
                worker.give(waiting.pop())
                busy.append(worker)
            for worker in list(busy):
                row = worker.take()
                if row is not None:
                    rows.append(row)
                    busy.remove(worker)
                    idle.append(worker)
                    bar.update()
            time.sleep(0.02)
    for worker in workers:
        worker.stop()
    rows.sort(key=lambda r: r["name"])
    counts = Counter(r["verdict"] for r in rows)
    return {
        "library": library,
        "versions": {p: importlib.metadata.version(p) for p in (library, "torch")},
        "counts": {v: counts[v] for v in VERDICTS},
        "architectures": rows,
    }


# --- the committed table and its page ---------------------------------------------------------------------------------


def table_path(library: str) -> Path:
    return data_dir() / "coverage" / f"{library}.json"


def page_path() -> Path:
    return data_dir().parent / "book" / "coverage.md"


def main(library: str) -> None:
    """`python -m mimetic coverage`: survey "timm" or "transformers", print the
    counts, write data/coverage and the page.

    Raises:
        ValueError: unknown library.
        SystemExit: with code 1, after the table is written, where a product is wrong.
    """
    check_choice("library", library, LIBRARIES)
    table = survey(library)
    _write(table_path(library), json.dumps(table, indent=1, ensure_ascii=False) + "\n")
    tables = [
        json.loads(table_path(name).read_text(encoding="utf-8")) for name in LIBRARIES if table_path(name).exists()
    ]
    _write(page_path(), page(tables))
    print(f"wrote {table_path(library)} and {page_path()}")
    for verdict in VERDICTS:
        print(f"{table['counts'][verdict]:5d}  {VERDICTS[verdict]}")
    for row in table["architectures"]:
        if row["verdict"] == "wrong":
            print(f"WRONG {row['name']}: {row['finding']}", file=sys.stderr)
    if table["counts"]["wrong"]:
        raise SystemExit(1)


def _write(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
