from __future__ import annotations

import pytest
from zope.interface.verify import verifyObject

from kraftek.access.open import OpenChecker
from kraftek.errors import Code
from kraftek.interfaces import IAccessChecker
from kraftek.messages import Grant, Token
from tests.access.world import Outcome


def test_keeps_its_interface() -> None:
    verifyObject(IAccessChecker, OpenChecker())


def test_everybody_is_the_user_of_the_token() -> None:
    assert Outcome(OpenChecker().check(Token("ada"), "r1")).grant == Grant("user_ada", "r1")


@pytest.mark.parametrize(("token", "room"), [("", "r1"), ("ada", None), ("ada", ""), ("", None)])
def test_token_and_room_are_needed(token: str, room: str | None) -> None:
    outcome = Outcome(OpenChecker().check(Token(token), room))
    assert outcome.code is Code.AUTH_FAILED
    assert str(outcome.error) == "Token and roomId required"
