"""The messages to clients, by whom they are for."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from kraftek.service.messages import Message, disconnect, to_everybody, to_room, to_sockets, to_users


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


def test_what_is_for_nobody_is_none() -> None:
    assert to_users("t", 1, []) is None
    assert to_sockets("t", 1, [""]) is None
    assert disconnect((), (), "r", "BANNED", "bye") is None


@pytest.mark.parametrize("code", ["banned", "", "B" * 65, "4403", "BANNED\n"])
def test_a_code_is_in_capitals(code: str) -> None:
    with pytest.raises(ValueError, match="expected a code of at most 64 capitals"):
        disconnect("ada", (), None, code, "bye")
