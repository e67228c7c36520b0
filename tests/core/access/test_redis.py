"""The scripts: what counts, what a deletion takes, and that nothing older than a deletion is ever kept.

Every test runs on the real servers and on the :class:`MemoryRedis` by which the cache is tested.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any, Protocol

import msgspec
import pytest
from twisted.internet.task import Clock

from kraftek.contract.lua import Script
from kraftek.contract.messages import Token
from kraftek.contract.names import LISTENED, token_key, user_key
from kraftek.core.access.listening import LISTEN
from kraftek.core.access.redis import CLEAR, COMPARE, LOOK_UP, STORE, CachedGrant
from tests.core.access.world import MemoryRedis
from tests.support.redis_server import PrivateRedis, oldest_redis_server

ONE, TWO = Token("one").digest, Token("two").digest
MEMORY = 60_000
"""Milliseconds for which the ledger remembers at least."""

WAIT = 5_000
"""Milliseconds that an answer may take."""


class Server(Protocol):
    """What the tests do besides running scripts."""

    def run(self, script: Script, keys: Any, args: Any) -> Any: ...
    def all_keys(self) -> set[str]: ...
    def delete(self, *keys: str) -> None: ...
    def remove(self, key: str, member: str) -> None: ...
    def write(self, key: str, field: str, value: str) -> None: ...
    def lives(self, key: str) -> float: ...
    def members(self, key: str) -> set[str]: ...
    def fields(self, key: str) -> set[str]: ...
    def wait(self, milliseconds: int) -> None: ...


class InMemory(MemoryRedis):
    def __init__(self) -> None:
        self._test_clock = Clock()
        super().__init__(self._test_clock)

    def members(self, key: str) -> set[str]:
        return self.sets.get(key, set())

    def fields(self, key: str) -> set[str]:
        return set(self.hashes.get(key, ()))

    def wait(self, milliseconds: int) -> None:
        self._test_clock.advance(milliseconds / 1000)


class OnServer:
    def __init__(self, server: PrivateRedis) -> None:
        self.client = server.client()

    def run(self, script: Script, keys: Any, args: Any) -> Any:
        return self.client.eval(script.source, len(keys), *keys, *args)

    def all_keys(self) -> set[str]:
        return set(map(_text, self.client.keys("*")))

    def delete(self, *keys: str) -> None:
        self.client.delete(*keys)

    def remove(self, key: str, member: str) -> None:
        self.client.srem(key, member)

    def write(self, key: str, field: str, value: str) -> None:
        self.client.hset(key, field, value)

    def lives(self, key: str) -> float:
        return float(self.client.pttl(key))

    def members(self, key: str) -> set[str]:
        return set(map(_text, self.client.smembers(key)))

    def fields(self, key: str) -> set[str]:
        return set(map(_text, self.client.hkeys(key)))

    def wait(self, milliseconds: int) -> None:
        time.sleep(milliseconds / 1000)


def _text(reply: bytes | str) -> str:
    return reply if isinstance(reply, str) else reply.decode()


def in_memory() -> Iterator[None]:
    yield None


def on_server(binary: str | None = None) -> Iterator[PrivateRedis]:
    server = PrivateRedis(binary)
    server.start()
    yield server
    server.close()


def on_server_6_2() -> Iterator[PrivateRedis]:
    binary = oldest_redis_server()
    if binary is None:
        pytest.skip("no Redis 6.2 for this platform: the other server is tested")
    yield from on_server(binary)


@pytest.fixture(scope="module", params=[in_memory, on_server, on_server_6_2], ids=["memory", "server", "server-6.2"])
def kind(request: pytest.FixtureRequest) -> Iterator[PrivateRedis | None]:
    yield from request.param()


@pytest.fixture
def redis(kind: PrivateRedis | None) -> Iterator[Server]:
    if kind is None:
        yield InMemory()
        return
    server = OnServer(kind)
    yield server
    server.client.flushall()
    server.client.close()


def look(
    redis: Server,
    digest: str,
    room: str = "r",
    user: str = "",
    wait: int = WAIT,
    memory: int = MEMORY,
    epoch: str = "e1",
) -> tuple[int, CachedGrant | None]:
    keys = [token_key(""), user_key(""), "access-ledger:", token_key(digest), *([user_key(user)] if user else [])]
    at, answer, *_ = redis.run(LOOK_UP, keys, [digest, room, user, epoch, memory, wait])
    return int(at), None if answer is None else msgspec.json.decode(answer, type=CachedGrant)


def user_of(redis: Server, digest: str, room: str = "r") -> str | None:
    _, kept = look(redis, digest, room)
    return None if kept is None else kept.user_id


def granted(user: str, room: str, asked: int, fresh: float = 1000.0) -> CachedGrant:
    return CachedGrant(user, room, fresh_until=asked / 1_000_000 + fresh, asked_at=asked, epoch="e1")


def store(
    redis: Server,
    digest: str,
    asked: int,
    user: str = "ada",
    room: str = "r",
    keep: int = 10_000,
    memory: int = MEMORY,
    fresh: float = 1000.0,
    most: int = 10_000,
) -> bool:
    kept = granted(user, room, asked, fresh)
    keys = [token_key(digest), user_key(user), f"access-ledger:{user}"]
    answer = redis.run(STORE, keys, [digest, room, msgspec.json.encode(kept), keep, asked, memory, most])
    return bool(answer == 1)


def fill(
    redis: Server,
    digest: str,
    user: str = "ada",
    room: str = "r",
    keep: int = 10_000,
    memory: int = MEMORY,
    wait: int = WAIT,
) -> None:
    asked, _ = look(redis, digest, room, wait=wait)
    assert store(redis, digest, asked, user, room, keep, memory)


def clear(redis: Server, user: str, room: str | None = None) -> None:
    keys = [user_key(user), token_key(""), f"access-ledger:{user}"]
    redis.run(CLEAR, keys, [int(room is not None), room or "", MEMORY])


def test_nothing_is_kept_at_first(redis: Server) -> None:
    at, kept = look(redis, ONE)
    assert kept is None
    later, _ = look(redis, ONE)
    assert later > at > 1_600_000_000_000_000
    # What is to be replaced by the answer.
    assert redis.all_keys() == {token_key(ONE)}
    assert WAIT - 1000 < redis.lives(token_key(ONE)) <= WAIT


def test_what_is_stored_is_found(redis: Server) -> None:
    asked, _ = look(redis, ONE)
    assert store(redis, ONE, asked)
    assert look(redis, ONE)[1] == granted("ada", "r", asked)
    assert user_of(redis, ONE, "elsewhere") is None
    assert redis.all_keys() == {token_key(ONE), user_key("ada"), "access-ledger:ada"}
    assert redis.members(user_key("ada")) == {ONE}


def test_everything_expires(redis: Server) -> None:
    fill(redis, ONE)
    for key in (token_key(ONE), user_key("ada")):
        assert 9_000 + MEMORY < redis.lives(key) <= 10_000 + MEMORY
    assert redis.lives("access-ledger:ada") > 9_000 + 2 * MEMORY
    asked, _ = look(redis, ONE)
    redis.delete(user_key("ada"))
    assert not store(redis, ONE, asked)
    assert redis.lives("access-ledger:ada") > MEMORY - 1000


def test_a_shorter_answer_cuts_no_longer_one_short(redis: Server) -> None:
    fill(redis, ONE, keep=100_000)
    fill(redis, ONE, room="other", keep=1000)
    fill(redis, TWO, keep=1000)
    assert redis.lives(token_key(ONE)) > 90_000
    assert redis.lives(user_key("ada")) > 90_000
    assert redis.lives("access-ledger:ada") > 90_000
    fill(redis, TWO, keep=200_000)
    assert redis.lives(user_key("ada")) > 190_000


@pytest.mark.parametrize("user", ["ä€𝄞", 'quote"back\\slash', "nul\x00 and \x7f", "colon:here", "{brace}"])
def test_any_user_id(redis: Server, user: str) -> None:
    fill(redis, ONE, user)
    assert user_of(redis, ONE) == user
    redis.delete(user_key(user))
    assert user_of(redis, ONE) is None


@pytest.mark.parametrize("way", ["hash", "set", "member"])
def test_taking_back(redis: Server, way: str) -> None:
    fill(redis, ONE)
    take(redis, way)
    assert user_of(redis, ONE) is None


def take(redis: Server, way: str) -> None:
    match way:
        case "hash":
            redis.delete(token_key(ONE))
        case "set":
            redis.delete(user_key("ada"))
        case "member":
            redis.remove(user_key("ada"), ONE)


@pytest.mark.parametrize("way", ["hash", "set", "member"])
def test_an_answer_older_than_a_deletion_is_not_kept(redis: Server, way: str) -> None:
    fill(redis, ONE)
    asked, _ = look(redis, ONE, "other")
    take(redis, way)
    assert not store(redis, ONE, asked, room="other")
    assert user_of(redis, ONE, "other") is None
    asked, _ = look(redis, ONE, "other")
    assert store(redis, ONE, asked, room="other")


def test_nor_one_for_a_token_that_nothing_was_kept_for(redis: Server) -> None:
    """The user's set is there because of another token."""
    fill(redis, ONE)
    asked, _ = look(redis, TWO)
    redis.delete(user_key("ada"))
    assert not store(redis, TWO, asked)
    assert user_of(redis, TWO) is None


