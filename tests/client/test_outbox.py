"""What a client has yet to send, and what it sends again."""

from __future__ import annotations

from kraftek.client.outbox import Kind, Outbox


def filled() -> Outbox:
    outbox = Outbox()
    outbox.put("e", Kind.EVENT, b"event")
    outbox.put("r", Kind.REQUEST, b'{"a long":"request"}')
    outbox.put("c", Kind.CONTROL, b"control")
    return outbox


def sent(outbox: Outbox) -> list[bytes]:
    return [*iter(outbox.take, None)]


def test_messages_keep_their_order() -> None:
    outbox = filled()
    outbox.put_first({"j": b"join", "k": b"join too"})
    assert len(outbox) == 5
    assert sent(outbox) == [b"join", b"join too", b"event", b'{"a long":"request"}', b"control"]
    assert len(outbox) == 1  # the request has no answer yet


def test_only_requests_are_sent_again_and_before_the_rest() -> None:
    outbox = filled()
    sent(outbox)
    outbox.put("f", Kind.EVENT, b"later")
    outbox.put("d", Kind.CONTROL, b"of that socket")
    for rest in ([b"later"], []):
        outbox.socket_lost()
        assert sent(outbox) == [b'{"a long":"request","resent":true}', *rest]


def test_a_request_keeps_the_room_that_was_the_default() -> None:
    outbox = Outbox()
    for key in "abc":
        outbox.put(key, Kind.REQUEST, b'{"id":"%b"}' % key.encode(), roomless=True)
    assert outbox.take("größe") == '{"id":"a","roomId":"größe"}'.encode()
    assert outbox.take() == b'{"id":"b"}'
    assert outbox.is_from_nowhere
    outbox.socket_lost()
    outbox.put_first({"j": b"join"})
    assert [outbox.take("r1") for _ in range(4)] == [
        b'{"id":"b","resent":true}',
        b"join",
        '{"id":"a","roomId":"größe","resent":true}'.encode(),
        b'{"id":"c","roomId":"r1"}',
    ]
    outbox.discard("b")
    assert not outbox.is_from_nowhere
    outbox.put("d", Kind.REQUEST, b"{}", roomless=True)
    outbox.take()
    outbox.clear()
    assert not outbox.is_from_nowhere


def test_a_request_is_one_until_it_is_discarded() -> None:
    outbox = filled()
    assert outbox.requests() == ["r"]
    assert [outbox.is_request(key) for key in "erc-"] == [False, True, False, False]
    assert not outbox.is_unanswered("r")
    sent(outbox)
    assert outbox.requests() == ["r"]
    assert outbox.is_request("r")
    assert outbox.is_unanswered("r")
    outbox.discard("r")
    outbox.discard("nobody")
    assert not outbox.is_request("r")
    assert len(outbox) == 0


def test_the_longest_message_of_a_socket_may_be_an_unanswered_request() -> None:
    outbox = filled()
    assert outbox.longest_request() is None
    sent(outbox)
    assert outbox.longest_request() == "r"
    outbox.put("e", Kind.EVENT, b"an event that is longer than any request")
    sent(outbox)
    assert outbox.longest_request() is None
    outbox.socket_lost()
    sent(outbox)
    assert outbox.longest_request() == "r"
    outbox.discard("r")
    assert outbox.longest_request() is None


def test_events_are_taken_out_of_the_middle() -> None:
    outbox = filled()
    outbox.put("f", Kind.EVENT, b"another")
    assert outbox.take_events() == (b"event", b"another")
    assert outbox.take_events() == ()
    assert sent(outbox) == [b'{"a long":"request"}', b"control"]


def test_nothing_is_left_when_it_is_cleared() -> None:
    outbox = filled()
    outbox.take()
    outbox.take()
    outbox.clear()
    assert len(outbox) == 0
    assert sent(outbox) == []
    assert outbox.requests() == []
