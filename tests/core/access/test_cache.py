"""The access cache without a network: what it asks, what it keeps, and every race that could let a revoked one in."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from twisted.internet.defer import CancelledError
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from zope.interface import implementer
from zope.interface.verify import verifyObject

from kraftek.contract.errors import Code, PeerError
from kraftek.contract.interfaces import IAccess, IAsker, IBusListener
from kraftek.contract.messages import Token
from kraftek.contract.names import token_key, user_key
from kraftek.contract.settings import Auth
from kraftek.core.access import cache as cache_module
from kraftek.core.access.listening import AT_ONCE, LISTEN
from kraftek.core.access.redis import CLEAR, COMPARE, LOOK_UP, STORE, CachedGrant
from tests.core.access.world import EPOCH, MemoryRedis, Outcome, Process, settle

T = Token("t")
HASH = token_key(T.digest)
ADA = user_key("ada")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def redis(clock: Clock) -> MemoryRedis:
    return MemoryRedis(clock)


@pytest.fixture
def one(redis: MemoryRedis, clock: Clock) -> Process:
    return Process(redis, clock)


@pytest.fixture
def two(redis: MemoryRedis, clock: Clock) -> Process:
    """Another gateway process on the same Redis."""
    return Process(redis, clock)


def let_in(process: Process, token: str = "t", room: str | None = "r", user: str = "ada", **grant: object) -> None:
    """Ask, have the auth service say yes, and be done with it."""
    outcome = process.ask(token, room)
    settle(process)
    process.questions.pop(0).yes(user, **grant)
    settle(process)
    assert outcome.user == user


def answered(process: Process, token: str = "t", room: str | None = "r") -> Outcome:
    """What asking comes to without the auth service."""
    outcome = process.ask(token, room)
    settle(process)
    assert process.questions == []
    return outcome


def test_keeps_its_interfaces(one: Process) -> None:
    verifyObject(IAccess, one.cache)
    verifyObject(IBusListener, one.cache)


# What is asked, and what is kept


@implementer(IAsker)
class Asker:
    """May ask so often."""

    turn = ""

    def __init__(self, left: int) -> None:
        self.left = left

    def asks(self) -> None:
        if not self.left:
            raise PeerError(Code.RATE_LIMITED, "access has to be checked too often")
        self.left -= 1

    def unasked(self) -> None:
        self.left += 1


def test_who_may_not_ask_leaves_nothing_in_redis(one: Process) -> None:
    settle(one)
    refused = [one.ask(f"random {number}", asker=Asker(0)) for number in range(3)]
    assert [call.command for call in one.bus.calls] == ["HGET"] * 3
    settle(one)
    assert [outcome.code for outcome in refused] == [Code.RATE_LIMITED] * 3
    assert one.questions == []
    assert one.redis.all_keys() == set()
    assert one.counters.access_asked == 0


def test_who_may_not_ask_is_not_kept_from_what_is_known(one: Process, two: Process) -> None:
    let_in(one)
    asker = Asker(0)
    known, unknown = two.ask("t", asker=asker), two.ask("t", "another", asker=asker)
    settle(two)
    assert (known.user, unknown.code) == ("ada", Code.RATE_LIMITED)
    assert two.ask("t", asker=asker).user == "ada"
    assert [*one.redis.hashes[HASH]] == ["r"]
    one.redis.delete(HASH)
    settle(two)
    assert two.stale == [(T.digest, None, None, True)]


def test_a_note_or_an_answer_that_has_grown_old_does_not_let_anybody_in(one: Process, two: Process) -> None:
    asked = one.ask("t")
    settle(one)
    refused = two.ask("t", asker=Asker(0))
    settle(two)
    assert (asked.waits, refused.code) == (True, Code.RATE_LIMITED)
    one.questions.pop().yes("ada")
    settle(one)
    one.clock.advance(301)
    refused = two.ask("t", asker=Asker(0))
    settle(two)
    assert (refused.code, two.questions) == (Code.RATE_LIMITED, [])


def test_what_is_cached_is_no_question(one: Process, two: Process) -> None:
    asker = Asker(2)
    let_in(one)
    assert two.ask("t", asker=asker).waits
    assert asker.left == 1
    settle(two)
    assert asker.left == 2
    assert two.ask("t", asker=asker).user == "ada"
    outcome = two.ask("t", "another", asker)
    settle(two)
    two.questions.pop().no()
    assert (outcome.code, asker.left) == (Code.AUTH_FAILED, 1)


def test_without_redis_who_may_not_ask_is_refused(clock: Clock, redis: MemoryRedis) -> None:
    process = Process(redis, clock, available=False)
    outcome = process.ask("t", asker=Asker(0))
    assert (outcome.code, process.questions) == (Code.RATE_LIMITED, [])


def test_an_answer_counts_while_the_checker_vouches_for_it(one: Process, two: Process) -> None:
    one.source = two.source = "jwt.key"
    let_in(one, source="jwt.key")
    assert answered(two).user == "ada"
    two.source = "other"  # it was configured otherwise, and finds what the other one keeps
    for _ in range(2):
        let_in(two, source="other")
        settle(one, two)
        assert answered(one).user == "ada"  # and does not replace it
    assert one.stale == two.stale == []
    one.clock.advance(301)
    let_in(two, source="other")
    settle(one, two)
    assert answered(two).user == "ada"


def test_who_finds_an_answer_of_another_configuration_hears_when_it_is_revoked(one: Process, two: Process) -> None:
    one.source, two.source = "jwt.key", "other"
    let_in(one, source="jwt.key")
    let_in(two, source="other")
    two.redis.delete(HASH)
    settle(one, two)
    assert two.stale == [(T.digest, None, None, True)]


def test_what_the_checker_no_longer_vouches_for_is_asked_again(one: Process) -> None:
    one.source = "jwt.key"
    let_in(one, source="jwt.key")
    one.source = ""
    one.checker_changed()
    assert one.stale == [(None, None, None, False)]
    outcome = one.ask("t")
    settle(one)
    one.questions.pop().no()
    assert outcome.code is Code.AUTH_FAILED


def test_an_answer_from_before_a_change_of_the_checker_is_none(one: Process) -> None:
    one.source = "jwt.key"
    outcome = one.ask("t")
    settle(one)
    one.source = ""
    one.checker_changed()
    one.questions.pop().yes("ada", source="jwt.key")
    settle(one)
    assert outcome.waits
    one.questions.pop().no()
    assert outcome.code is Code.AUTH_FAILED


def test_a_yes_is_kept_for_every_process(one: Process, two: Process) -> None:
    let_in(one, permissions=["notes:*:*"], expiresAt=EPOCH + 1000)
    assert answered(one).user == "ada"
    grant = answered(two).grant
    assert grant is not None
    assert (grant.user_id, grant.room_id, grant.permissions, grant.expires_at) == (
        "ada",
        "r",
        ("notes:*:*",),
        EPOCH + 1000,
    )
    assert (one.counters.access_asked, one.counters.access_hits) == (1, 1)
    assert (two.counters.access_asked, two.counters.access_hits) == (0, 1)


def test_a_yes_is_used_from_memory(one: Process) -> None:
    let_in(one)
    outcome = one.ask("t")
    assert one.bus.calls == []
    assert outcome.user == "ada"


def test_rooms_and_tokens_are_asked_about_each(one: Process) -> None:
    let_in(one)
    let_in(one, room="other")
    let_in(one, room=None)
    let_in(one, token="u")
    assert answered(one, room=None).user == "ada"
    assert one.counters.access_asked == 4


def test_access_that_expires_on_its_way_is_none(one: Process, clock: Clock) -> None:
    """While the auth service answers, or while the answer is stored."""
    outcome = one.ask("t")
    settle(one)
    clock.advance(2)
    one.questions.pop(0).yes("ada", expiresAt=EPOCH + 1)
    settle(one)
    assert outcome.code is Code.TOKEN_EXPIRED


def test_an_answer_from_before_a_pause_is_none(one: Process, clock: Clock) -> None:
    outcome = one.ask("t")
    settle(one)
    clock.advance(60)
    one.questions.pop(0).yes("ada")
    settle(one)
    assert outcome.waits
    one.questions.pop(0).no()
    settle(one)
    assert outcome.code is Code.AUTH_FAILED


def test_an_empty_room_is_none(one: Process) -> None:
    outcome = one.ask("t", "")
    settle(one)
    assert one.questions[0].room_id is None
    one.questions.pop().yes("ada")
    settle(one)
    assert outcome.grant is not None
    assert outcome.grant.room_id is None


def test_one_question_for_many(one: Process) -> None:
    outcomes = [one.ask("t") for _ in range(3)]
    settle(one)
    outcomes.append(one.ask("t"))
    one.questions.pop(0).yes("ada")
    outcomes.append(one.ask("t"))
    settle(one)
    assert [outcome.user for outcome in outcomes] == ["ada"] * 5
    assert one.counters.access_asked == 1


def test_a_cancelled_waiter_leaves_the_others(one: Process) -> None:
    first, second = one.ask("t"), one.ask("t")
    settle(one)
    first.deferred.cancel()
    one.questions.pop(0).yes("ada")
    settle(one)
    assert isinstance(first.error, CancelledError)
    assert second.user == "ada"


def test_each_waiter_gets_an_error_of_its_own(one: Process) -> None:
    outcomes = [one.ask("t"), one.ask("t")]
    settle(one)
    one.questions.pop(0).no("Token expired")
    outcomes.append(one.ask("t"))
    errors = [outcome.error for outcome in outcomes]
    assert [str(error) for error in errors] == ["Token expired"] * 3
    assert len({id(error) for error in errors}) == 3


def test_how_long_a_yes_is_kept(one: Process, clock: Clock) -> None:
    let_in(one)
    clock.advance(299.9)
    assert answered(one).user == "ada"
    clock.advance(0.2)
    let_in(one, ttl=10)
    clock.advance(9.9)
    assert answered(one).user == "ada"
    clock.advance(0.2)
    let_in(one, ttl=1000, expiresAt=one.now() + 5)
    clock.advance(4.9)
    assert answered(one).user == "ada"
    clock.advance(0.2)
    let_in(one)


@pytest.mark.parametrize("ahead", [-3600, 3600])
def test_the_wall_clock_is_set(one: Process, two: Process, clock: Clock, ahead: float) -> None:
    """Nobody knows how old the answers in memory are. Those in Redis are dated by Redis's clock."""
    let_in(one, ttl=300)
    let_in(one, token="short", ttl=1)
    one.stale.clear()
    one.ahead = ahead
    one.cache.clock_set()
    assert one.stale == [(None, None, None, False)]
    grant = answered(one).grant
    assert grant is not None
    assert grant.fresh_until == pytest.approx(one.now() + 300, abs=0.001)
    clock.advance(1.1)
    let_in(one, token="short", ttl=1)
    assert answered(two).user == "ada"
    assert answered(two, token="short").user == "ada"


