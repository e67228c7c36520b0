"""Where the order is in which rooms are told, and when nobody knows."""

from __future__ import annotations

from twisted.internet.defer import Deferred, succeed

from kraftek.contract.errors import NotPublished
from kraftek.contract.order import Order, number_in, same_order
from kraftek.core.ordering import Ordering
from tests.support.fakes import FakeBus, FakeLogs

A, B = "0123456789ab.", "ba9876543210."


def made(order: Order | None = None) -> tuple[Ordering, FakeLogs, FakeBus]:
    logs, bus = FakeLogs(), FakeBus()
    return Ordering(bus, logs, order), logs, bus


def test_what_a_word_says() -> None:
    assert [number_in(word) for word in (A + "7", "-", A, "7", A + "7x")] == [7, None, None, None, None]
    assert same_order(A + "1", A + "22")
    assert not same_order(A + "1", B + "1")


def test_where_nobody_is_recovered_nothing_is_done() -> None:
    ordering, _, _ = made()
    assert (ordering.heard(A + "1"), ordering.again(A + "1")) == (A + "1", A + "1")
    ordering.disturbed()
    ordering.reached(A + "2")
    assert not ordering.sweep()


def test_it_is_certain_when_all_was_compared_and_handled() -> None:
    order = Order()
    ordering, logs, _ = made(order)
    compared: list[Deferred[bool]] = [succeed(False), Deferred()]
    ordering.compare = lambda: compared.pop(0)
    assert ordering.sweep()
    assert not order.certain
    last = compared[0]
    assert ordering.sweep()
    assert not ordering.sweep()  # it waits
    last.callback(True)
    assert order.now == A + "0"
    assert not ordering.sweep()
    ordering.incomplete("room")
    assert ordering.sweep()
    assert not order.certain
    ordering.complete("room")
    logs.failure = NotPublished("away")
    assert ordering.sweep()
    assert not order.certain
    logs.failure = None
    ordering.owed = 1
    assert ordering.sweep()
    assert not order.certain
    ordering.owed = 0
    assert ordering.sweep()
    assert order.certain


def test_it_follows_what_is_heard_and_another_order_is_a_disturbance() -> None:
    order = Order()
    ordering, _, _ = made(order)
    ordering.sweep()
    assert ordering.heard(A + "5") == A + "5"
    ordering.reached(A + "4")
    assert order.now == A + "5"
    ordering.reached(A + "6")
    assert order.now == A + "6"
    assert ordering.again(A + "6") == A + "6"
    assert ordering.heard(B + "1") == "-"
    assert ordering.again(B + "1") == "-"
    assert ordering.sweep()
    assert order.now == A + "0"  # as Redis says, which knows
