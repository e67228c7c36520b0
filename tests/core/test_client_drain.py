"""In which order, when and with which words the clients of a gateway that stops are closed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from twisted.logger import capturedLogs

from tests.support.world import Client, House

REASON = "the gateway stops"


class Stop:
    """A gateway with so many clients, which stops. ``over``: whether all were told."""

    def __init__(self, clients: int) -> None:
        self.house = House()
        people = min(clients, 3)
        self.clients = [self.house.admit(f"user{number}", f"room{number}") for number in range(people)]
        self.clients += [self.house.connect() for _ in range(people, clients)]
        self.over = False

    def begin(self, seconds: float) -> Stop:
        """It begins."""
        self.house.drain.begin(seconds, REASON).addCallback(self._told)
        return self

    def _told(self, _: None) -> None:
        self.over = True

    @property
    def closed(self) -> int:
        """How many were closed."""
        return sum(client.link.closed is not None for client in self.clients)

    def after(self, seconds: float) -> int:
        """How many were closed by then."""
        for _ in range(round(seconds / 0.05)):
            self.house.clock.advance(0.05)
        return self.closed

    def absences(self) -> list[float]:
        """What each was told, in the order in which they came."""
        return [absence(client) for client in self.clients]


def absence(client: Client) -> float:
    """How long the client is to be away, which is the last that it was told."""
    assert client.link.closed == (1012, REASON)
    *_, last = client.link.read()
    assert last["type"] == "drain"
    return float(last["payload"]["reconnectAfter"])


def ask(client: Client, id: int) -> None:
    client.send({"type": "chat:message:send", "id": id})


def answer(client: Client, id: int) -> None:
    message: dict[str, Any] = {"type": "chat:message:sent", "recipients": [client.id], "inReplyTo": id}
    client.house.deliveries.received(json.dumps(message).encode())


def test_it_is_over_at_once_without_clients() -> None:
    stop = Stop(0).begin(10)
    assert stop.over
    assert stop.house.clock.getDelayedCalls() == []


def test_a_few_are_closed_at_once() -> None:
    stop = Stop(3).begin(10)
    assert stop.after(0.05) == 3
    assert stop.absences() == [0, 0, 0]
    assert stop.over
    assert stop.house.rooms.entries == {}


def test_many_are_closed_at_an_even_pace() -> None:
    stop = Stop(400).begin(10)
    closed = [stop.closed, *(stop.after(0.25) for _ in range(8))]
    assert closed == pytest.approx([0, 50, 100, 150, 200, 250, 300, 350, 400], abs=1)
    assert set(stop.absences()) == {0}
    assert stop.over


def test_they_have_half_of_the_time() -> None:
    stop = Stop(400).begin(1)
    assert stop.after(0.25) == pytest.approx(200, abs=1)
    assert stop.after(0.25) == 400
    assert stop.over


@pytest.mark.parametrize("seconds", [0, 0.1])
def test_who_is_closed_early_is_to_come_back_later(seconds: float) -> None:
    """A thousand in a second at most."""
    stop = Stop(400).begin(seconds)
    stop.after(seconds)
    back = [wait + min(seconds / 2, number / 400 * seconds / 2) for number, wait in enumerate(stop.absences())]
    assert back == pytest.approx([number / 1000 for number in range(400)], abs=0.051)


def test_a_client_waits_for_the_answers_to_its_requests() -> None:
    stop = Stop(2)
    first, second = stop.clients
    ask(first, 1)
    ask(first, 2)
    stop.begin(10)
    assert stop.after(1) == 1
    answer(first, 1)
    assert stop.after(1) == 1
    answer(first, 2)
    assert not first.link.closed
    stop.house.clock.advance(0)
    assert [message.get("id") for message in first.link.read()] == [1, 2, None]
    assert first.link.closed == second.link.closed
    stop.after(0.05)
    assert stop.over


def test_what_it_asks_later_is_not_waited_for() -> None:
    stop = Stop(1)
    (client,) = stop.clients
    ask(client, 1)
    stop.begin(10)
    ask(client, 2)
    answer(client, 1)
    assert stop.after(0.05) == 1


@pytest.mark.parametrize("end", ["time", "hurry"])
def test_it_does_not_wait_for_ever(end: str) -> None:
    stop = Stop(2)
    ask(stop.clients[0], 1)
    stop.begin(10)
    if end == "hurry":
        assert stop.after(1) == 1
        stop.house.drain.hurry()
    else:
        assert stop.after(9.9) == 1
        stop.after(0.2)
    assert stop.closed == 2
    assert stop.over


def test_a_request_without_its_client_holds_nobody_up() -> None:
    stop = Stop(1)
    ask(stop.clients[0], 1)
    stop.begin(10)
    stop.clients[0].leave()
    stop.after(0.05)
    assert stop.over
    answer(stop.clients[0], 1)
    stop.after(0.05)


def test_who_comes_meanwhile_is_closed_too() -> None:
    """A Socket.IO client that enters its namespace again does so on the connection that it has."""
    stop = Stop(100).begin(10)
    stop.clients.append(stop.house.connect())
    assert stop.after(0.55) == 101
    assert stop.over


def test_hurrying_ends_the_even_pace() -> None:
    stop = Stop(400).begin(10)
    stop.after(0.5)
    stop.house.drain.hurry()
    assert stop.closed == 400
    assert stop.absences()[-1] == pytest.approx(2 - 0.5, abs=0.051)
    assert stop.over


def test_hurrying_before_or_after_changes_nothing() -> None:
    stop = Stop(1)
    stop.house.drain.hurry()
    assert stop.closed == 0
    assert stop.begin(0).closed == 1
    stop.house.drain.hurry()


def test_a_mistake_of_ours_leaves_nobody_behind() -> None:
    stop = Stop(3)
    stop.house.requests.after_answers = None  # type: ignore[assignment,method-assign]
    with capturedLogs() as events:
        stop.begin(10)
    assert (stop.closed, stop.over) == (3, True)
    assert [event["log_format"] for event in events] == ["Closing the clients one after the other failed"]
