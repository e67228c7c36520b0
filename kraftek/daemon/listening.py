"""Where clients connect: Twisted's endpoint strings, and ``reuseport:`` for several processes on one port.

Called by :mod:`kraftek.daemon.lifecycle`, which has the strings from the configuration.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import OpenSSL.crypto
import OpenSSL.SSL
from twisted.internet.defer import Deferred, succeed
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError, VerifyError
from twisted.internet.interfaces import (
    IListeningPort,
    IOpenSSLContextFactory,
    IProtocolFactory,
    IStreamServerEndpoint,
)
from twisted.protocols.haproxy import proxyEndpoint
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from zope.interface import implementer

from kraftek.contract.errors import ConfigError

__all__ = ["Certificates", "is_shared", "server_endpoint"]

_BACKLOG = 4096
"""Connections that may wait to be accepted: Linux's own bound (``net.core.somaxconn``). Twisted's default is 50, and
when a gateway restarts under its clients they all come back within the same second."""


def is_shared(description: str) -> bool:
    """Whether its connections may wait for this process although others listen there, or systemd does: the kernel gives
    each of several listeners its part, whether it accepts or not.
    """
    return description.removeprefix("haproxy:").partition(":")[0] in {"reuseport", "systemd"}


class Certificates:
    """The keys and certificates of all endpoints ``ssl:``, by their strings: they can be read again."""

    def __init__(self) -> None:
        self._renewable: dict[str, _Renewable] = {}

    def add(self, description: str, factory: Any) -> _Renewable:
        """What an endpoint is to use in place of its own ``factory`` of contexts."""
        return self._renewable.setdefault(description, _Renewable(factory))

    def read(self, descriptions: Iterable[str]) -> Callable[[], None]:
        """Read those of these endpoints. What is returned has new connections use them, where one is listening.

        Raises ``ConfigError`` with all that is wrong.
        """
        found: dict[str, Any] = {}
        mistakes: list[str] = []
        for description in descriptions:
            if description.startswith("ssl:"):
                try:
                    found[description] = _named(description, lambda: _Keys.of(description))  # noqa: B023
                except ConfigError as error:
                    mistakes += error.mistakes
        if mistakes:
            raise ConfigError(mistakes)

        def use() -> None:
            for description in found.keys() & self._renewable.keys():
                self._renewable[description].factory = found[description]

        return use


@implementer(IOpenSSLContextFactory)
class _Renewable:
    """Makes the contexts of TLS for an endpoint, with what was read last."""

    def __init__(self, factory: Any) -> None:
        self.factory = factory

    def getContext(self) -> OpenSSL.SSL.Context:
        """Twisted asks for each connection."""
        context: OpenSSL.SSL.Context = self.factory.getContext()
        return context


class _Keys:
    """In place of a reactor: an endpoint that listens on it shows what it would use for TLS."""

    factory: Any = None

    @classmethod
    def of(cls, description: str) -> Any:
        """Read what an endpoint names."""
        keys: Any = cls()
        nobody: Any = None
        _parsed(keys, description).listen(nobody)
        keys.factory.getContext()
        return keys.factory

    def listenSSL(self, port: int, factory: Any, contextFactory: Any, backlog: int, interface: str = "") -> None:
        self.factory = contextFactory


def server_endpoint(
    reactor: Any, description: str, certificates: Certificates | None = None, taken: int | None = None
) -> IStreamServerEndpoint:
    """The server endpoint of this string. ``certificates`` will know what it uses for TLS.

    A TCP port is bound and keys are read at once, so that this is what needs the rights for it. Connections are refused
    until it listens. Raises ``ConfigError`` when the string cannot be understood, when what it names cannot be read or
    when systemd has not passed that socket; ``CannotListenError`` when the port is taken.

    ``taken``: the descriptor on which another version listened there. It stays as it is.
    """
    known = certificates or Certificates()
    make = partial(_endpoint, reactor, description, known)
    if taken is not None:
        make = partial(_taken, reactor, description, known, taken)
    endpoint: IStreamServerEndpoint = _named(description, make)
    return endpoint


def _named(description: str, make: Callable[[], Any]) -> Any:
    try:
        return make()
    except (OSError, TypeError, ValueError) as error:
        raise ConfigError([f"{description}: {error}"]) from None
    except (OpenSSL.SSL.Error, OpenSSL.crypto.Error, VerifyError):
        raise ConfigError([f"{description}: expected a private key and the certificate for it, in PEM"]) from None


def _endpoint(reactor: Any, description: str, certificates: Certificates) -> IStreamServerEndpoint:
    kind, _, rest = description.partition(":")
    named = description
    if kind in ("tcp", "tcp6", "ssl", "unix") and ":backlog=" not in description:
        description += f":backlog={_BACKLOG}"
    if kind == "reuseport":
        return _bound(_Ports(reactor, shared=True), f"tcp:{rest}:backlog={_BACKLOG}")
    if kind in ("tcp", "tcp6", "ssl"):
        return _bound(_Ports(reactor, renewable=partial(certificates.add, named)), description)
    if kind == "unix":
        return _parsed(_Paths(reactor), description)
    try:
        return _parsed(reactor, description)
    except (IndexError, KeyError):
        if kind != "systemd":
            raise
        raise ValueError("systemd has passed no such socket to this process") from None


def _taken(reactor: Any, description: str, certificates: Certificates, descriptor: int) -> IStreamServerEndpoint:
    kind, _, rest = description.partition(":")
    if kind == "haproxy":
        return proxyEndpoint(_taken(reactor, rest, certificates, descriptor))
    bound = socket.socket(fileno=os.dup(descriptor))
    if kind == "ssl":
        return _parsed(_Ports(reactor, renewable=partial(certificates.add, description), bound=bound), description)
    return _Taken(reactor, bound)


@implementer(IStreamServerEndpoint)
class _Taken:
    """An endpoint on which another version listened."""

    def __init__(self, reactor: Any, bound: socket.socket) -> None:
        self._reactor = reactor
        self._bound = bound

    def listen(self, protocolFactory: IProtocolFactory) -> Deferred[IListeningPort]:
        with closing(self._bound) as bound:
            path = Path(os.fsdecode(bound.getsockname())) if bound.family == socket.AF_UNIX else None
            mode = path.stat().st_mode if path is not None else 0
            port: IListeningPort = self._reactor.adoptStreamPort(bound.fileno(), bound.family, protocolFactory)
            if path is not None:
                # Twisted has changed the rights that it has, and how many may wait.
                path.chmod(stat.S_IMODE(mode))
            bound.listen(_BACKLOG)
        return succeed(port)


def _parsed(reactor: Any, description: str) -> IStreamServerEndpoint:
    endpoint: IStreamServerEndpoint = serverFromString(reactor, description)
    return endpoint


def _bound(ports: _Ports, description: str) -> IStreamServerEndpoint:
    endpoint = _parsed(ports, description)
    failures: list[Failure] = []
    nobody: Any = None
    endpoint.listen(nobody).addErrback(failures.append)
    for failure in failures:
        failure.raiseException()
    return endpoint


class _Ports:
    """What endpoints of TCP and TLS need of a reactor. The first time that they listen binds, the second one listens.

    ``shared``: other processes of the same user may listen there too, and the kernel spreads connections over them.
    ``renewable`` makes of what an endpoint uses for TLS something that can be exchanged.
    """

    def __init__(
        self,
        reactor: Any,
        *,
        shared: bool = False,
        renewable: Callable[[Any], Any] = lambda factory: factory,
        bound: socket.socket | None = None,
    ) -> None:
        self._reactor = reactor
        self._shared = shared
        self._renewable = renewable
        self._socket = bound

    def listenTCP(
        self, port: int, factory: IProtocolFactory, backlog: int, interface: str = ""
    ) -> IListeningPort | None:
        if self._socket is None:
            self._bind(port, interface)
            return None
        with closing(self._socket) as bound:  # the reactor has its own copy of the descriptor
            try:
                bound.listen(backlog)
            except OSError as error:  # somebody else bound the port before either listened
                raise CannotListenError(interface, port, error) from None
            adopted: IListeningPort = self._reactor.adoptStreamPort(bound.fileno(), bound.family, factory)
        return adopted

    def __del__(self) -> None:
        """Give back the port of an endpoint that never listened."""
        if self._socket is not None:
            self._socket.close()

    def listenSSL(
        self, port: int, factory: IProtocolFactory, contextFactory: Any, backlog: int, interface: str = ""
    ) -> IListeningPort | None:
        if self._socket is None:
            contextFactory.getContext()  # which reads the keys
            return self.listenTCP(port, factory, backlog, interface)
        return self.listenTCP(
            port, TLSMemoryBIOFactory(self._renewable(contextFactory), False, factory), backlog, interface
        )

    def _bind(self, port: int, interface: str) -> None:
        family = socket.AF_INET6 if ":" in interface else socket.AF_INET
        bound: socket.socket | None = None
        try:
            bound = socket.socket(family, socket.SOCK_STREAM)
            bound.setblocking(False)
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if self._shared:
                bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            # An interface such as fe80::1%eth0 has its number in the fourth place.
            address = socket.getaddrinfo(interface, port, family)[0][4] if ":" in interface else (interface, port)
            bound.bind(address)
        except OSError as error:
            if bound is not None:
                bound.close()
            raise CannotListenError(interface, port, error) from None
        self._socket = bound


class _Paths:
    """The part of a reactor that endpoints on Unix sockets need.

    Twisted stores the process id of the listener beside the socket. After a ``kill -9`` it treats the process that has
    this id now as the owner, which in a container is always the gateway itself. Here the socket itself is probed: one
    that was left behind accepts no connections.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor

    def listenUNIX(
        self, address: str, factory: IProtocolFactory, backlog: int, mode: int, wantPID: bool
    ) -> IListeningPort:
        with _alone(address):
            _remove_left_behind(address)
            listening: IListeningPort = self._reactor.listenUNIX(address, factory, backlog=backlog, mode=mode)
        return listening


@contextmanager
def _alone(address: str) -> Iterator[None]:
    """No other gateway looks at this path meanwhile, and takes a socket that does not accept yet for left behind."""
    try:
        directory = os.open(Path(address).parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise CannotListenError(None, address, error) from None
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise CannotListenError(None, address, error) from None
    finally:
        os.close(directory)


def _remove_left_behind(address: str) -> None:
    path = Path(address)
    if path.is_socket():
        with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as probe:
            probe.setblocking(False)  # the listener may be busy
            try:
                probe.connect(address)
            except ConnectionRefusedError:
                path.unlink(missing_ok=True)
                return
            except OSError:
                pass
    if path.exists():
        raise CannotListenError(None, address, OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE)))
