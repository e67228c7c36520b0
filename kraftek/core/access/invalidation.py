"""What is published on ``auth:invalidate``. Used by :mod:`.cache` and :mod:`.not_before`."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

__all__ = ["Invalidation"]


class Invalidation(Struct, rename="camel"):
    """Access of this user is revoked, in this room alone when it is given and not empty."""

    user_id: Annotated[str, Meta(min_length=1)]
    room_id: str | None = None
