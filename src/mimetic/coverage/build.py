"""Small models with random weights from the configs of timm and transformers, and inputs that fit them."""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from mimetic.adapters import find_reader
from mimetic.attention import AttentionLayer

MAX_PARAMETERS = 150_000_000


class NotBuilt(Exception):
    """The architecture could not be built small, or not run."""


class TimeUp(Exception):
    """The time for one architecture is up."""


@dataclass(frozen=True)
class Plan:
    """How to build one architecture small."""

    model: str  # its name in the library
    outline: nn.Module  # the same model without weights (on the meta device), or with them where that cannot be
    make: Callable[[], nn.Module]


def may_have_attention(outline: nn.Module) -> bool:
    """Whether any module is of an attention class that is known; if not, the outline already tells why."""
    return any(find_reader(type(module)) is not None for module in outline.modules())


# --- transformers: a small config of every model type -----------------------------------------------------------------

# (names of an int in a config, small value)
_INTS = (
    (
        r"(hidden_size|d_model|n_embd|embed_dim|hidden_dim|dim|d_embed"
        r"|encoder_hidden_size|decoder_hidden_size|embedding_size)",
        64,
    ),
    (
        r"(num_attention_heads|num_heads|n_heads?"
        r"|(encoder|decoder)_attention_heads|num_(encoder|decoder)_attention_heads)",
        4,
    ),
    (r"(decoder_)?num_key_value_heads|num_kv_heads", 2),
    (r"(encoder_|decoder_|num_|n_|num_hidden_|num_encoder_|num_decoder_|vision_|text_)*layers?", 2),
    (r"(num_hidden_layers|num_layers|n_layers?|encoder_layers|decoder_layers|num_blocks|depth|num_decoder_layers)", 2),
    (
        r"(intermediate_size|ffn_dim|(encoder|decoder)_ffn_dim|d_ff|n_inner|moe_intermediate_size"
        r"|feed_forward_\w+|mlp_dim)",
        96,
    ),
    (r"(shared_expert_intermediate_size|dense_intermediate_size|ffn_hidden_size)", 96),
    (r"head_dim|attention_head_dim|d_kv|d_head", 16),
    (r"vocab_size", 128),
    (r"(num_local_experts|num_experts|n_routed_experts|moe_num_experts)", 4),
    (r"(num_experts_per_tok|top_k|moe_top_k|moe_k)", 2),
    (r"(projection_dim|decoder_hidden_dim|proj_dim)", 32),
    (r"num_queries", 6),
    (r"max_source_positions", 50),
    (r"rotary_dim", 8),
)
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
    # a width and heads for every stage
    if any(isinstance(d.get(k), list) for k in ("num_heads", "num_attention_heads")):
        only = only or "layer|expert|depth|vocab"
    depth = next(
        (d[k] for k in ("num_hidden_layers", "num_layers", "n_layer", "n_layers") if isinstance(d.get(k), int)), None
    )
    if "vocab_size" in d and d["vocab_size"] is None:
        d["vocab_size"] = 128
    layers = 2
    kinds = {
        k: v
        for k, v in d.items()
        if depth and isinstance(v, list) and len(v) == depth and v and not isinstance(v[0], dict)
    }
    for values in kinds.values():
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
            for pattern, small in _INTS:
                if re.fullmatch(pattern, name):
                    small = layers if small == 2 and "layer" in name else small
                    d[name] = min(value, small) if value > 0 else value
                    break
    return d


def hash_small(text: str) -> int:
    """The same small number for the same text in every process."""
    return sum(ord(c) * (i + 1) for i, c in enumerate(text))


def plan_transformers(model_type: str) -> Plan:
    """A small model of this type with random weights; raises NotBuilt with the reason."""
    reasons = []
    for make in small_transformers_configs(model_type):
        try:
            for cls in _model_classes(make()):
                outline = _outline(cls, make)
                size = sum(p.numel() for p in outline.parameters())
                if not size:  # a base class without a model in it
                    continue
                if size <= MAX_PARAMETERS:
                    return Plan(model_type, outline, lambda cls=cls, make=make: cls(make()))
                reasons.append(f"{size // 1_000_000} M parameters when made small")
                break
            if not reasons:
                reasons.append("no model class for this config")
        except TimeUp:
            raise
        except Exception as e:  # noqa: BLE001  any error of the library is a reason here, not a crash
            reasons.append(f"no small config: {short_error(e)}")
    raise NotBuilt(reasons[0])


