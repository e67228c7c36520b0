"""Access: the auth service asked, cached, down, slow and lying, and access taken back on open sockets."""

from __future__ import annotations

import hashlib
import socket
import ssl
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from statistics import median
from typing import TYPE_CHECKING

import pytest
from cryptography import x509

from tests.bus.test_endpoint import Authority
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import ExitStack
    from pathlib import Path

    from tests.integration.conftest import AuthService, Connect, RedisServer, Shared, StartGateway, StartService

CHANNEL = "events:stickyNotes"


def digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


@pytest.fixture(scope="module")
def auth_of_module() -> Iterator[AuthService]:
    from tests.integration.conftest import AuthService

    with closing(AuthService()) as service:
        yield service


@pytest.fixture
def auth(auth_of_module: AuthService) -> AuthService:
    """One for all rows of the tables below, each of which has tokens and users of its own."""
    auth_of_module.mode = "ok"
    auth_of_module.release()
    auth_of_module.questions.clear()
    return auth_of_module


def test_yes_and_no(shared: Shared, connect: Connect, auth: AuthService) -> None:
    auth.allow("yes", "ada-yes")
    auth.deny("no-yes", "Token expired")
    process = shared.gateway(auth=auth.url)
    ada = connect(process)
    assert ada.authenticate("yes", "r1")["payload"] == {"success": True, "userId": "ada-yes", "roomId": "r1"}
    bad = connect(process)
    bad.send("authenticate", payload={"token": "no-yes", "roomId": "r1"}, id=3)
    refusal = bad.expect_error("AUTH_FAILED")
    assert (refusal["payload"]["message"], refusal["id"]) == ("Token expired", 3)
    bad.expect_close(4401)


@pytest.mark.parametrize("way", ["header", "query"])
def test_token_with_the_handshake(shared: Shared, connect: Connect, auth: AuthService, way: str) -> None:
    auth.allow(way, f"ada-{way}")
    process = shared.gateway(auth=auth.url)
    if way == "header":
        ada = connect(process, headers={"Authorization": f"Bearer {way}"}, query="roomId=r1")
    else:
        ada = connect(process, query=f"token={way}&roomId=r1")
    assert ada.expect("authenticated")["payload"]["userId"] == f"ada-{way}"
    assert auth.questions == [(way, "r1")]


def test_one_question_for_many_and_the_cache_serves_other_processes(
    redis_server: RedisServer, gateway: StartGateway, connect: Connect, auth_service: AuthService
) -> None:
    auth_service.allow("good", "ada")
    auth_service.mode = "slow"
    process = gateway(redis_server, auth=auth_service.url, config={"sessions": "many"})
    clients = [connect(process) for _ in range(5)]
    for client in clients:
        client.send("authenticate", payload={"token": "good", "roomId": "r1"})
    auth_service.wait_questions(1)
    clients[0].send("stickyNotes:note:create")
    auth_service.mode = "ok"
    auth_service.release()
    for client in clients:
        client.expect("authenticated")
    other = gateway(redis_server, auth=auth_service.url, config={"sessions": "many"})
    connect(other, token="good", room="r1")
    assert auth_service.questions == [("good", "r1")]


def test_order_is_kept_while_a_check_is_in_flight(
    redis_server: RedisServer,
    gateway: StartGateway,
    service: StartService,
    connect: Connect,
    auth_service: AuthService,
) -> None:
    auth_service.allow("good", "ada")
    auth_service.mode = "slow"
    process = gateway(redis_server, auth=auth_service.url, config={"limits": {"held_messages": 8}})
    notes = service(redis_server, CHANNEL)
    ada = connect(process)
    ada.send("authenticate", payload={"token": "good", "roomId": "r1"})
    for number in range(200):
        ada.send("stickyNotes:note:create", payload=number)
    auth_service.wait_questions(1)
    auth_service.release()
    ada.expect("authenticated")
    assert [event["payload"] for event in notes.wait_received(200)] == list(range(200))


