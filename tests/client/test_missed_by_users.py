"""What devices of a user missed, and how they come to know: the examples of the documentation, with real gateways."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count
from typing import Any

import pytest

from kraftek.contract.names import HISTORY_RULES
from kraftek.service.asyncio import Publisher
from tests.client.test_missed import Followed, follower_of
from tests.integration.conftest import Gateway, Starter
from tests.support.forwarder import Forwarder
from tests.support.waiting import wait_until

Json = dict[str, Any]

CAME = "inbox:mail:came"
KEPT = 50
CONFIG = {"users": {"history": KEPT}, "sessions": "many"}
SERVICES = {"inbox": {"channel": "events:inbox", "reply": True}}

tokens = (f"ada{number}" for number in count(1))


class Post:
    """Two gateways of one Redis, and a service that lists the mails of whoever asks. Each test has its user."""

    def __init__(self, start: Starter, stage: ExitStack) -> None:
        self.start = start
        self.redis = start.redis()
        self.gateways = [self.gateway() for _ in range(2)]
        self.service = start.service(self.redis, "events:inbox", self._list)
        self.token = ""
        self.mails: dict[str, Json] = {}
        self.lists = 0
        wait_until(lambda: self.redis.client().exists(HISTORY_RULES), "that a history is kept")

    def gateway(self) -> Gateway:
        return self.start.gateway(self.redis, services=SERVICES, config=CONFIG)

    def _list(self, event: Json) -> Json:
        assert event["userId"] == f"user_{self.token}"
        self.lists += 1
        reply = {"type": event["eventType"], "inReplyTo": event["id"], "recipients": [event["socketId"]]}
        return {**reply, "payload": self.mails}

    def mail(self, *ids: int) -> None:
        """As a service does: it is listed before anybody is told; and others get it, too."""

        async def send() -> None:
            async with Publisher(self.redis.url) as publisher:
                for each in ids:
                    mail = self.mails[str(each)] = {"id": each}
                    users = f"user_{self.token}", "user_bob"
                    told = await publisher.broadcast_to_users(CAME, mail, users, id=f"{self.token} {each}")
                    assert told.offset == len(self.mails)

        asyncio.run(send())

    def reset(self) -> None:
        """For the next test."""
        self.token, self.mails, self.lists = next(tokens), {}, 0


@pytest.fixture(scope="module")
def of_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Post]:
    with ExitStack() as stage:
        yield Post(Starter(stage, tmp_path_factory), stage)


@pytest.fixture
def post(of_module: Post) -> Post:
    of_module.reset()
    return of_module


class Device:
    """A client of that library, and the road to its gateway."""

    def __init__(self, library: str, post: Post, gateway: Gateway, stage: ExitStack) -> None:
        self.road = Forwarder(gateway.port)
        stage.callback(self.road.close)
        url = f"ws://127.0.0.1:{self.road.port}/"
        followed = Followed(None, ("kraftek-js-user-state", "client-user-state"), CAME, "inbox", post.token)
        self.follower = follower_of(library, url, followed, stage)
        self.expect = self.follower.expect
        self.expect(shown=[*map(int, post.mails)], recovered=[])


def test_nobody_misses_a_mail(library: str, post: Post, stage: ExitStack) -> None:
    """The phone's socket is cut, its gateway is killed: each device has all, in order, and asks nobody."""
    post.mail(1, 2)
    doomed = post.gateway()
    phone, desk = Device(library, post, doomed, stage), Device(library, post, post.gateways[1], stage)
    post.mail(3, 4)
    for device in (phone, desk):
        device.expect(heard=[3, 4])
    for turn in range(1, 4):
        phone.road.refuse()
        post.mail(*range(10 * turn, 10 * turn + 9))
        if turn == 2:
            doomed.kill()
        phone.road.target = (doomed, *post.gateways)[turn - 1].port
        phone.road.admit()
        post.mail(10 * turn + 9)
        phone.expect(recovered=[[True, None]] * turn)
    everything = [3, 4, *range(10, 40)]
    phone.expect(heard=everything, shown=[1, 2, *everything])
    desk.expect(heard=everything, shown=[1, 2, *everything], recovered=[])
    assert post.lists == 2


def test_what_cannot_be_recovered_is_fetched_once(library: str, post: Post, stage: ExitStack) -> None:
    post.mail(1)
    phone = Device(library, post, post.gateways[0], stage)
    phone.road.refuse()
    post.mail(*range(100, 100 + KEPT + 1))
    phone.road.admit()
    phone.expect(recovered=[[False, "too_many"]], shown=[1, *range(100, 100 + KEPT + 1)])
    assert (post.lists, phone.follower.noted()["heard"]) == (2, [])
    post.mail(200)
    phone.expect(heard=[200])
    assert post.lists == 2
