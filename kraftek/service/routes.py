"""Where an event of a service goes: to its handler, with its payload. Used by :mod:`kraftek.service.processor`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from msgspec import Raw, Struct

from kraftek.contract.payloads import payload_reader

__all__ = ["Handler", "Route", "decoder_of"]

Handler = Callable[..., Any]


class Route(Struct, frozen=True):
    """``decode`` is ``None`` for a handler that takes no payload."""

    handler: Handler
    decode: Callable[[Raw], Any] | None
    answers: bool
    thread: bool
    timeout: float | None


def decoder_of(parameters: list[inspect.Parameter]) -> Callable[[Raw], Any] | None:
    """What converts the payload to the annotation of a handler's second parameter, if there is one."""
    if not parameters:
        return None
    annotation = parameters[0].annotation
    return payload_reader(Any if annotation is inspect.Parameter.empty else annotation)
