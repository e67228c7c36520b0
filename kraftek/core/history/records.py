"""What Redis keeps of the sockets of clients that may come back. Called by :mod:`kraftek.core.recoverable` and
:mod:`kraftek.core.recovering`.

Each is a hash, by the client's own secret name: ``owner``, the socket it belongs to, and ``state``, the record as JSON.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from twisted.internet.defer import Deferred
from zope.interface import implementer

from kraftek.contract.interfaces import IBus, ISocketRecords, SocketRecord
from kraftek.contract.lua import Argument, Script, lua
from kraftek.contract.names import kept_socket_key

__all__ = ["RENEWED", "SocketRecords"]

RENEWED = 60.0
"""Seconds for which a record is kept beyond those that its client may be away: two renewals may fail."""

KEEP = Script(lua(__package__, "keep_socket"))
RENEW = Script(lua(__package__, "renew_sockets"))

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(SocketRecord).decode


@implementer(ISocketRecords)
class SocketRecords:
    """Those of this Redis. ``away``: seconds that a client may be away."""

    def __init__(self, bus: IBus, away: float) -> None:
        self._bus = bus
        self._away = round(away * 1000)
        self._standing = round((away + RENEWED) * 1000)

    def find(self, pid: str) -> Deferred[tuple[str, SocketRecord] | None]:
        return self._bus.call("HMGET", [kept_socket_key(pid)], ["owner", "state"]).addCallback(_found)

    def keep(self, pid: str, before: str, socket_id: str, record: SocketRecord) -> Deferred[bool]:
        args: list[Argument] = [before, socket_id, _encode(record), self._standing]
        return self._bus.call(KEEP, [kept_socket_key(pid)], args).addCallback(bool)

    def renew(self, sockets: Sequence[tuple[str, str]]) -> Deferred[tuple[list[int], list[int]]]:
        keys = [kept_socket_key(pid) for pid, _ in sockets]
        args: list[Argument] = [self._standing, *(owner for _, owner in sockets)]
        return self._bus.call(RENEW, keys, args).addCallback(tuple)

    def end(self, pid: str, socket_id: str, *, returns: bool) -> Deferred[None]:
        args: list[Argument] = [self._away if returns else 0, socket_id]
        return self._bus.call(RENEW, [kept_socket_key(pid)], args).addCallback(lambda _: None)


def _found(answer: Sequence[bytes | None]) -> tuple[str, SocketRecord] | None:
    owner, state = answer
    if owner is None or state is None:
        return None
    try:
        return owner.decode(), _decode(state)
    except (msgspec.DecodeError, UnicodeDecodeError):  # of another version
        return None
