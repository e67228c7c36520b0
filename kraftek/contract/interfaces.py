"""Every interface of the gateway, in prose, without logic.

Methods are written as callers see them, without ``self``. "Fires with" is what a Deferred's callback gets, "fails
with" what its errback gets.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from enum import IntEnum
from typing import Any

from msgspec import Struct
from twisted.internet.defer import Deferred
from zope.interface import Attribute, Interface

from kraftek.contract.messages import Gap, Grant, Inbound, Outbound, Outgoing, Token

__all__ = [
    "EntryListener",
    "Here",
    "IAccess",
    "IAccessChecker",
    "IAccessListener",
    "IAsker",
    "IBus",
    "IBusListener",
    "IClientLink",
    "IDialect",
    "IEventRouter",
    "IMovableLink",
    "IMovableReceiver",
    "INotBefore",
    "IOutlet",
    "IReading",
    "IReceiver",
    "IRooms",
    "IServiceRegistry",
    "ISocketRecords",
    "ITopicLogs",
    "Mended",
    "Missed",
    "Page",
    "Recovered",
    "RoomEntry",
    "SocketRecord",
    "TopicPosition",
    "Undelivered",
]


class Undelivered(IntEnum):
    """Why no receiver of a message is known, as its receipt. Any other receipt is the number of receivers: ``receipt <=
    0`` covers them all. Redis's scripts answer with the plain numbers: compare with ``==``.
    """

    LOST = -1
    """It may have arrived all the same: the connection to Redis was lost before the answer."""
    REFUSED = -2
    """Redis refused it: a key of another type, no permission, no memory, not the primary."""
    FULL = -3
    """As many events as may wait in the service's stream already."""


RoomEntry = tuple[str, str, str]
"""A user, a room, and a socket that the user has in that room."""


class Mended(Struct, frozen=True):
    """An entry as :meth:`IRooms.mend` found it or wrote it. ``newest``: it is its user's newest socket in the room;
    ``older``: the ids of older ones, a few of them at least.
    """

    entry: RoomEntry
    newest: bool
    older: Sequence[str]


TopicPosition = tuple[str, str, int]
"""A topic with history (:mod:`kraftek.contract.history`), and where it is: an epoch, and the offset of the last message
in it."""


Numbered = tuple[int, bytes]
"""The offset of what a topic was told, and what it was told. Of a text that was told in pieces it is the offset of the
last piece, and the text is whole: so offsets may be missing in between, and nothing else is."""


class Missed(Struct, frozen=True):
    """What a topic was told after some position: ``messages``, up to ``epoch`` and ``offset``, where the topic is now;
    or the ``reason`` why they cannot be had, as clients are told it.
    """

    epoch: str
    offset: int
    reason: str | None = None
    messages: Sequence[Numbered] = ()


class Page(Struct, frozen=True):
    """A part of what was told to a room: ``messages`` in order, from the offset ``first`` on, which is ``None`` if the
    position that was asked for is none of this history. ``more``: there are older ones.
    """

    epoch: str
    first: int | None
    more: bool = False
    messages: Sequence[Numbered] = ()


class Here(Struct, frozen=True):
    """How many users are in a room, and all or some of them, each with what it shows of itself: JSON, or nothing."""

    count: int
    users: Mapping[str, bytes]


class Recovered(Struct, frozen=True):
    """What some topics were told after somebody was there, up to ``order``: ``messages``, each with the number of its
    topic, its offset, its number in the order, and what was told; ``positions``: the epoch and offset of each topic.
    Or the ``reason`` why it cannot be had.
    """

    order: str
    reason: str | None = None
    positions: Sequence[tuple[str, int]] = ()
    messages: Sequence[tuple[int, int, int, bytes]] = ()


class SocketRecord(Struct, frozen=True, kw_only=True):
    """What a client was that may come back. ``sid``: its socket as it knows it; ``sockets``: all that it had until now,
    to which some messages were not sent on purpose. ``rooms``: each with where it was entered; ``room_id``: the default
    one. ``floor``: what it has got last is at or after this, or it may have missed something.
    """

    user_id: str
    sid: str
    sockets: tuple[str, ...]
    rooms: tuple[TopicPosition, ...]
    room_id: str | None
    floor: str


EntryListener = Callable[[str, bytes, int], None]
"""Called with the id of a stream's entry, the value of its field ``event``, and how often it was delivered by now."""