def _outline(cls: type, make: Callable) -> nn.Module:
    """A model of this class and config without weights, or with them where that cannot be."""
    try:
        with torch.device("meta"):
            return cls(make())
    except (RuntimeError, NotImplementedError):  # reads a tensor while it is made: only possible with storage
        return cls(make())


def whole_outline(library: str, name: str) -> nn.Module | None:
    """The outline of an architecture's default config, unshrunk: a small model can lack the layers
    that attend, where only every eighth does. None where it could not be made; timm's models keep
    every kind of layer when they are made small.
    """
    if library != "transformers":
        return None
    from transformers import CONFIG_MAPPING

    with contextlib.suppress(Exception):  # any error of the library: then the small model is all there is
        make = CONFIG_MAPPING[name]
        for cls in _model_classes(make()):
            with torch.device("meta"):
                outline = cls(make())
            if any(True for _ in outline.parameters()):
                return outline
    return None


def _model_classes(config) -> list[type]:
    import transformers
    from transformers import PreTrainedModel

    for auto in (
        "AutoModel",
        "AutoModelForSeq2SeqLM",
        "AutoModelForCausalLM",
        "AutoModelForImageTextToText",
        "AutoBackbone",
    ):
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
    return found


def short_error(e: Exception | None) -> str:
    text = " ".join(f"{type(e).__name__}: {e}".split())
    text = re.sub(r" from '/[^']*'?", "", text)  # where this machine keeps its packages is nobody's business
    return text[:140]


def transformers_runs(model: nn.Module):
    """Ways to call a model, most natural first; then its parts."""
    parts = [m for m in model.modules() if m is not model and hasattr(m, "main_input_name") and hasattr(m, "config")]
    for part in [model, *parts]:
        for inputs in _inputs(part):
            yield lambda _, part=part, inputs=inputs: part(**inputs)


def _inputs(model):
    """Keyword inputs that may fit the model's signature."""
    config = model.config
    names = list(inspect.signature(model.forward).parameters)
    g = torch.Generator().manual_seed(0)

    def find(*keys, default=None):
        for c in [
            config,
            *(
                getattr(config, s, None)
                for s in ("vision_config", "text_config", "audio_config", "backbone_config", "encoder")
            ),
        ]:
            for key in keys:
                value = getattr(c, key, None)
                if isinstance(value, (list, tuple)) and value and isinstance(value[0], int):
                    value = value[0]
                if isinstance(value, int) and not isinstance(value, bool):
                    return value
        return default

    def ids():
        return torch.randint(3, 90, (2, 8), generator=g)

    size = find("image_size", "crop_size", default=64)
    channels = find("num_channels", "in_channels", "in_chans", default=3)
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
        mels = find("num_mel_bins", "feature_size", "n_mels", "input_feat_per_channel", default=80)
        length = find("max_source_positions", default=50)
        yield {**base, "input_features": torch.randn(2, mels, 2 * length, generator=g)}
        yield {**base, "input_features": torch.randn(2, 100, mels, generator=g)}
    if "input_values" in names:
        yield {**base, "input_values": torch.randn(2, 4000, generator=g)}
        length, mels = find("max_length", default=100), find("num_mel_bins", default=80)
        yield {**base, "input_values": torch.randn(2, length, mels, generator=g)}
    if "inputs_embeds" in names:
        yield {"inputs_embeds": torch.randn(2, 8, find("hidden_size", "d_model", "n_embd", default=64), generator=g)}
    if base and main != "input_ids":
        yield base
    if "hidden_states" in names:
        yield {"hidden_states": torch.randn(2, 16, find("hidden_size", "d_model", default=64), generator=g)}
    if "past_values" in names:
        length, features = find("context_length", default=32), find("num_input_channels", "input_size", default=1)
        yield {"past_values": torch.randn(2, length, features, generator=g)}