def test_nor_when_somebody_filled_the_gap(redis: Server) -> None:
    """Another process stores after the deletion, and so hides it from whoever looks only at what there is."""
    fill(redis, ONE)
    early, _ = look(redis, TWO)
    redis.delete(user_key("ada"))
    assert not store(redis, ONE, early)
    fill(redis, ONE)
    assert user_of(redis, ONE) == "ada"
    assert not store(redis, TWO, early)


def test_a_look_that_knows_the_user_dates_the_deletion(redis: Server) -> None:
    """So that the question after it is asked once only."""
    fill(redis, ONE)
    early, _ = look(redis, ONE)
    redis.delete(token_key(ONE))
    look(redis, ONE, user="ada")
    asked, _ = look(redis, ONE)
    assert not store(redis, ONE, early)
    assert store(redis, ONE, asked)


def test_a_look_at_an_orphan_dates_the_deletion(redis: Server) -> None:
    fill(redis, ONE)
    redis.delete(user_key("ada"))
    asked, _ = look(redis, ONE)
    assert store(redis, ONE, asked)


def test_what_went_with_the_set_never_counts_again(redis: Server) -> None:
    fill(redis, ONE, room="first")
    redis.delete(user_key("ada"))
    assert user_of(redis, ONE, "first") is None
    fill(redis, ONE, room="second")
    assert user_of(redis, ONE, "second") == "ada"
    assert user_of(redis, ONE, "first") is None