class IServiceRegistry(Interface):
    """Which services there are. Changes at run time take effect on the next event."""

    def register(service: Any) -> None:
        """Add a :class:`kraftek.contract.settings.Registration`. Raises ``ValueError`` for a malformed name or channel,
        and for a name that is registered already, unless the service has registered itself: this takes its place.
        """

    def unregister(name: str) -> None:
        """Remove a service. Raises ``KeyError`` when there is none of that name."""

    def find(name: str) -> Any:
        """The :class:`kraftek.contract.settings.Registration` of that name, or ``None``."""

    def services() -> Collection[Any]:
        """All services, in the order of their registration."""

    def on_change(listener: Callable[[], None]) -> None:
        """Call ``listener`` after every registration and removal."""


class IEventRouter(Interface):
    """From an event's name to the service that handles it."""

    def route(name: str) -> Any:
        """The :class:`kraftek.contract.settings.Registration` for an event ``service:module:name``.

        Raises ``PeerError`` with ``INVALID_EVENT`` when the name is malformed or its service is not registered.
        """


class IDialect(Interface):
    """A client grammar for one connection, sans-IO: bytes in, messages out, and back. It has no timers."""

    codec = Attribute("Hashable. Dialects with equal codecs encode a broadcast to the same bytes.")
    recovers = Attribute("bool: its client may come back, and be to services what it was: core/recovering.py.")
    lasting_ids = Attribute("bool: a client sends a request again under its id, also over another connection.")

    def received(data: bytes, binary: bool) -> Inbound | None:
        """What one message from the client means; ``None`` when it is complete in itself or not complete yet.

        Raises ``PeerError`` with ``INVALID_MESSAGE`` that says where the data is wrong, and what was expected.
        """

    def encode(message: Outbound) -> Outgoing | None:
        """The message as this client reads it; ``None`` when this dialect cannot express it."""


class IOutlet(Interface):
    """Takes what a client is sent."""

    def write(outgoing: Outgoing) -> None:
        """Send, by the end of this reactor iteration. Never waits and never raises; a client that does not read what it
        is sent is closed.
        """


class IClientLink(IOutlet):
    """The connection to one client, as the core sees it: a WebSocket, or an Engine.IO connection."""

    peer = Attribute("str: the client's address, for logs.")

    def close(code: int, reason: str) -> None:
        """Send what was written, then close. Further writes are ignored. May be called more than once."""

    def pause() -> None:
        """Stop reading from the client, as far as the transport can."""

    def resume() -> None:
        """Read again, unless there is another reason not to."""

    def slow(seconds: float) -> None:
        """Stop reading from the client for so long, at most a second: it has sent more than its share."""


class IMovableLink(Interface):
    """A connection that another version of the gateway can go on with, in the same process after its image was
    replaced: ``docs/operations.rst``, "Upgrade".

    What it gives is of its own making: only the same part of another version reads it. Fields are added with defaults,
    and never change what they mean.
    """

    movable = Attribute("bool: it is of a kind that can be handed over.")

    def freeze() -> bool:
        """Read nothing more from the client. ``False``: not yet, because it is in the middle of a message; it is to be
        asked again soon.
        """

    def thaw() -> None:
        """Go on: there is no other version."""

    def give() -> tuple[int, bytes]:
        """The descriptor of its socket, and all that there is of a frozen connection. It changes nothing that anybody
        could notice.
        """


class IReceiver(Interface):
    """Receives what arrives on a link: the core's session, or an Engine.IO client that carries one."""

    def receive(data: bytes, binary: bool = False) -> None:
        """One message from the client. Never raises."""

    def charge(events: int, size: int) -> None:
        """What the client sent beside messages, such as pings and fragments, cost as much as so many events, and had
        ``size`` bytes. ``receive`` counts its message itself. Never raises.
        """

    def lost() -> None:
        """The client disconnected. May be called more than once."""

    def overrun() -> Outgoing | None:
        """The last message to a client that does not read what it is sent: its link sends it and closes."""

    def gap(gap: Gap) -> Outgoing | None:
        """What a client missed while it did not read, as it is told; ``None`` when it cannot be."""


class IMovableReceiver(IReceiver):
    """The receiver of a link that another version of the gateway can go on with."""

    def give() -> bytes:
        """All that there is of it beside what it hands on to. It changes nothing."""


class IBusListener(Interface):
    """Notified when the connection to Redis is established or lost."""

    def bus_up() -> None:
        """Both connections are ready, everything is subscribed, and ``IBus.epoch`` is that of the data. Redis may have
        lost its data, or have older ones than before: then the epoch is another one.
        """

    def epoch_changed() -> None:
        """``IBus.epoch`` is another one, although the connections were not lost: Redis's data were lost (``FLUSHALL``),
        or it takes writes again, which it did not when the connections were established and the epoch was ``None``.
        Noticed within a second.
        """

    def bus_down() -> None:
        """A connection was lost: invalidations and broadcasts may be missed from now on."""


