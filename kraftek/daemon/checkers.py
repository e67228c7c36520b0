"""Who says what clients may do, by ``auth.check``. Made by :mod:`kraftek.daemon.lifecycle`."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any

from msgspec.structs import replace
from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger

from kraftek.contract.interfaces import IAccess, IAccessChecker, IBus
from kraftek.contract.metrics import Counters
from kraftek.contract.settings import Auth, Config
from kraftek.core.access.cache import AccessCache
from kraftek.core.access.not_before import NotBefore
from kraftek.core.access.open import OpenAccess
from kraftek.edge.auth_service import HttpChecker
from kraftek.edge.chained_checker import ChainedChecker
from kraftek.edge.jwt_checker import JwtChecker

__all__ = ["CheckKind", "Checkers", "kind_of"]


class CheckKind(Enum):
    """Who is asked. From one to another needs a restart."""

    OPEN = "nobody"
    ASKING = "the auth service"
    JWT = "the token"
    CHAINED = "the token, and then the auth service"


def kind_of(check: str) -> CheckKind:
    """What a value of ``auth.check`` stands for."""
    if check == "open":
        return CheckKind.OPEN
    if check == "jwt":
        return CheckKind.JWT
    return CheckKind.CHAINED if check.startswith("jwt+") else CheckKind.ASKING


class Checkers:
    """The checkers that a configuration wants; ``access`` is what the core uses of them.

    Raises ``OSError`` or ``ValueError`` when a file of theirs cannot be used.
    """

    _log = Logger()

    def __init__(self, reactor: Any, config: Config, bus: IBus, counters: Counters) -> None:
        self._auth_service: HttpChecker | None = None
        self._jwt: JwtChecker | None = None
        self._not_before: NotBefore | None = None
        auth, kind = config.auth, kind_of(config.auth.check)
        self.access: IAccess
        if kind is CheckKind.OPEN:
            self._log.warn("auth is open: every token is let in, as the user it names. For development only.")
            self.access = OpenAccess(bus)
            return
        if kind in {CheckKind.JWT, CheckKind.CHAINED}:
            # Before the access cache, so that it hears of each revocation first.
            self._not_before = NotBefore(bus, config.jwt, auth.cache_size, reactor)
            self._jwt = JwtChecker(reactor, auth, config.jwt, self._not_before)
        if kind in {CheckKind.ASKING, CheckKind.CHAINED}:
            self._auth_service = HttpChecker(reactor, _plain(auth))
        both: list[IAccessChecker] = [each for each in (self._jwt, self._auth_service) if each is not None]
        checker = both[0] if len(both) == 1 else ChainedChecker(*both)
        self.access = AccessCache(checker, bus, auth, reactor, counters)

    def reload(self, config: Config) -> Callable[[], None]:
        """What makes them go by this configuration, of the same kind, from now on. Raises as the constructor."""
        uses = [
            *([] if self._jwt is None else [self._jwt.reload(config.auth, config.jwt)]),
            *([] if self._auth_service is None else [self._auth_service.reload(_plain(config.auth))]),
        ]

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


def _plain(auth: Auth) -> Auth:
    """With the address of the auth service alone."""
    return replace(auth, check=auth.check.removeprefix("jwt+"))
