-- KEYS: the stream. ARGV: the group, and what follows below.
-- Makes the group where it is missing: with the stream, and from its first entry.
local made = redis.pcall('XGROUP', 'CREATE', KEYS[1], ARGV[1], '0', 'MKSTREAM')
if made.err and not made.err:find('BUSYGROUP', 1, true) then return made end