def test_redis_clock_is_set_back(one: Process, two: Process, redis: MemoryRedis) -> None:
    """An answer that would be fresh for longer than any may be is not used, nor one from a time that is yet to come."""
    redis.ahead = 3600
    one.down()
    one.up()
    let_in(one, ttl=300)
    redis.ahead = 0
    one.down()
    one.up()
    let_in(one, ttl=300)
    assert answered(one).user == "ada"


def test_clocks_of_gateways_differ_by_a_little(one: Process, two: Process) -> None:
    two.ahead = -4
    let_in(one, ttl=10)
    assert answered(two).user == "ada"


def test_a_yes_that_may_not_be_kept_is_not(one: Process, redis: MemoryRedis) -> None:
    let_in(one, ttl=0)
    assert redis.all_keys() == set()
    let_in(one, ttl=0)


def test_no_yes_is_kept_for_ever(one: Process, redis: MemoryRedis) -> None:
    let_in(one, ttl=1e300)
    assert 31_536_000_000 <= redis.lives(HASH) < 31_537_000_000


def test_what_has_run_out_in_redis_is_asked_again(one: Process, two: Process, clock: Clock) -> None:
    """The hash lives on because of another room."""
    let_in(one, ttl=10)
    let_in(one, room="other", ttl=1000)
    clock.advance(20)
    let_in(two)
    assert answered(two, room="other").user == "ada"


