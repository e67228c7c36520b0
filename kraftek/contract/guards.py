"""Whether the inside of a library is what a short cut through it was written for.

Asked once, by whoever is about to take the short cut: :mod:`kraftek.fastpath` and
:mod:`kraftek.edge.websocket.autobahn_internals`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import signature
from types import ModuleType
from typing import Any

__all__ = ["UnexpectedError", "expect_names", "expect_parameters", "expect_private_names", "expect_values", "usable"]


class UnexpectedError(Exception):
    """A library is not what was expected. The text names what differs."""


def expect_names(owner: object, *names: str) -> None:
    """Raises :class:`UnexpectedError` unless ``owner``, a class, module or instance, has all these attributes."""
    for name in names:
        if not hasattr(owner, name):
            raise UnexpectedError(f"{_named(owner)} has no {name}")


def expect_parameters(function: Callable[..., Any], *names: str) -> None:
    """Raises :class:`UnexpectedError` unless these are the parameters of ``function``, in this order."""
    found = tuple(signature(function).parameters)
    if found != names:
        raise UnexpectedError(f"{_named(function)} takes ({', '.join(found)}), not ({', '.join(names)})")


def expect_private_names(function: Any, *names: str) -> None:
    """Raises :class:`UnexpectedError` unless these are the private names that ``function`` uses: what stands in its
    place was written for them.
    """
    found = sorted({name for name in function.__code__.co_names if name.startswith("_")})
    if found != sorted(names):
        raise UnexpectedError(f"{_named(function)} uses {', '.join(found) or 'none'}, not {', '.join(sorted(names))}")


def expect_values(owner: object, values: Mapping[str, object]) -> None:
    """Raises :class:`UnexpectedError` unless ``owner`` has these attributes with these values."""
    expect_names(owner, *values)
    for name, value in values.items():
        found = getattr(owner, name)
        if type(found) is not type(value) or found != value:
            raise UnexpectedError(f"{name} of {_named(owner)} is {found!r}, not {value!r}")


def usable(part: str, check: Callable[[], None], warn: Callable[..., None]) -> bool:
    """Whether ``check`` passes. Otherwise one line to ``warn`` names the part, and what was not as expected.

    A library that fails in the middle of a check, with whatever exception, is not what was expected either.
    """
    try:
        check()
    except Exception as error:  # noqa: BLE001  # a library of another version may raise anything
        why = str(error) if isinstance(error, UnexpectedError) else f"{type(error).__name__}: {error}"
        warn("The fast path goes without {part}: {why}. The gateway works the same, slower.", part=part, why=why)
        return False
    return True


def _named(thing: Any) -> str:
    if isinstance(thing, type | ModuleType):
        return thing.__name__
    return str(getattr(thing, "__qualname__", type(thing).__name__))
