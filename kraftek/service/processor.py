"""Handles one event: decodes it, calls its handler, and turns what the handler sends into Redis commands.

No I/O: :class:`kraftek.service.handling.Handling` calls it with what was read from Redis, and sends the commands.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from types import CodeType
from typing import Any, Literal, TypeVar, Unpack

import msgspec
from msgspec import Raw

from kraftek.contract.errors import Code
from kraftek.contract.lua import Argument
from kraftek.contract.messages import NULL, Envelope, ErrorPayload, RequestId
from kraftek.contract.names import (
    BROADCAST,
    GATEWAY_OWN,
    GATEWAY_STREAM,
    default_channel,
    gateway_of,
    late_answer_key,
    room_key,
    service_of,
    stream_of,
)
from kraftek.contract.surrogates import encode, read
from kraftek.service import messages
from kraftek.service.commits import Command, Told, Topic, wants
from kraftek.service.errors import NoEvent, Refused, TooLarge
from kraftek.service.link import IN_THREAD, Link, Work
from kraftek.service.messages import Message, event_for
from kraftek.service.progress import PROGRESS, Parts
from kraftek.service.receipts import Receipt
from kraftek.service.routes import Handler, Route, decoder_of
from kraftek.service.settings import check_settings
from kraftek.service.texts import APPEND, Piece, PieceOptions, told

__all__ = [
    "MESSAGE_BYTES",
    "Context",
    "EventProcessor",
    "Incoming",
    "NoEvent",
    "Refused",
    "TooLarge",
]

H = TypeVar("H", bound=Handler)

MESSAGE_BYTES = 1_048_576
"""Bytes of a message that a service sends, unless it is said otherwise: what waits for a client that does not read is
bounded by as much. Redis closes the connections of all subscribers for which 32 MB wait."""

TIMEOUT = 10.0
"""Seconds that gateways wait for an answer, unless they are configured otherwise."""

_encode = msgspec.json.Encoder().encode


class Incoming(Envelope, frozen=True, kw_only=True):
    """An event as received. Fields that the original gateway does not send have defaults."""

    user_id: str = ""
    socket_id: str = ""
    timestamp: int = 0
    gateway_id: str = ""
    reply_to: str = ""
    payload: Raw = NULL


class EventProcessor:
    """A service: its name, where its events come from, and a function for each.

    ``name``: as it is registered with the gateway. ``channel``: as registered; left out it is ``events:<name>``.
    ``transport``: as registered, ``pubsub`` or ``stream``, and so are ``partitions``. ``concurrency``: events handled
    at the same time, one of each room. ``unordered``: without regard to rooms. ``timeout``: seconds that a handler may
    take; left out it is that of the registration, as gateways publish it, and 10 until one does. For streams:
    ``attempts``, how often a handler may fail on an event, or an instance crash while it handles it, before it is
    dead-lettered; ``claim_after``, the seconds after which another instance gets the entries of a dead one. ``grace``:
    the seconds that a stop waits for handlers to finish. ``message_bytes``: of one message to clients or another
    service, as JSON; a larger one raises :class:`TooLarge`. ``prefix``, ``broadcast``: as in ``[redis]`` of the
    gateway. ``reply``: as registered; left out, it is only noticed when a client's request was answered that the
    gateway has answered already. ``register``: itself, which ``auto_register`` of the gateways has to permit; clients
    reach it where a permission names it. Raises :class:`ValueError` for invalid arguments.

    ``refused`` counts, for metrics of yours: events over Pub/Sub that were refused because too many waited, or because
    what their handlers had done could not be committed. ``answered``: the last request of a client's that got more than
    ``null``.
    """

    refused = 0
    answered: str | None = None

    def __init__(
        self,
        name: str,
        channel: str | None = None,
        *,
        transport: Literal["pubsub", "stream"] = "pubsub",
        partitions: int = 0,
        reply: bool | None = None,
        register: bool = False,
        concurrency: int = 64,
        unordered: bool = False,
        timeout: float | None = None,
        attempts: int = 3,
        claim_after: float = 5.0,
        grace: float = 10.0,
        message_bytes: int = MESSAGE_BYTES,
        prefix: str = "",
        broadcast: str = BROADCAST,
    ) -> None:
        channel = default_channel(name) if channel is None else channel
        check_settings(name, locals())
        if partitions and transport != "stream":
            raise ValueError(f"{name}: only a stream has partitions")
        self.name = name
        self.channel = prefix + channel
        self.transport = transport
        self.partitions, self.reply, self.register = partitions, reply, register
        self.concurrency, self.unordered = concurrency, unordered
        self.timeout, self._as_registered = (TIMEOUT, True) if timeout is None else (timeout, False)
        self.attempts = attempts
        self.claim_after, self.grace = claim_after, grace
        self.message_bytes = message_bytes
        self.prefix = prefix
        self.broadcast = prefix + broadcast
        self._routes: dict[str, Route] = {}

    @property
    def streams(self) -> list[str]:
        """The keys of its streams."""
        if self.partitions:
            return [stream_of(self.channel, number) for number in range(self.partitions)]
        return [self.channel]

    def on(
        self, event: str, *, answers: bool = True, thread: bool = False, timeout: float | None = None
    ) -> Callable[[H], H]:
        """Decorate the handler of an event, ``module:name`` or ``service:module:name``.

        It is called with the :class:`Context` and, if it has a second parameter, with the payload: checked and
        converted to the type that this is annotated with, or any JSON value. It may be a coroutine function, or return
        an awaitable. What it returns is the answer to a request, also ``None``.

        ``answers=False``: a request is answered only if it replies, or returns something else than ``None``.
        ``thread``: it is a plain function that blocks, and is called in a thread. ``timeout``: seconds that it may
        take, if not the processor's. Raises :class:`ValueError` for an invalid name or time and :class:`TypeError` for
        a function with other parameters.
        """
        name = event if event.count(":") == 2 else f"{self.name}:{event}"
        if name in self._routes or service_of(name) is None:
            raise ValueError(f"{event}: expected module:name or service:module:name, each once")
        if timeout is not None and not timeout > 0:
            raise ValueError(f"{name}: expected a timeout of more than 0 seconds")

        def register(handler: H) -> H:
            parameters = [*inspect.signature(handler, eval_str=True).parameters.values()]
            if len(parameters) not in {1, 2}:
                raise TypeError(f"{name}: expected a function of the context, or of the context and the payload")
            if thread and inspect.iscoroutinefunction(handler):
                raise TypeError(f"{name}: expected a plain function for a thread, and this is a coroutine function")
            self._routes[name] = Route(handler, decoder_of(parameters[1:]), answers, thread, timeout)
            return handler

        return register

    # Called by the kit

    def handles(self, event: str) -> bool:
        """Whether it has a handler for this event."""
        return event in self._routes

    def open(self, body: bytes) -> Incoming:
        """Decode an event. Raises :class:`NoEvent`."""
        try:
            if not body.isascii():
                body.decode()  # the raw payload is not decoded otherwise
            return read(_decode, body)[0]
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise NoEvent(str(error)) from None

    def handlers(self) -> dict[CodeType, str]:
        """The names of events by the code of their handlers, as far as they are functions of Python's."""
        functions = {name: inspect.unwrap(route.handler) for name, route in self._routes.items()}
        return {code: name for name, each in functions.items() if (code := getattr(each, "__code__", None)) is not None}

    def registered(self, timeout: float) -> None:
        """So many seconds gateways wait for its answers."""
        if self._as_registered:
            self.timeout = timeout

    def time_limit(self, event: Incoming) -> float:
        """Seconds that the event's handler may take."""
        route = self._routes.get(event.event_type)
        return self.timeout if route is None or route.timeout is None else route.timeout

    async def handle(self, event: Incoming, link: Link, work: Work | None = None) -> list[Command]:
        """Call the event's handler. Returns the Redis commands to run then, all or none. ``work``: what is known of it.

        Raises what the handler raises.
        """
        route = self._routes.get(event.event_type)
        if route is None:
            return self.refusal(event, "NO_HANDLER", f"service {self.name} has no handler for {event.event_type}")
        try:
            payload = () if route.decode is None else (route.decode(event.payload),)
        except (msgspec.DecodeError, RecursionError) as error:
            return self.refusal(event, "INVALID_PAYLOAD", str(error))
        context = Context(self, event, IN_THREAD if route.thread else link, work)
        try:
            if route.thread:
                result = await link.in_thread(partial(route.handler, context, *payload))
            else:
                result = route.handler(context, *payload)
                if inspect.isawaitable(result):
                    result = await result
        except Refused as no:
            return self.refusal(event, no.code, no.message, no.retry_after)
        else:
            if result is not None or (route.answers and context.owes_answer):
                context.reply(result)
        finally:
            context.end()
        return context.commands

    def failure(self, event: Incoming) -> list[Command]:
        """The error for the sender when the handler failed, without the cause, which is only logged."""
        return self.refusal(event, "EVENT_PROCESSING_ERROR", f"service {self.name} failed to process the event")

    def refusal(self, event: Incoming, code: str, message: str, retry_after: float | None = None) -> list[Command]:
        """Send the sender an error."""
        if event.event_type.startswith(GATEWAY_OWN):
            return []
        error = ErrorPayload(code, message, event.event_type, retry_after)
        return self.to_sender(event, "error", Raw(encode(error)))

    def to_sender(self, event: Incoming, type: str, payload: Raw) -> list[Command]:
        """Send to the sender's gateway. In case that one has died, a request's answer goes to all gateways, and in case
        that there is none, to where the next one looks for it.
        """
        socket = (event.socket_id,) if event.socket_id else None
        message = Message(type, payload, recipients=socket, in_reply_to=event.id)
        if socket is None:
            return [self.publish(event.reply_to, message)] if event.reply_to else []
        commands = [self.publish(event.reply_to or self.broadcast, message)]
        if event.id is not None and event.reply_to:
            again = Message(type, payload, recipients=socket, user_ids=(event.user_id,), in_reply_to=event.id)
            late = self.prefix + late_answer_key(event.socket_id, event.id)
            commands.append(Command((*self.publish(self.broadcast, again).parts, late), "unheard"))
        return commands

    def publish(self, channel: str, message: Message, id: str = "") -> Command:
        """Send a message to clients; a room, or a user, has one with this ``id`` once in its history. Raises
        :class:`TooLarge`.
        """
        parts = "PUBLISH", channel, self.sized(message.type, _encode(message))
        whom = message.topic
        topic = None if whom is None else Topic(whom, self.prefix, id)
        return Command(parts, wants=wants(self.prefix, message.type), topic=topic)

    def to_gateway(self, event: Mapping[str, Any]) -> Command:
        """Send an event to another service, through a gateway. Raises :class:`TooLarge`."""
        stream = self.prefix + GATEWAY_STREAM
        body = self.sized(event["eventType"], _encode(event))
        return Command((stream, body), "emit")

    def sized(self, name: str, body: bytes) -> bytes:
        """The message, if it is not too large."""
        if len(body) > self.message_bytes:
            raise TooLarge(f"{name}: a message of {len(body)} bytes; at most {self.message_bytes} may be sent")
        return body


