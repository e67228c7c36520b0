"""A checker of one's own, whatever it does: a yes that is one, a no, or no answer; and no token in the log."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from twisted.cred.error import LoginDenied, UnauthorizedLogin, UnhandledCredentials
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from zope.interface import implementer
from zope.interface.verify import verifyObject

from kraftek.contract.errors import Code, Limit, PeerError
from kraftek.contract.interfaces import IAccessChecker
from kraftek.contract.messages import Grant, Token
from kraftek.contract.settings import Auth
from kraftek.edge.own_checker import MESSAGE_CHARACTERS, OwnChecker

SECRET = "s3cr3t-t0k3n"
NOW = 1_700_000_000.0


@implementer(IAccessChecker)
class Own:
    """Does what the test sets."""

    def __init__(self) -> None:
        self.does: Callable[[Token, str | None, str], Any] = lambda token, room_id, turn: succeed(Grant("ada"))
        self.listeners: list[Callable[[], None]] = []

    def check(self, token: Token, room_id: str | None, turn: str = "") -> Any:
        return self.does(token, room_id, turn)

    def vouches(self, source: str) -> bool:
        return source in ("", "key.1")

    def on_change(self, listener: Callable[[], None]) -> None:
        self.listeners.append(listener)


class Guarded:
    """``log``: what was said, as the operator reads it."""

    def __init__(self, **auth: Any) -> None:
        self.clock, self.own = Clock(), Own()
        self.checker = OwnChecker(self.clock, Auth(**{"timeout": 2.0, **auth}), self.own, "f1nger", now=lambda: NOW)
        self.log: list[str] = []

    def check(self, does: Any, room_id: str | None = "r") -> list[Any]:
        """What comes of it: a grant, an error, or nothing yet."""
        self.own.does = does
        outcome: list[Any] = []
        with capturedLogs() as events:
            checking = self.checker.check(Token(SECRET), room_id, "turn")
            checking.addCallbacks(outcome.append, lambda failure: outcome.append(failure.value))
        self.log += (event["log_format"].format(**event) for event in events)
        return outcome


@pytest.fixture
def guarded() -> Guarded:
    return Guarded()


def raises(error: Exception) -> Callable[..., Any]:
    def does(*_: object) -> None:
        raise error

    return does


def gives(answer: Any) -> Callable[..., Any]:
    return lambda *_: succeed(answer)


def test_keeps_its_interface(guarded: Guarded) -> None:
    verifyObject(IAccessChecker, guarded.checker)
    told: list[None] = []
    guarded.checker.on_change(lambda: told.append(None))
    guarded.own.listeners[0]()
    assert told == [None]


def test_it_must_be_a_checker() -> None:
    class Half(Own):
        def check(self, token: Token, room_id: str | None) -> Any:  # type: ignore[override]
            return None

    for wrong, why in ((object(), "IAccessChecker"), (Half(), "doesn't allow enough arguments")):
        with pytest.raises(ValueError, match=why) as caught:
            OwnChecker(Clock(), Auth(), wrong, "")
        assert "\n" not in str(caught.value)


def test_a_yes(guarded: Guarded) -> None:
    asked: list[Any] = []

    def does(token: Token, room_id: str | None, turn: str) -> Deferred[Grant]:
        asked.append((token.value, room_id, turn))
        return succeed(Grant("ada", None, ("a:*:*",), NOW + 1, 5.0, fresh_until=7.0, source="key.1"))

    assert guarded.check(does) == [Grant("ada", "r", ("a:*:*",), NOW + 1, 5.0, source="f1nger.key.1")]
    assert asked == [(SECRET, "r", "turn")]


def test_a_coroutine_or_a_value_will_do(guarded: Guarded) -> None:
    async def does(token: Token, room_id: str | None, turn: str) -> Grant:
        return Grant(await succeed("bob"), room_id)

    assert guarded.check(does)[0].user_id == "bob"
    assert guarded.check(lambda *_: Grant("eve"), None)[0].room_id is None


@pytest.mark.parametrize(
    ("source", "vouched"),
    [("f1nger.", True), ("f1nger.key.1", True), ("f1nger.other", False), ("other.", False), ("", False)],
)
def test_what_was_kept_counts_if_it_is_of_the_same_origin(guarded: Guarded, source: str, vouched: bool) -> None:
    assert guarded.checker.vouches(source) is vouched


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (PeerError(Code.AUTH_FAILED, "who?"), Code.AUTH_FAILED, "who?"),
        (PeerError(Code.AUTH_FAILED, f"{SECRET} is wrong"), Code.AUTH_FAILED, "Authentication failed"),
        (PeerError(Code.AUTH_FAILED, "x" * 999), Code.AUTH_FAILED, "x" * MESSAGE_CHARACTERS),
        (PeerError(Code.TOKEN_EXPIRED, "late"), Code.TOKEN_EXPIRED, "late"),
        (UnauthorizedLogin(SECRET), Code.AUTH_FAILED, "Authentication failed"),
        (LoginDenied(), Code.AUTH_FAILED, "Authentication failed"),
    ],
)
def test_a_no(guarded: Guarded, error: Exception, code: Code, message: str) -> None:
    (refusal,) = guarded.check(raises(error))
    assert (refusal.code, refusal.message, refusal.closes) == (code, message, True)
    assert guarded.log == []


def test_a_yes_that_is_over_is_a_no(guarded: Guarded) -> None:
    (refusal,) = guarded.check(gives(Grant("ada", expires_at=NOW)))
    assert (refusal.code, refusal.closes) == (Code.TOKEN_EXPIRED, True)


@pytest.mark.parametrize(
    ("does", "reason"),
    [
        (raises(KeyError(SECRET)), "KeyError at test_own_checker.py:"),
        (raises(UnhandledCredentials(SECRET)), "UnhandledCredentials at test_own_checker.py:"),
        (gives(None), "expected a Grant, got `NoneType`"),
        (gives({"userId": SECRET}), "expected a Grant, got `dict`"),
        (gives(Grant("")), "Expected `str` of length >= 1 - at `$.user_id`"),
        (gives(Grant(7)), "Expected `str`, got `int` - at `$.user_id`"),  # type: ignore[arg-type]
        (gives(Grant("ada", "other")), "a Grant for another room"),
        (gives(Grant("ada", permissions=("a",))), "at `$.permissions[0]`"),
        (gives(Grant("ada", ttl=-1)), "at `$.ttl`"),
        (gives(Grant("ada", expires_at="soon")), "at `$.expires_at`"),  # type: ignore[arg-type]
    ],
)
def test_no_answer(guarded: Guarded, does: Any, reason: str) -> None:
    (error,) = guarded.check(does)
    assert (error.code, error.retry_after, error.closes) == (Code.AUTH_UNAVAILABLE, 1.0, False)
    (line,) = guarded.log
    assert reason in line
    assert SECRET not in line + str(error)
    guarded.check(does)
    assert len(guarded.log) == 1  # once a minute


def test_what_cannot_be_asked_says_so_itself(guarded: Guarded) -> None:
    (error,) = guarded.check(raises(PeerError(Code.AUTH_UNAVAILABLE, "the database is away", retry_after=7.0)))
    assert (error.code, error.retry_after, guarded.log) == (Code.AUTH_UNAVAILABLE, 7.0, [])
    (error,) = guarded.check(raises(PeerError(Code.RATE_LIMITED, "too many", limit=Limit.SHARE)))
    assert error.code is Code.RATE_LIMITED
    (error,) = guarded.check(raises(PeerError(Code.ACCESS_DENIED, "no word of a checker")))
    assert error.code is Code.AUTH_UNAVAILABLE


def test_a_question_takes_so_long_at_most(guarded: Guarded) -> None:
    for _ in range(2):
        cancelled: list[Any] = []
        outcome = guarded.check(lambda *_, cancelled=cancelled: Deferred(cancelled.append))
        guarded.clock.advance(1.9)
        assert outcome == []
        with capturedLogs() as events:
            guarded.clock.advance(0.2)
        assert (outcome[0].code, len(cancelled)) == (Code.AUTH_UNAVAILABLE, 1)
        guarded.log += (event["log_format"].format(**event) for event in events)
    assert guarded.log == [
        "The checker of auth.check gave no answer (said once a minute for each reason): TimeoutError"
    ]


def test_so_many_are_asked_at_a_time() -> None:
    guarded = Guarded(concurrency=2, waiting=1)
    asked: list[Deferred[Grant]] = []

    def does(*_: object) -> Deferred[Grant]:
        asked.append(Deferred())
        return asked[-1]

    outcomes = [guarded.check(does) for _ in range(4)]
    assert len(asked) == 1  # half of them for one who asks alone
    assert [outcome[0].code for outcome in outcomes if outcome] == [Code.AUTH_UNAVAILABLE] * 2
    asked[0].callback(Grant("ada"))
    assert (outcomes[0][0].user_id, len(asked)) == ("ada", 2)
    guarded.checker.reload(Auth(concurrency=9, timeout=5.0))()
    assert len([guarded.check(does) for _ in range(3)]) == 3
    assert len(asked) == 5
