"""A small model of every model type of transformers, from its config with random weights, and inputs that fit it."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import re
from collections.abc import Callable

import torch
from torch import nn

from mimetic.coverage.build import MAX_PARAMETERS, NotBuilt, Plan, TimeUp, short_error

# (names of an int in a config, small value)
_INTS = (
    (r"hidden_size|d_model|n_embd|embed_dim|hidden_dim|dim|d_embed|(en|de)coder_hidden_size|embedding_size", 64),
    (r"num_attention_heads|num_heads|n_heads?|(num_)?(encoder|decoder)_attention_heads", 4),
    (r"(decoder_)?num_key_value_heads|num_kv_heads", 2),
    (r"(encoder_|decoder_|num_|n_|num_hidden_|num_encoder_|num_decoder_|vision_|text_)*layers?", 2),
    (r"(num_hidden_layers|num_layers|n_layers?|encoder_layers|decoder_layers|num_blocks|depth|num_decoder_layers)", 2),
    (r"(moe_|shared_expert_|dense_)?intermediate_size|((encoder|decoder)_)?ffn_dim|d_ff|n_inner", 96),
    (r"feed_forward_\w+|mlp_dim|ffn_hidden_size", 96),
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
    depths = (d.get(k) for k in ("num_hidden_layers", "num_layers", "n_layer", "n_layers"))
    depth = next((n for n in depths if isinstance(n, int)), None)
    if "vocab_size" in d and d["vocab_size"] is None:
        d["vocab_size"] = 128
    # one value a layer
    kinds = {
        k: v for k, v in d.items() if depth and isinstance(v, list) and len(v) == depth and not isinstance(v[0], dict)
    }
    layers = max([2, *(len(set(v)) for v in kinds.values() if all(isinstance(kind, str) for kind in v))])
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
                # the same small number for the same name in every process
                d[name] = 100 + sum(ord(c) * (i + 1) for i, c in enumerate(name)) % 20
        elif value > 0 and (not only or re.search(only, name)):
            small = next((small for pattern, small in _INTS if re.fullmatch(pattern, name)), value)
            d[name] = min(value, layers if small == 2 and "layer" in name else small)
    return d


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

    for auto in ("Model", "ModelForSeq2SeqLM", "ModelForCausalLM", "ModelForImageTextToText", "Backbone"):
        with contextlib.suppress(KeyError, AttributeError):
            cls = getattr(transformers, f"Auto{auto}")._model_mapping[type(config)]
            return [cls[0] if isinstance(cls, (tuple, list)) else cls]
    # a part of a larger model: the first class of its module that takes this config
    module = importlib.import_module(type(config).__module__.replace(".configuration_", ".modeling_"))
    return [
        c
        for c in vars(module).values()
        if isinstance(c, type) and issubclass(c, PreTrainedModel) and not c.__name__.endswith("PreTrainedModel")
        and c.config_class is type(config)
    ]  # fmt: skip


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
        parts = ("vision_config", "text_config", "audio_config", "backbone_config", "encoder")
        for part in (config, *(getattr(config, name, None) for name in parts)):
            for key in keys:
                value = getattr(part, key, None)
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
