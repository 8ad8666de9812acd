"""One architecture: built, run, verified, and what is said of it."""

from __future__ import annotations

import math
import re
import warnings

import torch
from torch import nn

from mimetic.adapters import find_reader
from mimetic.attention import AttentionLayer, UnsupportedAttention
from mimetic.coverage.build import NotBuilt, TimeUp, attention_calls, make_generic, may_have_attention
from mimetic.coverage.page import CAVEAT_NAMES
from mimetic.coverage.timm_models import plan_timm, timm_families, timm_runs
from mimetic.coverage.transformers_models import plan_transformers, transformers_runs, whole_outline
from mimetic.initialize import mimetic_init_
from mimetic.scan import scan
from mimetic.verify import verify


def names(library: str) -> list[str]:
    """Every architecture of a library: timm's families of names, transformers' model types."""
    if library == "timm":
        return list(timm_families())
    from transformers import CONFIG_MAPPING

    return sorted(CONFIG_MAPPING.keys())


def not_built(name: str, why: str) -> dict:
    """The row {layers, error, name, model, verdict, finding} of an architecture of which no more is known."""
    return {"layers": 0, "error": None, "name": name, "model": name, "verdict": "not built", "finding": why}


def examine(library: str, name: str) -> dict:
    """Build, run and verify one architecture.

    Returns:
        A row as of not_built: verdict is one of VERDICTS, error the largest relative error.
    """
    row = not_built(name, "")
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
    return {"verdict": "refused" if found.refused else "none", "finding": _remarks(found.refused, found.passed_over)}


def _unseen(library: str, name: str, small: nn.Module) -> str:
    """What mimetic refuses in the whole model and the small one has none of, in words; "" if nothing."""
    whole = whole_outline(library, name)
    if whole is None:
        return ""
    seen, kinds = {type(module) for module in small.modules()}, {n: type(m) for n, m in whole.named_modules()}
    refused = scan(whole).refused  # without weights also what is known, for want of them
    return _remarks({n: why for n, why in refused.items() if kinds[n] not in seen and find_reader(kinds[n]) is None})


def _remarks(*reasons: dict[str, str]) -> str:
    """Names of layers and what is said of each, in words: once for all layers of a kind, whatever their numbers."""
    found = []
    for name, reason in (item for part in reasons for item in part.items()):
        first, _, after = reason.partition(": ")  # it may begin with the name, too
        found.append(f"{_pattern(name)}: {after if after and _pattern(first) == _pattern(name) else reason}")
    return "; ".join(dict.fromkeys(found))


def _pattern(name: str) -> str:
    return re.sub(r"\d+", "*", name)


def judge(model: nn.Module, runs) -> dict:
    """{verdict, finding, layers, error} of a built model; runs(model) yields
    ways to call it, functions of the model.
    """
    found = scan(model)
    remarks = _remarks(found.refused, found.passed_over)
    if not found.layers:
        return {"verdict": "refused" if found.refused else "none", "finding": remarks}
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
        shapes = layer.q.shape, layer.k.shape, layer.v.shape
        kind = type(modules.get(layer.name)), re.sub(r"\d+", "#", layer.name), shapes, layer.kind, layer.caveats
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
