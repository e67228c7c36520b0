"""The arguments of a processor, checked by the rules of the gateway's own configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from kraftek.contract.settings import Channel, Count, Partitions, Prefix, Seconds, SecondsOrZero, Transport

__all__ = ["check_settings"]


class _Settings(Struct, kw_only=True):
    name: Annotated[str, Meta(pattern=r"^[^\s:]+\Z")]
    channel: Channel
    transport: Transport
    partitions: Partitions
    reply: bool | None
    register: bool
    concurrency: Count
    timeout: Seconds | None
    attempts: Count
    claim_after: Seconds
    grace: SecondsOrZero
    message_bytes: Annotated[int, Meta(ge=4096)]  # the kit's own errors fit
    prefix: Prefix
    broadcast: Channel


_ARGUMENTS = {*_Settings.__struct_fields__}


def check_settings(name: str, arguments: Mapping[str, Any]) -> None:
    """Raises ``ValueError`` for those of service ``name`` that it cannot have."""
    settings = {argument: value for argument, value in arguments.items() if argument in _ARGUMENTS}
    try:
        msgspec.convert(settings, _Settings)
    except msgspec.ValidationError as error:
        raise ValueError(f"{name}: {error}") from None
