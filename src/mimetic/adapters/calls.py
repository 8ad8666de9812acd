"""What a class's code says of attention, where names leave it open: whether it attends itself, and with which tokens it
calls nn.MultiheadAttention, which does not know. Only read, never run; where there is no source, or it does something
that is not followed here, nothing is said.
"""

from __future__ import annotations

import ast
import copy
import dis
import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import wraps
from itertools import count, pairwise
from tokenize import TokenError
from types import CodeType
from typing import NamedTuple
from weakref import WeakKeyDictionary

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


def _kept(function: Callable) -> Callable:
    """functools.cache by class, which lets go of a class, and what its functions close over, with its last user."""
    kept = WeakKeyDictionary()

    @wraps(function)
    def of(cls: type, *args):
        found = kept.setdefault(cls, {})
        if args not in found:
            found[args] = function(cls, *args)
        return found[args]

    return of


@_kept
def attends(cls: type, spelt_out: bool = True) -> bool:
    """Whether one of a class's own methods calls a library's attention function or (spelt_out), which is less sure,
    has a softmax, two matrix products and a transposed factor."""
    for code in (method.__code__ for method in _methods(cls)):
        names = set(_names(code))
        if any(map(_ATTENDS.fullmatch, names)):
            return True
        if spelt_out and "softmax" in names and names & _TRANSPOSES and _products(code) > 1:
            return True
    return False


@_kept
def reads(cls: type, attribute: str) -> bool:
    """Whether forward, or a method that it calls, uses what is in an attribute of this name; torch's own are not
    asked."""
    methods = {m.__name__: m for m in _methods(cls)}
    todo, run = ["forward"], set()
    while todo:
        if (name := todo.pop()) in methods and name not in run:
            run.add(name)
            todo += _names(methods[name].__code__)
    return any(library(methods[name]) != "torch" and _uses(methods[name].__code__, attribute) for name in run)


def _uses(code: CodeType, attribute: str) -> bool:
    steps = pairwise(dis.get_instructions(code))
    return any(a.argval == attribute and b.argval not in _OF_ITS_FORM for a, b in steps) or any(
        _uses(c, attribute) for c in code.co_consts if isinstance(c, CodeType)
    )


class Call(NamedTuple):
    """With which tokens attention is called."""

    kind: str | None
    given: bool = False  # queries and keys are the first two arguments of forward: whoever calls that decides
    made_by: tuple[str, ...] = ()  # the attributes that made queries and keys, where they are two different parts
    holds: frozenset[str] = frozenset()  # the attributes that stand for tokens: learned ones, if the module holds them


def tokens_of_call(chain: Iterable[tuple[str, nn.Module]]) -> str | None:
    """What an attention layer is called with: "self" (queries and keys are the same expression), "cross" (they come
    from different arguments, or keys from what a module holds), "pooling" (queries come from what a module holds:
    parameters, buffers, embeddings), or None where the code does not say, or says several.

    Args:
        chain: (attribute, module that holds under it what comes before), from the layer outwards. The next one is asked
            where a class passes on the first two arguments that it is called with.
    """
    kind = None
    for attribute, module in chain:
        calls = _calls(type(module)).get(attribute, set())
        call = next(iter(calls)) if len(calls) == 1 else Call(None)
        if not all(_holds(module, name) for name in call.holds):
            return kind
        kind = call.kind or kind
        if not call.given:
            break
    return kind


def _holds(module: nn.Module, name: str) -> bool:
    """Whether an attribute of a module is a part of it, or a number, and no tokens that it keeps."""
    parts = (module._parameters, module._buffers, module._modules)
    return any(name in part for part in parts) or isinstance(vars(module).get(name), (int, float))


def made_by(cls: type, attribute: str) -> set[str]:
    """The attributes of a class with which it makes different queries and keys before it calls the attention that it
    holds under this name."""
    return {part for call in _calls(cls).get(attribute, ()) for part in call.made_by}


def _methods(cls: type) -> Iterator[Callable]:
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


def _products(code: CodeType) -> int:
    """How many matrix products are written in a method."""
    own = sum(
        step.argval in _MULTIPLIES or (step.opname == "BINARY_OP" and step.argrepr == "@")
        for step in dis.get_instructions(code)
    )
    return own + sum(_products(c) for c in code.co_consts if isinstance(c, CodeType))


# what comes of a source that is not there, was changed since, or is too deep
_UNREADABLE = (OSError, TypeError, ValueError, IndexError, TokenError, SyntaxError, RecursionError)


@_kept
def _calls(cls: type) -> dict[str, set[Call]]:
    """attribute -> its calls, those with queries and keys."""
    found: dict[str, set[Call]] = {}
    for method in _methods(cls):
        try:
            source = inspect.getsource(method)
            # dedent fails where a comment or a string begins in the first column
            tree = ast.parse(f"if 1:\n{source}").body[0].body[0] if source[:1].isspace() else ast.parse(source).body[0]
        except _UNREADABLE:
            continue
        # another name: the file was changed since
        if isinstance(tree, (ast.FunctionDef, ast.AsyncFunctionDef)) and tree.name == method.__code__.co_name:
            with suppress(RecursionError):  # an expression of a thousand terms
                for attribute, call in _Reading(tree).calls:
                    found.setdefault(attribute, set()).add(call)
    return found


_UNTOLD = "?"


