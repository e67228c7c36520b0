"""The values that cross edges: what they hold, what they refuse, and that a token shows itself nowhere."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from kraftek.contract import messages
from kraftek.contract.messages import (
    NULL,
    Authenticate,
    Broadcast,
    Delivery,
    Envelope,
    Event,
    Grant,
    Outgoing,
    Token,
)

SECRET = "s3cret-token"


def test_everything_public_is_named() -> None:
    assert all(hasattr(messages, name) for name in messages.__all__)


def test_a_token_shows_itself_in_no_representation() -> None:
    token = Token(SECRET)
    for shown in (repr(token), str(token), f"{token}", repr(Authenticate(token, "room", 1)), repr([token])):
        assert SECRET not in shown
    assert token.value == SECRET


def test_a_token_is_known_by_the_sha256_of_its_utf8() -> None:
    # printf 'тест' | sha256sum
    assert Token("тест").digest == "e34f6dec12c4f4599eba078f31ae8139420d21b1bd2d7ced7d22b09c2074fb48"


@given(st.text(alphabet=st.characters()))
def test_any_text_can_be_a_token(text: str) -> None:
    assert len(Token(text).digest) == 64


def test_half_a_surrogate_pair_is_no_reason_to_fail() -> None:
    assert Token("\ud800").digest != Token("\udc00").digest


def test_a_grant_is_read_from_the_auth_services_words() -> None:
    grant = msgspec.json.decode(
        b'{"success":true,"userId":"u","roomId":"r","permissions":["a:*:*"],"expiresAt":12.5,"ttl":3,"more":1}',
        type=Grant,
    )
    assert grant == Grant("u", "r", ("a:*:*",), 12.5, 3.0)


def test_a_grant_says_no_more_than_it_knows() -> None:
    assert msgspec.json.encode(Grant("u")) == b'{"userId":"u"}'


def test_no_permissions_at_all_differ_from_none_said() -> None:
    assert msgspec.json.decode(msgspec.json.encode(Grant("u", permissions=())), type=Grant).permissions == ()
    assert Grant("u").permissions is None


def test_an_envelope_is_what_the_redis_contract_says() -> None:
    envelope = Envelope(
        event_type="a:b:c",
        user_id="u",
        socket_id="g.1",
        timestamp=1700000000000,
        gateway_id="g",
        reply_to="events:reply:g",
        payload=Raw(b'{"x": 1.50}'),
        room_id="r",
        id=7,
        traceparent="00-ab",
    )
    assert msgspec.json.encode(envelope) == (
        b'{"eventType":"a:b:c","userId":"u","socketId":"g.1","timestamp":1700000000000,"gatewayId":"g",'
        b'"replyTo":"events:reply:g","payload":{"x": 1.50},"roomId":"r","id":7,"traceparent":"00-ab"}'
    )


def test_an_envelope_leaves_out_what_there_is_not() -> None:
    envelope = Envelope(
        event_type="a:b:c",
        user_id="u",
        socket_id="g.1",
        timestamp=1,
        gateway_id="g",
        reply_to="r:g",
        payload=NULL,
    )
    assert msgspec.json.decode(msgspec.json.encode(envelope)) == {
        "eventType": "a:b:c",
        "userId": "u",
        "socketId": "g.1",
        "timestamp": 1,
        "gatewayId": "g",
        "replyTo": "r:g",
        "payload": None,
    }


def test_a_broadcast_needs_its_type_alone() -> None:
    assert msgspec.json.decode(b'{"type":"t"}', type=Broadcast) == Broadcast("t")


def test_a_broadcast_has_every_word_of_the_contract() -> None:
    broadcast = msgspec.json.decode(
        b'{"type":"t","payload":{"a":[1, 2]},"recipients":["g.1"],"excludeSocketIds":["g.2"],"roomId":"r",'
        b'"userIds":["u"],"inReplyTo":"q1","more":{}}',
        type=Broadcast,
    )
    assert bytes(broadcast.payload) == b'{"a":[1, 2]}'
    assert (broadcast.recipients, broadcast.exclude_socket_ids) == (("g.1",), ("g.2",))
    assert (broadcast.room_id, broadcast.user_ids, broadcast.in_reply_to) == ("r", ("u",), "q1")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"type":1}',
        b'{"type":"t","recipients":"g.1"}',
        b'{"type":"t","recipients":[1]}',
        b'{"type":"t","userIds":{}}',
        b'{"type":"t","roomId":5}',
        b'{"type":"t","inReplyTo":1.5}',
    ],
)
def test_a_malformed_broadcast_is_refused(body: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        msgspec.json.decode(body, type=Broadcast)


def test_messages_cannot_be_changed() -> None:
    for message in (Event("a:b:c"), Delivery("t"), Grant("u"), Broadcast("t")):
        with pytest.raises(AttributeError):
            setattr(message, message.__struct_fields__[0], "other")


def test_an_outgoing_message_is_framed_by_whoever_sends_it() -> None:
    outgoing = Outgoing(b"text", (b"one", b"two"))
    assert (outgoing.text, outgoing.attachments, outgoing.wire) == (b"text", (b"one", b"two"), None)