def test_what_is_unreadable_in_redis_is_asked_again(one: Process, two: Process, redis: MemoryRedis) -> None:
    let_in(one)
    for value in ("no json", '{"userId":"ada"}', '{"userId":"ada","freshUntil":"soon"}'):
        redis.write(HASH, "r", value)
        settle(two)
        let_in(two)


def test_memory_is_bounded(redis: MemoryRedis, clock: Clock) -> None:
    process = Process(redis, clock, Auth(cache_size=2))
    for token in "abc":
        let_in(process, token)
    assert len(process.cache._answers) == 2
    process.ask("c")
    assert process.bus.calls == []
    assert answered(process, "a").user == "ada"


# No, and no answer


def test_a_no_is_kept_a_moment(one: Process, clock: Clock) -> None:
    outcome = one.ask("t")
    settle(one)
    one.questions.pop().no("Token expired")
    assert outcome.code is Code.AUTH_FAILED
    clock.advance(0.9)
    again = answered(one)
    assert isinstance(again.error, PeerError)
    assert (again.code, again.error.message, again.error.closes) == (Code.AUTH_FAILED, "Token expired", True)
    clock.advance(0.2)
    let_in(one)


def test_a_no_is_kept_nowhere_else(one: Process, two: Process, redis: MemoryRedis) -> None:
    one.ask("t")
    settle(one)
    one.questions.pop().no()
    settle(one)
    assert redis.answers() == []
    let_in(two)


def test_noes_are_bounded(redis: MemoryRedis, clock: Clock) -> None:
    process = Process(redis, clock, Auth(cache_size=2))
    for token in "abc":
        process.ask(token)
        settle(process)
        process.questions.pop().no()
    assert answered(process, "b").code is Code.AUTH_FAILED
    process.ask("a")
    settle(process)
    assert [question.token for question in process.questions] == ["a"]


@pytest.mark.parametrize("how", ["for the user", "of the token", "of everything", "outage"])
def test_a_no_is_dropped_by_an_invalidation(one: Process, how: str) -> None:
    one.ask("t")
    settle(one)
    one.questions.pop().no()
    match how:
        case "for the user":
            one.publish(b'{"userId": "ada"}')
        case "of the token":
            one.bus.tracked["access:"]([HASH])
        case "of everything":
            one.bus.tracked["access:"](None)
        case "outage":
            one.down()
            one.up()
    settle(one)
    let_in(one)


def test_a_no_that_is_older_than_an_invalidation_is_not_kept(one: Process) -> None:
    outcome = one.ask("t")
    settle(one)
    one.publish(b'{"userId": "ada"}')
    one.questions.pop().no()
    settle(one)
    assert outcome.code is Code.AUTH_FAILED
    let_in(one)


def test_no_answer_is_not_kept(one: Process, redis: MemoryRedis) -> None:
    outcome = one.ask("t")
    settle(one)
    one.questions.pop().away(2.5)
    settle(one)
    assert outcome.code is Code.AUTH_UNAVAILABLE
    assert isinstance(outcome.error, PeerError)
    assert outcome.error.retry_after == 2.5
    assert redis.answers() == []
    assert one.counters.access_failed == 1
    let_in(one)


def test_a_fault_of_the_checker_reaches_whoever_waits(one: Process) -> None:
    outcomes = [one.ask("t"), one.ask("t")]
    settle(one)
    one.questions.pop().answer.errback(ZeroDivisionError("ours"))
    assert [type(outcome.error) for outcome in outcomes] == [ZeroDivisionError] * 2


# Taking access back


@pytest.mark.parametrize("key", [HASH, ADA])
def test_a_deletion_takes_effect_everywhere(one: Process, two: Process, redis: MemoryRedis, key: str) -> None:
    let_in(one)
    answered(two)
    redis.delete(key)
    settle(one, two)
    told = (T.digest, None, None, True) if key == HASH else (None, "ada", None, True)
    for process in (one, two):
        assert told in process.stale
        assert process.ask("t").waits
    assert (one.counters.access_invalidations, two.counters.access_invalidations) == (1, 1)


def test_a_member_removed_takes_its_token_back(one: Process, redis: MemoryRedis) -> None:
    let_in(one)
    let_in(one, token="u")
    one.stale.clear()
    redis.remove(ADA, T.digest)
    settle(one)
    assert (None, "ada", None, True) in one.stale
    assert answered(one, "u").user == "ada"
    assert one.ask("t").waits


def test_after_a_deletion_one_question_is_enough(one: Process, redis: MemoryRedis) -> None:
    for key in (HASH, ADA):
        let_in(one)
        redis.delete(key)
        settle(one)
        asked = one.counters.access_asked
        let_in(one)
        assert one.counters.access_asked == asked + 1
        redis.delete(key)
        settle(one)


def test_nobody_is_told_of_what_changed_nothing(one: Process, two: Process) -> None:
    """Other processes let the same user in elsewhere, our own writes come back to us, and nobody is disturbed."""
    let_in(one)
    answered(two)
    one.stale.clear()
    two.stale.clear()
    let_in(two, room="other")
    let_in(two, token="u")
    let_in(one, room="third")
    settle(one, two)
    assert (one.stale, two.stale) == ([], [])
    assert answered(one).user == "ada"


def test_looking_again_does_not_go_on(one: Process, two: Process) -> None:
    let_in(one)
    answered(two)
    settle(one, two)
    let_in(one, room="other")
    for process in (one, two):
        process.hear()
        assert len(process.bus.calls) <= 2
        settle(process)
        assert not process.busy
    assert (one.counters.access_asked, two.counters.access_asked) == (2, 0)


def test_until_it_was_looked_at_again_it_is_not_used_from_memory(one: Process, redis: MemoryRedis) -> None:
    let_in(one)
    redis.delete(HASH)
    one.hear()
    outcome = one.ask("t")
    settle(one)
    assert outcome.waits
    assert one.questions


def test_what_changed_while_looking_is_looked_at_too(one: Process, two: Process, redis: MemoryRedis) -> None:
    let_in(one)
    answered(two)
    let_in(two, room="other")
    one.stale.clear()
    one.hear()
    while len(one._executed) < len(one.bus.calls):
        one.execute()
    redis.delete(ADA)
    one.hear()
    settle(one)
    assert (None, "ada", None, True) in one.stale