def test_nor_does_it_without_the_ledger(redis: Server) -> None:
    fill(redis, ONE, room="first")
    redis.delete("access-ledger:ada")
    redis.delete(user_key("ada"))
    fill(redis, ONE, room="second")
    assert user_of(redis, ONE, "first") is None


def test_what_a_deleted_set_leaves_goes_with_it(redis: Server) -> None:
    """Or deleting that later would look like deleting nothing that counts."""
    fill(redis, ONE)
    fill(redis, TWO, room="other")
    redis.delete(user_key("ada"))
    look(redis, ONE, user="ada")
    assert redis.all_keys() == {"access-ledger:ada", token_key(ONE)}
    assert user_of(redis, ONE) is None


def test_a_token_that_changes_hands(redis: Server) -> None:
    fill(redis, ONE, "ada", "first")
    fill(redis, ONE, "bob", "second")
    assert user_of(redis, ONE, "first") is None
    assert user_of(redis, ONE, "second") == "bob"
    redis.delete(user_key("ada"))
    assert user_of(redis, ONE, "second") == "bob"


def test_expiry_is_no_deletion(redis: Server) -> None:
    fill(redis, ONE, keep=30, memory=1000, wait=500)
    redis.wait(1100)
    assert redis.all_keys() == {"access-ledger:ada"}
    asked, _ = look(redis, ONE)
    assert store(redis, ONE, asked)


