"""``POST /publish``, in memory: who may, what is refused and why, and what Redis is asked to do."""

from __future__ import annotations

import json
from typing import Any

import pytest
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.python.failure import Failure

from kraftek.bus import RedisError
from kraftek.contract.metrics import PUBLISH_STATUSES, Counters, Gauges
from kraftek.contract.readiness import Readiness
from kraftek.daemon.operator import OperatorSite
from kraftek.daemon.publish_requests import PUBLISH, PublishRequests
from kraftek.edge.hosts import Hosts
from kraftek.service.commits import UNAWARE
from tests.edge.websocket.edge import RecordingTransport
from tests.support.fakes import FakeBus

TOKEN = "0123456789abcdef"
SAID = '{"type": "news:item:new", "payload": {"n": 1.50}, "roomId": "lobby"}'
HEADERS = {"Host": "x", "Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}


class Site:
    """The site, and one who publishes there."""

    def __init__(self) -> None:
        self.counters = Counters()
        self.bus = FakeBus()
        self.publish = PublishRequests(self.bus, "events:broadcast", self.counters, Clock(), TOKEN.encode())
        readiness = Readiness(self.bus)
        self.site = OperatorSite(Clock(), Hosts(), "gw", self.counters, Gauges(), readiness, self.publish)
        self.transport = RecordingTransport()
        self.protocol: Any = None

    def ask(self, body: str = SAID, method: str = "POST", **headers: str | None) -> None:
        """Ask; a header that is ``None`` is left out. ``_`` stands for ``-``."""
        given = {**HEADERS, **{name.replace("_", "-"): value for name, value in headers.items()}}
        if body and "Transfer-Encoding" not in given:
            given.setdefault("Content-Length", str(len(body.encode())))
        lines = [f"{name}: {value}" for name, value in given.items() if value is not None]
        self.transport = RecordingTransport()
        self.protocol = self.site.buildProtocol(None)
        self.protocol.makeConnection(self.transport)
        head = "\r\n".join([f"{method} /publish HTTP/1.1", *lines])
        self.protocol.dataReceived(f"{head}\r\n\r\n{body}".encode("latin-1", "replace"))

    @property
    def answer(self) -> tuple[int, dict[str, str], Any]:
        """Status, headers and body."""
        head, _, body = self.transport.value().decode().partition("\r\n\r\n")
        status, *lines = head.split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        if int(status.split(" ")[1]) >= 400:
            assert headers["content-type"] == "application/problem+json"
        return int(status.split(" ")[1]), headers, json.loads(body)

    def refusal(self) -> tuple[int, str]:
        """The status, and what was wrong; Redis was not asked for anything."""
        status, _, body = self.answer
        assert body["status"] == status
        assert (self.bus.calls, TOKEN in self.transport.value().decode()) == ([], False)
        assert self.counters.publish_requests == {**dict.fromkeys(PUBLISH_STATUSES, 0), str(status): 1}
        return status, body["detail"]


@pytest.fixture
def site() -> Site:
    return Site()


def test_what_is_taken_is_counted(site: Site) -> None:
    site.ask()
    assert site.transport.value() == b""
    (call,) = site.bus.calls
    assert (call.command, call.keys) == (PUBLISH, ("gateways:history:rules", "events:broadcast"))
    said: Any = call.args[0]
    assert call.args[3] == "room:lobby"
    assert said == b'{"type":"news:item:new","payload":{"n": 1.50},"roomId":"lobby"}'
    call.reply.callback([2, 0, b""])
    status, headers, body = site.answer
    assert (status, headers["content-type"], body) == (200, "application/json", {"taken": 2})
    assert site.counters.publish_requests["200"] == 1


def test_where_it_is_in_the_history_of_its_room(site: Site) -> None:
    for taken in (2, 0):
        site.ask()
        site.bus.calls.pop().reply.callback([taken, 7, b"e1"])
        assert site.answer[::2] == (200, {"taken": taken, "offset": 7, "epoch": "e1"})
    for other, topic in (
        ('"everybody": true', ""),
        ('"userIds": ["ada", "bob"]', 'users:["ada","bob"]'),
        ('"userIds": ["ada"], "recipients": ["g.1"]', ""),
        ('"recipients": ["g.1"]', ""),
    ):
        site.ask(f'{{"type": "news:item:new", {other}}}')
        assert site.bus.calls.pop().args[3] == topic
    site.ask('{"type": "disconnect", "userIds": ["ada"], "roomId": "lobby"}')
    assert site.bus.calls.pop().args[3] == ""


def test_a_command_is_for_gateways_that_all_know_it(site: Site) -> None:
    put = '{"type": "gateway:room:put", "userIds": ["ada"], "roomId": "match"}'
    site.ask(put)
    (asked,) = site.bus.calls
    assert (asked.command, asked.keys, asked.args) == (
        UNAWARE,
        ("gateways", "gateways:registrations"),
        ("gateway:room:put",),
    )
    asked.reply.callback([])
    assert site.bus.calls[1].command is PUBLISH
    assert site.bus.calls[1].args[3] == ""
    site.bus.calls[1].reply.callback([2, 0, b""])
    assert site.answer[::2] == (200, {"taken": 2})
    site.bus.calls.clear()
    site.counters.publish_requests["200"] = 0
    site.ask(put)
    site.bus.calls.pop().reply.callback([b"3f0c", b"gateway:room:put"])
    assert site.refusal() == (409, "gateway 3f0c is of a version that does not know gateway:room:put: upgrade it first")
    site.bus.down()
    site.ask(put)
    assert site.answer[0] == 503


@pytest.mark.parametrize("key", ['"k 1"', '"k\\" 1"', "8e03978e-40d5"])
def test_a_key_goes_with_the_digest_of_the_message(site: Site, key: str) -> None:
    site.ask(Idempotency_Key=key)
    site.ask(SAID.replace(" ", ""), Idempotency_Key=key)
    site.ask(SAID.replace("lobby", "hall"), Idempotency_Key=key)
    site.ask(Idempotency_Key='"another"')
    assert {call.args[2] for call in site.bus.calls} == {24 * 60 * 60}
    places = [call.keys[2] for call in site.bus.calls]
    digests = [call.args[1] for call in site.bus.calls]
    assert places[0] == places[1] == places[2] != places[3]
    assert places[0].startswith("gateway:published:")
    assert digests[1] != digests[2] != digests[0] == digests[3]


def test_quotation_marks_make_no_other_key(site: Site) -> None:
    site.ask(Idempotency_Key='"k1"')
    site.ask(Idempotency_Key="k1")
    assert site.bus.calls[0].keys == site.bus.calls[1].keys


def test_another_message_under_a_key_is_refused(site: Site) -> None:
    site.ask(Idempotency_Key='"k"')
    site.bus.calls.pop().reply.callback([-1, 0, b""])
    assert site.refusal() == (
        422,
        "expected a new Idempotency-Key: another message was published under this one",
    )


@pytest.mark.parametrize("key", ["", '""', '"a', "a b", '"a", "b"', '"a";b=1', f'"{"x" * 256}"', '"\xe9"'])
def test_a_key_that_is_none(site: Site, key: str) -> None:
    site.ask(Idempotency_Key=key)
    status, detail = site.refusal()
    assert (status, detail[:28]) == (400, "expected one Idempotency-Key")


@pytest.mark.parametrize(
    "shown",
    [
        None,
        "",
        "Bearer",
        f"Basic {TOKEN}",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        f"Bearer {TOKEN}, x",
        "Bearer \xe9",
    ],
)
@pytest.mark.parametrize("body", [SAID, ""])
def test_who_has_not_the_token_is_refused(site: Site, shown: str | None, body: str) -> None:
    with capturedLogs() as logged:
        site.ask(body, Authorization=shown)
        assert site.refusal()[0] == 401
        site.ask(body, Authorization=shown)
    assert site.answer[1]["www-authenticate"] == "bearer"
    assert [event["log_format"] for event in logged] == [
        "POST /publish without the right token, from {address} (logged once a minute)"
    ]


def test_the_scheme_is_in_any_case(site: Site) -> None:
    site.ask(Authorization=f"bEARER  {TOKEN}")
    assert len(site.bus.calls) == 1


@pytest.mark.parametrize(
    ("status", "words", "headers"),
    [
        (403, "expected no Origin", {"Origin": "https://evil.example"}),
        (403, "expected no Origin", {"Origin": "null", "Authorization": None}),
        (415, "expected Content-Type: application/json", {"Content-Type": "text/plain"}),
        (415, "expected Content-Type: application/json", {"Content-Type": None}),
        (415, "no Content-Encoding", {"Content-Encoding": "gzip"}),
        (413, "at most 1048576 bytes", {"Content-Length": "1048577"}),
    ],
)
def test_a_head_that_is_refused(site: Site, status: int, words: str, headers: dict[str, str | None]) -> None:
    site.ask(SAID, "POST", **headers)
    found, detail = site.refusal()
    assert (found, words in detail) == (status, True)
    assert site.transport.closed is not None


def test_no_more_is_read_than_a_message_may_have(site: Site) -> None:
    chunk = "x" * 600_000
    site.ask(f"{len(chunk):x}\r\n{chunk}\r\n{len(chunk):x}\r\n{chunk}\r\n", Transfer_Encoding="chunked")
    assert site.refusal()[0] == 413
    assert site.transport.closed is not None


def test_a_content_type_may_name_its_charset(site: Site) -> None:
    site.ask(Content_Type="Application/JSON; charset=utf-8")
    assert len(site.bus.calls) == 1


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("body", [SAID, ""])
def test_another_method(site: Site, method: str, body: str) -> None:
    site.ask(body, method)
    assert site.refusal() == (405, "expected POST")
    assert site.answer[1]["allow"] == "post"


@pytest.mark.parametrize(
    ("body", "words"), [("", "found no body"), ("{}", "`type`"), ('{"type": "t"}', "expected one of a room")]
)
def test_a_message_that_makes_no_sense(site: Site, body: str, words: str) -> None:
    site.ask(body)
    status, detail = site.refusal()
    assert (status, words in detail) == (400, True)


def test_redis_is_away(site: Site) -> None:
    site.bus.down()
    site.ask()
    status, headers, body = site.answer
    assert (status, headers["retry-after"], body["detail"][:20]) == (503, "1", "Redis is unavailable")


def test_redis_refuses(site: Site) -> None:
    site.ask()
    site.bus.calls[0].reply.errback(RedisError("OOM command not allowed"))
    assert site.answer[::2] == (
        503,
        {"status": 503, "title": "Service Unavailable", "detail": "Redis refuses it: OOM command not allowed"},
    )


def test_no_gateway_listens(site: Site) -> None:
    site.ask()
    site.bus.calls.pop().reply.callback([0, 0, b""])
    assert site.refusal() == (503, "no gateway listens at present: nobody has the message")


def test_a_fault_of_ours_is_not_shown(site: Site) -> None:
    with capturedLogs() as logged:
        site.ask()
        site.bus.calls.pop().reply.errback(RuntimeError("the cause"))
    assert site.refusal() == (500, "internal error")
    assert [str(event["log_failure"].value) for event in logged] == ["the cause"]


def test_who_is_gone_gets_no_answer(site: Site) -> None:
    site.ask()
    site.protocol.connectionLost(Failure(ConnectionLost()))
    site.bus.calls[0].reply.callback([1, 0, b""])
    assert site.transport.value() == b""
    assert site.counters.publish_requests["200"] == 1


def test_without_a_token_there_is_no_such_page(site: Site) -> None:
    site.publish.token = None
    site.ask("")
    assert site.transport.value().startswith(b"HTTP/1.1 404 ")
    site.ask()
    assert site.transport.value().startswith(b"HTTP/1.1 413 ")
    assert (site.bus.calls, sum(site.counters.publish_requests.values())) == ([], 0)
