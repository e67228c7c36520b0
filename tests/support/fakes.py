"""Stand-ins for the gateway's seams, handed in where a test has no use for the real part.

Each keeps the promises of its interface in ``kraftek/contract/interfaces.py``; ``tests/support/test_fakes.py`` holds
them and the real parts to the same ones. What a real part does later, by itself, these do when the test says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
from twisted.internet.defer import Deferred, fail, succeed
from zope.interface import implementer

from kraftek.contract.errors import Code, NotPublished, PeerError
from kraftek.contract.interfaces import (
    EntryListener,
    Here,
    IAccess,
    IAccessListener,
    IAsker,
    IBus,
    IBusListener,
    IClientLink,
    IReading,
    IRooms,
    ISocketRecords,
    ITopicLogs,
    Mended,
    Missed,
    Numbered,
    Page,
    Recovered,
    RoomEntry,
    SocketRecord,
    TopicPosition,
)
from kraftek.contract.lua import ForEach
from kraftek.contract.messages import Grant, Outgoing, Token
from kraftek.core.rooms.shown import Shown

T = TypeVar("T")


@implementer(IClientLink)
class FakeLink:
    """Records what is written to a client. ``closed``: with which code and reason, once it is.

    ``slowed``: for how many seconds each time.
    """

    peer = "tcp4:127.0.0.1:50000"

    def __init__(self) -> None:
        self.written: list[Outgoing] = []
        self.closed: tuple[int, str] | None = None
        self.paused = False
        self.slowed: list[float] = []

    def write(self, outgoing: Outgoing) -> None:
        if self.closed is None:
            self.written.append(outgoing)

    def close(self, code: int, reason: str) -> None:
        if self.closed is None:
            self.closed = (code, str(reason))

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def slow(self, seconds: float) -> None:
        self.slowed.append(seconds)

    def read(self) -> list[Any]:
        """What was written since the last look, as a client of the native dialect reads it."""
        written, self.written = self.written, []
        return [msgspec.json.decode(outgoing.text) for outgoing in written]


@dataclass
class Question:
    """The gateway asks about access. It is answered by one of the methods."""

    token: str
    room_id: str | None
    answer: Deferred[Grant] = field(repr=False)

    def yes(self, user_id: str, **grant: Any) -> None:
        """``grant``: further words of the answer, as the auth service spells them."""
        words = {"userId": user_id, "roomId": self.room_id, **grant}
        self.answer.callback(msgspec.convert(words, Grant))

    def no(self, message: str = "Access denied") -> None:
        """The auth service said no."""
        self.answer.errback(PeerError(Code.AUTH_FAILED, message, closes=True))

    def away(self, retry_after: float = 1.0) -> None:
        """The auth service could not be asked."""
        self.answer.errback(
            PeerError(Code.AUTH_UNAVAILABLE, "access cannot be checked at present", retry_after=retry_after)
        )


@implementer(IAccess)
class FakeAccess:
    """Access as the test decides it: ``questions`` wait for their answers, the oldest first.

    What is in ``known``, by token and room, is answered at once, as from a cache.
    """

    def __init__(self) -> None:
        self.questions: list[Question] = []
        self.known: dict[tuple[str, str | None], Grant | PeerError] = {}
        self.listeners: list[IAccessListener] = []
        self.held: list[tuple[str, str]] = []
        self.gateways = 1
        self.settled = True

    def check(self, token: Token, room_id: str | None, asker: IAsker | None = None) -> Deferred[Grant]:
        match self.known.get((token.value, room_id)):
            case Grant() as grant:
                return succeed(grant)
            case PeerError() as error:
                return fail(error)
        question = Question(token.value, room_id, Deferred())
        self.questions.append(question)
        return question.answer

    def add_listener(self, listener: IAccessListener) -> None:
        self.listeners.append(listener)

    def hold(self, held: Iterable[tuple[str, str]]) -> None:
        self.held += held

    def sweep(self) -> None:
        """Nothing is overdue."""

    def clock_set(self) -> None:
        self.stale(revoked=False)

    def next(self) -> Question:
        """The oldest question without an answer."""
        return self.questions.pop(0)

    def stale(
        self,
        digest: str | None = None,
        user_id: str | None = None,
        room_id: str | None = None,
        *,
        revoked: bool = True,
    ) -> None:
        """Somebody took access back, or, not ``revoked``, what is known of it grew old."""
        for listener in self.listeners:
            listener.access_stale(digest, user_id, room_id, revoked)


@implementer(IRooms)
class FakeRooms:
    """The room cache in memory. ``sockets`` of each room and user with when each entered; gateways that share them
    share a Redis. ``named``: this gateway's entries. ``told``: what services hear, as ``(kind, user, room)``.

    ``shown``: what users show, where clients may watch rooms; ``changed`` is called with such a room. ``data``: what
    each socket shows there. ``reads``: of who is in a room; they wait in ``held`` when that is a list.

    Every call fails with ``failure`` when that is set. One that writes has an effect all the same if ``unanswered`` is.
    """

    def __init__(self, sockets: dict[tuple[str, str], dict[str, int]] | None = None) -> None:
        self.sockets: dict[tuple[str, str], dict[str, int]] = {} if sockets is None else sockets
        self.named: set[RoomEntry] = set()
        self.shown = Shown()
        self.changed: Callable[[str], None] = lambda _: None
        self.data: dict[tuple[str, str], bytes] = {}
        self.reads = 0
        self.held: list[Callable[[], object]] | None = None
        self.told: list[tuple[str, str, str]] = []
        self.failure: Exception | None = None
        self.unanswered = False
        self._latest = 0

    @property
    def entries(self) -> dict[tuple[str, str], str]:
        """What services read: the newest socket of each room and user."""
        return {place: max(sockets, key=sockets.__getitem__) for place, sockets in self.sockets.items()}

    def forget(self) -> None:
        """Redis loses its data."""
        self.sockets.clear()
        self.named.clear()
        self.data.clear()

    def begin_epoch(self) -> Deferred[int]:
        return self._answer(self._now)

    def enter(self, entry: RoomEntry, at: int) -> Deferred[tuple[int, list[str]]]:
        def write() -> tuple[int, list[str]]:
            user_id, room_id, socket_id = entry
            there = self.sockets.get((room_id, user_id), {})
            older = [other for other in there if other != socket_id]
            entered = max(at, self._now(), *(1 + since for since in there.values()))
            self._write(entry, entered)
            return entered, older

        return self._answer(write)

    def leave(self, entries: Sequence[tuple[RoomEntry, str]]) -> Deferred[None]:
        def write() -> None:
            for entry, reason in entries:
                self._remove(entry, reason)

        return self._answer(write)

    def mend(self, entries: Sequence[tuple[RoomEntry, int]]) -> Deferred[list[Mended]]:
        def write() -> list[Mended]:
            found = []
            for entry, at in entries:
                user_id, room_id, socket_id = entry
                known = self.sockets.get((room_id, user_id), {}).get(socket_id)
                self._write(entry, max(known or at, at))
                sockets = self.sockets[room_id, user_id]
                newest = max(sockets, key=sockets.__getitem__) == socket_id
                older = sorted(sockets, key=lambda other: -sockets[other])[1:] if newest else []
                if older or not newest:
                    found.append(Mended(entry, newest, older))
            return found

        return self._answer(write)

    def count(self) -> Deferred[tuple[int, int]]:
        return self._answer(lambda: (len(self.named), self._now()))

    def scan(self, cursor: bytes) -> Deferred[tuple[bytes, list[RoomEntry]]]:
        return self._answer(lambda: (b"0", sorted(self.named)))

    def bury(self, entries: Sequence[RoomEntry]) -> Deferred[None]:
        return self.leave([(entry, "gateway_lost") for entry in entries])

    def here(self, room_id: str, most: int, preferred: Sequence[str]) -> Deferred[Here]:
        self.reads += 1
        answer: Deferred[Here] = Deferred()
        reading = self._answer(lambda: self._here(room_id, most, preferred))  # as Redis is now
        if self.held is None:
            return reading
        self.held.append(lambda: reading.chainDeferred(answer))
        return answer

    def _here(self, room_id: str, most: int, preferred: Sequence[str]) -> Here:
        users = {user: socket for (room, user), socket in self.entries.items() if room == room_id}
        chosen = dict.fromkeys([*(user for user in preferred if user in users), *users])
        listed = [*chosen][:most] if len(users) > most else [*users]
        return Here(len(users), {user: self._data(room_id, users[user]) for user in listed})

    def _data(self, room_id: str, socket_id: str) -> bytes:
        return self.data.get((room_id, socket_id), b"-").removeprefix(b"-")

    def _answer(self, does: Callable[[], T]) -> Deferred[T]:
        if self.failure is None:
            return succeed(does())
        if self.unanswered:
            does()
        return fail(self.failure)

    def _now(self) -> int:
        """Redis's time: after all that happened."""
        return 1 + self._latest

    def _write(self, entry: RoomEntry, at: int) -> None:
        user_id, room_id, socket_id = entry
        if (room_id, user_id) not in self.sockets:
            self.told.append(("joined", user_id, room_id))
        self.sockets.setdefault((room_id, user_id), {})[socket_id] = at
        self.named.add(entry)
        self._latest = max(self._latest, at)
        word = self.shown.word(entry)
        if word and word != self.data.get((room_id, socket_id)):
            self.data[room_id, socket_id] = word
            self.changed(room_id)

    def _remove(self, entry: RoomEntry, reason: str) -> None:
        user_id, room_id, socket_id = entry
        self.named.discard(entry)
        sockets = self.sockets.get((room_id, user_id), {})
        if sockets.pop(socket_id, None) is not None and not sockets:
            del self.sockets[room_id, user_id]
            self.told.append((reason, user_id, room_id))
        if self.data.pop((room_id, socket_id), None) is not None:
            self.changed(room_id)


