"""Services in the gateway's own process: their registrations, and the way of an event to a handler and back."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.logger import capturedLogs

from kraftek.contract.errors import ConfigError
from kraftek.contract.names import HISTORY_RULES
from kraftek.contract.settings import Config, Redis, Registration
from kraftek.core.dispatch import Dispatch
from kraftek.daemon.local_services import LocalServices, with_services
from kraftek.service import Context, EventProcessor, Refused
from tests.support.world import Client, House

SEND = "chat:message:send"


# Registrations


def test_one_that_is_not_registered_replies() -> None:
    config = with_services(Config(redis=Redis(prefix="k:")), [EventProcessor("chat", prefix="k:")])
    assert config.services == (Registration(name="chat", channel="events:chat", reply=True),)


def test_one_that_is_registered_stays_as_it_is() -> None:
    others = Registration(name="notes", channel="n")
    config = Config(services=(Registration(name="chat", channel="c", timeout=3.0), others))
    chat = EventProcessor("chat", "c")
    assert with_services(config, [chat]) == config
    assert chat.timeout == 3.0


NO_STREAM = 'transport "pubsub" in the gateway\'s process: a stream is read by an EventService beside it'
RESERVED = "a name and a channel that are none of the gateway's own, found '{}'"
ANOTHER = "channel '{}' and transport \"pubsub\" in its registration, as in this process"


@pytest.mark.parametrize(
    ("processors", "mistakes"),
    [
        ([EventProcessor("chat", transport="stream")], [NO_STREAM]),
        ([EventProcessor("chat", prefix="x:")], ["the prefix '' of redis.prefix, found 'x:'"]),
        ([EventProcessor("chat", broadcast="all")], ["the channel 'events:broadcast' of redis.broadcast, found 'all'"]),
        ([EventProcessor("notes"), EventProcessor("work", "w")], [ANOTHER.format("events:notes"), ANOTHER.format("w")]),
        ([EventProcessor("chat"), EventProcessor("chat")], ["one processor"]),
        ([EventProcessor("chat", "room:r")], [RESERVED.format("room:r")]),
        ([EventProcessor("gateway", "g")], [RESERVED.format("g")]),
    ],
)
def test_mistakes(processors: list[EventProcessor], mistakes: list[str]) -> None:
    config = Config(
        services=(
            Registration(name="notes", channel="elsewhere"),
            Registration(name="work", channel="w", transport="stream"),
        )
    )
    with pytest.raises(ConfigError) as caught:
        with_services(config, processors)
    names = dict.fromkeys(processor.name for processor in processors)
    assert caught.value.mistakes == [
        f"service {name}: expected {mistake}" for name, mistake in zip(names, mistakes, strict=True)
    ]


# Events


class _Reactor:
    """A clock that threads can call."""

    def __init__(self, clock: Any) -> None:
        self._clock = clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._clock, name)

    def callFromThread(self, call: Callable[..., object], *args: Any) -> None:
        self._clock.callLater(0, call, *args)


class Application:
    """A gateway with the service ``chat``, whose handler does as the payload says."""

    def __init__(self, prefix: str = "") -> None:
        self.seen: list[Context] = []
        self.later: list[Deferred[Any]] = []
        chat = EventProcessor("chat", prefix=prefix, grace=5.0)
        chat.on("message:send")(self.handle)
        self.config = with_services(Config(redis=Redis(prefix=prefix)), [chat])
        self.local: LocalServices
        self.house = House(
            services=self.config.services, dispatch=lambda house: self.dispatch(house, chat), prefix=prefix
        )
        self.bus = self.house.bus
        self.local.deliver = self.house.deliveries.received
        self.local.startService()
        self.ada = self.house.admit("ada", "r")
        self.bus.calls.clear()

    def dispatch(self, house: House, chat: EventProcessor) -> Dispatch:
        bus: Any = house.bus
        self.local = LocalServices(_Reactor(house.clock), self.config, [chat], bus, "gw")
        return self.local.dispatch(house.registry, house.accounts)

    def close(self) -> None:
        """End the thread of its service."""
        for instance in self.local._instances:
            instance._pulse.stop()

    def handle(self, context: Context, payload: str) -> Any:
        self.seen.append(context)
        if payload == "refuse":
            raise Refused("NO", "not now")
        if payload == "tell":
            context.broadcast_to_room("chat:told", 1)
        if payload == "later":
            self.later.append(Deferred())
            return self.later[-1]
        return {"did": payload}

    def ask(self, payload: str, id: int | None = 1, client: Client | None = None) -> None:
        """A request; Redis has no other one like it."""
        (client or self.ada).send({"type": SEND, "payload": payload, **({} if id is None else {"id": id})})
        for call in self.calls("'NX'"):
            self.bus.calls.remove(call)
            call.reply.callback(1)
        self.house.clock.advance(0)

    def calls(self, part: str) -> list[Any]:
        return [call for call in self.bus.calls if part in getattr(call.command, "source", str(call.command))]


@pytest.fixture
def prefix() -> str:
    return ""


@pytest.fixture
def app(prefix: str) -> Iterator[Application]:
    with closing(Application(prefix)) as app:
        yield app


@pytest.mark.parametrize("prefix", ["", "k:"])
def test_an_answer_does_not_come_to_redis(app: Application) -> None:
    app.ask("x")
    assert app.ada.link.read() == [{"type": SEND, "payload": {"did": "x"}, "id": 1}]
    assert not app.bus.calls
    assert not app.bus.published
    (context,) = app.seen
    assert (context.user_id, context.room_id, context.id, context.socket_id) == ("ada", "r", 1, app.ada.id)
    app.ask("y", None)
    assert (app.ada.link.read(), app.bus.calls) == ([], [])


def test_an_answer_may_come_later(app: Application) -> None:
    app.ask("later")
    assert app.ada.link.read() == []
    app.later[0].callback("now")
    assert app.ada.link.read() == [{"type": SEND, "payload": "now", "id": 1}]


def test_errors(app: Application) -> None:
    app.ask("refuse")
    app.ask("later", 2)
    with capturedLogs() as events:
        app.later[0].errback(ZeroDivisionError("secret"))
    codes = [(each["id"], each["payload"]["code"]) for each in app.ada.link.read()]
    assert codes == [(1, "NO"), (2, "EVENT_PROCESSING_ERROR")]
    assert [event["log_failure"].type for event in events] == [ZeroDivisionError]


def test_what_others_are_told_goes_by_redis_first(app: Application) -> None:
    app.ask("tell")
    (call,) = app.bus.calls
    channel, message, rules = call.args
    assert isinstance(message, bytes)
    assert (channel, json.loads(message)["roomId"], rules) == ("events:broadcast", "r", HISTORY_RULES)
    assert app.ada.link.read() == []
    call.reply.callback(1)
    assert app.ada.link.read() == [{"type": SEND, "payload": {"did": "tell"}, "id": 1}]


def test_what_another_gateway_publishes_is_handled_too(app: Application) -> None:
    event = {
        "eventType": SEND,
        "payload": "x",
        "id": 7,
        "socketId": "other.1",
        "userId": "bob",
        "replyTo": "events:reply:other",
    }
    (listener,) = app.bus._channels["events:chat"]
    listener(json.dumps(event).encode())
    (commit,) = app.bus.calls  # published for that one; to all if it is gone
    assert commit.args.count("PUBLISH") == 2
    assert b"unheard" not in commit.args[:3]


def test_a_stop_finishes_what_is_in_hand(app: Application) -> None:
    app.ask("later")
    stopped = app.local.stopService()
    assert not stopped.called
    app.ask("x", 2)
    assert [each["payload"]["code"] for each in app.ada.link.read()] == ["SERVICE_UNAVAILABLE"]
    app.later[0].callback("done")
    assert app.ada.link.read() == [{"type": SEND, "payload": "done", "id": 1}]
    assert stopped.called


def test_a_gateway_without_services_is_as_ever() -> None:
    def dispatch(house: House) -> Dispatch:
        bus: Any = house.bus
        return LocalServices(house.clock, Config(), [], bus, "gw").dispatch(house.registry, house.accounts)

    assert type(House(dispatch=dispatch).core.dispatch) is Dispatch
