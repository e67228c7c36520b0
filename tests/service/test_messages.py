"""The messages to clients, by whom they are for."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from msgspec import Raw

from kraftek.service.messages import (
    Message,
    disconnect,
    put_in_room,
    read,
    remove_from_room,
    to_everybody,
    to_room,
    to_room_or_users,
    to_sockets,
    to_users,
)


def said(message: Message | None) -> Any:
    return msgspec.json.decode(msgspec.json.encode(message))


def test_each_says_whom_it_is_for() -> None:
    assert said(to_room("t", 1, "r", ["g.1", ""])) == {
        "type": "t",
        "payload": 1,
        "roomId": "r",
        "excludeSocketIds": ["g.1"],
    }
    assert said(to_users("t", 1, "ada")) == {"type": "t", "payload": 1, "userIds": ["ada"]}
    assert said(to_sockets("t", 1, ["g.1", "g.2"])) == {"type": "t", "payload": 1, "recipients": ["g.1", "g.2"]}
    assert said(to_everybody("t", 1, ())) == {"type": "t", "payload": 1, "everybody": True}
    assert said(disconnect("ada", (), "r", "BANNED", "bye")) == {
        "type": "disconnect",
        "payload": {"code": "BANNED", "message": "bye"},
        "userIds": ["ada"],
        "roomId": "r",
    }


def test_commands_name_a_room_and_whom_it_is_about() -> None:
    assert said(put_in_room("r", "ada", (), "a:*:*")) == {
        "type": "gateway:room:put",
        "payload": {"permissions": ["a:*:*"]},
        "roomId": "r",
        "userIds": ["ada"],
    }
    assert said(remove_from_room("r", (), ["g.1", ""])) == {
        "type": "gateway:room:remove",
        "payload": None,
        "roomId": "r",
        "recipients": ["g.1"],
    }
    with pytest.raises(ValueError, match="not empty"):
        remove_from_room("", "ada", ())


def test_what_is_for_nobody_is_none() -> None:
    assert put_in_room("r", (), "", ()) is None
    assert remove_from_room("r", (), ()) is None
    assert to_users("t", 1, []) is None
    assert to_sockets("t", 1, [""]) is None
    assert disconnect((), (), "r", "BANNED", "bye") is None


@pytest.mark.parametrize("code", ["banned", "", "B" * 65, "4403", "BANNED\n"])
def test_a_code_is_in_capitals(code: str) -> None:
    with pytest.raises(ValueError, match="expected a code of at most 64 capitals"):
        disconnect("ada", (), None, code, "bye")


@pytest.mark.parametrize(
    "body",
    [
        b'{"type": "a:b:c", "payload": {"n": 1.50}, "roomId": "r", "excludeSocketIds": ["g.1"]}',
        b'{"type": "a:b:c", "userIds": ["ada"], "recipients": ["g.1"]}',
        b'{"type": "a:b:c", "everybody": true}',
        b'{"type": "disconnect", "userIds": ["ada"], "roomId": "r"}',
        b'{"type": "disconnect", "recipients": ["g.1"], "payload": {"code": "BANNED", "message": "bye"}}',
        b'{"type": "disconnect", "recipients": ["g.1"], "payload": null}',
        b'{"type": "gateway:room:put", "roomId": "r", "userIds": ["ada"]}',
        b'{"type": "gateway:room:put", "roomId": "r", "userIds": ["ada"], "payload": {"permissions": ["a:*:*"]}}',
        b'{"type": "gateway:room:remove", "roomId": "r", "recipients": ["g.1"]}',
    ],
)
def test_what_is_read_is_said_as_it_was_written(body: bytes) -> None:
    written = msgspec.json.decode(body)
    if written.get("payload", 0) is None:
        written["payload"] = None
    assert said(read(body)) == written


def test_half_a_surrogate_pair_is_mended_in_the_payload_alone() -> None:
    assert said(read(rb'{"type": "t", "everybody": true, "payload": "\ud83d"}'))["payload"] == "\ufffd"
    with pytest.raises(ValueError, match="half of a surrogate pair outside of the payload"):
        read(rb'{"type": "t", "roomId": "\ud83d"}')


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (b"", "expected a message as JSON: "),
        (b"[]", "expected a message as JSON: Expected `object`, got `array`"),
        (b"\xff", "expected a message as JSON: "),
        (b'{"type": "t", "payload": ' + b"[" * 5_000, "expected a message as JSON: "),
        (b'{"payload": 1, "everybody": true}', "required field `type`"),
        (b'{"type": 7, "everybody": true}', r"Expected `str`, got `int` - at `\$.type`"),
        (b'{"type": "t", "room": "r"}', "unknown field `room`"),
        (b'{"type": "t", "everybody": true, "inReplyTo": 1}', "unknown field `inReplyTo`"),
        (b'{"type": "", "everybody": true}', "expected a type"),
        (
            b'{"type": "gateway:room:burn", "everybody": true}',
            "expected gateway:room:put and gateway:room:remove",
        ),
        (
            b'{"type": "gateway:room:put", "userIds": ["ada"]}',
            "room:put: expected a room, and users or sockets",
        ),
        (b'{"type": "gateway:room:remove", "roomId": "r"}', "remove: expected a room, and users or sockets"),
        (b'{"type": "gateway:room:put", "roomId": "r", "everybody": true}', "expected a room, and users or sockets"),
        (b'{"type": "gateway:room:put", "roomId": "", "userIds": ["ada"]}', "not empty"),
        (b'{"type": "gateway:room:put", "roomId": "%s", "userIds": ["a"]}' % (b"x" * 257), "of at most 256 characters"),
        (
            b'{"type": "gateway:room:put", "roomId": "r", "userIds": ["a"], "payload": {"permissions": "a:*:*"}}',
            "expected nothing but permissions in the payload: Expected `array`",
        ),
        (
            b'{"type": "gateway:room:remove", "roomId": "r", "userIds": ["a"], "payload": {}}',
            "expected nothing in the payload",
        ),
        (b'{"type": "t"}', "t: expected one of a room, users or sockets, and everybody"),
        (b'{"type": "t", "userIds": []}', "t: expected one of a room, users or sockets, and everybody"),
        (b'{"type": "t", "roomId": "r", "everybody": true}', "t: expected one of a room"),
        (b'{"type": "t", "roomId": "r", "userIds": ["ada"]}', "t: expected one of a room"),
        (b'{"type": "t", "roomId": ""}', "not empty"),
        (b'{"type": "t", "userIds": ["ada", ""]}', "not empty"),
        (b'{"type": "disconnect", "roomId": "r"}', "disconnect: expected users or sockets to close"),
        (b'{"type": "disconnect", "everybody": true}', "disconnect: expected users or sockets to close"),
        (b'{"type": "disconnect", "userIds": ["ada"], "payload": {"code": "banned"}}', "banned: expected a code"),
        (b'{"type": "disconnect", "userIds": ["ada"], "payload": {"kode": "B"}}', "unknown field `kode`"),
        (b'{"type": "disconnect", "userIds": ["ada"], "payload": "BANNED"}', "expected a code and a message"),
    ],
)
def test_what_makes_no_sense_is_told(body: bytes, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        read(body)


@pytest.mark.parametrize(
    ("message", "topic"),
    [
        (Message("a:b:c", room_id="r", exclude_socket_ids=("s",)), "room:r"),
        (Message("a:b:c", room_id=""), None),
        (Message("a:b:c", user_ids=("ada", "bö")), 'users:["ada","bö"]'),
        (Message("a:b:c", user_ids=("ada",), recipients=("s",)), None),
        (Message("a:b:c", user_ids=("ada",), room_id="r"), None),
        (Message("a:b:c", user_ids=("ada",), everybody=True), None),
        (Message("a:b:c", user_ids=("ada",), in_reply_to=7), None),
        (Message("disconnect", user_ids=("ada",)), None),
        (Message("a:b:c", room_id="r", recipients=("s",)), None),
        (Message("a:b:c", room_id="r", everybody=True), None),
        (Message("disconnect", room_id="r"), None),
        (Message("gateway:room:put", room_id="r"), None),
    ],
)
def test_what_may_be_part_of_a_history(message: Message, topic: str | None) -> None:
    assert message.topic == topic


def test_the_names_of_users_stand_at_the_end() -> None:
    """Scripts cut them off: who else is told is not for all to keep."""
    message = Message("a:b:c", Raw(b'{"x": 1}'), user_ids=("ada", 'b"ö'), exclude_socket_ids=("s",))
    assert message.topic is not None
    names = message.topic.removeprefix("users:")
    assert msgspec.json.encode(message).decode().endswith(f',"userIds":{names}}}')


def test_to_a_room_or_else_to_users() -> None:
    assert to_room_or_users("t", 1, "r", None, ["g.1"]) == to_room("t", 1, "r", ["g.1"])
    assert to_room_or_users("t", 1, None, ["ada"], ()) == to_users("t", 1, ["ada"])
    assert to_room_or_users("t", 1, None, [], ()) is None


@pytest.mark.parametrize(
    ("room_id", "user_ids", "exclude"), [("r", ["ada"], ()), (None, None, ()), (None, ["ada"], ["g.1"])]
)
def test_but_not_to_both(room_id: str | None, user_ids: list[str] | None, exclude: list[str]) -> None:
    with pytest.raises(ValueError, match=r"^t: expected users, or else a room"):
        to_room_or_users("t", 1, room_id, user_ids, exclude)