def test_expiry_is_told_as_such(one: Process, clock: Clock, redis: MemoryRedis) -> None:
    let_in(one, ttl=10)
    one.stale.clear()
    clock.advance(80)
    redis.expire()
    settle(one)
    assert set(one.stale[-2:]) == {(T.digest, None, None, False), (None, "ada", None, False)}


def test_a_deletion_of_what_is_fresh_elsewhere_is_no_expiry(one: Process, clock: Clock, redis: MemoryRedis) -> None:
    let_in(one, ttl=10)
    let_in(one, room="other", ttl=1000)
    clock.advance(20)
    redis.delete(HASH)
    settle(one)
    assert one.stale[-1] == (T.digest, None, None, True)


def test_an_old_answer_that_made_room_for_others_was_not_taken_back(
    one: Process, two: Process, clock: Clock, redis: MemoryRedis
) -> None:
    """One holds it still in memory; the next look-up of two removes it from the hash, which lives on."""
    let_in(one, room="other", ttl=1000)
    let_in(one, ttl=10)
    one.stale.clear()
    clock.advance(10 + 63 + 1)
    two.ask("t", "new")
    settle(two)
    assert "r" not in redis.hashes[HASH]
    settle(one)
    assert [revoked for *_, revoked in one.stale] == [False]
    assert answered(one, room="other").user == "ada"


def test_who_is_not_remembered_is_told_as_taken_back(redis: MemoryRedis, clock: Clock) -> None:
    """Their answer had to make room for others, but their socket may be open."""
    process = Process(redis, clock, Auth(cache_size=1))
    let_in(process)
    let_in(process, token="u", user="bob")
    process.stale.clear()
    redis.delete(HASH)
    settle(process)
    assert process.stale == [(T.digest, None, None, True)]


def test_other_keys_are_nobodys_business(one: Process) -> None:
    one.bus.tracked["access:"](["access:", "access:tokens", "access:other:x"])
    settle(one)
    assert one.stale == []


def test_everything_gone(one: Process, redis: MemoryRedis) -> None:
    let_in(one)
    redis.delete(*redis.all_keys())
    one._unheard.clear()
    one.bus.tracked["access:"](None)
    assert one.stale[-1] == (None, None, None, False)
    let_in(one)


def test_one_listener_does_not_keep_it_from_the_others(one: Process) -> None:
    class Broken:
        def access_stale(self, *_: object) -> None:
            raise ZeroDivisionError

    one.cache._listeners.insert(0, Broken())  # type: ignore[arg-type]
    with capturedLogs() as logs:
        one.publish(b'{"userId": "ada"}')
    assert one.stale == [(None, "ada", None, True)]
    assert [event["log_format"] for event in logs] == [
        "Notifying a listener of changed access failed: a bug, please report it"
    ]


# The channel auth:invalidate


def test_invalidation_of_a_user(one: Process, two: Process, redis: MemoryRedis) -> None:
    let_in(one)
    let_in(one, token="u", user="bob")
    answered(two)
    one.publish(b'{"userId": "ada"}')
    assert one.stale[-1] == (None, "ada", None, True)
    settle(one)
    assert HASH not in redis.all_keys()
    assert ADA not in redis.all_keys()
    assert answered(one, "u").user == "bob"
    assert one.ask("t").waits
    # The other process hears of the keys at least, should it have missed the message.
    settle(two)
    assert (None, "ada", None, True) in two.stale


def test_invalidation_of_one_room(one: Process) -> None:
    let_in(one)
    let_in(one, room="other")
    one.publish(b'{"userId": "ada", "roomId": "other"}')
    assert one.stale[-1] == (None, "ada", "other", True)
    settle(one)
    assert answered(one).user == "ada"
    assert one.ask("t", "other").waits


def test_redis_forgets_before_it_is_asked_again(one: Process) -> None:
    """Whoever is told asks at once; what was to be forgotten must be gone by then."""
    let_in(one)

    class Eager:
        def __init__(self) -> None:
            self.outcomes: list[Outcome] = []

        def access_stale(self, *_: object) -> None:
            self.outcomes.append(one.ask("t"))

    eager = Eager()
    one.cache.add_listener(eager)  # type: ignore[arg-type]
    one.publish(b'{"userId": "ada"}')
    settle(one)
    one.questions.pop(0).no()
    settle(one)
    assert eager.outcomes[0].code is Code.AUTH_FAILED


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no json",
        b"[]",
        b"{}",
        b'{"userId": 7}',
        b'{"userId": ""}',
        b'{"userId": "a", "roomId": 7}',
        b"\xff",
        b'{"userId": "\xff"}',
    ],
)
def test_malformed_invalidations_harm_nobody(one: Process, body: bytes) -> None:
    let_in(one)
    one.stale.clear()
    with capturedLogs() as logs:
        one.publish(body)
        one.publish(body)
    assert [event["log_level"].name for event in logs] == ["warn"]
    assert one.stale == []
    assert answered(one).user == "ada"
    one.publish(b'{"userId": "ada"}')
    assert one.stale == [(None, "ada", None, True)]


def test_malformed_invalidations_are_logged_once_a_minute(one: Process, clock: Clock) -> None:
    with capturedLogs() as logs:
        for _ in range(3):
            one.publish(b"no json")
            clock.advance(59)
    assert len(logs) == 2


# Races


def test_race_invalidated_while_asking(one: Process) -> None:
    """The user is not known before the answer; nothing is kept for it either."""
    outcome = one.ask("t")
    settle(one)
    one.publish(b'{"userId": "ada"}')
    one.questions.pop().yes("ada")
    settle(one)
    assert outcome.waits
    one.questions.pop().no()
    settle(one)
    assert outcome.code is Code.AUTH_FAILED
    assert one.counters.access_asked == 2


def test_race_another_user_invalidated_while_asking(one: Process) -> None:
    outcome = one.ask("t")
    settle(one)
    one.publish(b'{"userId": "bob"}')
    one.publish(b'{"userId": "ada", "roomId": "other"}')
    one.questions.pop().yes("eve")
    settle(one)
    assert outcome.user == "eve"


