"""``POST /publish`` of the operator's port: what a publisher says, for programs in any language that have no Redis.

Called by :mod:`kraftek.daemon.operator`. The message is the one that services publish, and is checked as
:mod:`kraftek.service.messages` has it. Whoever has the token can say what any service can: so no page of a browser may
ask, with or without it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import sha256
from hmac import compare_digest
from http import HTTPStatus

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from kraftek.bus import RedisError
from kraftek.contract.errors import NotPublished, Refusal
from kraftek.contract.interfaces import IBus
from kraftek.contract.log_once import OnceAMinute
from kraftek.contract.lua import Script, lua
from kraftek.contract.metrics import Counters
from kraftek.contract.names import GATEWAY_LEASES, HISTORY_RULES, REGISTRATIONS, ROOM_COMMANDS, publish_key
from kraftek.edge.http_responses import Response
from kraftek.edge.http_server import Request
from kraftek.service.commits import UNAWARE, OldGateway
from kraftek.service.messages import read
from kraftek.service.processor import MESSAGE_BYTES

__all__ = ["PublishRequests"]

_KEPT = 86_400
"""Seconds for which the answer to an ``Idempotency-Key`` is kept."""

_CONFLICT = -1

PUBLISH = Script(lua(__package__, "history", "kept", "texts", "tell", "tell_users", "publish", CONFLICT=_CONFLICT))

_KEY = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\]){1,255})"|([!#-+\--~]{1,255})')
"""``Idempotency-Key`` (draft-ietf-httpapi-idempotency-key-header-07, section 2.1): a string in quotation marks. Many
programs leave these out."""

_NO_STORE = (b"Cache-Control", b"no-store")


class _Wrong(Exception):  # noqa: N818  # named after what the request is
    """A request that is refused: the answer's status, what was wrong and expected, and more headers."""

    def __init__(self, status: int, text: str, *headers: tuple[bytes, bytes]) -> None:
        super().__init__(text)
        self.status = status
        self.headers = headers


