"""Tokens that are refreshed under traffic, on the real gateway, in each way in which it checks them: nothing of the
socket is refused, held or out of order, and a ban between two refreshes counts as any other.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import closing
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
from websockets.exceptions import ConnectionClosed

from tests.integration.test_tokens import settings, token
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.integration.conftest import AuthService, Client, Connect, Gateway, Service, Shared

CHANNEL = "events:stickyNotes"
ROOMS = ("r1", "r2")
MODES = ("asking", "jwt", "jwt+asking")


@pytest.fixture(scope="module")
def auth_service() -> Iterator[AuthService]:
    from tests.integration.conftest import AuthService

    with closing(AuthService()) as service:
        yield service


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys")


class House:
    """A gateway, a service that echoes, and tokens of one user."""

    numbers = count()

    def __init__(self, shared: Shared, auth: AuthService, keys: Path, mode: str) -> None:
        check = {"asking": auth.url, "jwt": "jwt", "jwt+asking": f"jwt+{auth.url}"}[mode]
        self.process: Gateway = shared.gateway(auth=check, config=settings(keys) if "jwt" in mode else {})
        self.auth, self.user = auth, f"user {next(self.numbers)}"

    def mint(self) -> str:
        """Another token, good for long."""
        made = token(self.user, jti=str(next(self.numbers)), permissions=["*:*:*"])
        self.auth.allow(made, self.user)
        return made


@pytest.fixture(params=MODES)
def house(request: pytest.FixtureRequest, shared: Shared, auth_service: AuthService, keys: Path) -> House:
    return House(shared, auth_service, keys, request.param)


@pytest.fixture(scope="module")
def echo(of_module: Shared) -> Service:
    return of_module.service(of_module.redis_server, CHANNEL)


def enter(client: Client, shown: str) -> None:
    client.authenticate(shown, ROOMS[0])
    for room in ROOMS[1:]:
        client.send("join", payload={"roomId": room})
        client.expect("joined")


def test_under_traffic(house: House, connect: Connect, echo: Service) -> None:
    ada = connect(house.process)
    enter(ada, house.mint())
    events, refreshes = 600, 0
    for number in range(events):
        if number % 50 == 25:
            ada.send("authenticate", payload={"token": house.mint()}, id=number)
            refreshes += 1
        ada.send("stickyNotes:note:echo", payload=number, roomId=ROOMS[number % 2])
    messages = [ada.receive() for _ in range(events + refreshes)]
    assert {message["type"] for message in messages} == {"authenticated", "stickyNotes:note:echo"}
    echoes = [message["payload"] for message in messages if message["type"] == "stickyNotes:note:echo"]
    assert echoes == [*range(events)]
    mine = [event for event in echo.received() if event["userId"] == house.user]
    assert [(event["payload"], event["roomId"]) for event in mine] == [
        (number, ROOMS[number % 2]) for number in range(events)
    ]
    # No room was left or changed places.
    ada.send("stickyNotes:note:echo", payload="last")
    ada.expect("stickyNotes:note:echo")
    assert echo.received()[-1]["roomId"] == ROOMS[0]


@pytest.mark.parametrize("mode", ["asking", "jwt+asking"])
def test_nothing_waits_for_the_auth_service(
    mode: str, shared: Shared, auth_service: AuthService, keys: Path, connect: Connect, echo: Service
) -> None:
    house = House(shared, auth_service, keys, mode)
    ada = connect(house.process)
    enter(ada, house.mint())
    asked = len(auth_service.questions)
    auth_service.mode = "slow"
    try:
        ada.send("authenticate", payload={"token": house.mint()}, id=1)
        auth_service.wait_questions(asked + 1)
        for room in ROOMS:
            ada.send("stickyNotes:note:shout", payload={"n": 1}, roomId=room)
            assert ada.expect("stickyNotes:note:shout")["payload"] == {"n": 1, "roomId": room}
    finally:
        auth_service.mode = "ok"
        auth_service.release()
    assert ada.expect("authenticated")["id"] == 1


def ban(house: House, shared: Shared, shown: list[str], way: str = "message") -> None:
    for each in shown:
        house.auth.deny(each, "banned")
    with shared.redis_server.client() as redis:
        if way == "message":
            redis.publish("auth:invalidate", json.dumps({"userId": house.user}))
        else:
            redis.delete(f"access:token:{hashlib.sha256(shown[-1].encode()).hexdigest()}", f"access:user:{house.user}")


@pytest.mark.parametrize(
    ("mode", "way"),
    # A token that speaks for itself would say yes again where a key is deleted.
    [
        ("asking", "message"),
        ("asking", "delete"),
        ("jwt", "message"),
        ("jwt+asking", "message"),
        ("jwt+asking", "delete"),
    ],
)
def test_a_ban_between_two_refreshes(
    mode: str, way: str, shared: Shared, auth_service: AuthService, keys: Path, connect: Connect, echo: Service
) -> None:
    house = House(shared, auth_service, keys, mode)
    ada = connect(house.process)
    shown = [house.mint()]
    enter(ada, shown[0])
    for number in range(2):
        shown.append(house.mint())
        ada.send("authenticate", payload={"token": shown[-1]}, id=number)
        ada.expect("authenticated")
        ada.send("stickyNotes:note:echo", payload=number)
        ada.expect("stickyNotes:note:echo")
    ban(house, shared, shown, way)
    for _ in ROOMS:
        ada.expect_error("ACCESS_REVOKED")
    ada.expect_close(4403)
    for each in shown:
        again = connect(house.process)
        again.send("authenticate", payload={"token": each, "roomId": ROOMS[0]})
        again.expect_error("AUTH_FAILED")
        again.expect_close(4401)


@pytest.mark.parametrize("mode", ["asking", "jwt+asking"])
def test_a_ban_while_a_refresh_is_under_way(
    mode: str, shared: Shared, auth_service: AuthService, keys: Path, connect: Connect, echo: Service
) -> None:
    """What the auth service said before the ban does not count after it."""
    house = House(shared, auth_service, keys, mode)
    ada = connect(house.process)
    shown = [house.mint(), house.mint()]
    enter(ada, shown[0])
    asked = len(auth_service.questions)
    auth_service.mode = "slow"
    try:
        ada.send("authenticate", payload={"token": shown[1]}, id=1)
        auth_service.wait_questions(asked + 1)
        ban(house, shared, shown)
        if mode == "asking":
            open_access = (shown[0], ROOMS[0])
            wait_until(lambda: open_access in auth_service.questions[asked:], "the question whether it is banned")
        else:  # the gateway knows by itself that these tokens are from before
            told, code = until_closed(ada)
    finally:
        auth_service.mode = "ok"
        auth_service.release()
    if mode == "asking":
        told, code = until_closed(ada)
    assert code in {4401, 4403}
    assert {message["payload"].get("code") for message in told} <= {"ACCESS_REVOKED", "AUTH_FAILED"}


def until_closed(client: Client) -> tuple[list[Any], int | None]:
    """What it is told, and with which code it is closed."""
    told = []
    try:
        while True:
            told.append(json.loads(client.connection.recv(10)))
    except ConnectionClosed as closed:
        return told, None if closed.rcvd is None else closed.rcvd.code
