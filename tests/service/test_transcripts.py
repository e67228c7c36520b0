"""What the kits for Python and for Node share: transcripts of what they are sent, and what they must say and keep.

A transcript is a file in ``transcripts/``. ``over`` names the transports that it holds for, ``settings`` are those of
the service, which is that of ``sample.py`` and ``js/sample.js``. One instance runs at first: that of the row before if
neither changes it, and nothing of that row is left in Redis. The steps:

==============================  ==============================================================================
``send``                        an event, as a gateway sends it
``raw``                         something else in its place
``heard`` and ``message``       the next message on one of the channels, and nothing before it; ``"*"`` is any value
``redis`` and ``answers``       a command for Redis, and what it is answered
``stored`` and ``message``      a key that expires, and the message that it holds
``refused``                     how the error begins that Redis has given somebody
``gateway`` and ``knows``       a gateway lives that knows these commands; ``null``: it is gone
``begun``                       a room, and the marks of what handlers have begun there
``kept``                        how many entries are ``pending``, and the beginning of the ``reason`` of each that is
                                ``dead``, with its ``attempts``
``lost``                        another instance had the lease for a moment, read this event, and is gone
``start``, ``stop``, ``ended``  so many instances more; all get SIGTERM; so many have ended, as they should
==============================  ==============================================================================
"""

from __future__ import annotations

import json
import signal
import subprocess
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from kraftek.contract.names import cancel_channel, lease_key, stream_of
from tests.service.instances import program
from tests.support.redis_server import PrivateRedis
from tests.support.waiting import wait_until

TRANSCRIPTS = Path(__file__).parent / "transcripts"
WAYS: dict[str, dict[str, Any]] = {
    "pubsub": {},
    "stream": {"transport": "stream"},
    "partitions": {"transport": "stream", "partitions": 2},
}
_LATER = 4_102_444_800
"""A lease until 2100."""
CHANNELS = ("replies", "events:broadcast")
ALONE = {"gateway", "lost", "refused", "start", "stop"}
"""Steps after which an instance is not what it was: such a transcript has its own."""


def alone(transcript: dict[str, Any]) -> bool:
    """Whether it needs instances of its own."""
    return any(step.keys() & ALONE for step in transcript["steps"])


def cases() -> Iterator[Any]:
    """Those that can share an instance come one after the other."""
    transcripts = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(TRANSCRIPTS.glob("*.json"))}
    ordered = sorted(transcripts.items(), key=lambda item: (alone(item[1]), str(item[1].get("settings")), item[0]))
    for way, settings in WAYS.items():
        for name, transcript in ordered:
            if way in transcript["over"]:
                yield pytest.param(transcript, settings, id=f"{name}-{way}")


@pytest.fixture(scope="module")
def stages(server: PrivateRedis) -> Iterator[Stages]:
    with closing(Stages(server)) as stages:
        yield stages


@pytest.mark.parametrize(("transcript", "way"), [*cases()])
@pytest.mark.parametrize("backend", ["asyncio", "twisted", "node"])
def test_transcript(backend: str, transcript: dict[str, Any], way: dict[str, Any], stages: Stages) -> None:
    settings = {**way, **transcript.get("settings", {})}
    with stages.stage(backend, settings, alone=alone(transcript)) as stage:
        for step in transcript["steps"]:
            stage.play(step)


class Stages:
    """Gives each row its stage. One that needs none of its own gets that of the row before if that suits it."""

    def __init__(self, server: PrivateRedis) -> None:
        self._server = server
        self._stage: Stage | None = None
        self._made_with: tuple[str, dict[str, Any]] | None = None

    @contextmanager
    def stage(self, backend: str, settings: dict[str, Any], *, alone: bool) -> Iterator[Stage]:
        """A stage with one instance. A row that fails leaves it to nobody."""
        if alone or self._made_with != (backend, settings):
            self.close()
        if self._stage is None:
            self._stage = Stage(self._server, backend, settings)
            self._stage.start(1)
        stage, self._made_with = self._stage, None
        yield stage
        if not alone:
            stage.clear()
            self._made_with = backend, settings

    def close(self) -> None:
        """End the instances of the last one."""
        stage, self._stage, self._made_with = self._stage, None, None
        if stage is not None:
            stage.close()


