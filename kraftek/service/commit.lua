-- KEYS: the stream, or nothing for an event that came over Pub/Sub. ARGV: the group, the entry's id; then for each
-- command when to send it ('always', or 'unheard': if the one before had no receiver), its number of words, and these.
-- Sends the commands and acknowledges the entry, if it is still pending. Returns 1, or 0 if it is not.
-- An entry acknowledged out of order would count as waiting until all earlier ones are acknowledged: if the stream has
-- no other group it is removed at once. (Removing every entry costs Redis 8 µs each; the gateway trims those in order.)
local stream, at, receivers = KEYS[1], 3, 0
if stream then
    local pending = redis.pcall('XPENDING', stream, ARGV[1], ARGV[2], ARGV[2], 1)
    if pending.err or #pending == 0 then return 0 end
end
while ARGV[at] do
    local last = at + 1 + tonumber(ARGV[at + 1])
    if ARGV[at] == 'always' or receivers == 0 then receivers = redis.call(unpack(ARGV, at + 2, last)) end
    at = last + 1
end
if stream then
    redis.call('XACK', stream, ARGV[1], ARGV[2])
    local behind = #redis.call('XPENDING', stream, ARGV[1], '-', ARGV[2], 1) > 0
    if behind and #redis.call('XINFO', 'GROUPS', stream) == 1 then redis.call('XDEL', stream, ARGV[2]) end
end
return 1
