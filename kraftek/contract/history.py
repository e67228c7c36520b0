"""How a service tells a room something: by a script that numbers it, keeps it, and publishes it.

Gateways load it as a Redis Function, for services in any language. What gateways read is in
:mod:`kraftek.core.history`. The keys, without the configured prefix:

=====================================  =================================================================================
``gateways:history:rules``             the hash of the rules, as JSON, and of their ``generation``, a random name
``gateways:history:following``         the gateways that deliver by these rules, by when they stop unless they say so
``gateways:history:position:<topic>``  the hash of ``epoch`` and ``offset``: ``history.lua`` beside this module
``gateways:history:log:<topic>``       the stream of messages; an id is ``<offset>-<bytes of all messages before it>``
``gateways:history:ids:<topic>``       the sorted set of the messages' own ids, by offset
``gateways:history:<topic>``           the channel to which gateways subscribe that have somebody who hears it
=====================================  =================================================================================

A topic is ``room:`` and a room's name.
"""

from __future__ import annotations

from kraftek.contract.lua import Script, lua
from kraftek.contract.names import BROADCAST

__all__ = ["FUNCTION", "LIBRARY", "TELL"]

FUNCTION = "kraftek_tell_v1"
"""The name of the Function, and of its library. Another one begins when the library changes: gateways of two versions
may be connected."""

_TELL = lua(__package__, "history", "kept", "tell")

TELL = Script(f"{_TELL}\nreturn tell(ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5])")
"""ARGV: the room, the message, its id or nothing, the prefix, and the channel for rooms without history."""

LIBRARY = f"""#!lua name={FUNCTION}
{_TELL}
redis.register_function('{FUNCTION}', function(_, args)
    if #args < 2 then return redis.error_reply('ERR {FUNCTION}: expected a room and a message') end
    return tell(args[1], args[2], args[3] or '', args[4] or '', args[5] or '{BROADCAST}')
end)
"""
"""What ``FUNCTION LOAD`` takes, from Redis 7 on."""
