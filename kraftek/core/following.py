"""The topics with history that somebody of this process hears: where each is, and what was delivered of it here.

A topic is a room, or a user. :mod:`kraftek.core.membership` says which rooms are entered, and
:mod:`kraftek.core.resuming` who is here, and where a client begins in either. What a topic is told comes with the next
offset, and is delivered. Whatever else comes, or does not come, is found by comparing with Redis, and read there: after
each gap in listening, when an offset is missing, and all the time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from itertools import cycle

from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from kraftek.contract.errors import NotPublished
from kraftek.contract.interfaces import IBus, IBusListener, ITopicLogs, Missed, TopicPosition
from kraftek.contract.log_once import OnceUntilItWorks, failing
from kraftek.contract.messages import Since, Standing
from kraftek.contract.metrics import Counters, ResumeFailure
from kraftek.contract.names import room_topic, topic_channel, user_topic
from kraftek.contract.order import UNCERTAIN
from kraftek.contract.turns import Turns
from kraftek.core.deliveries import Deliveries
from kraftek.core.followed import Followed, FollowedRoom, FollowedUser
from kraftek.core.history.rules import Rules
from kraftek.core.ordering import Ordering
from kraftek.core.roster import Roster
from kraftek.core.session import Session

__all__ = ["FOLLOW_INTERVAL", "Following"]

FOLLOW_INTERVAL = 1.0
"""Seconds between two words of this process that it delivers by its rules: one may fail."""

_SWEEPS = 40
"""Sweeps in which every topic is compared once: ten seconds."""

_AT_ONCE = 200
"""Topics that one call of a script compares: it blocks Redis for a millisecond or two."""


_Compare = Callable[[Sequence[Followed]], Deferred[bool]]


def _some_by_some(compare: _Compare, topics: Sequence[Followed]) -> Deferred[bool]:
    """Fires with whether Redis has answered. It is asked for some at a time, and answers others in between."""
    return Deferred.fromCoroutine(_compare_all_of(compare, topics))


async def _compare_all_of(compare: _Compare, topics: Sequence[Followed]) -> bool:
    for start in range(0, len(topics), _AT_ONCE):
        if not await compare(topics[start : start + _AT_ONCE]):
            return False
    return True


@implementer(IBusListener)
class Following:
    """``most``: bytes that a client, or a topic, may have missed. What a topic has missed is delivered in ``turns``.
    ``doubt``: to be set before anything is received; as that of :class:`kraftek.core.followed.FollowedUser`.
    """

    _log = Logger()

    def __init__(
        self,
        bus: IBus,
        logs: ITopicLogs,
        rules: Rules,
        roster: Roster,
        deliveries: Deliveries,
        counters: Counters,
        ordering: Ordering,
        *,
        turns: Turns,
        most: int,
    ) -> None:
        self._bus, self._logs = bus, logs
        self._rules, self._keeps_users, self._roster = rules, rules.keep(user_topic("")), roster
        self._deliveries, self._counters, self._turns, self._accounts = deliveries, counters, turns, turns.accounts
        self._topics: dict[str, Followed] = {}
        self.most, self.ordering = most, ordering
        ordering.compare = self._compare_all
        self.lost: Callable[[Session], None] | None = None
        self.doubt: Callable[[Session], None] | None = None
        self.read_on: Callable[[Session, str | None, Since], None] | None = None
        parts: list[list[Followed]] = [[] for _ in range(_SWEEPS)]
        self._entering, self._sweeping = cycle(parts), cycle(enumerate(parts))
        self._once = OnceUntilItWorks()
        deliveries.followed = self._topics
        if rules:
            bus.add_listener(self)

    @property
    def topics(self) -> Collection[Followed]:
        return self._topics.values()

    def __len__(self) -> int:
        return len(self._topics)

    def keeps(self, room_id: str | None) -> bool:
        """Whether the room has a history."""
        return bool(self._rules) and room_id is not None and self._rules.keep(room_topic(room_id))

    def enter(self, room_id: str, epoch: str = "", offset: int = 0, *, owed: bool = False) -> None:
        """Somebody of this process is in the room, and was there in this place, if it is known; ``owed``: and is to be
        told where the room is.
        """
        if self._rules and (topic := room_topic(room_id)) not in self._topics and self._rules.keep(topic):
            self._enter(FollowedRoom(topic, self._roster, self._accounts, room_id), epoch, offset, owed)

    def find(self, room_id: str | None) -> Followed | None:
        """The room, if it has a history and somebody of this process is in it."""
        return None if room_id is None else self._topics.get(room_topic(room_id))

    def enter_user(self, user_id: str, epoch: str = "", offset: int = 0, *, owed: bool = False) -> None:
        """The user is connected to this process; the rest as above."""
        if self._keeps_users and (topic := user_topic(user_id)) not in self._topics:
            assert self.doubt is not None
            self._enter(FollowedUser(topic, self._roster, self._accounts, user_id, self.doubt), epoch, offset, owed)

    def _enter(self, topic: Followed, epoch: str, offset: int, owed: bool) -> None:
        topic.epoch, topic.offset, topic.owed = epoch, offset, owed
        next(self._entering).append(topic)
        self._follow(topic)

    def find_user(self, user_id: str) -> Followed | None:
        """The user, if users have a history, and this one is connected to this process."""
        return self._topics.get(user_topic(user_id))

    async def position(self, topic: Followed) -> None:
        """Return when Redis has said where the topic is, or could not."""
        if not topic.busy:
            self._read(topic)
        if topic.busy:
            waiting: Deferred[None] = Deferred()
            topic.waiting.append(waiting)
            await waiting

    def follow(self) -> None:
        """Called every :data:`FOLLOW_INTERVAL` seconds."""
        if self._rules and self._bus.available:
            self._logs.follow().addErrback(self._failed)

    def stop(self) -> None:
        """The process stops. Called before it gives up its lease."""
        if self._rules and self._bus.available:
            self._logs.unfollow().addErrback(self._failed)

    def sweep(self) -> None:
        """Called several times a second: compare some topics, and leave those that nobody hears any more."""
        self.ordering.sweep()
        if not self._topics or not self._bus.available:
            return
        number, part = next(self._sweeping)
        if number == 0:
            self._logs.offer().addErrback(self._failed)
        for topic in [each for each in part if not each.busy and not each.sessions]:
            part.remove(topic)
            self._topics.pop(topic.topic).give_up()
            self.ordering.complete(topic.topic)
            self._bus.unfollow(topic_channel(topic.topic))
        _some_by_some(self._compare_some, [topic for topic in part if not topic.busy])

    def shed(self, size: int) -> int:
        """A :data:`kraftek.contract.accounts.Shed`: all that was heard is read instead."""
        return sum(topic.give_up() for topic in self._topics.values())

    # IBusListener

    def bus_up(self) -> None:
        self.follow()  # the rules stand before anything is read
        # By the answer to this one it has its lease, too.
        self._logs.offer().addErrback(self._failed).addCallback(lambda _: self.follow())
        self.ordering.disturbed()
        if not self.ordering.sweep():
            self._compare_all()

    def bus_down(self) -> None:
        self.ordering.disturbed()

    epoch_changed = bus_up

    # What is told

    def _heard(self, topic: Followed, told: bytes) -> None:
        try:
            epoch, number, word, message = told.split(b" ", 3)
            offset, order = int(number), self.ordering.heard(word.decode())
        except ValueError:
            self._counters.broadcasts_malformed += 1
            return
        if topic.busy or not topic.epoch:
            topic.keep(told)
        elif epoch.decode("ascii", "replace") != topic.epoch or offset > topic.offset + 1:
            self._read(topic)
        elif offset == topic.offset + 1:
            self._deliver(topic, offset, message, order)

    def _deliver(self, topic: Followed, offset: int, message: bytes, order: str) -> None:
        topic.offset = offset
        self._counters.told += 1
        self._deliveries.told(topic, offset, message, order)
        if topic.catching:
            topic.let_go_who_are_there()

    # Comparing with Redis

    def _follow(self, topic: Followed) -> None:
        self._topics[topic.topic], topic.busy = topic, True
        if topic.epoch:
            self.ordering.incomplete(topic.topic)
        following = self._bus.follow(topic_channel(topic.topic), partial(self._heard, topic))
        following.addCallbacks(lambda _: self._read(topic, anew=True), self._unread, errbackArgs=(topic,))

    def _compare_all(self) -> Deferred[bool]:
        return _some_by_some(self._compare_some, list(self._topics.values()))

    def _compare_some(self, topics: Sequence[Followed]) -> Deferred[bool]:
        asked = []
        for topic in topics:
            if self._topics.get(topic.topic) is not topic:
                continue
            if topic.busy:
                topic.stale = True
            elif not topic.epoch:
                self._read(topic)
            else:
                asked.append(topic.position)
        comparing = self._logs.compare(asked) if asked else succeed([])
        return comparing.addCallback(self._compared, asked).addErrback(self._failed)

    def _compared(self, elsewhere: Sequence[TopicPosition], asked: Sequence[TopicPosition]) -> bool:
        for position in asked:
            topic = self._topics.get(position[0])
            if topic is None or topic.busy:
                continue
            if position not in elsewhere:
                self.ordering.complete(topic.topic)
            elif topic.position == position:  # otherwise it has moved on
                self._follow(topic)  # Redis may have forgotten that this process listens
        return True

    def _read(self, topic: Followed, *, anew: bool = False) -> None:
        if topic.busy and not anew:
            return
        topic.busy = True
        if topic.epoch:
            self.ordering.incomplete(topic.topic)
        reading = self._logs.read(topic.topic, topic.epoch, topic.offset, self.most)
        reading.addCallbacks(
            lambda missed: Deferred.fromCoroutine(self._was_read(missed, topic)), self._unread, errbackArgs=(topic,)
        ).addErrback(self._failed)

    async def _was_read(self, missed: Missed | None, topic: Followed) -> None:
        self._once.works()
        topic.ruled_out = missed is None
        try:
            if missed is None:
                topic.epoch, topic.owed = "", True
            else:
                await self._move(topic, missed)
                await self._catch_up(topic)
        finally:
            stale, topic.stale = topic.stale, False
            self.ordering.complete(topic.topic)
            topic.rest()
        if stale:
            self._read(topic)

    async def _move(self, topic: Followed, missed: Missed) -> None:
        """The topic is there: by way of all that was missed, or without."""
        before, topic.epoch = topic.epoch, missed.epoch
        if not before:
            topic.offset, owed, topic.owed = missed.offset, topic.owed, False
            if owed:
                self._tell_position(topic, ResumeFailure.UNAVAILABLE)
            return
        if missed.reason is not None:
            topic.offset = missed.offset
            self._tell_position(topic, missed.reason, goes_on=before == topic.epoch)
            topic.let_go_who_are_there()
            return
        if before != topic.epoch:
            self._tell_position(topic, None)
        self._counters.told_fetched += len(missed.messages)
        for number, (offset, message) in enumerate(missed.messages):
            await topic.turn(self._turns, number)
            self._deliver(topic, offset, message, UNCERTAIN)

    async def _catch_up(self, topic: Followed) -> None:
        """Deliver what it was told while it was read, as far as that goes on from there."""
        while heard := topic.take():
            for number, told in enumerate(heard):
                await topic.turn(self._turns, number)
                epoch, offset, word, message = told.split(b" ", 3)
                if epoch.decode("ascii", "replace") != topic.epoch or int(offset) > topic.offset + 1:
                    topic.stale = True
                elif int(offset) == topic.offset + 1:
                    self._deliver(topic, int(offset), message, self.ordering.again(word.decode()))

    def _tell_position(self, topic: Followed, reason: str | None, *, goes_on: bool = False) -> None:
        """Where the topic is now, to those who did not see it move there; and the reason if they missed something. Who
        has got more here, if the epoch ``goes_on``, reads on from there.
        """
        for session in tuple(topic.sessions):
            catch_up, why = topic.catching.get(session), reason
            until = None if catch_up is None else catch_up.until
            if catch_up is not None and until is None:
                catch_up.interrupt()  # it reads what it has missed until now, or once more
                continue
            if until is not None and goes_on:
                if until < topic.offset and self.read_on is not None:
                    self.read_on(session, topic.room_id, Since(topic.epoch, until))
                continue
            if reason is not None and self.lost is not None:
                self.lost(session)
            if not topic.hears(session):
                continue  # it is about to be let in
            if catch_up is not None:
                # It has got more than was delivered here, and nobody asked whether that survives.
                topic.let_go(session)
                why = reason or ResumeFailure.EPOCH
            topic.tell_standing(session, Standing(topic.epoch, topic.offset, why is None, why))

    def _unread(self, failure: Failure, topic: Followed) -> None:
        topic.take()
        topic.rest()
        self._failed(failure)

    def _failed(self, failure: Failure) -> bool:
        if failure.check(NotPublished) is None:
            line = "Histories cannot be read, until they can be"
            self._once.failed(failing(self._log, failure), line)
        return False