def attention_calls(layer: AttentionLayer, module: nn.Module, block: nn.Module | None = None):
    """Ways to call an attention module on its own, where the whole model wants inputs that
    cannot be guessed; block is what holds it.
    """
    D, K, kv_width = layer.d_model, layer.head_dim, layer.v.shape[0]
    g = torch.Generator().manual_seed(0)

    def tokens(*shape):
        return torch.randn(*shape, generator=g).to(layer.q.dtype)

    names = inspect.signature(module.forward).parameters
    rotate = getattr(module, "rotary_ndims", None) or K
    for shape in ((2, 16), (16,), (2, 4, 4)):
        x, kv = tokens(*shape, D), tokens(*shape[:-1], 12 if len(shape) < 3 else 4, kv_width)
        n = 16
        pairs = [(shape, True) for shape in ((1, n, rotate), (n, rotate), (n, rotate // 2))]
        # CLVP takes the angles themselves, and places to read them at, in those of its blocks that are given angles
        bare = (
            [((1, n, rotate), False)]
            if "rotary_pos_emb" in names and block is not None and _takes(block, "rotary_pos_emb")
            else []
        )
        for angle_shape, pair in (*pairs, *bare, (None, True)):
            kwargs = {}
            for name, p in names.items():
                required = p.default is inspect.Parameter.empty
                if name in ("position_embeddings", "rotary_pos_emb", "position_embedding") and angle_shape:
                    # one angle a position for all dimensions: a rotation in the half-split and in the interleaved
                    # layout
                    angles = torch.arange(n).view(n, 1).expand(angle_shape).float() / 3
                    kwargs[name] = (angles.cos(), angles.sin()) if pair else angles
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
                elif name == "position_ids" and (required or not pair):
                    kwargs[name] = torch.arange(n)[None]
            args = () if "query" in kwargs or "queries" in kwargs else (x,)
            yield lambda _, args=args, kwargs=kwargs: module(*args, **kwargs)


def _takes(module: nn.Module, argument: str) -> bool:
    return argument in inspect.signature(module.forward).parameters


@torch.no_grad()
def make_generic(model: nn.Module) -> None:
    """Random gains, and random numbers in place of all-zero matrices, so that nothing is verified by being 1 or 0."""
    g = torch.Generator().manual_seed(0)
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


# --- timm: the smallest model of every family -------------------------------------------------------------------------

_SIZES = (
    "test",
    "atto",
    "femto",
    "pico",
    "nano",
    "zepto",
    "xxxs",
    "xxs",
    "xs",
    "xtiny",
    "wee",
    "tiny",
    "pwee",
    "little",
    "mini",
    "s",
    "small",
    "mediumd",
    "medium",
    "betwixt",
    "m",
    "b",
    "base",
    "l",
    "large",
    "xl",
    "xlarge",
    "xxlarge",
    "h",
    "huge",
    "g",
    "giant",
    "gigantic",
    "gg",
    "e",
    "enormous",
    "so150m",
    "so150m2",
    "so400m",
    "7b",
    "1b",
    "3b",
    "pe",
)


def timm_families() -> dict[str, list[str]]:
    """{family: its models, likely smallest first}: names that differ only in
    size, patch and resolution are one family.
    """
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


def plan_timm(family: str) -> Plan:
    """A family's smallest model, two blocks deep where the model allows it; raises NotBuilt with the reason."""
    import timm

    reasons = []
    for name in timm_families()[family][:4]:
        patch = re.search(r"patch(\d+)", name)
        small = [{"depth": 2, "img_size": 4 * int(patch[1])}] if patch and int(patch[1]) >= 8 else []
        for kwargs in (*small, {"depth": 2}, {}):
            try:
                with torch.device("meta"):
                    outline = timm.create_model(name, **kwargs)
                size = sum(p.numel() for p in outline.parameters())
                if size <= MAX_PARAMETERS or not may_have_attention(outline):
                    return Plan(name, outline, functools.partial(timm.create_model, name, **kwargs))
                reasons.append(f"{name} has {size // 1_000_000} M parameters")
            except TimeUp:
                raise
            except Exception as e:  # noqa: BLE001
                reasons.append(short_error(e))
    raise NotBuilt(reasons[-1])


def timm_runs(model: nn.Module):
    channels, *size = getattr(model, "default_cfg", {}).get("input_size", (3, 224, 224))
    if getattr(getattr(model, "patch_embed", None), "img_size", None):
        size = model.patch_embed.img_size
    g = torch.Generator().manual_seed(0)
    batch = 1 if size[0] > 512 else 2  # attention maps of large images are large
    images = torch.randn(batch, channels, *size, generator=g)
    yield lambda model: model(images)
