"""Two checkers in a row: both say yes, and the less of both counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from zope.interface import implementer
from zope.interface.verify import verifyObject

from kraftek.contract.errors import Code, PeerError
from kraftek.contract.interfaces import IAccessChecker
from kraftek.contract.messages import Grant, Token
from kraftek.edge.chained_checker import ChainedChecker

DENIED = PeerError(Code.AUTH_FAILED, "no", closes=True)
AWAY = PeerError(Code.AUTH_UNAVAILABLE, "away", retry_after=1.0)


@implementer(IAccessChecker)
class One:
    """Says what the test sets."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.says: Grant | PeerError = self.grant()
        self.asked: list[tuple[str, str | None, str]] = []
        self.listeners: list[Callable[[], None]] = []

    def grant(self, user: str = "ada", **more: Any) -> Grant:
        return Grant(user, "r", source=self.source, **more)

    def check(self, token: Token, room_id: str | None, turn: str = "") -> Deferred[Grant]:
        self.asked.append((token.value, room_id, turn))
        return succeed(self.says) if isinstance(self.says, Grant) else fail(self.says)

    def vouches(self, source: str) -> bool:
        return source == self.source

    def on_change(self, listener: Callable[[], None]) -> None:
        self.listeners.append(listener)


class Chain:
    def __init__(self) -> None:
        self.first, self.second = One("jwt.key"), One("")
        self.checker = ChainedChecker(self.first, self.second)

    def outcome(self) -> Any:
        outcome: list[Any] = []
        checking = self.checker.check(Token("t"), "r", "turn")
        checking.addCallbacks(outcome.append, lambda failure: outcome.append(failure.value))
        return outcome[0]


@pytest.fixture
def chain() -> Chain:
    return Chain()


def test_keeps_its_interface(chain: Chain) -> None:
    verifyObject(IAccessChecker, chain.checker)


def test_both_say_yes(chain: Chain) -> None:
    grant = chain.outcome()
    assert (grant.user_id, grant.room_id, grant.permissions, grant.expires_at) == ("ada", "r", None, None)
    assert chain.first.asked == chain.second.asked == [("t", "r", "turn")]


@pytest.mark.parametrize("error", [DENIED, AWAY])
def test_one_does_not(chain: Chain, error: PeerError) -> None:
    chain.second.says = error
    assert chain.outcome() is error
    chain.second.says, chain.first.says = chain.second.grant(), error
    assert chain.outcome() is error
    assert len(chain.second.asked) == 1  # nobody is asked about a token that is not good


def test_they_mean_different_users(chain: Chain) -> None:
    chain.second.says = chain.second.grant("bob")
    error = chain.outcome()
    assert (error.code, error.closes) == (Code.AUTH_FAILED, True)


@pytest.mark.parametrize(
    ("first", "second", "both"),
    [
        (None, None, None),
        (None, ("a:b:c",), ("a:b:c",)),
        (("a:b:c",), None, ("a:b:c",)),
        ((), None, ()),
        (("a:*:*",), (), ()),
        (("a:*:*",), ("a:b:c", "x:b:c"), ("a:b:c",)),
        (("a:*:c", "*:b:*"), ("*:b:*",), ("a:b:c", "*:b:*")),
        (("a:*:c",), ("*:b:*", "a:*:d"), ("a:b:c",)),
        (("*:*:*",), ("a:b:*", "a:b:*"), ("a:b:*",)),
    ],
)
def test_what_both_permit(chain: Chain, first: Any, second: Any, both: Any) -> None:
    chain.first.says = chain.first.grant(permissions=first)
    chain.second.says = chain.second.grant(permissions=second)
    assert chain.outcome().permissions == both


@pytest.mark.parametrize(
    ("first", "second", "both"), [(None, None, None), (5.0, None, 5.0), (None, 5.0, 5.0), (7, 5, 5)]
)
def test_the_earlier_end_counts(chain: Chain, first: Any, second: Any, both: Any) -> None:
    chain.first.says = chain.first.grant(expires_at=first, ttl=second)
    chain.second.says = chain.second.grant(expires_at=second, ttl=first)
    assert (chain.outcome().expires_at, chain.outcome().ttl) == (both, both)


def test_what_was_kept_counts_if_both_vouch_for_it(chain: Chain) -> None:
    assert chain.outcome().source == "jwt.key+"
    assert chain.checker.vouches("jwt.key+")
    for source in ("jwt.key", "", "+", "other.key+", "jwt.key+x"):
        assert not chain.checker.vouches(source)


def test_either_may_change(chain: Chain) -> None:
    told: list[None] = []
    chain.checker.on_change(lambda: told.append(None))
    for one in (chain.first, chain.second):
        for listener in one.listeners:
            listener()
    assert len(told) == 2