def test_race_deleted_while_asking(one: Process, redis: MemoryRedis) -> None:
    """The set is there because of another token."""
    let_in(one, token="u")
    outcome = one.ask("t")
    settle(one)
    redis.delete(ADA)
    one.questions.pop().yes("ada")
    settle(one)
    assert outcome.waits
    assert one.counters.access_asked == 3
    one.questions.pop().no()
    settle(one)
    assert outcome.code is Code.AUTH_FAILED


def test_race_deleted_before_the_answer_reaches_redis(one: Process, redis: MemoryRedis) -> None:
    """The answer is on its way; word of the deletion comes later, and in one with word of the answer."""
    let_in(one, token="u")
    outcome = one.ask("t")
    settle(one)
    one.questions.pop().yes("ada")
    redis.delete(ADA)
    one.execute()
    one.reply()
    assert outcome.waits
    assert "userId" not in redis.hashes[HASH]["r"]
    settle(one)
    assert one.counters.access_asked == 3
    assert (None, "ada", None, True) in one.stale


def test_race_deleted_after_the_answer_reached_redis(one: Process, redis: MemoryRedis) -> None:
    """Word of it may come before Redis's reply, and in one with word of our own writing."""
    for heard_first in (True, False):
        outcome = one.ask("t")
        settle(one)
        one.questions.pop().yes("ada")
        one.execute()
        redis.delete(ADA)
        one.stale.clear()
        if heard_first:
            one.hear()
        one.reply()
        assert outcome.user == "ada"
        settle(one)
        assert (None, "ada", None, True) in one.stale
        assert one.ask("t").waits
        settle(one)
        one.questions.pop().away()


def test_race_deleted_while_looking(one: Process, two: Process, redis: MemoryRedis) -> None:
    """Redis says yes, then it is deleted; word of that comes before the yes does."""
    let_in(one)
    let_in(one, room="other")
    answered(two, room="other")
    outcome = two.ask("t")
    two.hear()
    two.execute()
    redis.delete(HASH)
    two.hear()
    two.reply()
    assert outcome.user == "ada"
    two.stale.clear()
    settle(two)
    assert (T.digest, None, None, True) in two.stale
    assert two.ask("t").waits


def test_race_invalidated_while_looking(one: Process, two: Process) -> None:
    let_in(one)
    two.hear()
    outcome = two.ask("t")
    two.execute()
    two.publish(b'{"userId": "ada", "roomId": "r"}')
    two.reply()
    assert outcome.waits  # what Redis said is from before, and is to be cleared
    settle(two)
    two.questions.pop().no()
    assert outcome.code is Code.AUTH_FAILED


def test_race_invalidated_while_storing(one: Process, redis: MemoryRedis) -> None:
    outcome = one.ask("t")
    settle(one)
    one.questions.pop().yes("ada")
    one.execute()
    one.publish(b'{"userId": "ada"}')
    one.reply()
    assert outcome.waits
    settle(one)
    assert (None, "ada", None, True) in one.stale
    one.questions.pop().no()
    assert outcome.code is Code.AUTH_FAILED
    assert "userId" not in redis.hashes[HASH]["r"]


def test_race_invalidated_while_storing_what_may_not_be_kept(one: Process) -> None:
    """Nothing of it is in Redis, so nobody will look at it again."""
    outcome = one.ask("t")
    settle(one)
    one.questions.pop().yes("ada", ttl=0)
    one.execute()
    one.publish(b'{"userId": "ada"}')
    settle(one)
    assert outcome.waits
    one.questions.pop().no()
    assert outcome.code is Code.AUTH_FAILED


def test_what_may_not_be_kept_is_asked_once_all_the_same(one: Process, two: Process) -> None:
    """Redis vouches for it; that somebody let the user in elsewhere is no reason to ask again."""
    let_in(two, token="u")
    outcome = one.ask("t")
    settle(one)
    let_in(two, room="other")
    settle(one)
    one.questions.pop().yes("ada", ttl=0)
    settle(one)
    assert outcome.user == "ada"


def test_race_another_process_fills_the_gap(one: Process, two: Process, redis: MemoryRedis) -> None:
    let_in(one, token="u")
    early = one.ask("t")
    settle(one)
    redis.delete(ADA)
    settle(one, two)
    let_in(two, token="u")
    one.questions.pop().yes("ada")
    settle(one, two)
    assert early.waits


def test_race_what_was_taken_back_does_not_come_back_with_the_set(
    one: Process, two: Process, redis: MemoryRedis
) -> None:
    let_in(one, room="first")
    redis.delete(ADA)
    second = two.ask("t", "second")
    settle(two)
    two.questions.pop().yes("ada")
    settle(two)
    two.questions.pop().yes("ada")
    settle(one, two)
    assert second.user == "ada"
    assert one.ask("t", "first").waits
    assert two.ask("t", "first").waits


def test_two_processes_at_once_ask_once_each(one: Process, two: Process) -> None:
    """Neither takes the other's writing for an invalidation."""
    outcomes = [one.ask("t", "first"), two.ask("t", "second")]
    settle(one, two)
    one.questions.pop().yes("ada")
    two.questions.pop().yes("ada")
    settle(one, two)
    assert [outcome.user for outcome in outcomes] == ["ada", "ada"]
    assert (one.counters.access_asked, two.counters.access_asked) == (1, 1)
    assert answered(one, room="second").user == "ada"
    assert answered(two, room="first").user == "ada"


def test_whoever_is_taken_back_again_and_again_is_not_let_in(one: Process) -> None:
    outcome = one.ask("t")
    for _ in range(cache_module.ATTEMPTS):
        settle(one)
        one.publish(b'{"userId": "ada"}')
        one.questions.pop().yes("ada")
    settle(one)
    assert outcome.code is Code.AUTH_UNAVAILABLE
    assert isinstance(outcome.error, PeerError)
    assert outcome.error.retry_after == 1.0
    assert one.counters.access_failed == 1


# Redis away


def test_without_redis_the_checker_is_asked_each_time(redis: MemoryRedis, clock: Clock) -> None:
    process = Process(redis, clock, available=False)
    for _ in range(2):
        outcomes = [process.ask("t"), process.ask("t")]
        process.questions.pop().yes("ada")
        assert [outcome.user for outcome in outcomes] == ["ada", "ada"]
    assert process.counters.access_asked == 2


def test_losing_redis_forgets_everything(one: Process) -> None:
    let_in(one)
    one.down()
    outcome = one.ask("t")
    assert outcome.waits
    one.questions.pop().yes("ada")
    assert outcome.user == "ada"


