"""The closing handshakes under way, and who waits for them."""

from __future__ import annotations

import pytest
from twisted.internet import defer
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from websockets.frames import Close

from kraftek.edge.websocket.closings import Closings
from tests.edge.websocket.edge import Edge, Peer


def fired(waiting: Deferred[None]) -> bool:
    return waiting.called


def test_there_is_nothing_to_wait_for_when_nobody_was_told() -> None:
    assert fired(Closings().over())


def test_the_last_to_go_ends_the_wait() -> None:
    closings, first, second = Closings(), object(), object()
    for connection in (first, second):
        closings.begin(connection)
    waits = [closings.over(), closings.over()]
    closings.end(first)
    assert not any(map(fired, waits))
    closings.end(second)
    assert all(map(fired, waits))
    assert fired(closings.over())


def test_connections_that_were_told_nothing_are_nobodys() -> None:
    closings, told = Closings(), object()
    closings.begin(told)
    waiting = closings.over()
    closings.end(object())
    assert not fired(waiting)
    assert len(closings) == 1


def test_a_wait_may_be_given_a_time_out() -> None:
    clock, closings, told = Clock(), Closings(), object()
    closings.begin(told)
    failures: list[object] = []
    waiting = closings.over().addTimeout(1.0, clock)
    waiting.addErrback(lambda failure: failures.append(failure.type))
    clock.advance(1.0)
    assert failures == [defer.TimeoutError]
    closings.end(told)
    assert fired(closings.over())


@pytest.fixture
def edge() -> Edge:
    return Edge()


def test_a_connection_is_under_way_from_its_close_frame_until_it_is_gone(edge: Edge) -> None:
    peer = Peer(edge)
    closings = edge.factory.closings
    assert len(closings) == 0
    peer.protocol.close(1001, "the gateway stops")
    assert len(closings) == 1
    assert peer.read() == [(1001, "the gateway stops")]
    peer.flush()
    assert peer.transport.closed == "lost"  # not aborted, which resets it
    assert len(closings) == 1
    peer.lose()
    assert len(closings) == 0


def test_one_that_the_client_closes_is_too(edge: Edge) -> None:
    peer = Peer(edge)
    peer.client.send_close(1000)
    peer.flush()
    assert len(edge.factory.closings) == 1
    peer.lose()
    assert len(edge.factory.closings) == 0


def test_one_whose_handshake_was_refused_is_not(edge: Edge) -> None:
    peer = Peer(edge, headers={"Origin": "http://evil.test"})
    assert peer.status == 403
    assert len(edge.factory.closings) == 0


def test_the_answer_is_read_of_a_client_that_was_not_read_any_more(edge: Edge) -> None:
    peer = Peer(edge)
    peer.protocol.outbox.pause()
    assert peer.transport.producerState == "paused"
    peer.protocol.close(1001, "the gateway stops")
    assert peer.transport.producerState == "producing"
    peer.read()
    peer.flush()
    assert peer.client.close_rcvd == Close(1001, "the gateway stops")
    assert peer.protocol.wasClean
