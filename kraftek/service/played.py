"""A service that a test plays. Made by :class:`kraftek.service.testing.Contract`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kraftek.contract.surrogates import encode
from kraftek.service.processor import EventProcessor

if TYPE_CHECKING:
    from redis import Redis
    from redis.client import PubSub

__all__ = ["PATIENCE", "Json", "Played"]

Json = dict[str, Any]

PATIENCE = 10.0
"""Seconds that anything may take."""


class Played:
    """A service that the test plays. Made by :meth:`kraftek.service.testing.Contract.play`."""

    def __init__(self, redis: Redis, processor: EventProcessor, wait_for: Callable[[EventProcessor], None]) -> None:
        self._redis = redis
        self._processor = processor
        self._subscription: PubSub = redis.pubsub(ignore_subscribe_messages=True)
        self._subscription.subscribe(processor.channel)
        wait_for(processor)

    def receive(self, timeout: float = PATIENCE) -> Json:
        """The next event: ``eventType``, ``userId``, ``roomId``, ``payload`` …"""
        deadline = time.monotonic() + timeout
        # Redis's messages about subscriptions come as None, too.
        while (left := deadline - time.monotonic()) > 0:
            if (received := self._subscription.get_message(timeout=left)) is not None:
                event: Json = json.loads(received["data"])
                return event
        raise AssertionError(f"service {self._processor.name} got no event")

    def answer(self, event: Json, payload: Any = None, type: str | None = None) -> None:
        """Answer an event: a request of a client, or of another service."""
        answer = {"type": type or event["eventType"], "payload": payload}
        answer |= {"recipients": [event["socketId"]]} if event["socketId"] else {}
        answer |= {"inReplyTo": event["id"]} if "id" in event else {}
        self._redis.publish(event["replyTo"], encode(answer))

    def refuse(self, event: Json, code: str, message: str) -> None:
        """Answer an event with an error."""
        self.answer(event, {"code": code, "message": message, "eventType": event["eventType"]}, "error")

    def close(self) -> None:
        """Receive nothing any more."""
        self._subscription.close()
