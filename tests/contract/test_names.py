"""Names that say whose socket it is, and names in Redis: each is written in one place."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from kraftek.contract import names
from kraftek.contract.names import (
    NAME_LENGTH,
    gateway_of,
    is_reserved,
    new_gateway_id,
    new_socket_id,
    reply_channel,
    service_of,
)

NAMES = json.loads((Path(__file__).parents[1] / "client/names.json").read_text("utf-8"))
"""Names of events, and what is none: the same for gateways and for all clients."""


def test_no_two_gateways_have_the_same_name() -> None:
    assert len({new_gateway_id() for _ in range(1000)}) == 1000


def test_a_socket_id_says_whose_it_is() -> None:
    gateway_id = new_gateway_id()
    assert gateway_of(new_socket_id(gateway_id)) == gateway_id


def test_nobody_guesses_a_socket_id() -> None:
    random = [new_socket_id("g").removeprefix("g.") for _ in range(1000)]
    assert len(set(random)) == 1000
    assert {len(part) for part in random} == {16}  # 64 bits in hex


@pytest.mark.parametrize(
    ("socket_id", "gateway_id"),
    [
        ("g.1", "g"),
        ("a.b.1", "a.b"),
        ("xUc3kQ7aAAAB", ""),  # as the original gateway's sockets are named: no gateway of ours
        ("", ""),
        (".1", ""),
    ],
)
def test_the_gateway_of_any_text(socket_id: str, gateway_id: str) -> None:
    assert gateway_of(socket_id) == gateway_id


def test_each_gateway_has_its_own_reply_channel() -> None:
    assert reply_channel("g") == "events:reply:g"


def test_an_event_is_for_the_first_part_of_its_name() -> None:
    for name in NAMES["good"]:
        assert service_of(name) == name.partition(":")[0]
    assert service_of("a:b:" + "ж" * (NAME_LENGTH - 4)) == "a"


def test_what_names_no_event() -> None:
    assert [name for name in NAMES["bad"] if service_of(name) is not None] == []
    assert service_of("a:b:" + "ж" * (NAME_LENGTH - 3)) is None


def test_names_that_others_write() -> None:
    """Services, auth services and gateways of other versions have them: none of these may change."""
    constants = {name: value for name, value in vars(names).items() if name in names.__all__ and isinstance(value, str)}
    assert constants == {
        "ACCESS": "access:",
        "BROADCAST": "events:broadcast",
        "CLIENT_JOINED": "gateway:client:joined",
        "CLIENT_LEFT": "gateway:client:left",
        "ENTRIES": "gateway:",
        "EPOCH": "gateway:epoch",
        "GATEWAY_GROUP": "gateways",
        "GATEWAY_LEASES": "gateways",
        "GATEWAY_NAME": "gateway",
        "GATEWAY_OWN": "gateway:",
        "GATEWAY_PRESENCE": "gateway:room:presence",
        "GATEWAY_STREAM": "events:gateway",
        "HISTORY_FOLLOWING": "gateways:history:following",
        "HISTORY_RULES": "gateways:history:rules",
        "INVALIDATION": "auth:invalidate",
        "LAST_LOOK": "gateways:looked",
        "LISTENED": "gateways:listened",
        "LOST_GATEWAYS": "gateways:lost",
        "REGISTRATIONS": "gateways:registrations",
        "RECEIPT": "gateway:receipt",
        "REQUESTS": "request:",
        "REQUEST_PROGRESS": "gateway:request:progress",
        "ROOMS_RESET": "gateway:room:reset",
        "ROOM_HISTORY": "gateway:room:history",
        "ROOM_PUT": "gateway:room:put",
        "ROOM_REMOVE": "gateway:room:remove",
        "SELF_LEASES": "gateways:registered:leases",
        "SELF_REGISTERED": "gateways:registered",
        "SUBPROTOCOL": "kraftek.v1.json",
    }
    assert names.COMMANDS == ("gateway:room:put", "gateway:room:remove", "gateway:receipt")
    assert names.publish_key("d1") == "gateway:published:d1"
    assert names.default_channel("chat") == "events:chat"
    assert names.cancel_channel("chat") == "events:cancel:chat"
    assert names.is_reserved("events:cancel:chat")
    assert names.stream_of("events:chat", 3) == "events:chat:3"
    assert names.dead_letters("events:chat:3") == "events:chat:3:dead"
    assert names.instances_key("events:chat", "chat") == "events:chat:instances:chat"
    assert names.lease_key("events:chat:3", "chat") == "events:chat:3:lease:chat"
    assert names.token_key("digest") == "access:token:digest"
    assert names.user_key("ada") == "access:user:ada"
    assert names.ledger_key("ada") == "access-ledger:ada"
    assert names.not_before_key("ada") == "access-not-before:ada"
    assert names.entries_key("g") == "gateway:g:entries"
    assert names.late_answer_key("g.1", "7") == "request:adopted:g.1:7"
    assert names.late_answer_key("g.1", 7) == "request:adopted:g.1#7"
    assert names.parts_key("g.1", "7") == "request:parts:g.1:7"
    assert names.parts_key("g.1", 7) == "request:parts:g.1#7"
    assert names.room_key("kitchen") == "room:kitchen"
    assert names.shown_key("kitchen") == "gateways:presence:kitchen"
    assert names.socket_key("ada", "kitchen") == "socket:ada:kitchen"
    assert names.sockets_key('["ada","kitchen"]') == 'sockets:["ada","kitchen"]'


KEY = re.compile(r"(events|auth|access|access-ledger|access-not-before|gateways?|rooms?|sockets?|request):\S*")

AUTHORS = {"kraftek/daemon/demo/notes.py"}
"""Written as an author of a service would write it."""


def _texts(tree: ast.Module) -> Iterator[ast.Constant]:
    """What stands in quotes, without docstrings."""
    documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            yield node


def test_names_in_redis_are_written_in_one_module() -> None:
    package = Path(names.__file__).parents[1]
    found = []
    for path in package.rglob("*.py"):
        module = path.relative_to(package.parent).as_posix()
        if module == "kraftek/contract/names.py" or module in AUTHORS:
            continue
        texts = _texts(ast.parse(path.read_text("utf-8")))
        found += [f"{module}:{text.lineno} {text.value!r}" for text in texts if KEY.fullmatch(str(text.value))]
    assert found == []
    assert [text.value for text in _texts(ast.parse('"""room:1"""\nkey = f"room:{room}"'))] == ["room:"]


@pytest.mark.parametrize(
    "name",
    [
        "events:gateway",
        "events:gateway:dead",
        "events:reply:0123",
        "auth:invalidate",
        "access:token:x",
        "access-ledger:x",
        "access-not-before:x",
        "room:r",
        "socket:u:r",
        "sockets:x",
        "gateway:epoch",
        "gateways",
        "gateways:lost",
        "request:x",
    ],
)
def test_names_of_the_gateways_own(name: str) -> None:
    assert is_reserved(name)


@pytest.mark.parametrize("name", ["events:chat", "events:gateways", "rooms", "gateway", "auth", "events:replies"])
def test_names_of_services(name: str) -> None:
    assert not is_reserved(name)
