"""Who has got a message: what is made of what gateways say."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from kraftek.contract.messages import ReceiptName, ReceiptPart
from kraftek.service.messages import Message
from kraftek.service.receipts import Collector, Receipt, check_receipt, with_receipt

CASES = json.loads((Path(__file__).parent / "receipts.json").read_text("utf-8"))


def part(gateway: str, acknowledged: str = "", waiting: str = "", done: bool = True, refused: str = "") -> ReceiptPart:
    return ReceiptPart(gateway, tuple(acknowledged.split()), tuple(waiting.split()), done, refused)


def listed(gateway: str, users: str) -> ReceiptPart:
    return part(gateway, waiting=users, done=False)


@pytest.mark.parametrize("case", CASES, ids=[each["name"] for each in CASES])
def test_what_gateways_say(case: dict[str, Any]) -> None:
    collector = Collector(case["gateways"], case.get("users"), case.get("here", {}), case.get("but_for", ()))
    for step in case["steps"]:
        if "says" in step:
            collector.heard(msgspec.convert(step["says"], ReceiptPart))
        else:
            expected = msgspec.convert({"complete": False, **step["is"]}, Receipt)
            assert (collector.receipt(), collector.done) == (expected, step.get("done", False))


_USERS = ["ann", "bob", "cid", "dan"]
_GATEWAYS = ["a", "b", "c"]


@given(
    addressed=st.none() | st.lists(st.sampled_from(_USERS), min_size=1),
    sockets=st.dictionaries(st.tuples(st.sampled_from(_USERS), st.sampled_from(_GATEWAYS)), st.booleans()),
    says=st.fixed_dictionaries(dict.fromkeys(_GATEWAYS, st.sampled_from(["all", "whom", "refused", "nothing"]))),
)
def test_everybody_who_was_addressed_is_in_one_of_the_four(
    addressed: Sequence[str] | None,
    sockets: dict[tuple[str, str], bool],
    says: dict[str, str],
) -> None:
    """``sockets``: by user and gateway, whether it acknowledges."""
    to = set(_USERS if addressed is None else addressed)
    sockets = {place: acknowledges for place, acknowledges in sockets.items() if place[0] in to}
    here = {user: f"{gateway}.1" for user, gateway in sockets} if addressed is None else {}
    collector = Collector(_GATEWAYS, addressed, here)
    parts: list[list[ReceiptPart]] = []
    for gateway, what in says.items():
        has = [user for user, place in sockets if place == gateway]
        if what == "refused":
            parts.append([part(gateway, done=False, refused="full")])
        elif what != "nothing":
            acknowledged = [user for user in has if sockets[user, gateway]]
            rest = [user for user in has if user not in acknowledged]
            parts.append([listed(gateway, " ".join(has)), part(gateway, " ".join(acknowledged), " ".join(rest))])
            if what == "whom":
                parts[-1].pop()
    for each in itertools.chain(*parts):
        collector.heard(each)
    receipt = collector.receipt()
    four = [*receipt.acknowledged, *receipt.slow, *receipt.offline, *receipt.owed]
    assert len(four) == len(set(four))
    there = {user for user, _ in sockets}
    assert set(four) == (to if addressed is not None else there)
    got = {user for (user, gateway), acknowledges in sockets.items() if acknowledges and says[gateway] == "all"}
    assert set(receipt.acknowledged) == got
    if receipt.offline:
        assert not {"refused", "nothing"} & set(says.values())
    assert set(receipt.offline).isdisjoint(there)
    if receipt.complete:
        assert not receipt.owed


def test_what_a_receipt_can_be_had_for() -> None:
    room, users = Message("t", room_id="r"), Message("t", user_ids=("ann",))
    for message in (room, users, Message("t", user_ids=tuple(map(str, range(1000))))):
        check_receipt(message, 30)
    for seconds in (0, -1, 30.1, float("nan"), float("inf"), "5", None):
        with pytest.raises(ValueError, match="at most 30 s"):
            check_receipt(room, seconds)
    for message in (
        Message("t", everybody=True),
        Message("t", recipients=("s",)),
        Message("t", room_id="r", user_ids=("ann",)),
        Message("t", user_ids=("ann",), recipients=("s",)),
        Message("disconnect", user_ids=("ann",)),
        Message("gateway:room:put", user_ids=("ann",)),
    ):
        with pytest.raises(ValueError, match="expected a message to a room or users"):
            check_receipt(message, 5)
    with pytest.raises(ValueError, match="at most 1000 users"):
        check_receipt(Message("t", user_ids=tuple(map(str, range(1001)))), 5)


def test_what_is_sent() -> None:
    message = Message("t", Raw(b"1"), room_id="r", exclude_socket_ids=("s",))
    opening, told = with_receipt(message, ReceiptName("events:reply:me", 7), 2.5)
    rest = {"roomId": "r", "excludeSocketIds": ["s"], "receipt": {"replyTo": "events:reply:me", "id": 7}}
    assert msgspec.to_builtins(msgspec.json.decode(msgspec.json.encode(opening))) == {
        "type": "gateway:receipt",
        "payload": {"seconds": 2.5},
        **rest,
    }
    assert msgspec.json.decode(msgspec.json.encode(told)) == {"type": "t", "payload": 1, **rest}
    for each in with_receipt(Message("t", user_ids=("ann",)), ReceiptName("events:reply:me", 7), 1.0):
        assert msgspec.json.encode(each).endswith(b',"userIds":["ann"]}')  # as tell_users.lua has it