@pytest.mark.parametrize("mode", ["down", "error500", "garbage", "lying", "slow"])
def test_could_not_ask_is_neither_yes_nor_no(shared: Shared, connect: Connect, auth: AuthService, mode: str) -> None:
    auth.allow(mode, f"ada-{mode}")
    process = shared.gateway(auth=auth.url, config={"auth": {"timeout": 2.0}})
    redis = shared.redis_server.client()
    known = set(redis.keys("access:user:*"))
    auth.mode = mode
    ada = connect(process)
    ada.send("authenticate", payload={"token": mode, "roomId": "r1"})
    refusal = ada.expect_error("AUTH_UNAVAILABLE")
    assert refusal["payload"]["retryAfter"] > 0
    assert set(redis.keys("access:user:*")) <= known
    auth.mode = "ok"
    auth.release()
    ada.authenticate(mode, "r1")


def test_permissions(
    shared: Shared,
    service: StartService,
    connect: Connect,
    auth: AuthService,
) -> None:
    auth.allow("permitted", "ada-permitted", permissions=["stickyNotes:*:echo"])
    process = shared.gateway(auth=auth.url)
    service(shared.redis_server, CHANNEL)
    ada = connect(process, token="permitted", room="r1")
    ada.send("stickyNotes:note:delete", payload={}, id=1)
    refusal = ada.expect_error("ACCESS_DENIED")
    assert (refusal["id"], refusal["payload"]["eventType"]) == (1, "stickyNotes:note:delete")
    ada.send("stickyNotes:note:echo", payload={})
    ada.expect("stickyNotes:note:echo")


def test_room_denied(shared: Shared, connect: Connect, auth: AuthService) -> None:
    auth.allow("denied", "ada-denied", rooms=["r1"])
    process = shared.gateway(auth=auth.url)
    ada = connect(process, token="denied", room="r1")
    ada.send("join", payload={"roomId": "r2-denied"}, id=9)
    assert ada.expect_error("ACCESS_DENIED")["id"] == 9
    assert shared.redis_server.client().exists("room:r2-denied") == 0


def test_expiry_on_an_open_socket(shared: Shared, connect: Connect, auth: AuthService) -> None:
    process = shared.gateway(auth=auth.url)
    auth.allow("expires", "ada-expires", expiresAt=int(time.time()) + 6)
    ada = connect(process, token="expires", room="r1")
    assert ada.expect_error("TOKEN_EXPIRED")["roomId"] == "r1"


@pytest.mark.parametrize("command", ["DEL access:token", "DEL access:user", "auth:invalidate"])
def test_revocation_reaches_open_sockets(
    shared: Shared,
    connect: Connect,
    auth: AuthService,
    capsys: pytest.CaptureFixture[str],
    command: str,
) -> None:
    process = shared.gateway(auth=auth.url)
    redis = shared.redis_server.client()
    times = []
    for number in range(10):
        token, user = f"token-{command}-{number}", f"user-{command}-{number}"
        auth.allow(token, user)
        ada = connect(process, token=token, room="r1")
        wait_until(partial(redis.exists, f"access:token:{digest(token)}"), lambda: f"a grant in {redis.keys()}")
        auth.deny(token)
        start = time.perf_counter()
        match command:
            case "DEL access:token":
                redis.delete(f"access:token:{digest(token)}")
            case "DEL access:user":
                redis.delete(f"access:user:{user}")
            case "auth:invalidate":
                redis.publish("auth:invalidate", f'{{"userId": "{user}"}}')
        ada.expect_error("ACCESS_REVOKED")
        times.append((time.perf_counter() - start) * 1000)
        ada.expect_close(4403)
    with capsys.disabled():
        print(f"\n{command}: ACCESS_REVOKED after {median(times):.1f} ms (median), {max(times):.1f} ms (max of 10)")


def test_revocation_of_one_room_of_several(shared: Shared, connect: Connect, auth: AuthService) -> None:
    auth.allow("one-room", "ada-one-room")
    process = shared.gateway(auth=auth.url)
    ada = connect(process, token="one-room", room="r1")
    ada.send("join", payload={"roomId": "r2-one-room"})
    ada.expect("joined")
    auth.allow("one-room", "ada-one-room", rooms=["r1"])
    redis = shared.redis_server.client()
    redis.publish("auth:invalidate", '{"userId": "ada-one-room", "roomId": "r2-one-room"}')
    ada.expect_error("ACCESS_REVOKED")
    ada.send("stickyNotes:note:create", roomId="r2-one-room")
    ada.expect_error("ACCESS_DENIED")
    wait_until(
        lambda: not redis.exists("room:r2-one-room"),
        lambda: f"nobody in the room, but {redis.hgetall('room:r2-one-room')}",
    )
    assert redis.hget("room:r1", "ada-one-room") == ada.socket_id


