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
    assert (outbox.events, outbox.pending, outbox.is_behind()) == (1, 1, True)
    assert sent(outbox) == [b"join", b"join too", b"event", b'{"a long":"request"}', b"control"]
    # The request has no answer yet.
    assert (outbox.events, outbox.pending, outbox.is_behind()) == (0, 1, False)


def test_only_requests_are_sent_again_and_before_the_rest() -> None:
    outbox = filled()
    sent(outbox)
    outbox.put("f", Kind.EVENT, b"later")
    outbox.put("d", Kind.CONTROL, b"of that socket")
    for rest in ([b"later"], []):
        outbox.socket_lost()
        assert sent(outbox) == [b'{"a long":"request","resent":true}', *rest]


def test_a_cancel_is_sent_on_the_next_socket_too_unless_it_is_confirmed() -> None:
    outbox = Outbox()
    for number in range(258):
        outbox.put(f"cancel {number}", Kind.CANCEL, b"%d" % number)
    assert sent(outbox) == [b"%d" % number for number in range(258)]
    outbox.discard("cancel 9")
    outbox.socket_lost()
    # Of so many the last are remembered.
    again = [b"%d" % number for number in range(2, 258) if number != 9]
    assert (sent(outbox), outbox.pending) == (again, 0)
    outbox.socket_lost()
    assert sent(outbox) == []
    outbox.put("cancel 1", Kind.CANCEL, b"1")
    sent(outbox)
    outbox.clear()
    outbox.socket_lost()
    assert sent(outbox) == []


def test_a_request_keeps_the_room_that_was_the_default() -> None:
    outbox = Outbox()
    for key in "abc":
        outbox.put(key, Kind.REQUEST, b'{"id":"%b"}' % key.encode())
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
    outbox.put("d", Kind.REQUEST, b"{}")
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
    assert outbox.pending == 0


def test_the_longest_message_of_a_socket_may_be_an_unanswered_request() -> None:
    outbox = filled()
    assert outbox.too_large() == ("", None)
    outbox.put("r", Kind.REQUEST, b'{"a long":"request"}', "r1")
    sent(outbox)
    assert outbox.too_large() == ("r", None)
    event = b"an event that is longer than any request"
    outbox.put("e", Kind.EVENT, event)
    sent(outbox)
    assert outbox.too_large() == ("", event)
    outbox.socket_lost()
    sent(outbox)
    assert outbox.too_large() == ("r", None)
    outbox.discard("r")
    assert outbox.too_large() == ("", None)


def test_what_is_for_a_closed_room_waits_and_the_rest_does_not() -> None:
    outbox = Outbox()
    outbox.put("1", Kind.EVENT, b"one", "closed")
    outbox.put("2", Kind.EVENT, b"two", "open")
    outbox.put("3", Kind.EVENT, b"three")
    outbox.put("4", Kind.CONTROL, b"control")
    assert outbox.take("closed", {"closed"}) == b"two"
    assert outbox.take("closed", {"closed"}) == b"control"
    assert outbox.take("closed", {"closed"}) is None
    assert outbox.take_events("open", {"closed"}) == (b"three",)
    assert outbox.events == 1
    assert outbox.take("open") == b"one"


def test_what_does_not_wait_for_rooms() -> None:
    outbox = Outbox()
    outbox.put("r", Kind.REQUEST, b'{"id":"r"}')
    outbox.take()
    outbox.socket_lost()
    outbox.put("e", Kind.EVENT, b"event")
    outbox.put_first({"j": b"join"})
    assert outbox.take_control() is None
    again = b'{"id":"r","resent":true}'
    assert [outbox.take_early() for _ in range(3)] == [again, b"join", None]


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
    assert (outbox.events, outbox.pending, outbox.is_behind()) == (0, 0, False)
    assert sent(outbox) == []
    assert outbox.requests() == []
