"""Which attention layers of the installed timm and transformers are supported: each built small from its config with random
weights, run, and compared with its own forward (mimetic.verify). `python -m mimetic coverage timm|transformers`.

Verdicts of an architecture, best first:
    supported      every attention layer: products verified
    with caveat    the same, but something changes the effect of the weights (RoPE, QK-norm, ...)
    in part        some layers verified, others refused with their reason
    refused        attention_layers refuses the model and says why
    none           no self-attention in it
    not built      could not be built small or run here; says nothing about support
    wrong          a product that attention_layers shows is not the one that the forward computes: must be 0
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import importlib.metadata
import inspect
import json
import math
import multiprocessing
import os
import re
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import torch
from torch import nn

from mimetic import adapters
from mimetic.attention import AttentionLayer, UnsupportedAttention, scan
from mimetic.verify import verify

LIBRARIES = ("timm", "transformers")
VERDICTS = ("supported", "with caveat", "in part", "refused", "none", "not built", "wrong")
SECONDS = 60  # for one architecture
MAX_PARAMETERS = 150_000_000
CAVEAT_NAMES = {
    adapters.ROPE: "RoPE",
    adapters.QK_NORM: "QK-norm",
    adapters.INNER_NORM: "norm before proj",
    adapters.VALUE_NORM: "norm on values",
    adapters.OUT_NORM: "norm after proj",
    adapters.GATE: "gated heads",
    adapters.UNSCALED: "another logit scale",
}


class NotBuilt(Exception):
    """The architecture could not be built small, or not run."""


class TimeUp(Exception):
    pass


# --- transformers: a small config of every model type --------------------------------------------------------------------

_INTS = {  # name of an int in a config -> small value
    r"(hidden_size|d_model|n_embd|embed_dim|hidden_dim|dim|d_embed|encoder_hidden_size|decoder_hidden_size|embedding_size)": 64,
    r"(num_attention_heads|num_heads|n_heads?|(encoder|decoder)_attention_heads|num_(encoder|decoder)_attention_heads)": 4,
    r"(decoder_)?num_key_value_heads|num_kv_heads": 2,
    r"(encoder_|decoder_|num_|n_|num_hidden_|num_encoder_|num_decoder_|vision_|text_)*layers?": 2,
    r"(num_hidden_layers|num_layers|n_layers?|encoder_layers|decoder_layers|num_blocks|depth|num_decoder_layers)": 2,
    r"(intermediate_size|ffn_dim|(encoder|decoder)_ffn_dim|d_ff|n_inner|moe_intermediate_size|feed_forward_\w+|mlp_dim)": 96,
    r"(shared_expert_intermediate_size|dense_intermediate_size|ffn_hidden_size)": 96,
    r"head_dim|attention_head_dim|d_kv|d_head": 16,
    r"vocab_size": 128,
    r"(num_local_experts|num_experts|n_routed_experts|moe_num_experts)": 4,
    r"(num_experts_per_tok|top_k|moe_top_k|moe_k)": 2,
    r"(projection_dim|decoder_hidden_dim|proj_dim)": 32,
    r"num_queries": 6,
    r"max_source_positions": 50,
    r"rotary_dim": 8,
}
_TOKEN = re.compile(r"(token_id|_idx|_index|_id)$|token_index")


def small_transformers_configs(model_type: str):
    """The default config of a model type with few, narrow layers; with few layers; as it is."""
    from transformers import CONFIG_MAPPING

    cls = CONFIG_MAPPING[model_type]
    yield lambda: cls.from_dict(_shrink(cls().to_dict()))
    yield lambda: cls.from_dict(_shrink(cls().to_dict(), only="layer|expert|depth|vocab"))
    yield lambda: cls()


_DERIVED = ("out_features", "out_indices", "stage_names", "per_layer_config", "architectures", "transformers_version")


def _shrink(d: dict, only: str = "") -> dict:
    d = {k: v for k, v in d.items() if k not in _DERIVED}
    if any(isinstance(d.get(k), list) for k in ("num_heads", "num_attention_heads")):  # a width and heads for every stage
        only = only or "layer|expert|depth|vocab"
    depth = next((d[k] for k in ("num_hidden_layers", "num_layers", "n_layer", "n_layers") if isinstance(d.get(k), int)), None)
    layers = 2
    kinds = {k: v for k, v in d.items() if depth and isinstance(v, list) and len(v) == depth and v and not isinstance(v[0], dict)}
    for name, values in kinds.items():
        if all(isinstance(v, str) for v in values):
            layers = max(layers, len(set(values)))
    for name, values in kinds.items():
        distinct = list(dict.fromkeys(values))
        d[name] = (distinct + [values[0]] * layers)[:layers] if isinstance(values[0], str) else values[:layers]
    for name, value in d.items():
        if isinstance(value, dict) and ("model_type" in value or name.endswith("_config")):
            d[name] = _shrink(value, only)
        elif isinstance(value, bool) or not isinstance(value, int):
            if name == "depths" and isinstance(value, list):
                d[name] = [1] * len(value)
        elif _TOKEN.search(name):
            if value >= 128:
                d[name] = 100 + hash_small(name) % 20
        elif not only or re.search(only, name):
            for pattern, small in _INTS.items():
                if re.fullmatch(pattern, name):
                    small = layers if small == 2 and "layer" in name else small
                    d[name] = min(value, small) if value > 0 else value
                    break
    return d


def hash_small(text: str) -> int:
    """The same small number for the same text in every process."""
    return sum(ord(c) * (i + 1) for i, c in enumerate(text))


def build_transformers(model_type: str) -> nn.Module:
    """A small model of this type with random weights; raises NotBuilt with the reason."""
    reasons = []
    for make in small_transformers_configs(model_type):
        try:
            config = make()
            for cls in _model_classes(config):
                try:
                    with torch.device("meta"):
                        size = sum(p.numel() for p in cls(config).parameters())
                except (RuntimeError, NotImplementedError):  # reads a tensor while it is made: only possible with storage
                    size = 0
                if size <= MAX_PARAMETERS:
                    return cls(make())
                reasons.append(f"{size // 1_000_000} M parameters when made small")
            if not reasons:
                reasons.append("no model class for this config")
        except TimeUp:
            raise
        except Exception as e:  # noqa: BLE001  any error of the library is a reason here, not a crash
            reasons.append(f"no small config: {_short(e)}")
    raise NotBuilt(reasons[0])


def _model_classes(config) -> list[type]:
    import transformers
    from transformers import PreTrainedModel

    for auto in ("AutoModel", "AutoModelForSeq2SeqLM", "AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoBackbone"):
        with contextlib.suppress(KeyError, AttributeError):
            cls = getattr(transformers, auto)._model_mapping[type(config)]
            return [cls[0] if isinstance(cls, (tuple, list)) else cls]
    # a part of a larger model: the first class of its module that takes this config
    module = importlib.import_module(type(config).__module__.replace(".configuration_", ".modeling_"))
    found = [
        c
        for c in vars(module).values()
        if isinstance(c, type) and issubclass(c, PreTrainedModel) and not c.__name__.endswith("PreTrainedModel")
        and c.config_class is type(config)
    ]  # fmt: skip
    return found[:1]


def _short(e: Exception | None) -> str:
    text = " ".join(f"{type(e).__name__}: {e}".split())
    return text[:140]


def transformers_runs(model: nn.Module):
    """Ways to call a model, most natural first; then its parts."""
    parts = [m for m in model.modules() if m is not model and hasattr(m, "main_input_name") and hasattr(m, "config")]
    for part in [model, *parts]:
        for inputs in _inputs(part):
            yield part, functools.partial(_call, part, inputs)


def _call(part, inputs, _model=None):
    return part(**inputs)


def _inputs(model):
    """Keyword inputs that may fit the model's signature."""
    config = model.config
    names = list(inspect.signature(model.forward).parameters)
    g = torch.Generator().manual_seed(0)

    def find(*keys, default=None):
        for c in [config, *(getattr(config, s, None) for s in ("vision_config", "text_config", "audio_config", "backbone_config", "encoder"))]:
            for key in keys:
                value = getattr(c, key, None)
                if isinstance(value, (list, tuple)) and value and isinstance(value[0], int):
                    value = value[0]
                if isinstance(value, int) and not isinstance(value, bool):
                    return value
        return default

    def ids():
        return torch.randint(3, 90, (2, 8), generator=g)

    size, channels = find("image_size", "crop_size", default=64), find("num_channels", "in_channels", "in_chans", default=3)
    image = torch.randn(2, channels, size, size, generator=g)
    base = {}
    if "input_ids" in names:
        base["input_ids"] = ids()
    if "decoder_input_ids" in names:
        base["decoder_input_ids"] = ids()
    main = getattr(model, "main_input_name", "input_ids")
    if main == "input_ids" and "input_ids" in names:
        yield base
    if "pixel_values" in names:
        yield {**base, "pixel_values": image}
        if size != 64:
            yield {**base, "pixel_values": torch.randn(2, channels, 64, 64, generator=g)}
        frames = find("num_frames", "frames", default=8)
        yield {**base, "pixel_values": torch.randn(2, frames, channels, size, size, generator=g)}
        yield {**base, "pixel_values": torch.randn(2, 1, channels, size, size, generator=g)}
    if "pixel_values_videos" in names:
        frames = find("num_frames", "frames_per_clip", default=8)
        yield {"pixel_values_videos": torch.randn(2, frames, channels, size, size, generator=g)}
    if "input_features" in names:
        mels, length = find("num_mel_bins", "feature_size", "n_mels", "input_feat_per_channel", default=80), find("max_source_positions", default=50)
        yield {**base, "input_features": torch.randn(2, mels, 2 * length, generator=g)}
        yield {**base, "input_features": torch.randn(2, 100, mels, generator=g)}
    if "input_values" in names:
        yield {**base, "input_values": torch.randn(2, 4000, generator=g)}
        yield {**base, "input_values": torch.randn(2, find("max_length", default=100), find("num_mel_bins", default=80), generator=g)}
    if "inputs_embeds" in names:
        yield {"inputs_embeds": torch.randn(2, 8, find("hidden_size", "d_model", "n_embd", default=64), generator=g)}
    if base and main != "input_ids":
        yield base
    if "hidden_states" in names:
        yield {"hidden_states": torch.randn(2, 16, find("hidden_size", "d_model", default=64), generator=g)}
    if "past_values" in names:
        length, features = find("context_length", default=32), find("num_input_channels", "input_size", default=1)
        yield {"past_values": torch.randn(2, length, features, generator=g)}


