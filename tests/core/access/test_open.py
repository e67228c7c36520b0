from __future__ import annotations

import pytest
from zope.interface import implementer
from zope.interface.verify import verifyObject

from kraftek.contract.errors import Code
from kraftek.contract.interfaces import IAccess, IAccessListener, IBusListener
from kraftek.contract.messages import Grant, Token
from kraftek.core.access.open import OpenAccess
from tests.core.access.world import Outcome
from tests.support.fakes import FakeBus


@implementer(IAccessListener)
class Told:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.stale: list[tuple[str | None, str | None, str | None, bool]] = []

    def access_stale(self, digest: str | None, user_id: str | None, room_id: str | None, revoked: bool) -> None:
        self.stale.append((digest, user_id, room_id, revoked))


def test_keeps_its_interfaces() -> None:
    access = OpenAccess(FakeBus())
    verifyObject(IAccess, access)
    verifyObject(IBusListener, access)


def test_listeners_are_told_when_redis_may_have_forgotten_everything() -> None:
    bus, told = FakeBus(available=False), Told()
    OpenAccess(bus).add_listener(told)
    bus.up()
    assert told.stale == [(None, None, None, False)]


def test_everybody_is_the_user_of_the_token() -> None:
    assert Outcome(OpenAccess(FakeBus()).check(Token("ada"), "r1")).grant == Grant("user_ada", "r1")


@pytest.mark.parametrize(("token", "room"), [("", "r1"), ("ada", None), ("ada", ""), ("", None)])
def test_token_and_room_are_needed(token: str, room: str | None) -> None:
    outcome = Outcome(OpenAccess(FakeBus()).check(Token(token), room))
    assert outcome.code is Code.AUTH_FAILED
    assert str(outcome.error) == "Token and roomId required"
