"""Hears which requests their clients have cancelled. Made by :class:`kraftek.service.instance.Instance`."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from math import inf

import msgspec

from kraftek.contract.messages import REQUEST_KNOWN, Cancelled, RequestId
from kraftek.contract.names import cancel_channel
from kraftek.contract.surrogates import read
from kraftek.service.backend import Backend
from kraftek.service.processor import EventProcessor, Incoming

__all__ = ["Cancels"]

MOST = 10_000
"""Cancelled requests that are known at a time, each for :data:`kraftek.contract.messages.REQUEST_KNOWN` seconds."""

OF_USER = 1_000
"""Those of one user: the flood of one pushes out nobody else's."""

SKEW = 1000
"""Milliseconds that the clocks of two gateways may differ."""

_Key = tuple[str, str, RequestId, str]

_decode = msgspec.json.Decoder(Cancelled).decode


class Cancels:
    """All instances hear of all requests of the service, and of most that they are not theirs, or not yet: an event may
    wait in a stream, or for others of its room. ``found`` is called with a test for events in hand. ``warn`` logs a
    line; ``clock`` gives seconds.
    """

    def __init__(
        self,
        processor: EventProcessor,
        backend: Backend,
        found: Callable[[Callable[[Incoming], bool]], None],
        warn: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._channel = processor.prefix + cancel_channel(processor.name)
        self._backend = backend
        self._found = found
        self._warn = warn
        self._clock = clock
        # When each was heard of, and when it was cancelled by its gateway's clock.
        self._known: OrderedDict[_Key, tuple[float, float]] = OrderedDict()
        self._of_users: dict[str, dict[_Key, None]] = {}

    async def begin(self) -> None:
        """Listen; returns when Redis has confirmed it."""
        await self._backend.subscribe(self._channel, self._received)

    def __bool__(self) -> bool:
        """Whether anything was cancelled of late."""
        return bool(self._known)

    def has(self, event: Incoming) -> bool:
        """Whether this request was cancelled. One that came later under the same id is another one."""
        if event.id is None:
            return False
        name = event.event_type, event.user_id, event.id
        known = self._known.get((*name, "")) or self._known.get((*name, event.socket_id))
        return known is not None and event.timestamp <= known[1] + SKEW

    def _received(self, body: bytes) -> None:
        try:
            cancelled, _ = read(_decode, body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            self._warn(f"Ignored a message that cancels no request: {error}")
            return
        now, known = self._clock(), self._known
        while known and (len(known) >= MOST or next(iter(known.values()))[0] <= now - REQUEST_KNOWN):
            self._forget(next(iter(known)))
        key = cancelled.event_type, cancelled.user_id, cancelled.id, cancelled.socket_id
        if key in known:
            self._forget(key)
        of_user = self._of_users.get(cancelled.user_id, {})
        if len(of_user) >= OF_USER:
            self._forget(next(iter(of_user)))
        known[key] = now, cancelled.timestamp or inf
        self._of_users.setdefault(cancelled.user_id, {})[key] = None
        # First what is cheap: as many as run are looked at for each word.
        self._found(lambda event: event.id == cancelled.id and self.has(event))

    def _forget(self, key: _Key) -> None:
        del self._known[key]
        of_user = self._of_users[key[1]]
        del of_user[key]
        if not of_user:
            del self._of_users[key[1]]
