"""For programs that are clients of the gateway: :mod:`kraftek.client.asyncio` and :mod:`kraftek.client.twisted`.

Both have a ``Client`` of the same shape, :class:`kraftek.client.backend.Backend`, around the same core without a socket
and without a clock, :class:`kraftek.client.conversation.Conversation`. What they take and give is here. The one for
JavaScript is beside them, in ``js/``.
"""

from kraftek.client.errors import Closed, QueueFull, Refused
from kraftek.client.messages import Change, Message, State

__all__ = ["Change", "Closed", "Message", "QueueFull", "Refused", "State"]