class Stage:
    """A Redis as the gateways see it, and instances of the service."""

    def __init__(self, server: PrivateRedis, backend: str, settings: dict[str, Any]) -> None:
        self._redis: Any = redis.Redis.from_url(server.url, decode_responses=True)
        self._redis.flushall()
        self._redis.config_resetstat()
        self._command = [*program(backend), server.url, json.dumps(settings)]
        self._partitions = settings.get("partitions", 0)
        self._streamed = "transport" in settings
        self._listening = self._redis.pubsub(ignore_subscribe_messages=True)
        self._listening.subscribe(*CHANNELS)
        self._running: list[subprocess.Popen[bytes]] = []
        self._rooms: set[str] = set()

    def close(self) -> None:
        for process in self._running:
            process.kill()
            process.communicate(timeout=10)
        self._redis.config_set("maxmemory", 0)
        self._redis.replicaof("NO", "ONE")
        self._listening.close()
        self._redis.close()

    def clear(self) -> None:
        """Wait until all that was sent has been handled, and leave nothing of it to the next row."""
        behind = {"eventType": "sample:say:back", "userId": "", "socketId": "", "replyTo": "replies", "timestamp": 1}
        for room in sorted(self._rooms):
            self._send(json.dumps({**behind, "roomId": room, "id": "behind", "payload": None}), room)
            while self._heard()[1].get("inReplyTo") != "behind":
                pass
        wait_until(lambda: self._keeps()[0] == 0, "an acknowledgement of everything")
        for key in self._redis.keys("*"):
            if not key.startswith("events:sample") or key.endswith(":dead"):
                self._redis.delete(key)
        self._rooms.clear()

    def play(self, step: dict[str, Any]) -> None:  # a case for each kind
        match step:
            case {"send": event}:
                self._send(json.dumps(event), event.get("roomId", ""))
            case {"raw": body}:
                self._send(body, "")
            case {"lost": event}:
                self._lose(json.dumps(event), event["roomId"])
            case {"heard": channel, "message": message}:
                assert self._heard() == (channel, Like(message))
            case {"redis": command}:
                answer = self._redis.execute_command(*command)
                assert step.get("answers", answer) == answer
            case {"stored": key, "message": message}:
                assert json.loads(self._redis.get(key)) == Like(message)
                assert 0 < self._redis.ttl(key) <= 130
            case {"refused": kind}:
                wait_until(lambda: f"errorstat_{kind}" in self._redis.info("errorstats"), f"{kind} of Redis")
            case {"gateway": gateway, "knows": commands}:
                self._redis.zrem("gateways", gateway)
                if commands is not None:
                    self._redis.zadd("gateways", {gateway: _LATER})
                    self._redis.hset("gateways:registrations", gateway, json.dumps({"commands": commands}))
            case {"begun": [room, marks]}:
                wait_until(
                    lambda: self._redis.lrange(f"begun:{room}", 0, -1) == [str(mark) for mark in marks], "a handler"
                )
            case {"kept": expected}:
                wait_until(lambda: self._kept(expected), lambda: f"{expected}, not {self._keeps()}", 20)
            case _:
                self._manage(step)

    def _manage(self, step: dict[str, Any]) -> None:
        match step:
            case {"start": number}:
                self.start(number)
            case {"stop": _}:
                for process in self._running:
                    process.send_signal(signal.SIGTERM)
            case {"ended": number}:
                for process in self._running[:number]:
                    _, logged = process.communicate(timeout=20)
                    assert process.returncode == 0, logged.decode()
            case _:
                raise AssertionError(f"no such step: {step}")

    def start(self, number: int) -> None:
        """Start so many instances, and return when all of them receive events."""
        before = self._instances()
        for _ in range(number):
            self._running.append(subprocess.Popen(self._command, stderr=subprocess.PIPE))
        wait_until(lambda: self._instances() >= before + number, "instances", 20)

    def _instances(self) -> int:
        """Those that hear events, answers, and what is cancelled."""
        (_, hear), (_, hear_cancels) = self._redis.pubsub_numsub("events:sample", cancel_channel("sample"))
        if self._streamed:
            hear = len(self._redis.pubsub_channels("events:reply:*"))
        return int(min(hear, hear_cancels))

    def _send(self, body: str, room: str) -> None:
        self._rooms.add(room)
        if self._streamed:
            self._redis.xadd(self._stream(room), {"event": body})
        else:
            self._redis.publish("events:sample", body)

    def _lose(self, body: str, room: str) -> None:
        stream = self._stream(room)
        moment = self._redis.pipeline(transaction=True)
        moment.xadd(stream, {"event": body})
        moment.xreadgroup("sample", "gone", {stream: ">"})
        moment.delete(lease_key(stream, "sample"))
        moment.execute()

    def _stream(self, room: str) -> str:
        if self._partitions:
            return stream_of("events:sample", zlib.crc32(room.encode()) % self._partitions)
        return "events:sample"

    def _heard(self) -> tuple[str, Any]:
        for _ in range(200):
            if received := self._listening.get_message(timeout=0.1):
                return received["channel"], json.loads(received["data"])
        raise AssertionError("nothing was heard")

    def _streams(self) -> list[str]:
        if not self._streamed:
            return []
        return [f"events:sample:{number}" for number in range(self._partitions)] or ["events:sample"]

    def _keeps(self) -> tuple[int, list[Any]]:
        dead = [fields for stream in self._streams() for _, fields in self._redis.xrange(f"{stream}:dead")]
        groups = [
            group
            for stream in self._streams()
            if self._redis.exists(stream)
            for group in self._redis.xinfo_groups(stream)
        ]
        return sum(group["pending"] + (group.get("lag") or 0) for group in groups), dead

    def _kept(self, expected: dict[str, Any]) -> bool:
        pending, dead = self._keeps()
        return (
            pending == expected["pending"]
            and len(dead) == len(expected["dead"])
            and all(
                wanted["reason"] in letter["reason"]
                and letter["attempts"] == wanted["attempts"]
                and {"event", "id"} <= letter.keys()
                for letter, wanted in zip(dead, expected["dead"], strict=True)
            )
        )


class Like:
    """Equal to what has the same values, where ``"*"`` is any."""

    def __init__(self, expected: Any) -> None:
        self._expected = expected

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return _like(self._expected, other)

    def __repr__(self) -> str:
        return repr(self._expected)


def _like(expected: Any, found: Any) -> bool:
    if expected == "*":
        return True
    if isinstance(expected, dict) and isinstance(found, dict):
        return expected.keys() == found.keys() and all(_like(expected[name], found[name]) for name in expected)
    return bool(expected == found) and isinstance(expected, bool) is isinstance(found, bool)
