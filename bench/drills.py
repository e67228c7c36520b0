"""What the clients do on an order; `bench.load` calls `carry_out`.

A drill keeps messages coming, counts what is due and what comes over all of its time, and times what comes within a
window that opens after a warm-up. It is closed: a message makes way for the next one when it has arrived, so that a
slow gateway gets fewer messages, not a longer queue.
"""

import asyncio
from abc import ABC, abstractmethod
from collections import deque

from bench.crowd import PATIENCE, Client, Crowd, clock
from bench.orders import Connect, FanOut, Idle, ManyRooms, Order, Outcome, RoundTrip

HANDSHAKES_AT_ONCE = 100
WARM_MESSAGES = 5000
"""A warm-up lasts at least this long: a compiler that works at run time goes by calls, not by the clock."""


async def carry_out(order: Order, crowd: Crowd) -> Outcome:
    """Do what is asked."""
    match order:
        case Connect():
            return await _connect(order, crowd)
        case Idle():
            return await _idle(order, crowd)
        case RoundTrip():
            return await _RoundTrips(order, crowd).run()
        case ManyRooms():
            return await _ManyRooms(order, crowd).run()
        case FanOut():
            return await _FanOut(order, crowd).run()


async def _connect(order: Connect, crowd: Crowd) -> Outcome:
    numbers = iter(crowd.more(order.clients))
    latencies: list[int] = []

    async def one_after_another() -> None:
        for who in numbers:
            began = clock()
            try:
                await crowd.connect(who, who // order.room_size)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is the outcome
                crowd.fault(f"not connected: {error!r}")
            else:
                latencies.append(clock() - began)

    window = crowd.window()
    await asyncio.gather(*(one_after_another() for _ in range(HANDSHAKES_AT_ONCE)))
    return crowd.outcome(window.close(), order.clients, len(latencies), latencies)


async def _idle(order: Idle, crowd: Crowd) -> Outcome:
    crowd.pings = 0
    window = crowd.window()
    await asyncio.sleep(order.seconds)
    closed = window.close()
    if crowd.pings < 0.9 * len(crowd.clients):
        crowd.fault(f"only {crowd.pings} pings for {len(crowd.clients)} clients")
    return crowd.outcome(closed, 0, 0, [])


class _Drill(ABC):
    """The warm-up, the window, the wait for what is still under way."""

    def __init__(self, crowd: Crowd, warm: float, seconds: float) -> None:
        self.crowd = crowd
        self.due = 0
        self.delivered = 0
        self.latencies: list[int] = []
        self.goes_on = True
        self._warm = warm
        self._seconds = seconds

    async def run(self) -> Outcome:
        self.crowd.received = self.received
        self.start()
        given_up = clock() + PATIENCE * 1e9
        await asyncio.sleep(self._warm)
        while self.delivered < WARM_MESSAGES and clock() < given_up:
            await asyncio.sleep(0.01)
        self.latencies.clear()
        window = self.crowd.window()
        await asyncio.sleep(self._seconds)
        closed = window.close()
        latencies = self.latencies.copy()
        self.goes_on = False
        given_up = clock() + PATIENCE * 1e9
        while self.delivered < self.due and clock() < given_up:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.02)  # what comes now came twice
        return self.crowd.outcome(closed, self.due, self.delivered, latencies)

    def arrived(self, said_at: int) -> None:
        self.delivered += 1
        self.latencies.append(clock() - said_at)

    @abstractmethod
    def start(self) -> None:
        """Say the first messages."""

    @abstractmethod
    def received(self, client: Client, data: bytes) -> None:
        """A client got a message."""


class _RoundTrips(_Drill):
    def __init__(self, order: RoundTrip, crowd: Crowd) -> None:
        super().__init__(crowd, order.warm, order.seconds)
        self._in_flight = order.in_flight
        self._asks = order.request
        make = crowd.dialect.request if order.request else crowd.dialect.event
        self._event = make(order.event, order.text)

    def start(self) -> None:
        for _ in range(self._in_flight):
            for client in self.crowd.clients.values():
                self._say(client)

    def received(self, client: Client, data: bytes) -> None:
        payload = self.crowd.dialect.payload(data)
        if payload.who != client.who:
            self.crowd.fault("an answer to somebody else")
        self.arrived(payload.at)
        if self.goes_on:
            self._say(client)

    def _say(self, client: Client) -> None:
        self.due += 1
        now = clock()
        if self._asks:
            client.send(self._event % (now, client.who, client.room, now, client.who))
        else:
            client.send(self._event % (now, client.who, client.room))


class _ManyRooms(_Drill):
    def __init__(self, order: ManyRooms, crowd: Crowd) -> None:
        super().__init__(crowd, order.warm, order.seconds)
        self._event = crowd.dialect.event(order.event, order.text)
        self._at_once, self._pause = order.at_once, order.pause
        self._resting = deque(crowd.rooms.values())
        self._missing: dict[int, int] = {}

    def start(self) -> None:
        for _ in range(self._at_once):
            self._say()

    def received(self, client: Client, data: bytes) -> None:
        payload = self.crowd.dialect.payload(data)
        speaker = self.crowd.clients[payload.who]
        if speaker.room != client.room:
            self.crowd.fault("an event of another room")
        self.arrived(payload.at)
        self._missing[client.room] -= 1
        if not self._missing[client.room]:
            self._resting.append(self.crowd.rooms[client.room])
            if self._pause:
                asyncio.get_running_loop().call_later(self._pause, self._go_on)
            else:
                self._go_on()

    def _go_on(self) -> None:
        if self.goes_on:
            self._say()

    def _say(self) -> None:
        room = self._resting.popleft()
        speaker = room[0]
        room.append(room.pop(0))
        self._missing[speaker.room] = len(room)
        self.due += len(room)
        speaker.send(self._event % (clock(), speaker.who, speaker.room))


class _FanOut(_Drill):
    def __init__(self, order: FanOut, crowd: Crowd) -> None:
        super().__init__(crowd, order.warm, order.seconds)
        self._members = b'"type":"bench:fan:out","payload":{"at":%%d,"who":0,"roomId":"r0","text":"%s"}' % (
            b"x" * order.text
        )
        self._publish_by = crowd.line.tell if order.told else crowd.line.publish
        self._at = 0
        self._mark = b""
        self._missing = 0

    def start(self) -> None:
        self._publish()

    def received(self, client: Client, data: bytes) -> None:
        # No decoding: at 8,000 clients this line is most of what the load does.
        if self._mark not in data:
            self.crowd.fault(f"instead of the event: {data[:100]!r}")
        self.arrived(self._at)
        self._missing -= 1
        if not self._missing and self.goes_on:
            self._publish()

    def _publish(self) -> None:
        self._at = clock()
        self._mark = b"%d" % self._at
        self._missing = len(self.crowd.clients)
        self.due += self._missing
        self._publish_by(self._members % self._at)
