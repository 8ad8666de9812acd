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
import importlib.metadata
import json
import logging
import math
import multiprocessing
import os
import re
import signal
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

import torch
from torch import nn

from mimetic.adapters import find_reader
from mimetic.attention import AttentionLayer, UnsupportedAttention
from mimetic.coverage.build import (
    NotBuilt,
    TimeUp,
    attention_calls,
    make_generic,
    may_have_attention,
    plan_timm,
    plan_transformers,
    short_error,
    timm_families,
    timm_runs,
    transformers_runs,
    whole_outline,
)
from mimetic.coverage.page import CAVEAT_NAMES, VERDICTS, page
from mimetic.data.fetch import atomic_path, data_dir
from mimetic.initialize import mimetic_init_
from mimetic.scan import Scan, scan
from mimetic.verify import verify

LIBRARIES = ("timm", "transformers")
MEMORY = 12 * 2**30  # bytes of address space of one worker
SECONDS = 180  # for one architecture


# --- one architecture -------------------------------------------------------------------------------------------------


def names(library: str) -> list[str]:
    """Every architecture of a library: timm's families of names, transformers' model types."""
    if library == "timm":
        return list(timm_families())
    from transformers import CONFIG_MAPPING

    return sorted(CONFIG_MAPPING.keys())


def examine(library: str, name: str) -> dict:
    """Build, run and verify one architecture.

    Returns:
        A row {name, model, verdict, finding, layers, error}: verdict is one of VERDICTS, error the largest relative
        error.
    """
    row = {"name": name, "model": name, "verdict": "not built", "finding": "", "layers": 0, "error": None}
    torch.manual_seed(0)
    try:
        plan = (plan_timm if library == "timm" else plan_transformers)(name)
        row["model"] = plan.model
        if not may_have_attention(plan.outline):
            return {**row, **_without_known_attention(library, name, plan.outline)}
        model = plan.make().eval()
        make_generic(model)
        row |= judge(model, timm_runs if library == "timm" else transformers_runs)
        if row["verdict"] in ("supported", "with caveat") and (unseen := _unseen(library, name, model)):
            row |= {"verdict": "in part", "finding": "; ".join(filter(None, [unseen, row["finding"]]))}
        return row
    except NotBuilt as e:
        return {**row, "finding": str(e)}


def _without_known_attention(library: str, name: str, outline: nn.Module) -> dict:
    """The verdict on an architecture whose small model has no attention layer that is known: by that, or, if nothing in
    it attends, by the whole one."""
    found = scan(outline)
    if not found.refused and (whole := whole_outline(library, name)) is not None:
        if may_have_attention(whole):
            return {"verdict": "not built", "finding": "its small model lacks the layers that attend"}
        found = scan(whole)
    return _nothing_known(found)


def _unseen(library: str, name: str, small: nn.Module) -> str:
    """What mimetic refuses in the whole model and the small one has none of, in words; "" if nothing."""
    whole = whole_outline(library, name)
    if whole is None:
        return ""
    seen, modules = {type(module) for module in small.modules()}, dict(whole.named_modules())
    refused = scan(whole).refused.items()  # without weights also what is known, for want of them
    return _remarks(
        Scan(
            [],
            {
                n: reason
                for n, reason in refused
                if type(modules[n]) not in seen and find_reader(type(modules[n])) is None
            },
            {},
        )
    )


def _nothing_known(found: Scan) -> dict:
    if found.refused:
        return {"verdict": "refused", "finding": _remarks(found)}
    return {"verdict": "none", "finding": _remarks(found)}


def _remarks(found: Scan) -> str:
    reasons = [f"{_pattern(n)}: {reason}" for n, reason in (*found.refused.items(), *found.passed_over.items())]
    return "; ".join(dict.fromkeys(_tidy(r) for r in reasons))


def judge(model: nn.Module, runs) -> dict:
    """{verdict, finding, layers, error} of a built model; runs(model) yields
    ways to call it, functions of the model.
    """
    found = scan(model)
    remarks = _remarks(found)
    if not found.layers:
        return _nothing_known(found)
    run = _first_run(model, runs(model))
    chosen = representatives(model, found.layers)
    modules = dict(model.named_modules())
    checks = {}
    if run is not None:
        checks = {c.name: c for c in verify(model, run, layers=chosen)}
    for layer in chosen:  # what the model's own call did not reach is called on its own
        if layer.name not in checks or checks[layer.name].problem.startswith("unverified"):
            block = modules.get(layer.name.rpartition(".")[0])
            run_alone = _first_run(model, attention_calls(layer, modules[layer.name], block))
            if run_alone is not None:
                checks[layer.name] = verify(model, run_alone, layers=[layer], fold=False)[0]
    row = {"layers": len(found.layers)}
    wrong = [c for c in checks.values() if c.problem.startswith("wrong")]
    if wrong:
        return {**row, "verdict": "wrong", "finding": "; ".join(f"{c.name}: {c.problem}" for c in wrong[:3])}
    missing = [layer.name for layer in chosen if layer.name not in checks or checks[layer.name].problem]
    if missing:
        return {**row, "verdict": "not built", "finding": f"{_pattern(missing[0])} could not be run here"}
    row["error"] = float(f"{max(max(c.qk_error, c.vp_error) for c in checks.values()):.1e}")
    problem = "" if found.refused else _written(model, found.layers)
    if problem:
        return {**row, "verdict": "wrong" if problem.startswith("wrong") else "refused", "finding": problem}
    caveats = "; ".join(sorted({CAVEAT_NAMES[c] for layer in found.layers for c in layer.caveats}))
    if found.refused:
        return {**row, "verdict": "in part", "finding": "; ".join(filter(None, [remarks, caveats]))}
    return {
        **row,
        "verdict": "with caveat" if caveats else "supported",
        "finding": "; ".join(filter(None, [caveats, remarks])),
    }