def test_invalidation_that_changes_nothing_disturbs_nobody(
    shared: Shared,
    service: StartService,
    connect: Connect,
    auth: AuthService,
) -> None:
    auth.allow("undisturbed", "ada-undisturbed")
    process = shared.gateway(auth=auth.url)
    service(shared.redis_server, CHANNEL)
    ada = connect(process, token="undisturbed", room="r1")
    shared.redis_server.client().delete("access:user:ada-undisturbed")
    auth.wait_questions(2)
    ada.send("stickyNotes:note:echo", payload=1)
    ada.expect("stickyNotes:note:echo")


def test_revoked_while_the_auth_service_is_down(
    shared: Shared,
    service: StartService,
    connect: Connect,
    auth: AuthService,
) -> None:
    auth.allow("down-and-revoked", "ada-down-and-revoked")
    process = shared.gateway(auth=auth.url)
    service(shared.redis_server, CHANNEL)
    ada = connect(process, token="down-and-revoked", room="r1")
    auth.mode = "down"
    redis = shared.redis_server.client()
    assert redis.exists("access:user:ada-down-and-revoked")
    redis.publish("auth:invalidate", '{"userId": "ada-down-and-revoked"}')
    wait_until(
        lambda: not redis.exists("access:user:ada-down-and-revoked"), "no cached answer: the gateway has heard it"
    )
    ada.send("stickyNotes:note:echo", payload=1)
    ada.expect_error("AUTH_UNAVAILABLE")
    redis.publish("events:broadcast", '{"type": "said", "roomId": "r1"}')
    redis.publish("events:broadcast", '{"type": "said", "userIds": ["ada-down-and-revoked"]}')
    ada.send("stickyNotes:note:echo", payload=1)
    ada.expect_error("AUTH_UNAVAILABLE")
    auth.mode = "ok"
    heard = []

    def works() -> bool:
        ada.send("stickyNotes:note:echo", payload=2)
        heard.append(ada.receive())
        return bool(heard[-1]["type"] == "stickyNotes:note:echo")

    wait_until(works, lambda: f"access again, but {heard[-1]}")
    assert [message["type"] for message in heard if message["type"] != "error"] == ["said", "said", heard[-1]["type"]]
    assert {message["payload"]["code"] for message in heard if message["type"] == "error"} <= {"AUTH_UNAVAILABLE"}


def test_the_stop_closes_the_connections_to_the_auth_service(
    redis_server: RedisServer, gateway: StartGateway, connect: Connect, stage: ExitStack, tmp_path: Path
) -> None:
    """In order, which TLS can tell: the sockets of a process that merely ends are closed without a close_notify."""
    authority = Authority("an authority")
    authority.issue(tmp_path, x509.DNSName("localhost"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "redis.crt", tmp_path / "redis.key")
    listening = stage.enter_context(socket.create_server(("127.0.0.1", 0)))
    answer = b'{"success":true,"userId":"ada"}'

    def serve() -> bytes:
        listening.settimeout(30)
        plain, _ = listening.accept()
        plain.settimeout(30)
        with plain, context.wrap_socket(plain, server_side=True, suppress_ragged_eofs=False) as connection:
            question = b""
            while not question.endswith(b"}"):
                question += connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(answer), answer))
            return connection.recv(65536)

    rest = stage.enter_context(ThreadPoolExecutor()).submit(serve)
    ca = {"auth": {"ca": authority.file(tmp_path / "ca.crt")}}
    process = gateway(redis_server, auth=f"https://localhost:{listening.getsockname()[1]}", config=ca)
    connect(process, token="good", room="r1")
    process.terminate()
    assert rest.result(30) == b""