@implementer(ISocketRecords)
class FakeRecords:
    """What is kept of sockets, in memory: by its pid the owner and the record. ``left``: whose clients are away.
    ``written`` counts. Every call fails with ``failure`` when that is set.
    """

    def __init__(self) -> None:
        self.kept: dict[str, tuple[str, SocketRecord]] = {}
        self.left: set[str] = set()
        self.failure: Exception | None = None
        self.written = self.renewed = 0

    def find(self, pid: str) -> Deferred[tuple[str, SocketRecord] | None]:
        return self._answer(lambda: self.kept.get(pid))

    def keep(self, pid: str, before: str, socket_id: str, record: SocketRecord) -> Deferred[bool]:
        return self._answer(lambda: self._keep(pid, before, socket_id, record))

    def _keep(self, pid: str, before: str, socket_id: str, record: SocketRecord) -> bool:
        if self.kept.get(pid, (socket_id,))[0] not in (before, socket_id) or (
            pid not in self.kept and before != socket_id
        ):
            return False
        self.written += 1
        self.kept[pid] = socket_id, record
        self.left.discard(pid)
        return True

    def renew(self, sockets: Sequence[tuple[str, str]]) -> Deferred[tuple[list[int], list[int]]]:
        return self._answer(lambda: self._renew(sockets))

    def _renew(self, sockets: Sequence[tuple[str, str]]) -> tuple[list[int], list[int]]:
        self.renewed += len(sockets)
        missing = [number for number, (pid, _) in enumerate(sockets) if pid not in self.kept]
        others = [number for number, (pid, owner) in enumerate(sockets) if self.kept.get(pid, (owner,))[0] != owner]
        return missing, others

    def end(self, pid: str, socket_id: str, *, returns: bool) -> Deferred[None]:
        return self._answer(lambda: self._end(pid, socket_id, returns=returns))

    def _end(self, pid: str, socket_id: str, *, returns: bool) -> None:
        if self.kept.get(pid, ("",))[0] == socket_id:
            if returns:
                self.left.add(pid)
            else:
                del self.kept[pid]

    def _answer(self, does: Callable[[], T]) -> Deferred[T]:
        return fail(self.failure) if self.failure is not None else succeed(does())