@pytest.mark.parametrize("way", ["hash", "set", "member"])
def test_an_answer_older_than_an_end_is_not_kept(redis: Server, way: str) -> None:
    """It may have been a deletion, just before."""
    fill(redis, ONE, keep=30, memory=1000, wait=500)
    asked, _ = look(redis, ONE, "other", wait=500)
    take(redis, way)
    redis.wait(1100)
    assert not store(redis, ONE, asked, room="other")
    asked, _ = look(redis, ONE, "other")
    assert store(redis, ONE, asked, room="other")


def test_an_answer_that_may_not_be_kept_is_judged_all_the_same(redis: Server) -> None:
    fill(redis, ONE)
    asked, _ = look(redis, TWO)
    assert store(redis, TWO, asked, keep=0)
    assert user_of(redis, TWO) is None
    redis.delete(user_key("ada"))
    assert not store(redis, TWO, asked, keep=0)


def test_clearing_a_user(redis: Server) -> None:
    fill(redis, ONE)
    fill(redis, TWO, room="other")
    fill(redis, Token("three").digest, "bob")
    asked, _ = look(redis, ONE, "third")
    clear(redis, "ada")
    assert redis.all_keys() == {
        "access-ledger:ada",
        "access-ledger:bob",
        user_key("bob"),
        token_key(Token("three").digest),
    }
    assert not store(redis, ONE, asked, room="third")
    fill(redis, ONE)


def test_clearing_reaches_the_first_question_about_a_user(redis: Server) -> None:
    """Nothing is kept for the user yet, so nothing but the ledger can tell."""
    asked, _ = look(redis, ONE)
    clear(redis, "ada")
    assert MEMORY - 1000 < redis.lives("access-ledger:ada") <= MEMORY
    assert not store(redis, ONE, asked)


def test_clearing_one_room(redis: Server) -> None:
    fill(redis, ONE, room="first")
    fill(redis, ONE, room="second")
    fill(redis, TWO, room="first")
    asked, _ = look(redis, ONE, "third")
    clear(redis, "ada", "first")
    assert user_of(redis, ONE, "first") is None
    assert user_of(redis, TWO, "first") is None
    assert user_of(redis, ONE, "second") == "ada"
    assert not store(redis, ONE, asked, room="third")
    # The other token's hash is gone by this; it was noted already, and nothing else was taken since.
    asked, _ = look(redis, TWO, "second")
    assert store(redis, TWO, asked, room="second")


def test_clearing_no_room_is_not_clearing_all(redis: Server) -> None:
    fill(redis, ONE, room="")
    fill(redis, ONE, room="r")
    clear(redis, "ada", "r")
    assert user_of(redis, ONE, "") == "ada"


@pytest.mark.parametrize("value", ["", "no json", "[]", "3", "null", "{}", '{"userId":7}', '{"userId":"ada"'])
def test_what_is_unreadable_does_not_count(redis: Server, value: str) -> None:
    fill(redis, ONE)
    redis.write(token_key(ONE), "r", value)
    assert user_of(redis, ONE) is None
    fill(redis, ONE)
    assert user_of(redis, ONE) == "ada"


def test_old_tokens_of_a_busy_user_are_forgotten(redis: Server) -> None:
    for number in range(100):
        fill(redis, Token(f"old {number}").digest, keep=1, memory=200, wait=200)
    redis.wait(1100)
    fill(redis, ONE, keep=100_000, memory=200)
    for number in range(100):
        fill(redis, Token(f"new {number}").digest, memory=200)
    left = redis.members(user_key("ada"))
    assert {Token(f"new {number}").digest for number in range(100)} <= left
    assert len(left) < 150


