"""What a handler can use while it runs. Implemented by :class:`kraftek.service.instance.Instance`, used by contexts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, NoReturn, Protocol

from kraftek.contract.lua import Argument, Script
from kraftek.service.messages import Message
from kraftek.service.receipts import Receipt

__all__ = ["IN_THREAD", "Link", "Work"]


class Link(Protocol):
    """What a handler can use while it runs."""

    def call(self, *command: Argument) -> Awaitable[Any]: ...

    def request(self, event: Mapping[str, Any], timeout: float) -> Coroutine[Any, Any, Any]: ...

    def receipt(self, message: Message | None, seconds: float) -> Coroutine[Any, Any, Receipt]:
        """Send a message to clients, if there is one, at once, and hear who has got it."""

    async def run_for(self, work: Any, script: Script, keys: Sequence[str], args: Sequence[Argument]) -> Any:
        """Run a script for the event in hand, at once. Its handler has its time anew."""

    def awaitable(self, coroutine: Coroutine[Any, Any, Any]) -> Awaitable[Any]:
        """The coroutine as its backend awaits: over Twisted as a Deferred."""

    def in_thread(self, work: Callable[[], Any]) -> Awaitable[Any]:
        """Its result, from a thread of its own."""


class Work(Protocol):
    """What is known of an event that is handled."""

    cancelled: bool


class _InThread:
    """The link of a handler that runs in a thread: nothing can be awaited there."""

    def __getattr__(self, name: str) -> NoReturn:
        raise RuntimeError("a handler with thread=True can await nothing: what it sends leaves when it has returned")


IN_THREAD: Any = _InThread()
"""The link of a handler that runs in a thread."""
