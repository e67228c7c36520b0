"""What a service is told about its registration, and when: Redis is a function of the test's."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from kraftek.contract.registrations import Given, published
from kraftek.contract.settings import Config, Redis, Registration
from kraftek.service import asyncio as over_asyncio
from kraftek.service.backend import Away, Rejected
from kraftek.service.comparison import Comparison, compare
from kraftek.service.processor import EventProcessor, Incoming

CHAT = Registration(name="chat", channel="events:chat", reply=True)
STREAM = replace(CHAT, transport="stream")
GATEWAY, OTHER = "events:reply:0123456789ab", "events:reply:0123456789ac"


class Place:
    """A backend for one service. ``fleet``: what the gateways of its prefix publish. ``channels``: those that have a
    subscriber. ``fault`` is raised in place of an answer.
    """

    def __init__(self, processor: EventProcessor) -> None:
        self.fleet: list[bytes] = []
        self.channels: list[str] = []
        self.fault: Exception | None = None
        self.said: list[tuple[str, str]] = []
        self.asked: list[tuple[Any, ...]] = []
        self.processor = processor
        self.comparison = Comparison(processor, self)  # type: ignore[arg-type]  # as much as it uses

    def gateways(self, *registrations: Registration | None) -> None:
        """One for each; with ``None`` it has no services."""
        self.fleet = [published(Config(), [one] if one else []) for one in registrations]

    async def call(self, *command: Any) -> list[bytes]:
        self.asked.append(command)
        if self.fault is not None:
            raise self.fault
        return self.fleet if command[0] == "HVALS" else [channel.encode() for channel in self.channels]

    def info(self, text: str) -> None:
        self.said.append(("info", text))

    def warn(self, text: str) -> None:
        self.said.append(("warn", text))

    def looks(self, times: int = 1) -> list[tuple[str, str]]:
        """What it says meanwhile."""
        self.said = []
        for _ in range(times):
            asyncio.run(self.comparison.look())
        return self.said


CASES = msgspec.json.decode((Path(__file__).parent / "comparisons.json").read_bytes())
"""The same for both SDKs."""


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_what_differs_is_said_with_both_ways_to_mend_it(case: dict[str, Any]) -> None:
    given = Given(**case["given"])

    async def call(command: str, *words: str) -> list[bytes]:
        if command != "HVALS":
            return [channel.encode() for channel in case["channels"]]
        assert words == (f"{given.prefix}gateways:registrations",)
        return [each.encode() if isinstance(each, str) else msgspec.json.encode(each) for each in case["published"]]

    found = asyncio.run(compare(call, given))
    assert (found.lines, found.sure, found.compared) == (case["lines"], case["sure"], case["compared"])
    assert found.timeout == case.get("timeout")


@pytest.fixture
def place() -> Place:
    return Place(EventProcessor("chat"))


def test_a_service_as_registered_hears_nothing(place: Place) -> None:
    place.gateways(CHAT, CHAT)
    assert place.looks(3) == []
    assert place.asked == [("HVALS", "gateways:registrations")] * 3


def test_a_difference_is_told_once_and_again_when_it_has_changed(place: Place) -> None:
    place.gateways(STREAM)
    ((level, line),) = place.looks(3)
    assert level == "warn"
    assert line.startswith('Service chat: transport is "pubsub" here, and "stream" at the gateways. Either ')
    place.gateways(replace(STREAM, channel="x"))
    assert [level for level, _ in place.looks(2)] == ["warn"]
    place.gateways(CHAT)
    assert place.looks(2) == [("info", "Service chat agrees with its registration at the gateways")]


def test_its_handlers_may_take_as_long_as_gateways_wait(place: Place) -> None:
    event = Incoming(event_type="chat:message:send")
    own = Place(EventProcessor("chat", timeout=2.0))
    for here in (place, own):
        here.gateways(replace(CHAT, timeout=30.0))
        assert here.looks(2) == []
    assert [here.processor.time_limit(event) for here in (place, own)] == [30.0, 2.0]
    place.gateways()
    place.looks()
    assert place.processor.time_limit(event) == 30.0, "as long as nobody says otherwise"


def test_gateways_that_differ_for_a_moment_are_not_mentioned(place: Place) -> None:
    place.gateways(CHAT, STREAM)
    assert place.looks() == []
    place.gateways(CHAT, CHAT)
    assert place.looks(2) == []
    place.gateways(CHAT, STREAM)
    ((level, line),) = place.looks(3)
    assert level == "warn"
    assert '"stream" at 1 of 2 gateways' in line


def test_without_a_gateway_it_says_so_once(place: Place) -> None:
    nobody = "Service chat is not compared with its registration: no gateway is connected to this Redis"
    place.channels = ["events:reply:host.17.0123456789ab.ordered"]  # an SDK's
    assert place.looks(3) == [("info", nobody)]


def test_gateways_under_another_prefix_are_mentioned_once_that_lasts() -> None:
    place = Place(EventProcessor("chat", prefix="a:"))
    place.channels = [f"b:{GATEWAY}", f"b:{OTHER}", f"c:{GATEWAY}"]
    assert place.looks() == []
    assert place.looks(3) == [
        (
            "warn",
            (
                'Service chat: no gateway with the prefix "a:" is connected to this Redis; there are gateways with '
                '"b:", "c:". Either give the service prefix = "b:", or write prefix = "a:" under [redis] of them, and '
                "restart them"
            ),
        )
    ]
    assert place.asked[0] == ("HVALS", "a:gateways:registrations")


def test_what_redis_refuses_stops_nothing(place: Place) -> None:
    place.fault = Away("gone")
    assert place.looks(2) == []
    place.fault = Rejected("NOPERM x")
    said = "Service chat is not compared with its registration: Redis refuses that: NOPERM x"
    assert place.looks(2) == [("info", said)]
    place.fault = None
    place.gateways(CHAT)
    assert [level for level, _ in place.looks(2)] == ["info"]


def test_whoever_may_not_ask_for_channels_hears_less(place: Place) -> None:
    async def call(*command: Any) -> list[bytes]:
        if command[0] == "PUBSUB":
            raise Rejected("NOPERM x")
        return []

    place.call = call  # type: ignore[method-assign]
    ((_, line),) = place.looks()
    assert line.endswith("no gateway is connected to this Redis")


def test_its_own_settings_are_compared_without_the_prefix() -> None:
    place = Place(EventProcessor("chat", "events:talk", prefix="k:", broadcast="all", reply=False))
    place.fleet = [published(Config(redis=Redis(prefix="k:", broadcast="all")), [CHAT])]
    lines = [line for _, line in place.looks()]
    assert ['channel is "events:talk" here' in lines[0], "reply is false here" in lines[1]] == [True, True]


@pytest.mark.parametrize(
    ("gateway", "line"),
    [
        (
            published(Config(), []),
            (
                "it registers itself, and auto_register does not have its name at the gateways. Write it into "
                'auto_register = ["chat"] of the gateways, and reload them; or register it there under [services.chat]'
            ),
        ),
        (
            published(Config(auto_register=("ch*",)), [], {"chat": "channel: expected x"}),
            "it may not register itself (channel: expected x) at the gateways. Change that in the service",
        ),
        (
            published(Config(auto_register=("ch*",)), []),
            "it has registered itself, and is not known yet at the gateways. Wait for them",
        ),
    ],
)
def test_one_that_registers_itself_is_told_why_that_has_no_effect(gateway: bytes, line: str) -> None:
    place = Place(EventProcessor("chat", register=True))
    place.fleet = [gateway]
    assert place.looks() == [("warn", f"Service chat: {line}")]


def test_it_looks_until_it_is_stopped_and_a_fault_of_its_own_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    failed: list[str] = []

    async def play() -> None:
        backend = over_asyncio._Backend("redis://127.0.0.1:1")
        backend.start()
        asked = asyncio.Event()

        async def call(*command: Any) -> list[bytes]:
            asked.set()
            return [b'{"version": 2}']

        monkeypatch.setattr(backend, "call", call)
        monkeypatch.setattr(backend, "failed", lambda text, error: failed.append(text))
        comparison = Comparison(EventProcessor("chat"), backend)
        comparison.stop()
        comparison = Comparison(EventProcessor("chat"), backend)
        comparison.start()
        await asked.wait()
        await asyncio.sleep(0)
        comparison.stop()
        await backend.close()
        assert failed == []

        async def fails(*command: Any) -> list[bytes]:
            raise KeyError(command[0])

        backend = over_asyncio._Backend("redis://127.0.0.1:1")
        backend.start()
        monkeypatch.setattr(backend, "call", fails)
        monkeypatch.setattr(backend, "failed", lambda text, error: failed.append(text))
        Comparison(EventProcessor("chat"), backend).start()
        await backend.close()

    asyncio.run(asyncio.wait_for(play(), 20))
    assert failed == ["The service is not compared with its registration any more"]