class PublishRequests:
    """Answers them. ``token``: what they have to show; without one there are none. ``channel``: that of broadcasts."""

    _log = Logger()

    def __init__(self, bus: IBus, channel: str, counters: Counters, clock: IReactorTime, token: bytes | None) -> None:
        self.token = token
        self._bus = bus
        self._channel = channel
        self._counters = counters
        self._once_a_minute = OnceAMinute(clock.seconds)

    def refuse(self, request: Request) -> Response | None:
        """The refusal of a request of which the head has arrived."""
        try:
            self._check_head(request)
        except _Wrong as wrong:
            return self._refusal(wrong)
        return None

    def refuse_size(self, size: int) -> Response | None:
        """The refusal of a message of so many bytes, or more."""
        if size > MESSAGE_BYTES:
            return self._refusal(_Wrong(413, f"expected a message of at most {MESSAGE_BYTES} bytes"))
        return None

    def expect(self, request: Request) -> None:
        """A request that is not refused has a body."""
        body = bytearray()
        request.on_chunk = body.extend
        request.on_body = lambda: self._publish(request, bytes(body))

    def respond(self, request: Request) -> None:
        """The whole request has arrived."""
        if request.on_body is not None:
            request.on_body()
            return
        try:
            self._check_head(request)
            raise _Wrong(400, "expected a message as JSON, found no body")
        except _Wrong as wrong:
            request.answer(self._refusal(wrong))

    def _check_head(self, request: Request) -> None:
        if request.method != b"POST":
            raise _Wrong(405, "expected POST", (b"Allow", b"POST"))
        if request.lines("origin"):
            raise _Wrong(403, "expected no Origin: this is not for pages of browsers")
        if not self._knows(request.lines("authorization")):
            where = request.getClientAddress()
            self._once_a_minute(
                self._log.warn,
                "POST /publish without the right token, from {address} (logged once a minute)",
                address=getattr(where, "host", "a local socket"),
            )
            raise _Wrong(
                401, "expected the header Authorization: Bearer, and the token", (b"WWW-Authenticate", b"Bearer")
            )
        kind = (request.header("content-type") or "").partition(";")[0].strip().lower()
        if kind != "application/json" or request.lines("content-encoding"):
            raise _Wrong(
                415,
                "expected Content-Type: application/json, and no Content-Encoding",
                (b"Accept", b"application/json"),
            )

    def _knows(self, lines: list[str]) -> bool:
        scheme, _, shown = lines[0].partition(" ") if len(lines) == 1 else ("", "", "")
        known = self.token is not None and compare_digest(shown.strip(" ").encode("latin-1"), self.token)
        return known and scheme.lower() == "bearer"

    def _publish(self, request: Request, body: bytes) -> None:
        gone: list[Failure] = []
        request.notifyFinish().addErrback(gone.append)

        def answer(response: Response) -> None:
            if not gone:
                request.answer(response)

        try:
            key = _key(request.lines("idempotency-key"))
            try:
                message = read(body)
            except ValueError as error:
                raise _Wrong(400, str(error)) from None
        except _Wrong as wrong:
            answer(self._refusal(wrong))
            return
        said = msgspec.json.encode(message)
        kept = () if key is None else (publish_key(sha256(key.encode()).hexdigest()),)

        topic = message.topic or ""

        def publish(unaware: Sequence[bytes]) -> Deferred[tuple[int, int, bytes]]:
            if unaware:
                raise _Wrong(409, str(OldGateway(*(word.decode() for word in unaware))))
            keys = [HISTORY_RULES, self._channel, *kept]
            return self._bus.call(PUBLISH, keys, [said, sha256(said).hexdigest(), _KEPT, topic])

        if message.type in ROOM_COMMANDS:
            published = self._bus.call(UNAWARE, [GATEWAY_LEASES, REGISTRATIONS], [message.type]).addCallback(publish)
        else:
            published = publish(())
        published.addCallback(self._published).addErrback(self._failed).addCallback(answer)

    def _published(self, done: tuple[int, int, bytes]) -> Response:
        taken, offset, epoch = done
        if taken == _CONFLICT:
            raise _Wrong(422, "expected a new Idempotency-Key: another message was published under this one")
        if taken == offset == 0:
            raise _Wrong(503, "no gateway listens at present: nobody has the message", (b"Retry-After", b"1"))
        place = {"offset": offset, "epoch": epoch.decode()} if offset else {}
        body = msgspec.json.encode({"taken": taken, **place}) + b"\n"
        return self._counted(Response(200, body, b"application/json", (_NO_STORE,)))

    def _failed(self, failure: Failure) -> Response:
        error = failure.value
        if isinstance(error, _Wrong):
            return self._refusal(error)
        if isinstance(error, NotPublished):
            text = "Redis is unavailable: the message was not published, unless the connection was lost meanwhile"
        elif isinstance(error, RedisError | Refusal):
            text = f"Redis refuses it: {error}"
        else:
            self._log.failure("POST /publish failed", failure=failure)
            return self._refusal(_Wrong(500, "internal error"))
        return self._refusal(_Wrong(503, text, (b"Retry-After", b"1")))

    def _refusal(self, wrong: _Wrong) -> Response:
        """As RFC 9457 has it."""
        problem = {"status": wrong.status, "title": HTTPStatus(wrong.status).phrase, "detail": str(wrong)}
        body = msgspec.json.encode(problem) + b"\n"
        return self._counted(Response(wrong.status, body, b"application/problem+json", (_NO_STORE, *wrong.headers)))

    def _counted(self, response: Response) -> Response:
        statuses = self._counters.publish_requests
        statuses[str(response.status)] = statuses.get(str(response.status), 0) + 1
        return response


def _key(lines: list[str]) -> str | None:
    if not lines:
        return None
    found = _KEY.fullmatch(lines[0]) if len(lines) == 1 else None
    if found is None:
        raise _Wrong(400, "expected one Idempotency-Key, a string in quotation marks of 1 to 255 characters of ASCII")
    return re.sub(r"\\(.)", r"\1", found[1]) if found[1] is not None else found[2]
