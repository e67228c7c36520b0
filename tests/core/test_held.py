"""What a client has sent while its access is checked: in order, and with its bounds."""

from __future__ import annotations

from kraftek.contract.accounts import Accounts
from kraftek.contract.messages import Join
from kraftek.contract.settings import Limits
from kraftek.core.held import Held


def held(*rooms: str, accounts: Accounts | None = None, **limits: int) -> Held:
    made = Held(Limits(**limits), accounts or Accounts())
    for room in rooms:
        made.put(Join(room), 10)
    return made


def taken(messages: Held) -> list[str]:
    return [
        message.room_id
        for message in iter(lambda: messages.take() if messages else None, None)
        if isinstance(message, Join)
    ]


def test_they_come_out_as_they_went_in() -> None:
    messages = held("a", "b", "c")
    assert len(messages) == 3
    assert taken(messages) == ["a", "b", "c"]
    assert not messages


def test_those_that_go_back_come_first() -> None:
    messages = held("c", "d")
    messages.follow(held("a", "b"))
    assert taken(messages) == ["a", "b", "c", "d"]


def test_it_is_full_of_so_many_or_of_so_many_bytes() -> None:
    assert [held(*"ab", held_messages=3).full, held(*"abc", held_messages=3).full] == [False, True]
    assert [held(*"ab", held_bytes=21).full, held(*"abc", held_bytes=21).full] == [False, True]


def test_bytes_are_counted_whichever_way_they_come() -> None:
    messages = held(*"ab", held_bytes=40)
    messages.follow(held(*"cd"))
    assert messages.full
    messages.take()
    assert not messages.full


def test_they_are_accounted_until_they_are_taken_or_given_up() -> None:
    accounts = Accounts()
    messages = held(*"ab", accounts=accounts)
    messages.follow(held(*"cd", accounts=accounts))
    assert accounts.held == 40
    messages.take()
    assert accounts.held == 30
    messages.give_up()
    assert (accounts.held, len(messages)) == (0, 0)
