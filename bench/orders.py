"""What the stage asks of the load, and what the load answers: one JSON line each, one at a time."""

import msgspec


class Connect(msgspec.Struct, tag=True):
    """Open more connections and authenticate each. Clients are numbered on; `room_size` of them share a room."""

    clients: int
    room_size: int


class RoundTrip(msgspec.Struct, tag=True):
    """Every client has `in_flight` messages on their way to the service and back, all the time."""

    in_flight: int
    text: int
    """Bytes of text in the payload; the rest of a message is some fifty bytes."""
    warm: float
    """Seconds before the window opens, at least."""
    seconds: float
    event: str = "bench:echo:ping"
    """What each is. To whom and on which channel it is answered is the service's: `bench.echo`."""
    request: bool = False
    """Whether each has an id."""


class ManyRooms(msgspec.Struct, tag=True):
    """In so many rooms at once someone has said something to all in the room; one that has it makes way for another."""

    text: int
    warm: float
    seconds: float
    event: str = "bench:room:say"
    """What each is, and so by what the service tells the room: `bench.echo`."""
    at_once: int = 100
    pause: float = 0.0
    """Seconds before one makes way for another."""


class FanOut(msgspec.Struct, tag=True):
    """An event to the room of the first client, the next one when all have it."""

    text: int
    warm: float
    seconds: float
    told: bool = False
    """Whether by the Function for rooms with history."""


class Idle(msgspec.Struct, tag=True):
    """Nothing is said; the gateway pings."""

    seconds: float


Order = Connect | RoundTrip | ManyRooms | FanOut | Idle


class Setting(msgspec.Struct):
    """The first line that a load process reads: whom its clients talk to."""

    ports: list[int]
    """One for all gateways, or one for each: then all in a room talk to the same, as behind a proxy that sees to it."""
    redis_port: int
    dialect: str
    """A key of `bench.dialects.DIALECTS`."""
    first: int
    """The number of its first client: clients of two loads are not the same users."""
    pids: dict[str, list[int]]
    """Whose processor time is wanted, by role; the load adds itself as ``load``."""


class Outcome(msgspec.Struct):
    """What came of an order."""

    messages: int
    """Deliveries (connections) within the window: those that the cost is divided by."""
    due: int
    """Deliveries that were due in all, warm-up included."""
    delivered: int
    """Deliveries that came. Not as many as were due: the run has failed."""
    seconds: float
    """The length of the window."""
    cpu: dict[str, float]
    """Processor seconds within the window, by role."""
    p50_ms: float | None
    p99_ms: float | None
    faults: list[str]
    """What must not happen and did; anything here: the run has failed."""
