"""Whatever happens in whatever order, nobody stays in whose access was revoked.

Two gateway processes with open sockets, an auth service that changes its mind, and a Redis whose answers and messages
arrive when the dice say so. When all has come to rest, every open socket's token is one that the auth service says
yes to, and no process says yes to any other from its cache. (Dice rather than hypothesis: of the steps that it draws
evenly, hardly any row lets a client in.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import pytest
from twisted.internet.task import Clock

from kraftek.contract.errors import Code, PeerError
from kraftek.contract.messages import Token
from kraftek.contract.names import token_key, user_key
from kraftek.contract.settings import Auth
from tests.core.access.world import MemoryRedis, Outcome, Process, settle
from tests.support.fakes import Question

USERS = {"a1": "ada", "a2": "ada", "b1": "bob"}
ROOMS = ("r", "s")


@dataclass
class Socket:
    """An open one. ``check`` is what its access was asked about last."""

    process: Process
    token: str
    room: str
    check: Outcome

    @property
    def is_in(self) -> bool:
        return self.check.grant is not None

    @property
    def could_not_ask(self) -> bool:
        return isinstance(self.check.error, PeerError) and self.check.code is Code.AUTH_UNAVAILABLE


@dataclass
class Decided:
    """An answer of the auth service on its way."""

    question: Question
    yes: bool


@dataclass
class Side:
    """A process, its sockets, and what is on its way to it."""

    process: Process
    sockets: list[Socket] = field(default_factory=list)
    answers: list[Decided] = field(default_factory=list)
    messages: list[bytes] = field(default_factory=list)

    def access_stale(self, digest: str | None, user_id: str | None, room_id: str | None, revoked: bool) -> None:
        for socket in self.sockets:
            concerned = digest == Token(socket.token).digest or user_id == USERS[socket.token]
            if (concerned and room_id in (None, socket.room)) or digest is user_id is None:
                socket.check = self.process.ask(socket.token, socket.room)


class World:
    def __init__(self, dice: Random) -> None:
        self.dice = dice
        self.clock = Clock()
        self.redis = MemoryRedis(self.clock)
        self.allowed = dict.fromkeys(USERS, True)
        auth = Auth(cache_ttl=10, denied_ttl=0.1, cache_size=dice.choice([2, 100]))
        self.sides = [Side(Process(self.redis, self.clock, auth)) for _ in range(2)]
        for side in self.sides:
            side.process.cache.add_listener(side)  # type: ignore[arg-type]

    def play(self, steps: int) -> None:
        weights: dict[Callable[[Side], None], float] = {
            self.connect: 3,
            self.decide: 6,
            self.answer: 6,
            self.execute: 10,
            self.reply: 10,
            self.hear: 4,
            self.allow: 1,
            self.take_back_by_hash: 1,
            self.take_back_by_set: 1,
            self.take_back_by_message: 1,
            self.wait: 0.3,
            self.sweep: 4,
            self.lose_redis: 0.2,
            self.find_redis: 1,
        }
        for step in self.dice.choices(list(weights), list(weights.values()), k=steps):
            step(self.dice.choice(self.sides))
            self.clock.advance(0.00001)  # no two answers are of the same moment

    # Clients

    def connect(self, side: Side) -> None:
        token, room = self.dice.choice(list(USERS)), self.dice.choice(ROOMS)
        side.sockets.append(Socket(side.process, token, room, side.process.ask(token, room)))

    # The auth service

    def decide(self, side: Side) -> None:
        if side.process.questions:
            question = side.process.questions.pop(0)
            side.answers.append(Decided(question, self.allowed[question.token]))

    def answer(self, side: Side) -> None:
        if side.answers:
            self.give(side.answers.pop(0))

    def allow(self, _: Side) -> None:
        self.allowed[self.dice.choice(list(USERS))] = True

    def take_back_by_hash(self, _: Side) -> None:
        token = self.dice.choice(list(USERS))
        key = token_key(Token(token).digest)
        self.redis.expire()
        if key in self.redis.hashes:  # deleting nothing tells nobody: the auth service would publish then
            self.allowed[token] = False
            self.redis.delete(key)

    def take_back_by_set(self, _: Side) -> None:
        user = self.dice.choice(["ada", "bob"])
        self.redis.expire()
        if user_key(user) in self.redis.sets:
            self.forbid(user)
            self.redis.delete(user_key(user))

    def take_back_by_message(self, _: Side) -> None:
        # Whoever is not connected misses the message, and finds out that it may have missed one.
        user = self.dice.choice(["ada", "bob"])
        self.forbid(user)
        for side in self.sides:
            if side.process.bus.available:
                side.messages.append(b'{"userId": "%b"}' % user.encode())

    # Redis

    def execute(self, side: Side) -> None:
        if len(side.process._executed) < len(side.process.bus.calls):
            side.process.execute()

    def reply(self, side: Side) -> None:
        if side.process._executed:
            side.process.reply()

    def hear(self, side: Side) -> None:
        while side.messages:
            side.process.publish(side.messages.pop(0))
        side.process.hear()

    def wait(self, _: Side) -> None:
        self.clock.advance(self.dice.choice([0.5, 4, 11]))
        self.redis.expire()

    def lose_redis(self, side: Side) -> None:
        if side.process.bus.available:
            side.messages.clear()
            side.process.down()

    def find_redis(self, side: Side) -> None:
        if not side.process.bus.available:
            side.process._unheard.clear()
            side.process.bus.up()

    def sweep(self, side: Side) -> None:
        self.clock.advance(0.25)
        side.process.cache.sweep()

    # In the end

    def come_to_rest(self) -> None:
        for side in self.sides:
            self.find_redis(side)
        for _ in range(100):
            for side in self.sides:
                self.sweep(side)
                self.hear(side)
            settle(*(side.process for side in self.sides))
            for side in self.sides:
                while side.answers:
                    self.answer(side)
                while side.process.questions:
                    self.decide(side)
                    self.answer(side)
            if any(side.process.busy or not side.process.cache.settled for side in self.sides):
                continue
            # Whoever could not be asked about is asked about again.
            away = [socket for side in self.sides for socket in side.sockets if socket.could_not_ask]
            if not away:
                return
            for socket in away:
                socket.check = socket.process.ask(socket.token, socket.room)
        raise AssertionError("it does not come to rest")

    def judge(self) -> None:
        for side in self.sides:
            for socket in side.sockets:
                assert not socket.check.waits
                assert not socket.is_in or self.allowed[socket.token], f"{socket.token} is in {socket.room}"
        for side in self.sides:
            for token in USERS:
                for room in ROOMS:
                    check = side.process.ask(token, room)
                    settle(side.process)
                    assert check.grant is None or self.allowed[token], f"{token} is let in {room}"

    def forbid(self, user: str) -> None:
        for token, whose in USERS.items():
            if whose == user:
                self.allowed[token] = False

    def give(self, decided: Decided) -> None:
        if decided.yes:
            decided.question.yes(USERS[decided.question.token])
        else:
            decided.question.no()


@pytest.mark.parametrize("start", range(0, 1000, 100))
def test_nobody_stays_in_whose_access_was_taken_back(start: int) -> None:
    asked = hits = invalidations = 0
    for seed in range(start, start + 100):
        world = World(Random(seed))
        world.play(120)
        world.come_to_rest()
        try:
            world.judge()
        except AssertionError as error:
            error.add_note(f"with seed {seed}")
            raise
        for side in world.sides:
            counters = side.process.counters
            asked += counters.access_asked
            hits += counters.access_hits
            invalidations += counters.access_invalidations
    assert min(asked, hits, invalidations) > 100
