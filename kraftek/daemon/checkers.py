"""Who says what clients may do, by ``auth.check``. Made by :mod:`kraftek.daemon.lifecycle`."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from functools import reduce
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any

from msgspec.structs import replace
from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger

from kraftek.contract.errors import ConfigError
from kraftek.contract.interfaces import IAccess, IAccessChecker, IBus
from kraftek.contract.metrics import Counters
from kraftek.contract.settings import Config
from kraftek.core.access.cache import AccessCache
from kraftek.core.access.not_before import NotBefore
from kraftek.core.access.open import OpenAccess
from kraftek.edge.auth_service import HttpChecker
from kraftek.edge.chained_checker import ChainedChecker
from kraftek.edge.jwt_checker import JwtChecker
from kraftek.edge.own_checker import OwnChecker

__all__ = ["Checkers", "factories_of", "kind_of"]

_OWN = "python:"

_ASKING = "http"


def kind_of(check: str) -> tuple[str, ...]:
    """Who is asked, one after the other: ``open``, ``jwt``, ``python:MODULE:FACTORY``, or ``http`` for an auth service
    wherever it is. From one kind to another needs a restart.
    """
    return tuple(_ASKING if "://" in each else each for each in _parts(check))


def factories_of(check: str) -> list[Callable[[], object]]:
    """The factories that are named there, imported but not called. Raises :class:`ConfigError`."""
    return [_factory(each) for each in _parts(check) if each.startswith(_OWN)]


class Checkers:
    """The checkers that a configuration wants; ``access`` is what the core uses of them.

    Raises ``OSError`` or ``ValueError`` when a file of theirs cannot be used, and :class:`ConfigError` when one of the
    user's own cannot be made.
    """

    _log = Logger()

    def __init__(self, reactor: Any, config: Config, bus: IBus, counters: Counters) -> None:
        self._auth_service: HttpChecker | None = None
        self._jwt: JwtChecker | None = None
        self._own: list[OwnChecker] = []
        self._not_before: NotBefore | None = None
        auth = config.auth
        self.access: IAccess
        if auth.check == "open":
            self._log.warn("auth is open: every token is let in, as the user it names. For development only.")
            self.access = OpenAccess(bus)
            return
        asked: list[IAccessChecker] = []
        for part in _parts(auth.check):
            if part == "jwt":
                # Before the access cache, so that it hears of each revocation first.
                self._not_before = NotBefore(bus, config.jwt, auth.cache_size, reactor)
                self._jwt = JwtChecker(reactor, auth, config.jwt, self._not_before)
                asked.append(self._jwt)
            elif part.startswith(_OWN):
                self._own.append(_own_checker(reactor, config, part))
                asked.append(self._own[-1])
            else:
                self._auth_service = HttpChecker(reactor, replace(auth, check=part))
                asked.append(self._auth_service)
        self.access = AccessCache(reduce(ChainedChecker, asked), bus, auth, reactor, counters)

    def reload(self, config: Config) -> Callable[[], None]:
        """What makes them go by this configuration, of the same kind, from now on. Raises as the constructor."""
        auth = config.auth
        uses = [own.reload(auth) for own in self._own]
        if self._jwt is not None:
            uses.append(self._jwt.reload(auth, config.jwt))
        if self._auth_service is not None:
            uses.append(self._auth_service.reload(replace(auth, check=_parts(auth.check)[-1])))

        def use() -> None:
            for each in uses:
                each()

        return use

    def sweep(self) -> None:
        """Do what is overdue. To be called several times a second."""
        if self._not_before is not None and self._jwt is not None:
            self._not_before.sweep()
            self._jwt.sweep()

    def close(self) -> Deferred[None]:
        """Ask nobody any more. Fires when no connection to the auth service is left."""
        if self._jwt is not None:
            self._jwt.close()
        return succeed(None) if self._auth_service is None else self._auth_service.close()


def _parts(check: str) -> list[str]:
    # A plus may stand in a URL.
    chain = re.fullmatch(r"(jwt|python:[\w.]+:[\w.]+)\+(.*)", check)
    return [check] if chain is None else [chain[1], chain[2]]


def _own_checker(reactor: Any, config: Config, name: str) -> OwnChecker:
    factory = _factory(name)
    source = b""
    with suppress(OSError, TypeError):
        source = Path(import_module(name.split(":")[1]).__file__ or "").read_bytes()
    try:
        checker = factory()
    except Exception as error:
        raise _mistake(name, "a factory that makes a checker without arguments", error) from error
    try:
        return OwnChecker(reactor, config.auth, checker, sha256(name.encode() + b"\0" + source).hexdigest()[:16])
    except ValueError as error:
        raise ConfigError([f"auth.check: {name}: expected it to make {error}"]) from None


def _factory(name: str) -> Callable[[], object]:
    _, module, path = name.split(":")
    try:
        found: Any = import_module(module)
    except Exception as error:
        raise _mistake(name, f"module {module} to be there", error) from error
    try:
        factory: Any = reduce(getattr, path.split("."), found)
    except AttributeError as error:
        raise _mistake(name, f"{path} in module {module}", error) from None
    if not callable(factory):
        raise ConfigError([f"auth.check: {name}: expected a function or class, found a {type(factory).__name__}"])
    return factory  # type: ignore[no-any-return]


def _mistake(name: str, expected: str, error: Exception) -> ConfigError:
    return ConfigError([f"auth.check: {name}: expected {expected}, found {type(error).__name__}: {error}"])