def test_redis_lost_while_looking(one: Process) -> None:
    outcome = one.ask("t")
    one.down()
    one.questions.pop().yes("ada")
    assert outcome.user == "ada"
    assert one.ask("t").waits


def test_redis_lost_while_storing(one: Process) -> None:
    """Whether it is stored is not known: it is not used from memory."""
    outcome = one.ask("t")
    settle(one)
    one.questions.pop().yes("ada")
    one.execute()
    one.down()
    assert outcome.user == "ada"
    again = one.ask("t")
    assert again.waits


def test_nothing_is_used_from_memory_when_nobody_tells_of_changes(one: Process, two: Process) -> None:
    """The connection that listens is lost; the other one still answers."""
    let_in(two)
    let_in(two, room="other")
    answered(one, room="other")
    outcome = one.ask("t")
    one.execute()
    one.bus.available = False
    one.cache.bus_down()
    one.reply()
    one.questions.pop().yes("ada")
    assert outcome.user == "ada"
    assert len(one.cache._answers) == 0


def test_nor_what_was_being_looked_at_again(one: Process, two: Process) -> None:
    let_in(one)
    let_in(two, room="other")
    one.hear()
    while len(one._executed) < len(one.bus.calls):
        one.execute()
    one.bus.available = False
    one.cache.bus_down()
    while one.bus.calls:
        one.reply()
    assert len(one.cache._answers) == 0


def test_everybody_is_told_when_redis_is_back(one: Process, redis: MemoryRedis) -> None:
    let_in(one)
    one.down()
    redis.delete(ADA)
    one.stale.clear()
    one.up()
    assert one.stale == [(None, None, None, False)]
    settle(one)
    assert one.ask("t").waits


def test_what_is_asked_across_an_outage_is_asked_again(one: Process) -> None:
    """It may have been taken back in between, which nobody heard."""
    for lost_while_asking in (True, False):
        if not lost_while_asking:
            one.down()
        outcome = one.ask("t")
        settle(one)
        if lost_while_asking:
            one.down()
        one.up()
        settle(one)
        one.questions.pop().yes("ada")
        settle(one)
        assert outcome.waits
        one.questions.pop().no()
        settle(one)
        assert outcome.code is Code.AUTH_FAILED
        one.clock.advance(2)


def test_an_invalidation_while_redis_takes_no_commands_is_made_up_for(one: Process, redis: MemoryRedis) -> None:
    let_in(one)
    one.down()
    one.publish(b'{"userId": "ada"}')
    assert ADA in redis.all_keys()
    one.up()
    one.stale.clear()
    settle(one)
    assert ADA not in redis.all_keys()
    assert not one.cache._revocations
    assert one.ask("t").waits


def test_an_invalidation_without_redis_reaches_who_is_asking(redis: MemoryRedis, clock: Clock) -> None:
    process = Process(redis, clock, available=False)
    outcome = process.ask("t")
    process.publish(b'{"userId": "ada"}')
    process.questions.pop().yes("ada")
    assert outcome.waits
    process.questions.pop().no()
    assert outcome.code is Code.AUTH_FAILED


def test_with_too_many_invalidations_to_be_made_up_for_nothing_older_is_believed(
    redis: MemoryRedis, clock: Clock
) -> None:
    process = Process(redis, clock, Auth(cache_size=3))
    let_in(process, "u", user="eve")
    process.cache._answers.clear()
    assert answered(process, "u").user == "eve"
    process.cache._answers.clear()
    with capturedLogs() as logs:
        for number in range(4):
            process.publish(b'{"userId": "user-%d"}' % number)
        for call in list(process.bus.calls):
            if call.command is CLEAR:
                process.bus.calls.remove(call)
                call.reply.errback(ValueError("READONLY You can't write against a read only replica."))
        settle(process)
    assert "no cached access from before now" in logs[0]["log_format"]
    let_in(process, "u", user="eve")


def test_an_invalidation_that_redis_refuses_is_repeated_each_second(one: Process, redis: MemoryRedis) -> None:
    let_in(one)
    one.publish(b'{"userId": "ada"}')
    one.bus.calls.pop().reply.errback(ValueError("READONLY You can't write against a read only replica."))
    one.cache._revocations.sweep()
    assert not one.bus.calls
    one.clock.advance(1)
    one.cache.sweep()
    settle(one)
    assert ADA not in redis.all_keys()
    assert not one.cache._revocations


def test_a_refusing_redis_keeps_nobody_out(one: Process, clock: Clock) -> None:
    class RefusedError(Exception):
        pass

    with capturedLogs() as logs:
        for _ in range(3):
            outcome = one.ask("t")
            one.bus.calls.pop().reply.errback(RefusedError("READONLY You can't write against a read only replica."))
            one.questions.pop().yes("ada")
            assert outcome.user == "ada"
            clock.advance(31)
    assert [event["log_level"].name for event in logs] == ["error", "error"]


def test_what_cannot_be_looked_at_again_counts_as_taken_back(one: Process, redis: MemoryRedis) -> None:
    let_in(one)
    one.stale.clear()
    redis.write(HASH, "other", "x")
    one.hear()
    with capturedLogs():
        one.bus.calls.pop().reply.errback(ValueError("OOM"))
    assert one.stale == [(T.digest, None, None, True)]
    assert one.cache._answers.get((T.digest, "r")) is None


def test_a_fault_while_looking_again_is_logged_and_counts_as_taken_back(one: Process, redis: MemoryRedis) -> None:
    let_in(one)
    one.stale.clear()
    redis.write(HASH, "other", "x")
    one.hear()
    with capturedLogs() as logs:
        one.bus.calls.pop().reply.callback([])
    assert [event["log_format"] for event in logs] == [
        "Comparing cached access with Redis failed: a bug, please report it"
    ]
    assert one.stale == [(T.digest, None, None, True)]
    assert answered(one).user == "ada"  # tracked again
    redis.delete(HASH)
    settle(one)
    assert one.stale == [(T.digest, None, None, True)] * 2


# Evidence with an age


def forget(process: Process) -> None:
    """Nothing is known from memory any more."""
    process.cache._answers.clear()