def test_tokens_are_not_forgotten_before_every_question_has_ended(redis: Server) -> None:
    fill(redis, TWO, keep=100_000)
    fill(redis, ONE, keep=1, memory=1000, wait=500)
    asked, _ = look(redis, ONE, wait=500)
    redis.delete(token_key(ONE))
    redis.wait(1100)
    for number in range(20):
        fill(redis, Token(f"new {number}").digest)
    assert not store(redis, ONE, asked)


# What stands in the token's hash while the auth service is asked


@pytest.mark.parametrize("both", [True, False])
def test_a_deletion_reaches_the_first_question_about_a_token(redis: Server, both: bool) -> None:
    """Nothing is stored for it yet, but for the note that it is being asked about."""
    asked, _ = look(redis, ONE)
    redis.delete(token_key(ONE))
    if both:
        redis.delete(user_key("ada"))
    assert not store(redis, ONE, asked)
    assert user_of(redis, ONE) is None
    fill(redis, ONE)


def test_nor_does_the_note_of_a_later_question_hide_it(redis: Server) -> None:
    early, _ = look(redis, ONE)
    redis.delete(token_key(ONE))
    later, _ = look(redis, ONE)
    assert not store(redis, ONE, early)
    assert store(redis, ONE, later)


def test_equal_questions_of_two_processes_do_not_disturb_each_other(redis: Server) -> None:
    first, _ = look(redis, ONE)
    second, _ = look(redis, ONE)
    assert store(redis, ONE, first)
    assert store(redis, ONE, second)
    assert not store(redis, ONE, first)  # a later answer is there
    assert look(redis, ONE)[1] == granted("ada", "r", second)


def test_nor_do_those_about_two_rooms_by_a_new_token(redis: Server) -> None:
    asked = {room: look(redis, ONE, room)[0] for room in ("first", "second")}
    for room, time_of_it in asked.items():
        assert store(redis, ONE, time_of_it, room=room)
    assert [user_of(redis, ONE, room) for room in asked] == ["ada", "ada"]


@pytest.mark.parametrize("answer", [{"epoch": "e0"}, {"epoch": ""}, {"askedAt": 10**17}, {"askedAt": 0}])
def test_an_answer_of_another_epoch_or_time_does_not_stand_for_a_note(redis: Server, answer: dict[str, Any]) -> None:
    """It is found, for whoever judges it, but a question after it is stored all the same."""
    fill(redis, ONE)
    odd = {"userId": "ada", "roomId": "r", "freshUntil": 9e9, "askedAt": 1, "epoch": "e1"} | answer
    redis.write(token_key(ONE), "r", msgspec.json.encode(odd).decode())
    asked, found = look(redis, ONE)
    assert found is not None
    assert store(redis, ONE, asked)
    assert look(redis, ONE)[1] == granted("ada", "r", asked)


def test_old_notes_of_a_token_in_use_are_forgotten(redis: Server) -> None:
    fill(redis, ONE, keep=100_000)
    for number in range(100):
        look(redis, ONE, f"denied {number}", memory=200, wait=200)
    redis.wait(210)
    for number in range(100):
        look(redis, ONE, f"new {number}", memory=200, wait=200)
    assert {f"new {number}" for number in range(90, 100)} < redis.fields(token_key(ONE))
    assert len(redis.fields(token_key(ONE))) < 170
    assert user_of(redis, ONE) == "ada"


def test_rooms_that_nobody_asks_for_any_more_are_forgotten(redis: Server) -> None:
    def visit(room: str) -> None:
        asked, _ = look(redis, ONE, room, memory=200, wait=200)
        assert store(redis, ONE, asked, room=room, keep=100_000, memory=200, fresh=0.01)

    fill(redis, ONE, keep=100_000)
    for number in range(150):
        visit(f"old {number}")
    redis.wait(220)
    for number in range(300):
        visit(f"new {number}")
    fields = redis.fields(token_key(ONE))
    assert {f"new {number}" for number in range(290, 300)} < fields
    assert len([field for field in fields if field.startswith("old")]) < 50
    assert user_of(redis, ONE) == "ada"