def attention_calls(layer: AttentionLayer, module: nn.Module):
    """Ways to call an attention module on its own, where the whole model wants inputs that cannot be guessed."""
    D, K, kv_width = layer.d_model, layer.head_dim, layer.v.shape[0]
    g = torch.Generator().manual_seed(0)

    def tokens(*shape):
        return torch.randn(*shape, generator=g).to(layer.q.dtype)

    names = inspect.signature(module.forward).parameters
    rotate = getattr(module, "rotary_ndims", None) or K
    for shape in ((2, 16), (16,), (2, 4, 4)):
        x, kv = tokens(*shape, D), tokens(*shape[:-1], 12 if len(shape) < 3 else 4, kv_width)
        n = 16
        for angle_shape in ((1, n, rotate), (n, rotate), (n, rotate // 2), None):
            kwargs = {}
            for name, p in names.items():
                required = p.default is inspect.Parameter.empty
                if name in ("position_embeddings", "rotary_pos_emb", "position_embedding") and angle_shape:
                    # one angle a position for all dimensions: a rotation in the half-split and in the interleaved layout
                    angles = torch.arange(n).view(n, 1).expand(angle_shape).float() / 3
                    kwargs[name] = (angles.cos(), angles.sin())
                elif name in ("cu_seqlens", "cu_seq_lens"):
                    kwargs[name] = torch.tensor([0, n], dtype=torch.int32)
                elif name == "max_seqlen":
                    kwargs[name] = n
                elif name in ("encoder_hidden_states", "key_value_states", "cross_attention_states"):
                    if layer.kind == "cross":
                        kwargs[name] = kv
                elif name in ("query", "queries"):
                    kwargs[name] = x
                elif name in ("key", "value", "keys", "values"):
                    kwargs[name] = kv if layer.kind == "cross" else x
                elif required and name == "attention_mask":
                    kwargs[name] = None
                elif required and name == "position_ids":
                    kwargs[name] = torch.arange(n)[None]
            args = () if "query" in kwargs or "queries" in kwargs else (x,)
            yield functools.partial(_call_attention, module, args, kwargs)


def _call_attention(module, args, kwargs, _model=None):
    return module(*args, **kwargs)


@torch.no_grad()
def make_generic(model: nn.Module, seed: int = 0) -> None:
    """Random gains, and random numbers in place of all-zero matrices, so that nothing is verified by being 1 or 0."""
    g = torch.Generator().manual_seed(seed)
    gains = re.compile(r"gamma|lambda|layer_?scale|(^|\.)ls\d")
    for module in model.modules():
        norm = "norm" in type(module).__name__.lower()
        for name, p in module.named_parameters(recurse=False):
            if not p.is_floating_point():
                continue
            if p.ndim == 1 and (norm or gains.search(name) or gains.search(type(module).__name__.lower())):
                p.copy_(0.5 + torch.rand(p.shape, generator=g))
            elif p.ndim >= 2 and p.numel() and float(p.abs().max()) < 1e-4:
                p.copy_(0.05 * torch.randn(p.shape, generator=g))


# --- timm: the smallest model of every family ------------------------------------------------------------------------------

_SIZES = (
    "test", "atto", "femto", "pico", "nano", "zepto", "xxxs", "xxs", "xs", "xtiny", "wee", "tiny", "pwee", "little", "mini", "s", "small", "mediumd",
    "medium", "betwixt", "m", "b", "base", "l", "large", "xl", "xlarge", "xxlarge", "h", "huge", "g", "giant", "gigantic", "gg", "e", "enormous",
    "so150m", "so150m2", "so400m", "7b", "1b", "3b", "pe",
)  # fmt: skip


def timm_families() -> dict[str, list[str]]:
    """{family: its models, likely smallest first}: names that differ only in size, patch and resolution are one family."""
    import timm

    families: dict[str, list[tuple]] = {}
    for name in timm.list_models():
        words = name.split("_")
        rank = [(_SIZES.index(w) if w in _SIZES else 0) for w in words]
        numbers = [int(n) for w in words for n in re.findall(r"\d+", w)]
        kept = [re.sub(r"\d+", "#", w) for w in words if w not in _SIZES]
        module = timm.model_entrypoint(name).__module__.rsplit(".", 1)[-1]
        families.setdefault(f"{module}: {'_'.join(kept)}", []).append((sum(rank), sum(numbers), name))
    return {family: [name for *_, name in sorted(members)] for family, members in sorted(families.items())}


def build_timm(names: list[str]) -> tuple[str, nn.Module]:
    """(name, model) of a family's smallest model, two blocks deep where the model allows it."""
    import timm

    reasons = []
    for name in names[:4]:
        for kwargs in ({"depth": 2}, {"depths": 1}, {}):
            if "depths" in kwargs:  # a stage at a time: as many as the model has by default
                continue
            try:
                with torch.device("meta"):
                    size = sum(p.numel() for p in timm.create_model(name, **kwargs).parameters())
                if size <= MAX_PARAMETERS:
                    return name, timm.create_model(name, **kwargs)
                reasons.append(f"{name} has {size // 1_000_000} M parameters")
            except TimeUp:
                raise
            except Exception as e:  # noqa: BLE001
                reasons.append(_short(e))
    raise NotBuilt(reasons[-1])


def timm_runs(model: nn.Module):
    size = model.default_cfg.get("input_size", (3, 224, 224)) if hasattr(model, "default_cfg") else (3, 224, 224)
    g = torch.Generator().manual_seed(0)
    yield model, functools.partial(_call_images, model, torch.randn(2, *size, generator=g))


def _call_images(model, images, _model=None):
    return model(images)


# --- one architecture --------------------------------------------------------------------------------------------------------


def names(library: str) -> list[str]:
    """Every architecture of a library: timm's families of names, transformers' model types."""
    if library == "timm":
        return list(timm_families())
    from transformers import CONFIG_MAPPING

    return sorted(CONFIG_MAPPING.keys())


def examine(library: str, name: str) -> dict:
    """Build, run and verify one architecture.

    Returns:
        A row {name, model, verdict, finding, layers, error}: verdict is one of VERDICTS, error the largest relative error.
    """
    row = {"name": name, "model": name, "verdict": "not built", "finding": "", "layers": 0, "error": None}
    torch.manual_seed(0)
    try:
        if library == "timm":
            row["model"], model = build_timm(timm_families()[name])
        else:
            model = build_transformers(name)
        model.eval()
        make_generic(model)
        return {**row, **judge(model, timm_runs if library == "timm" else transformers_runs)}
    except NotBuilt as e:
        return {**row, "finding": str(e)}


def judge(model: nn.Module, runs) -> dict:
    """{verdict, finding, layers, error} of a built model; runs(model) yields (part, callable) ways to call it."""
    found = scan(model)
    refused = [f"{_pattern(n)}: {reason}" for n, reason in found.refused.items()]
    passed = [f"{_pattern(n)}: {reason}" for n, reason in found.passed_over.items()]
    remarks = "; ".join(dict.fromkeys(_tidy(r) for r in refused + passed))
    if not found.layers:
        if refused:
            return {"verdict": "refused", "finding": remarks}
        return {"verdict": "none", "finding": remarks}
    run = _first_run(model, runs)
    chosen = representatives(model, found.layers)
    modules = dict(model.named_modules())
    checks = {}
    if run is not None:
        checks = {c.name: c for c in verify(model, run, layers=chosen)}
    for layer in chosen:  # what the model's own call did not reach is called on its own
        if layer.name not in checks or checks[layer.name].problem.startswith("unverified"):
            run_alone = _first_run(model, lambda _: ((None, call) for call in attention_calls(layer, modules[layer.name])))
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
    problem = _written(model, found.layers)
    if problem:
        return {**row, "verdict": "wrong" if problem.startswith("wrong") else "refused", "finding": problem}
    caveats = "; ".join(sorted({CAVEAT_NAMES[c] for layer in found.layers for c in layer.caveats}))
    if refused:
        return {**row, "verdict": "in part", "finding": "; ".join(filter(None, [remarks, caveats]))}
    return {**row, "verdict": "with caveat" if caveats else "supported", "finding": "; ".join(filter(None, [caveats, remarks]))}


def representatives(model: nn.Module, layers: list[AttentionLayer]) -> list[AttentionLayer]:
    """The first and the last layer of every kind: the same class, place, shapes and caveats."""
    modules = dict(model.named_modules())
    groups: dict[tuple, list[AttentionLayer]] = {}
    for layer in layers:
        place = re.sub(r"\d+", "#", layer.name)
        kind = (type(modules.get(layer.name)), place, layer.q.shape, layer.k.shape, layer.v.shape, layer.kind, layer.caveats)
        groups.setdefault(kind, []).append(layer)
    return [layer for group in groups.values() for layer in (group[:1] + group[1:][-1:])]


def _first_run(model, runs):
    last = None
    with torch.no_grad():
        for part, run in runs(model):
            try:
                run()
                return run
            except TimeUp:
                raise
            except Exception as e:  # noqa: BLE001  these inputs do not fit; the next may
                last = e
    return last and None


def _written(model: nn.Module, layers: list[AttentionLayer]) -> str:
    """"" where mimetic_init_ leaves the products that it reports, else what is wrong (or why it refuses)."""
    from mimetic.initialize import mimetic_init_

    if sum(layer.num_kv_heads * float(layer.d_model) ** 3 for layer in layers) > 1e11:
        return ""  # too slow for a table; the sizes do not change what is written where
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reports = mimetic_init_(model, generator=torch.Generator().manual_seed(0), cross=True)
    except UnsupportedAttention as e:
        return str(e)
    by_name = {layer.name: layer for layer in layers}
    for report in reports:
        layer = by_name[report.name]
        qk = sum(layer.qk(h).diagonal().mean().item() for h in range(layer.num_heads)) / layer.num_heads
        vp = layer.vp().diagonal().mean().item()
        if not (math.isclose(qk, report.qk_diagonal, abs_tol=2e-3) and math.isclose(vp, report.vp_diagonal, abs_tol=2e-3)):
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


# --- all of them ---------------------------------------------------------------------------------------------------------------


def _worker(library: str, connection) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    import logging

    logging.disable(logging.CRITICAL)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

    def up(*_):
        raise TimeUp

    signal.signal(signal.SIGALRM, up)
    while True:
        name = connection.recv()
        signal.alarm(SECONDS)
        try:
            row = examine(library, name)
        except TimeUp:
            row = {"name": name, "model": name, "verdict": "not built", "finding": f"took more than {SECONDS} s"}
        except Exception as e:  # noqa: BLE001  one model must not stop the table, and its error is shown in it
            row = {"name": name, "model": name, "verdict": "not built", "finding": _short(e)}
        finally:
            signal.alarm(0)
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
        return {"name": self.name, "model": self.name, "verdict": "not built", "finding": problem, "layers": 0, "error": None}

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


# --- the committed table and its page --------------------------------------------------------------------------------------------


def table_path(library: str, root: Path | None = None) -> Path:
    return (root or _root()) / "data" / "coverage" / f"{library}.json"


def page_path(root: Path | None = None) -> Path:
    return (root or _root()) / "book" / "coverage.md"


def _root() -> Path:
    """The repository around this file, or the current directory for an installed package."""
    here = Path(__file__).resolve().parents[2]
    return here if (here / "pyproject.toml").exists() else Path.cwd()


def page(tables: list[dict]) -> str:
    """The coverage page of the book, from the tables."""
    lines = [_PAGE_HEAD]
    lines += ["| | " + " | ".join(f"{t['library']} {t['versions'][t['library']]}" for t in tables) + " |"]
    lines += ["| :-- |" + " --: |" * len(tables)]
    for verdict in VERDICTS:
        lines.append(f"| {_VERDICT_TEXT[verdict]} | " + " | ".join(str(t["counts"][verdict]) for t in tables) + " |")
    lines.append("| **all** | " + " | ".join(str(len(t["architectures"])) for t in tables) + " |")
    for table in tables:
        what = "Families of model names (sizes, patches and resolutions left out)" if table["library"] == "timm" else "Model types"
        lines += ["", f"## {table['library']} {table['versions'][table['library']]}", ""]
        errors = [r["error"] for r in table["architectures"] if r["error"] is not None]
        if errors:
            lines += [f"{what}; largest relative error of a verified product: {max(errors):.0e}.", ""]
        for verdict in VERDICTS:
            rows = [r for r in table["architectures"] if r["verdict"] == verdict]
            if not rows:
                continue
            lines += [f"### {table['library']}: {verdict} ({len(rows)})", ""]
            if verdict in ("none", "supported"):
                plain = [r["name"] for r in rows if not r["finding"]]
                if plain:
                    lines += [", ".join(f"`{n}`" for n in plain) + ".", ""]
                rows = [r for r in rows if r["finding"]]
            if rows:
                lines += ["| architecture | finding |", "| :-- | :-- |"]
                lines += [f"| `{r['name']}` | {_cell(r['finding'])} |" for r in rows] + [""]
    return "\n".join(lines).rstrip() + "\n"


def _cell(text: str, width: int = 220) -> str:
    text = text.replace("|", "/").replace("*", "\\*").replace("_", "\\_").replace("<", "&lt;").replace("$", "\\$")
    text = text.replace("`", "'").replace("{", "(").replace("}", ")")
    return text if len(text) <= width else text[: width - 1].rstrip() + "…"


_VERDICT_TEXT = {
    "supported": "supported: every product verified",
    "with caveat": "supported, with a caveat (RoPE, QK-norm, …)",
    "in part": "in part: some layers verified, others refused",
    "refused": "refused, with the reason",
    "none": "no self-attention",
    "not built": "could not be built small or run",
    "wrong": "wrong product",
}

_PAGE_HEAD = """# Which models are supported

This page is written by `python -m mimetic coverage timm` and `python -m mimetic coverage transformers`. Every architecture
that the installed library can build small is built from its config with random weights and run. Random tokens go into each
attention layer, its softmax is replaced by the identity, and what the layer's own forward then computes is compared with the
products that `mimetic.attention_layers` shows: $W_QW_K^\\top$ of every head and $W_VW_{proj}$ of every head, to a relative
error of 10⁻³ or better. Then `mimetic_init_` runs, and what it reports is compared with what the layers hold.

A class of attention layer counts as supported only after this check. Whatever else looks like attention is refused by name:
no architecture may show a wrong product.
"""


def main(library: str, write: bool = True, only: tuple[str, ...] = (), processes: int | None = None) -> int:
    """`python -m mimetic coverage`: survey a library, print the counts, write data/coverage and the page.

    Args:
        library: "timm" or "transformers".
        write: keep the table and write the page; with `only` nothing is written.
        only: names of architectures; all by default.
        processes: worker processes, by default one a core.

    Returns:
        Exit code: 1 where a product is wrong.
    """
    if library not in LIBRARIES:
        raise ValueError(f"library must be one of {', '.join(LIBRARIES)}; got {library!r}")
    if only:
        known = names(library)
        unknown = [n for n in only if n not in known]
        if unknown:
            raise ValueError(f"{library} has no architecture {', '.join(unknown)}; `mimetic.coverage.names` lists them")
    table = survey(library, list(only) or None, processes)
    if only:
        for row in table["architectures"]:
            print(f"{row['name']}: {row['verdict']}" + (f" ({row['finding']})" if row["finding"] else ""))
    elif write:
        _write_atomically(table_path(library), json.dumps(table, indent=1, ensure_ascii=False) + "\n")
        tables = [json.loads(table_path(name).read_text()) for name in LIBRARIES if table_path(name).exists()]
        _write_atomically(page_path(), page(tables))
        print(f"wrote {table_path(library)} and {page_path()}")
    for verdict in VERDICTS:
        print(f"{table['counts'][verdict]:5d}  {_VERDICT_TEXT[verdict]}")
    for row in table["architectures"]:
        if row["verdict"] == "wrong":
            print(f"WRONG {row['name']}: {row['finding']}", file=sys.stderr)
    return 1 if table["counts"]["wrong"] else 0


def _write_atomically(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    with os.fdopen(handle, "w") as f:
        f.write(text)
    os.replace(temporary, path)
