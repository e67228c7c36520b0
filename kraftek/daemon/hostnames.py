"""Host names, looked up so that a name server that hangs delays nobody for longer than it does.

The system's look-up is a call that blocks, for half a minute with a name server that does not answer. Twisted makes it
in its pool of ten threads: with all of them waiting nothing is looked up any more, also when the name server is back,
and the process cannot end before they do. Installed on the daemon's reactor by :mod:`kraftek.daemon.tap`.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from threading import Thread
from typing import Any

from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IAddress, IDelayedCall, IHostnameResolver, IHostResolution, IResolutionReceiver
from zope.interface import implementer

__all__ = ["HostnameResolver"]

_PATIENCE = 1.0
"""Seconds that one look-up is waited for. Then the last answer does, and who asks next asks anew."""

_THREADS = 64
"""Look-ups of one name under way. The system gives up after half a minute, and one begins per second."""

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
        """What does not wait for an answer any more can ignore it."""


class _LookUp:
    """One call of ``getaddrinfo``, and who waits for it."""

    patience: IDelayedCall

    def __init__(self) -> None:
        self.waiting: list[IResolutionReceiver] = []
        self.fresh = True

    def answer(self, addresses: _Answer) -> None:
        waiting, self.waiting = self.waiting, []
        for receiver in waiting:
            _tell(receiver, addresses)


@implementer(IHostnameResolver)
class HostnameResolver:
    """Looks names up by the system's own rules, each look-up in a thread that nothing waits for.

    Those who ask for the same name within a second share a look-up. Whichever answers first answers all of them. A name
    server that hangs or fails, and so cannot say whether the last answer still holds, does not take it away.

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
            _tell(resolutionReceiver, _addresses(socket.getaddrinfo(*question, 0, socket.AI_NUMERICHOST)))
        else:
            self._join(question, resolutionReceiver)
        return resolution

    def _join(self, question: _Question, receiver: IResolutionReceiver) -> None:
        under_way = self._under_way.setdefault(question, [])
        hangs = bool(under_way) and not under_way[0].fresh
        if not under_way or (not under_way[-1].fresh and len(under_way) < _THREADS):
            look_up = _LookUp()
            under_way.append(look_up)
            look_up.patience = self._reactor.callLater(_PATIENCE, self._impatient, question, look_up)
            Thread(target=self._ask, args=(question, look_up), name=f"look up {question[0]}", daemon=True).start()
        if hangs and self._known.get(question):
            _tell(receiver, self._known[question])
        else:
            under_way[-1].waiting.append(receiver)

    def _ask(self, question: _Question, look_up: _LookUp) -> None:
        """On a thread of its own."""
        try:
            addresses: _Answer | None = _addresses(self._look_up(*question))
        except socket.gaierror as error:
            addresses = None if error.errno == socket.EAI_AGAIN else ()
        except (OSError, UnicodeError):
            addresses = ()
        self._reactor.callFromThread(self._answered, question, look_up, addresses)

    def _answered(self, question: _Question, look_up: _LookUp, addresses: _Answer | None) -> None:
        """``addresses``: none where there is no such name, ``None`` where nobody knows."""
        under_way = self._under_way[question]
        under_way.remove(look_up)
        if look_up.fresh:
            look_up.patience.cancel()
        if not under_way:
            del self._under_way[question]
        if addresses is None:
            look_up.answer(self._known.get(question, ()))
            return
        self._known[question] = addresses
        for each in (look_up, *under_way):
            each.answer(addresses)

    def _impatient(self, question: _Question, look_up: _LookUp) -> None:
        look_up.fresh = False
        if self._known.get(question):
            look_up.answer(self._known[question])


def _addresses(found: Sequence[tuple[Any, ...]]) -> _Answer:
    kinds = {socket.AF_INET: IPv4Address, socket.AF_INET6: IPv6Address}
    protocols = {number: name for name, number in _SOCKETS.items()}
    return [kinds[family](protocols[kind], *where) for family, kind, _, _, where in found if family in kinds]


def _tell(receiver: IResolutionReceiver, addresses: _Answer) -> None:
    for address in addresses:
        receiver.addressResolved(address)
    receiver.resolutionComplete()
