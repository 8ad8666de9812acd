"""With which tokens a class calls nn.MultiheadAttention, which does not know, by the class's source. Only read, never
run; where there is no source, or it does something that is not followed here, nothing is said.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterable
from contextlib import suppress
from tokenize import TokenError

from torch import nn

from mimetic.adapters.code import kept_by_class, methods
from mimetic.adapters.reading import ANY, Call, Part, Reading

UNSAID = "unsaid"


def tokens_of_call(chain: Iterable[tuple[str, nn.Module]]) -> str | None:
    """What an attention layer is called with: "self" (queries and keys are the same expression), "cross" (they come
    from different arguments, or keys from what a module holds), "pooling" (queries come from what a module holds:
    parameters, buffers, embeddings), UNSAID where they are different expressions and nothing says more, or None where
    no call is seen.

    Args:
        chain: (path, module that holds under it what comes before), from the layer outwards. The next one is asked
            where a class passes on arguments that it is called with.
    """
    kind, said, optional = None, True, False
    for path, module in chain:
        row = type(module).forward is nn.Sequential.forward
        call = Call(alone=True) if row else _call_at(type(module), path)
        if not all(_holds(module, name) for name in call.holds):
            said = False
            break
        if call.alone:  # what may be given is not
            return "self" if optional else kind
        if call.apart and all(_is_norm(getattr(module, name, None)) for name in call.apart):
            return "self"
        kind, said = call.kind or kind, said and not call.unsaid
        optional |= call.optional
        if not (call.given or call.optional):
            break
    return kind or (None if said else UNSAID)


def _call_at(cls: type, path: str) -> Call:
    """The call of what a class holds under a path (a part, or a place in a list of parts), by its own code."""
    attribute, *places = path.split(".")
    found = _calls(cls)
    keys = (attribute, places[-1] if places else None), (attribute, None), (ANY, None)
    calls = next((found[key] for key in keys if key in found), {Call()})
    if len(calls) == 1:
        return next(iter(calls))
    kinds = {call.kind for call in calls}
    if len(kinds) == 1 and None not in kinds:
        return Call(kinds.pop())
    # now one, now the other: the caller decides, if all that is not self-attention is in its hand
    optional = all(call.kind == "self" or call.given or call.optional for call in calls)
    return Call(optional=optional, unsaid=any(call.unsaid for call in calls) or kinds != {None})


def _is_norm(part: object) -> bool:
    """Whether a part of a module is a norm, or a list of norms."""
    parts = list(part) if isinstance(part, nn.ModuleList) else [part]
    return all("norm" in type(m).__name__.lower() for m in parts)


def _holds(module: nn.Module, name: str) -> bool:
    """Whether an attribute of a module is a part of it, or a number, and no tokens that it keeps."""
    parts = (module._parameters, module._buffers, module._modules)
    return any(name in part for part in parts) or isinstance(vars(module).get(name), (int, float))


def made_by(cls: type, attribute: str) -> set[str]:
    """The attributes of a class with which it makes different queries and keys before it calls the attention that it
    holds under this name."""
    every = [call for (part, _), calls in _calls(cls).items() if part == attribute for call in calls]
    return {part for call in every for part in call.made_by}


# what comes of a source that is not there, was changed since, or is too deep
_UNREADABLE = (OSError, TypeError, ValueError, IndexError, TokenError, SyntaxError, RecursionError)


@kept_by_class
def _calls(cls: type) -> dict[Part, set[Call]]:
    """Part -> its calls."""
    found: dict[Part, set[Call]] = {}
    for method in methods(cls):
        try:
            source = inspect.getsource(method)
            # dedent fails where a comment or a string begins in the first column
            tree = ast.parse(f"if 1:\n{source}").body[0].body[0] if source[:1].isspace() else ast.parse(source).body[0]
        except _UNREADABLE:
            continue
        # another name: the file was changed since
        if isinstance(tree, (ast.FunctionDef, ast.AsyncFunctionDef)) and tree.name == method.__code__.co_name:
            with suppress(RecursionError):  # an expression of a thousand terms
                for part, call in Reading(tree).calls:
                    found.setdefault(part, set()).add(call)
    return found
