"""What waits for clients that do not read what they are sent, and what becomes of it: the policies of messages, what is
told about those that were missed, and the bounds.

Used by :mod:`kraftek.edge.websocket.outbox` and :mod:`kraftek.edge.engineio.unfetched`, while a client is *blocked*:
its transport takes no more, or it polls and has not come back yet. As long as it reads nothing here is asked.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Protocol

from twisted.internet.interfaces import IReactorTime

from kraftek.contract.accounts import Accounts
from kraftek.contract.messages import NULL, Delivery, Gap, Outgoing, Waiting
from kraftek.contract.metrics import Counters, SkipReason
from kraftek.contract.settings import EventPolicy
from kraftek.edge.policies import Policies

__all__ = ["IN_TRANSPORT", "Backlog", "Backlogs", "SlowClient"]

IN_TRANSPORT = 65_536
"""Bytes that count as waiting in the transport of a blocked client: Twisted's ``bufferSize``, beyond which it is."""

_OVERHEAD = 16
"""Bytes that a message is counted beyond its text: its frames, and its place here."""

_BURST = 16
"""Times as much as usual may wait for a client that has had no time to come and fetch it."""

_STALE = 64
"""Places without a message that may be left in the queue before they are removed."""


class SlowClient(Protocol):
    """A client that does not read."""

    def give_up(self) -> None:
        """More waits for it than may, or for too long: send the last message, and close."""

    def gap(self, gap: Gap) -> Outgoing | None:
        """The message that says what it missed; ``None`` when it cannot be told now."""


class _Place:
    """The place of a message that may be removed before its turn comes: replaced, or too old."""

    __slots__ = ("outgoing",)

    def __init__(self, outgoing: Outgoing) -> None:
        self.outgoing: Outgoing | None = outgoing


