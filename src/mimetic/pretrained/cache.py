"""From a source to its attention layers: fetch, check, read, keep.

What is kept in the cache is one safetensors file a source, with the attention weights, the gain of the LayerNorm in
front and LayerScale behind, in float32, in the x @ W convention of AttentionLayer.

Shape suffixes: D d_model, H heads, K head_dim (D = H * K in every model here).
"""

from __future__ import annotations

import json
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from mimetic.attention import VIEWS, AttentionLayer, UnsupportedAttention
from mimetic.data.fetch import (
    ChecksumError,
    Unavailable,
    atomic_path,
    cache_dir,
    check_sha256,
    link_or_copy,
    pip_wheel,
    require_network,
)
from mimetic.messages import one_line
from mimetic.pretrained.readers import FORMATS, WeightFileError
from mimetic.pretrained.sources import SOURCES, Hub, Source, Wheel, source
from mimetic.scan import attention_layers

CACHE_FORMAT = "1"  # of the cached files; a file of another number is fetched again
HUB_TIMEOUT = 8  # seconds until the hub counts as unreachable

# what can go wrong with a source without anything being wrong here: said in a line, and the rest goes on
PROBLEMS = (Unavailable, ChecksumError, WeightFileError, UnsupportedAttention, OSError)


# --- from a weight file to layers -----------------------------------------------------------------------------------


def layers_of_source(state: dict[str, Tensor], src: Source) -> list[AttentionLayer]:
    """The attention layers of a wheel source from the tensors of its weight file (PyTorch names and shapes).

    Raises:
        WeightFileError: a tensor is missing or does not have the shape that the source declares.
    """
    wheel = src.origin

    def get(key: str, shape: tuple[int, ...]) -> Tensor:
        if key not in state:
            raise WeightFileError(f"{src.name}: the weight file has no {key}")
        if tuple(state[key].shape) != shape:
            raise WeightFileError(f"{src.name}: {key} has shape {tuple(state[key].shape)}, expected {shape}")
        return state[key].float()

    layers = []
    for prefix, name, (D, H) in zip(wheel.blocks, wheel.names, src.layer_dims(), strict=True):
        K = D // H
        heads = (H, wheel.kv_heads or H, wheel.kv_heads or H)
        # outputs of each of the listed layers: of all three where q, k and v are fused
        outputs = [K * sum(heads)] if len(wheel.qkv) == 1 else [K * n for n in heads]

        def split(tensors: list[Tensor], heads=heads, K=K) -> list[Tensor]:
            """(out, ...) of all three to (heads, K, ...) of each."""
            return [part.unflatten(0, (-1, K)) for part in torch.cat(tensors).split([K * n for n in heads])]

        weights = split([get(f"{prefix}{part}.weight", (out, D)) for part, out in zip(wheel.qkv, outputs, strict=True)])
        q, k, v = (w.movedim(2, 0) for w in weights)  # (heads, K, in) -> (in, heads, K)
        biases = [None] * 3
        if wheel.bias:
            biases = split([get(f"{prefix}{part}.bias", (out,)) for part, out in zip(wheel.qkv, outputs)])
        layers.append(
            AttentionLayer(
                name, q, k, v, get(f"{prefix}{wheel.proj}.weight", (D, D)).mT.unflatten(0, (H, K)),
                *biases, get(f"{prefix}{wheel.proj}.bias", (D,)) if wheel.bias else None,
                in_gain=get(prefix + wheel.in_gain, (D,)) if wheel.in_gain else None,
                out_gain=get(prefix + wheel.out_gain, (D,)) if wheel.out_gain else None,
                gains_known=True, caveats=wheel.caveats,
            )
        )  # fmt: skip
    return layers