def representatives(model: nn.Module, layers: list[AttentionLayer]) -> list[AttentionLayer]:
    """The first and the last layer of every kind: the same class, place, shapes and caveats."""
    modules = dict(model.named_modules())
    groups: dict[tuple, list[AttentionLayer]] = {}
    for layer in layers:
        place = re.sub(r"\d+", "#", layer.name)
        kind = (
            type(modules.get(layer.name)),
            place,
            layer.q.shape,
            layer.k.shape,
            layer.v.shape,
            layer.kind,
            layer.caveats,
        )
        groups.setdefault(kind, []).append(layer)
    return [layer for group in groups.values() for layer in group[:1] + group[1:][-1:]]


def _first_run(model, runs):
    """The first of these ways to call the model that works, None if none does."""
    with torch.no_grad():
        for run in runs:
            try:
                run(model)
                return run
            except TimeUp:
                raise
            except Exception:  # noqa: BLE001  these inputs do not fit; the next may
                continue
    return None


def _written(model: nn.Module, layers: list[AttentionLayer]) -> str:
    """What is wrong with the products that mimetic_init_ leaves (or why it refuses); "" where they are the ones that it
    reports.
    """
    if sum(layer.num_kv_heads * float(layer.d_model) ** 3 for layer in layers) > 1e11:
        return ""  # too slow for a table; the sizes do not change what is written where
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reports = mimetic_init_(model, generator=torch.Generator().manual_seed(0), cross=True)
    except UnsupportedAttention as e:
        return " ".join(str(e).split()).removeprefix("cannot handle ")
    by_name = {layer.name: layer for layer in layers}
    for report in reports:
        layer = by_name[report.name]
        qk = sum(layer.qk(h).diagonal().mean().item() for h in range(layer.num_heads)) / layer.num_heads
        vp = layer.vp().diagonal().mean().item()
        if not (
            math.isclose(qk, report.qk_diagonal, abs_tol=2e-3) and math.isclose(vp, report.vp_diagonal, abs_tol=2e-3)
        ):
            return f"wrong: {report.name} holds other products than mimetic_init_ wrote ({qk:.3f}, {vp:.3f})"
    return ""


def _pattern(name: str) -> str:
    return re.sub(r"\d+", "*", name)


def _tidy(text: str) -> str:
    """One line for all layers of a kind: numbers of layers out, doubled names out."""
    head, _, rest = text.partition(": ")
    return f"{head}: {_pattern_prefix(rest, head)}"


def _pattern_prefix(rest: str, head: str) -> str:
    first, _, after = rest.partition(": ")
    return after if after and _pattern(first) == head else rest


# --- all of them ------------------------------------------------------------------------------------------------------


def _worker(library: str, connection) -> None:
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
    while True:
        name = connection.recv()
        alarm(SECONDS)
        try:
            row = examine(library, name)
        except TimeUp:
            row = {"name": name, "model": name, "verdict": "not built", "finding": f"took more than {SECONDS} s"}
        except Exception as e:  # noqa: BLE001  one model must not stop the table, and its error is shown in it
            row = {"name": name, "model": name, "verdict": "not built", "finding": short_error(e)}
        finally:
            alarm(0)
        gc.collect()
        connection.send({"layers": 0, "error": None, **row})


class _Process:
    """A worker that is replaced when it crashes or hangs."""

    def __init__(self, library: str):
        self.library = library
        self._start()

    def _start(self):
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_worker, args=(self.library, theirs), daemon=True)
        self.process.start()
        theirs.close()

    def give(self, name: str):
        self.name, self.since = name, time.monotonic()
        self.connection.send(name)

    def take(self) -> dict | None:
        """The row if it is there; a row that says so if the worker died or hangs."""
        problem = ""
        try:
            if self.connection.poll():
                return self.connection.recv()
        except (EOFError, OSError):
            problem = "the process died"
        if not problem and time.monotonic() - self.since > SECONDS + 30:
            problem = f"hung for more than {SECONDS} s"
        if not problem:
            return None
        self.stop()
        self._start()
        return {
            "name": self.name,
            "model": self.name,
            "verdict": "not built",
            "finding": problem,
            "layers": 0,
            "error": None,
        }

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
    if library not in LIBRARIES:
        raise ValueError(f"library must be one of {', '.join(LIBRARIES)}; got {library!r}")
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
