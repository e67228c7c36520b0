"""Looks host names up in such a way that a name server that hangs delays only those who ask for that name.

The system's look-up blocks its thread, for half a minute if the name server does not answer. Twisted calls it in its
pool of ten threads: while all of them wait nothing else is looked up, even if the name server is back, and the process
cannot end before they do. Installed on the daemon's reactor by :mod:`kraftek.daemon.tap`.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from functools import partial
from threading import Thread
from typing import Any

from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IAddress, IDelayedCall, IHostnameResolver, IHostResolution, IResolutionReceiver
from zope.interface import implementer

__all__ = ["HostnameResolver"]

_TIMEOUT = 1.0
"""Seconds to wait for one look-up. Then the last answer is used, and the next caller starts another look-up."""

_THREADS = 64
"""Look-ups of one name at a time. The system gives up after half a minute, and one begins per second."""

_FAMILIES = {IPv4Address: socket.AF_INET, IPv6Address: socket.AF_INET6}
_SOCKETS = {"TCP": socket.SOCK_STREAM, "UDP": socket.SOCK_DGRAM}

_Question = tuple[str, int, int, int]
"""Name, port, address family and kind of socket, as ``getaddrinfo`` takes them."""

_Answer = Sequence[IAddress]


@implementer(IHostResolution)
class _Resolution:
    def __init__(self, name: str) -> None:
        self.name = name

    def cancel(self) -> None:
        """Nothing to do: a receiver that no longer waits can ignore the answer."""


class _LookUp:
    """One call of ``getaddrinfo``, and its receivers."""

    timeout: IDelayedCall

    def __init__(self) -> None:
        self.waiting: list[IResolutionReceiver] = []
        self.fresh = True

    def answer(self, addresses: _Answer) -> None:
        waiting, self.waiting = self.waiting, []
        for receiver in waiting:
            _answer(receiver, addresses)


@implementer(IHostnameResolver)
class HostnameResolver:
    """Looks names up by the system's own rules, each in a thread that the process does not wait for.

    Callers that ask for the same name within a second share a look-up. The first answer answers all of them. If the
    name server hangs or fails, the last answer is used again.

    ``reactor``: an ``IReactorTime`` and ``IReactorFromThreads``. ``look_up``: like ``socket.getaddrinfo``.
    """

    def __init__(self, reactor: Any, look_up: Callable[..., Any] | None = None) -> None:
        self._reactor = reactor
        self._look_up = look_up or socket.getaddrinfo
        self._under_way: dict[_Question, list[_LookUp]] = {}
        self._known: dict[_Question, _Answer] = {}

    def resolveHostName(
        self,
        resolutionReceiver: IResolutionReceiver,
        hostName: str,
        portNumber: int = 0,
        addressTypes: Sequence[type[IAddress]] | None = None,
        transportSemantics: str = "TCP",
    ) -> IHostResolution:
        resolution = _Resolution(hostName)
        resolutionReceiver.resolutionBegan(resolution)
        families = {_FAMILIES[kind] for kind in addressTypes or _FAMILIES}
        family = families.pop() if len(families) == 1 else socket.AF_UNSPEC
        question = hostName, portNumber, family, _SOCKETS[transportSemantics]
        if isIPAddress(hostName) or isIPv6Address(hostName):
            _answer(resolutionReceiver, _find(partial(socket.getaddrinfo, flags=socket.AI_NUMERICHOST), question) or ())
        else:
            self._join(question, resolutionReceiver)
        return resolution

    def _join(self, question: _Question, receiver: IResolutionReceiver) -> None:
        under_way = self._under_way.setdefault(question, [])
        hangs = bool(under_way) and not under_way[0].fresh
        if not under_way or (not under_way[-1].fresh and len(under_way) < _THREADS):
            look_up = _LookUp()
            under_way.append(look_up)
            look_up.timeout = self._reactor.callLater(_TIMEOUT, self._timed_out, question, look_up)
            Thread(target=self._ask, args=(question, look_up), name=f"look up {question[0]}", daemon=True).start()
        if hangs and self._known.get(question):
            _answer(receiver, self._known[question])
        else:
            under_way[-1].waiting.append(receiver)

    def _ask(self, question: _Question, look_up: _LookUp) -> None:
        """Runs in a thread of its own."""
        self._reactor.callFromThread(self._answered, question, look_up, _find(self._look_up, question))

    def _answered(self, question: _Question, look_up: _LookUp, addresses: _Answer | None) -> None:
        under_way = self._under_way.get(question, [])
        if look_up not in under_way:
            return  # a newer one has answered
        if look_up.fresh:
            look_up.timeout.cancel()
        if addresses is None:
            under_way.remove(look_up)
            look_up.answer(self._known.get(question, ()))
        else:
            self._known[question] = addresses
            for each in under_way:
                each.answer(addresses)
            del under_way[: under_way.index(look_up) + 1]
        if not under_way:
            del self._under_way[question]

    def _timed_out(self, question: _Question, look_up: _LookUp) -> None:
        look_up.fresh = False
        if self._known.get(question):
            look_up.answer(self._known[question])


def _find(look_up: Callable[..., Any], question: _Question) -> _Answer | None:
    """Empty when there is no such name, ``None`` when the name server failed."""
    try:
        found = look_up(*question)
    except socket.gaierror as error:
        return None if error.errno == socket.EAI_AGAIN else ()
    except (OSError, UnicodeError):
        return ()
    kinds = {socket.AF_INET: IPv4Address, socket.AF_INET6: IPv6Address}
    protocols = {number: name for name, number in _SOCKETS.items()}
    return [kinds[family](protocols[kind], *where) for family, kind, _, _, where in found if family in kinds]


def _answer(receiver: IResolutionReceiver, addresses: _Answer) -> None:
    for address in addresses:
        receiver.addressResolved(address)
    receiver.resolutionComplete()
