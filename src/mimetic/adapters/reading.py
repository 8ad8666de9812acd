"""What one method says of the calls in it: read from top to bottom as a syntax tree, never run."""

from __future__ import annotations

import ast
import copy
import re
from collections.abc import Iterator
from itertools import count
from typing import NamedTuple

from mimetic.adapters.code import OF_ITS_FORM

# a part of a module: its attribute, and the place in it where that is a list or a dictionary of parts
Part = tuple[str, str | None]
ANY = "*"  # the attribute that getattr(self, ...) asks for
# the parameters of a method that only passes on what it is given: what these are is said where it is called
_QUERY = re.compile(r"(.*_)?(q|quer(y|ies))(_.*)?", re.IGNORECASE)
_KEY = re.compile(r"(.*_)?(k|v|kv|keys?|values?)(_.*)?", re.IGNORECASE)
# what goes along with the tokens of a call
_BESIDE = re.compile(
    r".*(mask|bias|pos|cache|past|weight|causal|drop|rope|rotary|freq|size|shape|len|train|use_|return).*"
)


class Call(NamedTuple):
    """With which tokens attention, or what is around it, is called."""

    kind: str | None = None
    # queries and keys are the first two arguments of forward, or its first one and those behind a star: whoever calls
    # that decides
    given: bool = False
    # keys are made of the queries' argument and perhaps of a further one, context=None: whoever calls decides
    optional: bool = False
    alone: bool = False  # it is called with one argument and no keys
    unsaid: bool = False  # queries and keys are different expressions, and what they are is not known
    made_by: tuple[str, ...] = ()  # the attributes that made queries and keys, where they are two different parts
    holds: frozenset[str] = frozenset()  # the attributes that stand for tokens: learned ones, if the module holds them
    apart: frozenset[str] = frozenset()  # the attributes that queries or keys pass, else the same: "self" if norms


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