class Backlog:
    """The messages that wait for one client, in the order in which they are sent.

    A message of the policy ``latest`` goes to the end, and the one that it replaces is removed. What overtakes goes
    ahead of those at the end that may still be replaced, and of nothing else: then it keeps its order with all others.

    Messages wait as long as there is ``room`` (:class:`Backlogs`), and one that is larger by itself: a client that
    reads gets it. ``progress``: when the client last took something. ``due``: whether it has to, because what it is
    being sent is large. ``begun``: bytes of that, which whoever sends them keeps in the account. ``in_transport``:
    bytes that count here for its transport.
    """

    __slots__ = (
        "_all",
        "_expiring",
        "_large",
        "_missed",
        "_order",
        "_places",
        "_stale",
        "_tail",
        "begun",
        "client",
        "due",
        "in_transport",
        "progress",
        "size",
    )

    def __init__(self, backlogs: Backlogs, client: SlowClient, in_transport: int) -> None:
        self.client = client
        self.in_transport = in_transport
        self.size = self.begun = 0
        self.due = False
        self.progress = backlogs.clock.seconds()
        self._all = backlogs
        self._large = 0
        self._order: deque[Outgoing | _Place] = deque()
        # The last ones of ``_order``, as long as all of them may be replaced: what overtakes goes before them.
        self._tail: dict[Hashable, _Place] = {}
        self._places: dict[Hashable, _Place] = {}
        self._expiring: dict[str, deque[_Place]] = {}
        self._stale = 0
        self._missed: dict[str, dict[str, int]] = {}

    def __len__(self) -> int:
        return len(self._order) - self._stale + len(self._tail)

    @property
    def room(self) -> int:
        """Bytes that may wait, beside one message that is larger."""
        return self._all.room

    @property
    def large(self) -> bool:
        """Whether more waits than there is room for."""
        return self.size > self._all.room

    def put(self, outgoing: Outgoing) -> bool:
        """Have it wait, or not, as its policy says. ``False``: there is no room for it, and nothing was done."""
        waiting = outgoing.waiting or self._all.wait(outgoing)
        policy = waiting.policy
        if policy is not None and policy.policy == "drop":
            self._miss(waiting, SkipReason.DROP)
            return True
        place = waiting.place
        if place is not None:
            self._replace(place)
        if not self._has_room(waiting):
            return False
        self._hold(waiting)
        if place is not None:
            self._places[place] = self._tail[place] = _Place(outgoing)
        elif waiting.overtakes:
            self._order.append(outgoing)
        else:
            if self._tail:
                self._end_tail()
            self._order.append(self._expires(outgoing, policy) if policy is not None and policy.ttl else outgoing)
        return True

    def keep(self, outgoing: Outgoing) -> bool:
        """Have it wait whatever its policy says: its client is on its way to fetch it. ``False``: there is no room for
        it, although more may wait for such a client.
        """
        waiting = outgoing.waiting or self._all.wait(outgoing)
        if self.size and self.size + waiting.size > _BURST * self._all.limit:
            return False
        if waiting.size > self._all.room and not self._large:
            self._large = waiting.size
        self._hold(waiting)
        self._end_tail()
        self._order.append(outgoing)
        return True

    def take(self, most: int) -> list[Outgoing]:
        """The next messages, of ``most`` bytes together, or a larger one alone; before them what was missed."""
        taken: list[Outgoing] = []
        if self._missed:
            missed, self._missed = self._missed, {}
            told = self.client.gap(Gap(missed))
            if told is not None:
                taken.append(told)
        if self._tail:
            self._end_tail()
        order, size, now = self._order, 0, self._all.clock.seconds()
        while order:
            each = order[0]
            outgoing = each if isinstance(each, Outgoing) else each.outgoing
            if outgoing is None:
                self._stale -= 1
            elif isinstance(each, _Place) and self._is_old(outgoing, now):
                self._skip(each, outgoing, SkipReason.TTL)
                self._stale -= 1
            else:
                size += self._waiting(outgoing).size
                if size > most and taken:
                    break
                taken.append(outgoing)
                self._leave(each, outgoing)
            order.popleft()
        return taken

    def end(self) -> None:
        """Nothing waits any more, or ever will."""
        for each in (*self._order, *self._tail.values()):
            outgoing = each if isinstance(each, Outgoing) else each.outgoing
            if outgoing is not None:
                self._release(self._waiting(outgoing))
        for part in (self._order, self._tail, self._places, self._expiring, self._missed):
            part.clear()
        self._stale = 0
        self._all.end(self)

    def _has_room(self, waiting: Waiting) -> bool:
        size, room = waiting.size, self._all.room
        if size > room and not self._large:
            self._large = size
            return True
        if self.size - self._large + size > room:
            self._expire(waiting.at)
            return self.size - self._large + size <= room
        return True

    def _replace(self, place: Hashable) -> None:
        """A later message takes the place of this one."""
        before = self._places.pop(place, None)
        if before is None:
            return
        if self._tail.pop(place, None) is None:
            self._stale += 1
        outgoing, before.outgoing = before.outgoing, None
        if outgoing is not None:
            self._release(self._waiting(outgoing))
            self._all.counters.messages_skipped[SkipReason.LATEST] += 1
        self._compact()

    def _expires(self, outgoing: Outgoing, policy: EventPolicy) -> _Place:
        """Its place: it may grow too old."""
        place = _Place(outgoing)
        self._expiring.setdefault(policy.pattern, deque()).append(place)
        self._expire(self._waiting(outgoing).at)
        return place

    def _expire(self, now: float) -> None:
        """Remove what is too old, of those that nothing else removes: the others are few."""
        for places in self._expiring.values():
            while places:
                outgoing = places[0].outgoing
                if outgoing is not None:
                    if not self._is_old(outgoing, now):
                        break
                    self._skip(places[0], outgoing, SkipReason.TTL)
                places.popleft()
        self._compact()

    def _is_old(self, outgoing: Outgoing, now: float) -> bool:
        waiting = self._waiting(outgoing)
        return waiting.policy is not None and 0 < waiting.policy.ttl < now - waiting.at

    def _skip(self, place: _Place, outgoing: Outgoing, reason: SkipReason) -> None:
        """It is not sent, and the client is told so."""
        self._leave(place, outgoing)
        self._stale += 1
        self._miss(self._waiting(outgoing), reason)

    def _leave(self, each: Outgoing | _Place, outgoing: Outgoing) -> None:
        """It does not wait any more."""
        waiting = self._waiting(outgoing)
        if isinstance(each, _Place):
            each.outgoing = None
            self._places.pop(waiting.place, None)
        self._release(waiting)

    def _end_tail(self) -> None:
        self._order.extend(self._tail.values())
        self._tail.clear()

    def _compact(self) -> None:
        order = self._order
        if self._stale > _STALE and self._stale > len(order) // 2:
            left = [each for each in order if isinstance(each, Outgoing) or each.outgoing is not None]
            order.clear()
            order.extend(left)
            self._stale = 0

    def _miss(self, waiting: Waiting, reason: SkipReason) -> None:
        policy = waiting.policy
        self._all.counters.messages_skipped[reason] += 1
        if policy is not None:
            room = self._missed.setdefault(waiting.room_id, {})
            room[policy.pattern] = room.get(policy.pattern, 0) + 1

    def _hold(self, waiting: Waiting) -> None:
        self.size += waiting.size
        waiting.holders += 1
        if waiting.holders == 1:
            self._all.accounts.unsent += waiting.size

    def _release(self, waiting: Waiting) -> None:
        self.size -= waiting.size
        if waiting.size > self._all.room:
            self._large = 0
        waiting.holders -= 1
        if not waiting.holders:
            self._all.accounts.unsent -= waiting.size

    @staticmethod
    def _waiting(outgoing: Outgoing) -> Waiting:
        assert outgoing.waiting is not None
        return outgoing.waiting


