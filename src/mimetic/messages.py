"""What error messages of all parts have in common; imports nothing, so that every module can."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

STOPPED = "stopped; a stored run goes on from its last checkpoint with the same command"  # after Ctrl-C


def check_whole(name: str, value: Any, least: int = 1, otherwise: str = "") -> None:
    """Raise ValueError, naming the setting, unless its value is a whole number of at least ``least``; otherwise: what
    else it may be, for the message.

    True and False are none: as a size they are a mistake.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}{otherwise}, not {value!r}")


def check_choice(name: str, value: Any, choices: Iterable[Any]) -> None:
    """Raise ValueError, naming the setting and what it may be, unless its value is one of the choices."""
    choices = list(choices)
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(str, choices))}, not {value!r}")


def one_line(error: BaseException, most: int = 300) -> str:
    """An exception's message as one line of at most so many characters; its type where it has no message."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else text[: most - 3] + "..."
