"""What a class's code says of attention, where names leave it open: whether it attends itself, and with which tokens it
calls nn.MultiheadAttention, which does not know. Only read, never run; where there is no source, nothing is said.
"""

from __future__ import annotations

import ast
import dis
import inspect
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from tokenize import TokenError
from types import CodeType
from typing import NamedTuple

from torch import nn

from mimetic.adapters.views import library

# what libraries call softmax(q k^T) v
_ATTENDS = re.compile(r"scaled_dot_product_attention|flash_attn_\w*func|memory_efficient_attention|flex_attention")
_TRANSPOSES = {"transpose", "swapaxes", "swapdims", "permute", "mT", "T", "t"}
_MULTIPLIES = {"matmul", "bmm", "baddbmm"}
# the parameters of a method that only passes on what it is given: what these are is said where it is called
_PASSED_ON = re.compile(r"(.*_)?(q|k|v|quer(y|ies)|keys?|values?)(_.*)?", re.IGNORECASE)
# what is asked of a tensor without using what is in it
_OF_ITS_FORM = {"shape", "size", "dtype", "device", "ndim", "dim", "numel", "new_zeros", "new_ones", "new_full"}


@cache
def attends(cls: type, spelt_out: bool = True) -> bool:
    """Whether one of a class's own methods calls a library's attention function or (spelt_out), which is less sure,
    has a softmax, a matrix product and a transposed factor."""
    for code in (method.__code__ for method in _methods(cls)):
        names = set(_names(code))
        if any(map(_ATTENDS.fullmatch, names)):
            return True
        if spelt_out and "softmax" in names and names & _TRANSPOSES and (names & _MULTIPLIES or _has_operator(code)):
            return True
    return False


# methods that work on weights and not with them
_SETS_UP = re.compile(r"init|reset|load|state_dict|from_", re.IGNORECASE)


@cache
def reads(cls: type, attribute: str) -> bool:
    """Whether a method of a class computes with an attribute of this name itself; torch's own are not asked."""
    own = (m for m in _methods(cls) if library(m) != "torch" and not _SETS_UP.search(m.__name__))
    return any(attribute in _names(method.__code__) for method in own)


class Call(NamedTuple):
    """With which tokens attention is called."""

    kind: str | None
    given: bool = False  # queries and keys are the first two arguments of forward: whoever calls that decides
    made_by: tuple[str, ...] = ()  # the attributes that made queries and keys, where they are two different parts


def tokens_of_call(chain: Iterable[tuple[str, type]]) -> str | None:
    """What an attention layer is called with: "self" (queries and keys are the same expression), "cross" (they come
    from different arguments), "pooling" (queries come from no argument: they are learned), or None where the code does
    not say, or says several.

    Args:
        chain: (attribute, class that holds under it what comes before), from the layer outwards. The next one is asked
            where a class passes on the first two arguments that it is called with.
    """
    kind = None
    for attribute, cls in chain:
        calls = _calls(cls).get(attribute, set())
        call = next(iter(calls)) if len(calls) == 1 else Call(None)
        kind = call.kind or kind
        if not call.given:
            break
    return kind


def made_by(cls: type, attribute: str) -> set[str]:
    """The attributes of a class with which it makes different queries and keys before it calls the attention that it
    holds under this name."""
    return {part for call in _calls(cls).get(attribute, ()) for part in call.made_by}


def _methods(cls: type) -> Iterator[Callable]:
    """The functions of a class, those that it inherits from anything but nn.Module, too."""
    seen = set()
    for base in cls.__mro__:
        if base in nn.Module.__mro__:
            return
        for name, value in vars(base).items():
            value = inspect.unwrap(value.__func__ if isinstance(value, (staticmethod, classmethod)) else value)
            if inspect.isfunction(value) and name not in seen:
                seen.add(name)
                yield value


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _has_operator(code: CodeType) -> bool:
    """Whether there is a matrix product written with @."""
    return any(step.opname == "BINARY_OP" and step.argrepr == "@" for step in dis.get_instructions(code))