class IReading(Interface):
    """A stream that is being read, as one consumer of a consumer group.

    An entry is *open* from its delivery until it is acknowledged. While this consumer lives nobody else gets it, and it
    gets it once, whatever becomes of the connection; when it dies another one gets it, after ``claim_after`` seconds.
    """

    def ack(entry_id: str) -> None:
        """The entry was handled. It is removed after what was published before, or once Redis is available again."""

    def end() -> Deferred[None]:
        """Stop reading. Fires when no more entries come; open ones may still be acknowledged."""

    def go_on() -> None:
        """Read again, after it has ended."""


class IBus(Interface):
    """Redis: one connection for publishing and commands, one for subscriptions, and one for each stream that is read.

    Names of keys and channels are given without the configured prefix; the bus puts it before them, and takes it
    off what it hands out.
    """

    available = Attribute(
        """``bool``: both connections are ready. While only the subscriptions are being made anew it is ``False``, and
        ``publish`` and ``run`` go on for some seconds: what others publish meanwhile is missed, answers too."""
    )
    fault = Attribute(
        """``str``: what is wrong with Redis, for the operator: why it is unavailable, or why it refuses to be written
        although it is available. ``None`` while it takes all that we must write. At most a second old.
        """
    )
    epoch = Attribute(
        """``str``: a name for the continuous life of Redis's data in one server process. A restart, a fail-over, a
        restored snapshot and the loss of all data each begin another one, with a random name. What is kept with the
        name of another epoch is not evidence: the data may be older than it, and times and numbers may have gone back.

        ``None`` while nobody knows: Redis is unavailable, or refused to write the new name when it became available.
        Nothing is evidence then, not even what carries ``None``.

        Set before ``bus_up`` and ``epoch_changed``. It stands in the hash :data:`kraftek.contract.names.EPOCH`. What
        has to be done once for each epoch, by whichever process, is done by a script that first compares a field of
        its own there with the epoch, and sets it in the same run. So it is also done when the process that began the
        epoch dies.
        """
    )

    def channel_name(channel: str) -> str:
        """The channel as services must name it: with the prefix."""

    def publish(channel: str, body: bytes, receipt: Callable[[int], None]) -> None:
        """``PUBLISH``, together with all others of this iteration in one write.

        ``receipt`` is called once: with the number of subscribers that got it, or with why nobody did
        (:class:`Undelivered`). Raises ``NotPublished`` when Redis is unavailable or the bound of messages in flight, or
        of their bytes, is reached; the receipt is then not called.
        """

    def call(command: Any, keys: Sequence[str] = (), args: Sequence[bytes | str | int | float] = ()) -> Deferred[Any]:
        """Run a Redis command (``str``, like ``"HGET"``) or a :class:`kraftek.contract.lua.Script`, in order with
        everything published and called before.

        Fires with Redis's reply: ``bytes``, ``int``, ``None`` or a list of these. Fails with ``NotPublished`` when
        Redis is unavailable or disconnects before it answers, and with ``Refusal`` when Redis refuses.
        """

    def run(script: Any, message: tuple[Any, ...]) -> None:
        """Run a :class:`kraftek.contract.lua.ForEach` for one message, in order with everything else.

        The last of the message is its receipt. It is called once: with the script's result for this message, a
        number or ``bytes``, and not at all when that is nil; or as that of :meth:`publish`. Raises ``NotPublished``
        likewise.
        """

    def run_all(script: Any, messages: Sequence[tuple[Any, ...]]) -> None:
        """As :meth:`run` for all of them, in one command, and only while ``available``: the caller bounds their
        number and size.
        """

    def subscribe(channel: str, listener: Callable[[bytes], None]) -> None:
        """Call ``listener`` with each message's body, from now on and after every reconnect."""

    def follow(channel: str, listener: Callable[[bytes], None]) -> Deferred[None]:
        """As :meth:`subscribe`, of a channel that has no other listener, until :meth:`unfollow`. Fires when Redis sends
        us what is published from now on. Fails with ``NotPublished`` when it is unavailable: then ``bus_up`` says so.
        """

    def unfollow(channel: str) -> None:
        """``listener`` is called no more."""

    def read(
        group: str,
        consumer: str,
        stream: str,
        listener: EntryListener,
        *,
        window: int = 100,
        claim_after: float = 5.0,
    ) -> IReading:
        """Read a stream as ``consumer`` of the consumer ``group``, which is made where it is missing: with the stream,
        and from the first entry that there is. Entries come in order: first those that had been delivered to this
        consumer before and never arrived, then new ones. Those of consumers that have been idle for
        ``claim_after`` seconds come in between. While ``window`` entries are open no new ones are read.
        """

    def track(prefix: str, listener: Callable[[list[str] | None], None]) -> None:
        """Call ``listener`` with keys under ``prefix`` that a :class:`kraftek.contract.lua.TrackingScript` has read,
        when somebody else changed or deleted them, or they expired; with ``None`` when all were deleted (``FLUSHALL``).
        A change is announced once: then the key is not tracked until such a script reads it again. None is tracked
        after the connection was lost. A key may be announced that did not change. Once a prefix, before the bus is
        started.
        """

    def settled() -> Deferred[None]:
        """Fires when everything that Redis had sent to us by now was handed to listeners. Fails with
        ``NotPublished`` when Redis is unavailable.
        """

    def add_listener(listener: IBusListener) -> None:
        """Notify ``listener`` when the connection is established or lost; at once when it is established already."""