@implementer(ITopicLogs)
class FakeLogs:
    """The history of topics in memory. ``epoch``: that of what is told now; ``ended``: where others ended. ``kept``: of
    the messages of each topic the last so many are known. ``ordered``: all that was told, in the order that has
    ``life`` as its epoch.

    Answers wait in ``held`` for :meth:`answer` when that is a list. Every call fails with ``failure`` when that is set.
    """

    def __init__(self) -> None:
        self.epoch = "e1"
        self.ended: dict[str, int] = {}
        self.told: dict[str, list[bytes]] = {}
        self.kept = 1000
        self.stands = True
        self.failure: Exception | None = None
        self.held: list[Callable[[], None]] | None = None
        self.reads = self.compared = self.offered = self.followed = self.unfollowed = 0
        self.life = "0123456789ab"
        self.ordered: list[tuple[str, int, bytes]] = []

    def tell(self, topic: str, **message: Any) -> bytes:
        """A service tells a topic something. Returns what Redis publishes then."""
        body = msgspec.json.encode(message)
        told = self.told.setdefault(topic, [])
        told.append(body)
        self.ordered.append((topic, len(told), body))
        return b"%b %d %b %b" % (self.epoch.encode(), len(told), self._word().encode(), body)

    def _word(self) -> str:
        return f"{self.life}.{len(self.ordered)}"

    def answer(self) -> None:
        """Give the oldest answer that is held."""
        assert self.held is not None
        self.held.pop(0)()

    def follow(self) -> Deferred[bool]:
        self.followed += 1
        return self._answer(lambda: self.stands)

    def unfollow(self) -> Deferred[None]:
        self.unfollowed += 1
        return succeed(None)

    def offer(self) -> Deferred[None]:
        self.offered += 1
        return succeed(None)

    def read(self, topic: str, epoch: str, offset: int, most: int) -> Deferred[Missed | None]:
        self.reads += 1
        return self._answer(lambda: self._missed(topic, epoch, offset, most))

    def page(self, topic: str, epoch: str, before: int, limit: int, most: int) -> Deferred[Page | None]:
        self.reads += 1
        return self._answer(lambda: self._page(topic, epoch, before, limit, most))

    def compare(self, positions: Sequence[TopicPosition]) -> Deferred[list[TopicPosition]]:
        self.compared += len(positions)
        return self._answer(lambda: [each for each in positions if not self._is_at(*each)])

    def order(self) -> Deferred[str | None]:
        return self._answer(lambda: self._word() if self.stands else None)

    def recover(self, word: str, entered: Sequence[TopicPosition], most: int) -> Deferred[Recovered]:
        return self._answer(lambda: self._recovered(word, entered, most))

    def _recovered(self, word: str, entered: Sequence[TopicPosition], most: int) -> Recovered:
        life, _, number = word.partition(".")
        if life != self.life or int(number) > len(self.ordered):
            return Recovered(self._word(), "epoch")
        found, topics = [], [topic for topic, _, _ in entered]
        for topic, epoch, offset in entered:
            missed = self._missed(topic, epoch, offset, most)
            if missed is None or missed.reason == "epoch":
                return Recovered(self._word(), "epoch")
        for place, (topic, offset, body) in enumerate(self.ordered, 1):
            if topic in topics and place > int(number) and offset > dict(zip(topics, entered, strict=True))[topic][2]:
                found.append((topics.index(topic), offset, place, body))
        if len(found) > self.kept:
            return Recovered(self._word(), "too_many")
        return Recovered(self._word(), None, [(self.epoch, self._offset(topic)) for topic in topics], found)

    def _is_at(self, topic: str, epoch: str, offset: int) -> bool:
        return self.stands and (epoch, offset) == (self.epoch, self._offset(topic))

    def _offset(self, topic: str) -> int:
        return len(self.told.get(topic, ()))

    def _missed(self, topic: str, epoch: str, offset: int, most: int) -> Missed | None:
        if not self.stands:
            return None
        last = self._offset(topic)
        messages = self.told.get(topic, [])[offset:]
        if offset > {**self.ended, self.epoch: last}.get(epoch, -1):
            return Missed(self.epoch, last, "epoch")
        if len(messages) > self.kept:
            return Missed(self.epoch, last, "expired" if self.kept == 0 else "too_many")
        if sum(map(len, messages)) > most:
            return Missed(self.epoch, last, "too_many")
        return Missed(self.epoch, last, None, self._rolled_up(topic, offset + 1, last))

    def _page(self, topic: str, epoch: str, before: int, limit: int, most: int) -> Page | None:
        if not self.stands:
            return None
        told, last = self.told.get(topic, []), self._offset(topic)
        before = before if epoch else last + 1
        if epoch and before > {**self.ended, self.epoch: last}.get(epoch, -1) + 1:
            return Page(self.epoch, None)
        first, size, oldest = before, 0, max(1, last - self.kept + 1)
        while first > oldest and before - first < limit:
            size += len(told[first - 2])
            if size > most and first < before:
                break
            first -= 1
        return Page(self.epoch, first, first > oldest, self._rolled_up(topic, first, before - 1))

    def _rolled_up(self, topic: str, first: int, last: int) -> list[Numbered]:
        """What it was told, of each text only the last piece, with all of it."""
        found: dict[object, Numbered] = {}
        texts: dict[str, tuple[int, str]] = {}
        for offset, body in enumerate(self.told.get(topic, ())[:last], 1):
            message = msgspec.json.decode(body) if b'"append"' in body else {}
            if (append := message.get("append")) is not None:
                since, before = texts.get(append["key"], (offset, ""))
                texts[append["key"]] = since, before + message["payload"]
                whole = {"payload": before + message["payload"], "append": {**append, "from": since}}
                found.pop(append["key"], None)
                found[append["key"]] = offset, msgspec.json.encode(message | whole)
            else:
                found[offset] = offset, body
        return [each for each in found.values() if each[0] >= first]

    def _answer(self, does: Callable[[], T]) -> Deferred[T]:
        answer: Deferred[T] = Deferred()
        if self.failure is not None:
            answer.errback(self.failure)
        elif self.held is None:
            answer.callback(does())
        else:
            result = does()  # as Redis was then
            self.held.append(lambda: answer.callback(result))
        return answer


