"""Which channels Redis is asked for, and when. That it sends what is published there is in ``test_redis_bus.py``."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred, FirstError
from twisted.python.failure import Failure

from kraftek.bus.subscriber import Channels, cause_of
from kraftek.contract.errors import NotPublished


def one(message: Any) -> None:
    """A listener."""


def other(message: Any) -> None:
    """Another one."""


class Connection:
    """Notes what is asked of it."""

    def __init__(self) -> None:
        self.asked: list[tuple[bytes | str, ...]] = []
        self.answers: list[Deferred[Any]] = []

    def ask(self, *words: bytes | str) -> Deferred[Any]:
        self.asked.append(words)
        self.answers.append(Deferred())
        return self.answers[-1]

    def listen(self, names: list[bytes]) -> Deferred[Any]:
        return self.ask("SUBSCRIBE", *names)


def made() -> tuple[Channels, Connection]:
    channels, connection = Channels(), Connection()
    channels.connection = connection  # type: ignore[assignment]
    return channels, connection


def test_without_a_connection_they_are_for_the_next_one() -> None:
    channels = Channels()
    channels.subscribe(b"a", one)
    following = channels.follow(b"b", other)
    assert isinstance(following.result, Failure)
    following.addErrback(lambda failure: failure.trap(NotPublished))
    assert channels == {b"a": (one,), b"b": (other,)}
    channels.unfollow(b"b")
    Deferred.fromCoroutine(channels.unsubscribe(b"a"))
    assert channels == {}


def test_redis_is_asked_once_for_each() -> None:
    channels, connection = made()
    channels.subscribe(b"a", one)
    channels.subscribe(b"a", other)
    assert channels == {b"a": (one, other)}
    assert connection.asked == [("SUBSCRIBE", b"a")]


def test_what_is_not_wanted_any_more_is_heard_to_the_end_or_at_once_no_more() -> None:
    channels, connection = made()
    channels.subscribe(b"a", one)
    following = channels.follow(b"b", other)
    connection.answers[-1].callback([])
    assert following.result is None
    Deferred.fromCoroutine(channels.unsubscribe(b"a"))
    channels.unfollow(b"b")
    assert channels == {b"a": (one,)}
    assert connection.asked[2:] == [("UNSUBSCRIBE", b"a"), ("UNSUBSCRIBE", b"b")]
    connection.answers[2].errback(NotPublished("lost"))
    assert channels == {}


def test_why_it_is_not_followed() -> None:
    channels, connection = made()
    following = channels.follow(b"b", other)
    connection.answers[-1].errback(FirstError(Failure(NotPublished("lost")), 0))
    assert isinstance(following.result, Failure)
    assert following.result.check(NotPublished)
    following.addErrback(lambda _: None)
    with pytest.raises(KeyError):
        cause_of(Failure(KeyError())).raiseException()