def test_what_cannot_be_read_in_redis_stops_nothing_else(
    redis_server: RedisServer, gateway: StartGateway, connect: Connect, auth_service: AuthService
) -> None:
    for name in ("ada", "bob", "eve"):
        auth_service.allow(name, name)
    process, killed = (gateway(redis_server, auth=auth_service.url) for _ in range(2))
    redis = redis_server.client()
    bob = connect(process, token="bob", room="r1")
    connect(killed, token="eve", room="r1")
    wait_until(lambda: redis.exists("access:user:bob"), "a grant of bob's")
    redis.sadd("gateways:lost", b"\xff", "text", '["eve", "r1", "x"]')
    odd = b'{"userId":"ada","freshUntil":9999999999,"roomId":"\xff"}'
    redis.hset(f"access:token:{digest('ada')}", "r1", odd)
    redis.sadd("access:user:ada", digest("ada"))
    for _ in range(2):
        connect(process, token="ada", room="r1")
        redis.hset(f"access:token:{digest('ada')}", "r1", odd)
    auth_service.deny("bob")
    with redis.pipeline() as pipeline:
        pipeline.hset(f"access:token:{digest('ada')}", "r1", odd + b" ")
        pipeline.delete("access:user:bob")
        pipeline.execute()
    bob.expect_error("ACCESS_REVOKED")
    killed.kill()
    wait_until(
        lambda: not redis.hexists("room:r1", "eve"), lambda: f"nothing of eve in {redis.hgetall('room:r1')}", 30.0
    )
    assert redis.hexists("room:r1", "ada")
    assert process.log().count("cannot be read") == 1
    wait_until(lambda: "no gateway wrote" in process.log() + killed.log(), "a word of whichever has looked first")


def test_the_order_to_close_an_older_socket_is_repeated_until_it_arrives(
    redis_server: RedisServer, gateway: StartGateway, connect: Connect
) -> None:
    one, two = gateway(redis_server), gateway(redis_server)
    older = connect(one, "ada", "r1")
    redis = redis_server.client()
    redis.execute_command("ACL", "SETUSER", "default", "-publish")
    newer = connect(two, "ada", "r1")
    wait_until(
        lambda: redis.hget("room:r1", "user_ada") == newer.socket_id, lambda: f"the newer: {redis.hgetall('room:r1')}"
    )
    older.expect_nothing()
    redis.execute_command("ACL", "SETUSER", "default", "+publish")
    older.expect_error("DUPLICATE_CONNECTION")
    older.expect_close(4409)
    newer.expect_nothing()
    assert redis.hgetall("room:r1") == {"user_ada": newer.socket_id}


@pytest.mark.parametrize("refusal", ["min-replicas-to-write", "maxmemory"])
def test_revocation_while_redis_refuses_writes(
    redis_server: RedisServer, gateway: StartGateway, connect: Connect, auth_service: AuthService, refusal: str
) -> None:
    auth_service.allow("good", "ada")
    one, two = (gateway(redis_server, auth=auth_service.url, config={"sessions": "many"}) for _ in range(2))
    sockets = [connect(process, token="good", room="r1") for process in (one, two)]
    redis = redis_server.client()
    redis.config_set(refusal, 1)
    auth_service.deny("good")
    redis.publish("auth:invalidate", '{"userId": "ada"}')
    for client in sockets:
        client.expect_error("ACCESS_REVOKED")
        client.expect_close(4403)
    for process in (one, two):
        client = connect(process)
        client.send("authenticate", payload={"token": "good", "roomId": "r1"})
        client.expect_error("AUTH_FAILED")
    if refusal != "maxmemory":  # which allows deletions
        assert redis.exists("access:user:ada")
    redis.config_set(refusal, 0)
    wait_until(lambda: not redis.exists("access:user:ada"), lambda: f"nothing of ada in {redis.keys()}")


def test_another_token_counts_for_every_room(
    shared: Shared, service: StartService, connect: Connect, auth: AuthService
) -> None:
    auth.allow("another-1", "another", rooms=["r1", "r2"])
    auth.allow("another-2", "another", rooms=["r2", "r3"])
    process = shared.gateway(auth=auth.url)
    service(shared.redis_server, CHANNEL)
    ada = connect(process, token="another-1", room="r1")
    ada.send("join", payload={"roomId": "r2"})
    ada.expect("joined")
    ada.authenticate("another-2", "r3")
    assert ada.expect_error("ACCESS_REVOKED")["roomId"] == "r1"
    shared.redis_server.client().delete(f"access:token:{digest('another-1')}")  # nothing is by that one any more
    for room in ("r2", "r3"):
        ada.send("stickyNotes:note:echo", payload=room, roomId=room)
        ada.expect("stickyNotes:note:echo")
    assert auth.questions[:2] == [("another-1", "r1"), ("another-1", "r2")]
    assert sorted(auth.questions[2:4]) == [("another-2", "r1"), ("another-2", "r2")]
    assert auth.questions[4:] == [("another-2", "r3")]


