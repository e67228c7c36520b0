"""Payloads of what clients ask of the gateway itself, in whichever dialect."""

from __future__ import annotations

import pytest
from msgspec import Raw

from kraftek.contract.errors import Code, PeerError
from kraftek.contract.messages import ABSENT, ROOM_ID_LENGTH, AskPresence, Join, Leave
from kraftek.edge.dialects.commands import ask_presence, authenticate, join, leave


def test_a_token_comes_with_a_room_or_without() -> None:
    message = authenticate(Raw(b'{"token":"t","roomId":"r"}'), 7, room_id="other")
    assert (message.token.value, message.room_id, message.id) == ("t", "r", 7)
    assert authenticate(Raw(b'{"token":"t"}'), room_id="other").room_id == "other"
    assert authenticate(Raw(b"{}")).token.value == ""


def test_rooms_are_named() -> None:
    assert join(Raw(b'{"roomId":"r"}'), "i") == Join("r", "i")
    assert leave(Raw(b'{"roomId":"r"}'), None) == Leave("r", None)


def test_who_enters_may_show_something_of_itself() -> None:
    assert bytes(authenticate(Raw(b'{"token":"t","data":{"a": 1}}')).data) == b'{"a": 1}'
    assert bytes(join(Raw(b'{"roomId":"r","data":null}'), None).data) == b"null"
    assert join(Raw(b'{"roomId":"r"}'), None).data == ABSENT


def test_who_is_there_is_asked_of_a_room() -> None:
    assert ask_presence(Raw(b'{"roomId":"r"}'), 7) == AskPresence("r", 7, None, True)
    asked = ask_presence(Raw(b'{"roomId":"r","version":"v","changes":false}'), None)
    assert asked == AskPresence("r", None, "v", False)


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        (b"null", "payload of join: Expected `object`, got `null`"),
        (b'{"roomId":""}', "payload of join: Expected `str` of length >= 1 - at `$.roomId`"),
        (b'{"roomId":"%b"}' % (b"r" * (ROOM_ID_LENGTH + 1)), "payload of join: Expected `str` of length <= 256"),
        (b'{"roomId":"\xff"}', "payload of join: not UTF-8"),
        (b'{"x":' + b"[" * 100_000, "payload of join: JSON is nested too deeply"),
    ],
    ids=["null", "empty", "long", "not UTF-8", "deep"],
)
def test_what_is_wrong_is_said_with_the_id(payload: bytes, why: str) -> None:
    with pytest.raises(PeerError) as refused:
        join(Raw(payload), 7)
    assert refused.value.message.startswith(why)
    assert (refused.value.code, refused.value.id) == (Code.INVALID_MESSAGE, 7)


def test_the_client_hears_which_payload_it_was() -> None:
    with pytest.raises(PeerError, match=r"^payload of auth: Expected `str`, got `int`"):
        authenticate(Raw(b'{"token":1}'), named="auth")