def test_after_a_gap_a_lone_gateway_believes_nothing_older(one: Process) -> None:
    let_in(one)
    one.down()
    one.up()
    let_in(one)
    assert answered(one).user == "ada"


def test_after_a_gap_what_another_gateway_listened_to_is_believed(one: Process, two: Process) -> None:
    let_in(one)
    one.down()
    one.clock.advance(1)
    one.up()
    assert one.cache.settled
    assert answered(one).user == "ada"


def test_nobody_waits_for_others_when_redis_takes_no_records(one: Process, two: Process) -> None:
    two.down()
    one.down()
    one.bus.up()
    assert not one.cache.settled
    (recording,) = [call for call in one.bus.calls if call.command is LISTEN]
    recording.reply.errback(ValueError("OOM command not allowed when used memory > 'maxmemory'."))
    one.bus.calls.remove(recording)
    assert one.cache.settled


def test_a_gateway_that_starts_beside_another_believes_what_that_one_heard(
    one: Process, redis: MemoryRedis, clock: Clock
) -> None:
    let_in(one)
    later = Process(redis, clock)
    assert answered(later).user == "ada"
    assert later.cache.gateways == one.cache.gateways == 2


def test_an_invalidation_that_nobody_heard_is_made_up_for(one: Process, two: Process) -> None:
    """Both were away, if only for a moment."""
    let_in(one)
    two.down()
    one.down()
    two.up()
    one.up()
    assert one.ask("t").waits
    settle(one)
    assert one.questions


def test_who_could_not_write_what_it_heard_is_no_evidence_for_others(one: Process, two: Process) -> None:
    """Nor does it believe it itself. When Redis takes writes again the others are told the truth."""
    let_in(one)
    refused = ValueError("READONLY You can't write against a read only replica.")
    two.publish(b'{"userId": "ada"}')
    two.bus.calls.pop().reply.errback(refused)
    one.down()
    one.bus.up()  # it misses the message
    for _ in range(40):
        one.clock.advance(0.1)
        for process in (one, two):
            process.cache._listening.sweep()
        settle(one, two)
    assert one.cache.settled
    assert one.ask("t").waits
    settle(one)
    assert [question.token for question in one.questions] == ["t"]
    one.questions.pop().away()
    let_in(one, token="u", user="bob")
    two.cache.sweep()
    settle(one, two)
    assert not two.cache._revocations
    one.clock.advance(1.1)
    for _ in range(2):
        for process in (one, two):
            process.cache._listening._renew()
        settle(one, two)
    assert one.cache._listening._since == two.cache._listening._since


def test_a_check_waits_a_moment_for_what_may_save_a_question(one: Process, two: Process) -> None:
    let_in(one)
    one.down()
    one.bus.up()
    outcome = one.ask("t")
    settle(one)
    assert outcome.waits
    assert one.questions == []
    for _ in range(2):  # no sweep comes so soon
        one.clock.advance(AT_ONCE)
        settle(one, two)
    assert outcome.user == "ada"


def test_and_no_longer_than_that(one: Process, two: Process) -> None:
    let_in(one)
    one.down()
    two.bus.available = False  # and its record is still there
    one.bus.up()
    outcome = one.ask("t")
    settle(one)
    one.clock.advance(2.5)
    one.cache.sweep()
    settle(one)
    assert outcome.waits
    one.questions.pop().yes("ada")
    settle(one)
    assert outcome.user == "ada"


def test_redis_is_lost_while_a_check_waits(one: Process, two: Process) -> None:
    let_in(one)
    one.down()
    one.bus.up()
    outcome = one.ask("t")
    while one.bus.calls:
        one.execute()
        one.reply()
    one.down()
    one.questions.pop().yes("ada")
    assert outcome.user == "ada"


def test_another_epoch_is_believed_in_nothing(one: Process, two: Process) -> None:
    let_in(one)
    answered(two)
    for process in (one, two):
        process.stale.clear()
        process.bus.begin_epoch("e2")
        assert process.stale == [(None, None, None, False)]
    one._begin()
    assert one.ask("t").waits
    settle(one)
    one.questions.pop().yes("ada")
    settle(one)
    assert answered(two).user == "ada"


def test_without_an_epoch_nothing_is_read_or_stored(one: Process, redis: MemoryRedis) -> None:
    let_in(one)
    one.down()
    one.bus.up(None)
    for _ in range(2):
        outcome = one.ask("t")
        assert [call.command for call in one.bus.calls] == []
        one.questions.pop().yes("ada")
        assert outcome.user == "ada"


def test_an_answer_of_an_earlier_version_counts_as_absent(one: Process, redis: MemoryRedis) -> None:
    let_in(one)
    forget(one)
    redis.write(HASH, "r", '{"userId":"ada","roomId":"r","freshUntil":1800000000.0}')
    settle(one)
    with capturedLogs() as logs:
        let_in(one)
    assert not logs


def test_a_question_by_another_process_is_no_deletion(one: Process, two: Process) -> None:
    """Nor after a gap, when this one remembers no answer of its open sockets."""
    let_in(one)
    one.down()
    one.up()
    settle(one, two)
    one.cache.hold([(T.digest, "ada")])
    settle(one, two)
    one.stale.clear()
    outcome = two.ask("t", "other")
    settle(one, two)
    assert outcome.waits
    assert not [told for told in one.stale if told[3]]


# What is told to whom


def test_a_login_and_a_renewal_are_told_to_nobody_who_does_not_hold_the_token(
    one: Process, two: Process, clock: Clock
) -> None:
    let_in(two, token="u", user="bob")
    two._unheard.clear()
    let_in(one, ttl=100)
    clock.advance(101)
    let_in(one, ttl=100)
    let_in(one, room="other")
    let_in(one, token="t2")
    assert two._unheard == one._unheard == {}


def test_what_a_login_and_a_renewal_cost(one: Process, two: Process, clock: Clock) -> None:
    commands: list[Any] = []
    call = one.bus.call

    def counted(command: Any, *args: Any) -> Any:
        commands.append(command)
        return call(command, *args)

    one.bus.call = counted  # type: ignore[assignment, method-assign]
    let_in(one, ttl=100)
    assert commands == [LOOK_UP, STORE]
    clock.advance(101)
    let_in(one, ttl=100)
    assert commands[2:] == [LOOK_UP, STORE]
    let_in(two, token="u", user="bob")
    answered(one, token="u")
    assert commands[4:] == [LOOK_UP, LOOK_UP]
    let_in(two, token="u", room="other", user="bob")
    answered(one, token="u", room="other")
    # What another process wrote to a key that this one holds was compared: that is why it was told.
    assert set(commands[6:]) == {COMPARE, LOOK_UP}


