"""Joining a consumer group of a Redis Stream, and the end of its consumers that are no more.

For both who read streams: the gateway (:mod:`kraftek.bus.reading`) and services (:mod:`kraftek.service.instance`).
"""

from __future__ import annotations

from kraftek.contract.lua import Script

__all__ = ["FORGET", "FORGOTTEN_AFTER", "JOIN"]

FORGOTTEN_AFTER = 60_000
"""Milliseconds after which a consumer that has nothing in hand and asks for nothing is removed from its group. One that
lives asks every second, and Redis makes it anew should it come back."""

_FORGET = """
for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
    local about = {}
    for i = 1, #consumer, 2 do about[consumer[i]] = consumer[i + 1] end
    if about.pending == 0 and about.idle > tonumber(ARGV[2]) then
        redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], about.name)
    end
end
return 1
"""

FORGET = Script(_FORGET)
"""Remove from the stream's group (its name is the first argument) those idle for longer than the second."""

JOIN = Script(f"""
local made = redis.pcall('XGROUP', 'CREATE', KEYS[1], ARGV[1], '0', 'MKSTREAM')
if made.err and not made.err:find('BUSYGROUP', 1, true) then return made end
{_FORGET}""")
"""The same, after making the group where it is missing: with the stream, and from its first entry."""
