"""What survives of what was said in rooms with history, and to users with one, and what pages have of it.

What survives is written down beside each simulated server, whenever it appends to a topic's log, and is copied with its
snapshots: so it depends on nothing that gateways or scripts say about epochs. A topic is a room, or a user.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from kraftek.contract.names import history_log_key, history_position_key, room_topic, user_topic
from tests.simulation.redis import Server
from tests.support.copies import Copy, Said

if TYPE_CHECKING:
    from tests.simulation.people import Client
    from tests.simulation.world import World

__all__ = ["Histories"]

_POSITION, _LOG = history_position_key(""), history_log_key("")

Topics = dict[str, list[Said]]
"""By topic what a server has appended, by offset from 1."""


class Histories:
    """Those of a run."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._by_server: dict[Server, Topics] = {}
        self._by_epoch: dict[tuple[str, str], list[Said]] = {}

    # What survives

    def watch(self, server: Server, topics: Topics) -> None:
        """A server is there, with what survives of these."""
        self._by_server[server] = topics
        keyspace, changed, appended = server.keyspace, server.keyspace.changed, server.keyspace.appended
        position, log = self._world.named(_POSITION), self._world.named(_LOG)

        def has_changed(key: bytes) -> None:
            changed(key)
            if key.startswith(position) and (stands := keyspace.data.get(key)) is not None:
                self._begins(topics, key.removeprefix(position).decode(), stands)

        def was_appended(key: bytes, fields: list[bytes]) -> None:
            appended(key, fields)
            if key.startswith(log):
                topic = key.removeprefix(log).decode()
                message = msgspec.json.decode(fields[1])
                said = topics.setdefault(topic, [])
                said.append(Said(message["payload"]["n"], frozenset(message.get("excludeSocketIds", ()))))
                offset = int(keyspace.data[position + topic.encode()][b"offset"])
                if offset != len(said):
                    self._world.invariants.wrong(f"{topic} gets {said[-1]} as {offset}, and has {len(said)}")

        keyspace.changed, keyspace.appended = has_changed, was_appended

    def _begins(self, topics: Topics, topic: str, stands: dict[bytes, bytes]) -> None:
        """Redis has a position: if its epoch is new, it is that of what survives on this server."""
        epoch, offset = stands[b"epoch"].decode(), int(stands.get(b"offset", b"0"))
        if (topic, epoch) in self._by_epoch:
            return
        if not offset:
            topics[topic] = []
        said = self._by_epoch[topic, epoch] = topics.setdefault(topic, [])
        self._world.invariants.tell(f"{topic} is in epoch {epoch}, from {offset} on")
        if len(said) != offset:
            self._world.invariants.wrong(f"{topic} begins epoch {epoch} at {offset}, and has {len(said)}")

    def copy(self, server: Server) -> Topics:
        """What a snapshot of the server has."""
        return {topic: list(said) for topic, said in self._by_server[server].items()}

    def said(self, topic: str, epoch: str, offset: int) -> Sequence[Said] | None:
        """What survives of an epoch, as a :class:`Copy` asks for it."""
        return self._by_epoch.get((topic, epoch))

    # What is in Redis

    def position(self, topic: str) -> tuple[str, int] | None:
        """Where the topic is."""
        server = self._world.network.server
        stands = server and server.keyspace.find(self._world.named(_POSITION + topic))
        return (stands[b"epoch"].decode(), int(stands[b"offset"])) if stands else None

    def has(self, copy: Copy) -> bool:
        """Whether Redis has all that the copy lacks: what it has survives, and the rest is kept."""
        position, server = self.position(copy.room), self._world.network.server
        if position is None or server is None or not copy.epoch or copy.offset > position[1]:
            return False
        known, survives = self._by_epoch.get((copy.room, copy.epoch)), self._by_epoch[copy.room, position[0]]
        if known is None or known[: copy.offset] != survives[: copy.offset]:
            return False
        ancestors = server.keyspace.data[self._world.named(_POSITION + copy.room)].get(b"ancestors", b"").split()
        if copy.epoch != position[0] and copy.epoch.encode() not in ancestors[::2]:
            return False  # too many epochs ago, or of before a loss
        log = server.keyspace.find(self._world.named(_LOG + copy.room))
        kept = [at[0] for at in log.entries] if log is not None else []
        return copy.offset == position[1] or (copy.offset + 1 in kept and kept[-1] == position[1])

    # What pages are told

    def copy_of(self, client: Client, topic: str) -> Copy:
        """What the client's page has of the topic, from now on."""
        copy = client.copies.get(topic)
        if copy is None:
            wrong = self._world.invariants.wrong
            copy = client.copies[topic] = Copy(topic, self.said, lambda what: wrong(f"{client}: {what}"))
        copy.connected(client.socket_id)
        return copy

    def answered(self, client: Client, topic: str, payload: Any, since: Any) -> None:
        """The client hears the topic, at a gateway that follows it."""
        self._judge(client, topic, payload)
        self.copy_of(client, topic).answered(payload, since)

    def positioned(self, client: Client, topic: str, payload: Any) -> None:
        """The client is told where the topic is."""
        self._world.invariants.tell(f"{client} is told where {topic} is: {payload}")
        self._judge(client, topic, payload)
        if self._world.calm and not payload["recovered"]:
            self._world.invariants.wrong(f"{client} has missed something in {topic}, and nothing is wrong: {payload}")
        if not payload["recovered"]:
            client.began_anew = self._world.time.now
        self.copy_of(client, topic).positioned(payload)

    def _judge(self, client: Client, topic: str, payload: Any) -> None:
        """Whether the client may be told that it has missed something."""
        world, gateway = self._world, client.gateway
        recovered, copy = payload.get("recovered"), client.copies.get(topic)
        world.invariants.seen[f"recovered {recovered} {payload.get('reason', '')}".strip()] += 1
        if recovered is not False or copy is None or not self.has(copy):
            return
        if payload["reason"] == "unavailable" and not world.ample:
            return  # what is in flight may be the gateway's own
        server = world.network.server
        links = [link for kind in gateway.lag for link in gateway.links(kind)]
        well = gateway.lives and gateway.up_since is not None and gateway.undisturbed_since < world.time.now - 1.0
        if well and server is not None and server.refuses is None and all(link.server is server for link in links):
            world.invariants.wrong(f"{client} is told {payload} in {topic}, and Redis has all since {copy}")

    # The end

    def end(self) -> None:
        """Nothing has been wrong for long enough: every page that is there is where its rooms and its user are."""
        for client in self._world.clients:
            if not (client.open and client.gateway.lives):
                continue
            topics = [room_topic(room) for room in client.grants if client.gateway.follows(room)]
            if client.user is not None and client.grants and client.gateway.follows_users:
                topics.append(user_topic(client.user))
            for topic in topics:
                position = self.position(topic)
                if position is None or topic not in client.copies:
                    self._world.invariants.wrong(f"{client} hears {topic}, and nobody follows it")
                else:
                    client.copies[topic].has_all(*position)
