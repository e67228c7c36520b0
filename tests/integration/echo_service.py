"""A service as somebody else would write it: redis-py and the Redis contract, nothing of the gateway.

Started by the ``service`` fixture: ``python echo_service.py REDIS_URL CHANNEL MODE``. Keeps all it gets in the list
``test:received:CHANNEL``. ``echoing``, it answers by the last part of the event's name:

=============== ==============================================================
``echo``        to the sender
``shout``       to the sender's room
``shoutOthers`` to the sender's room without the sender
``users``       to every socket of the users in ``payload.userIds``
``reply``       to the gateway that asked, with ``inReplyTo``
``kick``        ``disconnect`` for the sender, with the payload it sent
=============== ==============================================================

``asking``, it writes each event to standard output, one line of JSON, and publishes the line it then reads.
"""

import json
import sys
import time
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

BROADCAST = "events:broadcast"
# redis-py's own retries would sleep for seconds; main() has a loop for that.
NO_RETRY = Retry(NoBackoff(), 0)


def answer(event: dict[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """The channel and the message that answer ``event``."""
    payload = event["payload"]
    said = {"type": event["eventType"], "payload": payload}
    in_room = {**said, "recipients": [], "roomId": event.get("roomId")}
    if isinstance(payload, dict):
        # Where the existing contract has it; the room beside the payload is for payloads that are not objects.
        del in_room["roomId"]
        in_room["payload"] = {"roomId": event.get("roomId"), **payload}
    match event["eventType"].rpartition(":")[2]:
        case "echo":
            return BROADCAST, {**said, "recipients": [event["socketId"]]}
        case "shout":
            return BROADCAST, in_room
        case "shoutOthers":
            return BROADCAST, {**in_room, "excludeSocketIds": [event["socketId"]]}
        case "users":
            return BROADCAST, {**said, "userIds": payload["userIds"]}
        case "reply":
            return event["replyTo"], {**said, "recipients": [event["socketId"]], "inReplyTo": event["id"]}
        case "kick":
            return BROADCAST, {"type": "disconnect", "recipients": [event["socketId"]], "payload": payload}
    return None


def ask(line: str) -> tuple[str, dict[str, Any]] | None:
    """What the test that listens on our standard output says to ``line``."""
    print(line, flush=True)
    said = json.loads(sys.stdin.readline())
    return None if said is None else (BROADCAST, said)


def main(url: str, channel: str, mode: str) -> None:
    """Serve until killed, through any loss of Redis."""
    while True:
        try:
            with redis.from_url(url, decode_responses=True, retry=NO_RETRY) as client, client.pubsub() as events:
                events.subscribe(channel)
                for message in events.listen():
                    if message["type"] != "message":
                        continue
                    line = message["data"]
                    client.rpush(f"test:received:{channel}", line)
                    if said := ask(line) if mode == "asking" else answer(json.loads(line)):
                        client.publish(said[0], json.dumps(said[1]))
        except redis.exceptions.ConnectionError:
            time.sleep(0.05)


if __name__ == "__main__":
    main(*sys.argv[1:])