class IRooms(Interface):
    """Who is in which room, as services read it from Redis and get events about it. Several sockets of a user are one
    user: services get an event for the first that enters and for the last that leaves.

    All of these fail as ``IBus.call``.
    """

    shown = Attribute("Shown: what users of this process show of themselves, in rooms that clients may watch.")

    def begin_epoch() -> Deferred[int]:
        """Tell services that ``IBus.epoch`` has begun, unless another process has told them. Fires with Redis's time in
        microseconds.
        """

    def enter(entry: RoomEntry, at: int) -> Deferred[tuple[int, list[str]]]:
        """Write the entry, as the newest of its user in that room. ``at``: Redis's time in microseconds. Fires with
        when it entered, which is later if another one did not enter before that; and with the ids of older sockets of
        the user in the room, a few of them at least.
        """

    def leave(entries: Sequence[tuple[RoomEntry, str]]) -> Deferred[None]:
        """These sockets are no longer in these rooms, each with the reason. Where the socket is the one that services
        read, the user's newest other one there takes its place, on whichever process.
        """

    def mend(entries: Sequence[tuple[RoomEntry, int]]) -> Deferred[list[Mended]]:
        """Write what is missing of these entries, each with when it entered. Fires with those that are not the only one
        of their user in the room.
        """

    def count() -> Deferred[tuple[int, int]]:
        """How many entries there are of this process, and Redis's time in microseconds."""

    def scan(cursor: bytes) -> Deferred[tuple[bytes, list[RoomEntry]]]:
        """Some entries that there are of this process, and the cursor for the next ones. The first cursor and the last
        are ``b"0"``.
        """

    def bury(entries: Sequence[RoomEntry]) -> Deferred[None]:
        """As ``leave``, for entries of processes that died: each of them that nobody else has removed yet."""

    def here(room_id: str, most: int, preferred: Sequence[str]) -> Deferred[Here]:
        """Who is in the room: all of its users, or ``most`` of them if there are more, those of the ``preferred`` ones
        first. In a room with presence for clients :func:`kraftek.contract.names.shown_key` is the channel on which
        gateways hear that this may have changed. Fails with ``NotPublished`` also when Redis has lost its data and that
        is not known yet.
        """


class ITopicLogs(Interface):
    """What topics with history were told, as Redis keeps it: docs/services.rst, "Rooms with history".

    All of these fail as ``IBus.call``.
    """

    def follow() -> Deferred[bool]:
        """Say that this gateway delivers what topics are told by its rules, for some seconds. Fires with whether these
        are the rules that stand in Redis. A gateway without a lease does not: where some do not, services tell all.
        """

    def unfollow() -> Deferred[None]:
        """Say that this gateway delivers no more. It still has its lease."""

    def offer() -> Deferred[None]:
        """Have Redis know the Function by which services tell rooms something, if it can."""

    def read(topic: str, epoch: str, offset: int, most: int) -> Deferred[Missed | None]:
        """What the topic was told after this position, if it is not more than so many bytes. ``None``: no history is
        kept of it.
        """

    def page(topic: str, epoch: str, before: int, limit: int, most: int) -> Deferred[Page | None]:
        """The last messages before that offset; of all, without an epoch. At most so many, and of so many bytes or one
        larger message. ``None``: no history is kept of it.
        """

    def compare(positions: Sequence[TopicPosition]) -> Deferred[list[TopicPosition]]:
        """Those of them that are not where their topic is."""

    def order() -> Deferred[str | None]:
        """Where the order is (:mod:`kraftek.contract.order`), or ``None`` as long as no rules stand."""

    def recover(word: str, entered: Sequence[TopicPosition], most: int) -> Deferred[Recovered]:
        """What was told later than this word of the order, if it is not more than so many bytes, to topics that
        somebody began to hear there.
        """


