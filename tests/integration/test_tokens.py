"""Tokens that the gateway checks itself, on the real one: let in, revoked for good, and asked about as well."""

from __future__ import annotations

import hashlib
import json
import time
from typing import TYPE_CHECKING, Any

import jwt

from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.integration.conftest import AuthService, Connect, RedisServer, StartGateway, StartService

SECRET = "0123456789abcdef0123456789abcdef"
CHANNEL = "events:stickyNotes"


def token(user: str = "ada", *, age: float = 60, life: float = 900, **claims: Any) -> str:
    now = time.time()
    named = {"iss": "https://id", "aud": "gateway", "sub": user, "iat": now - age, "exp": now - age + life}
    rights = {"rooms": ["r1", "r2"], "permissions": ["stickyNotes:*:echo"]}
    return jwt.encode({**named, **rights, **claims}, SECRET, "HS256")


def settings(directory: Path) -> dict[str, Any]:
    file = directory / "secret"
    file.write_text(SECRET)
    return {"jwt": {"issuer": "https://id", "audience": "gateway", "algorithm": "HS256", "key_files": [str(file)]}}


def test_a_token_speaks_for_itself_until_it_is_revoked(
    redis_server: RedisServer, gateway: StartGateway, service: StartService, connect: Connect, tmp_path: Path
) -> None:
    config = settings(tmp_path)
    process = gateway(redis_server, auth="jwt", config=config)
    service(redis_server, CHANNEL)
    redis = redis_server.client()
    old = token()
    ada = connect(process, token=old, room="r1")
    ada.send("join", payload={"roomId": "r3"})
    ada.expect_error("ACCESS_DENIED")
    ada.send("stickyNotes:note:delete", payload={}, id=1)
    ada.expect_error("ACCESS_DENIED")
    ada.send("stickyNotes:note:echo", payload=7)
    assert ada.expect("stickyNotes:note:echo")["payload"] == 7
    # What is deleted is allowed again by the same token.
    redis.delete(f"access:token:{hashlib.sha256(old.encode()).hexdigest()}", "access:user:ada")
    ada.send("stickyNotes:note:echo", payload=8)
    assert ada.expect("stickyNotes:note:echo")["payload"] == 8
    # What is revoked is not: here, on another gateway, and after a restart.
    assert redis.publish("auth:invalidate", json.dumps({"userId": "ada"})) == 1
    ada.expect_error("ACCESS_REVOKED")
    ada.expect_close(4403)
    wait_until(lambda: redis.hget("access-not-before:ada", ""), "the time of the revocation")
    for another in (process, gateway(redis_server, auth="jwt", config=config)):
        again = connect(another)
        again.send("authenticate", payload={"token": old, "roomId": "r1"})
        again.expect_error("AUTH_FAILED")
        again.expect_close(4401)
        connect(another, token=token(age=-2), room="r1")
    connect(process, token=token("bob"), room="r1")


def test_both_must_allow_it(
    redis_server: RedisServer, gateway: StartGateway, connect: Connect, auth_service: AuthService, tmp_path: Path
) -> None:
    good, other = token(), token("bob", rooms=["r2"])
    auth_service.allow(good, "ada", permissions=["*:note:*"])
    auth_service.allow(other, "bob")
    process = gateway(redis_server, auth=f"jwt+{auth_service.url}", config=settings(tmp_path))
    bob = connect(process)
    bob.send("authenticate", payload={"token": other, "roomId": "r1"})
    assert bob.expect_error("AUTH_FAILED")["payload"]["message"] == "The token is not for this room"
    bob.expect_close(4401)
    assert auth_service.questions == []
    ada = connect(process, token=good, room="r1")
    assert auth_service.questions == [(good, "r1")]
    ada.send("stickyNotes:note:delete", payload={}, id=1)
    ada.expect_error("ACCESS_DENIED")
    # Deleting a key asks the auth service again, which has thought better of it.
    auth_service.deny(good, "no longer")
    redis_server.client().delete("access:user:ada")
    ada.expect_error("ACCESS_REVOKED")
    ada.expect_close(4403)


def test_a_token_is_refreshed_or_expires(
    redis_server: RedisServer, gateway: StartGateway, service: StartService, connect: Connect, tmp_path: Path
) -> None:
    config = settings(tmp_path)
    config["jwt"]["leeway"] = 0.0
    process = gateway(redis_server, auth="jwt", config=config)
    service(redis_server, CHANNEL)
    ada = connect(process)
    told = ada.authenticate(token(age=5, life=10), "r1")["payload"]
    assert 0 < told["expiresIn"] <= 5
    ada.send("authenticate", payload={"token": token(age=5, life=13)})
    assert 5 < ada.expect("authenticated")["payload"]["expiresIn"] <= 8
    expired = ada.expect_error("TOKEN_EXPIRED", 20.0)
    assert expired["roomId"] == "r1"
    ada.send("stickyNotes:note:echo", payload=1)
    ada.expect_error("TOKEN_EXPIRED")
    ada.send("authenticate", payload={"token": token()})
    ada.expect("authenticated")
    ada.send("stickyNotes:note:echo", payload=2)
    assert ada.expect("stickyNotes:note:echo")["payload"] == 2
