"""How a service tells a room, or users, something: by a script that numbers it, keeps it, and publishes it.

Gateways load it as a Redis Function, for services in any language. What gateways read is in
:mod:`kraftek.core.history`. The keys, without the configured prefix:

=====================================  =================================================================================
``gateways:history:rules``             the hash of the rules, as JSON, and of their ``generation``, a random name
``gateways:history:following``         the gateways that deliver by these rules, and have a lease: ``follow.lua``
``gateways:history:position:<topic>``  the hash of ``epoch`` and ``offset``: ``history.lua`` beside this module
``gateways:history:log:<topic>``       the stream of messages; an id is ``<offset>-<bytes of all messages before it>``
``gateways:history:texts:<topic>``     the hash of texts that are told in pieces, in chunks: ``texts.lua``
``gateways:history:ids:<topic>``       the sorted set of the messages' own ids, by offset
``gateways:history:<topic>``           the channel to which gateways subscribe that have somebody who hears it
=====================================  =================================================================================

A topic is ``room:`` and a room's name, or ``user:`` and a user's id.
"""

from __future__ import annotations

from kraftek.contract.lua import Script, lua
from kraftek.contract.names import BROADCAST

__all__ = ["APPEND", "APPEND_FUNCTION", "FUNCTION", "LIBRARY", "TELL", "TELL_USERS", "USERS_FUNCTION"]

FUNCTION = "kraftek_tell_v1"
"""The name of the Function for rooms, and of the library. Another one begins when the library changes: gateways of two
versions may be connected."""

USERS_FUNCTION = "kraftek_tell_users_v1"
"""The name of the Function for users."""

APPEND_FUNCTION = "kraftek_append_v1"
"""The name of the Function for texts that are told to a room in pieces."""

_TELL = lua(__package__, "history", "kept", "texts", "tell", "tell_users", "append")

TELL = Script(f"{_TELL}\nreturn tell(ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5])")
"""ARGV: the room, the message, its id or nothing, the prefix, and the channel for rooms without history."""

TELL_USERS = Script(f"{_TELL}\nreturn tell_users(ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5])")
"""The same with a JSON list of users in place of the room."""

APPEND = Script(f"{_TELL}\nlocal told, expected = append_text(unpack(ARGV))\nreturn told or expected")
"""ARGV: the room, the type, the key of the text, the piece, ``first`` or ``last`` or both or neither, the id of the
piece or nothing, the prefix, and the channel for rooms without history. Returns as the others, or a string: what was
expected."""

LIBRARY = f"""#!lua name={FUNCTION}
{_TELL}
local function register(name, does, first)
    redis.register_function(name, function(_, args)
        if #args < 2 then return redis.error_reply('ERR ' .. name .. ': expected ' .. first .. ' and a message') end
        return does(args[1], args[2], args[3] or '', args[4] or '', args[5] or '{BROADCAST}')
    end)
end
register('{FUNCTION}', tell, 'a room')
register('{USERS_FUNCTION}', tell_users, 'users')
redis.register_function('{APPEND_FUNCTION}', function(_, args)
    if #args < 4 then return redis.error_reply('ERR {APPEND_FUNCTION}: expected a room, a type, a key and a text') end
    local flags, id, prefix = args[5] or '', args[6] or '', args[7] or ''
    local channel = prefix .. (args[8] or '{BROADCAST}')
    local told, expected = append_text(args[1], args[2], args[3], args[4], flags, id, prefix, channel)
    return told or redis.error_reply('ERR {APPEND_FUNCTION}: expected ' .. expected)
end)
"""
"""What ``FUNCTION LOAD`` takes, from Redis 7 on."""