def test_a_busy_client_is_asked_about_within_its_ttl(shared: Shared, connect: Connect, auth: AuthService) -> None:
    auth.allow("busy", "ada-busy", ttl=4)
    process = shared.gateway(auth=auth.url)
    ada = connect(process, token="busy", room="r1")
    start = time.monotonic()
    ada.send("join", payload={"roomId": "r3"})
    ada.expect("joined")
    auth.allow("busy", "ada-busy", rooms=["r2", "r3"], ttl=4)
    heard: set[str] = set()
    slowest = 0.0
    while "error" not in heard:
        sent = time.monotonic()
        assert sent < start + 10
        ada.send("join", payload={"roomId": "r2"})
        ada.send("leave", payload={"roomId": "r2"})
        heard = {ada.receive()["type"] for _ in range(2)}
        slowest = max(slowest, time.monotonic() - sent)
        time.sleep(0.02)
    # A quarter of a second, and a sweep; and where the machine is slow, as much as that shows in a round trip.
    assert time.monotonic() < start + 4.6 + 4 * slowest
    assert [room for _, room in auth.questions].count("r1") == 2


def test_no_event_after_access_has_expired(
    shared: Shared,
    service: StartService,
    connect: Connect,
    auth: AuthService,
) -> None:
    process = shared.gateway(auth=auth.url)
    notes = service(shared.redis_server, CHANNEL)
    expiry = int(time.time()) + 5
    auth.allow("until", "ada-until", expiresAt=expiry)
    ada = connect(process, token="until", room="r1")
    auth.mode = "slow"  # what is sent until the answer is held
    sent = 0
    while time.time() < expiry + 1:
        ada.send("stickyNotes:note:create", payload=sent)
        sent += 1
        time.sleep(0.01)
    auth.deny("until")
    auth.mode = "ok"  # nothing more is held: the close of the client, too, comes behind what it has sent
    auth.release()
    ada.expect_error("TOKEN_EXPIRED")
    # The service has this one behind all that was published before.
    auth.allow("behind", "behind")
    behind = connect(process, token="behind", room="r1")
    behind.send("stickyNotes:note:echo")
    behind.expect("stickyNotes:note:echo")
    times = [event["timestamp"] / 1000 for event in notes.received() if event["userId"] == "ada-until"]
    assert len(times) > 20
    assert max(times) <= expiry


def test_no_token_anywhere(
    redis_server: RedisServer, gateway: StartGateway, connect: Connect, auth_service: AuthService
) -> None:
    secret = "s3cr3t-t0k3n"
    auth_service.allow(f"{secret}-good", "ada")
    process = gateway(redis_server, auth=auth_service.url, config={"auth": {"timeout": 2.0}})
    heard = []
    connect(process, token=f"{secret}-good", room="r1")
    connect(process, query=f"token={secret}-good&roomId=r2").expect("authenticated")
    for mode in ("ok", "garbage", "down"):
        auth_service.mode = mode
        client = connect(process, headers={"Authorization": f"Bearer {secret}-bad-{mode}"})
        heard.append(client.receive())
    client = connect(process)
    client.send("authenticate", payload={"token": {"x": secret}})
    heard.append(client.receive())
    client.send_raw(f'{{"type": "authenticate", "payload": {{"token": "{secret}"')
    heard.append(client.receive())
    assert [message["type"] for message in heard] == ["error"] * 5
    assert secret not in str(heard)
    for key in redis_server.client().keys("*"):
        assert secret not in key
        dump = redis_server.client(decode_responses=False).dump(key)
        assert dump is not None
        assert secret.encode() not in dump
    process.terminate()
    assert secret not in process.log()
