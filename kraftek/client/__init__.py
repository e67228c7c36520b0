"""For programs that are clients of the gateway: :mod:`kraftek.client.asyncio` and :mod:`kraftek.client.twisted`.

Both have a ``Client`` with the same interface, :class:`kraftek.client.backend.Backend`, around the same core without
sockets and clocks, :class:`kraftek.client.conversation.Conversation`. Their values and exceptions are exported here.
The JavaScript client is in ``js/``.
"""

from kraftek.client.errors import Closed, QueueFull, Refused
from kraftek.client.history import HistoryPage, Position
from kraftek.client.messages import Append, Change, Message, Part, Presence, Recovered, State
from kraftek.client.room_state import RoomState

__all__ = [
    "Append",
    "Change",
    "Closed",
    "HistoryPage",
    "Message",
    "Part",
    "Position",
    "Presence",
    "QueueFull",
    "Recovered",
    "Refused",
    "RoomState",
    "State",
]
