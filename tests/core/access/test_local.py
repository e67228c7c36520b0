from __future__ import annotations

import pytest

from kraftek.contract.errors import Code, PeerError
from kraftek.contract.names import INVALIDATION, token_key, user_key
from kraftek.core.access import local as memory
from kraftek.core.access.local import Answers, Changes, Denials, names
from kraftek.core.access.redis import CachedGrant


def kept(user: str = "ada") -> CachedGrant:
    return CachedGrant(user, fresh_until=1.0)


def test_a_change_concerns_by_name() -> None:
    changes = Changes()
    start = changes.position
    changes.record("a")
    assert changes.since(start, ["a"])
    assert changes.since(start, ["b", "a"])
    assert not changes.since(start, ["b"])
    assert not changes.since(changes.position, ["a"])


def test_everything_concerns_everybody() -> None:
    changes = Changes()
    start = changes.position
    assert not changes.since(start, [])
    changes.record_all()
    assert changes.since(start, [])
    assert not changes.since(changes.position, ["a"])


def test_forgotten_changes_count_as_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "CHANGES_KEPT", 3)
    changes = Changes()
    before = changes.position
    changes.record("a")
    after = changes.position
    for name in "bcd":
        changes.record(name)
    assert changes.since(before, ["z"])
    assert not changes.since(after, ["z"])
    changes.record("b")
    assert not changes.since(after, ["z"])
    assert changes.since(after, ["c"])


def test_names_of_an_answer() -> None:
    assert names(("digest", "r"), "ada") == ("access:token:digest", "access:user:ada", ("ada", "r"))


def test_answers_are_found_by_key_and_by_what_they_depend_on() -> None:
    answers = Answers(10)
    answers.put(("d", "r"), kept(), 1)
    answers.put(("d", None), kept(), 2)
    answers.put(("e", "r"), kept(), 3)
    assert answers.get(("d", "r")) == answers["d", "r"] == (kept(), 1)
    assert answers.get(("d", "other")) is None
    assert answers.named(token_key("d")) == (("d", "r"), ("d", None))
    assert answers.named(user_key("ada")) == (("d", "r"), ("d", None), ("e", "r"))
    assert answers.named(user_key("bob")) == ()


def test_an_answer_replaces_the_one_before() -> None:
    answers = Answers(10)
    answers.put(("d", "r"), kept("ada"), 1)
    answers.put(("d", "r"), kept("bob"), 2)
    assert len(answers) == 1
    assert answers.named(user_key("ada")) == ()
    assert answers.named(user_key("bob")) == (("d", "r"),)


def test_the_oldest_goes_first() -> None:
    answers = Answers(2)
    for number, digest in enumerate("abac"):
        answers.put((digest, "r"), kept(), number)
    assert [answers.get((digest, "r")) is not None for digest in "abc"] == [True, False, True]
    assert answers.named(token_key("b")) == ()
    assert len(answers.named(user_key("ada"))) == 2


def test_forgetting_leaves_nothing() -> None:
    answers = Answers(10)
    answers.put(("d", "r"), kept(), 1)
    answers.drop(("d", "r"))
    answers.drop(("d", "r"))
    assert (len(answers), answers.named(token_key("d"))) == (0, ())
    answers.put(("d", "r"), kept(), 1)
    answers.clear()
    assert (len(answers), answers.named(token_key("d"))) == (0, ())


DENIED = PeerError(Code.AUTH_FAILED, "no")


def test_a_denial_lasts_for_its_time() -> None:
    denials = Denials(size=10, ttl=5.0)
    denials.put(("a", None), DENIED, 100.0, 0)
    known = denials.get(("a", None), 104.9, Changes())
    assert known is not None
    assert str(known) == str(DENIED)
    assert denials.get(("a", None), 105.0, Changes()) is None
    assert denials.get(("a", "room"), 100.0, Changes()) is None
    denials.clear()
    assert denials.get(("a", None), 100.0, Changes()) is None


@pytest.mark.parametrize(("name", "holds"), [(token_key("a"), False), (INVALIDATION, False), (token_key("b"), True)])
def test_a_change_may_end_a_denial(name: str, holds: bool) -> None:
    denials, changes = Denials(size=10, ttl=5.0), Changes()
    denials.put(("a", None), DENIED, 100.0, changes.position)
    changes.record(name)
    assert (denials.get(("a", None), 100.0, changes) is not None) == holds


def test_the_oldest_denial_is_dropped() -> None:
    denials = Denials(size=2, ttl=5.0)
    for digest in "abac":
        denials.put((digest, None), DENIED, 100.0, 0)
    assert [denials.get((digest, None), 100.0, Changes()) is None for digest in "abc"] == [False, True, False]


def test_a_denial_is_kept_without_what_it_was_raised_from() -> None:
    denials = Denials(size=10, ttl=5.0)
    try:
        raise PeerError(Code.AUTH_FAILED, "no", closes=True)
    except PeerError as error:
        denials.put(("a", None), error, 100.0, 0)
    known = denials.get(("a", None), 101.0, Changes())
    assert known is not None
    assert (known.code, known.closes, known.__traceback__, known.__context__) == (Code.AUTH_FAILED, True, None, None)
