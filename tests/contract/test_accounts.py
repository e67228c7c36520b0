"""Accounts have descriptions and a sum, and the largest one gives up first."""

from __future__ import annotations

import pytest

from kraftek.contract.accounts import Accounts, described


def test_every_account_says_what_is_in_it_and_is_part_of_the_sum() -> None:
    accounts = Accounts()
    names = [name for name, _ in described()]
    assert names == sorted(names)
    assert len({description for _, description in described()}) == len(names)
    for number, name in enumerate(names):
        setattr(accounts, name, 10**number)
    assert accounts.by_kind() == {name: 10**number for number, name in enumerate(names)}
    assert accounts.total == sum(accounts.by_kind().values())


def test_the_largest_account_gives_up_first_and_no_more_than_is_asked_for() -> None:
    accounts = Accounts(held=10, unsent=100)
    asked: list[tuple[str, int]] = []

    def shed(name: str, most: int, wanted: int) -> int:
        asked.append((name, wanted))
        return min(most, wanted)

    accounts.shed_by("held", lambda size: shed("held", 10, size))
    accounts.shed_by("unsent", lambda size: shed("websockets", 60, size))
    accounts.shed_by("unsent", lambda size: shed("polling", 40, size))
    assert accounts.shed(105) == 105
    assert asked == [("websockets", 105), ("polling", 45), ("held", 5)]
    asked.clear()
    assert accounts.shed(60) == 60
    assert asked == [("websockets", 60)]
    accounts.held, accounts.unsent = 100, 10
    asked.clear()
    assert accounts.shed(1000) == 110
    assert [name for name, _ in asked] == ["held", "websockets", "polling"]


def test_only_accounts_that_there_are_can_be_shed() -> None:
    with pytest.raises(KeyError):
        Accounts().shed_by("sheds", lambda size: size)