def test_only_so_many_rooms_of_a_token_are_cached(redis: Server) -> None:
    for number in range(3):
        asked, _ = look(redis, ONE, f"room {number}")
        assert store(redis, ONE, asked, room=f"room {number}", most=3)
    asked, _ = look(redis, ONE, "one more")
    assert not store(redis, ONE, asked, room="one more", most=3)
    assert redis.fields(token_key(ONE)) == {f"room {number}" for number in range(3)}
    asked, _ = look(redis, ONE, "room 1")
    assert store(redis, ONE, asked + 1, room="room 1", most=3)


def test_an_answer_that_has_grown_old_stands_for_a_note_as_long_as_a_question_takes(redis: Server) -> None:
    fill(redis, ONE, keep=1, memory=1)
    asked, _ = look(redis, ONE)
    assert redis.lives(token_key(ONE)) > WAIT - 1000
    redis.wait(50)
    assert store(redis, ONE, asked)


def test_what_may_not_be_kept_leaves_nothing(redis: Server) -> None:
    asked, _ = look(redis, ONE)
    assert store(redis, ONE, asked, keep=0)
    assert redis.all_keys() == set()


# Comparing


def compare(redis: Server, *rooms: str, user: str = "ada") -> tuple[bool, bool, bool, list[str | None]]:
    """Whether the set is missing, something was found missing, the hash should be there; and who is in these rooms."""
    keys = [user_key(user), f"access-ledger:{user}", token_key(ONE)]
    _, missing, taken, (due, answers, _) = redis.run(COMPARE, keys, [ONE, len(rooms), *rooms])
    users = [None if answer is None else json.loads(answer)["userId"] for answer in answers]
    return bool(missing), int(taken) > 0, bool(due), users


def test_what_is_there_is_compared(redis: Server) -> None:
    fill(redis, ONE, room="first")
    fill(redis, ONE, room="second")
    assert compare(redis, "first", "", "second") == (False, False, True, ["ada", None, "ada"])
    assert compare(redis) == (False, False, True, [])
    assert compare(redis, "first", user="bob") == (False, False, False, [])


def test_what_is_missing_before_its_time_was_deleted(redis: Server) -> None:
    fill(redis, ONE)
    fill(redis, TWO)
    redis.delete(token_key(ONE))
    assert compare(redis, "r")[:3] == (False, False, True)
    redis.delete(user_key("ada"))
    assert compare(redis, "r") == (True, False, True, [])
    look(redis, ONE, user="ada")  # another process tidies up
    assert compare(redis, "r") == (False, True, False, [])


def test_a_hash_without_any_answer_is_told_from_others(redis: Server) -> None:
    keys = [user_key("ada"), "access-ledger:ada", token_key(ONE)]
    fill(redis, ONE)
    look(redis, ONE, room="other")  # the auth service is asked
    assert redis.run(COMPARE, keys, [ONE, 0])[3] == [1, [], 1]
    redis.delete(token_key(ONE))
    assert redis.run(COMPARE, keys, [ONE, 0])[3] == [1, [], 0]
    look(redis, ONE, room="other")
    assert redis.run(COMPARE, keys, [ONE, 0])[3] == [1, [], 0]


def test_an_answer_that_a_question_has_replaced_was_not_deleted(redis: Server) -> None:
    """One of another epoch: others who have sockets by it must not take it for revoked."""
    keys = [user_key("ada"), "access-ledger:ada", token_key(ONE)]
    fill(redis, ONE)
    for epoch in ("e2", "e3"):
        look(redis, ONE, epoch=epoch)
        assert redis.run(COMPARE, keys, [ONE, 0])[3] == [1, [], 1]
    redis.delete(token_key(ONE))
    assert redis.run(COMPARE, keys, [ONE, 0])[3] == [1, [], 0]


def test_what_is_missing_after_its_time_has_expired(redis: Server) -> None:
    fill(redis, ONE, keep=30, memory=1000, wait=500)
    redis.wait(1100)
    assert compare(redis, "r") == (False, False, False, [])