def _untold(tree: ast.AST) -> Iterator[str]:
    """What a method binds or changes otherwise than by an assignment to a name, which is all that is followed."""
    own = [*tree.args.posonlyargs, *tree.args.args, *tree.args.kwonlyargs]
    names = {a.arg for a in own[1:]}  # and not self, torch, ...
    names |= {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    for node in ast.walk(tree):
        targets = []
        if isinstance(node, (ast.NamedExpr, ast.comprehension)):
            targets = [node.target]
        elif isinstance(node, ast.withitem):
            targets = [node.optional_vars] if node.optional_vars else []
        elif isinstance(node, (ast.Attribute, ast.Subscript)) and isinstance(node.ctx, ast.Store):
            targets = [node] if isinstance(node, ast.Attribute) else [node.value]
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):  # called for what it changes
            targets = [node.value.func.value] if isinstance(node.value.func, ast.Attribute) else []
        elif isinstance(node, ast.arg) and node not in own:  # *args, or of an inner function
            yield node.arg
        elif isinstance(node, (ast.MatchAs, ast.MatchStar, ast.ExceptHandler)) or (
            node is not tree and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
        ):
            yield from [node.name] if node.name else []
        elif isinstance(node, (ast.Global, ast.Nonlocal)):
            yield from node.names
        for target in targets:
            while isinstance(target, ast.Subscript):
                target = target.value
            yield from (ast.unparse(t) for t in ast.walk(target) if isinstance(t, ast.Attribute))
            if not isinstance(target, ast.Attribute):
                yield from (t.id for t in ast.walk(target) if isinstance(t, ast.Name) and t.id in names)


class _Reading:
    """One method, read from top to bottom: what each name stands for, and which arguments it depends on."""

    def __init__(self, tree: ast.FunctionDef | ast.AsyncFunctionDef):
        every = [*tree.args.posonlyargs, *tree.args.args, *tree.args.kwonlyargs]
        self.me = every[0].arg if every else ""
        self.first_two = [frozenset([a.arg]) for a in every[1:3]] if tree.name == "forward" else []
        # name -> (what it stands for, the arguments in it); equal values are equal strings
        self.known = {a.arg: (a.arg, frozenset([a.arg])) for a in every[1:]}
        self.untold = set(_untold(tree))
        self.numbers: dict[str, str] = {}
        self.versions = count()
        # name -> what was called to make it, and with what
        self.makers: dict[str, tuple[ast.expr, list[str]] | None] = {}
        self.calls: list[tuple[str, Call]] = []
        self._block(tree.body, sure=True)

    def _block(self, body: list[ast.stmt], sure: bool) -> None:
        for statement in body:
            inner = [part for field in ("body", "orelse", "finalbody") for part in getattr(statement, field, [])]
            inner += [part for field in ("handlers", "cases") for h in getattr(statement, field, []) for part in h.body]
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
        elif isinstance(target, ast.Name) and target.id not in self.untold:
            old = self.known.get(target.id)
            meaning, depends = self._meaning(value), self._depends(value)
            if not sure and old is not None:  # perhaps not run: it may be either
                meaning, depends = f"{target.id}#{next(self.versions)}", depends | old[1]
            self.known[target.id] = meaning, depends
            self.makers[target.id] = self._maker(value) if sure else None

    def _meaning(self, value: ast.expr) -> str:
        """A short name for what an expression stands for, the same for the same expression of the same values."""
        if isinstance(value, ast.Name):
            return self.known.get(value.id, (value.id,))[0]
        named = copy.deepcopy(value)
        for node in ast.walk(named):
            if isinstance(node, ast.Name):
                node.id = self.known.get(node.id, (node.id,))[0]
        return self.numbers.setdefault(ast.dump(named), f"#{len(self.numbers)}")

    def _maker(self, value: ast.expr) -> tuple[ast.expr, list[str]] | None:
        """The part of the module, self.part or self.part[...], whose output an expression is, and what that part was
        called with; None of any other."""
        if isinstance(value, ast.Name):
            return self.makers.get(value.id)
        mine = isinstance(value, ast.Call) and self._attribute(value.func)
        return (value.func, list(map(self._meaning, value.args))) if mine else None

    def _attribute(self, node: ast.expr | None) -> str | None:
        """part of self.part and of self.part[...]."""
        node = node.value if isinstance(node, ast.Subscript) else node
        mine = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == self.me
        return node.attr if mine else None

    def _depends(self, node: ast.AST) -> frozenset[str]:
        """The arguments, and as self.name the module's own attributes, that an expression is made of."""
        if isinstance(node, (ast.Name, ast.Attribute)) and ast.unparse(node) in self.untold:
            return frozenset([_UNTOLD])
        if isinstance(node, ast.Name):
            return self.known.get(node.id, ("", frozenset()))[1]
        if isinstance(node, ast.Attribute) and node.attr in _OF_ITS_FORM:
            return frozenset()
        if isinstance(node, ast.Attribute) and (mine := self._attribute(node)):
            return frozenset([f"self.{mine}"])
        parts = list(ast.iter_child_nodes(node))
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id == "len":
                return frozenset()
            if self._attribute(node.func):  # a part of the module, or a method: what it gives is made of what it gets
                parts.remove(node.func)
                if not parts:
                    return frozenset([_UNTOLD])
        return frozenset().union(*map(self._depends, parts))

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
        if _UNTOLD in asking | asked:
            return Call(None)
        own = frozenset(name for name in asking | asked if name.startswith("self."))
        holds = frozenset(name.removeprefix("self.") for name in (asking if asking <= own else asked) & own)
        asking, asked = asking - own, asked - own
        if asking & asked or not (asking or asked):
            (a, of_a), (b, of_b) = (self._maker(query) or (None, None), self._maker(key) or (None, None))
            apart = a and b and of_a == of_b and ast.dump(a) != ast.dump(b)
            return Call(None, made_by=(self._attribute(a), self._attribute(b)) if apart else ())
        if not (asking and asked):
            return Call(("cross" if asking else "pooling") if holds else None, holds=holds)
        unsaid = any(map(_PASSED_ON.fullmatch, asking | asked))
        return Call(None if unsaid else "cross", [asking, asked] == self.first_two)