@dataclass
class Published:
    """One ``PUBLISH`` that Redis has not answered yet."""

    channel: str
    body: bytes
    receipt: Callable[[int], None] = field(repr=False)

    @property
    def event(self) -> Any:
        """The body's JSON."""
        return msgspec.json.decode(self.body)


@dataclass
class Call:
    """A command that Redis has not answered yet."""

    command: Any
    keys: tuple[str, ...]
    args: tuple[bytes | str | int | float, ...]
    reply: Deferred[Any] = field(repr=False)


@implementer(IReading)
class FakeReading:
    """A stream in the test's hands: :meth:`hand` delivers an entry. ``acked``: what was acknowledged, in order."""

    def __init__(self, stream: str, listener: EntryListener) -> None:
        self.stream = stream
        self.acked: list[str] = []
        self.ended = False
        self._listener = listener

    def ack(self, entry_id: str) -> None:
        self.acked.append(entry_id)

    def end(self) -> Deferred[None]:
        self.ended = True
        return succeed(None)

    def go_on(self) -> None:
        self.ended = False

    def hand(self, entry_id: str, event: bytes, delivered: int = 1) -> None:
        """Redis hands out an entry."""
        self._listener(entry_id, event, delivered)


@implementer(IBus)
class FakeBus:
    """Redis in memory, answering when it is told to: see :meth:`deliver`, :meth:`answer`, :meth:`up`, :meth:`down`,
    :meth:`deafen`.

    Buses that share ``channels`` share a Redis. ``in_flight`` bounds what waits for an answer. The epoch is ``e1``
    until :meth:`up` or :meth:`begin_epoch` names another one.
    """

    def __init__(
        self,
        channels: dict[str, list[Callable[[bytes], None]]] | None = None,
        *,
        prefix: str = "",
        in_flight: int = 1000,
        available: bool = True,
    ) -> None:
        self.available = available
        self._sends = available
        self.fault: str | None = None if available else "away"
        self.epoch: str | None = "e1" if available else None
        self.published: list[Published] = []
        self.calls: list[Call] = []
        self.listeners: list[IBusListener] = []
        self.tracked: dict[str, Callable[[list[str] | None], None]] = {}
        self.readings: list[FakeReading] = []
        self._followed: dict[str, Callable[[bytes], None]] = {}
        self._channels: dict[str, list[Callable[[bytes], None]]] = {} if channels is None else channels
        self._prefix = prefix
        self._in_flight = in_flight

    def channel_name(self, channel: str) -> str:
        return self._prefix + channel

    def publish(self, channel: str, body: bytes, receipt: Callable[[int], None]) -> None:
        self._check()
        self.published.append(Published(channel, body, receipt))

    def call(
        self, command: Any, keys: Sequence[str] = (), args: Sequence[bytes | str | int | float] = ()
    ) -> Deferred[Any]:
        try:
            self._check(hears=True)
        except NotPublished:
            return fail()
        made = Call(command, tuple(keys), tuple(args), Deferred())
        self.calls.append(made)
        return made.reply

    def run(self, script: ForEach, message: tuple[Any, ...]) -> None:
        self._check()
        self._run(script, [message])

    def run_all(self, script: ForEach, messages: Sequence[tuple[Any, ...]]) -> None:
        self._check(hears=True)
        self._run(script, messages)

    def _run(self, script: ForEach, messages: Sequence[tuple[Any, ...]]) -> None:
        for message in messages:
            columns, bodies = script.pack([message])
            values = [value for (value,) in columns]
            made = Call(script, tuple(map(str, values[: script.keys])), (*values[script.keys :], *bodies), Deferred())
            made.reply.addCallbacks(message[-1], lambda _, receipt=message[-1]: receipt(-1))
            self.calls.append(made)

    def subscribe(self, channel: str, listener: Callable[[bytes], None]) -> None:
        self._channels.setdefault(self.channel_name(channel), []).append(listener)

    def unsubscribe(self, channel: str) -> Deferred[None]:
        self._channels.pop(self.channel_name(channel), None)
        return succeed(None)

    def follow(self, channel: str, listener: Callable[[bytes], None]) -> Deferred[None]:
        self._channels[self.channel_name(channel)] = [listener]
        self._followed[channel] = listener
        return succeed(None) if self.available else fail(NotPublished("Redis is unavailable"))

    def unfollow(self, channel: str) -> None:
        self._channels[self.channel_name(channel)].remove(self._followed.pop(channel))

    def read(
        self,
        group: str,
        consumer: str,
        stream: str,
        listener: EntryListener,
        *,
        window: int = 100,
        claim_after: float = 5.0,
    ) -> FakeReading:
        reading = FakeReading(stream, listener)
        self.readings.append(reading)
        return reading

    def track(self, prefix: str, listener: Callable[[list[str] | None], None]) -> None:
        self.tracked[prefix] = listener

    def settled(self) -> Deferred[None]:
        return succeed(None) if self.available else fail(NotPublished("Redis is unavailable"))

    def add_listener(self, listener: IBusListener) -> None:
        self.listeners.append(listener)
        if self.available:
            listener.bus_up()

    def deliver(self) -> None:
        """Redis hands everything published to its subscribers, and says how many there were."""
        while self.published:
            oldest = self.published.pop(0)
            subscribers = tuple(self._channels.get(self.channel_name(oldest.channel), ()))
            for subscriber in subscribers:
                subscriber(oldest.body)
            oldest.receipt(len(subscribers))

    def answer(self, receivers: int) -> None:
        """Redis says that the oldest message went to so many."""
        self.published.pop(0).receipt(receivers)

    def down(self) -> None:
        """The connection is lost, with everything in flight on it."""
        self.available = self._sends = False
        self.fault = "away"
        self.epoch = None
        published, self.published = self.published, []
        calls, self.calls = self.calls, []
        for message in published:
            message.receipt(-1)
        for call in calls:
            call.reply.errback(NotPublished("the connection was lost"))
        for listener in self.listeners:
            listener.bus_down()

    def deafen(self) -> None:
        """The connection that listens is lost."""
        self.available = False
        self.fault = "deaf"
        self.epoch = None
        for listener in self.listeners:
            listener.bus_down()

    def up(self, epoch: str | None = "e1") -> None:
        """Redis is back. ``epoch``: what its data say."""
        self.available = self._sends = True
        self.fault = None
        self.epoch = epoch
        for listener in self.listeners:
            listener.bus_up()

    def begin_epoch(self, epoch: str) -> None:
        """Redis's data were lost, or it takes writes again."""
        self.epoch = epoch
        for listener in self.listeners:
            listener.epoch_changed()

    def _check(self, *, hears: bool = False) -> None:
        if not (self.available if hears else self._sends):
            raise NotPublished("Redis is unavailable")
        if len(self.published) + len(self.calls) >= self._in_flight:
            raise NotPublished("too much is in flight")
