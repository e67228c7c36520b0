"""Gateway processes as far as requests are concerned, on a real Redis: what their clients ask, and are told."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec
from twisted.internet import reactor
from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase

from kraftek.bus import RedisBus
from kraftek.contract.accounts import Accounts
from kraftek.contract.errors import Code, NotPublished, PeerError
from kraftek.contract.iteration import Iteration
from kraftek.contract.messages import Broadcast, Envelope, Event, Grant, Inbound, Token
from kraftek.contract.metrics import Counters
from kraftek.contract.settings import Limits, Redis, Registration
from kraftek.core.budgets import Budgets
from kraftek.core.dispatch import Dispatch
from kraftek.core.registry import ServiceRegistry
from kraftek.core.request_records import record_key
from kraftek.core.requests import Requests, unreachable_error
from kraftek.core.roster import Roster
from kraftek.core.session import HeldGrant, Session
from kraftek.edge.dialects.native import NativeDialect
from tests.support.fakes import FakeLink
from tests.support.redis_server import private_redis
from tests.support.waiting import until

__all__ = ["SEND", "RequestGateway", "RequestsTestCase", "ask", "told"]

SEND = "chat:message:send"


class RequestGateway:
    """What concerns requests of one gateway process, on a real Redis."""

    def __init__(self, name: str, redis: Redis, services: Sequence[Registration], limits: Limits) -> None:
        self.name = name
        self.clock = Clock()
        self.counters = Counters()
        self.accounts = Accounts()
        self.bus = RedisBus(reactor, redis, Iteration(reactor), self.counters)
        self.registry = ServiceRegistry(services)
        self.roster = Roster()
        self.limits = limits
        self.budgets = Budgets(limits, self.counters, self.clock)
        dispatch = Dispatch(self.registry, self.bus)
        self.requests = Requests(
            dispatch, self.bus, name, self.limits, self.counters, self.clock, accounts=self.accounts
        )

    def handle(self, session: Session, message: Any) -> None:
        """As the core does it."""
        service = self.registry.find(message.name.partition(":")[0])
        assert service is not None
        assert session.user_id is not None
        if message.room_id not in session.rooms:
            error = PeerError(Code.ACCESS_DENIED, "not in this room", id=message.id, event_type=message.name)
            key = record_key(session.user_id, message.name, message.room_id, message.payload, message.id)
            self.requests.find(session, message.id, service, key, error)
            return
        envelope = Envelope(
            event_type=message.name,
            user_id=session.user_id,
            socket_id=session.socket_id,
            timestamp=int(self.clock.seconds() * 1000),
            gateway_id=self.name,
            reply_to=f"events:reply:{self.name}",
            payload=message.payload,
            room_id=message.room_id,
            id=message.id,
        )
        try:
            self.requests.send(session, message.id, service, envelope, message.resent)
        except NotPublished:
            raise unreachable_error(message.name, message.id) from None

    def limit(self, session: Session, message: Inbound, error: PeerError) -> bool:
        """Nothing is over its budget here."""
        return False

    def release(self, session: Session) -> None:
        """Nothing is held here."""

    def closed(self, session: Session) -> None:
        """As the core does it."""
        self.roster.remove(session)
        self.requests.departed(session)

    def connect(self, socket_id: str, user_id: str = "ann") -> Session:
        """A client connects, and is in the rooms ``board`` and ``other``."""
        session = Session(
            f"{self.name}.{socket_id}",
            self,
            FakeLink(),
            NativeDialect(),
            self.limits,
            self.counters,
            budgets=self.budgets,
        )
        session.outages = self.requests.look_ups.outages
        session.user_id = user_id
        session.rooms = {room: HeldGrant(Token("t"), Grant(user_id, room)) for room in ("board", "other")}
        self.roster.add(session)
        self.roster.identify(session, user_id, "digest")
        return session


def ask(
    session: Session,
    name: str = SEND,
    id: int | str = "q",
    payload: Any = 1,
    room: str = "board",
    resent: bool = False,
) -> None:
    """The client sends a request."""
    session.handle(Event(name, msgspec.Raw(json.dumps(payload).encode()), id, room, resent=resent))


def told(session: Session) -> list[Any]:
    """What the client was sent since the last look."""
    assert isinstance(session.link, FakeLink)
    return session.link.read()


class RequestsTestCase(TestCase):
    """Two gateways, ``one`` and ``two``, on a real Redis. Requests are in the stream of service ``chat``."""

    timeout = 30

    async def setUp(self) -> None:  # type: ignore[override]  # trial waits for it
        self.redis = private_redis(self)
        self.client = self.redis.client(decode_responses=True)
        self.addCleanup(self.client.close)
        self.one = await self.gateway("one")
        self.two = await self.gateway("two")

    async def gateway(
        self,
        name: str,
        window: float = 120.0,
        timeout: float = 10.0,
        requests: int = 10_000,
        answer_bytes: int = Limits().answer_bytes,
        **redis: Any,
    ) -> RequestGateway:
        """Start a gateway. ``requests``: the bound of ``chat``. ``redis``: settings of its connections."""
        services = [
            Registration(
                name="chat",
                channel="events:chat",
                transport="stream",
                reply=True,
                timeout=timeout,
                requests=requests,
            ),
            Registration(name="log", channel="events:log", transport="stream"),
            Registration(name="radio", channel="events:radio", partitions=4),
        ]
        limits = Limits(request_window=window, answer_bytes=answer_bytes)
        made = RequestGateway(name, Redis(url=self.redis.url, prefix="k:", **redis), services, limits)
        made.bus.startService()
        self.addCleanup(made.bus.stopService)
        await until(lambda: made.bus.available, "a connection to Redis")
        return made

    async def send(
        self,
        session: Session,
        name: str = SEND,
        id: int | str = "q",
        payload: Any = 1,
        room: str = "board",
        resent: bool = False,
    ) -> None:
        """The client sends a request, and Redis has answered it."""
        ask(session, name, id, payload, room, resent)
        core: Any = session._core
        for _ in range(2):  # for the record, and for what Redis is asked about one that stands
            await core.bus.call("PING")

    async def sweep(self, gateway: RequestGateway, seconds: float = 0.25) -> None:
        """Time passes, and Redis has answered what the gateway asked meanwhile."""
        gateway.clock.advance(seconds)
        gateway.requests.sweep()
        gateway.clock.advance(0.02)
        for _ in range(3):  # what it has heard it may look further into
            await gateway.bus.call("PING")

    def handled(self, service: str = "chat") -> int:
        """How many events its stream has."""
        return int(self.client.xlen(f"k:events:{service}"))

    def answer(self, gateway: RequestGateway, socket_id: str, payload: str = "done", id: str = "q") -> None:
        """The service answers the request of this socket, on the gateway's reply channel."""
        self.say(gateway, {"recipients": [socket_id], "inReplyTo": id, "payload": payload})

    def say(self, gateway: RequestGateway, words: dict[str, Any]) -> None:
        """The service publishes, and the gateway stores the answer that it is."""
        body = json.dumps({"type": "r", **words}).encode()
        gateway.requests.answered(msgspec.json.decode(body, type=Broadcast), body)
        gateway.clock.advance(0.02)
