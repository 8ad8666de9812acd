"""Readers of weight files: bytes in, a plain dictionary of tensors out. Nothing in a file is ever executed.

All of them give the names and shapes that PyTorch uses (``x.weight`` (out, in) and ``x.bias`` (out,) of a linear
layer), so that the code behind them need not know which file format a model came in. There is no reader for pickle.
"""

from __future__ import annotations

import struct
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


class WeightFileError(ValueError):
    """A weight file that is damaged or of a kind that the reader does not know."""


def read_safetensors(data: bytes) -> dict[str, Tensor]:
    """The tensors of a safetensors file, under the names they have there."""
    import safetensors
    import safetensors.torch

    try:
        return safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise WeightFileError(f"not a readable safetensors file: {error}") from None


# CTranslate2 (python/ctranslate2/specs/model_spec.py, binary version 6); all integers are little-endian:
#   uint32 version, string name of the model class, uint32 revision of it,
#   uint32 number of variables, then each:
#       string name, uint8 rank, uint32 size of each dimension, uint8 type, uint32 number of bytes, the bytes
#   uint32 number of aliases, then each: string alias, string name
#   where a string is a uint16 length (the closing zero byte included) and that many bytes.
_CT2_VERSION = 6
_CT2_DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}  # 5 is bfloat16: NumPy has none


def read_ctranslate2(data: bytes) -> dict[str, Tensor]:
    """The variables of a CTranslate2 ``model.bin``, version 6; ``a/b/weight`` is called ``a.b.weight``.

    Raises:
        WeightFileError: another version, a type that is not float32, float16 or an integer, or a file that does not
            end where its last entry does.
    """
    position = 0

    def take(size: int) -> bytes:
        nonlocal position
        if position + size > len(data):
            raise WeightFileError(f"CTranslate2 file ends early (at byte {len(data)} of at least {position + size})")
        position += size
        return data[position - size : position]

    def number(code: str) -> int:
        return struct.unpack("<" + code, take(struct.calcsize(code)))[0]

    def text() -> str:
        return take(number("H")).rstrip(b"\0").decode().replace("/", ".")

    version = number("I")
    if version != _CT2_VERSION:
        raise WeightFileError(f"not a CTranslate2 file of version {_CT2_VERSION} (its first number is {version})")
    text()  # the model's class
    number("I")  # and its revision
    variables = {}
    for _ in range(number("I")):
        name = text()
        shape = [number("I") for _ in range(number("B"))]
        dtype_id = number("B")
        if dtype_id not in _CT2_DTYPES:
            raise WeightFileError(
                f"{name}: CTranslate2 type {dtype_id} is not supported (known: {sorted(_CT2_DTYPES)})"
            )
        dtype = np.dtype(_CT2_DTYPES[dtype_id]).newbyteorder("<")
        size = number("I")
        if size != dtype.itemsize * int(np.prod(shape)):
            raise WeightFileError(f"{name}: {size} bytes do not make a {dtype} array of shape {shape}")
        array = np.frombuffer(take(size), dtype).reshape(shape)
        variables[name] = torch.from_numpy(array.astype(dtype.newbyteorder("=")))  # a copy: writable, native order
    for _ in range(number("I")):
        alias, name = text(), text()
        if name not in variables:
            raise WeightFileError(f"alias {alias} names a variable that is not there ({name})")
        variables[alias] = variables[name]
    if position != len(data):
        raise WeightFileError(f"{len(data) - position} bytes follow the end of the CTranslate2 file")
    return variables


def read_onnx(data: bytes) -> dict[str, Tensor]:
    """The initializers of an ONNX model, with PyTorch's names given back to the linear layers.

    PyTorch's exporter writes ``nn.Linear`` as MatMul(x, W) + bias, W already (in, out) and under a name of its own
    (``onnx::MatMul_1972``), the bias under the name it had. So the weight of ``x`` is the matrix whose MatMul feeds the
    Add with ``x.bias``; it is returned as ``x.weight``, transposed to (out, in).

    Raises:
        WeightFileError: not an ONNX model, weights in a second file, or one bias that two different matrices feed.
    """
    import onnx
    from google.protobuf.message import DecodeError
    from onnx import numpy_helper

    try:
        graph = onnx.load_model_from_string(data).graph
    except DecodeError as error:
        raise WeightFileError(f"not a readable ONNX file: {error}") from None
    if any(i.data_location == onnx.TensorProto.EXTERNAL for i in graph.initializer):
        raise WeightFileError("the ONNX file keeps its weights in a second file, which is not read here")
    tensors = {i.name: torch.from_numpy(numpy_helper.to_array(i).copy()) for i in graph.initializer}
    # the exporter writes equal tensors once and points at them through Identity nodes, which come in graph order
    for node in graph.node:
        if node.op_type == "Identity" and node.input[0] in tensors:
            tensors[node.output[0]] = tensors[node.input[0]]
    products = {
        node.output[0]: node.input[1] for node in graph.node if node.op_type == "MatMul" and node.input[1] in tensors
    }
    linear: dict[str, str] = {}
    for node in graph.node:
        if node.op_type != "Add" or len(node.input) != 2:
            continue
        for bias, product in (node.input, node.input[::-1]):
            if bias in tensors and bias.endswith(".bias") and product in products:
                weight = f"{bias.removesuffix('bias')}weight"
                if linear.setdefault(weight, products[product]) != products[product]:
                    raise WeightFileError(f"{bias} is fed by two matrices, {linear[weight]} and {products[product]}")
    for weight, matrix in linear.items():
        tensors.setdefault(weight, tensors[matrix].mT)
    return tensors


def read_gguf(data: bytes) -> dict[str, Tensor]:
    """The tensors of a GGUF file (llama.cpp), dequantised to float32, under the names they have there.

    Raises:
        WeightFileError: not a readable GGUF file, or a quantisation that the gguf library does not know.
    """
    import gguf

    # The library reads files only, through a memory map; Windows does not remove what is mapped.
    with tempfile.TemporaryDirectory(prefix="mimetic-", ignore_cleanup_errors=True) as folder:
        path = Path(folder, "model.gguf")
        path.write_bytes(data)
        try:
            tensors = gguf.GGUFReader(path).tensors
            return {
                t.name: torch.from_numpy(gguf.dequantize(t.data, t.tensor_type).astype(np.float32)) for t in tensors
            }
        except (ValueError, KeyError, IndexError, NotImplementedError) as error:
            raise WeightFileError(f"not a readable GGUF file: {error}") from None


FORMATS = {"onnx": read_onnx, "ctranslate2": read_ctranslate2, "safetensors": read_safetensors, "gguf": read_gguf}