class Reading:
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
        # name -> what was called to make it, with what, and whether it is a piece of what that gave
        self.makers: dict[str, tuple[ast.expr, list[str], bool] | None] = {}
        self.parts: dict[str, Part] = {}  # name -> the part of the module that it stands for
        self.calls: list[tuple[Part, Call]] = []
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
                self._bind(statement.target, statement.iter)
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
            self.makers[target.id] = self._maker(value) if sure or old is None else None
            self.parts.pop(target.id, None)
            if not isinstance(value, ast.Call) and (part := self._part(value)):
                self.parts[target.id] = part

    def _meaning(self, value: ast.expr) -> str:
        """A short name for what an expression stands for, the same for the same expression of the same values."""
        if isinstance(value, ast.Name):
            return self.known.get(value.id, (value.id,))[0]
        named = copy.deepcopy(value)
        for node in ast.walk(named):
            if isinstance(node, ast.Name):
                node.id = self.known.get(node.id, (node.id,))[0]
        return self.numbers.setdefault(ast.dump(named), f"#{len(self.numbers)}")

    def _bind(self, target: ast.expr, source: ast.expr) -> None:
        """The names of a loop over parts of the module: for layer in self.layers, for norm, layer in self.blocks."""
        if isinstance(source, ast.Call):
            name = ast.unparse(source.func).split(".")[-1]
            inner = source.func.value if isinstance(source.func, ast.Attribute) else None
            targets = target.elts if isinstance(target, ast.Tuple) else [target]
            if name == "zip":
                for part, one in zip(targets, source.args):
                    self._bind(part, one)
            elif name in ("enumerate", "reversed") and source.args:
                self._bind(targets[-1], source.args[0])
            elif name in ("items", "values", "children") and inner is not None:
                self._bind(targets[-1], inner)
        elif (part := self._part(source)) and part[1] is None:
            for i, one in enumerate(target.elts if isinstance(target, ast.Tuple) else [target]):
                if isinstance(one, ast.Name):
                    self.parts[one.id] = part[0], str(i) if isinstance(target, ast.Tuple) else None

    def _part(self, node: ast.expr) -> Part | None:
        """The part of the module that an expression stands for: self.part, self.part[i], getattr(self, ...), or a name
        of one of these."""
        place = None
        while isinstance(node, ast.Subscript):
            place = place or (str(node.slice.value) if isinstance(node.slice, ast.Constant) else None)
            node = node.value
        if isinstance(node, ast.Name) and node.id in self.parts:
            attribute, own = self.parts[node.id]
            return attribute, place or own
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr" and node.args:
            return (ANY, None) if ast.unparse(node.args[0]) == self.me else None
        mine = self._attribute(node)
        return (mine, place) if mine else None

    def _maker(self, value: ast.expr) -> tuple[ast.expr, list[str], bool] | None:
        """The part of the module, self.part or self.part[...], whose output an expression is, perhaps with its form
        changed, what that part was called with, and whether the expression is a piece of the output's width; None of
        any other."""
        if isinstance(value, ast.Name):
            return self.makers.get(value.id)
        if isinstance(value, ast.Attribute) and value.attr in ("mT", "T"):
            return self._maker(value.value)
        if isinstance(value, ast.Subscript):  # q, k, v = ...
            found = self._maker(value.value) if isinstance(value.slice, ast.Constant) else None
            return found if found and found[2] else None
        if not isinstance(value, ast.Call):
            return None
        if self._attribute(value.func):
            return value.func, list(map(self._meaning, value.args)), False
        inputs = [value.func.value] if isinstance(value.func, ast.Attribute) else []
        if not inputs or ast.unparse(inputs[0]) not in self.known:  # torch.relu(x), rearrange(x, ...)
            inputs = [one for one in inputs if isinstance(one, (ast.Call, ast.Attribute, ast.Subscript))] or value.args
        found = self._maker(inputs[0]) if inputs else None
        cut = ast.unparse(value.func).split(".")[-1] in ("chunk", "split", "tensor_split")
        where = [*value.args[-1:], *(k.value for k in value.keywords if k.arg == "dim")][-1:]
        of_width = cut and any(ast.unparse(d) in ("-1", "2") for d in where)
        return (*found[:2], found[2] or of_width) if found and (of_width or not cut) else None

    def _without_part(self, value: ast.expr) -> tuple[str, str | None]:
        """What a part of the module was called with, alone, to make an expression, and that part's attribute; of
        another expression what it stands for."""
        made = self._maker(value)
        if made is None or made[2] or len(made[1]) != 1:
            return self._meaning(value), None
        return made[1][0], self._attribute(made[0])

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
        if isinstance(node, ast.Attribute) and node.attr in OF_ITS_FORM:
            return frozenset()
        if isinstance(node, ast.Attribute) and (mine := self._attribute(node)):
            return frozenset([f"self.{mine}"])
        parts = list(ast.iter_child_nodes(node))
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id == "len":
                return frozenset()
            if mine := self._attribute(node.func):  # a part of the module, or a method: made of what it gets
                parts.remove(node.func)
                if not parts:
                    return frozenset([_UNTOLD])
                # an embedding of numbers that come from nowhere is what the module holds
                return frozenset().union(*map(self._depends, parts)) or frozenset([f"self.{mine}"])
        return frozenset().union(*map(self._depends, parts))

    def _call(self, node: ast.AST) -> None:
        part = self._part(node.func) if isinstance(node, ast.Call) else None
        if part is None:
            return
        named = {k.arg: k.value for k in node.keywords if k.arg}
        if any(isinstance(a, ast.Starred) for a in node.args) or len(named) < len(node.keywords):  # *args, **kwargs
            first = node.args[:1]
            given = (
                bool(first)
                and not isinstance(first[0], ast.Starred)
                and [self._depends(first[0])] == self.first_two[:1]
            )
            self.calls.append((part, Call(given=given, unsaid=True)))
            return
        given = dict(zip(("query", "key"), node.args)) | named
        if "query" in given and "key" in given:
            self.calls.append((part, self._read(given["query"], given["key"])))
        elif node.args:
            others = [value for name, value in named.items() if not _BESIDE.fullmatch(name)]
            self.calls.append((part, self._read(node.args[0], others[0]) if others else Call(alone=True)))

    def _read(self, query: ast.expr, key: ast.expr) -> Call:
        if self._meaning(query) == self._meaning(key):
            return Call("self")
        asking, asked = self._depends(query), self._depends(key)
        if _UNTOLD in asking | asked:
            return Call(unsaid=True)
        own = frozenset(name for name in asking | asked if name.startswith("self."))
        holds = frozenset(name.removeprefix("self.") for name in (asking if asking <= own else asked) & own)
        asking, asked = asking - own, asked - own
        if asking & asked or not (asking or asked):
            a, b = self._maker(query), self._maker(key)
            apart = a and b and a[1] == b[1] and (ast.dump(a[0]) != ast.dump(b[0]) or (a[2] and b[2]))
            made = (self._attribute(a[0]), self._attribute(b[0])) if apart else ()
            (bare, a), (same, b) = self._without_part(query), self._without_part(key)
            passed = frozenset(filter(None, (a, b))) if bare == same else frozenset()
            optional = bool(self.first_two) and asking < asked
            return Call(optional=optional, unsaid=True, made_by=made, apart=passed)
        if not (asking and asked):
            return Call(("cross" if asking else "pooling") if holds else None, unsaid=not holds, holds=holds)
        unsaid = any(map(_QUERY.fullmatch, asking)) or any(map(_KEY.fullmatch, asked))
        return Call(None if unsaid else "cross", given=[asking, asked] == self.first_two, unsaid=unsaid)