def test_a_join_of_a_user_with_many_rooms_costs_a_handful(one: Process, two: Process) -> None:
    for number in range(64):
        let_in(one, room=f"r{number}")
        assert answered(two, room=f"r{number}").user == "ada"
    settle(one, two)
    made = 0
    for process in (one, two):
        call = process.bus.call

        def counted(*args: Any, call: Any = call) -> Any:
            nonlocal made
            made += 1
            return call(*args)

        process.bus.call = counted  # type: ignore[assignment, method-assign]
    let_in(one, room="another")
    settle(one, two)
    assert made <= 5
    assert one.stale[1:] == two.stale[1:] == []


def test_every_change_is_told_however_often(one: Process, redis: MemoryRedis) -> None:
    """Each announcement ends the tracking: what is asked, compared or written reads the keys again."""
    let_in(one)
    let_in(one, room="other")
    for _ in range(3):
        for key in (HASH, ADA):
            one.stale.clear()
            redis.write(HASH, "x", "y")
            settle(one)
            assert one.stale == []
            redis.delete(key)
            settle(one)
            assert [revoked for *_, revoked in one.stale] == [True]
            let_in(one)
            let_in(one, room="other")


def test_after_a_room_was_invalidated_the_others_are_still_tracked(one: Process, redis: MemoryRedis) -> None:
    """What this process removes itself it is not told of."""
    let_in(one)
    let_in(one, room="other")
    one.publish(b'{"userId": "ada", "roomId": "r"}')
    settle(one)
    one.stale.clear()
    redis.delete(HASH)
    settle(one)
    assert one.stale == [(T.digest, None, None, True)]


def test_sockets_whose_answers_are_not_in_memory_are_tracked(one: Process, redis: MemoryRedis) -> None:
    """As after a gap, until each has been asked about."""
    for key in (HASH, ADA):
        let_in(one)
        one.down()
        one.up()
        one.cache.hold([(T.digest, "ada")])
        settle(one)
        one.stale.clear()
        redis.delete(key)
        settle(one)
        told = (T.digest, None, None, True) if key == HASH else (None, "ada", None, True)
        assert one.stale == [told]


def test_nor_are_they_disturbed_when_another_room_is_invalidated(one: Process, two: Process, clock: Clock) -> None:
    let_in(one)
    let_in(one, room="other")
    for process in (one, two):
        process.down()
        process.up()
        process.cache.hold([(T.digest, "ada")])
        settle(process)
        process.stale.clear()
    clock.advance(1)
    for process in (one, two):
        process.publish(b'{"userId": "ada", "roomId": "r"}')
    settle(one)
    settle(two)
    for process in (one, two):
        assert {told for told in process.stale if told[3]} == {(None, "ada", "r", True)}


def test_nor_are_they_disturbed_by_what_expires(one: Process, redis: MemoryRedis, clock: Clock) -> None:
    let_in(one)
    one.down()
    one.up()
    one.cache.hold([(T.digest, "ada")])
    settle(one)
    one.stale.clear()
    clock.advance(400)
    redis.expire()
    settle(one)
    assert one.stale == []


def test_the_auth_service_is_down_for_longer_than_a_yes_is_kept(one: Process, redis: MemoryRedis, clock: Clock) -> None:
    """One key expires after the other, and neither is taken for a revocation."""
    let_in(one, ttl=10)
    let_in(one, room="other", ttl=200)
    one.stale.clear()
    for _ in range(150):
        clock.advance(2)
        outcome = one.ask("t")
        settle(one)
        while one.questions:
            one.questions.pop().away()
        settle(one)
        assert outcome.grant is not None or outcome.code is Code.AUTH_UNAVAILABLE
    assert ADA not in redis.all_keys()
    assert {revoked for *_, revoked in one.stale} <= {False}


def test_race_both_keys_deleted_during_the_very_first_check(one: Process, redis: MemoryRedis) -> None:
    outcome = one.ask("t")
    settle(one)
    redis.delete(HASH, ADA)
    one.questions.pop().yes("ada")
    settle(one)
    assert outcome.waits
    one.questions.pop().no()
    settle(one)
    assert outcome.code is Code.AUTH_FAILED
    assert redis.answers() == []


# Tokens


def test_no_token_anywhere(one: Process, redis: MemoryRedis, clock: Clock) -> None:
    secret = "s3cr3t-t0k3n"
    seen: list[str] = []
    with capturedLogs() as logs:
        let_in(one, secret)
        one.ask(f"{secret}-no")
        settle(one)
        one.questions.pop().no()
        denied = answered(one, f"{secret}-no")
        one.ask(f"{secret}-away")
        settle(one)
        one.questions.pop().away()
        calls = one.bus.calls
        one.ask(f"{secret}-look")
        seen += [repr(call) for call in calls]
        one.down()
        one.publish(b"no json")
    seen += [repr(logs), repr(denied.error), repr(Token(secret)), repr(redis.hashes), repr(redis.sets)]
    seen += [repr(vars(one.cache)), repr(one.stale)]
    assert not [text for text in seen if secret in text]


def test_what_is_kept_is_what_the_contract_says(one: Process, redis: MemoryRedis) -> None:
    let_in(one, permissions=["a:*:*"], ttl=10, expiresAt=EPOCH + 5)
    assert redis.sets[ADA] == {T.digest}
    (answer,) = redis.hashes[HASH].values()
    dates = {"freshUntil": pytest.approx(EPOCH + 5, abs=1), "askedAt": pytest.approx(EPOCH * 1e6, abs=1e6)}
    assert msgspec.json.decode(answer) == {
        "userId": "ada",
        "roomId": "r",
        "permissions": ["a:*:*"],
        "expiresAt": EPOCH + 5,
        "ttl": 10.0,
        "epoch": "e1",
        **dates,
    }
    assert isinstance(answered(one).grant, CachedGrant)