@cache
def _calls(cls: type) -> dict[str, set[Call]]:
    """attribute -> its calls, those with queries and keys."""
    found: dict[str, set[Call]] = {}
    for method in _methods(cls):
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(method))).body[0]
        except (OSError, TypeError, SyntaxError, IndexError, TokenError):  # typed in a shell, compiled, ...
            continue
        if isinstance(tree, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for attribute, call in _Reading(tree).calls:
                found.setdefault(attribute, set()).add(call)
    return found


class _Reading:
    """One method, read from top to bottom: what each name stands for, and which arguments it depends on."""

    def __init__(self, tree: ast.FunctionDef | ast.AsyncFunctionDef):
        every = [*tree.args.posonlyargs, *tree.args.args, *tree.args.kwonlyargs]
        self.me = every[0].arg if every else ""
        self.first_two = [frozenset([a.arg]) for a in every[1:3]] if tree.name == "forward" else []
        # name -> (what it stands for, the arguments in it); equal values are equal strings
        self.known = {a.arg: (a.arg, frozenset([a.arg])) for a in every[1:]}
        self.numbers: dict[str, str] = {}
        self.makers: dict[str, ast.expr | None] = {}  # name -> what was called to make it
        self.calls: list[tuple[str, Call]] = []
        self._block(tree.body, sure=True)

    def _block(self, body: list[ast.stmt], sure: bool) -> None:
        for statement in body:
            inner = [part for field in ("body", "orelse", "finalbody") for part in getattr(statement, field, [])]
            inner += [part for handler in getattr(statement, "handlers", []) for part in handler.body]
            if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                continue
            for node in self._expressions(statement, inner):
                self._call(node)
            if isinstance(statement, ast.Assign):
                for target in statement.targets:
                    self._assign(target, statement.value, sure)
            elif isinstance(statement, (ast.AnnAssign, ast.AugAssign)) and statement.value is not None:
                self._assign(statement.target, statement.value, sure and isinstance(statement, ast.AnnAssign))
            elif isinstance(statement, (ast.For, ast.AsyncFor)):
                self._assign(statement.target, statement.iter, False)
            self._block(inner, sure and isinstance(statement, (ast.With, ast.AsyncWith)))

    @staticmethod
    def _expressions(statement: ast.stmt, inner: list[ast.stmt]) -> Iterator[ast.AST]:
        """The nodes of a statement without those of the statements within it."""
        todo: list[ast.AST] = [statement]
        while todo:
            node = todo.pop()
            yield node
            todo += [child for child in ast.iter_child_nodes(node) if child not in inner]

    def _assign(self, target: ast.expr, value: ast.expr, sure: bool) -> None:
        if isinstance(target, (ast.Tuple, ast.List)):
            parts = value.elts if isinstance(value, (ast.Tuple, ast.List)) else []
            for i, part in enumerate(target.elts):
                alike = len(parts) == len(target.elts)
                self._assign(part, parts[i] if alike else ast.Subscript(value, ast.Constant(i), ast.Load()), sure)
        elif isinstance(target, ast.Name):
            old = self.known.get(target.id)
            meaning, depends = self._meaning(value), self._depends(value)
            if not sure and old is not None:  # perhaps not run: it may be either
                meaning, depends = f"{target.id}#{len(self.numbers)}", depends | old[1]
                self.numbers[meaning] = meaning
            self.known[target.id] = meaning, depends
            self.makers[target.id] = self._maker(value)

    def _meaning(self, value: ast.expr) -> str:
        """A short name for what an expression stands for, the same for the same expression of the same values."""
        if isinstance(value, ast.Name):
            return self.known.get(value.id, (value.id,))[0]
        named = ast.parse(ast.unparse(value), mode="eval")
        for node in ast.walk(named):
            if isinstance(node, ast.Name):
                node.id = self.known.get(node.id, (node.id,))[0]
        return self.numbers.setdefault(ast.dump(named), f"#{len(self.numbers)}")

    def _maker(self, value: ast.expr) -> ast.expr | None:
        """The part of the module, self.part or self.part[...], whose output an expression is; None of any other."""
        if isinstance(value, ast.Name):
            return self.makers.get(value.id)
        return value.func if isinstance(value, ast.Call) and self._attribute(value.func) else None

    def _attribute(self, node: ast.expr | None) -> str | None:
        """part of self.part and of self.part[...]."""
        node = node.value if isinstance(node, ast.Subscript) else node
        mine = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == self.me
        return node.attr if mine else None

    def _depends(self, node: ast.AST) -> frozenset[str]:
        if isinstance(node, ast.Name):
            return self.known.get(node.id, ("", frozenset()))[1]
        if isinstance(node, ast.Attribute) and node.attr in _OF_ITS_FORM:
            return frozenset()
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "len":
            return frozenset()
        return frozenset().union(*map(self._depends, ast.iter_child_nodes(node)))

    def _call(self, node: ast.AST) -> None:
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and self._attribute(node.func)):
            return
        given = dict(zip(("query", "key"), node.args)) | {k.arg: k.value for k in node.keywords if k.arg}
        if "query" in given and "key" in given and not any(isinstance(a, ast.Starred) for a in node.args):
            self.calls.append((node.func.attr, self._read(given["query"], given["key"])))

    def _read(self, query: ast.expr, key: ast.expr) -> Call:
        if self._meaning(query) == self._meaning(key):
            return Call("self")
        asking, asked = self._depends(query), self._depends(key)
        if asking & asked or not asked:
            makers = [self._maker(query), self._maker(key)]
            apart = all(makers) and ast.dump(makers[0]) != ast.dump(makers[1])
            return Call(None, made_by=tuple(map(self._attribute, makers)) if apart else ())
        if not asking:
            return Call("pooling")
        unsaid = any(map(_PASSED_ON.fullmatch, asking | asked))
        return Call(None if unsaid else "cross", [asking, asked] == self.first_two)
