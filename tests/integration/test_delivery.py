"""Events to services and answers back: two gateway processes, clients on both, a service in a third process."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from tests.integration.conftest import (
        Client,
        Connect,
        Gateway,
        RedisServer,
        Service,
        Shared,
        StartGateway,
        StartService,
    )

CHANNEL = "events:stickyNotes"


class Cluster(NamedTuple):
    """Ada and Bob on one gateway, Cy on the other, all in the room; Dan beside Cy, in another room."""

    redis: RedisServer
    first: Gateway
    second: Gateway
    service: Service
    ada: Client
    bob: Client
    cy: Client
    dan: Client


@pytest.fixture
def cluster(shared: Shared, service: StartService, connect: Connect) -> Cluster:
    first, second = shared.gateway(1), shared.gateway(2)
    shared.redis_server.client().delete(f"test:received:{CHANNEL}")
    return Cluster(
        shared.redis_server,
        first,
        second,
        service(shared.redis_server, CHANNEL),
        connect(first, token="ada", room="r1"),
        connect(first, token="bob", room="r1"),
        connect(second, token="cy", room="r1"),
        connect(second, token="dan", room="r2"),
    )


def test_service_gets_the_contracts_envelope(cluster: Cluster) -> None:
    cluster.ada.send("stickyNotes:note:create", payload={"text": "größe 🎉", "n": 1.50}, id="q1")
    (event,) = cluster.service.wait_received()
    assert event["eventType"] == "stickyNotes:note:create"
    assert event["userId"] == "user_ada"
    assert event["socketId"] == cluster.ada.socket_id
    assert event["roomId"] == "r1"
    assert event["payload"] == {"text": "größe 🎉", "n": 1.5}
    assert event["id"] == "q1"
    assert event["socketId"].startswith(event["gatewayId"] + ".")
    assert cluster.redis.client().time()[0] - 60 < event["timestamp"] / 1000 <= cluster.redis.client().time()[0] + 60
    cluster.ada.expect("ack")


def test_payload_reaches_the_service_byte_for_byte(
    cluster: Cluster,
) -> None:
    listener = cluster.redis.client().pubsub()
    listener.subscribe(CHANNEL)
    assert listener.get_message(timeout=5)
    odd = '{ "a":1.50,\t"b" : 12345678901234567890123 , "ü":"\\u0041" }'
    cluster.ada.send_raw(f'{{"type":"stickyNotes:note:create","payload":{odd}}}')
    message = listener.get_message(timeout=5)
    assert message is not None
    assert odd in message["data"]
    listener.close()


def test_clients_cannot_choose_who_they_are(cluster: Cluster) -> None:
    cluster.ada.send_raw(
        '{"type": "stickyNotes:note:create", "payload": {"userId": "root"}, "userId": "root", "socketId": "x"}'
    )
    (event,) = cluster.service.wait_received()
    assert (event["userId"], event["socketId"]) == ("user_ada", cluster.ada.socket_id)


def test_answer_to_the_sender_alone(cluster: Cluster) -> None:
    cluster.cy.send("stickyNotes:note:echo", payload=[1, None, "x"])
    assert cluster.cy.expect("stickyNotes:note:echo")["payload"] == [1, None, "x"]
    for other in (cluster.ada, cluster.bob, cluster.dan):
        other.expect_nothing_through(cluster.redis)


def test_broadcast_to_the_room_on_every_process_once(cluster: Cluster) -> None:
    cluster.ada.send("stickyNotes:note:shout", payload={"text": "hi"})
    for member in (cluster.ada, cluster.bob, cluster.cy):
        assert member.expect("stickyNotes:note:shout")["payload"] == {"text": "hi", "roomId": "r1"}
        member.expect_nothing_through(cluster.redis)
    cluster.dan.expect_nothing_through(cluster.redis)


def test_broadcast_to_a_room_named_beside_the_payload(cluster: Cluster) -> None:
    cluster.ada.send("stickyNotes:note:shout", payload="no object")
    for member in (cluster.ada, cluster.bob, cluster.cy):
        message = member.expect("stickyNotes:note:shout")
        assert (message["payload"], message["roomId"]) == ("no object", "r1")
    cluster.dan.expect_nothing_through(cluster.redis)


def test_exclusion(cluster: Cluster) -> None:
    cluster.bob.send("stickyNotes:note:shoutOthers", payload={})
    for member in (cluster.ada, cluster.cy):
        member.expect("stickyNotes:note:shoutOthers")
    cluster.bob.expect_nothing_through(cluster.redis)


def test_users_on_every_process(cluster: Cluster) -> None:
    cluster.ada.send("stickyNotes:note:users", payload={"userIds": ["user_bob", "user_dan", "user_nobody"]})
    for user in (cluster.bob, cluster.dan):
        user.expect("stickyNotes:note:users")
    for other in (cluster.ada, cluster.cy):
        other.expect_nothing_through(cluster.redis)


def test_the_reply_of_a_service_that_does_not_reply_is_one_answer_too_many(cluster: Cluster) -> None:
    cluster.cy.send("stickyNotes:note:reply", payload="?", id=7)
    assert cluster.cy.receive() == {"type": "ack", "payload": {"receivers": 1}, "id": 7}
    cluster.cy.send("stickyNotes:note:shout", payload={})
    cluster.cy.expect("stickyNotes:note:shout")


def test_disconnect_command(cluster: Cluster) -> None:
    cluster.ada.send("stickyNotes:note:kick", payload={})
    cluster.ada.expect_error("ACCESS_REVOKED")
    cluster.ada.expect_close(4403)
    cluster.bob.expect_nothing_through(cluster.redis)


def test_unknown_recipient_and_targetless_and_malformed_broadcasts_harm_nobody(cluster: Cluster) -> None:
    publish = cluster.redis.client().publish
    publish("events:broadcast", '{"type": "x:y:z", "recipients": ["nobody"], "payload": {}}')
    publish("events:broadcast", '{"type": "x:y:z", "recipients": [], "payload": {}}')
    publish("events:broadcast", "{not json")
    cluster.first.wait_log("Ignored a broadcast without recipients and room")
    cluster.first.wait_log("Ignored a malformed broadcast")
    cluster.ada.send("stickyNotes:note:shout", payload={})
    for member in (cluster.ada, cluster.bob, cluster.cy):
        member.expect("stickyNotes:note:shout")


def test_rooms_joined_and_left(cluster: Cluster) -> None:
    cluster.ada.send("join", payload={"roomId": "r2"}, id=1)
    assert cluster.ada.expect("joined") == {"type": "joined", "payload": {"roomId": "r2"}, "id": 1}
    cluster.ada.send("stickyNotes:note:shout", payload={}, roomId="r2")
    for member in (cluster.ada, cluster.dan):
        assert member.expect("stickyNotes:note:shout")["payload"]["roomId"] == "r2"
    cluster.bob.expect_nothing_through(cluster.redis)
    cluster.ada.send("leave", payload={"roomId": "r2"})
    cluster.ada.expect("left")
    cluster.ada.send("stickyNotes:note:shout", payload={}, roomId="r2")
    cluster.ada.expect_error("ACCESS_DENIED")
    cluster.ada.send("stickyNotes:note:echo", payload={})
    cluster.ada.expect("stickyNotes:note:echo")
    assert cluster.service.received()[-1]["roomId"] == "r1"


def test_room_cache_is_what_services_read(cluster: Cluster) -> None:
    redis = cluster.redis.client()
    cluster.ada.send("stickyNotes:note:echo", payload={})
    cluster.ada.expect("stickyNotes:note:echo")
    assert redis.hgetall("room:r1") == {
        "user_ada": cluster.ada.socket_id,
        "user_bob": cluster.bob.socket_id,
        "user_cy": cluster.cy.socket_id,
    }
    assert redis.get("socket:user_dan:r2") == cluster.dan.socket_id
    cluster.dan.close()
    left = ("room:r2", "socket:user_dan:r2")
    wait_until(lambda: not redis.exists(*left), lambda: f"neither of {left} in {redis.keys()}")


def test_newer_login_closes_the_older_socket_on_another_process(cluster: Cluster, connect: Connect) -> None:
    again = connect(cluster.second, token="ada", room="r1")
    cluster.ada.expect_error("DUPLICATE_CONNECTION")
    cluster.ada.expect_close(4409)
    again.send("stickyNotes:note:echo", payload={})
    again.expect("stickyNotes:note:echo")
    redis = cluster.redis.client()
    assert redis.hget("room:r1", "user_ada") == again.socket_id
    assert redis.get("socket:user_ada:r1") == again.socket_id


def test_newer_login_closes_the_older_socket_on_the_same_process(cluster: Cluster, connect: Connect) -> None:
    again = connect(cluster.first, token="ada", room="r1")
    cluster.ada.expect_error("DUPLICATE_CONNECTION")
    cluster.ada.expect_close(4409)
    again.send("stickyNotes:note:shout", payload={})
    for member in (again, cluster.bob, cluster.cy):
        member.expect("stickyNotes:note:shout")


def test_many_sessions(
    redis_server: RedisServer, gateway: StartGateway, service: StartService, connect: Connect
) -> None:
    process = gateway(redis_server, config={"sessions": "many"})
    service(redis_server, CHANNEL)
    one = connect(process, token="ada", room="r1")
    two = connect(process, token="ada", room="r1")
    one.send("stickyNotes:note:shout", payload={})
    for socket in (one, two):
        socket.expect("stickyNotes:note:shout")
    redis = redis_server.client()
    assert redis.hget("room:r1", "user_ada") == two.socket_id
    two.close()
    wait_until(
        lambda: redis.hget("room:r1", "user_ada") == one.socket_id,
        lambda: f"{one.socket_id} in {redis.hgetall('room:r1')}",
    )
    assert redis.get("socket:user_ada:r1") == one.socket_id


def test_key_prefix(redis_server: RedisServer, gateway: StartGateway, service: StartService, connect: Connect) -> None:
    process = gateway(redis_server, config={"redis": {"prefix": "app1:"}})
    listener = redis_server.client().pubsub()
    listener.subscribe("app1:" + CHANNEL)
    assert listener.get_message(timeout=5)
    ada = connect(process, token="ada", room="r1")
    ada.send("stickyNotes:note:create", payload={})
    assert listener.get_message(timeout=5)
    assert redis_server.client().hget("app1:room:r1", "user_ada") == ada.socket_id
    redis_server.client().publish("app1:events:broadcast", '{"type": "a:b:c", "roomId": "r1"}')
    ada.expect("a:b:c")
    listener.close()