class Backlogs:
    """Those of all clients of this process.

    ``limit``: bytes that may wait for one client, in its transport, too; ``room``: how many of them here. ``patience``:
    seconds within which a client has to take some of what is more than that. What waits for several clients
    counts once in ``accounts``, as it is in memory once. ``policies`` may be replaced: what waits keeps those it had.
    """

    def __init__(
        self,
        policies: Policies,
        accounts: Accounts,
        counters: Counters,
        clock: IReactorTime,
        *,
        limit: int,
        patience: float,
    ) -> None:
        self.accounts = accounts
        self.counters = counters
        self.clock = clock
        self.limit = limit
        self.room = max(limit - IN_TRANSPORT, limit // 2)
        self.policies = policies
        self._patience = patience
        self._backlogs: set[Backlog] = set()

    def __len__(self) -> int:
        return len(self._backlogs)

    def begin(self, client: SlowClient, in_transport: int = IN_TRANSPORT) -> Backlog:
        """The client is blocked; so many bytes count as waiting in its transport."""
        backlog = Backlog(self, client, in_transport)
        self._backlogs.add(backlog)
        self.accounts.unsent += in_transport
        return backlog

    def end(self, backlog: Backlog) -> None:
        """It is over."""
        if backlog in self._backlogs:
            self._backlogs.remove(backlog)
            self.accounts.unsent -= backlog.in_transport

    def wait(self, outgoing: Outgoing) -> Waiting:
        """What is to be known about a message that waits; made once for all clients that it waits for."""
        size = len(outgoing.text) + sum(map(len, outgoing.attachments)) + _OVERHEAD
        about = outgoing.about
        if about is None:
            waiting = Waiting(size, self.clock.seconds(), overtakes=True)
        else:
            # Its payload would keep all that came from Redis with it. Where it is in a history others still ask.
            told = about.offset is not None
            outgoing.about = Delivery("", NULL, about.room_id, None, about.offset, about.order) if told else None
            policy = None if about.append is not None else self.policies.of(about.type)
            place = None if policy is None else self.policies.place(policy, about)
            waiting = Waiting(size, self.clock.seconds(), about.room_id or "", policy, place)
        outgoing.waiting = waiting
        return waiting

    def sweep(self) -> None:
        """Close the clients that do not take what is too much to wait for long. Called a few times a second."""
        too_long = self.clock.seconds() - self._patience
        for backlog in [each for each in self._backlogs if (each.due or each.large) and each.progress < too_long]:
            backlog.client.give_up()

    def shed(self, size: int) -> int:
        """A :data:`kraftek.contract.accounts.Shed`: close the clients for which most waits."""
        before = self.accounts.unsent
        for backlog in sorted(self._backlogs, key=lambda each: -each.size - each.begun):
            if before - self.accounts.unsent >= size:
                break
            backlog.client.give_up()
        return before - self.accounts.unsent