def test_clearing_a_room_tells_whose_other_answers_stay(redis: Server) -> None:
    fill(redis, ONE, room="first")
    fill(redis, ONE, room="second")
    fill(redis, TWO, room="second")
    keys = [user_key("ada"), token_key(""), "access-ledger:ada"]
    assert list(map(_text, redis.run(CLEAR, keys, [1, "first", MEMORY]))) == [ONE]
    assert redis.run(CLEAR, keys, [0, "", MEMORY]) == []


def test_clearing_a_room_says_nothing_of_others(redis: Server) -> None:
    fill(redis, ONE, room="first")
    clear(redis, "ada", "first")
    assert not compare(redis)[1]
    fill(redis, ONE, room="first")
    clear(redis, "ada")
    assert compare(redis)[1]


# Who has listened


def listen(
    redis: Server, who: str, since: int = 0, until: int = 0, epoch: str = "e1", patience: int = 60_000_000
) -> tuple[int, int]:
    since, gateways, _ = redis.run(LISTEN, [LISTENED], [who, epoch, since, until, patience])
    return int(since), gateways


def test_a_lone_gateway_has_listened_since_it_began(redis: Server) -> None:
    began, gateways = listen(redis, "a")
    assert gateways == 1
    assert listen(redis, "a", began, began + 5) == (began, 1)
    again, _ = listen(redis, "a")
    assert again > began


def test_gateways_that_listened_at_the_same_time_listened_for_each_other(redis: Server) -> None:
    first, _ = listen(redis, "a")
    second, gateways = listen(redis, "b")
    assert second > first
    assert gateways == 2
    listen(redis, "a", first, second - 1)
    assert listen(redis, "b", second, second + 10) == (second, 2)
    listen(redis, "a", first, second)
    assert listen(redis, "b", second, second + 10) == (first, 2)
    # What the one knows of the other it hands on, also when the other has gone.
    third, _ = listen(redis, "a")
    listen(redis, "b", first, third + 10)
    assert listen(redis, "a", third, third + 10) == (first, 2)


def test_who_may_yet_turn_out_to_have_listened(redis: Server) -> None:
    first, *_ = redis.run(LISTEN, [LISTENED], ["a", "e1", 0, 0, 60_000_000])
    second, gateways, behind = redis.run(LISTEN, [LISTENED], ["b", "e1", 0, 0, 60_000_000])
    assert (gateways, behind) == (2, 1)
    assert redis.run(LISTEN, [LISTENED], ["a", "e1", int(first), int(second), 60_000_000])[2] == 0
    assert redis.run(LISTEN, [LISTENED], ["b", "e1", int(second), int(second), 60_000_000])[2] == 0


def test_a_chain_of_gateways(redis: Server) -> None:
    times = [listen(redis, who)[0] for who in "abc"]
    listen(redis, "b", times[1], times[2])
    listen(redis, "a", times[0], times[1])
    assert listen(redis, "c", times[2], times[2]) == (times[0], 3)


def test_another_epoch_is_no_evidence_and_forgotten(redis: Server) -> None:
    first, _ = listen(redis, "a")
    second, _ = listen(redis, "b")
    listen(redis, "a", first, second + 10)
    third, gateways = listen(redis, "b", epoch="e2")
    assert (third > second, gateways) == (True, 1)
    assert listen(redis, "b", second, second + 10, epoch="e2") == (second, 1)


def test_who_is_not_heard_of_any_more_is_dead(redis: Server) -> None:
    first, _ = listen(redis, "a")
    redis.wait(50)
    listen(redis, "b", patience=40_000)
    assert listen(redis, "b", first, first, patience=40_000) == (first, 1)


def test_the_time_goes_on_when_the_clock_is_set_back(redis: Server) -> None:
    first, _ = listen(redis, "a")
    redis.write(LISTENED, "b", f"{first} {first} {first + 3_600_000_000} e1")
    assert listen(redis, "c")[0] > first + 3_600_000_000


def test_unreadable_records_are_forgotten(redis: Server) -> None:
    for odd in ("", "no record", "1 2 3", "1 2 x e1", "\n"):
        redis.write(LISTENED, "odd", odd)
        assert listen(redis, "a")[1] == 1