def layers_from_hub_file(file: Path, src: Source) -> list[AttentionLayer]:
    """The attention layers of a hub source from its ``model.safetensors``; the model is built by its own library.

    Raises:
        Unavailable: timm or transformers is not installed.
        WeightFileError: the model's layers are not the ones that the source declares.
    """
    hub = src.origin
    try:
        model = _build_timm(hub, file) if hub.library == "timm" else _build_transformers(hub, file)
    except ImportError as error:
        raise Unavailable(f"{src.name}: {hub.library} is needed to read it ({error})") from None
    layers = attention_layers(model)
    found = [(layer.d_model, layer.num_heads) for layer in layers]
    if found != src.layer_dims():
        raise WeightFileError(f"{src.name}: layers (d_model, num_heads) are {found}, expected {src.layer_dims()}")
    return layers


def _build_timm(hub: Hub, file: Path) -> torch.nn.Module:
    import timm

    return timm.create_model(hub.model, pretrained=False, checkpoint_path=str(file))


def _build_transformers(hub: Hub, file: Path) -> torch.nn.Module:
    from transformers import AutoConfig, AutoModel
    from transformers.utils import logging

    # that a bare model leaves out the heads is no news, and half a second needs no progress bar
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with tempfile.TemporaryDirectory(prefix="mimetic-") as folder:
            AutoConfig.for_model(hub.model).save_pretrained(folder)  # the defaults of gpt2 and bert are these models
            beside = Path(folder, "model.safetensors")
            link_or_copy(file, beside)
            model, info = AutoModel.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
            )
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
    if info["missing_keys"]:  # transformers would leave them random
        raise WeightFileError(f"{hub}: the weight file has no {', '.join(sorted(info['missing_keys'])[:3])}")
    return model


# --- the cache ------------------------------------------------------------------------------------------------------

_TENSORS = (*VIEWS, "in_gain", "out_gain")
_FIELDS = ("name", "gains_known", "caveats")  # of an AttentionLayer, kept beside its tensors


def save_layers(layers: Sequence[AttentionLayer], src: Source, path: Path) -> None:
    """Write the tensors of layers to a safetensors file, atomically; its metadata say where they come from."""
    from safetensors.torch import save

    tensors = {
        f"{layer.name}:{key}": getattr(layer, key).detach().float().contiguous().clone()
        for layer in layers
        for key in _TENSORS
        if getattr(layer, key) is not None
    }
    metadata = {
        "format": CACHE_FORMAT,
        "source": src.name,
        "origin": str(src.origin),
        "sha256": src.origin.sha256,
        "licence": src.licence,
        "dims": json.dumps(src.dims),  # (layers, d_model, num_heads)
        "layers": json.dumps([{key: getattr(layer, key) for key in _FIELDS} for layer in layers]),
    }
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(tensors, metadata))