class ISocketRecords(Interface):
    """What Redis keeps of sockets whose clients may come back, each by its client's ``pid``: core/recoverable.py.

    All of these fail as ``IBus.call``.
    """

    def find(pid: str) -> Deferred[tuple[str, SocketRecord] | None]:
        """What is kept, with the socket that it belongs to."""

    def keep(pid: str, before: str, socket_id: str, record: SocketRecord) -> Deferred[bool]:
        """Keep this. Fires with whether it did: not when it belongs to another socket than ``before``, or to none where
        that is not ``socket_id`` itself.
        """

    def renew(sockets: Sequence[tuple[str, str]]) -> Deferred[tuple[list[int], list[int]]]:
        """Keep these for longer: each a pid and its socket. Fires with which of them, by number, are not there, and
        which belong to another socket.
        """

    def end(pid: str, socket_id: str, *, returns: bool) -> Deferred[None]:
        """The socket is gone. ``returns``: its client may come back for some time."""


class IAccessChecker(Interface):
    """Whoever decides: the auth service, or a rule."""

    def check(token: Token, room_id: str | None, turn: str = "") -> Deferred[Grant]:
        """Ask. Fires with a yes; fails with ``PeerError``: ``AUTH_FAILED`` for a no, ``TOKEN_EXPIRED`` for one to
        a token that was good, ``AUTH_UNAVAILABLE`` with
        ``retry_after`` when it could not be asked within its deadline, ``RATE_LIMITED`` when too many questions of the
        same ``turn`` wait. Those that wait are asked in rotation between turns.
        """

    def vouches(source: str) -> bool:
        """Whether a grant with this ``source`` was given by a checker with the same configuration, and by a key that is
        still to be trusted. Other grants are not used, wherever they were kept.
        """

    def on_change(listener: Callable[[], None]) -> None:
        """Call ``listener`` when the checker no longer vouches for grants that it did vouch for, before anything else
        is checked.
        """


class INotBefore(Interface):
    """When the access of users was revoked: tokens issued until then are not valid any more."""

    def find(user_id: str, room_id: str | None) -> Deferred[float]:
        """Fires with Unix seconds, 0 if nothing was revoked: the user's access to this room, or to all, was revoked
        then. Fails as ``IBus.call``.
        """


class IAsker(Interface):
    """On whose behalf the auth service is asked."""

    turn = Attribute("str: the turn of its questions, the same for all of a user.")

    def asks() -> None:
        """The auth service is going to be asked. Raises ``PeerError`` with ``RATE_LIMITED`` when that was too often."""

    def unasked() -> None:
        """It was not asked after all: the answer was cached."""


class IAccessListener(Interface):
    """Notified when access must be checked again."""

    def access_stale(digest: str | None, user_id: str | None, room_id: str | None, revoked: bool) -> None:
        """Cached answers for this token, or this user (in this room only, when given), are no longer valid; all of
        them when both are ``None``. ``revoked``: access was revoked, so that until the next answer it counts as a no;
        otherwise the answers merely expired.
        """


class IAccess(Interface):
    """Access as the gateway uses it: the checker's answers, shared, cached in Redis, and kept coherent."""

    gateways = Attribute("int: how many gateway processes ask the same checker, as far as is known; 1 at least.")

    settled = Attribute(
        """bool: it is known which cached answers are believed. ``False`` for a moment after a gap in listening, when
        other processes may turn out to have listened: a check that can wait may save a question."""
    )

    def check(token: Token, room_id: str | None, asker: IAsker | None = None) -> Deferred[Grant]:
        """As ``IAccessChecker.check``, from the cache when it has a fresh answer; equal questions at the same time are
        asked once, on behalf of the first ``asker``.
        """

    def add_listener(listener: IAccessListener) -> None:
        """Notify ``listener`` when access must be checked again."""

    def hold(held: Iterable[tuple[str, str]]) -> None:
        """There are sockets by these tokens, each a digest with its user: listeners are notified when access by them is
        revoked from now on. A check does the same for its token. To be called when all answers were said to be stale.
        """

    def clock_set() -> None:
        """The wall clock was set, or the machine slept: the age of an answer is no longer known. Listeners are notified
        that all access must be checked again.
        """

    def sweep() -> None:
        """Do what is overdue. To be called several times a second."""