class Context:
    """An event, and what its handler can do with it.

    A handler's replies, broadcasts and events are committed together when it returns: a handler that raises sends
    nothing, and one that is retried sends nothing twice. Over a stream they are one transaction with the
    acknowledgement of the event. Only awaited methods take effect at once. When the handler has ended the others raise
    ``RuntimeError``, because nothing would come of them.

    Half of a surrogate pair in a payload becomes U+FFFD; with one in a name all methods raise ``ValueError``.
    """

    def __init__(self, processor: EventProcessor, event: Incoming, link: Link, work: Work | None = None) -> None:
        self.event = event
        self.commands: list[Command] = []
        self._processor = processor
        self._link = link
        self._work = work
        self._replied = self._later = self._ended = False
        self._parts: Parts | None = None

    @property
    def event_type(self) -> str:
        """The whole name, ``service:module:name``."""
        return self.event.event_type

    @property
    def user_id(self) -> str:
        """The user who sent it. From a service it is not verified, and may be empty."""
        return self.event.user_id

    @property
    def socket_id(self) -> str:
        """The socket that sent it; empty when a service sent it."""
        return self.event.socket_id

    @property
    def room_id(self) -> str | None:
        """The room it belongs to, if any."""
        return self.event.room_id

    @property
    def id(self) -> RequestId | None:
        """The sender's id for this request; ``None`` when it expects no answer."""
        return self.event.id

    @property
    def source(self) -> str | None:
        """The service that sent it; ``None`` when a client did."""
        return self.event.source

    @property
    def timestamp(self) -> int:
        """When the gateway got it, in Unix milliseconds."""
        return self.event.timestamp

    @property
    def cancelled(self) -> bool:
        """Whether the client has cancelled the request: what the handler awaits then fails as cancelled. It may clean
        up, and what it returns still counts. A lost connection cancels nothing. One in a thread has to look itself.
        """
        return self._work is not None and self._work.cancelled

    def reply(self, payload: Any) -> None:
        """Answer the request, once. Does nothing when the sender expects no answer."""
        if self._replied:
            raise RuntimeError(f"{self.event_type} has been answered already")
        wanted = self.id is not None
        if wanted and payload is not None and self.socket_id:
            self._processor.answered = self.event_type
        self._add(*(self._processor.to_sender(self.event, self.event_type, Raw(encode(payload))) if wanted else ()))
        self._replied = True

    def progress(self, payload: Any) -> Awaitable[bool]:
        """Send the client a part of the answer, at once. The answer itself is still to be given: it says what counts.

        Does nothing where the client did not ask for parts, or another instance sends them: the result says so. Each
        part gives the request and its handler their time limit anew, for an hour at most.
        """
        return self._link.awaitable(self._progress(payload))

    def end(self) -> None:
        """The handler has ended. The kit calls this."""
        self._ended = True

    def answer_later(self) -> None:
        """Leave the request open when the handler returns ``None``: something else answers it, within the ``timeout``
        that the service is registered with. ``event`` has what that takes: ``id``, ``reply_to`` and ``socket_id``.
        """
        self._later = True

    @property
    def owes_answer(self) -> bool:
        """Whether the sender waits, and nobody has answered or will."""
        return self.id is not None and not self._replied and not self._later

    def broadcast_to_room(
        self, type: str, payload: Any, room_id: str | None = None, exclude: Iterable[str] = ()
    ) -> None:
        """Send to everybody in a room, by default the event's room, except for the sockets in ``exclude``. If the room
        has a history it is part of that: who is away now gets it later.

        Raises :class:`ValueError` when the event belongs to no room, and none is given.
        """
        self._publish(messages.to_room(type, payload, self._room(room_id), exclude))

    def append_to_room(
        self, type: str, key: str, text: str, room_id: str | None = None, **options: Unpack[PieceOptions]
    ) -> Awaitable[Told]:
        """Tell everybody in a room, by default the event's, a piece of the text ``key``, at once. If the room has a
        history, one message with the whole text is kept in it.

        ``first``: the text begins anew, also if an attempt before this one has told some of it. ``last``: it ends. With
        an ``id`` a piece is told once, however often it is sent. Each gives the handler its time limit anew, as a part
        of an answer does.

        Fails with :class:`TooLarge` when the text would be larger than what is kept of one: 256 KiB, or the room's
        ``history_bytes``. Raises as :meth:`broadcast_to_room`, and :class:`ValueError` for a key without or with more
        than 256 bytes.
        """
        piece = Piece(type, key, text, self._room(room_id), **options)
        return self._link.awaitable(self._append(piece))

    def broadcast_to_user(self, type: str, payload: Any, user_id: str) -> None:
        """Send to every socket of a user. Where users have a history it is part of that, likewise."""
        self.broadcast_to_users(type, payload, (user_id,))

    def broadcast_to_users(self, type: str, payload: Any, user_ids: Iterable[str]) -> None:
        """Send to every socket of these users, likewise; to nobody without users."""
        self._publish(messages.to_users(type, payload, user_ids))

    def broadcast_to_sockets(self, type: str, payload: Any, socket_ids: Iterable[str]) -> None:
        """Send to these sockets; to nobody without sockets. Empty ids, of senders without a socket, are left out."""
        message = messages.to_sockets(type, payload, socket_ids)
        # When all of them are on the sender's gateway, no other one needs the message.
        gateways = {gateway_of(each) for each in (self.socket_id, *((message and message.recipients) or ()))}
        self._publish(message, self.event.reply_to if len(gateways) == 1 and "" not in gateways else "")

    def broadcast_to_everybody(self, type: str, payload: Any, exclude: Iterable[str] = ()) -> None:
        """Send to everybody who has authenticated, except for the sockets in ``exclude``."""
        self._publish(messages.to_everybody(type, payload, exclude))

    def broadcast_with_receipt(
        self,
        type: str,
        payload: Any,
        *,
        room_id: str | None = None,
        user_ids: Iterable[str] | None = None,
        exclude: Iterable[str] = (),
        timeout: float = 5.0,
    ) -> Awaitable[Receipt]:
        """Send to every socket of these users, or else to everybody in a room, by default the event's room, except for
        the sockets in ``exclude``; at once. The :class:`~kraftek.service.Receipt` says who has acknowledged it within
        ``timeout`` seconds, 30 at most, and who is offline.

        Raises :class:`ValueError` for more than 1,000 users, and for users and a room; for a room with more users it
        fails with :class:`TooLarge`. It fails with :class:`~kraftek.service.OldGateway` while a gateway does not know
        this.
        """
        room = self._room(room_id) if user_ids is None else room_id
        message = messages.to_room_or_users(type, payload, room, user_ids, exclude)
        return self._link.awaitable(self._link.receipt(message, timeout))

    def disconnect(
        self,
        *,
        user_ids: Iterable[str] = (),
        socket_ids: Iterable[str] = (),
        room_id: str | None = None,
        code: str = Code.ACCESS_REVOKED,
        message: str = "disconnected by a service",
    ) -> None:
        """Close every socket of these users, and these sockets; with ``room_id`` those of them that are in that room.

        Raises :class:`ValueError` for a code that is none.
        """
        self._publish(messages.disconnect(user_ids, socket_ids, room_id, code, message))

    def put_in_room(
        self,
        room_id: str,
        *,
        user_ids: Iterable[str] = (),
        socket_ids: Iterable[str] = (),
        permissions: Iterable[str] | None = None,
    ) -> None:
        """Put every socket of these users, and these sockets, into a room, until they are gone or taken out. The auth
        service is not asked.

        ``permissions``: patterns over the events that they may send from there; unless given, all of this service's.
        Raises :class:`ValueError` for a room without a name.
        """
        permitted = (f"{self._processor.name}:*:*",) if permissions is None else permissions
        self._publish(messages.put_in_room(room_id, user_ids, socket_ids, permitted))

    def remove_from_room(self, room_id: str, *, user_ids: Iterable[str] = (), socket_ids: Iterable[str] = ()) -> None:
        """Take every socket of these users, and these sockets, out of a room, however they came in."""
        self._publish(messages.remove_from_room(room_id, user_ids, socket_ids))

    def emit(self, event: str, payload: Any = None, room_id: str | None = None) -> None:
        """Send an event to another service, by the event's whole name; for the same user and, by default, room.

        Raises :class:`ValueError` for an invalid name.
        """
        self._add(self._processor.to_gateway(self._sent(event, payload, room_id)))

    def also(self, *command: Argument) -> None:
        """Have Redis run a command of yours when the handler has finished: in the same transaction.

        Keys are used as they are: ``prefix`` is not put before them.
        """
        self._add(Command(command))

    def request(
        self, event: str, payload: Any = None, room_id: str | None = None, timeout: float = 10.0
    ) -> Awaitable[Any]:
        """Send a request to another service, at once; the payload of its answer. Fails with :class:`Refused`."""
        sent = self._sent(event, payload, room_id)
        return self._link.awaitable(self._link.request(sent, timeout))

    def redis(self, *command: Argument, decode: bool = False) -> Awaitable[Any]:
        """Run a Redis command that does not block, at once: its answer as bytes, numbers, lists and ``None``.

        ``decode``: text in place of bytes; it fails with :class:`UnicodeDecodeError` for what is no UTF-8.
        """
        return self._link.awaitable(self._call(command, decode))

    def who_is_in(self, room_id: str | None = None) -> Awaitable[dict[str, str]]:
        """Who is in a room, by default the event's: user ids with the socket id of each.

        Raises :class:`ValueError` when the event belongs to no room, and none is given.
        """
        room = self._room(room_id)
        return self._link.awaitable(self._in_room(room))

    async def _progress(self, payload: Any) -> bool:
        event = self.event
        if self._ended:
            raise RuntimeError(f"the handler of {self.event_type} has ended, and with it the answer")
        if event.id is None or not (event.progress and event.socket_id):
            return False
        if self._parts is None:
            self._parts = Parts(self._processor, event)
        return bool(await self._link.run_for(self._work, PROGRESS, *self._parts.next(payload)))

    async def _append(self, piece: Piece) -> Told:
        if self._ended:
            raise RuntimeError(f"the handler of {self.event_type} has ended: what is said now needs a Publisher")
        args = piece.arguments(self._processor.prefix, self._processor.broadcast)
        return told(await self._link.run_for(self._work, APPEND, (), args))

    async def _call(self, command: tuple[Argument, ...], decode: bool) -> Any:
        answer = await self._link.call(*command)
        return _text(answer) if decode else answer

    async def _in_room(self, room_id: str) -> dict[str, str]:
        names = await self._call(("HGETALL", self._processor.prefix + room_key(room_id)), decode=True)
        return dict(zip(names[::2], names[1::2], strict=True))

    def _room(self, room_id: str | None) -> str:
        room_id = self.room_id if room_id is None else room_id
        if room_id is None:
            raise ValueError("expected a room_id: the event belongs to no room")
        return room_id

    def _publish(self, message: Message | None, channel: str = "") -> None:
        broadcast = self._processor.broadcast
        self._add(*(() if message is None else (self._processor.publish(channel or broadcast, message),)))

    def _add(self, *commands: Command) -> None:
        if self._ended:
            raise RuntimeError(f"the handler of {self.event_type} has ended: what is sent now needs a Publisher")
        self.commands += commands

    def _sent(self, event: str, payload: Any, room_id: str | None) -> dict[str, Any]:
        room_id = self.room_id if room_id is None else room_id
        optional = {"userId": self.user_id, "roomId": room_id, "traceparent": self.event.traceparent}
        return event_for(self._processor.name, event, payload, **optional)


def _text(answer: Any) -> Any:
    if isinstance(answer, list):
        return [_text(each) for each in answer]
    return answer.decode() if isinstance(answer, bytes) else answer


_decode = msgspec.json.Decoder(Incoming).decode
