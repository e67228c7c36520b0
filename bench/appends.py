"""What Redis spends on an event that the gateway appends to a service's stream: ``python -m bench.appends``.

Microseconds of Redis for each event (``INFO commandstats`` of ``EVALSHA``), one event by itself and 20 in one write,
beside a script that has no bounds in bytes and does ``XLEN`` and ``XADD`` alone. Both take turns on a redis-server of
their own; of the rounds the least counts, as everything else only adds to it.
"""

from __future__ import annotations

import argparse
from typing import Any

import msgspec

from kraftek.contract.lua import ForEach
from kraftek.contract.messages import Envelope
from kraftek.core.dispatch import APPEND
from tests.support.redis_server import PrivateRedis

STREAM = "events:bench"
CALLS = 1000
"""Of a script in a round."""


BARE = ForEach.make(
    "place",
    "most, bytes",
    APPEND.pack,
    "if redis.call('XLEN', place) < most then redis.call('XADD', place, '*', 'event', body) return 1 end",
)


def cost(redis: Any, script: ForEach, events: int) -> float:
    """Microseconds of an event, when so many are appended by one call."""
    envelope = Envelope(
        event_type="jobs:job:do",
        user_id="ann",
        socket_id="g.1",
        timestamp=1,
        gateway_id="g",
        reply_to="events:reply:g",
        payload=msgspec.Raw(b'"%s"' % (b"x" * 64)),
        room_id="board",
    )
    message = (STREAM, 10**6, 2**40, envelope, lambda _: None)
    arguments = APPEND.arguments([message] * events, "")
    digest = redis.script_load(script.source)
    redis.delete(STREAM, f"{STREAM}:level")
    redis.evalsha(digest, 0, *arguments)
    redis.config_resetstat()
    with redis.pipeline(transaction=False) as pipeline:
        for _ in range(CALLS // events):
            pipeline.evalsha(digest, 0, *arguments)
        pipeline.execute()
    return float(redis.info("commandstats")["cmdstat_evalsha"]["usec_per_call"]) / events


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=20)
    rounds = arguments.parse_args().rounds
    server = PrivateRedis()
    server.start()
    try:
        with server.client() as redis:
            for events in (1, 20):
                taken = [(cost(redis, BARE, events), cost(redis, APPEND, events)) for _ in range(rounds)]
                bare, bounded = (min(column) for column in zip(*taken, strict=True))
                print(f"{events:2} at a time: {bounded:5.1f} µs an event; XLEN and XADD alone {bare:5.1f} µs")
    finally:
        server.close()


if __name__ == "__main__":
    main()