def read_layers(path: Path, src: Source) -> list[AttentionLayer] | None:
    """The layers in a cached file, or None if the file is not there, damaged, or of another source or version."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            wanted = {"format": CACHE_FORMAT, "source": src.name, "sha256": src.origin.sha256}
            if not wanted.items() <= metadata.items():
                return None
            stored = set(file.keys())
            layers = []
            for about in json.loads(metadata["layers"]):
                keys = [key for key in _TENSORS if f"{about['name']}:{key}" in stored]
                # copies: the tensors themselves are windows on the file, and would crash if the file were cut
                tensors = {key: file.get_tensor(f"{about['name']}:{key}").clone() for key in keys}
                layers.append(AttentionLayer(**about | {"caveats": tuple(about["caveats"])}, **tensors))
            return layers
    except (OSError, SafetensorError, KeyError, TypeError, json.JSONDecodeError):
        return None


def cached_path(name: str) -> Path:
    """Where the weights of a source lie once they are fetched: ``cache_dir()/pretrained/NAME.safetensors``."""
    return cache_dir() / "pretrained" / f"{source(name).name}.safetensors"


def fetch(name: str) -> Path:
    """Make sure that the weights of a source are in the cache, and return the path of the safetensors file.

    The file holds, for each layer, ``LAYER:q`` (D, H, K), ``:k``, ``:v``, ``:proj`` (H, K, D), their biases and the
    gains ``:in_gain``, ``:out_gain`` (D,) where the model has them, all float32; its metadata say where it came from.

    Raises:
        ValueError: no such source; the message names the choices.
        Unavailable: it is not in the cache and cannot be fetched (one line says why).
        ChecksumError: what was fetched is not what was meant. Nothing is kept.
        WeightFileError: the weight file cannot be read.
    """
    src, path = source(name), cached_path(name)
    if read_layers(path, src) is not None:
        return path
    with tempfile.TemporaryDirectory(prefix="mimetic-") as folder:
        if isinstance(src.origin, Hub):
            save_layers(layers_from_hub_file(_download_hub(src, Path(folder)), src), src, path)
        else:
            require_network(name)
            state = _read_wheel(_wheel(src, Path(folder)), src.origin)
            # one wheel may hold several sources: write them all while it is here
            for other in SOURCES.values():
                if isinstance(other.origin, Wheel) and other.origin.sha256 == src.origin.sha256:
                    save_layers(layers_of_source(state, other), other, cached_path(other.name))
    return path


def load(name: str) -> list[AttentionLayer]:
    """The attention layers of a pretrained model, in order, float32, fetched first if they are not in the cache.

    Raises what ``fetch`` raises.
    """
    layers = read_layers(fetch(name), source(name))
    if layers is None:  # can only happen when the cache is changed from outside between two lines
        raise WeightFileError(f"{cached_path(name)} cannot be read")
    return layers


def available(names: Sequence[str] | None = None) -> tuple[dict[str, list[AttentionLayer]], dict[str, str]]:
    """Load what can be had: ({name: layers}, {name: one line that says why not}). ``names=None`` means all sources.

    Raises ValueError for a name that does not exist.
    """
    wanted = [source(name) for name in (SOURCES if names is None else names)]
    found: dict[str, list[AttentionLayer]] = {}
    missing: dict[str, str] = {}
    for src in wanted:
        try:
            found[src.name] = load(src.name)
        except PROBLEMS as error:
            missing[src.name] = one_line(error)
    return found, missing


# --- the two ways to get a weight file ------------------------------------------------------------------------------


def _wheel(src: Source, folder: Path) -> Path:
    """The wheel of a source in ``folder``, its checksum verified."""
    try:
        return pip_wheel(str(src.origin), src.origin.sha256, folder)
    except (Unavailable, ChecksumError) as error:
        raise type(error)(f"{src.name}: {error}") from None


def _read_wheel(path: Path, wheel: Wheel) -> dict[str, Tensor]:
    """All tensors of the one weight file in a wheel that is read."""
    try:
        with zipfile.ZipFile(path) as archive:
            data = archive.read(wheel.member)
    except (zipfile.BadZipFile, KeyError) as error:
        raise WeightFileError(f"{path.name}: {one_line(error)}") from None
    try:
        return FORMATS[wheel.format](data)
    except ImportError as error:
        raise Unavailable(f"{wheel}: {error.name} is needed to read it (pip install {error.name})") from None


def _download_hub(src: Source, folder: Path) -> Path:
    """``model.safetensors`` of a hub source, from the hub's own local cache if it is there, its checksum verified."""
    hub: Hub = src.origin
    try:
        from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache
    except ImportError:
        raise Unavailable(f"{src.name}: huggingface_hub is needed to fetch it (it comes with {hub.library})") from None
    cached = try_to_load_from_cache(hub.repo, "model.safetensors", revision=hub.revision)
    if isinstance(cached, str):
        file = Path(cached)
    else:
        require_network(src.name)
        try:
            # a question that is answered or fails at once: the download itself retries for most of a minute
            HfApi().model_info(hub.repo, revision=hub.revision, timeout=HUB_TIMEOUT)
            file = Path(hf_hub_download(hub.repo, "model.safetensors", revision=hub.revision, local_dir=folder))
        except Exception as error:  # noqa: BLE001  the hub's client's, its HTTP library's and the system's errors
            raise Unavailable(f"{src.name}: {hub} cannot be fetched from the hub ({one_line(error, 200)})") from None
    check_sha256(file, hub.sha256, f"{src.name}: model.safetensors")
    return file
