"""What every dialect promises, as tests: a dialect's own test class subclasses :class:`DialectContract`.

The subclass says how its grammar writes and reads; what must hold whatever the grammar is, stands here.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Sequence
from itertools import product
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from msgspec import Raw
from zope.interface.verify import verifyObject

from kraftek.contract.errors import Code, PeerError
from kraftek.contract.interfaces import IDialect
from kraftek.contract.messages import (
    Ack,
    AskPresence,
    Authenticate,
    Authenticated,
    Cancel,
    Closing,
    Connected,
    Delivery,
    Drained,
    ErrorMessage,
    Event,
    Gap,
    History,
    Inbound,
    Join,
    Joined,
    Leave,
    Left,
    Outbound,
    Outgoing,
    Pong,
)

__all__ = ["JSON", "OUTBOUND", "SECRET", "DialectContract", "same"]

SECRET = "s3cret-t0ken"
"""The token in every example: nothing that is said may contain it."""

Wire = Sequence[tuple[bytes, bool]]
"""The messages that arrive, each with whether it is a binary one."""

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
"""Any JSON value."""

RAW = JSON.map(lambda value: Raw(json.dumps(value, ensure_ascii=False, separators=(" , ", " : ")).encode()))
IDS = st.none() | st.integers(-(2**80), 2**80) | st.text(max_size=64)

OUTBOUND: st.SearchStrategy[Outbound] = st.one_of(
    st.builds(Connected, st.text()),
    st.builds(Drained, st.floats(0, 1e9)),
    st.builds(Closing, st.sampled_from([1000, 1001, 1011, *range(4400, 4430)])),
    st.builds(Authenticated, st.text(), st.none() | st.text(), IDS),
    st.builds(Joined, st.text(), IDS),
    st.builds(Pong, IDS),
    st.builds(Gap, st.dictionaries(st.text(), st.dictionaries(st.text(), st.integers(1, 9)))),
    st.builds(Left, st.text(), IDS),
    st.builds(
        ErrorMessage,
        st.sampled_from([*Code]) | st.text(),
        st.text(),
        st.none() | st.text(),
        st.none() | st.floats(0, 1e6),
        IDS,
    ),
    st.builds(Ack, st.integers() | st.text(max_size=64), st.integers(0, 10_000)),
    st.builds(Delivery, st.text(), RAW, st.none() | st.text(), IDS),
)
"""Any message to a client."""

# The mixin's tests run once in each subclass.
inherited = settings(suppress_health_check=[HealthCheck.differing_executors, HealthCheck.too_slow], deadline=None)


def same(one: object, other: object) -> bool:
    """Whether two messages mean the same: a token is what its value is."""
    if isinstance(one, Authenticate) and isinstance(other, Authenticate):
        return (one.token.value, one.room_id, one.id) == (other.token.value, other.room_id, other.id)
    if isinstance(one, Event) and isinstance(other, Event):
        fields = ("name", "id", "room_id", "traceparent")
        return bytes(one.payload) == bytes(other.payload) and all(
            getattr(one, name) == getattr(other, name) for name in fields
        )
    return one == other


class DialectContract:
    """Subclass it as ``class TestMyDialect(DialectContract)``."""

    @abstractmethod
    def make(self) -> IDialect:
        """A dialect for one connection, past whatever its grammar begins with."""

    @abstractmethod
    def examples(self) -> Sequence[tuple[Wire, Inbound]]:
        """How clients write messages: an ``Authenticate`` with the token ``SECRET`` among them, and each other kind."""

    @abstractmethod
    def mistakes(self) -> Sequence[Wire]:
        """What is refused, and closes nothing."""

    @abstractmethod
    def delivered(self, outgoing: Outgoing) -> tuple[str, Any]:
        """The type and the payload's value that a client reads of an encoded ``Delivery``."""

    def outcome(self, dialect: IDialect, wire: Wire) -> Inbound | PeerError | None:
        """What the last of the messages meant, or the error of the first that was refused."""
        found: Inbound | PeerError | None = None
        try:
            for data, binary in wire:
                found = dialect.received(data, binary)
        except PeerError as error:
            found = error
        if isinstance(found, PeerError):
            assert found.code is Code.INVALID_MESSAGE
            assert found.message
        else:
            assert found is None or isinstance(found, Inbound)
        return found

    def test_it_is_a_dialect(self) -> None:
        assert verifyObject(IDialect, self.make())

    def test_equal_codecs_encode_alike(self) -> None:
        one, other = self.make(), self.make()
        assert len({one.codec, other.codec}) == 1
        delivery = Delivery("a:b:c", Raw(b'{"x":1}'), "room", 1)
        said = [dialect.encode(delivery) for dialect in (one, other)]
        assert len({outgoing.text for outgoing in said if outgoing is not None}) == 1

    def test_every_kind_of_message_is_understood(self) -> None:
        understood = {type(message) for _, message in self.examples()}
        assert understood - {History} == {
            Authenticate,
            Join,
            Leave,
            AskPresence,
            Event,
            Cancel,
        }  # not every dialect has that one
        for wire, message in self.examples():
            assert same(self.outcome(self.make(), wire), message)

    def test_one_dialect_understands_one_message_after_the_other(self) -> None:
        dialect = self.make()
        for wire, message in [*self.examples(), *self.examples()]:
            assert same(self.outcome(dialect, wire), message)

    @inherited
    @given(st.lists(st.tuples(st.binary(max_size=200), st.booleans()), max_size=3))
    @example([(b"", False)])
    @example([(b"", True)])
    @example([(b"\xff", False)])
    @example([(b"[" * 60_000, False)])
    @example([(b'{"a":' * 10_000, False)])
    def test_any_bytes_are_a_message_or_refused(self, wire: Wire) -> None:
        self.outcome(self.make(), wire)

    @inherited
    @given(JSON)
    def test_any_json_is_a_message_or_refused(self, value: Any) -> None:
        self.outcome(self.make(), [(json.dumps(value).encode(), False)])

    @inherited
    @given(st.data())
    def test_a_spoilt_message_is_a_message_or_refused_and_shows_no_token(self, data: st.DataObject) -> None:
        dialect = self.make()
        wire, _ = data.draw(st.sampled_from(self.examples()))
        (whole, binary), *rest = wire
        at = data.draw(st.integers(0, len(whole)))
        spoilt = whole[:at] + data.draw(st.binary(max_size=3)) + whole[at + data.draw(st.integers(0, 3)) :]
        refused = self.outcome(dialect, [(spoilt, binary), *rest])
        if isinstance(refused, PeerError):
            assert SECRET not in repr((refused.message, refused.args, refused.event_type, refused.id))

    def test_the_next_good_message_is_understood(self) -> None:
        assert self.mistakes()
        for mistake, (wire, message) in product(self.mistakes(), self.examples()):
            dialect = self.make()
            refused = self.outcome(dialect, mistake)
            assert isinstance(refused, PeerError)
            assert not refused.closes
            assert same(self.outcome(dialect, wire), message)

    @inherited
    @given(st.binary(max_size=50), st.booleans())
    @example(b'{"type":"ping"}', False)
    def test_garbage_closes_or_the_next_good_message_is_understood(self, garbage: bytes, binary: bool) -> None:
        for wire, message in self.examples():
            dialect = self.make()
            refused = self.outcome(dialect, [(garbage, binary)])
            if isinstance(refused, PeerError) and not refused.closes:
                assert same(self.outcome(dialect, wire), message)

    @inherited
    @given(OUTBOUND)
    @example(Delivery("a:b:c", Raw(b"[" * 5_000 + b"]" * 5_000)))
    def test_whatever_we_say_has_a_word_or_none(self, message: Outbound) -> None:
        said = self.make().encode(message)
        if said is not None:
            assert isinstance(said, Outgoing)
            said.text.decode()
            assert all(isinstance(attachment, bytes) for attachment in said.attachments)

    @inherited
    @given(st.builds("{}:{}:{}".format, st.text(), st.text(), st.text()), JSON, st.none() | st.text(max_size=30))
    def test_a_delivery_is_read_as_it_was_sent(self, type: str, payload: Any, room_id: str | None) -> None:
        raw = Raw(json.dumps(payload).encode())
        outgoing = self.make().encode(Delivery(type, raw, room_id))
        assert outgoing is not None
        assert self.delivered(outgoing) == (type, payload)

    def test_a_token_is_in_nothing_but_its_value(self) -> None:
        for wire, message in self.examples():
            if isinstance(message, Authenticate):
                assert message.token.value == SECRET
                assert SECRET not in repr(self.outcome(self.make(), wire))
                return
        raise AssertionError("no example shows the token")
