"""What the byte code of a class says: whether it attends itself, and what it reads. Only read, never run."""

from __future__ import annotations

import dis
import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import wraps
from itertools import pairwise
from types import CodeType
from weakref import WeakKeyDictionary

from torch import nn

from mimetic.adapters.views import library

# what libraries call softmax(q k^T) v
_ATTENDS = re.compile(r"scaled_dot_product_attention|flash_attn_\w*func|memory_efficient_attention|flex_attention")
_TRANSPOSES = {"transpose", "swapaxes", "swapdims", "permute", "mT", "T", "t"}
_MULTIPLIES = {"matmul", "bmm", "baddbmm"}
# what is asked of a tensor without using what is in it
OF_ITS_FORM = {"shape", "size", "dtype", "device", "ndim", "dim", "numel", "new_zeros", "new_ones", "new_full"}


def kept_by_class(function: Callable) -> Callable:
    """functools.cache by class, which lets go of a class, and what its functions close over, with its last user."""
    kept = WeakKeyDictionary()

    @wraps(function)
    def of(cls: type, *args):
        found = kept.setdefault(cls, {})
        if args not in found:
            found[args] = function(cls, *args)
        return found[args]

    return of


@kept_by_class
def attends(cls: type, spelt_out: bool = True) -> bool:
    """Whether one of a class's own methods calls a library's attention function or (spelt_out), which is less sure,
    has a softmax and two matrix products, one of them with a transposed factor or both as einsum of attention's form.
    """
    for code in (method.__code__ for method in methods(cls)):
        names = set(_names(code))
        if any(map(_ATTENDS.fullmatch, names)):
            return True
        if spelt_out and "softmax" in names and names & _TRANSPOSES and _products(code) > 1:
            return True
        if spelt_out and "softmax" in names and sum(map(_pairs_tokens, _texts(code))) > 1:
            return True
    return False


@kept_by_class
def reads(cls: type, attribute: str) -> bool:
    """Whether forward, or a method that it calls, uses what is in an attribute of this name; torch's own are not
    asked."""
    named = {m.__name__: m for m in methods(cls)}
    todo, run = ["forward"], set()
    while todo:
        if (name := todo.pop()) in named and name not in run:
            run.add(name)
            todo += _names(named[name].__code__)
    return any(library(named[name]) != "torch" and _uses(named[name].__code__, attribute) for name in run)


def _uses(code: CodeType, attribute: str) -> bool:
    steps = pairwise(dis.get_instructions(code))
    return any(a.argval == attribute and b.argval not in OF_ITS_FORM for a, b in steps) or any(
        _uses(c, attribute) for c in code.co_consts if isinstance(c, CodeType)
    )


def methods(cls: type) -> Iterator[Callable]:
    """The functions of a class, those that it inherits from anything but nn.Module, too."""
    seen = set()
    for base in cls.__mro__:
        if base in nn.Module.__mro__:
            continue
        for name, value in vars(base).items():
            if name in seen or not inspect.isroutine(value):  # others may do anything when asked for __wrapped__
                continue
            seen.add(name)
            with suppress(ValueError):  # wrapped around itself
                value = inspect.unwrap(value.__func__ if isinstance(value, (staticmethod, classmethod)) else value)
            if inspect.isfunction(value):
                yield value


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _texts(code: CodeType) -> Iterator[str]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _texts(constant)
        elif isinstance(constant, str):
            yield constant


def _pairs_tokens(equation: str) -> bool:
    """Whether an einsum is a matrix product within each of a batch, as q k^T and its product with v are ("b h i d,
    b h j d -> b h i j"; of one key head for all, too), and no sum over experts."""
    terms = re.fullmatch(r"(\w+),(\w+)->(\w{3,})", equation.replace(" ", "").replace("...", "_"))
    if terms is None:
        return False
    left, right, (*batch, row, column) = set(terms[1]), set(terms[2]), terms[3]
    summed = left & right - {*batch, row, column}
    return (
        len(summed) == 1 and left == {*batch, row} | summed and {column} | summed < right <= {*batch, column} | summed
    )


def _products(code: CodeType) -> int:
    """How many matrix products are written in a method."""
    own = sum(
        step.argval in _MULTIPLIES or (step.opname == "BINARY_OP" and step.argrepr == "@")
        for step in dis.get_instructions(code)
    )
    return own + sum(_products(c) for c in code.co_consts if isinstance(c, CodeType))
